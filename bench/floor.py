"""The floor: the least Python that runs dag.json, and what each kind of journal adds to it.

    python -S bench/floor.py dag.json --engine spawn --journal none [--shell] [--logs] [--jobs 2]

engines   spawn (posix_spawn + wait), pidfd (posix_spawn + pidfd + epoll), popen, asyncio
--logs    stdout and stderr of each node to two files of its own, a session of its own (spawn, pidfd)
journals  none
          jsonl    one write() for each start and end, no sync
          group    jsonl + one fdatasync for all the ends of a loop turn, before any user starts
          fsync    jsonl + one fdatasync for each end
          async    jsonl + a thread that syncs what has gathered, every 20 ms; only the exit waits
          sqlite   WAL, synchronous=NORMAL, one commit for each event
          sqlite-full  WAL, synchronous=FULL, one commit for each event
"""

import json
import os
import sys


def none(event, name):
    pass


def nothing():
    pass


def journal(mode):
    """(add(event, name), turn(), close())"""
    if mode == "none":
        return none, nothing, nothing
    from time import time

    if mode.startswith("sqlite"):
        import sqlite3

        db = sqlite3.connect("journal.db", isolation_level=None)
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=" + ("full" if mode == "sqlite-full" else "normal"))
        db.execute("create table if not exists e(t real, event text, id text)")
        return (lambda event, name: db.execute("insert into e values(?,?,?)", (time(), event, name)), nothing, db.close)
    fd = os.open("journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    text = '{"t":%.6f,"event":"%s","id":"%s"}\n'
    if mode == "async":
        import threading
        from time import sleep

        wake, over = threading.Event(), []

        def sync():
            while not over:
                wake.wait()
                wake.clear()
                os.fdatasync(fd)
                over or sleep(0.02)

        thread = threading.Thread(target=sync)
        thread.start()

        def add(event, name):
            os.write(fd, (text % (time(), event, name)).encode())
            if not wake.is_set():
                wake.set()

        def close():
            over.append(1)
            wake.set()
            thread.join()
            os.fdatasync(fd)

        return add, nothing, close
    ends = [0]

    def add(event, name):
        os.write(fd, (text % (time(), event, name)).encode())
        if event == "end":
            ends[0] += 1
            if mode == "fsync":
                os.fdatasync(fd)

    def turn():
        if mode == "group" and ends[0]:
            ends[0] = 0
            os.fdatasync(fd)

    return add, turn, lambda: os.close(fd)


def load(path, shell):
    from collections import deque

    nodes = json.loads(open(path).read())["nodes"]
    users, left, argv = {}, {}, {}
    for x in nodes:
        i = x["id"]
        users[i], left[i] = [], len(x["needs"])
        run = x["run"]
        argv[i] = ["/bin/sh", "-c", run] if shell or ">" in run else ["/bin/" + run.split()[0], *run.split()[1:]]
        for d in x["needs"]:
            users[d].append(i)
    return users, left, argv, deque(i for i, k in left.items() if not k)


def loop(engine, jobs, users, left, argv, ready, add, turn, logs=False):
    env = dict(os.environ)
    if logs:
        os.makedirs("logs", exist_ok=True)
    live = {}
    if engine == "popen":
        from subprocess import Popen

        keep = {}

        def start(i):
            keep[i] = p = Popen(argv[i])
            return p.pid
    else:
        spawn = os.posix_spawn

        def start(i):
            if not logs:
                return spawn(argv[i][0], argv[i], env)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            out, err = (os.open(f"logs/{i}.1.{s}", flags, 0o644) for s in ("out", "err"))
            pid = spawn(
                argv[i][0],
                argv[i],
                env,
                setsid=True,
                file_actions=[(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)],
            )
            os.close(out)
            os.close(err)
            return pid

    if engine == "pidfd":
        import select

        poll = select.epoll()

    def reap():
        if engine == "pidfd":
            for fd, _ in poll.poll():
                i = live.pop(fd)
                poll.unregister(fd)
                code = os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status
                os.close(fd)
                yield i, code
        else:
            pid, status = os.wait()
            while pid:
                yield live.pop(pid), status
                pid, status = os.waitpid(-1, os.WNOHANG) if live else (0, 0)

    while ready or live:
        while ready and len(live) < jobs:
            i = ready.popleft()
            add("start", i)
            pid = start(i)
            if engine == "pidfd":
                pid = os.pidfd_open(pid)
                poll.register(pid, select.EPOLLIN)
            live[pid] = i
        for i, code in reap():
            if code:
                sys.exit(f"{i} failed: {code}")
            if engine == "popen":
                keep.pop(i).returncode = 0
            add("end", i)
            for u in users[i]:
                left[u] -= 1
                if not left[u]:
                    ready.append(u)
        turn()


async def aio(jobs, users, left, argv, ready, add, turn):
    import asyncio

    live = set()

    async def one(i):
        add("start", i)
        p = await asyncio.create_subprocess_exec(*argv[i])
        if await p.wait():
            sys.exit(f"{i} failed")
        add("end", i)
        for u in users[i]:
            left[u] -= 1
            if not left[u]:
                ready.append(u)

    while ready or live:
        while ready and len(live) < jobs:
            live.add(asyncio.ensure_future(one(ready.popleft())))
        done, live = await asyncio.wait(live, return_when=asyncio.FIRST_COMPLETED)
        for t in done:
            t.result()
        turn()


def main(argv):
    opt = {"--engine": "spawn", "--journal": "none", "--jobs": "2"}
    shell, logs = "--shell" in argv, "--logs" in argv
    rest = [x for x in argv if x not in ("--shell", "--logs")]
    for k, v in zip(rest[1::2], rest[2::2]):
        opt[k] = v
    add, turn, close = journal(opt["--journal"])
    state = load(rest[0], shell)
    if opt["--engine"] == "asyncio":
        import asyncio

        asyncio.run(aio(int(opt["--jobs"]), *state, add, turn))
    else:
        loop(opt["--engine"], int(opt["--jobs"]), *state, add, turn, logs)
    close()


main(sys.argv[1:])

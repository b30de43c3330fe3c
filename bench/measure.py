"""One run of one tool, measured: wall, cpu, peak memory. Shared by run.py, makespan.py, targets.py.

wall: from start to reap. cpu: user + system of every process reaped, what the run left behind
included (it is adopted, and ended by pid). rss: the largest single process; a child inherits the
peak of the process that forks it, so a small helper forks it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import resource
import select
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gen

HERE = Path(__file__).resolve().parent
TMP = Path(os.environ.get("BENCH_TMP") or Path(tempfile.gettempdir()) / f"dagrun-bench-{os.getuid()}")
PY = sys.executable
RSS = """import os, sys
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status) & 255)
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool: which input it reads and how it is called; {jobs} is filled in."""

    emitter: str
    command: tuple[str, ...]
    missing: str = ""  # why it can't run here
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What one run took; `bad` says why it doesn't count."""

    wall_s: float
    cpu_s: float
    rss_kib: int = 0
    bad: str = ""


def _program(emitter: str, name: str, *words: str) -> Peer:
    path = os.environ.get(f"BENCH_{name.upper()}") or shutil.which(name)
    return Peer(emitter, (path or name, *words), "" if path else f"{name} is not on the PATH")


def _doit(*words: str) -> Peer:
    given = shlex.split(os.environ.get("BENCH_DOIT", ""))
    missing = "" if given or importlib.util.find_spec("doit") else "this interpreter has no doit (pip install doit)"
    return Peer("doit", (*(given or (PY, "-m", "doit")), "-n", "{jobs}", *words), missing)


def _floor(engine: str = "spawn", journal: str = "none", *more: str) -> Peer:
    words = ("dag.json", "--engine", engine, "--journal", journal, "--jobs", "{jobs}", *more)
    return Peer("plain", (PY, "-S", str(HERE / "floor.py"), *words))


DAGRUN = tuple(shlex.split(os.environ.get("DAGRUN", ""))) or (PY, "-m", "dagrun")


def dagrun(*words: str) -> Peer:
    """`dagrun execute` with more options; from this checkout unless $DAGRUN names another."""
    command = (*DAGRUN, "execute", "dag.yaml", "-j", "{jobs}", *words)
    if os.environ.get("DAGRUN"):
        return Peer("dagrun", command)
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    return Peer("dagrun", command, env={"PYTHONPATH": path})


PEERS = {
    "dagrun": dagrun("--ui", "quiet"),
    "dagrun-live": dagrun("--ui", "live"),
    "dagrun-log": dagrun("--ui", "log"),
    "make": _program("make", "make", "-j{jobs}"),
    "ninja": _program("ninja", "ninja", "-j{jobs}", "--quiet"),
    "xargs": _program("lines", "xargs", "-P{jobs}", "-a", "cmds.txt", "-I%%", "sh", "-c", "%%"),
    "doit": _doit(),
    "doit-threads": _doit("-P", "thread"),
    "floor": _floor(),
    "floor-shell": _floor("spawn", "none", "--shell"),
    "floor-pidfd": _floor("pidfd"),
    "floor-popen": _floor("popen"),
    "floor-asyncio": _floor("asyncio"),
    "floor-jsonl": _floor("spawn", "jsonl"),
    "floor-group": _floor("spawn", "group"),
    "floor-fsync": _floor("spawn", "fsync"),
    "floor-async": _floor("spawn", "async"),
    "floor-logs": _floor("spawn", "async", "--logs"),
    "floor-sqlite": _floor("spawn", "sqlite"),
    "floor-sqlite-full": _floor("spawn", "sqlite-full"),
}


def adopt() -> None:
    """Make this process the one that orphans of a run fall to."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap_rest() -> None:
    """End, by pid, what a run left behind."""
    for sig, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        end = time.monotonic() + patience_s
        for pid in _children():
            os.kill(pid, sig)
        while _children() and time.monotonic() < end:
            time.sleep(0.005)


def _children() -> list[int]:
    """Children that live; those that ended are reaped."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    """A pty of 100 x 40 whose output is read and thrown away; gives the end for the program."""
    import fcntl
    import struct
    import termios

    mine, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(mine, 65536):
                pass

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        thread.join(5)
        os.close(mine)


def call(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    *,
    timeout_s: float = 120,
    tty: bool = False,
    rss: bool = False,
) -> Result:
    """Run a command to its end and measure it. Its output goes to output.txt, or to a pty."""
    if rss:
        command = [PY, "-S", "-c", RSS, str(cwd / "rss.txt"), *command]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(_terminal()) if tty else stack.enter_context(open(cwd / "output.txt", "wb"))
        stdin = out if tty else subprocess.DEVNULL
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                command, cwd=cwd, env=dict(env), stdin=stdin, stdout=out, stderr=out, start_new_session=True
            )
        except OSError as error:
            return Result(0, 0, bad=str(error))
        # not Popen.wait(timeout): it polls, and rounds what is measured up to 50 ms
        pidfd = os.pidfd_open(process.pid)
        try:
            late = not select.select([pidfd], [], [], timeout_s)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            os.close(pidfd)
        wall = time.perf_counter() - start
    reap_rest()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    bad = f"more than {timeout_s:g} s" if late else f"exit {process.returncode}" if process.returncode else ""
    if bad and not tty:
        said = (cwd / "output.txt").read_text(errors="replace").strip().splitlines()
        bad += f": {said[0][:100]}" if said else ""
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int((cwd / "rss.txt").read_text()) if rss and not bad else 0
    return Result(wall, cpu, peak, bad)


def once(
    name: str,
    dag: gen.Dag,
    jobs: int,
    *,
    timeout_s: float = 120,
    new: bool = False,
    tty: bool = False,
    rss: bool = False,
    verify: bool = False,
) -> Result:
    """One run of a peer in a fresh folder; with `new` dagrun has no cache of what it has read before."""
    peer = PEERS[name]
    if peer.missing:
        return Result(0, 0, bad=peer.missing)
    where = TMP / "work" / name
    shutil.rmtree(where, ignore_errors=True)
    gen.emit(peer.emitter, dag, jobs, where)
    cache = where / "cache" if new else TMP / "cache"
    log = where / "ran.log"
    env = {**os.environ, **peer.env, "XDG_CACHE_HOME": str(cache), "BENCH_LOG": str(log)}
    if tty:
        env |= {"TERM": "xterm-256color"}
        env.pop("CI", None)
    command = [word.replace("{jobs}", str(jobs)) for word in peer.command]
    result = call(command, where, env, timeout_s=timeout_s, tty=tty, rss=rss)
    problem = gen.check(dag, log) if verify and not result.bad else None
    return Result(result.wall_s, result.cpu_s, bad=problem) if problem else result


def median(results: Sequence[Result]) -> float:
    """The median wall time in seconds."""
    return statistics.median(result.wall_s for result in results)

"""A project folder in which the real program runs, and the promise that each test leaves nothing alive."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from dagrun.core.event import AttemptFinished, Event, NodeStarted, RunEnded, decode
from dagrun.core.state import RunState
from dagrun.errors import NotFoundError
from dagrun.sandbox import procs
from dagrun.store.history import load_state
from dagrun.store.journal import Journal
from dagrun.store.rundir import RunDir, list_runs

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "dagrun")
DEADLINE_S = 30.0
# What an earlier dagrun, a CI service or the person who runs the tests may have set.
_NOISE = ("DAGRUN_", "GITHUB_", "CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS")


class Done(NamedTuple):
    """How the program ended: exit code (negative: a signal) and its output as text."""

    code: int
    out: str
    err: str


class Process:
    """The program at work: `pid` is the one that a user knows, `engine` its child."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.pid = popen.pid
        self.pidfd = os.pidfd_open(popen.pid)

    def alive(self) -> bool:
        return self.popen.poll() is None

    def engine(self) -> int:
        """The pid of the engine, once it is there."""
        return self.until(lambda: (procs.children(self.pid) or [0])[0], "the engine is up")

    def until(self, check: Callable[[], int], what: str) -> int:
        """Look until `check` is true, while the program lives and the deadline is not over."""
        end = time.monotonic() + DEADLINE_S
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        while not (found := check()):
            assert time.monotonic() < end, f"never happened: {what}"
            if poll.poll(4) and not check():
                raise AssertionError(f"the program ended before {what}: {self.done()}")
        return found

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def done(self, timeout_s: float = DEADLINE_S) -> Done:
        """Wait for the end."""
        out, err = self.popen.communicate(timeout=timeout_s)
        return Done(self.popen.returncode, _text(out), _text(err))

    def close(self) -> None:
        """Whatever the test did: the program is gone afterwards."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.kill()
            self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()
        os.close(self.pidfd)


class Space:
    """A project in `path`: write flows and files, run the program, read what is left of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.processes: list[Process] = []

    def write(self, name: str, text: str, *, mode: int = 0o644) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        file.chmod(mode)
        return file

    def flow(self, text: str) -> None:
        """Write flow.yaml: `version: 1` and a name are added."""
        self.write("flow.yaml", "version: 1\nname: flow\n" + textwrap.dedent(text))

    def read(self, name: str) -> str:
        """The text of a file; empty where there is none."""
        file = self.path / name
        return file.read_text() if file.exists() else ""

    def lines(self, name: str) -> list[str]:
        return self.read(name).split("\n")[:-1]

    # ------------------------------------------------------------ the program

    def start(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        before: tuple[str, ...] = (),
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        program: tuple[str, ...] = PROGRAM,
    ) -> Process:
        """The program with `args` in this project; `before` are words in front of it (`setpriv …`)."""
        popen = subprocess.Popen(
            [*before, *program, *args],
            cwd=self.path,
            env=self.environ(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        process = Process(popen)
        self.processes.append(process)
        return process

    def environ(self, more: Mapping[str, str]) -> dict[str, str]:
        base = {k: v for k, v in os.environ.items() if not k.startswith(_NOISE)}
        # The cache of checked flows must not be the user's own.
        here = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.path.parent / "cache")}
        return {**base, **here, **more}

    def run(self, *args: str, env: Mapping[str, str] | None = None, before: tuple[str, ...] = ()) -> Done:
        """The program with `args`, to its end."""
        return self.start(*args, env=env, before=before).done()

    def execute(self, *args: str, env: Mapping[str, str] | None = None) -> Done:
        return self.run("execute", "flow.yaml", *args, env=env)

    # ------------------------------------------------------------ what is left

    def runs(self) -> list[RunDir]:
        """Newest first."""
        return list_runs(str(self.path))

    def last(self) -> RunDir:
        return self.runs()[0]

    def state(self) -> RunState:
        """The state of the newest run as its journal tells it."""
        return load_state(self.last())

    def statuses(self) -> dict[str, str]:
        state = self.state()
        return {name: str(state.node_status[i]) for i, name in enumerate(state.plan.ids)}

    def outcomes(self, node: str) -> list[str]:
        """The outcomes of the attempts of a node."""
        state = self.state()
        return [str(a.outcome) for a in state.attempts[state.plan.index[node]]]

    def finish(self, node: str) -> AttemptFinished:
        """The end of the last attempt of a node."""
        return [e for e in self.events() if isinstance(e, AttemptFinished) and e.node == node][-1]

    def ended(self) -> RunEnded:
        return [e for e in self.events() if isinstance(e, RunEnded)][-1]

    def records(self) -> list[list[Event]]:
        """The events of the newest run, commit by commit; none while there is no journal."""
        runs = self.runs()
        if not runs:
            return []
        try:
            journal = Journal.open(runs[0].journal, write=False)
        except NotFoundError:
            return []
        try:
            return [[decode(e) for e in record.events] for record in journal.read()]
        finally:
            journal.close()

    def events(self) -> list[Event]:
        return [event for record in self.records() for event in record]

    def started(self, node: str) -> bool:
        """Whether an attempt of a node is running."""
        last: Event | None = None
        for event in self.events():
            if isinstance(event, NodeStarted | AttemptFinished) and event.node == node:
                last = event
        return isinstance(last, NodeStarted)

    def log(self, node: str, attempt: int = 1, stream: str = "out") -> bytes:
        file = Path(self.last().log(node, attempt, stream))
        return file.read_bytes() if file.exists() else b""

    def has_lines(self, name: str, count: int = 1) -> bool:
        return len(self.lines(name)) >= count

    def below(self) -> list[Path]:
        """Every file that dagrun keeps in this project."""
        return [p for p in (self.path / ".dagrun").rglob("*") if p.is_file()]

    # ------------------------------------------------------------ the promise

    def alive(self) -> list[str]:
        """Every process of this project: by the cookie of a run, or by its folder."""
        mark = b"DAGRUN_RUN_DIR=" + os.fsencode(self.path) + b"/"
        found = []
        for pid in procs.all_pids():
            who = procs.stat(pid)
            if who is None or procs.is_dead(who) or pid == os.getpid():
                continue
            if mark in _environ(pid) or _cwd(pid).startswith(str(self.path)):
                found.append(f"{pid} {who.name} (parent {who.ppid})")
        return found

    def locked(self) -> list[str]:
        return [run.id for run in self.runs() if run.lock_holder() is not None]

    def check(self) -> None:
        """Nothing of this project is alive, and no lock is held."""
        assert self.alive() == []
        assert self.locked() == []

    def close(self) -> None:
        left = self.alive() if all(not p.alive() for p in self.processes) else []
        for process in self.processes:
            process.close()
        for line in self.alive():
            os.kill(int(line.split()[0]), signal.SIGKILL)
        assert left == [], "the test left processes behind"


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def pids_in(space: Space, name: str) -> list[tuple[int, int]]:
    """(pid, start ticks) of the processes that wrote their pids into a file."""
    found = []
    for line in space.lines(name):
        who = procs.stat(int(line))
        if who is not None:
            found.append((int(line), who.start_ticks))
    return found


def dead(pids: list[tuple[int, int]]) -> bool:
    """Whether none of these processes is alive now; a zombie that nobody reaps is dead."""
    for pid, ticks in pids:
        who = procs.stat(pid)
        if who is not None and who.start_ticks == ticks and not procs.is_dead(who):
            return False
    return True

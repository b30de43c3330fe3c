"""The watchdog with real engines, real terminals and real kills."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dagrun.sandbox import procs

from .conftest import all_dead, readable, until, written_pids

SCRIPT = str(Path(__file__).with_name("engine_script.py"))
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
WAIT = "echo $$ >> pids; exec sleep 1000"
DAEMON = "import os\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
DAEMON += "os.execve('/bin/sh', ['sh', '-c', 'echo $$ >> pids; exec sleep 1000'], {})"
COMMANDS = (
    f"trap '' TERM; sh -c '{WAIT}' & {WAIT}",
    f"setsid sh -c '{WAIT}' & {WAIT}",
    f'{sys.executable} -c "{DAEMON}"; {WAIT}',
)
STARTED = 6


class Run:
    """A watchdog with its engine: `top` is the pid that a user knows."""

    def __init__(self, folder: Path, mode: str, *commands: str, before: Callable[[], None] | None = None) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, str(folder), mode, *commands],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENV,
            process_group=0,
            preexec_fn=before,
        )
        self.top = self.process.pid
        self.engine = 0
        self.seen = b""

    def up(self) -> Run:
        until((self.folder / "engine").exists, "the engine is up")
        self.engine, watchdog = map(int, (self.folder / "engine").read_text().split())
        assert watchdog == self.top
        self.expect("up")
        return self

    def expect(self, line: str) -> None:
        """Read stdout until this line was the last one to come."""
        assert self.process.stdout is not None
        while not self.seen.endswith(f"{line}\n".encode()):
            assert readable(self.process.stdout.fileno()), f"{line!r} did not come: {self.seen!r}"
            got = os.read(self.process.stdout.fileno(), 4096)
            assert got, f"the engine ended before {line!r}: {self.seen!r}"
            self.seen += got

    def end(self) -> tuple[int, list[str], str]:
        """Exit code, all lines of stdout, stderr."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, (self.seen + out).decode().split(), err.decode()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(mode: str, *commands: str, before: Callable[[], None] | None = None) -> Run:
        runs.append(Run(tmp_path, mode, *commands, before=before))
        return runs[-1]

    yield make
    for run in runs:
        for pid in (run.engine, run.top):
            if pid and run.process.poll() is None:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        run.process.communicate()


@pytest.mark.parametrize("code", [0, 3, 130, 255])
def test_the_exit_code_of_the_engine_is_the_exit_code(start: Callable[..., Run], code: int) -> None:
    assert start(f"exit={code}").end() == (code, ["once"], "")


def test_sys_exit_and_an_escaped_error_are_codes_without_traceback(start: Callable[..., Run]) -> None:
    assert start("sys.exit").end() == (6, [], "")
    code, _, err = start("raise").end()
    assert (code, err) == (70, "error[bug]: RuntimeError: slipped: please report it\n")


def test_atexit_and_buffers_run_once(start: Callable[..., Run]) -> None:
    assert start("exit=0", "once").end() == (0, ["once"], "atexit\n")


def test_kill_9_of_the_engine_leaves_nothing_and_says_how_to_go_on(start: Callable[..., Run]) -> None:
    run = start("wait", *COMMANDS).up()
    pids = written_pids(run.folder / "pids", STARTED)
    os.kill(run.engine, signal.SIGKILL)
    assert run.end() == (
        137,
        ["up"],
        "dagrun was killed (signal 9); nothing it started is alive. Go on with: dagrun resume r7k2\n",
    )
    assert not procs.wait_dead(pids, 0.0)  # at once: the watchdog waited for them


def test_kill_9_of_the_watchdog_leaves_nothing(start: Callable[..., Run]) -> None:
    run = start("wait", *COMMANDS).up()
    pids = written_pids(run.folder / "pids", STARTED)
    engine = os.pidfd_open(run.engine)
    os.kill(run.top, signal.SIGKILL)
    assert readable(engine), "the engine went on without its watchdog"
    os.close(engine)
    assert all_dead(pids)
    assert (run.folder / "ended").read_text() == "[]"
    assert run.process.wait() == -signal.SIGKILL


def test_each_signal_to_the_known_pid_counts_once(start: Callable[..., Run]) -> None:
    run = start("wait").up()
    for name in ("SIGINT", "SIGINT", "SIGTERM", "SIGHUP", "SIGTERM", "SIGQUIT"):
        os.kill(run.top, getattr(signal, name))
        run.expect(name)
    assert run.end() == (33, ["up", "SIGINT", "SIGINT", "SIGTERM", "SIGHUP", "SIGTERM", "SIGQUIT"], "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_before_there_is_a_run_a_signal_ends_it_at_once(start: Callable[..., Run], name: str) -> None:
    run = start("preparing")
    run.expect("preparing")
    os.kill(run.top, signal.Signals[name])
    code, _, err = run.end()
    assert code == 128 + signal.Signals[name]
    assert err == f"interrupted by {name}: no node was started\n"


def test_a_signal_to_the_whole_group_counts_once(start: Callable[..., Run]) -> None:
    run = start("wait").up()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        os.killpg(run.top, getattr(signal, name))
        run.expect(name)
    os.kill(run.top, signal.SIGQUIT)
    assert run.end() == (33, ["up", "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"], "")


def test_sigterm_to_the_engine_itself_works(start: Callable[..., Run]) -> None:
    run = start("wait").up()
    os.kill(run.engine, signal.SIGTERM)
    run.expect("SIGTERM")
    os.kill(run.top, signal.SIGQUIT)
    assert run.end()[:2] == (33, ["up", "SIGTERM", "SIGQUIT"])


def test_what_nohup_and_a_background_job_ignore_stays_ignored(start: Callable[..., Run]) -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    run = start("wait", before=nohup).up()
    os.kill(run.top, signal.SIGHUP)
    os.killpg(run.top, signal.SIGINT)
    os.kill(run.top, signal.SIGTERM)
    run.expect("SIGTERM")
    os.kill(run.top, signal.SIGQUIT)
    assert run.end()[1] == ["up", "SIGTERM", "SIGQUIT"]


def test_children_are_reaped_even_if_the_caller_ignored_sigchld(start: Callable[..., Run]) -> None:
    run = start("exit=5", before=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN) and None)
    assert run.end()[0] == 5


def test_closed_standard_descriptors_do_no_harm(start: Callable[..., Run]) -> None:
    assert start("exit=4", before=lambda: os.close(0)).end()[0] == 4


def test_the_watchdog_holds_neither_stdin_nor_stdout(start: Callable[..., Run]) -> None:
    run = start("wait").up()
    fds = [f"/proc/{run.top}/fd/{fd}" for fd in (0, 1)]
    until(lambda: list(map(os.readlink, fds)) == [os.devnull, os.devnull], "the watchdog let go of both")
    os.kill(run.top, signal.SIGQUIT)
    run.end()


def test_the_watchdog_sleeps(start: Callable[..., Run]) -> None:
    run = start("wait").up()
    os.kill(run.top, signal.SIGINT)
    run.expect("SIGINT")
    who = procs.stat(run.top)
    assert who is not None
    until(lambda: (now := procs.stat(run.top)) is not None and now.state == "S", "the watchdog is blocked")
    os.kill(run.top, signal.SIGQUIT)
    run.end()


# ------------------------------------------------------------ in a terminal

SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        print("ended", os.waitstatus_to_exitcode(status), flush=True)
        break
    os.tcsetpgrp(0, os.getpid())
    print("stopped", flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
"""


class Terminal:
    """A shell with job control in a terminal of its own, and the script as its foreground job."""

    def __init__(self, folder: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            args = ["-c", SHELL, SCRIPT, str(folder), "wait", f"cd {folder}; {WAIT}"]
            os.execve(sys.executable, [sys.executable, *args], ENV)
        self.seen = ""

    def expect(self, line: str) -> None:
        """Read until `line` came, and forget what came before it."""
        while f"{line}\r\n" not in self.seen:
            assert readable(self.fd), f"{line!r} did not come: {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode()
        self.seen = self.seen.partition(f"{line}\r\n")[2]

    def hang_up(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.hang_up()
    os.waitpid(made.pid, 0)


def test_ctrl_c_counts_once_each_time(terminal: Terminal, tmp_path: Path) -> None:
    terminal.expect("up")
    written_pids(tmp_path / "pids", 1)
    terminal.type(b"\x03")
    terminal.expect("SIGINT")
    terminal.type(b"\x03")
    terminal.expect("SIGINT")
    terminal.type(b"\x1c")
    terminal.expect("SIGQUIT")
    assert "SIGINT" not in terminal.seen
    terminal.expect("ended 33")
    assert "Traceback" not in terminal.seen


def test_ctrl_z_stops_both_and_fg_continues_both(terminal: Terminal, tmp_path: Path) -> None:
    terminal.expect("up")
    engine, watchdog = map(int, (tmp_path / "engine").read_text().split())
    terminal.type(b"\x1a")
    terminal.expect("stopped")
    for pid in (engine, watchdog):
        until(lambda pid=pid: (who := procs.stat(pid)) is not None and who.state == "T", "both stopped")  # type: ignore[misc]
    terminal.type(b"\n")
    terminal.expect("SIGCONT")
    terminal.type(b"\x03")
    terminal.expect("SIGINT")
    terminal.type(b"\x1a")
    terminal.expect("stopped")
    terminal.type(b"\n")
    terminal.expect("SIGCONT")
    terminal.type(b"\x1c")
    terminal.expect("ended 33")


def test_a_resized_window_reaches_the_engine(terminal: Terminal) -> None:
    terminal.expect("up")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 20, 0, 0))
    terminal.expect("SIGWINCH")
    terminal.type(b"\x1c")
    terminal.expect("ended 33")


def test_a_closed_terminal_is_one_hangup_and_leaves_nothing(terminal: Terminal, tmp_path: Path) -> None:
    terminal.expect("up")
    pids = written_pids(tmp_path / "pids", 1)
    engine, watchdog = map(int, (tmp_path / "engine").read_text().split())
    ends = [os.pidfd_open(pid) for pid in (engine, watchdog)]
    terminal.hang_up()
    until(lambda: "SIGHUP" in (tmp_path / "said").read_text(), "the hangup came")
    os.kill(watchdog, signal.SIGQUIT)
    assert all(readable(fd) for fd in ends)
    assert all_dead(pids)
    assert [s for s in (tmp_path / "said").read_text().split() if s != "SIGCONT"] == ["up", "SIGHUP", "SIGQUIT"]
    for fd in ends:
        os.close(fd)

"""One watchdog a run: the process that the user knows is the parent of the engine, and outlives it.

The watchdog takes the signals and hands each to the engine exactly once, as a byte in a pipe; it
waits, and when the engine is gone, in whatever way, it kills what the engine left: as subreaper it
inherits all of it. It does nothing else, blocked in one system call. The engine sees the end of the
pipe when the watchdog is gone, and then has to end by itself (`kill_everything`).

Knows nothing of runs but an id to print. Invariants: the fork happens before anything was printed
and before any thread was started; no signal that the caller had set to ignored (nohup, `&`) comes
through; no KeyboardInterrupt exists after `run_under_watchdog` has begun; no other process of this
user reads its memory or environment, where the caller's secrets are; until the engine has told
its run a signal ends it at once, since nobody reads the pipe while a workflow is read and checked.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from dagrun.sandbox import procs
from dagrun.sandbox.procs import kill_everything

__all__ = ["EngineSide", "kill_everything", "run_under_watchdog"]

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SAME_SIGNAL_S = 1.0
_SWEEP = "sweep:"


class EngineSide:
    """The engine's end of the watchdog: signals come in as numbers, the run's id goes out.

    `fileno()` is readable when signals came or the watchdog is gone. `signals_fd` is the read end
    of the watchdog's pipe, `run_fd` the write end of the other; this object owns both.
    """

    def __init__(self, signals_fd: int, run_fd: int) -> None:
        self.watchdog_alive = True
        self._signals = signals_fd
        self._run = run_fd
        os.set_blocking(signals_fd, False)
        os.set_blocking(run_fd, False)
        # Signals sent to the engine itself come through a pipe of its own: the wakeup descriptor
        # is the only way to be woken that the next system call can't lose.
        self._own, own_write = os.pipe()
        self._own_write = own_write
        os.set_blocking(self._own, False)
        os.set_blocking(own_write, False)
        self._both = select.epoll()
        self._both.register(self._signals, select.EPOLLIN)
        self._both.register(self._own, select.EPOLLIN)
        self._last_term: tuple[str, float] = ("", float("-inf"))

    def take_signals(self) -> None:
        """Install the engine's handlers: SIGTERM, SIGCONT and SIGWINCH by `read`, the rest by the watchdog."""
        signal.set_wakeup_fd(self._own_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGWINCH, signal.SIGCONT):
            if number != signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _woken)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)

    def fileno(self) -> int:
        """Readable when `read` has something to say."""
        return self._both.fileno()

    def read(self) -> list[int]:
        """The signals that came, in order: SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCONT. Never blocks.

        Each counts once, but for a SIGTERM that reached watchdog and engine both (a signal to
        the group): the second within a second is the same. `watchdog_alive` is up to date after it.
        """
        found: list[int] = []
        data = _drain(self._signals) if self.watchdog_alive else b""
        if data is None:
            self.watchdog_alive = False
            self._both.unregister(self._signals)
        for source, numbers in (("watchdog", data or b""), ("engine", _drain(self._own) or b"")):
            for number in numbers:
                if number != signal.SIGTERM or self._is_new_term(source):
                    found.append(number)
        return found

    def tell_run(self, run_id: str) -> None:
        """Tell the watchdog which run to name in its last word; from now on signals come to `read` alone."""
        self._tell(run_id)

    def tell_sweep(self, kind: str, run_dir: str) -> None:
        """Tell the watchdog what no signal of its own would end, if this process is killed: see leftovers.sweep."""
        self._tell(f"{_SWEEP}{kind}:{run_dir}".replace("\n", "\0"))

    def _tell(self, line: str) -> None:
        try:
            os.write(self._run, f"{line}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            pass  # no watchdog, no last word

    def close(self) -> None:
        """Give back the descriptors and the wakeup."""
        signal.set_wakeup_fd(-1)
        self._both.close()
        for fd in (self._signals, self._run, self._own, self._own_write):
            os.close(fd)

    def _is_new_term(self, source: str) -> bool:
        now = time.monotonic()
        before, at = self._last_term
        if before != source and now - at < _SAME_SIGNAL_S:
            return False
        self._last_term = (source, now)
        return True


def run_under_watchdog(main: Callable[[EngineSide], int]) -> int:
    """Run `main` in a child and watch it; the exit code for this process (128 + signal if it was killed).

    Call it before anything is printed and before threads exist. In the child it never returns:
    the child leaves by os._exit with the code of `main`, its output flushed, no atexit run.
    """
    procs.ensure_standard_fds()
    procs.become_subreaper()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A blocked signal is queued even if it is ignored, so what must stay ignored isn't listened to.
    listened = {s for s in _FORWARDED if signal.getsignal(s) != signal.SIG_IGN}
    blocked = listened | {signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT}
    if signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN:
        blocked.discard(signal.SIGTSTP)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    signals_read, signals_write = os.pipe()
    run_read, run_write = os.pipe()
    engine = os.fork()
    if engine == 0:
        os.close(signals_write)
        os.close(run_read)
        _be_engine(main, signals_read, run_write, old - blocked)
    # Its environment is the caller's, and it can't know whether a workflow declares secrets in it.
    # After the fork: the engine decides for itself.
    procs.hide_memory()
    os.close(signals_read)
    os.close(run_write)
    _let_go_of_stdio()
    os.set_blocking(run_read, False)
    watched = _watch(engine, signals_write, blocked, run_read)
    survivors = kill_everything()
    watched.told += _drain(run_read) or b""
    if os.WIFSIGNALED(watched.status):
        _sweep(watched.told)
    return _last_word(watched, survivors)


def _be_engine(main: Callable[[EngineSide], int], signals_fd: int, run_fd: int, mask: set[int]) -> None:
    """The child: run `main`, flush, leave. Never returns."""
    code = 70
    try:
        side = EngineSide(signals_fd, run_fd)
        side.take_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = main(side)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 1
    except BaseException as error:  # noqa: BLE001 — this process must leave by os._exit
        # `main` has its own door for errors: what comes here slipped past it.
        _say(f"error[bug]: {type(error).__name__}: {error}: please report it")
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # the reader is gone, or there never was one
        os._exit(code & 0xFF)


@dataclass(slots=True)
class _Watched:
    """How the engine ended, and what it had told: `ended_by` is the signal that ended it before it had a run."""

    status: int = 0
    told: bytes = b""
    ended_by: int = 0


def _watch(engine: int, pipe: int, awaited: set[signal.Signals], run_fd: int) -> _Watched:
    """Hand on signals until the engine has ended."""
    watched = _Watched()
    while True:
        pid, watched.status = os.waitpid(engine, os.WNOHANG)
        if pid:
            return watched
        number = signal.sigwaitinfo(awaited).si_signo
        if number == signal.SIGTSTP:
            _stop_with(engine)
        elif number == signal.SIGCONT:
            _send(engine, signal.SIGCONT)
        elif number != signal.SIGCHLD:
            watched.told += _drain(run_fd) or b""
            if not watched.told:
                watched.ended_by = watched.ended_by or number
                _send(engine, signal.SIGKILL)
                continue
            try:
                os.write(pipe, bytes((number,)))
            except OSError:
                pass  # it is just ending: the next wait tells


def _stop_with(engine: int) -> None:
    """^Z: stop the engine, then this process, so that the shell takes the job for stopped."""
    _send(engine, signal.SIGSTOP)
    signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    # Stops here. Where no shell could continue us (an orphaned group), the kernel drops it instead.
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    _send(engine, signal.SIGCONT)


def _let_go_of_stdio() -> None:
    """Let the readers of stdout see its end when the engine ends: only stderr is kept, for the last word."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _sweep(told: bytes) -> None:
    """Remove what the engine had made outside of its process tree."""
    lines = told.decode("utf-8", "surrogateescape").split("\n")
    for line in dict.fromkeys([line for line in lines if line.startswith(_SWEEP)]):
        from dagrun.sandbox.leftovers import PLANTS, sweep

        kind, _, run_dir = line.removeprefix(_SWEEP).partition(":")
        if (names := sweep(run_dir.replace("\0", "\n"), (kind,))) and kind == PLANTS:
            _say(f"moved aside what a killed node had made: {', '.join(names[:5])}")


def _last_word(watched: _Watched, survivors: list[str]) -> int:
    """The exit code for the engine's wait status; one line on stderr if it was killed."""
    if not os.WIFSIGNALED(watched.status):
        return os.WEXITSTATUS(watched.status)
    number = os.WTERMSIG(watched.status)
    if watched.ended_by and number == signal.SIGKILL:
        _say(f"interrupted by {signal.Signals(watched.ended_by).name}: no node was started")
        return 128 + watched.ended_by
    lines = watched.told.decode("utf-8", "replace").split("\n")
    told = [line for line in lines if line and not line.startswith(_SWEEP)]
    state = "nothing it started is alive"
    if survivors:
        state = f"{len(survivors)} of its processes would not die ({', '.join(survivors[:5])})"
    way_on = f". Go on with: dagrun resume {told[-1]}" if told else ""
    _say(f"dagrun was killed (signal {number}); {state}{way_on}")
    return 128 + number


def _drain(fd: int) -> bytes | None:
    """What is in a non-blocking pipe now; None when there is nothing and nobody writes any more."""
    data = b""
    while True:
        try:
            got = os.read(fd, 4096)
        except BlockingIOError:
            return data
        if not got:
            return data or None
        data += got


def _say(line: str) -> None:
    try:
        os.write(2, f"{line}\n".encode("utf-8", "replace"))
    except OSError:
        pass  # nobody listens


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _woken(_number: int, _frame: FrameType | None) -> None:
    """Only makes Python write the signal's number to the wakeup descriptor."""

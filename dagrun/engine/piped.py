"""A process of an agent attempt that we talk with: our pipes at its stdin and stdout, its stderr in the log.

What Seat (the tool worker) and McpSeat (a server of tools) have in common: started held by a back end
like any attempt, written to through a buffer, read from, ended and reaped in the engine's one loop.
Never blocks. Knows no protocol. Invariants: what is in `fds` is registered in the epoll and nothing
else of ours is; a process that was spawned is swept and reaped before another one is started.
"""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from time import monotonic

from dagrun.core.names import Outcome
from dagrun.engine.attempt import last_text_line, signal_name
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.confined import Denied, hold
from dagrun.engine.toolends import Broken, End, Returned
from dagrun.errors import EnvironmentFault
from dagrun.sandbox.base import Child, Exit, SpawnBusy, SpawnFailed
from dagrun.sandbox.logpool import Slot
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import NOTHING_MORE, Aftermath
from dagrun.sandbox.walls import Held

KILL_AGAIN_S = 0.2
CLOSED_GRACE_S = 10.0  # from the end of its output to its own end: an engine of containers tidies up first
BUSY_PAUSE_S = 0.1  # doubles up to BUSY_PAUSE_MOST_S
BUSY_PAUSE_MOST_S = 5.0
BUSY_PATIENCE_S = 60.0
MAX_UNSENT_BYTES = 64 << 20  # more than any call with its source has: what it does not read is not kept for ever
_READ_BYTES = 1 << 18
_TAIL_BYTES = 4096


class Piped(ABC):
    """One process at a time, started again where a subclass wants it. All calls come from the engine's thread.

    `over`, `swept`, `notes`, `cpu_ms` and `max_rss_bytes` tell of all that have ended so far; `retire` that
    something may still hold the log files.
    """

    def __init__(self, *, bench: Workbench, sandbox: Plain, poll: select.epoll, command: Command, slot: Slot) -> None:
        self.fds: set[int] = set()
        self.over: Aftermath | None = None
        self.swept: list[str] = []
        self.notes: list[str] = []
        self.retire = False
        self.cpu_ms = 0
        self.max_rss_bytes: int | None = None
        self._broken: Broken | None = None
        self._results: list[Returned | Broken] = []
        self._bench = bench
        self._sandbox = sandbox
        self._poll = poll
        self._command = command
        self._slot = slot
        self._err_from = 0  # where the words of the present process begin in the log
        self._child: Child | None = None
        self._held: Held | None = None
        self._stdin = -1
        self._stdout = -1
        self._unsent = bytearray()
        self._why = ""  # why it is being ended by us
        self._refused = ""  # why its back end let it not begin
        self._stopping = False
        self._kill_at: float | None = None  # the next SIGKILL
        self._closed_at: float | None = None  # how long it may live on without output
        self._try_at: float | None = None  # the next spawn, while the machine is short
        self._stuck_since = 0.0
        self._pause_s = BUSY_PAUSE_S

    # ------------------------------------------------------------ for the subclass

    @abstractmethod
    def _heard(self, data: bytes) -> str:
        """Take in what it said; why it can't be talked with any more, "" if it can."""

    @abstractmethod
    def _ended(self, end: End) -> None:
        """It is dead, with all that it had started."""

    @abstractmethod
    def _unstarted(self, broken: Broken) -> None:
        """It can't be started."""

    @abstractmethod
    def _opening(self) -> bytes:
        """What a new process is told first."""

    @abstractmethod
    def _deadlines(self) -> Iterable[float]:
        """When `_expire` has something to do (time.monotonic())."""

    @abstractmethod
    def _expire(self, now: float) -> None:
        """Do what is due by then."""

    # ------------------------------------------------------------ results

    def drain(self) -> list[Returned | Broken]:
        """The results since the last time."""
        found, self._results = self._results, []
        return found

    # ------------------------------------------------------------ start

    @property
    def alive(self) -> bool:
        """Whether a process of it is still there: the attempt ends only after it."""
        return self._child is not None

    def _start(self) -> None:
        """Start one, now or as soon as the machine has room for it."""
        if self._child is not None or self._try_at is not None or self._stopping:
            return
        self._try_start()

    def _try_start(self) -> None:
        try:
            made = self._spawn()
        except (SpawnBusy, OSError) as busy:
            text = busy.message if isinstance(busy, SpawnBusy) else busy.strerror or str(busy)
            self._busy(text)
            return
        except EnvironmentFault as fault:
            self._never(Broken(Outcome.FAILED, fault.message + (f" ({fault.hint})" if fault.hint else "")))
            return
        self._stuck_since, self._pause_s = 0.0, BUSY_PAUSE_S
        if isinstance(made, Denied):
            self._never(Broken(Outcome.DENIED, made.message))
        elif isinstance(made, SpawnFailed):
            self._never(Broken(Outcome.FAILED, made.message))
        else:
            self._watch(made)

    def _never(self, broken: Broken) -> None:
        self._close_pipes()
        self._unstarted(broken)

    def _busy(self, why: str) -> None:
        self._close_pipes()
        now = monotonic()
        self._stuck_since = self._stuck_since or now
        if now - self._stuck_since > BUSY_PATIENCE_S:
            self._unstarted(Broken(Outcome.FAILED, f"no process could be started for {BUSY_PATIENCE_S:g} s: {why}"))
            return
        self._try_at = now + self._pause_s
        self._pause_s = min(self._pause_s * 2, BUSY_PAUSE_MOST_S)

    def _spawn(self) -> Child | SpawnFailed | Denied:
        """Spawn it between two pipes. Raises SpawnBusy, OSError, EnvironmentFault; the pipes are `_close_pipes`'s."""
        command, err_fd = self._command, self._slot.err_fd
        theirs: list[int] = []
        try:
            stdin, self._stdin = os.pipe()
            theirs.append(stdin)
            self._stdout, stdout = os.pipe()
            theirs.append(stdout)
            os.set_blocking(self._stdin, False)
            os.set_blocking(self._stdout, False)
            self._err_from = os.fstat(err_fd).st_size
            if command.spec is None:
                return self._sandbox.spawn(
                    command.argv,
                    command.env,
                    out_fd=stdout,
                    err_fd=err_fd,
                    attempt_id=command.env["DAGRUN_ATTEMPT_ID"],
                    cwd=command.cwd,
                    stdin=stdin,
                )
            spec = replace(command.spec, stdin=stdin, outputs=(err_fd,))
            made = hold(self._bench.back_ends(), self._sandbox, spec, stdout, err_fd)
            if isinstance(made, SpawnFailed | Denied):
                return made
            self._held = made.held
            self._refused = made.refused
            return made.child
        finally:
            for fd in theirs:
                os.close(fd)

    def _watch(self, child: Child) -> None:
        self._child = child
        for fd in (child.pidfd, self._stdout):
            self._register(fd, select.EPOLLIN)
        if self._refused:  # it never got to its command
            self._lose(self._refused)
        else:
            self._send(self._opening())

    def _register(self, fd: int, events: int) -> None:
        self._poll.register(fd, events)
        self.fds.add(fd)

    def _forget(self, fd: int) -> None:
        if fd in self.fds:
            self._poll.unregister(fd)
            self.fds.discard(fd)

    # ------------------------------------------------------------ talk

    def _send(self, data: bytes) -> None:
        """Write when there is room for it."""
        self._unsent += data
        self._flush()
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self._lose("it does not read what it is told")

    def _flush(self) -> None:
        if self._stdin < 0:
            self._unsent.clear()
            return
        try:
            while self._unsent:
                with memoryview(self._unsent) as view:
                    count = os.write(self._stdin, view[:_READ_BYTES])
                del self._unsent[:count]
        except BlockingIOError:
            if self._stdin not in self.fds:
                self._register(self._stdin, select.EPOLLOUT)
            return
        except OSError:  # nobody reads any more: its end tells why
            self._close_stdin()
            return
        # only while there is something to write: a reader that is gone would be reported for ever
        self._forget(self._stdin)

    def ready(self, fd: int) -> bool:
        """Do what a descriptor that is ready asks for; False if it is none of ours."""
        if fd not in self.fds:
            return False
        if fd == self._stdin:
            self._flush()
        elif fd == self._stdout:
            self._read()
        elif self._is_dead():
            self._reap()
        return True

    def _read(self) -> bool:
        """Read once; whether there was something."""
        try:
            data = os.read(self._stdout, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._forget(self._stdout)
            self._closed_at = monotonic() + CLOSED_GRACE_S
            return False
        if not self._why:
            self._lose(self._heard(data))
        return True

    def _lose(self, why: str) -> None:
        """End it, as it can't be used any more."""
        if why and not self._why:
            self._why = why
            self._close_stdin()
            self._kill_now()

    def _past_limit(self, *, failed: bool) -> Broken | None:
        """What ends the attempt, if something of it ran into a ceiling; `failed`: the last that was done."""
        after = self._bench.back_ends().passed(self._held, failed=failed) if self._held is not None else NOTHING_MORE
        return Broken(Outcome.OVER_LIMIT, after.error, after.limit) if after.limit else None

    # ------------------------------------------------------------ end

    def stop(self) -> None:
        """Begin to end it: no more input, SIGTERM to its tree. `kill` is for the caller, after its grace."""
        if self._stopping:
            return
        self._stopping = True
        self._try_at = None
        self._unsent.clear()
        self._close_stdin()
        child = self._child
        if child is not None and (self._held is None or self._bench.back_ends().terminate(self._held, child) < 0):
            self._sandbox.terminate(child)

    def kill(self) -> None:
        """SIGKILL to its tree, and again until it is gone."""
        self._stopping = True
        self._try_at = None
        self._close_stdin()
        self._kill_now()

    def _kill_now(self) -> None:
        child = self._child
        if child is None:
            return
        if self._held is None or self._bench.back_ends().kill(self._held, child) < 0:
            self._sandbox.kill_tree(child)
        self._kill_at = monotonic() + KILL_AGAIN_S

    def _is_dead(self) -> bool:
        """Whether it has ended: a descriptor that is ready may be an older one of the same number."""
        assert self._child is not None
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PIDFD, self._child.pidfd, options) is not None

    def _reap(self) -> None:
        """Its main process is gone: hear what it said last, end what it left, collect it."""
        child = self._child
        assert child is not None
        while self._stdout in self.fds and self._read():
            pass
        self._forget(child.pidfd)
        swept = self._sandbox.sweep(child)
        exit_ = self._sandbox.reap(child)
        self._child = None
        after = NOTHING_MORE
        if self._held is not None:
            after = self._bench.back_ends().ended(self._held, exit_)
            self._held = None
        if self._refused:
            after = replace(after, outcome="denied", error=self._refused)
            self._refused = ""
        self._close_pipes()
        self.swept += swept.names
        self.retire = self.retire or bool(swept.count or swept.alive or swept.unattributed)
        end = self._end_of(after.exit or exit_, after)
        self._account(end)
        self._why, self._kill_at = "", None
        self._ended(end)

    def _end_of(self, exit_: Exit, after: Aftermath) -> End:
        ours = bool(self._why) or self._stopping
        why = self._why or after.error or self._words(exit_)
        return End(exit_, after, ours, why)

    def _words(self, exit_: Exit) -> str:
        how = f"exit code {exit_.code}" if exit_.signal is None else f"killed by {signal_name(exit_.signal)}"
        size = os.fstat(self._slot.err_fd).st_size
        begin = max(self._err_from, size - _TAIL_BYTES)
        said = last_text_line(os.pread(self._slot.err_fd, _TAIL_BYTES, begin)) if size > begin else ""
        return f"{how}: {said}" if said else how

    def _account(self, end: End) -> None:
        """Add what is known of this process to what is known of those before."""
        self.notes += end.after.notes
        peaks = [after.peak_memory_bytes for after in (self.over, end.after) if after is not None]
        peak = max([p for p in peaks if p is not None], default=None)
        said = end.after if self.over is None or _says(end.after) or not _says(self.over) else self.over
        self.over = replace(said, peak_memory_bytes=peak)
        if self._command.spec is None or self._command.spec.level != "container":
            self.cpu_ms += end.exit.cpu_ms
            known = [p for p in (peak, self.max_rss_bytes, end.exit.max_rss_bytes) if p is not None]
            self.max_rss_bytes = max(known, default=None)
        else:
            self.max_rss_bytes = peak

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._forget(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _close_pipes(self) -> None:
        self._close_stdin()
        if self._stdout >= 0:
            self._forget(self._stdout)
            os.close(self._stdout)
            self._stdout = -1
        self._unsent.clear()
        self._closed_at = None

    # ------------------------------------------------------------ time

    def next_due(self) -> float | None:
        """When `due` has something to do (time.monotonic()), None for never."""
        own = [at for at in (self._kill_at, self._try_at, self._closed_due()) if at is not None]
        return min([*own, *self._deadlines()], default=None)

    def due(self, now: float) -> None:
        """Do what is due: kill again, try again, end what takes too long."""
        if self._try_at is not None and self._try_at <= now:
            self._try_at = None
            self._try_start()
        closed = self._closed_due()
        if closed is not None and closed <= now:
            self._lose("it closed its output")
        if self._kill_at is not None and self._kill_at <= now:
            self._kill_now()
        self._expire(now)

    def _closed_due(self) -> float | None:
        return self._closed_at if self._child is not None and not self._why else None


def _says(after: Aftermath) -> bool:
    return bool(after.limit or after.outcome or after.error)

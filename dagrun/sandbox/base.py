"""What every back end offers: spawn a command, signal its tree, collect its end, leave nothing alive.

Knows no workflow, journal or clock of the engine: deadlines belong to the caller. A node is its
process group, its session and everything that descends from it. Invariants: one `spawn` that
gave a Child is followed by exactly one `sweep` and one `reap`, in this order, after its pidfd
became readable; a signal never reaches a process that this run did not start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Child:
    """A running command: `pidfd` becomes readable when its main process ends.

    `attempt_id` is the cookie that its tree carries as DAGRUN_ATTEMPT_ID. `start_ticks` (clock
    ticks since boot, taken just before the start) and `pid` are its identity on this boot.
    `started` is time.monotonic().
    """

    __slots__ = ("attempt_id", "pid", "pidfd", "start_ticks", "started")

    def __init__(self, pid: int, pidfd: int, attempt_id: str, start_ticks: int, started: float) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.attempt_id = attempt_id
        self.start_ticks = start_ticks
        self.started = started

    def fileno(self) -> int:
        """The pidfd, so that a selector takes a Child as it is."""
        return self.pidfd

    def __repr__(self) -> str:
        return f"Child({self.pid}, {self.attempt_id!r})"


class Exit(NamedTuple):
    """How a main process ended: exactly one of `code` and `signal` is set.

    `max_rss_bytes` is None where it can't be told from dagrun's own peak. `cpu_ms` is user and
    system time of the process and of the descendants that it waited for.
    """

    code: int | None
    signal: int | None
    max_rss_bytes: int | None
    cpu_ms: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The command could not be started, and trying again would not help: a result, no exception."""

    errno: int
    message: str


class SpawnBusy(Exception):
    """The machine has no process, memory or descriptor left right now: wait and try again.

    Nothing was started and nothing was leaked. `errno` is EAGAIN, ENOMEM, EMFILE or ENFILE.
    """

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno
        self.message = message


@dataclass(frozen=True, slots=True)
class Swept:
    """What a node left behind: names of the processes that were killed, and how many are still dying.

    `alive` counts processes that did not go within the bounded wait (a dead disk): they are
    killed again by later sweeps. `unattributed` counts strays whose node can't be told yet: they
    wait until every node that ran when they were first seen has ended.
    """

    names: tuple[str, ...] = ()
    alive: int = 0
    unattributed: int = 0

    @property
    def count(self) -> int:
        """How many processes were killed."""
        return len(self.names)


NOTHING = Swept()


class Sandbox(Protocol):
    """A back end. One object serves one engine process; all calls come from its main thread."""

    def spawn(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        *,
        out_fd: int,
        err_fd: int,
        attempt_id: str,
        cwd: str = "",
        script: str = "",
    ) -> Child | SpawnFailed:
        """Start `argv` with exactly `env`, stdout and stderr to the fds and stdin empty.

        `cwd` "" is the directory of the engine. `script`: see plain.Plain.spawn.
        Raises SpawnBusy when the machine is short of something.
        """
        ...

    def terminate(self, child: Child) -> int:
        """SIGTERM to the whole tree, stopped processes woken; how many processes were there. Never blocks."""
        ...

    def kill_tree(self, child: Child) -> int:
        """SIGKILL to the whole tree; how many were alive: call again (a timer) until `pidfd` is readable."""
        ...

    def sweep(self, child: Child) -> Swept:
        """End what the main process left behind; call when `pidfd` is readable, before `reap`."""
        ...

    def reap(self, child: Child) -> Exit:
        """Collect the end and close `pidfd`: take it out of any selector first."""
        ...

    def tidy(self) -> None:
        """Take in orphans of running nodes and reap the dead ones; call once a second while anything runs."""
        ...

    def end_all(self) -> Swept:
        """SIGKILL everything that this back end started, children included, until none is left."""
        ...

    def close(self) -> None:
        """Give back the descriptors. Nothing may be running."""
        ...

"""The tree of a node: who belongs to it, how it is signalled, what is left when its main process ends.

As subreaper, dagrun inherits every orphan of its nodes at once, so whatever a dead node left is a
direct child here: one read of our own children tells whether there is anything. A stray belongs to
the node whose tree it was last seen in, else whose session it is in, else whose cookie it carries;
a daemon that shook off all three waits until every node that ran when it was first seen has ended.
"""

from __future__ import annotations

import os
import select
import signal
import time

from dagrun.sandbox import procs
from dagrun.sandbox.base import NOTHING, Child, Swept

COOKIE = b"DAGRUN_ATTEMPT_ID"
_KILL_WAIT_S = 2.0
_END_WAIT_S = 10.0
# The tail of a pipeline (`cmd > >(tee log)`) ends by itself right after its shell: let it.
_COURTESY_MS = 10


class Stray:
    """A direct child that no spawn made. Not reaped by anyone but us, so its pid stays its own."""

    __slots__ = ("killed", "owner", "pid", "seen_with")

    def __init__(self, pid: int, owner: str | None, seen_with: frozenset[str]) -> None:
        self.pid = pid
        self.owner = owner
        self.seen_with = seen_with
        self.killed = False


class Strays:
    """The children that were spawned and the ones that came as orphans."""

    def __init__(self) -> None:
        self._running: dict[int, Child] = {}
        self._exempt: dict[int, int] = {}  # pid -> start ticks: the pid of a helper that is gone will be another's
        self._strays: dict[int, Stray] = {}
        self._seen_below: dict[tuple[int, int], str] = {}  # (pid, ticks) -> attempt, from walks of live trees
        self._listing = _own_children_file()

    def add(self, child: Child) -> None:
        """A spawn succeeded."""
        self._running[child.pid] = child

    def remove(self, child: Child) -> None:
        """A child was reaped."""
        self._running.pop(child.pid, None)
        if not self._running:
            self._seen_below.clear()

    def exempt(self, pid: int) -> None:
        """`pid` is a helper of dagrun."""
        who = procs.stat(pid)
        if who is not None:
            self._exempt[pid] = who.start_ticks

    def close(self) -> None:
        """Close the kept descriptor."""
        if self._listing >= 0:
            os.close(self._listing)
            self._listing = -1

    # ------------------------------------------------------------ sweep

    def sweep(self, child: Child) -> Swept:
        """Kill what belongs to `child`, which must be dead and not reaped, and to nodes that are gone."""
        pids = self._children()
        # Children stay listed until they are reaped, so a list no longer than ours holds no orphan.
        if len(pids) == len(self._running) or (self._exempt and self._all_known(pids)):
            return NOTHING
        names: list[str] = []
        end = time.monotonic() + _KILL_WAIT_S
        courtesy = _COURTESY_MS
        while True:
            self._look()
            due = [s for s in self._strays.values() if self._is_due(s, child)]
            if not due:
                waiting = sum(s.owner is None for s in self._strays.values())
                return Swept(tuple(names), 0, waiting) if names or waiting else NOTHING
            if courtesy:
                _wait([s.pid for s in due], courtesy)
                courtesy = 0
                continue
            if time.monotonic() > end:
                return Swept(tuple(names), len(due))
            for stray in due:
                names.extend(self._kill_stray(stray))
            _wait([s.pid for s in due], 200)

    def _is_due(self, stray: Stray, child: Child) -> bool:
        """Whether no node but `child` can still have a claim on this stray."""
        others = {c.attempt_id for c in self._running.values() if c is not child}
        if stray.owner is not None:
            return stray.owner not in others
        return not stray.seen_with & others

    def _kill_stray(self, stray: Stray) -> list[str]:
        """SIGKILL a stray and everything below it; the names of those that had not been signalled yet."""
        who = procs.stat(stray.pid)
        if stray.killed or procs.is_dead(who) or who is None:
            _kill_direct(stray.pid)
            return []
        stray.killed = True
        names = [who.name]
        below = procs.descendants(stray.pid)
        _kill_direct(stray.pid)
        for pid, kid in below.items():
            if stray.owner is not None:
                self._seen_below[pid, kid.start_ticks] = stray.owner
            if procs.send(pid, kid.start_ticks, signal.SIGKILL):
                names.append(kid.name)
        return names

    def tidy(self) -> None:
        """Know every orphan, with the nodes that run beside it, and keep no zombie; one read if there is none."""
        if len(self._children()) != len(self._running):
            self._look()

    # ------------------------------------------------------------ signals

    def signal_tree(self, child: Child, *numbers: int) -> int:
        """Send the signals to the group of `child`, its descendants and its orphans; how many are alive."""
        self._look()
        below = procs.descendants(child.pid)
        for stray in [s for s in self._strays.values() if s.owner == child.attempt_id]:
            who = procs.stat(stray.pid)
            if who is not None and not procs.is_dead(who):
                below[stray.pid] = who
                below.update(procs.descendants(stray.pid))
        main = procs.stat(child.pid)
        alive = len(below) + (not procs.is_dead(main))
        for pid, who in below.items():
            self._seen_below[pid, who.start_ticks] = child.attempt_id
        for number in numbers:
            _signal_group(child.pid, number)
            for pid, who in below.items():
                # The group got it already; twice could run a handler twice.
                if who.pgrp != child.pid:
                    procs.send(pid, who.start_ticks, number)
        return alive

    def end_all(self) -> Swept:
        """SIGKILL everything but the exempt until nothing is left; children stay for their reap."""
        names: list[str] = []
        end = time.monotonic() + _END_WAIT_S
        told: set[tuple[int, int]] = set()
        while True:
            self._look()
            alive: dict[int, procs.Stat] = {}
            for pid in [*self._running, *self._strays]:
                who = procs.stat(pid)
                if who is not None and not procs.is_dead(who):
                    alive[pid] = who
                alive.update(procs.descendants(pid))
            if not alive or time.monotonic() > end:
                return Swept(tuple(names), len(alive))
            for pid, who in alive.items():
                if (pid, who.start_ticks) not in told:
                    told.add((pid, who.start_ticks))
                    names.append(who.name)
                if pid in self._running or pid in self._strays:
                    _kill_direct(pid)
                else:
                    procs.send(pid, who.start_ticks, signal.SIGKILL)
            procs.wait_dead([(pid, who.start_ticks) for pid, who in alive.items()], 0.5)

    # ------------------------------------------------------------ who is there

    def _children(self) -> list[int]:
        """Our direct children, zombies included."""
        if self._listing < 0:
            return procs.children(os.getpid())
        data = os.pread(self._listing, 65536, 0)
        if len(data) > 65000:
            return procs.children(os.getpid())
        return [int(pid) for pid in data.split()]

    def _all_known(self, pids: list[int]) -> bool:
        return all(pid in self._running or self._is_exempt(pid) for pid in pids)

    def _is_exempt(self, pid: int) -> bool:
        """Whether this child is a helper still; forgets one that is gone."""
        if pid not in self._exempt:
            return False
        who = procs.stat(pid)
        if who is not None and who.start_ticks == self._exempt[pid]:
            return True
        del self._exempt[pid]
        return False

    def _look(self) -> None:
        """Take in new orphans, tell whose they are, and reap the dead ones."""
        running = frozenset(child.attempt_id for child in self._running.values())
        for pid in self._children():
            if pid in self._running or self._is_exempt(pid):
                continue
            who = procs.stat(pid)
            if who is None or procs.is_dead(who):
                _reap(pid)
                self._strays.pop(pid, None)
            elif pid not in self._strays:
                self._strays[pid] = Stray(pid, self._owner(pid, who), running)
        for pid in [p for p in self._strays if not os.path.exists(f"/proc/{p}")]:
            del self._strays[pid]

    def _owner(self, pid: int, who: procs.Stat) -> str | None:
        """The attempt that an orphan belongs to, if anything tells."""
        below = self._seen_below.get((pid, who.start_ticks))
        if below is not None:
            return below
        leader = self._running.get(who.session) or self._running.get(who.pgrp)
        if leader is not None:
            return leader.attempt_id
        cookie = procs.environ(pid).get(COOKIE)
        return None if cookie is None else cookie.decode("utf-8", "surrogateescape")


def _own_children_file() -> int:
    """The kernel's list of our children, kept open; -1 where it has none.

    Orphans go to the main thread of a subreaper, and only this thread may spawn.
    """
    try:
        return os.open(f"/proc/{os.getpid()}/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _signal_group(pgid: int, number: int) -> None:
    """Signal the group of a child that is not reaped: its id can't be another group's."""
    try:
        os.killpg(pgid, number)
    except OSError:
        pass


def _kill_direct(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _wait(pids: list[int], timeout_ms: float) -> None:
    """Wait until these children are dead, at most so long."""
    poll = select.poll()
    fds: set[int] = set()
    end = time.monotonic() + timeout_ms / 1000
    try:
        for pid in pids:
            fd = os.pidfd_open(pid)
            fds.add(fd)
            poll.register(fd, select.POLLIN)
        while fds and (left := end - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                os.close(fd)
                fds.discard(fd)
    except OSError:
        pass  # no descriptor left: the caller looks again
    finally:
        for fd in fds:
            os.close(fd)

"""Processes as Linux tells of them: parents, sessions, start times, cookies; signals that can't miss.

Knows no nodes. Identity of a process = pid + start ticks (+ boot id across reboots); a pidfd is
opened before the identity is checked and carries the signal, so that a reused pid is never hit.
A direct child that was not reaped needs none of this: its pid can't be reused.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


class Stat(NamedTuple):
    """The part of /proc/PID/stat that tells who a process is. `state` "Z" and "X" are dead."""

    name: str
    state: str
    ppid: int
    pgrp: int
    session: int
    start_ticks: int


def become_subreaper() -> bool:
    """Make orphans of our descendants our children; False where the system can't."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    return int(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0


def ensure_standard_fds() -> None:
    """Open /dev/null on 0, 1 and 2 where they are closed: else a log file would become stdout."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def keep_inherited_fds() -> None:
    """Keep what this process was started with (a job server's pipe, a lock) from those it starts.

    Python opens nothing that exec passes on, but a caller's descriptors come without that flag: a
    command that lives on would hold the caller's pipe open.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                pass  # the listing's own


def hide_memory() -> None:
    """Let no process of this user read this one's memory and environment, nor a core file hold them."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent(parent: int, number: int) -> None:
    """Get this signal when `parent`, which forked this process, is gone; at once if it is gone already."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def boot_id() -> str:
    """The id of this boot of this machine ("" where there is none)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().decode("ascii").strip()
    except OSError:
        return ""


def now_ticks() -> int:
    """Clock ticks since boot, the unit of a process's start time."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_S)


def stat(pid: int) -> Stat | None:
    """Who `pid` is right now; None when there is no such process."""
    data = _read(f"/proc/{pid}/stat")
    # The name is in parentheses and may hold anything, also ") R 1".
    head, _, rest = data.rpartition(b")")
    if not rest:
        return None
    part = rest.split()
    name = head.partition(b"(")[2].decode("utf-8", "replace")
    return Stat(name, part[0].decode(), int(part[1]), int(part[2]), int(part[3]), int(part[19]))


def is_dead(found: Stat | None) -> bool:
    """Whether a process is gone or only waits to be reaped."""
    return found is None or found.state in ("Z", "X")


def environ(pid: int) -> dict[bytes, bytes]:
    """The environment that `pid` was started with; empty when it can't be read."""
    pairs = (item.partition(b"=") for item in _read(f"/proc/{pid}/environ").split(b"\0") if item)
    return {name: value for name, _, value in pairs}


def children(pid: int) -> list[int]:
    """The direct children of `pid`, zombies included."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        for tid in threads:
            with open(f"/proc/{pid}/task/{tid}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
    except (FileNotFoundError, ProcessLookupError):
        if _alive(pid) and not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
            return [p for p in all_pids() if (s := stat(p)) is not None and s.ppid == pid]
    except OSError:
        pass
    return found


def descendants(pid: int) -> dict[int, Stat]:
    """Every living descendant of `pid` with its identity, parents before children."""
    found: dict[int, Stat] = {}
    queue = [pid]
    for parent in queue:
        for kid in children(parent):
            who = stat(kid)
            # A pid that was reused between the two looks has another parent.
            if kid not in found and who is not None and who.ppid in (parent, os.getpid()):
                found[kid] = who
                queue.append(kid)
    return {kid: who for kid, who in found.items() if not is_dead(who)}


def all_pids() -> list[int]:
    """Every process of this machine that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def open_exactly(pid: int, start_ticks: int) -> int | None:
    """A pidfd of the process that has this pid *and* this start time; None when it is gone.

    Raises OSError (EMFILE …) when there is no descriptor left.
    """
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):
        return None
    who = stat(pid)
    if who is None or who.start_ticks != start_ticks:
        os.close(fd)
        return None
    return fd


def send(pid: int, start_ticks: int, number: int) -> bool:
    """Signal the process with this identity; False when it is gone or not ours to signal."""
    try:
        fd = open_exactly(pid, start_ticks)
    except OSError:
        return False
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def wait_dead(pids: list[tuple[int, int]], timeout_s: float) -> list[int]:
    """Wait until the processes (pid, start ticks) are dead or zombies; the pids that are still alive."""
    fds: dict[int, int] = {}
    poll = select.poll()
    end = time.monotonic() + timeout_s
    try:
        for pid, ticks in pids:
            try:
                fd = open_exactly(pid, ticks)
            except OSError:
                break  # out of descriptors: wait for those that we have, the caller looks again
            if fd is not None:
                fds[fd] = pid
                poll.register(fd, select.POLLIN)
        while fds and (left := end - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000 + 1):
                poll.unregister(fd)
                os.close(fd)
                del fds[fd]
        return list(fds.values())
    finally:
        for fd in fds:
            os.close(fd)


def reap_zombies(keep: frozenset[int] | set[int] = frozenset()) -> None:
    """Collect every dead child of ours but those in `keep`."""
    for pid in children(os.getpid()):
        if pid not in keep:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def kill_everything(timeout_s: float = 10.0) -> list[str]:
    """SIGKILL every descendant of this process, again and again, until none is left; names of survivors.

    Works from any state of the engine and of the watchdog: it needs nothing but /proc. As we are
    subreaper, each round turns the children of the dead into our own.
    """
    end = time.monotonic() + timeout_s
    me = os.getpid()
    while True:
        reap_zombies()
        alive = descendants(me)
        if not alive or time.monotonic() > end:
            return [who.name for who in alive.values()]
        for pid, who in alive.items():
            if who.ppid == me:
                _kill_child(pid)
            else:
                send(pid, who.start_ticks, signal.SIGKILL)
        wait_dead([(pid, who.start_ticks) for pid, who in alive.items()], min(0.5, max(0.0, end - time.monotonic())))


def _kill_child(pid: int) -> None:
    """SIGKILL a direct child that is not reaped: needs no descriptor, so it works at the limit of them."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def _alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _read(path: str) -> bytes:
    """The bytes of a /proc file; empty when the process is gone or closed to us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = os.read(fd, 65536)
        if len(data) < 65536 and not path.endswith("environ"):
            return data
        parts = [data]
        while parts[-1]:
            parts.append(os.read(fd, 65536))
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)

"""A mark that a process and all that it ever starts carry, and can't take off; and the filter that sees to it.

The mark is a resource limit that binds only real-time processes, so none of a node's: it goes to
every descendant, through any fork, exec, new session or clean environment. So a tree can be found and
ended where there is no namespace around it. Knows no nodes: a mark is a number.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import select
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from dagrun.sandbox import procs

_RLIMIT_RTTIME = 15  # the module resource has no name for it
_MARK_BITS = 48
_PAUSE_MS = 50

# (x86_64, aarch64)
_PRLIMIT, _SETRLIMIT = (302, 261), (160, 164)
# call → the first argument that means "by process"; the second one is whom
_OF_A_KIND = {(141, 140): 0, (251, 30): 1}  # setpriority, ioprio_set
# sched_setscheduler, sched_setparam, sched_setattr, migrate_pages, move_pages: the first argument is whom
_OF_A_PID = ((144, 119), (142, 118), (314, 274), (256, 238), (279, 239))
_COLUMNS = {"x86_64": 0, "aarch64": 1}

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


def new_mark() -> int:
    """A number that no other tree on this machine carries."""
    return int.from_bytes(os.urandom(_MARK_BITS // 8), "big")


def can_mark() -> bool:
    """Whether this process may set the mark at all (its own limit is high enough)."""
    _, hard = resource.getrlimit(_RLIMIT_RTTIME)
    return hard == resource.RLIM_INFINITY or hard > 2 << _MARK_BITS


@contextmanager
def marked(mark: int) -> Iterator[None]:
    """What is started meanwhile carries `mark`, where can_mark; so does this process for a moment, to no effect."""
    if not can_mark():
        yield
        return
    soft, hard = resource.getrlimit(_RLIMIT_RTTIME)
    resource.setrlimit(_RLIMIT_RTTIME, (_value(mark), hard))
    try:
        yield
    finally:
        resource.setrlimit(_RLIMIT_RTTIME, (soft, hard))


def has_mark(pid: int, mark: int) -> bool:
    """Whether a process carries it; False when it is gone or not ours to ask."""
    try:
        return resource.prlimit(pid, _RLIMIT_RTTIME)[0] == _value(mark)
    except OSError:
        return False


def end_marked(mark: int, timeout_s: float = 2.0) -> int:
    """SIGKILL every orphan of ours with this mark until none is left or the time is up; how many there were.

    Call it when the tree's first process is reaped: as subreaper this process is then the parent of
    all that is left, once what stands between them is killed too.
    """
    end = monotonic() + timeout_s
    killed: set[int] = set()
    while True:
        found = [pid for pid in procs.children(os.getpid()) if has_mark(pid, mark)]
        alive = [pid for pid in found if not procs.is_dead(procs.stat(pid))]
        for pid in alive:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        _wait(alive)
        for pid in found:
            _reap(pid)
        if not found or monotonic() > end:
            return len(killed)


def _wait(pids: list[int]) -> None:
    """Until one of these children is dead, a moment at most."""
    poll = select.poll()
    fds: list[int] = []
    try:
        for pid in pids:
            fds.append(os.pidfd_open(pid))
            poll.register(fds[-1], select.POLLIN)
    except OSError:
        pass  # no descriptor left: those that there are will do
    if pids:
        poll.poll(_PAUSE_MS)
    for fd in fds:
        os.close(fd)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _value(mark: int) -> int:
    """Far above any real limit (years in microseconds), so that it would never end anything."""
    return 1 << _MARK_BITS | mark


# ---------------------------------------------------------------- the filter


@functools.cache
def others_filter() -> bytes:
    """A system call filter, to go with seccomp.filter_bytes: no process changes limits or priorities of another.

    One of the same user could else end dagrun by a limit on processor time. It keeps the mark in
    place. Processor affinity stays open: threads set each other's.
    """
    column = _COLUMNS[os.uname().machine]
    code = [_op(_LOAD, 0)]
    refuse, allow = _op(_RETURN, _REFUSE), _op(_RETURN, _ALLOW)
    # Only a new limit matters: a null pointer asks. Then only one's own, and never the mark.
    asks = [_low(2), _op(_EQUAL, 0, 0, 3), _high(2), _op(_EQUAL, 0, 0, 1), allow]
    own = [_low(0), _op(_EQUAL, 0, 0, 2), _low(1), _op(_EQUAL, _RLIMIT_RTTIME, 0, 1), refuse]
    code += _block(_PRLIMIT[column], [*asks, *own])
    code += _block(_SETRLIMIT[column], [_low(0), _op(_EQUAL, _RLIMIT_RTTIME, 0, 1), refuse])
    for numbers, process in _OF_A_KIND.items():
        code += _block(numbers[column], [_low(0), _op(_EQUAL, process, 0, 2), _low(1), _op(_EQUAL, 0, 1, 0), refuse])
    for numbers in _OF_A_PID:
        code += _block(numbers[column], [_low(0), _op(_EQUAL, 0, 1, 0), refuse])
    return b"".join([*code, allow])


def _block(number: int, body: list[bytes]) -> list[bytes]:
    """`body` for the call of this number; what gets to its end is allowed."""
    return [_op(_EQUAL, number, 0, len(body) + 1), *body, _op(_RETURN, _ALLOW)]


def _low(argument: int) -> bytes:
    return _op(_LOAD, 16 + 8 * argument)


def _high(argument: int) -> bytes:
    return _op(_LOAD, 20 + 8 * argument)


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)

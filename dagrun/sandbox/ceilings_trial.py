"""Trying ceilings out: a shell that runs into one, or gets through; and how a shell takes them on.

Knows no groups and no attempts: text for `sh`, and what `sh` said.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from shlex import quote

from dagrun.sandbox.wall import Bounds, Guarantee

SHELL = "/bin/sh"
CANARY_MEMORY = Bounds(memory_bytes=3 << 20)
ESCAPED = b"escaped"
# Nothing but the shell: no program that may be missing, no pipe that a dying process may wait at.
MEMORY_CANARY = "a=xxxxxxxx; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do a=$a$a; done; echo escaped"
PIDS_CANARY = "(exit 0) 2>/dev/null && echo escaped"
_BLOCK_BYTES = 512  # the unit of `ulimit -f`
_DEADLINE_S = 5.0


class Tried(Mapping[Guarantee, str]):
    """What each trial said; made when it is first asked for, and once."""

    def __init__(self, trials: Mapping[Guarantee, Callable[[], str]]) -> None:
        self._trials = trials
        self._said: dict[Guarantee, str] = {}

    def __getitem__(self, guarantee: Guarantee) -> str:
        if guarantee not in self._said:
            self._said[guarantee] = self._trials[guarantee]()
        return self._said[guarantee]

    def __iter__(self) -> Iterator[Guarantee]:
        return iter(self._trials)

    def __len__(self) -> int:
        return len(self._trials)


def entering(doors: tuple[str, ...]) -> str:
    """What a shell does to get into control groups by their doors."""
    return " && ".join([f"echo 0 >{quote(door)}" for door in doors])


def file_limit(size_bytes: int) -> str:
    """What a shell does to bound the size of its files, hard and soft; never less than what was written."""
    return f"ulimit -f {-(-size_bytes // _BLOCK_BYTES)}"


def try_file_size() -> str:
    """A shell that may write 512 bytes can't write 1024 into a file."""
    fd = os.memfd_create("dagrun-canary", os.MFD_CLOEXEC)
    try:
        output_of(f"{file_limit(_BLOCK_BYTES)} && printf %{2 * _BLOCK_BYTES}s x", fd)
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    return "" if 0 < size <= _BLOCK_BYTES else "RLIMIT_FSIZE did not hold a real file here"


def output_of(text: str, out_fd: int = -1) -> bytes:
    """What a shell says to `text`; killed with all that it started after some seconds."""
    read, write = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            SHELL,
            ("sh", "-c", text),
            {"PATH": os.defpath},
            setsid=True,
            setsigdef=(signal.SIGXFSZ, signal.SIGPIPE),
            file_actions=(
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, write if out_fd < 0 else out_fd, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ),
        )
    except OSError:
        return b""
    finally:
        os.close(write)
        os.close(null)
    try:
        return _drain(read, pid)
    finally:
        os.close(read)


def _drain(fd: int, pid: int) -> bytes:
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], _DEADLINE_S)[0]:
            os.killpg(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
    os.waitpid(pid, 0)
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""

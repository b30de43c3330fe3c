"""How much of what a running attempt wrote may be shown: its engine publishes it, readers ask.

The logs of an attempt with secrets are masked in place while it runs, always a little behind what it
writes. For each stream there is an offset: what is before it is masked. With it comes a checksum of
the last bytes before it, since a command may cut its log (`> /dev/stdout`) and write it anew: what
does not fit is not shown. One file for each slot of logs (sandbox/logpool.py), with the attempt that
has it now: `<node>.<attempt>`. Knows nothing of secrets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple
from zlib import crc32

from dagrun.store.disk import write_atomic

CHECKED_BYTES = 4096


class Mark(NamedTuple):
    """What of one stream may be shown: `size` bytes, of which the last `checked` have this checksum."""

    size: int = 0
    checked: int = 0
    crc: int = 0


def mark(size: int, end: bytes) -> Mark:
    """The mark after `size` bytes that end with `end`."""
    end = end[-CHECKED_BYTES:]
    return Mark(size, len(end), crc32(end))


def is_other(fd: int, was: Mark) -> bool:
    """Whether a log does not have before a mark any more what it had there."""
    return mark(was.size, os.pread(fd, was.checked, was.size - was.checked)) != was


def publish(folder: str, slot: int, owner: str, marks: Mapping[Literal["out", "err"], Mark]) -> None:
    """Let readers see so much of each stream of `owner`, all or nothing. Raises OSError."""
    lines = [owner, *[f"{stream} {m.size} {m.checked} {m.crc}" for stream, m in marks.items()]]
    write_atomic(_path(folder, slot), "\n".join(lines).encode("ascii"))


def withdraw(folder: str, slot: int) -> None:
    """The attempt in this slot has ended, and its logs are masked as a whole."""
    try:
        os.unlink(_path(folder, slot))
    except FileNotFoundError:
        pass


def shown_bytes(folder: str, slot: int, owner: str, stream: str, fd: int) -> int | None:
    """How many bytes of the log `fd` may be shown as what `owner` wrote; None where nothing is published.

    Ask after reading: what was read before that many bytes is masked, and is the owner's.
    """
    try:
        with open(_path(folder, slot), "rb", buffering=0) as file:
            now, *lines = file.read().decode("ascii").splitlines()
    except FileNotFoundError:
        return None
    for line in lines if now == owner else ():
        name, *numbers = line.split()
        if name == stream:
            found = Mark(*map(int, numbers))
            return 0 if is_other(fd, found) else found.size
    return 0


def _path(folder: str, slot: int) -> str:
    return f"{folder}/.shown-{slot}"

"""Hiding secrets in the logs of attempts: as a whole when one has ended, piece by piece while it runs.

In place, so that the command goes on writing behind and every offset stays. While it runs the end of
what it wrote is held back as far as it may be the beginning of a secret; what is masked is published
for readers in other processes (store/shown.py). stdout that is an output of its node is data: it is
neither changed nor shown before the end.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EACCES
from time import monotonic

from dagrun.core.mask import Masker
from dagrun.core.workflow import Node
from dagrun.sandbox.logpool import STREAMS, Slot, Stream
from dagrun.store import shown

PIECE = 128 * 1024
_WHOLE_PIECE = 1 << 20
_PATIENCE = 100
AT_ONCE_S = 0.1  # how long the engine masks before it does something else


class LiveMask:
    """The logs of one running attempt that got secrets. Raises OSError as the system gives it."""

    __slots__ = ("_fds", "_folder", "_marks", "_mask", "_owner", "_slot")

    def __init__(self, mask: Masker, folder: str, node: Node, attempt: int, slot: Slot) -> None:
        self._mask = mask
        self._folder = folder
        self._owner = f"{node.id}.{attempt}"
        self._slot = slot.index
        self._fds: dict[Stream, int] = {"err": slot.err_fd}
        if not any(output.source in ("stdout", "json") for output in node.outputs.values()):
            self._fds["out"] = slot.out_fd
        self._marks = {stream: shown.Mark() for stream in STREAMS}
        self._publish()

    def step(self) -> bool:
        """Mask the next piece of each stream, and publish it; whether there is more to do."""
        before = dict(self._marks)
        more = [self._advance(stream, fd) for stream, fd in self._fds.items()]
        if self._marks != before:
            self._publish()
        return any(more)

    def end(self) -> None:
        """The logs were masked as a whole."""
        shown.withdraw(self._folder, self._slot)

    def _publish(self) -> None:
        shown.publish(self._folder, self._slot, self._owner, self._marks)

    def _advance(self, stream: Stream, fd: int) -> bool:
        """Mask what can be masked of the next piece; whether another piece follows it."""
        mask, done = self._mask, self._marks[stream].size
        if shown.is_other(fd, self._marks[stream]):  # the command cut its log, and may have written anew
            self._marks[stream] = shown.Mark()
            self._publish()
            done = 0
        start = max(0, done - mask.longest)
        data = os.pread(fd, done - start + max(PIECE, 4 * mask.longest), start)
        if start + len(data) <= done:
            return False
        clean, settled = mask.settled(data)
        end = max(done - start, settled)
        _overwrite(fd, start, data[:end], clean[:end])
        self._marks[stream] = shown.mark(start + end, clean[:end])
        return start + end > done and start + len(data) < os.fstat(fd).st_size


def mask_in_turn(running: list[LiveMask]) -> None:
    """Mask what these attempts wrote, a piece of each in turn, for about AT_ONCE_S. Raises OSError."""
    until = monotonic() + AT_ONCE_S
    while running and monotonic() < until:
        running = [one for one in running if one.step()]


def mask_file(mask: Masker, fd: int) -> None:
    """Overwrite secrets in a file in place, keeping every offset: stars of the same length.

    What a piece ends with may go on behind it, so it is judged with the next one.
    """
    size = os.fstat(fd).st_size if mask else 0
    step, done = max(_WHOLE_PIECE, 4 * mask.longest), 0
    while done < size:
        start = max(0, done - mask.longest)
        data = os.pread(fd, done - start + step, start)
        clean, settled = mask.settled(data)
        last = start + len(data) >= size or start + settled <= done
        end = len(data) if last else settled
        _overwrite(fd, start, data[:end], clean[:end])
        if not data:
            return
        done = start + end


def _overwrite(fd: int, offset: int, data: bytes, clean: bytes) -> None:
    if clean == data:
        return
    # a descriptor opened with O_APPEND appends even on pwrite, so the file is opened again
    again = _opened_again(fd)
    try:
        os.pwrite(again, clean, offset)
    finally:
        os.close(again)


def _opened_again(fd: int) -> int:
    """The file of `fd`, open for writing, though its command keeps closing it to everybody."""
    for _ in range(_PATIENCE):
        os.fchmod(fd, 0o600)
        with suppress(PermissionError):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    raise PermissionError(EACCES, "its command does not let its log be opened")

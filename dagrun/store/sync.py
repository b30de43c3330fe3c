"""Around the journal: its sync beside the engine, and the kernel's notice that it grew.

Both are optional: without the first call `Journal.sync`, without a notice look at the size of
the file (fstat), which stays the truth in any case.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from dagrun.errors import JournalError

if TYPE_CHECKING:
    import ctypes

    from dagrun.store.aio import Flush
    from dagrun.store.journal import Journal

GATHER_S = 0.03  # well under the 50 ms that a power loss may cost, so that the sync itself fits in


class Syncer:
    """Syncs a journal beside its writer, at most GATHER_S after the first `poke` since the last sync.

    `later` is asked for a call of `look` in so many seconds. What goes wrong meanwhile is raised by
    the next `poke` or by `close`, and is final.
    """

    __slots__ = ("_dirty", "_error", "_flush", "_journal", "_later", "_looking", "_seq")

    def __init__(self, journal: Journal, later: Callable[[float], None]) -> None:
        from dagrun.store.aio import Flush

        self._journal = journal
        self._later = later
        self._flush: Flush | None = Flush.make()
        self._seq = 0  # what the sync that goes on will have made safe
        self._dirty = False
        self._looking = False
        self._error: JournalError | None = None

    def poke(self) -> None:
        """Say that something was appended. Raises JournalError if a sync has failed."""
        if self._error is not None:
            raise self._error
        self._dirty = True
        if not self._looking:
            self._looking = True
            self._later(GATHER_S)

    def look(self) -> None:
        """End a sync that is done, and begin one if something was appended since."""
        try:
            self._step()
        except JournalError as error:
            self._error = error
        self._looking = self._error is None and (self._dirty or self._busy)
        if self._looking:
            self._later(GATHER_S)

    def close(self) -> None:
        """Sync what is left. Raises JournalError if any sync failed."""
        try:
            if self._flush is not None and self._flush.busy:
                self._journal.synced(self._seq, self._flush.wait())
            if self._dirty and self._error is None:
                self._dirty = False
                self._journal.sync()
        except JournalError as error:
            self._error = self._error or error
        if self._error is not None:
            raise self._error

    @property
    def _busy(self) -> bool:
        return self._flush is not None and self._flush.busy

    def _step(self) -> None:
        flush = self._flush
        if flush is not None and flush.busy:
            code = flush.result()
            if code is None:
                return
            self._journal.synced(self._seq, code)
        if not self._dirty:
            return
        self._dirty = False  # an append during the sync is dirty again, and synced once more
        self._seq = self._journal.syncing()
        if flush is None or not flush.start(self._journal.fd):
            self._journal.sync()


_IN_MODIFY = 0x2
_IN_DELETE_SELF = 0x400
_IN_MOVE_SELF = 0x800
_EVENT = struct.Struct("iIII")


class Notice:
    """The kernel says when a file grows (inotify). One's own writes are noticed too."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def watch(cls, path: str) -> Notice | None:
        """A notice for the file `path`; None where inotify is missing or used up: poll with fstat."""
        libc = _libc()
        if libc is None:
            return None
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            return None
        if libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY | _IN_DELETE_SELF | _IN_MOVE_SELF) < 0:
            os.close(fd)
            return None
        return cls(fd)

    def fileno(self) -> int:
        """For a selector: readable once the file has changed since the last `drain`."""
        return self._fd

    def drain(self) -> bool:
        """Forget what was noticed; whether there was anything. Never blocks."""
        seen = False
        while True:
            try:
                got = os.read(self._fd, 4096)
            except BlockingIOError:
                return seen
            seen = True
            if len(got) < 4096 - _EVENT.size - 256:
                return True

    def close(self) -> None:
        """Stop watching; closing twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _libc() -> ctypes.CDLL | None:
    """The C library, if it has inotify."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.inotify_init1  # noqa: B018  (raises AttributeError where there is none)
    except (ImportError, OSError, AttributeError):
        return None
    return libc

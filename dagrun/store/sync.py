"""Around the journal: the thread that syncs it, and the kernel's notice that it grew.

Both are optional: without the thread call `Journal.sync`, without a notice look at the size of
the file (fstat), which stays the truth in any case.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes
    import threading

    from dagrun.errors import DagrunError
    from dagrun.store.journal import Journal

GATHER_S = 0.03  # well under the 50 ms that a power loss may cost, so that the sync itself fits in


class Syncer:
    """Syncs a journal from a thread, at most GATHER_S after the first `poke` since the last sync.

    The thread starts with the first poke. What goes wrong in it is raised by the next `poke` or
    by `close`, and is final.
    """

    __slots__ = ("_closing", "_dirty", "_error", "_journal", "_thread", "_wake")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._dirty = False
        self._error: DagrunError | None = None
        self._thread: threading.Thread | None = None
        self._wake: threading.Event
        self._closing: threading.Event

    def poke(self) -> None:
        """Say that something was appended. Raises JournalError if a sync has failed."""
        if self._dirty:
            return
        if self._error is not None:
            raise self._error
        self._dirty = True
        if self._thread is None and not self._start():
            self._sync()
            return
        self._wake.set()

    def close(self) -> None:
        """Sync what is left and end the thread. Raises JournalError if any sync failed."""
        if self._thread is not None:
            self._closing.set()
            self._wake.set()
            self._thread.join()
            self._thread = None
        if self._dirty and self._error is None:
            self._sync()
        if self._error is not None:
            raise self._error

    def _start(self) -> bool:
        """Start the thread; False when the machine has none left: then every poke syncs by itself."""
        import threading

        self._wake = threading.Event()
        self._closing = threading.Event()
        thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        while self._error is None:
            self._wake.wait()
            # before the look at `_closing`: a close that comes after that look wakes us again
            self._wake.clear()
            if self._closing.wait(GATHER_S):
                return
            self._sync()

    def _sync(self) -> None:
        from dagrun.errors import DagrunError

        # Cleared before the sync: an append during it is dirty again, and synced once more.
        self._dirty = False
        try:
            self._journal.sync()
        except DagrunError as error:
            self._error = error
            self._dirty = False  # so that the next poke looks at the error


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

"""Log files of attempts: opened once, used by many, named only when something was written.

Most commands are silent, so their two files are never created, renamed or listed: a slot is a pair
of open files that goes from attempt to attempt as long as it stays empty. Knows a folder, node ids
and attempt numbers; nothing of runs. Layout: `.slot-<k>.out/.err` while in use, then
`<node>.<attempt>.out/.err`, none for silence. Invariant: bytes are never lost or mixed up: a slot
with content is renamed before it could be used again, and no name is ever overwritten.

Release a slot *before* the end of its attempt is journaled: then a slot file left by a crash always
belongs to an attempt that the journal shows as open, and `recover` can name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal, TypeAlias

Stream: TypeAlias = Literal["out", "err"]
STREAMS: tuple[Stream, Stream] = ("out", "err")
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Slot:
    """Two open files for one attempt at a time: give `out_fd` and `err_fd` to a spawn."""

    __slots__ = ("err_fd", "index", "out_fd")

    def __init__(self, index: int) -> None:
        self.index = index
        self.out_fd = -1
        self.err_fd = -1


class LogPool:
    """The log files in the folder `path`, which must exist. Raises OSError as the system gives it."""

    def __init__(self, path: str) -> None:
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._free: list[Slot] = []
        self._used: dict[int, Slot] = {}
        self._made = 0

    def acquire(self) -> Slot:
        """A slot with two open, empty files. On OSError (EMFILE, ENOSPC …) nothing is taken or leaked."""
        slot = self._free.pop() if self._free else self._new()
        if slot.out_fd < 0 or slot.err_fd < 0:
            try:
                self._open(slot)
            except OSError:
                self._free.append(slot)
                raise
        self._used[slot.index] = slot
        return slot

    def release(self, slot: Slot, node_id: str, attempt: int, *, retire: bool = False) -> tuple[int, int]:
        """Give a slot back; bytes of stdout and stderr. What was written gets the attempt's name.

        `retire`: don't reuse the files even if they are empty, as something unknown may still hold
        them. Raises OSError when a file can't be renamed.
        """
        del self._used[slot.index]
        self._free.append(slot)
        out = os.fstat(slot.out_fd).st_size
        err = os.fstat(slot.err_fd).st_size
        if out or err or retire:
            try:
                self._settle(slot, "out", out, f"{node_id}.{attempt}.out", retire)
            finally:
                self._settle(slot, "err", err, f"{node_id}.{attempt}.err", retire)
        return out, err

    def written(self, slot: Slot) -> int:
        """Bytes that the attempt wrote so far to both files."""
        return os.fstat(slot.out_fd).st_size + os.fstat(slot.err_fd).st_size

    def take_back(self, slot: Slot, most: int) -> int:
        """Bytes that the attempt wrote; its files, with which it could do what it liked, are ours to read again.

        One that is mostly a hole is cut to `most` bytes: it would keep its readers busy for hours.
        """
        written = 0
        for fd in (slot.out_fd, slot.err_fd):
            found = os.fstat(fd)
            written += found.st_size
            if found.st_size:
                os.fchmod(fd, 0o600)
            if found.st_size > most and found.st_blocks * 512 < found.st_size // 2:
                os.ftruncate(fd, most)
        return written

    def tail(self, slot: Slot, n: int, stream: Stream = "out") -> bytes:
        """The last `n` bytes that the attempt wrote to one stream."""
        fd = slot.out_fd if stream == "out" else slot.err_fd
        size = os.fstat(fd).st_size
        return os.pread(fd, n, max(0, size - n))

    def close(self) -> None:
        """Close everything and remove the slot files that stayed empty; idempotent."""
        if self._folder < 0:
            return
        for slot in [*self._free, *self._used.values()]:
            for stream in STREAMS:
                fd = _fd(slot, stream)
                if fd >= 0:
                    if os.fstat(fd).st_size == 0:
                        self._unlink(_slot_name(slot.index, stream))
                    os.close(fd)
            slot.out_fd = slot.err_fd = -1
        self._free.clear()
        self._used.clear()
        os.close(self._folder)
        self._folder = -1

    # ------------------------------------------------------------ files

    def _new(self) -> Slot:
        self._made += 1
        return Slot(self._made - 1)

    def _open(self, slot: Slot) -> None:
        if slot.out_fd < 0:
            slot.out_fd = self._open_empty(_slot_name(slot.index, "out"))
        if slot.err_fd < 0:
            slot.err_fd = self._open_empty(_slot_name(slot.index, "err"))

    def _open_empty(self, name: str) -> int:
        fd = os.open(name, _FLAGS, 0o600, dir_fd=self._folder)
        try:
            if os.fstat(fd).st_size == 0:
                return fd
            # The bytes of a dead run that nobody named: out of the way, never appended to.
            os.rename(name, self._unused(name), src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
        return os.open(name, _FLAGS | os.O_EXCL, 0o600, dir_fd=self._folder)

    def _settle(self, slot: Slot, stream: Stream, size: int, name: str, retire: bool) -> None:
        """Name a file with content, and let the next `acquire` open a fresh one."""
        if not size and not retire:
            return
        fd = _fd(slot, stream)
        if stream == "out":
            slot.out_fd = -1
        else:
            slot.err_fd = -1
        try:
            if size:
                self._rename(_slot_name(slot.index, stream), name)
            else:
                self._unlink(_slot_name(slot.index, stream))
        except FileNotFoundError:
            # A node removed or moved the file; its bytes live as long as our descriptor.
            self._copy(fd, name)
        finally:
            os.close(fd)

    def _rename(self, old: str, new: str) -> None:
        if self._exists(new):
            new = self._unused(new)
        os.rename(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _copy(self, fd: int, name: str) -> None:
        target = os.open(name, _FLAGS | os.O_EXCL, 0o600, dir_fd=self._folder)
        try:
            offset = 0
            while data := os.pread(fd, 1 << 20, offset):
                view = memoryview(data)
                while view:
                    view = view[os.write(target, view) :]
                offset += len(data)
        finally:
            os.close(target)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:
            pass

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _unused(self, name: str) -> str:
        """A free name for bytes whose proper name is taken: `lost-1-NAME`, `lost-2-NAME` …"""
        number = 1
        while self._exists(f"lost-{number}-{name.lstrip('.')}"):
            number += 1
        return f"lost-{number}-{name.lstrip('.')}"


def recover(path: str, lost: Iterable[tuple[int, str, int]]) -> list[str]:
    """Name the slot files that a dead run left in the folder `path`; the names given.

    `lost` are (slot index, node id, attempt) of the attempts without an end, in the order in which
    they started. Of two that used one slot the later owns its files: the earlier's were named, or
    empty, when it was given on. What nobody owns is kept as `lost-<n>-…` if it holds anything.
    """
    pool = LogPool(path)
    named: list[str] = []
    try:
        claims = {index: f"{node_id}.{attempt}" for index, node_id, attempt in lost}
        for name in sorted(os.listdir(path)):
            stem, _, stream = name.rpartition(".")
            if not stem.startswith(".slot-") or stream not in STREAMS or not stem[6:].isdigit():
                continue
            if os.lstat(os.path.join(path, name)).st_size == 0:
                pool._unlink(name)
                continue
            owner = claims.get(int(stem[6:]))
            new = f"{owner}.{stream}" if owner is not None else pool._unused(name)
            pool._rename(name, new)
            named.append(new)
    finally:
        pool.close()
    return named


def _slot_name(index: int, stream: Stream) -> str:
    return f".slot-{index}.{stream}"


def _fd(slot: Slot, stream: Stream) -> int:
    return slot.out_fd if stream == "out" else slot.err_fd

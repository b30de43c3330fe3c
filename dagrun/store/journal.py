"""The journal: the only door to the durable list of what happened in a run.

One JSON line per commit, `<crc32, 8 hex digits> <json>\\n`, the CRC seeded with that of the line
before, so no line can be changed, moved or dropped unnoticed. json = {"seq": 1, 2, …; "t": wall
seconds; "m": monotonic seconds; "w": epoch of the writing engine; "e": [event, …]}: the events of
one commit share a line and so are all there or not at all.

Events are opaque JSON objects here, but for `format` in the very first one.

Invariants: a line is written only under flock, by a writer that has read every line before it;
a bad or unfinished *last* line is the rest of a write that never ended and is cut by the next
writer; a bad line before the last is corruption and refused. A sync that failed is never tried
again, since the kernel may have dropped the pages. Not for several threads at once; a signal
handler that raises must not run during `append`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from binascii import crc32
from contextlib import suppress
from json import JSONDecoder
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

from dagrun.errors import BugError, JournalError, RunLockedError
from dagrun.store.disk import DiskFull as DiskFull
from dagrun.store.disk import disk_fault, sync_folder, write_all
from dagrun.store.fault import ARMED, fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dagrun.core.names import Json

FORMAT = 1  # of the journal as a whole, in the first event of every run
LOCK_WAIT_S = 10.0

_TRY_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
_UNLOCK = fcntl.LOCK_UN
_flock = fcntl.flock
_fstat = os.fstat
_write = os.write
_flush = getattr(os, "fdatasync", os.fsync)
_decode = JSONDecoder().decode


class Record(NamedTuple):
    """One commit: its number from 1, wall and monotonic seconds, epoch, events, offset of its line."""

    seq: int
    t: float
    m: float
    epoch: int
    events: list[dict[str, Json]]
    offset: int


class CorruptJournalError(JournalError):
    """A line before the last is bad: at byte `offset`, where record `seq` should be.

    `records` are the good ones before it that had not been read yet.
    """

    code = "corrupt"

    def __init__(self, path: str, offset: int, seq: int, why: str, records: list[Record]) -> None:
        good = f"the records before it ({seq - 1}) are intact" if seq > 1 else "it is the very first record"
        super().__init__(
            f"{path} is corrupt at byte {offset}, record {seq}: {why}",
            hint=f"{good}; nothing was changed: copy the run's folder aside before you repair it",
        )
        self.offset = offset
        self.seq = seq
        self.records = records


def _no_news(_: list[Record]) -> bool:
    return True


class Journal:
    """An open journal and how far it has been read; whoever appends has folded all that is before.

    `offset`, `seq`, `epoch`: end, number and highest epoch of what was read or written;
    `synced_seq`: the last record known to survive a power loss (of those synced by this object);
    `torn_bytes`: how much of an unfinished last line this object has cut.
    """

    __slots__ = ("_broken", "_crc", "epoch", "fd", "offset", "path", "seq", "synced_seq", "torn_bytes")

    def __init__(self, path: str, fd: int, *, writable: bool) -> None:
        self.path = path
        self.fd = fd
        self.offset = 0
        self.seq = 0
        self.epoch = 0
        self.synced_seq = 0
        self.torn_bytes = 0
        self._crc = 0
        self._broken = "" if writable else f"{path} was opened for reading"

    @classmethod
    def create(cls, path: str) -> Journal:
        """A new, empty journal; its folder is synced. Raises JournalError, also if there is one already."""
        path = os.path.abspath(path)
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            sync_folder(os.path.dirname(path))
        except OSError as error:
            raise disk_fault("can't create", path, error) from error
        return cls(path, fd, writable=True)

    @classmethod
    def open(cls, path: str, *, write: bool) -> Journal:
        """An existing journal, read from its start. Raises JournalError when it can't be opened."""
        path = os.path.abspath(path)
        try:
            fd = os.open(path, (os.O_RDWR | os.O_APPEND if write else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise disk_fault("can't open", path, error) from error
        return cls(path, fd, writable=write)

    def fileno(self) -> int:
        """The descriptor, for a cheap look at the size: `os.fstat(j.fileno()).st_size != j.offset`."""
        return self.fd

    def close(self) -> None:
        """Let go of the file without a sync; closing twice does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._broken = f"{self.path} is closed"

    # ------------------------------------------------------------ reading

    def read(self) -> list[Record]:
        """All complete records since the last read or append; an unfinished last line is left alone.

        Raises CorruptJournalError for a bad line before the last, JournalError for a deleted, shortened
        or newer journal.
        """
        size = self._check(_fstat(self.fd))
        if size == self.offset:
            return []
        try:
            return self._take(size)
        except CorruptJournalError:
            # A writer may have cut a torn tail between two of our reads: look again while none can.
            self._lock()
            try:
                return self._take(self._check(_fstat(self.fd)))
            finally:
                _flock(self.fd, _UNLOCK)

    def _check(self, found: os.stat_result) -> int:
        """The size of the file, once it is clear that it is still ours."""
        if found.st_nlink == 0:
            raise JournalError(f"{self.path} was deleted or replaced while in use")
        if found.st_size < self.offset:
            raise JournalError(
                f"{self.path} was shortened while in use: {found.st_size} bytes, {self.offset} were read before"
            )
        return found.st_size

    def _take(self, size: int) -> list[Record]:
        """Read, verify and step over the complete records up to `size`."""
        start = self.offset
        chunks: list[bytes] = []
        at = start
        try:
            while at < size and (chunk := os.pread(self.fd, size - at, at)):
                chunks.append(chunk)
                at += len(chunk)
        except OSError as error:
            raise disk_fault("can't read", self.path, error) from error
        lines = b"".join(chunks).split(b"\n")
        rest = lines.pop()  # what follows the last newline: unfinished, or empty
        records: list[Record] = []
        offset, crc, seq = start, self._crc, self.seq
        for line in lines:
            body = line[9:]
            next_crc = crc32(body, crc)
            if line[:9] != b"%08x " % next_crc:
                if len(records) == len(lines) - 1 and not rest:
                    break
                raise CorruptJournalError(self.path, offset, seq + 1, "its checksum does not match", records)
            record = self._record(body, offset, seq + 1, records)
            records.append(record)
            crc, seq, offset = next_crc, record.seq, offset + len(line) + 1
            if record.epoch > self.epoch:
                self.epoch = record.epoch
        self.offset, self._crc, self.seq = offset, crc, seq
        return records

    def _record(self, body: bytes, offset: int, seq: int, before: list[Record]) -> Record:
        """The record of one line whose checksum is right."""
        try:
            data = _decode(body.decode())
            record = Record(data["seq"], data["t"], data["m"], data["w"], data["e"], offset)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptJournalError(self.path, offset, seq, "it is not a journal record", before) from error
        if record.seq != seq:
            raise CorruptJournalError(self.path, offset, seq, f"it says it is record {record.seq}", before)
        if seq == 1:
            self._check_format(record)
        return record

    def _check_format(self, first: Record) -> None:
        """Refuse a journal whose first event is of a newer format, or of none."""
        got = first.events[0].get("format") if first.events else None
        if not isinstance(got, int):
            raise JournalError(f"{self.path} is not a journal of dagrun: its first event has no format")
        if got > FORMAT:
            raise JournalError(
                f"{self.path} has journal format {got}; this dagrun reads up to format {FORMAT}",
                hint="a newer dagrun wrote it: pip install --upgrade dagrun",
            )

    # ------------------------------------------------------------ writing

    def append(
        self,
        events: Sequence[str],
        *,
        epoch: int | None = None,
        on_news: Callable[[list[Record]], bool] = _no_news,
    ) -> bool:
        """Commit `events` (each the JSON text of one object) as one record, after all that is there.

        If others have written since, `on_news` is called with their records, under the lock; when
        it says False nothing is written and the answer is False. `epoch` None (for who is not an
        engine) is the newest epoch in the file. Not synced: see `sync` and `Syncer`.

        Raises DiskFull or JournalError (nothing is written), RunLockedError when an engine of a
        newer epoch took over or when the lock stays busy for LOCK_WAIT_S.
        """
        news = self.begin()
        try:
            if news and not on_news(news):
                return False
            self.write(events, epoch)
        finally:
            self.end()
        return True

    def begin(self) -> list[Record]:
        """Take the lock and read what others appended since; nobody else appends until `end`.

        For who decides by what is in the journal: begin, fold the news, decide, `write`, `end`.
        Raises JournalError, or RunLockedError when the lock stays busy for LOCK_WAIT_S; the lock is
        free then.
        """
        if self._broken:
            raise JournalError(self._broken)
        fd = self.fd
        try:
            if ARMED:
                fault("journal.before_lock")
            _flock(fd, _TRY_LOCK)
        except OSError as error:
            self._lock_failed(error)
        try:
            found = _fstat(fd)
            if found.st_size != self.offset or found.st_nlink == 0:
                return self._catch_up(found)
        except BaseException:
            _flock(fd, _UNLOCK)
            raise
        return []

    def write(self, events: Sequence[str], epoch: int | None = None) -> None:
        """Commit `events` as one record; between `begin` and `end`. Errors as in `append`."""
        if epoch is None:
            epoch = self.epoch
        elif epoch < self.epoch:
            raise RunLockedError(f"another engine took this run over (epoch {self.epoch}; this one is {epoch})")
        self._put(self.fd, events, epoch)
        if ARMED:
            fault("journal.after_write")

    def end(self) -> None:
        """Let others append again."""
        _flock(self.fd, _UNLOCK)

    def _put(self, fd: int, events: Sequence[str], epoch: int) -> None:
        """Write one line at the end of the file, whole or not at all."""
        seq = self.seq + 1
        text = f'{{"seq":{seq},"t":{time():.6f},"m":{monotonic():.6f},"w":{epoch},"e":[{",".join(events)}]}}'
        if seq == 1 or "\n" in text:
            self._check_new(events)
        # A lone surrogate becomes the escape \udXXX, which is what JSON has for it.
        body = text.encode("utf-8", "backslashreplace")
        crc = crc32(body, self._crc)
        line = b"%08x %b\n" % (crc, body)
        try:
            done = _faulty_write(fd, line) if ARMED else _write(fd, line)
            if done != len(line):
                write_all(fd, line[done:])
        except OSError as error:
            # Should this fail too, the rest is a torn line, which the next writer cuts.
            with suppress(OSError):
                os.ftruncate(fd, self.offset)
            raise disk_fault("can't write", self.path, error) from error
        self.offset += len(line)
        self._crc = crc
        self.seq = seq
        self.epoch = epoch

    def _catch_up(self, found: os.stat_result) -> list[Record]:
        """Under the lock: read what others wrote, cut what a dead writer left."""
        size = self._check(found)
        records = self._take(size)
        if self.offset < size:
            try:
                os.ftruncate(self.fd, self.offset)
            except OSError as error:
                raise disk_fault("can't cut the unfinished last line of", self.path, error) from error
            self.torn_bytes += size - self.offset
        return records

    def _check_new(self, events: Sequence[str]) -> None:
        """What must hold for the first record, and for text that would break the line apart."""
        if any("\n" in e for e in events):
            raise BugError("an event for the journal holds a raw newline")
        if self.seq == 0:
            first = _decode(events[0]) if events else None
            if not isinstance(first, dict) or first.get("format") != FORMAT:
                raise BugError(f'the first event of a journal must have "format": {FORMAT}')

    # ------------------------------------------------------------ the lock

    def _lock(self) -> None:
        try:
            _flock(self.fd, _TRY_LOCK)
        except OSError as error:
            self._lock_failed(error)

    def _lock_failed(self, error: OSError) -> None:
        """Wait for the lock; raises RunLockedError, naming the holder, after LOCK_WAIT_S.

        By polling, because flock knows no deadline.
        """
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise disk_fault("can't lock", self.path, error) from error
        from time import sleep

        tries = 0
        deadline = monotonic() + LOCK_WAIT_S
        while monotonic() < deadline:
            # Every holder lets go after microseconds: first only give way, then sleep.
            sleep(0.0 if tries < 200 else 0.0002 if tries < 2000 else 0.005)
            tries += 1
            try:
                return _flock(self.fd, _TRY_LOCK)
            except BlockingIOError:
                continue
        raise self._busy()

    def _busy(self) -> RunLockedError:
        from dagrun.store.proc import describe, flock_holder, process_stat

        pid = flock_holder(self.fd)
        who = describe(pid) if pid else "another process"
        stat = process_stat(pid) if pid else None
        hint = f"let it go on with: kill -CONT {pid}" if stat and stat[0] == "T" else ""
        return RunLockedError(f"{self.path} has been locked by {who} for {LOCK_WAIT_S:.0f} s", hint=hint)

    # ------------------------------------------------------------ durability

    def sync(self) -> None:
        """Everything appended so far survives a power loss once this returns.

        Raises JournalError when the disk fails or the file was deleted or replaced. That is final:
        every later append and sync is refused.
        """
        seq = self.syncing()
        try:
            _flush(self.fd)
            if _FULLSYNC is not None:
                fcntl.fcntl(self.fd, _FULLSYNC)
        except OSError as error:
            raise self._unsynced(error) from error
        self.synced(seq)

    def syncing(self) -> int:
        """For who syncs the descriptor himself, before: the record up to which it counts. Errors as in `sync`."""
        if self._broken:
            raise JournalError(self._broken)
        try:
            if ARMED:
                fault("journal.before_sync")
        except OSError as error:
            raise self._unsynced(error) from error
        return self.seq

    def synced(self, seq: int, code: int = 0) -> None:
        """For who synced the descriptor himself, after, with the error's number. Errors as in `sync`."""
        try:
            if code:
                raise OSError(code, os.strerror(code))
            mine, there = _fstat(self.fd), os.stat(self.path)
            if (mine.st_ino, mine.st_dev) != (there.st_ino, there.st_dev):
                raise FileNotFoundError(errno.ENOENT, "deleted or replaced while in use")
        except OSError as error:
            raise self._unsynced(error) from error
        self.synced_seq = max(self.synced_seq, seq)
        if ARMED:
            fault("journal.after_sync")

    def _unsynced(self, error: OSError) -> JournalError:
        """A sync that failed is never tried again: the kernel may have dropped the pages."""
        failure = disk_fault("can't sync", self.path, error)
        self._broken = failure.message
        return failure


_FULLSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache


def _faulty_write(fd: int, line: bytes) -> int:
    """Write in two halves, so that a test can strike before, between and after."""
    fault("journal.before_write")
    half = len(line) // 2
    write_all(fd, line[:half])
    fault("journal.mid_write")
    write_all(fd, line[half:])
    return len(line)

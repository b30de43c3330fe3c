"""The sync beside the engine, and the kernel's notice."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.errors import JournalError
from dagrun.store.aio import Flush
from dagrun.store.journal import Journal
from dagrun.store.sync import GATHER_S, Notice, Syncer


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.create(str(tmp_path / "journal.jsonl"))
    made.append(['{"format":1}'], epoch=1)
    yield made
    made.close()


class Loop:
    """An engine's timers: what was asked for, due at once."""

    def __init__(self, journal: Journal) -> None:
        self.asked: list[float] = []
        self.syncer = Syncer(journal, self.asked.append)

    def turn(self) -> None:
        """What was asked for is due."""
        assert len(self.asked) == 1, "one look at a time"
        self.asked.clear()
        self.syncer.look()

    def settle(self) -> None:
        """Until no look is asked for: what is appended is safe then."""
        while self.asked:
            self.turn()


def test_close_syncs_what_was_poked(journal: Journal) -> None:
    loop = Loop(journal)
    for n in range(50):
        journal.append([f'{{"n":{n}}}'])
        loop.syncer.poke()
        if n % 7 == 0:
            loop.turn()  # some of them while a sync goes on
    loop.syncer.close()
    assert journal.synced_seq == journal.seq == 51
    loop.syncer.close()


def test_a_poke_is_synced_without_close(journal: Journal) -> None:
    loop = Loop(journal)
    for n in range(3):
        journal.append(['{"n":1}'])
        loop.syncer.poke()
        loop.syncer.poke()
        assert loop.asked == [GATHER_S]
        assert journal.synced_seq == (n + 1 if n else 0)
        loop.settle()
        assert journal.synced_seq == n + 2
    loop.syncer.close()


def test_what_is_appended_during_a_sync_is_synced_by_the_next(journal: Journal) -> None:
    loop = Loop(journal)
    loop.syncer.poke()
    loop.turn()  # the sync of record 1 goes on, or is over
    journal.append(['{"n":1}'])
    loop.syncer.poke()
    loop.settle()
    assert journal.synced_seq == 2


def test_without_help_of_the_c_library_it_syncs_itself(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flush, "start", lambda self, fd: False)
    loop = Loop(journal)
    loop.syncer.poke()
    loop.turn()
    assert journal.synced_seq == 1
    assert not loop.asked
    loop.syncer.close()


def test_a_failed_sync_is_raised_by_close_and_by_every_later_poke(journal: Journal) -> None:
    syncer = Loop(journal).syncer
    os.unlink(journal.path)
    syncer.poke()
    for _ in range(2):
        with pytest.raises(JournalError, match="can't sync"):
            syncer.close()
    with pytest.raises(JournalError, match="can't sync"):
        syncer.poke()


def test_a_sync_that_failed_meanwhile_is_raised_by_the_next_poke(journal: Journal) -> None:
    loop = Loop(journal)
    os.unlink(journal.path)
    loop.syncer.poke()
    loop.settle()
    for act in (loop.syncer.poke, loop.syncer.close):
        with pytest.raises(JournalError, match="can't sync"):
            act()
    assert not loop.asked


def test_the_flush_tells_what_the_disk_said(tmp_path: Path) -> None:
    flush = Flush.make()
    if flush is None:
        pytest.skip("this C library has no aio_fsync")
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(100):
            os.write(fd, b"x")
            assert flush.start(fd)
            assert flush.busy
            assert flush.wait() == 0
            assert not flush.busy
    finally:
        os.close(fd)
    reader, writer = os.pipe()
    try:
        assert flush.start(writer)
        assert flush.wait() == errno.EINVAL  # a pipe has no disk
    finally:
        os.close(reader)
        os.close(writer)


def test_a_notice_comes_with_the_append(journal: Journal) -> None:
    notice = Notice.watch(journal.path)
    if notice is None:
        pytest.skip("there is no inotify here")
    assert not notice.drain()
    reader = Journal.open(journal.path, write=False)
    reader.read()
    for n in range(300):
        journal.append([f'{{"n":{n}}}'])
        assert select.select([notice], [], [], 10)[0]
        assert notice.drain()
        assert [e["n"] for r in reader.read() for e in r.events] == [n]
    assert not notice.drain()
    reader.close()
    notice.close()
    notice.close()


def test_there_is_no_notice_for_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert Notice.watch(str(tmp_path / "none")) is None

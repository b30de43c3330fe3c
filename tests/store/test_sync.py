"""The syncing thread and the kernel's notice."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.errors import JournalError
from dagrun.store.journal import Journal
from dagrun.store.sync import Notice, Syncer


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.create(str(tmp_path / "journal.jsonl"))
    made.append(['{"format":1}'], epoch=1)
    yield made
    made.close()


def test_close_syncs_what_was_poked(journal: Journal) -> None:
    syncer = Syncer(journal)
    for n in range(50):
        journal.append([f'{{"n":{n}}}'])
        syncer.poke()
    syncer.close()
    assert journal.synced_seq == journal.seq == 51
    syncer.close()


def test_a_poke_is_synced_without_close(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    flush = os.fdatasync

    def watched(fd: int) -> None:
        flush(fd)
        synced.set()

    monkeypatch.setattr("dagrun.store.journal._flush", watched)
    syncer = Syncer(journal)
    for _ in range(3):
        synced.clear()
        journal.append(['{"n":1}'])
        syncer.poke()
        assert synced.wait(10)
    syncer.close()
    assert journal.synced_seq == 4


def test_the_thread_is_only_there_once_needed(journal: Journal) -> None:
    before = set(threading.enumerate())
    syncer = Syncer(journal)
    assert set(threading.enumerate()) <= before
    syncer.poke()
    assert len(set(threading.enumerate()) - before) == 1
    syncer.close()
    assert set(threading.enumerate()) <= before


def test_a_failed_sync_is_raised_by_close_and_by_every_later_poke(journal: Journal) -> None:
    syncer = Syncer(journal)
    os.unlink(journal.path)
    syncer.poke()
    with pytest.raises(JournalError, match="can't sync"):
        syncer.close()
    with pytest.raises(JournalError, match="can't sync"):
        syncer.close()
    with pytest.raises(JournalError, match="can't sync"):
        while True:
            syncer.poke()


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


def test_a_close_just_as_the_thread_has_looked_for_one_ends_it(journal: Journal) -> None:
    class ClosedAfterTheLook(threading.Event):
        """The worst moment: somebody closes right after the thread saw that nobody did."""

        def wait(self, timeout: float | None = None) -> bool:
            seen = super().wait(timeout)
            self.set()
            syncer._wake.set()
            return seen

    syncer = Syncer(journal)
    syncer.poke()
    syncer.close()
    syncer._start()
    thread = syncer._thread
    assert thread is not None
    syncer._closing = ClosedAfterTheLook()
    syncer.poke()
    syncer._wake.set()
    thread.join(10)
    assert not thread.is_alive()
    syncer.close()

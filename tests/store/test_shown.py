"""What of a running attempt's log may be shown."""

from __future__ import annotations

import os
from pathlib import Path

from dagrun.store.shown import CHECKED_BYTES, Mark, is_other, mark, publish, shown_bytes, withdraw


def test_a_reader_gets_what_was_published_for_its_attempt(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 5000 + b"raw")
    with log.open("rb") as file:
        fd = file.fileno()
        assert shown_bytes(str(tmp_path), 3, "a.1", "out", fd) is None
        publish(str(tmp_path), 3, "a.1", {"out": mark(5000, b"x" * 5000), "err": Mark()})
        assert shown_bytes(str(tmp_path), 3, "a.1", "out", fd) == 5000
        assert shown_bytes(str(tmp_path), 3, "a.1", "err", fd) == 0
        assert shown_bytes(str(tmp_path), 3, "a.2", "out", fd) == 0  # another attempt has the slot now
        assert shown_bytes(str(tmp_path), 4, "a.1", "out", fd) is None
        withdraw(str(tmp_path), 3)
        withdraw(str(tmp_path), 3)
        assert shown_bytes(str(tmp_path), 3, "a.1", "out", fd) is None


def test_a_log_that_was_cut_and_written_anew_is_not_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"clean and long enough")
    publish(str(tmp_path), 0, "a.1", {"out": mark(10, b"clean and "), "err": Mark()})
    with log.open("rb") as file:
        assert shown_bytes(str(tmp_path), 0, "a.1", "out", file.fileno()) == 10
        log.write_bytes(b"dirty but as long as it was")
        assert shown_bytes(str(tmp_path), 0, "a.1", "out", file.fileno()) == 0
        log.write_bytes(b"cl")
        assert shown_bytes(str(tmp_path), 0, "a.1", "out", file.fileno()) == 0


def test_a_mark_looks_at_the_last_bytes_only(tmp_path: Path) -> None:
    data = os.urandom(3 * CHECKED_BYTES)
    log = tmp_path / "log"
    log.write_bytes(data)
    made = mark(len(data), data)
    assert made.checked == CHECKED_BYTES
    with log.open("rb") as file:
        assert not is_other(file.fileno(), made)
        assert is_other(file.fileno(), mark(len(data) - 1, data))

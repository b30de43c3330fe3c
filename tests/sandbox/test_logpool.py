from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from dagrun.sandbox.logpool import LogPool, recover

from .descriptors import descriptors_kept


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_silence_leaves_no_file_and_the_slot_is_used_again(tmp_path: Path) -> None:
    pool = LogPool(str(tmp_path))
    slot = pool.acquire()
    fds = (slot.out_fd, slot.err_fd)
    assert pool.release(slot, "a", 1) == (0, 0)
    again = pool.acquire()
    assert (again.out_fd, again.err_fd) == fds
    pool.release(again, "b", 1)
    pool.close()
    assert names(tmp_path) == []


def test_what_was_written_gets_the_name_of_its_attempt(tmp_path: Path) -> None:
    pool = LogPool(str(tmp_path))
    slot = pool.acquire()
    os.write(slot.err_fd, b"oh\x00\xff")
    assert pool.written(slot) == 4
    assert pool.tail(slot, 2, "err") == b"\x00\xff"
    assert pool.tail(slot, 99) == b""
    assert pool.release(slot, "a", 2) == (0, 4)
    second = pool.acquire()
    os.write(second.out_fd, b"more")
    assert pool.release(second, "b", 1) == (4, 0)
    pool.close()
    assert names(tmp_path) == ["a.2.err", "b.1.out"]
    assert (tmp_path / "a.2.err").read_bytes() == b"oh\x00\xff"
    assert (tmp_path / "a.2.err").stat().st_mode & 0o777 == 0o600


def test_slots_in_use_together_are_apart(tmp_path: Path) -> None:
    pool = LogPool(str(tmp_path))
    slots = [pool.acquire() for _ in range(3)]
    for i, slot in enumerate(slots):
        os.write(slot.out_fd, str(i).encode())
    for i, slot in enumerate(slots):
        pool.release(slot, f"n{i}", 1)
    pool.close()
    assert [(tmp_path / f"n{i}.1.out").read_text() for i in range(3)] == ["0", "1", "2"]


def test_a_retired_slot_is_not_shared_with_what_may_still_write(tmp_path: Path) -> None:
    pool = LogPool(str(tmp_path))
    slot = pool.acquire()
    stray = os.dup(slot.out_fd)
    pool.release(slot, "a", 1, retire=True)
    fresh = pool.acquire()
    os.write(stray, b"late")
    os.close(stray)
    assert pool.release(fresh, "b", 1) == (0, 0)
    pool.close()
    assert names(tmp_path) == []


def test_a_name_that_is_taken_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.1.out").write_text("first")
    pool = LogPool(str(tmp_path))
    slot = pool.acquire()
    os.write(slot.out_fd, b"second")
    pool.release(slot, "a", 1)
    pool.close()
    assert (tmp_path / "a.1.out").read_text() == "first"
    assert (tmp_path / "lost-1-a.1.out").read_text() == "second"


def test_a_log_that_the_node_removed_is_still_kept(tmp_path: Path) -> None:
    pool = LogPool(str(tmp_path))
    slot = pool.acquire()
    os.write(slot.out_fd, b"here")
    (tmp_path / ".slot-0.out").unlink()
    assert pool.release(slot, "a", 1) == (4, 0)
    pool.close()
    assert (tmp_path / "a.1.out").read_bytes() == b"here"


def test_a_symlink_in_place_of_a_slot_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("x")
    (tmp_path / ".slot-0.out").symlink_to(target)
    pool = LogPool(str(tmp_path))
    with pytest.raises(OSError, match="symbolic") as caught:
        pool.acquire()
    assert caught.value.errno == errno.ELOOP
    pool.close()
    assert target.read_text() == "x"


def test_recover_names_the_files_of_lost_attempts(tmp_path: Path) -> None:
    pool = LogPool(str(tmp_path))
    a, b, c = pool.acquire(), pool.acquire(), pool.acquire()
    os.write(a.out_fd, b"A")
    os.write(b.err_fd, b"B")
    os.write(c.out_fd, b"C")
    for slot in (a, b, c):  # a kill -9: the files stay as they are
        os.close(slot.out_fd)
        os.close(slot.err_fd)
    os.close(pool._folder)
    lost = [(0, "older", 1), (0, "a", 1), (1, "b", 3), (7, "never-wrote", 1)]
    assert recover(str(tmp_path), lost) == ["a.1.out", "b.3.err", "lost-1-slot-2.out"]
    assert names(tmp_path) == ["a.1.out", "b.3.err", "lost-1-slot-2.out"]
    assert recover(str(tmp_path), lost) == []  # killed in between and called again: nothing to do


def test_left_bytes_are_never_appended_to(tmp_path: Path) -> None:
    (tmp_path / ".slot-0.out").write_text("old")
    pool = LogPool(str(tmp_path))
    slot = pool.acquire()
    os.write(slot.out_fd, b"new")
    pool.release(slot, "a", 1)
    pool.close()
    assert (tmp_path / "a.1.out").read_text() == "new"
    assert (tmp_path / "lost-1-slot-0.out").read_text() == "old"


def test_no_descriptor_left_is_an_error_that_leaks_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with descriptors_kept():
        pool = LogPool(str(tmp_path))
        top = os.dup(0)
        os.close(top)
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1, hard))  # room for one of the two
        try:
            with pytest.raises(OSError, match="Too many open files") as caught:
                pool.acquire()
            assert caught.value.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        slot = pool.acquire()
        assert slot.index == 0
        pool.release(slot, "a", 1)
        pool.close()
        pool.close()

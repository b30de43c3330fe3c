"""The journal: round trips, every way to damage it, two writers, full disks, locks."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.errors import BugError, JournalError, RunLockedError
from dagrun.store import journal as journal_module
from dagrun.store.journal import CorruptJournalError, DiskFull, Journal, Record

FIRST = '{"type":"run.created","format":1}'


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.jsonl")


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every journal that a test opened is closed after it: a descriptor is no more than a number to the collector."""
    opened: list[Journal] = []
    made = Journal.__init__

    def note(self: Journal, path: str, fd: int, *, writable: bool) -> None:
        made(self, path, fd, writable=writable)
        opened.append(self)

    monkeypatch.setattr(Journal, "__init__", note)
    yield
    for journal in opened:
        journal.close()


def event(n: int) -> str:
    return json.dumps({"type": "tick", "n": n})


def filled(path: str, count: int) -> Journal:
    """A journal with run.created and `count` events after it."""
    journal = Journal.create(path)
    journal.append([FIRST], epoch=1)
    for n in range(count):
        journal.append([event(n)], epoch=1)
    return journal


def read_all(path: str) -> list[Record]:
    journal = Journal.open(path, write=False)
    try:
        return journal.read()
    finally:
        journal.close()


def python(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
    )


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
        started.append(python(code, *args, **env))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------- round trip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
commits = st.lists(st.lists(st.dictionaries(st.text(), json_values, max_size=3), min_size=1, max_size=3), max_size=4)


@given(commits=commits, ascii_only=st.booleans())
def test_what_is_appended_is_read(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[dict[str, Any]]], ascii_only: bool
) -> None:
    path = str(tmp_path_factory.mktemp("round") / "j")
    journal = Journal.create(path)
    journal.append([FIRST], epoch=3)
    for commit in commits:
        journal.append([json.dumps(e, ensure_ascii=ascii_only) for e in commit], epoch=3)
    journal.close()
    records = read_all(path)
    assert [r.events for r in records] == [[json.loads(FIRST)], *commits]
    assert [r.seq for r in records] == list(range(1, len(commits) + 2))
    assert {r.epoch for r in records} == {3}


def test_a_lone_surrogate_survives(path: str) -> None:
    journal = filled(path, 0)
    journal.append([json.dumps({"name": "a\udc80"}, ensure_ascii=False)])
    assert read_all(path)[1].events == [{"name": "a\udc80"}]


def test_a_record_knows_its_place_and_time(path: str) -> None:
    journal = filled(path, 3)
    raw = Path(path).read_bytes()
    records = read_all(path)
    assert all(raw[r.offset + 8 : r.offset + 16] == b' {"seq":' for r in records)
    assert [r.m for r in records] == sorted(r.m for r in records)
    assert journal.offset == len(raw)
    assert abs(records[-1].t - os.stat(path).st_mtime) < 5


def test_the_lines_are_as_documented(path: str) -> None:
    filled(path, 3)
    crc = 0
    for seq, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        told, _, body = line.partition(b" ")
        crc = zlib.crc32(body, crc)
        assert told == f"{crc:08x}".encode()
        data = json.loads(body)
        assert list(data) == ["seq", "t", "m", "w", "e"]
        assert data["seq"] == seq


def test_a_reader_sees_only_what_is_new(path: str) -> None:
    writer = filled(path, 1)
    reader = Journal.open(path, write=False)
    assert len(reader.read()) == 2
    assert reader.read() == []
    writer.append([event(7), event(8)])
    assert [r.events for r in reader.read()] == [[json.loads(event(7)), json.loads(event(8))]]


def test_the_first_event_carries_the_format(path: str) -> None:
    journal = Journal.create(path)
    with pytest.raises(BugError, match="format"):
        journal.append([event(1)], epoch=1)
    assert os.stat(path).st_size == 0
    assert journal.append([FIRST], epoch=1)


def test_a_raw_newline_is_refused(path: str) -> None:
    journal = filled(path, 0)
    with pytest.raises(BugError, match="newline"):
        journal.append(['{"a":\n1}'])
    assert len(read_all(path)) == 1


def test_a_reader_cannot_write(path: str) -> None:
    filled(path, 0)
    with pytest.raises(JournalError, match="opened for reading"):
        Journal.open(path, write=False).append([event(1)])


def test_create_refuses_an_existing_journal(path: str) -> None:
    filled(path, 0)
    with pytest.raises(JournalError, match="File exists"):
        Journal.create(path)


def test_a_missing_journal_is_named(path: str) -> None:
    with pytest.raises(JournalError, match=r"can't open .*journal.jsonl: No such file"):
        Journal.open(path, write=False)


# ---------------------------------------------------------------- damage


def test_cut_at_every_byte_the_good_prefix_is_read_and_writing_goes_on(path: str, tmp_path: Path) -> None:
    filled(path, 4)
    raw = Path(path).read_bytes()
    whole = read_all(path)
    for size in range(len(raw) + 1):
        part = str(tmp_path / "part")
        Path(part).write_bytes(raw[:size])
        good = [r for r in whole if raw.index(b"\n", r.offset) < size]
        assert read_all(part) == good
        journal = Journal.open(part, write=True)
        journal.append([event(99)] if good else [FIRST], epoch=1)
        end = good[-1].offset + raw[good[-1].offset :].index(b"\n") + 1 if good else 0
        assert journal.torn_bytes == size - end
        assert [r.seq for r in read_all(part)] == list(range(1, len(good) + 2))


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\0" * 50 + b"\n", b"deadbeef {}\n", b"\n", b"x"])
def test_a_bad_last_line_is_ignored_by_readers_and_cut_by_the_next_writer(path: str, tail: bytes) -> None:
    filled(path, 2).close()
    with open(path, "ab") as file:
        file.write(tail)
    assert len(read_all(path)) == 3
    assert os.stat(path).st_size > 0
    writer = Journal.open(path, write=True)
    assert writer.append([event(5)])
    assert writer.torn_bytes == len(tail)
    assert len(read_all(path)) == 4


def test_a_flipped_bit_before_the_last_line_is_refused_with_its_place(path: str) -> None:
    filled(path, 3)
    raw = Path(path).read_bytes()
    records = read_all(path)
    for at in range(records[-1].offset - 1):
        broken = bytearray(raw)
        broken[at] ^= 1
        Path(path).write_bytes(broken)
        with pytest.raises(CorruptJournalError) as caught:
            read_all(path)
        hit = [r for r in records if r.offset <= at][-1]
        # A bit that makes or breaks a newline moves the lines, never what stands before them.
        assert (caught.value.offset, caught.value.seq) == (hit.offset, hit.seq)
        assert caught.value.records == records[: hit.seq - 1]
        assert f"byte {hit.offset}" in caught.value.message
        assert f"record {hit.seq}" in caught.value.message


def test_a_writer_refuses_a_corrupt_journal_and_leaves_it_as_it_is(path: str) -> None:
    filled(path, 3)
    raw = bytearray(Path(path).read_bytes())
    raw[20] ^= 4
    Path(path).write_bytes(raw)
    with pytest.raises(CorruptJournalError):
        Journal.open(path, write=True).append([event(1)])
    assert Path(path).read_bytes() == raw


@pytest.mark.parametrize("change", ["swap", "drop", "repeat"])
def test_lines_that_moved_are_refused(path: str, change: str) -> None:
    filled(path, 4)
    lines = Path(path).read_bytes().splitlines(keepends=True)
    if change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif change == "drop":
        del lines[1]
    else:
        lines.insert(1, lines[1])
    Path(path).write_bytes(b"".join(lines))
    with pytest.raises(CorruptJournalError):
        read_all(path)


def test_a_newer_format_is_refused_naming_both(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "FORMAT", 7)
    Journal.create(path).append(['{"format":7}'], epoch=1)
    monkeypatch.undo()
    with pytest.raises(JournalError, match=r"format 7.*format 1") as caught:
        read_all(path)
    assert "pip install --upgrade dagrun" in caught.value.hint
    size = os.stat(path).st_size
    with pytest.raises(JournalError, match="format 7"):
        Journal.open(path, write=True).append([event(1)])
    assert os.stat(path).st_size == size


def test_a_deleted_journal_is_noticed(path: str) -> None:
    journal = filled(path, 1)
    os.unlink(path)
    with pytest.raises(JournalError, match="deleted or replaced"):
        journal.append([event(1)])
    with pytest.raises(JournalError, match="deleted or replaced"):
        journal.read()


def test_a_replaced_or_moved_journal_is_noticed(path: str) -> None:
    journal = filled(path, 1)
    Path(path + ".new").write_bytes(Path(path).read_bytes())
    os.rename(path + ".new", path)
    with pytest.raises(JournalError, match="deleted or replaced"):
        journal.append([event(1)])

    moved = filled(path + "2", 1)
    os.rename(path + "2", path + "3")
    with pytest.raises(JournalError, match="can't sync"):
        moved.sync()
    with pytest.raises(JournalError, match="can't sync"):
        moved.append([event(1)])


def test_a_shortened_journal_is_noticed(path: str) -> None:
    journal = filled(path, 3)
    os.truncate(path, 50)
    with pytest.raises(JournalError, match="shortened"):
        journal.append([event(1)])
    assert os.stat(path).st_size == 50


# ---------------------------------------------------------------- two writers


def test_news_is_told_under_the_lock_and_can_stop_the_append(path: str) -> None:
    first = filled(path, 0)
    second = Journal.open(path, write=True)
    second.read()
    first.append([event(1)])
    told: list[Record] = []

    def no(records: list[Record]) -> bool:
        told.extend(records)
        with open(path, "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False

    assert not second.append([event(2)], on_news=no)
    assert [r.seq for r in told] == [2]
    assert second.append([event(2)], on_news=no), "the news was told once, and only once"
    assert [r.seq for r in read_all(path)] == [1, 2, 3]


def test_an_error_in_on_news_frees_the_lock(path: str) -> None:
    first = filled(path, 0)
    second = Journal.open(path, write=True)

    def bad(records: list[Record]) -> bool:
        raise KeyError("x")

    with pytest.raises(KeyError):
        second.append([event(1)], on_news=bad)
    assert first.append([event(2)])


RACER = """
import json, sys
from dagrun.store.journal import Journal
path, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
journal = Journal.open(path, write=True)
head = 0
def news(records):
    global head
    for record in records:
        for event in record.events:
            head = event.get("plan", head)
    return False
news(journal.read())
print("ready", flush=True); sys.stdin.readline()
won = []
while head < rounds:
    want = head + 1
    if journal.append([json.dumps({"plan": want, "by": name})], on_news=news):
        head = want
        won.append(want)
print(json.dumps(won))
"""


def test_of_two_processes_exactly_one_wins_each_round(path: str, child: Callable[..., subprocess.Popen[str]]) -> None:
    filled(path, 0).close()
    racers = [child(RACER, path, name, "400") for name in "ab"]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    answers = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        answers.append(json.loads(racer.communicate(timeout=60)[0]))
    assert sorted(answers[0] + answers[1]) == list(range(1, 401))
    in_file = [(e["plan"], e["by"]) for r in read_all(path)[1:] for e in r.events]
    assert [plan for plan, _ in in_file] == list(range(1, 401))
    assert [plan for plan, by in in_file if by == "a"] == answers[0]


WRITER = """
import sys
from dagrun.store.journal import Journal
journal = Journal.open(sys.argv[1], write=True)
journal.read()
n = 0
while True:
    journal.append(['{"n":%d,"by":"%s","pad":"%s"}' % (n, sys.argv[2], "x" * (n % 300))])
    print(n, flush=True)
    n += 1
"""


def test_kill_9_loses_nothing_acknowledged_and_readers_never_fail(
    path: str, child: Callable[..., subprocess.Popen[str]]
) -> None:
    filled(path, 0).close()
    reader = Journal.open(path, write=False)
    acked: dict[str, int] = {}
    for round_ in range(8):
        names = [f"{round_}a", f"{round_}b"]
        writers = {name: child(WRITER, path, name) for name in names}
        for name, writer in writers.items():
            assert writer.stdout is not None
            for _ in range(1 + round_ * 20):
                acked[name] = int(writer.stdout.readline())
        reader.read()
        for name, writer in writers.items():
            assert writer.stdout is not None
            writer.kill()
            lines = writer.stdout.read().split("\n")[:-1]  # what is not a whole line was not told
            acked[name] = max([acked[name], *map(int, lines)])
        reader.read()
    seen: dict[str, list[int]] = {}
    for record in read_all(path)[1:]:
        for e in record.events:
            seen.setdefault(str(e["by"]), []).append(int(str(e["n"])))
    for name, last in acked.items():
        assert seen[name][: last + 1] == list(range(last + 1))
        assert len(seen[name]) <= last + 2, "at most one more than was acknowledged"


@pytest.mark.parametrize("point", ["before_lock", "before_write", "mid_write", "after_write", "before_sync"])
def test_killed_at_every_point_the_next_writer_goes_on(
    path: str, point: str, child: Callable[..., subprocess.Popen[str]]
) -> None:
    code = WRITER.replace("    n += 1", "    journal.sync(); n += 1")
    filled(path, 0).close()
    writer = child(code, path, "a", DAGRUN_FAULT=f"journal.{point}:3:kill")
    out = writer.communicate(timeout=30)[0].split()
    assert writer.returncode == -signal.SIGKILL
    survivors = len(read_all(path)) - 1
    assert survivors - len(out) in ((1,) if point == "after_write" else (0,))
    again = Journal.open(path, write=True)
    assert again.append([event(1)])
    assert (again.torn_bytes > 0) == (point == "mid_write")
    assert len(read_all(path)) == survivors + 2


def test_an_older_epoch_is_refused(path: str) -> None:
    old = filled(path, 0)
    new = Journal.open(path, write=True)
    new.append([event(1)], epoch=2)
    with pytest.raises(RunLockedError, match="another engine took this run over"):
        old.append([event(2)], epoch=1)
    assert old.append([event(3)]), "who is not an engine takes the epoch of the file"
    assert [r.epoch for r in read_all(path)] == [1, 2, 2]


def test_a_busy_lock_names_its_stopped_holder(
    path: str, monkeypatch: pytest.MonkeyPatch, child: Callable[..., subprocess.Popen[str]]
) -> None:
    journal = filled(path, 0)
    code = "import fcntl,os,signal,sys; f=open(sys.argv[1]); fcntl.flock(f,fcntl.LOCK_EX); print(flush=True); "
    holder = child(code + "os.kill(os.getpid(), signal.SIGSTOP); print(flush=True)", path)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    monkeypatch.setattr(journal_module, "LOCK_WAIT_S", 0.05)
    with pytest.raises(RunLockedError, match=rf"pid {holder.pid} \(stopped, state T\)") as caught:
        journal.append([event(1)])
    assert f"kill -CONT {holder.pid}" in caught.value.hint
    holder.kill()
    holder.wait()
    assert journal.append([event(1)]), "the lock died with its holder"


# ---------------------------------------------------------------- the disk


def test_a_file_size_limit_leaves_nothing_of_the_line(path: str) -> None:
    journal = filled(path, 1)
    size = os.stat(path).st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 60, hard))
    try:
        with pytest.raises(DiskFull, match="File too large"):
            journal.append([event(1), event(2), event(3)])
        assert os.stat(path).st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.append([event(4)])
    assert [r.seq for r in read_all(path)] == [1, 2, 3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"needs the right to mount: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_on_a_full_disk_the_ballast_makes_room_for_the_last_event(small_disk: Path) -> None:
    from dagrun.store.rundir import new_run

    run = new_run(str(small_disk))
    journal = filled(run.journal, 0)
    pad = '{"pad":"' + "x" * 9000 + '"}'
    with pytest.raises(DiskFull, match=r"No space left on device \(0 bytes free\)") as caught:
        while True:
            journal.append([pad])
    assert caught.value.code == "disk-full"
    acked = journal.seq
    assert len(read_all(run.journal)) == acked
    with pytest.raises(DiskFull):
        journal.append([pad])
    assert run.drop_ballast()
    assert not run.drop_ballast()
    assert journal.append([event(1)])
    journal.sync()
    assert len(read_all(run.journal)) == acked + 1


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_an_error_of_the_disk_is_told_and_the_line_taken_back(
    path: str, action: str, child: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import sys
from dagrun.store.journal import Journal, DiskFull
from dagrun.errors import JournalError
journal = Journal.open(sys.argv[1], write=True)
try:
    journal.append(['{"n":1}'])
except JournalError as error:
    print(type(error).__name__)
print(journal.append(['{"n":2}']), journal.torn_bytes)
"""
    filled(path, 0).close()
    out = child(code, path, DAGRUN_FAULT=f"journal.mid_write:1:{action}").communicate(timeout=30)[0]
    assert out.split() == ["DiskFull" if action == "enospc" else "JournalError", "True", "0"]
    assert [r.events for r in read_all(path)][1:] == [[{"n": 2}]]


def test_a_failed_sync_is_final(path: str, child: Callable[..., subprocess.Popen[str]]) -> None:
    code = """
import sys
from dagrun.store.journal import Journal
from dagrun.errors import JournalError
journal = Journal.open(sys.argv[1], write=True)
journal.append(['{"n":1}'])
for act in (journal.sync, journal.sync, lambda: journal.append(['{"n":2}'])):
    try:
        act()
        print("went on")
    except JournalError as error:
        print(error.message)
"""
    filled(path, 0).close()
    out = child(code, path, DAGRUN_FAULT="journal.before_sync:1:eio").communicate(timeout=30)[0].splitlines()
    assert out == [f"can't sync {path}: Input/output error"] * 3
    assert len(read_all(path)) == 2

"""What was absent is written down: judged by others only when its writer is dead, and only where it was looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dagrun.sandbox import procs
from dagrun.sandbox.plants import Watched, sweep, write_down


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / ".dagrun/runs/r").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    return tmp_path


def noted(base: Path, **names: str) -> str:
    """The record of an attempt that found `names` in `out`: "" for not there."""
    fd = os.open(base / "out", os.O_PATH)
    try:
        watched = Watched(str(base / "out"), fd, {name.replace("_", "."): to for name, to in names.items()})
        return write_down(str(base / ".dagrun/runs/r"), "r/node/1", [watched])
    finally:
        os.close(fd)


def orphaned(record: str, **changes: object) -> None:
    """As if another process, which has ended, had written the record."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        pass
    told = json.loads(Path(record).read_text())
    Path(record).write_text(json.dumps({**told, "pid": gone.pid, **changes}))


def swept(base: Path) -> list[str]:
    return sweep(str(base / ".dagrun"))


def test_what_appeared_is_moved_aside_once(base: Path) -> None:
    orphaned(noted(base, _envrc="", _git=""))
    (base / "out/.envrc").write_text("x")
    assert swept(base) == [f"{base}/out/.envrc (now .envrc.quarantine-node)"]
    assert os.listdir(base / "out") == [".envrc.quarantine-node"]
    (base / "out/.envrc").write_text("mine")
    assert swept(base) == []


def test_a_link_that_leads_elsewhere_now_is_moved_and_another_stays(base: Path) -> None:
    for name in (".bashrc", ".profile"):
        (base / f"out/{name}").symlink_to("there")
    orphaned(noted(base, _bashrc="there", _profile="there"))
    (base / "out/.bashrc").unlink()
    (base / "out/.bashrc").symlink_to("evil")
    swept(base)
    assert sorted(os.listdir(base / "out")) == [".bashrc.quarantine-node", ".profile"]


def test_one_whose_writer_lives_is_its_own(base: Path) -> None:
    record = noted(base, _envrc="")
    (base / "out/.envrc").write_text("x")
    assert swept(base) == []
    assert os.path.exists(record)


def test_the_same_pid_of_another_process_is_not_the_writer(base: Path) -> None:
    record = noted(base, _envrc="")
    Path(record).write_text(json.dumps({**json.loads(Path(record).read_text()), "ticks": 1}))
    (base / "out/.envrc").write_text("x")
    assert swept(base)


def test_nothing_is_judged_while_this_boot_is_unknown(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc every process looks dead."""
    orphaned(noted(base, _envrc=""))
    (base / "out/.envrc").write_text("x")
    monkeypatch.setattr(procs, "boot_id", lambda: "")
    assert swept(base) == []


def test_a_folder_that_is_another_one_now_is_left_alone(base: Path) -> None:
    record = noted(base, _envrc="")
    orphaned(record)
    (base / "out").rename(base / "old")
    (base / "out").mkdir()
    (base / "out/.envrc").write_text("mine")
    assert swept(base) == []
    assert (base / "out/.envrc").exists()
    assert not os.path.exists(record)


def test_a_link_where_the_folder_was_is_not_followed(base: Path) -> None:
    orphaned(noted(base, _envrc=""))
    (base / "out").rename(base / "else")
    (base / "out").symlink_to("else")
    (base / "else/.envrc").write_text("mine")
    assert swept(base) == []
    assert (base / "else/.envrc").exists()


@pytest.mark.parametrize("name", ["../victim", "/etc/passwd", "", ".", "..", "a/b"])
def test_a_name_that_leads_out_of_the_folder_is_no_name(name: str, base: Path) -> None:
    record = noted(base, _envrc="")
    (base / "victim").write_text("mine")
    (base / "out/a").mkdir()
    (base / "out/a/b").write_text("mine")
    told = json.loads(Path(record).read_text())["folders"]
    orphaned(record, folders=[{**told[0], "names": {name: ""}}])
    assert swept(base) == []
    assert (base / "victim").exists()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"pid": "x"}', b'{"pid": 1, "folders": 3}']
)
def test_a_record_that_is_none_harms_nobody(text: bytes, base: Path) -> None:
    Path(noted(base, _envrc="")).write_bytes(text)
    (base / "out/.envrc").write_text("mine")
    assert swept(base) == []
    assert (base / "out/.envrc").exists()


def test_a_record_that_others_can_write_is_not_believed(base: Path) -> None:
    record = noted(base, _envrc="")
    orphaned(record)
    os.chmod(record, 0o666)
    (base / "out/.envrc").write_text("mine")
    assert swept(base) == []


def test_without_a_folder_of_the_run_or_anything_absent_nothing_is_written(base: Path) -> None:
    fd = os.open(base / "out", os.O_PATH)
    try:
        watched = Watched(str(base / "out"), fd, {".envrc": ""})
        assert write_down(str(base / ".dagrun/runs/other"), "a", [watched]) == ""
        assert write_down("", "a", [watched]) == ""
        assert write_down(str(base / ".dagrun/runs/r"), "a", [watched._replace(names={})]) == ""
    finally:
        os.close(fd)
    assert not (base / ".dagrun/watched").exists()
    assert swept(base) == []

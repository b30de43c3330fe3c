"""doctor."""

from __future__ import annotations

import os

import pytest

from .space import Space


def test_everything_is_tried_and_nothing_is_left(space: Space) -> None:
    before = sorted(os.listdir(space.folder))
    done = space.run("doctor", "--json")
    assert done.code == 0
    names = [f["name"] for f in done.json["findings"]]
    assert names == [
        *("python", "platform", "pidfd", "subreaper", "open files", "processes", "inotify"),
        *("filesystem", "journal", "lock", "sync"),
    ]
    assert done.json["ok"] is True
    assert sorted(os.listdir(space.folder)) == before


def test_text(space: Space) -> None:
    done = space.run("doctor")
    assert "✓ journal     written and synced\n" in done.out
    assert "ok" not in space.run("doctor", "-q").out


def test_few_descriptors_are_a_warning(space: Space) -> None:
    done = space.shell("ulimit -n 100; dagrun doctor --json")
    levels = {f["name"]: f["level"] for f in done.json["findings"]}
    assert (done.code, levels["open files"]) == (0, "warning")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written(space: Space) -> None:
    space.folder.chmod(0o500)
    done = space.run("doctor")
    space.folder.chmod(0o700)
    assert done.code == 8
    assert "✗ journal" in done.out

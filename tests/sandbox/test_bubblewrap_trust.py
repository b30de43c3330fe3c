"""Whose programs stand around a command: nobody's who could be a command of ours."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.bwrap_proof import fault_of
from dagrun.sandbox.wall import Bounds
from tests.sandbox.bubblewrap_cell import Cell
from tests.sandbox.test_bubblewrap import AS_ROOT, need_bwrap

REAL = os.path.realpath(shutil.which("bwrap") or "/usr/bin/bwrap")


@pytest.fixture(autouse=True)
def _needed() -> None:
    need_bwrap()


def test_the_systems_own_is_trusted() -> None:
    assert fault_of(REAL) == ""


@pytest.mark.skipif(not AS_ROOT, reason="only root can make a program that belongs to root")
@pytest.mark.parametrize(("mode", "uid", "trusted"), [(0o755, 0, True), (0o775, 0, False), (0o755, 65534, False)])
def test_a_folder_that_others_may_write_makes_it_untrusted(mode: int, uid: int, trusted: bool, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(REAL, folder / "bwrap")
    os.chown(folder, uid, -1)
    folder.chmod(mode)
    assert ("not trusted" not in fault_of(str(folder / "bwrap"))) == trusted


def test_a_link_is_followed_once(tmp_path: Path) -> None:
    link = tmp_path / "bwrap"
    link.symlink_to(REAL)
    wall = Bubblewrap(lambda _: None, path=str(link))
    link.unlink()
    link.write_text("#!/bin/sh\n")
    assert wall._path == REAL


def test_what_limits_processes_is_not_found_by_the_path_of_the_command(tmp_path: Path) -> None:
    cell = Cell(tmp_path)
    try:
        cell.wall._user = True
        wanted = cell.escape("print(1)")
        launch = cell.wall.launch(replace(wanted, bounds=Bounds(pids=50), env={**wanted.env, "PATH": "bin:/nowhere"}))
        cell.wall.discard(launch)
        program = launch.argv[launch.argv.index("--") + 1]
        assert os.path.isabs(program)
        assert os.path.basename(program) == "prlimit"
    finally:
        cell.close()

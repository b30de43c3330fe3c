"""Attempts to get out of bwrap: each succeeds without walls and fails inside; as who runs the tests and as nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sandbox.bubblewrap_cell import ESCAPES, ROOT_ESCAPES, Cell

ROOT = Path(__file__).parents[2]
NOBODY = 65534
AS_ROOT = os.getuid() == 0
TABLE = {**ESCAPES, **(ROOT_ESCAPES if AS_ROOT else {})}


def need_bwrap() -> None:
    """Skip where there is no bwrap, but never in CI."""
    if shutil.which("bwrap") is None and "CI" not in os.environ:
        pytest.skip("bubblewrap is not installed: apt install bubblewrap")


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    need_bwrap()
    made = Cell(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("name", TABLE)
def test_without_walls_it_gets_out(name: str, cell: Cell) -> None:
    ran = cell.run_free(cell.escape(TABLE[name][1]))
    assert ran.out.split() == ["tried", "ESCAPED"], ran


@pytest.mark.parametrize("name", TABLE)
def test_inside_it_does_not(name: str, cell: Cell) -> None:
    ran = cell.run(cell.escape(TABLE[name][1]))
    assert ran.out.split() == ["tried"], ran
    assert ran.exit.code == 1
    assert "Traceback" in ran.err  # it was refused; it did not die of something else


# What holds although files are not held: all that is not about files, dagrun's own and the workflow file.
WITHOUT_FILES = [name for name, (guarantee, _) in TABLE.items() if not guarantee.startswith("fs.")]
WITHOUT_FILES += ["journal", "workflow", "workflow-removed"]


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_nor_when_only_its_network_is_held(name: str, cell: Cell) -> None:
    ran = cell.run(cell.escape(TABLE[name][1], read=None, write=()))
    assert ran.out.split() == ["tried"], ran


@pytest.mark.parametrize("name", [n for n, (g, _) in TABLE.items() if g in ("unix", "ipc", "proc.hide", "env", "tty")])
def test_nor_with_all_of_the_network(name: str, cell: Cell) -> None:
    ran = cell.run(cell.escape(TABLE[name][1], network="any"))
    assert ran.out.split() == ["tried"], ran


def test_an_inherited_descriptor_is_gone(cell: Cell) -> None:
    code = "assert [fd for fd in range(3, 1024) if not libc.fcntl(fd, 1)]"
    fd = os.open(cell.base / "outside/secret", os.O_RDONLY)
    try:
        assert "ESCAPED" in cell.run_free(cell.escape(code), fds=(fd,)).out
        os.set_inheritable(fd, False)
        ran = cell.run(cell.escape(code))
    finally:
        os.close(fd)
    assert ran.out.split() == ["tried"], ran


def test_process_1_holds_no_descriptor_of_ours_either(cell: Cell) -> None:
    ran = cell.sh("for f in /proc/1/fd/*; do readlink $f; done")
    held = set(ran.out.split())
    assert not any("/project" in path or "pipe" in path for path in held), held


@pytest.mark.skipif(not AS_ROOT, reason="only root can become nobody")
def test_as_an_ordinary_user() -> None:
    need_bwrap()
    python = other_python()
    with nobodys_folder() as folder:
        ran = run_as_nobody([python, str(ROOT / "tests/sandbox/bubblewrap_cell.py"), folder, *ESCAPES])
    assert not ran.stderr, ran.stderr
    assert ran.stdout.splitlines() == [f"{name} held" for name in ESCAPES]


@contextmanager
def nobodys_folder() -> Iterator[str]:
    """A folder of nobody's own, in a place that nobody can go to."""
    folder = tempfile.mkdtemp(prefix="dagrun-nobody-", dir="/tmp")
    os.chown(folder, NOBODY, NOBODY)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_as_nobody(argv: list[str], path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    """A command with the user id of nobody and no other right."""
    env = {"PATH": path, "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([*as_nobody(), *argv], env=env, capture_output=True, text=True, timeout=100, check=False)


def as_nobody() -> list[str]:
    """The beginning of a command line that is run by nobody."""
    # env: setpriv itself still finds its program with the rights of root
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env"]


def other_python() -> str:
    """A Python that nobody can run, too."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        test = [*as_nobody(), python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if subprocess.run(test, capture_output=True, check=False).returncode == 0:
            return python
    if "CI" in os.environ:
        pytest.fail("no Python 3.11 that an ordinary user can run")
    pytest.skip("no Python 3.11 that an ordinary user can run")


# ---------------------------------------------------------------- what is only seen from outside


def test_a_grant_that_became_a_link_is_refused(cell: Cell) -> None:
    from dagrun.sandbox.wall import Refused

    look = "cat out/secret 2>/dev/null; echo done"
    assert cell.sh(look).out == "done\n"
    (cell.project / "out").rmdir()
    (cell.project / "out").symlink_to(cell.base / "outside")
    with pytest.raises(Refused, match="symbolic link") as refused:
        cell.sh(look)
    assert str(cell.base / "outside") in refused.value.message


def test_a_grant_that_is_swapped_after_the_look_is_not_followed(cell: Cell) -> None:
    spec = cell.spec("/bin/sh", "-c", "cat out/secret; touch out/new")
    launch = cell.wall.launch(spec)
    (cell.project / "out").rename(cell.project / "was-out")
    (cell.project / "out").symlink_to(cell.base / "outside")
    child, out, err = cell.start(launch)
    cell.wall.started(launch, child)
    ran = cell.finish(child, out, err)
    after = cell.wall.ended(launch, ran.exit)
    assert "the-secret" not in ran.out
    assert os.listdir(cell.base / "outside") == ["secret"]
    assert ran.exit.code != 0
    if "bwrap:" in ran.err:
        assert after.outcome == "denied"


def test_what_it_makes_elsewhere_is_its_own(cell: Cell) -> None:
    ran = cell.sh(f"touch /tmp/mine ~/mine /dev/shm/mine && ls /tmp/mine && echo $HOME $TMPDIR; touch {cell.base}/mine")
    assert "/tmp/mine" in ran.out
    assert not (cell.base / "mine").exists()
    for place in ("/tmp/mine", "/dev/shm/mine", os.path.expanduser("~/mine")):
        assert not os.path.exists(place)


def test_a_hook_that_was_not_there_is_moved_aside(cell: Cell) -> None:
    ran = cell.sh("mkdir -p out/.git/hooks out/keep && echo evil > out/.git/hooks/post-commit; echo x > repo/.envrc")
    assert ran.exit.code == 0, ran
    assert ran.after is not None
    assert ran.after.outcome == "denied"
    assert f"{cell.project}/out/.git (now .git.quarantine-node)" in ran.after.error
    assert f"{cell.project}/repo/.envrc (now .envrc.quarantine-node)" in ran.after.error
    assert sorted(os.listdir(cell.project / "out")) == [".git.quarantine-node", "keep"]
    assert not (cell.project / "repo/.envrc").exists()


def test_without_a_plant_nothing_is_said(cell: Cell) -> None:
    ran = cell.sh("mkdir -p out/sub/.git && echo x > repo/file && mv repo/file out/file")
    assert ran.after is not None
    assert (ran.exit.code, ran.after.outcome, ran.after.error) == (0, "", "")


@pytest.mark.parametrize("kind", ["setpgrp", "daemon", "stopped"])
def test_no_daemon_outlives_it(kind: str, cell: Cell) -> None:
    how = {
        "setpgrp": "setsid sleep 1000 & ",
        "daemon": "(setsid sh -c 'sleep 1000 & exec sleep 1000' >/dev/null 2>&1 &) ; ",
        "stopped": "setsid sh -c 'kill -STOP $$' & ",
    }[kind]
    mark = f"9{os.getpid()}7"
    before = _sleepers(mark)
    ran = cell.sh(how.replace("1000", mark) + "sleep 0.05; echo over")
    assert ran.out == "over\n"
    assert before == _sleepers(mark) == []


def _sleepers(mark: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if words[:2] == [b"sleep", mark.encode()] and state != "Z":
            found.append(pid)
    return found

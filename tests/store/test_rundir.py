"""Where runs live: making, finding, locking and removing them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.errors import DagrunError, EnvironmentFault, NotFoundError, RunLockedError
from dagrun.store import disk, lock
from dagrun.store.journal import Journal
from dagrun.store.rundir import BALLAST_BYTES, RunDir, find_run, list_runs, new_run, remove, sweep


@pytest.fixture
def project(tmp_path: Path) -> str:
    return str(tmp_path)


def begun(project: str) -> RunDir:
    run = new_run(project)
    journal = Journal.create(run.journal)
    journal.append(['{"format":1}'], epoch=1)
    journal.close()
    return run


def named(project: str, name: str, created: int) -> RunDir:
    """A run under a chosen id."""
    run = begun(project)
    path = os.path.join(os.path.dirname(run.path), name)
    os.rename(run.path, path)
    made = RunDir(path, name)
    made.write_meta({"created": created})
    return made


# ---------------------------------------------------------------- making


def test_a_new_run_has_its_layout_and_is_private(project: str) -> None:
    run = new_run(project)
    assert os.path.dirname(run.path) == f"{project}/.dagrun/runs"
    assert sorted(os.listdir(run.path)) == ["ballast", "meta.json", "nodes"]
    assert os.stat(run.path).st_mode & 0o777 == 0o700
    assert os.stat(run.ballast).st_blocks * 512 >= BALLAST_BYTES, "really allocated"
    assert run.id[0].isalpha()
    assert len(run.id) == 4
    assert set(run.id) <= set("0123456789abcdefghjkmnpqrstvwxyz")
    assert Path(project, ".dagrun", ".gitignore").read_text() == "*\n"
    assert "dagrun runs" in Path(project, ".dagrun", "README").read_text()


def test_a_taken_id_is_tried_again_and_gets_longer_in_the_end(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def same(length: int) -> bytes:
        drawn.append(length)
        return bytes(length)

    monkeypatch.setattr("dagrun.store.rundir.os.urandom", same)
    assert new_run(project).id == "a000"
    assert new_run(project).id == "a0000"
    assert drawn == [4] + [4] * 10 + [5]


def test_an_edited_readme_is_kept(project: str) -> None:
    new_run(project)
    readme = Path(project, ".dagrun", "README")
    readme.write_text("mine")
    new_run(project)
    assert readme.read_text() == "mine"


def test_a_file_in_the_way_is_named(project: str) -> None:
    Path(project, ".dagrun").write_text("")
    with pytest.raises(EnvironmentFault, match=r"\.dagrun.* is in the way") as caught:
        new_run(project)
    assert caught.value.hint


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[str]:
    disk_ = tmp_path / "ro"
    disk_.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(disk_)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"needs the right to mount: {made.stderr.strip()}")
    yield str(disk_)
    subprocess.run(["umount", "-l", str(disk_)], check=True)


def test_a_read_only_project_is_refused_before_anything_else(read_only: str) -> None:
    with pytest.raises(EnvironmentFault, match=r"can't write to .*: the disk is mounted read-only") as caught:
        new_run(read_only)
    assert "copy" in caught.value.hint
    assert list_runs(read_only) == []


def test_a_project_without_the_right_to_write_is_refused() -> None:
    # All imports come first: whom the process becomes may not be able to read this Python.
    code = """
import errno, os, sys
import dagrun.store.proc
from dagrun.errors import EnvironmentFault
from dagrun.store.rundir import new_run
os.setuid(65534)
try:
    new_run(sys.argv[1])
except EnvironmentFault as error:
    print(error.message)
"""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with tempfile.TemporaryDirectory() as folder:  # the folders of tmp_path can't be entered by others
        os.chmod(folder, 0o755)
        out = subprocess.run(
            [sys.executable, "-c", code, folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert out.stdout == f"can't write to {folder}/.dagrun: permission denied\n", out.stderr


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        *((kind, False) for kind in ("ext4", "tmpfs", "overlay", "btrfs", "fuse.fuse-overlayfs")),
        *((kind, True) for kind in ("nfs4", "cifs", "9p", "fuse.sshfs", "fuse")),
    ],
)
def test_network_filesystems_are_refused_by_name(
    project: str, monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool
) -> None:
    monkeypatch.setattr(disk, "filesystem_type", lambda path: kind)
    if not refused:
        new_run(project)
        return
    with pytest.raises(EnvironmentFault, match=f"on a filesystem of type {kind},") as caught:
        new_run(project)
    assert "ln -s" in caught.value.hint
    assert not os.path.exists(f"{project}/.dagrun")


def test_the_type_of_a_filesystem_is_known(tmp_path: Path) -> None:
    assert disk.filesystem_type("/proc") == "proc"
    assert disk.filesystem_type(str(tmp_path)) not in ("", "proc")
    assert disk.filesystem_type(str(tmp_path / "none")) == ""


# ---------------------------------------------------------------- finding


def test_runs_are_listed_newest_first(project: str) -> None:
    made = [begun(project) for _ in range(20)]
    assert list_runs(project) == made[::-1]


def test_no_project_has_no_runs(project: str) -> None:
    assert list_runs(f"{project}/none") == []
    for text in (None, "last", "abcd"):
        with pytest.raises(NotFoundError) as caught:
            find_run(project, text)
        assert "dagrun execute FILE" in caught.value.hint


def test_a_run_that_never_began_is_not_listed(project: str) -> None:
    old = begun(project)
    unborn = new_run(project)
    assert list_runs(project) == [old]
    assert find_run(project, "last") == old
    assert list_runs(project, unstarted=True) == [unborn, old]


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"created":"x"}', b"\xff"])
def test_a_lost_index_is_rebuilt_from_the_journal(project: str, damage: bytes | None) -> None:
    first, second = begun(project), begun(project)
    for run in (first, second):
        if damage is None:
            os.unlink(run.meta)
        else:
            Path(run.meta).write_bytes(damage)
    assert list_runs(project) == [second, first]
    created = json.loads(Path(first.meta).read_text())["created"]
    assert created == first.created_ns()
    assert abs(created / 1e9 - os.stat(first.journal).st_mtime) < 5


def test_a_run_is_found_by_id_prefix_and_last(project: str) -> None:
    r1, r2, r3 = named(project, "r7k2", 1), named(project, "r7x9", 3), named(project, "b0000", 2)
    assert find_run(project, "r7k2") == r1
    assert find_run(project, "R7K") == r1
    assert find_run(project, "b") == r3
    assert find_run(project, "last") == find_run(project, None) == r2
    assert named(project, "r7k2a", 4) == find_run(project, "last")
    assert find_run(project, "r7k2") == r1, "an exact id is never ambiguous"


def test_an_ambiguous_prefix_lists_the_runs(project: str) -> None:
    for n in range(7):
        named(project, f"r7k{n}", n)
    with pytest.raises(NotFoundError, match=r"r7 could be 7 runs: r7k0, r7k1, r7k2, r7k3, r7k4 and 2 more"):
        find_run(project, "r7")


def test_a_wrong_id_gets_a_suggestion(project: str) -> None:
    named(project, "r7k2", 1)
    with pytest.raises(NotFoundError, match="there is no run r7q2") as caught:
        find_run(project, "r7q2")
    assert caught.value.hint == "did you mean r7k2? see your runs: dagrun runs"
    assert caught.value.exit_code == 9


@pytest.mark.parametrize("text", ["", ".", "..", "../runs", "/etc", "r7k2/nodes", "\0", ".trash-r7k2"])
def test_a_path_is_never_a_run(project: str, text: str) -> None:
    named(project, "r7k2", 1)
    with pytest.raises(NotFoundError):
        find_run(project, text)


# ---------------------------------------------------------------- the lock

HOLDER = """
import sys
from dagrun.store.rundir import RunDir
run = RunDir(sys.argv[1], "r7k2")
lock = run.lock({})
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def run(project: str) -> RunDir:
    return named(project, "r7k2", 1)


def start(code: str, run: RunDir) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, run.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_lock_says_who_holds_it_until_released(run: RunDir) -> None:
    assert run.lock_holder() is None
    held = run.lock({"watchdog": None, "note": "x"})
    info = run.lock_holder()
    assert info is not None
    assert info["pid"] == os.getpid()
    assert info["note"] == "x"
    assert {"host", "start_ticks", "boot_id", "argv", "since"} <= info.keys()
    assert not os.get_inheritable(held.fd)
    held.update(watchdog=4711)
    assert (run.lock_holder() or {})["watchdog"] == 4711
    held.release()
    held.release()
    assert run.lock_holder() is None


def test_a_second_engine_is_refused_at_once_naming_the_first(run: RunDir) -> None:
    process = start(HOLDER, run)
    try:
        with pytest.raises(RunLockedError, match=rf"run r7k2 is being executed by pid {process.pid} on \S+ since") as e:
            run.lock({})
        assert e.value.hint == "watch it: dagrun trace follow r7k2"
        with pytest.raises(RunLockedError):
            remove(run)
        assert os.path.exists(run.journal)
    finally:
        end(process)
    run.lock({}).release()


def test_looking_never_disturbs_a_starting_engine(run: RunDir) -> None:
    looker = start("import sys\nfrom dagrun.store.rundir import RunDir\nrun = RunDir(sys.argv[1], 'r7k2')\n"
                   "run.lock({}).release()\nprint('held', flush=True)\nwhile True: run.lock_holder()", run)  # fmt: skip
    try:
        for _ in range(300):
            run.lock({}).release()
    finally:
        end(looker)


# The engine leaves its lock to a child, its watchdog, and dies; the watchdog still has work then.
ORPHAN = """
import os, sys, time
from dagrun.store.rundir import RunDir
lock = RunDir(sys.argv[1], "r7k2").lock({})
end, alive = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(alive)
    os.close(0)
    os.close(1)
    os.read(end, 1)  # until the engine is dead
    time.sleep(0.1)
    os._exit(0)
lock.update(watchdog=pid)
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_lock_whose_engine_died_is_waited_for_not_refused(run: RunDir) -> None:
    process = start(ORPHAN, run)
    try:
        with pytest.raises(RunLockedError):
            run.lock({})
    finally:
        end(process)
    assert run.lock_holder() is not None, "the watchdog holds it now"
    run.lock({}).release()


def test_a_dying_holder_is_not_waited_for_for_ever(run: RunDir) -> None:
    held = run.lock({"pid": 2**22 + 5, "start_ticks": 1})
    with pytest.raises(RunLockedError, match="r7k2"):
        lock.acquire(run.lock_file, run.id, {}, wait_s=0.05)
    held.release()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_busy_lock_with_a_damaged_text_is_still_busy(run: RunDir, text: bytes) -> None:
    held = run.lock({})
    Path(run.lock_file).write_bytes(text)
    assert run.lock_holder() == {"pid": os.getpid()}
    with pytest.raises(RunLockedError, match=f"pid {os.getpid()}"):
        lock.acquire(run.lock_file, run.id, {}, wait_s=0.05)
    held.release()


# ---------------------------------------------------------------- removing


def test_a_removed_run_is_gone_and_cannot_be_locked(run: RunDir, project: str) -> None:
    remove(run)
    assert list_runs(project) == []
    assert os.listdir(f"{project}/.dagrun/runs") == []
    with pytest.raises(NotFoundError):
        run.lock({})


def test_an_interrupted_removal_is_swept(run: RunDir, project: str) -> None:
    os.rename(run.path, f"{project}/.dagrun/runs/.trash-r7k2")
    assert list_runs(project) == []
    assert sweep(project) == 1
    assert sweep(project) == 0


def test_the_ballast_comes_back(run: RunDir) -> None:
    assert run.drop_ballast()
    run.keep_ballast()
    assert run.drop_ballast()


def test_every_error_here_is_one_a_user_can_act_on(run: RunDir) -> None:
    os.unlink(run.journal)
    with pytest.raises(DagrunError, match="No such file"):
        Journal.open(run.journal, write=False)

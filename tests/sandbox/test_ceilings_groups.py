"""Where control groups may be made: what /proc says of v1, v2, containers and delegation, and real groups' ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dagrun.sandbox import cgroup, procs
from dagrun.sandbox.cgroup import Place

V2_LINE = "30 24 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_LINE = "36 31 0:33 {root} {point} rw,relatime - cgroup cgroup rw,{controllers}\n"


class Machine:
    """A /proc that tells of folders below a temporary one."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.mounts = ""
        self.own = ""
        real = cgroup._text

        def text(path: str) -> str:
            return {"/proc/self/mountinfo": self.mounts, "/proc/self/cgroup": self.own}.get(path) or real(path)

        monkeypatch.setattr(cgroup, "_text", text)

    def v2(self, own: str, *, root: str = "/", point: str = "") -> Path:
        top = Path(point or self.base / "v2")
        self.mounts += V2_LINE.format(root=root, point=str(top).replace(" ", "\\040"))
        self.own += f"0::{own}\n"
        return top

    def v1(self, controllers: str, own: str, *, root: str = "/") -> Path:
        point = self.base / controllers
        self.mounts += V1_LINE.format(root=root, point=point, controllers=controllers)
        self.own += f"5:{controllers}:{own}\n"
        return point


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def group(path: Path, controllers: str, passed_on: str = "") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers)
    (path / "cgroup.subtree_control").write_text(passed_on)
    return path


def test_v1_groups_go_below_our_own(machine: Machine) -> None:
    """So that what bounds dagrun bounds its nodes."""
    for names, own in (("memory", "/job/7"), ("pids", "/"), ("cpu,cpuacct", "/job/7")):
        (machine.v1(names, own) / own[1:]).mkdir(parents=True)
    found = cgroup.find_places()
    assert found["memory"] == Place(f"{machine.base}/memory/job/7", 1)
    assert found["pids"] == Place(f"{machine.base}/pids", 1)
    assert found["cpu"] == Place(f"{machine.base}/cpu,cpuacct/job/7", 1)


def test_a_mount_of_a_part_is_seen_relative_to_it(machine: Machine) -> None:
    """In a container the mount shows the container's group and what is below it."""
    (machine.v1("memory", "/docker/abc/inner", root="/docker/abc") / "inner").mkdir(parents=True)
    machine.v1("pids", "/elsewhere", root="/docker/abc").mkdir()
    found = cgroup.find_places()
    assert found["memory"] == Place(f"{machine.base}/memory/inner", 1)
    assert found["pids"] == "its control group can't be seen from here"
    assert found["cpu"] == "the kernel shows no control groups for it"


def test_v2_groups_go_beside_our_own_where_the_group_above_passes_controllers_on(machine: Machine) -> None:
    top = machine.v2("/user.slice/u.service/app.slice/term.scope")
    every = "cpuset cpu io memory pids"
    group(top, every, every)
    group(top / "user.slice", every, "memory pids")
    slice_ = group(top / "user.slice/u.service/app.slice", "memory pids", "memory pids")
    own = group(slice_ / "term.scope", "memory pids")
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").mkdir()  # refuses to be written, as where processes live
    found = cgroup.find_places()
    assert found["memory"] == found["pids"] == Place(str(slice_), 2)
    # A process is in one v2 group: a folder further up, with cpu, would take it out of this one.
    assert found["cpu"] == f"control groups below {slice_} do without it"
    assert (top / "user.slice/cgroup.subtree_control").read_text() == "memory pids"


def test_v2_controllers_are_switched_on_just_above_us_and_no_higher(machine: Machine) -> None:
    top = machine.v2("/a/b/own")
    group(top, "cpu memory pids", "cpu memory pids")
    group(top / "a", "cpu memory pids", "")
    above = group(top / "a/b", "cpu memory pids", "")
    own = group(above / "own", "cpu memory pids")
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").mkdir()
    assert cgroup.find_places()["memory"] == Place(str(above), 2)
    assert (above / "cgroup.subtree_control").read_text().startswith("+")
    assert (top / "a/cgroup.subtree_control").read_text() == ""


def test_v2_without_delegation_says_so(machine: Machine) -> None:
    top = machine.v2("/own")
    group(top, "cpu memory pids", "")
    own = group(top / "own", "cpu memory pids")
    for folder in (top, own):
        (folder / "cgroup.subtree_control").unlink()
        (folder / "cgroup.subtree_control").mkdir()
    found = cgroup.find_places()
    assert set(found.values()) == {"no control group is delegated to this user"}


def test_hybrid_takes_v1_where_the_controllers_are(machine: Machine) -> None:
    (machine.v1("memory", "/")).mkdir()
    group(machine.v2("/"), "hugetlb")
    found = cgroup.find_places()
    assert found["memory"] == Place(f"{machine.base}/memory", 1)
    assert found["pids"] == "the kernel shows no control groups for it"


def test_a_mount_with_a_blank_in_its_path(machine: Machine) -> None:
    top = machine.v2("/a/own", point=f"{machine.base}/with blank")
    group(top / "a", "memory", "memory")
    group(top / "a/own", "memory")
    (top / "a/own/cgroup.subtree_control").unlink()
    assert cgroup.find_places()["memory"] == Place(f"{machine.base}/with blank/a", 2)


def test_a_read_only_place_is_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.v1("memory", "/").mkdir()

    def refuses(path: str, mode: int = 0o777) -> None:
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(os, "mkdir", refuses)
    assert cgroup.find_places()["memory"] == (
        f"no control group can be made in {machine.base}/memory: Read-only file system"
    )


def test_names_tell_who_made_a_group() -> None:
    who = procs.stat(os.getpid())
    assert who is not None
    name = f"dagrun-any-label.x-{cgroup._mark()}"
    assert not cgroup._is_orphaned(name)
    space, pid, ticks, number = name.rpartition("-")[2].split(".")
    assert cgroup._is_orphaned(f"dagrun-any-{space}.{pid}.{int(ticks) + 1}.{number}")  # the pid was reused
    assert not cgroup._is_orphaned(f"dagrun-any-{int(space) + 1}.{pid}.{int(ticks) + 1}.{number}")  # not ours to judge
    for strange in ("dagrun-", "dagrun-x", "dagrun-1.2.3", "dagrun-x-1.2.3.x", "dagrun-x-1.2.3.4\n"):
        assert not cgroup._is_orphaned(strange)


def test_a_v2_group_is_killed_and_removed_with_what_is_below_it() -> None:
    """The unified hierarchy of this machine, without controllers: ends are the same."""
    tops = [m.point for m in cgroup._mounts() if m.version == 2 and os.access(m.point, os.W_OK)]
    if not tops:
        pytest.skip("no v2 hierarchy that this user may write to")
    folder = f"{tops[0]}/dagrun-test-{cgroup._mark()}"
    os.mkdir(folder)
    os.mkdir(f"{folder}/below")
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    try:
        for sleeper, where in zip(sleepers, ("", "", "/below")):
            cgroup._write(f"{folder}{where}/cgroup.procs", str(sleeper.pid))
        assert cgroup._remove(folder, 5.0)
        assert [sleeper.wait(5) for sleeper in sleepers] == [-9, -9, -9]
        assert not os.path.exists(folder)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()

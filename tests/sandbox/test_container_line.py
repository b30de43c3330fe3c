"""A Spec as the arguments of `run`. No engine: mounts are real folders."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dagrun.sandbox import container_mounts
from dagrun.sandbox.container_cli import DIALECTS
from dagrun.sandbox.container_files import make_folder
from dagrun.sandbox.container_line import Image, Line, container_name, folder_label, line_of
from dagrun.sandbox.container_mounts import Prepared, prepare
from dagrun.sandbox.container_script import WRAPPER, exports, gate
from dagrun.sandbox.container_seccomp import profile
from dagrun.sandbox.container_user import can_use, user_of
from dagrun.sandbox.wall import Bounds, Refused, Spec


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    for name in ("in", "out/.git/hooks", ".dagrun/run"):
        (tmp_path / "project" / name).mkdir(parents=True)
    project = str(tmp_path / "project")
    return Spec(
        attempt_id="r/n/3",
        run_id="r",
        run_dir=f"{project}/.dagrun/run",
        node="n",
        argv=("prog", "--word"),
        env={},
        cwd=project,
        project=project,
        level="container",
        read=(".",),
        write=("out",),
        hidden=(f"{project}/.dagrun",),
        image="img",
    )


@pytest.fixture
def folder(spec: Spec) -> str:
    made = Path(spec.run_dir) / "containers" / "c"
    made.mkdir(parents=True)
    return str(made)


@pytest.fixture
def prepared(spec: Spec, folder: str) -> Iterator[Prepared]:
    made = prepare(spec, folder)
    yield made
    made.close()


def line(spec: Spec, prepared: Prepared, folder: str, image: Image | None = None, engine: str = "docker") -> Line:
    dialect = DIALECTS["podman" if engine == "podman" else "docker"]
    return line_of(dialect, spec, image or Image("img"), prepared, name="c", folder=folder)


def test_nothing_is_left_to_the_defaults_of_an_engine(spec: Spec, prepared: Prepared, folder: str) -> None:
    words = line(spec, prepared, folder, Image("img", shell=False)).arguments
    for word in (
        *("--init", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only"),
        *("--ipc=private", "--cgroupns=private", "--pull=never", "--log-driver=none", "--no-healthcheck"),
        *("--pids-limit=513", "--ulimit=core=0:0", "--entrypoint=prog"),
    ):
        assert word in words, word
    assert words[-2:] == ("img", "--word")
    assert not any(word.startswith("--user=0") for word in words)
    assert not any(word.startswith(("-v", "--volume", "-e", "--env=", "--privileged")) for word in words)


def test_mounts_are_the_grants_and_outer_ones_come_first(spec: Spec, prepared: Prepared, folder: str) -> None:
    project = spec.project
    words = line(spec, prepared, folder).arguments
    mounts = [word.removeprefix("--mount=") for word in words if word.startswith("--mount=")]
    places = [w.split("destination=")[1].split(",")[0] for w in mounts]
    assert places == [project, *[f"{project}/{name}" for name in (".dagrun", "out", "out/.git", "out/.git/hooks")]]
    assert [w.endswith(",readonly") for w in mounts] == [True, True, False, False, True]
    assert mounts[1].startswith(f"type=bind,source={folder}/empty")


def test_without_declared_paths_the_project_is_read_only(spec: Spec, folder: str) -> None:
    made = prepare(replace(spec, read=None, write=()), folder)
    assert [(m.path, m.writable) for m in made.mounts] == [(spec.project, False), (f"{spec.project}/.dagrun", False)]
    made.close()


def test_what_is_mounted_below_a_read_only_grant_is_read_only_too(
    spec: Spec, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = f"{spec.project}/in"
    monkeypatch.setattr(container_mounts, "_mount_points", lambda: ["/", inner, "/elsewhere"])
    made = prepare(spec, folder)
    assert (inner, False) in [(m.path, m.writable) for m in made.mounts]
    made.close()


def test_what_is_mounted_in_a_folder_to_write_stays_writable(
    spec: Spec, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = f"{spec.project}/out/disk"
    monkeypatch.setattr(container_mounts, "_mount_points", lambda: [inner])
    made = prepare(replace(spec, read=(".",), write=("out",)), folder)
    assert inner not in [m.path for m in made.mounts]
    made.close()


def test_what_is_mounted_in_a_denied_folder_does_not_come_to_light(
    spec: Spec, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = f"{spec.project}/in/closed/disk"
    os.makedirs(inner)
    monkeypatch.setattr(container_mounts, "_mount_points", lambda: [inner])
    made = prepare(replace(spec, read=("in",), deny=("in/closed",)), folder)
    paths = [m.path for m in made.mounts]
    assert f"{spec.project}/in/closed" in paths
    assert inner not in paths
    made.close()


def test_mount_points_are_read_with_their_escapes() -> None:
    assert "/proc" in container_mounts._mount_points()


def test_limits_become_options(spec: Spec, prepared: Prepared, folder: str) -> None:
    bounds = Bounds(memory_bytes=64 << 20, pids=7, cpu=0.5, file_size_bytes=4096)
    words = line(replace(spec, bounds=bounds), prepared, folder).arguments
    memory = ("--memory=67108864", "--memory-swap=67108864")
    for word in (*memory, "--pids-limit=9", "--cpus=0.50", "--ulimit=fsize=4096:4096"):
        assert word in words, word
    # Without a shell in the image nobody stands beside the init process.
    bare = line(replace(spec, bounds=bounds), prepared, folder, Image("img", "sha256:1", shell=False)).arguments
    assert "--pids-limit=8" in bare


def test_a_list_of_hosts_has_no_network_and_a_door(spec: Spec, prepared: Prepared, folder: str) -> None:
    """What it waits at is mounted from the folder that it can't reach, and the variables name the proxy."""
    found = line(replace(spec, network=("example.org",)), prepared, folder)
    assert "--network=none" in found.arguments
    for name in ("up", "go"):
        mount = f"--mount=type=bind,source={folder}/{name},destination=/run/dagrun.{name},readonly"
        assert mount in found.arguments
    assert b"HTTPS_PROXY=http://127.0.0.1:3128\n" in found.files["env"]
    plain = line(spec, prepared, folder)
    assert b"PROXY" not in plain.files["env"]
    assert not [word for word in plain.arguments if "dagrun.go" in word]


def test_variables_come_in_files_and_secrets_in_one_of_their_own(spec: Spec, prepared: Prepared, folder: str) -> None:
    given = replace(spec, env={"A": "x", "S": "geheim", "M": "a\nb"}, secret_env=frozenset({"S"}))
    made = line(given, prepared, folder, Image("img", "sha256:1", True))
    assert made.files["env"] == b"A=x\nHOME=/tmp\nTMPDIR=/tmp\nTINI_KILL_PROCESS_GROUP=1\n"
    assert b"geheim" in made.files["secret"]
    assert "geheim" not in " ".join(made.arguments)
    assert f"--mount=type=bind,source={folder}/secret,destination=/run/dagrun.env,readonly" in made.arguments
    assert "sha256:1" in made.arguments
    assert "img" not in made.arguments, "by its id: a tag may have moved"


def test_podman_gets_odd_values_the_safe_way(spec: Spec, prepared: Prepared, folder: str) -> None:
    given = replace(spec, env={"A": "plain value", "J": '{"a": "b"}', "H": "#x", "E": ""})
    made = line(given, prepared, folder, Image("img", "", True), "podman")
    assert b"A=plain value\n" in made.files["env"]
    assert b"E=\n" in made.files["env"]
    assert b"J=" not in made.files["env"]
    assert b"export J=" in made.files["secret"]


@pytest.mark.parametrize("name", ["A B", "A=B", "1A", "", "A\n", "BASH_FUNC_x%%"])
def test_odd_names_of_variables_are_refused(spec: Spec, prepared: Prepared, folder: str, name: str) -> None:
    with pytest.raises(Refused):
        line(replace(spec, env={name: "x"}), prepared, folder)


def test_an_empty_command_is_refused(spec: Spec, prepared: Prepared, folder: str) -> None:
    for argv in ((), ("",)):
        with pytest.raises(Refused):
            line(replace(spec, argv=argv), prepared, folder)


def test_names_are_new_each_time_and_fit(spec: Spec) -> None:
    first, second = container_name(spec), container_name(spec)
    assert first != second
    assert first.startswith("dagrun-r-n-3-")
    odd = container_name(replace(spec, node="x" * 300, run_id="a b/[c]", attempt_id="a/b/[0]"))
    assert len(odd) < 128
    assert all(c.isalnum() or c in "._-" for c in odd)


def test_labels_do_not_tell_where_a_run_is(spec: Spec) -> None:
    assert "project" not in folder_label(spec.run_dir)
    assert folder_label(spec.run_dir) == folder_label(spec.run_dir + "/.")
    assert folder_label(spec.run_dir) != folder_label(spec.project)


# ---------------------------------------------------------------- who it runs as


def test_root_runs_as_the_first_owner_who_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert user_of("", []) == (65534, 65534)
    assert user_of("", [(0, 0), (12, 0), (13, 13)]) == (12, 12)
    assert user_of("7:8", [(12, 12)]) == (7, 8)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 100)
    assert user_of("", [(12, 12)]) == (1000, 100)
    assert user_of("1000", []) == (1000, 100)
    assert user_of("5", []) == (5, 5)


def test_who_can_not_use_a_grant_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o751)
    fd = os.open(tmp_path, os.O_PATH)
    me, group = os.getuid(), os.getgid()
    assert can_use("p", fd, (me, group), write=True) == ""
    assert "can't write" in can_use("p", fd, (me + 1, group), write=True)
    assert can_use("p", fd, (me + 1, group), write=False) == ""
    assert "can't read" in can_use("p", fd, (me + 1, group + 1), write=False)
    os.close(fd)


# ---------------------------------------------------------------- scripts


def test_the_texts_are_shell() -> None:
    for text in (WRAPPER, gate([("/a b", (1, 2)), ("/$x", (3, 4))], secrets=True, hush=("X",))):
        done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("change", "code"), [(0, 0), (1, 125)])
def test_the_gate_lets_only_the_same_things_pass(tmp_path: Path, change: int, code: int) -> None:
    paths = [tmp_path / name for name in ("a b", "$(touch x)", "*")]
    for path in paths:
        path.mkdir()
    known = [(str(p), (p.stat().st_dev, p.stat().st_ino + change * (n == 2))) for n, p in enumerate(paths)]
    known.append((str(tmp_path / "nobody may look at it"), (1, 1)))
    words = ["sh", "-c", gate(known, secrets=False), "dagrun", "echo", "passed"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == ("passed\n" if code == 0 else "")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("value", ["", "'", "a'b\"c", "$(touch x)", "`touch x`", "\n\n", "\\", "!x", "é"])
def test_exported_values_are_values(tmp_path: Path, value: str) -> None:
    (tmp_path / "file").write_text(exports([("V", value)]))
    done = subprocess.run(
        ["sh", "-c", '. ./file; printf %s "$V"'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == value
    assert not (tmp_path / "x").exists()


def test_the_filter_of_an_older_version_is_not_used_again(tmp_path: Path) -> None:
    rules = tmp_path / "containers" / "seccomp.json"
    make_folder(str(tmp_path), "one")
    rules.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    make_folder(str(tmp_path), "two")
    assert rules.read_bytes() == profile()


def test_the_filter_knows_no_unix_sockets_and_no_mounts() -> None:
    rules = json.loads(profile())
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in rules["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    for name in "mount umount2 setns unshare ptrace bpf keyctl add_key perf_event_open io_uring_setup".split():
        assert name not in allowed
    families = {rule["args"][0]["value"] for rule in rules["syscalls"] if rule["names"] == ["socket"]}
    assert families == {2, 10, 16}
    pairs = {rule["args"][0]["valueTwo"] for rule in rules["syscalls"] if rule["names"] == ["socketpair"]}
    assert pairs == {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}
    for rule in rules["syscalls"]:
        if {"chmod", "mknod", "clone", "open", "socket", "socketpair", "personality"} & set(rule["names"]):
            assert rule["args"]

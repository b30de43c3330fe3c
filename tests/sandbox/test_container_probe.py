"""What an engine is believed: a command that ignores or adds an option shows as a cross."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dagrun.sandbox.container import Container
from dagrun.sandbox.container_canary import CANARY, claimed, judged
from dagrun.sandbox.container_cli import Cli, Unreachable, plain_words
from dagrun.sandbox.wall import GUARANTEES
from tests.images import BARE, need_image

from .conftest import until
from .container_rig import ask

LISTS = "net.allowlist"  # tried apart: test_container_hosts.py


def _crosses(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, image: str) -> set[str]:
    """What is not proved with a `docker` that is this script; $DOCKER is the real one."""
    fake = folder / "docker"
    fake.write_text(f"#!/bin/sh\nDOCKER={shutil.which('docker')}\n{text}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    wall = Container("docker", lambda pid: None)
    wall.prefer(image)
    proved = wall.proved()
    return {str(name) for name in GUARANTEES if name != LISTS and proved[name]}


DROP = """for word do shift; case $word in {pattern}) ;; *) set -- "$@" "$word" ;; esac; done; exec "$DOCKER" "$@" """
ADD = """if [ "$1" = run ]; then shift; set -- run {words} "$@"; fi; exec "$DOCKER" "$@" """
WRITABLE = """for word do shift; set -- "$@" "${word%,readonly}"; done; exec "$DOCKER" "$@" """


@pytest.mark.docker
@pytest.mark.parametrize(
    ("text", "crossed"),
    [
        ('exec "$DOCKER" "$@"', set()),
        (DROP.format(pattern="--network=none"), {"net.none"}),
        (DROP.format(pattern="--cap-drop=ALL"), {"caps"}),
        (DROP.format(pattern="--security-opt=no-new-privileges"), {"caps"}),
        (DROP.format(pattern="--security-opt=seccomp=*"), {"caps", "unix"}),
        (DROP.format(pattern="--memory*"), {"mem"}),
        (DROP.format(pattern="--pids-limit=*"), {"pids"}),
        (DROP.format(pattern="--cpus=*"), {"cpu"}),
        (DROP.format(pattern="--ulimit=fsize=*"), {"fsize"}),
        (WRITABLE, {"fs.write", "fs.protected"}),
        (ADD.format(words="--pid=host"), {"proc.hide", "proc.signal", "kill.tree"}),
        (ADD.format(words="-e STRANGER=1"), {"env"}),
        (ADD.format(words="-v /tmp:/tmp"), {"fs.read", "fs.meta"}),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_an_option_that_is_not_held_is_a_cross(
    text: str, crossed: set[str], docker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "/tmp" in text:
        text = text.replace("/tmp:/tmp", f"{os.path.realpath(os.environ.get('TMPDIR', '/tmp'))}:/tmp")
        text = text.replace('exec "$DOCKER"', DROP.format(pattern="--tmpfs=*"))
    found = _crosses(monkeypatch, tmp_path, text, docker)
    assert found >= crossed
    assert crossed or not found


@pytest.mark.docker
def test_a_command_that_runs_it_without_a_container_proves_nothing_that_matters(
    docker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
    [ "$1" = run ] || exec "$DOCKER" "$@"
    while [ "$1" != -c ]; do shift; done
    exec sh "$@" """
    crosses = _crosses(monkeypatch, tmp_path, text, docker)
    assert crosses >= {"fs.read", "fs.meta", "net.none", "ipc", "proc.hide", "proc.signal", "caps", "unix", "mem"}


@pytest.mark.docker
def test_an_engine_that_lies_about_nothing_is_believed_in_an_image_without_a_shell(
    docker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = need_image("docker", BARE)
    assert _crosses(monkeypatch, tmp_path, 'exec "$DOCKER" "$@"', bare) == set()
    for pattern, name in (("--network=none", "net.none"), ("--read-only", "fs.write"), ("--memory*", "mem")):
        assert name in _crosses(monkeypatch, tmp_path, DROP.format(pattern=pattern), bare)


@pytest.mark.docker
def test_without_any_image_the_engine_is_asked_what_it_would_do(
    docker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """case "$1$2" in imagels) exit 0 ;; esac; exec "$DOCKER" "$@" """
    assert _crosses(monkeypatch, tmp_path, text, "dagrun-test-none:1") == set()


@pytest.mark.docker
def test_a_trial_that_is_killed_leaves_no_container(docker: str, tmp_path: Path) -> None:
    fake = tmp_path / "docker"
    fake.write_text(f'#!/bin/sh\n[ "$1" != run ] || touch {tmp_path}/run\nexec {shutil.which("docker")} "$@"\n')
    fake.chmod(0o755)
    text = f"""if 1:
        from dagrun.sandbox.container import Container
        wall = Container("docker", print)
        wall.prefer({docker!r})
        wall.proved()
    """
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    trial = subprocess.Popen([sys.executable, "-c", text], env=env, start_new_session=True)
    names: set[str] = set()

    def mine() -> bool:
        names.update(_canaries(trial.pid))
        return bool(names) or trial.poll() is not None

    until(mine, "a test container")
    os.killpg(trial.pid, signal.SIGKILL)
    trial.wait()
    until(lambda: not _canaries(trial.pid), "the test container is gone")
    assert names, "control: there was one"


def _canaries(pid: int) -> set[str]:
    """The test containers of one process."""
    words = ["ps", "-a", f"--filter=label=dagrun.attempt=canary/canary/{pid}", "--format={{.Names}}"]
    return set(ask("docker", *words).split())


@pytest.mark.docker
def test_every_image_is_looked_into_before_it_is_used(docker: str) -> None:
    bare = need_image("docker", BARE)
    ask("docker", "tag", docker, "dagrun-test-other:1")
    wall = Container("docker", lambda pid: None)
    wall.prefer(docker)
    wall.proved()
    for name, shell in (("dagrun-test-other:1", True), (bare, False)):
        assert wall._probe.image(name).shell is None
        assert wall.check_image(name, "never") == ""
        assert wall._probe.image(name).shell is shell
    ask("docker", "rmi", "dagrun-test-other:1")


def test_a_daemon_that_hangs_costs_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagrun.sandbox.container_cli.ASK_S", 0.5)
    monkeypatch.setattr(Cli.ask, "__kwdefaults__", {"timeout_s": 0.5, "config": ""})
    monkeypatch.setattr(Cli, "_docker_endpoint", lambda self: "unix:///x")
    before = time.monotonic()
    assert _crosses(monkeypatch, tmp_path, "exec sleep 60", "x") == set(GUARANTEES) - {LISTS}
    assert time.monotonic() - before < 10


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"DOCKER_HOST": "tcp://10.0.0.1:2375"}, "another machine"),
        ({"DOCKER_HOST": "ssh://user@host"}, "another machine"),
        ({"DOCKER_HOST": "unix:///nowhere/docker.sock"}, "does not run"),
        ({"PATH": "/nowhere"}, "not installed"),
    ],
)
def test_each_way_of_not_reaching_it_has_its_own_words(env: dict[str, str], words: str) -> None:
    cli = Cli("docker", {"PATH": os.environ["PATH"], **env})
    with pytest.raises(Unreachable, match=words):
        if "PATH" in env:
            assert cli.program
        cli.env()


def test_a_socket_that_is_not_for_us_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def closed(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", closed)
    with pytest.raises(Unreachable, match="usermod -aG docker"):
        Cli("docker", {"PATH": os.environ["PATH"]}).endpoint()


def test_podman_elsewhere_is_refused() -> None:
    with pytest.raises(Unreachable, match="CONTAINER_HOST"):
        Cli("podman", {"PATH": "/bin", "CONTAINER_HOST": "ssh://x"}).endpoint()


def test_a_context_of_another_machine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"currentContext": "no-such-context"}')
    with pytest.raises(Unreachable, match="no-such-context"):
        Cli("docker", {"PATH": os.environ["PATH"], "DOCKER_CONFIG": str(tmp_path)}).endpoint()


def test_only_settings_of_the_engine_reach_its_command(tmp_path: Path) -> None:
    given = {"PATH": "/bin", "HOME": "/h", "LD_PRELOAD": "x", "GODEBUG": "y", "DOCKER_CONFIG": str(tmp_path)}
    cli = Cli("docker", given)
    cli._endpoint = "unix:///s"
    assert cli.env() == {"PATH": "/bin", "HOME": "/h", "DOCKER_CONFIG": str(tmp_path)}
    assert cli.env("/empty") == {"PATH": "/bin", "HOME": "/h", "DOCKER_CONFIG": "/empty", "DOCKER_HOST": "unix:///s"}


# ---------------------------------------------------------------- words


def test_a_canary_that_does_not_end_proves_nothing() -> None:
    assert all(judged("ok fs.read\nok caps\n", []).values())


def test_what_the_canary_does_not_name_is_not_proved() -> None:
    found = judged("ok fs.read\nno net.none it has a network\nenv DAGRUN_CANARY=1\nend\n", [])
    assert found["fs.read"] == ""
    assert found["net.none"] == "it has a network"
    assert found["caps"] == "not tried"
    assert found["env"] == ""
    assert judged("env DAGRUN_CANARY=1\nenv SECRET=1\nend\n", [])["env"].endswith("SECRET")
    assert judged("env DAGRUN_CANARY=1\nenv SECRET=1\nend\n", ["SECRET"])["env"] == ""
    assert judged("end\n", [])["env"] == "the given environment does not arrive"


def test_the_canary_tries_every_guarantee() -> None:
    for name in set(GUARANTEES) - {LISTS, "env"}:
        assert name in CANARY


def test_claims_of_nothing_prove_nothing() -> None:
    assert all(claimed({}).values())


def test_words_of_an_engine_are_one_printable_line() -> None:
    assert plain_words("docker: Error response from daemon: no\n  such\x1b[31m thing.") == "no such?[31m thing"

"""A Docker daemon that dies while a container runs: the attempt is lost, not failed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.sandbox.base import Child
from dagrun.sandbox.wall import Launch
from tests import images

from .conftest import readable, until
from .container_rig import Rig

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a daemon of its own"),
]


class Daemon:
    """A Docker daemon of this test alone, which may be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        places = [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid"]
        words = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs"]
        (self.folder / "pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            # A network of its own: a daemon without a bridge removes that of the machine's daemon.
            self.process = subprocess.Popen(
                ["unshare", "-n", "dockerd", f"--host=unix://{self.socket}", *places, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def answers(self) -> bool:
        env = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}"}
        return subprocess.run(["docker", "version"], env=env, capture_output=True, check=False).returncode == 0

    def kill(self) -> None:
        """As a machine short of memory would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def daemon(docker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    if shutil.which("dockerd") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have dockerd: apt install docker.io")
        pytest.skip("dockerd is not installed")
    # Short, as its sockets are below it, and the path of a socket has 107 bytes at most.
    made = Daemon(Path(tempfile.mkdtemp(prefix="dagrun-dd-", dir="/tmp")))
    try:
        made.start()
        until(made.answers, "a daemon that answers")
        monkeypatch.setenv("DOCKER_HOST", f"unix://{made.socket}")
        images._make.cache_clear()
        images.need_image("docker", docker)
        yield made
    finally:
        monkeypatch.undo()
        images._make.cache_clear()
        _clear(made)


def _clear(daemon: Daemon) -> None:
    """End the daemon, its helpers and its mounts, whatever state the test left them in."""
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.process.wait(20)
    for _ in range(50):
        pids = _pids_of(daemon.folder)
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    for point in sorted({line.split()[4] for line in mounts if str(daemon.folder) in line.split()[4]}, reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    shutil.rmtree(daemon.folder, ignore_errors=True)


def _pids_of(folder: Path) -> list[int]:
    """Processes that have the folder of the daemon in their command line: containerd, its shims."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.fsencode(folder) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture
def rig(daemon: Daemon, docker: str, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, "docker", docker)
    assert daemon.process is not None
    made.plain.exempt(daemon.process.pid)
    yield made
    made.wall._left.clear()  # nobody can be asked any more
    made.close()


def _running(rig: Rig) -> tuple[Launch, Child]:
    launch, child = rig.start(rig.spec("sh", "-c", "echo ready; sleep 1000"))
    until(lambda: "ready" in rig.said() or readable(child.pidfd, 0), "ready")
    return launch, child


def test_a_daemon_that_dies_loses_the_attempt(rig: Rig, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, child = _running(rig)
    daemon.kill()
    assert readable(child.pidfd, 30)
    rig.plain.sweep(child)
    ended = rig.plain.reap(child)
    after = rig.wall.ended(launch, ended)
    assert after.outcome == "lost", (ended, after)
    assert "went away" in after.error
    monkeypatch.setattr(Rig, "names", lambda self: set())


def test_a_daemon_that_does_not_answer_does_not_keep_an_attempt_alive(
    rig: Rig, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagrun.sandbox.container._PATIENCE_S", 1.0)
    launch, child = _running(rig)
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        end = time.monotonic() + 20
        while not readable(child.pidfd, 0.1):
            rig.wall.kill(launch, child)
            assert time.monotonic() < end, "the attempt outlives the patience with its daemon"
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
    rig.plain.sweep(child)
    rig.wall.ended(launch, rig.plain.reap(child))
    assert len(rig.names()) <= 1
    rig.wall.close()
    assert rig.names() == set()


def test_a_daemon_that_does_not_answer_does_not_keep_a_session_alive(
    rig: Rig, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it keeps is swept at the next start."""
    monkeypatch.setattr("dagrun.sandbox.container._PATIENCE_S", 1.0)
    launch, child = _running(rig)
    (name,) = rig.names()
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        while not readable(child.pidfd, 0.1):
            rig.wall.kill(launch, child)
        rig.plain.sweep(child)
        rig.wall.ended(launch, rig.plain.reap(child))
        began = time.monotonic()
        rig.wall.close()
        assert time.monotonic() - began < 15  # one question that it leaves unanswered, not three
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
    assert rig.wall.sweep(str(rig.run_dir)) in ([name], [])  # what was asked of it before may reach it now
    assert rig.names() == set()


def test_an_attempt_while_the_daemon_is_down_is_told_from_one_that_it_left(rig: Rig, daemon: Daemon) -> None:
    rig.wall.check_image(rig.image, "never")  # it was there once
    daemon.kill()
    ended, after = rig.end(*rig.start(rig.spec("true")))
    assert ended.code == 125
    assert after.outcome == "lost"
    assert after.error.startswith("the engine does not answer, so nothing was started: Cannot connect")
    rig.names = set  # type: ignore[method-assign]

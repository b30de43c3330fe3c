"""What all tests share: Hypothesis never fails a test because the machine is busy, and Docker is there in CI."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import docker_daemon
from tests.images import SHELL, need_image

settings.register_profile("dagrun", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dagrun")

ROOT = Path(__file__).parents[1]
THREADS_END_S = 20.0
_STARTED = pytest.StashKey[int]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """In CI, start a Docker daemon where none answers."""
    session.config.stash[_STARTED] = docker_daemon.start_if_missing()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the daemon that was started here."""
    docker_daemon.stop(session.config.stash.get(_STARTED, 0))


@pytest.fixture(autouse=True)
def same_folder() -> Iterator[None]:
    """Every test begins in the project's folder, wherever the one before went."""
    yield
    os.chdir(ROOT)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """A test ends the threads that it started: one that goes on is counted, and closes things, in another test."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + THREADS_END_S
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, end - time.monotonic()))
        assert not thread.is_alive(), f"the test left a thread behind: {thread}"


@pytest.fixture(scope="session")
def docker() -> str:
    """An image with busybox in a Docker that answers; skips without one, but fails in CI."""
    if not docker_daemon.answers():
        if os.environ.get("CI"):
            pytest.fail("CI must have a Docker daemon: apt install docker.io, and run the tests as root")
        pytest.skip("no Docker daemon answers this user")
    return need_image("docker", SHELL)


@pytest.fixture(scope="session")
def podman() -> str:
    """An image with busybox in Podman; fails in CI without it, skips where it can't run anything at all."""
    image = need_image("podman", SHELL)
    words = ["run", "--rm", "--network=none", "--ulimit=nproc=1024:1024", "--ulimit=nofile=1024:1024", image, "true"]
    done = subprocess.run(["podman", *words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"Podman can't run a container here: {done.stderr.strip()[-200:]}")
    return image

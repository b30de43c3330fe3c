"""What all tests share: Hypothesis never fails a test because the machine is busy, and Docker is there in CI.

And no time is lost: nothing is compiled twice, and the files that take longest do not come last.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
# The files that take longest, longest first, for workers that take a file at a time: begun last, one would
# keep one of them at work while all others have nothing left to do. A file that is missing here costs only time.
LONGEST = (
    "escapes/test_escapes.py",
    "engine/test_kill.py",
    "engine/test_budget.py",
    "engine/test_agent_hostile.py",
    "engine/test_agents.py",
    "engine/test_live_runs.py",
    "engine/test_injection.py",
    "engine/test_replanner.py",
    "cli/test_replan.py",
    "engine/test_secrets_hunt.py",
    "sandbox/test_container.py",
    "sandbox/test_container_escapes.py",
    "test_workflows.py",
    "engine/test_mcpremote.py",
    "engine/test_confined.py",
    "engine/test_faults.py",
    "agent/test_broker.py",
    "test_docs.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Every start of the program reads compiled modules, and its `python3` is none that first looks for a version."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests
    # Hundreds of processes are started here: each would compile all of dagrun anew where this is set.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ["PATH"] = _without_shims(os.environ.get("PATH", os.defpath))


def _without_shims(path: str) -> str:
    """PATH without the folders whose python3 is a script that chooses a version; as it is, where there is no other."""
    folders = [folder for folder in path.split(os.pathsep) if not _is_script(Path(folder, "python3"))]
    kept = os.pathsep.join(folders)
    return kept if shutil.which("python3", path=kept) else path


def _is_script(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(2) == b"#!"
    except OSError:
        return False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest where several are made at once."""
    if hasattr(config, "workerinput"):
        rank = {str(ROOT / "tests" / name): place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(str(item.path), len(rank)))


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

"""The lanes in which attempts are played, each made once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from .image import image as make_image
from .lanes import Lane, inside_a_container, ordinary_user

IN_CI = bool(os.environ.get("CI"))


def absent(what: str) -> None:
    """Skip where something is not installed; in CI that is a failure."""
    if IN_CI:
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"needs {what}")


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "version"], capture_output=True, timeout=60).returncode == 0


@pytest.fixture(scope="session")
def image() -> str:
    """An image with the Python of the tests."""
    if not _docker_answers():
        absent("a Docker daemon that this user may use")
    return make_image()


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Lane:
    """As whoever runs the tests."""
    return Lane("own", str(tmp_path_factory.mktemp("own")))


@pytest.fixture(scope="session")
def user() -> Iterator[Lane]:
    """As an ordinary user."""
    if os.geteuid() != 0:
        pytest.skip("whoever runs the tests is an ordinary user: lane `own`")
    from pathlib import Path
    from tempfile import mkdtemp

    base = Path(mkdtemp(prefix="dagrun-user-", dir="/tmp"))
    base.chmod(0o755)
    yield ordinary_user(base / "lane")
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def landlock(image: str) -> Iterator[Lane]:
    """Inside a container, where only Landlock works."""
    with inside_a_container(image) as lane:
        yield lane


@pytest.fixture(scope="session")
def ticks() -> dict[tuple[str, str], dict[str, str]]:
    """What doctor has ticked so far, by lane and level."""
    return {}

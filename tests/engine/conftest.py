"""A project for each test of the engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .space import Space


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    yield from _space(tmp_path)


@pytest.fixture
def reachable() -> Iterator[Space]:
    """A project that every user can reach; not below pytest's folder, which each new session shuts to others."""
    folder = Path(tempfile.mkdtemp(prefix="dagrun-open-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield from _space(folder)
    finally:
        shutil.rmtree(folder)


def _space(above: Path) -> Iterator[Space]:
    folder = above / "project"
    folder.mkdir()
    made = Space(folder)
    yield made
    for process in made.processes:
        if process.alive():
            break
    else:
        made.check()
    made.close()

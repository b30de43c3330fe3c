"""A project for each test of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .space import Space


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    folder = tmp_path / "project"
    folder.mkdir()
    made = Space(folder)
    yield made
    for process in made.processes:
        if process.alive():
            break
    else:
        made.check()
    made.close()

"""Every example in workflows/ runs and ends as it says; what waits for a human's file gets it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(p.name for p in (ROOT / "workflows").glob("*.yaml"))
ENDS = {"alternative.yaml": 1, "repair.yaml": 1, "review.yaml": 4}  # mended with the patches beside them
OPENED = {"add-scan.yaml": "build/shop/window", "repair.yaml": "build/repair/dump.ready"}


def dagrun(folder: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "CI": "true", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "dagrun", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows")
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_ends_as_it_says(project: Path, name: str) -> None:
    process = dagrun(project, "execute", f"workflows/{name}", "--ui", "log")
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if name in OPENED and any(f"start   {node}" in line for node in ("window", "dump")):
            (project / OPENED[name]).touch()
    assert process.wait(60) == ENDS.get(name, 0), "".join(seen)


def test_all_examples_are_valid_and_say_what_they_show(project: Path) -> None:
    process = dagrun(project, "validate", "--strict", *(f"workflows/{name}" for name in EXAMPLES))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert len(out.splitlines()) == len(EXAMPLES)

"""Every example in workflows/ runs and ends as it says; what waits for a human's file gets it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(p.name for p in (ROOT / "workflows").glob("*.yaml"))
ENDS = {"alternative.yaml": 1, "repair.yaml": 1, "review.yaml": 4}  # mended with the patches beside them
OPENED = {"add-scan.yaml": "build/shop/window", "repair.yaml": "build/repair/dump.ready"}
HARMLESS = ("read a file outside", "change its own input", "read the journal", "see other processes")
IMAGE = "busybox:stable"  # of untrusted.yaml


def dagrun(folder: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "CI": "true", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "dagrun", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows")
    return tmp_path


def absent(what: str) -> NoReturn:
    """Skip where something is not installed; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def busybox() -> str:
    """The image of untrusted.yaml, made of this machine's busybox where it is not there."""
    if shutil.which("docker") is None or _docker("version").returncode != 0:
        absent("a Docker daemon that this user may use")
    if _docker("image", "inspect", IMAGE).returncode == 0:
        return IMAGE
    program = shutil.which("busybox")
    if program is None:
        absent("a statically linked busybox: apt install busybox-static")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.add(os.path.realpath(program), "bin/busybox")
        applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for name in applets:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(link)
        shadow = tarfile.TarInfo("etc/shadow")
        shadow.size, shadow.mode = 9, 0o600
        tar.addfile(shadow, io.BytesIO(b"root:*:::"))
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    done = subprocess.run(["docker", "import", "-", IMAGE], input=made.getvalue(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return IMAGE


def _docker(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["docker", *words], capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.docker) if n == "untrusted.yaml" else n for n in EXAMPLES]
)
def test_an_example_ends_as_it_says(project: Path, name: str, request: pytest.FixtureRequest) -> None:
    if name == "untrusted.yaml":
        request.getfixturevalue("busybox")
    if name == "confined.yaml" and shutil.which("bwrap") is None:
        absent("bubblewrap")
    process = dagrun(project, "execute", f"workflows/{name}", "--ui", "log")
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if name in OPENED and any(f"start   {node}" in line for node in ("window", "dump")):
            (project / OPENED[name]).touch()
    assert process.wait(60) == ENDS.get(name, 0), "".join(seen)
    if name in ("untrusted.yaml", "confined.yaml"):
        _tried_to_get_out(project)


def _tried_to_get_out(project: Path) -> None:
    """Each try was made, and none got through."""
    log = next(project.glob(".dagrun/runs/*/nodes/stranger.1.out")).read_text().splitlines()
    assert len(log) >= 7
    assert [line for line in log if not line.startswith("stopped: ")] == []


@pytest.mark.parametrize("name", ["untrusted.yaml", "confined.yaml"])
def test_without_walls_the_same_code_gets_out(project: Path, name: str) -> None:
    """The control: what the examples show is not an accident of their commands.

    It really runs on this machine, so only what reads and what writes to the project is tried.
    """
    lines = (project / "workflows" / name).read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if "      try '" not in line or line.split("'")[1] in HARMLESS)
    start = text.index("    permissions:\n")
    text = text[:start] + text[text.index("    run: |\n      awk") :]
    (project / "workflows" / name).write_text(text.replace("isolation: container", "isolation: none"))
    process = dagrun(project, "execute", f"workflows/{name}", "--ui", "log")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    log = next(project.glob(".dagrun/runs/*/nodes/stranger.1.out")).read_text()
    for what in HARMLESS:
        assert f"got out: {what}" in log


def test_all_examples_are_valid_and_say_what_they_show(project: Path) -> None:
    process = dagrun(project, "validate", "--strict", *(f"workflows/{name}" for name in EXAMPLES))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert len(out.splitlines()) == len(EXAMPLES)

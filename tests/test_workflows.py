"""Every example in workflows/ runs and ends as it says; what waits for a human's file gets it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(p.name for p in (ROOT / "workflows").glob("*.yaml"))
ENDS = {"alternative.yaml": 1, "repair.yaml": 1, "review.yaml": 4}  # mended with the patches beside them
OPENED = {"add-scan.yaml": "build/shop/window", "repair.yaml": "build/repair/dump.ready"}
HARMLESS = ("read a file outside", "change its own input", "read the journal", "see other processes")
IMAGE = "busybox:stable"  # of untrusted.yaml
WALLED = ("confined.yaml", "demo.yaml", "mcp.yaml")  # bubblewrap holds some of their nodes
DEMO = "workflows/demo.yaml"
NO_KEYS = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
RECORDED = "workflows/records/demo.jsonl"


def dagrun(folder: Path, *words: str, environ: Mapping[str, str] = os.environ) -> subprocess.Popen[str]:
    env = {**environ, "CI": "true", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
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
    if name in WALLED and shutil.which("bwrap") is None:
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


# ---------------------------------------------------------------- the demo


def done(project: Path, *words: str) -> str:
    """What a command prints that ends well."""
    process = dagrun(project, *words)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return out


def entries(project: Path) -> dict[str, Any]:
    """The trace entries of the last run by node."""
    return {e["node_id"]: e for e in json.loads(done(project, "trace", "show", "--json"))["entries"]}


def exit_of_tests(project: Path) -> int:
    """The exit code of the tests of the demo's small project."""
    command = [sys.executable, "-B", "-m", "unittest", "discover", "-s", "tests"]
    env = {**os.environ, "PYTHONPATH": "app"}
    return subprocess.run(command, cwd=project / "tally", env=env, capture_output=True, check=False).returncode


def test_the_demo_is_repaired_by_an_edit_and_not_by_words(project: Path) -> None:
    if shutil.which("bwrap") is None:
        absent("bubblewrap")
    out = done(project, "execute", DEMO, "--ui", "quiet")
    assert "3 tests pass" in out
    assert "verdict = approve" in out
    after = (project / "tally/app/words.py").read_text()
    before = (project / "tally/words.before").read_text()
    assert (exit_of_tests(project), ".lower()" in before, ".lower()" in after) == (0, False, True)
    (project / "tally/app/words.py").write_text(before)
    assert exit_of_tests(project) == 1
    found = entries(project)
    assert found["repair"]["status"] == "superseded"
    assert [a["outcome"] for a in found["repair"]["attempts"]] == ["invalid_output"]
    assert found["repair-fallback"]["agent"]["tools"] == {"Read": 1, "Edit": 1}
    assert found["review"]["retries"] == 1
    asked = sum(e["duration_ms"] for e in found.values() if e["kind"] == "agent")
    assert asked < 8000, "a person is to see it within ten seconds"
    money = json.loads(done(project, "trace", "show", "--json"))["run"]
    assert 0 < sum(e["cost_usd"] for e in found.values()) < 0.40, money


def test_the_demo_needs_its_edit(project: Path) -> None:
    """The control: an agent that only says that it has repaired the code does not get through."""
    if shutil.which("bwrap") is None:
        absent("bubblewrap")
    path = project / "workflows/rules/demo.yaml"
    rules = yaml.safe_load(path.read_text())["rules"]
    (edit,) = [r for r in rules if r["node"] == "repair-fallback" and r.get("turn") == 2]
    del edit["tools"]
    edit["json"] = {"file": "tally/app/words.py", "change": edit.pop("text")}
    path.write_text(yaml.safe_dump({"rules": rules}, sort_keys=False))
    process = dagrun(project, "execute", DEMO, "--ui", "quiet")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert entries(project)["verify"]["status"] == "failed"


def test_the_demo_with_real_models_wants_one_variable(project: Path) -> None:
    process = dagrun(project, "execute", DEMO, "--provider", "live", environ=NO_KEYS)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 8, out + err
    assert "nothing was started" in err
    if find_spec("litellm") is not None:
        assert "export ANTHROPIC_API_KEY=" in err
    assert not (project / "tally").exists()


def test_the_recorded_demo_is_of_this_workflow(project: Path) -> None:
    """It is played without a model, a tool or a command, and every byte of it is explained."""
    out = done(project, "execute", DEMO, "--replay", RECORDED, "--ui", "quiet")
    assert "3 tests pass" in out
    assert not (project / "tally").exists()
    assert entries(project)["repair"]["status"] == "superseded"
    assert "every byte of" in done(project, "audit", RECORDED)
    text = (project / RECORDED).read_text()
    assert str(ROOT) not in text


# ---------------------------------------------------------------- make demo


def demo(project: Path, *, python: str = "", path: str = "") -> subprocess.CompletedProcess[str]:
    """scripts/demo.sh in a copy of the project; `python` stands before the command of scripts/python.sh."""
    (project / "scripts").mkdir(exist_ok=True)
    shutil.copy(ROOT / "scripts/demo.sh", project / "scripts/demo.sh")
    wrapper = project / "scripts/python.sh"
    wrapper.write_text(f'#!/bin/sh\n{python}\nexec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    env = {**os.environ, "CI": "true", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(project / "cache")}
    if path:
        env["PATH"] = path
    command = ["/bin/sh", "scripts/demo.sh"]
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_make_demo_says_what_to_look_at_next(project: Path) -> None:
    if shutil.which("bwrap") is None:
        absent("bubblewrap")
    shown = demo(project)
    assert shown.returncode == 0, shown.stderr
    assert "note:" not in shown.stderr
    here = project / "build/demo"
    for line in [line.strip() for line in shown.stderr.splitlines() if line.startswith("  dagrun ")]:
        words = line.split("  ")[0].split()[1:]
        assert done(here, *words) or "--replay" in line, line
    assert shown.stderr.count("\n  dagrun ") == 5


@pytest.mark.slow
def test_make_demo_where_bubblewrap_is_not_installed(project: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in reversed(os.environ["PATH"].split(os.pathsep)):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if name not in ("bwrap", "docker", "podman"):
                (programs / name).unlink(missing_ok=True)
                (programs / name).symlink_to(os.path.join(folder, name))
    shown = demo(project, path=str(programs))
    assert shown.returncode == 0, shown.stderr
    assert "note: " in shown.stderr
    assert "3 tests pass" in shown.stdout
    landlock = "are held by Landlock, which" in shown.stderr
    assert landlock == (project / "build/demo/tally").exists()
    assert landlock != ("this is a recorded run" in shown.stderr)


@pytest.mark.slow
def test_make_demo_where_nothing_can_hold_an_agent(project: Path) -> None:
    shown = demo(project, python='case " $* " in *" --dry-run "*) exit 8 ;; esac')
    assert shown.returncode == 0, shown.stderr
    assert "this is a recorded run" in shown.stderr
    assert "3 tests pass" in shown.stdout
    assert not (project / "build/demo/tally").exists()

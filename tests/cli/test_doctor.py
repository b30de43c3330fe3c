"""doctor: what it finds on this machine, and what it finds where things are missing or pretend."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from .space import Space

CONFINED = """
    version: 1
    name: confined
    permissions: {paths: {read: [.], write: [out]}, network: none}
    nodes:
      careful: {run: mkdir -p out && touch out/done}
    """
BOXED = """
    version: 1
    name: boxed
    docker: {image: "dagrun-test-nowhere:1"}
    nodes:
      inside: {isolation: container, run: "true"}
    """
needs_bwrap = pytest.mark.skipif(not os.environ.get("CI") and shutil.which("bwrap") is None, reason="needs bubblewrap")


def fake(space: Space, name: str, text: str) -> str:
    """A program of this name, first on the PATH that is returned."""
    program = space.file(f"fakes/{name}", text)
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def without(space: Space, *names: str) -> str:
    """A PATH with everything of this machine but these programs."""
    folder = space.folder / "tools"
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).iterdir() if os.path.isdir(place) else ():
            if program.name not in names:
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    return str(folder)


def level(done: object, name: str) -> dict[str, object]:
    return next(found for found in done.json["levels"] if found["level"] == name)  # type: ignore[attr-defined]


def crosses(found: dict[str, object]) -> set[str]:
    return {name for name, held in found["guarantees"].items() if not held["held"]}  # type: ignore[attr-defined]


def test_everything_is_tried_and_nothing_is_left(space: Space) -> None:
    before = sorted(os.listdir(space.folder)), sorted(os.listdir(space.home))
    done = space.run("doctor", "--json")
    assert done.code == 0
    names = [f["name"] for f in done.json["findings"]]
    assert names == [
        *("python", "platform", "user", "pidfd", "subreaper", "open files", "processes", "inotify"),
        *("filesystem", "journal", "lock", "sync"),
    ]
    assert done.json["ok"] is True
    assert [found["level"] for found in done.json["levels"]] == ["none", "context", "process", "container"]
    assert (sorted(os.listdir(space.folder)), sorted(os.listdir(space.home))) == before


def test_text(space: Space) -> None:
    done = space.run("doctor")
    assert "✓ journal     written and synced\n" in done.out
    assert "a command can't" in done.out
    assert "written and synced" not in space.run("doctor", "-q").out


def test_root_is_a_warning(space: Space) -> None:
    levels = {f["name"]: f["level"] for f in space.run("doctor", "--json").json["findings"]}
    assert levels["user"] == ("warning" if os.geteuid() == 0 else "ok")


def test_what_a_plain_command_gets_is_tried(space: Space) -> None:
    found = level(space.run("doctor", "--json"), "none")
    held = found["guarantees"]
    assert isinstance(held, dict)
    for name in ("fds", "tty", "kill.tree"):
        assert held[name] == {"held": True, "why": "", "tried": True}
    assert "fs.read" not in held


@needs_bwrap
def test_bubblewrap_holds_process_and_is_attacked(space: Space) -> None:
    found = level(space.run("doctor", "--json"), "process")
    assert (found["backend"], found["enough"]) == ("bubblewrap", True)
    assert crosses(found) <= {"mem", "pids", "cpu", "fsize"}
    held = found["guarantees"]
    assert isinstance(held, dict)
    assert {name for name, one in held.items() if one["tried"]} >= {"fs.read", "fs.write", "net.none", "proc.signal"}
    assert isinstance(found["launch_ms"], float)


def test_few_descriptors_are_a_warning(space: Space) -> None:
    done = space.shell("ulimit -n 100; dagrun doctor --json")
    levels = {f["name"]: f["level"] for f in done.json["findings"]}
    assert (done.code, levels["open files"]) == (0, "warning")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written(space: Space) -> None:
    space.folder.chmod(0o500)
    done = space.run("doctor")
    space.folder.chmod(0o700)
    assert done.code == 8
    assert "✗ journal" in done.out


# ---------------------------------------------------------------- what is missing, and what pretends


def test_without_bubblewrap_process_is_not_held_and_says_what_to_install(space: Space) -> None:
    path = without(space, "bwrap")
    found = level(space.run("doctor", "--json", PATH=path), "process")
    assert found["enough"] is False
    assert "bubblewrap" in str(found["hint"])
    assert crosses(found) >= {"fs.meta", "proc.hide"}


def test_without_bubblewrap_a_confined_flow_is_refused_before_anything_starts(space: Space) -> None:
    space.file("confined.yaml", CONFINED)
    path = without(space, "bwrap")
    done = space.run("execute", "confined.yaml", PATH=path)
    assert done.code == 8
    assert "careful" in done.err
    assert "bubblewrap" in done.err
    assert not (space.folder / "out").exists()


FAKES = {
    # takes all options, and only runs the command
    "execs": '#!/bin/bash\nwhile [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n',
    "says_yes": "#!/bin/sh\nexit 0\n",
    "fails": "#!/bin/sh\nexit 1\n",
    "answers_its_version": '#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.11.1\nexec "$@"\n',
}


@pytest.mark.parametrize("kind", FAKES)
def test_a_program_that_only_calls_itself_bwrap_gets_crosses(space: Space, kind: str) -> None:
    space.file("confined.yaml", CONFINED)
    path = fake(space, "bwrap", FAKES[kind])
    done = space.run("doctor", "--json", PATH=path)
    found = level(done, "process")
    assert found["enough"] is False
    assert {"fs.meta", "proc.hide"} <= crosses(found)
    said = str(found)
    assert "bubblewrap" in said
    assert "let the system's own bwrap be the first on the PATH: /usr/bin/bwrap" in str(found["hint"])
    assert "dagrun doctor" not in str(found["hint"])  # that is what is being read
    refused = space.run("execute", "confined.yaml", PATH=path)
    assert (refused.code, (space.folder / "out").exists()) == (8, False), refused.err


def test_without_an_engine_containers_are_refused_and_it_says_what_to_install(space: Space) -> None:
    space.file("boxed.yaml", BOXED)
    path = without(space, "docker", "podman")
    found = level(space.run("doctor", "--json", PATH=path), "container")
    assert found["enough"] is False
    assert "docker" in str(found["hint"]).lower()
    done = space.run("execute", "boxed.yaml", PATH=path)
    assert done.code == 8


def test_a_docker_that_only_says_yes_gets_crosses(space: Space) -> None:
    path = fake(space, "docker", "#!/bin/sh\nexit 0\n")
    fake(space, "podman", "#!/bin/sh\nexit 0\n")
    found = level(space.run("doctor", "--json", PATH=path), "container")
    assert found["enough"] is False
    assert crosses(found) >= {"fs.read", "net.none", "proc.hide"}


# ---------------------------------------------------------------- for one workflow


@needs_bwrap
def test_for_a_workflow_that_can_be_held(space: Space) -> None:
    space.file("confined.yaml", CONFINED)
    done = space.run("doctor", "--for", "confined.yaml")
    assert done.code == 0
    assert done.out.endswith("confined.yaml can be held here\n")
    assert space.run("doctor", "--for", "hello.yaml", "--json").json["for"]["held"] is True


def test_for_a_workflow_that_can_not_be_held(space: Space) -> None:
    space.file("confined.yaml", CONFINED)
    path = without(space, "bwrap")
    done = space.run("doctor", "--for", "confined.yaml", "--json", PATH=path)
    assert done.code == 8
    assert done.json["for"]["held"] is False
    assert "careful" in done.json["for"]["error"]["message"]
    assert space.run("doctor", "--for", "hello.yaml", PATH=path).code == 0


def test_for_a_workflow_the_user_may_go_without(space: Space) -> None:
    space.file("confined.yaml", CONFINED)
    path = without(space, "bwrap")
    found = level(space.run("doctor", "--json", PATH=path), "process")
    if found["backend"] != "landlock" or len(crosses(found)) > 8:
        pytest.skip("Landlock does not work here")
    accepted = ",".join(crosses(found))
    done = space.run("doctor", "--for", "confined.yaml", "--accept-missing", accepted, "--json", PATH=path)
    assert (done.code, done.json["for"]["held"]) == (0, True)
    again = space.run("doctor", "--for", "confined.yaml", "--json", PATH=path, DAGRUN_ACCEPT_MISSING=accepted)
    assert again.code == 0
    assert space.run("doctor", "--for", "confined.yaml", "--accept-missing", "fs.everything").code == 2


def test_for_an_image_that_is_not_there(space: Space) -> None:
    space.file("boxed.yaml", BOXED)
    done = space.run("doctor", "--for", "boxed.yaml", "--json")
    assert (done.code, done.json["for"]["held"]) == (8, False)


def test_for_a_file_that_is_wrong(space: Space) -> None:
    space.file("wrong.yaml", "version: 1\nname: wrong\nnodes: {a: {isolatoin: process, run: echo}}\n")
    assert space.run("doctor", "--for", "wrong.yaml").code == 3
    assert space.run("doctor", "--for", "nowhere.yaml").code == 2

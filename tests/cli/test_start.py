"""init."""

from __future__ import annotations

import json
import os

from .space import Space


def test_what_it_writes_is_valid_and_runs(space: Space) -> None:
    done = space.run("init", "new")
    assert done == (
        0,
        "wrote new/dagrun.yaml\nnext:\n  dagrun validate new/dagrun.yaml\n  dagrun execute new/dagrun.yaml\n",
        "",
    )
    assert space.run("validate", "new/dagrun.yaml").code == 0
    ran = space.run("execute", "new/dagrun.yaml", "-q", "-p", "greeting=Hi")
    assert ran.code == 0
    assert space.run("logs", "greet").out.startswith("Hi, ")


def test_the_schema_that_it_names_is_there_and_ignored_by_git(space: Space) -> None:
    space.run("init")
    first = (space.folder / "dagrun.yaml").read_text().splitlines()[0]
    path = space.folder / first.partition("$schema=")[2]
    assert json.loads(path.read_text())["title"]
    assert (space.folder / ".dagrun" / ".gitignore").read_text() == "*\n"


def test_nothing_is_overwritten_without_force(space: Space) -> None:
    space.file("dagrun.yaml", "mine")
    done = space.run("init")
    text = (
        "error[usage]: dagrun.yaml is there already\n"
        "  help: dagrun validate dagrun.yaml, or overwrite it: dagrun init . --force\n"
    )
    assert done == (2, "", text)
    assert (space.folder / "dagrun.yaml").read_text() == "mine"
    assert space.run("init", "--force").code == 0
    assert (space.folder / "dagrun.yaml").read_text() != "mine"


def test_json_and_odd_folder_names(space: Space) -> None:
    done = space.run("init", "12 ünd 3!", "--json")
    assert done.json["next"][1] == "dagrun execute '12 ünd 3!/dagrun.yaml'"
    assert space.run("validate", "12 ünd 3!/dagrun.yaml").code == 0


def test_a_folder_that_can_not_be_made(space: Space) -> None:
    space.file("file", "x")
    done = space.run("init", "file/inside")
    assert done.code == 8
    assert done.err.startswith("error[environment]: can't write file/inside/")
    assert not os.path.exists(space.folder / ".dagrun")


def test_an_agent_that_runs_without_a_key(space: Space) -> None:
    done = space.run("init", "--agent")
    assert done.code == 0
    assert done.out.startswith("wrote dagrun.yaml and rules.yaml\n")
    assert space.run("validate", "--strict", "dagrun.yaml").code == 0
    ran = space.run("execute", "dagrun.yaml", "-q")
    assert (ran.code, ran.out) == (0, "summary = Said by rules.yaml, not by a model.\n")


def test_rules_that_are_there_stay_there(space: Space) -> None:
    space.file("rules.yaml", "mine")
    done = space.run("init", "--agent")
    assert done.code == 2
    assert done.err == (
        "error[usage]: rules.yaml is there already\n  help: overwrite it: dagrun init . --agent --force\n"
    )
    assert (space.folder / "rules.yaml").read_text() == "mine"
    assert not (space.folder / "dagrun.yaml").exists()
    assert space.run("init").code == 0
    assert space.run("init", "--agent", "--force").code == 0
    assert (space.folder / "rules.yaml").read_text() != "mine"

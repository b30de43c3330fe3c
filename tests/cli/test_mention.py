"""A resumed run goes on as it was planned: a file that was edited since is worth a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dagrun.core.workflow import workflow_from_json, workflow_to_json
from dagrun.flowfile.load import read_workflow

from .space import ROOT, Space

NOTE = "has changed since this run began"


def edit(space: Space, old: str, new: str) -> None:
    path = space.folder / "fails.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edited_node_is_named_with_the_way_to_have_it(space: Space) -> None:
    run = space.run("execute", "fails.yaml", "--json").json["run_id"]
    edit(space, "exit 3", "exit 0")
    done = space.run("resume", "--ui", "quiet")
    assert done.code == 1
    assert done.err.startswith(
        f"note: fails.yaml {NOTE} (bad); the run goes on as it was planned\n"
        f"  help: to have the change: dagrun replan {run} --to fails.yaml --resume\n"
    )
    taken = space.run("replan", run, "--to", "fails.yaml", "--resume", "--yes")
    assert taken.code == 0
    assert NOTE not in taken.err
    assert NOTE not in space.run("resume").err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: fails\n", "name: fails  # better\n"),
        ("version: 1\n", "\n\nversion: 1\n"),
        ('run: "true"', "run: 'true'"),
    ],
)
def test_what_means_the_same_is_no_change(space: Space, old: str, new: str) -> None:
    space.run("execute", "fails.yaml", "-q")
    edit(space, old, new)
    assert NOTE not in space.run("resume").err


def test_what_a_run_can_not_take_over_needs_a_new_one(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    edit(space, "nodes:", "limits: {timeout: 1h}\nnodes:")
    told = space.run("resume").err
    assert f"note: fails.yaml {NOTE} (limits); the run goes on as it was planned\n" in told
    assert "  help: to have the change: a new run: dagrun execute fails.yaml\n" in told


def test_a_patch_of_the_run_is_no_change_of_the_file(space: Space) -> None:
    run = space.run("execute", "fails.yaml", "--json").json["run_id"]
    assert space.run("replan", run, "--retry", "bad:env.A=b", "--yes").code == 0
    assert NOTE not in space.run("resume").err
    edit(space, "echo fine", "echo well")
    assert f"{NOTE} (ok);" in space.run("resume").err


@pytest.mark.parametrize("text", [None, "nodes: [\n", ""])
def test_a_file_that_is_gone_or_broken_is_not_needed(space: Space, text: str | None) -> None:
    space.run("execute", "fails.yaml", "-q")
    path = space.folder / "fails.yaml"
    path.write_text(text) if text is not None else path.unlink()
    done = space.run("resume")
    assert done.code == 1
    assert "note:" not in done.err


@pytest.mark.parametrize("flow", sorted((ROOT / "workflows").glob("*.yaml")), ids=lambda path: path.stem)
def test_any_example_comes_back_from_a_run_as_it_was_read(flow: Path) -> None:
    read = read_workflow(str(flow), use_cache=False).workflow
    assert workflow_from_json(json.loads(json.dumps(workflow_to_json(read)))) == read

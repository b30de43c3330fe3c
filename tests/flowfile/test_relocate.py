"""A workflow written into another folder still names the same files."""

from __future__ import annotations

from pathlib import Path

from dagrun.core.workflow import Agent, Node, OnFailure, Provider, Workflow
from dagrun.flowfile.relocate import relocated


def flow(base: Path, **kw: object) -> Workflow:
    nodes = {
        "a": Node(id="a", run="x", on_failure=OnFailure(replan="patches/a.yaml", replan_patch={"operations": []})),
        "b": Node(
            id="b",
            run="x",
            on_failure=OnFailure(
                fallback_node=Node(id="b-fallback", run="y", on_failure=OnFailure(replan="patches/a.yaml"))
            ),
        ),
        "c": Node(id="c", agent=Agent(prompt="x", skills=("gone", "here"))),
    }
    return Workflow(
        name="w", nodes=nodes, templates={"t": nodes["a"]}, provider=Provider(kind="fake", rules="rules/w.yaml")
    )


def test_named_files_are_named_from_the_new_folder(tmp_path: Path) -> None:
    base = tmp_path / "flows"
    (base / "patches").mkdir(parents=True)
    (base / "rules").mkdir()
    (base / "patches" / "a.yaml").write_text("operations: []\n")
    (base / "rules" / "w.yaml").write_text("rules: []\n")
    made, lost = relocated(flow(base), str(base), str(tmp_path / "out" / "deep"))
    assert made.provider.rules == "../../flows/rules/w.yaml"
    assert made.nodes["a"].on_failure is not None
    assert made.nodes["a"].on_failure.replan == "../../flows/patches/a.yaml"
    assert made.nodes["a"].on_failure.replan_patch == {"operations": []}
    assert made.nodes["b"].on_failure is not None
    inner = made.nodes["b"].on_failure.fallback_node
    assert inner is not None
    assert inner.on_failure is not None
    assert inner.on_failure.replan == "../../flows/patches/a.yaml"
    assert made.templates["t"].on_failure == made.nodes["a"].on_failure
    assert made.nodes["c"] == flow(base).nodes["c"]
    assert lost == ()


def test_in_the_same_folder_nothing_is_rewritten(tmp_path: Path) -> None:
    same = flow(tmp_path)
    made, _ = relocated(same, str(tmp_path), str(tmp_path))
    assert made == same


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    made, lost = relocated(flow(tmp_path), str(tmp_path), str(tmp_path / "out"))
    assert made.provider.rules == "../rules/w.yaml"
    assert lost == ("../rules/w.yaml", "../patches/a.yaml")


def test_an_absolute_name_stays(tmp_path: Path) -> None:
    there = tmp_path / "r.yaml"
    there.write_text("rules: []\n")
    one = Workflow(name="w", nodes={}, provider=Provider(kind="fake", rules=str(there)))
    assert relocated(one, str(tmp_path), str(tmp_path / "out")) == (one, ())

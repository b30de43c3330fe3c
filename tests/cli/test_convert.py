"""import wfformat."""

from __future__ import annotations

import json

import pytest

from .space import Space

TRACE = {
    "name": "tiny",
    "schemaVersion": "1.5",
    "workflow": {
        "specification": {
            "tasks": [
                {"id": "t1", "name": "make", "parents": [], "children": ["t2"], "inputFiles": [], "outputFiles": ["f"]},
                {"id": "t2", "name": "use", "parents": ["t1"], "children": [], "inputFiles": ["f"], "outputFiles": []},
            ],
            "files": [{"id": "f", "sizeInBytes": 10}],
        },
        "execution": {"tasks": [{"id": "t1", "runtimeInSeconds": 1.0}, {"id": "t2", "runtimeInSeconds": 2.0}]},
    },
}


@pytest.fixture
def traced(space: Space) -> Space:
    space.file("trace.json", json.dumps(TRACE))
    return space


def test_what_comes_out_is_valid_and_runs(traced: Space) -> None:
    done = traced.run("import", "wfformat", "trace.json", "-o", "flow.yaml")
    assert done == (0, "", "wrote flow.yaml\nnext: dagrun execute flow.yaml\n")
    assert traced.run("validate", "flow.yaml").code == 0
    assert traced.run("execute", "flow.yaml", "-q").code == 0


def test_stdout_stdin_and_json(traced: Space) -> None:
    text = traced.run("import", "wfformat", "trace.json").out
    assert "nodes:" in text
    done = traced.run("import", "wfformat", "-", "--json", stdin=json.dumps(TRACE))
    assert "nodes:" in done.json["workflow"]
    assert traced.shell("dagrun import wfformat trace.json | dagrun validate -").code == 0


def test_refusals(traced: Space) -> None:
    assert traced.run("import", "wfformat", "nope.json").code == 2
    assert traced.run("import", "wfformat", ".").code == 2
    traced.file("bad.json", "{}")
    assert traced.run("import", "wfformat", "bad.json").code == 3
    assert traced.run("import", "wfformat", "trace.json", "--time-scale", "-1").code == 2
    traced.file("flow.yaml", "mine")
    assert traced.run("import", "wfformat", "trace.json", "-o", "flow.yaml").code == 2
    assert (traced.folder / "flow.yaml").read_text() == "mine"

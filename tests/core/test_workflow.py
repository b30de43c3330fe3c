"""The compact JSON of a workflow: its inverse, and how little it holds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.core.names import Json, Outcome, Schedule
from dagrun.core.workflow import (
    NO_RETRY,
    Input,
    Limits,
    Node,
    Output,
    Param,
    Retry,
    Secret,
    Workflow,
    node_from_json,
    node_to_json,
    param_accepts,
    workflow_from_json,
    workflow_to_json,
)

JSON: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
TEXT = st.text(max_size=4)
NAMES = st.lists(TEXT, max_size=2).map(tuple)
SECONDS = st.floats(0, 1e6)


def by_name(values: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(TEXT, values, max_size=2)


PARAMS = st.builds(Param, has_default=st.booleans(), default=JSON, enum=st.lists(JSON, max_size=2).map(tuple))
INPUTS = st.builds(Input, expression=TEXT, value=JSON, optional=st.booleans(), has_default=st.booleans(), default=JSON)
OUTPUTS = st.builds(Output, source=st.sampled_from(["stdout", "output"]), file=TEXT, path=TEXT, schema=JSON)
RETRIES = st.builds(
    Retry,
    max_attempts=st.integers(1, 4),
    delay_s=SECONDS,
    jitter=st.floats(0, 1),
    outcomes=st.frozensets(st.sampled_from(list(Outcome)), max_size=2),
)
NODES = st.builds(
    Node,
    id=TEXT,
    title=TEXT,
    run=TEXT.filter(bool) | st.lists(TEXT, min_size=1, max_size=2).map(tuple),
    shell=st.sampled_from(["sh", "bash"]),
    cwd=TEXT,
    needs=NAMES,
    inputs=by_name(INPUTS),
    env=by_name(TEXT),
    pass_env=NAMES,
    secrets=NAMES,
    condition=TEXT,
    outputs=by_name(OUTPUTS),
    output_schema=JSON,
    artifacts=NAMES,
    retry=RETRIES | st.just(NO_RETRY) | st.just(Retry()),
    timeout_s=SECONDS,
    grace_s=SECONDS,
    idempotent=st.booleans(),
    continue_on_error=st.booleans(),
    isolation=st.sampled_from(["none", "process"]),
    resources=by_name(SECONDS),
    output_bytes=st.integers(0, 9),
    estimate_s=SECONDS,
)
LIMITS = st.builds(
    Limits, parallel=st.none() | st.integers(1, 9), timeout_s=st.none() | SECONDS, resources=by_name(SECONDS)
)
WORKFLOWS = st.builds(
    Workflow,
    name=TEXT,
    nodes=st.dictionaries(TEXT, NODES, max_size=2),
    description=TEXT,
    params=by_name(PARAMS),
    limits=LIMITS,
    schedule=st.sampled_from(list(Schedule)),
    durability=st.sampled_from(["default", "strict"]),
    fail_fast=st.booleans(),
    secrets=by_name(st.builds(Secret, env=TEXT, file=TEXT, command=NAMES)),
    outputs=by_name(TEXT),
    file=TEXT,
    digest=TEXT,
)


@settings(deadline=None)
@given(WORKFLOWS)
def test_a_workflow_comes_back_from_its_json(workflow: Workflow) -> None:
    assert workflow_from_json(json.loads(json.dumps(workflow_to_json(workflow)))) == workflow


@settings(deadline=None)
@given(NODES)
def test_a_node_comes_back_from_its_json(node: Node) -> None:
    assert node_from_json(json.loads(json.dumps(node_to_json(node)))) == node


def test_outputs_of_a_workflow_are_text_and_those_of_a_node_are_not() -> None:
    node = Node(id="a", run="true", outputs={"x": Output(source="stdout")})
    workflow = Workflow(name="w", nodes={"a": node}, outputs={"x": "nodes.a.x"})
    assert workflow_from_json(workflow_to_json(workflow)) == workflow


def test_a_plain_node_is_small() -> None:
    assert node_to_json(Node(id="a", run="true")) == {"id": "a", "run": "true"}
    assert node_to_json(Node(id="a", run=("ls", "-l"), needs=("b",))) == {
        "id": "a",
        "run": ["ls", "-l"],
        "needs": ["b"],
    }


def test_a_written_retry_is_not_the_same_as_none() -> None:
    assert node_to_json(Node(id="a", run="true", retry=NO_RETRY)) == {"id": "a", "run": "true"}
    assert node_to_json(Node(id="a", run="true", retry=Retry())) == {"id": "a", "run": "true", "retry": {}}


def test_values_that_only_look_like_a_default_are_kept() -> None:
    node = Node(
        id="a", run="true", inputs={"x": Input(has_default=True, default=False)}, outputs={"o": Output(schema=False)}
    )
    assert node_from_json(node_to_json(node)) == node
    assert node_from_json(node_to_json(node)).inputs["x"].default is False


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(TypeError):
        node_from_json({"id": "a", "colour": "red"})


# ---------------------------------------------------------------- params


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("string", ["", "x"], [1, None, True, []]),
        ("integer", [0, -1, 10**30], [1.0, "1", True, None]),
        ("number", [0, 1.5], ["1", False, None]),
        ("boolean", [True, False], [0, 1, "true", None]),
        ("array", [[], [1]], [{}, "x", None]),
        ("object", [{}, {"a": 1}], [[], "x", None]),
    ],
)
def test_a_param_takes_values_of_its_type_only(kind: str, good: list[Json], bad: list[Json]) -> None:
    param = Param(type=kind)  # type: ignore[arg-type]
    assert [param_accepts(param, v) for v in good] == [True] * len(good)
    assert [param_accepts(param, v) for v in bad] == [False] * len(bad)


def test_an_enum_leaves_only_its_values() -> None:
    param = Param(enum=("a", "b"))
    assert param_accepts(param, "a")
    assert not param_accepts(param, "c")

"""Params typed by their declaration, all problems at once; --fail; node names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.cli.params import injected, typed_params
from dagrun.core.names import Json
from dagrun.core.workflow import Node, Param, Workflow, param_accepts
from dagrun.errors import InputError, NotFoundError, UsageError

PARAMS = {
    "s": Param(type="string", has_default=True, default=""),
    "i": Param(type="integer", has_default=True, default=0),
    "n": Param(type="number", has_default=True, default=0),
    "b": Param(type="boolean", has_default=True, default=False),
    "a": Param(type="array", has_default=True, default=[]),
    "o": Param(type="object", has_default=True, default={}),
    "e": Param(type="string", has_default=True, default="x", enum=("x", "y")),
}
NODES = {name: Node(id=name, run="true") for name in ("one", "two")}
WORKFLOW = Workflow(name="w", nodes=NODES, params=PARAMS)
NEEDS = Workflow(name="w", nodes={}, params={"who": Param(), "count": Param(type="integer", description="how many")})


@given(st.text())
def test_a_string_takes_any_text_as_it_is(text: str) -> None:
    assert typed_params(WORKFLOW, [f"s={text}"], None) == {"s": text}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(PARAMS)), JSON_VALUES)
def test_what_is_taken_always_fits_the_declaration(name: str, value: Json) -> None:
    text = json.dumps(value)
    try:
        got = typed_params(WORKFLOW, [f"{name}={text}"], None)
    except InputError:
        assert PARAMS[name].type != "string" or PARAMS[name].enum
        assert not param_accepts(PARAMS[name], value)
    else:
        assert param_accepts(PARAMS[name], got[name])
        assert got[name] == (text if PARAMS[name].type == "string" else value)


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("i=3", 3),
        ("i=-0", 0),
        ("n=1e3", 1000.0),
        ("b=true", True),
        ("a=[1, \"x\"]", [1, "x"]),
        ('o={"k": null}', {"k": None}),
        ("s=", ""),
        ("s=a=b", "a=b"),
        ("e=y", "y"),
    ],
)
def test_values(pair: str, value: Json) -> None:
    assert typed_params(WORKFLOW, [pair], None) == {pair[0]: value}


@pytest.mark.parametrize(
    "pair",
    ["i=3.0", "i=true", "i=", "i=0x1", "n=NaN", "n=Infinity", "n=1_0", "b=yes", "b=1", "b=True", "a={}", "e=z", "o=3"],
)
def test_wrong_values_are_refused_with_one_that_is_right(pair: str) -> None:
    with pytest.raises(InputError) as caught:
        typed_params(WORKFLOW, [pair], None)
    (problem,) = caught.value.problems
    example = problem.hint.removeprefix("-p '").removesuffix("'")
    assert typed_params(WORKFLOW, [example], None)


def test_all_problems_at_once_and_every_missing_param() -> None:
    with pytest.raises(InputError) as caught:
        typed_params(NEEDS, ["cuont=3", "what"], None)
    texts = [(p.code, p.message) for p in caught.value.problems]
    assert texts == [
        ("unknown-param", "the workflow has no param `cuont`"),
        ("bad-param", "-p what has no value"),
        ("missing-param", "param `who` (string) is required"),
        ("missing-param", "param `count` (integer) is required: how many"),
    ]
    assert caught.value.problems[0].hint == "did you mean `count`?"


def test_a_wrong_value_is_not_also_missing() -> None:
    with pytest.raises(InputError) as caught:
        typed_params(NEEDS, ["count=x", "who=me"], None)
    assert [p.code for p in caught.value.problems] == ["bad-param"]


def test_a_file_is_typed_by_its_source_text_and_a_pair_wins(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("s: 012\ni: 12\nb: true\nn: 0.50\na: [1, no, '2']\no: {k: 1.5}\ne: y\n")
    got = typed_params(WORKFLOW, ["i=13"], str(path))
    assert got == {"s": "012", "i": 13, "b": True, "n": 0.5, "a": [1, "no", "2"], "o": {"k": 1.5}, "e": "y"}


def test_problems_of_a_file_have_their_place(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("i: 1.5\nb: 'true'\nnope: 1\n")
    with pytest.raises(InputError) as caught:
        typed_params(WORKFLOW, ["x=1"], str(path))
    found = [(p.code, p.line, p.column) for p in caught.value.problems]
    assert found == [("bad-param", 1, 4), ("bad-param", 2, 4), ("unknown-param", 3, 1), ("unknown-param", 0, 0)]


@pytest.mark.parametrize("text", ["- a\n", "x", ""])
def test_a_file_that_holds_no_params(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        typed_params(WORKFLOW, [], str(path))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="can't read nowhere"):
        typed_params(WORKFLOW, [], "nowhere.yaml")


# ---------------------------------------------------------------- --fail


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("one", ["failed", 0]),
        ("one:timed_out", ["timed_out", 0]),
        ("one::2", ["failed", 2]),
        ("one:denied:1", ["denied", 1]),
    ],
)
def test_fail(text: str, wanted: list[Json]) -> None:
    assert injected(WORKFLOW, [text]) == {"one": wanted}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["one:timedout"], "can be made to end as timedout"),
        (["one:completed"], "can be made to end as completed"),
        (["one:failed:x"], "is not NODE"),
        (["one:failed:1:2"], "is not NODE"),
        (["one", "one:denied"], "names one twice"),
    ],
)
def test_a_bad_fail(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        injected(WORKFLOW, texts)
    assert caught.value.hint


def test_a_fail_of_no_node() -> None:
    with pytest.raises(NotFoundError, match="has no node `on`") as caught:
        injected(WORKFLOW, ["on"])
    assert caught.value.hint

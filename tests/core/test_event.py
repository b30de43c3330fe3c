"""The JSON of events: what goes in comes out, and nothing else comes in."""

from __future__ import annotations

import json
import typing
from dataclasses import MISSING, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.core.event import (
    EVENT_TYPES,
    AttemptFinished,
    Event,
    NodeStarted,
    RunCreated,
    RunEnded,
    decode,
    encode,
    event_type,
)
from dagrun.core.names import Json, Outcome, RunStatus

JSON: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.text(max_size=4)
BY_TYPE: dict[str, st.SearchStrategy[object]] = {
    "Json": JSON,
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "Mapping[str, Json]": st.dictionaries(KEYS, JSON, max_size=3),
    "Mapping[NodeId, Json]": st.dictionaries(KEYS, JSON, max_size=3),
    "Mapping[NodeId, str]": st.dictionaries(KEYS, KEYS, max_size=3),
    "Mapping[NodeId, NodeId]": st.dictionaries(KEYS, KEYS, max_size=3),
    "Mapping[NodeId, list[Json]]": st.dictionaries(KEYS, st.lists(JSON, max_size=2), max_size=2),
    "tuple[Json, ...]": st.lists(JSON, max_size=3).map(tuple),
    "tuple[NodeId, ...]": st.lists(KEYS, max_size=3).map(tuple),
}


def strategy_of(cls: type) -> st.SearchStrategy[Event]:
    """Any event of a class; mappings and JSON of any shape."""
    hints = typing.get_type_hints(cls)
    made = {
        f.name: BY_TYPE[str(f.type)] if str(f.type) in BY_TYPE else st.from_type(hints[f.name]) for f in fields(cls)
    }
    return st.builds(cls, **made)


EVENTS = st.one_of(*[strategy_of(cls) for cls in EVENT_TYPES.values()])


@settings(deadline=None)
@given(EVENTS)
def test_an_event_comes_back_from_its_json(event: Event) -> None:
    text = encode(event)
    assert text.isascii()
    assert "\n" not in text
    assert decode(json.loads(text)) == event


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_fields_with_their_default_are_left_out(name: str) -> None:
    cls = EVENT_TYPES[name]
    samples: dict[str, object] = {"int": 7, "str": "x", "Outcome": Outcome.FAILED, "RunStatus": RunStatus.FAILED}
    needed = {
        f.name: samples.get(str(f.type), "x")
        for f in fields(cls)
        if f.default is MISSING and f.default_factory is MISSING
    }
    data = json.loads(encode(cls(**needed)))
    assert list(data) == ["type", *needed]
    assert data["type"] == name


def test_the_name_of_a_type() -> None:
    assert event_type(NodeStarted(node="a", attempt=1)) == "node.started"


def test_an_old_journal_without_newer_fields_is_read() -> None:
    event = decode({"type": "run.created", "format": 1, "run_id": "r", "workflow": "w"})
    assert event == RunCreated(format=1, run_id="r", workflow="w")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"type": "node.exploded"},
        {"type": None},
        {"type": "warned", "text": "x", "colour": "red"},
        {"type": "warned"},
        {"type": "attempt.finished", "node": "a", "attempt": 1, "outcome": "splendid"},
        {"type": "run.ended", "status": "splendid", "exit_code": 0},
    ],
)
def test_what_this_version_does_not_know_is_refused(data: dict[str, Json]) -> None:
    with pytest.raises(ValueError, match=r"unknown event type|unexpected|missing|splendid"):
        decode(data)


def test_decoding_leaves_its_argument_alone() -> None:
    data: dict[str, Json] = {
        "type": "attempt.finished",
        "node": "a",
        "attempt": 1,
        "outcome": "failed",
        "artifacts": [1],
    }
    copy = json.loads(json.dumps(data))
    assert decode(data) == AttemptFinished(node="a", attempt=1, outcome=Outcome.FAILED, artifacts=(1,))
    assert data == copy


def test_a_number_that_json_has_not_never_reaches_the_journal() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode(RunEnded(status=RunStatus.COMPLETED, exit_code=0, outputs={"x": float("nan")}))

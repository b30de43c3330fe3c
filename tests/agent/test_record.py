"""A recorded call is what is new in it, and gives the whole request back, byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.agent.messages import Message, Request, ToolCall
from dagrun.agent.record import delta, whole
from dagrun.core.names import Json

texts = st.text(max_size=6)
# few and treacherous: 1, 1.0 and true are equal in Python and three things in JSON
scalars = st.sampled_from([None, True, False, 0, 1, 0.0, 1.0, -0.0, "", "a"])
values = st.recursive(scalars, lambda v: st.lists(v, max_size=2) | st.dictionaries(texts, v, max_size=2), max_leaves=4)
calls = st.builds(ToolCall, id=texts, name=texts, arguments=st.dictionaries(texts, values, max_size=2)) | st.builds(
    ToolCall, id=texts, name=texts, arguments=st.none(), text=texts
)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=st.sampled_from(["", "a", "b"]),
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_call_id=st.sampled_from(["", "c"]),
)
requests = st.builds(
    Request,
    model=st.sampled_from(["v/a", "v/b"]),
    messages=st.lists(messages, max_size=4).map(tuple),
    tools=st.lists(values, max_size=2).map(tuple),
    max_tokens=st.integers(1, 3),
    temperature=st.sampled_from([None, 0, 0.0, 1.0]),
    schema=values,
)


@st.composite
def followers(draw: st.DrawFn) -> tuple[Request | None, Request]:
    """A request, and one that came before it: often the beginning of the same conversation."""
    request = draw(requests)
    kind = draw(st.sampled_from(["none", "start", "any"]))
    if kind == "none":
        return None, request
    if kind == "start":
        return replace(request, messages=request.messages[: draw(st.integers(0, 4))]), request
    return draw(requests), request


@given(followers())
def test_a_request_comes_back_byte_for_byte(pair: tuple[Request | None, Request]) -> None:
    before, request = pair
    kept: dict[str, Json] = json.loads(json.dumps(delta(request, before)))
    assert whole(kept, before).canonical() == request.canonical()


@given(st.lists(messages, min_size=1, max_size=6), st.integers(0, 6))
def test_what_was_said_before_is_not_kept_again(said: list[Message], known: int) -> None:
    request = Request(model="v/a", messages=tuple(said), tools=({"name": "T"},), schema={"type": "object"})
    before = replace(request, messages=request.messages[:known])
    kept = delta(request, before)
    assert kept["keep"] == min(known, len(said))
    assert len(kept["messages"]) == max(0, len(said) - known)  # type: ignore[arg-type]
    assert kept.keys() == {"keep", "messages", "model", "max_tokens"}


def test_what_a_request_no_longer_has_is_said() -> None:
    before = Request(model="v/a", messages=(), tools=({"name": "T"},), temperature=0.5, schema={"type": "object"})
    plain = Request(model="v/a", messages=())
    kept = delta(plain, before)
    assert (kept["tools"], kept["temperature"], kept["schema"]) == ([], None, None)
    assert whole(kept, before) == plain


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 2},
        {"keep": -1},
        {"keep": "1"},
        {"messages": None},
        {"messages": [1]},
        {"messages": [{"role": "user"}]},
        {"model": ...},
        {"tools": 1},
    ],
)
def test_what_no_call_can_be_kept_as_is_refused(wrong: dict[str, Any]) -> None:
    before = Request(model="v/a", messages=(Message(role="user", content="x"),))
    kept: dict[str, Any] = {**delta(before, before), **wrong}
    with pytest.raises(ValueError, match="no model call as it is kept"):
        whole({k: v for k, v in kept.items() if v is not ...}, before)

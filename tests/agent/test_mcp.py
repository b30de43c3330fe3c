"""The client of MCP: what it says, what it makes of answers, and what it does not put up with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dagrun.agent import mcp
from dagrun.agent.mcp import McpLost, McpResult, Session, definitions, digest
from dagrun.core.names import Json

from .mcp_server import TOOLS, answer, tool

BEGUN: Json = {"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}}


def line(message: Json) -> bytes:
    return json.dumps(message).encode() + b"\n"


def talk(session: Session, *modes: str, until: int = 0) -> list[McpResult]:
    """Hand what is said to and fro until nobody has more to say."""
    found: list[McpResult] = []
    while messages := session.outgoing():
        for message in messages:
            made = answer(json.loads(mcp.encoded(message)), list(modes))
            if made is not None:
                found += session.feed(line(made))
    return found


def opened(*modes: str) -> Session:
    session = Session("hand")
    session.begin()
    talk(session, *modes)
    return session


def call(session: Session, name: str, *, room: int = 1000, **given: Json) -> McpResult:
    number = session.call(f"mcp__hand__{name}", given, room=room)
    (result,) = talk(session)
    assert result.id == number
    return result


# ---------------------------------------------------------------- the way of a session


def test_a_session_begins_with_a_handshake_and_a_list() -> None:
    session = Session("hand")
    session.begin()
    (first,) = session.outgoing()
    assert (first["method"], first["jsonrpc"]) == ("initialize", "2.0")
    params = first["params"]
    assert isinstance(params, dict)
    assert params["protocolVersion"] == mcp.PROTOCOLS[0]
    assert params["capabilities"] == {}  # nothing that a server could ask of us
    session.feed(line(answer(first, [])))
    second, third = session.outgoing()
    assert second == {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert third["method"] == "tools/list"
    assert session.tools is None
    session.feed(line(answer(third, [])))
    assert session.state == "ready"
    assert session.tools is not None
    assert len(session.tools) == len(TOOLS)


@pytest.mark.parametrize("protocol", mcp.PROTOCOLS)
def test_a_server_may_speak_an_older_protocol(protocol: str) -> None:
    session = Session("hand")
    session.begin()
    session.outgoing()
    session.feed(line({"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": protocol, "capabilities": {}}}))
    assert session.protocol == protocol
    assert session.tools == ()  # it said that it has none: it is not asked


def test_all_pages_are_read_in_whatever_order() -> None:
    assert opened("pages").tools == opened().tools


def test_a_page_without_end_is_an_error() -> None:
    session = Session("hand")
    session.begin()
    session.outgoing()
    session.feed(line(BEGUN))
    with pytest.raises(McpLost, match="more than 100 pages"):
        for number in range(2, 200):
            session.feed(line({"jsonrpc": "2.0", "id": number, "result": {"tools": [], "nextCursor": "again"}}))


def test_bytes_come_in_any_pieces() -> None:
    session = opened()
    number = session.call("mcp__hand__echo", {"text": "grüße"}, room=100)
    (message,) = session.outgoing()
    data = b"\r\n" + line(answer(message, [])).replace(b"\n", b"\r\n")
    found = [result for k in range(len(data)) for result in session.feed(data[k : k + 1])]
    assert found == [McpResult(number, True, "grüße")]


def test_a_ping_is_answered_and_all_else_refused() -> None:
    session = opened()
    session.feed(line({"jsonrpc": "2.0", "id": "a", "method": "ping"}))
    assert session.outgoing() == [{"jsonrpc": "2.0", "id": "a", "result": {}}]
    for method in ("sampling/createMessage", "roots/list", "elicitation/create", "tools/call"):
        session.feed(line({"jsonrpc": "2.0", "id": 7, "method": method, "params": {}}))
        (said,) = session.outgoing()
        assert (said["id"], said["error"]) == (7, {"code": -32601, "message": "not offered by this client"})
    session.feed(line({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}))
    assert session.outgoing() == []


def test_answers_come_in_any_order_and_one_that_nobody_waits_for_is_ignored() -> None:
    session = opened()
    one = session.call("mcp__hand__echo", {"text": "1"}, room=100)
    two = session.call("mcp__hand__echo", {"text": "2"}, room=100)
    late = session.call("mcp__hand__echo", {"text": "3"}, room=100)
    answers = [answer(message, []) for message in session.outgoing()]
    session.give_up(late, "timed out")
    (told,) = session.outgoing()
    assert (told["method"], told["params"]) == ("notifications/cancelled", {"requestId": late, "reason": "timed out"})
    found = [result for made in reversed(answers) for result in session.feed(line(made))]
    assert [(result.id, result.text) for result in found] == [(two, "2"), (one, "1")]
    with pytest.raises(McpLost, match="was not asked"):
        session.feed(line(answers[2]))


# ---------------------------------------------------------------- results


def test_results_become_text() -> None:
    session = opened()
    assert call(session, "echo", text="hello") == McpResult(3, True, "hello")
    failed = call(session, "fail")
    assert (failed.ok, failed.text) == (False, "it did not work")
    refused = call(session, "refuse")
    assert (refused.ok, refused.text) == (False, "the server refused the call: no tools/call (-32601)")
    odd = ["one", "[image omitted]", "[audio omitted]", "two", "[resource omitted]"]
    odd += ["[link: https://example.org/z]", "[content omitted]"]
    assert call(session, "odd").text.split("\n") == odd


def test_a_long_result_keeps_its_ends() -> None:
    shown = call(opened(), "big", room=200, size=5_000_000)
    assert len(shown.text) < 300
    assert "4,999,800 characters left out" in shown.text


def test_structured_content_alone_is_shown_as_json() -> None:
    session = opened()
    number = session.call("mcp__hand__echo", {}, room=100)
    session.outgoing()
    made: Json = {"jsonrpc": "2.0", "id": number, "result": {"content": [], "structuredContent": {"b": 1, "a": 2}}}
    assert session.feed(line(made))[0].text == '{"a": 2, "b": 1}'


# ---------------------------------------------------------------- definitions


def test_definitions_are_what_models_take_and_canonical() -> None:
    tools = opened().tools
    assert tools is not None
    names = [t["function"]["name"] for t in tools]  # type: ignore[index,call-overload]
    assert names == sorted(f"mcp__hand__{t['name']}" for t in TOOLS)
    assert tools[0] == {
        "type": "function",
        "function": {
            "name": "mcp__hand__big",
            "description": "A long text.",
            "parameters": {"type": "object", "properties": {"size": {"type": "integer"}}},
        },
    }


def test_the_digest_is_of_what_a_model_sees_and_of_nothing_else() -> None:
    one = definitions("s", TOOLS)[0]
    same = [{**t, "title": "new", "annotations": {}} for t in reversed(TOOLS)]
    assert digest(one) == digest(definitions("s", same)[0])
    changes: list[dict[str, Any]] = [{"description": "other"}, {"inputSchema": {"type": "object"}}, {"name": "renamed"}]
    for change in changes:
        assert digest(one) != digest(definitions("s", [{**TOOLS[0], **change}, *TOOLS[1:]])[0])
    assert digest(one) != digest(definitions("t", TOOLS)[0])


def test_what_no_model_can_call_is_left_out_with_a_note() -> None:
    wrong = [tool("a.b", ""), tool("x" * 80, ""), tool("ok", "first"), tool("ok", "second"), tool("a b", "")]
    found, names, notes = definitions("s", wrong)
    assert names == {"mcp__s__ok": "ok"}
    assert found[0]["function"]["description"] == "first"  # type: ignore[index,call-overload]
    assert len(notes) == 4
    assert "listed twice" in notes[2]


# ---------------------------------------------------------------- what ends a session


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"Welcome!\n", "no JSON"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        (b"7\n", "no JSON-RPC"),
        (b'{"id": 1, "result": {}}\n', "no JSON-RPC"),
        (b'{"jsonrpc": "2.0", "id": 1}\n', "no answer"),
        (b'{"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}\n', "no answer"),
        (b'{"jsonrpc": "2.0", "id": true, "result": {}}\n', "no answer"),
        (b'{"jsonrpc": "2.0", "id": "1", "result": {}}\n', "no answer"),
        (b'{"jsonrpc": "2.0", "id": 2, "result": {}}\n', "was not asked"),
        (b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "what?"}}\n', "could not read.*what"),
        (b'{"jsonrpc": "2.0", "id": 1, "result": []}\n', "no answer"),
        (b'{"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": "1999"}}\n', "speaks protocol 1999"),
        (b'{"jsonrpc": "2.0", "id": 1, "error": {"code": 5, "message": "no"}}\n', r"refused to begin: no \(5\)"),
    ],
)
def test_what_is_no_mcp_ends_it(said: bytes, why: str) -> None:
    session = Session("hand")
    session.begin()
    with pytest.raises(McpLost, match=why):
        session.feed(said)


def test_a_line_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "MAX_LINE_BYTES", 1000)
    with pytest.raises(McpLost, match="end its line"):
        Session("hand").feed(b"x" * 1001)


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ("x", "no tools"),
        ([7], "no tools"),
        ([{"name": 7}], "no tool"),
        ([{"name": "a", "inputSchema": 7}], "no tool"),
        ([{"name": "a", "inputSchema": {"type": "array"}}], "takes no object"),
        ([{"name": "a", "description": "x" * 20_000}], "at more than any length"),
        ([{"name": f"t{k}"} for k in range(600)], "more than 500 tools"),
        ([{"name": f"t{k}", "description": "x" * 16_000} for k in range(100)], "more than 1,048,576 bytes"),
    ],
)
def test_a_list_that_is_none_or_too_much_ends_it(tools: Any, why: str) -> None:
    session = Session("hand")
    session.begin()
    session.outgoing()
    session.feed(line(BEGUN))
    with pytest.raises(McpLost, match=why):
        session.feed(line({"jsonrpc": "2.0", "id": 2, "result": {"tools": tools}}))


def test_a_result_that_is_none_ends_it() -> None:
    results: list[Json] = [[], {"content": "x"}, {"content": [7]}]
    for result in results:
        session = opened()
        number = session.call("mcp__hand__echo", {}, room=100)
        with pytest.raises(McpLost, match="no result"):
            session.feed(line({"jsonrpc": "2.0", "id": number, "result": result}))


def test_a_tool_that_is_not_listed_is_not_called() -> None:
    session = opened()
    with pytest.raises(KeyError):
        session.call("mcp__hand__nothing", {}, room=100)
    assert session.outgoing() == []


# ---------------------------------------------------------------- a real server


def test_a_recorded_server_of_the_official_sdk() -> None:
    """What a server of the Python SDK 2.3.0 really said, to what this client really said."""
    recorded = json.loads(Path(__file__).with_name("mcp_sdk_transcript.json").read_text())
    session = Session("weather")
    session.begin()
    names = ["forecast", "forecast", "fail", "table", "picture"]
    given: list[dict[str, Json]] = [{"city": "Rome"}, {"days": "x"}, {}, {"city": "x"}, {}]
    said, found = session.outgoing(), []
    for direction, message in recorded:
        if direction == "→":
            if not said:
                session.call(f"mcp__weather__{names.pop(0)}", given.pop(0), room=500)
                said = session.outgoing()
            mine = said.pop(0)
            assert {**mine, "params": _anonymous(mine)} == {**message, "params": _anonymous(message)}
        else:
            found += session.feed(line(message))
            said += session.outgoing()
    assert not names
    assert session.protocol == "2025-11-25"
    assert [(r.ok, r.text.split("\n")[0]) for r in found] == [
        (True, "Rome: sun for 1 days"),
        (False, "Error executing tool forecast: 2 validation errors for forecastArguments"),
        (False, "Error executing tool fail"),
        (True, "{"),
        (True, "[image omitted]"),
    ]


def _anonymous(message: Any) -> Any:
    """The parameters of a message without who says it: that has our version in it."""
    return {key: value for key, value in message.get("params", {}).items() if key != "clientInfo"}

"""A run as OpenTelemetry spans: the shape of OTLP/JSON, the GenAI attributes, and that nothing said leaks."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dagrun.core.event import ReviewRequested, RunEnded
from dagrun.core.names import Outcome, RunStatus, Schedule
from dagrun.core.workflow import Node, Review
from dagrun.view.conversation import conversations
from dagrun.view.otel import otlp

from .agents_story import Talking, agent, broke, get, research
from .story import BEGIN, Story, node

# opentelemetry-proto, trace/v1/trace.proto and common/v1/common.proto: JSON name → type
SPAN = {
    "traceId": "id16",
    "spanId": "id8",
    "traceState": "str",
    "parentSpanId": "id8",
    "flags": "int",
    "name": "str",
    "kind": "enum5",
    "startTimeUnixNano": "int64",
    "endTimeUnixNano": "int64",
    "attributes": "attributes",
    "droppedAttributesCount": "int",
    "events": "list",
    "links": "list",
    "status": "status",
}
VALUES = {"stringValue": str, "boolValue": bool, "doubleValue": float}


def spans(story: Story, *, content: bool = False, status: RunStatus | None = None) -> list[dict[str, Any]]:
    document: Any = otlp(story.state, conversations(story.told), get, content=content, status=status)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert set(document) == {"resourceSpans"}
    ((resource,),) = (document["resourceSpans"],)
    assert set(resource) == {"resource", "scopeSpans"}
    assert attributes(resource["resource"])["service.name"] == "dagrun"
    ((scope,),) = (resource["scopeSpans"],)
    assert set(scope) == {"scope", "spans"}
    assert scope["scope"]["name"] == "dagrun"
    for span in scope["spans"]:
        check_span(span)
    found: list[dict[str, Any]] = scope["spans"]
    ids = [span["spanId"] for span in found]
    assert len(set(ids)) == len(ids)
    assert len({span["traceId"] for span in found}) == 1
    assert "parentSpanId" not in found[0]
    assert all(span["parentSpanId"] in ids for span in found[1:])
    return found


def check_span(span: dict[str, Any]) -> None:
    """Hold a span to the protocol's JSON: field names, ids in hex, 64-bit numbers as text, enums as numbers."""
    assert set(span) <= set(SPAN)
    for key, value in span.items():
        match SPAN[key]:
            case "id16":
                assert re.fullmatch(r"[0-9a-f]{32}", value)
                assert int(value, 16)
            case "id8":
                assert re.fullmatch(r"[0-9a-f]{16}", value)
                assert int(value, 16)
            case "str":
                assert isinstance(value, str)
            case "enum5":
                assert type(value) is int
                assert 0 < value <= 5
            case "int64":
                assert re.fullmatch(r"\d{1,19}", value)
            case "attributes":
                for item in value:
                    assert set(item) == {"key", "value"}
                    check_value(item["value"])
                keys = [item["key"] for item in value]
                assert len(set(keys)) == len(keys)
            case "status":
                assert set(value) <= {"message", "code"}
                assert value.get("code", 0) in (0, 1, 2)
            case other:
                raise AssertionError(other)
    assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])


def check_value(value: dict[str, Any]) -> None:
    ((key, held),) = value.items()
    if key == "intValue":
        assert re.fullmatch(r"-?\d{1,19}", held)
    elif key == "arrayValue":
        assert set(held) == {"values"}
        for item in held["values"]:
            check_value(item)
    else:
        assert type(held) is VALUES[key]


def attributes(holder: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for item in holder["attributes"]:
        ((kind, value),) = item["value"].items()
        found[item["key"]] = (
            int(value)
            if kind == "intValue"
            else [next(iter(v.values())) for v in value["values"]]
            if kind == "arrayValue"
            else value
        )
    return found


def named(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [span for span in found if span["name"] == name]


def calls(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The four calls of `scan`."""
    return [span for span in found if span["name"].startswith("chat")][:4]


def at(seconds: float) -> str:
    return str(round((BEGIN + seconds) * 10**9))


def test_the_tree_of_a_run() -> None:
    found = spans(research())
    names = {span["spanId"]: span["name"] for span in found}
    tree = [(span["name"], span["kind"], names.get(span.get("parentSpanId", ""), "")) for span in found]
    run, scan, write = "invoke_workflow release-notes", "invoke_agent scan", "invoke_agent write"
    assert tree == [
        (run, 1, ""),
        ("run check", 1, run),
        (scan, 1, run),
        ("chat claude-haiku-4-5", 3, scan),
        ("chat gpt-5", 3, scan),
        ("execute_tool Read", 1, scan),
        ("chat gpt-5", 3, scan),
        ("chat gpt-5", 3, scan),
        (write, 1, run),
        ("chat claude-haiku-4-5", 3, write),
    ]


def test_a_workflow_and_an_agent() -> None:
    found = spans(research())
    run = attributes(found[0])
    assert run["gen_ai.operation.name"] == "invoke_workflow"
    assert run["gen_ai.workflow.name"] == "release-notes"
    assert (run["dagrun.cost_usd"], run["dagrun.reserved_usd"], run["dagrun.cost_budget_usd"]) == (0.006, 0.01, 1.0)
    assert run["dagrun.unfinished"] is True
    (span,) = named(found, "invoke_agent scan")
    got = attributes(span)
    wanted = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.agent.name": "scan",
        "gen_ai.agent.id": "r7k2/scan",
        "gen_ai.agent.description": "the scout",
        "gen_ai.conversation.id": "r7k2/scan/1",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.output.type": "json",
        "gen_ai.usage.input_tokens": 3000,
        "gen_ai.usage.output_tokens": 600,
        "gen_ai.usage.cache_read.input_tokens": 1200,
        "gen_ai.usage.reasoning.output_tokens": 150,
        "dagrun.node": "scan",
        "dagrun.wave": 1,
        "dagrun.attempt": 1,
        "dagrun.isolation": "process",
        "dagrun.outcome": "completed",
        "dagrun.cost_usd": 0.006,
        "dagrun.model_asked": "cheap",
        "dagrun.skills": ["review@" + "ab" * 32],
    }
    assert {key: got.get(key) for key in wanted} == wanted
    assert (span["startTimeUnixNano"], span["endTimeUnixNano"]) == (at(0), at(6))


def test_calls() -> None:
    limited, left, _, last = calls(spans(research()))
    got = attributes(limited)
    assert (got["error.type"], got["http.response.status_code"]) == ("rate_limit", 429)
    assert limited["status"]["code"] == 2
    assert "gen_ai.usage.input_tokens" not in got, "nobody knows is not zero"
    got = attributes(left)
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.request.max_tokens": 256,
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-5-2026",
        "gen_ai.response.finish_reasons": ["tool_call"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 200,
        "gen_ai.usage.cache_read.input_tokens": 400,
        "gen_ai.usage.reasoning.output_tokens": 50,
        "dagrun.turn": 1,
        "dagrun.try": 2,
        "dagrun.call": 2,
        "dagrun.cost_usd": 0.002,
        "dagrun.reserved_usd": 0.01,
    }
    assert {key: got.get(key) for key in wanted} == wanted
    assert left["status"] == {}
    assert (left["startTimeUnixNano"], left["endTimeUnixNano"]) == (at(2), at(3))
    assert attributes(last)["gen_ai.response.finish_reasons"] == ["stop"]


def test_tools() -> None:
    story = research()
    story.use("write", "Bash", {"command": "ls"}, "no", ok=False, number=1, duration_ms=9_000)
    found = spans(story)
    (read,) = named(found, "execute_tool Read")
    assert attributes(read)["gen_ai.tool.name"] == "Read"
    assert (read["startTimeUnixNano"], read["endTimeUnixNano"]) == (at(3.1), at(3.5))
    (bash,) = named(found, "execute_tool Bash")
    assert attributes(bash)["error.type"] == "tool_error"
    (write,) = named(found, "invoke_agent write")
    assert int(bash["startTimeUnixNano"]) >= int(write["startTimeUnixNano"])
    assert int(bash["endTimeUnixNano"]) <= int(write["endTimeUnixNano"])


SAID = ("slow down", "Read the notes.", "You are careful.", "I read it", "secret of the file", "notes.md", "is missing")


def test_what_was_said_is_opt_in() -> None:
    without = json.dumps(spans(research()))
    assert not [text for text in SAID if text in without]
    assert "messages" not in without
    whole = spans(research(), content=True)
    text = json.dumps([attributes(span) for span in whole])
    assert "secret of the file" in text
    assert calls(whole)[0]["status"]["message"].startswith("slow down")
    _, _, third, last = map(attributes, calls(whole))
    assert json.loads(last["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": '{"summary": "x"}'}], "finish_reason": "stop"}
    ]
    assert json.loads(last["gen_ai.system_instructions"]) == [{"type": "text", "content": "You are careful."}]
    roles = [m["role"] for m in json.loads(last["gen_ai.input.messages"])]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    heard = json.loads(third["gen_ai.input.messages"])
    assert heard[1]["parts"][1] == {
        "type": "tool_call",
        "id": "c1",
        "name": "Read",
        "arguments": {"file_path": "notes.md"},
    }
    assert heard[2]["parts"] == [{"type": "tool_call_response", "id": "c1", "response": "secret of the file"}]
    (read,) = named(whole, "execute_tool Read")
    assert attributes(read)["gen_ai.tool.call.result"] == "secret of the file"


def test_failures_carry_their_type() -> None:
    story = broke()
    story.tell(RunEnded(status=RunStatus.OVER_BUDGET, exit_code=5, reason="not enough money left for write"))
    run, write, call = spans(story)
    assert (attributes(run)["error.type"], run["status"]["code"]) == ("over_budget", 2)
    assert "dagrun.unfinished" not in attributes(run)
    assert attributes(write)["error.type"] == "over_budget"
    assert write["status"]["message"].startswith("node write: $0.01 are left")
    assert attributes(call)["dagrun.cost_usd"] == 0.01
    assert "gen_ai.usage.input_tokens" not in attributes(call)


def test_an_error_that_may_quote_what_was_said_is_opt_in_too() -> None:
    story = Talking(agent("a"))
    story.begin("a").ask("a").at(1).end("a", Outcome.INVALID_OUTPUT, error=".: the key 'canary' is not allowed")
    _, span, _ = spans(story)
    assert (attributes(span)["error.type"], span["status"]) == ("invalid_output", {"code": 2, "message": ""})
    _, span, _ = spans(story, content=True)
    assert "canary" in span["status"]["message"]


def test_commands_and_reviews_have_spans_too() -> None:
    story = Story([node("a"), Node(id="b", review=Review(message="Go?"))], schedule=Schedule.READY)
    story.start("a").tell(ReviewRequested(node="b", attempt=1)).at(2).end("a", Outcome.FAILED, exit_code=3)
    run, command, review = spans(story, status=RunStatus.CRASHED)
    assert (review["name"], attributes(review)["dagrun.unfinished"]) == ("review b", True)
    assert attributes(run)["error.type"] == "crashed"
    got = attributes(command)
    assert (command["name"], got["process.exit.code"], got["error.type"]) == ("run a", 3, "failed")
    assert not [key for key in got if key.startswith("gen_ai.")]


def test_the_same_run_gives_the_same_spans_and_another_one_others() -> None:
    assert spans(research()) == spans(research())
    other = research()
    other.state.created_at += 1
    ids = {s["spanId"] for s in spans(research())} & {s["spanId"] for s in spans(other)}
    assert not ids
    assert spans(other)[0]["traceId"] != spans(research())[0]["traceId"]


@pytest.mark.parametrize(
    ("model", "provider", "name"),
    [
        ("anthropic/claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5"),
        ("vertex_ai/gemini-3", "gcp.vertex_ai", "gemini-3"),
        ("bedrock/anthropic.claude/v1", "aws.bedrock", "anthropic.claude/v1"),
        ("our-own/model", "our-own", "model"),
        ("bare", "dagrun", "bare"),
    ],
)
def test_providers_have_the_names_of_the_conventions(model: str, provider: str, name: str) -> None:
    story = Talking(agent("a"))
    story.begin("a").ask("a", model=model)
    call = attributes(spans(story)[-1])
    assert (call["gen_ai.provider.name"], call["gen_ai.request.model"]) == (provider, name)


def test_texts_that_no_protobuf_can_hold_are_made_sound() -> None:
    story = Talking(agent("a", title="half \udc80 a pair"))
    story.begin("a").at(1).end("a", Outcome.OVER_BUDGET, error="bad \udcff byte")
    body = json.dumps(spans(story), ensure_ascii=False)
    assert body.encode()
    assert "half ? a pair" in body
    assert "bad ? byte" in body

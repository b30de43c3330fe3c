"""Vendors by their own names: the user's keys and addresses, Anthropic's way to count, schemas asked for natively."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dagrun.agent.live import Live
from dagrun.agent.messages import Message, Request, ToolCall, Usage
from dagrun.agent.tools import catalogue
from tests.agent.openai_server import Behaviour, Server
from tests.agent.talking import Talk, need_litellm, request

OPENAI_KEY = "sk-canary-openai-0123456789"
ANTHROPIC_KEY = "sk-canary-anthropic-0123456789"
HF_KEY = "hf-canary-0123456789"
CLAUDE = "claude-sonnet-4-5"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def talk(server: Server) -> Iterator[Talk]:
    """A broker that knows keys of vendors, and that their users moved them to the server."""
    need_litellm()
    environ = {
        "OPENAI_API_KEY": OPENAI_KEY,
        "OPENAI_API_BASE": server.url,
        "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
        "ANTHROPIC_API_BASE": server.root,
        "HUGGINGFACE_API_KEY": HF_KEY,
        "DAGRUN_API_KEY": "for-another-endpoint-0123",
        "HOSTED_VLLM_API_BASE": server.url.replace("http:", "https:"),
        "LITELLM_DROP_PARAMS": "True",
    }
    live = Live(environ=environ)
    yield Talk(live)
    live.close()


@pytest.fixture(autouse=True)
def forget(server: Server) -> None:
    """Every test begins with no request seen."""
    server.requests.clear()
    server.behaviours.clear()


def test_a_vendor_gets_its_own_key(server: Server, talk: Talk) -> None:
    talk.reply(request("openai/gpt-4o"))
    server.behaviours[CLAUDE] = Behaviour(usage={"input_tokens": 1, "output_tokens": 1})
    talk.reply(request(f"anthropic/{CLAUDE}"))
    openai, anthropic = server.requests
    assert openai.headers["authorization"] == f"Bearer {OPENAI_KEY}"
    assert anthropic.headers["x-api-key"] == ANTHROPIC_KEY
    assert ANTHROPIC_KEY not in str(openai)
    assert OPENAI_KEY not in str(anthropic)
    assert "for-another-endpoint" not in str(server.requests)


def test_a_model_that_names_an_address_gets_no_key(server: Server, talk: Talk) -> None:
    failed = talk.failure(request(f"huggingface/{server.url}"))
    assert failed.kind == "bad_request"
    assert server.requests == []


def test_no_key_is_no_request_and_never_tried_again(talk: Talk) -> None:
    failed = talk.failure(request("groq/llama-3.3-70b-versatile"))
    assert (failed.kind, failed.status) == ("auth", None)
    assert failed.message == "the call was not sent: no credentials: set GROQ_API_KEY"


def test_an_unknown_vendor_is_refused_before_anything_is_sent(talk: Talk) -> None:
    assert talk.failure(request("nosuchvendor/model")).kind == "bad_request"


def test_an_endpoint_without_a_secure_connection_is_never_tried_again(server: Server, talk: Talk) -> None:
    failed = talk.failure(request("hosted_vllm/model"))
    assert (failed.kind, failed.status) == ("bad_request", None)
    assert failed.message.startswith("no secure connection")
    assert server.requests == []


def test_a_parameter_that_the_model_does_not_take_is_no_parameter_to_drop(server: Server, talk: Talk) -> None:
    failed = talk.failure(request("openai/gpt-5", temperature=0.3))
    assert (failed.kind, failed.status) == ("bad_request", None)
    assert "temperature" in failed.message
    assert server.requests == []


def test_anthropic_counts_cached_tokens_apart_and_here_they_are_part_of_the_input(server: Server, talk: Talk) -> None:
    counted = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 30,
        "output_tokens": 9,
    }
    server.behaviours[CLAUDE] = Behaviour(usage=counted, tool_calls=(("t1", "Read", '{"path": "a"}'),))
    reply = talk.reply(request(f"anthropic/{CLAUDE}", max_tokens=333, tools=tuple(catalogue(["Read"]))))
    assert reply.usage == Usage(input=140, output=9, cached=100, cache_written=30)
    assert (reply.text, reply.finish) == ("Hello from the server.", "tool_calls")
    assert reply.tool_calls == (ToolCall(id="t1", name="Read", arguments={"path": "a"}),)
    (seen,) = server.requests
    assert seen.path == "/v1/messages"
    assert seen.body["max_tokens"] == 333
    assert "service_tier" not in seen.body
    assert "cache_control" not in seen.raw.decode()


def test_anthropic_gets_a_conversation_with_tools(server: Server, talk: Talk) -> None:
    server.behaviours[CLAUDE] = Behaviour(usage={"input_tokens": 1, "output_tokens": 1})
    calls = (
        ToolCall(id="t1", name="Read", arguments={"path": "a"}),
        ToolCall(id="t2", name="Bash", arguments=None, text='{"comm'),
    )
    conversation = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="go"),
        Message(role="assistant", content="", tool_calls=calls),
        Message(role="tool", content="text", tool_call_id="t1"),
        Message(role="tool", content="no JSON", tool_call_id="t2"),
        Message(role="assistant", content=""),
        Message(role="user", content="well?"),
    )
    tools = tuple(catalogue(["Read", "Bash"]))
    talk.reply(Request(model=f"anthropic/{CLAUDE}", messages=conversation, tools=tools))
    body = server.requests[0].body
    used = [part for part in body["messages"][1]["content"] if part["type"] == "tool_use"]
    assert [part["input"] for part in used] == [{"path": "a"}, {"unreadable": '{"comm'}]
    assert "Be brief." in str(body["system"])


@pytest.mark.parametrize(
    ("mode", "status", "kind"),
    [
        ("error", 529, "overloaded"),
        ("error", 429, "rate_limit"),
        ("error", 500, "overloaded"),
        ("error", 401, "auth"),
        ("error", 400, "bad_request"),
        ("error", 422, "bad_request"),
        ("hang", None, "timeout"),
        ("cut", None, "cut"),
        ("cut_after_head", None, "cut"),
        ("cut_after_text", None, "cut"),
        ("ends_early", None, "cut"),
        ("error_after_text", None, "cut"),
        ("error_event", None, "overloaded"),
        ("html", None, "bad_request"),
        ("redirect", 307, "bad_request"),
    ],
)
def test_errors_of_another_protocol_are_told_alike_after_one_request(
    server: Server, talk: Talk, mode: str, status: int | None, kind: str
) -> None:
    server.behaviours[CLAUDE] = Behaviour(
        mode=mode,  # type: ignore[arg-type]
        status=status or 200,
        usage={"input_tokens": 10, "output_tokens": 9},
        headers={"Retry-After": "3"},
    )
    failed = talk.failure(request(f"anthropic/{CLAUDE}"), timeout_s=0.7 if mode == "hang" else 30)
    assert (failed.kind, failed.status) == (kind, status)
    assert failed.retry_after_s == (3 if mode == "error" else None)
    assert len(server.requests) == 1


SCHEMA = {"type": "object", "properties": {"found": {"type": "string"}}, "required": ["found"]}


def test_a_shape_is_asked_for_where_litellm_knows_that_very_model(server: Server, talk: Talk) -> None:
    talk.reply(request("openai/gpt-4o", schema=SCHEMA))
    talk.reply(request("openai/gpt-4o-of-mine", schema=SCHEMA))
    talk.reply(request("openai/gpt-4o", schema=SCHEMA, tools=tuple(catalogue(["Read"]))))
    talk.reply(request("openai/gpt-4o", schema={"type": "array"}))
    asked, *others = [seen.body.get("response_format") for seen in server.requests]
    assert asked == {"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA, "strict": False}}
    assert others == [None, None, None]

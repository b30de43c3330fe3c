"""One call through the real broker and the real litellm to a server that speaks OpenAI's interface, and fails it.

These hold litellm to what was measured of it: they decide whether another version can be taken.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from dagrun.agent.live import Live
from dagrun.agent.messages import CallFailed, Message, Reply, Request, ToolCall, Usage
from dagrun.agent.tools import catalogue
from tests.agent.openai_server import Behaviour, Server
from tests.agent.talking import Talk, need_litellm, request

KEY = "sk-canary-0123456789"
VENDOR_KEYS = {
    "OPENAI_API_KEY": "sk-vendor-openai-0123",
    "ANTHROPIC_API_KEY": "sk-vendor-anthropic-0123",
    "AWS_SECRET_ACCESS_KEY": "vendor-aws-secret-0123",
    "OPENAI_ORGANIZATION": "org-of-the-user",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def talk(server: Server) -> Iterator[Talk]:
    """A broker that sends everything to the server."""
    need_litellm()
    live = Live(environ={**VENDOR_KEYS, "DAGRUN_API_KEY": KEY}, base_url=server.url)
    yield Talk(live)
    live.close()


@pytest.fixture
def model(server: Server, request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return f"m-{request.node.name}".translate(str.maketrans("[]/ ", "----"))


def answering(server: Server, model: str, behaviour: Behaviour) -> str:
    server.behaviours[model] = behaviour
    return f"x/{model}"


# ---------------------------------------------------------------- what is sent


def test_a_call_is_one_streamed_request_with_its_limits_and_nothing_else(
    server: Server, talk: Talk, model: str
) -> None:
    talk.reply(request(f"x/{model}", "what is it?", max_tokens=77, temperature=0.5))
    (seen,) = server.seen(model)
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "model": model,
        "messages": [{"role": "user", "content": "what is it?"}],
        "max_tokens": 77,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_an_endpoint_gets_its_own_key_and_none_of_a_vendor(server: Server, talk: Talk, model: str) -> None:
    talk.reply(request(f"openai/{model}"))
    talk.reply(request(f"anthropic/{model}"))
    for seen in server.seen(model):
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert "org-of-the-user" not in str(seen.headers)
        for value in VENDOR_KEYS.values():
            assert value not in str(seen.headers) + seen.raw.decode()
    assert len(server.seen(model)) == 2


def test_the_conversation_is_sent_as_it_was(server: Server, talk: Talk, model: str) -> None:
    calls = (
        ToolCall(id="c1", name="Read", arguments={"path": "ä.txt", "limit": 3}),
        ToolCall(id="c2", name="Bash", arguments=None, text='{"command": '),
    )
    conversation = (
        Message(role="system", content="You are brief."),
        Message(role="user", content="Read \udce4 it."),
        Message(role="assistant", content=""),
        Message(role="assistant", content="", tool_calls=calls),
        Message(role="tool", content="three lines", tool_call_id="c1"),
        Message(role="tool", content="not JSON", tool_call_id="c2"),
    )
    tools = tuple(catalogue(["Read", "Bash"]))
    talk.reply(Request(model=f"x/{model}", messages=conversation, tools=tools))
    body = server.seen(model)[0].body
    assert body["tools"] == list(tools)
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert body["messages"][1]["content"] == "Read ? it."
    first, second = body["messages"][2]["tool_calls"]
    assert (first["id"], first["type"], first["function"]["name"]) == ("c1", "function", "Read")
    assert json.loads(first["function"]["arguments"]) == {"path": "ä.txt", "limit": 3}
    assert json.loads(second["function"]["arguments"]) == {"unreadable": '{"command": '}
    assert body["messages"][3] == {"role": "tool", "content": "three lines", "tool_call_id": "c1"}


def test_an_endpoint_is_not_asked_for_a_schema_that_it_may_not_know(server: Server, talk: Talk, model: str) -> None:
    talk.reply(request("x/gpt-4o", schema={"type": "object", "properties": {}}))
    assert "response_format" not in server.seen("gpt-4o")[0].body


@pytest.mark.parametrize(
    "name", ["huggingface/{url}", "openai/{url}", "x/a b", "x/../admin", "x/a?b=c", "x/a#b", "x/", "/m", "m", "x/a\n"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(server: Server, talk: Talk, name: str) -> None:
    before = len(server.requests)
    failed = talk.failure(request(name.format(url=server.url)))
    assert (failed.kind, failed.status) == ("bad_request", None)
    assert "is no model" in failed.message
    assert len(server.requests) == before


# ---------------------------------------------------------------- what comes back


def test_a_reply_has_its_text_usage_model_and_times(server: Server, talk: Talk, model: str) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    b = Behaviour(text="It is — a stream.", usage=usage, answers_as=f"{model}-2026-01-01", reasoning="I think")
    reply = talk.reply(request(answering(server, model, b)))
    assert (reply.text, reply.finish, reply.tool_calls) == ("It is — a stream.", "stop", ())
    assert reply.usage == Usage(input=100, output=20, cached=60, cache_written=0, reasoning=5)
    assert reply.model == f"{model}-2026-01-01"
    assert reply.first_token_ms is not None
    assert 0 <= reply.first_token_ms <= reply.duration_ms


def test_no_usage_is_no_usage_though_litellm_makes_one_up(server: Server, talk: Talk, model: str) -> None:
    reply = talk.reply(request(answering(server, model, Behaviour(usage=None))))
    assert reply.text == "Hello from the server."
    assert reply.usage is None


@pytest.mark.parametrize("usage", [{"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {}])
def test_usage_of_nothing_is_no_usage(server: Server, talk: Talk, model: str, usage: dict[str, int]) -> None:
    assert talk.reply(request(answering(server, model, Behaviour(usage=usage)))).usage is None


def test_reasoning_that_is_counted_apart_is_part_of_the_output(server: Server, talk: Talk, model: str) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 60,
        "completion_tokens_details": {"reasoning_tokens": 30},
    }
    reply = talk.reply(request(answering(server, model, Behaviour(usage=usage))))
    assert reply.usage == Usage(input=10, output=50, reasoning=30)


def test_tool_calls_come_without_the_package_mcp(server: Server, talk: Talk, model: str) -> None:
    calls = (
        ("c1", "Read", '{"path": "a.txt"}'),
        ("c2", "Bash", '{"command": "ls'),
        ("c3", "Grep", "[1]"),
        ("", "Glob", ""),
    )
    wanted = request(
        answering(server, model, Behaviour(text="Let me see.", tool_calls=calls)), tools=tuple(catalogue(["Read"]))
    )
    reply = talk.reply(wanted)
    assert (reply.text, reply.finish) == ("Let me see.", "tool_calls")
    assert reply.tool_calls == (
        ToolCall(id="c1", name="Read", arguments={"path": "a.txt"}),
        ToolCall(id="c2", name="Bash", arguments=None, text='{"command": "ls'),
        ToolCall(id="c3", name="Grep", arguments=None, text="[1]"),
        ToolCall(id="call_3", name="Glob", arguments={}),
    )


@pytest.mark.parametrize(
    "text",
    ['{"n": NaN}', '{"n": 1e999}', '{"n": 1, "n": 2}', '{"n": ' * 300 + "1" + "}" * 300, '{"n": "\\ud800"}'],
    ids=["nan", "endless", "twice", "deep", "half"],
)
def test_arguments_that_no_journal_could_hold_are_kept_as_text(
    server: Server, talk: Talk, model: str, text: str
) -> None:
    calls = (("c1", "Read", text),)
    reply = talk.reply(request(answering(server, model, Behaviour(text="", tool_calls=calls))))
    assert reply.tool_calls == (ToolCall(id="c1", name="Read", arguments=None, text=text),)


@pytest.mark.parametrize(
    ("behaviour", "finish", "text"),
    [
        (Behaviour(finish="length"), "length", "Hello from the server."),
        (Behaviour(finish="content_filter", text="I"), "refused", "I"),
        (Behaviour(text="", refusal="I can't help with that."), "refused", "I can't help with that."),
        (Behaviour(finish="tool_calls"), "stop", "Hello from the server."),
        (Behaviour(finish="stop", text="", tool_calls=(("c", "Read", "{}"),)), "tool_calls", ""),
        (Behaviour(finish="length", text="", tool_calls=(("c", "Read", '{"a'),)), "length", ""),
    ],
)
def test_why_it_ended(server: Server, talk: Talk, model: str, behaviour: Behaviour, finish: str, text: str) -> None:
    reply = talk.reply(request(answering(server, model, behaviour)))
    assert (reply.finish, reply.text) == (finish, text)


def test_a_connection_serves_one_call_after_another(server: Server, talk: Talk, model: str) -> None:
    name = answering(server, model, Behaviour())
    before = server.connections
    for number in range(12):  # each with a time of its own, as attempts have
        talk.reply(request(name), timeout_s=30 + number / 7)
    assert server.connections - before <= 2  # the first one may just have been given up


def test_the_last_words_are_told_while_it_talks_but_not_too_often(server: Server, talk: Talk, model: str) -> None:
    name = answering(server, model, Behaviour(mode="drip_text", latency_s=0.02))
    began = time.monotonic()
    number = talk.ask(request(name), timeout_s=2.0)
    failed = talk.wait(number)
    took = time.monotonic() - began
    assert isinstance(failed, CallFailed)
    assert failed.kind == "timeout"
    assert failed.partial.startswith("word0 word1 ")
    said = talk.said(number)
    assert said[0].startswith("word0 ")
    assert 2 <= len(said) <= 4 * took + 1
    assert all(len(text) <= 200 for text in said)
    assert said[-1] in failed.partial


def test_a_key_that_an_endpoint_echoes_is_seen_nowhere(server: Server, talk: Talk, model: str) -> None:
    b = Behaviour(text=f"Your key is {KEY}.", tool_calls=(("c", "Read", json.dumps({"path": KEY})),), pieces=9)
    number = talk.ask(request(answering(server, model, b)))
    reply = talk.wait(number)
    assert KEY not in str(reply) + str(talk.said(number))
    assert isinstance(reply, Reply)
    assert reply.text == "Your key is ***."


# ---------------------------------------------------------------- errors


ERROR = {"message": f"it went wrong with {KEY}", "type": "some_error"}
TOO_LONG = {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"}


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, ERROR, "bad_request"),
        (400, TOO_LONG, "context_too_long"),
        (401, ERROR, "auth"),
        (402, ERROR, "bad_request"),
        (403, ERROR, "auth"),
        (404, ERROR, "bad_request"),
        (408, ERROR, "overloaded"),
        (409, ERROR, "overloaded"),
        (413, ERROR, "context_too_long"),
        (422, ERROR, "bad_request"),
        (429, ERROR, "rate_limit"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "bad_request"),
        (500, ERROR, "overloaded"),
        (502, ERROR, "overloaded"),
        (503, ERROR, "overloaded"),
        (504, ERROR, "timeout"),
        (529, ERROR, "overloaded"),
    ],
)
def test_a_status_is_an_error_of_its_class_after_one_request(
    server: Server, talk: Talk, model: str, status: int, error: dict[str, str], kind: str
) -> None:
    b = Behaviour(mode="error", status=status, error=error, headers={"X-Should-Retry": "true"})
    failed = talk.failure(request(answering(server, model, b)))
    assert (failed.kind, failed.status, failed.retry_after_s) == (kind, status, None)
    assert error["message"].split()[0] in failed.message
    assert KEY not in failed.message
    assert "litellm" not in failed.message
    assert len(server.seen(model)) == 1


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ({"Retry-After": "7"}, 7, 7),
        ({"Retry-After": "0.25"}, 0.25, 0.25),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5, 1.5),
        ({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(hours=20), usegmt=True)}, 36000, 72000),
        ({"Retry-After": format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)}, 0, 0),
    ],
)
def test_what_the_provider_asks_to_wait_is_passed_on(
    server: Server, talk: Talk, model: str, header: dict[str, str], least: float, most: float
) -> None:
    failed = talk.failure(request(answering(server, model, Behaviour(mode="error", status=429, headers=header))))
    assert failed.retry_after_s is not None
    assert least <= failed.retry_after_s <= most
    assert len(server.seen(model)) == 1


def test_a_server_that_says_nothing_is_left_in_time(server: Server, talk: Talk, model: str) -> None:
    gone, began = server.gone, time.monotonic()
    failed = talk.failure(request(answering(server, model, Behaviour(mode="hang"))), timeout_s=0.6)
    assert time.monotonic() - began < 5
    assert (failed.kind, failed.message) == ("timeout", "no answer within 0.6s")
    assert len(server.seen(model)) == 1
    _until(lambda: server.gone == gone + 1)


def test_a_server_that_drips_is_left_in_time(server: Server, talk: Talk, model: str) -> None:
    gone, began = server.gone, time.monotonic()
    failed = talk.failure(request(answering(server, model, Behaviour(mode="drip"))), timeout_s=2.2)
    assert time.monotonic() - began < 8
    assert (failed.kind, failed.partial) == ("timeout", "")
    _until(lambda: server.gone == gone + 1)


def test_a_refused_connection_is_not_billed(talk: Talk) -> None:
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        live = Live(environ={}, base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        try:
            failed = Talk(live).failure(request("x/m"))
        finally:
            live.close()
    assert (failed.kind, failed.status) == ("overloaded", None)
    assert failed.message.startswith("no connection")


def test_a_connection_that_ends_without_an_answer(server: Server, talk: Talk, model: str) -> None:
    failed = talk.failure(request(answering(server, model, Behaviour(mode="cut"))))
    assert (failed.kind, failed.status, failed.partial) == ("cut", None, "")
    assert failed.message.startswith("the connection ended without an answer")
    assert len(server.seen(model)) == 1


def test_a_connection_that_ends_after_the_head_is_cut(server: Server, talk: Talk, model: str) -> None:
    failed = talk.failure(request(answering(server, model, Behaviour(mode="cut_after_head"))))
    assert (failed.kind, failed.partial) == ("cut", "")
    assert len(server.seen(model)) == 1


@pytest.mark.parametrize("mode", ["cut_after_text", "ends_early", "error_after_text"])
def test_what_breaks_off_is_cut_and_keeps_what_came(server: Server, talk: Talk, model: str, mode: str) -> None:
    b = Behaviour(mode=mode, text="first second ", pieces=2)  # type: ignore[arg-type]
    failed = talk.failure(request(answering(server, model, b)))
    assert (failed.kind, failed.partial) == ("cut", "first s")
    assert len(server.seen(model)) == 1


def test_an_error_in_the_stream_before_any_text(server: Server, talk: Talk, model: str) -> None:
    failed = talk.failure(request(answering(server, model, Behaviour(mode="error_event"))))
    assert (failed.kind, failed.partial) == ("overloaded", "")
    assert "it went wrong" in failed.message


BEGUN = {"role": "assistant", "content": ""}
CALLING = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "Read", "arguments": "{"}}]}


@pytest.mark.parametrize("delta", [BEGUN, CALLING, {"reasoning_content": "I think"}], ids=["role", "tool", "thought"])
@pytest.mark.parametrize(
    "then",
    [b'data: {"error": {"message": "overloaded", "code": 503}}\n\n', b"data: {oops\n\n", b""],
    ids=["error", "noise", "end"],
)
def test_an_error_after_any_part_of_an_answer_is_presumed_billed(
    server: Server, talk: Talk, model: str, delta: object, then: bytes
) -> None:
    chunk = {**WHOLE, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
    body = b"data: " + json.dumps(chunk).encode() + b"\n\n" + then
    b = replace(raw(body, "text/event-stream"), missing=0 if then else 9)
    failed = talk.failure(request(answering(server, model, b)))
    assert failed.kind == "cut"
    assert len(server.seen(model)) == 1


NAUGHT: dict[str, object] = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize("mode", ["answer", "whole"])
@pytest.mark.parametrize(
    "usage",
    [
        {**NAUGHT, "prompt_tokens": -3},
        {**NAUGHT, "completion_tokens": -1},
        {**NAUGHT, "completion_tokens": float("nan")},
        {**NAUGHT, "completion_tokens": float("inf")},
        {**NAUGHT, "completion_tokens": 4.5},
        {**NAUGHT, "completion_tokens": "four"},
        {**NAUGHT, "completion_tokens": [4]},
        {**NAUGHT, "completion_tokens": {"a": 1}},
        {**NAUGHT, "prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
        {**NAUGHT, "prompt_tokens_details": {"cached_tokens": -1}},
        {**NAUGHT, "completion_tokens_details": {"reasoning_tokens": "many"}},
        {**NAUGHT, "prompt_tokens_details": "none"},
        {"tokens": 7},
    ],
    ids=str,
)
def test_usage_that_can_not_be_is_none_or_less_is_never_believed(
    server: Server, talk: Talk, model: str, mode: str, usage: dict[str, object]
) -> None:
    answer = talk.wait(talk.ask(request(answering(server, model, Behaviour(mode=mode, usage=usage)))))  # type: ignore[arg-type]
    counted = answer.usage if isinstance(answer, Reply) else None
    assert counted is None or (counted.input >= 3 and counted.output >= 4), answer
    assert isinstance(answer, Reply) or answer.kind == "cut", answer
    assert len(server.seen(model)) == 1


def test_a_web_page_is_no_answer(server: Server, talk: Talk, model: str) -> None:
    failed = talk.failure(request(answering(server, model, Behaviour(mode="html"))))
    assert failed.kind == "bad_request"
    assert "web page" in failed.message
    assert len(server.seen(model)) == 1


# ---------------------------------------------------------------- answers in one piece


WHOLE = {"id": "1", "object": "chat.completion", "created": 1, "model": "local"}


def whole(message: object, **more: object) -> bytes:
    """An answer in one piece, as local servers write it."""
    return json.dumps(
        {**WHOLE, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more}
    ).encode()


def raw(body: bytes, kind: str = "application/json", **more: str) -> Behaviour:
    return Behaviour(mode="raw", body=body, headers={"Content-Type": kind, **more} if kind else more)


def test_an_answer_in_one_piece_is_an_answer(server: Server, talk: Talk, model: str) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    b = Behaviour(mode="whole", text="It is — whole.", usage=usage, reasoning="I think", answers_as=f"{model}-1")
    number = talk.ask(request(answering(server, model, b)))
    reply = talk.wait(number)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish, reply.tool_calls, reply.model) == ("It is — whole.", "stop", (), f"{model}-1")
    assert reply.usage == Usage(input=100, output=20, cached=60, cache_written=0, reasoning=5)
    assert "".join(talk.said(number)) == "It is — whole."
    assert len(server.seen(model)) == 1


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}])
def test_one_piece_without_usage_has_none(server: Server, talk: Talk, model: str, usage: dict[str, int] | None) -> None:
    reply = talk.reply(request(answering(server, model, Behaviour(mode="whole", usage=usage))))
    assert (reply.text, reply.usage) == ("Hello from the server.", None)


def test_tool_calls_in_one_piece(server: Server, talk: Talk, model: str) -> None:
    calls = (("c1", "Read", '{"path": "a.txt"}'), ("c2", "Bash", '{"command": "ls'), ("", "Glob", ""))
    reply = talk.reply(request(answering(server, model, Behaviour(mode="whole", text="", tool_calls=calls))))
    assert (reply.text, reply.finish) == ("", "tool_calls")
    assert reply.tool_calls == (
        ToolCall(id="c1", name="Read", arguments={"path": "a.txt"}),
        ToolCall(id="c2", name="Bash", arguments=None, text='{"command": "ls'),
        ToolCall(id="call_2", name="Glob", arguments={}),
    )


@pytest.mark.parametrize(
    ("behaviour", "finish", "text"),
    [
        (Behaviour(mode="whole", finish="length"), "length", "Hello from the server."),
        (Behaviour(mode="whole", text="", refusal="I can't."), "refused", "I can't."),
        (raw(whole({"role": "assistant", "content": "hi"})), "stop", "hi"),
        (raw(json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()), "stop", "hi"),
        (raw(b"\xef\xbb\xbf \r\n" + whole({"content": "hi"}), "text/plain; charset=utf-8"), "stop", "hi"),
        (raw(whole({"content": "hi"}), ""), "stop", "hi"),
        (raw(gzip.compress(whole({"content": "hi"})), **{"Content-Encoding": "gzip"}), "stop", "hi"),
        (raw(whole({"content": "x" * 3_000_000})), "stop", "x" * 3_000_000),
        (raw(whole({"content": 'data: [DONE]\n\ndata: {"a": 1}'})), "stop", 'data: [DONE]\n\ndata: {"a": 1}'),
    ],
    ids=["length", "refusal", "stop", "sparse", "plain", "untyped", "packed", "large", "hostile"],
)
def test_whole_answers_of_many_kinds(
    server: Server, talk: Talk, model: str, behaviour: Behaviour, finish: str, text: str
) -> None:
    reply = talk.reply(request(answering(server, model, behaviour)))
    assert (reply.finish, reply.text) == (finish, text)
    assert len(server.seen(model)) == 1


STREAM = b"".join(
    b"data: " + json.dumps({**WHOLE, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    for choice in (
        {"index": 0, "delta": {"content": "streamed"}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    )
)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
def test_a_stream_by_a_wrong_name_is_a_stream(server: Server, talk: Talk, model: str, kind: str) -> None:
    b = raw(b": hello\n\n" + STREAM + b"data: [DONE]\n\n", kind)
    reply = talk.reply(request(answering(server, model, b)))
    assert (reply.text, reply.finish) == ("streamed", "stop")


@pytest.mark.parametrize(
    "behaviour",
    [
        replace(raw(whole({"content": "hi"})), missing=9),
        replace(raw(whole({"content": "hi"})[:-9])),
        raw(b"{}"),
        raw(b'"hi"'),
        raw(b""),
        raw(b"[" * 100_000),
        raw(b'{"a":' * 100_000),
        raw(json.dumps({**WHOLE, "choices": []}).encode()),
        raw(json.dumps({**WHOLE, "choices": [{"text": "of another interface"}]}).encode()),
    ],
    ids=["broken", "torn", "empty", "text", "nothing", "deep", "deeper", "no-choice", "no-message"],
)
def test_what_is_no_whole_answer_is_presumed_billed(
    server: Server, talk: Talk, model: str, behaviour: Behaviour
) -> None:
    failed = talk.failure(request(answering(server, model, behaviour)))
    assert failed.kind == "cut"
    assert len(server.seen(model)) == 1


def test_an_error_in_one_piece_that_is_called_a_success(server: Server, talk: Talk, model: str) -> None:
    told, whole_error = (
        talk.failure(request(answering(server, model, b)))
        for b in (Behaviour(mode="error_event"), raw(json.dumps({"error": {"message": "it went wrong"}}).encode()))
    )
    assert (whole_error.kind, whole_error.status) == (told.kind, told.status)
    assert "it went wrong" in whole_error.message


def test_one_piece_that_never_ends_is_left_in_time(server: Server, talk: Talk, model: str) -> None:
    b = replace(raw(whole({"content": "hi"})), mode="held", missing=9)
    failed = talk.failure(request(answering(server, model, b)), timeout_s=1.0)
    assert failed.kind == "timeout"


def test_a_redirect_is_not_followed(server: Server, talk: Talk, model: str) -> None:
    failed = talk.failure(request(answering(server, model, Behaviour(mode="redirect"))))
    assert failed.kind == "bad_request"
    assert "elsewhere" in failed.message
    assert len(server.seen(model)) == 1


# ---------------------------------------------------------------- many at once, and ends


def test_a_hundred_calls_are_open_at_once(server: Server, talk: Talk, model: str) -> None:
    name = answering(server, model, Behaviour(together=100))
    numbers = [talk.ask(request(name)) for _ in range(100)]
    assert all(isinstance(talk.wait(number), Reply) for number in numbers)
    assert len(server.seen(model)) == 100


def test_a_cancelled_call_is_ended_at_the_server_and_answered_once(server: Server, talk: Talk, model: str) -> None:
    gone = server.gone
    number = talk.ask(request(answering(server, model, Behaviour(mode="hang"))))
    _until(lambda: bool(server.seen(model)))
    talk.live.cancel(number)
    talk.live.cancel(number)
    failed = talk.wait(number)
    assert isinstance(failed, CallFailed)
    assert (failed.kind, failed.message) == ("cut", "cancelled")
    _until(lambda: server.gone == gone + 1)
    talk.live.cancel(number)  # of a call that is over: nothing
    assert talk.reply(request("x/after")).text


def _until(true: object) -> None:
    assert callable(true)
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)

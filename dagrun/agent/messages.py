"""What passes between an agent's loop and whoever answers it: requests, replies, errors, as plain data.

The same types for every provider (live, fake, replay), so that a recorded conversation can't be told
from a live one. JSON in, JSON out; no library of a vendor is known here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, TypeAlias, cast

from dagrun.core.names import Json

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "tool_calls", "length", "refused"]
ErrorKind: TypeAlias = Literal[
    "rate_limit",  # 429: wait as it says, then again, or the next candidate
    "overloaded",  # 500, 503, refused connection: again
    "timeout",  # no answer in time: presumed billed
    "cut",  # the stream broke off: presumed billed
    "bad_request",  # 400, 404, 402, an HTML body: never again
    "context_too_long",
    "auth",  # 401, 403, no key
    "unbounded",  # more usage than was reserved: a bug of the bound, the run stops spending
]
TRANSIENT: frozenset[ErrorKind] = frozenset({"rate_limit", "overloaded", "timeout", "cut"})
# nobody knows whether these were billed: what was reserved counts as spent
BILLED: frozenset[ErrorKind] = frozenset({"timeout", "cut"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool that a model wants called. `arguments` is what it wrote, parsed; None when that is no JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Json] | None
    text: str = ""  # the arguments as they were written, kept when they can't be parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation. `tool_calls` only of assistants, `tool_call_id` only of tools."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One model call. `tools` are definitions as tools.catalogue makes them.

    `model` is a candidate (`vendor/name`), `schema` asks for JSON of that shape where the provider can.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Json, ...] = ()
    max_tokens: int = 4096
    temperature: float | None = None
    schema: Json = None

    def canonical(self) -> str:
        """The request as one text that is the same for the same request, whoever made it."""
        return json.dumps(request_to_json(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def digest(self) -> str:
        """The sha256 of the canonical text."""
        return sha256(self.canonical().encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call. `cached` and `cache_written` are parts of `input`, `reasoning` of `output`."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered. `usage` None: the provider did not say, so all that was reserved is spent."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: FinishReason = "stop"
    usage: Usage | None = None
    model: str = ""  # the one that answered, as the provider names it
    first_token_ms: int | None = None
    duration_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed:
    """A call without a reply. `retry_after_s` is what the provider asked for; `partial` what came before a cut."""

    kind: ErrorKind
    message: str
    status: int | None = None
    retry_after_s: float | None = None
    partial: str = field(default="")


Answer: TypeAlias = Reply | CallFailed


def request_to_json(request: Request) -> dict[str, Json]:
    """The JSON form of a request; `request_from_json` is its inverse."""
    made: dict[str, Json] = {
        "model": request.model,
        "messages": [_message_to_json(m) for m in request.messages],
        "max_tokens": request.max_tokens,
    }
    if request.tools:
        made["tools"] = list(request.tools)
    if request.temperature is not None:
        made["temperature"] = request.temperature
    if request.schema is not None:
        made["schema"] = request.schema
    return made


def request_from_json(data: Mapping[str, Json]) -> Request:
    """The request that `request_to_json` made `data` from."""
    return Request(
        model=cast(str, data["model"]),
        messages=tuple(_message_from_json(cast("dict[str, Json]", m)) for m in cast("list[Json]", data["messages"])),
        tools=tuple(cast("list[Json]", data.get("tools", []))),
        max_tokens=cast(int, data["max_tokens"]),
        temperature=cast("float | None", data.get("temperature")),
        schema=data.get("schema"),
    )


def _message_to_json(message: Message) -> dict[str, Json]:
    made: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        made["tool_calls"] = [_call_to_json(c) for c in message.tool_calls]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    return made


def _message_from_json(data: Mapping[str, Json]) -> Message:
    return Message(
        role=cast(Role, data["role"]),
        content=cast(str, data["content"]),
        tool_calls=_calls_from_json(data),
        tool_call_id=cast(str, data.get("tool_call_id", "")),
    )


def _call_to_json(call: ToolCall) -> dict[str, Json]:
    made: dict[str, Json] = {"id": call.id, "name": call.name}
    if call.arguments is not None:
        made["arguments"] = dict(call.arguments)
    else:
        made["text"] = call.text
    return made


def _call_from_json(data: Mapping[str, Json]) -> ToolCall:
    arguments = cast("dict[str, Json] | None", data.get("arguments"))
    text = cast(str, data.get("text", ""))
    return ToolCall(id=cast(str, data["id"]), name=cast(str, data["name"]), arguments=arguments, text=text)


def _calls_from_json(data: Mapping[str, Json]) -> tuple[ToolCall, ...]:
    calls = cast("list[dict[str, Json]]", data.get("tool_calls", []))
    return tuple(_call_from_json(call) for call in calls)


def answer_to_json(answer: Answer) -> dict[str, Json]:
    """The JSON form of a reply or an error; `answer_from_json` is its inverse."""
    match answer:
        case Reply():
            made: dict[str, Json] = {"text": answer.text, "finish": answer.finish, "model": answer.model}
            if answer.tool_calls:
                made["tool_calls"] = [_call_to_json(c) for c in answer.tool_calls]
            if answer.usage is not None:
                u = answer.usage
                made["usage"] = [u.input, u.output, u.cached, u.cache_written, u.reasoning]
            made["first_token_ms"] = answer.first_token_ms
            made["duration_ms"] = answer.duration_ms
            return made
        case CallFailed():
            return {
                "error": answer.kind,
                "message": answer.message,
                "status": answer.status,
                "retry_after_s": answer.retry_after_s,
                "partial": answer.partial,
            }


def answer_from_json(data: Mapping[str, Json]) -> Answer:
    """The answer that `answer_to_json` made `data` from."""
    if "error" in data:
        return CallFailed(
            kind=cast(ErrorKind, data["error"]),
            message=cast(str, data["message"]),
            status=cast("int | None", data.get("status")),
            retry_after_s=cast("float | None", data.get("retry_after_s")),
            partial=cast(str, data.get("partial", "")),
        )
    usage = cast("list[int] | None", data.get("usage"))
    names = ("input", "output", "cached", "cache_written", "reasoning")
    return Reply(
        text=cast(str, data["text"]),
        tool_calls=_calls_from_json(data),
        finish=cast(FinishReason, data["finish"]),
        usage=None if usage is None else Usage(**dict(zip(names, usage, strict=True))),
        model=cast(str, data.get("model", "")),
        first_token_ms=cast("int | None", data.get("first_token_ms")),
        duration_ms=cast(int, data.get("duration_ms", 0)),
    )

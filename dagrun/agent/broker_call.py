"""One model call through litellm: our request into its words, its stream into our reply.

litellm covers up what is missing: it counts tokens itself where a provider reported none, it says "stop"
for a stream that just ended, it drops refusals. So what is believed is taken from the chunks as they came.
Handed in, never imported here: the module of litellm.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, cast

from dagrun.agent import keys
from dagrun.agent.broker_errors import failure, without_end
from dagrun.agent.broker_wire import CURRENT, Wire
from dagrun.agent.messages import Answer, CallFailed, ErrorKind, FinishReason, Message, Reply, Request, ToolCall, Usage
from dagrun.agent.structured import NoJson, strict
from dagrun.core.mask import Masker

CONNECT_S = 15.0
NEVER_S = 30 * 86400.0  # clients are kept by their time-outs: one of its own for each call would never be used again
NO_KEY = "none"  # what is sent where an endpoint wants no key, as clients insist on one
_FORBIDDEN = ("://", "//", "..", "?", "#", "%", "\\", "os.environ")
_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "refused",
    "refusal": "refused",
    "guardrail_intervened": "refused",
    "safety": "refused",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """What all calls share. `base_url` "" leaves the address to litellm and to the user's own variables."""

    litellm: Any
    environ: Mapping[str, str]
    base_url: str
    mask: Masker

    def parameters(self, request: Request) -> dict[str, Any]:
        """What litellm is called with. Raises ValueError for a model that could lead elsewhere, or has no key."""
        import httpx

        model = candidate(request.model, self.base_url)
        for _, names in keys.missing([model], self.environ, self.base_url):
            raise ValueError(f"no credentials: set {' and '.join(names)}")  # else some vendors are asked without
        key = self.environ.get(keys.ENDPOINT_KEY) or NO_KEY if self.base_url else keys.api_key(model, self.environ)
        made: dict[str, Any] = {
            "model": model,
            "messages": messages(request.messages),
            "max_tokens": request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            # ours comes first: these only keep litellm's own from being shorter
            "timeout": httpx.Timeout(NEVER_S, connect=CONNECT_S),
            "max_retries": 0,
            "num_retries": 0,
            "caching": False,
            "_skip_mcp_handler": True,
        }
        if key is not None:
            made["api_key"] = key
        if self.base_url:
            made["api_base"] = self.base_url
        if request.temperature is not None:
            made["temperature"] = request.temperature
        if request.tools:
            made["tools"] = list(request.tools)
        if self._native_schema(model, request):
            wanted = {"name": "output", "schema": request.schema, "strict": False}
            made["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return made

    def _native_schema(self, model: str, request: Request) -> bool:
        """Whether to ask the provider itself for the shape: only where litellm knows this very model.

        Not beside tools: for some vendors the shape is made a tool that must be called, and no other could be.
        """
        if not isinstance(request.schema, dict) or request.schema.get("type") != "object" or request.tools:
            return False
        vendor, _, name = model.partition("/")
        known = model in self.litellm.model_cost or name in self.litellm.model_cost
        return known and not self.base_url and bool(self.litellm.supports_response_schema(name, vendor))


class Call:
    """One call: `run` it, in a task of its own, then ask for the `answer`. `said` gets all the text so far."""

    def __init__(self, caller: Caller, request: Request, said: Callable[[str], None]) -> None:
        self._caller = caller
        self._request = request
        self._said = said
        self._wire = Wire()
        self._collected = Collected(monotonic())

    async def run(self) -> None:
        """Make the call. Raises whatever litellm raises."""
        CURRENT.set(self._wire)
        parameters = self._caller.parameters(self._request)
        stream = await self._caller.litellm.acompletion(**parameters)
        await self._collected.read(stream, self._said)

    def answer(self, error: BaseException | None) -> Answer:
        """What came of it, once `run` has ended, by `error` or without."""
        if error is not None:
            collected = self._collected
            return failure(self._wire, error, collected.text, self._caller.mask, began=collected.began_to_come)
        if self._collected.finish is None:
            return without_end(self._wire, self._collected.text, self._caller.mask)
        return self._collected.reply()

    def ended(self, kind: ErrorKind, text: str) -> CallFailed:
        """What came of it when it was ended from outside; of no kind that is billed if nothing can have been sent."""
        if not self._wire.reached:
            return CallFailed(kind="overloaded", message=f"{text}; nothing was sent")
        return CallFailed(kind=kind, message=text, partial=self._caller.mask.text(self._collected.text))


def candidate(model: str, base_url: str) -> str:
    """The model as litellm is to be told it. Raises ValueError for a name that could carry an address."""
    vendor, slash, name = model.partition("/")
    if not vendor or not slash or not name or not model.isascii() or not model.isprintable() or " " in model:
        raise ValueError(f"`{model}` is no model: it is written vendor/name")
    if any(part in model for part in _FORBIDDEN):
        raise ValueError(f"`{model}` is no model: a name holds no address")
    return f"openai/{name}" if base_url else model


# ---------------------------------------------------------------- the request


def messages(given: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The messages as OpenAI's interface has them; an assistant that said nothing at all is left out."""
    kept = [m for m in given if m.role != "assistant" or m.content or m.tool_calls]
    return [_message(message) for message in kept]


def _message(message: Message) -> dict[str, Any]:
    # half a surrogate pair, as a model or a file may hold it, can't be sent
    text = message.content.encode("utf-8", "replace").decode()
    made: dict[str, Any] = {"role": message.role, "content": text}
    if message.tool_calls:
        made["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.role == "tool":
        made["tool_call_id"] = message.tool_call_id
    return made


def _call(call: ToolCall) -> dict[str, Any]:
    # vendors that take objects can't be given what is none: the model sees again what it wrote
    arguments = {"unreadable": call.text} if call.arguments is None else dict(call.arguments)
    written = json.dumps(arguments, ensure_ascii=False).encode("utf-8", "replace").decode()
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": written}}


# ---------------------------------------------------------------- the reply


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Collected:
    """What came of a stream so far. `finish` None: no reason to end was given, whatever litellm says."""

    began: float
    text: str = ""
    refusal: str = ""
    model: str = ""
    finish: str | None = None
    usage: Usage | None = None
    first_token: float | None = None
    calls: dict[int, _Call] = field(default_factory=dict)
    raw: _Raw | None = None

    @property
    def began_to_come(self) -> bool:
        """Whether any part of an answer came."""
        return self.raw is not None and self.raw.came

    async def read(self, stream: Any, said: Callable[[str], None]) -> None:
        """Read the stream to its end; raises what litellm raises."""
        if stream.completion_stream is None:
            await stream.fetch_stream()
        raw = self.raw = _Raw(stream.completion_stream)
        stream.completion_stream = raw
        async for chunk in stream:
            if self._take(chunk):
                said(self.text)
            if raw.ended:
                break  # what follows is litellm's own: made-up usage, and its bookkeeping
        self.finish = stream.received_finish_reason or stream.intermittent_finish_reason
        self.refusal = raw.refusal
        self.model = raw.model or self.model
        self.usage = usage([found for c in stream.chunks if (found := getattr(c, "usage", None)) is not None])

    def _take(self, chunk: Any) -> bool:
        """Whether there was text in it."""
        self.model = self.model or str(getattr(chunk, "model", None) or "")
        if not chunk.choices:
            return False
        delta = chunk.choices[0].delta
        text = getattr(delta, "content", None)
        for call in getattr(delta, "tool_calls", None) or ():
            self._take_call(call)
            self.first_token = self.first_token or monotonic()
        if not text or not isinstance(text, str):
            return False
        self.first_token = self.first_token or monotonic()
        self.text += text
        return True

    def _take_call(self, piece: Any) -> None:
        """Add a piece of a tool call: by its index; an id that differs begins another one all the same."""
        index = piece.index if isinstance(getattr(piece, "index", None), int) else max(self.calls, default=0)
        known = self.calls.get(index)
        if known is not None and piece.id and known.id and piece.id != known.id:
            index = max(self.calls) + 1
        call = self.calls.setdefault(index, _Call())
        call.id = call.id or piece.id or ""
        call.name += (piece.function.name or "") if not call.name else ""
        call.arguments += piece.function.arguments or ""

    def reply(self) -> Reply:
        """The finished reply."""
        now = monotonic()
        calls = tuple(_tool_call(index, call) for index, call in sorted(self.calls.items()))
        return Reply(
            text=self.text or self.refusal,
            tool_calls=calls,
            finish=self._reason(bool(calls)),
            usage=self.usage,
            model=self.model,
            first_token_ms=None if self.first_token is None else round((self.first_token - self.began) * 1000),
            duration_ms=round((now - self.began) * 1000),
        )

    def _reason(self, calls: bool) -> FinishReason:
        found = _FINISH.get(str(self.finish).lower(), "stop")
        if self.refusal and not self.text:
            return "refused"
        if found in ("stop", "tool_calls"):
            return "tool_calls" if calls else "stop"
        return found


class _Raw:
    """The vendor's own stream, passed on unchanged, with an eye on what litellm drops."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._next = cast("AsyncIterator[Any]", aiter(stream))
        self.ended = False
        self.came = False
        self.refusal = ""
        self.model = ""

    def __aiter__(self) -> _Raw:
        return self

    async def __anext__(self) -> Any:
        try:
            chunk = await anext(self._next)
        except StopAsyncIteration:
            self.ended = True
            raise
        self.came = self.came or _is_part(chunk)
        if isinstance(model := getattr(chunk, "model", None), str):
            self.model = model
        for choice in getattr(chunk, "choices", None) or ():
            if isinstance(refusal := getattr(getattr(choice, "delta", None), "refusal", None), str):
                self.refusal += refusal
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_part(chunk: Any) -> bool:
    """Whether a piece of a stream is of an answer: litellm makes empty ones of lines that are not."""
    if isinstance(chunk, dict):
        return any(chunk.get(name) for name in ("text", "tool_use", "usage"))
    return bool(getattr(chunk, "choices", None) or getattr(chunk, "usage", None))


def _tool_call(index: int, call: _Call) -> ToolCall:
    try:
        arguments = strict(call.arguments or "{}")
    except NoJson:
        arguments = None
    number = call.id or f"call_{index}"
    if not isinstance(arguments, dict):
        return ToolCall(id=number, name=call.name, arguments=None, text=call.arguments)
    return ToolCall(id=number, name=call.name, arguments=arguments)


def usage(reported: list[Any]) -> Usage | None:
    """The tokens that a provider reported; None when it did not, or reported what can't be.

    Reports of a stream are running totals. Cached and written tokens are parts of the input, reasoning
    is one of the output, also for vendors that count them apart.
    """
    made = [_counts(one) for one in reported]
    if not made or None in made:
        return None
    prompt, output, cached, written, reasoning, total = (max(column) for column in zip(*cast("list[_Counts]", made)))
    if cached + written > prompt:
        prompt += cached + written
    if reasoning and (reasoning > output or total == prompt + output + reasoning):
        output += reasoning
    return Usage(input=prompt, output=output, cached=cached, cache_written=written, reasoning=reasoning)


_Counts = tuple[int, int, int, int, int, int]


def _counts(one: Any) -> _Counts | None:
    given, answer = getattr(one, "prompt_tokens_details", None), getattr(one, "completion_tokens_details", None)
    found = (
        getattr(one, "prompt_tokens", None),
        getattr(one, "completion_tokens", None),
        getattr(given, "cached_tokens", None) or getattr(one, "cache_read_input_tokens", None),
        getattr(given, "cache_creation_tokens", None) or getattr(one, "cache_creation_input_tokens", None),
        getattr(answer, "reasoning_tokens", None),
        getattr(one, "total_tokens", None),
    )
    counts = tuple(0 if count is None else count for count in found)
    if any(type(count) is not int or count < 0 for count in counts) or not any(counts):
        return None
    return cast(_Counts, counts)

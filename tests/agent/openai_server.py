"""A server that speaks OpenAI's chat completions and Anthropic's messages, and fails in every way that providers do.

Standard library only. What it does with a request is chosen by the model that the request names, so that
one server does for all tests of a module; it keeps every request that it got.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Literal, Self

Mode = Literal[
    "answer",
    "error",  # `status`, `headers`, `error` as the body
    "limited",  # 429, and how long yet, until `latency_s` after the first request; then it answers
    "hang",  # takes the request and says nothing
    "cut",  # closes the connection without a byte
    "cut_after_head",  # status line and headers, then closes
    "cut_after_text",  # half of the text, then a connection that breaks
    "ends_early",  # half of the text, then an orderly end without a reason to finish
    "drip",  # a byte a second, for ever
    "drip_text",  # a piece of text every `latency_s`, for ever
    "html",  # 200 with a page for people
    "error_event",  # 200, then an error in the stream
    "error_after_text",
    "whole",  # 200 with one JSON answer though a stream was asked for
    "raw",  # `status`, `headers` and `body` as they are; then it closes if `missing` bytes more were promised
    "held",  # the same, but it does not close
    "redirect",
]
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What the server does with the requests for one model."""

    mode: Mode = "answer"
    text: str = "Hello from the server."
    tool_calls: tuple[tuple[str, str, str], ...] = ()  # id, name, arguments as written
    usage: Mapping[str, Any] | None = field(default_factory=lambda: USAGE)
    finish: str | None = None
    refusal: str = ""
    reasoning: str = ""
    latency_s: float = 0.0
    together: int = 0  # no answer before so many requests are open at once
    pieces: int = 4
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=lambda: {"message": "it went wrong", "type": "some_error"})
    answers_as: str = ""  # the model that it says it is
    body: bytes = b""
    missing: int = 0


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    raw: bytes
    at_m: float = field(default_factory=monotonic)

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw) if self.raw else {}

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))


class Server:
    """Listens on a free port of 127.0.0.1 while it is entered. `behaviours` by the name of a model."""

    def __init__(self, **behaviours: Behaviour) -> None:
        self.behaviours: dict[str, Behaviour] = dict(behaviours)
        self.requests: list[Seen] = []
        self.connections = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.gone = 0  # connections that the other side closed while they were served
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """The address of the OpenAI-compatible endpoint."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def root(self) -> str:
        """The address without a path."""
        return f"http://127.0.0.1:{self.port}"

    def seen(self, model: str) -> list[Seen]:
        """The requests for this model, in order."""
        return [one for one in list(self.requests) if one.model == model]

    def behaviour(self, seen: Seen) -> Behaviour:
        """What is done with a request."""
        return self.behaviours.get(seen.model, Behaviour())

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def listen() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    # ------------------------------------------------------------ HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (seen := await _request(reader, writer)) is not None:
                self.requests.append(seen)
                if not await self._answer(seen, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone += 1
        except asyncio.CancelledError:
            pass  # the server stops; asyncio would print it otherwise
        finally:
            writer.close()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open for another request."""
        b = self.behaviour(seen)
        talk = _Anthropic(seen, b) if seen.path.endswith("/messages") else _OpenAI(seen, b)
        match b.mode:
            case "hang":
                if not await reader.read(1):
                    self.gone += 1
                return False
            case "cut":
                return False
            case "cut_after_head":
                writer.write(_head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
                await writer.drain()
                return False
            case "drip":
                return await self._drip(reader, writer)
            case "html":
                page = b"<!doctype html><html><body>Welcome to the portal</body></html>"
                return await _send(writer, 200, {"Content-Type": "text/html; charset=utf-8"}, page)
            case "redirect":
                return await _send(writer, 307, {"Location": f"{self.root}/elsewhere/chat/completions"}, b"")
            case "error":
                kind = {"Content-Type": "application/json", **b.headers}
                return await _send(writer, b.status, kind, json.dumps(talk.error()).encode())
            case "limited":
                left_s = self.seen(seen.model)[0].at_m + b.latency_s - monotonic()
                if left_s > 0:
                    wait = {"Content-Type": "application/json", "Retry-After": str(math.ceil(left_s))}
                    return await _send(writer, 429, wait, json.dumps(talk.error()).encode())
                b = replace(b, mode="answer", latency_s=0.0)
                talk = _Anthropic(seen, b) if seen.path.endswith("/messages") else _OpenAI(seen, b)
            case "raw" | "held":
                writer.write(_head(b.status, {**b.headers, "Content-Length": str(len(b.body) + b.missing)}) + b.body)
                await writer.drain()
                return not b.missing or (b.mode == "held" and bool(await reader.read(1)))
        await self._gather(b.together)
        await asyncio.sleep(b.latency_s if b.mode != "drip_text" else 0)
        if b.mode == "whole" or not seen.body.get("stream"):
            return await _send(writer, 200, {"Content-Type": "application/json"}, json.dumps(talk.whole()).encode())
        writer.write(_head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **b.headers}))
        async for event in talk.events():
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
        if b.mode == "cut_after_text":
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _gather(self, together: int) -> None:
        """Wait until so many requests are here."""
        if together:
            self._waiting.append(self._loop.create_future())
            if len(self._waiting) == together:
                for one in self._waiting:
                    one.set_result(None)
            else:
                await self._waiting[-1]

    async def _drip(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """A comment of the stream, a byte a second: never silent, never done."""
        writer.write(_head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
        gone = asyncio.ensure_future(reader.read(1))
        while not gone.done():
            writer.write(b"1\r\n:\r\n")
            await writer.drain()
            await asyncio.wait([gone], timeout=1.0)
        self.gone += 1
        return False


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Seen | None:
    try:
        first_byte = await reader.readexactly(1)
        if not first_byte.isalpha():  # the beginning of TLS
            await _send(writer, 400, {}, b"plain HTTP is spoken here")
            return None
        head = first_byte + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(first.split(" ")[1], headers, body)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *[f"{name}: {value}" for name, value in headers.items()]]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _send(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes) -> bool:
    writer.write(_head(status, {**headers, "Content-Length": str(len(body))}) + body)
    await writer.drain()
    return True


def _pieces(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // max(1, count)))
    return [text[at : at + size] for at in range(0, len(text), size)]


# ---------------------------------------------------------------- OpenAI


class _OpenAI:
    def __init__(self, seen: Seen, behaviour: Behaviour) -> None:
        self._b = behaviour
        self._head = {"id": "chatcmpl-1", "created": 1, "model": behaviour.answers_as or seen.model}

    def error(self) -> dict[str, Any]:
        return {"error": dict(self._b.error)}

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._b.text or None}
        calls = [
            {"id": n, "type": "function", "function": {"name": f, "arguments": a}} for n, f, a in self._b.tool_calls
        ]
        message |= {"tool_calls": calls} if calls else {}
        message |= {"refusal": self._b.refusal or None, "reasoning_content": self._b.reasoning or None}
        choice = {"index": 0, "message": message, "finish_reason": self._finish()}
        usage = {} if self._b.usage is None else {"usage": dict(self._b.usage)}
        return {**self._head, "object": "chat.completion", "choices": [choice], **usage}

    async def events(self) -> AsyncIterator[bytes]:
        b = self._b
        if b.mode == "error_event":
            yield _sse(self.error())
            return
        yield self._delta({"role": "assistant", "content": ""})
        if b.reasoning:
            yield self._delta({"reasoning_content": b.reasoning})
        if b.mode == "drip_text":
            for count in range(10**6):
                await asyncio.sleep(b.latency_s)
                yield self._delta({"content": f"word{count} "})
        pieces = _pieces(b.text, b.pieces)
        if b.mode != "answer":
            pieces = pieces[: len(pieces) // 2]
        for piece in pieces:
            yield self._delta({"content": piece})
        if b.mode == "error_after_text":
            yield _sse(self.error())
        if b.mode != "answer":
            return
        if b.refusal:
            yield self._delta({"refusal": b.refusal})
        for index, (number, name, arguments) in enumerate(b.tool_calls):
            start = {"index": index, "id": number, "type": "function", "function": {"name": name, "arguments": ""}}
            yield self._delta({"tool_calls": [start]})
            for piece in _pieces(arguments, 3):
                yield self._delta({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield self._delta({}, self._finish())
        if b.usage is not None:
            yield _sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": dict(b.usage)})
        yield b"data: [DONE]\n\n"

    def _finish(self) -> str:
        return self._b.finish or ("tool_calls" if self._b.tool_calls else "stop")

    def _delta(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _sse({**self._head, "object": "chat.completion.chunk", "choices": [choice]})


def _sse(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


# ---------------------------------------------------------------- Anthropic


class _Anthropic:
    def __init__(self, seen: Seen, behaviour: Behaviour) -> None:
        self._b = behaviour
        usage = dict(behaviour.usage or {})
        self._output = usage.pop("output_tokens", 0)
        self._message: dict[str, Any] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": behaviour.answers_as or seen.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**usage, "output_tokens": 1},
        }

    def error(self) -> dict[str, Any]:
        return {"type": "error", "error": dict(self._b.error)}

    def whole(self) -> dict[str, Any]:
        content = [{"type": "text", "text": self._b.text}]
        return {**self._message, "content": content, "stop_reason": self._finish(), "usage": dict(self._b.usage or {})}

    async def events(self) -> AsyncIterator[bytes]:
        b = self._b
        if b.mode == "error_event":
            yield _named("error", self.error())
            return
        yield _named("message_start", {"type": "message_start", "message": self._message})
        yield self._block(0, {"type": "text", "text": ""})
        pieces = _pieces(b.text, b.pieces)
        if b.mode != "answer":
            pieces = pieces[: len(pieces) // 2]
        for piece in pieces:
            yield self._part(0, {"type": "text_delta", "text": piece})
        if b.mode == "error_after_text":
            yield _named("error", self.error())
        if b.mode != "answer":
            return
        yield _named("content_block_stop", {"type": "content_block_stop", "index": 0})
        for index, (name_id, name, arguments) in enumerate(b.tool_calls, 1):
            yield self._block(index, {"type": "tool_use", "id": name_id, "name": name, "input": {}})
            for piece in _pieces(arguments, 3):
                yield self._part(index, {"type": "input_json_delta", "partial_json": piece})
            yield _named("content_block_stop", {"type": "content_block_stop", "index": index})
        end = {"stop_reason": self._finish(), "stop_sequence": None}
        yield _named("message_delta", {"type": "message_delta", "delta": end, "usage": {"output_tokens": self._output}})
        yield _named("message_stop", {"type": "message_stop"})

    def _finish(self) -> str:
        return self._b.finish or ("tool_use" if self._b.tool_calls else "end_turn")

    def _block(self, index: int, block: dict[str, Any]) -> bytes:
        return _named("content_block_start", {"type": "content_block_start", "index": index, "content_block": block})

    def _part(self, index: int, delta: dict[str, Any]) -> bytes:
        return _named("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})


def _named(event: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {event}\n".encode() + _sse(data)

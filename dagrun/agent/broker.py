"""The broker: the one process that holds keys, imports litellm and speaks to providers.

`python -I -m dagrun.agent.broker FD`, FD being its end of a socket pair. It ends when the other end is
closed, whatever it is doing; writes no file; reads none of the project. It also calls the MCP servers that
are reached over HTTP, which waits for no import; one with `"models": false` does only that, and imports
nothing for more. Lines of JSON. To it:

    {"environ": {…}, "base_url": "", "models": true}       first, and once: keys never are in a process's start
    {"ask": 1, "request": {…}, "timeout_s": 300.0}         one model call
    {"cancel": 1}
    {"mcp": 1, "do": {…}}                                  one order for a server (broker_mcp.py); has its own numbers
    {"drop": 1}                                            nobody waits for what comes of it

From it:

    {"ready": 1, "litellm": "1.2.3"} | {"broken": "why"}   once
    {"id": 1, "said": "the last words so far"}             at most 4 a second a call
    {"id": 1, "answer": {…}}                               exactly one for each ask, also for one that was cancelled
    {"id": 1, "mcp": {…}}                                  exactly one for each order, also for one that was dropped

A call that is cancelled, or not answered in time, is ended for good: kind "cut" or "timeout", both of
them presumed billed; "overloaded" where nothing had left yet.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Coroutine, Mapping
from functools import partial
from time import monotonic
from typing import Any, NoReturn, TypeVar, cast

from dagrun.agent.broker_call import Call, Caller
from dagrun.agent.broker_mcp import Servers
from dagrun.agent.broker_wire import guard
from dagrun.agent.keys import key_values
from dagrun.agent.messages import Answer, CallFailed, ErrorKind, Request, answer_to_json, request_from_json
from dagrun.core.mask import Masker
from dagrun.core.names import Json, format_duration
from dagrun.sandbox.procs import hide_memory

T = TypeVar("T")
SAID_EVERY_S = 0.25
SAID_CHARS = 200
END_S = 2.0  # how long a call may take to end when it is told to; it is answered for all the same
IMPORT_S = 180
BEAT_S = 10.0
STUCK_S = 60  # a loop that does not turn for so long is ended by SIGALRM: the engine is told by the socket
MAX_UNREAD = 1 << 20  # bytes that the engine has not taken: then it gets no more last words
SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else a table is fetched at import, and swapped amid the run
    "LITELLM_MODE": "PRODUCTION",  # else a `.env` that happens to lie near is read
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "AWS_EC2_METADATA_SERVICE_NUM_ATTEMPTS": "1",
    "AIOHTTP_KEEPALIVE_TIMEOUT": "4",  # servers give up idle connections from 5 s on: a call sent then may be billed
}
MISSING = "litellm is not installed, and live models need it: pip install 'dagrun[llm]'"


def main() -> NoReturn:
    """Serve the descriptor that is the last argument until its other end is closed."""
    hide_memory()
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(IMPORT_S)
    asyncio.run(_serve(int(sys.argv[-1])))
    os._exit(0)


async def _serve(fd: int) -> None:
    loop = asyncio.get_running_loop()
    sys.set_asyncgen_hooks(finalizer=_Finalizer(loop))
    sock = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    await loop.create_connection(Link, sock=sock)
    await loop.create_future()  # for ever: Link ends the process


class _Finalizer:
    """Ends forgotten generators as asyncio does, but without waking its own loop: clients leave six a call behind."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()

    def __call__(self, generator: AsyncGenerator[Any, Any]) -> None:
        again = self._loop.call_soon if threading.get_ident() == self._thread else self._loop.call_soon_threadsafe
        again(self._close, generator)

    def _close(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._loop.create_task(_close(generator))


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


class Link(asyncio.Protocol):
    """The engine's end of the talk."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._broker: Broker | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can begin."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Do what each complete line says."""
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._obey(json.loads(line))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more: end at once, in the middle of whatever it is."""
        os._exit(0)

    def _obey(self, order: dict[str, Any]) -> None:
        match order:
            case {"environ": dict(environ), "base_url": str(base_url), "models": bool(models)} if self._broker is None:
                self._broker = Broker(self, environ, base_url, models=models)
            case {"ask": int(number), "request": dict(request), "timeout_s": float() | int() as limit} if self._broker:
                self._broker.ask(number, request_from_json(request), limit)
            case {"cancel": int(number)} if self._broker:
                self._broker.cancel(number)
            case {"mcp": int(number), "do": dict(order)} if self._broker:
                self._broker.order(number, order)
            case {"drop": int(number)} if self._broker:
                self._broker.drop(number)
            case _:
                os._exit(64)

    def tell(self, message: Mapping[str, Json]) -> None:
        """Send a line."""
        assert self._transport is not None
        self._transport.write(json.dumps(message).encode() + b"\n")

    @property
    def is_full(self) -> bool:
        """Whether the engine does not keep up."""
        return self._transport is not None and self._transport.get_write_buffer_size() > MAX_UNREAD


class Broker:
    """Open calls, and litellm as soon as it is there; open orders for MCP servers."""

    def __init__(self, link: Link, environ: Mapping[str, str], base_url: str, *, models: bool) -> None:
        self._link = link
        self._mask = Masker(key_values(environ))
        self._environ = dict(environ)
        self._base_url = base_url
        self._caller: Caller | None = None
        self._waiting: dict[int, tuple[Request, float]] = {}
        self._cancels: dict[int, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._servers = Servers()
        self._orders: dict[int, asyncio.Task[dict[str, Json]]] = {}
        self._models = models
        sys.stdout = sys.stderr = cast(Any, _Masked(self._mask))
        os.environ.update(self._environ)
        if models:
            self._spawn(self._start())
        else:
            self._beat()
            self._link.tell({"ready": 1, "litellm": ""})

    def ask(self, number: int, request: Request, timeout_s: float) -> None:
        """Make a call, or keep it until calls can be made."""
        if not self._models:
            self._answer(number, CallFailed(kind="bad_request", message="this broker asks no models"))
        elif self._caller is None:
            self._waiting[number] = (request, timeout_s)
        else:
            self._spawn(self._call(self._caller, number, request, timeout_s))

    def cancel(self, number: int) -> None:
        """End a call, if it is still open."""
        if self._waiting.pop(number, None) is not None:
            self._answer(number, CallFailed(kind="overloaded", message="cancelled; nothing was sent"))
        elif (cancel := self._cancels.get(number)) is not None and not cancel.done():
            cancel.set_result(None)

    def order(self, number: int, order: Mapping[str, Json]) -> None:
        """Do what an MCP server is wanted for, beside all else."""
        headers = order.get("headers")
        if isinstance(headers, dict):
            self._mask.add([str(value) for value in headers.values()])
        task = self._orders[number] = self._spawn(self._servers.do(order))
        task.add_done_callback(partial(self._ordered, number))

    def drop(self, number: int) -> None:
        """End an order, if it is still open."""
        task = self._orders.get(number)
        if task is not None:
            task.cancel()

    def _ordered(self, number: int, task: asyncio.Task[dict[str, Json]]) -> None:
        del self._orders[number]
        self._link.tell({"id": number, "mcp": {"lost": "it was ended"} if task.cancelled() else task.result()})

    async def _start(self) -> None:
        """Import litellm beside the loop, so that the end of the engine is seen meanwhile; then make what waits."""
        os.environ.update(SETTINGS)
        gc.disable()  # all that litellm makes as it is imported stays: looking for garbage in it takes half a second
        loading = asyncio.ensure_future(asyncio.to_thread(_load))
        await asyncio.wait({loading})
        if (error := loading.exception()) is not None:
            missing = isinstance(error, ImportError) and error.name == "litellm"
            self._link.tell({"broken": MISSING if missing else self._mask.text(f"litellm is broken: {error!r}")})
            return
        litellm = loading.result()
        await _warm(litellm)
        self._beat()
        self._caller = Caller(litellm, self._environ, self._base_url, self._mask)
        self._link.tell({"ready": 1, "litellm": _version()})
        waiting, self._waiting = self._waiting, {}
        for number, (request, timeout_s) in waiting.items():
            self.ask(number, request, timeout_s)

    async def _call(self, caller: Caller, number: int, request: Request, timeout_s: float) -> None:
        """One call from its ask to its answer, whatever litellm does with a cancellation."""
        call = Call(caller, request, _Teller(self, number))
        cancelled = self._cancels[number] = asyncio.get_running_loop().create_future()
        running = asyncio.ensure_future(call.run())
        await asyncio.wait({running, cancelled}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            answer = call.answer(running.exception())
        else:
            running.cancel()
            await asyncio.wait({running}, timeout=END_S)
            kind: ErrorKind = "cut" if cancelled.done() else "timeout"
            late = f"no answer within {format_duration(timeout_s)}"
            answer = call.ended(kind, "cancelled" if cancelled.done() else late)
            if running.done() and not running.cancelled():
                running.exception()  # looked at, so that nothing is said about it
        del self._cancels[number]
        self._answer(number, answer)

    def say(self, number: int, text: str) -> None:
        """Tell the last words of an answer that is still coming."""
        if not self._link.is_full and number in self._cancels:
            self._link.tell({"id": number, "said": _last_words(text, self._mask)})

    def _answer(self, number: int, answer: Answer) -> None:
        self._link.tell({"id": number, "answer": self._mask.value(answer_to_json(answer))})

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A bug of ours must not leave a call without an answer: the engine sees the socket close."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            sys.stderr.write(f"{error!r}\n")
            os._exit(70)

    def _beat(self) -> None:
        signal.alarm(STUCK_S)
        asyncio.get_running_loop().call_later(BEAT_S, self._beat)


class _Teller:
    """Tells the text of one call, not too often."""

    def __init__(self, broker: Broker, number: int) -> None:
        self._broker = broker
        self._number = number
        self._due = 0.0

    def __call__(self, text: str) -> None:
        now = monotonic()
        if now >= self._due:
            self._due = now + SAID_EVERY_S
            self._broker.say(self._number, text)


def _last_words(text: str, mask: Masker) -> str:
    """The end of a text without keys, and without what may be the beginning of one."""
    data = text[-(SAID_CHARS + mask.longest) :].encode("utf-8", "replace")
    shown, end = mask.settled(data)
    return shown[:end].decode("utf-8", "replace")[-SAID_CHARS:]


class _Masked:
    """What libraries print: to stderr, line by line, without keys."""

    encoding = "utf-8"

    def __init__(self, mask: Masker) -> None:
        self._mask = mask
        self._rest = ""

    def write(self, text: str) -> int:
        """Keep what has no end of line yet."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            os.write(2, self._mask.text(line).encode("utf-8", "replace") + b"\n")
        return len(text)

    def flush(self) -> None:
        """Lines are written at once."""

    def isatty(self) -> bool:
        """Never."""
        return False

    def fileno(self) -> int:
        """Where it goes."""
        return 2


def _load() -> Any:
    """litellm, set so that one call is one request, prints nothing and calls nobody else."""
    litellm: Any = importlib.import_module("litellm")
    import httpx  # it came with it

    transport = importlib.import_module("litellm.llms.custom_httpx.aiohttp_transport")
    guard(httpx.AsyncHTTPTransport, transport.LiteLLMAiohttpTransport)
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.drop_params = False
    litellm.modify_params = False
    litellm.disable_hf_tokenizer_download = True
    litellm.turn_off_message_logging = True
    return litellm


async def _warm(litellm: Any) -> None:
    """Let litellm import what it imports at the first call, and keep all of that out of the collector's way."""
    stream = await litellm.acompletion(
        model="openai/warm", messages=[{"role": "user", "content": "."}], mock_response=".", stream=True, api_key="none"
    )
    async for _ in stream:
        pass
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def _version() -> str:
    from importlib.metadata import version

    return version("litellm")


if __name__ == "__main__":
    main()

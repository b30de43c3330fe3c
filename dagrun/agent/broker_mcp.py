"""MCP servers that are reached over HTTP, called from the broker: no node's sandbox has a way to them.

Streamable HTTP: each message is a POST, its answer JSON or a stream of events. Standard library only, one
thread for each request, whose socket is shut when nobody waits for it any more. Never goes to another
host than the one it was given; whether it may go there is for who gave it. `Servers` is what the broker
hands messages to:

    {"open": KEY, "server", "url", "headers": {…}, "timeout_s"}   → {"tools": […], "notes": […]} | {"lost": "why"}
    {"call": KEY, "tool", "arguments", "room", "timeout_s"}       → {"ok": true, "text": "…"}    | {"lost": "why"}
    {"close": KEY}                                                → {}

A call of a server that lists other tools than it did at first is not made: {"lost": "why", "denied": true}.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import TypeVar, cast
from urllib.parse import SplitResult, urljoin, urlsplit

from dagrun.agent.mcp import MAX_LINE_BYTES, McpLost, McpResult, Message, Session, decoded, digest, encoded
from dagrun.core.names import Json, format_duration

T = TypeVar("T")
MAX_REDIRECTS = 3
MAX_BODY_BYTES = MAX_LINE_BYTES
CLOSE_S = 2.0
_EVENTS = "text/event-stream"


# ---------------------------------------------------------------- one server


class _Gone(McpLost):
    """The server does not know the session any more."""


class _Changed(McpLost):
    """The server lists other tools than it did at first."""


class HttpServer:
    """One session with a server over HTTP. `headers` are sent with each request, and told to nobody."""

    def __init__(self, name: str, url: str, headers: Mapping[str, str]) -> None:
        self._name = name
        self._url = urlsplit(url)
        self._headers = dict(headers)
        self._session = Session(name)
        self._session_id = ""
        self._digest = ""
        self._opening = asyncio.Lock()
        self._results: dict[int, McpResult] = {}
        self._lost = ""

    async def open(self, timeout_s: float) -> tuple[tuple[Json, ...], list[str]]:
        """Begin a session: its tools, and what was odd. Raises McpLost."""
        await asyncio.wait_for(self._open(), timeout_s)
        return self._session.tools or (), self._session.notes

    async def _open(self) -> None:
        self._session, self._session_id, self._results, self._lost = Session(self._name), "", {}, ""
        self._session.begin()
        await self._flush(self._session)
        if self._session.tools is None:
            raise McpLost("it did not list its tools")
        found = digest(self._session.tools)
        if self._digest and found != self._digest:
            raise _Changed(f"it lists tools with digest {found}, and it listed at first {self._digest}")
        self._digest = found

    async def call(self, tool: str, arguments: Mapping[str, Json], *, room: int, timeout_s: float) -> McpResult:
        """The result of a call; a session that the server forgot is begun again, once. Raises McpLost."""
        if tool not in self._session.known:
            return McpResult(0, False, f"the server `{self._name}` lists no tool {tool!r}")
        try:
            return await asyncio.wait_for(self._call(tool, arguments, room), timeout_s)
        except TimeoutError:
            return McpResult(0, False, f"timed out after {format_duration(timeout_s)}")

    async def _call(self, tool: str, arguments: Mapping[str, Json], room: int) -> McpResult:
        before = self._session
        try:
            return await self._call_once(tool, arguments, room)
        except _Gone:
            async with self._opening:
                if self._session is before:
                    await self._open()
            return await self._call_once(tool, arguments, room)

    async def _call_once(self, tool: str, arguments: Mapping[str, Json], room: int) -> McpResult:
        session = self._session
        number = session.call(tool, arguments, room=room)
        try:
            await self._flush(session)
            if number not in self._results:
                raise McpLost("it did not answer a call")
            return self._results.pop(number)
        except asyncio.CancelledError:
            session.give_up(number, "nobody waits for it any more")
            _behind(self._flush(session))
            raise

    async def close(self) -> None:
        """Tell the server that the session is over; whether it listens does not matter."""
        if self._session_id:
            try:
                await asyncio.wait_for(self._request("DELETE", b"", bool), CLOSE_S)
            except (McpLost, TimeoutError):
                pass

    # ------------------------------------------------------------ messages

    async def _flush(self, session: Session) -> None:
        """Send what is to be sent, one after the other, and take in what is answered."""
        while messages := session.outgoing():
            for message in messages:
                await self._post(session, message)

    async def _post(self, session: Session, message: Message) -> None:
        loop, wanted = asyncio.get_running_loop(), message.get("id") if "method" in message else None

        def heard(found: Json) -> bool:
            """In the thread: hand it over; whether it is the answer that was waited for."""
            loop.call_soon_threadsafe(self._take, session, found)
            return _answers(found, wanted)

        found = await self._request("POST", encoded(message), heard)
        if session is self._session and self._lost:
            raise McpLost(self._lost)
        if wanted is not None and not found:
            raise McpLost("it ended its answer before the end")

    def _take(self, session: Session, message: Json) -> None:
        """Take in a message, unless it is of a session that is over."""
        if session is not self._session:
            return
        try:
            for result in session.receive(message):
                self._results[result.id] = result
        except McpLost as lost:
            self._lost = self._lost or str(lost)
            return
        for answer in session.answers():  # while its own answer is still coming
            _behind(self._post(session, answer))

    # ------------------------------------------------------------ HTTP

    async def _request(self, method: str, body: bytes, heard: Callable[[Json], bool]) -> bool:
        """One request, redirects within its host included; whether the answer came. Raises McpLost."""
        for _ in range(MAX_REDIRECTS + 1):
            one = _Request(method, self._url, self._all_headers(), body)
            found, moved, session_id = await _in_thread(partial(one.run, heard), one.shut)
            self._session_id = self._session_id or session_id
            if not moved:
                return found
            self._url = _within_host(self._url, moved)
        raise McpLost("it redirects for ever")

    def _all_headers(self) -> dict[str, str]:
        own = {"Accept": f"application/json, {_EVENTS}", "Content-Type": "application/json"}
        if self._session_id:
            own["Mcp-Session-Id"] = self._session_id
        if self._session.protocol:
            own["MCP-Protocol-Version"] = self._session.protocol
        return {**self._headers, **own}


class _Request:
    """One HTTP request, run in a thread and ended from another."""

    def __init__(self, method: str, url: SplitResult, headers: Mapping[str, str], body: bytes) -> None:
        self._method, self._url, self._headers, self._body = method, url, headers, body
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(url.hostname or "", url.port, timeout=600)
        self._ended = False

    def shut(self) -> None:
        """Nobody waits for it any more."""
        self._ended = True
        sock = self._connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def run(self, heard: Callable[[Json], bool]) -> tuple[bool, str, str]:
        """(whether the answer came, where it moved to, the id of the session). Raises McpLost."""
        try:
            self._connection.connect()
            if self._ended:
                raise McpLost("it was ended")
            path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
            self._connection.request(self._method, path, self._body or None, dict(self._headers))
            response = self._connection.getresponse()
            return self._answered(response, heard)
        except ssl.SSLError as error:
            raise McpLost(f"no safe connection: {error.reason or 'TLS failed'}") from None
        except (OSError, http.client.HTTPException) as error:
            raise McpLost(f"no answer: {getattr(error, 'strerror', None) or type(error).__name__}") from None
        except (ValueError, UnicodeError):  # its words would have the value of a header in them
            raise McpLost("a header or the address can't be sent as it is") from None
        finally:
            self._connection.close()

    def _answered(self, response: http.client.HTTPResponse, heard: Callable[[Json], bool]) -> tuple[bool, str, str]:
        session_id = response.getheader("Mcp-Session-Id") or ""
        if response.status in (301, 302, 303, 307, 308):
            return False, response.getheader("Location") or "nowhere", ""
        if response.status == 404 and "Mcp-Session-Id" in self._headers:
            raise _Gone("it does not know the session any more")
        if not 200 <= response.status < 300:
            raise McpLost(f"it answered {response.status} {_plain(response.reason)}{_words(response)}")
        if response.status in (202, 204) or self._method == "DELETE":
            return False, "", session_id
        kind = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
        if kind == _EVENTS:
            return any(heard(decoded(data)) for data in _events(response)), "", session_id
        data = response.read(MAX_BODY_BYTES + 1)
        if len(data) > MAX_BODY_BYTES:
            raise McpLost("its answer is longer than any may be")
        if not data:
            return False, "", session_id
        if kind != "application/json":
            raise McpLost(f"it answered with {_plain(kind) or 'nothing'}, which is no MCP")
        return heard(decoded(data)), "", session_id


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of each event of a stream. Raises McpLost for one that is too long."""
    data: list[bytes] = []
    size = 0
    while line := response.readline(MAX_BODY_BYTES + 1):
        size += len(line)
        if size > MAX_BODY_BYTES:
            raise McpLost("its answer is longer than any may be")
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line:
            if any(data):
                yield b"\n".join(data)
            data, size = [], 0


def _answers(message: Json, wanted: Json) -> bool:
    found = message if isinstance(message, list) else [message]
    return wanted is not None and any(
        isinstance(one, dict) and "method" not in one and one.get("id") == wanted for one in found
    )


def _within_host(url: SplitResult, moved: str) -> SplitResult:
    """The address that a redirect names, on the same host. Raises McpLost."""
    target = urlsplit(urljoin(url.geturl(), moved))
    if (target.scheme, target.netloc) != (url.scheme, url.netloc):
        raise McpLost(f"it redirects to {_plain(target.netloc) or 'nowhere'}, which is another host")
    return target


def _words(response: http.client.HTTPResponse) -> str:
    """What an error says of itself, where it is one of JSON-RPC."""
    try:
        found = json.loads(response.read(10_000))
        return f": {_plain(found['error']['message'])}"
    except (ValueError, LookupError, TypeError, http.client.HTTPException):
        return ""


def _plain(text: str) -> str:
    return json.dumps(text)[1:-1][:100]


# ---------------------------------------------------------------- threads


_BEHIND: set[asyncio.Task[None]] = set()


def _behind(work: Coroutine[object, object, None]) -> None:
    """Do something that nobody waits for."""
    task = asyncio.ensure_future(_quiet(work))
    _BEHIND.add(task)
    task.add_done_callback(_BEHIND.discard)


async def _quiet(work: Coroutine[object, object, None]) -> None:
    try:
        await asyncio.wait_for(work, CLOSE_S)
    except (McpLost, TimeoutError):
        pass


async def _in_thread(work: Callable[[], T], end: Callable[[], None]) -> T:
    """What `work` gives, in a thread of its own; `end` is called when nobody waits for it any more."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 — raised again where it is waited for
            _soon(loop, settle, None, error)
        else:
            _soon(loop, settle, result, None)

    threading.Thread(target=run, name="mcp", daemon=True).start()
    try:
        return await done
    except asyncio.CancelledError:
        end()
        raise


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *given: object) -> None:
    try:
        loop.call_soon_threadsafe(call, *given)
    except RuntimeError:
        pass  # the loop is closed: nobody is left to hear it


# ---------------------------------------------------------------- the broker's side


class Servers:
    """The open sessions of a broker, by the keys that the engine gave them."""

    def __init__(self) -> None:
        self._open: dict[str, HttpServer] = {}

    async def do(self, order: Mapping[str, Json]) -> dict[str, Json]:
        """The answer to one order, see above; never raises for what a server does."""
        try:
            return await self._do(order)
        except _Changed as changed:
            return {"lost": str(changed), "denied": True}
        except McpLost as lost:
            return {"lost": str(lost)}
        except TimeoutError:
            return {"lost": "it did not answer in time"}

    async def _do(self, order: Mapping[str, Json]) -> dict[str, Json]:
        match order:
            case {"open": str(key), "server": str(name), "url": str(url), "headers": dict(headers)}:
                made = HttpServer(name, url, cast("dict[str, str]", headers))
                try:
                    tools, notes = await made.open(cast(float, order.get("timeout_s", 60.0)))
                except (McpLost, TimeoutError, asyncio.CancelledError):
                    _behind(made.close())
                    raise
                self._open[key] = made
                return {"tools": list(tools), "notes": list(notes)}
            case {"call": str(key), "tool": str(tool), "arguments": dict(arguments), "room": int(room)}:
                server = self._open.get(key)
                if server is None:
                    return {"lost": "it is not open"}
                limit = cast(float, order.get("timeout_s", 60.0))
                result = await server.call(tool, arguments, room=room, timeout_s=limit)
                return {"ok": result.ok, "text": result.text}
            case {"close": str(key)}:
                server = self._open.pop(key, None)
                if server is not None:
                    await server.close()
                return {}
            case _:
                return {"lost": "nobody knows such an order"}

"""MCP servers over HTTP: a real server on loopback, in the ways that servers answer and in the ways they fail."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dagrun.agent import broker_mcp
from dagrun.agent.broker_mcp import Servers, refusal
from dagrun.agent.mcp import definitions
from dagrun.core.names import Json

from .mcp_server import TOOLS, answer

SECRET = "Bearer secret-of-the-server"
PING = {"jsonrpc": "2.0", "id": "p", "method": "ping"}


class Server(ThreadingHTTPServer):
    """`modes` are those of mcp_server and of Handler; `seen` what came: (method, headers, message)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.modes: list[str] = []
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.sessions: set[str] = set()
        self.pinged = threading.Event()
        self.hung_up = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/mcp"

    def methods(self) -> list[str]:
        return [m.get("method", "an answer") if isinstance(m, dict) else how for how, _, m in self.seen]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.seen.append(("POST", headers, message))
        modes = self.server.modes
        for status, mode in ((401, "401"), (500, "500")):
            if mode in modes:
                return self.plain(status, b"go away", "text/plain")
        if "elsewhere" in modes:
            return self.moved("http://localhost:1/mcp")
        if "moved" in modes and self.path == "/mcp":
            return self.moved("/new/mcp")
        if "round" in modes:
            return self.moved("/mcp")
        if "html" in modes:
            return self.plain(200, b"<html>", "text/html")
        if message.get("method") == "initialize":
            self.server.sessions.add(f"s{len(self.server.sessions) + 1}")
        elif headers.get("mcp-session-id") not in self.server.sessions:
            return self.plain(404, b"", "text/plain")
        return self.answered(message, modes)

    def answered(self, message: Any, modes: list[str]) -> None:
        found = answer(message, modes)
        if found is None:
            if message.get("id") == "p":
                self.server.pinged.set()
            return self.plain(202, b"", "text/plain")
        if "sse" not in modes:
            return self.plain(200, json.dumps(found).encode(), "application/json")
        self.begin(200, "text/event-stream", None)
        if "ping" in modes and message["method"] == "tools/call":
            self.event(PING)
            assert self.server.pinged.wait(10)  # nothing goes on before the client has answered
        if "drip" in modes and message["method"] == "tools/call":
            return self.drip()
        self.chunk(b"id: 1\ndata:\n\n: a comment\n\n")
        self.event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
        if "cut" not in modes or message["method"] != "tools/call":
            self.event(found)
        if "open" in modes:  # it keeps the stream open after its answer
            self.server.hung_up.wait(30)
        self.chunk(b"")
        return None

    def drip(self) -> None:
        try:
            while True:
                self.chunk(b": .\n")
                time.sleep(0.02)
        except OSError:
            self.server.hung_up.set()
            self.close_connection = True

    def do_DELETE(self) -> None:
        self.server.seen.append(("DELETE", {k.lower(): v for k, v in self.headers.items()}, None))
        self.plain(200, b"", "text/plain")

    def moved(self, where: str) -> None:
        self.send_response(307)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def begin(self, status: int, kind: str, length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Mcp-Session-Id", f"s{len(self.server.sessions)}")
        self.send_header(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))))
        self.end_headers()

    def plain(self, status: int, body: bytes, kind: str) -> None:
        self.begin(status, kind, len(body))
        self.wfile.write(body)

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, message: Any) -> None:
        self.chunk(b"event: message\r\ndata: " + json.dumps(message).encode() + b"\r\n\r\n")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.hung_up.set()
    made.shutdown()
    made.server_close()
    thread.join()


def run(*orders: dict[str, Json] | Callable[[], None]) -> list[dict[str, Json]]:
    """The answers to some orders, one after the other."""

    async def all_of_them() -> list[dict[str, Json]]:
        servers = Servers()
        found = []
        for order in orders:
            if callable(order):
                order()
            else:
                found.append(await servers.do(order))
        return found

    return asyncio.run(all_of_them())


def opening(server: Server, **headers: str) -> dict[str, Json]:
    return {"open": "k", "server": "hand", "url": server.url, "headers": dict(headers), "timeout_s": 10.0}


def calling(tool: str, *, timeout_s: float = 10.0, **given: Json) -> dict[str, Json]:
    made: dict[str, Json] = {"call": "k", "tool": f"mcp__hand__{tool}", "arguments": given}
    return {**made, "room": 1000, "timeout_s": timeout_s}


def lost(server: Server) -> str:
    (found,) = run(opening(server))
    return str(found["lost"])


# ---------------------------------------------------------------- what it gives


@pytest.mark.parametrize("modes", [[], ["sse"], ["sse", "ping"], ["sse", "open"], ["pages"], ["moved"]], ids=str)
def test_it_lists_and_calls(server: Server, modes: list[str]) -> None:
    server.modes = modes
    begun = time.monotonic()
    opened, called, failed, closed = run(
        opening(server, Authorization=SECRET), calling("echo", text="hello"), calling("fail"), {"close": "k"}
    )
    assert opened == {"tools": list(definitions("hand", TOOLS)[0]), "notes": []}
    assert called == {"ok": True, "text": "hello"}
    assert failed == {"ok": False, "text": "it did not work"}
    assert closed == {}
    assert server.pinged.is_set() == ("ping" in modes)
    assert time.monotonic() - begun < 20.0  # a stream that stays open is not waited for
    ways = [(how, headers) for how, headers, _ in server.seen]
    assert all(headers["authorization"] == SECRET for _, headers in ways)
    assert all("text/event-stream" in headers["accept"] for _, headers in ways)
    first = next(k for k, name in enumerate(server.methods()) if name == "notifications/initialized")
    assert "mcp-session-id" not in ways[0][1]
    assert all(headers["mcp-session-id"] == "s1" for _, headers in ways[first:])
    assert all(headers["mcp-protocol-version"] == "2025-11-25" for _, headers in ways[first:])
    assert ways[-1][0] == "DELETE"


def test_calls_at_the_same_time_get_their_own_answers(server: Server) -> None:
    server.modes = ["sse"]

    async def many() -> list[dict[str, Json]]:
        servers = Servers()
        await servers.do(opening(server))
        return await asyncio.gather(*[servers.do(calling("echo", text=str(k))) for k in range(20)])

    assert [found["text"] for found in asyncio.run(many())] == [str(k) for k in range(20)]


def test_a_session_that_the_server_forgot_is_begun_again(server: Server) -> None:
    opened, one, two = run(opening(server), server.sessions.clear, calling("echo", text="1"), calling("echo", text="2"))
    assert opened["tools"]
    assert (one["text"], two["text"]) == ("1", "2")
    assert server.methods().count("initialize") == 2


def test_one_that_then_lists_other_tools_is_lost(server: Server) -> None:
    def change() -> None:
        server.sessions.clear()
        server.modes = ["other"]

    _, found = run(opening(server), change, calling("echo", text="1"))
    assert "lists tools with digest" in str(found["lost"])


def test_a_tool_that_is_not_listed_is_not_called(server: Server) -> None:
    _, found = run(opening(server), calling("nothing"))
    assert found == {"ok": False, "text": "the server `hand` lists no tool 'mcp__hand__nothing'"}
    assert "tools/call" not in server.methods()
    assert run(calling("echo"))[0] == {"lost": "it is not open"}


# ---------------------------------------------------------------- what ends it


@pytest.mark.parametrize(
    ("modes", "why"),
    [
        (["401"], "it answered 401 Unauthorized"),
        (["500"], "it answered 500 Internal Server Error"),
        (["html"], "it answered with text/html, which is no MCP"),
        (["elsewhere"], "it redirects to localhost:1, which is another host"),
        (["round"], "it redirects for ever"),
        (["old"], "speaks protocol 1999-01-01"),
        (["refuse"], "it refused to begin: not today"),
    ],
    ids=str,
)
def test_one_that_can_not_be_opened(server: Server, modes: list[str], why: str) -> None:
    server.modes = modes
    assert why in lost(server)


def test_nobody_is_there(server: Server) -> None:
    gone = {**opening(server), "url": "http://127.0.0.1:1/mcp"}
    assert run(gone) == [{"lost": "no answer: Connection refused"}]


def test_a_header_that_can_not_be_sent_is_not_told(server: Server) -> None:
    (found,) = run(opening(server, Authorization="secret-4711\r\nHost: evil"))
    assert found == {"lost": "a header or the address can't be sent as it is"}
    assert server.seen == []


def test_an_answer_that_breaks_off(server: Server) -> None:
    server.modes = ["sse", "cut"]
    _, found = run(opening(server), calling("echo", text="x"))
    assert found == {"lost": "it ended its answer before the end"}


def test_one_that_drips_is_ended_in_time(server: Server) -> None:
    server.modes = ["sse", "drip"]
    begun = time.monotonic()

    async def both() -> dict[str, Json]:
        servers = Servers()
        await servers.do(opening(server))
        found = await servers.do(calling("echo", text="x", timeout_s=0.3))
        assert await asyncio.to_thread(server.hung_up.wait, 30)  # the connection is gone, not only forgotten
        return found

    assert asyncio.run(both()) == {"ok": False, "text": "timed out after 0.3s"}
    assert time.monotonic() - begun < 20.0
    assert "notifications/cancelled" in server.methods()


def test_an_answer_that_is_too_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_mcp, "MAX_BODY_BYTES", 20_000)
    for modes in ([], ["sse"]):
        server.modes = modes
        _, found = run(opening(server), calling("big", size=30_000))
        assert found == {"lost": "its answer is longer than any may be"}


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize(
    ("url", "network", "why"),
    [
        ("https://mcp.example.com/x", ("mcp.example.com",), ""),
        ("https://mcp.example.com/x", ("mcp.example.com:443",), ""),
        ("https://mcp.example.com:8443/x", ("mcp.example.com:443",), "mcp.example.com:8443 is not in"),
        ("https://MCP.example.com/x", ("*.example.com",), ""),
        ("http://example.com/x", ("*.example.com",), "example.com:80 is not in"),
        ("https://good.com@evil.com/", ("good.com",), "evil.com:443 is not in"),
        ("https://mcp.example.com/x", "none", "not in"),
        ("https://mcp.example.com/x", (), "not in"),
        ("https://mcp.example.com/x", "any", ""),
        ("https://mcp.example.com/x", None, ""),
        ("ftp://mcp.example.com/x", "any", "no http or https address"),
        ("https:///x", "any", "no"),
        ("https://exa mple.com/", "any", "no address"),
    ],
)
def test_the_host_has_to_be_in_the_network(url: str, network: Any, why: str) -> None:
    found = refusal(url, network)
    assert (why in found) if why else (found == "")

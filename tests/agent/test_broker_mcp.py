"""MCP servers over HTTP: a real server on loopback, in the ways that servers answer and in the ways they fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from dagrun.agent import broker_mcp
from dagrun.agent.broker_mcp import Servers
from dagrun.agent.mcp import definitions
from dagrun.core.names import Json

from .mcp_http import Server, serving
from .mcp_server import TOOLS

SECRET = "Bearer secret-of-the-server"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


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

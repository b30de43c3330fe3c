"""An MCP server over HTTP for tests, in the ways that servers answer and in the ways they fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .mcp_server import answer

PING = {"jsonrpc": "2.0", "id": "p", "method": "ping"}


class Server(ThreadingHTTPServer):
    """`modes` are those of mcp_server and of Handler; `seen` what came: (method, headers, message).

    `drops` is how many calls get no answer. Mode `tell`: TOLD in what it says becomes its
    Authorization header, PART that without its first word.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.modes: list[str] = []
        self.drops = 0
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.sessions: set[str] = set()
        self.pinged = threading.Event()
        self.hung_up = threading.Event()
        self.over = threading.Event()

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
        if message.get("method") == "tools/call" and message["params"]["name"] == "sleep":
            given = message["params"]["arguments"]
            self.server.over.wait(given["seconds"])  # not longer than the server is there
            given["seconds"] = 0
        found = answer(message, modes)
        if found is None:
            if message.get("id") == "p":
                self.server.pinged.set()
            return self.plain(202, b"", "text/plain")
        if message["method"] == "tools/call" and self.server.drops:
            self.server.drops -= 1
            self.close_connection = True
            return None
        if "tell" in modes:
            text, said = json.dumps(found).replace("Say it", "TOLD"), self.headers["Authorization"]
            found = json.loads(text.replace("TOLD", said).replace("PART", said.partition(" ")[2]))
        if "sse" not in modes:
            return self.plain(200, json.dumps(found).encode(), "application/json")
        self.begin(200, "text/event-stream", None)
        if "ping" in modes and message["method"] == "tools/call":
            self.event(PING)
            assert self.server.pinged.wait(10)  # nothing goes on before the client has answered
        if "mute" in modes or ("drip" in modes and message["method"] == "tools/call"):
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


@contextmanager
def serving() -> Iterator[Server]:
    """A server at work; whatever still hangs in it ends with the block."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.hung_up.set()
        made.over.set()
        made.shutdown()
        made.server_close()
        thread.join()

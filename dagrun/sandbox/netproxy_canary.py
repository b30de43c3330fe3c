"""The negative test of the guarantee net.allowlist: tries from inside what must work and what must not.

Runs in the helper process of NetProxy. Two servers of this machine listen outside; one is on the
list. What the sandbox's own programs can't do is tried by a child that entered its network namespace.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Protocol

from dagrun.core.names import Json
from dagrun.sandbox.netproxy_enter import JoinError, enter, in_child
from dagrun.sandbox.netproxy_hosts import PORT

KEY = "-canary-"
_WORD = b"a word from inside"
_WAIT_S = 2.0


class Opener(Protocol):
    """What opens a proxy in the network namespace of a process."""

    def open(self, pid: int, order: dict[str, Json]) -> dict[str, Json]:
        """Listen there. Raises JoinError."""
        ...

    def tell(self, order: dict[str, Json]) -> dict[str, Json]:
        """Hand on any other order."""
        ...


def canary(joiner: Opener, pid: int) -> str:
    """Why the network namespace of process `pid` can't be held to a list; "" when it was tried and held."""
    listed, other = _server(), _server()
    try:
        reply = joiner.open(pid, {"do": "open", "key": KEY, "allow": [f"127.0.0.1:{listed.getsockname()[1]}"]})
        if reply.get("error"):
            return str(reply["error"])
        why, _ = in_child(lambda: (_try(pid, listed, other), []))
        told = reply if why else joiner.tell({"do": "refused", "key": KEY})
        if not why and not told.get("refused"):
            return "what was refused is not told"
        return why
    except JoinError as error:
        return error.why
    finally:
        with suppress(JoinError):
            joiner.tell({"do": "close", "key": KEY})
        listed.close()
        other.close()


def _server() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(_WAIT_S)
    return server


def _try(pid: int, listed: socket.socket, other: socket.socket) -> str:
    enter(pid)
    try:
        socket.create_connection(listed.getsockname(), _WAIT_S).close()
        return "a server outside was reached past the proxy"
    except OSError:
        pass
    try:
        status, inside = _connect(listed.getsockname()[1])
        with inside:
            if status != b"200":
                return f"a listed host was answered with {status.decode('ascii', 'replace')}"
            outside, _ = listed.accept()
            with outside:
                inside.sendall(_WORD)
                outside.settimeout(_WAIT_S)
                if outside.recv(len(_WORD), socket.MSG_WAITALL) != _WORD:
                    return "what was sent to a listed host did not arrive"
        status, inside = _connect(other.getsockname()[1])
        inside.close()
        return "" if status == b"403" else f"a host that is not listed was answered with {status!r}"
    except OSError as error:
        return f"the proxy can't be used from inside: {error.strerror or error}"


def _connect(port: int) -> tuple[bytes, socket.socket]:
    """(status, the connection) of a CONNECT to a port of this machine, sent to the proxy inside."""
    inside = socket.create_connection(("127.0.0.1", PORT), _WAIT_S)
    inside.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
    head = b""
    while b"\r\n\r\n" not in head and (data := inside.recv(4096)):
        head += data
    return [*head.split(b" ", 2), b"", b""][1], inside

"""What hostile clients, servers and name servers try on the relay; over real sockets, without a sandbox."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dagrun.sandbox import netproxy_relay as relay
from dagrun.sandbox.netproxy_relay import Relay, Room

WAIT_S = 20.0


class Server:
    """A server of this machine: keeps what it was sent, answers with what it is told to."""

    def __init__(self, reply: Callable[[socket.socket, bytes], None]) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.got: list[bytes] = []
        self.reply = reply
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.sock.accept()
            except OSError:
                return
            client.settimeout(WAIT_S)
            data = b""
            try:
                while b"\r\n\r\n" not in data and (more := client.recv(65536)):
                    data += more
                self.reply(client, data)
            except OSError:
                pass
            self.got.append(data)
            client.close()

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(WAIT_S)


def hello(client: socket.socket, _data: bytes) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(hello)
    yield made
    made.close()


class Proxy:
    """A relay in this process, driven as netproxy_join.py drives it, with one room `k`."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs = theirs
        self.control.settimeout(WAIT_S)
        self.relay = Relay(theirs)
        self.others = set(threading.enumerate())
        self.thread = threading.Thread(target=self.relay.run, daemon=True)
        self.thread.start()
        self.port = 0

    def order(self, fds: list[int] | None = None, **order: Any) -> dict[str, Any]:
        socket.send_fds(self.control, [json.dumps(order).encode()], fds or [])
        return json.loads(self.control.recv(1 << 18))

    def allow(self, *entries: str, key: str = "k") -> dict[str, Any]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            return self.order([listener.fileno()], do="open", key=key, allow=list(entries))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), WAIT_S)

    def ask(self, request: bytes) -> bytes:
        """All that comes back."""
        with self.connect() as client:
            client.sendall(request)
            return everything(client)

    def refused(self) -> list[str]:
        return self.order(do="refused", key="k")["refused"]

    def close(self) -> None:
        self.order(do="close", key="k")
        self.control.close()
        for thread in set(threading.enumerate()) - self.others:  # one for each connection
            thread.join(WAIT_S)
            assert not thread.is_alive()
        self.theirs.close()
        for fd in (self.relay._wake_read, self.relay._wake_write):
            os.close(fd)


def everything(client: socket.socket) -> bytes:
    out = b""
    while data := client.recv(65536):
        out += data
    return out


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


class Names:
    """A name server whose answers are given; it keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.look)

    def look(self, host: str, port: int, *args: Any, **kw: Any) -> Any:
        if host not in self.answers:
            if host[:1].isdigit() or ":" in host:
                return self.real(host, port, *args, **kw)
            self.asked.append(host)
            raise socket.gaierror(-2, "Name or service not known")
        self.asked.append(host)
        address = self.answers[host][min(self.asked.count(host), len(self.answers[host])) - 1]
        return self.real(address, port, *args, **kw)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


# ---------------------------------------------------------------- what is allowed


def test_a_listed_host_is_reached_by_request_and_by_tunnel(proxy: Proxy, server: Server) -> None:
    proxy.allow(f"127.0.0.1:{server.port}")
    reply = proxy.ask(b"GET http://127.0.0.1:%d/a HTTP/1.1\r\nX: 1\r\n\r\n" % server.port)
    assert reply == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
    reply = proxy.ask(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\nraw\r\n\r\n" % server.port)
    assert reply.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
    host = b"127.0.0.1:%d" % server.port
    assert server.got == [b"GET /a HTTP/1.1\r\nhost: %s\r\nx: 1\r\nconnection: close\r\n\r\n" % host, b"raw\r\n\r\n"]
    assert proxy.refused() == []


@pytest.mark.parametrize("entry", ["localhost", "LOCALHOST.", "localhost:{port}"])
def test_localhost_is_reached_when_it_is_listed(proxy: Proxy, server: Server, entry: str) -> None:
    proxy.allow(entry.format(port=server.port))
    assert b"hello" in proxy.ask(b"GET http://LocalHost:%d/ HTTP/1.1\r\n\r\n" % server.port)


def test_a_body_reaches_the_server_whole_and_nothing_behind_it(proxy: Proxy) -> None:
    got: list[bytes] = []

    def read_on(client: socket.socket, data: bytes) -> None:
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        client.shutdown(socket.SHUT_WR)
        got.append(body + everything(client))

    server = Server(read_on)
    proxy.allow(f"127.0.0.1:{server.port}")
    body = os.urandom(300_000)
    head = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (server.port, len(body))
    second = b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    assert proxy.ask(head + body + second).endswith(b"ok")
    server.close()
    assert got == [body]


def test_a_client_that_waits_to_send_its_body_is_told_to_go_on(proxy: Proxy) -> None:
    def echo(client: socket.socket, data: bytes) -> None:
        body = data.partition(b"\r\n\r\n")[2] or client.recv(100)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + body)

    server = Server(echo)
    proxy.allow(f"127.0.0.1:{server.port}")
    with proxy.connect() as client:
        client.sendall(
            b"PUT http://127.0.0.1:%d/ HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n" % server.port
        )
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"body")
        assert everything(client).endswith(b"\r\n\r\nbody")
    server.close()
    assert b"expect" not in server.got[0]


def test_a_tunnel_carries_both_ways_at_once_without_waiting(proxy: Proxy) -> None:
    def flood(client: socket.socket, data: bytes) -> None:
        client.sendall(bytes(4 << 20))  # all of it before it reads on
        client.shutdown(socket.SHUT_WR)
        sizes.append(len(data) + len(everything(client)) - len(b"\r\n\r\n"))

    sizes: list[int] = []
    server = Server(flood)
    proxy.allow(f"127.0.0.1:{server.port}")
    with proxy.connect() as client:
        client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n\r\n\r\n" % server.port)

        def write() -> None:
            client.sendall(bytes(4 << 20))
            client.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        assert len(everything(client)) == (4 << 20) + len(b"HTTP/1.1 200 Connection established\r\n\r\n")
        writer.join(WAIT_S)
    server.close()
    assert sizes == [4 << 20]


# ---------------------------------------------------------------- what is not


def test_what_is_not_listed_is_refused_told_and_never_looked_up(proxy: Proxy, server: Server, names: Names) -> None:
    proxy.allow("a.example:443")
    for request in (
        b"CONNECT b.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT a.example:80 HTTP/1.1\r\n\r\n",
        b"GET http://b.example/ HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % server.port,
        b"CONNECT b.example:443 HTTP/1.1\r\n\r\n",
    ):
        reply = proxy.ask(request)
        assert reply.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"permissions.network" in reply
    assert names.asked == []
    assert server.got == []
    why = "(not in permissions.network)"
    assert proxy.refused() == [
        f"b.example:443 {why}",
        f"a.example:80 {why}",
        f"b.example:80 {why}",
        f"127.0.0.1:{server.port} {why}",
    ]


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.0.0.1", "127.000.000.001", "[::1%25lo]", "[::1%lo]"],
)
def test_odd_spellings_of_an_address_are_refused_even_if_it_is_listed(proxy: Proxy, server: Server, host: str) -> None:
    proxy.allow("127.0.0.1", "[::1]", "localhost")
    for request in (f"CONNECT {host}:{server.port}", f"GET http://{host}:{server.port}/"):
        assert proxy.ask(f"{request} HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 403")
    assert server.got == []
    assert len(proxy.refused()) == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"CONNECT a.example@127.0.0.1:%d HTTP/1.1\r\n\r\n",
        b"GET http://127.0.0.1:%d@b.example/ HTTP/1.1\r\n\r\n",
        b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
        b"GET http://127.0.0.1:%d/ HTTP/1.1\nHost: x\n\n\r\n\r\n",
        b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        b"GET http://127.0.0.1:%d/\r\nX: y HTTP/1.1\r\n\r\n",
    ],
)
def test_what_another_parser_could_read_otherwise_never_reaches_a_server(
    proxy: Proxy, server: Server, request_: bytes
) -> None:
    proxy.allow(f"127.0.0.1:{server.port}", "a.example")
    assert proxy.ask(request_ % server.port)[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5")
    assert server.got == []


def test_broken_chunks_end_the_connection_before_they_travel_on(proxy: Proxy, server: Server) -> None:
    proxy.allow(f"127.0.0.1:{server.port}")
    head = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" % server.port
    reply = proxy.ask(head + b"3\r\nabcGET http://evil/ HTTP/1.1\r\n\r\n0\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 400")
    assert b"evil" not in b"".join(server.got)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "169.254.169.254", "10.0.0.1", "192.168.0.1", "0.0.0.0", "::ffff:127.0.0.1", "fd00:ec2::254"],
)
def test_a_listed_name_that_leads_inside_is_refused(proxy: Proxy, names: Names, address: str) -> None:
    names.answers["a.example"] = [address]
    proxy.allow("a.example")
    reply = proxy.ask(b"CONNECT a.example:80 HTTP/1.1\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 403")
    assert b"no public address" in reply
    (told,) = proxy.refused()
    assert told.startswith("a.example:80 (it leads to ")


def test_a_listed_name_that_leads_to_this_machines_own_address_is_refused(
    proxy: Proxy, server: Server, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 127.0.0.1 as if it were public: only that the kernel calls it ours is left
    monkeypatch.setattr("dagrun.sandbox.netproxy_hosts.special", lambda raw: False)
    names.answers["a.example"] = ["127.0.0.1"]
    proxy.allow("a.example")
    assert proxy.ask(b"CONNECT a.example:%d HTTP/1.1\r\n\r\n" % server.port).startswith(b"HTTP/1.1 403")
    assert server.got == []


def test_a_name_is_looked_up_once_so_that_a_second_answer_leads_nowhere(
    proxy: Proxy, server: Server, names: Names
) -> None:
    names.answers["a.example"] = ["127.0.0.1", "169.254.169.254"]
    proxy.allow("a.example", f"127.0.0.1:{server.port}")
    assert b"hello" in proxy.ask(b"GET http://a.example:%d/ HTTP/1.1\r\n\r\n" % server.port)
    assert names.asked == ["a.example"]
    # the next connection gets the other answer, and that is judged anew
    assert proxy.ask(b"GET http://a.example:%d/ HTTP/1.1\r\n\r\n" % server.port).startswith(b"HTTP/1.1 403")


def test_a_name_without_address_and_a_port_without_server_are_no_refusals(proxy: Proxy, names: Names) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    proxy.allow("gone.example", "127.0.0.1")
    assert proxy.ask(b"CONNECT gone.example:80 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 502")
    assert proxy.ask(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port).startswith(b"HTTP/1.1 502")
    assert proxy.refused() == []


def test_refusals_that_are_told_are_few(proxy: Proxy) -> None:
    proxy.allow("a.example")
    for k in range(relay.MAX_TOLD + 5):
        proxy.ask(b"CONNECT h%d.example:80 HTTP/1.1\r\n\r\n" % k)
    told = proxy.refused()
    assert len(told) == relay.MAX_TOLD + 1
    assert told[-1] == "and 5 more"


# ---------------------------------------------------------------- what wears it out


def test_a_head_that_drips_is_cut_off(proxy: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "HEAD_S", 0.3)
    proxy.allow(f"127.0.0.1:{server.port}")
    began = time.monotonic()
    with proxy.connect() as client:
        client.settimeout(0.02)
        reply = b""
        for _ in range(1000):
            try:
                client.sendall(b"G")
                reply = client.recv(1000)
                break
            except TimeoutError:
                pass
    assert reply.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 10


def test_a_head_without_end_is_cut_off(proxy: Proxy) -> None:
    proxy.allow("a.example")
    assert proxy.ask(b"GET http://a.example/ HTTP/1.1\r\nX: " + b"a" * 70_000).startswith(b"HTTP/1.1 431")


def test_one_sandbox_has_so_many_connections_and_another_has_its_own(
    proxy: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_CONNECTIONS", 3)
    proxy.allow(f"127.0.0.1:{server.port}")
    port, request = proxy.port, b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % server.port
    held = [proxy.connect() for _ in range(3)]
    for client in held:  # their threads are at work when part of an answer could come
        client.sendall(b"GET")
    with proxy.connect() as waiting:
        waiting.sendall(request)
        waiting.settimeout(0.2)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        proxy.allow(f"127.0.0.1:{server.port}", key="other")
        assert b"hello" in proxy.ask(request)
        held.pop().close()
        waiting.settimeout(WAIT_S)
        assert b"hello" in everything(waiting)
    for client in held:
        client.close()
    proxy.order(do="close", key="other")
    assert port != proxy.port


def test_closing_a_sandbox_ends_what_it_has_open(proxy: Proxy) -> None:
    stay = threading.Event()

    def hang(client: socket.socket, _data: bytes) -> None:
        client.sendall(b"x")
        stay.wait(WAIT_S)

    server = Server(hang)
    proxy.allow(f"127.0.0.1:{server.port}")
    with proxy.connect() as client:
        client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n\r\n\r\n" % server.port)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        proxy.order(do="close", key="k")
        everything(client)  # ends, where it would have waited
        assert not stay.is_set()
    with pytest.raises(OSError, match="refused"):
        proxy.connect()
    stay.set()
    server.close()


def test_a_room_that_closed_while_a_name_was_looked_up_connects_no_more(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looking, go_on = socket.getaddrinfo, threading.Event(), threading.Event()

    def slow(host: str, port: int, *args: Any, **kw: Any) -> Any:
        looking.set()
        assert go_on.wait(WAIT_S)
        return real("127.0.0.1", port, *args, **kw)

    listener = socket.create_server(("127.0.0.1", 0))
    room = Room(listener, ("localhost",))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    thread = threading.Thread(target=relay.serve, args=(room, accepted))
    thread.start()
    client.sendall(b"CONNECT localhost:%d HTTP/1.1\r\n\r\n" % server.port)
    assert looking.wait(WAIT_S)
    room.close()
    go_on.set()
    thread.join(WAIT_S)
    client.close()
    assert not thread.is_alive()
    assert server.got == []


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
def test_a_server_that_speaks_no_http_is_a_bad_gateway(proxy: Proxy, reply: bytes) -> None:
    server = Server(lambda client, data: client.sendall(reply))
    proxy.allow(f"127.0.0.1:{server.port}")
    assert proxy.ask(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % server.port).startswith(b"HTTP/1.1 502")
    server.close()


def test_a_list_that_means_nothing_opens_nothing(proxy: Proxy) -> None:
    assert "'a b'" in proxy.allow("a b")["error"]
    with pytest.raises(OSError, match="refused"):
        proxy.connect()

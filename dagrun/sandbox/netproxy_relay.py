"""The process that relays: takes connections from sandboxes and opens only those that their lists allow.

Started by netproxy_join.py, which hands it one listening socket per sandbox, made inside that
sandbox's network namespace; its own connections are made outside. One thread a connection, so that a
slow name server holds up nobody else. A name is looked up once, judged by its address and connected
to by that address: a second answer of the name server can't lead elsewhere. It reads hostile input,
so it gives up root first. Ends when its control socket does.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import threading
from contextlib import suppress
from json import dumps, loads
from time import monotonic
from typing import cast

from dagrun.core.names import Json
from dagrun.sandbox.netproxy_enter import MESSAGE_BYTES
from dagrun.sandbox.netproxy_hosts import AllowList, Endpoint, Malformed, packed
from dagrun.sandbox.netproxy_http import (
    ESTABLISHED,
    GO_ON,
    BadMessage,
    Request,
    answer,
    read_request,
    refusal,
    split_head,
)
from dagrun.sandbox.netproxy_ways import BodyWay, ResponseWay, Way, exchange

MAX_CONNECTIONS = 64  # of one sandbox at a time; more wait in the backlog
MAX_TOLD = 20  # refusals that are remembered, each once
HEAD_S = 20.0  # for all of a request's head, however slowly it drips
CONNECT_S = 15.0  # for one address
TUNNEL_IDLE_S = 3600.0
IDLE_S = 300.0
LINGER_S = 2.0
NOBODY = 65534


class Refusal(Exception):
    """A connection that is not allowed: the 403 for the client, and the words for the trace."""

    def __init__(self, endpoint: Endpoint, why: str, add: tuple[str, ...]) -> None:
        super().__init__(why)
        self.told = f"{endpoint} ({why})"
        self.reply = refusal(endpoint, why, add)


class Room:
    """One sandbox: its listening socket, what it may reach, its connections, what it was refused."""

    def __init__(self, listener: socket.socket, allow: tuple[str, ...]) -> None:
        self.listener = listener
        self.allow = AllowList(allow)
        self.closed = False
        self.told: dict[str, None] = {}
        self.more = 0
        self.busy = 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def tell(self, text: str) -> None:
        """Remember a refusal."""
        with self._lock:
            if text in self.told:
                return
            if len(self.told) < MAX_TOLD:
                self.told[text] = None
            else:
                self.more += 1

    def refused(self) -> list[str]:
        """What was refused, each once, in order."""
        with self._lock:
            more = [f"and {self.more} more"] if self.more else []
            return [*self.told, *more]

    def enter(self) -> None:
        """One connection more."""
        with self._lock:
            self.busy += 1

    def leave(self) -> None:
        """One connection less."""
        with self._lock:
            self.busy -= 1

    def hold(self, sock: socket.socket) -> bool:
        """Whether this socket may be used; `close` will end it."""
        with self._lock:
            if not self.closed:
                self._sockets.add(sock)
            return not self.closed

    def drop(self, sock: socket.socket) -> None:
        """Close a socket of this room."""
        with self._lock:
            self._sockets.discard(sock)
            sock.close()

    def close(self) -> None:
        """End it all: whoever waits on one of its sockets wakes and leaves."""
        with self._lock:
            self.closed = True
            self.listener.close()
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


# ---------------------------------------------------------------- one connection


def serve(room: Room, client: socket.socket) -> None:
    """Read one request, judge it, carry it out; whatever happens, both ends are closed."""
    upstream: socket.socket | None = None
    try:
        if not room.hold(client):
            return
        request, rest = _read_request(client)
        upstream = _reach(room, request.endpoint)
        if upstream is not None:
            _relay(client, upstream, request, rest)
    except Refusal as no:
        room.tell(no.told)
        _say(client, no.reply)
    except BadMessage as bad:
        _say(client, answer(bad.status, f"dagrun: {bad.why}\n"))
    except Malformed as bad:
        room.tell(f"a malformed host ({bad})")
        _say(client, answer(403, f"dagrun: the host is refused: {bad}\n"))
    except TimeoutError:
        _say(client, answer(408, "dagrun: the request took too long\n"))
    except OSError:
        pass  # one of the two went away
    finally:
        room.drop(client)
        if upstream is not None:
            room.drop(upstream)


def _read_request(client: socket.socket) -> tuple[Request, bytes]:
    data, end = b"", monotonic() + HEAD_S
    while (parts := split_head(data)) is None:
        client.settimeout(max(0.001, end - monotonic()))
        got = client.recv(1 << 16)
        if not got:
            raise ConnectionError("it hung up")
        data += got
        if monotonic() > end:
            raise TimeoutError
    return read_request(parts[0]), parts[1]


def _relay(client: socket.socket, upstream: socket.socket, request: Request, rest: bytes) -> None:
    client.setblocking(False)
    upstream.setblocking(False)
    if request.tunnel:
        down, up = Way(upstream, client), Way(client, upstream)
        down.out = ESTABLISHED
        up.put(rest)
        try:
            exchange(up, down, TUNNEL_IDLE_S, both=True)
        except TimeoutError:
            raise ConnectionError("nothing was said for too long") from None
        return
    up = BodyWay(client, upstream, request.body)
    up.out = request.head
    up.put(rest)
    down = ResponseWay(upstream, client, request.method)
    down.out = GO_ON if request.expects and not rest else b""
    try:
        exchange(up, down, IDLE_S, both=False)
    except (BadMessage, TimeoutError) as error:
        if down.begun:
            raise ConnectionError("the answer broke off") from None
        raise error if isinstance(error, BadMessage) else BadMessage(504, "the server took too long") from None
    _say(client, b"")


def _say(client: socket.socket, data: bytes) -> None:
    """Send a last word, and take in what the client still sends: a reset would eat the word."""
    with suppress(OSError):
        client.settimeout(LINGER_S)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        end = monotonic() + LINGER_S
        while monotonic() < end and client.recv(1 << 16):
            pass


# ---------------------------------------------------------------- where a connection may go


def _reach(room: Room, wanted: Endpoint) -> socket.socket | None:
    """A connection to an allowed endpoint; None when the room was closed meanwhile.

    Raises Refusal for one that is not allowed, BadMessage for one that can't be had.
    """
    if not room.allow.allows(wanted):
        raise Refusal(wanted, "not in permissions.network", (str(wanted),))
    why = "it has no address"
    for family, place in _addresses(room.allow, wanted):
        upstream = socket.socket(family, socket.SOCK_STREAM)
        if not room.hold(upstream):
            upstream.close()
            return None
        try:
            upstream.settimeout(CONNECT_S)
            upstream.connect(place)
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return upstream
        except OSError as error:
            room.drop(upstream)
            why = error.strerror or "it took too long"
    raise BadMessage(504 if why == "it took too long" else 502, f"can't connect to {wanted}: {why}")


def _addresses(allow: AllowList, wanted: Endpoint) -> list[tuple[int, tuple[str, int]]]:
    """Where a name leads, as far as it may lead there. Raises Refusal when it may lead nowhere."""
    try:
        found = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadMessage(502, f"can't find the address of {wanted.host}: {error}") from None
    kept: list[tuple[int, tuple[str, int]]] = []
    refused = ""
    for family, _, _, _, place in found:
        address = str(place[0]).partition("%")[0]
        if packed(wanted.host) is not None or allow.allows_address(address, wanted.port, own=_is_own(family, place)):
            kept.append((family, cast("tuple[str, int]", place)))
        else:
            refused = refused or address
    if not kept and refused:
        endpoint = Endpoint(refused, wanted.port)
        why = f"it leads to {refused}, no public address, and that is not in permissions.network"
        raise Refusal(wanted, why, (str(wanted), str(endpoint)))
    return kept


def _is_own(family: int, place: tuple[object, ...]) -> bool:
    """Whether an address is one of this machine's: the kernel then sends from that very address."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(place)
        except OSError:
            return False  # nobody can go there
        return str(probe.getsockname()[0]) == str(place[0])


# ---------------------------------------------------------------- the process


class Relay:
    """The rooms, and the loop that takes their connections and the orders of netproxy_join.py."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._rooms: dict[str, Room] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> None:
        """Serve until the control socket ends."""
        pause = False
        while True:
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            poll.register(self._wake_read, select.POLLIN)
            rooms = {r.listener.fileno(): r for r in self._rooms.values() if r.busy < MAX_CONNECTIONS and not pause}
            for fd in rooms:
                poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(200 if pause else None)}
            pause = False
            if self._wake_read in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            for fd in ready & rooms.keys():
                pause = not self._accept(rooms[fd]) or pause
            if self._control.fileno() in ready and not self._obey():
                return

    def _accept(self, room: Room) -> bool:
        """Take one connection; False when this process has no room for it now."""
        try:
            client, _ = room.listener.accept()
        except OSError as error:
            return isinstance(error, BlockingIOError | ConnectionAbortedError)
        room.enter()
        thread = threading.Thread(target=self._serve, args=(room, client), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had
            room.leave()
            client.close()
            return False
        return True

    def _serve(self, room: Room, client: socket.socket) -> None:
        try:
            serve(room, client)
        finally:
            room.leave()
            with suppress(BlockingIOError):
                os.write(self._wake_write, b".")

    def _obey(self) -> bool:
        """Carry out one order; False when there will be no more."""
        data, fds, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 1)
        if not data:
            return False
        order = cast("dict[str, Json]", loads(data))
        reply: dict[str, Json] = {}
        key = str(order["key"])
        if order["do"] == "open":
            self._close(key)
            listener = socket.socket(fileno=fds.pop())
            listener.setblocking(False)
            try:
                self._rooms[key] = Room(listener, tuple(map(str, cast("list[Json]", order["allow"]))))
            except Malformed as error:
                listener.close()
                reply["error"] = str(error)
        elif order["do"] == "refused":
            room = self._rooms.get(key)
            reply["refused"] = list(room.refused()) if room is not None else []
        else:
            self._close(key)
        self._control.send(dumps(reply).encode())
        return True

    def _close(self, key: str) -> None:
        room = self._rooms.pop(key, None)
        if room is not None:
            room.close()


def run_relay(control: socket.socket) -> None:
    """Be the relay until the control socket ends."""
    "loaded while the files of Python can be read".encode("idna")
    give_up_root()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    threading.stack_size(512 * 1024)
    Relay(control).run()


def give_up_root() -> None:
    """Become nobody if this is root and may change; what is parsed here was written by strangers."""
    if os.geteuid() != 0:
        return
    with suppress(OSError):  # a user namespace without that id, or a container without the right to change
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

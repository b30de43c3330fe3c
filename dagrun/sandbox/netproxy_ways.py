"""Carrying bytes between two sockets, both ways at once, as far as a message reaches and no further.

Knows HTTP only by the meters of netproxy_http.py. Reads no more than it can pass on, so a slow reader
slows its writer and nobody else.
"""

from __future__ import annotations

import select
import socket

from dagrun.sandbox.netproxy_http import BadMessage, Framing, Meter, read_response, split_head

PIECE = 1 << 16


class Way:
    """One direction: everything that comes, until its source ends; then its target's end is told."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.out = b""  # taken from the source, not yet sent
        self.reading = True
        self.told_end = False

    @property
    def done(self) -> bool:
        """Nothing will be read and nothing is left to send."""
        return not self.reading and not self.out

    def put(self, data: bytes) -> None:
        """Take bytes of the source."""
        self.out += data

    def end(self) -> None:
        """The source has ended."""
        self.reading = False

    def read(self) -> None:
        """Take what is there now."""
        try:
            data = self.source.recv(PIECE)
        except BlockingIOError:
            return
        if data:
            self.put(data)
        else:
            self.end()

    def write(self) -> None:
        """Send what the target takes now."""
        try:
            self.out = self.out[self.target.send(self.out) :]
        except BlockingIOError:
            return

    def pass_end(self) -> None:
        """Tell the target that nothing more comes, once all was sent."""
        if self.done and not self.told_end:
            self.told_end = True
            self.target.shutdown(socket.SHUT_WR)


class BodyWay(Way):
    """The body of a request and not a byte more: what comes behind it is never passed on."""

    def __init__(self, source: socket.socket, target: socket.socket, framing: Framing) -> None:
        super().__init__(source, target)
        self.meter = Meter(framing)
        self.reading = not self.meter.done

    def put(self, data: bytes) -> None:
        self.out += data[: self.meter.take(data)]
        self.reading = not self.meter.done

    def pass_end(self) -> None:
        pass  # some servers take the end of the request for the end of the connection


class ResponseWay(Way):
    """The response to one request: heads rewritten so that both sides know that it is the last."""

    def __init__(self, source: socket.socket, target: socket.socket, method: str) -> None:
        super().__init__(source, target)
        self.method = method
        self.begun = False  # the client has got something
        self._head = b""
        self._meter: Meter | None = None

    def put(self, data: bytes) -> None:
        if self._meter is None:
            self._head += data
            data = self._read_heads()
        if self._meter is not None:
            self.out += data[: self._meter.take(data)]
            self.reading = self.reading and not self._meter.done
        self.begun = self.begun or bool(self.out)

    def end(self) -> None:
        super().end()
        if self._meter is None:
            raise BadMessage(502, "the server hung up before it answered")

    def _read_heads(self) -> bytes:
        """Pass on heads until the final one; what came after it."""
        while (parts := split_head(self._head)) is not None:
            status, head, framing = read_response(parts[0], self.method)
            self.out += head
            if status >= 200:
                self._head, self._meter = b"", Meter(framing)
                return parts[1]
            self._head = parts[1]
        return b""


def exchange(up: Way, down: Way, idle_s: float, *, both: bool) -> None:
    """Carry on until `down` is done (`both`: and `up` too). Raises TimeoutError after `idle_s` of silence,
    OSError when an end breaks, BadMessage for a broken message."""
    while not (down.done and (up.done or not both)):
        poll = select.poll()
        wanted: dict[int, int] = {}
        for way in (up, down):
            if way.reading and len(way.out) < PIECE:
                wanted[way.source.fileno()] = wanted.get(way.source.fileno(), 0) | select.POLLIN
            if way.out:
                wanted[way.target.fileno()] = wanted.get(way.target.fileno(), 0) | select.POLLOUT
        for fd, events in wanted.items():
            poll.register(fd, events)
        ready = dict(poll.poll(idle_s * 1000))
        if not ready:
            raise TimeoutError
        for way in (up, down):
            if way.out and ready.get(way.target.fileno(), 0):
                _write(way, up)
            if way.reading and ready.get(way.source.fileno(), 0) and len(way.out) < PIECE:
                way.read()
            way.pass_end()


def _write(way: Way, up: Way) -> None:
    try:
        way.write()
    except (BrokenPipeError, ConnectionResetError):
        if way is not up:
            raise
        # a server may answer and hang up before it has read all: its answer still counts
        way.out, way.reading, way.told_end = b"", False, True

"""The HTTP that the proxy speaks: reading a head strictly, framing a body, words for a refusal.

Pure: bytes in, bytes out; knows no socket and no allow-list. Strict on purpose: what two parsers
could read in two ways (bare line ends, folded lines, two lengths, a length beside chunks, two Host
headers) is refused, so that nobody behind the proxy can see another request than the one it judged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from dagrun.sandbox.netproxy_hosts import Endpoint, Malformed, read_authority

MAX_HEAD_BYTES = 64 * 1024  # of all lines up to the empty one
MAX_HEADERS = 100
MAX_CHUNK_LINE = 256

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METHOD = re.compile(rb"[A-Z]{1,32}")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
# between the two neighbours of a connection only (RFC 9110, 7.6.1)
_HOP = frozenset(
    b"connection proxy-connection keep-alive te trailer upgrade proxy-authorization proxy-authenticate".split()
)
_END = b"\r\n\r\n"

Headers: TypeAlias = list[tuple[bytes, bytes]]


class BadMessage(Exception):
    """A message that is refused: the status for the client, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Framing(NamedTuple):
    """How a body ends: not there, after `length` bytes, with its last chunk, with the connection."""

    kind: Literal["none", "length", "chunked", "close"]
    length: int = 0


NO_BODY = Framing("none")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks: where to, and for anything but CONNECT the head to send there."""

    method: str
    endpoint: Endpoint
    head: bytes = b""
    body: Framing = NO_BODY
    expects: bool = False  # it waits for "100 Continue" before it sends its body

    @property
    def tunnel(self) -> bool:
        """Whether this is a CONNECT."""
        return self.method == "CONNECT"


# ---------------------------------------------------------------- heads


def split_head(data: bytes) -> tuple[bytes, bytes] | None:
    """(head, what came after it); None while it isn't complete. Raises BadMessage when it is too long."""
    end = data.find(_END)
    if end > MAX_HEAD_BYTES or (end < 0 and len(data) > MAX_HEAD_BYTES):
        raise BadMessage(431, "the head of the request is too long")
    if end < 0:
        return None
    return data[:end], data[end + len(_END) :]


def read_request(head: bytes) -> Request:
    """The request of a head without its empty line. Raises BadMessage, or Malformed for its host."""
    first, headers = _lines(head)
    words = first.split(b" ")
    if len(words) != 3 or not _METHOD.fullmatch(words[0]) or not _TARGET.fullmatch(words[1]):
        raise BadMessage(400, "the request line is malformed")
    method, target, version = words
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadMessage(505, "only HTTP/1.0 and HTTP/1.1 are understood")
    body = _request_body(headers)
    if method == b"CONNECT":
        if body.kind != "none":
            raise BadMessage(400, "CONNECT has no body")
        return Request("CONNECT", read_authority(target.decode("ascii")))
    endpoint, path = _absolute(target)
    _same_host(headers, endpoint)
    expects = any(n == b"expect" for n, _ in headers)
    if expects and _values(headers, b"expect") != [b"100-continue"]:
        raise BadMessage(417, "only `Expect: 100-continue` is understood")
    host = str(endpoint._replace(port=0 if endpoint.port == 80 else endpoint.port)).encode("ascii")
    kept = [(b"host", host), *_end_to_end(headers, {b"host", b"expect"}), (b"connection", b"close")]
    head = b"%s %s HTTP/1.1\r\n%s\r\n" % (method, path, _join(kept))
    return Request(method.decode("ascii"), endpoint, head, body, expects)


def _lines(head: bytes) -> tuple[bytes, Headers]:
    first, *rest = head.split(b"\r\n")
    if len(rest) > MAX_HEADERS:
        raise BadMessage(431, f"more than {MAX_HEADERS} headers")
    if any(c in head.replace(b"\r\n", b"") for c in (b"\r", b"\n", b"\0")):
        raise BadMessage(400, "a line ends in something else than CR LF")
    headers: Headers = []
    for line in rest:
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        # also refuses folded lines and a space before the colon
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadMessage(400, "a header is malformed")
        headers.append((name.lower(), value))
    return first, headers


def _absolute(target: bytes) -> tuple[Endpoint, bytes]:
    text = target.decode("ascii")
    scheme, sep, rest = text.partition("://")
    if not sep:
        raise BadMessage(400, "this is a proxy: ask for http://host/path, or CONNECT host:port")
    if scheme.lower() != "http":
        raise BadMessage(400, "only http:// is asked for this way: for anything else CONNECT host:port")
    cut = min([at for at in map(rest.find, "/?#") if at >= 0], default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    if "#" in path or "@" in authority or "\\" in authority:
        raise BadMessage(400, "the address has a part that has no place in a request")
    path = path if path.startswith("/") else f"/{path}"
    return read_authority(authority, 80), path.encode("ascii")


def _same_host(headers: Headers, endpoint: Endpoint) -> None:
    hosts = _values(headers, b"host")
    if len(hosts) > 1:
        raise BadMessage(400, "more than one Host header")
    try:
        same = not hosts or read_authority(hosts[0].decode("latin-1"), 80) == endpoint
    except Malformed:
        same = False
    if not same:
        raise BadMessage(400, "the Host header names another host than the address")


def _request_body(headers: Headers) -> Framing:
    codings, lengths = _values(headers, b"transfer-encoding"), _values(headers, b"content-length")
    if codings and lengths:
        raise BadMessage(400, "both Transfer-Encoding and Content-Length")
    if codings:
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadMessage(501, "only `Transfer-Encoding: chunked` is understood")
        return Framing("chunked")
    if not lengths:
        return NO_BODY
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise BadMessage(400, "Content-Length is no single number")
    return Framing("length", int(lengths[0])) if int(lengths[0]) else NO_BODY


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]


def _end_to_end(headers: Headers, without: set[bytes]) -> Headers:
    named = {word.strip().lower() for value in _values(headers, b"connection") for word in value.split(b",")}
    # a client must not take the framing away by calling it hop-by-hop
    gone = _HOP | without | (named - {b"content-length", b"transfer-encoding"})
    return [(name, value) for name, value in headers if name not in gone]


def _join(headers: Headers) -> bytes:
    return b"".join([b"%s: %s\r\n" % item for item in headers])


# ---------------------------------------------------------------- responses


def read_response(head: bytes, method: str) -> tuple[int, bytes, Framing]:
    """(status, the head for the client, how the body ends). Raises BadMessage (502)."""
    try:
        first, headers = _lines(head)
    except BadMessage as error:
        raise BadMessage(502, f"the server's answer: {error.why}") from None
    found = _STATUS.fullmatch(first)
    if found is None:
        raise BadMessage(502, "the server's answer is no HTTP/1")
    status = int(found[1])
    if status == 101:
        raise BadMessage(502, "the server switched to a protocol that nobody asked for")
    if status < 200:
        return status, b"%s\r\n%s\r\n" % (first, _join(_end_to_end(headers, set()))), NO_BODY
    codings, lengths = _values(headers, b"transfer-encoding"), _values(headers, b"content-length")
    if len(set(lengths)) > 1 or any(not _LENGTH.fullmatch(text) for text in lengths):
        raise BadMessage(502, "the server's answer has no single length")
    body = Framing("close")
    if method == "HEAD" or status in (204, 304):
        body = NO_BODY
    elif codings:
        body = Framing("chunked") if codings == [b"chunked"] else Framing("close")
    elif lengths:
        body = Framing("length", int(lengths[0]))
    without = {b"content-length"} if codings else set()
    kept = [*_end_to_end(headers, without), (b"connection", b"close")]
    return status, b"%s\r\n%s\r\n" % (first, _join(kept)), body


def answer(status: int, text: str) -> bytes:
    """A whole answer of the proxy itself, in plain text."""
    body = text.encode("utf-8", "replace")
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    408: "Request Timeout",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


# ---------------------------------------------------------------- bodies


@dataclass(slots=True)
class Meter:
    """Tells how much of what comes belongs to a body; `done` once all of it was there."""

    framing: Framing
    done: bool = field(init=False)
    _left: int = field(init=False)  # of the length, or of the present chunk
    _line: bytes = field(init=False, default=b"")
    _part: Literal["size", "data", "end", "trailer"] = field(init=False, default="size")

    def __post_init__(self) -> None:
        self._left = self.framing.length
        self.done = self.framing.kind == "none" or (self.framing.kind == "length" and not self._left)

    def take(self, data: bytes) -> int:
        """How many of these next bytes are the body's. Raises BadMessage for broken chunks."""
        if self.done:
            return 0
        if self.framing.kind == "close":
            return len(data)
        if self.framing.kind == "length":
            mine = min(self._left, len(data))
            self._left -= mine
            self.done = not self._left
            return mine
        at = 0
        while at < len(data) and not self.done:
            at = self._skip(data, at) if self._part == "data" else self._read_line(data, at)
        return at

    def _skip(self, data: bytes, at: int) -> int:
        mine = min(self._left, len(data) - at)
        self._left -= mine
        if not self._left:
            self._part = "end"
        return at + mine

    def _read_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end + 1
        self._line += data[at:stop]
        if len(self._line) > MAX_CHUNK_LINE:
            raise BadMessage(400, "a line between chunks is too long")
        if end >= 0:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
                raise BadMessage(400, "a line between chunks does not end in CR LF")
            self._take_line(line[:-2])
        return stop

    def _take_line(self, line: bytes) -> None:
        if self._part == "end":
            if line:
                raise BadMessage(400, "a chunk does not end where it says")
            self._part = "size"
        elif self._part == "size":
            size = _CHUNK.fullmatch(line)
            if size is None:
                raise BadMessage(400, "the size of a chunk is no number")
            self._left = int(size[1], 16)
            self._part = "data" if self._left else "trailer"
        elif not line:
            self.done = True
        else:
            name, colon, value = line.partition(b":")
            if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                raise BadMessage(400, "a trailer is malformed")


# ---------------------------------------------------------------- words


def refusal(endpoint: Endpoint, why: str, add: Sequence[str]) -> bytes:
    """The 403 that says what was not allowed and what to write to allow it."""
    wanted = ", ".join(f'"{entry}"' for entry in add)
    return answer(403, f"dagrun: {endpoint} is refused: {why}\nto allow it, add to permissions.network: [{wanted}]\n")

"""A request is read in one way or refused, and nothing but its own body follows it to the server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.sandbox.netproxy_hosts import Endpoint, Malformed
from dagrun.sandbox.netproxy_http import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    BadMessage,
    Framing,
    Meter,
    Request,
    answer,
    read_request,
    read_response,
    refusal,
    split_head,
)


def read(text: str) -> Request:
    """The request of lines written with plain line ends."""
    return read_request(text.strip("\n").replace("\n", "\r\n").encode("latin-1"))


def test_connect_names_host_and_port() -> None:
    request = read("CONNECT Example.org.:443 HTTP/1.1\nHost: whatever")
    assert request.tunnel
    assert request.endpoint == Endpoint("example.org", 443)
    assert request.head == b""


def test_an_absolute_address_becomes_a_request_to_its_host() -> None:
    request = read("GET http://a.example/x?y=1 HTTP/1.1\nHost: A.example:80\nAccept: */*")
    assert request.endpoint == Endpoint("a.example", 80)
    assert request.head == b"GET /x?y=1 HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "endpoint", "path"),
    [
        ("http://a.example", Endpoint("a.example", 80), b"/"),
        ("HTTP://a.example:8080?q", Endpoint("a.example", 8080), b"/?q"),
        ("http://[::1]:81/@x:y", Endpoint("::1", 81), b"/@x:y"),
        ("http://a.example//b.example/", Endpoint("a.example", 80), b"//b.example/"),
    ],
)
def test_the_host_of_an_address_ends_where_its_path_begins(target: str, endpoint: Endpoint, path: bytes) -> None:
    request = read(f"GET {target} HTTP/1.0")
    assert request.endpoint == endpoint
    assert request.head.split(b" ")[1] == path


def test_headers_between_neighbours_do_not_travel_on() -> None:
    request = read(
        "POST http://a.example/ HTTP/1.1\nConnection: X-Mine, content-length\nX-Mine: 1\nContent-Length: 3\n"
        "Proxy-Authorization: Basic eA==\nUpgrade: h2c\nTE: trailers\nKeep-Alive: 5\nProxy-Connection: keep-alive"
    )
    assert request.head == b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"
    assert request.body == Framing("length", 3)


@pytest.mark.parametrize(
    "text",
    [
        # the request line
        *("", "GET", "GET /", "GET / HTTP/1.1", "GET http://a.example/", "GET  http://a.example/ HTTP/1.1"),
        *("get http://a.example/ HTTP/1.1", "GET http://a.example/ HTTP/2.0", "GET http://a.example/ HTTP/1.1 x"),
        *("G ET http://a.example/ HTTP/1.1", "GET http://a.example/\tHTTP/1.1", "GET http://a.example/\x80 HTTP/1.1"),
        *("GET https://a.example/ HTTP/1.1", "GET ftp://a.example/ HTTP/1.1", "GET a.example:80 HTTP/1.1"),
        *("GET http://u@a.example/ HTTP/1.1", "GET http://a.example\\@b.example/ HTTP/1.1", "PRI * HTTP/2.0"),
        *("GET http://a.example/#f HTTP/1.1", "OPTIONS * HTTP/1.1", "CONNECT http://a.example:80/ HTTP/1.1"),
        # the Host header
        "GET http://a.example/ HTTP/1.1\nHost: b.example",
        "GET http://a.example/ HTTP/1.1\nHost: a.example:81",
        "GET http://a.example/ HTTP/1.1\nHost: a.example\nHost: a.example",
        "GET http://a.example/ HTTP/1.1\nHost: a.example, b.example",
        "GET http://a.example/ HTTP/1.1\nHost:",
        # two lengths
        "POST http://a.example/ HTTP/1.1\nContent-Length: 1\nTransfer-Encoding: chunked",
        "POST http://a.example/ HTTP/1.1\nContent-Length: 1\nContent-Length: 2",
        "POST http://a.example/ HTTP/1.1\nContent-Length: 1\nContent-Length: 1",
        "POST http://a.example/ HTTP/1.1\nContent-Length: 1, 1",
        "POST http://a.example/ HTTP/1.1\nContent-Length: +1",
        "POST http://a.example/ HTTP/1.1\nContent-Length: -1",
        "POST http://a.example/ HTTP/1.1\nContent-Length: 0x1",
        "POST http://a.example/ HTTP/1.1\nContent-Length: 1_0",
        "POST http://a.example/ HTTP/1.1\nContent-Length: ",
        "POST http://a.example/ HTTP/1.1\nTransfer-Encoding: gzip, chunked",
        "POST http://a.example/ HTTP/1.1\nTransfer-Encoding: xchunked",
        "POST http://a.example/ HTTP/1.1\nTransfer-Encoding: chunked\nTransfer-Encoding: identity",
        "POST http://a.example/ HTTP/1.1\nTransfer-Encoding: \x0bchunked",
        "CONNECT a.example:80 HTTP/1.1\nContent-Length: 5",
        "CONNECT a.example:80 HTTP/1.1\nTransfer-Encoding: chunked",
        # malformed lines
        "GET http://a.example/ HTTP/1.1\nX : 1",
        "GET http://a.example/ HTTP/1.1\nX: 1\n folded: 2",
        "GET http://a.example/ HTTP/1.1\n: 1",
        "GET http://a.example/ HTTP/1.1\nno colon",
        "GET http://a.example/ HTTP/1.1\nX: a\0b",
        "GET http://a.example/ HTTP/1.1\nX: a\rY: b",
        "POST http://a.example/ HTTP/1.1\nExpect: the moon",
        "GET http://a.example/ HTTP/1.1" + "\nX: 1" * (MAX_HEADERS + 1),
    ],
)
def test_what_is_not_plainly_a_request_is_refused(text: str) -> None:
    with pytest.raises((BadMessage, Malformed)):
        read(text)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\n\r", b"\r\r\n", b"\0\r\n"])
def test_a_line_ends_in_one_way_only(end: bytes) -> None:
    with pytest.raises(BadMessage):
        read_request(b"GET http://a.example/ HTTP/1.1\r\nX: 1" + end + b"Y: 2")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        request = read_request(b"GET http://a.example/ HTTP/1.1\r\n" + data)
    except (BadMessage, Malformed):
        return
    assert request.endpoint == Endpoint("a.example", 80)
    assert request.head.count(b"\r\n\r\n") == 1
    assert request.head.lower().count(b"\r\nhost:") == 1


def test_a_head_is_awaited_up_to_a_bound() -> None:
    assert split_head(b"GET / HTTP/1.1\r\nA: b\r\n") is None
    assert split_head(b"one\r\n\r\nrest\r\n\r\n") == (b"one", b"rest\r\n\r\n")
    for data in (b"a" * (MAX_HEAD_BYTES + 1), b"a" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n"):
        with pytest.raises(BadMessage) as caught:
            split_head(data)
        assert caught.value.status == 431


# ---------------------------------------------------------------- bodies

CHUNKED = b"4;x=1\r\nwiki\r\nB\r\n\r\npedia\r\nin\r\n0\r\nT: 1\r\n\r\n"


@given(st.lists(st.integers(1, 9), max_size=20))
def test_a_chunked_body_ends_with_its_last_chunk_however_it_is_cut(cuts: list[int]) -> None:
    meter, data, taken = Meter(Framing("chunked")), CHUNKED + b"GET http://evil/ HTTP/1.1\r\n\r\n", 0
    for cut in [*cuts, *[7] * len(data)]:
        taken += meter.take(data[taken : taken + cut])
    assert meter.done
    assert taken == len(CHUNKED)


@pytest.mark.parametrize(
    "data",
    [
        *(b"g\r\n", b"\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1 1\r\n", b"1\n", b"1\r\r\n", b"1\0\r\n"),
        b"f" * 16 + b"\r\n",
        *(b"1\r\nab\r\n", b"1\r\na\n", b"1\r\naX\r\n", b"1;" + b"x" * 300, b"0\r\nbad trailer\r\n", b"0\r\n a: b\r\n"),
    ],
)
def test_broken_chunks_are_refused(data: bytes) -> None:
    meter = Meter(Framing("chunked"))
    with pytest.raises(BadMessage):
        meter.take(data)


def test_a_body_of_a_length_takes_that_many_bytes() -> None:
    meter = Meter(Framing("length", 5))
    assert (meter.take(b"abc"), meter.done) == (3, False)
    assert (meter.take(b"defg"), meter.done) == (2, True)
    assert meter.take(b"more") == 0
    assert Meter(Framing("none")).done
    assert Meter(Framing("close")).take(b"all") == 3


# ---------------------------------------------------------------- responses


@pytest.mark.parametrize(
    ("head", "method", "framing"),
    [
        ("HTTP/1.1 200 OK\nContent-Length: 3", "GET", Framing("length", 3)),
        ("HTTP/1.1 200 OK\nContent-Length: 3", "HEAD", Framing("none")),
        ("HTTP/1.1 204 No Content", "GET", Framing("none")),
        ("HTTP/1.1 304 Not Modified\nContent-Length: 3", "GET", Framing("none")),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", "GET", Framing("chunked")),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nContent-Length: 3", "GET", Framing("chunked")),
        ("HTTP/1.0 200", "GET", Framing("close")),
    ],
)
def test_a_response_says_how_it_ends(head: str, method: str, framing: Framing) -> None:
    status, sent, found = read_response(head.replace("\n", "\r\n").encode(), method)
    assert found == framing
    assert status == int(head.split()[1])
    assert sent.endswith(b"connection: close\r\n\r\n")
    assert not (b"chunked" in sent and b"content-length" in sent)


@pytest.mark.parametrize(
    "head", ["", "nonsense", "HTTP/2 200", "HTTP/1.1 99 x", "HTTP/1.1 101 Switching", "HTTP/1.1 200 OK\nbad line"]
)
def test_a_response_that_is_none_is_a_bad_gateway(head: str) -> None:
    with pytest.raises(BadMessage) as caught:
        read_response(head.replace("\n", "\r\n").encode(), "GET")
    assert caught.value.status == 502


def test_an_answer_of_the_proxy_is_whole_and_a_refusal_says_what_to_add() -> None:
    head, body = answer(403, "nö").split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"content-length: 3" in head
    assert body == "nö".encode()
    text = refusal(Endpoint("::1", 80), "not in permissions.network", ("[::1]:80",)).decode()
    assert "[::1]:80 is refused: not in permissions.network" in text
    assert 'add to permissions.network: ["[::1]:80"]' in text

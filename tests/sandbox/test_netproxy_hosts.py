"""Every spelling of a host means one thing or is refused, and a list never means more than it says."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.grants import host_fault
from dagrun.sandbox.netproxy_hosts import (
    AllowList,
    Endpoint,
    Malformed,
    is_loopback,
    packed,
    read_authority,
    read_entry,
    read_host,
    special,
)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("example.org", "example.org"),
        ("EXAMPLE.Org", "example.org"),
        ("example.org.", "example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_x.a-b.example", "_x.a-b.example"),
        ("192.0.2.7", "192.0.2.7"),
        ("[2001:DB8:0:0::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("[::FFFF:7f00:1]", "127.0.0.1"),
        ("localhost", "localhost"),
    ],
)
def test_each_host_has_one_form(written: str, meant: str) -> None:
    assert read_host(written) == meant


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "a..b", ".a", "example.org..", "-a.org", "a-.org", "a" * 64 + ".org", "a." * 130 + "org"),
        *("a b", "a\tb", "a\nb", "a\r\nHost: b", "a\0b", "a/b", "a\\b", "a@b", "a?b", "a#b", "a%62", "a,b", "*", "a*"),
        *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "1.2.3.4.5", "256.1.1.1", "1.2.3.04"),
        *("a.1", "a.0x1f", "example.0x", "[::1", "::1]", "[::1%lo]", "fe80::1%eth0", "[1.2.3.4]", "[]", "[a]", ":::"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        read_host(text)


@given(st.text(max_size=40))
def test_a_host_that_was_read_is_its_own_form(text: str) -> None:
    try:
        host = read_host(text)
    except Malformed:
        return
    assert read_host(host) == host
    assert host.isascii()
    assert host == host.lower()


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("a.example:443", Endpoint("a.example", 443)),
        ("A.example.:80", Endpoint("a.example", 80)),
        ("[::1]:8080", Endpoint("::1", 8080)),
    ],
)
def test_an_authority_is_a_host_and_a_port(text: str, endpoint: Endpoint) -> None:
    assert read_authority(text) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *("a.example", "a.example:", "a.example:0", "a.example:65536", "a.example:+80", "a.example:8 0", "a:b:80"),
        *("u@a.example:80", "u:p@a.example:80", "[::1]", "[::1]x:80", "[::1]:", "::1:80"),
        *("a.example:٨٠", "a.example:080000"),
    ],
)
def test_an_authority_without_a_plain_port_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        read_authority(text)


@pytest.mark.parametrize(
    ("entry", "yes", "no"),
    [
        ("a.example", ["a.example:443", "A.EXAMPLE.:1"], ["b.example:443", "x.a.example:443", "aXexample.org:1"]),
        ("a.example:443", ["a.example:443"], ["a.example:80", "a.example:4430"]),
        ("*.a.example", ["x.a.example:1", "x.y.a.example:2"], ["a.example:1", "xa.example:1", "x.a.example.org:1"]),
        ("*.a.example:443", ["x.a.example:443"], ["x.a.example:80"]),
        ("192.0.2.7", ["192.0.2.7:80", "[::ffff:192.0.2.7]:80"], ["192.0.2.70:80", "[::c000:207]:80"]),
        ("[2001:db8::1]", ["[2001:db8:0::1]:22"], ["[2001:db8::2]:22"]),
        ("2001:db8::1", ["[2001:db8::1]:22"], ["[2001:db8::2]:22"]),
        ("[2001:db8::1]:22", ["[2001:db8::1]:22"], ["[2001:db8::1]:23"]),
    ],
)
def test_an_entry_means_what_it_names(entry: str, yes: list[str], no: list[str]) -> None:
    allow = AllowList((entry,))
    assert [t for t in yes if not allow.allows(read_authority(t))] == []
    assert [t for t in no if allow.allows(read_authority(t))] == []


@pytest.mark.parametrize("entry", ["", "a b", "http://a.example", "a.example/x", "*.1.2.3.4", "a.example:", "*", "*."])
def test_an_entry_that_means_nothing_is_named(entry: str) -> None:
    with pytest.raises(Malformed, match=r"^'"):
        AllowList((entry,))


@pytest.mark.parametrize("entry", ["*.4", "*.3.4", "*.0x7f", "*.[::1]"])
def test_a_wildcard_is_never_the_end_of_an_address(entry: str) -> None:
    with pytest.raises(Malformed):
        read_entry(entry)


NOT_PUBLIC = (
    "127.0.0.1 127.9.9.9 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1"
    " 255.255.255.255 192.0.0.8 198.18.0.1 ::1 :: fe80::1 fc00::1 fd00:ec2::254 ff02::1"
    " ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1:: 2001:0:1::1 ::127.0.0.1 fec0::1"
).split()


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_name_may_not_lead_to_an_address_that_is_not_public(address: str) -> None:
    assert not AllowList(("a.example",)).allows_address(address, 80, own=False)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "172.32.0.1"])
def test_a_name_may_lead_to_any_public_address_but_this_machines_own(address: str) -> None:
    allow = AllowList(("a.example",))
    assert allow.allows_address(address, 80, own=False)
    assert not allow.allows_address(address, 80, own=True)
    assert AllowList(("a.example", f"[{address}]" if ":" in address else address)).allows_address(address, 80, own=True)


def test_a_name_may_lead_where_the_list_names_the_address_too() -> None:
    allow = AllowList(("db.corp.example", "10.1.2.3:5432"))
    assert allow.allows_address("10.1.2.3", 5432, own=False)
    assert not allow.allows_address("10.1.2.3", 22, own=False)
    assert not allow.allows_address("10.1.2.4", 5432, own=False)


def test_localhost_is_loopback_and_nothing_else() -> None:
    allow = AllowList(("localhost:8080",))
    assert allow.allows_address("127.0.0.1", 8080, own=True)
    assert allow.allows_address("::1", 8080, own=True)
    assert not allow.allows_address("127.0.0.1", 22, own=True)
    assert not allow.allows_address("10.0.0.1", 8080, own=True)
    assert not AllowList(("*.localhost",)).allows_address("127.0.0.1", 8080, own=True)


@given(st.ip_addresses())
def test_what_is_public_here_is_public_to_python(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    raw = packed(str(address))
    assert raw == address.packed
    if not special(raw):
        embedded = ipaddress.IPv4Address(raw[12:]) if raw.startswith(bytes.fromhex("0064ff9b") + bytes(8)) else address
        assert embedded.is_global
        assert not embedded.is_multicast
    if address.is_loopback:
        assert is_loopback(raw)


@pytest.mark.parametrize(
    "entry",
    [
        *("example.com", "example.com:443", "*.example.com", "*.example.com:8443", "localhost", "localhost:5432"),
        *("10.1.2.3", "10.1.2.3:22", "[::1]", "[::1]:443", "[2001:db8::1]", "xn--bcher-kva.example", "a_b.example"),
        *("", "a b", "http://a.example", "*", "a.example:0", "2130706433", "127.1", "0x7f.1", "*.1.2.3.4", "a..b"),
    ],
)
def test_what_a_workflow_may_write_is_what_is_read_here(entry: str) -> None:
    assert (host_fault(entry) is None) == _reads(entry)


def _reads(entry: str) -> bool:
    try:
        read_entry(entry)
    except Malformed:
        return False
    return True

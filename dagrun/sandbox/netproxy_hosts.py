"""Which host and port an allow-list means: reading names and addresses strictly, and matching them.

Pure: no lookup is made here. What can be spelled in two ways (decimal, octal or short IPv4, IDNA,
case, a trailing dot) is either brought into one form or refused, never guessed.
"""

from __future__ import annotations

import re
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# what resolvers and browsers read as an IPv4 number: 2130706433, 0x7f.1, 0177.0.0.1
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
_PORT = re.compile(r"[0-9]{1,5}")
MAX_NAME = 253
PORT = 3128  # where the proxy listens inside a sandbox


class Malformed(ValueError):
    """Text that is no host, or that could be read as two."""


class Endpoint(NamedTuple):
    """A host in its one form (lower case, no trailing dot, no brackets) and a port; 0: any port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


# ---------------------------------------------------------------- reading


def read_host(text: str) -> str:
    """The one form of a name or address. Raises Malformed for anything else, odd spellings of IPv4 included."""
    if text.startswith("[") and text.endswith("]"):
        return _address6(text[1:-1])
    if ":" in text:
        return _address6(text)
    name = text.lower()
    if not name.isascii():
        name = _idna(name)
    name = name.removesuffix(".")
    if not 0 < len(name) <= MAX_NAME:
        raise Malformed("a host name has 1 to 253 characters")
    labels = name.split(".")
    if not all(map(_LABEL.fullmatch, labels)):
        raise Malformed("it is no host name")
    if _NUMBER.fullmatch(labels[-1]):
        if packed(name) is None:
            raise Malformed("an IPv4 address has four decimal numbers")
        return name
    return name


def _address6(text: str) -> str:
    try:
        raw = inet_pton(AF_INET6, text)
    except (OSError, ValueError, UnicodeError):
        raise Malformed("it is no IPv6 address") from None
    if raw.startswith(_MAPPED):
        return inet_ntop(AF_INET, raw[12:])
    return inet_ntop(AF_INET6, raw)


def _idna(name: str) -> str:
    try:
        return name.encode("idna").decode("ascii").lower()
    except (UnicodeError, ValueError):
        raise Malformed("it is no host name") from None


def read_port(text: str) -> int:
    """A port from 1 to 65535. Raises Malformed."""
    if not _PORT.fullmatch(text) or not 0 < int(text) < 65536:
        raise Malformed("a port is a number from 1 to 65535")
    return int(text)


def read_authority(text: str, default_port: int = 0) -> Endpoint:
    """`host`, `host:port`, `[v6]:port`. Raises Malformed, also where no port is given and there is no default."""
    if text.startswith("["):
        inside, bracket, rest = text.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise Malformed("it is no IPv6 address")
        host, port = f"{inside}]", rest[1:] if rest else ""
        colon = bool(rest)
    else:
        host, found, port = text.partition(":")
        colon = bool(found)
    if not colon and default_port:
        return Endpoint(read_host(host), default_port)
    return Endpoint(read_host(host), read_port(port))


def read_entry(text: str) -> Endpoint:
    """An entry of an allow-list: `host` (any port), `host:port`, `*.domain`, `[v6]`, `[v6]:port`. Raises Malformed."""
    wild = text.startswith("*.")
    rest = text[2:] if wild else text
    if rest.count(":") > 1 and not rest.startswith("["):
        return Endpoint(_address6(rest), 0)
    bare = rest.endswith("]") or ":" not in rest
    host = Endpoint(read_host(rest), 0) if bare else read_authority(rest)
    if not wild:
        return host
    if packed(host.host) is not None:
        raise Malformed("`*.` goes before a domain, not before an address")
    return Endpoint(f"*.{host.host}", host.port)


# ---------------------------------------------------------------- matching


class AllowList:
    """The endpoints that a sandbox may reach. Raises Malformed naming an entry that means nothing."""

    def __init__(self, entries: tuple[str, ...]) -> None:
        self.entries: list[Endpoint] = []
        for text in entries:
            try:
                self.entries.append(read_entry(text))
            except Malformed as error:
                raise Malformed(f"{text!r}: {error}") from None

    def allows(self, wanted: Endpoint) -> bool:
        """Whether an entry names this host (or a domain above it, with `*.`) with this or any port."""
        return any(_covers(entry, wanted) for entry in self.entries)

    def allows_address(self, address: str, port: int, *, own: bool) -> bool:
        """Whether a name that is allowed may lead to this address.

        Public addresses may. Loopback, private, link-local and other special ones, and those of this
        machine (`own`), only if an entry names that very address, or `localhost` for loopback.
        """
        raw = packed(address)
        if raw is None:
            return False
        if not own and not special(raw):
            return True
        if self.allows(Endpoint(read_host(address), port)):
            return True
        return is_loopback(raw) and self.allows(Endpoint("localhost", port))


def _covers(entry: Endpoint, wanted: Endpoint) -> bool:
    if entry.port not in (0, wanted.port):
        return False
    if entry.host.startswith("*."):
        # an address has no subdomains, so it can't end in a domain by accident
        return packed(wanted.host) is None and wanted.host.endswith(entry.host[1:])
    return entry.host == wanted.host


# ---------------------------------------------------------------- addresses

_MAPPED = bytes(10) + b"\xff\xff"
_NAT64 = bytes.fromhex("0064ff9b0000000000000000")
# IANA's special-purpose registries, and what else no public host has
_SPECIAL = tuple(
    (inet_pton(AF_INET6 if ":" in net else AF_INET, net), int(bits))
    for net, bits in (
        entry.split("/")
        for entry in (
            "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24"
            " 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
            " ::/96 100::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 64:ff9b:1::/48 fc00::/7 fe80::/10"
            " fec0::/10 ff00::/8"
        ).split()
    )
)


def packed(text: str) -> bytes | None:
    """The bytes of an address in its usual form; None for a name."""
    for family in (AF_INET, AF_INET6):
        try:
            return inet_pton(family, text)
        except (OSError, ValueError, UnicodeError):
            pass
    return None


def special(raw: bytes) -> bool:
    """Whether an address is no public one: loopback, private, link-local, multicast, documentation …"""
    if len(raw) == 16 and raw.startswith((_MAPPED, _NAT64)):
        return special(raw[12:])  # the IPv4 address behind it
    return any(len(net) == len(raw) and _inside(raw, net, bits) for net, bits in _SPECIAL)


def is_loopback(raw: bytes) -> bool:
    """Whether an address is this machine itself whatever its interfaces are."""
    if len(raw) == 16 and raw.startswith(_MAPPED):
        return is_loopback(raw[12:])
    return raw[0] == 127 if len(raw) == 4 else raw == bytes(15) + b"\1"


def _inside(raw: bytes, net: bytes, bits: int) -> bool:
    shift = 8 * len(raw) - bits
    return int.from_bytes(raw, "big") >> shift == int.from_bytes(net, "big") >> shift

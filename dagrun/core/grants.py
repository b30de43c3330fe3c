"""Tools, models and hosts as permissions name them: what a text means, and which one holds another.

Every relation here is a tree: two patterns either hold one another or have nothing in common (hosts:
two trees, name and port), so a meet of lists is exact. Text only; nothing is looked up or called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from dagrun.core.roots import Root, inside, path_fault, root_of, text_fault

T = TypeVar("T")
FILE_TOOLS = ("Read", "Write", "Edit", "Grep", "Glob")
TOOLS = ("Read", "Write", "Edit", "Bash", "Grep", "Glob")
_MCP = re.compile(r"mcp__[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*__(?:[A-Za-z0-9_.-]+|\*)")
_CALL = re.compile(r"([^()]*)\((.*)\)", re.DOTALL)
WORD = re.compile(r"[A-Za-z0-9_@%+=:,./^-]+")  # characters that no shell reads as anything else
RESERVED = frozenset(
    "if then else elif fi do done case esac while until for in function select time coproc { } ! [[ ]]".split()
)
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]*")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


def joined(some: Iterable[T], others: Iterable[T], both: Callable[[T, T], T | None]) -> tuple[T, ...]:
    """What two lists have in common, by what each two of their items have."""
    right = tuple(others)
    found = [got for a in some for b in right if (got := both(a, b)) is not None]
    return reduced(found, both)


def reduced(items: Iterable[T], both: Callable[[T, T], T | None]) -> tuple[T, ...]:
    """The items without those that another one holds."""
    unique = list(dict.fromkeys(items))
    return tuple(a for a in unique if not any(a is not b and both(a, b) == a for b in unique))


# ---------------------------------------------------------------- tools


class Call(NamedTuple):
    """Calls of a tool: all of them, or those whose command begins with `words` (or is these: `exact`), or in `root`."""

    tool: str
    words: tuple[str, ...] = ()
    exact: bool = False
    root: Root | None = None

    def __str__(self) -> str:
        if self.root is not None:
            return f"{self.tool}({self.root})"
        return f"{self.tool}({' '.join(self.words)}{'' if self.exact else ':*'})" if self.words else self.tool


def call_of(text: str) -> Call:
    """The calls that a pattern without faults means."""
    found = _CALL.fullmatch(text)
    if found is None:
        return Call(text)
    tool, inner = found[1], found[2]
    if tool != "Bash":
        return Call(tool, root=root_of(inner))
    exact = not inner.endswith(":*")
    return Call(tool, tuple((inner if exact else inner[:-2]).split()), exact)


def common_calls(a: Call, b: Call) -> Call | None:
    """The calls that two patterns both mean: one of the two, or none."""
    return a if _holds_call(b, a) else b if _holds_call(a, b) else None


def _holds_call(wide: Call, narrow: Call) -> bool:
    if wide.tool.endswith("__*"):
        return narrow.tool.startswith(wide.tool[:-1])
    if wide.tool != narrow.tool:
        return False
    if wide.root is not None:
        return narrow.root is not None and inside(narrow.root, wide.root)
    if wide.exact:
        return wide == narrow
    return narrow.words[: len(wide.words)] == wide.words


def tool_fault(text: str) -> tuple[str, str] | None:
    """(message, hint) of a text that is no pattern of tool calls, else None."""
    fault = text_fault(text, "a tool")
    if fault:
        return fault
    found = _CALL.fullmatch(text)
    tool = found[1] if found else text
    if tool.startswith("mcp__"):
        if found or not _MCP.fullmatch(tool):
            return f"`{text}` is no tool of an MCP server", "write mcp__SERVER__TOOL, or mcp__SERVER__* for all of them"
        return None
    if found is None and "(" in text:
        return f"`{text}` has no `)` at its end", f"write {text})"
    if tool not in TOOLS:
        return f"there is no tool `{tool}`", _near_tool(tool)
    if found is None:
        return None
    if tool == "Bash":
        return _bash_fault(found[2])
    return path_fault(found[2], write=tool in ("Write", "Edit"))


def _near_tool(tool: str) -> str:
    from difflib import get_close_matches

    names = {known.lower(): known for known in TOOLS}
    same = names.get(tool.strip().lower())
    if same:
        return f"write {same}"
    found = get_close_matches(tool.strip().lower(), names, n=1, cutoff=0.6)
    return f"did you mean `{names[found[0]]}`?" if found else f"there are {', '.join(TOOLS)}, and mcp__SERVER__TOOL"


def _bash_fault(inner: str) -> tuple[str, str] | None:
    if inner in ("", "*", ":*"):
        return "this pattern means every command", "write Bash"
    words = inner.removesuffix(":*").split()
    if inner.endswith(" *"):
        return "words are followed by `:*`, not by ` *`", f"write Bash({inner[:-2].rstrip()}:*)"
    bad = next((w for w in words if not WORD.fullmatch(w)), "")
    if bad or not words:
        message = f"`{bad or inner}` can't stand in a pattern: it has plain words only"
        return message, "write the words that a command begins with: Bash(git log:*)"
    if words[0] in RESERVED or _ASSIGNMENT.match(words[0]):
        return f"a command can't begin with `{words[0]}` here", "write the name of a program"
    return None


# ---------------------------------------------------------------- models


def common_models(a: str, b: str) -> str | None:
    """The model names that two patterns both mean: one of the two, or none."""
    return a if _holds_model(b, a) else b if _holds_model(a, b) else None


def _holds_model(wide: str, narrow: str) -> bool:
    return narrow.startswith(wide[:-1]) if wide.endswith("*") else wide == narrow


def model_fault(text: str) -> tuple[str, str] | None:
    """(message, hint) of a text that names neither a tier nor a model nor some of them, else None."""
    fault = text_fault(text, "a model")
    if fault or text == "*":
        return fault
    if "*" in text[:-1]:
        return "in a model `*` may only stand at the end", "write vendor/*"
    name = text.removesuffix("*")
    if not _MODEL.fullmatch(name) or "//" in name:
        return f"`{text}` is no name of a model", "write a tier, VENDOR/MODEL or VENDOR/*"
    if name != text and "/" not in name:
        return "a tier is named in full", f"write {name}, or {name}/* for the models of a vendor"
    return None


# ---------------------------------------------------------------- hosts


class Host(NamedTuple):
    """A host, or all below a domain (`wild`); `port` 0: every port."""

    name: str
    port: int = 0
    wild: bool = False

    def __str__(self) -> str:
        return ("*." if self.wild else "") + self.name + (f":{self.port}" if self.port else "")


def host_of(text: str) -> Host:
    """The host that a text without faults names."""
    name, _, port = (text, "", "") if text.endswith("]") else text.rpartition(":") if ":" in text else (text, "", "")
    wild = name.startswith("*.")
    return Host(name[2:] if wild else name, int(port or 0), wild)


def common_hosts(a: Host, b: Host) -> Host | None:
    """The host and ports that two entries both mean."""
    if a.port and b.port and a.port != b.port:
        return None
    name = a if _holds_name(b, a) else b if _holds_name(a, b) else None
    return name and Host(name.name, a.port or b.port, name.wild)


def _holds_name(wide: Host, narrow: Host) -> bool:
    if not wide.wild:
        return not narrow.wild and wide.name == narrow.name
    return narrow.name.endswith(f".{wide.name}") or (narrow.wild and narrow.name == wide.name)


def host_fault(text: str) -> tuple[str, str] | None:
    """(message, hint) of a text that is no `host`, `host:port` or `*.domain`, else None."""
    fault = text_fault(text, "a host")
    if fault:
        return fault
    if "://" in text or "/" in text or "@" in text:
        bare = text.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
        return f"`{text}` is more than a host", f"write {bare}" if bare else "write example.com or example.com:443"
    if text.startswith("[") or text.count(":") > 1:
        return _ipv6_fault(text)
    name, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536 and port == str(int(port))):
        return f"`{port}` is no port", f"write {name} for every port, or {name}:443"
    return _name_fault(name)


def _ipv6_fault(text: str) -> tuple[str, str] | None:
    inner, bracket, rest = text[1:].partition("]") if text.startswith("[") else (text, "", "")
    from ipaddress import IPv6Address  # 10 ms to import, for files that name one

    try:
        address = IPv6Address(inner)
    except ValueError:
        return f"`{text}` is no host", "write example.com, example.com:443 or [::1]:443"
    if address.ipv4_mapped is not None:
        return "this is an IPv4 address", f"write {address.ipv4_mapped}"
    if address.scope_id is not None:
        return "an address with a zone can't be held", "write it without %…"
    if not bracket or inner != str(address):
        return "an IPv6 address has one form here", f"write [{address}]{rest}"
    if rest and not rest.startswith(":"):
        return f"`{text}` is no host", f"write [{address}]:443"
    return host_fault(f"localhost{rest}")


def _name_fault(name: str) -> tuple[str, str] | None:
    if name == "*":
        return "every host is `network: any`", "write any instead of the list"
    wild = name.startswith("*.")
    bare = name[2:] if wild else name
    if "*" in bare:
        return "in a host `*` may only stand for what is before a domain", "write *.example.com"
    if bare != bare.lower():
        return "a host is written in lower case", f"write {name.lower()}"
    if not bare.isascii():
        return "a host is written in ASCII", "write its xn--… form"
    if bare.endswith("."):
        return "a host has no dot at its end", f"write {name.rstrip('.')}"
    labels = bare.split(".")
    if len(bare) > 253 or not all(map(_LABEL.fullmatch, labels)):
        return f"`{name}` is no host", "write example.com or example.com:443"
    if _NUMBER.fullmatch(labels[-1]):
        if wild or len(labels) != 4 or not all(n.isdigit() and int(n) < 256 and n == str(int(n)) for n in labels):
            return f"`{name}` is no address", "an IPv4 address has four decimal numbers, such as 127.0.0.1"
    elif wild and len(labels) < 2:
        return f"`{name}` is too wide", "name a domain of at least two parts: *.example.com"
    return None

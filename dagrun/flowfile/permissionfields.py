"""What a value of `permissions`, `docker` and a node's `secrets` may be: source text in, typed value out.

Like `fields.py`, in whose terms these speak. What a tool, root, host or model may look like is the
core's to say (`core/grants.py`, `core/roots.py`); here are the shapes around them, and what people write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Literal, TypeAlias

from dagrun.core.grants import host_fault, model_fault, tool_fault
from dagrun.core.permissions import LEVELS, Network
from dagrun.core.plan import near
from dagrun.core.roots import path_fault
from dagrun.flowfile import fields
from dagrun.flowfile.source import Value

Fault: TypeAlias = "tuple[str, str] | None"
SecretForm: TypeAlias = Literal["variable", "file"]

MAX_ITEMS = 1000  # of one list: every item of a scope is compared with every item of the one above
MAX_TEXT = 4096
NANO = 9  # decimal places of a dollar that are kept
_MONEY = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?")
_EXACT = Context(prec=120)  # more digits than the text of an amount may have
_IN_MONEY = re.compile(r"\$?\s*([0-9]+(?:[.,][0-9]{1,9})?)\s*(?:\$|usd|USD|dollars?|€|eur|EUR)?")
# docker's own grammar of a reference: [host[:port]/]path[:tag][@digest]; it can't begin with `-`
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_IMAGE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@[a-z0-9]+:[0-9a-f]{{32,128}})?"
)
_USER = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?")
_NO_NETWORK = frozenset("false no off never disabled disable deny denied block blocked nothing isolated 0".split())
_ALL_NETWORK = frozenset("true yes on all host full open allow allowed bridge default internet * 1".split())
_LEVEL_WORDS = {
    "container": "docker podman oci image containers containerized",
    "process": "sandbox sandboxed bwrap bubblewrap landlock seccomp strict subprocess true yes",
    "none": "off no false disabled unsafe host",
    "context": "agent conversation",
}


def _items(value: Value, check: Callable[[Value], str], what: str) -> tuple[str, ...]:
    """A list of texts without repetitions."""
    if isinstance(value, list) and len(value) > MAX_ITEMS:
        raise fields.wrong(f"this list may have {MAX_ITEMS:,} items, not {len(value):,}")
    return tuple(dict.fromkeys(fields.each(value, check, what)))


def _told(value: Value, fault: Callable[[str], Fault]) -> str:
    """A text that the core finds nothing wrong with."""
    got = fields.filled(value)
    if len(got) > MAX_TEXT:
        raise fields.wrong(f"this text may have {MAX_TEXT:,} characters, not {len(got):,}")
    if "${{" in got:
        raise fields.wrong("an expression can't stand here", "permissions are the same in every run: write it out")
    found = fault(got)
    if found:
        raise fields.wrong(*found)
    return got


def _path(value: Value, fault: Callable[[str], Fault]) -> str:
    if value == "~" and fields.is_null(value):
        raise fields.wrong("there is nothing here: `~` alone is YAML's null", "write ~/data", fields.EMPTY)
    return _told(value, fault)


def tools(value: Value) -> tuple[str, ...]:
    """Tools of agents, with argument patterns: `Read`, `Bash(git:*)`."""
    return _items(value, lambda v: _told(v, tool_fault), "a list of tools")


def models(value: Value) -> tuple[str, ...]:
    """Tiers, model ids, `vendor/*`."""
    return _items(value, lambda v: _told(v, model_fault), "a list of models")


def roots(value: Value) -> tuple[str, ...]:
    """Paths that may be read."""
    return _items(value, lambda v: _path(v, path_fault), "a list of paths")


def write_roots(value: Value) -> tuple[str, ...]:
    """Paths that may be written."""
    return _items(value, lambda v: _path(v, lambda t: path_fault(t, write=True)), "a list of paths")


def denied(value: Value) -> tuple[str, ...]:
    """Paths and names that are not there in spite of a grant."""
    return _items(value, lambda v: _path(v, lambda t: path_fault(t, deny=True)), "a list of paths and names")


# ---------------------------------------------------------------- network


def network(value: Value) -> Network:
    """`none`, `any`, or the hosts that may be reached."""
    if isinstance(value, list):
        return _items(value, _host, "a list of hosts") or "none"
    if isinstance(value, str) and value in ("none", "any"):
        return "none" if value == "none" else "any"
    hint = "write none, any, or the hosts: [example.com, api.example.com:443]"
    if isinstance(value, str):
        low = value.strip().lower()
        if low in _NO_NETWORK:
            hint = "write none"
        elif low in _ALL_NETWORK:
            hint = "write any"
        elif low in ("none", "any"):
            hint = f"write {low}"
        elif near(low, ("none", "any")):
            hint = near(low, ("none", "any"))
        elif low and not fields.is_null(value) and len(low) < 60 and host_fault(low) is None:
            hint = f"write [{low}]"
    raise fields.wrong(f"`none`, `any` or a list of hosts is wanted here, not {fields.describe(value)}", hint)


def _host(value: Value) -> str:
    if isinstance(value, str) and value in ("none", "any"):
        raise fields.wrong(f"`{value}` is no host", f"write network: {value}, without a list")
    return _told(value, lambda text: host_fault(text.lower())).lower()


# ---------------------------------------------------------------- money


def money(value: Value) -> int:
    """Nano-dollars of an amount in USD that is written as a decimal number, kept to the last digit."""
    if fields.is_null(value):
        fields.text(value)
    if not isinstance(value, str) or len(value) > 100 or not _MONEY.fullmatch(value):
        raise fields.wrong(f"an amount in USD is wanted here, not {fields.describe(value)}", _money_hint(value))
    amount = _EXACT.scaleb(Decimal(value), NANO)
    if amount > fields.MAX_INTEGER:
        raise fields.wrong(f"{fields.describe(value)} is too large for an amount", code="huge-number")
    nano = int(amount)
    if nano != amount:
        raise fields.wrong(f"{fields.describe(value)} has parts of a nano-dollar", "an amount has at most 9 decimals")
    return nano


def _money_hint(value: Value) -> str:
    if not isinstance(value, str):
        return "write 1.50"
    if "${{" in value:
        return "an expression can't stand here"
    if value.strip().startswith("-"):
        return "an amount is zero or more"
    found = _IN_MONEY.fullmatch(value.strip()[:60])
    return f"write {found[1].replace(',', '.')}" if found else "write it like 1.50"


# ---------------------------------------------------------------- isolation, docker


def isolation(value: Value) -> str:
    """One of the levels."""
    if isinstance(value, str) and value in LEVELS:
        return str(value)
    low = value.lower() if isinstance(value, str) else ""
    meant = next((level for level, words in _LEVEL_WORDS.items() if low == level or low in words.split()), "")
    if meant:
        known = ", ".join(f"`{level}`" for level in LEVELS)
        raise fields.wrong(f"one of {known} is wanted here, not {fields.describe(value)}", f"did you mean `{meant}`?")
    return fields.choice(*LEVELS)(value)


def pull(value: Value) -> str:
    """Whether an image that isn't there may be fetched."""
    low = value.lower().replace("-", "").replace("_", "") if isinstance(value, str) else ""
    if low in ("always", "ifnotpresent", "true", "yes", "auto"):
        hint = "write missing: it fetches what is not there, and nothing else"
        raise fields.wrong(f"`never` or `missing` is wanted here, not {fields.describe(value)}", hint)
    return fields.choice("never", "missing")(value)


def image(value: Value) -> str:
    """The reference of an image: `python:3.12-slim`, `ghcr.io/org/tool@sha256:…`."""
    got = fields.filled(value)
    if "${{" in got:
        raise fields.wrong("an expression can't stand here", "an image is the same in every run: write it out")
    if len(got) > 512 or not _IMAGE.fullmatch(got):
        hint = "write it like python:3.12-slim or ghcr.io/org/tool:1.0"
        if got != got.lower() and len(got) <= 512 and _IMAGE.fullmatch(got.lower()):
            hint = f"the name of an image is in small letters: {got.lower()}"
        raise fields.wrong(f"{fields.describe(value)} is no image", hint)
    return got


def user(value: Value) -> str:
    """`uid` or `uid:gid`, in numbers; never root."""
    got = fields.text(value)
    found = _USER.fullmatch(got)
    if found is None:
        hint = "write 1000 or 1000:1000: what a name means differs from image to image"
        raise fields.wrong(f"{fields.describe(value)} is no user", hint)
    if any(int(part) >= 2**32 - 1 for part in found.groups() if part):
        raise fields.wrong(f"{fields.describe(value)} is no user", "the highest id is 4294967294")
    if int(found[1]) == 0:
        raise fields.wrong("a container never runs as root here", "write 1000:1000, or leave it out")
    if found[2] and int(found[2]) == 0:
        raise fields.wrong("a container is never in the group of root here", "write 1000:1000, or leave the group out")
    return ":".join(str(int(part)) for part in found.groups() if part)


# ---------------------------------------------------------------- secrets of a node


def secrets(value: Value) -> dict[str, SecretForm]:
    """How each secret of a node reaches it: `[A, {B: file}]`, or {A: variable, B: file}."""
    if isinstance(value, dict):
        return _forms(value)
    if not isinstance(value, list):
        hint = f"write [{value}]" if value and len(value) < 60 else "write [NAME]"
        raise fields.wrong(f"a list of secrets is wanted here, not {fields.describe(value)}", hint)
    found: dict[str, SecretForm] = {}
    defects: list[fields.Defect] = []
    for at, item in enumerate(value):
        try:
            own = _forms(item if isinstance(item, dict) else {fields.variable(item): "variable"})
        except fields.Wrong as error:
            defects += [d._replace(at=(at, *d.at)) for d in error.defects]
            continue
        for name in [n for n in own if n in found]:
            message = f"the secret `{name}` is named twice"
            defects.append(fields.Defect(message, "it comes as a variable or as a file", (at,), "named-twice"))
        found.update(own)
    if defects:
        raise fields.Wrong(*defects)
    return found


def _forms(value: dict[str, Value]) -> dict[str, SecretForm]:
    found: dict[str, SecretForm] = {}
    defects: list[fields.Defect] = []
    for name, form in value.items():
        try:
            fields.variable(name)
        except fields.Wrong as error:
            defects += [d._replace(at=(name,), on_key=True) for d in error.defects]
        if form == "file":
            found[name] = "file"
        elif form == "variable":
            found[name] = "variable"
        else:
            told = f"`variable` or `file` is wanted here, not {fields.describe(form)}"
            hint = f"write {{{name}: file}}, or {name} alone for a variable" if len(name) < 60 else ""
            defects.append(fields.Defect(told, hint, (name,)))
    if defects:
        raise fields.Wrong(*defects)
    return found

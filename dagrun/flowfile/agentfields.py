"""What a value of `agent`, `models`, `provider` and `mcp_servers` may be: source text in, typed value out.

Like `fields.py`, in whose terms these speak. What a model may be called is the core's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from dagrun.core.budget import rate_of
from dagrun.core.grants import model_fault
from dagrun.core.names import Json, is_id
from dagrun.flowfile import fields
from dagrun.flowfile.source import Value

T = TypeVar("T")
CLASSES = ("cheap", "expensive")
RATES = ("input", "output", "cached", "cache_write", "reasoning")
MAX_CANDIDATES = 100
_SKILL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SERVER = re.compile(r"[a-z0-9-]+(?:_[a-z0-9-]+)*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_NUMBER_IN = re.compile(r"\$?\s*([0-9]+(?:\.[0-9]+)?)\s*(?:\$|USD|usd)?(?:\s*/.*)?")
_KEY_LIKE = re.compile(r"(?:sk|pk|ghp|gho|xox[bp]|AKIA|AIza)[-_A-Za-z0-9]{8,}")


def _each_key(value: Value, what: str, check: Callable[[str, Value], T]) -> dict[str, T]:
    """A mapping whose entries all pass `check`."""
    if not isinstance(value, dict):
        raise fields.wrong(f"a mapping of {what} is wanted here, not {fields.describe(value)}")
    got: dict[str, T] = {}
    defects: list[fields.Defect] = []
    for key, item in value.items():
        try:
            got[key] = check(key, item)
        except fields.Wrong as error:
            defects += [d._replace(at=(key, *d.at)) for d in error.defects]
    if defects:
        raise fields.Wrong(*defects)
    return got


def _no_expression(text: str, why: str) -> None:
    if "${{" in text:
        raise fields.wrong("an expression can't stand here", why)


# ---------------------------------------------------------------- agents


def skill(value: Value) -> str:
    """The name of a skill, never a path."""
    got = fields.filled(value)
    if not _SKILL.fullmatch(got):
        last = got.rstrip("/").removesuffix("/SKILL.md").rpartition("/")[2]
        hint = f"write {last}: skills are found by name" if _SKILL.fullmatch(last) else "see: dagrun skills list"
        raise fields.wrong(f"{fields.describe(value)} is no name of a skill", hint)
    return got


def server(value: Value) -> str:
    """The name of an MCP server: it becomes a part of mcp__SERVER__TOOL."""
    got = fields.filled(value)
    if len(got) > 64 or not _SERVER.fullmatch(got):
        rule = "lower-case letters, digits, - and single _ between them"
        fixed = re.sub(r"_+", "_", re.sub(r"[^a-z0-9_-]+", "-", got.lower())).strip("_-")[:64]
        hint = f"write {fixed}: it has {rule}" if _SERVER.fullmatch(fixed) else f"it has {rule}"
        raise fields.wrong(f"{fields.describe(value)} can't name an MCP server", hint)
    return got


def wish(value: Value) -> str:
    """The model of an agent: a tier, or `vendor/name`."""
    got = fields.filled(value)
    _no_expression(got, "the model is the same in every run: write it out, or use a tier")
    if "*" in got:
        raise fields.wrong("an agent asks one model, or a tier of them", "write a tier, or VENDOR/MODEL")
    return candidate(value) if "/" in got else _told(got)


def _told(got: str) -> str:
    found = model_fault(got)
    if found:
        raise fields.wrong(*found)
    return got


# ---------------------------------------------------------------- models


def candidate(value: Value) -> str:
    """A model with its vendor."""
    got = fields.filled(value)
    _no_expression(got, "models are the same in every run: write them out")
    vendor, slash, name = got.partition("/")
    if not slash or not vendor or not name or "*" in got:
        hint = f"write VENDOR/{got}: anthropic/…, openai/…" if not slash else "write VENDOR/MODEL"
        raise fields.wrong(f"{fields.describe(value)} does not name a model and its vendor", hint)
    return _told(got)


def tiers(value: Value) -> dict[str, tuple[str, ...]]:
    """Tier → candidates in order; one may stand without a list."""
    if isinstance(value, dict) and not value:
        raise fields.wrong("there are no tiers here", "write main: [anthropic/claude-sonnet-4-5]")
    return _each_key(value, "tiers to models", _tier)


def _tier(name: str, value: Value) -> tuple[str, ...]:
    if not is_id(name):
        raise fields.Wrong(
            fields.Defect(f"`{name}` can't be the name of a tier", fields.id_rule(name), code="bad-id", on_key=True)
        )
    if isinstance(value, str):
        return (candidate(value),)
    if value == []:
        raise fields.wrong(f"the tier `{name}` has no models", "write [vendor/model]")
    found = fields.each(value, candidate, "a list of models")
    if len(found) > MAX_CANDIDATES:
        raise fields.wrong(f"a tier may have {MAX_CANDIDATES} models, not {len(found)}")
    return tuple(dict.fromkeys(found))


# ---------------------------------------------------------------- prices


def prices(value: Value) -> dict[str, dict[str, Json]]:
    """Model → USD per million tokens as the text that was written, or {free: true}."""
    return _each_key(value, "models to prices", _price)


def _price(model: str, value: Value) -> dict[str, Json]:
    try:
        candidate(model)
    except fields.Wrong as error:
        raise fields.Wrong(*(d._replace(on_key=True) for d in error.defects)) from None
    hint = "write {input: 3, output: 15} in USD per million tokens, or {free: true}"
    if value == "free":
        return {"free": True}
    if not isinstance(value, dict):
        raise fields.wrong(f"a price is wanted here, not {fields.describe(value)}", hint)
    if "free" in value:
        if len(value) > 1:
            raise fields.wrong("a model that is free has no other price", "keep one of them")
        if not fields.boolean(value["free"]):
            raise fields.wrong(f"{model} has no price", hint)
        return {"free": True}
    got = _each_key(value, "prices", _rate)
    lacking = [name for name in ("input", "output") if name not in got]
    if lacking:
        raise fields.Wrong(fields.Defect(f"the price of {model} lacks `{lacking[0]}`", hint, on_key=True))
    return dict(got)


def classes(value: Value) -> dict[str, str]:
    """Class → USD per million tokens of answer, as the text that was written."""
    return _each_key(value, "classes to prices", _class)


def _class(name: str, value: Value) -> str:
    if name not in CLASSES:
        hint = "write `cheap` and `expensive`: what is between them is in the middle"
        raise fields.Wrong(fields.Defect(f"there is no class `{name}`", hint, code="unknown-key", on_key=True))
    return _rate("output", value)


def _rate(name: str, value: Value) -> str:
    if name not in RATES:
        from dagrun.flowfile.words import meant

        told = meant(name, (*RATES, "free")) or "it has " + ", ".join(RATES) + ", or only free"
        raise fields.Wrong(fields.Defect(f"a price has no key `{name}`", told, code="unknown-key", on_key=True))
    got = fields.text(value)
    try:
        rate = rate_of(got)
    except ValueError:
        found = _NUMBER_IN.fullmatch(got)
        hint = f"write {found[1]}" if found else "write it like 0.25: USD per million tokens, at most 6 decimals"
        raise fields.wrong(f"{fields.describe(value)} is no price", hint) from None
    if not rate and name in ("input", "output"):
        raise fields.wrong("a price of 0 would make a budget a fiction", "write {free: true} for a model that is free")
    return got


# ---------------------------------------------------------------- addresses


def address(value: Value) -> str:
    """An http or https address without anything secret in it."""
    got = fields.filled(value)
    _no_expression(got, "an address is the same in every run: write it out")
    try:
        parts = urlsplit(got)
        port = parts.port
    except ValueError:
        raise fields.wrong(f"{fields.describe(value)} is no address", "write https://host/path") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not got.isascii() or " " in got:
        hint = f"write https://{got}" if "://" not in got and _bare_host(got) else "write https://host/path"
        raise fields.wrong(f"{fields.describe(value)} is no address", hint)
    if parts.username is not None or parts.password is not None or _secret_in(parts):
        # the text is not repeated: it may be a key
        raise fields.wrong("an address can't hold a key or password", "keys are never written in files: use a secret")
    if parts.fragment:
        raise fields.wrong("an address ends before `#`", "remove what follows it")
    return got


def _bare_host(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9.-]+(?::[0-9]+)?(?:/[!-~]*)?", text))


def _secret_in(parts: SplitResult) -> bool:
    named = re.search(r"(?:^|[&;])[^=&;]*(?:key|token|secret|password)[^=&;]*=[^&;]+", parts.query, re.IGNORECASE)
    return named is not None or _KEY_LIKE.search(f"{parts.path}?{parts.query}") is not None


def is_open(text: str) -> bool:
    """Whether what is sent to an address can be read on its way."""
    parts = urlsplit(text)
    host = (parts.hostname or "").rstrip(".")
    near = host == "localhost" or host.endswith(".localhost") or host == "::1" or host.startswith("127.")
    return parts.scheme == "http" and not near


# ---------------------------------------------------------------- MCP servers


def argv(value: Value) -> tuple[str, ...]:
    """A program and its arguments."""
    if isinstance(value, str) and not fields.is_null(value):
        raise fields.wrong("a server is started without a shell", f"write [{', '.join(value.split())}]")
    got = tuple(fields.each(value, fields.text, "a list: a program and its arguments"))
    if not got or not got[0].strip():
        raise fields.wrong("there is no program here", "write [program, argument, …]")
    for k, word in enumerate(got):
        if "${{" in word:
            hint = "a server is the same in every run: give it env or secrets"
            raise fields.Wrong(fields.Defect("an expression can't stand here", hint, (k,)))
        if _KEY_LIKE.search(word):
            hint = "keys are never written in files: declare a secret, and name it under `secrets` here"
            raise fields.Wrong(fields.Defect("this looks like a key", hint, (k,)))
    return got


def fixed_environment(value: Value) -> dict[str, str]:
    """NAME: text, without expressions: what a server is started with is the same in every run."""
    got = fields.environment(value)
    for name, text in got.items():
        if "${{" in text:
            hint = f"name a secret instead: secrets: [{name}]" if "secrets" in text else "write the value out"
            raise fields.Wrong(fields.Defect("an expression can't stand here", hint, (name,)))
    return got


def headers(value: Value) -> dict[str, str]:
    """Header: the NAME of a declared secret, whose value is all of the header's."""
    return _each_key(value, "headers to names of secrets", _header)


def _header(name: str, value: Value) -> str:
    if not _HEADER.fullmatch(name):
        raise fields.Wrong(fields.Defect(f"`{name}` is no name of a header", "write Authorization", on_key=True))
    got = fields.text(value)
    try:
        return fields.variable(value)
    except fields.Wrong:
        hint = "declare it at the top, secrets: {NAME: {env: NAME}}, and write its NAME here"
        message = "the value of a header is the name of a secret, never the secret itself"
        if "${{" in got:
            message = "an expression can't stand here"
        raise fields.wrong(message, hint) from None


def digest(value: Value) -> str:
    """A sha256 in hex, as the 64 digits alone."""
    got = fields.text(value)
    found = _DIGEST.fullmatch(got.lower())
    if found is None:
        raise fields.wrong(f"{fields.describe(value)} is no sha256", "it has 64 hexadecimal digits")
    return found[1]

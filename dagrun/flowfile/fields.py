"""What one scalar, list or mapping of a workflow file may be: source text in, typed value out.

Every function takes a `Value` of the tree and returns the typed value, or raises `Wrong` with all
that is wrong with it. Typing follows the *key*, never the look of the text: a key that wants text
gets `3.10`, `no` and `012` as they are written. Knows nothing of YAML or of pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from dagrun.core.names import ID_MAX, Json, is_id, parse_duration
from dagrun.flowfile.source import Plain, Value

EMPTY = "empty-value"
NULLS = frozenset({"", "null", "~"})
MAX_INTEGER = 2**63 - 1
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]i?)?B?")
_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE_PATTERN = re.compile(r"[A-Za-z0-9_*?]+")
_OUTPUT_PATH = re.compile(r"(?:\.[A-Za-z_][A-Za-z0-9_-]*|\[[0-9]+\])*")


class Defect(NamedTuple):
    """One thing that is wrong: `at` leads from the checked value to the part that is."""

    message: str
    hint: str = ""
    at: tuple[str | int, ...] = ()
    code: str = "bad-value"
    on_key: bool = False


class Wrong(Exception):
    """Everything that is wrong with one value."""

    def __init__(self, *defects: Defect) -> None:
        super().__init__(defects[0].message)
        self.defects = defects


def wrong(message: str, hint: str = "", code: str = "bad-value") -> Wrong:
    """A Wrong with one defect."""
    return Wrong(Defect(message, hint, code=code))


def describe(value: Value) -> str:
    """A value in the words of a message."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    if is_null(value):
        return "nothing" if value == "" else f"`{value}` (nothing)"
    shown = value if len(value) <= 60 else value[:57] + "…"
    return f"`{shown}`" if isinstance(value, Plain) else f'"{shown}"'


def is_null(value: Value) -> bool:
    """Whether a value is YAML's nothing: empty, `null` or `~` without quotes."""
    return value.__class__ is Plain and value in NULLS


def text(value: Value) -> str:
    """Any scalar but null as the text that was written."""
    if value.__class__ is Plain and value not in NULLS:
        return str(value)
    if value.__class__ is str:
        return value
    if is_null(value):
        raise wrong(
            "there is nothing here, but text is wanted", 'write a value, or remove the key; empty text is ""', EMPTY
        )
    raise wrong(f"text is wanted here, not {describe(value)}")


def filled(value: Value) -> str:
    """Text that is not empty."""
    got = text(value)
    if not got.strip():
        raise wrong("this text must not be empty")
    return got


def line(value: Value) -> str:
    """Text of one line without control characters, at most 200 characters."""
    got = filled(value)
    if not got.isprintable():
        raise wrong("this must be one line without control characters")
    if len(got) > 200:
        raise wrong(f"this may have 200 characters, not {len(got)}")
    return got


def boolean(value: Value) -> bool:
    """Exactly `true` or `false`, without quotes."""
    if value.__class__ is Plain and value in ("true", "false"):
        return value == "true"
    low = value.lower() if isinstance(value, str) else ""
    hint = "write true" if low in _YES else "write false" if low in _NO else ""
    raise wrong(f"`true` or `false` is wanted here, not {describe(value)}", hint)


_YES = frozenset({"true", "yes", "on", "1", "y"})
_NO = frozenset({"false", "no", "off", "0", "n"})


def number(
    value: Value, *, least: float | None = None, most: float | None = None, word: str = "decimal"
) -> int | float:
    """A decimal number without quotes, between `least` and `most`. `word` says in errors which kind is wanted."""
    if value.__class__ is not Plain or not _NUMBER.fullmatch(str(value)):
        hint = "write it without quotes" if value.__class__ is str and _NUMBER.fullmatch(str(value)) else ""
        hint = hint or ("an expression can't stand here" if isinstance(value, str) and "${{" in value else "")
        raise wrong(f"a {word} number is wanted here, not {describe(value)}", hint)
    got = _to_number(str(value), "")
    if least is not None and got < least:
        raise wrong(f"{value} is too small: at least {_limit(least)}")
    if most is not None and got > most:
        raise wrong(f"{value} is too large: at most {_limit(most)}")
    return got


def _limit(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _to_number(source: str, hint: str) -> int | float:
    shown = source if len(source) <= 40 else source[:37] + "…"
    if source.lstrip("-").isdigit():
        if len(source) > 20 or abs(int(source)) > MAX_INTEGER:
            raise wrong(f"{shown} is too large for a number", hint, "huge-number")
        return int(source)
    got = float(source) if len(source) <= 400 else float("inf")
    if got in (float("inf"), float("-inf")):
        raise wrong(f"{shown} is too large for a number", hint, "huge-number")
    return got


def integer(value: Value, *, least: int | None = None, most: int | None = None) -> int:
    """A whole number without quotes."""
    got = number(value, least=least, most=most, word="whole")
    if not isinstance(got, int):
        raise wrong(f"a whole number is wanted here, not {describe(value)}")
    return got


def duration(value: Value, *, most: float = 366 * 86400.0) -> float:
    """Seconds: `500ms`, `30s`, `5m`, `1h30m` or a number of seconds."""
    if is_null(value):
        text(value)
    if not isinstance(value, str):
        raise wrong(
            f"a duration is wanted here, not {describe(value)}", "write 500ms, 30s, 5m, 1h30m or a number of seconds"
        )
    try:
        got = parse_duration(value[:100])
    except ValueError:
        hint = "write 500ms, 30s, 5m, 1h30m or a number of seconds"
        hint = "an expression can't stand here: " + hint if "${{" in value else hint
        raise wrong(f"{describe(value)} is no duration", hint) from None
    if got > most:
        raise wrong(f"{describe(value)} is too long: at most {most / 86400:g} days", code="huge-number")
    return got


def positive_duration(value: Value) -> float:
    """A duration above zero."""
    got = duration(value)
    if got <= 0:
        raise wrong(f"{describe(value)} is no time at all", "write a duration above zero")
    return got


def size(value: Value) -> int:
    """Bytes: `512M`, `2Gi` (1024-based, as in docker), `1.5G` or a number of bytes."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) and len(value) <= 40 else None
    if match is None:
        raise wrong(f"{describe(value)} is no size", "write 512M, 2Gi or a number of bytes")
    unit = match[2]
    got = float(match[1]) * (1 << _UNITS[unit[0].lower()] if unit else 1)
    if got > MAX_INTEGER:
        raise wrong(f"{describe(value)} is too large for a size", code="huge-number")
    if got < 1:
        raise wrong(f"{describe(value)} is too small for a size", "write 512M, 2Gi or a number of bytes")
    return int(got)


def choice(*names: str) -> Callable[[Value], str]:
    """One of some words."""

    def one(value: Value) -> str:
        if isinstance(value, str) and value in names:
            return str(value)
        from dagrun.flowfile.words import meant

        known = (
            " or ".join(f"`{n}`" for n in names) if len(names) < 3 else "one of " + ", ".join(f"`{n}`" for n in names)
        )
        raise wrong(
            f"{known} is wanted here, not {describe(value)}", meant(value, names) if isinstance(value, str) else ""
        )

    return one


def each(value: Value, check: Callable[[Value], str], what: str = "a list") -> list[str]:
    """A list whose items all pass `check`."""
    if not isinstance(value, list):
        hint = f"write [{value}]" if isinstance(value, str) and value and len(value) < 60 else ""
        raise wrong(f"{what} is wanted here, not {describe(value)}", hint)
    got: list[str] = []
    defects: list[Defect] = []
    for i, item in enumerate(value):
        try:
            got.append(check(item))
        except Wrong as error:
            defects += [d._replace(at=(i, *d.at)) for d in error.defects]
    if defects:
        raise Wrong(*defects)
    return got


def ident(value: Value) -> str:
    """An id that stands as a value (in `needs`)."""
    got = text(value)
    if not is_id(got):
        raise wrong(f"{describe(value)} is no id", id_rule(got), "bad-id")
    return got


def id_rule(name: str) -> str:
    """How an id is written, with the nearest right one."""
    fixed = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    fixed = (fixed if fixed[:1].isalpha() or fixed[:1] == "_" else f"n{fixed}")[:ID_MAX]
    if len(name) > ID_MAX:
        return f"an id has at most {ID_MAX} characters, this one has {len(name)}"
    rule = "an id has letters, digits, `_` and `-`, and begins with a letter or `_`"
    return f"write {fixed}: {rule}" if is_id(fixed) and len(fixed) > 1 else rule


def variable(value: Value) -> str:
    """The name of an environment variable."""
    got = text(value)
    if not _VARIABLE.fullmatch(got):
        raise wrong(f"{describe(value)} is no name of an environment variable", "it has letters, digits and `_` only")
    return got


def variable_pattern(value: Value) -> str:
    """The name of an environment variable, `*` and `?` standing for any characters."""
    got = text(value)
    if not _VARIABLE_PATTERN.fullmatch(got):
        raise wrong(f"{describe(value)} is no name or pattern of environment variables", "write NAME or PREFIX_*")
    return got


def glob(value: Value) -> str:
    """A file pattern inside the project directory."""
    got = filled(value)
    if got.startswith("/") or ".." in got.split("/"):
        raise wrong(f"{describe(value)} leaves the project directory", "write a path below it, such as out/*.json")
    return got


def environment(value: Value) -> dict[str, str]:
    """NAME: text, for the names that a node may set."""
    if not isinstance(value, dict):
        hint = "write NAME: value, one a line" if isinstance(value, list) else "remove the key, or write NAME: value"
        raise wrong(f"a mapping of names to texts is wanted here, not {describe(value)}", hint)
    defects: list[Defect] = []
    got: dict[str, str] = {}
    for name, item in value.items():
        try:
            variable(name)
        except Wrong as error:
            defects += [d._replace(at=(name,), on_key=True) for d in error.defects]
        if name.startswith(("DAGRUN_", "INPUT_")):
            why = (
                "dagrun sets it itself"
                if name.startswith("DAGRUN_")
                else "the inputs of a node arrive under such names"
            )
            defects.append(Defect(f"`{name}` can't be set here: {why}", "take another name", (name,), on_key=True))
        try:
            got[name] = text(item)
        except Wrong as error:
            defects += [d._replace(at=(name, *d.at)) for d in error.defects]
    if defects:
        raise Wrong(*defects)
    return got


def command(value: Value) -> str | tuple[str, ...]:
    """A shell command as text, or a program and its arguments as a list."""
    if isinstance(value, list):
        if not value:
            raise wrong("an empty list runs nothing", "write [program, argument, …]")
        words = each(value, text)
        if not words[0].strip():
            raise Wrong(Defect("the name of the program is empty", at=(0,)))
        return tuple(words)
    if isinstance(value, dict):
        raise wrong("a command is wanted here, not a mapping", "write it as text, or as a list [program, argument, …]")
    return filled(value)


def output_path(value: Value) -> str:
    """Where in a JSON document an output is: `.a.b[0]`."""
    got = text(value)
    if not _OUTPUT_PATH.fullmatch(got):
        bare = re.sub(r"^\$", "", got)
        hint = (
            f"write .{bare}"
            if _OUTPUT_PATH.fullmatch(f".{bare}")
            else f"write {bare}"
            if _OUTPUT_PATH.fullmatch(bare)
            else ""
        )
        raise wrong(f"{describe(value)} is no path into JSON", hint or "write it like .items[0].name")
    return got


def json(value: Value) -> Json:
    """Any value as JSON: what is written without quotes is null, a boolean, a decimal number or text."""
    if isinstance(value, dict):
        return _json_mapping(value)
    if isinstance(value, list):
        return _json_list(value)
    if value.__class__ is not Plain:
        return value
    if value in NULLS:
        return None
    if value in ("true", "false"):
        return value == "true"
    if _NUMBER.fullmatch(value):
        return _to_number(str(value), "in quotes it is text")
    return str(value)


def _json_list(value: list[Value]) -> Json:
    got: list[Json] = []
    defects: list[Defect] = []
    for i, item in enumerate(value):
        try:
            got.append(json(item))
        except Wrong as error:
            defects += [d._replace(at=(i, *d.at)) for d in error.defects]
    if defects:
        raise Wrong(*defects)
    return got


def _json_mapping(value: dict[str, Value]) -> Json:
    got: dict[str, Json] = {}
    defects: list[Defect] = []
    for name, item in value.items():
        try:
            got[name] = json(item)
        except Wrong as error:
            defects += [d._replace(at=(name, *d.at)) for d in error.defects]
    if defects:
        raise Wrong(*defects)
    return got


def typed(value: Value, kind: str) -> Json:
    """A value as one of the types of a param."""
    if kind == "string":
        return text(value)
    if kind == "boolean":
        return boolean(value)
    if kind == "integer":
        return integer(value)
    if kind == "number":
        return number(value)
    if not isinstance(value, list if kind == "array" else dict):
        raise wrong(f"{'a list' if kind == 'array' else 'a mapping'} is wanted here, not {describe(value)}")
    return json(value)


def enum(value: Value, kind: str) -> Json:
    """The values that a param of some type may have."""
    if not isinstance(value, list) or not value:
        raise wrong(f"`enum` is a list of the values allowed, not {describe(value)}")
    got: list[Json] = []
    defects: list[Defect] = []
    for i, item in enumerate(value):
        try:
            got.append(typed(item, kind))
        except Wrong as error:
            defects += [d._replace(at=(i, *d.at)) for d in error.defects]
    if defects:
        raise Wrong(*defects)
    return got

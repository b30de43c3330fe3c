"""Structured answers: the JSON in a reply, held to a schema, and what a model is told that got it wrong.

A value is taken as it was written or not at all: nothing is repaired, guessed or converted. One code
fence is taken off, else the first balanced value in the text counts. Sans-I/O; jsonschema is imported
at the first value that is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from dagrun.agent.timebox import OutOfTime, within
from dagrun.core.names import Json

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

MAX_REMINDERS = 2
MAX_ANSWER = 2 << 20  # characters
MAX_TRIES = 100  # brackets that may begin something else before the value
MAX_ERRORS = 8
MAX_DEPTH = 100
MAX_LOOKED_AT = 1000  # errors; an answer can have one in each of a million places
CHECK_S = 2.0  # of the processor, for one answer: a pattern can take for ever
_SHORT = 160
_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9]*)[ \t]*\r?\n(.*?)^[ \t]*```[ \t]*\r?$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fits:
    """The value of an answer that keeps to its schema."""

    value: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is wrong with an answer, as short lines `path: rule`."""

    errors: tuple[str, ...]


Verdict: TypeAlias = Fits | Wrong


def judge(text: str, schema: Json) -> Verdict:
    """What a reply's text is worth under a schema. Its properties become outputs, so it is an object."""
    try:
        value = parse(text)
    except NoJson as error:
        return Wrong((f".: {error}",))
    errors = violations(value, schema)
    if errors:
        return Wrong(errors)
    if not isinstance(value, dict):
        return Wrong((f".: must be an object, not {_kind(value)}",))
    return Fits(value)


def reminder(errors: Iterable[str], left: int) -> str:
    """What a model is told after an answer that does not fit; `left` is how many reminders follow this one."""
    lines = "\n".join(f"- {error}" for error in errors)
    last = "" if left else " This is the last try."
    return (
        f"Your answer is not valid against the JSON Schema:\n{lines}\n"
        f"Answer again with the whole JSON object, corrected, and nothing else.{last}"
    )


# ---------------------------------------------------------------- text → value


class NoJson(Exception):
    """There is no JSON value in a text; the message says why, for the model."""


def parse(text: str) -> Json:
    """The JSON value of an answer: all of it, or in one code fence, or the first balanced one. Raises NoJson."""
    if len(text) > MAX_ANSWER:
        raise NoJson(f"the answer has more than {MAX_ANSWER:,} characters")
    text = text.strip().removeprefix("\ufeff")
    if not text:
        raise NoJson("there is no answer")
    try:
        return strict(text)
    except NoJson as error:
        whole = error
    fence = _FENCE.search(text)
    if fence is not None and (fence[1].lower() == "json" or fence[2].lstrip()[:1] in ("{", "[")):
        return strict(fence[2].strip())
    return _first(text, whole)


def _first(text: str, whole: NoJson) -> Json:
    """The first object or array in a text that is closed and is JSON.

    What is in a value that is not JSON is never taken for the answer: it would be a part of one.
    """
    at, wrong = 0, whole if text[0] in "{[" else NoJson("the answer is not JSON")
    for _ in range(MAX_TRIES):
        begin = _BEGIN.search(text, at)
        if begin is None:
            break
        end = _end(text, begin.start())
        if end is None:
            raise NoJson("a bracket of the JSON value is never closed")
        try:
            return strict(text[begin.start() : end])
        except NoJson as error:
            wrong, at = error, end
    raise wrong


_BEGIN = re.compile(r"[{\[]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[{}\[\]]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_CLOSES = {"}": "{", "]": "["}


def _end(text: str, start: int) -> int | None:
    """Behind the bracket that closes the one at `start`; where brackets don't match, behind that place."""
    open_ones: list[str] = []
    for token in _TOKEN.finditer(text, start):
        found = token[0]
        if found in ("{", "["):
            open_ones.append(found)
        elif found in _CLOSES and (open_ones.pop() != _CLOSES[found] or not open_ones):
            return token.end()
    return None


def strict(text: str) -> Json:
    """The JSON value that a text is, strictly: keys once, numbers finite, whole characters. Raises NoJson."""
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise NoJson(f"the value is nested more than {MAX_DEPTH} deep")
    try:
        value: Json = json.loads(text, parse_constant=_constant, parse_float=_float, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise NoJson(f"not JSON: {error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}") from None
    except ValueError:  # more digits than Python converts
        raise NoJson("a number is too long") from None
    if "\\ud" in text.lower() and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise NoJson("a text holds half of a surrogate pair")
    return value


def _depth(text: str) -> int:
    """How deep brackets stand in one another."""
    deepest = now = 0
    for token in _TOKEN.finditer(text):
        now += 1 if token[0] in ("{", "[") else -1 if token[0] in _CLOSES else 0
        deepest = max(deepest, now)
    return deepest


def _constant(name: str) -> NoReturn:
    raise NoJson(f"{name} is not JSON")


def _float(text: str) -> float:
    made = float(text)
    if made in (float("inf"), float("-inf")):
        raise NoJson(f"{_cut(text, 40)} is too large for a number")
    return made


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NoJson(f"the key {json.dumps(_cut(twice, 60))} is written twice")
    return made


# ---------------------------------------------------------------- value → errors


def violations(value: Json, schema: Json) -> tuple[str, ...]:
    """What of a value breaks a schema, as `path: rule`, at most MAX_ERRORS; () when it fits.

    References to other documents are never fetched: they are an error themselves.
    """
    from jsonschema import exceptions, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if not isinstance(schema, dict | bool):
        return (f".: the schema is no JSON Schema but {_kind(schema)}",)
    cls = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        cls.check_schema(schema)  # type: ignore[arg-type]  # its stub knows no booleans
        errors = cls(schema, registry=Registry()).iter_errors(value)
        lines = within(CHECK_S, lambda: [line for error in islice(errors, MAX_LOOKED_AT) for line in _lines(error)])
    except (exceptions.SchemaError, exceptions.UnknownType, Unresolvable, re.error) as bad:
        return (f".: the schema can't be used: {_cut(str(bad).splitlines()[0], _SHORT)}",)
    except RecursionError:
        return (".: the schema or the value is nested too deep",)
    except OutOfTime:
        return (".: it takes too long to hold this value to its schema",)
    except ArithmeticError:  # `multipleOf` of a whole number that no float can be
        return (".: a number is too large for its schema",)
    unique = sorted(set(lines))
    more = [f"and {len(unique) - MAX_ERRORS} more"] if len(unique) > MAX_ERRORS else []
    return (*unique[:MAX_ERRORS], *more)


def _lines(error: ValidationError) -> list[str]:
    """One error as `path: rule`; for alternatives the rule of the one that came closest."""
    if error.validator in ("anyOf", "oneOf") and error.context:
        best = min(error.context, key=lambda e: (-len(e.absolute_path), e.validator == "type"))
        return [f"{line} (or fit another alternative)" for line in _lines(best)]
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{_cut(str(p), 60)}" for p in error.absolute_path) or "."
    return [f"{path}: {rule}" for rule in _rules(error)]


def _rules(error: ValidationError) -> list[str]:
    """What is asked for, in few words; the value itself is known to who wrote it."""
    wanted: Any = error.validator_value
    value: Any = error.instance
    match error.validator:
        case "type":
            kinds = [wanted] if isinstance(wanted, str) else wanted
            return [f"must be {' or '.join(_article(str(k)) for k in kinds)}, not {_kind(value)}"]
        case "required":
            return [f"`{name}` is missing" for name in wanted if name not in value]
        case "additionalProperties" if wanted is False:
            known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
            patterns = error.schema.get("patternProperties", {}) if isinstance(error.schema, dict) else {}
            odd = [k for k in value if k not in known and not any(re.search(p, k) for p in patterns)]
            return [f"the key {_cut(json.dumps(key, ensure_ascii=False), 60)} is not allowed" for key in odd]
        case "enum" | "const":
            shown = wanted if error.validator == "enum" else [wanted]
            return [f"must be {_cut(' or '.join(json.dumps(item, ensure_ascii=False) for item in shown), _SHORT)}"]
        case "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties":
            bound = "at least" if str(error.validator).startswith("min") else "at most"
            return [f"must have {bound} {wanted}, has {len(value)}"]
        case "pattern":
            return [f"must match {_cut(str(wanted), _SHORT)}"]
        case _:
            return [_ends(error.message)]


def _article(kind: str) -> str:
    return kind if kind == "null" else f"an {kind}" if kind[0] in "aio" else f"a {kind}"


def _kind(value: Json) -> str:
    """A value in the word of JSON Schema for its type."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _ends(text: str) -> str:
    """A message begins with the value, which may be long, and ends with what is wrong with it."""
    return text if len(text) <= _SHORT else f"{text[:50]}…{text[-(_SHORT - 51) :]}"

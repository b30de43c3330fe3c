"""What expressions compute with: coercions and comparisons of JSON values, functions, output paths.

Knows values, not syntax: `expression.py` parses text and looks names up. The meaning is that of
GitHub Actions, with these differences, all on purpose:

- arrays and objects are equal by content (there: by identity, which a replay could not repeat);
- property names are exact (there: any case); names of functions are read in any case as there;
- arrays and objects turn into compact JSON as text (there: the words `Array` and `Object`), and
  `toJSON` is compact as well (there: indented);
- integers keep all their digits; a number never becomes infinite;
- `default` and `length` are ours; the object filter `.*` doesn't exist.

Invariants: nothing but JSON values goes in or comes out; no attribute of a Python object is ever
looked up by a name from outside; work is linear in the values, and text that a function builds is
at most `MAX_TEXT` characters.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dagrun.core.names import Json

MAX_TEXT = 32 * 1024 * 1024
MAX_SOURCE = 4096


class ExpressionError(Exception):
    """An expression or path that can't be read: the place is `length` characters at `offset` of the text."""

    def __init__(self, message: str, offset: int = 0, length: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.length = length
        self.hint = hint


class EvaluationError(Exception):
    """An expression that is well formed but has no value here; `message` says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MissingValue(EvaluationError):
    """A name that has no value: `name` is the reference as written with dots (`inputs.summary`)."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


# ---------------------------------------------------------------- coercions


def kind(value: Json) -> str:
    """The JSON name of the type of `value`: null, boolean, number, string, array, object."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def truthy(value: Json) -> bool:
    """Whether a condition holds: false are null, false, 0, NaN and the empty text, nothing else."""
    if value is None or value is False or value == "":
        return False
    if isinstance(value, int | float):
        return value != 0 and value == value  # NaN is the number that isn't itself
    return True


_DECIMAL = re.compile(r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?")
_INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
_BASED = re.compile(r"0x[0-9A-Fa-f]{1,256}|0o[0-7]{1,256}")
_INFINITE = {"Infinity": math.inf, "+Infinity": math.inf, "-Infinity": -math.inf}


def to_number(value: Json) -> int | float:
    """`value` as a comparison sees it: null and '' are 0, true is 1, other text by its digits or NaN.

    Text of more than MAX_SOURCE characters is NaN unread: `contains` asks for every element.
    """
    if value is None:
        return 0
    if isinstance(value, int | float):
        return value + 0  # so that true is 1
    if not isinstance(value, str) or len(value) > MAX_SOURCE:
        return math.nan
    text = value.strip()
    if not text:
        return 0
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    return _INFINITE.get(text, math.nan)


def to_text(value: Json) -> str:
    """`value` inside text: null is '', booleans true/false, 3.0 is 3, arrays and objects compact JSON.

    Raises EvaluationError for a value that has no JSON (nested too deep, too many digits).
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return repr(value)
    return to_json(value)


def to_json(value: Json) -> str:
    """Compact JSON of `value`, characters beyond ASCII as they are; raises EvaluationError."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise EvaluationError("the value is nested too deep to be written as JSON") from None
    except ValueError as error:
        raise EvaluationError(f"the value can't be written as JSON: {error}") from None


def checked_text(parts: Sequence[str], separator: str = "") -> str:
    """The parts joined, or EvaluationError when the text would have more than MAX_TEXT characters."""
    if sum(map(len, parts)) + len(separator) * max(0, len(parts) - 1) > MAX_TEXT:
        raise EvaluationError(f"the text would have more than {MAX_TEXT:,} characters")
    return separator.join(parts)


# ---------------------------------------------------------------- comparisons


def _fold(text: str) -> str:
    """`text` for comparing without case: one character stays one character, so ß isn't ss."""
    if text.isascii():
        return text.upper()
    return "".join(upper if len(upper := c.upper()) == 1 else c for c in text)


def equals(left: Json, right: Json) -> bool:
    """`left == right`: text without case, arrays and objects by content, different kinds as numbers."""
    a, b = kind(left), kind(right)
    if a != b:
        return to_number(left) == to_number(right)
    if a == "string":
        x, y = cast("str", left), cast("str", right)
        return len(x) == len(y) and (x == y or _fold(x) == _fold(y))
    if a in ("array", "object"):
        return _same(left, right)
    return left == right


def _same(left: Json, right: Json) -> bool:
    """Equality of JSON by content, text exact, true not 1; without recursion, since depth is theirs."""
    todo = [(left, right)]
    while todo:
        a, b = todo.pop()
        if isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            todo.extend(zip(a, b, strict=True))
        elif isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            todo.extend((a[key], b[key]) for key in a)
        elif kind(a) != kind(b) or a != b:
            return False
    return True


def less(left: Json, right: Json) -> bool:
    """`left < right`: two texts without case, everything else as numbers; false beside NaN."""
    if isinstance(left, str) and isinstance(right, str):
        return _fold(left) < _fold(right)
    return to_number(left) < to_number(right)


def index(value: Json, key: Json) -> Json:
    """`value[key]`, null when there is no such thing."""
    if isinstance(value, dict):
        return None if isinstance(key, list | dict) else value.get(to_text(key))
    if isinstance(value, list):
        number = to_number(key)
        return value[math.floor(number)] if 0 <= number < len(value) else None
    return None


# ---------------------------------------------------------------- functions


def _contains(args: Sequence[Json]) -> Json:
    where, what = args
    if isinstance(where, list):
        return any(equals(item, what) for item in where)
    if isinstance(where, dict) or isinstance(what, list | dict):
        return False
    return _fold(to_text(what)) in _fold(to_text(where))


def _starts_with(args: Sequence[Json]) -> Json:
    whole, part = _folded(args)
    return whole.startswith(part)


def _ends_with(args: Sequence[Json]) -> Json:
    whole, part = _folded(args)
    return whole.endswith(part)


def _folded(args: Sequence[Json]) -> tuple[str, str]:
    """Two arguments as text without case; a pair that matches nowhere if one is an array or object."""
    if any(isinstance(value, list | dict) for value in args):
        return "", "?"
    return _fold(to_text(args[0])), _fold(to_text(args[1]))


_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([0-9]{1,4})\}|[{}]")


def _format(args: Sequence[Json]) -> Json:
    pattern, texts = to_text(args[0]), [to_text(value) for value in args[1:]]
    parts: list[str] = []
    end = 0
    for match in _PLACEHOLDER.finditer(pattern):
        parts.append(pattern[end : match.start()])
        end = match.end()
        if match[1] is None:
            if len(match[0]) == 1:
                raise EvaluationError(f"format(): lone {match[0]} in the pattern; write {match[0] * 2} for it")
            parts.append(match[0][0])
        elif int(match[1]) < len(texts):
            parts.append(texts[int(match[1])])
        else:
            raise EvaluationError(f"format(): {match[0]} has no value; values given after the pattern: {len(texts)}")
    parts.append(pattern[end:])
    return checked_text(parts)


def _join(args: Sequence[Json]) -> Json:
    separator = to_text(args[1]) if len(args) > 1 else ","
    if isinstance(args[0], list):
        return checked_text([to_text(item) for item in args[0]], separator)
    return to_text(args[0])


def _to_json(args: Sequence[Json]) -> Json:
    return checked_text([to_json(args[0])])


def _from_json(args: Sequence[Json]) -> Json:
    if isinstance(args[0], list | dict):
        raise EvaluationError(f"fromJSON() takes text, not an {kind(args[0])}")
    text = to_text(args[0])
    try:
        value = cast("Json", json.loads(text, parse_constant=_refuse_constant, parse_float=_finite))
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise EvaluationError("fromJSON(): the text is nested too deep") from None
    except UnicodeEncodeError:
        raise EvaluationError("fromJSON(): the text has half of a surrogate pair (\\ud800-\\udfff)") from None
    except ValueError as error:
        shown = text if len(text) <= 40 else text[:39] + "…"
        raise EvaluationError(f"fromJSON(): not JSON: {error}: {shown!r}") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError("a number is too large")
    return number


def _length(args: Sequence[Json]) -> Json:
    if isinstance(args[0], str | list | dict):
        return len(args[0])
    raise EvaluationError(f"length() takes text, an array or an object, not {kind(args[0])}")


FUNCTIONS: Mapping[str, Callable[[Sequence[Json]], Json]] = {
    "contains": _contains,
    "startsWith": _starts_with,
    "endsWith": _ends_with,
    "format": _format,
    "join": _join,
    "toJSON": _to_json,
    "fromJSON": _from_json,
    "length": _length,
}

# How many arguments each function takes, at least and at most (255 as in GitHub Actions).
SIGNATURES: Mapping[str, tuple[int, int]] = {
    "contains": (2, 2),
    "startsWith": (2, 2),
    "endsWith": (2, 2),
    "format": (1, 255),
    "join": (1, 2),
    "toJSON": (1, 1),
    "fromJSON": (1, 1),
    "length": (1, 1),
    "default": (2, 2),
    "hashFiles": (1, 255),
    "success": (0, 0),
    "failure": (0, 0),
    "always": (0, 0),
    "cancelled": (0, 0),
}


# ---------------------------------------------------------------- paths of outputs

_STEP = re.compile(
    r"\.?\[(?P<index>[0-9]{1,9})\]"
    r"|\.?\[(?:'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\")\]"
    r"|\.(?P<name>[A-Za-z_][A-Za-z0-9_-]*)"
)


@lru_cache(maxsize=1024)
def parse_path(path: str) -> tuple[str | int, ...]:
    """The steps of an output's `path`: `.a.b[0]`, `.a['key with spaces']`; `.` and '' are the whole document.

    Raises ExpressionError with the offset of the step that can't be read.
    """
    if len(path) > MAX_SOURCE:
        raise ExpressionError(f"the path has more than {MAX_SOURCE} characters", 0, len(path))
    if path in ("", "."):
        return ()
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            message = f"the path can't be read from {path[at : at + 20]!r} on" if at else f"{path[:40]!r} is not a path"
            raise ExpressionError(message, at, len(path) - at, "write .name, [0] or ['any key']: .items[0].title")
        number, single, double, name = match.group("index", "single", "double", "name")
        steps.append(int(number) if number is not None else next(s for s in (name, single, double) if s is not None))
        at = match.end()
    return tuple(steps)


def select(value: Json, path: str) -> Json:
    """The part of `value` that `path` leads to.

    Raises ExpressionError for a path that can't be read (`parse_path`), EvaluationError when the
    document has no such part, naming the last step that it has.
    """
    trail = ""
    for step in parse_path(path):
        missing = f"`{path}` selects nothing: {f'`{trail}`' if trail else 'the document'}"
        if isinstance(step, int):
            if not isinstance(value, list):
                raise EvaluationError(f"{missing} is no array (it is {kind(value)}), so it has no [{step}]")
            if step >= len(value):
                raise EvaluationError(f"{missing} has no [{step}], its length is {len(value)}")
            value, trail = value[step], f"{trail}[{step}]"
        else:
            if not isinstance(value, dict):
                raise EvaluationError(f"{missing} is no object (it is {kind(value)}), so it has no `{step}`")
            if step not in value:
                raise EvaluationError(f"{missing} has no `{step}`, it has {listed(value)}")
            value, trail = value[step], f"{trail}.{step}"
    return value


def listed(names: Mapping[str, object]) -> str:
    """The first few names for a message; `nothing` when there are none."""
    few = [f"`{name[:40]}`" for name, _ in zip(names, range(8), strict=False)]
    more = f" and {len(names) - len(few)} more" if len(names) > len(few) else ""
    return ", ".join(few) + more or "nothing"

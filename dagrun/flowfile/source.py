"""YAML bytes to a light tree of str, list and dict, with places on demand.

The tree is built from PyYAML's events (libyaml, else its pure Python parser) under limits of our
own that hold *before* anything is constructed: size, events, depth, aliases, expanded size. Only
one document, no tags, no merge keys, no duplicate keys, UTF-8 without control characters; JSON is
YAML here. Scalars stay source text: `Plain` when written without quotes, `str` otherwise; nothing
is turned into numbers or booleans, since only the key that holds a scalar knows what it wants.

Places are not kept: a right file (the usual case, 100,000 nodes) pays nothing for them. The first
problem reads the text a second time and keeps the marks. Knows nothing of workflows.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING

from dagrun.errors import InputError, Problem
from dagrun.flowfile.compose import MAX_BYTES, Composer, Mark, Marker, Plain, Stop, Value, duplicates
from dagrun.flowfile.frames import Lines, Spot

if TYPE_CHECKING:
    from dagrun.core.workflow import Fault

MAX_PROBLEMS = 1000  # of one kind that are shown: a generated file can repeat one mistake a million times

__all__ = ["MAX_BYTES", "MAX_PROBLEMS", "Mark", "Plain", "Tree", "Value", "parse"]


class Tree:
    """One parsed text: `value` is its tree, `file` its name as the user knows it."""

    __slots__ = ("_lines", "_marks", "_pairs", "_spots", "_text", "file", "value")

    def __init__(self, text: str, file: str, pairs: tuple[int, ...] = ()) -> None:
        self._text = text
        self._pairs = pairs
        self._lines: Lines | None = None
        self._marks: Mark | None = None
        self._spots: list[Spot] = []
        self.file = file
        self.value: Value = ""

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with the text itself although it could be read to its end; at most MAX_PROBLEMS."""
        return [self.spot_problem(s) for s in self._spots[:MAX_PROBLEMS]]

    @property
    def text(self) -> str:
        """The text that was read, without a BOM."""
        return self._text

    def spot_problem(self, spot: Spot) -> Problem:
        """A spot of this text as a problem with line, column and code frame."""
        if self._lines is None:
            self._lines = Lines(_split_pairs(self._text, self._pairs))
        if self._pairs:
            start, end = (i + 11 * bisect_right(self._pairs, i - 1) for i in (spot.start, spot.end))
            spot = spot._replace(start=start, end=end)
        return self._lines.problem(spot, self.file)

    def problem(self, fault: Fault) -> Problem:
        """A fault as a problem at its place; without one there, at the nearest place above it."""
        start, end, nothing = self._locate(fault)
        hint = fault.hint
        comment = _COMMENT.match(self._text, nothing) if nothing else None
        if comment:
            hint = f"` #` begins a comment: write '{comment[1].rstrip()}' in quotes"
        return self.spot_problem(Spot(start, end, fault.code, fault.message, hint, fault.severity))

    def _locate(self, fault: Fault) -> tuple[int, int, int]:
        """Start and end of the place; the third is where a value should be, but nothing is."""
        mark = self.mark()
        key: tuple[int, int] | None = None
        on_key = fault.on_key
        for depth, step in enumerate(fault.path):
            inner = mark.items
            if inner and step not in inner and _is_input(fault.path[:depth]):
                mark = next((inner[k][2] for k in _LONG_FORM if k in inner), mark)
                inner = mark.items
            if inner is None:  # a short form: the scalar stands for what lies below it
                break
            if step not in inner:
                on_key = True
                break
            start, end, mark = inner[step]
            key = (start, end)
        if _is_input(fault.path) and mark.items and not on_key:
            found = next((mark.items[k] for k in _LONG_FORM if k in mark.items), None)
            mark = found[2] if found else mark
        if key and (on_key or (mark.items is not None and mark.block) or mark.start == mark.end):
            return *key, 0 if on_key or mark.items is not None else mark.start
        if mark.items is not None and mark.block:
            return mark.start, mark.start + 1, 0
        return *_narrow(self._text, mark, fault.offset, fault.length, self._scalar(fault.path)), 0

    def _scalar(self, path: tuple[str | int, ...]) -> str:
        """The value at a path, when it is text."""
        value: Value | None = self.value
        for step in (*path, *_LONG_FORM):
            if isinstance(value, dict):
                value = value.get(str(step), value)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
        return value if isinstance(value, str) else ""

    def mark(self) -> Mark:
        """Where all values stand; read when it is asked for the first time."""
        if self._marks is None:
            self._marks = Marker(self._text).document()
        return self._marks


_COMMENT = re.compile(r"[ \t]*(#[^\s#][^\r\n]*)")
_LONG_FORM = ("from", "value")


def _is_input(path: tuple[str | int, ...]) -> bool:
    return len(path) >= 4 and path[-2] == "inputs"


def _narrow(text: str, mark: Mark, offset: int, length: int, value: str) -> tuple[int, int]:
    """The part `offset`, `length` of a scalar's value as characters of the text."""
    source = text[mark.start : mark.end]
    part = value[offset : offset + length]
    if not part:
        return mark.start, mark.end
    quote = 1 if source[:1] in ("'", '"') else 0
    if source[quote + offset : quote + offset + length] == part and source[quote : quote + offset] == value[:offset]:
        return mark.start + quote + offset, mark.start + quote + offset + length
    # escapes, folded lines, block scalars: the same occurrence of the same characters
    at = -1
    for _ in range(value.count(part, 0, offset) + 1):
        at = source.find(part, at + 1)
    return (mark.start + at, mark.start + at + length) if at >= 0 else (mark.start, mark.end)


# ---------------------------------------------------------------- bytes to text

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def parse(data: bytes, file: str) -> Tree:
    """The tree of a YAML or JSON text; what is wrong but readable is in its `problems`.

    Raises InputError with the problem that makes reading on impossible, after those before it.
    """
    tree = Tree("", file)
    try:
        text, pairs = _decode(data, file)
        tree = Tree(text, file, pairs)
        composer = Composer(text)
        try:
            tree.value = composer.document()
        finally:
            tree._spots = composer.spots
            if composer.twice_written:
                tree._spots += duplicates(text)
            tree._spots.sort()
    except Stop as stop:
        last = tree.spot_problem(stop.spot)
        raise InputError((*tree.problems, last)) from None
    return tree


def _decode(data: bytes, file: str) -> tuple[str, tuple[int, ...]]:
    if len(data) > MAX_BYTES:
        raise InputError((_whole(file, "too-big", f"the file is larger than {MAX_BYTES >> 20} MiB"),))
    if data.startswith(_UTF16):
        message = "the file is UTF-16, not UTF-8"
        raise InputError((_whole(file, "not-utf8", message, "save it as UTF-8"),))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace")
        shown = before + data[error.start : error.start + 200].decode("utf-8", "replace").split("\n")[0]
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        spot = Spot(len(before), len(before) + 1, "not-utf8", message, "save the file as UTF-8")
        raise InputError((Lines(shown).problem(spot, file),)) from None
    found = _CONTROL.search(text)
    if found:
        char = ord(found[0])
        name = "a NUL byte" if char == 0 else f"the control character U+{char:04X}"
        hint = (
            f'remove it; inside double quotes it can be written as an escape, "\\u{char:04x}"' if char else "remove it"
        )
        raise InputError(
            (Lines(text).problem(Spot(*found.span(), "control-character", f"{name} is in the text", hint), file),)
        )
    if "\\u" in text and text.lstrip()[:1] in ("{", "["):
        return _join_pairs(text)
    return text, ()


def _whole(file: str, code: str, message: str, hint: str = "") -> Problem:
    return Problem(code=code, message=message, file=file, hint=hint)


def _join_pairs(text: str) -> tuple[str, tuple[int, ...]]:
    """JSON writes characters beyond U+FFFF as two escapes, which YAML doesn't know: as themselves."""
    out: list[str] = []
    places: list[int] = []
    done = length = 0
    for match in _PAIR.finditer(text):
        before = text[done : match.end(1)]
        high, low = int(match[2], 16), int(match[3], 16)
        out += (before, chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)))
        length += len(before)
        places.append(length)
        length += 1
        done = match.end()
    return "".join([*out, text[done:]]), tuple(places)


def _split_pairs(text: str, places: tuple[int, ...]) -> str:
    """The text as it was before `_join_pairs`: each joined character is twelve again."""
    parts: list[str] = []
    done = 0
    for at in places:
        low = ord(text[at]) - 0x10000
        parts += (text[done:at], f"\\u{0xD800 + (low >> 10):04x}\\u{0xDC00 + (low & 0x3FF):04x}")
        done = at + 1
    return "".join([*parts, text[done:]]) if places else text

"""Places in a text: from character offsets to line, column and the lines shown around them.

Knows nothing of YAML. Offsets count characters of the decoded text (a BOM is not part of it);
lines end with LF, CRLF or CR, as in every editor.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from typing import Literal, NamedTuple

from dagrun.errors import Problem

_LINE_END = re.compile(r"\r\n|\r|\n")
MAX_WIDTH = 160  # characters of a line that are shown; minified JSON has lines of megabytes


class Spot(NamedTuple):
    """Something wrong with the characters `start` to `end` of a text."""

    start: int
    end: int
    code: str
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"


class Lines:
    """The lines of one text: offsets to places, built once when the first problem is shown."""

    __slots__ = ("_starts", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts = array("q", [0])
        self._starts.extend(m.end() for m in _LINE_END.finditer(text))

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of a character; past the end is the end of the last line."""
        offset = min(max(offset, 0), len(self.text))
        line = bisect_right(self._starts, offset)
        if line > 1 and offset == len(self.text) and self._starts[line - 1] == offset:
            line -= 1  # after the last newline there is no line that an editor could show
        return line, min(offset - self._starts[line - 1], len(self.line(line))) + 1

    def line(self, number: int) -> str:
        """The text of a line, without its end."""
        end = self._starts[number] if number < len(self._starts) else len(self.text)
        return self.text[self._starts[number - 1] : end].rstrip("\r\n")

    def problem(self, spot: Spot, file: str) -> Problem:
        """A spot as a problem with its code frame: the line before, where it helps, and the line."""
        number, column = self.place(spot.start)
        line = self.line(number)
        length = max(1, min(spot.end - spot.start, len(line) - column + 1))
        excerpt: list[tuple[int, str]] = []
        # far to the right only a part of the line is shown, and nothing of its neighbour
        shift = 0 if column <= MAX_WIDTH else column - 1 - MAX_WIDTH // 3
        if number > 1 and not shift and self.line(number - 1).strip():
            excerpt.append((number - 1, _cut(self.line(number - 1))))
        excerpt.append((number, _cut(line) if not shift else "…" + _cut(line[shift + 1 :])))
        return Problem(
            code=spot.code,
            message=spot.message,
            file=file,
            line=number,
            column=column,
            length=max(1, min(length, MAX_WIDTH - (column - 1 - shift))),
            hint=spot.hint,
            excerpt=tuple(excerpt),
            severity=spot.severity,
            shift=shift,
        )


def _cut(line: str) -> str:
    return line if len(line) <= MAX_WIDTH else line[:MAX_WIDTH] + " …"

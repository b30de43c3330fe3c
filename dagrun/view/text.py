"""The only door for text that others wrote, and what a terminal can show.

Everything that a node printed or a file named goes through `clean` (one line), `clean_block`
(many) or `last_line` before it meets a screen: no escape sequence, control, bidirectional or
invisible character comes out, and nothing is ever read as markup. Widths are in terminal cells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias
from unicodedata import category, east_asian_width

from dagrun.core.names import Status

ColorChoice: TypeAlias = Literal["auto", "always", "never"]

# CSI, OSC, the string sequences (DCS, SOS, PM, APC), then every other escape; 8-bit forms too.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c]*(?:\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_TAIL = 8192  # no last line worth showing is longer
_ROOM = 16  # cells: folded text never gets less


def clean(text: str) -> str:
    """`text` on one line with nothing in it that moves a cursor, hides or reorders characters."""
    if text.isascii() and text.isprintable():
        return text
    if "\x1b" in text or not text.isprintable():
        text = _ESCAPES.sub("", text)
    return "".join([c for c in map(_shown, text) if c])


def _shown(c: str) -> str:
    """A character as it may be shown: itself, a space for any kind of space, or nothing."""
    if c.isprintable():
        # variation selectors make the width of the character before them a matter of taste
        return "" if "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef" else c
    if c in "\t\n\r\v\f\x85" or category(c)[0] == "Z":
        return " "
    return "\ufffd" if category(c) in ("Cs", "Co", "Cn") else ""


def clean_block(text: str) -> str:
    """Many lines, each cleaned; of a line that was overwritten with carriage returns the last state."""
    return "\n".join(_overwritten(line) for line in text.replace("\r\n", "\n").split("\n"))


def _overwritten(line: str) -> str:
    if "\r" not in line:
        return clean(line).rstrip()
    for part in reversed(line.split("\r")):
        shown = clean(part).rstrip()
        if shown:
            return shown
    return ""


def decode(data: bytes) -> str:
    """Text of bytes that a node wrote: UTF-8, whatever isn't is replaced, a cut first character dropped."""
    start = 0
    while start < min(3, len(data)) and 0x80 <= data[start] < 0xC0:
        start += 1
    return data[start:].decode("utf-8", "replace")


def last_line(data: bytes) -> str:
    """The last line with something to see in what a node wrote, made harmless; empty if there is none."""
    lines = last_lines(data[-_TAIL:], 1)
    return lines[0] if lines else ""


def last_lines(data: bytes, count: int) -> list[str]:
    """The last `count` lines with something to see, oldest first, made harmless."""
    found: list[str] = []
    for line in reversed(decode(data).replace("\r\n", "\n").split("\n")):
        shown = _overwritten(line)
        if shown.strip():
            found.append(shown)
            if len(found) == count:
                break
    found.reverse()
    return found


# ---------------------------------------------------------------- cells


def cells(text: str) -> int:
    """How many cells cleaned text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(c: str) -> int:
    if c < "\u0300":
        return 1
    if east_asian_width(c) in "WF":
        return 2
    return 0 if category(c) in ("Mn", "Me") else 1


def cut(text: str, width: int, ellipsis: str = "…") -> str:
    """Cleaned text in at most `width` cells, with an ellipsis where something is left out."""
    if width <= 0:
        return ""
    if len(text) <= width and text.isascii():
        return text
    # combining marks take no cell: without a bound a line of them would never end
    bounded = text[: 4 * width]
    if len(bounded) == len(text) and cells(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 0:
        return ellipsis[:width]
    used = 0
    for k, c in enumerate(bounded):
        used += _cells_of(c)
        if used > room:
            return bounded[:k] + ellipsis
    return bounded + ellipsis


def cut_begin(text: str, width: int, ellipsis: str = "…") -> str:
    """The end of cleaned text in at most `width` cells, with an ellipsis where its begin is left out."""
    if cells(text) <= width:
        return text
    room, at = width - len(ellipsis), len(text)
    while at and at > len(text) - 4 * width and (room := room - _cells_of(text[at - 1])) >= 0:
        at -= 1
    return cut(ellipsis + text[at:], width, "")


def pad(text: str, width: int, *, right: bool = False) -> str:
    """`text` filled with spaces to `width` cells; on the left when `right` aligned."""
    gap = " " * (width - cells(text))
    return gap + text if right else text + gap


# ---------------------------------------------------------------- glyphs and colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """One cell for each thing that is shown by a sign; the signs of ASCII where UTF-8 can't go."""

    ok: str = "✓"
    failed: str = "✗"
    running: str = "●"
    ready: str = "○"
    retrying: str = "↻"
    waiting: str = "‖"
    skipped: str = "–"
    full: str = "█"
    empty: str = "░"
    ellipsis: str = "…"
    dot: str = "·"
    encoding: str = "utf-8"


UTF8 = Glyphs()
ASCII = Glyphs(
    ok="+",
    failed="x",
    running="*",
    ready=".",
    retrying="r",
    waiting="=",
    skipped="-",
    full="#",
    empty=".",
    ellipsis="...",
    dot="-",
    encoding="ascii",
)


def glyphs_for(encoding: str | None) -> Glyphs:
    """The signs that this encoding can carry."""
    try:
        "✓✗●○↻‖–█░…·".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UTF8


def glyph(glyphs: Glyphs, status: Status) -> str:
    """The sign of a node's status."""
    return {
        Status.PENDING: " ",
        Status.READY: glyphs.ready,
        Status.RUNNING: glyphs.running,
        Status.RETRYING: glyphs.retrying,
        Status.AWAITING_REVIEW: glyphs.waiting,
        Status.COMPLETED: glyphs.ok,
        Status.FAILED: glyphs.failed,
        Status.SKIPPED: glyphs.skipped,
        Status.CANCELLED: glyphs.skipped,
        Status.SUPERSEDED: glyphs.skipped,
    }[status]


def use_color(choice: ColorChoice, env: Mapping[str, str], isatty: bool) -> bool:
    """Whether to colour: `--color`, then NO_COLOR, FORCE_COLOR and CLICOLOR_FORCE, then the terminal."""
    if choice != "auto":
        return choice == "always"
    if env.get("NO_COLOR"):
        return False
    if any(env.get(name, "0") not in ("", "0", "false") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    return isatty and env.get("TERM") != "dumb"


_SGR = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1", "bad": "1;31"}
STATUS_STYLE: Mapping[str, str] = {
    "completed": "green",
    "failed": "red",
    "running": "cyan",
    "retrying": "yellow",
    "awaiting_review": "yellow",
    "needs_review": "yellow",
    "interrupted": "yellow",
    "crashed": "red",
    "timed_out": "red",
    "over_budget": "red",
    "cancelled": "yellow",
    "skipped": "dim",
    "superseded": "dim",
    "pending": "dim",
    "ready": "dim",
}


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours text, or leaves it as it is. A colour never carries a meaning alone."""

    on: bool = False

    def __call__(self, text: str, style: str) -> str:
        if not self.on or not text or not style:
            return text
        return f"\x1b[{_SGR[style]}m{text}\x1b[0m"

    def status(self, text: str, status: str) -> str:
        """`text` in the colour of a status of a node or run."""
        return self(text, STATUS_STYLE.get(status, ""))


@dataclass(frozen=True, slots=True)
class Look:
    """How to write for one stream: its signs, its colours, its width in cells (None: no bound)."""

    glyphs: Glyphs = UTF8
    paint: Paint = Paint()
    width: int | None = None

    def cut(self, text: str, width: int) -> str:
        """`text` cut to `width` cells with this look's ellipsis."""
        return cut(text, width, self.glyphs.ellipsis)


PLAIN = Look()


# ---------------------------------------------------------------- times, counts, words


def clock(seconds: float) -> str:
    """A running time as `0:04`, `1:12`, `2:03:04`; never negative."""
    whole = max(0, int(seconds))
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def size(count: int) -> str:
    """A number of bytes for people: `512 B`, `4.2 KB`, `1.3 GB`."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("KB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def money(nano: int) -> str:
    """Nano-dollars for people: `$0.0123`, `$1.50`, `$120.75`; what is not zero is never shown as zero."""
    if 0 < nano < 50_000:
        return "<$0.0001"
    digits = 4 if nano < 10**10 else 2
    whole, rest = divmod((nano + 5 * 10 ** (8 - digits)) // 10 ** (9 - digits), 10**digits)
    return f"${whole:,}.{f'{rest:0{digits}d}'.rstrip('0').ljust(2, '0')}"


def tokens(count: int) -> str:
    """A number of tokens in at most six cells: `950`, `8,200`, `38.2k`, `1.3M`."""
    if count < 10_000:
        return f"{count:,}"
    for unit, one in (("k", 10**3), ("M", 10**6), ("G", 10**9)):
        value = count / one
        if value < 999.5 or unit == "G":
            break
    return f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"


def plural(count: int, word: str) -> str:
    """`1 node`, `2 nodes`, `10,000 nodes`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


COUNT_WORDS: tuple[tuple[Status, str], ...] = (
    (Status.COMPLETED, "ok"),
    (Status.FAILED, "failed"),
    (Status.AWAITING_REVIEW, "waiting for review"),
    (Status.RETRYING, "retrying"),
    (Status.RUNNING, "running"),
    (Status.READY, "ready"),
    (Status.PENDING, "pending"),
    (Status.SKIPPED, "skipped"),
    (Status.CANCELLED, "cancelled"),
    (Status.SUPERSEDED, "superseded"),
)


def counts_text(counts: Mapping[Status, int]) -> str:
    """`9 ok, 1 failed, 4 skipped`: what there is of each, nothing for none."""
    return ", ".join(f"{counts[s]:,} {word}" for s, word in COUNT_WORDS if counts.get(s))


# ---------------------------------------------------------------- on several lines


def folded(head: str, words: list[str], width: int | None) -> list[str]:
    """Words after a head, on as many lines as it takes, the later ones indented below the first word."""
    indent = " " * cells(head)
    room = None if width is None else max(_ROOM, width - len(indent))
    lines, line = [], ""
    for word in [part for w in words for part in _parts(w, room)]:
        if room is not None and line and cells(line) + 1 + cells(word) > room:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    lines.append(line)
    return [head + lines[0], *(indent + line for line in lines[1:])]


def _parts(word: str, room: int | None) -> list[str]:
    """A word, or the pieces of one that is wider than the room."""
    if room is None or cells(word) <= room:
        return [word]
    parts = [""]
    for char in word:
        if cells(parts[-1] + char) > room:
            parts.append("")
        parts[-1] += char
    return parts

"""A picture of a run as the lines of one frame: pure, each as wide and all as high as the screen at most."""

from __future__ import annotations

from typing import NamedTuple

from dagrun.core.names import RunStatus, Status
from dagrun.view.frame import Picture, Row
from dagrun.view.text import (
    COUNT_WORDS,
    Look,
    clean,
    clock,
    counts_text,
    cut,
    cut_begin,
    glyph,
    last_line,
    money,
    pad,
)


def rows_for(height: int) -> int:
    """How many lines for nodes a terminal of `height` lines has room for."""
    return max(0, _lines(height) - sum(_chrome(_lines(height))))


def _lines(height: int) -> int:
    return max(1, height - 1)  # the last line is the cursor's


def _chrome(lines: int) -> tuple[bool, bool, bool, bool]:
    """(header, bar, column heads, footer): the first to go is what tells least."""
    return True, lines >= 6, lines >= 8, lines >= 3



class Column(NamedTuple):
    """A column of the live table; those with a higher `drop` go first when the screen is narrow."""

    name: str
    width: int
    right: bool
    drop: int


_COLUMNS = (
    Column("STATUS", 9, False, 2),
    Column("WAVE", 4, True, 5),
    Column("TRY", 3, True, 3),
    Column("TIME", 7, True, 1),
    Column("TOKENS", 6, True, 6),
    Column("COST", 8, True, 4),
)
_LAST_MIN, _LAST_WORDS, _WIDE = 12, 24, 120
_NODE_MIN, _NODE_MAX = 10, 32


def columns_for(width: int, node_width: int, tries: int = 3, *, agents: bool) -> tuple[list[Column], int, int]:
    """(columns to show, width of NODE, width of LAST or 0) for a screen of `width` cells.

    They go in the order LAST, TOKENS, WAVE, COST, TRY, STATUS, TIME; but where there are agents WAVE and
    STATUS (its sign stays) make room for LAST, which shows what they say. Without agents there is neither
    TOKENS nor COST.
    """
    columns = [c._replace(width=tries) if c.name == "TRY" else c for c in _COLUMNS]
    if not agents:
        columns = [c for c in columns if c.name not in ("TOKENS", "COST")]
    node = max(4, min(node_width, _NODE_MAX if width >= _WIDE else 24))
    low = min(node, _NODE_MIN)

    def taken() -> int:
        return 2 + sum(2 + c.width for c in columns)

    for name in ("WAVE", "STATUS") if agents else ():
        if width - taken() - min(node, 16) - 2 < _LAST_WORDS:
            columns = [c for c in columns if c.name != name]
    while columns and taken() + low > width:
        columns.remove(max(columns, key=lambda c: c.drop))
    node = max(1, min(node, width - taken()))
    last = width - taken() - node - 2
    least = _LAST_WORDS if agents else _LAST_MIN
    if last < least and node > 16 and last + node - 16 >= _LAST_MIN:
        node, last = 16, last + node - 16
    return columns, node, last if last >= _LAST_MIN else 0


def draw(picture: Picture, look: Look, width: int, height: int, node_width: int = 0) -> list[str]:
    """The lines of one frame: each at most `width` cells, together at most `height` - 1."""
    lines = _lines(height)
    _, bar, heads, footer = _chrome(lines)
    out = [_header(picture, look, width)]
    if bar:
        out.append(_bar(picture, look, width))
    shown, folded = _fold(picture, lines - len(out) - heads - footer)
    tries = max([3, *(len(r.attempt) for r in shown)])
    widest = max([node_width, *(len(r.node) for r in shown)])
    columns, node, last = columns_for(width, widest, tries, agents=picture.agents)
    if heads and shown:
        out.append(look.paint(_heads(columns, node, last, width), "dim"))
    out += [_row(r, columns, node, last, look, width) for r in shown]
    if folded:
        out.append(look.paint(cut(f"  {folded}", width, look.glyphs.ellipsis), "dim"))
    if footer and lines > len(out):
        out.append(_footer(picture, look, width))
    return out[:lines]


def _fold(picture: Picture, room: int) -> tuple[tuple[Row, ...], str]:
    """The rows to show, and what else there is in one line, for which the last rows make place."""
    rows = picture.rows[: max(0, room)]
    while True:
        hidden = dict(picture.counts)
        for row in rows:
            hidden[row.status] -= 1
        more = ", ".join(
            f"{hidden[s]:,} more {word}" if s is not Status.PENDING else f"{hidden[s]:,} {word}"
            for s, word in COUNT_WORDS
            if hidden.get(s, 0) > 0
        )
        if not more or room < 3:
            return rows, ""
        if len(rows) < room:
            return rows, f"+ {more}"
        rows = rows[:-1]


def _header(picture: Picture, look: Look, width: int) -> str:
    name = clean(picture.workflow)
    parts = [picture.run_id, clock(picture.elapsed_s)]
    if picture.status is not RunStatus.RUNNING:
        parts.insert(1, picture.status.value.replace("_", " "))
    elif picture.parallel:
        parts.append(f"j{picture.parallel}")
    rest = "  ".join(parts)
    room = width - len(rest) - 2
    if room < 4:
        return look.cut(rest, width)
    return f"{look.paint(look.cut(name, room), 'bold')}  {rest}"


def _bar(picture: Picture, look: Look, width: int) -> str:
    text = f"  {picture.done:,}/{picture.total:,}"
    room = min(56, width - len(text))
    if room < 4:
        return look.cut(text.strip(), width)
    full = room * picture.done // picture.total if picture.total else room
    style = "red" if picture.failing else "green"
    return look.paint(look.glyphs.full * full, style) + look.paint(look.glyphs.empty * (room - full), "dim") + text


def _footer(picture: Picture, look: Look, width: int) -> str:
    marked = ", * changed" if picture.changed else ""
    revision = f"revision {picture.revision}{marked}"
    counts, signs, spent = counts_text(picture.counts), _signs(picture, look), _spent(picture, look)
    if picture.note:
        return look.paint(look.cut(f"{picture.note}   {counts}", width), "yellow")
    for parts in (
        (counts, spent, revision),
        (signs, spent, revision),
        (signs, spent, f"r{picture.revision}"),
        (signs, spent),
        (spent,),
    ):
        text = "   ".join(part for part in parts if part)
        if text and len(text) <= width:
            return text
    return look.cut(signs, width)


def _spent(picture: Picture, look: Look) -> str:
    """What the run has spent, what it holds for calls under way, and what it may cost."""
    spent, held, cap = picture.money
    if not picture.agents:
        return ""
    parts = [f"spent {money(spent)}", f"held {money(held)}"] if held or cap is not None else [f"spent {money(spent)}"]
    return f" {look.glyphs.dot} ".join([*parts, *([f"cap {money(cap)}"] if cap is not None else [])])


def _signs(picture: Picture, look: Look) -> str:
    pending = picture.counts.get(Status.PENDING, 0)
    skipped = sum(picture.counts.get(s, 0) for s in (Status.SKIPPED, Status.CANCELLED, Status.SUPERSEDED))
    marks = [f"{glyph(look.glyphs, s)} {picture.counts[s]:,}" for s, _ in COUNT_WORDS[:6] if picture.counts.get(s)]
    if skipped:
        marks.append(f"{look.glyphs.skipped} {skipped:,}")
    return "  ".join([*marks, *([f"{pending:,} to come"] if pending else [])])


def _heads(columns: list[Column], node: int, last: int, width: int) -> str:
    parts = [pad("NODE"[:node], node), *(pad(c.name, c.width, right=c.right) for c in columns)]
    return cut("  " + "  ".join([*parts, *(["LAST"] if last else [])]).rstrip(), width, "")


def _row(row: Row, columns: list[Column], node: int, last: int, look: Look, width: int) -> str:
    values = {"STATUS": row.status.value, "WAVE": str(row.wave), "TRY": row.attempt, "TIME": row.time}
    values |= {"TOKENS": row.tokens, "COST": row.cost}
    if row.status is Status.AWAITING_REVIEW:
        values["STATUS"] = "waiting"
    parts = [pad(look.cut(clean(row.node), node), node)]
    parts += [pad(look.cut(values.get(c.name, ""), c.width), c.width, right=c.right) for c in columns]
    text = "  ".join(parts)
    tail = ""
    if last:
        tail = clean(row.text) if row.text else last_line(row.output) or clean(row.else_)
        tail = cut_begin(tail, last, look.glyphs.ellipsis) if row.speaks else look.cut(tail, last)
    sign = glyph(look.glyphs, row.status)
    line = f"{sign} {text}  {tail}".rstrip() if tail else f"{sign} {text}".rstrip()
    if width < 8:
        line = cut(line, width, "")
    if row.status in (Status.FAILED, Status.RETRYING):
        return look.paint.status(line, row.status)
    if row.status in (Status.COMPLETED, Status.READY):
        return look.paint.status(sign, row.status) + look.paint(line[len(sign) :], "dim")
    return look.paint.status(sign, row.status) + line[len(sign) :]

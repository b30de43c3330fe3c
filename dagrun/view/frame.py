"""One picture of a running run as lines of text: pure, and only as long as the screen.

`take` reads the state (on the engine's thread, O(rows shown), never O(nodes)); `draw` turns what
was taken into lines (on any thread). Rows come in the order in which a person needs them:
failed, waiting for a review, retrying, running, next ready, last finished; the rest is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from dagrun.core.names import Outcome, RunStatus, Status
from dagrun.core.state import RunState
from dagrun.core.trace import cause, node_reason
from dagrun.view.text import (
    COUNT_WORDS,
    Look,
    clean,
    clock,
    counts_text,
    cut,
    glyph,
    last_line,
    pad,
)

_READY_ROWS = 3
_TAIL = 1024


class Row(NamedTuple):
    """One node on the screen. `output` is raw; `text` wins over it."""

    status: Status
    node: str
    wave: int
    attempt: str
    time: str
    text: str = ""
    output: bytes = b""


@dataclass(slots=True, frozen=True, kw_only=True)
class Picture:
    """All that one frame shows."""

    workflow: str
    run_id: str
    status: RunStatus
    elapsed_s: float
    parallel: int
    done: int
    total: int
    revision: int
    counts: Mapping[Status, int]
    rows: tuple[Row, ...]
    note: str = ""
    changed: bool = False  # a row is marked: its node is new or other than in the revision before
    spent_usd: float = 0.0
    budget_usd: float | None = None
    agents: bool = False
    failing: bool = False


def rows_for(height: int) -> int:
    """How many lines for nodes a terminal of `height` lines has room for."""
    return max(0, _lines(height) - sum(_chrome(_lines(height))))


def _lines(height: int) -> int:
    return max(1, height - 1)  # the last line is the cursor's


def _chrome(lines: int) -> tuple[bool, bool, bool, bool]:
    """(header, bar, column heads, footer): the first to go is what tells least."""
    return True, lines >= 6, lines >= 8, lines >= 3


# ---------------------------------------------------------------- state → picture


def take(
    state: RunState,
    now_m: float,
    elapsed_s: float,
    room: int,
    failed: dict[int, None],
    tail: Callable[[int], bytes],
    budget_usd: float | None = None,
) -> Picture:
    """What to show of a state in `room` lines. `failed` are the nodes that failed, in order."""
    rows = list(_rows(state, now_m, room, failed, tail))
    last = state.revisions[-1] if state.revisions else None
    fresh = {*last.nodes, *last.reset} if last is not None else set()
    return Picture(
        workflow=state.created.workflow,
        run_id=state.created.run_id,
        status=state.status,
        elapsed_s=elapsed_s,
        parallel=state.engine.parallel if state.engine else 0,
        done=state.settled - len(state.removed),
        total=len(state.plan.ids) - len(state.removed),
        revision=state.plan.revision,
        counts=dict(state.counts),
        rows=tuple([r._replace(node=f"{r.node}*") if r.node in fresh else r for r in rows]) if fresh else tuple(rows),
        changed=any(r.node in fresh for r in rows),
        note=_note(state),
        budget_usd=budget_usd,
        failing=state.failures > 0,
    )


def _note(state: RunState) -> str:
    stop = state.stop
    if stop is None or not state.running:
        return ""
    ways = {"drain": "no new starts, finishing", "now": "ending"}
    note = f"{stop.cause}: {ways[stop.mode]} {len(state.running)}"
    return note + ("; ^C again ends them" if stop.mode == "drain" else "")


def share(room: int, wants: Iterable[tuple[int, int]]) -> list[int]:
    """Split `room` lines: to each (available, first share) its first share, then what is left, in order."""
    asked = list(wants)
    given = []
    for available, first in asked:
        given.append(min(available, first, room))
        room -= given[-1]
    for k, (available, _) in enumerate(asked):
        more = min(available - given[k], room)
        given[k] += more
        room -= more
    return given


def _rows(
    state: RunState, now_m: float, room: int, failed: dict[int, None], tail: Callable[[int], bytes]
) -> Iterable[Row]:
    if room <= 0:
        return
    counts = state.counts
    ready, coming = _next_ready(state), _changed_ahead(state, room)
    third = max(1, room // 3)
    over = len(state.finished) if len(state.finished) < room else room
    shown = share(
        room,
        [
            (len(failed), third),
            (len(state.reviews), third),
            (counts[Status.RETRYING], max(1, third // 2)),
            (len(state.running), room),
            (len(ready), _READY_ROWS),
            (len(coming), _READY_ROWS),
            (over, 0),
        ],
    )
    for i in islice(reversed(failed), shown[0]):  # the newest first: most likely not seen yet
        yield _over_row(state, i, Status.FAILED)
    for i in islice(state.reviews, shown[1]):
        text = f"dagrun review {state.created.run_id} {state.plan.ids[i]}  {state.reviews[i].message}"
        time = clock(now_m - state.attempts[i][-1].started_m)
        yield Row(Status.AWAITING_REVIEW, state.plan.ids[i], state.plan.wave[i], _tries(state, i), time, text)
    yield from _retrying(state, now_m, shown[2])
    for i in islice(state.running, shown[3]):
        yield _running_row(state, i, now_m, tail(i))
    for i in ready[: shown[4]]:
        yield Row(Status.READY, state.plan.ids[i], state.plan.wave[i], "", "")
    for i in coming[: shown[5]]:
        yield Row(Status.PENDING, state.plan.ids[i], state.plan.wave[i], "", "")
    yield from _finished(state, shown[6])


def _changed_ahead(state: RunState, room: int) -> list[int]:
    """Nodes that the last patch brought or changed and that are still to come: others are only counted."""
    if not state.revisions or state.ended is not None:
        return []
    last = state.revisions[-1]
    index, statuses = state.plan.index, state.node_status
    found = (index[name] for name in dict.fromkeys((*last.nodes, *last.reset)) if name in index)
    return list(islice((i for i in found if statuses[i] is Status.PENDING and i not in state.removed), room))


def _next_ready(state: RunState) -> list[int]:
    """The nodes that go next: the heaps' first entries, never a walk over all that is ready."""
    if state.stop is not None:
        return []
    best = sorted([entry for heap in islice(state.ready.values(), 8) for entry in heap[:7]])
    found = [i for _, i in best if state.node_status[i] is Status.READY]
    return list(dict.fromkeys(found))[:_READY_ROWS]


def _retrying(state: RunState, now_m: float, count: int) -> Iterable[Row]:
    escalating = list(islice(state.escalating, count))
    for i in escalating:
        if state.node_status[i] is Status.RETRYING:
            yield Row(Status.RETRYING, state.plan.ids[i], state.plan.wave[i], _tries(state, i), "", _why(state, i))
            count -= 1
    soonest = sorted(state.waking[: 4 * count + 1])
    waiting = [(due, i) for due, i in soonest if state.node_status[i] is Status.RETRYING]
    for due, i in waiting[:count]:
        wait_s = due - now_m + 0.999
        due_in = f"in {clock(wait_s)}" if wait_s < 600 else f"in {wait_s // 60:.0f}m"
        yield Row(
            Status.RETRYING, state.plan.ids[i], state.plan.wave[i], _tries(state, i, more=1), due_in, _why(state, i)
        )


def _running_row(state: RunState, i: int, now_m: float, output: bytes) -> Row:
    time = clock(now_m - state.running[i].started_m)
    return Row(Status.RUNNING, state.plan.ids[i], state.plan.wave[i], _tries(state, i), time, "", output[-_TAIL:])


def _over_row(state: RunState, i: int, status: Status) -> Row:
    finish = state.attempts[i][-1].finish if state.attempts[i] else None
    time = took(finish.duration_ms / 1000) if finish else ""
    return Row(status, state.plan.ids[i], state.plan.wave[i], _tries(state, i), time, _why(state, i))


def took(seconds: float) -> str:
    """How long something took that is over: `4.2s`, then as a clock."""
    return f"{seconds:.1f}s" if seconds < 9.95 else clock(seconds)


def _why(state: RunState, i: int) -> str:
    """What the last attempt of a node said, after why it did not complete."""
    finish = state.attempts[i][-1].finish if state.attempts[i] else None
    if finish is None:
        return node_reason(state, i)
    if finish.outcome is Outcome.COMPLETED:
        return finish.summary
    why = cause(finish, state.plan.nodes[i])
    return f"{why}: {finish.summary}" if finish.summary and finish.summary not in why else why


def _finished(state: RunState, count: int) -> Iterable[Row]:
    """The last nodes that ended, newest first; failed ones have their own rows."""
    for i in dict.fromkeys(islice(reversed(state.finished), count)):
        if state.node_status[i] is Status.COMPLETED and i not in state.removed:
            yield _over_row(state, i, Status.COMPLETED)


def _tries(state: RunState, i: int, more: int = 0) -> str:
    tried = len(state.attempts[i]) + more
    free = state.tries_base.get(i, 0) + state.lost.get(i, 0)
    return f"{tried}/{max(tried, free + state.plan.nodes[i].retry.max_attempts)}"


# ---------------------------------------------------------------- picture → lines


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
    Column("COST", 6, True, 4),
)
_LAST_MIN, _WIDE = 12, 120
_NODE_MIN, _NODE_MAX = 10, 32


def columns_for(width: int, node_width: int, tries: int = 3, *, agents: bool) -> tuple[list[Column], int, int]:
    """(columns to show, width of NODE, width of LAST or 0) for a screen of `width` cells.

    They go in the order LAST, TOKENS, WAVE, COST, TRY, STATUS, TIME. Where nothing can cost
    anything, TOKENS and COST are there only on a wide screen.
    """
    columns = [c._replace(width=tries) if c.name == "TRY" else c for c in _COLUMNS]
    if not agents and width < _WIDE:
        columns = [c for c in columns if c.name not in ("TOKENS", "COST")]
    node = max(4, min(node_width, _NODE_MAX if width >= _WIDE else 24))
    low = min(node, _NODE_MIN)

    def taken() -> int:
        return 2 + sum(2 + c.width for c in columns)

    while columns and taken() + low > width:
        columns.remove(max(columns, key=lambda c: c.drop))
    node = max(1, min(node, width - taken()))
    last = width - taken() - node - 2
    if last < _LAST_MIN and node > 16 and last + node - 16 >= _LAST_MIN:
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
    budget = f" of ${picture.budget_usd:.2f}" if picture.budget_usd is not None else ""
    marked = ", * changed" if picture.changed else ""
    tail = [f"${picture.spent_usd:.2f}{budget}", f"revision {picture.revision}{marked}"]
    counts = counts_text(picture.counts)
    if picture.note:
        return look.paint(look.cut(f"{picture.note}   {counts}", width), "yellow")
    for text in (
        "   ".join([counts, *tail]),
        "   ".join([_signs(picture, look), *tail]),
        "   ".join([_signs(picture, look), tail[0], f"r{picture.revision}"]),
    ):
        if len(text) <= width:
            return text
    return look.cut(_signs(picture, look), width)


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
    if row.status is Status.AWAITING_REVIEW:
        values["STATUS"] = "waiting"
    parts = [pad(look.cut(clean(row.node), node), node)]
    parts += [pad(look.cut(values.get(c.name, ""), c.width), c.width, right=c.right) for c in columns]
    text = "  ".join(parts)
    tail = ""
    if last:
        tail = look.cut(clean(row.text) if row.text else last_line(row.output), last)
    sign = glyph(look.glyphs, row.status)
    line = f"{sign} {text}  {tail}".rstrip() if tail else f"{sign} {text}".rstrip()
    if width < 8:
        line = cut(line, width, "")
    if row.status in (Status.FAILED, Status.RETRYING):
        return look.paint.status(line, row.status)
    if row.status in (Status.COMPLETED, Status.READY):
        return look.paint.status(sign, row.status) + look.paint(line[len(sign) :], "dim")
    return look.paint.status(sign, row.status) + line[len(sign) :]

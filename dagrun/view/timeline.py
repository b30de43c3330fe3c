"""A run as bars over time, in text: what ran when, and what everybody waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagrun.core.names import Status, format_duration
from dagrun.core.tracepath import node_spans, run_critical_path
from dagrun.view.tables import run_line
from dagrun.view.text import PLAIN, Look, pad

if TYPE_CHECKING:
    from dagrun.core.names import RunStatus
    from dagrun.core.state import RunState

_PIPE_WIDTH = 120
_NAME_MAX = 28


def timeline(
    state: RunState, look: Look = PLAIN, *, wall_now: float | None = None, status: RunStatus | None = None
) -> str:
    """One bar for each node that ran, by its start; `*` marks the nodes that took the time."""
    begin, spans = node_spans(state, wall_now)
    width = look.width or _PIPE_WIDTH
    lines = [run_line(state, look, wall_now, status)]
    if not spans:
        return "\n".join([*lines, "no node ran"]) + "\n"
    total = max(max(end for _, end in spans.values()) - begin, 0.001)
    on_path = {step.node for step in run_critical_path(state)}
    name_width = min(_NAME_MAX, max(len(state.plan.ids[i]) for i in spans), max(4, width // 3))
    room = max(4, width - name_width - 13)
    marks = f"0{format_duration(total).rjust(room - 1)}"
    lines.append(look.paint(f"  {' ' * name_width} {marks}", "dim"))
    for i in sorted(spans, key=lambda i: (spans[i][0], i)):
        start, end = spans[i]
        bar = _bar(state, i, begin, total, room, look)
        name = pad(look.cut(state.plan.ids[i], name_width), name_width)
        took = format_duration(end - start)
        mark = "*" if i in on_path else " "
        bar = look.paint.status(bar, state.node_status[i])
        lines.append(f"{mark} {name} {bar} {took.rjust(8)}".rstrip())
    return "\n".join(lines) + "\n"


def _bar(state: RunState, i: int, begin: float, total: float, room: int, look: Look) -> str:
    """The bar of a node: its attempts full, the delays between them and failures shown by their signs."""
    line = [" "] * room
    one = state.engines <= 1
    start = end = begin
    for attempt in state.attempts[i]:
        start = attempt.started_m if one else attempt.started_at
        if line.count(" ") < room:  # the delay since the attempt before
            _fill(line, end - begin, start - begin, total, look.glyphs.empty)
        seconds = attempt.finish.duration_ms / 1000 if attempt.finish else begin + total - start
        end = start + max(0.0, seconds)
        _fill(line, start - begin, end - begin, total, look.glyphs.full)
    if state.node_status[i] is Status.FAILED:
        line[_cell(end - begin, total, room)] = look.glyphs.failed
    return "".join(line)


def _cell(at: float, total: float, room: int) -> int:
    return min(room - 1, max(0, int(room * at / total)))


def _fill(line: list[str], start: float, end: float, total: float, sign: str) -> None:
    first = _cell(start, total, len(line))
    # a bar ends before the cell in which the next one begins, but is never invisible
    last = max(first, min(len(line) - 1, int(len(line) * end / total - 0.001)))
    for k in range(first, last + 1):
        line[k] = sign

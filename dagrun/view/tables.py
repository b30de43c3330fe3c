"""Tables of what happened: `trace show`, the list of runs.

Made by hand: light enough for a command that has to answer at once, and in a pipe (no width)
nothing is cut, coloured or folded. Every text of a node or file goes through `clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dagrun.core.names import RunStatus, Status, format_duration
from dagrun.core.trace import TraceEntry, iso_utc, run_duration_ms, trace_entries
from dagrun.core.tracepath import run_critical_path
from dagrun.core.usage import has_agents, money_of, usage_of_run
from dagrun.view.text import (
    PLAIN,
    Look,
    cells,
    clean,
    counts_text,
    folded,
    glyph,
    money,
    pad,
    plural,
    tokens,
)

if TYPE_CHECKING:
    from dagrun.core.state import RunState

_WARNINGS = 10
_NARROWEST = 8


class Head(NamedTuple):
    """A column: where it has nothing to say in any row it is left out, if `optional`."""

    name: str
    right: bool = False
    optional: bool = False


def table(
    heads: Sequence[Head],
    rows: Sequence[Sequence[str]],
    look: Look = PLAIN,
    style: Callable[[int], str] | None = None,
) -> list[str]:
    """The lines of a table. The last column takes what is left of the look's width, and is cut to it.

    Cells must be clean. `style(k)` names the status that colours the row `k`.
    """
    kept = [c for c, head in enumerate(heads) if not head.optional or any(row[c] for row in rows)]
    widths = [max([len(heads[c].name), *(cells(row[c]) for row in rows)]) for c in kept]
    last = len(kept) - 1
    if look.width is not None:
        room = look.width - sum(widths[:-1]) - 2 * last
        if room < _NARROWEST and last > 0:  # too narrow: the first column, a name, gives way
            widths[0] = min(widths[0], max(_NARROWEST, widths[0] - (_NARROWEST - room)))
            room = look.width - sum(widths[:-1]) - 2 * last
        widths[-1] = max(1, min(widths[-1], room))
    lines = [_table_line([heads[c].name for c in kept], heads, kept, widths, look)]
    lines[0] = look.paint(lines[0], "dim")
    for k, row in enumerate(rows):
        line = _table_line([row[c] for c in kept], heads, kept, widths, look)
        lines.append(look.paint.status(line, style(k)) if style else line)
    return lines


def _table_line(values: list[str], heads: Sequence[Head], kept: list[int], widths: list[int], look: Look) -> str:
    parts = []
    for value, c, width in zip(values, kept, widths, strict=True):
        parts.append(pad(look.cut(value, width) if look.width is not None else value, width, right=heads[c].right))
    line = "  ".join(parts).rstrip()
    return look.cut(line, look.width) if look.width is not None else line


# ---------------------------------------------------------------- trace show

_TRACE = (
    Head("NODE"),
    Head("STATUS"),
    Head("WAVE", right=True),
    Head("TRIES", right=True),
    Head("TIME", right=True),
    Head("MODEL", optional=True),
    Head("TOKENS", right=True, optional=True),
    Head("COST", right=True, optional=True),
    Head("SUMMARY"),
)


def trace_table(
    state: RunState, look: Look = PLAIN, *, wall_now: float | None = None, status: RunStatus | None = None
) -> str:
    """A run, a line for each node by wave; ends with a newline."""
    entries = trace_entries(state, wall_now)
    lines = [run_line(state, look, wall_now, status), *spending_lines(state, look), "", *entry_lines(entries, look)]
    lines += _warnings(state, look)
    path = [step.node_id for step in run_critical_path(state)]
    if len(path) > 1:
        shown = path if len(path) <= 12 or look.width is None else [*path[:6], look.glyphs.ellipsis, *path[-5:]]
        text = f"took the time: {' > '.join(shown)}"
        lines += ["", look.cut(text, look.width) if look.width else text]
    return "\n".join(lines) + "\n"


def _warnings(state: RunState, look: Look) -> list[str]:
    """What a person should know of the run, each once."""
    told = list(dict.fromkeys((w.node, w.text) for w in state.warnings))
    lines = []
    for name, text in told[:_WARNINGS]:
        words = [f"{name}:", *clean(text).split(" ")] if name else clean(text).split(" ")
        lines += folded("warning: ", words, look.width)
    if len(told) > _WARNINGS:
        lines.append(f"and {len(told) - _WARNINGS:,} more warnings: dagrun trace show {state.created.run_id} --json")
    return ["", *(look.paint(line, "yellow") for line in lines)] if lines else []


def spending_lines(state: RunState, look: Look = PLAIN) -> list[str]:
    """What the agents of a run used and spent, in a line; none where there are no agents."""
    if not has_agents(state):
        return []
    used, spent = usage_of_run(state), money_of(state)
    parts = [plural(used.calls, "model call"), f"{used.input:,} tokens in", f"{used.output:,} out"]
    cap = f" of {money(spent.cap)}" if spent.cap is not None else ""
    parts.append(f"spent {money(spent.spent)}{cap}")
    if spent.held:
        parts.append(f"held {money(spent.held)}")
    line = f"  {f' {look.glyphs.dot} '.join(parts)}"
    return [look.cut(line, look.width) if look.width else line]


def run_line(
    state: RunState, look: Look = PLAIN, wall_now: float | None = None, status: RunStatus | None = None
) -> str:
    """A run in one line: name, id, status, time, counts."""
    ended = status or state.status
    word = look.paint.status(ended.value.replace("_", " "), ended)
    took = format_duration(run_duration_ms(state, wall_now) / 1000)
    reason = f"  ({clean(state.ended.reason)})" if state.ended and state.ended.reason else ""
    name = f"{clean(state.created.workflow)} {state.created.run_id}"
    size_ = f"{plural(len(state.plan.ids) - len(state.removed), 'node')}, {plural(state.plan.depth, 'wave')}"
    if state.plan.revision > 1:
        size_ += f", revision {state.plan.revision}"
    return f"{name}  {word} in {took}  {size_}: {counts_text(state.counts)}{reason}"


def entry_lines(entries: Sequence[TraceEntry], look: Look) -> list[str]:
    """The table of some entries: a head, then a line for each."""
    rows = [_entry_row(e, look) for e in entries]
    return table(_TRACE, rows, look, lambda k: _row_style(entries[k].status))


def _row_style(status: Status) -> str:
    return "" if status is Status.COMPLETED else status.value


def _entry_row(entry: TraceEntry, look: Look) -> tuple[str, ...]:
    used = entry.agent
    why = "" if entry.status is Status.COMPLETED else entry.error
    summary = "" if why and why.startswith(entry.output_summary.rstrip("…")) else entry.output_summary
    text = ": ".join(dict.fromkeys(clean(t) for t in (why, entry.reason, summary) if t))
    return (
        entry.node_id,
        f"{glyph(look.glyphs, entry.status)} {entry.status.value.replace('_', ' ')}",
        str(entry.wave),
        str(len(entry.attempts) or ""),
        format_duration(entry.duration_ms / 1000) if entry.attempts else "",
        clean(entry.model or ""),
        tokens(used.tokens) if used and used.tokens else "",
        money(used.spent) if used and used.spent else "",
        text or clean(entry.title),
    )


# ---------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run in the list of runs. Times in seconds, `spent` in nano-dollars; `done` of `nodes` are settled."""

    run_id: str
    workflow: str
    status: RunStatus
    created_at: float
    duration_s: float
    nodes: int = 0
    done: int = 0
    failed: int = 0
    spent: int = 0
    note: str = ""


_RUNS = (
    Head("RUN"),
    Head("WORKFLOW"),
    Head("STATUS"),
    Head("STARTED"),
    Head("TIME", right=True),
    Head("NODES", right=True),
    Head("FAILED", right=True, optional=True),
    Head("COST", right=True, optional=True),
    Head("NOTE", optional=True),
)


def runs_table(rows: Sequence[RunRow], now: float, look: Look = PLAIN) -> str:
    """The list of runs, in the order given; times are relative on a terminal, ISO in a pipe."""
    if not rows:
        return "no runs here yet: dagrun execute FILE\n"
    cells_ = [
        (
            row.run_id,
            clean(row.workflow),
            row.status.value.replace("_", " "),
            ago(now - row.created_at) if look.width is not None else iso_utc(row.created_at),
            format_duration(row.duration_s),
            f"{row.done:,}/{row.nodes:,}",
            f"{row.failed:,}" if row.failed else "",
            money(row.spent) if row.spent else "",
            clean(row.note),
        )
        for row in rows
    ]
    return "\n".join(table(_RUNS, cells_, look, lambda k: rows[k].status.value)) + "\n"


def ago(seconds: float) -> str:
    """`just now`, `3m ago`, `2h ago`, `5d ago`."""
    if seconds < 60:
        return "just now" if seconds < 5 else f"{int(seconds)}s ago"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit} ago"
    return ""

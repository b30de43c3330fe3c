"""Tables of what happened: `trace show`, one node in detail, failures, the list of runs.

Made by hand: light enough for a command that has to answer at once, and in a pipe (no width)
nothing is cut, coloured or folded. Every text of a node or file goes through `clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from typing import TYPE_CHECKING, NamedTuple

from dagrun.core.names import Json, RunStatus, Status, format_duration
from dagrun.core.trace import (
    TraceAttempt,
    TraceEntry,
    iso_utc,
    run_critical_path,
    run_duration_ms,
    trace_entries,
    trace_entry,
)
from dagrun.view.text import (
    PLAIN,
    Look,
    cells,
    clean,
    counts_text,
    folded,
    glyph,
    last_lines,
    pad,
    plural,
    size,
)

if TYPE_CHECKING:
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Node

_TAIL_LINES = 20
_WARNINGS = 10
_NARROWEST = 8
_WHOLE = frozenset(("error", "reason", "confined", "limited", "warning"))  # never cut: they say what to do


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
    lines = [run_line(state, look, wall_now, status), "", *_entry_lines(entries, look)]
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


def failures_table(state: RunState, look: Look = PLAIN, *, wall_now: float | None = None) -> str:
    """What did not go well: failed and cancelled nodes, and how to see their output."""
    bad = [
        trace_entry(state, i, wall_now)
        for i, s in enumerate(state.node_status)
        if s in (Status.FAILED, Status.CANCELLED, Status.RETRYING, Status.SUPERSEDED) and i not in state.removed
    ]
    bad.sort(key=lambda e: (e.status is not Status.FAILED, e.wave))
    lines = [run_line(state, look, wall_now), ""]
    if not bad:
        return "\n".join([*lines, "no node failed"]) + "\n"
    lines += _entry_lines(bad, look)
    lines += ["", f"dagrun logs {state.created.run_id} {bad[0].node_id}"]
    return "\n".join(lines) + "\n"


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


def _entry_lines(entries: Sequence[TraceEntry], look: Look) -> list[str]:
    rows = [_entry_row(e, look) for e in entries]
    return table(_TRACE, rows, look, lambda k: _row_style(entries[k].status))


def _row_style(status: Status) -> str:
    return "" if status is Status.COMPLETED else status.value


def _entry_row(entry: TraceEntry, look: Look) -> tuple[str, ...]:
    tokens = entry.input_tokens + entry.output_tokens
    why = "" if entry.status is Status.COMPLETED else entry.error
    text = ": ".join(dict.fromkeys(clean(t) for t in (why, entry.reason, entry.output_summary) if t))
    return (
        entry.node_id,
        f"{glyph(look.glyphs, entry.status)} {entry.status.value.replace('_', ' ')}",
        str(entry.wave),
        str(len(entry.attempts) or ""),
        format_duration(entry.duration_ms / 1000) if entry.attempts else "",
        clean(entry.model or ""),
        f"{tokens:,}" if tokens else "",
        f"${entry.cost_usd:.4f}" if entry.cost_usd else "",
        text or clean(entry.title),
    )


# ---------------------------------------------------------------- trace show --node

_ATTEMPT = (
    Head("TRY", right=True),
    Head("OUTCOME"),
    Head("STARTED"),
    Head("TIME", right=True),
    Head("CPU", right=True, optional=True),
    Head("MEMORY", right=True, optional=True),
    Head("WHY"),
)


def node_detail(
    state: RunState,
    i: int,
    look: Look = PLAIN,
    *,
    read: Callable[[int], bytes] | None = None,
    wall_now: float | None = None,
) -> str:
    """All that is known of one node. `read(i)` gives the last bytes that it wrote."""
    from dagrun.view.confined import held_to, warnings_of

    entry = trace_entry(state, i, wall_now)
    node = state.plan.nodes[i]
    word = look.paint.status(f"{glyph(look.glyphs, entry.status)} {entry.status.value.replace('_', ' ')}", entry.status)
    lines = [f"{look.paint(entry.node_id, 'bold')}  {word}  {clean(state.created.workflow)} {entry.run_id}"]
    output = read(i) if read else b""
    held = held_to(state, i, output)
    command = node.run if isinstance(node.run, str) else " ".join(node.run)
    first, _, rest = command.strip().partition("\n")
    facts = {
        "title": node.title,
        "error": entry.error,
        "reason": entry.reason,
        "summary": entry.output_summary,
        "wave": f"{entry.wave} of {state.plan.depth}",
        "review": node.review.message or "yes" if node.review else "",
        "run": first + (f" {look.glyphs.ellipsis}" if rest else ""),
        "if": node.condition,
        "needs": _names(state, state.plan.needs[i]),
        "needed by": _names(state, state.plan.dependents[i]),
        "isolation": entry.isolation + (f", held by {entry.sandbox}" if entry.sandbox else ""),
        **({held.by: held.text} if held else {}),
        "warning": "; ".join(warnings_of(state, i)),
        "timeout": _timeout(node),
        "output": f"{size(entry.stdout_bytes)} stdout, {size(entry.stderr_bytes)} stderr" if entry.attempts else "",
        "inputs": entry.inputs_digest,
        "outputs": entry.outputs_digest,
    }
    lines += [_fact(name, value, look) for name, value in facts.items() if value]
    if entry.attempts:
        rows = [_attempt_row(a, look) for a in entry.attempts]
        lines += ["", *table(_ATTEMPT, rows, look)]
    lines += _values(state.outputs.get(i, {}), look)
    shown = last_lines(output, _TAIL_LINES)
    if shown:
        width = (look.width or 10_000) - 2
        lines += ["", look.paint(f"last output (all of it: dagrun logs {entry.run_id} {entry.node_id})", "dim")]
        lines += [f"| {look.cut(line, width)}" for line in shown]
    return "\n".join(lines) + "\n"


def _timeout(node: Node) -> str:
    if node.review is None:
        return format_duration(node.timeout_s)
    limit = node.review.timeout_s
    return f"{format_duration(limit)}, then {node.review.on_timeout}" if limit is not None else ""


def _fact(name: str, value: str, look: Look) -> str:
    head = f"  {name.ljust(10)} "
    if name in _WHOLE:
        return "\n".join(folded(head, clean(value).split(" "), look.width))
    line = head + clean(value)
    return look.cut(line, look.width) if look.width else line


def _names(state: RunState, numbers: Sequence[int]) -> str:
    shown = ", ".join(state.plan.ids[d] for d in numbers[:20])
    return shown + (f" and {len(numbers) - 20:,} more" if len(numbers) > 20 else "")


def _attempt_row(attempt: TraceAttempt, look: Look) -> tuple[str, ...]:
    word = attempt.outcome.value.replace("_", " ") if attempt.outcome else "running"
    return (
        str(attempt.number),
        word,
        f"{attempt.started_at[:10]} {attempt.started_at[11:19]}Z",
        format_duration(attempt.duration_ms / 1000),
        format_duration(attempt.cpu_ms / 1000) if attempt.cpu_ms is not None else "",
        size(attempt.max_rss_bytes) if attempt.max_rss_bytes is not None else "",
        clean(attempt.error),
    )


def _values(outputs: Mapping[str, Json], look: Look) -> list[str]:
    """The outputs of a node as the journal has them: small ones as values, large ones as digests."""
    lines = []
    for name, held in outputs.items():
        if isinstance(held, dict) and "v" in held:
            value = held["v"]
            text = value if isinstance(value, str) else dumps(value, ensure_ascii=False)
        elif isinstance(held, dict):
            text = f"{size(int(str(held.get('size', 0))))}, sha256 {held.get('sha', '')}"
        else:
            text = dumps(held, ensure_ascii=False)
        line = f"  {name}: {clean(text)}"
        lines.append(look.cut(line, look.width) if look.width else line)
    return ["", "outputs", *lines] if lines else []


# ---------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run in the list of runs. Times in seconds; `done` of `nodes` are settled."""

    run_id: str
    workflow: str
    status: RunStatus
    created_at: float
    duration_s: float
    nodes: int = 0
    done: int = 0
    failed: int = 0
    note: str = ""


_RUNS = (
    Head("RUN"),
    Head("WORKFLOW"),
    Head("STATUS"),
    Head("STARTED"),
    Head("TIME", right=True),
    Head("NODES", right=True),
    Head("FAILED", right=True, optional=True),
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

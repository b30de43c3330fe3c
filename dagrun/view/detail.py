"""One node in detail, and what did not go well: `trace show --node`, `trace show --failures`.

As in tables.py nothing is cut in a pipe, and every text of a node, a model or a file goes through `clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from json import dumps
from typing import TYPE_CHECKING

from dagrun.core.names import Json, Status, format_duration
from dagrun.core.trace import TraceAttempt, TraceEntry, trace_entry
from dagrun.view.conversation import Conversations, Get, conversation_lines
from dagrun.view.failing import failure_lines
from dagrun.view.tables import Head, entry_lines, run_line, spending_lines, table
from dagrun.view.text import PLAIN, Look, clean, folded, glyph, last_lines, money, plural, size, tokens

if TYPE_CHECKING:
    from dagrun.core.state import RunState
    from dagrun.core.usage import Usage
    from dagrun.core.workflow import Node

_TAIL_LINES = 20
_WHOLE = frozenset(("error", "reason", "confined", "limited", "warning"))  # never cut: they say what to do


def _gone(ref: Mapping[str, Json]) -> Json:
    return None


def failures_table(
    state: RunState,
    look: Look = PLAIN,
    *,
    wall_now: float | None = None,
    said: Conversations | None = None,
    get: Get = _gone,
) -> str:
    """What did not go well: failed and cancelled nodes, and how to see their output.

    `said` are the conversations of agents, whose references `get` reads.
    """
    bad = [
        trace_entry(state, i, wall_now)
        for i, s in enumerate(state.node_status)
        if s in (Status.FAILED, Status.CANCELLED, Status.RETRYING, Status.SUPERSEDED) and i not in state.removed
    ]
    bad.sort(key=lambda e: (e.status is not Status.FAILED, e.wave))
    lines = [run_line(state, look, wall_now), *spending_lines(state, look), ""]
    if not bad:
        return "\n".join([*lines, "no node failed"]) + "\n"
    lines += entry_lines(bad, look)
    for entry in bad:
        steps = (said or {}).get((entry.node_id, len(entry.attempts)), ())
        why = failure_lines(state, state.plan.index[entry.node_id], steps, get, look)
        if why or (entry.agent is not None and entry.attempts and entry.status is Status.FAILED):
            lines += ["", *_agent_failure(entry, look), *why]
    lines += ["", f"dagrun logs {state.created.run_id} {bad[0].node_id}"]
    return "\n".join(lines) + "\n"


def _agent_failure(entry: TraceEntry, look: Look) -> list[str]:
    outcome = entry.attempts[-1].outcome
    word = outcome.value.replace("_", " ") if outcome else "running"
    text = f"{word}: {clean(entry.error)}" if entry.error and entry.error != word else word
    return folded(f"  {entry.node_id}: ", text.split(" "), look.width)


_ATTEMPT = (
    Head("TRY", right=True),
    Head("OUTCOME"),
    Head("STARTED"),
    Head("TIME", right=True),
    Head("CPU", right=True, optional=True),
    Head("MEMORY", right=True, optional=True),
    Head("TOKENS", right=True, optional=True),
    Head("COST", right=True, optional=True),
    Head("WHY"),
)


def node_detail(
    state: RunState,
    i: int,
    look: Look = PLAIN,
    *,
    read: Callable[[int], bytes] | None = None,
    wall_now: float | None = None,
    said: Conversations | None = None,
    get: Get = _gone,
    full: bool = False,
) -> str:
    """All that is known of one node. `read(i)` gives the last bytes that it wrote.

    `said` are the conversations of agents, whose references `get` reads; with `full` all of their texts.
    """
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
        **_agent_facts(entry.agent, state.plan.workflow.models),
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
    for attempt in entry.attempts:
        steps = (said or {}).get((entry.node_id, attempt.number), ())
        if steps:
            title = f"conversation of try {attempt.number}" + ("" if full else "  (with its texts: --full)")
            lines += ["", look.paint(title, "dim"), *conversation_lines(steps, get, look, full=full)]
    lines += _values(state.outputs.get(i, {}), look)
    shown = last_lines(output, _TAIL_LINES)
    if shown:
        width = (look.width or 10_000) - 2
        lines += ["", look.paint(f"last output (all of it: dagrun logs {entry.run_id} {entry.node_id})", "dim")]
        lines += [f"| {look.cut(line, width)}" for line in shown]
    return "\n".join(lines) + "\n"


def _agent_facts(used: Usage | None, tiers: Collection[str]) -> dict[str, str]:
    """What an agent asked, used and spent, in words; a tier that nobody declared is not worth one."""
    if used is None:
        return {}
    cached = f" ({used.cached:,} cached)" if used.cached else ""
    thought = f" ({used.reasoning:,} thought)" if used.reasoning else ""
    repeated = f", {used.repeats:,} repeated" if used.repeats else ""
    reused = f", {used.reused:,} reused" if used.reused else ""
    answered = ", ".join(f"{model} {count}x" if count > 1 else model for model, count in used.models.items())
    named = used.asked in tiers or "/" in used.asked
    asked = f"{used.asked} asked" if named and used.asked not in used.models else ""
    held = f", {money(used.held)} held" if used.held else ""
    first = used.first_token_ms
    return {
        "model": "; ".join(text for text in (answered, asked) if text),
        "provider": used.provider,
        "tokens": f"{used.input:,} in{cached}, {used.output:,} out{thought}" if used.calls else "",
        "cost": f"{money(used.spent)}{held}" if used.calls else "",
        "calls": f"{used.calls:,} in {plural(used.turns, 'turn')}{repeated}{reused}" if used.calls else "",
        "first": f"{first / 1000:.1f}s to the first token" if first is not None else "",
        "tools": ", ".join(f"{name} {count}x" if count > 1 else name for name, count in used.tools.items()),
        "skills": ", ".join(f"{name} {digest[:12]}".rstrip() for name, digest in used.skills.items()),
    }


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
        tokens(attempt.agent.tokens) if attempt.agent and attempt.agent.tokens else "",
        money(attempt.agent.spent) if attempt.agent and attempt.agent.spent else "",
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

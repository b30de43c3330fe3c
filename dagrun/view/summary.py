"""The last words of a run in a terminal: how it ended, why, and the next command to type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from json import dumps
from typing import TYPE_CHECKING

from dagrun.core.names import Json, Outcome, RunStatus, Status, format_duration
from dagrun.core.state import wave_of
from dagrun.core.trace import cause, run_duration_ms
from dagrun.view.tables import spending_lines
from dagrun.view.text import PLAIN, Look, clean, counts_text, last_lines, money

if TYPE_CHECKING:
    from dagrun.core.state import RunState

_NODES = 5  # failed nodes told in full
_OUTPUT_LINES = 5
_OUTPUT_BYTES = 16 * 1024
_NAMES = 6
_SHORT = 20  # characters of a reason that may be said for every attempt
_WHYS = 200  # characters of the reasons of all attempts; of longer ones only the last is told


def end_summary(
    state: RunState,
    *,
    read: Callable[[int], bytes] | None = None,
    look: Look = PLAIN,
    outputs: Mapping[str, Json] | None = None,
    line_of: Callable[[int], int] | None = None,
    status: RunStatus | None = None,
) -> str:
    """How the run ended, for a person; ends with a newline.

    `read(i)` gives the last bytes that node `i` wrote in its last attempt, stderr if there is
    any, `line_of(i)` its line in the file or 0. `outputs` are those of the workflow (default:
    what the run ended with), `status` is given where the caller knows better (a crashed run).
    """
    ended = status or state.status
    lines = [_head(state, ended, look), *spending_lines(state, look)]
    failed = failed_nodes(state)
    for i in failed[:_NODES]:
        lines += _node(state, i, read, look, line_of)
    run = state.created.run_id
    if len(failed) > _NODES:
        lines.append(f"  and {len(failed) - _NODES:,} more failed: dagrun trace show {run} --failures")
    lines += _allowed(state)
    lines += _reviews(state, look)
    if ended is RunStatus.COMPLETED:
        shown = outputs if outputs is not None else (state.ended.outputs if state.ended else {})
        lines += [_output(name, value, look) for name, value in shown.items()]
    hints = _hints(state, ended, failed)
    wide = max((len(what) for what, _ in hints), default=0)
    lines += [f"  {look.paint(what.ljust(wide), 'dim')}  {command}" for what, command in hints]
    return "\n".join(lines) + "\n"


def failed_nodes(state: RunState) -> list[int]:
    """The nodes that make the run fail, in the order in which they settled. O(nodes that ran)."""
    nodes, statuses = state.plan.nodes, state.node_status
    settled = dict.fromkeys(state.finished)
    gone = state.removed
    return [i for i in settled if statuses[i] is Status.FAILED and not nodes[i].continue_on_error and i not in gone]


def _head(state: RunState, status: RunStatus, look: Look) -> str:
    took = format_duration(run_duration_ms(state) / 1000)
    counts = dict(state.counts)
    waiting = (Status.PENDING, Status.READY, Status.RETRYING, Status.RUNNING, Status.CANCELLED)
    tried = zip(state.node_status, state.attempts, strict=True) if counts.get(Status.CANCELLED) else ()
    cut_off = sum(s is Status.CANCELLED and bool(attempts) for s, attempts in tried)
    # a person doesn't care by which rule a node did not run, once it is over
    not_run = sum(counts.pop(s, 0) for s in waiting)
    by_dependency = sum(reason == "dependency" for reason in state.skips.values())
    counts[Status.SKIPPED] = counts.get(Status.SKIPPED, 0) - by_dependency
    not_run += by_dependency - cut_off
    counts[Status.CANCELLED] = cut_off
    parts = counts_text(counts)
    if not_run:
        parts = f"{parts}, {not_run:,} not run" if parts else f"{not_run:,} not run"
    word = look.paint.status(status.value.upper().replace("_", " "), status)
    reason = state.ended.reason if state.ended else ""
    line = f"{word}  {clean(state.created.workflow)} {state.created.run_id}  in {took}  {parts}"
    return f"{line}  ({clean(reason)})" if reason else line


def _node(
    state: RunState,
    i: int,
    read: Callable[[int], bytes] | None,
    look: Look,
    line_of: Callable[[int], int] | None,
) -> list[str]:
    """What is to be said of one failed node."""
    node = state.plan.nodes[i]
    tried = state.attempts[i]
    whys = [cause(a.finish, node) if a.finish else "" for a in tried if a.outcome is not Outcome.CANCELLED]
    again = len(whys) > 1 and len(whys[0]) > _SHORT and len(set(whys)) == 1
    if again:
        whys = whys[:1]
    if len(whys) > 1 and sum(map(len, whys)) > _WHYS:
        whys = [look.glyphs.ellipsis, whys[-1]]
    if len(whys) > 4:
        whys = [*whys[:3], look.glyphs.ellipsis, whys[-1]]
    place = f"wave {wave_of(state, i)}"
    tries = f"{place}, {len(tried)} {'try' if len(tried) == 1 else 'tries'}{', each time' if again else ''}: "
    said = ", ".join(map(clean, whys)) or "never started"
    line = line_of(i) if line_of else 0
    where = f"   {clean(state.created.file)}:{line}" if line else ""
    sign = look.paint(look.glyphs.failed, "red")
    lines = [f"{sign} {look.paint(node.id, 'bold')}  ({tries}{said}){where}"]
    from dagrun.view.confined import notes  # patterns that a run without failures has no use for

    output = read(i) if read else b""
    lines += _output_lines(output, look)
    lines += notes(state, i, output, look)
    blocked = _blocked(state, i)
    if blocked:
        lines.append(f"  blocks: {blocked}")
    return lines


def _output_lines(data: bytes, look: Look) -> list[str]:
    shown = last_lines(data[-_OUTPUT_BYTES:], _OUTPUT_LINES + 1)
    more = len(shown) > _OUTPUT_LINES
    width = (look.width or 160) - 6
    lines = [f"    | {look.cut(line, width)}" for line in shown[-_OUTPUT_LINES:]]
    return [f"    | {look.glyphs.ellipsis}", *lines] if more else lines


def _blocked(state: RunState, i: int) -> str:
    """The nodes below that did not run, nearest first."""
    below = [d for d in state.plan.downstream(i) if state.skips.get(d) == "dependency"]
    below.sort(key=lambda d: (state.plan.wave[d], d))
    names = [state.plan.ids[d] for d in below[:_NAMES]]
    more = len(below) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def _allowed(state: RunState) -> list[str]:
    nodes, statuses = state.plan.nodes, state.node_status
    if not state.counts.get(Status.FAILED):
        return []
    found = (i for i in dict.fromkeys(state.finished) if statuses[i] is Status.FAILED and nodes[i].continue_on_error)
    names = [nodes[i].id for i in islice(found, _NAMES)]
    return [f"  failed, but may (continue_on_error): {', '.join(names)}"] if names else []


def _reviews(state: RunState, look: Look) -> list[str]:
    """What waits for a human."""
    lines = []
    for i, asked in islice(state.reviews.items(), _NODES):
        name = look.paint(state.plan.ids[i], "bold")
        lines.append(f"{look.paint(look.glyphs.waiting, 'yellow')} {name}  {clean(asked.message)}".rstrip())
    for number, proposal in islice(state.proposals.items(), _NODES):
        sign = look.paint(look.glyphs.waiting, "yellow")
        lines.append(f"{sign} proposal {number} by {clean(proposal.by)}  {clean(proposal.why)}".rstrip())
    return lines


def _output(name: str, value: Json, look: Look) -> str:
    text = value if isinstance(value, str) else dumps(value, ensure_ascii=False)
    shown = f"  {name}: {clean(text.rstrip())}"
    return look.cut(shown, look.width) if look.width else shown


def _hints(state: RunState, status: RunStatus, failed: list[int]) -> list[tuple[str, str]]:
    """(what it is for, command) of what to type next."""
    run = state.created.run_id
    if status is RunStatus.COMPLETED:
        return []
    hints = []
    if status is RunStatus.NEEDS_REVIEW:
        return [("decide", f"dagrun review {run}"), ("see what was done", f"dagrun trace show {run}")]
    if failed:
        from dagrun.view.confined import ways_on

        broke = [i for i in failed if state.attempts[i] and state.attempts[i][-1].outcome is Outcome.OVER_BUDGET]
        first = broke[0] if broke else failed[0]
        name = state.plan.ids[first]
        hints += [
            _more_money(state, name) if broke else ("fixed the cause? go on", _go_on(state)),
            *ways_on(state, first),
            ("see its output", f"dagrun logs {run} {name}"),
            ("see everything", f"dagrun trace show {run} --node {name}"),
        ]
    else:
        hints += [("go on", _go_on(state)), ("see what was done", f"dagrun trace show {run}")]
    return hints


def _go_on(state: RunState) -> str:
    """A run that plays another one again can't leave its record: it is played from the beginning."""
    if not state.created.replay_of:
        return f"dagrun resume {state.created.run_id}"
    return again_text(state)


def again_text(state: RunState) -> str:
    """The command that plays again what this run has played."""
    from shlex import quote

    file = quote(clean(state.created.file)) if state.created.file else "FILE"
    return f"dagrun execute {file} --replay {quote(clean(state.created.replay_of))}"


def _more_money(state: RunState, name: str) -> tuple[str, str]:
    """How to go on where money ran out. The run's cap is raised in the file, and what was paid for is taken over."""
    from shlex import quote

    ledger = state.ledger
    own = ledger.cap(f"node:{name}") if ledger is not None else None
    whole = ledger.cap("run") if ledger is not None else None
    if ledger is not None and own is not None and (whole is None or whole - ledger.spent("run") >= own):
        cap = money(2 * own).removeprefix("$")
        again = f"dagrun replan {state.created.run_id} --set {name}.permissions.cost_budget={cap} --retry {name}"
        return "more money? try again", f"{again} --resume"
    file = quote(clean(state.created.file)) if state.created.file else "FILE"
    return "raise cost_budget, go on there", f"dagrun execute {file} --from {name} --outputs-of {state.created.run_id}"

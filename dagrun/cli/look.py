"""status, outputs: how a run stands, and what it gave."""

from __future__ import annotations

import sys
from time import time
from typing import TYPE_CHECKING, cast

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for, say
from dagrun.cli.groups import command, node_number, run_and_node
from dagrun.core.names import Json, RunStatus, Status, format_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagrun.core.state import RunState
    from dagrun.store.rundir import RunDir
    from dagrun.view.text import Look

ROWS = 20  # of each list of a status: one screen
VALUE_WIDTH = 2000  # characters of a value in a terminal
_WORDS = typer.Argument(None, metavar="[RUN] [NODE]", show_default=False, help="Of a node, or of the workflow.")
ARGUMENT = typer.Argument("last", metavar="[RUN]", show_default=False, help="Id, start of one, or last.")


@command("status", "dagrun status\ndagrun status r7k2 --json")
def status(
    ctx: typer.Context,
    run: str = ARGUMENT,
    exit_code: bool = typer.Option(False, "--exit-code", help="Exit 10 while it goes on, else as the run did."),
) -> None:
    """How a run stands, on one screen: what runs, what waits for what, what failed, who works on it."""
    from dagrun.store.history import load_state, run_status
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    found = find_run(".", run)
    state = load_state(found)
    now = run_status(found, state)
    if settings.json:
        emit_json(_status_json(found, state, now))
    else:
        _status_text(settings, found, state, now)
    if exit_code:
        going = now in (RunStatus.RUNNING, RunStatus.INTERRUPTED) and state.ended is None  # changed, not yet resumed
        raise typer.Exit(10 if going else state.ended.exit_code if state.ended else 8)


def last_run_line() -> str:
    """The last run of this project in one line, with what to type about it."""
    from dagrun.store.history import load_state, run_status
    from dagrun.store.rundir import find_run
    from dagrun.view.text import clean

    run = find_run(".", None)
    state = load_state(run)
    age = format_duration(time() - (state.ended_at or state.now))
    line = f"last run: {clean(state.created.workflow)} {run.id} {run_status(run, state)}, {age} ago"
    return f"{line}\n  dagrun status {run.id}"


def _status_json(run: RunDir, state: RunState, now: RunStatus) -> dict[str, object]:
    from dagrun.core.trace import totals

    ids = state.plan.ids
    return {
        "run_id": run.id,
        "workflow": state.created.workflow,
        "status": now,
        "revision": state.plan.revision,
        "exit_code": state.ended.exit_code if state.ended else None,
        "holder": run.lock_holder(),
        "running": [ids[i] for i in state.running],
        "failed": [ids[i] for i in _having(state, Status.FAILED)],
        "blocked": {ids[i]: why for i, why in _blocked(state, now)},
        "totals": totals(state),
    }


def _having(state: RunState, wanted: Status) -> list[int]:
    return [i for i, status in enumerate(state.node_status) if status is wanted]


def _blocked(state: RunState, run_status: RunStatus) -> list[tuple[int, str]]:
    """The nodes that wait, and for what."""
    found = []
    for i, now in enumerate(state.node_status):
        if now is Status.READY:
            found.append((i, "a free slot" if run_status is RunStatus.RUNNING else "an engine"))
        elif now is Status.RETRYING:
            most = state.plan.nodes[i].retry.max_attempts
            found.append((i, f"its next attempt, {len(state.attempts[i]) + 1} of {most}"))
        elif now is Status.AWAITING_REVIEW:
            found.append((i, "a human"))
        elif now is Status.PENDING:
            found.append((i, _waits_for(state, i)))
    return found


def _waits_for(state: RunState, i: int) -> str:
    from dagrun.core.names import SETTLED

    open_needs = [state.plan.ids[d] for d in state.plan.needs[i] if state.node_status[d] not in SETTLED]
    if not open_needs:
        return f"wave {state.wave} to end"
    return ", ".join(open_needs[:3]) + (f" and {len(open_needs) - 3} more" if len(open_needs) > 3 else "")


def _status_text(settings: Settings, run: RunDir, state: RunState, now: RunStatus) -> None:
    from dagrun.core.trace import cause, run_duration_ms
    from dagrun.view.tables import spending_lines
    from dagrun.view.text import clean, counts_text

    look = look_for(settings, sys.stdout)
    moment = time() if now is RunStatus.RUNNING else None
    took = format_duration(run_duration_ms(state, moment) / 1000)
    word = look.paint.status(str(now).replace("_", " "), now)
    revision = f"  revision {state.plan.revision}" if state.plan.revision > 1 else ""
    emit(f"{clean(state.created.workflow)} {run.id}  {word}  {took}  wave {_wave(state)}{revision}")
    emit(f"  {counts_text(state.counts) or 'no nodes'}")
    for line in spending_lines(state, look):
        emit(line)
    holder = run.lock_holder()
    if holder:
        emit(f"  executed by pid {holder.get('pid')} on {clean(str(holder.get('host', 'this machine')))}")
    if state.ended is not None and state.ended.reason:
        emit(f"  {clean(state.ended.reason)}")
    failed = []
    for i in _having(state, Status.FAILED):
        finish = state.attempts[i][-1].finish
        failed.append((i, cause(finish, state.plan.nodes[i]) if finish else ""))
    _rows(look, state, "failed", failed)
    if now is RunStatus.RUNNING:
        ages = [(i, f"{format_duration(time() - a.started_at)}, attempt {a.number}") for i, a in state.running.items()]
        _rows(look, state, "running", ages)
    _rows(look, state, "waits for", _blocked(state, now))
    for line in next_commands(run, state, now):
        emit(f"  {settings.hint(line)}")


def _wave(state: RunState) -> str:
    return f"{min(state.wave, state.plan.depth)} of {state.plan.depth}"


def _rows(look: Look, state: RunState, title: str, rows: list[tuple[int, str]]) -> None:
    from dagrun.view.text import clean, glyph

    if not rows:
        return
    emit(f"{title}:")
    width = max(len(state.plan.ids[i]) for i, _ in rows[:ROWS])
    for i, text in rows[:ROWS]:
        now = state.node_status[i]
        line = f"{state.plan.ids[i]:<{width}}  {clean(text)}"
        room = (look.width or 10_000) - 4
        emit(f"  {look.paint.status(glyph(look.glyphs, now), now)} {look.cut(line, room)}".rstrip())
    if len(rows) > ROWS:
        emit(f"  and {len(rows) - ROWS} more")


def next_commands(run: RunDir, state: RunState, now: RunStatus) -> list[str]:
    """What to type about a run that stands so."""
    if now is RunStatus.COMPLETED:
        return [f"dagrun outputs {run.id}"] if state.ended and state.ended.outputs else [f"dagrun trace show {run.id}"]
    if now is RunStatus.RUNNING:
        return [f"dagrun trace follow {run.id}"]
    if now is RunStatus.NEEDS_REVIEW:
        return [f"dagrun review {run.id}"]
    found = [f"dagrun logs {run.id} {state.plan.ids[i]}" for i in _having(state, Status.FAILED)[:1]]
    if state.created.replay_of:
        from dagrun.view.summary import again_text

        return [*found, again_text(state)]
    return [*found, f"dagrun resume {run.id}"]


# ---------------------------------------------------------------- outputs


@command("outputs", "dagrun outputs\ndagrun outputs build --json\ndagrun outputs r7k2 build")
def outputs(
    ctx: typer.Context,
    words: list[str] = _WORDS,
) -> None:
    """The outputs of a workflow that has ended, or of a node that has completed."""
    from dagrun.store.history import load_state
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    run_text, node = run_and_node(words or [], node_needed=False)
    run = find_run(".", run_text)
    state = load_state(run)
    values = _node_outputs(run, state, node) if node else _workflow_outputs(run, state)
    if settings.json:
        emit_json({"run_id": run.id, "node_id": node, "outputs": values})
    elif values:
        show_values(values)
    else:
        say(_no_outputs(settings, run, state, node))


def _workflow_outputs(run: RunDir, state: RunState) -> dict[str, Json]:
    return resolved(run, state.ended.outputs) if state.ended else {}


def _node_outputs(run: RunDir, state: RunState, node: str) -> dict[str, Json]:
    i = node_number(state.plan.index, node, run.id)
    return resolved(run, state.outputs.get(i, {}))


def resolved(run: RunDir, refs: Mapping[str, Json]) -> dict[str, Json]:
    """The values of references of the context store. Raises EnvironmentFault when one is gone."""
    from dagrun.store.context import ContextStore

    store = ContextStore(run)
    return {name: store.get(cast("dict[str, Json]", ref)) for name, ref in refs.items()}


def show_values(values: Mapping[str, Json]) -> None:
    """`name = value` lines on stdout: text as it is, without its last newline, anything else as JSON."""
    from json import dumps

    from dagrun.cli.console import is_terminal
    from dagrun.view.text import clean_block, cut

    screen = is_terminal(sys.stdout)
    for name, value in values.items():
        text = value if isinstance(value, str) else dumps(value, ensure_ascii=False)
        text = text.removesuffix("\n")
        if screen:
            text = "\n".join(cut(line, VALUE_WIDTH) for line in clean_block(text).split("\n"))
        emit(f"{name} = {text}")


def _no_outputs(settings: Settings, run: RunDir, state: RunState, node: str | None) -> str:
    if node:
        now = state.node_status[state.plan.index[node]]
        return f"{node} has no outputs ({now})"
    what = "gave no outputs" if state.ended else "has not ended"
    nodes = [state.plan.ids[i] for i in state.outputs]
    hint = f"of a node: dagrun outputs {run.id} {nodes[0]}" if nodes else f"dagrun trace show {run.id}"
    return f"run {run.id} {what}\n  help: {settings.hint(hint)}"

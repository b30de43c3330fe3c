"""trace: what happened in a run, after it and while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import monotonic, time
from typing import TYPE_CHECKING, ClassVar, cast

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for, say
from dagrun.cli.groups import Entry, LazyGroup, command, group, node_number
from dagrun.cli.look import ARGUMENT
from dagrun.core.names import Json, RunStatus
from dagrun.errors import UsageError

if TYPE_CHECKING:
    from dagrun.cli.show import Show
    from dagrun.core.state import RunState
    from dagrun.store.history import Follower
    from dagrun.store.rundir import RunDir
    from dagrun.view.text import Look

LOOK_S = 2.0
POLL_S = 0.25


class _Trace(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = {
        "show": Entry("dagrun.cli.trace", "show", "What happened, node by node."),
        "list": Entry("dagrun.cli.runs", "list_runs", "The runs of this project."),
        "follow": Entry("dagrun.cli.trace", "follow", "Watch a run from another terminal."),
        "export": Entry("dagrun.cli.otlp", "export", "A run as OpenTelemetry spans."),
        "diff": Entry("dagrun.cli.tracediff", "diff", "What went another way in one run than in another."),
    }


def _trace() -> None:
    """What happened in a run, and what happens now."""


trace = group(_Trace, _trace, "dagrun trace show\ndagrun trace show r7k2 --node build\ndagrun trace follow")


@command(
    "show",
    "dagrun trace show\n"
    "dagrun trace show r7k2 --node build\n"
    "dagrun trace show --node writer --full     # what an agent and its model said\n"
    "dagrun trace show --timeline\n"
    "dagrun trace show --json | jq '.entries[].duration_ms'",
)
def show(
    ctx: typer.Context,
    run: str = ARGUMENT,
    node: str = typer.Option("", "--node", metavar="NODE", show_default=False, help="All that is known of one node."),
    failures: bool = typer.Option(False, "--failures", help="Only what failed or was cancelled."),
    timeline: bool = typer.Option(False, "--timeline", help="A bar for each node, by time."),
    full: bool = typer.Option(False, "--full", help="With --node: the texts of an agent's conversation too."),
) -> None:
    """What happened in a run, a line for each node."""
    from dagrun.store.history import load_state, run_status
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    if sum((bool(node), failures, timeline)) > 1:
        raise UsageError("one of --node, --failures and --timeline", hint="dagrun trace show --node NODE")
    if full and not node:
        raise UsageError("--full is for one node", hint="dagrun trace show --node NODE --full")
    found = find_run(".", run)
    state = load_state(found)
    status = run_status(found, state)
    if settings.json:
        _show_json(found, state, status, node, failures=failures, full=full)
        return
    form = "failures" if failures else "timeline" if timeline else ""
    _show_text(settings, found, state, status, node, form, full=full)


def _show_json(
    run: RunDir, state: RunState, status: RunStatus, node: str, *, failures: bool = False, full: bool = False
) -> None:
    from dagrun.core.trace import trace_to_json

    document = trace_to_json(state, _now(status), status)
    if node:
        document["entries"] = [_entry_json(run, state, status, node, full=full)]
    elif failures:
        entries = document["entries"]
        assert isinstance(entries, list)
        document["entries"] = [e for e in entries if isinstance(e, dict) and e["status"] in ("failed", "cancelled")]
    emit_json(document)


def _entry_json(run: RunDir, state: RunState, status: RunStatus, node: str, *, full: bool) -> dict[str, Json]:
    """The entry of one node; the attempts of an agent with their calls."""
    from dagrun.core.trace import entry_to_json, trace_entry

    entry = trace_entry(state, node_number(state.plan.index, node, run.id), _now(status))
    made = entry_to_json(entry)
    if entry.agent is not None:
        from dagrun.cli.show import reader_of, told_by_agents
        from dagrun.view.conversation import conversation_json, conversations

        said, get = conversations(told_by_agents(run)), reader_of(run)
        for attempt in cast("list[dict[str, Json]]", made["attempts"]):
            steps = said.get((entry.node_id, cast(int, attempt["number"])), ())
            attempt["conversation"] = conversation_json(steps, get, full=full)
    return made


def _show_text(
    settings: Settings, run: RunDir, state: RunState, status: RunStatus, node: str, form: str, *, full: bool
) -> None:
    look, now = look_for(settings, sys.stdout), _now(status)
    if node or form == "failures":
        text = _detail(run, state, node, look, now, full=full)
    elif form == "timeline":
        from dagrun.view.timeline import timeline

        text = timeline(state, look, wall_now=now, status=status)
    else:
        from dagrun.view.tables import trace_table

        text = trace_table(state, look, wall_now=now, status=status)
    emit(text.rstrip("\n"))


def _detail(run: RunDir, state: RunState, node: str, look: Look, now: float | None, *, full: bool) -> str:
    """One node, or all that failed; with what agents said and did where there are any."""
    from dagrun.cli.show import last_bytes, reader_of, told_by_agents
    from dagrun.core.usage import has_agents
    from dagrun.view.conversation import conversations
    from dagrun.view.detail import failures_table, node_detail

    said = conversations(told_by_agents(run)) if has_agents(state) else None
    get = reader_of(run)
    if not node:
        return failures_table(state, look, wall_now=now, said=said, get=get)
    i = node_number(state.plan.index, node, run.id)
    return node_detail(
        state, i, look, read=lambda k: last_bytes(run, state, k), wall_now=now, said=said, get=get, full=full
    )


def _now(status: RunStatus) -> float | None:
    """The wall time that an open attempt is measured to: only a run that goes on gets older."""
    return time() if status is RunStatus.RUNNING else None


# ---------------------------------------------------------------- follow


@command("follow", "dagrun trace follow\ndagrun trace follow r7k2 --ui log")
def follow(
    ctx: typer.Context,
    run: str = ARGUMENT,
    ui: str = typer.Option("auto", "--ui", metavar="UI", help="How to show it: auto, live, log, json, quiet."),
) -> None:
    """Watch a run until it ends, as whoever started it sees it. It changes nothing; Ctrl-C leaves."""
    from dagrun.cli.show import Show, check_ui
    from dagrun.store.history import Follower, run_status
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    check_ui(ui)
    found = find_run(".", run)
    follower = Follower(found)
    try:
        state = follower.state
        shown = Show(settings, ui)
        shown.knows(found, state)
        if run_status(found, state) is RunStatus.RUNNING:
            _watch(found, follower, shown)
        status = run_status(found, state)
        shown.summarize(found, state, status)
    finally:
        follower.close()
    if settings.json:
        _show_json(found, state, status, "")
    elif status is RunStatus.COMPLETED and not settings.quiet:
        say(settings.hint(f"  dagrun trace show {found.id}"))


def _watch(run: RunDir, follower: Follower, shown: Show) -> None:
    """Show what comes until the run has ended or its engine is gone."""
    from select import select

    from dagrun.cli.show import last_bytes

    state, observer = follower.state, shown.observer
    observer.attached(state, lambda i: last_bytes(run, state, i))
    fd = follower.fileno()
    ticked = looked = monotonic()
    try:
        while state.ended is None:
            pause = min(observer.interval_s or LOOK_S, LOOK_S) if fd is not None else POLL_S
            select([fd] if fd is not None else [], [], [], pause)
            events = follower.poll()
            if events:
                observer.recorded(events, state)
            now = monotonic()
            if observer.interval_s is not None and now - ticked >= observer.interval_s:
                ticked = now
                observer.tick(state, time(), now)
            if now - looked >= LOOK_S:
                looked = now
                if run.lock_holder() is None and not follower.poll():
                    return
    finally:
        observer.closed(state)

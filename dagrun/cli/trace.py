"""trace: what happened in a run, after it and while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import monotonic, time
from typing import TYPE_CHECKING, ClassVar

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for, say
from dagrun.cli.groups import Entry, LazyGroup, command, group, node_number
from dagrun.cli.look import ARGUMENT
from dagrun.core.names import RunStatus
from dagrun.errors import UsageError

if TYPE_CHECKING:
    from dagrun.cli.show import Show
    from dagrun.core.state import RunState
    from dagrun.store.history import Follower
    from dagrun.store.rundir import RunDir

LOOK_S = 2.0
POLL_S = 0.25


class _Trace(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = {
        "show": Entry("dagrun.cli.trace", "show", "What happened, node by node."),
        "list": Entry("dagrun.cli.runs", "list_runs", "The runs of this project."),
        "follow": Entry("dagrun.cli.trace", "follow", "Watch a run from another terminal."),
    }
    later: ClassVar[tuple[str, ...]] = ("export", "diff")


def _trace() -> None:
    """What happened in a run, and what happens now."""


trace = group(_Trace, _trace, "dagrun trace show\ndagrun trace show r7k2 --node build\ndagrun trace follow")


@command(
    "show",
    "dagrun trace show\n"
    "dagrun trace show r7k2 --node build\n"
    "dagrun trace show --timeline\n"
    "dagrun trace show --json | jq '.entries[].duration_ms'",
)
def show(
    ctx: typer.Context,
    run: str = ARGUMENT,
    node: str = typer.Option("", "--node", metavar="NODE", show_default=False, help="All that is known of one node."),
    failures: bool = typer.Option(False, "--failures", help="Only what failed or was cancelled."),
    timeline: bool = typer.Option(False, "--timeline", help="A bar for each node, by time."),
) -> None:
    """What happened in a run, a line for each node."""
    from dagrun.store.history import load_state, run_status
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    if sum((bool(node), failures, timeline)) > 1:
        raise UsageError("one of --node, --failures and --timeline", hint="dagrun trace show --node NODE")
    found = find_run(".", run)
    state = load_state(found)
    status = run_status(found, state)
    if settings.json:
        _show_json(found, state, status, node, failures)
        return
    _show_text(settings, found, state, status, node, "failures" if failures else "timeline" if timeline else "")


def _show_json(run: RunDir, state: RunState, status: RunStatus, node: str, failures: bool) -> None:
    from dagrun.core.trace import entry_to_json, trace_entry, trace_to_json

    now = _now(status)
    document = trace_to_json(state, now, status)
    if node:
        entry = trace_entry(state, node_number(state.plan.index, node, run.id), now)
        document["entries"] = [entry_to_json(entry)]
    elif failures:
        entries = document["entries"]
        assert isinstance(entries, list)
        document["entries"] = [e for e in entries if isinstance(e, dict) and e["status"] in ("failed", "cancelled")]
    emit_json(document)


def _show_text(
    settings: Settings, run: RunDir, state: RunState, status: RunStatus, node: str, form: str
) -> None:
    from dagrun.cli.show import last_bytes

    look, now = look_for(settings, sys.stdout), _now(status)
    if node:
        from dagrun.view.tables import node_detail

        i = node_number(state.plan.index, node, run.id)
        text = node_detail(state, i, look, read=lambda k: last_bytes(run, state, k), wall_now=now)
    elif form == "failures":
        from dagrun.view.tables import failures_table

        text = failures_table(state, look, wall_now=now)
    elif form == "timeline":
        from dagrun.view.timeline import timeline

        text = timeline(state, look, wall_now=now, status=status)
    else:
        from dagrun.view.tables import trace_table

        text = trace_table(state, look, wall_now=now, status=status)
    emit(text.rstrip("\n"))


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
        _show_json(found, state, status, "", failures=False)
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

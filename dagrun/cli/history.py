"""replan history, replan undo: what was done to the plan of a run, and taking it back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import time
from typing import TYPE_CHECKING

import typer

from dagrun.cli.change import Wish, at_flag, change_run, tell
from dagrun.cli.console import Settings, emit, emit_json, look_for
from dagrun.cli.groups import command
from dagrun.cli.look import ARGUMENT
from dagrun.core.event import Event, PatchAdmitted, PatchProposed, PatchRefused, ProposalDecided, RevisionAdopted
from dagrun.errors import ConflictError, JournalError, NotFoundError, UsageError

if TYPE_CHECKING:
    from dagrun.core.patch import Patch
    from dagrun.core.plan import Plan
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Workflow
    from dagrun.store.rundir import RunDir
    from dagrun.view.preview import Change
    from dagrun.view.revisions import Entry

_REVISION = typer.Option(None, "--revision", metavar="N", min=2, show_default=False, help="Which (the last).")
_DIFF = typer.Option(None, "--diff", metavar="N", min=2, show_default=False, help="What revision N changed.")


@command(
    "history",
    "dagrun replan history\ndagrun replan history r7k2 --diff 3\ndagrun replan history r7k2 --yaml > history.yaml",
)
def history(
    ctx: typer.Context,
    run: str = ARGUMENT,
    yaml: bool = typer.Option(False, "--yaml", help="As a document, for programs and for keeping."),
    diff: int | None = _DIFF,
) -> None:
    """What was done to the plan of a run, and by whom; refused patches too, with their reasons."""
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    found = find_run(".", run)
    if diff and yaml:
        raise UsageError("one of --yaml and --diff", hint=f"dagrun replan history {found.id} --diff {diff}")
    if diff:
        _show_diff(settings, found, diff)
        return
    state, entries = read_history(found)
    from dagrun.view.revisions import history_document, history_table

    if settings.json:
        emit_json(history_document(state.created, state.created_at, entries))
    elif yaml:
        from dagrun.flowfile.document import dump_yaml

        emit(dump_yaml(history_document(state.created, state.created_at, entries)).rstrip("\n"))
    else:
        look = look_for(settings, sys.stdout)
        emit(history_table(state.created, state.created_at, entries, time(), look).rstrip("\n"))


def read_history(run: RunDir) -> tuple[RunState, list[Entry]]:
    """The state of a run, and all that was done to its plan, oldest first."""
    from dagrun.view.revisions import Entry

    found: list[Entry] = []
    waiting: dict[int, int] = {}  # revision -> its place in `found`
    digest = ""
    digest_of = 0
    state: RunState | None = None
    for at, event, before in replayed(run):
        state = before
        if isinstance(event, PatchAdmitted | PatchRefused):
            if digest_of != before.plan.revision:
                digest, digest_of = plan_digest(before.plan.workflow), before.plan.revision
            if isinstance(event, PatchAdmitted):
                waiting[event.revision] = len(found)
            found.append(Entry(at=at, event=event, base_digest=digest))
        elif isinstance(event, PatchProposed | ProposalDecided):
            found.append(Entry(at=at, event=event))
        elif isinstance(event, RevisionAdopted):
            _adopted(found, waiting, event.revision, at)
    assert state is not None
    return state, found


def _adopted(found: list[Entry], waiting: dict[int, int], revision: int, at: float) -> None:
    """One adoption takes up all revisions that came before it."""
    from dataclasses import replace

    for number in [n for n in waiting if n <= revision]:
        k = waiting.pop(number)
        found[k] = replace(found[k], adopted_ms=max(0.0, (at - found[k].at) * 1000))


def replayed(run: RunDir) -> Iterator[tuple[float, Event, RunState]]:
    """Each event of a run with its wall time and the state *before* it, which is folded on in place."""
    from dagrun.core.event import RunCreated, decode
    from dagrun.core.evolve import evolve
    from dagrun.core.plan import compile_plan
    from dagrun.core.state import new_state
    from dagrun.store.history import load_workflow
    from dagrun.store.journal import Journal

    journal = Journal.open(run.journal, write=False)
    try:
        records = journal.read()
    finally:
        journal.close()
    if not records:
        raise NotFoundError(f"run {run.id} never began: its journal is empty", hint="dagrun runs gc")
    created = decode(records[0].events[0])
    if not isinstance(created, RunCreated):
        raise JournalError(f"{run.journal} does not begin with run.created")
    state = new_state(compile_plan(load_workflow(run, created.plan_digest)), created, records[0].t)
    for record in records:
        for k, data in enumerate(record.events):
            event = decode(data)
            yield record.t, event, state
            if record.seq > 1 or k > 0:
                evolve(state, event, record.t, record.m)


def plan_digest(workflow: Workflow) -> str:
    """The sha256 of a plan as a run's folder keeps it: that of revision 1 is in the journal's first event."""
    from hashlib import sha256
    from json import dumps

    from dagrun.core.event import FORMAT
    from dagrun.core.workflow import workflow_to_json

    text = dumps({"format": FORMAT, "workflow": workflow_to_json(workflow)}, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def revision_of(run: RunDir, revision: int) -> Plan:
    """The plan of a run as it was in one revision. Raises NotFoundError."""
    head = 1
    for _, event, state in replayed(run):
        head = state.plan.revision
        if head == revision:
            return state.plan
        if isinstance(event, PatchAdmitted):
            head = event.revision
    return _after_last(run, revision, head)


def _after_last(run: RunDir, revision: int, head: int) -> Plan:
    """The head, when the last event of the journal made it; there is no other place to see it."""
    from dagrun.store.history import load_state

    if revision != head:
        raise NotFoundError(
            f"run {run.id} has no revision {revision}: the head is {head}", hint=f"dagrun replan history {run.id}"
        )
    return load_state(run).plan


def _show_diff(settings: Settings, run: RunDir, revision: int) -> None:
    from dagrun.view.preview import preview_json, preview_text
    from dagrun.view.text import clean

    change = _change_of_revision(run, revision)
    if settings.json:
        emit_json({"run_id": run.id, **preview_json(change)})
        return
    by = f" by {clean(change.event.by)}" if change.event.by else ""
    emit(preview_text(change, f"run {run.id}{by}", look_for(settings, sys.stdout)))


def _change_of_revision(run: RunDir, revision: int) -> Change:
    """What one revision changed, with the statuses that nodes had then. Raises NotFoundError."""
    from dagrun.core.evolve import evolve
    from dagrun.core.names import Status
    from dagrun.view.preview import Change

    head = 1
    for at, event, state in replayed(run):
        head = state.plan.revision
        if not isinstance(event, PatchAdmitted) or event.revision != revision:
            continue
        before, statuses = state.plan, list(state.node_status)
        evolve(state, event, at, state.now_m)
        stale = [n for n in event.reset if statuses[before.index[n]] is Status.COMPLETED]
        back = [
            name
            for name, i in before.index.items()
            if statuses[i] is Status.SKIPPED and state.node_status[i] in (Status.PENDING, Status.READY)
        ]
        return Change(before=before, statuses=statuses, after=state.plan, event=event, stale=stale, revived=back)
    if revision == 1:
        hint = f"the plan it began with: dagrun plan {run.id} --revision 1"
        raise NotFoundError("revision 1 is what the run began with", hint=hint)
    raise NotFoundError(
        f"run {run.id} has no revision {revision}: the head is {head}", hint=f"dagrun replan history {run.id}"
    )


# ---------------------------------------------------------------- undo


@command("undo", "dagrun replan undo\ndagrun replan undo r7k2 --dry-run\ndagrun replan undo r7k2 --revision 3 --yes")
def undo(
    ctx: typer.Context,
    run: str = ARGUMENT,
    revision: int | None = _REVISION,
    message: str = typer.Option("", "-m", "--message", metavar="TEXT", show_default=False, help="Why."),
    yes: bool = typer.Option(False, "-y", "--yes", help="Don't ask."),
    dry_run: bool = typer.Option(False, "-n", "--dry-run", help="Only show what would change."),
) -> None:
    """Take back a revision of a run: removed nodes come back under their ids. What has started stays."""
    from dagrun.store.history import load_state
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    found = find_run(".", run)
    state = load_state(found)
    number = revision or _last_to_undo(found, state)
    if not any(r.revision == number for r in state.revisions):
        raise NotFoundError(f"run {found.id} has no revision {number}", hint=f"dagrun replan history {found.id}")
    patch, kept = _inverse(state, number, message)
    if not patch.operations:
        why = "; ".join(kept) or "everything of it was changed again"
        raise ConflictError(f"nothing of revision {number} can be undone: {why}", hint=f"dagrun plan {found.id}")
    wish = Wish(
        make=lambda s: _inverse(s, number, message)[0],
        problem=at_flag([]),
        again=f"dagrun replan undo {found.id} --revision {number}",
        yes=yes,
        dry_run=dry_run,
        undoes=number,
        notes=tuple(f"not undone: {text}" for text in kept),
    )
    done = change_run(settings, found, wish)
    if done is not None:
        tell(settings, found, done)


def _last_to_undo(run: RunDir, state: RunState) -> int:
    """The newest revision that is no undo and was not undone."""
    undone = {r.undoes for r in state.revisions if r.undoes}
    for event in reversed(state.revisions):
        if not event.undoes and not event.asks and event.revision not in undone:
            return event.revision
    hint = f"dagrun replan history {run.id}"
    if undone:  # to take an undo back has to be meant
        hint += f"; to take the last undo back: dagrun replan undo {run.id} --revision {state.plan.revision}"
    raise NotFoundError(f"run {run.id} has no revision to undo", hint=hint)


def _inverse(state: RunState, revision: int, message: str) -> tuple[Patch, tuple[str, ...]]:
    from dataclasses import replace

    from dagrun.core.undo import inverse

    made = inverse(state, revision)
    patch = made.patch
    if message:
        patch = replace(patch, trigger=replace(patch.trigger, reason=message))
    return patch, made.kept

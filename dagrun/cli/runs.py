"""runs: the runs of a project as a list, and removing old ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from time import time
from typing import TYPE_CHECKING, ClassVar

import typer

from dagrun.cli.console import Settings, emit, emit_json, say, warn
from dagrun.cli.groups import Entry, LazyGroup, command, group
from dagrun.errors import DagrunError, JournalError, NotFoundError, RunLockedError, UsageError

if TYPE_CHECKING:
    from dagrun.core.state import RunState
    from dagrun.store.rundir import RunDir
    from dagrun.view.tables import RunRow

LIMIT = 20
PEEK_BYTES = 1 << 16
PEEK_RUNS = 10
_LIMIT = typer.Option(LIMIT, "--limit", metavar="N", min=1, help="At most that many, newest first.")


class _Runs(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = {"gc": Entry("dagrun.cli.runs", "gc", "Remove old runs.")}


def _runs(ctx: typer.Context, limit: int = _LIMIT) -> None:
    """The runs of this project, newest first."""
    if ctx.invoked_subcommand is None:
        list_them(ctx.obj, limit)


runs = group(_Runs, _runs, "dagrun runs\ndagrun runs gc --keep 20", alone=True)


@command("list", "dagrun trace list\ndagrun trace list --limit 100 --json")
def list_runs(ctx: typer.Context, limit: int = _LIMIT) -> None:
    """The runs of this project, newest first."""
    list_them(ctx.obj, limit)


def list_them(settings: Settings, limit: int) -> None:
    """Print the newest runs."""
    from dagrun.store.rundir import NO_RUN, where_runs_are
    from dagrun.store.rundir import list_runs as all_runs

    found = all_runs(".")
    rows = [row for run in found[:limit] if (row := _row(run))]
    if settings.json:
        emit_json({"runs": [_row_json(*row) for row in rows]})
        return
    if not rows:
        say(settings.hint(f"{NO_RUN}\n  help: {where_runs_are('.')}"))
        return
    from dagrun.cli.console import look_for
    from dagrun.view.tables import runs_table

    emit(runs_table([_table_row(*row) for row in rows], time(), look_for(settings, sys.stdout)).rstrip("\n"))
    if len(found) > limit and not settings.quiet:
        say(settings.hint(f"{len(found) - limit} older: dagrun runs --limit {len(found)}"))


def _table_row(run: RunDir, state: RunState | None, status: str) -> RunRow:
    from dagrun.core.names import RunStatus, Status
    from dagrun.core.trace import run_duration_ms
    from dagrun.core.usage import money_of
    from dagrun.view.tables import RunRow

    if state is None:
        note = f"unreadable: dagrun status {run.id}"
        at = run.created_ns() / 1e9
        return RunRow(run_id=run.id, workflow="?", status=RunStatus.CRASHED, created_at=at, duration_s=0, note=note)
    now = time() if status == RunStatus.RUNNING else None
    return RunRow(
        run_id=run.id,
        workflow=state.created.workflow,
        status=RunStatus(status),
        created_at=state.created_at,
        duration_s=run_duration_ms(state, now) / 1000,
        nodes=len(state.plan.ids),
        done=state.settled,
        failed=state.counts[Status.FAILED],
        spent=money_of(state).spent,
    )


def _row(run: RunDir) -> tuple[RunDir, RunState | None, str] | None:
    """A run, its state and its status; an unreadable one is listed too, one that is just being removed is not."""
    from dagrun.store.history import load_state, run_status

    try:
        state = load_state(run)
        return run, state, run_status(run, state)
    except NotFoundError:
        return None
    except JournalError as error:
        if not os.path.exists(run.path):
            return None
        warn(f"run {run.id}: {error.message}")
        return run, None, "unreadable"


def _row_json(run: RunDir, state: RunState | None, status: str) -> dict[str, object]:
    from dagrun.core.trace import iso_utc, totals

    if state is None:
        return {"run_id": run.id, "status": status}
    return {
        "run_id": run.id,
        "workflow": state.created.workflow,
        "file": state.created.file,
        "status": status,
        "exit_code": state.ended.exit_code if state.ended else None,
        "created_at": iso_utc(state.created_at),
        "totals": totals(state),
    }


# ---------------------------------------------------------------- a look without reading it all


def unfinished_run(workflow: str) -> RunDir | None:
    """The newest run of a workflow if it was cut short and nobody works on it; a guess, but a cheap one.

    Looks at the ends of the journals only: `execute` must not pay for reading old runs.
    """
    from dagrun.store.rundir import list_runs as all_runs

    for run in all_runs(".")[:PEEK_RUNS]:
        first, last = _ends(run)
        if first.get("workflow") != workflow:
            continue
        if last.get("type") == "patch.refused":  # was written behind the end of the run, or in the middle of it
            last = _end_behind(run)
        over = last.get("type") == "run.ended" and last.get("status") not in ("interrupted", "timed_out")
        return None if over or run.lock_holder() is not None else run
    return None


def _end_behind(run: RunDir) -> dict[str, object]:
    """The end of a run as its whole journal tells it."""
    from dagrun.store.history import load_state

    try:
        ended = load_state(run).ended
    except (NotFoundError, JournalError):
        return {}
    return {"type": "run.ended", "status": ended.status.value} if ended else {}


def completed_runs(workflow: str, count: int) -> Iterator[RunDir]:
    """The newest completed runs of a workflow, at most `count`; a guess as above."""
    from dagrun.store.rundir import list_runs as all_runs

    left = count
    for run in all_runs(".")[: 10 * PEEK_RUNS]:
        first, last = _ends(run)
        if first.get("workflow") == workflow and last.get("status") == "completed":
            yield run
            left -= 1
            if not left:
                return


def workflow_of(run: RunDir) -> str:
    """The workflow that a run is of, from the head of its journal; empty where it can't be read at a glance."""
    return str(_ends(run)[0].get("workflow", ""))


def _ends(run: RunDir) -> tuple[dict[str, object], dict[str, object]]:
    """The first and the last event of a run's journal; empty where they can't be read at a glance."""
    try:
        with open(run.journal, "rb", buffering=0) as file:
            head = file.read(PEEK_BYTES)
            file.seek(max(0, os.fstat(file.fileno()).st_size - PEEK_BYTES))
            lines = file.read(PEEK_BYTES).split(b"\n")
    except OSError:
        return {}, {}
    first = _events(head.partition(b"\n")[0])[:1]
    last = _events(lines[-2] if len(lines) > 1 else b"")[-1:]
    return (first or [{}])[0], (last or [{}])[0]


def _events(line: bytes) -> list[dict[str, object]]:
    from json import loads

    try:
        found = loads(line[9:])["e"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(e, dict) for e in found) else []


# ---------------------------------------------------------------- gc


@command("gc", "dagrun runs gc --keep 20\ndagrun runs gc --older 30d --dry-run")
def gc(
    ctx: typer.Context,
    keep: int | None = typer.Option(None, "--keep", metavar="N", min=0, show_default=False, help="Keep the N newest."),
    older: str = typer.Option("", "--older", metavar="D", show_default=False, help="Only what began longer ago."),
    dry_run: bool = typer.Option(False, "-n", "--dry-run", help="Only say what would be removed."),
) -> None:
    """Remove runs that are old, with their logs and values. A run that is being executed stays.

    With --keep and --older a run must be both to be removed.
    """
    from dagrun.core.names import parse_duration
    from dagrun.store.rundir import list_runs as all_runs
    from dagrun.store.rundir import sweep

    settings: Settings = ctx.obj
    if keep is None and not older:
        raise UsageError("which runs?", hint="dagrun runs gc --keep 20, or --older 30d; try it with --dry-run")
    try:
        least_s = parse_duration(older) if older else 0.0
    except ValueError as error:
        raise UsageError(f"--older: {error}", hint="dagrun runs gc --older 30d") from None
    found = all_runs(".", unstarted=True)[keep or 0 :]
    old = [run for run in found if time() - run.created_ns() / 1e9 >= least_s]
    removed: list[str] = []
    kept: list[str] = []
    for run in old:
        why = "" if dry_run and run.lock_holder() is None else _remove(run, dry_run)
        (kept if why else removed).append(run.id)
        if why:
            say(f"run {run.id} stays: {why}")
    if not dry_run:
        from dagrun.engine.holding import sweep_plants

        sweep(".")
        for line in sweep_plants("."):
            say(line)
    if settings.json:
        emit_json({"removed": removed, "kept": kept, "dry_run": dry_run})
    elif not settings.quiet:
        verb = "would remove" if dry_run else "removed"
        emit(f"{verb} {len(removed)} run{'' if len(removed) == 1 else 's'}{': ' if removed else ''}{' '.join(removed)}")


def _remove(run: RunDir, dry_run: bool) -> str:
    """Remove a run; why not, or an empty text."""
    from dagrun.store.rundir import remove

    if dry_run:
        return "it is being executed"
    try:
        remove(run)
    except RunLockedError:
        return "it is being executed"
    except NotFoundError:
        return ""
    except DagrunError as error:
        return error.message
    return ""

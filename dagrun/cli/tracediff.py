"""trace diff: what went another way in one run than in another."""

from __future__ import annotations

import sys
from time import time
from typing import TYPE_CHECKING

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for
from dagrun.cli.groups import command
from dagrun.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from dagrun.store.rundir import RunDir
    from dagrun.view.tracediff import Side

_WORDS = typer.Argument(
    None, metavar="[RUN_A] [RUN_B]", show_default=False, help="Id, start of one, or last. One RUN is B."
)


@command(
    "diff",
    "dagrun trace diff                   # the last run, with the one before it\n"
    "dagrun trace diff r7k2 k3m9\n"
    "dagrun trace diff r7k2 last --exit-code\n"
    "dagrun trace diff r7k2 last --json | jq '.nodes[].node_id'",
)
def diff(
    ctx: typer.Context,
    words: list[str] = _WORDS,
    every: bool = typer.Option(False, "--all", help="The nodes that are the same too."),
    exit_code: bool = typer.Option(False, "--exit-code", help="Exit 10 if they differ, in more than time."),
) -> None:
    """How run B differs from run A: plan, params, and what became of each node.

    One RUN is compared with the one before it of the same workflow, none means the last.
    Times are shown where they differ by more than a fifth and 100 ms.
    Exits 0, also when the runs differ, unless --exit-code is given.
    """
    from dagrun.view.tracediff import compare_runs, summary_line, tracediff_json, tracediff_text

    settings: Settings = ctx.obj
    first, second = _two_runs(words or [])
    found = compare_runs(_side(first), _side(second))
    if settings.json:
        emit_json(tracediff_json(found, every=every))
    elif settings.quiet:
        emit(summary_line(found))
    else:
        how = settings.hint(f"dagrun diff {first.id} {second.id}")
        text = tracediff_text(found, time(), look_for(settings, sys.stdout), every=every, how=how)
        emit(text.rstrip("\n"))
    if exit_code and not found.same:
        raise typer.Exit(10)


def _two_runs(words: list[str]) -> tuple[RunDir, RunDir]:
    """Runs A and B that up to two words mean. Raises UsageError, NotFoundError."""
    from dagrun.store.rundir import find_run

    if len(words) > 2:
        raise UsageError(f"two runs, not {len(words)}: {' '.join(words)}", hint="dagrun trace diff RUN_A RUN_B")
    if len(words) == 2:
        return find_run(".", words[0]), find_run(".", words[1])
    run = find_run(".", words[0] if words else None)
    return _before(run), run


def _before(run: RunDir) -> RunDir:
    """The run before another one of the same workflow. Raises NotFoundError."""
    from dagrun.cli.runs import workflow_of
    from dagrun.store.rundir import list_runs

    name = workflow_of(run)
    runs = list_runs(".")
    older = runs[runs.index(run) + 1 :] if run in runs else []
    for other in older:
        if workflow_of(other) == name and not other.read_meta().get("for"):
            return other
    text = f"there is no run of {name} before {run.id}" if name else f"what ran before {run.id} can't be told"
    raise NotFoundError(text, hint="name two runs, of those that there are: dagrun runs")


def _side(run: RunDir) -> Side:
    """A run as it is now. Raises NotFoundError, JournalError."""
    from dagrun.core.names import RunStatus
    from dagrun.store.history import load_state, run_status
    from dagrun.view.tracediff import Side

    state = load_state(run)
    status = run_status(run, state)
    return Side(state, status, time() if status is RunStatus.RUNNING else None)

"""What is worth a word before a run begins or goes on: an unfinished one, a file that was edited since."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING

from dagrun.cli.console import Settings, say
from dagrun.errors import DagrunError

if TYPE_CHECKING:
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Workflow
    from dagrun.store.rundir import RunDir

_NAMES = 6
_APART = frozenset({"nodes", "file", "digest", "files"})  # not keys of the file, or looked at one by one


def mention_unfinished(settings: Settings, workflow: Workflow) -> None:
    """Say on stderr that the last run of a workflow can go on."""
    from dagrun.cli.runs import unfinished_run

    found = unfinished_run(workflow.name)
    if found and not settings.quiet:
        say(settings.hint(f"note: run {found.id} of {workflow.name} has not finished: dagrun resume {found.id}"))


def mention_edited(settings: Settings, run: RunDir, state: RunState) -> None:
    """Say on stderr that the file of a run is not what it was: the run goes on as it was planned."""
    if settings.quiet:
        return
    try:
        changed, nodes = _changed(run, state)
    except (OSError, DagrunError):  # gone, or being edited: the run needs it no more
        return
    if not changed:
        return
    from shlex import quote

    from dagrun.errors import visible

    file = visible(state.created.file)
    more = f" and {len(changed) - _NAMES} more" if len(changed) > _NAMES else ""
    what = ", ".join(changed[:_NAMES]) + more
    how = f"dagrun replan {run.id} --to {quote(file)} --resume" if nodes else f"a new run: dagrun execute {quote(file)}"
    said = f"note: {file} has changed since this run began ({what}); the run goes on as it was planned"
    say(settings.hint(f"{said}\n  help: to have the change: {how}"))


def _changed(run: RunDir, state: RunState) -> tuple[list[str], bool]:
    """(nodes and keys of the file that are neither as the run began nor as it is now, whether nodes are among them)."""
    from hashlib import sha256

    path, known = state.created.file, state.created.workflow_digest
    if not path or not known or not os.path.isfile(path):
        return [], False
    with open(path, "rb") as file:
        if sha256(file.read()).hexdigest() == known:
            return [], False
    from dagrun.cli.history import revision_of
    from dagrun.flowfile.load import read_workflow

    there, now = read_workflow(path).workflow, state.plan.workflow
    began = now if state.plan.revision == 1 else revision_of(run, 1).workflow
    names = dict.fromkeys((*there.nodes, *began.nodes))
    nodes = [n for n in names if there.nodes.get(n) not in (began.nodes.get(n), now.nodes.get(n))]
    keys = [f.name for f in fields(there) if f.name not in _APART]
    return [*nodes, *(k for k in keys if getattr(there, k) not in (getattr(began, k), getattr(now, k)))], bool(nodes)

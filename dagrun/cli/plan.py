"""plan: what would run, from a file or as a run has it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for
from dagrun.cli.groups import PARALLEL, PARAM, PARAMS, command, is_flow
from dagrun.core.names import Json, NodeId, Outcome
from dagrun.errors import DagrunError, InputError, JournalError, NotFoundError, UsageError

if TYPE_CHECKING:
    from dagrun.agent.estimate import Total
    from dagrun.core.plan import Plan
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Node, Workflow
    from dagrun.engine.session import Options

FORMATS = ("text", "mermaid", "dot", "json")
PAST_RUNS = 5
PAST_BYTES = 32 << 20  # of journals that are read for estimates
_REVISION = typer.Option(None, "--revision", metavar="N", min=1, show_default=False, help="Of a run: as it was then.")


@command(
    "plan",
    "dagrun plan flow.yaml\n"
    "dagrun plan flow.yaml -p release=true -j 4\n"
    "dagrun plan flow.yaml --mermaid > flow.mmd\n"
    "dagrun plan last --revision 2\n"
    "dagrun plan flow.yaml --permissions",
)
def plan(
    ctx: typer.Context,
    what: str = typer.Argument(..., metavar="FILE|RUN", help="A workflow file, or a run."),
    form: str = typer.Option("text", "-o", "--format", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}."),
    mermaid: bool = typer.Option(False, "--mermaid", help="The same as --format mermaid."),
    dot: bool = typer.Option(False, "--dot", help="The same as --format dot."),
    param: list[str] = PARAM,
    params: str = PARAMS,
    parallel: int = PARALLEL,
    permissions: bool = typer.Option(False, "--permissions", help="What each node may do instead, and why."),
    revision: int | None = _REVISION,
) -> None:
    """Show what would run: waves, what is skipped, the critical path, how long it takes, what it can cost.

    Times are medians of earlier runs of the same workflow, or the author's estimates. The worst case of
    an agent: every attempt takes all its turns, with prompts and answers as large as they may get.
    """
    settings: Settings = ctx.obj
    form = _chosen_form(form, mermaid=mermaid, dot=dot, json=settings.json)
    if permissions and form in ("mermaid", "dot"):
        raise UsageError(f"permissions have no form {form}", hint="leave it out, or use --json")
    if what == "-" or is_flow(what):
        if revision:
            raise UsageError(f"{what} is a file: it has no revisions", hint=f"dagrun plan {what}")
        made, given = _of_file(what, param, params)
    elif param or params:
        raise UsageError(f"{what} is a run: its params are given", hint=f"dagrun plan {what}")
    else:
        made, given = _of_run(what, revision or 0)
    if permissions:
        _show_permissions(settings, made, form)
    else:
        show_plan(settings, made, form, given, parallel)


def _show_permissions(settings: Settings, plan: Plan, form: str) -> None:
    from dagrun.view.permissions import permissions_json, permissions_text

    if form == "json":
        emit_json(permissions_json(plan))
        return
    look = look_for(settings, sys.stdout)
    emit(permissions_text(plan, width=look.width, look=look).rstrip("\n"))


def _chosen_form(form: str, **flags: bool) -> str:
    """The one of FORMATS that was asked for. Raises UsageError for none such, or several."""
    if form not in FORMATS:
        raise UsageError(f"--format can't be {form}", hint=f"one of {', '.join(FORMATS)}")
    asked = [name for name, given in flags.items() if given]
    if form != "text" and form not in asked:
        asked.append(form)
    if len(asked) > 1:
        raise UsageError(f"one form at a time, not {' and '.join(asked)}", hint=f"keep one: --format {asked[0]}")
    return asked[0] if asked else form


def _of_file(file: str, pairs: list[str], params_file: str) -> tuple[Plan, dict[str, Json]]:
    from dagrun.cli.files import load_flow
    from dagrun.cli.params import typed_params
    from dagrun.core.plan import compile_plan

    try:
        workflow = load_flow(file).workflow
    except InputError as error:
        error.hint = error.hint or f"fix that, then: dagrun plan {file}"
        raise
    given = typed_params(workflow, pairs, params_file or None, complete=False)
    return compile_plan(workflow), all_params(workflow, given)


def _of_run(text: str, revision: int) -> tuple[Plan, dict[str, Json]]:
    from dagrun.store.history import load_state
    from dagrun.store.rundir import find_run

    try:
        run = find_run(".", text)
    except NotFoundError as error:
        error.message += f", and no file {text}"
        raise
    state = load_state(run)
    if revision and revision != state.plan.revision:
        from dagrun.cli.history import revision_of

        return revision_of(run, revision), dict(state.created.params)
    return state.plan, dict(state.created.params)


def all_params(workflow: Workflow, given: Mapping[str, Json]) -> dict[str, Json]:
    """The given params and the defaults of the others."""
    return {**{name: p.default for name, p in workflow.params.items() if p.has_default}, **given}


def show_plan(
    settings: Settings, plan: Plan, form: str, params: Mapping[str, Json], parallel: int | None, left_out: int = 0
) -> None:
    """Print a plan in one of FORMATS; `left_out` nodes are not in it."""
    from dagrun.core.plan import compile_plan
    from dagrun.engine.session import Options, make_room
    from dagrun.view.costs import cost_json, cost_text
    from dagrun.view.graph import plan_dot, plan_json, plan_mermaid, plan_text

    if form == "mermaid":
        emit(plan_mermaid(plan).rstrip("\n"))
        return
    if form == "dot":
        emit(plan_dot(plan).rstrip("\n"))
        return
    room = make_room(plan.workflow, Options(project=os.getcwd(), parallel=parallel)).parallel
    known = past_durations(plan.workflow.name)
    timed = compile_plan(plan.workflow, plan.revision, known) if known else plan
    costs = worst_costs_of(plan.workflow)
    if form == "json":
        made = plan_json(timed, room_parallel=room, params=params, estimates=known)
        emit_json({**made, "not_selected": left_out, "cost": cost_json(costs) if costs else None})
        return
    look = look_for(settings, sys.stdout)
    text = plan_text(timed, width=look.width, room_parallel=room, params=params, estimates=known, look=look)
    emit(text.rstrip("\n"))
    if costs:
        emit(cost_text(costs, width=look.width).rstrip("\n"))
    if left_out:
        emit(f"left    {left_out} node{'' if left_out == 1 else 's'} not selected")


def worst_costs_of(workflow: Workflow) -> Total | None:
    """What the agents of a workflow can cost at most; None where it has none."""
    from dagrun.core.agents import has_agents

    if not has_agents(workflow):
        return None
    from dagrun.agent.checks import is_fake, priced
    from dagrun.agent.estimate import worst_costs
    from dagrun.agent.skills import find, search_path
    from dagrun.cli.files import base_of

    places = search_path(base_of(workflow), os.environ.get("HOME", ""))

    def size(name: str) -> int:
        try:
            return len(find(name, places).body.encode())
        except (InputError, NotFoundError):  # of a run, whose skills may be gone since
            return 0

    fake = is_fake(workflow)
    return worst_costs(workflow, priced(workflow, fake=fake), fake=fake, skill_bytes=size)


def show_selection(settings: Settings, workflow: Workflow, options: Options) -> None:
    """What `execute` with these options would run: the plan of the selected nodes."""
    from dagrun.core.plan import compile_plan
    from dagrun.core.selection import select

    whole = compile_plan(workflow)
    chosen = {whole.ids[i] for i in select(whole, options.only, options.from_, options.until)}
    nodes = {name: _alone(node, chosen) for name, node in workflow.nodes.items() if name in chosen}
    selected = compile_plan(replace(workflow, nodes=nodes)) if len(chosen) < len(whole.ids) else whole
    form = "json" if settings.json else "text"
    show_plan(
        settings, selected, form, all_params(workflow, options.params), options.parallel, len(whole.ids) - len(chosen)
    )


def _alone(node: Node, chosen: set[NodeId]) -> Node:
    """A node without its edges to nodes that are not chosen: those count as settled."""
    from dagrun.core.plan import input_sources

    inputs = {
        name: item
        for name, item in node.inputs.items()
        if chosen.issuperset(input_sources(replace(node, inputs={name: item})))
    }
    return replace(node, needs=tuple(n for n in node.needs if n in chosen), inputs=inputs)


# ---------------------------------------------------------------- what earlier runs took


def past_durations(workflow: str) -> dict[NodeId, float]:
    """Node → median seconds over the last completed runs of a workflow; empty where there are none."""
    from dagrun.cli.runs import completed_runs
    from dagrun.store.history import load_state

    seen: dict[NodeId, list[float]] = {}
    room = PAST_BYTES
    with suppress(JournalError):  # only estimates are lost where the runs can't be listed
        for run in completed_runs(workflow, PAST_RUNS):
            try:
                room -= os.stat(run.journal).st_size
                if room < 0:
                    break
                _add_durations(load_state(run), seen)
            except (OSError, DagrunError):  # removed meanwhile, or not readable
                continue
    return {node: sorted(times)[len(times) // 2] for node, times in seen.items()}


def _add_durations(state: RunState, seen: dict[NodeId, list[float]]) -> None:
    for i, tried in enumerate(state.attempts):
        finish = tried[-1].finish if tried else None
        if finish is not None and finish.outcome is Outcome.COMPLETED:
            seen.setdefault(state.plan.ids[i], []).append(max(finish.duration_ms, 1) / 1000)

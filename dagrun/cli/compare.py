"""diff, rehearse, export: plans beside each other, before they run and as they ran."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for, say
from dagrun.cli.files import base_of, write_text
from dagrun.cli.groups import PARAM, PARAMS, command, is_flow
from dagrun.cli.look import ARGUMENT
from dagrun.core.names import Json, Status
from dagrun.errors import InputError, NotFoundError, UsageError, visible

if TYPE_CHECKING:
    from dagrun.core.patch import Patch
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Fault, Param, Workflow

MAX_DEPTH = 20


# ---------------------------------------------------------------- diff


@command("diff", "dagrun diff flow.yaml new.yaml > change.yaml\ndagrun diff r7k2 flow.yaml --exit-code")
def diff(
    ctx: typer.Context,
    a: str = typer.Argument(..., metavar="A", help="A workflow file, or a run."),
    b: str = typer.Argument(..., metavar="B", help="What it is to become."),
    exit_code: bool = typer.Option(False, "--exit-code", help="Exit 10 if they differ."),
) -> None:
    """Print the patch that leads from A to B; nothing to do is a patch without operations."""
    from dagrun.flowfile.differ import diff_files
    from dagrun.flowfile.document import dump_yaml

    settings: Settings = ctx.obj
    document = diff_files(plan_of(a), plan_of(b))
    operations = document.get("operations")
    if settings.json:
        emit_json(document)
    elif operations:
        emit(dump_yaml(document).rstrip("\n"))
    elif not settings.quiet:
        say(f"{a} and {b} are the same plan")
    if exit_code and operations:
        raise typer.Exit(10)


def plan_of(word: str) -> Workflow:
    """The workflow in a FLOW, or the one that a RUN has now. Raises InputError, UsageError, NotFoundError."""
    if word == "-" or is_flow(word):
        return flow_of(word)
    from dagrun.store.history import load_state
    from dagrun.store.rundir import find_run

    try:
        run = find_run(".", word)
    except NotFoundError as error:
        error.message += f", and no file {word}"
        raise
    return load_state(run).plan.workflow


def flow_of(path: str) -> Workflow:
    """The workflow in a file. Raises InputError with what to type once it is mended, UsageError."""
    from dagrun.flowfile.load import read_workflow

    try:
        return read_workflow(path).workflow
    except InputError as error:
        error.hint = error.hint or f"fix that, then: dagrun validate {path}"
        raise


# ---------------------------------------------------------------- rehearse


@command("rehearse", "dagrun rehearse flow.yaml\ndagrun rehearse flow.yaml --depth 2 --strict    # in CI")
def rehearse(
    ctx: typer.Context,
    flow: str = typer.Argument(..., metavar="FLOW", help="The workflow; - reads it from stdin."),
    depth: int = typer.Option(1, "--depth", metavar="N", min=1, max=MAX_DEPTH, help="Failures in a row."),
    strict: bool = typer.Option(False, "--strict", help="Exit 1 if a failure leaves a hole."),
    param: list[str] = PARAM,
    params: str = PARAMS,
) -> None:
    """Fail each node in turn, in simulation: how would the run end, which fallbacks help, what is lost?"""
    from dagrun.cli.params import typed_params
    from dagrun.core.rehearse import rehearse as simulate
    from dagrun.view.rehearsal import rehearsal_json, rehearsal_text

    settings: Settings = ctx.obj
    workflow = flow_of(flow)
    given = typed_params(workflow, param, params or None, complete=False)
    report = simulate(workflow, depth=depth, params=given, replan=_declared_patch)
    if settings.json:
        emit_json(rehearsal_json(report))
    else:
        emit(rehearsal_text(report, look_for(settings, sys.stdout)).rstrip("\n"))
    if strict and report.holes:
        raise typer.Exit(1)


def _declared_patch(document: Json, workflow: Workflow) -> Patch | list[Fault]:
    """The patch of an `on_failure: {replan: …}`, as the engine would read it."""
    from dagrun.core.workflow import Fault
    from dagrun.flowfile.patchfile import patch_from_document

    try:
        return patch_from_document(document, workflow, "on_failure")
    except InputError as error:
        return [Fault((), p.code, p.message, p.hint) for p in error.problems]


# ---------------------------------------------------------------- export


@command(
    "export",
    "dagrun export r7k2 > again.yaml\n"
    "dagrun export last -o again.yaml\n"
    "dagrun export r7k2 --json\n"
    "dagrun export r7k2 --record run.jsonl",
)
def export(
    ctx: typer.Context,
    run: str = ARGUMENT,
    output: str = typer.Option("", "-o", "--output", metavar="FILE", show_default=False, help="Write it there."),
    record: str = typer.Option(
        "", "--record", metavar="FILE", show_default=False, help="Write all of the run there, to play it again."
    ),
) -> None:
    """The graph of a run as it really ran, as a workflow that can be executed again.

    Nodes that a fallback replaced or a patch skipped are left out; params have the values of the run.
    With --record: every answer, result and decision of the run, for `dagrun execute FILE --replay`.
    """
    if record:
        _export_record(ctx.obj, run, record, output)
        return
    from dagrun.flowfile.document import dump_yaml, workflow_to_document
    from dagrun.flowfile.relocate import relocated
    from dagrun.store.history import load_state
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    found = find_run(".", run)
    state = load_state(found)
    ran, folder = as_it_ran(state), os.path.dirname(output) or "."
    workflow, lost = relocated(ran, base_of(ran), folder)
    document = workflow_to_document(workflow)
    if settings.json:
        emit_json(document)
        return
    text = f"# run {found.id}, revision {state.plan.revision}\n{dump_yaml(document)}"
    if not output:
        emit(text.rstrip("\n"))
        return
    write_text(output, text)
    if not settings.quiet:
        told = [f"it names {name}, which is not there" for name in lost] + _lost_skills(workflow, folder)
        warned = "".join(f"warning: {visible(text)}\n" for text in told)
        say(settings.hint(f"wrote {output}\n{warned}  help: dagrun execute {output}"))


def _lost_skills(workflow: Workflow, folder: str) -> list[str]:
    """The skills that are found from where the workflow was, and not from `folder`."""
    from dagrun.core.agents import has_agents

    if not has_agents(workflow):
        return []
    from dagrun.agent.checks import askers
    from dagrun.agent.skills import find, search_path

    home = os.environ.get("HOME", "")
    here, there = search_path(base_of(workflow), home), search_path(folder, home)
    told: list[str] = []
    for name in dict.fromkeys(name for asker in askers(workflow) for name in asker.agent.skills):
        with suppress(InputError, NotFoundError):
            place = os.path.relpath(os.path.dirname(find(name, here).path))
            try:
                find(name, there)
            except (InputError, NotFoundError):
                what = f"copy {place} to {os.path.join(folder, 'skills')}"
                told.append(f"the skill `{name}` is not found from there: {what}")
    return told


def _export_record(settings: Settings, run: str, path: str, output: str) -> None:
    """Write a recorded run as one file."""
    from dagrun.engine.recordfile import lines
    from dagrun.engine.recording import read_run
    from dagrun.store.rundir import find_run

    if output:
        raise UsageError("one of -o and --record", hint=f"dagrun export {run} --record {path}")
    made = read_run(find_run(".", run))
    write_text(path, "".join(f"{line}\n" for line in lines(made)))
    if settings.json:
        emit_json({"run_id": made.created.run_id, "record": path})
    elif not settings.quiet:
        file = made.created.file or "FILE"
        say(settings.hint(f"wrote {path}\n  help: dagrun execute {file} --replay {path}"))


def as_it_ran(state: RunState) -> Workflow:
    """The workflow of the last revision, without what was replaced or skipped by a patch, and who was asked for one."""
    from dagrun.core.reading import rename_result
    from dagrun.core.state import standing_for

    workflow = state.plan.workflow
    results = dict(workflow.outputs)
    for i in state.stand_ins:
        old = state.plan.ids[i]
        results = {key: rename_result(text, old, standing_for(state, old)) for key, text in results.items()}
    workflow = replace(workflow, outputs=results)
    for i, name in enumerate(state.plan.ids):
        status = state.node_status[i]
        by_patch = status is Status.SKIPPED and state.skips.get(i) == "patch"
        if i not in state.removed and (by_patch or status is Status.SUPERSEDED or i in state.replanners):
            workflow = _without(workflow, name)
    wave = state.plan.wave
    ordered = sorted(workflow.nodes, key=lambda name: wave[state.plan.index[name]])
    nodes = {name: workflow.nodes[name] for name in ordered}
    return replace(workflow, nodes=nodes, params=_with_values(workflow, state.created.params))


def _without(workflow: Workflow, name: str) -> Workflow:
    """A workflow without a node; what waited for it waits for what it waited for. As it is where that can't be."""
    from dagrun.core.patch import Patch, Remove, apply, draft

    work = apply(draft(workflow), Patch(operations=(Remove(id=name, strategy="bridge"),)))
    named = any(f"nodes.{name}." in text for text in workflow.outputs.values())
    return workflow if work.faults or named else replace(workflow, nodes=work.nodes)


def _with_values(workflow: Workflow, given: Mapping[str, Json]) -> dict[str, Param]:
    return {
        name: replace(param, has_default=True, default=given[name]) if name in given else param
        for name, param in workflow.params.items()
    }

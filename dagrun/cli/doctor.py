"""doctor: what this machine can hold, tried out on the spot."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for
from dagrun.cli.groups import command
from dagrun.errors import DagrunError, EnvironmentFault

if TYPE_CHECKING:
    from dagrun.core.workflow import Workflow
    from dagrun.view.doctor import Finding, Level

_FOR = typer.Option("", "--for", metavar="FLOW", show_default=False, help="Can this workflow be held here?")
_ACCEPT = typer.Option(
    "", "--accept-missing", metavar="LIST", show_default=False, help="With --for: do without these guarantees."
)


@command("doctor", "dagrun doctor\ndagrun doctor --for flow.yaml\ndagrun doctor --json")
def doctor(ctx: typer.Context, flow: str = _FOR, accept: str = _ACCEPT) -> None:
    """Try what dagrun needs of this machine, and break out of each level of isolation.

    A level whose walls don't stand is shown with crosses, and no node is ever run behind them.
    Exit 8 if dagrun can't run here, or if the workflow of --for can't be held.
    """
    from dagrun.cli.doctor_levels import Ward
    from dagrun.cli.doctor_machine import machine

    settings: Settings = ctx.obj
    workflow = _read(flow) if flow else None
    found = machine()
    ward = Ward()
    try:
        levels = ward.levels(_image_of(workflow))
        refusal = ward.refusal(workflow, accept) if workflow is not None else None
    finally:
        ward.close()
    _show(settings, found, levels, flow, refusal)
    if refusal is not None or any(f.level == "error" for f in found):
        raise typer.Exit(8)


def _read(flow: str) -> Workflow:
    from dagrun.flowfile.load import read_workflow

    return read_workflow(flow).workflow


def _image_of(workflow: Workflow | None) -> str:
    """The first image that a workflow names; "" if it names none."""
    if workflow is None:
        return ""
    places = [workflow.docker, *(node.docker for node in workflow.nodes.values())]
    return next((place.image for place in places if place is not None and place.image), "")


def _show(
    settings: Settings, found: list[Finding], levels: list[Level], flow: str, refusal: EnvironmentFault | None
) -> None:
    from dagrun.view.doctor import finding_lines, level_lines

    bad = any(f.level == "error" for f in found)
    if settings.json:
        document: dict[str, object] = {"ok": not bad and refusal is None, "findings": [f._asdict() for f in found]}
        document["levels"] = [level.to_json() for level in levels]
        if flow:
            document["for"] = {"flow": flow, "held": refusal is None, "error": refusal and refusal.to_json()}
        emit_json(document)
        return
    look = look_for(settings, sys.stdout)
    if flow and settings.quiet:
        found = [f for f in found if f.level == "error"]
    for line in finding_lines(look, found, quiet=settings.quiet):
        emit(line)
    if not settings.quiet:
        emit("")
        for line in level_lines(look, levels):
            emit(line)
    if flow:
        _show_verdict(flow, refusal)


def _show_verdict(flow: str, refusal: DagrunError | None) -> None:
    from dagrun.errors import render, visible

    emit(f"{visible(os.path.basename(flow))} can be held here" if refusal is None else render(refusal))

"""skills: what agents can be taught here, where it comes from, and what is wrong with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import typer

from dagrun.cli.console import Settings, emit, emit_json, look_for, say
from dagrun.cli.groups import Entry, LazyGroup, command, group
from dagrun.errors import InputError, render, render_problem

if TYPE_CHECKING:
    from dagrun.agent.skills import Place, Skill

_FLOW = typer.Option("", "--flow", metavar="FILE", help="Look beside this workflow file, as its nodes do.")


def _places(flow: str) -> tuple[Place, ...]:
    from dagrun.agent.skills import search_path

    return search_path(os.path.dirname(flow) or ".", os.environ.get("HOME", ""))


@command("list", "dagrun skills list\ndagrun skills list --flow flows/review.yaml")
def list_(ctx: typer.Context, flow: str = _FLOW) -> None:
    """The skills that can be named here, where each comes from, and which are hidden or unreadable."""
    from dagrun.agent.skills import discover
    from dagrun.view.tables import Head, table
    from dagrun.view.text import clean

    settings: Settings = ctx.obj
    places = _places(flow)
    found = discover(places)
    if settings.json:
        emit_json(
            {
                "version": 1,
                "skills": [_to_json(s) for s in found.skills],
                "shadowed": [{"name": s.name, "path": s.path} for s in found.shadowed],
                "broken": [{"name": name, "problems": [p.to_json() for p in ps]} for name, ps in found.broken],
            }
        )
        return
    rows = [(clean(s.name), s.owner, _tools_text(s), clean(s.description)) for s in found.skills]
    if rows:
        heads = [Head("SKILL"), Head("FROM"), Head("TOOLS"), Head("DESCRIPTION")]
        emit("\n".join(table(heads, rows, look_for(settings, sys.stdout))))
    elif not found.broken:
        say(f"no skills in {', '.join(clean(p.path) for p in places)}")
    kept = {s.name: s for s in found.skills}
    for skill in found.shadowed:
        say(f"warning: {clean(skill.path)} is hidden by {clean(kept[skill.name].path)}")
    for name, _ in found.broken:
        say(f"warning: the skill `{clean(name)}` can't be read: dagrun skills validate {clean(name)}")


@command("show", "dagrun skills show code-review\ndagrun skills show code-review --json")
def show(ctx: typer.Context, name: str = typer.Argument(..., metavar="NAME"), flow: str = _FLOW) -> None:
    """One skill: what it is for, what it may use, and the text that a model gets. Exit 9 if there is none."""
    from dagrun.agent.skills import find
    from dagrun.view.text import clean, clean_block

    settings: Settings = ctx.obj
    skill = find(name, _places(flow))
    if settings.json:
        emit_json({"version": 1, **_to_json(skill), "body": skill.body})
        return
    emit(f"name         {clean(skill.name)}")
    emit(f"description  {clean(skill.description)}")
    emit(f"tools        {_tools_text(skill)}")
    emit(f"file         {clean(skill.path)} ({skill.owner})")
    emit(f"digest       sha256:{skill.digest}")
    for problem in skill.warnings:
        say(render_problem(problem))
    emit(f"\n{clean_block(skill.body)}")


@command("validate", "dagrun skills validate\ndagrun skills validate code-review skills/other")
def validate(
    ctx: typer.Context,
    names: list[str] = typer.Argument(None, metavar="[NAME|FOLDER]...", show_default=False),  # noqa: B008
    flow: str = _FLOW,
) -> None:
    """Check skills, all of the search path without a name. Exit 3 if one can't be read."""
    settings: Settings = ctx.obj
    checked = _checked(names or [], _places(flow))
    bad = [name for name, problems in checked if any(p.severity == "error" for p in problems)]
    if settings.json:
        skills = [{"name": name, "problems": [p.to_json() for p in problems]} for name, problems in checked]
        emit_json({"version": 1, "valid": not bad, "skills": skills})
    else:
        for name, problems in checked:
            if name in bad:
                emit(render(InputError(tuple(problems))))
                continue
            for problem in problems:
                emit(render_problem(problem))
            if not settings.quiet:
                from dagrun.view.text import clean

                emit(f"{clean(name)}: ok")
    if bad:
        raise typer.Exit(3)


def _checked(names: list[str], places: tuple[Place, ...]) -> list[tuple[str, list]]:  # type: ignore[type-arg]
    """(name, problems) of each skill that was asked for. Raises NotFoundError for a name that is none."""
    from dagrun.agent.skills import FILE, discover, find, load

    if not names:
        found = discover(places)
        good = [(s.name, list(s.warnings)) for s in (*found.skills, *found.shadowed)]
        return sorted([*good, *((name, list(problems)) for name, problems in found.broken)])
    checked = []
    for name in names:
        try:
            skill = load(name) if os.path.isfile(os.path.join(name, FILE)) else find(name, places)
            checked.append((name, list(skill.warnings)))
        except InputError as error:
            checked.append((name, list(error.problems)))
    return checked


def _tools_text(skill: Skill) -> str:
    if skill.allowed_tools is None:
        return "-"
    return ", ".join(skill.allowed_tools) or "none"


def _to_json(skill: Skill) -> dict[str, object]:
    return {
        "name": skill.name,
        "description": skill.description,
        "allowed_tools": None if skill.allowed_tools is None else list(skill.allowed_tools),
        "from": skill.owner,
        "path": skill.path,
        "digest": skill.digest,
    }


class _Skills(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = {
        "list": Entry("dagrun.cli.skills", "list_", "The skills that can be named here."),
        "show": Entry("dagrun.cli.skills", "show", "One skill, with its text."),
        "validate": Entry("dagrun.cli.skills", "validate", "What is wrong with skills."),
    }


def _skills() -> None:
    """Skills of agents: folders with a SKILL.md, in skills/, .agents/skills and .claude/skills.

    Those of the project come before those of the same name below your home.
    """


skills = group(_Skills, _skills, "dagrun skills list")

"""validate, schema: workflow files before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import typer

from dagrun.cli.console import Settings, emit, emit_json, say
from dagrun.cli.groups import command
from dagrun.errors import InputError, UsageError, render, render_problem

if TYPE_CHECKING:
    from dagrun.errors import Problem

FORMATS = ("text", "json", "github")
_FILES = typer.Argument(..., metavar="FILE...", help="Workflow files; - is stdin.")


class Checked(NamedTuple):
    """What came of one file: its size when it is valid, and its problems and warnings."""

    file: str
    valid: bool
    nodes: int
    waves: int
    problems: tuple[Problem, ...]


@command(
    "validate",
    "dagrun validate flow.yaml other.yaml\n"
    "dagrun validate flow.yaml --format github    # annotations in a pull request\n"
    "cat flow.yaml | dagrun validate -",
)
def validate(
    ctx: typer.Context,
    files: list[str] = _FILES,
    form: str = typer.Option("text", "-o", "--format", metavar="text|json|github", help="How to print what is found."),
    strict: bool = typer.Option(False, "--strict", help="Take warnings for errors."),
) -> None:
    """Check workflow files: all that is wrong in each, with the place and what to write instead.

    One line for each valid file. Exit 3 if any is invalid.
    """
    settings: Settings = ctx.obj
    if form not in FORMATS:
        raise UsageError(f"--format can't be {form}", hint="--format text, --format json or --format github")
    form = "json" if settings.json else form
    found = []
    for file in files:
        checked = _check(file, strict)
        found.append(checked)
        if form == "github":
            _annotate(checked)
        elif form == "text":
            _tell(settings, checked)
    invalid = [c.file for c in found if not c.valid]
    if form == "json":
        emit_json({"version": 1, "valid": not invalid, "files": [_to_json(c) for c in found]})
    elif invalid and form == "text" and len(files) > 1:
        say(f"{len(invalid)} of {len(files)} files are invalid")
    if invalid:
        raise typer.Exit(3)


def _check(file: str, strict: bool) -> Checked:
    from dagrun.cli.files import load_flow
    from dagrun.core.plan import compile_plan

    try:
        loaded = load_flow(file)
    except InputError as error:
        return Checked(file, False, 0, 0, error.problems)
    plan = compile_plan(loaded.workflow)
    return Checked(file, not (strict and loaded.warnings), len(plan.ids), plan.depth, loaded.warnings)


def _tell(settings: Settings, checked: Checked) -> None:
    if not checked.valid:
        following = f"dagrun validate {checked.file}"
        emit(render(InputError(checked.problems, hint=settings.hint(f"fix that, then: {following}"))))
        return
    for problem in checked.problems:
        emit(render_problem(problem))
    if not settings.quiet:
        name = "<stdin>" if checked.file == "-" else checked.file
        emit(f"{name}: ok, {_count(checked.nodes, 'node')}, {_count(checked.waves, 'wave')}")


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _to_json(checked: Checked) -> dict[str, object]:
    return {
        "file": checked.file,
        "valid": checked.valid,
        "nodes": checked.nodes,
        "waves": checked.waves,
        "problems": [p.to_json() for p in checked.problems],
    }


def _annotate(checked: Checked) -> None:
    """Workflow commands of GitHub Actions, one for each problem.

    Source: docs.github.com/actions, "Workflow commands: setting an error message".
    """
    for p in checked.problems:
        level = "error" if p.severity == "error" else "warning"
        place = f"file={_property(p.file or checked.file)}"
        if p.line:
            place += f",line={p.line},col={p.column}"
        text = f"{p.message}\n{p.hint}" if p.hint else p.message
        emit(f"::{level} {place},title={_property(p.code)}::{_data(text)}")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


@command("schema", "dagrun schema > workflow.schema.json\ndagrun schema | jq '.properties | keys'")
def schema() -> None:
    """The JSON Schema of workflow files, for editors: draft-07, with a text for every key."""
    from dagrun.flowfile.schema import schema_text

    emit(schema_text().rstrip("\n"))

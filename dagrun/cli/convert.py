"""import: workflows from elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import ClassVar

import typer

from dagrun.cli.console import Settings, emit, emit_json, say
from dagrun.cli.groups import Entry, LazyGroup, command, group
from dagrun.errors import EnvironmentFault, UsageError


class _Importers(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = {
        "wfformat": Entry("dagrun.cli.convert", "wfformat", "A recorded trace of WfCommons (WfFormat 1.5).")
    }


def _import() -> None:
    """Make a workflow file of what another tool wrote."""


import_ = group(_Importers, _import, "dagrun import wfformat trace.json > flow.yaml")


@command(
    "wfformat",
    "dagrun import wfformat montage.json -o montage.yaml\n"
    "dagrun import wfformat montage.json --time-scale 0 > montage.yaml",
)
def wfformat(
    ctx: typer.Context,
    file: str = typer.Argument(..., metavar="FILE", help="The trace; - reads it from stdin."),
    output: str = typer.Option("", "-o", "--output", metavar="FILE", show_default=False, help="Write it there."),
    time_scale: float = typer.Option(0.001, "--time-scale", metavar="X", help="Seconds slept per recorded second."),
    size_scale: float = typer.Option(0.0, "--size-scale", metavar="X", help="Bytes written per recorded byte."),
    folder: str = typer.Option("data", "--dir", metavar="DIR", help="Where the tasks write their files."),
    force: bool = typer.Option(False, "--force", help="Overwrite the file of -o."),
) -> None:
    """A workflow that behaves as a recorded trace did, but sleeps instead of computing."""
    from dagrun.flowfile.wfformat import import_wfformat

    settings: Settings = ctx.obj
    source = "stdin" if file == "-" else file
    text = import_wfformat(
        _read(file), source=source, time_scale=time_scale, size_scale=size_scale, data_dir=folder
    )
    if not output:
        if settings.json:
            emit_json({"workflow": text})
        else:
            emit(text.rstrip("\n"))
        return
    if os.path.lexists(output) and not force:
        raise UsageError(f"{output} is there already", hint="name another file, or overwrite it with --force")
    _write(output, text)
    if settings.json:
        emit_json({"files": [output], "next": [f"dagrun validate {output}", f"dagrun execute {output}"]})
    elif not settings.quiet:
        say(f"wrote {output}")
        say(settings.hint(f"next: dagrun execute {output}"))


def _read(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read()
        with open(file, "rb") as handle:
            return handle.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "is a folder" if isinstance(error, IsADirectoryError) else "is not there"
        raise UsageError(f"{file} {what}", hint="name a trace of WfCommons: dagrun import wfformat FILE") from None
    except OSError as error:
        hint = "give yourself the right to read it"
        raise EnvironmentFault(f"can't read {file}: {error.strerror}", hint=hint) from None


def _write(output: str, text: str) -> None:
    try:
        with open(output, "w", encoding="utf-8") as handle:
            handle.write(text)
    except OSError as error:
        raise EnvironmentFault(f"can't write {output}: {error.strerror}", hint="name another file with -o") from None

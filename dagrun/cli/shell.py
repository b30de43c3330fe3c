"""version, completion."""

from __future__ import annotations

import os

import typer

from dagrun.cli.console import Settings, emit, emit_json
from dagrun.cli.groups import command
from dagrun.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@command("version", "dagrun version\ndagrun version --json")
def version(ctx: typer.Context) -> None:
    """The version of dagrun and of the Python that runs it."""
    import platform

    from dagrun import __version__

    settings: Settings = ctx.obj
    if settings.json:
        emit_json({"dagrun": __version__, "python": platform.python_version(), "platform": platform.platform()})
    else:
        emit(f"dagrun {__version__} (Python {platform.python_version()})")


@command(
    "completion", 'eval "$(dagrun completion bash)"\ndagrun completion fish > ~/.config/fish/completions/dagrun.fish'
)
def completion(
    shell: str = typer.Argument("", metavar="[bash|zsh|fish]", show_default=False, help="By default that of $SHELL."),
) -> None:
    """The completion script of a shell, on stdout."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    if name not in SHELLS:
        what = f"there is no completion for {name}" if name else "which shell? $SHELL is not set"
        raise UsageError(what, hint="dagrun completion bash, zsh or fish")
    emit(get_completion_script(prog_name="dagrun", complete_var="_DAGRUN_COMPLETE", shell=name))

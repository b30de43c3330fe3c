"""Commands from functions, and groups that import a command's module only when it is called.

A group knows its commands by a table of name → (module, attribute, help line), so `--help` and a
command cost the import of one small module. Every command also takes the options of `COMMON`,
before its name or after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, cast

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from dagrun.cli.console import Settings
from dagrun.errors import NotFoundError, UsageError

COLORS = ("auto", "always", "never")


class Entry(NamedTuple):
    """Where a command is: module, attribute, and its line in the help of its group."""

    module: str
    attribute: str
    help: str


# ---------------------------------------------------------------- the options of every command


def _go_to(settings: Settings, folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        hint = "-C DIR: a folder that is there"
        raise UsageError(f"can't work in {folder}: {error.strerror}", hint=hint) from None
    settings.folder = os.path.join(settings.folder, folder)


def _set_color(settings: Settings, color: str) -> None:
    if color not in COLORS:
        raise UsageError(f"--color can't be {color}", hint="--color auto, --color always or --color never")
    settings.color = color


def _set_json(settings: Settings, _: object) -> None:
    settings.json = True


def _set_quiet(settings: Settings, _: object) -> None:
    settings.quiet = True


def _set_verbose(settings: Settings, times: int) -> None:
    settings.verbose += times


def _set_no_input(settings: Settings, _: object) -> None:
    settings.no_input = True


def _option(names: list[str], help: str, act: Callable[[Settings, Any], None], **how: Any) -> list[TyperOption]:  # noqa: A002
    """The same option twice: shown in the help of the program, hidden in the help of each command."""

    def callback(ctx: Any, _param: object, value: Any) -> None:
        if value and not ctx.resilient_parsing:
            act(cast(Settings, ctx.obj), value)

    return [
        TyperOption(param_decls=names, help=help, expose_value=False, callback=callback, hidden=hidden, **how)
        for hidden in (False, True)
    ]


_PAIRS = [
    _option(["-C"], "Work in this folder: it holds .dagrun/.", _go_to, metavar="DIR"),
    _option(["--json"], "One JSON document on stdout.", _set_json, is_flag=True),
    _option(["-q", "--quiet"], "Only what is needed.", _set_quiet, is_flag=True),
    _option(["-v", "--verbose"], "More detail.", _set_verbose, count=True, type=int),
    _option(["--no-input"], "Never ask; fail instead.", _set_no_input, is_flag=True),
    _option(["--color"], "Colours in a terminal (auto).", _set_color, metavar="|".join(COLORS)),
]
SHOWN = [pair[0] for pair in _PAIRS]
HIDDEN = [pair[1] for pair in _PAIRS]
PARAM = typer.Option([], "-p", "--param", metavar="K=V", show_default=False, help="A param of the workflow.")
PARAMS = typer.Option("", "--params", metavar="FILE", show_default=False, help="Params from YAML or JSON.")
PARALLEL = typer.Option(None, "-j", "--parallel", metavar="N", min=1, show_default=False, help="Nodes at a time.")
_HABITS = {  # what people type that know other programs
    "run": "execute",
    "start": "execute",
    "list": "runs",
    "ls": "runs",
    "ps": "runs",
    "stop": "cancel",
    "kill": "cancel",
    "check": "validate",
    "lint": "validate",
    "show": "trace show",
    "log": "logs",
    "graph": "plan",
    "retry": "resume",
}
FOOTER = "Also: -C DIR, --json, -q, -v, --no-input, --color (see dagrun --help)"


# ---------------------------------------------------------------- commands


class Command(TyperCommand):
    """A command that also takes the options of every command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its own parameters, then those of every command."""
        return [*super().get_params(ctx), *HIDDEN]

    def get_help_option_names(self, ctx: Any) -> list[str]:
        """In one order, always."""
        return sorted(super().get_help_option_names(ctx), reverse=True)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples as they are written, and where the other options are."""
        _format_epilog(self.epilog, formatter)


def _format_epilog(epilog: str | None, formatter: Any) -> None:
    formatter.write_paragraph()
    if epilog:
        formatter.write("Examples:\n" + "".join(f"  {line}\n" for line in epilog.strip().splitlines()))
        formatter.write_paragraph()
    formatter.write(FOOTER + "\n")


def _app(**how: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **how,
    )


def command(
    name: str, examples: str, cls: type[Command] = Command
) -> Callable[[Callable[..., None]], Command]:
    """A decorator that makes a command of a function; its docstring is the help, `examples` end it."""

    def make(function: Callable[..., None]) -> Command:
        app = _app()
        app.command(name, cls=cls, epilog=examples)(function)
        return cast(Command, typer.main.get_command(app))

    return make


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are called."""

    table: ClassVar[Mapping[str, Entry]] = {}
    common: ClassVar[list[TyperOption]] = HIDDEN

    def get_params(self, ctx: Any) -> list[Any]:
        """Its own parameters, then those of every command."""
        return [*super().get_params(ctx), *self.common]

    def get_help_option_names(self, ctx: Any) -> list[str]:
        """In one order, always."""
        return sorted(super().get_help_option_names(ctx), reverse=True)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now; None where there is none."""
        entry = self.table.get(cmd_name)
        return getattr(import_module(entry.module), entry.attribute) if entry else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names. Raises UsageError with what it might have been."""
        name = args[0]
        path = ctx.command_path
        found = self.get_command(ctx, name)
        if found is None and not ctx.resilient_parsing:
            raise UsageError(f"there is no command `{path} {name}`", hint=suggest_command(path, name, self.table))
        return (name if found else None), found, args[1:]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table as help: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.table.items()])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples as they are written, and where the other options are."""
        if self.common is HIDDEN or self.epilog:
            _format_epilog(self.epilog, formatter)


def suggest_command(path: str, name: str, names: Mapping[str, object]) -> str:
    """What somebody who typed an unknown command should type."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), n=1)
    meant = _HABITS.get(name) or (close[0] if close else "")
    if not meant and is_flow(name):
        meant = f"execute {name}"
    known = meant.partition(" ")[0] in names
    return f"did you mean `{path} {meant}`?" if known else f"see what there is: {path} --help"


def group(
    cls: type[LazyGroup], function: Callable[..., None], examples: str = "", *, alone: bool = False
) -> TyperGroup:
    """A group of the class `cls`; `function` gives its help and, with `alone`, is what it does by itself."""
    app = _app(cls=cls, invoke_without_command=alone, no_args_is_help=False)
    app.callback(cls=cls, epilog=examples, invoke_without_command=alone, no_args_is_help=False)(function)
    return typer.main.get_group(app)


# ---------------------------------------------------------------- words that commands share


def is_flow(text: str) -> bool:
    """Whether a word that may name a FLOW or a RUN means a FLOW: an existing path, or `*.yaml`."""
    return text.endswith((".yaml", ".yml", ".json")) or os.path.exists(text)


def run_and_node(words: Sequence[str], *, node_needed: bool) -> tuple[str | None, str | None]:
    """(RUN, NODE) of up to two words. One word is a NODE of the last run where it has such a node.

    With `node_needed` one word is always a NODE. Raises UsageError for more than two.
    """
    if len(words) > 2:
        raise UsageError(f"one RUN and one NODE, not {len(words)} words: {' '.join(words)}")
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return None, None
    word = words[0]
    if node_needed:
        return None, word
    if word == "last":
        return word, None
    from dagrun.store.history import load_state
    from dagrun.store.rundir import find_run

    if word in load_state(find_run(".", None)).plan.index:
        return None, word
    try:
        return find_run(".", word).id, None
    except NotFoundError as error:
        error.message += f", and the last run has no node {word}"
        raise


def node_number(index: Mapping[str, int], node: str, run_id: str) -> int:
    """The number of a node of a run. Raises NotFoundError with what it might have been."""
    found = index.get(node)
    if found is not None:
        return found
    from difflib import get_close_matches

    close = get_close_matches(node, list(index), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise NotFoundError(f"run {run_id} has no node {node}", hint=f"{hint}see them all: dagrun trace show {run_id}")

"""The program: its commands by name, and the door that no traceback passes.

`door` is the only place of the command line that catches everything. What dagrun says no to is
rendered with the next command to type; what nobody expected becomes a report file and exit 70.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import typer

from dagrun.cli.console import Settings, emit, emit_json, flush_stdout, prepare_streams, say
from dagrun.cli.groups import SHOWN, Entry, LazyGroup, group
from dagrun.errors import BugError, DagrunError, EnvironmentFault, UsageError, render, visible

COMMANDS: Mapping[str, Entry] = {
    "init": Entry("dagrun.cli.start", "init", "Write a first workflow that runs."),
    "validate": Entry("dagrun.cli.check", "validate", "Check workflow files and show all that is wrong."),
    "plan": Entry("dagrun.cli.plan", "plan", "Show what would run, wave by wave."),
    "execute": Entry("dagrun.cli.execute", "execute", "Run a workflow, always as a new run."),
    "resume": Entry("dagrun.cli.execute", "resume", "Go on with a run that has not completed."),
    "cancel": Entry("dagrun.cli.execute", "cancel", "End a run."),
    "replan": Entry("dagrun.cli.replan", "replan", "Change the plan of a run, or a workflow file."),
    "review": Entry("dagrun.cli.review", "review", "Decide what waits for a human."),
    "status": Entry("dagrun.cli.look", "status", "How a run stands: running, blocked and why."),
    "runs": Entry("dagrun.cli.runs", "runs", "List the runs of this project; `runs gc` removes old ones."),
    "logs": Entry("dagrun.cli.logs", "logs", "What a node wrote."),
    "outputs": Entry("dagrun.cli.look", "outputs", "The values that a run or a node gave."),
    "trace": Entry("dagrun.cli.trace", "trace", "What happened: show, list, follow, export."),
    "diff": Entry("dagrun.cli.compare", "diff", "The patch that leads from one plan to another."),
    "rehearse": Entry("dagrun.cli.compare", "rehearse", "Fail each node in simulation, and say what then."),
    "export": Entry("dagrun.cli.compare", "export", "The graph of a run as it ran, as a workflow."),
    "import": Entry("dagrun.cli.convert", "import_", "Workflows from elsewhere: wfformat."),
    "skills": Entry("dagrun.cli.skills", "skills", "Skills of agents: list, show, validate."),
    "audit": Entry("dagrun.cli.audit", "audit", "Where every byte of a run's model requests comes from."),
    "schema": Entry("dagrun.cli.check", "schema", "The JSON Schema of workflow files."),
    "doctor": Entry("dagrun.cli.doctor", "doctor", "What this machine can hold, and what it can't."),
    "completion": Entry("dagrun.cli.shell", "completion", "The completion script of your shell."),
    "version": Entry("dagrun.cli.shell", "version", "The version of dagrun."),
}

# What a machine lacks; anything else that the system refuses is a bug of ours.
_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE}
    | {errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.ENODEV, errno.ENOTCONN}
)


class _Program(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = COMMANDS
    common: ClassVar[list[Any]] = SHOWN


def _show_version(value: bool) -> None:
    if value:
        from dagrun import __version__

        emit(f"dagrun {__version__}")
        raise typer.Exit()


def _program(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    """Runs a graph of commands and agents from one YAML file, and lets you change it while it runs.

    RUN is a short id such as r7k2, the start of one, or `last`; left out it is the last run.
    """
    if ctx.invoked_subcommand is None:
        emit(ctx.get_help())
        from dagrun.store.rundir import list_runs

        if list_runs("."):
            from dagrun.cli.look import last_run_line

            emit(f"\n{last_run_line()}")


def program() -> Any:
    """The whole command line, as typer has it."""
    examples = "dagrun init\ndagrun execute dagrun.yaml\ndagrun trace show"
    made = group(_Program, _program, alone=True)
    made.epilog = None
    made.help = f"{made.help}\n\n\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.splitlines())
    return made


def main(args: Sequence[str] | None = None) -> int:
    """Carry out a command line (without the name of the program); its exit code."""
    prepare_streams()
    settings = Settings()
    words = list(sys.argv[1:] if args is None else args)
    return door(settings, lambda: _run(settings, words), words)


def _run(settings: Settings, words: list[str]) -> int:
    cli = program()
    asked = os.environ.get("_DAGRUN_COMPLETE")
    if asked:
        from typer.completion import completion_init, shell_complete  # type: ignore[attr-defined]

        completion_init()
        return shell_complete(cli, {"obj": settings}, "dagrun", "_DAGRUN_COMPLETE", asked)
    try:
        with cli.make_context("dagrun", words, obj=settings) as ctx:
            cli.invoke(ctx)
    except typer.Exit as leave:
        return leave.exit_code
    return 0


# ---------------------------------------------------------------- the door


def door(settings: Settings, work: Callable[[], int], words: Sequence[str] = ()) -> int:
    """The exit code of `work`, or of how it failed: told to a person, or as JSON with --json."""
    try:
        code = work()
        flush_stdout()
        return code
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        say("")
        return 130
    except Exception as error:  # noqa: BLE001  (the door)
        return _refuse(settings, _as_refusal(error), words)


def _as_refusal(error: Exception) -> DagrunError:
    """Any exception as something to say; a BugError for what nobody expected."""
    if isinstance(error, DagrunError):
        return error
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click, wherever typer keeps it
        return _as_usage(error)
    if isinstance(error, OSError) and error.errno in _MACHINE:
        place = f" {error.filename}" if error.filename else ""
        hint = "see what this machine can do: dagrun doctor"
        return EnvironmentFault(f"the system refuses{place}: {error.strerror}", hint=hint)
    bug = BugError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    bug.__cause__ = error
    return bug


def _as_usage(error: Any) -> UsageError:
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else "dagrun"
    if type(error).__name__ == "MissingParameter" and error.param is not None and error.param.metavar:
        what = error.param.metavar
        return UsageError(f"`{path}` needs {what}", hint=_with_a_word(path, what))
    message = str(error.format_message()).rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint=f"{path} --help")


def _with_a_word(path: str, what: str) -> str:
    """A command line that has what was missing."""
    if "NODE" in what:
        return "see the nodes of the last run: dagrun trace show"
    flows = sorted(name for name in os.listdir(".") if name.endswith((".yaml", ".yml")))
    if "FILE" not in what or "import" in path:
        return f"{path} --help"
    if not flows:
        return "start with a workflow that runs: dagrun init"
    return f"{path} {'dagrun.yaml' if 'dagrun.yaml' in flows else flows[0]}"


def _refuse(settings: Settings, error: DagrunError, words: Sequence[str]) -> int:
    if isinstance(error, BugError):
        _report(error, words)
    error.hint = settings.hint(error.hint)
    try:
        # A wrong option may have kept --json from being read.
        if settings.json or "--json" in words:
            emit_json({"error": error.to_json()})
            flush_stdout()
        else:
            flush_stdout()
            say(render(error))
    except EnvironmentFault as worse:
        say(render(worse))
    return error.exit_code


def _report(error: BugError, words: Sequence[str]) -> None:
    """Write the report of a bug, and make the error name it."""
    import traceback

    cause = error.__cause__ or error
    story = "".join(traceback.format_exception(cause))
    if os.environ.get("DAGRUN_DEBUG"):
        say(visible(story.rstrip()))
    path = _report_file(story, words)
    with_it = f"with {path}" if path else "with what DAGRUN_DEBUG=1 shows"
    error.hint = f"a bug of dagrun; please report it, {with_it}"


def _report_file(story: str, words: Sequence[str]) -> str:
    """The path of a new report in `.dagrun/` or the folder for temporary files; empty where neither can be written."""
    import platform
    from time import strftime

    from dagrun import __version__

    text = (
        f"dagrun {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"{strftime('%Y-%m-%d %H:%M:%S %z')}\n"
        f"arguments: {list(words)!r}\n\n{story}"
    )
    name = f"bug-{strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (os.path.abspath(".dagrun"), os.environ.get("TMPDIR") or "/tmp"):
        path = os.path.join(folder, name if folder.endswith(".dagrun") else f"dagrun-{name}")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return path
    return ""


__all__ = ["COMMANDS", "door", "main", "program"]

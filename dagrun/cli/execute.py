"""execute, resume, cancel: what has to do with an engine.

Once the arguments are understood everything of `execute` and `resume` happens in the engine's own
process, the child of a watchdog (`run_under_watchdog`), with a door of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from dagrun.cli.app import door
from dagrun.cli.console import Settings, emit, emit_json, say, warn
from dagrun.cli.groups import PARALLEL, PARAM, PARAMS, command
from dagrun.cli.look import ARGUMENT, resolved, show_values
from dagrun.cli.mention import mention_edited, mention_unfinished
from dagrun.cli.show import UIS, Show, check_ui
from dagrun.errors import EnvironmentFault, InputError, UsageError

if TYPE_CHECKING:
    from dagrun.core.names import Json
    from dagrun.core.workflow import Workflow
    from dagrun.engine.recording import Record
    from dagrun.engine.session import Ended, Options
    from dagrun.sandbox.watchdog import EngineSide

_UI = typer.Option("auto", "--ui", metavar="UI", help=f"How to show it: {', '.join(UIS)}.")
_JUNIT = typer.Option("", "--junit", metavar="FILE", show_default=False, help="Write a JUnit report there.")
_OTLP = typer.Option(
    "", "--otlp", metavar="TO", show_default=False, help="Send it as OpenTelemetry spans: a URL or a FILE."
)
_ONLY = typer.Option([], "--only", metavar="NODE", show_default=False, help="Run only this node.")
_FROM = typer.Option([], "--from", metavar="NODE", show_default=False, help="This node and what follows it.")
_UNTIL = typer.Option([], "--until", metavar="NODE", show_default=False, help="This node and what it needs.")
_FAIL_FORM = "NODE[:OUTCOME[:ATTEMPT]]"
_ACCEPT = typer.Option(
    "", "--accept-missing", metavar="LIST", show_default=False, help="Guarantees to go without: fs.meta,…"
)
_PROVIDER = typer.Option(
    "", "--provider", metavar="live|fake", show_default=False, help="Who answers agents, whatever the file says."
)
_REPLAY = typer.Option(
    "", "--replay", metavar="RUN", show_default=False, help="Take all answers from a recorded run, or its file."
)
_FAIL = typer.Option([], "--fail", metavar=_FAIL_FORM, show_default=False, help="Make a node fail so.")


@dataclass(slots=True, kw_only=True)
class _Request:
    """What was asked of `execute`, as it was written."""

    file: str
    params: list[str]
    params_file: str
    parallel: int | None
    only: list[str]
    from_: list[str]
    until: list[str]
    outputs_of: str
    fail: list[str]
    ui: str
    junit: str
    accept_missing: str
    provider: str = ""
    replay: str = ""
    run_tools: bool = False
    otlp: str = ""


@command(
    "execute",
    "dagrun execute flow.yaml -p topic=graphs -j 4\n"
    "dagrun execute flow.yaml --dry-run\n"
    "dagrun execute flow.yaml --from test --outputs-of last\n"
    "dagrun execute flow.yaml --fail build:timed_out:1   # how does it take that?",
)
def execute(
    ctx: typer.Context,
    file: str = typer.Argument(..., metavar="FILE", help="The workflow; - reads it from stdin."),
    param: list[str] = PARAM,
    params: str = PARAMS,
    parallel: int = PARALLEL,
    only: list[str] = _ONLY,
    from_: list[str] = _FROM,
    until: list[str] = _UNTIL,
    outputs_of: str = typer.Option("", "--outputs-of", metavar="RUN", show_default=False, help="For nodes left out."),
    dry_run: bool = typer.Option(False, "-n", "--dry-run", help="Show what would run; make nothing."),
    fail: list[str] = _FAIL,
    ui: str = _UI,
    junit: str = _JUNIT,
    otlp: str = _OTLP,
    accept_missing: str = _ACCEPT,
    provider: str = _PROVIDER,
    replay: str = _REPLAY,
    run_tools: bool = typer.Option(False, "--run-tools", help="With --replay: run commands and tools."),
) -> None:
    """Run a workflow, always as a new run. Exit 0 if it completed, 1 if nodes failed.

    The show goes to stderr, the outputs of the workflow to stdout.
    """
    settings: Settings = ctx.obj
    _check_provider(provider, replay)
    _check_replay(replay, run_tools, [*only, *from_, *until, *fail, outputs_of])
    check_ui(ui)
    request = _Request(
        file=file,
        params=param,
        params_file=params,
        parallel=parallel,
        only=only,
        from_=from_,
        until=until,
        outputs_of=outputs_of,
        fail=fail,
        ui=ui,
        junit=junit,
        otlp=otlp,
        accept_missing=accept_missing,
        provider=provider,
        replay=replay,
        run_tools=run_tools,
    )
    if dry_run:
        _dry_run(settings, request)
    else:
        _in_engine(settings, lambda side: _execute(settings, request, side))


def _in_engine(settings: Settings, work: Callable[[EngineSide], int]) -> None:
    """Do `work` in the engine's process; this one becomes its watchdog, and leaves with its exit code."""
    from dagrun.sandbox.watchdog import run_under_watchdog

    words = sys.argv[1:]
    raise typer.Exit(run_under_watchdog(lambda side: door(settings, lambda: work(side), words)))


# ---------------------------------------------------------------- in the engine's process


def _execute(settings: Settings, request: _Request, side: EngineSide) -> int:
    from dagrun.engine import session

    _check_junit(request.junit)
    _check_otlp(request.otlp)
    workflow, options = _prepared(request)
    session.check_options(workflow, options)
    if request.ui != "quiet" and not settings.quiet:
        mention_unfinished(settings, workflow)
    shown = Show(settings, request.ui)
    ended = session.execute(workflow, options, shown.observer, side)
    return _conclude(settings, ended, shown, request.junit, request.otlp)


def _prepared(request: _Request) -> tuple[Workflow, Options]:
    """The workflow and what is to be done with it. Raises InputError, NotFoundError and UsageError."""
    from dagrun.cli.files import load_flow
    from dagrun.cli.params import check_nodes, injected
    from dagrun.engine.session import Options
    from dagrun.errors import render_problem

    try:
        loaded = load_flow(request.file, provider=request.provider, prices=not request.replay)
    except InputError as error:
        error.hint = error.hint or f"fix that, then: dagrun validate {request.file}"
        raise
    for problem in loaded.warnings:
        say(render_problem(problem))
    workflow = loaded.workflow
    record = _record(request.replay)
    for option, names in (("--only", request.only), ("--from", request.from_), ("--until", request.until)):
        check_nodes(workflow, option, names)
    fail = injected(workflow, request.fail)
    options = Options(
        project=os.getcwd(),
        params=_params(workflow, request, record),
        parallel=request.parallel or (record.parallel if record is not None else None),
        only=request.only,
        from_=request.from_,
        until=request.until,
        outputs_of=_earlier_run(request.outputs_of),
        fail=fail if record is None else {n: f for n, f in record.created.fail.items() if n in workflow.nodes},
        accept_missing=request.accept_missing,
        provider=request.provider,
        replay=record,
        run_tools=request.run_tools,
    )
    return workflow, options


def _check_provider(provider: str, replay: str) -> None:
    if provider not in ("", "live", "fake"):
        raise UsageError(f"--provider {provider}: there is no such provider", hint="write live or fake")
    if provider and replay:
        text = "a recorded run answers itself: --provider does not go with --replay"
        raise UsageError(text, hint=f"dagrun execute FILE --replay {replay}")


def _check_replay(replay: str, run_tools: bool, chosen: list[str]) -> None:
    if run_tools and not replay:
        raise UsageError("--run-tools goes with --replay", hint="dagrun execute FILE --replay RUN --run-tools")
    if replay and any(chosen):
        text = "a recorded run is played again as it was: no --only, --from, --until, --fail or --outputs-of"
        raise UsageError(text, hint=f"dagrun execute FILE --replay {replay}")


def _record(text: str) -> Record | None:
    """The recorded run that --replay means. Raises NotFoundError, InputError and JournalError."""
    if not text:
        return None
    from dagrun.engine.recordfile import open_record

    return open_record(text, ".")


def _params(workflow: Workflow, request: _Request, record: Record | None) -> dict[str, Json]:
    """The params of the run; in a replay those of the record where none is given."""
    from dagrun.cli.params import typed_params

    file = request.params_file or None
    if record is None:
        return typed_params(workflow, request.params, file)
    given = typed_params(workflow, request.params, file, complete=False)
    return {**{k: v for k, v in record.created.params.items() if k in workflow.params}, **given}


def _earlier_run(text: str) -> str | None:
    """The id of the run that --outputs-of names: `last` means another one as soon as the new run is there."""
    from dagrun.store.rundir import find_run

    return find_run(".", text).id if text else None


def _check_junit(path: str) -> None:
    """Refuse a report that can't be written before an hour of work, not after it."""
    folder = os.path.dirname(os.path.abspath(path))
    if path and (os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK)):
        raise UsageError(f"--junit: can't write {path}", hint="name a file in a folder that is there")


def _check_otlp(target: str) -> None:
    if target == "-":
        raise UsageError("--otlp: stdout is for the outputs of the workflow", hint="name a file or a URL")
    if target:
        from dagrun.cli.otlp import check_target

        check_target(target)


def _conclude(settings: Settings, ended: Ended, shown: Show, junit: str, otlp: str = "") -> int:
    """The summary on stderr, the results on stdout, the reports; the exit code of the command."""
    final = ended.state.ended
    outputs = resolved(ended.run, final.outputs) if final else {}
    shown.summarize(ended.run, ended.state)
    code = ended.exit_code
    if junit:
        code = _write_junit(ended, junit) or code
    if otlp:
        from dagrun.cli.otlp import export_ended

        failed = export_ended(ended.run, ended.state, otlp)
        if failed:  # a run is not the worse for a collector that is away
            warn(f"{failed}; again: dagrun trace export {ended.run_id} --otlp {otlp}")
    if settings.json:
        from dagrun.core.trace import totals

        emit_json(
            {
                "run_id": ended.run_id,
                "status": ended.status,
                "exit_code": ended.exit_code,
                "outputs": outputs,
                "totals": totals(ended.state),
            }
        )
    elif shown.ui != "json":
        show_values(outputs)
    return code


def _write_junit(ended: Ended, path: str) -> int:
    """Write the report; 0, or what the command exits with when it can't and the run was well."""
    from dagrun.cli.show import write_junit

    try:
        write_junit(ended.run, ended.state, path)
    except OSError as error:
        say(f"warning: can't write {path}: {error.strerror}")
        return ended.exit_code or EnvironmentFault.exit_code
    return 0


# ---------------------------------------------------------------- resume, cancel


@command("resume", "dagrun resume\ndagrun resume r7k2 -j 2")
def resume(
    ctx: typer.Context,
    run: str = ARGUMENT,
    parallel: int = PARALLEL,
    ui: str = _UI,
    junit: str = _JUNIT,
    otlp: str = _OTLP,
    accept_missing: str = _ACCEPT,
) -> None:
    """Go on with a run that has not completed: what is done stays done, what failed is tried again."""
    settings: Settings = ctx.obj
    check_ui(ui)
    request = _Resume(run=run, parallel=parallel, ui=ui, junit=junit, otlp=otlp, accept_missing=accept_missing)
    _in_engine(settings, lambda side: _take_up(settings, request, side))


@dataclass(slots=True, kw_only=True)
class _Resume:
    """What was asked of `resume`, as it was written."""

    run: str
    parallel: int | None = None
    ui: str = "auto"
    junit: str = ""
    otlp: str = ""
    accept_missing: str = ""


def _take_up(settings: Settings, request: _Resume, side: EngineSide) -> int:
    from dagrun.core.names import RunStatus
    from dagrun.engine import session
    from dagrun.store.history import load_state
    from dagrun.store.rundir import find_run

    _check_junit(request.junit)
    _check_otlp(request.otlp)
    found = find_run(".", request.run)
    state = load_state(found)
    if state.status is RunStatus.COMPLETED and not settings.json:
        say(f"run {found.id} has completed: there is nothing to resume")
        say(settings.hint(f"  help: dagrun trace show {found.id}"))
        return 0
    mention_edited(settings, found, state)
    options = session.Options(
        project=os.getcwd(), parallel=request.parallel, accept_missing=request.accept_missing
    )
    shown = Show(settings, request.ui)
    ended = session.resume(found, options, shown.observer, side)
    return _conclude(settings, ended, shown, request.junit, request.otlp)


def go_on(settings: Settings, run: str, accept_missing: str = "") -> None:
    """Take a run up in the foreground as `resume` does; leaves with its exit code."""
    request = _Resume(run=run, accept_missing=accept_missing)
    _in_engine(settings, lambda side: _take_up(settings, request, side))


@command("cancel", "dagrun cancel\ndagrun cancel r7k2")
def cancel(ctx: typer.Context, run: str = ARGUMENT) -> None:
    """End a run: what runs is ended, what waits is not started. It can still be resumed."""
    from dagrun.core.names import RunStatus
    from dagrun.engine.recovery import request_cancel
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    found = find_run(".", run)
    status = request_cancel(found, _who())
    asked = status is RunStatus.RUNNING
    if settings.json:
        emit_json({"run_id": found.id, "status": status, "asked": asked})
    elif asked:
        emit(f"asked the engine of run {found.id} to end it")
        say(settings.hint(f"  help: watch it: dagrun trace follow {found.id}"))
    elif status is RunStatus.CANCELLED:
        emit(f"run {found.id} is cancelled")
    else:
        emit(f"run {found.id} has {status} already: there is nothing to cancel")


def _who() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"


# ---------------------------------------------------------------- dry run


def _dry_run(settings: Settings, request: _Request) -> None:
    """What `execute` would do, and nothing else."""
    from dagrun.cli.plan import show_selection
    from dagrun.engine.session import check_machine, check_options

    workflow, options = _prepared(request)
    check_options(workflow, options)
    for note in check_machine(workflow, options):
        warn(note)
    show_selection(settings, workflow, options)
    if not settings.json and not settings.quiet:
        say("dry run: nothing was started")

"""One attempt, from the effect to its outcome: what a node runs with, and what came of it.

Never raises for a node's failure: what is wrong with a node becomes an AttemptFinished. What is
wrong with the machine (a full disk, an unreadable store) is an EnvironmentFault for the engine.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from dagrun.core.event import AttemptFinished, NodeSkipped, ReviewRequested
from dagrun.core.names import Json, NodeId, Outcome
from dagrun.core.state import RunState
from dagrun.core.workflow import Node, Output
from dagrun.engine.bench import Command, Workbench, is_guarded
from dagrun.engine.secrets import NoSecret
from dagrun.sandbox.base import Exit
from dagrun.sandbox.command import command_argv
from dagrun.sandbox.logpool import LogPool, Slot
from dagrun.store.exchange import OutputError, read_bytes, read_json, read_outputs_file, read_stdout, read_text

if TYPE_CHECKING:
    from dagrun.engine.masking import LiveMask
    from dagrun.sandbox.wall import Aftermath
    from dagrun.sandbox.walls import Held
    from dagrun.store.artifacts import Opener

MAX_ENV_BYTES = 64 * 1024  # an input above this is only in the inputs file
SUMMARY_CHARS = 200
_TAIL_BYTES = 4096


@dataclass(slots=True)
class Ending:
    """Why the engine ended an attempt itself: outcome, the words for it, the limit that was hit."""

    outcome: Outcome
    error: str
    limit: str = ""
    escalated: bool = False


# ---------------------------------------------------------------- from the effect to a command


def prepare(bench: Workbench, state: RunState, i: int) -> Command | AttemptFinished | NodeSkipped | ReviewRequested:
    """What to spawn for the next attempt of node `i`; or its end, when it can't or need not start."""
    node = state.plan.nodes[i]
    number = len(state.attempts[i]) + 1
    injected = _injected(state, node.id, number)
    if injected is not None:
        return injected
    try:
        return _prepare(bench, state, i, node, number)
    except NoSecret as error:  # of a node that a patch brought: those of the plan were there at the start
        text = bench.mask.text(f"could not start: {error.message} ({error.hint})")
        return AttemptFinished(node=node.id, attempt=number, outcome=Outcome.FAILED, error=text)


def _injected(state: RunState, node: NodeId, number: int) -> AttemptFinished | None:
    wanted = state.created.fail.get(node)
    if not wanted or (wanted[1] and wanted[1] != number):
        return None
    outcome = Outcome(str(wanted[0]))
    return AttemptFinished(node=node, attempt=number, outcome=outcome, error=f"{outcome} injected by --fail")


def _prepare(
    bench: Workbench, state: RunState, i: int, node: Node, number: int
) -> Command | AttemptFinished | NodeSkipped | ReviewRequested:
    runs = bench.replay is None or bench.replay.run_tools
    if runs and node.review is None and is_guarded(bench.ceiling, node):
        from dagrun.engine.confine import guard_of

        guard = guard_of(bench, state.plan.workflow)
        place = guard.place(node, number)
        prepared = _command(bench, state, i, node, number, place.env, f"{place.folder}/")
        return guard.finish(node, number, place, prepared)
    return _command(bench, state, i, node, number, bench.base(node).copy(), f"{bench.exchange}/{node.id}.{number}.")


def _command(
    bench: Workbench, state: RunState, i: int, node: Node, number: int, env: dict[str, str], stem: str
) -> Command | AttemptFinished | NodeSkipped | ReviewRequested:
    env["DAGRUN_NODE"] = node.id
    env["DAGRUN_ATTEMPT"] = str(number)
    env["DAGRUN_ATTEMPT_ID"] = f"{bench.run_id}/{node.id}/{number}"
    env["DAGRUN_OUTPUT"] = f"{stem}out"
    env["DAGRUN_PATCH"] = f"{stem}patch"
    env["DAGRUN_IDEMPOTENCY_KEY"] = f"{bench.key}-{node.id}"
    run = node.run
    plain = isinstance(run, str) or not any("${{" in word for word in run)
    if plain and not (node.review or node.agent or node.inputs or node.env or node.condition or node.cwd):
        script = run if isinstance(run, str) else ""
        return Command(command_argv(run, node.shell), env, script=script, stem=stem)
    from dagrun.engine.inputs import prepare_rich

    return prepare_rich(bench, state, i, number, env, stem)


# ---------------------------------------------------------------- from the exit to an outcome


@dataclass(slots=True)
class Running:
    """An attempt with a process: what the engine needs to end it and to judge it."""

    node: int
    number: int
    command: Command
    slot: Slot
    started_m: float
    ending: Ending | None = None
    live: LiveMask | None = None
    held: Held | None = None
    after: Aftermath | None = None


def conclude(
    bench: Workbench, logs: LogPool, node: Node, run: Running, exit_: Exit, *, retire: bool
) -> AttemptFinished:
    """The outcome of an attempt whose processes are all dead; gives its log slot back.

    `retire`: something may still hold the log files. Raises EnvironmentFault when the store fails.
    """
    outcome, error, limit = _outcome(node, run, exit_)
    if run.after is not None:
        outcome, error, limit = _with_aftermath(run.after, run.ending, outcome, error, limit)
    written = logs.take_back(run.slot, node.output_bytes)
    if written > node.output_bytes and run.ending is None and outcome is not Outcome.DENIED:
        outcome, error, limit = Outcome.OVER_LIMIT, over_output(written, node.output_bytes), "output"
    if outcome is Outcome.FAILED and node.file_size and _hit_file_size(logs, run.slot):
        # Python and others ignore SIGXFSZ: only their own words tell that the limit ended them
        text = f"file_size: a file would have become larger than its limit of {node.file_size} bytes ({error})"
        outcome, error, limit = Outcome.OVER_LIMIT, text, "file_size"
    outputs: dict[str, Json] = {}
    artifacts: tuple[Json, ...] = ()
    if outcome is Outcome.COMPLETED and (node.outputs or node.output_schema is not None or node.artifacts):
        try:
            outputs = collect_outputs(bench, node, run)
            artifacts = keep_artifacts(bench, node, run)
        except OutputError as bad:
            outcome, error, outputs = Outcome.INVALID_OUTPUT, bad.message, {}
            if bench.mask:  # a quotation that was cut short could end within a secret
                error = re.sub(r"""(['"])(?:(?!\1).)*…\1""", "'…'", error)
    if bench.mask and written:
        from dagrun.engine.masking import mask_file

        mask_file(bench.mask, run.slot.out_fd)
        mask_file(bench.mask, run.slot.err_fd)
    # after the masking: a summary cut from the raw text could end within a secret
    summary = _summary(logs, run.slot, outcome) if written else ""
    out_bytes, err_bytes = logs.release(run.slot, node.id, run.number, retire=retire)
    return AttemptFinished(
        node=node.id,
        attempt=run.number,
        outcome=outcome,
        duration_ms=round((monotonic() - run.started_m) * 1000),
        exit_code=exit_.code,
        signal=exit_.signal,
        error=bench.mask.text(error),
        limit=limit,
        summary=bench.mask.text(summary),
        outputs=outputs,
        artifacts=artifacts,
        max_rss_bytes=_peak(run, exit_),
        cpu_ms=None if _elsewhere(run) else exit_.cpu_ms,
        stdout_bytes=out_bytes,
        stderr_bytes=err_bytes,
    )


def _outcome(node: Node, run: Running, exit_: Exit) -> tuple[Outcome, str, str]:
    """(outcome, error, limit) by how the main process ended and whether the engine ended it."""
    ending = run.ending
    if ending is not None:
        # it may have been done just before the signal: a clean exit of its own is not a cancellation
        if ending.outcome is Outcome.CANCELLED and exit_.code == 0:
            return Outcome.COMPLETED, "", ""
        ignored = f"; it ignored SIGTERM and was killed after {node.grace_s:g} s" if ending.escalated else ""
        return ending.outcome, ending.error + ignored, ending.limit
    if exit_.code == 0:
        return Outcome.COMPLETED, "", ""
    if exit_.code is not None:
        return Outcome.FAILED, f"exit code {exit_.code}", ""
    assert exit_.signal is not None
    return Outcome.FAILED, f"killed by {signal_name(exit_.signal)}", ""


def over_output(written: int, most: int) -> str:
    """Why an attempt that wrote too much was ended."""
    return f"wrote {written} bytes to stdout and stderr, more than its limit of {most}"


def _hit_file_size(logs: LogPool, slot: Slot) -> bool:
    return b"file too large" in logs.tail(slot, _TAIL_BYTES, "err").lower()


def _with_aftermath(
    after: Aftermath, ending: Ending | None, outcome: Outcome, error: str, limit: str
) -> tuple[Outcome, str, str]:
    """(outcome, error, limit) with what the back end knows; what the engine itself ended, it ended."""
    if after.outcome == "denied":
        return Outcome.DENIED, after.error, ""
    if ending is not None:
        return outcome, error, limit
    if after.limit:
        return Outcome.OVER_LIMIT, after.error or f"over its {after.limit} limit", after.limit
    if after.outcome:
        return Outcome(after.outcome), after.error or error, ""
    return outcome, after.error if after.error and outcome is not Outcome.COMPLETED else error, limit


def _peak(run: Running, exit_: Exit) -> int | None:
    """The peak memory of an attempt in bytes, as far as anybody knows it."""
    if run.after is not None and run.after.peak_memory_bytes is not None:
        return run.after.peak_memory_bytes
    return None if _elsewhere(run) else exit_.max_rss_bytes


def _elsewhere(run: Running) -> bool:
    """Whether the process that was reaped only stood for one that a daemon ran."""
    return run.command.spec is not None and run.command.spec.level == "container"


def signal_name(number: int) -> str:
    """`signal 9 (SIGKILL)`."""
    import signal

    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def collect_outputs(bench: Workbench, node: Node, run: Running) -> dict[str, Json]:
    """References to the declared outputs of a finished attempt. Raises OutputError for a bad one."""
    written: dict[str, Json] = {}
    if node.output_schema is not None or any(o.source == "output" for o in node.outputs.values()):
        written = read_outputs_file(run.command.output_path)
    values = collect_declared(bench, node, run, written)
    if node.output_schema is not None:
        _hold(bench, "the outputs", {**written, **values}, node.output_schema)
    return {name: dict(bench.context.put(bench.mask.value(value))) for name, value in values.items()}


def collect_declared(bench: Workbench, node: Node, run: Running, written: dict[str, Json]) -> dict[str, Json]:
    """The values of the declared outputs, `written` being what the node gave by name. Raises OutputError."""
    values: dict[str, Json] = {}
    for name, output in node.outputs.items():
        if node.output_schema is not None and output.source == "output" and name not in written:
            continue  # whether it had to be there is for the schema to say
        values[name] = _one_output(bench, run, name, output, written)
    return values


def _one_output(bench: Workbench, run: Running, name: str, output: Output, written: dict[str, Json]) -> Json:
    value: Json
    match output.source:
        case "stdout":
            value = read_stdout(run.slot.out_fd)
        case "json":
            value = read_json(run.slot.out_fd)
        case "file":
            value = _file_output(bench, run, name, output)
        case "output":
            if name not in written:
                raise OutputError(f"output `{name}` was not written to $DAGRUN_OUTPUT")
            value = written[name]
    if output.path:
        if isinstance(value, str) and output.source != "json":
            raise OutputError(f"output `{name}` is text: `path` selects only in JSON")
        from dagrun.core import expression as ex

        try:
            value = ex.select(value, output.path)
        except ex.EvaluationError as error:
            raise OutputError(f"output `{name}`: {error.message}") from None
    if output.schema is not None:
        _hold(bench, f"output `{name}`", value, output.schema)
    return value


def _file_output(bench: Workbench, run: Running, name: str, output: Output) -> Json:
    """The content of a declared file: JSON when it is named so or a path selects in it, else text."""
    path: str | int | None = os.path.join(run.command.cwd or bench.project, output.file)
    reach = reach_of(run)
    if reach is not None:
        path = reach(str(path), output.file)
    try:
        if path is None or read_bytes(path, what=output.file) is None:
            raise OutputError(f"output `{name}`: there is no file {output.file!r}")
        if output.path or output.file.endswith(".json"):
            return read_json(path, what=output.file)
        return read_text(path, what=output.file)
    finally:
        if isinstance(path, int):
            os.close(path)


def keep_artifacts(bench: Workbench, node: Node, run: Running) -> tuple[Json, ...]:
    """Copy what `artifacts` of a node means into the store, secrets masked. Raises OutputError, EnvironmentFault."""
    clean = None
    if bench.mask and node.artifacts:
        from dagrun.engine.masking import mask_file

        clean = partial(mask_file, bench.mask)
    stored = bench.context.store_artifacts(node.artifacts, bench.project, reach_of(run), clean)
    return tuple([bench.mask.value(dict(found)) for found in stored])


def reach_of(run: Running) -> Opener | None:
    """How files that a confined attempt wrote are opened; None: as those of any other command."""
    spec = run.command.spec
    if spec is None or (spec.level != "container" and spec.read is None and spec.network is None):
        return None
    from dagrun.engine.reach import Reach

    return Reach(spec, run.command.began_ns).open


def _hold(bench: Workbench, what: str, value: Json, schema: Json) -> None:
    from dagrun.engine.contract import violations

    found = violations(value, schema, bench.mask.text)
    if found:
        raise OutputError(f"{what} does not fit its schema: {'; '.join(found)}")


def _summary(logs: LogPool, slot: Slot, outcome: Outcome) -> str:
    """The last line that the attempt wrote: of stdout, or of stderr when it failed or stdout is empty."""
    for stream in ("out", "err") if outcome is Outcome.COMPLETED else ("err", "out"):
        tail = logs.tail(slot, _TAIL_BYTES, "out" if stream == "out" else "err")
        if tail:
            line = last_text_line(tail)
            if line:
                return line
    return ""


# terminal sequences go as a whole: without its ESC, `[31m` would stay as text
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


def last_text_line(data: bytes) -> str:
    """The last line with something to read, without control characters, at most SUMMARY_CHARS."""
    data = _ESCAPES.sub(b"", data)
    for raw in reversed(data.replace(b"\r", b"\n").split(b"\n")):
        text = "".join(c for c in raw.decode("utf-8", "replace") if c.isprintable()).strip()
        if text:
            return text[:SUMMARY_CHARS]
    return ""

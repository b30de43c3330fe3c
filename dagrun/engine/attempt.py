"""One attempt, from the effect to its outcome: what a node runs with, and what came of it.

Never raises for a node's failure: what is wrong with a node becomes an AttemptFinished. What is
wrong with the machine (a full disk, an unreadable store) is an EnvironmentFault for the engine.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from time import monotonic

from dagrun.core.event import AttemptFinished, NodeSkipped, ReviewRequested
from dagrun.core.mask import Masker
from dagrun.core.names import Json, NodeId, Outcome
from dagrun.core.state import RunState
from dagrun.core.workflow import Node, Output
from dagrun.engine.bench import Command, Workbench
from dagrun.sandbox.base import Exit
from dagrun.sandbox.command import command_argv
from dagrun.sandbox.logpool import LogPool, Slot
from dagrun.store.exchange import OutputError, read_bytes, read_json, read_outputs_file, read_stdout, read_text

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
    return _prepare(bench, state, i, node, number)


def _injected(state: RunState, node: NodeId, number: int) -> AttemptFinished | None:
    wanted = state.created.fail.get(node)
    if not wanted or (wanted[1] and wanted[1] != number):
        return None
    outcome = Outcome(str(wanted[0]))
    return AttemptFinished(node=node, attempt=number, outcome=outcome, error=f"{outcome} injected by --fail")


def _prepare(
    bench: Workbench, state: RunState, i: int, node: Node, number: int
) -> Command | AttemptFinished | NodeSkipped | ReviewRequested:
    env = bench.base(node).copy()
    attempt_id = f"{bench.run_id}/{node.id}/{number}"
    output_path = f"{bench.exchange}/{node.id}.{number}.out"
    env["DAGRUN_NODE"] = node.id
    env["DAGRUN_ATTEMPT"] = str(number)
    env["DAGRUN_ATTEMPT_ID"] = attempt_id
    env["DAGRUN_OUTPUT"] = output_path
    env["DAGRUN_PATCH"] = f"{bench.exchange}/{node.id}.{number}.patch"
    env["DAGRUN_IDEMPOTENCY_KEY"] = f"{bench.key}-{node.id}"
    run = node.run
    plain = isinstance(run, str) or not any("${{" in word for word in run)
    if plain and not (node.review or node.inputs or node.env or node.condition or node.cwd):
        script = run if isinstance(run, str) else ""
        return Command(command_argv(run, node.shell), env, script=script, output_path=output_path)
    from dagrun.engine.inputs import prepare_rich

    return prepare_rich(bench, state, i, number, env, output_path)


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


def conclude(
    bench: Workbench, logs: LogPool, node: Node, run: Running, exit_: Exit, *, retire: bool
) -> AttemptFinished:
    """The outcome of an attempt whose processes are all dead; gives its log slot back.

    `retire`: something may still hold the log files. Raises EnvironmentFault when the store fails.
    """
    outcome, error, limit = _outcome(node, run, exit_)
    outputs: dict[str, Json] = {}
    artifacts: tuple[Json, ...] = ()
    if outcome is Outcome.COMPLETED and (node.outputs or node.output_schema is not None or node.artifacts):
        try:
            outputs = collect_outputs(bench, node, run)
            artifacts = tuple(bench.context.store_artifacts(node.artifacts, bench.project))
        except OutputError as bad:
            outcome, error, outputs = Outcome.INVALID_OUTPUT, bad.message, {}
            if bench.mask:  # a quotation that was cut short could end within a secret
                error = re.sub(r"""(['"])(?:(?!\1).)*…\1""", "'…'", error)
    if bench.mask and logs.written(run.slot):
        mask_file(bench.mask, run.slot.out_fd)
        mask_file(bench.mask, run.slot.err_fd)
    # after the masking: a summary cut from the raw text could end within a secret
    summary = _summary(logs, run.slot, outcome)
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
        max_rss_bytes=exit_.max_rss_bytes,
        cpu_ms=exit_.cpu_ms,
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
    values: dict[str, Json] = {}
    for name, output in node.outputs.items():
        if node.output_schema is not None and output.source == "output" and name not in written:
            continue  # whether it had to be there is for the schema to say
        values[name] = _one_output(bench, run, name, output, written)
    if node.output_schema is not None:
        _hold(bench, "the outputs", {**written, **values}, node.output_schema)
    return {name: dict(bench.context.put(bench.mask.value(value))) for name, value in values.items()}


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
    path = os.path.join(run.command.cwd or bench.project, output.file)
    if read_bytes(path, what=output.file) is None:
        raise OutputError(f"output `{name}`: there is no file {output.file!r}")
    if output.path or output.file.endswith(".json"):
        return read_json(path, what=output.file)
    return read_text(path, what=output.file)


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


def mask_file(mask: Masker, fd: int) -> None:
    """Overwrite secrets in a file in place, keeping every offset: stars of the same length."""
    overlap = max(mask.longest - 1, 0)
    size, offset, step = os.fstat(fd).st_size, 0, 1 << 20
    while offset < size:
        data = os.pread(fd, step + overlap, offset)
        clean = mask.same_length(data)
        if clean != data:
            # a descriptor opened with O_APPEND appends even on pwrite, so the file is opened again
            again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(again, clean, offset)
            finally:
                os.close(again)
        offset += step

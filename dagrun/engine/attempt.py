"""One attempt, from the effect to its outcome: what a node runs with, and what came of it.

Never raises for a node's failure: what is wrong with a node becomes an AttemptFinished. What is
wrong with the machine (a full disk, an unreadable store) is an EnvironmentFault for the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from json import dumps
from time import monotonic, time

from dagrun.core import expression as ex
from dagrun.core.event import AttemptFinished, NodeSkipped, ReviewRequested
from dagrun.core.mask import Masker
from dagrun.core.names import Json, NodeId, Outcome, Status
from dagrun.core.plan import input_sources
from dagrun.core.state import RunState
from dagrun.core.workflow import Node, Output, Review
from dagrun.engine.secrets import masker
from dagrun.sandbox.base import Exit
from dagrun.sandbox.command import command_argv
from dagrun.sandbox.environment import base_environment
from dagrun.sandbox.logpool import LogPool, Slot
from dagrun.store.context import ContextStore, write_inputs
from dagrun.store.exchange import OutputError, read_bytes, read_json, read_outputs_file, read_stdout, read_text

MAX_ENV_BYTES = 64 * 1024  # an input above this is only in the inputs file
SUMMARY_CHARS = 200
_TAIL_BYTES = 4096


@dataclass(slots=True)
class Command:
    """What is to be spawned for one attempt."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str = ""
    script: str = ""
    inputs_digest: str = ""
    output_path: str = ""


@dataclass(slots=True)
class Ending:
    """Why the engine ended an attempt itself: outcome, the words for it, the limit that was hit."""

    outcome: Outcome
    error: str
    limit: str = ""
    escalated: bool = False


@dataclass(slots=True)
class Workbench:
    """What all attempts of a run share: secrets, environment, the folder for exchange, the store.

    `exchange` is a folder outside `.dagrun/`, private to this user.
    """

    run_id: str
    run_path: str
    key: str  # distinguishes this run from all others on this machine
    project: str
    params: Mapping[str, Json]
    workflow: str
    secrets: Mapping[str, str]
    secret_env: Mapping[str, str]  # secret name -> variable it comes from, where it is one
    context: ContextStore
    exchange: str
    environ: Mapping[str, str]
    mask: Masker = field(init=False)
    _bases: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.mask = masker(self.secrets)
        self._bases = {}

    def base(self, node: Node) -> dict[str, str]:
        """The environment that a node starts from, before its own `env`."""
        key = (node.pass_env, node.secrets)
        found = self._bases.get(key)
        if found is None:
            hidden = [var for name, var in self.secret_env.items() if name not in node.secrets]
            found = base_environment(self.environ, pass_env=node.pass_env, secrets_named=hidden)
            found["DAGRUN_RUN_ID"] = self.run_id
            found["DAGRUN_RUN_DIR"] = self.run_path
            for name in node.secrets:
                found[name] = self.secrets[name]
            self._bases[key] = found
        return found


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
    except ex.EvaluationError as error:
        text = bench.mask.text(f"could not start: {error.message}")
        return AttemptFinished(node=node.id, attempt=number, outcome=Outcome.FAILED, error=text)


def _injected(state: RunState, node: NodeId, number: int) -> AttemptFinished | None:
    wanted = state.created.fail.get(node)
    if not wanted or (wanted[1] and wanted[1] != number):
        return None
    outcome = Outcome(str(wanted[0]))
    return AttemptFinished(node=node, attempt=number, outcome=outcome, error=f"{outcome} injected by --fail")


def _prepare(
    bench: Workbench, state: RunState, i: int, node: Node, number: int
) -> Command | NodeSkipped | ReviewRequested:
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
        return Command(command_argv(run, node.shell), env, script=_script(run), output_path=output_path)
    scope = ex.Scope(params=bench.params, env=env, run=run_context(bench), hash_files=_hasher(bench.project))
    inputs = resolve_inputs(bench, state, node, scope)
    scope = replace(scope, inputs=inputs)
    rendered = {name: ex.render_text(ex.parse_template(text), scope) for name, text in node.env.items()}
    if node.condition:
        skip = _condition(state, i, node, replace(scope, env={**env, **rendered}))
        if skip is not None:
            return skip
    if node.review is not None:
        return _question(bench, node, node.review, number, scope)
    command = Command(_argv(node, scope), env, script=_script(run), output_path=output_path)
    if node.inputs:
        _pass_inputs(bench, command, node, number, inputs)
    env.update(rendered)
    if node.cwd:
        command.cwd = os.path.join(bench.project, ex.render_text(ex.parse_template(node.cwd), scope))
    return command


def _question(bench: Workbench, node: Node, review: Review, number: int, scope: ex.Scope) -> ReviewRequested:
    """What a review node asks, with its inputs rendered in."""
    message = ex.render_text(ex.parse_template(review.message), scope)
    return ReviewRequested(
        node=node.id,
        attempt=number,
        message=bench.mask.text(message),
        deadline=time() + review.timeout_s if review.timeout_s is not None else 0.0,
        on_timeout=review.on_timeout,
    )


def _script(run: str | tuple[str, ...]) -> str:
    return run if isinstance(run, str) else ""


def run_context(bench: Workbench) -> dict[str, Json]:
    """What expressions read as `run`."""
    return {"id": bench.run_id, "workflow": bench.workflow, "dir": bench.project}


def _argv(node: Node, scope: ex.Scope) -> tuple[str, ...]:
    if isinstance(node.run, str):
        return command_argv(node.run, node.shell)
    return tuple([ex.render_text(ex.parse_template(w), scope) if "${{" in w else w for w in node.run])


def _condition(state: RunState, i: int, node: Node, scope: ex.Scope) -> NodeSkipped | None:
    """The skip that the node's `if` asks for, if it does; `success() &&` is implied."""
    tree = ex.parse(node.condition)
    success = not state.broken[i]
    if not success and not ex.uses_status_function(tree):
        return NodeSkipped(node=node.id, reason="dependency", text="a node it needs did not succeed")
    plan = state.plan
    nodes: dict[str, dict[str, Json]] = {
        ref.path[1]: {"status": state.node_status[plan.index[ref.path[1]]].value}
        for ref in ex.references(tree)
        if ref.path[0] == "nodes" and len(ref.path) > 1
    }
    status = ex.StatusView(success=success, failure=bool(state.tainted[i]), cancelled=state.stop is not None)
    if ex.truthy(ex.evaluate(tree, replace(scope, nodes=nodes, status=status))):
        return None
    return NodeSkipped(node=node.id, reason="condition", text=f"if: {node.condition}")


def resolve_inputs(bench: Workbench, state: RunState, node: Node, scope: ex.Scope) -> dict[str, Json]:
    """The values of a node's declared inputs. Raises EvaluationError naming one that is missing."""
    if not node.inputs:
        return {}
    nodes = {name: node_values(bench, state, name) for name in dict.fromkeys(input_sources(node))}
    scope = replace(scope, nodes=nodes)
    values: dict[str, Json] = {}
    for name, item in node.inputs.items():
        try:
            if item.expression:
                values[name] = ex.evaluate(ex.parse(item.expression), scope)
            else:
                values[name] = ex.render_value(item.value, scope)
        except ex.MissingValue as error:
            if item.has_default:
                values[name] = item.default
            elif item.optional:
                values[name] = None
            else:
                raise ex.MissingValue(error.name, f"input `{name}` has no value: {error.message}") from None
    return values


def node_values(bench: Workbench, state: RunState, name: NodeId) -> dict[str, Json]:
    """What a node gives to those that declared it: its outputs by name, and `status`."""
    i = state.plan.index[name]
    refs = state.outputs.get(i, {}) if state.node_status[i] is Status.COMPLETED else {}
    values: dict[str, Json] = {}
    for key, ref in refs.items():
        assert isinstance(ref, dict)
        values[key] = bench.context.get(ref)
    values["status"] = state.node_status[i].value
    return values


def _pass_inputs(bench: Workbench, command: Command, node: Node, number: int, inputs: dict[str, Json]) -> None:
    """Inputs as INPUT_<NAME> (up to MAX_ENV_BYTES) and as one JSON file."""
    from hashlib import sha256

    path = f"{bench.exchange}/{node.id}.{number}.in.json"
    write_inputs(path, inputs)
    command.env["DAGRUN_INPUTS"] = path
    for name, value in inputs.items():
        text = value if isinstance(value, str) else dumps(value, separators=(",", ":"), ensure_ascii=False)
        if len(text.encode("utf-8", "surrogatepass")) <= MAX_ENV_BYTES and "\0" not in text:
            command.env["INPUT_" + name.upper().replace("-", "_")] = text
    whole = dumps(inputs, sort_keys=True, separators=(",", ":"))
    command.inputs_digest = sha256(whole.encode()).hexdigest()


def _hasher(project: str) -> Callable[[tuple[str, ...]], str]:
    """hashFiles of expressions: sha256 over the files that the patterns match, sorted by path."""

    def hash_files(patterns: tuple[str, ...]) -> str:
        from hashlib import sha256

        from dagrun.store.artifacts import collect

        try:
            paths = collect(patterns, project)
        except OutputError as error:
            raise ex.EvaluationError(f"hashFiles: {error.message}") from None
        if not paths:
            return ""
        total = sha256()
        for path in paths:
            with open(os.path.join(project, path), "rb") as file:
                one = sha256()
                while chunk := file.read(1 << 20):
                    one.update(chunk)
            total.update(one.digest())
        return total.hexdigest()

    return hash_files


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


def conclude(bench: Workbench, logs: LogPool, node: Node, run: Running, exit_: Exit, *, retire: bool) -> AttemptFinished:
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
    summary = _summary(logs, run.slot, outcome)
    if bench.mask and logs.written(run.slot):
        mask_file(bench.mask, run.slot.out_fd)
        mask_file(bench.mask, run.slot.err_fd)
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
        _hold("the outputs", {**written, **values}, node.output_schema)
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
        try:
            value = ex.select(value, output.path)
        except ex.EvaluationError as error:
            raise OutputError(f"output `{name}`: {error.message}") from None
    if output.schema is not None:
        _hold(f"output `{name}`", value, output.schema)
    return value


def _file_output(bench: Workbench, run: Running, name: str, output: Output) -> Json:
    """The content of a declared file: JSON when it is named so or a path selects in it, else text."""
    path = os.path.join(run.command.cwd or bench.project, output.file)
    if read_bytes(path, what=output.file) is None:
        raise OutputError(f"output `{name}`: there is no file {output.file!r}")
    if output.path or output.file.endswith(".json"):
        return read_json(path, what=output.file)
    return read_text(path, what=output.file)


def _hold(what: str, value: Json, schema: Json) -> None:
    from dagrun.engine.contract import violations

    found = violations(value, schema)
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


def last_text_line(data: bytes) -> str:
    """The last line with something to read, without control characters, at most SUMMARY_CHARS."""
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

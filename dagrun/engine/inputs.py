"""Preparing a node that has inputs, conditions or expressions; plain ones never come here."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from json import dumps
from time import time

from dagrun.core import expression as ex
from dagrun.core.event import AttemptFinished, NodeSkipped, ReviewRequested
from dagrun.core.names import Json, Outcome
from dagrun.core.plan import input_sources
from dagrun.core.state import RunState
from dagrun.core.workflow import Node, Review
from dagrun.engine.bench import Command, Workbench, node_values, run_context
from dagrun.sandbox.command import command_argv
from dagrun.store.context import write_inputs
from dagrun.store.disk import at_once
from dagrun.store.exchange import OutputError, kind_of

MAX_ENV_BYTES = 64 * 1024  # an input above this is only in the inputs file


def prepare_rich(
    bench: Workbench, state: RunState, i: int, number: int, env: dict[str, str], stem: str
) -> Command | AttemptFinished | NodeSkipped | ReviewRequested:
    """What to spawn, ask or skip, with everything rendered; its end, when a value is missing."""
    try:
        return _prepare(bench, state, i, number, env, stem)
    except ex.EvaluationError as error:
        text = bench.mask.text(f"could not start: {error.message}")
        return AttemptFinished(node=state.plan.ids[i], attempt=number, outcome=Outcome.FAILED, error=text)


def _prepare(
    bench: Workbench, state: RunState, i: int, number: int, env: dict[str, str], stem: str
) -> Command | NodeSkipped | ReviewRequested:
    node = state.plan.nodes[i]
    if node.condition and state.broken[i] and ex.wants_success(ex.parse(node.condition)):
        return NodeSkipped(node=node.id, reason="dependency", text="a node it needs did not succeed")
    # a secret goes into variables only: arguments, folders, inputs and questions are seen by others
    seen = {name: value for name, value in env.items() if name not in node.secrets} if node.secrets else env
    scope = ex.Scope(params=bench.params, env=seen, run=run_context(bench), hash_files=hasher(bench.project))
    inputs = resolve_inputs(bench, state, node, scope)
    scope = replace(scope, inputs=inputs)
    mine = replace(scope, env=env)
    rendered = {name: ex.render_text(ex.parse_template(text), mine) for name, text in node.env.items()}
    if node.condition:
        skip = _condition(state, i, node, replace(scope, env={**env, **rendered}))
        if skip is not None:
            return skip
    if node.review is not None:
        return _question(bench, node, node.review, number, scope)
    if node.agent is not None:
        from dagrun.engine.agentbegin import agent_command

        command = agent_command(bench, state, node, scope=scope, env={**env, **rendered}, own=rendered, stem=stem)
        if node.inputs:
            pass_inputs(command, inputs)
        return command
    script = node.run if isinstance(node.run, str) else ""
    command = Command(_argv(node, scope), env, script=script, stem=stem)
    if node.inputs:
        pass_inputs(command, inputs)
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


def _argv(node: Node, scope: ex.Scope) -> tuple[str, ...]:
    if isinstance(node.run, str):
        return command_argv(node.run, node.shell)
    return tuple([ex.render_text(ex.parse_template(w), scope) if "${{" in w else w for w in node.run])


def _condition(state: RunState, i: int, node: Node, scope: ex.Scope) -> NodeSkipped | None:
    """The skip that the node's `if` asks for, if it does; `success() &&` is implied."""
    tree = ex.parse(node.condition)
    success = not state.broken[i]
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


def pass_inputs(command: Command, inputs: dict[str, Json]) -> None:
    """Inputs as INPUT_<NAME> (up to MAX_ENV_BYTES) and as one JSON file."""
    from hashlib import sha256

    path = f"{command.stem}in.json"
    write_inputs(path, inputs)
    command.env["DAGRUN_INPUTS"] = path
    for name, value in inputs.items():
        text = value if isinstance(value, str) else dumps(value, separators=(",", ":"), ensure_ascii=False)
        if len(text.encode("utf-8", "surrogatepass")) <= MAX_ENV_BYTES and "\0" not in text:
            command.env["INPUT_" + name.upper().replace("-", "_")] = text
    whole = dumps(inputs, sort_keys=True, separators=(",", ":"))
    command.inputs_digest = sha256(whole.encode()).hexdigest()


def hasher(project: str) -> Callable[[tuple[str, ...]], str]:
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
            total.update(_digest(os.path.join(project, path), path))
        return total.hexdigest()

    return hash_files


def _digest(path: str, name: str) -> bytes:
    """The sha256 of a regular file; never waits for a writer of a pipe. Raises EvaluationError."""
    from hashlib import sha256

    made = sha256()
    try:
        with open(path, "rb", opener=at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ex.EvaluationError(f"hashFiles: {name} is {kind_of(os.fstat(file.fileno()).st_mode)}, not a file")
            while chunk := file.read(1 << 20):
                made.update(chunk)
    except OSError as error:
        raise ex.EvaluationError(f"hashFiles: can't read {name}: {error.strerror}") from None
    return made.digest()

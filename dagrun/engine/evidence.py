"""What a model is shown of a failure: how the node ended, the last that it wrote, and the graph around it.

Everything is masked and cut to size. Texts of nodes are taken as they are: whoever shows them fences them.
"""

from __future__ import annotations

import os

from dagrun.core.names import Json
from dagrun.core.replanner import neighbourhood
from dagrun.core.state import Attempt, RunState
from dagrun.core.trace import cause
from dagrun.core.workflow import Node, Workflow
from dagrun.engine.bench import Workbench
from dagrun.store.rundir import RunDir

TAIL_BYTES = 8 * 1024  # of each stream
TEMPLATES = 20
_TRIES = 5


def evidence(bench: Workbench, state: RunState, i: int) -> dict[str, Json]:
    """What the replanner of failed node `i` is shown, by the name of its input. Nothing secret is in it."""
    known = bench.replay.evidence(state.plan.ids[i]) if bench.replay is not None else None
    if known is not None:
        return known
    run = RunDir(bench.run_path, bench.run_id)
    return {name: bench.mask.value(value) for name, value in gather(run, state, i).items()}


def gather(run: RunDir, state: RunState, i: int | None) -> dict[str, Json]:
    """The same, masked as far as the run's files are; without a node only the whole plan."""
    workflow = state.plan.workflow
    found: dict[str, Json] = {"plan": _plan(state), "templates": _templates(workflow)}
    if i is None:
        return found
    node, tried = state.plan.nodes[i], state.attempts[i]
    found["failure"] = _failure(state, i, node)
    found["node"] = {"id": node.id, **_document(node)}
    found["graph"] = dict(neighbourhood(state, i))
    for stream, name in (("err", "stderr"), ("out", "stdout")):
        found[name] = _tail(run.log(node.id, tried[-1].number, stream)) if tried else ""
    return found


def _failure(state: RunState, i: int, node: Node) -> Json:
    tried = state.attempts[i]
    return {
        "node": node.id,
        "error": state.reasons.get(i, ""),
        "attempts": [_attempt(attempt, node) for attempt in tried[-_TRIES:]],
        "tries": len(tried),
    }


def _attempt(attempt: Attempt, node: Node) -> Json:
    finish = attempt.finish
    if finish is None:
        return {"number": attempt.number}
    about: dict[str, Json] = {
        "number": attempt.number,
        "outcome": finish.outcome.value,
        "error": cause(finish, node),
        "duration_ms": finish.duration_ms,
    }
    return about | ({"exit_code": finish.exit_code} if finish.exit_code is not None else {})


def _plan(state: RunState) -> Json:
    workflow = state.plan.workflow
    limits = workflow.limits
    made = sum(r.by.startswith("node:") for r in state.revisions)
    return {
        "workflow": workflow.name,
        "description": workflow.description[:1000],
        "revision": state.plan.revision,
        "nodes": len(workflow.nodes),
        "status": {status.value: count for status, count in state.counts.items() if count},
        "patches_left": max(0, limits.revisions - made),
    }


def _templates(workflow: Workflow) -> Json:
    return {name: _document(node) for name, node in list(workflow.templates.items())[:TEMPLATES]}


def _document(node: Node) -> dict[str, Json]:
    from dagrun.flowfile.document import node_to_document

    return node_to_document(node)


def _tail(path: str) -> str:
    """The last lines of a log, at most TAIL_BYTES; empty when there is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            data = os.pread(file.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
    except OSError:
        return ""
    if size > TAIL_BYTES:  # begin with a whole line, where there is one
        data = data[data.find(b"\n") + 1 :]
    return data.decode("utf-8", "replace")

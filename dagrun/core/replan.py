"""Whether a patch may change a run in its present state: the next revision, or *all* the reasons.

Pure: a folded state and a patch in, a verdict out; the caller appends the verdict under the
journal's lock. What an operation does to the graph is `patch.py`; here is which node may be touched
in which state, whether the whole still holds together, and the limits on patches that no human
made. Source: [dag-dynamic-replanner], Validation and Best Practices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from dagrun.core.check import check_node
from dagrun.core.event import PatchAdmitted, PatchProposed, PatchRefused
from dagrun.core.names import SETTLED, Json, NodeId, Status
from dagrun.core.patch import (
    Alternative,
    Draft,
    Fallback,
    Insert,
    Modify,
    Operation,
    Patch,
    Remove,
    Rerun,
    Retry,
    Rewire,
    SetLimits,
    apply,
    draft,
)
from dagrun.core.plan import CycleFound, Plan, critical_path, is_bare, near, revise_plan
from dagrun.core.state import RunState
from dagrun.core.workflow import Fault, Limits, Node, Workflow, node_to_json

Actor: TypeAlias = Literal["human", "declared", "node"]  # who made a patch; `declared` = on_failure of the author

_ALLOWED: Mapping[Status, frozenset[type]] = {
    Status.PENDING: frozenset({Insert, Remove, Rewire, Modify, Fallback, Alternative}),
    Status.READY: frozenset({Insert, Remove, Rewire, Modify, Fallback, Alternative}),
    Status.SKIPPED: frozenset({Insert, Remove, Rewire, Modify, Retry, Fallback, Alternative}),
    Status.CANCELLED: frozenset({Insert, Remove, Rewire, Modify, Retry, Fallback, Alternative}),
    Status.RETRYING: frozenset({Modify, Retry, Remove, Fallback, Alternative}),
    Status.FAILED: frozenset({Retry, Fallback, Remove, Alternative}),
    Status.AWAITING_REVIEW: frozenset({Remove, Retry, Fallback, Alternative}),
    Status.COMPLETED: frozenset({Rerun, Alternative}),
    Status.SUPERSEDED: frozenset(),
    Status.RUNNING: frozenset(),
}
_FROZEN = frozenset({Status.COMPLETED, Status.RUNNING, Status.FAILED, Status.SUPERSEDED})


@dataclass(slots=True)
class Verdict:
    """What became of a patch: `event` admits it, or `faults` says everything that is wrong with it.

    The rest is for the preview: ids that are new, revived, cancelled, stale (run again although
    they had completed); `warnings` for people.
    """

    event: PatchAdmitted | None = None
    faults: list[Fault] = field(default_factory=list)
    after: Plan | None = None
    added: list[NodeId] = field(default_factory=list)
    removed: list[NodeId] = field(default_factory=list)
    changed: list[NodeId] = field(default_factory=list)
    cancelled: list[NodeId] = field(default_factory=list)
    stale: list[NodeId] = field(default_factory=list)
    revived: list[NodeId] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def admit(state: RunState, patch: Patch, *, by: str, actor: Actor = "human", undoes: int = 0) -> Verdict:
    """Check a whole patch against the head of a run.

    The base is not compared here (`stale_base` does): whoever calls decided to build on the head.
    Linear in the nodes for the new plan; the checks cost the degree of what is touched.
    """
    verdict = Verdict()
    live = [name for name, i in state.plan.index.items() if i not in state.removed]
    work = draft(state.plan.workflow, state.plan.ids)
    for at, operation in enumerate(patch.operations):
        _check_states(state, work, operation, at, actor)
    work.frozen = frozenset(n for n in live if state.node_status[state.plan.index[n]] in _FROZEN)
    apply(work, patch)
    _check_settled(state, work, patch)
    _close_reruns(state, work)
    if not work.faults:
        _check_whole(state, work, verdict)
    if not work.faults and actor == "node":
        _check_limits(state, work, patch)
    verdict.faults = work.faults
    if not verdict.faults:
        _fill(state, work, patch, verdict, by, undoes)
        _warn(state, work, verdict)
    return verdict


def stale_base(state: RunState, patch: Patch) -> bool:
    """Whether the plan moved since the patch was made for it (compare-and-swap)."""
    return patch.base not in (0, state.plan.revision)


def refusal(state: RunState, patch: Patch, faults: Iterable[Fault], by: str) -> PatchRefused:
    """The event that keeps a refused patch, with all reasons, in the history."""
    return PatchRefused(
        base=patch.base or state.plan.revision,
        head=state.plan.revision,
        by=by,
        trigger=trigger_json(patch),
        operations=patch.written,
        reasons=tuple(f.message + (f" ({f.hint})" if f.hint else "") for f in faults),
    )


def proposal(state: RunState, patch: Patch, by: str, why: str) -> PatchProposed:
    """The event that keeps a patch for a human to decide."""
    return PatchProposed(
        number=state.proposed + 1,
        base=patch.base or state.plan.revision,
        by=by,
        trigger=trigger_json(patch),
        operations=patch.written,
        why=why,
    )


def trigger_json(patch: Patch) -> dict[str, Json]:
    """The trigger of a patch as the journal keeps it."""
    trigger = patch.trigger
    return {"type": trigger.type, **({"node": trigger.node} if trigger.node else {}), "reason": trigger.reason}


# ---------------------------------------------------------------- which node, in which state


def _targets(operation: Operation) -> tuple[NodeId, ...]:
    """The existing nodes whose state decides whether an operation may be carried out."""
    match operation:
        case Insert():
            return operation.before
        case Alternative():
            return operation.blocked
        case SetLimits():
            return ()
        case _:
            return (operation.id,)


def _check_states(state: RunState, work: Draft, operation: Operation, at: int, actor: Actor) -> None:
    kind = type(operation).__name__.lower()
    for name in _targets(operation):
        i = state.plan.index.get(name)
        if i is None or i in state.removed:
            continue  # `apply` says that it is unknown
        status = state.node_status[i]
        if status is Status.RUNNING and getattr(operation, "cancel_running", False):
            continue
        if type(operation) in _ALLOWED[status]:
            continue
        if actor == "declared" and i in state.escalating:
            continue
        message = f"{kind}: node `{name}` is {status}"
        work.fault(at, "", "wrong-state", message, _advice(status, kind, name))
    if isinstance(operation, Rewire | Insert):
        key, names = ("new", operation.new) if isinstance(operation, Rewire) else ("after", operation.after)
        _check_feeds(state, work, key, names, at, kind)


def _check_feeds(state: RunState, work: Draft, key: str, names: Iterable[NodeId], at: int, kind: str) -> None:
    """A node can't be made to wait for one that will never give anything."""
    for name in names:
        i = state.plan.index.get(name)
        if i is None or i in state.removed:
            continue
        status = state.node_status[i]
        failed = status is Status.FAILED and not state.plan.nodes[i].continue_on_error
        lost = status in (Status.SKIPPED, Status.CANCELLED) and state.skips.get(i) not in ("patch", "selection")
        if failed or lost or status is Status.SUPERSEDED:
            work.fault(at, key, "dead-need", f"{kind}: `{name}` is {status} and gives nothing to wait for")


def _advice(status: Status, kind: str, name: NodeId) -> str:
    if status is Status.RUNNING:
        return f"wait for it, or end it first: `running: cancel` (--cancel-running) on {name}"
    if status is Status.COMPLETED:
        return "finished work is never changed; to run it again with all that follows: rerun"
    if status in (Status.PENDING, Status.READY) and kind == "retry":
        return "it has not run yet: use modify"
    if status in (Status.PENDING, Status.READY) and kind == "rerun":
        return "it has not run yet: nothing to do"
    if status is Status.FAILED:
        return "a failed node takes retry, fallback or remove"
    if status is Status.RETRYING:
        return "a node between attempts takes modify, retry, fallback or remove"
    if status is Status.SUPERSEDED:
        return "its fallback took its place: change that one"
    return ""


def _check_settled(state: RunState, work: Draft, patch: Patch) -> None:
    """Nodes that other operations dragged in: settled and running ones stay as they are."""
    retried = set(work.reset)
    for name in [*work.changed, *work.removed]:
        i = state.plan.index.get(name)
        if i is None or i in state.removed or name in retried:
            continue
        status = state.node_status[i]
        at = work.touched[name]
        operation = patch.operations[at]
        if name in _targets(operation) and not isinstance(operation, Insert):
            continue  # judged by `_check_states`
        if status in _FROZEN:
            verb = "removed" if name in work.removed else "changed"
            message = f"`{name}` would be {verb}, but it is {status}"
            work.fault(at, "", "settled", message, "what has run or runs stays: use strategy skip, or leave it out")
    for name, _ in work.skipped.items():
        i = state.plan.index.get(name)
        if i is not None and state.node_status[i] is Status.COMPLETED and not _blocked(patch, work.touched[name], name):
            work.fault(work.touched[name], "", "settled", f"`{name}` is completed: finished work is never taken back")
    for name in [n for n in work.skipped if _status(state, n) is Status.COMPLETED]:
        work.skipped.pop(name, None)  # completed nodes of a blocked path stay completed


def _blocked(patch: Patch, at: int, name: NodeId) -> bool:
    operation = patch.operations[at]
    return isinstance(operation, Alternative) and name in operation.blocked


def _status(state: RunState, name: NodeId) -> Status | None:
    i = state.plan.index.get(name)
    return None if i is None or i in state.removed else state.node_status[i]


def _close_reruns(state: RunState, work: Draft) -> None:
    """A rerun makes all that followed from the node stale: it runs again too."""
    for name in list(work.reset):
        if _status(state, name) is not Status.COMPLETED:
            continue
        for i in sorted(state.plan.downstream(state.plan.index[name])):
            below = state.plan.ids[i]
            if i in state.removed or below in work.reset or below not in work.nodes:
                continue
            status = state.node_status[i]
            if status is Status.RUNNING:
                at = work.touched[name]
                work.fault(at, "", "wrong-state", f"rerun: `{below}` follows from `{name}` and is running", "wait for it")
            elif status in SETTLED and status is not Status.SUPERSEDED:
                work.reset.append(below)
                work.touched.setdefault(below, work.touched[name])


# ---------------------------------------------------------------- the whole


def _check_whole(state: RunState, work: Draft, verdict: Verdict) -> None:
    """References, contracts, orphans and cycles of the graph that would be."""
    workflow = replace(state.plan.workflow, nodes=work.nodes, limits=work.limits)
    check_draft(workflow, work)
    if work.faults:
        return
    try:
        verdict.after = revise_plan(state.plan, workflow, state.plan.revision + 1)
    except CycleFound as error:
        at = next((work.touched[n] for n in error.path if n in work.touched), 0)
        message = "the nodes would wait for each other: " + " -> ".join(error.path)
        work.fault(at, "", "cycle", message, "remove one of these needs")


def check_draft(workflow: Workflow, work: Draft) -> None:
    """Add the faults of the nodes that a draft changed, of their dependents and of the outputs."""
    names = set(work.changed)
    for gone in work.removed:
        names.update(work.dependents(gone))
    for name in list(work.changed):
        names.update(work.dependents(name))
    for name in sorted(names & work.nodes.keys()):
        found: list[Fault] = []
        check_node(workflow, work.nodes[name], found)
        at = work.touched.get(name, next(iter(work.touched.values()), 0))
        for fault in found:
            work.fault(at, "", fault.code, fault.message, fault.hint)
    _check_outputs(workflow, work)
    used = _named_in_outputs(workflow)
    for name in work.new:
        if name in work.nodes and not work.nodes[name].needs and not work.nodes[name].inputs:
            if not work.dependents(name) and name not in used:
                message = f"`{name}` would neither feed nor follow anything"
                work.fault(work.touched[name], "", "orphan", message, "give it a place: after: [...] or before: [...]")


def _named_in_outputs(workflow: Workflow) -> set[NodeId]:
    from dagrun.core import expression as ex

    names: set[NodeId] = set()
    for text in workflow.outputs.values():
        parsed = ex.parse(text) if is_bare(text) else ex.parse_template(text)
        names |= {r.path[1] for r in ex.references(parsed) if r.path[0] == "nodes" and len(r.path) > 1}
    return names


def _check_outputs(workflow: Workflow, work: Draft) -> None:
    """The outputs of the workflow itself still have a producer."""
    for name in _named_in_outputs(workflow):
        if name not in workflow.nodes:
            at = work.touched.get(name, 0)
            work.fault(at, "", "orphan", f"an output of the workflow reads `{name}`", near(name, workflow.nodes))


# ---------------------------------------------------------------- limits of patches that no human made


def _check_limits(state: RunState, work: Draft, patch: Patch) -> None:
    limits = state.plan.workflow.limits
    made = sum(r.by.startswith("node:") for r in state.revisions)
    if made >= limits.revisions:
        message = f"nodes have changed this run {made} times: limits.revisions is {limits.revisions}"
        work.fault(0, "", "limit", message, "raise it in the workflow: limits: {revisions: N}")
    start = len(state.plan.ids) - sum(len(set(r.nodes) - _existing(state, r)) for r in state.revisions)
    most = max(start * limits.growth // 100, start + limits.growth_nodes)
    after = len(work.nodes)
    if after > most:
        message = f"the run would grow to {after} nodes; from {start}, limits.growth allows {most}"
        work.fault(0, "", "limit", message, "raise it in the workflow: limits: {growth: 200%}")
    previous = {(r.get("kind"), r.get("id")) for r in _recent_operations(state)}
    for at, operation in enumerate(patch.operations):
        mine = type(operation).__name__.lower()
        for kind, name in previous:
            if name in _touches(operation) and (kind, mine) in {("insert", "remove"), ("remove", "insert"), ("rewire", "rewire")}:
                work.fault(at, "", "limit", f"{mine} of `{name}` would take back a {kind} of the same wave", "ask a human")


def _existing(state: RunState, revision: PatchAdmitted) -> set[NodeId]:
    """Ids among a revision's nodes that were there before it."""
    new = {op_id for op in revision.operations for op_id in _inserted(op)} | set(revision.superseded.values())
    return set(revision.nodes) - new


def _inserted(written: Json) -> list[NodeId]:
    if not isinstance(written, dict):
        return []
    insert, alternative = written.get("insert"), written.get("alternative")
    if isinstance(insert, dict):
        return [str(insert.get("id"))]
    if isinstance(alternative, dict) and isinstance(alternative.get("nodes"), dict):
        return list(alternative["nodes"])  # type: ignore[arg-type]
    return []


def _recent_operations(state: RunState) -> list[dict[str, Json]]:
    """Operations of the revisions that were admitted in the present wave."""
    found: list[dict[str, Json]] = []
    for revision in state.revisions:
        if revision.wave != state.wave:
            continue
        for written in revision.operations:
            if isinstance(written, dict):
                for kind, body in written.items():
                    if isinstance(body, dict):
                        found.append({"kind": kind, "id": body.get("id")})
    return found


def _touches(operation: Operation) -> set[NodeId]:
    return {operation.id} if not isinstance(operation, Alternative | SetLimits) else set()


# ---------------------------------------------------------------- the event and the preview


def _fill(state: RunState, work: Draft, patch: Patch, verdict: Verdict, by: str, undoes: int) -> None:
    known = state.plan.index
    cancelled = [
        name
        for name in dict.fromkeys([*work.reset, *work.changed, *work.removed, *work.skipped, *work.superseded])
        if _status(state, name) is Status.RUNNING
    ]
    before, after = state.plan.workflow.limits, work.limits
    verdict.event = PatchAdmitted(
        revision=state.plan.revision + 1,
        base=patch.base or state.plan.revision,
        by=by,
        trigger=trigger_json(patch),
        operations=patch.written,
        nodes={name: node_to_json(node) for name, node in work.changed.items()},
        removed=tuple(work.removed),
        skipped={n: text for n, text in work.skipped.items() if n in work.nodes},
        superseded=work.superseded,
        reset=tuple(n for n in dict.fromkeys(work.reset) if n in work.nodes),
        cancelled=tuple(cancelled),
        limits=_limits_json(after) if after != before else {},
        wave=state.wave,
        undoes=undoes,
    )
    verdict.added = [n for n in work.changed if n not in known or known[n] in state.removed]
    verdict.removed = list(work.removed)
    verdict.changed = [n for n in work.changed if n in known and known[n] not in state.removed]
    verdict.cancelled = cancelled
    verdict.stale = [n for n in verdict.event.reset if _status(state, n) is Status.COMPLETED]
    verdict.revived = _revived(state, verdict)


def _limits_json(limits: Limits) -> dict[str, Json]:
    return {
        "parallel": limits.parallel,
        "timeout_s": limits.timeout_s,
        "resources": dict(limits.resources),
        "revisions": limits.revisions,
        "fallback_chain": limits.fallback_chain,
        "growth": limits.growth,
        "growth_nodes": limits.growth_nodes,
    }


def _revived(state: RunState, verdict: Verdict) -> list[NodeId]:
    """What was skipped because of a node that now runs again or has a stand-in."""
    event, plan = verdict.event, verdict.after
    if event is None or plan is None:
        return []
    below: set[int] = set()
    for name in (*event.reset, *event.superseded, *event.superseded.values()):
        below |= plan.downstream(plan.index[name])
    return [
        plan.ids[i]
        for i in sorted(below)
        if i < len(state.node_status)
        and state.node_status[i] is Status.SKIPPED
        and state.skips.get(i) not in ("patch", "selection")
    ]


def _warn(state: RunState, work: Draft, verdict: Verdict) -> None:
    start = max(1, len(state.plan.workflow.nodes))
    if len(work.nodes) > max(start * 1.2, start + 10):
        verdict.warnings.append(f"the run grows from {start} to {len(work.nodes)} nodes")
    if verdict.cancelled:
        verdict.warnings.append(f"ends what runs: {', '.join(verdict.cancelled)}")
    if verdict.after is not None and not critical_path(verdict.after):
        verdict.warnings.append("nothing is left to do")


def fallback_patch(state: RunState, i: int, template: Node, *, reason: str, timed_out: bool) -> Patch:
    """The patch that an `on_failure: {fallback: …}` stands for."""
    from dagrun.core.patch import Trigger

    name = state.plan.ids[i]
    written: dict[str, Json] = {"fallback": {"id": name, "with": template.id}}
    return Patch(
        operations=(Fallback(id=name, node=template),),
        trigger=Trigger(type="timeout" if timed_out else "failure", node=name, reason=reason),
        written=(written,),
    )


def chain_length(state: RunState, i: int) -> int:
    """How many fallbacks already stand one behind the other up to node `i`."""
    length = 0
    while i in state.stands_in:
        i = state.stands_in[i]
        length += 1
    return length

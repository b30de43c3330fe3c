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

from dagrun.core.event import PatchAdmitted, PatchProposed, PatchRefused
from dagrun.core.names import SETTLED, Json, NodeId, RunStatus, Status
from dagrun.core.narrowing import check_fallbacks, narrow
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
    Trigger,
    again,
    apply,
    draft,
)
from dagrun.core.patchlimits import Cost, check_cost, check_limits, present_wave
from dagrun.core.plan import Plan, all_needs
from dagrun.core.retried import check_retries
from dagrun.core.revise import becomes, revived_by
from dagrun.core.soundness import check_draft, check_rewired, check_status_reads, revised
from dagrun.core.state import RunState
from dagrun.core.workflow import Fault, Limits, Node, node_to_json

Actor: TypeAlias = Literal["human", "declared", "node"]  # who made a patch; `declared` = on_failure of the author

_ALL = frozenset({Insert, Remove, Rewire, Modify, Fallback, Alternative})
_ALLOWED: Mapping[Status, frozenset[type]] = {
    Status.PENDING: _ALL,
    Status.READY: _ALL,
    Status.SKIPPED: _ALL | {Retry},
    Status.CANCELLED: _ALL | {Retry},
    Status.RETRYING: frozenset({Modify, Retry, Remove, Alternative}),
    Status.FAILED: frozenset({Retry, Fallback, Remove, Alternative}),
    Status.AWAITING_REVIEW: frozenset({Remove, Retry, Fallback, Alternative}),
    Status.COMPLETED: frozenset({Rerun, Alternative}),
    Status.SUPERSEDED: frozenset(),
    Status.RUNNING: frozenset(),
}
# they keep their needs and inputs, whatever happens around them
_FROZEN = frozenset({Status.COMPLETED, Status.RUNNING, Status.FAILED, Status.SUPERSEDED, Status.AWAITING_REVIEW})
_RETRIED = frozenset({Status.FAILED, Status.RETRYING, Status.AWAITING_REVIEW})
_UNDONE = _RETRIED | {Status.SUPERSEDED}


@dataclass(slots=True)
class Verdict:
    """What became of a patch: `event` admits it, or `faults` says everything that is wrong with it.

    The rest is for the preview: ids that are new (or have their id back), removed, changed, ended
    while they run, stale (run again although they had completed), back after a skip; `warnings` for
    people.
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


def admit(
    state: RunState,
    patch: Patch,
    *,
    by: str,
    actor: Actor = "human",
    undoes: int = 0,
    maker: str = "",
    cost: Cost | None = None,
) -> Verdict:
    """Check a whole patch against the head of a run.

    The base is not compared here (`stale_base` does): whoever calls decided to build on the head.
    `maker` is who wrote a patch that a human lets in, as `by` named it then: what a node may hand on
    does not grow by that. `cost` bounds what a node or a model may let the run cost; None bounds nothing.
    Linear in the nodes for the new plan; the checks cost the degree of what is touched.
    """
    verdict = Verdict()
    work = draft(state.plan.workflow, state.plan.ids)
    work.plan = state.plan
    _place(state, work, patch)
    if not patch.operations:
        work.faults.append(Fault(("operations",), "empty", "a patch without operations changes nothing"))
    for at in range(len(patch.operations)):
        _check_states(state, work, patch, at, actor, undoes)
    apply(work, patch)
    _close_reruns(state, work, patch)
    _check_settled(state, work, patch)
    _check_permissions(state, work, patch, actor, by if actor == "node" else maker)
    _check_whole(state, work, patch, verdict)
    if actor == "node":
        check_limits(state, work, patch)
        if cost is not None and not work.faults:
            check_cost(state, work, cost)
    verdict.faults = list(dict.fromkeys(work.faults))
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


def standing(state: RunState, i: int) -> Status:
    """The status that counts for a patch: a running node that a patch ends already is what it becomes."""
    return state.cancelling.get(i, state.node_status[i])


def _status(state: RunState, name: NodeId) -> Status | None:
    i = state.plan.index.get(name)
    return None if i is None or i in state.removed else standing(state, i)


def _place(state: RunState, work: Draft, patch: Patch) -> None:
    """Tell a draft what of its graph has run, and who stands in for whom."""
    index, status = state.plan.index, state.node_status
    renewed = _renewed(patch)
    work.frozen = frozenset(
        [n for n in work.before if status[i := index[n]] in _FROZEN and i not in state.cancelling and n not in renewed]
    )
    ids = state.plan.ids
    work.aliases = {ids[old]: ids[new] for old, new in state.stand_ins.items() if ids[old] not in renewed}
    work.retired = frozenset(work.aliases)


def _renewed(patch: Patch) -> frozenset[NodeId]:
    """Nodes that this very patch runs again: whatever else it does to them, they have not run then."""
    return frozenset(op.id for op in patch.operations if isinstance(op, Retry))


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


def _ends_running(operation: Operation) -> bool:
    return not isinstance(operation, SetLimits) and operation.cancel_running


def _check_states(state: RunState, work: Draft, patch: Patch, at: int, actor: Actor, undoes: int) -> None:
    operation = patch.operations[at]
    kind = _word(operation)
    completed = state.ended is not None and state.ended.status is RunStatus.COMPLETED
    if completed and not isinstance(operation, Insert | Rerun) and not undoes:
        message = f"{kind}: the run is completed"
        work.fault(at, "", "completed-run", message, "a completed run takes insert and rerun")
        return
    if isinstance(operation, SetLimits) and actor == "node":
        work.fault(at, "", "not-allowed", "set_limits: a node may not change the limits of its run", "ask a human")
    renewed = _renewed(patch)
    for name in _targets(operation):
        i = state.plan.index.get(name)
        if i is None or i in state.removed:
            continue  # `apply` says that it is unknown
        status = standing(state, i)
        if status is Status.RUNNING and _ends_running(operation):
            continue
        # a retry in the same patch makes a failed node one that has not run
        again_ = name in renewed and status in (_UNDONE if undoes else _RETRIED)
        if type(operation) in _ALLOWED[status] or (again_ and type(operation) in _ALL):
            continue
        if i in state.escalating and (actor == "declared" or isinstance(operation, Fallback)):
            continue  # its retries are spent: it has failed
        if undoes and isinstance(operation, Retry) and status is Status.SUPERSEDED:
            continue
        message = f"{kind}: node `{name}` is {status}"
        work.fault(at, "", "wrong-state", message, _advice(status, operation, name))


def _word(operation: Operation) -> str:
    return "set_limits" if isinstance(operation, SetLimits) else type(operation).__name__.lower()


def _advice(status: Status, operation: Operation, name: NodeId) -> str:
    match status:
        case Status.RUNNING:
            return f"wait for it, or end it first: `running: cancel` (--cancel-running) on {name}"
        case Status.COMPLETED:
            return "finished work is never changed; to run it again with all that follows: rerun"
        case Status.PENDING | Status.READY:
            return "it has not run yet: " + ("use modify" if isinstance(operation, Retry) else "nothing to do")
        case Status.SKIPPED | Status.CANCELLED:
            return "it did not run: use retry"
        case Status.FAILED:
            return "a failed node takes retry, fallback or remove; with a retry beside it, anything"
        case Status.RETRYING:
            return "a node between attempts takes modify, retry or remove; with a retry beside it, anything"
        case Status.AWAITING_REVIEW:
            return "a node that waits for a human takes remove, retry or fallback; or decide: dagrun review"
        case _:
            return "its fallback took its place: change that one"


def _check_settled(state: RunState, work: Draft, patch: Patch) -> None:
    """Nodes that other operations dragged in: settled and running ones stay as they are."""
    again_ = set(work.reset)
    for name in [*work.changed, *work.removed]:
        at = work.touched[name]
        operation = patch.operations[at]
        status = _status(state, name)
        if status not in _FROZEN or name in again_ or name in work.retired or name in _targets(operation):
            continue  # targets are judged by `_check_states`
        if status is Status.RUNNING and _ends_running(operation):
            continue
        if name in work.removed and status in (Status.FAILED, Status.AWAITING_REVIEW):
            continue
        verb = "removed" if name in work.removed else "changed"
        message = f"`{name}` would be {verb}, but it is {status}"
        work.fault(at, "", "settled", message, "what has run or runs stays: use strategy skip, or leave it out")
    for name in [n for n in work.skipped if _status(state, n) is Status.COMPLETED]:
        work.skipped.pop(name)  # completed nodes of a blocked path stay completed


def _close_reruns(state: RunState, work: Draft, patch: Patch) -> None:
    """A rerun makes all that followed from the node stale: it runs again too."""
    todo = [op.id for op in patch.operations if isinstance(op, Rerun) and op.id in work.nodes]
    ends = any(_ends_running(op) for op in patch.operations if isinstance(op, Rerun))
    seen = set(todo)
    told = work.skipped.keys() | set(work.reset)  # each node is seen once, so what is added below is never asked for
    while todo:
        name = todo.pop()
        for below in work.dependents(name):
            if below in seen or state.plan.index.get(below, -1) in state.replanners:
                continue
            seen.add(below)
            todo.append(below)
            status = _status(state, below)
            at = work.touched[name]
            work.touched.setdefault(below, at)
            if status is Status.RUNNING and not ends:
                message = f"rerun: `{below}` follows from `{name}` and is running"
                work.fault(at, "", "wrong-state", message, "wait for it, or end it: `running: cancel`")
            elif below not in told and _is_stale(state, below, status):
                again(work, below, at)


def _is_stale(state: RunState, name: NodeId, status: Status | None) -> bool:
    if status is Status.SKIPPED:
        return state.skips.get(state.plan.index[name]) not in ("patch", "selection")
    begun = (Status.RUNNING, Status.RETRYING, Status.AWAITING_REVIEW)
    return status in begun or (status in SETTLED and status is not Status.SUPERSEDED)


def _check_feeds(state: RunState, work: Draft, patch: Patch) -> None:
    """A node can't be made to wait for one that will never give anything."""
    for name, node in work.changed.items():
        before = work.before.get(name)
        operation = patch.operations[work.touched[name]]
        rewired = isinstance(operation, Rewire) and operation.id == name
        if name in work.retired or isinstance(operation, Fallback) or (node.condition and not rewired):
            continue
        # bridged needs come from a node that waited for them already: it is decided by them as it was
        if isinstance(operation, Remove) or (before is None and name in state.plan.index):
            continue
        old = set(all_needs(before)) if before is not None else set()
        for need in all_needs(node):
            if need not in old and (why := _dead(state, work, need, rewired)):
                message = f"`{name}` would wait for `{need}`, which {why}"
                work.fault(work.touched[name], "", "dead-need", message, "name one that runs, or retry it too")


def _dead(state: RunState, work: Draft, name: NodeId, strict: bool) -> str:
    """Why a node gives nothing to wait for, or an empty text. `strict`: also what a patch left out."""
    if name in work.superseded:
        return "is superseded"
    if name in work.skipped:
        return "would be skipped" if strict else ""
    status = _status(state, name)
    if status is None or name in work.reset:
        return ""
    i = state.plan.index[name]
    if status is Status.FAILED:
        return "" if state.plan.nodes[i].continue_on_error else "failed"
    if status is Status.SKIPPED and name not in work.changed:
        satisfied = state.skips.get(i) in ("patch", "selection")
        return "" if satisfied and not strict else "was skipped"
    return f"is superseded by `{work.aliases.get(name, '')}`" if status is Status.SUPERSEDED else ""


# ---------------------------------------------------------------- the whole


def _check_permissions(state: RunState, work: Draft, patch: Patch, actor: Actor, maker: str) -> None:
    """Nobody hands on more than he has; a node that nothing holds costs nothing here."""
    workflow = state.plan.workflow
    if actor != "declared":
        check_fallbacks(workflow, work, patch)
        check_retries(state, work, patch)
    by_node = maker.startswith("node:")
    if actor == "human" and not by_node:
        return
    i = state.plan.index.get(maker.removeprefix("node:")) if by_node else None
    if i is not None:
        i = state.replanners.get(i, i)  # a replanner speaks for the failed node: it hands on what that one had
    narrow(workflow, work, patch, None if i is None else state.plan.nodes[i])


def _check_whole(state: RunState, work: Draft, patch: Patch, verdict: Verdict) -> None:
    """References, contracts, orphans and cycles of the graph that would be."""
    workflow = replace(state.plan.workflow, nodes=work.nodes, limits=work.limits)
    check_draft(workflow, work)
    for at, operation in enumerate(patch.operations):
        if isinstance(operation, Rewire):
            check_rewired(work, at, operation)
    _check_feeds(state, work, patch)
    verdict.after = revised(state.plan, workflow, work)
    if verdict.after is not None and not work.faults:
        check_status_reads(state.plan, verdict.after, work)


# ---------------------------------------------------------------- the event and the preview


def _fill(state: RunState, work: Draft, patch: Patch, verdict: Verdict, by: str, undoes: int) -> None:
    known, nodes = state.plan.index, work.nodes
    touched = dict.fromkeys([*work.reset, *work.changed, *work.removed, *work.skipped, *work.superseded])
    running = [n for n in touched if n in known and known[n] in state.running and known[n] not in state.removed]
    after = work.limits
    verdict.event = PatchAdmitted(
        revision=state.plan.revision + 1,
        base=patch.base or state.plan.revision,
        by=by,
        trigger=trigger_json(patch),
        operations=patch.written,
        nodes={name: node_to_json(node) for name, node in work.changed.items()},
        removed=tuple(n for n in work.removed if n not in nodes),
        skipped={n: text for n, text in work.skipped.items() if n in nodes and n not in work.superseded},
        superseded={old: new for old, new in work.superseded.items() if old in nodes and new in nodes},
        reset=tuple(n for n in dict.fromkeys(work.reset) if n in nodes),
        cancelled=tuple(running),
        limits=_limits_json(after) if after != state.plan.workflow.limits else {},
        wave=present_wave(state),
        undoes=undoes,
    )
    event = verdict.event
    verdict.added = [n for n in event.nodes if n not in known or known[n] in state.removed]
    verdict.removed = list(event.removed)
    verdict.changed = [n for n in event.nodes if n in known and known[n] not in state.removed]
    verdict.cancelled = [n for n in running if known[n] not in state.cancelling]
    verdict.stale = [n for n in event.reset if _status(state, n) is Status.COMPLETED]
    assert verdict.after is not None
    verdict.revived = _revived(state, event, verdict.after)


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


def _revived(state: RunState, event: PatchAdmitted, plan: Plan) -> list[NodeId]:
    """What comes back after a skip, as the fold will find it; nodes that the patch itself resets included."""
    status = [*state.node_status, *[Status.PENDING] * (len(plan.ids) - len(state.node_status))]
    for i, new in becomes(event, plan.index).items():
        status[i] = new
    skips = {**state.skips, **{plan.index[name]: "patch" for name in event.skipped}}
    return [plan.ids[i] for i in revived_by(state, plan, status, skips, event)]


def _warn(state: RunState, work: Draft, verdict: Verdict) -> None:
    start = max(1, len(state.workflows[0].nodes))
    if verdict.added and len(work.nodes) > max(start * 1.2, start + 10):
        verdict.warnings.append(f"the run grows from {start} to {len(work.nodes)} nodes")
    if verdict.cancelled:
        verdict.warnings.append(f"ends what runs: {', '.join(verdict.cancelled)}")
    moved = verdict.added or verdict.revived or verdict.cancelled or (verdict.event and verdict.event.reset)
    if not moved and all(_status(state, n) in SETTLED or n in work.skipped for n in work.nodes):
        verdict.warnings.append("nothing is left to do")


def fallback_patch(state: RunState, i: int, template: Node, *, reason: str, timed_out: bool) -> Patch:
    """The patch that an `on_failure: {fallback: …}` stands for."""
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


__all__ = [
    "Actor",
    "Verdict",
    "admit",
    "chain_length",
    "check_draft",
    "fallback_patch",
    "proposal",
    "refusal",
    "stale_base",
    "standing",
    "trigger_json",
]

"""The limits on patches that no human made: how many, how much growth, nothing taken back at once.

People are warned by these and never refused. Source: [dag-dynamic-replanner], Limit Cascades.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from dagrun.core.agents import agents_of
from dagrun.core.lattice import dollars
from dagrun.core.names import SETTLED, NodeId, Status
from dagrun.core.patch import Alternative, Draft, Modify, Operation, Patch, Remove, Rewire, SetLimits
from dagrun.core.plan import all_needs
from dagrun.core.state import RunState
from dagrun.core.workflow import Node, Workflow

# the most that the agents of a workflow can cost, in nano-dollars; None: nobody knows
Cost: TypeAlias = Callable[[Workflow], int | None]


def present_wave(state: RunState) -> int:
    """The lowest wave with an unsettled node; one more than there are when all is settled."""
    return next((wave for wave, left in enumerate(state.wave_left) if wave and left), state.plan.depth + 1)


def chain_end(most: int) -> str:
    """Why a failed node gets no further fallback, and how to allow one."""
    row = "no fallback is allowed" if not most else "1 fallback stood in" if most == 1 else f"{most} fallbacks in a row"
    return f"{row}: {_raise_chain(most)}"


def applied_often(most: int) -> str:
    """Why the declared patch of a failed node is not applied again, and how to allow it."""
    times = "1 time" if most == 1 else f"{most} times"
    return f"its patch was applied {times}: {_raise_chain(most)}"


def _raise_chain(most: int) -> str:
    return f"limits.fallback_chain is {most} (raise it in the workflow: limits: {{fallback_chain: {most + 1}}})"


def revisions_spent(state: RunState) -> tuple[str, str] | None:
    """Why no patch of a node or a model is admitted any more, and how to allow one; None when one may be."""
    most = state.plan.workflow.limits.revisions
    made = sum(r.by.startswith("node:") for r in state.revisions)
    if made < most:
        return None
    message = f"nodes have changed this run {made} times: limits.revisions is {most}"
    return message, f"raise it in the workflow: limits: {{revisions: {made + 1}}}"


def asked_often(most: int) -> str:
    """Why the replanner of a failed node is not asked again, and how to allow it."""
    times = "1 time" if most == 1 else f"{most} times"
    return f"its replanner was asked {times}: {_raise_chain(most)}"


def check_limits(state: RunState, work: Draft, patch: Patch) -> None:
    """Add what a patch of a node has against it; each refusal names the limit and how to raise it."""
    limits = state.plan.workflow.limits
    spent = revisions_spent(state)
    if spent:
        work.fault(0, "", "limit", *spent)
    asked = sum(state.plan.ids[i] in work.before for i in state.replanners)  # they come and go with failures
    start, now, after = len(state.workflows[0].nodes), len(work.before) - asked, len(work.nodes) - asked
    most = max(start * limits.growth // 100, start + limits.growth_nodes)
    if after > most and after > now:
        message = f"the run would grow to {after} nodes; from {start}, limits.growth allows {most}"
        percent = -(-after * 100 // max(1, start))
        work.fault(0, "", "limit", message, f"raise it in the workflow: limits: {{growth: {percent}%}}")
    _check_gates(work, patch)
    wave = present_wave(state)
    for revision in state.revisions:
        if revision.wave == wave:
            _check_inverse(state, work, patch, revision.revision)


def check_cost(state: RunState, work: Draft, cost: Cost) -> None:
    """Refuse a patch that lets the agents of a run cost more than `limits.growth` makes of what its author foresaw.

    That is what all nodes and templates of the first revision can cost; against it stands what is spent and
    what those that are not over can cost. Where the beginning can't be told there is nothing to compare.
    """
    touched = {*work.changed, *work.reset}
    if not any(True for name in touched & work.nodes.keys() for _ in agents_of(work.nodes[name])):
        return
    first, present = state.workflows[0], state.plan.workflow
    start = cost(replace(first, nodes={**first.templates, **first.nodes}))
    now = cost(_still(state, work, present, present.nodes, ()))
    if start is None or now is None:
        return
    after = cost(_still(state, work, present, work.nodes, work.reset))
    spent = state.ledger.spent("run") if state.ledger is not None else 0
    most = start * present.limits.growth // 100
    if after is not None and (after <= now or spent + after <= most):
        return
    said = "more than anybody can tell" if after is None else f"{dollars(spent + after)} in all"
    message = f"the agents of the run could cost {said}; from {dollars(start)}, limits.growth allows {dollars(most)}"
    hint = "let a human do it: dagrun replan"
    if after is not None and start:
        percent = -(-(spent + after) * 100 // start)
        hint = f"raise it in the workflow: limits: {{growth: {percent}%}}, or {hint}"
    work.fault(0, "", "limit", message, hint)


def _still(
    state: RunState, work: Draft, workflow: Workflow, nodes: Mapping[NodeId, Node], again: Iterable[NodeId]
) -> Workflow:
    """A workflow of those nodes that have not run, or run again."""
    repeated = set(again)
    gone = set() if nodes is workflow.nodes else {*work.superseded, *work.skipped}
    there = [name for name in nodes if name not in gone and (name in repeated or _is_open(state, name))]
    return replace(workflow, nodes={name: nodes[name] for name in there})


def _is_open(state: RunState, name: NodeId) -> bool:
    """Whether a node has money to spend yet: it is new, not settled, or skipped only because of how things stood."""
    i = state.plan.index.get(name)
    if i is None or i in state.removed:
        return True
    status = state.cancelling.get(i, state.node_status[i])
    if status is Status.SKIPPED:
        return state.skips.get(i) not in ("patch", "selection")
    return status not in SETTLED


def _check_gates(work: Draft, patch: Patch) -> None:
    """A node may not lead its run around a human: no review goes, is changed, or loses who waits for it."""
    gates = {name for name, node in work.before.items() if node.review is not None}
    if not gates:
        return
    hint = "only a human may change that: dagrun replan"
    for name in sorted(gates & {*work.removed, *work.skipped, *work.superseded}):
        work.fault(work.touched[name], "", "not-allowed", f"a node may not take the review `{name}` out", hint)
    for at, operation in enumerate(patch.operations):
        if not isinstance(operation, Modify | Rewire) or operation.id not in work.before:
            continue
        before, now = work.before[operation.id], work.nodes.get(operation.id)
        if isinstance(operation, Modify) and operation.id in gates:
            work.fault(at, "", "not-allowed", f"a node may not change the review `{operation.id}`", hint)
        for gate in [n for n in all_needs(before) if n in gates and now is not None and n not in all_needs(now)]:
            message = f"a node may not lead `{operation.id}` around the review `{gate}`"
            work.fault(at, "", "not-allowed", message, hint)


def _check_inverse(state: RunState, work: Draft, patch: Patch, revision: int) -> None:
    """Refuse the operations that take back what a revision of the same wave did."""
    before = state.workflows[revision - 2].nodes
    after = state.workflows[revision - 1].nodes
    hint = "what was decided in a wave stands for that wave; a human may change it: dagrun replan"
    for at, operation in enumerate(patch.operations):
        for name in _touches(operation):
            what = _taken_back(work, operation, name, before.get(name), after.get(name))
            if what:
                message = f"`{name}`: this takes back the {what} of revision {revision}, made in the same wave"
                work.fault(at, "", "limit", message, hint)


def _taken_back(work: Draft, operation: Operation, name: NodeId, before: Node | None, after: Node | None) -> str:
    """What of a revision an operation on a node takes back, in a word; empty when nothing."""
    if before is None and after is not None:
        return "insert" if isinstance(operation, Remove) and (name in work.removed or name in work.skipped) else ""
    if before is not None and after is None:
        return "remove" if name in work.nodes else ""
    now, will = work.before.get(name), work.nodes.get(name)
    if before is None or after is None or before == after or now is None or will is None or now == will:
        return ""
    if isinstance(operation, Rewire):
        dropped, added = _edges(before, after)
        lost, regained = _edges(now, will)
        return "rewire" if (lost & added) or (regained & dropped) else ""
    return "change" if will == before else ""


def _edges(old: Node, new: Node) -> tuple[set[NodeId], set[NodeId]]:
    """The needs that went and the needs that came from one definition of a node to the next."""
    was, now = set(old.needs), set(new.needs)
    return was - now, now - was


def _touches(operation: Operation) -> tuple[NodeId, ...]:
    if isinstance(operation, SetLimits):
        return ()
    return operation.blocked if isinstance(operation, Alternative) else (operation.id,)

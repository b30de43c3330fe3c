"""What a retry may change of a node's permissions: to less, and money only of what its run has left.

Knows the ledger of a run; what models and nodes may not do besides is `narrowing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from dagrun.core.agents import held_of
from dagrun.core.excess import widened
from dagrun.core.lattice import as_scope, dollars
from dagrun.core.names import NodeId
from dagrun.core.operation import Draft, Patch, Retry
from dagrun.core.permissions import Permissions
from dagrun.core.state import RunState
from dagrun.core.workflow import Fault, Node, Workflow

_ELSE = "what it may do is changed by modify: dagrun replan --set NODE.permissions…"


def check_retries(state: RunState, work: Draft, patch: Patch) -> None:
    """Add what the retries of a patch ask of permissions and money beyond what their nodes had."""
    for at, operation in enumerate(patch.operations):
        if not isinstance(operation, Retry) or operation.node is None:
            continue
        before = operation.made_on or work.before.get(operation.id)
        if before is not None and before.permissions != operation.node.permissions:
            for fault in _beyond(state, before, operation.node):
                work.fault(at, "", fault.code, fault.message, fault.hint)
                work.faults[-1] = work.faults[-1]._replace(path=("operations", at, "set", "permissions"))


def _beyond(state: RunState, before: Node, after: Node) -> Iterator[Fault]:
    workflow = state.plan.workflow
    was, now = _scope(workflow, before), _scope(workflow, after)
    for part in widened(now, was):
        if part.path != ("cost_budget",):
            message = f"retry: `{after.id}` would be allowed more: it asks {part.asked}, but had {part.allowed}"
            yield Fault((), "beyond-permissions", message, part.hint or _ELSE)
        elif now.cost_budget is not None:
            yield from _unfunded(state, after.id, now.cost_budget)


def _scope(workflow: Workflow, node: Node) -> Permissions:
    return as_scope(held_of(workflow, node))


def _unfunded(state: RunState, name: NodeId, cap: int) -> Iterator[Fault]:
    """That a raised budget is more than its run has left; without a cap of the run there is enough."""
    run = state.plan.workflow.permissions
    if run is None or run.cost_budget is None:
        return
    ledger = state.ledger
    used = ledger.spent("run") + ledger.held("run") if ledger is not None else 0
    mine = ledger.spent(f"node:{name}") if ledger is not None else 0
    left = max(0, run.cost_budget - used)
    if cap - mine > left:
        message = f"retry: a budget of {dollars(cap)} leaves `{name}` {dollars(cap - mine)} to spend"
        yield Fault((), "beyond-permissions", f"{message}, but the run has only {dollars(left)} left", "ask for less")

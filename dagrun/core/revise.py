"""What an admitted patch does to the state of a run: the next revision, whole.

Which patch may be admitted is `replan.py`; here its record is folded, on every reader alike. Nodes
keep their numbers; running ones stay as they started unless the patch ends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dagrun.core.event import PatchAdmitted
from dagrun.core.names import SETTLED, NodeId, RunStatus, Status
from dagrun.core.plan import Plan, revise_plan
from dagrun.core.state import (
    NO_ATTEMPTS,
    UNASKED,
    InvalidTransition,
    RunState,
    forget_asking,
    forget_result,
    forget_waiting,
    is_unasked,
    rebuild,
    satisfies,
)
from dagrun.core.workflow import Limits, node_from_json


def apply_patch(state: RunState, event: PatchAdmitted) -> None:
    """The plan becomes the next revision, whole: nodes, then statuses, then every queue anew."""
    old = state.plan
    if event.revision != old.revision + 1:
        raise InvalidTransition(f"revision {event.revision} admitted on revision {old.revision}")
    nodes = dict(old.workflow.nodes)
    for name in event.removed:
        nodes.pop(name, None)
    for name, data in event.nodes.items():
        assert isinstance(data, dict)
        nodes[name] = node_from_json(data)
    limits = Limits(**event.limits) if event.limits else old.workflow.limits  # type: ignore[arg-type]
    plan = revise_plan(old, replace(old.workflow, nodes=nodes, limits=limits), event.revision)
    state.plan = plan
    state.revisions.append(event)
    state.workflows.append(plan.workflow)
    grown = len(plan.ids) - len(old.ids)
    state.node_status.extend([Status.PENDING] * grown)
    state.attempts.extend([NO_ATTEMPTS] * grown)
    _patch_removals(state, event)
    _patch_statuses(state, event)
    _patch_escalations(state, event)
    _patch_questions(state, event)
    for i in revived_by(state, plan, state.node_status, state.skips, event):
        forget_result(state, i)
    _revive_cancelled(state)
    rebuild(state, {i: at for at, i in state.waking if state.node_status[i] is Status.RETRYING})
    if state.ended is not None:
        state.ended = None
        state.status = RunStatus.INTERRUPTED


def _patch_removals(state: RunState, event: PatchAdmitted) -> None:
    """Nodes that leave the graph keep what they came to; an undo gives a node its id back."""
    index, status = state.plan.index, state.node_status
    for name in event.removed:
        i = index[name]
        state.removed[i] = event.revision
        forget_waiting(state, i)
        if i in state.running:
            state.cancelling[i] = Status.PENDING
        elif status[i] not in SETTLED:
            status[i] = Status.CANCELLED
    for name in event.nodes:
        i = index[name]
        if state.removed.pop(i, None) is not None and status[i] is Status.CANCELLED:
            status[i] = Status.PENDING
            forget_result(state, i)


def _patch_statuses(state: RunState, event: PatchAdmitted) -> None:
    """What becomes of the nodes that a patch settles or sets back; running ones have to end first.

    Whoever admits a patch holds the journal's lock. Should a node have ended between the check and
    the record all the same, completed work stays: the patch comes after it.
    """
    index, status = state.plan.index, state.node_status
    ended = {index[name] for name in event.cancelled} - state.running.keys()
    for i, new in becomes(event, index).items():
        if status[i] is Status.COMPLETED and (new is not Status.PENDING or i in ended):
            continue
        forget_waiting(state, i)
        if new is not Status.PENDING:
            state.skips.pop(i, None)
        if i in state.running:
            state.cancelling[i] = new
            continue
        status[i] = new
        if new is Status.PENDING:
            forget_result(state, i)
    for name in event.nodes:
        if index[name] in state.running:
            state.cancelling.setdefault(index[name], Status.PENDING)
    for name, text in event.skipped.items():
        if status[index[name]] is not Status.COMPLETED:
            state.skips[index[name]], state.reasons[index[name]] = "patch", text
    for name in event.reset:
        state.stands_in.pop(state.stand_ins.pop(index[name], -1), None)
    for name, stand_in in event.superseded.items():
        state.stand_ins[index[name]] = index[stand_in]
        state.stands_in[index[stand_in]] = index[name]


def _patch_escalations(state: RunState, event: PatchAdmitted) -> None:
    """A failure that is escalating goes by the `on_failure` that it has now, from its first step."""
    for name in event.nodes:
        i = state.plan.index[name]
        before = state.workflows[-2].nodes.get(name)
        wanted = state.plan.nodes[i].on_failure
        if i not in state.escalating or (before is not None and before.on_failure == wanted):
            continue
        state.escalating[i] = 0
        forget_asking(state, i)
        if (wanted is None or not wanted.steps) and state.node_status[i] is Status.RETRYING:
            del state.escalating[i]
            state.finished.append(i)
            state.node_status[i] = Status.FAILED


def _patch_questions(state: RunState, event: PatchAdmitted) -> None:
    """Whom a failed node asks from now on; a replanner at work that nobody asks any more is ended."""
    index = state.plan.index
    for failed, replanner in event.asks.items():
        state.replanners[index[replanner]] = index[failed]
        state.asking[index[failed]] = index[replanner]
    if not state.replanners:
        return
    for i in state.running:
        if is_unasked(state, i) and i not in state.removed:
            state.cancelling[i] = Status.SKIPPED
            state.skips[i], state.reasons[i] = "patch", UNASKED


def becomes(event: PatchAdmitted, index: Mapping[NodeId, int]) -> dict[int, Status]:
    """Number → status of the nodes whose standing a patch changes."""
    found = {index[name]: Status.SKIPPED for name in event.skipped}
    found |= {index[name]: Status.SUPERSEDED for name in event.superseded}
    return found | {index[name]: Status.PENDING for name in event.reset}


def _revive_cancelled(state: RunState) -> None:
    """With the failure mended, what `fail_fast` gave up has its chance again."""
    there = [(i, s) for i, s in enumerate(state.node_status) if i not in state.removed]
    if any(s is Status.FAILED and not state.plan.nodes[i].continue_on_error for i, s in there):
        return
    for i, status in there:
        if status is Status.CANCELLED:
            state.node_status[i] = Status.PENDING
            forget_result(state, i)


def revived_by(
    state: RunState, plan: Plan, status: list[Status], skips: Mapping[int, str], event: PatchAdmitted
) -> list[int]:
    """Nodes that were skipped because of how things stood, and are decided anew after a patch.

    These are nodes that the patch changed or that follow from what it touched, unless a patch or a
    selection left them out, or a need still is in their way. `status` (as the patch left it) is
    changed with what is found; for a preview it is a copy.
    """
    index = plan.index
    changed = {index[name] for name in event.nodes}
    touched = {index[n] for n in (*event.reset, *event.skipped, *event.superseded, *event.superseded.values())}
    found: list[int] = []
    for i in sorted(changed | plan.below(changed | touched), key=plan.wave.__getitem__):
        if status[i] is not Status.SKIPPED or skips.get(i) in ("patch", "selection") or i in plan.removed:
            continue
        if i in state.replanners:
            continue
        held = (d for d in plan.needs[i] if status[d] in SETTLED and not satisfies(plan, status[d], skips, d))
        if plan.nodes[i].condition or next(held, None) is None:
            status[i] = Status.PENDING
            found.append(i)
    return found

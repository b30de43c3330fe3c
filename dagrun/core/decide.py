"""What to do next: state in, effects out. The state is not changed.

The shell carries out the effects, journals what came of them as events, folds those with
`evolve` and asks again. Cost: O(what starts now), never O(nodes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple, TypeAlias

from dagrun.core.event import Event, NodeCancelled, NodeSkipped, RevisionAdopted, StopRequested
from dagrun.core.names import NodeId, Outcome, RunStatus, Status
from dagrun.core.state import UNASKED, RunState, awaits_answer, heap_top, is_unasked, outstanding, succeeded
from dagrun.core.workflow import GROUP

EXIT_CODES: Mapping[RunStatus, int] = {
    RunStatus.COMPLETED: 0,
    RunStatus.FAILED: 1,
    RunStatus.NEEDS_REVIEW: 4,
    RunStatus.OVER_BUDGET: 5,
    RunStatus.TIMED_OUT: 124,
    RunStatus.CANCELLED: 143,
}
_SIGNAL_CODES = {"sigint": 130, "sigterm": 143, "sighup": 129, "disk_full": 8}


@dataclass(slots=True, frozen=True)
class Room:
    """What this engine may use at a time: attempts, and resources by name (missing: unbounded)."""

    parallel: int
    resources: Mapping[str, float]


class Start(NamedTuple):
    """Prepare and spawn the next attempt of a node."""

    node: int


class Cancel(NamedTuple):
    """End the running attempt of a node."""

    node: int
    reason: str


class Append(NamedTuple):
    """Journal this event: it follows from the state alone."""

    event: Event


class Escalate(NamedTuple):
    """Carry out the next `on_failure` step of a node whose retries are spent."""

    node: int
    step: str


class Finish(NamedTuple):
    """Nothing is left to do: end the run so."""

    status: RunStatus
    exit_code: int
    reason: str


class Stuck(NamedTuple):
    """Nodes are unsettled and nothing can move them: a bug of dagrun."""

    story: str


Effect: TypeAlias = Start | Cancel | Append | Escalate | Finish | Stuck


def decide(state: RunState, now_m: float, room: Room) -> list[Effect]:
    """The effects that are due at monotonic time `now_m`. An empty list means: wait."""
    stop = state.stop
    if stop is not None:
        if state.running:
            return [Cancel(i, _why(stop)) for i in state.running] if stop.mode == "now" else []
        return [_stopped(state)]
    effects: list[Effect] = []
    failing_fast = state.failures > 0 and state.plan.workflow.fail_fast
    if state.plan.revision != state.adopted_revision:
        effects.append(Append(RevisionAdopted(revision=state.plan.revision)))
    effects.extend(Append(_skip(state, i)) for i in state.doomed)
    if state.cancelling and not failing_fast:
        effects.extend(Cancel(i, "replanned") for i in state.cancelling)
    escalation = _escalation(state) if state.escalating and not failing_fast else None
    if failing_fast:
        effects.extend(_fail_fast(state))
    elif escalation is not None:
        effects.append(escalation)  # alone: it may change the plan that starts are chosen by
    elif len(state.running) < room.parallel and (state.ready or state.waking):
        _starts(state, now_m, room, effects)
    if not effects and not state.running:
        if state.settled == len(state.plan.ids) and not state.proposals:
            return [_finish(state)]
        if any(_waits(state, i) for _, i in state.waking):
            return []
        if state.reviews or state.proposals:
            return [Finish(RunStatus.NEEDS_REVIEW, EXIT_CODES[RunStatus.NEEDS_REVIEW], _waiting_for(state))]
        return [Stuck(_stuck(state))]
    return effects


def next_wake(state: RunState, now_m: float = float("-inf")) -> float | None:
    """The monotonic time after `now_m` at which the next retry is due, if one waits.

    What was due by `now_m` and did not start lacks a slot or a resource: no clock brings that.
    """
    while state.waking and not _waits(state, state.waking[0][1]):
        heappop(state.waking)
    if not state.waking or state.waking[0][0] > now_m:
        return state.waking[0][0] if state.waking else None
    later = (at for at, i in state.waking if at > now_m and _waits(state, i))
    return min(later, default=None)


def _waits(state: RunState, i: int) -> bool:
    """Whether a node waits for the delay before its next attempt (and not for its escalation)."""
    return state.node_status[i] is Status.RETRYING and i not in state.escalating


def _starts(state: RunState, now_m: float, room: Room, effects: list[Effect]) -> None:
    """Fill the free slots: due retries first, then ready nodes, longest remaining path first."""
    free = room.parallel - len(state.running)
    used = dict(state.used) if state.used else {}
    # taken entries go back afterwards: only `evolve` may change the state
    taken: list[tuple[list[tuple[float, int]], tuple[float, int]]] = []
    chosen: set[int] = set()
    while free and state.waking and state.waking[0][0] <= now_m:
        entry = heappop(state.waking)
        i = entry[1]
        if not _waits(state, i):
            continue
        taken.append((state.waking, entry))
        wants = state.plan.nodes[i].reserves
        if i not in chosen and _fits(wants, used, room):
            chosen.add(i)
            _reserve(wants, used)
            effects.append(Start(i))
            free -= 1
    full: set[int] = set()
    while free:
        heap = _best_heap(state, used, room, full)
        if heap is None:
            break
        entry = heappop(heap)
        taken.append((heap, entry))
        if entry[1] not in chosen:
            chosen.add(entry[1])
            _reserve(state.plan.nodes[entry[1]].reserves, used)
            effects.append(Start(entry[1]))
            free -= 1
    for heap, entry in taken:
        heappush(heap, entry)


def _best_heap(
    state: RunState, used: Mapping[str, float], room: Room, full: set[int]
) -> list[tuple[float, int]] | None:
    """The heap whose top goes first among those whose reservations still fit."""
    best: list[tuple[float, int]] | None = None
    for key, heap in state.ready.items():
        if id(heap) in full or heap_top(state, heap) is None:
            continue
        if key and not _fits(dict(key), used, room):
            full.add(id(heap))
        elif best is None or heap[0] < best[0]:
            best = heap
    return best


def _fits(wants: Mapping[str, float], used: Mapping[str, float], room: Room) -> bool:
    return all(
        used.get(name, 0.0) + amount <= (1.0 if name.startswith(GROUP) else room.resources.get(name, inf)) + 1e-9
        for name, amount in wants.items()
    )


def _reserve(wants: Mapping[str, float], used: dict[str, float]) -> None:
    for name, amount in wants.items():
        used[name] = used.get(name, 0.0) + amount


def _skip(state: RunState, i: int) -> NodeSkipped:
    """The skip of a node whose needs did not all succeed, naming the first of them."""
    plan = state.plan
    if i in state.unselected:
        return NodeSkipped(node=plan.ids[i], reason="selection", text=state.reasons.get(i, ""))
    if is_unasked(state, i):
        return NodeSkipped(node=plan.ids[i], reason="condition", text=UNASKED)
    for d in plan.needs[i]:
        status = state.node_status[d]
        if status is Status.FAILED and not plan.nodes[d].continue_on_error:
            return NodeSkipped(node=plan.ids[i], reason="dependency", text=f"{plan.ids[d]} failed")
        if status in (Status.SKIPPED, Status.CANCELLED) and not succeeded(state, d):
            return NodeSkipped(node=plan.ids[i], reason="dependency", text=f"{plan.ids[d]} was {status}")
    return NodeSkipped(node=plan.ids[i], reason="dependency")


def _fail_fast(state: RunState) -> list[Effect]:
    """Give up all that has not started and end what runs. O(nodes), once a run."""
    first = next(
        state.plan.ids[i]
        for i in state.finished
        if state.node_status[i] is Status.FAILED
        and i not in state.removed
        and not state.plan.nodes[i].continue_on_error
    )
    text = f"fail_fast: {first} failed"
    effects: list[Effect] = [Cancel(i, text) for i in state.running]
    waiting = (Status.PENDING, Status.READY, Status.RETRYING, Status.AWAITING_REVIEW)
    if not any(state.counts[status] for status in waiting):
        return effects
    for i, status in enumerate(state.node_status):
        if status in waiting and i not in state.doomed and i not in state.removed:
            effects.append(Append(NodeCancelled(node=state.plan.ids[i], text=text)))
    return effects


def _escalation(state: RunState) -> Escalate | None:
    """The next step of one node whose retries are spent; the next node's turn is when that is done."""
    for i in outstanding(state):
        wanted = state.plan.nodes[i].on_failure
        if wanted is not None and not awaits_answer(state, i):
            return Escalate(i, wanted.steps[state.escalating[i]])
    return None


def _waiting_for(state: RunState) -> str:
    names = [state.plan.ids[i] for i in state.reviews] + [f"proposal {n}" for n in state.proposals]
    return f"waiting for a human: {', '.join(names[:5])}"


def _why(stop: StopRequested) -> str:
    """A request to stop, in the words of an attempt that it ends."""
    if stop.cause == "cancel":
        return f"requested by {stop.by}" if stop.by else "requested"
    return "the run's limits.timeout is over" if stop.cause == "timeout" else f"stopped by {stop.cause}"


def _stopped(state: RunState) -> Finish:
    stop = state.stop
    assert stop is not None
    if stop.cause == "cancel":
        by = f" by {stop.by}" if stop.by else ""
        return Finish(RunStatus.CANCELLED, EXIT_CODES[RunStatus.CANCELLED], f"cancelled{by}")
    if stop.cause == "timeout":
        return Finish(RunStatus.TIMED_OUT, EXIT_CODES[RunStatus.TIMED_OUT], "the run's limits.timeout is over")
    if state.settled == len(state.plan.ids):
        return _finish(state)
    return Finish(RunStatus.INTERRUPTED, _SIGNAL_CODES[stop.cause], f"stopped by {stop.cause}")


def _finish(state: RunState) -> Finish:
    """The end of a run that has nothing left to do. Out of money says more than failed: it goes before it."""
    if state.failures > 0:
        short = _out_of_money(state)
        if short:
            more = f" and {len(short) - 3} more" if len(short) > 3 else ""
            reason = f"not enough money left for {', '.join(short[:3])}{more}"
            return Finish(RunStatus.OVER_BUDGET, EXIT_CODES[RunStatus.OVER_BUDGET], reason)
    failed = state.failures > 0 or state.counts[Status.CANCELLED] > 0
    status = RunStatus.FAILED if failed else RunStatus.COMPLETED
    return Finish(status, EXIT_CODES[status], "")


def _out_of_money(state: RunState) -> list[NodeId]:
    """The nodes that make the run fail because their budget was exhausted. O(nodes that ran), once a run."""
    return [
        state.plan.ids[i]
        for i in dict.fromkeys(state.finished)
        if state.node_status[i] is Status.FAILED
        and i not in state.removed
        and not state.plan.nodes[i].continue_on_error
        and state.attempts[i]
        and state.attempts[i][-1].outcome is Outcome.OVER_BUDGET
    ]


def _stuck(state: RunState) -> str:
    stuck = (Status.PENDING, Status.READY, Status.RETRYING)
    names = [state.plan.ids[i] for i, s in enumerate(state.node_status) if s in stuck and i not in state.removed]
    return f"{len(names)} nodes can't move: {', '.join(names[:5])}"

"""The state of a run: the fold of its events, through one door.

`evolve` is the only function that changes a RunState; it costs O(degree of the node) an event.
What `decide` needs (ready heaps, counters, held waves, timers) is kept here as events come,
never recomputed over the graph, but for the rare events that move many nodes at once
(a revival on resume), which rebuild the queues in O(nodes).

Transitions of a node:

    pending ──needs settled──> ready ──node.started──> running ──attempt.finished──> completed
       │                         │  └─node.skipped──> skipped        │  ├──> failed
       │                         └─attempt.finished (never ran)──────┘  ├──> retrying ──node.started──> running
       └─node.skipped / node.cancelled / node.adopted                   └──> ready (lost, or interrupted)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import TypeAlias

from dagrun.core.event import (
    AttemptFinished,
    EngineAttached,
    EscalationFailed,
    Event,
    NodeAdopted,
    NodeCancelled,
    NodeSkipped,
    NodeSpawned,
    NodeStarted,
    PatchAdmitted,
    PatchProposed,
    PatchRefused,
    ProposalDecided,
    ReviewDecided,
    ReviewRequested,
    RevisionAdopted,
    RunCreated,
    RunEnded,
    StopRequested,
    Warned,
    event_type,
)
from dagrun.core.names import LOST_BUDGET, SETTLED, Json, NodeId, Outcome, RunStatus, Schedule, Status
from dagrun.core.plan import Plan, revise_plan
from dagrun.core.retry import retry_delay_s
from dagrun.core.workflow import Limits, Workflow, node_from_json

Signature: TypeAlias = tuple[tuple[str, float], ...]  # what a node reserves, sorted by name

INTERRUPTS = frozenset({"sigint", "sigterm", "sighup", "disk_full", "timeout"})


class InvalidTransition(Exception):
    """An event that can't happen to this node now: a bug of dagrun. Carries the node's story."""


@dataclass(slots=True)
class Attempt:
    """One try of a node. `started_at` is wall time, `started_m` monotonic; outcome None = running."""

    number: int
    started_at: float
    started_m: float
    revision: int
    slot: int = -1
    pid: int = 0
    ticks: int = 0
    outcome: Outcome | None = None
    finish: AttemptFinished | None = None
    inputs_digest: str = ""
    reserved: Mapping[str, float] = field(default_factory=dict)  # what it holds, whatever a patch makes of its node


@dataclass(slots=True)
class RunState:
    """Everything known of a run. Lists are parallel to `plan.ids`; sparse facts are dicts by number."""

    plan: Plan
    created: RunCreated
    created_at: float
    status: RunStatus
    schedule: Schedule
    node_status: list[Status]
    unmet: list[int]
    broken: bytearray  # some need did not succeed: runs only if its condition says so
    tainted: bytearray  # some ancestor failed
    attempts: list[list[Attempt]]
    reasons: dict[int, str] = field(default_factory=dict)
    skips: dict[int, str] = field(default_factory=dict)
    unselected: set[int] = field(default_factory=set)  # left out, and some need is not settled yet
    outputs: dict[int, Mapping[str, Json]] = field(default_factory=dict)
    adopted: dict[int, str] = field(default_factory=dict)
    tries_base: dict[int, int] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    removed: dict[int, int] = field(default_factory=dict)  # number -> revision that took it out
    stand_ins: dict[int, int] = field(default_factory=dict)  # superseded node -> its fallback
    stands_in: dict[int, int] = field(default_factory=dict)  # fallback -> the node it stands in for
    cancelling: dict[int, Status] = field(default_factory=dict)  # running, by a patch -> what it becomes
    escalating: dict[int, int] = field(default_factory=dict)  # failed, not settled -> next on_failure step
    reviews: dict[int, ReviewRequested] = field(default_factory=dict)  # what waits for a human
    proposals: dict[int, PatchProposed] = field(default_factory=dict)  # undecided ones, by number
    revisions: list[PatchAdmitted] = field(default_factory=list)
    workflows: list[Workflow] = field(default_factory=list)  # of revision 1, 2, …; they share their nodes
    adopted_revision: int = 1
    proposed: int = 0  # proposals so far
    running: dict[int, Attempt] = field(default_factory=dict)
    ready: dict[Signature, list[tuple[float, int]]] = field(default_factory=dict)
    doomed: dict[int, None] = field(default_factory=dict)  # to be skipped, in order
    waking: list[tuple[float, int]] = field(default_factory=list)
    held: dict[int, list[int]] = field(default_factory=dict)
    wave_left: list[int] = field(default_factory=list)
    wave: int = 1
    used: dict[str, float] = field(default_factory=dict)
    counts: dict[Status, int] = field(default_factory=dict)
    settled: int = 0
    failures: int = 0  # nodes that make the run fail
    stop: StopRequested | None = None
    ended: RunEnded | None = None
    ended_at: float = 0.0
    engine: EngineAttached | None = None
    engines: int = 0
    attached_at: float = 0.0
    attached_m: float = 0.0
    warnings: list[Warned] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)  # settled by running, in order: for views
    now: float = 0.0  # wall time of the last record
    now_m: float = 0.0  # monotonic time of the last record


def new_state(plan: Plan, created: RunCreated, at: float) -> RunState:
    """The state after `run.created` with everything pending or ready."""
    n = len(plan.ids)
    state = RunState(
        plan=plan,
        created=created,
        created_at=at,
        now=at,
        status=RunStatus.RUNNING,
        schedule=Schedule(created.schedule),
        node_status=[Status.PENDING] * n,
        unmet=[],
        broken=bytearray(n),
        tainted=bytearray(n),
        attempts=[_NO_ATTEMPTS] * n,
    )
    state.workflows.append(plan.workflow)
    _rebuild(state)
    return state


_NO_ATTEMPTS: list[Attempt] = []  # shared by all nodes that never started: never mutated


def succeeded(state: RunState, i: int) -> bool:
    """Whether dependents of a settled node may run as after a success (`continue_on_error` counts)."""
    return _satisfies(state.plan, state.node_status[i], state.skips, i)


def signature(resources: Mapping[str, float]) -> Signature:
    """The ready heap that a node with these reservations waits in."""
    return tuple(sorted(resources.items())) if resources else ()


def _rebuild(state: RunState, timers: Mapping[int, float] | None = None) -> None:
    """Recompute every counter and queue from the statuses. O(nodes + edges).

    `timers` are the times of retries that go on waiting; other delays start now.
    """
    plan = state.plan
    n = len(plan.ids)
    statuses = state.node_status
    is_settled = [s in SETTLED for s in statuses]
    for i in state.removed:
        is_settled[i] = True
    state.unmet = [sum(not is_settled[d] for d in wanted) for wanted in plan.needs]
    state.broken = bytearray(n)
    state.tainted = bytearray(n)
    state.ready, state.held, state.doomed, state.waking = {}, {}, {}, []
    state.wave_left = [0] * (plan.depth + 2)
    state.counts = dict.fromkeys(Status, 0)
    state.failures = 0
    for i in sorted(range(n), key=plan.wave.__getitem__):
        for d in plan.needs[i]:
            if is_settled[d] and not succeeded(state, d):
                state.broken[i] = 1
            if state.tainted[d] or (statuses[d] is Status.FAILED and not plan.nodes[d].continue_on_error):
                state.tainted[i] = 1
        if not is_settled[i]:
            state.wave_left[plan.wave[i]] += 1
        if statuses[i] is Status.FAILED and i not in state.removed and not plan.nodes[i].continue_on_error:
            state.failures += 1
    state.settled = sum(is_settled)
    state.wave = n + 1 if state.schedule is Schedule.READY else _lowest_wave(state, 1)
    _requeue(state, timers or {})


def _requeue(state: RunState, timers: Mapping[int, float]) -> None:
    """Count the statuses anew, and put every node that waits where it waits."""
    statuses = state.node_status
    n = len(statuses)
    for i in range(n):
        if statuses[i] is Status.READY or _waits_again(state, i):
            statuses[i] = Status.PENDING
        if i not in state.removed:
            state.counts[statuses[i]] += 1
    for i in range(n):
        if i in state.removed:
            continue
        if statuses[i] is Status.PENDING and not state.unmet[i]:
            _needs_met(state, i)
        elif statuses[i] is Status.RETRYING and i not in state.escalating:
            at = timers.get(i)
            heappush(state.waking, (state.now_m + _delay(state, i) if at is None else at, i))


def _waits_again(state: RunState, i: int) -> bool:
    """Whether a patch gave a node between two attempts something to wait for."""
    return state.node_status[i] is Status.RETRYING and state.unmet[i] > 0 and i not in state.escalating


def _lowest_wave(state: RunState, start: int) -> int:
    wave, last = start, state.plan.depth
    while wave <= last and not state.wave_left[wave]:
        wave += 1
    return wave


def _delay(state: RunState, i: int) -> float:
    """The delay that a retrying node waits, from its last attempt."""
    last = state.attempts[i][-1]
    tries = len(state.attempts[i]) - state.tries_base.get(i, 0) - state.lost.get(i, 0)
    outcome = last.outcome or Outcome.FAILED
    node = state.plan.nodes[i]
    return retry_delay_s(node.retry, outcome, tries, state.created.run_id, node.id, last.number) or 0.0


def _set(state: RunState, i: int, status: Status) -> None:
    state.counts[state.node_status[i]] -= 1
    state.counts[status] += 1
    state.node_status[i] = status


def _needs_met(state: RunState, i: int) -> None:
    """All needs of a pending node are settled: ready, held for its wave, or doomed to be skipped."""
    node = state.plan.nodes[i]
    if i in state.unselected or (state.broken[i] and not node.condition):
        state.doomed[i] = None
    elif state.plan.wave[i] > state.wave:
        state.held.setdefault(state.plan.wave[i], []).append(i)
    else:
        _make_ready(state, i)


def _make_ready(state: RunState, i: int) -> None:
    _set(state, i, Status.READY)
    key = signature(state.plan.nodes[i].resources)
    heap = state.ready.get(key)
    if heap is None:
        heap = state.ready[key] = []
    heappush(heap, (-state.plan.rank[i], i))


def _settle(state: RunState, i: int, status: Status) -> None:
    """A node is over: tell its dependents, and open the next wave if it was the last of its own."""
    _set(state, i, status)
    state.settled += 1
    if state.doomed:
        state.doomed.pop(i, None)
    plan = state.plan
    failed = status is Status.FAILED and not plan.nodes[i].continue_on_error
    state.failures += failed
    taint = failed or state.tainted[i]
    ok = succeeded(state, i)
    for d in plan.dependents[i]:
        if taint:
            state.tainted[d] = 1
        if not ok:
            state.broken[d] = 1
        state.unmet[d] -= 1
        if not state.unmet[d] and state.node_status[d] is Status.PENDING:
            _needs_met(state, d)
    wave = plan.wave[i]
    state.wave_left[wave] -= 1
    if wave == state.wave and not state.wave_left[wave]:
        state.wave = _lowest_wave(state, wave)
        for w in range(wave + 1, state.wave + 1):
            for d in state.held.pop(w, ()):
                if state.node_status[d] is Status.PENDING:
                    _make_ready(state, d)


def evolve(state: RunState, event: Event, at: float, at_m: float) -> None:
    """Fold one event into the state. `at` is wall and `at_m` monotonic time of its record.

    Raises InvalidTransition when the event can't happen now.
    """
    state.now, state.now_m = at, at_m
    match event:
        case NodeStarted():
            _started(state, event)
        case AttemptFinished():
            _finished(state, event)
        case NodeSpawned():
            attempt = state.running.get(state.plan.index[event.node])
            if attempt is not None and attempt.number == event.attempt:
                attempt.pid, attempt.ticks, attempt.slot = event.pid, event.ticks, event.slot
        case NodeSkipped():
            i = _unsettled(state, event.node, event)
            state.skips[i] = event.reason
            state.reasons[i] = event.text
            _forget_waiting(state, i)
            if event.reason == "selection" and state.unmet[i]:
                state.unselected.add(i)  # settles in its turn, so that the order through it holds
            else:
                _settle(state, i, Status.SKIPPED)
        case NodeCancelled():
            i = _unsettled(state, event.node, event)
            _forget_waiting(state, i)
            state.reasons[i] = event.text
            _settle(state, i, Status.CANCELLED)
        case NodeAdopted():
            i = _unsettled(state, event.node, event)
            state.outputs[i] = event.outputs
            state.adopted[i] = event.run_id
            _settle(state, i, Status.COMPLETED)
        case EngineAttached():
            _attached(state, event)
        case PatchAdmitted():
            _patched(state, event)
        case RevisionAdopted():
            state.adopted_revision = event.revision
        case EscalationFailed():
            _escalation_failed(state, event)
        case ReviewRequested():
            _review_requested(state, event)
        case ReviewDecided():
            _review_decided(state, event)
        case PatchProposed():
            state.proposals[event.number] = event
            state.proposed = event.number
        case ProposalDecided():
            state.proposals.pop(event.number, None)
        case PatchRefused():
            pass  # history only
        case StopRequested():
            # a cancel is not taken back by a signal that comes after it
            if state.stop is None or (event.mode == "now" and state.stop.cause != "cancel"):
                state.stop = event
        case RunEnded():
            _ended(state, event)
        case Warned():
            state.warnings.append(event)
        case RunCreated():
            raise InvalidTransition("a run is created only once")


def _unsettled(state: RunState, name: NodeId, event: Event) -> int:
    i = state.plan.index[name]
    status = state.node_status[i]
    if status in SETTLED or status is Status.RUNNING or i in state.removed:
        raise InvalidTransition(f"{event_type(event)} for node {name!r}, which is {status}; {story(state, i)}")
    return i


def story(state: RunState, i: int) -> str:
    """What happened to a node so far, in one line."""
    tried = ", ".join(f"attempt {a.number}: {a.outcome or 'running'}" for a in state.attempts[i])
    return f"node {state.plan.ids[i]!r}: {tried or 'never started'}"


def _started(state: RunState, event: NodeStarted) -> None:
    i = state.plan.index[event.node]
    status = state.node_status[i]
    if status is Status.READY:
        heap = state.ready[signature(state.plan.nodes[i].resources)]
        if heap and heap[0][1] == i:
            heappop(heap)
    elif status is not Status.RETRYING:
        raise InvalidTransition(f"node.started for node {event.node!r}, which is {status}; {story(state, i)}")
    elif state.waking and state.waking[0][1] == i:
        heappop(state.waking)
    _set(state, i, Status.RUNNING)
    attempt = Attempt(event.attempt, state.now, state.now_m, event.revision, event.slot)
    attempt.inputs_digest = event.inputs_digest
    attempt.reserved = state.plan.nodes[i].resources
    _add_attempt(state, i, attempt)
    state.running[i] = attempt
    for name, amount in attempt.reserved.items():
        state.used[name] = state.used.get(name, 0.0) + amount


def _add_attempt(state: RunState, i: int, attempt: Attempt) -> None:
    if state.attempts[i]:
        state.attempts[i].append(attempt)
    else:
        state.attempts[i] = [attempt]


def _finished(state: RunState, event: AttemptFinished) -> None:
    i = state.plan.index[event.node]
    attempt = state.running.pop(i, None)
    if attempt is None:  # refused before it started: a missing input, an injected failure
        i = _unsettled(state, event.node, event)
        attempt = Attempt(event.attempt, state.now, state.now_m, state.plan.revision)
        _add_attempt(state, i, attempt)
    elif attempt.number != event.attempt:
        raise InvalidTransition(f"attempt {event.attempt} finished out of turn; {story(state, i)}")
    else:
        for name, amount in attempt.reserved.items():
            state.used[name] -= amount
    attempt.outcome = event.outcome
    attempt.finish = event
    if i in state.cancelling:
        attempt.outcome = Outcome.CANCELLED  # a late result of what a patch ended is no result
        _after_cancel(state, i, state.cancelling.pop(i))
    elif event.outcome is Outcome.COMPLETED:
        if event.outputs:
            state.outputs[i] = event.outputs
        state.finished.append(i)
        _settle(state, i, Status.COMPLETED)
    else:
        _not_completed(state, i, event)


def _not_completed(state: RunState, i: int, event: AttemptFinished) -> None:
    """Where a node goes after an attempt that did not complete."""
    node = state.plan.nodes[i]
    outcome = event.outcome
    interrupted = outcome is Outcome.CANCELLED and state.stop is not None and state.stop.cause in INTERRUPTS
    if interrupted and node.idempotent:
        state.tries_base[i] = state.tries_base.get(i, 0) + 1
        _wait_for_needs(state, i)
        return
    if outcome is Outcome.CANCELLED and not interrupted:
        state.reasons[i] = event.error
        _settle(state, i, Status.CANCELLED)
        return
    if outcome is Outcome.LOST:
        state.lost[i] = state.lost.get(i, 0) + 1
        if node.idempotent and state.lost[i] <= LOST_BUDGET:
            _wait_for_needs(state, i)
            return
    elif node.idempotent or outcome is not Outcome.TIMED_OUT:
        tries = len(state.attempts[i]) - state.tries_base.get(i, 0) - state.lost.get(i, 0)
        delay = retry_delay_s(node.retry, outcome, tries, state.created.run_id, node.id, event.attempt)
        if delay is not None:
            if state.unmet[i]:  # a patch set a need of it back while it ran
                _set(state, i, Status.PENDING)
                return
            _set(state, i, Status.RETRYING)
            heappush(state.waking, (state.now_m + delay, i))
            return
    state.reasons[i] = event.error
    if node.on_failure is not None and node.on_failure.steps:
        state.escalating[i] = 0
        _set(state, i, Status.RETRYING)
        return
    state.finished.append(i)
    _settle(state, i, Status.FAILED)


def _wait_for_needs(state: RunState, i: int) -> None:
    """A node that ran is to run again: at once, unless a patch set one of its needs back meanwhile."""
    _set(state, i, Status.PENDING)
    if not state.unmet[i]:
        _needs_met(state, i)


def _after_cancel(state: RunState, i: int, becomes: Status) -> None:
    """A running node that a patch ended: out of the graph, settled, or on to its next attempt."""
    if i in state.removed:
        state.node_status[i] = Status.CANCELLED
    elif becomes is Status.PENDING:
        state.tries_base[i] = len(state.attempts[i]) - state.lost.get(i, 0)
        _wait_for_needs(state, i)
    else:
        _settle(state, i, becomes)


# ---------------------------------------------------------------- escalation and reviews


def _escalation_failed(state: RunState, event: EscalationFailed) -> None:
    i = state.plan.index[event.node]
    if i not in state.escalating:
        raise InvalidTransition(f"escalation.failed for node {event.node!r}; {story(state, i)}")
    state.escalating[i] += 1
    wanted = state.plan.nodes[i].on_failure
    if wanted is None or state.escalating[i] >= len(wanted.steps):
        del state.escalating[i]
        state.finished.append(i)
        _settle(state, i, Status.FAILED)


def _review_requested(state: RunState, event: ReviewRequested) -> None:
    i = _unsettled(state, event.node, event)
    state.reviews[i] = event
    if i not in state.escalating:
        attempt = Attempt(event.attempt, state.now, state.now_m, state.plan.revision)
        attempt.inputs_digest = event.inputs_digest
        _add_attempt(state, i, attempt)
    _set(state, i, Status.AWAITING_REVIEW)


def _review_decided(state: RunState, event: ReviewDecided) -> None:
    i = state.plan.index[event.node]
    if i not in state.reviews:
        raise InvalidTransition(f"review.decided for node {event.node!r}, which awaits none; {story(state, i)}")
    asked = state.reviews.pop(i)
    approved = event.decision == "approve" or (event.decision == "timed_out" and asked.on_timeout == "approve")
    escalated = state.escalating.pop(i, None) is not None
    outcome = Outcome.COMPLETED if approved else Outcome.REVIEW_TIMED_OUT if event.decision == "timed_out" else Outcome.REJECTED
    text = event.comment or f"{event.decision}{f' by {event.by}' if event.by else ''}"
    if not escalated:
        attempt = state.attempts[i][-1]
        attempt.outcome = outcome
        attempt.finish = AttemptFinished(
            node=event.node,
            attempt=attempt.number,
            outcome=outcome,
            duration_ms=max(0, round((state.now - attempt.started_at) * 1000)),
            error="" if approved else text,
            summary=text,
            outputs=event.outputs,
        )
    if event.decision == "skip":
        state.skips[i], state.reasons[i] = "patch", text
        if event.outputs:
            state.outputs[i] = event.outputs
        _settle(state, i, Status.SKIPPED)
        return
    state.reasons[i] = "" if approved and not escalated else text
    if approved and event.outputs:
        state.outputs[i] = event.outputs
    state.finished.append(i)
    _settle(state, i, Status.COMPLETED if approved else Status.FAILED)


# ---------------------------------------------------------------- patches


def _patched(state: RunState, event: PatchAdmitted) -> None:
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
    state.attempts.extend([_NO_ATTEMPTS] * grown)
    _patch_removals(state, event)
    _patch_statuses(state, event)
    _patch_escalations(state, event)
    for i in revived_by(state, plan, state.node_status, state.skips, event):
        _forget_result(state, i)
    _revive_cancelled(state)
    _rebuild(state, {i: at for at, i in state.waking if state.node_status[i] is Status.RETRYING})
    if state.ended is not None:
        state.ended = None
        state.status = RunStatus.INTERRUPTED


def _patch_removals(state: RunState, event: PatchAdmitted) -> None:
    """Nodes that leave the graph keep what they came to; an undo gives a node its id back."""
    index, status = state.plan.index, state.node_status
    for name in event.removed:
        i = index[name]
        state.removed[i] = event.revision
        _forget_waiting(state, i)
        if i in state.running:
            state.cancelling[i] = Status.PENDING
        elif status[i] not in SETTLED:
            status[i] = Status.CANCELLED
    for name in event.nodes:
        i = index[name]
        if state.removed.pop(i, None) is not None and status[i] is Status.CANCELLED:
            status[i] = Status.PENDING
            _forget_result(state, i)


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
        _forget_waiting(state, i)
        if new is not Status.PENDING:
            state.skips.pop(i, None)
        if i in state.running:
            state.cancelling[i] = new
            continue
        status[i] = new
        if new is Status.PENDING:
            _forget_result(state, i)
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
        if (wanted is None or not wanted.steps) and state.node_status[i] is Status.RETRYING:
            del state.escalating[i]
            state.finished.append(i)
            state.node_status[i] = Status.FAILED


def becomes(event: PatchAdmitted, index: Mapping[NodeId, int]) -> dict[int, Status]:
    """Number → status of the nodes whose standing a patch changes."""
    found = {index[name]: Status.SKIPPED for name in event.skipped}
    found |= {index[name]: Status.SUPERSEDED for name in event.superseded}
    return found | {index[name]: Status.PENDING for name in event.reset}


def _forget_waiting(state: RunState, i: int) -> None:
    """What was decided now needs no human and no further step."""
    state.escalating.pop(i, None)
    asked = state.reviews.pop(i, None)
    last = state.attempts[i][-1] if state.attempts[i] else None
    if asked is not None and last is not None and last.outcome is None:
        last.outcome = Outcome.CANCELLED
        took = max(0, round((state.now - last.started_at) * 1000))
        last.finish = AttemptFinished(
            node=asked.node, attempt=last.number, outcome=last.outcome, duration_ms=took, error="not asked any more"
        )


def _forget_result(state: RunState, i: int) -> None:
    """A node that runs again: its outputs, reasons and tries count no more, its attempts stay."""
    state.outputs.pop(i, None)
    state.adopted.pop(i, None)
    state.reasons.pop(i, None)
    state.skips.pop(i, None)
    state.lost.pop(i, None)
    state.tries_base[i] = len(state.attempts[i])


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
        held = (d for d in plan.needs[i] if status[d] in SETTLED and not _satisfies(plan, status[d], skips, d))
        if plan.nodes[i].condition or next(held, None) is None:
            status[i] = Status.PENDING
            found.append(i)
    return found


def _satisfies(plan: Plan, status: Status, skips: Mapping[int, str], i: int) -> bool:
    if status is Status.FAILED:
        return plan.nodes[i].continue_on_error
    # what a selection or a patch leaves out satisfies those that wait for it
    return status is Status.COMPLETED or (status is Status.SKIPPED and skips.get(i) in ("selection", "patch"))


def _revive_cancelled(state: RunState) -> None:
    """With the failure mended, what `fail_fast` gave up has its chance again."""
    there = [(i, s) for i, s in enumerate(state.node_status) if i not in state.removed]
    if any(s is Status.FAILED and not state.plan.nodes[i].continue_on_error for i, s in there):
        return
    for i, status in there:
        if status is Status.CANCELLED:
            state.node_status[i] = Status.PENDING
            _forget_result(state, i)


def _attached(state: RunState, event: EngineAttached) -> None:
    """A new engine: timers of an earlier boot or process mean nothing, so delays start again."""
    first = state.engine is None
    state.engine = event
    state.engines += 1
    state.attached_at, state.attached_m = state.now, state.now_m
    state.stop = None
    state.ended = None
    state.status = RunStatus.RUNNING
    if event.revive:
        for i, status in enumerate(state.node_status):
            if i in state.removed:
                continue
            by_dependency = status is Status.SKIPPED and state.skips.get(i) not in ("selection", "patch")
            if status in (Status.FAILED, Status.CANCELLED) or by_dependency:
                state.node_status[i] = Status.PENDING
                state.reasons.pop(i, None)
                state.skips.pop(i, None)
                state.lost.pop(i, None)
                state.tries_base[i] = len(state.attempts[i])
    if not first or event.revive:
        _rebuild(state)


def outstanding(state: RunState) -> list[int]:
    """Nodes whose failure waits for the next step of their `on_failure`."""
    return [i for i in state.escalating if state.node_status[i] is Status.RETRYING]


def _ended(state: RunState, event: RunEnded) -> None:
    state.ended = event
    state.ended_at = state.now
    state.status = event.status
    if event.status is RunStatus.CANCELLED:
        for i, status in enumerate(state.node_status):
            if status not in SETTLED and i not in state.removed:
                _forget_waiting(state, i)
                state.node_status[i] = Status.CANCELLED
        _rebuild(state)


def heap_top(state: RunState, heap: list[tuple[float, int]]) -> int | None:
    """The ready node that goes first of one heap; entries of nodes that moved on are dropped."""
    while heap:
        i = heap[0][1]
        if state.node_status[i] is Status.READY:
            return i
        heappop(heap)
    return None


__all__ = [
    "INTERRUPTS",
    "Attempt",
    "InvalidTransition",
    "RunState",
    "becomes",
    "evolve",
    "heap_top",
    "new_state",
    "outstanding",
    "revived_by",
    "signature",
    "story",
    "succeeded",
]

"""The one door to a RunState: `evolve` folds one event into it, at O(degree of the node).

Transitions of a node:

    pending ──needs settled──> ready ──node.started──> running ──attempt.finished──> completed
       │                         │  └─node.skipped──> skipped        │  ├──> failed
       │                         └─attempt.finished (never ran)──────┘  ├──> retrying ──node.started──> running
       └─node.skipped / node.cancelled / node.adopted                   └──> ready (lost, or interrupted)

A patch that is admitted goes through `revise.py`; the queues that follow from all of it are `state.py`.
"""

from __future__ import annotations

from heapq import heappop, heappush

from dagrun.core.event import (
    AttemptFinished,
    CallEnded,
    CallReserved,
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
    ToolEnded,
    ToolsListed,
    Warned,
    event_type,
)
from dagrun.core.names import LOST_BUDGET, SETTLED, Outcome, RunStatus, Status
from dagrun.core.retry import retry_delay_s
from dagrun.core.revise import apply_patch
from dagrun.core.state import (
    INTERRUPTS,
    Attempt,
    InvalidTransition,
    RunState,
    add_attempt,
    forget_asking,
    forget_waiting,
    is_unasked,
    rebuild,
    set_status,
    settle,
    signature,
    story,
    unsettled,
    wait_for_needs,
)


def evolve(state: RunState, event: Event, at: float, at_m: float) -> None:  # noqa: C901  (one line for each event)
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
            i = unsettled(state, event.node, event)
            state.skips[i] = event.reason
            state.reasons[i] = event.text
            forget_waiting(state, i)
            if event.reason == "selection" and state.unmet[i]:
                state.unselected.add(i)  # settles in its turn, so that the order through it holds
            else:
                settle(state, i, Status.SKIPPED)
        case NodeCancelled():
            i = unsettled(state, event.node, event)
            forget_waiting(state, i)
            state.reasons[i] = event.text
            settle(state, i, Status.CANCELLED)
        case NodeAdopted():
            i = unsettled(state, event.node, event)
            state.outputs[i] = event.outputs
            state.adopted[i] = event.run_id
            settle(state, i, Status.COMPLETED)
        case EngineAttached():
            _attached(state, event)
        case PatchAdmitted():
            if event.by.startswith("node:"):
                new = event.nodes.keys() - state.plan.index.keys()
                state.inserted_by |= dict.fromkeys(new, event.by.removeprefix("node:"))
            apply_patch(state, event)
        case CallReserved() | CallEnded() | ToolEnded():
            _agent_did(state, event)
        case ToolsListed():
            pass  # for those that make the requests again
        case RevisionAdopted():
            state.adopted_revision = event.revision
        case EscalationFailed():
            _escalation_failed(state, event)
        case ReviewRequested():
            _review_requested(state, event)
        case ReviewDecided():
            _review_decided(state, event)
            _answered(state)
        case PatchProposed():
            state.proposals[event.number] = event
            state.proposed = event.number
            _offered(state, event)
        case ProposalDecided():
            state.proposals.pop(event.number, None)
            _answered(state)
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


def _agent_did(state: RunState, event: CallReserved | CallEnded | ToolEnded) -> None:
    from dagrun.core import spending

    attempts = state.attempts[state.plan.index[event.node]]
    if not 0 < event.attempt <= len(attempts):
        i = state.plan.index[event.node]
        raise InvalidTransition(f"{event_type(event)} of attempt {event.attempt}, which is none; {story(state, i)}")
    match event:
        case CallReserved():
            spending.reserved(state, event)
        case CallEnded():
            spending.ended(state, event)
        case ToolEnded():
            spending.tool_ended(state, event)


def _started(state: RunState, event: NodeStarted) -> None:
    i = state.plan.index[event.node]
    status = state.node_status[i]
    if status is Status.READY:
        heap = state.ready[signature(state.plan.nodes[i].reserves)]
        if heap and heap[0][1] == i:
            heappop(heap)
    elif status is not Status.RETRYING:
        raise InvalidTransition(f"node.started for node {event.node!r}, which is {status}; {story(state, i)}")
    elif state.waking and state.waking[0][1] == i:
        heappop(state.waking)
    set_status(state, i, Status.RUNNING)
    attempt = Attempt(event.attempt, state.now, state.now_m, event.revision, event.slot)
    attempt.inputs_digest = event.inputs_digest
    attempt.sandbox = event.sandbox
    attempt.agent = event.agent
    attempt.reserved = state.plan.nodes[i].reserves
    add_attempt(state, i, attempt)
    state.running[i] = attempt
    for name, amount in attempt.reserved.items():
        state.used[name] = state.used.get(name, 0.0) + amount


def _finished(state: RunState, event: AttemptFinished) -> None:
    i = state.plan.index[event.node]
    attempt = state.running.pop(i, None)
    if attempt is None:  # refused before it started: a missing input, an injected failure
        i = unsettled(state, event.node, event)
        attempt = Attempt(event.attempt, state.now, state.now_m, state.plan.revision)
        add_attempt(state, i, attempt)
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
        settle(state, i, Status.COMPLETED)
    else:
        _not_completed(state, i, event)


def _not_completed(state: RunState, i: int, event: AttemptFinished) -> None:
    """Where a node goes after an attempt that did not complete."""
    node = state.plan.nodes[i]
    outcome = event.outcome
    interrupted = outcome is Outcome.CANCELLED and state.stop is not None and state.stop.cause in INTERRUPTS
    if interrupted and node.idempotent:
        state.tries_base[i] = state.tries_base.get(i, 0) + 1
        wait_for_needs(state, i)
        return
    if outcome is Outcome.CANCELLED and not interrupted:
        state.reasons[i] = event.error
        settle(state, i, Status.CANCELLED)
        return
    if outcome is Outcome.LOST:
        state.lost[i] = state.lost.get(i, 0) + 1
        if node.idempotent and state.lost[i] <= LOST_BUDGET:
            wait_for_needs(state, i)
            return
    elif not event.permanent and (node.idempotent or outcome is not Outcome.TIMED_OUT):
        tries = len(state.attempts[i]) - state.tries_base.get(i, 0) - state.lost.get(i, 0)
        delay = retry_delay_s(node.retry, outcome, tries, state.created.run_id, node.id, event.attempt)
        if delay is not None:
            if state.unmet[i]:  # a patch set a need of it back while it ran
                set_status(state, i, Status.PENDING)
                return
            set_status(state, i, Status.RETRYING)
            heappush(state.waking, (state.now_m + (0.0 if state.created.replay_of else delay), i))
            return
    state.reasons[i] = event.error
    if node.on_failure is not None and node.on_failure.steps:
        state.escalating[i] = 0
        set_status(state, i, Status.RETRYING)
        return
    state.finished.append(i)
    settle(state, i, Status.FAILED)


def _after_cancel(state: RunState, i: int, becomes: Status) -> None:
    """A running node that a patch ended: out of the graph, settled, or on to its next attempt."""
    if i in state.removed:
        state.node_status[i] = Status.CANCELLED
    elif becomes is Status.PENDING:
        state.tries_base[i] = len(state.attempts[i]) - state.lost.get(i, 0)
        wait_for_needs(state, i)
    else:
        settle(state, i, becomes)


def _escalation_failed(state: RunState, event: EscalationFailed) -> None:
    i = state.plan.index[event.node]
    if i not in state.escalating:
        raise InvalidTransition(f"escalation.failed for node {event.node!r}; {story(state, i)}")
    state.escalating[i] += 1
    forget_asking(state, i)
    wanted = state.plan.nodes[i].on_failure
    if wanted is None or state.escalating[i] >= len(wanted.steps):
        del state.escalating[i]
        state.finished.append(i)
        settle(state, i, Status.FAILED)


def _offered(state: RunState, event: PatchProposed) -> None:
    """The failed node whose replanner made a proposal waits until a human has decided on it."""
    replanner = state.plan.index.get(event.by.removeprefix("node:"), -1) if event.by.startswith("node:") else -1
    if replanner in state.replanners and not is_unasked(state, replanner):
        state.offers[state.replanners[replanner]] = event.number


def _review_requested(state: RunState, event: ReviewRequested) -> None:
    i = unsettled(state, event.node, event)
    state.reviews[i] = event
    if i not in state.escalating:
        attempt = Attempt(event.attempt, state.now, state.now_m, state.plan.revision)
        attempt.inputs_digest = event.inputs_digest
        add_attempt(state, i, attempt)
    set_status(state, i, Status.AWAITING_REVIEW)


def _decided(event: ReviewDecided) -> str:
    """A decision in words, for the trace of its node."""
    if event.decision == "timed_out":
        return "nobody answered in time"
    word = {"approve": "approved", "reject": "rejected", "skip": "skipped"}[event.decision]
    return f"{word} by {event.by}" if event.by else word


def _answered(state: RunState) -> None:
    """A run that was parked for a human and waits for none any more can go on."""
    if state.status is RunStatus.NEEDS_REVIEW and not state.reviews and not state.proposals:
        state.ended = None
        state.status = RunStatus.INTERRUPTED


def _review_decided(state: RunState, event: ReviewDecided) -> None:
    i = state.plan.index[event.node]
    if i not in state.reviews:
        raise InvalidTransition(f"review.decided for node {event.node!r}, which awaits none; {story(state, i)}")
    asked = state.reviews.pop(i)
    approved = event.decision == "approve" or (event.decision == "timed_out" and asked.on_timeout == "approve")
    escalated = state.escalating.pop(i, None) is not None
    refused = Outcome.REVIEW_TIMED_OUT if event.decision == "timed_out" else Outcome.REJECTED
    outcome = Outcome.COMPLETED if approved else refused
    text = event.comment or _decided(event)
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
        settle(state, i, Status.SKIPPED)
        return
    state.reasons[i] = "" if approved and not escalated else text
    if approved and event.outputs:
        state.outputs[i] = event.outputs
    state.finished.append(i)
    settle(state, i, Status.COMPLETED if approved else Status.FAILED)


def _attached(state: RunState, event: EngineAttached) -> None:
    """A new engine: timers of an earlier boot or process mean nothing, so delays start again."""
    first = state.engine is None
    state.engine = event
    state.engines += 1
    if state.ledger is not None:
        from dagrun.core.spending import keep_open

        keep_open(state)
    state.attached_at, state.attached_m = state.now, state.now_m
    state.stop = None
    state.ended = None
    state.status = RunStatus.RUNNING
    if event.revive:
        for i, status in enumerate(state.node_status):
            if i in state.removed or (i in state.replanners and status is not Status.CANCELLED):
                continue  # a replanner is asked anew by the failure that needs it
            by_dependency = status is Status.SKIPPED and state.skips.get(i) not in ("selection", "patch")
            if status in (Status.FAILED, Status.CANCELLED) or by_dependency:
                state.node_status[i] = Status.PENDING
                state.reasons.pop(i, None)
                state.skips.pop(i, None)
                state.lost.pop(i, None)
                state.tries_base[i] = len(state.attempts[i])
    if not first or event.revive:
        rebuild(state)


def _ended(state: RunState, event: RunEnded) -> None:
    state.ended = event
    state.ended_at, state.ended_m = state.now, state.now_m
    state.status = event.status
    if event.status is RunStatus.CANCELLED:
        for i, status in enumerate(state.node_status):
            if status not in SETTLED and i not in state.removed:
                forget_waiting(state, i)
                state.node_status[i] = Status.CANCELLED
        rebuild(state)

"""The state of a run, and the queues that `decide` reads: counters, ready heaps, held waves, timers.

Only `evolve` changes a RunState; what it moves nodes with is here. The queues are kept as events
come, O(degree of the node) each, never recomputed over the graph, but for the rare events that move
many nodes at once (a patch, a revival on resume), which rebuild them in O(nodes + edges).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeAlias

from dagrun.core.event import (
    AttemptFinished,
    EngineAttached,
    Event,
    PatchAdmitted,
    PatchProposed,
    ReviewRequested,
    RunCreated,
    RunEnded,
    StopRequested,
    Warned,
    event_type,
)
from dagrun.core.names import SETTLED, Json, NodeId, Outcome, RunStatus, Schedule, Status
from dagrun.core.plan import Plan
from dagrun.core.retry import retry_delay_s
from dagrun.core.workflow import Workflow

if TYPE_CHECKING:
    from dagrun.core.budget import Ledger
    from dagrun.core.spending import Tally

Signature: TypeAlias = tuple[tuple[str, float], ...]  # what a node reserves, sorted by name

UNASKED = "nobody waits for its answer"
INTERRUPTS = frozenset({"sigint", "sigterm", "sighup", "disk_full", "timeout"})


class InvalidTransition(Exception):
    """An event that can't happen to this node now: a bug of dagrun. Carries the node's story."""


@dataclass(slots=True)
class Attempt:
    """One try of a node. `started_at` is wall time, `started_m` monotonic; outcome None = running.

    `wave` is that of the node in `revision`: a later revision may lead it elsewhere.
    """

    number: int
    started_at: float
    started_m: float
    revision: int
    slot: int = -1
    wave: int = 0
    pid: int = 0
    ticks: int = 0
    outcome: Outcome | None = None
    finish: AttemptFinished | None = None
    inputs_digest: str = ""
    sandbox: str = ""
    reserved: Mapping[str, float] = field(default_factory=dict)  # what it holds, whatever a patch makes of its node
    agent: Mapping[str, Json] = field(default_factory=dict)
    tally: Tally | None = None


@dataclass(slots=True, eq=False, repr=False)
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
    asking: dict[int, int] = field(default_factory=dict)  # escalating -> its replanner, whose answer it waits for
    offers: dict[int, int] = field(default_factory=dict)  # asking -> the proposal that its replanner made
    replanners: dict[int, int] = field(default_factory=dict)  # replanner -> the failed node that it was for, for ever
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
    ended_m: float = 0.0
    engine: EngineAttached | None = None
    engines: int = 0
    attached_at: float = 0.0
    attached_m: float = 0.0
    warnings: list[Warned] = field(default_factory=list)
    ledger: Ledger | None = None  # made at the first model call
    inserted_by: dict[NodeId, NodeId] = field(default_factory=dict)  # node -> the node whose patch brought it
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
        attempts=[NO_ATTEMPTS] * n,
    )
    state.workflows.append(plan.workflow)
    rebuild(state)
    return state


NO_ATTEMPTS: list[Attempt] = []  # shared by all nodes that never started: never mutated


def succeeded(state: RunState, i: int) -> bool:
    """Whether dependents of a settled node may run as after a success (`continue_on_error` counts)."""
    return satisfies(state.plan, state.node_status[i], state.skips, i)


def satisfies(plan: Plan, status: Status, skips: Mapping[int, str], i: int) -> bool:
    if status is Status.FAILED:
        return plan.nodes[i].continue_on_error
    # what a selection or a patch leaves out satisfies those that wait for it
    return status is Status.COMPLETED or (status is Status.SKIPPED and skips.get(i) in ("selection", "patch"))


def signature(resources: Mapping[str, float]) -> Signature:
    """The ready heap that a node with these reservations waits in."""
    return tuple(sorted(resources.items())) if resources else ()


def rebuild(state: RunState, timers: Mapping[int, float] | None = None) -> None:
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
            needs_met(state, i)
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


def set_status(state: RunState, i: int, status: Status) -> None:
    state.counts[state.node_status[i]] -= 1
    state.counts[status] += 1
    state.node_status[i] = status


def needs_met(state: RunState, i: int) -> None:
    """All needs of a pending node are settled: ready, held for its wave, or doomed to be skipped."""
    node = state.plan.nodes[i]
    if i in state.unselected or (state.broken[i] and not node.condition) or is_unasked(state, i):
        state.doomed[i] = None
    elif state.plan.wave[i] > state.wave:
        state.held.setdefault(state.plan.wave[i], []).append(i)
    else:
        _make_ready(state, i)


def _make_ready(state: RunState, i: int) -> None:
    set_status(state, i, Status.READY)
    key = signature(state.plan.nodes[i].reserves)
    heap = state.ready.get(key)
    if heap is None:
        heap = state.ready[key] = []
    heappush(heap, (-state.plan.rank[i], i))


def settle(state: RunState, i: int, status: Status) -> None:
    """A node is over: tell its dependents, and open the next wave if it was the last of its own."""
    set_status(state, i, status)
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
            needs_met(state, d)
    wave = plan.wave[i]
    state.wave_left[wave] -= 1
    if wave == state.wave and not state.wave_left[wave]:
        state.wave = _lowest_wave(state, wave)
        for w in range(wave + 1, state.wave + 1):
            for d in state.held.pop(w, ()):
                if state.node_status[d] is Status.PENDING:
                    _make_ready(state, d)


def unsettled(state: RunState, name: NodeId, event: Event) -> int:
    i = state.plan.index[name]
    status = state.node_status[i]
    if status in SETTLED or status is Status.RUNNING or i in state.removed:
        raise InvalidTransition(f"{event_type(event)} for node {name!r}, which is {status}; {story(state, i)}")
    return i


def standing_for(state: RunState, name: NodeId) -> NodeId:
    """The node itself, or the last of the fallbacks that took its place one after the other."""
    i = state.plan.index.get(name)
    while i is not None and i in state.stand_ins:
        i = state.stand_ins[i]
    return name if i is None else state.plan.ids[i]


def wave_of(state: RunState, i: int) -> int:
    """The wave of a node in the revision that it started in last; of one that never did, in the present one."""
    tried = state.attempts[i]
    return tried[-1].wave if tried else state.plan.wave[i]


def story(state: RunState, i: int) -> str:
    """What happened to a node so far, in one line."""
    tried = ", ".join(f"attempt {a.number}: {a.outcome or 'running'}" for a in state.attempts[i])
    return f"node {state.plan.ids[i]!r}: {tried or 'never started'}"


def add_attempt(state: RunState, i: int, attempt: Attempt) -> None:
    attempt.wave = state.plan.wave[i]
    if state.attempts[i]:
        state.attempts[i].append(attempt)
    else:
        state.attempts[i] = [attempt]


def wait_for_needs(state: RunState, i: int) -> None:
    """A node that ran is to run again: at once, unless a patch set one of its needs back meanwhile."""
    set_status(state, i, Status.PENDING)
    if not state.unmet[i]:
        needs_met(state, i)


def forget_waiting(state: RunState, i: int) -> None:
    """What was decided now needs no human and no further step."""
    state.escalating.pop(i, None)
    forget_asking(state, i)
    asked = state.reviews.pop(i, None)
    last = state.attempts[i][-1] if state.attempts[i] else None
    if asked is not None and last is not None and last.outcome is None:
        last.outcome = Outcome.CANCELLED
        took = max(0, round((state.now - last.started_at) * 1000))
        last.finish = AttemptFinished(
            node=asked.node, attempt=last.number, outcome=last.outcome, duration_ms=took, error="not asked any more"
        )


def forget_asking(state: RunState, i: int) -> None:
    """A failed node waits for no answer of its replanner any more."""
    state.asking.pop(i, None)
    state.offers.pop(i, None)


def is_unasked(state: RunState, i: int) -> bool:
    """Whether a node is a replanner whose failed node does not wait for its answer (any more)."""
    failed = state.replanners.get(i)
    return failed is not None and state.asking.get(failed) != i


def awaits_answer(state: RunState, i: int) -> bool:
    """Whether the replanner of a failed node is still to answer, or a human to decide on what it proposed."""
    replanner = state.asking.get(i)
    if replanner is None:
        return False
    if i in state.offers:
        return state.offers[i] in state.proposals
    return state.node_status[replanner] not in SETTLED and replanner not in state.removed


def forget_result(state: RunState, i: int) -> None:
    """A node that runs again: its outputs, reasons and tries count no more, its attempts stay."""
    state.outputs.pop(i, None)
    state.adopted.pop(i, None)
    state.reasons.pop(i, None)
    state.skips.pop(i, None)
    state.lost.pop(i, None)
    state.tries_base[i] = len(state.attempts[i])


def outstanding(state: RunState) -> list[int]:
    """Nodes whose failure waits for the next step of their `on_failure`."""
    return [i for i in state.escalating if state.node_status[i] is Status.RETRYING]


def heap_top(state: RunState, heap: list[tuple[float, int]]) -> int | None:
    """The ready node that goes first of one heap; entries of nodes that moved on are dropped."""
    while heap:
        i = heap[0][1]
        if state.node_status[i] is Status.READY:
            return i
        heappop(heap)
    return None

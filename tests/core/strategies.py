"""Random graphs and a world that runs them: the engine without clock, disk or process.

`World` does what the engine does with the effects of `decide`, in virtual time: starts become
events, attempts end as the script of their node says, a crash forgets everything but the events.
`check_state` recomputes from scratch what `evolve` keeps as events come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from hypothesis import strategies as st

from dagrun.core import expression as ex
from dagrun.core.decide import Append, Cancel, Finish, Room, Start, Stuck, decide, next_wake
from dagrun.core.event import (
    FORMAT,
    AttemptFinished,
    EngineAttached,
    Event,
    NodeSkipped,
    NodeSpawned,
    NodeStarted,
    RunCreated,
    RunEnded,
    StopRequested,
    encode,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import SETTLED, Outcome, RunStatus, Schedule, Status
from dagrun.core.plan import Plan, compile_plan
from dagrun.core.state import RunState, new_state, signature, succeeded
from dagrun.core.workflow import Limits, Node, Retry, Workflow, node_to_json

OK, FAILED, TIMED_OUT, CANCELLED, LOST = (
    Outcome.COMPLETED,
    Outcome.FAILED,
    Outcome.TIMED_OUT,
    Outcome.CANCELLED,
    Outcome.LOST,
)
CONDITIONS = ("", "", "", "always()", "failure()", "success()", "false", "!cancelled()")

# ---------------------------------------------------------------- building by hand


def flow(
    *nodes: Node, schedule: Schedule = Schedule.READY, fail_fast: bool = False, limits: Limits | None = None
) -> Plan:
    """The plan of a workflow of these nodes."""
    workflow = Workflow(
        name="w",
        nodes={n.id: n for n in nodes},
        schedule=schedule,
        fail_fast=fail_fast,
        limits=limits or Limits(),
    )
    return compile_plan(workflow)


def created(plan: Plan, run_id: str = "r7k2") -> RunCreated:
    """The first event of a run of this plan."""
    return RunCreated(format=FORMAT, run_id=run_id, workflow="w", schedule=str(plan.workflow.schedule))


def begin(plan: Plan) -> RunState:
    """A run whose first engine has just attached."""
    state = new_state(plan, created(plan), 1000.0)
    evolve(state, EngineAttached(pid=1, boot_id="b1"), 1000.0, 0.0)
    return state


def fold(state: RunState, *events: Event, at: float = 0.0) -> RunState:
    """Fold events that happen `at` seconds after the beginning; checks the state after each."""
    for event in events:
        evolve(state, event, 1000.0 + at, at)
        check_state(state)
    return state


def started(node: str, attempt: int = 1) -> NodeStarted:
    """The start of an attempt."""
    return NodeStarted(node=node, attempt=attempt)


def ended(node: str, outcome: Outcome = OK, attempt: int = 1, error: str = "") -> AttemptFinished:
    """The end of an attempt."""
    return AttemptFinished(node=node, attempt=attempt, outcome=outcome, error=error)


def ran(node: str, outcome: Outcome = OK, attempt: int = 1) -> tuple[Event, Event]:
    """A whole attempt."""
    return started(node, attempt), ended(node, outcome, attempt)


def statuses(state: RunState) -> dict[str, str]:
    """Node id → status, as plain text."""
    return {name: state.node_status[i].value for i, name in enumerate(state.plan.ids)}


# ---------------------------------------------------------------- the world


class Crash(Exception):
    """The engine is gone: nothing but the events is left."""


Law = Callable[["World", Event], None]


@dataclass(repr=False)
class World:
    """An engine in virtual time.

    `script` holds for each node the outcomes of the attempts that count, the last for all that
    follow; `seconds` how long an attempt takes. `crash_at` counts folded events; so does `stop_at`,
    after which `stop` is asked for, once. `laws` are called before each event is folded.
    """

    plan: Plan
    room: Room
    script: Mapping[str, Sequence[Outcome]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()  # attempts of these end without having started
    crash_at: int = -1
    stop_at: int = -1
    stop: StopRequested | None = None
    failing: bool = False  # some node had failed for good when this turn began
    laws: Sequence[Law] = ()
    checked: bool = True
    boots: int = 0
    now: float = 0.0
    wall: float = 1000.0
    records: list[tuple[Event, float, float]] = field(default_factory=list)
    ends: list[tuple[float, int, int, Outcome]] = field(default_factory=list)
    state: RunState = field(init=False)

    def __post_init__(self) -> None:
        self.state = new_state(self.plan, created(self.plan), self.wall)

    def attach(self, *, revive: bool = False) -> None:
        """A new engine takes the run: what was running is lost."""
        self.boots += 1
        self.now = 10.0 * self.boots  # monotonic time of another boot
        self.ends.clear()
        running = [(i, a.number) for i, a in self.state.running.items()]
        self.fold(EngineAttached(pid=self.boots, boot_id=f"b{self.boots}", parallel=self.room.parallel, revive=revive))
        for i, number in running:
            self.fold(ended(self.plan.ids[i], LOST, number))

    def fold(self, event: Event) -> None:
        """Journal and fold one event."""
        if len(self.records) == self.crash_at:
            raise Crash
        for law in self.laws:
            law(self, event)
        evolve(self.state, event, self.wall, self.now)
        self.records.append((event, self.wall, self.now))
        if self.checked:
            check_state(self.state)

    def __repr__(self) -> str:
        nodes = [{"id": n.id, **node_to_json(n)} for n in self.plan.nodes]
        rest = {k: getattr(self, k) for k in ("room", "script", "seconds", "refused", "crash_at", "stop_at", "stop")}
        return (
            f"World({self.plan.workflow.schedule}, {nodes}, {rest}, events={[encode(e) for e, _, _ in self.records]})"
        )

    def run(self) -> RunEnded:
        """Work until the run ends; how it ended."""
        for _ in range(100_000):
            if self.state.ended is not None:
                return self.state.ended
            self.turn()
        raise AssertionError("the run does not end")

    def turn(self) -> None:
        """One turn of the engine: carry out all that is due, else let time pass."""
        before = len(self.records)
        if self.stop is not None and before >= self.stop_at:
            stop, self.stop = self.stop, None
            self.fold(stop)
        self.failing = self.state.failures > 0
        kept = facts(self.state) if self.checked else None
        effects = decide(self.state, self.now, self.room)
        assert kept is None or kept == facts(self.state), "decide changed the state"
        for effect in effects:
            match effect:
                case Start(i):
                    self._start(i)
                case Append(event):
                    self.fold(event)
                case Cancel(i, reason):
                    self._cancel(i, reason)
                case Finish(status, code, reason):
                    self.fold(RunEnded(status=status, exit_code=code, reason=reason))
                case Stuck(story):
                    raise AssertionError(story)
        if len(self.records) == before:
            self._pass_time()

    def _pass_time(self) -> None:
        while self.ends and not self._is_open(self.ends[0]):
            heappop(self.ends)
        wake = next_wake(self.state, self.now)
        due = self.ends[0][0] if self.ends else None
        times = [t for t in (wake, due) if t is not None]
        assert times, "nothing will ever happen again"
        step = max(0.0, min(times) - self.now)
        self.now += step
        self.wall += step
        if due is not None and due <= self.now:
            _, i, number, outcome = heappop(self.ends)
            self.fold(ended(self.plan.ids[i], outcome, number))

    def _is_open(self, entry: tuple[float, int, int, Outcome]) -> bool:
        attempt = self.state.running.get(entry[1])
        return attempt is not None and attempt.number == entry[2]

    def _start(self, i: int) -> None:
        node = self.plan.nodes[i]
        number = len(self.state.attempts[i]) + 1
        outcome = self._outcome(i)
        if node.condition and not holds(self.state, i):
            self.fold(NodeSkipped(node=node.id, reason="condition"))
        elif node.id in self.refused:
            self.fold(ended(node.id, FAILED if outcome is OK else outcome, number))
        else:
            self.fold(NodeStarted(node=node.id, attempt=number))
            took = self.seconds.get(node.id, 1.0)
            heappush(self.ends, (self.now + took, i, number, outcome))
            if took > 2:
                self.fold(NodeSpawned(node=node.id, attempt=number, pid=number, ticks=7))

    def _outcome(self, i: int) -> Outcome:
        """What the next attempt of a node comes to: a lost or interrupted one used up nothing."""
        outcomes = self.script.get(self.plan.ids[i]) or (OK,)
        used = sum(a.outcome not in (LOST, CANCELLED) for a in self.state.attempts[i])
        return outcomes[min(used, len(outcomes) - 1)]

    def _cancel(self, i: int, reason: str) -> None:
        self.fold(ended(self.plan.ids[i], CANCELLED, self.state.running[i].number, f"cancelled: {reason}"))


def holds(state: RunState, i: int) -> bool:
    """Whether the `if` of a node lets it run, with the implied `success() &&`."""
    tree = ex.parse(state.plan.nodes[i].condition)
    success = not state.broken[i]
    if not success and not ex.uses_status_function(tree):
        return False
    view = ex.StatusView(success=success, failure=bool(state.tainted[i]), cancelled=False)
    return ex.truthy(ex.evaluate(tree, ex.Scope(status=view)))


def replay(plan: Plan, records: Iterable[tuple[Event, float, float]]) -> RunState:
    """The state that these events fold to."""
    state = new_state(plan, created(plan), 1000.0)
    for event, at, at_m in records:
        evolve(state, event, at, at_m)
    return state


def reborn(world: World, **changes: object) -> World:
    """The world after a crash: the same nodes, only the events left, no engine yet."""
    new = World(world.plan, world.room, world.script, world.seconds, world.refused)
    new.records = list(world.records)
    new.boots, new.wall = world.boots, world.wall
    new.checked = world.checked
    new.state = replay(world.plan, world.records)
    for name, value in changes.items():
        setattr(new, name, value)
    return new


# ---------------------------------------------------------------- what must always hold


def facts(state: RunState) -> dict[str, object]:
    """Everything that a state means, without the order and the stale entries of its queues."""
    found: dict[str, object] = {name: getattr(state, name) for name in RunState.__dataclass_fields__}
    found["ready"] = {
        key: {e for e in heap if state.node_status[e[1]] is Status.READY} for key, heap in state.ready.items() if heap
    }
    found["ready"] = {key: entries for key, entries in found["ready"].items() if entries}  # type: ignore[attr-defined]
    found["waking"] = {e for e in state.waking if state.node_status[e[1]] is Status.RETRYING}
    found["node_status"] = list(state.node_status)
    for name in ("unmet", "held", "doomed", "running", "used", "counts", "skips", "reasons", "finished", "wave_left"):
        value = getattr(state, name)
        found[name] = list(value) if isinstance(value, list) else dict(value)
    return found


def check_state(state: RunState) -> None:
    """Raise AssertionError unless every counter and queue is what the statuses and attempts say."""
    plan, status = state.plan, state.node_status
    settled = [s in SETTLED for s in status]
    numbers = range(len(plan.ids))
    assert state.settled == sum(settled)
    assert {s: n for s, n in state.counts.items() if n} == {s: status.count(s) for s in set(status)}
    assert state.unmet == [sum(not settled[d] for d in plan.needs[i]) for i in numbers]
    assert [bool(b) for b in state.broken] == [
        any(settled[d] and not succeeded(state, d) for d in plan.needs[i]) for i in numbers
    ]
    failing = [status[i] is Status.FAILED and not plan.nodes[i].continue_on_error for i in numbers]
    assert state.failures == sum(failing)
    _check_taint(state, failing)
    _check_waves(state, settled)
    _check_attempts(state)
    _check_queues(state)


def _check_taint(state: RunState, failing: list[bool]) -> None:
    """`tainted` is exact for every node that is to be decided; before that, and after, it may lag behind.

    Failing fast gives up nodes whose needs still run, and a revived node may fail again when those
    below it are over: there it may lag for good.
    """
    plan = state.plan
    if plan.workflow.fail_fast or (state.engine is not None and state.engine.revive):
        return
    tainted = [False] * len(plan.ids)
    for i in sorted(range(len(plan.ids)), key=plan.wave.__getitem__):
        tainted[i] = any(tainted[d] or failing[d] for d in plan.needs[i])
        if not state.unmet[i] and state.node_status[i] not in SETTLED:
            assert bool(state.tainted[i]) == tainted[i], plan.ids[i]


def _check_waves(state: RunState, settled: list[bool]) -> None:
    plan = state.plan
    left = [0] * (plan.depth + 2)
    for i, wave in enumerate(plan.wave):
        left[wave] += not settled[i]
    assert state.wave_left == left
    if state.schedule is Schedule.WAVES:
        assert state.wave == min((w for w, n in enumerate(left) if n), default=plan.depth + 1)


def _check_attempts(state: RunState) -> None:
    plan = state.plan
    running = {i for i, s in enumerate(state.node_status) if s is Status.RUNNING}
    assert set(state.running) == running
    used: dict[str, float] = {}
    for i, tried in enumerate(state.attempts):
        assert [a.number for a in tried] == list(range(1, len(tried) + 1))
        for attempt in tried:
            assert (attempt.outcome is None) == (i in running and attempt is tried[-1])
        if i in running:
            assert state.running[i] is tried[-1]
            for name, amount in plan.nodes[i].resources.items():
                used[name] = used.get(name, 0.0) + amount
    assert {k: v for k, v in state.used.items() if abs(v) > 1e-9} == {k: v for k, v in used.items() if v}


def _check_queues(state: RunState) -> None:
    plan = state.plan
    waking = {i for _, i in state.waking}
    for heap in [state.waking, *state.ready.values()]:
        assert all(heap[(k - 1) // 2] <= heap[k] for k in range(1, len(heap)))
    for i, status in enumerate(state.node_status):
        hopeless = bool(state.broken[i]) and not plan.nodes[i].condition
        if status is Status.READY:
            assert not state.unmet[i]
            assert not hopeless
            assert plan.wave[i] <= state.wave
            assert (-plan.rank[i], i) in state.ready[signature(plan.nodes[i].resources)]
        elif status is Status.RETRYING:
            assert i in waking
        elif status is Status.PENDING and not state.unmet[i]:
            assert (i in state.doomed) == hopeless
            if not hopeless:
                assert plan.wave[i] > state.wave
                assert i in state.held[plan.wave[i]]
        assert i not in state.doomed or (status is Status.PENDING and hopeless)


# ---------------------------------------------------------------- random graphs


@st.composite
def plans(draw: st.DrawFn, *, fail_fast: bool = False, unsafe: bool = False, max_nodes: int = 9) -> Plan:
    """A random graph; `unsafe` allows nodes that are not idempotent."""
    n = draw(st.integers(1, max_nodes))
    order = draw(st.permutations(range(n)))
    nodes: dict[int, Node] = {}
    for position, i in enumerate(order):
        before = [f"n{j}" for j in order[:position]]
        needs = draw(st.lists(st.sampled_from(before), unique=True, max_size=3)) if before else []
        gpu = draw(st.sampled_from([0, 0, 1, 2]))
        cpu = draw(st.sampled_from([0.0, 0.0, 0.5, 1.5]))
        tries = draw(st.integers(1, 3))
        nodes[i] = Node(
            id=f"n{i}",
            run="true",
            needs=tuple(needs),
            condition=draw(st.sampled_from(CONDITIONS)),
            continue_on_error=draw(st.integers(0, 4)) == 0,
            idempotent=not unsafe or draw(st.booleans()),
            retry=Retry(max_attempts=tries, delay_s=draw(st.sampled_from([0.0, 0.5, 4.0]))),
            resources={k: v for k, v in (("gpu", gpu), ("cpu", cpu)) if v},
        )
    return flow(
        *[nodes[i] for i in range(n)],
        schedule=draw(st.sampled_from(list(Schedule))),
        fail_fast=fail_fast and draw(st.booleans()),
        limits=Limits(resources={"gpu": 2}),
    )


@st.composite
def worlds(draw: st.DrawFn, *, fail_fast: bool = True, unsafe: bool = True, max_nodes: int = 9) -> World:
    """A random graph with a script of what its nodes do, and room for it."""
    plan = draw(plans(fail_fast=fail_fast, unsafe=unsafe, max_nodes=max_nodes))
    ids = list(plan.ids)
    outcomes = st.lists(
        st.sampled_from([OK, OK, OK, FAILED, TIMED_OUT, Outcome.INVALID_OUTPUT]), min_size=1, max_size=3
    )
    script = draw(st.fixed_dictionaries(dict.fromkeys(ids, outcomes)))
    times = st.sampled_from([0.0, 1.0, 1.0, 2.5, 7.0])
    return World(
        plan,
        Room(draw(st.integers(1, 4)), {"gpu": 2.0, "cpu": 2.0}),
        script,
        draw(st.fixed_dictionaries(dict.fromkeys(ids, times))),
        draw(st.frozensets(st.sampled_from(ids), max_size=2)),
    )


def lowest_unsettled_wave(state: RunState) -> Iterator[int]:
    """The waves of the nodes that are not settled."""
    return (w for i, w in enumerate(state.plan.wave) if state.node_status[i] not in SETTLED)


def final(state: RunState) -> tuple[RunStatus, dict[str, str], dict[str, str]]:
    """What a run came to: its status, that of each node, and why nodes were skipped."""
    skips = {state.plan.ids[i]: reason for i, reason in state.skips.items()}
    return state.status, statuses(state), skips

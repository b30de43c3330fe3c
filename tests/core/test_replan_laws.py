"""Laws of replanning: any patches on any run leave a sound plan, lose no work, and the run ends."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

from hypothesis import event, given, settings
from hypothesis import strategies as st

from dagrun.core import expression as ex
from dagrun.core.check import check
from dagrun.core.decide import Append, Cancel, Escalate, Finish, Room, Start, Stuck, decide, next_wake
from dagrun.core.diff import diff
from dagrun.core.event import (
    AttemptFinished,
    EngineAttached,
    EscalationFailed,
    Event,
    NodeSkipped,
    NodeStarted,
    PatchAdmitted,
    ReviewDecided,
    ReviewRequested,
    RunEnded,
    decode,
    encode,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import SETTLED, Json, Outcome, RunStatus, Schedule, Status
from dagrun.core.patch import (
    Alternative,
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
from dagrun.core.plan import compile_plan
from dagrun.core.reading import node_references
from dagrun.core.replan import Verdict, admit, chain_length, fallback_patch
from dagrun.core.state import RunState, is_unasked, new_state, signature, succeeded
from dagrun.core.undo import inverse
from dagrun.core.workflow import Input, Limits, Node, OnFailure, Output, Review, Workflow, node_to_json
from dagrun.core.workflow import Retry as RetryPolicy
from tests.core.strategies import created, statuses

QUICK = settings(max_examples=150, deadline=None)
OUT = {"out": Output(source="stdout")}
ROOM = Room(3, {"gpu": 2.0})


# ---------------------------------------------------------------- what must always hold


def check_patched(state: RunState) -> None:
    """Every counter and queue is what the statuses say, with nodes that patches took out."""
    plan, status, gone = state.plan, state.node_status, state.removed
    there = [i for i in range(len(plan.ids)) if i not in gone]
    settled = [s in SETTLED or i in gone for i, s in enumerate(status)]
    assert set(gone) == plan.removed
    assert len(set(plan.ids)) == len(plan.ids) == len(status) == len(state.attempts)
    assert {plan.ids[i] for i in there} == set(plan.workflow.nodes)
    for i in there:
        assert all(d not in gone and plan.wave[d] < plan.wave[i] for d in plan.needs[i]), plan.ids[i]
        assert len(set(plan.nodes[i].needs)) == len(plan.nodes[i].needs)
        assert state.unmet[i] == sum(not settled[d] for d in plan.needs[i])
        assert bool(state.broken[i]) == any(settled[d] and not succeeded(state, d) for d in plan.needs[i])
    assert state.settled == sum(settled)
    counted = {s: sum(status[i] is s for i in there) for s in Status}
    assert state.counts == counted
    failing = sum(status[i] is Status.FAILED and not plan.nodes[i].continue_on_error for i in there)
    assert state.failures == failing
    for wave in range(1, plan.depth + 1):
        assert state.wave_left[wave] == sum(not settled[i] for i, w in enumerate(plan.wave) if w == wave)
    _check_standing(state, there)


def _check_standing(state: RunState, there: list[int]) -> None:
    plan, status = state.plan, state.node_status
    assert set(state.running) == {i for i, s in enumerate(status) if s is Status.RUNNING}
    assert set(state.cancelling) <= set(state.running)
    assert set(state.removed) & set(state.running) <= set(state.cancelling)
    assert all(status[i] is Status.AWAITING_REVIEW for i in state.reviews)
    assert all(status[i] in (Status.RETRYING, Status.AWAITING_REVIEW) for i in state.escalating)
    assert set(state.offers) <= set(state.asking) <= set(state.escalating)
    assert all(state.replanners[replanner] == i for i, replanner in state.asking.items())
    if not plan.workflow.fail_fast:  # which ends all that runs, as it is
        assert all(i in state.cancelling for i in state.running if is_unasked(state, i))
    used: dict[str, float] = {}
    for attempt in state.running.values():
        for name, amount in attempt.reserved.items():
            used[name] = used.get(name, 0.0) + amount
    assert {k: v for k, v in state.used.items() if v} == used
    waking = {i for _, i in state.waking}
    for i in there:
        hopeless = (bool(state.broken[i]) and not plan.nodes[i].condition) or is_unasked(state, i)
        if status[i] is Status.READY:
            assert not state.unmet[i]
            assert not hopeless
            assert (-plan.rank[i], i) in state.ready[signature(plan.nodes[i].resources)]
        elif status[i] is Status.RETRYING and i not in state.escalating:
            assert i in waking
            assert not state.unmet[i]
        elif status[i] is Status.PENDING and not state.unmet[i]:
            assert (i in state.doomed) == hopeless
            assert hopeless or i in state.held[plan.wave[i]]
        elif status[i] is Status.AWAITING_REVIEW:
            assert i in state.reviews
        for attempt in state.attempts[i]:
            is_open = i in state.running or (i in state.reviews and i not in state.escalating)
            assert attempt.outcome is not None or (is_open and attempt is state.attempts[i][-1])


def runs(state: RunState, i: int) -> bool:
    """Whether the `if` of a node lets it run."""
    tree = ex.parse(state.plan.nodes[i].condition)
    success = not state.broken[i]
    if not success and not ex.uses_status_function(tree):
        return False
    nodes = {name: {"status": status} for name, status in statuses(state).items()}
    view = ex.StatusView(success=success, failure=bool(state.tainted[i]))
    return ex.truthy(ex.evaluate(tree, ex.Scope(status=view, nodes=nodes)))


class Run:
    """A run in virtual time that patches may come to at any moment."""

    def __init__(self, state: RunState, draw: st.DrawFn) -> None:
        self.state = state
        self.draw = draw
        self.seen: list[tuple[Event, float]] = []
        self.now = 0.0
        self.admitted = 0

    def __repr__(self) -> str:
        nodes = [{"id": n.id, **node_to_json(n)} for n in self.state.workflows[0].nodes.values()]
        return f"Run({self.state.schedule}, {nodes}, {[encode(e) for e, _ in self.seen]}, now {statuses(self.state)})"

    def fold(self, new: Event) -> None:
        state = self.state
        before = statuses(state)
        if isinstance(new, NodeStarted):
            i = state.plan.index[new.node]
            assert i not in state.removed
            assert all(state.node_status[d] in SETTLED for d in state.plan.needs[i]), f"{new.node} starts too early"
        decoded = decode(json.loads(encode(new)))
        assert decoded == new or isinstance(new, PatchAdmitted)
        evolve(state, decoded, 1000.0 + self.now, self.now)
        self.seen.append((decoded, self.now))
        check_patched(state)
        if not isinstance(new, EngineAttached | RunEnded):
            self._nothing_lost(new, before)

    def _nothing_lost(self, new: Event, before: dict[str, str]) -> None:
        """Only a rerun takes a completed node back, and no other event than its own touches a settled node."""
        reset = new.reset if isinstance(new, PatchAdmitted) else ()
        for name, status in statuses(self.state).items():
            if before.get(name) == "completed" and name not in reset:
                assert status == "completed", f"{name} was completed, then {new}"

    def turn(self) -> None:
        """Carry out what is due."""
        for effect in decide(self.state, self.now, ROOM):
            match effect:
                case Start(i):
                    self._start(i)
                case Append(new):
                    self.fold(new)
                case Cancel(i, _):
                    if i in self.state.running:
                        self.end(i, Outcome.CANCELLED)
                case Escalate(i, step):
                    self._escalate(i, step)
                case Finish(status, code, reason):
                    self.fold(RunEnded(status=status, exit_code=code, reason=reason))
                case Stuck(story):
                    raise AssertionError(story)

    def _start(self, i: int) -> None:
        node = self.state.plan.nodes[i]
        number = len(self.state.attempts[i]) + 1
        if node.condition and not runs(self.state, i):
            self.fold(NodeSkipped(node=node.id, reason="condition"))
        elif node.review is not None:
            self.fold(ReviewRequested(node=node.id, attempt=number))
        else:
            self.fold(NodeStarted(node=node.id, attempt=number, revision=self.state.plan.revision))

    def _escalate(self, i: int, step: str) -> None:
        state = self.state
        name = state.plan.ids[i]
        wanted = state.plan.nodes[i].on_failure
        assert wanted is not None
        if step == "review":
            self.fold(ReviewRequested(node=name, attempt=len(state.attempts[i])))
            return
        template = state.plan.workflow.templates[wanted.fallback]
        if chain_length(state, i) >= state.plan.workflow.limits.fallback_chain:
            self.fold(EscalationFailed(node=name, step=step))
            return
        patch = fallback_patch(state, i, template, reason="", timed_out=False)
        verdict = admit(state, patch, by=f"on_failure:{name}", actor="declared")
        self.fold(verdict.event or EscalationFailed(node=name, step=step))

    def end(self, i: int, outcome: Outcome) -> None:
        """A running attempt ends."""
        name, number = self.state.plan.ids[i], self.state.running[i].number
        outputs: dict[str, Json] = {"out": {"v": number}} if outcome is Outcome.COMPLETED else {}
        self.fold(AttemptFinished(node=name, attempt=number, outcome=outcome, outputs=outputs))

    def end_some(self) -> None:
        if self.state.running:
            i = self.draw(st.sampled_from(sorted(self.state.running)))
            self.end(i, self.draw(st.sampled_from([Outcome.COMPLETED] * 3 + [Outcome.FAILED] * 2)))

    def answer(self) -> None:
        """A human decides about something that waits."""
        if self.state.reviews:
            i = self.draw(st.sampled_from(sorted(self.state.reviews)))
            decisions: list[Literal["approve", "reject", "skip"]] = ["approve", "reject", "skip"]
            decision = self.draw(st.sampled_from(decisions))
            self.fold(ReviewDecided(node=self.state.plan.ids[i], decision=decision))

    def crash(self) -> None:
        """Another engine takes over."""
        self.now += 1.0
        running = [(i, a.number) for i, a in self.state.running.items()]
        failed = self.state.status in (RunStatus.FAILED, RunStatus.CANCELLED)
        self.fold(EngineAttached(pid=1, revive=failed))
        for i, number in running:
            name = self.state.plan.ids[i]
            self.fold(AttemptFinished(node=name, attempt=number, outcome=Outcome.LOST))

    def patch(self) -> Verdict:
        """A random patch: admitted whole or without a trace."""
        state = self.state
        patch = Patch(operations=tuple(self.draw(st.lists(operations(state), min_size=1, max_size=2))))
        before = (statuses(state), state.plan, dict(state.plan.workflow.nodes))
        verdict = admit(state, patch, by="ann")
        assert before == (statuses(state), state.plan, dict(state.plan.workflow.nodes))
        assert (verdict.event is None) == bool(verdict.faults)
        if verdict.event is not None:
            self.admit(verdict)
        return verdict

    def admit(self, verdict: Verdict) -> None:
        state, new = self.state, verdict.event
        assert new is not None
        nodes = state.plan.workflow.nodes
        old = {name: (nodes[name], status) for name, status in statuses(state).items() if name in nodes}
        used = set(state.plan.ids)
        self.fold(new)
        self.admitted += 1
        assert verdict.after is not None
        assert (verdict.after.needs, verdict.after.wave) == (state.plan.needs, state.plan.wave)
        fresh = set(new.nodes) - set(old)
        assert not fresh & used or new.undoes, "an id was used again"
        assert [f for f in check(state.plan.workflow) if f.severity == "error"] == []
        for name, (node, status) in old.items():
            untouched = status in ("completed", "failed", "running") and name not in {*new.reset, *new.cancelled}
            if untouched and name in state.plan.workflow.nodes and status != "superseded":
                assert state.plan.workflow.nodes[name] == node, f"{name} is {status} and was changed"
        back = set(verdict.revived)
        now = statuses(state)
        for name, (_, status) in old.items():
            if status == "skipped" and name not in {*new.reset, *new.superseded} and name in state.plan.workflow.nodes:
                assert (now[name] != "skipped") == (name in back), f"{name}: the preview is wrong"

    def to_the_end(self) -> None:
        """Everything that runs completes and every human approves, until the run is over."""
        state = self.state
        for _ in range(2000):
            if state.ended is not None:
                if state.ended.status is not RunStatus.NEEDS_REVIEW:
                    return
                for i in list(state.reviews):
                    self.fold(ReviewDecided(node=state.plan.ids[i], decision="approve"))
                self.fold(EngineAttached(pid=2))
            before = len(self.seen)
            self.turn()
            if state.running and state.ended is None:
                self.end(min(state.running), Outcome.COMPLETED)
            elif len(self.seen) == before:
                wake = next_wake(state, self.now)
                assert wake is not None, "nothing will ever happen again"
                self.now = max(self.now, wake)
        raise AssertionError("the run does not end")


# ---------------------------------------------------------------- random runs and patches


@st.composite
def flows(draw: st.DrawFn) -> Workflow:
    """A small workflow with data edges, conditions, retries, reviews and fallbacks."""
    n = draw(st.integers(2, 6))
    nodes: dict[str, Node] = {}
    for i in range(n):
        before = list(nodes)
        some = st.lists(st.sampled_from(before), unique=True, max_size=2) if before else st.just(list[str]())
        needs = draw(some)
        nodes[f"n{i}"] = _node(draw, f"n{i}", needs, [b for b in before if nodes[b].review is None])
    templates = {
        "spare": Node(id="spare", run="spare", on_failure=OnFailure(fallback="last")),
        "last": Node(id="last", run="last", on_failure=OnFailure(fallback="spare")),
    }
    return Workflow(
        name="w",
        nodes=nodes,
        templates=templates,
        schedule=draw(st.sampled_from(list(Schedule))),
        fail_fast=draw(st.integers(0, 3)) == 0,
        limits=Limits(resources={"gpu": 2}),
    )


def _node(draw: st.DrawFn, name: str, needs: list[str], producers: list[str]) -> Node:
    inputs: dict[str, Input] = {}
    if len(producers) > 0 and draw(st.booleans()):
        source = draw(st.sampled_from(producers))
        inputs["x"] = Input(expression=f"nodes.{source}.out", optional=draw(st.booleans()))
    condition = draw(st.sampled_from(["", "", "", "always()", "failure()"]))
    if needs and draw(st.integers(0, 3)) == 0:
        condition = f"always() && nodes.{needs[0]}.status != 'cancelled'"
    escalation = draw(st.sampled_from([None, None, OnFailure(fallback="spare"), OnFailure(review=Review())]))
    is_review = draw(st.integers(0, 6)) == 0
    return Node(
        id=name,
        run=() if is_review else "true",
        review=Review() if is_review else None,
        needs=tuple(needs),
        inputs=inputs,
        condition=condition,
        outputs={} if is_review else OUT,
        continue_on_error=draw(st.integers(0, 5)) == 0,
        retry=RetryPolicy(max_attempts=draw(st.integers(1, 2)), delay_s=1.0),
        resources=draw(st.sampled_from([{}, {}, {"gpu": 1.0}])),
        on_failure=None if is_review else escalation,
    )


@st.composite
def operations(draw: st.DrawFn, state: RunState) -> Operation:
    """A random operation, aimed at nodes that there are, were, or never were."""
    pool = [*state.plan.ids, "ghost"] if draw(st.integers(0, 7)) == 0 else list(state.plan.workflow.nodes) or ["ghost"]
    one, some = st.sampled_from(pool), st.lists(st.sampled_from(pool), unique=True, max_size=2)
    name, cancel = draw(one), draw(st.booleans())
    fresh = f"m{len(state.plan.ids)}" if draw(st.integers(0, 5)) else draw(st.sampled_from(["m0", "m1", *pool]))
    node = state.plan.workflow.nodes.get(name, Node(id=name, run="true"))
    made = Node(id=fresh, run="new", outputs=draw(st.sampled_from([{}, OUT])))
    match draw(st.integers(0, 9)):
        case 0 | 1:
            return Insert(id=fresh, node=made, after=tuple(draw(some)), before=tuple(draw(some)), cancel_running=cancel)
        case 2 | 3:
            return Remove(
                id=name,
                strategy=draw(st.sampled_from(["skip", "bridge", "cascade"])),
                cancel_running=cancel,
            )
        case 4:
            old = tuple(n for n in node.needs if draw(st.booleans()))
            return Rewire(id=name, old=old, new=tuple(draw(some)), root=draw(st.booleans()), cancel_running=cancel)
        case 5:
            changed = replace(node, timeout_s=9.0, resources=draw(st.sampled_from([{}, {"gpu": 2.0}])), condition="")
            return Modify(id=name, node=changed, cancel_running=cancel)
        case 6:
            wanted = replace(node, timeout_s=7.0) if draw(st.booleans()) else None
            return Retry(id=name, node=wanted, cancel_running=cancel)
        case 7:
            return Fallback(id=name, node=Node(id="t", run="t"), cancel_running=cancel)
        case 8:
            limits = SetLimits(parallel=2) if draw(st.booleans()) else SetLimits(resources={"gpu": 3.0})
            return Rerun(id=name, cancel_running=cancel) if draw(st.booleans()) else limits
        case _:
            exits = (fresh,)
            return Alternative(blocked=tuple(draw(some)), nodes={fresh: made}, exits=exits, cancel_running=cancel)


def begin(draw: st.DrawFn, workflow: Workflow) -> Run:
    plan = compile_plan(workflow)
    run = Run(new_state(plan, created(plan), 1000.0), draw)
    run.fold(EngineAttached(pid=1))
    return run


@st.composite
def patched_runs(draw: st.DrawFn) -> Run:
    """A run after random events and patches, in any order."""
    run = begin(draw, draw(flows().filter(lambda w: not check(w))))
    for step in draw(st.lists(st.sampled_from("tttteeepppprc"), min_size=4, max_size=20)):
        if run.state.ended is not None and step in "te":
            run.crash()
        match step:
            case "t":
                run.turn()
            case "e":
                run.end_some()
            case "p":
                run.patch()
            case "r":
                run.answer()
            case "c":
                run.crash()
    return run


@QUICK
@given(patched_runs())
def test_any_patches_on_any_run_leave_it_sound_and_it_ends(run: Run) -> None:
    event(f"admitted {min(run.admitted, 4)}")
    if run.state.ended is not None and run.state.ended.status is not RunStatus.COMPLETED:
        run.crash()
    run.to_the_end()
    state = run.state
    there = [i for i in range(len(state.plan.ids)) if i not in state.removed]
    assert all(state.node_status[i] in SETTLED for i in there)
    for i in there:
        if state.node_status[i] is Status.SKIPPED and state.skips[i] == "dependency":
            assert any(not succeeded(state, d) for d in state.plan.needs[i]), "skipped for no reason"


@QUICK
@given(patched_runs())
def test_a_replay_of_the_events_gives_the_same_run(run: Run) -> None:
    plan = compile_plan(run.state.workflows[0])
    again = new_state(plan, created(plan), 1000.0)
    for new, at in run.seen:
        evolve(again, new, 1000.0 + at, at)
    assert statuses(again) == statuses(run.state)
    assert again.plan == run.state.plan
    assert (again.outputs, again.reasons, again.skips) == (run.state.outputs, run.state.reasons, run.state.skips)
    assert (again.unmet, again.counts, again.removed) == (run.state.unmet, run.state.counts, run.state.removed)


@QUICK
@given(patched_runs(), st.data())
def test_a_patch_whose_last_operation_is_bad_changes_nothing(run: Run, data: st.DataObject) -> None:
    good = data.draw(st.lists(operations(run.state), min_size=2, max_size=2))
    bad = Remove(id="never-was", strategy="bridge")
    verdict = admit(run.state, Patch(operations=(*good, bad)), by="ann")
    assert verdict.event is None
    assert any("never-was" in f.message for f in verdict.faults)


@QUICK
@given(patched_runs(), st.data())
def test_a_patch_that_meets_a_finish_comes_before_or_after_it_never_half(run: Run, data: st.DataObject) -> None:
    """Even a record that was checked against an older state leaves every invariant whole."""
    run.turn()
    patch = Patch(operations=tuple(data.draw(st.lists(operations(run.state), min_size=1, max_size=2))))
    verdict = admit(run.state, patch, by="ann")
    before = run.state.plan.revision
    if run.state.running:
        i = data.draw(st.sampled_from(sorted(run.state.running)))
        run.end(i, data.draw(st.sampled_from([Outcome.COMPLETED, Outcome.FAILED])))
    if verdict.event is None or run.state.plan.revision != before:
        return
    run.fold(verdict.event)
    assert run.state.plan.revision == before + 1
    if run.state.ended is not None:
        run.crash()
    run.to_the_end()


@QUICK
@given(patched_runs(), st.data())
def test_undo_gives_the_graph_back_or_says_what_it_keeps(run: Run, data: st.DataObject) -> None:
    before = dict(run.state.plan.workflow.nodes)
    limits = run.state.plan.workflow.limits
    if run.patch().event is None:
        return
    if data.draw(st.booleans()):
        run.turn()
    revision = len(run.state.revisions) + 1 if run.state.plan.revision != 1 else 1
    undo = inverse(run.state, run.state.revisions[-1].revision)
    assert revision == run.state.plan.revision
    if not undo.patch.operations:
        assert undo.kept or dict(run.state.plan.workflow.nodes) == before
        return
    verdict = admit(run.state, undo.patch, by="ann", undoes=revision)
    assert verdict.event is not None or undo.kept, [f.message for f in verdict.faults]
    if verdict.event is None:
        return
    run.admit(verdict)
    if not undo.kept:
        assert dict(run.state.plan.workflow.nodes) == before
        assert run.state.plan.workflow.limits == limits
    if run.state.ended is None:
        run.to_the_end()


# ---------------------------------------------------------------- the graph alone


@settings(max_examples=200, deadline=None)
@given(flows(), flows())
def test_what_diff_gives_makes_one_workflow_of_the_other(a: Workflow, b: Workflow) -> None:
    renamed = _renamed(b)
    for target in (b, renamed):
        work = apply(draft(a), Patch(operations=diff(a, target)))
        assert work.faults == []
        assert work.nodes == target.nodes
    assert diff(a, a) == ()


def _renamed(workflow: Workflow) -> Workflow:
    """Half of the nodes under other names, so that there is something to insert and to remove."""
    names = {name: (f"k{name}" if k % 2 else name) for k, name in enumerate(workflow.nodes)}
    nodes = {}
    for name, node in workflow.nodes.items():
        inputs = {}
        for key, item in node.inputs.items():
            old = node_references(item.expression)[0].path[1]
            inputs[key] = replace(item, expression=f"nodes.{names[old]}.out")
        condition = ""
        nodes[names[name]] = replace(
            node, id=names[name], needs=tuple(names[n] for n in node.needs), inputs=inputs, condition=condition
        )
    return replace(workflow, nodes=nodes)

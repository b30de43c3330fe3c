"""Laws of a whole run: any graph, any outcomes, any crash, any request to stop."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from dagrun.core.decide import Room, decide
from dagrun.core.event import (
    AttemptFinished,
    Event,
    NodeStarted,
    RunEnded,
    StopRequested,
    decode,
    encode,
)
from dagrun.core.names import SETTLED, Outcome, RunStatus, Schedule, Status
from dagrun.core.state import RunState
from dagrun.core.workflow import Node
from tests.core.strategies import (
    Crash,
    World,
    facts,
    final,
    flow,
    fold,
    lowest_unsettled_wave,
    reborn,
    replay,
    started,
    worlds,
)

QUICK = settings(max_examples=100, deadline=None)
STOPS = st.builds(
    StopRequested,
    cause=st.sampled_from(["sigint", "sigterm", "sighup", "timeout", "disk_full"]),
    mode=st.sampled_from(["drain", "now"]),
)


# ---------------------------------------------------------------- the laws, checked before each event


def needs_are_settled(world: World, new: Event) -> None:
    if isinstance(new, NodeStarted):
        i = world.plan.index[new.node]
        assert all(world.state.node_status[d] in SETTLED for d in world.plan.needs[i])


def room_is_kept(world: World, new: Event) -> None:
    if isinstance(new, NodeStarted):
        state, room = world.state, world.room
        wants = world.plan.nodes[world.plan.index[new.node]].resources
        assert len(state.running) < room.parallel
        for name, amount in wants.items():
            assert state.used.get(name, 0.0) + amount <= room.resources[name] + 1e-9


def completed_stays(world: World, new: Event) -> None:
    name = getattr(new, "node", "")
    if name and not isinstance(new, RunEnded):
        status = world.state.node_status[world.plan.index[name]]
        assert status is not Status.COMPLETED, f"{name} is completed, and then {new}"


def wave_is_open(world: World, new: Event) -> None:
    """No node starts while a node of a lower wave is not settled: not even one that will be skipped."""
    if isinstance(new, NodeStarted) and world.state.schedule is Schedule.WAVES:
        assert world.plan.wave[world.plan.index[new.node]] <= min(lowest_unsettled_wave(world.state))


def stopped_starts_nothing(world: World, new: Event) -> None:
    if isinstance(new, NodeStarted):
        assert world.state.stop is None
        assert not (world.failing and world.plan.workflow.fail_fast)


LAWS = (needs_are_settled, room_is_kept, completed_stays, wave_is_open, stopped_starts_nothing)


def whole(world: World) -> World:
    """The same world, run to its end without any trouble from outside."""
    world.attach()
    world.run()
    return world


# ---------------------------------------------------------------- one run


@QUICK
@given(worlds())
def test_any_run_ends_with_every_node_settled_and_breaks_no_law(world: World) -> None:
    world.laws = LAWS
    whole(world)
    state = world.state
    assert all(s in SETTLED for s in state.node_status)
    assert not state.running
    assert not any(state.used.values())
    failed = state.failures or state.counts[Status.CANCELLED]
    assert state.status is (RunStatus.FAILED if failed else RunStatus.COMPLETED)


@QUICK
@given(worlds())
def test_every_node_is_tried_as_often_as_its_retry_allows(world: World) -> None:
    whole(world)
    for i, node in enumerate(world.plan.nodes):
        tried = world.state.attempts[i]
        assert len(tried) <= node.retry.max_attempts
        if not node.idempotent:
            assert all(a.outcome is not Outcome.TIMED_OUT for a in tried[:-1])
        if world.state.node_status[i] is Status.FAILED and not (world.plan.workflow.fail_fast or not node.idempotent):
            assert len(tried) == node.retry.max_attempts


@QUICK
@given(worlds(fail_fast=False))
def test_a_skip_by_dependency_always_has_a_need_that_did_not_succeed(world: World) -> None:
    whole(world)
    for i, reason in world.state.skips.items():
        if reason == "dependency":
            assert world.state.broken[i]
            assert any(world.state.reasons[i].startswith(world.plan.ids[d]) for d in world.plan.needs[i])


@QUICK
@given(worlds(fail_fast=False))
def test_no_slot_is_left_empty_while_a_ready_node_fits(world: World) -> None:
    world.attach()
    while world.state.ended is None:
        world.turn()
        state = world.state
        if state.ended is None and not decide(state, world.now, world.room):
            assert not (len(state.running) < world.room.parallel and any(fits(world, i) for i in ready(state)))


def ready(state: RunState) -> list[int]:
    return [i for i, s in enumerate(state.node_status) if s is Status.READY]


def fits(world: World, i: int) -> bool:
    wants = world.plan.nodes[i].resources.items()
    return all(world.state.used.get(k, 0.0) + v <= world.room.resources[k] for k, v in wants)


@QUICK
@given(worlds())
def test_what_a_run_comes_to_does_not_depend_on_schedule_or_room(world: World) -> None:
    assume(not world.plan.workflow.fail_fast)
    one = final(whole(world).state)
    workflow = world.plan.workflow
    other = Schedule.READY if workflow.schedule is Schedule.WAVES else Schedule.WAVES
    plan = replace(world.plan, workflow=replace(workflow, schedule=other))
    again = World(plan, replace(world.room, parallel=9), world.script, world.seconds, world.refused)
    assert final(whole(again).state) == one


# ---------------------------------------------------------------- the journal


@QUICK
@given(worlds(), st.integers(2, 30), st.none() | STOPS)
def test_the_fold_of_the_decoded_events_is_the_state(world: World, at: int, stop: StopRequested | None) -> None:
    world.stop_at, world.stop = at, stop
    whole(world)
    read = [(decode(json.loads(encode(e))), at, at_m) for e, at, at_m in world.records]
    assert [e for e, _, _ in read] == [e for e, _, _ in world.records]
    assert facts(replay(world.plan, read)) == facts(world.state)


# ---------------------------------------------------------------- crashes


@QUICK
@given(worlds(fail_fast=False, unsafe=False), st.data())
def test_a_crash_after_any_event_ends_as_without_it(world: World, data: st.DataObject) -> None:
    expected = final(whole(reborn(world)).state)
    total = len(whole(reborn(world)).records)
    world.crash_at = data.draw(st.integers(1, total), label="crash")
    for crash in range(2):  # two crashes never exhaust the budget of lost attempts
        try:
            whole(world)
            break
        except Crash:
            event(f"crash {crash + 1}")
            more = data.draw(st.integers(1, 6), label="next crash") if crash == 0 else 10**9
            world = reborn(world, crash_at=len(world.records) + more, laws=LAWS)
    if world.state.ended is None:
        whole(world)
    assert final(world.state) == expected


@QUICK
@given(worlds(fail_fast=False), st.integers(1, 40))
def test_what_is_not_idempotent_never_runs_again_after_its_effect_became_unknown(world: World, at: int) -> None:
    world.crash_at = at
    try:
        whole(world)
    except Crash:
        world = reborn(world)
        whole(world)
    for i, node in enumerate(world.plan.nodes):
        if not node.idempotent:
            unknown = [
                a.outcome in (Outcome.LOST, Outcome.TIMED_OUT, Outcome.CANCELLED) for a in world.state.attempts[i]
            ]
            assert not any(unknown[:-1])


@QUICK
@given(worlds(fail_fast=False, unsafe=False))
def test_a_node_that_is_always_lost_fails_and_the_run_ends(world: World) -> None:
    for _ in range(200):
        if world.state.ended is not None:
            break
        world.crash_at = len(world.records) + 2 + len(world.state.running)
        try:
            whole(world)
        except Crash:
            world = reborn(world)
    else:
        raise AssertionError("two events an engine, and yet no end")
    lost = Counter(i for i, tried in enumerate(world.state.attempts) for a in tried if a.outcome is Outcome.LOST)
    assert all(count <= 3 for count in lost.values())


# ---------------------------------------------------------------- requests to stop


@QUICK
@given(worlds(fail_fast=False, unsafe=False), st.integers(2, 40), STOPS)
def test_an_interrupted_run_can_be_resumed_and_ends_as_without_it(world: World, at: int, stop: StopRequested) -> None:
    expected = final(whole(reborn(world)).state)
    world.stop_at, world.stop = at, stop
    world.laws = LAWS
    whole(world)
    event(f"{world.state.status}")
    if world.state.status in (RunStatus.INTERRUPTED, RunStatus.TIMED_OUT):
        whole(world)
    if world.state.stop is None or world.state.stop.cause != "timeout":
        assert final(world.state) == expected


@QUICK
@given(worlds(unsafe=False), st.integers(2, 40))
def test_a_cancelled_run_has_nothing_unsettled_and_can_be_taken_up_again(world: World, at: int) -> None:
    expected = final(whole(reborn(world)).state)
    world.stop_at, world.stop = at, StopRequested(cause="cancel", mode="now")
    whole(world)
    if world.state.stop is None:
        assert final(world.state) == expected
        return
    assert world.state.status is RunStatus.CANCELLED
    assert all(s in SETTLED for s in world.state.node_status)
    world.laws = LAWS
    world.attach(revive=True)
    world.run()
    assert world.state.status in (RunStatus.COMPLETED, RunStatus.FAILED)
    assert all(s in SETTLED for s in world.state.node_status)


@QUICK
@given(worlds())
def test_a_failed_run_that_is_resumed_gives_every_failed_node_all_its_tries_again(world: World) -> None:
    whole(world)
    assume(world.state.status is RunStatus.FAILED)
    before = [len(tried) for tried in world.state.attempts]
    revived = {i for i, s in enumerate(world.state.node_status) if s in (Status.FAILED, Status.CANCELLED)}
    world.script, world.refused = {}, frozenset()  # all is well now
    world.attach(revive=True)
    world.run()
    state = world.state
    assert state.status is RunStatus.COMPLETED
    for i in revived:
        assert state.node_status[i] in (Status.COMPLETED, Status.SKIPPED)
        assert len(state.attempts[i]) == before[i] + (state.node_status[i] is Status.COMPLETED)
    assert all(isinstance(a.finish, AttemptFinished) for tried in state.attempts for a in tried)


# ---------------------------------------------------------------- the picture in the docs

DESIGN = (Path(__file__).parents[2] / "docs/design.md").read_text()
PICTURE = set(re.findall(r"^    (\w+) --> (\w+) : ", DESIGN, re.MULTILINE))
MOVES: set[tuple[str, str]] = set()


def watch_moves(world: World) -> Callable[[], None]:
    """Remember how nodes move from now until the returned function is called."""
    before = list(world.state.node_status)

    def compare() -> None:
        for old, new in zip(before, world.state.node_status, strict=True):
            if old in SETTLED and new is Status.READY:
                MOVES.update([(str(old), "pending"), ("pending", "ready")])
            elif old is not new:
                MOVES.add((str(old), str(new)))

    return compare


def test_the_picture_has_exactly_the_statuses_there_are() -> None:
    assert {word for move in PICTURE for word in move} == set(Status)


@QUICK
@given(worlds(), st.integers(2, 30), st.none() | STOPS, st.booleans())
def test_the_picture_shows_every_way_that_a_node_is_seen_to_go(
    world: World, at: int, stop: StopRequested | None, revive: bool
) -> None:
    world.stop_at, world.stop = at, stop
    pending: list[Callable[[], None]] = []

    def law(world: World, _: Event) -> None:
        while pending:
            pending.pop()()
        pending.append(watch_moves(world))

    world.laws = (law,)
    whole(world)
    pending.pop()()
    if revive and world.state.status is not RunStatus.COMPLETED:
        compare = watch_moves(world)
        world.attach(revive=True)
        compare()
    assert MOVES <= PICTURE, MOVES - PICTURE


def test_the_laws_can_be_broken() -> None:
    """A monitor that never says no proves nothing."""
    plan = flow(
        Node(id="a", run="true", resources={"gpu": 2}), Node(id="b", run="true", needs=("a",)), schedule=Schedule.WAVES
    )
    world = World(plan, Room(1, {"gpu": 1.0}))
    world.attach()
    for law, node in ((needs_are_settled, "b"), (wave_is_open, "b"), (room_is_kept, "a")):
        with pytest.raises(AssertionError):
            law(world, started(node))
    fold(world.state, started("a"))
    with pytest.raises(AssertionError):
        room_is_kept(world, started("b"))
    fold(world.state, AttemptFinished(node="a", attempt=1, outcome=Outcome.COMPLETED))
    with pytest.raises(AssertionError, match="completed"):
        completed_stays(world, started("a", 2))

"""State in, effects out; and that no event costs more in a large graph than in a small one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import SupportsIndex

import pytest

from dagrun.core.decide import (
    EXIT_CODES,
    Append,
    Cancel,
    Effect,
    Finish,
    Room,
    Start,
    Stuck,
    decide,
    next_wake,
)
from dagrun.core.event import EngineAttached, NodeCancelled, NodeSkipped, RunEnded, StopCause, StopRequested
from dagrun.core.evolve import evolve
from dagrun.core.names import Outcome, RunStatus, Schedule, Status
from dagrun.core.plan import Plan
from dagrun.core.state import RunState
from dagrun.core.workflow import Node, Retry
from tests.core.strategies import CANCELLED, FAILED, OK, begin, ended, facts, flow, fold, ran, started

WIDE = Room(99, {})


def node(name: str, *needs: str, **fields: object) -> Node:
    return Node(id=name, run="true", needs=needs, **fields)  # type: ignore[arg-type]


def due(state: RunState, now: float = 0.0, room: Room = WIDE) -> list[Effect]:
    """What is due; asking twice gives the same and changes nothing."""
    before = facts(state)
    effects = decide(state, now, room)
    assert facts(state) == before
    assert decide(state, now, room) == effects
    return effects


def starts(state: RunState, now: float = 0.0, room: Room = WIDE) -> list[str]:
    effects = due(state, now, room)
    assert all(isinstance(e, Start) for e in effects)
    return [state.plan.ids[e.node] for e in effects if isinstance(e, Start)]


# ---------------------------------------------------------------- what starts


def test_all_that_is_ready_starts_up_to_the_limit() -> None:
    state = begin(flow(node("a"), node("b"), node("c")))
    assert starts(state) == ["a", "b", "c"]
    assert starts(state, room=Room(2, {})) == ["a", "b"]
    fold(state, started("a"), started("b"))
    assert starts(state, room=Room(2, {})) == []
    assert starts(state, room=Room(3, {})) == ["c"]


def test_the_longest_remaining_path_goes_first() -> None:
    plan = flow(
        node("short", estimate_s=1.0),
        node("long", estimate_s=1.0),
        node("x", "long", estimate_s=1.0),
        node("y", "x", estimate_s=1.0),
        node("slow", estimate_s=90.0),
        node("also", estimate_s=1.0),
    )
    assert starts(begin(plan)) == ["slow", "long", "short", "also"]


def test_waves_start_only_what_is_open() -> None:
    plan = flow(node("a"), node("b"), node("c", "a"), schedule=Schedule.WAVES)
    state = fold(begin(plan), *ran("a"))
    assert starts(state) == ["b"]
    fold(state, *ran("b"))
    assert starts(state) == ["c"]


def test_reservations_are_kept_and_small_nodes_pass_by_large_ones() -> None:
    plan = flow(
        node("big", resources={"gpu": 2}, estimate_s=9.0),
        node("other", resources={"gpu": 2}, estimate_s=8.0),
        node("small", resources={"gpu": 1}, estimate_s=1.0),
        node("none", estimate_s=0.5),
        node("free", resources={"disk": 5}, estimate_s=0.8),
    )
    state = begin(plan)
    assert starts(state, room=Room(9, {"gpu": 3})) == ["big", "small", "free", "none"]
    assert starts(state, room=Room(9, {"gpu": 2})) == ["big", "free", "none"]
    assert starts(state, room=Room(9, {})) == ["big", "other", "small", "free", "none"]
    fold(state, started("small"))
    assert starts(state, room=Room(9, {"gpu": 2})) == ["free", "none"]


def test_fractions_of_a_resource_add_up() -> None:
    plan = flow(*[node(f"n{i}", resources={"cpu": 0.1}) for i in range(12)])
    assert len(starts(begin(plan), room=Room(99, {"cpu": 1.0}))) == 10


def test_a_due_retry_goes_before_ready_nodes_and_not_before_its_time() -> None:
    plan = flow(node("a", retry=Retry(max_attempts=2, delay_s=4.0, jitter=0.0)), node("b"), node("c"))
    state = fold(begin(plan), *ran("a", FAILED))
    assert starts(state, 3.9, Room(1, {})) == ["b"]
    assert starts(state, 4.0, Room(1, {})) == ["a"]
    assert starts(state, 4.0) == ["a", "b", "c"]


def test_a_due_retry_waits_for_its_resource_without_holding_up_others() -> None:
    plan = flow(
        node("a", resources={"gpu": 1}, retry=Retry(max_attempts=2, delay_s=0.0)),
        node("b", resources={"gpu": 1}),
        node("c"),
    )
    state = fold(begin(plan), *ran("a", FAILED), started("b"))
    assert starts(state, 1.0, Room(9, {"gpu": 1})) == ["c"]
    fold(state, ended("b"))
    assert starts(state, 1.0, Room(9, {"gpu": 1})) == ["a", "c"]


# ---------------------------------------------------------------- when to wake


def retrying(*delays: float) -> RunState:
    plan = flow(*[node(f"n{i}", retry=Retry(max_attempts=2, delay_s=d, jitter=0.0)) for i, d in enumerate(delays)])
    state = begin(plan)
    for i in range(len(delays)):
        fold(state, *ran(f"n{i}", FAILED))
    return state


def test_the_next_wake_is_the_soonest_retry() -> None:
    state = retrying(9.0, 4.0)
    assert next_wake(state) == 4.0
    fold(state, started("n1", 2))
    assert next_wake(state) == 9.0
    fold(state, NodeCancelled(node="n0"))
    assert next_wake(state) is None


def test_a_retry_that_is_due_and_has_no_room_asks_for_no_wake() -> None:
    state = retrying(4.0, 9.0)
    assert next_wake(state, 3.0) == 4.0
    assert next_wake(state, 4.0) == 9.0
    assert next_wake(state, 9.0) is None


# ---------------------------------------------------------------- skips


def test_doomed_nodes_are_skipped_naming_the_first_need_that_did_not_succeed() -> None:
    plan = flow(node("ok"), node("bad"), node("b", "ok", "bad"), node("c", "b"), node("d", "c"))
    state = fold(begin(plan), *ran("ok"), *ran("bad", FAILED))
    seen: list[tuple[str, str]] = []
    while any(isinstance(e, Append) for e in due(state)):
        for effect in due(state):
            assert isinstance(effect, Append)
            assert isinstance(effect.event, NodeSkipped)
            assert effect.event.reason == "dependency"
            seen.append((effect.event.node, effect.event.text))
            fold(state, effect.event)
    assert seen == [("b", "bad failed"), ("c", "b was skipped"), ("d", "c was skipped")]


def test_a_tolerated_failure_is_not_named() -> None:
    plan = flow(node("lint", continue_on_error=True), node("bad"), node("b", "lint", "bad"))
    state = fold(begin(plan), *ran("lint", FAILED), *ran("bad", FAILED))
    assert due(state) == [Append(NodeSkipped(node="b", reason="dependency", text="bad failed"))]


def test_skips_and_starts_come_together() -> None:
    plan = flow(node("bad"), node("below", "bad"), node("other"))
    state = fold(begin(plan), *ran("bad", FAILED))
    assert due(state) == [Append(NodeSkipped(node="below", reason="dependency", text="bad failed")), Start(2)]


# ---------------------------------------------------------------- fail fast


def test_fail_fast_ends_what_runs_and_gives_up_the_rest() -> None:
    plan = flow(
        node("bad"),
        node("below", "bad"),
        node("runs"),
        node("waits"),
        node("again", retry=Retry(max_attempts=2)),
        node("after", "runs"),
        fail_fast=True,
    )
    state = fold(begin(plan), started("runs"), *ran("again", FAILED), *ran("bad", FAILED))
    text = "fail_fast: bad failed"
    assert due(state) == [
        Append(NodeSkipped(node="below", reason="dependency", text="bad failed")),
        Cancel(2, text),
        *[Append(NodeCancelled(node=name, text=text)) for name in ("waits", "again", "after")],
    ]
    for effect in due(state):
        if isinstance(effect, Append):
            fold(state, effect.event)
    assert due(state) == [Cancel(2, text)]
    fold(state, ended("runs", CANCELLED))
    assert due(state) == [Finish(RunStatus.FAILED, 1, "")]


def test_fail_fast_lets_a_tolerated_failure_pass() -> None:
    plan = flow(node("bad", continue_on_error=True), node("b"), fail_fast=True)
    assert starts(fold(begin(plan), *ran("bad", FAILED))) == ["b"]


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("outcome", "tolerated", "finish"),
    [
        ("completed", False, Finish(RunStatus.COMPLETED, 0, "")),
        ("failed", False, Finish(RunStatus.FAILED, 1, "")),
        ("failed", True, Finish(RunStatus.COMPLETED, 0, "")),
        ("cancelled", False, Finish(RunStatus.FAILED, 1, "")),
        ("over_budget", False, Finish(RunStatus.OVER_BUDGET, 5, "not enough money left for a")),
        ("over_budget", True, Finish(RunStatus.COMPLETED, 0, "")),
    ],
)
def test_how_a_run_ends(outcome: str, tolerated: bool, finish: Finish) -> None:
    state = fold(begin(flow(node("a", continue_on_error=tolerated))), *ran("a", Outcome(outcome)))
    assert due(state) == [finish]


def test_out_of_money_goes_before_failed() -> None:
    plan = flow(node("bad"), *[node(f"a{k}") for k in range(5)])
    state = fold(begin(plan), *ran("bad", FAILED), *[e for k in range(5) for e in ran(f"a{k}", Outcome.OVER_BUDGET)])
    assert due(state) == [Finish(RunStatus.OVER_BUDGET, 5, "not enough money left for a0, a1, a2 and 2 more")]


def test_a_node_that_got_its_money_later_is_not_out_of_it() -> None:
    state = fold(begin(flow(node("a"))), *ran("a", Outcome.OVER_BUDGET))
    fold(state, RunEnded(status=RunStatus.OVER_BUDGET, exit_code=5), EngineAttached(pid=2, revive=True))
    assert starts(state) == ["a"]
    fold(state, started("a", attempt=2), ended("a", FAILED, attempt=2))
    assert due(state) == [Finish(RunStatus.FAILED, 1, "")]


def test_an_empty_plan_and_one_where_all_is_skipped_complete() -> None:
    assert due(begin(flow())) == [Finish(RunStatus.COMPLETED, 0, "")]
    state = fold(begin(flow(node("a"))), NodeSkipped(node="a", reason="condition"))
    assert due(state) == [Finish(RunStatus.COMPLETED, 0, "")]


def test_nothing_to_do_and_unsettled_is_a_bug_that_is_said() -> None:
    state = begin(flow(node("a", resources={"gpu": 3}), node("b", "a")))
    assert due(state, room=Room(9, {"gpu": 2})) == [Stuck("2 nodes can't move: a, b")]


# ---------------------------------------------------------------- stops


def stopping(cause: StopCause, mode: str) -> RunState:
    plan = flow(node("a"), node("b"), node("c"), node("bad"), node("below", "bad"))
    return fold(
        begin(plan),
        *ran("bad", FAILED),
        started("a"),
        started("b"),
        StopRequested(cause=cause, mode=mode),  # type: ignore[arg-type]
    )


def test_drain_waits_for_what_runs_and_starts_nothing() -> None:
    state = stopping("sigint", "drain")
    assert due(state) == []
    fold(state, ended("a"))
    assert due(state) == []
    fold(state, ended("b"))
    assert due(state) == [Finish(RunStatus.INTERRUPTED, 130, "stopped by sigint")]


def test_now_ends_what_runs() -> None:
    assert due(stopping("sigterm", "now")) == [Cancel(0, "stopped by sigterm"), Cancel(1, "stopped by sigterm")]


@pytest.mark.parametrize(
    ("cause", "status", "code"),
    [
        ("sigint", RunStatus.INTERRUPTED, 130),
        ("sigterm", RunStatus.INTERRUPTED, 143),
        ("sighup", RunStatus.INTERRUPTED, 129),
        ("disk_full", RunStatus.INTERRUPTED, 8),
        ("cancel", RunStatus.CANCELLED, 143),
        ("timeout", RunStatus.TIMED_OUT, 124),
    ],
)
def test_how_a_stopped_run_ends(cause: StopCause, status: RunStatus, code: int) -> None:
    state = fold(stopping(cause, "now"), ended("a", CANCELLED), ended("b", CANCELLED))
    (finish,) = due(state)
    assert isinstance(finish, Finish)
    assert (finish.status, finish.exit_code) == (status, code)


def test_a_cancel_says_by_whom() -> None:
    state = fold(begin(flow(node("a"))), StopRequested(cause="cancel", mode="now", by="ada"))
    assert due(state) == [Finish(RunStatus.CANCELLED, 143, "cancelled by ada")]


def test_an_attempt_that_is_ended_says_why() -> None:
    state = fold(begin(flow(node("a"))), started("a"))
    fold(state, StopRequested(cause="timeout", mode="now"))
    assert due(state) == [Cancel(0, "the run's limits.timeout is over")]
    fold(state, StopRequested(cause="cancel", mode="now", by="ada"))
    assert due(state) == [Cancel(0, "requested by ada")]


def test_a_stop_that_comes_when_all_is_settled_changes_nothing() -> None:
    state = fold(begin(flow(node("a"))), *ran("a"), StopRequested(cause="sigint", mode="drain"))
    assert due(state) == [Finish(RunStatus.COMPLETED, 0, "")]


def test_the_next_engine_goes_on_with_what_was_put_back() -> None:
    state = fold(stopping("sigterm", "now"), ended("a", CANCELLED), ended("b"))
    fold(state, RunEnded(status=RunStatus.INTERRUPTED, exit_code=143), EngineAttached(pid=2))
    assert [e.node for e in due(state) if isinstance(e, Start)] == [0, 2]


def test_every_end_has_an_exit_code() -> None:
    left_out = {RunStatus.RUNNING, RunStatus.CRASHED, RunStatus.INTERRUPTED}  # the last depends on the signal
    assert set(EXIT_CODES) == set(RunStatus) - left_out


# ---------------------------------------------------------------- the cost of an event


class Watched(list):
    """A list that counts how many of its items are looked at."""

    seen = 0

    def __iter__(self) -> Iterator[object]:
        for item in super().__iter__():
            Watched.seen += 1
            yield item

    def __contains__(self, item: object) -> bool:
        Watched.seen += len(self)
        return super().__contains__(item)

    def __getitem__(self, key: SupportsIndex | slice) -> object:  # type: ignore[override]
        Watched.seen += 1
        return super().__getitem__(key)

    def count(self, item: object) -> int:
        Watched.seen += len(self)
        return super().count(item)

    def copy(self) -> list[object]:
        Watched.seen += len(self)
        return super().copy()


PER_NODE = ("node_status", "unmet", "attempts")


def watch(plan: Plan) -> RunState:
    """A run whose lists of all nodes count how they are read."""
    plan = replace(
        plan,
        needs=Watched(plan.needs),
        dependents=Watched(plan.dependents),
        wave=Watched(plan.wave),
        rank=Watched(plan.rank),
    )
    state = begin(plan)
    for name in PER_NODE:
        setattr(state, name, Watched(getattr(state, name)))
    return state


def opcodes(count: list[int]) -> object:
    """A trace function that counts every bytecode that Python runs."""

    def trace(frame: FrameType, what: str, _: object) -> object:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count[0] += what == "opcode"
        return trace

    return trace


def cost(work: Callable[[], object]) -> int:
    """Bytecodes run and items of watched lists looked at while `work` is done."""
    count, Watched.seen = [0], 0
    before = sys.gettrace()
    sys.settrace(opcodes(count))  # type: ignore[arg-type]
    try:
        work()
    finally:
        sys.settrace(before)
    return count[0] + Watched.seen


def cost_of_events(plan: Plan, room: Room) -> int:
    """The most work that one of 60 turns in the middle of a run takes: bytecodes and list items."""
    state = watch(plan)
    settle_half(state, room)
    worst = 0
    for _ in range(60):
        (effect, *_) = decide(state, 0.0, room)
        assert isinstance(effect, Start)
        name = state.plan.ids[effect.node]
        outcome = FAILED if state.plan.nodes[effect.node].continue_on_error else OK

        def turn(name: str = name, outcome: Outcome = outcome) -> None:
            decide(state, 0.0, room)
            evolve(state, started(name), 1.0, 1.0)
            decide(state, 0.0, room)
            evolve(state, ended(name, outcome), 1.0, 1.0)

        worst = max(worst, cost(turn))
    return worst


def settle_half(state: RunState, room: Room) -> None:
    """Run until half of the nodes are settled."""
    while state.settled < len(state.plan.ids) // 2:
        for effect in decide(state, 0.0, room):
            assert isinstance(effect, Start)
            for event in ran(state.plan.ids[effect.node]):
                evolve(state, event, 1.0, 1.0)


def chain(n: int, schedule: Schedule) -> Plan:
    return flow(*[node(f"n{i}", *([f"n{i - 1}"] if i else [])) for i in range(n)], schedule=schedule)


def wide(n: int, schedule: Schedule) -> Plan:
    """n - 1 nodes side by side, and one that needs them all."""
    side = [node(f"n{i}", continue_on_error=i % 2 == 0) for i in range(n - 1)]
    return flow(*side, node("last", *[s.id for s in side]), schedule=schedule)


def grid(n: int, schedule: Schedule) -> Plan:
    """Pairs of nodes: the upper of each, then the lower."""
    return flow(
        *[node(f"u{i}") for i in range(n // 2)],
        *[node(f"l{i}", f"u{i}", resources={"cpu": 1}) for i in range(n // 2)],
        schedule=schedule,
    )


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("shape", [chain, wide, grid])
def test_an_event_costs_no_more_in_a_large_graph(shape: Callable[[int, Schedule], Plan], schedule: Schedule) -> None:
    room = Room(3, {"cpu": 2.0})
    costs = [cost_of_events(shape(n, schedule), room) for n in (200, 1000, 10_000)]
    assert 50 < costs[0] < 5000
    assert max(costs) <= costs[0] * 1.05 + 10, costs


def test_the_cost_test_sees_a_loop_over_all_nodes() -> None:
    state = watch(wide(1000, Schedule.READY))
    for work in (
        lambda: state.node_status.count(Status.READY),
        lambda: Status.PENDING in state.node_status,
        lambda: sum(map(bool, state.unmet)),
        lambda: [i for i in range(1000) if i],
    ):
        assert cost(work) >= 1000

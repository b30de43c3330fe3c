"""Events in, state out: every way a node can go, and every event that is refused."""

from __future__ import annotations

import pytest

from dagrun.core.event import (
    EngineAttached,
    Event,
    NodeAdopted,
    NodeCancelled,
    NodeSkipped,
    NodeSpawned,
    RunEnded,
    StopCause,
    StopRequested,
    Warned,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import LOST_BUDGET, Outcome, RunStatus, Schedule, Status
from dagrun.core.plan import Plan
from dagrun.core.state import InvalidTransition, heap_top, story
from dagrun.core.workflow import Node, Retry
from tests.core.strategies import (
    CANCELLED,
    FAILED,
    LOST,
    TIMED_OUT,
    begin,
    created,
    ended,
    flow,
    fold,
    ran,
    started,
    statuses,
)

ALWAYS = Retry(max_attempts=3, delay_s=4.0, jitter=0.0)


def node(name: str, *needs: str, **fields: object) -> Node:
    return Node(id=name, run="true", needs=needs, **fields)  # type: ignore[arg-type]


def diamond(schedule: Schedule = Schedule.READY) -> Plan:
    """a → b, c → d, and e alone; f below e: one wave deeper than it."""
    return flow(
        node("a"), node("b", "a"), node("c", "a"), node("d", "b", "c"), node("e"), node("f", "e"), schedule=schedule
    )


def one(**fields: object) -> Plan:
    """One node, and one that needs it."""
    return flow(node("a", **fields), node("z", "a"))


# ---------------------------------------------------------------- needs and waves


def test_what_needs_nothing_is_ready_at_once() -> None:
    state = begin(diamond())
    assert statuses(state) == dict(zip("abcdef", ["ready", "pending", "pending", "pending", "ready", "pending"]))


def test_a_node_is_ready_when_the_last_of_its_needs_is_settled() -> None:
    state = fold(begin(diamond()), *ran("a"), *ran("b"))
    assert statuses(state)["d"] == "pending"
    fold(state, *ran("c"))
    assert statuses(state)["d"] == "ready"


def test_ready_schedule_waits_for_needs_alone() -> None:
    state = fold(begin(diamond()), *ran("e"))
    assert statuses(state)["f"] == "ready"


def test_waves_hold_a_node_until_every_lower_wave_is_settled() -> None:
    state = fold(begin(diamond(Schedule.WAVES)), *ran("e"))
    assert state.wave == 1
    assert statuses(state)["f"] == "pending"
    fold(state, *ran("a"))
    assert state.wave == 2
    assert [statuses(state)[n] for n in "bcf"] == ["ready"] * 3


def test_waves_that_are_settled_by_skips_are_stepped_over() -> None:
    plan = flow(node("a"), node("b", "a"), node("c", "b"), node("x"), schedule=Schedule.WAVES)
    state = fold(begin(plan), *ran("a", FAILED))
    fold(state, NodeSkipped(node="b", reason="dependency"), NodeSkipped(node="c", reason="dependency"))
    assert state.wave == 1  # x still holds it
    fold(state, *ran("x"))
    assert state.wave == 4
    assert state.settled == 4


def test_a_need_named_twice_counts_once() -> None:
    state = fold(begin(flow(node("a"), node("b", "a", "a"))), *ran("a"))
    assert statuses(state)["b"] == "ready"


def test_a_plan_without_nodes_is_settled() -> None:
    state = begin(flow())
    assert state.settled == 0
    assert state.wave == 1


# ---------------------------------------------------------------- failures and skips


def test_a_failure_dooms_its_dependents_and_no_one_else() -> None:
    state = fold(begin(diamond()), *ran("a", FAILED))
    assert statuses(state)["a"] == "failed"
    assert [state.plan.ids[i] for i in state.doomed] == ["b", "c"]
    assert statuses(state)["e"] == "ready"
    fold(state, NodeSkipped(node="b", reason="dependency", text="a failed"))
    assert state.reasons[1] == "a failed"
    fold(state, NodeSkipped(node="c", reason="dependency"))
    assert list(state.doomed) == [3]


def test_a_node_with_an_if_is_not_doomed_but_knows_that_a_need_broke() -> None:
    state = fold(begin(flow(node("a"), node("b", "a", condition="failure()"))), *ran("a", FAILED))
    assert statuses(state)["b"] == "ready"
    assert state.broken[1]
    assert state.tainted[1]


def test_failure_is_seen_through_what_was_skipped_between() -> None:
    plan = flow(node("a"), node("b", "a"), node("c", "b", condition="failure()"))
    state = fold(begin(plan), *ran("a", FAILED), NodeSkipped(node="b", reason="dependency"))
    assert state.tainted[2]


def test_a_skip_by_condition_breaks_its_dependents_without_a_failure() -> None:
    state = fold(begin(one(condition="false")), NodeSkipped(node="a", reason="condition"))
    assert list(state.doomed) == [1]
    assert not state.tainted[1]
    assert state.failures == 0


def test_a_skip_by_selection_satisfies_its_dependents() -> None:
    state = fold(begin(one()), NodeSkipped(node="a", reason="selection"))
    assert statuses(state)["z"] == "ready"


def test_continue_on_error_settles_as_failed_and_satisfies() -> None:
    state = fold(begin(one(continue_on_error=True)), *ran("a", FAILED))
    assert statuses(state) == {"a": "failed", "z": "ready"}
    assert state.failures == 0
    assert not state.tainted[1]


def test_adopted_outputs_count_as_completed() -> None:
    state = fold(begin(one()), NodeAdopted(node="a", run_id="r0ld", outputs={"x": {"v": 1}}))
    assert statuses(state) == {"a": "completed", "z": "ready"}
    assert state.adopted == {0: "r0ld"}
    assert state.outputs == {0: {"x": {"v": 1}}}


def test_a_node_given_up_breaks_its_dependents() -> None:
    state = fold(begin(one()), NodeCancelled(node="a", text="fail_fast: x failed"))
    assert statuses(state)["a"] == "cancelled"
    assert list(state.doomed) == [1]


# ---------------------------------------------------------------- attempts


def test_an_attempt_from_start_to_end() -> None:
    state = fold(begin(one()), started("a"), at=2.0)
    fold(state, NodeSpawned(node="a", attempt=1, pid=77, ticks=5, slot=3), at=2.1)
    attempt = state.running[0]
    assert (attempt.pid, attempt.ticks, attempt.slot, attempt.started_m, attempt.started_at) == (77, 5, 3, 2.0, 1002.0)
    fold(state, ended("a"), at=3.0)
    assert not state.running
    assert state.attempts[0] == [attempt]
    assert state.finished == [0]


def test_the_pid_of_an_attempt_that_is_over_is_ignored() -> None:
    state = fold(begin(one(retry=ALWAYS)), *ran("a", FAILED), started("a", 2))
    fold(state, NodeSpawned(node="a", attempt=1, pid=77, ticks=5))
    assert state.running[0].pid == 0
    fold(state, ended("a", attempt=2), NodeSpawned(node="a", attempt=2, pid=78, ticks=5))


def test_a_retry_waits_its_delay_on_the_monotonic_clock() -> None:
    state = fold(begin(one(retry=ALWAYS)), started("a"), at=1.0)
    fold(state, ended("a", FAILED), at=5.0)
    assert statuses(state)["a"] == "retrying"
    assert state.waking == [(9.0, 0)]
    fold(state, started("a", 2), ended("a", FAILED, 2), at=20.0)
    assert state.waking == [(28.0, 0)]
    fold(state, started("a", 3), ended("a", FAILED, 3, "no luck"), at=40.0)
    assert statuses(state)["a"] == "failed"
    assert state.reasons[0] == "no luck"


def test_an_attempt_that_could_not_start_counts_as_one() -> None:
    state = fold(begin(one(retry=Retry(max_attempts=2, delay_s=0))), ended("a", FAILED))
    assert statuses(state)["a"] == "retrying"
    fold(state, ended("a", FAILED, 2))
    assert statuses(state)["a"] == "failed"
    assert [a.number for a in state.attempts[0]] == [1, 2]


def test_a_lost_attempt_has_a_budget_of_its_own() -> None:
    state = begin(one(retry=Retry(max_attempts=2, delay_s=0)))
    for attempt in range(1, LOST_BUDGET + 1):
        fold(state, *ran("a", LOST, attempt))
        assert statuses(state)["a"] == "ready"
    fold(state, *ran("a", FAILED, 3))
    assert statuses(state)["a"] == "retrying"
    fold(state, *ran("a", LOST, 4))
    assert statuses(state)["a"] == "failed"


@pytest.mark.parametrize("outcome", [LOST, TIMED_OUT])
def test_an_unknown_effect_is_never_repeated_for_what_is_not_idempotent(outcome: Outcome) -> None:
    state = fold(begin(one(idempotent=False, retry=ALWAYS)), *ran("a", outcome))
    assert statuses(state)["a"] == "failed"


def test_a_failure_of_what_is_not_idempotent_is_tried_again_as_it_says() -> None:
    state = fold(begin(one(idempotent=False, retry=ALWAYS)), *ran("a", FAILED))
    assert statuses(state)["a"] == "retrying"


def test_reservations_are_held_while_an_attempt_runs() -> None:
    plan = flow(node("a", resources={"gpu": 2, "cpu": 0.5}), node("b", resources={"gpu": 1}))
    state = fold(begin(plan), started("a"), started("b"))
    assert state.used == {"gpu": 3, "cpu": 0.5}
    fold(state, ended("a", FAILED))
    assert state.used == {"gpu": 1, "cpu": 0}


def test_ready_nodes_wait_in_a_heap_for_each_kind_of_reservation() -> None:
    plan = flow(node("a"), node("b"), node("c", "b"), node("g", resources={"gpu": 1}))
    state = begin(plan)
    assert {key: heap_top(state, heap) for key, heap in state.ready.items()} == {(): 1, (("gpu", 1),): 3}
    fold(state, *ran("b"))
    assert heap_top(state, state.ready[()]) == 0
    fold(state, *ran("a"), *ran("c"))
    assert heap_top(state, state.ready[()]) is None


# ---------------------------------------------------------------- stops


def stop(cause: StopCause, mode: str = "now") -> Event:
    return StopRequested(cause=cause, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", ["sigint", "sigterm", "sighup", "timeout", "disk_full"])
def test_an_interrupt_puts_a_running_node_back_without_using_up_a_try(cause: StopCause) -> None:
    state = fold(begin(one(retry=Retry(max_attempts=2, delay_s=0))), started("a"), stop(cause), ended("a", CANCELLED))
    assert statuses(state)["a"] == "ready"
    fold(state, EngineAttached(pid=2), *ran("a", FAILED, 2))
    assert statuses(state)["a"] == "retrying"
    fold(state, *ran("a", FAILED, 3))
    assert statuses(state)["a"] == "failed"


def test_an_interrupt_leaves_the_effect_of_what_is_not_idempotent_unknown() -> None:
    state = fold(begin(one(idempotent=False)), started("a"), stop("sigint"), ended("a", CANCELLED, error="cancelled"))
    assert statuses(state)["a"] == "failed"
    assert state.reasons[0] == "cancelled"


def test_a_cancel_settles_a_running_node() -> None:
    state = fold(begin(one()), started("a"), stop("cancel"), ended("a", CANCELLED, error="by ada"))
    assert statuses(state)["a"] == "cancelled"
    assert state.reasons[0] == "by ada"


def test_fail_fast_settles_a_running_node_as_cancelled() -> None:
    state = fold(begin(one()), started("a"), ended("a", CANCELLED))
    assert statuses(state)["a"] == "cancelled"


def test_now_wins_over_drain_and_nothing_over_cancel() -> None:
    state = begin(one())
    for cause, mode, expected in (
        ("sigint", "drain", ("sigint", "drain")),
        ("sigterm", "drain", ("sigint", "drain")),
        ("sigterm", "now", ("sigterm", "now")),
        ("cancel", "now", ("cancel", "now")),
        ("sigint", "now", ("cancel", "now")),
    ):
        fold(state, StopRequested(cause=cause, mode=mode))  # type: ignore[arg-type]
        assert state.stop is not None
        assert (state.stop.cause, state.stop.mode) == expected


def test_a_cancelled_run_cancels_all_that_is_left() -> None:
    state = fold(begin(diamond()), *ran("e"), stop("cancel"), RunEnded(status=RunStatus.CANCELLED, exit_code=143))
    assert state.status is RunStatus.CANCELLED
    assert state.counts[Status.CANCELLED] == 5
    assert state.settled == 6


# ---------------------------------------------------------------- engines


def test_a_new_engine_forgets_the_stop_and_the_end() -> None:
    state = fold(begin(one()), stop("sigint"), RunEnded(status=RunStatus.INTERRUPTED, exit_code=130), at=5)
    fold(state, EngineAttached(pid=2), at=9)
    assert (state.stop, state.ended, state.status, state.engines) == (None, None, RunStatus.RUNNING, 2)
    assert (state.attached_at, state.attached_m) == (1009, 9)


def test_delays_begin_again_with_a_new_engine() -> None:
    state = fold(begin(one(retry=ALWAYS)), *ran("a", FAILED), at=500)
    evolve(state, EngineAttached(pid=2, boot_id="other"), 2000.0, 3.0)
    assert state.waking == [(7.0, 0)]


def test_without_revive_what_has_failed_stays_failed() -> None:
    state = fold(begin(one()), *ran("a", FAILED), EngineAttached(pid=2))
    assert statuses(state) == {"a": "failed", "z": "pending"}
    assert list(state.doomed) == [1]


def test_revive_gives_failed_cancelled_and_skipped_nodes_another_chance() -> None:
    plan = flow(
        node("bad"),
        node("below", "bad"),
        node("off", condition="false"),
        node("out"),
        node("good"),
        node("late"),
        node("after", "bad", condition="failure()"),
    )
    state = fold(
        begin(plan),
        NodeSkipped(node="out", reason="selection"),
        *ran("bad", FAILED),
        NodeSkipped(node="below", reason="dependency"),
        NodeSkipped(node="off", reason="condition"),
        *ran("good"),
        *ran("after"),
        NodeCancelled(node="late"),
        RunEnded(status=RunStatus.FAILED, exit_code=1),
    )
    fold(state, EngineAttached(pid=2, revive=True))
    assert statuses(state) == {
        "bad": "ready",
        "below": "pending",
        "off": "ready",
        "out": "skipped",
        "good": "completed",
        "late": "ready",
        "after": "completed",
    }
    assert state.failures == 0
    assert state.reasons == {3: ""}
    fold(state, *ran("bad", attempt=2))
    assert statuses(state)["below"] == "ready"


def test_a_revived_node_has_all_its_tries_and_its_lost_budget_again() -> None:
    state = begin(one(retry=Retry(max_attempts=2, delay_s=0)))
    fold(state, *ran("a", LOST), *ran("a", LOST, 2), *ran("a", FAILED, 3), *ran("a", FAILED, 4))
    assert statuses(state)["a"] == "failed"
    fold(state, EngineAttached(pid=2, revive=True))
    fold(state, *ran("a", LOST, 5), *ran("a", LOST, 6), *ran("a", FAILED, 7))
    assert statuses(state)["a"] == "retrying"
    fold(state, *ran("a", FAILED, 8))
    assert statuses(state)["a"] == "failed"


def test_revive_works_wave_by_wave() -> None:
    state = fold(begin(diamond(Schedule.WAVES)), *ran("e"), *ran("a", FAILED))
    fold(state, NodeSkipped(node="b", reason="dependency"), NodeSkipped(node="c", reason="dependency"), *ran("f"))
    fold(state, NodeSkipped(node="d", reason="dependency"), EngineAttached(pid=2, revive=True))
    assert state.wave == 1
    assert [statuses(state)[n] for n in "abcdef"] == [
        "ready",
        "pending",
        "pending",
        "pending",
        "completed",
        "completed",
    ]


def test_warnings_are_kept() -> None:
    state = fold(begin(one()), Warned(text="careful"))
    assert [w.text for w in state.warnings] == ["careful"]


# ---------------------------------------------------------------- what can't happen


@pytest.mark.parametrize(
    ("before", "event", "message"),
    [
        ((), started("z"), "node.started for node 'z', which is pending; node 'z': never started"),
        ((started("a"),), started("a", 2), "node.started for node 'a', which is running; node 'a': attempt 1: running"),
        (ran("a"), started("a", 2), "which is completed; node 'a': attempt 1: completed"),
        (ran("a"), ended("a", FAILED, 2), "attempt.finished for node 'a', which is completed"),
        ((started("a"),), ended("a", FAILED, 2), "attempt 2 finished out of turn; node 'a': attempt 1: running"),
        ((started("a"),), NodeSkipped(node="a", reason="condition"), "node.skipped for node 'a', which is running"),
        (ran("a"), NodeSkipped(node="a", reason="condition"), "node.skipped for node 'a', which is completed"),
        (ran("a"), NodeCancelled(node="a"), "node.cancelled for node 'a', which is completed"),
        (ran("a", FAILED), NodeAdopted(node="a", run_id="r"), "node.adopted for node 'a', which is failed"),
        ((), created(one()), "created only once"),
    ],
)
def test_an_event_that_cannot_happen_is_refused_with_the_story_of_its_node(
    before: tuple[Event, ...], event: Event, message: str
) -> None:
    state = fold(begin(one()), *before)
    with pytest.raises(InvalidTransition) as caught:
        evolve(state, event, 1.0, 1.0)
    assert message in str(caught.value)


def test_an_event_of_an_unknown_node_is_refused() -> None:
    with pytest.raises(KeyError):
        evolve(begin(one()), started("nobody"), 1.0, 1.0)


def test_the_story_of_a_node() -> None:
    state = fold(begin(one(retry=ALWAYS)), *ran("a", FAILED), started("a", 2))
    assert story(state, 0) == "node 'a': attempt 1: failed, attempt 2: running"

"""Whether a patch may change a run in its present state, and what becomes of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dagrun.core.decide import Append, Cancel, Effect, Escalate, Finish, Room, Start, decide
from dagrun.core.event import (
    AttemptFinished,
    CallEnded,
    CallReserved,
    EngineAttached,
    EscalationFailed,
    Event,
    NodeSkipped,
    NodeStarted,
    PatchAdmitted,
    PatchProposed,
    ProposalDecided,
    ReviewDecided,
    ReviewRequested,
    RevisionAdopted,
    RunEnded,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import Outcome, RunStatus, Schedule, Status
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
)
from dagrun.core.plan import compile_plan
from dagrun.core.replan import Verdict, admit, chain_length, refusal, stale_base
from dagrun.core.state import InvalidTransition, RunState
from dagrun.core.undo import inverse
from dagrun.core.workflow import Agent, Input, Limits, Node, OnFailure, Output, Review, Workflow
from dagrun.core.workflow import Retry as RetryPolicy
from tests.core.strategies import begin, ended, ran, started, statuses
from tests.core.test_patch import node
from tests.core.test_replan_laws import check_patched

OK, FAILED, CANCELLED = Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED
ROOM = Room(4, {"gpu": 2.0})


def run(*nodes: Node, limits: Limits | None = None, schedule: Schedule = Schedule.READY, **more: object) -> RunState:
    """A run whose first engine has just attached."""
    workflow = Workflow(name="w", nodes={n.id: n for n in nodes}, limits=limits or Limits(), schedule=schedule)
    return begin(compile_plan(replace(workflow, **more)))  # type: ignore[arg-type]


def fold(state: RunState, *events: Event, at: float = 0.0) -> RunState:
    for event in events:
        evolve(state, event, 1000.0 + at, at)
        check_patched(state)
    return state


def judge(state: RunState, *operations: Operation, actor: str = "human") -> Verdict:
    return admit(state, Patch(operations=operations), by="node:x" if actor == "node" else "ann", actor=actor)  # type: ignore[arg-type]


def patch(state: RunState, *operations: Operation) -> Verdict:
    """Admit a patch and fold it."""
    verdict = judge(state, *operations)
    assert verdict.event is not None, [f.message for f in verdict.faults]
    fold(state, verdict.event)
    return verdict


def codes(verdict: Verdict) -> list[str]:
    return [f.code for f in verdict.faults]


def settle_doomed(state: RunState) -> None:
    """Fold what follows from the state alone."""
    while found := [e.event for e in decide(state, 0.0, ROOM) if isinstance(e, Append)]:
        fold(state, *found)


def effects(state: RunState) -> list[Effect]:
    fold(state, *[RevisionAdopted(revision=state.plan.revision)])
    return decide(state, 1e9, ROOM)


# ---------------------------------------------------------------- who may be changed


def _in(status: Status) -> RunState:
    """A run with node `b` in a status; `a` before it and `c` after it have not moved more than that takes."""
    b = node("b", "a", retry=RetryPolicy(max_attempts=2 if status is Status.RETRYING else 1))
    if status is Status.SKIPPED:
        b = replace(b, condition="false")
    if status is Status.AWAITING_REVIEW:
        b = replace(b, on_failure=OnFailure(review=Review()))
    c = node("c", "b")
    state = run(node("a"), b, c, node("free"), fail_fast=status is Status.CANCELLED)
    if status is Status.PENDING:
        return state
    if status is Status.CANCELLED:
        fold(state, started("a"), ended("a", FAILED))
        settle_doomed(state)
        state.node_status[1] = Status.CANCELLED  # whether skipped or given up, it did not run
        state.skips.pop(1, None)
        state.failures = 1
        return state
    fold(state, *ran("a"))
    events: dict[Status, tuple[Event, ...]] = {
        Status.READY: (),
        Status.SKIPPED: (NodeSkipped(node="b", reason="condition"),),
        Status.RUNNING: (started("b"),),
        Status.RETRYING: ran("b", FAILED),
        Status.FAILED: ran("b", FAILED),
        Status.COMPLETED: ran("b"),
        Status.AWAITING_REVIEW: (*ran("b", FAILED), ReviewRequested(node="b", attempt=1)),
        Status.SUPERSEDED: (),
    }
    fold(state, *events[status])
    if status is Status.SUPERSEDED:
        patch(state, Fallback(id="b", node=Node(id="t", run="t")))
    assert state.node_status[1] is status
    return state


OPERATIONS: dict[str, Callable[[bool], Operation]] = {
    "insert": lambda cancel: Insert(id="new", node=Node(id="new", run="n"), before=("b",), cancel_running=cancel),
    "remove": lambda cancel: Remove(id="b", strategy="skip", cancel_running=cancel),
    "rewire": lambda cancel: Rewire(id="b", old=("a",), new=("free",), cancel_running=cancel),
    "modify": lambda cancel: Modify(id="b", node=node("b", "a", timeout_s=9.0), cancel_running=cancel),
    "retry": lambda cancel: Retry(id="b", cancel_running=cancel),
    "fallback": lambda cancel: Fallback(id="b", node=Node(id="t", run="t"), cancel_running=cancel),
    "rerun": lambda cancel: Rerun(id="b"),
}
EVERYTHING = {"insert", "remove", "rewire", "modify", "fallback"}
TABLE: dict[Status, set[str]] = {
    Status.PENDING: EVERYTHING,
    Status.READY: EVERYTHING,
    Status.SKIPPED: EVERYTHING | {"retry"},
    Status.CANCELLED: EVERYTHING | {"retry"},
    Status.RETRYING: {"modify", "retry", "remove"},
    Status.FAILED: {"retry", "fallback", "remove"},
    Status.AWAITING_REVIEW: {"remove", "retry", "fallback"},
    Status.RUNNING: set(),
    Status.COMPLETED: {"rerun"},
    Status.SUPERSEDED: set(),
}


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("kind", list(OPERATIONS))
def test_who_may_be_changed_is_as_the_table_says(status: Status, kind: str) -> None:
    state = _in(status)
    before = statuses(state)
    verdict = judge(state, OPERATIONS[kind](False))
    assert (verdict.event is not None) == (kind in TABLE[status]), [f.message for f in verdict.faults]
    assert statuses(state) == before
    if verdict.event is None:
        assert "wrong-state" in codes(verdict)
        assert all(f.hint for f in verdict.faults)
        assert len({f.message for f in verdict.faults}) == len(verdict.faults)
    elif status is not Status.CANCELLED:
        fold(state, verdict.event)


@pytest.mark.parametrize("kind", [k for k in OPERATIONS if k != "rerun"])
def test_a_running_node_is_changed_only_once_it_was_ended(kind: str) -> None:
    state = _in(Status.RUNNING)
    verdict = patch(state, OPERATIONS[kind](True))
    assert verdict.cancelled == ["b"]
    assert statuses(state)["b"] == "running"
    assert Cancel(1, "replanned") in effects(state)
    fold(state, ended("b", OK))  # too late: it was ended by the patch
    expected = {"remove": "skipped", "fallback": "superseded", "insert": "pending", "rewire": "pending"}
    assert statuses(state)["b"] == expected.get(kind, "ready")
    assert 1 not in state.outputs
    assert state.attempts[1][-1].outcome is CANCELLED


# ---------------------------------------------------------------- all or nothing, all reasons


def test_all_reasons_are_given_at_once() -> None:
    state = fold(run(node("a"), node("b", "a"), node("c", "b")), *ran("a"))
    verdict = judge(
        state,
        Modify(id="nope", node=node("nope")),
        Rewire(id="c", old=("b",), new=("c",)),
        Rewire(id="c", old=("a",), new=("b",)),
        Retry(id="a"),
    )
    assert sorted(codes(verdict)) == ["self-need", "stale-rewire", "unknown-node", "wrong-state"]
    assert [f.path[1] for f in sorted(verdict.faults, key=lambda f: f.path[1])] == [0, 1, 2, 3]
    refused = refusal(state, Patch(operations=()), verdict.faults, "ann")
    assert len(refused.reasons) == 4


def test_a_patch_whose_third_operation_is_bad_changes_nothing() -> None:
    state = run(node("a"), node("b", "a"))
    good = Insert(id="n", node=node("n"), after=("a",))
    verdict = judge(state, good, SetLimits(parallel=1), Rewire(id="a", new=("b",)))
    assert codes(verdict) == ["cycle"]
    assert "a -> b -> a" in verdict.faults[0].message or "b -> a -> b" in verdict.faults[0].message
    assert state.plan.revision == 1
    assert state.plan.ids == ("a", "b")


def test_an_empty_patch_is_refused() -> None:
    assert codes(judge(run(node("a")))) == ["empty"]


def test_a_stale_base_is_seen() -> None:
    state = run(node("a"), node("b", "a"))
    patch(state, SetLimits(parallel=1))
    assert stale_base(state, Patch(operations=(), base=1))
    assert not stale_base(state, Patch(operations=(), base=2))
    assert not stale_base(state, Patch(operations=()))


def test_a_completed_run_takes_insert_and_rerun_only() -> None:
    state = fold(
        run(node("a"), node("b", "a")), *ran("a"), *ran("b"), RunEnded(status=RunStatus.COMPLETED, exit_code=0)
    )
    assert codes(judge(state, SetLimits(parallel=1))) == ["completed-run"]
    assert judge(state, Rerun(id="b")).event is not None
    verdict = patch(state, Insert(id="n", node=node("n"), after=("b",)))
    assert verdict.added == ["n"]
    assert state.ended is None
    assert state.status is RunStatus.INTERRUPTED
    fold(state, EngineAttached(pid=2))
    assert Start(2) in effects(state)


# ---------------------------------------------------------------- insert, remove, rewire in a run


def test_insert_between_completed_and_pending_keeps_every_input() -> None:
    state = fold(run(node("a"), node("b", "a", reads="nodes.a.out")), *ran("a"))
    patch(state, Insert(id="n", node=node("n"), after=("a",), before=("b",)))
    assert state.plan.workflow.nodes["b"].needs == ("n",)
    assert state.plan.workflow.nodes["b"].inputs["x"].expression == "nodes.a.out"
    assert statuses(state) == {"a": "completed", "b": "pending", "n": "ready"}


def test_insert_before_a_settled_node_is_refused_once() -> None:
    state = fold(run(node("a"), node("b", "a")), *ran("a"), *ran("b"))
    assert codes(judge(state, Insert(id="n", node=node("n"), after=("a",), before=("b",)))) == ["wrong-state"]


def test_insert_and_retry_together_prepare_a_failed_node() -> None:
    state = fold(run(node("a"), node("b", "a")), *ran("a"), *ran("b", FAILED))
    patch(state, Insert(id="fix", node=node("fix"), after=("a",), before=("b",)), Retry(id="b"))
    assert statuses(state) == {"a": "completed", "b": "pending", "fix": "ready"}


def test_an_orphan_is_refused_and_an_input_from_a_param_is_no_place() -> None:
    lone = Node(id="n", run="n", inputs={"x": Input(value=1)})
    assert codes(judge(run(node("a")), Insert(id="n", node=lone))) == ["orphan"]


def test_a_need_that_will_never_come_is_refused() -> None:
    state = fold(run(node("a"), node("b"), node("c")), *ran("a", FAILED))
    assert codes(judge(state, Rewire(id="c", new=("a",)))) == ["dead-need"]
    assert codes(judge(state, Insert(id="n", node=node("n"), after=("a",)))) == ["dead-need"]
    cleanup = node("n", condition="failure()")
    assert judge(state, Insert(id="n", node=cleanup, after=("a",))).event is not None
    assert judge(state, Rewire(id="c", new=("a",)), Retry(id="a")).event is not None


def test_a_rewire_that_leaves_the_input_behind_is_refused() -> None:
    state = run(node("db"), node("file"), node("c", "db", reads="nodes.db.out"))
    verdict = judge(state, Rewire(id="c", old=("db",), new=("file",)))
    assert codes(verdict) == ["still-reads"]
    reader = replace(state.plan.workflow.nodes["c"], inputs={"x": Input(expression="nodes.file.out")})
    assert judge(state, Rewire(id="c", old=("db",), new=("file",)), Modify(id="c", node=reader)).event is not None


@pytest.mark.parametrize("strategy", ["skip", "bridge"])
def test_what_was_skipped_comes_back_when_the_failed_node_goes(strategy: str) -> None:
    state = fold(run(node("a"), node("b", "a"), node("c", "b"), node("d", "c")), *ran("a"), *ran("b", FAILED))
    settle_doomed(state)
    assert statuses(state)["d"] == "skipped"
    verdict = patch(state, Remove(id="b", strategy=strategy))  # type: ignore[arg-type]
    assert verdict.revived == ["c", "d"]
    assert state.failures == 0
    assert (statuses(state)["c"], statuses(state)["d"]) == ("ready", "pending")


def test_a_rewire_brings_a_skipped_node_back() -> None:
    state = fold(run(node("db"), node("file"), node("c", "db")), *ran("db", FAILED), *ran("file"))
    settle_doomed(state)
    assert patch(state, Rewire(id="c", old=("db",), new=("file",))).revived == ["c"]
    assert statuses(state)["c"] == "ready"


def test_what_still_has_another_failed_need_stays_skipped() -> None:
    state = fold(run(node("a"), node("z"), node("c", "a", "z")), *ran("a", FAILED), *ran("z", FAILED))
    settle_doomed(state)
    assert patch(state, Retry(id="a")).revived == []
    assert statuses(state)["c"] == "skipped"


def test_a_skip_never_leaves_a_dependent_waiting() -> None:
    state = run(node("a"), node("b", "a"), node("c", "b"))
    patch(state, Remove(id="b", strategy="skip"))
    assert statuses(state) == {"a": "ready", "b": "skipped", "c": "ready"}


def test_cascade_spares_completed_work() -> None:
    clean = node("clean", "a", condition="always()")
    state = fold(run(node("a"), clean, node("c", "a")), *ran("a", FAILED), *ran("clean"))
    verdict = judge(state, Remove(id="a", strategy="cascade"))
    assert codes(verdict) == ["settled"]
    assert "`clean` would be removed, but it is completed" in verdict.faults[0].message


def test_a_condition_may_not_read_what_is_gone_however_far_above() -> None:
    late = node("c", "b", condition="always() && nodes.a.status == 'failed'")
    state = run(node("a"), node("b", "a"), late)
    verdict = judge(state, Remove(id="a", strategy="bridge"))
    assert codes(verdict) == ["unknown-name"]
    assert "there is no node `a`" in verdict.faults[0].message
    assert codes(judge(state, Rewire(id="b", old=("a",), root=True))) == ["not-upstream"]


def test_an_output_of_the_workflow_keeps_its_producer() -> None:
    state = run(node("a"), node("b", "a"), outputs={"o": "nodes.b.out"})
    assert codes(judge(state, Remove(id="b", strategy="bridge"))) == ["orphan"]
    bare = replace(state.plan.workflow.nodes["b"], outputs={})
    assert codes(judge(state, Modify(id="b", node=bare))) == ["contract"]


def test_a_contract_of_a_consumer_holds() -> None:
    state = run(node("a"), node("b", reads="nodes.a.out"))
    bare = replace(state.plan.workflow.nodes["a"], outputs={"other": Output()})
    verdict = judge(state, Modify(id="a", node=bare))
    assert codes(verdict) == ["unknown-name"]
    assert "no output `out`" in verdict.faults[0].message


# ---------------------------------------------------------------- removed nodes


def test_a_removed_node_is_out_of_every_count_and_keeps_its_entry() -> None:
    state = run(node("a"), node("b", "a"), node("c", "b"))
    patch(state, Remove(id="b", strategy="bridge"))
    assert state.removed == {1: 2}
    assert state.counts[Status.PENDING] == 1
    fold(state, *ran("a"), *ran("c"))
    assert effects(state) == [Finish(RunStatus.COMPLETED, 0, "")]


def test_nothing_happens_to_a_removed_node_any_more() -> None:
    state = fold(run(node("a", retry=RetryPolicy(max_attempts=2)), node("b")), *ran("a", FAILED))
    patch(state, Remove(id="a", strategy="bridge"))
    for late in (started("a", 2), NodeSkipped(node="a", reason="condition"), ended("a", OK, 2)):
        with pytest.raises(InvalidTransition):
            evolve(state, late, 1001.0, 1.0)


def test_failing_fast_leaves_removed_nodes_alone() -> None:
    state = run(node("a"), node("b", "a"), node("z"), fail_fast=True)
    patch(state, Remove(id="b", strategy="bridge"))
    fold(state, *ran("z", FAILED))
    settle_doomed(state)
    assert state.removed == {1: 2}
    assert statuses(state)["a"] == "cancelled"


def test_a_removed_failure_is_not_what_failed_fast() -> None:
    state = fold(run(node("y"), node("z"), node("a"), fail_fast=True), started("y"), started("z"), ended("y", FAILED))
    fold(state, ended("z", FAILED))
    patch(state, Remove(id="y", strategy="bridge"))
    found = [e.event for e in decide(state, 0.0, ROOM) if isinstance(e, Append)]
    assert "fail_fast: z failed" in {getattr(e, "text", "") for e in found}


def test_a_review_of_a_removed_node_is_not_asked_any_more() -> None:
    state = fold(run(Node(id="ask", review=Review()), node("b", "ask")), ReviewRequested(node="ask", attempt=1))
    patch(state, Remove(id="ask", strategy="bridge"))
    assert state.reviews == {}
    assert state.attempts[0][-1].outcome is CANCELLED
    assert statuses(state)["b"] == "ready"


# ---------------------------------------------------------------- retry, rerun, modify


def test_a_retry_brings_dependents_back_with_a_fresh_budget() -> None:
    state = fold(run(node("a", retry=RetryPolicy(max_attempts=1)), node("b", "a")), *ran("a", FAILED))
    settle_doomed(state)
    assert patch(state, Retry(id="a")).revived == ["b"]
    fold(state, *ran("a", OK, 2))
    assert statuses(state) == {"a": "completed", "b": "ready"}


def test_attempts_that_were_lost_before_a_retry_count_no_more() -> None:
    state = run(node("a", retry=RetryPolicy(max_attempts=2, delay_s=0.0)))
    fold(state, *ran("a", Outcome.LOST), *ran("a", FAILED, 2), *ran("a", FAILED, 3))
    patch(state, Retry(id="a"))
    fold(state, *ran("a", FAILED, 4))
    assert statuses(state) == {"a": "retrying"}


def test_a_patch_does_not_set_the_delay_of_another_retry_back() -> None:
    state = fold(run(node("a", retry=RetryPolicy(max_attempts=2, delay_s=9.0, jitter=0)), node("b")), *ran("a", FAILED))
    due = state.waking[0]
    verdict = judge(state, SetLimits(parallel=1))
    assert verdict.event is not None
    fold(state, verdict.event, at=5.0)
    assert state.waking == [due]


def test_a_node_between_attempts_waits_for_what_a_patch_sets_back() -> None:
    after = node("b", "a", condition="always()", retry=RetryPolicy(max_attempts=3, delay_s=1.0))
    state = fold(run(node("a"), after), *ran("a", FAILED), *ran("b", FAILED))
    patch(state, Retry(id="a"))
    assert statuses(state) == {"a": "ready", "b": "pending"}
    fold(state, *ran("a", OK, 2))
    assert statuses(state)["b"] == "ready"


@pytest.mark.parametrize("outcome", [FAILED, Outcome.LOST])
def test_a_running_node_whose_need_was_set_back_waits_for_it_before_its_next_try(outcome: Outcome) -> None:
    after = node("b", "a", condition="always()", retry=RetryPolicy(max_attempts=3))
    state = fold(run(node("a"), after), *ran("a", FAILED), started("b"))
    patch(state, Retry(id="a"))
    fold(state, ended("b", outcome))
    assert statuses(state) == {"a": "ready", "b": "pending"}
    fold(state, *ran("a", OK, 2))
    assert statuses(state)["b"] == "ready"


def test_rerun_makes_all_that_followed_stale() -> None:
    skipped = node("s", "b", condition="failure()")
    state = fold(run(node("a"), node("b", "a"), skipped, node("free")), *ran("a"), *ran("b"), *ran("free"))
    fold(state, NodeSkipped(node="s", reason="condition"))
    verdict = patch(state, Rerun(id="a"))
    assert verdict.stale == ["a", "b"]
    assert statuses(state) == {"a": "ready", "b": "pending", "s": "pending", "free": "completed"}
    assert state.outputs == {}


def test_rerun_sets_back_what_waits_for_its_next_attempt_or_for_a_human() -> None:
    flaky = node("b", "a", retry=RetryPolicy(max_attempts=2))
    state = fold(run(node("a"), flaky, Node(id="ask", review=Review(), needs=("a",))), *ran("a"), *ran("b", FAILED))
    fold(state, ReviewRequested(node="ask", attempt=1))
    patch(state, Rerun(id="a"))
    assert statuses(state) == {"a": "ready", "b": "pending", "ask": "pending"}
    assert state.reviews == {}


def test_rerun_does_not_bring_back_what_a_patch_took_out() -> None:
    state = fold(run(node("a"), node("b", "a"), node("c", "b")), *ran("a"))
    patch(state, Remove(id="b", strategy="skip"))
    patch(state, Rerun(id="a"))
    assert statuses(state)["b"] == "skipped"


def test_rerun_over_a_running_dependent_has_to_end_it() -> None:
    state = fold(run(node("a"), node("b", "a")), *ran("a"), started("b"))
    assert codes(judge(state, Rerun(id="a"))) == ["wrong-state"]
    assert patch(state, Rerun(id="a", cancel_running=True)).cancelled == ["b"]
    fold(state, ended("b"))
    assert statuses(state) == {"a": "ready", "b": "pending"}


def test_resources_of_an_ended_attempt_are_given_back_as_they_were_taken() -> None:
    wide = node("a", resources={"gpu": 2.0})
    state = fold(run(wide, limits=Limits(resources={"gpu": 2.0})), started("a"))
    patch(state, Modify(id="a", node=replace(wide, resources={"gpu": 1.0}), cancel_running=True))
    fold(state, ended("a", CANCELLED))
    assert state.used == {"gpu": 0.0}


def test_a_lowered_limit_may_not_strand_a_node() -> None:
    state = run(node("a", resources={"gpu": 2.0}), limits=Limits(resources={"gpu": 2.0}))
    assert codes(judge(state, SetLimits(resources={"gpu": 1.0}))) == ["over-limit"]


def test_a_node_that_a_patch_is_ending_is_judged_by_what_it_becomes() -> None:
    state = fold(run(node("a"), node("b")), started("a"))
    patch(state, Fallback(id="a", node=Node(id="t", run="t"), cancel_running=True))
    assert codes(judge(state, Modify(id="a", node=node("a", timeout_s=9.0), cancel_running=True))) == ["wrong-state"]
    state = fold(run(node("a"), node("b")), started("a"))
    patch(state, Retry(id="a", cancel_running=True))
    verdict = patch(state, Modify(id="a", node=node("a", timeout_s=9.0)))
    assert verdict.cancelled == []
    fold(state, ended("a", OK))
    assert statuses(state)["a"] == "ready"


# ---------------------------------------------------------------- fallback and alternative


def test_a_fallback_takes_over_and_the_run_does_not_fail() -> None:
    state = fold(run(node("a"), node("b", reads="nodes.a.out")), *ran("a", FAILED))
    settle_doomed(state)
    verdict = patch(state, Fallback(id="a", node=Node(id="t", run="t")))
    assert (verdict.added, verdict.revived) == (["a-fallback"], ["b"])
    assert state.failures == 0
    fold(state, *ran("a-fallback"), *ran("b"))
    assert effects(state) == [Finish(RunStatus.COMPLETED, 0, "")]


def test_a_fallback_of_a_fallback_has_the_inputs_follow() -> None:
    state = fold(run(node("a"), node("b", reads="nodes.a.out")), *ran("a", FAILED))
    patch(state, Fallback(id="a", node=Node(id="t", run="t")))
    fold(state, *ran("a-fallback", FAILED))
    patch(state, Fallback(id="a-fallback", node=Node(id="t", run="t")))
    last = "a-fallback-fallback"
    assert state.plan.workflow.nodes["b"].inputs["x"].expression == f"nodes.{last}.out"
    assert chain_length(state, state.plan.index[last]) == 2
    fold(state, *ran(last))
    assert statuses(state)["b"] == "ready"


def test_nothing_can_be_made_to_wait_for_a_superseded_node() -> None:
    state = fold(run(node("a"), node("b")), *ran("a", FAILED))
    patch(state, Fallback(id="a", node=Node(id="t", run="t")))
    verdict = judge(state, Insert(id="n", node=node("n"), after=("a",)))
    assert codes(verdict) == ["dead-need"]
    assert "superseded by `a-fallback`" in verdict.faults[0].message


def test_a_superseded_node_is_in_nobodys_way() -> None:
    state = run(node("a"), node("b", "a"), node("c", "b"))
    patch(state, Fallback(id="b", node=Node(id="t", run="t")))
    patch(state, Remove(id="a", strategy="cascade"))
    assert set(state.plan.workflow.nodes) == {"b"}
    assert effects(state) == [Finish(RunStatus.COMPLETED, 0, "")]


def test_an_alternative_brings_back_what_the_blocked_path_held_up() -> None:
    state = fold(run(node("a"), node("x", "a"), node("z", reads="nodes.x.out")), *ran("a"), *ran("x", FAILED))
    settle_doomed(state)
    way = Alternative(blocked=("a", "x"), nodes={"p": node("p")}, exits=("p",))
    assert patch(state, way).revived == ["z"]
    assert statuses(state) == {"a": "completed", "x": "skipped", "z": "pending", "p": "ready"}
    assert state.failures == 0


# ---------------------------------------------------------------- escalation


def _escalating(*more: Node, fail_fast: bool = False) -> RunState:
    wanted = OnFailure(fallback="t", review=Review())
    state = run(node("a", on_failure=wanted), *more, templates={"t": Node(id="t", run="t")}, fail_fast=fail_fast)
    return fold(state, *ran("a", FAILED))


def test_a_trigger_does_not_fire_again_for_a_node_that_was_replaced() -> None:
    state = _escalating()
    assert decide(state, 0.0, ROOM) == [Escalate(0, "fallback")]
    patch(state, Fallback(id="a", node=Node(id="t", run="t")))
    assert not any(isinstance(e, Escalate) for e in effects(state))
    with pytest.raises(InvalidTransition):
        evolve(state, EscalationFailed(node="a", step="fallback"), 1001.0, 1.0)


def test_one_escalation_at_a_time_and_nothing_starts_beside_it() -> None:
    other = node("b", on_failure=OnFailure(fallback="t"))
    state = fold(_escalating(other, node("c")), *ran("b", FAILED))
    assert decide(state, 0.0, ROOM) == [Escalate(0, "fallback")]


def test_failing_fast_ends_escalations_and_reviews() -> None:
    ask = Node(id="ask", review=Review())
    state = fold(_escalating(node("z"), ask, fail_fast=True), ReviewRequested(node="ask", attempt=1), *ran("z", FAILED))
    assert not any(isinstance(e, Escalate) for e in decide(state, 0.0, ROOM))
    settle_doomed(state)
    assert statuses(state) == {"a": "cancelled", "z": "failed", "ask": "cancelled"}
    assert (state.reviews, state.escalating) == ({}, {})
    assert isinstance(decide(state, 0.0, ROOM)[0], Finish)


def test_a_modify_that_takes_the_on_failure_away_lets_the_failure_settle() -> None:
    state = _escalating()
    patch(state, Modify(id="a", node=replace(state.plan.nodes[0], on_failure=None)))
    assert statuses(state)["a"] == "failed"
    assert state.failures == 1


def test_a_run_that_waits_for_a_retry_is_not_handed_to_a_human_yet() -> None:
    state = run(Node(id="ask", review=Review()), node("b", retry=RetryPolicy(max_attempts=2, delay_s=9.0)))
    fold(state, ReviewRequested(node="ask", attempt=1), *ran("b", FAILED))
    assert decide(state, 0.0, ROOM) == []


# ---------------------------------------------------------------- resume


def test_resume_does_not_bring_back_what_a_patch_took_out() -> None:
    state = fold(run(node("a"), node("b"), node("c", "b")), *ran("a", FAILED))
    patch(state, Remove(id="b", strategy="skip"))
    patch(state, Remove(id="c", strategy="bridge"))
    fold(state, RunEnded(status=RunStatus.FAILED, exit_code=1), EngineAttached(pid=2, revive=True))
    assert statuses(state)["b"] == "skipped"
    assert state.node_status[0] is Status.READY
    assert Start(2) not in effects(state)


def test_a_cancelled_run_that_is_patched_goes_on() -> None:
    state = run(node("a"), Node(id="ask", review=Review()))
    fold(state, ReviewRequested(node="ask", attempt=1), RunEnded(status=RunStatus.CANCELLED, exit_code=143))
    assert state.reviews == {}
    patch(state, Insert(id="n", node=node("n"), after=("a",)))
    assert state.status is RunStatus.INTERRUPTED
    assert statuses(state) == {"a": "ready", "ask": "ready", "n": "pending"}


def test_a_settled_run_with_a_proposal_waits_for_a_human() -> None:
    state = fold(run(node("a")), *ran("a"), PatchProposed(number=1, base=1))
    assert isinstance(decide(state, 0.0, ROOM)[0], Finish)
    assert decide(state, 0.0, ROOM)[0].status is RunStatus.NEEDS_REVIEW  # type: ignore[union-attr]


def test_a_parked_run_whose_last_question_is_answered_waits_for_nobody() -> None:
    state = run(Node(id="ask", review=Review()), Node(id="more", review=Review()), node("b", "ask"))
    fold(state, ReviewRequested(node="ask", attempt=1), ReviewRequested(node="more", attempt=1))
    fold(state, PatchProposed(number=1, base=1), RunEnded(status=RunStatus.NEEDS_REVIEW, exit_code=4))
    fold(state, ReviewDecided(node="ask", decision="approve"), ReviewDecided(node="more", decision="reject"))
    assert state.status is RunStatus.NEEDS_REVIEW
    fold(state, ProposalDecided(number=1, decision="reject"))
    assert (state.status, state.ended) == (RunStatus.INTERRUPTED, None)
    assert statuses(state) == {"ask": "completed", "more": "failed", "b": "ready"}


def test_an_answer_does_not_end_a_run_that_goes_on() -> None:
    state = run(Node(id="ask", review=Review()), node("b"))
    fold(state, ReviewRequested(node="ask", attempt=1), ReviewDecided(node="ask", decision="approve"))
    assert state.status is RunStatus.RUNNING


# ---------------------------------------------------------------- limits of patches of nodes


def _by_node(state: RunState, *operations: Operation) -> Verdict:
    verdict = judge(state, *operations, actor="node")
    if verdict.event is not None:
        fold(state, verdict.event)
    return verdict


def test_a_node_may_change_its_run_three_times() -> None:
    state = run(node("a"), node("b", "a"))
    for k in range(3):
        assert _by_node(state, Insert(id=f"n{k}", node=node("n"), after=("a",))).event is not None
    verdict = _by_node(state, Insert(id="n3", node=node("n"), after=("a",)))
    assert codes(verdict) == ["limit"]
    assert "limits.revisions is 3" in verdict.faults[0].message
    assert "limits: {revisions: 4}" in verdict.faults[0].hint
    assert judge(state, Insert(id="n3", node=node("n"), after=("a",))).event is not None, "people are not limited"


def test_growth_counts_from_the_nodes_at_the_start() -> None:
    state = run(node("a"), limits=Limits(growth=150, growth_nodes=2, revisions=99))
    many = [Insert(id=f"h{k}", node=node("h"), after=("a",)) for k in range(4)]
    verdict = judge(state, *many)
    assert verdict.event is not None
    fold(state, verdict.event)
    refused = _by_node(state, Insert(id="n", node=node("n"), after=("a",)))
    assert codes(refused) == ["limit"]
    assert "from 1, limits.growth allows 3" in refused.faults[0].message
    assert "growth: 600%" in refused.faults[0].hint
    fold(state, *ran("a"))
    assert _by_node(state, Remove(id="h0", strategy="bridge")).event is not None, "what shrinks is no growth"


def agent(name: str, *needs: str, costs: int = 100) -> Node:
    """An agent that can cost so much at most."""
    return Node(id=name, agent=Agent(prompt="x", model="v/m", max_tokens=costs), needs=needs, isolation="context")


def _worst(workflow: Workflow) -> int | None:
    """What the agents of a workflow can cost; nobody knows of one that asks for no tokens."""
    costs = [n.agent.max_tokens for n in workflow.nodes.values() if n.agent is not None]
    return None if 0 in costs else sum(costs)


def _dear(state: RunState, *operations: Operation, actor: str = "node") -> list[str]:
    """What is wrong with a patch of a node that may make the run dearer."""
    patched = Patch(operations=operations)
    verdict = admit(state, patched, by="node:x", actor=actor, cost=_worst)  # type: ignore[arg-type]
    assert (verdict.event is None) is bool(verdict.faults)
    return [f"{f.message} ({f.hint})" for f in verdict.faults]


def test_what_agents_can_cost_grows_no_more_than_nodes_may() -> None:
    state = run(agent("a"), agent("b"), node("c", "a", "b"))
    fits, too_much = agent("n", "a"), agent("n", "a", costs=101)
    assert _dear(state, Insert(id="n", node=fits)) == []
    (why,) = _dear(state, Insert(id="n", node=too_much))
    assert why == (
        "the agents of the run could cost $0.000000301 in all; from $0.0000002, limits.growth allows $0.0000003"
        " (raise it in the workflow: limits: {growth: 151%}, or let a human do it: dagrun replan)"
    )
    assert _dear(state, Insert(id="n", node=too_much), actor="human") == []
    dearer = agent("a", costs=201)
    assert len(_dear(state, Modify(id="a", node=dearer))) == 1
    assert _dear(state, Insert(id="n", node=node("n", "a"))) == [], "a command costs nothing"


def test_what_was_spent_counts_and_what_is_over_does_not() -> None:
    state = run(agent("a"), agent("b", "a"), limits=Limits(growth=130))
    spent = {"node": "a", "attempt": 1, "call": 1}
    asked = CallReserved(**spent, turn=1, model="v/m", max_tokens=9, digest="", amount=60, scopes=("node:a", "run"))  # type: ignore[arg-type]
    fold(state, started("a"), asked, CallEnded(**spent, spent=60), ended("a", FAILED))  # type: ignore[arg-type]
    assert _dear(state, Insert(id="n", node=agent("n", costs=101), before=("b",))) != []
    assert _dear(state, Insert(id="n", node=agent("n", costs=100), before=("b",))) == []
    assert _dear(state, Retry(id="a")) == []  # 60 are spent, and both can cost 100 each: 260
    assert _dear(state, Retry(id="a", node=agent("a", costs=101))) != []
    assert _dear(state, Fallback(id="a", node=agent("t", costs=100))) == []
    assert _dear(state, Fallback(id="a", node=agent("t", costs=101))) != []


def test_templates_were_foreseen() -> None:
    state = run(agent("a"), node("b", "a"), limits=Limits(growth=100), templates={"t": agent("t", costs=900)})
    fold(state, *ran("a", FAILED))
    assert _dear(state, Fallback(id="a", node=agent("t", costs=900))) == []
    assert _dear(state, Fallback(id="a", node=agent("t", costs=1001))) != []  # more than all that the file foresees


def test_what_nobody_knows_the_price_of() -> None:
    assert _dear(run(agent("a", costs=0)), Insert(id="n", node=agent("n", "a", costs=9999))) == []
    assert len(_dear(run(agent("a")), Insert(id="n", node=agent("n", "a", costs=0)))) == 1


@pytest.mark.parametrize("schedule", list(Schedule))
def test_a_node_may_not_take_back_what_was_done_in_the_same_wave(schedule: Schedule) -> None:
    state = run(node("a"), node("b"), node("c", "a"), schedule=schedule, limits=Limits(revisions=9))
    patch(state, Insert(id="n", node=node("n"), after=("a",)))
    patch(state, Rewire(id="c", old=("a",), new=("b",)))
    verdict = _by_node(state, Remove(id="n", strategy="bridge"))
    assert codes(verdict) == ["limit"]
    assert "insert of revision 2" in verdict.faults[0].message
    assert codes(_by_node(state, Rewire(id="c", old=("b",), new=("a",)))) == ["limit"]
    assert _by_node(state, Insert(id="m", node=node("m"), after=("b",), before=("c",))).event is not None
    fold(state, *ran("a"), *ran("b"))
    assert _by_node(state, Remove(id="n", strategy="bridge")).event is not None, "in another wave it may"


def test_a_node_may_not_change_the_limits_of_its_run() -> None:
    assert codes(_by_node(run(node("a")), SetLimits(parallel=99))) == ["not-allowed"]


@pytest.mark.parametrize(
    "op",
    [
        Remove(id="ask", strategy="bridge"),
        Remove(id="a", strategy="cascade"),
        Fallback(id="ask", node=Node(id="t", run="t")),
        Modify(id="ask", node=Node(id="ask", run="true", needs=("a",))),
        Rewire(id="b", old=("ask",), new=("a",)),
        Modify(id="b", node=node("b", "a")),
    ],
)
def test_a_node_may_not_lead_its_run_around_a_human(op: Operation) -> None:
    state = run(node("a"), Node(id="ask", review=Review(), needs=("a",)), node("b", "ask"))
    assert "not-allowed" in codes(judge(state, op, actor="node"))
    assert judge(state, op).event is not None, "people may"


def test_a_node_may_put_something_after_a_review() -> None:
    state = run(Node(id="ask", review=Review()), node("b", "ask"))
    assert _by_node(state, Insert(id="n", node=node("n"), after=("ask",), before=("b",))).event is not None


# ---------------------------------------------------------------- preview


def test_people_are_warned_of_growth_and_of_what_is_ended() -> None:
    state = fold(run(node("a")), started("a"))
    many = [Insert(id=f"h{k}", node=node("h"), after=("a",)) for k in range(12)]
    verdict = judge(state, *many, Retry(id="a", cancel_running=True))
    assert verdict.warnings == ["the run grows from 1 to 13 nodes", "ends what runs: a"]


# ---------------------------------------------------------------- undo


def _undone(state: RunState, revision: int) -> tuple[str, ...]:
    undo = inverse(state, revision)
    verdict = admit(state, undo.patch, by="ann", undoes=revision)
    assert verdict.event is not None, [f.message for f in verdict.faults]
    assert verdict.event.undoes == revision
    assert len(verdict.event.operations) == len(undo.patch.operations)
    fold(state, verdict.event)
    return undo.kept


def test_undo_revives_a_removed_node_under_its_id() -> None:
    state = run(node("a"), node("b", "a"), node("c", reads="nodes.b.out", optional=True))
    before = dict(state.plan.workflow.nodes)
    patch(state, Remove(id="b", strategy="bridge"))
    assert _undone(state, 2) == ()
    assert dict(state.plan.workflow.nodes) == before
    assert state.removed == {}
    assert statuses(state) == {"a": "ready", "b": "pending", "c": "pending"}


def test_undo_leaves_later_changes_and_what_has_started() -> None:
    state = run(node("a"), node("b", "a"), node("c", "b"))
    patch(
        state,
        Insert(id="n", node=node("n"), after=("a",), before=("b",)),
        Modify(id="c", node=node("c", "b", timeout_s=9.0)),
    )
    patch(state, Modify(id="b", node=replace(state.plan.workflow.nodes["b"], run="later")))
    patch(state, Modify(id="c", node=replace(state.plan.workflow.nodes["c"], timeout_s=12.0)))
    fold(state, *ran("a"), started("n"))
    kept = _undone(state, 2)
    assert kept == ("`c`: its timeout_s was changed again since", "`n` has started: it stays")
    assert (state.plan.workflow.nodes["b"].needs, state.plan.workflow.nodes["b"].run) == (("a",), "later")
    assert state.plan.workflow.nodes["c"].timeout_s == 12.0


def test_undo_of_a_fallback_tries_the_failed_node_again() -> None:
    state = fold(run(node("a"), node("b", reads="nodes.a.out")), *ran("a", FAILED))
    settle_doomed(state)
    patch(state, Fallback(id="a", node=Node(id="t", run="t")))
    assert _undone(state, 2) == ("`a` is tried again: its earlier result is not brought back",)
    assert statuses(state) == {"a": "ready", "b": "pending", "a-fallback": "cancelled"}
    assert state.plan.workflow.nodes["b"].inputs["x"].expression == "nodes.a.out"
    assert chain_length(state, 0) == 0


def test_undo_of_a_fallback_that_has_started_keeps_it_whole() -> None:
    state = fold(run(node("a"), node("b", reads="nodes.a.out")), *ran("a", FAILED))
    patch(state, Fallback(id="a", node=Node(id="t", run="t")))
    fold(state, started("a-fallback"))
    undo = inverse(state, 2)
    assert undo.patch.operations == ()
    assert len(undo.kept) == 3


def test_undo_of_a_skip_and_of_limits() -> None:
    state = run(node("a"), node("b", "a"))
    patch(state, Remove(id="a", strategy="skip"), SetLimits(parallel=1, resources={"gpu": 1.0}))
    assert _undone(state, 2) == ()
    assert statuses(state) == {"a": "ready", "b": "pending"}
    assert state.plan.workflow.limits == Limits()


def test_undo_can_be_undone() -> None:
    state = run(node("a"), node("b", "a"), node("c", "b"))
    patch(state, Remove(id="b", strategy="bridge"))
    _undone(state, 2)
    _undone(state, 3)
    assert set(state.plan.workflow.nodes) == {"a", "c"}
    assert state.plan.workflow.nodes["c"].needs == ("a",)


@pytest.mark.parametrize("revision", [0, 1, 3])
def test_a_revision_that_no_patch_made_cannot_be_undone(revision: int) -> None:
    state = run(node("a"))
    patch(state, SetLimits(parallel=1))
    with pytest.raises(ValueError, match="there is no revision"):
        inverse(state, revision)


# ---------------------------------------------------------------- the race with a finish


@pytest.mark.parametrize("kind", ["remove", "modify", "retry", "fallback"])
@pytest.mark.parametrize("finish_first", [False, True])
def test_a_patch_while_its_target_finishes_is_before_or_after_it(kind: str, finish_first: bool) -> None:
    state = _in(Status.RUNNING)
    verdict = judge(state, OPERATIONS[kind](True))
    assert verdict.event is not None
    done = AttemptFinished(node="b", attempt=1, outcome=OK, outputs={"out": {"v": 1}})
    fold(state, *((done, verdict.event) if finish_first else (verdict.event, done)))
    assert (1 in state.outputs) == finish_first
    assert (statuses(state)["b"] == "completed") == finish_first
    assert state.plan.revision == 2


def test_a_start_on_the_plan_before_the_patch_is_no_start() -> None:
    state = fold(run(node("a"), node("b", "a")), *ran("a"))
    patch(state, Insert(id="n", node=node("n"), after=("a",), before=("b",)))
    with pytest.raises(InvalidTransition):
        evolve(state, NodeStarted(node="b", attempt=1), 1001.0, 1.0)


def test_a_record_on_the_wrong_head_is_an_error() -> None:
    with pytest.raises(InvalidTransition, match="revision 3 admitted on revision 1"):
        evolve(run(node("a")), PatchAdmitted(revision=3, base=2), 1001.0, 1.0)

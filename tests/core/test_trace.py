"""Trace entries, totals and the path that took the time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from heapq import heappop, heappush
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagrun.core.decide import Append, Finish, Room, Start, decide
from dagrun.core.event import (
    AttemptFinished,
    EngineAttached,
    Event,
    NodeAdopted,
    NodeSkipped,
    NodeStarted,
    PatchAdmitted,
    ReviewRequested,
    RunCreated,
    RunEnded,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import Outcome, RunStatus, Schedule, Status
from dagrun.core.plan import compile_plan
from dagrun.core.state import RunState, new_state
from dagrun.core.trace import (
    cause,
    entry_to_json,
    iso_utc,
    run_duration_ms,
    totals,
    trace_entries,
    trace_entry,
    trace_to_json,
)
from dagrun.core.tracepath import node_spans, run_critical_path
from dagrun.core.workflow import Node, Retry, Workflow, node_to_json

BEGIN = 1_700_000_000.0
SEED = (
    "node_id wave status model skills_used input_tokens output_tokens cost_usd duration_ms retries output_summary"
).split()
OURS = (
    "run_id revision kind isolation attempts reserved_usd error reason inputs_digest outputs_digest removed_in"
).split()


def node(name: str, *needs: str, **kw: object) -> Node:
    return Node(id=name, run="true", needs=needs, **kw)  # type: ignore[arg-type]


class Run:
    """A run made of events; `at` moves its clock."""

    def __init__(self, *nodes: Node, schedule: Schedule = Schedule.READY) -> None:
        plan = compile_plan(Workflow(name="rel", nodes={n.id: n for n in nodes}, schedule=schedule))
        created = RunCreated(format=1, run_id="r7k2", workflow="rel", schedule=schedule)
        self.state: RunState = new_state(plan, created, BEGIN)
        self.seconds = 0.0
        self.tell(EngineAttached(pid=1, parallel=4))

    def at(self, seconds: float) -> Run:
        self.seconds = seconds
        return self

    def tell(self, *events: Event) -> Run:
        for event in events:
            evolve(self.state, event, BEGIN + self.seconds, 50 + self.seconds)
        return self

    def start(self, *names: str) -> Run:
        for name in names:
            done = len(self.state.attempts[self.state.plan.index[name]])
            self.tell(NodeStarted(node=name, attempt=done + 1, inputs_digest="in"))
        return self

    def end(self, name: str, outcome: Outcome = Outcome.COMPLETED, **kw: object) -> Run:
        attempt = self.state.attempts[self.state.plan.index[name]][-1]
        took = round((50 + self.seconds - attempt.started_m) * 1000)
        event = AttemptFinished(node=name, attempt=attempt.number, outcome=outcome, duration_ms=took, **kw)  # type: ignore[arg-type]
        return self.tell(event)

    def path(self) -> list[tuple[str, str]]:
        return [(step.node_id, step.held_by) for step in run_critical_path(self.state)]


def test_the_seeds_fields_come_first() -> None:
    run = Run(node("a", title="the a")).start("a").at(1.5).end("a", summary="done", stdout_bytes=5)
    data = entry_to_json(trace_entries(run.state)[0])
    assert list(data)[: len(SEED)] == SEED
    assert list(data)[len(SEED) : len(SEED) + len(OURS)] == OURS
    assert {name: data[name] for name in SEED} == {
        "node_id": "a",
        "wave": 1,
        "status": "completed",
        "model": None,
        "skills_used": [],
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": 0.0,
        "duration_ms": 1500,
        "retries": 0,
        "output_summary": "done",
    }
    assert data["attempts"] == [
        {
            "number": 1,
            "outcome": "completed",
            "started_at": "2023-11-14T22:13:20.000Z",
            "duration_ms": 1500,
            "exit_code": None,
            "signal": None,
            "error": "",
            "limit": "",
            "max_rss_bytes": None,
            "cpu_ms": None,
        }
    ]
    assert (data["kind"], data["title"], data["stdout_bytes"], data["removed_in"]) == ("run", "the a", 5, None)


def test_tries_add_up_without_the_delay_between_them() -> None:
    run = Run(node("a", retry=Retry(max_attempts=2))).start("a").at(2).end("a", Outcome.FAILED, exit_code=3)
    entry = trace_entry(run.state, 0)
    assert (entry.status, entry.error, entry.retries) == (Status.RETRYING, "exit 3", 0)
    entry = trace_entry(run.at(10).start("a").at(11).end("a").state, 0)
    assert (entry.duration_ms, entry.retries, entry.error) == (3000, 1, "")
    assert [a.error for a in entry.attempts] == ["exit 3", ""]


def test_a_running_attempt_gets_older() -> None:
    run = Run(node("a"), node("b")).start("a").at(4).start("b")
    assert trace_entry(run.state, 0).duration_ms == 4000
    assert trace_entry(run.state, 0, wall_now=BEGIN + 9).duration_ms == 9000
    assert trace_entry(run.state, 0, wall_now=BEGIN - 9).duration_ms == 0
    assert trace_entry(run.state, 0).attempts[0].outcome is None


@pytest.mark.parametrize(
    ("outcome", "kw", "why"),
    [
        (Outcome.FAILED, {"exit_code": 2}, "exit 2"),
        (Outcome.FAILED, {"signal": 9}, "signal 9 (SIGKILL)"),
        (Outcome.FAILED, {"signal": 63}, "signal 63"),
        (Outcome.FAILED, {"exit_code": 2, "error": "no such file"}, "no such file"),
        (Outcome.FAILED, {}, "failed"),
        (Outcome.TIMED_OUT, {"signal": 15}, "timed out after 5m00s"),
        (Outcome.OVER_LIMIT, {"limit": "output"}, "over its output limit"),
        (Outcome.LOST, {}, "lost when dagrun was killed"),
        (Outcome.INVALID_OUTPUT, {}, "invalid output"),
    ],
)
def test_a_failed_node_says_why(outcome: Outcome, kw: dict[str, object], why: str) -> None:
    finish = AttemptFinished(node="a", attempt=1, outcome=outcome, **kw)  # type: ignore[arg-type]
    assert cause(finish, node("a")) == why
    run = Run(node("a", idempotent=False)).start("a").end("a", outcome, **kw)
    assert trace_entry(run.state, 0).error == why


def test_what_did_not_run_says_why() -> None:
    run = Run(node("a"), node("b", "a"), node("c"), node("d"))
    run.tell(NodeAdopted(node="d", run_id="q1q1", outputs={"x": {"v": 1}}))
    run.tell(NodeSkipped(node="c", reason="condition", text="params.x"))
    run.start("a").end("a", Outcome.CANCELLED, error="fail_fast: z failed")
    for effect in decide(run.state, 50, Room(1, {})):
        if isinstance(effect, Append):
            run.tell(effect.event)
    reasons = {e.node_id: e.reason for e in trace_entries(run.state)}
    assert reasons == {
        "a": "fail_fast: z failed",
        "b": "dependency: a was cancelled",
        "c": "condition: params.x",
        "d": "adopted from run q1q1",
    }


def test_reviews_and_removed_nodes() -> None:
    run = Run(node("gate"), node("b"), node("c"))
    run.tell(ReviewRequested(node="gate", attempt=1, message="go?"))
    run.tell(PatchAdmitted(revision=2, base=1, removed=("b",)))
    entries = {e.node_id: e for e in trace_entries(run.state)}
    assert entries["gate"].reason == "waits for review: go?"
    assert (entries["b"].removed_in, entries["b"].reason) == (2, "removed in revision 2")
    assert totals(run.state)["nodes"] == 2


def test_digests_depend_on_the_outputs_alone() -> None:
    def digest(outputs: dict[str, object]) -> str:
        return trace_entry(Run(node("a")).start("a").end("a", outputs=outputs).state, 0).outputs_digest

    assert digest({"x": {"v": 1}, "y": {"v": 2}}) == digest({"y": {"v": 2}, "x": {"v": 1}})
    assert digest({"x": {"v": 1}}) != digest({"x": {"v": 2}})
    assert digest({}) == ""
    assert len(digest({"x": {"v": 1}})) == 64


def test_entries_come_by_wave_then_as_in_the_file() -> None:
    run = Run(node("late", "b"), node("b"), node("a"))
    assert [e.node_id for e in trace_entries(run.state)] == ["b", "a", "late"]


def test_a_node_keeps_the_wave_of_the_revision_it_started_in() -> None:
    run = Run(node("a"), node("b", "a", condition="false"), node("c", "b", condition="always()"), node("z", "c"))
    run.start("a").end("a").tell(NodeSkipped(node="b", reason="condition")).start("c").end("c")
    new = {n.id: node_to_json(n) for n in (node("d", "a"), node("b", "a", "d"))}
    run.tell(PatchAdmitted(revision=2, base=1, nodes=new))
    assert {e.node_id: (e.wave, e.revision) for e in trace_entries(run.state)} == {
        "a": (1, 1),
        "d": (2, 2),
        "b": (3, 2),
        "c": (3, 1),  # there it was when it ran, though `b` is deeper now
        "z": (5, 2),
    }



def test_totals_and_the_whole_trace() -> None:
    run = Run(node("a", retry=Retry(max_attempts=2)), node("b", "a"))
    run.start("a").at(2).end("a", Outcome.FAILED).at(4).start("a").at(5).end("a").start("b").at(6).end("b")
    run.tell(RunEnded(status=RunStatus.COMPLETED, exit_code=0, outputs={"r": 1}))
    whole = trace_to_json(run.state)
    assert json.loads(json.dumps(whole)) == whole
    assert list(whole) == ["version", "run", "entries"]
    head = whole["run"]
    assert isinstance(head, dict)
    assert head["totals"] == {
        "nodes": 2,
        "waves": 2,
        "by_status": {"completed": 2},
        "duration_ms": 6000,
        "worked_ms": 4000,
        "attempts": 3,
        "retries": 1,
        "model_calls": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "cost_usd": 0.0,
        "reserved_usd": 0.0,
        "cost_budget_usd": None,
    }
    assert (head["status"], head["exit_code"], head["outputs"], head["critical_path"]) == (
        "completed",
        0,
        {"r": 1},
        ["a", "b"],
    )
    assert trace_to_json(run.state, status=RunStatus.CRASHED)["run"]["status"] == "crashed"  # type: ignore[index,call-overload]


def test_how_long_a_run_takes() -> None:
    run = Run(node("a")).at(7).start("a")
    assert run_duration_ms(run.state) == 7000
    assert run_duration_ms(run.state, BEGIN + 30) == 30_000
    run.at(100).tell(EngineAttached(pid=2))
    assert run_duration_ms(run.state) == 100_000


def test_the_path_goes_by_needs() -> None:
    run = Run(node("a"), node("b"), node("c", "a", "b")).start("a", "b")
    run.at(2).end("b").at(5).end("a").start("c").at(6).end("c")
    assert run.path() == [("a", "start"), ("c", "need")]


def test_the_path_goes_by_the_barrier() -> None:
    run = Run(node("a"), node("b"), node("c", "a"), schedule=Schedule.WAVES).start("a", "b")
    run.at(2).end("a").at(9).end("b").start("c").at(10).end("c")
    assert run.path() == [("b", "start"), ("c", "wave")]


def test_the_path_goes_by_slots() -> None:
    run = Run(node("a"), node("b"), node("c")).start("a").at(3).end("a").start("b").at(5).end("b")
    assert run.path() == [("a", "start"), ("b", "slot")]
    assert [(s.start_s, s.end_s) for s in run_critical_path(run.state)] == [(0.0, 3.0), (3.0, 5.0)]
    assert Run(node("a")).path() == []


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 14), max_size=3), st.integers(0, 9)), min_size=1, max_size=15),
    st.integers(1, 4),
    st.sampled_from(Schedule),
)
@example([([], 0), ([], 0), ([], 0), ([], 0), ([0], 0), ([], 1), ([4], 0)], 1, Schedule.WAVES)
def test_the_path_covers_the_run_without_a_gap(
    shape: list[tuple[list[int], int]], parallel: int, schedule: Schedule
) -> None:
    nodes = [node(f"n{k}", *dict.fromkeys(f"n{d}" for d in needs if d < k)) for k, (needs, _) in enumerate(shape)]
    run = Run(*nodes, schedule=schedule)
    ends: list[tuple[float, int]] = []
    while True:
        effects = decide(run.state, 50 + run.seconds, Room(parallel, {}))
        if effects and isinstance(effects[0], Finish):
            break
        for effect in effects:
            assert isinstance(effect, Start)
            run.start(f"n{effect.node}")
            heappush(ends, (run.seconds + shape[effect.node][1], effect.node))
        if not effects:
            seconds, i = heappop(ends)
            run.at(seconds).end(f"n{i}")
    path = run_critical_path(run.state)
    begin, spans = node_spans(run.state)
    assert path[0].start_s == 0.0
    assert path[-1].end_s == max(end for _, end in spans.values()) - begin
    assert all(after.start_s == before.end_s for before, after in pairwise(path))
    assert len({step.node for step in path}) == len(path)


@given(st.integers(0, 4_102_444_800_000))
def test_iso_utc(ms: int) -> None:
    wanted = datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"
    assert iso_utc(ms / 1000) == wanted

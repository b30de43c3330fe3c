"""A failure that waits for the answer of a model: how it is held open, and what ends that, after any crash."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.agent.structured import violations
from dagrun.core import expression as ex
from dagrun.core.consent import new_commands, only_reads, reasons_for_human
from dagrun.core.decide import Append, Cancel, Escalate, Finish, Room, Start, decide
from dagrun.core.event import (
    AttemptFinished,
    EngineAttached,
    EscalationFailed,
    Event,
    NodeStarted,
    PatchAdmitted,
    ProposalDecided,
    ReviewRequested,
    RunEnded,
    StopRequested,
    decode,
    encode,
)
from dagrun.core.evolve import evolve
from dagrun.core.lattice import effective
from dagrun.core.names import SETTLED, Json, Outcome, RunStatus, Schedule, Status
from dagrun.core.patch import Fallback, Insert, Modify, Operation, Patch, Remove, Rerun, Retry, Rewire, Trigger
from dagrun.core.permissions import Paths, Permissions
from dagrun.core.plan import compile_plan
from dagrun.core.reading import literal
from dagrun.core.replan import admit, proposal
from dagrun.core.replanner import GUIDE, SCHEMA, document, neighbourhood, not_now, question, reason_of, replanner
from dagrun.core.state import RunState, new_state
from dagrun.core.workflow import Agent, Input, Limits, Node, OnFailure, Output, Review, Workflow
from tests.core.strategies import begin, created, ended, ran, started
from tests.core.test_patch import node
from tests.core.test_replan_laws import check_patched

OK, FAILED = Outcome.COMPLETED, Outcome.FAILED
ROOM = Room(2, {})
ASKS = OnFailure(replanner=Agent(prompt="Mend it."))
SPARE = replace(node("spare"), run="echo spare")
TRIGGER = Trigger(type="failure", node="b")


def run(*nodes: Node, schedule: Schedule = Schedule.WAVES, limits: Limits | None = None, **more: object) -> RunState:
    workflow = Workflow(
        name="w",
        nodes={n.id: n for n in nodes},
        schedule=schedule,
        limits=limits or Limits(),
        templates={"spare": SPARE},
    )
    return begin(compile_plan(replace(workflow, **more)))  # type: ignore[arg-type]


def fold(state: RunState, *events: Event) -> RunState:
    for event in events:
        evolve(state, event, 1000.0, 0.0)
        check_patched(state)
    return state


def chain(**more: object) -> RunState:
    """a → b → c, where `b` has failed and asks its replanner."""
    state = run(node("a"), node("b", "a", on_failure=ASKS), node("c", "b"), node("x", "a"), **more)  # type: ignore[arg-type]
    fold(state, *ran("a"), *ran("b", FAILED))
    return ask(state, 1)


def ask(state: RunState, i: int) -> RunState:
    assert escalation(state) == Escalate(i, "replanner")
    wanted = state.plan.nodes[i].on_failure
    assert wanted is not None
    assert wanted.replanner is not None
    return fold(state, question(state, i, wanted.replanner, {"stderr": "boom"}, TRIGGER))


def escalation(state: RunState) -> Escalate | None:
    return next((e for e in decide(state, 1e9, ROOM) if isinstance(e, Escalate)), None)


def due(state: RunState) -> list[object]:
    """What is to be done, once the engine goes by the head and what follows from the state alone has happened."""
    while appended := [e.event for e in decide(state, 1e9, ROOM) if isinstance(e, Append)]:
        fold(state, *appended)
    return list(decide(state, 1e9, ROOM))


def status(state: RunState, name: str) -> Status:
    return state.node_status[state.plan.index[name]]


def judged(state: RunState, *operations: Operation) -> PatchAdmitted:
    verdict = admit(state, Patch(operations=operations), by="node:b-replanner", actor="node")
    assert verdict.event is not None, [f.message for f in verdict.faults]
    return verdict.event


# ---------------------------------------------------------------- held open


def test_the_failure_is_held_open_while_its_replanner_works() -> None:
    state = chain()
    assert [str(status(state, n)) for n in ("b", "c")] == ["retrying", "pending"]
    assert escalation(state) is None
    wave, index = state.plan.wave, state.plan.index
    assert wave[index["b-replanner"]] == wave[index["b"]] == state.wave
    starts = {state.plan.ids[e.node] for e in decide(state, 1e9, ROOM) if isinstance(e, Start)}
    assert starts == {"x", "b-replanner"}  # the rest of the wave is not held back
    fold(state, *ran("x"), started("b-replanner"))
    assert due(state) == []
    fold(state, ended("b-replanner"))
    assert escalation(state) == Escalate(1, "replanner")


@pytest.mark.parametrize("outcome", [OK, FAILED, Outcome.TIMED_OUT, Outcome.OVER_BUDGET, Outcome.INVALID_OUTPUT])
def test_however_the_replanner_ends_the_failure_is_due_again(outcome: Outcome) -> None:
    state = chain()
    fold(state, started("b-replanner"), ended("b-replanner", outcome))
    assert escalation(state) == Escalate(1, "replanner")
    assert state.failures == 0  # nothing of the replanner's own counts
    fold(state, EscalationFailed(node="b", step="replanner", text="no help"))
    assert (status(state, "b"), state.failures, state.asking) == (Status.FAILED, 1, {})


def test_a_lost_replanner_is_asked_again() -> None:
    state = chain()
    fold(state, started("b-replanner"), EngineAttached(pid=2), ended("b-replanner", Outcome.LOST))
    assert escalation(state) is None
    assert "b-replanner" in [state.plan.ids[e.node] for e in decide(state, 1e9, ROOM) if isinstance(e, Start)]


def test_an_interrupt_leaves_the_question_open() -> None:
    state = chain()
    fold(state, started("b-replanner"), StopRequested(cause="sigint", mode="now"))
    fold(state, ended("b-replanner", Outcome.CANCELLED))
    fold(state, RunEnded(status=RunStatus.INTERRUPTED, exit_code=130), EngineAttached(pid=2))
    assert state.asking == {1: state.plan.index["b-replanner"]}
    assert "b-replanner" in [state.plan.ids[e.node] for e in decide(state, 1e9, ROOM) if isinstance(e, Start)]


@pytest.mark.parametrize("at", ["before", "running", "answered"])
def test_after_a_cancel_the_node_is_tried_anew_and_no_answer_is_paid_for(at: str) -> None:
    state = chain()
    if at != "before":
        fold(state, started("b-replanner"))
    if at == "answered":
        fold(state, ended("b-replanner"))
    fold(state, StopRequested(cause="cancel", mode="now"))
    if at == "running":
        fold(state, ended("b-replanner", Outcome.CANCELLED))
    fold(state, RunEnded(status=RunStatus.CANCELLED, exit_code=143), EngineAttached(pid=2, revive=True))
    starts = {state.plan.ids[e.node] for e in due(state) if isinstance(e, Start)}
    assert starts == {"b", "x"}
    assert status(state, "b-replanner") is (Status.COMPLETED if at == "answered" else Status.SKIPPED)
    fold(state, started("b", 2), ended("b", OK, 2), *ran("x"), *ran("c"))
    assert due(state) == [Finish(RunStatus.COMPLETED, 0, "")]


# ---------------------------------------------------------------- what ends it


@pytest.mark.parametrize(
    ("operations", "become"),
    [
        ([Retry(id="b")], {"b": Status.READY, "c": Status.PENDING}),
        ([Fallback(id="b", node=SPARE)], {"b": Status.SUPERSEDED, "b-fallback": Status.READY, "c": Status.PENDING}),
        ([Remove(id="b", strategy="skip")], {"b": Status.SKIPPED}),
        ([Remove(id="b", strategy="bridge")], {"c": Status.READY}),
    ],
)
def test_a_patch_that_handles_the_failure_ends_the_question(
    operations: list[Operation], become: dict[str, Status]
) -> None:
    state = chain()
    fold(state, *ran("b-replanner"), judged(state, *operations))
    assert (state.asking, state.escalating, escalation(state)) == ({}, {}, None)
    assert {n: status(state, n) for n in become} == become
    assert state.inserted_by == ({"b-fallback": "b-replanner"} if "b-fallback" in become else {})


def test_a_rerun_of_what_came_before_does_not_ask_again() -> None:
    state = chain()
    fold(state, *ran("b-replanner"), judged(state, Rerun(id="a")))
    assert status(state, "b-replanner") is Status.COMPLETED
    assert status(state, "a") is Status.READY
    assert status(state, "b") is Status.PENDING


@pytest.mark.parametrize("at", ["ready", "running", "answered"])
def test_a_human_who_is_quicker_ends_the_question(at: str) -> None:
    state = chain()
    i = state.plan.index["b-replanner"]
    if at != "ready":
        fold(state, started("b-replanner"))
    if at == "answered":
        fold(state, ended("b-replanner"))
    verdict = admit(state, Patch(operations=(Retry(id="b"),)), by="ann")
    assert verdict.event is not None
    fold(state, verdict.event)
    assert state.asking == {}
    if at == "running":
        assert Cancel(i, "replanned") in decide(state, 1e9, ROOM)
        fold(state, ended("b-replanner", Outcome.CANCELLED))
    elif at == "ready":
        fold(state, *[e.event for e in decide(state, 1e9, ROOM) if isinstance(e, Append)])
    assert state.node_status[i] is (Status.COMPLETED if at == "answered" else Status.SKIPPED)
    fold(state, started("b", 2), ended("b", OK, 2), *ran("x"), *ran("c"))
    assert due(state) == [Finish(RunStatus.COMPLETED, 0, "")]


def test_another_on_failure_means_its_first_step() -> None:
    state = chain()
    fold(state, started("b-replanner"))
    changed = replace(state.plan.nodes[1], on_failure=OnFailure(review=Review()))
    verdict = admit(state, Patch(operations=(Modify(id="b", node=changed),)), by="ann")
    assert verdict.event is not None
    fold(state, verdict.event)
    assert escalation(state) == Escalate(1, "review")
    fold(state, ReviewRequested(node="b", attempt=1), ended("b-replanner", Outcome.CANCELLED))
    assert (escalation(state), status(state, "b-replanner")) == (None, Status.SKIPPED)


def test_fail_fast_gives_up_the_question_too() -> None:
    state = chain(fail_fast=True)
    fold(state, started("b-replanner"), *ran("x", FAILED))
    found = decide(state, 1e9, ROOM)
    assert any(isinstance(e, Cancel) and state.plan.ids[e.node] == "b-replanner" for e in found)
    fold(state, *[e.event for e in found if isinstance(e, Append)], ended("b-replanner", Outcome.CANCELLED))
    assert (status(state, "b"), state.asking) == (Status.CANCELLED, {})
    assert due(state) == [Finish(RunStatus.FAILED, 1, "")]


# ---------------------------------------------------------------- proposals


def offered() -> RunState:
    state = chain()
    fold(state, *ran("x"), *ran("b-replanner"))
    return fold(state, proposal(state, Patch(operations=(Retry(id="b"),)), "node:b-replanner", "a command"))


def test_a_proposal_holds_the_failure_until_a_human_has_decided() -> None:
    state = offered()
    assert escalation(state) is None
    assert due(state) == [Finish(RunStatus.NEEDS_REVIEW, 4, "waiting for a human: proposal 1")]
    assert status(state, "c") is Status.PENDING


def test_a_rejected_proposal_leaves_the_failure_to_the_next_step() -> None:
    state = fold(offered(), ProposalDecided(number=1, decision="reject", by="ann"))
    assert escalation(state) == Escalate(1, "replanner")
    fold(state, EscalationFailed(node="b", step="replanner"))
    assert (status(state, "b"), state.offers) == (Status.FAILED, {})


def test_an_approved_proposal_mends_it() -> None:
    state = offered()
    verdict = admit(state, Patch(operations=(Retry(id="b"),)), by="ann", maker="node:b-replanner")
    assert verdict.event is not None
    fold(state, verdict.event, ProposalDecided(number=1, decision="approve", by="ann"))
    assert (escalation(state), state.offers, status(state, "b")) == (None, {}, Status.READY)


def test_a_proposal_of_a_command_holds_nothing() -> None:
    state = chain()
    fold(state, *ran("x"), proposal(state, Patch(operations=(Retry(id="b"),)), "node:x", "a command"))
    assert state.offers == {}


# ---------------------------------------------------------------- bounds


def test_it_is_asked_as_often_as_the_chain_allows() -> None:
    state = chain(limits=Limits(fallback_chain=2, revisions=9))
    for number, name in ((2, "b-replanner"), (3, "b-replanner-2")):
        fold(state, *ran(name), judged(state, Retry(id="b")), started("b", number), ended("b", FAILED, number))
        if number == 2:
            assert not_now(state, 1) == ""
            ask(state, 1)
    assert not_now(state, 1).startswith("its replanner was asked 2 times")


def test_nothing_is_asked_when_no_patch_could_follow() -> None:
    state = run(node("b", on_failure=ASKS), limits=Limits(revisions=0))
    fold(state, *ran("b", FAILED))
    assert "limits.revisions is 0" in not_now(state, 0)


def test_replanners_are_no_growth() -> None:
    limits = Limits(growth=100, growth_nodes=1, revisions=9, fallback_chain=9)
    state = chain(limits=limits)
    fold(state, *ran("b-replanner"))
    fold(state, judged(state, Insert(id="new", node=SPARE, after=("a",))))  # from 4 to 5: as many as there may be
    verdict = admit(
        state, Patch(operations=(Insert(id="more", node=SPARE, after=("a",)),)), by="node:b-replanner", actor="node"
    )
    assert [f.code for f in verdict.faults] == ["limit"]
    assert "6 nodes; from 4" in verdict.faults[0].message


# ---------------------------------------------------------------- the node that asks


def made(failed: Node, agent: Agent | None = None, permissions: Permissions | None = None) -> Node:
    workflow = Workflow(name="w", nodes={failed.id: failed}, permissions=permissions)
    return replanner(workflow, failed, agent or Agent(prompt="Mend it."), "b-replanner", {"stderr": "x"})


def test_a_replanner_may_do_no_more_than_the_failed_node() -> None:
    inside = Permissions(paths=Paths(read=("src",), write=("out",)), models=("cheap",), cost_budget=5)
    found = made(node("b", permissions=inside))
    assert found.permissions is not None
    assert found.permissions.paths == Paths(read=("src",), write=("out",))
    assert (found.permissions.models, found.permissions.network, found.permissions.cost_budget) == (
        ("cheap",),
        "none",
        5,
    )
    assert effective(None, found.permissions, found.isolation).isolation == "process"  # only there can paths be held


def test_a_replanner_of_a_plain_command_needs_no_sandbox() -> None:
    found = made(node("b"))
    assert (found.permissions, found.isolation) == (None, "context")
    assert made(node("b"), Agent(tools=("Bash",))).isolation == "process"


def test_a_replanner_of_a_container_is_held_to_what_that_saw() -> None:
    found = made(node("b", isolation="container"))
    assert found.permissions is not None
    assert effective(None, found.permissions, found.isolation).isolation == "process"
    assert (found.permissions.paths, found.permissions.network) == (Paths(read=(".",), write=()), "none")


def test_the_words_of_the_author_come_first_and_ours_hold_no_expression() -> None:
    agent = made(node("b")).agent
    assert agent is not None
    assert agent.prompt.startswith("Mend it.\n\n")
    assert agent.prompt.endswith(GUIDE)
    assert "${{" not in GUIDE
    assert made(node("b"), Agent()).agent == Agent(prompt=GUIDE)


def test_what_is_shown_of_the_graph_is_near_and_bounded() -> None:
    many = [node(f"n{k}", "b") for k in range(100)]
    state = run(node("a"), node("b", "a", on_failure=ASKS), *many)
    fold(state, *ran("a"), *ran("b", FAILED))
    shown = neighbourhood(state, 1, 40)
    assert (len(shown), list(shown)[:2]) == (40, ["b", "a"])
    assert shown["b"] == {"status": "failed", "needs": ["a"], "outputs": ["out"]}


TEXTS = st.text(alphabet=st.sampled_from("${} '\"\\\nab}"), max_size=40) | st.sampled_from(
    ["${{ secrets.X }}", "$${{", "${{${{ '", "}}${{ params.a }}", "${{ '${{' }}"]
)
VALUES: st.SearchStrategy[Json] = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_evidence_is_rendered_to_itself_whatever_it_says(value: Json) -> None:
    assert ex.render_value(literal(value), ex.Scope()) == value


def test_long_evidence_is_no_longer_than_it_may_be() -> None:
    text = "${{ secrets.TOKEN }} " * 2000
    assert ex.render_value(literal(text), ex.Scope()) == text


# ---------------------------------------------------------------- the answer


def test_the_schema_takes_what_a_patch_can_say_and_is_small() -> None:
    operations: list[Json] = [
        {"retry": {"id": "b", "set": {"timeout": "10m"}, "unset": ["env.A"]}},
        {"fallback": {"id": "b", "with": "spare"}},
        {"fallback": {"id": "b", "with": {"run": "x"}}},
        {"insert": {"id": "n", "node": {"run": ["x"]}, "after": ["a"], "before": ["c"]}},
        {"remove": {"id": "b", "strategy": "bridge", "input_map": {"nodes.b.o": "nodes.a.o"}}},
        {"rewire": {"id": "c", "old": ["b"], "new": ["a"], "root": True}},
        {"modify": {"id": "c", "set": {"timeout": 5}}},
        {"alternative": {"blocked": ["b"], "nodes": {"n": {"run": "x"}}, "exits": ["n"]}},
        {"rerun": {"id": "a"}},
    ]
    assert violations({"reason": "so", "operations": operations}, SCHEMA) == ()
    assert violations({"reason": "so", "operations": []}, SCHEMA) == ()
    assert len(json.dumps(SCHEMA)) < 4000


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ({"set_limits": {"parallel": 9}}, '"set_limits" is not allowed'),
        ({"workflow": {"set": {}}}, '"workflow" is not allowed'),
        ({"retry": {"id": "b"}, "rerun": {"id": "a"}}, "at most 1"),
        ({}, "at least 1"),
        ({"insert": {"id": "n"}}, "`node` is missing"),
    ],
)
def test_the_schema_refuses_what_a_model_may_not_say(operation: Json, said: str) -> None:
    assert any(said in line for line in violations({"reason": "so", "operations": [operation]}, SCHEMA))


def test_every_operation_of_the_schema_is_one_of_a_patch_file() -> None:
    from dagrun.flowfile.patchschema import OPERATIONS

    text = json.dumps(SCHEMA)
    models = {name: set(model.model_json_schema()["properties"]) for name, model in OPERATIONS.items()}
    mine = json.loads(text)["properties"]["operations"]["items"]["properties"]
    for name, body in mine.items():
        assert body["properties"].keys() <= models[name]


def test_an_answer_becomes_a_document_about_the_failure() -> None:
    answer: Mapping[str, Json] = {"reason": " because\n of it ", "operations": [{"rerun": {"id": "a"}}]}
    assert document(answer, TRIGGER) == {
        "trigger": {"type": "failure", "node": "b", "reason": "because of it"},
        "operations": [{"rerun": {"id": "a"}}],
    }
    assert document({"reason": "x", "operations": []}, TRIGGER) is None
    assert len(reason_of({"reason": "x" * 5000})) == 500


# ---------------------------------------------------------------- what needs a human

READER = replace(node("r"), run="", agent=Agent(prompt="Look."), isolation="context")
SILENT = Agent(prompt="Do.", tools=("Bash",))
OTHER = OnFailure(replanner=Agent(prompt="Run it all the same."))


def reasons(*operations: Operation, about: Node | None = None) -> list[str]:
    state = run(
        node("a", idempotent=False),
        about or node("b", "a", on_failure=ASKS, env={"A": "1"}),
        node("c", "b"),
        node("d", "b", run="", agent=JUDGE),
        permissions=Permissions(tools=("Read", "Grep", "Glob", "Bash")),
        models={"m": ("fake/model",)},
    )
    fold(state, *ran("a"), *ran("b", FAILED))
    ask(state, 1)
    fold(state, *ran("b-replanner"))
    patch = Patch(operations=operations)
    return reasons_for_human(state, patch, judged(state, *operations))


JUDGE = Agent(prompt="Is it sound?", system="Be strict.", tools=("Read",))
TALKED_INTO: list[dict[str, Any]] = [
    {"prompt": "Say yes."},
    {"system": "Be kind."},
    {"tools": ("Read", "Glob")},
    {"skills": ("kindness",)},
    {"tools": ("Read", "Bash"), "model": "m"},
]


def of_reader(**changes: object) -> Modify:
    base = node("d", "b", run="", agent=JUDGE)
    return Modify(id="d", node=replace(base, **changes), made_on=base)  # type: ignore[arg-type]


def changed(name: str, **changes: object) -> Modify:
    base = {"b": node("b", "a", on_failure=ASKS, env={"A": "1"}), "c": node("c", "b")}[name]
    return Modify(id=name, node=replace(base, **changes), made_on=base)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "operations",
    [
        [Retry(id="b")],
        [Fallback(id="b", node=SPARE)],
        [Insert(id="n", node=READER, after=("a",))],
        [Insert(id="n", node=SPARE, after=("a",))],
        [Insert(id="n", node=replace(node("n"), run="", review=Review(message="go on?")), after=("a",))],
        [changed("c", timeout_s=5.0, resources={"cpu": 1.0}, title="t")],
        [of_reader(agent=replace(JUDGE, model="fake/model", max_turns=20, max_tokens=9000, temperature=0.5))],
        [Rewire(id="c", old=("b",), new=("a",)), Remove(id="b", strategy="skip")],
    ],
)
def test_what_a_model_may_do_alone(operations: list[Operation]) -> None:
    assert reasons(*operations) == []


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        ([Fallback(id="b", node=replace(SPARE, run="rm -rf /"))], "brings the new command `b-fallback`"),
        ([Fallback(id="b", node=replace(SPARE, env={"ENV": "x"}))], "brings the new command"),
        ([Fallback(id="b", node=replace(SPARE, cwd="there"))], "brings the new command"),
        ([Fallback(id="b", node=replace(SPARE, outputs={"k": Output(source="file", file="key")}))], "collects files"),
        ([Insert(id="n", node=replace(SPARE, artifacts=("*",)), after=("a",))], "collects files"),
        ([Insert(id="n", node=replace(READER, agent=SILENT, isolation="process"), after=("a",))], "more than read"),
        ([Insert(id="n", node=replace(READER, env={"LD_PRELOAD": "x"}), after=("a",))], "environment of its own"),
        ([Insert(id="n", node=replace(SPARE, on_failure=OTHER), after=("a",))], "says what happens when"),
        ([changed("c", run="true")], "changes `run` of `c`"),
        ([changed("c", env={"PATH": "/tmp"})], "changes `env` of `c`"),
        ([changed("c", condition="always()")], "changes `if` of `c`"),
        ([changed("c", inputs={"i": Input(value="x")})], "changes `inputs` of `c`"),
        ([changed("c", idempotent=False)], "changes `idempotent` of `c`"),
        ([changed("c", continue_on_error=True)], "changes `continue_on_error` of `c`"),
        ([changed("c", on_failure=OnFailure(fallback="spare"))], "changes `on_failure` of `c`"),
        ([Rerun(id="a")], "`a` is not idempotent"),
        *[([of_reader(agent=replace(JUDGE, **words))], "changes `agent` of `d`") for words in TALKED_INTO],
    ],
)
def test_what_waits_for_a_human(operations: list[Operation], said: str) -> None:
    assert any(said in reason for reason in reasons(*operations))


def test_a_reader_that_asks_for_places_of_its_own_waits() -> None:
    wide = replace(READER, permissions=Permissions(paths=Paths(read=("/etc",))), isolation="process")
    assert any("places" in reason for reason in reasons(Insert(id="n", node=wide, after=("a",))))


def test_who_only_reads() -> None:
    assert only_reads(Agent())
    assert only_reads(Agent(tools=("Read(src/**)", "Grep")))
    assert not only_reads(Agent(tools=("Read", "Write")))
    assert not only_reads(Agent(mcp=("github",)))


def test_an_agent_that_runs_commands_is_a_command_for_a_node_too() -> None:
    state = run(node("a"))
    doing = Patch(operations=(Insert(id="n", node=replace(READER, agent=SILENT), after=("a",)),))
    assert new_commands(state, doing) == ["n"]
    assert new_commands(state, Patch(operations=(Insert(id="n", node=READER, after=("a",)),))) == []


# ---------------------------------------------------------------- any crash

Answer = Callable[[RunState], list[Event]]


def admitted(*operations: Operation) -> Answer:
    def answer(state: RunState) -> list[Event]:
        event = judged_by(state, *operations)
        handled = event is not None and "b" in (*event.reset, *event.superseded, *event.removed, *event.skipped)
        found: list[Event] = [event] if event is not None else []
        return found if handled else [*found, EscalationFailed(node="b", step="replanner")]

    return answer


def judged_by(state: RunState, *operations: Operation) -> PatchAdmitted | None:
    by = f"node:{state.plan.ids[state.asking[state.plan.index['b']]]}"
    return admit(state, Patch(operations=operations), by=by, actor="node").event


def proposes(state: RunState) -> list[Event]:
    i = state.plan.index["b"]
    if i in state.offers:
        return [EscalationFailed(node="b", step="replanner")]
    return [proposal(state, Patch(operations=(Retry(id="b"),)), f"node:{state.plan.ids[state.asking[i]]}", "why")]


def play(state: RunState, answer: Answer, crash_at: int) -> tuple[RunStatus, dict[str, str], int]:
    """Run to the end; after `crash_at` records all is forgotten but those, and a new engine takes over."""
    log: list[list[Event]] = [[]]  # what is journaled in one go is there whole or not at all
    plan = state.plan

    def put(now: RunState, event: Event) -> None:
        evolve(now, event, 1000.0, 0.0)
        check_patched(now)
        log[-1].append(event)

    put(state, EngineAttached(pid=1))
    crashed = False
    for _ in range(500):
        log.append([])
        if len(log) > crash_at and not crashed:
            crashed = True
            del log[crash_at:]
            state = new_state(plan, created(plan), 1000.0)
            for event in [decode(json.loads(encode(e))) for record in log for e in record]:
                evolve(state, event, 1000.0, 0.0)
            log.append([])
            for i, attempt in list(state.running.items()):
                lost = AttemptFinished(node=state.plan.ids[i], attempt=attempt.number, outcome=Outcome.LOST)
                put(state, lost)
            put(state, EngineAttached(pid=2))
        effects = decide(state, 1e9, ROOM)
        if not effects:  # the oldest attempt ends
            i, attempt = next(iter(state.running.items()))
            name = state.plan.ids[i]
            outcome = FAILED if name == "b" else OK
            put(state, AttemptFinished(node=name, attempt=attempt.number, outcome=outcome))
        for effect in effects:
            match effect:
                case Start(i):
                    name = state.plan.ids[i]
                    put(state, NodeStarted(node=name, attempt=len(state.attempts[i]) + 1))
                case Append(event):
                    put(state, event)
                case Escalate(i, step):
                    for event in _carried_out(state, i, step, answer):
                        put(state, event)
                case Finish(ended, _, _):
                    assert ended is RunStatus.NEEDS_REVIEW or all(s in SETTLED for s in state.node_status)
                    words = {n: str(state.node_status[k]) for n, k in state.plan.index.items()}
                    return ended, words, state.plan.revision
                case other:
                    raise AssertionError(other)
    raise AssertionError("it never ended")


def _carried_out(state: RunState, i: int, step: str, answer: Answer) -> list[Event]:
    wanted = state.plan.nodes[i].on_failure
    assert wanted is not None
    if step == "review":
        return [ReviewRequested(node=state.plan.ids[i], attempt=len(state.attempts[i]))]
    assert wanted.replanner is not None
    if i in state.asking:
        return answer(state)
    if why := not_now(state, i):
        return [EscalationFailed(node=state.plan.ids[i], step=step, text=why)]
    return [question(state, i, wanted.replanner, {"stderr": "boom"}, TRIGGER)]


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (admitted(Fallback(id="b", node=SPARE)), RunStatus.COMPLETED),
        (admitted(Retry(id="b")), RunStatus.NEEDS_REVIEW),  # fails as often as it may be asked for, then a human
        (admitted(Remove(id="nobody", strategy="skip")), RunStatus.NEEDS_REVIEW),
        (admitted(Modify(id="c", node=node("c", "b", timeout_s=9.0))), RunStatus.NEEDS_REVIEW),
        (proposes, RunStatus.NEEDS_REVIEW),
    ],
    ids=["stand-in", "retries", "refused", "useless", "proposed"],
)
def test_a_crash_after_any_event_ends_as_without_it(answer: Answer, ends: RunStatus, schedule: Schedule) -> None:
    both = OnFailure(replanner=Agent(), review=Review())
    nodes = {n.id: n for n in (node("a"), node("b", "a", on_failure=both), node("x", "a"), node("c", "b", "x"))}
    workflow = Workflow(name="w", nodes=nodes, schedule=schedule, templates={"spare": SPARE})
    calm = play(begin(compile_plan(workflow)), answer, 10**6)
    assert calm[0] is ends
    for at in range(1, 60):
        assert play(begin(compile_plan(workflow)), answer, at) == calm

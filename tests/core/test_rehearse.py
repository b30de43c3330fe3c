"""Rehearsal: what each failure comes to, and that looking only at what differs finds the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from dagrun.core.check import check
from dagrun.core.decide import Room
from dagrun.core.names import Json, Outcome, Schedule
from dagrun.core.patch import Insert, Patch, Remove, Retry
from dagrun.core.plan import compile_plan
from dagrun.core.pretend import Step, values_of
from dagrun.core.rehearse import Case, Report, Stage, rehearse
from dagrun.core.workflow import (
    Agent,
    Fault,
    Input,
    Limits,
    Node,
    OnFailure,
    Output,
    Param,
    Review,
    Workflow,
    node_to_json,
)
from dagrun.core.workflow import Retry as RetryPolicy
from tests.core.strategies import World, plans, statuses

TEXT = Output(source="stdout")


def node(name: str, *needs: str, **kw: object) -> Node:
    return Node(id=name, run="true", needs=needs, **kw)  # type: ignore[arg-type]


def reads(expression: str, **kw: object) -> dict[str, Input]:
    return {"x": Input(expression=expression, **kw)}  # type: ignore[arg-type]


def flow(*nodes: Node, templates: tuple[Node, ...] = (), **kw: object) -> Workflow:
    return Workflow(name="w", nodes={n.id: n for n in nodes}, templates={t.id: t for t in templates}, **kw)  # type: ignore[arg-type]


def case(report: Report, name: str, failures: int = 1) -> Case:
    return next(c for c in report.cases if c.node == name and c.failures == failures)


# ---------------------------------------------------------------- what a failure comes to


def test_an_unprotected_failure_loses_what_needs_it_and_nothing_else() -> None:
    report = rehearse(flow(node("a"), node("b", "a"), node("c", "b"), node("aside")))
    assert case(report, "a") == Case(node="a", failures=1, ends="failed", lost=("b", "c"))
    assert case(report, "a").hole
    assert not case(report, "a").protected


def test_a_leaf_that_fails_leaves_no_hole() -> None:
    last = case(rehearse(flow(node("a"), node("b", "a"))), "b")
    assert last.ends == "failed"
    assert not last.hole


def test_a_fallback_takes_its_place_and_gives_its_output() -> None:
    workflow = flow(
        node("a", outputs={"x": TEXT}, on_failure=OnFailure(fallback="simple")),
        node("b", inputs=reads("nodes.a.x")),
        node("c", "b"),
        templates=(node("simple", outputs={"x": TEXT}),),
    )
    found = case(rehearse(workflow), "a")
    assert found.ends == "completed"
    assert found.fallbacks == ("simple",)
    assert found.steps == (Step(node="a", kind="fallback", name="simple", result="taken"),)
    assert not found.lost
    assert not found.hole


def test_at_depth_two_the_fallback_fails_as_well() -> None:
    workflow = flow(
        node("a", on_failure=OnFailure(fallback="simple")), node("b", "a"), templates=(node("simple"),)
    )
    report = rehearse(workflow, depth=3)
    assert [(c.node, c.failures, c.ends, c.lost) for c in report.cases] == [
        ("a", 1, "completed", ()),
        ("a", 2, "failed", ("b",)),
        ("b", 1, "failed", ()),
    ]
    assert case(report, "a", 2).hole


def test_a_chain_of_fallbacks_ends_at_its_limit() -> None:
    links = [node(f"t{k}", on_failure=OnFailure(fallback=f"t{k + 1}")) for k in (1, 2)]
    workflow = flow(node("a", on_failure=OnFailure(fallback="t1")), node("b", "a"), templates=(*links, node("t3")))
    report = rehearse(workflow, depth=9)
    assert [c.ends for c in report.cases if c.node == "a"] == ["completed", "completed", "failed"]
    last = case(report, "a", 3)
    assert last.fallbacks == ("t1", "t2")
    assert last.steps[-1].result == "refused"
    assert "limits.fallback_chain" in last.steps[-1].text
    assert report.idle_templates == {"t3": "fallback number 3 in a row; limits.fallback_chain is 2"}


def test_a_fallback_without_the_output_that_others_read_is_a_hole() -> None:
    workflow = flow(
        node("a", outputs={"x": TEXT}, on_failure=OnFailure(fallback="poor")),
        node("b", inputs=reads("nodes.a.x")),
        templates=(node("poor", outputs={"y": TEXT}),),
    )
    found = case(rehearse(workflow), "a")
    assert found.ends == "failed"
    assert found.steps[0].result == "refused"
    assert "no output `x`" in found.steps[0].text
    assert found.lost == ("b",)
    assert found.hole


def test_a_fallback_that_waits_for_what_follows_is_refused_with_the_cycle() -> None:
    workflow = flow(
        node("a", on_failure=OnFailure(fallback="late")),
        node("b", "a"),
        node("c", "b"),
        templates=(node("late", "c"),),
    )
    found = case(rehearse(workflow), "a")
    assert found.steps[0].result == "refused"
    assert "wait for each other" in found.steps[0].text
    assert found.lost == ("b", "c")


def test_a_refused_remedy_of_a_leaf_is_a_hole_too() -> None:
    workflow = flow(
        node("a"),
        node("b", "a", on_failure=OnFailure(fallback="bad")),
        templates=(node("bad", inputs=reads("nodes.b.none")),),
    )
    found = case(rehearse(workflow), "b")
    assert not found.lost
    assert found.broken
    assert found.hole


def test_a_review_parks_the_run_and_loses_nothing() -> None:
    end = node("end", "b", condition="always()")
    workflow = flow(node("a", on_failure=OnFailure(review=Review())), node("b", "a"), end)
    found = case(rehearse(workflow), "a")
    assert found.ends == "needs_review"
    assert not found.lost
    assert not found.hole


def test_a_review_on_the_way_is_approved() -> None:
    ask = Node(id="ask", review=Review(message="?"), needs=("a",))
    report = rehearse(flow(node("a"), ask, node("b", "ask")))
    assert [c.node for c in report.cases] == ["a", "b"]
    assert case(report, "a").lost == ("ask", "b")


def test_what_runs_after_a_failure_is_not_lost() -> None:
    workflow = flow(
        node("a"),
        node("b", "a"),
        node("tidy", "b", condition="always()"),
        node("alarm", "b", condition="failure()"),
        node("after", "tidy"),
    )
    report = rehearse(workflow)
    assert case(report, "a").lost == ("b",)
    assert report.unreached == {"alarm": "if: failure()"}


def test_a_node_that_runs_after_a_failure_without_its_input_is_lost() -> None:
    workflow = flow(
        node("a", outputs={"x": TEXT}),
        node("tidy", condition="always()", inputs=reads("nodes.a.x")),
        node("end", "tidy"),
    )
    found = case(rehearse(workflow), "a")
    assert found.lost == ("tidy", "end")
    assert "input `x` has no value" in found.cannot_start["tidy"]
    mended = replace(workflow.nodes["tidy"], inputs=reads("nodes.a.x", optional=True))
    assert case(rehearse(replace(workflow, nodes={**workflow.nodes, "tidy": mended})), "a").lost == ()


def test_continue_on_error_saves_the_run_but_not_the_reader_of_its_output() -> None:
    workflow = flow(
        node("a", outputs={"x": TEXT}, continue_on_error=True), node("b", "a"), node("c", inputs=reads("nodes.a.x"))
    )
    found = case(rehearse(workflow), "a")
    assert found.lost == ("c",)
    assert found.ends == "failed"
    assert found.hole


def test_a_condition_over_a_param_is_decided_and_one_over_an_output_is_open() -> None:
    workflow = flow(
        node("a", outputs={"x": TEXT}),
        node("never", condition="params.mode == 'full'"),
        node("maybe", inputs=reads("nodes.a.x"), condition="inputs.x != ''"),
        node("surely", inputs=reads("nodes.a.x"), condition="inputs.x == 'y' || params.mode == 'quick'"),
        params={"mode": Param(has_default=True, default="quick")},
    )
    report = rehearse(workflow)
    assert list(report.unreached) == ["never"]
    assert report.open_ifs == ("maybe",)
    full = rehearse(workflow, params={"mode": "full"})
    assert not full.unreached
    assert full.open_ifs == ("maybe", "surely")


def test_a_param_that_nobody_gave_stands_for_any_value() -> None:
    workflow = flow(node("a", condition="params.mode == 'full'"), params={"mode": Param()})
    assert rehearse(workflow).open_ifs == ("a",)


def test_an_if_that_only_a_failure_makes_open_is_told_with_the_case() -> None:
    workflow = flow(
        node("src", outputs={"x": TEXT}),
        node("a"),
        node("alarm", "a", inputs=reads("nodes.src.x"), condition="failure() && inputs.x == 'loud'"),
    )
    report = rehearse(workflow)
    assert report.open_ifs == ()
    assert case(report, "a").open_ifs == ("alarm",)


def test_an_output_of_another_type_is_noted() -> None:
    items: Json = {"type": "array"}
    workflow = flow(
        node("a", outputs={"x": Output(schema=items)}, on_failure=OnFailure(fallback="simple")),
        node("b", inputs=reads("nodes.a.x")),
        templates=(node("simple", outputs={"x": TEXT}),),
    )
    assert case(rehearse(workflow), "a").notes == ("output `x` of fallback `simple` is string, that of `a` is array",)


def test_a_run_that_fails_by_itself_is_told_instead_of_cases() -> None:
    workflow = flow(
        node("a", condition="false", outputs={"x": TEXT}), node("b", inputs=reads("nodes.a.x"), condition="always()")
    )
    report = rehearse(workflow)
    assert report.cases == ()
    assert "input `x` has no value" in report.failures["b"]


def test_fail_fast_gives_up_every_later_wave() -> None:
    workflow = flow(node("a"), node("b"), node("c", "b"), node("d", "c", condition="always()"), fail_fast=True)
    assert case(rehearse(workflow), "a").lost == ("c", "d")
    assert not rehearse(workflow).notes
    assert rehearse(replace(workflow, schedule=Schedule.READY)).notes


def test_retries_do_not_multiply_the_work() -> None:
    policy = RetryPolicy(max_attempts=10**6, delay_s=60)
    assert case(rehearse(flow(node("a", retry=policy), node("b", "a"))), "a").lost == ("b",)


# ---------------------------------------------------------------- models


def test_what_a_replanner_would_answer_is_not_known_and_counts_as_no_help() -> None:
    wanted = OnFailure(replanner=Agent(model="strong"), review=Review())
    found = case(rehearse(flow(node("a", on_failure=wanted), node("b", "a"))), "a")
    assert [(s.kind, s.name, s.result) for s in found.steps] == [
        ("replanner", "strong", "unknown"),
        ("review", "", "taken"),
    ]
    assert (found.ends, found.protected, found.broken) == ("needs_review", True, False)
    alone = case(rehearse(flow(node("a", on_failure=OnFailure(replanner=Agent())), node("b", "a"))), "a")
    assert (alone.ends, alone.lost, alone.hole) == ("failed", ("b",), True)


def test_a_model_may_bring_in_any_template() -> None:
    spare = (node("spare"),)
    assert rehearse(flow(node("a"), templates=spare)).idle_templates.keys() == {"spare"}
    asking = node("a", on_failure=OnFailure(replanner=Agent()))
    assert rehearse(flow(asking, templates=spare)).idle_templates == {}


def test_agents_fail_too() -> None:
    asked = replace(node("a"), run="", agent=Agent(prompt="Look."))
    found = case(rehearse(flow(asked, node("b", "a"))), "a")
    assert (found.ends, found.lost) == ("failed", ("b",))


# ---------------------------------------------------------------- patches for a failure


def patched(*operations: object) -> Workflow:
    """a → b → c, where `a` has a patch for its failure that `reader` reads."""
    wanted = OnFailure(replan="p.yaml", replan_patch={"operations": []}, review=None)
    return flow(node("a", on_failure=wanted), node("b", "a"), node("c", "b"))


def reader(*operations: object, faults: tuple[Fault, ...] = ()) -> object:
    def read(document: Json, workflow: Workflow) -> Patch | list[Fault]:
        assert document == {"operations": []}
        return list(faults) or Patch(operations=operations)  # type: ignore[arg-type]

    return read


@pytest.mark.parametrize(
    ("operations", "ends", "lost"),
    [
        ([Retry(id="a")], "completed", ()),
        ([Remove(id="a", strategy="bridge")], "completed", ()),
        ([Remove(id="a", strategy="skip")], "completed", ()),
        ([Insert(id="new", node=node("new"), after=(), before=("c",))], "failed", ("b", "c")),
        ([Remove(id="c", strategy="bridge")], "failed", ("b",)),
    ],
)
def test_a_declared_patch_is_applied(operations: list[object], ends: str, lost: tuple[str, ...]) -> None:
    found = case(rehearse(patched(), replan=reader(*operations)), "a")  # type: ignore[arg-type]
    assert (found.ends, found.lost) == (ends, lost)
    assert found.steps[0].result == ("taken" if ends == "completed" else "refused")


def test_a_patch_that_cannot_be_read_is_refused_with_its_reasons() -> None:
    found = case(rehearse(patched(), replan=reader(faults=(Fault((), "x", "bad key"),))), "a")  # type: ignore[arg-type]
    assert found.steps[0].result == "refused"
    assert found.steps[0].text == "bad key"
    assert found.hole


def test_without_a_reader_a_patch_counts_as_no_help_and_says_so() -> None:
    found = case(rehearse(patched()), "a")
    assert found.steps[0].result == "unknown"
    assert found.lost == ("b", "c")


def test_a_patch_that_leads_to_the_same_failure_for_ever_ends() -> None:
    wanted = OnFailure(replan="p.yaml", replan_patch={"operations": []})
    workflow = flow(
        node("a", outputs={"x": TEXT}, continue_on_error=True),
        node("b", inputs=reads("nodes.a.x"), on_failure=wanted),
    )
    found = case(rehearse(workflow, replan=reader(Retry(id="b"))), "a")  # type: ignore[arg-type]
    assert found.ends == "failed"
    assert "its patch was applied 2 times: limits.fallback_chain is 2" in found.steps[-1].text


# ---------------------------------------------------------------- templates


def test_templates_that_no_failure_brings_in_are_named() -> None:
    inline = node("", on_failure=OnFailure(fallback="deep"))
    patch: Json = {"operations": [{"fallback": {"id": "b", "with": "named"}}]}
    workflow = flow(
        node("a", on_failure=OnFailure(fallback_node=inline)),
        node("b", on_failure=OnFailure(replan="p", replan_patch=patch)),
        templates=(node("deep"), node("named"), node("left")),
    )
    assert list(rehearse(workflow).idle_templates) == ["left"]


# ---------------------------------------------------------------- laws

CONDITIONS = (
    *["", "", "", ""],
    *["always()", "failure()", "success()", "false", "nodes.{0}.status != 'failed'", "inputs.x == 'y'"],
    *["always() && nodes.{0}.status != 'completed'", "success() && inputs.x != ''"],
)
TEMPLATES = (
    node("t0", outputs={"out": TEXT}),
    node("t1", outputs={"out": TEXT}, on_failure=OnFailure(fallback="t0")),
    node("t2", outputs={"other": TEXT}),
    node("t3", "n0", outputs={"out": TEXT}, on_failure=OnFailure(review=Review())),
    node("t4", inputs=reads("nodes.n1.out", optional=True), outputs={"out": TEXT}, condition="always()"),
)
OFTEN = st.integers(0, 4)


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    """Random graphs with inputs, conditions, fallbacks, reviews; what `check` refuses is mended by leaving it out."""
    count = draw(st.integers(3, 8))
    nodes: list[Node] = []
    for i in range(count):
        before = [f"n{j}" for j in range(i)]
        needs: list[str] = draw(st.lists(st.sampled_from(before), unique=True, max_size=2)) if before else []
        inputs: dict[str, Input] = {}
        if before and draw(OFTEN) > 1:
            inputs = reads(f"nodes.{draw(st.sampled_from(before))}.out", optional=draw(OFTEN) > 0)
        condition = draw(st.sampled_from(CONDITIONS))
        if ("{0}" in condition and not before) or ("inputs" in condition and not inputs):
            condition = ""
        condition = condition.format(draw(st.sampled_from(before)) if before else "")
        steps = draw(st.sampled_from(["", "", "fallback", "fallback", "review", "both", "inline"]))
        wanted = None
        if steps:
            fallback = draw(st.sampled_from(["t0", "t1", "t2", "t3", "t4"])) if steps in ("fallback", "both") else ""
            inline = node("", outputs={"out": TEXT}) if steps == "inline" else None
            review = Review() if steps in ("review", "both") else None
            wanted = OnFailure(fallback=fallback, fallback_node=inline, review=review)
        nodes.append(
            node(
                f"n{i}",
                *needs,
                inputs=inputs,
                outputs={"out": TEXT},
                condition=condition,
                continue_on_error=draw(OFTEN) == 0,
                on_failure=wanted,
            )
        )
    limits = Limits(fallback_chain=draw(st.integers(1, 3)))
    made = flow(*nodes, templates=TEMPLATES, schedule=draw(st.sampled_from(list(Schedule))), limits=limits)
    for field in ("on_failure", "if"):  # what can't be is left out
        faulty = {fault.path[1] for fault in check(made) if fault.path[2:3] == (field,)}
        less: dict[str, object] = {"on_failure": None} if field == "on_failure" else {"condition": ""}
        mended = {n: replace(node_, **less) if n in faulty else node_ for n, node_ in made.nodes.items()}  # type: ignore[arg-type]
        made = replace(made, nodes=mended)
    assume(not check(made))
    return made


def comparable(found: Case | None) -> Case | None:
    """A case without the words of a refusal, which may suggest names from more of the plan."""
    if found is None:
        return None
    return replace(found, steps=tuple(sorted((replace(s, text="") for s in found.steps), key=repr)))


@settings(max_examples=300, deadline=None)
@given(workflows())
def test_looking_only_at_what_differs_finds_what_the_whole_run_shows(workflow: Workflow) -> None:
    note("\n".join(str(node_to_json(n) | {"id": n.id}) for n in workflow.nodes.values()))
    stage = Stage(workflow, values_of(workflow, {}), None)
    for case_ in rehearse(workflow, depth=3).cases:
        i = stage.plan.index[case_.node]
        assert comparable(stage.whole_case(i, case_.failures)) == comparable(case_)


@settings(max_examples=100, deadline=None)
@given(plans())
def test_a_case_is_what_a_run_with_this_failure_comes_to(plan: object) -> None:
    """The same as the engine in virtual time, which knows nothing of rehearsals."""
    workflow: Workflow = plan.workflow  # type: ignore[attr-defined]
    well = world(workflow, "")
    for found in rehearse(workflow).cases:
        hit = world(workflow, found.node)
        assert hit["run"] == found.ends
        gone = {n for n, s in well.items() if s == "completed" and hit[n] != "completed"} - {found.node, "run"}
        assert gone == set(found.lost)


def world(workflow: Workflow, failing: str) -> dict[str, str]:
    """Node id → status after a whole run; `run` → status of the run."""
    world = World(compile_plan(workflow), Room(9, {"gpu": 2.0, "cpu": 2.0}), {failing: [Outcome.FAILED]}, checked=False)
    world.attach()
    ended = world.run()
    return {**statuses(world.state), "run": ended.status.value}


# ---------------------------------------------------------------- speed


def layered(count: int, width: int, **kw: object) -> Iterator[Node]:
    for i in range(count):
        row = i // width
        needs = [f"n{(row - 1) * width + (i * k + k) % width}" for k in (1, 7)] if row else []
        yield node(f"n{i}", *dict.fromkeys(needs), outputs={"out": TEXT}, **kw)


@pytest.mark.parametrize("protected", [False, True])
def test_a_thousand_nodes_take_seconds(protected: bool) -> None:
    wanted = OnFailure(fallback="spare") if protected else None
    nodes = list(layered(1000, 25, on_failure=wanted))
    nodes.append(node("tidy", *[n.id for n in nodes[-25:]], condition="always()"))
    workflow = flow(*nodes, templates=(node("spare", outputs={"out": TEXT}),))
    assert not check(workflow)
    report = rehearse(workflow, depth=2)  # 2 s; were it not linear, the time limit of tests would end it
    assert len(report.cases) == 1001 + 1000 * protected

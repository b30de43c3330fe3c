"""From workflow to graph: needs, waves, ranks."""

from __future__ import annotations

import pytest
from hypothesis import given

from dagrun.core.check import check
from dagrun.core.plan import Plan, all_needs, compile_plan, critical_path, input_sources, near, revise_plan
from dagrun.core.workflow import Input, Node, Output, Workflow
from tests.core.strategies import plans

OUT = {"o": Output()}


def flow(*nodes: Node, **fields: object) -> Workflow:
    return Workflow(name="w", nodes={n.id: n for n in nodes}, **fields)  # type: ignore[arg-type]


def node(name: str, *needs: str, **fields: object) -> Node:
    return Node(**{"id": name, "run": "true", "needs": needs, **fields})  # type: ignore[arg-type]


def reads(**inputs: str) -> dict[str, Input]:
    return {name: Input(expression=text) for name, text in inputs.items()}


# ---------------------------------------------------------------- the graph


def test_needs_come_first_then_the_producers_of_inputs_once_each() -> None:
    wanted = reads(x="nodes.a.o", y="nodes.c.o || nodes.b.o", z="params.p", bad="nodes.(")
    n = node("n", "b", "b", inputs=wanted)
    assert all_needs(n) == ("b", "a", "c")
    assert list(input_sources(n)) == ["a", "c", "b"]
    assert all_needs(node("n", "b", "b", "a")) == ("b", "a")


def test_the_compiled_graph() -> None:
    workflow = flow(
        node("z"), node("a", outputs=OUT), node("b", "z", inputs=reads(x="nodes.a.o")), node("c", "b", estimate_s=5.0)
    )
    plan = compile_plan(workflow, revision=4, estimates={"a": 3.0})
    assert plan.revision == 4
    assert plan.ids == ("z", "a", "b", "c")
    assert plan.needs == [(), (), (0, 1), (2,)]
    assert plan.dependents == [[2], [2], [3], []]
    assert plan.wave == [1, 1, 2, 3]
    assert plan.rank == [13.0, 12.0, 9.0, 5.0]  # nobody guessed z and b: they take the mean
    assert plan.depth == 3
    assert [plan.ids[i] for i in critical_path(plan)] == ["z", "b", "c"]
    assert (plan.upstream(3), plan.downstream(0), plan.upstream(0)) == ({0, 1, 2}, {2, 3}, set())


def test_an_empty_workflow_has_no_depth_and_no_path() -> None:
    plan = compile_plan(flow())
    assert (plan.depth, critical_path(plan)) == (0, [])


@pytest.mark.parametrize("nodes", [[node("a", "b")], [node("a", "b"), node("b", "a")]])
def test_compiling_what_was_not_checked_is_refused(nodes: list[Node]) -> None:
    with pytest.raises(ValueError, match=r"unknown node 'b': check the workflow first|cycle"):
        compile_plan(flow(*nodes))


@given(plans())
def test_waves_and_ranks_follow_from_their_definition(plan: Plan) -> None:
    for i, wanted in enumerate(plan.needs):
        assert plan.wave[i] == 1 + max((plan.wave[d] for d in wanted), default=0)
        assert plan.rank[i] == 1.0 + max((plan.rank[d] for d in plan.dependents[i]), default=0.0)
        assert all(i in plan.dependents[d] for d in wanted)
        assert plan.upstream(i) == set(wanted).union(*[plan.upstream(d) for d in wanted])
        assert all(i in plan.upstream(d) for d in plan.downstream(i))


def test_a_chain_of_ten_thousand_needs_no_recursion() -> None:
    workflow = flow(*[node(f"n{i}", *([f"n{i - 1}"] if i else [])) for i in range(10_000)])
    assert check(workflow) == []
    plan = compile_plan(workflow)
    assert plan.depth == len(critical_path(plan)) == 10_000
    assert len(plan.upstream(9_999)) == 9_999


def test_a_near_name_is_suggested_and_a_far_one_is_not() -> None:
    assert near("biuld", ["test", "build"]) == "did you mean `build`?"
    assert near("zzz", ["build"]) == ""


def test_a_revision_that_moves_no_edge_is_the_same_graph_under_a_new_number() -> None:
    base = compile_plan(flow(node("a"), node("b", "a")))
    after = revise_plan(base, base.workflow, 2)
    assert (after.revision, after.needs, after.wave, after.rank) == (2, base.needs, base.wave, base.rank)

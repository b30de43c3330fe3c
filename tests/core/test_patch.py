"""What each operation does to a graph, without a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dagrun.core.diff import diff
from dagrun.core.names import ID_MAX
from dagrun.core.patch import (
    Alternative,
    Draft,
    Fallback,
    Insert,
    Modify,
    Operation,
    Patch,
    Remove,
    Retry,
    Rewire,
    SetLimits,
    apply,
    draft,
    fallback_id,
)
from dagrun.core.reading import map_references, rename, without_producer
from dagrun.core.workflow import Input, Limits, Node, Output, Workflow

OUT = {"out": Output(source="stdout")}


def node(name: str, *needs: str, reads: str = "", optional: bool = False, **rest: object) -> Node:
    """A node with an output `out`; `reads` is the expression of its input `x`."""
    inputs = {"x": Input(expression=reads, optional=optional)} if reads else {}
    return replace(Node(id=name, run=f"run-{name}", needs=needs, inputs=inputs, outputs=OUT), **rest)  # type: ignore[arg-type]


def flow(*nodes: Node, limits: Limits | None = None) -> Workflow:
    return Workflow(name="w", nodes={n.id: n for n in nodes}, limits=limits or Limits())


def patched(workflow: Workflow, *operations: Operation) -> Draft:
    return apply(draft(workflow), Patch(operations=operations))


def needs(work: Draft) -> dict[str, tuple[str, ...]]:
    return {name: n.needs for name, n in work.nodes.items()}


def faults(work: Draft) -> list[tuple[str, tuple[str | int, ...]]]:
    return [(f.code, f.path) for f in work.faults]


# ---------------------------------------------------------------- insert


def test_insert_replaces_only_the_edges_between_after_and_before() -> None:
    work = patched(
        flow(node("test"), node("lint"), node("deploy", "lint", "test", reads="nodes.test.out")),
        Insert(id="scan", node=node("x"), after=("test",), before=("deploy",)),
    )
    assert work.faults == []
    assert needs(work) == {"test": (), "lint": (), "deploy": ("lint", "scan"), "scan": ("test",)}
    assert work.nodes["deploy"].inputs["x"].expression == "nodes.test.out"
    assert work.nodes["scan"].id == "scan"


def test_insert_keeps_needs_of_its_own_first_and_none_twice() -> None:
    work = patched(flow(node("a"), node("b")), Insert(id="c", node=node("c", "b", "a"), after=("a", "b")))
    assert work.nodes["c"].needs == ("b", "a")


@pytest.mark.parametrize(
    ("op", "codes"),
    [
        (Insert(id="a", node=node("a")), ["id-taken"]),
        (Insert(id="A", node=node("A")), ["id-taken"]),
        (Insert(id="n", node=node("n"), after=("nope",), before=("nor",)), ["unknown-node", "unknown-node"]),
        (Insert(id="n", node=node("n"), after=("n",)), ["self-need"]),
        (Insert(id="n", node=node("n"), revive=True), ["not-removed"]),
    ],
)
def test_insert_is_refused_with_its_reasons(op: Insert, codes: list[str]) -> None:
    assert [code for code, _ in faults(patched(flow(node("a")), op))] == codes


def test_an_id_of_a_removed_node_is_not_used_again_but_by_undo() -> None:
    w = flow(node("a"), node("b", "a"))
    remove = Remove(id="b", strategy="bridge")
    assert faults(patched(w, remove, Insert(id="b", node=node("b", "a")))) == [("id-taken", ("operations", 1, "id"))]
    assert patched(w, remove, Insert(id="b", node=node("b", "a"), revive=True)).faults == []


def test_what_a_patch_brings_and_takes_out_again_leaves_no_trace() -> None:
    work = patched(
        flow(node("a"), node("b", "a")),
        Insert(id="n", node=node("n"), after=("a",), before=("b",)),
        Remove(id="n", strategy="bridge"),
    )
    assert (work.faults, work.removed, work.new) == ([], {}, [])
    assert needs(work) == {"a": (), "b": ("a",)}


# ---------------------------------------------------------------- remove


def test_bridge_joins_in_place_and_repeats_no_need() -> None:
    work = patched(
        flow(node("a"), node("b"), node("gone", "a", "b"), node("c", "b", "gone", "a")),
        Remove(id="gone", strategy="bridge"),
    )
    assert needs(work) == {"a": (), "b": (), "c": ("b", "a")}


def test_bridge_refuses_an_input_without_a_producer_and_takes_a_map() -> None:
    w = flow(node("a"), node("gone", "a"), node("c", reads="nodes.gone.out.items[0]"))
    work = patched(w, Remove(id="gone", strategy="bridge"))
    assert [f.code for f in work.faults] == ["no-producer"]
    assert "nodes.gone.out.items[0]" in work.faults[0].message
    work = patched(w, Remove(id="gone", strategy="bridge", input_map={"nodes.gone.out": "nodes.a.out"}))
    assert work.faults == []
    assert work.nodes["c"].inputs["x"].expression == "nodes.a.out.items[0]"
    assert work.nodes["c"].needs == ("a",)


def test_a_map_that_nothing_reads_is_a_mistake() -> None:
    w = flow(node("a"), node("gone", "a"), node("c", "gone"))
    work = patched(w, Remove(id="gone", strategy="bridge", input_map={"nodes.gone.oops": "nodes.a.out"}))
    assert [f.code for f in work.faults] == ["unused-map"]


@pytest.mark.parametrize("strategy", ["skip", "bridge"])
def test_a_word_that_means_nothing_for_a_strategy_is_refused(strategy: str) -> None:
    mapped = {"input_map": {"nodes.a.out": "nodes.b.out"}} if strategy == "skip" else {"dependents": "skip"}
    work = patched(flow(node("a"), node("b", "a")), Remove(id="a", strategy=strategy, **mapped))  # type: ignore[arg-type]
    assert "no-meaning" in [f.code for f in work.faults]


def test_an_optional_input_falls_back_to_its_default_to_the_letter() -> None:
    default = "it's ${{ params.x }}"
    item = Input(expression="nodes.gone.out", has_default=True, default=default)
    work = patched(
        flow(node("gone"), node("c", inputs={"x": item, "y": Input(expression="nodes.gone.out", optional=True)})),
        Remove(id="gone", strategy="bridge"),
    )
    assert work.faults == []
    assert work.nodes["c"].inputs["x"] == Input(expression="fromJSON('\"it''s ${{ params.x }}\"')")
    assert work.nodes["c"].inputs["y"] == Input()
    assert without_producer(replace(item, default=[1])) == Input(value=[1])


def test_skip_keeps_the_structure_and_refuses_who_needs_the_output() -> None:
    w = flow(node("gone"), node("c", "gone"), node("d", reads="nodes.gone.out"), node("e", reads="nodes.d.out"))
    work = patched(w, Remove(id="gone", strategy="skip"))
    assert [f.message for f in work.faults] == ["`d` needs an output of `gone` for its input `x`"]
    work = patched(w, Remove(id="gone", strategy="skip", dependents="skip"))
    assert work.faults == []
    assert list(work.skipped) == ["gone", "d", "e"]
    assert needs(work) == needs(draft(w))


def test_cascade_takes_what_cannot_live_without_it() -> None:
    w = flow(
        node("gone"),
        node("b", "gone"),
        node("c", reads="nodes.b.out"),
        node("d", reads="nodes.gone.out", optional=True),
        node("e"),
    )
    work = patched(w, Remove(id="gone", strategy="cascade"))
    assert work.faults == []
    assert set(work.removed) == {"gone", "b", "c"}
    assert work.nodes["d"].inputs == {"x": Input()}


# ---------------------------------------------------------------- rewire, modify, retry


def test_rewire_takes_away_old_and_adds_new() -> None:
    w = flow(node("a"), node("b"), node("c"), node("d", "a", "b"))
    work = patched(w, Rewire(id="d", old=("a",), new=("c", "b")))
    assert work.nodes["d"].needs == ("b", "c")


@pytest.mark.parametrize(
    ("op", "code", "key"),
    [
        (Rewire(id="d", old=("b",), new=("a",)), "stale-rewire", "old"),
        (Rewire(id="d", old=("a",), new=("d",)), "self-need", "new"),
        (Rewire(id="d", old=("a",), new=("nope",)), "unknown-node", "new"),
        (Rewire(id="d", old=("a",)), "no-needs", "new"),
    ],
)
def test_rewire_says_what_is_wrong_with_it(op: Rewire, code: str, key: str) -> None:
    assert (code, ("operations", 0, key)) in faults(patched(flow(node("a"), node("b"), node("d", "a")), op))


def test_rewire_to_nothing_has_to_be_meant() -> None:
    w = flow(node("a"), node("d", "a"))
    assert patched(w, Rewire(id="d", old=("a",), root=True)).nodes["d"].needs == ()


def test_operations_on_one_node_add_up() -> None:
    w = flow(node("a"), node("b"), node("d", "a"))
    slow = replace(w.nodes["d"], timeout_s=9.0)
    other = replace(w.nodes["d"], run="other")
    rewire = Rewire(id="d", old=("a",), new=("b",))
    work = patched(w, rewire, Modify(id="d", node=slow), Retry(id="d", node=other))
    assert work.nodes["d"] == replace(w.nodes["d"], timeout_s=9.0, run="other", needs=("b",))


# ---------------------------------------------------------------- fallback and alternative


def test_a_fallback_takes_the_place_in_needs_inputs_and_every_condition_below() -> None:
    w = flow(
        node("a"),
        node("f", "a"),
        node("u", "f", reads="nodes.f.out.f[0]"),
        node("v", "u", condition="always() && nodes.f.status == 'failed' && 'nodes.f.x' != ''"),
    )
    work = patched(w, Fallback(id="f", node=Node(id="t", run="other", needs=("a",))))
    assert work.faults == []
    stand_in = work.nodes["f-fallback"]
    assert (stand_in.run, stand_in.needs, stand_in.outputs) == ("other", ("a",), OUT)
    assert work.nodes["u"].needs == ("f-fallback",)
    assert work.nodes["u"].inputs["x"].expression == "nodes.f-fallback.out.f[0]"
    condition = "always() && nodes.f-fallback.status == 'failed' && 'nodes.f.x' != ''"
    assert work.nodes["v"].condition == condition
    assert work.superseded == {"f": "f-fallback"}


def test_a_fallback_runs_when_the_node_that_it_stands_in_for_would() -> None:
    w = flow(node("a"), node("f", "a", reads="nodes.a.out", condition="always() && inputs.x"))
    work = patched(w, Fallback(id="f", node=Node(id="t", run="t")))
    stand_in = work.nodes["f-fallback"]
    assert stand_in.condition == "always() && inputs.x"
    assert stand_in.inputs == w.nodes["f"].inputs


def test_a_fallback_that_reads_what_failed_is_refused() -> None:
    work = patched(flow(node("f")), Fallback(id="f", node=node("t", reads="nodes.f.out")))
    assert [f.code for f in work.faults] == ["self-need"]


def test_a_fallback_waits_for_the_stand_in_of_what_was_superseded_before() -> None:
    work = draft(flow(node("a"), node("a-fallback"), node("f", "a")))
    work.aliases = {"a": "a-fallback"}
    apply(work, Patch(operations=(Fallback(id="f", node=node("t", reads="nodes.a.out")),)))
    assert work.nodes["f-fallback"].needs == ("a-fallback",)
    assert work.nodes["f-fallback"].inputs["x"].expression == "nodes.a-fallback.out"


def test_the_id_of_a_fallback_is_free_and_never_too_long() -> None:
    assert fallback_id("a", ["a"]) == "a-fallback"
    assert fallback_id("a", ["a", "A-Fallback", "a-fallback-2"]) == "a-fallback-3"
    long = "x" * ID_MAX
    first = fallback_id(long, [long])
    assert len(first) == ID_MAX
    assert fallback_id(long, [long, first]).endswith("-fallback-2")


def test_an_alternative_leads_around_a_blocked_path() -> None:
    w = flow(node("a"), node("x", "a"), node("y", reads="nodes.x.out"), node("z", "y", reads="nodes.y.out"))
    way = {"p": node("p"), "q": node("q", "p")}
    work = patched(w, Alternative(blocked=("x", "y"), nodes=way, exits=("q",)))
    assert work.faults == []
    assert (work.nodes["p"].needs, work.nodes["q"].needs, work.nodes["z"].needs) == (("a",), ("p",), ("q",))
    assert work.nodes["z"].inputs["x"].expression == "nodes.q.out"
    assert list(work.skipped) == ["x", "y"]


def test_an_alternative_says_all_that_is_wrong() -> None:
    w = flow(node("a"), node("x", "a"), node("z", "x", reads="nodes.x.out"))
    bare = Node(id="p", run="p")
    assert "no-producer" in [
        f.code for f in patched(w, Alternative(blocked=("x",), nodes={"p": bare}, exits=("p",))).faults
    ]
    assert [f.code for f in patched(w, Alternative(blocked=("x",), nodes={"p": bare}, exits=())).faults] == ["no-exit"]
    wrong = Alternative(blocked=("x", "nope"), nodes={"a": bare}, exits=("a",))
    assert [f.code for f in patched(w, wrong).faults] == ["unknown-node", "id-taken"]


# ---------------------------------------------------------------- limits and names


def test_set_limits_changes_what_it_names_and_nothing_else() -> None:
    limits = Limits(
        parallel=4, timeout_s=60.0, resources={"gpu": 1.0}, revisions=7, growth=300, growth_nodes=1, fallback_chain=5
    )
    work = patched(flow(node("a"), limits=limits), SetLimits(parallel=2, resources={"cpu": 3.0}))
    assert work.limits == replace(limits, parallel=2, resources={"gpu": 1.0, "cpu": 3.0})
    assert [f.code for f in patched(flow(node("a")), SetLimits(parallel=0)).faults] == ["bad-limit"]


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("nodes.a.a", "nodes.b.a"),
        ("nodes.a.status == 'nodes.a'", "nodes.b.status == 'nodes.a'"),
        ("nodes.nodes.a && nodes.ab.a", "nodes.nodes.a && nodes.ab.a"),
        ("nodes['a'].x", "nodes['b'].x"),
        ("not an ( expression nodes.a", "not an ( expression nodes.a"),
    ],
)
def test_rename_changes_references_and_no_other_text(text: str, after: str) -> None:
    assert rename(text, "a", "b") == after


def test_a_node_called_nodes_is_renamed_in_its_place() -> None:
    assert rename("nodes.nodes.nodes", "nodes", "b") == "nodes.b.nodes"


def test_a_map_of_references_holds_whole_names_only() -> None:
    assert map_references("nodes.a.xy", {"nodes.a.x": "nodes.b.y"}) == ("nodes.a.xy", set())
    assert map_references("nodes.a.x.z", {"nodes.a.x": "nodes.b.y"}) == ("nodes.b.y.z", {"nodes.a.x"})


# ---------------------------------------------------------------- diff


def test_diff_says_it_in_the_operation_that_fits() -> None:
    a = flow(node("a"), node("b", "a"), node("c", "b"), node("d", "c"), node("e", reads="nodes.d.out"))
    b = flow(node("a"), node("n", "a"), node("c", "n"), node("d", "c", timeout_s=9.0), node("m", "n"))
    assert diff(a, b) == (
        Insert(id="n", node=node("n"), after=("a",)),
        Insert(id="m", node=node("m"), after=("n",)),
        Rewire(id="c", old=("b",), new=("n",)),
        Modify(id="d", node=b.nodes["d"]),
        Remove(id="e", strategy="bridge"),
        Remove(id="b", strategy="bridge"),
    )


def test_diff_modifies_where_a_rewire_would_lose_the_order_or_not_let_go() -> None:
    a = flow(node("a"), node("b"), node("c", "a", "b"), node("d", "a", reads="nodes.a.out"))
    b = flow(node("a"), node("b"), node("c", "b", "a"), node("d", "b", reads="nodes.a.out"))
    assert [type(op) for op in diff(a, b)] == [Modify, Modify]

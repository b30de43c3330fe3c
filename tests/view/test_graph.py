"""A plan before it runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.names import Schedule
from dagrun.core.plan import Plan, compile_plan
from dagrun.core.workflow import Limits, Node, Retry, Workflow
from dagrun.view.graph import outlook, plan_dot, plan_json, plan_mermaid, plan_text
from dagrun.view.schedule import rehearse
from dagrun.view.text import ASCII, Look, cells

from .story import node


def plan_of(*nodes: Node, **kw: object) -> Plan:
    return compile_plan(Workflow(name="rel", nodes={n.id: n for n in nodes}, **kw))  # type: ignore[arg-type]


RELEASE = (
    node("fetch", estimate_s=40),
    node("clone", estimate_s=5),
    node("lint", "clone", estimate_s=9, condition="params.lint"),
    node("build", "fetch", estimate_s=80),
    node("test", "build", estimate_s=120, retry=Retry()),
    node("docs", "clone", estimate_s=100),
    node("site", "docs", "lint", estimate_s=60),
    node("tell", "site", condition="always()"),
)


def test_text() -> None:
    plan = plan_of(*RELEASE)
    assert plan_text(plan, width=80, room_parallel=4, params={"lint": False}, look=Look(ASCII)) == (
        "rel   8 nodes, 4 waves, critical path ~4m00s, at most 2 at a time (j4)\n"
        "wave 1  fetch ~40s   clone ~5.0s\n"
        "wave 2  - lint (skipped)  build ~1m20s      docs ~1m40s\n"
        "wave 3  test ~2m00s x3    - site (skipped)\n"
        "wave 4  tell ~59s\n"
        "path    fetch > build > test\n"
        "time    ~5m19s with schedule: waves, 1.3 nodes busy on average; the barrier\n"
        "        costs ~1m19s: schedule: ready would take ~4m00s; 7 of 8 nodes estimated,\n"
        "        the rest taken as their mean\n"
        "skip    lint  if: params.lint\n"
        "skip    site  lint was skipped\n"
    )


def test_without_estimates_no_second_is_promised() -> None:
    text = plan_text(plan_of(node("a"), node("b", "a")), width=None, room_parallel=4, params={})
    assert text == (
        "rel   2 nodes, 2 waves, critical path 2 nodes, at most 1 at a time (j4)\nwave 1  a\nwave 2  b\npath    a > b\n"
    )


def test_an_if_that_only_the_run_can_decide_is_marked() -> None:
    conditions = ("params.on", "!params.on", "inputs.x == 1", "params.missing", "failure()", "success()")
    nodes = [node(f"n{k}", condition=text) for k, text in enumerate(conditions)]
    nodes[2] = node("n2", condition="env.X == '1'")
    found = plan_json(plan_of(*nodes), room_parallel=4, params={"on": True})
    rows = found["nodes"]
    assert isinstance(rows, list)
    assert [r["will_run"] for r in rows if isinstance(r, dict)] == [True, False, None, None, False, True]
    assert "(if)" in plan_text(plan_of(*nodes), width=80, room_parallel=4, params={"on": True})


def test_without_params_nothing_is_decided() -> None:
    view = outlook(plan_of(node("a", condition="params.x")), 4, None)
    assert (view.skipped, view.undecided) == ({}, frozenset({0}))


def test_the_barrier_has_a_price() -> None:
    plan = plan_of(
        node("a", estimate_s=10), node("b", estimate_s=1), node("c", "b", estimate_s=10), node("d", "a", estimate_s=1)
    )
    view = outlook(plan, 4, {})
    assert (view.waves_s, view.ready_s, view.path_s, view.work_s) == (20.0, 11.0, 11.0, 22.0)


FORK = (node("a"), node("b"), node("c", "b"), node("d", "a"), node("e", "d"))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((10, 10, 10, 10, 10), "; the barrier costs nothing\n"),
        ((10, 1, 10, 1, 1), "; the barrier costs ~9.0s: schedule: ready would take ~12s\n"),
        ((1000, 1, 1, 1010, 1), "; the barrier costs nothing\n"),
        ((1000, 1010, 1, 1000, 1), "; the barrier costs ~10s: schedule: ready would take ~33m21s\n"),
    ],
)
def test_what_the_barrier_costs_is_always_said(seconds: tuple[int, ...], said: str) -> None:
    nodes = [replace(n, estimate_s=float(s)) for n, s in zip(FORK, seconds, strict=True)]
    text = plan_text(plan_of(*nodes), width=None, room_parallel=4, params={})
    assert said in text
    assert "barrier" not in plan_text(
        plan_of(*nodes, schedule=Schedule.READY), width=None, room_parallel=4, params={}
    )


@pytest.mark.parametrize(("parallel", "said"), [(4, "nothing"), (2, "1 of 5 steps")])
def test_without_times_the_barrier_costs_steps(parallel: int, said: str) -> None:
    wide = (node("a"), node("b"), node("c"), node("d", "a"), node("e", "d"), node("f", "e"))
    text = plan_text(plan_of(*wide), width=None, room_parallel=parallel, params={})
    assert text.splitlines()[-1] == (
        "time    not known before the first run, without an estimate: in a node; "
        f"if all took equally long, the barrier would cost {said}"
    )


def test_slots_and_resources_count() -> None:
    nodes = [node(f"n{k}", estimate_s=10, resources={"gpu": 1.0}) for k in range(4)]
    assert outlook(plan_of(*nodes), 2, {}).ready_s == 20.0
    assert outlook(plan_of(*nodes, limits=Limits(resources={"gpu": 1})), 4, {}).ready_s == 40.0


@given(st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=20), st.integers(1, 5), st.data())
def test_a_rehearsal_lasts_no_less_than_path_and_work(
    edges: list[list[int]], parallel: int, data: st.DataObject
) -> None:
    seconds = data.draw(st.lists(st.integers(1, 9), min_size=len(edges), max_size=len(edges)))
    nodes = [
        node(f"n{k}", *dict.fromkeys(f"n{d}" for d in needs if d < k), estimate_s=float(seconds[k]))
        for k, needs in enumerate(edges)
    ]
    plan = plan_of(*nodes)
    view = outlook(plan, parallel, {})
    assert view.path_s is not None
    assert view.work_s is not None
    for made in (view.waves_s, view.ready_s):
        assert made is not None
        assert max(view.path_s, view.work_s / parallel) - 1e-9 <= made <= view.work_s + 1e-9


def test_a_huge_plan_is_only_counted_on_a_terminal() -> None:
    plan = plan_of(*[node(f"n{k}") for k in range(5000)])
    text = plan_text(plan, width=80, room_parallel=8, params={})
    assert "and 4,940 more" in text
    assert max(cells(line) for line in text.splitlines()) <= 80
    assert "n4999" in plan_text(plan, width=None, room_parallel=8, params={})


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_text_fits(width: int) -> None:
    text = plan_text(plan_of(*RELEASE), width=width, room_parallel=4, params={"lint": False})
    assert max(cells(line) for line in text.splitlines()) <= max(width, 30)


def test_what_is_skipped_is_on_no_path() -> None:
    plan = plan_of(node("a", estimate_s=1), node("b", "a", estimate_s=99, condition="params.x"), node("c", "a"))
    assert [plan.ids[i] for i in outlook(plan, 4, {"x": False}).path] == ["a", "c"]
    assert [plan.ids[i] for i in outlook(plan, 4, {"x": True}).path] == ["a", "b"]
    gone = plan_of(node("a", condition="false"))
    assert outlook(gone, 4, {}).path == []
    assert "skip    a  if: false" in plan_text(gone, width=80, room_parallel=4, params={})


def test_json_is_json() -> None:
    found = plan_json(plan_of(*RELEASE), room_parallel=4, params={"lint": True})
    assert json.loads(json.dumps(found)) == found
    assert found["waves"][0] == ["fetch", "clone"]  # type: ignore[index]
    assert found["critical_path"] == ["fetch", "build", "test"]


TITLE = 'say "hi" <script>`x`</script> [a](b) #quot; \\ end\n---\x1b[31m'


def test_mermaid() -> None:
    text = plan_mermaid(plan_of(node("end", title=TITLE), node("graph", "end")))
    lines = text.splitlines()
    assert lines[0] == "flowchart TD"
    assert "  n0 --> n1" in lines
    label = next(line for line in lines if line.strip().startswith("n0["))
    found = re.fullmatch(r'    n0\["([^"]*)"\]', label)
    assert found is not None
    assert not set('<>`[]"\\\x1b') & set(found[1].replace("<br/>", ""))


def test_dot() -> None:
    text = plan_dot(plan_of(node("end", title=TITLE), node("graph", "end")))
    assert text.startswith('digraph "rel" {\n')
    assert "  n0 -> n1;" in text.splitlines()
    label = next(line for line in text.splitlines() if line.startswith("  n0 [label="))
    assert re.fullmatch(r'  n0 \[label="(?:[^"\\]|\\.)*"\];', label)


def test_a_rehearsal_needs_no_param() -> None:
    plan = plan_of(node("a"), node("b", "a"))
    found = rehearse(plan, parallel=1, schedule=Schedule.READY, seconds=[1.0, 2.0])
    assert (found.makespan_s, found.widest, dict(found.skipped)) == (3.0, 1, {})

"""Two runs beside each other, made of events whose times the test decides."""

from __future__ import annotations

import re
from dataclasses import replace
from json import dumps
from typing import cast

import pytest

from dagrun.core.event import RunEnded
from dagrun.core.names import Json, Outcome, RunStatus
from dagrun.core.patch import Patch, Remove
from dagrun.core.replan import admit
from dagrun.core.workflow import Workflow
from dagrun.view.text import ASCII, Look, Paint, cells, clean
from dagrun.view.tracediff import Side, TraceDiff, compare_runs, summary_line, tracediff_json, tracediff_text

from .agents_story import research
from .story import BEGIN, Story, node


def story(run_id: str = "aaaa", params: dict[str, Json] | None = None, **b: object) -> Story:
    """A run of a, b (which needs a) and c; `b` are keys of the node b."""
    made = Story([node("a"), node("b", "a", **b), node("c")])
    made.state.created = replace(made.state.created, run_id=run_id, params=params or {})
    return made


def side(made: Story) -> Side:
    return Side(made.state, made.state.status)


def of(a: Story, b: Story) -> TraceDiff:
    return compare_runs(side(a), side(b))


def changes(diff: TraceDiff) -> dict[str, tuple[str, ...]]:
    return {n.node_id: n.differs for n in diff.nodes if n.kind != "same"}


def listed(found: Json) -> list[dict[str, Json]]:
    return cast("list[dict[str, Json]]", found)


def took(ms: int, **kw: object) -> Story:
    """A run in which the node a took so long."""
    made = story().start("a")
    return made.end("a", duration_ms=ms, **kw).finish()  # type: ignore[arg-type]


def test_the_same_run_twice() -> None:
    diff = of(story("aaaa").finish(), story("bbbb").finish())
    assert (diff.same, diff.differs, changes(diff)) == (True, (), {})
    assert tracediff_text(diff, BEGIN) == (
        "   RUN   STATUS     STARTED                   TIME  WORKFLOW\n"
        "A  aaaa  completed  2023-11-14T22:13:20.000Z  2.0s  release-notes\n"
        "B  bbbb  completed  2023-11-14T22:13:20.000Z  2.0s  release-notes\n"
        "\n"
        "the same: 3 nodes\n"
    )
    assert tracediff_text(diff, BEGIN, every=True).splitlines()[4:8] == [
        "NODE  WHAT  A            B",
        "a     same  ✓ completed  ✓ completed",
        "c     same  ✓ completed  ✓ completed",
        "b     same  ✓ completed  ✓ completed",
    ]
    assert tracediff_json(diff)["nodes"] == []
    assert [n["kind"] for n in listed(tracediff_json(diff, every=True)["nodes"])] == ["same"] * 3


def test_a_node_that_failed_and_what_waited_for_it() -> None:
    bad = story("bbbb").start("a").at(1).end("a", Outcome.FAILED, exit_code=3).finish()
    diff = of(story().finish(), bad)
    assert diff.differs == ("status",)
    assert changes(diff) == {
        "a": ("status", "outcome", "exit_code", "error"),
        "b": ("status", "outcome", "reason", "attempts"),
    }
    assert tracediff_text(diff, BEGIN).splitlines()[4:] == [
        "NODE  WHAT    A            B",
        "a     status  ✓ completed  ✗ failed: exit 3",
        "b     status  ✓ completed  – skipped: dependency: a failed",
        "b     tries   1            0",
        "",
        "different: status; nodes: 2 changed, 1 the same",
    ]


def test_two_failures_that_are_not_the_same() -> None:
    one, other = took(9, outcome=Outcome.FAILED, exit_code=3), took(9, outcome=Outcome.TIMED_OUT)
    diff = of(one, other)
    assert changes(diff) == {"a": ("outcome", "exit_code", "error")}
    assert "a     status  ✗ failed: exit 3  ✗ failed: timed out after 5m00s\n" in tracediff_text(diff, BEGIN)


@pytest.mark.parametrize(
    ("a", "b", "ratio"),
    [
        (1000, 1200, None),  # a fifth, and no more
        (1000, 1201, 1.201),
        (1201, 1000, 1 / 1.201),
        (1, 101, None),  # 100 ms, and no more
        (1, 102, 102.0),
        (100_000, 110_000, None),
    ],
)
def test_times_are_told_where_they_differ_much(a: int, b: int, ratio: float | None) -> None:
    diff = of(took(a), took(b))
    assert changes(diff) == ({"a": ("duration_ms",)} if ratio else {})
    assert diff.nodes[0].ratio == (pytest.approx(ratio) if ratio else None)
    assert diff.same  # time alone is no difference


def test_a_time_that_was_none_has_no_ratio() -> None:
    diff = of(took(0), took(500))
    assert (changes(diff), diff.nodes[0].ratio) == ({"a": ("duration_ms",)}, None)
    assert "a     time  0.0s  0.5s\n" in tracediff_text(diff, BEGIN)
    assert summary_line(diff) == "the same but for time: nodes: 1 only in time, 2 the same"


def test_a_time_is_shown_with_its_ratio() -> None:
    assert "a     time  1.0s  2.5s (2.5x)\n" in tracediff_text(of(took(1000), took(2500)), BEGIN)


def test_nodes_of_one_run_only_and_other_definitions() -> None:
    a = Story([node("a"), node("gone", "a"), node("c")]).finish()
    b = Story([node("a"), node("new"), node("c", "a")]).finish()
    diff = of(a, b)
    assert [(n.node_id, n.where, n.kind) for n in diff.nodes] == [
        ("a", "both", "same"),
        ("c", "both", "changed"),
        ("new", "b", "only_b"),
        ("gone", "a", "only_a"),
    ]
    assert diff.differs == ("plan",)
    text = tracediff_text(diff, BEGIN, how="dagrun diff r7k2 k3m9")
    assert "\nthe plans differ; see how: dagrun diff r7k2 k3m9\n" in text
    assert "c     plan                    changed\n" in text
    assert "new   only in B               ✓ completed\n" in text
    assert "gone  only in A  ✓ completed\n" in text
    assert text.endswith("\ndifferent: plan; nodes: 1 changed, 1 only in A, 1 only in B, 1 the same\n")
    found = tracediff_json(diff)
    assert [(n["in"], n["a"] is None, n["b"] is None) for n in listed(found["nodes"])] == [
        ("both", False, False),
        ("b", True, False),
        ("a", False, True),
    ]


def test_a_plan_that_differs_around_its_nodes() -> None:
    diff = of(story().finish(), Story([node("a"), node("b", "a"), node("c")], fail_fast=True).finish())
    assert (diff.differs, diff.nodes_differ) == (("plan",), False)
    assert "the plans differ; not in the nodes, but in what stands around them" in tracediff_text(diff, BEGIN)


def test_the_same_plan_in_another_file_is_the_same() -> None:
    nodes = {"a": node("a")}
    plans = [Workflow(name="x", nodes=nodes, file=f, digest=f) for f in ("a.yaml", "b.yaml")]
    made = [Story([node("a")]).finish() for _ in plans]
    for each, plan in zip(made, plans, strict=True):
        each.state.plan = replace(each.state.plan, workflow=plan)
    assert of(*made).same


def test_a_node_that_a_patch_removed_is_not_there() -> None:
    b = story("bbbb")
    verdict = admit(b.state, Patch(operations=(Remove(id="b", strategy="bridge"),)), by="ada")
    assert verdict.event is not None
    b.tell(verdict.event).finish()
    assert "b" in b.state.plan.index  # it keeps its number
    diff = of(story().finish(), b)
    assert [(n.node_id, n.kind) for n in diff.nodes if n.kind != "same"] == [("b", "only_a")]


def test_params_that_differ_by_value_type_or_presence() -> None:
    a = story(params={"same": [1], "n": 1, "flag": 1, "old": "x"}).finish()
    b = story(params={"same": [1], "n": 2, "flag": True, "new": None}).finish()
    diff = of(a, b)
    assert diff.differs == ("params",)
    assert tracediff_text(diff, BEGIN).splitlines()[4:9] == [
        "PARAM  A       B",
        "n      1       2",
        "flag   1       true",
        'old    "x"     (none)',
        "new    (none)  null",
    ]
    assert [(p["name"], p["in"]) for p in listed(tracediff_json(diff)["params"])] == [
        ("n", "both"),
        ("flag", "both"),
        ("old", "a"),
        ("new", "b"),
    ]
    assert summary_line(diff) == "different: 4 params; nodes: 3 the same"


def test_outputs_are_named_and_never_shown() -> None:
    def gave(value: str, sha: str) -> Story:
        held: dict[str, Json] = {"x": {"v": value}, "same": {"v": 1}, "big": {"sha": sha, "size": 9}}
        files = ({"path": "out.txt", "sha": sha, "size": 1, "mode": 0o644},)
        made = story().start("a", "c").end("a", outputs=held, artifacts=files).end("c").start("b").end("b")
        return made.tell(RunEnded(status=RunStatus.COMPLETED, exit_code=0, outputs={"result": {"v": value}}))

    diff = of(gave("secret-1", "ab"), gave("secret-2", "cd"))
    assert (diff.differs, diff.outputs) == (("outputs",), ("result",))
    assert (diff.nodes[0].outputs, diff.nodes[0].artifacts) == (("x", "big"), ("out.txt",))
    text = tracediff_text(diff, BEGIN)
    assert "other outputs of the run: result\n" in text
    assert "changed: x, big\n" in text
    assert "changed: out.txt\n" in text
    assert "secret" not in text + dumps(tracediff_json(diff))
    assert of(gave("x", "ab"), gave("x", "ab")).same


def test_what_agents_used() -> None:
    a, b = research(), Story(research().plan.nodes)
    diff = compare_runs(side(a), Side(b.state, RunStatus.CRASHED))
    scan = next(n for n in diff.nodes if n.node_id == "scan")
    assert {"model", "input_tokens", "output_tokens", "cost_usd", "attempts"} <= set(scan.differs)
    lines = tracediff_text(diff, BEGIN).splitlines()
    assert any(x.split() == "scan tokens 3,000 in, 600 out 0 in, 0 out".split() for x in lines)
    assert any(x.split() == ["scan", "model", "gpt-5-2026", "(none)"] for x in lines)
    assert any(x.split() == ["scan", "cost", "$0.006", "$0.00"] for x in lines)
    assert "TOKENS" in lines[0]
    assert lines[2].startswith("B  r7k2  crashed")


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("look", [Look(), Look(ASCII), Look(paint=Paint(True))])
def test_a_terminal_gets_nothing_wider_or_livelier_than_it_is(width: int, look: Look) -> None:
    look = Look(look.glyphs, look.paint, width)
    evil = "\x1b]0;owned\x07\x1b[2J[red]" + "w" * 200
    a = story(params={"p" * 90: evil}).finish()
    b = story("bbbb", params={"p" * 90: 1})
    b.start("a").at(1).end("a", Outcome.FAILED, error=evil, outputs={evil: {"v": 1}}).finish()
    text = tracediff_text(of(a, b), BEGIN + 60, look, how="dagrun diff aaaa bbbb")
    assert all(cells(clean(line)) <= width for line in text.splitlines())
    assert "\x07" not in text
    ours = re.sub("\x1b\\[[0-9;]*m", "", text) if look.paint.on else text
    assert "\x1b" not in ours
    assert "failed" in ours
    if width == 80:
        assert "failed: [red]www" in ours  # markup is text


def test_a_pipe_gets_all_of_it_and_a_name_on_each_line() -> None:
    a, b = took(10), took(2000, outcome=Outcome.FAILED, error="e" * 300)
    lines = tracediff_text(of(a, b), BEGIN).splitlines()
    assert sum(line.startswith("a  ") for line in lines) == 2
    assert any("e" * 300 in line for line in lines)
    on_terminal = tracediff_text(of(a, b), BEGIN, Look(width=80)).splitlines()
    assert sum(line.startswith("a  ") for line in on_terminal) == 1


def test_the_json_has_one_shape() -> None:
    found = tracediff_json(of(took(10), took(500)))
    assert list(found) == ["version", "same", "differs", "a", "b", "plan", "params", "outputs", "nodes", "counts"]
    assert (found["version"], found["same"]) == (1, True)
    assert found["counts"] == {"same": 2, "changed": 0, "time": 1, "only_a": 0, "only_b": 0}
    [told] = listed(found["nodes"])
    assert (told["kind"], told["differs"], told["duration_ratio"]) == ("time", ["duration_ms"], 50.0)
    assert {"status", "outcome", "exit_code", "attempts", "duration_ms", "model", "cost_usd"} <= set(
        cast("dict[str, Json]", told["a"])
    )

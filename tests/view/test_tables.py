"""Tables of what happened, on a terminal and in a pipe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dagrun.core.names import Outcome, RunStatus, Schedule
from dagrun.view.detail import failures_table, node_detail
from dagrun.view.tables import Head, RunRow, ago, runs_table, table, trace_table
from dagrun.view.text import ASCII, Look, Paint, cells, clean
from dagrun.view.timeline import timeline

from .agents_story import CENT, research
from .story import BEGIN, Story, node, release_notes


def test_trace_show_in_a_pipe() -> None:
    assert trace_table(release_notes().finish().state) == (
        "release-notes r7k2  failed in 1m43s  10 nodes, 5 waves: 6 ok, 1 failed, 3 skipped\n"
        "\n"
        "NODE           STATUS       WAVE  TRIES   TIME  SUMMARY\n"
        "collect-prs    ✓ completed     1      1    12s  40 pull requests\n"
        "fetch-deps     ✓ completed     1      1    40s\n"
        "lint-docs      ✗ failed        2      3    13s  exit 2: 14 dead links\n"
        "summarise-prs  ✓ completed     2      2  1m25s\n"
        "draft-notes    ✓ completed     2      1    59s\n"
        "test-linux     ✓ completed     2      1    59s  the tests\n"
        "scan-deps      ✓ completed     2      1   1.0s\n"
        "assemble       – skipped       3                dependency: lint-docs failed\n"
        "publish        – skipped       4                dependency: assemble was skipped\n"
        "announce       – skipped       5                dependency: publish was skipped\n"
        "\n"
        "took the time: collect-prs > summarise-prs\n"
    )


def test_nothing_is_cut_or_coloured_in_a_pipe() -> None:
    story = Story([node("n" * 100)])
    story.start("n" * 100).end("n" * 100, Outcome.FAILED, error="e" * 500, summary="\x1b[31ms\x1b[0m [b]")
    text = trace_table(story.finish().state)
    assert "e" * 500 + ": s [b]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("look", [Look(), Look(ASCII), Look(paint=Paint(True))])
def test_a_terminal_is_never_too_narrow(width: int, look: Look) -> None:
    look = Look(look.glyphs, look.paint, width)
    state = release_notes().finish().state
    texts = [trace_table(state, look), failures_table(state, look), node_detail(state, 2, look), timeline(state, look)]
    for text in texts:
        body = [line for k, line in enumerate(text.splitlines()) if k and "dagrun logs" not in line]
        assert all(cells(clean(line)) <= max(width, 38) for line in body)


def test_columns_without_anything_in_them_are_left_out() -> None:
    heads = (Head("A"), Head("B", right=True, optional=True), Head("C"))
    assert table(heads, [("x", "", "y")]) == ["A  C", "x  y"]
    assert table(heads, [("x", "1", "y"), ("long", "", "z")]) == ["A     B  C", "x     1  y", "long     z"]


def test_one_node() -> None:
    state = release_notes().finish().state
    text = node_detail(state, state.plan.index["lint-docs"], read=lambda i: b"docs/a.md\n\x1b[31mdead\n")
    assert text.splitlines()[:4] == [
        "lint-docs  ✗ failed  release-notes r7k2",
        "  error      exit 2",
        "  summary    14 dead links",
        "  wave       2 of 5",
    ]
    assert "  2  failed   2023-11-14 22:13:37Z  4.0s  exit 2" in text
    assert text.endswith("\n| docs/a.md\n| dead\n")


def test_outputs_of_a_node() -> None:
    story = Story([node("a")]).start("a")
    outputs = {"n": {"v": 3}, "text": {"v": "two\nlines"}, "big": {"sha": "ab12", "size": 4_200_000}}
    story.end("a", outputs=outputs)
    text = node_detail(story.state, 0)
    assert text.endswith("outputs\n  n: 3\n  text: two lines\n  big: 4.2 MB, sha256 ab12\n")


def test_failures_only() -> None:
    text = failures_table(release_notes().finish().state)
    assert "lint-docs  ✗ failed" in text
    assert "collect-prs" not in text
    assert text.endswith("dagrun logs r7k2 lint-docs\n")
    assert failures_table(Story([node("a")]).finish().state).endswith("no node failed\n")


def test_a_timeline() -> None:
    story = Story([node("a"), node("b"), node("c", "a")], schedule=Schedule.READY)
    story.start("a", "b").at(5).end("a").start("c").at(10).end("b").end("c", Outcome.FAILED, exit_code=1).finish()
    assert timeline(story.state, Look(ASCII, width=40)).splitlines()[1:] == [
        "    0                      10s",
        "* a #############                  5.0s",
        "  b ##########################      10s",
        "* c              ############x     5.0s",
    ]
    assert timeline(Story([node("a")]).state).endswith("no node ran\n")


def test_runs() -> None:
    rows = [
        RunRow(
            run_id="r7k2", workflow="rel\x1b[1m", status=RunStatus.FAILED, created_at=BEGIN, duration_s=40, failed=1
        ),
        RunRow(run_id="q1", workflow="ci", status=RunStatus.TIMED_OUT, created_at=BEGIN, duration_s=4000, nodes=1200),
    ]
    assert runs_table(rows, BEGIN + 4000, Look(width=80)).splitlines() == [
        "RUN   WORKFLOW  STATUS     STARTED   TIME    NODES  FAILED",
        "r7k2  rel       failed     1h ago     40s      0/0       1",
        "q1    ci        timed out  1h ago   1h06m  0/1,200",
    ]
    assert "2023-11-14T22:13:20.000Z" in runs_table(rows, BEGIN)
    assert "dagrun execute" in runs_table([], BEGIN)


def test_runs_that_cost_something_say_what() -> None:
    when = {"created_at": BEGIN, "duration_s": 4.0}
    free = RunRow(run_id="q1", workflow="ci", status=RunStatus.COMPLETED, nodes=1, done=1, **when)  # type: ignore[arg-type]
    paid = replace(free, run_id="r7k2", workflow="ai", status=RunStatus.OVER_BUDGET, failed=1, spent=CENT)
    assert runs_table([free, paid], BEGIN + 40, Look(width=80)).splitlines() == [
        "RUN   WORKFLOW  STATUS       STARTED  TIME  NODES  FAILED   COST",
        "q1    ci        completed    40s ago  4.0s    1/1",
        "r7k2  ai        over budget  40s ago  4.0s    1/1       1  $0.01",
    ]
    assert "COST" not in runs_table([free], BEGIN)


def test_a_run_with_agents() -> None:
    lines = trace_table(research().state).splitlines()
    assert lines[1] == "  5 model calls · 3,000 tokens in · 600 out · spent $0.006 of $1.00 · held $0.01"
    assert lines[3:6] == [
        "NODE   STATUS       WAVE  TRIES  TIME  MODEL       TOKENS    COST  SUMMARY",
        "check  ● running       1      1  6.0s",
        "scan   ✓ completed     1      1  6.0s  gpt-5-2026   3,600  $0.006  x",
    ]
    plain = trace_table(release_notes().state)
    assert not {"MODEL", "TOKENS", "COST"} & set(plain.split())
    assert "spent" not in plain


def test_ago() -> None:
    assert [ago(s) for s in (1, 42, 130, 7300, 200_000)] == ["just now", "42s ago", "2m ago", "2h ago", "2d ago"]


def test_what_a_node_wrote_last_is_not_said_again_behind_the_same_error() -> None:
    story = Story([node("a"), node("b")]).start("a", "b").at(1)
    story.end("a", Outcome.FAILED, error="no server: it is not there", summary="no server: it is")
    story.end("b", Outcome.FAILED, error="no server", summary="last words")
    text = trace_table(story.state)
    assert text.count("no server: it is") == 1
    assert "no server: last words" in text

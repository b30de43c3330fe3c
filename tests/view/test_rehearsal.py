"""A rehearsal as people and programs see it: small flows line by line, large ones by what ends alike."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dagrun.core.pretend import Step
from dagrun.core.rehearse import Case, Report, rehearse
from dagrun.core.workflow import Input, Node, OnFailure, Output, Workflow
from dagrun.view.rehearsal import rehearsal_json, rehearsal_text
from dagrun.view.text import ASCII, Look, Paint, cells
from tests.view.story import node

TEXT = {"x": Output(source="stdout")}


def small(**kw: object) -> Workflow:
    """fetch → analyze (with a fallback) → publish → tidy (always), and a fallback that can't work."""
    summary = {"summary": Input(expression="nodes.analyze.x")}
    nodes = [
        node("fetch"),
        node("analyze", "fetch", outputs=TEXT, on_failure=OnFailure(fallback="simple")),
        node("scan", "fetch", on_failure=OnFailure(fallback="bad")),
        node("publish", "scan", inputs=summary, condition="inputs.summary != ''"),
        node("tidy", "publish", condition="always()"),
        node("alarm", "publish", condition="failure()"),
    ]
    late = {"y": Input(expression="nodes.fetch.gone", optional=True)}
    templates = [node("simple", outputs=TEXT), node("bad", inputs=late), node("left")]
    return Workflow(
        name="notes", nodes={n.id: n for n in nodes}, templates={t.id: t for t in templates}, file="flow.yaml", **kw  # type: ignore[arg-type]
    )


def test_a_small_flow_is_told_failure_by_failure() -> None:
    assert rehearsal_text(rehearse(small(), depth=2)) == (
        "notes: 6 nodes, each failed in turn, up to 2 failures in a row\n"
        "\n"
        "FAILS             RUN ENDS        HELP                    NEVER RUNS\n"
        "fetch             failed, a hole  none                    3: analyze, scan, publish\n"
        "analyze           completed       fallback simple\n"
        "analyze + simple  failed, a hole  fallback simple         1: publish\n"
        "scan              failed, a hole  fallback bad (refused)  1: publish\n"
        "publish           failed          none\n"
        "tidy              failed          none\n"
        "\n"
        "declared, but would be refused:\n"
        "  scan: fallback bad: node `fetch` has no output `gone` (declare it there: outputs: {gone: {from: stdout}})\n"
        "\n"
        "note: taken to hold, since only a run knows: `if` of publish\n"
        "note: not failed, since they don't run when all goes well: alarm\n"
        "note: templates that no failure brings in:\n"
        "  left: no node and no fallback names it\n"
        "\n"
        "✗ 3 of 6 failures leave a hole (1 with no on_failure)\n"
    )


def test_without_a_hole_it_says_so() -> None:
    text = rehearsal_text(rehearse(Workflow(name="w", nodes={"a": node("a")})))
    assert text.endswith("\n✓ no failure leaves a hole\n")


def test_a_flow_that_does_not_come_through_by_itself() -> None:
    reader = node("b", condition="always()", inputs={"x": Input(expression="nodes.a.x")})
    report = rehearse(Workflow(name="w", nodes={"a": node("a", condition="false", outputs=TEXT), "b": reader}))
    text = rehearsal_text(report)
    assert "  b can't start: input `x` has no value" in text
    assert "mend that first" in text
    assert "hole" not in text


def test_what_runs_after_a_failure_and_cannot_start_is_told_once() -> None:
    tidy = node("tidy", condition="always()", inputs={"x": Input(expression="nodes.b.x")})
    nodes = {"a": node("a"), "b": node("b", "a", outputs=TEXT), "tidy": tidy}
    text = rehearsal_text(rehearse(Workflow(name="w", nodes=nodes)))
    assert text.count("tidy, after") == 1
    assert "  tidy, after a failed: input `x` has no value" in text


def large(count: int = 400) -> Report:
    """Rows of twenty: a third with a fallback, a third with a review, a third with nothing."""
    help_ = [None, OnFailure(fallback="spare"), OnFailure(review=Node(id="r").review)]
    nodes: dict[str, Node] = {}
    for i in range(count):
        needs = [f"n{(i // 20 - 1) * 20 + (i * k + k) % 20}" for k in (1, 7)] if i >= 20 else []
        nodes[f"n{i}"] = node(f"n{i}", *dict.fromkeys(needs), on_failure=help_[i % 2])
    return rehearse(Workflow(name="big", nodes=nodes, templates={"spare": node("spare")}), depth=2)


def test_a_large_flow_is_told_by_what_ends_alike() -> None:
    report = large()
    text = rehearsal_text(report, Look(width=100))
    lines = text.splitlines()
    assert len(lines) < 30
    assert all(cells(line) <= 100 for line in lines)
    table = lines[2 : lines.index("", 2)]
    assert table[0].split()[:1] == ["FAILURES"]
    assert sum(int(line.split()[0].replace(",", "")) for line in table[1:]) == len(report.cases)
    assert "the worst 10 of 380 holes (--json has all):" in lines
    assert lines[-1] == "✗ 380 of 600 failures leave a hole (190 with no on_failure)"


@pytest.mark.parametrize("width", [20, 40, 79])
def test_tables_keep_to_the_width(width: int) -> None:
    report = replace(rehearse(small()), idle_templates={}, unreached={}, open_ifs=())
    lines = rehearsal_text(report, Look(width=width)).splitlines()
    assert all(cells(line) <= width for line in lines[2 : lines.index("", 2)])


def test_ascii_and_colour() -> None:
    report = rehearse(small())
    assert rehearsal_text(report, Look(glyphs=ASCII, width=60)).isascii()
    coloured = rehearsal_text(report, Look(paint=Paint(on=True)))
    assert "\x1b[31m" in coloured
    assert "\x1b" not in rehearsal_text(report)


def test_text_of_others_moves_no_cursor() -> None:
    evil = "x\x1b[2Jy\r"
    steps = (Step(node="a", kind="replan", name=evil, result="refused", text=evil),)
    case = Case(node="a", failures=1, ends="failed", steps=steps, cannot_start={"b": evil}, lost=("b",), notes=(evil,))
    report = Report(workflow=evil, file="", nodes=2, depth=1, cases=(case,), idle_templates={"t": evil}, notes=(evil,))
    text = rehearsal_text(report)
    assert "\x1b" not in text
    assert "\r" not in text


def test_json_holds_the_whole_report() -> None:
    report = rehearse(small(), depth=2)
    data = json.loads(json.dumps(rehearsal_json(report), allow_nan=False))
    assert data["version"] == 1
    assert data["holes"] == len(report.holes) == sum(c["hole"] for c in data["cases"])
    assert [c["node"] for c in data["cases"]] == [c.node for c in report.cases]
    scan = next(c for c in data["cases"] if c["node"] == "scan")
    assert scan["steps"][0]["result"] == "refused"
    assert scan["lost"] == ["publish"]
    assert data["idle_templates"] == {"left": "no node and no fallback names it"}
    fields = set(Case.__dataclass_fields__) | {"hole", "protected"}
    assert set(scan) == fields

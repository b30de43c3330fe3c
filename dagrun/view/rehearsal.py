"""A rehearsal for people and for programs: how the run ends after each failure, and what leaves a hole.

A small workflow is shown failure by failure; of a large one, failures that end alike share a line
and the worst holes are named. What has to be mended comes with its full text, never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dagrun.core.names import Json
from dagrun.view.tables import Head, table
from dagrun.view.text import PLAIN, Look, clean, plural

if TYPE_CHECKING:
    from dagrun.core.pretend import Step
    from dagrun.core.rehearse import Case, Report

_MANY = 24  # more cases than this are grouped
_WORST = 10
_NAMES = 8

_ONE_BY_ONE = (Head("FAILS"), Head("RUN ENDS"), Head("HELP", optional=True), Head("NEVER RUNS", optional=True))
_GROUPED = (
    Head("FAILURES", right=True),
    Head("RUN ENDS"),
    Head("HELP", optional=True),
    Head("EACH LOSES", right=True, optional=True),
    Head("SUCH AS"),
)
_HOLES = (Head("FAILS"), Head("LOSES", right=True), Head("NEVER RUNS"))


def rehearsal_text(report: Report, look: Look = PLAIN) -> str:
    """The report as text; ends with a newline. With a width in the look, tables are cut to it."""
    lines = [_headline(report), ""]
    if report.failures:
        lines.append("without any failure, the run does not come through:")
        lines += [f"  {clean(n)} can't start: {clean(why)}" for n, why in report.failures.items()]
        lines.append("nothing was rehearsed: mend that first")
    elif len(report.cases) <= _MANY:
        lines += _one_by_one(report.cases, look)
    else:
        lines += _grouped(report.cases, look)
        lines += _worst(report.holes, look)
    lines += _to_mend(report.cases)
    lines += _remarks(report)
    if not report.failures:
        lines += ["", _verdict(report, look)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def rehearsal_json(report: Report) -> dict[str, Json]:
    """The report whole, for programs."""
    return {
        "version": 1,
        "workflow": report.workflow,
        "file": report.file,
        "nodes": report.nodes,
        "depth": report.depth,
        "holes": len(report.holes),
        "cases": [_case_json(case) for case in report.cases],
        "failures": dict(report.failures),
        "unreached": dict(report.unreached),
        "idle_templates": dict(report.idle_templates),
        "open_ifs": list(report.open_ifs),
        "notes": list(report.notes),
    }


def _case_json(case: Case) -> Json:
    return {
        "node": case.node,
        "failures": case.failures,
        "ends": case.ends,
        "hole": case.hole,
        "protected": case.protected,
        "steps": [
            {"node": s.node, "kind": s.kind, "name": s.name, "result": s.result, "text": s.text} for s in case.steps
        ],
        "fallbacks": list(case.fallbacks),
        "lost": list(case.lost),
        "cannot_start": dict(case.cannot_start),
        "open_ifs": list(case.open_ifs),
        "notes": list(case.notes),
    }


# ---------------------------------------------------------------- the parts


def _headline(report: Report) -> str:
    how = "each failed in turn" if report.depth == 1 else f"each failed in turn, up to {report.depth} failures in a row"
    return f"{clean(report.workflow)}: {plural(report.nodes, 'node')}, {how}"


def _one_by_one(cases: Sequence[Case], look: Look) -> list[str]:
    """A line for each failure, in the order of the file."""
    rows = [[_who(c), _ends(c), _help(c), _counted(c.lost)] for c in cases]
    return table(_ONE_BY_ONE, rows, look, lambda k: _style(cases[k])) if rows else ["no node runs"]


def _grouped(cases: Sequence[Case], look: Look) -> list[str]:
    """A line for all failures that end alike; the worst first, then the most."""
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        in_a_row = f" ({case.failures} in a row)" if case.failures > 1 else ""
        kind = _kind_of_help(case) + in_a_row
        groups.setdefault((_ends(case), kind, "some" if case.lost else ""), []).append(case)
    order = {"failed, a hole": 0, "failed": 1, "needs review": 2, "completed": 3}
    listed = sorted(groups.items(), key=lambda item: (order[item[0][0]], -len(item[1])))
    rows = [
        [f"{len(found):,}", ends, kind, _range([len(c.lost) for c in found]), _some(c.node for c in found)]
        for (ends, kind, _), found in listed
    ]
    return table(_GROUPED, rows, look, lambda k: _style(listed[k][1][0]))


def _worst(holes: Sequence[Case], look: Look) -> list[str]:
    if not holes:
        return []
    listed = sorted(holes, key=lambda c: -len(c.lost))[:_WORST]
    rows = [[_who(c), f"{len(c.lost):,}", _some(c.lost)] for c in listed]
    head = "the holes" if len(holes) <= _WORST else f"the worst {_WORST} of {len(holes):,} holes (--json has all)"
    return ["", f"{head}:", *table(_HOLES, rows, look)]


def _to_mend(cases: Sequence[Case]) -> list[str]:
    """What was declared and would not work, with the reasons in full."""
    lines: list[str] = []
    refused = dict.fromkeys(s for c in cases for s in c.steps if s.result == "refused")
    if refused:
        lines += ["", "declared, but would be refused:"]
        lines += _bounded([f"  {clean(s.node)}: {_step(s)}: {clean(s.text)}" for s in refused])
    unknown = dict.fromkeys(s for c in cases for s in c.steps if s.result == "unknown")
    if unknown:
        lines += ["", "not rehearsed, counted as no help:"]
        lines += _bounded([f"  {clean(s.node)}: {_step(s)}: {clean(s.text)}" for s in unknown])
    stuck: dict[str, str] = {}
    for case in cases:
        for name, why in case.cannot_start.items():
            stuck.setdefault(name, f"  {clean(name)}, after {_who(case)} failed: {clean(why)}")
    if stuck:
        lines += ["", "runs after a failure, but can't start:", *_bounded(list(stuck.values()))]
    notes = Counter(clean(note) for case in cases for note in case.notes)
    if notes:
        lines += ["", "look at:", *_bounded([f"  {note}" for note in notes])]
    return lines


def _remarks(report: Report) -> list[str]:
    """What was assumed or left out."""
    lines = [f"note: {clean(note)}" for note in report.notes]
    is_open = dict.fromkeys([*report.open_ifs, *(n for c in report.cases for n in c.open_ifs)])
    if is_open:
        lines.append(f"note: taken to hold, since only a run knows: `if` of {_some(is_open)}")
    if report.unreached:
        lines.append(f"note: not failed, since they don't run when all goes well: {_some(report.unreached)}")
    if report.idle_templates:
        lines.append("note: templates that no failure brings in:")
        lines += _bounded([f"  {clean(n)}: {clean(why)}" for n, why in report.idle_templates.items()])
    return ["", *lines] if lines else []


def _verdict(report: Report, look: Look) -> str:
    if not report.cases:
        return look.paint("no node could be failed", "yellow")
    holes = len(report.holes)
    if not holes:
        return look.paint(f"{look.glyphs.ok} no failure leaves a hole", "green")
    bare = sum(not c.protected for c in report.holes)
    text = f"{look.glyphs.failed} {holes:,} of {plural(len(report.cases), 'failure')} {_leave(holes)} a hole"
    help_ = f" ({bare:,} with no on_failure)" if bare else ""
    return look.paint(text + help_, "red")


def _leave(count: int) -> str:
    return "leaves" if count == 1 else "leave"


# ---------------------------------------------------------------- words


def _who(case: Case) -> str:
    """What fails: the node, then what stood in for it."""
    if case.failures == 1:
        return clean(case.node)
    then = [clean(name) for name in case.fallbacks[: case.failures - 1]]
    if len(then) < case.failures - 1 or "inline" in then:
        return f"{clean(case.node)} ({case.failures} in a row)"
    return " + ".join([clean(case.node), *then])


def _ends(case: Case) -> str:
    return "failed, a hole" if case.hole else case.ends.replace("_", " ")


def _style(case: Case) -> str:
    return case.ends if case.ends != "failed" or case.hole else "needs_review"


def _step(step: Step) -> str:
    if step.kind == "review":
        return "review"
    if step.kind in ("replan", "replanner"):
        return f"{step.kind} {clean(step.name)}".rstrip()
    return "inline fallback" if step.name == "inline" else f"fallback {clean(step.name)}"


def _help(case: Case) -> str:
    """The steps that were tried, in order."""
    words = {"taken": "", "refused": " (refused)", "unknown": " (not rehearsed)"}
    return ", then ".join(_step(s) + words[s.result] for s in case.steps) or _none(case)


def _kind_of_help(case: Case) -> str:
    """The same without the names."""
    words = {"taken": "", "refused": " refused", "unknown": " not rehearsed"}
    return ", ".join(dict.fromkeys(s.kind + words[s.result] for s in case.steps)) or _none(case)


def _none(case: Case) -> str:
    return "none" if case.ends == "failed" else ""


def _some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _NAMES
    shown = [clean(n) for n in (listed[:_NAMES] if more > 1 else listed)]
    return ", ".join(shown) + (f" and {more:,} more" if more > 1 else "")


def _counted(names: Sequence[str]) -> str:
    """The same, with their number first: a narrow column cuts the names."""
    return f"{len(names):,}: {_some(names)}" if names else ""


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return "" if not high else f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _bounded(lines: list[str]) -> list[str]:
    more = len(lines) - _WORST
    return lines if more <= 1 else [*lines[:_WORST], f"  and {more:,} more (--json has all)"]

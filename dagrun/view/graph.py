"""A plan before it runs: waves, what is skipped, the critical path, what the barrier costs.

Times come from estimates only; without any, depths are counted instead and no second is
promised. `plan_json` holds all that the text shows, and stays the same for programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagrun.core.names import Json, NodeId, Schedule, format_duration
from dagrun.core.plan import compile_plan
from dagrun.view.mermaid import plan_dot, plan_mermaid, waves
from dagrun.view.schedule import Rehearsal, durations, rehearse
from dagrun.view.text import PLAIN, Look, cells, clean, pad, plural

if TYPE_CHECKING:
    from dagrun.core.permissions import Isolation
    from dagrun.core.plan import Plan
    from dagrun.core.workflow import Node

_WAVE_NODES = 60  # more of one wave are only counted, on a terminal
_PATH_NODES = 12
_STEP_NODES = 10_000  # of larger plans nothing is played through only for its barrier

__all__ = ["Outlook", "outlook", "plan_dot", "plan_json", "plan_mermaid", "plan_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of a run of a plan before it begins. Seconds are None without any estimate.

    `steps` are then the lengths with and without the barrier if all nodes took one step; None where
    it can't matter, or nobody would wait for the answer.
    """

    parallel: int
    known: int
    seconds: list[float]
    path: list[int]
    path_s: float | None
    work_s: float | None
    waves_s: float | None
    ready_s: float | None
    steps: tuple[int, int] | None
    widest_wave: int
    widest: int
    skipped: Mapping[int, str]
    undecided: frozenset[int]


def outlook(
    plan: Plan, parallel: int, params: Mapping[str, Json] | None, estimates: Mapping[NodeId, float] | None = None
) -> Outlook:
    """Play the plan through under both schedules with `parallel` slots."""
    seconds, known = durations(plan, estimates)
    schedule = plan.workflow.schedule
    runs: dict[Schedule, Rehearsal] = {}
    steps = not known and schedule is Schedule.WAVES and 1 < plan.depth < len(plan.ids) <= _STEP_NODES
    for each in Schedule:
        if known or steps or each is schedule:
            runs[each] = rehearse(plan, parallel=parallel, schedule=each, seconds=seconds, params=params)
    own = runs[schedule]
    path = _longest_path(plan, seconds, own.skipped)
    return Outlook(
        parallel=parallel,
        known=known,
        seconds=seconds,
        path=path,
        path_s=sum(seconds[i] for i in path) if known else None,
        work_s=sum(s for i, s in enumerate(seconds) if i not in own.skipped) if known else None,
        waves_s=runs[Schedule.WAVES].makespan_s if known else None,
        ready_s=runs[Schedule.READY].makespan_s if known else None,
        steps=(round(own.makespan_s), round(runs[Schedule.READY].makespan_s)) if steps else None,
        widest_wave=max(map(len, waves(plan)), default=0),
        widest=own.widest,
        skipped=own.skipped,
        undecided=own.undecided,
    )


def _longest_path(plan: Plan, seconds: list[float], skipped: Mapping[int, str]) -> list[int]:
    """The path through the nodes that may run that takes longest one after another."""
    there = [i for i in range(len(plan.ids)) if i not in skipped]
    rank = [0.0] * len(plan.ids)
    after: dict[int, int] = {}
    for i in sorted(there, key=plan.wave.__getitem__, reverse=True):
        below = [d for d in plan.dependents[i] if d not in skipped]
        if below:
            after[i] = max(below, key=rank.__getitem__)
        rank[i] = seconds[i] + (rank[after[i]] if below else 0.0)
    path = [max(there, key=rank.__getitem__)] if there else []
    while path and path[-1] in after:
        path.append(after[path[-1]])
    return path


def about(seconds: float) -> str:
    """A duration that is only guessed: `~1m05s`."""
    return f"~{format_duration(seconds)}" if seconds >= 0.05 else "<0.1s"


def _whole(plan: Plan) -> Plan:
    """The plan without the nodes that patches took out, as a new run would see it."""
    return compile_plan(plan.workflow, plan.revision) if plan.removed else plan


# ---------------------------------------------------------------- text


def plan_text(
    plan: Plan,
    *,
    width: int | None,
    room_parallel: int,
    params: Mapping[str, Json] | None = None,
    estimates: Mapping[NodeId, float] | None = None,
    look: Look = PLAIN,
) -> str:
    """The plan for a person. With a `width` lines are folded to it and huge waves only counted."""
    plan = _whole(plan)
    view = outlook(plan, room_parallel, params, estimates)
    name = clean(plan.workflow.name)
    head = [plural(len(plan.ids), "node"), plural(plan.depth, "wave")]
    head.append(f"critical path {_path_length(view)}")
    head.append(f"at most {view.widest} at a time (j{view.parallel})")
    lines = _wrapped(f"{name}   ", [f"{part}," for part in head[:-1]] + head[-1:], width, " ")
    lines[0] = look.paint(name, "bold") + lines[0][len(name) :]
    for number, members in enumerate(waves(plan), start=1):
        lines += _wave_lines(plan, number, members, view, width, look)
    lines += _path_lines(plan, view, width)
    lines += _schedule_lines(plan, view, width)
    lines += _skip_lines(plan, view, width)
    return "\n".join(lines) + "\n"


def _path_length(view: Outlook) -> str:
    if view.path_s is None:
        return plural(len(view.path), "node")
    return about(view.path_s)


def _wave_lines(plan: Plan, number: int, members: list[int], view: Outlook, width: int | None, look: Look) -> list[str]:
    shown = members if width is None else members[:_WAVE_NODES]
    words = [_word(plan, i, view, look) for i in shown]
    if len(shown) < len(members):
        words.append(f"and {len(members) - len(shown):,} more")
    column = min(max(map(cells, words), default=0), 28)
    return _wrapped(f"wave {number}".ljust(8), [pad(w, column) for w in words], width, "  ")


def _word(plan: Plan, i: int, view: Outlook, look: Look) -> str:
    node = plan.nodes[i]
    parts = [node.id]
    if i in view.skipped:
        return f"{look.glyphs.skipped} {node.id} (skipped)"
    if view.known and (view.seconds[i] or node.estimate_s):
        parts.append(about(view.seconds[i]))
    if i in view.undecided:
        parts.append("(if)")
    return " ".join([*parts, *_marks(plan, node)])


def _marks(plan: Plan, node: Node) -> list[str]:
    level = _level(plan, node)
    marks: list[str] = ["review"] if node.review is not None else [level] if level != "process" else []
    if node.retry.max_attempts > 1:
        marks.append(f"x{node.retry.max_attempts}")
    if node.resources:
        marks.append(",".join(f"{clean(name)}={_amount(name, v)}" for name, v in node.resources.items()))
    return marks


def _level(plan: Plan, node: Node) -> Isolation:
    """The isolation that a node runs at."""
    run, own = plan.workflow.permissions, node.permissions
    if run is None and own is None:
        return node.isolation
    from dagrun.core.lattice import effective  # 3 ms to import, for plans that have permissions

    return effective(run, own, node.isolation).isolation


def _amount(name: str, value: float) -> str:
    if name != "memory":
        return f"{value:g}"
    for unit, factor in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:g}"


def _path_lines(plan: Plan, view: Outlook, width: int | None) -> list[str]:
    names = [plan.ids[i] for i in view.path]
    if len(names) < 2:
        return []
    if width is not None and len(names) > _PATH_NODES:
        half = _PATH_NODES // 2
        names = [*names[:half], f"({len(names) - 2 * half:,} more)", *names[-half:]]
    words = [f"{name} >" for name in names[:-1]] + names[-1:]
    return _wrapped("path    ", words, width, " ")


def _schedule_lines(plan: Plan, view: Outlook, width: int | None) -> list[str]:
    if view.steps is not None:
        more = view.steps[0] - view.steps[1]
        price = f"{more:,} of {view.steps[0]:,} steps" if more > 0 else "nothing"
        text = "not known before the first run, without an estimate: in a node; "
        text += f"if all took equally long, the barrier would cost {price}"
        return _wrapped("time    ", text.split(" "), width, " ")
    if view.waves_s is None or view.ready_s is None or view.work_s is None:
        return []
    own = view.waves_s if plan.workflow.schedule is Schedule.WAVES else view.ready_s
    busy = view.work_s / own if own else 0.0
    words = [f"{about(own)} with schedule: {plan.workflow.schedule}, {busy:.1f} nodes busy on average"]
    if plan.workflow.schedule is Schedule.WAVES:
        cost = view.waves_s - view.ready_s
        words[0] += ";"
        if cost < 0.05:
            words.append("the barrier costs nothing")
        else:
            words.append(f"the barrier costs {about(cost)}: schedule: ready would take {about(view.ready_s)}")
    if view.known < len(plan.ids):
        words[-1] += ";"
        words.append(f"{view.known:,} of {plural(len(plan.ids), 'node')} estimated, the rest taken as their mean")
    return _wrapped("time    ", [w for part in words for w in part.split(" ")], width, " ")


def _skip_lines(plan: Plan, view: Outlook, width: int | None) -> list[str]:
    lines: list[str] = []
    limit = len(view.skipped) if width is None else 10
    for i, reason in list(view.skipped.items())[:limit]:
        kind, _, text = reason.partition(": ")
        why = f"if: {clean(text)}" if kind == "condition" else clean(text)
        lines += _wrapped(f"skip    {plan.ids[i]}  ", why.split(" "), width, " ")
    if len(view.skipped) > limit:
        lines.append(f"skip    and {len(view.skipped) - limit:,} more")
    if view.undecided:
        text = f"{plural(len(view.undecided), 'node')} marked (if): only the run can tell whether they run"
        lines += _wrapped("note    ", text.split(" "), width, " ")
    return lines


def _wrapped(head: str, words: list[str], width: int | None, gap: str) -> list[str]:
    """Words after a head, on as many lines as it takes, the later ones indented below the first."""
    indent = " " * min(cells(head), (width or 80) // 2)
    lines, line = [], head
    empty = True
    for word in words:
        if width is not None and not empty and cells(line) + len(gap) + cells(word.rstrip()) > width:
            lines.append(line.rstrip())
            line, empty = indent, True
        line += word if empty else gap + word
        empty = False
    return [*lines, line.rstrip()]


# ---------------------------------------------------------------- JSON


def plan_json(
    plan: Plan,
    *,
    room_parallel: int,
    params: Mapping[str, Json] | None = None,
    estimates: Mapping[NodeId, float] | None = None,
) -> dict[str, Json]:
    """The plan for programs: `{version, workflow, nodes, waves, critical_path, …}`; times in seconds or null."""
    plan = _whole(plan)
    view = outlook(plan, room_parallel, params, estimates)
    nodes: list[Json] = [_node_json(plan, i, view) for i in range(len(plan.ids))]
    return {
        "version": 1,
        "workflow": plan.workflow.name,
        "file": plan.workflow.file,
        "revision": plan.revision,
        "schedule": plan.workflow.schedule,
        "parallel": room_parallel,
        "nodes": nodes,
        "waves": [[plan.ids[i] for i in members] for members in waves(plan)],
        "critical_path": [plan.ids[i] for i in view.path],
        "critical_path_s": view.path_s,
        "work_s": view.work_s,
        "makespan_s": {"waves": view.waves_s, "ready": view.ready_s},
        "widest_wave": view.widest_wave,
        "widest": view.widest,
        "estimated": view.known,
        "skipped": len(view.skipped),
    }


def _node_json(plan: Plan, i: int, view: Outlook) -> dict[str, Json]:
    from dagrun.view.permissions import ceilings

    node = plan.nodes[i]
    return {
        "id": node.id,
        "title": node.title,
        "kind": node.kind,
        "wave": plan.wave[i],
        "needs": [plan.ids[d] for d in plan.needs[i]],
        "if": node.condition,
        "will_run": False if i in view.skipped else None if i in view.undecided else True,
        "reason": view.skipped.get(i, ""),
        "isolation": _level(plan, node),
        "timeout_s": node.timeout_s if node.review is None else node.review.timeout_s,
        "max_attempts": node.retry.max_attempts,
        "resources": dict(node.resources),
        "ceilings": dict(ceilings(node)),
        "estimate_s": view.seconds[i] if view.known else None,
    }

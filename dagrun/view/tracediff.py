"""Two runs beside each other: what they are, and the nodes that went another way; `trace diff`.

`compare_runs` is pure: it takes two states and knows no disk and no terminal. Values are compared as the
journals hold them, so a masked value is one here too, and only names of outputs are told. Time differs from
run to run: it is shown where it differs much, and alone makes no two runs different. As in tables.py
nothing is cut in a pipe, and every text of a node, a model or a file goes through `clean`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from json import dumps
from typing import TYPE_CHECKING

from dagrun.core.names import Json, NodeId, RunStatus, Status, format_duration
from dagrun.core.trace import TraceEntry, iso_utc, run_duration_ms, trace_entries
from dagrun.core.usage import money_of, usage_of_run, usd
from dagrun.view.tables import Head, ago, table
from dagrun.view.text import PLAIN, Look, clean, folded, glyph, money, plural, tokens

if TYPE_CHECKING:
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Workflow

VERSION = 1
MUCH_MS = 100  # times closer than that, or than the factor, are the same
MUCH_FACTOR = 1.2
_NONE = "(none)"
_TIME = "duration_ms"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs: its state, its status for people, and what an open attempt is measured to (None: no)."""

    state: RunState
    status: RunStatus
    wall_now: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDiff:
    """A node in both runs or in one. `differs` names the fields of its JSON form that are not the same.

    `ratio` is the time in B by that in A, where it differs much and A took any.
    """

    node_id: NodeId
    a: TraceEntry | None
    b: TraceEntry | None
    differs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    ratio: float | None = None

    @property
    def where(self) -> str:
        """`both`, `a` or `b`."""
        return "b" if self.a is None else "a" if self.b is None else "both"

    @property
    def kind(self) -> str:
        """`same`, `changed`, `only_a`, `only_b`, or `time` where nothing but the time differs."""
        if self.where != "both":
            return f"only_{self.where}"
        if not self.differs:
            return "same"
        return "time" if self.differs == (_TIME,) else "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceDiff:
    """How run B differs from run A. `nodes` are all of both by wave, those that are the same too.

    `differs` names what differs of the runs as a whole: workflow, status, plan, params, outputs.
    """

    a: Side
    b: Side
    differs: tuple[str, ...]
    nodes_differ: bool
    params: Mapping[str, tuple[Json, Json]]
    outputs: tuple[str, ...]
    nodes: tuple[NodeDiff, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs, or nothing but time."""
        return not self.differs and all(n.kind in ("same", "time") for n in self.nodes)

    def count(self, kind: str) -> int:
        """How many nodes are of a kind."""
        return sum(n.kind == kind for n in self.nodes)


# ---------------------------------------------------------------- comparing


def compare_runs(a: Side, b: Side) -> TraceDiff:
    """How run B differs from run A; nodes that a patch removed are in neither. O(nodes + attempts)."""
    of_a, of_b = _entries(a), _entries(b)
    names = sorted([*of_a, *(n for n in of_b if n not in of_a)], key=lambda n: (of_a.get(n) or of_b[n]).wave)
    ran_a, ran_b = a.state.created, b.state.created
    plan_a, plan_b = _plan(a.state.plan.workflow), _plan(b.state.plan.workflow)
    params = [name for name in (*ran_a.params, *ran_b.params) if _differ(ran_a.params, ran_b.params, name)]
    outputs = _different(_results(a.state), _results(b.state))
    checks = {
        "workflow": ran_a.workflow != ran_b.workflow,
        "status": a.status is not b.status,
        "plan": plan_a != plan_b,
        "params": bool(params),
        "outputs": bool(outputs),
    }
    return TraceDiff(
        a=a,
        b=b,
        differs=tuple(name for name, is_so in checks.items() if is_so),
        nodes_differ=dict(plan_a.nodes) != dict(plan_b.nodes),
        params={name: (ran_a.params.get(name), ran_b.params.get(name)) for name in params},
        outputs=outputs,
        nodes=tuple(_node(a.state, b.state, name, of_a.get(name), of_b.get(name)) for name in names),
    )


def _entries(side: Side) -> dict[NodeId, TraceEntry]:
    return {e.node_id: e for e in trace_entries(side.state, side.wall_now) if e.removed_in is None}


def _plan(workflow: Workflow) -> Workflow:
    """What a workflow says, without where that is written."""
    return replace(workflow, file="", digest="", files=())


def _results(state: RunState) -> Mapping[str, Json]:
    return state.ended.outputs if state.ended else {}


def _differ(a: Mapping[str, Json], b: Mapping[str, Json], name: str) -> bool:
    """Whether a name has another value, or none, in one of two mappings: true is not 1 here."""
    if name not in a or name not in b:
        return True
    return dumps(a[name], sort_keys=True) != dumps(b[name], sort_keys=True)


def _different(a: Mapping[str, Json], b: Mapping[str, Json]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys((*a, *b)) if _differ(a, b, name))


def _node(a: RunState, b: RunState, name: NodeId, in_a: TraceEntry | None, in_b: TraceEntry | None) -> NodeDiff:
    if in_a is None or in_b is None:
        return NodeDiff(node_id=name, a=in_a, b=in_b)
    i, j = a.plan.index[name], b.plan.index[name]
    outputs = _different(a.outputs.get(i, {}), b.outputs.get(j, {}))
    artifacts = _different(_artifacts(a, i), _artifacts(b, j))
    checks = {
        "definition": a.plan.nodes[i] != b.plan.nodes[j],
        **{field: value != _facts(in_b)[field] for field, value in _facts(in_a).items()},
        "outputs": bool(outputs),
        "artifacts": bool(artifacts),
        _TIME: _much(in_a, in_b),
    }
    differs = tuple(field for field, is_so in checks.items() if is_so)
    ratio = in_b.duration_ms / in_a.duration_ms if _TIME in differs and in_a.duration_ms else None
    return NodeDiff(node_id=name, a=in_a, b=in_b, differs=differs, outputs=outputs, artifacts=artifacts, ratio=ratio)


def _artifacts(state: RunState, i: int) -> dict[str, Json]:
    """The artifacts of the last attempt of a node by path."""
    last = state.attempts[i][-1].finish if state.attempts[i] else None
    return {str(held["path"]): held for held in (last.artifacts if last else ()) if isinstance(held, dict)}


def _facts(entry: TraceEntry) -> dict[str, Json]:
    """What is told of a node in one run, without its time, as JSON."""
    last = entry.attempts[-1] if entry.attempts else None
    return {
        "status": entry.status.value,
        "outcome": last.outcome.value if last and last.outcome else None,
        "exit_code": last.exit_code if last else None,
        "error": entry.error,
        # of others the reason may name a run or a revision: no difference in what happened
        "reason": entry.reason if entry.status is Status.SKIPPED else "",
        "attempts": len(entry.attempts),
        "isolation": entry.isolation,
        "model": entry.model,
        "input_tokens": entry.input_tokens,
        "output_tokens": entry.output_tokens,
        "cost_usd": entry.cost_usd,
    }


def _much(a: TraceEntry, b: TraceEntry) -> bool:
    """Whether a node that ran in both took a time that differs by more than a fifth and 100 ms."""
    less, more = sorted((a.duration_ms, b.duration_ms))
    return bool(a.attempts and b.attempts) and more - less > MUCH_MS and more > MUCH_FACTOR * less


# ---------------------------------------------------------------- as JSON


def tracediff_json(diff: TraceDiff, *, every: bool = False) -> dict[str, Json]:
    """`{version, same, differs, a, b, plan, params, outputs, nodes, counts}`; with `every` node, also the same ones."""
    given_a, given_b = diff.a.state.created.params, diff.b.state.created.params
    return {
        "version": VERSION,
        "same": diff.same,
        "differs": list(diff.differs),
        "a": _run_json(diff.a),
        "b": _run_json(diff.b),
        "plan": {"same": "plan" not in diff.differs, "nodes_same": not diff.nodes_differ},
        "params": [
            {"name": name, "in": _where(name in given_a, name in given_b), "a": a, "b": b}
            for name, (a, b) in diff.params.items()
        ],
        "outputs": list(diff.outputs),
        "nodes": [_node_json(n) for n in diff.nodes if every or n.kind != "same"],
        "counts": {kind: diff.count(kind) for kind in ("same", "changed", "time", "only_a", "only_b")},
    }


def _where(in_a: bool, in_b: bool) -> str:
    return "both" if in_a and in_b else "a" if in_a else "b"


def _run_json(side: Side) -> dict[str, Json]:
    state, used = side.state, usage_of_run(side.state)
    return {
        "run_id": state.created.run_id,
        "workflow": state.created.workflow,
        "file": state.created.file,
        "workflow_digest": state.created.workflow_digest,
        "revision": state.plan.revision,
        "status": side.status.value,
        "exit_code": state.ended.exit_code if state.ended else None,
        "created_at": iso_utc(state.created_at),
        _TIME: run_duration_ms(state, side.wall_now),
        "nodes": len(state.plan.ids) - len(state.removed),
        "input_tokens": used.input,
        "output_tokens": used.output,
        "cost_usd": usd(money_of(state).spent),
    }


def _node_json(node: NodeDiff) -> dict[str, Json]:
    return {
        "node_id": node.node_id,
        "in": node.where,
        "kind": node.kind,
        "differs": list(node.differs),
        "a": {**_facts(node.a), _TIME: node.a.duration_ms} if node.a else None,
        "b": {**_facts(node.b), _TIME: node.b.duration_ms} if node.b else None,
        "outputs": list(node.outputs),
        "artifacts": list(node.artifacts),
        "duration_ratio": round(node.ratio, 3) if node.ratio is not None else None,
    }


# ---------------------------------------------------------------- as text

_RUNS = (
    Head(""),
    Head("RUN"),
    Head("STATUS"),
    Head("STARTED"),
    Head("TIME", right=True),
    Head("TOKENS", right=True, optional=True),
    Head("COST", right=True, optional=True),
    Head("WORKFLOW"),
)


def tracediff_text(diff: TraceDiff, now: float, look: Look = PLAIN, *, every: bool = False, how: str = "") -> str:
    """How B differs from A: the runs, their plans and params, then each difference of each node; ends with a newline.

    `now` is the wall time that ages are told from, `how` what to type to see the difference of the graphs.
    """
    sides = (diff.a, diff.b)
    rows = [_run_row(name, side, now, look) for name, side in zip("AB", sides, strict=True)]
    lines = table(_RUNS, rows, look, lambda k: "" if sides[k].status is RunStatus.COMPLETED else sides[k].status.value)
    if "plan" in diff.differs:
        where = f"see how: {how}" if diff.nodes_differ else "not in the nodes, but in what stands around them"
        lines += ["", *folded("", f"the plans differ; {where}".split(" "), look.width)]
    if diff.params:
        params = [_param_row(diff, name, look) for name in diff.params]
        lines += ["", *table((Head("PARAM"), Head("A"), Head("B")), params, look)]
    if diff.outputs:
        lines += ["", *folded("other outputs of the run: ", _names(diff.outputs), look.width)]
    shown = [n for n in diff.nodes if every or n.kind != "same"]
    found = [(n, row) for n in shown for row in _node_rows(n, look)]
    if found:
        heads = (Head("NODE"), Head("WHAT"), Head("A"), Head("B"))
        lines += ["", *table(heads, [row for _, row in found], look, lambda k: _style(found[k][0]))]
    return "\n".join([*lines, "", *folded("", summary_line(diff).split(" "), look.width)]) + "\n"


def summary_line(diff: TraceDiff) -> str:
    """The difference in one line, such as `different: status, 1 param; nodes: 2 changed, 3 the same`."""
    names = [plural(len(diff.params), "param") if name == "params" else name for name in diff.differs]
    kinds = {"changed": "changed", "time": "only in time", "only_a": "only in A", "only_b": "only in B"}
    nodes = [
        f"{diff.count(kind):,} {text}" for kind, text in (kinds | {"same": "the same"}).items() if diff.count(kind)
    ]
    if diff.same and not diff.count("time"):
        return f"the same: {plural(len(diff.nodes), 'node')}"
    head = "the same but for time" if diff.same else "different"
    parts = [", ".join(names), f"nodes: {', '.join(nodes)}" if nodes else ""]
    return f"{head}: {'; '.join(filter(None, parts))}"


def _run_row(name: str, side: Side, now: float, look: Look) -> tuple[str, ...]:
    state, used, spent = side.state, usage_of_run(side.state), money_of(side.state).spent
    return (
        name,
        state.created.run_id,
        side.status.value.replace("_", " "),
        ago(now - state.created_at) if look.width is not None else iso_utc(state.created_at),
        format_duration(run_duration_ms(state, side.wall_now) / 1000),
        tokens(used.tokens) if used.tokens else "",
        money(spent) if spent else "",
        clean(state.created.workflow),
    )


def _param_row(diff: TraceDiff, name: str, look: Look) -> tuple[str, ...]:
    given = (diff.a.state.created.params, diff.b.state.created.params)
    values = [clean(dumps(ran[name], ensure_ascii=False)) if name in ran else _NONE for ran in given]
    return (_cell(clean(name), look), _cell(values[0], look), values[1])


def _cell(text: str, look: Look) -> str:
    """A text that leaves room for what stands behind it on a terminal."""
    return look.cut(text, max(8, look.width * 3 // 10)) if look.width is not None else text


def _names(names: Sequence[str]) -> list[str]:
    return ", ".join(map(clean, names)).split(" ")


def _style(node: NodeDiff) -> str:
    entry = node.b or node.a
    return "" if entry is None or entry.status is Status.COMPLETED else entry.status.value


def _node_rows(node: NodeDiff, look: Look) -> Iterator[tuple[str, ...]]:
    """A line for each difference of a node; on a terminal only the first one names it."""
    for k, (what, a, b) in enumerate(_told(node, look)):
        name = "" if k and look.width is not None else node.node_id
        yield _cell(name, look), what, _cell(clean(a), look), clean(b)


def _told(node: NodeDiff, look: Look) -> Iterator[tuple[str, str, str]]:
    a, b = node.a, node.b
    if a is None or b is None or not node.differs:
        what = {"a": "only in A", "b": "only in B", "both": "same"}[node.where]
        yield what, _status(a, look) if a else "", _status(b, look) if b else ""
        return
    differs = set(node.differs)
    if "definition" in differs:
        yield "plan", "", "changed"
    if differs & {"status", "outcome", "exit_code", "error", "reason"}:
        yield "status", _status(a, look), _status(b, look)
    if "attempts" in differs:
        yield "tries", str(len(a.attempts)), str(len(b.attempts))
    if _TIME in differs:
        times = f" ({node.ratio:.2g}x)" if node.ratio is not None and node.ratio < 100 else ""
        yield "time", format_duration(a.duration_ms / 1000), format_duration(b.duration_ms / 1000) + times
    for field in ("isolation", "model"):
        if field in differs:
            yield field, str(_facts(a)[field] or _NONE), str(_facts(b)[field] or _NONE)
    if differs & {"input_tokens", "output_tokens"}:
        yield "tokens", _tokens(a), _tokens(b)
    if "cost_usd" in differs:
        yield "cost", money(a.agent.spent if a.agent else 0), money(b.agent.spent if b.agent else 0)
    for what, names in (("outputs", node.outputs), ("artifacts", node.artifacts)):
        if names:
            yield what, "", f"changed: {', '.join(names)}"


def _status(entry: TraceEntry, look: Look) -> str:
    """`✓ completed`, `✗ failed: exit 3`: the status, and why it is not completed."""
    word = f"{glyph(look.glyphs, entry.status)} {entry.status.value.replace('_', ' ')}"
    if entry.status is Status.COMPLETED:
        return word
    last = entry.attempts[-1].outcome if entry.attempts else None
    outcome = last.value.replace("_", " ") if last and last.value != entry.status.value else ""
    text = entry.error or entry.reason
    why = text if text.startswith(outcome) else ": ".join(filter(None, (outcome, text)))
    return f"{word}: {why}" if why else word


def _tokens(entry: TraceEntry) -> str:
    return f"{tokens(entry.input_tokens)} in, {tokens(entry.output_tokens)} out"

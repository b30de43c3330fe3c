"""A checked workflow as a graph of one revision: compile, waves, longest paths.

The only user of graphlib. graphlib schedules unknown references silently and refuses `add` after
`prepare`, so every reference is checked before it is asked. Nodes are numbered: `Plan.index` is
stable over the revisions of a run (a removed node keeps its number), and all per-node state is
kept in lists by that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from operator import is_

from dagrun.core.names import NodeId
from dagrun.core.workflow import Node, Workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The graph of one revision. Lists are parallel to `ids`.

    `needs[i]` are the numbers of the nodes that `i` waits for (written `needs` ∪ inputs, in that
    order, no duplicates); `wave[i]` is its depth from 1; `rank[i]` the length of the longest path
    from its start to a sink, in estimated seconds (a node that nobody estimated takes the mean of
    the others, or 1); `depth` the number of waves. `removed` are the numbers of nodes that a patch
    took out: they have no edges, and keep the wave that they had.
    """

    workflow: Workflow
    revision: int
    ids: tuple[NodeId, ...]
    index: Mapping[NodeId, int]
    nodes: tuple[Node, ...]
    needs: list[tuple[int, ...]]
    dependents: list[list[int]]
    wave: list[int]
    rank: list[float]
    depth: int
    removed: frozenset[int] = frozenset()

    def upstream(self, node: int) -> set[int]:
        """All ancestors of a node. Linear in the edges above it."""
        return _closure(self.needs[node], self.needs)

    def downstream(self, node: int) -> set[int]:
        """All descendants of a node. Linear in the edges below it."""
        return _closure(self.dependents[node], self.dependents)

    def below(self, nodes: Iterable[int]) -> set[int]:
        """All descendants of some nodes. Linear in the edges below them."""
        return _closure([d for i in nodes for d in self.dependents[i]], self.dependents)


class CycleFound(ValueError):
    """The graph has a cycle: `path` are its nodes, each before the one that waits for it, first = last."""

    def __init__(self, path: list[NodeId]) -> None:
        super().__init__("cycle: " + " -> ".join(path))
        self.path = path


def _closure(start: Iterable[int], edges: list[tuple[int, ...]] | list[list[int]]) -> set[int]:
    seen: set[int] = set()
    todo = list(start)
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            todo.extend(edges[i])
    return seen


def all_needs(node: Node) -> tuple[NodeId, ...]:
    """What a node waits for: its `needs`, then the producers of its inputs, without duplicates."""
    if not node.inputs:
        return node.needs if len(node.needs) < 2 else tuple(dict.fromkeys(node.needs))
    found = dict.fromkeys(node.needs)
    for source in input_sources(node):
        found[source] = None
    return tuple(found)


def input_sources(node: Node) -> Iterator[NodeId]:
    """The node ids that the inputs of `node` read from, in order, possibly repeated."""
    if not node.inputs:
        return
    from dagrun.core import expression as ex  # few commands need it, and it takes 10 ms to import

    for item in node.inputs.values():
        if item.expression.startswith("nodes"):
            try:
                refs = ex.references(ex.parse(item.expression))
            except ex.ExpressionError:
                continue
            for ref in refs:
                if ref.path[0] == "nodes" and len(ref.path) > 1:
                    yield ref.path[1]


def compile_plan(workflow: Workflow, revision: int = 1, estimates: Mapping[NodeId, float] | None = None) -> Plan:
    """The plan of a workflow that `check` found nothing wrong with. Linear in nodes and edges.

    `estimates` are durations in seconds that are known from elsewhere (past runs); they win over
    the author's. Raises ValueError when a reference is unknown, CycleFound when the graph
    has a cycle.
    """
    ids = tuple(workflow.nodes)
    index = {name: i for i, name in enumerate(ids)}
    return _build(workflow, revision, ids, index, tuple(workflow.nodes.values()), frozenset(), estimates or {})


def revise_plan(base: Plan, workflow: Workflow, revision: int) -> Plan:
    """The plan of the next revision of a run: a node keeps its number for ever, new ones come last.

    Nodes of `base` that `workflow` no longer has stay as `removed`, as they were, without edges.
    Raises ValueError as `compile_plan` does. Linear in nodes and edges.
    """
    new = [name for name in workflow.nodes if name not in base.index]
    ids = (*base.ids, *new)
    index = base.index
    if new:
        index = {**base.index, **{name: len(base.ids) + k for k, name in enumerate(new)}}
    nodes = tuple([workflow.nodes.get(name) or base.nodes[i] for i, name in enumerate(ids)])
    removed = frozenset(i for i, name in enumerate(ids) if name not in workflow.nodes)
    if not new and removed == base.removed and all(map(is_, nodes, base.nodes)):
        return replace(base, workflow=workflow, revision=revision)  # a rerun or new limits move no edge
    return _build(workflow, revision, ids, index, nodes, removed, {}, base)


def _build(
    workflow: Workflow,
    revision: int,
    ids: tuple[NodeId, ...],
    index: Mapping[NodeId, int],
    nodes: tuple[Node, ...],
    removed: frozenset[int],
    known: Mapping[NodeId, float],
    base: Plan | None = None,
) -> Plan:
    try:
        needs = [() if i in removed else _numbers(base, i, node, index) for i, node in enumerate(nodes)]
    except KeyError as error:
        raise ValueError(f"unknown node {error.args[0]!r}: check the workflow first") from None
    dependents: list[list[int]] = [[] for _ in ids]
    for i, wanted in enumerate(needs):
        for n in wanted:
            dependents[n].append(i)
    try:
        wave, order = _waves(needs)
    except CycleError as error:
        raise CycleFound([ids[i] for i in error.args[1]]) from None
    depth = max(wave, default=0)
    if base is not None:
        for i in removed:  # the trace goes on telling where they stood
            wave[i] = base.wave[i]
    rank = _ranks([known.get(name) or nodes[i].estimate_s for i, name in enumerate(ids)], dependents, order)
    return Plan(
        workflow=workflow,
        revision=revision,
        ids=ids,
        index=index,
        nodes=nodes,
        needs=needs,
        dependents=dependents,
        wave=wave,
        rank=rank,
        depth=depth,
        removed=removed,
    )


def _numbers(base: Plan | None, i: int, node: Node, index: Mapping[NodeId, int]) -> tuple[int, ...]:
    """The numbers of what a node waits for; a node that is as it was has the same, since numbers never change."""
    if base is not None and i < len(base.nodes) and node is base.nodes[i] and i not in base.removed:
        return base.needs[i]
    return tuple([index[n] for n in all_needs(node)])


def _ranks(estimates: list[float], dependents: list[list[int]], order: list[int]) -> list[float]:
    """The longest path from the start of each node to a sink; a node nobody estimated takes the mean."""
    given = [e for e in estimates if e]
    usual = sum(given) / len(given) if given else 1.0
    rank = [0.0] * len(estimates)
    for i in reversed(order):
        rank[i] = (estimates[i] or usual) + max([rank[d] for d in dependents[i]], default=0.0)
    return rank


def _waves(needs: list[tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """Wave of each node from 1, and one topological order. Raises CycleError."""
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for i, wanted in enumerate(needs):
        sorter.add(i, *wanted)
    sorter.prepare()
    wave = [0] * len(needs)
    order: list[int] = []
    number = 0
    while sorter.is_active():
        number += 1
        ready = sorter.get_ready()
        for i in ready:
            wave[i] = number
        order.extend(ready)
        sorter.done(*ready)
    return wave, order


def critical_path(plan: Plan) -> list[int]:
    """One longest path through the plan by `rank`, from a source to a sink."""
    sources = [i for i, wanted in enumerate(plan.needs) if not wanted]
    if not sources:
        return []
    path = [max(sources, key=lambda i: plan.rank[i])]
    while plan.dependents[path[-1]]:
        path.append(max(plan.dependents[path[-1]], key=lambda i: plan.rank[i]))
    return path


def is_bare(text: str) -> bool:
    """Whether an input or workflow output is a bare expression: it starts with nodes. or params."""
    return text.startswith(("nodes.", "params."))


def near(word: str, words: Iterable[str]) -> str:
    """`did you mean …?` for the closest of `words`, or an empty text."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"did you mean `{found[0]}`?" if found else ""

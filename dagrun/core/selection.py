"""Which nodes of a plan a run is about: `--only`, `--from`, `--until`."""

from __future__ import annotations

from collections.abc import Sequence

from dagrun.core.names import NodeId
from dagrun.core.plan import Plan


def select(plan: Plan, only: Sequence[NodeId], from_: Sequence[NodeId], until: Sequence[NodeId]) -> set[int]:
    """Numbers of the nodes to run: all without a choice, else those of `only`, and those that are
    below (or in) `from_` and above (or in) `until`. Every id must exist."""
    if not (only or from_ or until):
        return set(range(len(plan.ids)))
    chosen = {plan.index[i] for i in only}
    if from_ or until:
        below = _spread(plan, from_, down=True) if from_ else set(range(len(plan.ids)))
        above = _spread(plan, until, down=False) if until else set(range(len(plan.ids)))
        chosen |= below & above
    return chosen


def _spread(plan: Plan, names: Sequence[NodeId], *, down: bool) -> set[int]:
    edges = plan.dependents if down else plan.needs
    seen: set[int] = set()
    todo = [plan.index[i] for i in names]
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            todo.extend(edges[i])
    return seen

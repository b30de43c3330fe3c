"""The operations that make one workflow of another: what `dagrun diff A B`, `--edit` and `--to` show and send.

Only nodes: the other keys of a file have no operation. Invariant: applied to A they give the nodes of B.
"""

from __future__ import annotations

from dataclasses import replace

from dagrun.core.names import NodeId
from dagrun.core.patch import Insert, Modify, Operation, Remove, Rewire
from dagrun.core.plan import all_needs, compile_plan
from dagrun.core.workflow import Node, Workflow


def diff(a: Workflow, b: Workflow) -> tuple[Operation, ...]:
    """The inserts, rewires, modifies and removes that turn the nodes of `a` into those of `b`.

    New nodes come first, each after what it needs; then changes in the order of `b`; then what `b`
    no longer has, last dependents first, so that nothing is left without its producer on the way.
    `dagrun.core.patch.apply` of them on `a` gives the nodes of `b`, when both are sound.
    """
    new = [name for name in b.nodes if name not in a.nodes]
    inserts = [_insert(b.nodes[name]) for name in _by_needs(new, b)]
    changes = [change for name, node in b.nodes.items() if (change := _change(a.nodes.get(name), node))]
    gone = [name for name in a.nodes if name not in b.nodes]
    removes = [Remove(id=name, strategy="bridge") for name in reversed(_by_needs(gone, a))]
    return (*inserts, *changes, *removes)


def _insert(node: Node) -> Insert:
    return Insert(id=node.id, node=replace(node, needs=()), after=node.needs)


def _change(old: Node | None, new: Node) -> Operation | None:
    """What makes `new` of `old`, or None where there is nothing to do."""
    if old is None or old == new:
        return None
    if replace(old, needs=new.needs) != new:
        return Modify(id=new.id, node=new)
    gone = tuple(n for n in old.needs if n not in new.needs)
    come = tuple(n for n in new.needs if n not in old.needs)
    kept = [n for n in old.needs if n in new.needs]
    if (*kept, *come) != new.needs or not set(gone).isdisjoint(all_needs(new)):
        return Modify(id=new.id, node=new)  # another order, or an input goes on reading: no rewire says that
    return Rewire(id=new.id, old=gone, new=come, root=not all_needs(new))


def _by_needs(names: list[NodeId], workflow: Workflow) -> list[NodeId]:
    """Some nodes of a workflow, each after those of them that it waits for."""
    if len(names) < 2:
        return names
    plan = compile_plan(workflow)
    return sorted(names, key=lambda name: plan.wave[plan.index[name]])


__all__ = ["diff"]

"""The patch that leads from one workflow to another, in its written form.

The law: what it says, applied to the first, gives the second (but for its file and digest). New
nodes come first, so that the rest can name them; nodes that go, last, those that others wait for
after the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

from dagrun.core.names import Json, NodeId
from dagrun.core.plan import all_needs
from dagrun.core.workflow import Node, Workflow
from dagrun.flowfile.document import node_to_document, workflow_to_document

_WHOLE = frozenset({"schema", "output_schema", "value", "default"})  # JSON of the user: replaced as one
_LIMITS_OF_A_RUN = frozenset({"parallel", "timeout", "resources"})


def diff_files(a: Workflow, b: Workflow) -> dict[str, Json]:
    """The written patch from `a` to `b`; its `operations` are empty where nothing differs."""
    operations: list[Json] = []
    needs = {name: node.needs for name, node in a.nodes.items()}
    for name in _ordered(b.nodes, [n for n in b.nodes if n not in a.nodes]):
        operations.append(_insert(b, name, needs))
    for name, node in b.nodes.items():
        if name in a.nodes:
            operations += _change(a.nodes[name], node, needs[name])
    for name in reversed(_ordered(a.nodes, [n for n in a.nodes if n not in b.nodes])):
        operations.append({"remove": {"id": name, "strategy": "bridge"}})
    operations += _top(a, b)
    return {"workflow": a.name, "operations": operations}


def _ordered(nodes: Mapping[NodeId, Node], some: Iterable[NodeId]) -> list[NodeId]:
    """Some of the nodes, each after those of them that it waits for; else in the order given."""
    wanted = dict.fromkeys(some)
    done: dict[NodeId, None] = {}
    for start in wanted:
        todo = [start]
        while todo:
            name = todo[-1]
            left = [n for n in all_needs(nodes[name]) if n in wanted and n not in done and n not in todo]
            if left:
                todo.append(left[0])
            else:
                done[todo.pop()] = None
    return list(done)


def _insert(b: Workflow, name: NodeId, needs: dict[NodeId, tuple[NodeId, ...]]) -> Json:
    """The insert of a new node; `before` are those whose needs are then as they should be."""
    node = b.nodes[name]
    before: list[Json] = []
    for other, now in needs.items():
        if other in b.nodes and name in b.nodes[other].needs:
            after = (*[n for n in now if n not in node.needs], name)
            if after == b.nodes[other].needs:
                needs[other] = after
                before.append(other)
    body: dict[str, Json] = {"id": name, "node": node_to_document(replace(node, needs=()))}
    if node.needs:
        body["after"] = list(node.needs)
    if before:
        body["before"] = before
    return {"insert": body}


def _change(old: Node, new: Node, needs: tuple[NodeId, ...]) -> list[Json]:
    """What makes the old node the new one; `needs` are what it waits for by then."""
    found: list[Json] = []
    changes, unset = difference(_without_needs(old), _without_needs(new))
    if needs != new.needs:
        gone = [n for n in needs if n not in new.needs]
        come = [n for n in new.needs if n not in needs]
        if (*[n for n in needs if n not in gone], *come) == new.needs:
            body: dict[str, Json] = {"id": new.id}
            body.update({"old": cast("list[Json]", gone)} if gone else {})
            body.update({"new": cast("list[Json]", come)} if come else {})
            body.update({"root": True} if not new.needs else {})
            found.append({"rewire": body})
        else:
            changes["needs"] = list(new.needs)
    return [*found, *_operation("modify", {"id": new.id}, changes, unset)]


def _without_needs(node: Node) -> dict[str, Json]:
    return node_to_document(replace(node, needs=()), long=True)


def _operation(kind: str, body: dict[str, Json], changes: dict[str, Json], unset: list[str]) -> list[Json]:
    if changes:
        body["set"] = changes
    if unset:
        body["unset"] = cast("list[Json]", unset)
    return [{kind: body}] if changes or unset else []


def _top(a: Workflow, b: Workflow) -> list[Json]:
    old = workflow_to_document(replace(a, nodes={}), long=True)
    new = workflow_to_document(replace(b, nodes={}), long=True)
    changes, unset = difference(old, new)
    found: list[Json] = []
    limits = changes.pop("limits", {})
    if isinstance(limits, dict):
        ours = {k: v for k, v in limits.items() if k in _LIMITS_OF_A_RUN}
        found += [{"set_limits": ours}] if ours else []
        rest = {k: v for k, v in limits.items() if k not in ours}
        changes.update({"limits": rest} if rest else {})
    return [*found, *_operation("workflow", {}, changes, unset)]


def difference(old: Mapping[str, Json], new: Mapping[str, Json]) -> tuple[dict[str, Json], list[str]]:
    """(set, unset) that make `old` to `new`: the inverse of dropping `unset`, then merging `set`."""
    changes: dict[str, Json] = {}
    unset = [key for key in old if key not in new]
    for key, value in new.items():
        before = old.get(key)
        if key in old and same(before, value):
            continue
        if key not in old or not isinstance(before, dict) or not isinstance(value, dict):
            changes[key] = value
        elif key in _WHOLE:
            unset.append(key)
            changes[key] = value
        else:
            inner, gone = difference(before, value)
            unset += [f"{key}.{name}" for name in gone]
            changes.update({key: inner} if inner else {})
    return changes, unset


def same(a: Json, b: Json) -> bool:
    """Equality of JSON: `true` is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b

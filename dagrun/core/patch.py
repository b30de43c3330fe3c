"""A patch: a wanted change of a plan, and what it does to a graph. Pure, all or nothing.

`apply` knows nodes and edges, no run: which node may be touched in which state is `replan.py`.
The values are in `operation.py` and named here too. The pseudo-code of [dag-dynamic-replanner]
loses inputs, allows cycles and leaves dependents hanging, so the meaning here is that of
docs/replan.md.

Needs that an operation adds keep their order and never repeat. An input names its producer, so
data survives every change of order; an input whose producer goes away is a fault, never a hole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from dagrun.core.ceiling import stand_in
from dagrun.core.names import ID_MAX, NodeId
from dagrun.core.operation import (
    Alternative,
    Draft,
    Fallback,
    Insert,
    Modify,
    Operation,
    Patch,
    Remove,
    Rerun,
    Retry,
    Rewire,
    SetLimits,
    Strategy,
    Trigger,
    TriggerType,
    draft,
)
from dagrun.core.plan import all_needs, near
from dagrun.core.reading import node_references, reads, rename, swap
from dagrun.core.removal import alias_conditions, alternative, remove, union
from dagrun.core.workflow import Node


def apply(work: Draft, patch: Patch) -> Draft:
    """Carry out the operations of a patch in order; what is wrong with them is in `faults`.

    A graph that came out of a draft with faults means nothing. Cycles and dangling references that
    only show in the whole are the caller's to check, on the nodes in `changed` and their dependents.
    """
    for at, operation in enumerate(patch.operations):
        match operation:
            case Insert():
                _insert(work, operation, at)
            case Alternative():
                _alternative(work, operation, at)
            case SetLimits():
                _set_limits(work, operation, at)
            case _:
                if _known(work, operation.id, at):
                    _change(work, operation, at)
    return work


def _change(work: Draft, operation: Remove | Rewire | Modify | Retry | Fallback | Rerun, at: int) -> None:
    """An operation on a node that is there."""
    match operation:
        case Remove():
            remove(work, operation, at)
        case Rewire():
            _rewire(work, operation, at)
        case Modify():
            work.put(_merged(work, operation.id, operation.node, operation.made_on), at)
        case Retry():
            again(work, operation.id, at, operation.node, operation.made_on)
        case Fallback():
            _fallback(work, operation, at)
        case Rerun():
            again(work, operation.id, at)


def _known(work: Draft, name: NodeId, at: int, key: str = "id") -> bool:
    if name in work.nodes:
        return True
    if name in work.removed:
        work.fault(at, key, "unknown-node", f"node `{name}` was removed by an earlier operation")
    elif name in work.used_ids:
        work.fault(at, key, "unknown-node", f"node `{name}` was removed from this run")
    else:
        work.fault(at, key, "unknown-node", f"there is no node `{name}`", near(name, work.nodes))
    return False


def _free(work: Draft, name: NodeId, at: int, key: str = "id") -> bool:
    """Whether a new node may have this id: ids are never used again in a run, and case alone parts no two."""
    if name in work.used_ids:
        gone = name not in work.nodes
        message = f"the id `{name}` was used before in this run" if gone else f"there is a node `{name}` already"
        work.fault(at, key, "id-taken", message, f"choose another, such as {name}-2")
        return False
    folded = name.casefold()
    twin = next((used for used in work.used_ids if len(used) == len(name) and used.casefold() == folded), None)
    if twin is not None:
        message = f"`{name}` and `{twin}` differ only by case"
        work.fault(at, key, "id-taken", message, f"choose another, such as {name}-2")
    return twin is None


def _insert(work: Draft, op: Insert, at: int) -> None:
    if op.revive:
        ok = op.id in work.used_ids and op.id not in work.nodes
        if not ok:
            work.fault(at, "id", "not-removed", f"`{op.id}` was not removed from this run: there is nothing to revive")
    else:
        ok = _free(work, op.id, at)
    for key, names in (("after", op.after), ("before", op.before)):
        for name in names:
            if name == op.id:
                work.fault(at, key, "self-need", f"node `{op.id}` can't be {key} itself")
                ok = False
            else:
                ok = _known(work, name, at, key) and ok
    if not ok:
        return
    if op.revive:
        work.revived.add(op.id)
    work.add(replace(op.node, id=op.id, needs=union(op.node.needs, op.after)), at)
    for name in op.before:
        node = work.nodes[name]
        kept = [n for n in node.needs if n not in op.after]
        work.put(replace(node, needs=union(kept, [op.id])), at)


def _rewire(work: Draft, op: Rewire, at: int) -> None:
    node = work.nodes[op.id]
    ok = True
    for name in op.old:
        if name not in node.needs:
            current = f"it needs {', '.join(node.needs) or 'nothing'} now"
            if name in all_needs(node):
                current = f"it reads an input from `{name}`: change that input with modify"
            work.fault(at, "old", "stale-rewire", f"`{op.id}` does not need `{name}`", current)
            ok = False
    for name in op.new:
        if name == op.id:
            work.fault(at, "new", "self-need", f"node `{op.id}` would need itself")
            ok = False
        else:
            ok = _known(work, name, at, "new") and ok
    needs = union([n for n in node.needs if n not in op.old], op.new)
    if not all_needs(replace(node, needs=needs)) and not op.root:
        work.fault(at, "new", "no-needs", f"`{op.id}` would wait for nothing", "if that is meant: root: true")
        ok = False
    if ok:
        work.put(replace(node, needs=needs), at)


def _merged(work: Draft, name: NodeId, wanted: Node, made_on: Node | None) -> Node:
    """A node with what `wanted` changes against the node that it was made on; other changes of it stay."""
    current = work.nodes[name]
    before = made_on or work.before.get(name)
    if before is None or current is before:
        return replace(wanted, id=name)
    changes = {f.name: new for f in fields(Node) if (new := getattr(wanted, f.name)) != getattr(before, f.name)}
    changes.pop("id", None)
    return replace(current, **changes)


def again(work: Draft, name: NodeId, at: int, wanted: Node | None = None, made_on: Node | None = None) -> None:
    """A node runs again, changed or not; it waits for the stand-in of what was superseded since it ran."""
    node = _merged(work, name, wanted, made_on) if wanted is not None else work.nodes[name]
    node = _resolved(work, node)
    if node is not work.nodes[name]:
        work.put(node, at)
    work.reset.append(name)
    work.touched[name] = at


def _resolved(work: Draft, node: Node) -> Node:
    """A node with the stand-ins of the superseded nodes that it names."""
    if not work.aliases:
        return node
    named = {r.path[1] for r in node_references(node.condition)} | set(all_needs(node))
    for old in sorted(named & work.aliases.keys()):
        new = old
        while new in work.aliases:
            new = work.aliases[new]
        if new != node.id:
            node = swap(node, old, new)
    return node


# ---------------------------------------------------------------- stand-ins


def fallback_id(failed: NodeId, used: Iterable[NodeId]) -> NodeId:
    """`<failed>-fallback`, or `<failed>-fallback-2` … where that was used before; never longer than an id may be."""
    return id_beside(failed, "fallback", used)


def id_beside(failed: NodeId, word: str, used: Iterable[NodeId]) -> NodeId:
    """`<failed>-<word>`, or with a number where that was used before; never longer than an id may be."""
    taken = {name.casefold() for name in used}
    number = 1
    while True:
        tail = f"-{word}" if number == 1 else f"-{word}-{number}"
        name = failed[: ID_MAX - len(tail)] + tail
        if name.casefold() not in taken:
            return name
        number += 1


def _fallback(work: Draft, op: Fallback, at: int) -> None:
    failed, own = work.nodes[op.id], op.node
    if any(reads(item, op.id) for item in own.inputs.values()) or op.id in own.needs:
        message = f"the fallback of `{op.id}` would wait for `{op.id}` itself"
        work.fault(at, "with", "self-need", message, "give it inputs from what comes before")
        return
    name = fallback_id(op.id, work.used_ids)
    # without outputs of its own it inherits the contract of the node that it stands in for, and its ceiling always
    outputs = own.outputs or failed.outputs
    schema = own.output_schema if own.outputs or own.output_schema is not None else failed.output_schema
    needs = union(all_needs(failed), own.needs)
    node = replace(stand_in(work.permissions, failed, own), id=name, needs=needs, outputs=outputs, output_schema=schema)
    work.add(_resolved(work, _with_condition(node, failed)), at)
    for user in work.dependents(op.id):
        if user != name and user not in work.frozen:
            work.put(swap(work.nodes[user], op.id, name), at)
    alias_conditions(work, op.id, name, at)
    work.superseded[op.id] = name
    work.touched[op.id] = at


def _with_condition(node: Node, failed: Node) -> Node:
    """A stand-in without an `if` runs when the node that it stands in for would: with that `if` and its inputs."""
    if node.condition or not failed.condition:
        return node
    from dagrun.core import expression as ex

    read = {r.path[1] for r in ex.references(ex.parse(failed.condition)) if r.path[0] == "inputs" and len(r.path) > 1}
    missing = {k: failed.inputs[k] for k in sorted(read - node.inputs.keys()) if k in failed.inputs}
    return replace(node, condition=failed.condition, inputs={**node.inputs, **missing})


def _alternative(work: Draft, op: Alternative, at: int) -> None:
    # every id is looked at, so that all that is wrong is said at once
    ok = False not in [_known(work, name, at, "blocked") for name in op.blocked]
    ok = False not in [_free(work, name, at, "nodes") for name in op.nodes] and ok
    for key, names in (("blocked", op.blocked), ("nodes", op.nodes)):
        if not names:
            work.fault(at, key, "empty", f"an alternative needs {key}")
            ok = False
    if ok:
        alternative(work, op, at)


def _set_limits(work: Draft, op: SetLimits, at: int) -> None:
    if op.parallel is not None and op.parallel < 1:
        work.fault(at, "parallel", "bad-limit", f"parallel: {op.parallel} would let nothing run", "write 1 or more")
        return
    limits = work.limits if op.whole is None else op.whole
    work.limits_at = at
    work.limits = replace(
        limits,
        parallel=op.parallel if op.parallel is not None else limits.parallel,
        timeout_s=op.timeout_s if op.timeout_s is not None else limits.timeout_s,
        resources={**limits.resources, **op.resources},
    )


__all__ = [
    "Alternative",
    "Draft",
    "Fallback",
    "Insert",
    "Modify",
    "Operation",
    "Patch",
    "Remove",
    "Rerun",
    "Retry",
    "Rewire",
    "SetLimits",
    "Strategy",
    "Trigger",
    "TriggerType",
    "again",
    "apply",
    "draft",
    "fallback_id",
    "id_beside",
    "reads",
    "rename",
]

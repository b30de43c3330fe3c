"""What taking nodes out does to a graph: `remove` with its three strategies, and `alternative`.

No input is left without a producer: it gets another one, falls back to its default, or the patch
is refused. Knows no run but what the draft says of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dagrun.core.names import NodeId
from dagrun.core.operation import Alternative, Draft, Remove
from dagrun.core.plan import all_needs, near
from dagrun.core.reading import (
    map_references,
    node_references,
    outputs_read,
    reads,
    rename,
    requires,
    without_producer,
)
from dagrun.core.workflow import Input, Node


def union(*groups: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """Ids in the order in which they come, each once."""
    return tuple(dict.fromkeys(name for group in groups for name in group))


def remove(work: Draft, op: Remove, at: int) -> None:
    """Carry out a Remove of a node that is there."""
    if op.input_map and op.strategy != "bridge":
        message = f"an input_map has a meaning only with strategy bridge, not with {op.strategy}"
        work.fault(at, "input_map", "no-meaning", message, "remove it, or write strategy: bridge")
    if op.dependents and op.strategy != "skip":
        message = f"`dependents: skip` has a meaning only with strategy skip, not with {op.strategy}"
        work.fault(at, "dependents", "no-meaning", message, "remove it, or write strategy: skip")
    match op.strategy:
        case "skip":
            _skip(work, op, at)
        case "bridge":
            _bridge(work, op, at)
        case "cascade":
            _cascade(work, op.id, at)


def _skip(work: Draft, op: Remove, at: int) -> None:
    """Settle the node without output; a dependent that can't do without one is refused or skipped too."""
    todo, seen = [op.id], {op.id}
    work.skipped[op.id] = "removed by a patch"
    work.touched[op.id] = at
    while todo:
        name = todo.pop()
        for user in work.dependents(name):
            if user in seen or user in work.frozen:
                continue
            needy = [i for i, item in work.nodes[user].inputs.items() if requires(item, name)]
            if not needy:
                continue
            seen.add(user)
            if op.dependents != "skip":
                message = f"`{user}` needs an output of `{name}` for its input `{needy[0]}`"
                hint = "give that input a default, or skip it too: dependents: skip"
                work.fault(at, "id", "needs-output", message, hint)
                continue
            todo.append(user)
            work.skipped[user] = f"{name} was removed by a patch"
            work.touched[user] = at


# ---------------------------------------------------------------- bridge and cascade


def _bridge(work: Draft, op: Remove, at: int) -> None:
    bridge = all_needs(work.nodes[op.id])
    used: set[str] = set()
    for user in work.dependents(op.id):
        node = work.nodes[user]
        inputs = {name: _bridged(work, op, user, name, at, used) for name in node.inputs}
        work.put(replace(node, needs=_spliced(node.needs, op.id, bridge), inputs=inputs), at)
    for key in op.input_map.keys() - used:
        message = f"nothing that depends on `{op.id}` reads `{key}`"
        work.fault(at, "input_map", "unused-map", message, "write it as the input does: nodes.ID.OUTPUT")
    work.drop(op.id, "bridge", at)


def _bridged(work: Draft, op: Remove, user: NodeId, name: str, at: int, used: set[str]) -> Input:
    """One input of a dependent of a node that is bridged."""
    item = work.nodes[user].inputs[name]
    if not reads(item, op.id):
        return item
    text, keys = map_references(item.expression, op.input_map)
    used |= keys
    mapped = replace(item, expression=text)
    if not reads(mapped, op.id):
        return mapped
    if not requires(mapped, op.id) or user in work.retired:
        return without_producer(item)
    work.fault(
        at,
        "id",
        "no-producer",
        f"input `{name}` of `{user}` reads {item.expression}, which would have no producer",
        f"say what it reads instead: input_map: {{{item.expression}: nodes.OTHER.OUTPUT}}",
    )
    return item


def _spliced(needs: tuple[NodeId, ...], gone: NodeId, instead: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """`needs` with `gone` replaced in its place; appended when it was needed only by an input."""
    if gone not in needs:
        return union(needs, instead)
    k = needs.index(gone)
    return union(needs[:k], instead, needs[k + 1 :])


def _cascade(work: Draft, start: NodeId, at: int) -> None:
    """Remove a node and what can't live without it: who names it in `needs` or requires its output."""
    todo = [start]
    while todo:
        name = todo.pop()
        if name not in work.nodes:
            continue
        for user in work.dependents(name):
            node = work.nodes[user]
            bound = name in node.needs or any(requires(item, name) for item in node.inputs.values())
            if bound and user not in work.retired:
                todo.append(user)
                continue
            inputs = {k: without_producer(item) if reads(item, name) else item for k, item in node.inputs.items()}
            needs = tuple(n for n in node.needs if n != name)
            work.put(replace(node, needs=needs, inputs=inputs), at)
        work.drop(name, "cascade", at)


# ---------------------------------------------------------------- another way round


def alternative(work: Draft, op: Alternative, at: int) -> None:
    """Carry out an Alternative whose ids are known and free; its exits are checked here."""
    blocked = dict.fromkeys(op.blocked)
    outside = union(n for name in blocked for n in all_needs(work.nodes[name]) if n not in blocked)
    users = union(u for name in blocked for u in work.dependents(name) if u not in blocked and u not in work.frozen)
    if not _exits_hold(work, op, users, at):
        return
    for name, node in op.nodes.items():
        entry = not any(n in op.nodes for n in all_needs(node))
        work.add(replace(node, id=name, needs=union(node.needs, outside if entry else ())), at)
    for user in users:
        work.put(_detoured(work.nodes[user], op), at)
    if len(op.exits) == 1:
        for name in blocked:
            alias_conditions(work, name, op.exits[0], at)
    for name in blocked:
        work.skipped[name] = "path blocked"
        work.touched[name] = at


def _exits_hold(work: Draft, op: Alternative, users: Iterable[NodeId], at: int) -> bool:
    ok = True
    for name in op.exits:
        if name not in op.nodes:
            work.fault(at, "exits", "unknown-node", f"exit `{name}` is not among the new nodes", near(name, op.nodes))
            ok = False
    if not ok:
        return False
    for user in users:
        if not op.exits:
            message = f"`{user}` follows the blocked path, and no exit says what it follows instead"
            work.fault(at, "exits", "no-exit", message, "name the last of the new nodes: exits: [...]")
            ok = False
        for name, item in work.nodes[user].inputs.items():
            for gone in dict.fromkeys(op.blocked):
                if op.exits and requires(item, gone):
                    ok = _exit_gives(work, op, user, name, gone, at) and ok
    return ok


def _exit_gives(work: Draft, op: Alternative, user: NodeId, name: str, gone: NodeId, at: int) -> bool:
    """A dependent that requires an output of the blocked path needs one exit that gives the same output."""
    wanted = outputs_read(work.nodes[user].inputs[name], gone)
    if len(op.exits) == 1 and all(w in op.nodes[op.exits[0]].outputs for w in wanted):
        return True
    work.fault(
        at,
        "exits",
        "no-producer",
        f"input `{name}` of `{user}` reads `{gone}`, and no single exit gives `{', '.join(wanted) or 'status'}`",
        "declare that output in the one exit, or give the input a default",
    )
    return False


def _detoured(node: Node, op: Alternative) -> Node:
    """A dependent of a blocked path as a dependent of the exits."""
    inputs = dict(node.inputs)
    for gone in dict.fromkeys(op.blocked):
        for name, item in inputs.items():
            if not reads(item, gone):
                continue
            if len(op.exits) == 1 and set(outputs_read(item, gone)) <= op.nodes[op.exits[0]].outputs.keys():
                inputs[name] = replace(item, expression=rename(item.expression, gone, op.exits[0]))
            else:
                inputs[name] = without_producer(item)
    kept = [n for n in node.needs if n not in op.blocked]
    return replace(node, needs=union(kept, op.exits), inputs=inputs)


def alias_conditions(work: Draft, old: NodeId, new: NodeId, at: int) -> None:
    """Every `if` that reads the status of `old`, anywhere below it, reads that of `new`."""
    for node in list(work.nodes.values()):
        if not node.condition or old not in node.condition or node.id in work.frozen or node.id in (old, new):
            continue
        if any(r.path[1] == old for r in node_references(node.condition)):
            work.put(replace(node, condition=rename(node.condition, old, new)), at)

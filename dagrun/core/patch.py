"""A patch: a wanted change of a plan, and what it does to a graph. Pure, all or nothing.

`apply` knows nodes and edges, no run: which node may be touched in which state is `replan.py`.
Operations and their names come from [dag-dynamic-replanner]; its pseudo-code loses inputs, allows
cycles and leaves dependents hanging, so the meaning here is that of docs/replan.md.

Needs that an operation adds keep their order and never repeat. An input names its producer, so
data survives every change of order; an input whose producer goes away is a fault, never a hole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from dagrun.core import expression as ex
from dagrun.core.names import Json, NodeId
from dagrun.core.plan import all_needs, near
from dagrun.core.value import value
from dagrun.core.workflow import Fault, Input, Limits, Node, Workflow

TriggerType: TypeAlias = Literal["failure", "timeout", "requirement", "optimization"]
Strategy: TypeAlias = Literal["skip", "bridge", "cascade"]


@value(frozen=True, slots=True, kw_only=True)
class Trigger:
    """What caused a patch. `reason` is data: shown, never executed."""

    type: TriggerType = "requirement"
    node: NodeId = ""
    reason: str = ""


@value(frozen=True, slots=True, kw_only=True)
class Insert:
    """A new node between `after` and `before`: exactly the edges after × before are replaced."""

    id: NodeId
    node: Node
    after: tuple[NodeId, ...] = ()
    before: tuple[NodeId, ...] = ()


@value(frozen=True, slots=True, kw_only=True)
class Remove:
    """Take a node out. `input_map` (bridge) says what reads instead: nodes.old.x → nodes.new.y."""

    id: NodeId
    strategy: Strategy
    dependents: Literal["", "skip"] = ""
    input_map: Mapping[str, str] = field(default_factory=dict)
    cancel_running: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Rewire:
    """needs = (needs − old) ∪ new."""

    id: NodeId
    old: tuple[NodeId, ...] = ()
    new: tuple[NodeId, ...] = ()
    root: bool = False
    cancel_running: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Modify:
    """The node as it is after `set` was merged into it and `unset` dropped."""

    id: NodeId
    node: Node
    cancel_running: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Retry:
    """Try a node again; `node` is it with the changes merged in, None for no change."""

    id: NodeId
    node: Node | None = None
    cancel_running: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Fallback:
    """`node` takes the place of the failed node `id` in every dependent and input."""

    id: NodeId
    node: Node
    cancel_running: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Other nodes in place of a blocked path; what followed it follows `exits`."""

    blocked: tuple[NodeId, ...]
    nodes: Mapping[NodeId, Node]
    exits: tuple[NodeId, ...]
    cancel_running: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Rerun:
    """Run a completed node, and all that followed from it, again."""

    id: NodeId


@value(frozen=True, slots=True, kw_only=True)
class SetLimits:
    """New ceilings of the run: parallelism and resources [dag-dynamic-replanner]."""

    parallel: int | None = None
    timeout_s: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


Operation: TypeAlias = (
    Insert | Remove | Rewire | Modify | Retry | Fallback | Alternative | Rerun | SetLimits
)


@value(frozen=True, slots=True, kw_only=True)
class Patch:
    """Operations that are applied together or not at all.

    `base` is the revision it was made for (0: whatever is the head). `written` are the operations
    as their author wrote them, for the history.
    """

    operations: tuple[Operation, ...]
    base: int = 0
    workflow: str = ""
    trigger: Trigger = Trigger()
    written: tuple[Json, ...] = ()


@dataclass(slots=True)
class Draft:
    """A graph being changed, and what the changes are so far.

    `changed` are new or changed nodes by id; `removed` are gone; `skipped` settle as skipped;
    `superseded` maps a failed node to its stand-in; `reset` run again; `touched` maps each id to the
    number of the operation that touched it last. `frozen` have run or run: they keep their needs.
    """

    nodes: dict[NodeId, Node]
    limits: Limits
    used_ids: set[NodeId]
    frozen: frozenset[NodeId] = frozenset()
    changed: dict[NodeId, Node] = field(default_factory=dict)
    removed: dict[NodeId, str] = field(default_factory=dict)
    skipped: dict[NodeId, str] = field(default_factory=dict)
    superseded: dict[NodeId, NodeId] = field(default_factory=dict)
    reset: list[NodeId] = field(default_factory=list)
    new: list[NodeId] = field(default_factory=list)
    touched: dict[NodeId, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    users: dict[NodeId, set[NodeId]] | None = None

    def put(self, node: Node, at: int) -> None:
        """Write a node, keeping the index of who depends on whom."""
        old = self.nodes.get(node.id)
        if self.users is not None:
            for need in all_needs(old) if old is not None else ():
                self.users.get(need, set()).discard(node.id)
            for need in all_needs(node):
                self.users.setdefault(need, set()).add(node.id)
        self.nodes[node.id] = node
        self.changed[node.id] = node
        self.touched[node.id] = at

    def drop(self, name: NodeId, why: str, at: int) -> None:
        """Take a node out of the graph."""
        node = self.nodes.pop(name)
        if self.users is not None:
            for need in all_needs(node):
                self.users.get(need, set()).discard(name)
        self.changed.pop(name, None)
        self.removed[name] = why
        self.touched[name] = at

    def dependents(self, name: NodeId) -> list[NodeId]:
        """Who waits for a node now, in the order of the workflow's ids."""
        if self.users is None:
            self.users = {}
            for node in self.nodes.values():
                for need in all_needs(node):
                    self.users.setdefault(need, set()).add(node.id)
        return sorted(self.users.get(name, ()))

    def fault(self, at: int, key: str, code: str, message: str, hint: str = "") -> None:
        """Note what is wrong with operation `at`."""
        path: tuple[str | int, ...] = ("operations", at, key) if key else ("operations", at)
        self.faults.append(Fault(path, code, message, hint))


def draft(workflow: Workflow, used_ids: Iterable[NodeId] = ()) -> Draft:
    """The unchanged draft of a workflow. `used_ids` may not be given to new nodes."""
    return Draft(
        nodes=dict(workflow.nodes),
        limits=workflow.limits,
        used_ids=set(used_ids) | workflow.nodes.keys(),
    )


def apply(work: Draft, patch: Patch) -> Draft:
    """Carry out the operations of a patch in order; what is wrong with them is in `faults`.

    A graph that came out of a draft with faults means nothing. Cycles and dangling references that
    only show in the whole are the caller's to check, on the nodes in `changed` and their dependents.
    """
    for at, operation in enumerate(patch.operations):
        match operation:
            case Insert():
                _insert(work, operation, at)
            case Remove():
                _remove(work, operation, at)
            case Rewire():
                _rewire(work, operation, at)
            case Modify():
                if _known(work, operation.id, at):
                    work.put(replace(operation.node, id=operation.id), at)
            case Retry():
                _retry(work, operation, at)
            case Fallback():
                _fallback(work, operation, at)
            case Alternative():
                _alternative(work, operation, at)
            case Rerun():
                if _known(work, operation.id, at):
                    work.reset.append(operation.id)
                    work.touched[operation.id] = at
            case SetLimits():
                _set_limits(work, operation)
    return work


# ---------------------------------------------------------------- the operations


def _known(work: Draft, name: NodeId, at: int, key: str = "id") -> bool:
    if name in work.nodes:
        return True
    if name in work.removed:
        work.fault(at, key, "unknown-node", f"node `{name}` was removed by an earlier operation")
    else:
        work.fault(at, key, "unknown-node", f"there is no node `{name}`", near(name, work.nodes))
    return False


def _free(work: Draft, name: NodeId, at: int, key: str = "id") -> bool:
    """Whether a new node may have this id: ids are never used again in a run."""
    if name not in work.used_ids:
        return True
    gone = name not in work.nodes
    message = f"the id `{name}` was used before in this run" if gone else f"there is a node `{name}` already"
    work.fault(at, key, "id-taken", message, f"choose another, such as {name}-2")
    return False


def _add(work: Draft, node: Node, at: int) -> None:
    work.used_ids.add(node.id)
    work.new.append(node.id)
    work.put(node, at)


def _union(*groups: Iterable[NodeId]) -> tuple[NodeId, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _insert(work: Draft, op: Insert, at: int) -> None:
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
    _add(work, replace(op.node, id=op.id, needs=_union(op.node.needs, op.after)), at)
    for name in op.before:
        node = work.nodes[name]
        kept = [n for n in node.needs if n not in op.after]
        work.put(replace(node, needs=_union(kept, [op.id])), at)


def _remove(work: Draft, op: Remove, at: int) -> None:
    if not _known(work, op.id, at):
        return
    match op.strategy:
        case "skip":
            _remove_skip(work, op, at)
        case "bridge":
            _remove_bridge(work, op, at)
        case "cascade":
            _remove_cascade(work, op.id, at)


def _remove_skip(work: Draft, op: Remove, at: int) -> None:
    """Settle the node without output; a dependent that can't do without one is refused or skipped too."""
    todo, seen = [op.id], {op.id}
    work.skipped[op.id] = "removed by a patch"
    work.touched[op.id] = at
    while todo:
        name = todo.pop()
        for user in work.dependents(name):
            needy = [i for i, item in work.nodes[user].inputs.items() if _requires(item, name)]
            if not needy or user in seen:
                continue
            if op.dependents != "skip":
                work.fault(
                    at,
                    "id",
                    "needs-output",
                    f"`{user}` needs an output of `{name}` for its input `{needy[0]}`",
                    "give that input a default, or skip it too: dependents: skip",
                )
                continue
            seen.add(user)
            todo.append(user)
            work.skipped[user] = f"{name} was removed by a patch"
            work.touched[user] = at


def _requires(item: Input, producer: NodeId) -> bool:
    return not item.optional and not item.has_default and reads(item, producer)


def reads(item: Input, producer: NodeId) -> bool:
    """Whether an input reads from a node."""
    if not item.expression.startswith("nodes"):
        return False
    return any(r.path[0] == "nodes" and len(r.path) > 1 and r.path[1] == producer for r in ex.references(ex.parse(item.expression)))


def _remove_bridge(work: Draft, op: Remove, at: int) -> None:
    gone = work.nodes[op.id]
    bridge = all_needs(gone)
    for user in work.dependents(op.id):
        node = work.nodes[user]
        inputs = dict(node.inputs)
        for name, item in node.inputs.items():
            if not reads(item, op.id):
                continue
            mapped = _map_input(item, op.input_map)
            if mapped is not None and not reads(mapped, op.id):
                inputs[name] = mapped
            elif item.optional or item.has_default:
                inputs[name] = Input(value=item.default if item.has_default else None)
            else:
                work.fault(
                    at,
                    "id",
                    "no-producer",
                    f"input `{name}` of `{user}` reads {item.expression}, which would have no producer",
                    f"say what it reads instead: input_map: {{{item.expression}: nodes.OTHER.OUTPUT}}",
                )
        needs = _spliced(node.needs, op.id, bridge)
        work.put(replace(node, needs=needs, inputs=inputs), at)
    work.drop(op.id, "bridge", at)


def _spliced(needs: tuple[NodeId, ...], gone: NodeId, instead: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """`needs` with `gone` replaced in its place; appended when it was needed only by an input."""
    if gone not in needs:
        return _union(needs, instead)
    k = needs.index(gone)
    return _union(needs[:k], instead, needs[k + 1 :])


def _map_input(item: Input, mapping: Mapping[str, str]) -> Input | None:
    for old, new in mapping.items():
        if item.expression == old:
            return replace(item, expression=new)
    return None


def _remove_cascade(work: Draft, start: NodeId, at: int) -> None:
    """Remove a node and what can't live without it: who names it in `needs` or requires its output."""
    todo = [start]
    while todo:
        name = todo.pop()
        if name not in work.nodes:
            continue
        for user in work.dependents(name):
            node = work.nodes[user]
            if name in node.needs or any(_requires(item, name) for item in node.inputs.values()):
                todo.append(user)
                continue
            inputs = {
                k: Input(value=item.default if item.has_default else None) if reads(item, name) else item
                for k, item in node.inputs.items()
            }
            work.put(replace(node, inputs=inputs), at)
        work.drop(name, "cascade", at)


def _rewire(work: Draft, op: Rewire, at: int) -> None:
    if not _known(work, op.id, at):
        return
    node = work.nodes[op.id]
    ok = True
    for name in op.old:
        if name not in node.needs:
            current = ", ".join(node.needs) or "nothing"
            work.fault(at, "old", "stale-rewire", f"`{op.id}` does not need `{name}`", f"it needs {current} now")
            ok = False
    for name in op.new:
        if name == op.id:
            work.fault(at, "new", "self-need", f"node `{op.id}` would need itself")
            ok = False
        else:
            ok = _known(work, name, at, "new") and ok
    needs = _union([n for n in node.needs if n not in op.old], op.new)
    if not needs and not all_needs(replace(node, needs=())) and not op.root:
        work.fault(at, "new", "no-needs", f"`{op.id}` would wait for nothing", "if that is meant: root: true")
        ok = False
    if ok:
        work.put(replace(node, needs=needs), at)


def _retry(work: Draft, op: Retry, at: int) -> None:
    if not _known(work, op.id, at):
        return
    if op.node is not None:
        work.put(replace(op.node, id=op.id), at)
    work.reset.append(op.id)
    work.touched[op.id] = at


def fallback_id(failed: NodeId, used: Iterable[NodeId]) -> NodeId:
    """`<failed>-fallback`, or `<failed>-fallback-2` … where that was used before."""
    taken = set(used)
    name, number = f"{failed}-fallback", 2
    while name in taken:
        name, number = f"{failed}-fallback-{number}", number + 1
    return name


def _fallback(work: Draft, op: Fallback, at: int) -> None:
    if not _known(work, op.id, at):
        return
    failed = work.nodes[op.id]
    name = fallback_id(op.id, work.used_ids)
    own = op.node
    # without outputs of its own it inherits the contract of the node that it stands in for
    outputs = own.outputs or failed.outputs
    schema = own.output_schema if own.outputs or own.output_schema is not None else failed.output_schema
    _add(
        work,
        replace(own, id=name, needs=_union(all_needs(failed), own.needs), outputs=outputs, output_schema=schema),
        at,
    )
    for user in work.dependents(op.id):
        if user != name and user not in work.frozen:
            work.put(_swap(work.nodes[user], op.id, name), at)
    work.superseded[op.id] = name
    work.touched[op.id] = at


def _swap(node: Node, old: NodeId, new: NodeId) -> Node:
    """`node` with `new` in the place of `old`: in needs, inputs and its condition."""
    inputs = {
        k: replace(item, expression=rename(item.expression, old, new)) if reads(item, old) else item
        for k, item in node.inputs.items()
    }
    condition = rename(node.condition, old, new) if node.condition else ""
    needs = _union(new if n == old else n for n in node.needs)
    return replace(node, needs=needs, inputs=inputs, condition=condition)


def rename(text: str, old: NodeId, new: NodeId) -> str:
    """A bare expression with every reference to node `old` changed to `new`; the rest to the letter."""
    for ref in reversed(ex.references(ex.parse(text))):
        if ref.path[0] == "nodes" and len(ref.path) > 1 and ref.path[1] == old:
            span = text[ref.offset : ref.offset + ref.length]
            text = text[: ref.offset] + span.replace(old, new, 1) + text[ref.offset + ref.length :]
    return text


def _alternative(work: Draft, op: Alternative, at: int) -> None:
    ok = all([_known(work, name, at, "blocked") for name in op.blocked])
    ok = all([_free(work, name, at, "nodes") for name in op.nodes]) and ok
    for name in op.exits:
        if name not in op.nodes:
            work.fault(at, "exits", "unknown-node", f"exit `{name}` is not among the new nodes", near(name, op.nodes))
            ok = False
    if not ok or not op.blocked:
        return
    blocked = set(op.blocked)
    outside = _union(n for name in op.blocked for n in all_needs(work.nodes[name]) if n not in blocked)
    users = _union(
        [u for name in op.blocked for u in work.dependents(name) if u not in blocked and u not in work.frozen]
    )
    for name, node in op.nodes.items():
        entry = not any(n in op.nodes for n in all_needs(node))
        _add(work, replace(node, id=name, needs=_union(node.needs, outside if entry else ())), at)
    for user in users:
        node = work.nodes[user]
        for name, item in node.inputs.items():
            for gone in blocked:
                if _requires(item, gone):
                    _alternative_input(work, op, user, name, gone, at)
        work.put(_without(node, blocked, op), at)
    for name in op.blocked:
        work.skipped[name] = "path blocked"
        work.touched[name] = at


def _alternative_input(work: Draft, op: Alternative, user: NodeId, name: str, gone: NodeId, at: int) -> None:
    """A dependent that reads an output of the blocked path needs one exit that gives the same output."""
    wanted = [r.path[2] for r in ex.references(ex.parse(work.nodes[user].inputs[name].expression)) if r.path[1:2] == (gone,)]
    if len(op.exits) != 1 or any(w not in op.nodes[op.exits[0]].outputs for w in wanted):
        work.fault(
            at,
            "exits",
            "no-producer",
            f"input `{name}` of `{user}` reads `{gone}`, and no single exit gives `{', '.join(wanted)}`",
            "declare that output in the one exit, or give the input a default",
        )


def _without(node: Node, blocked: set[NodeId], op: Alternative) -> Node:
    """A dependent of a blocked path as a dependent of the exits."""
    inputs = dict(node.inputs)
    condition = node.condition
    for gone in blocked:
        if len(op.exits) == 1:
            inputs = {
                k: replace(i, expression=rename(i.expression, gone, op.exits[0])) if reads(i, gone) else i
                for k, i in inputs.items()
            }
            condition = rename(condition, gone, op.exits[0]) if condition else ""
        else:
            inputs = {
                k: Input(value=i.default if i.has_default else None) if reads(i, gone) else i for k, i in inputs.items()
            }
    kept = [n for n in node.needs if n not in blocked]
    return replace(node, needs=_union(kept, op.exits), inputs=inputs, condition=condition)


def _set_limits(work: Draft, op: SetLimits) -> None:
    limits = work.limits
    work.limits = Limits(
        parallel=op.parallel if op.parallel is not None else limits.parallel,
        timeout_s=op.timeout_s if op.timeout_s is not None else limits.timeout_s,
        resources={**limits.resources, **op.resources},
    )

"""The operations of a patch as values, and the draft of a graph that they are carried out on.

What an operation does is `patch.py`. Operations and their names come from [dag-dynamic-replanner].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from dagrun.core.names import Json, NodeId
from dagrun.core.permissions import Permissions
from dagrun.core.plan import Plan, all_needs
from dagrun.core.value import value
from dagrun.core.workflow import Fault, Limits, Node, Workflow

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
    """A new node between `after` and `before`: exactly the edges after × before are replaced.

    `revive` gives a removed node its id back (undo); else an id is never used again in a run.
    """

    id: NodeId
    node: Node
    after: tuple[NodeId, ...] = ()
    before: tuple[NodeId, ...] = ()
    revive: bool = False
    cancel_running: bool = False


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
    """The node as it is after `set` was merged into it and `unset` dropped.

    Only what differs from `made_on` is carried over, so that operations on one node add up; None is
    the node of the plan that the patch was made for.
    """

    id: NodeId
    node: Node
    made_on: Node | None = None
    cancel_running: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Retry:
    """Try a node again; `node` is it with the changes merged into `made_on`, None for no change."""

    id: NodeId
    node: Node | None = None
    made_on: Node | None = None
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
    cancel_running: bool = False


@value(frozen=True, slots=True, kw_only=True)
class SetLimits:
    """New ceilings of the run: parallelism and resources [dag-dynamic-replanner]. None leaves one as it is.

    `whole` are all ceilings at once (undo: a ceiling that was not there goes away again).
    """

    parallel: int | None = None
    timeout_s: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    whole: Limits | None = None


Operation: TypeAlias = Insert | Remove | Rewire | Modify | Retry | Fallback | Alternative | Rerun | SetLimits


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

    `before` are the nodes as they were. `changed` are new or changed nodes by id; `removed` are gone;
    `skipped` settle as skipped; `superseded` maps a failed node to its stand-in; `reset` run again;
    `touched` maps each id to the number of the operation that touched it last.

    Of the run that the graph belongs to: `frozen` have run or run, they keep their needs; `retired`
    are superseded for good: nothing is lost with their needs; `aliases` are their stand-ins.
    `permissions` are those of the run.
    """

    nodes: dict[NodeId, Node]
    limits: Limits
    used_ids: set[NodeId]
    before: Mapping[NodeId, Node]
    frozen: frozenset[NodeId] = frozenset()
    retired: frozenset[NodeId] = frozenset()
    aliases: Mapping[NodeId, NodeId] = field(default_factory=dict)
    permissions: Permissions | None = None
    changed: dict[NodeId, Node] = field(default_factory=dict)
    removed: dict[NodeId, str] = field(default_factory=dict)
    skipped: dict[NodeId, str] = field(default_factory=dict)
    superseded: dict[NodeId, NodeId] = field(default_factory=dict)
    reset: list[NodeId] = field(default_factory=list)
    new: list[NodeId] = field(default_factory=list)
    revived: set[NodeId] = field(default_factory=set)  # removed nodes that have their id back
    limits_at: int = -1  # the operation that changed the limits last
    touched: dict[NodeId, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    plan: Plan | None = None  # of `before`, where there is one: it knows who waits for whom
    users: dict[NodeId, set[NodeId]] = field(default_factory=dict)
    all_users: dict[NodeId, list[NodeId]] | None = None

    def put(self, node: Node, at: int) -> None:
        """Write a node, keeping the index of who depends on whom."""
        old = self.nodes.get(node.id)
        for need in all_needs(old) if old is not None else ():
            self._users(need).discard(node.id)
        for need in all_needs(node):
            self._users(need).add(node.id)
        self.nodes[node.id] = node
        self.changed[node.id] = node
        self.touched[node.id] = at

    def add(self, node: Node, at: int) -> None:
        """Write a node that was not there."""
        self.used_ids.add(node.id)
        self.new.append(node.id)
        self.put(node, at)

    def drop(self, name: NodeId, why: str, at: int) -> None:
        """Take a node out of the graph; one that this very patch brought leaves no trace."""
        node = self.nodes.pop(name)
        for need in all_needs(node):
            self._users(need).discard(name)
        self.changed.pop(name, None)
        self.touched[name] = at
        if name in self.before:
            self.removed[name] = why
        else:
            self.new.remove(name)

    def dependents(self, name: NodeId) -> list[NodeId]:
        """Who waits for a node now, by id."""
        return sorted(self._users(name))

    def _users(self, name: NodeId) -> set[NodeId]:
        """The dependents of a node, which `put` and `drop` keep; as they were when first asked for."""
        found = self.users.get(name)
        if found is None:
            found = self.users[name] = set(self.waiting(name))
        return found

    def waiting(self, name: NodeId) -> Iterable[NodeId]:
        """Who waited for a node before anything was changed."""
        if self.plan is not None:
            i = self.plan.index.get(name)
            return () if i is None else [self.plan.ids[d] for d in self.plan.dependents[i]]
        if self.all_users is None:
            self.all_users = {}
            for node in self.before.values():
                for need in all_needs(node):
                    self.all_users.setdefault(need, []).append(node.id)
        return self.all_users.get(name, ())

    def fault(self, at: int, key: str, code: str, message: str, hint: str = "") -> None:
        """Note what is wrong with operation `at`."""
        path: tuple[str | int, ...] = ("operations", at, key) if key else ("operations", at)
        self.faults.append(Fault(path, code, message, hint))


def draft(workflow: Workflow, used_ids: Iterable[NodeId] = ()) -> Draft:
    """The unchanged draft of a workflow. `used_ids` may not be given to new nodes."""
    return Draft(
        nodes=dict(workflow.nodes),
        before=workflow.nodes,
        limits=workflow.limits,
        permissions=workflow.permissions,
        used_ids=set(used_ids) | workflow.nodes.keys(),
    )

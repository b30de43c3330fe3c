"""The patch that takes an admitted revision back, on the head of the run as it is now.

What has started is not undone: it stays, and that is said. What later revisions changed again stays
too. Pure; the patch is checked by `admit` as any other (with `undoes`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from dagrun.core.event import PatchAdmitted
from dagrun.core.names import SETTLED, Json, NodeId, Status
from dagrun.core.patch import Insert, Modify, Operation, Patch, Remove, Retry, SetLimits, Trigger
from dagrun.core.plan import all_needs
from dagrun.core.replan import standing
from dagrun.core.state import RunState
from dagrun.core.workflow import Limits, Node, node_to_json

_CHANGEABLE = frozenset({Status.PENDING, Status.READY, Status.SKIPPED, Status.CANCELLED, Status.RETRYING})


@dataclass(slots=True, frozen=True)
class Undo:
    """The inverse patch of a revision (without operations: nothing is left to undo), and what it leaves as it is."""

    patch: Patch
    kept: tuple[str, ...]


def inverse(state: RunState, revision: int) -> Undo:
    """What takes back `revision` on the head: new nodes go, changed ones are as before, removed ones are back.

    A node that was skipped, superseded or removed by it runs (again). Raises ValueError when there
    is no such revision or it is the first.
    """
    if not 2 <= revision <= state.plan.revision:
        raise ValueError(f"there is no revision {revision} to undo: a patch made 2 to {state.plan.revision}")
    event = state.revisions[revision - 2]
    back = _Back(state, event, [], [], {})
    _revive(back)
    _restore(back)
    _unsettle(back)
    _take_out(back)
    _ceilings(back)
    for name in event.cancelled:
        back.kept.append(f"`{name}` was ended while it ran: that attempt stays ended")
    patch = Patch(
        operations=tuple(back.operations),
        base=state.plan.revision,
        trigger=Trigger(type="requirement", reason=f"undo of revision {revision}"),
        written=tuple(_written(op, back) for op in back.operations),
    )
    return Undo(patch, tuple(dict.fromkeys(back.kept)))


@dataclass(slots=True)
class _Back:
    """An inverse in the making; `why` are the nodes that keep something, by id."""

    state: RunState
    event: PatchAdmitted
    operations: list[Operation]
    kept: list[str]
    changes: dict[NodeId, tuple[str, ...]]

    def before(self, name: NodeId) -> Node | None:
        """A node as it was before the revision."""
        return self.state.workflows[self.event.revision - 2].nodes.get(name)

    def after(self, name: NodeId) -> Node | None:
        """A node as the revision left it."""
        return self.state.workflows[self.event.revision - 1].nodes.get(name)

    def now(self, name: NodeId) -> Node | None:
        """A node as it is at the head."""
        return self.state.plan.workflow.nodes.get(name)

    def status(self, name: NodeId) -> Status:
        """Where a node stands, as a patch sees it."""
        return standing(self.state, self.state.plan.index[name])


def _revive(back: _Back) -> None:
    for name in back.event.removed:
        node = back.before(name)
        assert node is not None
        if back.now(name) is not None:
            back.kept.append(f"`{name}` is back already")
        else:
            back.operations.append(Insert(id=name, node=_living(back, node), revive=True))


def _living(back: _Back, node: Node) -> Node:
    """A node of an earlier revision without the needs that later revisions took out of the graph."""
    returning = set(back.event.removed)
    lost = [n for n in node.needs if n not in returning and back.now(n) is None]
    for name in lost:
        back.kept.append(f"`{node.id}` needed `{name}`, which a later patch removed")
    return replace(node, needs=tuple(n for n in node.needs if n not in lost))


def _restore(back: _Back) -> None:
    """Give changed nodes back what the revision changed and nobody changed since."""
    stay = {new for new in back.event.superseded.values() if back.now(new) is not None and _started(back, new)}
    for name in back.event.nodes:
        was, made, now = back.before(name), back.after(name), back.now(name)
        if was is None or made is None or now is None:
            continue
        if stay & (set(all_needs(made)) - set(all_needs(was))):
            back.kept.append(f"`{name}` follows {', '.join(f'`{n}`' for n in sorted(stay))}, which has started")
            continue
        changes, later = _reverted(was, made, now)
        for key in later:
            back.kept.append(f"`{name}`: its {key} was changed again since")
        if not changes:
            continue
        status = back.status(name)
        if status not in _CHANGEABLE and not _runs_again(back, name, status):
            back.kept.append(f"`{name}` is {status}: its {', '.join(changes)} stays")
            continue
        node = _living(back, replace(now, **changes))  # type: ignore[arg-type]
        back.changes[name] = tuple(changes)
        back.operations.append(Modify(id=name, node=node))


def _reverted(was: Node, made: Node, now: Node) -> tuple[dict[str, object], list[str]]:
    """(field → value to restore, fields that were changed again). Needs are put back one by one."""
    changes: dict[str, object] = {}
    later: list[str] = []
    for f in fields(Node):
        old, new, head = (getattr(n, f.name) for n in (was, made, now))
        if old == new or head == old:
            continue
        if f.name == "needs" and head != new:
            kept = [n for n in head if n not in set(new) - set(old)]
            changes[f.name] = tuple(dict.fromkeys([*kept, *(n for n in old if n not in new)]))
        elif head == new:
            changes[f.name] = old
        else:
            later.append(f.name)
    return changes, later


def _runs_again(back: _Back, name: NodeId, status: Status) -> bool:
    """Whether the inverse itself sets a node back, so that it may be changed."""
    skipped = name in back.event.skipped and status is Status.SKIPPED
    return skipped or (name in back.event.superseded and status is Status.SUPERSEDED)


def _unsettle(back: _Back) -> None:
    """What the revision skipped or replaced runs (again); what it set back is not brought back."""
    for name, stand_in in back.event.superseded.items():
        if back.now(name) is None or back.status(name) is not Status.SUPERSEDED:
            continue
        if _started(back, stand_in):
            back.kept.append(f"`{name}` stays superseded: `{stand_in}` has started")
        else:
            _again(back, name)
    for name in back.event.skipped:
        if back.now(name) is not None and back.status(name) is Status.SKIPPED:
            _again(back, name)
    for name in back.event.reset:
        back.kept.append(f"`{name}` was set back: its earlier result is not brought back")


def _again(back: _Back, name: NodeId) -> None:
    back.operations.append(Retry(id=name))
    if back.state.attempts[back.state.plan.index[name]]:
        back.kept.append(f"`{name}` is tried again: its earlier result is not brought back")


def _started(back: _Back, name: NodeId) -> bool:
    """Whether a node has begun: an attempt of it runs, ended or waits for a human."""
    i = back.state.plan.index[name]
    settled = back.state.node_status[i] in SETTLED and back.state.node_status[i] is not Status.CANCELLED
    return bool(back.state.attempts[i]) or (settled and back.state.node_status[i] is not Status.SKIPPED)


def _take_out(back: _Back) -> None:
    """Remove what the revision brought, unless it has started."""
    for name in back.event.nodes:
        if back.before(name) is not None or back.now(name) is None:
            continue
        if _started(back, name):
            back.kept.append(f"`{name}` has started: it stays")
        else:
            back.operations.append(Remove(id=name, strategy="bridge"))


def _ceilings(back: _Back) -> None:
    if not back.event.limits:
        return
    was = back.state.workflows[back.event.revision - 2].limits
    made = back.state.workflows[back.event.revision - 1].limits
    now = back.state.plan.workflow.limits
    changes = {}
    for f in fields(Limits):
        old, new, head = (getattr(limits, f.name) for limits in (was, made, now))
        if old != new and head == new:
            changes[f.name] = old
        elif old != new and head != old:
            back.kept.append(f"limits: {f.name} was changed again since")
    if changes:
        back.operations.append(SetLimits(whole=replace(now, **changes)))


# ---------------------------------------------------------------- for the history


def _written(operation: Operation, back: _Back) -> Json:
    """An operation of an inverse as the history keeps it."""
    match operation:
        case Insert(id=name):
            return {"insert": {"id": name, "revive": True}}
        case Modify(id=name, node=node):
            form = node_to_json(node)
            keys = back.changes[name]
            restored: dict[str, Json] = {key: form[key] for key in keys if key in form}
            unset: list[Json] = [key for key in keys if key not in form]
            body: dict[str, Json] = {"id": name, "set": restored, "unset": unset}
            return {"modify": {key: got for key, got in body.items() if got}}
        case Retry(id=name):
            return {"retry": {"id": name}}
        case Remove(id=name):
            return {"remove": {"id": name, "strategy": "bridge"}}
        case SetLimits(whole=whole):
            assert whole is not None
            return {"set_limits": {"parallel": whole.parallel, "resources": dict(whole.resources)}}
        case _:
            raise AssertionError(f"no inverse has a {type(operation).__name__}")


__all__ = ["Undo", "inverse"]

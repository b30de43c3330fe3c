"""What the permissions of one node have against those of the scopes around it, and what a stand-in inherits.

A node asks for no more than its run has; a fallback for no more than the node whose place it takes.
Asking for more is a fault that names both, and never cut in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dagrun.core.agents import has_default_level
from dagrun.core.excess import Excess, excess
from dagrun.core.lattice import as_scope, effective, inherit, meet, rooted
from dagrun.core.names import NodeId
from dagrun.core.permissions import LEVELS, NO_PERMISSIONS, Isolation, Permissions, higher
from dagrun.core.plan import near
from dagrun.core.workflow import Fault, Node, Workflow, docker_of

Place = tuple[str | int, ...]


def is_plain(workflow: Workflow, node: Node) -> bool:
    """Whether no scope says anything that could hold a node or be wrong with it; most nodes are so."""
    return (
        node.permissions is None
        and node.isolation == "process"
        and node.docker is None
        and node.agent is None
        and not node.secret_files
        and workflow.permissions is None
    )


def is_unsaid(node: Node) -> bool:
    """Whether a node has nothing of its own that those after it would inherit: they have their run's."""
    return node.permissions is None and node.isolation != "container"


def stand_in(run: Permissions | None, failed: Node, own: Node) -> Node:
    """A fallback with no more than the node whose place it takes: its ceiling, its level and its image."""
    if own.review is not None or (is_unsaid(failed) and own.isolation == "process"):
        return own
    held = effective(run, failed.permissions, failed.isolation)
    permissions = own.permissions
    if not is_unsaid(failed):
        scope = as_scope(held)
        permissions = meet(scope, inherit(scope, own.permissions or NO_PERMISSIONS))
    level = higher(own.isolation, held.isolation)
    docker = own.docker or (failed.docker if level == "container" else None)
    return replace(own, permissions=permissions, isolation=level, docker=docker)


def stand_ins(workflow: Workflow, node: Node) -> Iterator[tuple[Node, Node]]:
    """(a fallback as it is declared, as it would run) for each that may follow `node`, one after another.

    Each stands in for the one before it, as often as the limits of the workflow let one follow.
    """
    for _ in range(workflow.limits.fallback_chain):
        wanted = node.on_failure
        if wanted is None:
            return
        own = workflow.templates.get(wanted.fallback) if wanted.fallback else wanted.fallback_node
        if own is None:
            return
        node = stand_in(workflow.permissions, node, own)
        yield own, node


# ---------------------------------------------------------------- faults


def permission_faults(workflow: Workflow, node: Node) -> Iterator[Fault]:
    """Everything that the permissions, level, image and secrets of a node have against its run."""
    at: Place = ("nodes", node.id)
    if node.review is not None:
        yield from _review_faults(node, at)
        return
    yield from beyond(node, rooted(workflow.permissions), "the workflow", at)
    yield from _level_faults(workflow, node, at)
    yield from _secret_faults(workflow, node, at)


def fallback_faults(workflow: Workflow, node: Node) -> Iterator[Fault]:
    """What the fallback that a node declares asks for beyond the node itself, or its run."""
    wanted = node.on_failure
    if wanted is None:
        return
    at: Place = ("nodes", node.id, "on_failure", "fallback")
    inline = wanted.fallback_node
    if inline is not None and not is_plain(workflow, inline):
        named = replace(inline, id=f"{node.id}-fallback")
        for fault in permission_faults(workflow, named):
            yield fault._replace(path=(*at, *fault.path[2:]))
    own = workflow.templates.get(wanted.fallback) if wanted.fallback else inline
    if own is None or own.review is not None or (is_unsaid(node) and own.isolation == "process"):
        return
    scope = as_scope(effective(workflow.permissions, node.permissions, node.isolation))
    known = {e.path for e in excess(own.permissions or NO_PERMISSIONS, rooted(workflow.permissions))}
    for fault in beyond(own, scope, f"`{node.id}`, whose place it takes,", at):
        if inline is None:  # written elsewhere: the fault is where it is named
            yield fault._replace(path=at)
        elif fault.path[len(at) + 1 :] not in known:
            yield fault


def beyond(node: Node, scope: Permissions, name: str, at: Place) -> Iterator[Fault]:
    """What a node asks for beyond a scope, by key; also a level below the scope's floor."""
    for part in excess(node.permissions or NO_PERMISSIONS, scope):
        yield _beyond_fault(node.id, part, name, at)
    floor = scope.isolation or "none"
    if has_default_level(node):
        return
    if node.isolation in ("none", "context") and _below(node.isolation, floor):
        yield level_fault(node.id, node.isolation, floor, name, at)


def _beyond_fault(node: NodeId, part: Excess, name: str, at: Place) -> Fault:
    key = ".".join(str(step) for step in part.path if isinstance(step, str))
    message = f"`{node}` asks {part.asked}, but {name} allows {part.allowed}"
    hint = part.hint or f"ask for less, or widen permissions.{key} {_where(name)}"
    return Fault((*at, "permissions", *part.path), "beyond-permissions", message, hint)


def _where(name: str) -> str:
    return "at the top" if name == "the workflow" else "there"


def level_fault(node: NodeId, level: Isolation, floor: Isolation, name: str, at: Place) -> Fault:
    """The refusal of a level below a floor."""
    message = f"`{node}` asks for isolation `{level}`, but {name} allows `{floor}` or more"
    return Fault((*at, "isolation"), "beyond-permissions", message, f"write {floor}, or leave it out")


def _below(level: Isolation, floor: Isolation) -> bool:
    return LEVELS.index(level) < LEVELS.index(floor)


def _level_faults(workflow: Workflow, node: Node, at: Place) -> Iterator[Fault]:
    """A level that can't hold what is declared, a container without an image, an image without a container."""
    run, own = workflow.permissions or NO_PERMISSIONS, node.permissions or NO_PERMISSIONS
    floor = higher(run.isolation or "none", own.isolation or "none")
    level = higher(node.isolation, floor)
    if has_default_level(node):
        level = effective(run, own, node.isolation).isolation  # it gives way
    elif own.isolation is not None and node.isolation in ("none", "context") and _below(node.isolation, own.isolation):
        yield level_fault(node.id, node.isolation, own.isolation, "its own permissions.isolation", at)
    elif level in ("none", "context"):
        for key in ("paths", "network"):
            mine = getattr(own, key) is not None
            if mine or getattr(run, key) is not None:
                who = "it declares" if mine else "the workflow declares"
                message = f"`{node.id}` runs at isolation `{level}`, which holds no {key}, and {who} permissions.{key}"
                place: Place = (*at, "permissions", key) if mine else (*at, "isolation")
                hint = "write isolation: process (or container), or leave it out"
                yield Fault(place, "not-held", message, hint, on_key=mine)
    if level == "container" and not docker_of(workflow, node).image:
        place = (*at, "isolation") if node.isolation == "container" else at
        message = f"`{node.id}` runs in a container, and nothing says of which image"
        yield Fault(place, "no-image", message, "add docker: {image: …} to it or at the top", on_key=place == at)
    if level != "container" and node.docker is not None:
        message = f"`docker` has no meaning for `{node.id}`: it runs at isolation `{level}`"
        hint = "add isolation: container, or remove it"
        yield Fault((*at, "docker"), "no-meaning", message, hint, on_key=True, severity="warning")


def _review_faults(node: Node, at: Place) -> Iterator[Fault]:
    """A question to a human runs nothing that could be held."""
    written = {
        "permissions": node.permissions is not None,
        "docker": node.docker is not None,
        "isolation": node.isolation in ("context", "container"),
    }
    for key in [key for key, there in written.items() if there]:
        message = f"`{key}` has no meaning for `{node.id}`: a review runs nothing"
        yield Fault((*at, key), "not-for-review", message, "remove it", on_key=True)


def _secret_faults(workflow: Workflow, node: Node, at: Place) -> Iterator[Fault]:
    taken: Iterable[str] = {*node.env, *node.secrets, *node.pass_env}
    for name in node.secret_files:
        place = (*at, "secrets")
        if name not in workflow.secrets:
            yield unknown_secret(workflow, node, name, place)
        if name in node.secrets:
            message = f"`{node.id}` gets secret `{name}` both as a variable and as a file"
            yield Fault(place, "two-secrets", message, "name it once: a file is read by fewer")
        if f"{name}_FILE" in taken:
            message = f"`{node.id}`: {name}_FILE is the variable that names the file of secret `{name}`"
            yield Fault(place, "variable-clash", message, "give the other one another name")


def unknown_secret(workflow: Workflow, node: Node, name: str, place: Place) -> Fault:
    """The refusal of a secret that the workflow does not declare."""
    message = f"node `{node.id}` names secret `{name}`, which the workflow does not declare"
    hint = near(name, workflow.secrets) or f"declare it at the top: secrets: {{{name}: {{env: {name}}}}}"
    return Fault(place, "unknown-secret", message, hint)

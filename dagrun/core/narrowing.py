"""What a patch may do to permissions: a node only ever hands on less than it has itself.

A node that a patch of a node inserts gets the permissions of that node as its parent; an existing
one may only be narrowed, and only what may do no more than the author of the patch may be told to do
something else. A human may ask for anything that the run allows, which `check.py` holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dagrun.core.agents import held_of, permitted_offer
from dagrun.core.ceiling import beyond, is_unsaid, level_fault
from dagrun.core.excess import widened
from dagrun.core.lattice import as_scope, inherit, meet
from dagrun.core.operation import Draft, Fallback, Modify, Patch, Retry
from dagrun.core.permissions import NO_PERMISSIONS, Permissions, higher
from dagrun.core.workflow import Fault, Node, Workflow

NO_NODE = Node(id="")
_HUMAN = "only a human may allow that: dagrun replan"
# a change of these makes a node do something else; the others say when and how often
_DEEDS = (
    "run agent group shell cwd env pass_env secrets secret_files inputs outputs output_schema artifacts docker"
    " on_failure".split()
)


def check_fallbacks(workflow: Workflow, work: Draft, patch: Patch) -> None:
    """Add what the fallbacks of a patch ask for beyond the nodes whose place they take."""
    for at, operation in enumerate(patch.operations):
        if not isinstance(operation, Fallback) or operation.id not in work.before:
            continue
        failed, own = work.before[operation.id], operation.node
        if own.review is None and not (is_unsaid(failed) and own.isolation == "process"):
            for fault in beyond(own, _scope(workflow, failed), f"`{failed.id}`, whose place it takes,", ()):
                work.fault(at, "with", fault.code, fault.message, fault.hint)


def narrow(workflow: Workflow, work: Draft, patch: Patch, author: Node | None) -> None:
    """Hold what a draft adds and changes to what the node that wrote its patch may hand on.

    None is who wrote the workflow, in `on_failure`: he may add what the run allows. Nobody but a
    human may widen what a node was allowed before.
    """
    if author is not None:
        for name in [n for n in work.new if n in work.nodes and work.nodes[n].review is None]:
            _adopt(workflow, work, author, work.nodes[name])
    told = {op.id for op in patch.operations if isinstance(op, Modify | Retry)}
    for name, node in list(work.changed.items()):
        before = work.before.get(name)
        if before is None or before is node:
            continue
        for fault in _widening(workflow, before, node):
            work.fault(work.touched[name], "", fault.code, fault.message, fault.hint)
        if author is not None and name in told:
            for fault in _commands(workflow, author, before, node):
                work.fault(work.touched[name], "", fault.code, fault.message, fault.hint)


def _scope(workflow: Workflow, node: Node) -> Permissions:
    """What a node may hand on: an agent no tool that it is not offered itself."""
    held = held_of(workflow, node)
    if node.agent is not None:
        held = replace(held, tools=permitted_offer(node.agent, held.tools))
    return as_scope(held)


# ---------------------------------------------------------------- new nodes


def _adopt(workflow: Workflow, work: Draft, author: Node, node: Node) -> None:
    """A new node as a child of the node that inserted it."""
    scope, at = _scope(workflow, author), work.touched[node.id]
    if node.agent is not None and node.isolation == "context":  # what an agent that names no level has
        if is_unsaid(author) and scope.paths is None and scope.network is None:
            scope = replace(scope, isolation=workflow.permissions.isolation if workflow.permissions else None)
        else:
            node = replace(node, isolation=higher(node.isolation, scope.isolation or "none"))
    name = f"`{author.id}`, which inserts it,"
    for fault in (*beyond(node, scope, name, ()), *_lent(workflow, author, NO_NODE, node)):
        work.fault(at, "", fault.code, fault.message, fault.hint)
    level = scope.isolation or "none"
    if replace(scope, isolation=None) == NO_PERMISSIONS and level in ("none", "process"):
        return
    permissions = meet(scope, inherit(scope, node.permissions or NO_PERMISSIONS))
    docker = node.docker or (author.docker if level == "container" else None)
    work.put(replace(node, permissions=permissions, isolation=higher(node.isolation, level), docker=docker), at)


def _lent(workflow: Workflow, author: Node, before: Node, node: Node) -> Iterator[Fault]:
    """What a node can't hand on: secrets, variables and an image that it does not have itself."""
    mine = {*author.secrets, *author.secret_files, *before.secrets, *before.secret_files}
    for name in [n for n in (*node.secrets, *node.secret_files) if n not in mine]:
        message = f"`{node.id}` would get secret `{name}`, which `{author.id}` does not have"
        yield Fault((), "beyond-permissions", message, _HUMAN)
    servers = {*_servers(author), *_servers(before)}
    for name in [name for name in _servers(node) if name not in servers]:
        message = f"`{node.id}` would get the MCP server `{name}`, which `{author.id}` does not have"
        yield Fault((), "beyond-permissions", message, _HUMAN)
    held = held_of(workflow, author)
    if not held.confined and held.isolation != "context":
        return  # it has the environment of the caller, and may start what it likes
    for name in [n for n in node.pass_env if n not in (*author.pass_env, *before.pass_env)]:
        message = f"`{node.id}` would get the variable `{name}`, which `{author.id}` does not get"
        yield Fault((), "beyond-permissions", message, _HUMAN)
    known = (before.docker, author.docker, workflow.docker)
    if node.docker is not None and node.docker not in known:
        message = f"`{node.id}` would run in an image that `{author.id}` chose"
        yield Fault((), "beyond-permissions", message, _HUMAN)


def _servers(node: Node) -> tuple[str, ...]:
    return node.agent.mcp if node.agent is not None else ()


# ---------------------------------------------------------------- nodes that are there


def _widening(workflow: Workflow, before: Node, after: Node) -> Iterator[Fault]:
    """What a changed node may do that it might not before."""
    if before.permissions == after.permissions and before.isolation == after.isolation:
        return
    was = _scope(workflow, before)
    for part in widened(_scope(workflow, after), was):
        if part.path == ("isolation",):
            yield level_fault(after.id, after.isolation, was.isolation or "none", "what it was before", ())
            continue
        message = f"`{after.id}` would be allowed more: it asks {part.asked}, but had {part.allowed}"
        yield Fault((), "beyond-permissions", message, part.hint or _HUMAN)


def _commands(workflow: Workflow, author: Node, before: Node, after: Node) -> Iterator[Fault]:
    """A node may tell another to do something else only if that one may do no more than itself."""
    changed = [key for key in _DEEDS if getattr(before, key) != getattr(after, key)]
    if not changed:
        return
    yield from _lent(workflow, author, before, after)
    if widened(_scope(workflow, before), _scope(workflow, author)):
        said = {"secret_files": "secrets"}.get(changed[0], changed[0])
        message = f"`{author.id}` may not change `{said}` of `{after.id}`, which may do more than itself"
        yield Fault((), "beyond-permissions", message, _HUMAN)

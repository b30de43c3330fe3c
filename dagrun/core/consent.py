"""What of a patch that no human made needs a human: what it would let run that its author did not write.

A node that wrote a patch may run commands itself: of what it brings, only new commands wait. A model reads
what others wrote (a log, a page), and may be talked into anything: what it may do without a human is a list,
and all else waits. Permissions are not looked at here: nobody widens them (narrowing.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import TypeAlias, cast

from dagrun.core.agents import offer_of
from dagrun.core.event import PatchAdmitted
from dagrun.core.grants import call_of
from dagrun.core.names import Json, NodeId
from dagrun.core.operation import Alternative, Fallback, Insert, Modify, Patch, Retry
from dagrun.core.state import RunState
from dagrun.core.workflow import Agent, Node, Workflow, node_from_json

Deed: TypeAlias = tuple[object, ...]

READING = frozenset({"Read", "Grep", "Glob"})
# what a model may change of a node that is there: when and how long it is tried, never what it does
_TIMING = frozenset(
    "title needs retry timeout_s grace_s resources pids file_size output_bytes estimate_s permissions isolation".split()
)
_TUNING = ("model", "max_turns", "max_tokens", "temperature")  # of an agent
_COMMAND = "run shell cwd env pass_env secrets secret_files".split()


# ---------------------------------------------------------------- of a node


def new_commands(state: RunState, patch: Patch) -> list[NodeId]:
    """Nodes of a patch whose command or agent is not the author's: neither a template's nor the node's own."""
    workflow = state.plan.workflow
    known = {deed for node in _authors(workflow) for deed in _deeds(node)}
    found: list[NodeId] = []
    for operation in patch.operations:
        match operation:
            case Insert(id=name, node=node) | Fallback(id=name, node=node) | Modify(id=name, node=node):
                found += [name] if not known.issuperset(_deeds(node)) else []
            case Retry(id=name, node=changed):
                found += [name] if changed is not None and not known.issuperset(_deeds(changed)) else []
            case Alternative(nodes=nodes):
                found += [name for name, node in nodes.items() if not known.issuperset(_deeds(node))]
            case _:
                pass
    return found


def _authors(workflow: Workflow) -> Iterator[Node]:
    yield from workflow.templates.values()
    yield from workflow.nodes.values()


def _deeds(node: Node) -> list[str | tuple[str, ...] | Agent]:
    """What a node runs, and what the fallbacks written into it would; an agent that only reads runs nothing."""
    wanted = node.on_failure
    found: list[str | tuple[str, ...] | Agent] = [node.run] if node.run else []
    agents = (node.agent, wanted.replanner if wanted is not None else None)
    found += [agent for agent in agents if agent is not None and not only_reads(agent)]
    return [*found, *(_deeds(wanted.fallback_node) if wanted is not None and wanted.fallback_node is not None else ())]


def only_reads(agent: Agent) -> bool:
    """Whether nothing that an agent is offered writes, runs or talks to anybody."""
    return not agent.mcp and all(call_of(pattern).tool in READING for pattern in offer_of(agent))


# ---------------------------------------------------------------- of a model


def reasons_for_human(state: RunState, patch: Patch, event: PatchAdmitted) -> list[str]:
    """Why a patch of a model, which `event` would admit, waits for a human; nothing where it need not."""
    workflow = state.plan.workflow
    found: list[str] = []
    for operation in patch.operations:
        if isinstance(operation, Modify | Retry) and operation.node is not None:
            before = operation.made_on or workflow.nodes.get(operation.id)
            found += _changes(operation.id, before, operation.node) if before is not None else []
    authors = list(_authors(workflow))
    for name, data in event.nodes.items():
        if name not in workflow.nodes:
            found += _new(workflow, node_from_json(cast("Mapping[str, Json]", data)), authors)
    for node in _brought(patch):
        own = node.permissions
        wide = own is not None and (own.paths is not None or own.network is not None)
        if node.agent is not None and wide and own not in [author.permissions for author in authors]:
            found.append(f"the agent `{node.id}` asks for places or a network of its own")
    for name in event.reset:
        i = state.plan.index[name]
        if state.attempts[i] and not state.plan.nodes[i].idempotent:
            found.append(f"`{name}` is not idempotent and would run again")
    return list(dict.fromkeys(found))


def _changes(name: NodeId, before: Node, after: Node) -> list[str]:
    """What a change of a node does beyond its timing."""
    found: list[str] = []
    for key in [f.name for f in fields(Node) if f.name != "id"]:
        was, now = getattr(before, key), getattr(after, key)
        if was == now or key in _TIMING:
            continue
        if not (isinstance(was, Agent) and isinstance(now, Agent) and _is_tuned(was, now)):
            found.append(f"it changes `{_KEYS.get(key, key)}` of `{name}`")
    return found


def _is_tuned(was: Agent, now: Agent) -> bool:
    """Whether an agent that only reads is told the same: others rely on its judgement, not on which model it is."""
    same = replace(now, **{key: getattr(was, key) for key in _TUNING})
    return same == was and only_reads(was)


_KEYS = {"condition": "if", "secret_files": "secrets"}


def _brought(patch: Patch) -> Iterator[Node]:
    """The nodes that a patch brings, as it has them."""
    for operation in patch.operations:
        match operation:
            case Insert(node=node) | Fallback(node=node):
                yield node
            case Alternative(nodes=nodes):
                yield from nodes.values()
            case _:
                pass


def _new(workflow: Workflow, node: Node, authors: list[Node]) -> Iterator[str]:
    """What a new node does that no author wrote."""
    whole = _whole(node)
    if whole not in [_whole(author) for author in authors] and node.review is None:
        if node.agent is None:
            yield f"it brings the new command `{node.id}`"
        elif not only_reads(node.agent):
            yield f"it brings the agent `{node.id}`, which does more than read"
        elif whole[1:] != _PLAIN[1:]:
            yield f"it gives the agent `{node.id}` an environment of its own"
    if node.docker is not None and node.docker not in [workflow.docker, *(author.docker for author in authors)]:
        yield f"it chooses the image of `{node.id}`"
    if not {name for author in authors for name in _files(author)}.issuperset(_files(node)):
        yield f"it collects files of `{node.id}` that no node gives so far"
    if node.on_failure is not None and node.on_failure not in [author.on_failure for author in authors]:
        yield f"it says what happens when `{node.id}` fails"


def _whole(node: Node) -> Deed:
    """All that decides what the program of a node does; an agent that only reads is free in its words and model."""
    agent = node.agent
    head: object = node.run
    if agent is not None:
        head = "reads" if only_reads(agent) else agent
    rest = [getattr(node, key) for key in _COMMAND[1:]]
    return (head, *rest)


_PLAIN = _whole(Node(id=""))


def _files(node: Node) -> list[str]:
    """Files that a node's attempt gives to the run."""
    return [*node.artifacts, *(output.file for output in node.outputs.values() if output.source == "file")]

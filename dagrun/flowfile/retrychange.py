"""What `retry` may change: a few keys of a node, and those of an agent as if they were the node's own.

`--retry N:model=strong,max_tokens=8192` says less than the node's own form, and `prompt` is added to what
the agent was told, so that its task is never lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from dagrun.core.names import Json
from dagrun.core.workflow import Fault, Node
from dagrun.flowfile import fields
from dagrun.flowfile.document import agent_to_document
from dagrun.flowfile.source import Value

Path = tuple[str | int, ...]
KEYS = ("timeout", "retry", "resources", "env", "permissions")
AGENT_KEYS = ("model", "max_tokens", "max_turns", "prompt")


def faults(changes: Mapping[str, Value], unset: Iterable[str], present: Node | None) -> list[Fault]:
    """The keys that `retry` can't change of a node (None: which one is not known), each at its place."""
    places: list[tuple[Path, str, bool]] = [(("retry", "set", key), key, True) for key in changes]
    places += [(("retry", "unset", at), dotted.split(".")[0], False) for at, dotted in enumerate(unset)]
    hint = f"it can change {', '.join((*KEYS, *AGENT_KEYS))}; for the rest: modify"
    found: list[Fault] = []
    for path, key, on_key in places:
        if key in AGENT_KEYS and on_key:
            if present is not None and present.agent is None:
                message = f"`{key}` is a key of agents, and `{present.id}` is none"
                found.append(Fault(path, "not-an-agent", message, "remove it", True))
        elif key not in KEYS:
            found.append(Fault(path, "not-for-retry", f"`retry` can't change `{key}`", hint, on_key))
    return found


def for_node(present: Node, changes: dict[str, Value]) -> dict[str, Value]:
    """The same changes as keys of the node."""
    mine = {key: value for key, value in changes.items() if key in AGENT_KEYS}
    if not mine or present.agent is None:
        return changes
    more = mine.get("prompt")
    if isinstance(more, str) and not fields.is_null(more) and more.strip():
        mine["prompt"] = f"{present.agent.prompt.rstrip()}\n\n{more}"
    return {**{key: value for key, value in changes.items() if key not in mine}, "agent": mine}


def written(node: Node, changes: Mapping[str, Value]) -> dict[str, Json]:
    """What was changed of an agent, in the spelling of a document: what is added to a prompt as it was written."""
    if node.agent is None:
        return {}
    agent = cast("dict[str, Json]", agent_to_document(node.agent, long=True))
    made = {key: agent.get(key, getattr(node.agent, key)) for key in AGENT_KEYS if key in changes}
    more = changes.get("prompt")
    return {**made, "prompt": str(more)} if isinstance(more, str) else made


def located(found: Iterable[Fault]) -> list[Fault]:
    """Faults of the changed node, where the keys of its agent stand in the patch."""
    return [
        fault._replace(path=fault.path[1:]) if fault.path[:1] == ("agent",) and fault.path[1:] else fault
        for fault in found
    ]

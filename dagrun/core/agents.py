"""What an agent is offered, where it runs and which models it may ask, as its workflow says. Pure.

What is wrong with that is `agentcheck.py`; which model a call goes to is the router's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dagrun.core.grants import call_of
from dagrun.core.lattice import effective, for_agent, meet
from dagrun.core.names import Json
from dagrun.core.permissions import Effective, Isolation, Permissions
from dagrun.core.workflow import Agent, Node, Output, Workflow

DEFAULT_OFFER = ("Read", "Grep", "Glob")
FAKE_MODEL = "fake/model"
TEXT = "text"  # the one output of an agent without a schema: its last words
TEXT_OUTPUT: Mapping[str, Output] = {TEXT: Output()}
_DOING = frozenset({"Write", "Edit", "Bash"})


def held_of(workflow: Workflow, node: Node) -> Effective:
    """What a node ends up with; the tools of an agent are always held to paths and a network at process and above."""
    found = effective(workflow.permissions, node.permissions, node.isolation)
    return for_agent(found) if node.agent is not None else found


def offer_of(agent: Agent) -> tuple[str, ...]:
    """The patterns of the tools that an agent is offered, before any ceiling.

    Without `tools` these are Read, Grep and Glob, and all tools of the servers under `mcp`.
    """
    if agent.tools is not None:
        return agent.tools
    return (*DEFAULT_OFFER, *(f"mcp__{server}__*" for server in agent.mcp))


def permitted_offer(agent: Agent, ceiling: tuple[str, ...] | None) -> tuple[str, ...]:
    """What of its offer a ceiling of patterns leaves an agent; None: it leaves all."""
    offer = offer_of(agent)
    return offer if ceiling is None else meet(Permissions(tools=offer), Permissions(tools=ceiling)).tools or ()


def answer_schema(node: Node) -> Json:
    """The schema that the answer of an agent has to fit, made of its `output_schema` and its outputs.

    None: any text will do, and it is the output `text`.
    """
    if node.output_schema is None and (not node.outputs or node.outputs == TEXT_OUTPUT):
        return None
    schema = node.output_schema if isinstance(node.output_schema, dict) else {}
    held, needed = schema.get("properties"), schema.get("required")
    properties: dict[str, Json] = dict(held) if isinstance(held, dict) else {}
    more = [name for name in node.outputs if name not in properties]
    if not more and node.output_schema is not None:
        return node.output_schema
    for name in more:
        part = node.outputs[name].schema
        properties[name] = {} if part is None else part
    required: list[Json] = [*(needed if isinstance(needed, list) else []), *more]
    rest = {key: part for key, part in schema.items() if key not in ("type", "properties", "required")}
    return {"type": "object", "properties": properties, "required": required, **rest}


def default_level(agent: Agent) -> Isolation:
    """The level of an agent that names none: process if it may write or run something, else context.

    It is a wish and no word of the author: a floor, paths or network that a scope declares raise it.
    """
    doing = agent.mcp or any(
        (tool := call_of(pattern).tool) in _DOING or tool.startswith("mcp__") for pattern in offer_of(agent)
    )
    return "process" if doing else "context"


def has_default_level(node: Node) -> bool:
    """Whether a node is an agent at the level that it would have if it named none."""
    return node.agent is not None and node.isolation == default_level(node.agent)


def tiers_of(workflow: Workflow, *, fake: bool | None = None) -> Mapping[str, tuple[str, ...]]:
    """The tiers of a workflow; a fake provider answers also where there are none.

    `fake` None: as the workflow's own provider says.
    """
    fake = workflow.provider.kind == "fake" if fake is None else fake
    return workflow.models or ({"fake": (FAKE_MODEL,)} if fake else {})


def wish_of(workflow: Workflow, agent: Agent, *, fake: bool | None = None) -> str:
    """The tier or model that an agent asks for: its own, else the first tier; "" where there is none."""
    return agent.model or next(iter(tiers_of(workflow, fake=fake)), "")


def agents_of(node: Node) -> Iterator[tuple[tuple[str, ...], Agent, Node]]:
    """(path below the node, agent, the node whose permissions it has) of a node and of the fallbacks in it."""
    path: tuple[str, ...] = ()
    while True:
        if node.agent is not None:
            yield (*path, "agent"), node.agent, node
        wanted = node.on_failure
        if wanted is None:
            return
        if wanted.replanner is not None:
            yield (*path, "on_failure", "replanner"), wanted.replanner, node
        if wanted.fallback_node is None:
            return
        path, node = (*path, "on_failure", "fallback"), wanted.fallback_node


def has_agents(workflow: Workflow) -> bool:
    """Whether anything in a workflow may ask a model."""
    groups = (workflow.nodes, workflow.templates)
    return any(
        node.agent is not None or (node.on_failure is not None and any(True for _ in agents_of(node)))
        for group in groups
        for node in group.values()
    )

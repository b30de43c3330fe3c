"""What an agent's attempt begins with: its task for the loop, the models that may be asked, and how they are priced.

A function of the plan, the outputs of its needs and the skills' files, so that an audit can do it again.
Knows no process and no provider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from dagrun.agent.messages import Message
from dagrun.agent.prices import Price, price_to_json
from dagrun.agent.prompt import Briefing, Earlier, SkillText, words_of
from dagrun.agent.router import Reason, route
from dagrun.agent.skills import Skill
from dagrun.agent.steps import Caps, Task
from dagrun.agent.tools import TOOLS, catalogue
from dagrun.core import expression as ex
from dagrun.core.agents import answer_schema, held_of, offer_of, tiers_of, wish_of
from dagrun.core.grants import call_of
from dagrun.core.names import Json, NodeId
from dagrun.core.workflow import Node, Workflow

RAISE = 2  # an answer that was cut off may be this much longer, once


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """What the engine needs to drive an attempt: `prices` are the models to ask, in order.

    `started` goes into the journal: with it, the plan and the outputs before, all of this can be made again.
    """

    task: Task
    prices: tuple[Price, ...]
    left_out: tuple[Reason, ...]
    started: Mapping[str, Json]
    servers: tuple[str, ...] = ()


def rules_of(workflow: Workflow, node: Node, skills: Iterable[Skill | RecordedSkill]) -> tuple[tuple[str, ...], ...]:
    """The lists of patterns that each allow a call: the offer, the ceiling, those of its skills."""
    assert node.agent is not None
    ceiling = held_of(workflow, node).tools
    found = [offer_of(node.agent)]
    if ceiling is not None:
        found.append(ceiling)
    found += [skill.allowed_tools for skill in skills if skill.allowed_tools is not None]
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSkill:
    """A skill as an attempt used it."""

    name: str
    digest: str
    body: str
    allowed_tools: tuple[str, ...] | None = None


def task_of(
    workflow: Workflow,
    node: Node,
    *,
    scope: ex.Scope,
    inputs: Mapping[str, Json],
    skills: Sequence[Skill | RecordedSkill] = (),
    listed: Sequence[Json] = (),
    earlier: Mapping[NodeId, Sequence[Message]] | None = None,
    project: str = "",
    fake: bool = False,
) -> Task:
    """The task of an attempt. `listed` are the definitions of its MCP servers, `earlier` what its group said before.

    Raises ExpressionError and EvaluationError for a prompt that can't be made.
    """
    agent = node.agent
    assert agent is not None
    names = dict.fromkeys(call_of(pattern).tool for pattern in offer_of(agent))
    tools = [*catalogue(name for name in names if name in TOOLS), *listed]
    briefing = Briefing(
        system=agent.system,
        skills=tuple(SkillText(s.name, s.digest, s.body) for s in skills),
        words=words_of(agent.prompt, scope),
        inputs=inputs,
        schema=answer_schema(node),
        earlier=tuple(Earlier(name, tuple(said)) for name, said in (earlier or {}).items()),
    )
    return Task(
        briefing=briefing,
        model=wish_of(workflow, agent, fake=fake),
        tools=tuple(tools),
        rules=rules_of(workflow, node, skills),
        project=project,
        max_tokens=agent.max_tokens,
        max_tokens_once=agent.max_tokens * RAISE,
        temperature=agent.temperature,
        caps=Caps(turns=agent.max_turns),
    )


def begin(
    workflow: Workflow,
    task: Task,
    node: Node,
    *,
    prices: Mapping[str, Price],
    provider: str,
    skills: Mapping[str, Json],
    fake: bool,
) -> Begin:
    """The start of an attempt: its models as far as they are permitted and have a price."""
    assert node.agent is not None
    found = route(task.model, tiers_of(workflow, fake=fake), held_of(workflow, node).models)
    asked = tuple(prices[model] for model in found.models if model in prices)
    started: dict[str, Json] = {
        "model": task.model,
        "provider": provider,
        "tools": [str(cast("dict[str, dict[str, Json]]", tool)["function"]["name"]) for tool in task.tools],
        "prices": [price_to_json(price) for price in asked],
    }
    if skills:
        started["skills"] = dict(skills)
    return Begin(task=task, prices=asked, left_out=found.left_out, started=started, servers=node.agent.mcp)

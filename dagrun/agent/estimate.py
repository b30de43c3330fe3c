"""What the agents of a workflow can cost at most, told before anything is spent.

The bound is what a provider may bill, not what is likely: every attempt takes all its turns, each reply
is as long as it may be, each declared datum as large as a prompt shows, every tool result as large as one
is kept, and each call goes to the dearest of its models. A model's window bounds every prompt, so of an
agent with tools the worst case is mostly turns × window. Calls that a provider breaks off and bills are
asked again and come on top; what holds those too is a cap (`cost_budget`), which binds in any case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dagrun.agent.checks import Prices, route_of
from dagrun.agent.mcp import MAX_DEFINITIONS_BYTES
from dagrun.agent.prices import Price
from dagrun.agent.prompt import DATA_BYTES, DATA_WORDS, DATUM_BYTES, SCHEMA_WORDS, TOOL_WORDS
from dagrun.agent.steps import Caps
from dagrun.agent.structured import MAX_REMINDERS
from dagrun.agent.tools import TOOLS, catalogue
from dagrun.core.agents import answer_schema, held_of, permitted_offer
from dagrun.core.budget import HIDDEN_TOKENS, worst_case
from dagrun.core.ceiling import stand_ins
from dagrun.core.grants import call_of
from dagrun.core.names import Json
from dagrun.core.workflow import Agent, Node, Workflow

CAPS = Caps()
RAISE = 2  # an answer that was cut off may once be asked for again, and from then on be this much longer
REMINDER_BYTES = 8 << 10
FRAME_BYTES = 256  # the JSON around a message or a datum
_SkillSize = Callable[[str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """What one agent may cost, in nano-dollars. `cost` None: a model of it has no known price.

    `node` is the node that spends it (an agent, its fallback or its replanner), `of` the node of the plan.
    `cap` is the `cost_budget` that holds the node, None without; `calls` are successful model calls.
    """

    node: str
    of: str
    models: tuple[str, ...]
    calls: int
    prompt_tokens: int
    cost: int | None
    cap: int | None

    @property
    def at_most(self) -> int | None:
        """What can be spent in spite of the worst case; None where nothing bounds it."""
        known = [amount for amount in (self.cost, self.cap) if amount is not None]
        return min(known, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """All agents of a plan. `cost` None: some can't be told; `cap` is the run's; `unknown` says why, with `hint`."""

    agents: tuple[Worst, ...]
    cost: int | None
    cap: int | None
    fake: bool = False
    unknown: str = ""
    hint: str = ""

    @property
    def at_most(self) -> int | None:
        """What the run can spend at most; None where nothing bounds it."""
        parts = [worst.at_most for worst in self.agents]
        whole = None if None in parts else sum(part for part in parts if part is not None)
        known = [amount for amount in (whole, self.cap) if amount is not None]
        return min(known, default=None)


def worst_costs(
    workflow: Workflow, known: Prices, *, fake: bool = False, skill_bytes: _SkillSize = lambda name: 0
) -> Total:
    """What the nodes of a workflow may cost; `skill_bytes` tells how much text a skill is.

    Fallbacks and replanners of a node are counted: they spend after it did.
    """
    run = workflow.permissions.cost_budget if workflow.permissions is not None else None
    found = tuple(
        _worst(workflow, node, agent, name, of, known.prices, fake, skill_bytes)
        for of, name, agent, node in _spenders(workflow)
    )
    costs = [worst.cost for worst in found]
    total = None if None in costs else sum(cost for cost in costs if cost is not None)
    return Total(agents=found, cost=total, cap=run, fake=fake, unknown=known.unknown, hint=known.hint)


def _spenders(workflow: Workflow) -> Iterator[tuple[str, str, Agent, Node]]:
    """(node of the plan, name, agent, the node that holds it) of all that may ask a model when the run goes badly."""
    for node in workflow.nodes.values():
        yield from _own(node.id, node.id, node)
        name = node.id
        for _, after in stand_ins(workflow, node):
            name = f"{name}-fallback"
            yield from _own(node.id, name, after)


def _own(of: str, name: str, node: Node) -> Iterator[tuple[str, str, Agent, Node]]:
    if node.agent is not None:
        yield of, name, node.agent, node
    if node.on_failure is not None and node.on_failure.replanner is not None:
        yield of, f"{name}-replanner", node.on_failure.replanner, node


def _worst(
    workflow: Workflow,
    node: Node,
    agent: Agent,
    name: str,
    of: str,
    prices: Mapping[str, Price],
    fake: bool,
    skill_bytes: _SkillSize,
) -> Worst:
    models = route_of(workflow, node, agent, fake=fake).models
    repairs = agent is not node.agent
    times = max(1, workflow.limits.fallback_chain) if repairs else node.retry.max_attempts
    shape = _Shape(workflow, node, agent, skill_bytes)
    found = [prices[m] for m in models if m in prices]
    cost: int | None = None
    if found and len(found) == len(models):
        cost = times * sum(max(_call(price, *call) for price in found) for call in shape.calls())
    return Worst(
        node=name,
        of=of,
        models=models,
        calls=times * len(shape.calls()),
        prompt_tokens=max((tokens for tokens, _ in shape.calls()), default=0),
        cost=cost,
        cap=held_of(workflow, node).cost_budget,
    )


def _call(price: Price, tokens: int, answer: int) -> int:
    """The most that one call can cost with this model."""
    prompt = tokens if price.context is None else min(tokens, price.context)
    return worst_case(prompt, min(answer, price.max_output or answer), price.worst(prompt))


class _Shape:
    """How large the calls of one attempt can get."""

    def __init__(self, workflow: Workflow, node: Node, agent: Agent, skill_bytes: _SkillSize) -> None:
        self._agent = agent
        self._repairs = agent is not node.agent
        self._schema = True if self._repairs else answer_schema(node) is not None
        self._tools = permitted_offer(agent, held_of(workflow, node).tools)
        self._first = self._fixed(workflow, node, skill_bytes) + self._data(node)

    def calls(self) -> list[tuple[int, int]]:
        """(tokens of the prompt, tokens of the answer) of every call, as large as they may get.

        A text has at most as many tokens as bytes; what a model wrote in some tokens it reads as as many.
        """
        agent, longer = self._agent, self._agent.max_tokens * RAISE
        # an agent that can call nothing is done with its first answer
        turns = agent.max_turns if self._tools else 1
        more = MAX_REMINDERS if self._schema else 0
        found = [(self._first, agent.max_tokens)]  # cut off, and asked for again with more room
        for number in range(turns + more):
            results = CAPS.tool_calls * CAPS.result_bytes if self._tools and number else 0
            grown = number * (longer + 2 * FRAME_BYTES) + results + min(number, more) * REMINDER_BYTES
            found.append((self._first + min(grown, CAPS.transcript_bytes + FRAME_BYTES * 100), longer))
        return found

    def _fixed(self, workflow: Workflow, node: Node, skill_bytes: _SkillSize) -> int:
        """What is the same in every call: the author's words, skills, schema and tools."""
        agent = self._agent
        texts = [agent.prompt, agent.system, DATA_WORDS, TOOL_WORDS, SCHEMA_WORDS]
        if not self._repairs:
            texts.append(json.dumps(answer_schema(node), ensure_ascii=False))
        names = [tool for pattern in self._tools if (tool := call_of(pattern).tool) in TOOLS]
        texts.append(json.dumps(catalogue(dict.fromkeys(names)), ensure_ascii=False))
        fixed = sum(len(text.encode("utf-8", "replace")) for text in texts)
        fixed += sum(skill_bytes(name) + FRAME_BYTES for name in agent.skills)
        fixed += len(agent.mcp) * MAX_DEFINITIONS_BYTES
        if self._repairs:
            fixed += DATA_BYTES  # the schema of patches, and what is told of the failure
        if node.group:  # what all others of the conversation said
            others = sum(n.group == node.group for n in workflow.nodes.values()) - 1
            fixed += max(0, others) * CAPS.transcript_bytes
        return fixed + HIDDEN_TOKENS + 4 * FRAME_BYTES

    def _data(self, node: Node) -> int:
        """What the author did not write, as far as a prompt shows it."""
        if self._repairs:
            return 0
        sizes = [_literal(item.value) if not item.expression else DATUM_BYTES for item in node.inputs.values()]
        sizes += [DATUM_BYTES] * max(0, self._agent.prompt.count("${{") - len(sizes))
        return min(sum(sizes), DATA_BYTES) + len(sizes) * FRAME_BYTES


def _literal(value: Json) -> int:
    text = json.dumps(value, ensure_ascii=False)
    return DATUM_BYTES if "${{" in text else min(DATUM_BYTES, len(text.encode("utf-8", "replace")))

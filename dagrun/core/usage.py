"""What agents used, for readers: tokens, money, models, turns and tools of an attempt, a node or a run.

Derived from the tallies of the attempts and from the ledger. Money is in integer nano-dollars until the
moment it becomes JSON. Costs a plain flow nothing: no ledger and no tally is made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

from dagrun.core.names import Json

if TYPE_CHECKING:
    from dagrun.core.state import Attempt, RunState
    from dagrun.core.workflow import Node

NANO = 10**9


@dataclass(slots=True, frozen=True, kw_only=True)
class Usage:
    """What one attempt of an agent used, or all of a node. `spent` and `held` are nano-dollars.

    `asked` is the model or tier that was wished for, `models` those that answered and how often. `calls`
    are model requests, `repeats` those of them that asked for the same turn again, `reused` those whose
    reply a lost attempt had bought. `cached` tokens are a part of `input`, `reasoning` of `output`.
    `first_token_ms` is that of the first reply of the last attempt that had one.
    """

    asked: str = ""
    models: Mapping[str, int] = field(default_factory=dict)
    provider: str = ""
    turns: int = 0
    calls: int = 0
    repeats: int = 0
    reused: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    spent: int = 0
    held: int = 0
    tools: Mapping[str, int] = field(default_factory=dict)
    skills: Mapping[str, str] = field(default_factory=dict)
    first_token_ms: int | None = None

    @property
    def model(self) -> str | None:
        """The model that answered; of several the one that was turned to last, None before any did."""
        return next(reversed([*self.models]), None)

    @property
    def tokens(self) -> int:
        """All tokens, in and out."""
        return self.input + self.output


def usage_of(node: Node, tried: Iterable[Attempt]) -> Usage | None:
    """What some attempts of a node used together; None where no agent was at work."""
    found = [_of_attempt(node, a) for a in tried if a.tally is not None or a.agent or node.agent is not None]
    if not found:
        return Usage(asked=node.agent.model) if node.agent is not None else None
    return found[0] if len(found) == 1 else add_up(found)


def _of_attempt(node: Node, attempt: Attempt) -> Usage:
    began, tally = attempt.agent, attempt.tally
    wished = node.agent.model if node.agent is not None else ""
    facts = {
        "asked": str(began.get("model") or wished),
        "provider": str(began.get("provider") or ""),
        "skills": _digests(began.get("skills")),
    }
    if tally is None:
        return Usage(**facts)  # type: ignore[arg-type]
    return Usage(
        **facts,  # type: ignore[arg-type]
        models=dict(tally.models),
        turns=tally.turns,
        calls=tally.calls,
        repeats=tally.repeats,
        reused=tally.reused,
        input=tally.input,
        output=tally.output,
        cached=tally.cached,
        reasoning=tally.reasoning,
        spent=tally.spent,
        held=tally.held,
        tools=dict(tally.tools),
        first_token_ms=tally.first_token_ms,
    )


def _digests(data: Json) -> dict[str, str]:
    """Skills by name with their digests, of what an attempt begins with."""
    found = data if isinstance(data, dict) else {}
    return {name: str(s.get("digest", "")) if isinstance(s, dict) else str(s) for name, s in found.items()}


def add_up(parts: Iterable[Usage]) -> Usage:
    """The sum of several; what is no number is that of the last one that says it."""
    found = list(parts)
    if not found:
        return Usage()
    last = found[-1]
    models: dict[str, int] = {}
    for part in found:
        for name, count in part.models.items():
            models[name] = models.pop(name, 0) + count  # to the end: turned to last
    tools: dict[str, int] = {}
    for part in found:
        for name, count in part.tools.items():
            tools[name] = tools.get(name, 0) + count
    first = [part.first_token_ms for part in found if part.first_token_ms is not None]
    return Usage(
        asked=last.asked,
        models=models,
        provider=last.provider,
        turns=sum(p.turns for p in found),
        calls=sum(p.calls for p in found),
        repeats=sum(p.repeats for p in found),
        reused=sum(p.reused for p in found),
        input=sum(p.input for p in found),
        output=sum(p.output for p in found),
        cached=sum(p.cached for p in found),
        reasoning=sum(p.reasoning for p in found),
        spent=sum(p.spent for p in found),
        held=sum(p.held for p in found),
        tools=tools,
        skills=last.skills,
        first_token_ms=first[-1] if first else None,
    )


def usd(nano: int) -> float:
    """Nano-dollars as the number of dollars that JSON shows without noise: 28000000 is 0.028."""
    return nano / NANO  # one correctly rounded division: its shortest form is the decimal itself


def usage_to_json(usage: Usage) -> dict[str, Json]:
    """The JSON form; tokens and money are named as in a trace entry."""
    return {
        "model_asked": usage.asked,
        "model": usage.model,
        "models": cast("dict[str, Json]", dict(usage.models)),
        "provider": usage.provider,
        "turns": usage.turns,
        "calls": usage.calls,
        "repeated_calls": usage.repeats,
        "reused_calls": usage.reused,
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cached_tokens": usage.cached,
        "reasoning_tokens": usage.reasoning,
        "cost_usd": usd(usage.spent),
        "reserved_usd": usd(usage.held),
        "tools": cast("dict[str, Json]", dict(usage.tools)),
        "skills": cast("dict[str, Json]", dict(usage.skills)),
        "first_token_ms": usage.first_token_ms,
    }


# ---------------------------------------------------------------- the run


class Money(NamedTuple):
    """What a run spent, what it holds for calls under way, and its cap (None: none); nano-dollars."""

    spent: int = 0
    held: int = 0
    cap: int | None = None


NOTHING = Money()


def money_of(state: RunState) -> Money:
    """How a run stands against its budget. O(1)."""
    permitted = state.plan.workflow.permissions
    cap = permitted.cost_budget if permitted is not None else None
    if state.ledger is None:
        return Money(cap=cap)
    from dagrun.core.spending import RUN

    return Money(state.ledger.spent(RUN), state.ledger.held(RUN), cap)


def has_agents(state: RunState) -> bool:
    """Whether any node of a run is an agent. O(nodes)."""
    return state.ledger is not None or any(node.agent is not None for node in state.plan.nodes)


def usage_of_run(state: RunState) -> Usage:
    """What all agents of a run used. O(nodes + attempts)."""
    tallied = [a.tally for tried in state.attempts for a in tried if a.tally is not None]
    return Usage(
        turns=sum(t.turns for t in tallied),
        calls=sum(t.calls for t in tallied),
        repeats=sum(t.repeats for t in tallied),
        reused=sum(t.reused for t in tallied),
        input=sum(t.input for t in tallied),
        output=sum(t.output for t in tallied),
        cached=sum(t.cached for t in tallied),
        reasoning=sum(t.reasoning for t in tallied),
        spent=sum(t.spent for t in tallied),
        held=sum(t.held for t in tallied),
    )

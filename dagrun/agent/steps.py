"""What passes between an agent's loop and whoever drives it: a task, events in, effects out, as plain data.

Knows no rule of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dagrun.agent.messages import Answer, ErrorKind, Request, ToolCall
from dagrun.agent.prompt import Briefing, Prompt
from dagrun.core.names import Json, Outcome

MIN_TOKENS = 256  # an answer below this is not worth a call


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What one attempt may use. None: no cap of its own. `transcript_bytes`: all that is said and returned."""

    turns: int = 10
    tool_calls: int = 50
    tokens: int | None = None
    transcript_bytes: int = 8 << 20
    result_bytes: int = 30_000
    time_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """All that is fixed for an attempt. `model` is a tier or a model, as the node wishes it.

    `tools` are definitions as tools.catalogue makes them; `rules` are lists of patterns (the offer, the
    ceiling, those of skills): a call has to be allowed by each. `max_tokens_once` is what `max_tokens`
    may be raised to, one time, where an answer is cut off; None: never.
    """

    briefing: Briefing
    model: str = ""
    tools: tuple[Json, ...] = ()
    rules: tuple[tuple[str, ...], ...] = ()
    project: str = ""
    max_tokens: int = 4096
    max_tokens_once: int | None = None
    temperature: float | None = None
    caps: Caps = Caps()


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Answered:
    """The model call that was due is answered for good: a reply, or the error after all tries.

    `max_tokens` is what the call had, where it was less than asked for. `at_s`, here and below:
    seconds since the attempt began.
    """

    answer: Answer
    max_tokens: int | None = None
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """The tool call `number` (from 1 in the attempt) is over."""

    number: int
    ok: bool
    text: str
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MoneyShort:
    """The model call that was due is not affordable: `reason` says which cap is short of what."""

    reason: str
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed and nothing else; only a cap on time can make something of it."""

    at_s: float


Event: TypeAlias = Answered | ToolReturned | MoneyShort | Ticked


# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class CallModel:
    """Ask a model. The caller sets `request.model` and may lower `max_tokens`, not below `least_tokens`.

    `turn` counts the replies that the attempt will have had with this one. `segments` of `prompt` say
    where each character comes from.
    """

    turn: int
    request: Request
    prompt: Prompt
    tier: str
    least_tokens: int = MIN_TOKENS


@dataclass(frozen=True, slots=True)
class CallTool:
    """Run a tool that is offered and permitted."""

    number: int
    turn: int
    call: ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The attempt is over. `outputs` only when completed under a schema; `text` is the last thing said.

    `kind` is the error of the provider, `transient` whether trying again may help. `rejected` are the
    answers that did not fit the schema.
    """

    outcome: Outcome
    limit: str = ""
    outputs: Mapping[str, Json] | None = None
    text: str = ""
    error: str = ""
    kind: ErrorKind | Literal[""] = ""
    transient: bool = False
    rejected: tuple[str, ...] = ()


Effect: TypeAlias = CallModel | CallTool | Finish

"""What an answer means for the books, and words for a scope of them. Pure."""

from __future__ import annotations

from dataclasses import replace

from dagrun.agent.messages import BILLED, Answer, CallFailed, Usage
from dagrun.agent.prices import Price, cost
from dagrun.agent.router import Choice
from dagrun.core.event import CallEnded
from dagrun.engine.talk import Talk


def scope_text(scope: str) -> str:
    """A scope of the ledger, for people."""
    if scope == "run":
        return "the run"
    kind, _, name = scope.partition(":")
    return f"{kind} `{name}`"


def usage_counts(usage: Usage) -> tuple[int, int, int, int, int]:
    """The tokens of a call as the journal has them."""
    return usage.input, usage.output, usage.cached, usage.cache_written, usage.reasoning


def closing(talk: Talk, node: str, answer: Answer, price: Price, choice: Choice) -> tuple[CallEnded, int]:
    """What an answer means for the books, and what was spent: what nobody knows to be free was billed."""
    ended = CallEnded(node=node, attempt=talk.number, call=talk.call)
    if isinstance(answer, CallFailed):
        if answer.kind in BILLED:
            return replace(ended, books="keep", spent=choice.reserve, error=answer.kind), choice.reserve
        return replace(ended, books="release", error=answer.kind), 0
    ended = replace(ended, model=answer.model or choice.model, first_token_ms=answer.first_token_ms)
    try:
        if answer.usage is not None:
            spent = cost(answer.usage, price)
            return replace(ended, books="settle", spent=spent, usage=usage_counts(answer.usage)), spent
    except ValueError:
        pass  # counts that are none: as good as missing
    return replace(ended, books="keep", spent=choice.reserve), choice.reserve

"""Why an agent's last attempt did not complete, in lines below its failure: money, schema, errors, what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagrun.core.names import NodeId, Outcome
from dagrun.view.conversation import Call, Get, Step, rejections
from dagrun.view.text import PLAIN, Look, clean, folded, money

if TYPE_CHECKING:
    from dagrun.core.state import RunState


def failure_lines(state: RunState, i: int, steps: Sequence[Step], get: Get, look: Look = PLAIN) -> list[str]:
    """What is to be known of an agent whose last attempt did not complete: money, schema, errors, what was tried."""
    finish = state.attempts[i][-1].finish if state.attempts[i] else None
    if finish is None or (state.plan.nodes[i].agent is None and not steps):
        return []
    texts: list[str] = []
    if finish.outcome is Outcome.OVER_BUDGET:
        texts += _scopes(state, state.plan.ids[i])
    if finish.outcome is Outcome.INVALID_OUTPUT:
        for number, errors in rejections(steps, get).items():
            texts.append(f"the answer to call {number} did not fit its schema: {'; '.join(errors)}")
    cut = [s for s in steps if isinstance(s, Call) and s.answer is not None]
    if finish.outcome in (Outcome.TRUNCATED, Outcome.REFUSED) and cut:
        texts.append(f"{cut[-1].reserved.model} may answer with {cut[-1].reserved.max_tokens:,} tokens")
    tried = _tried(steps)
    if tried:
        texts.append(f"tried: {tried}")
    return [line for text in texts for line in folded("    ", clean(text).split(" "), look.width)]


def _scopes(state: RunState, node: NodeId) -> list[str]:
    """How each scope of a node's calls stands: what it spent, its cap, what it holds."""
    ledger = state.ledger
    if ledger is None:
        return []
    from dagrun.core.spending import scopes_of

    made = []
    for scope in scopes_of(state, node):
        kind, _, name = scope.partition(":")
        cap, held = ledger.cap(scope), ledger.held(scope)
        limit = f" of {money(cap)}" if cap is not None else ", without a cap"
        also = f", held {money(held)}" if held else ""
        made.append(f"{f'{kind} {name}'.strip()}: spent {money(ledger.spent(scope))}{limit}{also}")
    return made


def _tried(steps: Sequence[Step]) -> str:
    """The errors of calls by model, in their order: `a rate limit 2x, b overloaded`."""
    counts: dict[tuple[str, str], int] = {}
    for step in steps:
        if isinstance(step, Call) and step.answer is not None and step.answer.error:
            key = (step.reserved.model, step.answer.error.replace("_", " "))
            counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{model} {error}{f' {n}x' if n > 1 else ''}" for (model, error), n in counts.items())

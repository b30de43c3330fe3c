"""Which model a call goes to, when, and with how many tokens: a pure decision over what happened so far.

A tier is a list of candidates in order. What fails for a while makes room for the next one, what is too
dear for a cheaper one, and every such step has a reason that is recorded. No clock: waiting is counted
in what was waited for before, and jitter is a hash, so a replay decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias
from zlib import crc32

from dagrun.agent.messages import TRANSIENT, ErrorKind
from dagrun.agent.prices import CALL_RETRIES, CLASSES, CallRetry, Classes, Price, price_class
from dagrun.core.budget import MIN_TOKENS, shrink, worst_case
from dagrun.core.grants import common_models
from dagrun.core.lattice import dollars

ReasonCode: TypeAlias = (
    ErrorKind
    | Literal[
        "not_permitted",
        "unknown",  # no tier of that name, no `vendor/name`
        "tries_spent",
        "too_small",  # its window is not larger than one that was too small
        "waits_too_long",
        "limited",  # another call was told that it is rate limited
        "too_dear",
        "fewer_tokens",
        "max_output",
        "no_model",
    ]
)
JITTER = 0.1
# a provider that answers but breaks off is asked again, all others are left alone for a while
_SAME_AGAIN: frozenset[ErrorKind] = frozenset({"cut"})
_SAID: Mapping[ErrorKind, str] = {
    "rate_limit": "rate limited",
    "overloaded": "overloaded",
    "timeout": "no answer in time",
    "cut": "the answer broke off",
    "bad_request": "the request was refused",
    "context_too_long": "the prompt is too long for it",
    "auth": "no valid key",
    "unbounded": "it used more than was reserved",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a model was left, passed over or asked for less: a code for programs, a text for people."""

    model: str
    code: ReasonCode
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The models that a wish leads to, in order, and those that it would lead to were they permitted."""

    models: tuple[str, ...]
    left_out: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A call to be placed. `prompt_tokens` is the most that its prompt can have (budget.prompt_bound).

    `call` tells calls of a node apart, for the jitter.
    """

    prompt_tokens: int
    max_tokens: int
    run_id: str
    node: str
    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A try of this call that failed. `waited_s`: what had been waited before it, as its Choice said."""

    model: str
    kind: ErrorKind
    retry_after_s: float | None = None
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Wait `delay_s`, reserve `reserve` nano-dollars, ask `model` for `max_tokens`. `number` counts tries from 1."""

    model: str
    max_tokens: int
    reserve: int
    delay_s: float
    number: int
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OverBudget:
    """Nothing that may be asked fits what is left. `wanted`: the least that one of them needs."""

    wanted: int
    room: int
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """There is no model left to try. `kind` is that of the last failure, `no_model` where nothing was tried."""

    kind: ErrorKind | Literal["no_model"]
    reasons: tuple[Reason, ...] = ()


Decision: TypeAlias = Choice | OverBudget | GaveUp


# ---------------------------------------------------------------- who may be asked


def route(wish: str, tiers: Mapping[str, Sequence[str]], patterns: Iterable[str] | None = None) -> Route:
    """The candidates of a tier, or the one model that is wished for, as far as `permissions.models` lets.

    A pattern is a tier (all its models), a model, or `vendor/*`. None: everything is permitted.
    """
    models = tuple(dict.fromkeys(tiers[wish])) if wish in tiers else (wish,) if "/" in wish else ()
    if not models:
        return Route(models=(), left_out=(Reason(model=wish, code="unknown", text=f"there is no tier {wish}"),))
    allowed = None if patterns is None else tuple(patterns)
    kept = tuple(m for m in models if allowed is None or _permitted(m, tiers, allowed))
    left_out = [Reason(model=m, code="not_permitted", text="not among the models permitted") for m in models]
    return Route(models=kept, left_out=tuple(r for r in left_out if r.model not in kept))


def _permitted(model: str, tiers: Mapping[str, Sequence[str]], patterns: tuple[str, ...]) -> bool:
    return any(model in tiers.get(p, ()) or common_models(p, model) == model for p in patterns)


# ---------------------------------------------------------------- who is asked


class _Open(NamedTuple):
    """A candidate that may be tried: first by its wait, then by its place in the tier."""

    wait_s: float
    place: int
    price: Price


def choose(
    candidates: Sequence[Price],
    ask: Ask,
    room: int | None,
    failures: Sequence[Failure] = (),
    *,
    patience_s: float | None = None,
    alone: Mapping[str, float] = MappingProxyType({}),
    classes: Classes = CLASSES,
) -> Decision:
    """The next try of a call: which model, after how long, for how many tokens and how much money.

    `candidates` are the priced models of a route, in its order; `room` nano-dollars are left in all scopes
    (None: no cap); `failures` are the tries of this call so far. A model that would have to wait longer
    than `patience_s` is passed over; `alone` are seconds for which some are left alone because of what other
    calls were told. Both count from the last failure. Call again with the failure when it fails.
    """
    last = failures[-1] if failures else None
    if last and last.kind not in TRANSIENT and last.kind != "context_too_long":
        return GaveUp(kind=last.kind, reasons=(_said(last),))
    open_, reasons = _open(candidates, ask, failures, patience_s, alone, classes)
    if not open_:
        if last:
            return GaveUp(kind=last.kind, reasons=(_said(last), *reasons))
        if any(reason.code == "limited" for reason in reasons):
            return GaveUp(kind="rate_limit", reasons=tuple(reasons))
        return GaveUp(kind="no_model", reasons=(*reasons, Reason(model="", code="no_model", text="no model is left")))
    return _placed(open_, ask, room, last, len(failures) + 1, reasons)


def _open(
    candidates: Sequence[Price],
    ask: Ask,
    failures: Sequence[Failure],
    patience_s: float | None,
    alone: Mapping[str, float],
    classes: Classes,
) -> tuple[list[_Open], list[Reason]]:
    """The candidates that may be tried, best first, and why the others may not."""
    tried = len(failures)
    small = [f.model for f in failures if f.kind == "context_too_long"]
    window = max((p.context or 0 for p in candidates if p.model in small), default=0)
    found: list[_Open] = []
    reasons: list[Reason] = []
    for place, price in enumerate(candidates):
        policy = CALL_RETRIES[price_class(price, classes)]
        wait_s = _wait_s(price.model, ask, failures, policy)
        limited = alone.get(price.model, 0.0) > wait_s
        if limited:
            wait_s = alone[price.model]
        if tried >= policy.tries:
            reasons.append(_reason(price, "tries_spent", f"{tried} tries are spent, it gets {policy.tries}"))
        elif price.model in small or (price.context is not None and price.context <= window):
            reasons.append(_reason(price, "too_small", "its window is too small for the prompt"))
        elif patience_s is not None and wait_s > patience_s:
            reasons.append(_reason(price, "waits_too_long", f"wants {wait_s:.0f} s, {patience_s:.0f} s are left"))
        elif wait_s == math.inf:
            reasons.append(_reason(price, "waits_too_long", "wants to be left alone for ever"))
        else:
            found.append(_Open(wait_s, place, price))
        if limited:
            reasons.append(_reason(price, "limited", "rate limited, as another call was told"))
    if failures and failures[-1].kind in _SAME_AGAIN:
        return sorted(found, key=lambda o: (o.price.model != failures[-1].model, o[:2])), reasons
    return sorted(found, key=lambda o: o[:2]), reasons


def _placed(
    open_: Sequence[_Open], ask: Ask, room: int | None, last: Failure | None, number: int, reasons: list[Reason]
) -> Decision:
    """The first candidate that the money is enough for; else the one that it buys the longest answer of."""
    best: tuple[int, _Open] | None = None
    dear: list[tuple[Price, int]] = []
    for one in open_:
        most = _most(ask, one.price)
        rates = one.price.worst(ask.prompt_tokens)
        tokens = shrink(most, room, ask.prompt_tokens, rates)
        if tokens == most:
            return _choice(one, ask, most, last, number, [*reasons, *_dear(dear, room, " → cheaper")])
        dear.append((one.price, worst_case(ask.prompt_tokens, most, rates)))
        if tokens is not None and (best is None or tokens > best[0]):
            best = tokens, one
    reasons = [*reasons, *_dear(dear, room, "")]
    if best is not None:
        return _choice(best[1], ask, best[0], last, number, reasons)
    least = min(_bound(one.price, ask, min(MIN_TOKENS, _most(ask, one.price))) for one in open_)
    return OverBudget(wanted=least, room=room or 0, reasons=(*([_said(last)] if last else []), *reasons))


def _choice(one: _Open, ask: Ask, tokens: int, last: Failure | None, number: int, reasons: list[Reason]) -> Choice:
    price, said = one.price, list(reasons)
    if last is not None:
        then = f"again in {one.wait_s:.1f}s" if price.model == last.model else "next"
        said.insert(0, Reason(model=last.model, code=last.kind, text=f"{_SAID[last.kind]} → {then}"))
    if tokens == price.max_output and tokens < ask.max_tokens:
        said.append(_reason(price, "max_output", f"{ask.max_tokens} → {tokens} tokens: it writes no more"))
    elif tokens < ask.max_tokens:
        said.append(_reason(price, "fewer_tokens", f"{ask.max_tokens} → {tokens} tokens: what is left buys no more"))
    return Choice(
        model=price.model,
        max_tokens=tokens,
        reserve=_bound(price, ask, tokens),
        delay_s=one.wait_s,
        number=number,
        reasons=tuple(said),
    )


def _most(ask: Ask, price: Price) -> int:
    """The most tokens that may be asked of a model."""
    return min(ask.max_tokens, price.max_output or ask.max_tokens)


def _bound(price: Price, ask: Ask, tokens: int) -> int:
    return worst_case(ask.prompt_tokens, tokens, price.worst(ask.prompt_tokens))


def _dear(prices: Iterable[tuple[Price, int]], room: int | None, then: str) -> list[Reason]:
    return [
        _reason(price, "too_dear", f"too dear for what is left: {dollars(need)} of {dollars(room or 0)}{then}")
        for price, need in prices
    ]


def _said(failure: Failure) -> Reason:
    return Reason(model=failure.model, code=failure.kind, text=_SAID[failure.kind])


def _reason(price: Price, code: ReasonCode, text: str) -> Reason:
    return Reason(model=price.model, code=code, text=text)


# ---------------------------------------------------------------- how long it is left alone


def _wait_s(model: str, ask: Ask, failures: Sequence[Failure], policy: CallRetry) -> float:
    """Seconds until a model may be tried again: its backoff, or what it asked for if that is more.

    Time is what was waited for before the tries since: how long they took is not counted, so it is
    never too short.
    """
    mine = [i for i, failure in enumerate(failures) if failure.model == model]
    if not mine:
        return 0.0
    since = sum(_seconds(failure.waited_s) for failure in failures[mine[-1] + 1 :])
    growth = 2.0 ** min(len(mine) - 1, 64)  # far beyond every ceiling, and no overflow
    unit = crc32(f"{ask.run_id}/{ask.node}/{ask.call}/{mine[-1] + 1}".encode()) / 0xFFFFFFFF
    backoff = min(policy.delay_s * growth, policy.max_delay_s) * (1 - JITTER * unit)
    return max(0.0, max(backoff, _seconds(failures[mine[-1]].retry_after_s)) - since)


def _seconds(said: float | None) -> float:
    """A duration that somebody else wrote: nothing instead of what is none."""
    return said if said is not None and said > 0 else 0.0  # NaN is not above 0

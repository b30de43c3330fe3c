"""What one call was told about coming back holds for all others."""

from __future__ import annotations

import pytest

from dagrun.agent.messages import CallFailed, ErrorKind
from dagrun.agent.prices import Price, Tier
from dagrun.agent.ratelimits import SPREAD, RateLimits

M = 10**6


def price(model: str, usd_out: int) -> Price:
    rates = (Tier(0, M, usd_out * M, M, M, usd_out * M),)
    return Price(model=model, source="workflow", tiers=rates)


ONE, OTHER, DEAR = price("v/one", 1), price("v/other", 1), price("v/dear", 100)


def said(after_s: float | None, kind: ErrorKind = "rate_limit") -> CallFailed:
    return CallFailed(kind=kind, message="", retry_after_s=after_s)


def left(limits: RateLimits, now_m: float, model: str = "v/one", caller: str = "b/1", salt: str = "") -> float:
    return limits.left_s(model, caller, salt, now_m)


def test_all_but_the_one_that_was_told_leave_that_model_alone_until_it_is_over() -> None:
    limits = RateLimits()
    limits.failed(ONE, said(10.0), "a/1", 100.0, 101.0)
    assert left(limits, 101.0, caller="a/1") == 0
    assert left(limits, 101.0, "v/other") == 0
    assert 10 <= left(limits, 101.0) <= 10 * (1 + SPREAD)
    assert 2 <= left(limits, 109.0) <= 2 * (1 + SPREAD)
    assert left(limits, 111.0) == 0
    assert len({left(limits, 101.0, salt=str(k)) for k in range(20)}) == 20


def test_a_shorter_word_does_not_shorten_a_longer_one() -> None:
    limits = RateLimits()
    limits.failed(ONE, said(10.0), "a/1", 100.0, 101.0)
    limits.failed(ONE, said(1.0), "c/1", 100.5, 102.0)
    assert left(limits, 102.0) >= 9
    limits.failed(ONE, said(30.0), "c/1", 100.5, 103.0)
    assert left(limits, 103.0, caller="a/1") >= 30
    assert left(limits, 103.0, caller="c/1") == 0


@pytest.mark.parametrize(("model", "first"), [(ONE, 1.0), (DEAR, 2.0)])
def test_without_a_word_it_grows_with_each_that_is_said_in_a_row(model: Price, first: float) -> None:
    limits = RateLimits()
    now = 100.0
    for power in range(4):
        for caller in "acd":  # under way together: that is one
            limits.failed(model, said(None), f"{caller}/1", now, now + 0.1)
        hold = left(limits, now + 0.1, model.model)
        assert first * 2**power <= hold <= first * 2**power * (1 + SPREAD)
        now += 1000
    limits.replied(model.model, now)
    limits.failed(model, said(None), "a/1", now + 1, now + 1.1)
    assert left(limits, now + 1.1, model.model) <= first * (1 + SPREAD)


def test_an_answer_to_a_call_that_left_before_says_nothing() -> None:
    limits = RateLimits()
    limits.failed(ONE, said(10.0), "a/1", 100.0, 101.0)
    limits.replied("v/one", 100.9)
    assert left(limits, 102.0) > 0
    limits.replied("v/one", 101.5)
    assert left(limits, 102.0) == 0


@pytest.mark.parametrize(
    ("failed", "held"),
    [
        (said(10.0, "overloaded"), True),
        (said(None, "overloaded"), False),
        (said(10.0, "bad_request"), False),
        (said(10.0, "timeout"), False),
        (said(None, "cut"), False),
        (said(0.0), False),
        (said(1e308), True),
    ],
)
def test_who_asks_for_time_gets_it(failed: CallFailed, held: bool) -> None:
    limits = RateLimits()
    limits.failed(ONE, failed, "a/1", 100.0, 101.0)
    assert (left(limits, 101.0) > 0) is held

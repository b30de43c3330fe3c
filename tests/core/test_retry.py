"""When a node is tried again, and after how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.names import Outcome
from dagrun.core.retry import NEVER_RETRIED, retry_delay_s
from dagrun.core.workflow import NO_RETRY, Retry

EXACT = Retry(max_attempts=5, delay_s=1.0, backoff=2.0, max_delay_s=6.0, jitter=0.0)


def delay(retry: Retry, tries: int, outcome: Outcome = Outcome.FAILED, attempt: int = 1) -> float | None:
    return retry_delay_s(retry, outcome, tries, "r7k2", "a", attempt)


def test_the_first_try_counts_and_delays_grow_up_to_their_ceiling() -> None:
    assert [delay(EXACT, tries) for tries in range(1, 7)] == [1.0, 2.0, 4.0, 6.0, None, None]


def test_without_retry_a_node_runs_once() -> None:
    assert delay(NO_RETRY, 1) is None


@pytest.mark.parametrize("outcome", sorted(NEVER_RETRIED))
def test_some_outcomes_are_never_tried_again_even_when_listed(outcome: Outcome) -> None:
    assert delay(Retry(outcomes=frozenset(Outcome)), 1, outcome) is None


def test_only_listed_outcomes_are_tried_again() -> None:
    retry = Retry(outcomes=frozenset({Outcome.TIMED_OUT}))
    assert delay(retry, 1, Outcome.FAILED) is None
    assert delay(retry, 1, Outcome.TIMED_OUT) is not None


def test_the_jitter_is_the_same_in_a_replay_and_differs_between_attempts() -> None:
    retry = Retry(max_attempts=9, delay_s=10.0, backoff=1.0, jitter=0.5)
    first = [delay(retry, 1, attempt=n) for n in range(1, 9)]
    assert first == [delay(retry, 1, attempt=n) for n in range(1, 9)]
    assert len(set(first)) == len(first)


@given(
    st.builds(
        Retry,
        max_attempts=st.integers(1, 10**6),
        delay_s=st.floats(0, 1e6),
        backoff=st.floats(1, 1e300),
        max_delay_s=st.floats(0, 1e6),
        jitter=st.floats(0, 1),
    ),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
)
def test_a_delay_is_never_negative_nor_beyond_its_ceiling_and_jitter(retry: Retry, tries: int, attempt: int) -> None:
    got = delay(retry, tries, attempt=attempt)
    assert (got is None) == (tries >= retry.max_attempts)
    if got is not None:
        assert 0 <= got <= min(retry.max_delay_s, max(retry.delay_s, retry.max_delay_s)) * (1 + retry.jitter) + 1e-9

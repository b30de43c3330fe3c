"""What is due comes in order, once, and what attempts have left behind does not pile up."""

from __future__ import annotations

from time import monotonic

from hypothesis import given
from hypothesis import strategies as st

from dagrun.engine.timers import FEW, Timers

FAR = 1e9


def everything(timers: Timers, at: float = float("inf")) -> list[int]:
    return [node for _, node, _ in timers.due(at)]


@given(st.lists(st.integers(0, 50)))
def test_earlier_first_and_in_the_order_added(delays: list[int]) -> None:
    timers = Timers(lambda node, number: True)
    for i, delay in enumerate(delays):
        timers.add(float(delay * 100), "timeout", i, 1)
    assert everything(timers) == sorted(range(len(delays)), key=delays.__getitem__)
    assert timers.next() is None


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(0.0, 1e6))
def test_a_shift_moves_all_and_keeps_their_order(delays: list[int], gap: float) -> None:
    timers = Timers(lambda node, number: True)
    for i, delay in enumerate(delays):
        timers.add(float(delay * 100), "timeout", i, 1)
    first = timers.next()
    assert first is not None
    timers.shift(gap)
    assert timers.next() == first + gap
    assert everything(timers) == sorted(range(len(delays)), key=delays.__getitem__)


def test_only_what_is_due_is_taken_out_and_what_it_adds_counts_too() -> None:
    timers = Timers(lambda node, number: True)
    timers.add(0.0, "spawn", 1)
    timers.add(FAR, "size", 2)
    seen = []
    for _, node, _ in timers.due(monotonic() + 1.0):
        seen.append(node)
        if node == 1:
            timers.add(0.0, "spawn", 3)
    assert seen == [1, 3]
    assert timers.next() is not None


def test_timers_of_attempts_that_are_over_are_forgotten_and_no_others() -> None:
    asked = 0

    def is_open(node: int, number: int) -> bool:
        nonlocal asked
        asked += 1
        return node % 1000 == 0

    timers = Timers(is_open)
    timers.add(FAR, "run_timeout", -1)
    timers.add(FAR, "review", 7)
    for i in range(20_000):
        timers.add(FAR, "timeout", i, 1)
    assert asked < 4 * 20_000, "each is looked at a few times, not once a timer"
    left = everything(timers)
    assert len(left) < 2 * FEW
    assert left[:2] == [-1, 7]
    assert set(range(0, 20_000, 1000)) <= set(left)


def test_timers_of_attempts_at_work_are_never_forgotten() -> None:
    timers = Timers(lambda node, number: True)
    for i in range(5 * FEW):
        timers.add(FAR, "timeout", i, 1)
    assert everything(timers) == list(range(5 * FEW))

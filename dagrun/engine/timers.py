"""What is due when: one heap for every deadline of an engine.

Knows moments of time.monotonic() and an attempt as (node, number), nothing of what being due means:
that is for who takes it out. Invariants: earlier comes first, and what is due at one moment comes in
the order in which it was added; a timer is never cancelled, so whoever takes one out looks whether
it still matters; those of attempts that are over go in bulk, so that n attempts cost O(n log n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from time import monotonic
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["timeout", "kill", "run_timeout", "drained", "spawn", "size", "review", "agent", "sync"]

FEW = 1024  # so many need no look at which of them are stale


class Timers:
    """Deadlines by time. `is_open(node, number)` says whether an attempt has not ended yet."""

    __slots__ = ("_count", "_heap", "_is_open", "_most")

    def __init__(self, is_open: Callable[[int, int], bool]) -> None:
        self._is_open = is_open
        self._heap: list[tuple[float, int, Kind, int, int]] = []
        self._count = 0
        self._most = FEW

    def add(self, delay_s: float, kind: Kind, node: int = -1, number: int = 0) -> None:
        """Make something due in `delay_s`; with a `number` (from 1) it is forgotten after that attempt."""
        if len(self._heap) >= self._most:
            self._drop_stale()
        self._count += 1
        heappush(self._heap, (monotonic() + delay_s, self._count, kind, node, number))

    def due(self, now: float) -> Iterator[tuple[Kind, int, int]]:
        """Take out what is due, one (kind, node, number) at a time; what is added meanwhile counts too."""
        while self._heap and self._heap[0][0] <= now:
            _, _, kind, node, number = heappop(self._heap)
            yield kind, node, number

    def next(self) -> float | None:
        """When the first timer is due."""
        return self._heap[0][0] if self._heap else None

    def shift(self, gap_s: float) -> None:
        """Make everything due later by `gap_s`; the order stays."""
        self._heap = [(at + gap_s, count, kind, node, number) for at, count, kind, node, number in self._heap]

    def _drop_stale(self) -> None:
        """Forget what attempts that are over have left; as often as the heap doubles."""
        self._heap = [t for t in self._heap if not t[4] or self._is_open(t[3], t[4])]
        heapify(self._heap)
        self._most = FEW + 2 * len(self._heap)

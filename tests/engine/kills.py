"""Where to kill an engine, so that every state that a kill can leave is left once, and not every way there is walked.

What a kill leaves behind is a journal in which a record is absent, torn or whole. `journal.before_write`,
`journal.mid_write` and `engine.after_event` leave these three of every record. Other points leave the same
as one of them: those are struck at their first passes, and then at each third.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence, Sized

from dagrun.store.fault import POINTS

_THIRDS = {"journal.before_lock": 0, "engine.before_commit": 1, "journal.after_write": 2}
# The points for `passes`; every record is struck at `engine.after_event` by who goes from record to record.
WALKED = [point for point in POINTS if point != "engine.after_event"]


def passes(point: str, done: Collection[int] = ()) -> Iterator[int]:
    """The passes of a point at which to kill, but those that are `done` elsewhere; ends far behind any run's end."""
    for n in range(1, 1000):
        if n not in done and _THIRDS.get(point, n % 3) == n % 3:
            yield n


def next_event(n: int, records: Sequence[Sized]) -> int:
    """After a kill at the n-th event, which left these records: the first event that is in none of them.

    The events of one record are followed by nothing but one another: a kill after each leaves the same.
    """
    return max(n, sum(len(record) for record in records[1:])) + 1

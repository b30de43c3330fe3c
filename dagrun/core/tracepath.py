"""The path that took the time: the chain of nodes that determined how long a run took.

Times are those of the journal on one clock: the monotonic one, or the wall's where a run had more than
one engine.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from dagrun.core.names import NodeId, Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagrun.core.state import RunState

Held: TypeAlias = Literal["start", "need", "wave", "slot"]


class PathStep(NamedTuple):
    """A node of the chain that took the time, in seconds since the run began.

    `held_by` says what let it start: the end of a `need`, of the `wave` before it, of a node that
    had its `slot` or resource, or the `start` of the run.
    """

    node: int
    node_id: NodeId
    start_s: float
    end_s: float
    held_by: Held


_JUST_S = 0.01  # a need that ended this shortly before the latest end is what was waited for


def run_critical_path(state: RunState) -> list[PathStep]:
    """The chain of nodes that determined how long the run took so far, first to last.

    Walks back from the node that ended last to what let it start: of all that had ended by then,
    the last. O(n log n) in the nodes that ran.
    """
    begin, spans = node_spans(state)
    wave = state.plan.wave  # of those that took no time at all the need comes first
    order = sorted(spans, key=lambda i: (spans[i][1], spans[i][0], wave[i]))
    if not order:
        return []
    ends = [spans[i][1] for i in order]
    position = {i: k for k, i in enumerate(order)}
    path: list[PathStep] = []
    k = len(order) - 1
    while k >= 0:
        i = order[k]
        start, end = spans[i]
        latest = min(bisect_right(ends, start), k) - 1
        before, held = _held_by(state, i, latest, order, ends, position)
        path.append(PathStep(i, state.plan.ids[i], start - begin, end - begin, held))
        k = before
    path.reverse()
    return path


def _held_by(
    state: RunState, i: int, latest: int, order: list[int], ends: list[float], position: Mapping[int, int]
) -> tuple[int, Held]:
    """(position of what `i` waited for or -1, how)."""
    need = max([position[d] for d in state.plan.needs[i] if d in position], default=-1)
    if need >= 0 and (latest < 0 or ends[need] >= ends[latest] - _JUST_S):
        # a need can only look later than a start where clocks moved: the chain must still end
        return (need, "need") if need < position[i] else (-1, "start")
    if latest < 0:
        return -1, "start"
    wave = state.plan.wave
    if state.schedule is Schedule.WAVES and wave[order[latest]] < wave[i]:
        return latest, "wave"
    return latest, "slot"


def node_spans(state: RunState, wall_now: float | None = None) -> tuple[float, dict[int, tuple[float, float]]]:
    """(time the run began, first start and last end of each node that ran), all on one clock in seconds.

    The clock is the monotonic one for a run of one engine, else the wall's: another boot's
    monotonic times mean nothing.
    """
    one = state.engines <= 1
    now = state.now_m if one else state.now
    if wall_now is not None and state.ended is None:
        now += max(0.0, wall_now - state.now)
    spans: dict[int, tuple[float, float]] = {}
    for i, tried in enumerate(state.attempts):
        if tried:
            first, last = tried[0], tried[-1]
            start = first.started_m if one else first.started_at
            end = last.started_m if one else last.started_at
            spans[i] = (start, end + last.finish.duration_ms / 1000 if last.finish else max(now, end))
    begin = (state.attached_m if state.engines else state.now_m) if one else state.created_at
    return begin, spans

"""One picture of a running run: pure, and only as long as the screen.

`take` reads the state (on the engine's thread, O(rows shown), never O(nodes)); draw.py turns what
was taken into lines (on any thread). Rows come in the order in which a person needs them:
failed, waiting for a review, retrying, running, next ready, last finished; the rest is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from dagrun.core.names import Outcome, RunStatus, Status
from dagrun.core.state import RunState, wave_of
from dagrun.core.trace import cause, node_reason
from dagrun.core.usage import NOTHING, Money, money_of, usage_of
from dagrun.view.text import clock, money, tokens

_READY_ROWS = 3
_TAIL = 1024


class Row(NamedTuple):
    """One node on the screen. `output` is raw; `text` wins over it, `else_` is for where there is none.

    `speaks`: its output is what a model says, which grows at its end.
    """

    status: Status
    node: str
    wave: int
    attempt: str
    time: str
    text: str = ""
    output: bytes = b""
    tokens: str = ""
    cost: str = ""
    else_: str = ""
    speaks: bool = False


@dataclass(slots=True, frozen=True, kw_only=True)
class Picture:
    """All that one frame shows."""

    workflow: str
    run_id: str
    status: RunStatus
    elapsed_s: float
    parallel: int
    done: int
    total: int
    revision: int
    counts: Mapping[Status, int]
    rows: tuple[Row, ...]
    note: str = ""
    changed: bool = False  # a row is marked: its node is new or other than in the revision before
    money: Money = NOTHING
    agents: bool = False
    failing: bool = False


# ---------------------------------------------------------------- state → picture


def take(
    state: RunState,
    now_m: float,
    elapsed_s: float,
    room: int,
    failed: dict[int, None],
    tail: Callable[[int], bytes],
    *,
    agents: bool = False,
) -> Picture:
    """What to show of a state in `room` lines. `failed` are the nodes that failed, in order.

    `agents` says that there are some, so that tokens and money are worth their place.
    """
    rows = list(_rows(state, now_m, room, failed, tail))
    last = state.revisions[-1] if state.revisions else None
    fresh = {*last.nodes, *last.reset} if last is not None else set()
    return Picture(
        workflow=state.created.workflow,
        run_id=state.created.run_id,
        status=state.status,
        elapsed_s=elapsed_s,
        parallel=state.engine.parallel if state.engine else 0,
        done=state.settled - len(state.removed),
        total=len(state.plan.ids) - len(state.removed),
        revision=state.plan.revision,
        counts=dict(state.counts),
        rows=tuple([r._replace(node=f"{r.node}*") if r.node in fresh else r for r in rows]) if fresh else tuple(rows),
        changed=any(r.node in fresh for r in rows),
        note=_note(state),
        money=money_of(state),
        agents=agents,
        failing=state.failures > 0,
    )


def _note(state: RunState) -> str:
    stop = state.stop
    if stop is None or not state.running:
        return ""
    ways = {"drain": "no new starts, finishing", "now": "ending"}
    note = f"{stop.cause}: {ways[stop.mode]} {len(state.running)}"
    return note + ("; ^C again ends them" if stop.mode == "drain" else "")


def share(room: int, wants: Iterable[tuple[int, int]]) -> list[int]:
    """Split `room` lines: to each (available, first share) its first share, then what is left, in order."""
    asked = list(wants)
    given = []
    for available, first in asked:
        given.append(min(available, first, room))
        room -= given[-1]
    for k, (available, _) in enumerate(asked):
        more = min(available - given[k], room)
        given[k] += more
        room -= more
    return given


def _rows(
    state: RunState, now_m: float, room: int, failed: dict[int, None], tail: Callable[[int], bytes]
) -> Iterable[Row]:
    if room <= 0:
        return
    counts = state.counts
    ready, coming = _next_ready(state), _changed_ahead(state, room)
    third = max(1, room // 3)
    over = len(state.finished) if len(state.finished) < room else room
    shown = share(
        room,
        [
            (len(failed), third),
            (len(state.reviews), third),
            (counts[Status.RETRYING], max(1, third // 2)),
            (len(state.running), room),
            (len(ready), _READY_ROWS),
            (len(coming), _READY_ROWS),
            (over, 0),
        ],
    )
    for i in islice(reversed(failed), shown[0]):  # the newest first: most likely not seen yet
        yield _over_row(state, i, Status.FAILED)
    for i in islice(state.reviews, shown[1]):
        text = f"dagrun review {state.created.run_id} {state.plan.ids[i]}  {state.reviews[i].message}"
        time = clock(now_m - state.attempts[i][-1].started_m)
        row = Row(Status.AWAITING_REVIEW, state.plan.ids[i], wave_of(state, i), _tries(state, i), time, text)
        yield _priced(state, i, row)
    yield from _retrying(state, now_m, shown[2])
    for i in islice(state.running, shown[3]):
        yield _running_row(state, i, now_m, tail(i))
    for i in ready[: shown[4]]:
        yield Row(Status.READY, state.plan.ids[i], state.plan.wave[i], "", "")
    for i in coming[: shown[5]]:
        yield Row(Status.PENDING, state.plan.ids[i], state.plan.wave[i], "", "")
    yield from _finished(state, shown[6])


def _changed_ahead(state: RunState, room: int) -> list[int]:
    """Nodes that the last patch brought or changed and that are still to come: others are only counted."""
    if not state.revisions or state.ended is not None:
        return []
    last = state.revisions[-1]
    index, statuses = state.plan.index, state.node_status
    found = (index[name] for name in dict.fromkeys((*last.nodes, *last.reset)) if name in index)
    return list(islice((i for i in found if statuses[i] is Status.PENDING and i not in state.removed), room))


def _next_ready(state: RunState) -> list[int]:
    """The nodes that go next: the heaps' first entries, never a walk over all that is ready."""
    if state.stop is not None:
        return []
    best = sorted([entry for heap in islice(state.ready.values(), 8) for entry in heap[:7]])
    found = [i for _, i in best if state.node_status[i] is Status.READY]
    return list(dict.fromkeys(found))[:_READY_ROWS]


def _retrying(state: RunState, now_m: float, count: int) -> Iterable[Row]:
    escalating = list(islice(state.escalating, count))
    for i in escalating:
        if state.node_status[i] is Status.RETRYING:
            row = Row(Status.RETRYING, state.plan.ids[i], state.plan.wave[i], _tries(state, i), "", _why(state, i))
            yield _priced(state, i, row)
            count -= 1
    soonest = sorted(state.waking[: 4 * count + 1])
    waiting = [(due, i) for due, i in soonest if state.node_status[i] is Status.RETRYING]
    for due, i in waiting[:count]:
        wait_s = due - now_m + 0.999
        due_in = f"in {clock(wait_s)}" if wait_s < 600 else f"in {wait_s // 60:.0f}m"
        tries = _tries(state, i, more=1)
        row = Row(Status.RETRYING, state.plan.ids[i], state.plan.wave[i], tries, due_in, _why(state, i))
        yield _priced(state, i, row)


def _running_row(state: RunState, i: int, now_m: float, output: bytes) -> Row:
    time = clock(now_m - state.running[i].started_m)
    tally = state.running[i].tally
    asks = f"asks {tally.asked}" if tally is not None and tally.asked else ""
    row = Row(Status.RUNNING, state.plan.ids[i], wave_of(state, i), _tries(state, i), time, "", output[-_TAIL:])
    return _priced(state, i, row)._replace(else_=asks, speaks=bool(asks))


def _priced(state: RunState, i: int, row: Row) -> Row:
    """A row with what the agent of its node used so far, in all its attempts."""
    used = usage_of(state.plan.nodes[i], state.attempts[i])
    if used is None:
        return row
    spent = money(used.spent) if used.spent else ""
    return row._replace(tokens=tokens(used.tokens) if used.tokens else "", cost=spent)


def _over_row(state: RunState, i: int, status: Status) -> Row:
    finish = state.attempts[i][-1].finish if state.attempts[i] else None
    time = took(finish.duration_ms / 1000) if finish else ""
    return _priced(state, i, Row(status, state.plan.ids[i], wave_of(state, i), _tries(state, i), time, _why(state, i)))


def took(seconds: float) -> str:
    """How long something took that is over: `4.2s`, then as a clock."""
    return f"{seconds:.1f}s" if seconds < 9.95 else clock(seconds)


def _why(state: RunState, i: int) -> str:
    """What the last attempt of a node said, after why it did not complete."""
    finish = state.attempts[i][-1].finish if state.attempts[i] else None
    if finish is None:
        return node_reason(state, i)
    if finish.outcome is Outcome.COMPLETED:
        return finish.summary
    why = cause(finish, state.plan.nodes[i])
    return f"{why}: {finish.summary}" if finish.summary and finish.summary not in why else why


def _finished(state: RunState, count: int) -> Iterable[Row]:
    """The last nodes that ended, newest first; failed ones have their own rows."""
    for i in dict.fromkeys(islice(reversed(state.finished), count)):
        if state.node_status[i] is Status.COMPLETED and i not in state.removed:
            yield _over_row(state, i, Status.COMPLETED)


def _tries(state: RunState, i: int, more: int = 0) -> str:
    tried = len(state.attempts[i]) + more
    free = state.tries_base.get(i, 0) + state.lost.get(i, 0)
    return f"{tried}/{max(tried, free + state.plan.nodes[i].retry.max_attempts)}"

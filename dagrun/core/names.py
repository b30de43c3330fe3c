"""The words of dagrun: ids, statuses, outcomes, units. One word per thing everywhere.

The glossary is in docs/glossary.md; the words come from the seeds (dag-runtime,
dag-dynamic-replanner).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TypeAlias

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
NodeId: TypeAlias = str
RunId: TypeAlias = str

ID_PATTERN = r"[A-Za-z_][A-Za-z0-9_-]*"
ID_MAX = 128
_ID = re.compile(ID_PATTERN)

DEFAULT_TIMEOUT_S = 300.0  # [dag-runtime]: every node has a timeout
DEFAULT_GRACE_S = 5.0
LOST_BUDGET = 2  # attempts that may be lost to a crash before the node fails


class Status(StrEnum):
    """Where a node stands. The last five are settled."""

    PENDING = "pending"  # some need is not settled yet, or its wave has not come
    READY = "ready"  # may start as soon as a slot is free
    RUNNING = "running"
    RETRYING = "retrying"  # waits for the delay before its next attempt
    AWAITING_REVIEW = "awaiting_review"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"  # a fallback took its place


SETTLED = frozenset({Status.COMPLETED, Status.FAILED, Status.SKIPPED, Status.CANCELLED, Status.SUPERSEDED})


class Outcome(StrEnum):
    """How one attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    DENIED = "denied"
    OVER_BUDGET = "over_budget"
    OVER_LIMIT = "over_limit"
    INVALID_OUTPUT = "invalid_output"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    REJECTED = "rejected"
    REVIEW_TIMED_OUT = "review_timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"


class RunStatus(StrEnum):
    """Where a run stands. `crashed` is never journaled: it is an unended run whose lock is free."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    NEEDS_REVIEW = "needs_review"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    OVER_BUDGET = "over_budget"
    CRASHED = "crashed"


class Schedule(StrEnum):
    """`waves` waits for a whole wave before the next; `ready` starts a node once its needs are met."""

    WAVES = "waves"
    READY = "ready"


def is_id(text: str) -> bool:
    """Whether `text` may name a node, param, input or output: no dots, slashes, spaces."""
    return len(text) <= ID_MAX and _ID.fullmatch(text) is not None


# at most 12 digits: an absurd number is no duration, and never overflows a float
_DURATION = re.compile(
    r"(?:(\d{1,12})d)?(?:(\d{1,12})h)?(?:(\d{1,12})m)?(?:(\d{1,12}(?:\.\d{1,12})?)s)?(?:(\d{1,12})ms)?", re.ASCII
)
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds in `500ms`, `30s`, `5m`, `1h30m`, `2d` or a bare number of seconds.

    Raises ValueError for anything else, with the accepted forms in its text.
    """
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text) if text else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write 500ms, 30s, 5m, 1h30m or a number of seconds")
    days, hours, minutes, seconds, millis = match.groups()
    return (
        int(days or 0) * 86400.0
        + int(hours or 0) * 3600
        + int(minutes or 0) * 60
        + float(seconds or 0)
        + int(millis or 0) / 1000
    )


def format_duration(seconds: float) -> str:
    """A duration for people: `0.4s`, `12s`, `1m05s`, `2h03m`; never negative."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"

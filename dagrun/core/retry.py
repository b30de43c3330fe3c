"""When a node is tried again: a pure policy over its journaled attempts."""

from __future__ import annotations

from zlib import crc32

from dagrun.core.names import NodeId, Outcome, RunId
from dagrun.core.workflow import Retry

NEVER_RETRIED = frozenset({Outcome.DENIED, Outcome.OVER_BUDGET, Outcome.CANCELLED, Outcome.COMPLETED})


def retry_delay_s(
    retry: Retry, outcome: Outcome, tries: int, run_id: RunId, node: NodeId, attempt: int
) -> float | None:
    """Seconds to wait before the next attempt, or None when there is none.

    `tries` are the attempts that count against `max_attempts` so far, this one included; `attempt`
    is the number of this one in the run. The jitter is a hash, so a replay waits the same.
    """
    if outcome in NEVER_RETRIED or outcome not in retry.outcomes or tries >= retry.max_attempts:
        return None
    # a float power overflows long before a user's max_attempts does
    growth = min(retry.backoff, 1e4) ** min(tries - 1, 64)
    delay = min(retry.delay_s * growth, retry.max_delay_s)
    unit = crc32(f"{run_id}/{node}/{attempt}".encode()) / 0xFFFFFFFF
    return delay * (1 + retry.jitter * (2 * unit - 1))

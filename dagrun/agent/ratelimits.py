"""What providers said about coming back, kept for all calls of a run: one that was told to wait speaks for all.

A model that answers with a rate limit, or asks for time, is left alone by every agent until that is over: they
share a key. Knows no clock: moments are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from dagrun.agent.messages import CallFailed
from dagrun.agent.prices import CALL_RETRIES, CLASSES, Classes, Price, price_class

SPREAD = 0.1  # of a wait, so that not all come back in the same instant
MAX_DOUBLINGS = 16


@dataclass(slots=True)
class _Limit:
    """`since_m`: when it was last said; `until_m`: when it is over; `times`: how often it was said in a row."""

    since_m: float
    until_m: float
    times: int
    caller: str


class RateLimits:
    """The limits of a run's models. Moments are seconds of one monotonic clock."""

    def __init__(self, classes: Classes = CLASSES) -> None:
        self._classes = classes
        self._limits: dict[str, _Limit] = {}

    def failed(self, price: Price, failed: CallFailed, caller: str, sent_m: float, now_m: float) -> None:
        """Learn from the error of a call that left at `sent_m`; only one that asks for time says anything."""
        said_s = failed.retry_after_s
        if failed.kind != "rate_limit" and not (failed.kind == "overloaded" and said_s):
            return
        known = self._limits.get(price.model)
        times = 1
        if known is not None:  # calls that were under way together say it once
            times = known.times + 1 if sent_m >= known.since_m else known.times
        policy = CALL_RETRIES[price_class(price, self._classes)]
        if said_s is None:
            said_s = min(policy.delay_s * 2.0 ** min(times - 1, MAX_DOUBLINGS), policy.max_delay_s)
        until_m = now_m + said_s
        if known is None or until_m > known.until_m:
            self._limits[price.model] = _Limit(now_m, until_m, times, caller)

    def replied(self, model: str, sent_m: float) -> None:
        """A call that left at `sent_m` was answered: what was said before then is over."""
        known = self._limits.get(model)
        if known is not None and sent_m >= known.since_m:
            del self._limits[model]

    def left_s(self, model: str, caller: str, salt: str, now_m: float) -> float:
        """Seconds for which a caller leaves a model alone; 0 for the one that was told itself: it knows what to do."""
        known = self._limits.get(model)
        if known is None or known.caller == caller or known.until_m <= now_m:
            return 0.0
        return (known.until_m - now_m) * (1 + SPREAD * crc32(salt.encode()) / 0xFFFFFFFF)

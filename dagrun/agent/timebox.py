"""A limit for work that nobody can bound beforehand: a schema with its patterns, held to what a stranger wrote.

Knows nothing of what is done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class OutOfTime(Exception):
    """The work took more than it may."""


class _Alarm(BaseException):
    """Comes up in the middle of the work: nothing on the way may swallow it."""


def within(cpu_s: float, work: Callable[[], T]) -> T:
    """What `work` gives. Raises OutOfTime when it uses more than `cpu_s` seconds of the processor.

    Only the main thread can be stopped like this: in another one there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    armed = [True]

    def alarm(number: int, frame: object) -> None:
        if armed:
            raise _Alarm

    before = signal.signal(signal.SIGVTALRM, alarm)
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
            return work()
        finally:
            armed.clear()  # an alarm that is on its way now comes too late
    except _Alarm:
        raise OutOfTime(f"it took more than {cpu_s:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)

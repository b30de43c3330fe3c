"""What a test of descriptors needs: the open ones, and a stretch in which none may come or go."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


def descriptors() -> Counter[str]:
    """What the open descriptors of this process lead to, and how many lead there."""
    found = Counter[str]()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
        except FileNotFoundError:
            pass  # the listing's own
    return found


@contextmanager
def descriptors_kept() -> Iterator[None]:
    """Fails unless what was open at the start is open at the end, and nothing else.

    Nothing is collected meanwhile: the collector closes files that an earlier test dropped, and so makes room
    for more of them at a moment that nobody chose.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        before = descriptors()
        yield
        after = descriptors()
        assert after == before, f"left open: {after - before}, closed: {before - after}"
    finally:
        if collects:
            gc.enable()

"""Doors to the network that are made later, for whoever finds out which process they are for.

A container's process is known only when the engine of containers has started it, which takes longer
than dagrun's own loop may wait. So an order waits here: who writes a pid into the named pipe ASK of
the order's folder reads from its pipe SAID `ok`, or why not. Runs in the helper process of NetProxy.
Nothing of a sandbox can reach the folder. Knows no engine and no list.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from dagrun.core.names import Json
from dagrun.sandbox.netproxy_enter import JoinError

ASK, SAID = "door.ask", "door.said"
_MOST_BYTES = 64  # of a pid and its newline
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class _Waiting:
    """`said` stays open until the order is forgotten: an answer that nobody has read yet would be lost."""

    order: dict[str, Json]
    ask: int
    said: int


class Later:
    """The orders that wait. `make` makes a door in the network of a process; it raises JoinError."""

    def __init__(self, make: Callable[[int, dict[str, Json]], dict[str, Json]]) -> None:
        self._make = make
        self._waiting: dict[str, _Waiting] = {}
        self._asked: set[str] = set()

    def add(self, order: dict[str, Json]) -> dict[str, Json]:
        """Let an order wait for its pid."""
        folder, key = str(order["folder"]), str(order["key"])
        self.forget(key)
        try:
            ask = os.open(f"{folder}/{ASK}", os.O_RDONLY | _FLAGS)
        except OSError as error:
            return {"error": f"can't wait for the process of a container: {error.strerror}"}
        try:
            said = os.open(f"{folder}/{SAID}", os.O_RDWR | _FLAGS)
        except OSError as error:
            os.close(ask)
            return {"error": f"can't wait for the process of a container: {error.strerror}"}
        self._waiting[key] = _Waiting(order, ask, said)
        return {}

    def fds(self) -> dict[int, str]:
        """What to look at: a descriptor at which something may be said → the key of its order."""
        return {waiting.ask: key for key, waiting in self._waiting.items() if key not in self._asked}

    def serve(self, key: str) -> None:
        """Read a pid and make the door; each order is served once."""
        waiting = self._waiting[key]
        self._asked.add(key)
        with suppress(OSError):  # nobody is there to hear it
            os.write(waiting.said, f"{self._answer(waiting)}\n".encode())

    def _answer(self, waiting: _Waiting) -> str:
        try:
            text = os.read(waiting.ask, _MOST_BYTES).strip()
            if not text.isdigit() or int(text) <= 1:
                return "the container has no process"
            order: dict[str, Json] = {**waiting.order, "do": "open"}
            return str(self._make(int(text), order).get("error", "ok"))
        except JoinError as error:
            return " ".join(error.why.split())
        except OSError as error:
            return str(error.strerror)

    def forget(self, key: str) -> None:
        """The order is over."""
        waiting = self._waiting.pop(key, None)
        self._asked.discard(key)
        if waiting is not None:
            os.close(waiting.ask)
            os.close(waiting.said)

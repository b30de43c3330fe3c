"""What the engine tells a view, and nothing more: the engine knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dagrun.core.event import Event
from dagrun.core.state import RunState


class Observer(Protocol):
    """Somebody who watches a run from inside its engine. None of these may block or raise for long.

    `interval_s` is how often `tick` is wanted while the run goes on; None means never.
    """

    interval_s: float | None

    def attached(self, state: RunState, tail: Callable[[int], bytes]) -> None:
        """The run begins or goes on. `tail(i)` gives the last bytes node `i` wrote, while it runs."""

    def recorded(self, events: Sequence[Event], state: RunState) -> None:
        """These events were journaled and folded, in order."""

    def tick(self, state: RunState, now: float, now_m: float) -> None:
        """`interval_s` has passed; wall and monotonic time."""

    def closed(self, state: RunState) -> None:
        """The engine lets go: draw the last frame, restore the terminal."""


class Silent:
    """An observer that shows nothing (`--ui quiet`)."""

    interval_s: float | None = None

    def attached(self, state: RunState, tail: Callable[[int], bytes]) -> None:
        """Nothing to show."""

    def recorded(self, events: Sequence[Event], state: RunState) -> None:
        """Nothing to show."""

    def tick(self, state: RunState, now: float, now_m: float) -> None:
        """Nothing to show."""

    def closed(self, state: RunState) -> None:
        """Nothing to show."""

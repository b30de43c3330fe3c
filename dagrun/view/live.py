"""The live table: a run in a terminal, four frames a second, drawn in place.

The engine's thread only takes a picture (`frame.take`); lines are made and written in a helper
thread, and a slow terminal misses frames. A frame is one write: the cursor is hidden and the
automatic wrap is off only within it, so a dagrun that is killed leaves a sane terminal. The
last frame stays on the screen.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dagrun.core.event import (
    AttemptFinished,
    CallReserved,
    EngineAttached,
    EscalationFailed,
    PatchAdmitted,
    ReviewDecided,
    Warned,
)
from dagrun.core.names import Status
from dagrun.core.usage import has_agents
from dagrun.view.draw import draw, rows_for
from dagrun.view.frame import take
from dagrun.view.text import PLAIN, Look, cells, clean
from dagrun.view.writer import Stream, Writer, descriptor

if TYPE_CHECKING:
    from dagrun.core.event import Event
    from dagrun.core.state import RunState
    from dagrun.view.frame import Picture

_GAP_S = 5.0  # after such a pause (Ctrl-Z, sleep) others may have written below the last frame


def terminal_size(stream: Stream) -> tuple[int, int]:
    """(columns, lines) of the terminal behind a stream; 80 × 24 where it doesn't say."""
    fd = descriptor(stream)
    try:
        columns, lines = os.get_terminal_size(2 if fd is None else fd)
    except OSError:
        return 80, 24
    return columns or 80, lines or 24


class Live:
    """An observer that draws the run in place on a terminal."""

    interval_s: float | None = 0.25

    def __init__(
        self,
        stream: Stream,
        look: Look = PLAIN,
        *,
        size: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self._look = look
        self._size = size or (lambda: terminal_size(stream))
        self._agents = False
        self._writer = Writer(stream, look.glyphs.encoding)
        self._screen = Screen(look)
        self._failed: dict[int, None] = {}
        self._tail: Callable[[int], bytes] = lambda i: b""
        self._changed = True
        self._tick_m: float | None = None

    def attached(self, state: RunState, tail: Callable[[int], bytes]) -> None:
        """The run begins or goes on: remember what failed before."""
        self._tail = tail
        self._agents = has_agents(state)
        self._note_failures(state, state.finished)
        self._show(state, state.now, state.now_m)

    def recorded(self, events: Sequence[Event], state: RunState) -> None:
        """Something happened: the next tick draws it."""
        self._changed = True
        index = state.plan.index
        for event in events:
            match event:
                case AttemptFinished() | EscalationFailed() | ReviewDecided():
                    self._note_failures(state, (index[event.node],))
                case EngineAttached() | PatchAdmitted():  # these bring nodes back, and new ones
                    self._agents = has_agents(state)
                    self._failed.clear()
                    self._note_failures(state, state.finished)
                case CallReserved():
                    self._agents = True
                case Warned():
                    where = f"{event.node}: " if event.node else ""
                    self._screen.above(clean(f"warning: {where}{event.text}"))

    def tick(self, state: RunState, now: float, now_m: float) -> None:
        """Draw, if anything changed or some clock on the screen moves."""
        if self._writer.dead:
            self.interval_s = None
            return
        if self._tick_m is not None and now_m - self._tick_m > _GAP_S:
            self._screen.leave()
        self._tick_m = now_m
        if self._changed or state.running or state.waking or state.reviews:
            self._show(state, now, now_m)

    def closed(self, state: RunState) -> None:
        """Draw the last frame and leave it there."""
        self._show(state, state.now, state.now_m, last=True)
        self._writer.close()

    def _note_failures(self, state: RunState, numbers: Sequence[int]) -> None:
        for i in numbers:
            if state.node_status[i] is Status.FAILED and i not in state.removed:
                self._failed[i] = None

    def _show(self, state: RunState, now: float, now_m: float, *, last: bool = False) -> None:
        self._changed = False
        width, height = self._size()
        elapsed_s = now_m - state.attached_m if state.engines <= 1 else now - state.created_at
        room = rows_for(height)
        picture = take(state, now_m, elapsed_s, room, self._failed, self._tail, agents=self._agents)
        self._writer.show(lambda: self._screen.frame(picture, width, height, last=last))


class Screen:
    """The lines that were drawn last, and the bytes that turn them into the next ones."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._drawn: list[str] = []
        self._width = 0
        self._node_width = 0
        self._above: deque[str] = deque()
        self._left = False

    def above(self, line: str) -> None:
        """Print a line above the table with the next frame."""
        self._above.append(line)

    def leave(self) -> None:
        """Draw the next frame below, untouched by what is there now."""
        self._left = True

    def frame(self, picture: Picture, width: int, height: int, *, last: bool = False) -> str:
        """The bytes that draw a picture over the last one; empty if nothing changed.

        After the `last` one the cursor stands below, for whoever writes next.
        """
        if picture.rows:
            # columns that jump to and fro can't be read: a width once needed is kept
            self._node_width = max(self._node_width, *(len(r.node) for r in picture.rows))
        lines = draw(picture, self._look, width, height, self._node_width)
        start = self._start(width)
        above = [self._above.popleft() for _ in range(len(self._above))]
        resized = width != self._width
        same = lines == self._drawn and not above and not resized
        body = "" if same else self._body(lines, above, whole=bool(above) or resized)
        self._drawn, self._width = lines, width
        if last:
            # from wherever an unchanged frame left the cursor, its last line
            body += "\r\n"
        if not body:
            return ""
        # the cursor waits in the first cell: at the end of a full line the echo of a ^C would wrap
        return f"\x1b[?25l\x1b[?7l{'' if same else start}{body}\r\x1b[?7h\x1b[?25h"

    def _start(self, width: int) -> str:
        """To the first cell of the last frame. A terminal that got narrower has wrapped its lines."""
        if self._left:
            self._left, drawn, self._drawn = False, self._drawn, []
            return "\r\n" if drawn else "\r"
        rows = len(self._drawn)
        if 0 < width < self._width:
            rows = sum(max(1, -(-cells(clean(line)) // width)) for line in self._drawn)
        return f"\r\x1b[{rows - 1}A" if rows > 1 else "\r"

    def _body(self, lines: list[str], above: list[str], *, whole: bool) -> str:
        """The new lines, of which those that did not change are left alone.

        All but the last: a key that was echoed stands there. A line is cleared before it is written,
        since after a full line the cursor stands on its last cell, which would be lost.
        """
        drawn = self._drawn
        if whole or not drawn:
            return "\x1b[J" + "\r\n".join([*above, *lines])
        parts = ["" if drawn[k : k + 1] == [line] else f"\x1b[K{line}" for k, line in enumerate(lines)]
        parts[-1] = f"\x1b[J{lines[-1]}"
        return "\r\n".join(parts)

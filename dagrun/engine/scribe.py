"""State and journal of a run kept as one: what is folded here is written, what others wrote is folded.

The only place of an engine that appends while the run goes on. Knows no process, no timer and no
effect: `follow` hears of every event, for whoever keeps something beside the state. Invariants:
between `begin` and `end` nobody else appends, so the state is that of the journal's very end; what is
folded in between becomes one record, or the engine ends; an observer hears of events once they are written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import monotonic, time

from dagrun.core.event import Event, decode, encode
from dagrun.core.evolve import evolve
from dagrun.core.state import RunState
from dagrun.engine.observer import Observer
from dagrun.errors import JournalError
from dagrun.store.fault import ARMED, fault
from dagrun.store.journal import Journal
from dagrun.store.sync import Syncer


class Scribe:
    """Who writes for one engine. A record: `begin`, `fold` …, `write`, in any case `end`, then `publish`.

    `events` are those folded and not published yet. `later` is asked for a call of `look` in so many seconds.
    """

    def __init__(
        self,
        state: RunState,
        journal: Journal,
        observer: Observer,
        follow: Callable[[Event], None],
        later: Callable[[float], None],
    ) -> None:
        self.events: list[Event] = []
        self._state = state
        self._journal = journal
        self._observer = observer
        self._follow = follow
        self._epoch = state.engines
        self._strict = state.plan.workflow.durability == "strict"
        self._syncer = Syncer(journal, later)

    def unread(self) -> bool:
        """Whether others appended what is not folded yet, or the journal is gone; no lock is taken."""
        found = os.fstat(self._journal.fileno())
        return found.st_size != self._journal.offset or not found.st_nlink

    def begin(self) -> bool:
        """Take the journal's lock and fold what other processes appended; whether there was anything.

        Raises JournalError and RunLockedError as `Journal.begin`; the lock is free then.
        """
        news = self._journal.begin()
        if not news:
            return False
        try:
            for record in news:
                events = [decode(e) for e in record.events]
                for event in events:
                    evolve(self._state, event, record.t, monotonic())
                    self._follow(event)
                self._observer.recorded(events, self._state)
        except BaseException:
            self._journal.end()
            raise
        return True

    def fold(self, event: Event) -> None:
        """Let it have happened: the state changes now, and the record has it."""
        evolve(self._state, event, time(), monotonic())
        self.events.append(event)
        self._follow(event)

    def write(self) -> None:
        """Append what was folded as one record. Raises DiskFull, JournalError and RunLockedError."""
        if not self.events:
            return
        if ARMED:
            fault("engine.before_commit")
        self._journal.write([encode(e) for e in self.events], self._epoch)

    def end(self) -> None:
        """Let go of the journal's lock."""
        self._journal.end()

    def publish(self) -> None:
        """See to it that the record gets to the disk, and tell the observer. Raises JournalError."""
        if not self.events:
            return
        events, self.events = self.events, []
        if self._strict:
            self._journal.sync()
        else:
            self._syncer.poke()
        self._observer.recorded(events, self._state)
        if ARMED:
            for _ in events:
                fault("engine.after_event")

    def look(self) -> None:
        """Go on with the sync that goes on beside the engine; what failed is raised by the next `publish`."""
        self._syncer.look()

    def sync(self) -> None:
        """Wait until everything written is on the disk. Raises JournalError."""
        self._journal.sync()

    def record(self, event: Event) -> None:
        """Journal one event that no turn brought forth."""
        self.begin()
        try:
            self.fold(event)
            self.write()
        finally:
            self.end()
        self.publish()

    def last_words(self, events: Sequence[Event]) -> None:
        """Journal why the engine gives up, if that is still possible; what was folded and not written is lost."""
        try:
            self._journal.append([encode(e) for e in events], epoch=self._epoch)
            self._journal.sync()
        except JournalError:
            pass  # what went wrong first is what a person has to know; `resume` takes up a run without an end

    def close(self) -> None:
        """Sync what is left. Raises JournalError if any sync failed."""
        self._syncer.close()

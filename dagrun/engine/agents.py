"""The agents at work: each a state machine whose calls go to a provider and whose tools run in its sandbox.

Under the journal's lock `step` takes in what came, moves every attempt on as far as it goes, and journals it:
what may cost money is held in the ledger and in the journal first. `flush` then lets calls and tools go, when
the record is written. Never raises for what a model, a tool or a node does: that becomes an AttemptFinished.
Knows neither how a model is asked (calling.py) nor how a tool is run (tooling.py).
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING

from dagrun.agent.loop import effect
from dagrun.agent.prompt import said
from dagrun.agent.steps import CallModel, CallTool, Finish
from dagrun.core.event import Event, Warned
from dagrun.core.names import NodeId, Outcome
from dagrun.core.state import RunState
from dagrun.engine.agentend import finished
from dagrun.engine.attempt import Ending
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.calling import Caller
from dagrun.engine.providers import Kit
from dagrun.engine.talk import Talk, tail_of
from dagrun.engine.timers import Timers
from dagrun.engine.tooling import Tools
from dagrun.sandbox.logpool import LogPool, Slot
from dagrun.sandbox.plain import Plain
from dagrun.store.rundir import RunDir

if TYPE_CHECKING:
    from dagrun.engine.reuse import Reuse

STOP_GRACE_S = 2.0


class Agents:
    """The agent attempts of one engine."""

    def __init__(
        self,
        *,
        state: RunState,
        run: RunDir,
        bench: Workbench,
        kit: Kit,
        timers: Timers,
        poll: select.epoll,
        sandbox: Plain,
        logs: LogPool,
    ) -> None:
        self._state = state
        self._run = run
        self._bench = bench
        self._kit = kit
        self._timers = timers
        self._logs = logs
        source = kit.source
        self._caller = Caller(state=state, bench=bench, source=source, timers=timers, poll=poll)
        self._tools = Tools(state=state, bench=bench, source=source, timers=timers, poll=poll, sandbox=sandbox)
        self._talks: dict[int, Talk] = {}
        self._due: dict[int, None] = {}  # the attempts that may have something to do, in order
        self._reuse: dict[NodeId, Reuse] | None = None

    # ------------------------------------------------------------ from outside

    def start(self, i: int, number: int, command: Command, slot: Slot) -> None:
        """A journaled start."""
        assert command.agent is not None
        talk = Talk(i, number, command, command.agent, slot, monotonic())
        if self._reuse is None:
            self._reuse = _reusable(self._run, self._state)
        talk.reuse = self._reuse.pop(self._state.plan.ids[i], None)
        self._talks[i] = talk
        self._due[i] = None
        if talk.begin.servers:
            self._tools.open(talk)
        self._timers.add(self._state.plan.nodes[i].timeout_s, "timeout", i, number)

    def __contains__(self, i: int) -> bool:
        return i in self._talks

    @property
    def busy(self) -> bool:
        """Whether there is something to do at once."""
        return bool(self._due)

    def next_due(self) -> float | None:
        """When a process of an attempt has to be looked at, whatever it does."""
        moments = [due for talk in self._talks.values() for seat in talk.seats if (due := seat.next_due()) is not None]
        return min(moments, default=None)

    @property
    def must_sync(self) -> bool:
        """Whether what was journaled has to be on disk before `flush`."""
        return self._caller.must_sync

    def ready(self, descriptors: Iterable[int]) -> None:
        """Some descriptors have something; those that are nobody's here are left alone."""
        mine = [fd for fd in descriptors if fd != self._caller.watched]  # that one is looked at in every step
        if not mine:
            return
        owners = {fd: talk for talk in self._talks.values() for seat in talk.seats for fd in seat.fds}
        for fd in mine:
            talk = owners.get(fd)
            if talk is not None and any(seat.ready(fd) for seat in talk.seats):
                self._due[talk.node] = None

    def timer(self, i: int, number: int) -> None:
        """Something of an attempt may be due."""
        talk = self._talks.get(i)
        if talk is not None and talk.number == number:
            self._due[i] = None

    def cancel(self, i: int, ending: Ending) -> None:
        """End an attempt, for a reason of the engine's."""
        talk = self._talks[i]
        if talk.ending is None and talk.finish is None:
            talk.ending = ending
        self._due[i] = None

    def kill(self, i: int) -> None:
        """An attempt had its time to end."""
        talk = self._talks.get(i)
        if talk is not None and talk.alive:
            if talk.ending is not None:
                talk.ending.escalated = True
            for seat in talk.seats:
                seat.kill()
            self._timers.add(STOP_GRACE_S, "kill", i, talk.number)

    def kill_all(self) -> None:
        """SIGKILL to all tools."""
        for talk in self._talks.values():
            for seat in talk.seats:
                seat.kill()

    def tail(self, i: int) -> bytes:
        """What an attempt is at."""
        return self._bench.mask.text(tail_of(self._talks[i])).encode("utf-8", "replace")

    def close(self) -> None:
        """The session is over: nothing is running."""
        self._caller.close()
        self._tools.close()

    # ------------------------------------------------------------ under the journal's lock

    def step(self, now: float, fold: Callable[[Event], None]) -> None:
        """Take in what came and go on. Raises ReplayMiss and EnvironmentFault."""
        self._due |= dict.fromkeys(self._caller.collect(now, fold))
        self._tools.collect()
        for talk in self._talks.values():
            if any((moment := seat.next_due()) is not None and moment <= now for seat in talk.seats):
                self._due[talk.node] = None
        while self._due:
            due, self._due = self._due, {}
            for i in due:
                if i in self._talks:
                    self._advance(self._talks[i], now, fold)
            self._due |= dict.fromkeys(self._caller.freed())

    def _advance(self, talk: Talk, now: float, fold: Callable[[Event], None]) -> None:
        """Move one attempt on as far as it goes."""
        self._tools.returned(talk, now, fold)
        if talk.waits == "listing":
            self._tools.take_lists(talk, fold)
        if talk.ending is not None and talk.finish is None and talk.waits != "end":
            self._caller.wind_up(talk, now, fold)
            self._stop_tools(talk)
        if talk.waits == "money" or (talk.waits == "delay" and talk.asking and talk.asking.again_m <= now):
            talk.waits = ""
        while not talk.waits:
            due = effect(talk.begin.task, talk.state)
            match due:
                case Finish():
                    talk.finish = due
                    self._stop_tools(talk)
                case CallModel():
                    self._caller.call(talk, due, now, fold)
                case CallTool():
                    self._tools.call(talk, due, now, fold)
        if talk.waits == "end" and not talk.alive:
            self._end(talk, fold)

    def _stop_tools(self, talk: Talk) -> None:
        talk.waits = "end"
        if talk.alive:
            for seat in talk.seats:
                seat.stop()
            grace = self._state.plan.nodes[talk.node].grace_s if talk.ending is not None else STOP_GRACE_S
            self._timers.add(grace, "kill", talk.node, talk.number)

    def _end(self, talk: Talk, fold: Callable[[Event], None]) -> None:
        """Every process of an attempt is dead: its outcome."""
        del self._talks[talk.node]
        node = self._state.plan.nodes[talk.node]
        for note in [note for seat in talk.seats for note in seat.notes]:
            fold(Warned(text=self._bench.mask.text(note), node=node.id))
        event = finished(self._bench, self._logs, node, talk)
        if node.group and event.outcome is Outcome.COMPLETED:
            self._kit.groups.setdefault(node.group, {})[node.id] = said(talk.begin.task.briefing, talk.state.turns)
        fold(event)

    # ------------------------------------------------------------ when the record is written

    def flush(self, now: float) -> None:
        """Let go what was journaled: calls to the provider, calls of tools."""
        self._caller.flush(now)
        self._due |= dict.fromkeys(self._tools.flush(now))


def _reusable(run: RunDir, state: RunState) -> dict[NodeId, Reuse]:
    """What attempts that were cut short had bought; an engine that goes on with a run reads its journal for it."""
    if state.engines < 2:
        return {}
    from dagrun.engine.recording import read_run
    from dagrun.engine.reuse import reusable

    return reusable(read_run(run))

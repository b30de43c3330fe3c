"""The loop of the engine: wait for something, fold it, decide, journal, act.

One thread, one epoll: pidfds of commands, the watchdog's pipe, the journal's notice, timers. Order of
a turn: what ended → what is due → what to start; all of it becomes one record, and only when that is
written are commands spawned, so a crash in between is seen as a lost attempt and never as a command
nobody knows of. Knows neither how an attempt is spawned, ended and judged (the crew) nor how a record
is written (the scribe); what to do next is for `decide` to say.
"""

from __future__ import annotations

import os
import select
import signal
from functools import partial
from time import monotonic, sleep, time
from typing import Literal, NoReturn, TypeAlias

from dagrun.core.decide import Append, Cancel, Effect, Escalate, Finish, Room, Start, Stuck, decide, next_wake
from dagrun.core.event import (
    Event,
    NodeStarted,
    PatchAdmitted,
    ReviewDecided,
    ReviewRequested,
    RunEnded,
    StopCause,
    StopRequested,
)
from dagrun.core.names import Json, RunStatus
from dagrun.core.state import RunState
from dagrun.engine.attempt import prepare
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.crew import Crew
from dagrun.engine.observer import Observer
from dagrun.engine.scribe import Scribe
from dagrun.engine.timers import Kind, Timers
from dagrun.errors import BugError, ConflictError, EnvironmentFault, JournalError
from dagrun.sandbox.logpool import Slot
from dagrun.sandbox.watchdog import EngineSide, kill_everything
from dagrun.store.disk import DiskFull, disk_fault
from dagrun.store.journal import Journal
from dagrun.store.rundir import RunDir
from dagrun.store.sync import Notice

ToSpawn: TypeAlias = tuple[int, Command, Slot | None, str]

DRAIN_S = 10.0  # what running nodes get after the first Ctrl-C
POLL_S = 0.25  # how often the journal is looked at where the kernel gives no notice
# After the long computing that a large plan takes, Linux (6.18, two processors) was seen to queue each new child
# behind one that runs, and to keep to that for the whole run: 12 % of a node. A moment of rest first avoids it.
REST_NODES = 2000
REST_S = 0.03
SLEEP_GAP_S = 5.0  # a turn that took this long was a stopped process: deadlines move
_SIGNALS: dict[int, StopCause] = {
    signal.SIGINT: "sigint",
    signal.SIGTERM: "sigterm",
    signal.SIGHUP: "sighup",
    signal.SIGQUIT: "sigterm",
}


class Runner:
    """One engine at work on one run, from the lock being held to the last record."""

    def __init__(
        self,
        *,
        state: RunState,
        journal: Journal,
        run: RunDir,
        bench: Workbench,
        room: Room,
        observer: Observer,
        side: EngineSide,
    ) -> None:
        self.state = state
        self.run_dir = run
        self.bench = bench
        self.observer = observer
        self.side = side
        self.timers = Timers(self._is_open)
        self.scribe = Scribe(state, journal, observer, self._follow, partial(self.timers.add, kind="sync"))
        self.poll = select.epoll()
        self.crew = Crew(state=state, run=run, bench=bench, room=room, timers=self.timers, poll=self.poll)
        self.notice = Notice.watch(run.journal)
        self.last_turn = monotonic()
        self.decided_m = float("-inf")  # up to when retries had their chance to start
        self.next_tick = self.last_turn + (observer.interval_s or 0.0)
        self.ended: RunEnded | None = None

    # ------------------------------------------------------------ the loop

    def run(self) -> RunEnded:
        """Work until the run ends; everything that was started is dead then and the journal synced.

        Raises EnvironmentFault when the machine gives out and RunLockedError when another engine
        took over; all commands are dead then too.
        """
        self.poll.register(self.side.fileno(), select.EPOLLIN)
        if self.notice is not None:
            self.poll.register(self.notice.fileno(), select.EPOLLIN)
        limit = self.state.plan.workflow.limits.timeout_s
        if limit is not None:
            self.timers.add(limit, "run_timeout")
        for i, asked in self.state.reviews.items():
            if asked.deadline:
                self.timers.add(asked.deadline - time(), "review", i)
        self.observer.attached(self.state, self.crew.tail)
        if len(self.state.plan.ids) > REST_NODES:
            sleep(REST_S)
        try:
            self._loop()
            self.scribe.close()
            assert self.ended is not None
            return self.ended
        except DiskFull as full:
            self._give_up_full_disk(full)
        except EnvironmentFault as fault_:
            if not isinstance(fault_, JournalError):
                self._give_up(fault_)
            raise
        except ConflictError as miss:  # of a replay: what was not recorded
            self._give_up(miss)
            raise
        finally:
            self._close()

    def _loop(self) -> None:
        try:
            while self.ended is None:
                self._turn()
        except OSError as error:  # the folder of the run is gone, or its disk gave out
            raise disk_fault("can't go on in", self.run_dir.path, error) from error

    def _turn(self) -> None:
        """Wait; collect what ended; under the journal's lock fold, decide and write; then spawn."""
        ready = self._wait()
        now = monotonic()
        self._mind_the_gap(now)
        facts = self.crew.reap(ready)
        replay = self.bench.replay
        to_spawn: list[ToSpawn] = []
        self.scribe.begin()
        try:
            if replay is not None:
                replay.go_on(self.bench, self.state, self.crew, facts, self.scribe.fold)
            for fact in facts:
                self.scribe.fold(fact)
            if self.crew.patches:
                self._judge_patches()
            if self.side.fileno() in ready:
                self._signals()
            for spawned in self.crew.outlived(now):
                self.scribe.fold(spawned)
            for kind, node, number in self.timers.due(now):
                self._due(kind, node, number)
            if self.crew.agents is not None:
                self.crew.agents.step(now, self.scribe.fold)
            finish = self._decide(now, to_spawn)
            self.decided_m = now
            self.scribe.write()
        except ConflictError:  # what was not recorded: what happened before it did happen
            self.scribe.write()
            raise
        finally:
            self.scribe.end()
        self.scribe.publish()
        if self.crew.agents is not None:
            if self.crew.agents.must_sync:
                self.scribe.sync()
            self.crew.agents.flush(now)
        for item in to_spawn:
            self.crew.spawn(*item)
        if finish is not None:
            self._finish(finish)
        if self.observer.interval_s is not None and now >= self.next_tick:
            self.next_tick = now + self.observer.interval_s
            self.observer.tick(self.state, time(), now)

    def _decide(self, now: float, to_spawn: list[ToSpawn]) -> Finish | None:
        """Carry out effects until nothing more is due; how the run ends, if it does."""
        while effects := decide(self.state, now, self.crew.room):
            before = len(self.scribe.events)
            finish: Finish | None = None
            for effect in effects:
                finish = self._carry_out(effect, to_spawn) or finish
            if finish is not None or len(self.scribe.events) == before:
                return finish
        return None

    def _carry_out(self, effect: Effect, to_spawn: list[ToSpawn]) -> Finish | None:
        match effect:
            case Start(i):
                self._start(i, to_spawn)
            case Append(event):
                self.scribe.fold(event)
            case Cancel(i, reason):
                never_ran = self.crew.cancel(i, reason)
                if never_ran is not None:
                    self.scribe.fold(never_ran)
            case Escalate(i, step):
                from dagrun.engine.replanning import escalate

                for event in escalate(self.bench, self.state, i, step):
                    self.scribe.fold(event)
            case Finish():
                return effect
            case Stuck(story):
                raise BugError(f"the engine is stuck: {story}")
        return None

    def _wait(self) -> list[int]:
        """The descriptors that have something, after at most the time until the next thing is due."""
        if self.notice is not None:
            self.notice.drain()  # our own appends ring it too; what others wrote is read by `begin`
        # what came between our last look and the drain rings no more
        due = 0.0 if self.scribe.unread() else self._next_due()
        if self.bench.replay is not None and self._is_idle(due) and self.bench.replay.release(self.state):
            due = 0.0
        return [fd for fd, _ in self.poll.poll(due)]

    def _is_idle(self, due: float | None) -> bool:
        """Whether the engine did all that it can for now."""
        began = self.decided_m != float("-inf")
        return due != 0.0 or (began and not (self.crew.facts or self.state.running or self.state.waking))

    def _next_due(self) -> float | None:
        now = monotonic()
        due = self.timers.next()
        wake = next_wake(self.state, self.decided_m)
        if wake is not None and (due is None or wake < due):
            due = wake
        if self.observer.interval_s is not None and (due is None or self.next_tick < due):
            due = self.next_tick
        if self.notice is None and (due is None or now + POLL_S < due):
            due = now + POLL_S
        soon = self.crew.next_outlived()
        if soon is not None and (due is None or soon < due):
            due = soon
        first = self.decided_m == float("-inf")
        if self.crew.agents is not None:
            if self.crew.agents.busy:
                return 0.0
            look = self.crew.agents.next_due()
            if look is not None and (due is None or look < due):
                due = look
        if self.crew.facts or first or not (self.state.running or self.state.waking):
            return 0.0
        return None if due is None else max(0.0, due - now)

    def _mind_the_gap(self, now: float) -> None:
        """After a stop (^Z, a debugger) every deadline moves by the time that was lost."""
        due = self.timers.next()
        gap = now - max(self.last_turn, due) if due is not None else 0.0
        if gap > SLEEP_GAP_S:
            self.timers.shift(gap)
        self.last_turn = now

    # ------------------------------------------------------------ effects

    def _follow(self, event: Event) -> None:
        """What the engine itself keeps beside the state has to follow it."""
        match event:
            case ReviewRequested() if event.deadline:
                self.timers.add(event.deadline - time(), "review", self.state.plan.index[event.node])
            case PatchAdmitted() if event.limits:
                room, limits = self.crew.room, self.state.plan.workflow.limits
                self.crew.room = Room(limits.parallel or room.parallel, {**room.resources, **limits.resources})
            case _:
                pass

    def _start(self, i: int, to_spawn: list[ToSpawn]) -> None:
        replay = self.bench.replay
        if replay is not None and not replay.may_start(self.state, i):
            return
        prepared = prepare(self.bench, self.state, i)
        if replay is not None and replay.takes(self.bench, self.state, i, prepared, self.scribe.fold):
            return
        if not isinstance(prepared, Command):
            self.scribe.fold(prepared)
            return
        node = self.state.plan.ids[i]
        number = len(self.state.attempts[i]) + 1
        slot, why = self.crew.slot()
        event = NodeStarted(
            node=node,
            attempt=number,
            revision=self.state.plan.revision,
            slot=slot.index if slot is not None else -1,
            inputs_digest=prepared.inputs_digest,
            sandbox=prepared.sandbox,
            agent=prepared.agent.started if prepared.agent is not None else {},
        )
        self.scribe.fold(event)
        to_spawn.append((i, prepared, slot, why))

    def _judge_patches(self) -> None:
        from dagrun.engine.replanning import patch_from_node

        patches, self.crew.patches = self.crew.patches, []
        for name, data in patches:
            for event in patch_from_node(self.bench, self.state, name, data):
                self.scribe.fold(event)

    def _finish(self, finish: Finish) -> None:
        replay = self.bench.replay
        if replay is not None and not replay.at_revival and replay.release(self.state):
            return
        outputs = self._outputs() if finish.status is RunStatus.COMPLETED else {}
        event = RunEnded(status=finish.status, exit_code=finish.exit_code, reason=finish.reason, outputs=outputs)
        self.crew.end_all()
        news = self.scribe.begin()
        try:
            if news:
                return  # somebody changed the run meanwhile: the next turn decides again
            self.scribe.fold(event)
            revival = replay.revival() if replay is not None else None
            if revival is not None:
                self.scribe.fold(revival)
            self.scribe.write()
        finally:
            self.scribe.end()
        self.scribe.publish()
        self.ended = event if revival is None else None

    def _outputs(self) -> dict[str, Json]:
        if not self.state.plan.workflow.outputs:
            return {}
        from dagrun.engine.outputs import workflow_outputs

        return workflow_outputs(self.bench, self.state)

    # ------------------------------------------------------------ timers and signals

    def _is_open(self, node: int, number: int) -> bool:
        attempt = self.state.running.get(node)
        return attempt is not None and attempt.number == number

    def _due(self, kind: Kind, node: int, number: int) -> None:
        match kind:
            case "run_timeout" | "drained":
                stop = self.state.stop
                if stop is None or stop.mode == "drain":
                    self._stop(stop.cause if stop is not None else "timeout", "now")
            case "review":
                self._review_due(node)
            case "sync":
                self.scribe.look()
            case _:
                self.crew.due(kind, node, number)

    def _review_due(self, node: int) -> None:
        asked = self.state.reviews.get(node)
        if asked is None or not asked.deadline:
            return
        if asked.deadline <= time() + 0.01:
            self.scribe.fold(ReviewDecided(node=asked.node, decision="timed_out", by="dagrun"))
        else:  # the wall clock was set back
            self.timers.add(asked.deadline - time(), "review", node)

    def _signals(self) -> None:
        for number in self.side.read():
            cause = _SIGNALS.get(number)
            if cause is None:
                continue
            stop = self.state.stop
            if stop is not None and stop.mode == "now":
                if cause == "sigint":
                    self.crew.kill_now()
            elif cause == "sigint" and stop is None and self.state.running:
                self._stop(cause, "drain")
                self.timers.add(DRAIN_S, "drained")
            else:
                self._stop(stop.cause if stop is not None and cause == "sigint" else cause, "now")
        if not self.side.watchdog_alive:
            # the pid that the user knows was killed: what it started dies, and the journal stays as it is
            kill_everything()
            self.crew.abandon()
            os._exit(137)

    def _stop(self, cause: StopCause, mode: Literal["drain", "now"]) -> None:
        self.scribe.fold(StopRequested(cause=cause, mode=mode))

    # ------------------------------------------------------------ the way out

    def _give_up(self, why: EnvironmentFault | ConflictError) -> None:
        """The machine gave out, or the record of a replay: end everything, and say so in the journal."""
        self.crew.end_all()
        status = RunStatus.FAILED if isinstance(why, ConflictError) else RunStatus.INTERRUPTED
        event = RunEnded(status=status, exit_code=why.exit_code, reason=why.message)
        self.scribe.last_words([event])

    def _give_up_full_disk(self, full: DiskFull) -> NoReturn:
        """No room for the journal: free the ballast, say so in it, end everything; resume works."""
        self.crew.end_all()
        self.run_dir.drop_ballast()
        event = RunEnded(status=RunStatus.INTERRUPTED, exit_code=full.exit_code, reason=full.message)
        self.scribe.last_words([StopRequested(cause="disk_full", mode="now"), event])
        what = "raise the limit (ulimit -f)" if "ulimit" in full.hint else "free some space"
        raise EnvironmentFault(full.message, hint=f"{what}, then: dagrun resume {self.run_dir.id}") from full

    def _close(self) -> None:
        """Whatever the way out: nothing that was started stays alive, nothing stays open."""
        failed = self.ended is None
        if failed:
            self.crew.end_all()
            try:
                self.scribe.close()
            except JournalError:
                pass  # said already: it is, or comes from, what ended the run
        self.observer.closed(self.state)
        self.crew.close()
        self.poll.close()
        if self.notice is not None:
            self.notice.close()

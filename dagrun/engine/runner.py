"""The loop of the engine: wait for something, fold it, decide, journal, act.

One thread, one epoll: pidfds of commands, the watchdog's pipe, the journal's notice, timers. Only
`_write` here appends to the journal. Order of a turn: what ended → what is due → what to start;
all of it becomes one record, and only when that is written are commands spawned, so a crash in
between is seen as a lost attempt and never as a command nobody knows of.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Callable, Sequence
from errno import EDQUOT, EMFILE, ENFILE, ENOSPC
from heapq import heapify, heappop, heappush
from time import monotonic, time
from typing import Literal, NoReturn, TypeAlias

from dagrun.core.decide import Append, Cancel, Effect, Escalate, Finish, Room, Start, Stuck, decide, next_wake
from dagrun.core.event import (
    AttemptFinished,
    Event,
    NodeSpawned,
    NodeStarted,
    PatchAdmitted,
    ReviewDecided,
    ReviewRequested,
    RunEnded,
    StopCause,
    StopRequested,
    Warned,
    decode,
    encode,
)
from dagrun.core.names import Json, NodeId, Outcome, RunStatus, format_duration
from dagrun.core.state import RunState, evolve
from dagrun.engine.attempt import Ending, Running, conclude, prepare
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.observer import Observer
from dagrun.errors import BugError, EnvironmentFault, JournalError
from dagrun.sandbox.base import Child, SpawnBusy, SpawnFailed
from dagrun.sandbox.logpool import LogPool, Slot
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.watchdog import EngineSide, kill_everything
from dagrun.store.disk import DiskFull, disk_fault
from dagrun.store.exchange import OutputError, read_bytes
from dagrun.store.fault import ARMED, fault
from dagrun.store.journal import Journal
from dagrun.store.rundir import RunDir
from dagrun.store.sync import Notice, Syncer

Timer: TypeAlias = Literal["timeout", "kill", "run_timeout", "drained", "spawn", "size", "review"]

ToSpawn: TypeAlias = tuple[int, Command, Slot | None, str]

TAIL_BYTES = 1024
DRAIN_S = 10.0  # what running nodes get after the first Ctrl-C
STOP_GRACE_S = 5.0  # at most, whatever a node's grace, once the run is to stop now
SIZE_CHECK_S = 1.0
SPAWNED_AFTER_S = 0.005  # a command that ends sooner needs no pid in the journal
POLL_S = 0.25  # how often the journal is looked at where the kernel gives no notice
SLEEP_GAP_S = 5.0  # a turn that took this long was a stopped process: deadlines move
SPAWN_PATIENCE_S = 60.0
MAX_PATCH_BYTES = 1 << 20
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
        self.journal = journal
        self.run_dir = run
        self.bench = bench
        self.room = room
        self.observer = observer
        self.side = side
        self.epoch = state.engines
        self.strict = state.plan.workflow.durability == "strict"
        self.sandbox = Plain()
        self.logs = LogPool(run.nodes)
        self.syncer = Syncer(journal)
        self.notice = Notice.watch(run.journal)
        self.poll = select.epoll()
        self.children: dict[int, tuple[Child, Running]] = {}  # by pidfd
        self.by_node: dict[int, Child] = {}
        self.waiting: list[tuple[int, Command]] = []  # journaled as started, the machine is short
        self.unspawned: deque[tuple[int, Child, int]] = deque()  # spawned, pid not journaled yet
        self.facts: list[Event] = []  # to be folded in the next turn
        self.patches: list[tuple[NodeId, bytes]] = []  # written by nodes, not judged yet
        self.timers: list[tuple[float, int, Timer, int, int]] = []
        self.timer_count = 0
        self.last_turn = monotonic()
        self.decided_m = float("-inf")  # up to when retries had their chance to start
        self.next_tick = self.last_turn + (observer.interval_s or 0.0)
        self.spawn_pause = 0.1
        self.spawn_stuck_since = 0.0
        self.sizing = False
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
            self._timer(limit, "run_timeout", -1)
        for i, asked in self.state.reviews.items():
            if asked.deadline:
                self._timer(asked.deadline - time(), "review", i)
        self.observer.attached(self.state, self.tail)
        try:
            self._loop()
            self.syncer.close()
            assert self.ended is not None
            return self.ended
        except DiskFull as full:
            self._give_up_full_disk(full)
        except EnvironmentFault as fault_:
            if not isinstance(fault_, JournalError):
                self._give_up(fault_)
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
        facts, self.facts = self.facts, []
        for fd in ready:
            found = self.children.pop(fd, None)
            if found is not None:
                self._reaped(fd, *found, facts)
        events: list[Event] = []
        to_spawn: list[ToSpawn] = []
        self._begin()
        try:
            for fact in facts:
                self._fold(fact, events)
            if self.patches:
                self._judge_patches(events)
            if self.side.fileno() in ready:
                self._signals(events)
            self._note_pids(now, events)
            while self.timers and self.timers[0][0] <= now:
                _, _, kind, node, number = heappop(self.timers)
                self._due(kind, node, number, events)
            finish = self._decide(now, events, to_spawn)
            self.decided_m = now
            if events:
                self._write(events)
        finally:
            self.journal.end()
        self._after_write(events)
        for item in to_spawn:
            self._spawn(*item)
        if finish is not None:
            self._finish(finish)
        if self.observer.interval_s is not None and now >= self.next_tick:
            self.next_tick = now + self.observer.interval_s
            self.observer.tick(self.state, time(), now)

    def _decide(self, now: float, events: list[Event], to_spawn: list[ToSpawn]) -> Finish | None:
        """Carry out effects until nothing more is due; how the run ends, if it does."""
        while effects := decide(self.state, now, self.room):
            before = len(events)
            finish: Finish | None = None
            for effect in effects:
                finish = self._carry_out(effect, events, to_spawn) or finish
            if finish is not None or len(events) == before:
                return finish
        return None

    def _carry_out(self, effect: Effect, events: list[Event], to_spawn: list[ToSpawn]) -> Finish | None:
        match effect:
            case Start(i):
                self._start(i, events, to_spawn)
            case Append(event):
                self._fold(event, events)
            case Cancel(i, reason):
                self._cancel(i, reason, events)
            case Escalate(i, step):
                from dagrun.engine.replanning import escalate

                for event in escalate(self.bench, self.state, i, step):
                    self._fold(event, events)
            case Finish():
                return effect
            case Stuck(story):
                raise BugError(f"the engine is stuck: {story}")
        return None

    def _wait(self) -> list[int]:
        """The descriptors that have something, after at most the time until the next thing is due."""
        if self.notice is not None:
            self.notice.drain()  # our own appends ring it too; what others wrote is read by `_begin`
        # what came between our last look and the drain rings no more
        found = os.fstat(self.journal.fileno())
        unread = found.st_size != self.journal.offset or not found.st_nlink
        return [fd for fd, _ in self.poll.poll(0.0 if unread else self._next_due())]

    def _next_due(self) -> float | None:
        now = monotonic()
        due = self.timers[0][0] if self.timers else None
        wake = next_wake(self.state, self.decided_m)
        if wake is not None and (due is None or wake < due):
            due = wake
        if self.observer.interval_s is not None and (due is None or self.next_tick < due):
            due = self.next_tick
        if self.notice is None and (due is None or now + POLL_S < due):
            due = now + POLL_S
        if self.unspawned:
            soon = self.unspawned[0][1].started + SPAWNED_AFTER_S
            due = soon if due is None else min(due, soon)
        first = self.decided_m == float("-inf")
        if self.facts or first or not (self.state.running or self.state.waking):
            return 0.0
        return None if due is None else max(0.0, due - now)

    def _mind_the_gap(self, now: float) -> None:
        """After a stop (^Z, a debugger) every deadline moves by the time that was lost."""
        due = self.timers[0][0] if self.timers else now
        gap = now - max(self.last_turn, due)
        if gap > SLEEP_GAP_S and self.timers:
            self.timers = [(at + gap, *rest) for at, *rest in self.timers]  # type: ignore[misc]
        self.last_turn = now

    # ------------------------------------------------------------ the journal

    def _fold(self, event: Event, events: list[Event]) -> None:
        evolve(self.state, event, time(), monotonic())
        events.append(event)
        self._folded(event)

    def _folded(self, event: Event) -> None:
        """What the engine itself keeps beside the state has to follow it."""
        match event:
            case ReviewRequested() if event.deadline:
                self._timer(event.deadline - time(), "review", self.state.plan.index[event.node])
            case PatchAdmitted() if event.limits:
                limits = self.state.plan.workflow.limits
                self.room = Room(limits.parallel or self.room.parallel, {**self.room.resources, **limits.resources})
            case _:
                pass

    def _begin(self) -> bool:
        """Take the journal's lock and fold what other processes appended; whether there was anything."""
        news = self.journal.begin()
        try:
            for record in news:
                events = [decode(e) for e in record.events]
                for event in events:
                    evolve(self.state, event, record.t, monotonic())
                    self._folded(event)
                self.observer.recorded(events, self.state)
        except BaseException:
            self.journal.end()
            raise
        return bool(news)

    def _write(self, events: Sequence[Event]) -> None:
        """Append these folded events as one record; under the lock."""
        if ARMED:
            fault("engine.before_commit")
        self.journal.write([encode(e) for e in events], self.epoch)

    def _after_write(self, events: Sequence[Event]) -> None:
        if not events:
            return
        if self.strict:
            self.journal.sync()
        else:
            self.syncer.poke()
        self.observer.recorded(events, self.state)
        if ARMED:
            for _ in events:
                fault("engine.after_event")

    def record(self, event: Event) -> None:
        """Journal one event that no turn brought forth."""
        self._begin()
        try:
            evolve(self.state, event, time(), monotonic())
            self._write([event])
        finally:
            self.journal.end()
        self._after_write([event])

    def _note_pids(self, now: float, events: list[Event]) -> None:
        """Journal the processes that outlived SPAWNED_AFTER_S, for who has to clean up after us."""
        while self.unspawned and self.unspawned[0][1].started + SPAWNED_AFTER_S <= now:
            node, child, number = self.unspawned.popleft()
            if self.by_node.get(node) is child:
                name = self.state.plan.ids[node]
                slot = self.children[child.pidfd][1].slot.index
                self._fold(
                    NodeSpawned(node=name, attempt=number, pid=child.pid, ticks=child.start_ticks, slot=slot), events
                )

    # ------------------------------------------------------------ starting

    def _start(self, i: int, events: list[Event], to_spawn: list[ToSpawn]) -> None:
        prepared = prepare(self.bench, self.state, i)
        if not isinstance(prepared, Command):
            self._fold(prepared, events)
            return
        node = self.state.plan.ids[i]
        number = len(self.state.attempts[i]) + 1
        slot, why = self._slot()
        event = NodeStarted(
            node=node,
            attempt=number,
            revision=self.state.plan.revision,
            slot=slot.index if slot is not None else -1,
            inputs_digest=prepared.inputs_digest,
        )
        self._fold(event, events)
        to_spawn.append((i, prepared, slot, why))

    def _slot(self) -> tuple[Slot | None, str]:
        """Log files for an attempt, or why there are none right now."""
        try:
            return self.logs.acquire(), ""
        except OSError as error:
            if error.errno in (EMFILE, ENFILE):
                return None, error.strerror or "too many open files"
            if error.errno in (ENOSPC, EDQUOT):
                raise disk_fault("can't open log files in", self.run_dir.nodes, error) from error
            raise EnvironmentFault(f"can't open log files in {self.run_dir.nodes}: {error.strerror}") from error

    def _spawn(self, i: int, command: Command, slot: Slot | None, why: str) -> None:
        """Spawn a journaled start; when the machine is short of something, later."""
        attempt = self.state.running[i]
        if slot is None:
            self._busy(i, command, why)
            return
        run = Running(i, attempt.number, command, slot, monotonic())
        try:
            child = self.sandbox.spawn(
                command.argv,
                command.env,
                out_fd=slot.out_fd,
                err_fd=slot.err_fd,
                attempt_id=command.env["DAGRUN_ATTEMPT_ID"],
                cwd=command.cwd,
                script=command.script,
            )
        except SpawnBusy as busy:
            self.logs.release(slot, self.state.plan.ids[i], attempt.number)
            self._busy(i, command, busy.message)
            return
        self.spawn_pause, self.spawn_stuck_since = 0.1, 0.0
        if isinstance(child, SpawnFailed):
            self._never_ran(run, child)
            return
        attempt.slot = slot.index
        self._watch(child, run)

    def _watch(self, child: Child, run: Running) -> None:
        i, node = run.node, self.state.plan.nodes[run.node]
        self.children[child.pidfd] = (child, run)
        self.by_node[i] = child
        self.poll.register(child.pidfd, select.EPOLLIN)
        self.unspawned.append((i, child, run.number))
        self._timer(node.timeout_s, "timeout", i, run.number)
        if not self.sizing:
            self.sizing = True
            self._timer(SIZE_CHECK_S, "size", -1)

    def _never_ran(self, run: Running, why: SpawnFailed) -> None:
        """The command could not be started at all: an outcome, as from a shell (126, 127)."""
        node = self.state.plan.nodes[run.node]
        self.logs.release(run.slot, node.id, run.number)
        code = 127 if why.errno == 2 else 126
        text = self.bench.mask.text(why.message)
        failure = AttemptFinished(node=node.id, attempt=run.number, outcome=Outcome.FAILED, exit_code=code, error=text)
        self.facts.append(failure)

    def _busy(self, i: int, command: Command, why: str) -> None:
        """The machine is short of processes or descriptors: fewer at a time, and try again later."""
        now = monotonic()
        if not self.spawn_stuck_since or self.children:  # the end of a command gives back what it held
            self.spawn_stuck_since = now
        if now - self.spawn_stuck_since > SPAWN_PATIENCE_S:
            raise EnvironmentFault(
                f"no process could be started for {SPAWN_PATIENCE_S:g} s: {why}",
                hint=f"raise the limit (ulimit -u, ulimit -n) and go on: dagrun resume {self.run_dir.id}",
            )
        if not self.waiting:
            alive = max(1, len(self.children))
            if alive < self.room.parallel:
                self.room = Room(alive, self.room.resources)
                self.facts.append(Warned(text=f"{why}: from now on {alive} at a time"))
        if not self.waiting:
            self._timer(self.spawn_pause, "spawn", -1)
            self.spawn_pause = min(self.spawn_pause * 2, 5.0)
        self.waiting.append((i, command))

    # ------------------------------------------------------------ ending

    def _reaped(self, fd: int, child: Child, run: Running, facts: list[Event]) -> None:
        """The main process of an attempt is gone: end what it left, collect it, judge it."""
        self.poll.unregister(fd)
        swept = self.sandbox.sweep(child)
        exit_ = self.sandbox.reap(child)
        self.by_node.pop(run.node, None)
        if self.waiting:
            self._timer(0.0, "spawn", -1)
        node = self.state.plan.nodes[run.node]
        retire = bool(swept.count or swept.alive or swept.unattributed)
        if swept.count and run.ending is None:
            names = ", ".join(swept.names[:5])
            text = f"left {swept.count} process{'es' if swept.count > 1 else ''} behind: {names}; killed"
            facts.append(Warned(text=self.bench.mask.text(text), node=node.id))
        facts.append(conclude(self.bench, self.logs, node, run, exit_, retire=retire))
        self._collect_patch(node.id, run.command)

    def _judge_patches(self, events: list[Event]) -> None:
        from dagrun.engine.replanning import patch_from_node

        patches, self.patches = self.patches, []
        for name, data in patches:
            for event in patch_from_node(self.state, name, data):
                self._fold(event, events)

    def _collect_patch(self, node: NodeId, command: Command) -> None:
        """Remember what an attempt wrote to $DAGRUN_PATCH, to be judged under the lock."""
        try:
            data = read_bytes(command.env["DAGRUN_PATCH"], MAX_PATCH_BYTES, what="$DAGRUN_PATCH")
        except OutputError as error:
            self.facts.append(Warned(node=node, text=error.message))
            return
        if data is not None:
            self.patches.append((node, data))

    def _cancel(self, i: int, reason: str, events: list[Event]) -> None:
        child = self.by_node.get(i)
        if child is None:  # journaled as started, but the machine was short: it never ran
            self._drop_waiting(i, reason, events)
            return
        run = self.children[child.pidfd][1]
        if run.ending is None:
            self._end(child, run, Ending(Outcome.CANCELLED, f"cancelled: {reason}"), STOP_GRACE_S)

    def _drop_waiting(self, i: int, reason: str, events: list[Event]) -> None:
        kept = [item for item in self.waiting if item[0] != i]
        if len(kept) == len(self.waiting):
            return
        self.waiting = kept
        event = AttemptFinished(
            node=self.state.plan.ids[i],
            attempt=self.state.running[i].number,
            outcome=Outcome.CANCELLED,
            error=f"cancelled: {reason}",
        )
        self._fold(event, events)

    def _end(self, child: Child, run: Running, ending: Ending, at_most_s: float | None = None) -> None:
        """SIGTERM to the whole tree now, SIGKILL after the node's grace (at most `at_most_s`)."""
        run.ending = ending
        self.sandbox.terminate(child)
        grace = self.state.plan.nodes[run.node].grace_s
        self._timer(grace if at_most_s is None else min(grace, at_most_s), "kill", run.node, run.number)

    def _finish(self, finish: Finish) -> None:
        outputs = self._outputs() if finish.status is RunStatus.COMPLETED else {}
        event = RunEnded(status=finish.status, exit_code=finish.exit_code, reason=finish.reason, outputs=outputs)
        self.sandbox.end_all()
        news = self._begin()
        try:
            if news:
                return  # somebody changed the run meanwhile: the next turn decides again
            evolve(self.state, event, time(), monotonic())
            self._write([event])
        finally:
            self.journal.end()
        self._after_write([event])
        self.ended = event

    def _outputs(self) -> dict[str, Json]:
        if not self.state.plan.workflow.outputs:
            return {}
        from dagrun.engine.outputs import workflow_outputs

        return workflow_outputs(self.bench, self.state)

    # ------------------------------------------------------------ timers and signals

    def _timer(self, delay_s: float, kind: Timer, node: int, number: int = 0) -> None:
        self.timer_count += 1
        if len(self.timers) > 1024 + 8 * self.room.parallel:
            self._drop_stale_timers()
        heappush(self.timers, (monotonic() + delay_s, self.timer_count, kind, node, number))

    def _drop_stale_timers(self) -> None:
        """Forget the timeouts of attempts that are over; amortized O(1) a timer."""
        running = {(run.node, run.number) for _, run in self.children.values()}
        of_attempt = ("timeout", "kill")
        self.timers = [t for t in self.timers if t[2] not in of_attempt or (t[3], t[4]) in running]
        heapify(self.timers)

    def _due(self, kind: Timer, node: int, number: int, events: list[Event]) -> None:
        match kind:
            case "run_timeout" | "drained":
                stop = self.state.stop
                if stop is None or stop.mode == "drain":
                    self._stop(stop.cause if stop is not None else "timeout", "now", events)
            case "spawn":
                waiting, self.waiting = self.waiting, []
                for i, command in waiting:
                    self._spawn(i, command, *self._slot())
            case "size":
                self._check_sizes()
            case "review":
                asked = self.state.reviews.get(node)
                if asked is None or not asked.deadline:
                    return
                if asked.deadline <= time() + 0.01:
                    self._fold(ReviewDecided(node=asked.node, decision="timed_out", by="dagrun"), events)
                else:  # the wall clock was set back
                    self._timer(asked.deadline - time(), "review", node)
            case "timeout" | "kill":
                child = self.by_node.get(node)
                if child is not None and self.children[child.pidfd][1].number == number:
                    self._due_child(kind, child, self.children[child.pidfd][1])

    def _due_child(self, kind: Timer, child: Child, run: Running) -> None:
        node = self.state.plan.nodes[run.node]
        if kind == "kill":
            if run.ending is not None:
                run.ending.escalated = True
            self.sandbox.kill_tree(child)
            self._timer(0.2, "kill", run.node, run.number)
        elif run.ending is None:
            text = f"timed out after {format_duration(node.timeout_s)}"
            self._end(child, run, Ending(Outcome.TIMED_OUT, text))

    def _check_sizes(self) -> None:
        """Once a second: end what wrote more than it may."""
        for child, run in list(self.children.values()):
            cap = self.state.plan.nodes[run.node].output_bytes
            written = self.logs.written(run.slot)
            if written > cap and run.ending is None:
                text = f"wrote {written} bytes to stdout and stderr, more than its limit of {cap}"
                self._end(child, run, Ending(Outcome.OVER_LIMIT, text, limit="output"))
        self.sandbox.tidy()
        self.sizing = bool(self.children)
        if self.sizing:
            self._timer(SIZE_CHECK_S, "size", -1)

    def _signals(self, events: list[Event]) -> None:
        for number in self.side.read():
            cause = _SIGNALS.get(number)
            if cause is None:
                continue
            stop = self.state.stop
            if stop is not None and stop.mode == "now":
                if cause == "sigint":
                    self._kill_all_now()
            elif cause == "sigint" and stop is None and self.state.running:
                self._stop(cause, "drain", events)
                self._timer(DRAIN_S, "drained", -1)
            else:
                self._stop(stop.cause if stop is not None and cause == "sigint" else cause, "now", events)
        if not self.side.watchdog_alive:
            # the pid that the user knows was killed: what it started dies, and the journal stays as it is
            kill_everything()
            os._exit(137)

    def _stop(self, cause: StopCause, mode: Literal["drain", "now"], events: list[Event]) -> None:
        self._fold(StopRequested(cause=cause, mode=mode), events)

    def _kill_all_now(self) -> None:
        for child, run in list(self.children.values()):
            if run.ending is not None:
                run.ending.escalated = True
            self.sandbox.kill_tree(child)

    # ------------------------------------------------------------ for views, and the way out

    def tail(self, i: int) -> bytes:
        """The last bytes that running node `i` wrote: of stdout, else of stderr."""
        child = self.by_node.get(i)
        found = self.children.get(child.pidfd) if child is not None else None
        if found is None:
            return b""
        slot, mask = found[1].slot, self.bench.mask
        # the cut at the front may go through a secret: what is left of it is cut off too
        data = self.logs.tail(slot, TAIL_BYTES + mask.longest) or self.logs.tail(slot, TAIL_BYTES + mask.longest, "err")
        return mask.same_length(data)[-TAIL_BYTES:]

    def _give_up(self, why: EnvironmentFault) -> None:
        """The machine gave out: end everything, and say so in the journal."""
        self.sandbox.end_all()
        event = RunEnded(status=RunStatus.INTERRUPTED, exit_code=why.exit_code, reason=why.message)
        try:
            self.journal.append([encode(event)], epoch=self.epoch, on_news=lambda _: True)
            self.journal.sync()
        except JournalError:
            pass  # what went wrong first is what a person has to know

    def _give_up_full_disk(self, full: DiskFull) -> NoReturn:
        """No room for the journal: free the ballast, say so in it, end everything; resume works."""
        self.sandbox.end_all()
        self.run_dir.drop_ballast()
        event = RunEnded(status=RunStatus.INTERRUPTED, exit_code=full.exit_code, reason=full.message)
        texts = [encode(StopRequested(cause="disk_full", mode="now")), encode(event)]
        try:
            self.journal.append(texts, epoch=self.epoch)
            self.journal.sync()
        except JournalError:
            pass  # a journal without an end is a crashed run, which `resume` takes up as well
        what = "raise the limit (ulimit -f)" if "ulimit" in full.hint else "free some space"
        raise EnvironmentFault(full.message, hint=f"{what}, then: dagrun resume {self.run_dir.id}") from full

    def _close(self) -> None:
        """Whatever the way out: nothing that was started stays alive, nothing stays open."""
        failed = self.ended is None
        if failed:
            self.sandbox.end_all()
            try:
                self.syncer.close()
            except JournalError:
                pass  # said already: it is, or comes from, what ended the run
        closers: list[Callable[[], None]] = [self.logs.close, self.sandbox.close, self.poll.close]
        if self.notice is not None:
            closers.append(self.notice.close)
        self.observer.closed(self.state)
        for close in closers:
            close()

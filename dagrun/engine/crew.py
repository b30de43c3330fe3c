"""The attempts at work: each with its process, its log files and its deadlines, from spawn to outcome.

Knows no journal and never folds an event: what happened is handed over as facts, and whoever asks
journals them. A start is journaled before its `spawn`, so what the machine has no room for right now
waits here as a started attempt. Invariants: a child is in `_children` (by pidfd), in `_by_node` and in
the epoll from its spawn to its reaping, and nowhere after it; each attempt that was spawned becomes
exactly one AttemptFinished, and only when everything it had started is dead.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterator, Sequence
from errno import EDQUOT, EMFILE, ENFILE, ENOSPC
from time import monotonic
from typing import TYPE_CHECKING

from dagrun.core.decide import Room
from dagrun.core.event import AttemptFinished, Event, NodeSpawned, Warned
from dagrun.core.names import NodeId, Outcome, format_duration
from dagrun.core.state import RunState
from dagrun.core.workflow import Node
from dagrun.engine.attempt import Ending, Running, conclude, over_output
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.exchange import remove_exchange
from dagrun.engine.timers import Kind, Timers
from dagrun.errors import EnvironmentFault
from dagrun.sandbox.base import Child, Exit, SpawnBusy, SpawnFailed
from dagrun.sandbox.logpool import LogPool, Slot
from dagrun.sandbox.plain import Plain
from dagrun.store.disk import disk_fault
from dagrun.store.exchange import OutputError, read_bytes
from dagrun.store.rundir import RunDir

if TYPE_CHECKING:
    from dagrun.engine.agents import Agents
    from dagrun.engine.confined import Denied

TAIL_BYTES = 1024
STOP_GRACE_S = 5.0  # at most, whatever a node's grace, once the run is to stop now
KILL_AGAIN_S = 0.2  # what was forked while the tree was killed
SIZE_CHECK_S = 1.0
SPAWNED_AFTER_S = 0.005  # a command that ends sooner needs no pid in the journal
SPAWN_PAUSE_S = 0.1  # before the first try again; doubles up to SPAWN_PAUSE_MOST_S
SPAWN_PAUSE_MOST_S = 5.0
SPAWN_PATIENCE_S = 60.0
MAX_PATCH_BYTES = 1 << 20


class Crew:
    """Who works on one run now. `room` is how many may: it shrinks when the machine has no more to give.

    Its processes are registered in `poll`, its deadlines in `timers`: hand what is ready to `reap`
    and what is due to `due`. `agents` has those that are no command, once there is one. `facts` and
    `patches` (what nodes wrote to $DAGRUN_PATCH, not judged yet) grow here and are taken by the caller.
    """

    def __init__(
        self, *, state: RunState, run: RunDir, bench: Workbench, room: Room, timers: Timers, poll: select.epoll
    ) -> None:
        self.room = room
        self.facts: list[Event] = []
        self.patches: list[tuple[NodeId, bytes]] = []
        self.agents: Agents | None = None
        self._state = state
        self._run_dir = run
        self._bench = bench
        self._timers = timers
        self._poll = poll
        self._sandbox = Plain()
        bench.exempt = self._sandbox.exempt
        if bench.walls is not None:
            bench.back_ends()  # its helpers, which are children of ours already
        self._logs = LogPool(run.nodes)
        self._children: dict[int, tuple[Child, Running]] = {}
        self._by_node: dict[int, Child] = {}
        self._waiting: list[tuple[int, Command]] = []  # journaled as started, the machine is short
        self._unspawned: deque[tuple[int, Child, int]] = deque()  # spawned, pid not journaled yet
        self._pause_s = SPAWN_PAUSE_S
        self._stuck_since = 0.0
        self._sizing = False

    # ------------------------------------------------------------ starting

    def slot(self) -> tuple[Slot | None, str]:
        """Log files for an attempt, or why there are none right now. Raises EnvironmentFault."""
        try:
            return self._logs.acquire(), ""
        except OSError as error:
            nodes = self._run_dir.nodes
            if error.errno in (EMFILE, ENFILE):
                return None, error.strerror or "too many open files"
            if error.errno in (ENOSPC, EDQUOT):
                raise disk_fault("can't open log files in", nodes, error) from error
            raise EnvironmentFault(f"can't open log files in {nodes}: {error.strerror}") from error

    def spawn(self, i: int, command: Command, slot: Slot | None, why: str) -> None:
        """Spawn a journaled start; when the machine is short of something, later.

        `slot` and `why` are what `slot()` gave. Raises EnvironmentFault when the machine stays
        short for SPAWN_PATIENCE_S.
        """
        attempt = self._state.running[i]
        if slot is None:
            self._busy(i, command, why)
            return
        if command.agent is not None:
            attempt.slot = slot.index
            self._pause_s, self._stuck_since = SPAWN_PAUSE_S, 0.0
            self._agents().start(i, attempt.number, command, slot)
            return
        run = Running(i, attempt.number, command, slot, monotonic())
        node = self._state.plan.nodes[i]
        if node.secrets or node.secret_files:
            self._mask_while_it_runs(run, node)
        child: Child | SpawnFailed | Denied
        try:
            if command.spec is None:
                child = self._sandbox.spawn(
                    command.argv,
                    command.env,
                    out_fd=slot.out_fd,
                    err_fd=slot.err_fd,
                    attempt_id=command.env["DAGRUN_ATTEMPT_ID"],
                    cwd=command.cwd,
                    script=command.script,
                )
            else:
                from dagrun.engine.confined import spawn_held

                child = spawn_held(self._bench.back_ends(), self._sandbox, run)
        except SpawnBusy as busy:
            self._logs.release(slot, self._state.plan.ids[i], attempt.number)
            self._masked(run)
            self._busy(i, command, busy.message)
            return
        self._pause_s, self._stuck_since = SPAWN_PAUSE_S, 0.0
        if not isinstance(child, Child):
            self._never_ran(run, child)
            return
        attempt.slot = slot.index
        self._watch(child, run)

    def _agents(self) -> Agents:
        if self.agents is None:
            from dagrun.engine.agents import Agents

            self.agents = Agents(
                state=self._state,
                run=self._run_dir,
                bench=self._bench,
                kit=self._bench.agents(),
                timers=self._timers,
                poll=self._poll,
                sandbox=self._sandbox,
                logs=self._logs,
            )
        return self.agents

    def _mask_while_it_runs(self, run: Running, node: Node) -> None:
        from dagrun.engine.masking import LiveMask

        run.live = LiveMask(self._bench.mask, self._run_dir.nodes, node, run.number, run.slot)

    def _masked(self, run: Running) -> None:
        """All of its logs may be shown now, or there are none."""
        if run.live is not None:
            run.live.end()

    def _watch(self, child: Child, run: Running) -> None:
        i, node = run.node, self._state.plan.nodes[run.node]
        self._children[child.pidfd] = (child, run)
        self._by_node[i] = child
        self._poll.register(child.pidfd, select.EPOLLIN)
        self._unspawned.append((i, child, run.number))
        self._timers.add(node.timeout_s, "timeout", i, run.number)
        if not self._sizing:
            self._sizing = True
            self._timers.add(SIZE_CHECK_S, "size")

    def _never_ran(self, run: Running, why: SpawnFailed | Denied) -> None:
        """The command could not be started at all: an outcome, as from a shell (126, 127), or denied."""
        node = self._state.plan.nodes[run.node]
        self._logs.release(run.slot, node.id, run.number)
        self._masked(run)
        text = self._bench.mask.text(why.message)
        code = (127 if why.errno == 2 else 126) if isinstance(why, SpawnFailed) else None
        outcome = Outcome.FAILED if isinstance(why, SpawnFailed) else Outcome.DENIED
        failure = AttemptFinished(node=node.id, attempt=run.number, outcome=outcome, exit_code=code, error=text)
        self.facts.append(failure)
        self._remove_folder(run.command)

    def _busy(self, i: int, command: Command, why: str) -> None:
        """The machine is short of processes or descriptors: fewer at a time, and try again later."""
        now = monotonic()
        if not self._stuck_since or self._children:  # the end of a command gives back what it held
            self._stuck_since = now
        if now - self._stuck_since > SPAWN_PATIENCE_S:
            raise EnvironmentFault(
                f"no process could be started for {SPAWN_PATIENCE_S:g} s: {why}",
                hint=f"raise the limit (ulimit -u, ulimit -n) and go on: dagrun resume {self._run_dir.id}",
            )
        if not self._waiting:
            alive = max(1, len(self._children))
            if alive < self.room.parallel:
                self.room = Room(alive, self.room.resources)
                self.facts.append(Warned(text=f"{why}: from now on {alive} at a time"))
            self._timers.add(self._pause_s, "spawn")
            self._pause_s = min(self._pause_s * 2, SPAWN_PAUSE_MOST_S)
        self._waiting.append((i, command))

    def _spawn_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for i, command in waiting:
            self.spawn(i, command, *self.slot())

    # ------------------------------------------------------------ pids for the journal

    def outlived(self, now: float) -> Iterator[NodeSpawned]:
        """The processes that outlived SPAWNED_AFTER_S, each once, for who has to clean up after us."""
        while self._unspawned and self._unspawned[0][1].started + SPAWNED_AFTER_S <= now:
            i, child, number = self._unspawned.popleft()
            if self._by_node.get(i) is child:
                node = self._state.plan.ids[i]
                slot = self._children[child.pidfd][1].slot.index
                yield NodeSpawned(node=node, attempt=number, pid=child.pid, ticks=child.start_ticks, slot=slot)

    def next_outlived(self) -> float | None:
        """When `outlived` has to be asked again."""
        return self._unspawned[0][1].started + SPAWNED_AFTER_S if self._unspawned else None

    # ------------------------------------------------------------ the end of an attempt

    def reap(self, ready: Sequence[int]) -> list[Event]:
        """Take in those whose pidfds are ready; the facts since the last time, in order."""
        for fd in ready:
            found = self._children.pop(fd, None)
            if found is not None:
                self._reaped(fd, *found)
        if self.agents is not None:
            self.agents.ready(ready)
        facts, self.facts = self.facts, []
        return facts

    def _reaped(self, fd: int, child: Child, run: Running) -> None:
        """The main process of an attempt is gone: end what it left, collect it, judge it."""
        self._poll.unregister(fd)
        swept = self._sandbox.sweep(child)
        exit_ = self._sandbox.reap(child)
        if run.held is not None:
            exit_ = self._ended(run, exit_)
        self._by_node.pop(run.node, None)
        if self._waiting:
            self._timers.add(0.0, "spawn")
        node = self._state.plan.nodes[run.node]
        retire = bool(swept.count or swept.alive or swept.unattributed)
        if swept.count and run.ending is None:
            names = ", ".join(swept.names[:5])
            text = f"left {swept.count} process{'es' if swept.count > 1 else ''} behind: {names}; killed"
            self.facts.append(Warned(text=self._bench.mask.text(text), node=node.id))
        self.facts.append(conclude(self._bench, self._logs, node, run, exit_, retire=retire))
        self._masked(run)
        self._collect_patch(node.id, run.command)
        self._remove_folder(run.command)

    def _ended(self, run: Running, exit_: Exit) -> Exit:
        """What the back end knows of an attempt, once all of it is dead; how it really ended."""
        assert run.held is not None
        run.after = after = self._bench.back_ends().ended(run.held, exit_)
        run.held = None
        for note in after.notes:
            self.facts.append(Warned(text=self._bench.mask.text(note), node=self._state.plan.ids[run.node]))
        return after.exit or exit_

    def _remove_folder(self, command: Command) -> None:
        """The exchange of an attempt of its own goes with it: its secrets are in there."""
        if command.folder:
            remove_exchange(command.folder)

    def _collect_patch(self, node: NodeId, command: Command) -> None:
        """Remember what an attempt wrote to $DAGRUN_PATCH, to be judged under the journal's lock."""
        try:
            data = read_bytes(command.patch_path, MAX_PATCH_BYTES, what="$DAGRUN_PATCH")
        except OutputError as error:
            self.facts.append(Warned(node=node, text=self._bench.mask.text(error.message)))
            return
        if data is not None:
            if self._bench.mask:  # a patch is journaled as it was written
                text = self._bench.mask.text(data.decode("utf-8", "surrogateescape"))
                data = text.encode("utf-8", "surrogateescape")
            self.patches.append((node, data))

    # ------------------------------------------------------------ ending an attempt

    def cancel(self, i: int, reason: str) -> AttemptFinished | None:
        """End the attempt of node `i`; its outcome, if it had not been spawned yet."""
        if self.agents is not None and i in self.agents:
            self.agents.cancel(i, Ending(Outcome.CANCELLED, f"cancelled: {reason}"))
            return None
        child = self._by_node.get(i)
        if child is None:  # journaled as started, but the machine was short: it never ran
            return self._drop_waiting(i, reason)
        run = self._children[child.pidfd][1]
        if run.ending is None:
            self._end(child, run, Ending(Outcome.CANCELLED, f"cancelled: {reason}"), STOP_GRACE_S)
        return None

    def _drop_waiting(self, i: int, reason: str) -> AttemptFinished | None:
        before = self._waiting
        kept = [item for item in before if item[0] != i]
        if len(kept) == len(before):
            return None
        self._waiting = kept
        self._remove_folder(next(command for number, command in before if number == i))
        return AttemptFinished(
            node=self._state.plan.ids[i],
            attempt=self._state.running[i].number,
            outcome=Outcome.CANCELLED,
            error=f"cancelled: {reason}",
        )

    def _end(self, child: Child, run: Running, ending: Ending, at_most_s: float | None = None) -> None:
        """SIGTERM to the whole tree now, SIGKILL after the node's grace (at most `at_most_s`)."""
        run.ending = ending
        if run.held is None or self._bench.back_ends().terminate(run.held, child) < 0:
            self._sandbox.terminate(child)
        grace = self._state.plan.nodes[run.node].grace_s
        self._timers.add(grace if at_most_s is None else min(grace, at_most_s), "kill", run.node, run.number)

    def _kill(self, child: Child, run: Running) -> None:
        if run.ending is not None:
            run.ending.escalated = True
        if run.held is None or self._bench.back_ends().kill(run.held, child) < 0:
            self._sandbox.kill_tree(child)

    def kill_now(self) -> None:
        """SIGKILL to every tree, whatever grace is left; their ends come as those of others do."""
        for child, run in list(self._children.values()):
            self._kill(child, run)
        if self.agents is not None:
            self.agents.kill_all()

    def end_all(self) -> None:
        """SIGKILL everything that was ever started here, until none of it is left."""
        for child, run in self._children.values():
            if run.held is not None:
                self._bench.back_ends().kill(run.held, child)
        self._sandbox.end_all()

    # ------------------------------------------------------------ what is due

    def due(self, kind: Kind, node: int, number: int) -> None:
        """Do what this timer was set for, unless its attempt is over."""
        if kind == "spawn":
            self._spawn_waiting()
        elif kind == "size":
            self._check_sizes()
        elif self.agents is not None and node in self.agents:
            self._agent_due(self.agents, kind, node, number)
        else:
            child = self._by_node.get(node)
            if child is None or self._children[child.pidfd][1].number != number:
                return
            run = self._children[child.pidfd][1]
            if kind == "kill":
                self._kill(child, run)
                self._timers.add(KILL_AGAIN_S, "kill", node, number)
            elif run.ending is None:
                text = f"timed out after {format_duration(self._state.plan.nodes[node].timeout_s)}"
                self._end(child, run, Ending(Outcome.TIMED_OUT, text))

    def _agent_due(self, agents: Agents, kind: Kind, node: int, number: int) -> None:
        if kind == "timeout":
            text = f"timed out after {format_duration(self._state.plan.nodes[node].timeout_s)}"
            agents.cancel(node, Ending(Outcome.TIMED_OUT, text))
        elif kind == "kill":
            agents.kill(node)
        else:
            agents.timer(node, number)

    def _check_sizes(self) -> None:
        """Once a second: end what wrote more than it may, mask what is to be masked while it runs."""
        live = []
        for child, run in list(self._children.values()):
            cap = self._state.plan.nodes[run.node].output_bytes
            written = self._logs.written(run.slot)
            if written > cap and run.ending is None:
                self._end(child, run, Ending(Outcome.OVER_LIMIT, over_output(written, cap), limit="output"))
            if run.live is not None:
                live.append(run.live)
        if live:
            from dagrun.engine.masking import mask_in_turn

            mask_in_turn(live)
        self._sandbox.tidy()
        self._sizing = bool(self._children)
        if self._sizing:
            self._timers.add(SIZE_CHECK_S, "size")

    # ------------------------------------------------------------ for views, and the way out

    def tail(self, i: int) -> bytes:
        """The last bytes that running node `i` wrote: of stdout, else of stderr; what an agent is at."""
        if self.agents is not None and i in self.agents:
            return self.agents.tail(i)
        child = self._by_node.get(i)
        found = self._children.get(child.pidfd) if child is not None else None
        if found is None:
            return b""
        slot, mask = found[1].slot, self._bench.mask
        # the cut at the front may go through a secret: what is left of it is cut off too
        most = TAIL_BYTES + mask.longest
        data = self._logs.tail(slot, most) or self._logs.tail(slot, most, "err")
        data = data[: len(data) - mask.pending(data)]
        return mask.same_length(data)[-TAIL_BYTES:]

    def abandon(self) -> None:
        """Every process is dead already: remove what back ends have outside of the tree."""
        if self.agents is not None:
            self.agents.close()
        if self._bench.walls is not None:
            self._bench.walls.close()

    def close(self) -> None:
        """Give back what is open. Nothing may be running."""
        self._logs.close()
        self.abandon()
        self._sandbox.close()

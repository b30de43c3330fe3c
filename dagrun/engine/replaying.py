"""A recorded run played again: every answer, tool result, command, decision and patch comes from the record.

The engine does all that it does in any run; only what comes from outside of it comes from here, in the order
in which it was recorded. Something is let go when the engine has nothing left to do, one record of the
journal at a time, and an attempt starts when all that came before its start was let go. So each decision is
made in the state in which it was made then. What was not recorded is a ReplayMiss: no model is ever asked.

With `run_tools` commands and tools really run, and the first that comes to something else ends the run.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple, cast

from dagrun.agent.messages import Request, ToolCall
from dagrun.agent.prices import Price, price_from_json
from dagrun.agent.prompt import ToolOutput
from dagrun.agent.replay import Clean, Replay, ReplayMiss, tool_difference
from dagrun.core.event import (
    AttemptFinished,
    EngineAttached,
    Event,
    NodeSkipped,
    NodeStarted,
    ReviewRequested,
    ToolsListed,
    event_type,
)
from dagrun.core.names import Json, NodeId, Outcome
from dagrun.core.state import InvalidTransition, RunState
from dagrun.core.workflow import Node
from dagrun.engine.attempt import Ending
from dagrun.engine.bench import Workbench
from dagrun.engine.providers import Answered, Asked, Never, News
from dagrun.engine.recordedends import HINT, Present, apart, copy_artifacts, end_of, outputs_of
from dagrun.engine.recording import Record, Trial, calls_of, read, recording_of, repeated
from dagrun.engine.retold import tell

if TYPE_CHECKING:
    from dagrun.engine.confine import Prepared
    from dagrun.engine.crew import Crew


class _Held(NamedTuple):
    """Something that waits to be let go: an event, an answer, how the engine ended an agent."""

    position: int
    order: int  # in one place: how an attempt was ended stands before its last answer
    what: Event | Answered | tuple[NodeId, Ending]


_BY_CLOCK = frozenset({Outcome.TIMED_OUT, Outcome.CANCELLED})


class Replayer:
    """One record being played. Asked and collected from as any source of answers.

    `clean` goes over every text of which an error shows a part (secrets).
    """

    costs = False
    wants_write = False

    def __init__(self, record: Record, *, run_tools: bool = False, clean: Clean = str) -> None:
        self.run_tools = run_tools
        self._record = record
        self._clean = clean
        story = tell(record)
        self._trials = {node: repeated(tried) for node, tried in story.trials.items()}
        self._held = [_Held(position, 0, event) for position, event in story.outside]  # in order: a heap
        self._evidence = {node: deque(shown) for node, shown in story.evidence.items()}
        self._replay = Replay(recording_of(record, story.trials), clean)
        self._now: dict[NodeId, Present] = {}
        self._coming: dict[tuple[NodeId, str], deque[int]] = defaultdict(deque)
        self._find_calls()
        self._facts: list[Event] = []
        self._endings: list[tuple[NodeId, Ending]] = []
        self._answers: list[Answered] = []
        self._missed: ReplayMiss | None = None

    def _find_calls(self) -> None:
        for node, tried in self._trials.items():
            for trial in tried:
                for call in calls_of(self._record, trial):
                    if call.answer is not None:
                        self._coming[node, call.reserved.digest].append(call.position)

    # ------------------------------------------------------------ what the new run takes over

    @property
    def name(self) -> str:
        """Who answered when it was recorded."""
        return self._record.workflow.provider.kind

    @property
    def run_id(self) -> str:
        """The id of the recorded run, which its prompts may name."""
        return self._record.created.run_id

    @property
    def project(self) -> str:
        """The folder of the recorded run, which its prompts may name."""
        return self._record.created.project

    def prices(self) -> dict[str, Price]:
        """The prices that the recorded calls had."""
        found: dict[str, Price] = {}
        for tried in self._trials.values():
            for trial in tried:
                said = trial.started.agent.get("prices") if trial.started is not None else None
                for data in cast("list[dict[str, Json]]", said or []):
                    price = price_from_json(data)
                    found.setdefault(price.model, price)
        return found

    def listed(self, node: NodeId, number: int, server: str) -> tuple[str, list[Json]] | Never | None:
        """(digest, definitions) that an MCP server gave an attempt; Never where it gave none, None with tools run."""
        trial = None if self.run_tools else self._trial(node, number)
        if trial is None:
            return None
        for _, _, event in trial.deeds:
            if isinstance(event, ToolsListed) and event.server == server:
                where = f"{self._record.name}, node {node}, tools of {server}"
                return event.digest, cast("list[Json]", read(self._record, event.tools, where) or [])
        self._end_it(node)
        return Never()

    # ------------------------------------------------------------ attempts

    def _trial(self, node: NodeId, number: int) -> Trial | None:
        tried = self._trials.get(node, ())
        return tried[number - 1] if 0 < number <= len(tried) else None

    def may_start(self, state: RunState, i: int) -> bool:
        """Whether all that came before the next attempt of a node was let go."""
        trial = self._trial(state.plan.ids[i], len(state.attempts[i]) + 1)
        return trial is None or not self._held or self._held[0].position > trial.begun

    def takes(self, bench: Workbench, state: RunState, i: int, made: Prepared, fold: Callable[[Event], None]) -> bool:
        """Whether an attempt that would do `made` is none for the engine, as its end is here.

        Raises ReplayMiss where no such attempt was recorded.
        """
        if isinstance(made, NodeSkipped | AttemptFinished):
            return False  # follows from the workflow and what was before
        node, number = state.plan.nodes[i], len(state.attempts[i]) + 1
        trial = self._trial(node.id, number)
        if trial is None:
            raise self._no_trial(node.id, number)
        if isinstance(made, ReviewRequested):
            return False
        if node.agent is not None and trial.started is not None:
            made.sandbox = made.sandbox if self.run_tools else trial.started.sandbox
            now = self._now[node.id] = Present(trial)
            if trial.finished is not None and trial.finished.outcome in _BY_CLOCK and now.ends_asking:
                self._end_it(node.id)
            return False
        if self.run_tools:
            return False
        finished = end_of(self._record, bench.context, node, number, made, trial)
        if trial.started is None:  # injected when it was recorded
            fold(finished)
            return True
        fold(
            NodeStarted(
                node=node.id,
                attempt=number,
                revision=state.plan.revision,
                inputs_digest=made.inputs_digest,
                sandbox=trial.started.sandbox,
            )
        )
        heappush(self._held, _Held(trial.ended, 0, finished))
        return True

    def without_files(self, node: Node) -> Node:
        """An agent's node without what its tools would make in files: they were not run."""
        if self.run_tools:
            return node
        outputs = {name: output for name, output in node.outputs.items() if output.source != "file"}
        return replace(node, outputs=outputs, artifacts=())

    def ended(self, bench: Workbench, node: Node, event: AttemptFinished) -> AttemptFinished:
        """The end of an agent's attempt with what only the record knows: files of its tools, what it took."""
        trial = self._trial(event.node, event.attempt)
        if self.run_tools or trial is None or trial.finished is None:
            return event
        was = trial.finished
        event = replace(event, duration_ms=was.duration_ms, cpu_ms=was.cpu_ms, max_rss_bytes=was.max_rss_bytes)
        if event.outcome is not Outcome.COMPLETED:
            return event
        copy_artifacts(self._record, bench.context, was)
        files = {n: ref for n, ref in outputs_of(self._record, bench.context, was).items() if _is_file(node, n)}
        return replace(event, outputs={**event.outputs, **files}, artifacts=was.artifacts)

    def evidence(self, failed: NodeId) -> dict[str, Json] | None:
        """What a replanner was shown of a failure, logs and all, at this time of asking; None where none was."""
        shown = self._evidence.get(failed)
        return shown.popleft() if shown else None

    def _no_trial(self, node: NodeId, number: int) -> ReplayMiss:
        tried = len(self._trials.get(node, ()))
        if not tried:
            return ReplayMiss(f"node `{node}` did not run when {self._record.name} was recorded", hint=HINT)
        times = "once" if tried == 1 else f"{tried} times"
        return ReplayMiss(f"node `{node}` is tried again, it was tried {times} in {self._record.name}", hint=HINT)

    # ------------------------------------------------------------ letting go

    def release(self, state: RunState) -> bool:
        """Let go of the next record's part, as nothing else is left to do; whether there was any."""
        if not self._held or self.at_revival or self._too_early(state):
            return self._missed is not None
        seq = self._record.told[self._held[0].position].seq
        while self._held and self._record.told[self._held[0].position].seq == seq:
            what = heappop(self._held).what
            if isinstance(what, Answered):
                self._answers.append(what)
            elif isinstance(what, tuple):
                self._endings.append(what)
            else:
                self._facts.append(what)
        return True

    def _too_early(self, state: RunState) -> bool:
        """Whether something that really runs ended before that was recorded."""
        if not self.run_tools or isinstance(self._held[0].what, Answered):
            return False
        for i, attempt in state.running.items():
            trial = self._trial(state.plan.ids[i], attempt.number)
            if trial is not None and -1 < trial.ended < self._held[0].position:
                return True
        return False

    def go_on(
        self, bench: Workbench, state: RunState, crew: Crew, facts: Sequence[Event], fold: Callable[[Event], None]
    ) -> None:
        """Let what was let go happen; hold what really ended to the record. Raises ReplayMiss."""
        for fact in facts:
            self._check(bench, fact)
        happened, self._facts = self._facts, []
        for event in happened:
            try:
                fold(event)
            except (InvalidTransition, KeyError, ValueError) as error:
                text = f"{event_type(event)} can't happen here as it was recorded: {error}"
                raise ReplayMiss(self._clean(text), hint=HINT) from error
        endings, self._endings = self._endings, []
        for node, ending in endings:
            if crew.agents is not None and state.plan.index[node] in crew.agents:
                crew.agents.cancel(state.plan.index[node], ending)

    def revival(self) -> EngineAttached | None:
        """That somebody took the run up where it is about to end now; `release` does not let that go."""
        if not self.at_revival:
            return None
        event = cast(EngineAttached, heappop(self._held).what)
        return replace(event, pid=os.getpid())

    @property
    def at_revival(self) -> bool:
        """Whether what comes next is that somebody took the run up again."""
        return bool(self._held) and isinstance(self._held[0].what, EngineAttached)

    def _check(self, bench: Workbench, fact: Event) -> None:
        """Hold the end of a command that really ran to the record. Raises ReplayMiss."""
        if not self.run_tools or not isinstance(fact, AttemptFinished):
            return
        trial = self._trial(fact.node, fact.attempt)
        if trial is None or trial.finished is None or trial.node.agent is not None:
            return
        text = apart(self._record, bench.context, trial.finished, fact)
        if text:
            where = f"command of node `{fact.node}`, attempt {fact.attempt}"
            raise ReplayMiss(f"{where}: {self._clean(text)}", hint=_RERUN)

    # ------------------------------------------------------------ a source of answers

    def ask(self, key: int, asked: Asked, request: Request, timeout_s: float, now: float) -> float | None:
        """Ask the record; a miss comes out of `collect`."""
        coming = self._coming.get((asked.node, request.digest()))
        if coming:
            answer = self._replay.answer(asked.node, request)
            heappush(self._held, _Held(coming.popleft(), 1, Answered(key, answer)))
            self._now[asked.node].done += 1
            return None
        if self._was_over(asked.node):
            self._end_it(asked.node)
            return None
        try:
            self._replay.answer(asked.node, request)
        except ReplayMiss as miss:
            self._missed = miss
        return 0.0

    def _was_over(self, node: NodeId) -> bool:
        """Whether the engine of the record ended the present attempt of a node where more is asked for now."""
        now = self._now[node]
        finish = now.trial.finished
        return finish is not None and finish.outcome is not Outcome.COMPLETED and now.done >= now.answered

    def _end_it(self, node: NodeId) -> None:
        """End an attempt as it was ended, when its time has come."""
        now = self._now[node]
        finish = now.trial.finished
        if finish is not None and not now.over:
            now.over = True
            ending = Ending(finish.outcome, finish.error, finish.limit)
            heappush(self._held, _Held(now.last, 0, (node, ending)))

    def cancel(self, key: int) -> None:
        """Nobody waits for this answer any more."""
        kept = [h for h in self._held if not (isinstance(h.what, Answered) and h.what.key == key)]
        self._held = sorted(kept, key=lambda held: held.position)

    def collect(self, now: float) -> list[News]:
        """The answers that were let go. Raises ReplayMiss for the first question that was not recorded."""
        if self._missed is not None:
            raise self._missed
        answers, self._answers = self._answers, []
        return [*answers]

    def fileno(self) -> int:
        """Nothing to wait for: see `release`."""
        return -1

    def tool(self, node: NodeId, call: ToolCall) -> ToolOutput | Never | None:
        """The recorded result; None where tools are run. Raises ReplayMiss."""
        if self.run_tools:
            return None
        try:
            output = self._replay.tool(node, call)
        except ReplayMiss:
            if not self._was_over(node):
                raise
            self._end_it(node)
            return Never()
        self._now[node].done += 1
        return output

    def ran(self, node: NodeId, call: ToolCall, output: ToolOutput) -> None:
        """Hold the result of a tool that really ran to the record. Raises ReplayMiss for the first that differs."""
        if not self.run_tools:
            return
        self._now[node].done += 1
        differs = tool_difference(self._replay.tool(node, call), output, self._clean)
        if differs:
            text = f"node `{node}`, {call.name}: its result differs from the recorded one:\n{differs}"
            raise ReplayMiss(text, hint=_RERUN)

    # ------------------------------------------------------------ decisions that went by the clock

    def left_alone(self, node: NodeId, call: int) -> list[str]:
        """The models that were passed over for a call of the present attempt because they would have to wait."""
        now = self._now.get(node)
        return now.left_alone(call) if now is not None else []

    def ends(self, node: NodeId, call: int) -> bool:
        """Whether the present attempt failed before this call of it was made; its end comes from the record then."""
        now = self._now.get(node)
        if now is None or now.trial.finished is None or now.trial.finished.outcome is not Outcome.FAILED:
            return False
        if call <= len(now.reserved):
            return False
        self._end_it(node)
        return True

    def unused(self) -> dict[NodeId, int]:
        """How many recorded calls of each node nobody asked for (yet)."""
        return self._replay.unused()

    def close(self) -> None:
        """Nothing to give back."""


_RERUN = "the project or the machine is not as it was: run it again, or leave out --run-tools"


def _is_file(node: Node, name: str) -> bool:
    return name in node.outputs and node.outputs[name].source == "file"

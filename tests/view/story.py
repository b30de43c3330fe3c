"""Runs made of events, with times that the test decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from dagrun.core.decide import Append, Finish, Room, Start, decide
from dagrun.core.event import (
    AttemptFinished,
    EngineAttached,
    Event,
    NodeStarted,
    RunCreated,
    RunEnded,
    StopRequested,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import Outcome, RunStatus, Schedule
from dagrun.core.plan import compile_plan
from dagrun.core.state import RunState, new_state
from dagrun.core.workflow import Node, Retry, Workflow

BEGIN = 1_700_000_000.0


class Story:
    """A run whose engine is the test: `at` moves the clock, events are told to `observers`."""

    def __init__(self, nodes: Sequence[Node], *, parallel: int = 4, attach: bool = True, **kw: object) -> None:
        workflow = Workflow(name="release-notes", nodes={n.id: n for n in nodes}, file="flow.yaml", **kw)  # type: ignore[arg-type]
        self.plan = compile_plan(workflow)
        created = RunCreated(
            format=1, run_id="r7k2", workflow="release-notes", file="flow.yaml", schedule=workflow.schedule
        )
        self.state: RunState = new_state(self.plan, created, BEGIN)
        self.now_m = 100.0
        self.told: list[tuple[float, Event]] = []
        self.observers: list = []
        self.parallel = parallel
        if attach:
            self.tell(EngineAttached(pid=1, parallel=parallel))

    @property
    def now(self) -> float:
        return BEGIN + self.now_m - 100.0

    def at(self, seconds: float) -> Self:
        """So many seconds after the run began."""
        self.now_m = 100.0 + seconds
        return self

    def tell(self, *events: Event) -> Self:
        for event in events:
            evolve(self.state, event, self.now, self.now_m)
            self.told.append((self.now, event))
        for observer in self.observers:
            observer.recorded(events, self.state)
        return self

    def start(self, *names: str) -> Self:
        index = self.plan.index
        return self.tell(*[NodeStarted(node=n, attempt=len(self.state.attempts[index[n]]) + 1) for n in names])

    def end(self, name: str, outcome: Outcome = Outcome.COMPLETED, then: Sequence[Event] = (), **kw: object) -> Self:
        """End an attempt; `then` are events of the same batch."""
        i = self.plan.index[name]
        attempt = self.state.attempts[i][-1]
        took = round((self.now_m - attempt.started_m) * 1000)
        kw.setdefault("duration_ms", took)
        event = AttemptFinished(node=name, attempt=attempt.number, outcome=outcome, **kw)  # type: ignore[arg-type]
        return self.tell(event, *then)

    def settle(self) -> Self:
        """Carry out what follows from the state alone: skips and cancels."""
        for effect in decide(self.state, self.now_m, Room(0, {})):
            if isinstance(effect, Append):
                self.tell(effect.event)
        return self

    def finish(self) -> Self:
        """Run to the end, each node left completing in a second."""
        room = Room(self.parallel, {})
        while True:
            effects = decide(self.state, self.now_m, room)
            for effect in effects:
                if isinstance(effect, Append):
                    self.tell(effect.event)
                elif isinstance(effect, Start):
                    self.start(self.plan.ids[effect.node])
                elif isinstance(effect, Finish):
                    return self.tell(RunEnded(status=effect.status, exit_code=effect.exit_code, reason=effect.reason))
            if not effects:
                self.now_m += 1
                for i in list(self.state.running):
                    self.end(self.plan.ids[i])

    def stop(self, status: RunStatus = RunStatus.INTERRUPTED) -> Self:
        self.tell(StopRequested(cause="sigint", mode="now"))
        for i in list(self.state.running):
            self.end(self.plan.ids[i], Outcome.CANCELLED)
        return self.tell(RunEnded(status=status, exit_code=130, reason="stopped by sigint"))


def node(name: str, *needs: str, **kw: object) -> Node:
    return Node(id=name, run="true", needs=needs, **kw)  # type: ignore[arg-type]


def release_notes(**kw: object) -> Story:
    """The run of the mock: one failed, one to be retried, two running, some to come."""
    retry = Retry(max_attempts=3, delay_s=6.0, jitter=0.0)
    story = Story(
        [
            node("collect-prs"),
            node("fetch-deps"),
            node("lint-docs", "collect-prs", retry=Retry(max_attempts=3, delay_s=0.5, jitter=0.0)),
            node("summarise-prs", "collect-prs", retry=retry),
            node("draft-notes", "collect-prs", retry=retry),
            node("test-linux", "fetch-deps", title="the tests"),
            node("scan-deps", "fetch-deps"),
            node("assemble", "lint-docs", "draft-notes"),
            node("publish", "assemble"),
            node("announce", "publish"),
        ],
        schedule=Schedule.READY,
        **kw,  # type: ignore[arg-type]
    )
    story.start("collect-prs", "fetch-deps")
    story.at(12).end("collect-prs", summary="40 pull requests").start("lint-docs", "summarise-prs")
    for when in (16, 21, 27):
        story.at(when).end("lint-docs", Outcome.FAILED, exit_code=2, summary="14 dead links")
        if when < 27:
            story.at(when + 1).start("lint-docs")
    story.at(40).end("fetch-deps").start("test-linux", "draft-notes")
    story.at(96).end("summarise-prs", Outcome.FAILED, exit_code=75, summary="429 from provider")
    return story.settle().at(98)

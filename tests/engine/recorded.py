"""Recorded runs made by hand: events of agents as an engine journals them, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from dagrun.agent.messages import Answer, CallFailed, Message, Reply, Request, answer_to_json
from dagrun.agent.record import delta
from dagrun.core.event import (
    FORMAT,
    AttemptFinished,
    CallEnded,
    CallReserved,
    EngineAttached,
    Event,
    NodeStarted,
    RunCreated,
    StopRequested,
    ToolEnded,
)
from dagrun.core.names import Json, Outcome
from dagrun.core.workflow import Agent, Node, Retry, Workflow
from dagrun.engine.recording import Record, Told

NODE = Node(id="a", agent=Agent(prompt="Think."), retry=Retry(max_attempts=5, delay_s=0))
RATE = CallFailed(kind="rate_limit", message="slow down", status=429, retry_after_s=2.0)


def asks(*said: str, model: str = "v/m", max_tokens: int = 100) -> Request:
    """A request whose conversation is `said`."""
    return Request(
        model=model, messages=tuple(Message(role="user", content=text) for text in said), max_tokens=max_tokens
    )


def says(text: str) -> Reply:
    return Reply(text=text, model="v/m")


class Story:
    """A journal as it grows. Each method adds the events of one record."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.number = self.call = 0
        self.before: Request | None = None
        self.add(RunCreated(format=FORMAT, run_id="r7k2", workflow="w"), EngineAttached(pid=1))

    def add(self, *events: Event) -> Story:
        seq = len({told.seq for told in self.told}) + 1
        self.told += [Told(1000.0 + seq, 10.0 + seq, seq, event) for event in events]
        return self

    def start(self) -> Story:
        self.number, self.call, self.before = self.number + 1, 0, None
        return self.add(NodeStarted(node="a", attempt=self.number, agent={"model": "v/m"}))

    def ask(self, request: Request, answer: Answer | None = None, *, tries: int = 1, reused: str = "") -> Story:
        self.call += 1
        kept: Mapping[str, Json] = {"v": delta(request, self.before)}
        self.before = request
        self.add(
            CallReserved(
                node="a",
                attempt=self.number,
                call=self.call,
                turn=1,
                tries=tries,
                model=request.model,
                max_tokens=request.max_tokens,
                digest=request.digest(),
                request=kept,
            )
        )
        if answer is None:
            return self
        ref: Mapping[str, Json] = {"v": cast(Json, answer_to_json(answer))}
        failed = isinstance(answer, CallFailed)
        books = "release" if failed or reused else "settle"
        return self.add(
            CallEnded(node="a", attempt=self.number, call=self.call, books=books, answer=ref, reused=reused)  # type: ignore[arg-type]
        )

    def tool(self, number: int, name: str, arguments: dict[str, Json], text: str, *, ok: bool = True) -> Story:
        return self.add(
            ToolEnded(
                node="a",
                attempt=self.number,
                number=number,
                turn=1,
                name=name,
                ok=ok,
                arguments={"v": arguments},
                text={"v": text},
            )
        )

    def end(self, outcome: Outcome = Outcome.COMPLETED) -> Story:
        return self.add(AttemptFinished(node="a", attempt=self.number, outcome=outcome))

    def crash(self) -> Story:
        """The engine dies, and another one takes the run up."""
        lost = AttemptFinished(node="a", attempt=self.number, outcome=Outcome.LOST)
        return self.add(EngineAttached(pid=2), lost)

    def interrupt(self) -> Story:
        """Ctrl-C, and the run is taken up again."""
        self.add(StopRequested(cause="sigint", mode="now"))
        self.end(Outcome.CANCELLED)
        return self.add(EngineAttached(pid=3))

    def record(self) -> Record:
        return Record(
            name="run r7k2",
            workflow=Workflow(name="w", nodes={"a": NODE}),
            told=tuple(self.told),
            value=lambda ref: ref["v"],
        )

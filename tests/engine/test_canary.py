"""A token of one agent reaches the requests of another only along declared inputs, whatever the graph; and the audit
explains all of them.

The prompts are made by the engine's own code, from a state that is folded event by event.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagrun.agent import fake
from dagrun.agent.loop import START, effect, step
from dagrun.agent.messages import Reply, Request, ToolCall, answer_to_json
from dagrun.agent.record import delta
from dagrun.agent.steps import Answered, CallModel, CallTool, Finish, ToolReturned
from dagrun.core.event import (
    FORMAT,
    AttemptFinished,
    CallEnded,
    CallReserved,
    EngineAttached,
    Event,
    NodeStarted,
    RunCreated,
    ToolEnded,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import Json, NodeId, Outcome
from dagrun.core.plan import compile_plan
from dagrun.core.state import new_state
from dagrun.core.workflow import Agent, Input, Node, Output, Provider, Workflow
from dagrun.engine.auditing import audit
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.inputs import prepare_rich
from dagrun.engine.providers import FakeSource, Kit
from dagrun.engine.recording import Record, Told
from dagrun.store.context import ContextStore
from dagrun.store.rundir import RunDir

KINDS = ("prompt", "tool", "reply")


@dataclass(frozen=True)
class Shape:
    """A graph of agents: for each, the earlier ones whose output it declares, and those it only waits for.

    `echoes`: its answer repeats all that it was shown, as a hostile or talkative model does.
    """

    inputs: list[list[int]]
    waits: list[list[int]]
    echoes: list[bool]

    def paths_to(self, j: int) -> set[int]:
        """The nodes whose output may reach node `j`."""
        found: set[int] = set()
        todo = [j]
        while todo:
            for i in self.inputs[todo.pop()]:
                if i not in found:
                    found.add(i)
                    todo.append(i)
        return found


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    n = draw(st.integers(1, 6))
    some = [st.lists(st.sampled_from(range(j)), unique=True, max_size=3) if j else st.just([]) for j in range(n)]
    inputs = [draw(one) for one in some]
    waits = [draw(one) for one in some]
    return Shape(inputs, waits, draw(st.lists(st.booleans(), min_size=n, max_size=n)))


def token(kind: str, i: int) -> str:
    return f"<{kind}-{i}-canary>"


def workflow(shape: Shape) -> Workflow:
    nodes = {}
    for j, sources in enumerate(shape.inputs):
        shown = "".join(f" ${{{{ inputs.i{i} }}}}" for i in sources[::2])  # the others are declared, not mentioned
        nodes[f"n{j}"] = Node(
            id=f"n{j}",
            agent=Agent(prompt=f"Do {token('prompt', j)}.{shown}", tools=("Read",)),
            inputs={f"i{i}": Input(expression=f"nodes.n{i}.text") for i in sources},
            needs=tuple(f"n{i}" for i in shape.waits[j]),
            outputs={"text": Output()},
        )
    return Workflow(name="w", nodes=nodes, provider=Provider(kind="fake"))


@dataclass
class Engine:
    """Carries out a plan of agents one after the other, and journals it."""

    flow: Workflow
    shape: Shape
    folder: Path
    told: list[Told] = field(default_factory=list)
    sent: dict[NodeId, list[Request]] = field(default_factory=dict)

    def run(self) -> Record:
        run = RunDir(str(self.folder), "r7k2")
        created = RunCreated(format=FORMAT, run_id="r7k2", workflow="w", project=str(self.folder))
        self.state = new_state(compile_plan(self.flow), created, 1.0)
        self.told.append(Told(1.0, 1.0, 1, created))
        self.context = ContextStore(run)
        self.bench = Workbench(
            run_id="r7k2",
            run_path="",
            key="",
            project=str(self.folder),
            params={},
            workflow="w",
            secrets={},
            secret_env={},
            context=self.context,
            exchange=str(self.folder),
            environ=os.environ,
            kit=Kit(source=FakeSource(fake.load(b"rules: []", "rules.yaml")), fake=True),
        )
        self.fold(EngineAttached(pid=1))
        for i in sorted(range(len(self.state.plan.ids)), key=self.state.plan.wave.__getitem__):
            self.attempt(i)
        return Record(name="run r7k2", workflow=self.flow, told=tuple(self.told), value=self.context.get)

    def fold(self, event: Event) -> None:
        at = 1.0 + len(self.told)
        evolve(self.state, event, at, at)
        self.told.append(Told(at, at, len(self.told) + 1, event))

    def attempt(self, i: int) -> None:
        name = self.state.plan.ids[i]
        made = prepare_rich(self.bench, self.state, i, 1, {}, f"{self.folder}/{name}.")
        assert isinstance(made, Command)
        assert made.agent is not None
        task, state, before, number = made.agent.task, START, None, 0
        self.fold(NodeStarted(node=name, attempt=1, inputs_digest=made.inputs_digest, agent=made.agent.started))
        while not isinstance(due := effect(task, state), Finish):
            if isinstance(due, CallModel):
                number += 1
                reply = self.reply(int(name[1:]), due.request, number)
                self.asked(name, number, due.request, before, reply)
                before = due.request
                state = step(task, state, Answered(reply, due.request.max_tokens))
            else:
                state = step(task, state, self.used(name, due))
        assert due.outcome is Outcome.COMPLETED
        outputs = {"text": cast(Json, self.context.put(due.text))}
        self.fold(AttemptFinished(node=name, attempt=1, outcome=Outcome.COMPLETED, outputs=outputs))

    def reply(self, j: int, request: Request, number: int) -> Reply:
        self.sent.setdefault(f"n{j}", []).append(request)
        if number == 1:
            call = ToolCall(id="c", name="Read", arguments={"file_path": "x"})
            return Reply(text="I look.", tool_calls=(call,), finish="tool_calls")
        heard = "".join(m.content for m in request.messages) if self.shape.echoes[j] else ""
        return Reply(text=f"{token('reply', j)} {heard}")

    def asked(self, name: NodeId, number: int, request: Request, before: Request | None, reply: Reply) -> None:
        kept = self.context.put(cast(Json, delta(request, before)))
        self.fold(
            CallReserved(
                node=name,
                attempt=1,
                call=number,
                turn=number,
                model=request.model,
                max_tokens=request.max_tokens,
                digest=request.digest(),
                request=kept,
            )
        )
        answer = self.context.put(cast(Json, answer_to_json(reply)))
        self.fold(CallEnded(node=name, attempt=1, call=number, answer=answer))

    def used(self, name: NodeId, due: CallTool) -> ToolReturned:
        text = f"inside {token('tool', int(name[1:]))}"
        self.fold(
            ToolEnded(
                node=name,
                attempt=1,
                number=due.number,
                turn=due.turn,
                name=due.call.name,
                arguments={"v": dict(due.call.arguments or {})},
                text={"v": text},
            )
        )
        return ToolReturned(due.number, True, text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes())
def test_a_canary_is_seen_only_along_declared_paths(tmp_path: Path, shape: Shape) -> None:
    engine = Engine(workflow(shape), shape, tmp_path)
    record = engine.run()
    for j in range(len(shape.inputs)):
        seen = "".join(request.canonical() for request in engine.sent[f"n{j}"])
        reach = shape.paths_to(j)
        for i in range(len(shape.inputs)):
            for kind in KINDS:
                own = i == j and kind != "reply"  # its last reply is never sent back
                assert token(kind, i) not in seen or own or i in reach, f"{token(kind, i)} is in a request of n{j}"
        for i in shape.inputs[j]:
            assert token("reply", i) in seen
    found = audit(record)
    assert [f.problem for f in found] == [""] * len(shape.inputs)
    assert all(f.explained == f.calls == 2 for f in found)


def test_what_is_checked_can_be_seen(tmp_path: Path) -> None:
    """An echo carries a prompt's and a tool's canary over two declared steps, and not past an order without data."""
    shape = Shape(inputs=[[], [0], [1], []], waits=[[], [], [], [2]], echoes=[True] * 4)
    engine = Engine(workflow(shape), shape, tmp_path)
    engine.run()
    seen = {name: "".join(r.canonical() for r in requests) for name, requests in engine.sent.items()}
    for kind in KINDS:
        assert token(kind, 0) in seen["n2"]
        assert token(kind, 0) not in seen["n3"]
    assert token("prompt", 3) in seen["n3"]

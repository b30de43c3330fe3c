"""A run with agents made of events: calls that fail, a model that is left, a tool, an answer that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from dagrun.agent.messages import Answer, CallFailed, Message, Reply, Request, ToolCall, Usage, answer_to_json
from dagrun.agent.record import delta
from dagrun.agent.structured import reminder
from dagrun.core.event import CallEnded, CallReserved, NodeStarted, ToolEnded
from dagrun.core.names import Json, Outcome, Schedule
from dagrun.core.permissions import Permissions
from dagrun.core.workflow import Agent, Node, Provider

from .story import Story, node

CENT = 10_000_000  # a cent in nano-dollars
FAST, BIG = "anthropic/claude-haiku-4-5", "openai/gpt-5"


def get(ref: Mapping[str, Json]) -> Json:
    """The values of these runs ride in their events."""
    return ref.get("v")


class Talking(Story):
    """A story whose agents can be told to ask, to be answered and to use a tool."""

    def __init__(self, *nodes: Node, cap: int | None = 100 * CENT, **kw: object) -> None:
        models = {"cheap": (FAST, BIG)}
        permissions = Permissions(cost_budget=cap) if cap is not None else None
        provider = Provider(kind="fake")
        super().__init__(nodes, models=models, permissions=permissions, provider=provider, **kw)  # type: ignore[arg-type]
        self.before: dict[tuple[str, int], Request] = {}
        self.calls: dict[tuple[str, int], int] = {}

    def _now(self, name: str) -> tuple[str, int]:
        return name, len(self.state.attempts[self.plan.index[name]])

    def begin(self, name: str, **agent: Json) -> Talking:
        """Start an attempt of an agent."""
        number = self._now(name)[1] + 1
        facts: dict[str, Json] = {"model": "cheap", "provider": "fake", **agent}
        self.tell(NodeStarted(node=name, attempt=number, agent=facts))
        return self

    def ask(self, name: str, *said: Message, model: str = FAST, turn: int = 1, tries: int = 1, **kw: object) -> Talking:
        """Let a call leave: a cent is held for it."""
        place = self._now(name)
        before = self.before.get(place)
        request = Request(model=model, messages=(*(before.messages if before else ()), *said), max_tokens=256)
        self.before[place] = request
        self.calls[place] = self.calls.get(place, 0) + 1
        kw.setdefault("amount", CENT)
        self.tell(
            CallReserved(
                node=name,
                attempt=place[1],
                call=self.calls[place],
                turn=turn,
                tries=tries,
                model=model,
                max_tokens=256,
                digest=request.digest(),
                request={"v": cast(Json, delta(request, before))},
                scopes=(f"node:{name}", "run") if kw["amount"] else (),
                **kw,  # type: ignore[arg-type]
            )
        )
        return self

    def answer(self, name: str, answer: Answer, *, spent: int = CENT // 5, **kw: object) -> Talking:
        """Let its answer come."""
        node_, attempt = place = self._now(name)
        data = {"v": answer_to_json(answer)}
        made = CallEnded(node=node_, attempt=attempt, call=self.calls[place], answer=data, **kw)  # type: ignore[arg-type]
        facts: dict[str, object] = {}
        if isinstance(answer, CallFailed):
            facts = {"books": "release", "error": answer.kind}
        else:
            facts = {"model": answer.model, "first_token_ms": answer.first_token_ms, "duration_ms": answer.duration_ms}
            if answer.usage is not None:
                u = answer.usage
                facts |= {"spent": spent, "usage": (u.input, u.output, u.cached, u.cache_written, u.reasoning)}
            else:
                facts |= {"books": "keep", "spent": CENT}
        self.tell(replace(made, **facts))  # type: ignore[arg-type]
        return self

    def use(
        self, name: str, tool: str, arguments: dict[str, Json], text: str, *, ok: bool = True, **kw: object
    ) -> Talking:
        """Let a tool give its result."""
        node_, attempt = self._now(name)
        kw.setdefault("turn", 1)
        kw.setdefault("number", 1)
        given: Json = arguments
        event = ToolEnded(node=node_, attempt=attempt, name=tool, ok=ok, arguments={"v": given}, text={"v": text}, **kw)  # type: ignore[arg-type]
        self.tell(event)
        return self


def agent(name: str, *needs: str, **kw: object) -> Node:
    return Node(id=name, needs=needs, agent=Agent(prompt="Do it", model="cheap"), **kw)  # type: ignore[arg-type]


def reply(text: str = "done", *calls: ToolCall, model: str = FAST, usage: Usage | None = None, **kw: object) -> Reply:
    counts = usage if usage is not None else Usage(input=1000, output=200, cached=400, reasoning=50)
    finish = "tool_calls" if calls else "stop"
    kw.setdefault("first_token_ms", 250)
    kw.setdefault("duration_ms", 1000)
    return Reply(text=text, tool_calls=calls, finish=finish, usage=counts, model=model, **kw)  # type: ignore[arg-type]


SYSTEM, PROMPT = Message(role="system", content="You are careful."), Message(role="user", content="Read the notes.")
READ = ToolCall(id="c1", name="Read", arguments={"file_path": "notes.md"})
LIMITED = CallFailed(kind="rate_limit", message="slow down\x1b[2J", status=429, retry_after_s=6.0)
ERRORS = (".summary: is missing", ".count: must be an integer")


def research() -> Talking:
    """`scan` is done (limited once, then another model, a tool, a rejected answer); `write` asks; `check` runs."""
    story = Talking(
        node("check"),
        agent("scan", title="the scout", output_schema={"type": "object"}),
        agent("write"),
        agent("later", "write"),
        schedule=Schedule.READY,
    )
    story.start("check")
    story.begin("scan", skills={"review": {"digest": "ab" * 32}}, tools=["Read"])
    story.ask("scan", SYSTEM, PROMPT).at(1).answer("scan", LIMITED)
    story.at(2).ask("scan", model=BIG, tries=2, reasons=([FAST, "rate_limit", "rate limited → the next"],))
    story.at(3).answer("scan", reply("I read it", READ, model="gpt-5-2026"))
    story.at(3.5).use("scan", "Read", {"file_path": "notes.md"}, "secret of the file", duration_ms=400)
    heard = Message(role="assistant", content="I read it", tool_calls=(READ,))
    result = Message(role="tool", content="secret of the file", tool_call_id="c1")
    story.ask("scan", heard, result, model=BIG, turn=2).at(5).answer("scan", reply("{}", model="gpt-5-2026"))
    told = Message(role="user", content=reminder(ERRORS, 1))
    story.ask("scan", Message(role="assistant", content="{}"), told, model=BIG, turn=3)
    story.at(6).answer("scan", reply('{"summary": "x"}', model="gpt-5-2026"))
    story.end("scan", summary="x")
    story.begin("write").ask("write", SYSTEM, PROMPT)
    return story.at(8)


def broke() -> Talking:
    """`write` ran out of money after a call that nobody knows the price of."""
    story = Talking(agent("write"), cap=2 * CENT)
    story.begin("write").ask("write", PROMPT)
    story.at(1).answer("write", Reply(text="half", usage=None, model=FAST), books="keep")
    story.at(2).end("write", Outcome.OVER_BUDGET, error="node write: $0.01 are left, the call may cost $0.02")
    return story

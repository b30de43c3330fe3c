"""A project whose agents ask the fake provider, and what its journal says about calls, tools and money."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from dagrun.agent.messages import Answer, CallFailed, Reply, Request, answer_from_json
from dagrun.agent.record import whole
from dagrun.core.budget import Ledger
from dagrun.core.event import (
    AttemptFinished,
    CallEnded,
    CallReserved,
    EngineAttached,
    Event,
    RunCreated,
    RunEnded,
    ToolEnded,
    Warned,
    decode,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import Json
from dagrun.core.plan import compile_plan
from dagrun.core.state import RunState, new_state
from dagrun.store.context import ContextStore
from dagrun.store.history import load_workflow
from dagrun.store.journal import Journal
from dagrun.store.rundir import RunDir

from .space import Space

# An answer of 1000 tokens costs a cent of `fake/one` and `fake/two`, ten cents of `fake/dear`.
PRICES = """\
provider:
  kind: fake
  rules: rules.yaml
  prices:
    fake/one: {input: "1", output: "10"}
    fake/two: {input: "1", output: "10"}
    fake/dear: {input: "10", output: "100"}
models: {first: [fake/one]}
"""
CENT = 10**7  # nano-dollars


def agents(space: Space, flow: str, rules: str, *, head: str = PRICES) -> None:
    """Write flow.yaml, with prices and one tier in front, and rules.yaml."""
    space.flow(head + textwrap.dedent(flow))
    space.write("rules.yaml", "rules:\n" + textwrap.indent(textwrap.dedent(rules).strip("\n"), "  ") + "\n")


def why(space: Space) -> list[Event]:
    """How the newest run came to its end, for the message of a test that fails."""
    return [e for e in space.events() if isinstance(e, AttemptFinished | Warned | RunEnded)]


class Use(NamedTuple):
    """A tool call as the journal has it."""

    name: str
    ok: bool
    arguments: Json
    text: str


def store(space: Space) -> ContextStore:
    return ContextStore(space.last())


def reserved(space: Space, node: str = "") -> list[CallReserved]:
    return [e for e in space.events() if isinstance(e, CallReserved) and node in ("", e.node)]


def closed(space: Space, node: str = "") -> list[CallEnded]:
    return [e for e in space.events() if isinstance(e, CallEnded) and node in ("", e.node)]


def bought(space: Space, node: str = "") -> list[CallReserved]:
    """The calls that left, those of earlier engines too: a reply that is reused is held in no scope."""
    return [e for e in reserved(space, node) if e.scopes]


def answers(space: Space, node: str = "") -> list[Answer]:
    """What came of the calls, as far as something came."""
    get = store(space).get
    return [answer_from_json(cast("dict[str, Json]", get(e.answer))) for e in closed(space, node) if e.answer]


def replies(space: Space, node: str = "") -> list[Reply]:
    return [a for a in answers(space, node) if isinstance(a, Reply)]


def failures(space: Space, node: str = "") -> list[CallFailed]:
    return [a for a in answers(space, node) if isinstance(a, CallFailed)]


def requests(space: Space, node: str) -> list[Request]:
    """The calls of a node in full; each has the digest that was journaled for it."""
    found: list[Request] = []
    before: Request | None = None
    attempt = 0
    for event in reserved(space, node):
        if event.attempt != attempt:
            before, attempt = None, event.attempt
        before = whole(cast("dict[str, Json]", store(space).get(event.request)), before)
        assert before.digest() == event.digest
        found.append(before)
    return found


def prompt(request: Request) -> str:
    """All that a model is shown."""
    return "\n".join(message.content for message in request.messages)


def uses(space: Space, node: str = "") -> list[Use]:
    get = store(space).get
    return [
        Use(e.name, e.ok, get(e.arguments), cast(str, get(e.text)))
        for e in space.events()
        if isinstance(e, ToolEnded) and node in ("", e.node)
    ]


def output(space: Space, node: str, name: str = "text") -> Json:
    """An output of a node, by its value."""
    state = space.state()
    return store(space).get(cast("dict[str, Json]", state.outputs[state.plan.index[node]][name]))


# ---------------------------------------------------------------- money


@dataclass
class Books:
    """The ledger as it was after some event of the journal: scope → (cap, spent, held)."""

    accounts: dict[str, tuple[int | None, int, int]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def spent(self, scope: str = "run") -> int:
        return self.accounts[scope][1] if scope in self.accounts else 0

    def held(self, scope: str = "run") -> int:
        return self.accounts[scope][2] if scope in self.accounts else 0


def books(space: Space, *, strict: bool = True) -> Books:
    """Fold the newest run event by event: after each, spent + held ≤ cap in every scope, and spent never falls.

    The books at the end. With `strict` False only what was reserved is held to the caps.
    """
    return fold_books(space.last(), strict=strict)


def fold_books(run: RunDir, *, strict: bool = True) -> Books:
    journal = Journal.open(run.journal, write=False)
    try:
        records = journal.read()
    finally:
        journal.close()
    state: RunState | None = None
    found = Books()
    for record in records:
        for data in record.events:
            event = decode(data)
            found.events.append(event)
            if isinstance(event, RunCreated):
                state = new_state(compile_plan(load_workflow(run, event.plan_digest)), event, record.t)
                continue
            assert state is not None
            evolve(state, event, record.t, record.m)
            if state.ledger is not None:
                _check(state.ledger, found, event, strict=strict)
    return found


def _check(ledger: Ledger, found: Books, event: Event, *, strict: bool) -> None:
    scopes = {s for e in found.events if isinstance(e, CallReserved) for s in e.scopes}
    for scope in scopes:
        now = ledger.cap(scope), ledger.spent(scope), ledger.held(scope)
        cap, spent, held = now
        assert held >= 0
        assert spent >= found.spent(scope), f"{scope}: spent fell at {event}"
        if cap is not None and strict:
            assert spent + held <= cap, f"{scope}: {spent} spent and {held} held of {cap} after {event}"
        if isinstance(event, EngineAttached):
            assert held == 0, "a new engine holds nothing of the one before"
        found.accounts[scope] = now

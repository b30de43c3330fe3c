"""What the agents of a run spend and use: the scopes of the ledger, their caps, a tally for each attempt.

A call lies in the scope of its node, in those of the nodes whose patches brought that node into the run, and
in the run. Agents of one group share one scope. Only imported where a run has agents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from dagrun.core.budget import Closed, Entry, Ledger, Scope
from dagrun.core.event import CallEnded, CallReserved, ToolEnded
from dagrun.core.names import NodeId
from dagrun.core.state import RunState

RUN: Scope = "run"
Scopes: TypeAlias = tuple[Scope, ...]


@dataclass(slots=True)
class Tally:
    """What one attempt of an agent used so far; tokens as in budget, money in nano-dollars.

    `models` are those that answered, `repeats` the calls beyond the first of each turn, `tools` how often
    each was called, `reused` the calls that a lost attempt had bought.
    """

    turns: int = 0
    calls: int = 0
    repeats: int = 0
    reused: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    spent: int = 0
    held: int = 0
    models: dict[str, int] = field(default_factory=dict)
    tools: dict[str, int] = field(default_factory=dict)
    first_token_ms: int | None = None
    asked: str = ""  # the model of the call that is under way


def call_id(node: NodeId, attempt: int, call: int) -> str:
    """The name of a call in the ledger."""
    return f"{node}/{attempt}/{call}"


def books(state: RunState) -> Ledger:
    """The ledger of a run; made at the first need."""
    if state.ledger is None:
        state.ledger = Ledger(strict=state.plan.workflow.provider.budget == "strict")
    return state.ledger


def scopes_of(state: RunState, node: NodeId) -> Scopes:
    """The scopes of a node's calls, leaf → root, each with the cap that it has now."""
    ledger, plan = books(state), state.plan
    run = plan.workflow.permissions
    group = plan.nodes[plan.index[node]].group
    found: list[Scope] = []
    if group and node not in state.inserted_by:
        caps = [c for n in _members(state, group) if (c := _own_cap(state, n)) is not None]
        ledger.set_cap(f"group:{group}", min(caps, default=None))
        found.append(f"group:{group}")
    else:
        for name in _line(state, node):
            ledger.set_cap(f"node:{name}", _own_cap(state, name))
            found.append(f"node:{name}")
    ledger.set_cap(RUN, run.cost_budget if run is not None else None)
    return (*found, RUN)


def _members(state: RunState, group: str) -> Iterator[NodeId]:
    return (node.id for node in state.plan.nodes if node.group == group)


def _line(state: RunState, node: NodeId) -> Iterator[NodeId]:
    """A node, the node whose patch inserted it, and so on."""
    seen: set[NodeId] = set()
    while node and node not in seen:
        seen.add(node)
        yield node
        node = state.inserted_by.get(node, "")


def _own_cap(state: RunState, name: NodeId) -> int | None:
    """What a node may cost by its own word; None: only the scopes around it bind."""
    i = state.plan.index.get(name)
    if i is None:
        return None
    declared = state.plan.nodes[i].permissions
    return declared.cost_budget if declared is not None else None


# ---------------------------------------------------------------- folding


def _tally(state: RunState, node: NodeId, attempt: int) -> Tally:
    found = state.attempts[state.plan.index[node]][attempt - 1]
    if found.tally is None:
        found.tally = Tally()
    return found.tally


def reserved(state: RunState, event: CallReserved) -> None:
    """A call is about to leave."""
    tally = _tally(state, event.node, event.attempt)
    tally.calls += 1
    tally.turns = event.turn
    tally.repeats += event.tries > 1
    tally.held += event.amount
    tally.asked = event.model
    if event.scopes:
        scopes_of(state, event.node)
        call = call_id(event.node, event.attempt, event.call)
        books(state).apply(Entry(kind="reserve", call=call, scopes=event.scopes, amount=event.amount))


def ended(state: RunState, event: CallEnded) -> Closed | None:
    """What became of a call; None where nothing had been reserved."""
    tally = _tally(state, event.node, event.attempt)
    tally.asked = ""
    tally.held = 0
    tally.reused += bool(event.reused)
    if event.usage:
        given, answered, cached, _, reasoning = event.usage
        tally.input += given
        tally.output += answered
        tally.cached += cached
        tally.reasoning += reasoning
    if event.model:
        tally.models[event.model] = tally.models.get(event.model, 0) + 1
    if tally.first_token_ms is None:
        tally.first_token_ms = event.first_token_ms
    call = call_id(event.node, event.attempt, event.call)
    if state.ledger is None or not state.ledger.is_open(call):
        return None
    amount = event.spent if event.books == "settle" else 0
    closed = state.ledger.apply(Entry(kind=event.books, call=call, amount=amount))
    tally.spent += closed.spent if closed is not None else 0
    return closed


def tool_ended(state: RunState, event: ToolEnded) -> None:
    """A tool call is over."""
    tools = _tally(state, event.node, event.attempt).tools
    tools[event.name] = tools.get(event.name, 0) + 1


def keep_open(state: RunState) -> None:
    """A new engine is at work: what was reserved and not settled counts as spent."""
    if state.ledger is None:
        return
    for call in state.ledger.open_calls:
        node, attempt, _ = call.rsplit("/", 2)
        closed = state.ledger.keep(call)
        tally = _tally(state, node, int(attempt))
        tally.spent += closed.spent
        tally.held, tally.asked = 0, ""

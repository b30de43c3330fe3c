"""The books of a run folded from events: whatever happens in whatever order, no cap is passed at any level."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dagrun.core.event import (
    CallEnded,
    CallReserved,
    EngineAttached,
    Event,
    NodeStarted,
    PatchAdmitted,
    ToolEnded,
    decode,
    encode,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import Json, Outcome
from dagrun.core.permissions import Permissions
from dagrun.core.plan import compile_plan
from dagrun.core.spending import RUN, books, call_id, scopes_of
from dagrun.core.state import RunState, new_state
from dagrun.core.workflow import Agent, Node, Provider, Workflow, node_to_json
from tests.core.strategies import created, ended, started

ASKS = Agent(prompt="x")
AMOUNTS = st.integers(0, 60)


def purse(cap: int | None) -> Permissions | None:
    return None if cap is None else Permissions(cost_budget=cap)


def asker(name: str, cap: int | None = None, group: str = "") -> Node:
    return Node(id=name, agent=ASKS, permissions=purse(cap), group=group, isolation="none" if group else "context")


def run_of(*nodes: Node, cap: int | None = 100, budget: str = "strict") -> RunState:
    workflow = Workflow(
        name="w",
        nodes={n.id: n for n in nodes},
        permissions=purse(cap),
        provider=Provider(kind="fake", budget=budget),  # type: ignore[arg-type]
    )
    plan = compile_plan(workflow)
    state = new_state(plan, created(plan), 0.0)
    evolve(state, EngineAttached(pid=1, boot_id="b"), 0.0, 0.0)
    return state


def fold(state: RunState, *events: Event) -> RunState:
    for event in events:
        evolve(state, event, 0.0, 0.0)
    return state


def asked(state: RunState, node: str, amount: int, call: int = 1, attempt: int = 1) -> CallReserved:
    return CallReserved(
        node=node,
        attempt=attempt,
        call=call,
        turn=call,
        model="m/one",
        max_tokens=1,
        digest="d",
        amount=amount,
        scopes=scopes_of(state, node),
    )


def settled(node: str, spent: int, call: int = 1, attempt: int = 1) -> CallEnded:
    return CallEnded(node=node, attempt=attempt, call=call, spent=spent, model="m/one", usage=(7, 5, 3, 0, 2))


# ---------------------------------------------------------------- scopes


def test_a_call_lies_in_its_node_and_in_the_run_with_the_caps_of_both() -> None:
    state = run_of(asker("a", 40), asker("b"))
    assert scopes_of(state, "a") == ("node:a", RUN)
    assert (books(state).cap("node:a"), books(state).cap(RUN)) == (40, 100)
    assert scopes_of(state, "b") == ("node:b", RUN)


def test_a_group_is_one_purse_with_the_smallest_cap_of_its_members() -> None:
    state = run_of(asker("a", 40, "g"), asker("b", 30, "g"), asker("c", None, "g"))
    assert scopes_of(state, "a") == scopes_of(state, "b") == scopes_of(state, "c") == ("group:g", RUN)
    assert books(state).cap("group:g") == 30


def test_the_nodes_of_a_patch_spend_what_their_author_may() -> None:
    state = run_of(asker("a", 40))
    fold(state, NodeStarted(node="a", attempt=1), inserted(state, "b", by="a", cap=20), ended("a"))
    fold(state, NodeStarted(node="b", attempt=1), inserted(state, "c", by="b", cap=None))
    assert scopes_of(state, "c") == ("node:c", "node:b", "node:a", RUN)
    assert [books(state).cap(s) for s in ("node:b", "node:a")] == [20, 40]


def inserted(state: RunState, name: str, *, by: str, cap: int | None) -> PatchAdmitted:
    """An admitted patch of a node that brings in one more node behind it."""
    node = replace(asker(name, cap), needs=(by,))
    revision = state.plan.revision + 1
    return PatchAdmitted(revision=revision, base=revision - 1, by=f"node:{by}", nodes={name: node_to_json(node)})


# ---------------------------------------------------------------- folding


def test_reserved_then_settled() -> None:
    state = run_of(asker("a", 40))
    fold(state, started("a"), asked(state, "a", 30))
    tally = state.attempts[0][0].tally
    assert tally is not None
    assert (books(state).held("node:a"), books(state).held(RUN), tally.held, tally.asked) == (30, 30, 30, "m/one")
    fold(state, settled("a", 12))
    assert (books(state).spent("node:a"), books(state).spent(RUN), books(state).held(RUN)) == (12, 12, 0)
    assert (tally.spent, tally.held, tally.input, tally.output, tally.cached, tally.reasoning) == (12, 0, 7, 5, 3, 2)
    assert tally.models == {"m/one": 1}


@pytest.mark.parametrize(("kind", "spent"), [("release", 0), ("keep", 30)])
def test_released_or_kept(kind: str, spent: int) -> None:
    state = run_of(asker("a", 40))
    fold(state, started("a"), asked(state, "a", 30), replace(settled("a", 0), books=kind))  # type: ignore[arg-type]
    assert (books(state).spent(RUN), books(state).held(RUN)) == (spent, 0)


def test_a_new_engine_counts_what_was_open_as_spent_once() -> None:
    state = run_of(asker("a", 40))
    fold(state, started("a"), asked(state, "a", 30), EngineAttached(pid=2, boot_id="b"))
    assert (books(state).spent("node:a"), books(state).spent(RUN), books(state).held(RUN)) == (30, 30, 0)
    fold(state, ended("a", Outcome.LOST), EngineAttached(pid=3, boot_id="b"))
    assert books(state).spent(RUN) == 30
    tally = state.attempts[0][0].tally
    assert tally is not None
    assert (tally.spent, tally.held) == (30, 0)


def test_an_answer_that_comes_after_a_crash_is_booked_no_second_time() -> None:
    state = run_of(asker("a", 40))
    fold(state, started("a"), asked(state, "a", 30), EngineAttached(pid=2, boot_id="b"), settled("a", 5))
    assert books(state).spent(RUN) == 30


def test_what_is_reused_is_free() -> None:
    state = run_of(asker("a", 40))
    fold(state, started("a"), replace(asked(state, "a", 0), scopes=()), replace(settled("a", 0), reused="1/1"))
    tally = state.attempts[0][0].tally
    assert tally is not None
    assert (books(state).spent(RUN), tally.reused, tally.calls) == (0, 1, 1)


def test_tools_are_counted_by_name() -> None:
    state = fold(run_of(asker("a")), started("a"))
    for number, name in enumerate(("Read", "Bash", "Read"), 1):
        fold(state, ToolEnded(node="a", attempt=1, number=number, turn=1, name=name))
    tally = state.attempts[0][0].tally
    assert tally is not None
    assert tally.tools == {"Read": 2, "Bash": 1}


def test_calls_of_an_attempt_that_is_none_are_refused() -> None:
    state = run_of(asker("a"))
    from dagrun.core.state import InvalidTransition

    with pytest.raises(InvalidTransition, match="attempt 1"):
        fold(state, asked(state, "a", 1))


@pytest.mark.parametrize(("budget", "stops"), [("strict", True), ("estimate", False)])
def test_a_broken_bound_stops_a_strict_run_for_ever(budget: str, stops: bool) -> None:
    state = run_of(asker("a", 80), budget=budget)
    fold(state, started("a"), asked(state, "a", 10), settled("a", 20))
    short = books(state).short(scopes_of(state, "a"), 1)
    assert (short is not None and short.stopped) == stops
    fold(state, EngineAttached(pid=2, boot_id="b"))
    assert (books(state).short(scopes_of(state, "a"), 1) is not None) == stops


def test_a_patch_that_lowers_a_cap_stops_what_is_to_come_only() -> None:
    state = run_of(asker("a", 80))
    fold(state, started("a"), asked(state, "a", 60), settled("a", 50))
    event = PatchAdmitted(revision=2, base=1, by="human", nodes={"a": node_to_json(asker("a", 30))})
    fold(state, event)
    assert books(state).short(scopes_of(state, "a"), 1) is not None
    assert books(state).cap("node:a") == 30
    assert books(state).spent("node:a") == 50


# ---------------------------------------------------------------- any interleaving


class Spending(RuleBasedStateMachine):
    """Agents that ask and are answered in any order; engines that die; patches that change caps and nodes.

    A reservation is made as the engine makes it: scopes_of, then Ledger.short, then the event.
    """

    @initialize(
        caps=st.lists(st.none() | st.integers(0, 80), min_size=3, max_size=3),
        run=st.none() | st.integers(0, 150),
        grouped=st.booleans(),
    )
    def begin(self, caps: list[int | None], run: int | None, grouped: bool) -> None:
        caps = [c if c is None or run is None else min(c, run) for c in caps]
        group = "g" if grouped else ""
        nodes = asker("a", caps[0]), asker("b", caps[1], group), asker("c", caps[2], group)
        self.run_cap = run
        self.state = run_of(*nodes, cap=run)
        self.fresh = run_of(*nodes, cap=run)
        self.events: list[Event] = []
        self.open: dict[tuple[str, int, int], int] = {}
        self.calls = 0
        self.engines = 1
        self.spent_before: dict[str, int] = {}
        self.lowest: dict[str, int] = {}  # what was spent and held when a cap was last lowered
        for name in ("a", "b", "c"):
            self.fold(NodeStarted(node=name, attempt=1))

    def fold(self, event: Event) -> None:
        self.events.append(event)
        evolve(self.state, event, 0.0, 0.0)

    def running(self) -> list[tuple[str, int]]:
        ids = self.state.plan.ids
        return [(ids[i], attempt.number) for i, attempt in sorted(self.state.running.items())]

    @precondition(lambda self: self.state.running)
    @rule(data=st.data(), amount=AMOUNTS)
    def ask(self, data: st.DataObject, amount: int) -> None:
        node, attempt = data.draw(st.sampled_from(self.running()))
        scopes = scopes_of(self.state, node)
        if books(self.state).short(scopes, amount) is not None:
            return
        self.calls += 1
        self.fold(asked(self.state, node, amount, self.calls, attempt))
        self.open[node, attempt, self.calls] = amount

    @precondition(lambda self: self.open)
    @rule(data=st.data(), kind=st.sampled_from(["settle", "settle", "release", "keep"]))
    def answer(self, data: st.DataObject, kind: str) -> None:
        node, attempt, call = data.draw(st.sampled_from(sorted(self.open)))
        spent = data.draw(st.integers(0, self.open.pop((node, attempt, call))))
        self.fold(replace(settled(node, spent, call, attempt), books=kind))  # type: ignore[arg-type]

    @precondition(lambda self: self.state.running)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """An attempt ends with its call cut off, and another begins."""
        node, attempt = data.draw(st.sampled_from(self.running()))
        for key in [k for k in self.open if k[:2] == (node, attempt)]:
            del self.open[key]
            self.fold(replace(settled(node, 0, key[2], attempt), books="keep", usage=(), model=""))
        self.fold(ended(node, Outcome.LOST, attempt))
        if str(self.state.node_status[self.state.plan.index[node]]) == "ready":
            self.fold(NodeStarted(node=node, attempt=attempt + 1))

    @rule()
    def crash(self) -> None:
        self.engines += 1
        self.open.clear()
        self.fold(EngineAttached(pid=self.engines, boot_id="b"))

    @precondition(lambda self: self.state.running and len(self.state.plan.ids) < 7)
    @rule(data=st.data(), cap=st.none() | st.integers(0, 40))
    def insert(self, data: st.DataObject, cap: int | None) -> None:
        """A node brings one into the run that it does not wait for, which begins at once."""
        author, _ = data.draw(st.sampled_from(self.running()))
        name = f"n{len(self.state.plan.ids)}"
        revision = self.state.plan.revision + 1
        node = node_to_json(asker(name, self.within(cap)))
        self.fold(PatchAdmitted(revision=revision, base=revision - 1, by=f"node:{author}", nodes={name: node}))
        self.fold(NodeStarted(node=name, attempt=1))

    @rule(data=st.data(), cap=st.none() | st.integers(0, 80))
    def replan(self, data: st.DataObject, cap: int | None) -> None:
        """A human gives a node another cap, higher or lower."""
        name = data.draw(st.sampled_from(sorted(self.state.plan.ids)))
        old = self.state.plan.nodes[self.state.plan.index[name]]
        new: dict[str, Json] = node_to_json(replace(old, permissions=purse(self.within(cap))))
        revision = self.state.plan.revision + 1
        self.fold(PatchAdmitted(revision=revision, base=revision - 1, by="human", nodes={name: new}))
        ledger = books(self.state)
        for node in (name, *self.state.inserted_by):  # a member of a group is a scope of what it inserted
            for scope in scopes_of(self.state, node):
                self.lowest[scope] = ledger.spent(scope) + ledger.held(scope)

    def within(self, cap: int | None) -> int | None:
        """A cap as a validated patch may have it: at most that of the run."""
        return cap if cap is None or self.run_cap is None else min(cap, self.run_cap)

    @invariant()
    def no_cap_is_passed(self) -> None:
        ledger = books(self.state)
        for name in self.state.plan.ids:
            for scope in scopes_of(self.state, name):
                cap, used = ledger.cap(scope), ledger.spent(scope) + ledger.held(scope)
                # a cap that was lowered below what is used stops only what is to come
                assert cap is None or used <= max(cap, self.lowest.get(scope, 0)), scope
                assert ledger.held(scope) >= 0
                assert ledger.spent(scope) >= self.spent_before.get(scope, 0), f"{scope}: spent fell"
                self.spent_before[scope] = ledger.spent(scope)
        assert self.run_cap is None or ledger.spent(RUN) + ledger.held(RUN) <= self.run_cap
        assert {call_id(*key) for key in self.open} == set(ledger.open_calls)
        assert ledger.held(RUN) == sum(self.open.values())

    def teardown(self) -> None:
        """Folded again, also from the journal's text, it is the same to the last amount."""
        if not hasattr(self, "fresh"):
            return
        import json

        for event in self.events:
            evolve(self.fresh, decode(json.loads(encode(event))), 0.0, 0.0)
        one, other = books(self.state), books(self.fresh)
        for name in self.state.plan.ids:
            assert scopes_of(self.state, name) == scopes_of(self.fresh, name)
            for scope in scopes_of(self.state, name):
                assert (one.cap(scope), one.spent(scope), one.held(scope)) == (
                    other.cap(scope),
                    other.spent(scope),
                    other.held(scope),
                )
        assert one.open_calls == other.open_calls


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS), max_size=20), st.integers(0, 100))
def test_the_run_never_spends_more_than_its_cap(calls: list[tuple[int, int]], cap: int) -> None:
    state = fold(run_of(asker("a"), cap=cap), started("a"))
    for number, (amount, spent) in enumerate(calls, 1):
        if books(state).short(scopes_of(state, "a"), amount) is None:
            fold(state, asked(state, "a", amount, number), settled("a", min(spent, amount), number))
    assert books(state).spent(RUN) <= cap

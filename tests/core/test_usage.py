"""What agents used: per attempt, per node, per run; and money as a number without noise."""

from __future__ import annotations

import json
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.spending import Tally
from dagrun.core.state import Attempt
from dagrun.core.usage import Usage, add_up, has_agents, money_of, usage_of, usage_of_run, usage_to_json, usd
from dagrun.core.workflow import Agent, Node
from tests.core.strategies import begin, flow

PLAIN = Node(id="a", run="true")
AGENT = Node(id="a", agent=Agent(prompt="x", model="cheap"))


def attempt(number: int, tally: Tally | None = None, **agent: object) -> Attempt:
    made = Attempt(number, 0.0, 0.0, 1)
    made.tally, made.agent = tally, agent  # type: ignore[assignment]
    return made


def test_a_command_uses_nothing_and_an_agent_that_never_ran_says_what_it_asks_for() -> None:
    assert usage_of(PLAIN, [attempt(1)]) is None
    assert usage_of(AGENT, []) == Usage(asked="cheap")
    assert usage_of(AGENT, [attempt(1)]) == Usage(asked="cheap")


def test_what_is_asked_for_a_command_counts_for_it() -> None:
    found = usage_of(PLAIN, [attempt(1, Tally(calls=1, spent=5))])
    assert found is not None
    assert (found.calls, found.spent, found.asked) == (1, 5, "")


def test_attempts_add_up_and_the_last_one_says_the_rest() -> None:
    one = Tally(turns=2, calls=3, repeats=1, input=10, output=5, cached=4, reasoning=2, spent=7, tools={"Read": 2})
    one.models, one.first_token_ms = {"big": 2, "small": 1}, 80
    two = Tally(turns=1, calls=1, reused=1, input=1, output=1, spent=1, held=9, tools={"Bash": 1, "Read": 1})
    two.models = {"big": 1}
    began = {"model": "strong", "provider": "live", "skills": {"s": {"digest": "d", "body": {}}, "t": "e"}}
    found = usage_of(AGENT, [attempt(1, one, model="cheap", provider="fake"), attempt(2, two, **began)])
    assert found == Usage(
        asked="strong",
        models={"small": 1, "big": 3},
        provider="live",
        turns=3,
        calls=4,
        repeats=1,
        reused=1,
        input=11,
        output=6,
        cached=4,
        reasoning=2,
        spent=8,
        held=9,
        tools={"Read": 3, "Bash": 1},
        skills={"s": "d", "t": "e"},
        first_token_ms=80,
    )
    assert found.model == "big"
    assert found.tokens == 17
    assert add_up([]) == Usage()
    assert Usage().model is None


@given(st.integers(0, 10**15))
def test_money_in_json_is_the_decimal_itself(nano: int) -> None:
    text = json.dumps(usage_to_json(Usage(spent=nano))["cost_usd"])
    assert Decimal(text) == Decimal(nano) / 10**9
    assert usd(nano) == json.loads(text)


def test_a_run_without_agents_has_spent_nothing() -> None:
    state = begin(flow(PLAIN))
    assert not has_agents(state)
    assert money_of(state) == (0, 0, None)
    assert usage_of_run(state) == Usage()
    assert state.ledger is None, "looking makes no books"
    assert has_agents(begin(flow(AGENT)))

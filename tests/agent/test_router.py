"""The router: only what is permitted, never more tries than a price allows, never more money than is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.agent.messages import TRANSIENT, ErrorKind
from dagrun.agent.prices import CALL_RETRIES, Price, Tier, price_class
from dagrun.agent.router import (
    Ask,
    Choice,
    Decision,
    Failure,
    GaveUp,
    OverBudget,
    choose,
    route,
)
from dagrun.core.budget import MIN_TOKENS, Ledger, worst_case

M = 10**6
ASK = Ask(prompt_tokens=1000, max_tokens=4096, run_id="r7k2", node="a", call="1")
TIERS = {"cheap": ["a/small", "b/small"], "strong": ["a/large", "b/small", "a/large"], "empty": []}


def priced(
    model: str, usd_in: float = 1, usd_out: float = 5, *, context: int | None = None, most: int | None = None
) -> Price:
    """A model that costs so many USD per million tokens."""
    given_, answer = int(usd_in * M), int(usd_out * M)
    tiers = (Tier(0, given_, answer, given_, given_, answer),)
    return Price(model=model, source="workflow", tiers=tiers, context=context, max_output=most)


CHEAP = priced("a/cheap")
MIDDLE = priced("b/middle", 2, 10)
DEAR = priced("c/dear", 3, 15)


def failed(
    model: Price | str, kind: ErrorKind = "rate_limit", after: float | None = None, waited: float = 0.0
) -> Failure:
    return Failure(
        model=model if isinstance(model, str) else model.model, kind=kind, retry_after_s=after, waited_s=waited
    )


def chosen(got: Decision) -> Choice:
    assert isinstance(got, Choice), got
    return got


def codes(got: Decision) -> list[tuple[str, str]]:
    return [(r.model, r.code) for r in got.reasons]


def play(candidates: Sequence[Price], kinds: Sequence[ErrorKind], after: float | None = None) -> list[Decision]:
    """All decisions of a call whose tries fail like this, until it ends."""
    failures: list[Failure] = []
    made: list[Decision] = []
    for kind in kinds:
        made.append(got := choose(candidates, ASK, None, failures))
        if not isinstance(got, Choice):
            break
        failures.append(Failure(model=got.model, kind=kind, retry_after_s=after, waited_s=got.delay_s))
    else:
        made.append(choose(candidates, ASK, None, failures))
    return made


# ---------------------------------------------------------------- who may be asked


def test_a_tier_leads_to_its_models_in_order_each_once() -> None:
    assert route("strong", TIERS).models == ("a/large", "b/small")
    assert route("a/other", TIERS).models == ("a/other",)


@pytest.mark.parametrize(
    ("patterns", "models"),
    [
        (["strong"], ("a/large", "b/small")),
        (["cheap"], ("b/small",)),  # it is in that tier too
        (["a/*"], ("a/large",)),
        (["b/small"], ("b/small",)),
        (["*"], ("a/large", "b/small")),
        (["a/l"], ()),
        (["c/*", "large"], ()),
        ([], ()),
    ],
)
def test_only_what_is_permitted_is_left_and_the_rest_is_said(patterns: list[str], models: tuple[str, ...]) -> None:
    got = route("strong", TIERS, patterns)
    assert got.models == models
    assert {r.model for r in got.left_out} == {"a/large", "b/small"} - set(models)
    assert {r.code for r in got.left_out} <= {"not_permitted"}


def test_a_model_that_is_named_is_held_to_the_same() -> None:
    assert route("a/small", TIERS, ["cheap"]).models == ("a/small",)
    assert route("a/large", TIERS, ["cheap"]).models == ()
    assert route("a/large", TIERS, ["strong/*"]).models == ()


@pytest.mark.parametrize("wish", ["fast", "", "empty"])
def test_a_tier_that_leads_nowhere_is_said(wish: str) -> None:
    got = route(wish, TIERS)
    assert (got.models, [r.code for r in got.left_out]) == ((), ["unknown"])


# ---------------------------------------------------------------- the first try


def test_the_first_candidate_at_once_with_its_worst_case_reserved() -> None:
    got = chosen(choose([DEAR, CHEAP], ASK, None))
    assert (got.model, got.delay_s, got.number, got.max_tokens, got.reasons) == ("c/dear", 0.0, 1, 4096, ())
    assert got.reserve == 1000 * 3000 + 4096 * 15_000


def test_no_candidates_no_call() -> None:
    assert choose([], ASK, None) == GaveUp(kind="no_model", reasons=choose([], ASK, None).reasons)
    assert codes(choose([], ASK, None)) == [("", "no_model")]


# ---------------------------------------------------------------- money


def test_what_is_too_dear_makes_room_for_a_cheaper_one() -> None:
    room = worst_case(1000, 4096, CHEAP.worst())
    got = chosen(choose([DEAR, MIDDLE, CHEAP], ASK, room))
    assert (got.model, got.max_tokens, got.reserve, got.delay_s) == ("a/cheap", 4096, room, 0.0)
    assert codes(got) == [("c/dear", "too_dear"), ("b/middle", "too_dear")]
    assert got.reasons[0].text == "too dear for what is left: $0.06444 of $0.02148 → cheaper"


def test_when_nothing_fits_whole_the_longest_answer_that_fits_is_asked_for() -> None:
    room = 1000 * 1000 + 300 * 5000
    got = chosen(choose([DEAR, CHEAP, CHEAP], ASK, room))
    assert (got.model, got.max_tokens, got.reserve) == ("a/cheap", 300, room)
    assert codes(got)[-1] == ("a/cheap", "fewer_tokens")
    assert "4096 → 300 tokens" in got.reasons[-1].text


def test_of_two_that_do_not_fit_whole_the_longer_answer_is_asked_for() -> None:
    room = 2000 * 1000 + 400 * 10_000
    got = chosen(choose([MIDDLE, CHEAP, DEAR], ASK, room))
    assert (got.model, got.max_tokens) == ("a/cheap", 1000)
    assert chosen(choose([CHEAP, MIDDLE], ASK, room)).model == "a/cheap"
    assert chosen(choose([MIDDLE, DEAR], ASK, room)).max_tokens == 400


def test_below_the_floor_there_is_no_money() -> None:
    room = 1000 * 1000 + MIN_TOKENS * 5000
    assert chosen(choose([DEAR, CHEAP], ASK, room)).max_tokens == MIN_TOKENS
    got = choose([DEAR, CHEAP], ASK, room - 1)
    assert isinstance(got, OverBudget)
    assert (got.wanted, got.room) == (room, room - 1)
    assert codes(got) == [("c/dear", "too_dear"), ("a/cheap", "too_dear")]


def test_with_no_money_only_what_is_free_is_asked() -> None:
    free = priced("local/free", 0, 0)
    got = chosen(choose([CHEAP, free], ASK, 0))
    assert (got.model, got.reserve) == ("local/free", 0)
    assert isinstance(choose([CHEAP], ASK, 0), OverBudget)


def test_a_model_is_not_asked_for_more_than_it_can_write() -> None:
    got = chosen(choose([priced("a/b", most=1000)], ASK, None))
    assert (got.max_tokens, got.reserve) == (1000, 1000 * 1000 + 1000 * 5000)
    assert codes(got) == [("a/b", "max_output")]


def test_a_large_prompt_is_reserved_at_the_rates_of_large_prompts() -> None:
    row = (1000 * M, 1000 * M, 1000 * M, 1000 * M, 1000 * M)
    price = Price(model="a/b", source="workflow", tiers=(*priced("a/b").tiers, Tier(1000, *row)))
    assert chosen(choose([price], ASK, None)).reserve == 1000 * 1000 + 4096 * 5000
    more = Ask(prompt_tokens=1001, max_tokens=1, run_id="r", node="a", call="1")
    assert chosen(choose([price], more, None)).reserve == 1002 * M
    assert isinstance(choose([price], more, 1002 * M - 1), OverBudget)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("kind", ["rate_limit", "overloaded", "timeout"])
def test_a_limit_or_an_outage_moves_to_the_next_at_once(kind: ErrorKind) -> None:
    got = chosen(choose([CHEAP, MIDDLE], ASK, None, [failed(CHEAP, kind)]))
    assert (got.model, got.delay_s, got.number) == ("b/middle", 0.0, 2)
    assert codes(got) == [("a/cheap", kind)]
    assert got.reasons[0].text.endswith("→ next")


def test_rate_limited_says_so() -> None:
    assert chosen(choose([CHEAP, MIDDLE], ASK, None, [failed(CHEAP)])).reasons[0].text == "rate limited → next"


def test_a_cut_is_asked_of_the_same_model_again() -> None:
    got = chosen(choose([CHEAP, MIDDLE], ASK, None, [failed(CHEAP, "cut")]))
    assert got.model == "a/cheap"
    assert 0.9 <= got.delay_s <= 1.0
    assert got.reasons[0].text.startswith("the answer broke off → again in ")


def test_when_all_have_failed_the_one_that_is_free_first_is_asked_again() -> None:
    failures = [failed(CHEAP, after=20.0), failed(MIDDLE)]
    got = chosen(choose([CHEAP, MIDDLE], ASK, None, failures))
    assert got.model == "b/middle"
    assert 0.9 <= got.delay_s <= 1.0
    later = chosen(choose([CHEAP, MIDDLE], ASK, None, [*failures, failed(MIDDLE, after=30.0, waited=1.0)]))
    assert (later.model, later.delay_s) == ("a/cheap", 19.0)  # one of the 20 seconds was waited for already


@pytest.mark.parametrize("kind", sorted(set(get_args(ErrorKind)) - TRANSIENT - {"context_too_long"}))
def test_what_will_not_pass_ends_the_call(kind: ErrorKind) -> None:
    got = choose([CHEAP, MIDDLE], ASK, None, [failed(CHEAP, kind)])
    assert isinstance(got, GaveUp)
    assert (got.kind, codes(got)) == (kind, [("a/cheap", kind)])


def test_a_prompt_that_is_too_long_goes_only_to_a_larger_window() -> None:
    small, same, large = priced("a/s", context=1000), priced("a/t", context=1000), priced("a/l", context=2000)
    got = chosen(choose([small, same, large], ASK, None, [failed(small, "context_too_long")]))
    assert (got.model, got.number) == ("a/l", 2)
    assert codes(got) == [("a/s", "context_too_long"), ("a/s", "too_small"), ("a/t", "too_small")]
    none = choose([small, same], ASK, None, [failed(small, "context_too_long")])
    assert isinstance(none, GaveUp)
    assert none.kind == "context_too_long"
    unknown = priced("a/u")
    assert isinstance(choose([unknown], ASK, None, [failed(unknown, "context_too_long")]), GaveUp)
    # later failures of others don't bring it back
    after = choose([small, large], ASK, None, [failed(small, "context_too_long"), failed(large)])
    assert chosen(after).model == "a/l"


@pytest.mark.parametrize(("price", "tries"), [(CHEAP, 10), (MIDDLE, 5), (DEAR, 3)])
def test_tries_by_class_of_price_the_first_included(price: Price, tries: int) -> None:
    made = play([price], ["overloaded"] * 20)
    assert [d.number for d in made if isinstance(d, Choice)] == list(range(1, tries + 1))
    assert isinstance(made[-1], GaveUp)
    assert codes(made[-1]) == [(price.model, "overloaded"), (price.model, "tries_spent")]


def test_the_tries_of_all_candidates_are_tries_of_one_call() -> None:
    """A dear model is never asked as the fourth, however few of the tries before were its own."""
    made = play([CHEAP, DEAR], ["overloaded"] * 20)
    asked = [d.model for d in made if isinstance(d, Choice)]
    assert asked == ["a/cheap", "c/dear", *["a/cheap"] * 8]
    assert asked.index("c/dear") < 3


def test_after_transient_failures_too_dear_is_a_matter_of_money() -> None:
    got = choose([CHEAP, DEAR], ASK, 1, [failed(CHEAP)])
    assert isinstance(got, OverBudget)
    assert codes(got)[0] == ("a/cheap", "rate_limit")


# ---------------------------------------------------------------- waiting


def test_delays_double_up_to_their_ceiling() -> None:
    delays = [d.delay_s for d in play([CHEAP], ["overloaded"] * 20) if isinstance(d, Choice)]
    assert delays[0] == 0
    for delay, base in zip(delays[1:], [1, 2, 4, 8, 16, 30, 30, 30, 30], strict=True):
        assert 0.9 * base <= delay <= base
    dear = [d.delay_s for d in play([DEAR], ["overloaded"] * 20) if isinstance(d, Choice)]
    assert 1.8 <= dear[1] <= 2 < 3.6 <= dear[2] <= 4


def test_what_the_provider_asks_for_is_waited_also_beyond_the_ceiling() -> None:
    assert chosen(choose([CHEAP], ASK, None, [failed(CHEAP, after=47.5)])).delay_s == 47.5
    assert chosen(choose([CHEAP], ASK, None, [failed(CHEAP, after=0.1)])).delay_s >= 0.9


@pytest.mark.parametrize("after", [math.nan, -5.0, 0.0, -math.inf])
def test_a_wait_that_is_none_is_not_believed(after: float) -> None:
    assert 0.9 <= chosen(choose([CHEAP], ASK, None, [failed(CHEAP, after=after)])).delay_s <= 1.0


@pytest.mark.parametrize("waited", [math.nan, -5.0])
def test_a_wait_that_was_none_shortens_nothing(waited: float) -> None:
    failures = [failed(CHEAP, after=20.0), failed(MIDDLE, after=60.0, waited=waited)]
    got = chosen(choose([CHEAP, MIDDLE], ASK, None, failures))
    assert (got.model, got.delay_s) == ("a/cheap", 20.0)


def test_nobody_is_waited_for_longer_than_there_is_time() -> None:
    failures = [failed(CHEAP, after=3600.0), failed(MIDDLE, after=50.0)]
    got = chosen(choose([CHEAP, MIDDLE], ASK, None, failures, patience_s=60.0))
    assert (got.model, got.delay_s) == ("b/middle", 50.0)
    assert ("a/cheap", "waits_too_long") in codes(got)
    assert isinstance(choose([CHEAP, MIDDLE], ASK, None, failures, patience_s=49.5), GaveUp)
    ended = choose([CHEAP, MIDDLE], ASK, None, failures, patience_s=10.0)
    assert isinstance(ended, GaveUp)
    assert ended.kind == "rate_limit"


def test_nobody_is_waited_for_for_ever() -> None:
    assert isinstance(choose([CHEAP], ASK, None, [failed(CHEAP, after=math.inf)]), GaveUp)


def test_a_replay_waits_the_same_and_no_two_calls_do() -> None:
    def delays(run: str = "r7k2", node: str = "a", call: str = "1") -> float:
        ask = Ask(prompt_tokens=1, max_tokens=1, run_id=run, node=node, call=call)
        return chosen(choose([CHEAP], ask, None, [failed(CHEAP)])).delay_s

    assert delays() == delays()
    assert len({delays(), delays(run="r7k3"), delays(node="b"), delays(call="2")}) == 4


# ---------------------------------------------------------------- any call

names = st.sampled_from(["a/1", "a/2", "b/1", "b/2", "c/1"])
rates = st.integers(0, 40)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    context, most = draw(st.none() | st.integers(1, 10**6)), draw(st.none() | st.integers(1, 10**5))
    first = priced(draw(names), draw(rates), draw(rates), context=context, most=most)
    larger = Tier(draw(st.integers(1, 10**6)), *(M * draw(rates) for _ in range(5)))
    return replace(first, tiers=(*first.tiers, *draw(st.sampled_from([(), (larger,)]))))


kinds = st.sampled_from(get_args(ErrorKind)) | st.sampled_from(sorted(TRANSIENT))
waits = st.none() | st.floats() | st.integers(0, 10**6).map(float)


@given(
    st.lists(prices(), min_size=1, max_size=5, unique_by=lambda p: p.model),
    st.lists(names, max_size=4),
    st.none() | st.lists(st.sampled_from(["tier", "other", "a/*", "b/1", "c/1", "*"]), min_size=1, max_size=2),
    st.none() | st.integers(0, 10**10),
    st.lists(st.tuples(kinds, waits, st.booleans()), min_size=30, max_size=30),
    st.none() | st.floats(0, 1000),
    st.integers(1, 10**6),
    st.integers(0, 10**6),
)
def test_any_call_ends_permitted_in_time_and_within_its_money(
    tier: list[Price],
    other: list[str],
    patterns: list[str] | None,
    cap: int | None,
    fates: list[tuple[ErrorKind, float | None, bool]],
    patience_s: float | None,
    most: int,
    prompt: int,
) -> None:
    tiers = {"tier": [p.model for p in tier], "other": other}
    by_name = {p.model: p for p in tier}
    candidates = [by_name[m] for m in route("tier", tiers, patterns).models if m in by_name]
    ask = Ask(prompt_tokens=prompt, max_tokens=most, run_id="r", node="a", call="1")
    ledger = Ledger({"run": cap})
    failures: list[Failure] = []
    for kind, after, billed in fates:
        room = ledger.left(["run"])
        got = choose(candidates, ask, room, failures, patience_s=patience_s)
        assert got == choose(candidates, ask, room, failures, patience_s=patience_s)
        if not isinstance(got, Choice):
            break
        price = by_name[got.model]
        number = len(failures) + 1
        assert number == got.number <= CALL_RETRIES[price_class(price)].tries
        assert patterns is None or any(
            p in ("*", got.model)
            or (p.endswith("/*") and got.model.startswith(p[:-1]))
            or got.model in tiers.get(p, [])
            for p in patterns
        )
        assert room is None or got.reserve <= room
        assert got.reserve == worst_case(prompt, got.max_tokens, price.worst(prompt))
        assert min(MIN_TOKENS, most, price.max_output or most) <= got.max_tokens <= min(most, price.max_output or most)
        assert 0 <= got.delay_s < math.inf
        assert patience_s is None or got.delay_s <= patience_s
        assert all(f.model != got.model for f in failures if f.kind == "context_too_long")
        assert ledger.reserve(f"c{number}", ["run"], got.reserve) is None
        _ = ledger.keep(f"c{number}") if billed else ledger.release(f"c{number}")
        failures.append(Failure(model=got.model, kind=kind, retry_after_s=after, waited_s=got.delay_s))
    else:
        raise AssertionError("a call was tried thirty times")
    assert all(f.kind in TRANSIENT or f.kind == "context_too_long" for f in failures[:-1])
    if isinstance(got, OverBudget):
        assert got.wanted > got.room == ledger.left(["run"])


@given(st.lists(prices(), min_size=1, max_size=5, unique_by=lambda p: p.model), st.integers(1, 9), waits)
def test_a_provider_is_left_alone_for_as_long_as_it_asked(tier: list[Price], tries: int, after: float | None) -> None:
    failures: list[Failure] = []
    now = 0.0
    free_at: dict[str, float] = {}
    for _ in range(tries):
        got = choose(tier, ASK, None, failures)
        if not isinstance(got, Choice):
            break
        now += got.delay_s
        assert now >= free_at.get(got.model, 0.0) - 1e-6 * (1 + now)
        asked = after if after is not None and 0 < after < math.inf else 0.0
        free_at[got.model] = now + asked
        failures.append(Failure(model=got.model, kind="rate_limit", retry_after_s=after, waited_s=got.delay_s))


# ---------------------------------------------------------------- what other calls were told


def test_a_model_that_another_call_was_told_to_leave_alone_makes_room_for_the_next() -> None:
    got = chosen(choose([CHEAP, MIDDLE], ASK, None, alone={"a/cheap": 30.0}))
    assert (got.model, got.delay_s, got.number) == ("b/middle", 0.0, 1)
    assert codes(got) == [("a/cheap", "limited")]


def test_with_nobody_else_it_is_waited_for_as_long_as_there_is_time() -> None:
    got = chosen(choose([CHEAP], ASK, None, alone={"a/cheap": 30.0}, patience_s=31.0))
    assert (got.model, got.delay_s) == ("a/cheap", 30.0)
    gave_up = choose([CHEAP], ASK, None, alone={"a/cheap": 30.0}, patience_s=29.0)
    assert isinstance(gave_up, GaveUp)
    assert gave_up.kind == "rate_limit"
    assert codes(gave_up) == [("a/cheap", "waits_too_long"), ("a/cheap", "limited")]


def test_the_longer_wait_counts() -> None:
    own = [failed(CHEAP, after=10.0)]
    assert chosen(choose([CHEAP], ASK, None, own, alone={"a/cheap": 30.0})).delay_s == 30.0
    got = chosen(choose([CHEAP], ASK, None, own, alone={"a/cheap": 3.0}))
    assert got.delay_s == 10.0
    assert codes(got) == [("a/cheap", "rate_limit")]

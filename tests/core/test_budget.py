"""The ledger and its bound: no interleaving, crash, price or usage spends more than a cap, in any scope."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dagrun.core.budget import (
    HIDDEN_TOKENS,
    MIN_TOKENS,
    Closed,
    Entry,
    Ledger,
    Rates,
    Short,
    entry_from_json,
    entry_to_json,
    prompt_bound,
    rate_of,
    rebuild,
    shrink,
    worst_case,
)

PATH = ("a#1", "a", "run")
NO_AMOUNTS = [-1, 1.0, float("nan"), float("inf"), True, None, "1", Decimal(1)]
counts = st.integers(0, 10**7)
rates = st.builds(Rates, input=st.integers(0, 10**9), output=st.integers(0, 10**9))


def ledger(run: int | None = 100, **caps: int | None) -> Ledger:
    return Ledger({"run": run, **caps})


def reserved(books: Ledger, call: str = "c", amount: int = 60, scopes: tuple[str, ...] = PATH) -> Ledger:
    assert books.reserve(call, scopes, amount) is None
    return books


# ---------------------------------------------------------------- the bound


@pytest.mark.parametrize(
    ("text", "pico"),
    [("3", 3_000_000), ("0.25", 250_000), ("0.000001", 1), ("15.00", 15_000_000), ("0", 0), ("007", 7_000_000)],
)
def test_a_price_of_a_million_tokens_is_kept_to_the_last_digit(text: str, pico: int) -> None:
    assert rate_of(text) == pico


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1e3", "nan", "inf", ".5", "1.", "0.0000001", "1,5", "$3", "٣", " 3", "3\n", 3, 0.25, True]
)
def test_what_is_no_price_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is no price"):
        rate_of(text)


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**6 - 1))
def test_a_price_is_exact(whole: int, millionths: int) -> None:
    assert rate_of(f"{whole}.{millionths:06d}") == Fraction(f"{whole}.{millionths:06d}") * 10**6


def test_the_worst_case_is_rounded_up() -> None:
    assert worst_case(1, 0, Rates(input=1, output=0)) == 1
    assert worst_case(1000, 0, Rates(input=1, output=0)) == 1
    assert worst_case(1000, 1, Rates(input=1, output=1)) == 2
    # a 10 KB prompt and 4096 tokens of a model for 3 and 15 USD: 3.75 with the cache written
    assert worst_case(10_000, 4096, Rates(input=3_750_000, output=15_000_000)) == 98_940_000


@given(counts, counts, rates)
def test_the_worst_case_is_never_less_than_the_exact_amount_nor_a_nano_more(p: int, m: int, r: Rates) -> None:
    assert worst_case(p, m, r) == ceil(Fraction(p * r.input + m * r.output, 1000))


@pytest.mark.parametrize("amount", NO_AMOUNTS)
def test_what_is_no_count_has_no_worst_case(amount: object) -> None:
    good = Rates(input=1, output=1)
    for call in (
        lambda: worst_case(amount, 1, good),  # type: ignore[arg-type]
        lambda: worst_case(1, amount, good),  # type: ignore[arg-type]
        lambda: worst_case(1, 1, Rates(input=amount, output=1)),  # type: ignore[arg-type]
        lambda: worst_case(1, 1, Rates(input=1, output=amount)),  # type: ignore[arg-type]
        lambda: prompt_bound(amount, hidden=False),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="whole number"):
            call()


def test_a_prompt_is_bounded_by_its_bytes_its_hidden_part_and_its_window() -> None:
    assert prompt_bound(500, hidden=False) == 500
    assert prompt_bound(500, hidden=True) == 500 + HIDDEN_TOKENS
    assert prompt_bound(500_000, hidden=True, context=200_000) == 200_000
    assert prompt_bound(500, hidden=False, context=200_000) == 500


def test_short_money_shrinks_the_answer_down_to_a_floor() -> None:
    price = Rates(input=1_000_000, output=5_000_000)  # 1000 and 5000 nano-dollars a token
    assert shrink(4096, None, 100, price) == 4096
    assert shrink(4096, 100_000 + 4096 * 5000, 100, price) == 4096
    assert shrink(4096, 100_000 + 4096 * 5000 - 1, 100, price) == 4095
    assert shrink(4096, 100_000 + MIN_TOKENS * 5000, 100, price) == MIN_TOKENS
    assert shrink(4096, 100_000 + MIN_TOKENS * 5000 - 1, 100, price) is None
    assert shrink(4096, 99_999, 100, price) is None
    assert shrink(4096, 99_999, 100, Rates(input=1_000_000, output=0)) is None
    assert shrink(4096, 0, 100, Rates(input=0, output=0)) == 4096  # free


def test_who_asks_for_less_than_the_floor_gets_it_or_nothing() -> None:
    price = Rates(input=0, output=1000)
    assert shrink(10, 10, 0, price) == 10
    assert shrink(10, 9, 0, price) is None


@given(st.integers(0, 10**6), st.integers(0, 10**13), counts, rates)
def test_a_shrunk_answer_fits_and_one_token_more_would_not(most: int, room: int, prompt: int, price: Rates) -> None:
    got = shrink(most, room, prompt, price)
    if got is None:
        assert worst_case(prompt, min(MIN_TOKENS, most), price) > room
        return
    assert min(MIN_TOKENS, most) <= got <= most
    assert worst_case(prompt, got, price) <= room
    assert got == most or worst_case(prompt, got + 1, price) > room


# ---------------------------------------------------------------- the books


def test_a_reservation_is_held_in_every_scope_and_settled_in_every_scope() -> None:
    books = reserved(ledger(100, a=80))
    assert [books.held(s) for s in PATH] == [60, 60, 60]
    assert books.left(PATH) == 20
    assert books.settle("c", 25) == Closed(spent=25)
    assert [(books.spent(s), books.held(s)) for s in PATH] == [(25, 0)] * 3
    assert books.left(PATH) == 55
    assert books.left(["run"]) == 75


def test_all_or_nothing_and_the_leaf_is_asked_first() -> None:
    books = ledger(100, a=50)
    assert books.reserve("c", PATH, 60) == Short(scope="a", left=50, wanted=60)
    assert books.reserve("c", PATH, 101) == Short(scope="a", left=50, wanted=101)
    assert books.reserve("c", ("b", "run"), 101) == Short(scope="run", left=100, wanted=101)
    assert [books.held(s) for s in (*PATH, "b")] == [0, 0, 0, 0]
    assert books.open_calls == ()
    reserved(books, amount=50)


def test_the_parent_binds_children_whose_caps_add_up_to_more() -> None:
    books = ledger(100, a=80, b=80)
    reserved(books, "c", 60, ("a", "run"))
    assert books.reserve("d", ("b", "run"), 60) == Short(scope="run", left=40, wanted=60)
    reserved(books, "d", 40, ("b", "run"))
    assert books.left(("b", "run")) == 0


def test_without_a_cap_nothing_is_refused_and_all_is_counted() -> None:
    books = reserved(ledger(None), amount=10**18)
    assert books.left(PATH) is None
    books.settle("c", 10**17)
    assert (books.spent("run"), books.cap("run")) == (10**17, None)


def test_a_cap_of_nothing_lets_only_free_calls_through() -> None:
    books = ledger(0)
    assert books.reserve("c", ("run",), 1) == Short(scope="run", left=0, wanted=1)
    assert books.reserve("c", ("run",), 0) is None


def test_released_is_given_back_and_kept_is_spent() -> None:
    books = reserved(ledger())
    assert books.release("c") == Closed(spent=0)
    assert books.left(PATH) == 100
    reserved(books, "d")
    assert books.keep("d") == Closed(spent=60)
    assert (books.spent("a"), books.held("a"), books.left(PATH)) == (60, 0, 40)


def test_more_than_reserved_is_booked_said_and_stops_every_reservation() -> None:
    books = reserved(ledger(1000))
    assert books.settle("c", 61) == Closed(spent=61, bound_violated=True)
    assert books.spent("run") == 61
    assert books.bound_violated
    assert books.reserve("d", ("b", "run"), 0) == Short(scope="run", left=0, wanted=0, stopped=True)
    assert books.left(("b", "run")) == 0


def test_what_was_reserved_before_a_broken_bound_is_still_settled() -> None:
    books = reserved(reserved(ledger(1000), "d"))
    books.settle("c", 61)
    assert books.settle("d", 5) == Closed(spent=5)
    assert (books.spent("run"), books.held("run")) == (66, 0)


def test_estimates_may_be_exceeded_up_to_what_they_were_wrong_and_then_the_cap_binds() -> None:
    books = reserved(Ledger({"run": 100}, strict=False))
    assert books.settle("c", 90).bound_violated
    assert books.left(PATH) == 10
    reserved(books, "d", 10)
    assert books.settle("d", 30).spent == 30
    assert books.left(PATH) == 0
    assert books.reserve("e", PATH, 1) == Short(scope="run", left=0, wanted=1)


def test_the_warning_is_told_once_for_each_scope_from_the_leaf() -> None:
    books = ledger(1000, a=100)
    reserved(books, "c", 79)
    assert books.settle("c", 79).warned == ()
    reserved(books, "d", 10)
    assert books.settle("d", 1).warned == ("a",)
    reserved(books, "e", 10)
    assert books.keep("e").warned == ()
    reserved(books, "f", 710, ("b", "run"))
    assert books.settle("f", 710).warned == ("run",)


def test_holding_warns_of_nothing() -> None:
    assert reserved(ledger(), amount=100).release("c").warned == ()


def test_a_higher_cap_is_warned_of_again() -> None:
    books = reserved(ledger(100), "c", 90)
    assert books.settle("c", 90).warned == ("run",)
    books.set_cap("run", 200)
    reserved(books, "d", 70)
    assert books.settle("d", 70).warned == ("run",)


def test_a_cap_below_what_is_spent_stops_what_is_to_come_only() -> None:
    books = reserved(ledger(100))
    books.set_cap("run", 10)
    assert books.left(PATH) == 0
    assert books.reserve("d", PATH, 1) == Short(scope="run", left=0, wanted=1)
    assert books.settle("c", 60) == Closed(spent=60, warned=("run",))


@pytest.mark.parametrize("amount", NO_AMOUNTS)
def test_what_is_no_amount_is_refused_and_changes_nothing(amount: object) -> None:
    books = reserved(ledger())
    for call in (
        lambda: books.reserve("d", PATH, amount),  # type: ignore[arg-type]
        lambda: books.settle("c", amount),  # type: ignore[arg-type]
        lambda: books.short(PATH, amount),  # type: ignore[arg-type]
        lambda: books.apply(Entry(kind="reserve", call="d", scopes=PATH, amount=amount)),  # type: ignore[arg-type]
        lambda: entry_from_json(["settle", "c", amount]),  # type: ignore[list-item]
    ):
        with pytest.raises(ValueError, match="whole number"):
            call()
    if amount is not None:
        with pytest.raises(ValueError, match="whole number"):
            books.set_cap("run", amount)  # type: ignore[arg-type]
    assert books.open_calls == ("c",)
    assert (books.held("run"), books.spent("run"), books.cap("run")) == (60, 0, 100)


def test_a_call_is_reserved_once_and_closed_once() -> None:
    books = reserved(ledger())
    with pytest.raises(ValueError, match="'c' was reserved before"):
        books.reserve("c", PATH, 1)
    books.settle("c", 1)
    with pytest.raises(ValueError, match="'c' was reserved before"):
        books.reserve("c", PATH, 1)
    for close in (lambda: books.settle("c", 1), lambda: books.release("c"), lambda: books.keep("c")):
        with pytest.raises(ValueError, match="'c', which was closed already"):
            close()
    with pytest.raises(ValueError, match="'x', which was never reserved"):
        books.release("x")
    assert (books.spent("run"), books.held("run")) == (1, 0)


@pytest.mark.parametrize("scopes", [(), ("a", ""), ("a", "a"), ("a", "run", "a")])
def test_scopes_that_make_no_path_are_refused(scopes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="lies in one scope or more"):
        ledger().reserve("c", scopes, 1)


@pytest.mark.parametrize(
    "scopes", [("a#1", "b", "run"), ("a", "outer", "run"), ("a",), ("a#1", "run"), ("b", "run", "top")]
)
def test_no_scope_moves_away_from_the_cap_above_it(scopes: tuple[str, ...]) -> None:
    books = reserved(ledger(), amount=1)
    with pytest.raises(ValueError, match="lies in"):
        books.reserve("d", scopes, 1)
    assert books.held("b") == books.held("outer") == 0


# ---------------------------------------------------------------- crashes


def test_after_a_crash_what_was_open_counts_as_spent() -> None:
    entries = [Entry(kind="reserve", call=c, scopes=PATH, amount=20) for c in "abc"]
    entries += [Entry(kind="settle", call="a", amount=5), Entry(kind="release", call="b")]
    books, kept = rebuild(entries, {"run": 100})
    assert kept == ("c",)
    assert (books.spent("run"), books.held("run"), books.open_calls) == (25, 0, ())
    again, kept = rebuild([*entries, Entry(kind="keep", call="c")], {"run": 100})
    assert (again.spent("run"), kept) == (25, ())


def test_what_happened_is_folded_even_above_a_cap_that_is_lower_now() -> None:
    books, _ = rebuild([Entry(kind="reserve", call="c", scopes=PATH, amount=60)], {"run": 10})
    assert books.spent("run") == 60
    assert books.left(PATH) == 0


def test_a_broken_bound_survives_a_crash() -> None:
    entries = [Entry(kind="reserve", call="c", scopes=PATH, amount=1), Entry(kind="settle", call="c", amount=2)]
    books, _ = rebuild(entries, {"run": 100})
    assert books.bound_violated
    assert books.short(PATH, 1) is not None
    soft, _ = rebuild(entries, {"run": 100}, strict=False)
    assert soft.short(PATH, 1) is None


def test_a_warning_is_not_told_again_after_a_crash() -> None:
    books, _ = rebuild([Entry(kind="reserve", call="c", scopes=("run",), amount=90)], {"run": 100})
    reserved(books, "d", 1, ("run",))
    assert books.keep("d").warned == ()


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        [],
        ["pay", "c"],
        ["keep"],
        ["keep", 1],
        ["keep", "c", 1],
        ["settle", "c"],
        ["reserve", "c", 1],
        ["reserve", "c", 1, "run"],
        ["reserve", "c", 1, [1]],
    ],
)
def test_what_is_no_entry_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match=r"no entry|no scopes"):
        entry_from_json(data)  # type: ignore[arg-type]


def test_an_entry_costs_what_its_depth_costs_never_the_size_of_the_books() -> None:
    """Counted in bytecodes, which no busy machine changes."""

    def steps(size: int) -> int:
        import sys

        books = Ledger({"run": None})
        for n in range(size):
            reserved(books, f"c{n}", 1, (f"n{n}", "run"))
        counted = 0

        def trace(frame: object, event: str, arg: object) -> object:
            nonlocal counted
            frame.f_trace_opcodes = True  # type: ignore[attr-defined]
            counted += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            books.reserve("new", ("new", "run"), 1)
            books.settle("new", 1)
        finally:
            sys.settrace(before)
        return counted

    assert 0 < steps(5000) == steps(50)


# ---------------------------------------------------------------- any interleaving

TREE = (("a#1", "a", "run"), ("a#2", "a", "run"), ("b", "a-group", "a2", "run"), ("c", "run"), ("run",))
SCOPES = sorted({scope for path in TREE for scope in path})


class Books(RuleBasedStateMachine):
    """A ledger beside a list of calls from which every sum is computed anew."""

    def __init__(self) -> None:
        super().__init__()
        self.caps: dict[str, int | None] = {}
        self.entries: list[str] = []  # the journal, as text
        self.calls: dict[str, tuple[tuple[str, ...], int, int | None]] = {}  # scopes, reserved, spent if closed
        self.bound: dict[str, tuple[int, int, Rates]] = {}
        self.serial = 0

    @property
    def broken(self) -> bool:
        return any(spent is not None and spent > reserved for _, reserved, spent in self.calls.values())

    @initialize(caps=st.fixed_dictionaries({s: st.none() | st.integers(0, 10**6) for s in SCOPES}))
    def open(self, caps: dict[str, int | None]) -> None:
        self.caps = dict(caps)
        self.books = Ledger(caps)

    def used(self, scope: str) -> tuple[int, int]:
        mine = [c for c in self.calls.values() if scope in c[0]]
        return sum(c[2] or 0 for c in mine), sum(c[1] for c in mine if c[2] is None)

    def journal(self, entry: Entry) -> None:
        self.entries.append(json.dumps(entry_to_json(entry)))

    @rule(
        path=st.sampled_from(TREE),
        prompt=st.integers(0, 300),
        most=st.integers(1, 300),
        price=st.builds(Rates, input=st.integers(0, 10**6), output=st.integers(0, 10**6)),
    )
    def reserve(self, path: tuple[str, ...], prompt: int, most: int, price: Rates) -> None:
        self.serial += 1
        call, amount = f"c{self.serial}", worst_case(prompt, most, price)
        fits = all((cap := self.caps[s]) is None or sum(self.used(s)) + amount <= cap for s in path)
        got = self.books.reserve(call, path, amount)
        assert (got is None) == (fits and not self.broken)
        if got is None:
            self.journal(Entry(kind="reserve", call=call, scopes=path, amount=amount))
            self.calls[call] = (path, amount, None)
            self.bound[call] = (prompt, most, price)
        else:
            assert got.scope in path
            assert got.stopped == self.broken

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(c for c, (_, _, spent) in self.calls.items() if spent is None)))

    def close(self, call: str, spent: int) -> None:
        path, amount, _ = self.calls[call]
        self.calls[call] = (path, amount, spent)

    @precondition(lambda self: any(spent is None for _, _, spent in self.calls.values()))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Any usage within the request, at any price up to the worst."""
        call = self.pick(data)
        prompt, most, price = self.bound[call]
        tokens = data.draw(st.integers(0, prompt)), data.draw(st.integers(0, most))
        paid = data.draw(st.integers(0, price.input)), data.draw(st.integers(0, price.output))
        actual = ceil(Fraction(tokens[0] * paid[0] + tokens[1] * paid[1], 1000))
        self.journal(Entry(kind="settle", call=call, amount=actual))
        assert self.books.settle(call, actual) == Closed(spent=actual, warned=self.newly_warned(call, actual))
        self.close(call, actual)

    @precondition(lambda self: any(spent is None for _, _, spent in self.calls.values()))
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        call = self.pick(data)
        self.journal(Entry(kind="keep", call=call))
        assert self.books.keep(call).spent == self.calls[call][1]
        self.close(call, self.calls[call][1])

    @precondition(lambda self: any(spent is None for _, _, spent in self.calls.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        call = self.pick(data)
        self.journal(Entry(kind="release", call=call))
        assert self.books.release(call).spent == 0
        self.close(call, 0)

    def newly_warned(self, call: str, spent: int) -> tuple[str, ...]:
        def near(spent: int, cap: int | None) -> bool:
            return cap is not None and spent > 0 and spent * 100 >= cap * 80

        before = {scope: self.used(scope)[0] for scope in SCOPES}
        return tuple(
            s
            for s in self.calls[call][0]
            if not near(before[s], self.caps[s]) and near(before[s] + spent, self.caps[s])
        )

    @precondition(lambda self: any(spent is None for _, _, spent in self.calls.values()))
    @rule(data=st.data(), over=st.integers(1, 10))
    def break_the_bound(self, data: st.DataObject, over: int) -> None:
        """A call that costs more, as long as that passes no cap: what comes after it is what is tested."""
        call = self.pick(data)
        path, amount, _ = self.calls[call]
        if any((cap := self.caps[s]) is not None and sum(self.used(s)) + over > cap for s in path):
            return
        self.journal(Entry(kind="settle", call=call, amount=amount + over))
        assert self.books.settle(call, amount + over).bound_violated
        self.close(call, amount + over)

    @rule(scope=st.sampled_from(SCOPES), more=st.none() | st.integers(0, 10**6))
    def raise_cap(self, scope: str, more: int | None) -> None:
        cap = self.caps[scope]
        self.caps[scope] = None if cap is None or more is None else cap + more
        self.books.set_cap(scope, self.caps[scope])

    @rule()
    def crash(self) -> None:
        """All that is left is the journal."""
        self.books, kept = rebuild((entry_from_json(json.loads(line)) for line in self.entries), self.caps)
        assert list(kept) == [c for c, (_, _, spent) in self.calls.items() if spent is None]
        for call in kept:
            self.journal(Entry(kind="keep", call=call))
            self.close(call, self.calls[call][1])

    @rule()
    def crash_before_an_answer_was_written(self) -> None:
        """A crash between an answer and its settlement: the reservation is what counts."""
        if self.entries and json.loads(self.entries[-1])[0] in ("settle", "release"):
            entry = entry_from_json(json.loads(self.entries.pop()))
            path, amount, _ = self.calls[entry.call]
            self.calls[entry.call] = (path, amount, None)
        self.crash()

    @invariant()
    def nothing_is_above_its_cap(self) -> None:
        for scope, cap in self.caps.items():
            spent, held = self.used(scope)
            assert (self.books.spent(scope), self.books.held(scope)) == (spent, held)
            assert cap is None or spent + held <= cap

    @invariant()
    def what_is_left_is_what_fits(self) -> None:
        for path in TREE:
            left = self.books.left(path)
            rooms = [cap - sum(self.used(s)) for s in path if (cap := self.caps[s]) is not None]
            assert left == (0 if self.broken else min(rooms, default=None))


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=150, stateful_step_count=40)

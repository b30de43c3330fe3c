"""What may be spent: a ledger of reservations over nested scopes, and the bound that each of them is made of.

Money is reserved before a call, in every scope from the innermost to the run, all or nothing. So spent
and held together never exceed a cap, however calls interleave and wherever the engine dies. Amounts are
integer nano-dollars, rates integer pico-dollars a token (micro-dollars a million tokens): no float, and
nothing is ever rounded down. Knows no model, price table, clock or journal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, cast

from dagrun.core.names import Json
from dagrun.core.value import value

Scope: TypeAlias = str
CallId: TypeAlias = str
EntryKind: TypeAlias = Literal["reserve", "settle", "release", "keep"]

PICO = 1000  # pico-dollars in a nano-dollar
WARN_PERCENT = 80
MIN_TOKENS = 256  # an answer shorter than this is not worth its prompt
HIDDEN_TOKENS = 1024  # what a provider may write around tools and schemas, which no request shows
_KINDS: tuple[EntryKind, ...] = ("reserve", "settle", "release", "keep")
_RATE = re.compile(r"\d{1,9}(?:\.\d{1,6})?", re.ASCII)


# USD for a million tokens of answer: up to this a model is cheap, from that on expensive
CLASS_BOUNDS: Mapping[str, str] = {"cheap": "5", "expensive": "15"}

# ---------------------------------------------------------------- the bound of one call


@value(frozen=True, slots=True, kw_only=True)
class Rates:
    """The most that a token can cost, in pico-dollars: every kind of input, every kind of output."""

    input: int
    output: int


def rate_of(text: object) -> int:
    """Pico-dollars a token of a price in USD per million tokens: `3`, `0.25`, `0.000001`.

    Raises ValueError for anything else, also for a number that is no text: it may have been a float.
    """
    if not isinstance(text, str) or not _RATE.fullmatch(text):
        raise ValueError(f"{text!r} is no price: write USD per million tokens with at most 6 decimals, such as 0.25")
    whole, _, part = text.partition(".")
    return int(whole) * 10**6 + int(part.ljust(6, "0"))


def prompt_bound(request_bytes: int, *, hidden: bool, context: int | None = None) -> int:
    """The most input tokens that a request of so many UTF-8 bytes can have: no token is less than a byte.

    `hidden`: it has tools or a schema, around which a provider writes text of its own. `context` is the
    model's window, beyond which a request is refused and costs nothing.
    """
    tokens = whole(request_bytes, "request_bytes") + (HIDDEN_TOKENS if hidden else 0)
    return tokens if context is None else min(tokens, whole(context, "context"))


def worst_case(prompt_bytes: int, max_tokens: int, rates: Rates) -> int:
    """The most that a call can cost, in nano-dollars rounded up. Raises ValueError for what is no count."""
    tokens = whole(prompt_bytes, "prompt_bytes") * whole(rates.input, "rates.input")
    return nano(tokens + whole(max_tokens, "max_tokens") * whole(rates.output, "rates.output"))


def shrink(
    max_tokens: int, room: int | None, prompt_bytes: int, rates: Rates, *, floor: int = MIN_TOKENS
) -> int | None:
    """The most output tokens, at most `max_tokens`, whose worst case fits `room` nano-dollars (None: no cap).

    None when that would be fewer than `floor`, or than a `max_tokens` below it.
    """
    if room is None or worst_case(prompt_bytes, max_tokens, rates) <= whole(room, "room"):
        return max_tokens
    least = min(whole(floor, "floor"), max_tokens)
    if rates.output == 0:
        return None  # it is the prompt that does not fit
    fits = (room * PICO - prompt_bytes * rates.input) // rates.output
    return fits if fits >= least else None


def nano(pico: int) -> int:
    """Nano-dollars of so many pico-dollars, rounded up."""
    return -(-pico // PICO)


def whole(amount: object, name: str) -> int:
    """`amount` if it is a whole number from 0: no float (so no NaN), no bool. Raises ValueError otherwise."""
    if type(amount) is not int or amount < 0:
        raise ValueError(f"{name} has to be a whole number from 0, not {amount!r}")
    return amount


# ---------------------------------------------------------------- the books


@value(frozen=True, slots=True, kw_only=True)
class Entry:
    """One fact of the books. `scopes` (leaf → root) only of a reservation, `amount` of that and a settlement."""

    kind: EntryKind
    call: CallId
    scopes: tuple[Scope, ...] = ()
    amount: int = 0


@value(frozen=True, slots=True, kw_only=True)
class Short:
    """Why a call may not be made: the first scope, from the leaf, that has not enough left.

    `stopped`: a bound did not hold before, so nothing more is reserved, whatever is left.
    """

    scope: Scope
    left: int
    wanted: int
    stopped: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Closed:
    """What the end of a reservation meant: what was spent, and the scopes that it brought to the warning.

    `bound_violated`: more was spent than had been reserved. In a strict ledger that is a bug of the
    bound, and it reserves nothing more.
    """

    spent: int
    bound_violated: bool = False
    warned: tuple[Scope, ...] = ()


class _Account:
    """The books of one scope."""

    __slots__ = ("cap", "held", "parent", "spent", "warned")

    def __init__(self) -> None:
        self.cap: int | None = None
        self.spent = 0
        self.held = 0
        self.parent: Scope | None = None  # "" of a root; None: not seen in a reservation yet
        self.warned = False

    def left(self) -> int | None:
        """What may still be reserved; None without a cap."""
        return None if self.cap is None else max(0, self.cap - self.spent - self.held)

    def near_cap(self, percent: int) -> bool:
        """Whether so much of the cap is spent that it is worth a word."""
        return bool(self.spent) and self.cap is not None and self.spent * 100 >= self.cap * percent


class Ledger:
    """The books of a run. Entries change it through one door, `apply`; each costs O(depth).

    A scope is a name (of a run, a node, an attempt or a group), and lies in the same scopes for ever. One
    without a cap of its own is bound by those around it; caps of siblings may add up to more than that of
    their parent, which still binds. `strict=False`: reservations are estimates, so actual costs may
    exceed them and a cap by what they were wrong.
    """

    __slots__ = ("_accounts", "_closed", "_open", "_percent", "_strict", "_violated")

    def __init__(
        self, caps: Mapping[Scope, int | None] | None = None, *, strict: bool = True, warn_percent: int = WARN_PERCENT
    ) -> None:
        self._accounts: dict[Scope, _Account] = {}
        self._open: dict[CallId, tuple[tuple[Scope, ...], int]] = {}
        self._closed: set[CallId] = set()
        self._strict = strict
        self._percent = whole(warn_percent, "warn_percent")
        self._violated = False
        for scope, cap in (caps or {}).items():
            self.set_cap(scope, cap)

    # ------------------------------------------------------------ looking

    @property
    def bound_violated(self) -> bool:
        """Whether a call cost more than was reserved for it, so that a strict ledger reserves nothing more."""
        return self._violated

    @property
    def open_calls(self) -> tuple[CallId, ...]:
        """The calls whose reservation is neither settled, released nor kept, in the order they were made."""
        return tuple(self._open)

    def is_open(self, call: CallId) -> bool:
        """Whether a call is reserved, and neither settled, released nor kept."""
        return call in self._open

    def spent(self, scope: Scope) -> int:
        """What the calls in a scope have cost."""
        return self._accounts[scope].spent if scope in self._accounts else 0

    def held(self, scope: Scope) -> int:
        """What is reserved in a scope for calls that are under way."""
        return self._accounts[scope].held if scope in self._accounts else 0

    def cap(self, scope: Scope) -> int | None:
        """The cap of a scope itself, None without."""
        return self._accounts[scope].cap if scope in self._accounts else None

    def left(self, scopes: Iterable[Scope]) -> int | None:
        """What a call in these scopes may cost at most; None when none of them has a cap."""
        rooms = [left for s in scopes if s in self._accounts and (left := self._accounts[s].left()) is not None]
        if self._violated and self._strict:
            return 0
        return min(rooms, default=None)

    def short(self, scopes: Sequence[Scope], amount: int) -> Short | None:
        """Why `reserve` would refuse, None when it would not. Changes nothing."""
        whole(amount, "amount")
        if self._violated and self._strict:
            return Short(scope=scopes[-1] if scopes else "", left=0, wanted=amount, stopped=True)
        for scope in scopes:
            left = self._accounts[scope].left() if scope in self._accounts else None
            if left is not None and amount > left:
                return Short(scope=scope, left=left, wanted=amount)
        return None

    # ------------------------------------------------------------ changing

    def set_cap(self, scope: Scope, cap: int | None) -> None:
        """Give a scope a cap, or none. One below what is spent and held already only stops what is to come."""
        if not scope:
            raise ValueError("a scope has a name")
        account = self._accounts.setdefault(scope, _Account())
        account.cap = None if cap is None else whole(cap, "cap")
        account.warned = account.warned and account.near_cap(self._percent)

    def reserve(self, call: CallId, scopes: Sequence[Scope], amount: int) -> Short | None:
        """Hold `amount` nano-dollars in every scope from leaf to root, or in none and say which is short.

        Journal the entry (`Entry(kind="reserve", …)`) before the request leaves. Raises ValueError for a
        call that was reserved before, and for scopes that lie elsewhere.
        """
        entry = Entry(kind="reserve", call=call, scopes=tuple(scopes), amount=amount)
        self._check(entry)
        found = self.short(entry.scopes, amount)
        if found is None:
            self._reserve(entry)
        return found

    def settle(self, call: CallId, actual: int) -> Closed:
        """Put what a call really cost in place of its reservation."""
        return self._close(Entry(kind="settle", call=call, amount=actual))

    def release(self, call: CallId) -> Closed:
        """Give back a reservation whose call was certainly not billed."""
        return self._close(Entry(kind="release", call=call))

    def keep(self, call: CallId) -> Closed:
        """Count a reservation as spent: nobody knows what its call was billed."""
        return self._close(Entry(kind="keep", call=call))

    def keep_open(self) -> tuple[CallId, ...]:
        """Count every open reservation as spent, as after a crash; gives the calls, for the journal."""
        calls = self.open_calls
        for call in calls:
            self.keep(call)
        return calls

    def apply(self, entry: Entry) -> Closed | None:
        """Fold one entry of a journal: what happened is never refused, even above a cap that is lower now.

        Raises ValueError for an entry that can't have been written.
        """
        if entry.kind != "reserve":
            return self._close(entry)
        self._check(entry)
        self._reserve(entry)
        return None

    # ------------------------------------------------------------ the one door

    def _check(self, entry: Entry) -> None:
        """Raise ValueError for a reservation that makes no sense, before anything changes."""
        whole(entry.amount, "amount")
        if entry.call in self._open or entry.call in self._closed:
            raise ValueError(f"call {entry.call!r} was reserved before")
        scopes = entry.scopes
        if not scopes or not all(scopes) or len(set(scopes)) != len(scopes):
            raise ValueError(f"a call lies in one scope or more, each once and named: {scopes!r}")
        for scope, parent in zip(scopes, (*scopes[1:], "")):
            account = self._accounts.get(scope)
            if account is not None and account.parent not in (None, parent):
                raise ValueError(f"scope {scope!r} lies in {account.parent or 'nothing'!r}, not in {parent!r}")

    def _reserve(self, entry: Entry) -> None:
        for scope, parent in zip(entry.scopes, (*entry.scopes[1:], "")):
            account = self._accounts.setdefault(scope, _Account())
            account.parent = parent
            account.held += entry.amount
        self._open[entry.call] = (entry.scopes, entry.amount)

    def _close(self, entry: Entry) -> Closed:
        if entry.kind == "settle":
            whole(entry.amount, "actual")
        if entry.call not in self._open:
            state = "closed already" if entry.call in self._closed else "never reserved"
            raise ValueError(f"{entry.kind} of call {entry.call!r}, which was {state}")
        scopes, reserved = self._open.pop(entry.call)
        self._closed.add(entry.call)
        spent = {"settle": entry.amount, "release": 0}.get(entry.kind, reserved)
        self._violated = self._violated or spent > reserved
        warned: list[Scope] = []
        for scope in scopes:
            account = self._accounts[scope]
            account.held -= reserved
            account.spent += spent
            if not account.warned and account.near_cap(self._percent):
                account.warned = True
                warned.append(scope)
        return Closed(spent=spent, bound_violated=spent > reserved, warned=tuple(warned))


# ---------------------------------------------------------------- the JSON form


def rebuild(
    entries: Iterable[Entry], caps: Mapping[Scope, int | None] | None = None, *, strict: bool = True
) -> tuple[Ledger, tuple[CallId, ...]]:
    """The books after a crash, from the journaled entries, and the calls that were open.

    Those count as spent: what is not known to be free was billed.
    """
    ledger = Ledger(caps, strict=strict)
    for entry in entries:
        ledger.apply(entry)
    return ledger, ledger.keep_open()


def entry_to_json(entry: Entry) -> list[Json]:
    """The JSON form of an entry; `entry_from_json` is its inverse."""
    made: list[Json] = [entry.kind, entry.call]
    if entry.kind in ("reserve", "settle"):
        made.append(entry.amount)
    if entry.kind == "reserve":
        made.append(list(entry.scopes))
    return made


def entry_from_json(data: Json) -> Entry:
    """The entry that `entry_to_json` made `data` from. Raises ValueError for what is none."""
    items = data if isinstance(data, list) else []
    kind = next((k for k in _KINDS if items[:1] == [k]), None)
    size = 2 if kind in ("release", "keep") else 3 if kind == "settle" else 4
    if kind is None or len(items) != size or not isinstance(items[1], str):
        raise ValueError(f"no entry of the books: {data!r}")
    scopes = items[3] if size == 4 else []
    if not isinstance(scopes, list) or not all(isinstance(s, str) for s in scopes):
        raise ValueError(f"no scopes of a reservation: {scopes!r}")
    amount = whole(items[2], "amount") if size > 2 else 0
    return Entry(kind=kind, call=items[1], scopes=tuple(cast("list[str]", scopes)), amount=amount)

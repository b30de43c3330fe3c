"""What models cost: from litellm's price table, read as a file, or as the workflow says. litellm is never imported.

A name is priced by its exact key or refused with names that are near: a guess would make every budget
a fiction. Rates are integer pico-dollars a token (core/budget.py), taken from the decimal text of the
table. Batch, flex, priority and long-lived cache rates are left out: no call asks for those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, TypeAlias, cast

from dagrun.agent.installed import litellm_folder
from dagrun.agent.messages import Usage
from dagrun.core.budget import CLASS_BOUNDS, Rates, nano, rate_of, whole
from dagrun.core.names import Json
from dagrun.errors import EnvironmentFault

PriceClass: TypeAlias = Literal["cheap", "middle", "expensive"]
Source: TypeAlias = Literal["table", "workflow", "free"]
TABLE_FILE = "model_prices_and_context_window_backup.json"
_MODES = ("chat", "responses")
_FIELDS = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "reasoning": "output_cost_per_reasoning_token",
}
_NAMES = {name: field for field, name in _FIELDS.items()}
_ABOVE = re.compile(r"(.+)_above_(\d{1,6})k_tokens")
# a price of anything but tokens that every call pays: no number of tokens bounds it
_EXTRAS = ("input_cost_per_request", "citation_cost_per_token", "cost_per_second", "input_cost_per_second")
_SEARCHES = re.compile(r"(?:.*[-/])?(?:search|deep-research)(?:[-/].*)?|(?:.*/)?sonar.*")
_SQUEEZED = str.maketrans("._@: ", "-----")
_CLEAN = Context(prec=12, rounding=ROUND_HALF_EVEN)  # 2.0000000000000002e-07 was written by a float
_UP = Context(prec=60, rounding=ROUND_CEILING)


class Tier(NamedTuple):
    """Pico-dollars a token of every kind, in calls with more than `above` input tokens."""

    above: int
    input: int
    output: int
    cached: int
    cache_write: int
    reasoning: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs. A whole call is billed at one tier; `tiers` is never empty and begins with 0.

    `key` is that of the table, "" elsewhere; `context` and `max_output` are tokens, None where not known.
    """

    model: str
    source: Source
    tiers: tuple[Tier, ...]
    key: str = ""
    context: int | None = None
    max_output: int | None = None

    def worst(self, prompt_tokens: int | None = None) -> Rates:
        """The most that a token can cost in a call of at most so many input tokens (None: of any size)."""
        tiers = [t for t in self.tiers if not t.above or prompt_tokens is None or t.above < prompt_tokens]
        return Rates(
            input=max(max(t.input, t.cached, t.cache_write) for t in tiers),
            output=max(max(t.output, t.reasoning) for t in tiers),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpriced:
    """A model that can't be used under a budget, why, and what to write instead."""

    model: str
    message: str
    hint: str
    near: tuple[str, ...] = ()


def cost(usage: Usage, price: Price) -> int:
    """What a call cost, in nano-dollars rounded up.

    Raises ValueError for counts that are none: such usage is as good as missing. Parts that exceed their
    whole are paid all the same: better a bound that is seen to break than a call that is half paid.
    """
    for name in ("input", "output", "cached", "cache_written", "reasoning"):
        whole(getattr(usage, name), f"usage.{name}")
    size = max(usage.input, usage.cached + usage.cache_written)
    tier = max(t for t in price.tiers if not t.above or size > t.above)
    pico = max(0, usage.input - usage.cached - usage.cache_written) * tier.input
    pico += usage.cached * tier.cached + usage.cache_written * tier.cache_write
    pico += max(0, usage.output - usage.reasoning) * tier.output + usage.reasoning * tier.reasoning
    return nano(pico)


# ---------------------------------------------------------------- classes of price


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRetry:
    """How often a call is tried, the first time included, and the seconds between: doubled up to the longest."""

    tries: int
    delay_s: float
    max_delay_s: float


CALL_RETRIES: Mapping[PriceClass, CallRetry] = {
    "cheap": CallRetry(tries=10, delay_s=1.0, max_delay_s=30.0),
    "middle": CallRetry(tries=5, delay_s=1.0, max_delay_s=30.0),
    "expensive": CallRetry(tries=3, delay_s=2.0, max_delay_s=120.0),
}


class Classes(NamedTuple):
    """Where classes of price begin and end: output rates in pico-dollars a token."""

    cheap: int = rate_of(CLASS_BOUNDS["cheap"])
    expensive: int = rate_of(CLASS_BOUNDS["expensive"])


CLASSES = Classes()


def classes_of(said: Mapping[str, str]) -> Classes:
    """The classes of a workflow: USD per million tokens as decimal text, where it says so."""
    return CLASSES._replace(**{name: rate_of(text) for name, text in said.items()})


def price_class(price: Price | None, classes: Classes = CLASSES) -> PriceClass:
    """The class of a model by what its output costs in small calls; one without a price is expensive."""
    if price is None or price.tiers[0].output >= classes.expensive:
        return "expensive"
    return "cheap" if price.tiers[0].output <= classes.cheap else "middle"


# ---------------------------------------------------------------- prices of the workflow


def own_price(model: str, said: Mapping[str, Json]) -> Price | Unpriced:
    """The price that a workflow gives a model: `free: true`, or USD per million tokens as decimal text.

    Keys are those of a tier: `input` and `output`, and where they differ `cached`, `cache_write`, `reasoning`.
    """
    if len(said) == 1 and said.get("free") is True:
        return Price(model=model, source="free", tiers=(Tier(0, 0, 0, 0, 0, 0),))
    strange = [key for key in said if key not in _FIELDS]
    if strange:
        message = f"`{strange[0]}` is no part of the price of {model}"
        return Unpriced(model=model, message=message, hint=f"write {', '.join(_FIELDS)}, or only free: true")
    rates: dict[str, int] = {}
    for key, text in said.items():
        try:
            rates[key] = rate_of(text)
        except ValueError as error:
            return Unpriced(model=model, message=f"{key} of {model}: {error}", hint="write 0.25")
    if not rates.get("input") or not rates.get("output"):
        hint = "write input and output in USD per million tokens, or free: true"
        return Unpriced(model=model, message=f"the price of {model} lacks input or output", hint=hint)
    return Price(model=model, source="workflow", tiers=(_first_tier(rates),))


def _first_tier(rates: Mapping[str, int]) -> Tier:
    given, answer = rates["input"], rates["output"]
    cached, cache_write = rates.get("cached", given), rates.get("cache_write", given)
    return Tier(0, given, answer, cached, cache_write, rates.get("reasoning", answer))


# ---------------------------------------------------------------- litellm's table


class PriceTable:
    """litellm's prices by model. `digest` is the sha256 of its file."""

    __slots__ = ("_entries", "digest")

    def __init__(self, raw: bytes) -> None:
        """Raises ValueError for a file that is no table."""
        read = json.loads(raw, parse_float=Decimal, parse_constant=_no_number)
        if not isinstance(read, dict):
            raise ValueError("no JSON object")
        self._entries = {key: entry for key, entry in read.items() if isinstance(entry, dict)}
        self.digest = sha256(raw).hexdigest()

    def price(self, model: str) -> Price | Unpriced:
        """The price of `vendor/name`: by that very key, else by `name` where the table says that vendor."""
        found = self._find(model)
        return self._unpriced(model, found) if isinstance(found, str) else found

    def _find(self, model: str) -> Price | str:
        vendor, _, name = model.partition("/")
        if not vendor or not name:
            return f"`{model}` is no model: it lacks its vendor"
        key = model if model in self._entries else name
        entry = self._entries.get(key)
        if entry is None or (key != model and entry.get("litellm_provider") != vendor):
            return f"the price table has no `{model}`"
        return _price(model, key, entry)

    def near(self, model: str, most: int = 3) -> tuple[str, ...]:
        """Priced models whose names are near; only the one that differs in punctuation or case, where there is one."""
        from difflib import get_close_matches

        spelled = {_squeezed(name): name for name in self._spelled()}
        wanted = _squeezed(model).strip("/")
        if wanted in spelled and self._is_near(spelled[wanted], model):
            return (spelled[wanted],)
        same = sorted((name for key, name in spelled.items() if key.endswith(f"/{wanted}")), key=len)
        # of a vendor that is known, only the names are compared: they all begin alike
        vendor = wanted.partition("/")[0] + "/"
        known = vendor if any(key.startswith(vendor) for key in spelled) else ""
        names = [key[len(known) :] for key in spelled if key.startswith(known)]
        found = get_close_matches(wanted.removeprefix(known), names, n=2 * most, cutoff=0.7)
        close = [spelled[known + name] for name in found]
        return tuple(name for name in dict.fromkeys([*same, *close]) if self._is_near(name, model))[:most]

    def _is_near(self, name: str, model: str) -> bool:
        return name != model and isinstance(self._find(name), Price)

    def _spelled(self) -> Iterator[str]:
        """Every key as it would be written in a workflow."""
        for key, entry in self._entries.items():
            vendor = entry.get("litellm_provider")
            if entry.get("mode") in _MODES and isinstance(vendor, str):
                yield key if "/" in key else f"{vendor}/{key}"

    def _unpriced(self, model: str, message: str) -> Unpriced:
        near = self.near(model)
        also = "give its price under `provider: {prices: …}`, or say `free: true` there"
        hint = f"did you mean {' or '.join(near)}? Else {also}" if near else also
        return Unpriced(model=model, message=message, hint=hint, near=near)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _squeezed(name: str) -> str:
    """A name without what people write differently; the slashes stay."""
    return name.lower().translate(_SQUEEZED)


def _price(model: str, key: str, entry: Mapping[str, object]) -> Price | str:
    """The price in an entry of the table, or why there is none."""
    if entry.get("mode") not in _MODES:
        return f"`{model}` is no model for conversations: its mode is {entry.get('mode')}"
    if any(_pico(entry.get(extra)) for extra in _EXTRAS) or _SEARCHES.fullmatch(model.partition("/")[2]):
        return f"`{model}` costs more than its tokens (searches, requests, time): no reservation bounds it"
    tiers = _tiers(entry)
    if tiers is None:
        return f"the price table has no price of `{model}` that can be read, or a price of 0"
    context, most = entry.get("max_input_tokens"), entry.get("max_output_tokens")
    return Price(
        model=model,
        source="table",
        tiers=tiers,
        key=key,
        context=context if type(context) is int and context > 0 else None,
        max_output=most if type(most) is int and most > 0 else None,
    )


def _tiers(entry: Mapping[str, object]) -> tuple[Tier, ...] | None:
    """All tiers, by their size; None where the first has no price of input or output, or one can't be read."""
    rates: dict[int, dict[str, int]] = {0: {}}
    for key, amount in entry.items():
        above = _ABOVE.fullmatch(key)
        field = _NAMES.get(above[1] if above else key)
        if field:
            rates.setdefault(int(above[2]) * 1000 if above else 0, {})[field] = _pico(amount)
    listed = entry.get("tiered_pricing", [])
    for tier in cast("list[Mapping[str, object]]", listed if isinstance(listed, list) else [{}]):
        begin = _begin(tier)
        if begin is None:
            return None
        said = {field: _pico(tier[name]) for name, field in _NAMES.items() if name in tier}
        rates[begin] = rates.get(begin, {}) | said
    return _completed(rates)


def _completed(rates: Mapping[int, Mapping[str, int]]) -> tuple[Tier, ...] | None:
    """Tiers without gaps. What a tier does not say, or says is 0, is never less than what is known of it."""
    made: list[Tier] = []
    for above, said in sorted(rates.items()):
        before = made[-1] if made else Tier(0, 0, 0, 0, 0, 0)
        given = said.get("input") or before.input
        answer = said.get("output") or before.output
        if not given or not answer:
            return None
        made.append(
            Tier(
                above,
                given,
                answer,
                said.get("cached") or given,
                said.get("cache_write") or max(given, before.cache_write),
                said.get("reasoning") or max(answer, before.reasoning),
            )
        )
    return tuple(made)


def _begin(tier: object) -> int | None:
    """Where a tier of a list begins."""
    span = tier.get("range") if isinstance(tier, dict) else None
    begin = next(iter(span), None) if isinstance(span, list) else None
    return int(begin) if isinstance(begin, int | Decimal) and 0 <= begin < 10**9 else None


def _pico(amount: object) -> int:
    """Pico-dollars of an amount in USD, rounded up; 0 for what is no price."""
    if isinstance(amount, bool) or not isinstance(amount, int | Decimal) or not 0 < amount < 1000:
        return 0
    return int(_UP.to_integral_value(_UP.scaleb(_CLEAN.create_decimal(amount), 12)))


def load_table(path: str | None = None) -> PriceTable:
    """The table of the litellm that is installed, or the one at `path`. 0.1 s; imports nothing of litellm.

    Raises EnvironmentFault when there is none, or none that can be read.
    """
    found = Path(path) if path else _installed()
    try:
        return PriceTable(found.read_bytes())
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"the price table {found} can't be read: {error}", hint="pip install --force-reinstall 'dagrun[llm]'"
        ) from None


def _installed() -> Path:
    folder = litellm_folder()
    if folder is not None:
        return Path(folder) / TABLE_FILE
    raise EnvironmentFault(
        "there is no price table: litellm is not installed",
        hint="pip install 'dagrun[llm]', or give prices under `provider: {prices: …}`",
    )


# ---------------------------------------------------------------- what a run keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """The prices of a run, frozen when it began. `table` is the sha256 of the table, "" where none was needed."""

    prices: Mapping[str, Price]
    refused: tuple[Unpriced, ...] = ()
    table: str = ""


def resolve(
    models: Iterable[str], own: Mapping[str, Mapping[str, Json]], table: Callable[[], PriceTable] = load_table
) -> Priced:
    """The price of each model: the workflow's where it gives one, else the table's, which is read only then.

    Raises EnvironmentFault when a table is needed and there is none.
    """
    names = list(dict.fromkeys(models))
    found = {model: own_price(model, own[model]) for model in names if model in own}
    digest = ""
    if len(found) < len(names):
        read = table()
        digest = read.digest
        found |= {model: read.price(model) for model in names if model not in found}
    return Priced(
        prices={m: p for m in names if isinstance(p := found[m], Price)},
        refused=tuple(p for m in names if isinstance(p := found[m], Unpriced)),
        table=digest,
    )


def price_to_json(price: Price) -> dict[str, Json]:
    """The JSON form of a price, for the record of a run; `price_from_json` is its inverse."""
    tiers: list[Json] = [list(tier) for tier in price.tiers]
    made: dict[str, Json] = {"model": price.model, "source": price.source, "tiers": tiers, "key": price.key}
    return {**made, "context": price.context, "max_output": price.max_output}


def price_from_json(data: Mapping[str, Json]) -> Price:
    """The price that `price_to_json` made `data` from."""
    return Price(
        model=cast(str, data["model"]),
        source=cast(Source, data["source"]),
        tiers=tuple(Tier(*tier) for tier in cast("list[list[int]]", data["tiers"])),
        key=cast(str, data["key"]),
        context=cast("int | None", data["context"]),
        max_output=cast("int | None", data["max_output"]),
    )

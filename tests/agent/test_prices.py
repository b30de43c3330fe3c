"""Prices: exact or refused, never guessed, and bounds that no usage passes. A small table, then litellm's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from hashlib import sha256
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.agent.messages import Usage
from dagrun.agent.prices import (
    CALL_RETRIES,
    CLASSES,
    TABLE_FILE,
    CallRetry,
    Classes,
    Price,
    PriceTable,
    Tier,
    Unpriced,
    classes_of,
    cost,
    load_table,
    own_price,
    price_class,
    price_from_json,
    price_to_json,
    resolve,
)
from dagrun.core.budget import Rates, worst_case
from dagrun.core.names import Json
from dagrun.errors import EnvironmentFault
from tests.agent.talking import need_litellm

# as litellm writes them, noise of floats included
TABLE = b"""{
 "sample_spec": {"litellm_provider": "one of them", "mode": "one of: chat", "input_cost_per_token": 0.0},
 "claude-sonnet-4-5": {"litellm_provider": "anthropic", "mode": "chat",
   "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05, "cache_read_input_token_cost": 3e-07,
   "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
   "input_cost_per_token_priority": 9e-05, "max_input_tokens": 200000, "max_output_tokens": 64000},
 "claude-haiku-4-5": {"litellm_provider": "anthropic", "mode": "chat",
   "input_cost_per_token": 1e-06, "output_cost_per_token": 5e-06},
 "vertex_ai/claude-sonnet-4-5": {"litellm_provider": "vertex_ai-anthropic_models", "mode": "chat",
   "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05},
 "gemini/gemini-2.5-pro": {"litellm_provider": "gemini", "mode": "chat",
   "input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05,
   "input_cost_per_token_above_200k_tokens": 2.5e-06, "output_cost_per_token_above_200k_tokens": 1.5e-05,
   "output_cost_per_token_above_200k_tokens_priority": 2.7e-05, "max_input_tokens": "1 million"},
 "dashscope/qwen-flash": {"litellm_provider": "dashscope", "mode": "chat", "tiered_pricing": [
   {"input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06, "range": [256000.0, 1000000.0]},
   {"input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "output_cost_per_reasoning_token": 4e-06,
    "range": [0, 256000.0]}]},
 "x/written": {"litellm_provider": "x", "mode": "chat", "cache_creation_input_token_cost": 9e-06,
   "input_cost_per_token": 1e-06, "output_cost_per_token": 5e-06, "input_cost_per_token_above_32k_tokens": 2e-06},
 "dashscope/torn": {"litellm_provider": "dashscope", "mode": "chat", "input_cost_per_token": 1e-06,
   "output_cost_per_token": 1e-06, "tiered_pricing": [{"input_cost_per_token": 9e-06}]},
 "dashscope/odd": {"litellm_provider": "dashscope", "mode": "chat", "input_cost_per_token": 1e-06,
   "output_cost_per_token": 1e-06, "tiered_pricing": "see the site"},
 "novita/noisy": {"litellm_provider": "novita", "mode": "responses",
   "input_cost_per_token": 2.0000000000000002e-07, "output_cost_per_token": 1.9999999999999998e-05},
 "x/fine": {"litellm_provider": "x", "mode": "chat",
   "input_cost_per_token": 1.41953125e-07, "output_cost_per_token": 1.2345678e-13},
 "ollama/llama3": {"litellm_provider": "ollama", "mode": "chat",
   "input_cost_per_token": 0.0, "output_cost_per_token": 0.0},
 "azure/model-router": {"litellm_provider": "azure", "mode": "chat",
   "input_cost_per_token": 1.4e-07, "output_cost_per_token": 0.0},
 "github/none": {"litellm_provider": "github", "mode": "chat"},
 "x/negative": {"litellm_provider": "x", "mode": "chat",
   "input_cost_per_token": -1e-06, "output_cost_per_token": 1e-06},
 "x/text": {"litellm_provider": "x", "mode": "chat", "input_cost_per_token": "1e-06", "output_cost_per_token": 1e-06},
 "x/true": {"litellm_provider": "x", "mode": "chat", "input_cost_per_token": true, "output_cost_per_token": 1e-06},
 "x/huge": {"litellm_provider": "x", "mode": "chat", "input_cost_per_token": 1e999999, "output_cost_per_token": 1e-06},
 "x/null": null,
 "perplexity/sonar": {"litellm_provider": "perplexity", "mode": "chat",
   "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06},
 "gpt-5-search-api": {"litellm_provider": "openai", "mode": "chat",
   "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06},
 "o3-deep-research": {"litellm_provider": "openai", "mode": "responses",
   "input_cost_per_token": 1e-05, "output_cost_per_token": 4e-05},
 "x/each": {"litellm_provider": "x", "mode": "chat", "input_cost_per_request": 0.005,
   "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06},
 "text-embedding-3-small": {"litellm_provider": "openai", "mode": "embedding",
   "input_cost_per_token": 2e-08, "output_cost_per_token": 0.0}
}"""
SONNET = "anthropic/claude-sonnet-4-5"
M = 10**6


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return PriceTable(TABLE)


def priced(table: PriceTable, model: str) -> Price:
    found = table.price(model)
    assert isinstance(found, Price), found
    return found


def refused(table: PriceTable, model: str) -> Unpriced:
    found = table.price(model)
    assert isinstance(found, Unpriced), found
    return found


def tiers(*rows: tuple[int, ...]) -> tuple[Tier, ...]:
    return tuple(Tier(*row) for row in rows)


# ---------------------------------------------------------------- the table


def test_a_bare_key_is_found_under_its_vendor(table: PriceTable) -> None:
    found = priced(table, SONNET)
    assert found.tiers == tiers((0, 3 * M, 15 * M, 300_000, 3_750_000, 15 * M))
    assert (found.key, found.source, found.context, found.max_output) == ("claude-sonnet-4-5", "table", 200000, 64000)


def test_the_exact_key_comes_before_a_bare_one_and_needs_no_vendor_field(table: PriceTable) -> None:
    assert priced(table, "vertex_ai/claude-sonnet-4-5").key == "vertex_ai/claude-sonnet-4-5"


def test_tiers_by_size_and_no_rates_that_nobody_asks_for(table: PriceTable) -> None:
    found = priced(table, "gemini/gemini-2.5-pro")
    low = (0, 1_250_000, 10 * M, 1_250_000, 1_250_000, 10 * M)
    high = (200_000, 2_500_000, 15 * M, 2_500_000, 2_500_000, 15 * M)
    assert found.tiers == tiers(low, high)
    assert found.context is None  # a text is no number


def test_a_list_of_tiers_in_any_order(table: PriceTable) -> None:
    low = (0, 50_000, 400_000, 50_000, 50_000, 4 * M)
    high = (256_000, 250_000, 2 * M, 250_000, 250_000, 4 * M)  # what it does not say is not less than before
    assert priced(table, "dashscope/qwen-flash").tiers == tiers(low, high)


def test_what_a_tier_does_not_say_is_not_less_than_before(table: PriceTable) -> None:
    low, high = (0, M, 5 * M, M, 9 * M, 5 * M), (32_000, 2 * M, 5 * M, 2 * M, 9 * M, 5 * M)
    assert priced(table, "x/written").tiers == tiers(low, high)


def test_noise_of_floats_is_not_paid_for_and_the_rest_is_rounded_up(table: PriceTable) -> None:
    noisy = priced(table, "novita/noisy").tiers[0]
    assert (noisy.input, noisy.output) == (200_000, 20 * M)
    fine = priced(table, "x/fine").tiers[0]
    assert (fine.input, fine.output) == (141_954, 1)


@pytest.mark.parametrize(
    "model",
    "ollama/llama3 azure/model-router github/none dashscope/torn dashscope/odd x/negative x/text x/true x/huge".split(),
)
def test_a_price_that_is_missing_nothing_or_none_is_refused(table: PriceTable, model: str) -> None:
    assert "no price" in refused(table, model).message
    assert "free: true" in refused(table, model).hint


@pytest.mark.parametrize("model", ["perplexity/sonar", "openai/gpt-5-search-api", "openai/o3-deep-research", "x/each"])
def test_what_costs_more_than_tokens_is_refused(table: PriceTable, model: str) -> None:
    assert "no reservation bounds it" in refused(table, model).message


def test_what_holds_no_conversation_is_refused(table: PriceTable) -> None:
    assert "its mode is embedding" in refused(table, "openai/text-embedding-3-small").message


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("anthropic/claude-sonnet-4.5", (SONNET,)),  # litellm prices it at 0
        ("Anthropic/Claude-Sonnet-4-5", (SONNET,)),
        ("claude-sonnet-4-5", (SONNET, "vertex_ai/claude-sonnet-4-5")),
        ("claude-sonnet-4.5", (SONNET, "vertex_ai/claude-sonnet-4-5")),
        ("openai/claude-sonnet-4-5", ()),  # known, but of another vendor
        ("anthropic/claude-haiku-4-6", ("anthropic/claude-haiku-4-5",)),
        ("anthropc/claude-haiku-4-5", ("anthropic/claude-haiku-4-5",)),
        ("openrouter/anthropic/claude-sonnet-4-5", (SONNET,)),
        ("ollama/zzz", ()),
        ("ollama/llama-3", ()),  # what is near has no price either
        ("x/null", ()),
        ("sample_spec", ()),
        ("", ()),
        ("/", ()),
        ("anthropic/", ()),
        ("/claude-sonnet-4-5", (SONNET,)),
    ],
)
def test_nothing_fuzzier_but_near_names(table: PriceTable, model: str, near: tuple[str, ...]) -> None:
    found = refused(table, model)
    assert found.near[: len(near)] == near
    assert bool(found.near) == bool(near)
    assert f"`{model}`" in found.message
    assert not near or f"did you mean {near[0]}" in found.hint


def test_the_digest_is_that_of_the_file(table: PriceTable) -> None:
    assert table.digest == sha256(TABLE).hexdigest()


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"a": {"input_cost_per_token": NaN}}', b'{"a": Infinity}', b"\xff"])
def test_a_file_that_is_no_table_is_a_clear_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "t.json").write_bytes(raw)
    with pytest.raises(EnvironmentFault, match=r"the price table .*t\.json can't be read"):
        load_table(str(tmp_path / "t.json"))


def test_without_litellm_the_fix_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "litellm").exists()])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "litellm", raising=False)
    with pytest.raises(EnvironmentFault) as caught:
        load_table()
    assert "litellm is not installed" in caught.value.message
    assert "pip install 'dagrun[llm]'" in caught.value.hint


def test_the_table_is_found_beside_a_litellm_that_is_never_imported(tmp_path: Path) -> None:
    package = tmp_path / "litellm"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('litellm was imported')")
    (package / TABLE_FILE).write_bytes(TABLE)
    code = "import sys; from dagrun.agent.prices import *; print(load_table().digest, 'litellm' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [sha256(TABLE).hexdigest(), "False"]


# ---------------------------------------------------------------- the workflow's own


def test_an_own_price() -> None:
    found = own_price("local/a", {"input": "0.5", "output": "1.25", "cached": "0"})
    assert found == Price(
        model="local/a", source="workflow", tiers=tiers((0, 500_000, 1_250_000, 0, 500_000, 1_250_000))
    )


def test_free() -> None:
    found = own_price("ollama/llama3", {"free": True})
    assert isinstance(found, Price)
    assert found.worst() == Rates(input=0, output=0)
    assert cost(Usage(input=10**6, output=10**6), found) == 0
    assert price_class(found) == "cheap"


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"free": False},
        {"free": 1},
        {"free": True, "input": "1"},
        {"input": "1"},
        {"input": "1", "output": "0"},
        {"input": "0", "output": "1"},
        {"input": 0.1, "output": "1"},
        {"input": "1", "output": "-1"},
        {"input": "NaN", "output": "1"},
        {"input": True, "output": "1"},
        {"input": "1", "output": "1", "cost": "1"},
    ],
)
def test_an_own_price_that_is_none_is_refused(said: dict[str, Json]) -> None:
    found = own_price("local/a", said)
    assert isinstance(found, Unpriced)
    assert "local/a" in found.message
    assert found.hint


# ---------------------------------------------------------------- what a call costs


def test_each_kind_of_token_has_its_rate(table: PriceTable) -> None:
    usage = Usage(input=1000, cached=300, cache_written=200, output=100, reasoning=40)
    # (500 × 3 + 300 × 0.3 + 200 × 3.75 + 100 × 15) USD per million
    assert cost(usage, priced(table, SONNET)) == 1_500_000 + 90_000 + 750_000 + 1_500_000


def test_a_whole_call_is_billed_at_the_tier_of_its_size(table: PriceTable) -> None:
    price = priced(table, "gemini/gemini-2.5-pro")
    assert cost(Usage(input=200_000, output=1), price) == 200_000 * 1250 + 10_000
    assert cost(Usage(input=200_001, output=1), price) == 200_001 * 2500 + 15_000


def test_reasoning_may_cost_more_than_the_rest(table: PriceTable) -> None:
    assert cost(Usage(output=10, reasoning=4), priced(table, "dashscope/qwen-flash")) == 6 * 400 + 4 * 4000


def test_a_part_of_a_nano_dollar_is_a_whole_one(table: PriceTable) -> None:
    assert cost(Usage(output=1), priced(table, "x/fine")) == 1
    assert cost(Usage(), priced(table, "x/fine")) == 0


def test_parts_above_their_whole_are_paid_all_the_same(table: PriceTable) -> None:
    """Cached tokens that were left out of the input must not make a call cheaper."""
    assert cost(Usage(input=10, cached=1000), priced(table, SONNET)) == 300_000
    assert cost(Usage(output=1, reasoning=100), priced(table, SONNET)) == 1_500_000
    big = Usage(input=1, cached=200_001)
    assert cost(big, priced(table, "gemini/gemini-2.5-pro")) == 200_001 * 2500


@pytest.mark.parametrize("bad", [-1, True, 1.0, float("nan"), None])
@pytest.mark.parametrize("field", ["input", "output", "cached", "cache_written", "reasoning"])
def test_usage_that_is_no_count_has_no_cost(table: PriceTable, field: str, bad: object) -> None:
    with pytest.raises(ValueError, match=f"usage.{field}"):
        cost(Usage(**{field: bad}), priced(table, SONNET))  # type: ignore[arg-type]


def test_the_worst_rates_are_those_of_any_token_and_any_tier_that_can_be_reached(table: PriceTable) -> None:
    assert priced(table, SONNET).worst() == Rates(input=3_750_000, output=15 * M)
    gemini = priced(table, "gemini/gemini-2.5-pro")
    assert gemini.worst() == gemini.worst(200_001) == Rates(input=2_500_000, output=15 * M)
    assert gemini.worst(200_000) == Rates(input=1_250_000, output=10 * M)
    assert priced(table, "dashscope/qwen-flash").worst(1) == Rates(input=50_000, output=4 * M)


amounts = st.integers(0, 10**9)
some_prices = st.builds(
    lambda first, rest: Price(
        model="a/b",
        source="workflow",
        tiers=(Tier(0, *first), *(Tier(above, *row) for above, row in sorted(rest.items()))),
    ),
    st.tuples(*[amounts] * 5),
    st.dictionaries(st.integers(1, 10**6), st.tuples(*[amounts] * 5), max_size=3),
)


@given(some_prices, st.integers(0, 10**6), st.integers(0, 10**6), st.data())
def test_no_usage_within_a_request_costs_more_than_its_worst_case(
    price: Price, prompt: int, most: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, prompt))
    cached = data.draw(st.integers(0, size))
    output = data.draw(st.integers(0, most))
    usage = Usage(
        input=size,
        cached=cached,
        cache_written=data.draw(st.integers(0, size - cached)),
        output=output,
        reasoning=data.draw(st.integers(0, output)),
    )
    bound = worst_case(prompt, most, price.worst(prompt))
    assert cost(usage, price) <= bound <= worst_case(prompt, most, price.worst())


@given(some_prices, st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_cost_is_exact(price: Price, size: int, output: int) -> None:
    tier = [t for t in price.tiers if t.above == 0 or size > t.above][-1]
    assert cost(Usage(input=size, output=output), price) == ceil(
        Fraction(size * tier.input + output * tier.output, 1000)
    )


# ---------------------------------------------------------------- classes and the record


@pytest.mark.parametrize(
    ("output", "name"),
    [("5", "cheap"), ("5.000001", "middle"), ("14.999999", "middle"), ("15", "expensive"), ("0.1", "cheap")],
)
def test_classes_of_price(output: str, name: str) -> None:
    price = own_price("a/b", {"input": "1", "output": output})
    assert isinstance(price, Price)
    assert price_class(price) == name


def test_an_unlisted_model_is_expensive_and_the_bounds_are_configurable(table: PriceTable) -> None:
    assert price_class(None) == "expensive"
    assert price_class(priced(table, SONNET), Classes(cheap=15 * M, expensive=16 * M)) == "cheap"
    assert price_class(priced(table, "gemini/gemini-2.5-pro")) == "middle"  # the large calls are another matter


def test_a_workflow_says_where_its_classes_begin() -> None:
    assert classes_of({}) == CLASSES
    assert classes_of({"cheap": "2.50"}) == Classes(cheap=2_500_000, expensive=CLASSES.expensive)
    price = own_price("v/m", {"input": "1", "output": "1"})
    assert isinstance(price, Price)
    assert price_class(price, classes_of({"cheap": "0.01", "expensive": "0.02"})) == "expensive"


def test_tries_and_delays_of_each_class() -> None:
    assert dict(CALL_RETRIES) == {
        "cheap": CallRetry(tries=10, delay_s=1.0, max_delay_s=30.0),
        "middle": CallRetry(tries=5, delay_s=1.0, max_delay_s=30.0),
        "expensive": CallRetry(tries=3, delay_s=2.0, max_delay_s=120.0),
    }


def test_own_prices_win_and_the_table_is_read_only_for_the_rest() -> None:
    own: dict[str, dict[str, Json]] = {SONNET: {"input": "1", "output": "2"}, "local/b": {"free": True}}

    def no_table() -> PriceTable:
        raise AssertionError("the table was read")

    found = resolve(["local/b", SONNET, SONNET], own, no_table)
    assert (list(found.prices), found.refused, found.table) == (["local/b", SONNET], (), "")
    assert found.prices[SONNET].worst() == Rates(input=1 * M, output=2 * M)
    mixed = resolve(["local/b", "anthropic/claude-haiku-4-5", "a/b"], own, lambda: PriceTable(TABLE))
    assert list(mixed.prices) == ["local/b", "anthropic/claude-haiku-4-5"]
    assert [r.model for r in mixed.refused] == ["a/b"]
    assert mixed.table == sha256(TABLE).hexdigest()


def test_an_own_price_that_is_wrong_is_not_replaced_by_the_tables() -> None:
    found = resolve([SONNET], {SONNET: {"input": "0", "output": "1"}}, lambda: PriceTable(TABLE))
    assert (dict(found.prices), [r.model for r in found.refused]) == ({}, [SONNET])


@given(some_prices, st.none() | st.integers(1, 10**7))
def test_a_frozen_price_comes_back(price: Price, context: int | None) -> None:
    full = Price(model="a/b", source="table", tiers=price.tiers, key="b", context=context, max_output=7)
    assert price_from_json(json.loads(json.dumps(price_to_json(full)))) == full


# ---------------------------------------------------------------- litellm's own table


@pytest.fixture(scope="module")
def real() -> PriceTable:
    """The table of the litellm that is installed; skips without one, but fails in CI."""
    need_litellm()
    return load_table()


def test_the_seeds_spelling_is_refused_with_the_right_one(real: PriceTable) -> None:
    assert refused(real, "anthropic/claude-sonnet-4.5").near == (SONNET,)
    assert SONNET in refused(real, "claude-sonnet-4.5").near
    for guess in ("ollama/zzz", "fireworks_ai/unknown", "openrouter/anthropic/claude-sonnet-4.5"):
        refused(real, guess)


def test_models_that_the_documentation_names_are_priced(real: PriceTable) -> None:
    assert priced(real, SONNET).worst() == Rates(input=3_750_000, output=15 * M)
    assert priced(real, "anthropic/claude-haiku-4-5").worst() == Rates(input=1_250_000, output=5 * M)
    assert priced(real, "openai/gpt-4o").tiers[0][:4] == (0, 2_500_000, 10 * M, 1_250_000)


def test_every_price_of_the_table_is_sound(real: PriceTable) -> None:
    """No rate is 0, tiers only climb in size, and what is refused says why."""
    names = list(real._spelled())
    found = [price for name in names if isinstance(price := real._find(name), Price)]
    assert len(found) > 1000
    for price in found:
        assert price.tiers[0].above == 0
        assert [t.above for t in price.tiers] == sorted({t.above for t in price.tiers})
        assert all(min(tier[1:]) > 0 for tier in price.tiers), price
        assert price.tiers[0].output <= price.worst().output

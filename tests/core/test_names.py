"""Ids, durations, and the words that the glossary promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.names import (
    ID_MAX,
    SETTLED,
    Outcome,
    RunStatus,
    Status,
    format_duration,
    is_id,
    parse_duration,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("text", ["a", "_", "A-b_9", "x" * ID_MAX])
def test_an_id_is_a_letter_or_underscore_and_then_letters_digits_hyphens(text: str) -> None:
    assert is_id(text)


@pytest.mark.parametrize("text", ["", "1a", "-a", "a.b", "a/b", "a b", "a\n", "é", "x" * (ID_MAX + 1)])
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("1.5s", 1.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172800),
        ("1d2h3m4s5ms", 93784.005),
        ("30", 30),
        ("0.25", 0.25),
        (" 7 ", 7),
        ("0", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "5 m",
        "1m1h",
        "-1s",
        "1.5h",
        "1e3",
        "inf",
        "nan",
        "5min",
        "٣s",
        "9" * 400,
        "9" * 400 + "d",
        "1_000",
    ],
)
def test_what_is_no_duration_is_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(ValueError, match="500ms, 30s, 5m, 1h30m"):
        parse_duration(text)


@given(st.text("0123456789.dhms ", max_size=40))
def test_parsing_a_duration_raises_nothing_but_value_error(text: str) -> None:
    try:
        assert 0 <= parse_duration(text) < 1e18
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0s"),
        (0, "0.0s"),
        (0.44, "0.4s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (65, "1m05s"),
        (3599.7, "1h00m"),
        (7380, "2h03m"),
        (360000, "100h00m"),
    ],
)
def test_durations_for_people_never_show_sixty_of_anything(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_five_statuses_are_settled() -> None:
    assert [s for s in Status if s in SETTLED] == list(Status)[-5:]


@pytest.mark.parametrize(("words", "heading"), [(Status, "## Status of a node"), (RunStatus, "## Status of a run")])
def test_the_glossary_has_every_status(words: type[Status] | type[RunStatus], heading: str) -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    section = text.split(heading)[1].split("\n## ")[0]
    assert all(re.search(rf"\b{word}\b", section) for word in words)


def test_the_glossary_has_every_outcome() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    section = text.split("## Outcome of an attempt")[1].split("\n## ")[0]
    assert all(re.search(rf"\b{word}\b", section) for word in Outcome)

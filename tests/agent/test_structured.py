"""Structured answers: what counts as one, what is said about the others."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.agent.structured import MAX_ANSWER, Fits, NoJson, Wrong, judge, parse, reminder, violations
from dagrun.core.names import Json

SCHEMA: Json = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["fine", "bad"]},
        "score": {"type": "integer", "minimum": 0},
        "notes": {"type": "array", "maxItems": 2, "items": {"type": "string", "pattern": "^[a-z]+$"}},
    },
    "required": ["verdict", "score"],
    "additionalProperties": False,
}
GOOD = '{"verdict": "fine", "score": 1}'
VALUE: Json = {"verdict": "fine", "score": 1}


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n  {GOOD}\n",
        f"\ufeff{GOOD}",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"Here it is:\n\n```json\n{GOOD}\n```\nAnything else?",
        f"Here it is: {GOOD} Anything else?",
        f"As [they] say {{so to speak}}: {GOOD}",
        f"```sh\nls ${{HOME}}\n```\nand so {GOOD}",
        f"```python\nx = [y]\n```\n```json\n{GOOD}\n```",
    ],
)
def test_what_is_taken(text: str) -> None:
    assert judge(text, SCHEMA) == Fits({"verdict": "fine", "score": 1})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no answer"),
        ("I can't do that.", "the answer is not JSON"),
        (GOOD[:-1], "a bracket of the JSON value is never closed"),
        ('{"verdict": "fine", "score": 1,}', "not JSON: illegal trailing comma"),
        ("{'verdict': 'fine', 'score': 1}", "not JSON: expecting property name"),
        ('{"verdict": "fine", "score": 1 // really\n}', "not JSON: expecting ',' delimiter"),
        ('{"verdict": "fine", "score": NaN}', "NaN is not JSON"),
        ('{"verdict": "fine", "score": 1e999}', "1e999 is too large"),
        ('{"verdict": "fine", "score": 1, "score": 2}', 'the key "score" is written twice'),
        ('{"verdict": "\\ud800", "score": 1}', "half of a surrogate pair"),
        ('{"verdict": "fine", "score": ' + "1" * 5000 + "}", "a number is too long"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ("x" * (MAX_ANSWER + 1), "more than"),
    ],
)
def test_nothing_is_repaired(text: str, why: str) -> None:
    verdict = judge(text, SCHEMA)
    assert isinstance(verdict, Wrong)
    assert len(verdict.errors) == 1
    if "trailing comma" in why:  # Python 3.13 has words of its own for it
        assert verdict.errors[0].startswith(".: not JSON: ")
    else:
        assert why in verdict.errors[0]


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": {"verdict": "fine", "score": 1},}',  # the outer one is broken: the inner one is not the answer
        '[{"verdict": "fine", "score": 1}, {"verdict"',
        f"```json\n{{broken\n```\n{GOOD}",
        f"[never closed, {GOOD}",
    ],
)
def test_a_part_of_a_broken_value_is_never_taken_for_the_answer(text: str) -> None:
    with pytest.raises(NoJson):
        parse(text)


def test_an_answer_is_an_object() -> None:
    assert judge("[1]", {"type": "array"}) == Wrong((".: must be an object, not an array",))
    assert judge("3", True) == Wrong((".: must be an object, not a number",))
    assert judge("{}", True) == Fits({})


def test_errors_are_paths_and_rules() -> None:
    value: Json = {"verdict": "so-so", "score": -1, "notes": ["ok", 3, "NO"], "extra\n": 1}
    assert violations(value, SCHEMA) == (
        '.: the key "extra\\n" is not allowed',
        ".notes: must have at most 2, has 3",
        ".notes[1]: must be a string, not a number",
        ".notes[2]: must match ^[a-z]+$",
        ".score: -1 is less than the minimum of 0",
        '.verdict: must be "fine" or "bad"',
    )
    assert violations({}, SCHEMA) == (".: `score` is missing", ".: `verdict` is missing")
    assert violations(None, SCHEMA) == (".: must be an object, not null",)
    assert violations({"verdict": "fine", "score": True}, SCHEMA) == (".score: must be an integer, not a boolean",)


def test_errors_of_alternatives_are_those_of_the_nearest_one() -> None:
    schema: Json = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["z"]}]}
    assert violations({}, schema) == (".: `z` is missing (or fit another alternative)",)


def test_errors_are_few_and_short() -> None:
    value: Json = {"score": 1, "verdict": "x" * 100_000, **{f"{n}{'k' * 300}": 1 for n in range(50)}}
    errors = violations(value, SCHEMA)
    assert len(errors) == 9
    assert errors[-1] == "and 43 more"
    assert all(len(error) < 200 for error in errors)
    long = violations({"a": "y" * 100_000}, {"properties": {"a": {"not": {}}}})
    assert len(long[0]) < 200


def test_no_schema_is_ever_fetched(tmp_path: Path) -> None:
    elsewhere = tmp_path / "schema.json"
    elsewhere.write_text("{}")
    errors = violations({}, {"$ref": elsewhere.as_uri()})
    assert len(errors) == 1
    assert "can't be used" in errors[0]


@pytest.mark.parametrize("schema", [3, "x", {"type": "nonsense"}, {"pattern": "("}, {"$ref": "#/$defs/none"}])
def test_a_schema_that_is_none_is_an_error_and_no_crash(schema: Json) -> None:
    assert len(violations("x", schema)) == 1


def test_a_reminder_has_the_errors_and_says_when_it_is_the_last() -> None:
    assert reminder((".a: must be an integer, not a string",), 1) == (
        "Your answer is not valid against the JSON Schema:\n- .a: must be an integer, not a string\n"
        "Answer again with the whole JSON object, corrected, and nothing else."
    )
    assert reminder(("x",), 0).endswith("This is the last try.")


@pytest.mark.parametrize("piece", ["[{", "{}", '"', "[x]", "```\n", '{"a":', "\\", '["', "[}", "```json\n{"])
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (1_500_000 // len(piece))
    begun = time.process_time()
    verdict = judge(text, SCHEMA)
    assert time.process_time() - begun < 5.0
    assert isinstance(verdict, Wrong)


JSONS: st.SearchStrategy[Json] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.text(st.characters(exclude_categories=["Cs"]))
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    ),
    max_leaves=10,
)


@given(JSONS, st.booleans(), st.sampled_from(["{}", "```json\n{}\n```", "So: {} ."]))
def test_every_value_comes_back_as_it_was_written(value: Json, ascii_only: bool, around: str) -> None:
    wrapped: Json = {"value": value}
    text = around.replace("{}", json.dumps(wrapped, ensure_ascii=ascii_only), 1)
    assert parse(text) == wrapped


@given(st.text(alphabet='{}[]",:\\ax1 \n`', max_size=60))
def test_any_text_is_a_value_or_no_json(text: str) -> None:
    try:
        value = parse(text)
    except NoJson:
        return
    assert json.loads(json.dumps(value)) == value

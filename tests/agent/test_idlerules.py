"""Rules of the fake provider that can't ever answer are worth a word, and only those."""

from __future__ import annotations

import pytest

from dagrun.agent.fake import load
from dagrun.agent.idlerules import idle_rules

NAMES = ("review", "repair", "repair-replanner")


def told(text: str) -> list[tuple[int, str, str]]:
    return [(p.line, p.message, p.hint) for p in idle_rules(load(text.encode(), "rules.yaml"), NAMES)]


@pytest.mark.parametrize(
    "rules",
    [
        "{node: review, turn: 1, text: a}\n- {node: review, text: b}",
        "{node: review, text: a}\n- {node: repair, text: b}",
        "{node: 'rep*', last: x, text: a}\n- {node: repair, text: b}",
        "{node: repair-fallback, text: a}",  # a patch may bring it
        "{node: scan, text: a}",
        "{node: '*view', text: a}",
        "{turn: [1, 2], text: a}\n- {turn: [2, 3], text: b}",
        "{node: repair, last: a, text: a}\n- {node: repair, last: b, text: b}",
        "{node: review, error: overloaded, try: 1}\n- {node: review, text: b}",
    ],
)
def test_what_may_answer_is_not_told(rules: str) -> None:
    assert told(f"rules:\n- {rules}\n") == []


@pytest.mark.parametrize(
    "rules",
    [
        "{text: a}\n- {node: review, text: b}",
        "{node: review, text: a}\n- {node: review, turn: 2, text: b}",
        "{node: [review, repair], text: a}\n- {node: repair, last: x, text: b}",
        "{node: 're*', text: a}\n- {node: repair, text: b}",
        "{turn: [1, 2], text: a}\n- {turn: 2, node: x, text: b}",
        "{node: review, last: x, error: overloaded}\n- {node: review, last: x, text: b}",
    ],
)
def test_a_rule_behind_one_that_always_answers_first(rules: str) -> None:
    message = "this rule never answers: whatever fits it fits the rule at line 2 before"
    assert told(f"rules:\n- {rules}\n") == [(3, message, "put it before that one, or remove it")]


def test_a_name_that_is_nearly_one_of_an_agent() -> None:
    assert told("rules:\n- {node: reviw, text: a}\n- {node: [repair, repair-replaner], text: b}\n") == [
        (2, "no agent is called `reviw`", "did you mean `review`?"),
        (3, "no agent is called `repair-replaner`", "did you mean `repair-replanner`?"),
    ]


def test_they_are_warnings_with_a_place() -> None:
    [problem] = idle_rules(load(b"rules:\n- {node: reviw, text: a}\n", "x/rules.yaml"), NAMES)
    assert (problem.severity, problem.code, problem.file, problem.column) == ("warning", "idle-rule", "x/rules.yaml", 1)


def test_a_huge_file_is_not_compared_rule_by_rule() -> None:
    rules = "".join(f"- {{node: n{k}, text: a}}\n" for k in range(10_000))
    assert told(f"rules:\n{rules}") == []

"""Every way in which dagrun says no has an exit code and a text that can't move a cursor."""

from __future__ import annotations

import pytest

from dagrun import errors
from dagrun.errors import DagrunError, InputError, NotFoundError, Problem, render, render_problem, visible

CODES = {
    "UsageError": 2,
    "InputError": 3,
    "BudgetError": 5,
    "ConflictError": 6,
    "RunLockedError": 7,
    "EnvironmentFault": 8,
    "JournalError": 8,
    "NotFoundError": 9,
    "BugError": 70,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_codes(name: str, code: int) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, DagrunError)
    assert cls.exit_code == code


def test_every_error_is_in_the_tree() -> None:
    known = {name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, DagrunError)}
    assert known - {"DagrunError"} == CODES.keys()
    assert known <= set(errors.__all__)
    assert errors.__doc__ is not None
    assert all(f"─ {name} " in errors.__doc__ for name in CODES)


def test_an_error_ends_with_the_next_command() -> None:
    error = NotFoundError("there is no run x", hint="see your runs: dagrun runs")
    assert render(error) == "error[not-found]: there is no run x\n  help: see your runs: dagrun runs"
    assert error.to_json() == {
        "code": "not-found",
        "exit_code": 9,
        "message": "there is no run x",
        "hint": "see your runs: dagrun runs",
    }


def test_a_problem_is_a_code_frame() -> None:
    problem = Problem(
        code="unknown-key",
        message="unknown key `need`",
        file="flow.yaml",
        line=10,
        column=5,
        length=4,
        hint="did you mean `needs`?",
        excerpt=((9, "  b:"), (10, "    need: a")),
    )
    assert render_problem(problem).splitlines() == [
        "error[unknown-key]: unknown key `need`",
        "  --> flow.yaml:10:5",
        "  9 |   b:",
        " 10 |     need: a",
        "    |     ^^^^",
        "    = help: did you mean `needs`?",
    ]


def test_errors_and_warnings_are_counted_apart() -> None:
    problems = tuple(Problem(code="c", message="m", severity=s) for s in ("error", "warning", "error"))
    error = InputError(problems)
    assert error.message == "2 errors"
    assert render(error).endswith("2 errors, 1 warning")
    assert InputError(problems[:1]).message == "1 error"


@pytest.mark.parametrize(
    ("line", "place", "marked"),
    [
        ('  title: "日本語" x', ('"日本語"', 10), "         ^^^^^^^^"),
        ("  日本: x", ("x", 7), "        ^"),
        ("  e\u0301: x", ("x", 7), "     ^"),
        ("  a\u202eb: x", ("a\u202eb", 3), "  ^^^^^^^^"),
        ("  a\x1bb: x", ("x", 8), "          ^"),
    ],
)
def test_the_mark_is_below_the_place_whatever_the_characters_take(
    line: str, place: tuple[str, int], marked: str
) -> None:
    text, column = place
    problem = Problem(code="c", message="m", file="f", line=1, column=column, length=len(text), excerpt=((1, line),))
    assert render_problem(problem).splitlines()[-1] == f"   | {marked}"


def test_what_can_not_be_seen_is_named_as_an_escape() -> None:
    assert visible("a\u202eb\u200bc\xa0d\U000e0041") == "a\\u202eb\\u200bc\\xa0d\\U000e0041"


def test_control_characters_are_shown_and_not_sent() -> None:
    assert visible("a\x1b[2Jb\tc\nd\x00") == "a\\x1b[2Jb c\nd\\x00"
    assert "\x1b" not in render(NotFoundError("\x1b]0;x\x07", hint="\x1b[1m"))

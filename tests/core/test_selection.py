"""`--only`, `--from`, `--until`."""

from __future__ import annotations

import pytest

from dagrun.core.selection import select
from dagrun.core.workflow import Node
from tests.core.strategies import flow

#   a ─ b ─ d ─ e
#    └─ c ─┘      f
PLAN = flow(
    Node(id="a", run="true"),
    Node(id="b", run="true", needs=("a",)),
    Node(id="c", run="true", needs=("a",)),
    Node(id="d", run="true", needs=("b", "c")),
    Node(id="e", run="true", needs=("d",)),
    Node(id="f", run="true"),
)


@pytest.mark.parametrize(
    ("only", "from_", "until", "chosen"),
    [
        ("", "", "", "abcdef"),
        ("d", "", "", "d"),
        ("bf", "", "", "bf"),
        ("", "b", "", "bde"),
        ("", "", "b", "ab"),
        ("", "b", "d", "bd"),
        ("", "bc", "d", "bcd"),
        ("", "", "df", "abcdf"),
        ("f", "d", "", "def"),
        ("", "e", "b", ""),
        ("", "f", "", "f"),
    ],
)
def test_selection(only: str, from_: str, until: str, chosen: str) -> None:
    assert "".join(PLAN.ids[i] for i in sorted(select(PLAN, only, from_, until))) == chosen


def test_an_unknown_id_is_the_callers_mistake() -> None:
    with pytest.raises(KeyError):
        select(PLAN, ["nope"], [], [])


def test_a_chain_of_ten_thousand_is_no_recursion() -> None:
    plan = flow(*[Node(id=f"n{i}", run="true", needs=(f"n{i - 1}",) if i else ()) for i in range(10_000)])
    assert len(select(plan, [], ["n0"], ["n9999"])) == 10_000

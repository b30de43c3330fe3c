"""Rules of the fake provider that can never answer: a misspelt node, or one that an earlier rule always answers for.

Only what is certain, or nearly so, is told: a node of a patch may have any name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from re import Pattern

from dagrun.agent.fake import FakeProvider, Rule
from dagrun.errors import Problem

_COMPARED = 500  # rules that are looked at; each is held against all before it
_LIKE = 0.85


def idle_rules(provider: FakeProvider, agents: Collection[str]) -> Iterator[Problem]:
    """A warning for each of the first rules that no question to one of `agents` can reach."""
    for k, rule in enumerate(provider.rules[:_COMPARED]):
        for name in rule.node or ():
            near = [] if _known(name, agents) else get_close_matches(name, agents, n=1, cutoff=_LIKE)
            if near:
                yield _warning(provider, rule, f"no agent is called `{name}`", f"did you mean `{near[0]}`?")
        first = next((r for r in provider.rules[:k] if covers(r, rule)), None)
        if first is not None:
            message = f"this rule never answers: whatever fits it fits the rule at line {first.line} before"
            yield _warning(provider, rule, message, "put it before that one, or remove it")


def _known(name: str, agents: Collection[str]) -> bool:
    """Whether it is an agent, one that stands in for it, or a pattern."""
    plain = name.partition("-fallback")[0]
    return plain in agents or any(c in name for c in "*?[") or name in agents


def covers(first: Rule, later: Rule) -> bool:
    """Whether all that fits `later` fits `first` too."""
    return (
        _all_match(first.node, later.node)
        and _all_match(first.model, later.model)
        and _within(first.turn, later.turn)
        and _within(first.tries, later.tries)
        and _within(first.attempt, later.attempt)
        and _same(first.last, later.last)
        and _same(first.prompt, later.prompt)
    )


def _all_match(patterns: tuple[str, ...] | None, names: tuple[str, ...] | None) -> bool:
    if patterns is None or names is None:
        return patterns is None
    return all(name in patterns or (not set("*?[") & set(name) and _matches(name, patterns)) for name in names)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _within(numbers: tuple[int, ...] | None, others: tuple[int, ...] | None) -> bool:
    return numbers is None or (others is not None and set(others) <= set(numbers))


def _same(pattern: Pattern[str] | None, other: Pattern[str] | None) -> bool:
    return pattern is None or (other is not None and pattern.pattern == other.pattern)


def _warning(provider: FakeProvider, rule: Rule, message: str, hint: str) -> Problem:
    return Problem(
        code="idle-rule",
        message=message,
        file=provider.file,
        line=rule.line,
        column=1,
        hint=hint,
        severity="warning",
    )

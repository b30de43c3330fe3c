"""The fake provider as a source: answers when they are due, and the words that a model would have said so far."""

from __future__ import annotations

from dagrun.agent import fake
from dagrun.agent.messages import Message, Reply, Request
from dagrun.engine.providers import Answered, Asked, FakeSource, Said

REQUEST = Request(model="fake/model", messages=(Message(role="user", content="Hi"),))
RULES = b"""
rules:
  - {node: slow, text: "0123456789", latency: 1s}
  - {node: failing, error: overloaded, latency: 1s}
"""


def ask(source: FakeSource, key: int, node: str, now: float) -> float | None:
    return source.ask(key, Asked(node, 1, 1, 1), REQUEST, 60.0, now)


def test_words_come_as_time_passes_and_the_answer_once() -> None:
    source = FakeSource(fake.load(RULES, "rules.yaml"))
    assert ask(source, 1, "slow", 100.0) == 1.0
    assert source.collect(100.25) == [Said(1, "01")]
    assert source.collect(100.30) == []  # too soon to look again
    assert source.collect(100.75) == [Said(1, "0123456")]
    (news,) = source.collect(101.0)
    assert isinstance(news, Answered)
    assert isinstance(news.answer, Reply)
    assert news.answer.text == "0123456789"
    assert source.collect(102.0) == []


def test_an_error_says_nothing_before_it_comes_and_a_cancelled_call_never() -> None:
    source = FakeSource(fake.load(RULES, "rules.yaml"))
    ask(source, 1, "failing", 100.0)
    ask(source, 2, "slow", 100.0)
    source.cancel(2)
    assert source.collect(100.5) == []
    assert [news.key for news in source.collect(101.0)] == [1]

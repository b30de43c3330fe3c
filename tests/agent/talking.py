"""Asking a live broker from a test, and waiting for what it says: with a deadline, never with a sleep."""

from __future__ import annotations

import os
import select
import time
from importlib.util import find_spec

import pytest

from dagrun.agent.live import AnsweredCall, BrokerLost, Heard, Live, Said
from dagrun.agent.messages import Answer, CallFailed, Message, Reply, Request

PATIENCE_S = 60.0


def need_litellm() -> None:
    """Skip where the extra `llm` is not installed; in CI that is a failure."""
    if find_spec("litellm") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have litellm: pip install 'dagrun[llm]'")
        pytest.skip("litellm is not installed")


def request(model: str, text: str = "hi", **more: object) -> Request:
    """A request with one message."""
    return Request(model=model, messages=(Message(role="user", content=text),), **more)  # type: ignore[arg-type]


class Talk:
    """One Live, and all that it said. Calls are numbered by themselves."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.heard: list[Heard] = []
        self._number = 0

    def ask(self, wanted: Request, timeout_s: float = 30.0) -> int:
        """Ask without waiting; the number of the call."""
        self._number += 1
        self.live.ask(self._number, wanted, timeout_s)
        return self._number

    def wait(self, number: int) -> Answer:
        """The answer to a call."""
        end = time.monotonic() + PATIENCE_S
        while (found := self.answer(number)) is None:
            self.listen(end - time.monotonic())
        return found

    def answer(self, number: int) -> Answer | None:
        """The answer to a call, if it came."""
        found = [one.answer for one in self.heard if isinstance(one, AnsweredCall) and one.id == number]
        assert len(found) <= 1, found
        return found[0] if found else None

    def said(self, number: int) -> list[str]:
        """The last words of a call, as they came."""
        return [one.text for one in self.heard if isinstance(one, Said) and one.id == number]

    def lost(self) -> list[str]:
        """Why brokers were lost."""
        return [one.text for one in self.heard if isinstance(one, BrokerLost)]

    def listen(self, timeout_s: float) -> None:
        """Take what comes next."""
        assert timeout_s > 0, f"nothing more was heard after {self.heard[-5:]}"
        fd = self.live.fileno()
        assert fd >= 0, "there is no broker to hear"
        select.select([fd], [fd] if self.live.wants_write else [], [], timeout_s)
        self.heard += self.live.feed()

    def reply(self, wanted: Request, timeout_s: float = 30.0) -> Reply:
        """Ask and wait for a reply."""
        answer = self.wait(self.ask(wanted, timeout_s))
        assert isinstance(answer, Reply), answer
        return answer

    def failure(self, wanted: Request, timeout_s: float = 30.0) -> CallFailed:
        """Ask and wait for an error."""
        answer = self.wait(self.ask(wanted, timeout_s))
        assert isinstance(answer, CallFailed), answer
        return answer

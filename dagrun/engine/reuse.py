"""What attempts that were cut short had bought and done, for the next attempt of their node: nothing is bought twice.

Read once from the record of a run that is taken up again. Asks no model and runs no tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dagrun.agent.messages import Reply, Request, ToolCall
from dagrun.agent.prompt import ToolOutput
from dagrun.agent.replay import canonical
from dagrun.core.names import NodeId
from dagrun.engine.recording import Call, Record, ToolUse, calls_of, tools_of, trials_of


class Bought(NamedTuple):
    """A reply that an attempt which was cut short had bought: what was asked of whom, and its `attempt/call`."""

    reply: Reply
    model: str
    max_tokens: int
    origin: str


class Returned(NamedTuple):
    """A tool's result that an attempt which was cut short had, and its `attempt/number`."""

    output: ToolOutput
    origin: str


class Reuse:
    """What the attempts of one node that were cut short bought and did, given again in their order.

    Ask for each thing before it is bought or done. The first that differs from what is here ends it:
    nothing is given any more. Errors are not repeated.
    """

    def __init__(self, paths: Iterable[Sequence[Call | ToolUse]] = ()) -> None:
        self._paths = [list(path) for path in paths if path]
        self._at = 0

    def reply(self, request: Request) -> Bought | None:
        """The reply to this request, whichever model gave it; None: it has to be bought.

        The model and a larger `max_tokens` don't count: they are chosen for each call.
        """
        fitting = [(p, c) for p, c in self._next() if isinstance(c, Call) and _asks(c, request)]
        self._paths = []
        if not fitting:
            return None
        found = fitting[-1][1]  # of the newest attempt
        assert isinstance(found.answer, Reply)
        self._paths = [path for path, call in fitting if call.answer == found.answer]
        self._at += 1
        asked = found.reserved
        return Bought(found.answer, asked.model, asked.max_tokens, f"{asked.attempt}/{asked.call}")

    def tool(self, number: int, call: ToolCall) -> Returned | None:
        """The result of this tool call; None: it has to be done."""
        fitting = [(p, u) for p, u in self._next() if isinstance(u, ToolUse) and _does(u, number, call)]
        self._paths = []
        if not fitting:
            return None
        found = fitting[-1][1]
        self._paths = [path for path, use in fitting if use.output == found.output]
        self._at += 1
        return Returned(found.output, f"{found.ended.attempt}/{found.ended.number}")

    def _next(self) -> list[tuple[list[Call | ToolUse], Call | ToolUse]]:
        return [(path, path[self._at]) for path in self._paths if len(path) > self._at]


def _asks(call: Call, request: Request) -> bool:
    asked = call.reserved
    if asked.max_tokens > request.max_tokens:
        return False
    return replace(request, model=asked.model, max_tokens=asked.max_tokens).digest() == asked.digest


def _does(use: ToolUse, number: int, call: ToolCall) -> bool:
    same = canonical(dict(use.arguments)) == canonical(dict(call.arguments or {}))
    return use.ended.number == number and use.ended.name == call.name and same


def reusable(record: Record) -> dict[NodeId, Reuse]:
    """For each node whose last attempts were cut short, what its next one need not buy again.

    Raises JournalError for what can't be read.
    """
    found: dict[NodeId, Reuse] = {}
    for node, tried in trials_of(record).items():
        paths: list[list[Call | ToolUse]] = []
        for trial in reversed(tried):
            if not trial.cut_short:
                break
            replies = [call for call in calls_of(record, trial) if isinstance(call.answer, Reply)]
            steps: list[Call | ToolUse] = [*replies, *tools_of(record, trial)]
            paths.insert(0, sorted(steps, key=lambda step: step.position))
        if any(paths):
            found[node] = Reuse(paths)
    return found

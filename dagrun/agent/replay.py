"""Replay: a recorded conversation gives its answers again, to the same questions only.

Calls of models and of tools are numbered per node. A question is the same when its digest is; the k-th
time a node asks it, it gets the k-th answer, errors as well. What was not recorded is an error that shows
the nearest question that was: nothing ever goes to a model instead. Knows no journal, clock or network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, TypeAlias

from dagrun.agent.gate import arguments_text, name_of
from dagrun.agent.messages import Answer, Message, Request, ToolCall
from dagrun.agent.prompt import ToolOutput
from dagrun.core.names import Json, NodeId
from dagrun.errors import ConflictError

Clean: TypeAlias = Callable[[str], str]
AROUND = 40  # characters that are shown before and after the first difference
MAX_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """A model call of a node: its number in the node's run (from 1), what was asked, what came back."""

    node: NodeId
    number: int
    digest: str
    answer: Answer
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTool:
    """A tool call of a node, with its number in the node's run (from 1)."""

    node: NodeId
    number: int
    name: str
    arguments: str
    output: ToolOutput


class ReplayMiss(ConflictError):
    """Something is asked that was not recorded."""

    code = "replay-miss"


@dataclass(frozen=True, slots=True)
class Recording:
    """All calls of a run, in the order of their numbers per node."""

    calls: tuple[RecordedCall, ...] = ()
    tools: tuple[RecordedTool, ...] = ()


def canonical(arguments: dict[str, Json]) -> str:
    """Arguments as one text that is the same for the same arguments."""
    return json.dumps(arguments, sort_keys=True, separators=(",", ":"))


# ---------------------------------------------------------------- answering


class Replay:
    """Answers from a recording. All it remembers is how often each question was asked.

    `clean` goes over every text of which an error shows a part (secrets).
    """

    def __init__(self, recording: Recording, clean: Clean = str) -> None:
        self._recording = recording
        self._clean = clean
        self._asked: Counter[tuple[str, str]] = Counter()
        self._answers: dict[tuple[str, str], list[RecordedCall]] = {}
        self._results: dict[tuple[str, str], list[RecordedTool]] = {}
        for call in recording.calls:
            self._answers.setdefault((call.node, call.digest), []).append(call)
        for tool in recording.tools:
            self._results.setdefault((tool.node, _tool_key(tool.name, tool.arguments)), []).append(tool)

    def answer(self, node: NodeId, request: Request) -> Answer:
        """The recorded answer, of the same time that this node asks this. Raises ReplayMiss."""
        key = (node, request.digest())
        found = self._answers.get(key, [])
        if self._asked[key] >= len(found):
            raise self._miss(node, request, len(found))
        self._asked[key] += 1
        return found[self._asked[key] - 1].answer

    def tool(self, node: NodeId, call: ToolCall) -> ToolOutput:
        """The recorded result, of the same time that this node calls this. Raises ReplayMiss."""
        arguments = canonical(dict(call.arguments or {}))
        key = (node, _tool_key(call.name, arguments))
        found = self._results.get(key, [])
        if self._asked[key] >= len(found):
            raise self._tool_miss(node, call.name, arguments, len(found))
        self._asked[key] += 1
        return found[self._asked[key] - 1].output

    def unused(self) -> dict[NodeId, int]:
        """How many recorded calls of each node nobody asked for (yet)."""
        left = Counter([call.node for call in self._recording.calls])
        left.update(tool.node for tool in self._recording.tools)
        for (node, _), times in self._asked.items():
            left[node] -= times
        return {node: count for node, count in sorted(left.items()) if count}

    # ------------------------------------------------------------ misses

    def _miss(self, node: NodeId, request: Request, known: int) -> ReplayMiss:
        mine = [call for call in self._recording.calls if call.node == node]
        head = f"node `{node}` asks a model something that was not recorded"
        if known:
            times = "once" if known == 1 else f"{known} times"
            return ReplayMiss(f"node `{node}` asks a model again what it asked only {times} when it was recorded")
        if not mine:
            others = sorted({call.node for call in self._recording.calls})
            there = f"those of {', '.join(others[:8])} were" if others else "the recording has none"
            return ReplayMiss(f"{head}: no call of this node was recorded ({there})", hint=_HINT)
        near = _nearest(request, mine)
        lines = difference(near.request, request, self._clean)
        shown = "\n".join(f"  {line}" for line in lines[:MAX_LINES])
        return ReplayMiss(f"{head}. The nearest is its call {near.number}:\n{shown}", hint=_HINT)

    def _tool_miss(self, node: NodeId, name: str, arguments: str, known: int) -> ReplayMiss:
        head = f"node `{node}` calls {name} in a way that was not recorded"
        if known:
            times = "once" if known == 1 else f"{known} times"
            return ReplayMiss(f"node `{node}` calls {name} again as it did only {times} when it was recorded")
        mine = [tool for tool in self._recording.tools if tool.node == node and tool.name == name]
        if not mine:
            used = sorted({tool.name for tool in self._recording.tools if tool.node == node})
            return ReplayMiss(f"{head}: it used {', '.join(used) or 'no tool'}", hint=_HINT)
        near = max(mine, key=lambda tool: _common(tool.arguments, arguments))
        shown = "\n".join(f"  {line}" for line in _apart("arguments", near.arguments, arguments, self._clean))
        return ReplayMiss(f"{head}. The nearest is its tool call {near.number}:\n{shown}", hint=_HINT)


_HINT = "the workflow, a skill or an input has changed since: run it with a model again, or undo the change"


def _tool_key(name: str, arguments: str) -> str:
    return f"{name} {sha256(arguments.encode()).hexdigest()}"


def tool_difference(recorded: ToolOutput, real: ToolOutput, clean: Clean = str) -> str:
    """How a tool that was really run differs from what was recorded, in a few lines; empty when it does not."""
    if recorded == real:
        return ""
    if recorded.ok != real.ok:
        was, now = ("worked", "failed") if recorded.ok else ("failed", "worked")
        return f"it {was} when it was recorded and {now} now: {_excerpt(clean(real.text), 0)}"
    return "\n".join(_apart("result", recorded.text, real.text, clean))


# ---------------------------------------------------------------- nearness


class _Score(NamedTuple):
    """How alike two requests are; larger is nearer."""

    messages: int
    common: int
    others: int


def _nearest(request: Request, calls: Iterable[RecordedCall]) -> RecordedCall:
    """The recorded call whose request is most like this one."""
    return max(calls, key=lambda call: (_score(call.request, request), -call.number))


def _score(a: Request, b: Request) -> _Score:
    same = sum(x == y for x, y in zip(a.messages, b.messages, strict=False))
    apart = next(((x, y) for x, y in zip(a.messages, b.messages, strict=False) if x != y), None)
    common = _common(apart[0].content, apart[1].content) if apart else 0
    others = sum(
        getattr(a, name) == getattr(b, name) for name in ("model", "tools", "max_tokens", "temperature", "schema")
    )
    return _Score(same - abs(len(a.messages) - len(b.messages)), common, others)


def _common(a: str, b: str) -> int:
    """Characters that two texts share at their beginning and end."""
    ahead = _ahead(a, b)
    most = min(len(a), len(b)) - ahead
    return ahead + next((k for k in range(most) if a[-1 - k] != b[-1 - k]), most)


def _ahead(a: str, b: str) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def difference(recorded: Request, asked: Request, clean: Clean = str) -> list[str]:
    """What differs between two requests, in short lines: `-` was recorded, `+` is asked now."""
    lines: list[str] = []
    for name in ("model", "max_tokens", "temperature"):
        was, now = getattr(recorded, name), getattr(asked, name)
        if was != now:
            lines += [f"- {name}: {was}", f"+ {name}: {now}"]
    lines += _apart("schema", _sorted(recorded.schema), _sorted(asked.schema), clean)
    lines += _tools_apart(recorded, asked, clean)
    for n, (was_said, is_said) in enumerate(zip(recorded.messages, asked.messages, strict=False), 1):
        lines += _message_apart(n, was_said, is_said, clean)
    if len(recorded.messages) != len(asked.messages):
        lines += [f"- {len(recorded.messages)} messages", f"+ {len(asked.messages)} messages"]
    return lines


def _tools_apart(recorded: Request, asked: Request, clean: Clean) -> list[str]:
    was, now = ({name_of(tool): _sorted(tool) for tool in request.tools} for request in (recorded, asked))
    lines = [f"- tool {name}" for name in was if name not in now]
    lines += [f"+ tool {name}" for name in now if name not in was]
    for name in was:
        lines += _apart(f"tool {name}", was[name], now.get(name, was[name]), clean)
    if not lines and recorded.tools != asked.tools:
        lines = [f"- tools: {', '.join(was)}", f"+ tools: {', '.join(now)}"]
    return lines


def _message_apart(n: int, was: Message, now: Message, clean: Clean) -> list[str]:
    name = f"message {n} ({now.role})"
    if was.role != now.role:
        return [f"- message {n} is of the {was.role}", f"+ message {n} is of the {now.role}"]
    lines = _apart(name, was.content, now.content, clean)
    return [*lines, *_apart(f"{name}, tool calls", _calls(was), _calls(now), clean)]


def _calls(message: Message) -> str:
    written = [f"{call.name} {call.id} {arguments_text(call)}" for call in message.tool_calls]
    return "; ".join(written) + message.tool_call_id


def _sorted(value: Json) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _apart(name: str, was: str, now: str, clean: Clean) -> list[str]:
    """The place where two texts begin to differ, with its surroundings and the sizes of the texts.

    The whole texts are cleaned: a part that is cut out may hold half of a secret, which nobody finds.
    """
    if was == now:
        return []
    sizes, was, now = (len(was), len(now)), clean(was), clean(now)
    if was == now:
        return [f"~ {name} differs in what is hidden here"]
    at = _ahead(was, now)
    return [
        f"{sign} {name}, character {at + 1:,} of {size:,}: {_excerpt(text, at)}"
        for sign, size, text in (("-", sizes[0], was), ("+", sizes[1], now))
    ]


def _excerpt(text: str, at: int) -> str:
    """What stands around a place, in one line."""
    start, end = max(0, at - AROUND), min(len(text), at + AROUND)
    shown = json.dumps(text[start:end], ensure_ascii=False)
    return f"{'…' if start else ''}{shown}{'…' if end < len(text) else ''}"

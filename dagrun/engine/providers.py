"""Who answers model calls: rules, a recording, or a broker that asks real models. One small door for all.

A source is asked and never waits: what comes of a call comes later, out of `collect`. Exactly one answer comes
for each call that was not cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from dagrun.agent.messages import Answer, CallFailed, Reply, Request
from dagrun.core.names import Json, NodeId, format_duration
from dagrun.errors import InputError

if TYPE_CHECKING:
    from dagrun.agent.fake import FakeProvider
    from dagrun.agent.live import Heard, Live
    from dagrun.agent.messages import Message, ToolCall
    from dagrun.agent.prices import Price
    from dagrun.agent.prompt import ToolOutput

SPOKEN_S = 0.1  # between looks at what answers have said so far


class Asked(NamedTuple):
    """Which call of which node this is: `tries` counts the asks of a turn, this one included."""

    node: NodeId
    attempt: int
    turn: int
    tries: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of call `key`."""

    key: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Said:
    """The last words of an answer that is still coming."""

    key: int
    text: str


News: TypeAlias = Answered | Said


class Never:
    """What a tool or a server gives that was cut short when it was recorded: its result never comes."""


class Source(Protocol):
    """What answers model calls."""

    @property
    def name(self) -> str:
        """fake, replay or live."""
        ...

    @property
    def costs(self) -> bool:
        """Whether a call may be billed, so that its reservation has to be on disk before it leaves."""
        ...

    def ask(self, key: int, asked: Asked, request: Request, timeout_s: float, now: float) -> float | None:
        """Ask; in how many seconds `collect` will have the answer, None: when a descriptor has something."""
        ...

    def cancel(self, key: int) -> None:
        """Nobody waits for this answer any more: none will come."""
        ...

    def collect(self, now: float) -> list[News]:
        """What came since the last time. Raises ReplayMiss and EnvironmentFault."""
        ...

    def fileno(self) -> int:
        """What becomes readable when there is something to collect; -1: nothing ever does."""
        ...

    @property
    def wants_write(self) -> bool:
        """Whether it waits to write to its descriptor."""
        ...

    def tool(self, node: NodeId, call: ToolCall) -> ToolOutput | Never | None:
        """The result of a tool call, where it is not to be run. Raises ReplayMiss."""
        ...

    def listed(self, node: NodeId, attempt: int, server: str) -> tuple[str, list[Json]] | Never | None:
        """What an MCP server lists, with its digest, where it is not to be started; Never: nothing, and the end."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


class FakeSource:
    """Answers by rules, after as long as they say."""

    name = "fake"
    costs = False
    wants_write = False

    def __init__(self, rules: FakeProvider) -> None:
        self._rules = rules
        self._coming: list[tuple[float, int, Answer]] = []
        self._asked: dict[int, float] = {}  # when each call that is coming was asked for
        self._spoke = 0.0

    def ask(self, key: int, asked: Asked, request: Request, timeout_s: float, now: float) -> float | None:
        """Ask the rules; what none of them fits is an error that says which came close."""
        latency_s = 0.0
        answer: Answer
        try:
            answer, latency_ms = self._rules.answer(
                asked.node, asked.turn, request, tries=asked.tries, attempt=asked.attempt
            )
            latency_s = latency_ms / 1000
        except InputError as error:
            told = "; ".join(f"{p.message} ({p.hint})" for p in error.problems)
            answer = CallFailed(kind="bad_request", message=told)
        if latency_s > timeout_s:
            late = f"no answer within {format_duration(timeout_s)}"
            latency_s, answer = timeout_s, CallFailed(kind="timeout", message=late)
        heappush(self._coming, (now + latency_s, key, answer))
        self._asked[key] = now
        return latency_s

    def cancel(self, key: int) -> None:
        """Forget a call."""
        self._coming = sorted(item for item in self._coming if item[1] != key)
        self._asked.pop(key, None)

    def collect(self, now: float) -> list[News]:
        """What is due, and of what is still coming the words that a model would have said by now."""
        found: list[News] = []
        while self._coming and self._coming[0][0] <= now:
            _, key, answer = heappop(self._coming)
            self._asked.pop(key, None)
            found.append(Answered(key, answer))
        if self._coming and now - self._spoke >= SPOKEN_S:
            self._spoke = now
            found += self._words(now)
        return found

    def _words(self, now: float) -> Iterator[Said]:
        for due, key, answer in self._coming:
            asked = self._asked[key]
            if isinstance(answer, Reply) and answer.text and due > asked:
                yield Said(key, answer.text[: int(len(answer.text) * (now - asked) / (due - asked))])

    def fileno(self) -> int:
        """Nothing to wait for."""
        return -1

    def tool(self, node: NodeId, call: ToolCall) -> ToolOutput | None:
        """Tools are run."""
        return None

    def listed(self, node: NodeId, attempt: int, server: str) -> tuple[str, list[Json]] | None:
        """Servers are started."""
        return None

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(slots=True, kw_only=True)
class Kit:
    """What the agents of a run share. `home` and `base` are where skills are looked for.

    `prices` are those of every model that was asked so far. `secret`
    are values that nothing may show: the keys of providers. `groups` is what
    the members of each group said so far.
    """

    source: Source
    prices: dict[str, Price] = field(default_factory=dict)
    base: str = ""
    home: str = ""
    secret: tuple[str, ...] = ()
    fake: bool = False
    groups: dict[str, dict[NodeId, tuple[Message, ...]]] = field(default_factory=dict)


class LiveSource:
    """Real models, by way of a broker process that is started at the first call.

    `live` is that broker; what it says of MCP servers goes to `servers`.
    """

    name = "live"
    costs = True

    def __init__(self, live: Live) -> None:
        self.live = live
        self.servers: Callable[[Sequence[Heard]], None] | None = None
        self._cancelled: set[int] = set()

    def ask(self, key: int, asked: Asked, request: Request, timeout_s: float, now: float) -> float | None:
        """Send it to the broker."""
        self.live.ask(key, request, timeout_s)
        return None

    def cancel(self, key: int) -> None:
        """End a call; its answer, which still comes, is nobody's."""
        self._cancelled.add(key)
        self.live.cancel(key)

    def collect(self, now: float) -> list[News]:
        """What the broker said."""
        from dagrun.agent.live import AnsweredCall
        from dagrun.agent.live import Said as Spoken

        found: list[News] = []
        heard = self.live.feed()
        if self.servers is not None:
            self.servers(heard)
        for news in heard:
            match news:
                case AnsweredCall(key, answer):
                    if key in self._cancelled:
                        self._cancelled.discard(key)
                    else:
                        found.append(Answered(key, answer))
                case Spoken(key, text):
                    found.append(Said(key, text))
                case _:
                    pass
        return found

    def fileno(self) -> int:
        """The broker's socket; -1 before the first call."""
        return self.live.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return self.live.wants_write

    def tool(self, node: NodeId, call: ToolCall) -> ToolOutput | None:
        """Tools are run."""
        return None

    def listed(self, node: NodeId, attempt: int, server: str) -> tuple[str, list[Json]] | None:
        """Servers are started."""
        return None

    def close(self) -> None:
        """End the broker."""
        self.live.close()

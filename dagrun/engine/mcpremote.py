"""MCP servers that are reached over HTTP: called by the run's one broker, never from a node's sandbox.

A Remote is to its attempt what a McpSeat is, without a process: opened before the first prompt, opened again
when its session is lost, but not for ever, and never with other tools than it listed first. Its host has to
be in the node's network, and its headers hold secrets: those go to the broker and nowhere else. Never blocks.
Invariant: each call gets exactly one Returned or Broken.
"""

from __future__ import annotations

import select
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TypeAlias
from urllib.parse import urlsplit

from dagrun.agent.live import BrokerLost, Heard, Live, Ordered
from dagrun.agent.mcp import digest
from dagrun.core.names import Json, Outcome, format_duration
from dagrun.core.permissions import Network
from dagrun.core.workflow import McpServer, Node
from dagrun.engine.bench import Workbench
from dagrun.engine.mcpseat import ServerCall, listing_fault
from dagrun.engine.providers import LiveSource, Source
from dagrun.engine.secrets import NoSecret
from dagrun.engine.toolends import Broken, Returned
from dagrun.engine.watching import Watch
from dagrun.sandbox.netproxy_hosts import AllowList, Malformed, read_authority
from dagrun.sandbox.wall import Aftermath

MOST_FAILURES = 2  # calls or sessions lost one after another, that another try may follow
START_S = 60.0  # until its tools are listed
SLACK_S = 5.0  # beyond the time of an order: the broker ends it if nobody here does
_PORTS = {"http": 80, "https": 443}
Order: TypeAlias = Mapping[str, Json]


def refusal(url: str, network: Network | None) -> str:
    """Why a node with this network may not have a server at `url` called for it; "" if it may. None: not held."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.netloc:
            return f"{url!r} is no http or https address"
        wanted = read_authority(parts.netloc.rpartition("@")[2], _PORTS[parts.scheme])
        if network is None or network == "any" or (network != "none" and AllowList(network).allows(wanted)):
            return ""
    except (Malformed, ValueError) as error:
        return f"{url!r} is no address: {error}"
    return f"{wanted} is not in the node's permissions.network"


# ---------------------------------------------------------------- the way to the broker


class Desk:
    """Hands orders to a broker, and what comes of them to who gave them.

    With a `poll` the broker is its own: heard by `collect`, ended by `close`. Without one somebody else listens
    to it and calls `take`. `lost` counts the brokers that are gone: with each of them went all sessions.
    """

    def __init__(self, live: Live, poll: select.epoll | None = None) -> None:
        self.lost = 0
        self._live = live
        self._waiting: dict[int, Remote] = {}
        self._number = 0
        self._watch = Watch(poll) if poll is not None else None

    def give(self, order: Order, who: Remote | None = None) -> int:
        """The number of an order; `who` is told what comes of it."""
        self._number += 1
        if who is not None:
            self._waiting[self._number] = who
        self._live.order(self._number, order)
        self._follow()
        return self._number

    def drop(self, number: int) -> None:
        """Nobody waits for this order any more."""
        self._waiting.pop(number, None)
        self._live.drop(number)
        self._follow()

    def take(self, news: Sequence[Heard]) -> None:
        """Hand over what the broker said."""
        # that it is gone comes last, but nobody may answer what it said with an order for another one
        self.lost += sum(isinstance(one, BrokerLost) for one in news)
        for one in news:
            who = self._waiting.pop(one.id, None) if isinstance(one, Ordered) else None
            if isinstance(one, Ordered) and who is not None:
                who.told(one.id, one.answer)

    def collect(self) -> None:
        """Hear the broker, if it is an own one."""
        if self._watch is None:
            return
        self.take(self._live.feed())
        self._follow()

    def close(self) -> None:
        """End the broker, if it is an own one."""
        if self._watch is not None:
            self._live.close()

    def _follow(self) -> None:
        if self._watch is not None:
            self._watch.follow(self._live.fileno(), writing=self._live.wants_write)


def desk_of(source: Source, bench: Workbench, poll: select.epoll) -> Desk:
    """The desk of a run: at the broker that its models are asked by, else at one that knows no key and no model."""
    if isinstance(source, LiveSource):
        desk = Desk(source.live)
        source.servers = desk.take
        return desk
    return Desk(Live(environ=bench.environ, models=False, exempt=bench.exempt), poll)


# ---------------------------------------------------------------- one server


class Remote:
    """One server of one attempt. `listed` are its tools once it is open, and `digest` is theirs.

    `network` is what the node may reach.
    """

    # what a process would have: its descriptors, what it left, what it took
    over: Aftermath | None = None
    retire = False
    cpu_ms = 0
    max_rss_bytes: int | None = None

    def __init__(
        self,
        *,
        desk: Desk,
        bench: Workbench,
        node: Node,
        number: int,
        name: str,
        server: McpServer,
        network: Network | None,
    ) -> None:
        self.fds: set[int] = set()
        self.swept: list[str] = []
        self.notes: list[str] = []
        self.name = name
        self.node = node
        self.number = number
        self.listed: tuple[Json, ...] | None = None
        self.digest = ""
        self._desk = desk
        self._bench = bench
        self._server = server
        self._network = network
        self._headers: dict[str, str] = {}
        self._results: list[Returned | Broken] = []
        self._broken: Broken | None = None
        self._key = ""  # of the session, once there is one
        self._lost_at = 0  # how many brokers were lost when it was asked for
        self._opening = 0  # the order that a session was asked for by
        self._due: float | None = None  # of that
        self._closing = 0  # the order that it was given up by
        self._waiting: list[ServerCall] = []  # until there is a session
        self._open: dict[int, ServerCall] = {}  # by order
        self._failures = 0  # one after another
        self._stopping = False
        self._look = False  # something changed without a result

    # ------------------------------------------------------------ calls

    def open(self) -> None:
        """Begin a session and have the tools listed: then `listed` is there, or a Broken."""
        why = refusal(self._server.url, self._network)
        if why:
            self._break(Outcome.DENIED, why)
            return
        try:
            self._headers = {header: self._bench.secrets[name] for header, name in self._server.headers.items()}
        except NoSecret as lacking:
            self._break(Outcome.FAILED, f"{lacking.message} ({lacking.hint})" if lacking.hint else lacking.message)
            return
        # `Bearer TOKEN`: a server that tells of the token alone must not tell us
        self._bench.mask.add([value.partition(" ")[2] for value in self._headers.values()])
        self._begin()

    def call(self, number: int, name: str, arguments: Mapping[str, Json], *, room: int, timeout_s: float) -> None:
        """Call the tool `mcp__server__tool`: the result comes with `drain`. Its time begins now."""
        if self._broken is not None:
            self._results.append(self._broken)
        elif self._stopping:
            self._results.append(Returned(number, False, "it was not called: the attempt ends", 0))
        else:
            self._waiting.append(ServerCall(number, name, arguments, room, timeout_s, monotonic()))
            self._advance()

    def drain(self) -> list[Returned | Broken]:
        """The results since the last time."""
        found, self._results = self._results, []
        return found

    def _advance(self) -> None:
        """Send the calls that wait; begin another session if that one is gone."""
        if not self._waiting or self._opening or self._stopping or self._broken is not None:
            return
        if self._key and self._lost_at != self._desk.lost:
            self._key = ""
        if not self._key:
            self._begin()
            return
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            order: dict[str, Json] = {"call": self._key, "tool": call.name, "arguments": dict(call.arguments)}
            limit = max(0.0, call.due - monotonic()) + SLACK_S
            self._open[self._desk.give({**order, "room": call.room, "timeout_s": limit}, self)] = call

    def _return(self, call: ServerCall, ok: bool, text: str) -> None:
        self._results.append(Returned(call.number, ok, text, round((monotonic() - call.began) * 1000)))

    # ------------------------------------------------------------ the session

    def _begin(self) -> None:
        self._lost_at = self._desk.lost
        self._due = monotonic() + START_S
        order: dict[str, Json] = {"server": self.name, "url": self._server.url, "headers": dict(self._headers)}
        self._opening = self._desk.give({"open": self._own_key, **order, "timeout_s": START_S + SLACK_S}, self)

    @property
    def _own_key(self) -> str:
        """The key of its session: there is one at a time."""
        return f"{self.node.id}.{self.number}.{self.name}"

    def told(self, number: int, answer: Order) -> None:
        """Take in what came of an order."""
        if number == self._closing:
            self._closing, self._look = 0, True
        elif number == self._opening:
            self._opening, self._due = 0, None
            self._opened(answer)
        elif (call := self._open.pop(number, None)) is not None:
            self._answered(call, answer)

    def _opened(self, answer: Order) -> None:
        match answer:
            case {"tools": list(tools), "notes": list(notes)}:
                found = digest(tools)
                self._key = self._own_key
                why = listing_fault(self._server, self.digest, found)
                if why:
                    self._break(Outcome.DENIED, why)
                    return
                if self.listed is None:
                    self.listed, self.digest = tuple(tools), found
                    self.notes += [str(note) for note in notes]
                self._look = True
                self._advance()
            case _ if self.listed is None:
                self._break(Outcome.FAILED, f"it can't be opened: {answer.get('lost')}")
            case _:
                self._failed(str(answer.get("lost")))

    def _answered(self, call: ServerCall, answer: Order) -> None:
        match answer:
            case {"ok": bool(ok), "text": str(text)}:
                self._failures = 0
                self._return(call, ok, text)
            case {"lost": str(why), "denied": True}:
                self._break(Outcome.DENIED, why)
            case _:
                self._waiting.insert(0, call)
                self._failed(str(answer.get("lost")))

    def _failed(self, why: str) -> None:
        """Its session is of no use: the calls that wait are over, and the next one may begin another."""
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            self._return(call, False, f"the mcp server failed: {why}")
        self._hang_up()
        self._failures += 1
        if self._failures > MOST_FAILURES:
            self._break(Outcome.FAILED, f"it failed {self._failures} times in a row, at last: {why}")

    def _hang_up(self) -> int:
        """Give the session up; the order for it, 0 where there is none."""
        key, self._key = self._key, ""
        return self._desk.give({"close": key}, self) if key and self._lost_at == self._desk.lost else 0

    def _break(self, outcome: Outcome, why: str) -> None:
        self._broken = Broken(outcome, f"mcp server `{self.name}`: {why}")
        self._results.append(self._broken)
        self._let_go()
        self._open.clear()
        self._waiting.clear()
        self._hang_up()

    def _let_go(self) -> None:
        """End the orders that are open."""
        for number in self._open:
            self._desk.drop(number)
        if self._opening:
            self._desk.drop(self._opening)
            self._desk.give({"close": self._own_key})  # it may be open by now
        self._opening, self._due = 0, None

    # ------------------------------------------------------------ the end

    @property
    def alive(self) -> bool:
        """Whether the server still has to hear of the end; the attempt ends only then."""
        return bool(self._key or self._opening or self._open or self._closing)

    def stop(self) -> None:
        """Begin to end it: calls without a result are told off, and the server is told."""
        if not self._stopping:
            self._stopping = True
            self._drop_calls()
            self._closing = self._hang_up()
            self._look = True

    def kill(self) -> None:
        """End it at once, whether the server heard of it or not."""
        self._stopping = True
        self._drop_calls()
        self._hang_up()
        if self._closing:
            self._desk.drop(self._closing)
        self._closing, self._look = 0, True

    def _drop_calls(self) -> None:
        self._let_go()
        for call in [*self._open.values(), *self._waiting]:
            self._return(call, False, "it was ended: the attempt ends")
        self._open.clear()
        self._waiting.clear()

    def ready(self, fd: int) -> bool:
        """It has no descriptor of its own."""
        return False

    # ------------------------------------------------------------ time

    def next_due(self) -> float | None:
        """When `due` has something to do (time.monotonic()), None for never; at once while there is a result."""
        if self._look or self._results:
            return 0.0
        moments = [call.due for call in (*self._open.values(), *self._waiting)]
        return min([*moments, *([self._due] if self._due is not None else [])], default=None)

    def due(self, now: float) -> None:
        """End what takes too long."""
        self._look = False
        for number, call in [*self._open.items()]:
            if call.due <= now:
                del self._open[number]
                self._desk.drop(number)
                self._return(call, False, f"timed out after {format_duration(call.timeout_s)}")
        for call in [call for call in self._waiting if call.due <= now]:
            self._waiting.remove(call)
            self._return(call, False, f"timed out after {format_duration(call.timeout_s)}")
        if self._due is not None and self._due <= now:
            self._let_go()
            self._opened({"lost": f"it did not list its tools within {format_duration(START_S)}"})

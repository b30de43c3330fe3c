"""Live models, from the engine's side: a broker process behind a socket. Nothing here waits, and litellm is never seen.

    live = Live(environ=os.environ, base_url="", exempt=sandbox.exempt)
    live.start()                      # optional: `ask` starts it too; seconds pass until the first answer
    live.ask(1, request, 300.0)       # never blocks; works before the broker is ready
    …register live.fileno() for reading, and for writing while live.wants_write…
    for news in live.feed():          # when the descriptor is ready, either way; sends and receives
        match news:
            case Said(id, text): …            # the last words so far, at most 4 a second a call
            case AnsweredCall(id, answer): …  # exactly one for each ask, whatever happens
            case BrokerLost(text): …          # after the answers for the calls that were open
    live.cancel(1)                    # its answer still comes
    live.order(1, order)              # something for an MCP server over HTTP (broker_mcp.py), numbers of their own
    …case Ordered(id, answer): …      # exactly one for each order; `live.drop(1)` ends it, and it still comes
    live.close()

`fileno()` is -1 before the first start and from a BrokerLost to the next `ask`, which starts another
broker (twice at most; after that, and when litellm is missing, calls are answered by a CallFailed). So:
look at `fileno()` and `wants_write` again after every `ask` and `feed`. `pid` is 0 or that of the broker,
a direct child in a session of its own; `exempt` is told of each.

Open calls of a broker that died are "cut" (presumed billed), but those that it was not ready to make; its
open orders are answered with {"lost": why}. With `models` False it gets no key and knows only orders.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

from dagrun.agent.installed import litellm_folder
from dagrun.agent.keys import ENDPOINT_KEY, broker_environment
from dagrun.agent.messages import Answer, CallFailed, Request, answer_from_json, request_to_json
from dagrun.core.names import Json

MAX_STARTS = 3  # the first one included
_FD = 3
_PIECE = 1 << 18
_PIECES = 16  # at most so many at a time: the engine has other things to do
# what is appended comes after the installation's own folders: nothing near can stand in for a library
_BOOT = "import sys; sys.path += sys.argv[1:-1]; from dagrun.agent.broker import main; main()"


@dataclass(frozen=True, slots=True)
class Said:
    """The last words of an answer that is still coming."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """What came of a call."""

    id: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Ordered:
    """What came of an order for an MCP server."""

    id: int
    answer: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class BrokerLost:
    """The broker is gone, and why; the calls that it had were answered before this."""

    text: str


Heard: TypeAlias = Said | AnsweredCall | Ordered | BrokerLost


class Live:
    """One run's way to real models. `log_path` gets what the broker's libraries print, without keys."""

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        base_url: str = "",
        models: bool = True,
        log_path: str | None = None,
        exempt: Callable[[int], None] | None = None,
    ) -> None:
        self._environ = broker_environment(environ, base_url) if models else _without_keys(environ)
        self._base_url = base_url
        self._models = models
        self._log_path = log_path or os.devnull
        self._exempt = exempt
        self._socket: socket.socket | None = None
        self._out = bytearray()
        self._in = bytearray()
        self._open: set[int] = set()
        self._orders: set[int] = set()
        self._starts = 0
        self._hopeless = ""
        self._ready = False
        self.pid = 0
        self.litellm = ""  # its version, once it is known

    def start(self) -> None:
        """Start the broker if there is none, without waiting for it; what goes wrong is told by `feed`."""
        if self._socket is not None:
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket, self._ready = ours, False
        self._out.clear()
        self._in.clear()
        try:
            if not self._hopeless and self._starts < MAX_STARTS:
                self._starts += 1
                self._spawn(theirs.fileno())
                first: dict[str, Json] = {"environ": dict(self._environ), "base_url": self._base_url}
                self._tell({**first, "models": self._models})
        except OSError as error:
            self._hopeless = f"the broker can't be started: {error.strerror}"
        finally:
            theirs.close()  # without a broker this makes our end readable, and `feed` says why

    def fileno(self) -> int:
        """What becomes readable when there is something to `feed`; -1 while there is no broker."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits until the socket takes more: `feed` sends it."""
        return bool(self._out)

    def ask(self, id: int, request: Request, timeout_s: float) -> None:  # noqa: A002 - the protocol's word
        """Make a call. Raises ValueError for the number of one that is open."""
        if id in self._open:
            raise ValueError(f"call {id} is open")
        self.start()
        self._open.add(id)
        self._tell({"ask": id, "request": cast(Json, request_to_json(request)), "timeout_s": timeout_s})

    def cancel(self, id: int) -> None:  # noqa: A002
        """End an open call; its answer still comes (kind "cut", or "overloaded" if nothing had left)."""
        if id in self._open and self._socket is not None:
            self._tell({"cancel": id})

    def order(self, id: int, order: Mapping[str, Json]) -> None:  # noqa: A002
        """Have something done with an MCP server. Raises ValueError for the number of an order that is open."""
        if id in self._orders:
            raise ValueError(f"order {id} is open")
        self.start()
        self._orders.add(id)
        self._tell({"mcp": id, "do": dict(order)})

    def drop(self, id: int) -> None:  # noqa: A002
        """End an open order; its answer still comes."""
        if id in self._orders and self._socket is not None:
            self._tell({"drop": id})

    def feed(self) -> list[Heard]:
        """Send what waits, and what has come since the last time."""
        if self._socket is None:
            return []
        self._send()
        found: list[Heard] = []
        for _ in range(_PIECES):
            try:
                data = self._socket.recv(_PIECE)
            except BlockingIOError:
                return found
            except OSError:
                data = b""
            if not data:
                return found + self._lost("the broker ended")
            self._in += data
            while (end := self._in.find(b"\n")) >= 0:
                line = bytes(self._in[:end])
                del self._in[: end + 1]
                news = self._understand(line)
                if news is None:
                    return found + self._lost("the broker said something that is no answer")
                found += news
                if self.fileno() < 0:
                    return found
        return found

    def close(self) -> None:
        """End the broker, whatever it does; it is dead and reaped when this returns. Open calls get no answer."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._open.clear()
        self._orders.clear()
        self._out.clear()
        self._end()

    # ------------------------------------------------------------ the talk

    def _tell(self, message: Mapping[str, Json]) -> None:
        self._out += json.dumps(message).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        assert self._socket is not None
        while self._out:
            try:
                sent = self._socket.send(self._out[:_PIECE])
            except BlockingIOError:
                return
            except OSError:
                self._out.clear()  # the broker is gone: `feed` reads that
                return
            del self._out[:sent]

    def _understand(self, line: bytes) -> list[Heard] | None:
        """The news in a line; None when it is none."""
        try:
            said = json.loads(line)
        except ValueError:
            return None
        match said:
            case {"id": int(number), "said": str(text)}:
                return [Said(number, text)] if number in self._open else []
            case {"id": int(number), "answer": dict(answer)} if number in self._open:
                self._open.discard(number)
                return [AnsweredCall(number, answer_from_json(answer))]
            case {"id": int(number), "mcp": dict(answer)} if number in self._orders:
                self._orders.discard(number)
                return [Ordered(number, answer)]
            case {"ready": 1, "litellm": str(version)}:
                self._ready, self.litellm = True, version
                return []
            case {"broken": str(why)}:
                self._hopeless = why
                return list(self._lost(why))
            case _:
                return None

    def _lost(self, text: str) -> list[Heard]:
        """The answers of all open calls, and the end of this broker."""
        if self._socket is None:
            return []
        self._socket.close()
        self._socket = None
        self._end()
        answer = CallFailed(kind="cut", message=f"{text} in the middle of the call")
        if self._hopeless:
            answer = CallFailed(kind="bad_request", message=self._hopeless)
        elif self._starts >= MAX_STARTS and not self._ready:
            self._hopeless = f"{text}, each of {MAX_STARTS} times that it was started"
            answer = CallFailed(kind="bad_request", message=self._hopeless)
        elif not self._ready:
            answer = CallFailed(kind="overloaded", message=f"{text} before it could make the call")
        why = self._hopeless or text
        answers: list[Heard] = [AnsweredCall(number, answer) for number in sorted(self._open)]
        answers += [Ordered(number, {"lost": why}) for number in sorted(self._orders)]
        self._open.clear()
        self._orders.clear()
        return [*answers, BrokerLost(why)]

    # ------------------------------------------------------------ the process

    def _spawn(self, theirs: int) -> None:
        """Start the process; its environment holds nothing yet, since others may read that of any process."""
        self.pid = os.posix_spawn(
            sys.executable,
            (sys.executable, "-I", "-c", _BOOT, *_folders(models=self._models), str(_FD)),
            {"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs, _FD),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        if self._exempt is not None:
            self._exempt(self.pid)

    def _end(self) -> None:
        """Kill and reap: it has nothing to save."""
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # somebody else reaped it
            self.pid = 0


def _folders(*, models: bool) -> list[str]:
    """Where the broker finds what its Python does not find alone: litellm, and dagrun itself."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    package = litellm_folder() if models else None
    return [root] if package is None else [os.path.dirname(package), root]


def _without_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """What a broker needs that asks no models: proxies, certificates, the machine's own."""
    given = broker_environment(environ, "no vendor")
    return {name: value for name, value in given.items() if name != ENDPOINT_KEY}

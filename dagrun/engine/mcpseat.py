"""One MCP server of one agent attempt: a process in the node's sandbox, with its own secrets, spoken to over pipes.

Opened before the first prompt, as its tools are offered there. Started again when it is lost, but not
for ever, and never with other tools than it listed first. Invariant: each call gets exactly one Returned
or Broken; several may be at work at a time.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from time import monotonic

from dagrun.agent.mcp import McpLost, Session, digest
from dagrun.core.names import Json, Outcome, format_duration
from dagrun.core.workflow import McpServer, Node
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.exchange import remove_exchange
from dagrun.engine.piped import Piped
from dagrun.engine.toolends import Broken, End, Returned
from dagrun.sandbox.environment import is_loader
from dagrun.sandbox.logpool import Slot
from dagrun.sandbox.plain import Plain

MOST_RESTARTS = 2
START_S = 60.0  # until its tools are listed
PULL_S = 900.0  # the same where an image may have to be fetched first


def server_command(bench: Workbench, node: Node, number: int, worker: Command, name: str, server: McpServer) -> Command:
    """The command of a server beside the tool worker `worker`: the same walls, its own folder and secrets.

    Raises OSError when its folder can't be made.
    """
    folder = f"{bench.exchange}/{node.id}.{number}.mcp-{name}.d"
    identity = f"{worker.env['DAGRUN_ATTEMPT_ID']}-{name}"
    remove_exchange(folder)
    os.mkdir(folder, 0o700)
    own = {secret: bench.secrets[secret] for secret in server.secrets}
    dropped = {*node.secrets, *(f"{secret}_FILE" for secret in node.secret_files)}
    env = {key: value for key, value in worker.env.items() if key not in dropped}
    env |= {**server.env, **own, "DAGRUN_ATTEMPT_ID": identity}
    for variable, part in (("HOME", "home"), ("TMPDIR", "tmp")):
        if worker.folder and env.get(variable, "").startswith(f"{worker.folder}/"):
            env[variable] = f"{folder}/{part}"
            os.mkdir(env[variable], 0o700)
    spec = worker.spec
    if spec is not None:
        spec = replace(
            spec,
            attempt_id=identity,
            ceilings_of=spec.attempt_id,
            argv=server.command,
            env=env,
            secret_env=frozenset(own),
            exchange=folder,
        )
    return replace(worker, argv=server.command, env=env, spec=spec, folder=folder, agent=None)


def listing_fault(server: McpServer, first: str, found: str) -> str:
    """Why tools with the digest `found` are not those of a server; "" if they are. `first`: its digest before."""
    wanted = server.digest or first
    if not wanted or wanted.removeprefix("sha256:") == found:
        return ""
    whose = "the workflow pins" if server.digest else "it listed at first"
    return f"it lists tools with digest {found}, and {whose} {wanted}"


@dataclass(slots=True)
class ServerCall:
    """A call of a server's tool that has no result yet. `began` is monotonic."""

    number: int
    name: str
    arguments: Mapping[str, Json]
    room: int
    timeout_s: float
    began: float

    @property
    def due(self) -> float:
        """When its time is over."""
        return self.began + self.timeout_s


class McpSeat(Piped):
    """One server of one attempt. `listed` are its tools once it is open, and `digest` is theirs."""

    def __init__(
        self,
        *,
        bench: Workbench,
        sandbox: Plain,
        poll: select.epoll,
        node: Node,
        number: int,
        name: str,
        server: McpServer,
        command: Command,
        slot: Slot,
    ) -> None:
        super().__init__(bench=bench, sandbox=sandbox, poll=poll, command=command, slot=slot)
        self.name = name
        self.node = node
        self.number = number
        self.listed: tuple[Json, ...] | None = None
        self.digest = ""
        self._server = server
        self._session = Session(name)
        self._due: float | None = None  # of its list
        self._waiting: list[ServerCall] = []  # until it is open
        self._open: dict[int, ServerCall] = {}  # by id of the session
        self._lost = 0

    # ------------------------------------------------------------ calls

    def open(self) -> None:
        """Start it and let it list its tools: then `listed` is there, or a Broken."""
        bad = [variable for variable in self._server.env if is_loader(variable)]
        if bad and self._command.spec is not None:
            text = f"mcp server `{self.name}`: `env` sets {', '.join(bad)}, which makes programs load other code"
            self._break(Broken(Outcome.DENIED, f"{text}: not in a sandbox"))
            return
        self._start()

    def call(self, number: int, name: str, arguments: Mapping[str, Json], *, room: int, timeout_s: float) -> None:
        """Call the tool `mcp__server__tool`: the result comes with `drain`. Its time begins now."""
        if self._broken is not None:
            self._results.append(self._broken)
        elif self._stopping:
            self._results.append(Returned(number, False, "it was not called: the attempt ends", 0))
        else:
            self._waiting.append(ServerCall(number, name, arguments, room, timeout_s, monotonic()))
            self._advance()

    def stop(self) -> None:
        """Begin to end it: calls without a result are told off; `kill` is for the caller, after its grace."""
        super().stop()
        self._drop_calls("it was ended: the attempt ends")

    def kill(self) -> None:
        """End it at once."""
        super().kill()
        self._drop_calls("it was ended: the attempt ends")

    def _drop_calls(self, why: str) -> None:
        self._due = None
        for call in [*self._open.values(), *self._waiting]:
            self._return(call, False, why)
        self._open.clear()
        self._waiting.clear()

    def _advance(self) -> None:
        """Send the calls that wait, once it is open; start it again if it is gone."""
        if not self._waiting or self._stopping or self._why or self._broken is not None:
            return
        if not self.alive:
            self._start()
            return
        if self._session.state != "ready":
            return
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            try:
                found = self._session.call(call.name, call.arguments, room=call.room)
            except KeyError:
                self._return(call, False, f"the server `{self.name}` lists no tool {call.name!r}")
                continue
            self._open[found] = call
        self._send(self._session.lines())

    def _return(self, call: ServerCall, ok: bool, text: str) -> None:
        self._results.append(Returned(call.number, ok, text, round((monotonic() - call.began) * 1000)))

    # ------------------------------------------------------------ the process

    def _opening(self) -> bytes:
        self._session = Session(self.name)
        self._session.begin()
        spec = self._command.spec
        pulls = spec is not None and spec.level == "container" and spec.pull == "missing"
        self._due = monotonic() + (PULL_S if pulls else START_S)
        return self._session.lines()

    def _heard(self, data: bytes) -> str:
        before = self._session.state
        try:
            results = self._session.feed(data)
        except McpLost as lost:
            return str(lost)
        if self._stopping:
            return ""
        for result in results:
            self._return(self._open.pop(result.id), result.ok, result.text)
        broken = self._past_limit(failed=False) if results else None
        if broken is not None:
            self._break(broken)
            return broken.error
        self._send(self._session.lines())
        if before != "ready" and self._session.state == "ready":
            return self._take_list()
        self._advance()
        return ""

    def _take_list(self) -> str:
        """Its tools are known: are they those that are pinned, and those of the first time?"""
        self._due = None
        tools = self._session.tools or ()
        found = digest(tools)
        why = listing_fault(self._server, self.digest, found)
        if why:
            text = f"mcp server `{self.name}`: {why}"
            self._break(Broken(Outcome.DENIED, text))
            return text
        self.listed, self.digest = tools, found
        self.notes += self._session.notes
        self._session.notes = []
        self._advance()
        return ""

    def _unstarted(self, broken: Broken) -> None:
        self._break(Broken(broken.outcome, f"mcp server `{self.name}` can't be started: {broken.error}", broken.limit))

    def _ended(self, end: End) -> None:
        remove = self._stopping or self._broken is not None
        if remove:
            self._clear()
            return
        self._due = None
        after = end.after
        if after.outcome:
            self._break(Broken(Outcome(after.outcome), f"mcp server `{self.name}`: {after.error or end.why}"))
        elif end.by_limit:
            text = after.error or f"over its {after.limit} limit"
            self._break(Broken(Outcome.OVER_LIMIT, f"mcp server `{self.name}`: {text}", after.limit))
        elif self.listed is None:
            self._break(Broken(Outcome.FAILED, f"mcp server `{self.name}` can't be started: {end.why}"))
        else:
            self._gone(end)

    def _gone(self, end: End) -> None:
        """It was lost: its calls are over, and another one may be started for the next."""
        for call in self._open.values():
            self._return(call, False, f"the mcp server ended: {end.why}")
        self._open.clear()
        self._lost += 1
        if self._lost > MOST_RESTARTS:
            text = f"mcp server `{self.name}` ended {self._lost} times, at last: {end.why}"
            self._break(Broken(Outcome.FAILED, text))
        else:
            self._advance()

    def _break(self, broken: Broken) -> None:
        self._broken = broken
        self._results.append(broken)
        self._due = None
        self._open.clear()
        self._waiting.clear()
        if not self.alive:
            self._clear()

    def _clear(self) -> None:
        """Its folder goes with it."""
        if self._command.folder:
            remove_exchange(self._command.folder)

    # ------------------------------------------------------------ time

    def _deadlines(self) -> Iterable[float]:
        if self._why:
            return
        if self._due is not None:
            yield self._due
        yield from (call.due for call in (*self._open.values(), *self._waiting))

    def _expire(self, now: float) -> None:
        if self._due is not None and self._due <= now and not self._why:
            self._lose(f"it did not list its tools within {format_duration(START_S)}")
        for number, call in [*self._open.items()]:
            if call.due <= now:
                del self._open[number]
                self._session.give_up(number, "timed out")
                self._return(call, False, f"timed out after {format_duration(call.timeout_s)}")
        for call in [call for call in self._waiting if call.due <= now]:
            self._waiting.remove(call)
            self._return(call, False, f"timed out after {format_duration(call.timeout_s)}")
        if not self._why:
            self._send(self._session.lines())

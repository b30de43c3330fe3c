"""Tools of agents: in which process a call runs, what came of it, what MCP servers list.

Knows no model and no money.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, cast

from dagrun.agent.gate import name_of
from dagrun.agent.loop import effect, step
from dagrun.agent.prompt import ToolOutput
from dagrun.agent.steps import CallTool, ToolReturned
from dagrun.core.event import Event, ToolEnded, ToolsListed
from dagrun.core.grants import call_of
from dagrun.core.names import Json, Outcome
from dagrun.core.state import RunState
from dagrun.core.workflow import Node
from dagrun.engine.attempt import Ending
from dagrun.engine.bench import Workbench
from dagrun.engine.providers import Never, Source
from dagrun.engine.secrets import NoSecret
from dagrun.engine.talk import Talk, call_text, left_s, log_results
from dagrun.engine.timers import Timers
from dagrun.engine.toolseat import Broken, Returned, Seat, policy_of
from dagrun.sandbox.plain import Plain

if TYPE_CHECKING:
    from dagrun.engine.mcpremote import Desk, Remote
    from dagrun.engine.mcpseat import McpSeat

Fold: TypeAlias = Callable[[Event], None]


def _unlisted(talk: Talk, names: set[str]) -> str:
    """What is wrong with an offer that names a tool which no MCP server lists; "" if nothing is."""
    for pattern in talk.begin.task.rules[0]:
        tool = call_of(pattern).tool
        if not tool.startswith("mcp__") or tool.endswith("__*") or tool in names:
            continue
        mine = sorted(name for name in names if name.startswith(tool[: tool.index("__", 5) + 2]))
        return f"no MCP server lists `{tool}`" + (f": there are {', '.join(mine)}" if mine else "")
    return ""


class Tools:
    """The tools of all attempts of one engine."""

    def __init__(
        self,
        *,
        state: RunState,
        bench: Workbench,
        source: Source,
        timers: Timers,
        poll: select.epoll,
        sandbox: Plain,
    ) -> None:
        self._state = state
        self._bench = bench
        self._source = source
        self._timers = timers
        self._poll = poll
        self._sandbox = sandbox
        self._calls: list[tuple[Talk, CallTool]] = []
        self._opening: list[Talk] = []
        self._desk: Desk | None = None  # servers that are reached over HTTP are called there

    # ------------------------------------------------------------ calls

    def call(self, talk: Talk, due: CallTool, now: float, fold: Fold) -> None:
        """Have a tool run, unless its result is known."""
        node = self._state.plan.ids[talk.node]
        before = talk.reuse.tool(due.number, due.call) if talk.reuse is not None else None
        reused = before.origin if before is not None else ""
        known = before.output if before is not None else self._source.tool(node, due.call)
        talk.tool = call_text(due.call.name, due.call.arguments)
        if isinstance(known, Never):
            talk.waits = "tool"
            return
        if known is not None:
            self._over(talk, due, known, 0, now, fold, reused=reused)
            return
        talk.waits = "tool"
        self._calls.append((talk, due))

    def returned(self, talk: Talk, now: float, fold: Fold) -> None:
        """Take in what came from the processes of an attempt."""
        for seat in talk.seats:
            seat.due(now)
        for item in [item for seat in talk.seats for item in seat.drain()]:
            match item:
                case Broken():
                    if talk.ending is None and talk.finish is None:
                        # masked here: its words, which may be a server's, go into the log too
                        talk.ending = Ending(item.outcome, self._bench.mask.text(item.error), item.limit)
                case Returned() if talk.waits == "tool":
                    self._result(talk, item, now, fold)
                case _:
                    pass  # of an attempt that is being ended

    def _result(self, talk: Talk, item: Returned, now: float, fold: Fold) -> None:
        due = effect(talk.begin.task, talk.state)
        if not isinstance(due, CallTool) or due.number != item.number:
            return
        talk.waits = ""
        output = ToolOutput(item.ok, self._bench.mask.text(item.text))
        if self._bench.replay is not None:
            self._bench.replay.ran(self._state.plan.ids[talk.node], due.call, output)
        self._over(talk, due, output, item.duration_ms, now, fold)

    def _over(
        self,
        talk: Talk,
        due: CallTool,
        output: ToolOutput,
        duration_ms: int,
        now: float,
        fold: Fold,
        *,
        reused: str = "",
    ) -> None:
        put = self._bench.context.put
        fold(
            ToolEnded(
                node=self._state.plan.ids[talk.node],
                attempt=talk.number,
                number=due.number,
                turn=due.turn,
                name=due.call.name,
                ok=output.ok,
                arguments=put(dict(due.call.arguments or {})),
                text=put(output.text),
                duration_ms=duration_ms,
                reused=reused,
            )
        )
        before = talk.state
        talk.state = step(talk.begin.task, before, ToolReturned(due.number, output.ok, output.text, talk.at_s(now)))
        log_results(talk, before)

    # ------------------------------------------------------------ servers

    def open(self, talk: Talk) -> None:
        """Have the MCP servers of an attempt started, before its first prompt."""
        talk.waits = "listing"
        self._opening.append(talk)

    def _start_servers(self, talk: Talk) -> None:
        node = self._state.plan.nodes[talk.node]
        for name in talk.begin.servers:
            if self._source.listed(node.id, talk.number, name) is not None:
                continue
            try:
                talk.servers[name] = made = self._server(talk, node, name)
            except NoSecret as lacking:
                why = lacking.message
            except OSError as error:
                why = error.strerror or str(error)
            else:
                made.open()
                continue
            if talk.ending is None and talk.finish is None:
                talk.ending = Ending(Outcome.FAILED, f"mcp server `{name}` can't be started: {why}")
            return

    def _server(self, talk: Talk, node: Node, name: str) -> McpSeat | Remote:
        """A server of an attempt. Raises NoSecret, and OSError when its folder can't be made."""
        server = self._state.plan.workflow.mcp_servers[name]
        if server.url:
            return self._remote(talk, node, name)
        from dagrun.engine.mcpseat import McpSeat, server_command

        return McpSeat(
            bench=self._bench,
            sandbox=self._sandbox,
            poll=self._poll,
            node=node,
            number=talk.number,
            name=name,
            server=server,
            command=server_command(self._bench, node, talk.number, talk.command, name, server),
            slot=talk.slot,
        )

    def _remote(self, talk: Talk, node: Node, name: str) -> Remote:
        from dagrun.core.agents import held_of
        from dagrun.engine.mcpremote import Remote, desk_of

        workflow = self._state.plan.workflow
        if self._desk is None:
            self._desk = desk_of(self._source, self._bench, self._poll)
        return Remote(
            desk=self._desk,
            bench=self._bench,
            node=node,
            number=talk.number,
            name=name,
            server=workflow.mcp_servers[name],
            network=held_of(workflow, node).network,
        )

    def collect(self) -> None:
        """Hear what came from servers without a process; who it is for is due at once."""
        if self._desk is not None:
            self._desk.collect()

    def close(self) -> None:
        """The session is over: no server is called any more."""
        if self._desk is not None:
            self._desk.close()

    def take_lists(self, talk: Talk, fold: Fold) -> None:
        """When every server of an attempt has listed its tools, the agent may begin."""
        node = self._state.plan.ids[talk.node]
        found: list[tuple[str, str, tuple[Json, ...]]] = []
        for name in talk.begin.servers:
            known = self._source.listed(node, talk.number, name)
            seat = talk.servers.get(name)
            if isinstance(known, Never):
                return
            if known is not None:
                found.append((name, known[0], tuple(known[1])))
            elif seat is not None and seat.listed is not None:
                found.append((name, seat.digest, seat.listed))
            else:
                return
        tools = list(talk.begin.task.tools)
        for name, digest, said in found:
            listed = cast("list[Json]", self._bench.mask.value(list(said)))
            tools += listed
            kept = self._bench.context.put(listed)
            fold(ToolsListed(node=node, attempt=talk.number, server=name, digest=digest, tools=kept))
        talk.begin = replace(talk.begin, task=replace(talk.begin.task, tools=tuple(tools)))
        talk.waits = ""
        lacking = _unlisted(talk, {name_of(tool) for tool in tools})
        if lacking and talk.ending is None:
            talk.ending = Ending(Outcome.FAILED, lacking)

    # ------------------------------------------------------------ when the record is written

    def flush(self, now: float) -> list[int]:
        """Start what was asked for; the nodes that may have something at once."""
        found: list[int] = []
        opening, self._opening = self._opening, []
        for talk in opening:
            if talk.waits == "listing":
                self._start_servers(talk)
                found.append(talk.node)
        calls, self._calls = self._calls, []
        for talk, due in calls:
            if talk.waits == "tool":
                timeout_s = left_s(talk, self._state.plan.nodes[talk.node].timeout_s, now)
                self._run(talk, due, timeout_s)
                self._timers.add(timeout_s, "agent", talk.node, talk.number)
                found.append(talk.node)
        return found

    def _run(self, talk: Talk, due: CallTool, timeout_s: float) -> None:
        room = talk.begin.task.caps.result_bytes
        name, arguments = due.call.name, due.call.arguments or {}
        server = next((seat for n, seat in talk.servers.items() if name.startswith(f"mcp__{n}__")), None)
        if server is not None:
            server.call(due.number, name, arguments, room=room, timeout_s=timeout_s)
        else:
            self._seat(talk).call(due.number, due.call, room=room, timeout_s=timeout_s)

    def _seat(self, talk: Talk) -> Seat:
        if talk.seat is None:
            node = self._state.plan.nodes[talk.node]
            talk.seat = Seat(
                bench=self._bench,
                sandbox=self._sandbox,
                poll=self._poll,
                node=node,
                number=talk.number,
                command=talk.command,
                slot=talk.slot,
                policy=policy_of(self._bench, self._state.plan.workflow, node, cwd=talk.command.cwd),
            )
        return talk.seat

"""One attempt of an agent in the engine: where it stands, what it waits for, and what its log says.

Data and small functions only; who moves it on is agents.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from dagrun.agent.loop import START, State
from dagrun.agent.messages import CallFailed, Reply, Request
from dagrun.agent.router import Choice, Failure, Reason
from dagrun.agent.steps import CallModel, Finish
from dagrun.core.lattice import dollars
from dagrun.core.names import Json
from dagrun.engine.attempt import Ending
from dagrun.engine.bench import Command
from dagrun.engine.briefing import Begin
from dagrun.sandbox.logpool import Slot

if TYPE_CHECKING:
    from dagrun.engine.mcpremote import Remote
    from dagrun.engine.mcpseat import McpSeat
    from dagrun.engine.piped import Piped
    from dagrun.engine.reuse import Reuse
    from dagrun.engine.toolseat import Seat

Waits: TypeAlias = Literal["", "listing", "model", "delay", "money", "tool", "end"]
_SHOWN = 200  # characters of a tool's arguments in the log


@dataclass(slots=True)
class Asking:
    """A model call that is due: its tries so far, and the one that is under way."""

    effect: CallModel
    prompt_bytes: int
    failures: list[Failure] = field(default_factory=list)
    last: CallFailed | None = None
    reasons: list[Reason] = field(default_factory=list)
    waited_s: float = 0.0  # before the try that is due
    choice: Choice | None = None
    request: Request | None = None
    sent_m: float = 0.0
    again_m: float = 0.0  # when the delay is over

    def learn(self, reasons: Iterable[Reason]) -> None:
        """Keep reasons for the record, each once: who waits for money is told the same again and again."""
        self.reasons += [reason for reason in reasons if reason not in self.reasons]


@dataclass(slots=True)
class Talk:
    """One attempt. `call` counts its calls; `key` is that of the call under way, 0 for none."""

    node: int
    number: int
    command: Command
    begin: Begin
    slot: Slot
    started_m: float
    state: State = START
    waits: Waits = ""
    call: int = 0
    key: int = 0
    asking: Asking | None = None
    before: Request | None = None
    reuse: Reuse | None = None
    seat: Seat | None = None
    servers: dict[str, McpSeat | Remote] = field(default_factory=dict)
    tool: str = ""
    said: str = ""
    finish: Finish | None = None
    ending: Ending | None = None

    @property
    def seats(self) -> list[Piped | Remote]:
        """What runs for it: its tool worker and its servers, as far as they were ever started."""
        return [*self.servers.values()] if self.seat is None else [self.seat, *self.servers.values()]

    @property
    def alive(self) -> bool:
        """Whether a process of it is still there."""
        return any(seat.alive for seat in self.seats)

    def at_s(self, now: float) -> float:
        """Seconds since it began."""
        return now - self.started_m


def left_s(talk: Talk, timeout_s: float, now: float) -> float:
    """What is left of the attempt's time."""
    return max(0.0, talk.started_m + timeout_s - now)


def tail_of(talk: Talk) -> str:
    """What it is at, in a line: the last words of an answer, the tool that runs, what it waits for."""
    if talk.waits == "listing":
        return "starting its MCP servers"
    if talk.waits == "tool":
        return talk.tool
    if talk.waits == "model":
        return talk.said or (f"asking {talk.asking.choice.model}" if talk.asking and talk.asking.choice else "")
    if talk.waits == "delay" and talk.asking is not None and talk.asking.reasons:
        return talk.asking.reasons[0].text
    return "waiting for money that other calls hold" if talk.waits == "money" else ""


# ---------------------------------------------------------------- the log


def log(talk: Talk, text: str) -> None:
    """Write to the attempt's log, which people read."""
    data = text.encode("utf-8", "replace")
    while data:
        data = data[os.write(talk.slot.out_fd, data) :]


def log_reply(talk: Talk, reply: Reply, spent: int, *, reused: str) -> None:
    """One line about a call, then what the model said."""
    tokens = f"{reply.usage.input:,} in, {reply.usage.output:,} out" if reply.usage is not None else "tokens unknown"
    cost = f"reused from call {reused}" if reused else dollars(spent)
    log(talk, f"--- {reply.model or '?'}: {tokens}, {cost}\n")
    if reply.text:
        log(talk, reply.text.rstrip("\n") + "\n")


def log_failure(talk: Talk, model: str, failed: CallFailed) -> None:
    """One line about a call that failed."""
    log(talk, f"--- {model}: {failed.kind}: {failed.message}\n")


def log_results(talk: Talk, before: State) -> None:
    """A line for each tool call that has its result since an earlier state: also those that were not let through."""
    turns = talk.state.turns
    if not turns:
        return
    last = turns[-1]
    known = len(before.turns[-1].results) if len(before.turns) == len(turns) else 0
    for call, result in list(zip(last.reply.tool_calls, last.results, strict=False))[known:]:
        _log_tool(talk, call.name, call.arguments, result.ok, result.text)


def _log_tool(talk: Talk, name: str, arguments: Mapping[str, object] | None, ok: bool, text: str) -> None:
    """One line about a tool call."""
    first = text.splitlines()[0] if text else ""
    result = f"{len(text.encode('utf-8', 'replace')):,} bytes" if ok else f"error: {first}"
    log(talk, f"[{call_text(name, arguments)}] {result}\n")


def call_text(name: str, arguments: Mapping[str, object] | None) -> str:
    """A tool call in a line: `Read(src/a.py)`."""
    given = dict(arguments or {})
    first: object = next(iter(given.values()), "")
    text = first if isinstance(first, str) and len(given) == 1 else json.dumps(given, ensure_ascii=False)
    text = " ".join(text.split())
    return f"{name}({text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''})"


def reasons_json(reasons: Sequence[Reason]) -> tuple[Json, ...]:
    """Reasons as a journal has them."""
    return tuple([[r.model, str(r.code), r.text] for r in reasons])

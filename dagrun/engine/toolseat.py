"""The tool worker of one agent attempt, in the node's sandbox: calls in, results out, in the engine's one loop.

Started at its first call, started again when it is lost, but not for ever. Never raises for what a
node, a command or a machine does: that is a Returned(ok=False) for the model, or a Broken where the
attempt can't go on. Invariants: each call gets exactly one of the two; one call is at work at a time.
"""

from __future__ import annotations

import re
import select
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from signal import SIGXFSZ
from time import monotonic

from dagrun.agent.bashtool import OUT_OF_MEMORY
from dagrun.agent.messages import ToolCall
from dagrun.agent.worker import MAX_CALL_BYTES, Conversation, ToolResult, WorkerLost, WorkerUnfit
from dagrun.core.names import Outcome, format_duration
from dagrun.core.workflow import Node
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.piped import Piped
from dagrun.engine.toolends import Broken, End, Returned
from dagrun.engine.toolpolicy import Policy, policy_of
from dagrun.sandbox.logpool import Slot
from dagrun.sandbox.plain import Plain

__all__ = ["Broken", "Policy", "Returned", "Seat", "policy_of"]

MOST_RESTARTS = 2
START_S = 60.0  # from the spawn to the first word
PULL_S = 900.0  # the same where an image may have to be fetched first
ROOM_FOR_WORDS = 2000  # characters beyond the room of a call: what a tool says of what it left out
# how the shell tells of SIGXFSZ, and how everybody else tells of EFBIG
_TOO_LARGE = re.compile(
    rf"\(exit code {128 + SIGXFSZ:d}\)\Z|\(killed by signal {SIGXFSZ:d}\)\Z|file too large", re.IGNORECASE
)
SLACK_S = 8.0  # beyond the time of a call: the worker ends it in time, and tidies up after it


@dataclass(slots=True)
class _Call:
    number: int
    call: ToolCall
    room: int
    timeout_s: float
    began: float = 0.0  # when the worker got it


class Seat(Piped):
    """The tool worker of one attempt: hand it calls, its descriptors when they are ready, and what is due."""

    def __init__(
        self,
        *,
        bench: Workbench,
        sandbox: Plain,
        poll: select.epoll,
        node: Node,
        number: int,
        command: Command,
        slot: Slot,
        policy: Policy,
    ) -> None:
        super().__init__(bench=bench, sandbox=sandbox, poll=poll, command=command, slot=slot)
        self.node = node
        self.number = number
        self._policy = policy
        self._talk: Conversation | None = None
        self._waiting: deque[_Call] = deque()
        self._at_work: _Call | None = None
        self._due: float | None = None  # of the worker's start, or of the call at work
        self._late = ""  # why the call at work is over although it has no result
        self._lost = 0
        self._unfit = ""

    # ------------------------------------------------------------ calls

    def call(self, number: int, call: ToolCall, *, room: int, timeout_s: float) -> None:
        """Run a call, after those before it: its result comes with `drain`.

        `room` characters are the most that it may have; after `timeout_s` it is over.
        """
        if self._broken is not None:
            self._results.append(self._broken)
        elif self._stopping:
            self._results.append(Returned(number, False, "it was not run: the attempt ends", 0))
        else:
            self._waiting.append(_Call(number, call, room, timeout_s))
            self._advance()

    def stop(self) -> None:
        """Begin to end it: calls without a result are told off; `kill` is for the caller, after its grace."""
        super().stop()
        self._drop_calls()

    def kill(self) -> None:
        """End it at once."""
        super().kill()
        self._drop_calls()

    def _drop_calls(self) -> None:
        for call in [*([self._at_work] if self._at_work else []), *self._waiting]:
            self._return(call, False, "it was ended: the attempt ends")
        self._at_work, self._due = None, None
        self._waiting.clear()

    def _advance(self) -> None:
        """Give the worker the next call, if it has none; start one, if there is none."""
        if self._at_work is not None or not self._waiting or self._stopping or self._why or self._broken is not None:
            return
        if not self.alive:
            self._start()
        if not self.alive or self._talk is None or not self._talk.ready or not self._waiting:
            return
        call = self._waiting.popleft()
        given = call.call.arguments or {}
        _, data = self._talk.call(call.call.name, given, room=call.room, timeout_s=call.timeout_s)
        if len(data) > MAX_CALL_BYTES:
            self._return(call, False, f"the arguments are {len(data):,} bytes, more than {MAX_CALL_BYTES:,}")
            self._advance()
            return
        self._at_work, call.began = call, monotonic()
        self._due = call.began + call.timeout_s + SLACK_S
        self._send(data)

    def _return(self, call: _Call, ok: bool, text: str) -> None:
        duration_ms = round((monotonic() - call.began) * 1000) if call.began else 0
        self._results.append(Returned(call.number, ok, text, duration_ms))

    # ------------------------------------------------------------ the process

    def _opening(self) -> bytes:
        policy = self._policy
        self._talk = Conversation(
            policy.cwd,
            policy.read,
            policy.write,
            policy.deny,
            keys=policy.keys,
            allow=policy.allow,
            fixed=policy.fixed,
        )
        spec = self._command.spec
        pulls = spec is not None and spec.level == "container" and spec.pull == "missing"
        self._due = monotonic() + (PULL_S if pulls else START_S)
        return self._talk.opening()

    def _heard(self, data: bytes) -> str:
        assert self._talk is not None
        try:
            results = self._talk.feed(data)
        except WorkerUnfit as unfit:
            self._unfit = self._in_image(str(unfit))
            return self._unfit
        except WorkerLost as lost:
            return str(lost)
        if self._stopping:
            return ""
        for result in results:
            call, self._at_work = self._at_work, None
            if call is None:
                return "it answered what was not asked"
            # the worker cuts it itself, as long as it is ours
            self._return(call, result.ok, result.text[: call.room + ROOM_FOR_WORDS])
            broken = self._past_limit(failed=not result.ok) or self._too_large(result) or self._starved(result)
            if broken is not None:
                self._break(broken)
                return broken.error
        if self._talk.ready and self._at_work is None:
            self._due = None
        self._advance()
        return ""

    def _too_large(self, result: ToolResult) -> Broken | None:
        """The end of the attempt, where a file of it would have become larger than it may."""
        most = self.node.file_size
        if not most or result.ok or not _TOO_LARGE.search(result.text):
            return None
        text = f"file_size: a file would have become larger than its limit of {most} bytes"
        return Broken(Outcome.OVER_LIMIT, text, "file_size")

    def _starved(self, result: ToolResult) -> Broken | None:
        """The same for memory in a container, whose counters only its worker can read."""
        spec = self._command.spec
        if spec is None or spec.level != "container" or result.ok or not result.text.endswith(OUT_OF_MEMORY):
            return None
        most = spec.bounds.memory_bytes
        text = f"memory: a command used its limit of {most} bytes (peak {most} bytes)"
        return Broken(Outcome.OVER_LIMIT, text, "memory") if most is not None else None

    def _unstarted(self, broken: Broken) -> None:
        text = broken.error
        if broken.outcome is Outcome.FAILED:
            text = f"the tool worker can't be started: {text}"
        self._break(Broken(broken.outcome, text, broken.limit))

    def _ended(self, end: End) -> None:
        if self._stopping or self._broken is not None:
            return
        began = self._talk is not None and self._talk.ready
        self._talk, self._due = None, None
        broken = self._fatal(end, began)
        if broken is not None:
            self._break(broken)
            return
        self._lost += 1
        call, self._at_work = self._at_work, None
        if call is not None:
            self._return(call, False, self._late or f"the tool worker ended: {end.why}")
        self._late = ""
        if self._lost > MOST_RESTARTS:
            self._break(Broken(Outcome.FAILED, f"the tool worker ended {self._lost} times, at last: {end.why}"))
        else:
            self._advance()

    def _fatal(self, end: End, began: bool) -> Broken | None:
        """Why another worker would do no better, None if one may."""
        after = end.after
        if self._unfit:
            return Broken(Outcome.FAILED, self._unfit)
        if after.outcome:
            return Broken(Outcome(after.outcome), after.error or end.why)
        if end.by_limit:
            return Broken(Outcome.OVER_LIMIT, after.error or f"over its {after.limit} limit", after.limit)
        if not began:
            return Broken(Outcome.FAILED, self._in_image(f"the tool worker can't be started: {end.why}"))
        return None

    def _in_image(self, text: str) -> str:
        spec = self._command.spec
        if spec is None or spec.level != "container":
            return text
        return f"{text} (the tools of an agent need python3, 3.10 or newer, in the image {spec.image})"

    def _break(self, broken: Broken) -> None:
        self._broken = broken
        self._results.append(broken)
        self._at_work, self._due = None, None
        self._waiting.clear()

    # ------------------------------------------------------------ time

    def _deadlines(self) -> Iterable[float]:
        return () if self._due is None or self._why else (self._due,)

    def _expire(self, now: float) -> None:
        if self._due is None or self._due > now or self._why:
            return
        if self._at_work is not None:
            self._late = f"timed out after {format_duration(self._at_work.timeout_s)}"
            self._lose(self._late)
        else:
            self._lose(f"it said nothing for {format_duration(START_S)}")

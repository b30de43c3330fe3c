"""The line log: a run where there is no terminal, one line for each event and a heartbeat.

No cursor codes, no colour unless asked for, no line that a node could forge: a line always
begins with the time. All lines of one batch of events are one write. `JsonLines` is the same
for programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from time import localtime, strftime
from typing import TYPE_CHECKING

from dagrun.core.event import (
    AttemptFinished,
    CallEnded,
    CallReserved,
    EngineAttached,
    EscalationFailed,
    NodeAdopted,
    NodeCancelled,
    NodeSkipped,
    NodeStarted,
    PatchAdmitted,
    PatchProposed,
    PatchRefused,
    ProposalDecided,
    ReviewDecided,
    ReviewRequested,
    RevisionAdopted,
    RunEnded,
    StopRequested,
    Warned,
    encode,
)
from dagrun.core.names import Json, Outcome, Status, format_duration
from dagrun.core.retry import retry_delay_s
from dagrun.core.trace import cause, iso_utc, run_duration_ms
from dagrun.core.usage import usage_of
from dagrun.view.text import PLAIN, Look, clean, clock, counts_text, money, pad, plural, tokens
from dagrun.view.writer import Stream, Writer

if TYPE_CHECKING:
    from dagrun.core.event import Event
    from dagrun.core.state import RunState

_BEAT_NODES = 5
_NAME_MIN, _NAME_MAX = 12, 32
_WORDS = {Outcome.TIMED_OUT: "TIMEOUT", Outcome.OVER_LIMIT: "LIMIT", Outcome.DENIED: "DENIED"} | {
    Outcome.OVER_BUDGET: "BUDGET"
}


class LineLog:
    """An observer that writes one line for each event, and every 30 s what is running."""

    interval_s: float | None = 30.0

    def __init__(self, stream: Stream, look: Look = PLAIN) -> None:
        self._look = look
        self._writer = Writer(stream, look.glyphs.encoding, wait_at_exit=True)
        self._name_width = _NAME_MIN
        self._second = -1
        self._beat_m = 0.0
        self._time = ""
        self._left: dict[str, str] = {}  # node -> why models were left, as it was said last

    def attached(self, state: RunState, tail: Callable[[int], bytes]) -> None:
        """Say which run this is."""
        widest = max(map(len, state.plan.ids), default=0)
        self._name_width = min(max(_NAME_MIN, widest), _NAME_MAX)
        self._beat_m = state.now_m
        self._emit(self._opening(state))

    def recorded(self, events: Sequence[Event], state: RunState) -> None:
        """One line for each event that a person cares for."""
        lines = []
        for event in events:
            line = self.line(event, state)
            if line:
                lines.append(line)
        if lines:
            self._emit(lines)

    def tick(self, state: RunState, now: float, now_m: float) -> None:
        """A heartbeat: what runs, and for how long."""
        if now_m - self._beat_m < 29.0:  # the first tick comes at once
            return
        self._beat_m = now_m
        parts = []
        if state.running:
            shown = islice(state.running.items(), _BEAT_NODES)
            names = [f"{state.plan.ids[i]} {clock(now_m - a.started_m)}" for i, a in shown]
            more = len(state.running) - len(names)
            names += [f"{more:,} more"] if more else []
            parts.append(f"{len(state.running):,} running: {', '.join(names)}")
        waiting = state.counts[Status.RETRYING]
        if waiting:
            parts.append(f"{waiting:,} waiting to be tried again")
        if parts:
            self._emit([f"{self._at(now)} beat    {'; '.join(parts)}"])

    def closed(self, state: RunState) -> None:
        """Wait until all is written."""
        self._writer.close()

    def _emit(self, lines: Sequence[str]) -> None:
        self._writer.put("\n".join(lines) + "\n")

    def _opening(self, state: RunState) -> list[str]:
        parallel = f", j{state.engine.parallel}" if state.engine else ""
        verb = "resume " if state.engines > 1 else "run    "
        done = f", {state.settled - len(state.removed):,} done" if state.settled else ""
        size = f"{plural(len(state.plan.ids) - len(state.removed), 'node')}, {plural(state.plan.depth, 'wave')}"
        name = clean(state.created.workflow)
        return [f"{self._at(state.now)} {verb} {name} {state.created.run_id}  {size}{done}{parallel}"]

    def _at(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            self._time = strftime("%H:%M:%S", localtime(second))
        return self._time

    def line(self, event: Event, state: RunState) -> str:
        """The line of one event that was just folded into `state`; empty if it isn't worth one."""
        kind = type(event)
        if kind is NodeStarted:
            word, node, text, style = "start", event.node, self._started(event, state), ""  # type: ignore[union-attr,arg-type]
        elif kind is AttemptFinished:
            node = event.node  # type: ignore[union-attr]
            word, text, style = self._finished(event, state)  # type: ignore[arg-type]
        else:
            found = self._of_models(event) or _rare(event, state) or _of_people(event, state)
            if found is None:
                return ""
            word, node, text, style = found
        name = pad(node, self._name_width) + "  " if node else ""
        tag = self._look.paint(word.ljust(7), style) if style else word.ljust(7)
        return f"{self._at(state.now)} {tag} {name}{clean(text)}".rstrip()

    def _started(self, event: NodeStarted, state: RunState) -> str:
        most = _most_tries(state, state.plan.index[event.node])
        if event.attempt == 1 and most == 1:
            return ""
        return f"try {event.attempt}/{max(event.attempt, most)}"

    def _of_models(self, event: Event) -> tuple[str, str, str, str] | None:
        """(word, node, text, style) of calls that did not go as wished: one that failed, a model that was left."""
        match event:
            case CallEnded() if event.error:
                took = format_duration(event.duration_ms / 1000)
                text = f"call {event.call}: {event.error.replace('_', ' ')} in {took}{_asked_to_wait(event)}"
                return "call", event.node, text, "yellow"
            case CallReserved() if event.reasons:
                from dagrun.view.conversation import reason_text

                text = "; ".join(said for reason in event.reasons if (said := reason_text(reason)))
                if not text or self._left.get(event.node) == text:
                    return None
                self._left[event.node] = text
                return "model", event.node, f"asks {event.model}: {text}", "yellow"
        return None

    def _finished(self, event: AttemptFinished, state: RunState) -> tuple[str, str, str]:
        """(word, text, style) of an attempt that is over."""
        self._left.pop(event.node, None)
        i = state.plan.index[event.node]
        node = state.plan.nodes[i]
        took = format_duration(event.duration_ms / 1000) + _used(state, i)
        if event.outcome is Outcome.COMPLETED:
            return "ok", took, "green"
        # the reason of an agent is a sentence, which a time would make another one
        why = f"{cause(event, node)}{'  ' if node.agent is not None else ' in '}{took}"
        status = state.node_status[i]
        if i in state.escalating:
            return "fail", f"{why}; trying its on_failure", "yellow"
        if status is Status.RETRYING:
            tries = len(state.attempts[i]) - state.tries_base.get(i, 0) - state.lost.get(i, 0)
            delay = retry_delay_s(node.retry, event.outcome, tries, state.created.run_id, node.id, event.attempt)
            most = _most_tries(state, i)
            return "retry", f"{why}; try {event.attempt + 1}/{most} in {format_duration(delay or 0.0)}", "yellow"
        if status is Status.CANCELLED or event.outcome is Outcome.CANCELLED:
            return "cancel", why, "yellow"
        if status is not Status.FAILED:
            if event.outcome is Outcome.LOST:
                return "lost", f"{why}; runs again", "yellow"
            # What comes of it stands in the lines below: the patch was admitted with the same breath.
            return "fail", f"{why}; trying its on_failure" if node.on_failure else why, "yellow"
        if node.continue_on_error:
            return "fail", f"{why} (continue_on_error)", "yellow"
        word = _WORDS.get(event.outcome, "FAIL")
        if event.outcome is Outcome.DENIED:  # it may never have run: all there is to see is why
            return word, f"{clean(cause(event, node))}  dagrun plan {state.created.run_id} --permissions", "bad"
        return word, f"{why}  dagrun logs {state.created.run_id} {node.id}", "bad"


def _used(state: RunState, i: int) -> str:
    """What the last attempt of an agent used, to stand behind its time; empty for others."""
    used = usage_of(state.plan.nodes[i], state.attempts[i][-1:]) if state.attempts[i] else None
    if used is None or not used.calls:
        return ""
    cost = f"  {money(used.spent)}" if used.spent else ""
    return f"  {tokens(used.tokens)} tokens{cost}"


def _asked_to_wait(event: CallEnded) -> str:
    """How long a provider asked to wait, where the answer rides in the event."""
    answer = event.answer.get("v")
    wait_s = answer.get("retry_after_s") if isinstance(answer, dict) else None
    return f", it asks to wait {format_duration(wait_s)}" if isinstance(wait_s, int | float) and wait_s else ""


def _most_tries(state: RunState, i: int) -> int:
    """The number of the last attempt that a node may have, as far as is known."""
    return state.tries_base.get(i, 0) + state.lost.get(i, 0) + state.plan.nodes[i].retry.max_attempts


def _rare(event: Event, state: RunState) -> tuple[str, str, str, str] | None:
    """(word, node, text, style) of the events that are not the everyday ones, or None."""
    match event:
        case NodeSkipped():
            text = f"{event.reason}: {event.text}" if event.text else event.reason
            return "skip", event.node, text, "dim"
        case NodeCancelled():
            return "cancel", event.node, event.text, "yellow"
        case NodeAdopted():
            return "adopt", event.node, f"outputs of run {event.run_id}", ""
        case Warned():
            return "warn", event.node, event.text, "yellow"
        case EngineAttached() if state.engines > 1:
            revived = ", what failed runs again" if event.revive else ""
            return "attach", "", f"engine {event.pid}, {plural(state.settled, 'node')} settled{revived}", ""
        case StopRequested():
            by = f" by {event.by}" if event.by else ""
            how = "no new starts, waiting for" if event.mode == "drain" else "ending"
            return "stop", "", f"{event.cause}{by}: {how} {plural(len(state.running), 'node')}", "yellow"
        case RunEnded():
            took = format_duration(run_duration_ms(state) / 1000)
            reason = f"  {event.reason}" if event.reason else ""
            return (
                "end",
                "",
                f"{event.status.value.replace('_', ' ')} in {took}  {counts_text(state.counts)}{reason}",
                "bold",
            )
        case _:
            return None


def _of_people(event: Event, state: RunState) -> tuple[str, str, str, str] | None:
    """(word, node, text, style) of changes of the plan and of decisions, or None."""
    match event:
        case PatchAdmitted():
            by = f" by {event.by}" if event.by else ""
            return "patch", "", f"revision {event.revision}{by}: {operations_text(event.operations)}", "yellow"
        case PatchRefused():
            why = "; ".join(event.reasons[:3])
            return "patch", "", f"refused for revision {event.head}: {why}", "yellow"
        case PatchProposed():
            text = f"proposal {event.number} by {event.by} waits for a human: dagrun review {state.created.run_id}"
            return "patch", "", text, "yellow"
        case ProposalDecided():
            return "patch", "", f"proposal {event.number}: {event.decision}{f' by {event.by}' if event.by else ''}", ""
        case RevisionAdopted():
            return "adopt", "", f"revision {event.revision}", ""
        case EscalationFailed():
            return "fail", event.node, f"{event.step} did not help: {event.text}", "yellow"
        case ReviewRequested():
            question = f"  {event.message}" if event.message else ""
            return "review", event.node, f"dagrun review {state.created.run_id} {event.node}{question}", "yellow"
        case ReviewDecided():
            if event.decision == "timed_out":
                return "review", event.node, f"nobody answered in time: {_by_default(state, event.node)}", "yellow"
            by = f" by {event.by}" if event.by else ""
            return "review", event.node, f"{_DECIDED[event.decision]}{by}  {event.comment}", ""
        case _:
            return None


_DECIDED = {"approve": "approved", "reject": "rejected", "skip": "skipped"}


def _by_default(state: RunState, node: str) -> str:
    """What became of a node whose review ran out of time."""
    approved = state.node_status[state.plan.index[node]] is Status.COMPLETED
    return "approved" if approved else "rejected"


def operations_text(operations: Sequence[Json]) -> str:
    """A patch in a few words: `insert scan, remove lint`."""
    words = []
    for operation in operations:
        if isinstance(operation, dict):
            for kind, body in operation.items():
                name = body.get("id", "") if isinstance(body, dict) else ""
                words.append(f"{kind} {name}".strip())
    return ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


class JsonLines:
    """An observer that writes each event as one JSON object on a line, with `at` and `run_id` first."""

    interval_s: float | None = None

    def __init__(self, stream: Stream) -> None:
        self._writer = Writer(stream, wait_at_exit=True)

    def attached(self, state: RunState, tail: Callable[[int], bytes]) -> None:
        """The events from before there was anybody to tell: which run, which engine."""
        first: list[Event] = [state.created] if state.engines <= 1 else []
        self.recorded([*first, *([state.engine] if state.engine else [])], state)

    def recorded(self, events: Sequence[Event], state: RunState) -> None:
        """The events as the journal has them."""
        head = f'{{"at":"{iso_utc(state.now)}","run_id":"{state.created.run_id}",'
        self._writer.put("".join([f"{head}{encode(e)[1:]}\n" for e in events]))

    def tick(self, state: RunState, now: float, now_m: float) -> None:
        """Nothing: a program needs no heartbeat."""

    def closed(self, state: RunState) -> None:
        """Wait until all is written."""
        self._writer.close()

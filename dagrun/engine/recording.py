"""A recorded run, read back: what every attempt asked, was answered and came to, in the order of the journal.

A record is the folder of a run or one file that holds the same (recordfile.py). Whole requests are made
again from what each call added, and held to their digests; what is gone or was changed is an error that
names node, attempt and call. Never writes, asks no model.

What a replay repeats (`repeated`): each attempt of a node but those that a crash or an interrupt cut short
and another one followed. What had been bought in such a one and was reused stands in the attempt that
reused it, so no reply is given twice. Attempts that ended the node as lost are repeated, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

from dagrun.agent.messages import Answer, Request, answer_from_json
from dagrun.agent.prompt import ToolOutput
from dagrun.agent.record import whole
from dagrun.agent.replay import RecordedCall, RecordedTool, Recording, canonical
from dagrun.core.event import (
    AttemptFinished,
    CallEnded,
    CallReserved,
    EngineAttached,
    Event,
    NodeStarted,
    ReviewRequested,
    RunCreated,
    ToolEnded,
    ToolsListed,
    decode,
)
from dagrun.core.evolve import evolve
from dagrun.core.names import Json, NodeId, Outcome
from dagrun.core.plan import compile_plan
from dagrun.core.state import INTERRUPTS, InvalidTransition, RunState, new_state
from dagrun.core.workflow import Node, Workflow
from dagrun.errors import EnvironmentFault, JournalError, NotFoundError
from dagrun.store.context import ContextStore
from dagrun.store.history import load_workflow
from dagrun.store.journal import Journal

if TYPE_CHECKING:
    from dagrun.store.rundir import RunDir


class Told(NamedTuple):
    """An event with wall and monotonic seconds of its record, and the number of that record."""

    t: float
    m: float
    seq: int
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A recorded run. `value` reads a reference; `run` is its folder, None where it is a file.

    `told` begins with its RunCreated; `name` is what a person calls it.
    """

    name: str
    workflow: Workflow
    told: tuple[Told, ...]
    value: Callable[[Mapping[str, Json]], Json]
    run: RunDir | None = None

    @property
    def created(self) -> RunCreated:
        """How it began."""
        return cast(RunCreated, self.told[0].event)

    @property
    def parallel(self) -> int | None:
        """How many attempts its engine let run at a time."""
        return next((told.event.parallel for told in self.told if isinstance(told.event, EngineAttached)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A model call as it was recorded. `answer` None: none came. `at_s`: seconds of the attempt until it did.

    `position` counts events of the record: that of the answer, or of the call where none came.
    """

    reserved: CallReserved
    ended: CallEnded | None
    request: Request
    answer: Answer | None
    at_s: float
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """A tool call as it was recorded."""

    ended: ToolEnded
    arguments: Mapping[str, Json]
    output: ToolOutput
    at_s: float
    position: int


@dataclass(slots=True, kw_only=True)
class Trial:
    """One attempt: its node as it was then, its events, and where in the record it began and ended (-1: not).

    `started` None: it never ran. `interrupted`: a stop ended it, for another attempt to follow.
    """

    node: Node
    number: int
    begun: int
    began_s: float
    started: NodeStarted | None = None
    finished: AttemptFinished | None = None
    ended: int = -1
    interrupted: bool = False
    deeds: list[tuple[int, float, CallReserved | CallEnded | ToolEnded | ToolsListed]] = field(default_factory=list)

    @property
    def cut_short(self) -> bool:
        """Whether neither the node nor dagrun decided that it is over."""
        return self.interrupted or self.finished is None or self.finished.outcome is Outcome.LOST


def read_run(run: RunDir) -> Record:
    """The record in the folder of a run. Raises JournalError, NotFoundError for a run that never began."""
    journal = Journal.open(run.journal, write=False)
    try:
        records = journal.read()
    finally:
        journal.close()
    if not records:
        raise NotFoundError(f"run {run.id} never began: its journal is empty", hint="dagrun runs gc")
    told: list[Told] = []
    for record in records:
        for data in record.events:
            try:
                told.append(Told(record.t, record.m, record.seq, decode(data)))
            except ValueError as error:
                raise JournalError(f"{run.journal}, record {record.seq} at byte {record.offset}: {error}") from error
    created = told[0].event
    if not isinstance(created, RunCreated):
        raise JournalError(f"{run.journal} does not begin with run.created")
    workflow = load_workflow(run, created.plan_digest)
    return Record(name=f"run {run.id}", workflow=workflow, told=tuple(told), value=ContextStore(run).get, run=run)


# ---------------------------------------------------------------- attempts


def follow(record: Record) -> Iterator[tuple[int, Told, RunState]]:
    """Each event behind the first with its position, and the state *before* it. Raises JournalError."""
    state = new_state(compile_plan(record.workflow), record.created, record.told[0].t)
    for position, told in enumerate(record.told[1:], 1):
        yield position, told, state
        try:
            evolve(state, told.event, told.t, told.m)
        except (ValueError, KeyError, InvalidTransition) as error:
            raise JournalError(f"{record.name}, event {position + 1}: {error}") from error


def trials_of(record: Record) -> dict[NodeId, list[Trial]]:
    """All attempts of each node, in order. Raises JournalError for a record that can't have happened."""
    found: dict[NodeId, list[Trial]] = {}
    for position, told, state in follow(record):
        watch(found, position, told, state)
    return found


def watch(found: dict[NodeId, list[Trial]], position: int, told: Told, state: RunState) -> None:
    """Note one event of a record among the attempts so far; `state` is that before it."""
    match told.event:
        case NodeStarted() as event:
            trial = _trial(state, event.node, event.attempt, position, told.m)
            trial.started = event
            found.setdefault(event.node, []).append(trial)
        case ReviewRequested() as event if state.plan.index[event.node] not in state.escalating:
            found.setdefault(event.node, []).append(_trial(state, event.node, event.attempt, position, told.m))
        case AttemptFinished() as event:
            mine = found.setdefault(event.node, [])
            if not mine or mine[-1].number != event.attempt:
                mine.append(_trial(state, event.node, event.attempt, position, told.m))
            mine[-1].finished, mine[-1].ended = event, position
            stopped = state.stop is not None and state.stop.cause in INTERRUPTS
            mine[-1].interrupted = stopped and event.outcome is Outcome.CANCELLED
        case CallReserved() | CallEnded() | ToolEnded() | ToolsListed() as event:
            trial = _of(found, event.node, event.attempt)
            trial.deeds.append((position, told.m - trial.began_s, event))
        case _:
            pass


def _trial(state: RunState, node: NodeId, number: int, position: int, m: float) -> Trial:
    return Trial(node=state.plan.nodes[state.plan.index[node]], number=number, begun=position, began_s=m)


def _of(found: Mapping[NodeId, Sequence[Trial]], node: NodeId, number: int) -> Trial:
    for trial in reversed(found.get(node, ())):
        if trial.number == number:
            return trial
    raise JournalError(f"node {node!r} has no attempt {number} that could have called a model or a tool")


def repeated(trials: Sequence[Trial]) -> list[Trial]:
    """The attempts of one node that a replay repeats: see the top of this module."""
    last = len(trials)
    while last and trials[last - 1].cut_short:
        last -= 1
    kept = [trial for trial in trials[:last] if not trial.cut_short]
    tail = list(trials[last:])
    # of a run that was never taken up again the last one stands for all; lost ones that ended the node all count
    given_up = len(tail) > 1 and all(t.finished is not None and t.finished.outcome is Outcome.LOST for t in tail)
    return [*kept, *(tail if given_up else tail[-1:])]


# ---------------------------------------------------------------- what an attempt asked


def calls_of(record: Record, trial: Trial) -> list[Call]:
    """The model calls of an attempt, with their whole requests. Raises JournalError naming the one that is wrong."""
    ends = {e.call: (p, at, e) for p, at, e in trial.deeds if isinstance(e, CallEnded)}
    made: list[Call] = []
    before: Request | None = None
    for position, at_s, event in trial.deeds:
        if not isinstance(event, CallReserved):
            continue
        where = f"{record.name}, node {event.node}, attempt {event.attempt}, call {event.call}"
        request = _request(record, event, before, where)
        end = ends.get(event.call)
        answer: Answer | None = None
        if end is not None:
            position, at_s, _ = end
            answer = _answer(record, end[2], where)
        ended = end[2] if end is not None else None
        made.append(
            Call(reserved=event, ended=ended, request=request, answer=answer, at_s=at_s, position=position)
        )
        before = request
    return made


def _request(record: Record, event: CallReserved, before: Request | None, where: str) -> Request:
    try:
        request = whole(_mapping(read(record, event.request, f"{where}: its request")), before)
    except ValueError as error:
        raise JournalError(f"{where}: {error}") from error
    if (request.model, request.max_tokens) != (event.model, event.max_tokens):
        raise JournalError(f"{where}: the request that was kept is for another model or length")
    if request.digest() != event.digest:
        raise JournalError(f"{where}: the request that was kept is not the one that its digest is of")
    return request


def _answer(record: Record, event: CallEnded, where: str) -> Answer | None:
    if not event.answer:
        return None
    try:
        return answer_from_json(_mapping(read(record, event.answer, f"{where}: its answer")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JournalError(f"{where}: what was kept is no answer of a model") from error


def tools_of(record: Record, trial: Trial) -> list[ToolUse]:
    """The tool calls of an attempt that were let through. Raises JournalError naming the one that is wrong."""
    made: list[ToolUse] = []
    for position, at_s, event in trial.deeds:
        if not isinstance(event, ToolEnded):
            continue
        where = f"{record.name}, node {event.node}, attempt {event.attempt}, tool call {event.number}"
        arguments = read(record, event.arguments, f"{where}: its arguments") if event.arguments else {}
        text = read(record, event.text, f"{where}: its result") if event.text else ""
        if not isinstance(arguments, dict) or not isinstance(text, str):
            raise JournalError(f"{where}: what was kept is no result of a tool")
        output = ToolOutput(event.ok, text)
        made.append(ToolUse(ended=event, arguments=arguments, output=output, at_s=at_s, position=position))
    return made


def listed_of(record: Record, trial: Trial) -> list[Json]:
    """The definitions that the MCP servers of an attempt gave, in the order in which they were asked."""
    made: list[Json] = []
    for _, _, event in trial.deeds:
        if isinstance(event, ToolsListed):
            where = f"{record.name}, node {event.node}, attempt {event.attempt}, tools of {event.server}"
            made += cast("list[Json]", read(record, event.tools, where) or [])
    return made


def read(record: Record, ref: Mapping[str, Json], where: str) -> Json:
    """The value of a reference. Raises JournalError that says what it was of when it is gone or was changed."""
    try:
        return record.value(ref)
    except (KeyError, TypeError) as error:
        raise JournalError(f"{where} is not in the record") from error
    except EnvironmentFault as error:
        raise JournalError(f"{where}: {error.message}", hint=error.hint) from error


def _mapping(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise ValueError("this is no model call as it is kept")
    return value


# ---------------------------------------------------------------- for a replay


def recording_of(record: Record, trials: Mapping[NodeId, Sequence[Trial]]) -> Recording:
    """The calls and tools of all attempts that a replay repeats, numbered per node. Raises JournalError."""
    calls: list[RecordedCall] = []
    tools: list[RecordedTool] = []
    for node, tried in trials.items():
        chosen = repeated(tried)
        asked = [call for trial in chosen for call in calls_of(record, trial) if call.answer is not None]
        for number, call in enumerate(asked, 1):
            assert call.answer is not None
            calls.append(
                RecordedCall(
                    node=node, number=number, digest=call.reserved.digest, answer=call.answer, request=call.request
                )
            )
        used = [use for trial in chosen for use in tools_of(record, trial)]
        for number, use in enumerate(used, 1):
            arguments = canonical(dict(use.arguments))
            tools.append(
                RecordedTool(node=node, number=number, name=use.ended.name, arguments=arguments, output=use.output)
            )
    return Recording(tuple(calls), tuple(tools))

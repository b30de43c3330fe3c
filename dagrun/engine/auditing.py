"""Where every byte of a recorded request comes from: each request is made again, and held to the recorded one.

Made again from the plan as it was, from the outputs, answers and results in the journal, and from the files of
skills by their digest: never from a request that was kept. What can't be explained is named, with its place.
Starts nothing and asks no model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from dagrun.agent.loop import START, State, effect, step
from dagrun.agent.messages import Message, Reply, Request
from dagrun.agent.prompt import first_difference
from dagrun.agent.prompt import said as said_in
from dagrun.agent.replay import canonical, difference
from dagrun.agent.skills import Place, Skill, find, search_path
from dagrun.agent.steps import Answered, CallModel, CallTool, Task, ToolReturned
from dagrun.core import expression as ex
from dagrun.core.event import AttemptFinished, NodeStarted
from dagrun.core.names import Json, NodeId, Outcome
from dagrun.core.state import RunState
from dagrun.core.workflow import Node
from dagrun.engine.bench import Workbench
from dagrun.engine.briefing import RecordedSkill, task_of
from dagrun.engine.inputs import hasher, resolve_inputs
from dagrun.engine.outside import known_hashes, of_node
from dagrun.engine.recording import (
    Call,
    Record,
    ToolUse,
    Trial,
    calls_of,
    follow,
    listed_of,
    read,
    tools_of,
    watch,
)
from dagrun.errors import BugError, DagrunError, JournalError
from dagrun.store.context import ContextStore
from dagrun.store.rundir import RunDir


@dataclass(slots=True, kw_only=True)
class Finding:
    """One attempt of an agent: its calls, how many of them are explained, and the first thing that is not.

    `sent` are the bytes of all its requests' messages by where they come from; `call` is the number of the
    call with the `problem`, 0 for one of the attempt as a whole. `notes` are not wrong, only worth a word.
    """

    node: NodeId
    attempt: int
    calls: int = 0
    explained: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    call: int = 0
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every byte is explained."""
        return not self.problem


class _Values(ContextStore):
    """The values of a record, where they are a file's."""

    __slots__ = ("_record",)

    def __init__(self, record: Record) -> None:
        super().__init__(record.run or RunDir("", ""))
        self._record = record

    def get(self, ref: Mapping[str, Json]) -> Json:
        return self._record.value(ref)


def audit(record: Record, home: str = "") -> list[Finding]:
    """What each attempt of each agent was told, in the order in which they began.

    `home` is where the user's skills are. Raises JournalError for a journal that can't be followed.
    """
    return _audited(record, home)[0]


def groups_of(record: Record) -> dict[str, dict[NodeId, tuple[Message, ...]]]:
    """What the members of each group that completed said, in their order, for those that come after them."""
    return _audited(record, "")[1]


def _audited(record: Record, home: str) -> tuple[list[Finding], dict[str, dict[NodeId, tuple[Message, ...]]]]:
    trials: dict[NodeId, list[Trial]] = {}
    tasks: dict[tuple[NodeId, int], Task | str] = {}
    order: list[Finding] = []
    said: dict[str, dict[NodeId, tuple[Message, ...]]] = {}
    for position, told, state in follow(record):
        watch(trials, position, told, state)
        match told.event:
            case NodeStarted(node=node, attempt=number, agent=agent) if agent:
                finding = Finding(node=node, attempt=number)
                order.append(finding)
                tasks[node, number] = _task(record, state, told.event, said, home, finding)
            case AttemptFinished(node=node, attempt=number, outcome=outcome) if (node, number) in tasks:
                finding = next(f for f in order if (f.node, f.attempt) == (node, number))
                ended = _attempt(record, tasks[node, number], trials[node][-1], finding)
                _excuse(trials[node][-1], finding)
                group = trials[node][-1].node.group
                if group and outcome is Outcome.COMPLETED and isinstance(ended, tuple):
                    said.setdefault(group, {})[node] = said_in(ended[0].briefing, ended[1].turns)
            case _:
                pass
    for finding in order:  # what was still going on when the journal ended
        trial = trials[finding.node][-1]
        if trial.number == finding.attempt and trial.finished is None:
            _attempt(record, tasks[finding.node, finding.attempt], trial, finding)
            _excuse(trial, finding)
    return order, said


def _excuse(trial: Trial, finding: Finding) -> None:
    """Say so where nobody can tell: a journal from before such values were kept."""
    depends = of_node(trial.node)
    if finding.problem and depends and trial.started is not None and "outside" not in trial.started.agent:
        why = f"it depends on {', '.join(depends)}, not in this journal"
        finding.problem = f"can't be checked: {why}; {finding.problem}"


# ---------------------------------------------------------------- what it began with


def _task(
    record: Record,
    state: RunState,
    event: NodeStarted,
    said: Mapping[str, Mapping[NodeId, Sequence[Message]]],
    home: str,
    finding: Finding,
) -> Task | str:
    """The task of an attempt, made again as things stood when it began; or why it can't be."""
    node = state.plan.nodes[state.plan.index[event.node]]
    if node.agent is None:
        return "the journal has an agent where the plan has none"
    bench = _bench(record, state)
    try:
        scope, inputs = _scope(bench, state, node, _outside(record, event))
        skills = _skills(record, event, node, home, finding)
        task = task_of(
            state.plan.workflow,
            node,
            scope=scope,
            inputs=inputs,
            skills=skills,
            earlier=said.get(node.group) if node.group else None,
            project=record.created.project,
            fake=state.plan.workflow.provider.kind == "fake",
        )
    except (ex.EvaluationError, ex.ExpressionError, DagrunError) as error:
        return f"its prompt can't be made again: {error}"
    if task.model != event.agent.get("model"):
        return f"the plan wants the model {task.model}, the journal {event.agent.get('model')}"
    return task


def _bench(record: Record, state: RunState) -> Workbench:
    """What expressions are evaluated with: values as in the journal, the environment as it is now."""
    created, workflow = record.created, state.plan.workflow
    return Workbench(
        run_id=created.replay_of or created.run_id,
        run_path="",
        key="",
        project=created.project,
        params=created.params,
        workflow=workflow.name,
        secrets=dict.fromkeys(workflow.secrets, ""),
        secret_env={},
        context=_Values(record),
        exchange="",
        environ=os.environ,
    )


def _outside(record: Record, event: NodeStarted) -> dict[str, dict[str, Json]]:
    """What an attempt read that no output explains, as it was kept: inputs, variables, digests of files."""
    kept = cast("Mapping[str, Mapping[str, Json]]", event.agent.get("outside") or {})
    where = f"{record.name}, node {event.node}, attempt {event.attempt}"
    found: dict[str, dict[str, Json]] = {"hashes": dict(kept.get("hashes") or {})}
    for kind in ("inputs", "env"):
        refs = cast("Mapping[str, Mapping[str, Json]]", kept.get(kind) or {})
        found[kind] = {name: read(record, ref, f"{where}, {kind} {name}") for name, ref in refs.items()}
    return found


def _scope(
    bench: Workbench, state: RunState, node: Node, outside: Mapping[str, dict[str, Json]]
) -> tuple[ex.Scope, Mapping[str, Json]]:
    """What the prompt of a node may read: its own variables and its inputs."""
    run: dict[str, Json] = {"id": bench.run_id, "workflow": bench.workflow, "dir": bench.project}
    env = {name: value for name, value in bench.base(node).items() if name not in node.secrets}
    hashed = known_hashes(dict(outside), hasher(bench.project))
    scope = ex.Scope(params=bench.params, env=env, run=run, hash_files=hashed)
    rest = {name: item for name, item in node.inputs.items() if name not in outside["inputs"]}
    found = {**resolve_inputs(bench, state, replace(node, inputs=rest), scope), **outside["inputs"]}
    inputs = {name: found[name] for name in node.inputs}
    scope = replace(scope, inputs=inputs)
    known = {name: str(value) for name, value in outside["env"].items()}
    own = {n: known[n] if n in known else ex.render_text(ex.parse_template(t), scope) for n, t in node.env.items()}
    return replace(scope, env=own), inputs


def _skill_places(record: Record, home: str) -> list[tuple[Place, ...]]:
    """Where skills lay when it was recorded, and where they lie here: a record goes from machine to machine."""
    file = record.created.file
    made = []
    for project in dict.fromkeys((record.created.project, os.getcwd())):
        base = project if file in ("", "<stdin>") else os.path.dirname(os.path.normpath(os.path.join(project, file)))
        made.append(search_path(base, home))
    return made


def _same_skill(name: str, digest: Json, places: Sequence[tuple[Place, ...]]) -> Skill | None:
    for where in places:
        try:
            found = find(name, where)
        except DagrunError:
            continue
        if found.digest == digest:
            return found
    return None


def _skills(record: Record, event: NodeStarted, node: Node, home: str, finding: Finding) -> list[RecordedSkill]:
    """The skills of an attempt: from their files where those are still what they were, else from the copy."""
    assert node.agent is not None
    kept = cast("Mapping[str, Mapping[str, Json]]", event.agent.get("skills") or {})
    if list(kept) != list(node.agent.skills):
        raise JournalError(f"the plan names the skills {list(node.agent.skills)}, the journal has {list(kept)}")
    places = _skill_places(record, home)
    made = []
    for name, copy in kept.items():
        where = f"{record.name}, node {event.node}, attempt {event.attempt}, skill {name}"
        body = str(read(record, cast("Mapping[str, Json]", copy["body"]), where))
        found = _same_skill(name, copy["digest"], places)
        if found is not None:
            body = found.body
        else:
            finding.notes.append(f"skill {name}: its file is not as it was; the copy of the run is taken")
        tools = copy.get("tools")
        allowed = tuple(map(str, tools)) if isinstance(tools, list) else None
        made.append(RecordedSkill(name=name, digest=str(copy["digest"]), body=body, allowed_tools=allowed))
    return made


# ---------------------------------------------------------------- what it asked


def _attempt(record: Record, task: Task | str, trial: Trial, finding: Finding) -> tuple[Task, State] | None:
    """Follow one attempt from call to call; where it stands after what is explained, None where nothing is."""
    try:
        calls, uses = calls_of(record, trial), tools_of(record, trial)
        listed = listed_of(record, trial)
    except JournalError as error:
        finding.problem = error.message
        return None
    finding.calls = len(calls)
    if isinstance(task, str):
        finding.problem = task
        return None
    if listed:
        task = replace(task, tools=(*task.tools, *listed))
    state = START
    begun: list[tuple[int, Call | ToolUse]] = [(_asked_at(trial, call), call) for call in calls]
    for _, deed in sorted([*begun, *((use.position, use) for use in uses)], key=lambda item: item[0]):
        try:
            state = _call(task, state, deed, finding) if isinstance(deed, Call) else _use(task, state, deed)
        except _Unexplained as why:
            finding.call = deed.reserved.call if isinstance(deed, Call) else 0
            finding.problem = str(why)
            return None
        except BugError as error:
            finding.problem = f"what the journal says can't follow one another: {error.message}"
            return None
    return task, state


class _Unexplained(Exception):
    """Something was sent or done that does not follow from what was before."""


def _asked_at(trial: Trial, call: Call) -> int:
    return next(position for position, _, event in trial.deeds if event is call.reserved)


def _call(task: Task, state: State, call: Call, finding: Finding) -> State:
    """Hold one request to what was due, and go on with its reply."""
    due = effect(task, state)
    asked = call.reserved
    if not isinstance(due, CallModel):
        raise _Unexplained("no model call was due")
    if asked.max_tokens > due.request.max_tokens:
        raise _Unexplained(f"it asks for {asked.max_tokens} tokens, {due.request.max_tokens} were due")
    made = replace(due.request, model=asked.model, max_tokens=asked.max_tokens)
    if made.digest() != asked.digest:
        raise _Unexplained(_apart(due, made, call.request))
    finding.explained += 1
    for segment in due.prompt.segments:
        text = made.messages[segment.message].content[segment.start : segment.end]
        finding.sent[segment.label] = finding.sent.get(segment.label, 0) + len(text.encode())
    if isinstance(call.answer, Reply):
        return step(task, state, Answered(call.answer, asked.max_tokens, call.at_s))
    return state  # it is asked again, or it was the end


def _apart(due: CallModel, made: Request, recorded: Request) -> str:
    """The first byte that is not explained."""
    found = first_difference(due.prompt, recorded.messages)
    if found is not None:
        return f"{found.what} is not what {found.label} explains"
    return "; ".join(difference(recorded, made)[:4]) or "its digest is not that of what was due"


def _use(task: Task, state: State, use: ToolUse) -> State:
    """Hold one tool call to what was due, and go on with its result."""
    due, ended = effect(task, state), use.ended
    if not isinstance(due, CallTool) or (due.number, due.call.name) != (ended.number, ended.name):
        raise _Unexplained(f"tool call {ended.number} ({ended.name}) was not due")
    if canonical(dict(due.call.arguments or {})) != canonical(dict(use.arguments)):
        raise _Unexplained(f"tool call {ended.number} ({ended.name}) has other arguments than the model wrote")
    return step(task, state, ToolReturned(ended.number, use.output.ok, use.output.text, use.at_s))

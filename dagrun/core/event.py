"""What can happen to a run: a closed union, and its JSON form in the journal.

One class, one line each. The journal adds sequence number, wall and monotonic time and epoch to
a group of events (a record); an event itself holds no time. Fields that have their default are
left out of the JSON, so old journals stay readable when a field is added. FORMAT grows when an
old reader would misread a new journal; every released format is replayed by a test for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from json import JSONEncoder
from typing import Literal, TypeAlias, cast, get_args

from dagrun.core.names import Json, NodeId, Outcome, RunId, RunStatus
from dagrun.core.value import value

FORMAT = 1

SkipReason: TypeAlias = Literal["condition", "dependency", "selection"]
StopCause: TypeAlias = Literal["sigint", "sigterm", "sighup", "cancel", "timeout", "disk_full"]
StopMode: TypeAlias = Literal["drain", "now"]


@value(frozen=True, slots=True, kw_only=True)
class RunCreated:
    """A run exists. Always the first event of a journal.

    `plan_digest` is the sha256 of `plan.json` beside the journal, synced before this record.
    `fail` maps a node to the (outcome, attempt) that `--fail` injects; attempt 0 means every one. `replay_of`
    is the run that this one plays again.
    """

    format: int
    run_id: RunId
    workflow: str
    file: str = ""
    project: str = ""
    plan_digest: str = ""
    workflow_digest: str = ""
    params: Mapping[str, Json] = field(default_factory=dict)
    version: str = ""
    schedule: str = "waves"
    fail: Mapping[NodeId, list[Json]] = field(default_factory=dict)
    outputs_of: RunId = ""
    replay_of: RunId = ""


@value(frozen=True, slots=True, kw_only=True)
class EngineAttached:
    """An engine took the run's lock; `revive` puts failed, cancelled and dependency-skipped nodes back."""

    pid: int
    boot_id: str = ""
    host: str = ""
    parallel: int = 1
    revive: bool = False


@value(frozen=True, slots=True, kw_only=True)
class NodeAdopted:
    """A node counts as completed with the outputs of another run (`--outputs-of`)."""

    node: NodeId
    run_id: RunId
    outputs: Mapping[str, Json] = field(default_factory=dict)


@value(frozen=True, slots=True, kw_only=True)
class NodeStarted:
    """An attempt is about to be spawned; its logs go to pool slot `slot`, `sandbox` is what confines it.

    `agent` is what an agent begins with: `model` as wished, `skills` by name with their digests, `tools`,
    `provider`, and `prices`: those of the models that may be asked, frozen.
    """

    node: NodeId
    attempt: int
    revision: int = 1
    slot: int = -1
    inputs_digest: str = ""
    sandbox: str = ""
    agent: Mapping[str, Json] = field(default_factory=dict)


@value(frozen=True, slots=True, kw_only=True)
class NodeSpawned:
    """The process of an attempt: with `ticks` (its start time) and the boot it is one identity."""

    node: NodeId
    attempt: int
    pid: int
    ticks: int
    slot: int = -1


@value(frozen=True, slots=True, kw_only=True)
class AttemptFinished:
    """One attempt is over and every process of it is dead. Without a NodeStarted it never ran.

    `outputs` maps names to `{"v": value}` or `{"sha": …, "size": …}`; `limit` names what an
    over_limit broke; `max_rss_bytes` is None where it can't be told from dagrun's own. `permanent`: it would
    fail in the same way again (no valid key, a request that is refused), so it is not tried again.
    """

    node: NodeId
    attempt: int
    outcome: Outcome
    duration_ms: int = 0
    exit_code: int | None = None
    signal: int | None = None
    error: str = ""
    limit: str = ""
    summary: str = ""
    outputs: Mapping[str, Json] = field(default_factory=dict)
    artifacts: tuple[Json, ...] = ()
    max_rss_bytes: int | None = None
    cpu_ms: int | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    permanent: bool = False


@value(frozen=True, slots=True, kw_only=True)
class NodeSkipped:
    """A node will not run. A skip by `selection` satisfies its dependents, the others do not."""

    node: NodeId
    reason: SkipReason
    text: str = ""


@value(frozen=True, slots=True, kw_only=True)
class NodeCancelled:
    """A node that had not started is given up, since the run fails fast."""

    node: NodeId
    text: str = ""


@value(frozen=True, slots=True, kw_only=True)
class PatchAdmitted:
    """A patch was checked against the head and is the new revision from this record on.

    `nodes` are new and changed nodes in their compact form, `removed` are out of the graph,
    `skipped` settle without output, `superseded` maps a node to its stand-in, `reset` run again,
    `cancelled` are running and have to end first. `operations` are what the author wrote.
    `wave` is where the run stood; `undoes` is the revision that this one takes back. `asks` maps a failed
    node to the replanner that this revision brings for it: the failure is held open until that has answered.
    """

    revision: int
    base: int
    by: str = ""
    trigger: Mapping[str, Json] = field(default_factory=dict)
    operations: tuple[Json, ...] = ()
    nodes: Mapping[NodeId, Json] = field(default_factory=dict)
    removed: tuple[NodeId, ...] = ()
    skipped: Mapping[NodeId, str] = field(default_factory=dict)
    superseded: Mapping[NodeId, NodeId] = field(default_factory=dict)
    reset: tuple[NodeId, ...] = ()
    cancelled: tuple[NodeId, ...] = ()
    limits: Mapping[str, Json] = field(default_factory=dict)
    wave: int = 0
    undoes: int = 0
    asks: Mapping[NodeId, NodeId] = field(default_factory=dict)


@value(frozen=True, slots=True, kw_only=True)
class PatchRefused:
    """A patch was refused, with all the reasons."""

    base: int
    head: int
    by: str = ""
    trigger: Mapping[str, Json] = field(default_factory=dict)
    operations: tuple[Json, ...] = ()
    reasons: tuple[str, ...] = ()


@value(frozen=True, slots=True, kw_only=True)
class PatchProposed:
    """A node wrote a patch that only a human may admit; `number` counts the proposals of the run."""

    number: int
    base: int
    by: str = ""
    trigger: Mapping[str, Json] = field(default_factory=dict)
    operations: tuple[Json, ...] = ()
    why: str = ""


@value(frozen=True, slots=True, kw_only=True)
class ProposalDecided:
    """A human admitted (a PatchAdmitted stands beside it) or rejected a proposal."""

    number: int
    decision: Literal["approve", "reject"]
    by: str = ""


@value(frozen=True, slots=True, kw_only=True)
class RevisionAdopted:
    """The engine goes by this revision."""

    revision: int


@value(frozen=True, slots=True, kw_only=True)
class EscalationFailed:
    """A step of a node's `on_failure` did not help; after the last step the failure settles."""

    node: NodeId
    step: str
    text: str = ""


@value(frozen=True, slots=True, kw_only=True)
class ReviewRequested:
    """A human has to decide: a review node was reached, or a failure was escalated.

    `deadline` is wall time; 0 means that there is none.
    """

    node: NodeId
    attempt: int
    message: str = ""
    deadline: float = 0.0
    on_timeout: Literal["reject", "approve"] = "reject"
    inputs_digest: str = ""


@value(frozen=True, slots=True, kw_only=True)
class ReviewDecided:
    """What a human decided; `timed_out` is the answer of nobody. `outputs` as in AttemptFinished."""

    node: NodeId
    decision: Literal["approve", "reject", "skip", "timed_out"]
    by: str = ""
    comment: str = ""
    outputs: Mapping[str, Json] = field(default_factory=dict)


@value(frozen=True, slots=True, kw_only=True)
class ToolsListed:
    """What an MCP server of an agent's attempt offers: definitions (a reference) and their digest."""

    node: NodeId
    attempt: int
    server: str
    digest: str
    tools: Mapping[str, Json] = field(default_factory=dict)


@value(frozen=True, slots=True, kw_only=True)
class CallReserved:
    """A model call is about to leave: its worst case is held in every scope. On disk before it leaves.

    `call` counts the calls of the attempt from 1, `turn` is the reply it is for, `tries` how often that was
    asked for. `amount` in nano-dollars, `scopes` leaf → root; none where nothing is bought. `request` is a
    reference to the request, given as what is new in it (agent/record.py); `digest` is that of the whole.
    `reasons` are [model, code, text] of models left or passed over.
    """

    node: NodeId
    attempt: int
    call: int
    turn: int
    model: str
    max_tokens: int
    digest: str
    tries: int = 1
    amount: int = 0
    scopes: tuple[str, ...] = ()
    request: Mapping[str, Json] = field(default_factory=dict)
    reasons: tuple[Json, ...] = ()


@value(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """What became of a model call. `answer` is a reference to the reply or the error (messages.answer_to_json).

    `books` says what became of the reservation (budget.Entry), `spent` nano-dollars of it are gone.
    `usage` is [input, output, cached, cache_written, reasoning] tokens, empty where nobody knows. `model`
    answered, `error` is the kind of error. `reused` names the attempt and call whose reply stands here.
    """

    node: NodeId
    attempt: int
    call: int
    books: Literal["settle", "release", "keep"] = "settle"
    spent: int = 0
    answer: Mapping[str, Json] = field(default_factory=dict)
    model: str = ""
    usage: tuple[int, ...] = ()
    error: str = ""
    first_token_ms: int | None = None
    duration_ms: int = 0
    reused: str = ""


@value(frozen=True, slots=True, kw_only=True)
class ToolEnded:
    """A tool call of an agent is over: `number` counts those of the attempt that were let through, from 1.

    `arguments` and `text` (the result, or what went wrong) are references. `reused` as in CallEnded.
    """

    node: NodeId
    attempt: int
    number: int
    turn: int
    name: str
    ok: bool = True
    arguments: Mapping[str, Json] = field(default_factory=dict)
    text: Mapping[str, Json] = field(default_factory=dict)
    duration_ms: int = 0
    reused: str = ""


@value(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """No new starts: `drain` lets running nodes end for a while, `now` ends them."""

    cause: StopCause
    mode: StopMode
    by: str = ""


@value(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something a person should know that changes nothing."""

    text: str
    node: NodeId = ""


@value(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The engine let go of the run. Only `completed` is final: the others can be resumed."""

    status: RunStatus
    exit_code: int
    reason: str = ""
    outputs: Mapping[str, Json] = field(default_factory=dict)


Event: TypeAlias = (
    RunCreated
    | EngineAttached
    | NodeAdopted
    | NodeStarted
    | NodeSpawned
    | AttemptFinished
    | NodeSkipped
    | NodeCancelled
    | PatchAdmitted
    | PatchRefused
    | PatchProposed
    | ProposalDecided
    | RevisionAdopted
    | EscalationFailed
    | ReviewRequested
    | ReviewDecided
    | ToolsListed
    | CallReserved
    | CallEnded
    | ToolEnded
    | StopRequested
    | Warned
    | RunEnded
)

_NAMES: dict[type, str] = {
    RunCreated: "run.created",
    EngineAttached: "engine.attached",
    NodeAdopted: "node.adopted",
    NodeStarted: "node.started",
    NodeSpawned: "node.spawned",
    AttemptFinished: "attempt.finished",
    NodeSkipped: "node.skipped",
    NodeCancelled: "node.cancelled",
    PatchAdmitted: "patch.admitted",
    PatchRefused: "patch.refused",
    PatchProposed: "patch.proposed",
    ProposalDecided: "proposal.decided",
    RevisionAdopted: "revision.adopted",
    EscalationFailed: "escalation.failed",
    ReviewRequested: "review.requested",
    ReviewDecided: "review.decided",
    ToolsListed: "tools.listed",
    CallReserved: "call.reserved",
    CallEnded: "call.ended",
    ToolEnded: "tool.ended",
    StopRequested: "stop.requested",
    Warned: "warned",
    RunEnded: "run.ended",
}
EVENT_TYPES: Mapping[str, type] = {name: cls for cls, name in _NAMES.items()}
assert set(_NAMES) == set(get_args(Event)), "every event has a name in the journal"

_DEFAULTS: dict[type, tuple[tuple[str, object], ...]] = {
    cls: tuple((f.name, f.default_factory() if f.default_factory is not MISSING else f.default) for f in fields(cls))
    for cls in _NAMES
}
# ASCII: a lone surrogate from a foreign file name must not make a record unwritable
_encode = JSONEncoder(separators=(",", ":"), allow_nan=False).encode


_LISTS = frozenset({"operations", "removed", "reset", "cancelled", "reasons", "scopes", "usage"})  # tuples in an event


def event_type(event: Event) -> str:
    """The name of an event's type in the journal, such as `node.started`."""
    return _NAMES[type(event)]


def encode(event: Event) -> str:
    """The JSON text of one event: `type` first, then the fields that differ from their default."""
    cls = type(event)
    data: dict[str, object] = {"type": _NAMES[cls]}
    for name, default in _DEFAULTS[cls]:
        value = getattr(event, name)
        if value != default:
            data[name] = value
    return _encode(data)


def decode(data: Mapping[str, Json]) -> Event:
    """The event that `encode` made `data` from.

    Raises ValueError for a type or field that this version does not know.
    """
    kw = dict(data)
    name = kw.pop("type", None)
    cls = EVENT_TYPES.get(cast(str, name))
    if cls is None:
        raise ValueError(f"unknown event type {name!r}")
    if cls is AttemptFinished:
        kw["outcome"] = Outcome(str(kw["outcome"]))
        if "artifacts" in kw:
            kw["artifacts"] = cast(Json, tuple(cast("list[Json]", kw["artifacts"])))
    elif cls is RunEnded:
        kw["status"] = RunStatus(str(kw["status"]))
    else:
        for key in _LISTS & kw.keys():
            kw[key] = cast(Json, tuple(cast("list[Json]", kw[key])))
    try:
        return cast(Event, cls(**kw))
    except TypeError as error:
        raise ValueError(f"event {name}: {error}") from None

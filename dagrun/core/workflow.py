"""What the author wrote, checked for shape: Workflow and Node, and their compact JSON form.

Frozen and slotted; mappings are never changed after construction. `defaults:` of the file are
already folded into the nodes, files named in it (schemas) are already read. Expressions stay
text here; `expression.py` gives them meaning. The JSON form is what the plan cache and the
journal keep: only what differs from the default, so 100,000 plain nodes stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from operator import attrgetter
from typing import Literal, NamedTuple, TypeAlias, cast

from dagrun.core.names import DEFAULT_GRACE_S, DEFAULT_TIMEOUT_S, Json, NodeId, Outcome, Schedule
from dagrun.core.permissions import Isolation, Paths, Permissions
from dagrun.core.value import value

ParamType: TypeAlias = Literal["string", "integer", "number", "boolean", "array", "object"]
OutputSource: TypeAlias = Literal["stdout", "json", "file", "output"]
Shell: TypeAlias = Literal["sh", "bash"]
Durability: TypeAlias = Literal["default", "strict"]
GROUP = "group:"  # begins the name of a reservation that only one attempt has at a time
Step: TypeAlias = Literal["fallback", "replan", "replanner", "review"]


class Fault(NamedTuple):
    """Something wrong at a place of a workflow or patch, before the place has a line and column.

    `path` leads to it from the top of the document (`("nodes", "a", "needs", 0)`); with `on_key`
    the place is the key itself and not its value. `offset` and `length` narrow it to a part of a
    scalar (characters into the value; length 0 = the whole value).
    """

    path: tuple[str | int, ...]
    code: str
    message: str
    hint: str = ""
    on_key: bool = False
    offset: int = 0
    length: int = 0
    severity: Literal["error", "warning"] = "error"


@value(frozen=True, slots=True, kw_only=True)
class Param:
    """A typed parameter of a workflow; required when it has no default."""

    type: ParamType = "string"
    has_default: bool = False
    default: Json = None
    enum: tuple[Json, ...] = ()
    description: str = ""


@value(frozen=True, slots=True, kw_only=True)
class Input:
    """Where an input of a node gets its value.

    `expression` is bare (`nodes.fetch.items`, `params.topic`) and wins when it isn't empty; else
    `value` is literal JSON whose strings may hold `${{ … }}`. A missing value uses the default,
    then null if `optional`, and otherwise fails the node before it starts.
    """

    expression: str = ""
    value: Json = None
    optional: bool = False
    has_default: bool = False
    default: Json = None


@value(frozen=True, slots=True, kw_only=True)
class Output:
    """One declared output: read from `source`, narrowed by `path` (`.a.b[0]`), held to `schema`.

    `file` is the name of the file for source `file`. `schema` is a JSON Schema document or None.
    """

    source: OutputSource = "output"
    file: str = ""
    path: str = ""
    schema: Json = None


@value(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a node is tried again: `max_attempts` counts the first try; delays in seconds.

    The delay before attempt k+1 is `delay_s * backoff**(k-1)`, at most `max_delay_s`, moved by
    at most the fraction `jitter` (a hash of run, node and attempt: a replay waits the same).
    """

    max_attempts: int = 3
    delay_s: float = 1.0
    backoff: float = 2.0
    max_delay_s: float = 60.0
    jitter: float = 0.1
    outcomes: frozenset[Outcome] = frozenset({Outcome.FAILED, Outcome.TIMED_OUT, Outcome.INVALID_OUTPUT})


NO_RETRY = Retry(max_attempts=1)


@value(frozen=True, slots=True, kw_only=True)
class Review:
    """A human gate: the question, and what no answer within `timeout_s` means (None: wait for ever)."""

    message: str = ""
    timeout_s: float | None = None
    on_timeout: Literal["reject", "approve"] = "reject"


@value(frozen=True, slots=True, kw_only=True)
class Agent:
    """An isolated agent call: what a model is told, which one, and what it may use.

    `model` is a tier of the workflow or `vendor/name`; "" is the first tier. `tools` is the offer, at most
    what `permissions.tools` allow; None: Read, Grep and Glob as far as they are allowed. `mcp` names
    servers of the workflow. `max_tokens` bounds one reply, `max_turns` the replies of an attempt.
    """

    prompt: str = ""
    system: str = ""
    skills: tuple[str, ...] = ()
    model: str = ""
    tools: tuple[str, ...] | None = None
    max_turns: int = 10
    max_tokens: int = 4096
    temperature: float | None = None
    mcp: tuple[str, ...] = ()


@value(frozen=True, slots=True, kw_only=True)
class Provider:
    """Who answers model calls. `rules` is the name of the fake provider's file, `rules_text` its content.

    `base_url` is an OpenAI-compatible endpoint that all live calls go to. `prices` are the workflow's own:
    model → USD per million tokens as decimal text, or `{"free": true}`. `budget` strict counts bytes,
    so that a cap can't be exceeded; estimate counts tokens, and it can by what they were wrong. `classes`
    say up to which price of a million tokens of answer a model is `cheap`, and from which it is `expensive`.
    """

    kind: Literal["live", "fake"] = "live"
    rules: str = ""
    rules_text: str = ""
    base_url: str = ""
    prices: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    budget: Literal["strict", "estimate"] = "strict"
    classes: Mapping[str, str] = field(default_factory=dict)


@value(frozen=True, slots=True, kw_only=True)
class McpServer:
    """A server of tools: exactly one of `command` (argv, run in the node's sandbox) and `url`.

    `env` and `secrets` (names) are for its process; a `url` gets its `headers`, whose values are names of
    secrets. `digest` pins its definitions: the sha256 of what it lists; "" accepts what it lists first.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""


@value(frozen=True, slots=True, kw_only=True)
class OnFailure:
    """What is tried, in this order, once the retries of a node are spent.

    `fallback` names a template, `fallback_node` is an inline one; `replan` is the name of a patch
    file and `replan_patch` the document in it; `replanner` is an agent that is asked for a patch;
    `review` asks a human.
    """

    fallback: NodeId = ""
    fallback_node: Node | None = None
    replan: str = ""
    replan_patch: Json = None
    replanner: Agent | None = None
    review: Review | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are declared, in the order in which they are tried."""
        found: list[Step] = []
        if self.fallback or self.fallback_node is not None:
            found.append("fallback")
        if self.replan:
            found.append("replan")
        if self.replanner is not None:
            found.append("replanner")
        if self.review is not None:
            found.append("review")
        return tuple(found)


@value(frozen=True, slots=True, kw_only=True)
class Docker:
    """The image of a container node. `user` is `uid` or `uid:gid`; "" is chosen by what it may write."""

    image: str = ""
    pull: Literal["never", "missing"] = "never"
    user: str = ""


@value(frozen=True, slots=True, kw_only=True)
class Node:
    """A unit of work. `needs` is order as written; data comes by `inputs` (which imply order).

    Exactly one of `run`, `agent` and `review` makes its kind. `run` is a string (through the shell where its
    text needs one) or an argv tuple (never a shell). `timeout_s` bounds one attempt, `grace_s` is
    the time between SIGTERM and SIGKILL. `resources` are reservations by name: `cpu` in cores and
    `memory` in bytes (both are ceilings too), any other in units; `pids`, `file_size` and
    `output_bytes` (stdout and stderr together) are ceilings only, 0 for none. `secrets` reach it as
    variables, `secret_files` as files named by NAME_FILE. What it may do is what `permissions` and
    the scopes above leave (permissions.py). Agents at level none with one `group` share one
    conversation. `estimate_s` is the author's guess of its duration
    (0: none): it orders ready nodes and feeds `dagrun plan`.
    """

    id: NodeId
    title: str = ""
    run: str | tuple[str, ...] = ()
    shell: Shell = "sh"
    cwd: str = ""
    needs: tuple[NodeId, ...] = ()
    inputs: Mapping[str, Input] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    secret_files: tuple[str, ...] = ()
    condition: str = ""
    outputs: Mapping[str, Output] = field(default_factory=dict)
    output_schema: Json = None
    artifacts: tuple[str, ...] = ()
    retry: Retry = NO_RETRY
    timeout_s: float = DEFAULT_TIMEOUT_S
    grace_s: float = DEFAULT_GRACE_S
    idempotent: bool = True
    continue_on_error: bool = False
    isolation: Isolation = "process"
    permissions: Permissions | None = None
    docker: Docker | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    pids: int = 0
    file_size: int = 0
    output_bytes: int = 256 * 1024 * 1024
    estimate_s: float = 0.0
    agent: Agent | None = None
    group: str = ""
    review: Review | None = None
    on_failure: OnFailure | None = None

    @property
    def reserves(self) -> Mapping[str, float]:
        """What an attempt holds: its resources, and the only place of its group."""
        return self.resources if not self.group else {**self.resources, GROUP + self.group: 1.0}

    @property
    def kind(self) -> Literal["run", "agent", "review"]:
        """What does the work: a command, a model or a human."""
        if self.agent is not None:
            return "agent"
        return "run" if self.review is None else "review"


@value(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings of a run: nodes at a time (None: by processors), seconds, resources by name.

    `revisions` counts patches that nodes made, `fallback_chain` how often a fallback may fail over
    again, `growth` and `growth_nodes` what patches of nodes may add (percent of the nodes at the
    start, or that many nodes, whichever is more).
    """

    parallel: int | None = None
    timeout_s: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    revisions: int = 3
    fallback_chain: int = 2
    growth: int = 150
    growth_nodes: int = 10


@value(frozen=True, slots=True, kw_only=True)
class Secret:
    """Where a secret's value comes from: exactly one of env (name), file (path), command (argv)."""

    env: str = ""
    file: str = ""
    command: tuple[str, ...] = ()


@value(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One workflow file. `file` is its path as the user named it, `digest` the sha256 of its text.

    `files` are those that it names (schemas, patches, rules), relative to it. `models` are tiers: a name
    and its candidates (`vendor/name`) in order.
    """

    name: str
    nodes: Mapping[NodeId, Node]
    description: str = ""
    params: Mapping[str, Param] = field(default_factory=dict)
    limits: Limits = Limits()
    schedule: Schedule = Schedule.WAVES
    durability: Durability = "default"
    fail_fast: bool = False
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    permissions: Permissions | None = None
    docker: Docker | None = None
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    provider: Provider = Provider()
    mcp_servers: Mapping[str, McpServer] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[NodeId, Node] = field(default_factory=dict)
    file: str = ""
    digest: str = ""
    files: tuple[str, ...] = ()


def docker_of(workflow: Workflow, node: Node) -> Docker:
    """The container of a node: its own, with the workflow's image and user where it names none.

    A node with a `docker` of its own says itself whether its image may be fetched.
    """
    own, given = node.docker, workflow.docker
    if own is None or given is None:
        return own or given or Docker()
    return Docker(image=own.image or given.image, pull=own.pull, user=own.user or given.user)


def param_accepts(param: Param, value: Json) -> bool:
    """Whether a JSON value fits the type and the enum of a param."""
    fits = {
        "string": isinstance(value, str),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "boolean": isinstance(value, bool),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }[param.type]
    return fits and (not param.enum or value in param.enum)


# ---------------------------------------------------------------- the compact JSON form

_NESTED = {"inputs": Input, "outputs": Output, "params": Param, "secrets": Secret, "mcp_servers": McpServer}
_TUPLES = frozenset({"needs", "pass_env", "artifacts", "enum", "command", "secrets", "skills", "tools", "mcp"})


def _pack(value: object) -> Json:
    """JSON of a dataclass (only what differs from its defaults), a mapping, a tuple or a scalar."""
    kind = type(value)
    if kind in _SCALARS:
        return cast(Json, value)
    if isinstance(value, tuple | frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        return [_pack(v) for v in items]
    if isinstance(value, Mapping):
        return {k: _pack(v) for k, v in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        read, parts = _shape(kind)
        pairs = zip(parts, read(value), strict=True)
        return {name: _pack(got) for (name, default), got in pairs if got is not default and got != default}
    return cast(Json, value)


_SCALARS = frozenset({str, int, float, bool, type(None)})
_Shape: TypeAlias = tuple[Callable[[object], tuple[object, ...]], tuple[tuple[str, object], ...]]
_SHAPES: dict[type, _Shape] = {}


def _shape(cls: type) -> _Shape:
    """How to read all fields of a dataclass at once, and their defaults; a sentinel that equals nothing for none."""
    if cls not in _SHAPES:
        parts = tuple(
            (f.name, f.default_factory() if f.default_factory is not MISSING else f.default) for f in fields(cls)
        )
        names = [name for name, _ in parts]
        # of a single name attrgetter gives the value itself
        read = attrgetter(*names) if len(names) > 1 else lambda value: (getattr(value, names[0]),)
        _SHAPES[cls] = read, parts
    return _SHAPES[cls]


def workflow_to_json(workflow: Workflow) -> dict[str, Json]:
    """The compact JSON form of a workflow; `workflow_from_json` is its inverse."""
    return cast("dict[str, Json]", _pack(workflow))


def node_to_json(node: Node) -> dict[str, Json]:
    """The compact JSON form of a node."""
    return cast("dict[str, Json]", _pack(node))


def node_from_json(data: Mapping[str, Json]) -> Node:
    """The node that `node_to_json` made `data` from."""
    kw = dict(data)
    if len(kw) > 1:
        for key in kw.keys() & _NODE_SPECIAL:
            kw[key] = _unpack(key, kw[key])
    return Node(**kw)  # type: ignore[arg-type]


_NODE_SPECIAL = frozenset("run needs inputs pass_env secrets secret_files outputs artifacts retry review".split())
_NODE_SPECIAL |= {"on_failure", "permissions", "docker", "agent"}


def _unpack(key: str, value: Json) -> Json:
    """One field of a node or workflow back from JSON. The result is typed Json only by name."""
    made: object = value
    if key == "run":
        made = tuple(cast("list[str]", value)) if isinstance(value, list) else value
    elif key == "retry":
        made = _retry(cast("dict[str, Json]", value))
    elif key == "review":
        made = Review(**cast("dict[str, Json]", value))  # type: ignore[arg-type]
    elif key == "agent":
        made = _nested(Agent, cast("dict[str, Json]", value))
    elif key == "provider":
        made = Provider(**cast("dict[str, Json]", value))  # type: ignore[arg-type]
    elif key == "models":
        made = {name: tuple(cast("list[str]", found)) for name, found in cast("dict[str, Json]", value).items()}
    elif key == "on_failure":
        made = _on_failure(cast("dict[str, Json]", value))
    elif key == "permissions":
        made = _permissions(cast("dict[str, Json]", value))
    elif key == "docker":
        made = Docker(**cast("dict[str, Json]", value))  # type: ignore[arg-type]
    elif isinstance(value, list):
        made = tuple(value)
    elif key in _NESTED:
        items = cast("dict[str, dict[str, Json]]", value)
        made = {name: _nested(_NESTED[key], item) for name, item in items.items()}
    return cast(Json, made)


def _nested(cls: type, data: dict[str, Json]) -> object:
    return cls(**{k: tuple(v) if k in _TUPLES and isinstance(v, list) else v for k, v in data.items()})


def _retry(data: dict[str, Json]) -> Retry:
    kw = dict(data)
    if "outcomes" in kw:
        outcomes = frozenset(Outcome(str(o)) for o in cast("list[Json]", kw.pop("outcomes")))
        return Retry(outcomes=outcomes, **kw)  # type: ignore[arg-type]
    return Retry(**kw)  # type: ignore[arg-type]


def _on_failure(data: dict[str, Json]) -> OnFailure:
    kw: dict[str, object] = dict(data)
    if "fallback_node" in data:
        kw["fallback_node"] = node_from_json(cast("dict[str, Json]", data["fallback_node"]))
    if "replanner" in data:
        kw["replanner"] = _nested(Agent, cast("dict[str, Json]", data["replanner"]))
    if "review" in data:
        kw["review"] = Review(**cast("dict[str, Json]", data["review"]))  # type: ignore[arg-type]
    return OnFailure(**kw)  # type: ignore[arg-type]


def _permissions(data: dict[str, Json]) -> Permissions:
    kw: dict[str, object] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    if "paths" in data:
        paths = cast("dict[str, list[str]]", data["paths"])
        kw["paths"] = Paths(**{k: tuple(v) for k, v in paths.items()})
    return Permissions(**kw)  # type: ignore[arg-type]


def workflow_from_json(data: Mapping[str, Json]) -> Workflow:
    """The workflow that `workflow_to_json` made `data` from."""
    kw: dict[str, Json] = dict(data)
    nodes = _nodes(kw.pop("nodes"))
    templates = _nodes(kw.pop("templates", {}))
    limits = Limits(**cast("dict[str, Json]", kw.pop("limits", {})))  # type: ignore[arg-type]
    schedule = Schedule(str(kw.pop("schedule", Schedule.WAVES)))
    # the `outputs` of a workflow are plain text, those of a node are not
    rest = {key: _unpack(key, value) if key in _WORKFLOW_SPECIAL else value for key, value in kw.items()}
    return Workflow(nodes=nodes, templates=templates, limits=limits, schedule=schedule, **rest)  # type: ignore[arg-type]


_WORKFLOW_SPECIAL = frozenset("params secrets permissions docker files models provider mcp_servers".split())


def _nodes(data: Json) -> dict[NodeId, Node]:
    return {name: node_from_json(cast("dict[str, Json]", n)) for name, n in cast("dict[str, Json]", data).items()}

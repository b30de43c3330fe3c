"""From the models to the core's types: defaults folded in, schema files read, short forms resolved.

Pure but for the files that a workflow names; what is wrong with those comes back as problems.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from dagrun.core.agents import TEXT_OUTPUT, default_level
from dagrun.core.names import Json, Outcome, Schedule
from dagrun.core.permissions import LEVELS, NO_PERMISSIONS, Isolation
from dagrun.core.workflow import (
    NO_RETRY,
    Fault,
    Input,
    Limits,
    McpServer,
    Node,
    OnFailure,
    Param,
    Provider,
    Retry,
    Review,
    Secret,
    Workflow,
)
from dagrun.flowfile import fields, outputs
from dagrun.flowfile.agentschema import (
    McpServerFile,
    ProviderFile,
    provider_faults,
    server_faults,
    to_agent,
    to_provider,
    to_server,
)
from dagrun.flowfile.permissionschema import PermissionsFile, floor_of, to_docker, to_permissions
from dagrun.flowfile.schema import (
    DefaultsFile,
    InputFile,
    NodeFile,
    OnFailureFile,
    ParamFile,
    RetryFile,
    ReviewFile,
    WorkflowFile,
)

Path = tuple[str | int, ...]


class Documents(Protocol):
    """Reads the files that a workflow names."""

    def read(self, name: str, path: Path) -> Json:
        """The JSON document in a file, or None after noting what is wrong with it."""

    def patch(self, name: str, path: Path) -> Json:
        """The patch in a file, not yet checked, or None after noting what is wrong with its text."""

    def text(self, name: str, path: Path) -> str:
        """The text of a file, or "" after noting what is wrong with it."""


class Converter:
    """Turns one WorkflowFile into a Workflow; `faults` are what only shows then.

    `told` are the places, two steps deep, of which something wrong was told before.
    """

    def __init__(self, documents: Documents, told: frozenset[Path] = frozenset()) -> None:
        self._documents = documents
        self._told = told
        self.faults: list[Fault] = []

    def workflow(self, made: WorkflowFile, name: str, file: str, digest: str) -> Workflow:
        """The workflow of a file; `name` is for a file that gives none."""
        written = made.model_fields_set
        folded = defaults_of(made)
        templates = made.templates or {}
        return Workflow(
            name=made.name or name,
            nodes={i: self.node(("nodes", i), i, node, folded) for i, node in made.nodes.items()},
            description=made.description,
            params={n: self._param(n, p) for n, p in (made.params or {}).items()},
            limits=_limits(made),
            schedule=Schedule(made.schedule),
            durability=made.durability,
            fail_fast=made.fail_fast,
            secrets={n: self._secret(n, s) for n, s in (made.secrets or {}).items()} if made.secrets else {},
            permissions=to_permissions(made.permissions) if "permissions" in written else None,
            docker=to_docker(made.docker) if "docker" in written else None,
            models=made.models or {},
            provider=self._provider(made.provider) if "provider" in written else Provider(),
            mcp_servers={n: self._server(n, s) for n, s in (made.mcp_servers or {}).items()},
            outputs=made.outputs or {},
            templates={i: self.node(("templates", i), i, node, folded) for i, node in templates.items()},
            file=file,
            digest=digest,
        )

    def node(self, path: Path, name: str, made: NodeFile, defaults: Defaults) -> Node:
        """The node that stands at `path` of the file; its model must have no unknown parts."""
        values = made.__dict__
        written = made.__pydantic_fields_set__
        kw: dict[str, Any] = dict(defaults.of(written))
        for key in written:
            if key in _SAME:
                kw[_SAME[key]] = values[key]
        if defaults.env and "env" in written:
            kw["env"] = {**defaults.env, **values["env"]}
        if defaults.pass_env and "pass_env" in written:
            kw["pass_env"] = tuple(dict.fromkeys((*defaults.pass_env, *values["pass_env"])))
        if "retry" in written:
            kw["retry"] = defaults.retry(made.retry)
        if "resources" in written:
            resources = dict(made.resources)
            kw.update({field: int(resources.pop(key)) for key, field in _CEILINGS.items() if key in resources})
            kw["resources"] = resources
        if not _CONFINING.isdisjoint(written) or defaults.confining:
            self._confined(path, made, defaults, kw)
        if "inputs" in written:
            kw["inputs"] = {k: self._input((*path, "inputs", k), k, v) for k, v in made.inputs.items()}
        if "outputs" in written or "output_schema" in written:
            given = outputs.of_agent if "agent" in written else outputs.of_command
            kw["outputs"], schema = given(path, made, self._documents, self.faults)
            if schema is not None:
                kw["output_schema"] = schema
        if "agent" in written and "review" not in written:
            self._agent(path, made, defaults, kw)
        if "review" in written:
            kw["review"] = _review(made.review)
        if "on_failure" in written:
            kw["on_failure"] = self._on_failure((*path, "on_failure"), name, made.on_failure, defaults)
        return Node(id=name, **kw)

    def _agent(self, path: Path, made: NodeFile, defaults: Defaults, kw: dict[str, Any]) -> None:
        """An agent and its level; the core can't tell one that is written from the one that it would have."""
        kw["agent"] = to_agent(made.agent)
        kw.setdefault("outputs", dict(TEXT_OUTPUT))
        usual = _usual(made)
        if kw.setdefault("isolation", usual) == usual == "context" and "isolation" in made.model_fields_set:
            own = (made.permissions if "permissions" in made.model_fields_set else None, defaults.permissions)
            if defaults.holds or any(map(_holds, own)):
                message = "isolation `context` holds no paths and no network, and permissions declare them"
                hint = "write isolation: process (or container), or leave it out"
                self.faults.append(Fault((*path, "isolation"), "not-held", message, hint))

    def _provider(self, made: ProviderFile) -> Provider:
        self.faults.extend(provider_faults(made))
        return to_provider(made, self._documents.text(made.rules, ("provider", "rules")) if made.rules else "")

    def _server(self, name: str, made: McpServerFile) -> McpServer:
        if ("mcp_servers", name) not in self._told:
            self.faults.extend(server_faults(made, name))
        return to_server(made)

    def _confined(self, path: Path, made: NodeFile, defaults: Defaults, kw: dict[str, Any]) -> None:
        """What confines a node, and the secrets that it gets all the same."""
        written = made.model_fields_set
        if "permissions" in written:
            kw["permissions"] = to_permissions(made.permissions, defaults.permissions)
        if "docker" in written:
            kw["docker"] = to_docker(made.docker, defaults.docker)
        if "secrets" in written:
            forms: Mapping[str, str] = made.secrets
            kw["secrets"] = tuple(name for name, form in forms.items() if form == "variable")
            kw["secret_files"] = tuple(name for name, form in forms.items() if form == "file")
        if "review" in written:
            return
        own = made.permissions if "permissions" in written else None
        floor = max(floor_of(own, defaults.permissions), defaults.floor, key=LEVELS.index)
        if "isolation" not in kw or LEVELS.index(kw["isolation"]) >= LEVELS.index(floor):
            return
        if "isolation" not in written:
            kw["isolation"] = floor  # that of `defaults` gives way
        elif made.isolation == _usual(made):  # the core can't tell it from one that is not written
            message = f"isolation `{made.isolation}` is less than `{floor}`, which permissions.isolation asks for"
            self.faults.append(Fault((*path, "isolation"), "below-floor", message, f"write {floor}, or remove it"))

    def _on_failure(self, path: Path, name: str, made: OnFailureFile, defaults: Defaults) -> OnFailure:
        written = made.model_fields_set
        kw: dict[str, Any] = {}
        if not written:
            hint = "write {fallback: TEMPLATE}, {replan: FILE}, {replanner: {…}} or {review: {}}"
            self.faults.append(Fault(path, "no-step", "`on_failure` does not say what to try", hint, on_key=True))
        if "fallback" in written:
            fallback: object = made.fallback
            if isinstance(fallback, NodeFile):
                kw["fallback_node"] = self.node((*path, "fallback"), f"{name}-fallback", fallback, defaults)
            else:
                kw["fallback"] = fallback
        if "replan" in written:
            kw["replan"] = made.replan
            kw["replan_patch"] = self._documents.patch(made.replan, (*path, "replan"))
        if "replanner" in written:
            kw["replanner"] = to_agent(made.replanner)
        if "review" in written:
            kw["review"] = _review(made.review)
            at = made.review.message.find("${{")
            if at >= 0:
                message = "an expression can't be read here: the message is shown as it is written"
                hint = "dagrun adds why the node failed by itself"
                self.faults.append(
                    Fault((*path, "review", "message"), "bad-expression", message, hint, offset=at, length=3)
                )
        return OnFailure(**kw)

    def _input(self, path: Path, name: str, made: InputFile) -> Input:
        written = made.model_fields_set
        if "from_" in written and "value" in written:
            self.faults.append(
                Fault(path, "bad-input", f"input `{name}` has both `from` and `value`", "keep one", on_key=True)
            )
        elif not written & {"from_", "value"}:
            message = f"input `{name}` says neither `from` nor `value`"
            hint = "write {from: nodes.ID.OUTPUT} or {value: …}"
            self.faults.append(Fault(path, "bad-input", message, hint, on_key=True))
        return Input(
            expression=made.from_,
            value=made.value,
            optional=made.optional,
            has_default="default" in written,
            default=made.default,
        )

    def _param(self, name: str, made: ParamFile) -> Param:
        path: Path = ("params", name)
        enum: list[Json] = []
        default: Json = None
        if "enum" in made.model_fields_set:
            got = self._try(lambda: fields.enum(made.enum, made.type), (*path, "enum"))
            enum = got if isinstance(got, list) else []
        if "default" in made.model_fields_set:
            default = self._try(lambda: fields.typed(made.default, made.type), (*path, "default"))
            if enum and default not in enum and default is not None:
                known = ", ".join(str(e) for e in enum)
                self.faults.append(
                    Fault(
                        (*path, "default"),
                        "bad-param",
                        f"the default of `{name}` is not in its enum",
                        f"it has {known}",
                    )
                )
        has_default = "default" in made.model_fields_set and not any(f.path[:2] == path for f in self.faults)
        return Param(
            type=made.type, has_default=has_default, default=default, enum=tuple(enum), description=made.description
        )

    def _try(self, convert: Callable[[], Json], path: Path) -> Json:
        try:
            return convert()
        except fields.Wrong as error:
            self.faults.extend(Fault((*path, *d.at), d.code, d.message, d.hint, on_key=d.on_key) for d in error.defects)
            return None

    def _secret(self, name: str, made: Any) -> Secret:
        path: Path = ("secrets", name)
        ways = made.model_fields_set
        if len(ways) != 1 and path not in self._told:
            message = f"secret `{name}` needs exactly one of `env`, `file`, `command`"
            hint = "keep one of them" if ways else f"write {name}: {{env: {name}}}"
            self.faults.append(Fault(path, "bad-secret", message, hint, on_key=True))
        return Secret(env=made.env, file=made.file, command=tuple(made.command or ()))


# what a model and the dataclass hold alike: key of the model -> field of Node
_SAME = {
    "title": "title",
    "run": "run",
    "shell": "shell",
    "cwd": "cwd",
    "needs": "needs",
    "env": "env",
    "pass_env": "pass_env",
    "if_": "condition",
    "artifacts": "artifacts",
    "timeout": "timeout_s",
    "grace": "grace_s",
    "idempotent": "idempotent",
    "continue_on_error": "continue_on_error",
    "isolation": "isolation",
    "group": "group",
    "estimate": "estimate_s",
}
_CEILINGS = {"output": "output_bytes", "pids": "pids", "file_size": "file_size"}
_CONFINING = frozenset({"isolation", "permissions", "docker", "secrets"})


def _usual(made: NodeFile) -> Isolation:
    """The level of a node that names none."""
    return default_level(to_agent(made.agent)) if "agent" in made.model_fields_set else "process"


def _review(made: ReviewFile) -> Review:
    return Review(message=made.message, timeout_s=made.timeout, on_timeout=made.on_timeout)


class Defaults:
    """What `defaults:` gives to each node: `values` by field of Node, `of_review` those that a review takes.

    An isolation from `defaults` gives way to `floor`, the least level of the run. `holds`: the run
    declares paths or network.
    """

    def __init__(self, made: DefaultsFile | None, floor: Isolation = "none", *, holds: bool = False) -> None:
        written = made.model_fields_set if made else set()
        self.floor: Isolation = floor
        self.holds = holds
        self.permissions = made.permissions if made and "permissions" in written else None
        self.docker = made.docker if made and "docker" in written else None
        self._retry = made.retry if made and "retry" in written else None
        self.values: dict[str, Any] = {_SAME[k]: getattr(made, k) for k in written if k in _SAME}
        self.env: Mapping[str, str] = self.values.get("env", {})
        self.pass_env: tuple[str, ...] = self.values.get("pass_env", ())
        if self._retry:
            self.values["retry"] = self.retry(None)
        if self.permissions:
            self.values["permissions"] = to_permissions(self.permissions)
        if self.docker:
            self.values["docker"] = to_docker(self.docker)
        self.confining = "isolation" in self.values
        self.of_review = {k: v for k, v in self.values.items() if k == "continue_on_error"}
        self.of_agent = {k: v for k, v in self.values.items() if k not in ("shell", "cwd")}

    @classmethod
    def of_run(cls, workflow: Workflow) -> Defaults:
        """Those of a run, whose nodes have theirs already: none but its floor."""
        run = workflow.permissions or NO_PERMISSIONS
        return cls(None, run.isolation or "none", holds=run.paths is not None or run.network is not None)

    def of(self, keys: Collection[str]) -> Mapping[str, Any]:
        """What a node with these keys gets, by field of Node."""
        return self.of_review if "review" in keys else self.of_agent if "agent" in keys else self.values

    def retry(self, own: RetryFile | None) -> Retry:
        """A node's retry: its own keys over those of the defaults; without any it runs once."""
        kw: dict[str, Any] = {}
        for made in (self._retry, own):
            for key in made.model_fields_set if made else ():
                kw[_RETRY[key]] = getattr(made, key)
        if "outcomes" in kw:
            kw["outcomes"] = frozenset(Outcome(o) for o in kw["outcomes"])
        return Retry(**kw) if self._retry or own else NO_RETRY


def defaults_of(made: WorkflowFile) -> Defaults:
    """What the nodes of a file have unless they say otherwise."""
    written = made.model_fields_set
    run = made.permissions if "permissions" in written else None
    return Defaults(made.defaults if "defaults" in written else None, floor_of(run), holds=_holds(run))


def _holds(scope: PermissionsFile | None) -> bool:
    """Whether a scope declares what only a process can be held to."""
    return scope is not None and not scope.model_fields_set.isdisjoint(("paths", "network"))


_RETRY = {
    "max_attempts": "max_attempts",
    "delay": "delay_s",
    "backoff": "backoff",
    "max_delay": "max_delay_s",
    "jitter": "jitter",
    "outcomes": "outcomes",
}


def _limits(made: WorkflowFile) -> Limits:
    if "limits" not in made.model_fields_set:
        return Limits()
    limits = made.limits
    growth, nodes = limits.growth if "growth" in limits.model_fields_set else (_PLAIN_LIMITS.growth, None)
    return Limits(
        parallel=limits.parallel,
        timeout_s=limits.timeout,
        resources=limits.resources or {},
        revisions=limits.revisions,
        fallback_chain=limits.fallback_chain,
        growth=growth,
        growth_nodes=_PLAIN_LIMITS.growth_nodes if nodes is None else nodes,
    )


_PLAIN_LIMITS = Limits()

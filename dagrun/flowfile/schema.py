"""The models of what people write, with the hover text of every key; the JSON Schema comes from here.

A default of None means "not written": what was written is in `model_fields_set`.

Pydantic lives here and nowhere else; imported only when a file is read for the first time. The
models say which keys exist and what each wants (`fields.py` does the typing, `words.py` knows the
keys that come later). Field names that Python reserves end in `_`; the file's name is the alias.

`python -m dagrun.flowfile.schema` writes schemas/*.schema.json; `--check` compares.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema

from dagrun.core.names import DEFAULT_GRACE_S, DEFAULT_TIMEOUT_S
from dagrun.flowfile import fields, shorts
from dagrun.flowfile import kinds as k
from dagrun.flowfile.agentschema import (
    AgentFile,
    AgentKind,
    McpServerFile,
    ProviderFile,
    ReplannerKind,
    Tiers,
)
from dagrun.flowfile.kinds import (
    ABSENT,
    STRICT,
    Amounts,
    AnyJson,
    Bool,
    Command,
    Duration,
    Env,
    Filled,
    Globs,
    Growth,
    Ident,
    Key,
    Line,
    Needs,
    Outcomes,
    OutputPath,
    Period,
    Raw,
    Resources,
    SchemaOrFile,
    Text,
    Texts,
    Variables,
)
from dagrun.flowfile.permissionschema import DockerFile, DockerKind, Level, NodeSecrets, PathsFile, PermissionsFile


class _Model(BaseModel):
    model_config = STRICT


class InputFile(_Model):
    """Where an input gets its value: `nodes.ID.OUTPUT`, `params.NAME`, or a literal value."""

    from_: Annotated[str, k.plain(shorts.bare), WithJsonSchema({"type": "string"})] = Field(
        "",
        alias="from",
        description="A bare expression that begins with `nodes.` or `params.`; implies the order edge.",
    )
    value: AnyJson = Field(ABSENT, description="A literal value; `${{ … }}` in its texts is filled in.")
    optional: Bool = Field(False, description="Without a value the input is null instead of failing the node.")
    default: AnyJson = Field(ABSENT, description="The value where the source has none.")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The short form (any scalar or list) beside the long one."""
        long = handler.resolve_ref_schema(handler(schema))
        return {"description": long.pop("description", ""), "anyOf": [{"type": [*k.SCALAR, "array"]}, long]}


class OutputFile(_Model):
    """One declared output of a node, in the long form only."""

    from_: Annotated[Literal["stdout", "json", "file", "output"], *k.choice("output", "stdout", "json", "file")] = (
        Field(
            "output",
            alias="from",
            description="`output`: from $DAGRUN_OUTPUT; `stdout`: its text; `json`: stdout as JSON; `file`: a file.",
        )
    )
    file: Filled = Field("", description="The file to read, for `from: file`.")
    path: OutputPath = Field("", description="What to take of a JSON document: `.items[0].name`; without it all of it.")
    schema_: SchemaOrFile = Field(
        ABSENT, alias="schema", description="JSON Schema that the value must satisfy, or its file."
    )


class RetryFile(_Model):
    """When and how often a node is tried again."""

    max_attempts: Annotated[int, *k.whole(1, 1000)] = Field(3, description="Tries in all, the first one included.")
    delay: Duration = Field(1.0, description="Time before the second try.")
    backoff: Annotated[float, *k.decimal(1, 100)] = Field(
        2.0, description="Each delay is this many times the one before."
    )
    max_delay: Duration = Field(60.0, description="No delay is longer.")
    jitter: Annotated[float, *k.decimal(0, 1)] = Field(0.1, description="Delays are moved by up to this fraction.")
    outcomes: Outcomes = Field(
        ABSENT, description="Which outcomes are tried again (failed, timed_out, invalid_output)."
    )


class ParamFile(_Model):
    """A typed parameter, set with `-p NAME=VALUE` or `--params FILE`; required without a default."""

    type: Annotated[
        Literal["string", "integer", "number", "boolean", "array", "object"],
        *k.choice(*k.PARAM_TYPES),
    ] = Field("string", description="The type of its value.")
    default: Raw = Field(ABSENT, description="The value when none is given, of that type.")
    enum: Raw = Field(ABSENT, description="The only values allowed, a list.")
    description: Text = Field("", description="What it is for.")


class SecretFile(_Model):
    """Where the value of a secret comes from: exactly one of `env`, `file`, `command`."""

    env: Annotated[str, k.plain(fields.variable), WithJsonSchema({"type": "string"})] = Field(
        "", description="The environment variable of dagrun that holds it."
    )
    file: Filled = Field("", description="The file that holds it.")
    command: Texts = Field(ABSENT, description="The program, with arguments, that prints it.")


class LimitsFile(_Model):
    """Ceilings of a whole run."""

    parallel: Annotated[int, *k.whole(1, 100_000)] = Field(
        ABSENT, description="Nodes that run at the same time (default: the processors, at least 5)."
    )
    timeout: Period = Field(ABSENT, description="Time for the whole run.")
    resources: Amounts = Field(ABSENT, description="What there is to reserve, by name: cpu, memory, gpu, …")
    revisions: Annotated[int, *k.whole(0, 1000)] = Field(3, description="Patches that nodes may make (3).")
    fallback_chain: Annotated[int, *k.whole(0, 100)] = Field(
        2, description="How often a fallback may fail over to another (2)."
    )
    growth: Growth = Field(
        ABSENT, description="How far patches of nodes may grow the run: `150%`, or {percent: 150, nodes: 10}."
    )


class ReviewFile(_Model):
    """A question to a human."""

    message: Filled = Field("", description="The question; `${{ inputs.NAME }}` is filled in.")
    timeout: Period = Field(ABSENT, description="How long an answer is waited for (default: for ever).")
    on_timeout: Annotated[Literal["reject", "approve"], *k.choice("reject", "approve")] = Field(
        "reject", description="What no answer in that time means."
    )


Question = Annotated[ReviewFile, BeforeValidator(shorts.question), shorts.OrText(*k.SCALAR)]


class OnFailureFile(_Model):
    """What is tried, in this order, once the retries of a node are spent."""

    fallback: TemplateOrNode = Field(ABSENT, description="The id of a template, or a node, that takes its place.")
    replan: Filled = Field("", description="The name of a patch file, relative to this file.")
    replanner: ReplannerKind = Field(ABSENT, description="An agent that is asked for a patch; it is told why.")
    review: Question = Field(ABSENT, description="Ask a human: {message, timeout, on_timeout}, or {}.")


class _Runnable(_Model):
    """The keys that a node has of its own and `defaults` has for all nodes."""

    shell: Annotated[Literal["sh", "bash"], *k.choice("sh", "bash")] = Field(
        "sh", description="For a `run` that is text: `sh` is `sh -e`, `bash` is `bash -eo pipefail`."
    )
    cwd: Filled = Field("", description="Working directory, relative to the project directory.")
    env: Env = Field(ABSENT, description="Environment variables; `${{ … }}` in values is filled in.")
    pass_env: Variables = Field(ABSENT, description="Variables of the caller to pass on, `*` allowed: [CI, GITHUB_*].")
    retry: RetryFile = Field(
        ABSENT, description="When a failed attempt is tried again; without it a command runs once."
    )
    timeout: Period = Field(DEFAULT_TIMEOUT_S, description="Time for one attempt (300 s).")
    grace: Duration = Field(DEFAULT_GRACE_S, description="Time between SIGTERM and SIGKILL (5 s).")
    idempotent: Bool = Field(
        True, description="`false`: after a timeout or crash it is never run again without a human."
    )
    continue_on_error: Bool = Field(
        False, description="A failure of the node does not fail the run nor skip its dependents."
    )
    isolation: Level = Field(
        "process",
        description="`process`: an own process tree, `paths` and `network` held by the kernel; `container`: Docker or"
        " Podman; `context`: a scrubbed environment and an own temp folder; `none`: nothing.",
    )
    permissions: PermissionsFile = Field(ABSENT, description="What it may do, of what the workflow leaves.")
    docker: DockerKind = Field(ABSENT, description="The container, for `isolation: container`: {image: …}.")


class DefaultsFile(_Runnable):
    """What every node has unless it says otherwise. `env`, `retry`, `permissions` and `docker` are merged by key."""


class NodeFile(_Runnable):
    """A unit of work."""

    title: Line = Field("", description="A name for people.")
    run: Command = Field(
        ABSENT, description="The command: text goes through the shell, a list runs a program without one."
    )
    agent: AgentKind = Field(ABSENT, description="A model instead of a command: {prompt, skills, model, tools, …}.")
    review: Question = Field(ABSENT, description="A human gate instead of a command: the question.")
    group: Ident = Field("", description="Agents at `isolation: none` with the same group share one conversation.")
    on_failure: Annotated[OnFailureFile, BeforeValidator(shorts.steps), shorts.OrText()] = Field(
        ABSENT, description="What is tried once the retries are spent: fallback, replan, replanner, review."
    )
    needs: Needs = Field(ABSENT, description="Nodes that must be settled before (order only; data comes by `inputs`).")
    inputs: dict[Key, Annotated[InputFile, BeforeValidator(shorts.given)]] = Field(
        ABSENT, description="Data from other nodes and params: NAME: nodes.ID.OUTPUT."
    )
    secrets: NodeSecrets = Field(
        ABSENT, description="Declared secrets that it gets: [A, {B: file}], $A the value, $B_FILE the name of a file."
    )
    if_: Filled = Field(
        "", alias="if", description="A bare expression; without a status function `success() &&` is implied."
    )
    outputs: dict[Key, OutputFile] = Field(ABSENT, description="What other nodes can read of this one.")
    output_schema: SchemaOrFile = Field(
        ABSENT,
        description="JSON Schema (or its file) of $DAGRUN_OUTPUT, or of an agent's answer; its properties are outputs.",
    )
    artifacts: Globs = Field(ABSENT, description="Files to keep, as patterns relative to the project directory.")
    resources: Resources = Field(
        ABSENT,
        description="`cpu` and `memory`: reserved, and ceilings; `pids`, `file_size`, `output`: ceilings; any other"
        " name: reserved.",
    )
    estimate: Duration = Field(0.0, description="Your guess of its duration, for ordering and for `dagrun plan`.")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Exactly one key makes the kind."""
        made = handler(schema)
        found = handler.resolve_ref_schema(made)
        found["oneOf"] = [{"required": ["run"]}, {"required": ["agent"]}, {"required": ["review"]}]
        return made


TemplateOrNode = Annotated[NodeFile, WrapValidator(shorts.template), shorts.OrText()]


class WorkflowFile(_Model):
    """A dagrun workflow."""

    version: Annotated[int, k.plain(k.version), WithJsonSchema({"const": 1})] = Field(
        1, description="Version of the file format."
    )
    name: Line = Field("", description="Name of the workflow (default: the file's name).")
    description: Text = Field("", description="What it is for.")
    params: dict[Key, ParamFile] = Field(ABSENT, description="Typed parameters of a run.")
    limits: LimitsFile = Field(ABSENT, description="Ceilings of a run.")
    schedule: Annotated[Literal["waves", "ready"], *k.choice("waves", "ready")] = Field(
        "waves",
        description="`waves`: each wave waits for the one before; `ready`: a node starts when its needs are met.",
    )
    durability: Annotated[Literal["default", "strict"], *k.choice("default", "strict")] = Field(
        "default", description="`strict`: dependents wait until the result is safely on disk, also against power loss."
    )
    defaults: DefaultsFile = Field(ABSENT, description="What every node has unless it says otherwise.")
    secrets: dict[str, SecretFile] = Field(ABSENT, description="Secrets by name; only nodes that name one get it.")
    permissions: PermissionsFile = Field(ABSENT, description="What the run may do; every node gets this or less.")
    docker: DockerKind = Field(ABSENT, description="The container of nodes that don't name their own: {image: …}.")
    models: Tiers = Field(
        ABSENT, description="Models of agents: a tier and its candidates in order, strong: [anthropic/…, openai/…]."
    )
    provider: ProviderFile = Field(ABSENT, description="Who answers model calls, and what they cost.")
    mcp_servers: dict[str, McpServerFile] = Field(ABSENT, description="Servers of tools for agents, by name.")
    nodes: dict[Key, NodeFile] = Field(description="The nodes by id, in any order.")
    templates: dict[Key, NodeFile] = Field(
        ABSENT, description="Nodes that run only when a fallback or a patch names them, by id."
    )
    outputs: dict[Key, Filled] = Field(ABSENT, description="Results of the workflow: NAME: nodes.ID.OUTPUT.")
    fail_fast: Bool = Field(False, description="Start nothing new after the first failure.")


MODELS: dict[str, type[BaseModel]] = {
    "workflow": WorkflowFile,
    "node": NodeFile,
    "defaults": DefaultsFile,
    "limits": LimitsFile,
    "retry": RetryFile,
    "param": ParamFile,
    "input": InputFile,
    "output": OutputFile,
    "secret": SecretFile,
    "review": ReviewFile,
    "on_failure": OnFailureFile,
    "permissions": PermissionsFile,
    "paths": PathsFile,
    "docker": DockerFile,
    "agent": AgentFile,
    "provider": ProviderFile,
    "server": McpServerFile,
}


def keys(model: type[BaseModel]) -> list[str]:
    """The keys of a model as they are written in a file."""
    return [f.alias or name for name, f in model.model_fields.items()]


class _Draft07(GenerateJsonSchema):
    schema_dialect = "http://json-schema.org/draft-07/schema#"

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No titles: an editor shows the key itself."""
        return False


def json_schema(model: type[BaseModel] = WorkflowFile, title: str = "dagrun workflow") -> dict[str, Any]:
    """The JSON Schema (draft-07) of workflow files (or another model), for editors."""
    made = _draft07(model.model_json_schema(schema_generator=_Draft07))
    head = {"$schema": _Draft07.schema_dialect, "title": title}
    return {**head, **{k: v for k, v in made.items() if k not in head}}


def _draft07(value: Any) -> Any:
    """Draft-07 spelling: `definitions`, and nothing beside a `$ref`, which old validators ignore."""
    if isinstance(value, list):
        return [_draft07(v) for v in value]
    if not isinstance(value, dict):
        return value
    made = {
        ("definitions" if key == "$defs" else key): _draft07(inner)
        for key, inner in value.items()
        if key != "default" or inner not in (None, "")
    }
    if "$ref" in made:
        ref = str(made.pop("$ref")).replace("#/$defs/", "#/definitions/")
        made.pop("default", None)
        return {**made, "allOf": [{"$ref": ref}]} if made else {"$ref": ref}
    if isinstance(made.get("title"), str):
        del made["title"]
    if "patternProperties" in made:
        made["additionalProperties"] = False
    return made


def _file_text(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def schema_text() -> str:
    """The exact content of schemas/workflow.schema.json."""
    return _file_text(json_schema())


def patch_schema_text() -> str:
    """The exact content of schemas/patch.schema.json."""
    from dagrun.flowfile.patchschema import PatchFile

    return _file_text(json_schema(PatchFile, "dagrun patch"))


def main(arguments: list[str]) -> int:
    """Write the schema files, or with `--check` say whether they are up to date."""
    from pathlib import Path

    names = [a for a in arguments if not a.startswith("-")]
    status = 0
    for path in [Path(n) for n in names or ("schemas/workflow.schema.json", "schemas/patch.schema.json")]:
        wanted = patch_schema_text() if path.name.startswith("patch") else schema_text()
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != wanted:
            print(f"{path} is not what the models say: run python -m dagrun.flowfile.schema")
            status = 1
    return status


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))

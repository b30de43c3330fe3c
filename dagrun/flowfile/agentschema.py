"""The models of `agent`, `models`, `provider` and `mcp_servers`, and how they become the core's types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dagrun.core.budget import CLASS_BOUNDS, rate_of
from dagrun.core.workflow import Agent, Fault, McpServer, Provider
from dagrun.flowfile import agentfields as checks
from dagrun.flowfile import fields, shorts
from dagrun.flowfile import kinds as k
from dagrun.flowfile.kinds import ABSENT, STRICT, TEXTS_SCHEMA, Filled
from dagrun.flowfile.permissionschema import Tools

Path = tuple[str | int, ...]

_MODEL_SCHEMA = {"type": "string", "pattern": "^[^/*]+/[^*]+$"}
_NAMES = {"type": "array", "items": {"type": "string"}}
_RATE = {
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,6})?$"}]
}
_RATE_WORDS = {
    "input": "A million tokens of the prompt.",
    "output": "A million tokens of the answer.",
    "cached": "A million tokens of the prompt that the provider had already (input).",
    "cache_write": "A million tokens of the prompt that it keeps (input).",
    "reasoning": "A million tokens of thought (output).",
}
_PRICES: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [
            {"const": "free"},
            {
                "type": "object",
                "properties": {"free": {"const": True, "description": "It costs nothing."}},
                "required": ["free"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {name: {**_RATE, "description": f"USD. {words}"} for name, words in _RATE_WORDS.items()},
                "required": ["input", "output"],
                "additionalProperties": False,
            },
        ]
    },
}

Skills = Annotated[tuple[str, ...], k.listed(checks.skill, "a list of skills"), WithJsonSchema(_NAMES)]
Servers = Annotated[tuple[str, ...], k.listed(checks.server, "a list of MCP servers"), WithJsonSchema(_NAMES)]
Wish = Annotated[str, k.plain(checks.wish), WithJsonSchema({"type": "string"})]
Tiers = Annotated[
    Any,
    k.plain(checks.tiers),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [_MODEL_SCHEMA, {"type": "array", "items": _MODEL_SCHEMA, "minItems": 1}]
            },
            "minProperties": 1,
        }
    ),
]
Classes = Annotated[
    Any,
    k.plain(checks.classes),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "cheap": {**_RATE, "description": "USD. Up to this a call is tried 10 times (5)."},
                "expensive": {**_RATE, "description": "USD. From this on it is tried 3 times (15), else 5."},
            },
            "additionalProperties": False,
        }
    ),
]
Prices = Annotated[Any, k.plain(checks.prices), WithJsonSchema(_PRICES)]
Address = Annotated[str, k.plain(checks.address), WithJsonSchema({"type": "string", "pattern": "^https?://"})]


class _Model(BaseModel):
    model_config = STRICT


class AgentFile(_Model):
    """An isolated agent call: what a model is told, which one, and what it may use."""

    prompt: Filled = Field(
        "", description="What it is to do; `${{ inputs.NAME }}` names data, which is shown below the prompt."
    )
    system: Filled = Field("", description="What it is told before all else. No expressions: data never enters it.")
    skills: Skills = Field(
        ABSENT, description="Skills by name, from skills/, .agents/skills, .claude/skills here or in your home."
    )
    model: Wish = Field("", description="A tier of `models`, or vendor/name (default: the first tier).")
    tools: Tools = Field(
        ABSENT, description='Tools it is offered: [Read, Edit, "Bash(git:*)"]; without it Read, Grep and Glob.'
    )
    max_turns: Annotated[int, *k.whole(1, 1000)] = Field(10, description="Replies of an attempt (10).")
    max_tokens: Annotated[int, *k.whole(1, 1_000_000)] = Field(4096, description="Tokens of one reply (4096).")
    temperature: Annotated[float, *k.decimal(0, 2)] = Field(ABSENT, description="0 to 2; the model's own without it.")
    mcp: Servers = Field(ABSENT, description="Servers of `mcp_servers` whose tools it is offered.")


class _TaskFile(AgentFile):
    """An isolated agent call: what a model is told, which one, and what it may use."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A prompt is needed; that there is none is found elsewhere, so that the rest is read."""
        made = handler(schema)
        handler.resolve_ref_schema(made)["required"] = ["prompt"]
        return made


class ProviderFile(_Model):
    """Who answers model calls."""

    kind: Annotated[Literal["live", "fake"], *k.choice("live", "fake")] = Field(
        "live", description="`live`: models through litellm; `fake`: the answers in `rules`, without any key."
    )
    rules: Filled = Field("", description="The file with the fake provider's answers, relative to this file.")
    base_url: Address = Field("", description="An OpenAI-compatible endpoint that all live calls go to.")
    prices: Prices = Field(
        ABSENT, description="Prices of your own, by model: {input: 3, output: 15} USD a million tokens, or free: true."
    )
    budget: Annotated[Literal["strict", "estimate"], *k.choice("strict", "estimate")] = Field(
        "strict", description="`strict` counts bytes, so that no cap is exceeded; `estimate` counts tokens."
    )
    classes: Classes = Field(
        ABSENT, description="What a million tokens of answer cost where models are `cheap` and `expensive`."
    )


class McpServerFile(_Model):
    """A server of tools: exactly one of `command` and `url`."""

    command: Annotated[tuple[str, ...], k.plain(checks.argv), WithJsonSchema(TEXTS_SCHEMA)] = Field(
        ABSENT, description="The program, with arguments, that is started in the node's sandbox."
    )
    url: Address = Field("", description="The address of a server; its host has to be in `permissions.network`.")
    env: Annotated[
        dict[str, str],
        k.plain(checks.fixed_environment),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": k.SCALAR}}),
    ] = Field(ABSENT, description="Environment variables of a `command`.")
    secrets: Annotated[tuple[str, ...], k.listed(fields.variable, "a list of secrets"), WithJsonSchema(_NAMES)] = Field(
        ABSENT, description="Declared secrets that a `command` gets as variables."
    )
    headers: Annotated[
        dict[str, str],
        k.plain(checks.headers),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
    ] = Field(ABSENT, description="Headers for a `url`, each with the NAME of the secret that is its value.")
    digest: Annotated[
        str, k.plain(checks.digest), WithJsonSchema({"type": "string", "pattern": "^(sha256:)?[0-9a-fA-F]{64}$"})
    ] = Field("", description="The sha256 of the tools that it lists; another list is refused.")


AgentKind = Annotated[_TaskFile, BeforeValidator(shorts.prompt), shorts.OrText(*k.SCALAR)]
ReplannerKind = Annotated[AgentFile, BeforeValidator(shorts.prompt), shorts.OrText(*k.SCALAR)]


# ---------------------------------------------------------------- to the core's types


def to_agent(made: AgentFile) -> Agent:
    """The agent that was written."""
    return Agent(**{key: getattr(made, key) for key in made.model_fields_set})


def to_provider(made: ProviderFile, text: str) -> Provider:
    """The provider that was written; `text` is what its rules file holds."""
    return Provider(rules_text=text, **{key: getattr(made, key) for key in made.model_fields_set})


def to_server(made: McpServerFile) -> McpServer:
    """The server that was written."""
    return McpServer(**{key: getattr(made, key) for key in made.model_fields_set})


def provider_faults(made: ProviderFile) -> Iterator[Fault]:
    """What only shows when all keys of `provider` are seen."""
    at: Path = ("provider",)
    if made.kind == "fake" and not made.rules:
        hint = "add rules: FILE, a list of answers by node, turn and pattern"
        yield Fault((*at, "kind"), "no-rules", "the fake provider has no answers", hint)
    if made.base_url and checks.is_open(made.base_url):
        message = "what is sent there can be read on its way, the key too"
        yield Fault((*at, "base_url"), "open-address", message, "write https://", severity="warning")
    said = made.classes if "classes" in made.model_fields_set else {}
    bounds = {name: rate_of(text) for name, text in {**CLASS_BOUNDS, **(said or {})}.items()}
    if bounds["cheap"] >= bounds["expensive"]:
        message = "`cheap` has to be less than `expensive`"
        yield Fault((*at, "classes"), "bad-classes", message, "write {cheap: 5, expensive: 15}: USD a million tokens")


def server_faults(made: McpServerFile, name: str) -> Iterator[Fault]:
    """What only shows when all keys of a server are seen."""
    at: Path = ("mcp_servers", name)
    written = made.model_fields_set
    try:
        checks.server(name)
    except fields.Wrong as error:
        yield Fault(at, "bad-id", error.defects[0].message, error.defects[0].hint, on_key=True)
    if len(written & {"command", "url"}) != 1:
        message = f"the server `{name}` needs exactly one of `command` and `url`"
        hint = "keep one of them" if written & {"command", "url"} else "write {command: [program, argument]}"
        yield Fault(at, "bad-server", message, hint, on_key=True)
        return
    kind, others = ("url", ("env", "secrets")) if "url" in written else ("command", ("headers",))
    for key in [key for key in others if key in written]:
        hint = "its key goes into `headers`" if kind == "url" else "what it needs goes into `env` and `secrets`"
        message = f"`{key}` has no meaning for a server with a `{kind}`"
        yield Fault((*at, key), "no-meaning", message, hint, on_key=True)
    if "url" in written and checks.is_open(made.url):
        message = "what is sent there can be read on its way"
        yield Fault((*at, "url"), "open-address", message, "write https://", severity="warning")

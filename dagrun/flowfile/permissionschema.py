"""The models of `permissions` and `docker`, and how they become the core's types.

Their keys are merged one by one with those of `defaults`; what is denied adds up.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from dagrun.core.permissions import LEVELS, Isolation, Paths, Permissions
from dagrun.core.workflow import Docker
from dagrun.flowfile import kinds as k
from dagrun.flowfile import permissionfields as checks
from dagrun.flowfile import shorts
from dagrun.flowfile.kinds import ABSENT, STRICT, TEXTS_SCHEMA

Tools = Annotated[tuple[str, ...], k.plain(checks.tools), WithJsonSchema(TEXTS_SCHEMA)]
Models = Annotated[tuple[str, ...], k.plain(checks.models), WithJsonSchema(TEXTS_SCHEMA)]
Roots = Annotated[tuple[str, ...], k.plain(checks.roots), WithJsonSchema(TEXTS_SCHEMA)]
Denied = Annotated[tuple[str, ...], k.plain(checks.denied), WithJsonSchema(TEXTS_SCHEMA)]
WriteRoots = Annotated[tuple[str, ...], k.plain(checks.write_roots), WithJsonSchema(TEXTS_SCHEMA)]
NetworkKind = Annotated[
    Any,
    k.plain(checks.network),
    WithJsonSchema({"anyOf": [{"enum": ["none", "any"]}, {"type": "array", "items": {"type": "string"}}]}),
]
Money = Annotated[
    int,
    k.plain(checks.money),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}]}
    ),
]
Level = Annotated[
    Literal["none", "context", "process", "container"],
    k.plain(checks.isolation),
    WithJsonSchema({"enum": list(LEVELS)}),
]
Pull = Annotated[Literal["never", "missing"], k.plain(checks.pull), WithJsonSchema({"enum": ["never", "missing"]})]
_FORMS = {"type": "object", "additionalProperties": {"enum": ["file", "variable"]}}
NodeSecrets = Annotated[
    Any,
    k.plain(checks.secrets),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"anyOf": [{"type": "string"}, _FORMS]}}, _FORMS]}),
]


class _Model(BaseModel):
    model_config = STRICT


class PathsFile(_Model):
    """What a node can reach of the file system; with it, nothing else is there."""

    read: Roots = Field(
        ABSENT, description="Files and folders that can be read: [src, ~/data]; without it the project directory."
    )
    write: WriteRoots = Field(
        ABSENT, description="Files and folders that can be written, and read: [out]; without it nothing."
    )
    deny: Denied = Field(
        ABSENT, description="What is not there in spite of that: `.env*` at any depth, `src/keys` in one place."
    )


class PermissionsFile(_Model):
    """What a run or a node may do. A node gets what both leave; asking for more is an error."""

    tools: Tools = Field(ABSENT, description='Tools that agents may use: [Read, Grep, "Bash(git:*)"].')
    paths: PathsFile = Field(ABSENT, description="What can be read and written, held by the kernel.")
    models: Models = Field(ABSENT, description="Models that agents may use: tiers, ids, `vendor/*`.")
    network: NetworkKind = Field(
        ABSENT, description="`none`, `any`, or the hosts that can be reached: [example.com, api.example.com:443]."
    )
    cost_budget: Money = Field(ABSENT, description="USD that may be spent on models.")
    isolation: Level = Field(ABSENT, description="The least level of isolation; a node may have a higher one.")


class DockerFile(_Model):
    """The container of a node with `isolation: container`."""

    image: Annotated[str, k.plain(checks.image), WithJsonSchema({"type": "string"})] = Field(
        "", description="The image: python:3.12-slim, ghcr.io/org/tool@sha256:…."
    )
    pull: Pull = Field("never", description="`missing`: fetch an image that is not there; `never`: that is an error.")
    user: Annotated[str, k.plain(checks.user), WithJsonSchema({"type": ["string", "integer"]})] = Field(
        "", description="`uid` or `uid:gid` to run as, never root; chosen by what it may write if left out."
    )


DockerKind = Annotated[DockerFile, BeforeValidator(shorts.image), shorts.OrText()]


# ---------------------------------------------------------------- to the core's types


def to_permissions(own: PermissionsFile | None, given: PermissionsFile | None = None) -> Permissions | None:
    """The permissions of a scope: its own keys over those of the defaults; None where nothing is said."""
    kw: dict[str, Any] = {}
    paths: list[PathsFile] = []
    for made in (given, own):
        for key in made.model_fields_set if made else ():
            if key == "paths":
                paths.append(cast(PermissionsFile, made).paths)
            else:
                kw[key] = getattr(made, key)
    if paths:
        kw["paths"] = _paths(paths)
    return Permissions(**kw) if kw else None


def _paths(written: list[PathsFile]) -> Paths:
    """The roots of several scopes of one node, the last one's own over the others'; what is denied adds up."""
    kw: dict[str, tuple[str, ...]] = {}
    for made in written:
        for key in made.model_fields_set:
            kw[key] = getattr(made, key)
    denied = dict.fromkeys(root for made in written for root in made.deny or ())
    return Paths(**{**kw, "deny": tuple(denied)})


def to_docker(own: DockerFile | None, given: DockerFile | None = None) -> Docker | None:
    """The container of a node: its own keys over those of the defaults; None where nothing is said."""
    kw = {key: getattr(made, key) for made in (given, own) if made for key in made.model_fields_set}
    return Docker(**kw) if kw else None


def floor_of(*scopes: PermissionsFile | None) -> Isolation:
    """The least level of isolation that some scopes leave."""
    found: list[Isolation] = [made.isolation for made in scopes if made and "isolation" in made.model_fields_set]
    return max(found, key=LEVELS.index, default="none")

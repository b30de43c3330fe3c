"""The models of patch files: which operations there are, and which keys each has.

Everything about a node in a patch is `schema.py`'s. `set` stays as it was written here: what it
may hold shows only when it was merged into the node that it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dagrun.flowfile import fields
from dagrun.flowfile import kinds as k
from dagrun.flowfile.kinds import ABSENT, STRICT, Amounts, Bool, Ident, Key, Needs, Period, Text, Texts
from dagrun.flowfile.schema import NodeFile, TemplateOrNode
from dagrun.flowfile.source import Value

_MAP: dict[str, Any] = {"type": "object"}


def _mapping(value: Value) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise fields.wrong(f"a mapping of keys to values is wanted here, not {fields.describe(value)}")
    return value


def _renames(value: Value) -> dict[str, str]:
    """What is read instead: nodes.OLD.OUTPUT -> nodes.NEW.OUTPUT."""
    defects: list[fields.Defect] = []
    hint = "write {nodes.OLD.OUTPUT: nodes.NEW.OUTPUT}"
    for old, new in _mapping(value).items():
        if not old.startswith("nodes."):
            defects.append(fields.Defect(f"`{old}` is no output of a node", hint, (old,), on_key=True))
        if not isinstance(new, str) or not new.startswith(("nodes.", "params.")):
            defects.append(fields.Defect(f"{fields.describe(new)} is no output of a node", hint, (old,)))
    if defects:
        raise fields.Wrong(*defects)
    return {old: str(new) for old, new in _mapping(value).items()}


def _revision(value: Value) -> int:
    return fields.integer(value, least=1, most=1_000_000)


Changes = Annotated[Any, k.plain(_mapping), WithJsonSchema(_MAP)]
Running = Annotated[Literal["cancel"], *k.choice("cancel")]
_RUNNING = Field(ABSENT, description="`cancel`: if it runs now, end it first.")
_ID = Field(description="The id of the node.")


class _Part(BaseModel):
    model_config = STRICT


class InsertFile(_Part):
    """A new node; exactly the edges from `after` to `before` are replaced by two through it."""

    id: Ident = Field(description="The id of the new node, never used before in this run.")
    node: NodeFile = Field(description="The node, as in a workflow.")
    after: Needs = Field((), description="Nodes that it waits for.")
    before: Needs = Field((), description="Nodes that wait for it.")
    running: Running = _RUNNING


class RemoveFile(_Part):
    """Take a node out."""

    id: Ident = _ID
    strategy: Annotated[Literal["skip", "bridge", "cascade"], *k.choice("skip", "bridge", "cascade")] = Field(
        description="`skip`: it settles without output; `bridge`: what waited for it waits for what it waited for;"
        " `cascade`: what can't live without it goes too."
    )
    dependents: Annotated[Literal["skip"], *k.choice("skip")] = Field(
        ABSENT, description="With `skip`: skip what needs its output too."
    )
    input_map: Annotated[
        dict[str, str],
        k.plain(_renames),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
    ] = Field(ABSENT, description="With `bridge`: what is read instead, nodes.OLD.OUTPUT: nodes.NEW.OUTPUT.")
    running: Running = _RUNNING


class RewireFile(_Part):
    """needs = (needs - old) + new."""

    id: Ident = _ID
    old: Needs = Field((), description="Needs to drop; each must be one now.")
    new: Needs = Field((), description="Needs to add.")
    root: Bool = Field(False, description="`true`: it may wait for nothing at all.")
    running: Running = _RUNNING


class ModifyFile(_Part):
    """Change keys of a node: mappings are merged, lists and scalars replaced."""

    id: Ident = _ID
    set: Changes = Field(ABSENT, description="The keys with their new values, as in a workflow.")
    unset: Texts = Field(ABSENT, description="Keys to drop; a dot leads inside: [env.DEBUG].")
    running: Running = _RUNNING


class RetryChange(ModifyFile):
    """Try a node again, with changes to timeout, retry, resources, env and permissions.

    Of an agent also model, max_tokens, max_turns, and a prompt that is added to its own. Permissions only
    get less; a larger cost_budget is taken from what the run has left.
    """


class FallbackFile(_Part):
    """Another node takes the place of a failed one, in every dependent and input."""

    id: Ident = Field(description="The id of the failed node.")
    with_: TemplateOrNode = Field(alias="with", description="The id of a template, or a node.")
    running: Running = _RUNNING


class AlternativeFile(_Part):
    """Other nodes in place of a blocked path."""

    blocked: Needs = Field(description="The nodes of the path that is blocked.")
    nodes: dict[Key, NodeFile] = Field(description="The new nodes by id.")
    exits: Needs = Field(description="Those of the new nodes that what followed the path follows now.")
    running: Running = _RUNNING


class RerunFile(_Part):
    """Run a completed node again, and all that followed from it."""

    id: Ident = _ID
    running: Running = _RUNNING


class SetLimitsFile(_Part):
    """New ceilings of the run."""

    parallel: Annotated[int, *k.whole(1, 100_000)] = Field(ABSENT, description="Nodes that run at the same time.")
    timeout: Period = Field(ABSENT, description="Time for the whole run.")
    resources: Amounts = Field(ABSENT, description="What there is to reserve, by name.")


class EditFile(_Part):
    """Other keys of a workflow file; refused on a run."""

    set: Changes = Field(ABSENT, description="The keys with their new values.")
    unset: Texts = Field(ABSENT, description="Keys to drop; a dot leads inside: [params.topic].")


class TriggerFile(_Part):
    """What caused the patch."""

    type: Annotated[
        Literal["failure", "timeout", "requirement", "optimization"],
        *k.choice("failure", "timeout", "requirement", "optimization"),
    ] = Field("requirement", description="What kind of thing caused it.")
    node: Ident = Field("", description="The node that it is about.")
    reason: Text = Field("", description="Why, for people.")


class OperationFile(_Part):
    """One operation: exactly one of these keys."""

    insert: InsertFile = Field(ABSENT, description="Put in a new node.")
    remove: RemoveFile = Field(ABSENT, description="Take a node out of the plan.")
    rewire: RewireFile = Field(ABSENT, description="Change what a node waits for.")
    modify: ModifyFile = Field(ABSENT, description="Change keys of a node.")
    retry: RetryChange = Field(ABSENT, description="Try a node again, possibly changed.")
    fallback: FallbackFile = Field(ABSENT, description="Let another node take the place of a failed one.")
    alternative: AlternativeFile = Field(ABSENT, description="Go another way around a blocked path.")
    rerun: RerunFile = Field(ABSENT, description="Run a completed node, and what followed, again.")
    set_limits: SetLimitsFile = Field(ABSENT, description="Change the ceilings of the run.")
    workflow: EditFile = Field(ABSENT, description="Change other keys of a workflow file (not of a run).")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Exactly one key."""
        made = handler(schema)
        found = handler.resolve_ref_schema(made)
        found.update(minProperties=1, maxProperties=1)
        return made


class PatchFile(_Part):
    """A patch: a wanted change of a plan."""

    workflow: Text = Field("", description="The name of the workflow that it is for.")
    base: Annotated[int, k.plain(_revision), WithJsonSchema({"type": "integer", "minimum": 1})] = Field(
        0, description="The revision that it was made for (default: whatever is the head)."
    )
    trigger: TriggerFile = Field(ABSENT, description="What caused it.")
    operations: list[OperationFile] = Field(description="What to do, all of it or nothing, in this order.")


class PatchHead(_Part):
    """A patch whose operations are read one by one."""

    workflow: Text = ""
    base: Annotated[int, k.plain(_revision)] = 0
    trigger: TriggerFile = ABSENT
    operations: Any


OPERATIONS: Mapping[str, type[_Part]] = {
    "insert": InsertFile,
    "remove": RemoveFile,
    "rewire": RewireFile,
    "modify": ModifyFile,
    "retry": RetryChange,
    "fallback": FallbackFile,
    "alternative": AlternativeFile,
    "rerun": RerunFile,
    "set_limits": SetLimitsFile,
    "workflow": EditFile,
}
PATCH_MODELS: Mapping[str, type[BaseModel]] = {
    **OPERATIONS,
    "edit": EditFile,
    "patch": PatchFile,
    "trigger": TriggerFile,
}

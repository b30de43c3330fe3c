"""Whether a JSON Schema in a workflow is one: a schema that can't be used is refused before the run.

What people get wrong most (`type`, `properties`, `required`, `items`) is said in our own words; the
rest is jsonschema's verdict. References may only lead into the schema itself: no validation of an
output ever opens another file or a connection.
"""

from __future__ import annotations

from collections.abc import Iterator

from dagrun.core.names import Json
from dagrun.core.workflow import Fault

Path = tuple[str | int, ...]

_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_MAX_FAULTS = 10


def check(schema: dict[str, Json], path: Path, *, in_file: bool) -> list[Fault]:
    """What is wrong with a schema that stands at `path`.

    With `in_file` it stands in a file of its own: the place is the key that names the file, and the
    message says where inside.
    """
    found = list(_common(schema, (), schema)) or list(_others(schema))
    faults: list[Fault] = []
    for inside, message, hint in found[:_MAX_FAULTS]:
        if in_file:
            where = ".".join(str(p) for p in inside)
            faults.append(Fault(path, "bad-schema", f"{message} (at `{where}` in the schema)", hint))
        else:
            faults.append(Fault((*path, *inside), "bad-schema", message, hint))
    return faults


def _common(schema: dict[str, Json], inside: Path, whole: Json) -> Iterator[tuple[Path, str, str]]:
    kinds = schema.get("type")
    for kind in kinds if isinstance(kinds, list) else [] if kinds is None else [kinds]:
        if kind not in _TYPES:
            yield (*inside, "type"), f"`{kind}` is no type of JSON Schema", "it has " + ", ".join(_TYPES)
    if "properties" in schema and not isinstance(schema["properties"], dict):
        yield (*inside, "properties"), "`properties` is a mapping of names to schemas", "write {name: {type: string}}"
    if "required" in schema and not isinstance(schema["required"], list):
        yield (*inside, "required"), "`required` is a list of names", "write [name]"
    ref = schema.get("$ref")
    if isinstance(ref, str) and not ref.startswith("#"):
        yield (*inside, "$ref"), "`$ref` may only lead into the same schema", "write it like #/$defs/NAME"
    elif isinstance(ref, str) and ref.startswith("#/") and not _leads(whole, ref):
        yield (*inside, "$ref"), f"`{ref}` leads nowhere in this schema", ""
    for step, part in _parts(schema):
        if isinstance(part, dict):
            yield from _common(part, (*inside, *step), whole)
        elif not isinstance(part, bool):
            yield (*inside, *step), "a schema is a mapping", "write {type: string}"


def _leads(value: Json, ref: str) -> bool:
    """Whether a pointer (`#/$defs/a`) finds something."""
    for step in ref[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(value):
            value = value[int(name[:9])]
        else:
            return "%" in step  # percent-encoded: left to the validator
    return True


def _parts(schema: dict[str, Json]) -> Iterator[tuple[Path, Json]]:
    """The schemas right below a schema."""
    for key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
        held = schema.get(key)
        for name, part in held.items() if isinstance(held, dict) else ():
            yield (key, name), part
    for key in ("allOf", "anyOf", "oneOf", "prefixItems"):
        listed = schema.get(key)
        for i, part in enumerate(listed if isinstance(listed, list) else ()):
            yield (key, i), part
    for key in ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"):
        if key in schema and not isinstance(schema[key], list):
            yield (key,), schema[key]


def _others(schema: dict[str, Json]) -> Iterator[tuple[Path, str, str]]:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    draft = validator_for(schema, default=Draft202012Validator)
    for error in draft(draft.META_SCHEMA, format_checker=draft.FORMAT_CHECKER).iter_errors(schema):
        message = error.message if len(error.message) <= 200 else error.message[:197] + "…"
        yield tuple(error.absolute_path), f"this is no valid JSON Schema: {message}", ""

"""Holding values to the JSON Schemas that a workflow declares. jsonschema is imported at the first one."""

from __future__ import annotations

from dagrun.core.names import Json

MAX_SHOWN = 5


def violations(value: Json, schema: Json) -> list[str]:
    """What is wrong with `value`, as `path: reason`, at most MAX_SHOWN of them; empty when it fits.

    References to other documents are never fetched: they are a violation themselves.
    """
    from jsonschema import exceptions, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if not isinstance(schema, dict | bool):
        return [f"the schema is no JSON Schema: {type(schema).__name__}"]
    cls = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        found = sorted(cls(schema, registry=Registry()).iter_errors(value), key=lambda e: list(map(str, e.absolute_path)))
    except (exceptions.SchemaError, exceptions.UnknownType, Unresolvable) as bad:
        return [f"the schema can't be used: {str(bad).splitlines()[0]}"]
    out = []
    for error in found[:MAX_SHOWN]:
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path) or "."
        out.append(f"{path}: {error.message[:200]}")
    if len(found) > MAX_SHOWN:
        out.append(f"and {len(found) - MAX_SHOWN} more")
    return out

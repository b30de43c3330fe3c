"""Holding values to the JSON Schemas that a workflow declares. jsonschema is imported at the first one."""

from __future__ import annotations

import re
from collections.abc import Callable

from dagrun.core.names import Json

MAX_SHOWN = 5


def violations(value: Json, schema: Json, clean: Callable[[str], str] = str) -> list[str]:
    """What is wrong with `value`, as `path: reason`, at most MAX_SHOWN of them; empty when it fits.

    References to other documents are never fetched: they are a violation themselves. `clean` goes
    over each reason, which quotes the value, before it is shortened.
    """
    from jsonschema import exceptions, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if not isinstance(schema, dict | bool):
        return [f"the schema is no JSON Schema: {type(schema).__name__}"]
    cls = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        cls.check_schema(schema)  # type: ignore[arg-type]  # its stub knows no booleans
        errors = cls(schema, registry=Registry()).iter_errors(value)
        found = sorted(errors, key=lambda e: list(map(str, e.absolute_path)))
    except (exceptions.SchemaError, exceptions.UnknownType, Unresolvable, re.error) as bad:
        return [f"the schema can't be used: {str(bad).splitlines()[0][:200]}"]
    except RecursionError:
        return ["the schema can't be used: it refers to itself without end"]
    out = []
    for error in found[:MAX_SHOWN]:
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path) or "."
        out.append(f"{path}: {_short(clean(error.message))}")
    if len(found) > MAX_SHOWN:
        out.append(f"and {len(found) - MAX_SHOWN} more")
    return out


def _short(text: str) -> str:
    """A reason begins with the value, which may be long, and ends with what is wrong with it."""
    return text if len(text) <= 200 else f"{text[:90]}…{text[-109:]}"

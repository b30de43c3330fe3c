"""Holding values to the JSON Schemas that a workflow declares. jsonschema is imported at the first one."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice

from dagrun.agent.timebox import OutOfTime, within
from dagrun.core.names import Json

MAX_SHOWN = 5
MAX_LOOKED_AT = 1000  # of what is wrong; a value can be so in a million places
CHECK_S = 2.0  # of the processor: a pattern can take for ever


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
        first = within(CHECK_S, lambda: list(islice(errors, MAX_LOOKED_AT)))
        found = sorted(first, key=lambda e: list(map(str, e.absolute_path)))
    except (exceptions.SchemaError, exceptions.UnknownType, Unresolvable, re.error) as bad:
        return [f"the schema can't be used: {str(bad).splitlines()[0][:200]}"]
    except RecursionError:
        return ["the schema can't be used: it refers to itself without end"]
    except OutOfTime:
        return ["it takes too long to hold this value to its schema"]
    except ArithmeticError:  # `multipleOf` of a whole number that no float can be
        return ["a number is too large for the schema"]
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

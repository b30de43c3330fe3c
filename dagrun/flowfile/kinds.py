"""The kinds of values that the keys of a workflow want, as types for the models.

Each joins a check of `fields.py` with the JSON Schema that an editor needs for it. A scalar that is
wanted as text may look like a number or boolean to an editor, so its schema allows those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from dagrun.core.names import ID_MAX, ID_PATTERN, Json
from dagrun.flowfile import fields
from dagrun.flowfile.amounts import amounts, ceilings
from dagrun.flowfile.source import Value

ABSENT: Any = None  # the default of a key that was not written; typed Any, since the key's type has no None
STRICT = ConfigDict(frozen=True, extra="forbid", populate_by_name=False, defer_build=True)
T = TypeVar("T")
PARAM_TYPES = ("string", "integer", "number", "boolean", "array", "object")
RETRY_OUTCOMES = ("failed", "timed_out", "over_limit", "invalid_output")
SCALAR = ["string", "number", "boolean"]


def plain(check: Callable[[Value], T]) -> PlainValidator:
    """A pydantic validator of a field check: its defects travel in the error's context."""

    def validate(value: Value) -> T:
        try:
            return check(value)
        except fields.Wrong as error:
            raise PydanticCustomError("wrong", "wrong", {"defects": error.defects}) from None

    return PlainValidator(validate)


def _list(check: Callable[[Value], str], *, one: bool = False) -> PlainValidator:
    """A list of texts; with `one` a single text stands for a list of it."""

    def validate(value: Value) -> tuple[str, ...]:
        if one and isinstance(value, str):
            return (check(value),)
        return tuple(fields.each(value, check, "a list of texts"))

    return plain(validate)


def listed(check: Callable[[Value], str], what: str) -> PlainValidator:
    """A list of texts, each named once; `what` names it in messages."""
    return plain(lambda value: tuple(dict.fromkeys(fields.each(value, check, what))))


_TEXT_SCHEMA = {"type": SCALAR}
TEXTS_SCHEMA = {"type": "array", "items": _TEXT_SCHEMA}
_ID_SCHEMA = {"type": "string", "pattern": f"^{ID_PATTERN}$", "maxLength": ID_MAX}
_DURATION_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {
            "type": "string",
            "pattern": r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+(\.[0-9]+)?s)?([0-9]+ms)?$|^[0-9]+(\.[0-9]+)?$",
        },
    ]
}
_SIZE_SCHEMA = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*([kKMGT]i?)?B?$"}]
}
_JSON_SCHEMA: dict[str, Any] = {}

Text = Annotated[str, plain(fields.text), WithJsonSchema(_TEXT_SCHEMA)]
Filled = Annotated[str, plain(fields.filled), WithJsonSchema(_TEXT_SCHEMA)]
Line = Annotated[str, plain(fields.line), WithJsonSchema({"type": SCALAR, "maxLength": 200})]
Bool = Annotated[bool, plain(fields.boolean), WithJsonSchema({"type": "boolean"})]
Duration = Annotated[float, plain(fields.duration), WithJsonSchema(_DURATION_SCHEMA)]
Period = Annotated[float, plain(fields.positive_duration), WithJsonSchema(_DURATION_SCHEMA)]
AnyJson = Annotated[Any, plain(fields.json), WithJsonSchema(_JSON_SCHEMA)]
Raw = Annotated[Any, WithJsonSchema(_JSON_SCHEMA)]
Key = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{ID_PATTERN}$"})]
Texts = Annotated[tuple[str, ...], _list(fields.filled), WithJsonSchema(TEXTS_SCHEMA)]
Globs = Annotated[tuple[str, ...], _list(fields.glob), WithJsonSchema(TEXTS_SCHEMA)]
Variables = Annotated[tuple[str, ...], _list(fields.variable_pattern), WithJsonSchema(TEXTS_SCHEMA)]
Ident = Annotated[str, plain(fields.ident), WithJsonSchema(_ID_SCHEMA)]
Needs = Annotated[
    tuple[str, ...],
    _list(fields.ident, one=True),
    WithJsonSchema({"anyOf": [_ID_SCHEMA, {"type": "array", "items": _ID_SCHEMA}]}),
]
Env = Annotated[
    dict[str, str],
    plain(fields.environment),
    WithJsonSchema({"type": "object", "additionalProperties": _TEXT_SCHEMA}),
]
Command = Annotated[
    str | tuple[str, ...],
    plain(fields.command),
    WithJsonSchema({"anyOf": [{"type": SCALAR}, {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1}]}),
]
OutputPath = Annotated[str, plain(fields.output_path), WithJsonSchema({"type": "string"})]
Outcomes = Annotated[
    tuple[str, ...],
    _list(fields.choice(*RETRY_OUTCOMES)),
    WithJsonSchema({"type": "array", "items": {"enum": list(RETRY_OUTCOMES)}}),
]


def _document(value: Value) -> Json:
    """A JSON Schema in place (a mapping, `true`, `false`), or the name of the file that holds it."""
    got = fields.json(value)
    if isinstance(got, dict | bool) or (isinstance(got, str) and got.strip()):
        return got
    raise fields.wrong(f"a JSON Schema or the name of its file is wanted here, not {fields.describe(value)}")


SchemaOrFile = Annotated[Any, plain(_document), WithJsonSchema({"type": ["object", "string", "boolean"]})]


def choice(*names: str) -> tuple[PlainValidator, WithJsonSchema]:
    return plain(fields.choice(*names)), WithJsonSchema({"enum": list(names)})


def version(value: Value) -> int:
    if isinstance(value, str) and value.strip() == "1":
        return 1
    hint = "write version: 1; a file of a newer format needs a newer dagrun"
    raise fields.wrong(f"this dagrun reads version 1 of the format, not {fields.describe(value)}", hint)


def whole(least: int, most: int) -> tuple[PlainValidator, WithJsonSchema]:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return plain(lambda v: fields.integer(v, least=least, most=most)), WithJsonSchema(schema)


def decimal(least: float, most: float) -> tuple[PlainValidator, WithJsonSchema]:
    schema = {"type": "number", "minimum": least, "maximum": most}
    return plain(lambda v: float(fields.number(v, least=least, most=most))), WithJsonSchema(schema)


_AMOUNTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "cpu": {"type": "number", "minimum": 0, "description": "Cores."},
        "memory": {**_SIZE_SCHEMA, "description": "Bytes: `512M`, `2Gi` or a number."},
    },
    "additionalProperties": {"type": "number", "minimum": 0},
}
_CEILINGS: dict[str, Any] = {
    "pids": {"type": "integer", "minimum": 1, "description": "Processes and threads at a time, a ceiling."},
    "file_size": {**_SIZE_SCHEMA, "description": "The size of each file that it writes, a ceiling."},
    "output": {**_SIZE_SCHEMA, "description": "What an attempt may write to stdout and stderr together (256M)."},
}
Amounts = Annotated[dict[str, float], plain(amounts), WithJsonSchema(_AMOUNTS)]


def _growth(value: Value) -> tuple[int, int | None]:
    """Percent, and how many nodes more if that is written."""
    if not isinstance(value, dict):
        return _percent(value), None
    defects: list[fields.Defect] = []
    found: dict[str, int] = {}
    for key, item in value.items():
        try:
            if key not in ("percent", "nodes"):
                raise fields.Wrong(
                    fields.Defect(
                        f"`growth` has no key `{key}`", "it has percent and nodes", code="unknown-key", on_key=True
                    )
                )
            found[key] = _percent(item) if key == "percent" else fields.integer(item, least=0, most=1_000_000)
        except fields.Wrong as error:
            defects += [d._replace(at=(key, *d.at)) for d in error.defects]
    if defects:
        raise fields.Wrong(*defects)
    return found.get("percent", 150), found.get("nodes")


def _percent(value: Value) -> int:
    if isinstance(value, str) and value.endswith("%") and value[:-1].isdecimal() and value.isascii() and len(value) < 9:
        got = int(value[:-1])
    elif isinstance(value, str) and not value.endswith("%"):
        got = fields.integer(value)
    else:
        raise fields.wrong(f"a percentage is wanted here, not {fields.describe(value)}", "write 150%")
    if not 100 <= got <= 1_000_000:
        raise fields.wrong(f"{fields.describe(value)} is out of range", "100% is as many nodes as at the start")
    return got


Growth = Annotated[
    tuple[int, int | None],
    plain(_growth),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^[0-9]+%$"},
                {
                    "type": "object",
                    "properties": {
                        "percent": {"type": ["integer", "string"], "description": "Of the nodes at the start (150)."},
                        "nodes": {"type": "integer", "minimum": 0, "description": "Or that many nodes more (10)."},
                    },
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Resources = Annotated[
    dict[str, float],
    plain(ceilings),
    WithJsonSchema({**_AMOUNTS, "properties": {**_AMOUNTS["properties"], **_CEILINGS}}),
]

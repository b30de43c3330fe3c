"""Short forms: text where a mapping is the long form, for the models of `schema.py`."""

from __future__ import annotations

from pydantic import GetJsonSchemaHandler, ValidatorFunctionWrapHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from dagrun.flowfile import fields
from dagrun.flowfile.source import Value


def given(value: object) -> object:
    """An input in its short form as its long form; whether text is bare is decided by its beginning."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str) and fields.is_null(value):
        raise _refused(fields.Defect("this input has no value", "write {value: null} if nothing is what you mean"))
    if isinstance(value, str) and value.startswith(("nodes.", "params.")):
        return {"from": value}
    return {"value": value}


def bare(value: Value) -> str:
    got = fields.filled(value)
    if not got.startswith(("nodes.", "params.")):
        hint = "a fixed value is written {value: …}"
        raise fields.wrong(f"`from` begins with `nodes.` or `params.`, unlike {fields.describe(value)}", hint)
    return got


class OrText:
    """In the JSON Schema: text is as good as the long form."""

    def __init__(self, *types: str) -> None:
        self.types = types or ("string",)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        kinds = self.types[0] if len(self.types) == 1 else list(self.types)
        return {"anyOf": [{"type": kinds}, handler(schema)]}


def _refused(defect: fields.Defect) -> PydanticCustomError:
    return PydanticCustomError("wrong", "wrong", {"defects": (defect,)})


def question(value: object) -> object:
    """A review in its short form, the message, as its long form."""
    if not isinstance(value, str):
        return value
    if fields.is_null(value) or (value.__class__ is not str and value in ("true", "false")):
        said = "nothing" if value == "" else f"`{value}`"
        raise _refused(fields.Defect(f"a question to a human is wanted here, not {said}", "write {message: …}"))
    return {"message": value}


def prompt(value: object) -> object:
    """An agent in its short form, the prompt, as its long form."""
    if not isinstance(value, str):
        return value
    if fields.is_null(value) or (value.__class__ is not str and value in ("true", "false")):
        said = "nothing" if value == "" else f"`{value}`"
        raise _refused(fields.Defect(f"an agent is wanted here, not {said}", "write {prompt: …}"))
    return {"prompt": value}


def image(value: object) -> object:
    """A `docker` in its short form, the image, as its long form."""
    if not isinstance(value, str):
        return value
    if fields.is_null(value) or (value.__class__ is not str and value in ("true", "false")):
        said = "nothing" if value == "" else f"`{value}`"
        raise _refused(fields.Defect(f"an image is wanted here, not {said}", "write {image: python:3.12-slim}"))
    return {"image": value}


def steps(value: object) -> object:
    """`on_failure: review` as its long form."""
    if not isinstance(value, str):
        return value
    if value == "review":
        return {"review": {}}
    name = value if value and len(value) < 60 else "TEMPLATE"
    hint = f"write {{fallback: {name}}}; the only short form is on_failure: review"
    raise _refused(fields.Defect("`on_failure` is a mapping of what to try", hint))


def template(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """The id of a template, or a node in place."""
    if not isinstance(value, str):
        return handler(value)
    try:
        return fields.ident(value)
    except fields.Wrong as error:
        raise PydanticCustomError("wrong", "wrong", {"defects": error.defects}) from None

"""What a node gives to others: its `outputs` and its `output_schema`, in the core's types.

Schema files are read by the documents that it is given. An agent's outputs are the top-level
properties of its answer; one without a schema has a single output `text`, its last words.
"""

from __future__ import annotations

from typing import Protocol

from dagrun.core.agents import TEXT_OUTPUT
from dagrun.core.names import Json, is_id
from dagrun.core.workflow import Fault, Output
from dagrun.flowfile import contracts, fields
from dagrun.flowfile.schema import NodeFile, OutputFile

Path = tuple[str | int, ...]
Given = tuple[dict[str, Output], Json]


class Reader(Protocol):
    """Reads the files that a workflow names."""

    def read(self, name: str, path: Path) -> Json:
        """The JSON document in a file, or None after noting what is wrong with it."""


def of_command(path: Path, made: NodeFile, documents: Reader, faults: list[Fault]) -> Given:
    """(outputs, output schema) of a node that runs a command. What is wrong goes to `faults`."""
    outputs = {k: _output((*path, "outputs", k), v, documents, faults) for k, v in (made.outputs or {}).items()}
    schema: Json = None
    if "output_schema" in made.model_fields_set:
        schema = _schema(made.output_schema, (*path, "output_schema"), documents, faults)
        for name in _properties(schema, (*path, "output_schema"), faults):
            outputs.setdefault(name, Output())
    return outputs, schema


def of_agent(path: Path, made: NodeFile, documents: Reader, faults: list[Fault]) -> Given:
    """(outputs, output schema) of an agent; `core.agents.answer_schema` makes one schema of both."""
    schema: Json = None
    names: list[str] = []
    if "output_schema" in made.model_fields_set:
        schema = _schema(made.output_schema, (*path, "output_schema"), documents, faults)
        names = _properties(schema, (*path, "output_schema"), faults)
    declared = {k: _part((*path, "outputs", k), v, documents, faults) for k, v in (made.outputs or {}).items()}
    for name in [name for name in names if name in declared and declared[name].schema is not None]:
        message = f"`{name}` has a schema in `output_schema` already"
        faults.append(Fault((*path, "outputs", name), "two-schemas", message, "keep one of them", on_key=True))
    if not declared and schema is None and "output_schema" not in made.model_fields_set:
        return dict(TEXT_OUTPUT), None
    return {**declared, **{name: Output() for name in names if name not in declared}}, schema


def _part(path: Path, made: OutputFile, documents: Reader, faults: list[Fault]) -> Output:
    """A declared output of an agent: a part of its answer; where it comes from can't be said."""
    written = made.model_fields_set
    for key in [key for key in ("from_", "file", "path") if key in written]:
        if key == "from_" and made.from_ == "output":
            continue
        said = key.rstrip("_")
        hint = "write {schema: {type: string}}; an agent without any schema has one output, `text`"
        if key == "file" or made.from_ == "file":
            hint = "let it write the file, name it under `artifacts`, and answer with what others need"
        message = f"`{said}` has no meaning here: an agent's outputs are the properties of its answer"
        faults.append(Fault((*path, said), "not-for-agent", message, hint, on_key=True))
    return Output(schema=_schema(made.schema_, (*path, "schema"), documents, faults) if "schema_" in written else None)


def _properties(schema: Json, path: Path, faults: list[Fault]) -> list[str]:
    """The outputs that an `output_schema` declares."""
    if schema is None:  # its file could not be read: that is said already
        return []
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        message = "`output_schema` must describe an object: its properties are the outputs"
        faults.append(Fault(path, "bad-schema", message, "write {type: object, properties: {…}}"))
        return []
    properties = schema.get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    for name in names:
        if name == "status":
            message = "`status` is a reserved name: every node has it"
            faults.append(Fault(path, "reserved", message, "take another name for this property"))
        elif not is_id(name):
            message = f"the property `{name}` of `output_schema` is no id, so no node can read it as an output"
            faults.append(Fault(path, "bad-id", message, fields.id_rule(name), severity="warning"))
    return [n for n in names if is_id(n) and n != "status"]


def _output(path: Path, made: OutputFile, documents: Reader, faults: list[Fault]) -> Output:
    source = made.from_
    if source == "file" and not made.file:
        message = "`from: file` needs the name of the `file`"
        faults.append(Fault(path, "bad-output", message, "add file: NAME", on_key=True))
    if made.file and source != "file":
        hint = "write from: file" if "from_" not in made.model_fields_set else "remove it, or write from: file"
        message = f"`file` has no meaning with `from: {source}`"
        faults.append(Fault((*path, "file"), "bad-output", message, hint, on_key=True))
    if made.path and source == "stdout":
        hint = "write from: json to read stdout as JSON"
        message = "`path` selects in JSON, but `stdout` is text"
        faults.append(Fault((*path, "path"), "bad-output", message, hint, on_key=True))
    schema = _schema(made.schema_, (*path, "schema"), documents, faults) if made.schema_ is not None else None
    return Output(source=source, file=made.file, path=made.path, schema=schema)


def _schema(document: Json, path: Path, documents: Reader, faults: list[Fault]) -> Json:
    if isinstance(document, str):
        document = documents.read(document, path)
        if isinstance(document, dict):
            faults.extend(contracts.check(document, path, in_file=True))
    elif isinstance(document, dict):
        faults.extend(contracts.check(document, path, in_file=False))
    return document

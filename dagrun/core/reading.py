"""Who reads whom: the references to nodes in inputs and conditions, and other names put in their place.

What is not such a reference stays to the letter. Knows no plan and no run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from json import dumps

from dagrun.core import expression as ex
from dagrun.core.names import Json, NodeId
from dagrun.core.workflow import Input, Node


def node_references(text: str) -> list[ex.Reference]:
    """The references `nodes.<id>…` of a bare expression, in order; none where it can't be parsed."""
    if "nodes" not in text:
        return []
    try:
        found = ex.references(ex.parse(text))
    except ex.ExpressionError:
        return []  # `check_node` says what is wrong with it
    return [r for r in found if r.path[0] == "nodes" and len(r.path) > 1]


def reads(item: Input, producer: NodeId) -> bool:
    """Whether an input reads from a node."""
    return any(r.path[1] == producer for r in node_references(item.expression))


def requires(item: Input, producer: NodeId) -> bool:
    """Whether an input has no value without a node."""
    return not item.optional and not item.has_default and reads(item, producer)


def outputs_read(item: Input, producer: NodeId) -> list[str]:
    """The outputs of a node that an input reads; its status is none."""
    found = (r.path[2] for r in node_references(item.expression) if r.path[1] == producer and len(r.path) > 2)
    return [name for name in dict.fromkeys(found) if name != "status"]


def literal(value: Json) -> Json:
    """The value of an input that is rendered to exactly `value`, whatever its texts hold."""
    if isinstance(value, str):
        return value.replace("${{", "${{ '${{' }}")
    if isinstance(value, list):
        return [literal(item) for item in value]
    return {key: literal(item) for key, item in value.items()} if isinstance(value, dict) else value


def without_producer(item: Input) -> Input:
    """An optional input whose producer is gone, as the value that it falls back to."""
    default = item.default if item.has_default else None
    text = dumps(default)
    if "${{" in text:  # a default is never rendered, a value is
        return Input(expression="fromJSON('" + text.replace("'", "''") + "')")
    return Input(value=default)


def rename(text: str, old: NodeId, new: NodeId) -> str:
    """A bare expression with every reference to node `old` changed to `new`."""
    return _renamed(text, node_references(text), old, new)


def rename_result(text: str, old: NodeId, new: NodeId) -> str:
    """The same for an output of the workflow, which may be a text with expressions in it."""
    if "nodes" not in text or text.startswith(("nodes.", "params.")):
        return rename(text, old, new)
    try:
        found = ex.references(ex.parse_template(text))
    except ex.ExpressionError:
        return text
    return _renamed(text, [r for r in found if r.path[0] == "nodes" and len(r.path) > 1], old, new)


def _renamed(text: str, references: list[ex.Reference], old: NodeId, new: NodeId) -> str:
    for ref in reversed(references):
        if ref.path[1] == old:
            span = text[ref.offset : ref.offset + ref.length]
            at = span.index(old, len("nodes"))
            text = text[: ref.offset + at] + new + text[ref.offset + at + len(old) :]
    return text


def map_references(text: str, mapping: Mapping[str, str]) -> tuple[str, set[str]]:
    """A bare expression with `nodes.a.x` read as `mapping` says, also below it; the keys that were used."""
    used: set[str] = set()
    for ref in reversed(node_references(text)):
        for old, new in mapping.items():
            path = tuple(old.split("."))
            if ref.path[: len(path)] == path and text.startswith(old, ref.offset):
                text = text[: ref.offset] + new + text[ref.offset + len(old) :]
                used.add(old)
                break
    return text, used


def swap(node: Node, old: NodeId, new: NodeId) -> Node:
    """`node` with `new` in the place of `old`: in its needs, inputs and condition."""
    inputs = {
        k: replace(item, expression=rename(item.expression, old, new)) if reads(item, old) else item
        for k, item in node.inputs.items()
    }
    needs = tuple(dict.fromkeys(new if n == old else n for n in node.needs))
    return replace(node, needs=needs, inputs=inputs, condition=rename(node.condition, old, new))

"""Names in a workflow's tree: what an id may be, reserved names, names that would become one.

Works on the tree and not on the models: a wrong name must not keep what it names from being checked.
"""

from __future__ import annotations

from collections.abc import Iterator

from dagrun.core.names import is_id
from dagrun.core.workflow import Fault
from dagrun.flowfile import fields
from dagrun.flowfile.source import Value

Path = tuple[str | int, ...]


def check(value: Value) -> list[Fault]:
    """Every wrong, reserved or clashing name of a workflow's tree."""
    if not isinstance(value, dict):
        return []
    found = [*_names(value.get("params"), ("params",), "param"), *_names(value.get("outputs"), ("outputs",), "output")]
    found += _secrets(value.get("secrets"))
    nodes = value.get("nodes")
    if not isinstance(nodes, dict):
        return found
    if not nodes:
        found.append(
            Fault(("nodes",), "no-nodes", "the workflow has no nodes", "add hello: {run: echo hello}", on_key=True)
        )
    found += _names(nodes, ("nodes",), "node")
    for name, node in nodes.items():
        if isinstance(node, dict) and ("inputs" in node or "outputs" in node):
            path = ("nodes", name)
            found += _names(node.get("inputs"), (*path, "inputs"), "input")
            found += _variables(node.get("inputs"), (*path, "inputs"))
            found += _names(node.get("outputs"), (*path, "outputs"), "output")
            found += _reserved(node.get("outputs"), (*path, "outputs"))
    return found


def _names(value: Value | None, path: Path, what: str) -> Iterator[Fault]:
    if not isinstance(value, dict):
        return
    seen: dict[str, str] = {}
    for name in value:
        if not is_id(name):
            yield _bad_id(name, (*path, name), what)
        other = seen.setdefault(name.lower(), name)
        if other != name:
            message = f"`{name}` and `{other}` differ only by case"
            yield Fault(
                (*path, name),
                "case-clash",
                message,
                "files of both would be one on some systems: rename one",
                on_key=True,
            )


def _bad_id(name: str, path: Path, what: str) -> Fault:
    shown = name if len(name) <= 60 else name[:57] + "…"
    return Fault(
        path,
        "bad-id",
        f"`{shown}` can't be the id of {'an' if what[0] in 'aeiou' else 'a'} {what}",
        fields.id_rule(name),
        on_key=True,
    )


def _variables(value: Value | None, path: Path) -> Iterator[Fault]:
    """Inputs that would arrive in the same INPUT_<NAME>; those that differ by case are reported as such."""
    if not isinstance(value, dict):
        return
    seen: dict[str, str] = {}
    for name in value:
        variable = "INPUT_" + name.upper().replace("-", "_")
        other = seen.setdefault(variable, name)
        if other != name and other.lower() != name.lower():
            message = f"inputs `{other}` and `{name}` would both arrive as ${variable}"
            yield Fault((*path, name), "input-clash", message, "rename one", on_key=True)


def _reserved(value: Value | None, path: Path) -> Iterator[Fault]:
    if isinstance(value, dict) and "status" in value:
        yield Fault(
            (*path, "status"), "reserved", "`status` is a reserved name: every node has it", "rename it", on_key=True
        )


def _secrets(value: Value | None) -> Iterator[Fault]:
    for name in value if isinstance(value, dict) else ():
        try:
            fields.variable(name)
        except fields.Wrong as error:
            yield Fault(("secrets", name), "bad-id", error.defects[0].message, error.defects[0].hint, on_key=True)

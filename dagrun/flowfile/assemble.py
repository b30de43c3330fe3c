"""From the bytes of a workflow file to the checked Workflow, or to everything that is wrong.

The text is parsed, the tree validated against the models, converted, and its graph checked. When
the shape is wrong, the wrong parts are taken out and the rest goes on, so that one reading finds
all. Imported only when the cache does not know the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256

from pydantic import ValidationError

from dagrun.core.check import check, check_node
from dagrun.core.permissions import NO_PERMISSIONS, higher
from dagrun.core.workflow import Docker, Fault, Node, Workflow
from dagrun.errors import InputError, Problem
from dagrun.flowfile import ids
from dagrun.flowfile.convert import Converter
from dagrun.flowfile.documents import Documents
from dagrun.flowfile.schema import NodeFile, WorkflowFile, keys
from dagrun.flowfile.source import MAX_PROBLEMS, Tree, Value, parse

Path = tuple[str | int, ...]


def assemble(
    data: bytes, file: str, base_dir: str
) -> tuple[Workflow, tuple[Problem, ...], tuple[tuple[str, str], ...]]:
    """(workflow, warnings, (name, digest) of each file that it names). Raises InputError with all problems."""
    tree = parse(data, file)
    documents = Documents(file, base_dir)
    shape: list[Fault] = []
    made = _validated(tree.value, shape)
    if made is None:
        raise InputError(_problems(tree, shape + ids.check(tree.value), documents))
    converter = Converter(documents, frozenset([f.path[:2] for f in shape]))
    workflow = converter.workflow(made, _stem(file), file, sha256(data).hexdigest())
    known = shape + ids.check(tree.value) + converter.faults + documents.faults
    broken = {f.path for f in known if f.severity == "error"}
    if documents.problems:  # a schema that could not be read declares outputs nobody knows
        broken |= {("nodes", i, "output_schema") for i, n in made.nodes.items() if n.output_schema is not None}
    if made.nodes:
        known += _graph(workflow, tree.value, broken)
    if documents.trees and not any(f.severity == "error" for f in known):
        from dagrun.flowfile import declared

        workflow = declared.checked(workflow, documents)
    problems = _problems(tree, known, documents)
    if any(p.severity == "error" for p in problems):
        raise InputError(problems)
    if documents.digests:
        workflow = replace(workflow, files=tuple(documents.digests))
    return replace(workflow, files=tuple(documents.digests)), problems, tuple(documents.digests.items())


def _stem(file: str) -> str:
    stem = os.path.basename(file).split(".")[0]
    return stem if stem.isprintable() and stem and file != "<stdin>" else "workflow"


def without_plugins() -> None:
    """Keep pydantic from searching all installed packages for plugins of its own.

    No other package has a say in what a workflow means, and the search takes 9 ms of every first
    read. Where pydantic keeps the search elsewhere, it is simply made.
    """
    import sys
    from types import ModuleType

    name = "pydantic.plugin._loader"
    if name not in sys.modules:
        loader = ModuleType(name)
        loader.get_plugins = tuple  # type: ignore[attr-defined]
        sys.modules[name] = loader


def _validated(value: Value, shape: list[Fault]) -> WorkflowFile | None:
    """The model of a tree. What does not fit goes to `shape` and is taken out; None when nothing is left."""
    without_plugins()
    try:
        return WorkflowFile.model_validate(value)
    except ValidationError as error:
        from dagrun.flowfile import explain

        shape += explain.faults(error, value)
        places = [f.path for f in shape if f.path] or [("nodes",)]
    if not isinstance(value, dict):
        return None
    for depth in (4, 3):
        try:
            return WorkflowFile.model_validate(_without(value, places, depth))
        except ValidationError:
            continue
    return None


_STUBS: dict[str, dict[str, Value]] = {
    "nodes": {"run": "true"},
    "templates": {"run": "true"},
    "params": {},
    "secrets": {"env": "NAME"},
    "mcp_servers": {"command": ["true"]},
}
# of which only the wrong keys are taken out
_BY_KEY = ("defaults", "limits", "permissions", "docker", "provider", "models")
_BY_NAME = ("inputs", "outputs", "env", "agent")
_NODES = ("nodes", "templates")


def _without(value: dict[str, Value], places: Iterable[Path], depth: int) -> dict[str, Value]:
    """A copy of a workflow's tree without what is wrong in it, at most `depth` keys down; ids stay known."""
    made = dict(value)
    copied: set[Path] = set()
    for path in places:
        holder, top = made, str(path[0])
        if len(path) == 1 or not isinstance(made.get(top), dict) or top not in (*_BY_KEY, *_STUBS):
            made.pop(top, None)
            continue
        keep = 1 if top in _BY_KEY else 2 if top not in _NODES or len(path) < 4 or path[2] not in _BY_NAME else 3
        steps = path[: min(keep + 1, depth, len(path))]
        for k in range(1, len(steps)):
            inner = holder[str(path[k - 1])]
            if not isinstance(inner, dict):
                break
            if path[:k] not in copied:
                copied.add(path[:k])
                inner = holder[str(path[k - 1])] = dict(inner)
            holder = inner
        _take_out(holder, steps)
    if not isinstance(made.get("nodes"), dict):
        made["nodes"] = {}
    return made


def _take_out(holder: dict[str, Value], steps: Path) -> None:
    """Remove what is at the end of a path; a whole node, param or secret leaves a stub, so that it stays known."""
    name, top = str(steps[-1]), str(steps[0])
    if len(steps) == 2 and top in _STUBS:
        if top not in _NODES or not isinstance(holder.get(name), dict):
            holder[name] = dict(_STUBS[top])
    else:
        holder.pop(name, None)


class _Open(dict[str, object]):
    """A mapping of which only a part is known: any name may be in it."""

    def __contains__(self, key: object) -> bool:
        return True


def _graph(workflow: Workflow, value: Value, broken: set[Path]) -> list[Fault]:
    """Faults of references, expressions and graph, without those that only follow from `broken` parts."""
    if broken:
        workflow = _opened(workflow, broken)
    found = [_rooted(_named(f, value), value) for f in [*check(workflow), *_inline(workflow)]]
    tops = {p[0] for p in broken if p}
    hidden = {"unknown-resource", "over-limit"} if "limits" in tops else set()
    if "templates" in tops:
        hidden |= {"unknown-template", "contract"}
    return [
        f
        for f in [*found, *_warnings(workflow, value)]
        if not (f.code == "no-meaning" and f.path[0] == "defaults")  # what is there for others
        and not any(f.path[:n] in broken for n in range(1, len(f.path) + 1) if n > 2 or f.path[0] not in _NODES)
        and f.code not in hidden
    ]


def _inline(workflow: Workflow) -> Iterable[Fault]:
    """Faults of the nodes that stand in an `on_failure: {fallback: …}` of their own."""
    for key, nodes in (("nodes", workflow.nodes), ("templates", workflow.templates)):
        for name, node in nodes.items():
            path: Path = (key, name)
            while node.on_failure is not None and node.on_failure.fallback_node is not None:
                node, path = node.on_failure.fallback_node, (*path, "on_failure", "fallback")
                found: list[Fault] = []
                check_node(workflow, node, found)
                yield from [f._replace(path=(*path, *f.path[2:])) for f in found]


def _opened(workflow: Workflow, broken: set[Path]) -> Workflow:
    """The workflow with the mappings open whose names a broken part may have declared."""
    made: dict[str, dict[str, Node]] = {"nodes": dict(workflow.nodes), "templates": dict(workflow.templates)}
    for (group, name), own in _keys_by_node(broken).items():
        unknown = bool(own - _NODE_KEYS)  # may be a misspelt `inputs` or `outputs`
        node = made[group].get(name)
        if node and (unknown or "inputs" in own):
            node = replace(node, inputs=_Open(node.inputs))  # type: ignore[arg-type]
        if node and (unknown or own & {"outputs", "output_schema", "agent"}):
            node = replace(node, outputs=_Open(node.outputs))  # type: ignore[arg-type]
        if node and node.review is None and (unknown or own & _CONFINING):
            node = _unconfined(workflow, node)
        if node:
            made[group][name] = node
    tops = {str(p[0]) for p in broken if len(p) == 1}
    params: Mapping[str, object] = _Open(workflow.params) if "params" in tops else workflow.params
    secrets: Mapping[str, object] = _Open(workflow.secrets) if "secrets" in tops else workflow.secrets
    docker = Docker(image="unknown") if broken & _DOCKER else workflow.docker
    named = {str(p[0]) for p in broken if p}
    models: Mapping[str, object] = _Open(workflow.models) if "models" in named else workflow.models
    servers: Mapping[str, object] = _Open(workflow.mcp_servers) if "mcp_servers" in named else workflow.mcp_servers
    opened = {"params": params, "secrets": secrets, "docker": docker, "models": models, "mcp_servers": servers}
    return replace(workflow, **made, **opened)  # type: ignore[arg-type]


def _unconfined(workflow: Workflow, node: Node) -> Node:
    """A node of whose permissions, level and image only a part is known: it asks for what its run has."""
    run = workflow.permissions or NO_PERMISSIONS
    held = run.paths is not None or run.network is not None
    level = higher(node.isolation, higher(run.isolation or "none", "process" if held else "none"))
    docker = Docker(image="unknown") if level == "container" else None
    return replace(node, isolation=level, permissions=None, docker=docker)


_NODE_KEYS = frozenset(keys(NodeFile))
_DOCKER: frozenset[Path] = frozenset({("docker",), ("docker", "image"), ("defaults", "docker", "image")})
_CONFINING = frozenset({"isolation", "permissions", "docker"})


def _keys_by_node(broken: set[Path]) -> dict[tuple[str, str], set[str]]:
    """Which keys of each node and template are broken; `""` stands for the node as a whole."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in broken:
        if len(path) > 1 and path[0] in _NODES:
            found.setdefault((str(path[0]), str(path[1])), set()).add(str(path[2]) if len(path) > 2 else "")
    return found


_SECRET = re.compile(r"names secret `([^`]*)`")


def _named(fault: Fault, value: Value) -> Fault:
    """The fault of one of a node's secrets belongs where its name stands, in whatever form that is."""
    found = _SECRET.search(fault.message) if fault.code == "unknown-secret" else None
    if found is None or "secrets" not in fault.path[2:]:
        return fault
    path = fault.path[: fault.path.index("secrets", 2) + 1]
    own: Value | None = value
    for step in path:
        own = own.get(str(step)) if isinstance(own, dict) else None
    for k, item in enumerate(own if isinstance(own, list) else ()):
        if item == found[1]:
            return fault._replace(path=(*path, k))
        if isinstance(item, dict) and found[1] in item:
            return fault._replace(path=(*path, k, found[1]), on_key=True)
    return fault._replace(path=(*path, found[1]), on_key=True)


def _rooted(fault: Fault, value: Value) -> Fault:
    """A fault in what a node has from `defaults:` belongs there, once."""
    path = fault.path
    if len(path) < 3 or path[0] not in _NODES or not isinstance(value, dict):
        return fault
    nodes, defaults = value.get(str(path[0])), value.get("defaults")
    own: Value | None = nodes.get(str(path[1])) if isinstance(nodes, dict) else None
    for step in path[2:5]:
        if isinstance(own, dict) and isinstance(step, str) and step not in own:
            if isinstance(defaults, dict) and path[2] in defaults:
                message = fault.message.replace(f"node `{path[1]}`", "a node")
                if message.startswith(f"`{path[1]}` "):
                    message = f"a node{message[len(str(path[1])) + 2 :]}"
                return fault._replace(path=("defaults", *path[2:]), message=message)
            return fault
        own = own.get(step) if isinstance(own, dict) and isinstance(step, str) else None
    return fault


def _warnings(workflow: Workflow, value: Value) -> Iterable[Fault]:
    """What is no error, but probably not what was meant."""
    for node in workflow.nodes.values():
        for name, item in node.inputs.items():
            text = item.value
            if item.expression or not isinstance(text, str) or "." not in text or " " in text:
                continue
            root = text.split(".")[0]
            if root in workflow.nodes or root in ("inputs", "env", "run"):
                hint = (
                    f"did you mean `nodes.{text}`?"
                    if root in workflow.nodes
                    else f'write "${{{{ {text} }}}}" to read it'
                )
                path = ("nodes", node.id, "inputs", name)
                message = (
                    f"input `{name}` is the fixed text `{text}`: only what begins with `nodes.` or `params.` is read"
                )
                yield Fault(path, "fixed-text", message, hint, severity="warning")


def _problems(tree: Tree, faults: Iterable[Fault], documents: Documents) -> tuple[Problem, ...]:
    """All problems in the order of the file, each once, without those that follow from a wrong text."""
    text = tree.problems
    taken = {(p.line, p.column) for p in text}
    wanted = list(dict.fromkeys(faults))
    found = dict.fromkeys(tree.problem(f) for f in wanted[:MAX_PROBLEMS])
    shape = [p for p in found if (p.line, p.column) not in taken]
    made = sorted([*text, *shape, *documents.problems], key=lambda p: (p.file != tree.file, p.file, p.line, p.column))
    if len(wanted) > MAX_PROBLEMS:
        message = f"and {len(wanted) - MAX_PROBLEMS:,} more, not shown"
        made.append(Problem(code="too-many", message=message, file=tree.file, hint="correct these first"))
    return tuple(made)

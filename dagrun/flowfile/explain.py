"""What pydantic says about a tree, as faults: the path, what is wrong, what to write instead.

Only imported when a file is wrong. Knows which model stands at which path, which keys it has,
which come later, and which belong somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from dagrun.core.workflow import Fault
from dagrun.flowfile import fields, words
from dagrun.flowfile.kinds import PARAM_TYPES
from dagrun.flowfile.schema import MODELS, keys
from dagrun.flowfile.source import Value

Path = tuple[str | int, ...]

_WORDS = {
    "workflow": "a workflow",
    "node": "a node",
    "defaults": "`defaults`",
    "limits": "`limits`",
    "retry": "`retry`",
    "param": "a param",
    "input": "an input",
    "output": "an output",
    "secret": "a secret",
    "review": "a review",
    "on_failure": "`on_failure`",
    "permissions": "`permissions`",
    "paths": "`paths`",
    "docker": "`docker`",
    "agent": "`agent`",
    "provider": "`provider`",
    "server": "an MCP server",
    "patch": "a patch",
    "trigger": "`trigger`",
    "edit": "`workflow`",
}
_MAPPINGS = {
    "nodes": "nodes by id: {hello: {run: echo hello}}",
    "params": "params by name: {topic: {type: string, default: graphs}}",
    "secrets": "secrets by name: {TOKEN: {env: TOKEN}}",
    "inputs": "inputs by name: {items: nodes.fetch.items}",
    "outputs": "outputs by name: {items: {from: json}}",
    "limits": "{parallel: 8, timeout: 30m}",
    "defaults": "{timeout: 10m}",
    "retry": "{max_attempts: 3, delay: 1s}",
    "templates": "nodes by id: {spare: {run: ./simple.sh}}",
    "review": "{message: …, timeout: 24h}",
    "on_failure": "{fallback: TEMPLATE, replan: FILE, replanner: {…}, review: {}}",
    "agent": "{prompt: …, model: TIER, tools: [Read]}",
    "replanner": "{prompt: …, model: TIER}",
    "provider": "{kind: live, base_url: https://…} or {kind: fake, rules: FILE}",
    "mcp_servers": "servers by name: {github: {command: [github-mcp-server, stdio]}}",
    "permissions": "{paths: {read: [.], write: [out]}, network: none}",
    "paths": "{read: [.], write: [out]}",
    "docker": "{image: python:3.12-slim}",
    "trigger": "{type: failure, node: …, reason: …}",
    "set": "the keys to change: {timeout: 10m}",
    "node": "the keys of a node: {run: ./x.sh}",
}
# which model stands below a key of which other; `*` stands for any name
_BELOW = {
    "workflow": {
        "nodes": "*node",
        "templates": "*node",
        "params": "*param",
        "secrets": "*secret",
        "limits": "limits",
        "defaults": "defaults",
        "permissions": "permissions",
        "docker": "docker",
        "provider": "provider",
        "mcp_servers": "*server",
    },
    "node": {
        "agent": "agent",
        "retry": "retry",
        "inputs": "*input",
        "outputs": "*output",
        "review": "review",
        "on_failure": "on_failure",
        "permissions": "permissions",
        "docker": "docker",
    },
    "defaults": {"retry": "retry", "permissions": "permissions", "docker": "docker"},
    "permissions": {"paths": "paths"},
    "on_failure": {"fallback": "node", "replanner": "agent", "review": "review"},
    "patch": {"trigger": "trigger"},
    "insert": {"node": "node"},
    "fallback": {"with": "node"},
    "alternative": {"nodes": "*node"},
}


def faults(error: ValidationError, value: Value, kind: str = "workflow") -> list[Fault]:
    """All that the validation of `value`, a thing of this kind, found; each at its path in `value`."""
    found: list[Fault] = []
    for item in error.errors(include_url=False, include_input=False):
        found.extend(_one(item["type"], item["loc"], item.get("ctx") or {}, value, kind))
    return found


def _one(kind: str, path: Path, context: dict[str, Any], value: Value, root: str) -> Iterator[Fault]:
    if kind == "wrong":
        for d in cast("tuple[fields.Defect, ...]", context["defects"]):
            yield Fault((*path, *d.at), d.code, d.message, d.hint, on_key=d.on_key)
    elif kind == "extra_forbidden":
        yield _unknown_key(path, kind_at(path[:-1], root))
    elif kind == "missing":
        yield from _missing(path, value)
    else:
        yield _wrong_shape(path, at(value, path), kind_at(path, root))


def at(value: Value, path: Path) -> Value:
    """What stands at a path of a tree; the nearest value above when there is nothing."""
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step, value)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
    return value


def has(value: Value, steps: list[str]) -> bool:
    """Whether a path of keys leads to something in a tree."""
    for step in steps:
        if not isinstance(value, dict) or step not in value:
            return False
        value = value[step]
    return True


def kind_at(path: Path, kind: str = "workflow") -> str:
    """Which model stands at a path in a thing of some kind; empty where none does."""
    steps = iter(path)
    for step in steps:
        kind = _BELOW.get(kind, {}).get(str(step), "")
        if kind.startswith("*"):
            kind = kind[1:] if next(steps, None) is not None else ""
    return kind


def _unknown_key(path: Path, kind: str) -> Fault:
    key, of = str(path[-1]), _WORDS.get(kind, f"`{kind}`")
    if key in words.NOT_YET.get(kind, ()):
        return Fault(path, "not-yet", f"`{key}` in {of} is not supported yet", _later(key), on_key=True)
    return Fault(path, "unknown-key", f"{of} has no key `{key}`", _meant(key, kind), on_key=True)


def _model(kind: str) -> type[BaseModel]:
    if kind in MODELS:
        return MODELS[kind]
    from dagrun.flowfile.patchschema import PATCH_MODELS

    return PATCH_MODELS[kind]


@lru_cache(maxsize=1000)
def _meant(key: str, kind: str) -> str:
    """What to write instead of an unknown key, or where it belongs."""
    known = keys(_model(kind))
    found = words.inside(key, kind) or words.meant(key, known)
    if found:
        return found
    others = ("workflow", "limits", "retry", "defaults", "node", "agent", "permissions", "docker")
    homes = [_WORDS[k] for k in others if k != kind and key in keys(MODELS[k])]
    return f"`{key}` is a key of {' and '.join(homes)}" if homes else "its keys are " + ", ".join(known)


def _later(key: str) -> str:
    if key == "workflow":
        return "for now a node is a command, `run`, an agent, or a question to a human, `review`"
    return "remove it: dagrun refuses what it can't hold, rather than ignore it"


def _missing(path: Path, value: Value) -> Iterator[Fault]:
    holder = at(value, path[:-1])
    if path == ("nodes",):
        if isinstance(holder, dict) and any(words.stands_for(k, "nodes") for k in holder):
            return
        yield Fault((), "no-nodes", "the workflow has no nodes", "add nodes: {hello: {run: echo hello}}")
    elif not (isinstance(holder, dict) and any(words.stands_for(k, str(path[-1])) for k in holder)):
        yield Fault(path[:-1], "missing-key", f"the key `{path[-1]}` is missing", on_key=True)


def _wrong_shape(path: Path, got: Value, kind: str) -> Fault:
    what = fields.describe(got)
    last = str(path[-1]) if path else ""
    if not path:
        hint = "it begins like this: nodes: {hello: {run: echo hello}}" if kind == "workflow" else ""
        name = _WORDS.get(kind, f"`{kind}`")
        return Fault(path, "bad-shape", f"{name} is a mapping of keys to values, not {what}", hint)
    if kind == "node":
        hint = f"write {last}: {{run: {_short(got)}}}" if isinstance(got, str) and got else "write its keys: run: …"
        name = f"node `{last}`" if len(path) == 2 else "a node"
        return Fault(path, "bad-shape", f"{name} is a mapping of keys to values, not {what}", hint, on_key=got == "")
    if kind == "param":
        word = "type" if got in PARAM_TYPES else "default"
        return Fault(
            path, "bad-shape", f"param `{last}` is a mapping, not {what}", f"write {last}: {{{word}: {_short(got)}}}"
        )
    if kind == "output":
        source = got if got in ("stdout", "json", "output") else "stdout"
        return Fault(
            path, "bad-shape", f"output `{last}` is a mapping, not {what}", f"write {last}: {{from: {source}}}"
        )
    if kind == "server":
        hint = f"write {last}: {{command: [program, argument]}}"
        return Fault(path, "bad-shape", f"the MCP server `{last}` is a mapping, not {what}", hint)
    if kind == "secret":
        return Fault(path, "bad-shape", f"secret `{last}` is a mapping, not {what}", f"write {last}: {{env: {last}}}")
    hint = "it holds " + _MAPPINGS[last] if last in _MAPPINGS else ""
    if path == ("nodes",) and isinstance(got, list):
        hint = "the id of a node is its key, not an item: build: {run: make}"
    if last == "retry" and isinstance(got, str) and got.isdigit():
        hint = f"write retry: {{max_attempts: {got}}}"
    return Fault(path, "bad-shape", f"`{last}` is a mapping, not {what}", hint)


def _short(value: Value) -> str:
    return value if isinstance(value, str) and 0 < len(value) < 40 else "…"

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
    found = [*names(value.get("params"), ("params",), "param"), *names(value.get("outputs"), ("outputs",), "output")]
    found += _secrets(value.get("secrets"))
    nodes = value.get("nodes")
    if not isinstance(nodes, dict):
        return found
    if not nodes:
        found.append(
            Fault(("nodes",), "no-nodes", "the workflow has no nodes", "add hello: {run: echo hello}", on_key=True)
        )
    found += _group(nodes, "nodes", "node")
    templates = value.get("templates")
    if isinstance(templates, dict):
        found += _group(templates, "templates", "template")
    return found


def _group(nodes: dict[str, Value], key: str, what: str) -> Iterator[Fault]:
    yield from names(nodes, (key,), what)
    for name, node in nodes.items():
        if isinstance(node, dict) and ("run" not in node or not node.keys().isdisjoint(_LOOK)):
            yield from check_node(node, (key, name))


_LOOK = frozenset({"inputs", "outputs", "agent", "review", "on_failure", "group"})
_RUN_ONLY = frozenset(
    "run shell cwd env pass_env secrets outputs output_schema artifacts retry timeout grace idempotent isolation"
    " permissions docker resources group".split()
)
_NOT_FOR_AGENT = {
    "shell": "the commands of its Bash tool are run by sh",
    "cwd": "its tools work in the project directory",
}
_KINDS = {"run": "a command", "agent": "an agent", "review": "a question to a human"}


def check_node(node: dict[str, Value], path: Path) -> Iterator[Fault]:
    """Every wrong name in a node, and whether its keys make exactly one kind."""
    yield from names(node.get("inputs"), (*path, "inputs"), "input")
    yield from _variables(node.get("inputs"), (*path, "inputs"))
    yield from names(node.get("outputs"), (*path, "outputs"), "output")
    yield from _reserved(node.get("outputs"), (*path, "outputs"))
    kinds = [key for key in _KINDS if key in node]
    if len(kinds) > 1:
        message = f"a node is either {' or '.join(f'{_KINDS[key]} (`{key}`)' for key in kinds)}, not both"
        hint = f"make the {kinds[-1]} a node of its own"
        yield Fault((*path, kinds[-1]), "two-kinds", message, hint, on_key=True)
    elif not kinds:
        yield from _no_kind(node, path)
    elif kinds == ["review"]:
        yield from _review(node, path)
    elif kinds == ["agent"]:
        yield from _agent(node, path)
    elif "group" in node:
        message = "`group` has no meaning for a command: agents of one group share a conversation"
        yield Fault((*path, "group"), "not-for-command", message, "remove it", on_key=True)
    steps = node.get("on_failure")
    if isinstance(steps, dict) and isinstance(inner := steps.get("fallback"), dict):
        yield from check_node(inner, (*path, "on_failure", "fallback"))


def _agent(node: dict[str, Value], path: Path) -> Iterator[Fault]:
    for key in [key for key in _NOT_FOR_AGENT if key in node]:
        message = f"`{key}` has no meaning for an agent: {_NOT_FOR_AGENT[key]}"
        yield Fault((*path, key), "not-for-agent", message, "remove it", on_key=True)
    held = node["agent"]
    if isinstance(held, dict) and not any(_is_prompt(key) for key in held):
        message = "the agent is not told what to do"
        yield Fault((*path, "agent", "prompt"), "no-prompt", message, "add prompt: …", on_key=True)


def _is_prompt(key: str) -> bool:
    """Whether a key of an agent is its prompt, perhaps misspelt (which is said by itself)."""
    if key == "prompt":
        return True
    from dagrun.flowfile.words import stands_for

    return key not in ("system", "skills", "model", "tools", "temperature", "mcp") and stands_for(key, "prompt")


def _review(node: dict[str, Value], path: Path) -> Iterator[Fault]:
    for key in node.keys() & _RUN_ONLY:
        hint = "remove it"
        if key == "timeout":
            hint = "how long an answer is waited for is said in the review: review: {message: …, timeout: 24h}"
        yield Fault((*path, key), "not-for-review", f"`{key}` has no meaning for a review node", hint, on_key=True)
    held = node["review"]
    if isinstance(held, dict) and not any(_is_message(k) for k in held):
        yield Fault((*path, "review"), "no-message", "the review asks nothing", "add message: …", on_key=True)


def _is_message(key: str) -> bool:
    """Whether a key of a review is its message, perhaps misspelt (which is said by itself)."""
    if key == "message":
        return True
    from dagrun.flowfile.words import stands_for

    return key not in ("timeout", "on_timeout") and stands_for(key, "message")


def _no_kind(node: dict[str, Value], path: Path) -> Iterator[Fault]:
    from dagrun.flowfile.words import NOT_YET, of_agent, stands_for

    if any(k in NOT_YET["node"] or of_agent(k) or any(stands_for(k, kind) for kind in _KINDS) for k in node):
        return  # the key that stands in its place is refused by itself
    hint = "add `run:` with its command, `agent:` with a prompt, or `review:` with a question to a human"
    named = len(path) == 2 and path[0] == "nodes"
    message = f"node `{path[-1]}` has nothing to do" if named else "this node has nothing to do"
    yield Fault(path, "no-kind", message, hint, on_key=True)


def names(value: Value | None, path: Path, what: str) -> Iterator[Fault]:
    """Every name of a mapping that is no id, or differs from another only by case."""
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

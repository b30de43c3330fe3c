"""What people say on the command line about a workflow: `-p`, `--params`, `--fail`, node names.

A param is typed by its declaration: a string takes the text as it is, everything else is read as
JSON. All problems are found at once, in the order in which they were written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from dagrun.core.names import Json, Outcome
from dagrun.core.plan import near
from dagrun.core.workflow import param_accepts
from dagrun.errors import InputError, NotFoundError, Problem, UsageError

if TYPE_CHECKING:
    from dagrun.core.workflow import Param, Workflow
    from dagrun.flowfile.source import Value

# What a test may want to see a run survive; the others are the engine's own verdicts.
INJECTABLE = tuple(
    outcome.value
    for outcome in Outcome
    if outcome not in (Outcome.COMPLETED, Outcome.CANCELLED, Outcome.LOST, Outcome.REVIEW_TIMED_OUT, Outcome.REJECTED)
)
_EXAMPLES = {
    "integer": "3",
    "number": "0.5",
    "boolean": "true",
    "array": '["a", "b"]',
    "object": '{"key": "value"}',
    "string": "any text",
}


class _Bad(ValueError):
    """A text that is no value of its param's type."""


def typed_params(
    workflow: Workflow, pairs: Sequence[str], file: str | None, *, complete: bool = True
) -> dict[str, Json]:
    """The params of a run: of `file`, then of `pairs` (`K=V`), which win; defaults are left to the engine.

    Unless `complete`, required ones may be missing. Raises InputError with every problem of
    both, UsageError for an unreadable file.
    """
    problems: list[Problem] = []
    params: dict[str, Json] = _of_file(workflow, file, problems) if file else {}
    tried = set(params)
    for pair in pairs:
        name, equals, text = pair.partition("=")
        tried.add(name)
        param = workflow.params.get(name)
        if not equals:
            message = f"-p {pair} has no value"
            problems.append(Problem(code="bad-param", message=message, hint=f"-p {pair}=VALUE"))
        elif param is None:
            problems.append(_unknown(name, workflow.params))
        else:
            try:
                params[name] = _typed(param, text, plain=True)
            except _Bad as error:
                message = f"param `{name}` {error}, not {_quoted(text)}"
                problems.append(Problem(code="bad-param", message=message, hint=f"-p '{name}={_example(param)}'"))
    for name, param in workflow.params.items():
        if complete and not param.has_default and name not in tried:
            about = f": {param.description}" if param.description else ""
            message = f"param `{name}` ({param.type}) is required{about}"
            problems.append(Problem(code="missing-param", message=message, hint=f"-p '{name}={_example(param)}'"))
    if problems:
        raise InputError(tuple(problems))
    return params


def _of_file(workflow: Workflow, path: str, problems: list[Problem]) -> dict[str, Json]:
    """What a params file gives; its problems are added with file, line and column."""
    from dagrun.core.workflow import Fault
    from dagrun.flowfile.source import parse

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}", hint="--params FILE: a YAML or JSON file") from None
    tree = parse(data, path)
    problems.extend(tree.problems)
    if not isinstance(tree.value, dict):
        problems.append(tree.problem(Fault((), "bad-params", "a params file holds `name: value` lines")))
        return {}
    params: dict[str, Json] = {}
    for name, value in tree.value.items():
        param = workflow.params.get(name)
        if param is None:
            unknown = _unknown(name, workflow.params)
            problems.append(tree.problem(Fault((name,), "unknown-param", unknown.message, unknown.hint, on_key=True)))
            continue
        try:
            params[name] = _from_tree(param, value)
        except _Bad as error:
            params[name] = None
            fault = Fault((name,), "bad-param", f"param `{name}` {error}", f"{name}: {_example(param)}")
            problems.append(tree.problem(fault))
    return params


def _unknown(name: str, params: Mapping[str, Param]) -> Problem:
    if not params:
        hint = "this workflow takes no params"
    else:
        hint = near(name, params) or f"its params are {', '.join(params)}"
    return Problem(code="unknown-param", message=f"the workflow has no param `{name}`", hint=hint)


def _typed(param: Param, text: str, *, plain: bool) -> Json:
    """The value of a text for a param. Raises _Bad that reads on after `param x`."""
    from json import loads

    value: Json = text
    if param.type != "string":
        try:
            value = cast(Json, loads(text, parse_constant=_no_constant)) if plain else text
        except (ValueError, RecursionError):
            value = text
        if param.type in ("integer", "number") and isinstance(value, float) and value != value:
            raise _Bad(f"must be {_kind(param)}")
    if not param_accepts(param, value):
        raise _Bad(f"must be {_kind(param)}")
    return value


def _from_tree(param: Param, value: Value) -> Json:
    from dagrun.flowfile.source import Plain

    if isinstance(value, str):
        return _typed(param, str(value), plain=isinstance(value, Plain))
    made = _untyped(value)
    if not param_accepts(param, made):
        raise _Bad(f"must be {_kind(param)}")
    return made


def _untyped(value: Value) -> Json:
    """JSON of a part of a params file whose type nobody declared: quoted is text, the rest as JSON has it."""
    from json import loads

    from dagrun.flowfile.source import Plain

    if isinstance(value, dict):
        return {key: _untyped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_untyped(item) for item in value]
    if isinstance(value, Plain):
        try:
            return cast(Json, loads(value, parse_constant=_no_constant))
        except ValueError:
            return str(value)
    return str(value)


def _no_constant(name: str) -> Json:
    raise ValueError(name)


def _kind(param: Param) -> str:
    if param.enum:
        return "one of " + ", ".join(_quoted(value) for value in param.enum)
    article = "an" if param.type[0] in "aio" else "a"
    return f"{article} {param.type}"


def _example(param: Param) -> str:
    from json import dumps

    if param.enum:
        first = param.enum[0]
        return first if isinstance(first, str) else dumps(first)
    return _EXAMPLES[param.type]


def _quoted(value: Json) -> str:
    from json import dumps

    text = dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


# ---------------------------------------------------------------- nodes


def injected(workflow: Workflow, texts: Sequence[str]) -> dict[str, list[Json]]:
    """Node → [outcome, attempt] of the `--fail` options `NODE[:OUTCOME[:ATTEMPT]]`.

    Attempt 0 stands for every one. Raises UsageError with what is wrong with the first bad one, NotFoundError
    where it names no node.
    """
    found: dict[str, list[Json]] = {}
    for text in texts:
        node, *rest = text.split(":")
        outcome = rest[0] if rest and rest[0] else Outcome.FAILED.value
        attempt = rest[1] if len(rest) > 1 else "0"
        check_nodes(workflow, "--fail", [node])
        if outcome not in INJECTABLE:
            hint = near(outcome, INJECTABLE) or f"one of {', '.join(INJECTABLE)}"
            raise UsageError(f"--fail {text}: no node can be made to end as {outcome}", hint=hint)
        if len(rest) > 2 or not attempt.isascii() or not attempt.isdigit():
            raise UsageError(f"--fail {text} is not NODE[:OUTCOME[:ATTEMPT]]", hint=f"--fail {node}:{outcome}:1")
        if node in found:
            raise UsageError(f"--fail names {node} twice", hint="one --fail a node")
        found[node] = [outcome, int(attempt)]
    return found


def check_nodes(workflow: Workflow, option: str, names: Iterable[str]) -> None:
    """Raises NotFoundError when an option names a node that the workflow does not have."""
    for name in names:
        if name not in workflow.nodes:
            hint = near(name, workflow.nodes) or f"see its nodes: dagrun plan {workflow.file}"
            raise NotFoundError(f"{option} {name}: the workflow has no node `{name}`", hint=hint)

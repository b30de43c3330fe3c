"""Expressions: `${{ … }}` and bare ones. Text → tree → references, and a value in a scope.

The grammar is GitHub Actions', by a hand-written parser over JSON values; what operators and
functions mean is in `functions.py`. From loosest to tightest: `||`, `&&`, `== !=`, `< <= > >=`,
`!`, then `.name` and `[…]`. `&&` and `||` return an operand and evaluate no more than they must.

Knows neither plans nor files: which names exist is for the plan to check, with `references`.
Invariants: text is at most 4096 characters an expression and 50 levels deep, so no text makes
the parser or evaluator recurse further; what a value holds is never read as an expression again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, cast

from dagrun.core.functions import (
    FUNCTIONS,
    EvaluationError,
    ExpressionError,
    MissingValue,
    checked_text,
    equals,
    index,
    less,
    listed,
    parse_path,
    select,
    to_text,
    truthy,
)
from dagrun.core.parser import has_expression, parse, parse_template
from dagrun.core.tree import (
    CONTEXTS,
    STATUS_FUNCTIONS,
    Access,
    Call,
    Compare,
    Expression,
    Literal,
    Logical,
    Name,
    Not,
    Reference,
    Template,
    functions_used,
    references,
    uses_status_function,
    wants_success,
)

if TYPE_CHECKING:
    from dagrun.core.names import Json

__all__ = [
    "CONTEXTS",
    "STATUS_FUNCTIONS",
    "EvaluationError",
    "Expression",
    "ExpressionError",
    "MissingValue",
    "Reference",
    "Scope",
    "StatusView",
    "Template",
    "evaluate",
    "functions_used",
    "has_expression",
    "parse",
    "parse_path",
    "parse_template",
    "references",
    "render",
    "render_text",
    "render_value",
    "select",
    "to_text",
    "truthy",
    "uses_status_function",
    "wants_success",
]

MAX_VALUE_DEPTH = 100


# ---------------------------------------------------------------- tree → value


@dataclass(frozen=True, slots=True)
class StatusView:
    """What success(), failure() and cancelled() answer; always() is true."""

    success: bool = True
    failure: bool = False
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Everything that an expression can read. `nodes` holds outputs and `status` by node id.

    `hash_files` gets the patterns of hashFiles() and returns the digest; it raises
    EvaluationError when it can't. Without it hashFiles() fails.
    """

    params: Mapping[str, Json] = field(default_factory=dict)
    inputs: Mapping[str, Json] = field(default_factory=dict)
    env: Mapping[str, Json] = field(default_factory=dict)
    run: Mapping[str, Json] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    status: StatusView = StatusView()
    hash_files: Callable[[tuple[str, ...]], str] | None = None


def evaluate(tree: Expression, scope: Scope) -> Json:
    """The value of an expression.

    Raises MissingValue where `params.x`, `inputs.x`, `env.x`, `run.x`, `nodes.a` or `nodes.a.x`
    isn't there (deeper, what is absent is null), EvaluationError where a function can't answer.
    """
    match tree:
        case Access():
            return _access(tree, scope)
        case Literal(value):
            return value
        case Compare(op, left, right):
            return _compare(op, evaluate(left, scope), evaluate(right, scope))
        case Logical(op, operands):
            return _logical(op, operands, scope)
        case Call():
            return _call(tree, scope)
        case Not(operand):
            return not truthy(evaluate(operand, scope))
        case Name(name):
            return {key: _plain(value) for key, value in _context(name, scope).items()}


def _logical(op: str, operands: tuple[Expression, ...], scope: Scope) -> Json:
    """The first operand that settles it, else the last."""
    value: Json = None
    for operand in operands:
        value = evaluate(operand, scope)
        if truthy(value) is (op == "||"):
            break
    return value


def _context(name: str, scope: Scope) -> Mapping[str, Json] | Mapping[str, Mapping[str, Json]]:
    match name:
        case "params":
            return scope.params
        case "inputs":
            return scope.inputs
        case "env":
            return scope.env
        case "run":
            return scope.run
        case _:
            return scope.nodes


def _plain(value: Json | Mapping[str, Json]) -> Json:
    """A mapping of the caller as a JSON object; JSON as it is."""
    return dict(value) if isinstance(value, Mapping) and not isinstance(value, dict) else value


def _access(tree: Access, scope: Scope) -> Json:
    target, steps = tree.target, tree.steps
    if not isinstance(target, Name):
        value, required = evaluate(target, scope), 0
    else:
        required = min(len(steps), 2 if target.name == "nodes" else 1)
        held: Json | Mapping[str, Json] | Mapping[str, Mapping[str, Json]] = _context(target.name, scope)
        path = target.name
        for step in steps[:required]:
            key = to_text(step if isinstance(step, str | int) else evaluate(step, scope))
            inside = cast("Mapping[str, Json]", held)
            if key not in inside:
                _missing(path, key, inside)
            held, path = inside[key], f"{path}.{key}"
        value = _plain(cast("Json", held))
    for step in steps[required:]:
        value = index(value, step if isinstance(step, str | int) else evaluate(step, scope))
    return value


def _missing(path: str, key: str, inside: Mapping[str, Json]) -> NoReturn:
    shown = key if len(key) <= 128 else key[:127] + "…"
    has = "" if path == "env" else f"; there is {listed(inside)}"
    raise MissingValue(f"{path}.{shown}", f"`{path}.{shown}` has no value{has}")


def _compare(op: str, left: Json, right: Json) -> bool:
    match op:
        case "==":
            return equals(left, right)
        case "!=":
            return not equals(left, right)
        case "<":
            return less(left, right)
        case ">":
            return less(right, left)
        case "<=":
            return less(left, right) or equals(left, right)
        case _:
            return less(right, left) or equals(left, right)


def _call(tree: Call, scope: Scope) -> Json:
    function = FUNCTIONS.get(tree.function)
    if function is not None:
        return function([evaluate(arg, scope) for arg in tree.args])
    match tree.function:
        case "success":
            return scope.status.success
        case "failure":
            return scope.status.failure
        case "cancelled":
            return scope.status.cancelled
        case "always":
            return True
        case "default":
            return _default(tree, scope)
        case _:
            if scope.hash_files is None:
                raise EvaluationError("hashFiles() can't be used here")
            return scope.hash_files(tuple(to_text(evaluate(arg, scope)) for arg in tree.args))


def _default(tree: Call, scope: Scope) -> Json:
    """The first argument unless it is null or reads something missing; then the second."""
    try:
        value = evaluate(tree.args[0], scope)
    except MissingValue:
        value = None
    return evaluate(tree.args[1], scope) if value is None else value


def render(template: Template, scope: Scope) -> Json:
    """The value of a template: exactly one expression gives its JSON value, anything else text."""
    parts = template.parts
    if len(parts) == 1:
        part = parts[0]
        return part if isinstance(part, str) else evaluate(part, scope)
    return checked_text([part if isinstance(part, str) else to_text(evaluate(part, scope)) for part in parts])


def render_text(template: Template, scope: Scope) -> str:
    """The value of a template as text."""
    return to_text(render(template, scope))


def render_value(value: Json, scope: Scope) -> Json:
    """Literal JSON with every string in it rendered once; keys stay as they are.

    Raises what `parse_template` and `evaluate` raise, EvaluationError beyond MAX_VALUE_DEPTH levels.
    """
    return _render_value(value, scope, MAX_VALUE_DEPTH)


def _render_value(value: Json, scope: Scope, depth: int) -> Json:
    if isinstance(value, str):
        return render(parse_template(value), scope) if "${{" in value else value
    if not isinstance(value, list | dict):
        return value
    if depth == 0:
        raise EvaluationError(f"the value is nested more than {MAX_VALUE_DEPTH} deep")
    if isinstance(value, list):
        return [_render_value(item, scope, depth - 1) for item in value]
    return {key: _render_value(item, scope, depth - 1) for key, item in value.items()}

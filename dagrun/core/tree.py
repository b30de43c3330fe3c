"""The tree of an expression, and what can be read off it without a value: references, functions.

Knows neither text nor values. Invariant: a tree is at most 50 levels deep (the parser holds it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from typing import Literal as OneOf

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXTS = ("params", "inputs", "env", "run", "nodes")
STATUS_FUNCTIONS = frozenset({"success", "failure", "always", "cancelled"})


# ---------------------------------------------------------------- the tree


@dataclass(frozen=True, slots=True)
class Literal:
    """A value written in the text."""

    value: bool | int | float | str | None
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Name:
    """A whole context: `params`."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Access:
    """`target` followed by properties and indices; a step is an Expression only where it isn't static."""

    target: Expression
    steps: tuple[str | int | Expression, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Not:
    operand: Expression
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Compare:
    op: OneOf["==", "!=", "<", "<=", ">", ">="]
    left: Expression
    right: Expression
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Logical:
    """`a && b && c` or `a || b || c`, flat."""

    op: OneOf["&&", "||"]
    operands: tuple[Expression, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function, under its proper name, with as many arguments as it takes."""

    function: str
    args: tuple[Expression, ...]
    offset: int
    length: int


Expression: TypeAlias = Literal | Name | Access | Not | Compare | Logical | Call


@dataclass(frozen=True, slots=True)
class Template:
    """Text with expressions in it; offsets inside count from the start of the whole text."""

    parts: tuple[str | Expression, ...]

    @property
    def is_literal(self) -> bool:
        """Whether there is no expression in it."""
        return all(isinstance(part, str) for part in self.parts)


class Reference(NamedTuple):
    """A place where a context is read: `path` as far as it is static (`("nodes", "fetch", "items", "0")`)."""

    path: tuple[str, ...]
    offset: int
    length: int


def children(tree: Expression) -> tuple[Expression, ...]:
    match tree:
        case Access(target, steps):
            return (target, *(step for step in steps if not isinstance(step, str | int)))
        case Compare(_, left, right):
            return (left, right)
        case Logical(_, operands):
            return operands
        case Call(_, args):
            return args
        case Not(operand):
            return (operand,)
        case Literal() | Name():
            return ()


# ---------------------------------------------------------------- what it reads


def _walk(source: Expression | Template) -> Iterator[Expression]:
    """Every node, in the order of the text."""
    trees = source.parts if isinstance(source, Template) else (source,)
    todo = [tree for tree in reversed(trees) if not isinstance(tree, str)]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(reversed(children(node)))


def references(source: Expression | Template) -> tuple[Reference, ...]:
    """Every read of a context, in the order of the text, repeats included.

    A path stops before the first step that isn't static: `inputs[params.k].x` gives `("inputs",)`
    and `("params", "k")`. Numbers are in it as text.
    """
    found: list[Reference] = []
    skip: Expression | None = None
    for node in _walk(source):
        if isinstance(node, Access) and isinstance(node.target, Name):
            skip = node.target
            path = [skip.name]
            for step in node.steps:
                if not isinstance(step, str | int):
                    break
                path.append(str(step))
            found.append(Reference(tuple(path), node.offset, node.length))
        elif isinstance(node, Name) and node is not skip:
            found.append(Reference((node.name,), node.offset, node.length))
    return tuple(found)


def functions_used(source: Expression | Template) -> frozenset[str]:
    """The names of the functions that are called in it."""
    return frozenset(node.function for node in _walk(source) if isinstance(node, Call))


def uses_status_function(source: Expression | Template) -> bool:
    """Whether it asks how things went (success, failure, always, cancelled): no implied `success()` then."""
    return not STATUS_FUNCTIONS.isdisjoint(functions_used(source))


def wants_success(tree: Expression) -> bool:
    """Whether an `if` can't hold once a need did not succeed: it asks for success, or says nothing of it."""
    parts = tree.operands if isinstance(tree, Logical) and tree.op == "&&" else (tree,)
    if any(isinstance(part, Call) and part.function == "success" for part in parts):
        return True
    return not uses_status_function(tree)

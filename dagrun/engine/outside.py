"""What a prompt was made of that no output, parameter or skill explains: digests of files, the caller's environment.

Such values are kept as the attempt begins, secrets masked, so that an audit can make the prompt again on another
day and another machine. Values that the journal has anyway are not kept twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias, cast

from dagrun.core import expression as ex
from dagrun.core.names import Json
from dagrun.core.tree import Call, Expression, children
from dagrun.core.workflow import Input, Node
from dagrun.engine.bench import Workbench

Hash: TypeAlias = Callable[[tuple[str, ...]], str]


class Hashes:
    """hashFiles() that remembers what it gave."""

    def __init__(self, hash_files: Hash | None) -> None:
        self._hash = hash_files
        self.given: dict[str, Json] = {}

    def __call__(self, patterns: tuple[str, ...]) -> str:
        """The digest of some files. Raises EvaluationError."""
        if self._hash is None:
            raise ex.EvaluationError("hashFiles() can't be used here")
        found = self._hash(patterns)
        self.given[_key(patterns)] = found
        return found


def kept(
    bench: Workbench, node: Node, inputs: Mapping[str, Json], own: Mapping[str, str], hashes: Hashes
) -> dict[str, Json]:
    """What an attempt read from outside, for the journal: `inputs` and `env` by name, `hashes` by their patterns."""

    def stored(value: Json) -> Json:
        return dict(bench.context.put(bench.mask.value(value) if bench.mask else value))

    found: dict[str, Json] = {
        "inputs": {name: stored(inputs[name]) for name, item in node.inputs.items() if of_input(item)},
        "env": {name: stored(own[name]) for name, text in node.env.items() if of_value(text)},
        "hashes": dict(hashes.given),
    }
    return {name: values for name, values in found.items() if values}


def known_hashes(outside: Mapping[str, Json], hash_files: Hash) -> Hash:
    """hashFiles() as it was when an attempt began; what is not kept is asked for now."""
    given = cast("Mapping[str, str]", outside.get("hashes") or {})

    def hashed(patterns: tuple[str, ...]) -> str:
        known = given.get(_key(patterns))
        return known if known is not None else hash_files(patterns)

    return hashed


def _key(patterns: tuple[str, ...]) -> str:
    return json.dumps(list(patterns))


# ---------------------------------------------------------------- what depends on it


def of_node(node: Node) -> tuple[str, ...]:
    """What the prompt of an agent may depend on from outside, in words: `hashFiles()`, `env.HOME`."""
    found = [what for item in node.inputs.values() for what in of_input(item)]
    found += [what for text in node.env.values() for what in of_value(text)]
    if node.agent is not None:
        found += [what for what in of_value(node.agent.prompt) if what == _HASH]
    return tuple(dict.fromkeys(found))


def of_input(item: Input) -> tuple[str, ...]:
    """The same for an input."""
    trees = [ex.parse(item.expression)] if item.expression else _trees(item.value)
    return tuple(dict.fromkeys(what for tree in trees for what in _reads(tree)))


def of_value(value: Json) -> tuple[str, ...]:
    """The same for a value whose strings may hold expressions."""
    return tuple(dict.fromkeys(what for tree in _trees(value) for what in _reads(tree)))


_HASH = "hashFiles()"


def _reads(tree: Expression) -> Iterator[str]:
    for reference in ex.references(tree):
        if reference.path[0] == "env":
            yield ".".join(reference.path[:2])
    if _hashes(tree):
        yield _HASH


def _hashes(tree: Expression) -> bool:
    return (isinstance(tree, Call) and tree.function == "hashFiles") or any(map(_hashes, children(tree)))


def _trees(value: Json) -> Iterator[Expression]:
    match value:
        case str():
            yield from (part for part in ex.parse_template(value).parts if not isinstance(part, str))
        case dict():
            for part in value.values():
                yield from _trees(part)
        case list():
            for part in value:
                yield from _trees(part)

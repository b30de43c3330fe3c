"""Deep merge on the written form: what `set` and `unset` of a patch mean.

Mappings merge, lists and scalars replace. Works on trees of source text (`Value`), so that what a
patch says is typed by the key that it meets, and on the long form of a node, so that one key of an
input in its short form can be changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from dagrun.core.names import Json
from dagrun.core.workflow import Fault
from dagrun.flowfile.source import Plain, Value

Path = tuple[str | int, ...]


def tree_of(document: Json) -> Value:
    """A JSON document as the tree that reading its text gives."""
    if isinstance(document, dict):
        return {key: tree_of(value) for key, value in document.items()}
    if isinstance(document, list):
        return [tree_of(value) for value in document]
    if isinstance(document, str):
        return document
    if isinstance(document, bool):
        return Plain("true" if document else "false")
    return Plain("null" if document is None else repr(document))


def merged(base: dict[str, Value], changes: dict[str, Value]) -> dict[str, Value]:
    """`base` with `changes` merged in; neither is changed."""
    made = dict(base)
    for key, value in changes.items():
        old = made.get(key)
        made[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    if len(made) > len(base) and "from" in made and "value" in made:
        # an input has one of them: the one that is new wins
        made.pop("from" if "value" in changes else "value")
    return made


def without(base: dict[str, Value], unset: Iterable[str], path: Path, faults: list[Fault]) -> dict[str, Value]:
    """`base` without the keys that dotted paths lead to; one that leads nowhere is a fault at its place."""
    made = dict(base)
    for at, dotted in enumerate(unset):
        steps = dotted.split(".")
        holder = made
        for step in steps[:-1]:
            inner = holder.get(step)
            if not isinstance(inner, dict):
                break
            inner = dict(inner)
            holder[step] = inner
            holder = inner
        else:
            if steps[-1] in holder:
                del holder[steps[-1]]
                continue
        from dagrun.flowfile.words import meant

        known = meant(dotted, _dotted(base)) or "what is not written can't be dropped"
        faults.append(Fault((*path, at), "nothing-to-unset", f"there is no `{dotted}` to drop", known))
    return made


def _dotted(value: Value, prefix: str = "") -> list[str]:
    found: list[str] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += [prefix + key, *_dotted(inner, f"{prefix}{key}.")]
    return found[:1000]


def canonical(changes: Value, document: Json) -> Json:
    """What `changes` says, in the spelling that `document`, which came out of it, has for it.

    A `set` is kept in the history as JSON; `3.10` for an environment variable has to stay text, for a
    factor a number, and only the document knows which.
    """
    if isinstance(changes, dict) and isinstance(document, dict):
        return {key: canonical(value, document.get(key, MISSING)) for key, value in changes.items()}
    if document is not MISSING:
        return document
    from dagrun.flowfile.fields import Wrong, json

    try:
        return json(changes)
    except Wrong:
        return None


MISSING: Json = "\0missing"  # no text of a file holds a NUL

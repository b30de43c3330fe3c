"""Resources by name: what there is, what a node reserves, and its ceilings; source text in, numbers out."""

from __future__ import annotations

from collections.abc import Callable

from dagrun.core.names import is_id
from dagrun.flowfile import fields
from dagrun.flowfile.source import Value

MOST_PIDS = 4_194_304  # the kernel's own limit
LEAST_MEMORY = 1 << 20  # no program starts with less: it was meant in mebibytes


def amounts(value: Value) -> dict[str, float]:
    """What there is to reserve, by name: memory in bytes, any other as a number of units."""
    return _amounts(value, _reserved)


def ceilings(value: Value) -> dict[str, float]:
    """What a node reserves, by name, and its ceilings: `pids`, `file_size` and `output`."""
    return _amounts(value, _held)


def _amounts(value: Value, one: Callable[[str, Value], float]) -> dict[str, float]:
    if not isinstance(value, dict):
        raise fields.wrong(
            f"a mapping of resources is wanted here, not {fields.describe(value)}", "write {cpu: 2, memory: 512M}"
        )
    got: dict[str, float] = {}
    defects: list[fields.Defect] = []
    for name, item in value.items():
        if not is_id(name):
            defects.append(fields.Defect(f"`{name}` is no id", fields.id_rule(name), (name,), "bad-id", True))
        try:
            got[name] = one(name, item)
        except fields.Wrong as error:
            defects += [d._replace(at=(name, *d.at)) for d in error.defects]
    if defects:
        raise fields.Wrong(*defects)
    return got


def _reserved(name: str, item: Value) -> float:
    if name in ("pids", "file_size"):
        hint = f"write it at the node, or in every node: resources: {{{name}: …}}"
        raise fields.Wrong(
            fields.Defect(f"`{name}` is a ceiling of a node, there is nothing to reserve of it", hint, on_key=True)
        )
    return fields.size(item) if name == "memory" else fields.number(item, least=0)


def _held(name: str, item: Value) -> float:
    if name in ("memory", "file_size", "output"):
        got = fields.size(item)
        if name == "memory" and got < LEAST_MEMORY:
            hint = f"write {item}M for mebibytes" if str(item).isdigit() else "write 512M, 2Gi or a number of bytes"
            raise fields.wrong(f"{fields.describe(item)} is {got:,} bytes: no program starts with so little", hint)
        return got
    if name == "pids":
        return fields.integer(item, least=1, most=MOST_PIDS)
    amount = fields.number(item, least=0)
    if name == "cpu" and not amount:
        raise fields.wrong("with no cpu at all it could never run", "write 0.5 for half a core")
    return amount

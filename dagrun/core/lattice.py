"""The lattice of permissions: a scope inside another only ever gets less.

What a scope does not say is the parent's; what no scope says has a default. The outermost scope that
declares `paths` declares all of it: what it leaves out of read and write is a ceiling too (`rooted`).
`meet` is what two scopes have in common, `effective` what a node ends up with. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

from dagrun.core.grants import call_of, common_calls, common_hosts, common_models, host_of, joined
from dagrun.core.permissions import (
    NO_PERMISSIONS,
    Effective,
    Isolation,
    Network,
    Paths,
    Permissions,
    higher,
)
from dagrun.core.roots import Root, common, covers, deepest, denied_of, denied_text, inside, root_of

T = TypeVar("T")


class Held(NamedTuple):
    """One line of what a node ends up with: its key, the value as text, and which scope gave it."""

    key: str
    text: str
    why: str


# ---------------------------------------------------------------- the lattice


def meet(parent: Permissions, child: Permissions) -> Permissions:
    """What two scopes both allow, in one canonical form: never wider than either.

    Commutative, associative and idempotent. What a scope does not say is everything, but who says
    only what may be read lets nothing else be written. Patterns of which neither holds the other
    have nothing in common.
    """
    return Permissions(
        tools=_both(parent.tools, child.tools, _meet_tools),
        paths=_both(parent.paths, child.paths, _meet_paths),
        models=_both(parent.models, child.models, _meet_models),
        network=_both(parent.network, child.network, _meet_networks),
        cost_budget=_both(parent.cost_budget, child.cost_budget, min),
        isolation=_both(parent.isolation, child.isolation, higher),
    )


def inherit(parent: Permissions, child: Permissions) -> Permissions:
    """What a scope declares, with the parent's value wherever it says nothing."""
    paths = child.paths or parent.paths
    if child.paths is not None and parent.paths is not None:
        mine, above = child.paths, parent.paths
        paths = Paths(
            read=above.read if mine.read is None else mine.read,
            write=above.write if mine.write is None else mine.write,
            deny=tuple(dict.fromkeys((*above.deny, *mine.deny))),
        )
    return Permissions(
        tools=parent.tools if child.tools is None else child.tools,
        paths=paths,
        models=parent.models if child.models is None else child.models,
        network=parent.network if child.network is None else child.network,
        cost_budget=parent.cost_budget if child.cost_budget is None else child.cost_budget,
        isolation=parent.isolation if child.isolation is None else child.isolation,
    )


def _both(a: T | None, b: T | None, common_part: Callable[[T, T], T]) -> T | None:
    """The common part of two values, also of one with itself: None says nothing."""
    left, right = (b if a is None else a), (a if b is None else b)
    return None if left is None or right is None else common_part(left, right)


def _meet_tools(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(map(str, joined(map(call_of, a), map(call_of, b), common_calls))))


def _meet_models(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(joined(a, b, common_models)))


def _meet_networks(a: Network, b: Network) -> Network:
    if a == "any" and b == "any":
        return "any"
    left, right = hosts(b if a == "any" else a), hosts(a if b == "any" else b)
    return tuple(sorted(map(str, joined(map(host_of, left), map(host_of, right), common_hosts)))) or "none"


def hosts(network: Network) -> tuple[str, ...]:
    """The list of a network that is not `any`."""
    return () if isinstance(network, str) else network


def reach(paths: Paths) -> tuple[tuple[Root, ...] | None, tuple[Root, ...] | None]:
    """The roots that may be read and those that may be written; None is everything.

    A write root can be read too, and where only `read` is said nothing else can be written.
    """
    write = None if paths.write is None else deepest(map(root_of, paths.write))
    if paths.read is None:
        return None, write
    read = deepest([*map(root_of, paths.read), *(write or ())])
    return read, read if write is None else write


def _meet_paths(a: Paths, b: Paths) -> Paths:
    (read_a, write_a), (read_b, write_b) = reach(a), reach(b)
    read, write = _both(read_a, read_b, common), _both(write_a, write_b, common)
    unsaid = a.write is None and b.write is None
    kept = None if read is None else [r for r in read if unsaid or not any(inside(r, w) for w in write or ())]
    return Paths(
        read=None if kept is None else tuple(sorted(map(str, kept))),
        write=None if unsaid or write is None else tuple(sorted(map(str, write))),
        deny=_deny((*a.deny, *b.deny)),
    )


def _deny(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The union of `deny` patterns, without those that another one covers."""
    found = list(dict.fromkeys(map(denied_of, texts)))
    kept = [d for d in found if not any(e != d and covers(e, d) for e in found)]
    return tuple(sorted(map(denied_text, kept)))


# ---------------------------------------------------------------- what a node ends up with


def rooted(run: Permissions | None) -> Permissions:
    """The permissions of a run as a ceiling: with `paths` the project may be read and nothing written.

    Nothing is above a run, so that what its `paths` leave out is not the parent's but nothing.
    """
    if run is None or run.paths is None or None not in (run.paths.read, run.paths.write):
        return run or NO_PERMISSIONS
    read = (".",) if run.paths.read is None else run.paths.read
    return replace(run, paths=Paths(read=read, write=run.paths.write or (), deny=run.paths.deny))


@lru_cache(maxsize=512)
def effective(run: Permissions | None, own: Permissions | None, isolation: Isolation) -> Effective:
    """What a node ends up with: its run's permissions, its own, and the level that it asks for.

    Defaults where no scope says anything: the project can be read, nothing written and nothing
    reached as soon as `paths` is declared or the level is container; else neither is held. With
    `paths` or `network` to hold the level is process at least.
    """
    above = rooted(run)
    both = meet(above, inherit(above, own)) if own is not None else meet(above, above)
    level = higher(isolation, both.isolation or "none")
    paths, network = both.paths, both.network
    if paths is not None or network is not None:
        level = higher(level, "process")  # a check refused it before; here nothing runs unheld
    if paths is None and level == "container":
        paths = Paths()
    if paths is not None:
        read = (".",) if paths.read is None else paths.read
        paths = Paths(read=read, write=paths.write or (), deny=paths.deny)
        network = "none" if network is None else network
    return Effective(
        isolation=level,
        paths=paths,
        network=network,
        tools=both.tools,
        models=both.models,
        cost_budget=both.cost_budget,
    )


def for_agent(got: Effective) -> Effective:
    """What an agent's tools are held to: at process and above always to paths and a network.

    Where no scope says anything that is the project to read, nothing to write and nobody to talk to.
    """
    if got.isolation not in ("process", "container"):
        return got
    paths = Paths(read=(".",), write=()) if got.paths is None else got.paths
    return replace(got, paths=paths, network="none" if got.network is None else got.network)


def as_scope(got: Effective) -> Permissions:
    """What a node ends up with, as the scope that is the parent of what it inserts."""
    return Permissions(
        tools=got.tools,
        paths=got.paths,
        models=got.models,
        network=got.network,
        cost_budget=got.cost_budget,
        isolation=None if got.isolation == "none" else got.isolation,
    )


_DEFAULT = "default where paths is declared"
_DEFAULT_CONTAINER = "default of a container"
_DEFAULT_AGENT = "default of an agent"


def explain(
    run: Permissions | None, own: Permissions | None, isolation: Isolation, *, agent: bool = False
) -> tuple[Held, ...]:
    """What a node ends up with, key by key, and which scope gave each; keys that nothing holds are left out."""
    got = effective(run, own, isolation)
    got = for_agent(got) if agent else got
    above, mine = run or NO_PERMISSIONS, own or NO_PERMISSIONS
    unsaid = _DEFAULT_AGENT if agent else _DEFAULT_CONTAINER
    why = _DEFAULT if above.paths or mine.paths else unsaid
    level = Held("isolation", got.isolation, _why_level(above, mine, isolation, got))
    return (level, *_explain(above, mine, got, why))


def _explain(run: Permissions, own: Permissions, got: Effective, why: str) -> Iterator[Held]:
    if got.paths is not None:
        mine, above = own.paths or Paths(), run.paths or Paths()
        yield Held("paths.read", items(got.paths.read), _who(mine.read, above.read) or why)
        yield Held("paths.write", items(got.paths.write), _who(mine.write, above.write) or why)
        if got.paths.deny:
            scopes = [name for name, paths in (("workflow", above), ("node", mine)) if paths.deny]
            yield Held("paths.deny", items(got.paths.deny), " and ".join(scopes))
    if got.network is not None:
        text = got.network if isinstance(got.network, str) else items(got.network)
        yield Held("network", text, _who(own.network, run.network) or why)
    if got.tools is not None:
        yield Held("tools", items(got.tools), _who(own.tools, run.tools))
    if got.models is not None:
        yield Held("models", items(got.models), _who(own.models, run.models))
    if got.cost_budget is not None:
        yield Held("cost_budget", dollars(got.cost_budget), _who(own.cost_budget, run.cost_budget))


def _who(own: object, run: object) -> str:
    """The innermost scope that says something; it asks for no more than those around it."""
    return "node" if own is not None else "workflow" if run is not None else ""


def _why_level(run: Permissions, own: Permissions, isolation: Isolation, got: Effective) -> str:
    if got.isolation == isolation and isolation != "process":
        return "node"
    floors = [
        name for name, scope in (("workflow", run), ("node", own)) if scope.isolation == got.isolation != isolation
    ]
    return f"floor of the {floors[0]}" if floors else "default"


def items(texts: tuple[str, ...] | None) -> str:
    """A list of a permission as text."""
    return ", ".join(texts or ()) or "nothing"


def dollars(nano: int) -> str:
    """An amount in nano-dollars as text, to the last digit."""
    whole, rest = divmod(nano, 10**9)
    cents = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"${whole}.{cents}"

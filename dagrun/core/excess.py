"""What one scope asks for beyond another: the order of the lattice, with words for each refusal.

Pure and by text alone; where it can't be told whether one holds the other, it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dagrun.core.grants import call_of, common_calls, common_hosts, common_models, host_of
from dagrun.core.lattice import dollars, hosts, reach
from dagrun.core.permissions import LEVELS, Network, Paths, Permissions
from dagrun.core.roots import Denied, Root, covers, denied_of, denied_text, denies, inside, literal, root_of

_SHOWN = 8  # more of a list are only counted


class Excess(NamedTuple):
    """Something that a scope asks for beyond the one above it.

    `path` is the key below `permissions`. `asked` and `allowed` are words for a sentence: "… asks
    to write `src`, but … allows only `out`"; `hint` is for what can't be compared.
    """

    path: tuple[str | int, ...]
    asked: str
    allowed: str
    hint: str = ""


def leq(child: Permissions, parent: Permissions) -> bool:
    """Whether one allows nothing that the other does not; what either does not say is everything.

    A partial order up to meaning: reflexive, transitive, and both ways only for the same meaning.
    """
    return not widened(child, parent)


def widened(child: Permissions, parent: Permissions) -> tuple[Excess, ...]:
    """Everything that one allows and the other does not, said or unsaid."""
    return tuple(_beyond(child, parent, whole=True))


def excess(child: Permissions, parent: Permissions) -> tuple[Excess, ...]:
    """Everything that a scope asks for beyond its parent; what it does not say is the parent's and no excess."""
    return tuple(_beyond(child, parent, whole=False))


def _beyond(child: Permissions, parent: Permissions, *, whole: bool) -> Iterator[Excess]:
    yield from _listed("tools", "tool", child.tools, parent.tools, whole, _holds_call)
    if parent.paths is not None:
        if whole:
            yield from _wider_paths(child.paths or Paths(), parent.paths)
        elif child.paths is not None:
            yield from _asked_paths(child.paths, parent.paths)
    yield from _listed("models", "model", child.models, parent.models, whole, _holds_model)
    yield from _networks(child.network, parent.network, whole)
    if parent.cost_budget is not None and (whole or child.cost_budget is not None):
        if child.cost_budget is None:
            yield Excess(("cost_budget",), "for any cost budget", dollars(parent.cost_budget))
        elif child.cost_budget > parent.cost_budget:
            asked = f"for a cost budget of {dollars(child.cost_budget)}"
            yield Excess(("cost_budget",), asked, dollars(parent.cost_budget))
    if parent.isolation is not None and (whole or child.isolation is not None):
        level = child.isolation or "none"
        if LEVELS.index(level) < LEVELS.index(parent.isolation):
            yield Excess(("isolation",), f"for isolation `{level}`", f"`{parent.isolation}` or more")


# ---------------------------------------------------------------- lists


def _holds_call(wide: str, narrow: str) -> bool:
    call = call_of(narrow)
    return common_calls(call_of(wide), call) == call


def _holds_model(wide: str, narrow: str) -> bool:
    return common_models(wide, narrow) == narrow


def _holds_host(wide: str, narrow: str) -> bool:
    host = host_of(narrow)
    return common_hosts(host_of(wide), host) == host


def _listed(
    key: str,
    what: str,
    child: tuple[str, ...] | None,
    parent: tuple[str, ...] | None,
    whole: bool,
    holds: Callable[[str, str], bool],
) -> Iterator[Excess]:
    """Items of a list that no item of the parent's holds."""
    if parent is None or (child is None and not whole):
        return
    if child is None:
        yield Excess((key,), f"for every {what}", _only(parent))
        return
    for k, text in enumerate(child):
        if not any(holds(wide, text) for wide in parent):
            yield Excess((key, k), f"for {what} `{text}`", _only(parent))


def _networks(child: Network | None, parent: Network | None, whole: bool) -> Iterator[Excess]:
    if parent is None or parent == "any" or (child is None and not whole):
        return
    if child is None or child == "any":
        yield Excess(("network",), "for network `any`", _only(hosts(parent)) if hosts(parent) else "no network")
        return
    for part in _listed("network", "host", hosts(child), hosts(parent), whole, _holds_host):
        yield part if hosts(parent) else part._replace(allowed="no network")


def _only(texts: tuple[str, ...]) -> str:
    """A list of a parent as words."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "only " + ", ".join(f"`{text}`" for text in texts[:_SHOWN]) + more if texts else "nothing"


# ---------------------------------------------------------------- paths


def _asked_paths(child: Paths, parent: Paths) -> Iterator[Excess]:
    """Roots of a child, one by one, that its parent does not have or denies."""
    read, write = reach(parent)
    denied = [denied_of(text) for text in parent.deny]
    for key, texts, allowed in (("read", child.read, read), ("write", child.write, write)):
        for k, text in enumerate(texts or ()):
            root = root_of(text)
            if allowed is not None and not any(inside(root, wide) for wide in allowed):
                yield Excess(("paths", key, k), f"to {key} `{text}`", _roots_text(allowed), _why_not(root, allowed))
            elif gone := next((d for d in denied if denies(d, root)), None):
                yield Excess(("paths", key, k), f"to {key} `{text}`", f"nothing that `{denied_text(gone)}` denies")


def _roots_text(roots: tuple[Root, ...]) -> str:
    return _only(tuple(map(str, roots)))


def _why_not(root: Root, allowed: tuple[Root, ...]) -> str:
    """A word on roots that might be the same place and can't be told from their text."""
    if allowed and all(root.anchor != wide.anchor for wide in allowed):
        return "relative, absolute and `~` paths are not compared: write both the same way"
    if any(literal(wide) != wide and inside(root, literal(wide)) for wide in allowed):
        return "inside a glob is only the same glob: write it as above, or grant the directory there"
    return ""


def _wider_paths(child: Paths, parent: Paths) -> Iterator[Excess]:
    """What a child allows and its parent does not; unsaid is everything, on both sides."""
    own = [denied_of(text) for text in child.deny]
    (read, write), (may_read, may_write) = reach(child), reach(parent)
    left = None if read is None else tuple(r for r in read if not any(denies(d, r) for d in own))
    for key, roots, allowed in (("read", left, may_read), ("write", write, may_write)):
        if allowed is None:
            continue
        if roots is None:
            yield Excess(("paths", key), f"to {key} everything", _roots_text(allowed))
            continue
        for root in roots:
            if not any(inside(root, wide) for wide in allowed) and not any(denies(d, root) for d in own):
                yield Excess(("paths", key), f"to {key} `{root}`", _roots_text(allowed))
    for text in parent.deny:
        denied = denied_of(text)
        if not any(covers(mine, denied) for mine in own) and _reaches(left, denied):
            yield Excess(("paths", "deny"), f"for what `{text}` denies", "nothing of it")


def _reaches(granted: tuple[Root, ...] | None, denied: Denied) -> bool:
    """Whether something that a pattern denies may be among what is granted."""
    if granted is None or isinstance(denied, str):
        return granted != ()
    return any(_may_meet(root, denied) for root in granted)


def _may_meet(a: Root, b: Root) -> bool:
    """Whether two places may have something in common; only their text is known."""
    if a.anchor != b.anchor:
        return True
    a, b = literal(a), literal(b)
    return inside(a, b) or inside(b, a)

"""What must not be seen although a grant holds it: hidden folders, what `deny` means, files with keys.

Gives paths; how one is made unreadable is the matter of a back end. Covers what exists when it is
asked. Knows no write grants and nothing of what is only protected.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dagrun.core.roots import KEY_NAMES, Denied, Root, denied_of, is_key
from dagrun.sandbox.grants_open import Budget, TooMuch, below, expand, fits_name, named_below, names_in, place_of, real
from dagrun.sandbox.wall import Refused, Spec

MAX_COVERS = 256  # each is a mount: 0.1 ms of every start
_FIXED_KEYS = tuple(sorted(name for name in KEY_NAMES if "*" not in name))
# What every sandbox shows beside its grants: `deny` holds there too.
SYSTEM = ("/usr", "/etc")


class Cover(NamedTuple):
    """Something that must not be read: `folder` tells whether it is one; `hidden` that not even names may show."""

    path: str
    folder: bool
    hidden: bool = False


class Covers:
    """Collects what lies inside `roots` and must not be seen; the outermost of it, in order."""

    def __init__(self, roots: Iterable[str], project: str, home: str) -> None:
        self.roots = tuple(roots)
        self._project = project
        self._home = home
        self._found: dict[str, Cover] = {}
        self.denied_roots: set[str] = set()

    def all(self) -> tuple[Cover, ...]:
        """What is to be covered: nothing that lies below another cover. Raises Refused when it is too much."""
        kept: list[Cover] = []
        for path in sorted(self._found, key=lambda p: p.split("/")):
            if not kept or not below(path, kept[-1].path):
                kept.append(self._found[path])
        if len(kept) > MAX_COVERS:
            raise Refused(
                f"permissions.paths.deny means {len(kept)} files in the grants; {MAX_COVERS} can be covered at most",
                "deny the directories that they are in, or grant less",
            )
        return tuple(kept)

    def hide(self, paths: Iterable[str]) -> None:
        """Paths that must not be visible at all."""
        for path in paths:
            for spelt in {os.path.normpath(path), real(path)}:
                self._add(spelt, hidden=True)

    def deny(self, spec: Spec) -> None:
        """What the `deny` patterns mean. Raises Refused when there is too much to look at."""
        if not spec.deny:
            return
        meant = [denied_of(text) for text in spec.deny]
        names = frozenset(d for d in meant if isinstance(d, str))
        budget = Budget()
        try:
            for path in (*self._places(meant, budget), *self._named(names, budget)):
                self._add(path)
                self._add(real(path))  # a link is denied with what it leads to
        except TooMuch as much:
            raise Refused(
                f"permissions.paths.deny would have to look at all of {much.path}, which holds too many files",
                "anchor the pattern with a slash (config/.env), or grant less",
            ) from None

    def _places(self, meant: list[Denied], budget: Budget) -> Iterator[str]:
        for denied in meant:
            if isinstance(denied, Root):
                yield from expand(place_of(denied, self._project, self._home), budget, dots=True)

    def _named(self, names: frozenset[str], budget: Budget) -> Iterator[str]:
        if not names:
            return
        for root in self.roots:
            parts = root[len(self._project) :].split("/") if below(root, self._project) else [os.path.basename(root)]
            if any(part and fits_name(part, names) for part in parts):
                self.denied_roots.add(root)
            else:
                yield from named_below(root, names, budget, frozenset(self.roots))

    def keys(self, root: str, fd: int) -> None:
        """Files with keys directly inside the granted folder `root`, unless a grant names them."""
        entries = names_in(fd)
        names = (*_FIXED_KEYS, ".dagrun") if entries is None else [entry.name for entry in entries]
        for name in names:
            path = f"{root.rstrip('/')}/{name}"
            if name == ".dagrun":  # of another project: nobody's journal is for a node
                self.hide([path])
            if is_key(name) and path not in self.roots:
                self._add(path)
                self._add(real(path), unless_root=True)

    def _add(self, path: str, *, hidden: bool = False, unless_root: bool = False) -> None:
        if unless_root and path in self.roots:
            return
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return
        self.denied_roots.update([root for root in self.roots if below(root, path)])
        visible = any(below(path, root) for root in (*self.roots, *SYSTEM))
        if visible and not stat.S_ISLNK(mode):  # nothing can be put over a link: what it leads to is covered
            known = self._found.get(path)
            self._found[path] = Cover(path, stat.S_ISDIR(mode), hidden or (known is not None and known.hidden))

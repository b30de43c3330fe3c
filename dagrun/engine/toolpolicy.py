"""What the tools of an agent hold to by themselves: the roots of its node as text, for the tool worker.

At levels with walls the kernel holds the same; at the others this is all there is, and Bash is not
held by it. Stricter than the walls where it costs nothing: files with keys are denied at every depth.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dagrun.core.lattice import effective
from dagrun.core.permissions import Paths
from dagrun.core.roots import KEY_NAMES, NO_KEYS, denied_of, is_glob, root_of
from dagrun.core.workflow import Node, Workflow
from dagrun.engine.bench import Workbench
from dagrun.sandbox.grants import home_of_user
from dagrun.sandbox.grants_open import Budget, TooMuch, expand, place_of, real
from dagrun.sandbox.grants_protect import PROTECTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The arguments of agent/beneath.Roots; `cwd`, `read` and `write` have no links in them."""

    cwd: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


def policy_of(bench: Workbench, workflow: Workflow, node: Node, *, cwd: str = "") -> Policy:
    """The policy of a node's tools: by default the project may be read and nothing written.

    `cwd` is where they work (the project, if ""). What a pattern means is looked up now.
    """
    from dagrun.engine.confine import hidden_of, protected_of

    project, home = real(bench.project), home_of_user()
    paths = effective(workflow.permissions, node.permissions, node.isolation).paths or Paths()
    named = [_place(text, project, home) for text in paths.deny]
    return Policy(
        cwd=real(cwd or project),
        read=tuple(_roots((".",) if paths.read is None else paths.read, project, home)),
        write=tuple(_roots(paths.write or (), project, home)),
        deny=(".dagrun", *named, *map(_exactly, map(real, hidden_of(bench, workflow)))),
        keys=tuple(sorted(KEY_NAMES)),
        allow=tuple(sorted(NO_KEYS)),
        fixed=(*(f"/*/{name}" for name in PROTECTED), *map(_exactly, map(real, protected_of(bench, workflow)))),
    )


def _roots(texts: Iterable[str], project: str, home: str) -> Iterator[str]:
    """The paths of roots: themselves, or what exists of a glob."""
    for text in texts:
        root = root_of(text)
        path = place_of(root, project, home)
        if not is_glob("/".join(root.parts)):
            yield path
            continue
        try:
            yield from expand(path, Budget(), dots=False)
        except TooMuch:
            continue  # a back end refuses such a grant


def _place(text: str, project: str, home: str) -> str:
    """A `deny` pattern: a name as it is, a place as an absolute pattern."""
    denied = denied_of(text)
    return denied if isinstance(denied, str) else place_of(denied, _exactly(project), _exactly(home))


def _exactly(path: str) -> str:
    """A pattern that means this path and nothing else."""
    return re.sub(r"([*?\[])", r"[\1]", os.path.normpath(path))

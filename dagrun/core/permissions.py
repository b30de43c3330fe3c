"""What a scope may do, as its author declares it, and what a node ends up with. Only the types.

Scopes nest: run → node → nodes that a patch of that node inserted; each inside another only ever
gets less. What that means is `lattice.py`; whether one asks for more than another is `excess.py`.
Paths are text, relative to the project directory; symlinks are resolved where a sandbox opens them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from dagrun.core.value import value

Isolation: TypeAlias = Literal["none", "context", "process", "container"]
LEVELS: tuple[Isolation, ...] = ("none", "context", "process", "container")
# a tuple is an allow-list of `host`, `host:port` or `*.domain`, lower-case; `host` is every port of it
Network: TypeAlias = Literal["none", "any"] | tuple[str, ...]


@value(frozen=True, slots=True, kw_only=True)
class Paths:
    """Roots in the file system: a write root can be read too, `deny` wins over both.

    None is what the scope does not say (the parent's); () is nothing. `dir` and `dir/**` mean all
    below; other globs mean the files that exist at launch. A `deny` pattern without a slash matches
    a name at any depth, one with a slash is anchored at the project directory.
    """

    read: tuple[str, ...] | None = None
    write: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


@value(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What a scope declares. None: it says nothing, so the parent's holds. `cost_budget` in nano-dollars."""

    tools: tuple[str, ...] | None = None
    paths: Paths | None = None
    models: tuple[str, ...] | None = None
    network: Network | None = None
    cost_budget: int | None = None
    isolation: Isolation | None = None


NO_PERMISSIONS = Permissions()


@value(frozen=True, slots=True, kw_only=True)
class Effective:
    """What a node ends up with. `paths` None: files are not held; `network` None: it is not held.

    `isolation` is the level it runs at. `tools` and `models` None: no scope says anything.
    """

    isolation: Isolation = "process"
    paths: Paths | None = None
    network: Network | None = None
    tools: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    cost_budget: int | None = None

    @property
    def confined(self) -> bool:
        """Whether a back end has to hold something: paths, network, or a container around it all."""
        if self.isolation == "container":
            return True
        return self.isolation == "process" and (self.paths is not None or self.network is not None)


def higher(a: Isolation, b: Isolation) -> Isolation:
    """The level that isolates more."""
    return max(a, b, key=LEVELS.index)

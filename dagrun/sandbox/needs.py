"""What a node requires of the machine, and the words for what the machine does not have.

Pure but for one look at PATH: which guarantees follow from a level, paths, network and ceilings, and
how to get those that no back end proved. Knows the back ends by name only.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dagrun.core.permissions import Isolation, Network
from dagrun.sandbox.wall import GUARANTEES, NO_BOUNDS, Bounds, Guarantee, Spec

LIMIT_NAMES: Mapping[str, Guarantee] = {
    "memory_bytes": "mem",
    "pids": "pids",
    "cpu": "cpu",
    "file_size_bytes": "fsize",
}
LIMITS: frozenset[Guarantee] = frozenset(LIMIT_NAMES.values())
_FILES: frozenset[Guarantee] = frozenset({"fs.read", "fs.write", "fs.deny", "fs.meta"})
_ALWAYS: frozenset[Guarantee] = frozenset(
    {"fs.protected", "unix", "ipc", "proc.hide", "proc.signal", "env", "fds", "tty", "caps", "kill.tree"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one node requires. `image` and `pull` matter at level container only."""

    node: str
    level: Isolation = "process"
    required: frozenset[Guarantee] = frozenset()
    image: str = ""
    pull: Literal["never", "missing"] = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What nothing on this machine holds, for whom: `why` has a line for each back end that was tried.

    `lacks` are the guarantees that the best of them does not give; empty when an image is missing.
    """

    nodes: tuple[str, ...]
    level: Isolation
    lacks: tuple[Guarantee, ...]
    why: tuple[str, ...]
    hint: str


def requirements(
    level: Isolation, *, confined: bool, files: bool, network: Network | None, bounds: Bounds = NO_BOUNDS
) -> frozenset[Guarantee]:
    """The guarantees that an attempt requires: `confined` as Effective.confined, `files` if paths are held."""
    found: set[Guarantee] = {g for name, g in LIMIT_NAMES.items() if getattr(bounds, name) is not None}
    if not confined:
        return frozenset(found)
    found |= _ALWAYS
    if files or level == "container":
        found |= _FILES
    if network is None:
        network = "none" if level == "container" else "any"
    if network != "any":
        found.add("net.allowlist" if network and network != "none" else "net.none")
    return frozenset(found)


def is_guarantee(name: str) -> bool:
    """Whether a name is one of wall.GUARANTEES."""
    return name in GUARANTEES


def need_of(spec: Spec) -> Need:
    """What an attempt requires."""
    files = spec.read is not None
    confined = spec.level == "container" or (spec.level == "process" and (files or spec.network is not None))
    required = requirements(spec.level, confined=confined, files=files, network=spec.network, bounds=spec.bounds)
    return Need(node=spec.node, level=spec.level, required=required, image=spec.image, pull=spec.pull)


# ---------------------------------------------------------------- in words


def told(missing: Missing) -> str:
    """One lack as text: who, what, and what each back end said."""
    names = ", ".join([f"`{name}`" for name in missing.nodes[:5]])
    more = f" and {len(missing.nodes) - 5} more" if len(missing.nodes) > 5 else ""
    head = f"node{'s' if len(missing.nodes) > 1 else ''} {names}{more} can't be held at level {missing.level}"
    what = f": nothing here proves {', '.join(missing.lacks)}" if missing.lacks else ""
    return head + what + "".join([f"\n    {line}" for line in missing.why])


def reasons(lacks: Mapping[Guarantee, str]) -> str:
    """`why (a, b, c); other why (d)`; one reason for many needs no list of them."""
    by_why: dict[str, list[str]] = {}
    for name, why in lacks.items():
        by_why.setdefault(why, []).append(name)
    if len(by_why) == 1 and len(lacks) > _FEW:
        return next(iter(by_why))
    return "; ".join([f"{why} ({', '.join(names)})" for why, names in by_why.items()])


def hint_of(missing: Sequence[Missing]) -> str:
    """What to do about all of it, each step once; what to accept is one list, as it has to be typed."""
    steps = dict.fromkeys(step for lack in missing for step in lack.hint.split(_NEXT))
    accepted = {name for step in steps if step.startswith(_ACCEPT) for name in step[len(_ACCEPT) :].split(",")}
    made = [step for step in steps if step != _DOCTOR and not step.startswith(_ACCEPT)]
    if accepted:
        made.append(_ACCEPT + ",".join(name for name in GUARANTEES if name in accepted))
    return _NEXT.join([*made, _DOCTOR] if _DOCTOR in steps else made)


_FEW = 5
_NEXT = "; "
_ACCEPT = "to go without, for you alone to say: --accept-missing "
_DOCTOR = "what holds here: dagrun doctor"
SEE_DOCTOR = _NEXT + _DOCTOR  # which doctor itself leaves out
_INSTALL: Mapping[str, str] = {
    "bubblewrap": "install bubblewrap: apt install bubblewrap, or dnf install bubblewrap",
    "docker": "install Docker or Podman and let this user reach it: apt install docker.io, or apt install podman",
}
_BWRAP = "/usr/bin/bwrap"
_NAMESPACES = (
    "let this user make namespaces: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000;"
    " on Ubuntu also an AppArmor profile for bwrap, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
)
_HOSTS = "write isolation: process, where a list of hosts is held, or network: none or any for a container"
_GROUPS = (
    "give dagrun control groups: run it as root, or in a unit of its own:"
    " systemd-run --user --scope -p Delegate=yes -- …; or take the limit out"
)


def remedy(
    need: Need,
    tried: Sequence[tuple[str, Mapping[Guarantee, str]]],
    best: Mapping[Guarantee, str],
    accepted: Collection[Guarantee] = (),
) -> str:
    """What to do to get what is lacking; `accepted` is what the user does without already."""
    if best.keys() <= LIMITS:
        return _GROUPS
    if need.level == "container" and best.keys() == {"net.allowlist"}:
        return _HOSTS
    ways: list[str] = []
    for name, lacks in tried:
        if name == "bubblewrap":
            there = [f"{folder}/bwrap" for folder in os.get_exec_path() if os.access(f"{folder}/bwrap", os.X_OK)]
            if not there:
                ways.append(_INSTALL[name])
            elif lacks and os.path.realpath(there[0]) != os.path.realpath(_BWRAP) and os.access(_BWRAP, os.X_OK):
                ways.append(f"let the system's own bwrap be the first on the PATH: {_BWRAP}")
            elif any("too old" in why or "not trusted" in why for why in lacks.values()):
                ways.append(f"{_INSTALL[name]} (0.8 or newer)")
            elif any("namespace" in why for why in lacks.values()):
                ways.append(_NAMESPACES)
        elif name in _INSTALL:
            ways.append(_INSTALL[name])
    if len(best) < len(need.required - LIMITS):
        ways.append(_ACCEPT + ",".join(name for name in GUARANTEES if name in best or name in accepted))
    return _NEXT.join([*ways, _DOCTOR])


def pull_hint(need: Need, engine: str) -> str:
    """How to get the image of a need for an engine of containers that could hold it."""
    return f"get the image first: {engine} pull {need.image}; or let dagrun do it: docker: {{pull: missing}}"

"""What of this machine a container sees: grants at their own paths, less what is hidden, denied or protected.

Knows no engine: a Spec in, a list of bind mounts out, outer ones first. Invariants: what a mount was
when it was checked (device, inode) goes with it, so that the container can tell whether the engine,
which looks paths up anew and as root, mounted the same thing; nothing is mounted that the engines'
option can't carry unambiguously.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dagrun.sandbox.container_user import can_use, give, user_of
from dagrun.sandbox.grants import Bound, Cover, Grant, Grants, open_grants
from dagrun.sandbox.grants_open import below, real
from dagrun.sandbox.wall import Aftermath, Refused, Spec

_UNFIT = re.compile(r"[\x00-\x1f\x7f,\"'\ud800-\udfff]")
_MAX_MOUNTS = 512


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount: `path` inside, `source` outside, and what `source` was when it was looked at."""

    path: str
    source: str
    writable: bool
    identity: tuple[int, int] | None = None


@dataclass(slots=True, kw_only=True)
class Prepared:
    """All mounts of a container, the user (uid, gid) it runs as, and warnings for the trace."""

    mounts: tuple[Mount, ...]
    user: tuple[int, int]
    warnings: tuple[str, ...]
    grants: Grants

    def mounted(self) -> None:
        """The container has started, or never will: close what was only kept for its mounts."""
        self.grants.let_go()

    def aftermath(self, attempt_id: str) -> Aftermath:
        """What it planted where nothing may be planted; gives everything back."""
        try:
            return self.grants.aftermath(attempt_id)
        finally:
            self.grants.close()

    def close(self) -> None:
        """Give everything back."""
        self.grants.close()


def prepare(spec: Spec, folder: str) -> Prepared:
    """The mounts of this attempt; `folder` is the container's own, out of its reach.

    Without declared paths the project is read-only. Raises Refused for what can't be granted.
    """
    if spec.read is None:
        spec = replace(spec, read=(".",))
    absent = [path for text in spec.write if not os.path.lexists(path := os.path.join(spec.project, text))]
    grants = open_grants(spec)
    try:
        user = user_of(spec.user, [(os.fstat(g.fd).st_uid, os.fstat(g.fd).st_gid) for g in grants.roots if g.write])
        _give_new_folders(grants, {real(path) for path in absent}, user)
        if spec.exchange:
            give(spec.exchange, user)
        mounts = tuple(_ordered([*_below_roots(grants), *_roots(grants), *_shut(grants, folder)]))
        warnings = tuple([text for g in grants.roots if (text := can_use(g.path, g.fd, user, write=g.write))])
    except BaseException:
        grants.close()
        raise
    return Prepared(mounts=mounts, user=user, warnings=warnings, grants=grants)


def _below_roots(grants: Grants) -> Iterator[Mount]:
    """What is mounted below read-only grants: "readonly" holds for the mount itself only.

    Not what is mounted below something covered, as it would come to light again.
    """
    if all(root.write for root in grants.roots):
        return
    for point in _mount_points():
        around = [root for root in grants.roots if below(point, root.path)]
        covered = any(below(point, cover.path) for cover in grants.covers)
        if around and not covered and not max(around, key=lambda root: len(root.path)).write:
            yield Mount(point, point, writable=False)


def _roots(grants: Grants) -> Iterator[Mount]:
    for root in grants.roots:
        yield _mount(root, writable=root.write)
    if grants.exchange is not None:
        yield replace(_mount(grants.exchange, writable=True), source=real(grants.exchange.path), identity=None)


def _shut(grants: Grants, folder: str) -> Iterator[Mount]:
    for pin in grants.pins:
        yield _bound(pin, writable=True)
    for bound in grants.protected:
        yield _bound(bound, writable=False)
    inner = [root.path for root in grants.roots]
    if grants.exchange is not None:
        inner.append(grants.exchange.path)
    for number, cover in enumerate(grants.covers):
        if any(below(cover.path, root.path) for root in grants.roots):
            yield Mount(cover.path, _emptiness(cover, folder, number, inner), writable=False)


def _emptiness(cover: Cover, folder: str, number: int, inner: list[str]) -> str:
    """Something to put over `cover`: a folder with places for what is mounted below it, or a file nobody can read."""
    if not cover.folder:
        path = os.path.join(folder, "nothing")
        if not os.path.exists(path):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o000))
        return path
    path = os.path.join(folder, f"empty{number}")
    os.mkdir(path, 0o755)
    for place in inner:
        if place != cover.path and below(place, cover.path):
            os.makedirs(os.path.join(path, os.path.relpath(place, cover.path)), exist_ok=True)
    return path


def _ordered(found: list[Mount]) -> list[Mount]:
    """Outer mounts first, one for each path (the later says what it is). Raises Refused."""
    by_path = {mount.path: mount for mount in found}
    if len(by_path) > _MAX_MOUNTS:
        raise Refused(f"{len(by_path)} mounts are too many for a container (at most {_MAX_MOUNTS})", "grant folders")
    for path in by_path:
        if _UNFIT.search(path):
            raise Refused(
                f"{path!r} can't be mounted into a container: commas, quotes and control characters have no way to"
                " be told to the engine",
                "rename it, or use isolation: process",
            )
    return sorted(by_path.values(), key=lambda m: (m.path.count("/"), m.path))


def _mount(grant: Grant, *, writable: bool) -> Mount:
    return Mount(grant.path, grant.path, writable, (grant.device, grant.inode))


def _bound(bound: Bound, *, writable: bool) -> Mount:
    found = os.fstat(bound.fd)
    return Mount(bound.path, bound.path, writable, (found.st_dev, found.st_ino))


def _give_new_folders(grants: Grants, new: set[str], user: tuple[int, int]) -> None:
    """As root: a write folder that was only just made belongs to the user of the container."""
    if os.getuid() == 0:
        for root in grants.roots:
            if root.write and root.path in new:
                os.chown(f"/proc/self/fd/{root.fd}", *user)


def _mount_points() -> list[str]:
    """Where something is mounted on this machine."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ", 5)[4] for line in file if line.count(" ") > 5]
    return sorted({re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point) for point in points})

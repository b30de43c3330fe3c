"""Who a container runs as: never root, and what that user can do with what it was granted."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence

from dagrun.sandbox.wall import Refused

NOBODY = 65534


def user_of(wanted: str, owners: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The user and group: what was asked for, the caller, or (called by root) the first owner who is not root.

    `owners` are those of the write grants. Raises Refused for root, and for a name: what it means is
    up to the image.
    """
    if wanted:
        numbers = re.fullmatch(r"(\d{1,10})(?::(\d{1,10}))?", wanted, re.ASCII)
        if numbers is None:
            raise Refused(f"docker.user: {wanted!r} is not a number", "write it as 1000 or 1000:1000")
        uid = int(numbers[1])
        if uid == 0:
            raise Refused("docker.user: a container never runs as root", "take another number than 0, or leave it out")
        if numbers[2] and int(numbers[2]) == 0:
            raise Refused("docker.user: a container is never in the group of root", "take another group than 0")
        return uid, int(numbers[2]) if numbers[2] else (_own_group() if uid == os.getuid() else uid)
    if os.getuid():
        return os.getuid(), _own_group()
    return next(((uid, gid or uid) for uid, gid in owners if uid), (NOBODY, NOBODY))


def _own_group() -> int:
    return os.getgid() or NOBODY


def can_use(path: str, fd: int, user: tuple[int, int], *, write: bool) -> str:
    """A warning when the user of the container plainly can't use what is granted; "" if it may."""
    found = os.fstat(fd)
    wanted = 0o4 | (0o1 if stat.S_ISDIR(found.st_mode) else 0) | (0o2 if write else 0)
    shift = 6 if found.st_uid == user[0] else 3 if found.st_gid == user[1] else 0
    # An access list says more than the mode does.
    if (found.st_mode >> shift) & wanted == wanted or "system.posix_acl_access" in _attributes(path):
        return ""
    return (
        f"{path} (mode {stat.S_IMODE(found.st_mode):o}) belongs to {found.st_uid}:{found.st_gid} and the container runs"
        f" as {user[0]}:{user[1]}, which can't {'write' if write else 'read'} it: chown {user[0]} {path}, chmod it,"
        " or docker: {user: N} with the number of who can"
    )


def give(folder: str, user: tuple[int, int]) -> None:
    """Let the user of the container use the folder of its attempt: by owner as root, else by mode."""
    if user[0] == os.getuid():
        return
    for parent, folders, files in os.walk(folder):
        for path in [parent, *[os.path.join(parent, name) for name in (*folders, *files)]]:
            if os.getuid() == 0:
                os.chown(path, *user, follow_symlinks=False)
            elif not os.path.islink(path):
                # The folders above are dagrun's own and closed to everybody else.
                mode = os.stat(path).st_mode
                os.chmod(path, 0o777 if stat.S_ISDIR(mode) else 0o666 if mode & stat.S_IWUSR else 0o444)


def _attributes(path: str) -> list[str]:
    try:
        return os.listxattr(path)
    except OSError:
        return []

"""The few things with a disk that must be done right: whole writes, durable names, clear errors, the kind of disk."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from dagrun.errors import EnvironmentFault, JournalError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# Where flock does not hold between machines, or a write may be lost after it was acknowledged.
_REMOTE = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "lustre", "gpfs"),
        *("beegfs", "glusterfs", "coda", "ocfs2", "gfs2", "fuse"),
    )
)
_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs"})  # the root filesystem of rootless containers


class DiskFull(JournalError):
    """There is no room to write: what was acknowledged before is safe, this write left nothing."""

    code = "disk-full"


def disk_fault(what: str, path: str, error: OSError) -> JournalError:
    """An OSError as a DiskFull or JournalError that names what could not be done, where and why."""
    reason = error.strerror or str(error)
    if error.errno not in _FULL:
        hint = "give yourself the right to write there" if error.errno in (errno.EACCES, errno.EPERM) else ""
        return JournalError(f"{what} {path}: {reason}", hint=hint)
    if error.errno == errno.EFBIG:
        return DiskFull(f"{what} {path}: {reason}", hint="the file size limit (ulimit -f) is too low")
    try:
        room = os.statvfs(os.path.dirname(path))
        free = f" ({room.f_bavail * room.f_frsize} bytes free)"
    except OSError:
        free = ""
    return DiskFull(f"{what} {path}: {reason}{free}", hint="free some space, then resume the run")


def write_all(fd: int, data: bytes) -> None:
    """Write every byte; after a short write the error that stopped it comes with the next try."""
    while data:
        done = os.write(fd, data)
        if done == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[done:]


def sync_folder(path: str) -> None:
    """Make the names in a folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: str, data: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Put `data` in the file `path`, all or nothing; when `durable` it survives a power loss. Raises OSError."""
    folder, name = os.path.split(path)
    temp = f"{folder}/.{name}.{os.getpid()}.tmp"
    try:
        # Not O_EXCL: what a dead process of the same pid left under this name is ours to overwrite.
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temp, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temp)
        raise
    if durable:
        sync_folder(folder)


def check_filesystem(path: str) -> None:
    """Refuse a folder on a network filesystem, where locks don't hold. Raises EnvironmentFault naming it."""
    kind = filesystem_type(path)
    if kind in _LOCAL_FUSE or kind.partition(".")[0] not in _REMOTE:
        return
    raise EnvironmentFault(
        f"{path} is on a filesystem of type {kind}, where locks and syncs can't be trusted",
        hint="copy the project to a local disk, or link .dagrun to a folder on one: ln -s /local/folder .dagrun",
    )


def filesystem_type(path: str) -> str:
    """The type of the filesystem that holds `path`, as the kernel calls it; empty where unknown."""
    from dagrun.store.proc import read_small

    try:
        device = os.stat(path).st_dev
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    real = os.path.realpath(path) + "/"
    best, found = -1, ""
    for line in read_small("/proc/self/mountinfo", 16 << 20).splitlines():
        left, _, right = line.partition(" - ")
        part = left.split(" ")
        if not right or len(part) < 5:
            continue
        kind = right.split(" ", 1)[0]
        if part[2] == number:
            return kind
        # Some filesystems (btrfs) report another device in stat: then the innermost mount point.
        mount = _unescape(part[4]).rstrip("/") + "/"
        if real.startswith(mount) and len(mount) >= best:
            best, found = len(mount), kind
    return found


def _unescape(text: str) -> str:
    """A path of mountinfo, where blanks and backslashes are octal escapes."""
    if "\\" not in text:
        return text
    import re

    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def at_once(path: str, flags: int) -> int:
    """An opener for `open`: never waits for the writer of a pipe, takes no terminal. Raises OSError."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)

"""Artifacts: which files the patterns of a node mean, and copying them into the run's store.

Patterns are relative to the project, `/` between parts; `*`, `?`, `[…]` match within a part, `**`
any number of folders. Names that begin with a dot are matched only by patterns that say so.
Wildcards match no symbolic links; one that is named is followed, but never out of the project.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from dagrun.store.disk import write_all
from dagrun.store.exchange import OutputError, kind_of
from dagrun.store.fault import ARMED, fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dagrun.core.names import Json

MAX_FILES = 10_000

# (path, its name in messages) -> a descriptor, None where there is no such file; raises OutputError
Opener: TypeAlias = "Callable[[str, str], int | None]"

_FICLONE = 0x40049409
_CHUNK = 1 << 20
# A copy fills its holes: one command could fill the disk without writing anything.
_LARGE, _HOLLOW = 1 << 30, 64
_WILD = re.compile(r"[*?[]")


def collect(patterns: Sequence[str], base_dir: str, *, links: bool = True) -> list[str]:
    """The files below `base_dir` that `patterns` mean, relative to it, sorted, each once.

    `links` False: no folder is entered through a symbolic link, not even one that is named.
    Raises OutputError for a pattern that leads outside, a named file that is missing or no file,
    and for more than MAX_FILES.
    """
    found: set[str] = set()
    for pattern in patterns:
        parts = _parts(pattern, base_dir)
        named = not any(_WILD.search(part) for part in parts)
        before = len(found)
        for path in _walk(base_dir, "", parts, links):
            if os.path.isfile(os.path.join(base_dir, path)) or named:
                found.add(path)
            if len(found) > MAX_FILES:
                raise OutputError(f"artifacts: {pattern!r} makes it more than {MAX_FILES} files")
        if named and len(found) == before and "/".join(parts) not in found:
            raise OutputError(f"artifact {pattern!r} is missing: the node did not write it")
    return sorted(found)


def _parts(pattern: str, base_dir: str) -> list[str]:
    """A pattern cut at its slashes. An absolute one must lie in `base_dir`."""
    text = pattern
    if text.startswith("/"):
        base = os.path.abspath(base_dir).rstrip("/") + "/"
        if not text.startswith(base):
            raise OutputError(f"artifact {pattern!r} is outside of the project; name it relative to {base_dir}")
        text = text[len(base) :]
    parts: list[str] = []
    for part in text.split("/"):
        if part not in ("", ".") and not (part == "**" and parts[-1:] == ["**"]):
            parts.append(part)
    if ".." in parts:
        raise OutputError(f"artifact {pattern!r} may not hold '..': it must stay in the project")
    if not parts or "\0" in text:
        raise OutputError(f"artifact {pattern!r} names no file")
    return parts


def _walk(base: str, prefix: str, parts: list[str], links: bool) -> Iterator[str]:
    """What `parts` match below base/prefix. No recursion on the depth of the disk, only on the pattern."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder in _folders(base, prefix):
            yield from _walk(base, folder, rest or ["*"], links)
        return
    if not _WILD.search(part):
        path = prefix + part
        if not rest:
            if os.path.lexists(os.path.join(base, path)):
                yield path
        elif os.path.isdir(os.path.join(base, path)) and (links or not os.path.islink(os.path.join(base, path))):
            yield from _walk(base, path + "/", rest, links)
        return
    from fnmatch import fnmatchcase

    for entry in _scan(os.path.join(base, prefix)):
        if _hidden(prefix, entry.name, part) or not fnmatchcase(entry.name, part):
            continue
        if not rest:
            if entry.is_file(follow_symlinks=False):
                yield prefix + entry.name
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(base, f"{prefix}{entry.name}/", rest, links)


def _folders(base: str, prefix: str) -> Iterator[str]:
    """`prefix` and every folder below, links not followed, hidden ones left out; each ends with /."""
    todo = [prefix]
    while todo:
        folder = todo.pop()
        yield folder
        todo.extend(
            f"{folder}{entry.name}/"
            for entry in _scan(os.path.join(base, folder))
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )


def _hidden(prefix: str, name: str, part: str) -> bool:
    """dagrun's own folder is never matched by a wildcard, other dot names only if the pattern says the dot."""
    return name.startswith(".") and (not part.startswith(".") or (not prefix and name == ".dagrun"))


def _scan(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OutputError(f"artifacts: can't list {path}: {error.strerror}") from error


def copy_in(
    path: str, base_dir: str, store: str, reach: Opener | None = None, clean: Callable[[int], None] | None = None
) -> dict[str, Json]:
    """Copy one file into the folder `store` under its digest: {path, sha, size, mode}.

    `reach` opens it instead of the ordinary way, which follows links inside of the project; `clean`
    may change what is in the copy before its digest is taken. Durable but for the name: sync the
    folder after the last. Raises OutputError for a file that may not or can't be read, OSError when
    the store can't be written.
    """
    source = _open_inside(path, base_dir) if reach is None else reach(path, f"artifact {path!r}")
    if source is None:
        raise OutputError(f"artifact {path!r} is missing: it went while it was collected")
    temp = f"{store}/.{os.getpid()}.tmp"
    try:
        found = os.fstat(source)
        if found.st_size > _LARGE and found.st_blocks * 512 < found.st_size // _HOLLOW:
            raise OutputError(f"artifact {path!r} says it has {found.st_size} bytes, and almost all of it is a hole")
        target = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _copy(source, target, path)
            if clean is not None:
                clean(target)
            sha, size = _digest(target)
            os.fchmod(target, 0o400)
            os.fsync(target)
        finally:
            os.close(target)
        if ARMED:
            fault("artifacts.before_rename")
        os.rename(temp, f"{store}/{sha}")
    except BaseException:
        with suppress(OSError):
            os.unlink(temp)
        raise
    finally:
        os.close(source)
    return {"path": path, "sha": sha, "size": size, "mode": stat.S_IMODE(found.st_mode) & 0o777}


def _open_inside(path: str, base_dir: str) -> int:
    """A descriptor of a regular file that really lies in `base_dir`, whatever links lead there."""
    base = os.path.realpath(base_dir).rstrip("/") + "/"
    real = os.path.realpath(os.path.join(base_dir, path))
    if not real.startswith(base):
        raise OutputError(f"artifact {path!r} leads outside of the project through a symbolic link")
    if real.startswith(base + ".dagrun/"):
        raise OutputError(f"artifact {path!r} lies in dagrun's own folder")
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"artifact {path!r} can't be read: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    # Where the descriptor really is: a folder on the way may have become a link meanwhile.
    with suppress(OSError):
        real = os.readlink(f"/proc/self/fd/{fd}")
    if stat.S_ISREG(mode) and real.startswith(base):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise OutputError(f"artifact {path!r} is a folder; write {path.rstrip('/')}/** for all that is in it")
    raise OutputError(f"artifact {path!r} is {kind_of(mode) if not stat.S_ISREG(mode) else 'outside of the project'}")


def _copy(source: int, target: int, path: str) -> None:
    """Copy the content: as a clone of the blocks if the disk can, else in the kernel, else by hand."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError:
        pass
    try:
        while os.copy_file_range(source, target, 1 << 30):
            pass
        return
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
    except AttributeError:
        pass
    os.lseek(target, 0, os.SEEK_SET)
    offset = 0
    while True:
        try:
            chunk = os.pread(source, _CHUNK, offset)
        except OSError as error:
            raise OutputError(f"artifact {path!r} can't be read: {error.strerror}") from error
        if not chunk:
            return
        write_all(target, chunk)
        offset += len(chunk)


def _digest(fd: int) -> tuple[str, int]:
    from hashlib import sha256

    made, size = sha256(), 0
    while chunk := os.pread(fd, _CHUNK, size):
        made.update(chunk)
        size += len(chunk)
    return made.hexdigest(), size

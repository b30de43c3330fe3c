"""Paths of grants as the file system has them: opened without following a link, made, expanded from globs.

A descriptor is what counts: the path that it was opened by may mean something else a moment later.
Knows no specs and no back ends; words about permissions belong to its callers.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import functools
import os
import re
import stat
from collections.abc import Iterator

from dagrun.core.roots import Root, is_glob
from dagrun.sandbox.base import SpawnBusy

MAX_LOOKED_AT = 100_000  # entries of folders that one attempt may have to look at
_OPENAT2 = 437  # on every machine
_NO_LINKS = 0x04 | 0x02  # RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class TooMuch(Exception):
    """There is more below `path` than can be looked at before a command starts."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Budget:
    """How many entries may still be looked at."""

    def __init__(self, most: int = MAX_LOOKED_AT) -> None:
        self.left = most

    def spend(self, path: str) -> None:
        """One entry below `path` was looked at. Raises TooMuch."""
        self.left -= 1
        if self.left < 0:
            raise TooMuch(path)


# ---------------------------------------------------------------- text


def below(path: str, root: str) -> bool:
    """Whether an absolute path is `root`, or lies below it."""
    return path == root or path.startswith(root if root.endswith("/") else root + "/")


def real(path: str) -> str:
    """An absolute path without links, as far as it exists."""
    return os.path.realpath(path)


def place_of(root: Root, project: str, home: str) -> str:
    """The absolute path of a root, wildcards left in it; `project` and `home` have no links in them."""
    if root.anchor == "/":
        return "/" + "/".join(root.parts)
    if root.anchor == "~":
        return "/".join((home.rstrip("/"), *root.parts))
    base = project
    for _ in range(root.up):
        base = os.path.dirname(base)
    return "/".join((base.rstrip("/"), *root.parts)) or "/"


# ---------------------------------------------------------------- open


def open_exactly(path: str) -> int:
    """An O_PATH descriptor of an absolute path in which no part is a link.

    Raises OSError: ELOOP for a link (see `link_in`), ENOENT, ENOTDIR, EACCES; SpawnBusy.
    """
    how = _How(os.O_PATH | os.O_CLOEXEC, 0, _NO_LINKS)
    fd = _libc.syscall(_OPENAT2, -100, ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how), ctypes.c_size_t(24))
    if fd >= 0:
        return int(fd)
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a filter that doesn't know the call
        return _walk(path)
    raise told(number, path)


def _walk(path: str) -> int:
    """The same, one part after the other."""
    fd = _open("/", None)
    for part in path.split("/"):
        if not part:
            continue
        try:
            after = _open(part, fd)
        finally:
            os.close(fd)
        fd = after
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return fd


def _open(name: str, folder: int | None) -> int:
    try:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise told(error.errno or 0, name) from None


def told(number: int, path: str) -> OSError | SpawnBusy:
    """The error that a failed call is: SpawnBusy when the machine is short of something."""
    if number in _SHORT:
        return SpawnBusy(number, f"can't open {path}: {os.strerror(number)}")
    return OSError(number, os.strerror(number), path)


def link_in(path: str) -> tuple[str, str]:
    """The first part of `path` that is a link, and what it leads to; two empty texts if there is none."""
    at = ""
    for part in path.split("/")[1:]:
        at += "/" + part
        try:
            return at, os.path.normpath(os.path.join(os.path.dirname(at), os.readlink(at)))
        except OSError:
            continue
    return "", ""


def make_folders(path: str, base: str) -> None:
    """Make the folders from `base`, which is there, down to `path`, following no link. Raises OSError."""
    fd = open_exactly(base)
    try:
        for part in path[len(base) :].split("/"):
            if not part:
                continue
            try:
                os.mkdir(part, dir_fd=fd)
            except FileExistsError:
                pass
            after = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = after
    finally:
        os.close(fd)


def names_in(fd: int) -> list[os.DirEntry[str]] | None:
    """What is in the folder behind an O_PATH descriptor; None if it can't be listed."""
    try:
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except PermissionError:
        return None
    except OSError as error:
        raise told(error.errno or 0, ".") from None
    try:
        with os.scandir(listing) as entries:
            return list(entries)
    finally:
        os.close(listing)


# ---------------------------------------------------------------- globs


def expand(pattern: str, budget: Budget, *, dots: bool) -> Iterator[str]:
    """What exists of an absolute path with wildcards, links not followed; `*` means a leading dot only with `dots`.

    Raises TooMuch.
    """
    parts = pattern.split("/")[1:]
    fixed = next((k for k, part in enumerate(parts) if is_glob(part)), len(parts))
    yield from dict.fromkeys(_expand("/".join(("", *parts[:fixed])), parts[fixed:], budget, dots))


def _expand(folder: str, parts: list[str], budget: Budget, dots: bool) -> Iterator[str]:
    if not parts:
        if os.path.lexists(folder or "/"):
            yield folder or "/"
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _expand(folder, rest, budget, dots)
    elif not is_glob(part):
        if not rest or not os.path.islink(f"{folder}/{part}"):
            yield from _expand(f"{folder}/{part}", rest, budget, dots)
        return
    wanted = _any_of(frozenset({part}))
    for entry in _entries(folder, budget):
        if entry.name.startswith(".") and not dots and not part.startswith("."):
            continue
        if part == "**":
            if entry.is_dir(follow_symlinks=False):
                yield from _expand(f"{folder}/{entry.name}", parts, budget, dots)
        elif wanted.match(entry.name) and (not rest or entry.is_dir(follow_symlinks=False)):
            yield from _expand(f"{folder}/{entry.name}", rest, budget, dots)


def named_below(folder: str, patterns: frozenset[str], budget: Budget, skip: frozenset[str]) -> Iterator[str]:
    """What lies at any depth below `folder` and has a name that one of the patterns matches.

    Nothing is looked for below what was found, nor below `skip`. Raises TooMuch.
    """
    wanted = _any_of(patterns)
    queue = [folder]
    for at in queue:
        for entry in _entries(at, budget):
            path = f"{at.rstrip('/')}/{entry.name}"
            if wanted.match(entry.name):
                yield path
            elif entry.is_dir(follow_symlinks=False) and path not in skip:
                queue.append(path)


def fits_name(name: str, patterns: frozenset[str]) -> bool:
    """Whether one of the patterns matches a name; `*` matches leading dots too."""
    return _any_of(patterns).match(name) is not None


def _entries(folder: str, budget: Budget) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder or "/") as entries:
            for entry in entries:
                budget.spend(folder)
                yield entry
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # what dagrun can't look into, its commands can't either


@functools.lru_cache(maxsize=256)
def _any_of(patterns: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join([f"(?:{fnmatch.translate(p)})" for p in sorted(patterns)]))

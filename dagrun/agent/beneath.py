"""Opening files below given roots and nowhere else, whatever links and renames happen meanwhile.

Runs inside the sandbox as part of the tool worker: standard library only. The sandbox is the wall;
this is the policy at levels without one, and the words for what is refused. A path is resolved by
the kernel in one call (openat2, RESOLVE_BENEATH), so that there is no moment between check and use;
where the kernel lacks it, one step at a time and without following any link.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from fnmatch import translate

_OPENAT2 = 437
_BENEATH, _NO_MAGICLINKS, _NO_SYMLINKS = 0x08, 0x02, 0x04
_COMMON = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a symbolic link"),
)


class ToolError(Exception):
    """What the model is told instead of a result: one sentence, with no path that it did not give."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Roots:
    """The directories (and single files) that may be read and written, and the names that may not.

    `read`, `write`: absolute paths without links; a write root can be read too. `deny`: a pattern
    without a slash matches a name at any depth, one with a slash a path relative to `cwd`, with all
    below it. `keys`: patterns of names that are denied inside a root but for those that `allow`
    matches, or that are a root themselves. `fixed`: patterns of paths that are never written.
    Nothing here outlives the process.
    """

    def __init__(
        self,
        cwd: str,
        read: list[str],
        write: list[str],
        deny: list[str],
        keys: Sequence[str] = (),
        allow: Sequence[str] = (),
        fixed: Sequence[str] = (),
    ) -> None:
        self.cwd = os.path.normpath(cwd)
        self._write = [os.path.normpath(p) for p in write]
        self._read = [os.path.normpath(p) for p in read] + self._write
        self._names = _any_of([p.rstrip("/") for p in deny if "/" not in p.rstrip("/")])
        self._places = _any_of([self._place(p) for p in deny if "/" in p.rstrip("/")])
        self._keys, self._allow = _any_of(keys), _any_of(allow)
        self._fixed = _any_of([self._place(p) for p in fixed])

    def _place(self, pattern: str) -> str:
        return os.path.normpath(os.path.join(self.cwd, pattern))

    def absolute(self, path: str) -> str:
        """The absolute form of a path that a model gave. Raises ToolError for one that can't be a path."""
        if "\0" in path:
            raise ToolError("a path can't hold a NUL character")
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            raise ToolError("a path can't hold half of a surrogate pair") from None
        return os.path.normpath(os.path.join(self.cwd, path))

    def is_denied(self, path: str) -> bool:
        """Whether an absolute path is one of those that may not be touched."""
        if self._names is None and self._places is None and self._keys is None:
            return False
        parts = path.split("/")
        if self._names is not None and any(map(self._names.fullmatch, parts[self._depth(path) :])):
            return True
        return _is_at(parts, self._places) or (self._keys is not None and self._is_key(path, parts))

    def is_fixed(self, path: str) -> bool:
        """Whether an absolute path may be read and never written."""
        return _is_at(path.split("/"), self._fixed)

    def _depth(self, path: str) -> int:
        """The number of the part of a path that is the name of the outermost root around it."""
        return min((len(r.split("/")) - 1 for r in self._read if is_below(path, r)), default=0)

    def _is_key(self, path: str, parts: list[str]) -> bool:
        inside = range(self._depth(path) + 1, len(parts))
        return any(self._named_as_key(parts[n]) and "/".join(parts[: n + 1]) not in self._read for n in inside)

    def _named_as_key(self, name: str) -> bool:
        if self._keys is None or self._keys.fullmatch(name) is None:
            return False
        return self._allow is None or self._allow.fullmatch(name) is None

    def roots(self, *, write: bool = False) -> list[str]:
        """Where searches may begin."""
        return list(dict.fromkeys(self._write if write else self._read))

    # ------------------------------------------------------------ opening

    def open_file(self, path: str) -> tuple[int, os.stat_result]:
        """A descriptor of a regular file that may be read, and its stat. Raises ToolError."""
        fd = self._open(path, os.O_RDONLY, write=False)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise ToolError(f"{path} is {kind(found.st_mode)}, not a file")
        return fd, found

    def open_any(self, path: str) -> tuple[int, os.stat_result]:
        """A descriptor of a regular file or directory that may be read, and its stat. Raises ToolError."""
        fd = self._open(path, os.O_RDONLY, write=False)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            os.close(fd)
            raise ToolError(f"{path} is {kind(found.st_mode)}, not a file")
        return fd, found

    def may_list(self, absolute: str) -> bool:
        """Whether an absolute path lies in what may be read."""
        return any(is_below(absolute, r) for r in self._read)

    def open_parent(self, path: str, *, make: bool) -> tuple[int, str]:
        """(descriptor of the directory, name in it) for a file to be written; `make` makes missing directories."""
        absolute = self.absolute(path)
        root = self._root_of(absolute, path, write=True)
        if absolute == root:
            raise ToolError(f"{path} is a directory that was granted, not a file")
        folder, name = os.path.split(absolute)
        if self.is_denied(absolute):
            raise ToolError(f"{path} is denied")
        if self.is_fixed(absolute):
            raise ToolError(f"{path} may be read, but is never written by a tool")
        top = self._top(root, path)
        try:
            steps = [s for s in os.path.relpath(folder, root).split("/") if s != "."]
            return self._descend(top, steps, path, make=make), name
        finally:
            os.close(top)

    def _descend(self, top: int, steps: list[str], path: str, *, make: bool) -> int:
        """The directory `steps` below `top`, no link followed."""
        here = os.dup(top)
        for step in steps:
            try:
                if make:
                    try:
                        os.mkdir(step, 0o777, dir_fd=here)
                    except FileExistsError:
                        pass
                below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            except OSError as error:
                raise ToolError(reason(path, error)) from None
            finally:
                os.close(here)
            here = below
        return here

    def _open(self, path: str, flags: int, *, write: bool) -> int:
        absolute = self.absolute(path)
        root = self._root_of(absolute, path, write=write)
        if self.is_denied(absolute):
            raise ToolError(f"{path} is denied")
        top = self._top(root, path)
        try:
            relative = os.path.relpath(absolute, root)
            fd = os.dup(top) if relative == "." else open_beneath(top, relative, flags)
            if relative == ".":  # an O_PATH descriptor reads nothing: open what it stands for
                again = os.open(f"/proc/self/fd/{fd}", flags | _COMMON)
                os.close(fd)
                fd = again
        except OSError as error:
            raise ToolError(reason(path, error)) from None
        finally:
            os.close(top)
        if self.is_denied(path_of(fd)):
            os.close(fd)
            raise ToolError(f"{path} is denied")
        return fd

    def _root_of(self, absolute: str, path: str, *, write: bool) -> str:
        """The root to open a path from: to read the widest, as links may lead anywhere in it. Raises ToolError."""
        found = [r for r in (self._write if write else self._read) if is_below(absolute, r)]
        if not found:
            raise ToolError(f"{path} is outside of what may be {'written' if write else 'read'}")
        return max(found, key=len) if write else min(found, key=len)

    def _top(self, root: str, path: str) -> int:
        """The root itself: not where a link leads that came into its path since it was granted."""
        try:
            slash = os.open("/", os.O_PATH | os.O_CLOEXEC)
            try:
                flags = os.O_PATH | os.O_NOFOLLOW
                return open_beneath(slash, root.lstrip("/") or ".", flags, links=False)
            finally:
                os.close(slash)
        except OSError as error:
            raise ToolError(reason(path, error)) from None


def _any_of(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """What matches the whole of a text that one of some patterns means; None for no pattern."""
    return re.compile("|".join(map(translate, patterns))) if patterns else None


def _is_at(parts: list[str], places: re.Pattern[str] | None) -> bool:
    """Whether a path (its parts) is one of some places, or lies below one."""
    return places is not None and any(places.fullmatch("/".join(parts[:n])) for n in range(2, len(parts) + 1))


def is_below(path: str, root: str) -> bool:
    """Whether a normalised path is `root` or lies below it."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def path_of(fd: int) -> str:
    """The absolute path of what is open, without links; of what was removed meanwhile, the one that it had."""
    return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")


def open_beneath(top: int, relative: str, flags: int, *, links: bool = True) -> int:
    """Open a path below the directory `top`; links may not lead out of it, or not be there. Raises OSError."""
    how = _How(flags | _common(flags), 0, _BENEATH | _NO_MAGICLINKS | (0 if links else _NO_SYMLINKS))
    fd: int = _libc().syscall(_OPENAT2, top, os.fsencode(relative), ctypes.byref(how), ctypes.sizeof(how))
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    # EPERM: a filter older than the call; ENOSYS: a kernel older than it
    if number in (errno.ENOSYS, errno.EPERM):
        return _step_by_step(top, relative, flags)
    raise OSError(number, os.strerror(number))


def _common(flags: int) -> int:
    return os.O_CLOEXEC if flags & os.O_PATH else _COMMON  # that takes no others


def _step_by_step(top: int, relative: str, flags: int) -> int:
    here = os.dup(top)
    steps = relative.split("/")
    for k, step in enumerate(steps):
        last = k == len(steps) - 1
        try:
            wanted = flags | _common(flags) if last else os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            below = os.open(step, wanted | os.O_NOFOLLOW, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def kind(mode: int) -> str:
    """`a directory`, `a pipe` … in the words of a message."""
    return next((name for test, name in _KINDS if test(mode)), "no regular file")


def reason(path: str, error: OSError) -> str:
    """Why a path can't be used, in words for the model."""
    match error.errno:
        case errno.ENOENT:
            return f"{path} does not exist"
        case errno.EXDEV:
            return f"{path} leads out of what may be used"
        case errno.ELOOP:
            return f"{path} goes through a symbolic link that is not followed"
        case errno.ENOTDIR:
            return f"{path} is no directory, or lies below a file"
        case errno.ENXIO:
            return f"{path} is a socket or a pipe, not a file"
        case errno.EACCES | errno.EPERM:
            return f"{path} may not be used: permission denied"
        case errno.EROFS:
            return f"{path} is read-only"
        case _:
            return f"{path} can't be used: {error.strerror}"


_LOADED: list[ctypes.CDLL] = []


def _libc() -> ctypes.CDLL:
    if not _LOADED:
        _LOADED.append(ctypes.CDLL(None, use_errno=True))
    return _LOADED[0]

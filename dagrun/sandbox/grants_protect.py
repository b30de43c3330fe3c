"""What may be read and never written although a write grant holds it: what git, an editor or a shell would run.

What is there is opened, to be bound read-only, with every folder between it and the root of its
grant: a mount holds itself and not its parents, so these are bound onto themselves, and renaming one
fails. What is not there can't be bound without leaving something behind: it is looked for again
afterwards, and moved aside. Knows no back end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from dagrun.sandbox.grants_open import below, open_exactly, real

# Relative to the project and to each write root. `.git/commondir` would move git's configuration.
PROTECTED = (
    *(f".git/{n}" for n in ("hooks", "config", "config.worktree", "commondir", "info/attributes", "modules")),
    *".dagrun .envrc .direnvrc .vscode .idea .mcp.json .claude .cursor .agents/skills".split(),
    *".bashrc .bash_profile .bash_login .profile .kshrc .zshrc .zshenv .zprofile .zlogin".split(),
    *".gitconfig .inputrc .ripgreprc .exrc .vimrc .nvimrc".split(),
)
_ASIDE = "quarantine"


class Bound(NamedTuple):
    """A path and the descriptor of what is there: to be bound read-only, or (a pin) onto itself."""

    path: str
    fd: int
    folder: bool


class _Absent(NamedTuple):
    """Names that were not in a folder (`fd`, at `path`), or links with what they led to."""

    path: str
    fd: int
    names: dict[str, str]


class Protection:
    """The protected paths inside the write grants of one attempt. `close` gives the descriptors back."""

    def __init__(self, write_roots: Iterable[str]) -> None:
        self._roots = tuple(write_roots)
        self.bound: dict[str, Bound] = {}
        self.pins: dict[str, Bound] = {}
        self._watched: dict[str, _Absent] = {}

    def add(self, base: str, relative: Iterable[str]) -> None:
        """Protect paths below the folder `base`, which has no links in it."""
        whole = self._root_of(base)
        for path in relative:
            full = f"{base.rstrip('/')}/{path}"
            if root := whole or self._root_of(full):
                self._protect(root, full)

    def add_path(self, path: str) -> None:
        """Protect one absolute path, spelt as it is and as what it leads to."""
        folder = real(os.path.dirname(path))
        for spelt in dict.fromkeys((f"{folder.rstrip('/')}/{os.path.basename(path)}", real(path))):
            if root := self._root_of(spelt):
                self._protect(root, spelt)

    def pin(self, path: str) -> None:
        """Keep the folders above `path` where they are: something is mounted there."""
        if root := self._root_of(path):
            self._descend(root, path)

    def _root_of(self, path: str) -> str:
        """The innermost write root that holds a path, "" if none does."""
        return max([root for root in self._roots if below(path, root)], key=len, default="")

    def _protect(self, root: str, path: str) -> None:
        at, name = self._descend(root, path)
        if not name:
            return
        try:
            mode = os.lstat(name, dir_fd=self._folder(at)).st_mode
        except OSError:
            self._watch(at, name, "")
            return
        if stat.S_ISLNK(mode):
            self._link(at, name)
        elif f"{at.rstrip('/')}/{name}" not in self.bound and not self._bind(f"{at.rstrip('/')}/{name}"):
            self._watch(at, name, "")  # it went away just now

    def _descend(self, root: str, path: str) -> tuple[str, str]:
        """Pin what is between `root` and `path`: the innermost folder that is there, and the name below it."""
        at = root
        parts = [part for part in path[len(root) :].split("/") if part]
        for part in parts[:-1]:
            after = f"{at.rstrip('/')}/{part}"
            if after not in self.pins and not self._pin(at, part, after):
                return at, part
            at = after
        return (at, parts[-1]) if parts else (at, "")

    def _pin(self, at: str, part: str, path: str) -> bool:
        """Whether there is a folder of this name, kept where it is from now on."""
        try:
            mode = os.lstat(part, dir_fd=self._folder(at)).st_mode
        except OSError:
            return False
        if not stat.S_ISDIR(mode):
            return False
        fd = _opened(path)
        if fd is None:
            return False
        self.pins[path] = Bound(path, fd, True)
        return True

    def _folder(self, path: str) -> int:
        """A descriptor of a folder that is pinned, or the root of a grant; kept for the look afterwards."""
        if path in self.pins:
            return self.pins[path].fd
        if path not in self._watched:
            self._watched[path] = _Absent(path, open_exactly(path), {})
        return self._watched[path].fd

    def _watch(self, folder: str, name: str, target: str) -> None:
        if folder not in self._watched:
            self._watched[folder] = _Absent(folder, os.dup(self._folder(folder)), {})
        self._watched[folder].names[name] = target

    def _link(self, folder: str, name: str) -> None:
        """A link where something protected may be: it must stay what it is, and what it leads to is protected."""
        try:
            self._watch(folder, name, os.readlink(name, dir_fd=self._folder(folder)))
        except OSError:
            return
        target = real(f"{folder.rstrip('/')}/{name}")
        root = self._root_of(target)
        if root and target != root and target not in self.bound and os.path.exists(target):
            self._descend(root, target)
            self._bind(target)

    def _bind(self, path: str) -> bool:
        fd = _opened(path)
        if fd is None:
            return False
        self.bound[path] = Bound(path, fd, stat.S_ISDIR(os.fstat(fd).st_mode))
        return True

    # ------------------------------------------------------------ afterwards

    def forget(self, covered: Iterable[str]) -> None:
        """What is covered needs no other protection, nor does what lies below it."""
        hidden = tuple(covered)
        for table in (self.bound, self.pins):
            for path in [p for p in table if any(below(p, c) for c in hidden)]:
                os.close(table.pop(path).fd)
        for path in [p for p in self._watched if any(below(p, c) for c in hidden)]:
            os.close(self._watched.pop(path).fd)

    def let_go(self) -> None:
        """The mounts are made: only what is looked at afterwards stays open."""
        for bound in (*self.bound.values(), *self.pins.values()):
            os.close(bound.fd)
        self.bound.clear()
        self.pins.clear()

    def violations(self, mark: str) -> list[str]:
        """What appeared where nothing protected was: moved aside, as `path (now path)`; ends the watch."""
        found: list[str] = []
        for path, fd, names in self._watched.values():
            for name, target in names.items():
                if _now(fd, name) != target:
                    aside = _move_aside(fd, name, mark)
                    found.append(f"{path}/{name} ({f'now {aside}' if aside else 'it could not be moved aside'})")
        self.close()
        return found

    def close(self) -> None:
        """Give every descriptor back."""
        self.let_go()
        for absent in self._watched.values():
            os.close(absent.fd)
        self._watched.clear()


def _opened(path: str) -> int | None:
    try:
        return open_exactly(path)
    except OSError:
        return None


def _now(fd: int, name: str) -> str | None:
    """What a link leads to, "" if nothing is there, None if there is something else."""
    try:
        return os.readlink(name, dir_fd=fd)
    except FileNotFoundError:
        return ""
    except OSError:
        return None


def _move_aside(fd: int, name: str, mark: str) -> str:
    """Give what appeared a name under which nothing runs it; "" if that fails. A link is gone, or was replaced."""
    for number in range(100):
        aside = f"{name}.{_ASIDE}-{mark}{f'-{number}' if number else ''}"
        try:
            os.lstat(aside, dir_fd=fd)
        except OSError:
            try:
                os.rename(name, aside, src_dir_fd=fd, dst_dir_fd=fd)
            except FileNotFoundError:
                return "nowhere"
            except OSError:
                return ""
            return aside
    return ""

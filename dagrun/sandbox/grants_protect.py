"""What may be read and never written although a write grant holds it: what git, an editor or a shell would run.

What is there is opened, to be bound read-only, with every folder between it and the root of its
grant: a mount holds itself and not its parents, so these are bound onto themselves, and renaming one
fails. What is not there can't be bound without leaving something behind: it is looked for again
afterwards, and moved aside. Knows no back end.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from typing import NamedTuple

from dagrun.sandbox import plants
from dagrun.sandbox.grants_open import below, open_exactly, real
from dagrun.sandbox.plants import Watched

# Relative to the project and to each write root. `.git/commondir` would move git's configuration.
PROTECTED = (
    *(f".git/{n}" for n in ("hooks", "config", "config.worktree", "commondir", "info/attributes", "modules")),
    *".dagrun .envrc .direnvrc .vscode .idea .mcp.json .claude .cursor .agents/skills".split(),
    *".bashrc .bash_profile .bash_login .profile .kshrc .zshrc .zshenv .zprofile .zlogin".split(),
    *".gitconfig .inputrc .ripgreprc .exrc .vimrc .nvimrc".split(),
)
_GIT = tuple(name for name in PROTECTED if name.startswith(".git/"))
MAX_LOOKED_AT = 20_000  # entries of write grants among which repositories are looked for, the shallow ones first
MAX_REPOSITORIES = 64  # each is some mounts
_MOST_CONFIG = 1 << 18
_SECTION = re.compile(r"\s*\[\s*([A-Za-z0-9.-]+)")
_PATH = re.compile(r'\s*(?:\[[^\]]*\])?\s*(hookspath|attributesfile|path)\s*=\s*"?([^"#;\n]+)', re.IGNORECASE)


class Bound(NamedTuple):
    """A path and the descriptor of what is there: to be bound read-only, or (a pin) onto itself."""

    path: str
    fd: int
    folder: bool


class Protection:
    """The protected paths inside the write grants of one attempt. `close` gives the descriptors back."""

    def __init__(self, write_roots: Iterable[str]) -> None:
        self._roots = tuple(write_roots)
        self.bound: dict[str, Bound] = {}
        self.pins: dict[str, Bound] = {}
        self._watched: dict[str, Watched] = {}
        self._record = ""

    def add(self, base: str, relative: Iterable[str]) -> None:
        """Protect paths below the folder `base`, which has no links in it."""
        whole = self._root_of(base)
        for path in relative:
            full = f"{base.rstrip('/')}/{path}"
            if root := whole or self._root_of(full):
                self._protect(root, full)

    def add_path(self, path: str) -> None:
        """Protect one absolute path, spelt as it is and as what it leads to."""
        self._keep_links(path)
        folder = real(os.path.dirname(path))
        for spelt in dict.fromkeys((f"{folder.rstrip('/')}/{os.path.basename(path)}", real(path))):
            if root := self._root_of(spelt):
                self._protect(root, spelt)

    def add_git(self, base: str) -> None:
        """Protect what git would run from elsewhere for the repository at `base`, by its own configuration."""
        for path in named_by_git(base):
            self.add_path(path)

    def add_repositories(self, roots: Iterable[str]) -> None:
        """Protect what git would run in the repositories further down in write grants."""
        for base in repositories_below(roots):
            self.add(base, _GIT)
            self.add_git(base)

    def _keep_links(self, path: str) -> None:
        """Links among the folders above `path` must stay what they are, or it would be another file tomorrow."""
        at = "/"
        for part in path.split("/")[1:-1]:
            spelt = f"{at.rstrip('/')}/{part}"
            root = self._root_of(spelt) if os.path.islink(spelt) else ""
            if root and spelt != root:
                folder, name = self._descend(root, spelt)
                try:
                    self._watch(folder, name, os.readlink(name, dir_fd=self._folder(folder)))
                except OSError:
                    pass  # it went away just now
            at = real(spelt)

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
            self._watched[path] = Watched(path, open_exactly(path), {})
        return self._watched[path].fd

    def _watch(self, folder: str, name: str, target: str) -> None:
        if folder not in self._watched:
            self._watched[folder] = Watched(folder, os.dup(self._folder(folder)), {})
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

    def write_down(self, run_dir: str, attempt_id: str) -> None:
        """Let others find what appears, should this process be killed: see plants.write_down. Raises OSError."""
        self._record = plants.write_down(run_dir, attempt_id, self._watched.values())

    def violations(self, attempt_id: str) -> list[str]:
        """What appeared where nothing protected was: moved aside, as `path (now name)`; ends the watch."""
        found = plants.judge(self._watched.values(), attempt_id)
        self.close()
        return found

    def close(self) -> None:
        """Give every descriptor back."""
        self.let_go()
        for absent in self._watched.values():
            os.close(absent.fd)
        self._watched.clear()
        if self._record:
            plants.forget(self._record)
            self._record = ""


def repositories_below(roots: Iterable[str]) -> list[str]:
    """The folders with a `.git` at any depth below `roots`, no link followed; the shallow ones when there are many.

    At most MAX_REPOSITORIES, among the first MAX_LOOKED_AT entries: a larger tree is a declared gap.
    """
    found: list[str] = []
    queue = [root.rstrip("/") for root in roots]
    left = MAX_LOOKED_AT
    for folder in queue:
        try:
            with os.scandir(folder or "/") as entries:
                for entry in entries:
                    left -= 1
                    if entry.name == ".git":
                        found.append(folder)
                    elif entry.name != ".dagrun" and entry.is_dir(follow_symlinks=False):
                        queue.append(entry.path)
        except OSError:
            continue
        if left < 0 or len(found) >= MAX_REPOSITORIES:
            break
    return found


def named_by_git(base: str) -> list[str]:
    """Absolute paths that decide what git runs in the repository at `base`, beside those of PROTECTED.

    Hooks kept in the tree, attributes and configuration that are included, where its other worktrees
    look for theirs, and the folder that a `.git` file leads to.
    """
    git = f"{base.rstrip('/')}/.git"
    found: list[str] = []
    if not os.path.isdir(git):
        lead = _text(git).removeprefix("gitdir:").strip()
        if not lead:
            return []
        git = os.path.normpath(os.path.join(base, lead))
        common = os.path.normpath(os.path.join(git, _text(f"{git}/commondir").strip()))
        found += [f"{git}/{name}" for name in ("commondir", "gitdir", "config.worktree", "hooks", "config")]
        found += [f"{common}/{name}" for name in ("hooks", "config", "info/attributes")] if common != git else []
        configs = [f"{common}/config", f"{git}/config.worktree"]
    else:
        for tree in _names(f"{git}/worktrees"):
            found += [f"{git}/worktrees/{tree}/{name}" for name in ("commondir", "gitdir", "config.worktree")]
        configs = [f"{git}/config", f"{git}/config.worktree"]
    for config in configs:
        found += _named_in(config, base)
    return found


def _named_in(config: str, base: str) -> list[str]:
    """The paths that a file of git's configuration names: hooks (from `base` on), attributes, other files."""
    found: list[str] = []
    section = ""
    for line in _text(config).splitlines():
        head = _SECTION.match(line)
        section = head[1].lower() if head else section
        value = _PATH.match(line)
        if value is None or (value[1].lower() == "path" and not section.startswith("include")):
            continue
        name = os.path.expanduser(value[2].strip())
        start = os.path.dirname(config) if value[1].lower() == "path" else base
        if "\0" not in name:
            found.append(os.path.normpath(os.path.join(start, name)))
    return found


def _text(path: str) -> str:
    """The beginning of a regular file, "" if it is none. Never waits for a pipe."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return os.read(fd, _MOST_CONFIG).decode("utf-8", "replace") if regular else ""
    except OSError:
        return ""
    finally:
        os.close(fd)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _opened(path: str) -> int | None:
    try:
        return open_exactly(path)
    except OSError:
        return None

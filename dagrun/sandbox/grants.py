"""From what an attempt may read and write to opened folders and files, and what inside them stays shut.

Every root is opened without following a link and kept as a descriptor until it is mounted, so what a
hostile command swaps meanwhile is not what another one gets. Knows no back end: what can't be held
by one (a folder inside a write grant that only Landlock would have to subtract) is its to refuse.
Invariants: `deny` wins over every grant; what is protected or hidden is in no grant as writable;
what can't be granted safely is Refused, never left out silently.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from typing import NamedTuple

from dagrun.core.roots import is_glob, is_key, literal, path_fault, root_of
from dagrun.errors import EnvironmentFault
from dagrun.sandbox.grants_cover import SYSTEM, Cover, Covers
from dagrun.sandbox.grants_open import (
    Budget,
    TooMuch,
    below,
    expand,
    link_in,
    make_folders,
    names_in,
    open_exactly,
    place_of,
    real,
    told,
)
from dagrun.sandbox.grants_protect import PROTECTED, Bound, Protection
from dagrun.sandbox.wall import NOTHING_MORE, Aftermath, Refused, Spec

MAX_FILES = 256  # that one glob may mean
_KERNEL = ("/proc", "/sys", "/dev")
# Whoever reaches one of these sockets is root, or this user outside of every sandbox.
_ENGINES = (
    *("/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock"),
    *("/run/dbus/system_bus_socket", "/run/systemd/private", f"/run/user/{os.getuid()}", "/var/run/docker.sock"),
)

__all__ = ["MAX_FILES", "Bound", "Cover", "Grant", "Grants", "home_of_user", "is_key", "open_grants", "sockets_in"]


class Grant(NamedTuple):
    """A root, open: `path` is where it is seen, `device` and `inode` are what it is."""

    path: str
    fd: int
    write: bool
    folder: bool
    device: int
    inode: int


class Grants:
    """What one attempt gets: `roots` (parents first), and in them what is covered, read-only, or kept in place.

    `everything` tells that files are not held: no roots, all is as for dagrun itself. Close it,
    or `let_go` once the mounts are made and then `aftermath`.
    """

    def __init__(self, roots: tuple[Grant, ...], everything: bool, exchange: Grant | None) -> None:
        self.roots = roots
        self.everything = everything
        self.exchange = exchange
        self.covers: tuple[Cover, ...] = ()
        self._protection = Protection(["/"] if everything else [root.path for root in roots if root.write])

    @property
    def protected(self) -> tuple[Bound, ...]:
        """What is in a write grant and must stay read-only, parents first."""
        return tuple(sorted(self._protection.bound.values(), key=lambda b: b.path.split("/")))

    @property
    def pins(self) -> tuple[Bound, ...]:
        """Folders in write grants that must not be renamed, parents first."""
        return tuple(sorted(self._protection.pins.values(), key=lambda b: b.path.split("/")))

    @property
    def fds(self) -> tuple[int, ...]:
        """Every descriptor that a mount is made from."""
        return tuple([grant.fd for grant in self._all()] + [bound.fd for bound in (*self.protected, *self.pins)])

    def holds(self, path: str) -> bool:
        """Whether a path without links is inside a grant, and not covered."""
        inside = self.everything or any(below(path, root.path) for root in self._all())
        return inside and not self.covered(path)

    def covered(self, path: str) -> bool:
        """Whether a path is denied or hidden."""
        if self.exchange is not None and below(path, self.exchange.path):
            return False
        return any(below(path, cover.path) for cover in self.covers)

    def _all(self) -> Iterator[Grant]:
        yield from self.roots
        if self.exchange is not None:
            yield self.exchange

    def let_go(self) -> None:
        """The mounts are made, or never will be: close what they were made from."""
        for grant in self._all():
            os.close(grant.fd)
        self.roots, self.exchange = (), None
        self._protection.let_go()

    def aftermath(self, attempt_id: str) -> Aftermath:
        """What the attempt made where it must not, moved aside: outcome `denied`. All of it is dead."""
        found = self._protection.violations(attempt_id)
        if not found:
            return NOTHING_MORE
        text = f"it made {', '.join(found)}: what git, an editor or a shell would run is not for a node to write"
        return Aftermath(outcome="denied", error=text)

    def close(self) -> None:
        """Give everything back."""
        self.let_go()
        self._protection.close()


def home_of_user() -> str:
    """The home directory of who runs dagrun, without links; "/" if there is none."""
    home = os.environ.get("HOME", "")
    if not home.startswith("/"):
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = "/"
    return real(home)


def open_grants(spec: Spec) -> Grants:
    """Open what a spec grants, make missing write folders of the project, and find what is shut inside.

    Raises Refused for what can't be granted, SpawnBusy when the machine is short of descriptors.
    """
    try:
        found = _open_roots(spec)
        try:
            _shut(found, spec, real(spec.project), home_of_user())
            found._protection.write_down(spec.run_dir, spec.attempt_id)
        except BaseException:
            found.close()
            raise
        return found
    except OSError as error:
        raise told(error.errno or 0, error.filename or spec.project) from None


def _open_roots(spec: Spec) -> Grants:
    project, home = real(spec.project), home_of_user()
    opened: dict[str, Grant] = {}
    exchange: Grant | None = None
    try:
        if spec.exchange:
            exchange = _exchange(spec.exchange)
        for kind in ("write", "read"):
            for text in getattr(spec, kind) or ():
                for path in _paths(text, kind, project, home):
                    if not _granted(path, opened):
                        opened[path] = _root(text, path, kind, project)
        return Grants(_sorted(opened), spec.read is None, exchange)
    except BaseException:
        for grant in (*opened.values(), *([exchange] if exchange else [])):
            os.close(grant.fd)
        raise


def _granted(path: str, opened: dict[str, Grant]) -> bool:
    """Whether another root gives all of it already; write roots come first."""
    holder = next((g for g in opened.values() if below(path, g.path)), None)
    # A file with keys stays a root of its own: that it is named is what makes it visible.
    return holder is not None and not (is_key(os.path.basename(path)) and path not in opened)


def _sorted(opened: dict[str, Grant]) -> tuple[Grant, ...]:
    return tuple(sorted(opened.values(), key=lambda g: g.path.split("/")))


# ---------------------------------------------------------------- one root


def _paths(text: str, kind: str, project: str, home: str) -> Iterator[str]:
    """The absolute paths that a root means: itself, or what exists of a glob. Raises Refused."""
    fault = path_fault(text, write=kind == "write")
    if fault:
        raise Refused(f"permissions.paths.{kind}: {text!r}: {fault[0]}", fault[1])
    root = root_of(text)
    path = place_of(root, project, home)
    if not is_glob("/".join(root.parts)):
        yield path
        return
    _refuse_link(text, kind, place_of(literal(root), project, home))
    found = 0
    try:
        for match in expand(path, Budget(), dots=False):
            if os.path.islink(match) or not (os.path.isfile(match) or os.path.isdir(match)):
                continue
            found += 1
            if found > MAX_FILES:
                raise TooMuch(match)
            yield match
    except TooMuch:
        text = f"permissions.paths.{kind}: {text} means more than {MAX_FILES} files"
        raise Refused(text, f"grant the directory: {literal(root)}") from None


def _root(text: str, path: str, kind: str, project: str) -> Grant:
    """A root, opened and looked at. Raises Refused."""
    _refuse_place(text, path, kind, project)
    try:
        grant = _opened(path, write=kind == "write")
    except FileNotFoundError:
        grant = _made(text, path, kind, project)
    except OSError as error:
        if error.errno == errno.ELOOP:
            _refuse_link(text, kind, path)
        raise Refused(f"permissions.paths.{kind}: {text} can't be opened: {error.strerror}") from None
    try:
        _refuse_kind(text, kind, grant)
    except BaseException:
        os.close(grant.fd)
        raise
    return grant


def _opened(path: str, *, write: bool) -> Grant:
    fd = open_exactly(path)
    found = os.fstat(fd)
    return Grant(path, fd, write, stat.S_ISDIR(found.st_mode), found.st_dev, found.st_ino)


def _exchange(path: str) -> Grant:
    try:
        return _opened(real(path), write=True)._replace(path=path)
    except OSError as error:
        raise EnvironmentFault(f"the folder of this attempt is gone: {path}: {error.strerror}") from error


def _made(text: str, path: str, kind: str, project: str) -> Grant:
    """A folder of the project that is to be written and isn't there yet."""
    what = f"permissions.paths.{kind}: {text} does not exist"
    if kind == "read":
        raise Refused(what, "create it first, or let this node `needs:` the one that makes it")
    name = os.path.basename(path)
    if not below(path, project):
        raise Refused(what, f"create it first: mkdir -p {path}")
    if os.path.splitext(name)[1]:
        folder = os.path.relpath(os.path.dirname(path), project)
        raise Refused(f"{what}, and looks like a file", f"grant the directory it will be in ({folder}), or create it")
    try:
        make_folders(path, project)
        return _opened(path, write=True)
    except OSError as error:
        if error.errno == errno.ELOOP:
            _refuse_link(text, kind, path)
        raise Refused(f"permissions.paths.{kind}: {text} can't be made: {error.strerror}") from None


def _refuse_link(text: str, kind: str, path: str) -> None:
    link, target = link_in(path)
    if link:
        hint = f"grant what it leads to: {target + path[len(link) :]}"
        raise Refused(f"permissions.paths.{kind}: {text}: {link} is a symbolic link to {target}", hint)


def _refuse_place(text: str, path: str, kind: str, project: str) -> None:
    """Places that no sandbox can give away without giving away itself."""
    home = home_of_user()
    if path == "/" or any(below(path, place) for place in _KERNEL):
        raise Refused(f"permissions.paths.{kind}: {text}: nothing of `{path}` can be granted", "name the directories")
    if path == home or (below(home, path) and not below(path, project)):
        raise Refused(f"permissions.paths.{kind}: {text} holds the whole home directory", "name the directories")
    parts = (path[len(project) :] if below(path, project) else path).split("/")
    if ".dagrun" in parts:
        raise Refused(f"permissions.paths.{kind}: {text}: `.dagrun` is never visible to a node")
    for guarded in PROTECTED if kind == "write" else ():
        wanted = guarded.split("/")
        if any(parts[k : k + len(wanted)] == wanted for k in range(len(parts))):
            raise Refused(f"permissions.paths.write: {text}: `{guarded}` is never written by a node")
    for control in _ENGINES:
        if below(control, path) and os.path.lexists(control):
            raise Refused(f"permissions.paths.{kind}: {text} holds {control}: who reaches it can do anything here")


def _refuse_kind(text: str, kind: str, grant: Grant) -> None:
    """Only files and folders."""
    mode = os.fstat(grant.fd).st_mode
    what = "a Unix socket" if stat.S_ISSOCK(mode) else "" if stat.S_ISREG(mode) or grant.folder else "no file or folder"
    if what:
        raise Refused(f"permissions.paths.{kind}: {text} is {what}", "only files and directories can be granted")


def sockets_in(grant: Grant) -> Iterator[str]:
    """The names of Unix sockets directly inside a granted folder, and directly inside its folders."""
    if not grant.folder:
        return
    for entry in names_in(grant.fd) or ():
        # d_type tells without a look at the file; DirEntry has no word for sockets, so by exclusion.
        if entry.is_file(follow_symlinks=False) or entry.is_symlink():
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _sockets_one_down(grant.path, entry.name)
        elif stat.S_ISSOCK(_mode(f"{grant.path.rstrip('/')}/{entry.name}")):
            yield entry.name


def _sockets_one_down(path: str, folder: str) -> Iterator[str]:
    at = f"{path.rstrip('/')}/{folder}"
    try:
        with os.scandir(at) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink():
                    continue
                if stat.S_ISSOCK(_mode(f"{at}/{entry.name}")):
                    yield f"{folder}/{entry.name}"
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # gone, or not ours to look into


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


# ---------------------------------------------------------------- what stays shut inside


def _shut(found: Grants, spec: Spec, project: str, home: str) -> None:
    """Fill in covers, protected paths and pins; take out roots that are denied altogether."""
    hidden = [spelt for path in spec.hidden for spelt in {os.path.normpath(path), real(path)}]
    for root in found.roots:
        if any(below(root.path, path) for path in hidden):
            raise Refused(f"permissions.paths: {root.path} belongs to dagrun, or is a secret: no node sees it")
    roots = ["/"] if found.everything else [root.path for root in found.roots]
    covers = Covers(roots, project, home)
    covers.hide(spec.hidden)
    covers.deny(spec)
    for root in found.roots:
        if root.folder:
            covers.keys(root.path, root.fd)
    found.covers = covers.all()
    _drop(found, covers.denied_roots)
    _refuse_sockets(found)
    _protect(found, spec, project)


def _drop(found: Grants, denied: set[str]) -> None:
    """Take out the roots that are denied, and the covers that lie in no other."""
    for root in found.roots:
        if root.path in denied:
            os.close(root.fd)
    found.roots = tuple(root for root in found.roots if root.path not in denied)
    seen = ["/"] if found.everything else [*(root.path for root in found.roots), *SYSTEM]
    found.covers = tuple(cover for cover in found.covers if any(below(cover.path, place) for place in seen))


def _refuse_sockets(found: Grants) -> None:
    """A socket in sight, unless it is covered: a back end without a filter for sockets would let it be reached."""
    for root in found.roots:
        for name in sockets_in(root):
            if not found.covered(f"{root.path.rstrip('/')}/{name}"):
                raise Refused(
                    f"permissions.paths: {root.path} holds a Unix socket: {name}; read-only or not, it can be reached",
                    f"deny it (permissions.paths.deny: [{name}]), or grant the directories beside it",
                )


def _protect(found: Grants, spec: Spec, project: str) -> None:
    protection = found._protection
    bases = [project, *(root.path for root in found.roots if root.write and root.folder)]
    for base in dict.fromkeys(bases):
        protection.add(base, PROTECTED)
        protection.add_git(base)
        repository, dot_git, _ = base.rpartition("/.git")
        if dot_git and f"{base}/".startswith(f"{repository}/.git/"):
            protection.add(repository, PROTECTED)
            protection.add_git(repository)
    held = spec.read is not None
    protection.add_repositories(bases[1:] if held else [project])
    for path in (*spec.protected, f"{project}/skills"):
        protection.add_path(path)
    for cover in found.covers:
        # With a folder above it renamed, what it covers would lie open for whoever comes next.
        protection.pin(cover.path)
    protection.forget([cover.path for cover in found.covers])

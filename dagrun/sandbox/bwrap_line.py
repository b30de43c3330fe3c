"""The command line of bubblewrap for one attempt: what is seen inside, where, and in which order it is mounted.

Pure but for looks at which system folders exist. Knows no processes; descriptors are numbers to it.
Invariants: everything is mounted parents first, so that no mount hides a later one; the root, /proc
and /dev become read-only last; nothing of the caller's is mounted by a path that a command could swap.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from dagrun.sandbox.grants import Grants, home_of_user
from dagrun.sandbox.grants_open import below, real
from dagrun.sandbox.wall import Spec

TMP_BYTES = 1 << 30
HOME_BYTES = 256 << 20
SHM_BYTES = 64 << 20
_COVER_BYTES = 1 << 16
# Read-only in every sandbox that is held to paths: what programs need to run, no data and no keys of anyone.
_ETC = (
    "ld.so.cache ld.so.conf ld.so.conf.d alternatives ssl/certs ssl/openssl.cnf ssl/cert.pem ca-certificates"
    " pki/tls/certs pki/tls/cert.pem pki/tls/openssl.cnf pki/ca-trust crypto-policies passwd group nsswitch.conf"
    " localtime timezone mime.types terminfo fonts os-release python3 perl java java-11-openjdk"
    " java-17-openjdk java-21-openjdk java-25-openjdk maven"
).split()
_ETC_NETWORK = ("resolv.conf", "hosts", "host.conf", "gai.conf", "protocols", "services")
_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_MORE = ("/nix/store",)
_NO_HOME = ("/usr", "/etc", "/proc", "/sys", "/dev", "/nix", "/run", *(f"/{name}" for name in _TOP))
_KEYS = "/proc/keys"  # names the keys of the user, whatever the namespace
_SPARE_HOME, _SPARE_TMP = "/dev/shm/home", "/dev/shm/tmp"


class Private(NamedTuple):
    """Where the private HOME and TMPDIR of an attempt are; `mounts` are the folders to be made for them."""

    home: str
    tmp: str
    mounts: tuple[tuple[str, int], ...]


class Fds(NamedTuple):
    """Descriptors that bwrap gets beside those of the grants; `gate` is -1 for an attempt that is not held."""

    seccomp: int
    status: int
    gate: int


class _Mount(NamedTuple):
    """One step: sorted by place, then by what goes over what."""

    parts: list[str]
    rank: int
    words: tuple[str, ...]


def cwd_of(spec: Spec) -> str:
    """The folder that the command starts in, as it is called inside: without links."""
    return real(os.path.join(spec.project, spec.cwd))


def system_roots() -> tuple[str, ...]:
    """The folders with programs that are seen read-only in every sandbox, without links."""
    real_tops = [f"/{name}" for name in _TOP if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")]
    return ("/usr", *real_tops, *(path for path in _MORE if os.path.isdir(path)))


def private_places(grants: Grants) -> Private:
    """Choose HOME and TMPDIR: at their usual places, unless a grant is there or nothing may be made there."""
    if grants.everything:
        return Private(_SPARE_HOME, _SPARE_TMP, ())
    roots = [root.path for root in grants.roots]
    mounts: list[tuple[str, int]] = []
    tmp = _SPARE_TMP
    if "/tmp" not in roots:
        tmp = "/tmp"
        mounts.append((tmp, TMP_BYTES))
    home = home_of_user()
    held = any(below(home, root) for root in roots)
    bad = home == "/" or any(below(home, place) or below(place, home) for place in _NO_HOME)
    if bad or home in roots or (held and not (os.path.isdir(home) and grants.holds(home))):
        home = _SPARE_HOME
    elif home != tmp:
        mounts.append((home, HOME_BYTES))
    return Private(home, tmp, tuple(mounts))


def command_line(
    program: str, spec: Spec, cwd: str, grants: Grants, private: Private, fds: Fds, *, fresh_proc: bool, user: bool
) -> list[str]:
    """Everything before the command itself, `--` included.

    `fresh_proc` False binds the caller's /proc, where the kernel allows no new one; `user` makes a
    user namespace that can't be left for another one.
    """
    line = [program, "--unshare-all", "--new-session", "--die-with-parent", "--cap-drop", "ALL"]
    if spec.network == "any":
        line += ["--share-net"]
    if user:
        line += ["--unshare-user", "--disable-userns"]
    line += _everything() if grants.everything else _system(spec)
    line += ["--proc", "/proc"] if fresh_proc else ["--ro-bind", "/proc", "/proc"]
    line += ["--dev", "/dev"]
    if fds.gate >= 0:  # it waits here, in its namespaces; what it copied is covered right after
        line += ["--file", str(fds.gate), "/dev/shm/gate"]
    line += ["--size", str(SHM_BYTES), "--perms", "1777", "--tmpfs", "/dev/shm"]
    for path in {private.home, private.tmp} & {_SPARE_HOME, _SPARE_TMP}:
        line += ["--perms", "0700", "--dir", path]
    mounts = [*_grants(grants), *_private(private), *_places(spec, cwd, grants)]
    for mount in sorted(mounts):
        line += mount.words
    for cover in grants.covers:
        if cover.folder:
            line += ["--remount-ro", cover.path]
    if os.path.exists(_KEYS):
        line += ["--ro-bind", "/dev/null", _KEYS]
    if fresh_proc:
        line += ["--remount-ro", "/proc"]
    # It is a file system in memory as large as half of it, and bounded by nothing.
    line += ["--remount-ro", "/dev"]
    if not grants.everything:
        line += ["--remount-ro", "/"]
    return [*line, "--chdir", cwd, "--seccomp", str(fds.seccomp), "--json-status-fd", str(fds.status), "--"]


def _system(spec: Spec) -> list[str]:
    line: list[str] = []
    for path in system_roots():
        line += ["--ro-bind", path, path]
    for name in _TOP:
        if os.path.islink(f"/{name}"):
            line += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
    names = _ETC if spec.network is None or spec.network == "none" else [*_ETC, *_ETC_NETWORK]
    for name in names:
        path = f"/etc/{name}"
        if os.path.exists(path):
            line += ["--ro-bind", path, path]
    return [*line, "--dir", "/run", "--dir", "/var"]


def _everything() -> list[str]:
    """All files as they are; /sys is read-only, as control groups would let a command take its limits off."""
    return ["--bind", "/", "/", *(["--ro-bind", "/sys", "/sys"] if os.path.isdir("/sys") else [])]


def _mount(path: str, rank: int, *words: str) -> _Mount:
    return _Mount(path.split("/"), rank, words)


def _grants(grants: Grants) -> Iterator[_Mount]:
    for root in grants.roots:
        yield _mount(root.path, 1, "--bind-fd" if root.write else "--ro-bind-fd", str(root.fd), root.path)
    for pin in grants.pins:
        yield _mount(pin.path, 2, "--bind-fd", str(pin.fd), pin.path)
    for kept in grants.protected:
        yield _mount(kept.path, 3, "--ro-bind-fd", str(kept.fd), kept.path)
    for cover in grants.covers:
        mode = "0555" if cover.hidden else "0000"
        if cover.folder:
            yield _mount(cover.path, 4, "--perms", mode, "--size", str(_COVER_BYTES), "--tmpfs", cover.path)
        else:
            # Devices don't work on such a mount: opening it fails instead of giving nothing.
            yield _mount(cover.path, 4, "--ro-bind", "/dev/null", cover.path)
    if grants.exchange is not None:
        exchange = grants.exchange
        yield _mount(exchange.path, 5, "--bind-fd", str(exchange.fd), exchange.path)


def _private(private: Private) -> Iterator[_Mount]:
    for path, size_bytes in private.mounts:
        mode = "1777" if path == private.tmp else "0700"
        yield _mount(path, 0, "--perms", mode, "--size", str(size_bytes), "--tmpfs", path)


def _places(spec: Spec, cwd: str, grants: Grants) -> Iterator[_Mount]:
    """The folder to start in, and what programs expect to be somewhere."""
    if grants.everything:
        for path in dict.fromkeys((real(spec.project), cwd)):
            if below(path, "/dev"):  # which is a new one
                yield _mount(path, 1, "--bind", path, path)
        return
    roots = [root.path for root in grants.roots]
    if cwd != "/" and not any(below(cwd, root) for root in (*roots, *system_roots())):
        yield _mount(cwd, 0, "--dir", cwd)
    if not any(below(root, "/var/tmp") or below("/var/tmp", root) for root in roots):
        yield _mount("/var/tmp", 0, "--symlink", "/tmp", "/var/tmp")

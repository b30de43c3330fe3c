"""From grants to Landlock rules: rules only ever add, so what must not be seen is left out piece by piece.

A folder with a hole in it (something hidden, denied, or read-only where the rest may be written) gets
no rule of its own but the right to list names; each of its entries gets one instead. So an entry
that appears later is closed, and nothing new can be made directly in such a folder. Names of what is
hidden can be listed: Landlock has no rule against that. Knows descriptors and paths, no specs.
"""

from __future__ import annotations

import functools
import os
import stat
from typing import NamedTuple

from dagrun.sandbox.grants_open import below, names_in, open_exactly
from dagrun.sandbox.landlock_kernel import READ, READ_DIR, READ_FILE, TRUNCATE, WRITE, WRITE_FILE, Ruleset
from dagrun.sandbox.wall import Refused

MAX_RULES = 4096

# What programs need of a system to start at all; names that are not there are left out.
_SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /libx32 /nix/store /gnu/store".split()
_ETC = """
    ld.so.cache ld.so.conf ld.so.conf.d ld.so.preload alternatives
    ssl/certs ssl/cert.pem ssl/openssl.cnf pki/tls/certs pki/tls/cert.pem pki/tls/openssl.cnf pki/ca-trust
    ca-certificates ca-certificates.conf crypto-policies
    passwd group nsswitch.conf localtime timezone os-release debian_version locale.conf locale.alias
    default/locale mime.types protocols services shells terminfo inputrc profile bash.bashrc magic
    python3 perl java-17-openjdk java-21-openjdk fonts gitconfig gitattributes login.defs
""".split()
_ETC_OF_THE_NETWORK = "resolv.conf hosts host.conf gai.conf hostname".split()
# Nothing here tells of a process, nor can it be written; /proc as a whole shows every command line.
_PROC = """
    cpuinfo meminfo stat loadavg uptime version filesystems sys/kernel/osrelease sys/kernel/ostype
    sys/kernel/version sys/kernel/pid_max sys/kernel/threads-max sys/kernel/cap_last_cap sys/kernel/ngroups_max
    sys/kernel/random/uuid sys/kernel/random/boot_id sys/vm/overcommit_memory sys/vm/max_map_count
    sys/fs/pipe-max-size sys/fs/file-max sys/fs/nr_open
""".split()
_CORES = ("/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage")
_TERMINALS = tuple("tty vcs console pts ptmx".split())
_MEMORY = ("shm", "mqueue")
_DEVICES = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom".split()


class Holes(NamedTuple):
    """What a grant does not mean although it holds it: `closed` not at all, `fixed` for reading only."""

    closed: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()

    def inside(self, path: str) -> bool:
        """Whether one of them lies below `path`, and is not `path` itself."""
        return any(hole != path and below(hole, path) for hole in (*self.closed, *self.fixed))


class Rules:
    """Fills a ruleset. Raises Refused when a grant takes more rules than is reasonable, OSError."""

    def __init__(self, ruleset: Ruleset, holes: Holes) -> None:
        self._ruleset = ruleset
        self._holes = holes
        self._left = MAX_RULES
        self.listed: list[str] = []  # folders with a hole in them

    def add(self, path: str, fd: int, rights: int) -> None:
        """Allow `rights` to what `fd` is open on, and below it, but for the holes."""
        if path in self._holes.closed:
            return
        if path in self._holes.fixed:
            rights &= READ
        mode = os.fstat(fd).st_mode
        if not stat.S_ISDIR(mode):
            self._allow(path, fd, rights, folder=False)
        elif not self._holes.inside(path):
            self._allow(path, fd, rights, folder=True)
        else:
            self._allow(path, fd, READ_DIR, folder=True)
            self.listed.append(path)
            self._add_entries(path, fd, rights)

    def _add_entries(self, path: str, fd: int, rights: int) -> None:
        for entry in names_in(fd) or ():
            if entry.is_symlink():
                continue  # what it leads to has its own rule, or none
            try:
                inner = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except FileNotFoundError:
                continue
            try:
                if not stat.S_ISLNK(os.fstat(inner).st_mode):
                    self.add(f"{path.rstrip('/')}/{entry.name}", inner, rights)
            finally:
                os.close(inner)

    def add_path(self, path: str, rights: int) -> None:
        """The same for a path without links; nothing if it is not there."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self.add(path, fd, rights)
        finally:
            os.close(fd)

    def add_folder(self, path: str) -> None:
        """The attempt's own folder, opened without following a link: holes don't matter in it."""
        fd = open_exactly(os.path.realpath(path))
        try:
            self._allow(path, fd, WRITE, folder=True)
        finally:
            os.close(fd)

    def add_file(self, fd: int) -> None:
        """A regular file that is open already, to be opened anew for reading and writing; others need no rule."""
        if stat.S_ISREG(os.fstat(fd).st_mode):
            self._allow("a log file", fd, READ_FILE | WRITE_FILE | TRUNCATE, folder=False)

    def add_system(self, *, network: bool) -> None:
        """What programs need to start: libraries, names of users and hosts, harmless devices and figures."""
        for path in _readable(network):
            self.add_path(path, READ)
        for path in _DEVICES:
            self.add_path(path, READ_FILE | WRITE_FILE)

    def _allow(self, path: str, fd: int, rights: int, *, folder: bool) -> None:
        self._left -= 1
        if self._left < 0:
            raise Refused(
                f"{path}: Landlock would need more than {MAX_RULES} rules to leave out what is hidden or denied here",
                "grant narrower directories, or install bubblewrap",
            )
        self._ruleset.allow(fd, rights, folder=folder)


def terminals_and_memory() -> frozenset[str]:
    """What of /dev leads to a terminal, or to memory and queues of other processes."""
    try:
        names = os.listdir("/dev")
    except OSError:
        return frozenset()
    return frozenset(f"/dev/{name}" for name in names if name.startswith(_TERMINALS) or name in _MEMORY)


@functools.cache
def system_roots() -> tuple[str, ...]:
    """Where programs and libraries are, whatever is granted; without links."""
    return tuple(dict.fromkeys([os.path.realpath(path) for path in _SYSTEM]))


@functools.cache
def _readable(network: bool) -> tuple[str, ...]:
    """What of the system every attempt may read, without links, nothing below another."""
    etc = (*_ETC, *_ETC_OF_THE_NETWORK) if network else _ETC
    rest = [os.path.realpath(path) for path in (*(f"/etc/{n}" for n in etc), *(f"/proc/{n}" for n in _PROC), *_CORES)]
    found = dict.fromkeys([*system_roots(), *rest])
    return tuple(p for p in found if not any(p != q and below(p, q) for q in found))

"""What the kernel offers to a thread that gives up rights: Landlock rules and capabilities.

Speaks system calls through ctypes and nothing else: knows no grants, specs or attempts. All of it binds
the calling thread and what it starts, never the process: so a throw-away thread can restrict itself
and spawn, and dagrun keeps its rights. Invariant: a right that this kernel doesn't know is left out of
both sides, so what is not held here is never claimed; `abi` tells which.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct

from dagrun.errors import EnvironmentFault

# include/uapi/linux/landlock.h
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 9, 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = EXECUTE | READ_FILE | READ_DIR
# Device files stay out: they would outlive the sandbox and reach a disk.
WRITE = READ | WRITE_FILE | TRUNCATE | REFER | REMOVE_DIR | REMOVE_FILE
WRITE |= MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM
EVERYTHING = WRITE | MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV
# What a rule for a file that is no folder may hold.
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

TRUNCATE_ABI, TCP_ABI, IOCTL_ABI, SCOPE_ABI = 3, 4, 5, 6
_REFER_ABI = 2
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract Unix sockets, signals

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_CAPSET = {"x86_64": 126, "aarch64": 91}
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 28, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECUREBITS = 0b101111  # noroot and no-setuid-fixup, locked; keep-caps locked off
_CAP_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def abi() -> int:
    """The version of Landlock that this kernel has; 0 when it has none or may not be asked."""
    found = _libc.syscall(_number(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION_FLAG))
    return max(0, int(found))


def handled(version: int) -> int:
    """The rights to files that Landlock of this version controls."""
    bits = EVERYTHING
    for right, since in ((REFER, _REFER_ABI), (TRUNCATE, TRUNCATE_ABI), (IOCTL_DEV, IOCTL_ABI)):
        if version < since:
            bits &= ~right
    return bits


class Ruleset:
    """Rules to be, until a thread takes them on: everything is refused but what `allow` names.

    `tcp` True leaves TCP open. Raises EnvironmentFault where the kernel has no Landlock, OSError (EMFILE …)
    when it is short of something.
    """

    __slots__ = ("_handled", "fd")

    def __init__(self, *, tcp: bool) -> None:
        version = abi()
        if not version:
            raise EnvironmentFault(
                "the kernel has no Landlock",
                hint="boot with lsm=landlock,… (Linux 5.13 or newer), or install bubblewrap",
            )
        self._handled = handled(version)
        attributes = struct.pack("=Q", self._handled)
        if version >= TCP_ABI:
            attributes += struct.pack("=Q", 0 if tcp else _TCP)
        if version >= SCOPE_ABI:
            attributes += struct.pack("=Q", _SCOPES)
        self.fd = _libc.syscall(
            _number(_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)
        )
        if self.fd < 0:
            raise _error("can't make Landlock rules")

    def allow(self, fd: int, rights: int, *, folder: bool) -> None:
        """Allow `rights` to the file that `fd` is open on (O_PATH will do), and to all below a `folder`."""
        rights &= self._handled if folder else self._handled & _OF_FILES
        if not rights:
            return
        rule = struct.pack("=Qi", rights, fd)
        if _libc.syscall(_number(_ADD_RULE), self.fd, _PATH_BENEATH, rule, ctypes.c_uint(0)):
            raise _error("can't add a Landlock rule")

    def close(self) -> None:
        """Forget the rules; threads that took them on keep them."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def give_up_privileges() -> None:
    """This thread, and all that it starts, never gains a privilege again, not by set-id files either."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def give_up_capabilities() -> None:
    """This thread, and all that it starts, has no capability, root or not. Raises OSError."""
    machine = os.uname().machine
    if machine not in _CAPSET:
        raise EnvironmentFault(f"dagrun can't drop capabilities on {machine}")
    if os.geteuid() == 0:
        # Only needed where exec gives root its capabilities again, and only possible there.
        for number in range(64):
            if _libc.prctl(_PR_CAPBSET_DROP, *_words(number)):
                if ctypes.get_errno() == errno.EINVAL:
                    break  # the last one was the one before
                if ctypes.get_errno() != errno.EPERM:
                    raise _error("can't drop a capability")
                break  # no CAP_SETPCAP: then the securebits below fail too, and no_new_privs has to do
        _libc.prctl(_PR_SET_SECUREBITS, *_words(_SECUREBITS))
    _libc.prctl(_PR_CAP_AMBIENT, *_words(_PR_CAP_AMBIENT_CLEAR_ALL))
    header, nothing = struct.pack("=Ii", _CAP_VERSION_3, 0), bytes(24)
    if _libc.syscall(_number(_CAPSET[machine]), header, nothing):
        raise _error("can't drop the capabilities")


def restrict_this_thread(rules: Ruleset) -> None:
    """Bind this thread, and all that it starts, to `rules` for good; wants give_up_privileges first."""
    if _libc.syscall(_number(_RESTRICT_SELF), rules.fd, ctypes.c_uint(0)):
        raise _error("can't take on Landlock rules")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, *_words(value)):
        raise _error(f"prctl {option}")


def _words(value: int) -> tuple[ctypes.c_ulong, ...]:
    return (ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _number(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")

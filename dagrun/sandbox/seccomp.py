"""The system calls that a confined command may not make, as a program for the kernel's filter.

A deny list: what reaches around namespaces and file rules (mounts, tracing, keyrings, io_uring),
what widens the kernel's surface for no benefit to a command, and what would leave a trap behind
(set-id bits, device files). Refused calls give EPERM; those that programs know how to do without
(clone3, openat2, io_uring: their arguments lie in memory that no filter can read) give ENOSYS;
a call of another architecture kills. Knows no grants: paths are for namespaces and Landlock.
Invariant: a Unix socket can't be made nor aimed, so a socket file that is seen can't be used.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from typing import NamedTuple

from dagrun.errors import EnvironmentFault


class _Machine(NamedTuple):
    arch: int  # AUDIT_ARCH_*
    column: int  # in the tables below
    seccomp: int  # the number of seccomp(2)


_MACHINES = {"x86_64": _Machine(0xC000003E, 0, 317), "aarch64": _Machine(0xC00000B7, 1, 277)}
_NONE = -1  # this machine has no such call

# name: (x86_64, aarch64)
_REFUSED = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_by_handle_at": (304, 265),
    # keyrings
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # wide doors into the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "syslog": (103, 116),
    # the machine itself
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "create_module": (174, _NONE),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "nfsservctl": (180, 42),
    "iopl": (172, _NONE),
    "ioperm": (173, _NONE),
    "uselib": (134, _NONE),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
# Programs fall back to older calls when these aren't there.
_ABSENT = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),
    "openat2": (437, 437),  # its mode can carry set-id bits
}
_IPC = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
}
_AFFINITY = {"sched_setaffinity": (203, 122)}

_SET_ID = 0o6000
_CREATES = 0o100 | 0o20000000  # O_CREAT | __O_TMPFILE: only then does open look at a mode
_DEVICE = 0o020000  # the bit that S_IFCHR and S_IFBLK have and no other type of mknod
_NEW_NAMESPACE = 0x7E020000  # every CLONE_NEW* that clone takes
# call: the argument that holds a mode
_CHMODS = {"chmod": (90, _NONE, 1), "fchmod": (91, 52, 1), "fchmodat": (268, 53, 2), "fchmodat2": (452, 452, 2)}
_MKNODS = {"mknod": (133, _NONE, 1), "mknodat": (259, 33, 2)}
_CREAT = (85, _NONE, 1)
# call: the argument that holds flags; the mode is the next one
_OPENS = {"open": (2, _NONE, 1), "openat": (257, 56, 2)}
_CLONE = (56, 220)
_IOCTL = (16, 29)
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)

_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_STREAM, _DGRAM, _SEQPACKET = 1, 2, 5
_TYPE_MASK = 0xF  # the rest of socket's type are flags
_STREAM_PROTOCOLS = (0, 6)  # TCP; not MPTCP (262), SCTP, SMC: Landlock sees none of them
_DGRAM_PROTOCOLS = (0, 17, 1, 58)  # UDP and ping
_NETLINK_ROUTE = 0  # what getaddrinfo asks; the others tell of sockets and devices

_KILL = 0x80000000
_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000
_X32_BIT = 0x40000000

_LOAD, _RETURN, _AND = 0x20, 0x06, 0x54
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_NR, _ARCH, _ARGUMENTS = 0, 4, 16


class _Assembler:
    """Instructions of classic BPF with labels; all jumps go forward."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str, str]] = []
        self._labels: dict[str, int] = {}
        self._fresh = 0

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def fresh(self) -> str:
        self._fresh += 1
        return f".{self._fresh}"

    def load(self, offset: int) -> None:
        self._code.append((_LOAD, offset, "", ""))

    def argument(self, number: int) -> None:
        """The low word of an argument: all that the kernel looks at in an int."""
        self.load(_ARGUMENTS + 8 * number)

    def mask(self, bits: int) -> None:
        self._code.append((_AND, bits, "", ""))

    def when(self, test: int, value: int, yes: str, no: str = "") -> None:
        """Jump to a label; "" is the next instruction."""
        self._code.append((test, value, yes, no))

    def give(self, value: int) -> None:
        self._code.append((_RETURN, value, "", ""))

    def assemble(self) -> bytes:
        return b"".join(
            struct.pack("=HBBI", code, self._offset(at, yes), self._offset(at, no), value)
            for at, (code, value, yes, no) in enumerate(self._code)
        )

    def _offset(self, at: int, label: str) -> int:
        # struct refuses what does not fit into a byte.
        return self._labels[label] - at - 1 if label else 0


@functools.lru_cache(maxsize=8)
def filter_bytes(network: bool, *, ipc: bool = True, affinity: bool = True, machine: str = "") -> bytes:
    """The filter as the kernel takes it (an array of sock_filter).

    `network`: sockets of IPv4 and IPv6 may be made. `ipc` False refuses System V and POSIX queues,
    for back ends without an IPC namespace; `affinity` False keeps a command on its processors.
    Raises EnvironmentFault for a machine (default: this one) whose call numbers are not known.
    """
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise EnvironmentFault(
            f"dagrun has no system call filter for {machine}",
            hint=f"isolation process can be held on {' and '.join(_MACHINES)}; here use isolation: container",
        )
    arch, column, _ = _MACHINES[machine]
    asm = _Assembler()
    asm.load(_ARCH)
    asm.when(_EQUAL, arch, "", "kill")
    asm.load(_NR)
    if machine == "x86_64":
        asm.when(_AT_LEAST, _X32_BIT, "kill")
    refused = {**_REFUSED, **({} if ipc else _IPC), **({} if affinity else _AFFINITY)}
    for table, label in ((refused, "refuse"), (_ABSENT, "absent")):
        for numbers in table.values():
            if numbers[column] != _NONE:
                asm.when(_EQUAL, numbers[column], label)
    _modes(asm, column)
    _others(asm, column)
    _sockets(asm, column, network)
    asm.label("allow")
    asm.give(_ALLOW)
    asm.label("refuse")
    asm.give(_ERRNO | errno.EPERM)
    asm.label("absent")
    asm.give(_ERRNO | errno.ENOSYS)
    asm.label("kill")
    asm.give(_KILL)
    return asm.assemble()


def _modes(asm: _Assembler, column: int) -> None:
    """No set-id bit is ever set and no device file made: both would outlive the sandbox."""
    calls = [(numbers, _SET_ID) for numbers in (*_CHMODS.values(), _CREAT)]
    calls += [(numbers, _SET_ID | _DEVICE) for numbers in _MKNODS.values()]
    for numbers, bits in calls:
        if numbers[column] == _NONE:
            continue
        after = asm.fresh()
        asm.when(_EQUAL, numbers[column], "", after)
        asm.argument(numbers[2])
        asm.when(_ANY_BIT, bits, "refuse", "allow")
        asm.label(after)
    for numbers in _OPENS.values():
        if numbers[column] == _NONE:
            continue
        after = asm.fresh()
        asm.when(_EQUAL, numbers[column], "", after)
        asm.argument(numbers[2])
        asm.when(_ANY_BIT, _CREATES, "", "allow")
        asm.argument(numbers[2] + 1)
        asm.when(_ANY_BIT, _SET_ID, "refuse", "allow")
        asm.label(after)


def _others(asm: _Assembler, column: int) -> None:
    """No new namespaces; nothing typed into a terminal."""
    after = asm.fresh()
    asm.when(_EQUAL, _CLONE[column], "", after)
    asm.argument(0)
    asm.when(_ANY_BIT, _NEW_NAMESPACE, "refuse", "allow")
    asm.label(after)
    after = asm.fresh()
    asm.when(_EQUAL, _IOCTL[column], "", after)
    asm.argument(1)
    asm.when(_EQUAL, _TIOCSTI, "refuse")
    asm.when(_EQUAL, _TIOCLINUX, "refuse", "allow")
    asm.label(after)


def _sockets(asm: _Assembler, column: int, network: bool) -> None:
    after = asm.fresh()
    asm.when(_EQUAL, _SOCKETPAIR[column], "", after)
    asm.argument(0)
    asm.when(_EQUAL, _AF_UNIX, "", "refuse")
    asm.argument(1)
    asm.mask(_TYPE_MASK)
    # Not datagrams: one end of such a pair can be aimed at any socket file.
    asm.when(_EQUAL, _STREAM, "allow")
    asm.when(_EQUAL, _SEQPACKET, "allow", "refuse")
    asm.label(after)
    asm.when(_EQUAL, _SOCKET[column], "", "allow")
    asm.argument(0)
    if network:
        asm.when(_EQUAL, _AF_INET, "internet")
        asm.when(_EQUAL, _AF_INET6, "internet")
    asm.when(_EQUAL, _AF_NETLINK, "", "refuse")
    asm.argument(2)
    asm.when(_EQUAL, _NETLINK_ROUTE, "allow", "refuse")
    if not network:
        return
    asm.label("internet")
    asm.argument(1)
    asm.mask(_TYPE_MASK)
    asm.when(_EQUAL, _STREAM, "stream")
    asm.when(_EQUAL, _DGRAM, "", "refuse")
    asm.argument(2)
    for protocol in _DGRAM_PROTOCOLS:
        asm.when(_EQUAL, protocol, "allow")
    asm.when(_EQUAL, _DGRAM_PROTOCOLS[0], "allow", "refuse")
    asm.label("stream")
    asm.argument(2)
    asm.when(_EQUAL, _STREAM_PROTOCOLS[0], "allow")
    asm.when(_EQUAL, _STREAM_PROTOCOLS[1], "allow", "refuse")


def filter_fd(program: bytes) -> int:
    """A descriptor (close-on-exec) that reads as `program`: one for each reader, as it is read only once."""
    fd = os.memfd_create("dagrun-seccomp", os.MFD_CLOEXEC)
    os.write(fd, program)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def install_on_this_thread(program: bytes) -> None:
    """Bind this thread, and all that it starts, to `program` for good; sets no_new_privs.

    Raises EnvironmentFault when the kernel refuses.
    """
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    pointer = ctypes.byref(Program(len(program) // 8, program))
    number = ctypes.c_long(_MACHINES[os.uname().machine].seccomp)
    no_new_privs, set_filter, zero = 38, 1, ctypes.c_ulong(0)
    if libc.prctl(no_new_privs, ctypes.c_ulong(1), zero, zero, zero) or libc.syscall(number, set_filter, 0, pointer):
        why = os.strerror(ctypes.get_errno())
        raise EnvironmentFault(
            f"the kernel takes no system call filter: {why}", hint="dagrun needs a kernel with CONFIG_SECCOMP_FILTER"
        )

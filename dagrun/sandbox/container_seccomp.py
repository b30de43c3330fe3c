"""The system calls that a container may make, as the profile that Docker and Podman take.

An allow-list, so that a call that is new in a kernel is refused until somebody looked at it. Unlike
the engines' own profiles it has no Unix sockets (a read-only mount does not stop a connect), no
set-id bits, no device files, no tracing. Knows no engine and no node. Invariant: only calls of the
machine's own architecture pass, as those of another could say the same in a way no rule sees.
"""

from __future__ import annotations

import functools
import json
from typing import TypeAlias

_Rule: TypeAlias = dict[str, object]

_ALLOWED = """
    accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chown clock_getres
    clock_gettime clock_nanosleep close close_range connect copy_file_range dup dup2 dup3 epoll_create
    epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group
    faccessat faccessat2 fadvise64 fallocate fchdir fchown fchownat fcntl fdatasync fgetxattr flistxattr flock
    fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv
    futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid
    getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
    getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
    io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lgetxattr link linkat listen listxattr listxattrat llistxattr lremovexattr
    lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat
    mlock mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at
    nanosleep newfstatat pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll
    ppoll prctl pread64 preadv preadv2 prlimit64 process_madvise process_mrelease pselect6 pwrite64 pwritev
    pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall riscv_flush_icache riscv_hwprobe rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg
    sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid
    setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat
    shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice stat statfs statx
    symlink symlinkat sync sync_file_range sync_file_range2 syncfs sysinfo tee tgkill time timer_create
    timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
    times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write
    writev
"""
# Programs know how to do without these; the others are refused with EPERM.
_ABSENT = "clone3 io_uring_setup io_uring_enter io_uring_register openat2"
_EPERM, _ENOSYS = 1, 38

_SET_ID = 0o6000
_DEVICE = 0o020000  # the bit that block and character devices have, and no other type of file
_CREATES = 0o100 | 0o20000000  # O_CREAT | __O_TMPFILE: only then does open look at a mode
_NEW_NAMESPACE = 0x7E020000
_FAMILIES = (2, 10, 16)  # IPv4, IPv6, netlink: no Unix, packet, VM or Bluetooth sockets
# A pair of streams is for ever a pair; one for datagrams may be connected to another socket, by path.
_PAIRS, _TYPE = (1, 5), 0xF  # stream, seqpacket; without the flags
# Linux, without address randomisation, UNAME26, both, and the question which it is.
_PERSONALITIES = (0x0, 0x40000, 0x20000, 0x60000, 0xFFFFFFFF)


@functools.cache
def profile() -> bytes:
    """The profile as JSON, for `--security-opt seccomp=FILE`."""
    rules: list[_Rule] = [
        _allow(_ALLOWED),
        {"names": _ABSENT.split(), "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        _allow("clone", _none_of(0, _NEW_NAMESPACE)),
        _allow("chmod fchmod creat", _none_of(1, _SET_ID)),
        _allow("fchmodat fchmodat2", _none_of(2, _SET_ID)),
        _allow("open", _none_of(1, _CREATES)),
        _allow("open", _none_of(2, _SET_ID)),
        _allow("openat", _none_of(2, _CREATES)),
        _allow("openat", _none_of(3, _SET_ID)),
        _allow("mknod", _none_of(1, _DEVICE | _SET_ID)),
        _allow("mknodat", _none_of(2, _DEVICE | _SET_ID)),
        *[_allow("socket", _is(0, family)) for family in _FAMILIES],
        *[_allow("socketpair", _masked(1, _TYPE, kind)) for kind in _PAIRS],
        *[_allow("personality", _is(0, persona)) for persona in _PERSONALITIES],
    ]
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": _EPERM, "syscalls": rules}).encode()


def _allow(names: str, *conditions: dict[str, object]) -> _Rule:
    return {"names": names.split(), "action": "SCMP_ACT_ALLOW", "args": list(conditions)}


def _none_of(index: int, bits: int) -> dict[str, object]:
    """The argument has none of these bits."""
    return _masked(index, bits, 0)


def _masked(index: int, bits: int, value: int) -> dict[str, object]:
    """Of these bits, the argument has exactly those of `value`."""
    return {"index": index, "value": bits, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _is(index: int, value: int) -> dict[str, object]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}

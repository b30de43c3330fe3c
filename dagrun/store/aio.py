"""One sync of a file at a time beside the caller, in a thread that the C library keeps (POSIX aio).

Knows descriptors and error numbers, no journal. Why not a thread of Python's: it wants the
interpreter's lock back a hundred times a second, and a busy engine lets go of that lock only for the
microseconds of a system call, each of which wakes the thread in vain; this cost 4 % of a node.
"""

from __future__ import annotations

import ctypes
import errno
import os

_O_DSYNC = getattr(os, "O_DSYNC", 0)
_SIGEV_NONE = 1


class _Event(ctypes.Structure):
    _fields_ = (("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int))


class _Block(ctypes.Structure):
    """struct aiocb as far as glibc and musl agree on it, and room for what each keeps behind that."""

    _fields_ = (
        ("fildes", ctypes.c_int),
        ("lio_opcode", ctypes.c_int),
        ("reqprio", ctypes.c_int),
        ("buf", ctypes.c_void_p),
        ("nbytes", ctypes.c_size_t),
        ("sigevent", _Event),
        ("rest", ctypes.c_char * 512),
    )


_kept: list[_Block] = []  # the C library may write to a block whose Flush is gone


class Flush:
    """Makes what was written to a descriptor survive a power loss; one at a time, `busy` meanwhile."""

    __slots__ = ("_block", "_libc", "busy")

    def __init__(self, libc: ctypes.CDLL) -> None:
        self.busy = False
        self._libc = libc
        self._block = _Block()
        _kept.append(self._block)

    @classmethod
    def make(cls) -> Flush | None:
        """None where the C library can't do it."""
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.aio_fsync, libc.aio_error, libc.aio_return, libc.aio_suspend  # noqa: B018 — raises where one is missing
        except (OSError, AttributeError):
            return None
        return cls(libc) if _O_DSYNC else None

    def start(self, fd: int) -> bool:
        """Begin to sync `fd`, which stays open until it is done; False when the machine has no thread left."""
        block = self._block
        ctypes.memset(ctypes.byref(block), 0, ctypes.sizeof(block))
        block.fildes = fd
        block.sigevent.notify = _SIGEV_NONE
        self.busy = self._libc.aio_fsync(_O_DSYNC, ctypes.byref(block)) == 0
        return self.busy

    def result(self) -> int | None:
        """None while it goes on; then, once, 0 or the error's number."""
        code = int(self._libc.aio_error(ctypes.byref(self._block)))
        if code == errno.EINPROGRESS:
            return None
        self._libc.aio_return(ctypes.byref(self._block))
        self.busy = False
        return code

    def wait(self) -> int:
        """0 or the error's number, once it is done."""
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(self._block))
        while (code := self.result()) is None:
            self._libc.aio_suspend(blocks, 1, None)  # a signal interrupts it
        return code

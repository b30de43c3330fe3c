"""Opening a file below a folder so that no symbolic link on the way, old or new, leads anywhere else.

The kernel resolves the whole path in one step (openat2), so what a hostile command swaps meanwhile
makes the opening fail and never succeed elsewhere. Regular files only; never waits for a pipe.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from dagrun.store.exchange import OutputError, kind_of

_OPENAT2 = 437  # the same number on every architecture
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(base: str, path: str, flags: int = _FLAGS) -> int:
    """A descriptor of `path` below the folder `base`; only `base` itself may lie behind symbolic links.

    Raises OSError: ELOOP for a link on the way, EXDEV for a path that leaves `base`.
    """
    folder = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _How(flags, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
        name = os.fsencode(path) or b"."
        if b"\0" in name:
            raise OSError(errno.EINVAL, "a NUL in the name")
        fd = _libc.syscall(_OPENAT2, folder, ctypes.c_char_p(name), ctypes.byref(how), ctypes.c_size_t(24))
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(fd)
    finally:
        os.close(folder)


def open_file(base: str, path: str, what: str) -> int | None:
    """A descriptor of the regular file `path` below `base`; None when there is none. Raises OutputError."""
    try:
        fd = open_beneath(base, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{what} can't be read: {_why(error)}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    raise OutputError(f"{what} can't be read: it is {kind_of(mode)}, not a regular file")


def _why(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is, or lies behind, a symbolic link, which is not followed for a confined node"
    if error.errno == errno.EXDEV:
        return "it lies outside of what the node may reach"
    if error.errno == errno.ENXIO:
        return "it is a socket or a pipe, not a regular file"
    return error.strerror or str(error)

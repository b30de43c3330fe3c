"""Files that a command line names: read whole, written all or nothing."""

from __future__ import annotations

import os
import sys

from dagrun.errors import EnvironmentFault, UsageError


def read_file(path: str, what: str) -> bytes:
    """The bytes of a file; `-` is stdin. Raises UsageError."""
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}", hint=f"name {what}") from None


def write_text(path: str, text: str | bytes) -> None:
    """Replace a file, all or nothing, keeping its mode. Raises EnvironmentFault."""
    from stat import S_IMODE

    from dagrun.store.disk import write_atomic

    data = text.encode() if isinstance(text, str) else text
    where = os.path.realpath(path)
    try:
        mode = S_IMODE(os.stat(where).st_mode) if os.path.exists(where) else 0o666 & ~_umask()
        write_atomic(where, data, mode=mode)
    except OSError as error:
        raise EnvironmentFault(f"can't write {path}: {error.strerror}", hint="name a file that you can write") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

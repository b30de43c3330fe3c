"""The folder through which attempts get inputs and give outputs: private, outside `.dagrun/`."""

from __future__ import annotations

import os
import stat
from zlib import crc32

from dagrun.errors import EnvironmentFault
from dagrun.store.rundir import RunDir


def exchange_path(run: RunDir) -> str:
    """Where the folder of a run is, or would be."""
    base = os.environ.get("TMPDIR") or "/tmp"
    return f"{base}/dagrun-{os.getuid()}/{run.id}-{crc32(os.path.abspath(run.path).encode()):08x}"


def make_exchange(run: RunDir) -> str:
    """An empty folder that only this user can enter; the same path for every session of a run.

    Raises EnvironmentFault when the temporary folder can't be used or somebody else made it first.
    """
    path = exchange_path(run)
    parent = os.path.dirname(path)
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        found = os.lstat(parent)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise EnvironmentFault(
                f"{parent} is not a private folder of yours", hint="remove it, or set TMPDIR to another folder"
            )
        remove_exchange(path)
        os.mkdir(path, 0o700)
    except OSError as error:
        raise EnvironmentFault(
            f"can't make the folder {path}: {error.strerror}", hint="set TMPDIR to a folder that can be written"
        ) from error
    return path


def remove_exchange(path: str) -> None:
    """Remove the folder with all that nodes left in it; what can't be removed stays."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError:
        from shutil import rmtree

        rmtree(path, ignore_errors=True)

"""The folder through which attempts get inputs and give outputs: private, outside `.dagrun/`."""

from __future__ import annotations

import os
import stat
from zlib import crc32

from dagrun.errors import EnvironmentFault
from dagrun.store.rundir import RunDir


def exchange_path(run: RunDir) -> str:
    """Where the folder of a run is, or would be."""
    base = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")
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
    """Remove a folder with all that nodes left in it; what can't be removed stays.

    Whatever a command made of it: folders that it closed to itself, or nested thousands deep.
    """
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError:
        _remove_tree(path)


def _remove_tree(path: str) -> None:
    """Bring every folder to the top and empty it there: no path gets long and nothing recurses."""
    parent, name = os.path.split(path)
    try:
        top = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    waiting = [name]
    made = 0
    try:
        while waiting:
            folder = waiting.pop()
            for entry in _emptied(top, folder):
                made += 1
                moved = f".{name}.{os.getpid()}.{made}"
                try:
                    os.rename(f"{folder}/{entry}", moved, src_dir_fd=top, dst_dir_fd=top)
                    waiting.append(moved)
                except OSError:
                    pass
            try:
                os.rmdir(folder, dir_fd=top)
            except OSError:
                pass
    finally:
        os.close(top)


def _emptied(top: int, name: str) -> list[str]:
    """Remove the files of a folder; the names of the folders in it, each open to us now."""
    try:
        _open_up(top, name)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except OSError:
        try:
            os.unlink(name, dir_fd=top)
        except OSError:
            pass
        return []
    folders = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _open_up(fd, entry.name)  # a folder that is moved has to be writable itself
                    folders.append(entry.name)
                else:
                    try:
                        os.unlink(entry.name, dir_fd=fd)
                    except OSError:
                        pass
    except OSError:
        pass
    finally:
        os.close(fd)
    return folders


def _open_up(folder: int, name: str) -> None:
    """Give ourselves all rights to a folder; nothing lives that could put a link in its place."""
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.chmod(name, 0o700, dir_fd=folder)
    except OSError:
        pass

"""Names that were absent when an attempt began, written down so that a plant is found although dagrun was killed.

A record lies in `.dagrun/watched`, which no sandbox shows, from the launch of an attempt to its end.
One whose writer is dead is an orphan: whoever comes next judges by it and removes it. Nothing is
deleted, a plant only gets a name under which nothing runs it. A record is believed as far as it is a
file of this user alone, and a folder as far as it is the one that was looked at. Knows no back end.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Final, NamedTuple

from dagrun.sandbox import procs
from dagrun.sandbox.grants_open import open_exactly

FOLDER: Final = "watched"
_ASIDE: Final = "quarantine"
_MOST_BYTES = 1 << 22
_numbers = count()


class Watched(NamedTuple):
    """Names in a folder (`fd`, at `path`): "" for one that was not there, else what the link led to."""

    path: str
    fd: int
    names: dict[str, str]


def judge(watched: Iterable[Watched], attempt_id: str) -> list[str]:
    """Move aside what is not as it was; told as `path (now name)`."""
    mark = _mark_of(attempt_id)
    found: list[str] = []
    for path, fd, names in watched:
        for name, target in names.items():
            if _now(fd, name) != target:
                aside = _move_aside(fd, name, mark)
                found.append(f"{path}/{name} ({f'now {aside}' if aside else 'it could not be moved aside'})")
    return found


def write_down(run_dir: str, attempt_id: str, watched: Iterable[Watched]) -> str:
    """Make the record of an attempt; its path, "" where nothing is absent or the run has no folder. Raises OSError."""
    folders = [_told(entry) for entry in watched if entry.names]
    if not folders or not os.path.isdir(run_dir):
        return ""
    base = f"{os.path.dirname(os.path.dirname(os.path.abspath(run_dir)))}/{FOLDER}"
    os.makedirs(base, mode=0o700, exist_ok=True)
    pid = os.getpid()
    who = procs.stat(pid)
    told = {
        "pid": pid,
        "ticks": who.start_ticks if who is not None else 0,
        "boot": procs.boot_id(),
        "attempt": attempt_id,
        "folders": folders,
    }
    path = f"{base}/{os.path.basename(run_dir)}.{pid}.{next(_numbers)}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(told).encode("ascii"))
    except BaseException:
        forget(path)
        raise
    return path


def forget(record: str) -> None:
    """The attempt has ended, and was judged."""
    try:
        os.unlink(record)
    except OSError:
        pass  # whoever comes next finds its writer dead


def sweep(dot_dagrun: str) -> list[str]:
    """Judge by every orphan in the `.dagrun` folder of a project, and remove it; what was moved aside.

    While this boot has no id, as where /proc is missing, nobody can be told dead: nothing is touched.
    """
    base = os.path.join(os.path.abspath(dot_dagrun), FOLDER)
    try:
        records = sorted(os.listdir(base))
    except OSError:
        return []
    boot = procs.boot_id()
    found: list[str] = []
    for path in [f"{base}/{name}" for name in records] if boot else ():
        told = _read(path)
        if told is None or _lives(told, boot):
            continue
        watched = list(_folders(told))
        try:
            found += judge(watched, str(told.get("attempt", "")))
        finally:
            for entry in watched:
                os.close(entry.fd)
        forget(path)
    return found


# ---------------------------------------------------------------- a record


def _told(entry: Watched) -> dict[str, object]:
    who = os.fstat(entry.fd)
    return {"path": entry.path, "dev": who.st_dev, "ino": who.st_ino, "names": entry.names}


def _read(path: str) -> dict[str, object] | None:
    """A record of this user that nobody else can write; None for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        who = os.fstat(fd)
        if not stat.S_ISREG(who.st_mode) or who.st_uid != os.getuid() or who.st_mode & 0o077:
            return None
        try:
            told = json.loads(file.read(_MOST_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
    return told if isinstance(told, dict) else None


def _lives(told: dict[str, object], boot: str) -> bool:
    """Whether the writer may still be at work; so too where the record does not say who it is."""
    pid, ticks = told.get("pid"), told.get("ticks")
    if not isinstance(pid, int) or not isinstance(ticks, int) or pid <= 0:
        return True
    who = procs.stat(pid) if told.get("boot") == boot else None
    return who is not None and not procs.is_dead(who) and who.start_ticks == ticks


def _folders(told: dict[str, object]) -> Iterator[Watched]:
    """The folders of a record that are still the ones that were looked at, opened."""
    folders = told.get("folders")
    for entry in folders if isinstance(folders, list) else ():
        path, names = (entry.get("path"), entry.get("names")) if isinstance(entry, dict) else (None, None)
        if not isinstance(path, str) or not path.startswith("/") or not isinstance(names, dict):
            continue
        try:
            fd = open_exactly(path)
        except (OSError, ValueError):
            continue
        who = os.fstat(fd)
        known = {name: to for name, to in names.items() if _is_name(name) and isinstance(to, str)}
        if (who.st_dev, who.st_ino) != (entry.get("dev"), entry.get("ino")):
            os.close(fd)
            continue
        yield Watched(path, fd, known)


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


# ---------------------------------------------------------------- a plant


def _mark_of(attempt_id: str) -> str:
    """The node of an attempt (run/node/number), as part of a file name."""
    node = [*attempt_id.split("/"), ""][-3:][0] or attempt_id
    return "".join([c if c.isalnum() or c in "-_" else "." for c in node[:64]])


def _now(fd: int, name: str) -> str | None:
    """What a link leads to, "" if nothing is there, None if there is something else."""
    try:
        return os.readlink(name, dir_fd=fd)
    except FileNotFoundError:
        return ""
    except OSError:
        return None


def _move_aside(fd: int, name: str, mark: str) -> str:
    """Give what appeared a name under which nothing runs it; "" if that fails. A link is gone, or was replaced."""
    for number in range(100):
        aside = f"{name}.{_ASIDE}-{mark}{f'-{number}' if number else ''}"
        try:
            os.lstat(aside, dir_fd=fd)
        except OSError:
            try:
                os.rename(name, aside, src_dir_fd=fd, dst_dir_fd=fd)
            except FileNotFoundError:
                return "nowhere"
            except OSError:
                return ""
            return aside
    return ""

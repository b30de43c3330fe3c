"""What dagrun needs of this machine and of this folder, each tried out: Python, processes, files, the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from dagrun.errors import DagrunError
from dagrun.view.doctor import Finding

MIN_FILES = 256
SYNCS = 20
SLOW_SYNC_MS = 25.0


def machine() -> list[Finding]:
    """All that is tried, in the order in which it is shown. Leaves nothing behind."""
    checks: list[Callable[[], Finding]] = [_python, _platform, _user, _pidfd, _subreaper, _files, _processes, _notices]
    return [check() for check in checks] + _folder()


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{text} ({sys.executable})")


def _platform() -> Finding:
    name = os.uname()
    text = f"{name.sysname} {name.release} {name.machine}, {len(os.sched_getaffinity(0))} processors"
    if name.sysname != "Linux":
        return Finding("platform", "error", text, "dagrun runs commands on Linux only")
    return Finding("platform", "ok", text)


def _user() -> Finding:
    import pwd

    number = os.geteuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = "no name"
    if number == 0:
        hint = "run dagrun as an ordinary user: a mistake in a sandbox, or a plain command, then has less to ruin"
        return Finding("user", "warning", f"{name}: commands without walls may do anything", hint)
    return Finding("user", "ok", f"{name} ({number})")


def _pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        hint = "Linux 5.3 or newer, with a container runtime that lets pidfd_open through"
        return Finding("pidfd", "error", f"not available: {error.strerror}", hint)
    return Finding("pidfd", "ok", "processes can be held by descriptor")


def _subreaper() -> Finding:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    value = ctypes.c_int()
    if libc.prctl(37, ctypes.byref(value), 0, 0, 0) != 0:  # PR_GET_CHILD_SUBREAPER
        return Finding("subreaper", "error", "not available", "grandchildren of a killed run could stay alive")
    return Finding("subreaper", "ok", "what a node leaves behind is found and ended")


def _files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{_limit(soft)} (at most {_limit(hard)})"
    if soft != resource.RLIM_INFINITY and soft < MIN_FILES:
        return Finding("open files", "warning", text, f"few nodes can run at a time: ulimit -n {MIN_FILES * 4}")
    return Finding("open files", "ok", text)


def _processes() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    text = _limit(soft)
    for path in ("/sys/fs/cgroup/pids.max",):
        try:
            with open(path) as file:
                value = file.read().strip()
        except OSError:
            continue
        if value != "max":
            text += f", {value} in this container"
    return Finding("processes", "ok", text)


def _limit(value: int) -> str:
    return "unlimited" if value < 0 or value >= 1 << 62 else str(value)


def _notices() -> Finding:
    from dagrun.store.sync import Notice

    notice = Notice.watch(__file__)
    if notice is None:
        hint = "a run looks for changes four times a second instead: sysctl fs.inotify.max_user_instances"
        return Finding("inotify", "warning", "none left, or not available", hint)
    notice.close()
    return Finding("inotify", "ok", "changes of a journal are noticed at once")


# ---------------------------------------------------------------- the folder


def _folder() -> list[Finding]:
    """What the disk under `.dagrun` does, tried in a temporary folder beside the runs."""
    from tempfile import mkdtemp

    from dagrun.store.disk import check_filesystem, filesystem_type
    from dagrun.store.rundir import FOLDER

    base = os.path.abspath(FOLDER) if os.path.isdir(FOLDER) else os.getcwd()
    found = []
    try:
        check_filesystem(base)
        found.append(Finding("filesystem", "ok", f"{filesystem_type(base) or 'unknown'} at {base}, {_free(base)} free"))
    except DagrunError as error:
        found.append(Finding("filesystem", "error", error.message, error.hint))
    try:
        place = mkdtemp(prefix=".dagrun-doctor-", dir=base)
    except OSError as error:
        hint = "runs are kept in the project's folder: use a copy of it that you can write to"
        return [*found, Finding("journal", "error", f"can't write to {base}: {error.strerror}", hint)]
    from shutil import rmtree

    try:
        return [*found, _journal(place), _lock(place), _sync(place)]
    finally:
        rmtree(place, ignore_errors=True)


def _free(path: str) -> str:
    from dagrun.view.text import size

    room = os.statvfs(path)
    return size(room.f_bavail * room.f_frsize)


def _journal(place: str) -> Finding:
    from dagrun.store.journal import FORMAT, Journal

    try:
        journal = Journal.create(f"{place}/journal.jsonl")
        try:
            journal.append([f'{{"type":"run.created","format":{FORMAT}}}'])
            journal.sync()
        finally:
            journal.close()
    except DagrunError as error:
        return Finding("journal", "error", error.message, error.hint)
    return Finding("journal", "ok", "written and synced")


def _lock(place: str) -> Finding:
    """Two opens of one file can't both be locked, which is what keeps a second engine out."""
    import fcntl

    path = f"{place}/lock"
    with open(path, "w") as first, open(path) as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Finding("lock", "error", f"can't lock a file: {error.strerror}", "use a local disk")
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("lock", "ok", "a second engine is kept out")
        except OSError as error:
            return Finding("lock", "error", f"can't lock a file: {error.strerror}", "use a local disk")
    return Finding("lock", "error", "two could lock the same file", "two engines could run one run: use a local disk")


def _sync(place: str) -> Finding:
    from time import perf_counter

    times = []
    try:
        with open(f"{place}/sync", "wb", buffering=0) as file:
            for _ in range(SYNCS):
                file.write(b"x" * 400)
                start = perf_counter()
                os.fdatasync(file.fileno())
                times.append((perf_counter() - start) * 1000)
    except OSError as error:
        return Finding("sync", "error", f"can't sync: {error.strerror}", "use another disk")
    median = sorted(times)[SYNCS // 2]
    text = f"{median:.2f} ms (median of {SYNCS})"
    if median > SLOW_SYNC_MS:
        return Finding("sync", "warning", text, "a slow disk: `durability: strict` will cost that much a wave")
    return Finding("sync", "ok", text)

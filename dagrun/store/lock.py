"""The lock of a run: one engine at a time. The kernel's flock is the truth, never a clock.

It is free the moment its last holder is dead. The file's text says who holds it, for people and
for one decision: a lock whose engine is dead is held by the engine's watchdog, which is ending
what the engine left and will be done in a moment. The text is emptied when the lock is let go.
"""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, cast

from dagrun.errors import NotFoundError, RunLockedError
from dagrun.store.disk import disk_fault, write_all
from dagrun.store.proc import boot_id, flock_holder, is_alive, pid_namespace, start_ticks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagrun.core.names import Json

DYING_WAIT_S = 10.0
_SETTLE_TRIES = 5  # a look at the lock (`holder`) keeps it busy for an instant


class Lock:
    """The held lock of a run, until `release` or the death of all who inherited it."""

    __slots__ = ("fd", "info", "path")

    def __init__(self, path: str, fd: int, info: dict[str, Json]) -> None:
        self.path = path
        self.fd = fd
        self.info = info

    def update(self, **info: Json) -> None:
        """Add to what the file says of its holder, such as `watchdog=pid` once it lives."""
        self.info.update(info)
        _write_info(self.fd, self.info)

    def release(self) -> None:
        """Let go, once; whoever inherited the descriptor loses the lock too."""
        if self.fd >= 0:
            with suppress(OSError):
                os.ftruncate(self.fd, 0)
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            os.close(self.fd)
            self.fd = -1


def identity() -> dict[str, Json]:
    """Who this process is: {pid, host, start_ticks, boot_id, pid_ns, argv, since}."""
    pid = os.getpid()
    return {
        "pid": pid,
        "watchdog": None,
        "host": os.uname().nodename,
        "start_ticks": start_ticks(pid),
        "boot_id": boot_id(),
        "pid_ns": pid_namespace(),
        "argv": list(sys.argv),
        "since": round(time(), 3),
    }


def acquire(path: str, run_id: str, info: Mapping[str, Json], *, wait_s: float = DYING_WAIT_S) -> Lock:
    """The lock file `path`, taken; `info` is added to `identity()` as the file's text.

    Waits up to `wait_s` for a holder that is dying (its engine or its watchdog is dead). Raises
    RunLockedError naming the holder, NotFoundError when the run is being removed.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise NotFoundError(f"run {run_id} is gone", hint="see your runs: dagrun runs") from None
    except OSError as error:
        raise disk_fault("can't open", path, error) from error
    try:
        _wait(fd, path, run_id, wait_s)
        if os.fstat(fd).st_nlink == 0 or not os.path.exists(path):
            raise NotFoundError(f"run {run_id} was removed", hint="see your runs: dagrun runs")
        merged = {**identity(), **info}
        _write_info(fd, merged)
    except BaseException:
        os.close(fd)
        raise
    return Lock(path, fd, merged)


def _wait(fd: int, path: str, run_id: str, wait_s: float) -> None:
    deadline = monotonic() + wait_s
    healthy = 0
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            raise disk_fault("can't lock", path, error) from error
        info = _read_info(fd)
        healthy = healthy + 1 if info and not _dying(info) else 0
        if healthy >= _SETTLE_TRIES or monotonic() >= deadline:
            raise _refusal(run_id, info or {"pid": flock_holder(fd) or None})
        sleep(0.002 if healthy else 0.01)


def _dying(info: Mapping[str, Json]) -> bool:
    """Whether the engine or the watchdog in the text of a busy lock is dead. Of another machine: no."""
    if info.get("host") != os.uname().nodename or info.get("pid_ns", "") != pid_namespace():
        return False
    pid, ticks, watchdog = info.get("pid"), info.get("start_ticks"), info.get("watchdog")
    if isinstance(pid, int) and isinstance(ticks, int) and not is_alive(pid, ticks, str(info.get("boot_id", ""))):
        return True
    return isinstance(watchdog, int) and start_ticks(watchdog) == 0


def _refusal(run_id: str, info: Mapping[str, Json]) -> RunLockedError:
    pid, host, since = info.get("pid"), info.get("host"), info.get("since")
    who = f"pid {pid}" if pid else "another process"
    if host:
        who += f" on {host}"
    if isinstance(since, int | float):
        from time import localtime, strftime

        who += f" since {strftime('%Y-%m-%d %H:%M:%S', localtime(since))}"
    return RunLockedError(f"run {run_id} is being executed by {who}", hint=f"watch it: dagrun trace follow {run_id}")


def holder(path: str) -> dict[str, Json] | None:
    """What the holder of a lock file says of itself; None when nobody holds it. Never waits."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, so that two who look don't see each other; `acquire` looks several times.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_info(fd) or {"pid": flock_holder(fd) or None}
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(fd)


def _read_info(fd: int) -> dict[str, Json]:
    """The text of a lock file; empty while its holder has not written it yet."""
    from json import loads

    try:
        data = loads(os.pread(fd, 1 << 20, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Json]", data) if isinstance(data, dict) else {}


def _write_info(fd: int, info: Mapping[str, Json]) -> None:
    from json import dumps

    try:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        write_all(fd, dumps(info).encode() + b"\n")
    except OSError as error:
        raise disk_fault("can't write", "execute.lock", error) from error

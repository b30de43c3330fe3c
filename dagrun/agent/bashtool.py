"""Bash of an agent: one command in a shell of its own, ended with all that it started.

Part of the tool worker: standard library only. Output is drained always and kept at both ends, never
more than a fixed amount in memory. What the command leaves behind is killed before the result is given.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

from dagrun.agent.beneath import Roots, ToolError
from dagrun.agent.filetools import text, whole

TIMEOUT_MS = 120_000
MOST_MS = 600_000
GRACE_S = 2.0
OUT_OF_MEMORY = "(it was killed: out of memory)"
_PR_SET_CHILD_SUBREAPER = 36
_NO_LIMIT = 1 << 60
_MEMORY_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.events"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.oom_control"),
)


class _Kept:
    """The first and the last part of a stream, and how much lay between."""

    def __init__(self, room: int) -> None:
        self._half = max(room // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        """Take in what was read."""
        free = self._half - len(self._head)
        self._head += data[:free]
        self._tail += data[free:] if free > 0 else data
        over = len(self._tail) - self._half
        if over > 0:
            del self._tail[:over]
            self._dropped += over

    def text(self) -> str:
        """What was kept, with a word where something is missing."""
        middle = f"\n… {self._dropped:,} bytes left out …\n".encode() if self._dropped else b""
        return (bytes(self._head) + middle + bytes(self._tail)).decode("utf-8", "replace")


def bash(roots: Roots, given: dict[str, Any], room: int) -> str:
    """Run `command`; its output (both streams in order), and its exit code where that is not 0."""
    command = text(given, "command")
    if "\0" in command:
        raise ToolError("a command can't hold a NUL character")
    timeout_s = whole(given, "timeout", TIMEOUT_MS, least=1, most=MOST_MS) / 1000
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    try:
        child = subprocess.Popen(
            [shell, "-c", command],
            cwd=roots.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ToolError(f"the command can't be started: {getattr(error, 'strerror', None) or error}") from None
    kept = _Kept(room)
    before = _memory_kills()
    ended = _drain(child, kept, timeout_s)
    left = _end_all(child)
    if _memory_kills() > before:
        raise ToolError(f"{kept.text()}\n{OUT_OF_MEMORY}".lstrip("\n"))
    code = child.returncode
    out = kept.text().rstrip("\n")
    if not ended:
        raise ToolError(f"{out}\n(timed out after {timeout_s:g} s and was killed)".lstrip("\n"))
    notes = [f"(left {left} process{'es' if left > 1 else ''} behind; killed)"] if left else []
    if code:
        notes.append(f"(exit code {code})" if code > 0 else f"(killed by signal {-code})")
        raise ToolError("\n".join([*([out] if out else []), *notes]))
    return "\n".join([out or "(no output)", *notes])


def _memory_kills() -> int:
    """How often the kernel killed something of this container for its memory; 0 outside of one that has a limit."""
    for limit, events in _MEMORY_FILES:
        with suppress(OSError, ValueError):
            with open(limit, "rb") as file:
                if int(file.read()) >= _NO_LIMIT:
                    continue
            with open(events, "rb") as file:
                return int(file.read().rpartition(b"oom_kill ")[2].split()[0])
    return 0


def _drain(child: subprocess.Popen[bytes], kept: _Kept, timeout_s: float) -> bool:
    """Read until the command has ended, or its time is up: whether it has ended by itself."""
    assert child.stdout is not None
    out = child.stdout.fileno()
    os.set_blocking(out, False)
    died = os.pidfd_open(child.pid)
    end = time.monotonic() + timeout_s
    try:
        with selectors.DefaultSelector() as wait:
            wait.register(out, selectors.EVENT_READ)
            wait.register(died, selectors.EVENT_READ)
            while (left := end - time.monotonic()) > 0:
                ready = {key.fd for key, _ in wait.select(left)}
                if out in ready and not _take(out, kept):
                    wait.unregister(out)
                if died in ready:  # a process that it left may hold the pipe: what is there now is all
                    while _take(out, kept):
                        pass
                    child.wait()
                    return True
        return False
    finally:
        os.close(died)


def _take(fd: int, kept: _Kept) -> bool:
    """Read once; whether there was something."""
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        return False
    kept.add(data)
    return bool(data)


def _end_all(child: subprocess.Popen[bytes]) -> int:
    """Kill the command and everything that descends from this worker; how many others there were."""
    assert child.stdout is not None
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    others: set[int] = set()
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        below = _descendants(child.pid)
        others |= below - {child.pid}
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if child.poll() is None:
            child.wait()
        if not below:
            break
        _reap(below)
    child.stdout.close()
    return len(others)


def _descendants(first: int) -> set[int]:
    """Everything below this process that is not dead: orphans come to it, since it is a subreaper.

    `first` is the oldest process that can be among them. Where /proc is shut these are its children
    only: those of a child come to it when that is killed.
    """
    try:
        names = os.listdir("/proc")
    except PermissionError:
        return {pid for span in _pids_since(first) for pid in span if _is_child(pid)}
    parents: dict[int, list[int]] = {}
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] not in (b"Z", b"X"):
                parents.setdefault(int(fields[1]), []).append(int(name))
    found: set[int] = set()
    queue = [os.getpid()]
    for pid in queue:
        for kid in parents.get(pid, ()):
            found.add(kid)
            queue.append(kid)
    return found


def _pids_since(first: int) -> list[range]:
    """The numbers that the kernel may have given to processes since `first` was started: it counts up, then again."""
    try:
        newest = os.fork()
    except OSError:
        newest = 0
    else:
        if newest == 0:
            os._exit(0)
        os.waitpid(newest, 0)
    if newest > first:
        return [range(first, newest)]
    with open("/proc/sys/kernel/pid_max", "rb") as file:
        most = int(file.read())
    return [range(first, most), range(2, newest or first)]


def _is_child(pid: int) -> bool:
    """Whether this is a child that is alive; one that is dead is only a number."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _reap(pids: set[int]) -> None:
    for pid in pids:
        try:
            os.waitpid(pid, 0)
        except OSError:  # a grandchild: it comes to us when its parent is dead
            continue

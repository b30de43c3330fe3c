"""What /proc knows of processes and locks: identity, state, who holds a flock.

A process is the same one only if pid, start ticks and boot id all match: pids are reused, also
across a reboot. Every answer is a snapshot. Where there is no /proc the answers are "unknown".
"""

from __future__ import annotations

import os

_boot_id: str | None = None

STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for the disk",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "dead, not yet reaped",
    "I": "idle",
}


def boot_id() -> str:
    """The id of this boot of the machine; empty where the system has none."""
    global _boot_id
    if _boot_id is None:
        _boot_id = read_small("/proc/sys/kernel/random/boot_id").strip()
    return _boot_id


def pid_namespace() -> str:
    """The name of the namespace in which this process's pids count; empty where unknown."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks since boot) of a process; None when there is none."""
    text = read_small(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = text[text.rfind(")") + 2 :].split()
    return (fields[0], int(fields[19])) if len(fields) > 19 else None


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 when it is gone."""
    stat = process_stat(pid)
    return stat[1] if stat else 0


def is_alive(pid: int, ticks: int, boot: str) -> bool:
    """Whether the process (pid, start ticks, boot id) still runs here; a zombie does not."""
    if boot != boot_id():
        return False
    stat = process_stat(pid)
    return stat is not None and stat[1] == ticks and stat[0] not in "ZX"


def describe(pid: int) -> str:
    """`pid 123 (stopped, state T)` for a message."""
    stat = process_stat(pid)
    if stat is None:
        return f"pid {pid}"
    return f"pid {pid} ({STATES.get(stat[0], 'alive')}, state {stat[0]})"


def flock_holder(fd: int) -> int:
    """The pid that took the exclusive flock of an open file; 0 if nobody or unknown (/proc/locks)."""
    found = os.fstat(fd)
    exact = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    inode = f":{found.st_ino}"
    candidate = 0
    for line in read_small("/proc/locks", 4 << 20).splitlines():
        part = line.split()
        if len(part) < 6 or part[1] != "FLOCK" or part[3] != "WRITE" or not part[5].endswith(inode):
            continue
        if part[5] == exact:
            return int(part[4])
        candidate = int(part[4])  # some filesystems report another device number here than in stat
    return max(0, candidate)


def read_small(path: str, limit: int = 65536) -> str:
    """The text of a small system file; empty when it can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        chunks = []
        while limit > 0 and (chunk := os.read(fd, min(limit, 65536))):
            chunks.append(chunk)
            limit -= len(chunk)
        return b"".join(chunks).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)

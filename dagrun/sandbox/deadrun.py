"""The end of a run that died with its engine and its watchdog: find what it left, kill it, see it dead.

Knows pids, cookies and boots, nothing of journals: the caller reads the recorded ones. A process
is of the run when its recorded identity (pid, start, boot) still holds, when it carries both cookies
(run ids are short, so the folder of the run must match too), or when it descends from such a one.
Never touched: this process and its ancestors.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from dagrun.sandbox import procs

# A start time is taken by the clock just before the spawn: it may be a moment earlier than the
# kernel's. Pids don't come round within a second.
_TICKS_SLACK = procs.TICKS_PER_S
# A child that its engine had just spawned has no cookies until it is its command: it is looked for twice.
_EXEC_S = 0.02


def reap_dead_run(
    run_id: str,
    recorded: Sequence[tuple[int, int, str]],
    *,
    run_dir: str,
    timeout_s: float = 10.0,
) -> list[str]:
    """SIGKILL every process of a dead run and wait until they are dead; the names of those killed.

    `recorded` are (pid, start ticks, boot id) of its attempts without an end; `run_dir` is the
    absolute folder of the run, as in DAGRUN_RUN_DIR. Call it only while holding the run's lock.
    Returns after at most `timeout_s`, even if something can't die.
    """
    spared = _ancestors()
    boot = procs.boot_id()
    roots = {pid: ticks for pid, ticks, where in recorded if where == boot}
    names: dict[tuple[int, int], str] = {}
    end = time.monotonic() + timeout_s
    empty = 0
    while True:
        found = {pid: who for pid, who in _members(run_id, run_dir, roots).items() if pid not in spared}
        empty = 0 if found else empty + 1
        if empty > 1 or time.monotonic() > end:
            return list(names.values())
        if empty:
            time.sleep(_EXEC_S)
        for pid, who in found.items():
            if procs.send(pid, who.start_ticks, signal.SIGKILL):
                names[pid, who.start_ticks] = who.name
        left = max(0.0, min(1.0, end - time.monotonic()))
        procs.wait_dead([(pid, who.start_ticks) for pid, who in found.items()], left)
        procs.reap_zombies(frozenset(procs.children(os.getpid())) - found.keys())


def _members(run_id: str, run_dir: str, roots: dict[int, int]) -> dict[int, procs.Stat]:
    """The living processes of the run in one look at this machine."""
    table = {pid: who for pid in procs.all_pids() if not procs.is_dead(who := procs.stat(pid)) and who is not None}
    groups = {pid for pid, ticks in roots.items() if pid in table and _same(table[pid], ticks)}
    members = set(groups)
    for pid, who in table.items():
        # A group whose leader is verified above is the group that we made.
        if who.session in groups or who.pgrp in groups or _has_cookies(pid, run_id, run_dir):
            members.add(pid)
    below: dict[int, list[int]] = {}
    for pid, who in table.items():
        below.setdefault(who.ppid, []).append(pid)
    queue = list(members)
    for pid in queue:
        for kid in below.get(pid, ()):
            if kid not in members:
                members.add(kid)
                queue.append(kid)
    return {pid: table[pid] for pid in members}


def _same(who: procs.Stat, ticks: int) -> bool:
    return 0 <= who.start_ticks - ticks <= _TICKS_SLACK


def _has_cookies(pid: int, run_id: str, run_dir: str) -> bool:
    env = procs.environ(pid)
    return env.get(b"DAGRUN_RUN_ID") == os.fsencode(run_id) and env.get(b"DAGRUN_RUN_DIR") == os.fsencode(run_dir)


def _ancestors() -> set[int]:
    """This process and those above it: a node that resumes its own dead run must not end itself."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        who = procs.stat(pid)
        pid = who.ppid if who is not None else 0
    return found

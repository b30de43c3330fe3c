"""Runs that are watched while the real program works on them: no sleeping, only the journal and terminals."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from dagrun.core.names import Status
from dagrun.core.state import RunState
from dagrun.store.history import Follower
from dagrun.store.rundir import RunDir, list_runs

from .space import DEADLINE_S, ROOT, Done, Space


def shown(space: Space, *names: str) -> None:
    """Copy workflows that the project shows into a space."""
    for name in names:
        target = space.folder / "workflows" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "workflows" / name, target)


def newest(space: Space) -> RunDir:
    """The newest run of a space, once it has begun."""
    end = monotonic() + DEADLINE_S
    while monotonic() < end:
        for run in list_runs(str(space.folder)):
            if os.path.getsize(run.journal):
                return run
        os.sched_yield()
    raise AssertionError("no run began")


def until(run: RunDir, reached: Callable[[RunState], bool]) -> RunState:
    """The state of a run as soon as it is so. Fails when the run ends before."""
    follower = Follower(run)
    end = monotonic() + DEADLINE_S
    try:
        while not reached(follower.state):
            assert monotonic() < end, "it never came to that"
            fd = follower.fileno()
            select.select([fd] if fd is not None else [], [], [], 0.1)
            follower.poll()
        return follower.state
    finally:
        follower.close()


def is_(node: str, status: Status) -> Callable[[RunState], bool]:
    """Whether a node has a status."""
    return lambda state: state.node_status[state.plan.index[node]] is status


def typed(space: Space, *words: str, answers: str, columns: int = 100, **env: str) -> Done:
    """Type a command in a terminal, and then the answers; what the terminal showed is `err`."""
    main, side = pty.openpty()
    more = {"COLUMNS": str(columns), "NO_COLOR": "1", **env}
    process = subprocess.Popen(
        [sys.executable, "-m", "dagrun", *words],
        cwd=space.folder,
        env=space.env(**more),
        stdin=side,
        stdout=subprocess.PIPE,
        stderr=side,
    )
    os.close(side)
    os.write(main, answers.encode())
    seen = b""
    end = monotonic() + DEADLINE_S
    while monotonic() < end:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(main)
    assert process.stdout is not None
    out = process.stdout.read().decode()
    process.stdout.close()
    return Done(process.wait(DEADLINE_S), out, seen.decode().replace("\r\n", "\n"))


def lines(path: Path) -> list[str]:
    """The lines of a file; none where it isn't there."""
    return path.read_text().splitlines() if path.exists() else []

"""Real processes for the tests of the sandbox, and the promise that each test leaves none."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dagrun.sandbox import procs
from dagrun.sandbox.base import Child, Exit, SpawnFailed, Swept
from dagrun.sandbox.plain import Plain

DEADLINE_S = 20.0


class Box:
    """A back end with two log files, and commands by one word of shell."""

    def __init__(self, folder: Path) -> None:
        self.plain = Plain()
        self.folder = folder
        self.out = os.open(folder / "out", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self.err = os.open(folder / "err", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def try_spawn(
        self,
        *argv: str,
        name: str = "node",
        cwd: str = "",
        script: str = "",
        env: dict[str, str] | None = None,
    ) -> Child | SpawnFailed:
        attempt = f"test/{name}/1"
        full = {"PATH": os.environ["PATH"], "DAGRUN_ATTEMPT_ID": attempt, **(env or {})}
        return self.plain.spawn(
            argv, full, out_fd=self.out, err_fd=self.err, attempt_id=attempt, cwd=cwd or str(self.folder), script=script
        )

    def spawn(self, *argv: str, name: str = "node", env: dict[str, str] | None = None) -> Child:
        child = self.try_spawn(*argv, name=name, env=env)
        assert isinstance(child, Child), child
        return child

    def sh(self, text: str, name: str = "node", env: dict[str, str] | None = None) -> Child:
        return self.spawn("sh", "-c", text, name=name, env=env)

    def end(self, child: Child) -> tuple[Exit, Swept]:
        """Wait for the main process, then sweep and reap as the engine does."""
        assert readable(child.pidfd), f"{child} did not end"
        swept = self.plain.sweep(child)
        return self.plain.reap(child), swept

    def text(self) -> str:
        return (self.folder / "out").read_text()


def readable(fd: int, timeout_s: float = DEADLINE_S) -> bool:
    """Whether a descriptor became readable before the deadline."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def until(check: Callable[[], object], what: str) -> None:
    """Look again and again until `check` holds; fails by name at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < end, f"never happened: {what}"
        os.sched_yield()


def written_pids(path: Path, count: int) -> list[tuple[int, int]]:
    """(pid, start ticks) of the `count` processes that write their pids into `path`."""

    def ready() -> bool:
        return path.exists() and path.read_text().count("\n") >= count

    until(ready, f"{count} pids in {path.name}")
    found = []
    for line in path.read_text().split():
        who = procs.stat(int(line))
        assert who is not None, f"{line} is gone already"
        found.append((int(line), who.start_ticks))
    return found


def become(pids: list[tuple[int, int]], name: str) -> None:
    """Wait until each of these is `name`: a shell tells its pid a moment before it is the program that it waits as."""
    for pid, _ in pids:
        until(lambda pid=pid: (who := procs.stat(pid)) is not None and who.name == name, f"{pid} is {name}")  # type: ignore[misc]


def all_dead(pids: list[tuple[int, int]]) -> bool:
    """Whether none of these processes is alive (waits a moment for those that were just killed)."""
    return not procs.wait_dead(pids, 5.0)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.plain.end_all()
    for child in list(made.plain._strays._running.values()):
        made.plain.reap(child)
    procs.reap_zombies()
    made.plain.close()
    os.close(made.out)
    os.close(made.err)
    assert not procs.children(os.getpid()), "the test left a process behind"

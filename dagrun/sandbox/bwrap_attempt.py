"""What one attempt under bwrap holds until it is over, and what bwrap tells of it.

An attempt that needs something in its namespaces before it starts is held at a gate: a full pipe that
bwrap copies into a file when its namespaces are made. Room in the pipe tells that it is there, the
pipe's end lets it go on. Knows pipes and processes, no command lines.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass, field
from json import loads

from dagrun.sandbox import procs
from dagrun.sandbox.grants import Grants
from dagrun.sandbox.wall import Launch, Spec

_STATUS_WAIT_S = 10.0


@dataclass(slots=True)
class Attempt:
    """`status` and `gate` are our ends of two pipes to bwrap (-1: closed), `theirs` what it inherits.

    `fault` says why it was ended by its own back end.
    """

    spec: Spec
    grants: Grants
    status: int = -1
    gate: int = -1
    theirs: list[int] = field(default_factory=list)
    told: bytes = b""
    fault: str = ""

    def make_gate(self) -> int:
        """Hold the command until `release`; bwrap's end of the pipe."""
        theirs, self.gate = os.pipe()
        self.theirs.append(theirs)
        fcntl.fcntl(self.gate, fcntl.F_SETPIPE_SZ, 1)  # the least that there is: a page
        os.set_blocking(self.gate, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.gate, bytes(4096))
        return theirs

    def close_theirs(self) -> None:
        """What bwrap has got is not kept open here."""
        for fd in self.theirs:
            os.close(fd)
        self.theirs.clear()
        self.grants.let_go()

    def release(self) -> None:
        """Let the command start, if it was held."""
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1

    def close(self) -> None:
        """Give back everything."""
        self.close_theirs()
        self.release()
        if self.status >= 0:
            os.close(self.status)
            self.status = -1
        self.grants.close()

    def held_pid(self) -> int:
        """The process inside that waits at the gate, as this machine counts; 0 if none ever came. Waits for it."""
        poll = select.poll()
        poll.register(self.gate, select.POLLOUT)
        if not any(events & select.POLLOUT for _, events in poll.poll(_STATUS_WAIT_S * 1000)):
            return 0
        for line in self._read_status(wait=True).splitlines():
            try:
                told = loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and isinstance(told.get("child-pid"), int):
                return int(told["child-pid"])
        return 0

    def began(self) -> bool:
        """Whether the command was reached: bwrap tells an exit code only of one that was. For one that has ended."""
        return b'"exit-code"' in self._read_status(wait=False)

    def _read_status(self, *, wait: bool) -> bytes:
        poll = select.poll()
        poll.register(self.status, select.POLLIN | select.POLLHUP)
        until = time.monotonic() + _STATUS_WAIT_S
        while True:
            left = until - time.monotonic() if wait and b"\n" not in self.told else 0.0
            if not poll.poll(max(0.0, left) * 1000):
                return self.told
            data = os.read(self.status, 4096)
            if not data:
                return self.told
            self.told += data


def attempt_of(launch: Launch) -> Attempt:
    """The attempt of a launch that this back end made."""
    attempt = launch.token
    assert isinstance(attempt, Attempt)
    return attempt


def inside(pid: int) -> dict[int, procs.Stat]:
    """What runs inside the sandbox of the bwrap `pid`: all that descends from it but its process 1."""
    return {kid: who for kid, who in procs.descendants(pid).items() if who.ppid != pid}

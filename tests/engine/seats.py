"""An engine's side of the tools of one attempt: a real run folder, real back ends, one epoll, and nothing else."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from dagrun.agent.messages import ToolCall
from dagrun.agent.worker import worker_argv
from dagrun.core.names import Json, NodeId
from dagrun.core.permissions import Isolation, Network, Paths, Permissions
from dagrun.core.workflow import Agent, Docker, Node, Workflow
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.confine import guard_of
from dagrun.engine.exchange import make_exchange, remove_exchange
from dagrun.engine.piped import Piped
from dagrun.engine.toolends import Broken, Returned
from dagrun.engine.toolseat import Seat, policy_of
from dagrun.sandbox import procs
from dagrun.sandbox.logpool import LogPool
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.walls import Walls
from dagrun.store.context import ContextStore
from dagrun.store.rundir import new_run

WAIT_S = 60.0
P = TypeVar("P", bound=Piped)


class Rig:
    """The attempts of node `a` of one workflow, and the loop that drives what they talk with."""

    def __init__(
        self,
        project: Path,
        level: Isolation = "process",
        *,
        read: tuple[str, ...] = (".",),
        write: tuple[str, ...] = ("out",),
        deny: tuple[str, ...] = (),
        network: Network | None = None,
        memory: int = 0,
        image: str = "",
        walls: Walls | None = None,
        environ: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        project.mkdir(exist_ok=True)
        run = new_run(str(project))
        os.makedirs(run.nodes, exist_ok=True)
        held = level in ("process", "container")
        paths = Paths(read=read, write=write, deny=deny)
        permissions = Permissions(paths=paths, network=network, isolation=level) if held else None
        self.node = Node(
            id=NodeId("a"),
            agent=Agent(prompt="x"),
            isolation=level,
            permissions=permissions,
            resources={"memory": float(memory)} if memory else {},
            grace_s=1.0,
        )
        self.workflow = Workflow(
            name="w", nodes={self.node.id: self.node}, docker=Docker(image=image) if image else None, file="flow.yaml"
        )
        self.bench = Workbench(
            run_id=run.id,
            run_path=run.path,
            key="k",
            project=str(project),
            params={},
            workflow="w",
            secrets=secrets or {},
            secret_env={},
            context=ContextStore(run),
            exchange=make_exchange(run),
            environ=environ if environ is not None else {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        )
        self.sandbox = Plain()
        self.bench.exempt = self.sandbox.exempt
        self.bench.walls = walls
        self.poll = select.epoll()
        self.logs = LogPool(run.nodes)
        self.slot = self.logs.acquire()
        self.run = run
        self.seats: list[Piped] = []

    def command(self, argv: tuple[str, ...] = (), number: int = 1) -> Command:
        """What an attempt is started with, as the engine prepares it."""
        guard = guard_of(self.bench, self.workflow)
        place = guard.place(self.node, number)
        env = {**place.env, "DAGRUN_ATTEMPT_ID": f"{self.bench.run_id}/a/{number}"}
        argv = argv or worker_argv("python3" if place.ask.level == "container" else "")
        cwd = "" if place.ask.level in ("process", "container") else self.bench.project
        made = guard.finish(self.node, number, place, Command(argv, env, cwd=cwd, stem=f"{place.folder}/"))
        assert isinstance(made, Command), made
        return made

    def seat(self, command: Command | None = None, number: int = 1) -> Seat:
        seat = Seat(
            bench=self.bench,
            sandbox=self.sandbox,
            poll=self.poll,
            node=self.node,
            number=number,
            command=command or self.command(number=number),
            slot=self.slot,
            policy=policy_of(self.bench, self.workflow, self.node),
        )
        self.seats.append(seat)
        return seat

    # ------------------------------------------------------------ the loop

    def turn(self, *, most_s: float = WAIT_S / 10) -> None:
        """One turn of the loop for all seats; it blocks only where the engine does."""
        seats = self.seats
        due = [at for seat in seats if (at := seat.next_due()) is not None]
        wait = min([most_s, *[max(0.0, at - time.monotonic()) for at in due]])
        known = {fd for seat in seats for fd in seat.fds}
        for fd, _ in self.poll.poll(wait):
            assert fd in known, f"descriptor {fd} is nobody's"
            assert [seat.ready(fd) for seat in seats].count(True) <= 1
        for seat in seats:
            seat.due(time.monotonic())

    def results(self, seat: Piped, count: int = 1) -> list[Returned | Broken]:
        """The next results."""
        found: list[Returned | Broken] = []
        end = time.monotonic() + WAIT_S
        while len(found) < count:
            assert time.monotonic() < end, f"only {found}; {self.err()}"
            found += seat.drain()
            if len(found) < count:
                self.turn()
        return found

    def until_dead(self, seat: Piped, *, kill_after_s: float | None = None) -> None:
        """Drive it until no process of it is left."""
        begun = time.monotonic()
        while seat.alive:
            assert time.monotonic() < begun + WAIT_S
            if kill_after_s is not None and time.monotonic() > begun + kill_after_s:
                seat.kill()
            self.turn(most_s=0.1)

    def ask(self, seat: Seat, tool: str, *, room: int = 30_000, timeout_s: float = 30.0, **given: Json) -> Returned:
        """One call and its result."""
        seat.call(1, ToolCall(id="c1", name=tool, arguments=given), room=room, timeout_s=timeout_s)
        (found,) = self.results(seat)
        assert isinstance(found, Returned), found
        return found

    def broken(self, seat: Piped) -> Broken:
        (found,) = self.results(seat)
        assert isinstance(found, Broken), found
        return found

    def err(self) -> str:
        return os.pread(self.slot.err_fd, 1 << 16, 0).decode("utf-8", "replace")

    def end(self) -> None:
        """End everything, and see that nothing is left."""
        for seat in self.seats:
            seat.kill()
            self.until_dead(seat)
            assert not seat.fds
        remove_exchange(self.bench.exchange)
        self.sandbox.tidy()  # orphans of what the back ends tried
        left = {pid: procs.stat(pid) for pid in procs.children(os.getpid()) if not self._is_helper(pid)}
        assert not left
        if self.bench.walls is not None:
            self.bench.walls.close()
        self.logs.close()
        self.poll.close()
        self.sandbox.close()

    def _is_helper(self, pid: int) -> bool:
        return self.sandbox._strays._is_exempt(pid)


def open_fds() -> set[str]:
    """The descriptors that are open now, without the one that looks."""
    return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}

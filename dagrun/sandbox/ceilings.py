"""Written ceilings around any launch: memory, processes, processors, the size of files.

Memory and processes are held by control groups, which count the whole tree. Processors by a group's
quota, else by affinity: whole cores, and a command that nothing else confines may take them back. The
size of a file by RLIMIT_FSIZE, for each file on its own. The command is inside before its first
instruction: `sh` goes in and becomes it. Knows no workflow and no back end but what a Launch says.
Invariants: nothing is claimed that was not tried on a real process; what is not written costs nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from shlex import quote

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import cgroup
from dagrun.sandbox.base import Exit, SpawnBusy
from dagrun.sandbox.ceilings_trial import (
    CANARY_MEMORY,
    ESCAPED,
    MEMORY_CANARY,
    PIDS_CANARY,
    SHELL,
    Tried,
    entering,
    file_limit,
    output_of,
    try_file_size,
)
from dagrun.sandbox.cgroup import Controller, Group, Place, Used
from dagrun.sandbox.plain import find_program
from dagrun.sandbox.wall import NOTHING_MORE, Aftermath, Bounds, Guarantee, Launch

_UNITS = ((1 << 30, "GiB"), (10**9, "GB"), (1 << 20, "MiB"), (10**6, "MB"), (1 << 10, "KiB"), (10**3, "kB"))
# What a back end keeps running beside the command, in the same group.
_HOLDERS = {"bubblewrap": 2}
_WRITTEN: Mapping[Controller, str] = {"memory": "memory_bytes", "pids": "pids", "cpu": "cpu"}
_FINE, _FAILED = Exit(0, None, None, 0), Exit(1, None, None, 0)
# A shell brings these along; the command only gets what it was given.
_SHELL_VARIABLES = ("PWD", "OLDPWD", "SHLVL", "_")


class _Shared:
    """What the launches of one attempt have together: its group, or the cores that it has without one."""

    __slots__ = ("cores", "group", "holders", "key", "refusals", "users")

    def __init__(self, key: str, group: Group | None) -> None:
        self.key = key
        self.group = group
        self.cores: set[int] = set()
        self.holders = 0
        self.refusals = 0
        self.users = 0


class _Held:
    """A launch with ceilings: what it shares with others of its attempt, and what was written."""

    __slots__ = ("bounds", "gate", "gate_fd", "notes", "shared")

    def __init__(self, bounds: Bounds, shared: _Shared) -> None:
        self.bounds = bounds
        self.shared: _Shared | None = shared  # None once it was given back
        self.gate = ""
        self.gate_fd = -1
        self.notes: tuple[str, ...] = ()


class Ceilings:
    """Puts launches of one run under their ceilings. One object serves one engine process.

    Nothing is probed before the first `proved` or `apply`. `places` is for tests.
    """

    def __init__(self, run_id: str, places: Mapping[Controller, Place | str] | None = None) -> None:
        self._run_id = run_id
        self._given = places
        self._found: dict[Controller, Place | str] | None = None
        self._proved = Tried(
            {"mem": self._try_memory, "pids": self._try_pids, "cpu": self._try_cpu, "fsize": try_file_size}
        )
        self._held: dict[int, tuple[Launch, _Held]] = {}
        self._shared: dict[str, _Shared] = {}
        self._left: list[Group] = []
        self._cores = sorted(os.sched_getaffinity(0))
        self._next_core = 0

    # ------------------------------------------------------------ what holds

    def proved(self) -> Mapping[Guarantee, str]:
        """mem, pids, cpu and fsize → "" when it held a real process here, else why not; each tried when asked."""
        return self._proved

    def how(self, guarantee: Guarantee) -> str:
        """By what a ceiling is held here, for people: `control groups v1`, `affinity`, `rlimit`, "" for not at all."""
        if guarantee not in self.proved() or self.proved()[guarantee]:
            return ""
        if guarantee == "fsize":
            return "rlimit"
        controllers: dict[Guarantee, Controller] = {"mem": "memory", "pids": "pids", "cpu": "cpu"}
        place = self._places().get(controllers[guarantee])
        return f"control groups v{place.version}" if place is not None else "affinity: whole cores"

    def _places(self) -> dict[Controller, Place]:
        return {name: place for name, place in self._searched().items() if not isinstance(place, str)}

    def _searched(self) -> dict[Controller, Place | str]:
        if self._found is None:
            self._found = dict(cgroup.find_places() if self._given is None else self._given)
        return self._found

    def _try_memory(self) -> str:
        """A shell whose variable outgrows its ceiling must be killed for it."""
        return self._try("memory", CANARY_MEMORY, MEMORY_CANARY, lambda used: used.memory_kills)

    def _try_pids(self) -> str:
        """A shell that may be one process must be refused a second one."""
        return self._try("pids", Bounds(pids=1), PIDS_CANARY, lambda used: used.pids_refusals)

    def _try(self, controller: Controller, bounds: Bounds, text: str, hit: Callable[[Used], int]) -> str:
        place = self._searched().get(controller, "the kernel shows no control groups for it")
        if isinstance(place, str):
            return place
        try:
            group = Group({controller: place}, bounds, "canary")
        except OSError as error:
            return f"a control group in {place.folder} takes no limit: {error.strerror}"
        try:
            said = output_of(f"{entering(group.doors)} && echo in && {text}")
            if not said.startswith(b"in\n"):
                return f"no process can be moved into a control group in {place.folder}"
            held = ESCAPED not in said and hit(group.used())
            return "" if held else f"a control group in {place.folder} did not hold its limit"
        finally:
            self._let_go(group)

    def _try_cpu(self) -> str:
        """A quota that the kernel took back as it was written, else affinity, which needs nobody's leave."""
        place = self._searched().get("cpu", "")
        if isinstance(place, str):
            return ""
        try:
            group = Group({"cpu": place}, Bounds(cpu=0.5), "canary")
        except OSError:
            self._searched()["cpu"] = "it takes no quota"
            return ""
        said = output_of(f"{entering(group.doors)} && echo in")
        self._let_go(group)
        if said != b"in\n":
            self._searched()["cpu"] = "no process can be moved into its groups"
        return ""

    # ------------------------------------------------------------ an attempt

    def apply(self, bounds: Bounds, launch: Launch, attempt_id: str) -> Launch:
        """The same object `launch`, changed so that what it starts is under `bounds` from its first instruction.

        Launches of one attempt that are there at the same time share one ceiling of memory, processes
        and processors. A launch that restricts itself (`around`) must leave its TMPDIR reachable. Raises
        SpawnBusy when the machine is short of something, EnvironmentFault when it no longer takes what
        it proved.
        """
        places = {name: p for name, p in self._places().items() if getattr(bounds, _WRITTEN[name]) is not None}
        shared = self._share(attempt_id, places, bounds, _HOLDERS.get(launch.backend, 0))
        held = _Held(bounds, shared)
        if shared.group is not None or bounds.file_size_bytes is not None:
            self._wrap(launch, held, shared.group)
        if bounds.cpu is not None and "cpu" not in places:
            self._pin(launch, held, shared, bounds.cpu)
        self._held[id(launch)] = (launch, held)
        return launch

    def _share(self, key: str, places: Mapping[Controller, Place], bounds: Bounds, holders: int) -> _Shared:
        shared = self._shared.get(key)
        if shared is None:
            shared = _Shared(key, self._group(places, _with_holders(bounds, holders)) if places else None)
            self._shared[key] = shared
        elif holders and shared.group is not None:
            shared.group.limit("pids", _with_holders(bounds, shared.holders + holders))
        shared.users += 1
        shared.holders += holders
        return shared

    def _group(self, places: Mapping[Controller, Place], bounds: Bounds) -> Group:
        try:
            return Group(places, bounds, self._run_id)
        except OSError as error:
            if error.errno in (12, 23, 24, 28):  # ENOMEM, ENFILE, EMFILE, ENOSPC: no id for a group left
                raise SpawnBusy(error.errno, f"can't make a control group: {error.strerror}") from None
            raise EnvironmentFault(
                f"can't make a control group with these limits: {error.strerror}",
                hint="see what holds here: dagrun doctor",
            ) from error

    def _wrap(self, launch: Launch, held: _Held, group: Group | None) -> None:
        """Let `sh` take on the limits and become the command."""
        if find_program(launch.argv[0], launch.env.get("PATH", os.defpath)) is None:
            return  # plain.py has better words for this than a shell
        steps = []
        if group is not None:
            steps.append(self._gate(launch, group, held) if launch.around is not None else entering(group.doors))
        if held.bounds.file_size_bytes is not None:
            steps.append(file_limit(held.bounds.file_size_bytes))
        steps.append("ulimit -c 0")
        unset = " ".join([name for name in _SHELL_VARIABLES if name not in launch.env])
        text = f"{' && '.join(steps)} || {{ echo 'dagrun: a limit could not be taken on' >&2; exit 125; }}"
        launch.argv = (SHELL, "-c", f"{text}\nunset {unset}\nexec \"$@\"", "sh", *launch.argv)

    def _gate(self, launch: Launch, group: Group, held: _Held) -> str:
        """For what can't reach its group from inside: it waits at a pipe until it was moved in from outside.

        The pipe stays open here for both directions until the end: neither side waits for the other
        to come, and what was said is not lost before it is heard.
        """
        held.gate = gate = f"{launch.env.get('TMPDIR', '')}/.dagrun-gate"
        try:
            os.mkfifo(gate, 0o600)
            held.gate_fd = os.open(gate, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self._let_go_of(held)
            raise SpawnBusy(error.errno or 0, f"can't make {gate}: {error.strerror}") from None
        inner = launch.around

        def around(spawn: Callable[[], int]) -> int:
            pid = spawn() if inner is None else inner(spawn)
            os.write(held.gate_fd, b"in\n" if _taken(group, pid) else b"out\n")
            return pid

        launch.around = around
        return f"read -r said <{quote(gate)} && test \"$said\" = in"

    def _pin(self, launch: Launch, held: _Held, shared: _Shared, cpu: float) -> None:
        """Whole cores in turn; the spawning thread takes them on and gives them back."""
        number = min(len(self._cores), max(1, -int(-cpu // 1)))
        if not shared.cores:
            shared.cores = {self._cores[(self._next_core + k) % len(self._cores)] for k in range(number)}
            self._next_core = (self._next_core + number) % len(self._cores)
        cores = shared.cores
        inner = launch.around
        if number > cpu:
            held.notes = (f"cpu: {cpu:g} is held as {number} whole core{'s' if number > 1 else ''} here",)

        def around(spawn: Callable[[], int]) -> int:
            os.sched_setaffinity(0, cores)
            try:
                return spawn() if inner is None else inner(spawn)
            finally:
                os.sched_setaffinity(0, self._cores)

        launch.around = around

    def passed(self, launch: Launch, *, failed: bool) -> Aftermath:
        """Which ceiling something of a living attempt ran into: memory, or processes since it was asked last.

        `failed`: what was done since then failed, so being refused a process counts.
        """
        _, held = self._held.get(id(launch), (launch, None))
        if held is None or held.shared is None or held.shared.group is None:
            return NOTHING_MORE
        used = held.shared.group.used()
        fresh = used.pids_refusals > held.shared.refusals
        held.shared.refusals = used.pids_refusals
        after = _verdict(held, used, _FAILED if failed and fresh else _FINE)
        return after if after.limit else NOTHING_MORE

    def ended(self, launch: Launch, exit_: Exit) -> Aftermath:
        """All of it is dead: which ceiling it ran into, with its peak; its groups go with the last of its attempt.

        Memory counts whenever something was killed for it; processes only if the command failed, as
        a program may well try how many it can have. A program that ignores SIGXFSZ sees EFBIG and
        ends as it likes: that is a plain failure.
        """
        _, held = self._held.pop(id(launch), (launch, None))
        if held is None:
            return NOTHING_MORE
        group = held.shared.group if held.shared is not None else None
        used = group.used() if group is not None else Used()
        after = _verdict(held, used, exit_)
        self._let_go_of(held)
        return after

    def _let_go_of(self, held: _Held) -> None:
        """Give back what a launch had."""
        if held.gate_fd >= 0:
            os.close(held.gate_fd)
            held.gate_fd = -1
            _unlink(held.gate)
        shared, held.shared = held.shared, None
        if shared is None:
            return
        shared.users -= 1
        if not shared.users:
            del self._shared[shared.key]
            if shared.group is not None:
                self._let_go(shared.group)

    def _let_go(self, group: Group) -> None:
        """Remove a group, or remember it for later."""
        self._left = [old for old in self._left if not old.remove(timeout_s=0)]
        if not group.remove():
            self._left.append(group)

    def sweep(self) -> int:
        """Kill and remove what runs that are dead left in groups; how many groups there were."""
        return cgroup.sweep(self._places())

    def close(self) -> None:
        """Remove what is left. Nothing is running."""
        for _, held in self._held.values():
            self._let_go_of(held)
        self._held.clear()
        for group in self._left:
            group.remove()
        self._left.clear()


# ---------------------------------------------------------------- words


def _verdict(held: _Held, used: Used, exit_: Exit) -> Aftermath:
    """What the counters and the exit say together."""
    bounds, peak = held.bounds, used.memory_peak_bytes
    holders = held.shared.holders if held.shared is not None else 0
    failed = exit_.signal is not None or bool(exit_.code)
    if bounds.memory_bytes is not None and used.memory_kills:
        unit = _unit(bounds.memory_bytes)
        text = f"memory: used its limit of {_in(bounds.memory_bytes, unit)}{_peak(_in(peak, unit) if peak else '')}"
        return Aftermath(limit="memory", error=text, peak_memory_bytes=peak, notes=held.notes)
    if bounds.pids is not None and used.pids_refusals and failed:
        most = max(0, used.pids_peak - holders) if used.pids_peak is not None else ""
        text = f"pids: reached its limit of {bounds.pids} processes and threads{_peak(str(most))}"
        return Aftermath(limit="pids", error=text, peak_memory_bytes=peak, notes=held.notes)
    if bounds.file_size_bytes is not None and _by_signal(exit_, signal.SIGXFSZ):
        size = _in(bounds.file_size_bytes, _unit(bounds.file_size_bytes))
        text = f"file_size: a file reached its limit of {size}"
        return Aftermath(limit="file_size", error=text, peak_memory_bytes=peak, notes=held.notes)
    return Aftermath(peak_memory_bytes=peak, notes=held.notes)


def _by_signal(exit_: Exit, number: signal.Signals) -> bool:
    return exit_.signal == number or exit_.code == 128 + number


def _peak(text: str) -> str:
    return f" (peak {text})" if text else ""


def _unit(size_bytes: int) -> tuple[int, str]:
    """The unit in which somebody would have written this size."""
    exact = [unit for unit in _UNITS if not size_bytes % unit[0]]
    return exact[0] if exact else next((u for u in _UNITS if u[1].endswith("iB") and size_bytes >= u[0]), (1, "bytes"))


def _in(size_bytes: int, unit: tuple[int, str]) -> str:
    """`64 MiB`, `1.5 GiB`."""
    return f"{size_bytes / unit[0]:.1f}".removesuffix(".0") + f" {unit[1]}"


# ---------------------------------------------------------------- shell


def _taken(group: Group, pid: int) -> bool:
    try:
        group.take(pid)
    except OSError:
        return False
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # the command took it away: the folder is its own


def _with_holders(bounds: Bounds, holders: int) -> Bounds:
    if bounds.pids is None or not holders:
        return bounds
    return Bounds(bounds.memory_bytes, bounds.pids + holders, bounds.cpu, bounds.file_size_bytes)

"""Control groups as this machine has them (v1, v2 or both): where ours may be, and one group per attempt.

A group is made below the group that dagrun itself runs in, or beside it where v2 wants that, so
what bounds dagrun bounds its nodes too. Knows no specs and no attempts. Invariants: a group is only
removed when nothing lives in it; its name tells the process that made it, so that what a dead one
left can be told from what a living one uses; nothing outside our own groups is ever signalled.
"""

from __future__ import annotations

import functools
import os
import re
import select
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import Literal, NamedTuple, TypeAlias

from dagrun.sandbox import procs
from dagrun.sandbox.wall import Bounds

Controller: TypeAlias = Literal["memory", "pids", "cpu"]
CONTROLLERS: tuple[Controller, ...] = ("memory", "pids", "cpu")
_PREFIX = "dagrun-"
_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000  # the kernel takes no less
_NONE = "the kernel shows no control groups for it"


class Place(NamedTuple):
    """A folder in which groups with one controller may be made."""

    folder: str
    version: Literal[1, 2]


class _Mount(NamedTuple):
    version: Literal[1, 2]
    root: str
    point: str
    controllers: frozenset[str]


# ---------------------------------------------------------------- where


def find_places() -> dict[Controller, Place | str]:
    """For each controller where its groups go, else why there is no place."""
    mounts = _mounts()
    own = _own_groups()
    found = {name: _place_v1(name, mounts, own) for name in CONTROLLERS}
    rest = [name for name, place in found.items() if place == _NONE]
    for mount in mounts:
        if mount.version == 2 and rest:
            folder = _seen(mount, own.get("", "/"))
            found.update(_places_v2(rest, mount.point, folder) if folder else {})
    return found


def _place_v1(name: Controller, mounts: list[_Mount], own: Mapping[str, str]) -> Place | str:
    for mount in mounts:
        if mount.version == 1 and name in mount.controllers:
            folder = _seen(mount, own.get(name, "/"))
            return _writable(Place(folder, 1)) if folder else "its control group can't be seen from here"
    return _NONE


def _places_v2(names: list[Controller], top: str, own: str) -> dict[Controller, Place | str]:
    """One folder for all of them, as with v2 a process is in one group only: the nearest from our own upwards.

    Our own holds processes (dagrun, the shell), so v2 lets it have no groups with controllers.
    Controllers are switched on in the group above our own and no higher: that is others' business.
    """
    folder = own
    while True:
        if os.access(folder, os.W_OK):
            near = folder in (own, os.path.dirname(own))
            held = [name for name in names if _passes_on(folder, name) or (near and _pass_on(folder, name))]
            if held:
                place = _writable(Place(folder, 2))
                return {n: place if n in held else f"control groups below {folder} do without it" for n in names}
        if folder == top or len(folder) <= len(top):
            there = _words(f"{top}/cgroup.controllers")
            return {n: "no control group is delegated to this user" if n in there else _NONE for n in names}
        folder = os.path.dirname(folder)


def _passes_on(folder: str, name: Controller) -> bool:
    return name in _words(f"{folder}/cgroup.subtree_control")


def _pass_on(folder: str, name: Controller) -> bool:
    if name not in _words(f"{folder}/cgroup.controllers"):
        return False
    try:
        _write(f"{folder}/cgroup.subtree_control", f"+{name}")
    except OSError:
        return False  # processes live in it, or it is not ours
    return True


def _writable(place: Place) -> Place | str:
    """The place, if a group can really be made there and a process could be moved into it."""
    probe = f"{place.folder}/{_PREFIX}probe-{_mark()}"
    try:
        os.mkdir(probe)
        os.rmdir(probe)
    except OSError as error:
        return f"no control group can be made in {place.folder}: {error.strerror}"
    return place


def _mounts() -> list[_Mount]:
    found = []
    for line in _text("/proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, point = (_unescaped(part) for part in head.split()[3:5])
            version: Literal[1, 2] = 1 if kind == "cgroup" else 2
            found.append(_Mount(version, root, point, frozenset(options.split(","))))
    return found


def _own_groups() -> dict[str, str]:
    """Controller → the group of this process in its hierarchy; "" is v2's."""
    found = {}
    for line in _text("/proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        found.update(dict.fromkeys(names.split(","), path))
    return found


def _seen(mount: _Mount, path: str) -> str:
    """Where a group is in the file system; "" when this mount doesn't show it."""
    if mount.root == "/":
        return (mount.point + path).rstrip("/") if "/.." not in path else ""
    if path != mount.root and not path.startswith(mount.root + "/"):
        return ""
    return mount.point + path[len(mount.root) :]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


# ---------------------------------------------------------------- one attempt


@dataclass(frozen=True, slots=True)
class Used:
    """What the processes of a group took; None where the kernel doesn't tell."""

    memory_peak_bytes: int | None = None
    memory_kills: int = 0
    pids_peak: int | None = None
    pids_refusals: int = 0


class Group:
    """The control groups of one attempt: one folder, or with v1 one for each controller.

    Raises OSError when one can't be made or takes no limit; nothing is left then.
    """

    __slots__ = ("_places", "folders")

    def __init__(self, places: Mapping[Controller, Place], bounds: Bounds, label: str) -> None:
        self._places: dict[Controller, tuple[str, int]] = {}
        self.folders: list[str] = []
        name = f"{_PREFIX}{re.sub(r'[^A-Za-z0-9_.]', '_', label)}-{_mark()}"
        try:
            for controller, place in places.items():
                folder = f"{place.folder}/{name}"
                self._places[controller] = (folder, place.version)
                if folder not in self.folders:
                    os.mkdir(folder)
                    self.folders.append(folder)
                _limit(controller, folder, place.version, bounds)
        except OSError:
            self.remove(timeout_s=0)
            raise

    @property
    def doors(self) -> tuple[str, ...]:
        """The files into which a process writes 0 to get in."""
        return tuple(f"{folder}/cgroup.procs" for folder in self.folders)

    def take(self, pid: int) -> None:
        """Move a process in. Raises OSError."""
        for door in self.doors:
            _write(door, str(pid))

    def limit(self, controller: Controller, bounds: Bounds) -> None:
        """Change one of its limits, where it has that controller. Raises OSError."""
        if controller in self._places:
            _limit(controller, *self._places[controller], bounds)

    def used(self) -> Used:
        """What was used until now."""
        memory, version = self._places.get("memory", ("", 0))
        pids, _ = self._places.get("pids", ("", 0))
        peak = "memory.peak" if version == 2 else "memory.max_usage_in_bytes"
        kills = "memory.events" if version == 2 else "memory.oom_control"
        return Used(
            memory_peak_bytes=_count(f"{memory}/{peak}") if memory else None,
            memory_kills=_counts(f"{memory}/{kills}").get("oom_kill", 0) if memory else 0,
            pids_peak=_count(f"{pids}/pids.peak") if pids else None,
            pids_refusals=_counts(f"{pids}/pids.events").get("max", 0) if pids else 0,
        )

    def remove(self, timeout_s: float = 1.0) -> bool:
        """Kill what is left in it and take it away; False while something doesn't die."""
        self.folders = [folder for folder in self.folders if not _remove(folder, timeout_s)]
        return not self.folders


def _limit(controller: Controller, folder: str, version: int, bounds: Bounds) -> None:
    if controller == "memory" and bounds.memory_bytes is not None:
        _limit_memory(folder, version, bounds.memory_bytes)
    elif controller == "pids" and bounds.pids is not None:
        _write(f"{folder}/pids.max", str(bounds.pids))
    elif controller == "cpu" and bounds.cpu is not None:
        quota = max(_LEAST_QUOTA_US, round(bounds.cpu * _PERIOD_US))
        if version == 2:
            _write(f"{folder}/cpu.max", f"{quota} {_PERIOD_US}")
        else:
            _write(f"{folder}/cpu.cfs_period_us", str(_PERIOD_US))
            _write(f"{folder}/cpu.cfs_quota_us", str(quota))


def _limit_memory(folder: str, version: int, memory_bytes: int) -> None:
    """Memory, and no swap beyond it, where swap is counted at all."""
    if version == 2:
        _write(f"{folder}/memory.max", str(memory_bytes))
        for file, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            if os.path.exists(f"{folder}/{file}"):
                _write(f"{folder}/{file}", value)
        return
    _write(f"{folder}/memory.limit_in_bytes", str(memory_bytes))
    if os.path.exists(f"{folder}/memory.memsw.limit_in_bytes"):
        _write(f"{folder}/memory.memsw.limit_in_bytes", str(memory_bytes))


# ---------------------------------------------------------------- ends


def sweep(places: Mapping[Controller, Place]) -> int:
    """Kill and remove the groups whose maker is dead; how many there were."""
    swept = 0
    for folder in {place.folder for place in places.values()}:
        for path in list(_folders(folder)):
            name = os.path.basename(path)
            if name.startswith(_PREFIX) and _is_orphaned(name):
                swept += _remove(path, 2.0)
    return swept


def _is_orphaned(name: str) -> bool:
    """Whether the process that made this group is dead; one of another pid namespace can't be judged."""
    found = re.fullmatch(r".*-(\d+)\.(\d+)\.(\d+)\.\d+", name)
    if found is None:
        return False
    namespace, pid, ticks = map(int, found.groups())
    if namespace != _pid_namespace():
        return False
    who = procs.stat(pid)
    return procs.is_dead(who) or who is None or who.start_ticks != ticks


_numbers = count(1)


def _mark() -> str:
    """Who makes this group and which one it is: unique on this machine while it is up."""
    return f"{_maker(os.getpid())}.{next(_numbers)}"


@functools.cache
def _maker(pid: int) -> str:
    me = procs.stat(pid)
    return f"{_pid_namespace()}.{pid}.{me.start_ticks if me else 0}"


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _remove(folder: str, timeout_s: float) -> bool:
    """Remove a group and the groups below it; what lives in them is killed first."""
    end = monotonic() + timeout_s
    while True:
        try:
            os.rmdir(folder)
            return True
        except FileNotFoundError:
            return True
        except OSError:
            pass
        for below in list(_folders(folder)):
            _remove(below, 0)
        _kill(folder)
        if monotonic() >= end:
            return False


def _kill(folder: str) -> None:
    """SIGKILL everything in a group; where it can, the kernel lets nothing new begin."""
    for file, value in (("pids.max", "0"), ("cgroup.kill", "1")):
        if os.path.exists(f"{folder}/{file}"):
            try:
                _write(f"{folder}/{file}", value)
            except OSError:
                pass  # it is going, or a root group: the signals do it
    members = _words(f"{folder}/cgroup.procs")
    found = []
    for word in members:
        try:
            fd = os.pidfd_open(int(word))
        except (OSError, ValueError):
            continue
        found.append(fd)
        # Read again with the pidfd open: a pid that was reused meanwhile is not in the group.
        if word in _words(f"{folder}/cgroup.procs"):
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            except OSError:
                pass
    _wait_briefly(found)


def _wait_briefly(pidfds: list[int]) -> None:
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    poll.poll(20 if pidfds else 1)
    for fd in pidfds:
        os.close(fd)


def _folders(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.path
    except OSError:
        return


# ---------------------------------------------------------------- files


def _write(path: str, text: str) -> None:
    """One write, as the kernel reads a command in one piece. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def _words(path: str) -> list[str]:
    return _text(path).split()


def _count(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _counts(path: str) -> dict[str, int]:
    """A file of `name number` lines."""
    found = {}
    for line in _text(path).splitlines():
        name, _, number = line.partition(" ")
        if number.isdigit():
            found[name] = int(number)
    return found

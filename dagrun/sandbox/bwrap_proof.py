"""What a bwrap proves on this machine: whose it is, what it can, and what a canary inside could not do.

Nothing is believed for a name or a version. Host lists and the limit of processes are tried when
somebody asks for them, as the first needs a proxy and both another sandbox.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable, Iterator, Mapping

from dagrun.core.permissions import Network
from dagrun.errors import EnvironmentFault
from dagrun.sandbox import canary
from dagrun.sandbox.base import Child, SpawnBusy
from dagrun.sandbox.bwrap_attempt import Attempt, attempt_of
from dagrun.sandbox.wall import GUARANTEES, Bounds, Guarantee, Refused, Spec, Wall

_OPTIONS = ("--bind-fd", "--ro-bind-fd", "--disable-userns", "--json-status-fd")
_ELSEWHERE: tuple[Guarantee, ...] = ("mem", "cpu", "fsize")
_LIST_NEEDS: tuple[Guarantee, ...] = ("net.none", "unix", "caps")
_PIDS = 8
# Says a word for each process that it could start; most shells end where they can't.
_FORKS = "n=0; exec 2>/dev/null; while [ $n -lt 20 ]; do sleep 9 & n=$((n+1)); echo one; done"
_COUNT_S = 2.0


class Proof(Mapping[Guarantee, str]):
    """Each guarantee → "" when it held, else why not. `later` is tried at the first look at it."""

    def __init__(self, found: dict[Guarantee, str], later: dict[Guarantee, Callable[[], str]]) -> None:
        self._found = found
        self._later = later

    def __getitem__(self, name: Guarantee) -> str:
        if name in self._later:
            self._found[name] = self._later.pop(name)()
        return self._found[name]

    def __iter__(self) -> Iterator[Guarantee]:
        return iter(GUARANTEES)

    def __len__(self) -> int:
        return len(GUARANTEES)


def all_lack(why: str) -> Proof:
    """Nothing is held, for one reason."""
    return Proof(dict.fromkeys(GUARANTEES, why), {})


def fault_of(path: str) -> str:
    """Why this bwrap is not even tried, "" if it may be."""
    if not path:
        return "bwrap is not installed"
    try:
        real = os.path.realpath(path)
        found = os.stat(real)
        if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{real} is not trusted: it must belong to root, and only root may write it"
        if folder := _open_folder(real):
            return f"{real} is not trusted: others than root can put another file there, as they may write {folder}"
        text = canary.output_of((real, "--help"))
    except OSError as error:
        return f"{path} can't be run: {error.strerror}"
    lacks = [option for option in _OPTIONS if option not in text]
    return f"{real} is too old: it has no {', '.join(lacks)}" if lacks else ""


def _open_folder(path: str) -> str:
    """The first folder above `path` in which others than root can replace what leads to it, "" if there is none."""
    while path != "/":
        inner, path = os.stat(path), os.path.dirname(path)
        found = os.stat(path)
        sticky = found.st_mode & stat.S_ISVTX and inner.st_uid == 0
        if found.st_uid != 0 or (found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky):
            return path
    return ""


def proof_of(wall: Wall, retry: Callable[[], bool], lists: Callable[[int], str] | None) -> Proof:
    """Let a canary go for everything. `retry` is asked for another way when no fresh /proc can be made.

    `lists` tries a host list in the network of a process that is held before its start.
    """
    found = canary.prove(wall)
    if any("mount proc" in why for why in found.values()) and retry():
        found = canary.prove(wall)
    first = next(iter(found.values()))
    if first and all(why == first for why in found.values()):
        return all_lack(_explained(first))
    for name in _ELSEWHERE:
        found[name] = "bubblewrap itself has no such limit"
    return Proof(found, {"net.allowlist": lambda: _try_list(wall, found, lists), "pids": lambda: _try_pids(wall)})


def _explained(why: str) -> str:
    """What bwrap says when it may not do its work, with what it means."""
    if "user namespace" in why or "uid map" in why or "new namespace" in why:
        return f"user namespaces are not allowed here ({why})"
    return why


def _try_list(wall: Wall, found: Mapping[Guarantee, str], lists: Callable[[int], str] | None) -> str:
    """Host lists: a sandbox that is held before its command starts, and a proxy that makes a door in it."""
    if lists is None:
        return "there is no proxy to hold a list of hosts"
    lack = next((why for name in _LIST_NEEDS if (why := found[name])), "")
    if lack:
        return lack

    def look(_said: int, attempt: Attempt, _: Child) -> str:
        pid = attempt.held_pid()
        return lists(pid) if pid else "bwrap did not tell what it started"

    return _trial(wall, ("/bin/true",), ("localhost",), None, look)


def _try_pids(wall: Wall) -> str:
    """Without control groups: RLIMIT_NPROC, which counts only what is inside a user namespace, and not root."""
    if os.getuid() == 0:
        return "the kernel counts no processes of root without control groups"

    def look(said: int, _: Attempt, child: Child) -> str:
        select.select([child], [], [], _COUNT_S)
        most = 1 + os.pread(said, 1000, 0).count(b"one\n")
        os.ftruncate(said, 0)
        return "" if 1 < most <= _PIDS else f"{most} processes were there with a limit of {_PIDS}"

    return _trial(wall, ("/bin/sh", "-c", _FORKS), "none", _PIDS, look)


def _trial(
    wall: Wall, argv: tuple[str, ...], network: Network, pids: int | None, look: Callable[[int, Attempt, Child], str]
) -> str:
    """What `look` says of a sandbox that was made for it and is ended afterwards."""
    errors = os.memfd_create("canary", os.MFD_CLOEXEC)
    try:
        with canary.temporary_folder() as folder:
            launch = wall.launch(_spec(folder, argv, network, pids))
            attempt = attempt_of(launch)
            try:
                child = canary.start(launch, attempt.spec.attempt_id, errors, errors)
            except OSError:
                wall.discard(launch)
                raise
            try:
                attempt.close_theirs()
                why = look(errors, attempt, child)
            finally:
                canary.end(child)
                attempt.close()
        said = os.pread(errors, 300, 0).decode("utf-8", "replace")
        return f"{why} {said}".strip() if why else ""
    except (Refused, SpawnBusy, EnvironmentFault, OSError) as error:
        return f"it could not be tried: {error}"
    finally:
        os.close(errors)


def _spec(folder: str, argv: tuple[str, ...], network: Network, pids: int | None) -> Spec:
    """The least spec that a trial needs."""
    return Spec(
        attempt_id="canary/trial/1",
        run_id="canary",
        run_dir=folder,
        node="canary",
        argv=argv,
        env={"PATH": os.defpath},
        cwd=folder,
        project=folder,
        read=(".",),
        network=network,
        bounds=Bounds(pids=pids),
    )

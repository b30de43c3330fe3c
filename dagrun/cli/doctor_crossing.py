"""Trying to get out: a small script is started behind a back end's walls, as a node would be.

What it manages to do is a guarantee that does not hold, whatever the back end proved of itself. So a
program that only calls itself a sandbox is found out here too.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from random import randrange
from statistics import median
from tempfile import mkdtemp
from typing import NamedTuple

from dagrun.core.permissions import Isolation
from dagrun.errors import DagrunError
from dagrun.sandbox.base import SpawnBusy, SpawnFailed
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Guarantee, Launch, Refused, Spec, Wall

LAUNCHES = 3
DEADLINE_S = 10.0
# Each line tries to get out and says `escaped GUARANTEE` if it did: $OUT can't be seen, $PID is dagrun,
# $PORT listens, $FD was open in dagrun, $NAP is the last word of a child that nobody waits for. A
# redirection of `:` that fails ends the shell, so it has one of its own.
SCRIPT = r"""
got() { printf 'escaped %s\n' "$1"; }
has() { command -v "$1" >/dev/null 2>&1 || { printf 'untried %s\n' "$2"; return 1; }; }
{ IFS= read -r line <"$OUT/secret" && got fs.read; } 2>/dev/null || :
{ (: >"$OUT/planted") && got fs.write; } 2>/dev/null || :
{ [ -e "$OUT/secret" ] && got fs.meta; } 2>/dev/null || :
{ IFS= read -r line <.env && got fs.deny; } 2>/dev/null || :
{ [ -e .dagrun/journal ] && got fs.protected; } 2>/dev/null || :
{ kill -0 "$PID" && got proc.signal; } 2>/dev/null || :
{ [ "$(cat "/proc/$PID/comm")" = "$COMM" ] && got proc.hide; } 2>/dev/null || :
has grep env && { [ -n "$VALUE" ] && grep -aqsF "$NAME=$VALUE" /proc/[0-9]*/environ && got env; } 2>/dev/null || :
{ [ -e "/proc/self/fd/$FD" ] && got fds; } 2>/dev/null || :
{ (: </dev/tty) && got tty; } 2>/dev/null || :
has bash net.none && { bash -c ': </dev/tcp/127.0.0.1/'"$PORT" && got net.none; } 2>/dev/null || :
has setsid kill.tree && (setsid sleep "$NAP" >/dev/null 2>&1 </dev/null &) 2>/dev/null || :
echo done
"""
CROSSED: tuple[Guarantee, ...] = (
    *("fs.read", "fs.write", "fs.meta", "fs.deny", "fs.protected", "proc.signal", "proc.hide"),
    *("env", "fds", "tty", "net.none", "kill.tree"),
)
_GIVEN = frozenset({"PATH", "LANG", "LANGUAGE", "TERM", "TZ", "USER", "LOGNAME", "SHELL", "HOME", "TMPDIR"})


class Crossing(NamedTuple):
    """How it went: what got out, and what an empty launch takes (None: there was none). `error`: why not.

    `untried` are the guarantees for whose attack the sandbox had no program.
    """

    escaped: frozenset[str] = frozenset()
    launch_ms: float | None = None
    error: str = ""
    untried: frozenset[str] = frozenset()

    @property
    def made(self) -> bool:
        """Whether the script ran to its end, so that what it does not name was stopped."""
        return self.launch_ms is not None

    def tried(self, guarantees: tuple[Guarantee, ...]) -> tuple[Guarantee, ...]:
        """Those of these guarantees that were attacked."""
        return tuple(g for g in guarantees if g not in self.untried) if self.made else ()


class Crosser:
    """Starts the script behind walls. Leaves nothing once it is closed."""

    def __init__(self) -> None:
        self._kept = os.open(os.devnull, os.O_RDONLY)
        os.set_inheritable(self._kept, True)  # before Plain: as a descriptor that dagrun was started with
        self.plain = Plain()
        self._place = os.path.realpath(mkdtemp(prefix="dagrun-doctor-"))
        os.chmod(self._place, 0o711)  # the user of a container is another
        self._attempts = 0

    def close(self) -> None:
        """End what is alive and remove what was made."""
        self.plain.end_all()
        self.plain.close()
        os.close(self._kept)
        shutil.rmtree(self._place, ignore_errors=True)

    def cross(self, wall: Wall | None, level: Isolation, image: str = "") -> Crossing:
        """Try to get out of a launch at `level`, and time empty ones. `wall` None: the plain back end."""
        nap = str(randrange(10**7, 10**8))
        try:
            with socket.create_server(("127.0.0.1", 0)) as door:
                spec = self._spec(level, image, {"PORT": str(door.getsockname()[1]), "NAP": nap})
                said, took = self._run(wall, spec)
            if level != "container":  # there the trial is as good a measure
                took = median([self._run(wall, self._empty(level))[1] for _ in range(LAUNCHES)])
        except (Refused, DagrunError, SpawnBusy) as error:
            return Crossing(error=error.message)
        lines = said.splitlines()
        if "done" not in lines:
            return Crossing(error=f"a trial launch failed: {said.strip()[-200:] or 'it said nothing'}")
        escaped = {line.split()[1] for line in lines if line.startswith("escaped ")}
        if _alive(nap):
            escaped.add("kill.tree")
        untried = frozenset(line.split()[1] for line in lines if line.startswith("untried "))
        return Crossing(frozenset(escaped), round(took, 2), untried=untried)

    def _empty(self, level: Isolation) -> Spec:
        return replace(self._spec(level, "", {}), argv=("/bin/sh", "-c", ":"))

    def _spec(self, level: Isolation, image: str, more: Mapping[str, str]) -> Spec:
        """An attempt in a project of its own, with something outside that it must not reach."""
        self._attempts += 1
        place = f"{self._place}/{self._attempts}"
        project, outside, exchange = f"{place}/project", f"{place}/outside", f"{place}/exchange"
        for folder in (f"{project}/.dagrun", f"{project}/out", outside, exchange):
            os.makedirs(folder)
        for file in (f"{project}/.env", f"{project}/.dagrun/journal", f"{outside}/secret"):
            with open(file, "w") as made:
                made.write("canary\n")
        name, value = _unlisted()
        env = {"PATH": os.defpath, "OUT": outside, "PID": str(os.getpid()), "COMM": _comm(), "FD": str(self._kept)}
        env |= {"NAME": name, "VALUE": value, **more}
        confined = level in ("process", "container")
        return Spec(
            attempt_id=f"doctor.{os.getpid()}.{self._attempts}",
            run_id="doctor",
            run_dir=f"{project}/.dagrun",
            node="doctor",
            argv=("/bin/sh", "-c", SCRIPT),
            env=env,
            cwd=project,
            project=project,
            level=level,
            read=(".",) if confined else None,
            write=("out",) if confined else (),
            deny=(".env",) if confined else (),
            network="none" if confined else None,
            hidden=(f"{project}/.dagrun",),
            exchange=exchange,
            image=image,
        )

    def _run(self, wall: Wall | None, spec: Spec) -> tuple[str, float]:
        """What an attempt prints, and how many ms it took. Raises as Wall.launch does."""
        path = f"{spec.exchange}.out"
        out = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            began = time.perf_counter()
            launch = Launch(argv=spec.argv, env=spec.env, cwd=spec.cwd) if wall is None else wall.launch(spec)
            launch.env = {**launch.env, "DAGRUN_RUN_ID": spec.run_id, "DAGRUN_ATTEMPT_ID": spec.attempt_id}
            child = self.plain.spawn(
                launch.argv, launch.env, out_fd=out, err_fd=out, attempt_id=spec.attempt_id, cwd=launch.cwd,
                script=launch.script, fds=launch.fds, around=launch.around,
            )  # fmt: skip
            if isinstance(child, SpawnFailed):
                if wall is not None:
                    wall.discard(launch)
                raise Refused(child.message)
            if wall is not None:
                wall.started(launch, child)
            if not _ended(child.pidfd) and (wall is None or wall.kill(launch, child) < 0):
                self.plain.kill_tree(child)
            _ended(child.pidfd)
            self.plain.sweep(child)
            exit_ = self.plain.reap(child)
            took = (time.perf_counter() - began) * 1000
            after = wall.ended(launch, exit_) if wall is not None else None
            said = os.pread(out, 1 << 16, 0).decode(errors="replace")
            return said or (after.error if after is not None else ""), took
        finally:
            os.close(out)


def _ended(pidfd: int) -> bool:
    """Whether a process ended within the deadline."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(DEADLINE_S * 1000))


def _alive(word: str) -> bool:
    """Whether any process has this as its last word."""
    end = b"\0" + word.encode() + b"\0"
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if file.read().endswith(end):
                        return True
            except OSError:
                continue
    return False


def _unlisted() -> tuple[str, str]:
    """A variable of dagrun's own that no sandbox is given: what /proc would tell of it. Two "" if there is none."""
    for name, value in os.environ.items():
        if name not in _GIVEN and not name.startswith("LC_") and len(value) > 3 and value.isascii():
            return name, value
    return "", ""


def _comm() -> str:
    with open("/proc/self/comm") as file:
        return file.read().strip()

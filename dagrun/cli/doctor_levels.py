"""What each level of isolation holds here: what its back ends prove, less what gets out of a real launch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dagrun.cli.doctor_crossing import CROSSED, Crosser, Crossing
from dagrun.core.permissions import Isolation
from dagrun.errors import DagrunError, EnvironmentFault
from dagrun.sandbox.ceilings import Ceilings
from dagrun.sandbox.needs import LIMITS, SEE_DOCTOR, Need, reasons, remedy, requirements
from dagrun.sandbox.wall import GUARANTEES, Guarantee
from dagrun.sandbox.walls import TABLE, BackEnd, Walls
from dagrun.view.doctor import Level

if TYPE_CHECKING:
    from dagrun.core.workflow import Workflow

# What the plain back end gives to every command.
PLAIN: tuple[Guarantee, ...] = ("fds", "tty", "kill.tree")
GOT_OUT = "tried just now, and it got through"
ASK_S = 3.0
TRIED_IMAGES = 3  # one may have no shell


class Ward:
    """Examines the levels, one back end after the other. Close it: it may have helpers and containers."""

    def __init__(self) -> None:
        self._crosser = Crosser()
        self._walls = Walls()
        self._walls.exempt_by(self._crosser.plain.exempt)
        self._ceilings = Ceilings("doctor")

    def close(self) -> None:
        """End the helpers and remove what was made."""
        self._walls.close()
        self._ceilings.close()
        self._crosser.close()

    def levels(self, image: str = "") -> list[Level]:
        """A report for each level, weakest first. `image` is what a container is tried with; "" any that is there."""
        return [self._open("none"), self._open("context"), self._walled("process"), self._walled("container", image)]

    def refusal(self, workflow: Workflow, accept: str = "") -> EnvironmentFault | None:
        """Why this machine can't hold a workflow; None if it can. Raises UsageError for a wrong name in `accept`."""
        from dagrun.engine.confine import check_held, guarantees, needs_of

        accepted = guarantees(accept or os.environ.get("DAGRUN_ACCEPT_MISSING", ""), "--accept-missing")
        walls = Walls(accepted, make=self._walls.back_end, limiter=self._ceilings)
        try:
            check_held(walls, needs_of(workflow))
        except EnvironmentFault as fault:
            return fault
        return None

    def _open(self, level: Isolation) -> Level:
        """A level without walls: what the plain back end gives, and the ceilings."""
        crossing = self._crosser.cross(None, level)
        held: dict[str, str] = {g: GOT_OUT if g in crossing.escaped else crossing.error for g in PLAIN}
        enough = not any(held.values())
        held |= dict(self._ceilings.proved().items())
        return Level(
            level=level,
            backend="plain",
            enough=enough,
            guarantees=_in_order(held),
            tried=crossing.tried(PLAIN),
            launch_ms=crossing.launch_ms,
        )

    def _walled(self, level: Isolation, image: str = "") -> Level:
        """A level with walls: the back end that would be taken, or else the best one, with what it lacks."""
        required = requirements(level, confined=True, files=True, network="none")
        found: list[tuple[BackEnd, dict[str, str], Crossing]] = []
        for name in TABLE[level]:
            found.append((name, *self._examine(name, level, image)))
            if not any(found[-1][1][g] for g in required):
                break
        lacks: list[dict[Guarantee, str]] = [
            {g: held[g] for g in GUARANTEES if g in required and held[g]} for _, held, _ in found
        ]
        best = min(range(len(found)), key=lambda k: len(lacks[k]))
        name, held, crossing = found[best]
        hint = remedy(
            Need(node="", level=level, required=required), [(f[0], lacks[k]) for k, f in enumerate(found)], lacks[best]
        )
        return Level(
            level=level,
            backend=name,
            version=_version(name),
            enough=not lacks[best],
            guarantees=_in_order(held),
            tried=crossing.tried(CROSSED),
            launch_ms=crossing.launch_ms,
            hint=hint.removesuffix(SEE_DOCTOR) if lacks[best] else "",
            others=tuple(
                f"{f[0]}: {reasons(lacks[k]) or f[2].error}" for k, f in enumerate(found) if k != best or f[2].error
            ),
        )

    def _examine(self, name: BackEnd, level: Isolation, image: str) -> tuple[dict[str, str], Crossing]:
        """What a back end holds: what it proves, less what gets out of a real launch."""
        try:
            wall = self._walls.back_end(name)
            prefer = getattr(wall, "prefer", None)
            if image and prefer is not None:
                prefer(image)
            proved: Mapping[Guarantee, str] = wall.proved()
        except DagrunError as error:
            return dict.fromkeys(GUARANTEES, error.message), Crossing(error=error.message)
        held: dict[str, str] = {g: proved.get(g, "not held") for g in GUARANTEES}
        if level == "process":
            held |= {limit: why for limit, why in self._ceilings.proved().items() if held[limit]}
        if all(held[g] for g in GUARANTEES if g not in LIMITS):
            return held, Crossing()
        crossing = Crossing()
        for candidate in _images(name, image) if level == "container" else [""]:
            crossing = self._crosser.cross(wall, level, candidate)
            if crossing.made:
                break
        for g in CROSSED:
            if g in crossing.escaped or (crossing.error and level == "process"):
                held[g] = held[g] or crossing.error or GOT_OUT
        return held, crossing


def _in_order(held: Mapping[str, str]) -> dict[str, str]:
    return {g: held[g] for g in GUARANTEES if g in held}


def _version(name: BackEnd) -> str:
    """What a back end calls itself: `bubblewrap 0.8.0`; only its name where it does not answer."""
    if name == "landlock":
        from dagrun.sandbox.landlock_kernel import abi

        return f"Landlock, version {abi()} of its interface, Linux {os.uname().release}"
    program = "bwrap" if name == "bubblewrap" else name
    return _ask(program, "--version") or name


def _images(engine: BackEnd, wanted: str) -> list[str]:
    """Images that are on this machine, to try a container in: the wanted one, or the newest three."""
    if wanted:
        return [wanted]
    return _ask(engine, "image", "ls", "--quiet", "--no-trunc").split()[:TRIED_IMAGES]


def _ask(*words: str) -> str:
    """What a program answers; "" when it doesn't."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""

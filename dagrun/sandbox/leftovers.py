"""What back ends leave outside of the process tree of a killed engine: containers and control groups.

No signal to a process ends them. Works with no state of the engine, for its watchdog and for the
next start; what can't be reached has nothing to remove.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

LIMITS: Final = "limits"
ENGINES: Final = ("docker", "podman")


def sweep(run_dir: str, kinds: Collection[str]) -> list[str]:
    """Remove what a dead run left: `kinds` are of LIMITS and ENGINES; the names of the containers.

    Call it only when nobody runs the run any more. Takes seconds where a daemon is slow to answer.
    """
    names: list[str] = []
    for engine in ENGINES:
        if engine in kinds:
            from dagrun.sandbox.container import Container

            names += Container(engine, _nobody).sweep(run_dir)
    if LIMITS in kinds:
        from dagrun.sandbox.ceilings import Ceilings

        Ceilings("sweep").sweep()
    return names


def _nobody(_pid: int) -> None:
    """Nothing here sweeps processes."""

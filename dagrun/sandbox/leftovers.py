"""What a killed engine leaves outside of its process tree: containers, control groups, secret files, plants.

No signal to a process ends them. Works with no state of the engine, for its watchdog and for the
next start; what can't be reached has nothing to remove.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

LIMITS: Final = "limits"
SECRETS: Final = "secrets"
PLANTS: Final = "plants"
SECRETS_FOLDER: Final = "secrets"  # of an attempt, in its folder of the exchange
ENGINES: Final = ("docker", "podman")


def sweep(run_dir: str, kinds: Collection[str]) -> list[str]:
    """Remove what a dead run left: `kinds` are of LIMITS, ENGINES, SECRETS and PLANTS; the names
    of the containers and of what was moved aside.

    `run_dir` is the folder of the run; with SECRETS it is that of its exchange.
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
    if SECRETS in kinds:
        _remove_secrets(run_dir)
    if PLANTS in kinds:
        from dagrun.sandbox.plants import sweep as sweep_plants

        names += sweep_plants(os.path.dirname(os.path.dirname(run_dir)))
    return names


def _remove_secrets(exchange: str) -> None:
    """Remove the secret files of every attempt; what can't be removed stays for the next start."""
    from shutil import rmtree

    try:
        attempts = os.listdir(exchange)
    except OSError:
        return
    for attempt in attempts:
        rmtree(os.path.join(exchange, attempt, SECRETS_FOLDER), ignore_errors=True)


def _nobody(_pid: int) -> None:
    """Nothing here sweeps processes."""

"""Containers that outlived their dagrun: found by label, removed by name.

Knows labels, not runs: whether a run is dead is for the caller to say, who can look at its lock.
Works with no state of the process that started them, so a watchdog or the next start can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from dagrun.sandbox.container_cli import Cli, Unreachable
from dagrun.sandbox.container_line import folder_label

# (run id, folder_label of its folder) -> nobody runs it any more
IsDead: TypeAlias = Callable[[str, str], bool]

_LIST_S = 10.0
_REMOVE_S = 30.0
_FORMAT = '{{.Names}}|{{.Label "dagrun.dir"}}|{{.Label "dagrun.run"}}'
_PODMAN_FORMAT = '{{.Names}}|{{index .Labels "dagrun.dir"}}|{{index .Labels "dagrun.run"}}'


def sweep(cli: Cli, run_dir: str | None = None, is_dead: IsDead | None = None) -> list[str]:
    """Remove the containers of one run folder, or of every run that `is_dead`; the names of those removed.

    Without both nothing is removed. An engine that can't be reached has nothing to sweep.
    """
    if run_dir is None and is_dead is None:
        return []
    wanted = f"label=dagrun.dir={folder_label(run_dir)}" if run_dir is not None else "label=dagrun.dir"
    form = _FORMAT if cli.dialect.name == "docker" else _PODMAN_FORMAT
    try:
        found = cli.ask("ps", "--all", "--no-trunc", f"--filter={wanted}", f"--format={form}", timeout_s=_LIST_S)
    except Unreachable:
        return []
    names: list[str] = []
    for line in found.out.splitlines():
        name, label, run_id = (*line.strip().split("|", 2), "", "")[:3]
        if name and (run_dir is not None or (is_dead is not None and is_dead(run_id, label))):
            names.append(name)
    return remove(cli, names)


def remove(cli: Cli, names: Iterable[str]) -> list[str]:
    """Remove these containers, running or not; the names of those that are gone."""
    wanted = sorted(names)
    if not wanted:
        return []
    try:
        cli.ask(*cli.dialect.remove, *wanted, timeout_s=_REMOVE_S)
        still = cli.ask("ps", "--all", "--no-trunc", "--filter=label=dagrun.dir", "--format={{.Names}}")
    except Unreachable:
        return []
    alive = set(still.out.split())
    return [name for name in wanted if still.ok and name not in alive]

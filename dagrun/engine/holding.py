"""What holds the nodes of a session: back ends that were tried on this machine before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagrun.core.value import value
from dagrun.core.workflow import Node, Workflow
from dagrun.engine.bench import is_guarded

if TYPE_CHECKING:
    from dagrun.core.permissions import Permissions
    from dagrun.sandbox.wall import Guarantee
    from dagrun.sandbox.walls import Walls

ACCEPT_VARIABLE = "DAGRUN_ACCEPT_MISSING"


@value(frozen=True, slots=True, kw_only=True)
class Holding:
    """The back ends of a session (None: nothing has to be held yet), what its user accepted, what to warn of."""

    walls: Walls | None = None
    accepted: frozenset[Guarantee] = frozenset()
    notes: tuple[str, ...] = ()


def hold(workflow: Workflow, nodes: Sequence[Node], accept_missing: str) -> Holding:
    """What holds `nodes` and every template here; nothing for a plain flow, which pays nothing for it.

    `accept_missing` are names of guarantees as the user wrote them, by default DAGRUN_ACCEPT_MISSING.
    Raises EnvironmentFault with all that can't be held, UsageError for an unknown guarantee.
    """
    accept = accept_missing or os.environ.get(ACCEPT_VARIABLE, "")
    ceiling = workflow.permissions
    if not accept and not any(_concerns(ceiling, node) for node in (*nodes, *workflow.templates.values())):
        return Holding()
    from dagrun.engine.confine import check_held, guarantees, needs_of
    from dagrun.sandbox.walls import Walls

    accepted = guarantees(accept, "--accept-missing" if accept_missing else ACCEPT_VARIABLE)
    needs = needs_of(workflow, nodes)
    if not needs and not accepted:
        return Holding()
    walls = Walls(accepted)
    try:
        return Holding(walls=walls, accepted=accepted, notes=tuple(check_held(walls, needs)))
    except BaseException:
        walls.close()
        raise


def sweep_dead_runs(held: Holding, project: str) -> tuple[str, ...]:
    """Remove the containers of runs of this project that nobody works on any more; what is said about it.

    What their nodes had made where they must not is moved aside.
    """
    told = sweep_plants(project)
    if held.walls is None:
        return told
    from dagrun.sandbox.container_files import clear
    from dagrun.sandbox.container_line import folder_label
    from dagrun.store.rundir import list_runs

    dead: set[str] = set()

    def is_dead(run_id: str, label: str) -> bool:
        paths = [run.path for run in list_runs(project) if run.id == run_id and run.lock_holder() is None]
        found = {path for path in paths if folder_label(os.path.abspath(path)) == label}
        dead.update(found)
        return bool(found)

    names = held.walls.sweep_dead(is_dead)
    for path in dead:
        clear(path, names)
    return (*told, f"removed containers that a dead run had left: {', '.join(names[:5])}") if names else told


def sweep_plants(project: str) -> tuple[str, ...]:
    """Move aside what nodes of killed runs had made where they must not; what is said about it."""
    base = os.path.join(os.path.abspath(project), ".dagrun")
    if not os.path.isdir(f"{base}/watched"):  # a plain project pays nothing for it
        return ()
    from dagrun.sandbox.plants import sweep

    found = sweep(base)
    return (f"moved aside what a killed node had made: {', '.join(found[:5])}",) if found else ()


def _concerns(ceiling: Permissions | None, node: Node) -> bool:
    """Whether a node, or a fallback that stands in it, may be anything but a plain command."""
    inline = node.on_failure.fallback_node if node.on_failure is not None else None
    return is_guarded(ceiling, node) or (inline is not None and _concerns(ceiling, inline))

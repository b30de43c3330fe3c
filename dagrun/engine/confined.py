"""Starting an attempt that a back end holds: what it says, spawned like any other command."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dagrun.core.names import Outcome
from dagrun.engine.attempt import Ending, Running
from dagrun.sandbox.base import Child, SpawnFailed
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Refused, Spec
from dagrun.sandbox.walls import Held, Walls


@dataclass(slots=True)
class Denied:
    """Why an attempt was not started: it can't be held as it asks."""

    message: str


@dataclass(slots=True)
class Started:
    """An attempt that a back end holds; `refused` says why it has to be ended at once, if it has to."""

    child: Child
    held: Held
    refused: str = ""


def spawn_held(walls: Walls, sandbox: Plain, run: Running) -> Child | SpawnFailed | Denied:
    """Spawn an attempt as its back end says; the same results as a plain spawn, or why it is not allowed.

    Raises SpawnBusy when the machine is short of something, EnvironmentFault when it no longer
    holds what it proved.
    """
    spec, slot = run.command.spec, run.slot
    assert spec is not None
    made = hold(walls, sandbox, replace(spec, outputs=(slot.out_fd, slot.err_fd)), slot.out_fd, slot.err_fd)
    if not isinstance(made, Started):
        return made
    if made.refused:  # it never got to its command: ended at once, and its end says why
        run.ending = Ending(Outcome.DENIED, made.refused)
        sandbox.kill_tree(made.child)
    run.held = made.held
    return made.child


def hold(walls: Walls, sandbox: Plain, spec: Spec, out_fd: int, err_fd: int) -> Started | SpawnFailed | Denied:
    """Spawn what `spec` says with these files as stdout and stderr. Raises as `spawn_held` does."""
    try:
        held = walls.launch(spec)
    except Refused as refused:
        return Denied(refused.message + (f" ({refused.hint})" if refused.hint else ""))
    launch = held.launch
    try:
        child = sandbox.spawn(
            tuple(launch.argv),
            launch.env,
            out_fd=out_fd,
            err_fd=err_fd,
            attempt_id=spec.attempt_id,
            cwd=launch.cwd,
            script=launch.script,
            stdin=spec.stdin,
            fds=launch.fds,
            around=launch.around,
        )
    except BaseException:
        walls.discard(held)
        raise
    if isinstance(child, SpawnFailed):
        walls.discard(held)
        return child
    try:
        walls.started(held, child)
    except Refused as refused:
        return Started(child, held, refused.message)
    return Started(child, held)

"""Starting an attempt that a back end holds: what it says, spawned like any other command."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dagrun.core.names import Outcome
from dagrun.engine.attempt import Ending, Running
from dagrun.sandbox.base import Child, SpawnFailed
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Refused
from dagrun.sandbox.walls import Walls


@dataclass(slots=True)
class Denied:
    """Why an attempt was not started: it can't be held as it asks."""

    message: str


def spawn_held(walls: Walls, sandbox: Plain, run: Running) -> Child | SpawnFailed | Denied:
    """Spawn an attempt as its back end says; the same results as a plain spawn, or why it is not allowed.

    Raises SpawnBusy when the machine is short of something, EnvironmentFault when it no longer
    holds what it proved.
    """
    spec, slot = run.command.spec, run.slot
    assert spec is not None
    try:
        held = walls.launch(replace(spec, outputs=(slot.out_fd, slot.err_fd)))
    except Refused as refused:
        return Denied(refused.message + (f" ({refused.hint})" if refused.hint else ""))
    launch = held.launch
    try:
        child = sandbox.spawn(
            tuple(launch.argv),
            launch.env,
            out_fd=slot.out_fd,
            err_fd=slot.err_fd,
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
    except Refused as refused:  # it never got to its command: ended at once, and its end says why
        run.ending = Ending(Outcome.DENIED, refused.message)
        sandbox.kill_tree(child)
    run.held = held
    return child

"""The back ends that run an attempt in a container of Docker or Podman, by their command line.

One launched process for each attempt: a small sh around `docker run`, which leaves behind what the
exit code can't tell. The container has a name and labels, so that it can be ended by name whatever
becomes of that process, and swept by label after a crash. Knows no workflow, no journal, no engine
of dagrun. Invariant: what runs is never root, has no capability, no network unless granted, and sees
of this machine's files only its mounts.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dagrun.errors import EnvironmentFault
from dagrun.sandbox.base import Child, Exit
from dagrun.sandbox.container_cli import Cli, EngineName, Helpers, Unreachable, timeout_program
from dagrun.sandbox.container_end import aftermath
from dagrun.sandbox.container_files import (
    clear,
    folders,
    is_pulling,
    make_folder,
    make_pipes,
    mark_killed,
    read_notes,
    settings,
    write_files,
)
from dagrun.sandbox.container_line import Image, Line, container_name, hosts_of, line_of
from dagrun.sandbox.container_mounts import Prepared, prepare
from dagrun.sandbox.container_probe import Probe
from dagrun.sandbox.container_script import WRAPPER
from dagrun.sandbox.container_sweep import IsDead, remove, sweep
from dagrun.sandbox.wall import Aftermath, Guarantee, Launch, Refused, Spec

if TYPE_CHECKING:
    from dagrun.sandbox.netproxy import NetProxy

# A daemon that does not answer must not keep an attempt alive: the command that waits for it is ended then.
_PATIENCE_S = 12.0
_NOTHING = ("/bin/sh", "-c", "exit 127")  # instead of a container


@dataclass(slots=True)
class _Running:
    """One container: `folder` is out of its reach, `killing` since when its end is wanted (monotonic).

    `fault`: why there is none.
    """

    name: str
    folder: str
    spec: Spec
    prepared: Prepared
    killing: float = 0.0
    fault: str = ""


class Container:
    """A Wall of containers. `exempt` keeps the helpers that end containers out of sweeps.

    `proxy` holds lists of hosts; without it they are refused.
    """

    def __init__(self, engine: EngineName, exempt: Callable[[int], None], proxy: NetProxy | None = None) -> None:
        self._cli = Cli(engine)
        self._helpers = Helpers(self._cli, exempt)
        self._proxy = proxy
        self._probe = Probe(self._cli, proxy.canary if proxy is not None else None)
        self._left: dict[str, str] = {}  # name of a container that may be there -> its folder

    @property
    def name(self) -> EngineName:
        """docker or podman."""
        return self._cli.dialect.name

    # ------------------------------------------------------------ before anything starts

    def prefer(self, image: str) -> None:
        """Try the guarantees in this image, as it will be used."""
        self._probe.prefer(image)

    def proved(self) -> Mapping[Guarantee, str]:
        """Each guarantee → "" when it was tried here and held, else why not. Probed at the first call."""
        return self._probe.proved()

    def check_image(self, image: str, pull: str) -> str:
        """Why this image can't be used, with what to do; "" when it is here, or may be pulled."""
        return self._probe.check_image(image, pull)

    # ------------------------------------------------------------ an attempt

    def launch(self, spec: Spec) -> Launch:
        """How to start it. Raises Refused for what it asks, EnvironmentFault when the engine is gone."""
        name = container_name(spec)
        folder = make_folder(spec.run_dir, name)
        prepared: Prepared | None = None
        try:
            env = self._cli.env()
            image = self._probe.image(spec.image)
            prepared = prepare(spec, folder)
            line = line_of(self._cli.dialect, spec, image, prepared, name=name, folder=folder)
            write_files(line, folder, prepared.user)
            self._await_door(spec, folder)
            fault = _no_folder(spec.cwd)
            argv = _NOTHING if fault else self._wrapped(spec, image, line, name, folder)
        except BaseException as error:
            if prepared is not None:
                prepared.close()
                self._shut_door(spec)
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Unreachable):
                raise EnvironmentFault(str(error), hint="what holds here: dagrun doctor") from None
            raise
        self._left[name] = folder
        running = _Running(name, folder, spec, prepared, fault=fault)
        return Launch(argv=argv, env=env, cwd="/", backend=self.name, token=running)

    def _await_door(self, spec: Spec, folder: str) -> None:
        """Let the proxy wait for a container that is held to a list of hosts."""
        if hosts_of(spec):
            if self._proxy is None:
                raise Refused("permissions.network has a list of hosts, and nothing holds one here")
            make_pipes(folder)
            self._proxy.open_later(folder, hosts_of(spec), spec.attempt_id)

    def _shut_door(self, spec: Spec) -> tuple[str, ...]:
        """Close its door to the network; what it was refused there, as warnings."""
        if self._proxy is None or not hosts_of(spec):
            return ()
        told = self._proxy.refused(spec.attempt_id)
        self._proxy.close_for(spec.attempt_id)
        return tuple([f"refused: {text}" for text in told])

    def _wrapped(self, spec: Spec, image: Image, line: Line, name: str, folder: str) -> tuple[str, ...]:
        endpoint = self._cli.endpoint()
        config = f"{endpoint}|{settings(spec.run_dir)}" if endpoint else ""
        pull = spec.image if spec.pull == "missing" and not image.id else ""
        remove = " ".join(self._cli.dialect.remove)
        words = (self._cli.program, folder, name, timeout_program(), pull, remove, config, *line.arguments)
        return ("/bin/sh", "-c", WRAPPER, "dagrun-container", *words)

    def started(self, launch: Launch, child: Child) -> None:
        """It was spawned. The descriptors of its grants are not needed: engines look paths up themselves."""
        _running(launch).prepared.mounted()

    def discard(self, launch: Launch) -> None:
        """It was not spawned: everything is given back."""
        running = _running(launch)
        self._left.pop(running.name, None)
        self._shut_door(running.spec)
        running.prepared.close()
        shutil.rmtree(running.folder, ignore_errors=True)

    def terminate(self, launch: Launch, child: Child) -> int:
        """SIGTERM to the command, by name; a helper does it."""
        self._helpers.call("kill", "--signal=TERM", _running(launch).name)
        return 1

    def kill(self, launch: Launch, child: Child) -> int:
        """End the container by name; after a while without effect, the command that waits for it too."""
        running = _running(launch)
        now = time.monotonic()
        if not running.killing:
            running.killing = now
            mark_killed(running.folder)
        asked = self._helpers.call(*self._cli.dialect.remove, running.name)
        if not asked or is_pulling(running.folder) or now - running.killing > _PATIENCE_S:
            _kill_group(child)
        return 1

    def ended(self, launch: Launch, exit_: Exit) -> Aftermath:
        """What the exit code can't tell. A container that could not be removed is named, and tried again."""
        running = _running(launch)
        spec, notes = running.spec, read_notes(running.folder)
        self._helpers.reap()
        refused = self._shut_door(spec)
        words = {"image": spec.image, "program": spec.argv[0]}
        after = aftermath(exit_, notes, spec.bounds, **words, counts_memory=self._cli.dialect.counts_memory)
        if running.fault:
            after = Aftermath(outcome="failed", error=running.fault)
        if notes.removed or running.fault:
            self._left.pop(running.name, None)
        else:
            self._helpers.call(*self._cli.dialect.remove, running.name)
        shutil.rmtree(running.folder, ignore_errors=True)  # whatever becomes of the container: secrets are in it
        planted = running.prepared.aftermath(spec.attempt_id)
        if planted.outcome:
            after = replace(after, outcome=planted.outcome, error=planted.error)
        warnings = running.prepared.warnings if exit_.code else ()
        return replace(after, notes=(*after.notes, *refused, *planted.notes, *warnings))

    # ------------------------------------------------------------ the end of a session

    def sweep(self, run_dir: str | None = None, is_dead: IsDead | None = None) -> list[str]:
        """Remove containers of dead runs, see container_sweep.sweep; of one run the files for them too."""
        left = folders(run_dir) if run_dir is not None else []
        names = sweep(self._cli, run_dir, is_dead)
        if run_dir is not None:
            clear(run_dir, left)
        return names

    def close(self) -> None:
        """Remove what is left; what an engine that does not answer keeps is swept at the next start."""
        if self._helpers.wait():
            for name in remove(self._cli, self._left):
                shutil.rmtree(self._left.pop(name), ignore_errors=True)
        for folder in self._left.values():
            shutil.rmtree(folder, ignore_errors=True)


def _no_folder(cwd: str) -> str:
    """Why a command can't work in this folder, "" if it can: an engine would make it, as root."""
    return "" if os.path.isdir(cwd) else f"can't enter the directory {cwd}: it is not there"


def _running(launch: Launch) -> _Running:
    assert isinstance(launch.token, _Running)
    return launch.token


def _kill_group(child: Child) -> None:
    """SIGKILL to the wrapper and what it waits for: it leads a group of its own, and is not reaped yet."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass

"""The back end that holds a command by namespaces: bubblewrap, a system call filter, grants opened beforehand.

One bwrap for each attempt: it makes the namespaces, mounts what is granted, and stays as process 1
inside and as the parent outside; when it goes, the kernel ends all that is inside. Looks bwrap up on
the PATH, trusts it as far as root owns it and no further than it proves itself on this machine.
Knows no engine; memory, processors and processes are counted by ceilings.py around it.
Invariants: bwrap is started with the environment of the command and nothing of dagrun's; no variable
that makes programs load code reaches it; SIGTERM never reaches bwrap itself.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import procs, seccomp
from dagrun.sandbox.base import Child, Exit, SpawnBusy
from dagrun.sandbox.bwrap_attempt import Attempt, attempt_of, inside
from dagrun.sandbox.bwrap_line import Fds, command_line, cwd_of, private_places
from dagrun.sandbox.bwrap_program import missing_program
from dagrun.sandbox.environment import is_loader
from dagrun.sandbox.grants import open_grants
from dagrun.sandbox.plain import find_program
from dagrun.sandbox.wall import NOTHING_MORE, Aftermath, Guarantee, Launch, Refused, Spec

if TYPE_CHECKING:
    from dagrun.sandbox.netproxy import NetProxy

_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
_NO_PROGRAM = 'printf "%s\\n" "$1" >&2; exit 127'
# In the user namespace in which a limit of processes counts, process 1 is bwrap's.
_OWN_PROCESSES = 1


class Bubblewrap:
    """Confines attempts with bwrap; see wall.Wall for the promises.

    `proxy` is what holds host lists (None: they can't be held). `path` is bwrap's, by default the
    first on the PATH of dagrun. `exempt` is told nothing: what this starts beside attempts, it reaps.
    """

    def __init__(self, exempt: Callable[[int], None], proxy: NetProxy | None = None, path: str | None = None) -> None:
        self._exempt = exempt
        self._proxy = proxy
        found = path if path is not None else find_program("bwrap", os.environ.get("PATH", os.defpath)) or ""
        # Without links: what is tried now is what is run later, whatever becomes of a link on the PATH.
        self._path = os.path.realpath(found) if found else ""
        self._user = os.getuid() != 0
        self._fresh_proc = True
        self._proved: Mapping[Guarantee, str] | None = None

    @property
    def name(self) -> str:
        """bubblewrap."""
        return "bubblewrap"

    def proved(self) -> Mapping[Guarantee, str]:
        """Each guarantee → "" when a canary inside could not get around it, else why not.

        Host lists and processes are tried when they are looked at.
        """
        if self._proved is None:
            from dagrun.sandbox.bwrap_proof import all_lack, fault_of, proof_of

            fault = fault_of(self._path)
            lists = self._proxy.canary if self._proxy is not None else None
            self._proved = all_lack(fault) if fault else proof_of(self, self._without_fresh_proc, lists)
        return self._proved

    def _without_fresh_proc(self) -> bool:
        """Inside a container that masks parts of /proc the kernel allows no new one: take the caller's, read-only."""
        self._fresh_proc = False
        return True

    # ------------------------------------------------------------ an attempt

    def launch(self, spec: Spec) -> Launch:
        """The command line of bwrap with its descriptors; see wall.Wall.launch."""
        if not self._path or not os.path.exists(self._path):
            raise EnvironmentFault("bwrap is not installed any more", hint="install it: apt install bubblewrap")
        bad = [name for name in spec.env if is_loader(name)]
        if bad:
            raise Refused(f"`env` sets {', '.join(bad)}, which makes programs load other code: not in a sandbox")
        if isinstance(spec.network, tuple) and self._proxy is None:
            raise Refused("permissions.network has a list of hosts, and nothing holds one here")
        attempt = Attempt(spec, open_grants(spec))
        try:
            return self._launch(spec, attempt)
        except OSError as error:
            attempt.close()
            if error.errno in _SHORT:
                raise SpawnBusy(error.errno or 0, f"no descriptor left: {error.strerror}") from None
            raise EnvironmentFault(f"can't start bwrap: {error}") from error
        except BaseException:
            attempt.close()
            raise

    def _launch(self, spec: Spec, attempt: Attempt) -> Launch:
        argv, cwd = spec.argv, cwd_of(spec)
        missing = missing_program(spec, attempt.grants)
        if not os.path.isdir(cwd):
            missing, cwd = f"can't enter the directory {cwd!r}: it is not there", "/"
        if missing:
            argv = ("/bin/sh", "-c", _NO_PROGRAM, "sh", f"dagrun: {missing}")
        private = private_places(attempt.grants)
        fds = _descriptors(spec, attempt)
        line = command_line(
            self._path, spec, cwd, attempt.grants, private, fds, fresh_proc=self._fresh_proc, user=self._user
        )
        if spec.bounds.pids is not None and self._user:
            # Root's processes are not counted: it needs control groups, or was refused before.
            most = spec.bounds.pids + _OWN_PROCESSES
            # By its place: the PATH of the command may begin with a folder that a node could write.
            line += [find_program("prlimit", os.defpath) or "prlimit", f"--nproc={most}:{most}", "--"]
        env = {**spec.env, "HOME": private.home, "TMPDIR": private.tmp}
        if isinstance(spec.network, tuple):
            from dagrun.sandbox.netproxy import proxy_environment

            env |= proxy_environment()
        inherited = (*attempt.grants.fds, *attempt.theirs)
        return Launch(argv=(*line, *argv), env=env, cwd="/", fds=inherited, backend=self.name, token=attempt)

    def started(self, launch: Launch, child: Child) -> None:
        """Close what bwrap inherited; make the door to a list of hosts, then let the command start."""
        attempt = attempt_of(launch)
        attempt.close_theirs()
        network = attempt.spec.network
        if self._proxy is None or not isinstance(network, tuple):
            return
        try:
            pid = attempt.held_pid()
            if pid:
                self._proxy.open(pid, network, attempt.spec.attempt_id)
        except ProcessLookupError:
            pass  # it has ended: its exit says why
        except EnvironmentFault as fault:
            attempt.fault = fault.message
            self.kill(launch, child)
        attempt.release()

    def discard(self, launch: Launch) -> None:
        """It was not spawned."""
        attempt_of(launch).close()

    def terminate(self, launch: Launch, child: Child) -> int:
        """SIGTERM to what runs inside; a command that has not begun is killed, as nothing would tell it."""
        alive = inside(child.pid)
        if not alive:
            return self.kill(launch, child)
        for number in (signal.SIGTERM, signal.SIGCONT):
            for pid, who in alive.items():
                procs.send(pid, who.start_ticks, number)
        return len(alive)

    def kill(self, launch: Launch, child: Child) -> int:
        """SIGKILL to bwrap, outside and as process 1 inside: with the latter the kernel ends the rest."""
        below = procs.descendants(child.pid)
        for pid, who in below.items():
            procs.send(pid, who.start_ticks, signal.SIGKILL)
        if procs.is_dead(procs.stat(child.pid)):
            return len(below)
        try:
            os.kill(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return len(below) + 1

    def ended(self, launch: Launch, exit_: Exit) -> Aftermath:
        """Close the door to the network, look at the protected places, tell when bwrap itself failed."""
        attempt = attempt_of(launch)
        spec = attempt.spec
        notes: tuple[str, ...] = ()
        if isinstance(spec.network, tuple) and self._proxy is not None:
            notes = tuple([f"refused: {text}" for text in self._proxy.refused(spec.attempt_id)])
            self._proxy.close_for(spec.attempt_id)
        after = attempt.grants.aftermath(spec.attempt_id)
        if attempt.fault:
            after = Aftermath(outcome="failed", error=attempt.fault)
        elif after is NOTHING_MORE and exit_.code and not attempt.began():
            after = Aftermath(outcome="denied", error="the sandbox could not be made: its log has what bwrap said")
        attempt.close()
        return replace(after, notes=notes) if notes else after

    def close(self) -> None:
        """Nothing is left between attempts."""


def _descriptors(spec: Spec, attempt: Attempt) -> Fds:
    """The filter, a pipe on which bwrap tells what it did, and one by which it is held if need be."""
    network = spec.network is None or spec.network != "none"
    # Without a control group a command is kept on its processors by affinity, which it must not widen.
    program = seccomp.filter_bytes(network, affinity=spec.bounds.cpu is None)
    filter_fd = seccomp.filter_fd(program)
    attempt.theirs.append(filter_fd)
    attempt.status, status = os.pipe()
    attempt.theirs.append(status)
    if not isinstance(spec.network, tuple):
        return Fds(filter_fd, status, -1)
    return Fds(filter_fd, status, attempt.make_gate())

"""What confines an attempt: what is wanted (Spec), what a back end proves it holds, how it starts (Launch).

A back end turns a Spec into a Launch: the argv, environment and descriptors with which plain.py then
spawns it, so that a command node stays one exec with nothing of dagrun between. A back end is chosen
by what it *proved* on this machine, never by its name: required ⊆ proved, else nothing starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, get_args

from dagrun.core.permissions import Isolation, Network
from dagrun.sandbox.base import Child, Exit

Guarantee: TypeAlias = Literal[
    "fs.read",  # nothing outside the grants can be read
    "fs.write",  # nothing outside the write grants can be written
    "fs.deny",  # what is denied inside a grant can't be read
    "fs.meta",  # names, sizes and modes outside the grants can't be seen or changed
    "fs.protected",  # .dagrun is not there; git hooks, keys and the workflow file can't be written
    "net.none",  # no address can be reached, not even this machine's
    "net.allowlist",  # only the named hosts can be reached
    "unix",  # no Unix socket of the machine can be reached, neither by path nor abstract
    "ipc",  # no System V or POSIX IPC, no keyring of the machine
    "proc.hide",  # other processes can't be seen
    "proc.signal",  # other processes can't be signalled or traced
    "env",  # only the given environment, in every process of the sandbox
    "fds",  # no descriptor but 0, 1, 2
    "tty",  # no terminal
    "caps",  # no capability, no new privileges, no dangerous system call
    "kill.tree",  # nothing that it started outlives it
    "mem",  # resources.memory
    "pids",  # resources.pids
    "cpu",  # resources.cpu
    "fsize",  # resources.file_size
]
GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Written ceilings of one attempt; None where none was written. `cpu` in cores."""

    memory_bytes: int | None = None
    pids: int | None = None
    cpu: float | None = None
    file_size_bytes: int | None = None

    def __bool__(self) -> bool:
        return self != NO_BOUNDS


NO_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What one attempt may do, in terms of this machine; every path absolute unless said otherwise.

    `read`, `write` and `deny` are as the workflow has them, relative to `project`; None in `read`
    means that files are not held (all are as for dagrun itself, but for `hidden` and `protected`).
    `network` None: not held. `exchange` is the folder of this attempt (inputs, outputs, secret
    files), read-write at the same path; "" if it has none. `hidden` must not be visible at all,
    `protected` may be read and never written, renamed or replaced; neither need exist. `env` is all
    that the command shall see; the back end sets HOME and TMPDIR to private folders. `secret_env`
    names those of its variables that no argument, label or `inspect` may show.
    """

    attempt_id: str
    run_id: str
    run_dir: str
    node: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    secret_env: frozenset[str] = frozenset()
    cwd: str
    project: str
    level: Isolation = "process"
    script: str = ""
    read: tuple[str, ...] | None = None
    write: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    network: Network | None = None
    hidden: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    exchange: str = ""
    bounds: Bounds = NO_BOUNDS
    ceilings_of: str = ""  # the attempt whose ceilings it shares, where it is a part of that one
    image: str = ""
    pull: Literal["never", "missing"] = "never"
    user: str = ""
    stdin: int = -1  # a descriptor for stdin instead of an empty one (the tool worker's pipe)
    outputs: tuple[int, ...] = ()  # its log files, which /dev/stdout and /dev/stderr open anew


class Refused(Exception):
    """This attempt can't be held as it asks (a grant that is a symlink, a socket in it): outcome `denied`."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(slots=True, kw_only=True)
class Launch:
    """How an attempt is really started, by plain.Plain.spawn.

    `fds` stay open in the command under their own numbers and are closed by `Wall.started`.
    `around` runs the spawn (in a thread that gave up its rights first). `token` is the back end's own.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = ""
    script: str = ""
    fds: tuple[int, ...] = ()
    around: Callable[[Callable[[], int]], int] | None = None
    backend: str = "plain"
    token: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """What a back end knows of an attempt once all of it is dead.

    `limit` names a ceiling that ended it (memory, pids, file_size) -> outcome over_limit; `error`
    says more, with the peak. `outcome` "lost": the daemon went away and nobody knows;
    "denied": it did what it must not (`error`). `exit` replaces the wrapper's, where that differs.
    `peak_memory_bytes` None: not known. `notes` are warnings for the trace.
    """

    limit: Literal["", "memory", "pids", "cpu", "file_size"] = ""
    error: str = ""
    outcome: Literal["", "lost", "denied", "failed"] = ""
    exit: Exit | None = None
    peak_memory_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())


NOTHING_MORE = Aftermath()


class Wall(Protocol):
    """A back end of confinement. One object serves one engine process; calls come from its main thread.

    Order for each attempt: launch, (spawn by Plain), started | discard, then terminate and kill as
    wanted, then, when its main process is reaped and swept, ended. None of them may block for longer
    than some milliseconds; what takes longer belongs into the launched process.
    """

    @property
    def name(self) -> str:
        """bubblewrap, landlock, docker, podman."""
        ...

    def proved(self) -> Mapping[Guarantee, str]:
        """Each guarantee → "" when it was tried here and held, else why not. Probed at the first call."""
        ...

    def launch(self, spec: Spec) -> Launch:
        """How to start it. Raises Refused for what this attempt asks, SpawnBusy when short of something,
        EnvironmentFault when the machine no longer holds what it proved."""
        ...

    def started(self, launch: Launch, child: Child) -> None:
        """It was spawned: let it go and close what it inherited."""
        ...

    def discard(self, launch: Launch) -> None:
        """It was not spawned: give everything back."""
        ...

    def terminate(self, launch: Launch, child: Child) -> int:
        """SIGTERM to the command and its tree, not to what holds it; how many were there. Never blocks."""
        ...

    def kill(self, launch: Launch, child: Child) -> int:
        """SIGKILL to all of it; how many were alive. Called again until the child's pidfd is readable."""
        ...

    def ended(self, launch: Launch, exit_: Exit) -> Aftermath:
        """All of it is dead: take back what was lent, and tell what the exit code can't."""
        ...

    def close(self) -> None:
        """The session is over: remove what is left (containers, groups, helpers). Nothing is running."""
        ...

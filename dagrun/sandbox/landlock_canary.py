"""What Landlock really holds on this machine: each guarantee is attacked by a launch like any other.

Most attacks are made by the restricted thread itself, as what it may do is what its command may do;
those that need a process of its own are made by a shell that is spawned from it. A guarantee holds
when no attack on it came through. Knows the back end only as one that launches.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import landlock_kernel as kernel
from dagrun.sandbox import landlock_mark as marks
from dagrun.sandbox import procs
from dagrun.sandbox.base import Child, Exit, SpawnBusy
from dagrun.sandbox.wall import GUARANTEES, Guarantee, Launch, Refused, Spec

if TYPE_CHECKING:
    from dagrun.sandbox.landlock import Landlock

_DEADLINE_S = 10.0
_SHELL = "/bin/sh"
_ATTACK = """
cat "$OUTSIDE/secret" 2>/dev/null && echo ! fs.read
(echo x >"$OUTSIDE/new") 2>/dev/null && echo ! fs.write
kill -0 "$VICTIM" 2>/dev/null && echo ! proc.signal
for n in 3 4 5 6 7 8 9; do (eval ": <&$n") 2>/dev/null && echo ! fds; done
(: </dev/tty) 2>/dev/null && echo ! tty
env | while IFS== read -r name _; do echo "= $name"; done
(env -i sleep 60 >/dev/null 2>&1 & echo "& $!")
echo done
"""
_SHELL_VARIABLES = frozenset({"PWD", "OLDPWD", "SHLVL", "_"})
_NOT_OURS: Mapping[Guarantee, str] = {
    "net.allowlist": "Landlock knows ports, not hosts",
    **dict.fromkeys(("mem", "pids", "cpu", "fsize"), "Landlock has no ceilings"),
}
_WORDS: Mapping[Guarantee, str] = {
    "fs.read": "a file outside could be read",
    "fs.write": "a file outside could be written",
    "fs.deny": "a denied file could be read",
    "fs.meta": "Landlock has no rules for names, sizes and modes: they can be seen, and modes and times changed",
    "fs.protected": "what is hidden can't be opened, but it can be seen that it is there",
    "net.none": "a socket of the network could be made",
    "unix": "a Unix socket could be made",
    "ipc": "memory or queues of the machine could be reached",
    "proc.hide": "without a PID namespace it can be seen which process numbers are in use",
    "proc.signal": f"another process could be signalled or traced (Landlock {kernel.SCOPE_ABI} is needed)",
    "env": "a variable came through that was not given",
    "fds": "a descriptor came through",
    "tty": "a terminal could be opened",
    "caps": "a capability or a dangerous system call came through",
    "kill.tree": "a process outlived its attempt",
}


def try_all(wall: Landlock) -> Mapping[Guarantee, str]:
    """Each guarantee → "" or why it is not held."""
    why = _absent()
    if why:
        return dict.fromkeys(GUARANTEES, why)
    try:
        with _Stage() as stage:
            escaped = stage.attack(wall)
    except (Refused, SpawnBusy, EnvironmentFault, OSError) as error:
        text = error.message if isinstance(error, Refused | SpawnBusy | EnvironmentFault) else str(error)
        return dict.fromkeys(GUARANTEES, f"Landlock could not be tried: {text}")
    if not marks.can_mark():
        escaped.add("kill.tree")
    proved = {g: _NOT_OURS.get(g) or (_WORDS[g] if g in escaped else "") for g in GUARANTEES}
    if OPENED in escaped:
        proved["fs.protected"] = "what is hidden or protected could be opened"
    return proved


def _absent() -> str:
    if not kernel.abi():
        return "this kernel has no Landlock, or it may not be used here"
    if not procs.become_subreaper():
        return "orphans can't be collected here"
    return ""


class _Place(NamedTuple):
    """What is attacked."""

    project: str
    outside: str
    victim: int


class _Stage:
    """A project, something outside it, and a process that must not be reached; gone at the end."""

    def __enter__(self) -> _Stage:
        procs.keep_inherited_fds()  # as before any command: it may be asked before anything was started
        self._base = os.path.realpath(tempfile.mkdtemp(prefix="dagrun-canary-"))
        self.project, self.outside = f"{self._base}/project", f"{self._base}/outside"
        for folder in (f"{self.project}/.dagrun", f"{self.project}/out", self.outside, f"{self._base}/exchange"):
            os.makedirs(folder)
        for file in ("project/.env", "project/.dagrun/journal", "project/flow.yaml", "outside/secret"):
            _write(f"{self._base}/{file}")
        self._stop, self._hold = os.pipe2(os.O_CLOEXEC)
        actions = ((os.POSIX_SPAWN_DUP2, self._stop, 0),)
        self._victim = os.posix_spawn(_SHELL, ("sh", "-c", "read _"), {}, setsid=True, file_actions=actions)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._hold)
        os.close(self._stop)
        os.kill(self._victim, signal.SIGKILL)
        os.waitpid(self._victim, 0)
        shutil.rmtree(self._base, ignore_errors=True)

    def attack(self, wall: Landlock) -> set[str]:
        """What came through. Raises as Wall.launch does."""
        place = _Place(self.project, self.outside, self._victim)
        launch = wall.launch(self._spec())
        around = launch.around
        assert around is not None
        escaped: set[str] = set()

        def attacked(spawn: Callable[[], int]) -> int:
            escaped.update(attacks(place))
            return spawn()

        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = around(lambda: attacked(lambda: _spawn(launch, write)))
        except BaseException:
            wall.discard(launch)
            os.close(read)
            raise
        finally:
            os.close(write)
        said = self._await(wall, launch, pid, read)
        return escaped | _heard(said, launch)

    def _spec(self) -> Spec:
        return Spec(
            attempt_id="canary/canary/1",
            run_id="canary",
            run_dir=f"{self.project}/.dagrun",
            node="canary",
            argv=(_SHELL, "-c", _ATTACK),
            env={"PATH": os.defpath, "OUTSIDE": self.outside, "VICTIM": str(self._victim)},
            cwd=self.project,
            project=self.project,
            read=(".",),
            write=("out",),
            deny=(".env",),
            network="none",
            hidden=(f"{self.project}/.dagrun",),
            protected=(f"{self.project}/flow.yaml",),
            exchange=f"{self._base}/exchange",
        )

    def _await(self, wall: Landlock, launch: Launch, pid: int, read: int) -> str:
        """What the shell said; `! kill.tree` if what it left behind is alive at the end."""
        pidfd = os.pidfd_open(pid)
        wall.started(launch, Child(pid, pidfd, "canary/canary/1", 0, time.monotonic()))
        if not select.select([pidfd], [], [], _DEADLINE_S)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        os.set_blocking(read, False)
        try:
            said = os.read(read, 65536).decode(errors="replace")
        except BlockingIOError:
            said = ""
        os.close(read)
        left = [int(line[2:]) for line in said.splitlines() if line.startswith("& ")]
        lived = [one for one in left if not procs.is_dead(procs.stat(one))]
        wall.ended(launch, Exit(os.waitstatus_to_exitcode(status), None, None, 0))
        if not lived or not all(procs.is_dead(procs.stat(one)) for one in lived):
            said += "! kill.tree\n"
        return said


def _heard(said: str, launch: Launch) -> set[Guarantee]:
    """What a shell's words mean. One that did not come to its end proves nothing."""
    lines = said.splitlines()
    escaped: set[Guarantee] = {g for g in GUARANTEES if f"! {g}" in lines}
    names = {line[2:] for line in lines if line.startswith("= ")}
    if "PATH" not in names or names - launch.env.keys() - _SHELL_VARIABLES:
        escaped.add("env")
    if "done" not in lines:
        raise EnvironmentFault(f"a shell could not be run in it: {said.strip()[-200:] or 'it said nothing'}")
    return escaped


def _spawn(launch: Launch, out: int) -> int:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in ((0, null), (1, out), (2, null))]
        return os.posix_spawn(launch.argv[0], launch.argv, launch.env, setsid=True, file_actions=actions)
    finally:
        os.close(null)


def _write(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write("canary\n")


# ---------------------------------------------------------------- attacks by the thread itself

_libc = ctypes.CDLL(None, use_errno=True)
_PR_GET_SECCOMP, _PR_GET_NO_NEW_PRIVS, _PTRACE_ATTACH, _PTRACE_DETACH = 21, 39, 16, 17
_AF_VSOCK, _MPTCP = 40, 262


# Not only seen: what was hidden or protected could be opened.
OPENED: Literal["opened"] = "opened"
_Found: TypeAlias = Guarantee | Literal["opened"]


def attacks(place: _Place) -> Iterator[_Found]:
    """What a thread gets at: each guarantee that it breaks. Harmless where it does get through."""
    yield from _on_files(place)
    yield from _on_sockets()
    yield from _on_processes(place)
    yield from _on_privileges(place)


def _on_files(place: _Place) -> Iterator[_Found]:
    project, outside, victim = place
    secret = f"{outside}/secret"
    for read in (secret, outside, f"/proc/{victim}/environ", f"/proc/{victim}/maps"):
        if _opens(read):
            yield "fs.read"
    made = os.O_WRONLY | os.O_CREAT
    if _opens(secret, os.O_WRONLY) or _opens(f"{outside}/made", made) or _opens(f"{project}/made", made):
        yield "fs.write"
    for change in (
        lambda: os.truncate(secret, 7),
        lambda: os.rename(f"{outside}/secret", f"{outside}/secret.2"),
        lambda: os.link(secret, f"{project}/out/link"),
        lambda: os.mkdir(f"{outside}/folder"),
    ):
        if _works(change):
            yield "fs.write"
    if _opens(f"{project}/.env"):
        yield "fs.deny"
    if _works(lambda: os.stat(secret)):
        yield "fs.meta"
    journal, flow = f"{project}/.dagrun/journal", f"{project}/flow.yaml"
    if _opens(journal) or _opens(flow, os.O_WRONLY) or _works(lambda: os.rename(flow, f"{project}/out/flow")):
        yield OPENED
        yield "fs.protected"
    if _works(lambda: os.stat(journal)):
        yield "fs.protected"


def _on_sockets() -> Iterator[Guarantee]:
    for family, kind, protocol in (
        (socket.AF_INET, socket.SOCK_STREAM, 0),
        (socket.AF_INET, socket.SOCK_DGRAM, 0),
        (socket.AF_INET, socket.SOCK_STREAM, _MPTCP),
        (socket.AF_INET, socket.SOCK_RAW, 1),
        (socket.AF_INET6, socket.SOCK_STREAM, 0),
        (socket.AF_INET6, socket.SOCK_DGRAM, 0),
        (socket.AF_PACKET, socket.SOCK_RAW, 0),
        (_AF_VSOCK, socket.SOCK_STREAM, 0),
    ):
        if _works(partial(_socket, family, kind, protocol)):
            yield "net.none"
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        if _works(partial(_socket, socket.AF_UNIX, kind, 0)):
            yield "unix"
    # One end of such a pair can be aimed at any socket file.
    if _works(_pair):
        yield "unix"


def _socket(family: int, kind: int, protocol: int) -> None:
    socket.socket(family, kind, protocol).close()


def _pair() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        end.close()


def _on_processes(place: _Place) -> Iterator[Guarantee]:
    victim = place.victim
    if _works(lambda: os.kill(victim, 0)):
        yield "proc.signal"
    if _libc.ptrace(_PTRACE_ATTACH, victim, None, None) == 0:
        os.waitpid(victim, 0)
        _libc.ptrace(_PTRACE_DETACH, victim, None, None)
        yield "proc.signal"
    if _works(lambda: resource.prlimit(victim, resource.RLIMIT_CPU, resource.prlimit(victim, resource.RLIMIT_CPU))):
        yield "proc.signal"
    if _works(lambda: os.stat(f"/proc/{victim}")):
        yield "proc.hide"
    key, size, create = 0, 4096, 0o1600
    shared = _libc.shmget(key, size, create)
    if shared >= 0:
        _libc.shmctl(shared, 0, None)
        yield "ipc"
    name = f"/dagrun-canary-{os.getpid()}"
    if _opens(f"/dev/shm{name}", os.O_RDWR | os.O_CREAT):
        os.unlink(f"/dev/shm{name}")
        yield "ipc"


def _on_privileges(place: _Place) -> Iterator[Guarantee]:
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if _libc.capget(header, data) or any(data):
        yield "caps"
    if _libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 or _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) != 2:
        yield "caps"
    trap = f"{place.project}/out/trap"
    if _opens(trap, os.O_WRONLY | os.O_CREAT) and _works(lambda: os.chmod(trap, 0o4755)):
        yield "caps"


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _opens(path: str, flags: int = os.O_RDONLY) -> bool:
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    except OSError:
        return False
    return True

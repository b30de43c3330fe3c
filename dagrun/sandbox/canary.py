"""Tries a back end out: baits outside, a program inside that goes for them, and a verdict for each guarantee.

Shared by the back ends that confine processes. Each guarantee has at least one real attempt that
succeeds without walls, so that a back end that does nothing fails all of them; what must work inside
is tried too, so that one that lets nothing run proves nothing. Knows no back end by name. Meant to
run once per process, before any command; takes about 30 ms.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import procs
from dagrun.sandbox.base import Child, Exit, SpawnBusy
from dagrun.sandbox.canary_program import PROGRAM, TRIED
from dagrun.sandbox.grants_open import below
from dagrun.sandbox.wall import Guarantee, Launch, Refused, Spec, Wall

_DEADLINE_S = 10.0
_OUTLIVES_S = 1.0  # how long what a canary left behind may take to die with it
_MOST_OUTPUT = 1 << 16
_IPC_PRIVATE, _IPC_RMID, _SHM_BYTES = 0, 0, 4096
_KEYCTL = {"x86_64": 250, "aarch64": 219}


class Baits:
    """What lies outside for a canary to go for. `spec` is what the canary may do; close it afterwards."""

    def __init__(self, stack: ExitStack) -> None:
        self.word = os.urandom(8).hex()
        self.folder = stack.enter_context(temporary_folder())
        self.project = f"{self.folder}/project"
        self._files()
        self._udp, self._tcp = _servers(stack)
        self._stream, self._dgram, self._abstract = self._unix(stack)
        self._shm_id = _segment(stack)
        self._shm_file = _shm_file(stack, self.word)
        self._tty = _terminal(stack)
        self._buffer = ctypes.create_string_buffer(self.word.encode())

    def _files(self) -> None:
        for path in ("outside", "project/read/a/b", "project/write/.git/hooks", "project/write/.dagrun"):
            os.makedirs(f"{self.folder}/{path}")
        for path in ("outside/secret", "project/read/given", "project/read/denied", "project/write/.dagrun/journal"):
            _write(f"{self.folder}/{path}", self.word)
        for path in (".git/config", "flow.yaml", ".env"):
            _write(f"{self.project}/write/{path}", self.word)

    def _unix(self, stack: ExitStack) -> tuple[socket.socket, socket.socket, socket.socket]:
        stream, dgram, abstract = (
            stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
        )
        stream.bind(f"{self.project}/read/a/b/s")
        dgram.bind(f"{self.project}/read/a/b/d")
        dgram.setblocking(False)
        abstract.bind(f"\0dagrun-{self.word}")
        stream.listen()
        abstract.listen()
        return stream, dgram, abstract

    def spec(self, *, daemon: bool) -> Spec:
        """What the canary is allowed: one folder to read, one to write, no network."""
        python = os.path.realpath(sys.executable)
        prefix = os.path.realpath(sys.base_prefix)
        read = ("read", *([] if below(prefix, "/usr") else [prefix]))
        me = procs.stat(os.getpid())
        facts = {
            "word": self.word,
            "base": self.folder,
            "port": str(self._tcp.getsockname()[1]),
            "udp": str(self._udp.getsockname()[1]),
            "pid": str(os.getpid()),
            "ticks": str(me.start_ticks if me else -1),
            "address": str(ctypes.addressof(self._buffer)),
            "shm": str(self._shm_id),
            "shm_file": self._shm_file,
            "tty": self._tty,
            "keyctl": str(_KEYCTL.get(os.uname().machine, -1)),
            "daemon": "1" if daemon else "",
        }
        return Spec(
            attempt_id=f"canary/{self.word}/1",
            run_id="canary",
            run_dir=f"{self.project}/write/.dagrun",
            node="canary",
            argv=(python, "-I", "-S", "-c", PROGRAM, *(f"{name}={value}" for name, value in facts.items())),
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            cwd=f"{self.project}/write",
            project=self.project,
            read=read,
            write=("write",),
            deny=("read/denied",),
            network="none",
            hidden=(f"{self.project}/write/.dagrun",),
            protected=(f"{self.project}/write/flow.yaml",),
        )

    def touched(self) -> dict[Guarantee, str]:
        """What was done to the baits, seen from outside."""
        found: dict[Guarantee, str] = {}
        with suppress(OSError):
            self._udp.recv(64)
            found["net.none"] = "a datagram left it"
        with suppress(OSError):
            self._dgram.recv(64)
            found["unix"] = "a socket file outside was reached"
        if os.path.lexists(f"{self.folder}/outside/planted"):
            found["fs.write"] = "a file was made outside"
        write = f"{self.project}/write"
        kept = all(_read(f"{write}/{name}") == self.word for name in (".git/config", "flow.yaml"))
        if not kept or os.listdir(f"{write}/.git/hooks"):
            found["fs.protected"] = "a protected file was changed"
        return found


def prove(wall: Wall, *, daemon: bool = True) -> dict[Guarantee, str]:
    """Each guarantee that a canary can try → "" when it was held, else why not.

    `daemon`: a process that shook off its parent must be dead when the canary is (False where that is
    seen to by somebody else). Never raises for what the back end can't do.
    """
    with suppress(OSError):  # what this process itself was started with is no fault of a back end
        procs.keep_inherited_fds()
    try:
        with ExitStack() as stack:
            baits = Baits(stack)
            said, problem = _run(wall, baits.spec(daemon=daemon))
            return {**_verdicts(said, problem, daemon), **baits.touched()}
    except (OSError, Refused, SpawnBusy, EnvironmentFault) as error:
        why = str(error) or type(error).__name__
        return dict.fromkeys(TRIED, f"it could not be tried: {why}")


def _verdicts(said: str, problem: str, daemon: bool) -> dict[Guarantee, str]:
    found: dict[Guarantee, str] = {}
    for line in said.splitlines():
        name, tab, why = line.partition("\t")
        for guarantee in TRIED:
            if tab and guarantee == name:
                found[guarantee] = found.get(guarantee, "") or why
    if problem and "kill.tree" in found:
        found["kill.tree"] = problem
    if not daemon:
        found.pop("kill.tree", None)
    wanted = [name for name in TRIED if daemon or name != "kill.tree"]
    return {name: found.get(name, problem or "the canary did not come so far") for name in wanted}


# ---------------------------------------------------------------- one process


def _run(wall: Wall, spec: Spec) -> tuple[str, str]:
    """What the canary printed, and what went wrong with it."""
    launch = wall.launch(spec)
    with ExitStack() as stack:
        reads, writes = os.pipe()
        stack.callback(os.close, reads)
        errors = os.memfd_create("canary", os.MFD_CLOEXEC)
        stack.callback(os.close, errors)
        try:
            child = start(launch, spec.attempt_id, writes, errors)
        except OSError as error:
            wall.discard(launch)
            return "", f"it can't be started: {error.strerror}"
        finally:
            os.close(writes)
        wall.started(launch, child)
        said, outlived = _listen(child, reads)
        exit_ = end(child)
        wall.ended(launch, exit_)
        told = os.pread(errors, 600, 0).decode("utf-8", "replace").strip()
        if outlived:
            return said, "a process outlived its command"
        return said, " ".join(told.split()) or ("" if exit_.code == 0 else f"the canary ended by {exit_}")


def output_of(argv: tuple[str, ...]) -> str:
    """What a program prints, both streams in one; it gets an empty environment and 10 s. Raises OSError."""
    said = os.memfd_create("canary", os.MFD_CLOEXEC)
    try:
        child = start(Launch(argv=argv, env={}), "", said, said)
        poll = select.poll()
        poll.register(child.pidfd, select.POLLIN)
        poll.poll(_DEADLINE_S * 1000)
        end(child)
        return os.pread(said, _MOST_OUTPUT, 0).decode("utf-8", "replace")
    finally:
        os.close(said)


def start(launch: Launch, attempt_id: str, out_fd: int, err_fd: int) -> Child:
    """Spawn a launch as plain.py does, for a trial. Raises OSError."""

    def spawn() -> int:
        return os.posix_spawn(
            launch.argv[0],
            launch.argv,
            launch.env,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD),
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, out_fd, 1),
                (os.POSIX_SPAWN_DUP2, err_fd, 2),
                *[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in launch.fds],
            ),
        )

    ticks = procs.now_ticks()
    home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(launch.cwd or ".")
        pid = spawn() if launch.around is None else launch.around(spawn)
    finally:
        os.fchdir(home)
        os.close(home)
    return Child(pid, os.pidfd_open(pid), attempt_id, ticks, time.monotonic())


def end(child: Child) -> Exit:
    """End a trial with all that it left, and reap it."""
    left = procs.descendants(child.pid)
    for pid, who in left.items():
        procs.send(pid, who.start_ticks, signal.SIGKILL)
    with suppress(OSError):
        os.kill(child.pid, signal.SIGKILL)
    _, status, usage = os.wait4(child.pid, 0)
    os.close(child.pidfd)
    procs.wait_dead([(pid, who.start_ticks) for pid, who in left.items()], _OUTLIVES_S)
    for pid in left:  # orphans are ours if we are subreaper
        with suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    cpu_ms = round((usage.ru_utime + usage.ru_stime) * 1000)
    return Exit(code if code >= 0 else None, -code if code < 0 else None, None, cpu_ms)


def _listen(child: Child, fd: int) -> tuple[str, bool]:
    """What comes until nobody holds the other end; whether somebody did after the canary was dead."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    poll.register(child.pidfd, select.POLLIN)
    data, end_at, over = b"", time.monotonic() + _DEADLINE_S, False
    while (left := end_at - time.monotonic()) > 0 and len(data) < _MOST_OUTPUT:
        ready = {number for number, _ in poll.poll(left * 1000 + 1)}
        if fd in ready:
            more = os.read(fd, 4096)
            if not more:
                return data.decode("utf-8", "replace"), False
            data += more
        elif child.pidfd in ready and not over:
            over = True
            poll.unregister(child.pidfd)
            end_at = time.monotonic() + _OUTLIVES_S
    return data.decode("utf-8", "replace"), over


# ---------------------------------------------------------------- baits


_LONGEST = 48


@contextmanager
def temporary_folder() -> Iterator[str]:
    """An empty folder that a grant may be in; gone afterwards. Raises OSError."""
    for place in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp"):
        parent = os.path.realpath(place or "/tmp")
        if len(parent) > _LONGEST:  # a socket's path below it has to fit
            continue
        if not any(below(parent, kernel) for kernel in ("/dev", "/proc", "/sys")) and os.access(parent, os.W_OK):
            break
    path = f"{parent}/dagrun-canary-{os.urandom(8).hex()}"
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        _remove(path)


def _remove(path: str) -> None:
    """Remove a folder with all that is in it, following no link."""
    with suppress(OSError):
        with os.scandir(path) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    _remove(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(path)


def _servers(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    tcp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    for server in (udp, tcp):
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
    tcp.listen()
    return udp, tcp


def _segment(stack: ExitStack) -> int:
    """A System V segment; -1 where the kernel has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    segment = int(libc.shmget(_IPC_PRIVATE, ctypes.c_size_t(_SHM_BYTES), 0o600))
    if segment >= 0:
        stack.callback(libc.shmctl, segment, _IPC_RMID, None)
    return segment


def _shm_file(stack: ExitStack, word: str) -> str:
    path = f"/dev/shm/dagrun-{word}"
    try:
        _write(path, word)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EROFS):
            raise
        return ""
    stack.callback(os.unlink, path)
    return path


def _terminal(stack: ExitStack) -> str:
    try:
        ours, theirs = os.openpty()
    except OSError:
        return ""  # no terminal can be made here, so none can be reached
    stack.callback(os.close, ours)
    stack.callback(os.close, theirs)
    return os.ttyname(theirs)


def _write(path: str, text: str) -> None:
    with open(path, "x", encoding="ascii") as file:
        file.write(text)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(100)
    except OSError:
        return ""

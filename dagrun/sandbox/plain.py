"""The back end without walls: one posix_spawn per command, and a tree that is dead when it is done.

Gives a command its own session, default signals, an empty stdin and two files; holds no paths and
no network. Knows no nodes beyond the cookie of an attempt. Linux with pidfds (5.3) only.
Invariants: no fork of this process ever happens here (vfork inside posix_spawn costs the same from
any parent), no descriptor of dagrun reaches a command, and every descriptor that a spawn needs
after the command has started is held before it starts.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import procs
from dagrun.sandbox.base import Child, Exit, SpawnBusy, SpawnFailed, Swept
from dagrun.sandbox.strays import Strays

_BUSY = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
# What dagrun, Python, nohup or a shell's `&` may have set to ignored: ignored survives exec.
_DEFAULTS = [
    getattr(signal, name)
    for name in (
        "SIGPIPE SIGXFSZ SIGXCPU SIGINT SIGTERM SIGHUP SIGQUIT SIGTSTP SIGTTIN SIGTTOU SIGCHLD SIGUSR1 SIGUSR2"
        " SIGALRM SIGCONT SIGWINCH"
    ).split()
    if hasattr(signal, name)
]


Around: TypeAlias = Callable[[Callable[[], int]], int]


class _Files(NamedTuple):
    """What a spawn hands over: three files, more descriptors under their own numbers, and how it is made."""

    stdin: int
    out: int
    err: int
    more: tuple[int, ...]
    around: Around | None


class Plain:
    """Runs commands with nothing between them and the machine; see base.Sandbox for the promises.

    Makes this process the subreaper of everything it starts. `own` pids (helpers that dagrun itself
    started as children) must be told to `exempt`, or a sweep takes them for strays.
    Raises EnvironmentFault where the system has no pidfd or no /proc.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise EnvironmentFault(
                f"dagrun can't run commands on {sys.platform}: it needs Linux 5.3 or newer",
                hint="run it in a Linux container or virtual machine",
            )
        if not os.path.isdir("/proc/self/fd"):
            raise EnvironmentFault(
                "there is no /proc here, without which dagrun can't find what a node leaves behind",
                hint="mount -t proc proc /proc",
            )
        procs.ensure_standard_fds()
        procs.keep_inherited_fds()
        procs.become_subreaper()
        # An inherited SIG_IGN would make the kernel reap our children and lose their exit codes.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._spare = os.dup(self._null)
        self._strays = Strays()
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise EnvironmentFault(
                f"the kernel has no pidfd: {error.strerror}", hint="dagrun needs Linux 5.3 or newer"
            ) from error

    # ------------------------------------------------------------ start and end

    def spawn(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        *,
        out_fd: int,
        err_fd: int,
        attempt_id: str,
        cwd: str = "",
        script: str = "",
        stdin: int = -1,
        fds: tuple[int, ...] = (),
        around: Around | None = None,
    ) -> Child | SpawnFailed:
        """Start a command in a session of its own.

        The program is looked up in the PATH of `env`; a relative one in `cwd` (itself relative to
        the directory of the engine). `script` is the text that `argv` came from when the shell was
        left out: a file without `#!` is then run by sh, as a shell would do. `fds` stay open in the
        command under their own numbers, `stdin` replaces its empty input; `around` makes the spawn
        itself (from a thread that gave up its rights first).
        Returns SpawnFailed when the command can't be started; raises SpawnBusy when the machine is
        short of processes, memory or descriptors.
        """
        if self._spare < 0:
            self._spare = _dup(self._null)
        files = _Files(self._null if stdin < 0 else stdin, out_fd, err_fd, fds, around)
        if not cwd:
            return self._start(argv, env, files, attempt_id, script)
        # posix_spawn has no cwd. The engine is one thread, so nobody else sees us elsewhere.
        try:
            os.chdir(cwd)
        except OSError as error:
            return SpawnFailed(error.errno or 0, f"can't enter the directory {cwd!r}: {error.strerror}")
        except ValueError as error:
            return SpawnFailed(errno.EINVAL, f"can't enter the directory {cwd!r}: {error}")
        try:
            return self._start(argv, env, files, attempt_id, script)
        finally:
            os.fchdir(self._home)

    def _start(
        self, argv: tuple[str, ...], env: Mapping[str, str], files: _Files, attempt_id: str, script: str
    ) -> Child | SpawnFailed:
        program = find_program(argv[0], env.get("PATH", os.defpath)) if argv else None
        if program is None:
            return _not_found(argv, env)
        ticks = procs.now_ticks()
        try:
            pid = _spawn(program, argv, env, files)
        except OSError as error:
            if error.errno in _BUSY:
                raise SpawnBusy(error.errno, f"can't start a process: {error.strerror}") from None
            if error.errno == errno.ENOEXEC and script:
                return self._start(("sh", "-e", "-c", script), env, files, attempt_id, "")
            return _failed(program, error)
        except UnicodeEncodeError:
            env = {_encodable(name): _encodable(value) for name, value in env.items()}
            return self._start(tuple(map(_encodable, argv)), env, files, attempt_id, script)
        except ValueError as error:
            return SpawnFailed(errno.EINVAL, f"can't run {argv[0]!r}: {error}")
        child = Child(pid, self._pidfd(pid), attempt_id, ticks, time.monotonic())
        self._strays.add(child)
        return child

    def _pidfd(self, pid: int) -> int:
        """A pidfd of the child that was just started: the spare descriptor makes room if need be."""
        try:
            return os.pidfd_open(pid)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        os.close(self._spare)
        self._spare = -1
        return os.pidfd_open(pid)

    def reap(self, child: Child) -> Exit:
        """Collect the end of a child whose pidfd is readable, and close the pidfd."""
        _, status, usage = os.wait4(child.pid, 0)
        os.close(child.pidfd)
        child.pidfd = -1
        self._strays.remove(child)
        # The peak of the address space from which a vfork child execs is counted as its own: a
        # command smaller than dagrun shows dagrun's peak, which says nothing about the command.
        peak = usage.ru_maxrss if usage.ru_maxrss > _own_peak() else None
        if os.WIFSIGNALED(status):
            code, number = None, os.WTERMSIG(status)
        else:
            code, number = os.WEXITSTATUS(status), None
        cpu_ms = round((usage.ru_utime + usage.ru_stime) * 1000)
        return Exit(code, number, None if peak is None else peak * 1024, cpu_ms)

    # ------------------------------------------------------------ the kill ladder

    def terminate(self, child: Child) -> int:
        """SIGTERM to the tree of `child`, then SIGCONT, as a stopped process would never see it."""
        return self._strays.signal_tree(child, signal.SIGTERM, signal.SIGCONT)

    def kill_tree(self, child: Child) -> int:
        """SIGKILL to the tree of `child`; how many processes were alive."""
        return self._strays.signal_tree(child, signal.SIGKILL)

    def sweep(self, child: Child) -> Swept:
        """End what is left of a node whose main process has ended; costs one read when that is nothing."""
        return self._strays.sweep(child)

    def tidy(self) -> None:
        """Reap dead orphans of running nodes: an hour of double forks would fill the process table."""
        self._strays.tidy()

    def end_all(self) -> Swept:
        """SIGKILL children, strays and their descendants until none is left (at most 10 s)."""
        return self._strays.end_all()

    def exempt(self, pid: int) -> None:
        """Keep a child of dagrun's own (an editor, a helper) out of every sweep."""
        self._strays.exempt(pid)

    def close(self) -> None:
        """Close the kept descriptors."""
        self._strays.close()
        for fd in (self._null, self._home, self._spare):
            if fd >= 0:
                os.close(fd)
        self._null = self._home = self._spare = -1


def _spawn(program: str, argv: tuple[str, ...], env: Mapping[str, str], files: _Files) -> int:
    def spawn() -> int:
        return os.posix_spawn(
            program,
            argv,
            env,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULTS,
            file_actions=(
                (os.POSIX_SPAWN_DUP2, files.stdin, 0),
                (os.POSIX_SPAWN_DUP2, files.out, 1),
                (os.POSIX_SPAWN_DUP2, files.err, 2),
                # onto itself: the copy in the command loses its close-on-exec
                *[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in files.more],
            ),
        )

    return spawn() if files.around is None else files.around(spawn)


def find_program(name: str, path: str) -> str | None:
    """The file that `name` means: itself with a slash in it, else the first executable in `path`.

    Nothing is cached: an earlier node may have just installed a program, and a look costs 1 µs.
    """
    if "/" in name or "\0" in name:
        return name
    if not name:
        return None
    for folder in path.split(":"):
        # An empty entry is the current directory.
        file = f"{folder}/{name}" if folder else f"./{name}"
        if os.access(file, os.X_OK) and not os.path.isdir(file):
            return file
    return None


def _encodable(text: str) -> str:
    """`text` as the locale can carry it: what it has no characters for reaches the command as UTF-8."""
    try:
        os.fsencode(text)
        return text
    except UnicodeEncodeError:
        return os.fsdecode(text.encode("utf-8", "surrogatepass"))


def _not_found(argv: tuple[str, ...], env: Mapping[str, str]) -> SpawnFailed:
    if not argv or not argv[0]:
        return SpawnFailed(errno.EINVAL, "the command is empty")
    path = env.get("PATH", os.defpath)
    for folder in path.split(":"):
        file = f"{folder or '.'}/{argv[0]}"
        if os.path.isfile(file):
            return SpawnFailed(errno.EACCES, f"{argv[0]}: {file} is not executable (chmod +x it?)")
    return SpawnFailed(errno.ENOENT, f"{argv[0]}: command not found in PATH={path}")


def _failed(program: str, error: OSError) -> SpawnFailed:
    """Why the kernel refused to run `program`, in words that name the fix."""
    number = error.errno or 0
    why = error.strerror or str(error)
    if number == errno.ENOENT:
        why = "no such file"
        if os.path.exists(program):
            why = f"its interpreter{_interpreter(program)} is missing"
    elif number == errno.EACCES and os.path.isdir(program):
        why = "it is a directory"
    elif number == errno.EACCES:
        why = "not executable (chmod +x it?)"
    elif number == errno.ENOEXEC:
        why = "not a program: a script needs a first line like #!/bin/sh"
    elif number == errno.E2BIG:
        why = "its arguments and environment are too long for the system: pass big values by file"
    return SpawnFailed(number, f"{program}: {why}")


def _interpreter(program: str) -> str:
    """` NAME` from the `#!` line of a script, "" for anything else."""
    try:
        with open(program, "rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    return f" {line[2:].decode('utf-8', 'replace').split()[0]}" if line.startswith(b"#!") and line[2:].split() else ""


def _dup(fd: int) -> int:
    try:
        return os.dup(fd)
    except OSError as error:
        raise SpawnBusy(error.errno or errno.EMFILE, f"no descriptor left: {error.strerror}") from None


def _own_peak() -> int:
    """The peak resident size of dagrun in KiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

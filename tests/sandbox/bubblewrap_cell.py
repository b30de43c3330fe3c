"""A project with baits around it, attempts at them, and bwrap to stop them.

Knows no pytest: as a program it tries attempts as whoever starts it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from dagrun.sandbox import procs
from dagrun.sandbox.base import Child, Exit, SpawnFailed
from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Aftermath, Launch, Spec

PYTHON = os.path.realpath(sys.executable)
PREFIX = os.path.realpath(sys.base_prefix)
SYSTEM = PREFIX == "/usr" or PREFIX.startswith("/usr/")
WORD = "the-secret-outside"
DEADLINE_S = 20.0


@dataclass
class Ran:
    """How an attempt ended, and what it said."""

    out: str
    err: str
    exit: Exit
    after: Aftermath | None = None


class Cell:
    """`base`/outside is what must not be reached, `base`/project what is granted in part."""

    def __init__(self, base: Path, path: str | None = None) -> None:
        self.base = base
        self.project = base / "project"
        self.plain = Plain()
        self.wall = Bubblewrap(self.plain.exempt, path=path)
        self._stack = ExitStack()
        self._tree()
        self._listeners()
        self.facts = [str(base), str(os.getpid()), str(self.port), str(self.shm), self.tty, self.shm_file]

    def _tree(self) -> None:
        for folder in ("outside", "project/src/deep/two", "project/out", "project/repo/.git/hooks", "project/.dagrun"):
            (self.base / folder).mkdir(parents=True)
        for file in ("outside/secret", "project/src/given", "project/.dagrun/journal", "project/.env"):
            (self.base / file).write_text(WORD)
        for file in (".git/config", "flow.yaml"):
            (self.project / "repo" / file).write_text(WORD)

    def _listeners(self) -> None:
        def unix(kind: int, address: str) -> None:
            server = self._stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            server.bind(address)
            if kind == socket.SOCK_STREAM:
                server.listen()

        # a path of a socket is at most 108 bytes long
        here = os.open(self.project / "src/deep/two", os.O_PATH)
        unix(socket.SOCK_STREAM, f"/proc/self/fd/{here}/s")
        unix(socket.SOCK_DGRAM, f"/proc/self/fd/{here}/d")
        os.close(here)
        unix(socket.SOCK_STREAM, f"\0{os.getpid()}-{self.base}"[:100])
        server = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = server.getsockname()[1]
        libc = ctypes.CDLL(None)
        self.shm = libc.shmget(0, ctypes.c_size_t(4096), 0o600)
        self._stack.callback(libc.shmctl, self.shm, 0, None)
        self.shm_file = f"/dev/shm/dagrun-test-{os.getpid()}"
        Path(self.shm_file).write_text(WORD)
        self._stack.callback(os.unlink, self.shm_file)
        ours, theirs = os.openpty()
        self._stack.callback(os.close, ours)
        self._stack.callback(os.close, theirs)
        self.tty = os.ttyname(theirs)

    def spec(self, *argv: str, **more: object) -> Spec:
        """What an attempt asks for, unless a test says otherwise."""
        made = Spec(
            attempt_id="run/node/1",
            run_id="run",
            run_dir=str(self.project / ".dagrun/runs/run"),
            node="node",
            argv=argv,
            env={"PATH": "/usr/bin:/bin", "DAGRUN_ATTEMPT_ID": "run/node/1"},
            cwd=str(self.project),
            project=str(self.project),
            read=(".",) if SYSTEM else (".", PREFIX),
            write=("out", "repo"),
            network="none",
            hidden=(str(self.project / ".dagrun"),),
            protected=(str(self.project / "repo/flow.yaml"),),
        )
        return replace(made, **more)  # type: ignore[arg-type]

    def start(self, launch: Launch) -> tuple[Child, int, int]:
        """Spawn it as the engine does; the child and its two log files."""
        out, err = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("out", "err"))
        child = self.plain.spawn(
            launch.argv,
            launch.env,
            out_fd=out,
            err_fd=err,
            attempt_id="run/node/1",
            cwd=launch.cwd,
            script=launch.script,
            fds=launch.fds,
            around=launch.around,
        )
        assert not isinstance(child, SpawnFailed), child
        return child, out, err

    def finish(self, child: Child, out: int, err: int) -> Ran:
        """Wait for the end, sweep and reap; what it said."""
        assert ended(child), f"{child} did not end"
        self.plain.sweep(child)
        exit_ = self.plain.reap(child)
        said = [os.pread(fd, 1 << 20, 0).decode("utf-8", "replace") for fd in (out, err)]
        os.close(out)
        os.close(err)
        return Ran(said[0], said[1], exit_)

    def run(self, spec: Spec) -> Ran:
        """One attempt inside, from launch to aftermath."""
        launch = self.wall.launch(spec)
        child, out, err = self.start(launch)
        self.wall.started(launch, child)
        ran = self.finish(child, out, err)
        ran.after = self.wall.ended(launch, ran.exit)
        return ran

    def run_free(self, spec: Spec, fds: tuple[int, ...] = ()) -> Ran:
        """The same command without walls: the control."""
        return self.finish(*self.start(Launch(argv=spec.argv, env=spec.env, cwd=spec.cwd, fds=fds)))

    def escape(self, code: str, **more: object) -> Spec:
        """An attempt of `ESCAPES`."""
        return self.spec(PYTHON, "-I", "-S", "-c", PRELUDE + code + "\nprint('ESCAPED')", *self.facts, **more)

    def sh(self, text: str, **more: object) -> Ran:
        """One line of shell inside."""
        return self.run(self.spec("/bin/sh", "-c", text, **more))

    def close(self) -> None:
        """Nothing may be left."""
        self._stack.close()
        self.plain.end_all()
        procs.reap_zombies()
        self.plain.close()


def ended(child: Child, timeout_s: float = DEADLINE_S) -> bool:
    """Whether a child ended before the deadline."""
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def until(check: object, what: str) -> None:
    """Look again and again until it holds."""
    end = time.monotonic() + DEADLINE_S
    while not check():  # type: ignore[operator]
        assert time.monotonic() < end, f"never happened: {what}"
        os.sched_yield()


# ---------------------------------------------------------------- attempts

PRELUDE = """
import os, sys, ctypes, socket, signal
B, pid, port, shm, tty, shm_file = sys.argv[1:]
pid, port, shm = int(pid), int(port), int(shm)
P = B + "/project"
libc = ctypes.CDLL(None, use_errno=True)
print("tried", flush=True)
def ok(result):
    if result in (-1, None):
        raise OSError(ctypes.get_errno(), "no")
def make(path):
    open(path, "x").close()
"""

# name: (guarantee, program); one that ends without an exception has escaped
ESCAPES = {
    "read": ("fs.read", "open(B + '/outside/secret').read()"),
    "read-var": ("fs.read", "assert os.listdir('/var/lib')"),
    "read-link": (
        "fs.read",
        "os.symlink(B + '/outside/secret', P + '/out/l'); open(P + '/out/l').read()",
    ),
    "hard-link": ("fs.read", "os.link(B + '/outside/secret', P + '/out/l'); open(P + '/out/l').read()"),
    "read-by-proc": ("fs.read", "open(f'/proc/{pid}/root' + B + '/outside/secret').read()"),
    "cwd-of-parent": ("fs.read", "open(f'/proc/{os.getppid()}/root' + B + '/outside/secret').read()"),
    "key": ("fs.read", "open(P + '/.env').read()"),
    "stat": ("fs.meta", "os.stat(B + '/outside/secret')"),
    "list": ("fs.meta", "assert os.listdir(B + '/outside')"),
    "chmod": ("fs.meta", "os.chmod(B + '/outside/secret', 0o644)"),
    "rename": ("fs.meta", "os.rename(B + '/outside/secret', B + '/outside/moved')"),
    "create": ("fs.write", "make(B + '/outside/new')"),
    "remove": ("fs.write", "os.unlink(B + '/outside/secret')"),
    "create-in-read": ("fs.write", "make(P + '/src/new')"),
    "truncate-in-read": ("fs.write", "open(P + '/src/given', 'w').close()"),
    "chmod-in-read": ("fs.write", "os.chmod(P + '/src/given', 0o777)"),
    "rename-in-read": ("fs.write", "os.rename(P + '/src/given', P + '/src/moved')"),
    "journal": ("fs.protected", "open(P + '/.dagrun/journal').read()"),
    "hook": ("fs.protected", "make(P + '/repo/.git/hooks/post-commit')"),
    "git-config": ("fs.protected", "open(P + '/repo/.git/config', 'a').write('x')"),
    "git-config-replaced": (
        "fs.protected",
        "open(P + '/repo/.git/c', 'w').write('x'); os.replace(P + '/repo/.git/c', P + '/repo/.git/config')",
    ),
    "renamed-ancestor": (
        "fs.protected",
        """
os.rename(P + '/repo/.git', P + '/repo/old')
os.makedirs(P + '/repo/.git/hooks')
make(P + '/repo/.git/hooks/post-commit')""",
    ),
    "renamed-grant": ("fs.protected", "os.rename(P + '/repo', P + '/repo2')"),
    "workflow": ("fs.protected", "open(P + '/repo/flow.yaml', 'w').close()"),
    "workflow-removed": ("fs.protected", "os.unlink(P + '/repo/flow.yaml')"),
    "tcp": ("net.none", "socket.create_connection(('127.0.0.1', port), 2)"),
    "udp": ("net.none", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', port))"),
    "netlink-diag": ("net.none", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)"),
    "unix-path": (
        "unix",
        "os.chdir(P + '/src/deep/two'); socket.socket(socket.AF_UNIX).connect('s')",
    ),
    "unix-abstract": ("unix", "socket.socket(socket.AF_UNIX).connect(f'\\0{pid}-{B}'[:100])"),
    "unix-pair": (
        "unix",
        "os.chdir(P + '/src/deep/two'); a, b = socket.socketpair(type=socket.SOCK_DGRAM); a.sendto(b'x', 'd')",
    ),
    "shm": ("ipc", "libc.shmat.restype = ctypes.c_ssize_t; ok(libc.shmat(shm, None, 0o10000))"),
    "shm-file": ("ipc", "open(shm_file).read()"),
    "keyring": (
        "ipc",
        "ok(libc.syscall(ctypes.c_long({'x86_64': 250, 'aarch64': 219}[os.uname().machine]), 0, -3, 0, 0, 0))",
    ),
    "key-names": ("ipc", "assert open('/proc/keys').read()"),
    "see": ("proc.hide", "assert open(f'/proc/{pid}/cmdline').read()"),
    "environ": (
        "env",
        """
given = ('PATH=', 'HOME=', 'TMPDIR=', 'DAGRUN_', 'PWD=')
def environ(p):
    try: return open(f'/proc/{p}/environ').read().split(chr(0))
    except OSError: return []
every = [v for p in os.listdir('/proc') if p.isdigit() for v in environ(p)]
assert [v for v in every if v and not v.startswith(given)]""",
    ),
    "signal": ("proc.signal", "os.kill(pid, 0)"),
    "signal-group": ("proc.signal", "os.killpg(pid if os.getpgid(pid) == pid else os.getpgid(pid), 0)"),
    "priority": ("proc.signal", "os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))"),
    "trace-me": ("caps", "ok(libc.ptrace(0, 0, 0, 0))"),
    "namespace": ("caps", "ok(libc.unshare(0x10000000))"),
    "set-id": (
        "caps",
        "make(P + '/out/s'); os.chmod(P + '/out/s', 0o6755); assert os.stat(P + '/out/s').st_mode & 0o6000",
    ),
    "set-id-at-birth": (
        "caps",
        "os.open(P + '/out/s', os.O_CREAT | os.O_WRONLY, 0o4755); assert os.stat(P + '/out/s').st_mode & 0o4000",
    ),
    "terminal": ("tty", "os.open(tty, os.O_RDWR | os.O_NOCTTY)"),
}
# What an ordinary user could not do without walls either.
ROOT_ESCAPES = {
    "shadow": ("fs.read", "open('/etc/shadow').read()"),
    "core-pattern": (
        "caps",
        "text = open('/proc/sys/kernel/core_pattern').read(); open('/proc/sys/kernel/core_pattern', 'w').write(text)",
    ),
    "sysctl": ("caps", "os.close(os.open('/proc/sys/kernel/hostname', os.O_WRONLY))"),
    "device": ("caps", "os.mknod(P + '/out/d', 0o020600, os.makedev(1, 3))"),
    "trace": ("proc.signal", "ok(libc.ptrace(0x4206, pid, 0, 0))"),
    "raw-socket": ("net.none", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
    "packet-socket": ("net.none", "socket.socket(17, socket.SOCK_RAW, 0)"),
    "chroot": ("caps", "os.chroot(P)"),
    "owner": ("caps", "os.chown(P + '/out', 1, 1)"),
    "hostname": ("caps", "socket.sethostname(socket.gethostname())"),
    "kernel-log": ("caps", "ok(libc.klogctl(3, ctypes.create_string_buffer(64), 64))"),
}


def main() -> None:
    """Run what the arguments name in a folder as who starts this; one line `name verdict` for each."""
    folder, *names = sys.argv[1:]
    table = {**ESCAPES, **ROOT_ESCAPES}
    for name in names:
        base = Path(folder) / name
        base.mkdir()
        cell = Cell(base)
        spec = cell.escape(table[name][1])
        free = cell.run_free(spec)
        cell.close()
        again = Path(folder) / f"{name}-held"
        again.mkdir()
        cell = Cell(again)
        held = cell.run(cell.escape(table[name][1]))
        cell.close()
        verdict = "held" if "tried" in held.out and "ESCAPED" not in held.out else f"NOT HELD {held}"
        control = "" if "ESCAPED" in free.out else f" NO CONTROL {free}"
        print(name, verdict + control, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()

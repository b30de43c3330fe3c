"""Getting out of Landlock: each attempt comes through from a plain command, and not from a confined one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import landlock_kernel, landlock_mark, procs, seccomp
from dagrun.sandbox.base import Child, Exit, Swept
from dagrun.sandbox.ceilings import Ceilings
from dagrun.sandbox.landlock import Landlock
from dagrun.sandbox.wall import GUARANTEES, Aftermath, Bounds, Guarantee, Launch, Refused, Spec

from .conftest import Box, all_dead, written_pids
from .descriptors import descriptors_kept

HELD: frozenset[Guarantee] = frozenset(
    "fs.read fs.write fs.deny net.none unix ipc proc.signal env fds tty caps kill.tree".split()  # type: ignore[arg-type]
)
GAPS: frozenset[Guarantee] = frozenset({"fs.meta", "fs.protected", "proc.hide", "net.allowlist"})
CEILINGS: frozenset[Guarantee] = frozenset({"mem", "pids", "cpu", "fsize"})
# One that a confined command can reach without a grant of its own.
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin:/bin:/usr/local/bin")
PYTHON = SYSTEM_PYTHON or os.path.realpath(sys.executable)
PREFIXES = () if SYSTEM_PYTHON else (sys.base_prefix,)


def absent() -> str:
    return "" if landlock_kernel.abi() >= landlock_kernel.SCOPE_ABI else "no Landlock 6 here"


if absent() and os.environ.get("CI"):
    raise AssertionError(absent())
pytestmark = pytest.mark.skipif(bool(absent()), reason=absent())


class Cell:
    """A project with something to hide, something outside of it, and nodes that run in Landlock or in nothing."""

    def __init__(self, box: Box, base: Path) -> None:
        self.box = box
        self.base = base
        self.wall = Landlock(box.plain.exempt)
        self.project, self.outside = base / "project", base / "outside"
        for folder in ("project/out", "project/src/deep", "project/.dagrun/runs", "outside", "exchange"):
            (base / folder).mkdir(parents=True)
        for file in (
            *("project/.env", "project/id_rsa", "project/src/deep/.env.local", "project/src/code.py"),
            *("project/.dagrun/journal", "project/flow.yaml", "outside/secret"),
        ):
            (base / file).write_text(f"canary {file}\n")
        self.number = 0

    def spec(self, *argv: str, **more: Any) -> Spec:
        self.number += 1
        exchange = self.base / "exchange" / f"n.{self.number}.d"
        exchange.mkdir()
        spec = Spec(
            attempt_id=f"test/n/{self.number}",
            run_id="test",
            run_dir=str(self.project / ".dagrun/runs"),
            node="n",
            argv=argv,
            env={
                "PATH": "/usr/bin:/bin:/usr/local/bin",
                "DAGRUN_ATTEMPT_ID": f"test/n/{self.number}",
                "OUTSIDE": str(self.outside),
            },
            cwd=str(self.project),
            project=str(self.project),
            read=(".", *PREFIXES),
            write=("out",),
            deny=(".env*",),
            network="none",
            hidden=(str(self.project / ".dagrun"),),
            protected=(str(self.project / "flow.yaml"),),
            exchange=str(exchange),
            outputs=(self.box.out, self.box.err),
        )
        return replace(spec, **more)

    def start(self, spec: Spec, *, confined: bool = True) -> tuple[Launch, Child]:
        if confined:
            launch = self.wall.launch(spec)
        else:
            launch = Launch(argv=spec.argv, env=spec.env, cwd=spec.cwd)
        child = self.box.plain.spawn(
            launch.argv, launch.env, out_fd=self.box.out, err_fd=self.box.err, attempt_id=spec.attempt_id,
            cwd=launch.cwd, script=launch.script, fds=launch.fds, around=launch.around,
        )  # fmt: skip
        assert isinstance(child, Child), child
        if confined:
            self.wall.started(launch, child)
        return launch, child

    def run(self, spec: Spec, *, confined: bool = True) -> tuple[Exit, Swept, Aftermath]:
        launch, child = self.start(spec, confined=confined)
        ended, swept = self.box.end(child)
        return ended, swept, self.wall.ended(launch, ended) if confined else Aftermath()

    def sh(self, text: str, *, confined: bool = True, **more: Any) -> int | None:
        return self.run(self.spec("sh", "-c", text, **more), confined=confined)[0].code

    def python(self, text: str, *, confined: bool = True, **more: Any) -> int | None:
        return self.run(self.spec(PYTHON, "-I", "-S", "-c", textwrap.dedent(text), **more), confined=confined)[0].code

    def holds(self, text: str, **more: Any) -> None:
        """A shell's text succeeds in nothing and fails in Landlock."""
        assert self.sh(text, confined=False, **more) == 0, self.said()
        assert self.sh(text, **more) not in (0, None), self.said()

    def holds_python(self, text: str, **more: Any) -> None:
        assert self.python(text, confined=False, **more) == 0, self.said()
        assert self.python(text, **more) not in (0, None), self.said()

    def said(self) -> str:
        return self.box.text() + (self.box.folder / "err").read_text()


@pytest.fixture
def cell(box: Box, tmp_path: Path) -> Iterator[Cell]:
    (tmp_path / "cell").mkdir()
    threads = set(threading.enumerate())
    with descriptors_kept():
        yield Cell(box, tmp_path / "cell")
    assert set(threading.enumerate()) <= threads


# ---------------------------------------------------------------- files


def test_nothing_outside_the_grants_is_read(cell: Cell) -> None:
    cell.holds('cat "$OUTSIDE/secret"')
    cell.holds('ls "$OUTSIDE"')
    cell.holds('cp "$OUTSIDE/secret" out/')
    cell.holds("cat /proc/$PPID/cmdline")
    cell.holds("ls /proc")
    cell.holds("cat /etc/hostname || cat /etc/fstab")



def test_nothing_outside_the_write_grants_is_written(cell: Cell) -> None:
    cell.holds('echo x >>"$OUTSIDE/secret"')
    cell.holds('echo x >"$OUTSIDE/new" && rm "$OUTSIDE/new"')
    cell.holds('mkdir "$OUTSIDE/folder" && rmdir "$OUTSIDE/folder"')
    cell.holds('mv "$OUTSIDE/secret" "$OUTSIDE/other" && mv "$OUTSIDE/other" "$OUTSIDE/secret"')
    cell.holds('ln "$OUTSIDE/secret" "$OUTSIDE/hard" && rm "$OUTSIDE/hard"')
    cell.holds('ln -s secret "$OUTSIDE/soft" && rm "$OUTSIDE/soft"')
    cell.holds('truncate -s 9 "$OUTSIDE/secret"')
    cell.holds("echo x >src/new && rm src/new")  # granted for reading only
    cell.holds("echo x >>src/code.py")
    cell.holds("mv src/code.py out/code.py && mv out/code.py src/code.py")
    cell.holds('mkfifo "$OUTSIDE/fifo" && rm "$OUTSIDE/fifo"')


def test_links_planted_in_a_write_grant_lead_nowhere(cell: Cell) -> None:
    """A symbolic one is followed to where there is no grant; a hard one to such a file can't be made."""
    cell.holds('ln -sf "$OUTSIDE/secret" out/link && cat out/link')
    cell.holds('ln -sf "$OUTSIDE" out/door && cat out/door/secret')
    cell.holds('ln "$OUTSIDE/secret" out/hard && rm out/hard')
    cell.holds("ln src/code.py out/hard && echo x >>out/hard && rm out/hard")


def test_denied_hidden_and_key_files_are_closed(cell: Cell) -> None:
    for name in (".env", "src/deep/.env.local", "id_rsa", ".dagrun/journal"):
        cell.holds(f"cat {name}")
        cell.holds(f"ln -sf ../{name} out/link && cat out/link")
        cell.holds(f"cp {name} out/copy")
        cell.holds(f'ln {name} out/hard && rm -f out/hard')
    cell.holds("echo x >>.dagrun/journal")
    cell.holds("mv .dagrun out/moved && mv out/moved .dagrun")
    cell.holds("cat id_rsa", deny=())
    assert cell.sh("cat id_rsa", read=(".", "id_rsa", *PREFIXES)) == 0  # it is named


def test_what_is_beside_something_denied_stays_readable(cell: Cell) -> None:
    assert cell.sh("cat src/code.py flow.yaml && ls . src src/deep") == 0, cell.said()
    text = "import sys; sys.path.insert(0, 'src'); open('src/code.py').read(); import importlib.util as u"
    assert cell.python(f"{text}; assert u.find_spec('code')") == 0, cell.said()


def test_an_entry_that_appears_later_in_a_folder_with_a_hole_is_closed(cell: Cell) -> None:
    """Rules are made at the start; what is new has none."""
    os.mkfifo(cell.project / "out/gate")
    launch, child = cell.start(cell.spec("sh", "-c", "read _ <out/gate; cat later; echo $?; cat src/later; echo $?"))
    (cell.project / "later").write_text("in a folder with a hole\n")
    (cell.project / "src/later").write_text("src has one too\n")
    (cell.project / "out/gate").write_text("go\n")
    ended, _ = cell.box.end(child)
    cell.wall.ended(launch, ended)
    assert cell.box.text().split() == ["1", "1"]


def test_a_protected_file_in_a_read_grant_is_read_only(cell: Cell) -> None:
    cell.holds("echo x >>flow.yaml")
    cell.holds("cp flow.yaml out/f && mv out/f flow.yaml")
    assert cell.sh("cat flow.yaml") == 0


def test_what_git_or_an_editor_would_run_is_moved_aside(cell: Cell) -> None:
    """Not there at the start, so no rule can tell it from other files: the attempt is denied afterwards."""
    ended, _, after = cell.run(cell.spec("sh", "-c", "mkdir -p out/.git/hooks && echo x >out/.git/hooks/pre-commit"))
    assert (ended.code, after.outcome) == (0, "denied")
    assert "out/.git" in after.error
    assert not (cell.project / "out/.git/hooks").exists()


def test_metadata_is_a_gap_and_is_called_one(cell: Cell) -> None:
    """If this ever fails, the kernel has learned it: then the guarantee may be proved."""
    assert cell.sh('test -s "$OUTSIDE/secret" && chmod 600 "$OUTSIDE/secret" && test -e .dagrun/journal') == 0
    proved = cell.wall.proved()
    assert all(proved[g] for g in ("fs.meta", "fs.protected", "proc.hide"))


# ---------------------------------------------------------------- network, sockets, IPC


def test_no_address_is_reached(cell: Cell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port, other = tcp.getsockname()[1], udp.getsockname()[1]
        tcp_out = f"import socket; socket.create_connection(('127.0.0.1', {port})).close()"
        cell.holds_python(tcp_out)
        assert cell.python(tcp_out, network="any") == 0, cell.said()
        send = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
        cell.holds_python(f"{send}; s.sendto(b'x', ('127.0.0.1', {other}))")
        udp.settimeout(5)
        assert udp.recv(10) == b"x"
    cell.holds_python("import socket; socket.create_server(('127.0.0.1', 0)).close()")
    cell.holds_python("import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()")
    if os.geteuid() == 0:
        cell.holds_python("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()")


def test_a_host_list_is_refused(cell: Cell) -> None:
    with pytest.raises(Refused, match="list of hosts"):
        cell.wall.launch(cell.spec("true", network=("example.org",)))
    assert cell.python("import socket; socket.socket().close()", network=()) != 0  # an empty one is none


def test_no_unix_socket_is_reached_by_path_or_abstract(cell: Cell) -> None:
    path = str(cell.outside / "sock")
    abstract = f"\0dagrun-test-{os.getpid()}"
    for address in (path, abstract):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen()
            cell.holds_python(f"import socket; socket.socket(socket.AF_UNIX).connect({address!r})")
        if address == path:
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(address)
            cell.holds_python(f"import socket as s; s.socket(s.AF_UNIX, s.SOCK_DGRAM).sendto(b'x', {address!r})")
            # One end of a pair of datagram sockets can be aimed at any address.
            cell.holds_python(f"import socket as s; s.socketpair(s.AF_UNIX, s.SOCK_DGRAM)[0].sendto(b'x', {address!r})")
    assert cell.python("import socket; a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'") == 0


def test_no_ipc_of_the_machine(cell: Cell) -> None:
    ipc = "import ctypes, sys; c = ctypes.CDLL(None)\n"
    cell.holds_python(ipc + "i = c.shmget(0, 4096, 0o1600); c.shmctl(i, 0, None); sys.exit(i < 0)")
    cell.holds_python(ipc + "i = c.msgget(0, 0o1600); c.msgctl(i, 0, None); sys.exit(i < 0)")
    cell.holds_python(ipc + "i = c.semget(0, 1, 0o1600); c.semctl(i, 0, 0); sys.exit(i < 0)")
    if os.path.isdir("/dev/shm"):
        cell.holds("echo x >/dev/shm/dagrun-test.$$ && rm /dev/shm/dagrun-test.$$")


# ---------------------------------------------------------------- processes


@pytest.fixture
def victim(box: Box) -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen(["sleep", "60"])
    box.plain.exempt(made.pid)
    yield made
    made.kill()
    made.wait()


def test_no_other_process_is_signalled_traced_or_limited(cell: Cell, victim: subprocess.Popen[bytes]) -> None:
    pid = victim.pid
    cell.holds(f"kill -0 {pid}")
    cell.holds("kill -0 $PPID")
    cell.holds_python(f"import os, signal; signal.pidfd_send_signal(os.pidfd_open({pid}), 0)")
    cell.holds_python(f"import resource; resource.prlimit({pid}, resource.RLIMIT_NOFILE, (99, 999))")
    cell.holds_python(f"import os; os.setpriority(os.PRIO_PROCESS, {pid}, 5)")
    trace = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, {pid}, None, None) != 0)"
    if os.geteuid() == 0:  # else a setting of the machine may forbid it to everybody
        cell.holds_python(trace)
        os.kill(pid, signal.SIGCONT)
    cell.holds_python(f"open('/proc/{pid}/environ').read()")
    assert victim.poll() is None
    # It may do all of that to itself and to its own.
    assert cell.sh("sleep 60 & kill $!; wait $!; test $? = 143 && kill -0 $$") == 0
    assert cell.python("import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50)); os.nice(1)") == 0


def test_the_environment_is_what_was_given(cell: Cell) -> None:
    os.environ["DAGRUN_TEST_SECRET"] = "s3cret"
    try:
        assert cell.sh("env") == 0
    finally:
        del os.environ["DAGRUN_TEST_SECRET"]
    names = {line.partition("=")[0] for line in cell.box.text().splitlines()}
    expected = {*cell.spec("x").env, "HOME", "TMPDIR"}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == expected


def test_home_and_tmp_are_private_and_work(cell: Cell) -> None:
    text = 'echo x >"$HOME/f" && f=$(mktemp) && echo y >"$f" && cat "$HOME/f" "$f" && ls -A "$HOME"'
    assert cell.sh(text) == 0, cell.said()
    assert cell.box.text().split() == ["x", "y", "f"]
    assert not any(Path(cell.spec("x").exchange).iterdir())  # another attempt has its own


def test_no_descriptor_and_no_terminal(cell: Cell) -> None:
    leak = os.open(cell.outside / "secret", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        probe = "import os, sys\nfor fd in range(3, 256):\n"
        probe += " try: os.fstat(fd)\n except OSError: pass\n else: sys.exit(9)"
        procs.keep_inherited_fds()
        assert cell.python(probe) == 0
        os.set_inheritable(leak, True)  # the control: the probe sees one that is let through
        assert cell.python(probe, confined=False) == 9
    finally:
        os.close(leak)
    assert cell.sh("(: </dev/tty) 2>/dev/null") != 0
    assert cell.sh("test $(ps -o sid= -p $$) = $$ || true") == 0


def test_no_capability_comes_back(cell: Cell) -> None:
    cell.holds("touch out/trap && chmod 4755 out/trap")
    cell.holds("touch out/trap && chmod g+s out/trap")
    cell.holds_python("import os; os.open('out/new', os.O_CREAT | os.O_EXCL, 0o4755); os.unlink('out/new')")
    show = "import ctypes, sys; h = (ctypes.c_uint32 * 2)(0x20080522); d = (ctypes.c_uint32 * 6)()"
    assert cell.python(f"{show}; ctypes.CDLL(None).capget(h, d); sys.exit(any(d))") == 0
    assert cell.python("import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) != 1)") == 0
    if os.geteuid() == 0:
        cell.holds("mknod out/disk b 7 0 && rm out/disk")
        cell.holds("chown 1 out && chown 0 out")
        cell.holds("f=/proc/sys/kernel/core_pattern; v=$(cat $f) && printf %s \"$v\" >$f")
        cell.holds("mkdir -p out/m && mount -t tmpfs none out/m && umount out/m")
        cell.holds("unshare -m true")
    if cell.sh("unshare -U true", confined=False) == 0:
        assert cell.sh("unshare -U true") != 0


# ---------------------------------------------------------------- the tree

# Its first process stays until the exec has closed the pipe: before, the daemon still has the cookie to be found by.
DAEMON = """
import os
read, write = os.pipe()
if os.fork():
    os.close(write)
    os.read(read, 1)
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
for fd in range(100):
    if fd != write:
        os.closerange(fd, fd + 1)
fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b'%d\\n' % os.getpid())
os.execve('/bin/sleep', ['sleep', '60'], {{}})
"""


def alive(pids: list[tuple[int, int]]) -> bool:
    return not any(procs.is_dead(procs.stat(pid)) for pid, _ in pids)


def test_a_daemon_that_shook_off_everything_ends_with_its_attempt(cell: Cell) -> None:
    """Own session, no parent, no cookie, another node beside it: only the mark tells whose it is."""
    _, other = cell.start(cell.spec("sleep", "60"), confined=False)
    file = cell.project / "out/pids"
    text = f"{PYTHON} -I -S -c \"$CODE\"; while ! test -s out/pids; do :; done"

    def env(spec: Spec) -> Spec:
        return replace(spec, env={**spec.env, "CODE": DAEMON.format(path=str(file))})

    cell.run(env(cell.spec("sh", "-c", text)), confined=False)
    control = written_pids(file, 1)
    assert alive(control)  # as a plain command: it waits for the other node to end
    file.unlink()
    _, _, after = cell.run(env(cell.spec("sh", "-c", text)))
    assert "killed 1 of its processes" in " ".join(after.notes)
    who = procs.stat(int(file.read_text()))
    assert procs.is_dead(who)
    assert alive(control)  # the other's are left alone
    cell.box.plain.kill_tree(other)
    cell.box.end(other)
    assert all_dead(control)


def test_a_mark_can_t_be_taken_off(cell: Cell) -> None:
    """Nor can a limit be set by any other way than the two that are filtered."""
    take_off = "import resource; resource.setrlimit(15, (1 << 40, resource.RLIM_INFINITY))"
    cell.holds_python(take_off)
    cell.holds_python("""
        import ctypes, os, sys
        number, value = {'x86_64': 160, 'aarch64': 164}[os.uname().machine], (ctypes.c_ulong * 2)(1, 1)
        sys.exit(ctypes.CDLL(None).syscall(ctypes.c_long(number), 15, value) != 0)
    """)


def test_marks_tell_trees_apart() -> None:
    first, second = landlock_mark.new_mark(), landlock_mark.new_mark()
    with landlock_mark.marked(first):
        one = subprocess.Popen(["sleep", "60"])
    with landlock_mark.marked(second):
        two = subprocess.Popen(["sleep", "60"])
    try:
        assert landlock_mark.has_mark(one.pid, first)
        assert not landlock_mark.has_mark(one.pid, second)
        assert not landlock_mark.has_mark(os.getpid(), second)
        assert landlock_mark.end_marked(first) == 1
        assert two.poll() is None
        assert landlock_mark.end_marked(landlock_mark.new_mark()) == 0
    finally:
        two.kill()
        two.wait()
        one.wait()


# ---------------------------------------------------------------- work goes on


def test_ordinary_work_is_done(cell: Cell) -> None:
    text = """
        set -e
        echo x >out/a; cp out/a out/b; mv out/b out/c; ln -s a out/l; cat out/l >/dev/null
        mkdir -p out/d/e; rm -r out/d
        printf '#!/bin/sh\\necho ran\\n' >out/tool; chmod +x out/tool; out/tool
        echo err >/dev/stderr; echo out >>/dev/stdout
        head -c 10 /dev/urandom >/dev/null; head -c 10 /dev/zero | cat >/dev/null
        (sleep 0.01 & wait)
        test "$(id -u)" -ge 0; date >/dev/null; sort flow.yaml >/dev/null
        cat /proc/cpuinfo >/dev/null; nproc >/dev/null
    """
    ended, _, after = cell.run(cell.spec("sh", "-c", text))
    assert ended.code == 0, cell.said()
    assert after == Aftermath()
    assert cell.box.text().split() == ["ran", "out"]
    assert (cell.box.folder / "err").read_text() == "err\n"


def test_bash_pipes_and_python_children_work(cell: Cell) -> None:
    if shutil.which("bash", path="/usr/bin:/bin"):
        ended, _, _ = cell.run(cell.spec("bash", "-c", "diff <(echo a) <(echo a) && cat <<<here"))
        assert ended.code == 0, cell.said()
    code = "import subprocess, tempfile; tempfile.TemporaryFile(); subprocess.check_output(['echo', 'child'])"
    ended, _, _ = cell.run(cell.spec(PYTHON, "-c", code))
    assert ended.code == 0, cell.said()


def test_without_grants_only_dagrun_s_own_is_shut(cell: Cell) -> None:
    """`network` without `paths`: files are as for dagrun, but for what is hidden or protected."""
    more: dict[str, Any] = {"read": None, "write": (), "deny": ()}
    assert cell.sh('cat "$OUTSIDE/secret" .env src/code.py && echo x >out/x && echo x >"$OUTSIDE/x"', **more) == 0
    assert cell.sh("echo x >>src/code.py && ls / >/dev/null && echo >/dev/stderr", **more) == 0, cell.said()
    cell.holds("cat .dagrun/journal", **more)
    cell.holds("echo x >>flow.yaml", **more)
    cell.holds("mv .dagrun out/d && mv out/d .dagrun", **more)
    cell.holds("mv flow.yaml out/f && mv out/f flow.yaml", **more)
    ended, _, after = cell.run(cell.spec("sh", "-c", "echo x >new", **more))
    assert ended.code != 0
    assert "nothing new can be made directly in" in after.notes[0]


def test_a_terminal_and_shared_memory_stay_shut_without_grants_too(cell: Cell) -> None:
    master, slave = os.openpty()
    try:
        terminal = os.ttyname(slave)
        for more in ({}, {"read": None, "write": (), "deny": ()}):
            cell.holds(f"echo typed >{terminal}", **more)
            if os.path.isdir("/dev/shm"):
                cell.holds("echo x >/dev/shm/dagrun-test.$$ && rm /dev/shm/dagrun-test.$$", **more)
            cell.holds('f=/proc/$PPID/oom_score_adj && v=$(cat $f) && echo "$v" >$f', **more)
    finally:
        os.close(master)
        os.close(slave)


# ---------------------------------------------------------------- what is refused


def test_a_write_grant_with_something_shut_in_it_is_refused(cell: Cell) -> None:
    for write, what in ((".", ".dagrun"), ("src", ".env.local")):
        with pytest.raises(Refused, match="can't keep out of a write grant") as refused:
            cell.wall.launch(cell.spec("true", write=(write,)))
        assert what in refused.value.message
    (cell.project / "src/deep/.env.local").unlink()
    assert cell.sh("echo x >src/new", write=("src",)) == 0


def test_a_program_that_is_not_granted_is_told_where_it_is(cell: Cell) -> None:
    tool = cell.outside / "bin" / "dagrun-test-tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho tool\n")
    tool.chmod(0o755)
    path = {"PATH": f"{tool.parent}:/usr/bin:/bin"}
    for argv in (("dagrun-test-tool",), (str(tool),), ("../outside/bin/dagrun-test-tool",)):
        with pytest.raises(Refused, match="which is not granted") as refused:
            cell.wall.launch(replace(cell.spec(*argv), env=path))
        assert refused.value.hint == f"add {tool.parent} to permissions.paths.read"
    spec = replace(cell.spec("dagrun-test-tool", read=(".", str(tool.parent))), env=path)
    assert cell.run(spec)[0].code == 0
    # A second one of that name that can be run is taken.
    (cell.project / "out/dagrun-test-tool").write_text("#!/bin/sh\necho second\n")
    (cell.project / "out/dagrun-test-tool").chmod(0o755)
    path["PATH"] = f"{tool.parent}:{cell.project}/out:/bin:/usr/bin"
    assert cell.run(replace(cell.spec("dagrun-test-tool"), env=path))[0].code == 0
    assert cell.box.text().split() == ["tool", "second"]
    # Its interpreter counts as well.
    interpreter = tool.parent / "interpreter"
    shutil.copy("/bin/sh", interpreter)
    (cell.project / "out/script").write_text(f"#!{interpreter}\n")
    (cell.project / "out/script").chmod(0o755)
    with pytest.raises(Refused, match="interpreter"):
        cell.wall.launch(cell.spec("out/script"))


def test_a_refused_launch_leaves_nothing(cell: Cell) -> None:
    every: tuple[dict[str, Any], ...] = ({"write": (".",)}, {"read": ("missing",)}, {"read": ("/proc",)}, {})
    for bad in every:
        with descriptors_kept():
            try:
                cell.wall.discard(cell.wall.launch(cell.spec("true", **bad)))
            except Refused:
                pass


def test_a_launch_that_the_machine_had_no_room_for_is_made_again(cell: Cell) -> None:
    spec = cell.spec("sh", "-c", 'echo x >"$HOME/f"')
    cell.wall.discard(cell.wall.launch(spec))
    assert cell.run(spec)[0].code == 0


def test_a_grant_that_was_swapped_for_a_link_is_refused(cell: Cell) -> None:
    (cell.project / "out").rmdir()
    (cell.project / "out").symlink_to(cell.outside)
    with pytest.raises(Refused, match="symbolic link"):
        cell.wall.launch(cell.spec("true"))


# ---------------------------------------------------------------- the thread


def test_dagrun_keeps_its_rights_and_its_children(cell: Cell) -> None:
    before = set(os.listdir("/proc/self/task"))
    launch, child = cell.start(cell.spec("sleep", "60"))
    # No thread of ours is left that the kernel could still take for the parent.
    assert set(os.listdir("/proc/self/task")) <= before
    assert str(child.pid) in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert (cell.outside / "secret").read_text().startswith("canary")
    os.kill(child.pid, 0)
    status = Path("/proc/self/status").read_text()
    assert "NoNewPrivs:\t0" in status
    assert "Seccomp:\t0" in status or os.environ.get("CI")
    assert cell.wall.terminate(launch, child) == -1
    assert cell.box.plain.terminate(child) == 1
    ended, _ = cell.box.end(child)
    cell.wall.ended(launch, ended)
    assert ended.signal == signal.SIGTERM


def test_a_thread_that_can_t_give_up_everything_starts_nothing(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(22, "no")

    for module, name in (
        (landlock_kernel, "give_up_privileges"),
        (landlock_kernel, "give_up_capabilities"),
        (landlock_kernel, "restrict_this_thread"),
        (seccomp, "install_on_this_thread"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fails)
            launch = cell.wall.launch(cell.spec("sh", "-c", "echo ran >out/ran"))
            assert launch.around is not None
            with pytest.raises(EnvironmentFault):
                launch.around(lambda: pytest.fail("it was started"))
            cell.wall.discard(launch)
    assert not (cell.project / "out/ran").exists()


def test_text_that_is_no_program_is_run_by_sh_in_the_same_cell(cell: Cell) -> None:
    """The second try of a spawn (no `#!`) is confined as the first."""
    (cell.project / "out/tool").write_text('cat "$OUTSIDE/secret" && echo read\necho done\n')
    (cell.project / "out/tool").chmod(0o755)
    assert cell.run(cell.spec("out/tool", script="out/tool"))[0].code == 0
    assert cell.box.text().split() == ["done"]


# ---------------------------------------------------------------- what is proved


def test_what_is_proved_is_what_the_tests_above_show(cell: Cell) -> None:
    proved = cell.wall.proved()
    assert set(proved) == set(GUARANTEES) == HELD | GAPS | CEILINGS
    assert {g for g in GUARANTEES if not proved[g]} == HELD


def nothing(*_: object) -> None:
    """What takes the place of a wall that isn't there."""


@pytest.mark.parametrize(
    ("module", "name", "crossed"),
    [
        (landlock_kernel, "restrict_this_thread", {"fs.read", "fs.write", "fs.deny", "fs.protected", "proc.signal"}),
        (seccomp, "install_on_this_thread", {"net.none", "unix", "ipc", "caps"}),
        (landlock_mark, "others_filter", {"proc.signal"}),
        (landlock_mark, "end_marked", {"kill.tree"}),
    ],
)
def test_a_wall_that_is_not_there_is_found_out(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, module: object, name: str, crossed: set[Guarantee]
) -> None:
    if name == "others_filter":
        monkeypatch.setattr(module, name, lambda: b"\x06\x00\x00\x00\x00\x00\xff\x7f")  # allows everything
    else:
        monkeypatch.setattr(module, name, nothing)
    proved = Landlock(nothing).proved()
    monkeypatch.undo()
    procs.kill_everything()
    judged: set[Guarantee] = {*HELD, "fs.protected"}
    assert {g for g in judged if proved[g]} >= crossed
    assert "opened" in proved["fs.protected"] or name != "restrict_this_thread"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to keep")
def test_capabilities_that_were_kept_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock_kernel, "give_up_capabilities", nothing)
    assert Landlock(nothing).proved()["caps"]


def test_what_dagrun_itself_inherited_is_no_fault_of_landlock() -> None:
    """An editor or a CI runner hands its descriptors down; they are kept from commands, so from the canary too."""
    ask = "from dagrun.sandbox.landlock import Landlock; print(repr(Landlock(lambda pid: None).proved()['fds']))"
    words = ("sh", "-c", 'exec 9</dev/null; exec "$@"', "sh", sys.executable, "-c", ask)
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.stdout == "''\n", done


def test_an_older_or_missing_landlock_proves_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock_kernel, "abi", lambda: 5)
    assert "Landlock 6" in Landlock(nothing).proved()["proc.signal"]
    monkeypatch.setattr(landlock_kernel, "abi", lambda: 2)
    proved = Landlock(nothing).proved()
    assert proved["fs.write"]  # files outside can be truncated
    assert not proved["fs.read"]
    monkeypatch.setattr(landlock_kernel, "abi", lambda: 0)
    assert all(Landlock(nothing).proved().values())


# ---------------------------------------------------------------- with ceilings


def test_ceilings_hold_inside_landlock(cell: Cell) -> None:
    """Its group can't be reached from inside, so the command waits until it was moved in."""
    ceilings = Ceilings("test")
    if ceilings.proved()["pids"] or ceilings.proved()["mem"]:
        pytest.skip(ceilings.proved()["pids"] or ceilings.proved()["mem"])
    bomb = "import os, time\ntry:\n for n in range(50): os.fork() or time.sleep(60)\n"
    bomb += "except OSError: print(n, flush=True)\nos.killpg(0, 9)"
    launch = cell.wall.launch(cell.spec(PYTHON, "-I", "-S", "-c", bomb))
    ceilings.apply(Bounds(pids=10, memory_bytes=100 << 20, file_size_bytes=1 << 20), launch, "test/n/1")
    child = cell.box.plain.spawn(
        launch.argv, launch.env, out_fd=cell.box.out, err_fd=cell.box.err, attempt_id="test/n/1", cwd=launch.cwd,
        around=launch.around,
    )  # fmt: skip
    assert isinstance(child, Child), child
    cell.wall.started(launch, child)
    ended, _ = cell.box.end(child)
    cell.wall.ended(launch, ended)
    after = ceilings.ended(launch, ended)
    assert cell.box.text().split() == ["9"]
    assert after.limit == "pids"


def test_processors_taken_by_affinity_are_not_taken_back(cell: Cell) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor is all there is")
    ceilings = Ceilings("test", {"cpu": "none in this test"})
    widen = "import os, sys; os.sched_setaffinity(0, range(64)); sys.exit(len(os.sched_getaffinity(0)) < 2)"
    for confined in (False, True):
        spec = cell.spec(PYTHON, "-I", "-S", "-c", widen)
        launch = cell.wall.launch(spec) if confined else Launch(argv=spec.argv, env=spec.env, cwd=spec.cwd)
        ceilings.apply(Bounds(cpu=1), launch, "test/n/1")
        child = cell.box.plain.spawn(
            launch.argv, launch.env, out_fd=cell.box.out, err_fd=cell.box.err, attempt_id="test/n/1", cwd=launch.cwd,
            around=launch.around,
        )  # fmt: skip
        assert isinstance(child, Child)
        if confined:
            cell.wall.started(launch, child)
        ended, _ = cell.box.end(child)
        if confined:
            cell.wall.ended(launch, ended)
        ceilings.ended(launch, ended)
        assert (ended.code == 0) is not confined, cell.said()
    assert cell.python(widen) == 0  # without a ceiling affinity is a thread's own business

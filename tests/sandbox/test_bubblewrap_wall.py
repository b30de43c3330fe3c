"""An attempt under bwrap from launch to aftermath: environment, programs, files, network, signals, and its end."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import procs
from dagrun.sandbox.base import SpawnBusy
from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.netproxy import NetProxy
from dagrun.sandbox.wall import Bounds, Refused
from tests.sandbox.bubblewrap_cell import PYTHON, WORD, Cell, ended, until
from tests.sandbox.descriptors import descriptors_kept
from tests.sandbox.test_bubblewrap import AS_ROOT, ROOT, need_bwrap


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    need_bwrap()
    made = Cell(tmp_path)
    with descriptors_kept():
        yield made
    assert not procs.children(os.getpid()), "the attempt left a process behind"
    made.close()


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize(("text", "code"), [("exit 0", 0), ("exit 7", 7), ("exit 125", 125), ("kill -9 $$", 137)])
def test_the_code_is_the_commands_own(text: str, code: int, cell: Cell) -> None:
    ran = cell.sh(text)
    assert (ran.exit.code, ran.exit.signal) == (code, None)
    assert ran.after is not None
    assert (ran.after.outcome, ran.after.error) == ("", "")


def test_sigterm_reaches_the_command_and_not_bwrap(cell: Cell) -> None:
    text = "trap 'echo got it; exit 42' TERM; echo up >out/up; while :; do sleep 0.05; done"
    launch = cell.wall.launch(cell.spec("/bin/sh", "-c", text))
    child, out, err = cell.start(launch)
    cell.wall.started(launch, child)
    until((cell.project / "out/up").exists, "the command is up")
    assert cell.wall.terminate(launch, child) >= 1
    ran = cell.finish(child, out, err)
    cell.wall.ended(launch, ran.exit)
    assert (ran.out, ran.exit.code) == ("got it\n", 42)


def test_sigterm_wakes_what_is_stopped(cell: Cell) -> None:
    text = "trap 'exit 43' TERM; echo up >out/up; kill -STOP $$; sleep 100"
    launch = cell.wall.launch(cell.spec("/bin/sh", "-c", text))
    child, out, err = cell.start(launch)
    cell.wall.started(launch, child)
    until((cell.project / "out/up").exists, "the command is up")

    def stopped() -> bool:
        below = procs.descendants(child.pid).values()
        return any(who.state == "T" for who in below)

    until(stopped, "it stopped itself")
    cell.wall.terminate(launch, child)
    ran = cell.finish(child, out, err)
    cell.wall.ended(launch, ran.exit)
    assert ran.exit.code == 43


def test_sigkill_ends_what_ignores_everything(cell: Cell) -> None:
    text = (
        "trap '' TERM INT HUP; (trap '' TERM; setsid sh -c 'echo $$ >out/a; exec sleep 1000' & ); echo $$ >out/b;"
        " while :; do sleep 1; done"
    )
    launch = cell.wall.launch(cell.spec("/bin/sh", "-c", text))
    child, out, err = cell.start(launch)
    cell.wall.started(launch, child)
    until(lambda: (cell.project / "out/a").exists() and (cell.project / "out/b").exists(), "both are up")
    below = [(pid, who.start_ticks) for pid, who in procs.descendants(child.pid).items()]
    assert len(below) >= 3  # process 1, the shell, the daemon
    assert cell.wall.terminate(launch, child) >= 2
    assert not ended(child, 0.1)
    assert cell.wall.kill(launch, child) >= 4
    ran = cell.finish(child, out, err)
    cell.wall.ended(launch, ran.exit)
    assert ran.exit.signal == signal.SIGKILL
    assert procs.wait_dead(below, 5.0) == []


def test_a_command_that_has_not_begun_is_killed_at_once(cell: Cell) -> None:
    """A launch that is held waits for its door: nothing inside could hear a SIGTERM."""
    proxy = NetProxy(cell.plain.exempt)
    cell.wall = Bubblewrap(cell.plain.exempt, proxy)
    launch = cell.wall.launch(cell.spec("/bin/sh", "-c", "touch out/ran", network=("localhost",)))
    child, out, err = cell.start(launch)
    assert not ended(child, 0.05)
    cell.wall.terminate(launch, child)
    ran = cell.finish(child, out, err)
    cell.wall.ended(launch, ran.exit)
    proxy.close()
    assert ran.exit.signal == signal.SIGKILL
    assert not (cell.project / "out/ran").exists()


ENGINE = """
import sys
from pathlib import Path
from tests.sandbox.bubblewrap_cell import Cell
cell = Cell(Path(sys.argv[1]))
launch = cell.wall.launch(cell.spec("/bin/sh", "-c", "setsid sleep 1000 & echo up >out/up; sleep 1000"))
child, out, err = cell.start(launch)
cell.wall.started(launch, child)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_when_dagrun_is_killed_all_of_it_dies(tmp_path: Path) -> None:
    need_bwrap()
    procs.become_subreaper()
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as engine:
        assert engine.stdout is not None
        pid = int(engine.stdout.readline())
        until((tmp_path / "project/out/up").exists, "the command is up")
        tree = {pid: procs.stat(pid), **procs.descendants(pid)}
        assert len(tree) >= 4
        engine.kill()
        engine.wait()
    left = procs.wait_dead([(p, who.start_ticks) for p, who in tree.items() if who is not None], 5.0)
    procs.kill_everything()
    Path(f"/dev/shm/dagrun-test-{engine.pid}").unlink()
    assert left == []


def test_a_failure_of_bwrap_itself_is_told(cell: Cell, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: it fails' >&2\nexit 1\n")
    broken.chmod(0o755)
    cell.wall = Bubblewrap(cell.plain.exempt, path=str(broken))
    ran = cell.sh("exit 0")
    assert ran.after is not None
    assert (ran.after.outcome, ran.exit.code) == ("denied", 1)
    assert "the sandbox could not be made" in ran.after.error


def test_a_bwrap_that_went_away_is_a_fault_of_the_machine(cell: Cell) -> None:
    cell.wall = Bubblewrap(cell.plain.exempt, path="/nowhere/bwrap")
    with pytest.raises(EnvironmentFault):
        cell.sh("exit 0")


# ---------------------------------------------------------------- environment


def test_the_environment_is_the_given_one(cell: Cell) -> None:
    env = {"PATH": "/usr/bin:/bin", "TOKEN": "for this node", "TMPDIR": "/var/tmp", "HOME": "/elsewhere"}
    ran = cell.run(cell.spec("/usr/bin/env", env=env))
    got = dict(line.split("=", 1) for line in ran.out.splitlines())
    assert got.keys() == {"PATH", "TOKEN", "HOME", "TMPDIR", "PWD"}
    assert (got["TOKEN"], got["PWD"], got["TMPDIR"]) == ("for this node", str(cell.project), "/tmp")
    listing = cell.sh("ls -A $HOME $TMPDIR; touch $HOME/a $TMPDIR/b && stat -c %a $HOME")
    assert "700" in listing.out


def test_process_1_has_no_other_variables_either(cell: Cell) -> None:
    ran = cell.sh("tr '\\0' '\\n' </proc/1/environ")
    names = {line.partition("=")[0] for line in ran.out.splitlines()}
    assert names == {"PATH", "DAGRUN_ATTEMPT_ID", "HOME", "TMPDIR"}


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GCONV_PATH", "GLIBC_TUNABLES"])
def test_variables_that_load_code_never_reach_bwrap(name: str, cell: Cell) -> None:
    with pytest.raises(Refused, match=name):
        cell.run(cell.spec("/bin/true", env={"PATH": "/bin", name: "/tmp/evil.so"}))


def test_the_cookie_finds_it_from_outside(cell: Cell) -> None:
    launch = cell.wall.launch(cell.spec("/bin/sh", "-c", "echo up >out/up; sleep 1000"))
    child, out, err = cell.start(launch)
    cell.wall.started(launch, child)
    until((cell.project / "out/up").exists, "the command is up")

    def cookies() -> set[bytes | None]:
        pids = (child.pid, *procs.descendants(child.pid))
        return {procs.environ(pid).get(b"DAGRUN_ATTEMPT_ID") for pid in pids}

    # A process that is just becoming another program has none for a moment.
    until(lambda: cookies() == {b"run/node/1"}, "all of them carry it")
    cell.wall.kill(launch, child)
    cell.wall.ended(launch, cell.finish(child, out, err).exit)


# ---------------------------------------------------------------- programs


def test_a_program_that_is_nowhere_is_127(cell: Cell) -> None:
    ran = cell.run(cell.spec("no-such-program", "x"))
    assert ran.exit.code == 127
    assert ran.err == "dagrun: no-such-program: command not found in PATH=/usr/bin:/bin\n"


@pytest.mark.parametrize(("name", "said"), [("./nothing", "no such file"), ("./src", "is a directory")])
def test_a_path_that_is_no_program_is_127(name: str, said: str, cell: Cell) -> None:
    ran = cell.run(cell.spec(name))
    assert (ran.exit.code, ran.err) == (127, f"dagrun: {name}: {said}\n")


def test_a_file_that_is_not_executable_says_so(cell: Cell) -> None:
    assert "chmod +x" in cell.run(cell.spec("./src/given")).err


def test_a_program_outside_the_grants_is_refused_with_where_it_is(cell: Cell) -> None:
    tool = cell.base / "outside/bin/tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho it ran\n")
    tool.chmod(0o755)
    env = {"PATH": f"{tool.parent}:/usr/bin"}
    with pytest.raises(Refused) as refused:
        cell.run(cell.spec("tool", env=env))
    assert refused.value.message == f"tool: it is at {tool}, which is not granted"
    assert refused.value.hint == f"add {cell.base}/outside to permissions.paths.read"
    granted = cell.run(cell.spec("tool", env=env, read=(".", f"{cell.base}/outside")))
    assert granted.out == "it ran\n"
    (cell.project / "link").symlink_to(tool)
    with pytest.raises(Refused, match="which is not granted"):
        cell.run(cell.spec("./link"))


def test_an_interpreter_outside_the_grants_is_named(cell: Cell) -> None:
    interpreter = cell.base / "outside/bin/python9"
    interpreter.parent.mkdir()
    interpreter.write_text("#!/bin/sh\n")
    interpreter.chmod(0o755)
    script = cell.project / "script"
    script.write_text(f"#!{interpreter}\n")
    script.chmod(0o755)
    with pytest.raises(Refused, match="its interpreter"):
        cell.run(cell.spec("./script"))


def test_the_first_program_that_is_seen_inside_is_taken(cell: Cell) -> None:
    tool = cell.base / "outside/echo"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    ran = cell.run(cell.spec("echo", "hello", env={"PATH": f"{tool.parent}:/usr/bin"}))
    assert (ran.out, ran.exit.code) == ("hello\n", 0)


def test_a_script_without_a_first_line_is_run_by_sh(cell: Cell) -> None:
    script = cell.project / "script"
    script.write_text("echo $1\n")
    script.chmod(0o755)
    assert cell.run(cell.spec("./script", "x y", script="./script 'x y'")).out == "x y\n"


@pytest.mark.parametrize("word", ["--ro-bind", "--", "$(touch out/evil)", "`id`", "a\nb", "--help", "é ☃", ""])
def test_words_of_a_command_are_never_options_of_bwrap(word: str, cell: Cell) -> None:
    ran = cell.run(cell.spec("/usr/bin/printf", "<%s>", word))
    assert ran.out == f"<{word}>"
    assert not (cell.project / "out/evil").exists()


# ---------------------------------------------------------------- files


def test_what_is_granted_works(cell: Cell) -> None:
    ran = cell.sh("cat src/given; echo; echo new >out/file; mkdir out/d; mv out/file out/d/; cat out/d/file; ls")
    assert ran.out.split() == [WORD, "new", "out", "repo", "src"], ran


def test_missing_write_folders_of_the_project_are_made(cell: Cell) -> None:
    ran = cell.sh("echo x >build/deep/file", write=("build/deep",))
    assert (ran.exit.code, (cell.project / "build/deep/file").read_text()) == (0, "x\n")


def test_a_write_folder_inside_nothing_readable(cell: Cell) -> None:
    ran = cell.sh("pwd; ls -A; cat src/given; echo x >out/f", read=(), write=("out",))
    assert ran.out.split() == [str(cell.project), "out"]
    assert "No such file" in ran.err
    assert (cell.project / "out/f").exists()


def test_single_files_and_globs(cell: Cell) -> None:
    (cell.project / "src/a.py").write_text("A")
    (cell.project / "src/b.txt").write_text("B")
    ran = cell.sh("cat src/*; echo x >src/given", read=("src/*.py",), write=("src/given",))
    assert ran.out.strip() == f"A{WORD}"
    assert (cell.project / "src/given").read_text() == "x\n"
    assert ran.err == ""


def test_a_denied_file_can_neither_be_read_nor_moved_nor_linked(cell: Cell) -> None:
    (cell.project / "out/secret.txt").write_text(WORD)
    text = "cat out/secret.txt; mv out/secret.txt out/x; ln out/secret.txt out/y; rm -f out/secret.txt; cat out/*"
    ran = cell.sh(text, deny=("secret.*",))
    assert WORD not in ran.out
    assert (cell.project / "out/secret.txt").read_text() == WORD
    shown = cell.sh("cat out/secret.txt")
    assert shown.out == WORD


def test_a_denied_folder_is_shut(cell: Cell) -> None:
    ran = cell.sh("ls src/deep; echo $?; touch src/deep/x; cat src/given", deny=("src/deep/",))
    assert ran.out.split() == ["2", WORD]
    assert not (cell.project / "src/deep/x").exists()


def test_a_key_is_seen_when_it_is_named(cell: Cell) -> None:
    assert cell.sh("cat .env").exit.code == 1
    assert cell.sh("cat .env", read=(".", ".env")).out == WORD
    assert cell.sh("cat .env", read=(".env",)).out == WORD


def test_the_exchange_is_there_though_its_folder_is_hidden(cell: Cell) -> None:
    folder = cell.project / ".dagrun/exchange/node.1.d"
    other = cell.project / ".dagrun/exchange/other.1.d"
    for made in (folder, other):
        made.mkdir(parents=True)
        (made / "in").write_text("input")
    text = f"cat {folder}/in; echo; echo x >{folder}/out; ls -A {cell.project}/.dagrun {folder.parent}; cat {other}/in"
    ran = cell.sh(text, exchange=str(folder))
    assert ran.out.split() == ["input", f"{cell.project}/.dagrun:", "exchange", f"{folder.parent}:", folder.name]
    assert (folder / "out").read_text() == "x\n"


def test_dagruns_folder_can_be_neither_filled_nor_moved(cell: Cell) -> None:
    text = "echo x >.dagrun/new; mv .dagrun old; rm -rf .dagrun; mkdir -p .dagrun/y; echo done"
    ran = cell.sh(text, write=(".",))
    assert ran.out == "done\n"
    assert os.listdir(cell.project / ".dagrun") == ["journal"]
    assert ran.after is not None
    assert ran.after.outcome == ""


def test_an_inner_write_folder_of_a_read_folder(cell: Cell) -> None:
    (cell.project / "src/gen").mkdir()
    ran = cell.sh("echo x >src/gen/f && echo y >src/f", write=("src/gen",))
    assert (cell.project / "src/gen/f").exists()
    assert not (cell.project / "src/f").exists()
    assert ran.exit.code != 0


@pytest.mark.parametrize("size_mib", [63, 65])
def test_shared_memory_is_bounded(size_mib: int, cell: Cell) -> None:
    ran = cell.sh(f"head -c {size_mib}M /dev/zero >/dev/shm/fill")
    assert (ran.exit.code == 0) == (size_mib < 64), ran


@pytest.mark.parametrize("more", [{}, {"read": None, "write": ()}], ids=["paths", "network only"])
def test_memory_is_not_to_be_had_as_files_among_the_devices(more: dict[str, object], cell: Cell) -> None:
    """The folder of the devices is one in memory, half of all that there is."""
    ran = cell.sh("head -c 1000000 /dev/zero > /dev/fill; ls /dev/fill", **more)
    assert ran.exit.code != 0, ran
    assert "Read-only file system" in ran.err, ran
    works = "echo > /dev/null && head -c 9 /dev/urandom > /dev/shm/x && echo said > /dev/stdout"
    assert cell.sh(works, **more).out == "said\n"


def test_the_root_and_system_folders_are_read_only(cell: Cell) -> None:
    ran = cell.sh("for d in / /usr /etc /run /var /proc/self; do touch $d/x 2>/dev/null && echo $d; done; ls /sys")
    assert ran.out == ""


def test_a_folder_to_start_in_that_is_not_granted_is_empty(cell: Cell) -> None:
    ran = cell.sh("pwd; ls -A", read=("src",), write=(), cwd=str(cell.project / "repo"))
    assert ran.out.split() == [str(cell.project / "repo")]


def test_a_folder_to_start_in_that_is_not_there(cell: Cell) -> None:
    ran = cell.sh("pwd", cwd=str(cell.project / "nowhere"))
    assert (ran.exit.code, ran.out) == (127, "")
    assert "can't enter the directory" in ran.err


def test_a_project_behind_a_link(cell: Cell) -> None:
    link = cell.base / "link"
    link.symlink_to(cell.project)
    ran = cell.sh("pwd; cat src/given; echo x >out/f", project=str(link), cwd=str(link))
    assert ran.out.split() == [str(cell.project), WORD]


@pytest.mark.parametrize("name", ["with space", "ünï", "-dash", "--bind", "$", "quo'te", 'quo"te', "a;b", "%s"])
def test_hostile_names_of_folders(name: str, cell: Cell) -> None:
    (cell.project / name).mkdir()
    ran = cell.sh(
        'echo x >"$NAME/f" && cat "./$NAME/f"', write=(f"./{name}",), env={"PATH": "/bin", "NAME": f"./{name}"}
    )
    assert ran.out == "x\n", ran
    assert (cell.project / name / "f").exists()


# ---------------------------------------------------------------- files not held


def test_without_paths_files_are_as_they_are(cell: Cell) -> None:
    text = f"cat {cell.base}/outside/secret; echo; echo x >src/new; ls {cell.project}/.dagrun; echo $HOME $TMPDIR"
    ran = cell.sh(text, read=None, write=())
    assert ran.out.split() == [WORD, "/dev/shm/home", "/dev/shm/tmp"]
    assert (cell.project / "src/new").exists()


def test_without_paths_what_is_protected_still_is(cell: Cell) -> None:
    (cell.project / ".git/hooks").mkdir(parents=True)
    text = (
        "echo evil >.git/hooks/x; mv .git old; mv ../project ../moved; echo evil >repo/flow.yaml;"
        " mv repo/flow.yaml repo/f; touch $HOME/a $TMPDIR/b && echo done"
    )
    ran = cell.sh(text, read=None, write=())
    assert ran.out == "done\n"
    assert os.listdir(cell.project / ".git/hooks") == []
    assert (cell.project / "repo/flow.yaml").read_text() == WORD
    assert not (cell.base / "moved").exists()


@pytest.mark.skipif(not AS_ROOT, reason="who is not root could not write there anyway")
def test_without_paths_the_kernel_is_not_for_root_to_set(cell: Cell) -> None:
    text = "for f in /sys/kernel/mm/ksm/run /proc/sys/kernel/core_pattern; do cat $f >$f && echo wrote $f; done 2>&1"
    free = cell.run_free(cell.spec("/bin/sh", "-c", "cat /proc/sys/kernel/hostname >/proc/sys/kernel/hostname"))
    assert free.exit.code == 0
    assert "wrote" not in cell.sh(text, read=None, write=()).out


# ---------------------------------------------------------------- network


CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5); print('connected')"


def test_all_of_the_network(cell: Cell) -> None:
    argv = (PYTHON, "-I", "-c", CONNECT, str(cell.port))
    assert cell.run(cell.spec(*argv, network="any")).out == "connected\n"
    assert cell.run(cell.spec(*argv, network="none")).out == ""
    assert cell.sh("cat /etc/resolv.conf /etc/hosts", network="any").exit.code == 0


def test_without_network_there_is_only_loopback(cell: Cell) -> None:
    ran = cell.sh("tail -n +3 /proc/net/dev")
    assert [line.split(":")[0].strip() for line in ran.out.splitlines()] == ["lo"]


class Server:
    """A server of this machine that answers one word to whoever comes."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            with client, suppress(OSError):  # one that goes away early ends nothing for the others
                client.settimeout(5)
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join(5)


GET = """
import os, sys, urllib.request, urllib.error
for port in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read().decode())
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def test_a_list_of_hosts(cell: Cell) -> None:
    proxy = NetProxy(cell.plain.exempt)
    cell.wall = Bubblewrap(cell.plain.exempt, proxy)
    listed, other = Server(), Server()
    try:
        ports = (str(listed.port), str(other.port))
        spec = cell.spec(PYTHON, "-I", "-c", GET, *ports, network=(f"127.0.0.1:{listed.port}",))
        ran = cell.run(spec)
        assert ran.out.split() == ["hello", "403"], ran
        assert ran.after is not None
        assert [note for note in ran.after.notes if f"127.0.0.1:{other.port}" in note]
        past = cell.spec(PYTHON, "-I", "-c", CONNECT, ports[0], network=(f"127.0.0.1:{listed.port}",))
        assert "refused" in cell.run(past).err
    finally:
        listed.close()
        other.close()
        proxy.close()
        cell.plain.tidy()


def test_a_list_without_a_proxy_is_refused(cell: Cell) -> None:
    with pytest.raises(Refused, match="list of hosts"):
        cell.sh("true", network=("example.org",))


class BrokenProxy(NetProxy):
    """A proxy that can make no door."""

    def open(self, pid: int, allow: tuple[str, ...], key: str) -> None:
        raise EnvironmentFault("no door can be made")


def test_a_command_whose_door_can_not_be_made_never_runs(cell: Cell) -> None:
    cell.wall = Bubblewrap(cell.plain.exempt, BrokenProxy(cell.plain.exempt))
    ran = cell.sh("touch out/ran", network=("localhost",))
    assert ran.after is not None
    assert (ran.after.outcome, ran.after.error) == ("failed", "no door can be made")
    assert not (cell.project / "out/ran").exists()


# ---------------------------------------------------------------- short of something


def test_short_of_descriptors(cell: Cell) -> None:
    spec = cell.spec("/bin/true")
    outcomes = set()
    for room in (0, 1, 2, 3, 5, 8, 13, 21, 40):
        with descriptors_kept(), full_table(room):
            try:
                cell.wall.discard(cell.wall.launch(spec))
                outcomes.add(0)
            except SpawnBusy as busy:
                outcomes.add(busy.errno)
    assert outcomes == {0, errno.EMFILE}


@contextmanager
def full_table(room: int) -> Iterator[None]:
    """Only `room` descriptors can still be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        for fd in taken[:room]:
            os.close(fd)
        del taken[:room]
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_processors_can_not_be_taken_back(cell: Cell) -> None:
    """Where cpu is held by affinity, a command must not widen it."""
    code = "import os; os.sched_setaffinity(0, os.sched_getaffinity(0)); print('set')"
    assert cell.run(cell.spec(PYTHON, "-I", "-c", code)).out == "set\n"
    held = cell.run(cell.spec(PYTHON, "-I", "-c", code, bounds=Bounds(cpu=1.0)))
    assert "PermissionError" in held.err

"""Real commands: how they start, what they inherit, how they end."""

from __future__ import annotations

import errno
import os
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dagrun.sandbox import procs
from dagrun.sandbox.base import NOTHING, Exit, Sandbox, SpawnBusy, SpawnFailed

from .conftest import Box
from .descriptors import descriptors, descriptors_kept


def test_exit_codes_and_signals_are_told_apart(box: Box) -> None:
    sandbox: Sandbox = box.plain  # for the type checker: plain keeps the protocol
    assert sandbox is box.plain
    for text, code, number in (("exit 0", 0, None), ("exit 137", 137, None), ("kill -9 $$", None, 9)):
        ended, swept = box.end(box.sh(text))
        assert (ended.code, ended.signal) == (code, number)
        assert swept == NOTHING


def test_output_goes_to_the_files_and_stdin_is_empty(box: Box) -> None:
    ended, _ = box.end(box.sh("cat; echo out; echo err >&2"))
    assert ended.code == 0
    assert box.text() == "out\n"
    assert (box.folder / "err").read_text() == "err\n"


def test_closing_stdout_early_is_no_error(box: Box) -> None:
    ended, _ = box.end(box.sh("exec >&- 2>&-; exit 4"))
    assert ended.code == 4


def test_the_command_runs_in_its_directory_and_the_engine_stays(box: Box) -> None:
    here = os.getcwd()
    (box.folder / "tool").write_text("#!/bin/sh\npwd\n")
    (box.folder / "tool").chmod(0o755)
    ended, _ = box.end(box.spawn("./tool"))
    assert ended.code == 0
    assert box.text() == f"{box.folder}\n"
    assert os.getcwd() == here


def test_the_program_is_looked_up_in_the_path_of_the_child(box: Box) -> None:
    (box.folder / "dagrun-test-tool").write_text("#!/bin/sh\necho mine\n")
    (box.folder / "dagrun-test-tool").chmod(0o755)
    assert isinstance(box.try_spawn("dagrun-test-tool"), SpawnFailed)
    box.end(box.spawn("dagrun-test-tool", env={"PATH": f"{box.folder}:/usr/bin:/bin"}))
    assert box.text() == "mine\n"


def test_a_command_inherits_default_signals_no_mask_and_three_descriptors(box: Box) -> None:
    """Also when dagrun runs under nohup, with signals blocked, with descriptors open."""
    leak = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(leak, True)  # as a caller's descriptor comes to dagrun
    procs.keep_inherited_fds()
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        # No shell for the first: some clear their mask.
        box.end(box.spawn("grep", "-E", "SigBlk|SigIgn", "/proc/self/status"))
        child = box.sh("ls /proc/self/fd | wc -l; ps -o sid= -p $$")
        box.end(child)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGHUP, old[0])
        signal.signal(signal.SIGTTOU, old[1])
        os.close(leak)
    _, blocked, _, ignored, fds, session = box.text().split()
    assert int(blocked, 16) == 0
    assert int(ignored, 16) & ~(0b11 << 31) == 0  # 32 and 33 are the C library's own
    assert int(fds) == 4  # stdin, stdout, stderr and the listing itself
    assert int(session) == child.pid


@pytest.mark.parametrize(
    ("argv", "number", "words"),
    [
        (("no-such-program",), errno.ENOENT, "no-such-program: command not found in PATH="),
        (("./nothing",), errno.ENOENT, "./nothing: no such file"),
        (("./data",), errno.EACCES, "not executable (chmod +x it?)"),
        (("data",), errno.EACCES, "is not executable (chmod +x it?)"),
        (("./lost",), errno.ENOENT, "its interpreter /no/such/python is missing"),
        (("./bare",), errno.ENOEXEC, "a first line like #!/bin/sh"),
        (("/tmp",), errno.EACCES, "it is a directory"),
        (("true", "x" * 200_000), errno.E2BIG, "too long for the system"),
        (("a\0b",), errno.EINVAL, ""),
        (("true", "a\0b"), errno.EINVAL, "null"),
        ((), errno.EINVAL, "the command is empty"),
        (("",), errno.EINVAL, "the command is empty"),
    ],
)
def test_a_command_that_cannot_start_is_data(box: Box, argv: tuple[str, ...], number: int, words: str) -> None:
    for name, text, mode in (("data", "x", 0o644), ("lost", "#!/no/such/python\n", 0o755), ("bare", "exit 3\n", 0o755)):
        (box.folder / name).write_text(text)
        (box.folder / name).chmod(mode)
    failed = box.try_spawn(*argv, env={"PATH": f"/usr/bin:/bin:{box.folder}"})
    assert isinstance(failed, SpawnFailed)
    assert (failed.errno, words in failed.message) == (number, True), failed


def test_a_missing_directory_is_data(box: Box) -> None:
    failed = box.try_spawn("true", cwd="no/such")
    assert failed == SpawnFailed(errno.ENOENT, "can't enter the directory 'no/such': No such file or directory")


def test_a_script_without_interpreter_runs_as_in_a_shell(box: Box) -> None:
    (box.folder / "bare").write_text("echo $1; exit 3\n")
    (box.folder / "bare").chmod(0o755)
    child = box.try_spawn("./bare", "arg", script="./bare arg")
    assert not isinstance(child, SpawnFailed)
    assert box.end(child)[0].code == 3
    assert box.text() == "arg\n"


def test_no_descriptor_left_is_busy_and_leaks_neither_process_nor_descriptor(box: Box) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    first = None
    with descriptors_kept():
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors().total() + 20, hard))
        try:
            with pytest.raises(OSError, match="Too many"):
                while True:
                    taken.append(os.dup(0))
            first = box.spawn("/bin/true", name="a")  # the spare descriptor carries this one
            with pytest.raises(SpawnBusy) as caught:
                box.try_spawn("/bin/true", name="b")
            assert caught.value.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        assert box.end(first)[0].code == 0
        assert box.end(box.spawn("/bin/true"))[0].code == 0


def test_no_process_left_is_busy(tmp_path: Path) -> None:
    """RLIMIT_NPROC does not bind root, so the test steps down in a process of its own."""
    if os.getuid() != 0:
        pytest.skip("needs root to take a user id that runs nothing else")
    code = """
import ctypes, os, resource
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.base import SpawnBusy
os.setgid(54321)
os.setuid(54321)
box = Plain()
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    box.spawn(("/bin/true",), {}, out_fd=1, err_fd=2, attempt_id="a")
except SpawnBusy as busy:
    print(busy.errno)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd="/", check=False)
    assert (made.stdout, made.stderr) == (f"{errno.EAGAIN}\n", "")


def test_the_peak_of_a_small_command_is_unknown_and_of_a_big_one_its_own(box: Box) -> None:
    assert box.end(box.spawn("true"))[0].max_rss_bytes is None
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    code = f"b = bytearray({own} + (64 << 20)); b[::4096] = b'x' * len(b[::4096])"
    ended, _ = box.end(box.spawn(sys.executable, "-c", code))
    assert ended.max_rss_bytes is not None
    assert ended.max_rss_bytes > own + (64 << 20)
    assert ended.cpu_ms > 0


def test_thousands_of_attempts_leak_nothing(box: Box) -> None:
    with descriptors_kept():
        for _ in range(200):
            ended, swept = box.end(box.spawn("/bin/true"))
            assert (ended.code, swept) == (0, NOTHING)
    assert Exit(0, None, None, 0)._fields == ("code", "signal", "max_rss_bytes", "cpu_ms")


def test_a_machine_without_proc_is_refused_in_words(tmp_path: Path) -> None:
    code = "from dagrun.sandbox.plain import Plain; from dagrun.errors import EnvironmentFault\n"
    code += "try: Plain()\nexcept EnvironmentFault as fault: print(fault.message, '|', fault.hint)"
    # in a mount namespace of its own: the machine keeps its /proc
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    without = f"mount -t tmpfs none /proc && exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    if subprocess.run([*alone, "mount -t tmpfs none /proc"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    done = subprocess.run([*alone, without], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("there is no /proc here")
    assert "mount -t proc proc /proc" in done.stdout

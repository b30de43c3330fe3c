"""Written ceilings on real processes: the whole tree is counted, and what ran into one says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dagrun.sandbox import cgroup, procs
from dagrun.sandbox.base import Child, Exit
from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.ceilings import Ceilings, _in, _unit
from dagrun.sandbox.wall import NO_BOUNDS, NOTHING_MORE, Aftermath, Bounds, Guarantee, Launch, Spec

from .conftest import Box, until, written_pids

MIB = 1 << 20
USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
PYTHON = sys.executable


@pytest.fixture
def ceilings() -> Iterator[Ceilings]:
    made = Ceilings("test-run")
    yield made
    made.close()
    assert not groups(made), "the test left a control group behind"


def groups(ceilings: Ceilings) -> list[str]:
    """The groups that this process made and has not removed."""
    folders = {place.folder for place in ceilings._places().values()}
    mark = f".{os.getpid()}."
    return [f"{folder}/{n}" for folder in folders for n in os.listdir(folder) if n.startswith("dagrun-") and mark in n]


def needs(ceilings: Ceilings, guarantee: Guarantee) -> None:
    """Skip where this machine has no control groups for us; never as root of a CI machine."""
    why = ceilings.proved()[guarantee]
    if why and os.environ.get("CI") and os.geteuid() == 0 and os.access("/sys/fs/cgroup", os.W_OK):
        pytest.fail(f"{guarantee} must hold here: {why}")
    if why:
        pytest.skip(why)


def launch_of(box: Box, *argv: str) -> Launch:
    return Launch(argv=argv, env={"PATH": os.environ["PATH"], "DAGRUN_ATTEMPT_ID": "test/n/1"}, cwd=str(box.folder))


def spawn(box: Box, launch: Launch) -> Child:
    child = box.plain.spawn(
        launch.argv,
        launch.env,
        out_fd=box.out,
        err_fd=box.err,
        attempt_id="test/n/1",
        cwd=launch.cwd,
        fds=launch.fds,
        around=launch.around,
    )
    assert isinstance(child, Child), child
    return child


def run(box: Box, ceilings: Ceilings, bounds: Bounds, *argv: str) -> tuple[Exit, Aftermath]:
    launch = ceilings.apply(bounds, launch_of(box, *argv), "test/n/1") if bounds else launch_of(box, *argv)
    ended, _ = box.end(spawn(box, launch))
    return ended, ceilings.ended(launch, ended)


def sh(box: Box, ceilings: Ceilings, bounds: Bounds, text: str) -> tuple[Exit, Aftermath]:
    return run(box, ceilings, bounds, "sh", "-c", text)


# ---------------------------------------------------------------- memory

EATER = "import sys; x = bytearray(int(sys.argv[1]) << 20); x[::4096] = b'x' * len(x[::4096])"


def test_memory_ends_what_takes_more_and_names_limit_and_peak(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "mem")
    control, nothing = run(box, ceilings, NO_BOUNDS, PYTHON, "-c", EATER, "100")
    assert (control.code, nothing.limit) == (0, "")
    ended, after = run(box, ceilings, Bounds(memory_bytes=64 * MIB), PYTHON, "-c", EATER, "100")
    assert ended.signal == signal.SIGKILL
    assert after.limit == "memory"
    assert after.error == "memory: used its limit of 64 MiB (peak 64 MiB)"
    assert after.peak_memory_bytes is not None
    assert 60 * MIB < after.peak_memory_bytes <= 64 * MIB


def test_memory_below_its_limit_only_has_a_peak(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "mem")
    ended, after = run(box, ceilings, Bounds(memory_bytes=200 * MIB), PYTHON, "-c", EATER, "60")
    assert (ended.code, after.limit, after.error) == (0, "", "")
    assert after.peak_memory_bytes is not None
    assert after.peak_memory_bytes > 60 * MIB


def test_memory_counts_the_whole_tree(box: Box, ceilings: Ceilings) -> None:
    """Four children that each stay below the limit: a limit per process would let them all live.

    They are counted once each has taken what it could: one that came to that may be killed for the next.
    """
    needs(ceilings, "mem")
    answer = "; print(flush=True); sys.stdin.readline()" * 2
    code = f"""
import subprocess, sys
kids = [subprocess.Popen([sys.executable, "-c", {EATER + answer!r}, "40"], bufsize=0,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
for kid in kids:
    kid.stdout.readline()
for kid in kids:
    try:
        kid.stdin.write(b"\\n")
    except BrokenPipeError:
        pass
print(sum(bool(kid.stdout.readline()) for kid in kids), flush=True)
for kid in kids:
    kid.kill()
"""
    run(box, ceilings, NO_BOUNDS, PYTHON, "-c", code)
    _, after = run(box, ceilings, Bounds(memory_bytes=100 * MIB), PYTHON, "-c", code)
    assert after.limit == "memory"
    free, *held = map(int, box.text().split())  # nothing, if the kernel chose the parent
    assert free == 4
    assert not held or held[0] < 4


KEEPER = """
import os, time
open("up", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("key", ["test/n/1", "test/other/1"])
def test_what_is_one_attempt_has_one_ceiling(box: Box, ceilings: Ceilings, key: str) -> None:
    """A tool worker and a server beside it: what one has taken, the other can't have."""
    needs(ceilings, "mem")
    one, bounds = key == "test/n/1", Bounds(memory_bytes=80 * MIB, pids=50)
    kept = ceilings.apply(bounds, launch_of(box, PYTHON, "-c", EATER + KEEPER, "50"), key)
    keeper = spawn(box, kept)
    until((box.folder / "up").exists, "the first has its memory")
    assert ceilings.passed(kept, failed=True) == NOTHING_MORE
    assert len(groups(ceilings)) == len(ceilings._places()) - 1  # none for the processor
    assert run(box, ceilings, bounds, PYTHON, "-c", EATER, "50")[1].limit == ("memory" if one else "")
    assert ceilings.passed(kept, failed=False).limit == ("memory" if one else "")
    (box.folder / "go").touch()
    ended, _ = box.end(keeper)
    assert ceilings.ended(kept, ended).limit == ("memory" if one else "")


def test_the_number_of_one_attempt_leaves_room_for_every_holder(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "pids")
    bounds, made = Bounds(pids=20), []
    for _ in range(2):
        launch = replace(launch_of(box, "sh", "-c", "read x < go"), backend="bubblewrap")
        made.append(ceilings.apply(bounds, launch, "test/n/1"))
    (place,) = [g for g in groups(ceilings) if "pids" in g]
    assert Path(place, "pids.max").read_text().strip() == "24"
    for launch in made:
        assert ceilings.ended(launch, Exit(0, None, None, 0)) == NOTHING_MORE


def test_memory_counts_what_is_written_to_a_tmpfs(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "mem")
    if not os.path.ismount("/dev/shm") or not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm to write to")
    file = Path(f"/dev/shm/dagrun-test-{os.getpid()}")
    try:
        _, after = sh(box, ceilings, Bounds(memory_bytes=32 * MIB), f"exec head -c {96 * MIB} /dev/zero >{file}")
        assert file.stat().st_size < 64 * MIB
    finally:
        file.unlink()
    assert after.limit == "memory"


def test_memory_is_over_its_limit_even_when_the_command_shrugs(box: Box, ceilings: Ceilings) -> None:
    """Part of its tree was killed for it: what it says then can't be trusted."""
    needs(ceilings, "mem")
    (box.folder / "eater.py").write_text(EATER)
    ended, after = sh(box, ceilings, Bounds(memory_bytes=32 * MIB), f"{PYTHON} eater.py 100; exit 0")
    assert ended.code == 0
    assert after.limit == "memory"


# ---------------------------------------------------------------- processes

BOMB = """
import os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except OSError as error:
    print(made, error.errno, flush=True)
    os.killpg(0, 9)
print("all", flush=True)
os.killpg(0, 9)
"""


def test_a_fork_bomb_is_stopped_at_its_number(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "pids")
    run(box, ceilings, NO_BOUNDS, PYTHON, "-c", BOMB)
    assert box.text().split()[-1] == "all"
    _, after = run(box, ceilings, Bounds(pids=20), PYTHON, "-c", BOMB)
    assert box.text().split()[-2:] == ["19", "11"]  # itself is the twentieth
    assert after.limit == "pids"
    assert after.error == "pids: reached its limit of 20 processes and threads (peak 20)"


def test_a_program_that_lives_with_fewer_processes_is_not_over_its_limit(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "pids")
    text = f"{PYTHON} -c 'import os; os.fork()' 2>/dev/null; exit 0"
    ended, after = sh(box, ceilings, Bounds(pids=2), text)
    assert (ended.code, after.limit) == (0, "")


def test_holders_of_a_back_end_don_t_count(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "pids")
    launch = replace(launch_of(box, PYTHON, "-c", BOMB), backend="bubblewrap")
    launch = ceilings.apply(Bounds(pids=20), launch, "test/n/1")
    ended, _ = box.end(spawn(box, launch))
    assert box.text().split()[-2:] == ["21", "11"]  # here nothing else holds it: two more fit
    assert ceilings.ended(launch, ended).error.endswith("limit of 20 processes and threads (peak 20)")


def test_inside_bubblewrap_the_number_is_the_command_s_own(box: Box, ceilings: Ceilings, tmp_path: Path) -> None:
    needs(ceilings, "pids")
    python = shutil.which("python3", path="/usr/bin:/bin")
    wall = Bubblewrap(box.plain.exempt)
    if python is None or wall.proved()["proc.hide"]:
        pytest.skip("bubblewrap doesn't work here")
    for folder in ("project", "exchange"):
        (tmp_path / folder).mkdir()
    spec = Spec(
        attempt_id="test/n/1",
        run_id="test",
        run_dir=str(tmp_path),
        node="n",
        argv=(python, "-I", "-S", "-c", BOMB),
        env={"PATH": os.defpath},
        cwd=str(tmp_path / "project"),
        project=str(tmp_path / "project"),
        read=(".",),
        exchange=str(tmp_path / "exchange"),
    )
    launch = wall.launch(spec)
    ceilings.apply(Bounds(pids=20, memory_bytes=200 * MIB), launch, "test/n/1")
    child = spawn(box, launch)
    wall.started(launch, child)
    ended, _ = box.end(child)
    after = wall.ended(launch, ended)
    assert ceilings.ended(launch, after.exit or ended).error.endswith("limit of 20 processes and threads (peak 20)")
    assert box.text().split() == ["19", "11"]


# ---------------------------------------------------------------- processors

SPIN = "import time; end = time.monotonic() + 0.8\nwhile time.monotonic() < end: pass"


def test_a_quota_is_throttling_and_no_ending(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "cpu")
    if ceilings.how("cpu").startswith("affinity"):
        pytest.skip("no control group for cpu here")
    ended, after = run(box, ceilings, Bounds(cpu=0.05), PYTHON, "-c", SPIN)
    assert (ended.code, after.limit) == (0, "")
    # 40 ms of 0.8 s, and what Python needs to start
    assert ended.cpu_ms < 300
    # On a busy machine the command gets less than all of a processor, but more than a twentieth.
    free, _ = run(box, ceilings, NO_BOUNDS, PYTHON, "-c", SPIN)
    assert free.cpu_ms > ended.cpu_ms


def test_without_a_group_processors_are_taken_by_affinity(box: Box) -> None:
    mine = os.sched_getaffinity(0)
    ceilings = Ceilings("test-run", {"cpu": "none in this test"})
    assert ceilings.proved()["cpu"] == ""
    assert ceilings.how("cpu") == "affinity: whole cores"
    _, after = run(box, ceilings, Bounds(cpu=0.5), PYTHON, "-c", "import os; print(len(os.sched_getaffinity(0)))")
    assert box.text().split() == ["1"]
    assert after.notes == ("cpu: 0.5 is held as 1 whole core here",)
    run(box, ceilings, NO_BOUNDS, PYTHON, "-c", "import os; print(len(os.sched_getaffinity(0)))")
    assert box.text().split()[1] == str(len(mine))
    assert os.sched_getaffinity(0) == mine
    many, after = run(box, ceilings, Bounds(cpu=10_000), PYTHON, "-c", "import os; print(len(os.sched_getaffinity(0)))")
    assert (many.code, box.text().split()[2], after.notes) == (0, str(len(mine)), ())


# ---------------------------------------------------------------- files


def test_a_file_has_its_size(box: Box, ceilings: Ceilings) -> None:
    text = "exec head -c 3000000 /dev/zero >big"
    assert sh(box, ceilings, NO_BOUNDS, text)[0].code == 0
    assert (box.folder / "big").stat().st_size == 3_000_000
    ended, after = sh(box, ceilings, Bounds(file_size_bytes=MIB), text)
    assert (box.folder / "big").stat().st_size == MIB
    assert ended.signal == signal.SIGXFSZ
    assert after.limit == "file_size"
    assert after.error == "file_size: a file reached its limit of 1 MiB"
    ended, after = sh(box, ceilings, Bounds(file_size_bytes=MIB), f"{text.removeprefix('exec ')}; exit $?")
    assert (ended.code, after.limit) == (153, "file_size")


def test_a_command_can_t_raise_its_limits(box: Box, ceilings: Ceilings) -> None:
    if os.geteuid() == 0:
        argv: tuple[str, ...] = USER  # root may raise any rlimit
    else:
        argv = ()
    ended, _ = run(box, ceilings, Bounds(file_size_bytes=MIB), *argv, "sh", "-c", "ulimit -f unlimited || exit 9")
    assert ended.code != 0
    run(box, ceilings, Bounds(file_size_bytes=MIB), "sh", "-c", "ulimit -c; ulimit -f")
    assert box.text().split() == ["0", str(MIB // 512)]


# ---------------------------------------------------------------- the wrapping


def test_the_command_is_the_same_process_with_the_same_words_and_environment(box: Box, ceilings: Ceilings) -> None:
    """No shell is left, nothing of the words is read by one, and no variable of a shell appears."""
    words = ["$(touch pwned)", "a b", "'", '"', "`id`", "-x", "", "*", "new\nline", "é\udcff"]
    code = "import os, sys; print(os.getpid(), ascii(sys.argv[1:]), sorted(os.environ))"
    launch = ceilings.apply(Bounds(file_size_bytes=MIB), launch_of(box, PYTHON, "-c", code, *words), "test/n/1")
    child = spawn(box, launch)
    ended, _ = box.end(child)
    ceilings.ended(launch, ended)
    pid, rest = box.text().split(" ", 1)
    assert int(pid) == child.pid
    assert rest.startswith(ascii(words))
    names = {name for name in eval(rest[len(ascii(words)) + 1 :]) if name not in ("_", "LC_CTYPE")}
    assert names == {"DAGRUN_ATTEMPT_ID", "PATH"}
    assert not (box.folder / "pwned").exists()


def test_hostile_run_ids_and_programs_that_are_not_there(box: Box) -> None:
    ceilings = Ceilings("../../x' $(touch pwned)\n")
    ended, _ = sh(box, ceilings, Bounds(file_size_bytes=MIB, pids=50, memory_bytes=64 * MIB), "exit 3")
    assert ended.code == 3
    assert not groups(ceilings)
    launch = launch_of(box, "no-such-program-here")
    before = launch.argv
    assert ceilings.apply(Bounds(pids=5), launch, "test/n/1").argv == before  # plain.py has better words
    ceilings.ended(launch, Exit(None, 9, None, 0))
    ceilings.close()
    assert not groups(ceilings)


def test_what_has_no_ceiling_is_not_touched(box: Box, ceilings: Ceilings) -> None:
    launch = launch_of(box, "true")
    assert ceilings.apply(Bounds(), launch, "test/n/1").argv == ("true",)
    assert launch.around is None
    assert ceilings.ended(launch, Exit(0, None, None, 1)) == Aftermath()
    assert ceilings.ended(launch, Exit(0, None, None, 1)) == Aftermath()  # twice does no harm


def test_a_launch_that_restricts_itself_is_moved_in_from_outside(box: Box, ceilings: Ceilings) -> None:
    """It can't reach its group: it waits at a pipe, so that nothing of it runs outside."""
    needs(ceilings, "pids")
    launch = launch_of(box, PYTHON, "-c", BOMB)
    launch.env = {**launch.env, "TMPDIR": str(box.folder)}
    launch.around = lambda spawn: spawn()
    ceilings.apply(Bounds(pids=7), launch, "test/n/1")
    assert "cgroup" not in " ".join(launch.argv)
    ended, _ = box.end(spawn(box, launch))
    assert ceilings.ended(launch, ended).limit == "pids"
    assert box.text().split()[-2:] == ["6", "11"]
    assert not (box.folder / ".dagrun-gate").exists()


def test_a_launch_that_can_t_be_moved_in_never_runs(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "pids")
    launch = launch_of(box, "touch", "ran")
    launch.env = {**launch.env, "TMPDIR": str(box.folder)}
    launch.around = lambda spawn: spawn()
    ceilings.apply(Bounds(pids=7), launch, "test/n/1")
    for folder in groups(ceilings):
        os.rmdir(folder)  # as if somebody else had taken it away
    ended, _ = box.end(spawn(box, launch))
    ceilings.ended(launch, ended)
    assert ended.code == 125
    assert not (box.folder / "ran").exists()


# ---------------------------------------------------------------- what is left


def test_a_daemon_that_shook_off_everything_dies_with_its_group(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "pids")
    daemon = "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
    daemon += "print(os.getpid(), flush=True)\ntime.sleep(60)"
    launch = ceilings.apply(Bounds(pids=10), launch_of(box, PYTHON, "-c", daemon), "test/n/1")
    child = spawn(box, launch)
    pids = written_pids(box.folder / "out", 1)
    # no sweep here: the group alone has to do it
    until(lambda: os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT), "the end of the parent")
    ended = box.plain.reap(child)
    ceilings.ended(launch, ended)
    assert not procs.wait_dead(pids, 5.0)
    assert not groups(ceilings)
    procs.reap_zombies()


def test_sweep_removes_what_a_dead_process_left_and_nothing_else(box: Box, ceilings: Ceilings) -> None:
    needs(ceilings, "pids")
    code = (
        "import os, sys\nfrom dagrun.sandbox.ceilings import Ceilings\nfrom dagrun.sandbox.wall import Bounds, Launch\n"
        "c = Ceilings('dead')\nl = c.apply(Bounds(pids=9), Launch(argv=('sleep', '60'), env=dict(os.environ)), 'a')\n"
        "print(os.posix_spawn(l.argv[0], l.argv, l.env), flush=True)\nsys.stdin.read()"
    )
    maker = subprocess.Popen([PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    pid = int(maker.stdout.readline())
    mine = ceilings.apply(Bounds(pids=9), launch_of(box, "true"), "test/n/1")
    folder = ceilings._places()["pids"].folder
    theirs = [f"{folder}/{name}" for name in os.listdir(folder) if f".{maker.pid}." in name]
    assert len(theirs) == 1
    until(lambda: str(pid) in Path(theirs[0], "cgroup.procs").read_text().split(), "the sleeper in its group")
    ceilings.sweep()
    assert os.path.isdir(theirs[0])  # its maker is alive
    who = procs.stat(pid)
    assert who is not None
    assert maker.stdin is not None
    maker.stdin.close()
    maker.stdout.close()
    maker.kill()
    maker.wait()
    assert ceilings.sweep() == 1
    assert not os.path.exists(theirs[0])
    assert not procs.wait_dead([(pid, who.start_ticks)], 5.0)
    assert len(groups(ceilings)) == 1
    ceilings.ended(mine, Exit(0, None, None, 0))
    procs.reap_zombies()


def test_an_ordinary_user_is_told_what_remains(tmp_path: Path) -> None:
    """Without a delegated group: no memory and no processes; processors by affinity, files by rlimit."""
    if os.geteuid() != 0:
        pytest.skip("root is needed to become somebody else")
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from dagrun.sandbox.ceilings import Ceilings\nprint(json.dumps(dict(Ceilings('r').proved())))"
    )
    done = subprocess.run(
        [*USER, PYTHON, "-c", code, json.dumps([os.getcwd()])], capture_output=True, text=True, cwd="/", check=False
    )
    if done.returncode and "Permission denied" in done.stderr:
        pytest.skip("this interpreter is not open to other users")
    proved = json.loads(done.stdout)
    assert proved["mem"].startswith("no control group")
    assert proved["pids"].startswith("no control group")
    assert (proved["cpu"], proved["fsize"]) == ("", "")


def test_an_ordinary_user_with_delegated_groups_has_all_of_it(ceilings: Ceilings) -> None:
    needs(ceilings, "mem")
    python = shutil.which("python3", path="/usr/bin:/bin:/usr/local/bin")
    if os.geteuid() != 0 or python is None or set(ceilings._places()) != {"memory", "pids", "cpu"}:
        pytest.skip("root, v1 or v2 groups for all three and a Python open to everybody are needed")
    delegated = {}
    try:
        for name, place in ceilings._places().items():
            folder = f"{place.folder}/delegated-{os.getpid()}"
            delegated[name] = (folder, place.version)
            if not os.path.isdir(folder):
                os.mkdir(folder)
            for path in (folder, f"{folder}/cgroup.procs"):
                os.chown(path, 65534, 65534)
        code = (
            "import json, sys; sys.path[:0] = [sys.argv[1]]\n"
            "from dagrun.sandbox.ceilings import Ceilings\nfrom dagrun.sandbox.cgroup import Place\n"
            "c = Ceilings('r', {n: Place(*p) for n, p in json.loads(sys.argv[2]).items()})\n"
            "print(json.dumps([dict(c.proved()), c.how('cpu')]))"
        )
        done = subprocess.run(
            [*USER, python, "-B", "-c", code, os.getcwd(), json.dumps(delegated)],
            capture_output=True, text=True, cwd="/", check=True,
        )  # fmt: skip
        proved, how = json.loads(done.stdout)
        assert set(proved.values()) == {""}
        assert how.startswith("control groups")
    finally:
        for folder in {folder for folder, _ in delegated.values()}:
            os.rmdir(folder)


def test_a_group_that_takes_no_limit_proves_nothing(tmp_path: Path) -> None:
    """A plain folder that looks like a place for groups: the real process in it shows that nothing is held."""
    for version in (1, 2):
        place = cgroup.Place(str(tmp_path), version)
        made = Ceilings("fake", {"memory": place, "pids": place, "cpu": place})
        assert made.proved()["mem"].startswith("a control group in")
        assert made.proved()["pids"].startswith("a control group in")
        assert made.how("mem") == ""
        assert made.how("cpu") == "affinity: whole cores"


def test_a_group_that_counts_nothing_proves_nothing(ceilings: Ceilings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that did not come to its point (a shell that could not do it) is no proof."""
    needs(ceilings, "mem")
    for name in ("MEMORY_CANARY", "PIDS_CANARY"):
        monkeypatch.setattr(f"dagrun.sandbox.ceilings.{name}", "echo nothing tried")
    made = Ceilings("test-run")
    assert "did not hold" in made.proved()["mem"]
    assert "did not hold" in made.proved()["pids"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (64 << 20, "64 MiB"),
        (20_000_000, "20 MB"),
        (3 << 29, "1536 MiB"),
        (512_000, "500 KiB"),
        (1500, "1.5 KiB"),
        (700, "700 bytes"),
    ],
)
def test_a_size_is_told_as_somebody_would_write_it(size: int, text: str) -> None:
    assert _in(size, _unit(size)) == text


def test_the_wrapping_is_cheap(box: Box, ceilings: Ceilings) -> None:
    """1.5 ms more on a quiet machine; the bound here only catches another order of magnitude."""

    def median(bounds: Bounds) -> float:
        took = []
        for _ in range(15):
            start = time.perf_counter()
            run(box, ceilings, bounds, "true")
            took.append(time.perf_counter() - start)
        return sorted(took)[len(took) // 2]

    ceilings.proved()["pids"]
    assert median(Bounds(pids=50, file_size_bytes=MIB)) - median(NO_BOUNDS) < 0.03

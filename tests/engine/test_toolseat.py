"""The tool worker of an attempt at every level: real processes, real walls, one loop that never blocks for them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dagrun.agent import toolworker, worker
from dagrun.agent.messages import ToolCall
from dagrun.agent.tools import TOOLS
from dagrun.core.names import Outcome
from dagrun.engine import piped, toolseat
from dagrun.engine.toolends import Broken, Returned
from dagrun.engine.toolseat import Seat
from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.landlock import Landlock
from dagrun.sandbox.wall import Guarantee, Wall
from dagrun.sandbox.walls import BackEnd, Walls
from tests.escapes.image import image as python_image
from tests.images import SHELL, need_image

from .seats import Rig, open_fds

IN_CI = bool(os.environ.get("CI"))
LONG = f"{4000 + os.getpid() / 10**8:.8f}"  # seconds that nobody else sleeps
LEVELS = ("none", "context", "process", "landlock", "container")
CANARY = "canary-4711-of-the-engine"
GAPS: frozenset[Guarantee] = frozenset({"fs.deny", "fs.meta", "fs.protected", "proc.hide", "ipc", "net.allowlist"})

Make = Callable[..., Rig]


def absent(what: str) -> None:
    if IN_CI:
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    (made / "src").mkdir(parents=True)
    (made / "out").mkdir()
    (made / "out").chmod(0o777)  # for the user of a container
    (made / "src/a.py").write_text("import os\nprint('hello')\n")
    (made / ".env").write_text(f"KEY={CANARY}\n")
    (made / "flow.yaml").write_text("nodes: {}\n")
    (tmp_path / "outside.txt").write_text("outside\n")
    return made


@pytest.fixture
def rigs(project: Path) -> Iterator[Make]:
    made: list[Rig] = []

    def make(level: str, **more: Any) -> Rig:
        if level == "process" and shutil.which("bwrap") is None:
            absent("bubblewrap")
        if level == "container" and "image" not in more:
            if shutil.which("docker") is None or subprocess.run(["docker", "version"], capture_output=True).returncode:
                absent("a Docker daemon")
            more["image"] = python_image()
        if level == "landlock":
            more["walls"] = only_landlock()
            if more["walls"].back_end("landlock").proved()["fs.read"]:
                absent("Landlock")
            level = "process"
        made.append(Rig(project, level, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        rig.end()


def only_landlock() -> Walls:
    """The back ends of a machine without bubblewrap, whose user does without what Landlock can't hold."""
    exempt: list[int] = []

    def make(name: BackEnd) -> Wall:
        return Landlock() if name == "landlock" else Bubblewrap(exempt.append, path="/nowhere/bwrap")

    return Walls(GAPS, make=make)


def calls(rig: Rig, seat: Seat, *commands: str, timeout_s: float = 30.0) -> None:
    for number, command in enumerate(commands, 1):
        call = ToolCall(id=f"c{number}", name="Bash", arguments={"command": command})
        seat.call(number, call, room=30_000, timeout_s=timeout_s)


def alive(text: str) -> list[str]:
    """The processes of this machine with `text` in their command line, but for ours."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in line and int(pid) != os.getpid():
            found.append(line.replace(b"\0", b" ").decode())
    return found


# ---------------------------------------------------------------- what they give


@pytest.mark.parametrize("level", LEVELS)
def test_each_tool_at_each_level(rigs: Make, project: Path, level: str) -> None:
    rig = rigs(level)
    seat = rig.seat()
    ask = rig.ask
    assert ask(seat, "Read", file_path="src/a.py").text == "     1\timport os\n     2\tprint('hello')"
    assert ask(seat, "Grep", pattern="hello").text == "src/a.py"
    assert ask(seat, "Glob", pattern="**/*.py").text == "src/a.py"
    written = ask(seat, "Write", file_path="out/new/b.txt", content="one\n")
    edited = ask(seat, "Edit", file_path="out/new/b.txt", old_string="one", new_string="two")
    shown = ask(seat, "Bash", command="pwd; cat src/a.py; exit 0")
    assert shown.ok
    assert shown.text.splitlines()[0] == str(project)
    if level in ("process", "landlock", "container"):  # with paths, which let it write there
        assert written.ok, written
        assert edited.ok, edited
        assert (project / "out/new/b.txt").read_text() == "two\n"
    else:
        assert "outside of what may be written" in written.text
        assert not edited.ok
        assert os.listdir(project / "out") == []
    assert seat.alive
    assert not seat.drain()


def test_every_tool_that_is_offered_is_tried_here() -> None:
    assert set(TOOLS) == {"Read", "Write", "Edit", "Bash", "Grep", "Glob"}


@pytest.mark.parametrize("level", ["process", "landlock", "container"])
def test_the_kernel_refuses_what_lies_outside_of_the_grants(rigs: Make, project: Path, level: str) -> None:
    rig = rigs(level)
    seat = rig.seat()
    for path in ("/outside", f"{project.parent}/outside.txt", f"{project}/src/a.py", f"{project}/flow.yaml"):
        shown = rig.ask(seat, "Bash", command=f"echo changed > {path}")
        assert not shown.ok or path.startswith("/tmp/")  # a /tmp of its own
    assert not os.path.exists("/outside")
    assert (project.parent / "outside.txt").read_text() == "outside\n"
    assert (project / "src/a.py").read_text().startswith("import os")
    assert (project / "flow.yaml").read_text() == "nodes: {}\n"
    assert "outside" not in rig.ask(seat, "Grep", pattern=".", path="..", output_mode="content").text
    assert rig.ask(seat, "Bash", command=f"cat {project.parent}/outside.txt").text != "outside"
    assert CANARY not in rig.ask(seat, "Bash", command="cat .env; cat .dagrun/*/*/*").text
    assert rig.ask(seat, "Bash", command="echo fine > out/fine").ok
    assert (project / "out/fine").read_text() == "fine\n"


@pytest.mark.parametrize("level", ["context", "process"])
def test_the_policy_refuses_keys_and_what_is_dagruns(rigs: Make, project: Path, level: str) -> None:
    (project / "src/deep").mkdir()
    (project / "src/deep/server.pem").write_text("key")
    (project / "src/deep/.env.example").write_text("KEY=\n")
    (project / "src/id_rsa.pub").write_text("public\n")
    rig = rigs(level, write=(".",))
    seat = rig.seat()
    for path in (".env", "src/deep/server.pem", ".dagrun", f"{rig.run.path}/journal.jsonl"):
        assert "denied" in rig.ask(seat, "Read", file_path=path).text
    assert rig.ask(seat, "Read", file_path="src/deep/.env.example").ok
    assert rig.ask(seat, "Read", file_path="src/id_rsa.pub").ok
    assert rig.ask(seat, "Read", file_path="flow.yaml").ok
    assert rig.ask(seat, "Grep", pattern="KEY=.").text == "no matches"
    if level == "process":
        for path in ("flow.yaml", ".git/hooks/pre-commit", "src/.vscode/tasks.json", ".bashrc"):
            assert "never written" in rig.ask(seat, "Write", file_path=path, content="x").text
        assert rig.ask(seat, "Write", file_path="src/new.txt", content="x").ok


def test_an_own_deny_and_a_key_that_is_granted_by_name(rigs: Make, project: Path) -> None:
    (project / "src/secret-plan.md").write_text("plan")
    rig = rigs("process", read=(".", ".env"), deny=("secret-*", "src/a.py"))
    seat = rig.seat()
    assert CANARY in rig.ask(seat, "Read", file_path=".env").text
    assert "denied" in rig.ask(seat, "Read", file_path="src/a.py").text
    assert "denied" in rig.ask(seat, "Read", file_path="src/secret-plan.md").text
    assert not rig.ask(seat, "Bash", command="cat src/a.py").ok


# ---------------------------------------------------------------- keys


def test_no_key_of_the_engine_is_found_by_a_tool(rigs: Make, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "SOME_TOKEN", "HARMLESS_NAME")
    for name in names:
        monkeypatch.setenv(name, f"{CANARY}-{name}")
    environ = dict(os.environ)
    assert sum(CANARY in value for value in environ.values()) == len(names)
    rig = rigs("process", environ=environ)
    seat = rig.seat()
    hunt = (
        "env; cat /proc/*/environ /proc/*/cmdline /proc/*/mem 2>/dev/null | tr '\\0' '\\n';"
        " find / -xdev -type f -size -200k -newer /etc/hostname 2>/dev/null | head -2000 | xargs grep -al canary-4711;"
        " grep -ra canary-4711 . /tmp /root /home /run 2>/dev/null; true"
    )
    shown = rig.ask(seat, "Bash", command=hunt, timeout_s=60)
    assert shown.ok
    assert "PATH=" in shown.text
    assert CANARY not in shown.text
    # the same hunt does find it where nothing is held: it is able to
    loose = subprocess.run(["sh", "-c", "env; cat /proc/$PPID/environ"], capture_output=True, env=environ, check=False)
    assert CANARY.encode() in loose.stdout


def test_the_worker_cannot_be_read_by_the_commands_that_it_runs(rigs: Make) -> None:
    rig = rigs("process")
    seat = rig.seat()
    assert not rig.ask(seat, "Bash", command="cat /proc/$PPID/environ /proc/$PPID/mem").ok
    assert "HOME=" in rig.ask(seat, "Bash", command="cat /proc/$$/environ | tr '\\0' '\\n'").text


# ---------------------------------------------------------------- much, long, at once


def test_ten_megabytes_go_in(rigs: Make, project: Path) -> None:
    rig = rigs("process")
    content = "0123456789" * 1_000_000
    assert rig.ask(rig.seat(), "Write", file_path="out/big", content=content).text == "made out/big (1 line)"
    assert (project / "out/big").read_text() == content


def test_a_worker_that_does_not_read_does_not_block_the_loop(rigs: Make) -> None:
    rig = rigs("none")
    seat = rig.seat()
    rig.ask(seat, "Glob", pattern="*")
    assert seat._child is not None
    os.kill(seat._child.pid, signal.SIGSTOP)
    call = ToolCall(id="c", name="Write", arguments={"file_path": "x", "content": "x" * 10_000_000})
    seat.call(1, call, room=100, timeout_s=60)  # comes back although nobody reads
    assert len(seat.fds) == 3  # and waits for room in the pipe
    rig.turn(most_s=0.05)
    assert not seat.drain()
    os.kill(seat._child.pid, signal.SIGCONT)
    (result,) = rig.results(seat)
    assert isinstance(result, Returned)
    assert "outside of what may be written" in result.text
    assert len(seat.fds) == 2


def test_a_huge_output_is_capped(rigs: Make) -> None:
    rig = rigs("process")
    shown = rig.ask(rig.seat(), "Bash", room=2_000, command="echo first; yes | head -c 100000000; echo last")
    assert shown.text.startswith("first")
    assert shown.text.endswith("last")
    assert len(shown.text) < 2_200


def test_calls_come_one_after_another(rigs: Make, project: Path) -> None:
    rig = rigs("process")
    seat = rig.seat()
    calls(rig, seat, "sleep 0.3; cat out/x 2>/dev/null; echo 1 > out/x", "cat out/x; echo 2 > out/x", "cat out/x")
    found = rig.results(seat, 3)
    assert [r.number for r in found if isinstance(r, Returned)] == [1, 2, 3]
    assert [r.text for r in found if isinstance(r, Returned)] == ["(no output)", "1", "2"]


def test_bash_is_given_no_more_time_than_its_call(rigs: Make) -> None:
    rig = rigs("process")
    seat = rig.seat()
    shown = rig.ask(seat, "Bash", command=f"echo begun; sleep {LONG}", timeout_s=0.5)
    assert shown.text.startswith("begun\n(timed out after 0.5 s")
    assert shown.duration_ms < 10_000
    assert rig.ask(seat, "Bash", command="echo on", timeout=100).text == "on"


@pytest.mark.parametrize("level", ["none", "process", "container"])
def test_a_worker_that_is_late_is_ended_and_the_next_call_gets_another(
    rigs: Make, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """One that is stopped can't keep its own time."""
    rig = rigs(level)
    seat = rig.seat()
    before = rig.ask(seat, "Bash", command="echo $PPID").text
    monkeypatch.setattr(toolseat, "SLACK_S", 0.2)
    shown = rig.ask(seat, "Bash", command=f"kill -STOP $PPID; sleep {LONG}", timeout_s=0.3)
    assert (shown.ok, shown.text) == (False, "timed out after 0.3s")
    after = rig.ask(seat, "Bash", command="echo $PPID", timeout_s=20)
    assert after.ok
    assert level != "none" or after.text != before  # elsewhere every worker has the same number
    assert not alive(f"sleep {LONG}")


# ---------------------------------------------------------------- lost


@pytest.mark.parametrize("level", LEVELS)
def test_a_worker_that_is_killed_fails_its_call_and_is_replaced_twice(rigs: Make, level: str) -> None:
    rig = rigs(level)
    seat = rig.seat()
    for _ in range(2):
        shown = rig.ask(seat, "Bash", command=f"kill -9 $PPID; sleep {LONG}")
        assert not shown.ok
        assert shown.text.startswith("the tool worker ended: ")
        assert rig.ask(seat, "Bash", command="echo again").text == "again"
    calls(rig, seat, f"kill -9 $PPID; sleep {LONG}", "echo never")
    last, broken = rig.results(seat, 2)
    assert isinstance(last, Returned)
    assert isinstance(broken, Broken)
    assert (broken.outcome, broken.limit) == (Outcome.FAILED, "")
    assert "ended 3 times" in broken.error
    assert not seat.alive
    seat.call(9, ToolCall(id="c", name="Glob", arguments={"pattern": "*"}), room=100, timeout_s=1)
    assert seat.drain() == [broken]


def test_garbage_on_the_workers_output_ends_it(rigs: Make) -> None:
    rig = rigs("process")
    command = rig.command()
    assert command.spec is not None
    liar = "import sys, time\nprint('{\"ready\": 1}')\nprint('nonsense', flush=True)\ntime.sleep(1000)"
    argv = (os.path.realpath(sys.executable), "-I", "-S", "-c", liar)
    from dataclasses import replace

    seat = rig.seat(replace(command, argv=argv, spec=replace(command.spec, argv=argv)))
    calls(rig, seat, "echo x")
    found = rig.results(seat)
    assert "no result" in getattr(found[0], "error", getattr(found[0], "text", ""))
    assert not alive("nonsense")


def test_over_its_memory(rigs: Make, project: Path) -> None:
    rig = rigs("process", memory=40 << 20)
    if why := rig.bench.back_ends()._limits().proved()["mem"]:
        pytest.skip(why)
    seat = rig.seat()
    assert rig.ask(seat, "Bash", command="echo small").ok
    assert rig.ask(seat, "Bash", command="kill $PPID").text.startswith("the tool worker ended: ")  # not for its memory
    call = ToolCall(id="c", name="Write", arguments={"file_path": "x", "content": "x\n" * (5 << 20)})
    seat.call(1, call, room=9, timeout_s=30)
    broken = rig.broken(seat)
    assert (broken.outcome, broken.limit) == (Outcome.OVER_LIMIT, "memory")
    assert "40 MiB" in broken.error


@pytest.mark.parametrize("level", ["process", pytest.param("container", marks=pytest.mark.docker)])
def test_a_command_over_its_memory_ends_the_attempt_after_its_result(rigs: Make, level: str) -> None:
    """The kernel kills the command only: the worker itself is small, and would go on."""
    rig = rigs(level, memory=40 << 20)
    if level == "process" and (why := rig.bench.back_ends()._limits().proved()["mem"]):
        pytest.skip(why)
    seat = rig.seat()
    assert "exit code 137" in rig.ask(seat, "Bash", command="sh -c 'kill -9 $$'; exit 137").text  # that is no limit
    calls(rig, seat, "x=x; while :; do x=$x$x; done; echo never", "echo not any more")
    first, second = rig.results(seat, 2)
    assert isinstance(second, Broken)
    assert (second.outcome, second.limit) == (Outcome.OVER_LIMIT, "memory")
    assert "killed" in getattr(first, "text", "killed")  # v2 kills all of it at once
    rig.until_dead(seat)


def test_arguments_that_are_too_long_are_told_to_the_model(rigs: Make) -> None:
    rig = rigs("none")
    seat = rig.seat()
    shown = rig.ask(seat, "Write", file_path="out/x", content="x" * (17 << 20))
    assert "more than 16,777,216" in shown.text
    assert "surrogate pair" in rig.ask(seat, "Write", file_path="out/x", content="\ud800").text
    assert toolworker.MAX_CALL_BYTES == worker.MAX_CALL_BYTES


def test_a_list_of_hosts_is_held_for_each_worker_anew(rigs: Make) -> None:
    rig = rigs("process", network=("localhost:1",))
    seat, other = rig.seat(), rig.seat(number=2)
    fetch = "import urllib.request as u\ntry: u.urlopen('http://example.org/')\nexcept OSError as e: print(e)"
    command = f'{os.path.realpath(sys.executable)} -c "{fetch}"'
    for _ in range(2):
        for who in (seat, other):
            shown = rig.ask(who, "Bash", command=command)
            assert "403" in shown.text, shown
        assert not rig.ask(seat, "Bash", command="kill -9 $PPID").ok


# ---------------------------------------------------------------- not started


def test_what_no_back_end_holds_is_denied(rigs: Make, project: Path) -> None:
    (project / "out/link").symlink_to("/etc")
    rig = rigs("process", write=("out/link",))
    seat = rig.seat()
    calls(rig, seat, "echo x")
    (broken,) = seat.drain()
    assert isinstance(broken, Broken)
    assert broken.outcome is Outcome.DENIED
    assert "symbolic link" in broken.error
    assert not seat.alive
    assert not seat.fds


@pytest.mark.docker
def test_an_image_without_python_is_named(rigs: Make) -> None:
    rig = rigs("container", image=need_image("docker", SHELL))
    seat = rig.seat()
    calls(rig, seat, "echo x")
    broken = rig.broken(seat)
    assert broken.outcome is Outcome.FAILED
    assert f"python3 can't be run in the image {SHELL}" in broken.error
    assert "3.10 or newer" in broken.error


def test_a_python_that_is_too_old_says_so(rigs: Make, project: Path) -> None:
    rig = rigs("none")
    command = rig.command()
    old = tuple(w.replace("sys.version_info < (3, 10)", "sys.version_info < (9, 0)") for w in command.argv)
    assert old != command.argv
    command.argv = old
    seat = rig.seat(command)
    calls(rig, seat, "echo x", "echo y")
    broken = rig.broken(seat)
    assert broken.outcome is Outcome.FAILED
    assert "need Python 3.10 or newer" in broken.error
    assert not seat.alive


def test_a_program_that_is_not_there(rigs: Make) -> None:
    rig = rigs("none")
    command = rig.command()
    command.argv = ("/nowhere/python3", *command.argv[1:])
    seat = rig.seat(command)
    calls(rig, seat, "echo x")
    (broken,) = seat.drain()
    assert isinstance(broken, Broken)
    assert broken.outcome is Outcome.FAILED
    assert "/nowhere/python3" in broken.error


def room_for(count: int) -> int:
    """The limit of descriptors under which so many more can be opened, whatever numbers are taken."""
    taken = {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
    return [n for n in range(max(taken) + count + 2) if n not in taken][count]


def test_a_machine_that_is_short_of_descriptors_is_waited_for(rigs: Make) -> None:
    rig = rigs("process")
    seat = rig.seat()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (room_for(3), hard))
    try:
        calls(rig, seat, "echo late")
        assert not seat.alive
        assert not seat.drain()
        assert seat.next_due() is not None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (found,) = rig.results(seat)
    assert isinstance(found, Returned)
    assert found.text == "late"


def test_one_that_stays_short_breaks(rigs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piped, "BUSY_PATIENCE_S", 0.3)
    rig = rigs("none")
    seat = rig.seat()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (room_for(2), hard))
    try:
        calls(rig, seat, "echo never")
        broken = rig.broken(seat)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert broken.outcome is Outcome.FAILED
    assert "no process could be started" in broken.error


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("level", LEVELS)
def test_stopping_ends_all_of_it_also_what_ignores_sigterm(rigs: Make, project: Path, level: str) -> None:
    rig = rigs(level)
    seat = rig.seat()
    calls(rig, seat, f"trap '' TERM; while :; do sleep {LONG}; done", "echo never")
    while not alive(f"sleep {LONG}"):
        rig.turn(most_s=0.02)
    seat.stop()
    found = seat.drain()
    assert [r.ok for r in found if isinstance(r, Returned)] == [False, False]
    rig.until_dead(seat, kill_after_s=1.0)
    assert not alive(f"sleep {LONG}")
    assert not seat.fds
    assert not seat.drain()
    seat.call(5, ToolCall(id="c", name="Glob", arguments={"pattern": "*"}), room=100, timeout_s=1)
    assert not seat.alive


def test_killing_ends_it_at_once(rigs: Make) -> None:
    rig = rigs("process")
    seat = rig.seat()
    calls(rig, seat, f"setsid sh -c \"trap '' TERM; sleep {LONG}\" & sleep {LONG}")
    while len(alive(f"sleep {LONG}")) < 2:
        rig.turn(most_s=0.02)
    seat.kill()
    rig.until_dead(seat)
    assert not alive(f"sleep {LONG}")


def test_what_a_dead_worker_left_is_named(rigs: Make) -> None:
    rig = rigs("none")
    seat = rig.seat()
    rig.ask(seat, "Bash", command=f"setsid sleep {LONG} & kill -9 $PPID; sleep {LONG}")
    assert "sleep" in seat.swept
    assert not alive(f"sleep {LONG}")


@pytest.mark.parametrize("level", LEVELS)
def test_bash_leaves_nothing_behind(rigs: Make, level: str) -> None:
    """Also where it can't look at /proc: not what has a session of its own, nor what was orphaned twice."""
    rig = rigs(level)
    seat = rig.seat()
    left = f"setsid sh -c '(sleep {LONG} &)'; sh -c 'sleep {LONG} & sleep {LONG} & exit'; sleep 0.2; echo done"
    shown = rig.ask(seat, "Bash", command=left)
    assert shown.text.startswith("done\n(left 3 processes behind; killed)"), shown
    assert not alive(f"sleep {LONG}")
    assert rig.ask(seat, "Bash", command="echo clean").text == "clean"


def test_a_hundred_one_after_another_leave_nothing(rigs: Make) -> None:
    rig = rigs("process")
    first = rig.seat()
    assert rig.ask(first, "Glob", pattern="*.none").text == "no files match"
    first.stop()
    rig.until_dead(first)
    before = open_fds()
    for number in range(2, 102):
        seat = rig.seat(number=number)
        assert rig.ask(seat, "Glob", pattern="*.none").text == "no files match"
        seat.stop()
        rig.until_dead(seat)
    assert open_fds() == before


def test_two_at_once_do_not_disturb_each_other(rigs: Make) -> None:
    rig = rigs("process")
    one, two = rig.seat(number=1), rig.seat(number=2)
    calls(rig, one, "sleep 0.2; echo one")
    calls(rig, two, "echo two; kill -9 $PPID; sleep 100")
    found: list[Returned | Broken] = []
    while len(found) < 2:
        rig.turn()
        found += [*one.drain(), *two.drain()]
    assert sorted(r.ok for r in found if isinstance(r, Returned)) == [False, True]
    assert one.alive
    assert rig.ask(one, "Bash", command="echo on").text == "on"


def test_an_early_sigterm_does_not_hang(rigs: Make) -> None:
    """Stopped before the worker has said a word."""
    for level in ("none", "process"):
        rig = rigs(level)
        seat = rig.seat()
        calls(rig, seat, "echo x")
        seat.stop()
        rig.until_dead(seat, kill_after_s=2.0)
        assert not seat.fds


def test_signals_of_a_tool_do_not_reach_the_engine(rigs: Make) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    try:
        rig = rigs("process")
        shown = rig.ask(rig.seat(), "Bash", command=f"kill -USR1 {os.getpid()}; kill -USR1 -- -1; true")
        assert not shown.ok  # it ended the worker
        assert not got
    finally:
        signal.signal(signal.SIGUSR1, before)

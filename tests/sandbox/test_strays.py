"""Whatever a node starts ends with it: groups, sessions, daemons, the deaf and the stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dagrun.sandbox import procs

from .conftest import Box, all_dead, become, readable, until, written_pids

# Tells its pid once it has become what it is going to be, then waits for ever.
WAIT = "echo $$ >> pids; exec sleep 1000"
DAEMON = """
import os, sys
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
env = {} if "clear" in sys.argv else os.environ
os.execve("/bin/sh", ["sh", "-c", "echo $$ >> pids; exec sleep 1000"], env)
"""


def ways(folder: Path) -> dict[str, str]:
    (folder / "daemon.py").write_text(DAEMON)
    ready = "while ! [ -s pids ]; do :; done"
    return {
        "same group": f"sh -c '{WAIT}' & {ready}",
        "setsid": f"setsid sh -c '{WAIT}' & {ready}",
        "double fork": f"{sys.executable} daemon.py; {ready}",
        "clears its environment": f"{sys.executable} daemon.py clear; {ready}",
        "deaf": f"""sh -c 'trap "" TERM; {WAIT}' & {ready}""",
        "stopped": "sh -c 'echo $$ >> pids; kill -STOP $$' & " + ready,
    }


KINDS = ["same group", "setsid", "double fork", "clears its environment", "deaf", "stopped"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_node_leaves_is_killed_when_it_ends(box: Box, kind: str) -> None:
    child = box.sh(f"{ways(box.folder)[kind]}; exit 3")
    pids = written_pids(box.folder / "pids", 1)
    ended, swept = box.end(child)
    assert ended.code == 3
    assert swept.count == 1
    assert swept.names[0] in ("sleep", "sh")
    assert swept.alive == 0
    assert all_dead(pids)


@pytest.mark.parametrize("kind", KINDS)
def test_kill_tree_reaches_all_of_a_living_node(box: Box, kind: str) -> None:
    child = box.sh(f"{ways(box.folder)[kind]}; {WAIT}")
    pids = written_pids(box.folder / "pids", 2)
    assert box.plain.kill_tree(child) >= 1
    ended, _ = box.end(child)
    assert ended.signal == signal.SIGKILL
    assert all_dead(pids)


@pytest.mark.parametrize("kind", ["same group", "setsid", "double fork", "stopped"])
def test_terminate_reaches_all_of_a_living_node(box: Box, kind: str) -> None:
    child = box.sh(f"{ways(box.folder)[kind]}; {WAIT}")
    pids = written_pids(box.folder / "pids", 2)
    assert box.plain.terminate(child) == 2
    assert all_dead(pids)
    ended, swept = box.end(child)
    assert ended.signal == signal.SIGTERM
    assert swept.count == 0


def test_a_deaf_node_needs_the_second_step(box: Box) -> None:
    child = box.sh("trap '' TERM; echo $$ >> pids; while :; do sleep 1000; done")
    written_pids(box.folder / "pids", 1)
    box.plain.terminate(child)
    assert not readable(child.pidfd, 0.05)
    assert box.plain.kill_tree(child) >= 1
    assert box.end(child)[0].signal == signal.SIGKILL


def test_a_signal_reaches_each_process_of_the_group_once(box: Box) -> None:
    deaf = "trap 'echo got >> got' TERM; echo $$ >> pids; while ! [ -e stop ]; do sleep 0.01; done"
    child = box.sh(f"({deaf}) & {deaf}; wait")
    until(lambda: (box.folder / "pids").exists() and (box.folder / "pids").read_text().count("\n") == 2, "both")
    box.plain.terminate(child)
    until(lambda: (box.folder / "got").exists() and (box.folder / "got").read_text().count("\n") >= 2, "traps")
    (box.folder / "stop").touch()
    box.end(child)
    assert (box.folder / "got").read_text() == "got\ngot\n"


def test_law_a_queued_signal_comes_once_to_group_and_session(box: Box) -> None:
    """Real-time signals are queued and not merged, so a second one could not hide."""
    code = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN, signal.SIGRTMAX})
if os.fork() == 0 and os.fork() == 0:
    os.setsid()
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
count = 0
while signal.sigwaitinfo({signal.SIGRTMIN, signal.SIGRTMAX}).si_signo != signal.SIGRTMAX:
    count += 1
with open("counts", "a") as file:
    file.write(f"{count}\\n")
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
    child = box.spawn(sys.executable, "-c", code)
    written_pids(box.folder / "pids", 3)
    assert box.plain._strays.signal_tree(child, signal.SIGRTMIN) == 3
    assert box.plain._strays.signal_tree(child, signal.SIGRTMIN, signal.SIGRTMAX) == 3
    _, swept = box.end(child)
    assert swept.count == 0
    assert (box.folder / "counts").read_text().split() == ["2", "2", "2"]


def test_what_was_once_seen_in_a_tree_belongs_to_it(box: Box) -> None:
    """No cookie, no session, no parent any more, and another node runs: the walk before remembers."""
    other = box.spawn("sleep", "1000", name="other")
    child = box.sh(f"""env -i setsid /bin/sh -c 'trap "" TERM; {WAIT}' & {WAIT}""")
    pids = written_pids(box.folder / "pids", 2)
    become(pids, "sleep")
    box.plain.terminate(child)
    _, swept = box.end(child)
    assert (swept.names, swept.unattributed) == (("sleep",), 0)
    assert all_dead(pids)
    box.plain.kill_tree(other)
    box.end(other)


def test_a_stray_of_another_node_is_left_alone_until_that_node_ends(box: Box) -> None:
    ways(box.folder)
    other = box.sh(f"{sys.executable} daemon.py; {WAIT}", name="other")
    pids = written_pids(box.folder / "pids", 2)
    _, swept = box.end(box.spawn("true", name="quick"))
    assert swept.count == 0
    assert not all_dead_now(pids)
    box.plain.kill_tree(other)
    box.end(other)
    assert all_dead(pids)


def test_a_daemon_that_shook_off_everything_waits_for_all_that_ran_beside_it(box: Box) -> None:
    ways(box.folder)
    os.mkfifo(box.folder / "gate")
    slow = box.sh("read x < gate", name="slow")
    child = box.sh(f"{sys.executable} daemon.py clear; while ! [ -s pids ]; do :; done", name="daemonic")
    pids = written_pids(box.folder / "pids", 1)
    _, swept = box.end(child)
    assert (swept.count, swept.unattributed) == (0, 1)
    later = box.spawn("true", name="later")  # started after the daemon was seen: has no claim on it
    assert box.end(later)[1].unattributed == 1
    keep = box.spawn("sleep", "1000", name="after")
    (box.folder / "gate").write_text("go\n")
    _, swept = box.end(slow)
    assert swept.count == 1
    assert all_dead(pids)
    box.plain.kill_tree(keep)
    box.end(keep)


def test_the_end_of_a_pipeline_may_finish_its_work(box: Box) -> None:
    os.mkfifo(box.folder / "pipe")
    child = box.sh("cat < pipe > copied & exec 3> pipe; echo all >&3")
    _, swept = box.end(child)
    assert swept.names == ()
    assert (box.folder / "copied").read_text() == "all\n"


def test_a_forking_tree_is_killed_to_the_last(box: Box) -> None:
    child = box.sh(
        "grow() { echo x >> grown; [ $1 = 0 ] || { (grow $(($1 - 1))) & (grow $(($1 - 1))) & }; sleep 1000; }\n"
        "grow 4 &\n while [ $(wc -l < grown || echo 0) -lt 31 ]; do :; done 2>/dev/null"
    )
    _, swept = box.end(child)
    assert swept.count >= 31
    assert swept.alive == 0
    assert procs.descendants(os.getpid()) == {}


def test_helpers_of_dagrun_survive_a_sweep(box: Box) -> None:
    helper = subprocess.Popen(["sleep", "1000"])
    box.plain.exempt(helper.pid)
    assert box.end(box.spawn("true"))[1].count == 0
    box.end(box.sh(f"sh -c '{WAIT}' & while ! [ -s pids ]; do :; done"))
    assert helper.poll() is None
    helper.kill()
    helper.wait()


def test_the_pid_of_a_helper_that_is_gone_protects_nobody(box: Box) -> None:
    child = box.sh(f"sh -c '{WAIT}' & while ! [ -s pids ]; do :; done")
    ((left, ticks),) = written_pids(box.folder / "pids", 1)
    box.plain._strays._exempt[left] = ticks - 1  # a helper had this pid, and is gone
    _, swept = box.end(child)
    assert (swept.count, box.plain._strays._exempt) == (1, {})
    assert all_dead([(left, ticks)])


def test_dead_orphans_of_a_running_node_do_not_pile_up(box: Box) -> None:
    child = box.sh("for i in 1 2 3 4 5 6 7 8; do (echo $i >> gone &) ; done; " + WAIT)
    written_pids(box.folder / "pids", 1)

    def only_the_node() -> bool:
        box.plain.tidy()
        return procs.children(os.getpid()) == [child.pid]

    until(only_the_node, "the orphans are reaped")
    box.plain.kill_tree(child)
    assert box.end(child)[0].signal == signal.SIGKILL


def test_end_all_leaves_nothing(box: Box) -> None:
    ways(box.folder)
    first = box.sh(f"{sys.executable} daemon.py clear; {WAIT}", name="a")
    second = box.sh(f"setsid sh -c '{WAIT}' & {WAIT}", name="b")
    pids = written_pids(box.folder / "pids", 4)
    swept = box.plain.end_all()
    assert swept.alive == 0
    assert swept.count >= 4
    assert all_dead(pids)
    assert box.plain.reap(first).signal == box.plain.reap(second).signal == signal.SIGKILL


def test_a_reused_pid_is_never_signalled(box: Box) -> None:
    child = box.spawn("sleep", "1000")
    who = procs.stat(child.pid)
    assert who is not None
    assert 0 <= who.start_ticks - child.start_ticks <= procs.TICKS_PER_S
    assert not procs.send(child.pid, who.start_ticks - 1, signal.SIGKILL)
    assert not readable(child.pidfd, 0.02)
    assert procs.send(child.pid, who.start_ticks, signal.SIGKILL)
    assert box.end(child)[0].signal == signal.SIGKILL


def test_a_process_name_cannot_forge_its_stat(box: Box) -> None:
    evil = box.folder / "x) Z 1 1 1"
    os.symlink("/bin/sleep", evil)
    child = box.spawn(str(evil), "1000")
    who = procs.stat(child.pid)
    assert who is not None
    assert (who.name, who.ppid, who.session) == ("x) Z 1 1 1", os.getpid(), child.pid)
    box.plain.kill_tree(child)
    box.end(child)


def all_dead_now(pids: list[tuple[int, int]]) -> bool:
    return not procs.wait_dead(pids, 0.0)

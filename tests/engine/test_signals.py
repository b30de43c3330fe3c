"""Signals, kills and what is left alive: nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dagrun.core.event import StopRequested
from dagrun.core.names import Outcome
from dagrun.sandbox import procs

from .space import Process, Space, dead, pids_in

HANG = "echo $$ >> pids; exec sleep 1000"
# Forks twice, leaves group and session and clears its environment: nothing but descent tells whose it was.
DAEMON = f"""\
import os
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.execve('/bin/sh', ['sh', '-c', '{HANG}'], {{}})
"""
# Four ways to stay: one ignores SIGTERM, one is in another session, one shook off everything.
STAYERS = f"""\
nodes:
  a: {{run: "trap '' TERM; sh -c '{HANG}' & {HANG.replace('exec ', '')}", grace: 100ms}}
  b: {{run: "setsid sh -c '{HANG}' & {HANG}"}}
  c: {{run: "{sys.executable} daemon.py; {HANG}"}}
"""
STAYING = 6


def stayers(space: Space) -> tuple[Process, list[tuple[int, int]]]:
    """A run that hangs in all of these ways, and who is alive in it."""
    space.write("daemon.py", DAEMON)
    space.flow(STAYERS)
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.has_lines("pids", STAYING), "all are up")
    pids = pids_in(space, "pids")
    assert len(pids) == STAYING
    assert not dead(pids)
    return process, pids


# ---------------------------------------------------------------- asked to stop


def test_the_first_ctrl_c_lets_running_nodes_end(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: 'touch up; until test -e go; do sleep 0.01; done'}
          b: {run: touch b, needs: a}
    """)
    process = space.start("execute", "flow.yaml")
    process.until((space.path / "up").exists, "the node runs")
    process.signal(signal.SIGINT)
    process.until(lambda: space.state().stop is not None, "the stop is journaled")
    space.write("go", "")
    done = process.done()
    assert done.code == 130
    assert f"dagrun resume {space.last().id}" in done.err
    assert space.statuses() == {"a": "completed", "b": "ready"}
    assert str(space.state().status) == "interrupted"
    assert space.run("resume").code == 0
    assert space.statuses() == {"a": "completed", "b": "completed"}


def test_the_second_ctrl_c_stops_at_once(space: Space) -> None:
    space.flow(f"nodes: {{a: {{run: '{HANG}'}}, b: {{run: 'true', needs: a}}}}")
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.has_lines("pids"), "the node runs")
    process.signal(signal.SIGINT)
    process.until(lambda: space.state().stop is not None, "the first is journaled")
    began = time.monotonic()
    process.signal(signal.SIGINT)
    assert process.done().code == 130
    assert time.monotonic() - began < 4
    stops = [(e.cause, e.mode) for e in space.events() if isinstance(e, StopRequested)]
    assert stops == [("sigint", "drain"), ("sigint", "now")]
    assert space.outcomes("a") == ["cancelled"]
    assert space.statuses() == {"a": "ready", "b": "pending"}


def test_the_third_ctrl_c_does_not_wait_for_the_grace(space: Space) -> None:
    space.flow("nodes: {a: {run: 'trap \"\" TERM; echo $$ > up; while :; do sleep 0.05; done', grace: 60s}}")
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.has_lines("up"), "the node runs")
    began = time.monotonic()
    for count in (1, 2):
        process.signal(signal.SIGINT)
        process.until(
            lambda count=count: sum(isinstance(e, StopRequested) for e in space.events()) == count,  # type: ignore[misc]
            f"stop {count} is journaled",
        )
    process.signal(signal.SIGINT)
    assert process.done().code == 130
    assert time.monotonic() - began < 4
    assert space.finish("a").signal == signal.SIGKILL


@pytest.mark.slow
def test_running_nodes_get_ten_seconds_after_the_first_ctrl_c(space: Space) -> None:
    space.flow(f"nodes: {{a: {{run: '{HANG}'}}}}")
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.has_lines("pids"), "the node runs")
    began = time.monotonic()
    process.signal(signal.SIGINT)
    assert process.done().code == 130
    assert 9.5 < time.monotonic() - began < 14


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_sighup_end_it_all(space: Space, number: int, code: int) -> None:
    process, pids = stayers(space)
    began = time.monotonic()
    process.signal(number)
    assert process.done().code == code
    assert time.monotonic() - began < 7
    assert dead(pids)
    assert space.ended().exit_code == code
    assert [e.mode for e in space.events() if isinstance(e, StopRequested)] == ["now"]


def test_a_ctrl_c_for_the_whole_group_is_one_and_nodes_do_not_see_it(space: Space) -> None:
    space.flow("nodes: {a: {run: 'trap \"touch seen\" INT; touch up; until test -e go; do sleep 0.01; done'}}")
    process = space.start("execute", "flow.yaml")
    process.until((space.path / "up").exists, "the node runs")
    os.killpg(process.pid, signal.SIGINT)
    process.until(lambda: space.state().stop is not None, "the stop is journaled")
    space.write("go", "")
    assert process.done().code == 0  # everything was done when it stopped
    assert not (space.path / "seen").exists()


def test_a_ctrl_c_while_a_retry_waits_stops_at_once(space: Space) -> None:
    space.flow("nodes: {a: {run: 'touch up; exit 1', retry: {max_attempts: 2, delay: 60s}}}")
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.statuses() == {"a": "retrying"} if space.records() else False, "it waits")
    process.signal(signal.SIGINT)
    assert process.done().code == 130


def test_sigint_that_was_ignored_stays_ignored_and_is_normal_for_nodes(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: 'touch up; until test -e go; do sleep 0.01; done'}
          b: {run: 'grep SigIgn /proc/self/status > ignored', needs: a}
    """)
    process = space.start("execute", "flow.yaml", before=("sh", "-c", 'trap "" INT HUP; exec "$@"', "sh"))
    process.until((space.path / "up").exists, "the node runs")
    process.signal(signal.SIGINT)
    process.signal(signal.SIGHUP)
    space.write("go", "")
    assert process.done().code == 0
    assert space.state().stop is None
    assert int(space.read("ignored").split()[1], 16) & (1 << (signal.SIGINT - 1)) == 0


@pytest.mark.parametrize("timeout", [0.3])
def test_the_timeout_of_the_run(space: Space, timeout: float) -> None:
    space.flow(f"limits: {{timeout: {timeout}}}\nnodes: {{a: {{run: '{HANG}'}}, b: {{run: 'true', needs: a}}}}")
    done = space.execute()
    assert done.code == 124
    assert str(space.state().status) == "timed_out"
    assert space.statuses() == {"a": "ready", "b": "pending"}
    assert dead(pids_in(space, "pids"))


def test_a_node_that_ignores_sigterm_is_killed_after_its_grace(space: Space) -> None:
    space.flow("""
        nodes:
          deaf: {run: 'trap "" TERM; while :; do sleep 0.05; done', timeout: 100ms, grace: 300ms}
          polite: {run: 'trap "touch polite; exit 5" TERM; while :; do sleep 0.05; done', timeout: 100ms, grace: 60s}
    """)
    assert space.execute().code == 1
    deaf = space.finish("deaf")
    assert (deaf.outcome, deaf.signal) == (Outcome.TIMED_OUT, signal.SIGKILL)
    assert "it ignored SIGTERM and was killed after 0.3 s" in deaf.error
    polite = space.finish("polite")
    assert (polite.outcome, polite.exit_code) == (Outcome.TIMED_OUT, 5)
    assert (space.path / "polite").exists()


def test_a_stopped_node_is_ended_too(space: Space) -> None:
    space.flow("nodes: {a: {run: 'kill -STOP $$', timeout: 200ms, grace: 100ms}}")
    assert space.execute().code == 1
    assert space.outcomes("a") == ["timed_out"]


# ---------------------------------------------------------------- cancel from elsewhere


def test_cancel_from_another_process(space: Space) -> None:
    process, pids = stayers(space)
    assert space.run("cancel").code == 0
    assert process.done().code == 143
    assert dead(pids)
    assert str(space.state().status) == "cancelled"
    assert set(space.statuses().values()) == {"cancelled"}
    assert space.run("cancel").code == 0  # nothing is left to cancel


def test_cancel_of_a_dead_run_kills_what_it_left(space: Space) -> None:
    process, pids = stayers(space)
    kill_both(process)
    assert space.run("cancel").code == 0
    assert dead([p for p in pids if p not in shaken_off(pids)])
    assert str(space.state().status) == "cancelled"
    assert space.outcomes("a") == ["lost"]
    left = shaken_off(pids)
    for pid, ticks in left:
        procs.send(pid, ticks, signal.SIGKILL)
    assert procs.wait_dead(left, 10.0) == []


def test_a_cancel_between_the_last_look_and_the_wait_is_not_lost(space: Space) -> None:
    """The engine has read the journal and is about to wait: what is appended now must wake it."""
    space.flow("nodes: {a: {run: [no-such-program], retry: {max_attempts: 2, delay: 60s}}}")
    script = str(Path(__file__).with_name("cancelled_engine.py"))
    assert space.start(program=(sys.executable, script)).done(10).code == 143
    assert str(space.state().status) == "cancelled"


# ---------------------------------------------------------------- killed


def kill_both(process: Process) -> None:
    """Engine and watchdog, with no moment for either to do anything."""
    engine = process.engine()
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(engine, signal.SIGSTOP)
    os.kill(engine, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    assert process.done().code == -signal.SIGKILL


def shaken_off(pids: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that carry no cookie: what cleared its environment and lost its parents can't be told from others."""
    return [p for p in pids if b"DAGRUN_RUN_DIR" not in procs.environ(p[0]) and not procs.is_dead(procs.stat(p[0]))]


def test_kill_9_of_the_engine_leaves_nothing_alive(space: Space) -> None:
    process, pids = stayers(space)
    os.kill(process.engine(), signal.SIGKILL)
    done = process.done()
    assert done.code == 137
    assert dead(pids)
    assert f"dagrun resume {space.last().id}" in done.err


def test_kill_9_of_the_pid_that_the_user_knows_leaves_nothing_alive(space: Space) -> None:
    process, pids = stayers(space)
    engine = os.pidfd_open(process.engine())
    process.signal(signal.SIGKILL)
    import select

    assert select.select([engine], [], [], 20)[0], "the engine ends by itself"
    os.close(engine)
    process.done()
    assert dead(pids)


@pytest.mark.parametrize("victim", ["engine", "watchdog", "both"])
def test_after_a_kill_the_run_is_resumed_and_its_remains_are_gone(space: Space, victim: str) -> None:
    process, pids = stayers(space)
    if victim == "both":
        kill_both(process)
        assert not dead(pids), "the test is about what is left"
    else:
        os.kill(process.engine() if victim == "engine" else process.pid, signal.SIGKILL)
        process.done()
    lost = shaken_off(pids) if victim == "both" else []
    before = len(space.lines("pids"))
    again = space.start("resume")
    again.until(lambda: space.has_lines("pids", before + STAYING), "all are up again")
    assert dead([p for p in pids if p not in lost])
    again.signal(signal.SIGTERM)
    assert again.done().code == 143
    assert space.outcomes("b") == ["lost", "cancelled"]
    for pid, ticks in lost:
        procs.send(pid, ticks, signal.SIGKILL)
    procs.wait_dead(lost, 5)


def test_a_node_that_kills_its_engine_again_and_again_fails_in_the_end(space: Space) -> None:
    space.flow(f"nodes: {{a: {{run: 'echo x >> ran; {HANG}'}}, b: {{run: touch b}}}}")
    code = 0
    for attempt in range(1, 5):
        process = space.start(*(("execute", "flow.yaml") if attempt == 1 else ("resume",)))
        if attempt < 4:
            process.until(lambda n=attempt: space.has_lines("ran", n), "the node runs")  # type: ignore[misc]
            process.until(lambda: space.outcomes("b")[-1:] == ["completed"], "the other one is done")
            os.kill(process.engine(), signal.SIGKILL)
        code = process.done().code
    assert code == 1
    assert space.outcomes("a") == ["lost"] * 3
    assert space.statuses() == {"a": "failed", "b": "completed"}


def test_what_is_not_idempotent_does_not_run_again_after_a_crash(space: Space) -> None:
    space.flow(f"nodes: {{pay: {{run: 'echo x >> ran; {HANG}', idempotent: false}}, b: {{run: 'true', needs: pay}}}}")
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.has_lines("ran"), "the node runs")
    os.kill(process.engine(), signal.SIGKILL)
    process.done()
    assert space.run("resume").code == 1
    assert space.lines("ran") == ["x"]
    assert "its effect is unknown" in space.finish("pay").error


def test_a_lost_attempt_does_not_eat_the_retries(space: Space) -> None:
    space.flow("""
        nodes:
          a:
            run: 'echo x >> ran; test -e go || exec sleep 1000; test "$DAGRUN_ATTEMPT" = 3'
            retry: {max_attempts: 2, delay: 1ms}
    """)
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.has_lines("ran"), "the node runs")
    os.kill(process.engine(), signal.SIGKILL)
    process.done()
    space.write("go", "")
    assert space.run("resume").code == 0
    assert space.outcomes("a") == ["lost", "failed", "completed"]


def test_a_retry_that_waited_when_the_engine_died_holds_up_nothing(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: 'exit 1', retry: {max_attempts: 2, delay: 60s}}
          b: {run: 'echo x >> up; test -e go || exec sleep 1000'}
    """)
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.statuses()["a"] == "retrying" if space.has_lines("up") else False, "one waits")
    os.kill(process.engine(), signal.SIGKILL)
    process.done()
    space.write("go", "")
    again = space.start("resume")
    again.until(lambda: space.statuses()["b"] == "completed", "the other is done")
    again.signal(signal.SIGTERM)
    assert again.done().code == 143
    assert space.statuses() == {"a": "retrying", "b": "completed"}


def test_a_retry_that_is_long_due_when_the_engine_comes_back_starts(space: Space) -> None:
    space.flow("nodes: {a: {run: [no-such-program], retry: {max_attempts: 2, delay: 0s}}}")
    done = space.execute(env={"DAGRUN_FAULT": "engine.after_event:2:kill"})
    assert done.code == 137
    assert space.statuses() == {"a": "retrying"}
    assert space.start("resume").done(10).code == 1
    assert space.outcomes("a") == ["failed", "failed"]


# ---------------------------------------------------------------- resume


def test_resume_of_a_completed_run_does_nothing(space: Space) -> None:
    space.flow("nodes: {a: {run: echo x >> ran}}")
    assert space.execute().code == 0
    before = space.records()
    assert space.run("resume").code == 0
    assert space.lines("ran") == ["x"]
    assert space.records() == before


def test_resume_gives_failed_nodes_another_chance_and_keeps_what_is_done(space: Space) -> None:
    space.flow("""
        nodes:
          good: {run: 'echo good >> ran; echo 1', outputs: {x: {from: stdout}}}
          bad: {run: 'echo bad >> ran; test -e fixed', needs: good, retry: {max_attempts: 2, delay: 1ms}}
          child: {run: 'echo "child$INPUT_X" >> ran', needs: bad, inputs: {x: nodes.good.x}}
    """)
    assert space.execute().code == 1
    space.write("fixed", "")
    assert space.run("resume").code == 0
    assert space.lines("ran") == ["good", "bad", "bad", "bad", "child1"]
    assert space.outcomes("bad") == ["failed", "failed", "completed"]


def test_two_at_a_time_is_refused_with_the_pid_of_the_first(space: Space) -> None:
    space.flow(f"nodes: {{a: {{run: '{HANG}'}}}}")
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.has_lines("pids"), "the node runs")
    done = space.run("resume")
    assert done.code == 7
    assert f"pid {process.engine()}" in done.err or f"pid {process.pid}" in done.err
    assert not dead(pids_in(space, "pids")), "the first is not disturbed"
    assert space.execute("--only", "a", "--fail", "a").code == 1  # another run in one project is fine
    process.signal(signal.SIGTERM)
    assert process.done().code == 143


def test_a_run_that_was_stopped_goes_on(space: Space) -> None:
    """^Z: the pid that the user knows stops, with its engine; on `fg` both go on."""
    space.flow("nodes: {a: {run: 'touch up; until test -e go; do sleep 0.01; done'}}")
    process = space.start("execute", "flow.yaml")
    process.until((space.path / "up").exists, "the node runs")
    engine = process.engine()
    process.signal(signal.SIGSTOP)
    os.kill(engine, signal.SIGSTOP)
    space.write("go", "")
    os.kill(engine, signal.SIGCONT)
    process.signal(signal.SIGCONT)
    assert process.done().code == 0

"""Nodes in containers, through the real program: ends, kills, crashes, patches; nothing outlives a run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.core.event import NodeStarted, Warned

from .space import DEADLINE_S, Process, Space
from .test_confined import programs

pytestmark = pytest.mark.docker


@pytest.fixture
def image(docker: str, space: Space) -> Iterator[str]:
    """An image with a shell; afterwards no container of this project is there."""
    yield docker
    left = containers(space)
    for name in left:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)
    assert left == [], "the test left containers behind"


def containers(space: Space) -> list[str]:
    """The containers of all runs of this project, running or not."""
    ids = [run.id for run in space.runs()]
    found = []
    for run in ids:
        words = ["docker", "ps", "--all", f"--filter=label=dagrun.run={run}", "--format={{.Names}}"]
        found += subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return found


def sleeping(space: Space, image: str, more: str = "") -> None:
    space.flow(f"""
        nodes:
          a:
            isolation: container
            docker: '{image}'
            permissions: {{paths: {{write: [out]}}}}
            {more}
            run: |
              trap "" TERM
              echo up >> out/up
              test -e out/go || sleep 1000
    """)
    out = space.path / "out"
    out.mkdir()
    if not os.getuid():
        os.chown(out, 65534, 65534)


def is_up(process: Process, space: Space) -> None:
    process.until(lambda: space.has_lines("out/up"), "the container is up")


def test_a_node_runs_in_its_image_and_gives_outputs(space: Space, image: str) -> None:
    space.flow(f"""
        docker: '{image}'
        secrets: {{KEY: {{env: THE_KEY}}, FILE: {{env: THE_FILE}}}}
        nodes:
          a:
            isolation: container
            secrets: [KEY, {{FILE: file}}]
            inputs: {{n: {{value: 7}}}}
            run: |
              test "$INPUT_N" = 7
              test "$KEY" = canary-key
              test "$(cat "$FILE_FILE")" = canary-file
              test ! -e /usr/bin/python3
              ! touch flow.yaml
              echo x=1 > "$DAGRUN_OUTPUT"
              env | grep -v canary > "$DAGRUN_PATCH.env"; ! grep THE_KEY "$DAGRUN_PATCH.env"
            outputs: {{x: {{}}}}
    """)
    done = space.execute(env={"THE_KEY": "canary-key", "THE_FILE": "canary-file"})
    assert done.code == 0, (done, space.log("a", stream="err"))
    assert [e.sandbox for e in space.events() if isinstance(e, NodeStarted)] == ["docker"]
    kept = [p for p in space.below() if p.name != "plan.json"]
    assert not [p for p in kept if b"canary-" in p.read_bytes()]


def test_memory_beyond_its_limit_in_a_container(space: Space, image: str) -> None:
    space.flow(f"""
        nodes:
          a:
            isolation: container
            docker: '{image}'
            resources: {{memory: 32MiB}}
            run: 'a=x; while true; do a=$a$a$a$a; done'
    """)
    assert space.execute().code == 1
    assert space.outcomes("a") == ["over_limit"], space.finish("a")
    assert space.finish("a").limit == "memory"
    assert space.finish("a").cpu_ms is None


def test_an_image_that_is_not_here_stops_before_anything_starts(space: Space, image: str) -> None:
    space.flow("""
        nodes:
          a: {run: touch started}
          b: {run: 'true', isolation: container, docker: 'dagrun-no-such-image:1', needs: a}
    """)
    done = space.execute()
    assert done.code == 8, done
    assert "dagrun-no-such-image:1" in done.err
    assert not space.read("started")
    assert not space.runs()


def test_without_an_engine_that_answers_nothing_starts(space: Space, image: str, tmp_path: Path) -> None:
    space.flow(f"nodes: {{a: {{run: touch started}}, b: {{run: 'true', isolation: container, docker: '{image}'}}}}")
    path = programs(tmp_path / "bin", "sh", "touch", "docker")  # and no podman
    done = space.execute(env={"DOCKER_HOST": f"unix://{space.path}/no.sock", "PATH": path})
    assert done.code == 8, done
    assert "docker" in done.err
    assert "podman" in done.err
    assert not space.read("started")


def test_a_timeout_ends_the_container(space: Space, image: str) -> None:
    sleeping(space, image, "timeout: 2s\n            grace: 200ms")
    assert space.execute().code == 1
    assert space.outcomes("a") == ["timed_out"]
    assert containers(space) == []


def test_a_cancel_ends_the_container(space: Space, image: str) -> None:
    sleeping(space, image, "grace: 300ms")
    process = space.start("execute", "flow.yaml")
    is_up(process, space)
    assert space.run("cancel").code == 0
    assert process.done().code == 143
    assert space.outcomes("a") == ["cancelled"]
    assert containers(space) == []


def test_a_killed_engine_leaves_no_container(space: Space, image: str) -> None:
    sleeping(space, image)
    process = space.start("execute", "flow.yaml")
    is_up(process, space)
    assert len(containers(space)) == 1
    os.kill(process.engine(), signal.SIGKILL)
    assert process.done().code == 137
    assert containers(space) == []
    space.write("out/go", "")
    assert space.run("resume").code == 0
    assert space.outcomes("a") == ["lost", "completed"]


def test_a_killed_watchdog_leaves_no_container(space: Space, image: str) -> None:
    sleeping(space, image)
    process = space.start("execute", "flow.yaml")
    is_up(process, space)
    process.engine()
    os.kill(process.pid, signal.SIGKILL)
    process.popen.wait()
    end = time.monotonic() + 20
    while containers(space) or space.locked():
        assert time.monotonic() < end, "the engine or its container is still there"


def test_both_killed_and_the_next_resume_removes_the_container(space: Space, image: str) -> None:
    sleeping(space, image)
    process = space.start("execute", "flow.yaml")
    is_up(process, space)
    engine = process.engine()
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(engine, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    process.popen.wait()
    before = containers(space)
    assert len(before) == 1
    space.write("out/go", "")
    done = space.run("resume")
    assert done.code == 0, done
    assert space.outcomes("a") == ["lost", "completed"]
    assert containers(space) == []


def test_the_next_run_of_a_project_removes_what_a_dead_one_left(space: Space, image: str) -> None:
    sleeping(space, image)
    process = space.start("execute", "flow.yaml")
    is_up(process, space)
    engine = process.engine()
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(engine, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    process.popen.wait()
    [name] = containers(space)
    space.write("out/go", "")
    assert space.execute().code == 0
    assert containers(space) == []
    assert any(name in e.text for e in space.events() if isinstance(e, Warned))
    end = time.monotonic() + DEADLINE_S
    while space.alive():  # the client of the container ends a moment after it
        assert time.monotonic() < end


def test_both_killed_and_a_cancel_removes_the_container(space: Space, image: str) -> None:
    sleeping(space, image)
    process = space.start("execute", "flow.yaml")
    is_up(process, space)
    engine = process.engine()
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(engine, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    process.popen.wait()
    assert space.run("cancel").code == 0
    assert containers(space) == []


PATCH = """
operations:
  - insert:
      id: late
      after: [first]
      node: {isolation: container, docker: 'IMAGE', run: 'echo x=1 > "$DAGRUN_OUTPUT"', outputs: {x: {}}}
"""


@pytest.mark.parametrize("there", [True, False])
def test_a_patch_brings_a_container(space: Space, image: str, there: bool) -> None:
    """The engine had nothing to hold before; what can't be held is denied when its turn comes."""
    space.flow("""
        schedule: ready
        nodes: {first: {run: 'touch up; while ! test -e go; do sleep 0.02; done'}}
    """)
    space.write("patch.yaml", PATCH.replace("IMAGE", image if there else "dagrun-no-such-image:1"))
    process = space.start("execute", "flow.yaml")
    process.until(lambda: (space.path / "up").exists(), "the first node runs")
    patched = space.run("replan", "--patch", "patch.yaml", "--yes")
    assert patched.code == 0, patched
    assert ("it would be denied" in patched.err) is not there
    space.write("go", "")
    assert process.done().code == (0 if there else 1)
    assert space.outcomes("late") == (["completed"] if there else ["denied"])
    if not there:
        assert "dagrun-no-such-image:1" in space.finish("late").error


def test_a_template_in_a_container_is_held_or_nothing_starts(space: Space, image: str) -> None:
    space.flow("""
        nodes: {a: {run: touch started, on_failure: {fallback: t}}}
        templates: {t: {isolation: container, docker: 'dagrun-no-such-image:1', run: 'true'}}
    """)
    assert space.execute().code == 8
    assert not space.read("started")

"""The tool worker inside a real sandbox: the same tools, and the kernel says no where the policy would have."""

from __future__ import annotations

import os
import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.agent.worker import Conversation, ToolResult, python_roots, worker_argv
from dagrun.core.names import Json
from dagrun.sandbox.base import Child
from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Spec

WAIT_S = 30.0
pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None and not os.environ.get("CI"), reason="bubblewrap is not installed"
)


class Confined:
    """A worker behind walls whose own policy allows everything: what it refuses, the kernel refuses."""

    def __init__(self, project: Path) -> None:
        self.plain = Plain()
        self.wall = Bubblewrap(self.plain.exempt)
        self.talk = Conversation(str(project), ["/"], ["/"], [])
        calls_in, self.calls = os.pipe()
        self.results, results_out = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY)
        spec = Spec(
            attempt_id="r1/a/1",
            run_id="r1",
            run_dir=str(project / ".dagrun/runs/r1"),
            node="a",
            argv=worker_argv(),
            env={"PATH": "/usr/bin:/bin"},
            cwd=str(project),
            project=str(project),
            read=(str(project), *python_roots()),
            write=("out",),
            network="none",
            hidden=(str(project / ".dagrun"),),
            stdin=calls_in,
        )
        self.launch = self.wall.launch(spec)
        child = self.plain.spawn(
            self.launch.argv,
            self.launch.env,
            out_fd=results_out,
            err_fd=null,
            attempt_id="r1/a/1",
            cwd=self.launch.cwd,
            stdin=calls_in,
            fds=self.launch.fds,
            around=self.launch.around,
        )
        assert isinstance(child, Child)
        self.child = child
        self.wall.started(self.launch, child)
        for fd in (calls_in, results_out, null):
            os.close(fd)
        os.write(self.calls, self.talk.opening())

    def __call__(self, tool: str, **given: Json) -> ToolResult:
        number, data = self.talk.call(tool, given, room=30_000, timeout_s=20.0)
        os.write(self.calls, data)
        end = time.monotonic() + WAIT_S
        while (left := end - time.monotonic()) > 0:
            if select.select([self.results], [], [], left)[0]:
                got = os.read(self.results, 1 << 20)
                assert got, "the worker has ended"
                for result in self.talk.feed(got):
                    assert result.id == number
                    return result
        raise AssertionError("the worker does not answer")

    def close(self) -> int | None:
        os.close(self.calls)
        select.select([self.child.pidfd], [], [], WAIT_S)
        self.plain.sweep(self.child)
        exit_ = self.plain.reap(self.child)
        self.wall.ended(self.launch, exit_)
        os.close(self.results)
        self.wall.close()
        self.plain.close()
        return exit_.code


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Confined]:
    project = tmp_path / "project"
    (project / "out").mkdir(parents=True)
    (project / ".dagrun").mkdir()
    (project / ".dagrun/journal").write_text("secret")
    (project / "a.txt").write_text("inside\n")
    (tmp_path / "outside.txt").write_text("outside\n")
    made = Confined(project)
    yield made
    assert made.close() == 0


def test_the_tools_work_behind_walls(tool: Confined) -> None:
    assert tool("Read", file_path="a.txt").text == "     1\tinside"
    assert tool("Write", file_path="out/deep/b.txt", content="b\n").ok
    assert tool("Edit", file_path="out/deep/b.txt", old_string="b", new_string="c").ok
    assert tool("Grep", pattern="c", path="out").text == "out/deep/b.txt"
    assert tool("Glob", pattern="**/*.txt").text == "out/deep/b.txt\na.txt"
    assert tool("Bash", command="cat out/deep/b.txt; (sleep 100 &) ; echo done").text.startswith("c\ndone")


def test_the_kernel_refuses_what_the_policy_let_through(tool: Confined, tmp_path: Path) -> None:
    assert not tool("Read", file_path=str(tmp_path / "outside.txt")).ok
    assert not tool("Write", file_path="a.txt", content="changed").ok
    tool("Write", file_path=str(tmp_path / "new.txt"), content="x")  # into a /tmp of its own, if anywhere
    assert not tool("Read", file_path=".dagrun/journal").ok
    assert not tool("Bash", command=f"cat {tmp_path}/outside.txt").ok
    assert not tool("Bash", command="echo x > a.txt").ok
    assert "journal" not in tool("Bash", command="ls -a .dagrun").text
    assert not tool("Bash", command=f"kill -0 {os.getpid()} 2>&1 && readlink /proc/{os.getpid()}/exe").ok
    assert (tmp_path / "project/a.txt").read_text() == "inside\n"
    assert not (tmp_path / "new.txt").exists()


def test_a_command_cannot_reach_the_worker_that_runs_it(tool: Confined) -> None:
    forged = '{"id": 1, "ok": true, "content": "forged"}'
    shown = tool("Bash", command=f"for f in /proc/$PPID/fd/*; do echo '{forged}' > $f; done 2>&1; echo end").text
    assert shown.endswith("end")
    assert not tool("Bash", command="cat /proc/$PPID/environ /proc/$PPID/mem").ok
    assert tool("Read", file_path="a.txt").ok

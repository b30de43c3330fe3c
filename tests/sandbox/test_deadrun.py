"""A run that died with its engine and its watchdog: what `resume` finds and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.sandbox import procs
from dagrun.sandbox.deadrun import reap_dead_run

from .conftest import all_dead, become, until, written_pids

WAIT = "echo $$ >> pids; exec sleep 1000"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()
    for line in (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else ():
        who = procs.stat(int(line))
        if who is not None and who.name in ("sleep", "sh"):
            procs.send(int(line), who.start_ticks, signal.SIGKILL)


def spawn(folder: Path, text: str, run_dir: str, run_id: str = "r7k2") -> subprocess.Popen[bytes]:
    env = {**os.environ, "DAGRUN_RUN_ID": run_id, "DAGRUN_RUN_DIR": run_dir}
    return subprocess.Popen(["sh", "-c", text], env=env, cwd=folder, start_new_session=True)


def test_all_of_a_dead_run_dies_and_nothing_else(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    run_dir = str(tmp_path / "run")
    clear = f"import os; os.execve('/bin/sh', ['sh', '-c', {WAIT!r}], {{}})"
    (tmp_path / "clear.py").write_text(clear)
    started.append(spawn(tmp_path, f"setsid sh -c '{WAIT}' & {sys.executable} clear.py & {WAIT}", run_dir))
    mine = written_pids(tmp_path / "pids", 3)
    become(mine, "sleep")
    (tmp_path / "pids").unlink()
    started.append(spawn(tmp_path, WAIT, str(tmp_path / "other")))  # the same short id in another project
    started.append(spawn(tmp_path, WAIT, run_dir, "r7k3"))
    others = written_pids(tmp_path / "pids", 2)
    become(others, "sleep")
    names = reap_dead_run("r7k2", [], run_dir=run_dir)
    assert names == ["sleep"] * 3
    assert all_dead(mine)
    assert [pid for pid, _ in others] == procs.wait_dead(others, 0.0)
    assert reap_dead_run("r7k2", [], run_dir=run_dir) == []


def test_a_recorded_process_without_cookies_is_found(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    clean = {"PATH": os.environ["PATH"]}
    started.append(
        subprocess.Popen(["sh", "-c", f"sh -c '{WAIT}' & {WAIT}"], env=clean, cwd=tmp_path, start_new_session=True)
    )
    pids = written_pids(tmp_path / "pids", 2)
    become(pids, "sleep")
    main = started[0].pid
    ticks = dict(pids)[main]
    boot = procs.boot_id()
    for wrong in ((main, ticks, "another-boot"), (main, ticks + 1, boot), (main, ticks - 10_000, boot)):
        assert reap_dead_run("r7k2", [wrong], run_dir="/nowhere") == []
    assert procs.wait_dead(pids, 0.0) == [pid for pid, _ in pids]
    assert len(reap_dead_run("r7k2", [(main, ticks - 3, boot)], run_dir="/nowhere")) == 2
    assert all_dead(pids)


def test_who_resumes_is_spared_with_all_above_it(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """A node of the dead run that itself resumes the run must not end itself."""
    code = (
        f"from dagrun.sandbox.deadrun import reap_dead_run; print(reap_dead_run('r7k2', [], run_dir={str(tmp_path)!r}))"
    )
    env = {
        **os.environ,
        "DAGRUN_RUN_ID": "r7k2",
        "DAGRUN_RUN_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    made = subprocess.run(
        ["sh", "-c", '"$0" -c "$1"; exit 5', sys.executable, code], capture_output=True, text=True, env=env, check=False
    )
    assert (made.returncode, made.stdout, made.stderr) == (5, "[]\n", "")
    assert started == []


def test_a_child_that_was_not_yet_its_command_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between spawn and exec it has the environment of the engine: the first look can't know it."""
    run_dir = str(tmp_path / "run")
    code = (
        "import os, sys; sys.stdin.read(); "
        "os.execve('/bin/sleep', ['sleep', '1000'], {'DAGRUN_RUN_ID': 'r7k2', 'DAGRUN_RUN_DIR': sys.argv[1]})"
    )
    child = subprocess.Popen([sys.executable, "-c", code, run_dir], stdin=subprocess.PIPE)
    assert child.stdin is not None
    looks: list[int] = []
    look = procs.all_pids

    def looked() -> list[int]:
        looks.append(1)
        if len(looks) == 2 and child.stdin is not None:  # the first look is over
            child.stdin.close()
            until(lambda: b"DAGRUN_RUN_ID" in procs.environ(child.pid), "it is its command")
        return look()

    monkeypatch.setattr(procs, "all_pids", looked)
    try:
        assert reap_dead_run("r7k2", [], run_dir=run_dir) == ["sleep"]
    finally:
        child.kill()
        child.wait()

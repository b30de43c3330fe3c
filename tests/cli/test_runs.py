"""runs and runs gc."""

from __future__ import annotations

import os

from .space import DEADLINE_S, Space, wait_for


def test_newest_first(space: Space) -> None:
    assert space.run("runs") == (
        0,
        "",
        "there is no run in this project yet\n  help: start one: dagrun execute FILE\n",
    )
    space.run("execute", "hello.yaml", "-q")
    space.run("execute", "fails.yaml", "-q")
    rows = space.run("runs", "--json").json["runs"]
    assert [(r["workflow"], r["status"], r["exit_code"]) for r in rows] == [
        ("fails", "failed", 1),
        ("hello", "completed", 0),
    ]
    assert space.run("runs").out == space.run("trace", "list").out
    limited = space.run("runs", "--limit", "1")
    assert len(limited.out.splitlines()) == 2
    assert limited.err == "1 older: dagrun runs --limit 2\n"


def test_from_a_folder_inside_the_project_it_says_where_the_runs_are(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    (space.folder / "src" / "deep").mkdir(parents=True)
    hint = "  help: there are runs in ../..: dagrun -C ../.. runs\n"
    told = space.shell("cd src/deep && dagrun runs")
    assert (told.code, told.out, told.err) == (0, "", f"there is no run in this project yet\n{hint}")
    for words in ("trace show", "status", "logs who", "resume", "outputs zzzz"):
        told = space.shell(f"cd src/deep && dagrun {words}")
        assert (told.code, told.err.splitlines()[-1] + "\n") == (9, hint)
    assert space.shell("cd src/deep && dagrun -C ../.. runs").out == space.run("runs").out
    # from elsewhere the way to type it is from there
    assert "dagrun -C src/deep -C ../.. runs" in space.run("-C", "src/deep", "status").err


def test_gc_keeps_the_newest(space: Space) -> None:
    for _ in range(3):
        space.run("execute", "hello.yaml", "-q")
    ids = [r["run_id"] for r in space.run("runs", "--json").json["runs"]]
    assert space.run("runs", "gc", "--keep", "1", "--dry-run").out == f"would remove 2 runs: {ids[1]} {ids[2]}\n"
    assert len(os.listdir(space.folder / ".dagrun" / "runs")) == 3
    assert space.run("runs", "gc", "--keep", "1", "--json").json == {"removed": ids[1:], "kept": [], "dry_run": False}
    assert os.listdir(space.folder / ".dagrun" / "runs") == ids[:1]
    assert space.run("runs", "gc", "--older", "1h") == (0, "removed 0 runs\n", "")
    assert space.run("runs", "gc", "--older", "0s").out == f"removed 1 run: {ids[0]}\n"


def test_gc_needs_to_know_which(space: Space) -> None:
    assert space.run("runs", "gc").code == 2
    assert "is not a duration" in space.run("runs", "gc", "--older", "soon").err


def test_a_run_at_work_stays(space: Space) -> None:
    space.file("waits.yaml", "version: 1\nname: w\nnodes: {a: {run: 'read x < gate'}}\n")
    space.gate("gate")
    process = space.start("execute", "waits.yaml", "--ui", "json")
    wait_for(process.stdout, "node.started")
    for dry in (["--dry-run"], []):
        done = space.run("runs", "gc", "--keep", "0", *dry).tidy()
        assert (done.code, done.err) == (0, "run ID stays: it is being executed\n")
    (space.folder / "gate").write_text("go\n")
    assert process.wait(DEADLINE_S) == 0

"""execute, resume, cancel: streams, exit codes, JSON."""

from __future__ import annotations

import json
import os
import signal
import xml.etree.ElementTree as ET

import pytest

from .space import DEADLINE_S, Space, wait_for

WAITS = """
    version: 1
    name: waits
    nodes:
      first: {run: echo one}
      second: {needs: first, run: "read line < gate; echo $line"}
    """


def test_results_go_to_stdout_and_the_show_to_stderr(space: Space) -> None:
    done = space.run("execute", "hello.yaml").tidy()
    assert (done.code, done.out) == (0, "user = Ada\n")
    assert "COMPLETED  hello ID  in 0.0s  2 ok\n" in done.err
    assert space.run("execute", "hello.yaml", "-q") == (0, "user = Ada\n", "")


def test_json_is_one_document(space: Space) -> None:
    done = space.run("execute", "hello.yaml", "--json")
    assert set(done.json) == {"run_id", "status", "exit_code", "outputs", "totals"}
    assert done.json["status"] == "completed"
    assert done.json["outputs"] == {"user": "Ada"}
    assert done.json["totals"]["nodes"] == 2
    assert "COMPLETED" in done.err


def test_a_failure_is_1_and_ends_with_what_to_type(space: Space) -> None:
    done = space.run("execute", "fails.yaml", "--ui", "quiet")
    assert (done.code, done.out) == (1, "")
    assert "    | no luck\n" in done.err
    run = space.run("status", "--json").json["run_id"]
    assert f"dagrun resume {run}\n" in done.err
    assert f"dagrun logs {run} bad\n" in done.err
    assert space.run("execute", "fails.yaml", "--json").json["exit_code"] == 1


def test_ui_json_is_the_events(space: Space) -> None:
    done = space.run("execute", "hello.yaml", "--ui", "json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert events[-1]["type"] == "run.ended"
    assert done.err == ""
    both = space.run("execute", "hello.yaml", "--ui", "json", "--json")
    assert both.json["status"] == "completed"
    assert json.loads(both.err.splitlines()[0])


def test_verbose_shows_every_node_at_the_end(space: Space) -> None:
    done = space.run("execute", "hello.yaml", "-v", "--ui", "log")
    assert "NODE " in done.err
    assert "NODE " not in space.run("execute", "hello.yaml", "--ui", "log").err


def test_params_and_their_problems(space: Space) -> None:
    space.file("p.yaml", "version: 1\nname: p\nparams: {n: {type: integer}}\nnodes: {a: {run: 'true'}}\n")
    assert space.run("execute", "p.yaml") == (
        3,
        "",
        "error[missing-param]: param `n` (integer) is required\n  help: -p 'n=3'\n1 error\n",
    )
    assert space.run("execute", "p.yaml", "-p", "n=3", "-q").code == 0
    space.file("v.json", '{"n": 4}')
    assert space.run("execute", "p.yaml", "--params", "v.json", "-q").code == 0
    assert space.run("trace", "show", "--json").json["run"]["params"] == {"n": 4}


def test_a_selection_takes_outputs_of_an_earlier_run(space: Space) -> None:
    refused = space.run("execute", "hello.yaml", "--only", "greet")
    assert refused.code == 3
    assert "--outputs-of RUN" in refused.err
    assert not (space.folder / ".dagrun").exists()
    space.run("execute", "hello.yaml", "-q")
    assert space.run("execute", "hello.yaml", "-q", "--only", "greet", "--outputs-of", "last").code == 0
    assert space.run("logs", "greet").out == "Hello, Ada!\n"


def test_an_injected_failure(space: Space) -> None:
    assert space.run("execute", "hello.yaml", "-q", "--fail", "greet:timed_out").code == 1
    entries = {e["node_id"]: e for e in space.run("trace", "show", "--json").json["entries"]}
    assert entries["greet"]["attempts"][0]["outcome"] == "timed_out"
    assert space.run("execute", "hello.yaml", "--fail", "gret").err.endswith("help: did you mean `greet`?\n")


@pytest.mark.parametrize("option", ["--only", "--from", "--until", "--fail"])
def test_a_node_that_is_not_there(space: Space, option: str) -> None:
    for more in ([], ["--dry-run"]):
        ran = space.run("execute", "hello.yaml", option, "gret", *more)
        said = f"error[not-found]: {option} gret: the workflow has no node `gret`\n  help: did you mean `greet`?\n"
        assert (ran.code, ran.err) == (9, said)
    assert not (space.folder / ".dagrun").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["execute"], "dagrun execute fails.yaml"),
        (["execute", "helo.yaml"], "hello.yaml"),
        (["execute", "hello.yaml", "--ui", "fancy"], "one of auto, live, log, json, quiet"),
        (["execute", "hello.yaml", "-j", "0"], "dagrun execute --help"),
        (["execute", "hello.yaml", "--provider", "false"], "write live or fake"),
        (["execute", "hello.yaml", "--provider", "fake", "--replay", "last"], "--replay last"),
        (["execute", "hello.yaml", "--junit", "no/where.xml"], "name a file in a folder that is there"),
        (["resume", "--ui", "x"], "one of auto"),
    ],
)
def test_usage_is_2_and_nothing_is_made(space: Space, words: list[str], hint: str) -> None:
    done = space.run(*words)
    assert (done.code, done.out) == (2, "")
    assert hint in done.err.splitlines()[-1]
    assert not (space.folder / ".dagrun").exists()


def test_the_workflow_comes_from_stdin(space: Space) -> None:
    text = (space.folder / "hello.yaml").read_text()
    assert space.run("execute", "-", "-q", stdin=text) == (0, "user = Ada\n", "")


def test_junit(space: Space) -> None:
    assert space.run("execute", "fails.yaml", "-q", "--junit", "r.xml").code == 1
    suite = ET.parse(space.folder / "r.xml").getroot()
    assert suite.get("tests") == "3"
    assert suite.get("failures") == "1"


def test_no_runs_can_be_kept_here(space: Space) -> None:
    space.file(".dagrun", "a file")
    done = space.run("execute", "hello.yaml")
    assert done.code == 8
    assert done.err.startswith("error[environment]: ")


# ---------------------------------------------------------------- resume


def test_resume_goes_on_with_what_failed(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    again = space.run("resume", "-q")
    assert again.code == 1
    entries = {e["node_id"]: e for e in space.run("trace", "show", "--json").json["entries"]}
    assert [len(entries[n]["attempts"]) for n in ("ok", "bad", "after")] == [1, 2, 0]


def test_there_is_nothing_to_resume(space: Space) -> None:
    assert space.run("resume").code == 9
    space.run("execute", "hello.yaml", "-q")
    done = space.run("resume").tidy()
    assert done == (
        0,
        "",
        "run ID has completed: there is nothing to resume\n  help: dagrun trace show ID\n",
    )
    assert space.run("resume", "--json").json["status"] == "completed"


def test_interrupted_then_mentioned_then_resumed(space: Space) -> None:
    space.file("waits.yaml", WAITS)
    space.gate("gate")
    process = space.start("execute", "waits.yaml", "--ui", "json")
    wait_for(process.stdout, '"node":"second","attempt":1')
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130
    run = space.run("status", "--json").json
    assert run["status"] == "interrupted"
    other = space.start("execute", "waits.yaml", "--until", "first", "--ui", "log")
    _, err = other.communicate(timeout=DEADLINE_S)
    assert f"note: run {run['run_id']} of waits has not finished: dagrun resume {run['run_id']}\n" in err
    resumed = space.start("resume", run["run_id"], "-q")
    (space.folder / "gate").write_text("go\n")
    assert resumed.wait(DEADLINE_S) == 0
    assert space.run("logs", run["run_id"], "second").out == "go\n"


def test_a_killed_run_is_crashed_and_can_be_resumed(space: Space) -> None:
    space.file("waits.yaml", WAITS)
    space.gate("gate")
    process = space.start("execute", "waits.yaml", "--ui", "json")
    wait_for(process.stdout, '"node":"second","attempt":1')
    holder = space.run("status", "--json").json["holder"]
    os.kill(holder["pid"], signal.SIGKILL)
    assert process.wait(DEADLINE_S) == 128 + signal.SIGKILL
    assert process.stderr is not None
    assert "Go on with: dagrun resume " in process.stderr.read()
    status = space.run("status", "--exit-code")
    assert (status.code, "crashed" in status.out) == (8, True)
    resumed = space.start("resume", "-q")
    (space.folder / "gate").write_text("go\n")
    assert resumed.wait(DEADLINE_S) == 0


def test_a_second_engine_is_refused(space: Space) -> None:
    space.file("waits.yaml", WAITS)
    space.gate("gate")
    process = space.start("execute", "waits.yaml", "--ui", "json")
    wait_for(process.stdout, '"node":"second","attempt":1')
    refused = space.run("resume")
    assert refused.code == 7
    assert refused.err.startswith("error[locked]: run ")
    assert "help: watch it: dagrun trace follow " in refused.err
    assert space.run("status", "--exit-code").code == 10
    (space.folder / "gate").write_text("go\n")
    assert process.wait(DEADLINE_S) == 0


# ---------------------------------------------------------------- cancel


def test_cancel_asks_the_engine(space: Space) -> None:
    space.file("waits.yaml", WAITS)
    space.gate("gate")
    process = space.start("execute", "waits.yaml", "--ui", "json")
    wait_for(process.stdout, '"node":"second","attempt":1')
    done = space.run("cancel").tidy()
    assert done == (0, "asked the engine of run ID to end it\n", "  help: watch it: dagrun trace follow ID\n")
    assert process.wait(DEADLINE_S) == 143
    assert space.run("status", "--json").json["status"] == "cancelled"


def test_cancel_of_a_run_that_is_over(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    done = space.run("cancel").tidy()
    assert done == (0, "run ID has completed already: there is nothing to cancel\n", "")
    assert space.run("cancel", "zzzz").code == 9

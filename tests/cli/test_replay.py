"""A recorded run is played again: the same trace without a model, a tool or a socket; whatever differs ends it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .playing import edit, edit_event, events, last, project, record, said, timeless, trace
from .space import ROOT, Space

# stands in front of every module: no network, no sleep, nothing of a vendor
GUARD = """
import builtins, socket, sys, time

def refuse(*args, **kw):
    raise AssertionError("a replay touched the network")

class Inet(socket.socket):
    def __init__(self, family=-1, *args, **kw):
        if family in (-1, socket.AF_INET, socket.AF_INET6):
            refuse()
        super().__init__(family, *args, **kw)

socket.socket = Inet
socket.create_connection = socket.getaddrinfo = refuse
known = builtins.__import__

def checked(name, *args, **kw):
    if name.split(".")[0] in ("litellm", "httpx", "openai"):
        raise AssertionError("a replay imported " + name)
    return known(name, *args, **kw)

builtins.__import__ = checked
"""


@pytest.fixture
def guarded(space: Space) -> dict[str, str]:
    """An environment in which the program can open no connection and import no library of models."""
    space.file("guard/sitecustomize.py", GUARD)
    return {"PYTHONPATH": f"{space.folder}/guard:{ROOT}"}


def test_the_guard_guards(space: Space, guarded: dict[str, str]) -> None:
    import subprocess
    import sys

    for line in ("import socket; socket.socket()", "import litellm", "import socket; socket.getaddrinfo('x', 1)"):
        done = subprocess.run([sys.executable, "-c", line], env=space.env(**guarded), capture_output=True, check=False)
        assert b"a replay" in done.stderr


def test_the_same_trace_with_sockets_blocked(space: Space, guarded: dict[str, str]) -> None:
    recorded = record(space)
    done = space.run("execute", "flow.yaml", "--replay", recorded, "--ui", "quiet", **guarded)
    assert done.code == 0, done.err
    assert done.out == "bugs = 1\n"
    assert trace(space) == trace(space, recorded)
    entry = {e["node_id"]: e for e in trace(space)["entries"]}
    assert entry["fixer"]["agent"]["tools"] == {"Grep": 1, "Read": 1, "Edit": 1}
    assert entry["fixer"]["retries"] == 1
    assert "no such key" in entry["broken"]["error"]
    assert len(entry["flaky"]["attempts"]) == 2
    # nothing ran
    assert "BUG" in (space.folder / "src/a.py").read_text()
    assert (space.folder / "reports").read_text().count("bugs") == 1


def test_a_file_of_another_machine_is_played_in_another_folder(space: Space, guarded: dict[str, str]) -> None:
    recorded = record(space)
    wanted = trace(space, recorded)
    for name in ("flow.yaml", "rules.yaml", "run.jsonl", "skills/calm/SKILL.md"):
        space.file(f"there/{name}", (space.folder / name).read_text())
    done = space.run("-C", "there", "execute", "flow.yaml", "--replay", "run.jsonl", "--ui", "quiet", **guarded)
    assert done.code == 0, done.err
    made = space.run("-C", "there", "trace", "show", "--json").json
    assert timeless(made) == wanted


def test_a_run_of_a_real_provider_is_played_without_its_key(space: Space, guarded: dict[str, str]) -> None:
    record(space)
    for name in ("run.jsonl", "flow.yaml"):
        path = space.folder / name
        path.write_text(path.read_text().replace('"kind":"fake"', '"kind":"live"').replace("kind: fake", "kind: live"))
    edit(space.folder / "flow.yaml", ", rules: rules.yaml", "")
    done = space.run("execute", "flow.yaml", "--replay", "run.jsonl", "--ui", "quiet", **guarded)
    assert done.code == 0, done.err


def test_a_change_of_one_word_of_a_prompt_is_a_miss(space: Space) -> None:
    record(space)
    edit(space.folder / "flow.yaml", "Fix what is wrong", "Mend what is wrong")
    done = space.run("execute", "flow.yaml", "--replay", "run.jsonl", "--ui", "quiet")
    assert done.code == 6
    assert "node `fixer` asks a model something that was not recorded. The nearest is its call 1" in said(done)
    assert '"Fix what' in done.err
    assert '"Mend what' in done.err
    assert trace(space)["run"]["status"] == "failed"


def test_a_change_of_a_skill_or_an_input_is_a_miss(space: Space) -> None:
    record(space)
    space.file("skills/calm/SKILL.md", "---\nname: calm\ndescription: Be calm.\n---\nBe very calm.\n")
    assert space.run("execute", "flow.yaml", "--replay", "run.jsonl").code == 6
    project(space)
    edit(space.folder / "flow.yaml", 'run: "echo 42"', 'run: "echo 43"')
    done = space.run("execute", "flow.yaml", "--replay", "run.jsonl")
    assert done.code == 6
    assert "node `facts`, attempt 1 was recorded with another `run`" in done.err


def test_a_node_that_did_not_run_then_is_a_miss(space: Space) -> None:
    record(space)
    with (space.folder / "flow.yaml").open("a") as flow:
        flow.write("  new: {run: touch made}\n")
    done = space.run("execute", "flow.yaml", "--replay", "run.jsonl")
    assert done.code == 6
    assert "node `new` did not run when" in done.err
    assert not (space.folder / "made").exists()


def test_a_changed_reply_changes_the_trace(space: Space) -> None:
    recorded = record(space)
    path = space.folder / "run.jsonl"
    answer = next(e for e in events(path, "call.ended") if '{"bugs": 1}' in json.dumps(e["answer"]).replace("\\", ""))
    text = path.read_text().replace(json.dumps(answer["answer"]["v"]["text"])[1:-1], '{\\"bugs\\": 7}')
    path.write_text(text)
    done = space.run("execute", "flow.yaml", "--replay", "run.jsonl", "--ui", "quiet")
    assert done.code == 6  # a command after it was recorded with another value
    entry = {e["node_id"]: e for e in trace(space)["entries"]}
    assert entry["fixer"]["output_summary"], done.err
    assert entry["fixer"]["output_summary"] == '{"bugs": 7}'
    was = {e["node_id"]: e for e in trace(space, recorded)["entries"]}
    assert was["fixer"]["outputs_digest"] != entry["fixer"]["outputs_digest"]


def test_a_changed_tool_result_is_a_miss_of_the_next_call(space: Space) -> None:
    record(space)
    edit_event(space.folder / "run.jsonl", "tool.ended", text={"v": "replaced 9 times"})
    done = space.run("execute", "flow.yaml", "--replay", "run.jsonl", "--ui", "quiet")
    assert done.code == 6
    assert "The nearest is its call 4" in done.err
    assert "replaced 9 times" in done.err


def test_run_tools_runs_them_and_stops_at_the_first_difference(space: Space) -> None:
    recorded = record(space)
    done = space.run("execute", "flow.yaml", "--replay", recorded, "--run-tools", "--ui", "quiet")
    assert done.code == 0, done.err
    assert "fine" in (space.folder / "src/a.py").read_text()
    assert (space.folder / "reports").read_text().count("bugs") == 2
    done = space.run("execute", "flow.yaml", "--replay", recorded, "--run-tools", "--ui", "quiet")
    assert done.code == 6
    assert "node `fixer`, Grep: its result differs from the recorded one" in done.err


def test_run_tools_holds_commands_to_the_record(space: Space) -> None:
    space.file("flow.yaml", "version: 1\nname: f\nnodes: {a: {run: cat n, outputs: {n: {from: stdout}}}}\n")
    space.file("n", "1")
    assert space.run("execute", "flow.yaml").code == 0
    recorded = last(space)
    assert space.run("execute", "flow.yaml", "--replay", recorded, "--run-tools").code == 0
    space.file("n", "2")
    done = space.run("execute", "flow.yaml", "--replay", recorded, "--run-tools")
    assert done.code == 6
    assert "command of node `a`, attempt 1: its output n is another" in done.err
    assert space.run("execute", "flow.yaml", "--replay", recorded).code == 0


# ---------------------------------------------------------------- people, patches, clocks


def test_decisions_and_patches_of_people_happen_again(space: Space) -> None:
    space.file(
        "flow.yaml",
        """
        version: 1
        name: gate
        nodes:
          a: {run: echo a}
          ok: {review: {message: "fine?"}, needs: a}
          b: {run: echo b, needs: ok}
        """,
    )
    assert space.run("execute", "flow.yaml").code == 4
    space.file("c.yaml", "id: c\nrun: echo c\n")
    added = space.run("replan", "last", "--insert", "c.yaml", "--after", "b", "--yes", "--no-input")
    assert added.code == 0, added.err
    assert space.run("review", "last", "ok", "--approve", "-m", "go on").code == 0
    recorded = last(space)
    assert space.run("execute", "flow.yaml", "--replay", recorded, "--ui", "quiet").code == 0
    assert trace(space) == trace(space, recorded)
    assert trace(space)["run"]["revision"] == 2


def test_an_attempt_that_ran_out_of_time_does_so_at_once(space: Space) -> None:
    space.file(
        "flow.yaml",
        """
        version: 1
        name: late
        provider: {kind: fake, rules: rules.yaml}
        models: {main: [v/a, v/b]}
        nodes:
          slow: {agent: {prompt: Take your time.}, timeout: 300ms}
          after: {run: echo no, needs: slow}
        """,
    )
    space.file("rules.yaml", "rules:\n  - {node: slow, latency: 30s, text: late}\n")
    assert space.run("execute", "flow.yaml").code == 1
    recorded = last(space)
    done = space.run("execute", "flow.yaml", "--replay", recorded, "--ui", "quiet")
    assert done.code == 1, done.err
    assert trace(space) == trace(space, recorded)
    assert trace(space)["entries"][0]["attempts"][0]["outcome"] == "timed_out"


def test_a_run_that_failed_and_was_taken_up_is_played_through(space: Space) -> None:
    space.file("flow.yaml", "version: 1\nname: f\nnodes: {a: {run: test -e there}, b: {run: echo b, needs: a}}\n")
    assert space.run("execute", "flow.yaml").code == 1
    space.file("there")
    assert space.run("resume").code == 0
    recorded = last(space)
    (space.folder / "there").unlink()
    assert space.run("execute", "flow.yaml", "--replay", recorded, "--ui", "quiet").code == 0
    assert trace(space) == trace(space, recorded)


def test_an_injected_failure_and_a_selection_are_part_of_the_record(space: Space) -> None:
    space.file("flow.yaml", "version: 1\nname: f\nnodes: {a: {run: echo a}, b: {run: echo b}, c: {run: echo c}}\n")
    assert space.run("execute", "flow.yaml", "--fail", "a", "--only", "a", "--only", "b").code == 1
    recorded = last(space)
    assert space.run("execute", "flow.yaml", "--replay", recorded, "--ui", "quiet").code == 1
    assert trace(space) == trace(space, recorded)


def test_params_are_those_of_the_record(space: Space) -> None:
    node = "{env: {W: '${{ params.who }}'}, run: echo $W}"
    space.file("flow.yaml", f"version: 1\nname: f\nparams: {{who: {{type: string}}}}\nnodes: {{a: {node}}}\n")
    assert space.run("execute", "flow.yaml", "-p", "who=Ada").code == 0
    assert space.run("execute", "flow.yaml", "--replay", last(space)).code == 0
    assert trace(space)["run"]["params"] == {"who": "Ada"}


def test_secrets_need_not_be_there(space: Space) -> None:
    flow = "version: 1\nname: f\nsecrets: {KEY: {env: MY_KEY}}\nnodes: {a: {run: echo $KEY, secrets: [KEY]}}\n"
    space.file("flow.yaml", flow)
    assert space.run("execute", "flow.yaml", MY_KEY="tremendously-secret").code == 0
    recorded = last(space)
    assert space.run("execute", "flow.yaml").code == 3
    assert space.run("execute", "flow.yaml", "--replay", recorded).code == 0
    assert trace(space) == trace(space, recorded)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--run-tools",), 2, "--run-tools goes with --replay"),
        (("--replay", "last", "--only", "a"), 2, "played again as it was"),
        (("--replay", "z999"), 9, "z999"),
        (("--replay", "gone.jsonl"), 8, "can't read the recorded run gone.jsonl"),
        (("--replay", "flow.yaml"), 3, "none of a recorded run"),
    ],
)
def test_what_can_not_be_played_is_said(space: Space, words: tuple[str, ...], code: int, text: str) -> None:
    space.file("flow.yaml", "version: 1\nname: f\nnodes: {a: {run: echo a}}\n")
    done = space.run("execute", "flow.yaml", *words)
    assert (done.code, text in done.err) == (code, True), done.err
    assert not Path(space.folder, ".dagrun", "runs").exists()


def test_a_changed_record_names_what_is_wrong(space: Space) -> None:
    record(space)
    edit_event(space.folder / "run.jsonl", "call.reserved", digest="0" * 64)
    done = space.run("execute", "flow.yaml", "--replay", "run.jsonl")
    assert done.code == 8
    assert "attempt 1, call" in done.err
    assert "is not the one that its digest is of" in done.err


def test_a_replay_is_not_taken_up_again(space: Space) -> None:
    record(space)
    edit(space.folder / "flow.yaml", "Fix what", "Mend what")
    assert space.run("execute", "flow.yaml", "--replay", "run.jsonl").code == 6
    done = space.run("resume")
    assert done.code == 6
    assert "plays run" in done.err


# ---------------------------------------------------------------- the run that comes with the project


def test_the_shipped_run_is_played_and_explained(space: Space, guarded: dict[str, str]) -> None:
    """When a prompt of dagrun has changed, record it again: dagrun execute …, dagrun export --record FILE."""
    shutil.copytree(ROOT / "workflows", space.folder / "workflows")
    flow, shipped = "workflows/replanner.yaml", "workflows/records/replanner.jsonl"
    done = space.run("execute", flow, "--replay", shipped, "--ui", "quiet", **guarded)
    assert done.code == 0, done.err
    assert done.out == "line = sum of all prices 2.50+1.20\n"
    assert not (space.folder / "build").exists()  # nothing ran
    assert space.run("audit", shipped).code == 0
    text = (space.folder / shipped).read_text()
    assert '"host":' not in text
    assert '"pid":0' in text

"""replan, replan history, replan undo, export: a run is changed by a second process while the first works on it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dagrun.core.names import Status
from dagrun.store.history import load_state
from dagrun.store.rundir import RunDir

from .space import DEADLINE_S, Space
from .watch import is_, lines, newest, shown, typed, until

GATED = """
    version: 1
    name: gated
    nodes:
      first: {run: echo one}
      gate: {needs: first, run: read line < gate}
      lint: {needs: first, run: exit 3}
      report: {needs: [gate, lint], run: echo report >> said}
      ship: {needs: report, run: echo ship >> said}
    """


@pytest.fixture
def live(space: Space) -> tuple[Space, subprocess.Popen[str], RunDir]:
    """A run that waits at a gate, in which lint has failed."""
    space.file("gated.yaml", GATED)
    space.gate("gate")
    process = space.start("execute", "gated.yaml", "--ui", "log")
    run = newest(space)
    until(run, lambda s: is_("lint", Status.FAILED)(s) and is_("gate", Status.RUNNING)(s))
    return space, process, run


def opened(space: Space, process: subprocess.Popen[str]) -> tuple[int, str]:
    """Let the run through its gate; its exit code and what it said on stderr."""
    (space.folder / "gate").write_text("go\n")
    _, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, err


# ---------------------------------------------------------------- the examples that the project shows


def test_a_failing_pipeline_is_mended_while_it_runs(space: Space) -> None:
    shown(space, "repair.yaml")
    process = space.start("execute", "workflows/repair.yaml", "--ui", "log")
    run = newest(space)
    until(run, is_("total", Status.FAILED))
    done = space.run("replan", "--retry", "total:env.SEPARATOR=;", "--yes", "-m", "it has semicolons")
    assert done.code == 0
    assert done.out.startswith("admitted as revision 2; taken up by the engine ")
    assert '~ total  env.SEPARATOR "," -> ";"   failed: runs again' in done.err
    until(run, is_("total", Status.COMPLETED))
    (space.folder / "build/repair/dump.ready").touch()
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, "report = sales of all shops 295\n")
    assert "revision 2 by ada: retry total" in err


def test_a_scan_is_put_between_test_and_deploy(space: Space) -> None:
    shown(space, "add-scan.yaml", "patches/scan.yaml")
    process = space.start("execute", "workflows/add-scan.yaml", "--ui", "log")
    run = newest(space)
    until(run, is_("window", Status.RUNNING))
    done = space.run("replan", run.id, "--patch", "workflows/patches/scan.yaml", "--yes")
    assert done.code == 0
    assert "~ deploy  needs test, window -> window, scan" in done.err
    assert "+ scan    run " in done.err
    (space.folder / "build/shop/window").touch()
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert lines(space.folder / "build/shop/live/index.html") == ["<h1>Shop</h1>"]
    order = [load_state(run).plan.ids[i] for i in load_state(run).finished]
    assert order.index("test") < order.index("scan") < order.index("deploy")


def test_another_way_around_a_blocked_path(space: Space) -> None:
    shown(space, "alternative.yaml", "patches/local-copy.yaml")
    assert space.run("execute", "workflows/alternative.yaml", "-q").code == 1
    done = space.run("replan", "--patch", "workflows/patches/local-copy.yaml", "--resume", "--yes", "-q")
    assert (done.code, done.out) == (0, "version = tool 1.2\n")
    state = load_state(newest(space))
    assert is_("fetch", Status.SKIPPED)(state)
    assert [len(a) for a in state.attempts[:2]] == [1, 2], "what was done was not done again"


# ---------------------------------------------------------------- a run at work


def test_operations_of_one_command_are_one_revision(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    space.file("scan.yaml", "id: scan\nrun: echo scan >> said\n")
    words = ["--insert", "scan.yaml", "--after", "report", "--before", "ship", "--remove", "lint:bridge"]
    done = space.run("replan", run.id, *words, "--yes")
    assert done.code == 0, done.err
    assert f"run {run.id} (gated, running, pid " in done.err
    assert "revision 1 -> 2   5 nodes, 4 waves -> " not in done.err
    assert "- lint    failed; what needed it now needs first" in done.err
    assert "untouched: 1 done, 1 running" in done.err
    code, err = opened(space, process)
    assert code == 0
    assert lines(space.folder / "said") == ["report", "scan", "ship"]
    assert "revision 2 by ada: insert scan, remove lint" in err


def test_without_a_terminal_nothing_is_done_unless_said(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    done = space.run("replan", "--set", "ship.timeout=1m")
    assert done.code == 2
    assert f"dagrun replan {run.id} --set ship.timeout=1m --yes" in done.err
    dry = space.run("replan", "--set", "ship.timeout=1m", "--dry-run")
    assert (dry.code, dry.err) == (0, "dry run: nothing was changed\n")
    assert "~ ship  timeout 5m -> 1m" in dry.out
    assert b'"patch.' not in Path(run.journal).read_bytes()
    process.kill()


def test_a_person_is_asked(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    no = typed(space, "replan", "--set", "ship.timeout=1m", answers="n\n")
    assert (no.code, no.out) == (130, "")
    assert "Apply to the running workflow? [y/N] " in no.err
    assert "nothing was changed" in no.err
    assert load_state(run).plan.revision == 1
    yes = typed(space, "replan", "--set", "ship.timeout=1m", answers="y\n")
    assert yes.code == 0
    assert yes.out.startswith("admitted as revision 2; taken up by the engine ")
    process.kill()


def test_a_plan_that_moved_is_a_conflict(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    assert space.run("replan", "--set", "ship.timeout=1m", "--yes", "-q").code == 0
    late = space.run("replan", "--set", "ship.timeout=2m", "--base", "1", "--yes")
    assert (late.code, late.out) == (6, "")
    assert f"run {run.id} is at revision 2, you built on 1 (revision 2 by ada)" in late.err
    assert load_state(run).plan.workflow.nodes["ship"].timeout_s == 60
    early = space.run("replan", "--set", "ship.timeout=2m", "--base", "9", "--yes")
    assert (early.code, f"run {run.id} has no revision 9 yet: it is at 2" in early.err) == (6, True)
    rebased = space.run("replan", "--set", "ship.grace=2s", "--base", "1", "--rebase", "--yes")
    assert rebased.code == 0
    ship = load_state(run).plan.workflow.nodes["ship"]
    assert (ship.timeout_s, ship.grace_s) == (60, 2), "both changes are there"
    process.kill()


def test_of_two_at_once_one_wins(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    both = [space.start("replan", run.id, "--set", f"ship.timeout={n}m", "--base", "1", "--yes") for n in (1, 2)]
    for one in both:
        one.communicate(timeout=DEADLINE_S)
    assert sorted(one.returncode for one in both) == [0, 6]
    assert load_state(run).plan.revision == 2
    process.kill()


def test_a_refused_patch_says_all_and_where(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    space.file(
        "patch.yaml",
        """
        trigger: {type: optimization, reason: faster}
        operations:
          - rewire: {id: report, old: [gate], new: [ship]}
          - remove: {id: nosuch, strategy: bridge}
          - modify: {id: first, set: {timeout: 10m}}
        """,
    )
    done = space.run("replan", run.id, "--patch", "patch.yaml", "--yes")
    assert (done.code, done.out) == (3, "")
    assert "there is no node `nosuch`\n  --> patch.yaml:4:" in done.err
    assert "node `first` is completed\n  --> patch.yaml:5:" in done.err
    assert load_state(run).plan.revision == 1
    document = yaml.safe_load(space.run("replan", "history", run.id, "--yaml").out)["modificationHistory"]
    (refused,) = document["refused"]
    assert (refused["outcome"], refused["actor"], refused["head"]) == ("refused", "ada", 1)
    assert any("nosuch" in reason for reason in refused["reasons"])
    assert [a["type"] for a in refused["actions"]] == ["rewire", "remove", "modify"]
    assert "refused on 1" in space.run("replan", "history", run.id).out
    process.kill()


def test_a_cycle_is_shown_as_a_path(live: tuple[Space, Any, RunDir]) -> None:
    space, process, _ = live
    done = space.run("replan", "--rewire", "report=ship", "--yes")
    assert done.code == 3
    assert "report -> ship -> report" in done.err or "ship -> report -> ship" in done.err
    assert "--rewire report=ship" in done.err
    process.kill()


def test_what_runs_is_ended_only_when_that_is_said(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    words = ["replan", run.id, "--set", "gate.run=echo through", "--yes"]
    refused = space.run(*words)
    assert refused.code == 3
    assert "--cancel-running" in refused.err
    done = space.run(*words, "--cancel-running", "--remove", "lint:skip")
    assert done.code == 0, done.err
    assert "ends what runs: gate" in done.err
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert lines(space.folder / "said") == ["report", "ship"]


# ---------------------------------------------------------------- a run at rest


def test_without_an_engine_it_is_said_how_to_go_on(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    run = newest(space)
    done = space.run("replan", "--set", "after.timeout=1m", "--retry", "bad:timeout=1m", "--yes")
    assert (done.code, done.out) == (0, f"admitted as revision 2; no engine is alive: dagrun resume {run.id}\n")
    assert "+ after" not in done.err.replace("~ after", "")
    assert space.run("status", "--json").json["status"] == "interrupted"


def test_resume_goes_on_in_the_foreground(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    done = space.run("replan", "--set", "ok.timeout=1m", "--yes")
    assert done.code == 3, "finished work is never changed"
    done = space.run("replan", "--fallback", "bad=better.yaml", "--yes")
    assert (done.code, "can't read better.yaml" in done.err) == (2, True)
    space.file("better.yaml", "run: echo better\n")
    done = space.run("replan", "--fallback", "bad=better.yaml", "--yes", "--resume", "--json")
    assert done.code == 0, done.err
    assert (done.json["status"], done.json["exit_code"]) == ("completed", 0)
    entries = {e["node_id"]: e["status"] for e in space.run("trace", "show", "--json").json["entries"]}
    assert entries == {"ok": "completed", "bad": "superseded", "bad-fallback": "completed", "after": "completed"}


def test_a_completed_run_takes_a_rerun_and_an_insert(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    refused = space.run("replan", "--remove", "greet:bridge", "--yes")
    assert refused.code == 3
    space.file("bye.yaml", "id: bye\nrun: echo bye\nneeds: greet\n")
    done = space.run("replan", "--rerun", "who", "--insert", "bye.yaml", "--yes", "--resume")
    assert done.code == 0, done.err
    assert "~ who    completed, now stale: runs again" in done.err
    assert "~ greet  completed, now stale: runs again" in done.err
    state = load_state(newest(space))
    assert [len(a) for a in state.attempts] == [2, 2, 1]


def test_json_of_a_preview_and_of_an_admission(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    run = newest(space)
    dry = space.run("replan", "--retry", "bad:timeout=1m", "--dry-run", "--json")
    assert dry.json == {
        "run_id": run.id,
        "base": 1,
        "revision": 2,
        "added": [],
        "removed": [],
        "changed": ["bad"],
        "skipped": {},
        "superseded": {},
        "rerun": ["bad"],
        "stale": [],
        "revived": ["after"],
        "cancelled": [],
        "limits": {},
        "waves": {"before": 3, "after": 3},
        "cost_usd": 0.0,
        "warnings": [],
        "notes": [],
    }
    done = space.run("replan", "--retry", "bad:timeout=1m", "--yes", "--json")
    assert done.json["revision"] == 2
    assert (done.json["adopted_ms"], done.json["engine_alive"]) == (None, False)
    error = space.run("replan", "--retry", "bad", "--base", "1", "--yes", "--json")
    assert (error.code, error.json["error"]["code"]) == (6, "conflict")


# ---------------------------------------------------------------- what can't be meant


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to do"),
        (["--remove", "lint"], "--remove lint:cascade"),
        (["--after", "a"], "--after and --before go with one --insert"),
        (["--patch", "p.yaml", "--rerun", "a"], "don't mix"),
        (["--write", "--rerun", "a"], "--write and -o are for a file"),
        (["--patch", "nowhere.yaml"], "can't read nowhere.yaml"),
        (["--set", "ship"], "NODE.KEY=VALUE"),
    ],
)
def test_usage(space: Space, words: list[str], said: str) -> None:
    space.run("execute", "hello.yaml", "-q")
    done = space.run("replan", "last", *words, "--yes")
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_all_bad_flags_at_once(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    done = space.run("replan", "--set", "after.timeut=1m", "--set", "after.retry.max_attempts=x", "--yes")
    assert done.code == 3
    assert "did you mean `timeout`?" in done.err
    assert "2 errors" in done.err


# ---------------------------------------------------------------- history, undo, plan, export


def test_history_has_the_shape_of_the_seed(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    run = newest(space)
    space.run("replan", "--retry", "bad:timeout=1m", "--set", "after.timeout=2m", "--yes", "-q", "-m", "too slow")
    space.run("replan", "--remove", "bad:bridge", "--yes", "-q")
    document = yaml.safe_load(space.run("replan", "history", "--yaml").out)
    history = document["modificationHistory"]
    assert (history["dagId"], history["originalVersion"], history["currentVersion"]) == ("fails", 1, 3)
    assert [m["version"] for m in history["modifications"]] == [2, 2, 3]
    first = history["modifications"][1]
    assert first["trigger"] == {"type": "failure", "nodeId": "bad", "reason": "too slow"}
    assert first["action"] == {"type": "retry", "nodeId": "bad", "modifications": {"timeout": "1m"}}
    assert (first["base"], first["actor"], first["outcome"]) == (1, "ada", "admitted")
    plan = json.loads(Path(run.journal).read_bytes().splitlines()[0][9:])["e"][0]["plan_digest"]
    assert first["baseDigest"] == plan
    assert space.run("replan", "history", "--json").json == document
    table = space.run("replan", "history").out.splitlines()
    assert [line.split()[0] for line in table] == ["REVISION", "1", "2", "3"]


def test_what_a_revision_changed_and_the_plan_as_it_was(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    space.run("replan", "--remove", "bad:bridge", "--yes", "-q")
    diff = space.run("replan", "history", "--diff", "2").out
    assert "- bad    failed; what needed it now needs ok" in diff
    assert "~ after  needs bad -> ok" in diff
    assert "bad" in space.run("plan", "last", "--revision", "1").out
    assert "bad" not in space.run("plan", "last", "--revision", "2").out
    assert space.run("plan", "last", "--revision", "3").code == 9
    assert space.run("replan", "history", "--diff", "7").code == 9
    assert space.run("plan", "fails.yaml", "--revision", "1").code == 2


def test_undo_brings_a_removed_node_back_under_its_id(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    assert space.run("replan", "--remove", "report:bridge", "--remove", "lint:skip", "--yes", "-q").code == 0
    assert "report" not in load_state(run).plan.workflow.nodes
    done = space.run("replan", "undo", "--dry-run")
    assert "+ report" in done.out
    assert space.run("replan", "undo", "--yes").code == 0
    assert "report" in load_state(run).plan.workflow.nodes
    assert space.run("replan", "--remove", "lint:skip", "--yes", "-q").code == 0
    code, _ = opened(space, process)
    assert (code, lines(space.folder / "said")) == (0, ["report", "ship"])
    history = space.run("replan", "history").out
    assert "undoes 2" in history


def test_what_is_written_behind_the_end_does_not_make_a_run_longer(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    before = space.run("trace", "show", "--json").json["run"]["duration_ms"]
    assert space.run("replan", "--limit", "parallel=1", "--yes").code == 3
    assert space.run("trace", "show", "--json").json["run"]["duration_ms"] == before
    assert "has not finished" not in space.run("execute", "hello.yaml", "--ui", "log").err


def test_the_outputs_of_the_workflow_follow_a_fallback(space: Space) -> None:
    space.file(
        "result.yaml",
        """
        version: 1
        name: result
        nodes:
          t: {run: exit 1, outputs: {text: {from: stdout}}}
        templates:
          plain: {run: echo plain, outputs: {text: {from: stdout}}}
          bare: {run: echo bare, outputs: {other: {from: stdout}}}
        outputs: {text: nodes.t.text, long: "it says ${{ nodes.t.text }}"}
        """,
    )
    assert space.run("execute", "result.yaml", "-q").code == 1
    gone = space.run("replan", "--fallback", "t=bare", "--dry-run")
    assert (gone.code, "reads `nodes.t.text`, which would be gone" in gone.err) == (3, True)
    done = space.run("replan", "--fallback", "t=plain", "--yes", "--resume", "-q")
    assert done == (0, "text = plain\nlong = it says plain\n", "")
    history = space.run("replan", "history", "--json").json["modificationHistory"]["modifications"]
    assert history[0]["action"]["fallback"] == {"id": "t-fallback", "template": "plain"}
    assert space.run("export", "-o", "again.yaml", "-q").code == 0
    assert space.run("execute", "again.yaml", "-q") == (0, "text = plain\nlong = it says plain\n", "")
    edited = space.run("replan", "result.yaml", "--fallback", "t=plain").out
    results = {"text": "nodes.t-fallback.text", "long": "it says ${{ nodes.t-fallback.text }}"}
    assert yaml.safe_load(edited)["outputs"] == results
    cut = space.run("replan", "result.yaml", "--remove", "t:cascade")
    assert (cut.code, "unset: [outputs.text]" in cut.err) == (3, True)


def test_undo_of_nothing(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    done = space.run("replan", "undo", "--yes")
    assert done.code == 9
    assert "has no revision to undo" in done.err


def test_an_exported_run_is_a_workflow_again(space: Space) -> None:
    space.file(
        "greets.yaml",
        """
        version: 1
        name: greets
        params: {who: {type: string}}
        nodes:
          name: {run: exit 1, outputs: {text: {from: stdout}}}
          greet: {inputs: {text: nodes.name.text}, run: 'echo "$INPUT_TEXT"', outputs: {said: {from: stdout}}}
          never: {needs: name, run: exit 1}
        outputs: {said: nodes.greet.said}
        """,
    )
    assert space.run("execute", "greets.yaml", "-p", "who=Ada", "-q").code == 1
    space.file("named.yaml", 'env: {WHO: "${{ params.who }}"}\nrun: echo "hello $WHO"\n')
    words = ["--fallback", "name=named.yaml", "--remove", "never:skip", "--yes", "--resume", "-q"]
    assert space.run("replan", *words) == (0, "said = hello Ada\n", "")
    done = space.run("export", "-o", "again.yaml")
    assert done.code == 0
    assert "dagrun execute again.yaml" in done.err
    assert space.run("validate", "again.yaml").code == 0
    assert space.run("execute", "again.yaml", "-q") == (0, "said = hello Ada\n", "")
    again = yaml.safe_load((space.folder / "again.yaml").read_text())
    assert set(again["nodes"]) == {"name-fallback", "greet"}
    assert space.run("export", "--json").json == again


def test_an_exported_file_elsewhere_names_the_same_files(space: Space) -> None:
    space.file("flows/rules/talk.yaml", "rules: [{node: greet, text: Hello}]\n")
    space.file("flows/skills/polite/SKILL.md", "---\nname: polite\ndescription: Be polite.\n---\nSay please.\n")
    space.file(
        "flows/talk.yaml",
        """
        version: 1
        name: talk
        provider: {kind: fake, rules: rules/talk.yaml}
        nodes: {greet: {agent: {prompt: Greet, skills: [polite]}, outputs: {text: {}}}}
        outputs: {text: nodes.greet.text}
        """,
    )
    assert space.run("execute", "flows/talk.yaml", "-q") == (0, "text = Hello\n", "")
    (space.folder / "out").mkdir()
    done = space.run("export", "-o", "out/again.yaml")
    assert yaml.safe_load((space.folder / "out/again.yaml").read_text())["provider"]["rules"] == (
        "../flows/rules/talk.yaml"
    )
    assert (done.code, done.out) == (0, "")
    assert done.err == (
        "wrote out/again.yaml\n"
        "warning: the skill `polite` is not found from there: copy flows/skills/polite to out/skills\n"
        "  help: dagrun execute out/again.yaml\n"
    )
    shutil.copytree(space.folder / "flows/skills", space.folder / "out/skills")
    assert space.run("execute", "out/again.yaml", "-q") == (0, "text = Hello\n", "")
    # what a pipe gets is named from here
    assert space.run("export", "--json").json["provider"]["rules"] == "flows/rules/talk.yaml"
    (space.folder / "flows/rules/talk.yaml").unlink()
    gone = space.run("export", "-o", "more.yaml").err
    assert "warning: it names flows/rules/talk.yaml, which is not there\n" in gone


# ---------------------------------------------------------------- edited plans, files


def editor(space: Space, script: str) -> str:
    """An editor that is sed."""
    return str(space.file("editor.sh", f'sed -i {script} "$1"\n').parent / "editor.sh")


def test_the_plan_of_a_run_is_edited(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    path = editor(space, "-e 's/exit 3/exit 0/' -e 's/    run: \"true\"/    run: echo after/'")
    done = space.run("replan", "--edit", "--yes", "--resume", EDITOR=f"sh {path}")
    assert done.code == 0, done.err
    assert "exit 0   failed: runs again" in done.err, "what failed and is edited is tried again"
    path = editor(space, "'s/name: fails/name: fails/'")
    same = space.run("replan", "--edit", "--yes", EDITOR=f"sh {path}")
    assert (same.code, "changes nothing" in same.err) == (2, True)
    assert space.run("replan", "--edit", "--yes", EDITOR="false").code == 2
    none = space.run("replan", "fails.yaml", "--edit", EDITOR="")
    assert (none.code, "EDITOR=vi dagrun replan fails.yaml --edit" in none.err) == (2, True)


@pytest.mark.parametrize("target", ["fails.yaml", "last"])
def test_an_edit_that_is_no_workflow_is_not_lost(space: Space, target: str) -> None:
    space.run("execute", "fails.yaml", "-q")
    path = editor(space, "'$ a x: ['")
    done = space.run("replan", target, "--edit", "--dry-run", EDITOR=f"sh {path}")
    assert done.code == 3
    words = done.err.partition("your text is kept: ")[2].split()
    assert words[:2] == ["dagrun", "replan"]
    kept = Path(words[-1])
    assert kept.read_text().endswith("x: [\n")
    kept.unlink()
    kept.parent.rmdir()


def test_a_run_is_made_as_a_file_says(live: tuple[Space, Any, RunDir]) -> None:
    space, process, run = live
    space.file("gated.yaml", GATED.replace("echo ship", "echo shipped").replace("lint]", "first]"))
    done = space.run("replan", "--to", "gated.yaml", "--yes")
    assert done.code == 0, done.err
    assert "~ report  needs gate, lint -> " in done.err
    patch = space.run("diff", run.id, "gated.yaml")
    assert (patch.code, patch.out) == (0, "")
    code, _ = opened(space, process)
    assert code == 1, "lint has failed, and nothing needs it any more"
    assert lines(space.folder / "said") == ["report", "shipped"]


def test_what_a_file_alone_can_change_is_refused_on_a_run(space: Space) -> None:
    space.run("execute", "fails.yaml", "-q")
    space.file("other.yaml", (space.folder / "fails.yaml").read_text() + "schedule: ready\n")
    done = space.run("replan", "--to", "other.yaml", "--yes")
    assert done.code == 3
    assert "`schedule` of a workflow can't be changed in a run" in done.err


FLOW = """
    # how it is shipped
    version: 1
    name: flow
    nodes:
      build: {run: make}        # quick

      test:                     # slow
        needs: build
        run: make test
      deploy:
        needs: test             # only then
        run: ./deploy.sh
    """


def test_a_file_keeps_its_comments_and_order(space: Space) -> None:
    path = space.file("flow.yaml", FLOW)
    before = path.read_text()
    space.file("scan.yaml", "id: scan\nrun: ./scan.sh\n")
    words = ["replan", "flow.yaml", "--insert", "scan.yaml", "--after", "test", "--before", "deploy"]
    printed = space.run(*words)
    assert (printed.code, printed.err) == (0, "")
    assert path.read_text() == before
    done = space.run(*words, "--write")
    assert (done.code, done.out) == (0, "")
    assert "+  scan:" in done.err
    after = path.read_text()
    assert printed.out == after
    for kept in ("# how it is shipped\n", "build: {run: make}        # quick\n\n", "# slow\n", "# only then\n"):
        assert kept in after
    assert yaml.safe_load(after)["nodes"]["deploy"]["needs"] == ["scan"]
    again = space.run("diff", "flow.yaml", "flow.yaml", "--exit-code")
    assert again.code == 0


def test_a_file_elsewhere_and_json(space: Space) -> None:
    path = space.file("flow.yaml", FLOW)
    before = path.read_text()
    words = ["--remove", "test:bridge", "--set", "deploy.timeout=1m", "-o", "new.yaml", "-q"]
    done = space.run("replan", "flow.yaml", *words)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert path.read_text() == before
    nodes = yaml.safe_load((space.folder / "new.yaml").read_text())["nodes"]
    assert nodes == {"build": {"run": "make"}, "deploy": {"needs": ["build"], "run": "./deploy.sh", "timeout": "1m"}}
    patch = space.run("diff", "flow.yaml", "new.yaml", "--exit-code")
    assert patch.code == 10
    space.file("patch.yaml", patch.out)
    there = space.run("replan", "flow.yaml", "--patch", "patch.yaml", "--json").json
    assert (there["changed"], there["written"]) == (True, "")
    assert yaml.safe_load(there["text"])["nodes"] == nodes


@pytest.mark.parametrize("words", [["--resume"], ["--rebase"], ["--base", "2"], ["--cancel-running"]])
def test_what_only_a_run_has(space: Space, words: list[str]) -> None:
    space.file("flow.yaml", FLOW)
    assert space.run("replan", "flow.yaml", "--unset", "deploy.run", *words).code == 2


def test_a_change_of_a_file_that_leaves_no_workflow(space: Space) -> None:
    path = space.file("flow.yaml", FLOW)
    before = path.read_text()
    done = space.run("replan", "flow.yaml", "--rewire", "build=deploy", "--rewire", "test=nosuch", "--write")
    assert (done.code, done.out) == (3, "")
    assert "nosuch" in done.err
    assert path.read_text() == before


# ---------------------------------------------------------------- rehearse


def test_rehearse(space: Space) -> None:
    shown(space, "alternative.yaml")
    done = space.run("rehearse", "workflows/alternative.yaml")
    assert done.code == 0
    assert "fetch" in done.out
    assert space.run("rehearse", "workflows/alternative.yaml", "--strict").code == 1
    assert space.run("rehearse", "hello.yaml", "--depth", "2", "--json").json["version"] == 1


GUARDED = """
permissions: {paths: {read: [src]}, network: none}
nodes:
  a: {run: "true"}
"""
WIDER = """
operations:
  - insert:
      id: b
      node:
        permissions: {network: any}
        run: "true"
      after: a
  - modify: {id: a, set: {permissions: {paths: {read: [src, keys]}}}}
"""


def test_a_patch_that_asks_for_more_is_refused_at_its_line(space: Space) -> None:
    (space.folder / "guarded.yaml").write_text(GUARDED)
    (space.folder / "wider.yaml").write_text(WIDER)
    done = space.run("replan", "guarded.yaml", "--patch", "wider.yaml", "--write", "--yes")
    assert done.code == 3
    assert "`b` asks for network `any`, but the workflow allows no network\n  --> wider.yaml:6:32\n" in done.err
    assert "`a` asks to read `keys`, but the workflow allows only `src`\n  --> wider.yaml:9:61\n" in done.err
    (space.folder / "b.yaml").write_text("id: b\npermissions:\n  network: any\nrun: x\n")
    done = space.run("replan", "guarded.yaml", "--insert", "b.yaml", "--after", "a", "--write", "--yes")
    assert (done.code, "  --> b.yaml:3:12\n" in done.err) == (3, True)
    assert (space.folder / "guarded.yaml").read_text() == GUARDED

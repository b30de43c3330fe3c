"""replan --suggest: a model is asked for a patch of a run, and a person decides on it."""

from __future__ import annotations

import signal
from pathlib import Path
from time import monotonic

import pytest

from dagrun.core.names import Status
from dagrun.store.history import load_state
from dagrun.store.rundir import RunDir, find_run, list_runs

from .space import DEADLINE_S, Space
from .watch import is_, lines, newest, typed, until

FLOW = """
    version: 1
    name: mend
    permissions: {cost_budget: 1.00}
    models: {cheap: [fake/cheap], strong: [fake/strong]}
    provider:
      kind: fake
      rules: rules.yaml
      prices: {fake/cheap: {input: 1, output: 1}, fake/strong: {input: 1000, output: 1000}}
    nodes:
      fetch: {run: echo fetch >> said}
      build: {needs: fetch, run: 'echo compiling; echo "E42: the cache is full" >&2; exit 3'}
      ship: {needs: build, run: echo ship >> said}
    templates:
      spare: {run: echo spare >> said}
    """
RULES = """
    rules:
      - node: build-replanner
        prompt: "What is wanted: your own way"
        json: {reason: I know better, operations: [{fallback: {id: build, with: {run: echo mine >> said}}}]}
      - {node: build-replanner, prompt: "What is wanted: poetry", text: a poem}
      - node: build-replanner
        prompt: "What is wanted: nothing"
        json: {reason: it is fine as it is, operations: []}
      - node: build-replanner
        prompt: "What is wanted: the impossible"
        json: {reason: why not, operations: [{retry: {id: nobody}}]}
      - node: build-replanner
        last: "E42: the cache is full"
        json: {reason: there is a spare, operations: [{fallback: {id: build, with: spare}}]}
      - node: plan-replanner
        prompt: "What is wanted: a look at \\\\$\\\\{\\\\{ params.nobody \\\\}\\\\} first"
        json: {reason: as you wish, operations: [{insert: {id: look, node: {review: Fine?}, after: [ship]}}]}
    """


@pytest.fixture
def failed(space: Space) -> tuple[Space, RunDir]:
    """A run in which build has failed."""
    space.file("flow.yaml", FLOW)
    space.file("rules.yaml", RULES)
    assert space.run("execute", "flow.yaml", "-q").code == 1
    return space, newest(space)


def questions(space: Space, run: RunDir) -> list[RunDir]:
    return [other for other in list_runs(str(space.folder)) if other.id != run.id]


def test_a_model_is_asked_and_nothing_changes_before_a_person_says_so(failed: tuple[Space, RunDir]) -> None:
    space, run = failed
    before = Path(run.journal).read_bytes()
    done = space.run("replan", run.id, "--suggest")
    assert done.code == 2
    assert "asking cheap for a patch" in done.err
    assert "there is a spare" in done.err
    assert "build-fallback takes its place" in done.err
    assert f"dagrun replan {run.id} --patch .dagrun/runs/{questions(space, run)[0].id}/patch.yaml --yes" in done.err
    assert Path(run.journal).read_bytes() == before


def test_admitted_it_is_a_patch_as_any_other(failed: tuple[Space, RunDir]) -> None:
    space, run = failed
    done = space.run("replan", "--suggest", "--yes", "--resume", "-q")
    assert done.code == 0, done.err
    assert lines(space.folder / "said") == ["fetch", "spare", "ship"]
    (question,) = questions(space, run)
    (change,) = space.run("replan", "history", run.id, "--json").json["modificationHistory"]["modifications"]
    assert change["actor"] == "ada"
    assert change["trigger"] == {
        "type": "failure",
        "nodeId": "build",
        "reason": f"there is a spare (suggested in run {question.id})",
    }


def test_what_it_asked_and_cost_is_on_record_and_the_run_is_still_the_last(failed: tuple[Space, RunDir]) -> None:
    space, run = failed
    space.run("replan", "--suggest", "--dry-run")
    (question,) = questions(space, run)
    entry = space.run("trace", "show", question.id, "--json").json["entries"][0]
    assert (entry["node_id"], entry["model"]) == ("build-replanner", "fake/cheap")
    assert entry["cost_usd"] > 0
    assert find_run(str(space.folder), "last").id == run.id
    assert load_state(run).ledger is None  # the run itself has bought nothing


def test_its_budget_is_what_the_run_has_left(failed: tuple[Space, RunDir]) -> None:
    space, run = failed
    done = space.run("replan", "--suggest", "--model", "strong", "--yes")
    assert done.code == 5
    assert "no patch was suggested: the next call may cost" in done.err
    (question,) = questions(space, run)
    permissions = load_state(question).plan.workflow.permissions
    assert permissions is not None
    assert permissions.cost_budget == 10**9
    assert load_state(run).plan.revision == 1


def test_yes_does_not_let_in_a_command_that_nobody_has_seen(failed: tuple[Space, RunDir]) -> None:
    space, run = failed
    done = space.run("replan", "--suggest", "--yes", "-m", "your own way")
    assert done.code == 2
    assert "a person has to look at this suggestion" in done.err
    assert "it brings the new command `build-fallback`" in done.err
    assert load_state(run).plan.revision == 1
    path = f".dagrun/runs/{questions(space, run)[0].id}/patch.yaml"
    assert space.run("replan", run.id, "--patch", path, "--yes", "--resume", "-q").code == 0
    assert lines(space.folder / "said") == ["fetch", "mine", "ship"]


def test_in_a_terminal_it_is_asked_all_the_same(failed: tuple[Space, RunDir]) -> None:
    space, run = failed
    done = typed(space, "replan", "--suggest", "--yes", "-m", "your own way", answers="y\n")
    assert done.code == 0, done.err
    assert "asked all the same" in done.err
    assert load_state(run).plan.revision == 2


@pytest.mark.parametrize(
    ("wish", "code", "said"),
    [
        ("poetry", 1, "no patch was suggested: the answer does not fit its schema"),
        ("nothing", 1, "no patch was suggested: it is fine as it is"),
        ("the impossible", 3, "nobody"),
    ],
)
def test_answers_that_are_no_help(failed: tuple[Space, RunDir], wish: str, code: int, said: str) -> None:
    space, run = failed
    done = space.run("replan", "--suggest", "--yes", "-m", wish)
    assert (done.code, said in done.err) == (code, True), done.err
    assert load_state(run).plan.revision == 1


def test_a_wish_without_a_failure_is_taken_to_the_letter(space: Space) -> None:
    space.file("flow.yaml", FLOW.replace("; exit 3", ""))
    space.file("rules.yaml", RULES)
    assert space.run("execute", "flow.yaml", "-q").code == 0
    run = newest(space)
    nothing = space.run("replan", "--suggest")
    assert (nothing.code, f"nothing has failed in run {run.id}" in nothing.err) == (2, True)
    done = space.run("replan", "--suggest", "--yes", "-m", "a look at ${{ params.nobody }} first")
    assert done.code == 0, done.err
    assert "look" in load_state(run).plan.index


def test_of_a_run_that_is_alive(space: Space) -> None:
    beside = "      slow: {needs: fetch, run: read line < gate}\n      build:"
    space.file("flow.yaml", FLOW.replace("      build:", beside))
    space.file("rules.yaml", RULES)
    space.gate("gate")
    process = space.start("execute", "flow.yaml", "--ui", "log")
    run = newest(space)
    until(run, is_("build", Status.FAILED))
    done = space.run("replan", run.id, "--suggest", "--yes")
    assert done.code == 0, done.err
    assert "taken up by the engine" in done.out
    (space.folder / "gate").write_text("go\n")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert lines(space.folder / "said") == ["fetch", "spare", "ship"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("flow.yaml", "--suggest"), "--suggest is for a run"),
        (("--suggest", "--rerun", "fetch"), "don't mix"),
        (("--node", "build", "--rerun", "fetch"), "go with --suggest"),
    ],
)
def test_usage(failed: tuple[Space, RunDir], words: tuple[str, ...], said: str) -> None:
    space, _ = failed
    done = space.run("replan", *words)
    assert (done.code, said in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(("--node", "nobody"), 9, "nobody"), (("--model", "mighty"), 3, "mighty")],
)
def test_what_can_not_be_asked(failed: tuple[Space, RunDir], words: tuple[str, ...], code: int, said: str) -> None:
    space, run = failed
    done = space.run("replan", "--suggest", *words)
    assert (done.code, said in done.err) == (code, True), done.err
    assert questions(space, run) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_question_ends_with_who_asks(space: Space, number: int) -> None:
    space.file("flow.yaml", FLOW)
    space.file("rules.yaml", RULES.replace("- node: build-replanner", "- latency: 60s\n        node: build-replanner"))
    assert space.run("execute", "flow.yaml", "-q").code == 1
    run = newest(space)
    asking = space.start("replan", run.id, "--suggest", "--yes")
    question = _begun(space, run)
    until(question, is_("build-replanner", Status.RUNNING))
    asking.send_signal(number)
    asking.communicate(timeout=DEADLINE_S)  # the end of its output: nobody holds it any more
    assert asking.returncode == -number
    assert question.lock_holder() is None
    assert load_state(run).plan.revision == 1


def _begun(space: Space, run: RunDir) -> RunDir:
    end = monotonic() + DEADLINE_S
    while monotonic() < end:
        found = [r for r in list_runs(str(space.folder)) if r.read_meta().get("for") == run.id]
        if found:
            return found[0]
    raise AssertionError("nothing was asked")

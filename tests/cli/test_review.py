"""review: what waits for a human, decided by flags and in a dialogue."""

from __future__ import annotations

import pytest

from dagrun.core.names import Status
from dagrun.store.history import load_state

from .space import DEADLINE_S, Space
from .watch import is_, lines, newest, shown, typed, until

GATE = """
    version: 1
    name: gate
    nodes:
      notes: {run: "true"}
      ask: {needs: notes, review: Publish it?}
      publish: {needs: ask, run: echo published >> said}
    """
MENDS = """
    version: 1
    name: mends
    nodes:
      total:
        run: 'test -n "$GIVEN" || { echo no number given >&2; exit 4; }; echo "sum=$GIVEN" >> "$DAGRUN_OUTPUT"'
        env: {GIVEN: ""}
        outputs: {sum: {from: output, schema: {type: string}}}
        on_failure: review
      tell: {inputs: {sum: nodes.total.sum}, run: echo "$INPUT_SUM" >> said}
    """
PROPOSES = """
    version: 1
    name: proposes
    nodes:
      look:
        run: |
          cat > "$DAGRUN_PATCH" <<'PATCH'
          trigger: {type: requirement, reason: the data is in two parts}
          operations:
            - insert: {id: second, node: {run: echo second >> said}, after: [look], before: [end]}
          PATCH
      end: {needs: look, run: echo end >> said}
    """


@pytest.fixture
def gate(space: Space) -> Space:
    space.file("gate.yaml", GATE)
    assert space.run("execute", "gate.yaml", "-q").code == 4
    return space


@pytest.fixture
def mends(space: Space) -> Space:
    space.file("mends.yaml", MENDS)
    assert space.run("execute", "mends.yaml", "-q").code == 4
    return space


# ---------------------------------------------------------------- a review node


def test_without_a_terminal_the_commands_are_listed(gate: Space) -> None:
    run = newest(gate)
    done = gate.run("review")
    assert done.code == 2
    assert done.out.splitlines() == [
        "‖ ask  Publish it?",
        f"  dagrun review {run.id} ask --approve",
        f"  dagrun review {run.id} ask --reject",
    ]
    assert "there is no terminal" in done.err
    document = gate.run("review", "--json")
    assert (document.code, [w["node_id"] for w in document.json["waiting"]]) == (2, ["ask"])
    assert "dagrun review " in gate.run("status").out


def test_approve_goes_on_in_the_foreground(gate: Space) -> None:
    done = gate.run("review", "ask", "--approve", "-m", "looks good")
    assert done.code == 0
    assert "approved ask\n" in done.err
    assert lines(gate.folder / "said") == ["published"]
    entry = gate.run("trace", "show", "--node", "ask", "--json").json["entries"][0]
    assert (entry["status"], entry["output_summary"]) == ("completed", "looks good")


def test_reject_fails_the_node(gate: Space) -> None:
    done = gate.run("review", newest(gate).id, "ask", "--reject", "-m", "not yet", "--json")
    assert (done.code, done.json["status"]) == (1, "failed")
    state = load_state(newest(gate))
    assert is_("ask", Status.FAILED)(state)
    assert is_("publish", Status.SKIPPED)(state)
    assert "not yet" in gate.run("trace", "show").out


def test_only_recorded(gate: Space) -> None:
    done = gate.run("review", "ask", "--approve", "--no-resume")
    run = newest(gate)
    assert (done.code, done.out) == (0, "approved ask\n")
    assert done.err == f"  help: go on with it: dagrun resume {run.id}\n"
    assert not lines(gate.folder / "said")
    again = gate.run("review", "ask", "--reject")
    assert (again.code, "ask awaits no review: it is completed" in again.err) == (6, True)
    assert gate.run("resume", "-q").code == 0


def test_a_question_is_asked_in_a_terminal(gate: Space) -> None:
    later = typed(gate, "review", answers="\n")
    assert (later.code, "it goes on waiting" in later.err) == (0, True)
    done = typed(gate, "review", answers="x\na\nfine by me\n")
    assert done.code == 0
    assert "‖ ask  Publish it?" in done.err
    assert "[a] approve, [r] reject: it fails, [enter] later: " in done.err
    assert "not one of a, r" in done.err
    assert lines(gate.folder / "said") == ["published"]


def test_nothing_waits(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    done = space.run("review")
    assert (done.code, "nothing waits for a human" in done.err) == (0, True)
    assert space.run("review", "--json").json["waiting"] == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ask", "--approve", "--reject"], 2, "choose one"),
        (["ask", "--modify", "timeout=1m"], 2, "is a question, not a command"),
        (["ask", "--reject", "--outputs", "o.json"], 2, "--outputs goes with"),
        (["notes", "--approve"], 6, "notes awaits no review: it is completed"),
        (["nosuch", "--approve"], 9, "nosuch"),
        (["7", "--approve"], 9, "no open proposal 7"),
    ],
)
def test_what_can_not_be_decided(gate: Space, words: list[str], code: int, said: str) -> None:
    done = gate.run("review", *words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert load_state(newest(gate)).reviews


def test_a_gate_is_decided_while_others_work(space: Space) -> None:
    space.file("both.yaml", GATE.rstrip() + "\n      slow: {needs: notes, run: read line < door}\n")
    space.gate("door")
    process = space.start("execute", "both.yaml", "--ui", "log")
    run = newest(space)
    until(run, lambda s: bool(s.reviews) and is_("slow", Status.RUNNING)(s))
    done = space.run("review", "ask", "--approve")
    assert (done.code, done.out, done.err) == (0, "approved ask\n", "the engine of the run goes on with it\n")
    until(run, is_("ask", Status.COMPLETED))
    (space.folder / "door").write_text("go\n")
    process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, lines(space.folder / "said")) == (0, ["published"])


# ---------------------------------------------------------------- a failure that a human was asked about


def test_why_it_failed_is_shown(mends: Space) -> None:
    out = mends.run("review").out
    assert "‖ total  total failed: exit code 4" in out
    assert "  1 try: exit code 4" in out
    assert "    | no number given" in out
    assert "  waiting for it: tell" in out
    assert "total --modify timeout=10m" in out


def test_modify_tries_it_again(mends: Space) -> None:
    done = mends.run("review", "total", "--modify", "env.GIVEN=42", "-m", "forgotten")
    assert done.code == 0
    assert lines(mends.folder / "said") == ["42"]
    (change,) = mends.run("replan", "history", "--json").json["modificationHistory"]["modifications"]
    assert change["trigger"] == {"type": "failure", "nodeId": "total", "reason": "forgotten"}
    assert change["action"]["modifications"] == {"env": {"GIVEN": "42"}}


def test_the_dialogue_takes_changes(mends: Space) -> None:
    done = typed(mends, "review", answers="m\nenv.GIVEN=43\n")
    assert done.code == 0
    assert lines(mends.folder / "said") == ["43"]


def test_approve_needs_the_outputs_that_others_read(mends: Space) -> None:
    done = mends.run("review", "total", "--approve")
    assert (done.code, done.out) == (3, "")
    assert "`tell` needs the output `sum` of `total`" in done.err
    mends.file("o.json", '{"sum": 7}')
    assert "is not of type 'string'" in mends.run("review", "total", "--approve", "--outputs", "o.json").err
    mends.file("o.json", '{"sum": "7", "other": 1}')
    assert "declares no output `other`" in mends.run("review", "total", "--approve", "--outputs", "o.json").err
    mends.file("o.json", "[]")
    assert mends.run("review", "total", "--approve", "--outputs", "o.json").code == 3
    mends.file("o.json", '{"sum": "7"}')
    assert mends.run("review", "total", "--approve", "--outputs", "o.json").code == 0
    assert lines(mends.folder / "said") == ["7"]


def test_skip_with_outputs(mends: Space) -> None:
    assert mends.run("review", "total", "--skip").code == 3
    mends.file("o.json", '{"sum": "8"}')
    done = mends.run("review", "total", "--skip", "--outputs", "o.json")
    assert done.code == 0, done.err
    assert lines(mends.folder / "said") == ["8"]
    assert is_("total", Status.SKIPPED)(load_state(newest(mends)))


def test_reject_lets_it_fail(mends: Space) -> None:
    assert mends.run("review", "total", "--reject").code == 1
    assert is_("tell", Status.SKIPPED)(load_state(newest(mends)))


def test_a_patch_instead_of_an_answer(mends: Space) -> None:
    mends.file("p.yaml", "operations:\n  - fallback: {id: total, with: {run: 'echo sum=9 >> \"$DAGRUN_OUTPUT\"'}}\n")
    done = mends.run("review", "total", "--patch", "p.yaml")
    assert done.code == 0, done.err
    assert lines(mends.folder / "said") == ["9"]


def test_the_shown_example(space: Space) -> None:
    shown(space, "review.yaml")
    assert space.run("execute", "workflows/review.yaml", "-q").code == 4
    assert space.run("review", "approve", "--approve", "-q").code == 4
    assert space.run("review", "upload", "--modify", "env.SERVER=build/notes", "-q").code == 0
    assert lines(space.folder / "build/notes/published.txt") == ["faster start", "fewer surprises"]


# ---------------------------------------------------------------- what a node proposes


@pytest.fixture
def proposes(space: Space) -> Space:
    space.file("proposes.yaml", PROPOSES)
    done = space.run("execute", "proposes.yaml", "-q")
    assert done.code == 4, done.err
    return space


def test_a_proposal_is_shown(proposes: Space) -> None:
    done = proposes.run("review")
    assert done.code == 2
    assert "‖ proposal 1 by node:look" in done.out
    assert "requirement: the data is in two parts" in done.out
    assert f"dagrun review {newest(proposes).id} 1 --approve" in done.out


def test_a_rejected_proposal(proposes: Space) -> None:
    run = newest(proposes)
    done = proposes.run("review", "1", "--reject")
    assert done.code == 0
    assert lines(proposes.folder / "said") == ["end"]
    assert "rejected" in proposes.run("replan", "history", run.id).out
    document = proposes.run("replan", "history", "--json").json["modificationHistory"]
    assert [p["outcome"] for p in document["proposals"]] == ["proposed", "rejected"]


def test_an_approved_proposal_of_a_run_that_waits(space: Space) -> None:
    gated = "gate: {needs: look, review: Go?}\n      end: {needs: gate,"
    space.file("p.yaml", PROPOSES.replace("end: {needs: look,", gated))
    assert space.run("execute", "p.yaml", "-q").code == 4
    both = space.run("review", "--approve")
    assert (both.code, "2 things wait" in both.err) == (2, True)
    assert space.run("review", "1", "--approve", "--no-resume", "-q").code == 0
    assert "second" in load_state(newest(space)).plan.index
    assert space.run("review", "gate", "--approve", "-q").code == 0
    assert lines(space.folder / "said") == ["second", "end"]

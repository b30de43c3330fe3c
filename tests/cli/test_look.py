"""status, outputs, logs, trace: what a reader sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.cli.logs import _tail_start

from .space import DEADLINE_S, Space, wait_for

WAITS = """
    version: 1
    name: waits
    nodes:
      talk: {run: "echo one; echo oops >&2; read line < gate; echo $line"}
      quiet: {needs: talk, run: "true"}
    """


@pytest.fixture
def over(space: Space) -> Space:
    """A project whose last run is the one of fails.yaml."""
    space.run("execute", "hello.yaml", "-q")
    space.run("execute", "fails.yaml", "-q")
    return space


# ---------------------------------------------------------------- status


def test_status_of_a_failed_run(over: Space) -> None:
    done = over.run("status").tidy()
    text = """\
fails ID  failed  0.0s  wave 3 of 3
  1 ok, 1 failed, 1 skipped
failed:
  ✗ bad  exit code 3
  dagrun logs ID bad
  dagrun resume ID
"""
    assert done == (0, text, "")


def test_status_as_exit_code_and_json(over: Space) -> None:
    assert over.run("status", "--exit-code").code == 1
    found = over.run("status", "--json").json
    assert (found["status"], found["failed"], found["holder"], found["blocked"]) == ("failed", ["bad"], None, {})


def test_a_run_that_can_go_on_has_no_exit_code_yet(space: Space) -> None:
    nodes = "{gate: {review: {message: go?}}, after: {needs: gate, run: 'true'}}"
    space.file("ask.yaml", f"version: 1\nname: ask\nnodes: {nodes}\n")
    assert space.run("execute", "ask.yaml", "-q").code == 4
    assert space.run("status", "--exit-code").code == 4
    assert space.run("review", "gate", "--approve", "--no-resume").code == 0
    decided = space.run("status", "--exit-code")
    assert decided.code == 10
    assert "interrupted" in decided.out
    assert "dagrun resume" in decided.out
    assert space.run("resume", "-q").code == 0
    assert space.run("status", "--exit-code").code == 0


def test_status_without_a_run(space: Space) -> None:
    assert space.run("status") == (
        9,
        "",
        "error[not-found]: there is no run in this project yet\n  help: start one: dagrun execute FILE\n",
    )


def test_a_run_at_work(space: Space) -> None:
    space.file("waits.yaml", WAITS)
    space.gate("gate")
    process = space.start("execute", "waits.yaml", "--ui", "json")
    wait_for(process.stdout, '"node":"talk","attempt":1')
    found = space.run("status", "--json").json
    assert (found["status"], found["running"], found["blocked"]) == ("running", ["talk"], {"quiet": "talk"})
    assert found["holder"]["pid"] > 0
    text = space.run("status").tidy().out
    assert "running:\n  ● talk  0.0s, attempt 1\nwaits for:\n    quiet  talk\n  dagrun trace follow ID\n" in text
    assert "executed by pid " in text

    follow = space.start("logs", "talk", "-f")
    watch = space.start("trace", "follow", "--ui", "log")
    assert wait_for(follow.stdout, "one") == "one\n"
    wait_for(watch.stderr, "waits")
    (space.folder / "gate").write_text("two\n")
    assert process.wait(DEADLINE_S) == 0
    # not `communicate`: it would miss what is read already and kept in the stream
    assert follow.stdout is not None
    assert sorted(follow.stdout.read().split()) == ["oops", "two"]
    wait_for(watch.stderr, "COMPLETED  waits ")
    assert (follow.wait(DEADLINE_S), watch.wait(DEADLINE_S)) == (0, 0)


# ---------------------------------------------------------------- outputs


def test_the_last_newline_of_an_output_is_not_printed_twice(space: Space) -> None:
    space.file(
        "lines.yaml",
        """
        version: 1
        name: lines
        nodes: {a: {run: 'printf "x\\ny\\n" > f', outputs: {text: {from: file, file: f}, n: {from: stdout}}}}
        outputs: {text: nodes.a.text, n: nodes.a.n}
        """,
    )
    shown = "text = x\ny\nn = \n"
    assert space.run("execute", "lines.yaml", "-q") == (0, shown, "")
    assert space.run("outputs").out == shown
    assert space.run("outputs", "--json").json["outputs"] == {"text": "x\ny\n", "n": ""}


def test_outputs(over: Space) -> None:
    run = over.run("runs", "--json").json["runs"][1]["run_id"]
    assert over.run("outputs", run) == (0, "user = Ada\n", "")
    assert over.run("outputs", run, "who", "--json").json == {
        "run_id": run,
        "node_id": "who",
        "outputs": {"user": "Ada"},
    }
    assert over.run("outputs", "bad").err == "bad has no outputs (failed)\n"


def test_one_word_is_a_node_of_the_last_run_or_else_a_run(over: Space) -> None:
    first, second = (r["run_id"] for r in over.run("runs", "--json").json["runs"])
    assert over.run("outputs", "ok", "--json").json["run_id"] == first
    assert over.run("outputs", second, "--json").json["node_id"] is None
    assert over.run("outputs", "last", "--json").json["run_id"] == first
    neither = over.run("outputs", "who")
    assert neither.code == 9
    assert neither.err.startswith("error[not-found]: there is no run who, and the last run has no node who\n")
    assert over.run("outputs", "a", "b", "c").code == 2


def test_a_large_value_is_fetched(space: Space) -> None:
    text = "version: 1\nname: big\nnodes: {a: {run: 'seq 1 20000', outputs: {v: {from: stdout}}}}\n"
    space.file("big.yaml", text)
    space.run("execute", "big.yaml", "-q")
    value = space.run("outputs", "a", "--json").json["outputs"]["v"]
    assert value.split() == [str(k) for k in range(1, 20001)]


# ---------------------------------------------------------------- logs


def test_logs_are_stdout_then_stderr(over: Space) -> None:
    assert over.run("logs", "bad") == (0, "out\nno luck\n", "")
    assert over.run("logs", "last", "bad", "--err") == (0, "no luck\n", "")
    assert over.run("logs", "bad", "--out") == (0, "out\n", "")


def test_logs_in_a_pipe_are_the_bytes_and_json_is_text(space: Space) -> None:
    space.file("odd.yaml", "version: 1\nname: o\nnodes: {a: {run: \"printf '\\\\033[31mred\\\\377\\\\n'\"}}\n")
    space.run("execute", "odd.yaml", "-q")
    assert space.shell("dagrun logs a | od -An -tx1").out.split() == "1b 5b 33 31 6d 72 65 64 ff 0a".split()
    assert space.run("logs", "a", "--json").json["stdout"] == "\x1b[31mred�\n"
    # `script` gives the program a terminal
    shown = space.shell("script -qec \"$(declare -f dagrun); dagrun logs a\" /dev/null")
    assert "\x1b[31m" not in shown.out
    assert "red" in shown.out


def test_the_last_lines(space: Space) -> None:
    space.file("many.yaml", "version: 1\nname: m\nnodes: {a: {run: 'seq 1 100000; echo end >&2'}}\n")
    space.run("execute", "many.yaml", "-q")
    assert space.run("logs", "a", "--tail", "2") == (0, "99999\n100000\nend\n", "")
    assert space.run("logs", "a", "--tail", "0") == (0, "", "")
    assert space.shell("dagrun logs a | head -2") == (0, "1\n2\n", "")


def test_a_node_without_output_and_one_that_did_not_run(over: Space) -> None:
    assert over.run("logs", "after") == (0, "", "after has not run: skipped (dependency: bad failed)\n")
    assert over.run("logs", "ok", "--err") == (0, "", "ok wrote nothing to stderr\n")


def test_logs_of_an_attempt(over: Space) -> None:
    over.run("resume", "-q")
    assert over.run("logs", "bad", "--attempt", "1").out == "out\nno luck\n"
    done = over.run("logs", "bad", "--attempt", "3")
    assert done.code == 9
    assert "bad has 2 attempts, none is number 3" in done.err
    assert "ok has 1 attempt, none is number 2" in over.run("logs", "ok", "--attempt", "2").err
    assert over.run("logs", "ok", "--tail", "-1").code == 2


def test_logs_needs_a_node_that_is_there(over: Space) -> None:
    assert over.run("logs") == (
        2,
        "",
        "error[usage]: `dagrun logs` needs [RUN] NODE\n  help: see the nodes of the last run: dagrun trace show\n",
    )
    done = over.run("logs", "bat").tidy()
    assert done == (
        9,
        "",
        "error[not-found]: run ID has no node bat\n  help: did you mean bad? see them all: dagrun trace show ID\n",
    )


def test_following_what_is_over_ends_at_once(over: Space) -> None:
    assert over.run("logs", "bad", "-f") == (0, "out\nno luck\n", "")
    assert over.run("logs", "after", "-f") == (0, "", "")
    done = over.run("trace", "follow")
    assert done.code == 0
    assert "FAILED  fails" in done.err


@given(st.binary(max_size=200).map(lambda b: b.replace(b"\x00", b"\n").replace(b"0", b"\n")), st.integers(0, 20))
def test_tail_is_the_tail(tmp_path_factory: pytest.TempPathFactory, data: bytes, lines: int) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "tail"
    path.write_bytes(data)
    with path.open("rb") as file:
        got = data[_tail_start(file.fileno(), lines, len(data)) :]
    whole = [line + b"\n" for line in data.split(b"\n")]
    whole[-1] = whole[-1][:-1]
    if whole[-1] == b"":
        whole.pop()
    assert got == b"".join(whole[len(whole) - lines :] if lines < len(whole) else whole)


# ---------------------------------------------------------------- trace


def test_trace_show(over: Space) -> None:
    done = over.run("trace", "show").tidy()
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("fails ID  failed in 0.0s")
    assert "bad    ✗ failed" in done.out
    assert over.run("trace", "show", "--timeline").code == 0
    assert "ok " not in over.run("trace", "show", "--failures").out.partition("\n\n")[2]


def test_trace_show_as_json_has_the_fields_of_the_seed_first(over: Space) -> None:
    document = over.run("trace", "show", "--json").json
    assert list(document) == ["version", "run", "entries"]
    assert list(document["entries"][0])[:11] == [
        *("node_id", "wave", "status", "model", "skills_used", "input_tokens", "output_tokens"),
        *("cost_usd", "duration_ms", "retries", "output_summary"),
    ]
    one = over.run("trace", "show", "--node", "bad", "--json").json
    assert [e["node_id"] for e in one["entries"]] == ["bad"]


def test_trace_show_of_one_node(over: Space) -> None:
    done = over.run("trace", "show", "--node", "bad")
    assert done.out.startswith("bad  ✗ failed")
    assert "| no luck" in done.out
    assert over.run("trace", "show", "--node", "nope").code == 9
    assert over.run("trace", "show", "--node", "bad", "--timeline").code == 2


def test_a_torn_journal_says_so(over: Space) -> None:
    run = over.run("status", "--json").json["run_id"]
    path = over.folder / ".dagrun" / "runs" / run / "journal.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:40] + b"!" + data[41:])
    done = over.run("trace", "show", run)
    assert (done.code, done.out) == (8, "")
    assert done.err.startswith("error[corrupt]: ")
    listed = over.run("runs")
    assert listed.code == 0
    assert f"warning: run {run}: " in listed.err
    assert "hello" in listed.out

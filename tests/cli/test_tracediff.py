"""trace diff, typed at real runs."""

from __future__ import annotations

from .space import Space

FLOW = """
    version: 1
    name: hello
    params: {who: {type: string, default: Ada}}
    outputs: {user: nodes.who.user}
    nodes:
      who: {run: 'printf "$INPUT_W"', inputs: {w: params.who}, outputs: {user: {from: stdout}}}
      check: {run: '[ "$INPUT_W" = Ada ]', inputs: {w: params.who}, retry: {max_attempts: 2, delay: 0s}}
      after: {needs: check, run: "true"}
    """
NAMED = """
    version: 1
    name: named
    secrets: {TOKEN: {env: MY_TOKEN}}
    nodes:
      a: {run: 'printf "$TOKEN"', secrets: [TOKEN], outputs: {said: {from: stdout}}}
    """


def ids(space: Space) -> list[str]:
    """Of the runs, the oldest first."""
    return [r["run_id"] for r in reversed(space.run("runs", "--json").json["runs"])]


def test_two_runs_of_one_workflow(space: Space) -> None:
    space.file("flow.yaml", FLOW)
    space.run("execute", "flow.yaml", "-q")
    space.run("execute", "flow.yaml", "-q", "-p", "who=Bob")
    a, b = ids(space)
    done = space.run("trace", "diff", a, b)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[1].startswith(f"A  {a}  completed")
    assert lines[2].startswith(f"B  {b}  failed")
    assert lines[4:] == [
        "PARAM  A      B",
        'who    "Ada"  "Bob"',
        "",
        "other outputs of the run: user",
        "",
        "NODE   WHAT     A            B",
        "who    outputs               changed: user",
        "check  status   ✓ completed  ✗ failed: exit code 1",
        "check  tries    1            2",
        "after  status   ✓ completed  – skipped: dependency: check failed",
        "after  tries    1            0",
        "",
        "different: status, 1 param, outputs; nodes: 3 changed",
    ]
    assert "\x1b" not in done.out
    found = space.run("trace", "diff", a, b, "--json").json
    assert (found["version"], found["same"], found["differs"]) == (1, False, ["status", "params", "outputs"])
    assert found["params"] == [{"name": "who", "in": "both", "a": "Ada", "b": "Bob"}]
    assert [(n["node_id"], n["a"]["status"], n["b"]["status"]) for n in found["nodes"]] == [
        ("who", "completed", "completed"),
        ("check", "completed", "failed"),
        ("after", "completed", "skipped"),
    ]
    assert (found["nodes"][1]["b"]["exit_code"], found["nodes"][1]["b"]["attempts"]) == (1, 2)
    assert space.run("trace", "diff", a, b, "-q").out == f"{lines[-1]}\n"


def test_the_run_before_is_the_last_one_of_the_same_workflow(space: Space) -> None:
    for name in ("hello", "hello", "fails", "hello", "fails"):
        space.run("execute", f"{name}.yaml", "-q")
    one, two, bad, three, worse = ids(space)

    def sides(*words: str) -> tuple[str, str]:
        found = space.run("trace", "diff", *words, "--json").json
        return found["a"]["run_id"], found["b"]["run_id"]

    assert sides() == sides("last") == (bad, worse)
    assert sides(three) == (two, three)
    assert sides(two, "last") == (two, worse)
    first = space.run("trace", "diff", one)
    assert (first.code, first.out) == (9, "")
    assert first.err.startswith(f"error[not-found]: there is no run of hello before {one}\n")


def test_the_exit_code_says_so_only_when_it_is_asked_to(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    space.run("execute", "hello.yaml", "-q")
    space.run("execute", "fails.yaml", "-q")
    a, b, c = ids(space)
    assert space.run("trace", "diff", a, b, "--exit-code", "-q") == (0, "the same: 2 nodes\n", "")
    assert [space.run("trace", "diff", a, c, *more).code for more in ([], ["--exit-code"])] == [0, 10]
    assert space.run("trace", "diff", a, c, "--exit-code", "--json").json["differs"] == [
        "workflow",
        "status",
        "plan",
        "outputs",
    ]
    every = space.run("trace", "diff", a, b, "--all").out
    assert "greet  same  ✓ completed  ✓ completed\n" in every
    assert "greet" not in space.run("trace", "diff", a, b).out


def test_an_edited_workflow_leads_to_the_difference_of_the_graphs(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    text = (space.folder / "hello.yaml").read_text()
    (space.folder / "hello.yaml").write_text("# only a comment\n" + text)
    space.run("execute", "hello.yaml", "-q")
    assert space.run("trace", "diff", "--json").json["plan"] == {"same": True, "nodes_same": True}
    (space.folder / "hello.yaml").write_text(f"{text}  more: {{run: 'true'}}\n")
    space.run("execute", "hello.yaml", "-q")
    _, a, b = ids(space)
    out = space.run("-C", ".", "trace", "diff").out
    assert f"the plans differ; see how: dagrun -C . diff {a} {b}\n" in out
    assert "more  only in B     ✓ completed\n" in out
    assert "id: more" in space.run("diff", a, b).out


def test_runs_that_are_not_there(space: Space) -> None:
    none = space.run("trace", "diff")
    assert (none.code, none.err.splitlines()[0]) == (9, "error[not-found]: there is no run in this project yet")
    space.run("execute", "hello.yaml", "-q")
    for words in (["zzzz"], ["zzzz", "last"], ["last", "zzzz"]):
        done = space.run("trace", "diff", *words)
        assert (done.code, done.out) == (9, "")
        assert done.err.startswith("error[not-found]: there is no run zzzz\n")
    many = space.run("trace", "diff", "a", "b", "c")
    assert (many.code, many.err.splitlines()[0]) == (2, "error[usage]: two runs, not 3: a b c")


def test_a_secret_that_changed_is_not_told(space: Space) -> None:
    space.file("named.yaml", NAMED)
    for token in ("first-token-4711", "other-token-4712"):
        assert space.run("execute", "named.yaml", "-q", MY_TOKEN=token).code == 0
    done = space.run("trace", "diff", "--all")
    said = done.out + done.err + space.run("trace", "diff", "--json", "--all").out
    assert "4711" not in said
    assert "4712" not in said
    assert done.out.endswith("the same: 1 node\n")  # what the journals hold is masked


def test_a_run_that_goes_on(space: Space) -> None:
    space.gate("gate")
    space.file("waits.yaml", "version: 1\nname: waits\nnodes: {a: {run: read x < gate}}\n")
    started = space.start("execute", "waits.yaml", "-q")
    gate = open(space.folder / "gate", "w")  # noqa: SIM115  (opens once the node waits)
    found = space.run("trace", "diff", "last", "last", "--json").json
    assert (found["same"], found["b"]["status"], found["b"]["exit_code"]) == (True, "running", None)
    gate.write("on\n")
    gate.close()
    assert started.wait(60) == 0

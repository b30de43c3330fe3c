"""plan, and execute --dry-run."""

from __future__ import annotations

from .space import Space

PARAMS = """
    version: 1
    name: ships
    params: {release: {type: boolean, default: false}}
    nodes:
      build: {run: "true"}
      ship: {needs: build, if: params.release, run: "true"}
    """


def test_waves_in_text(space: Space) -> None:
    done = space.run("plan", "fails.yaml")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0].startswith("fails   3 nodes, 3 waves")
    assert "wave 2  bad" in done.out


def test_a_param_decides_what_is_skipped(space: Space) -> None:
    space.file("ships.yaml", PARAMS)

    def will_run(*words: str) -> dict[str, bool]:
        nodes = space.run("plan", "ships.yaml", "--json", *words).json["nodes"]
        return {n["id"]: n["will_run"] for n in nodes}

    assert will_run() == {"build": True, "ship": False}
    assert will_run("-p", "release=true") == {"build": True, "ship": True}
    assert space.run("plan", "ships.yaml", "-p", "release=maybe").code == 3


def test_graphs_for_other_programs(space: Space) -> None:
    assert space.run("plan", "hello.yaml", "-o", "mermaid").out.startswith("flowchart ")
    assert space.run("plan", "hello.yaml", "-o", "dot").out.startswith("digraph ")
    assert space.run("plan", "hello.yaml", "--mermaid").out.startswith("flowchart ")
    assert space.run("plan", "hello.yaml", "--dot", "-o", "dot").out.startswith("digraph ")
    assert space.run("plan", "hello.yaml", "-o", "png").code == 2
    assert space.run("plan", "hello.yaml", "--dot", "--mermaid").code == 2


def test_a_run_has_a_plan_and_its_times_come_next(space: Space) -> None:
    assert space.run("plan", "hello.yaml", "--json").json["estimated"] == 0
    space.run("execute", "hello.yaml", "-q")
    space.run("execute", "fails.yaml", "-q")
    known = space.run("plan", "hello.yaml", "--json").json
    assert known["estimated"] == 2
    assert known["critical_path_s"] > 0
    # a run that failed tells nothing of how long it takes
    assert space.run("plan", "fails.yaml", "--json").json["estimated"] == 0
    assert space.run("plan", "last", "--json").json["workflow"] == "fails"


def test_a_file_has_a_plan_where_the_runs_can_not_be_read(space: Space) -> None:
    (space.folder / ".dagrun").mkdir()
    (space.folder / ".dagrun" / "runs").symlink_to("runs")  # for nobody, root included
    assert space.run("runs").code == 8
    done = space.run("plan", "hello.yaml")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("hello   2 nodes")


def test_neither_a_file_nor_a_run(space: Space) -> None:
    done = space.run("plan", "zzzz")
    assert done.code == 9
    assert done.err.startswith("error[not-found]: there is no run zzzz, and no file zzzz\n")
    assert space.run("plan", "zzzz.yaml").code == 2
    space.run("execute", "hello.yaml", "-q")
    assert space.run("plan", "last", "-p", "a=b").code == 2


def test_a_question_has_a_time_of_its_own(space: Space) -> None:
    nodes = "{a: {review: {message: go?, timeout: 2h}}, b: {review: {message: go?}}, c: {run: 'true'}}"
    space.file("ask.yaml", f"version: 1\nname: ask\nnodes: {nodes}\n")
    found = {n["id"]: n["timeout_s"] for n in space.run("plan", "ask.yaml", "--json").json["nodes"]}
    assert found == {"a": 7200.0, "b": None, "c": 300.0}


def test_a_dry_run_makes_nothing(space: Space) -> None:
    done = space.run("execute", "hello.yaml", "--dry-run")
    assert done.code == 0
    assert done.err == "dry run: nothing was started\n"
    assert "wave 1  who" in done.out
    assert not (space.folder / ".dagrun").exists()


def test_a_dry_run_shows_the_selection(space: Space) -> None:
    done = space.run("execute", "fails.yaml", "--dry-run", "--until", "bad")
    assert "after" not in done.out
    assert done.out.endswith("left    1 node not selected\n")
    assert space.run("execute", "hello.yaml", "-n", "--only", "greet").code == 3  # its input is not there


def test_a_bad_file_says_how_to_check_it(space: Space) -> None:
    space.file("bad.yaml", "version: 1\nname: x\nnodes: {a: {rn: x}}\n")
    assert "fix that, then: dagrun plan bad.yaml" in space.run("plan", "bad.yaml").err
    done = space.run("execute", "bad.yaml")
    assert (done.code, done.out) == (3, "")
    assert done.err.endswith("fix that, then: dagrun validate bad.yaml\n")


GUARDED = """
    version: 1
    name: guarded
    permissions: {network: none, paths: {write: [out]}, cost_budget: 0.30}
    secrets: {TOKEN: {env: SECRET_SOURCE}}
    nodes:
      build: {run: "true", permissions: {tools: [Read]}}
      check: {run: "true", secrets: [{TOKEN: file}]}
    """


def test_permissions_in_text(space: Space) -> None:
    space.file("guarded.yaml", GUARDED)
    done = space.run("plan", "guarded.yaml", "--permissions")
    assert (done.code, done.err) == (0, "")
    assert (
        done.out
        == """\
guarded  2 nodes, 2 sets of permissions

build
  isolation    process (default)
  paths.read   . (default where paths is declared)
  paths.write  out (workflow)
  network      none (workflow)
  inserts      agents with at most tools Read; cost_budget $0.30 (workflow and node)

check
  isolation    process (default)
  paths.read   . (default where paths is declared)
  paths.write  out (workflow)
  network      none (workflow)
  secrets      the file $TOKEN_FILE (node)
  inserts      agents with at most cost_budget $0.30 (workflow)
"""
    )


def test_permissions_for_programs(space: Space) -> None:
    space.file("guarded.yaml", GUARDED)
    made = space.run("plan", "guarded.yaml", "--permissions", "--json").json
    assert [(n["id"], n["network"], n["tools"], n["cost_budget_usd"]) for n in made["nodes"]] == [
        ("build", "none", ["Read"], 0.3),
        ("check", "none", None, 0.3),
    ]
    assert made["nodes"][1]["secrets"] == {"variables": [], "files": ["TOKEN"]}
    assert made["nodes"][0]["why"]["tools"] == "node"


def test_permissions_have_no_picture(space: Space) -> None:
    for form in ("--mermaid", "--dot"):
        done = space.run("plan", "hello.yaml", "--permissions", form)
        assert (done.code, done.out) == (2, "")


def test_permissions_of_a_run_at_its_revision(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    first = space.run("plan", "last", "--permissions").out
    assert first.startswith("hello  2 nodes, 1 set of permissions\n\nwho, greet\n")
    node = "{run: x, isolation: context}"
    space.file("more.yaml", f"operations: [{{insert: {{id: more, node: {node}, after: [greet]}}}}]\n")
    done = space.run("replan", "last", "--patch", "more.yaml", "--yes")
    assert done.code == 0, done.err
    assert "\nmore\n  isolation    context (node)\n" in space.run("plan", "last", "--permissions").out
    assert space.run("plan", "last", "--permissions", "--revision", "1").out == first


def test_the_level_is_in_the_plan(space: Space) -> None:
    text = "permissions: {isolation: container}\ndocker: alpine\nnodes: {a: {run: x}, b: {review: ok}}\n"
    space.file("floor.yaml", text)
    assert "a container" in space.run("plan", "floor.yaml").out
    nodes = space.run("plan", "floor.yaml", "--json").json["nodes"]
    assert nodes[0]["isolation"] == "container"

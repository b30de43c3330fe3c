"""Traces of WfCommons become workflows that do the same work in the same order, whatever they hold."""

from __future__ import annotations

import json
import os
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.core.names import is_id
from dagrun.errors import InputError, UsageError, render
from dagrun.flowfile.load import read_workflow_text
from dagrun.flowfile.wfformat import import_wfformat

DATA = Path(__file__).parent / "data"
CORPORA = Path(os.environ.get("DAGRUN_CORPORA") or Path(__file__).resolve().parents[3] / "shared" / "corpora")
TRACES = sorted((CORPORA / "wfinstances").glob("*.json"))

Flow = dict[str, Any]


def convert(trace: object, *, time: float = 0.0, size: float = 0.0, folder: str = "data") -> str:
    text = trace if isinstance(trace, bytes) else json.dumps(trace).encode()
    return import_wfformat(text, source="t.json", time_scale=time, size_scale=size, data_dir=folder)


def load(text: str) -> Flow:
    """The nodes of a workflow that dagrun takes, as plain data."""
    read_workflow_text(text.encode(), "flow.yaml", ".", use_cache=False)
    flow: Flow = yaml.safe_load(text)
    for node in flow["nodes"].values():
        needs = node.get("needs", [])
        node["needs"] = [needs] if isinstance(needs, str) else needs
    return flow


def trace(*tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"workflow": {"specification": {"tasks": list(tasks), **more}}}


def task(name: str, *parents: str, reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"id": name, "parents": list(parents), "children": [], "inputFiles": [*reads], "outputFiles": [*writes]}


def run_node(node: dict[str, Any], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-e", "-c", node["run"]], cwd=cwd, capture_output=True, text=True, check=False)


def run_all(flow: Flow, cwd: Path) -> None:
    order = TopologicalSorter({name: node["needs"] for name, node in flow["nodes"].items()}).static_order()
    for name in order:
        done = run_node(flow["nodes"][name], cwd)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), name


def closure(needs: dict[str, list[str]]) -> dict[str, set[str]]:
    above: dict[str, set[str]] = {}
    for name in TopologicalSorter(needs).static_order():
        above[name] = set(needs[name]).union(*(above[need] for need in needs[name]))
    return above


def problems(data: object) -> list[str]:
    """line:column code of each problem."""
    with pytest.raises(InputError) as caught:
        convert(data)
    assert render(caught.value)
    return [f"{p.line}:{p.column} {p.code}" for p in caught.value.problems]


# ---------------------------------------------------------------- what comes out


def test_the_text_of_a_small_trace() -> None:
    text = import_wfformat(
        (DATA / "tiny-trace.json").read_bytes(), source="tiny.json", time_scale=0.01, size_scale=0.5, data_dir="files"
    )
    assert text == (DATA / "tiny-flow.yaml").read_text()


def test_a_small_trace_runs_and_makes_its_files(tmp_path: Path) -> None:
    run_all(load((DATA / "tiny-flow.yaml").read_text()), tmp_path)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "files").iterdir()}
    assert sizes == {"in_whole_file.txt": 1000, "half.1": 500, "half.2": 500, "done.1": 5, "done.2": 5, "result": 10}


def test_a_node_fails_and_names_the_file_when_an_input_is_not_there(tmp_path: Path) -> None:
    nodes = load((DATA / "tiny-flow.yaml").read_text())["nodes"]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "done.1").touch()
    done = run_node(nodes["join"], tmp_path)
    assert done.returncode != 0
    assert "files/done.2" in done.stderr
    assert not (tmp_path / "files" / "result").exists()


def test_staging_leaves_a_file_of_the_user_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in").write_text("mine")
    run_all(load(convert(trace(task("a", reads=("in", "other"), writes=("out",))))), tmp_path)
    assert (tmp_path / "data" / "in").read_text() == "mine"
    assert (tmp_path / "data" / "other").exists()


def test_without_files_there_is_no_stage_and_no_shell() -> None:
    nodes = load(convert(trace(task("a"), task("b", "a")), time=1))["nodes"]
    assert nodes == {"a": {"run": "true", "needs": []}, "b": {"run": "true", "needs": ["a"]}}


def test_times_are_scaled_and_a_long_one_gets_a_timeout() -> None:
    data = trace(task("short"), task("long"), task("unknown"))
    rows = [{"id": "short", "runtimeInSeconds": 1.5}, {"id": "long", "runtimeInSeconds": 9000.25}]
    data["workflow"]["execution"] = {"tasks": rows}
    nodes = load(convert(data, time=0.1))["nodes"]
    assert nodes["short"]["run"] == "sleep 0.15"
    assert (nodes["long"]["run"], nodes["long"]["timeout"]) == ("sleep 900.025", "1201s")
    assert nodes["unknown"]["run"] == "true"


# ---------------------------------------------------------------- order


def test_order_comes_from_parents_children_and_files() -> None:
    data = trace(task("a", writes=("f",)), task("b", "a"), task("c", reads=("f",)), task("d"))
    data["workflow"]["specification"]["tasks"][1]["children"] = ["d"]
    nodes = load(convert(data))["nodes"]
    assert {name: node["needs"] for name, node in nodes.items()} == {
        "stage": [],
        "a": ["stage"],
        "b": ["a"],
        "c": ["a"],
        "d": ["b"],
    }


def test_a_file_that_is_changed_in_place_is_ordered_by_parents_and_staged(tmp_path: Path) -> None:
    data = trace(
        task("first", reads=("db",), writes=("db",)),
        task("look", "first", reads=("db",)),
        task("second", "look", reads=("db",), writes=("db",)),
        task("last", reads=("db",)),
    )
    flow = load(convert(data))
    assert {name: node["needs"] for name, node in flow["nodes"].items()} == {
        "stage": [],
        "first": ["stage"],
        "look": ["first"],
        "second": ["look"],
        "last": ["second"],
    }
    run_all(flow, tmp_path)


@given(st.data())
def test_needs_are_minimal_and_keep_the_order(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 9))
    picks = [sorted(data.draw(st.sets(st.integers(0, i - 1)))) if i else [] for i in range(count)]
    wanted = {f"t{i}": [f"t{p}" for p in pick] for i, pick in enumerate(picks)}
    tasks = data.draw(st.permutations([task(name, *parents) for name, parents in wanted.items()]))
    made = {name: node["needs"] for name, node in load(convert(trace(*tasks)))["nodes"].items()}
    above = closure(made)
    assert above == closure(wanted)
    for needs in made.values():
        assert not any(one in above[other] for one in needs for other in needs)
        assert needs == sorted(needs, key=list(made).index)


def test_ten_thousand_tasks_with_shortcuts_are_reduced() -> None:
    tasks = [
        task(f"t{i}", *(f"t{i - k}" for k in (1, 2, 7) if k <= i), *(["t0"] if i > 9 else [])) for i in range(10_000)
    ]
    text = convert(trace(*tasks))
    assert re.findall(r"needs: (.*)", text) == [f"t{i}" for i in range(9_999)]


# ---------------------------------------------------------------- foreign names

HOSTILE = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "-rf",
    "a b",
    "a_b",
    "A_B",
    "a\nb",
    "a\u2028b",
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "${{ params.x }}",
    "* #: [",
    "dir",
    "dir/file",
    "\x1b[2J",
    "\ud800",
    "n" * 5000,
    "n" * 5001,
    "~",
    ".dagrun",
]


def test_hostile_file_names_stay_in_the_folder(tmp_path: Path) -> None:
    half = len(HOSTILE) // 2
    data = trace(
        task("a", reads=tuple(HOSTILE[:half]), writes=tuple(HOSTILE[half:])), task("b", reads=tuple(HOSTILE[half:]))
    )
    text = convert(data)
    assert "${{" not in text
    run_all(load(text), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    names = [path.name for path in (tmp_path / "data").iterdir()]
    assert len({name.lower() for name in names}) == len(HOSTILE)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


def test_hostile_ids_and_texts_stay_text() -> None:
    ids = [*filter(None, HOSTILE), "stage", "no", "NO", "1st", "é", "e"]
    data = trace(*(task(name, writes=(f"out{i}",)) for i, name in enumerate(ids)))
    data |= {"name": "x\ny: 1", "description": "it's\n${{ x }} # \x07", "schemaVersion": "1\nnodes: {}"}
    text = convert(data)
    assert all(c == "\n" or c.isprintable() for c in text)
    assert "${{" not in text
    flow = load(text)
    assert flow["description"] == "it's $ {{ x }} # \\x07"
    nodes = flow["nodes"]
    assert all(is_id(name) for name in nodes)
    assert len({name.lower() for name in nodes}) == len(ids) + 1
    titles = [node.get("title", name) for name, node in nodes.items()][1:]
    assert titles[:3] == ["../../etc/passwd", "/etc/passwd", ".."]
    assert "mkdir" in nodes["stage-2"]["run"]


@settings(max_examples=50)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True), st.text())
def test_any_text_gives_a_workflow_that_says_the_same_twice(names: list[str], text: str) -> None:
    data = trace(*(task(name, reads=(text,), writes=(f"{name}x",)) for name in names)) | {"description": text}
    out = convert(data)
    assert out == convert(data)
    assert len(load(out)["nodes"]) == len(names) + 1
    assert all(c == "\n" or c.isprintable() for c in out)


def test_a_source_name_can_not_leave_its_comment() -> None:
    text = import_wfformat(
        json.dumps(trace(task("a"))).encode(), source="x\nnodes: {}\r", time_scale=1, size_scale=0, data_dir="data"
    )
    assert list(load(text)["nodes"]) == ["a"]


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_scripts_stay_below_the_limit_of_an_argument(tmp_path: Path, size: float) -> None:
    many = [f"{'x' * 60}-{i:05d}" for i in range(3000)]
    files = [{"id": name, "sizeInBytes": 1 + i % 3} for i, name in enumerate(many)]
    data = trace(task("make", reads=tuple(f"in-{m}" for m in many), writes=tuple(many)), task("use", reads=tuple(many)))
    data["workflow"]["specification"]["files"] = files
    flow = load(convert(data, size=size))
    assert all(len(node["run"]) < 131_072 for node in flow["nodes"].values())
    assert len(flow["nodes"]) > 3
    run_all(flow, tmp_path)
    above = closure({name: node["needs"] for name, node in flow["nodes"].items()})
    assert {name for name in flow["nodes"] if name.startswith(("make", "stage"))} < above["use"]
    assert sum(1 for _ in (tmp_path / "data").iterdir()) == 6000


# ---------------------------------------------------------------- what is refused


def test_every_problem_is_reported_with_its_place() -> None:
    text = b"""{"workflow": {"specification": {"tasks": [
  {"id": "a", "parents": ["nobody"], "children": ["none"]},
  {"id": "a"},
  {"parents": []},
  {"id": "b", "inputFiles": "f"},
  7], "files": [{"id": "f", "sizeInBytes": -3}]},
 "execution": {"tasks": [
  {"id": "a", "runtimeInSeconds": -1.5},
  {"id": "b", "runtimeInSeconds": NaN},
  {"id": "b", "runtimeInSeconds": true}]}}}"""
    assert problems(text) == [
        "2:27 unknown-task",
        "2:51 unknown-task",
        "3:10 duplicate-id",
        "4:3 missing-key",
        "5:29 bad-type",
        "6:3 bad-type",
        "6:44 bad-number",
        "8:35 bad-number",
        "9:35 bad-number",
        "10:35 bad-type",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"workflow": [1,}', "1:17 not-json"),
        (b"", "1:1 not-json"),
        (b"[" * 100_000, "0:0 not-json"),
        (b'\n{"a":"\xff"}', "2:7 encoding"),
        (b"[]", "1:1 bad-type"),
        (b'{"name": "x"}', "1:1 missing-key"),
        (b'{"workflow": {}}', "1:14 bad-type"),
        (b'{"workflow": {"tasks": []}}', "1:2 old-format"),
        (b'{"workflow": {"specification": {"tasks": []}}}', "1:15 missing-key"),
        (b'{"workflow": {"specification": {"tasks": {}}}}', "1:42 bad-type"),
    ],
)
def test_what_is_no_trace(text: bytes, expected: str) -> None:
    assert problems(text) == [expected]


def test_cycles_say_where_each_edge_comes_from() -> None:
    data = trace(task("a", "b", writes=("f",)), task("b", reads=("f",)), task("c", "c"), task("d", "a"))
    with pytest.raises(InputError) as caught:
        convert(data)
    assert [p.message for p in caught.value.problems] == ["a cycle: `a` → `b` → `a`", "a cycle: `c` → `c`"]
    assert caught.value.problems[0].hint == "`a` needs `b` (parents); `b` needs `a` (the file `f`)"


def test_a_time_nobody_can_wait_for_is_refused() -> None:
    data = trace(task("a"))
    data["workflow"]["execution"] = {"tasks": [{"id": "a", "runtimeInSeconds": 1e17}]}
    assert problems_at(data, time=1.0) == ["bad-number"]
    assert "sleep 100000000" in convert(data, time=1e-9)


def problems_at(data: object, time: float) -> list[str]:
    with pytest.raises(InputError) as caught:
        convert(data, time=time)
    return [p.code for p in caught.value.problems]


@pytest.mark.parametrize("folder", ["", "/", ".", "..", "a/../b", "a b", "$x", "-x", "a/./b", "x/.dagrun", "a\n"])
def test_a_folder_that_is_not_safe_is_refused(folder: str) -> None:
    with pytest.raises(UsageError, match="--dir"):
        convert(trace(task("a")), folder=folder)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_scale_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match="--time-scale"):
        convert(trace(task("a")), time=scale)


# ---------------------------------------------------------------- real traces


def test_corpora_are_found() -> None:
    if not TRACES:
        pytest.skip("no traces: set DAGRUN_CORPORA to a folder that holds wfinstances/*.json")
    assert len(TRACES) >= 9


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_real_trace_runs_in_order_and_makes_every_file(path: Path, tmp_path: Path) -> None:
    data = json.loads(path.read_bytes())["workflow"]["specification"]
    text = import_wfformat(path.read_bytes(), source=path.name, time_scale=0, size_scale=0, data_dir="data")
    flow = load(text)
    nodes = flow["nodes"]
    assert all(is_id(name) for name in nodes)
    ids = [item["id"] for item in data["tasks"]]
    mine = dict(zip(ids, [name for name in nodes if name != "stage"], strict=True))
    assert all(nodes[name].get("title", name) == foreign for foreign, name in mine.items())
    wanted = closure({mine[item["id"]]: [mine[p] for p in item["parents"]] for item in data["tasks"]})
    above = closure({name: node["needs"] for name, node in nodes.items()})
    assert {name: above[name] - {"stage"} for name in wanted} == wanted
    run_all(flow, tmp_path)
    assert sum(1 for _ in (tmp_path / "data").iterdir()) == len({f["id"] for f in data["files"]})

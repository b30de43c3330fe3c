"""A workflow file to a Workflow: every key, every typing rule, and all that can be wrong, at once."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.core.names import Outcome, Schedule
from dagrun.core.workflow import (
    Input,
    Limits,
    Node,
    OnFailure,
    Output,
    Param,
    Retry,
    Review,
    Secret,
    Workflow,
    workflow_from_json,
    workflow_to_json,
)
from dagrun.errors import InputError, Problem, UsageError, render
from dagrun.flowfile.load import Loaded, read_workflow, read_workflow_text


def load(text: str, base: str | Path = ".") -> Loaded:
    """A text, checked."""
    return read_workflow_text(text.encode(), "flow.yaml", str(base), use_cache=False)


def node(body: str) -> Workflow:
    """A workflow of one node `a`, whose keys are the lines of `body`."""
    return load("nodes:\n  a:\n" + "".join(f"    {line}\n" for line in body.splitlines())).workflow


def errors(text: str, base: str | Path = ".") -> list[Problem]:
    """What is wrong with a text."""
    with pytest.raises(InputError) as caught:
        load(text, base)
    return list(caught.value.problems)


def brief(problems: list[Problem]) -> list[tuple[str, int, int]]:
    """Code, line and column of each problem."""
    return [(p.code, p.line, p.column) for p in problems]


def one(text: str, base: str | Path = ".") -> Problem:
    """The only thing that is wrong with a text."""
    (problem,) = errors(text, base)
    return problem


# ---------------------------------------------------------------- what is right

EVERYTHING = """
version: 1
name: every key
description: |
  Two lines
  of text.
params:
  topic: {type: string, default: 3.10, description: What about}
  count: {type: integer, default: 3, enum: [1, 2, 3]}
  share: {type: number, default: 0.50}
  fast: {type: boolean, default: false}
  names: {type: array, default: [a, 1]}
  more: {type: object}
limits: {parallel: 4, timeout: 1h30m, resources: {gpu: 2, memory: 1Gi}}
schedule: ready
durability: strict
fail_fast: true
defaults:
  timeout: 10m
  env: {LEVEL: no, KEEP: yes}
  pass_env: [CI]
  retry: {delay: 2s, jitter: 0}
secrets:
  TOKEN: {env: MY_TOKEN}
  KEY: {file: key.txt}
  PASS: {command: [pass, show, x]}
nodes:
  fetch:
    title: Get it
    run: ./fetch.sh
    shell: bash
    cwd: work
    env: {TOPIC: "${{ params.topic }}", LEVEL: 012}
    pass_env: ["GITHUB_*", CI]
    secrets: [TOKEN]
    outputs:
      items: {from: json, path: ".items[0]", schema: {type: array, maxItems: 5}}
      log: {from: stdout}
      report: {from: file, file: out/report.json}
      rest: {}
    artifacts: [out/raw.json]
    retry: {max_attempts: 4, backoff: 1.5, max_delay: 1m, outcomes: [failed, timed_out]}
    timeout: 90
    grace: 500ms
    idempotent: false
    continue_on_error: true
    isolation: none
    resources: {cpu: 1.5, memory: 512M, gpu: 1, output: 1Mi}
    estimate: 20s
  use:
    needs: fetch
    inputs:
      items: nodes.fetch.items
      n: params.count
      text: hello
      number: 3
      quoted: "3"
      list: [true, ~, 1.5, 012]
      long: {from: nodes.fetch.log, optional: true, default: none}
      fixed: {value: {a: [1]}}
    if: inputs.text != ''
    run: [./use.sh, no, 0.50, "${{ inputs.n }}"]
    output_schema: {type: object, properties: {summary: {type: string}}}
outputs:
  summary: nodes.use.summary
  text: "it is ${{ nodes.fetch.status }}"
"""


def test_every_key() -> None:
    got = load(EVERYTHING).workflow
    assert (got.name, got.description) == ("every key", "Two lines\nof text.\n")
    assert got.params["topic"] == Param(has_default=True, default="3.10", description="What about")
    assert got.params["count"] == Param(type="integer", has_default=True, default=3, enum=(1, 2, 3))
    assert [got.params[p].default for p in ("share", "fast", "names")] == [0.5, False, ["a", 1]]
    assert got.params["more"] == Param(type="object")
    assert got.limits == Limits(parallel=4, timeout_s=5400.0, resources={"gpu": 2, "memory": 1 << 30})
    assert (got.schedule, got.durability, got.fail_fast) == (Schedule.READY, "strict", True)
    assert got.secrets["TOKEN"] == Secret(env="MY_TOKEN")
    assert got.secrets["PASS"] == Secret(command=("pass", "show", "x"))
    assert got.outputs == {"summary": "nodes.use.summary", "text": "it is ${{ nodes.fetch.status }}"}


def test_every_key_of_a_node() -> None:
    fetch = load(EVERYTHING).workflow.nodes["fetch"]
    assert (fetch.title, fetch.run, fetch.shell, fetch.cwd) == ("Get it", "./fetch.sh", "bash", "work")
    assert fetch.env == {"LEVEL": "012", "KEEP": "yes", "TOPIC": "${{ params.topic }}"}
    assert (fetch.pass_env, fetch.secrets) == (("CI", "GITHUB_*"), ("TOKEN",))
    assert fetch.outputs["items"] == Output(source="json", path=".items[0]", schema={"type": "array", "maxItems": 5})
    assert fetch.outputs["report"] == Output(source="file", file="out/report.json")
    assert fetch.outputs["rest"] == Output()
    outcomes = frozenset({Outcome.FAILED, Outcome.TIMED_OUT})
    assert fetch.retry == Retry(
        max_attempts=4, delay_s=2.0, backoff=1.5, max_delay_s=60.0, jitter=0.0, outcomes=outcomes
    )
    assert (fetch.timeout_s, fetch.grace_s, fetch.estimate_s) == (90.0, 0.5, 20.0)
    assert (fetch.idempotent, fetch.continue_on_error, fetch.isolation) == (False, True, "none")
    assert (fetch.resources, fetch.output_bytes) == ({"cpu": 1.5, "memory": 512 << 20, "gpu": 1}, 1 << 20)
    assert fetch.artifacts == ("out/raw.json",)


def test_inputs_outputs_and_defaults_of_a_node() -> None:
    use = load(EVERYTHING).workflow.nodes["use"]
    assert use.needs == ("fetch",)
    assert use.inputs["items"] == Input(expression="nodes.fetch.items")
    assert use.inputs["n"] == Input(expression="params.count")
    assert [use.inputs[n].value for n in ("text", "number", "quoted")] == ["hello", 3, "3"]
    assert use.inputs["list"].value == [True, None, 1.5, "012"]
    assert use.inputs["long"] == Input(expression="nodes.fetch.log", optional=True, has_default=True, default="none")
    assert use.inputs["fixed"].value == {"a": [1]}
    assert use.run == ("./use.sh", "no", "0.50", "${{ inputs.n }}")
    assert (use.condition, use.timeout_s) == ("inputs.text != ''", 600.0)
    assert (use.retry.max_attempts, use.retry.delay_s) == (3, 2.0)
    assert use.outputs == {"summary": Output()}
    assert use.output_schema == {"type": "object", "properties": {"summary": {"type": "string"}}}


def test_everything_survives_its_json_form() -> None:
    made = load(EVERYTHING).workflow
    assert workflow_from_json(json.loads(json.dumps(workflow_to_json(made)))) == made


def test_nothing_is_worth_a_warning_in_it() -> None:
    assert load(EVERYTHING).warnings == ()


@pytest.mark.parametrize("word", ["true", "no", "012", "3.10", "0.50", "1e3", "2026-01-01", "0x10", "12:30", ".inf"])
def test_text_is_what_was_written(word: str) -> None:
    a = node(f"run: [x, {word}]\nenv: {{V: {word}}}\ntitle: {word}").nodes["a"]
    assert (a.run, a.env["V"], a.title) == (("x", word), word, word)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("1", 1), ("-1.5", -1.5), ("1e3", 1000.0), ("true", True), ("null", None), ("~", None), ("012", "012"),
        ("yes", "yes"), ("0x1F", "0x1F"), ("1_000", "1_000"), (".5", ".5"), ("True", "True"), ("'1'", "1"),
        ("NULL", "NULL"), (".nan", ".nan"),
    ],
)  # fmt: skip
def test_where_any_json_is_wanted_only_json_is_typed(source: str, value: object) -> None:
    got = node(f"run: x\ninputs: {{i: {{value: {source}}}}}").nodes["a"].inputs["i"].value
    assert got == value
    assert type(got) is type(value)


def test_a_name_is_taken_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "nightly.flow.yaml").write_text("nodes: {a: {run: x}}")
    got = read_workflow(str(tmp_path / "nightly.flow.yaml"), use_cache=False).workflow
    assert got.name == "nightly"
    assert got.file == str(tmp_path / "nightly.flow.yaml")
    assert len(got.digest) == 64


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nodes: {a: {run: x}}")))
    assert read_workflow("-", use_cache=False).workflow.file == "<stdin>"


# ---------------------------------------------------------------- schema files


def test_schema_files_are_read_beside_the_workflow(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "out.json").write_text(
        '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 3}}}'
    )
    (tmp_path / "s" / "list.yaml").write_text("type: array\n")
    text = "nodes: {a: {run: x, output_schema: s/out.json, outputs: {l: {schema: s/list.yaml}, n: {from: json}}}}"
    got = load(text, tmp_path).workflow.nodes["a"]
    assert got.output_schema == {"type": "object", "properties": {"n": {"type": "integer", "maximum": 3}}}
    assert got.outputs == {"l": Output(schema={"type": "array"}), "n": Output(source="json")}


@pytest.mark.parametrize(
    ("content", "file", "code", "line"),
    [
        (None, "flow.yaml", "unreadable-file", 1),
        ("{", "out.json", "flow", 1),
        ("- a\n", "out.json", "bad-schema", 1),
        ("a: 1\na: 2\n", "out.json", "duplicate-key", 2),
        ("", "out.json", "empty", 1),
        ("type: array\n", "flow.yaml", "bad-schema", 1),
        ("type: objekt\nproperties: []\n", "flow.yaml", "bad-schema", 1),
        ("properties: {status: {}}\n", "flow.yaml", "reserved", 1),
        ("maximum: 1" + "0" * 400 + "\n", "out.json", "huge-number", 1),
    ],
)
def test_a_wrong_schema_file(tmp_path: Path, content: str | None, file: str, code: str, line: int) -> None:
    if content is not None:
        (tmp_path / "out.json").write_text(content)
    else:
        (tmp_path / "out.jsn").write_text("{}")
    text = "nodes: {a: {run: x, output_schema: out.json}, b: {run: x, inputs: {i: nodes.a.z}}}"
    first = errors(text, tmp_path)[0]
    assert (os.path.basename(first.file), first.code, first.line) == (file, code, line)
    if content is None:
        assert first.hint == "did you mean `out.jsn`?"
        assert len(errors(text, tmp_path)) == 1, "nobody knows whether `z` would have been an output"


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in one("nodes: {a: {run: x, output_schema: pipe}}", tmp_path).message


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("text", "code", "place", "words"),
    [
        ("- a\n", "bad-shape", (1, 1), "a workflow is a mapping of keys to values, not a list"),
        ("hello\n", "bad-shape", (1, 1), "not `hello`"),
        ("name: x\n", "no-nodes", (1, 1), "no nodes"),
        ("nodes: {}\n", "no-nodes", (1, 1), "no nodes"),
        ("nodes: [a]\n", "bad-shape", (1, 8), "`nodes` is a mapping, not a list"),
        ("nodes:\n  a: make\n", "bad-shape", (2, 6), "write a: {run: make}"),
        ("nodes:\n  a:\n", "bad-shape", (2, 3), "not nothing"),
        ("nodes:\n  a: {}\n", "no-kind", (2, 3), "add `run:`"),
        ("version: 2\nnodes: {a: {run: x}}\n", "bad-value", (1, 10), "version 1"),
        ("nodes: {a/b: {run: x}}\n", "bad-id", (1, 9), "write a-b"),
        ("nodes: {../x: {run: x}}\n", "bad-id", (1, 9), "can't be the id"),
        ("nodes: {'$(id)': {run: x}}\n", "bad-id", (1, 9), "can't be the id"),
        ("nodes: {a.b: {run: x}}\n", "bad-id", (1, 9), "write a-b"),
        ("nodes: {1st: {run: x}}\n", "bad-id", (1, 9), "write n1st"),
        ("nodes: {%s: {run: x}}\n" % ("a" * 129), "bad-id", (1, 9), "at most 128"),
        ("nodes: {a: {run: x, needs: [b c]}}\n", "bad-id", (1, 29), "write b-c"),
        ("nodes: {a: {run: x}, A: {run: x}}\n", "case-clash", (1, 22), "differ only by case"),
        ("params: {x: {}, X: {}}\nnodes: {a: {run: x}}\n", "case-clash", (1, 17), "differ only by case"),
        ("nodes: {a: {run: x, inputs: {b-c: 1, b_c: 2}}}\n", "input-clash", (1, 38), "$INPUT_B_C"),
        ("nodes: {a: {run: x, outputs: {status: {}}}}\n", "reserved", (1, 31), "reserved"),
        ("nodes: {a: {run: x, output_schema: {properties: {status: {}}}}}\n", "reserved", (1, 36), "reserved"),
        ("nodes: {a: {run: x, depends_on: []}}\n", "unknown-key", (1, 21), "did you mean `needs`?"),
        ("nodes: {a: {command: x}}\n", "unknown-key", (1, 13), "did you mean `run`?"),
        ("jobs: {a: {run: x}}\n", "unknown-key", (1, 1), "did you mean `nodes`?"),
        ("timeout: 5m\nnodes: {a: {run: x}}\n", "unknown-key", (1, 1), "a key of `limits` and `defaults` and a node"),
        ("nodes: {a: {run: x, isolatoin: none}}\n", "unknown-key", (1, 21), "did you mean `isolation`?"),
        ("nodes: {a: {run: x, retry: {max: 3}}}\n", "unknown-key", (1, 29), "did you mean `max_attempts`?"),
        ("nodes: {a: {run: x, retry: 3}}\n", "bad-shape", (1, 28), "write retry: {max_attempts: 3}"),
        ("nodes: {a: {run: x, timeout: 5 minutes}}\n", "bad-value", (1, 30), "500ms"),
        ("nodes: {a: {run: x, timeout: 0}}\n", "bad-value", (1, 30), "above zero"),
        ("nodes: {a: {run: x, timeout: 9999999d}}\n", "huge-number", (1, 30), "too long"),
        ("nodes: {a: {run: x, timeout: '${{ params.t }}'}}\n", "bad-value", (1, 30), "an expression can't stand here"),
        ("nodes: {a: {run: x, idempotent: yes}}\n", "bad-value", (1, 33), "write true"),
        ("nodes: {a: {run: x, idempotent: 'true'}}\n", "bad-value", (1, 33), "write true"),
        ("nodes: {a: {run: x, shell: zsh}}\n", "bad-value", (1, 28), "`sh` or `bash`"),
        ("nodes: {a: {run: x, resources: {memory: lots}}}\n", "bad-value", (1, 41), "512M"),
        ("limits: {parallel: 1.5}\nnodes: {a: {run: x}}\n", "bad-value", (1, 20), "whole number"),
        ("limits: {parallel: 0}\nnodes: {a: {run: x}}\n", "bad-value", (1, 20), "too small"),
        ("limits: {parallel: %s}\nnodes: {a: {run: x}}\n" % ("9" * 5000), "huge-number", (1, 20), "too large"),
        ("params: {x: {type: number, default: 1e999}}\nnodes: {a: {run: x}}\n", "huge-number", (1, 37), "too large"),
        ("params: {x: {type: integer, default: 1.5}}\nnodes: {a: {run: x}}\n", "bad-value", (1, 38), "whole number"),
        ("params: {x: {enum: [a], default: b}}\nnodes: {a: {run: x}}\n", "bad-param", (1, 34), "not in its enum"),
        ("params: {x: string}\nnodes: {a: {run: x}}\n", "bad-shape", (1, 13), "write x: {type: string}"),
        ("secrets: {T: {env: A, file: b}}\nnodes: {a: {run: x}}\n", "bad-secret", (1, 11), "exactly one"),
        ("secrets: {a-b: {env: A}}\nnodes: {a: {run: x}}\n", "bad-id", (1, 11), "environment variable"),
        ("nodes: {a: {run: }}\n", "empty-value", (1, 13), "nothing here"),
        ("nodes: {a: {run: ''}}\n", "bad-value", (1, 18), "must not be empty"),
        ("nodes: {a: {run: []}}\n", "bad-value", (1, 18), "runs nothing"),
        ("nodes: {a: {run: [x, [y]]}}\n", "bad-value", (1, 22), "not a list"),
        ("nodes: {a: {run: x, env: {A: ~}}}\n", "empty-value", (1, 30), "nothing here"),
        ("nodes: {a: {run: x, env: {A B: c}}}\n", "bad-value", (1, 27), "environment variable"),
        ("nodes: {a: {run: x, env: {DAGRUN_RUN: c}}}\n", "bad-value", (1, 27), "dagrun sets it itself"),
        ("nodes: {a: {run: x, env: [A=b]}}\n", "bad-value", (1, 26), "NAME: value"),
        ("nodes:\n  a:\n    run: x\n    title: #1\n", "empty-value", (4, 5), "write '#1' in quotes"),
        ("nodes: {a: {run: x, inputs: {i: }}}\n", "bad-value", (1, 30), "{value: null}"),
        ("nodes: {a: {run: x, inputs: {i: {}}}}\n", "bad-input", (1, 30), "neither"),
        ("nodes: {a: {run: x, inputs: {i: {from: b}}}}\n", "bad-value", (1, 40), "begins with `nodes.`"),
        ("nodes: {a: {run: x, outputs: {o: stdout}}}\n", "bad-shape", (1, 34), "write o: {from: stdout}"),
        ("nodes: {a: {run: x, outputs: {o: {from: file}}}}\n", "bad-output", (1, 31), "add file: NAME"),
        ("nodes: {a: {run: x, outputs: {o: {file: f}}}}\n", "bad-output", (1, 35), "write from: file"),
        ("nodes: {a: {run: x, outputs: {o: {from: stdout, path: .a}}}}\n", "bad-output", (1, 49), "from: json"),
        ("nodes: {a: {run: x, outputs: {o: {path: items}}}}\n", "bad-value", (1, 41), "write .items"),
        ("nodes: {a: {run: x, outputs: {o: {schema: {type: strin}}}}}\n", "bad-schema", (1, 50), "string"),
        ("nodes: {a: {run: x, output_schema: {required: a}}}\n", "bad-schema", (1, 47), "a list of names"),
        ("nodes: {a: {run: x, output_schema: {properties: {p: 3}}}}\n", "bad-schema", (1, 53), "is a mapping"),
        ("nodes: {a: {run: x, output_schema: {properties: {p: {pattern: '['}}}}}\n", "bad-schema", (1, 63), "regex"),
        ("nodes: {a: {run: x, output_schema: {properties: {p: {maximum: x}}}}}\n", "bad-schema", (1, 63), "number"),
        ("nodes: {a: {run: x, output_schema: {properties: {p: {$ref: 'http:x'}}}}}\n", "bad-schema", (1, 60), "$defs"),
        ("nodes: {a: {run: x, output_schema: {items: {$ref: '#/$defs/n'}}}}\n", "bad-schema", (1, 51), "nowhere"),
        ("nodes: {a: {run: x, artifacts: [/etc/passwd]}}\n", "bad-value", (1, 33), "leaves the project"),
        ("nodes: {a: {run: x, artifacts: [a/../../b]}}\n", "bad-value", (1, 33), "leaves the project"),
        ("nodes: {a: {run: x, artifacts: out}}\n", "bad-value", (1, 32), "write [out]"),
        ("nodes: {a: {run: x, title: \"a\\nb\"}}\n", "bad-value", (1, 28), "one line"),
        ("nodes: {a: {run: x, needs: b}}\n", "unknown-node", (1, 28), "does not exist"),
        ("nodes: {a: {run: x, needs: a}}\n", "self-need", (1, 28), "needs itself"),
        ("nodes: {a: {run: x, needs: b}, b: {run: x, needs: a}}\n", "cycle", (1, 28), "a"),
        ("nodes: {a: {run: x, secrets: [T]}}\n", "unknown-secret", (1, 31), "declare"),
    ],
)  # fmt: skip
def test_one_mistake_gives_one_problem_at_its_place(text: str, code: str, place: tuple[int, int], words: str) -> None:
    problem = one(text)
    if code == "cycle":
        assert problem.code == code
        return
    assert (problem.code, (problem.line, problem.column)) == (code, place)
    assert words in problem.message + problem.hint


LATER = {
    "top": "finally concurrency on_event",
    "node": "workflow foreach matrix trigger_rule cache finally",
}


@pytest.mark.parametrize(("scope", "key"), [(scope, key) for scope, keys in LATER.items() for key in keys.split()])
def test_a_key_that_comes_later_is_refused_by_name(scope: str, key: str) -> None:
    text = {
        "top": f"{key}: {{}}\nnodes: {{a: {{run: x}}}}\n",
        "node": f"nodes: {{a: {{{key}: {{}}}}}}\n",
    }[scope]
    problem = one(text)
    assert problem.code == "not-yet"
    assert f"`{key}`" in problem.message
    assert "not supported yet" in problem.message


def test_an_expression_in_a_shell_string_shows_the_rewrite() -> None:
    problem = one("params: {who: {}}\nnodes:\n  a:\n    run: |\n      set -e\n      echo ${{ params.who }}\n")
    assert (problem.code, problem.line, problem.column, problem.length) == ("expression-in-shell", 6, 12, 17)
    assert 'env: {WHO: "${{ params.who }}"}' in problem.hint


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = """\
nodes:
  build:
    run: make
    depends: [biuld]
  test: {run: x, needs: [biuld]}
  ship:
    needs: [tests]
    run: ship
    timeout: soon
    if: sucess()
  report: {run: [echo, "${{ inputs.nope }}"], retry: {max_attempts: 0}}
limits: {parallel: many}
"""
    assert brief(errors(text)) == [
        ("unknown-key", 4, 5),
        ("unknown-node", 5, 26),
        ("unknown-node", 7, 13),
        ("bad-value", 9, 14),
        ("bad-expression", 10, 9),
        ("unknown-name", 11, 29),
        ("bad-value", 11, 69),
        ("bad-value", 12, 20),
    ]


def test_text_problems_and_shape_problems_come_together_without_noise() -> None:
    got = errors("nodes:\n  a:\n    run: x\n    if: !cancelled()\n    run: y\n  b: {run: x, needs: c}\n")
    assert brief(got) == [("quote-bang", 4, 9), ("duplicate-key", 5, 5), ("unknown-node", 6, 22)]


@pytest.mark.parametrize(
    "broken",
    [
        "a: {run: x, outputz: {o: {}}}",
        "a: {run: x, outputs: {o: stdout}}",
        "a: {run: x, outputs: [o]}",
        "a: make",
        "a: {agent: {model: x/y}}",
        "a: {run: x, timeout: soon, outputs: {o: {}}}",
    ],
)
def test_a_broken_node_causes_no_errors_elsewhere(broken: str) -> None:
    text = f"nodes:\n  {broken}\n  b: {{run: x, needs: a, inputs: {{i: nodes.a.o}}}}\n"
    assert [p.line for p in errors(text)] == [2]


@pytest.mark.parametrize("section", ["params: {p: text}", "params: [p]", "params: {p: {type: str}}"])
def test_broken_params_cause_no_errors_elsewhere(section: str) -> None:
    assert [p.line for p in errors(f"{section}\nnodes: {{a: {{run: x, inputs: {{i: params.p}}}}}}\n")] == [1]


def test_a_fault_in_defaults_is_shown_there_and_once() -> None:
    nodes = "\n".join(f"  n{i}: {{run: x}}" for i in range(5))
    problem = one(f"defaults:\n  env: {{A: '${{{{ params.nope }}}}'}}\nnodes:\n{nodes}\n")
    assert (problem.line, problem.column) == (2, 17)


def test_a_text_that_looks_like_a_reference_is_warned_about() -> None:
    got = load(
        "nodes:\n  a: {run: x, outputs: {o: {}}}\n  b: {run: x, needs: a, inputs: {i: a.o, v: 1.5.x}}\n"
    ).warnings
    assert [(w.code, w.line, w.column, w.hint) for w in got] == [("fixed-text", 3, 37, "did you mean `nodes.a.o`?")]


def test_the_frame_a_person_sees() -> None:
    text = "nodes:\n  build:\n    run: make test\n    depends: [biuld]\n  ship:\n    needs: [biuld]\n    run: ship\n"
    with pytest.raises(InputError) as caught:
        load(text)
    assert (
        render(caught.value)
        == """\
error[unknown-key]: a node has no key `depends`
  --> flow.yaml:4:5
 3 |     run: make test
 4 |     depends: [biuld]
   |     ^^^^^^^
   = help: did you mean `needs`?
error[unknown-node]: node `ship` needs `biuld`, which does not exist
  --> flow.yaml:6:13
 5 |   ship:
 6 |     needs: [biuld]
   |             ^^^^^
   = help: did you mean `build`?
2 errors"""
    )


# ---------------------------------------------------------------- files that can't be read


def test_a_missing_file_is_usage_with_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"there is no file flow\.yaml") as none:
        read_workflow("flow.yaml")
    assert none.value.exit_code == 2
    (tmp_path / "flow.yml").write_text("x")
    with pytest.raises(UsageError) as caught:
        read_workflow("flow.yaml")
    assert caught.value.hint == "did you mean flow.yml?"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        read_workflow(str(tmp_path))
    with pytest.raises(UsageError, match="can't read"):
        read_workflow("a\0b")


def test_fifty_megabytes_are_refused_without_reading_them(tmp_path: Path) -> None:
    with open(tmp_path / "big.yaml", "wb") as handle:
        handle.truncate(50 << 20)
    with pytest.raises(InputError) as caught:
        read_workflow(str(tmp_path / "big.yaml"))
    assert [p.code for p in caught.value.problems] == ["too-big"]


# ---------------------------------------------------------------- laws

_WORDS = st.sampled_from(
    "nodes run needs env if inputs outputs params limits defaults a b x from value default schema retry timeout"
    " ~ true 3 1.5 nodes.a.o params.x ${{params.x}} stdout json resources memory 5M output_schema type object"
    " secrets status version 1 permissions paths read write deny network none any isolation container docker image"
    " pull user tools Read models cost_budget file A pids templates on_failure fallback".split()
)
_TREES = st.recursive(
    _WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=5), max_leaves=25
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(_WORDS, _TREES, max_size=4),
    st.dictionaries(st.sampled_from("abc"), st.dictionaries(_WORDS, _TREES, max_size=5)),
)
def test_any_tree_is_a_workflow_or_problems(top: dict[str, object], nodes: dict[str, dict[str, object]]) -> None:
    text = json.dumps({**top, "nodes": {i: {"run": "x", **n} for i, n in nodes.items()}}, indent=1)
    for plain in (text, text.replace('"', "")) if "${{" not in text else (text,):
        try:
            load(plain)
        except InputError as error:
            lines = plain.split("\n")
            for p in error.problems:
                assert 1 <= p.line <= len(lines)
                assert 1 <= p.column <= len(lines[p.line - 1]) + 1


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_raise_nothing_but_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        read_workflow_text(data, "flow.yaml", ".", use_cache=False)


def test_a_mistake_repeated_without_end_is_not_shown_without_end() -> None:
    text = "nodes:\n" + "".join(f"  n{i}: {{run: x, depends: []}}\n" for i in range(1500))
    problems = errors(text)
    assert len(problems) == 1001
    assert problems[-1].message == "and 500 more, not shown"


# ---------------------------------------------------------------- reviews, templates, what a failure leads to

STEPS = """\
limits: {revisions: 0, fallback_chain: 5, growth: 200%}
nodes:
  build:
    run: make
    on_failure:
      fallback: spare
      review: {message: Look, timeout: 24h, on_timeout: approve}
  test:
    run: pytest
    on_failure: review
  check:
    run: x
    on_failure: {fallback: {run: z, timeout: 1m, on_failure: {fallback: spare}}}
  ask:
    review: {message: "${{ inputs.s }}?", timeout: 1h}
    inputs: {s: nodes.build.status}
  sure:
    title: Last
    review: 3.10
    needs: [ask]
    if: always()
templates:
  spare: {run: echo, needs: [test]}
"""


def test_reviews_templates_and_failures() -> None:
    workflow = load(STEPS).workflow
    nodes = workflow.nodes
    asked = Review(message="Look", timeout_s=86400, on_timeout="approve")
    assert nodes["build"].on_failure == OnFailure(fallback="spare", review=asked)
    assert nodes["test"].on_failure == OnFailure(review=Review())
    inner = Node(id="check-fallback", run="z", timeout_s=60, on_failure=OnFailure(fallback="spare"))
    assert nodes["check"].on_failure == OnFailure(fallback_node=inner)
    assert nodes["ask"].review == Review(message="${{ inputs.s }}?", timeout_s=3600)
    assert (nodes["sure"].kind, nodes["sure"].review) == ("review", Review(message="3.10"))
    assert workflow.templates == {"spare": Node(id="spare", run="echo", needs=("test",))}
    limits = workflow.limits
    assert (limits.revisions, limits.fallback_chain, limits.growth, limits.growth_nodes) == (0, 5, 200, 10)
    assert workflow_from_json(json.loads(json.dumps(workflow_to_json(workflow)))) == workflow


def test_growth_in_its_long_form() -> None:
    limits = load("limits: {growth: {percent: 120, nodes: 3}}\nnodes: {a: {run: x}}").workflow.limits
    assert (limits.growth, limits.growth_nodes) == (120, 3)
    limits = load("limits: {growth: {nodes: 3}}\nnodes: {a: {run: x}}").workflow.limits
    assert (limits.growth, limits.growth_nodes) == (150, 3)


def test_defaults_hold_for_templates_and_inline_fallbacks_but_not_for_reviews() -> None:
    text = """\
defaults: {timeout: 1m, retry: {max_attempts: 4}, continue_on_error: true}
nodes:
  a: {run: x, on_failure: {fallback: {run: z}}}
  r: {review: hm}
templates: {t: {run: x}}
"""
    workflow = load(text).workflow
    steps = workflow.nodes["a"].on_failure
    assert steps is not None
    assert steps.fallback_node is not None
    assert steps.fallback_node.timeout_s == workflow.templates["t"].timeout_s == 60
    review = workflow.nodes["r"]
    assert (review.timeout_s, review.retry, review.continue_on_error) == (300, Node(id="x").retry, True)


@pytest.mark.parametrize(
    ("text", "code", "place", "said"),
    [
        ("nodes: {a: {run: x, review: hm}}", "two-kinds", (1, 21), "of its own"),
        ("nodes: {a: {needs: b}, b: {run: x}}", "no-kind", (1, 9), "`review:`"),
        ("nodes: {a: {review: hm, timeout: 3s}}", "not-for-review", (1, 25), "24h"),
        ("nodes: {a: {review: hm, outputs: {o: {}}}}", "not-for-review", (1, 25), "`outputs`"),
        ("nodes: {a: {review: {timeout: 3s}}}", "no-message", (1, 13), "message"),
        ("nodes: {a: {review: {}}}", "no-message", (1, 13), "message"),
        ("nodes: {a: {review: true}}", "bad-value", (1, 21), "`true`"),
        ("nodes: {a: {review: }}", "bad-value", (1, 13), "message"),
        ("nodes: {a: {review: [a]}}", "bad-shape", (1, 21), "message"),
        ("nodes: {a: {review: {messge: x}}}", "unknown-key", (1, 22), "`message`"),
        ("nodes: {a: {review: {message: x, on_timeout: ok}}}", "bad-value", (1, 46), "`approve`"),
        ("nodes: {a: {review: '${{ inputs.q }}'}}", "unknown-name", (1, 26), "no input"),
        ("nodes: {a: {run: x, on_failure: {}}}", "no-step", (1, 21), "fallback"),
        ("nodes: {a: {run: x, on_failure: spare}}", "bad-value", (1, 33), "{fallback: spare}"),
        ("nodes: {a: {run: x, on_failure: {replanner: {}}}}", "no-model", (1, 34), "models: {main:"),
        ("nodes: {a: {run: x, on_failure: {fallbak: t}}}", "unknown-key", (1, 34), "`fallback`"),
        ("nodes: {a: {run: x, on_failure: {fallback: t}}}", "unknown-template", (1, 44), "templates:"),
        ("nodes: {a: {run: x, on_failure: {fallback: a b}}}", "bad-id", (1, 44), "a-b"),
        ("nodes: {a: {run: x, on_failure: {fallback: {}}}}", "no-kind", (1, 34), "`run:`"),
        ("nodes: {a: {run: x, on_failure: {fallback: {run: z, tiemout: 3}}}}", "unknown-key", (1, 53), "`timeout`"),
        ("nodes: {a: {run: x, on_failure: {fallback: {run: '${{ x }}'}}}}", "expression-in-shell", (1, 51), "env:"),
        ("nodes: {a: {run: x, on_failure: {fallback: {run: z, needs: q}}}}", "unknown-node", (1, 60), "`q`"),
        (
            "nodes: {a: {run: x, on_failure: {fallback: {run: z, inputs: {i: nodes.q.o}}}}}",
            "unknown-name",
            (1, 65),
            "`q`",
        ),
        ("nodes: {a: {run: x, on_failure: {review: {message: '${{ x }}'}}}}", "bad-expression", (1, 53), "as it is"),
        ("nodes: {a: {run: x, on_failure: {replan: p.yaml}}}", "unreadable-file", (1, 42), "p.yaml"),
        ("nodes: {a: {run: x}}\ntemplates: {t: {run: x, needs: q}}", "unknown-node", (2, 32), "`q`"),
        ("nodes: {a: {run: x}}\ntemplates: {t: {run: x, tiemout: 3}}", "unknown-key", (2, 25), "`timeout`"),
        ("nodes: {a: {run: x}}\ntemplates: {t/: {run: x}}", "bad-id", (2, 13), "a template"),
        ("nodes: {a: {run: x}}\ntemplates: {t: x}", "bad-shape", (2, 16), "{run: x}"),
        ("nodes: {a: {run: x}}\nlimits: {growth: 50%}", "bad-value", (2, 18), "100%"),
        ("nodes: {a: {run: x}}\nlimits: {growth: 1.5}", "bad-value", (2, 18), "whole number"),
        ("nodes: {a: {run: x}}\nlimits: {growth: {nodse: 3}}", "unknown-key", (2, 19), "percent and nodes"),
        ("nodes: {a: {run: x}}\nlimits: {revisions: -1}", "bad-value", (2, 21), "at least 0"),
    ],
)
def test_what_can_be_wrong_with_them(text: str, code: str, place: tuple[int, int], said: str) -> None:
    problem = one(text)
    assert (problem.code, (problem.line, problem.column)) == (code, place)
    assert said in problem.message + problem.hint


def test_a_wrong_template_hides_no_other_problem_and_causes_none() -> None:
    text = "nodes: {a: {run: x, on_failure: {fallback: t}}, b: {run: x, needs: [a, q]}}\ntemplates: {t: 3}\n"
    assert brief(errors(text)) == [("unknown-node", 1, 72), ("bad-shape", 2, 16)]


def test_a_cycle_is_found_beside_an_unknown_need() -> None:
    found = errors("nodes:\n  a: {run: x, needs: [b, nope]}\n  b: {run: x, needs: a}\n")
    assert brief(found) == [("cycle", 2, 23), ("unknown-node", 2, 26)]


def test_a_place_far_to_the_right_is_shown_with_what_is_around_it() -> None:
    nodes: dict[str, object] = {f"n{k}": {"run": "x"} for k in range(1000)}
    nodes["bad"] = {"run": "x", "tiemout": 3, "needs": "n1"}
    problem = one(json.dumps({"nodes": {**nodes, **{f"m{k}": {"run": "x"} for k in range(1000)}}}))
    shown = render(InputError((problem,))).splitlines()
    assert shown[2].startswith(" 1 | …")
    assert shown[2].endswith(" …")
    start = shown[3].index("^")
    assert shown[2][start : start + shown[3].count("^")] == '"tiemout"'

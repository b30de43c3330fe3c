"""What was read can be written, and is read again as the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.names import Json, parse_duration
from dagrun.core.workflow import Node, Workflow
from dagrun.flowfile.document import dump_yaml, duration, named_patches, node_to_document, size, workflow_to_document
from dagrun.flowfile.fields import json as to_json
from dagrun.flowfile.load import read_workflow, read_workflow_text
from dagrun.flowfile.source import parse

from . import making

EXAMPLES = sorted((Path(__file__).parents[2] / "workflows").glob("*.yaml"))


def again(workflow: Workflow, *, long: bool = False) -> Workflow:
    """A workflow, written and read."""
    text = dump_yaml(workflow_to_document(workflow, long=long))
    base = os.path.dirname(workflow.file) or "."
    got = read_workflow_text(text.encode(), "again.yaml", base, use_cache=False).workflow
    return replace(got, file=workflow.file, files=workflow.files, digest=workflow.digest)


@given(making.workflows())
def test_any_workflow_is_read_again_as_the_same(workflow: Workflow) -> None:
    assert again(workflow) == workflow
    assert again(workflow, long=True) == workflow


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_the_examples_are_read_again_as_the_same(path: Path) -> None:
    workflow = read_workflow(str(path), use_cache=False).workflow
    assert again(workflow) == workflow


@given(making.json_values)
def test_any_document_is_read_again_and_by_others_too(document: Json) -> None:
    text = dump_yaml(document)
    assert to_json(parse(text.encode(), "f").value) == document
    # YAML 1.1 has no number like 1e-07 nor 1e+16; texts are what others misread most
    if "e-" not in text and "e+" not in text:
        assert yaml.safe_load(text) == document


@given(making.durations)
def test_a_duration_is_written_exactly(seconds: float) -> None:
    text = duration(seconds)
    assert isinstance(text, str)
    assert parse_duration(text) == seconds


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_of_parts_is_written_exactly(d: int, h: int, m: int, s: int, ms: int) -> None:
    seconds = parse_duration(f"{d}d{h}h{m}m{s}s{ms}ms")
    text = duration(seconds)
    assert (parse_duration(text) if isinstance(text, str) else text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.5, "500ms"),
        (1.5, "1.5s"),
        (30, "30s"),
        (90, "1m30s"),
        (600, "10m"),
        (5400, "1h30m"),
        (172800, "2d"),
    ],
)
def test_durations_look_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(512 << 20, "512Mi"), (2 << 30, "2Gi"), (1536, 1536), (3 << 10, "3Ki"), (5, 5)]
)
def test_sizes_look_as_people_write_them(count: int, text: Json) -> None:
    assert size(count) == text


def test_only_what_is_not_the_default_is_written() -> None:
    assert node_to_document(Node(id="a", run="x")) == {"run": "x"}
    assert dump_yaml(workflow_to_document(Workflow(name="w", nodes={"a": Node(id="a", run="x")}))) == (
        "version: 1\nname: w\nnodes:\n  a:\n    run: x\n"
    )


def test_it_looks_as_one_would_write_it() -> None:
    text = b"""\
version: 1
name: w
limits: {parallel: 2, timeout: 1h}
nodes:
  build:
    run: |
      make all
      make check
    outputs: {log: {from: stdout}}
    retry: {max_attempts: 3}
    on_failure: {fallback: spare}

  ask:
    review: Go on with ${{ inputs.log }}?
    needs: [build]
    inputs: {log: nodes.build.log}

  publish:
    run: [./publish.sh, "${{ inputs.log }}", --dry-run]
    needs: [ask]
    inputs:
      log: {from: nodes.build.log, default: "no"}
    env: {MODE: fast}
    timeout: 10m
    resources: {memory: 512Mi, output: 1Mi}
    on_failure: review

templates:
  spare:
    run: echo spare
    outputs: {log: {from: stdout}}
"""
    workflow = read_workflow_text(text, "f.yaml", ".", use_cache=False).workflow
    written = dump_yaml(workflow_to_document(workflow))
    expected = text.decode().replace("--dry-run]", "'--dry-run']").replace("'--dry-run'", '"--dry-run"')
    expected = expected.replace("Go on with ${{ inputs.log }}?", '"Go on with ${{ inputs.log }}?"')
    expected = expected.replace(
        '    inputs:\n      log: {from: nodes.build.log, default: "no"}\n',
        '    inputs: {log: {from: nodes.build.log, default: "no"}}\n',
    ).replace("\n\ntemplates", "\ntemplates")
    assert written == expected


def test_patches_that_are_named_are_found_with_their_text(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("operations: [{rerun: {id: a}}]")
    text = b"nodes: {a: {run: x, on_failure: {fallback: {run: y, on_failure: {replan: p.yaml}}}}}"
    workflow = read_workflow_text(text, "f.yaml", str(tmp_path), use_cache=False).workflow
    assert named_patches(workflow.nodes["a"]) == {"p.yaml": {"operations": [{"rerun": {"id": "a"}}]}}
    os.unlink(tmp_path / "p.yaml")

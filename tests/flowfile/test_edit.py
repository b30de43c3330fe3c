"""The patch from one file to another, and a patch carried out on a file's text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.core.names import Json
from dagrun.core.workflow import Workflow
from dagrun.errors import InputError, Problem
from dagrun.flowfile import pieces
from dagrun.flowfile.differ import diff_files, difference
from dagrun.flowfile.document import dump_yaml, workflow_to_document
from dagrun.flowfile.edit import Flow, apply_to_file, edit_file, open_flow
from dagrun.flowfile.emit import flow as on_one_line
from dagrun.flowfile.load import read_workflow_text
from dagrun.flowfile.merge import merged, tree_of, without
from dagrun.flowfile.patchfile import FilePatch, Written, file_patch_from_document, read_file_patch

from . import making

EXAMPLES = sorted((Path(__file__).parents[2] / "workflows").glob("*.yaml"))


def read(data: bytes) -> Workflow:
    """A text, checked, without its name, its digest and the files that it names."""
    got = read_workflow_text(data, "f.yaml", ".", use_cache=False).workflow
    return replace(got, file="", files=(), digest="")


def patch(flow: Flow, text: str) -> FilePatch:
    """A patch of these operations."""
    data = f"operations: [{text}]".encode()
    return read_file_patch(data, "p.yaml", flow.workflow, defaults=flow.defaults)


def edited(text: str, *operations: str) -> str:
    """A text after some operations, each in YAML."""
    flow = open_flow(text.encode(), "f.yaml", ".")
    return edit_file(flow, patch(flow, ", ".join(operations))).decode()


def refused(text: str, *operations: str) -> list[Problem]:
    """Why operations can't be carried out on a text."""
    with pytest.raises(InputError) as caught:
        edited(text, *operations)
    return list(caught.value.problems)


# ---------------------------------------------------------------- laws


@settings(max_examples=60)
@given(making.workflows(), making.workflows())
def test_the_patch_from_a_to_b_makes_a_to_b(a: Workflow, b: Workflow) -> None:
    document = diff_files(a, b)
    if not document["operations"]:
        assert a == b
        return
    assert apply_to_file(a, file_patch_from_document(document, a, "diff")) == b


@given(making.workflows())
def test_nothing_differs_from_itself(workflow: Workflow) -> None:
    assert diff_files(workflow, workflow)["operations"] == []


def styled(workflow: Workflow, style: str) -> bytes:
    """The text of a workflow as somebody could have written it."""
    document = workflow_to_document(workflow)
    if style == "json":
        return json.dumps(document).encode()
    if style == "indented json":
        return (json.dumps(document, indent=4) + "\n").encode()
    if style == "flow":
        return on_one_line(document).encode()
    text = dump_yaml(document)
    if style == "comments":  # above each node, where no literal block is cut by them
        count = iter(range(1000))
        text = re.sub(r"(?m)^(  [\w\"-]+:)$", lambda m: f"  # c{next(count)}\n{m[1]}", text)
    if style == "windows" and "\r" not in text:
        return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    return text.encode()


@settings(max_examples=60)
@given(
    making.workflows(),
    making.workflows(),
    st.sampled_from(["plain", "comments", "json", "indented json", "flow", "windows"]),
)
def test_an_edited_text_says_what_the_model_says(a: Workflow, b: Workflow, style: str) -> None:
    data = styled(a, style)
    flow = open_flow(data, "f.yaml", ".")
    document = diff_files(flow.workflow, b)
    if not document["operations"]:
        return
    got = edit_file(flow, file_patch_from_document(document, flow.workflow, "diff"))
    assert read(got) == b
    assert got.startswith(b"\xef\xbb\xbf") == data.startswith(b"\xef\xbb\xbf")
    if style == "windows" and data.startswith(b"\xef"):
        assert b"\n" not in got.replace(b"\r\n", b"")
    if style == "comments":
        for name in a.nodes.keys() & b.nodes.keys():
            above = re.search(rf"(?m)^  # (c\d+)\n  \"?{name}\"?:", data.decode())
            assert not above or f"# {above[1]}\n" in got.decode()


trees = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.sampled_from(["x", "y"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["a", "b", "schema"]), inner)),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from(["a", "b", "schema"]), trees, max_size=3)


@given(mappings, mappings)
def test_a_difference_is_what_merging_needs(old: dict[str, Json], new: dict[str, Json]) -> None:
    changes, unset = difference(old, new)
    start, end, step = tree_of(old), tree_of(new), tree_of(changes)
    assert isinstance(start, dict)
    assert isinstance(step, dict)
    faults: list[object] = []
    assert merged(without(start, unset, (), faults), step) == end  # type: ignore[arg-type]
    assert not faults


# ---------------------------------------------------------------- the text

TEXT = """\
# yaml-language-server: $schema=x
name: research   # the name
params:
  topic: {type: string}

nodes:
  # gets it
  fetch:
    run: |
      ./fetch.sh   # no comment

      done
    outputs: {items: {from: json}}   # data

  # finds faults
  lint: {run: ruff, needs: fetch}

  test:
    run: pytest
    needs:
      - fetch   # because
      - lint    # style
    timeout:   20m   # slow
    env:
      # why
      A: "1"
      B: 2  # two

  # the end
  publish:
    needs: [test]
    inputs: {items: nodes.fetch.items}
    run: [./publish.sh]
# trailer
outputs:
  all: nodes.fetch.items
"""


def test_an_insert_stands_behind_what_it_follows() -> None:
    got = edited(TEXT, "{insert: {id: scan, node: {run: ./scan.sh}, after: [test], before: [publish]}}")
    assert got == TEXT.replace(
        "  # the end\n  publish:\n    needs: [test]\n",
        "  scan:\n    run: ./scan.sh\n    needs: [test]\n\n  # the end\n  publish:\n    needs: [scan]\n",
    )


def test_a_first_node_stands_before_what_waits_for_it() -> None:
    got = edited(TEXT, "{insert: {id: clean, node: {run: rm x}, before: [fetch]}}")
    assert got == TEXT.replace("  # gets it\n  fetch:\n", "  clean:\n    run: rm x\n\n  # gets it\n  fetch:\n").replace(
        "    outputs: {items: {from: json}}   # data\n",
        "    outputs: {items: {from: json}}   # data\n    needs: [clean]\n",
    )


def test_new_nodes_stand_in_the_order_of_their_needs() -> None:
    got = edited(
        TEXT,
        "{insert: {id: one, node: {run: x}, after: [publish]}}",
        "{insert: {id: two, node: {run: x}, after: [one]}}",
    )
    assert got == TEXT.replace(
        "    run: [./publish.sh]\n",
        "    run: [./publish.sh]\n\n  one:\n    run: x\n    needs: [publish]\n\n  two:\n    run: x\n    needs: [one]\n",
    )


def test_a_removed_node_takes_its_comment_along() -> None:
    expected = TEXT.replace("  # finds faults\n  lint: {run: ruff, needs: fetch}\n\n", "").replace(
        "      - lint    # style\n", ""
    )
    assert edited(TEXT, "{remove: {id: lint, strategy: bridge}}") == expected
    assert edited(TEXT, "{remove: {id: lint, strategy: skip}}") == expected


def test_changed_values_keep_what_stands_beside_them() -> None:
    got = edited(
        TEXT,
        "{modify: {id: test, set: {timeout: 1h, env: {A: x y}}, unset: [env.B]}}",
        "{modify: {id: fetch, set: {outputs: {items: {path: .x}}}}}",
        "{modify: {id: publish, set: {title: 3.10}}}",
        "{workflow: {set: {name: other}}}",
    )
    assert got == TEXT.replace("20m   # slow", "1h   # slow").replace('A: "1"', "A: x y").replace(
        "      B: 2  # two\n", ""
    ).replace("{from: json}", "{from: json, path: .x}").replace(
        "    run: [./publish.sh]\n", '    run: [./publish.sh]\n    title: "3.10"\n'
    ).replace("name: research ", "name: other ")


def test_a_comment_never_becomes_part_of_a_text() -> None:
    text = "nodes:\n  a:\n    run: x  # why\n    title: t\n"
    got = edited(text, '{modify: {id: a, set: {run: "one\\ntwo\\n"}}}')
    assert got == "nodes:\n  a:\n    # why\n    run: |\n      one\n      two\n    title: t\n"
    got = edited("nodes:\n  a:\n    run:  # why\n      - x\n", "{modify: {id: a, set: {run: y z}}}")
    assert got == "nodes:\n  a:\n    # why\n    run: y z\n"


def test_the_last_key_of_a_mapping_takes_the_mapping_along() -> None:
    got = edited(TEXT, "{modify: {id: test, unset: [env.A, env.B, timeout]}}")
    assert "env" not in got
    assert "# why" not in got
    assert "slow" not in got


def test_new_keys_of_the_file_stand_above_the_nodes_or_at_the_end() -> None:
    got = edited(
        TEXT, "{set_limits: {parallel: 3}}", "{workflow: {set: {templates: {spare: {run: x}}, schedule: ready}}}"
    )
    assert got == TEXT.replace("{type: string}\n\n", "{type: string}\n\nlimits: {parallel: 3}\nschedule: ready\n\n") + (
        "templates:\n  spare:\n    run: x\n"
    )


def test_what_a_run_would_skip_is_taken_out() -> None:
    got = edited(
        TEXT, "{alternative: {blocked: [lint, test], nodes: {p: {run: x}, q: {run: z, needs: p}}, exits: [q]}}"
    )
    flow = read(got.encode())
    assert list(flow.nodes) == ["fetch", "p", "q", "publish"]
    assert flow.nodes["publish"].needs == ("q",)
    assert "# the end" in got
    assert "# because" not in got


def test_a_fallback_takes_the_place() -> None:
    flow = read(edited(TEXT, "{fallback: {id: lint, with: {run: other}}}").encode())
    assert list(flow.nodes) == ["fetch", "lint-fallback", "test", "publish"]
    assert flow.nodes["test"].needs == ("fetch", "lint-fallback")


def test_a_patch_that_changes_nothing_leaves_every_byte() -> None:
    assert edited(TEXT, "{modify: {id: test, set: {timeout: 1200}}}") == TEXT


def test_json_stays_json() -> None:
    text = '{"nodes": {\n  "a": {"run": "x"},\n  "b": {"run": "y", "needs": ["a"]}\n}}'
    got = edited(text, "{insert: {id: c, node: {run: é}, after: [a], before: [b]}}", "{set_limits: {parallel: 2}}")
    assert json.loads(got) == {
        "nodes": {"a": {"run": "x"}, "b": {"run": "y", "needs": ["c"]}, "c": {"run": "é", "needs": ["a"]}},
        "limits": {"parallel": 2},
    }
    assert got.startswith('{"nodes": {\n  "a": {"run": "x"},\n  "b"')
    assert edited(text, "{remove: {id: b, strategy: skip}}") == '{"nodes": {\n  "a": {"run": "x"}\n}}'
    assert edited(text, "{remove: {id: a, strategy: skip}}") == '{"nodes": {\n  "b": {"run": "y"}\n}}'


def test_the_indentation_is_the_files_own() -> None:
    text = "nodes:\n    a:\n        run: x\n"
    got = edited(text, '{insert: {id: b, node: {run: "p\\nq\\n"}, after: [a]}}')
    assert got == text + "    b:\n        run: |\n            p\n            q\n        needs: [a]\n"


def test_a_text_without_its_last_newline() -> None:
    got = edited("nodes:\n  a:\n    run: x", "{insert: {id: b, node: {run: z}, after: [a]}}")
    assert got == "nodes:\n  a:\n    run: x\n  b:\n    run: z\n    needs: [a]\n"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_keeps_every_other_line(path: Path) -> None:
    data = path.read_bytes()
    flow = open_flow(data, str(path), str(path.parent))
    last = list(flow.workflow.nodes)[-1]
    got = edit_file(flow, patch(flow, f"{{insert: {{id: zzz, node: {{run: x}}, after: [{last}]}}}}")).decode()
    new = re.search(r"(?m)^\n?  zzz:\n    run: x\n    needs: \[[\w-]+\]\n", got)
    assert new
    assert got.replace(new[0], "") == data.decode()


# ---------------------------------------------------------------- defaults, anchors

DEFAULTS = """\
defaults:
  timeout: 10m
  env: {LEVEL: info}
  retry: {max_attempts: 3}
nodes:
  a: {run: x}
  b:
    run: z
    needs: a
"""


def test_a_new_node_takes_the_defaults_of_the_file() -> None:
    got = edited(DEFAULTS, "{insert: {id: c, node: {run: u, env: {X: 1}}, after: [b]}}")
    assert got == DEFAULTS + '  c:\n    run: u\n    needs: [b]\n    env: {X: "1"}\n'
    node = read(got.encode()).nodes["c"]
    assert (node.timeout_s, dict(node.env), node.retry.max_attempts) == (600, {"LEVEL": "info", "X": "1"}, 3)


def test_a_value_that_is_the_built_in_one_is_written_against_defaults() -> None:
    got = edited(DEFAULTS, "{modify: {id: b, set: {timeout: 300}}}")
    assert got == DEFAULTS + "    timeout: 5m\n"
    assert edited(got, "{modify: {id: b, set: {title: t}}}") == got + "    title: t\n"


def test_what_defaults_give_can_not_be_dropped() -> None:
    (problem,) = refused(DEFAULTS, "{modify: {id: b, unset: [env.LEVEL]}}")
    assert problem.code == "from-defaults"


def test_anchors_and_aliases_are_left_alone() -> None:
    text = "nodes:\n  a: &x {run: x}\n  b: *x\n  c: {run: z}\n"
    assert edited(text, "{modify: {id: c, set: {title: t}}}") == text.replace("{run: z}", "{run: z, title: t}")
    for name, line in (("a", 2), ("b", 3)):
        (problem,) = refused(text, f"{{modify: {{id: {name}, set: {{title: t}}}}}}")
        assert (problem.code, problem.line) == ("can't-edit", line)


# ---------------------------------------------------------------- what is refused


def test_faults_of_the_core_have_places_in_the_patch() -> None:
    (problem,) = refused(TEXT, "{insert: {id: test, node: {run: x}, after: [fetch]}}")
    assert (problem.file, problem.line, problem.column, problem.code) == ("p.yaml", 1, 28, "id-taken")


def test_a_file_is_no_run() -> None:
    assert [p.code for p in refused(TEXT, "{rerun: {id: test}}", "{retry: {id: test}}")] == ["nothing-ran"] * 2


def test_a_cycle_is_found() -> None:
    (problem,) = refused(TEXT, "{modify: {id: test, set: {needs: [publish]}}}")
    assert problem.code == "cycle"


def test_wrong_values_of_other_keys_have_places() -> None:
    found = refused(TEXT, "{workflow: {set: {schedule: fast, params: {topic: {typ: x}}}, unset: [nope]}}")
    assert {(p.code, p.column) for p in found} == {("bad-value", 42), ("unknown-key", 65), ("nothing-to-unset", 84)}
    assert "defaults" in refused(TEXT, "{workflow: {set: {defaults: {timeout: 1s}}}}")[0].message


def test_pieces_of_a_command_line_edit_a_file() -> None:
    flow = open_flow(TEXT.encode(), "f.yaml", ".")
    made: list[Written] = [pieces.change("test.timeout=1h"), pieces.rewire("publish=lint", flow.workflow)]
    got = edit_file(flow, pieces.patch_from_pieces(made, flow.workflow, defaults=flow.defaults)).decode()
    assert got == TEXT.replace("20m ", "1h ").replace("needs: [test]", "needs: [lint]")


# ---------------------------------------------------------------- permissions, containers, secrets

GUARDED = """\
name: guarded
permissions:
  network: none        # nothing
  paths: {read: [.], write: [out, tmp], deny: [".env*"]}
docker: alpine
secrets: {A: {env: A}, B: {env: B}}
nodes:
  a:
    run: x
    secrets: [A]       # one
    permissions: {paths: {read: [src], write: [out]}}
  b: {run: z, isolation: container, docker: {image: debian, pull: missing}}
"""


def test_permissions_of_a_node_are_changed_key_by_key() -> None:
    got = edited(
        GUARDED,
        "{modify: {id: a, set: {permissions: {paths: {write: [tmp]}, cost_budget: 0.10}},"
        " unset: [permissions.paths.read]}}",
    )
    assert got == GUARDED.replace(
        "permissions: {paths: {read: [src], write: [out]}}", "permissions: {paths: {write: [tmp]}, cost_budget: 0.1}"
    )
    got = edited(GUARDED, "{modify: {id: a, unset: [permissions.paths.write, permissions.paths.read]}}")
    assert got == GUARDED.replace("{paths: {read: [src], write: [out]}}", "{paths: {}}")
    got = edited(GUARDED, "{modify: {id: a, unset: [permissions.paths]}}")
    assert got == GUARDED.replace("    permissions: {paths: {read: [src], write: [out]}}\n", "")


def test_isolation_docker_and_secrets_of_a_node() -> None:
    got = edited(
        GUARDED,
        "{modify: {id: a, set: {isolation: container, secrets: [A, {B: file}]}}}",
        "{modify: {id: b, set: {docker: {image: busybox}}, unset: [docker.pull]}}",
    )
    assert got == GUARDED.replace("secrets: [A]   ", "secrets: [A, {B: file}]   ").replace(
        "write: [out]}}\n", "write: [out]}}\n    isolation: container\n"
    ).replace("{image: debian, pull: missing}", "busybox")
    assert edited(GUARDED, "{modify: {id: b, unset: [docker]}}") == GUARDED.replace(
        ", docker: {image: debian, pull: missing}", ""
    )


def test_permissions_of_the_file() -> None:
    got = edited(
        GUARDED,
        "{workflow: {set: {permissions: {network: [a.com]}, docker: {pull: missing}},"
        " unset: [permissions.paths.deny]}}",
    )
    assert got == GUARDED.replace("network: none        # nothing", "network: [a.com]        # nothing").replace(
        ', deny: [".env*"]', ""
    ).replace("docker: alpine", "docker: {image: alpine, pull: missing}")
    without_any = GUARDED[: GUARDED.index("permissions")] + GUARDED[GUARDED.index("secrets: {A") :]
    assert edited(GUARDED, "{workflow: {unset: [permissions, docker]}}") == without_any
    got = edited(without_any, "{workflow: {set: {permissions: {isolation: process, tools: [Read]}}}}")
    assert got == without_any.replace("nodes:\n", "permissions: {tools: [Read], isolation: process}\nnodes:\n")


def test_a_change_that_asks_for_too_much_is_refused() -> None:
    (problem,) = refused(GUARDED, "{modify: {id: a, set: {permissions: {network: any}}}}")
    assert problem.code == "beyond-permissions"
    (problem,) = refused(GUARDED, "{workflow: {set: {permissions: {paths: {write: [tmp]}}}}}")
    assert problem.code == "beyond-permissions"
    assert problem.message.startswith("afterwards: ")
    (problem,) = refused(GUARDED, "{modify: {id: a, set: {permissions: {paths: {wirte: [tmp]}}}}}")
    assert (problem.code, problem.hint) == ("unknown-key", "did you mean `write`?")


PERMISSIVE = """\
defaults:
  isolation: container
  permissions: {network: none, paths: {deny: [keys]}}
  docker: {image: alpine, pull: missing}
nodes:
  a: {run: x}
  b:
    run: z
    permissions: {paths: {read: [src], deny: [more]}}
"""


def test_only_what_defaults_do_not_give_is_written() -> None:
    node = "{run: u, permissions: {cost_budget: 1, paths: {deny: [x]}}, docker: {user: 1000}, isolation: process}"
    got = edited(PERMISSIVE, f"{{insert: {{id: c, node: {node}, after: [b]}}}}")
    assert got == PERMISSIVE + (
        "  c:\n    run: u\n    needs: [b]\n    permissions:\n      paths: {deny: [x]}\n      cost_budget: 1\n"
        '    docker: {user: "1000"}\n    isolation: process\n'
    )
    made = read(got.encode()).nodes["c"]
    assert made.permissions is not None
    assert made.permissions.network == "none"
    assert made.permissions.paths is not None
    assert made.permissions.paths.deny == ("keys", "x")
    got = edited(PERMISSIVE, "{modify: {id: b, set: {permissions: {paths: {write: [src/x]}}}}}")
    assert got == PERMISSIVE.replace("deny: [more]}}", "deny: [more], write: [src/x]}}")
    got = edited(PERMISSIVE, "{modify: {id: a, set: {docker: {image: debian}}}}")
    assert got == PERMISSIVE.replace("a: {run: x}", "a: {run: x, docker: {image: debian}}")


def test_what_defaults_deny_can_not_be_dropped() -> None:
    for unset in ("permissions.network", "permissions.paths.deny", "docker.image", "isolation"):
        got = refused(PERMISSIVE, f"{{modify: {{id: a, unset: [{unset}]}}}}")
        assert [p.code for p in got] == ["from-defaults"]
    (problem,) = refused(PERMISSIVE, "{modify: {id: b, set: {permissions: {paths: {deny: [more]}}}}}")
    assert problem.code == "defaults"

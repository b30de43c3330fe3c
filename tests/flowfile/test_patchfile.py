"""A patch file to a Patch: every operation, what is merged, and all that can be wrong, at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.operation import (
    Alternative,
    Fallback,
    Insert,
    Modify,
    Patch,
    Remove,
    Rerun,
    Retry,
    Rewire,
    SetLimits,
    Trigger,
)
from dagrun.core.patch import apply, draft
from dagrun.core.permissions import Paths, Permissions
from dagrun.core.workflow import Docker, Fault, Input, Node, OnFailure, Review, Workflow
from dagrun.errors import InputError, Problem, UsageError, render
from dagrun.flowfile import pieces
from dagrun.flowfile.load import read_workflow_text
from dagrun.flowfile.patchfile import (
    FilePatch,
    Written,
    patch_from_document,
    read_file_patch,
    read_patch,
    to_document,
)

FLOW = b"""
name: w
nodes:
  test: {run: x, env: {A: "1", B: b}, outputs: {o: {}}, retry: {max_attempts: 2}}
  deploy: {run: z, needs: test, inputs: {i: nodes.test.o, lit: 5}}
  ask: {review: Sure?, needs: [deploy]}
templates:
  spare: {run: z}
"""


def flow(text: bytes = FLOW, base: Path | str = ".") -> Workflow:
    """A workflow, checked."""
    return read_workflow_text(text, "f.yaml", str(base), use_cache=False).workflow


def read(text: str) -> Patch:
    """The patch of these operations."""
    return read_patch(f"operations: [{text}]".encode(), "p.yaml", flow())


def changed(text: str, name: str = "test") -> Node:
    """The node that the last operation makes of one."""
    operation = read(text).operations[-1]
    assert isinstance(operation, Modify | Retry)
    assert operation.node is not None
    assert operation.id == operation.node.id == name
    return operation.node


def wrong(data: str | bytes, *, whole: bool = False, base: str | None = None) -> list[Problem]:
    """What is wrong with operations, or with a whole text."""
    text = data if isinstance(data, bytes) else (data if whole else f"operations: [{data}]").encode()
    with pytest.raises(InputError) as caught:
        read_file_patch(text, "p.yaml", flow(), base_dir=base)
    return list(caught.value.problems)


# ---------------------------------------------------------------- what is right


def test_every_operation() -> None:
    patch = read_patch(
        b"""\
workflow: w
base: 2
trigger: {type: failure, node: test, reason: 3.10}
operations:
  - insert:   {id: scan, node: {run: ./scan.sh}, after: [test], before: deploy}
  - remove:   {id: ask, strategy: bridge, input_map: {nodes.test.o: nodes.scan.o}, running: cancel}
  - remove:   {id: ask, strategy: skip, dependents: skip}
  - rewire:   {id: deploy, old: [test], new: scan, root: true}
  - fallback: {id: test, with: spare}
  - fallback: {id: test, with: {run: other}}
  - alternative: {blocked: [deploy], nodes: {p: {run: x}, q: {run: z, needs: p}}, exits: [q]}
  - rerun:    {id: test, running: cancel}
  - set_limits: {parallel: 2, timeout: 1h, resources: {gpu: 2, memory: 1Gi}}
""",
        "p.yaml",
        flow(),
    )
    assert (patch.base, patch.workflow) == (2, "w")
    assert patch.trigger == Trigger(type="failure", node="test", reason="3.10")
    nodes = {"p": Node(id="p", run="x"), "q": Node(id="q", run="z", needs=("p",))}
    assert patch.operations == (
        Insert(id="scan", node=Node(id="scan", run="./scan.sh"), after=("test",), before=("deploy",)),
        Remove(id="ask", strategy="bridge", input_map={"nodes.test.o": "nodes.scan.o"}, cancel_running=True),
        Remove(id="ask", strategy="skip", dependents="skip"),
        Rewire(id="deploy", old=("test",), new=("scan",), root=True),
        Fallback(id="test", node=Node(id="spare", run="z")),
        Fallback(id="test", node=Node(id="test-fallback", run="other")),
        Alternative(blocked=("deploy",), nodes=nodes, exits=("q",)),
        Rerun(id="test", cancel_running=True),
        SetLimits(parallel=2, timeout_s=3600, resources={"gpu": 2, "memory": 1 << 30}),
    )


def test_set_merges_mappings_and_replaces_the_rest() -> None:
    before = flow().nodes["test"]
    node = changed("{modify: {id: test, set: {timeout: 10m, env: {B: no, C: 3.10}, retry: {delay: 5}}}}")
    assert dict(node.env) == {"A": "1", "B": "no", "C": "3.10"}
    assert (node.timeout_s, node.retry.max_attempts, node.retry.delay_s) == (600, 2, 5)
    assert (node.run, node.outputs) == (before.run, before.outputs)
    assert changed("{modify: {id: deploy, set: {needs: [], run: [a, b]}}}", "deploy").needs == ()


def test_an_input_in_its_short_form_can_be_changed_by_key() -> None:
    node = changed("{modify: {id: deploy, set: {inputs: {i: {default: 1.50}, lit: {optional: true}}}}}", "deploy")
    assert node.inputs["i"] == Input(expression="nodes.test.o", has_default=True, default=1.5)
    assert node.inputs["lit"] == Input(value=5, optional=True)
    node = changed("{modify: {id: deploy, set: {inputs: {i: {value: 3}, lit: nodes.test.o}}}}", "deploy")
    assert (node.inputs["i"], node.inputs["lit"]) == (Input(value=3), Input(expression="nodes.test.o"))


def test_a_review_in_its_short_form_can_be_changed_by_key() -> None:
    node = changed("{modify: {id: ask, set: {review: {timeout: 1h}}}}", "ask")
    assert node.review == Review(message="Sure?", timeout_s=3600)


def test_unset_drops_keys_and_parts() -> None:
    node = changed("{modify: {id: test, unset: [env.A, retry, outputs]}}")
    assert (dict(node.env), node.retry, dict(node.outputs)) == ({"B": "b"}, Node(id="x").retry, {})


def test_changes_of_one_node_add_up() -> None:
    node = changed("{modify: {id: test, set: {timeout: 1m}}}, {modify: {id: test, set: {title: t}, unset: [env]}}")
    assert (node.timeout_s, node.title, dict(node.env)) == (60, "t", {})
    node = changed("{rewire: {id: ask, new: [test]}}, {modify: {id: ask, set: {title: t}}}", "ask")
    assert node.needs == ("deploy", "test")
    node = changed("{insert: {id: n, node: {run: x}, after: test}}, {modify: {id: n, set: {timeout: 1m}}}", "n")
    assert (node.timeout_s, node.needs) == (60, ("test",))


def test_retry_takes_the_few_keys_that_it_may() -> None:
    assert read("{retry: {id: test}}").operations == (Retry(id="test"),)
    node = changed("{retry: {id: test, set: {timeout: 1h, resources: {cpu: 1}, env: {A: 2}}, running: cancel}}")
    assert (node.timeout_s, dict(node.resources), node.env["A"]) == (3600, {"cpu": 1}, "2")


def test_what_is_kept_for_the_history_is_read_again_as_the_same() -> None:
    patch = read(
        "{insert: {id: n, node: {run: x, env: {V: 3.10, W: no}, timeout: 90}, after: test}},"
        "{modify: {id: n, set: {env: {X: 1_0}, retry: {backoff: 1.50, max_attempts: 2}, title: 012}, unset: [env.V]}},"
        "{modify: {id: deploy, set: {inputs: {i: {default: 1.50}, z: {value: 1.50}, t: {value: '1.50'}}}}},"
        "{retry: {id: test, set: {timeout: 600.0}}}, {fallback: {id: test, with: {run: z, env: {V: 0.50}}}},"
        "{set_limits: {timeout: 1m}}"
    )
    again = json.loads(json.dumps({"operations": list(patch.written)}))
    assert patch_from_document(again, flow(), "history") == patch
    assert patch.written[1] == {
        "modify": {
            "id": "n",
            "set": {"env": {"X": "1_0"}, "retry": {"backoff": 1.5, "max_attempts": 2}, "title": "012"},
            "unset": ["env.V"],
        }
    }
    whole = FilePatch(patch, lambda f: Problem(code=f.code, message=f.message))
    assert patch_from_document(to_document(whole), flow(), "x") == patch


def test_files_that_a_patch_names_are_read_beside_it(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "object", "properties": {"n": {}}}')
    text = b"operations: [{insert: {id: n, node: {run: x, output_schema: s.json}, after: test}}]"
    made = read_file_patch(text, "p.yaml", flow(), base_dir=str(tmp_path))
    operation = made.patch.operations[0]
    assert isinstance(operation, Insert)
    assert list(operation.node.outputs) == ["n"]
    assert (
        patch_from_document({"operations": list(made.patch.written)}, flow(), "x").operations == made.patch.operations
    ), "the schema is kept in place"


# ---------------------------------------------------------------- what is wrong


def test_all_problems_at_once_each_in_its_place() -> None:
    found = wrong(
        """\
workflow: v
base: 0
triger: {}
operations:
  - insert: {id: scan, node: {run: x, tiemout: 3}, after: [te st]}
  - inser: {id: scan}
  - remove: {id: test, strategy: bride}
    running: cancel
  - modify: {id: tset, set: {timeout: 10m}}
  - modify: {id: test, set: {timeout: 10x, inputs: {i: {form: x}}}, unset: [env.V]}
  - modify: {id: scan, set: {timeout: 10m}}
  - retry: {id: test, set: {run: x, model: x}}
  - fallback: {id: test, with: spar}
  - fallback: {id: test, with: {needs: x}}
  - set_limits: {}
  - []
  - {}
  - modify: {id: test}
  - alternative: {blocked: [test], nodes: {p/: {run: u}}}
  - insert: {id: a, node: {run: x}}
    rerun: {id: test}
""",
        whole=True,
    )
    assert [(p.code, p.line, p.column) for p in found] == [
        ("bad-value", 2, 7),
        ("unknown-key", 3, 1),
        ("unknown-key", 5, 39),
        ("bad-id", 5, 60),
        ("unknown-operation", 6, 5),
        ("unknown-operation", 8, 5),
        ("unknown-node", 9, 18),
        ("bad-value", 10, 39),
        ("unknown-key", 10, 57),
        ("nothing-to-unset", 10, 77),
        ("not-for-retry", 12, 29),
        ("not-an-agent", 12, 37),
        ("unknown-template", 13, 32),
        ("no-kind", 14, 26),
        ("no-change", 15, 5),
        ("bad-shape", 16, 5),
        ("bad-shape", 17, 5),
        ("no-change", 18, 5),
        ("missing-key", 19, 5),
        ("bad-id", 19, 44),
        ("two-operations", 21, 5),
    ]
    hints = {(p.line, p.hint) for p in found}
    assert {(3, "did you mean `trigger`?"), (5, "did you mean `timeout`?"), (6, "did you mean `insert`?")} <= hints
    assert {(9, "did you mean `test`?"), (13, "did you mean `spare`?")} <= hints


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("operations: []", "no-operations"),
        ("operations: {remove: {id: a}}", "no-operations"),
        ("x", "bad-shape"),
        ("base: 2", "missing-key"),
        ("workflow: other\noperations: [{rerun: {id: test}}]", "wrong-workflow"),
        ("", "empty"),
        ("operations: [{rerun: {id: a}, rerun: {id: b}}]", "duplicate-key"),
    ],
)
def test_a_patch_that_is_none(text: str, code: str) -> None:
    assert [p.code for p in wrong(text, whole=True)] == [code]


def test_remove_without_a_strategy_explains_the_three() -> None:
    (problem,) = wrong("{remove: {id: test}}")
    assert all(word in problem.hint for word in ("`skip`", "`bridge`", "`cascade`"))


def test_a_changed_node_has_to_be_one() -> None:
    assert [p.code for p in wrong("{modify: {id: test, unset: [run]}}")] == ["no-kind"]
    assert [p.code for p in wrong("{modify: {id: test, set: {review: hm}}}")] == ["two-kinds"]
    assert {p.code for p in wrong("{modify: {id: ask, set: {run: hm}}}")} == {"two-kinds"}


def test_a_patch_for_a_run_names_no_files_and_changes_no_other_keys() -> None:
    (problem,) = wrong("{insert: {id: n, node: {run: x, output_schema: /etc/passwd}}}")
    assert problem.code == "no-files"
    (problem,) = wrong("{modify: {id: test, set: {on_failure: {replan: /etc/passwd}}}}")
    assert problem.code == "no-files"
    with pytest.raises(InputError) as caught:
        read("{workflow: {set: {name: x}, unset: [params.p]}}")
    assert [p.message for p in caught.value.problems] == [
        "`name` of a workflow can't be changed in a run",
        "`params` of a workflow can't be changed in a run",
    ]
    made = read_file_patch(b"operations: [{workflow: {set: {name: x}}}]", "p.yaml", flow())
    assert [dict(edit.set) for edit, _ in made.edits] == [{"name": "x"}]


def test_a_fault_of_the_core_gets_its_place() -> None:
    text = b"operations:\n  - workflow: {set: {name: x}}\n  - insert: {id: test, node: {run: x}}\n"
    made = read_file_patch(text, "p.yaml", flow())
    problem = made.problem(Fault(("operations", 0, "id"), "id-taken", "taken"))
    assert (problem.line, problem.column) == (3, 18)
    problem = made.problem(Fault(("operations", 0), "settled", "no"))
    assert (problem.line, problem.column) == (3, 13)


WORDS = (
    "insert modify retry fallback alternative remove id node set unset run review with nodes exits blocked workflow"
    " env inputs on_failure test true 3 x"
).split()
documents = st.recursive(
    st.sampled_from(WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS[:-4]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(documents)
def test_any_document_is_a_patch_or_refused(document: object) -> None:
    for whole in (document, {"operations": [document]}, {"operations": [{"modify": {"id": "test", "set": document}}]}):
        try:
            patch_from_document(whole, flow(), "x")  # type: ignore[arg-type]
        except InputError as error:
            render(error)


# ---------------------------------------------------------------- declared in a workflow


def test_a_declared_patch_is_kept_in_canonical_form(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("operations: [{modify: {id: a, set: {env: {V: 3.10}, timeout: 60}}}]")
    text = b"nodes: {a: {run: x, on_failure: {replan: p.yaml}}}"
    wanted = flow(text, tmp_path).nodes["a"].on_failure
    assert isinstance(wanted, OnFailure)
    assert wanted.replan_patch == {
        "operations": [{"modify": {"id": "a", "set": {"env": {"V": "3.10"}, "timeout": "1m"}}}]
    }
    operation = patch_from_document(wanted.replan_patch, flow(text, tmp_path), "p.yaml").operations[0]
    assert isinstance(operation, Modify)
    assert operation.node.env == {"V": "3.10"}
    assert operation.node.on_failure == wanted, "a change of the node keeps what was read"


def test_a_declared_patch_is_checked_when_the_workflow_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "operations: [{modify: {id: a, set: {timeuot: 60}}}, {workflow: {set: {name: x}}}]"
    )
    (tmp_path / "q.yaml").write_text("operations: [{workflow: {set: {name: x}}}]")
    (tmp_path / "r.yaml").write_text("a: [")
    text = b"nodes:\n  a: {run: x, on_failure: {replan: p.yaml}}\n  b: {run: x, on_failure: {replan: q.yaml}}\n"
    text += b"  c: {run: x, on_failure: {replan: nope.yaml}}\n  d: {run: x, on_failure: {replan: r.yaml}}\n"
    with pytest.raises(InputError) as caught:
        flow(text, tmp_path)
    assert [(p.file, p.code) for p in caught.value.problems] == [("f.yaml", "unreadable-file"), ("r.yaml", "flow")]
    with pytest.raises(InputError) as caught:
        flow(text.replace(b"nope", b"q").replace(b"r.yaml", b"q.yaml"), tmp_path)
    assert [(p.file, p.code) for p in caught.value.problems] == [("p.yaml", "unknown-key"), ("q.yaml", "not-in-a-run")]


def test_what_a_declared_patch_would_do_wrong_now_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("operations: [{insert: {id: b, node: {run: x}, after: [nope]}}]")
    text = b"nodes: {a: {run: x, on_failure: {replan: p.yaml}}}"
    loaded = read_workflow_text(text, "f.yaml", str(tmp_path), use_cache=False)
    (warning,) = loaded.warnings
    assert (warning.file, warning.severity, warning.code) == ("p.yaml", "warning", "unknown-node")


# ---------------------------------------------------------------- from a command line


def one(piece: Written) -> object:
    """What is written for one flag."""
    return pieces.patch_from_pieces([piece], flow()).patch.written[0]


def test_each_flag_is_an_operation() -> None:
    w = flow()
    assert one(pieces.insert(b"id: n\nrun: x\nafter: test\n", "n.yaml", after=["ask"], before=["deploy"])) == {
        "insert": {"id": "n", "node": {"run": "x"}, "after": ["test", "ask"], "before": ["deploy"]}
    }
    assert one(pieces.insert(b"{node: {run: x}}", "n.yaml", name="n", after=["ask"])) == {
        "insert": {"id": "n", "node": {"run": "x"}, "after": ["ask"]}
    }
    assert one(pieces.remove("ask:bridge")) == {"remove": {"id": "ask", "strategy": "bridge"}}
    assert one(pieces.remove("ask:skip:skip")) == {"remove": {"id": "ask", "strategy": "skip", "dependents": "skip"}}
    assert one(pieces.rewire("ask=test", w)) == {"rewire": {"id": "ask", "old": ["deploy"], "new": ["test"]}}
    assert one(pieces.rewire("ask=deploy,test", w)) == {"rewire": {"id": "ask", "new": ["deploy", "test"]}}
    assert one(pieces.rewire("ask=", w)) == {"rewire": {"id": "ask", "old": ["deploy"], "root": True}}
    assert one(pieces.change("test.env.A=x=y")) == {"modify": {"id": "test", "set": {"env": {"A": "x=y"}}}}
    assert one(pieces.change("test.env.A=")) == {"modify": {"id": "test", "set": {"env": {"A": ""}}}}
    assert one(pieces.change("test.run=[a, b c]")) == {"modify": {"id": "test", "set": {"run": ["a", "b c"]}}}
    assert one(pieces.drop("test.env.A")) == {"modify": {"id": "test", "unset": ["env.A"]}}
    assert one(pieces.retry("test")) == {"retry": {"id": "test"}}
    assert one(pieces.retry("test:timeout=600,retry.max_attempts=5,env.A=a,b")) == {
        "retry": {"id": "test", "set": {"timeout": "10m", "retry": {"max_attempts": 5}, "env": {"A": "a,b"}}}
    }
    assert one(pieces.fallback("test=spare", w, lambda name: b"")) == {"fallback": {"id": "test", "with": "spare"}}
    assert one(pieces.fallback("test=f.yaml", w, lambda name: b"run: x")) == {
        "fallback": {"id": "test", "with": {"run": "x"}}
    }
    assert one(pieces.rerun("test")) == {"rerun": {"id": "test"}}
    assert one(pieces.limits("resources.gpu=2")) == {"set_limits": {"resources": {"gpu": 2}}}
    assert one(pieces.cancelling(pieces.rerun("test"))) == {"rerun": {"id": "test", "running": "cancel"}}


def test_problems_name_the_flag_or_the_place_in_its_file() -> None:
    w = flow()
    made = [
        pieces.insert(b"id: n\nrunn: x\n", "n.yaml"),
        pieces.change("test.timeout=6x"),
        pieces.change("tset.timeout=6"),
        pieces.retry("test:model=x"),
        pieces.remove("ask:bri"),
        pieces.fallback("test=f.yaml", w, lambda name: b"run: x\nenv: {A: {}}"),
        pieces.fallback("tes t=f.yaml", w, lambda name: b"run: x"),
    ]
    with pytest.raises(InputError) as caught:
        pieces.patch_from_pieces(made, w)
    assert [(p.file, p.line, p.code) for p in caught.value.problems] == [
        ("n.yaml", 2, "unknown-key"),
        ("--set test.timeout", 0, "bad-value"),
        ("--set tset.timeout", 0, "unknown-node"),
        ("--retry test:model=x", 0, "not-an-agent"),
        ("--remove ask:bri", 0, "bad-value"),
        ("f.yaml", 2, "bad-value"),
        ("--fallback tes t=f.yaml", 0, "bad-id"),
    ]


def test_faults_of_the_core_name_the_flag() -> None:
    made = pieces.patch_from_pieces(
        [pieces.change("test.timeout=6"), pieces.insert(b"id: n\nrun: x", "n.yaml")], flow()
    )
    assert made.problem(Fault(("operations", 0, "id"), "c", "m")).file == "--set test.timeout"
    place = made.problem(Fault(("operations", 1, "id"), "c", "m"))
    assert (place.file, place.line, place.column) == ("n.yaml", 1, 5)


@pytest.mark.parametrize("text", ["lint", "lint:", "lint:skip:bridge"])
def test_a_remove_needs_a_strategy(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        pieces.remove(text)
    assert "skip" in caught.value.hint


def test_flags_that_say_nothing_are_refused() -> None:
    for bad in (
        lambda: pieces.change("test=3"),
        lambda: pieces.change("test.timeout"),
        lambda: pieces.change("test..a=3"),
        lambda: pieces.rewire("test", flow()),
        lambda: pieces.retry("test:timeout"),
        lambda: pieces.fallback("test", flow(), lambda name: b""),
        lambda: pieces.limits("parallel"),
        lambda: pieces.drop("test"),
    ):
        with pytest.raises(UsageError) as caught:
            bad()
        assert caught.value.hint


def test_a_value_that_is_set_back_in_the_same_patch_is_back() -> None:
    workflow = read_workflow_text(b"nodes: {a: {run: x, timeout: 5m}}", "flow.yaml", ".").workflow
    text = b"operations: [{modify: {id: a, set: {timeout: 10m}}}, {modify: {id: a, set: {timeout: 300}}}]"
    made = apply(draft(workflow), read_patch(text, "p.yaml", workflow))
    assert made.faults == []
    assert made.nodes["a"].timeout_s == 300


# ---------------------------------------------------------------- permissions, containers, secrets


def test_permissions_of_a_node_are_merged_key_by_key_and_kept_exactly() -> None:
    text = (
        b"secrets: {T: {env: T}}\nnodes: {a: {run: x, permissions: {network: none, paths: {read: [src], write: [o]}}}}"
    )
    workflow = flow(text)
    written = (
        "{modify: {id: a, set: {isolation: container, docker: alpine, secrets: {T: file}, resources: {pids: 9},"
        " permissions: {cost_budget: 0.10, network: [A.com], paths: {deny: [1.50]}}},"
        " unset: [permissions.paths.write]}}"
    )
    patch = read_patch(f"operations: [{written}]".encode(), "p.yaml", workflow)
    (operation,) = patch.operations
    assert isinstance(operation, Modify)
    node = operation.node
    assert node.permissions == Permissions(
        cost_budget=100_000_000, network=("a.com",), paths=Paths(read=("src",), deny=("1.50",))
    )
    assert (node.isolation, node.docker, node.secret_files, node.pids) == (
        "container", Docker(image="alpine"), ("T",), 9
    )  # fmt: skip
    kept = json.loads(json.dumps(list(patch.written)))
    assert kept[0]["modify"]["set"]["permissions"]["paths"] == {"deny": ["1.50"]}
    again = patch_from_document({"operations": kept}, workflow, "again")
    assert again.operations == patch.operations


def test_permissions_of_a_run_are_what_it_began_with() -> None:
    for keys in ("set: {permissions: {network: any}}", "unset: [permissions.network]", "set: {docker: alpine}"):
        with pytest.raises(InputError) as caught:
            read_patch(f"operations: [{{workflow: {{{keys}}}}}]".encode(), "p.yaml", flow())
        (problem,) = caught.value.problems
        assert problem.code == "not-in-a-run"
        assert ("`docker`" if "docker" in keys else "`permissions`") in problem.message


def test_a_retry_changes_no_walls() -> None:
    for key in ("isolation: none", "docker: alpine", "secrets: [T]"):
        (problem,) = wrong(f"{{retry: {{id: test, set: {{{key}}}}}}}")
        assert problem.code == "not-for-retry"

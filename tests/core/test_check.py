"""Every fault of a workflow at its exact place, all at once."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dagrun.core.check import check
from dagrun.core.workflow import Fault, Input, Limits, Node, Output, Param, Secret, Workflow

OUT = {"o": Output()}


def flow(*nodes: Node, **fields: object) -> Workflow:
    return Workflow(name="w", nodes={n.id: n for n in nodes}, **fields)  # type: ignore[arg-type]


def node(name: str, *needs: str, **fields: object) -> Node:
    return Node(**{"id": name, "run": "true", "needs": needs, **fields})  # type: ignore[arg-type]


def reads(**inputs: str) -> dict[str, Input]:
    return {name: Input(expression=text) for name, text in inputs.items()}


def fault(*nodes: Node, **fields: object) -> Fault:
    """The only fault of a workflow."""
    (found,) = check(flow(*nodes, **fields))
    return found


# ---------------------------------------------------------------- needs and cycles


def test_an_unknown_need_is_at_its_place_with_the_near_name() -> None:
    found = fault(node("build"), node("test", "build", "biuld"))
    assert found == Fault(
        ("nodes", "test", "needs", 1),
        "unknown-node",
        "node `test` needs `biuld`, which does not exist",
        "did you mean `build`?",
    )


def test_a_node_that_needs_itself() -> None:
    found = fault(node("a"), node("b", "a", "b"))
    assert (found.path, found.code, found.message) == (("nodes", "b", "needs", 1), "self-need", "node `b` needs itself")


def test_a_cycle_is_shown_as_a_path_at_one_of_its_edges() -> None:
    found = fault(node("a", "b"), node("b", "a"))
    assert found.code == "cycle"
    assert found.message in (
        "the nodes wait for each other: a -> b -> a",
        "the nodes wait for each other: b -> a -> b",
    )
    assert found.path in (("nodes", "a", "needs", 0), ("nodes", "b", "needs", 0))


def test_a_cycle_through_an_input_points_at_the_input() -> None:
    found = fault(
        node("a", outputs=OUT, inputs=reads(x="nodes.b.o")), node("b", "a", outputs=OUT, inputs=reads(y="nodes.a.o"))
    )
    assert found.code == "cycle"
    assert found.path in (("nodes", "a", "inputs", "x"), ("nodes", "b", "needs", 0))


def test_a_cycle_deep_inside_an_expression_points_at_the_node() -> None:
    a = node("a", outputs=OUT, inputs=reads(x="params.p || nodes.a.o"))
    b = node("b", "c", outputs=OUT, inputs={})
    c = node("c", outputs=OUT, inputs=reads(y="nodes.d.o || nodes.b.o"))
    (found,) = check(flow(node("d", outputs=OUT), b, c))
    assert found.code == "cycle"
    assert found.path in (("nodes", "c"), ("nodes", "b", "needs", 0))
    assert found.on_key == (found.path == ("nodes", "c"))
    assert "cycle" not in [f.code for f in check(flow(a, params={"p": Param()}))]


def test_separate_cycles_are_reported_each() -> None:
    found = check(flow(node("a", "b"), node("b", "a"), node("c", "d"), node("d", "e"), node("e", "c"), node("f", "e")))
    assert [f.code for f in found] == ["cycle", "cycle"]
    assert sorted(f.message.count("->") for f in found) == [2, 3]


def test_every_edge_of_a_cycles_path_is_a_real_one() -> None:
    workflow = flow(*[node(f"n{i}", f"n{(i + 1) % 7}") for i in range(7)])
    (found,) = check(workflow)
    names = found.message.rpartition(": ")[2].split(" -> ")
    assert names[0] == names[-1]
    assert len(names) == 8
    assert all(before in workflow.nodes[after].needs for before, after in pairwise(names))


def test_all_faults_are_reported_at_once() -> None:
    nodes = (node("a", "nope"), node("b", "b", secrets=("s",)), node("c", condition="oops("))
    found = check(flow(*nodes, params={"p": Param(type="integer", has_default=True, default="x")}))
    assert [f.code for f in found] == ["bad-param", "unknown-node", "self-need", "unknown-secret", "bad-expression"]


# ---------------------------------------------------------------- expressions in their places


def test_an_expression_in_a_shell_string_shows_the_way_by_the_environment() -> None:
    found = fault(node("a", run="echo ${{ params.my-topic }} x"), params={"my-topic": Param()})
    assert (found.path, found.code, found.offset, found.length) == (("nodes", "a", "run"), "expression-in-shell", 5, 22)
    assert 'env: {MY_TOPIC: "${{ params.my-topic }}"} and write "$MY_TOPIC"' in found.hint


def test_a_secret_in_a_shell_string_is_named_at_the_node_instead() -> None:
    found = fault(node("a", run="echo ${{ secrets.TOKEN }}"))
    assert found.hint == 'name it at the node: secrets: [TOKEN] and write "$TOKEN" in the command'


def test_an_expression_that_never_ends_in_a_shell_string() -> None:
    found = fault(node("a", run="echo ${{ params"))
    assert (found.code, found.offset, found.length) == ("expression-in-shell", 5, 3)


def test_an_expression_stays_one_argument_in_an_argv() -> None:
    assert check(flow(node("a", run=("echo", "${{ params.p }}")), params={"p": Param()})) == []
    found = fault(node("a", run=("echo", "x", "a ${{ params.q }}")), params={"p": Param()})
    assert (found.path, found.code, found.offset) == (("nodes", "a", "run", 2), "unknown-name", 6)


@pytest.mark.parametrize(
    ("fields", "path", "code", "message"),
    [
        ({"env": {"X": "${{ params.tpic }}"}}, ("env", "X"), "unknown-name", "there is no param `tpic`"),
        ({"env": {"X": "${{ inputs.y }}"}}, ("env", "X"), "unknown-name", "node `n` has no input `y`"),
        ({"env": {"X": "${{ run.name }}"}}, ("env", "X"), "unknown-name", "there is no run.name"),
        ({"env": {"X": "${{ nodes.up.o }}"}}, ("env", "X"), "unknown-name", "only through its inputs"),
        ({"env": {"X": "${{ success() }}"}}, ("env", "X"), "status-function", "success() has a meaning only in `if`"),
        ({"cwd": "${{ nope.x }}"}, ("cwd",), "bad-expression", "nope"),
        ({"cwd": "${{ params.topic"}, ("cwd",), "bad-expression", ""),
        ({"inputs": reads(i="nodes.up.x")}, ("inputs", "i"), "unknown-name", "node `up` has no output `x`"),
        ({"inputs": reads(i="nodes.down.o")}, ("inputs", "i"), "unknown-name", "there is no node `down`"),
        ({"inputs": reads(i="nodes.n.o")}, ("inputs", "i"), "unknown-name", "node `n` can't read itself"),
        ({"inputs": reads(i="nodes.up")}, ("inputs", "i"), "unknown-name", "`nodes.up` is no value"),
        ({"inputs": reads(i="params.topic || env.HOME")}, ("inputs", "i"), "unknown-name", "`env` can't be read here"),
        (
            {"inputs": {"i": Input(value={"a": ["${{ inputs.i }}"]})}},
            ("inputs", "i", "a", 0),
            "unknown-name",
            "`inputs`",
        ),
        ({"condition": "inputs.i == 1"}, ("if",), "unknown-name", "node `n` has no input `i`"),
        ({"condition": "nodes.up.o == 1"}, ("if",), "unknown-name", "`if` reads only the status of a node"),
        ({"condition": "toJSON(nodes)"}, ("if",), "unknown-name", "without the id of a node"),
        ({"condition": "nodes[params.topic].status"}, ("if",), "unknown-name", "without the id of a node"),
        ({"condition": "1 +"}, ("if",), "bad-expression", ""),
        ({"secrets": ("tok",)}, ("secrets", 0), "unknown-secret", "names secret `tok`"),
        ({"resources": {"gpu": 1}}, ("resources", "gpu"), "unknown-resource", "does not say how much there is"),
        ({"resources": {"disk": 9}}, ("resources", "disk"), "over-limit", "reserves 9 of `disk`"),
        ({"resources": {"cpu": 64}}, ("resources", "cpu"), "over-limit", "has only 8"),
    ],
)
def test_a_fault_is_at_its_exact_place(
    fields: dict[str, object], path: tuple[str | int, ...], code: str, message: str
) -> None:
    found = fault(
        node("up", outputs=OUT),
        node("n", "up", outputs=OUT, **fields),
        params={"topic": Param()},
        secrets={"token": Secret(env="T")},
        limits=Limits(resources={"disk": 3, "cpu": 8}),
    )
    assert (found.path, found.code) == (("nodes", "n", *path), code)
    assert message in found.message


def test_offsets_lead_to_the_reference_inside_the_text() -> None:
    text = "a ${{ params.ok }} b ${{ format('{0}', params.nope) }}"
    found = fault(node("n", env={"X": text}), params={"ok": Param()})
    assert text[found.offset : found.offset + found.length] == "params.nope"


def test_hints_name_what_was_meant() -> None:
    fields = {"params": {"topic": Param()}, "secrets": {"token": Secret(env="T")}}
    assert fault(node("n", env={"X": "${{ params.tpic }}"}), **fields).hint == "did you mean `topic`?"
    assert fault(node("n", secrets=("tokn",)), **fields).hint == "did you mean `token`?"
    assert fault(node("n", secrets=("x",)), **fields).hint == "declare it at the top: secrets: {x: {env: x}}"
    assert fault(node("n", resources={"gpu": 2})).hint == "add limits: {resources: {gpu: 2}}"
    assert "from: stdout" in fault(node("a"), node("n", inputs=reads(i="nodes.a.x"))).hint


def test_what_is_right_has_no_fault() -> None:
    workflow = flow(
        node("up", outputs=OUT),
        node(
            "n",
            inputs={**reads(i="nodes.up.o", s="nodes.up.status"), "v": Input(value=["${{ params.p }}", 1, None])},
            env={"A": "${{ inputs.i }}-${{ run.id }}", "B": "plain"},
            cwd="${{ params.p }}",
            condition="inputs.i != '' && nodes.up.status == 'completed' && !cancelled()",
            secrets=("token",),
            resources={"cpu": 2, "memory": 1e9, "gpu": 1},
            run=("x", "${{ env.A }}"),
        ),
        params={"p": Param(has_default=True, default="x")},
        secrets={"token": Secret(env="T")},
        limits=Limits(resources={"gpu": 1}),
        outputs={"r": "nodes.up.o", "text": "took ${{ nodes.n.status }} of ${{ run.workflow }}"},
    )
    assert check(workflow) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes.a.nope", "node `a` has no output `nope`"),
        ("x ${{ nodes.b.o }}", "there is no node `b`"),
        ("${{ inputs.x }}", "`inputs` can't be read here"),
        ("nodes.a", "`nodes.a` is no value"),
        ("${{ always() }}", "only in `if`"),
    ],
)
def test_outputs_of_the_workflow_are_checked(text: str, message: str) -> None:
    found = fault(node("a", outputs=OUT), outputs={"r": text})
    assert found.path == ("outputs", "r")
    assert message in found.message


# ---------------------------------------------------------------- status in `if`


@pytest.mark.parametrize("condition", ["nodes.b.status == 'x'", "nodes['b'].status == 'x'", "nodes .b.status == 'x'"])
def test_if_reads_the_status_only_of_what_is_settled_by_then(condition: str) -> None:
    nodes = (node("a"), node("b"), node("n", "a", condition=condition))
    found = fault(*nodes)
    assert (found.path, found.code, found.offset) == (("nodes", "n", "if"), "not-upstream", 0)
    assert found.hint == "add it: needs: [a, b]"
    above = (node("b"), node("a", "b"), node("n", "a", condition=condition))
    assert check(flow(*above)) == []


# ---------------------------------------------------------------- params


def test_a_default_must_fit_its_param() -> None:
    found = fault(node("n"), params={"p": Param(enum=("a", "b"), has_default=True, default="c")})
    assert (found.path, found.message) == (
        ("params", "p", "default"),
        "the default of param `p` is no string of its enum",
    )


# ---------------------------------------------------------------- secrets


def test_a_secret_is_read_only_where_nobody_else_sees_it() -> None:
    declared = {"TOKEN": Secret(env="TOKEN")}
    held = node("a", run=("curl", "-H", "Bearer ${{ env.TOKEN }}"), secrets=("TOKEN",))
    found = fault(held, secrets=declared)
    assert (found.path, found.code) == (("nodes", "a", "run", 2), "unknown-name")
    assert found.message == "`TOKEN` is a secret: only `env` and `if` may read it"
    fine = node("a", env={"HEAD": "Bearer ${{ env.TOKEN }}"}, condition="env.TOKEN != ''", secrets=("TOKEN",))
    assert check(flow(fine, secrets=declared)) == []
    assert check(flow(node("a", run=("echo", "${{ env.OTHER }}"), secrets=("TOKEN",)), secrets=declared)) == []

"""What each node may do, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dagrun.core.permissions import Paths, Permissions
from dagrun.core.plan import Plan, compile_plan
from dagrun.core.workflow import Agent, Docker, Node, OnFailure, Provider, Review, Secret, Workflow
from dagrun.view.permissions import permissions_json, permissions_text, subjects
from dagrun.view.text import Look, Paint, cells


def plan_of(*nodes: Node, **kw: object) -> Plan:
    return compile_plan(Workflow(name="rel", nodes={n.id: n for n in nodes}, **kw))  # type: ignore[arg-type]


RUN = Permissions(
    paths=Paths(read=(".", "~/data"), write=("out",), deny=(".env*",)),
    network=("api.example.com:443", "example.com"),
    tools=("Read", "Bash(git:*)"),
    models=("cheap",),
    cost_budget=10**9,
)
GUARDED = plan_of(
    Node(id="fetch", run="x", secrets=("TOKEN",), secret_files=("KEY",), resources={"memory": 512 << 20}, pids=64),
    Node(id="clean", run="x"),
    Node(
        id="untrusted",
        run="x",
        isolation="container",
        permissions=Permissions(network="none", paths=Paths(write=()), cost_budget=250_000_000),
        docker=Docker(pull="missing", user="1000:1000"),
        on_failure=OnFailure(fallback="spare"),
    ),
    Node(id="ask", review=Review(message="?")),
    permissions=RUN,
    docker=Docker(image="python:3.12-slim"),
    templates={"spare": Node(id="spare", run="x")},
    secrets={"TOKEN": Secret(env="SECRET_SOURCE"), "KEY": Secret(file="k")},
)
AT_80 = """\
rel  4 nodes, 5 sets of permissions

fetch
  isolation    process (default)
  paths.read   ., ~/data (workflow)
  paths.write  out (workflow)
  paths.deny   .env* (workflow)
  network      api.example.com:443, example.com (workflow)
  memory       512Mi (node)
  pids         64 (node)
  secrets      $TOKEN, the file $KEY_FILE (node)
  inserts      agents with at most tools Bash(git:*), Read; models cheap;
               cost_budget $1.00 (workflow)

clean, spare (template)
  isolation    process (default)
  paths.read   ., ~/data (workflow)
  paths.write  out (workflow)
  paths.deny   .env* (workflow)
  network      api.example.com:443, example.com (workflow)
  inserts      agents with at most tools Bash(git:*), Read; models cheap;
               cost_budget $1.00 (workflow)

untrusted
  isolation    container (node)
  paths.read   ., ~/data (workflow)
  paths.write  nothing (node)
  paths.deny   .env* (workflow)
  network      none (node)
  image        python:3.12-slim (workflow)
  pull         missing (node)
  user         1000:1000 (node)
  inserts      agents with at most tools Bash(git:*), Read; models cheap;
               cost_budget $0.25 (workflow and node)

"""


def test_text_at_80_columns() -> None:
    text = permissions_text(GUARDED, width=80)
    assert text.startswith(AT_80)
    rest = text[len(AT_80) :]
    assert rest.startswith("spare (if untrusted fails)\n  isolation    container (node)\n")
    assert "\n  network      none (node)\n" in rest
    assert rest.endswith("\nask\n  asks         a human; nothing runs\n")


def test_text_at_120_columns_and_in_a_pipe() -> None:
    hosts = tuple(f"host-{k}.example.com" for k in range(8))
    plan = plan_of(Node(id="a", run="x", permissions=Permissions(network=hosts)))
    assert (
        permissions_text(plan, width=120)
        == """\
rel  1 node, 1 set of permissions

a
  isolation    process (default)
  paths        not held (no scope declares it)
  network      host-0.example.com, host-1.example.com, host-2.example.com, host-3.example.com, host-4.example.com,
               host-5.example.com, host-6.example.com, host-7.example.com (node)
"""
    )
    assert f"  network      {', '.join(hosts)} (node)\n" in permissions_text(plan, width=None)


def test_what_only_agents_have_is_not_said_of_a_command() -> None:
    nodes = (
        Node(id="a", run="x"),
        Node(id="b", run="x", on_failure=OnFailure(replanner=Agent(prompt="mend"))),
        Node(id="c", agent=Agent(prompt="x")),
    )
    plan = plan_of(*nodes, permissions=Permissions(tools=("Read",), cost_budget=10**9), provider=Provider(kind="fake"))
    told = {part.split("\n")[0]: part for part in permissions_text(plan, width=None).split("\n\n")}
    assert "  tools " not in told["a"]
    assert "  cost_budget " not in told["a"]
    assert "  inserts      agents with at most tools Read; cost_budget $1.00 (workflow)" in told["a"]
    for name in ("b", "c"):
        assert "  tools        Read (workflow)\n" in told[name]
        assert "  cost_budget  $1.00 (workflow)\n" in told[name]
        assert "inserts" not in told[name]
    bare = permissions_text(plan_of(nodes[0]), width=None)
    assert "inserts" not in bare


def test_what_is_not_held_is_said() -> None:
    assert (
        permissions_text(plan_of(Node(id="a", run="x"), Node(id="b", run="x", isolation="none")), width=80)
        == """\
rel  2 nodes, 2 sets of permissions

a
  isolation    process (default)
  paths        not held (no scope declares it)
  network      not held (no scope declares it)

b
  isolation    none (node)
  paths        not held (no scope declares it)
  network      not held (no scope declares it)
"""
    )


def test_a_container_without_an_image_and_what_it_has_by_default() -> None:
    text = permissions_text(plan_of(Node(id="a", run="x", isolation="container")), width=80)
    assert "  image        none is named\n" in text
    assert "  pull         never (default)\n" in text
    assert "  paths.read   . (default of a container)\n" in text
    assert "  network      none (default of a container)\n" in text


def test_every_ceiling_is_shown_as_it_is_written() -> None:
    node = Node(
        id="a", run="x", resources={"cpu": 1.5, "memory": 1000, "gpu": 1}, file_size=1 << 30, output_bytes=1 << 20
    )
    text = permissions_text(plan_of(node), width=80)
    for line in ("cpu          1.5", "memory       1,000 bytes", "file_size    1Gi", "output       1Mi"):
        assert f"  {line} (node)\n" in text
    assert "gpu" not in text


def test_fallbacks_have_no_more_than_what_they_stand_in_for() -> None:
    inner = Node(
        id="a-fallback",
        run="z",
        permissions=Permissions(tools=("Read",)),
        on_failure=OnFailure(fallback="spare"),
    )
    node = Node(
        id="a",
        run="x",
        permissions=Permissions(network="none"),
        on_failure=OnFailure(fallback_node=inner),
    )
    plan = plan_of(
        node,
        Node(id="b", run="x", on_failure=OnFailure(fallback="spare")),
        templates={"spare": Node(id="spare", run="x")},
    )
    assert [s.label for s in subjects(plan)] == [
        "a", "a-fallback (if a fails)", "spare (if a-fallback fails)", "b", "spare (template)",
    ]  # fmt: skip
    made: Any = permissions_json(plan)
    rows = {(n["id"], n["place"]): n for n in made["nodes"]}
    last = rows["spare", "if a-fallback fails"]
    assert (last["network"], last["tools"]) == ("none", ["Read"])
    assert (rows["spare", "template"]["network"], rows["spare", "template"]["tools"]) == (None, None)


def test_templates_that_name_each_other_come_to_an_end() -> None:
    templates = {n: Node(id=n, run="x", on_failure=OnFailure(fallback=m)) for n, m in (("s", "t"), ("t", "s"))}
    node = Node(id="a", run="x", isolation="container", on_failure=OnFailure(fallback="s"))
    assert len(list(subjects(plan_of(node, templates=templates)))) < 10


def test_json() -> None:
    made = permissions_json(GUARDED)
    assert json.loads(json.dumps(made)) == made
    nodes = made["nodes"]
    assert isinstance(nodes, list)
    assert nodes[0] == {
        "id": "fetch",
        "place": "node",
        "kind": "run",
        "isolation": "process",
        "confined": True,
        "paths": {"read": [".", "~/data"], "write": ["out"], "deny": [".env*"]},
        "network": ["api.example.com:443", "example.com"],
        "tools": ["Bash(git:*)", "Read"],
        "models": ["cheap"],
        "cost_budget_usd": 1.0,
        "docker": None,
        "ceilings": {"memory": 512 << 20, "pids": 64},
        "secrets": {"variables": ["TOKEN"], "files": ["KEY"]},
        "why": {
            "isolation": "default",
            "paths.read": "workflow",
            "paths.write": "workflow",
            "paths.deny": "workflow",
            "network": "workflow",
            "tools": "workflow",
            "models": "workflow",
            "cost_budget": "workflow",
            "memory": "node",
            "pids": "node",
            "secrets": "node",
        },
    }
    assert {"id": "ask", "place": "node", "kind": "review"} in nodes
    assert "SECRET_SOURCE" not in json.dumps(made) + permissions_text(GUARDED, width=None)


def test_a_huge_group_is_only_counted_on_a_terminal() -> None:
    plan = plan_of(*[Node(id=f"n{k}", run="x") for k in range(5000)])
    text = permissions_text(plan, width=80)
    assert "and 4,940 more\n" in text
    assert max(map(cells, text.splitlines())) <= 80
    assert "n4999\n" in permissions_text(plan, width=None)


NASTY = "\x1b[31mred\u202e\u200b\x07\r\n[bold]$(id)" + "é" * 300 + "日本" * 300


@pytest.mark.parametrize("width", [20, 80, 120, None])
def test_hostile_texts_are_shown_safely(width: int | None) -> None:
    node = Node(
        id="a",
        run="x",
        isolation="container",
        permissions=Permissions(
            tools=(NASTY,), models=(NASTY,), network=(NASTY,), paths=Paths(read=(NASTY,), write=(NASTY,), deny=(NASTY,))
        ),
        docker=Docker(image=NASTY, user=NASTY),
        secrets=(NASTY,),
    )
    plan = compile_plan(Workflow(name=NASTY, nodes={"a": node}))
    text = permissions_text(plan, width=width)
    assert all(c == "\n" or c.isprintable() for c in text)
    assert "[bold]$(id)" in text.replace("\n", "").replace(" ", "")
    if width is not None:
        assert max(map(cells, text.splitlines())) <= max(width, 31)


def test_colour_is_only_around_names() -> None:
    look = Look(paint=Paint(True))
    text = permissions_text(GUARDED, width=80, look=look)
    assert "\x1b[1mclean, spare (template)\x1b[0m\n" in text
    assert text.replace("\x1b[1m", "").replace("\x1b[0m", "") == permissions_text(GUARDED, width=80)


def test_a_removed_node_is_not_there() -> None:
    from dagrun.core.plan import revise_plan

    plan = plan_of(Node(id="a", run="x"), Node(id="b", run="x"))
    smaller = revise_plan(plan, Workflow(name="rel", nodes={"b": plan.nodes[1]}), 2)
    assert [s.node.id for s in subjects(smaller)] == ["b"]
    assert permissions_json(smaller)["revision"] == 2
    assert permissions_text(smaller, width=80).startswith("rel  1 node, 1 set")


def test_where_the_model_of_an_agent_is_said() -> None:
    nodes = [Node(id="a", agent=Agent(prompt="x")), Node(id="b", agent=Agent(prompt="x", model="fake/big"))]
    bare = permissions_text(plan_of(*nodes, provider=Provider(kind="fake")), width=None)
    assert "  asks         fake/model (default)\n" in bare
    assert "  asks         fake/big (node)\n" in bare
    tiers = permissions_text(plan_of(*nodes, provider=Provider(kind="fake"), models={"main": ("v/m",)}), width=None)
    assert "  asks         v/m (tier main)\n" in tiers

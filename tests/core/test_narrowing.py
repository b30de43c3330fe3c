"""What patches may do to permissions: nodes hand on no more than they have, humans no more than the run has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.budget import Entry
from dagrun.core.event import CallEnded, CallReserved
from dagrun.core.excess import leq
from dagrun.core.lattice import as_scope, effective
from dagrun.core.names import Outcome
from dagrun.core.patch import Alternative, Fallback, Insert, Modify, Operation, Patch, Remove, Rerun, Retry
from dagrun.core.permissions import LEVELS, NO_PERMISSIONS, Isolation, Paths, Permissions
from dagrun.core.plan import compile_plan
from dagrun.core.replan import Verdict, admit
from dagrun.core.state import RunState
from dagrun.core.workflow import Agent, Docker, Node, OnFailure, Output, Review, Secret, Workflow, node_from_json
from tests.core.strategies import begin, ended, ran, started
from tests.core.test_lattice import permissions
from tests.core.test_replan import fold

SRC = Permissions(paths=Paths(read=("src",), write=()), network="none")
RUN = Permissions(paths=Paths(read=(".",), write=("out",)), network=("example.com",))
BUSYBOX = Docker(image="busybox")


def node(name: str, *needs: str, **more: object) -> Node:
    return Node(id=name, needs=needs, **({"run": "true"} | more))  # type: ignore[arg-type]


def run(*nodes: Node, permissions: Permissions | None = None, **more: object) -> RunState:
    """A run in which `maker` has run, and `later` waits."""
    every = [*nodes, node("later", *[n.id for n in nodes], "gate"), node("gate")]
    workflow = Workflow(name="w", nodes={n.id: n for n in every}, permissions=permissions, **more)  # type: ignore[arg-type]
    return fold(begin(compile_plan(workflow)), *(ran("maker") if any(n.id == "maker" for n in nodes) else ()))


def judge(state: RunState, *operations: Operation, actor: str = "node", maker: str = "") -> Verdict:
    by = "node:maker" if actor == "node" else "ann"
    return admit(state, Patch(operations=operations), by=by, actor=actor, maker=maker)  # type: ignore[arg-type]


def inserted(state: RunState, new: Node, actor: str = "node", maker: str = "") -> Node:
    """A new node as it is in the plan after it was let in."""
    verdict = judge(state, Insert(id=new.id, node=new, after=("gate",)), actor=actor, maker=maker)
    assert verdict.event is not None, [f.message for f in verdict.faults]
    data = verdict.event.nodes[new.id]
    assert isinstance(data, dict)
    return node_from_json(data)


def refused(state: RunState, new: Node, actor: str = "node", maker: str = "") -> list[str]:
    verdict = judge(state, Insert(id=new.id, node=new, after=("gate",)), actor=actor, maker=maker)
    assert verdict.event is None
    assert {f.code for f in verdict.faults} == {"beyond-permissions"}
    return [f.message for f in verdict.faults]


# ---------------------------------------------------------------- nodes that a node inserts


def test_a_node_hands_on_what_it_has() -> None:
    state = run(node("maker", permissions=SRC), permissions=RUN)
    assert inserted(state, node("x")).permissions == replace(SRC, isolation="process")
    asks = node("x", permissions=Permissions(paths=Paths(read=("src/a",), deny=("k",)), cost_budget=7))
    got = inserted(state, asks).permissions
    assert got is not None
    assert got.paths == Paths(read=("src/a",), write=(), deny=("k",))
    assert (got.network, got.cost_budget) == ("none", 7)


def test_what_the_run_declares_is_handed_on_too() -> None:
    state = run(node("maker"), permissions=RUN)
    got = inserted(state, node("x")).permissions
    assert got is not None
    assert (got.paths, got.network) == (RUN.paths, RUN.network)


def test_where_nothing_is_declared_nothing_is_written() -> None:
    state = run(node("maker"))
    assert inserted(state, node("x")) == node("x", "gate")
    assert inserted(state, node("x", permissions=SRC)).permissions == SRC


def test_a_node_may_not_ask_for_more_than_it_has_though_the_run_has_it() -> None:
    state = run(node("maker", permissions=SRC), permissions=RUN)
    asks = Permissions(paths=Paths(read=(".",), write=("out",)), network=("example.com",))
    assert refused(state, node("x", permissions=asks)) == [
        "`x` asks to read `.`, but `maker`, which inserts it, allows only `src`",
        "`x` asks to write `out`, but `maker`, which inserts it, allows nothing",
        "`x` asks for host `example.com`, but `maker`, which inserts it, allows no network",
    ]
    assert inserted(state, node("x", permissions=asks), actor="human").permissions == asks


def test_a_human_is_bound_by_the_run() -> None:
    state = run(node("maker", permissions=SRC), permissions=RUN)
    asks = Permissions(paths=Paths(read=("/srv",)))
    assert refused(state, node("x", permissions=asks), actor="human") == [
        "`x` asks to read `/srv`, but the workflow allows only `.`"
    ]


def test_what_a_human_lets_in_for_a_node_still_has_only_what_the_node_has() -> None:
    state = run(node("maker", permissions=SRC), permissions=RUN)
    let_in = inserted(state, node("x"), actor="human", maker="node:maker")
    assert let_in.permissions == replace(SRC, isolation="process")
    assert refused(state, node("x", permissions=RUN), actor="human", maker="node:maker")
    assert inserted(state, node("x"), actor="human", maker="bob").permissions is None


def test_a_maker_that_was_taken_out_since_hands_on_no_more() -> None:
    state = run(node("maker", permissions=SRC), permissions=RUN)
    gone = judge(state, Rerun(id="maker"), actor="human")
    assert gone.event is not None
    fold(state, gone.event)
    out = judge(state, Remove(id="maker", strategy="bridge"), actor="human")
    assert out.event is not None
    fold(state, out.event)
    assert inserted(state, node("x")).permissions == replace(SRC, isolation="process")


@pytest.mark.parametrize("level", ["none", "context"])
def test_a_new_node_may_not_leave_the_level_of_its_maker(level: Isolation) -> None:
    assert refused(run(node("maker")), node("x", isolation=level)) == [
        f"`x` asks for isolation `{level}`, but `maker`, which inserts it, allows `process` or more"
    ]


def test_a_container_hands_on_its_walls_and_its_image() -> None:
    state = run(node("maker", isolation="container", docker=BUSYBOX))
    got = inserted(state, node("x"))
    assert (got.isolation, got.docker) == ("container", BUSYBOX)
    assert effective(None, got.permissions, got.isolation).paths == Paths(read=(".",), write=())
    assert refused(state, node("x", docker=Docker(image="evil", pull="missing"))) == [
        "`x` would run in an image that `maker` chose"
    ]


def test_secrets_and_variables_are_not_handed_on_by_who_has_none() -> None:
    secrets = {name: Secret(env=name) for name in ("MINE", "OTHER")}
    state = run(node("maker", secrets=("MINE",), permissions=SRC, pass_env=("CI",)), secrets=secrets)
    assert inserted(state, node("x", secret_files=("MINE",), pass_env=("CI",))).secret_files == ("MINE",)
    assert refused(state, node("x", secrets=("OTHER",), pass_env=("AWS_*",))) == [
        "`x` would get secret `OTHER`, which `maker` does not have",
        "`x` would get the variable `AWS_*`, which `maker` does not get",
    ]
    free = run(node("maker"), secrets=secrets)
    assert inserted(free, node("x", pass_env=("AWS_*",))).pass_env == ("AWS_*",)
    assert refused(free, node("x", secret_files=("OTHER",)))


def test_a_question_to_a_human_has_nothing_to_hold() -> None:
    state = run(node("maker", permissions=SRC), permissions=RUN)
    asks = Node(id="x", review=Review(message="?"))
    assert inserted(state, asks).permissions is None


def test_nodes_of_another_way_round_are_held_too() -> None:
    state = run(node("maker", permissions=SRC), node("p"), permissions=RUN)
    way = Alternative(blocked=("p",), nodes={"q": node("q", permissions=RUN)}, exits=("q",))
    assert judge(state, way).event is None
    verdict = judge(state, replace(way, nodes={"q": node("q")}))
    assert verdict.event is not None
    data = verdict.event.nodes["q"]
    assert isinstance(data, dict)
    assert node_from_json(data).permissions == replace(SRC, isolation="process")


# ---------------------------------------------------------------- nodes that are there


def changed(state: RunState, name: str, actor: str = "node", /, **changes: object) -> list[str]:
    """What a modify has against it."""
    before = state.plan.workflow.nodes[name]
    verdict = judge(state, Modify(id=name, node=replace(before, **changes)), actor=actor)  # type: ignore[arg-type]
    assert (verdict.event is None) == bool(verdict.faults)
    return [f.message for f in verdict.faults]


@pytest.mark.parametrize("actor", ["node", "declared"])
def test_only_a_human_widens_a_node(actor: str) -> None:
    state = run(node("maker"), node("x", permissions=SRC), permissions=RUN)
    wider = replace(SRC, paths=Paths(read=(".",), write=("out",)))
    assert changed(state, "x", actor, permissions=wider) == [
        "`x` would be allowed more: it asks to read `.`, but had only `src`",
        "`x` would be allowed more: it asks to write `out`, but had nothing",
    ]
    assert changed(state, "x", actor, permissions=None)  # then it would have its run's
    assert changed(state, "x", actor, isolation="none")
    assert changed(state, "x", actor, permissions=replace(SRC, paths=Paths(read=("src/a",), write=()))) == []
    assert changed(state, "x", "human", permissions=wider) == []


@pytest.mark.parametrize("actor", ["node", "declared"])
def test_a_retry_widens_nothing_either(actor: str) -> None:
    state = run(node("maker"), node("x", permissions=SRC), permissions=RUN)
    fold(state, started("x"), ended("x", Outcome.FAILED))
    before = state.plan.workflow.nodes["x"]
    wider = Retry(id="x", node=replace(before, permissions=None))
    assert judge(state, wider, actor=actor).event is None
    assert judge(state, Retry(id="x", node=replace(before, timeout_s=9.0)), actor=actor).event is not None


@pytest.mark.parametrize(
    "change",
    [
        {"run": "make other"},
        {"env": {"LD_PRELOAD": "/p/out/x.so"}},
        {"cwd": "out"},
        {"shell": "bash"},
        {"outputs": {"o": Output(source="file", file="/etc/shadow")}},
        {"artifacts": ("/etc/*",)},
        {"on_failure": OnFailure(fallback_node=Node(id="f", run="true"))},
    ],
)
def test_a_held_node_tells_no_freer_one_what_to_do(change: dict[str, object]) -> None:
    state = run(node("maker", permissions=SRC), node("x"), node("same", permissions=SRC))
    (key,) = change
    assert changed(state, "x", "node", **change) == [
        f"`maker` may not change `{key}` of `x`, which may do more than itself"
    ]
    assert changed(state, "same", "node", **change) == []
    assert changed(state, "x", "human", **change) == []
    assert changed(run(node("maker"), node("x")), "x", "node", **change) == []


def test_when_and_how_often_may_be_changed_by_anyone() -> None:
    state = run(node("maker", permissions=SRC), node("x"))
    assert changed(state, "x", timeout_s=9.0, title="t", resources={"cpu": 1.0}, condition="always()") == []


def test_no_secret_is_given_to_a_node_by_one_that_has_it_not() -> None:
    secrets = {name: Secret(env=name) for name in ("MINE", "OTHER")}
    state = run(node("maker", secrets=("MINE",)), node("x"), secrets=secrets)
    assert changed(state, "x", secrets=("MINE",)) == []
    assert changed(state, "x", secrets=("OTHER",)) == ["`x` would get secret `OTHER`, which `maker` does not have"]
    assert changed(state, "x", "declared", secrets=("OTHER",)) == []


# ---------------------------------------------------------------- fallbacks


def failed(own: Node, **more: object) -> RunState:
    state = run(node("maker"), own, **more)  # type: ignore[arg-type]
    return fold(state, started(own.id), ended(own.id, Outcome.FAILED))


@pytest.mark.parametrize("actor", ["human", "node", "declared"])
def test_a_fallback_has_the_ceiling_of_what_it_stands_in_for(actor: str) -> None:
    state = failed(node("x", permissions=SRC), permissions=RUN)
    verdict = judge(state, Fallback(id="x", node=node("f")), actor=actor)
    assert verdict.event is not None
    data = verdict.event.nodes["x-fallback"]
    assert isinstance(data, dict)
    got = effective(RUN, node_from_json(data).permissions, "process")
    assert (got.paths, got.network) == (SRC.paths, "none")


@pytest.mark.parametrize("actor", ["human", "node"])
def test_a_fallback_that_asks_for_more_is_refused(actor: str) -> None:
    state = failed(node("x", permissions=SRC), permissions=RUN)
    verdict = judge(state, Fallback(id="x", node=node("f", permissions=RUN)), actor=actor)
    assert verdict.event is None
    assert "`f` asks to write `out`, but `x`, whose place it takes, allows nothing" in [
        f.message for f in verdict.faults
    ]


def test_a_declared_fallback_gets_what_both_allow() -> None:
    state = failed(node("x", permissions=SRC), permissions=RUN)
    verdict = judge(state, Fallback(id="x", node=node("f", permissions=RUN)), actor="declared")
    assert verdict.event is not None
    data = verdict.event.nodes["x-fallback"]
    assert isinstance(data, dict)
    assert leq(node_from_json(data).permissions or NO_PERMISSIONS, SRC)


# ---------------------------------------------------------------- whatever they are

ASKED = st.none() | permissions(("src", "src/a", "out", ".", "/o", "src/*"))


@given(ASKED, ASKED, ASKED, st.sampled_from(LEVELS), st.sampled_from(LEVELS))
def test_nothing_that_a_node_inserts_ever_has_more_than_the_node(
    top: Permissions | None, own: Permissions | None, asked: Permissions | None, at: Isolation, level: Isolation
) -> None:
    maker = node("maker", permissions=own, isolation=at, docker=BUSYBOX)
    new = node("x", permissions=asked, isolation=level)
    state = run(maker, permissions=top, docker=BUSYBOX)
    verdict = judge(state, Insert(id="x", node=new, after=("gate",)))
    if verdict.event is None:
        return
    data = verdict.event.nodes["x"]
    assert isinstance(data, dict)
    got = node_from_json(data)
    above = as_scope(effective(top, own, at))
    assert leq(as_scope(effective(top, got.permissions, got.isolation)), above)


# ---------------------------------------------------------------- what a retry may change


def over_budget(run_cap: int | None, spent: int, *, cap: int | None = 300) -> RunState:
    """A run in which an agent with a budget of its own has spent some, and failed."""
    held = Permissions(cost_budget=cap, tools=("Read", "Grep"))
    asks = Node(id="asks", agent=Agent(prompt="x"), isolation="context", permissions=held)
    budget = Permissions(cost_budget=run_cap)
    workflow = Workflow(
        name="w", nodes={"asks": asks, "after": node("after", "asks")}, permissions=budget, models={"t": ("v/m",)}
    )
    state = fold(begin(compile_plan(workflow)), started("asks"))
    scopes = ("node:asks", "run")
    call = {"node": "asks", "attempt": 1, "call": 1}
    reserved = CallReserved(**call, turn=1, model="v/m", max_tokens=9, digest="", amount=spent, scopes=scopes)  # type: ignore[arg-type]
    return fold(state, reserved, CallEnded(**call, spent=spent), ended("asks", Outcome.OVER_BUDGET))  # type: ignore[arg-type]


def retried(state: RunState, **more: object) -> Verdict:
    before = state.plan.workflow.nodes["asks"]
    held = replace(before.permissions or NO_PERMISSIONS, **more)  # type: ignore[arg-type]
    return judge(state, Retry(id="asks", node=replace(before, permissions=held), made_on=before), actor="human")


def test_a_retry_may_take_permissions_away() -> None:
    verdict = retried(over_budget(1000, 250), tools=("Read",), cost_budget=260)
    assert verdict.event is not None
    assert node_from_json(verdict.event.nodes["asks"]).permissions == Permissions(cost_budget=260, tools=("Read",))  # type: ignore[arg-type]


def test_a_retry_gives_no_permission_back_to_anybody() -> None:
    verdict = retried(over_budget(1000, 250), tools=("Read", "Grep", "Write"))
    assert [f.message for f in verdict.faults] == [
        "retry: `asks` would be allowed more: it asks for tool `Write`, but had only `Grep`, `Read`"
    ]
    assert verdict.faults[0].path == ("operations", 0, "set", "permissions")


@pytest.mark.parametrize(("cap", "fits"), [(1000, True), (1001, False)])
def test_a_retry_gets_money_only_of_what_the_run_has_left(cap: int, fits: bool) -> None:
    state = over_budget(1000, 250)  # the node's own 250 count in both: what it may still spend is what is left
    verdict = retried(state, cost_budget=cap)
    assert (verdict.event is not None) is fits
    assert fits or [f.code for f in verdict.faults] == ["beyond-permissions"]


def test_what_others_spent_is_not_left_for_a_retry() -> None:
    state = over_budget(1000, 250)
    verdict = retried(state, cost_budget=900)
    assert verdict.event is not None
    spent_elsewhere = Entry(kind="reserve", call="other/1/1", scopes=("node:other", "run"), amount=200)
    assert state.ledger is not None
    state.ledger.apply(spent_elsewhere)
    verdict = retried(state, cost_budget=900)
    assert [f.message for f in verdict.faults] == [
        "retry: a budget of $0.0000009 leaves `asks` $0.00000065 to spend, but the run has only $0.00000055 left"
    ]


def test_a_retry_without_a_cap_of_the_run_may_be_given_any_money() -> None:
    assert retried(over_budget(None, 250), cost_budget=10**12).event is not None
    assert retried(over_budget(None, 250), cost_budget=None).event is not None

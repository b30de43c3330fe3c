"""What permissions have against those of the scopes around them: every fault at its key, both scopes named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dagrun.core.ceiling import is_plain, stand_in
from dagrun.core.check import check
from dagrun.core.permissions import Isolation, Paths, Permissions
from dagrun.core.workflow import Docker, Fault, Node, OnFailure, Review, Secret, Workflow

RUN = Permissions(
    tools=("Read", "Bash(git:*)"),
    paths=Paths(read=(".",), write=("out",), deny=(".env*",)),
    models=("cheap",),
    network=("example.com",),
    cost_budget=10**9,
)
OUT = Permissions(paths=Paths(write=("out",)))


def node(name: str = "a", **more: object) -> Node:
    return Node(id=name, **({"run": "true"} | more))  # type: ignore[arg-type]


def faults(*nodes: Node, run: Permissions | None = None, **more: object) -> list[Fault]:
    workflow = Workflow(name="w", nodes={n.id: n for n in nodes}, permissions=run, **more)  # type: ignore[arg-type]
    return check(workflow)


def told(found: list[Fault]) -> list[tuple[tuple[str | int, ...], str]]:
    return [(f.path, f.code) for f in found]


AT = ("nodes", "a")


def test_asking_for_no_more_is_right() -> None:
    own = Permissions(
        tools=("Read", "Bash(git log:*)"),
        paths=Paths(read=("src",), write=("out/x",), deny=("more",)),
        models=(),
        network=("example.com:443",),
        cost_budget=1,
    )
    assert faults(node(permissions=own), node("b"), run=RUN) == []


def test_every_excess_is_a_fault_at_its_key_that_names_both_scopes() -> None:
    own = Permissions(
        tools=("Read", "Write"),
        paths=Paths(read=("/srv",), write=("out", "src")),
        models=("cheap", "strong"),
        network=("example.com", "evil.com"),
        cost_budget=2 * 10**9,
    )
    found = faults(node(permissions=own), run=RUN)
    assert [(f.path[3:], f.code) for f in found] == [
        (("tools", 1), "beyond-permissions"),
        (("paths", "read", 0), "beyond-permissions"),
        (("paths", "write", 1), "beyond-permissions"),
        (("models", 1), "beyond-permissions"),
        (("network", 1), "beyond-permissions"),
        (("cost_budget",), "beyond-permissions"),
    ]
    assert all(f.path[:3] == (*AT, "permissions") for f in found)
    assert found[2].message == "`a` asks to write `src`, but the workflow allows only `out`"
    assert found[2].hint == "ask for less, or widen permissions.paths.write at the top"
    assert found[5].message == "`a` asks for a cost budget of $2.00, but the workflow allows $1.00"


def test_a_run_that_says_only_read_lets_nothing_be_written() -> None:
    run = Permissions(paths=Paths(read=(".",)))
    (found,) = faults(node(permissions=Permissions(paths=Paths(write=("out",)))), run=run)
    assert found.path == (*AT, "permissions", "paths", "write", 0)
    assert found.message == "`a` asks to write `out`, but the workflow allows nothing"


def test_network_any_is_one_fault() -> None:
    (found,) = faults(node(permissions=Permissions(network="any")), run=RUN)
    assert found.path == (*AT, "permissions", "network")
    assert found.message == "`a` asks for network `any`, but the workflow allows only `example.com`"


def test_templates_are_held_to_the_run_too() -> None:
    asks = node("t", permissions=Permissions(network="any"))
    (found,) = faults(node(), run=RUN, templates={"t": asks})
    assert found.path == ("templates", "t", "permissions", "network")


def test_a_run_without_permissions_is_no_ceiling() -> None:
    assert faults(node(permissions=replace(RUN, network="any"))) == []


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize("level", ["none", "context"])
def test_a_level_below_a_floor_is_refused(level: Isolation) -> None:
    (found,) = faults(node(isolation=level), run=Permissions(isolation="process"))
    assert told([found]) == [((*AT, "isolation"), "beyond-permissions")]
    assert found.message == f"`a` asks for isolation `{level}`, but the workflow allows `process` or more"


def test_a_floor_of_its_own_binds_a_node_too() -> None:
    (found,) = faults(node(isolation="none", permissions=Permissions(isolation="process")))
    assert "its own permissions.isolation" in found.message


def test_a_floor_lifts_a_node_that_says_nothing() -> None:
    run = Permissions(isolation="container")
    assert faults(node(), run=run, docker=Docker(image="busybox")) == []
    (found,) = faults(node(), run=run)
    assert told([found]) == [(AT, "no-image")]


@pytest.mark.parametrize("level", ["none", "context"])
@pytest.mark.parametrize("key", ["paths", "network"])
def test_what_a_level_can_not_hold_is_refused_where_it_is_declared(level: Isolation, key: str) -> None:
    said = Permissions(paths=Paths()) if key == "paths" else Permissions(network="none")
    (own,) = faults(node(isolation=level, permissions=said))
    assert told([own]) == [((*AT, "permissions", key), "not-held")]
    (run,) = faults(node(isolation=level), run=said)
    assert told([run]) == [((*AT, "isolation"), "not-held")]
    assert "the workflow declares" in run.message


def test_tools_and_money_bind_at_every_level() -> None:
    assert faults(node(isolation="none", permissions=Permissions(tools=("Read",), cost_budget=1, models=()))) == []


# ---------------------------------------------------------------- images, reviews, secrets


def test_a_container_needs_an_image() -> None:
    (found,) = faults(node(isolation="container"))
    assert told([found]) == [((*AT, "isolation"), "no-image")]
    assert faults(node(isolation="container", docker=Docker(image="busybox"))) == []
    assert faults(node(isolation="container"), docker=Docker(image="busybox")) == []
    assert faults(node(isolation="container", docker=Docker(user="1:1")), docker=Docker(image="busybox")) == []


def test_an_image_without_a_container_is_worth_a_word() -> None:
    (found,) = faults(node(docker=Docker(image="busybox")))
    assert (found.path, found.code, found.severity) == ((*AT, "docker"), "no-meaning", "warning")
    assert faults(node(), docker=Docker(image="busybox")) == []


def test_a_review_runs_nothing_that_could_be_held() -> None:
    asks = Node(id="a", review=Review(message="?"))
    assert faults(asks, run=RUN) == []
    wrong = replace(asks, permissions=OUT, isolation="container", docker=Docker(image="x"))
    assert [f.path[2] for f in faults(wrong)] == ["permissions", "docker", "isolation"]
    assert {f.code for f in faults(wrong)} == {"not-for-review"}


def test_secrets_as_files() -> None:
    declared = {name: Secret(env=name) for name in ("KEY", "TOKEN", "TOKEN_FILE")}
    assert faults(node(secret_files=("KEY",), secrets=("TOKEN",)), secrets=declared) == []
    (unknown,) = faults(node(secret_files=("KYE",)), secrets=declared)
    assert (unknown.path, unknown.code, unknown.hint) == ((*AT, "secrets"), "unknown-secret", "did you mean `KEY`?")
    (twice,) = faults(node(secret_files=("KEY",), secrets=("KEY",)), secrets=declared)
    assert twice.code == "two-secrets"
    for clash in ({"env": {"TOKEN_FILE": "x"}}, {"secrets": ("TOKEN_FILE",)}, {"pass_env": ("TOKEN_FILE",)}):
        (found,) = faults(node(secret_files=("TOKEN",), **clash), secrets=declared)
        assert found.code == "variable-clash"


def test_an_unknown_secret_is_found_at_its_item_where_that_can_be_told() -> None:
    declared = {"KEY": Secret(env="KEY")}
    assert told(faults(node(secrets=("KEY", "NO")), secrets=declared)) == [((*AT, "secrets", 1), "unknown-secret")]
    mixed = node(secrets=("NO",), secret_files=("KEY",))
    assert told(faults(mixed, secrets=declared)) == [((*AT, "secrets"), "unknown-secret")]


# ---------------------------------------------------------------- fallbacks


def test_an_inline_fallback_is_held_to_the_run_and_to_the_node() -> None:
    own = Permissions(paths=Paths(read=(".",), write=()), network="none")
    stand = node("", permissions=Permissions(paths=Paths(write=("out", "src")), network=("example.com",)))
    (*found,) = faults(node(permissions=own, on_failure=OnFailure(fallback_node=stand)), run=RUN)
    at = (*AT, "on_failure", "fallback", "permissions")
    assert told(found) == [
        ((*at, "paths", "write", 1), "beyond-permissions"),
        ((*at, "paths", "write", 0), "beyond-permissions"),
        ((*at, "network", 0), "beyond-permissions"),
    ]
    assert "the workflow" in found[0].message
    assert "`a`, whose place it takes, allows nothing" in found[1].message


def test_a_template_that_asks_for_more_than_the_failed_node_is_refused_where_it_is_named() -> None:
    stand = node("t", permissions=OUT)
    templates = {"t": stand}
    held = node(permissions=Permissions(paths=Paths(read=("src",), write=())), on_failure=OnFailure(fallback="t"))
    (found,) = faults(held, run=RUN, templates=templates)
    assert told([found]) == [((*AT, "on_failure", "fallback"), "beyond-permissions")]
    assert found.message.startswith("`t` asks to write `out`, but `a`, whose place it takes, allows nothing")
    free = node(on_failure=OnFailure(fallback="t"))
    assert faults(free, run=RUN, templates=templates) == []


def test_a_fallback_may_not_leave_the_level_of_the_node() -> None:
    stand = node("t", isolation="none")
    (found,) = faults(node(on_failure=OnFailure(fallback="t")), templates={"t": stand})
    assert "asks for isolation `none`, but `a`, whose place it takes, allows `process` or more" in found.message
    assert faults(node(isolation="none", on_failure=OnFailure(fallback="t")), templates={"t": stand}) == []


def test_the_fallback_of_a_container_is_one() -> None:
    failed = node(isolation="container", docker=Docker(image="busybox"))
    made = stand_in(None, failed, node("f"))
    assert (made.isolation, made.docker) == ("container", Docker(image="busybox"))
    assert made.permissions == Permissions(paths=Paths(read=(".",), write=()), network="none", isolation="container")
    assert stand_in(None, failed, node("f", docker=Docker(image="other"))).docker == Docker(image="other")


def test_a_fallback_has_what_both_allow() -> None:
    failed = node(permissions=Permissions(paths=Paths(read=("src",)), cost_budget=5))
    made = stand_in(RUN, failed, node("f", permissions=Permissions(paths=Paths(read=("src/a",), deny=("x",)))))
    assert made.permissions is not None
    assert made.permissions.paths == Paths(read=("src/a",), write=("out",), deny=(".env*", "x"))
    assert (made.permissions.cost_budget, made.permissions.network) == (5, ("example.com",))
    assert stand_in(RUN, failed, node("f")).permissions == stand_in(RUN, failed, failed).permissions


def test_a_fallback_of_a_node_that_says_nothing_stays_as_it_is() -> None:
    own = node("f")
    assert stand_in(None, node(), own) is own
    assert stand_in(RUN, node(), own) is own
    asks = Node(id="f", review=Review(message="?"))
    assert stand_in(RUN, node(isolation="container"), asks) is asks
    assert stand_in(None, node(isolation="context"), node("f", isolation="none")).isolation == "context"


def test_most_nodes_cost_nothing() -> None:
    plain = Workflow(name="w", nodes={})
    assert is_plain(plain, node(env={"A": "1"}, secrets=("K",), resources={"cpu": 1.0}))
    for more in (
        {"permissions": Permissions()},
        {"isolation": "none"},
        {"docker": Docker()},
        {"secret_files": ("K",)},
    ):
        assert not is_plain(plain, node(**more))
    assert not is_plain(replace(plain, permissions=Permissions()), node())

"""Patches that bring agents: what would fail at its start is refused at the preview, as `execute` refuses it."""

from __future__ import annotations

import pytest

from dagrun.core.event import PatchAdmitted, PatchRefused

from .space import Done, Space

FLOW = """
    provider: {base_url: "http://127.0.0.1:1/v1", prices: {x/known: {input: "1", output: "2"}}}
    models: {cheap: [x/known]}
    nodes: {first: {run: echo one}}
    """


@pytest.fixture
def ran(space: Space) -> Space:
    """A run of commands whose workflow prices one model."""
    space.flow(FLOW)
    assert space.execute("--ui", "quiet").code == 0
    return space


def insert(space: Space, agent: str, *more: str) -> Done:
    space.write("new.yaml", f"id: new\nnode: {agent}\nafter: [first]\n")
    return space.run("replan", "last", "--insert", "new.yaml", "--yes", *more)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_agent_without_a_price_is_refused(ran: Space, more: tuple[str, ...]) -> None:
    done = insert(ran, "{agent: {prompt: x, model: x/unknown, tools: []}}", *more)
    assert done.code == 3, done
    assert "error[no-price]: agent `new`: " in done.err
    assert "`x/unknown`" in done.err
    kinds = [type(e) for e in ran.events() if isinstance(e, PatchAdmitted | PatchRefused)]
    assert kinds == ([] if more else [PatchRefused])


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("{run: 'true', on_failure: {replanner: {model: x/unknown}}}", "agent `new-replanner`: "),
        ("{run: 'true', on_failure: {fallback: {agent: {prompt: x, model: x/unknown}}}}", "agent `new-fallback`: "),
        ("{agent: {prompt: x, model: cheap, skills: [nobody]}}", "nobody"),
    ],
)
def test_other_agents_of_a_node_and_their_skills(ran: Space, node: str, said: str) -> None:
    done = insert(ran, node)
    assert done.code == 3, done
    assert said in done.err


def test_one_that_can_be_asked_is_let_in(ran: Space) -> None:
    assert insert(ran, "{agent: {prompt: x, model: cheap, tools: []}}").code == 0
    done = ran.run("replan", "last", "--set", "new.agent.model=x/other", "--yes")
    assert done.code == 3, done
    assert "x/other" in done.err


def test_with_rules_no_price_is_wanted(space: Space) -> None:
    space.flow("provider: {kind: fake, rules: rules.yaml}\nmodels: {m: [v/m]}\nnodes: {first: {run: echo one}}")
    space.write("rules.yaml", "rules: [{text: hi}]")
    assert space.execute("--ui", "quiet").code == 0
    done = insert(space, "{agent: {prompt: x, tools: []}}")
    assert done.code == 0, done

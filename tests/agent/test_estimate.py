"""The worst case of an agent: no conversation that the loop lets happen costs more, and caps bind what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dagrun.agent.checks import Prices, priced
from dagrun.agent.estimate import Worst, worst_costs
from dagrun.agent.loop import START, Answered, CallModel, CallTool, Finish, ToolReturned, effect, step
from dagrun.agent.messages import Reply, ToolCall
from dagrun.agent.prices import Price, Tier, Unpriced, own_price
from dagrun.agent.skills import find, search_path
from dagrun.core import expression as ex
from dagrun.core.budget import worst_case
from dagrun.core.workflow import Workflow
from dagrun.engine.briefing import task_of
from dagrun.flowfile.load import read_workflow_text

HEAD = """\
models: {m: [a/one], two: [a/one, a/dear]}
provider: {prices: {a/one: {input: 1, output: 10}, a/dear: {input: 3, output: 7}}}
"""


def flow(text: str, base: str = ".") -> Workflow:
    """A workflow with two models that have a price."""
    return read_workflow_text(f"{HEAD}{text}".encode(), "flow.yaml", base, use_cache=False).workflow


def known(workflow: Workflow, *, context: int | None = None) -> Prices:
    """Its prices, of models with a window."""
    found = priced(workflow, fake=False)
    return replace(found, prices={m: replace(p, context=context) for m, p in found.prices.items()})


def worst(workflow: Workflow, *, context: int | None = None) -> Worst:
    """What node a may cost."""
    (found,) = [one for one in worst_costs(workflow, known(workflow, context=context)).agents if one.node == "a"]
    return found


# ---------------------------------------------------------------- against the loop


def dearest(workflow: Workflow, base: str, datum: str, *, chatty: bool) -> int:
    """What the loop spends on a model that always says as much as it may, a token a byte."""
    node = workflow.nodes["a"]
    agent = node.agent
    assert agent is not None
    price = own_price("a/one", workflow.provider.prices["a/one"])
    assert isinstance(price, Price)
    skills = [find(name, search_path(base, "")) for name in agent.skills]
    inputs = dict.fromkeys(node.inputs, datum)
    task = task_of(workflow, node, scope=ex.Scope(inputs=inputs), inputs=inputs, skills=skills)
    state, spent, cut = START, 0, False
    while not isinstance(due := effect(task, state), Finish):
        if isinstance(due, CallTool):
            state = step(task, state, ToolReturned(due.number, True, "r" * 40_000))
            continue
        assert isinstance(due, CallModel)
        size = len(due.request.canonical().encode())
        spent += worst_case(size, due.request.max_tokens, price.worst(size))
        text = "x" * due.request.max_tokens
        if not cut:
            cut, reply = True, Reply(text=text, finish="length")
        elif chatty and due.request.tools:
            calls = tuple(ToolCall(id=f"c{k}", name="Read", arguments={"file_path": "f"}) for k in range(5))
            reply = Reply(text=text, tool_calls=calls)
        else:
            reply = Reply(text=text)
        state = step(task, state, Answered(reply))
    return spent


@pytest.mark.parametrize("chatty", [True, False])
@pytest.mark.parametrize(
    "node",
    [
        "{agent: {prompt: 'x ${{ inputs.i }}', max_tokens: 400}, inputs: {i: {value: 1}}}",
        "{agent: {prompt: x, max_tokens: 2000, max_turns: 3}, inputs: {i: nodes.b.o, j: nodes.b.o}}",
        "{agent: {prompt: x, tools: [], max_tokens: 300}, outputs: {o: {schema: {type: string}}}}",
        "{agent: {prompt: x, max_tokens: 300, system: y, skills: [s]}, output_schema: {type: object}}",
    ],
)
def test_no_conversation_costs_more(tmp_path: Path, node: str, *, chatty: bool) -> None:
    (tmp_path / "skills/s").mkdir(parents=True)
    (tmp_path / "skills/s/SKILL.md").write_text("---\nname: s\ndescription: x\n---\n" + "b" * 5000)
    workflow = flow(f"nodes: {{b: {{run: x, outputs: {{o: {{from: stdout}}}}}}, a: {node}}}\n", str(tmp_path))
    (got,) = worst_costs(workflow, known(workflow), skill_bytes=lambda name: 5000).agents
    spent = dearest(workflow, str(tmp_path), "d" * 300_000, chatty=chatty)
    assert got.cost is not None
    assert 0 < spent <= got.cost


# ---------------------------------------------------------------- its parts


def test_the_bound_of_one_call_is_exact() -> None:
    workflow = flow("nodes: {a: {agent: {prompt: x, tools: [], max_tokens: 100}}}\n")
    got = worst(workflow, context=1000)
    # one that is cut off, and one with twice the room; the window bounds both prompts
    assert (got.calls, got.models) == (2, ("a/one",))
    assert got.cost == 2 * 1000 * 1000 + (100 + 200) * 10_000


def test_what_makes_it_dearer() -> None:
    plain = worst(flow("nodes: {a: {agent: {prompt: x, tools: []}}}\n"))
    assert plain.cost is not None
    for node in (
        "{agent: {prompt: x, tools: [], max_tokens: 5000}}",
        "{agent: {prompt: x, tools: [Read]}}",
        "{agent: {prompt: x, tools: [], system: y}}",
        "{agent: {prompt: x, tools: []}, inputs: {i: {value: abc}}}",
        "{agent: {prompt: x, tools: []}, outputs: {o: {}}}",
        "{agent: {prompt: x, tools: []}, retry: {max_attempts: 2}}",
        "{agent: {prompt: '${{ run.id }}', tools: []}}",
    ):
        more = worst(flow(f"nodes: {{a: {node}}}\n"))
        assert more.cost is not None
        assert more.cost > plain.cost, node
    again = worst(flow("nodes: {a: {agent: {prompt: x, tools: []}, retry: {max_attempts: 3}}}\n"))
    assert again.cost == 3 * plain.cost


def test_tools_that_are_not_permitted_cost_nothing() -> None:
    none = worst(flow("permissions: {tools: [Write]}\nnodes: {a: {agent: x}}\n"))
    assert none.calls == 2  # what is left of Read, Grep and Glob is nothing
    assert worst(flow("nodes: {a: {agent: {prompt: x, max_turns: 4}}}\n")).calls == 5


def test_every_call_may_go_to_the_dearest() -> None:
    workflow = flow("nodes: {a: {agent: {prompt: x, model: two, tools: [], max_tokens: 10}}}\n")
    got = worst(workflow, context=1000)
    assert got.models == ("a/one", "a/dear")
    assert got.cost == 2 * 1000 * 3000 + (10 + 20) * 7000


def test_fallbacks_and_replanners_spend_too() -> None:
    workflow = flow(
        "templates:\n"
        "  t: {agent: {prompt: y, tools: []}, on_failure: {fallback: u}}\n"
        "  u: {agent: {prompt: y, tools: []}}\n"
        "nodes: {a: {run: x, on_failure: {fallback: t, replanner: {tools: []}}}, b: {run: y}}\n"
    )
    total = worst_costs(workflow, known(workflow, context=1000))
    assert [(w.node, w.of) for w in total.agents] == [
        ("a-replanner", "a"),
        ("a-fallback", "a"),
        ("a-fallback-fallback", "a"),
    ]
    assert total.cost == sum(w.cost or 0 for w in total.agents)


# ---------------------------------------------------------------- caps


def test_caps_bind_what_can_be_spent() -> None:
    text = "nodes: {a: {agent: x, permissions: {cost_budget: 0.10}}, b: {agent: x, permissions: {cost_budget: 0.20}}}\n"
    workflow = flow(text)
    total = worst_costs(workflow, known(workflow))
    assert (total.cap, total.at_most) == (None, 300_000_000)
    assert total.cost is not None
    assert total.cost > 300_000_000
    capped = flow(f"permissions: {{cost_budget: 0.25}}\n{text}")
    assert worst_costs(capped, known(capped)).at_most == 250_000_000


def test_a_price_that_is_not_known() -> None:
    workflow = flow("nodes: {a: {agent: {prompt: x, model: no/where}}, b: {agent: x}}\n")
    prices = Prices(prices=known(workflow).prices, unknown="no table", hint="install it")
    total = worst_costs(workflow, prices)
    assert [w.cost is None for w in total.agents] == [True, False]
    assert (total.cost, total.at_most, total.unknown) == (None, None, "no table")


def test_what_is_free() -> None:
    workflow = flow("nodes: {a: {agent: x}}\n")
    free = Price(model="a/one", source="free", tiers=(Tier(0, 0, 0, 0, 0, 0),))
    total = worst_costs(workflow, Prices(prices={"a/one": free}), fake=True)
    assert (total.cost, total.at_most) == (0, 0)
    assert not isinstance(own_price("a/one", {"free": True}), Unpriced)


def test_a_command_costs_nothing() -> None:
    workflow = flow("nodes: {a: {run: x}}\n")
    assert worst_costs(workflow, known(workflow)).agents == ()

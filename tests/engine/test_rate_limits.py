"""A rate limit that one agent was told of: all agents that ask this model leave it alone until it is over."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from dagrun.core.names import Outcome
from tests.agent.openai_server import Behaviour, Server
from tests.agent.talking import need_litellm

from .asking import agents, closed, reserved, why
from .space import Space


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def limited(server: Server, space: Space, model: str, seconds: float, nodes: str, tiers: str = "") -> None:
    """A flow whose agents ask a model that is limited for so long from its first request on."""
    server.behaviours[model] = Behaviour(mode="limited", latency_s=seconds)
    server.behaviours[f"{model}-next"] = Behaviour()
    space.flow(f"""
        provider:
          base_url: {server.url}
          prices: {{x/{model}: {{input: "1", output: "2"}}, x/{model}-next: {{input: "1", output: "2"}}}}
        models: {{main: [x/{model}{tiers}]}}
        """)
    with open(space.path / "flow.yaml", "a") as file:
        file.write(nodes)


def test_agents_behind_one_key_hold_back_until_it_is_over(space: Space, server: Server) -> None:
    need_litellm()
    first = "  first: {agent: {prompt: Hi., tools: []}}\n"
    gate = "  gate: {run: 'until [ -e told ]; do sleep 0.02; done'}\n"
    rest = "".join(f"  n{k}: {{needs: gate, agent: {{prompt: Hi., tools: []}}}}\n" for k in range(12))
    limited(server, space, "busy", 3.0, f"schedule: ready\nnodes:\n{first}{gate}{rest}")
    process = space.start("execute", "flow.yaml", "-j", "20", "--ui", "log")
    process.until(lambda: bool(closed(space, "first")), "it was told")
    (space.path / "told").touch()
    done = process.done(60)
    assert done.code == 0, (done, why(space))
    seen = [one.at_m for one in server.seen("busy")]
    assert len(seen) == 1 + 13, "nobody asks before the time"
    assert min(seen[1:]) - seen[0] >= 3.0
    assert max(seen) - seen[0] <= 6.0, "and nobody waits for much longer"
    assert max(seen[1:]) - min(seen[1:]) > 0.01, "not all in the same instant"


def test_those_that_were_under_way_are_told_once_each(space: Space, server: Server) -> None:
    need_litellm()
    nodes = "".join(f"  n{k}: {{agent: {{prompt: Hi., tools: []}}}}\n" for k in range(8))
    limited(server, space, "burst", 2.0, f"nodes:\n{nodes}")
    done = space.start("execute", "flow.yaml", "-j", "8", "--ui", "log").done(60)
    assert done.code == 0, (done, why(space))
    seen = sorted(one.at_m for one in server.seen("burst"))
    assert len(seen) <= 16
    assert not [at for at in seen if 1.0 < at - seen[0] < 2.0]


def test_a_limit_that_is_longer_than_the_time_is_not_asked_again(space: Space, server: Server) -> None:
    need_litellm()
    nodes = "nodes:\n  a: {agent: {prompt: Hi., tools: []}, continue_on_error: true}\n"
    nodes += "".join(f"  n{k}: {{needs: a, agent: {{prompt: Hi., tools: []}}, timeout: 20s}}\n" for k in range(5))
    limited(server, space, "shut", 4000.0, nodes)
    done = space.start("execute", "flow.yaml", "--ui", "log").done(60)
    assert done.code == 1, done
    assert len(server.seen("shut")) == 1
    ends = [space.finish(f"n{k}") for k in range(5)]
    assert {e.outcome for e in ends} == {Outcome.FAILED}
    assert all("rate limited, as another call was told" in e.error for e in ends)
    assert all("wants 4" in e.error for e in ends)
    assert max(e.duration_ms for e in ends) < 5_000
    assert not any(e.permanent for e in ends), "a retry of the node may come when it is over"


def test_the_next_model_is_asked_at_once_by_who_comes_later(space: Space, server: Server) -> None:
    need_litellm()
    nodes = "nodes:\n  a: {agent: {prompt: Hi., tools: []}}\n  b: {needs: a, agent: {prompt: Hi., tools: []}}\n"
    limited(server, space, "full", 4000.0, nodes, tiers=", x/full-next")
    done = space.start("execute", "flow.yaml", "--ui", "log").done(60)
    assert done.code == 0, done
    assert [len(server.seen(name)) for name in ("full", "full-next")] == [1, 2]
    assert [(e.model, e.tries) for e in reserved(space)] == [("x/full", 1), ("x/full-next", 2), ("x/full-next", 1)]
    assert ["x/full", "limited"] in [r[:2] for r in reserved(space, "b")[0].reasons if isinstance(r, list)]


# ---------------------------------------------------------------- with rules, so that they can be played again

TIERS = "models: {first: [fake/one, fake/two], only: [fake/one]}\n"
HEAD = """\
provider:
  kind: fake
  rules: rules.yaml
  prices: {fake/one: {input: "1", output: "10"}, fake/two: {input: "1", output: "10"}}
"""


def played(space: Space) -> None:
    """What is played again says the same, and the audit explains every call."""
    entries = json.loads(space.run("trace", "show", "--json").out)["entries"]
    assert space.run("audit").code == 0
    name = space.last().id
    again = space.execute("--replay", name)
    assert "miss" not in again.err, again
    for was, now in zip(entries, json.loads(space.run("trace", "show", "--json").out)["entries"], strict=True):
        for key in ("node_id", "status", "model", "input_tokens", "output_tokens", "cost_usd", "retries"):
            assert was[key] == now[key], (key, was, now)


def test_from_one_turn_to_the_next(space: Space) -> None:
    rules = """
        - {model: fake/one, error: {kind: rate_limit, retry_after: 1h}}
        - {turn: 1, text: I look., tools: [{Glob: {pattern: "*"}}]}
        - {turn: 2, text: I look again., tools: [{Glob: {pattern: "*.x"}}]}
        - {text: done}
        """
    agents(space, "nodes: {a: {agent: {prompt: x}}, b: {needs: a, agent: {prompt: y}}}", rules, head=HEAD + TIERS)
    assert space.execute().code == 0, why(space)
    asked = [e.model for e in reserved(space, "a")]
    assert asked == ["fake/one", "fake/two", "fake/two", "fake/two"]
    assert "fake/one" not in [e.model for e in reserved(space, "b")]
    played(space)


def test_one_that_is_over_is_over_in_a_replay_too(space: Space) -> None:
    rules = """
        - {node: a, model: fake/one, error: {kind: rate_limit, retry_after: 700ms}}
        - {node: w, latency: 900ms, text: waited}
        - {text: done}
        """
    flow = """
        nodes:
          a: {agent: {prompt: x, tools: []}}
          b: {needs: a, agent: {prompt: y, tools: []}}
          w: {needs: b, agent: {prompt: z, tools: [], model: fake/two}}
          c: {needs: w, agent: {prompt: y, tools: []}}
        """
    agents(space, flow, rules, head=HEAD + TIERS)
    assert space.execute().code == 0, why(space)
    assert [(e.node, e.model) for e in reserved(space)] == [
        ("a", "fake/one"),
        ("a", "fake/two"),
        ("b", "fake/two"),
        ("w", "fake/two"),
        ("c", "fake/one"),
    ]
    played(space)


def test_who_never_asked_because_of_it_does_not_ask_in_a_replay(space: Space) -> None:
    rules = """
        - {node: a, error: {kind: rate_limit, retry_after: 1h}}
        - {text: done}
        """
    flow = """
        nodes:
          a: {agent: {prompt: x, tools: [], model: only}, continue_on_error: true}
          b: {needs: a, agent: {prompt: y, tools: [], model: only}}
        """
    agents(space, flow, rules, head=HEAD + TIERS)
    assert space.execute().code == 1, why(space)
    assert [e.node for e in reserved(space)] == ["a"]
    played(space)
    assert [e.node for e in reserved(space)] == ["a"]


def test_the_time_that_was_asked_for_is_enough_when_it_ends_before_the_attempt(space: Space) -> None:
    rules = "- {try: 1, error: {kind: rate_limit, retry_after: 2s}}\n- {text: ok}"
    agents(space, "nodes: {a: {agent: {prompt: x, tools: [], model: only}, timeout: 3s}}", rules, head=HEAD + TIERS)
    assert space.execute().code == 0, why(space)
    assert len(reserved(space)) == 2

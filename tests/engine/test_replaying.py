"""Crashes and plays: what was bought before a kill is not bought again, and such a run is played and explained."""

from __future__ import annotations

import signal

import pytest

from dagrun.core.event import CallEnded, CallReserved, RunEnded, ToolEnded

from .space import Space

FLOW = """
    provider: {kind: fake, rules: rules.yaml}
    models: {main: [v/m]}
    nodes:
      a:
        agent: {prompt: Think., tools: [Read]}
        permissions: {paths: {read: [.]}}
      side: {run: echo side}
      b: {needs: a, inputs: {t: nodes.a.text}, run: 'echo "$INPUT_T"', outputs: {t: {from: stdout}}}
    """
RULES = """
    rules:
      - {node: a, turn: 1, text: I look., tools: [{Read: {file_path: x}}]}
      - {node: a, turn: 2, attempt: 1, latency: 60s, text: never}
      - {node: a, turn: 2, text: Done.}
    """


@pytest.fixture
def killed(space: Space) -> Space:
    """A run whose engine was killed while its agent waited for its second answer, and taken up again."""
    space.flow(FLOW)
    space.write("rules.yaml", RULES)
    space.write("x", "inside")
    process = space.start("execute", "flow.yaml", "--ui", "quiet")
    process.until(lambda: sum(isinstance(e, CallReserved) for e in space.events()) == 2, "the second call is out")
    process.signal(signal.SIGKILL)
    process.done()
    space.write("x", "changed meanwhile")
    done = space.run("resume", "--ui", "quiet")
    assert done.code == 0, done.err
    return space


def test_a_resumed_agent_buys_nothing_twice_and_reads_nothing_again(killed: Space) -> None:
    events = killed.events()
    second = [e for e in events if isinstance(e, CallEnded) and e.attempt == 2]
    assert [e.reused for e in second] == ["1/1", ""]
    tools = [e for e in events if isinstance(e, ToolEnded)]
    assert [(e.attempt, e.reused) for e in tools] == [(1, ""), (2, "1/1")]
    assert tools[0].text == tools[1].text
    assert killed.finish("b").summary == "Done."
    asked = [e.digest for e in events if isinstance(e, CallReserved)]
    assert asked == [asked[0], asked[1], asked[0], asked[1]]


def test_it_is_explained_and_played_without_the_crash(killed: Space) -> None:
    assert killed.run("audit").code == 0
    recorded = killed.last().id
    wanted = killed.finish("b").outputs
    done = killed.execute("--replay", recorded, "--ui", "quiet")
    assert done.code == 0, done.err
    assert killed.outcomes("a") == ["completed"]
    assert killed.finish("b").outputs == wanted
    assert sum(isinstance(e, CallReserved) for e in killed.events()) == 2


def test_a_run_that_was_never_taken_up_is_played_as_far_as_it_went(space: Space) -> None:
    space.flow(FLOW)
    space.write("rules.yaml", RULES)
    space.write("x", "inside")
    process = space.start("execute", "flow.yaml", "--ui", "quiet")
    process.until(lambda: sum(isinstance(e, CallReserved) for e in space.events()) == 2, "the second call is out")
    process.signal(signal.SIGKILL)
    process.done()
    recorded = space.last().id
    done = space.execute("--replay", recorded, "--ui", "quiet")
    assert done.code == 6
    assert "node `a` asks a model" in done.err
    assert [e for e in space.events() if isinstance(e, RunEnded)][-1].exit_code == 6
    assert sum(isinstance(e, ToolEnded) for e in space.events()) == 1


def test_answers_are_let_go_in_the_order_in_which_they_came(space: Space) -> None:
    """The slower of two agents reads what the quicker leaves of the money: another order would be another run."""
    space.flow("""
        provider: {kind: fake, rules: rules.yaml, prices: {v/dear: {input: "1", output: "1000"}, v/free: {free: true}}}
        models: {main: [v/dear, v/free]}
        permissions: {cost_budget: 0.30}
        schedule: ready
        nodes:
          a: {agent: {prompt: A., max_tokens: 256}}
          b: {agent: {prompt: B., max_tokens: 256}}
          c: {agent: {prompt: C., max_tokens: 256}}
        """)
    space.write(
        "rules.yaml",
        """
        rules:
          - {node: a, latency: 300ms, text: a, usage: {input: 10, output: 200}}
          - {node: b, latency: 100ms, text: b, usage: {input: 10, output: 200}}
          - {node: c, latency: 200ms, text: c, usage: {input: 10, output: 200}}
        """,
    )
    assert space.execute("--ui", "quiet").code == 0
    recorded = [(e.node, e.model, e.spent) for e in space.events() if isinstance(e, CallEnded)]
    assert space.execute("--replay", "last", "--ui", "quiet").code == 0
    assert [(e.node, e.model, e.spent) for e in space.events() if isinstance(e, CallEnded)] == recorded
    assert len({model for _, model, _ in recorded}) == 2

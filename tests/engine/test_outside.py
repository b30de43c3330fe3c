"""Values that no output explains, files by their digest and the caller's variables: kept, so that an audit can tell."""

from __future__ import annotations

from pathlib import Path

from dagrun.core.event import NodeStarted
from tests.cli.playing import edit_event

from .asking import agents, why
from .space import Space

FLOW = """
    nodes:
      a:
        inputs:
          sum: {value: "${{ hashFiles('x') }}"}
          who: {value: {by: "it is ${{ env.WHO }}"}}
          plain: {value: 3}
        pass_env: [WHO]
        env: {MINE: "${{ env.WHO }} too", SAME: fixed}
        agent:
          prompt: >-
            ${{ inputs.sum }} ${{ inputs.who }} ${{ inputs.plain }} ${{ env.MINE }} ${{ env.SAME }}
            ${{ hashFiles('y*') }}
          tools: []
    """


def ran(space: Space) -> Space:
    agents(space, FLOW, "- {text: done}")
    space.write("x", "one")
    space.write("y1", "one")
    assert space.execute(env={"WHO": "ada"}).code == 0, why(space)
    return space


def started(space: Space) -> NodeStarted:
    (found,) = [e for e in space.events() if isinstance(e, NodeStarted)]
    return found


def recorded(space: Space) -> Path:
    assert space.run("export", "last", "--record", "kept.jsonl").code == 0
    return space.path / "kept.jsonl"


def test_what_was_read_from_outside_is_explained_though_it_is_no_more(space: Space) -> None:
    ran(space)
    assert space.run("audit", env={"WHO": "ada"}).code == 0
    space.write("x", "two")
    space.write("y2", "two")
    done = space.run("audit", env={"WHO": "eve"})
    assert done.code == 0, done
    outside = started(space).agent["outside"]
    assert isinstance(outside, dict)
    assert {kind: sorted(values) for kind, values in outside.items() if isinstance(values, dict)} == {
        "inputs": ["sum", "who"],
        "env": ["MINE"],
        "hashes": ['["y*"]'],
    }


def test_a_value_that_was_changed_in_the_record_is_found(space: Space) -> None:
    ran(space)
    outside = started(space).agent["outside"]
    assert isinstance(outside, dict)
    altered = {**outside, "hashes": {'["y*"]': "0" * 64}}
    edit_event(recorded(space), "node.started", agent={**started(space).agent, "outside": altered})
    done = space.run("audit", "kept.jsonl")
    assert done.code == 1, done
    assert "NOT EXPLAINED" in done.out
    assert "can't be checked" not in done.out


def test_a_journal_from_before_says_what_it_can_not_tell(space: Space) -> None:
    ran(space)
    agent = {name: value for name, value in started(space).agent.items() if name != "outside"}
    edit_event(recorded(space), "node.started", agent=agent)
    assert space.run("audit", "kept.jsonl", env={"WHO": "ada"}).code == 0
    space.write("x", "two")
    done = space.run("audit", "kept.jsonl", env={"WHO": "ada"})
    assert done.code == 1, done
    assert "can't be checked: it depends on hashFiles(), env.WHO, not in this journal" in done.out


def test_it_goes_with_a_recording(space: Space) -> None:
    ran(space)
    recorded(space)
    space.write("x", "two")
    done = space.run("audit", "kept.jsonl")
    assert done.code == 0, done


def test_what_reads_nothing_from_outside_keeps_nothing(space: Space) -> None:
    agents(space, "nodes: {a: {env: {A: b}, inputs: {p: {value: 3}}, agent: {prompt: x, tools: []}}}", "- {text: done}")
    assert space.execute().code == 0, why(space)
    assert "outside" not in started(space).agent

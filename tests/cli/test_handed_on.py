"""What a node hands on with its patch, through the real CLI: its permissions, and no commands past a human."""

from __future__ import annotations

import pytest

from dagrun.core.permissions import Permissions
from dagrun.store.history import load_state

from .space import Space
from .watch import newest

FLOW = """
    version: 1
    name: hands-on
    permissions: {{tools: [Read, Bash], cost_budget: 2}}
    nodes:
      look:
        permissions: {{tools: ["Bash(git:*)"], cost_budget: 0.5}}
        run: |
          cat > "$DAGRUN_PATCH" <<'PATCH'
          operations:
            - {operation}
          PATCH
      gate: {{needs: look, review: Go?}}
      end: {{needs: gate, run: echo end >> said}}
    """
NEW = "insert: {{id: second, node: {{run: {run}{more}}}, after: [look], before: [end]}}"


def proposed(space: Space, operation: str) -> Space:
    space.file("p.yaml", FLOW.format(operation=operation))
    done = space.run("execute", "p.yaml", "-q")
    assert done.code == 4, done.err
    return space


@pytest.mark.parametrize("run", ["echo second >> said", "echo end >> said"], ids=["a new command", "a known command"])
def test_an_inserted_node_has_what_its_maker_has_whoever_let_it_in(space: Space, run: str) -> None:
    proposed(space, NEW.format(run=run, more=""))
    if run.startswith("echo second"):  # new commands wait for a human
        assert "second" not in load_state(newest(space)).plan.index
        assert space.run("review", "1", "--approve", "--no-resume", "-q").code == 0
    state = load_state(newest(space))
    held = state.plan.nodes[state.plan.index["second"]].permissions
    assert held is not None
    assert (held.tools, held.cost_budget) == (("Bash(git:*)",), 500_000_000)


def test_one_that_asks_for_more_is_refused_and_the_history_says_why(space: Space) -> None:
    proposed(space, NEW.format(run="echo end >> said", more=", permissions: {{tools: [Read]}}".format()))
    state = load_state(newest(space))
    assert not state.proposals
    assert "second" not in state.plan.index
    refused = space.run("replan", "history").out
    assert "`second` asks for tool `Read`, but `look`, which inserts it, allows only `Bash(git:*)`" in " ".join(
        refused.split()
    )


def test_a_human_may_insert_what_the_run_allows(space: Space) -> None:
    proposed(space, NEW.format(run="echo x >> said", more=""))
    space.file("mine.yaml", "id: mine\nrun: echo mine >> said\nafter: [look]\npermissions: {tools: [Read]}\n")
    assert space.run("replan", "--insert", "mine.yaml", "--yes", "-q").code == 0
    state = load_state(newest(space))
    assert state.plan.nodes[state.plan.index["mine"]].permissions == Permissions(tools=("Read",))
    space.file("more.yaml", "id: more\nrun: echo more >> said\nafter: [look]\npermissions: {tools: [Write]}\n")
    done = space.run("replan", "--insert", "more.yaml", "--yes", "-q")
    assert done.code == 3
    assert "`more` asks for tool `Write`, but the workflow allows only `Read`, `Bash`" in done.err


def test_a_command_in_an_inline_fallback_waits_for_a_human_too(space: Space) -> None:
    proposed(space, NEW.format(run="echo end >> said", more=", on_failure: {{fallback: {{run: echo evil}}}}".format()))
    state = load_state(newest(space))
    assert "second" not in state.plan.index
    assert list(state.proposals) == [1]

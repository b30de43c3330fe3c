"""Money of agents: never more than a cap is spent and held, at any record of a journal, whatever ends the engine."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.core.event import (
    CallEnded,
    CallReserved,
    Event,
    NodeStarted,
    ToolEnded,
    Warned,
)

from .asking import (
    CENT,
    PRICES,
    agents,
    books,
    bought,
    closed,
    output,
    replies,
    reserved,
    why,
)
from .kills import WALKED, next_event, passes
from .space import Space

THOUSAND = "word" * 1000  # as many tokens, for the fake provider
KILLED = 128 + signal.SIGKILL


def warned(space: Space) -> list[str]:
    return [e.text for e in space.events() if isinstance(e, Warned)]


# ---------------------------------------------------------------- out of money


def test_a_call_that_may_cost_too_much_never_leaves(space: Space) -> None:
    agents(
        space,
        "permissions: {cost_budget: 0.0001}\nnodes: {a: {agent: {prompt: x, tools: []}}}",
        "- {text: never}",
    )
    done = space.execute()
    assert done.code == 5, done
    assert not reserved(space)
    assert not closed(space)
    assert str(space.finish("a").outcome) == "over_budget"
    assert "the next call may cost" in space.finish("a").error
    assert str(space.state().status) == "over_budget"


def test_what_was_said_before_the_money_ran_out_is_kept(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 0.05}
        nodes:
          a: {agent: {prompt: x, max_turns: 50}}
          b: {needs: a, run: 'true'}
        """,
        f"- {{text: '{THOUSAND} a part of it', tools: [{{Glob: {{pattern: '*'}}}}]}}",
    )
    done = space.execute()
    assert done.code == 5, done
    assert str(space.finish("a").outcome) == "over_budget"
    assert space.finish("a").summary.startswith(THOUSAND[:50])
    assert "a part of it" in space.log("a").decode()
    assert len(replies(space)) == len(reserved(space)) >= 3
    assert space.statuses()["b"] == "skipped"
    found = books(space)
    assert 3 * CENT <= found.spent() <= 5 * CENT
    assert found.held() == 0
    assert "bound" not in space.finish("a").error


def test_another_failure_besides_makes_it_exit_5_still(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 0.0001}
        nodes: {a: {agent: {prompt: x, tools: []}}, b: {run: exit 3}}
        """,
        "- {text: never}",
    )
    assert space.execute().code == 5


def test_a_fallback_stands_in_for_an_agent_without_money(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 0.0001}
        nodes:
          a:
            agent: {prompt: x, tools: []}
            outputs: {text: {}}
            on_failure: {fallback: {run: 'echo text=cheap >> "$DAGRUN_OUTPUT"', outputs: {text: {}}}}
          b: {inputs: {t: nodes.a.text}, run: 'echo "$INPUT_T" > got'}
        """,
        "- {text: never}",
    )
    done = space.execute()
    assert done.code == 0, done
    assert space.read("got") == "cheap\n"


def test_a_retry_does_not_help_against_an_empty_purse(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 0.0001}
        nodes: {a: {agent: {prompt: x, tools: []}, retry: {max_attempts: 3}}}
        """,
        "- {text: never}",
    )
    assert space.execute().code == 5
    assert space.outcomes("a") == ["over_budget"]


def test_a_resume_has_no_more_money_than_the_run_had(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 0.042}
        nodes: {a: {agent: {prompt: x, tools: []}}, b: {needs: a, agent: {prompt: y, tools: []}}}
        """,
        "- {text: ok, usage: {output: 4000}}",
    )
    assert space.execute().code == 5
    assert space.statuses() == {"a": "completed", "b": "failed"}
    done = space.run("resume")
    assert done.code == 5, done
    assert len(bought(space)) == 1
    books(space)


# ---------------------------------------------------------------- warned


def test_a_warning_at_four_fifths_once_for_each_cap(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 0.10}
        nodes:
          a: {agent: {prompt: x, tools: []}, permissions: {cost_budget: 0.05}}
          b: {needs: a, agent: {prompt: x, tools: []}}
        """,
        "- {text: ok, usage: {output: 4000}}",
    )
    assert space.execute().code == 0, why(space)
    found = warned(space)
    assert len([t for t in found if "node `a`" in t]) == 1
    assert len([t for t in found if "of the run" in t]) == 1
    assert "0.04" in next(t for t in found if "node `a`" in t)


# ---------------------------------------------------------------- caps in one another


def test_the_cap_of_a_node_binds_below_that_of_the_run(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 1}
        nodes:
          a: {agent: {prompt: x, tools: []}, permissions: {cost_budget: 0.0001}}
          b: {agent: {prompt: x, tools: []}}
        """,
        "- {text: ok}",
    )
    assert space.execute().code == 5
    assert space.statuses() == {"a": "failed", "b": "completed"}
    assert "node `a`" in space.finish("a").error
    assert {e.scopes for e in reserved(space)} == {("node:b", "run")}


PATCH = """\
operations:
  - insert:
      id: {author}-more
      after: [{author}]
      node: {{agent: {{prompt: z, tools: []}}}}
"""


def test_nodes_that_a_node_brought_in_spend_its_money(space: Space) -> None:
    space.write("patch.yaml", PATCH.format(author="author"))
    agents(
        space,
        """
        permissions: {cost_budget: 1}
        nodes:
          author:
            permissions: {cost_budget: 0.03}
            run: cp patch.yaml "$DAGRUN_PATCH"
          free: {needs: author, agent: {prompt: x, tools: []}}
        """,
        "- {node: free, text: ok}\n- {text: on, finish: length, usage: {output: 1000}}",
    )
    done = space.execute()
    assert "author-more" in space.statuses(), done
    (first, *_) = reserved(space, "author-more")
    assert first.scopes == ("node:author-more", "node:author", "run")
    found = books(space)
    assert found.accounts["node:author"][0] == 3 * CENT
    assert found.spent("node:author") <= 3 * CENT
    assert first.max_tokens < 4096  # what three cents buy


@pytest.mark.parametrize("parallel", ["2", "8"])
def test_many_at_once_on_one_small_cap(space: Space, parallel: str) -> None:
    nodes = "".join(f"  n{k}: {{agent: {{prompt: p{k}, tools: []}}}}\n" for k in range(8))
    agents(
        space,
        "permissions: {cost_budget: 0.10}\nnodes:\n" + nodes,
        "- {text: ok, usage: {output: 500}, latency: 30ms}",
    )
    done = space.execute("-j", parallel)
    assert done.code == 0, done
    found = books(space)
    assert found.spent() == 4 * CENT
    most = max(held_at(space))
    assert 4 * CENT < most <= 10 * CENT  # two at a time: the others waited for what these held
    assert len(reserved(space)) == 8


def held_at(space: Space) -> list[int]:
    """What was held after each event."""
    held: dict[tuple[str, int, int], int] = {}
    found = []
    for event in space.events():
        if isinstance(event, CallReserved):
            held[event.node, event.attempt, event.call] = event.amount
        elif isinstance(event, CallEnded):
            held.pop((event.node, event.attempt, event.call), None)
        found.append(sum(held.values()))
    return found


def test_many_at_once_until_nothing_is_left(space: Space) -> None:
    nodes = "".join(f"  n{k}: {{agent: {{prompt: p{k}, tools: []}}}}\n" for k in range(6))
    agents(
        space,
        "permissions: {cost_budget: 0.10}\nnodes:\n" + nodes,
        f"- {{text: '{3 * THOUSAND}', latency: 30ms}}",
    )
    assert space.execute("-j", "6").code == 5
    assert 9 * CENT < books(space).spent() <= 10 * CENT
    outcomes = [o for k in range(6) for o in space.outcomes(f"n{k}")]
    assert set(outcomes) == {"completed", "over_budget"}


@pytest.mark.parametrize("end", ["timeout", "fail_fast"])
def test_who_waits_for_money_can_be_ended(space: Space, end: str) -> None:
    agents(
        space,
        f"""
        fail_fast: {"true" if end == "fail_fast" else "false"}
        permissions: {{cost_budget: 0.06}}
        nodes:
          holds: {{agent: {{prompt: x, tools: []}}}}
          waits: {{agent: {{prompt: y, tools: []}}, timeout: {"300ms" if end == "timeout" else "1h"}}}
          bad: {{run: 'until test -e go; do sleep 0.01; done; exit 3'}}
        """,
        "- {node: holds, text: late, latency: 3s, usage: {output: 100}}\n- {text: ok}",
    )
    process = space.start("execute", "flow.yaml")
    process.until(lambda: bool(reserved(space, "holds")) and space.started("waits"), "one holds, one waits")
    if end == "timeout":
        process.until(lambda: bool(space.outcomes("waits")) and not space.started("waits"), "it is over")
        assert space.outcomes("waits") == ["timed_out"]
    space.write("go", "")
    assert process.done().code == 1
    assert reserved(space, "waits") == []
    assert space.statuses()["waits"] == ("failed" if end == "timeout" else "cancelled")
    books(space)


# ---------------------------------------------------------------- what a call cost


def test_what_nobody_says_is_spent_as_it_was_reserved(space: Space) -> None:
    agents(
        space,
        "permissions: {cost_budget: 1}\nnodes: {a: {agent: {prompt: x, tools: []}}}",
        "- {text: ok, usage: none}",
    )
    assert space.execute().code == 0
    (call,), (end,) = reserved(space), closed(space)
    assert (end.books, end.spent) == ("keep", call.amount)
    assert books(space).spent() == call.amount


@pytest.mark.parametrize(
    ("error", "kept"), [("429", "release"), ("503", "release"), ("timeout", "keep"), ("cut", "keep")]
)
def test_what_an_error_costs(space: Space, error: str, kept: str) -> None:
    agents(
        space,
        "permissions: {cost_budget: 1}\nnodes: {a: {agent: {prompt: x, tools: []}}}",
        f"- {{try: 1, error: {error}}}\n- {{text: ok, usage: {{output: 1000}}}}",
    )
    assert space.execute().code == 0, why(space)
    first = reserved(space)[0]
    assert [e.books for e in closed(space)] == [kept, "settle"]
    assert books(space).spent() == CENT + (first.amount if kept == "keep" else 0)


def test_a_bound_that_does_not_hold_ends_all_spending(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 1}
        nodes:
          a: {agent: {prompt: x, tools: []}}
          b: {needs: a, if: always(), agent: {prompt: y, tools: []}}
        """,
        "- {text: ok, usage: {input: 10, output: 50000}}",
    )
    done = space.execute()
    assert done.code == 5, done
    assert len(reserved(space)) == 1
    assert any("nothing more is spent" in t for t in warned(space))
    assert space.statuses() == {"a": "failed", "b": "failed"}
    assert space.outcomes("b") == ["over_budget"]
    assert space.finish("a").summary == "ok"  # what was paid for is kept
    assert books(space, strict=False).spent() == 50 * CENT + 10_000
    assert space.run("resume").code == 5  # nor afterwards
    assert len(reserved(space)) == 1


def test_estimates_may_be_wrong_and_the_run_goes_on(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 1}
        nodes: {a: {agent: {prompt: x, tools: []}}, b: {needs: a, agent: {prompt: y, tools: []}}}
        """,
        "- {text: ok, usage: {input: 4000, output: 10}}",
        head="""\
provider:
  kind: fake
  rules: rules.yaml
  budget: estimate
  prices: {fake/one: {input: "10", output: "10"}}
models: {first: [fake/one]}
""",
    )
    assert space.execute().code == 0, why(space)
    assert books(space, strict=False).spent() == 8 * CENT + 2 * 10**5


def test_free_models_need_no_money(space: Space) -> None:
    agents(
        space,
        "permissions: {cost_budget: 0.0001}\nnodes: {a: {agent: {prompt: x, tools: []}}}",
        "- {text: ok}",
        head=PRICES.replace('fake/one: {input: "1", output: "10"}', "fake/one: {free: true}"),
    )
    assert space.execute().code == 0
    assert [e.amount for e in reserved(space)] == [0]


# ---------------------------------------------------------------- killed

TOOLS = """
permissions: {cost_budget: 0.50}
nodes:
  a:
    agent: {prompt: Work, tools: [Bash]}
    permissions: {paths: {read: [.], write: [out]}}
  b:
    inputs: {t: nodes.a.text}
    agent: {prompt: "Judge ${{ inputs.t }}", tools: []}
    output_schema: {type: object, properties: {verdict: {type: string}}, required: [verdict]}
  c: {inputs: {v: nodes.b.verdict}, run: 'echo "$INPUT_V" > got'}
"""
LONG = "word " * 1200
TOOL_RULES = f"""
- {{node: a, turn: 1, tools: [{{Bash: {{command: "echo 1 >> out/ran; echo first"}}}}], usage: {{output: 1000}}}}
- {{node: a, turn: 2, tools: [{{Bash: {{command: "echo 2 >> out/ran; echo second"}}}}], usage: {{output: 1000}}}}
- {{node: a, turn: 3, text: "{LONG.strip()}", usage: {{output: 1000}}}}
- {{node: b, turn: 1, text: no, usage: {{output: 1000}}}}
- {{node: b, turn: 2, json: {{verdict: fine}}, usage: {{output: 1000}}}}
"""
CALLS = 5


def spaces(tmp_path: Path) -> Iterator[Space]:
    """A new project a time, each checked and closed."""
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        (folder / "out").mkdir(parents=True)
        space = Space(folder)
        agents(space, TOOLS, TOOL_RULES)
        try:
            yield space
            space.check()
        finally:
            space.close()


def in_flight(events: list[Event]) -> int:
    """How many calls had been reserved and not ended."""
    return sum(isinstance(e, CallReserved) for e in events) - sum(isinstance(e, CallEnded) for e in events)


def goes_on(space: Space, before: list[Event]) -> None:
    """Resumed, the run ends as ever: replies that are in the journal are reused, nothing else is bought twice."""
    code = space.run("resume", space.last().id).code if before else space.execute().code
    assert code == 0, space.events()[-3:]
    assert space.read("got") == "fine\n"
    assert output(space, "b", "verdict") == "fine"
    lost = in_flight(before)
    calls = bought(space)
    assert len(calls) == CALLS + lost, "a reply that was in the journal was bought again"
    found = books(space)
    assert found.spent() == CALLS * CENT + sum(c.amount for c in cut_off(before))
    asked = [e.digest for e in calls]
    assert len(set(asked)) == CALLS
    reused = {(e.node, e.reused) for e in closed(space) if e.reused}
    had = {(e.node, f"{e.attempt}/{e.call}") for e in before if isinstance(e, CallEnded) and e.spent}
    assert reused <= had
    kept_tools = [e for e in before if isinstance(e, ToolEnded)]
    ran = space.lines("out/ran")
    for number in ("1", "2"):
        done = any(e.number == int(number) for e in kept_tools)
        assert ran.count(number) <= (1 if done else 2)


def cut_off(events: list[Event]) -> list[CallReserved]:
    ended = {(e.node, e.attempt, e.call) for e in events if isinstance(e, CallEnded)}
    return [e for e in events if isinstance(e, CallReserved) and (e.node, e.attempt, e.call) not in ended]


def kill(space: Space, fault: str, *args: str) -> list[Event] | None:
    done = space.run(*(args or ("execute", "flow.yaml")), env={"DAGRUN_FAULT": fault})
    space.check()
    return space.events() if done.code == KILLED else None


def test_without_a_kill(tmp_path: Path) -> None:
    for space in spaces(tmp_path):
        assert space.execute().code == 0, why(space)
        assert len(bought(space)) == CALLS
        assert books(space).spent() == CALLS * CENT
        assert space.lines("out/ran") == ["1", "2"]
        break


def test_a_kill_after_every_event_buys_nothing_twice(tmp_path: Path) -> None:
    seen: set[str] = set()
    n = 1
    for space in spaces(tmp_path):
        before = kill(space, f"engine.after_event:{n}:kill")
        if before is None:
            break
        n = next_event(n, space.records())
        seen.update(type(e).__name__ for e in space.records()[-1])
        goes_on(space, before)
    assert seen >= {"CallReserved", "CallEnded", "ToolEnded"}
    assert n > 15


FEW = (2, 5, 7)


@pytest.mark.parametrize("point", [p for p in WALKED if not p.startswith(("artifacts", "run."))])
def test_a_kill_at_every_point_buys_nothing_twice(tmp_path: Path, point: str) -> None:
    struck = 0
    for n, space in zip(FEW, spaces(tmp_path)):
        before = kill(space, f"{point}:{n}:kill")
        if before is None:
            break
        struck += 1
        goes_on(space, before)
    assert struck or point.startswith("values")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", [p for p in WALKED if not p.startswith("artifacts")])
def test_every_kill_at_every_point_buys_nothing_twice(tmp_path: Path, point: str) -> None:
    for n, space in zip(passes(point, FEW), spaces(tmp_path)):
        before = kill(space, f"{point}:{n}:kill")
        if before is None:
            break
        goes_on(space, before)
    assert n > 10 or point not in ("journal.before_write", "journal.mid_write")


@pytest.mark.parametrize("n", [3, 5, 8])
def test_kills_again_and_again_stay_below_the_cap(tmp_path: Path, n: int) -> None:
    for space in spaces(tmp_path):
        assert kill(space, f"engine.after_event:{n}:kill") is not None
        spent = books(space).spent()
        for later in (2, 4):
            kill(space, f"engine.after_event:{later}:kill", "resume", space.last().id)
            now = books(space).spent()
            assert now >= spent
            spent = now
        assert space.run("resume", space.last().id).code in (0, 1)
        books(space)
        assert len({(e.node, e.digest) for e in bought(space)}) <= CALLS
        break


def test_an_engine_that_is_killed_in_a_call_counts_it_as_spent(space: Space) -> None:
    agents(
        space,
        "permissions: {cost_budget: 0.10}\nnodes: {a: {agent: {prompt: x, tools: []}}}",
        "- {attempt: 1, text: late, latency: 1h}\n- {text: ok, usage: {output: 1000}}",
    )
    process = space.start("execute", "flow.yaml")
    process.until(lambda: bool(reserved(space)), "a is asked")
    process.signal(signal.SIGKILL)
    process.done()
    space.started("a")
    held = reserved(space)[0].amount
    assert space.run("resume", space.last().id).code == 0, why(space)
    assert space.outcomes("a") == ["lost", "completed"]
    assert books(space).spent() == held + CENT
    assert [type(e).__name__ for e in space.events()].count("EngineAttached") == 2


# ---------------------------------------------------------------- prices hold


def test_prices_hold_for_the_whole_run(space: Space) -> None:
    agents(
        space,
        """
        permissions: {cost_budget: 0.50}
        nodes:
          a: {agent: {prompt: x, tools: []}}
          b: {needs: a, agent: {prompt: y, tools: []}}
        """,
        "- {node: b, attempt: 1, error: 401}\n- {text: ok, usage: {output: 1000}}",
    )
    assert space.execute().code == 1
    flow = (space.path / "flow.yaml").read_text()
    (space.path / "flow.yaml").write_text(flow.replace('output: "10"', 'output: "20"'))
    done = space.run("resume")
    assert done.code == 0, done
    starts = [e for e in space.events() if isinstance(e, NodeStarted)]
    assert {json.dumps(e.agent["prices"]) for e in starts} == {json.dumps(starts[0].agent["prices"])}
    assert books(space).spent() == 2 * CENT


# ---------------------------------------------------------------- before anything is spent


def test_the_plan_names_the_worst_case_before_anything_is_spent(space: Space) -> None:
    agents(
        space,
        "permissions: {cost_budget: 0.50}\nnodes: {a: {agent: {prompt: x, tools: []}}}",
        "- {text: ok}",
    )
    done = space.run("plan", "flow.yaml")
    assert done.code == 0, done
    assert "$" in done.out
    assert space.runs() == []


def test_the_summary_and_the_trace_say_what_was_spent(space: Space) -> None:
    agents(
        space,
        "permissions: {cost_budget: 0.50}\nnodes: {a: {agent: {prompt: x, tools: []}}}",
        "- {text: ok, usage: {input: 50, cached: 20, output: 1000, reasoning: 30}}",
    )
    done = space.execute()
    assert "spent $0.0101 of $0.50" in done.err + done.out, done
    entry = json.loads(space.run("trace", "show", "--json").out)["entries"][0]
    text = json.dumps(entry)
    for part in ('"cached', '"reasoning', "fake/one"):
        assert part in text, text

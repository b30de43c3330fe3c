"""Agents end to end: real engine, real tools in real sandboxes, a provider that answers by rules."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from dagrun.core.event import CallReserved, NodeStarted, StopRequested, ToolEnded, Warned
from tests.agent.openai_server import Behaviour, Server
from tests.agent.talking import need_litellm

from .asking import (
    CENT,
    agents,
    answers,
    books,
    bought,
    closed,
    failures,
    output,
    prompt,
    replies,
    requests,
    reserved,
    uses,
    why,
)
from .space import Done, Process, Space, dead, pids_in

VERDICT = "{type: object, properties: {verdict: {type: string}}, required: [verdict]}"
TWO_MODELS = "models: {first: [fake/one, fake/two]}"
NO_TIER = """\
provider:
  kind: fake
  rules: rules.yaml
  prices:
    fake/one: {input: "1", output: "10"}
    fake/two: {input: "1", output: "10"}
    fake/dear: {input: "10", output: "100"}
"""
WRITES = "permissions: {paths: {read: [.], write: [out]}}"


def asks(space: Space, node: str, count: int = 1) -> bool:
    """Whether the call `count` of a node is on its way."""
    return len(reserved(space, node)) >= count and len(closed(space, node)) < len(reserved(space, node))


def asking(space: Space, node: str) -> Process:
    """A run that waits for the answer to this node."""
    process = space.start("execute", "flow.yaml")
    process.until(lambda: asks(space, node), f"{node} is asked")
    return process


def ended(space: Space, node: str) -> tuple[str, str]:
    """(outcome, limit) of the last attempt."""
    finish = space.finish(node)
    return str(finish.outcome), finish.limit


# ---------------------------------------------------------------- what comes out


def test_text_and_structured_answers_reach_who_needs_them(space: Space) -> None:
    agents(
        space,
        f"""
        nodes:
          say: {{agent: {{prompt: Say hello, tools: []}}}}
          judge:
            inputs: {{said: nodes.say.text}}
            agent: {{prompt: "Judge ${{{{ inputs.said }}}}", tools: []}}
            output_schema: {VERDICT}
          show:
            inputs: {{said: nodes.say.text, verdict: nodes.judge.verdict}}
            run: 'echo "$INPUT_SAID: $INPUT_VERDICT" > shown'
        outputs: {{verdict: nodes.judge.verdict}}
        """,
        """
        - {node: say, text: "Hello <b>there</b>"}
        - {node: judge, prompt: "Hello <b>there</b>", json: {verdict: fine, score: 3}}
        """,
    )
    done = space.execute()
    assert done.code == 0, done
    assert space.read("shown") == "Hello <b>there</b>: fine\n"
    assert output(space, "judge", "score") == 3
    assert json.loads(space.run("outputs", "--json").out)["outputs"] == {"verdict": "fine"}


def test_a_model_sees_its_declared_inputs_and_nothing_else(space: Space) -> None:
    agents(
        space,
        """
        params: {topic: {default: graphs}}
        nodes:
          secretive: {run: 'echo canary-7f3a', outputs: {text: {from: stdout}}}
          open: {run: 'echo shown-1b2c', outputs: {text: {from: stdout}}}
          ask:
            needs: [secretive]
            inputs: {given: nodes.open.text}
            agent: {prompt: "On ${{ params.topic }}", tools: []}
        """,
        "- {text: ok}",
    )
    assert space.execute().code == 0
    (request,) = requests(space, "ask")
    assert "shown-1b2c" in prompt(request)
    assert "graphs" in prompt(request)
    assert "canary-7f3a" not in prompt(request)
    assert request.tools == ()


def test_declared_outputs_are_a_schema_and_what_it_wrote_is_kept(space: Space) -> None:
    agents(
        space,
        f"""
        nodes:
          work:
            agent: {{prompt: Work, tools: [Write]}}
            {WRITES}
            outputs: {{verdict: {{schema: {{type: string}}}}}}
            artifacts: [out/*.txt]
          after: {{needs: work, run: cp out/notes.txt got}}
        """,
        """
        - {turn: 1, tools: [{Write: {file_path: out/notes.txt, content: "line 1\\nline 2"}}]}
        - {turn: 2, json: {verdict: fine}}
        """,
    )
    done = space.execute()
    assert done.code == 0, done
    assert output(space, "work", "verdict") == "fine"
    assert space.read("got") == "line 1\nline 2"
    (artifact,) = space.finish("work").artifacts
    assert isinstance(artifact, dict)
    assert artifact["path"] == "out/notes.txt"
    assert Path(space.last().artifacts, str(artifact["sha"])).read_text() == "line 1\nline 2"


def test_an_artifact_that_no_tool_wrote_is_an_invalid_output(space: Space) -> None:
    agents(space, f"nodes: {{a: {{agent: {{prompt: x}}, {WRITES}, artifacts: [out/no.txt]}}}}", "- {text: done}")
    assert space.execute().code == 1
    assert ended(space, "a") == ("invalid_output", "")
    assert "out/no.txt" in space.finish("a").error


def test_conditions_and_needs_of_agents(space: Space) -> None:
    agents(
        space,
        f"""
        nodes:
          judge: {{agent: {{prompt: Judge, tools: []}}, output_schema: {VERDICT}}}
          good:
            inputs: {{verdict: nodes.judge.verdict}}
            if: "inputs.verdict == 'good'"
            agent: {{prompt: Praise, tools: []}}
          bad:
            inputs: {{verdict: nodes.judge.verdict}}
            if: "inputs.verdict == 'bad'"
            agent: {{prompt: Repair, tools: []}}
        """,
        "- {node: judge, json: {verdict: bad}}\n- {text: ok}",
    )
    assert space.execute().code == 0
    assert space.statuses() == {"judge": "completed", "good": "skipped", "bad": "completed"}
    assert [e.node for e in reserved(space)] == ["judge", "bad"]


# ---------------------------------------------------------------- answers that do not fit


def test_reminders_name_what_is_wrong_and_the_right_answer_counts(space: Space) -> None:
    agents(
        space,
        f"nodes: {{a: {{agent: {{prompt: Judge, tools: []}}, output_schema: {VERDICT}}}}}",
        """
        - {turn: 1, text: "fine, I think"}
        - {turn: 2, last: "not JSON", json: {verdict: 3}}
        - {turn: 3, last: "verdict.*string", json: {verdict: fine}}
        """,
    )
    assert space.execute().code == 0, why(space)
    assert output(space, "a", "verdict") == "fine"
    assert [r.text for r in replies(space)] == ["fine, I think", '{"verdict": 3}', '{"verdict": "fine"}']


def test_after_two_reminders_the_output_is_invalid_and_every_reply_is_kept(space: Space) -> None:
    agents(
        space,
        f"""
        nodes:
          a: {{agent: {{prompt: Judge, tools: []}}, output_schema: {VERDICT}}}
          b: {{needs: a, run: 'true'}}
        """,
        '- {turn: 1, text: one}\n- {turn: 2, text: two}\n- {turn: 3, json: {verdikt: "x"}}\n- {text: four}',
    )
    assert space.execute().code == 1
    assert ended(space, "a") == ("invalid_output", "")
    assert "verdict" in space.finish("a").error
    assert [r.text for r in replies(space)] == ["one", "two", '{"verdikt": "x"}']
    assert space.statuses()["b"] == "skipped"
    for text in ("one", "two", "verdikt"):
        assert text in space.log("a").decode()


def test_a_cut_off_answer_is_asked_for_once_more_with_twice_the_tokens(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: Write, tools: [], max_tokens: 300}}}",
        "- {last: Write, try: 1, text: half, finish: length}",
    )
    assert space.execute().code == 1
    assert ended(space, "a") == ("truncated", "")
    assert [r.max_tokens for r in requests(space, "a")] == [300, 600]
    assert [r.text for r in replies(space)] == ["half", "half"]


def test_a_refusal_is_its_own_outcome(space: Space) -> None:
    agents(space, "nodes: {a: {agent: {prompt: x, tools: []}}}", "- {text: I will not, finish: refused}")
    assert space.execute().code == 1
    assert ended(space, "a") == ("refused", "")
    assert [r.text for r in replies(space)] == ["I will not"]


# ---------------------------------------------------------------- caps


def test_the_cap_on_turns(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, max_turns: 2}}}",
        "- {text: on, tools: [{Glob: {pattern: '*'}}]}",
    )
    assert space.execute().code == 1
    assert ended(space, "a") == ("over_limit", "turns")
    assert len(reserved(space)) == 2


def test_the_cap_on_tool_calls(space: Space) -> None:
    many = ", ".join(["{Glob: {pattern: '*.none'}}"] * 51)
    agents(space, "nodes: {a: {agent: {prompt: x}}}", f"- {{tools: [{many}]}}")
    assert space.execute().code == 1
    assert ended(space, "a") == ("over_limit", "tool_calls")
    assert uses(space) == []


def test_the_cap_on_what_is_said(space: Space) -> None:
    agents(space, "nodes: {a: {agent: {prompt: x, tools: []}}}", f"- {{text: {'x' * (9 << 20)}}}")
    done = space.execute()
    assert done.code == 1, done
    assert ended(space, "a") == ("over_limit", "output")
    assert "text" not in space.state().outputs.get(0, {})


@pytest.mark.parametrize("size", [100, 5000, 1 << 20])
def test_answers_small_and_large_are_whole(space: Space, size: int) -> None:
    agents(space, "nodes: {a: {agent: {prompt: x, tools: []}}}", f"- {{text: {'x' * size}}}")
    assert space.execute().code == 0, why(space)
    assert output(space, "a") == "x" * size


# ---------------------------------------------------------------- time


def test_an_attempt_that_hangs_is_timed_out_and_its_reservation_is_spent(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: []}, timeout: 400ms}}",
        "- {text: late, latency: 1h}",
    )
    assert space.execute().code == 1
    assert ended(space, "a") == ("timed_out", "")
    (call,), (end,) = reserved(space), closed(space)
    assert (end.books, end.error) == ("keep", "timeout")
    found = books(space)
    assert found.spent() == call.amount > 0
    assert found.held() == 0


def test_a_call_that_hangs_leaves_time_for_another_model(space: Space) -> None:
    agents(
        space,
        f"{TWO_MODELS}\nnodes: {{a: {{agent: {{prompt: x, tools: []}}, timeout: 3s}}}}",
        "- {model: fake/one, text: late, latency: 1h}\n- {model: fake/two, text: quick, usage: {output: 100}}",
        head=NO_TIER,
    )
    assert space.execute().code == 0, why(space)
    assert output(space, "a") == "quick"
    first, second = reserved(space)
    assert (first.model, second.model, second.tries) == ("fake/one", "fake/two", 2)
    assert [(e.books, e.error) for e in closed(space)] == [("keep", "timeout"), ("settle", "")]
    assert books(space).spent() == first.amount + CENT // 10


def test_a_tool_that_hangs_is_ended_with_its_attempt(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: [Bash]}, timeout: 1500ms}}",
        "- {tools: [{Bash: {command: 'echo up >> up; sleep 1000'}}]}",
    )
    assert space.execute().code == 1
    assert ended(space, "a") == ("timed_out", "")


# ---------------------------------------------------------------- ended from outside


def test_a_cancel_from_another_terminal_ends_a_call(space: Space) -> None:
    agents(space, "nodes: {a: {agent: {prompt: x, tools: []}}}", "- {text: late, latency: 1h}")
    process = asking(space, "a")
    assert space.run("cancel", "last").code == 0
    assert process.done().code != 0
    assert ended(space, "a") == ("cancelled", "")
    (call,), (end,) = reserved(space), closed(space)
    assert end.books == "keep"
    assert books(space).spent() == call.amount


def test_a_cancel_ends_a_tool(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: [Bash]}, isolation: none}}",
        "- {tools: [{Bash: {command: 'echo $$ > pid; exec sleep 1000'}}]}",
    )
    process = space.start("execute", "flow.yaml")
    process.until(lambda: space.has_lines("pid"), "the tool runs")
    pids = pids_in(space, "pid")
    assert space.run("cancel", "last").code == 0
    process.done()
    assert ended(space, "a") == ("cancelled", "")
    assert dead(pids)


def test_the_first_ctrl_c_lets_an_answer_come_and_the_second_run_buys_only_the_rest(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: []}}, b: {needs: a, agent: {prompt: y, tools: []}}}",
        "- {node: a, text: came, latency: 1500ms}\n- {text: ok}",
    )
    process = asking(space, "a")
    process.signal(signal.SIGINT)
    assert process.done().code == 130
    assert space.statuses() == {"a": "completed", "b": "ready"}
    assert space.run("resume").code == 0
    assert [e.node for e in bought(space)] == ["a", "b"]
    assert output(space, "a") == "came"


def test_the_second_ctrl_c_gives_the_call_up_and_a_resume_asks_again(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: []}}}",
        "- {attempt: 1, text: late, latency: 1h}\n- {text: again}",
    )
    process = asking(space, "a")
    process.signal(signal.SIGINT)
    process.until(lambda: any(isinstance(e, StopRequested) for e in space.events()), "the first is journaled")
    process.signal(signal.SIGINT)
    assert process.done().code == 130
    assert space.outcomes("a") == ["cancelled"]
    (call,) = reserved(space)
    assert books(space).spent() == call.amount
    assert space.run("resume").code == 0
    assert space.outcomes("a") == ["cancelled", "completed"]
    assert len(bought(space)) == 2
    books(space)


def test_fail_fast_ends_a_call(space: Space) -> None:
    agents(
        space,
        """
        fail_fast: true
        nodes:
          a: {agent: {prompt: x, tools: []}}
          bad: {run: 'until test -e go; do sleep 0.01; done; exit 3'}
        """,
        "- {text: late, latency: 1h}",
    )
    process = asking(space, "a")
    space.write("go", "")
    assert process.done().code == 1
    assert space.statuses() == {"a": "cancelled", "bad": "failed"}
    assert [e.books for e in closed(space)] == ["keep"]


# ---------------------------------------------------------------- again


def test_another_attempt_is_another_conversation(space: Space) -> None:
    agents(
        space,
        """
        nodes:
          a:
            agent: {prompt: Try, max_turns: 2}
            retry: {max_attempts: 2, outcomes: [over_limit], delay: 1ms}
        """,
        """
        - {attempt: 1, text: "canary-one", tools: [{Glob: {pattern: "*"}}]}
        - {attempt: 2, text: done}
        """,
    )
    assert space.execute().code == 0, why(space)
    assert space.outcomes("a") == ["over_limit", "completed"]
    first, second, last = requests(space, "a")
    assert "canary-one" in prompt(second)
    assert "canary-one" not in prompt(last)
    assert last.messages == first.messages


def test_a_rate_limit_is_waited_for_and_said(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: []}}}",
        "- {try: 1, error: {kind: rate_limit, retry_after: 100ms}}\n- {text: ok, usage: {output: 100}}",
    )
    assert space.execute().code == 0
    first, second = reserved(space)
    assert (first.model, second.model, second.tries) == ("fake/one", "fake/one", 2)
    assert [r[:2] for r in second.reasons if isinstance(r, list)] == [["fake/one", "rate_limit"]]
    assert [(e.books, e.spent) for e in closed(space)] == [("release", 0), ("settle", CENT // 10)]
    assert books(space).spent() == CENT // 10
    entry = json.loads(space.run("trace", "show", "--json").out)["entries"][0]
    assert entry["retries"] == 1


def test_a_rate_limit_goes_to_the_next_model(space: Space) -> None:
    agents(
        space,
        f"{TWO_MODELS}\nnodes: {{a: {{agent: {{prompt: x, tools: []}}}}}}",
        "- {model: fake/one, error: 429}\n- {text: ok}",
        head=NO_TIER,
    )
    assert space.execute().code == 0
    assert [e.model for e in reserved(space)] == ["fake/one", "fake/two"]
    assert "next" in str(reserved(space)[1].reasons)


@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_who_waits_for_its_next_try_is_ended_like_any_other(space: Space, end: str) -> None:
    agents(
        space,
        f"nodes: {{a: {{agent: {{prompt: x, tools: []}}, timeout: {'1h' if end == 'cancel' else '3s'}}}}}",
        "- {model: fake/one, try: 1, error: {kind: rate_limit, retry_after: 2900ms}}\n- {text: ok, latency: 1h}",
    )
    process = space.start("execute", "flow.yaml")
    process.until(lambda: bool(closed(space)), "the first try failed")
    if end == "cancel":
        assert space.run("cancel", "last").code == 0
    process.done()
    assert ended(space, "a")[0] in ("cancelled" if end == "cancel" else ("timed_out", "failed"))
    assert books(space).held() == 0


def test_what_never_gets_better_is_not_tried_again(space: Space) -> None:
    agents(
        space,
        f"{TWO_MODELS}\nnodes: {{a: {{agent: {{prompt: x, tools: []}}}}}}",
        "- {error: {kind: bad_request, message: no such model}}",
        head=NO_TIER,
    )
    assert space.execute().code == 1
    assert ended(space, "a") == ("failed", "")
    assert "no such model" in space.finish("a").error
    assert len(reserved(space)) == 1
    assert books(space).spent() == 0


def test_who_is_asked_is_who_may_be_asked(space: Space) -> None:
    agents(
        space,
        """
        models: {first: [fake/dear, fake/one, fake/two]}
        nodes:
          a:
            agent: {prompt: x, tools: []}
            permissions: {models: [fake/one]}
        """,
        "- {model: fake/one, try: [1, 2], error: 503}\n- {model: fake/one, text: ok}\n- {text: forbidden}",
        head=NO_TIER,
    )
    assert space.execute().code == 0, why(space)
    assert {e.model for e in reserved(space)} == {"fake/one"}
    assert output(space, "a") == "ok"
    left = {r[0]: r[1] for r in reserved(space)[0].reasons if isinstance(r, list)}
    assert left == {"fake/dear": "not_permitted", "fake/two": "not_permitted"}


def test_the_dear_model_makes_room_when_money_is_short(space: Space) -> None:
    agents(
        space,
        """
        models: {first: [fake/dear, fake/one]}
        permissions: {cost_budget: 0.10}
        nodes: {a: {agent: {prompt: x, tools: []}}}
        """,
        "- {text: ok}",
        head=NO_TIER,
    )
    assert space.execute().code == 0, why(space)
    (call,) = reserved(space)
    assert call.model == "fake/one"
    assert [r[:2] for r in call.reasons if isinstance(r, list)] == [["fake/dear", "too_dear"]]


# ---------------------------------------------------------------- groups

GROUP = """
nodes:
  one: {agent: {prompt: My name is Bob, tools: []}, isolation: none, group: g}
  two: {agent: {prompt: What is my name?, tools: []}, isolation: none, group: g, needs: one}
  three: {agent: {prompt: And again?, tools: []}, isolation: none, group: g, needs: two}
  other: {agent: {prompt: Who am I?, tools: []}, isolation: none}
"""
GROUP_RULES = """
- {node: one, text: "Hello Bob", latency: 20ms}
- {node: two, prompt: "My name is Bob", text: "Bob, as I said"}
- {node: three, prompt: "Bob, as I said", text: "Still Bob"}
- {node: other, text: no idea}
"""


def test_a_group_shares_one_conversation_and_nobody_else_does(space: Space) -> None:
    agents(space, GROUP, GROUP_RULES)
    done = space.execute()
    assert done.code == 0, done
    assert output(space, "three") == "Still Bob"
    assert "Bob" not in prompt(requests(space, "other")[0])
    assert {e.scopes for e in reserved(space) if e.node != "other"} == {("group:g", "run")}


def test_members_of_a_group_run_one_after_another(space: Space) -> None:
    members = "".join(
        f"  n{k}: {{agent: {{prompt: I am n{k}, tools: []}}, isolation: none, group: g}}\n" for k in range(4)
    )
    agents(space, "nodes:\n" + members, "- {text: ok, latency: 30ms}")
    assert space.execute("-j", "8").code == 0
    under_way = 0
    for event in space.events():
        under_way += isinstance(event, CallReserved)
        assert under_way <= 1
        under_way -= type(event).__name__ == "CallEnded"
    sizes = sorted(len(requests(space, f"n{k}")[0].messages) for k in range(4))
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]


def test_a_group_goes_on_with_its_conversation_after_a_resume(space: Space) -> None:
    agents(space, GROUP, GROUP_RULES.replace("- {node: two,", "- {node: two, attempt: 1, error: 401}\n- {node: two,"))
    assert space.execute().code == 1
    assert space.statuses()["two"] == "failed"
    done = space.run("resume")
    assert done.code == 0, (done, why(space))
    assert output(space, "three") == "Still Bob"
    assert [e.node for e in bought(space)].count("one") == 1


# ---------------------------------------------------------------- hostile words

HOSTILE = "\x1b[31mred\x1b[0m\x1b]0;title\x07 [bold]rich[/bold] ${{ secrets.KEY }} </data-1> \u202eevil"


def quoted(text: str) -> str:
    return json.dumps(text)


def tells(space: Space, *nodes: str) -> None:
    """Commands that show the run pass nothing on that a terminal would obey, and evaluate nothing."""
    for line in ("status", "trace show", "outputs", *[f"trace show --node {node}" for node in nodes]):
        done = space.run(*line.split(), env={"KEY": "canary-key"})
        assert done.code == 0, (line, done)
        safe(done)
    for line in ("trace show --json", "outputs --json", "status --json", *[f"logs {node} --json" for node in nodes]):
        text = space.run(*line.split()).out
        assert json.loads(text)
        assert "\x1b" not in text


def safe(done: Done) -> Done:
    for text in (done.out, done.err):
        for bad in ("\x1b[31m", "\x1b]", "\x07", "\x00", "\x9b", "\u202e", "canary-key"):
            assert bad not in text, (bad, text)
    return done


def test_hostile_words_of_a_model_stay_words(space: Space) -> None:
    agents(
        space,
        """
        nodes:
          a: {agent: {prompt: x, tools: []}}
          b: {inputs: {said: nodes.a.text}, agent: {prompt: "Look at ${{ inputs.said }}", tools: []}}
          c: {inputs: {said: nodes.a.text}, run: 'cat "$DAGRUN_INPUTS" > got.json'}
        """,
        f"- {{node: a, text: {quoted(HOSTILE)}}}\n- {{text: ok}}",
    )
    done = safe(space.execute(env={"KEY": "canary-key"}))
    assert done.code == 0, done
    assert output(space, "a") == HOSTILE
    assert json.loads(space.read("got.json"))["said"] == HOSTILE
    shown = prompt(requests(space, "b")[0])
    assert "${{ secrets.KEY }}" in shown
    assert "canary-key" not in shown
    assert shown.index("<data-") < shown.index("secrets.KEY")
    tells(space, "a", "b", "c")


@pytest.mark.parametrize("live", ["live", "log", "json"])
def test_hostile_words_in_every_view(space: Space, live: str) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: [Bash]}, isolation: none}}",
        f"- {{turn: 1, text: {quoted(HOSTILE)}, tools: [{{Bash: {{command: {quoted('true # ' + HOSTILE[:30])}}}}}]}}\n"
        f"- {{text: {quoted(HOSTILE)}, finish: refused, latency: 50ms}}",
    )
    assert safe(space.execute("--ui", live, env={"TERM": "xterm"})).code == 1


def test_a_real_endpoint_that_says_hostile_things(space: Space) -> None:
    """What no rules file can hold: NUL, half a surrogate pair, C1 controls, from a model, a tool's name, an error."""
    need_litellm()
    hostile = HOSTILE + "\x00 \x9b31m \ud83d half"
    call = ("call_1\x1b[31m\x00", "Read\ud83d", "{\"file_path\": \"\\u0000\\ud83d\"}")
    known = ("call_2", "Read", "{\"file_path\": \"\\u0000\\ud83d\\u001b[31m\"}")
    with Server(
        words=Behaviour(text=hostile),
        tools=Behaviour(text=hostile, tool_calls=(call, known), finish="tool_calls"),
        wrong=Behaviour(mode="error", status=400, error={"message": hostile, "type": hostile}),
    ) as server:
        prices = ", ".join(f"my/{name}: {{free: true}}" for name in ("words", "tools", "wrong"))
        space.flow(f"""
            provider: {{base_url: "{server.url}", prices: {{{prices}}}}}
            nodes:
              a: {{agent: {{prompt: x, model: my/words, tools: []}}}}
              b: {{agent: {{prompt: x, model: my/tools, max_turns: 2}}}}
              c: {{agent: {{prompt: x, model: my/wrong, tools: []}}}}
              d: {{inputs: {{said: nodes.a.text}}, run: 'cat "$DAGRUN_INPUTS" > got.json'}}
        """)
        done = safe(space.execute())
    assert done.code == 1, done
    assert "bug" not in done.err
    assert space.statuses() == {"a": "completed", "b": "failed", "c": "failed", "d": "completed"}
    assert "half" in str(output(space, "a"))
    assert json.loads(space.read("got.json"))["said"] == output(space, "a")
    assert space.finish("b").limit == "turns", space.finish("b")
    tells(space, "a", "b", "c", "d")


NAMES = """\
for name in (b'\\xff\\x1b[31mred', b'new\\nline', b'[bold]x', b'$(touch pwned)'):
    open(name, 'w').write('x')
"""


def test_hostile_file_names_and_results_of_tools(space: Space) -> None:
    space.write("names.py", NAMES)
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: [Bash, Glob, Grep, Read]}, isolation: none}}",
        f"""
        - turn: 1
          tools:
            - {{Bash: {{command: "{sys.executable} names.py; printf '\\\\377\\\\033[31m\\\\000[bold]'"}}}}
            - {{Glob: {{pattern: "*"}}}}
            - {{Grep: {{pattern: "x"}}}}
            - {{Read: {{file_path: "$(touch pwned)"}}}}
        - {{text: ok}}
        """,
    )
    done = safe(space.execute())
    assert done.code == 0, done
    assert all(u.ok for u in uses(space)), uses(space)
    assert "red" in uses(space)[1].text
    assert "\x00" in uses(space)[0].text
    assert not (space.path / "pwned").exists()
    tells(space, "a")


def test_ten_megabytes_of_a_tool_are_cut_to_size(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: [Bash]}}}",
        """
        - {turn: 1, tools: [{Bash: {command: "head -c 10000000 /dev/zero | tr '\\\\0' x"}}]}
        - {last: "left out", text: ok}
        """,
    )
    assert space.execute().code == 0, why(space)
    (use,) = uses(space)
    assert len(use.text) < 40_000
    assert sum(p.stat().st_size for p in space.below()) < 2 << 20


def test_arguments_that_are_no_json_and_tools_that_are_not_offered(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: [Read]}}}",
        """
        - turn: 1
          tools:
            - {Read: "{broken"}
            - {Bash: {command: touch pwned}}
            - {Read: {file_path: ../../../etc/shadow}}
            - {"mcp__evil__tool": {}}
            - {Read: {path: flow.yaml}}
        - {text: ok}
        """,
    )
    assert space.execute().code == 0, why(space)
    assert not (space.path / "pwned").exists()
    assert all(not u.ok for u in uses(space)), uses(space)
    results = [m.content for m in requests(space, "a")[1].messages if m.role == "tool"]
    assert len(results) == 5
    assert "root:" not in "".join(results)


def test_write_keeps_to_its_paths(space: Space) -> None:
    (space.path.parent / "outside.txt").write_text("as it was")
    agents(
        space,
        f"nodes: {{a: {{agent: {{prompt: x, tools: [Write, Edit, Bash]}}, {WRITES}}}}}",
        """
        - turn: 1
          tools:
            - {Write: {file_path: out/good.txt, content: good}}
            - {Write: {file_path: bad.txt, content: bad}}
            - {Write: {file_path: ../outside.txt, content: bad}}
            - {Write: {file_path: .dagrun/x, content: bad}}
            - {Bash: {command: "echo bad > bad.txt; echo bad > ../outside.txt; ls -A .dagrun"}}
            - {Edit: {file_path: out/good.txt, old_string: good, new_string: better}}
        - {text: ok}
        """,
    )
    assert space.execute().code == 0, why(space)
    assert space.read("out/good.txt") == "better"
    assert not (space.path / "bad.txt").exists()
    assert (space.path.parent / "outside.txt").read_text() == "as it was"
    assert not (space.path / ".dagrun/x").exists()
    assert [u.ok for u in uses(space) if u.name != "Bash"] == [True, False, False, False, True]
    bash = next(u for u in uses(space) if u.name == "Bash")
    assert "runs" not in bash.text


# ---------------------------------------------------------------- what tools leave behind

DAEMON = """\
import os
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.chdir('/')
os.execve('/bin/sh', ['sh', '-c', 'echo $$ >> {pids}; exec sleep 1000'], {{}})
"""


@pytest.mark.parametrize("level", ["none", "context", "process"])
def test_no_daemon_of_a_tool_outlives_its_agent(space: Space, level: str) -> None:
    (space.path / "out").mkdir()
    space.write("daemon.py", DAEMON.format(pids=space.path / "out/pids"))
    command = "/usr/bin/python3 daemon.py; nohup sleep 1000 & until test -s out/pids; do sleep 0.01; done"
    more = WRITES if level == "process" else "grace: 1s"
    agents(
        space,
        f"nodes: {{a: {{agent: {{prompt: x, tools: [Bash]}}, isolation: {level}, {more}}}}}",
        f"- {{turn: 1, tools: [{{Bash: {{command: {quoted(command)}}}}}]}}\n- {{text: ok, latency: 200ms}}",
    )
    process = space.start("execute", "flow.yaml")
    process.until(lambda: asks(space, "a", 2) or not process.alive(), "the second call")
    pids = pids_in(space, "out/pids") if level != "process" else []
    done = process.done()
    assert done.code == 0, (done, uses(space))
    assert space.has_lines("out/pids")
    assert dead(pids)
    space.check()


def limited(space: Space, limit: str, command: str, *, level: str = "") -> Done:
    """An agent whose first command runs into a limit of its node, and whose second would not."""
    agents(
        space,
        f"nodes: {{a: {{agent: {{prompt: x, tools: [Bash]}}, {level} resources: {{{limit}}}}}}}",
        f"""
        - turn: 1
          tools:
            - {{Bash: {{command: {json.dumps(command)}}}}}
            - {{Bash: {{command: "echo still"}}}}
        - {{text: ok}}
        """,
    )
    done = space.execute()
    if done.code == 8 and not os.environ.get("CI"):
        pytest.skip(f"that can't be held here: {done.err}")
    return done


FORKS = "import os, time\nfor _ in range(90):\n    if not os.fork(): time.sleep(30); os._exit(0)"


@pytest.mark.parametrize(
    ("limit", "command", "word"),
    [
        ("memory: 96 MiB", "x=x; while :; do x=$x$x; done", "96 MiB (peak 9"),
        ("memory: 96 MiB", "(x=x; while :; do x=$x$x; done); echo and on", "96 MiB (peak 9"),
        ("pids: 40", f"exec python3 -c '{FORKS}'", "40 processes and threads"),
        ("file_size: 100 KB", "head -c 1000000 /dev/zero > /tmp/x", "102400 bytes"),
        ("file_size: 100 KB", "python3 -c 'open(\"/tmp/x\", \"w\").write(\"x\" * 1000000)'", "102400 bytes"),
    ],
)
def test_a_command_that_passes_a_limit_ends_the_attempt(space: Space, limit: str, command: str, word: str) -> None:
    """As it ends any other node: what was written is a ceiling, and no advice to a model."""
    done = limited(space, limit, command)
    assert done.code == 1, (done, why(space))
    assert ended(space, "a") == ("over_limit", limit.partition(":")[0])
    assert word in space.finish("a").error
    assert space.finish("a").max_rss_bytes or not limit.startswith("memory")
    space.check()


@pytest.mark.parametrize(
    ("limit", "command"),
    [
        ("memory: 512 MiB", "x=x; for i in 1 2 3 4 5 6 7 8 9 10; do x=$x$x; done; false"),
        ("pids: 40", "for i in 1 2 3 4; do sleep 0 & done; false"),
        ("pids: 40", f"python3 -c '{FORKS}' 2> /dev/null || true"),  # a program may well try how many it can have
        ("file_size: 100 KB", "head -c 1000 /dev/zero > /tmp/x; false"),
    ],
)
def test_a_command_below_its_limits_only_fails(space: Space, limit: str, command: str) -> None:
    done = limited(space, limit, command)
    assert done.code == 0, (done, why(space))
    assert uses(space)[1].text == "still"


def test_a_worker_that_gets_no_memory_is_over_its_limit(space: Space) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: x, tools: [Bash]}, resources: {memory: 4 MiB}}}",
        "- {turn: 1, text: said, tools: [{Bash: {command: 'true'}}]}\n- {text: ok}",
    )
    done = space.execute()
    if done.code == 8:
        assert not os.environ.get("CI"), done
        pytest.skip(f"no control group for memory here: {done.err}")
    assert done.code == 1, done
    assert ended(space, "a") == ("over_limit", "memory")


# ---------------------------------------------------------------- refused before the start


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("{agent: {prompt: x, tools: [Bash]}, permissions: {tools: [Read]}}", "Bash"),
        ("{agent: {prompt: x, model: nothing}}", "nothing"),
        ("{agent: {prompt: x, skills: [nowhere]}}", "nowhere"),
    ],
)
def test_what_can_not_work_is_said(space: Space, node: str, said: str) -> None:
    agents(space, f"nodes: {{a: {node}}}", "- {text: never}")
    done = space.execute()
    assert done.code in (1, 3, 8, 9), done
    assert said in done.err + done.out
    assert not space.runs() or reserved(space) == []


def test_no_rule_is_an_error_that_names_the_question(space: Space) -> None:
    agents(space, "nodes: {a: {agent: {prompt: x, tools: []}}}", "- {node: b, text: never}")
    assert space.execute().code == 1
    assert "no rule answers node `a`" in space.finish("a").error
    assert len(failures(space)) == len(answers(space)) == 1


def test_the_journal_says_what_an_attempt_began_with(space: Space) -> None:
    agents(space, "nodes: {a: {agent: {prompt: x}}}", "- {text: ok}")
    assert space.execute().code == 0
    (start,) = [e for e in space.events() if isinstance(e, NodeStarted)]
    assert start.agent["model"] == "first"
    assert start.agent["tools"] == ["Read", "Grep", "Glob"]
    assert start.agent["provider"] == "fake"
    assert not [e for e in space.events() if isinstance(e, Warned | ToolEnded)]


@pytest.mark.parametrize(("error", "tries"), [("bad_request", 1), ("auth", 1), ("context_too_long", 1), ("cut", 2)])
def test_what_would_fail_in_the_same_way_is_not_tried_again(space: Space, error: str, tries: int) -> None:
    agents(
        space,
        "nodes: {a: {agent: {prompt: Work, tools: []}, retry: {max_attempts: 2, delay: 10ms}, timeout: 3s}}",
        f"- {{node: a, error: {error}}}",
    )
    assert space.execute().code == 1
    assert len(space.outcomes("a")) == tries


def test_its_commands_have_no_way_to_change_the_plan(space: Space) -> None:
    agents(
        space,
        """
        nodes:
          a: {agent: {prompt: x, tools: [Bash]}, permissions: {paths: {read: [.], write: [.]}}}
          b: {needs: a, run: 'echo "b:${DAGRUN_PATCH:+set}" >> said'}
        """,
        """
        - {turn: 1, tools: [{Bash: {command: 'echo "a:${DAGRUN_PATCH:+set} ${DAGRUN_NODE}" >> said'}}]}
        - {text: done}
        """,
    )
    assert space.execute().code == 0, why(space)
    assert space.lines("said") == ["a: a", "b:set"]

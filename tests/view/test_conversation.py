"""What agents said and did, from the events alone."""

from __future__ import annotations

import json

from dagrun.agent.messages import CallFailed, Message, Reply, ToolCall
from dagrun.view.conversation import (
    Call,
    ToolUse,
    conversation_json,
    conversation_lines,
    conversations,
    refusals,
    rejections,
)
from dagrun.view.detail import failures_table, node_detail
from dagrun.view.text import Look, cells

from .agents_story import BIG, ERRORS, FAST, PROMPT, Talking, agent, broke, get, reply, research
from .story import BEGIN


def lines(story: Talking, name: str, look: Look = Look(), *, full: bool = False, attempt: int = 1) -> list[str]:  # noqa: B008
    return conversation_lines(conversations(story.told)[name, attempt], get, look, full=full)


def test_calls_and_tools_stand_in_their_order_with_their_times() -> None:
    said = conversations(research().told)
    assert set(said) == {("scan", 1), ("write", 1)}
    kinds = [step.reserved.model if isinstance(step, Call) else step.event.name for step in said["scan", 1]]
    assert kinds == [FAST, BIG, "Read", BIG, BIG]
    first, _, tool, *_ = said["scan", 1]
    assert isinstance(first, Call)
    assert (first.began, first.ended) == (BEGIN, BEGIN + 1)
    assert isinstance(tool, ToolUse)
    assert (tool.began, tool.ended) == (BEGIN + 3.1, BEGIN + 3.5)
    (open_,) = said["write", 1]
    assert isinstance(open_, Call)
    assert open_.answer is None


def test_the_conversation_in_short() -> None:
    assert lines(research(), "scan") == [
        "CALL                        TURN  TRY     IN  OUT  CACHED  THOUGHT    COST  FIRST  TIME",
        "anthropic/claude-haiku-4-5     1                                                   1.0s",
        "    rate limit 429, it asks to wait 6.0s: slow down",
        "openai/gpt-5                   1    2  1,000  200     400       50  $0.002   0.2s  1.0s",
        "    anthropic/claude-haiku-4-5: rate limited → the next",
        "    answered by gpt-5-2026",
        "    asks for Read",
        "  Read                         1                                                   0.4s",
        '    ok, 18 B  {"file_path": "notes.md"}',
        "openai/gpt-5                   2       1,000  200     400       50  $0.002   0.2s  1.0s",
        "    does not fit its schema: .summary: is missing; .count: must be an integer",
        "openai/gpt-5                   3       1,000  200     400       50  $0.002   0.2s  1.0s",
    ]
    open_ = lines(research(), "write")
    assert open_ == ["CALL                        TURN  IN  OUT  TIME", f"{FAST}     1", "    no answer"]


def test_texts_are_shown_only_when_asked_for_and_each_once() -> None:
    short, whole = "\n".join(lines(research(), "scan")), "\n".join(lines(research(), "scan", full=True))
    for text in ("Read the notes.", "You are careful.", "I read it", "secret of the file", '{"summary": "x"}'):
        assert text not in short
        assert whole.count(text) == 1
    assert "    | Your answer is not valid against the JSON Schema:" in whole


def test_nothing_wider_than_the_screen_and_nothing_that_moves_a_cursor() -> None:
    story = Talking(agent("aa"))
    evil = "\x1b[2J\u202eevil [bold]x[/bold]\r\n" * 30
    story.begin("aa").ask("aa", PROMPT, reasons=(["m\x1b[1m", "overloaded", evil],))
    story.answer("aa", CallFailed(kind="overloaded", message=evil, status=503))
    story.ask("aa", tries=2).answer("aa", reply(evil, model=evil))
    story.use("aa", "Read\x1b[31m", {"path": evil}, evil, ok=False)
    for width in (40, 80):
        for line in lines(story, "aa", Look(width=width), full=True):
            assert cells(line) <= width
            assert line.isprintable()
            assert "\x1b" not in line
            assert "\u202e" not in line
    assert any("[bold]" in line for line in lines(story, "aa"))


def test_what_else_is_worth_a_word() -> None:
    story = Talking(agent("a"))
    story.begin("a").ask("a", PROMPT, reasons=([BIG, "not_permitted", "not among the models permitted"],))
    story.answer("a", Reply(text="half", finish="length", usage=None, model="claude-haiku-4-5"))
    story.ask("a", turn=1, amount=0).answer("a", reply(), spent=0, reused="1/3")
    text = "\n".join(lines(story, "a"))
    assert "not permitted" not in text
    assert "answered by" not in text, "the same model by its own name"
    assert "it did not say what it used: all that was reserved counts as spent" in text
    assert "cut off at 256 tokens" in text
    assert "reused: call 1/3 had bought it" in text


def test_an_answer_that_a_tool_call_follows_was_not_rejected() -> None:
    story = research()
    assert rejections(conversations(story.told)["scan", 1], get) == {3: ERRORS}
    assert rejections(conversations(story.told)["write", 1], get) == {}


def test_what_is_gone_is_left_out() -> None:
    story = research()
    found = conversation_lines(conversations(story.told)["scan", 1], lambda ref: None, full=True)
    assert "    rate limit" in found
    assert not any("| " in line for line in found)


def test_for_programs() -> None:
    steps = conversations(research().told)["scan", 1]
    made = conversation_json(steps, get)
    assert json.loads(json.dumps(made)) == made
    assert made[0] == {
        "call": 1,
        "turn": 1,
        "try": 1,
        "model_asked": FAST,
        "max_tokens": 256,
        "reserved_usd": 0.01,
        "request_sha256": steps[0].reserved.digest,  # type: ignore[union-attr]
        "reasons": [],
        "answered": True,
        "model": None,
        "input_tokens": None,
        "output_tokens": None,
        "cached_tokens": None,
        "cache_written_tokens": None,
        "reasoning_tokens": None,
        "cost_usd": 0.0,
        "first_token_ms": None,
        "duration_ms": 1000,
        "error": "rate_limit",
        "reused": "",
        "finish": None,
    }
    assert made[3]["rejected"] == list(ERRORS)  # type: ignore[index, call-overload]
    assert "secret" not in json.dumps(made)
    whole = json.dumps(conversation_json(steps, get, full=True))
    assert "secret of the file" in whole
    assert "Read the notes." in whole


# ---------------------------------------------------------------- one node, and failures


def test_a_node_in_detail() -> None:
    story = research()
    text = node_detail(story.state, story.plan.index["scan"], said=conversations(story.told), get=get)
    for line in (
        "  model      gpt-5-2026 3x; cheap asked",
        "  provider   fake",
        "  tokens     3,000 in (1,200 cached), 600 out (150 thought)",
        "  cost       $0.006",
        "  calls      4 in 3 turns, 1 repeated",
        "  first      0.2s to the first token",
        "  tools      Read",
        "  skills     review abababababab",
        "conversation of try 1  (with its texts: --full)",
    ):
        assert line in text.splitlines()
    plain = node_detail(story.state, story.plan.index["check"], said=conversations(story.told), get=get)
    assert not {"model", "cost", "conversation"} & set(plain.split())
    held = node_detail(story.state, story.plan.index["write"], said=conversations(story.told), get=get)
    assert "  cost       $0.00, $0.01 held" in held.splitlines()


def test_a_tier_that_nobody_declared_is_not_named() -> None:
    story = Talking(agent("a"))
    story.begin("a", model="fake").ask("a", PROMPT).answer("a", reply()).end("a")
    text = node_detail(story.state, 0, said=conversations(story.told), get=get)
    assert f"  model      {FAST}" in text.splitlines()
    assert "  calls      1 in 1 turn" in text.splitlines()


def test_out_of_money_says_which_scope_and_what_is_spent() -> None:
    story = broke()
    text = failures_table(story.state, said=conversations(story.told), get=get)
    assert text.splitlines()[-6:] == [
        "",
        "  write: over budget: node write: $0.01 are left, the call may cost $0.02",
        "    node write: spent $0.01, without a cap",
        "    run: spent $0.01 of $0.02",
        "",
        "dagrun logs r7k2 write",
    ]


def working() -> Talking:
    """An agent that asks for three tools at once: one is refused, one fails, one works."""
    story = Talking(agent("a"))
    shell = ToolCall(id="c1", name="Bash", arguments={"command": "rm -rf src"})
    read = ToolCall(id="c2", name="Read", arguments={"file_path": ".env"})
    found = ToolCall(id="c3", name="Glob", arguments={"pattern": "*"})
    story.begin("a").ask("a", PROMPT).answer("a", reply("", shell, read, found))
    story.use("a", "Read", {"file_path": ".env"}, ".env is denied", ok=False, number=2)
    story.use("a", "Glob", {"pattern": "*"}, "error: is a fine name for a file", number=3)
    results = {"c1": "error: not permitted", "c2": "error: .env is denied", "c3": "error: is a fine name for a file"}
    told = [Message(role="tool", content=text, tool_call_id=name) for name, text in results.items()]
    story.ask("a", Message(role="assistant", content="", tool_calls=(shell, read, found)), *told, turn=2)
    return story.answer("a", reply("done"))


def test_a_tool_call_that_was_refused_is_shown_though_nothing_ran() -> None:
    story = working()
    assert refusals(conversations(story.told)["a", 1], get) == {1: (("Bash", "not permitted"),)}
    assert "    refused Bash: not permitted" in lines(story, "a")
    made = conversation_json(conversations(story.told)["a", 1], get)
    assert [step["refused_tools"] for step in made if isinstance(step, dict) and "refused_tools" in step] == [
        [{"tool": "Bash", "why": "not permitted"}]
    ]


def test_a_result_that_failed_is_shown_once() -> None:
    whole = "\n".join(lines(working(), "a", full=True))
    assert whole.count(".env is denied") == 1
    assert whole.count("| error: not permitted") == 1, "nothing else tells what the model was told"


def test_no_call_is_taken_for_refused_before_the_next_question() -> None:
    story = Talking(agent("a"))
    story.begin("a").ask("a", PROMPT).answer("a", reply("", ToolCall(id="c1", name="Bash", arguments={})))
    assert refusals(conversations(story.told)["a", 1], get) == {}

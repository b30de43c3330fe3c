"""The fake provider: which rule answers, with what, and what is said about a file that is wrong."""

from __future__ import annotations

import pytest

from dagrun.agent.fake import FakeProvider, load
from dagrun.agent.messages import CallFailed, Message, Reply, Request, ToolCall, Usage
from dagrun.agent.tools import catalogue
from dagrun.errors import InputError, render

FILE = "rules.yaml"


def provider(text: str) -> FakeProvider:
    return load(text.encode(), FILE)


def request(*contents: str, model: str = "fake/small", max_tokens: int = 4096) -> Request:
    messages = tuple(Message(role="user", content=content) for content in contents)
    return Request(model=model, messages=messages, max_tokens=max_tokens)


def text_of(
    made: FakeProvider, node: str = "a", turn: int = 1, *contents: str, tries: int = 1, attempt: int = 1
) -> str:
    answer, _ = made.answer(node, turn, request(*contents), tries=tries, attempt=attempt)
    assert isinstance(answer, Reply)
    return answer.text


# ---------------------------------------------------------------- which rule


def test_the_first_rule_that_fits_answers() -> None:
    made = provider("rules:\n- {node: b, text: one}\n- {node: [x, 'a*'], text: two}\n- {text: three}\n")
    assert [text_of(made, node) for node in ("b", "abc", "x", "c")] == ["one", "two", "two", "three"]


def test_turns_tries_and_attempts() -> None:
    made = provider(
        "rules:\n- {attempt: 2, text: second attempt}\n- {turn: 1, try: [1, 2], text: not yet}\n"
        "- {turn: 1, text: first}\n- {turn: [2, 3], text: later}\n"
    )
    assert text_of(made, "a", 1, attempt=2) == "second attempt"
    assert [text_of(made, tries=n) for n in (1, 2, 3)] == ["not yet", "not yet", "first"]
    assert text_of(made, "a", 3) == "later"


def test_patterns_over_the_last_message_and_over_all() -> None:
    made = provider("rules:\n- {last: 'Time+out', text: l}\n- {prompt: '^secret', text: p}\n- {text: none}\n")
    assert text_of(made, "a", 1, "x", "a Timeout") == "l"
    assert text_of(made, "a", 1, "Timeout", "x") == "none"
    assert text_of(made, "a", 1, "secret", "x") == "p"
    assert text_of(made, "a", 1, "no secret", "x") == "none"
    assert text_of(made) == "none"


def test_models() -> None:
    made = provider("rules:\n- {model: fake/big, error: 503}\n- {model: 'fake/*', text: small}\n")
    assert isinstance(made.answer("a", 1, request(model="fake/big"))[0], CallFailed)
    assert isinstance(made.answer("a", 1, request(model="fake/small"))[0], Reply)


def test_the_same_question_gets_the_same_answer() -> None:
    made = provider("rules:\n- {try: 1, error: 429}\n- {text: ok}\n")
    asked = request("x")
    assert [made.answer("a", 1, asked) for _ in range(3)] == [made.answer("a", 1, asked)] * 3
    assert made.answer("a", 1, asked) == provider("rules:\n- {try: 1, error: 429}\n- {text: ok}\n").answer(
        "a", 1, asked
    )


# ---------------------------------------------------------------- what it answers


def test_text_stays_as_it_is_written_and_json_is_typed() -> None:
    assert text_of(provider("rules:\n- {text: 3.10}\n")) == "3.10"
    assert text_of(provider("rules:\n- {text: ''}\n")) == ""
    assert text_of(provider("rules:\n- {json: {a: [1, true, null, '1', é]}}\n")) == '{"a": [1, true, null, "1", "é"]}'


def test_tool_calls() -> None:
    calls = "  - Read: {file_path: a, limit: 3}\n  - mcp__db__q: {}\n  - Bash: '{\"command\":'\n"
    made = provider(f"rules:\n- text: I look\n  tools:\n{calls}")
    answer, _ = made.answer("a", 2, request("x"))
    assert isinstance(answer, Reply)
    assert (answer.text, answer.finish) == ("I look", "tool_calls")
    assert answer.tool_calls == (
        ToolCall(id="call_2_1", name="Read", arguments={"file_path": "a", "limit": 3}),
        ToolCall(id="call_2_2", name="mcp__db__q", arguments={}),
        ToolCall(id="call_2_3", name="Bash", arguments=None, text='{"command":'),
    )


def test_latency_is_told_and_not_waited_for() -> None:
    answer, latency_ms = provider("rules:\n- {text: x, latency: 1h}\n").answer("a", 1, request())
    assert latency_ms == 3_600_000
    assert isinstance(answer, Reply)
    assert (answer.duration_ms, answer.first_token_ms) == (3_600_000, 3_600_000)


def test_usage_is_what_is_said_or_counted_or_missing() -> None:
    def usage(rule: str, max_tokens: int = 4096) -> Usage | None:
        asked = request("é" * 1000, max_tokens=max_tokens)
        answer, _ = provider(f"rules:\n- {{{rule}}}\n").answer("a", 1, asked)
        assert isinstance(answer, Reply)
        return answer.usage

    size = len(request("é" * 1000).canonical().encode())
    assert size > 2000
    assert usage("text: " + "x" * 41) == Usage(input=-(-size // 4), output=11)
    assert usage("text: x, usage: {input: 900, output: 12, cached: 800, reasoning: 5}") == Usage(
        input=900, output=12, cached=800, reasoning=5
    )
    assert usage("text: x, usage: none") is None
    cut = usage("text: x, finish: length", max_tokens=300)
    assert cut is not None
    assert cut.output == 300
    short = usage("text: " + "x" * 400, max_tokens=20)
    assert short is not None
    assert short.output == 20


@pytest.mark.parametrize("finish", ["stop", "length", "refused"])
def test_finish(finish: str) -> None:
    answer, _ = provider(f"rules:\n- {{text: x, finish: {finish}}}\n").answer("a", 1, request())
    assert isinstance(answer, Reply)
    assert answer.finish == finish


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("429", CallFailed(kind="rate_limit", message="the fake provider's rate limit", status=429)),
        ("rate_limit", CallFailed(kind="rate_limit", message="the fake provider's rate limit", status=429)),
        ("timeout", CallFailed(kind="timeout", message="the fake provider's timeout")),
        ("500", CallFailed(kind="overloaded", message="the fake provider's overloaded", status=500)),
        (
            "{kind: rate_limit, retry_after: 1500ms, message: slow down}",
            CallFailed(kind="rate_limit", message="slow down", status=429, retry_after_s=1.5),
        ),
        ("{status: 402}", CallFailed(kind="bad_request", message="the fake provider's bad request", status=402)),
        ("{kind: cut, partial: half}", CallFailed(kind="cut", message="the fake provider's cut", partial="half")),
    ],
)
def test_errors(written: str, made: CallFailed) -> None:
    answer, latency_ms = provider(f"rules:\n- {{error: {written}, latency: 5ms}}\n").answer("a", 1, request())
    assert (answer, latency_ms) == (made, 5)


# ---------------------------------------------------------------- no rule


def test_a_question_that_no_rule_fits_says_what_came_close() -> None:
    made = provider(
        "rules:\n- {node: b, turn: 7, last: zzz, text: far}\n- {node: review, turn: 1, text: near}\n"
        "- {node: review, last: 'Timeout exceeded', text: near too}\n"
    )
    with pytest.raises(InputError) as caught:
        made.answer("review", 2, request("first", "it took too\nlong"), tries=3)
    [problem] = caught.value.problems
    assert "no rule answers node `review`, turn 2, try 3, attempt 1, model `fake/small`" in problem.message
    assert "whose last message is: it took too long" in problem.message
    assert problem.hint == (
        "the rule at line 3 wants turn: 1; the rule at line 4 wants last: Timeout exceeded; "
        "the rule at line 2 wants node: b and turn: 7 and last: zzz"
    )
    assert (problem.file, problem.line) == (FILE, 3)


def test_a_long_message_is_shown_by_its_ends() -> None:
    with pytest.raises(InputError) as caught:
        provider("rules: []\n").answer("a", 1, request("x" * 5000 + "the end"))
    [problem] = caught.value.problems
    assert problem.hint == "the file has no rules"
    assert problem.message.endswith("xxx the end".replace(" the", "the"))
    assert len(problem.message) < 400


# ---------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("[]\n", "", "a rules file is a mapping"),
        ("rule: []\n", "1:1", "did you mean `rules`?"),
        ("rules: {a: b}\n", "1:8", "`rules` is a list, not a mapping"),
        ("rules:\n- text\n", "2:3", "a rule is a mapping, not `text`"),
        ("rules:\n- {node: a}\n", "2:3", "this rule answers nothing"),
        ("rules:\n- {nod: a, text: x}\n", "2:4", "did you mean `node`?"),
        ("rules:\n- {text: x, json: 1}\n", "2:13", "`text` or `json`, not both"),
        ("rules:\n- {error: 429, text: x}\n", "2:16", "a rule with `error` has no `text`"),
        ("rules:\n- {error: 418}\n", "2:11", "418 is no status"),
        ("rules:\n- {error: rate_limt}\n", "2:11", "did you mean `rate_limit`?"),
        ("rules:\n- {error: {retry_after: 1s}}\n", "2:11", "an error has a `kind` or a `status`"),
        ("rules:\n- {error: {kind: cut, after: 1s}}\n", "2:23", "`after` is no key here"),
        ("rules:\n- {turn: 0, text: x}\n", "2:10", "0 is too small"),
        ("rules:\n- {turn: [1, two], text: x}\n", "2:14", "a whole number is wanted"),
        ("rules:\n- {last: '(', text: x}\n", "2:10", "no regular expression"),
        ("rules:\n- {latency: soon, text: x}\n", "2:13", "is no duration"),
        ("rules:\n- {latency: 2d, text: x}\n", "2:13", "too long"),
        ("rules:\n- {finish: tool_calls, text: x}\n", "2:12", "is wanted here"),
        ("rules:\n- {tools: Read}\n", "2:11", "a list of calls"),
        ("rules:\n- {tools: [Read]}\n", "2:12", "a call is one name with its arguments"),
        ("rules:\n- {tools: [{Read: [1]}]}\n", "2:19", "arguments are a mapping"),
        ("rules:\n- {usage: {input: -1}, text: x}\n", "2:19", "too small"),
        ("rules:\n- {usage: {input: 1, cached: 2}, text: x}\n", "2:11", "parts of `input`"),
        ("rules:\n- {usage: {tokens: 1}, text: x}\n", "2:12", "`tokens` is no key here"),
        ("rules:\n- {usage: 5, text: x}\n", "2:11", "write {input: 900, output: 12}, or none"),
        ("rules:\n- {usage: much, text: x}\n", "2:11", "tokens by name are wanted here, not `much`"),
        ("rules:\n- {text: x, text: y}\n", "2:13", "twice"),
    ],
)
def test_what_is_wrong_with_a_file_has_its_place(text: str, where: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        provider(text)
    shown = render(caught.value)
    assert words in shown
    assert f"{FILE}:{where}" in shown if where else FILE in shown


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        provider("rules:\n- {nod: a, turn: x}\n- {error: 1, text: y}\n- {text: fine}\nmore: 1\n")
    assert [(p.line, p.code) for p in caught.value.problems] == [
        (2, "bad-value"),
        (2, "unknown-key"),
        (2, "bad-value"),
        (3, "bad-value"),
        (3, "bad-value"),
        (5, "unknown-key"),
    ]


def test_a_request_with_tools_can_be_answered() -> None:
    asked = Request(model="m", messages=(), tools=tuple(catalogue(["Read"])))
    answer, _ = provider("rules:\n- {text: x}\n").answer("a", 1, asked)
    assert isinstance(answer, Reply)
    assert answer.usage is not None
    assert answer.usage.input > 100

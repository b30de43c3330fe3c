"""The loop: what an agent may do next and where it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.agent.gate import listed, name_of, with_ids
from dagrun.agent.loop import (
    START,
    Answered,
    CallModel,
    CallTool,
    Caps,
    Event,
    Finish,
    MoneyShort,
    State,
    Task,
    Ticked,
    ToolReturned,
    effect,
    fold,
    step,
)
from dagrun.agent.messages import TRANSIENT, CallFailed, ErrorKind, FinishReason, Message, Reply, ToolCall, Usage
from dagrun.agent.prompt import Briefing
from dagrun.agent.tools import catalogue
from dagrun.core.names import Json, Outcome
from dagrun.errors import BugError

TOOLS = tuple(catalogue(["Read", "Write", "Bash"]))
SCHEMA: Json = {"type": "object", "properties": {"found": {"type": "integer"}}, "required": ["found"]}
TASK = Task(briefing=Briefing(system="You work.", words=("Do it.",)), model="cheap", tools=TOOLS)
STRICT = replace(TASK, briefing=replace(TASK.briefing, schema=SCHEMA))


def call(name: str, id_: str = "c", /, **given: Json) -> ToolCall:
    return ToolCall(id=id_, name=name, arguments=given)


READ = call("Read", file_path="a")


def said(
    text: str = "", *calls: ToolCall, finish: FinishReason = "stop", usage: Usage | None = None, at_s: float = 0.0
) -> Answered:
    return Answered(Reply(text=text, tool_calls=calls, finish=finish, usage=usage), at_s=at_s)


def gave(number: int, text: str = "fine", *, ok: bool = True, at_s: float = 0.0) -> ToolReturned:
    return ToolReturned(number, ok, text, at_s)


def end(task: Task, *events: Event) -> Finish:
    found = effect(task, fold(task, events))
    assert isinstance(found, Finish), found
    return found


def model_call(task: Task, *events: Event) -> CallModel:
    found = effect(task, fold(task, events))
    assert isinstance(found, CallModel), found
    return found


def tool_call(task: Task, *events: Event) -> CallTool:
    found = effect(task, fold(task, events))
    assert isinstance(found, CallTool), found
    return found


def last(found: CallModel) -> str:
    return found.request.messages[-1].content


# ---------------------------------------------------------------- the way through


def test_it_begins_with_a_model_call_that_has_all_it_needs() -> None:
    found = model_call(replace(TASK, temperature=0.5, max_tokens=1000))
    assert (found.turn, found.tier, found.least_tokens) == (1, "cheap", 256)
    assert [m.role for m in found.request.messages] == ["system", "user"]
    assert (found.request.tools, found.request.max_tokens, found.request.temperature) == (TOOLS, 1000, 0.5)
    assert found.request.messages == found.prompt.messages


def test_without_a_schema_the_last_word_is_the_result() -> None:
    assert end(TASK, said("done")) == Finish(outcome=Outcome.COMPLETED, text="done")


def test_calls_of_one_reply_are_carried_out_in_their_order() -> None:
    one, two = call("Read", "x", file_path="a"), call("Write", "y", file_path="b", content="")
    events: list[Event] = [said("both", one, two)]
    assert tool_call(TASK, *events) == CallTool(1, 1, one)
    events.append(gave(1, "A"))
    assert tool_call(TASK, *events) == CallTool(2, 1, two)
    events.append(gave(2, "no room", ok=False))
    found = model_call(TASK, *events)
    assert found.turn == 2
    assert found.request.messages[2:] == (
        Message(role="assistant", content="both", tool_calls=(one, two)),
        Message(role="tool", content="A", tool_call_id="x"),
        Message(role="tool", content="error: no room", tool_call_id="y"),
    )
    assert tool_call(TASK, *events, said("", READ)).number == 3


def test_what_a_reply_says_about_its_own_end_does_not_matter() -> None:
    assert tool_call(TASK, said("", READ, finish="stop")).call == READ
    assert end(TASK, said("done", finish="tool_calls")).outcome is Outcome.COMPLETED


# ---------------------------------------------------------------- tools that are not let through


RULES = (("Read", "Bash(git:*)", "mcp__db__*"), ("Read(src/**)", "Bash", "mcp__db__query", "Write"))


def test_tools_are_listed_where_every_rule_names_some_call_of_them() -> None:
    assert [name_of(tool) for tool in listed(TOOLS, RULES)] == ["Read", "Bash"]
    db: list[Json] = [{"type": "function", "function": {"name": f"mcp__db__{name}"}} for name in ("query", "drop")]
    assert [name_of(tool) for tool in listed(db, RULES)] == ["mcp__db__query"]
    assert listed(TOOLS, ()) == TOOLS
    assert listed(TOOLS, ((),)) == ()
    assert [name_of(tool) for tool in model_call(replace(TASK, rules=RULES)).request.tools] == ["Read", "Bash"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (call("Write", file_path="src/a", content=""), "there is no tool 'Write': there are Read, Bash"),
        (call("rm -rf\n"), "there is no tool 'rm -rf\\n'"),
        (call("Read", file_path="etc/passwd"), "not permitted: Read may be called as 'Read(src/**)'"),
        (call("Read", file_path="src/../etc"), "not permitted"),
        (call("Bash", command="git status; rm x"), "'Bash(git:*)', and only as one simple command"),
        (call("Bash", command="ls"), "not permitted"),
        (ToolCall(id="c", name="Read", arguments=None, text='{"file_path": '), "no JSON object: '{\"file_path\": '"),
    ],
)
def test_a_call_that_is_not_let_through_is_told_to_the_model_and_counted(wanted: ToolCall, words: str) -> None:
    task = replace(TASK, rules=RULES, caps=Caps(tool_calls=2))
    found = model_call(task, said("", wanted))
    assert found.request.messages[-1].role == "tool"
    assert last(found).startswith("error: ")
    assert words in last(found)
    assert fold(task, [said("", wanted)]).calls == 1
    assert end(task, said("", wanted), said("", wanted, wanted)).limit == "tool_calls"


def test_refused_and_permitted_calls_of_one_reply_keep_their_order() -> None:
    task = replace(TASK, rules=RULES)
    bad, good = call("Read", "b", file_path="x"), call("Bash", "g", command="git log")
    first = [said("", bad, good, bad)]
    assert tool_call(task, *first) == CallTool(2, 1, good)
    results = model_call(task, *first, gave(2, "log")).request.messages[-3:]
    assert [m.content[:5] for m in results] == ["error", "log", "error"]


def test_absolute_paths_in_the_project_are_relative_ones() -> None:
    task = replace(TASK, rules=RULES, project="/p")
    assert tool_call(task, said("", call("Read", file_path="/p/src/a"))).number == 1
    assert "not permitted" in last(model_call(task, said("", call("Read", file_path="/q/src/a"))))


def test_ids_of_calls_are_made_unique() -> None:
    calls = (call("Read", ""), call("Read", "x"), call("Read", "x"), call("Read", "call_3_1"))
    assert [c.id for c in with_ids(calls, 3)] == ["call_3_1", "x", "call_3_3", "call_3_4"]
    assert with_ids([ToolCall(id="x", name="Read", arguments={}, text="{}")], 1) == (call("Read", "x"),)


def test_results_are_cut_to_size() -> None:
    task = replace(TASK, caps=Caps(result_bytes=300))
    shown = last(model_call(task, said("", READ), gave(1, "a" * 5000 + "z" * 5000)))
    assert shown == "a" * 200 + "\n[… 9,700 bytes are left out here …]\n" + "z" * 100


# ---------------------------------------------------------------- caps


def test_turns_are_capped_and_the_last_one_runs_no_tools() -> None:
    task = replace(TASK, caps=Caps(turns=2))
    found = end(task, said("one", READ), gave(1), said("two", READ))
    assert (found.outcome, found.limit, found.text) == (Outcome.OVER_LIMIT, "turns", "two")
    assert end(task, said("one", READ), gave(1), said("two")).outcome is Outcome.COMPLETED


def test_tool_calls_are_capped_before_any_of_the_reply_is_run() -> None:
    task = replace(TASK, caps=Caps(tool_calls=2))
    assert tool_call(task, said("", READ, READ)).number == 1
    found = end(task, said("", READ, READ, READ))
    assert (found.outcome, found.limit) == (Outcome.OVER_LIMIT, "tool_calls")
    assert fold(task, [said("", *[call("Nonsense")] * 3)]).turns[-1].results == ()
    assert end(task, said("", READ, READ), gave(1), gave(2), said("done")).outcome is Outcome.COMPLETED


def test_tokens_are_capped_and_leave_no_more_room_than_there_is() -> None:
    task = replace(TASK, caps=Caps(tokens=5000))
    first = said("", READ, usage=Usage(input=3000, output=1000))
    assert model_call(task, first, gave(1)).request.max_tokens == 1000
    over = end(task, first, gave(1), said("done", usage=Usage(input=900, output=101)))
    assert (over.outcome, over.limit, over.text) == (Outcome.OVER_LIMIT, "tokens", "done")
    assert end(task, first, gave(1), said("done", usage=Usage(input=900, output=100))).outcome is Outcome.COMPLETED
    assert end(task, said("", READ, usage=Usage(input=5000))).limit == "tokens"
    cut = end(task, first, gave(1), said("half", finish="length", usage=Usage(input=0, output=1000)))
    assert (cut.outcome, cut.limit) == (Outcome.OVER_LIMIT, "tokens")


def test_usage_that_is_missing_counts_as_the_most_it_can_be() -> None:
    task = replace(TASK, caps=Caps(tokens=100_000))
    asked = model_call(task).request
    most = len(asked.canonical().encode()) + asked.max_tokens
    assert fold(task, [said("", READ)]).tokens == most
    assert fold(task, [replace(said("", READ), max_tokens=300)]).tokens == most - asked.max_tokens + 300


@pytest.mark.parametrize("event", [said("x" * 1001), said("", call("Write", content="x" * 1001))])
def test_all_that_is_said_is_capped(event: Answered) -> None:
    found = end(replace(TASK, caps=Caps(transcript_bytes=1000)), event)
    assert (found.outcome, found.limit) == (Outcome.OVER_LIMIT, "output")


def test_results_count_as_what_is_said() -> None:
    task = replace(TASK, caps=Caps(transcript_bytes=1000))
    assert end(task, said("", READ), gave(1, "x" * 1000)).limit == "output"


def test_time_is_capped_whatever_comes_too_late() -> None:
    task = replace(TASK, caps=Caps(time_s=60.0))
    for events in (
        [Ticked(60.0)],
        [said("done", at_s=60.0)],
        [said("", READ, at_s=61.0)],
        [said("half", READ), Ticked(59.9), gave(1, at_s=75.0)],
    ):
        assert end(task, *events).outcome is Outcome.TIMED_OUT
    assert end(task, said("half", READ), Ticked(70.0)).text == "half"
    assert end(task, Ticked(30.0), said("done", at_s=59.9)).outcome is Outcome.COMPLETED
    assert model_call(TASK, Ticked(1e9)).turn == 1


# ---------------------------------------------------------------- structured answers


def test_a_valid_answer_becomes_outputs() -> None:
    found = end(STRICT, said('So: {"found": 3}'))
    assert (found.outcome, found.outputs) == (Outcome.COMPLETED, {"found": 3})
    assert model_call(STRICT).request.schema == SCHEMA


def test_two_reminders_then_the_end_with_all_that_was_said() -> None:
    found = model_call(STRICT, said("no"))
    assert last(found).startswith("Your answer is not valid")
    assert found.turn == 2
    found = model_call(STRICT, said("no"), said("{}"))
    assert "`found` is missing" in last(found)
    assert last(found).endswith("This is the last try.")
    ended = end(STRICT, said("no"), said("{}"), said("[]"))
    assert (ended.outcome, ended.rejected, ended.text) == (Outcome.INVALID_OUTPUT, ("no", "{}", "[]"), "[]")
    assert end(STRICT, said("no"), said("{}"), said('{"found": 1}')).outputs == {"found": 1}


def test_reminders_are_no_turns_but_tools_after_one_are() -> None:
    task = replace(STRICT, caps=Caps(turns=1))
    assert end(task, said("no"), said("no"), said('{"found": 1}')).outcome is Outcome.COMPLETED
    assert end(task, said("no"), said("", READ)).limit == "turns"
    task = replace(STRICT, caps=Caps(turns=2))
    again = (said("no"), said("", READ), gave(1))
    assert end(task, *again, said('{"found": 1}')).outcome is Outcome.COMPLETED
    assert end(task, *again, said("no"), said("no")).outcome is Outcome.INVALID_OUTPUT
    assert end(task, *again, said("", READ)).limit == "turns"


def test_a_cap_that_was_hit_beats_a_valid_answer() -> None:
    task = replace(STRICT, caps=Caps(tokens=10))
    found = end(task, said('{"found": 1}', usage=Usage(input=10, output=1)))
    assert (found.outcome, found.outputs) == (Outcome.OVER_LIMIT, None)


# ---------------------------------------------------------------- cut, refused, failed, no money


CUT = said("half an ans", finish="length")


def test_an_answer_that_is_cut_off_is_asked_for_once_more_with_more_room() -> None:
    task = replace(TASK, max_tokens=1000, max_tokens_once=8000)
    found = model_call(task, CUT)
    assert (found.turn, found.request.max_tokens, found.least_tokens) == (1, 8000, 1001)
    assert found.request.messages == model_call(task).request.messages
    assert end(task, CUT, said("the answer")) == Finish(outcome=Outcome.COMPLETED, text="the answer")
    again = end(task, CUT, said("half again", finish="length"))
    assert (again.outcome, again.text) == (Outcome.TRUNCATED, "half again")
    # the room stays, and there is no second raise
    later = model_call(task, CUT, said("", READ), gave(1))
    assert (later.request.max_tokens, later.least_tokens) == (8000, 256)
    assert end(task, CUT, said("", READ), gave(1), CUT).outcome is Outcome.TRUNCATED
    short = end(task, CUT, said("whole", READ), gave(1), MoneyShort("no money"))
    assert (short.outcome, short.text) == (Outcome.OVER_BUDGET, "whole")


def test_a_raise_is_no_turn() -> None:
    task = replace(TASK, max_tokens_once=8000, caps=Caps(turns=1))
    assert end(task, CUT, said("done")).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("once", [None, 4096, 100])
def test_without_a_higher_limit_a_cut_answer_is_the_end(once: int | None) -> None:
    found = end(replace(TASK, max_tokens_once=once), CUT)
    assert (found.outcome, found.text) == (Outcome.TRUNCATED, "half an ans")


def test_calls_in_a_cut_answer_are_never_run() -> None:
    assert end(TASK, said("", READ, finish="length")).outcome is Outcome.TRUNCATED


def test_a_raise_that_is_not_affordable_leaves_a_cut_answer() -> None:
    found = end(replace(TASK, max_tokens_once=8000), CUT, MoneyShort("$0.01 are left of `cost_budget`"))
    assert (found.outcome, found.text) == (Outcome.TRUNCATED, "half an ans")
    assert "$0.01 are left" in found.error


def test_no_money_is_the_end_and_keeps_what_was_said() -> None:
    found = end(STRICT, said("I begin", READ), gave(1), said("no"), MoneyShort("nothing is left"))
    assert found.outcome is Outcome.OVER_BUDGET
    assert (found.text, found.error, found.rejected) == ("no", "nothing is left", ("no",))


def test_a_refusal_is_an_end_of_its_own() -> None:
    found = end(STRICT, said("I won't", finish="refused"))
    assert (found.outcome, found.text) == (Outcome.REFUSED, "I won't")


KINDS: list[ErrorKind] = ["rate_limit", "overloaded", "timeout", "cut", "bad_request", "context_too_long", "auth"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_provider_is_the_end(kind: ErrorKind) -> None:
    found = end(TASK, Answered(CallFailed(kind=kind, message="so it is", partial="half")))
    assert (found.outcome, found.kind, found.text) == (Outcome.FAILED, kind, "half")
    assert found.transient is (kind in TRANSIENT)
    assert "so it is" in found.error


def test_more_usage_than_was_reserved_is_a_matter_of_money() -> None:
    assert end(TASK, Answered(CallFailed(kind="unbounded", message="m"))).outcome is Outcome.OVER_BUDGET


# ---------------------------------------------------------------- order and record


@pytest.mark.parametrize(
    "events",
    [
        [gave(1)],
        [said("", READ), said("x")],
        [said("", READ), gave(2)],
        [said("", READ), MoneyShort("")],
        [said("x"), said("y")],
        [said("x"), Ticked(1.0)],
    ],
)
def test_events_that_answer_nothing_are_a_bug(events: list[Event]) -> None:
    with pytest.raises(BugError):
        fold(TASK, events)


CALLS = st.builds(
    lambda name, given, broken: ToolCall(
        id="i",
        name=name,
        arguments=None if broken else {"file_path": given, "command": given},
        text=given if broken else "",
    ),
    st.sampled_from(["Read", "Write", "Bash", "Grep", "no such", ""]),
    st.sampled_from(["src/a", "git status", "rm x", "", "\ud800"]),
    st.booleans(),
)
FINISHES: list[FinishReason] = ["stop", "stop", "tool_calls", "length", "refused"]
MOVES = st.one_of(
    st.builds(
        lambda text, calls, finish, usage: Reply(text=text, tool_calls=tuple(calls), finish=finish, usage=usage),
        st.sampled_from(["", "no", '{"found": 1}', "x" * 400, "\ud800"]),
        st.lists(CALLS, max_size=3),
        st.sampled_from(FINISHES),
        st.sampled_from([None, Usage(input=50, output=20)]),
    ),
    st.sampled_from([CallFailed(kind="overloaded", message="m"), "short", "tick"]),
)
TASKS = st.builds(
    lambda schema, once, rules, caps: Task(
        briefing=Briefing(words=("Go.",), schema=schema), tools=TOOLS, rules=rules, max_tokens_once=once, caps=caps
    ),
    st.sampled_from([None, SCHEMA]),
    st.sampled_from([None, 9000]),
    st.sampled_from([(), RULES]),
    st.builds(
        Caps,
        turns=st.integers(1, 4),
        tool_calls=st.integers(0, 5),
        tokens=st.sampled_from([None, 300, 100_000]),
        transcript_bytes=st.sampled_from([500, 100_000]),
        time_s=st.sampled_from([None, 20.0]),
    ),
)


def played(task: Task, moves: list[Reply | CallFailed | Literal["short", "tick"]]) -> tuple[list[Event], State]:
    """What happens when a model (and time, and money) does these things, with tools that always work."""
    events: list[Event] = []
    state = START
    todo = list(reversed(moves))
    while not isinstance(due := effect(task, state), Finish) and (todo or isinstance(due, CallTool)):
        at_s = float(len(events))
        if isinstance(due, CallTool):
            event: Event = ToolReturned(due.number, len(events) % 3 > 0, f"result {due.number}", at_s)
        else:
            match todo.pop():
                case "short":
                    event = MoneyShort("short", at_s)
                case "tick":
                    event = Ticked(at_s)
                case answer:
                    event = Answered(answer, at_s=at_s)
        events.append(event)
        state = step(task, state, event)
    return events, state


@given(TASKS, st.lists(MOVES, max_size=25))
def test_no_agent_gets_past_its_caps(task: Task, moves: list[Reply | CallFailed | Literal["short", "tick"]]) -> None:
    events, state = played(task, moves)
    caps = task.caps
    answers = [e for e in events if isinstance(e, Answered)]
    assert len(answers) <= caps.turns + 3  # two reminders and one raise
    assert sum(isinstance(e, ToolReturned) for e in events) <= caps.tool_calls
    if caps.time_s is not None:
        assert all(e.at_s <= caps.time_s for e in events)
    if len(answers) > 3 + caps.turns - 1:
        assert state.ended is not None
    if state.ended is not None and state.ended.outcome is Outcome.COMPLETED:
        assert state.calls <= caps.tool_calls
        assert state.counted <= caps.turns
        assert state.transcript_bytes <= caps.transcript_bytes
        assert caps.tokens is None or state.tokens <= caps.tokens
        assert task.briefing.schema is None or state.ended.outputs == {"found": 1}
    if state.ended is not None:
        assert (state.ended.outcome is Outcome.OVER_LIMIT) == bool(state.ended.limit)


@given(TASKS, st.lists(MOVES, max_size=25))
def test_a_state_is_the_fold_of_its_record(
    task: Task, moves: list[Reply | CallFailed | Literal["short", "tick"]]
) -> None:
    events, state = played(task, moves)
    assert fold(task, events) == state
    assert effect(task, fold(task, events)) == effect(task, state)
    for k in range(len(events) + 1):
        assert fold(task, events[k:], fold(task, events[:k])) == state


@given(TASKS, st.lists(MOVES, max_size=25))
def test_every_result_belongs_to_a_call(task: Task, moves: list[Reply | CallFailed | Literal["short", "tick"]]) -> None:
    _, state = played(task, moves)
    if state.ended is None:
        due = effect(task, state)
        assert isinstance(due, CallModel)
        open_ids: list[str] = []
        for message in due.request.messages:
            if message.role == "tool":
                assert open_ids.pop(0) == message.tool_call_id
            else:
                assert open_ids == []
                open_ids = [call.id for call in message.tool_calls]
                assert len(set(open_ids)) == len(open_ids)
        assert open_ids == []

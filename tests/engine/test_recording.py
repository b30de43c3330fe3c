"""What a record says of each attempt: what a replay repeats, what a resume need not buy again, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from dagrun.agent.messages import ToolCall
from dagrun.agent.prompt import ToolOutput
from dagrun.agent.replay import Recording, Replay, ReplayMiss
from dagrun.core.event import CallEnded, CallReserved, ToolEnded
from dagrun.core.names import Outcome
from dagrun.engine.recordfile import lines, parse
from dagrun.engine.recording import Record, calls_of, recording_of, repeated, trials_of
from dagrun.engine.reuse import Reuse, reusable
from dagrun.errors import InputError, JournalError

from .recorded import RATE, Story, asks, says

READ = ToolCall(id="1", name="Read", arguments={"file_path": "x"})


def recording(record: Record) -> Recording:
    return recording_of(record, trials_of(record))


def answers(record: Record) -> list[str]:
    """What a replay would say to the node, in its order."""
    return [getattr(call.answer, "text", "") or getattr(call.answer, "kind", "") for call in recording(record).calls]


# ---------------------------------------------------------------- what a replay repeats


def test_calls_tools_and_whole_requests_in_their_order() -> None:
    story = Story().start().ask(asks("q"), says("look")).tool(1, "Read", {"file_path": "x"}, "inside")
    found = recording(story.ask(asks("q", "look", "inside"), says("done")).end().record())
    assert [c.request for c in found.calls] == [asks("q"), asks("q", "look", "inside")]
    assert [c.number for c in found.calls] == [1, 2]
    assert found.tools[0].output == ToolOutput(True, "inside")
    replay = Replay(found)
    assert replay.answer("a", asks("q")) == says("look")
    assert replay.tool("a", READ) == ToolOutput(True, "inside")
    assert replay.answer("a", asks("q", "look", "inside")) == says("done")
    assert replay.unused() == {}
    with pytest.raises(ReplayMiss):
        replay.answer("a", asks("q"))


def test_a_retry_is_repeated_with_the_answers_of_its_own() -> None:
    story = Story().start().ask(asks("q"), says("bad")).end(Outcome.INVALID_OUTPUT)
    record = story.start().ask(asks("q"), says("good")).end().record()
    assert answers(record) == ["bad", "good"]


def test_errors_are_answers_and_a_repeated_call_is_asked_again() -> None:
    record = Story().start().ask(asks("q"), RATE).ask(asks("q"), says("ok"), tries=2).end().record()
    assert answers(record) == ["rate_limit", "ok"]


def test_what_was_bought_before_a_crash_is_given_once() -> None:
    story = Story().start().ask(asks("q"), says("one")).ask(asks("q", "2")).crash()
    record = story.start().ask(asks("q"), says("one"), reused="1/1").ask(asks("q", "2"), says("two")).end().record()
    assert answers(record) == ["one", "two"]
    assert [t.number for t in repeated(trials_of(record)["a"])] == [2]


def test_an_interrupted_attempt_is_not_repeated() -> None:
    story = Story().start().ask(asks("q"), says("one")).interrupt()
    record = story.start().ask(asks("q"), says("one"), reused="1/1").end().record()
    assert answers(record) == ["one"]


def test_an_attempt_that_ended_for_good_before_a_crash_stays() -> None:
    story = Story().start().ask(asks("q"), says("bad")).end(Outcome.FAILED)
    record = story.start().ask(asks("q"), says("lost")).crash().start().ask(asks("q"), says("ok")).end().record()
    assert answers(record) == ["bad", "ok"]


def test_lost_attempts_that_ended_the_node_are_all_repeated() -> None:
    story = Story()
    for _ in range(3):
        story.start().ask(asks("q"), says("x")).crash()
    assert [t.number for t in repeated(trials_of(story.record())["a"])] == [1, 2, 3]


def test_a_run_that_was_never_taken_up_again_has_what_it_got() -> None:
    record = Story().start().ask(asks("q"), says("one")).ask(asks("q", "2")).record()
    assert answers(record) == ["one"]
    call = calls_of(record, trials_of(record)["a"][0])[1]
    assert (call.answer, call.request) == (None, asks("q", "2"))


# ---------------------------------------------------------------- what is refused


def altered(record: Record, kind: type, **fields: object) -> Record:
    """The record with other values in its last event of a kind."""
    told = list(record.told)
    at = max(k for k, one in enumerate(told) if isinstance(one.event, kind))
    told[at] = told[at]._replace(event=replace(told[at].event, **fields))  # type: ignore[arg-type]
    return replace(record, told=tuple(told))


@pytest.fixture
def talk() -> Record:
    story = Story().start().ask(asks("q"), says("look")).tool(1, "Read", {"file_path": "x"}, "inside")
    return story.ask(asks("q", "inside"), says("done")).end().record()


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (CallReserved, {"digest": "0" * 64}, "attempt 1, call 2: the request that was kept is not"),
        (CallReserved, {"request": {}}, "attempt 1, call 2: its request is not in the record"),
        (CallReserved, {"request": {"v": {"keep": 9, "messages": []}}}, "call 2: this is no model call"),
        (CallReserved, {"model": "v/other"}, "call 2: the request that was kept is for another model"),
        (CallEnded, {"answer": {"v": {"finish": 1}}}, "call 2: what was kept is no answer"),
        (ToolEnded, {"text": {"v": 7}}, "tool call 1: what was kept is no result"),
    ],
)
def test_what_does_not_fit_is_named(talk: Record, kind: type, fields: dict[str, object], said: str) -> None:
    with pytest.raises(JournalError) as caught:
        recording(altered(talk, kind, **fields))
    assert "node a" in caught.value.message
    assert said in caught.value.message


# ---------------------------------------------------------------- one file


def test_a_file_holds_the_same_record(talk: Record) -> None:
    again = parse(lines(talk), "run.jsonl")
    assert recording(again) == recording(talk)
    assert again.workflow == talk.workflow
    assert list(lines(again)) == list(lines(talk))


def test_a_large_value_stands_in_the_file_once_and_is_held_to_its_digest() -> None:
    from hashlib import sha256

    from dagrun.store.context import encoded

    text = "x" * 9000
    sha = sha256(encoded(text)).hexdigest()
    story = Story().start().ask(asks("q"), says("look")).tool(1, "Read", {}, "").end()
    ref = {"sha": sha, "size": 9002}
    record = replace(
        altered(story.record(), ToolEnded, text=ref), value=lambda r: text if "sha" in r else cast(str, r["v"])
    )
    written = list(lines(record))
    assert sum("x" * 9000 in line for line in written) == 1
    assert recording(parse(written)).tools[0].output.text == text
    changed = [line.replace("xxx", "xxy", 1) if line.startswith('{"sha"') else line for line in written]
    with pytest.raises(InputError) as caught:
        parse(changed, "run.jsonl")
    assert caught.value.problems[0].line == 2
    assert "its digest does not match" in caught.value.problems[0].message


@pytest.mark.parametrize(
    "broken",
    [[], ["nothing"], ['{"v": 2}'], ['{"v":1,"record":"r","workflow":{"name":"w","nodes":{}}}'], ["[]"]],
)
def test_a_file_that_is_no_record_is_refused(broken: list[str]) -> None:
    with pytest.raises(InputError):
        parse(broken, "run.jsonl")


def test_a_file_that_was_cut_in_a_line_names_that_line(talk: Record) -> None:
    written = list(lines(talk))
    with pytest.raises(InputError) as caught:
        parse([*written[:-1], written[-1][:-5]], "run.jsonl")
    assert caught.value.problems[0].line == len(written)


# ---------------------------------------------------------------- what a resume need not buy again


def reuse(story: Story) -> Reuse:
    return reusable(story.record())["a"]


def test_nothing_is_reused_of_an_attempt_that_ended_by_itself() -> None:
    assert reusable(Story().start().ask(asks("q"), says("x")).end(Outcome.FAILED).record()) == {}
    assert reusable(Story().start().crash().record()) == {}


def test_replies_and_results_are_given_again_in_their_order() -> None:
    story = Story().start().ask(asks("q"), says("look")).tool(1, "Read", {"file_path": "x"}, "inside")
    found = reuse(story.ask(asks("q", "2"), says("two")).ask(asks("q", "3")).crash())
    first = found.reply(asks("q", model=""))
    assert first is not None
    assert (first.reply, first.model, first.origin) == (says("look"), "v/m", "1/1")
    returned = found.tool(1, READ)
    assert returned is not None
    assert (returned.output.text, returned.origin) == ("inside", "1/1")
    assert found.reply(asks("q", "2")) is not None
    assert found.reply(asks("q", "3")) is None  # it was asked and never answered


def test_the_first_difference_ends_it() -> None:
    story = Story().start().ask(asks("q"), says("one")).ask(asks("q", "2"), says("two")).crash()
    found = reuse(story)
    assert found.reply(asks("Q")) is None
    assert found.reply(asks("q")) is None
    found = reuse(story)
    assert found.tool(1, READ) is None
    assert found.reply(asks("q")) is None


@pytest.mark.parametrize(
    "call",
    [
        (2, READ),
        (1, replace(READ, name="Grep")),
        (1, replace(READ, arguments={"file_path": "y"})),
    ],
)
def test_another_tool_call_is_done_anew(call: tuple[int, ToolCall]) -> None:
    story = Story().start().ask(asks("q"), says("look")).tool(1, "Read", {"file_path": "x"}, "inside").crash()
    found = reuse(story)
    assert found.reply(asks("q")) is not None
    assert found.tool(*call) is None


def test_an_error_is_not_reused_but_what_came_after_it_is() -> None:
    story = Story().start().ask(asks("q"), RATE).ask(asks("q", model="v/other"), says("ok"), tries=2).crash()
    found = reuse(story).reply(asks("q"))
    assert found is not None
    assert (found.reply, found.model, found.origin) == (says("ok"), "v/other", "1/2")


def test_a_longer_answer_than_is_wanted_now_is_not_taken() -> None:
    story = Story().start().ask(asks("q", max_tokens=100), says("x")).crash()
    assert reuse(story).reply(asks("q", max_tokens=50)) is None
    found = reuse(story).reply(asks("q", max_tokens=200))
    assert found is not None
    assert found.max_tokens == 100


def test_an_attempt_that_died_early_does_not_hide_what_the_one_before_had_bought() -> None:
    story = Story().start().ask(asks("q"), says("one")).ask(asks("q", "2"), says("two")).crash()
    story.start().ask(asks("q"), says("one"), reused="1/1").crash()
    found = reuse(story)
    first, second = found.reply(asks("q")), found.reply(asks("q", "2"))
    assert first is not None
    assert first.origin == "2/1"
    assert second is not None
    assert (second.reply, second.origin) == (says("two"), "1/2")


def test_what_was_bought_before_the_last_real_end_is_not_for_the_next_attempt() -> None:
    story = Story().start().ask(asks("q"), says("old")).crash().start().end(Outcome.FAILED)
    assert reusable(story.start().crash().record()) == {}

"""Replay: the same questions get the recorded answers, any other is a miss that can be understood.

Whole agents run here: the loop, the fake provider and the real tools on a folder, played again from the
record without provider or tools.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from dagrun.agent import fake
from dagrun.agent.beneath import Roots, ToolError
from dagrun.agent.loop import START, Answered, CallModel, Event, Finish, Task, ToolReturned, effect, fold
from dagrun.agent.messages import Answer, CallFailed, Message, Reply, Request, ToolCall
from dagrun.agent.prompt import Briefing, ToolOutput, words_of
from dagrun.agent.replay import (
    RecordedCall,
    RecordedTool,
    Recording,
    Replay,
    ReplayMiss,
    canonical,
    difference,
    tool_difference,
)
from dagrun.agent.tools import catalogue
from dagrun.agent.toolworker import TOOLS
from dagrun.core import expression as ex
from dagrun.core.names import Json, Outcome

SCHEMA: Json = {"type": "object", "properties": {"bugs": {"type": "integer"}}, "required": ["bugs"]}
RULES = """\
rules:
  - {node: fixer, turn: 1, try: 1, error: {kind: rate_limit, retry_after: 2s}}
  - {node: fixer, turn: 1, text: I look., tools: [{Grep: {pattern: BUG, path: src}}, {Read: {file_path: src/a.py}}]}
  - node: fixer
    last: "x = 1  # BUG"
    tools:
      - {Edit: {file_path: src/a.py, old_string: "  # BUG", new_string: ""}}
      - {Write: {file_path: /etc/passwd, content: mine}}
      - {Read: {file_path: ../outside}}
      - {Write: {file_path: out/log.txt, content: "fixed one"}}
  - {node: fixer, last: "made out/log.txt", tools: [{Grep: {pattern: BUG, path: src}}]}
  - {node: fixer, last: "^no match", text: "Fixed it, I think."}
  - {node: fixer, last: "not valid against", text: '{"bugs": 1}'}
"""


@dataclass
class Place:
    """A project folder, a provider and the tools: what a live run has. Counts what it is asked."""

    project: Path
    rules: str = RULES
    bought: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def answer(self, request: Request, turn: int, tries: int) -> Answer:
        answer, _ = fake.load(self.rules.encode(), "rules.yaml").answer("fixer", turn, request, tries=tries)
        if isinstance(answer, Reply):
            self.bought.append(request.digest())
        return answer

    def tool(self, call: ToolCall) -> ToolOutput:
        self.ran.append(json.dumps([call.name, call.arguments]))
        roots = Roots(str(self.project), [str(self.project)], [str(self.project)], [])
        try:
            return ToolOutput(True, TOOLS[call.name](roots, dict(call.arguments or {}), 30_000))
        except ToolError as error:
            return ToolOutput(False, str(error))


@dataclass
class Kept:
    """What a run leaves: the events of the attempt, the record of its calls."""

    events: list[Event] = field(default_factory=list)
    calls: list[RecordedCall] = field(default_factory=list)
    tools: list[RecordedTool] = field(default_factory=list)

    @property
    def recording(self) -> Recording:
        return Recording(tuple(self.calls), tuple(self.tools))


def asked(number: int, request: Request, answer: Answer, node: str = "a") -> RecordedCall:
    return RecordedCall(node=node, number=number, digest=request.digest(), answer=answer, request=request)


def used(number: int, call: ToolCall, output: ToolOutput, node: str = "a") -> RecordedTool:
    arguments = canonical(dict(call.arguments or {}))
    return RecordedTool(node=node, number=number, name=call.name, arguments=arguments, output=output)


def task_of(project: Path, words: str = "Fix what ${{ inputs.report }} says.") -> Task:
    scope = ex.Scope(inputs={"report": "There is a BUG in src."})
    return Task(
        briefing=Briefing(system="You repair.", words=words_of(words, scope), inputs=dict(scope.inputs), schema=SCHEMA),
        model="cheap",
        tools=tuple(catalogue(["Read", "Grep", "Edit", "Write", "Bash"])),
        rules=(("Read", "Grep", "Edit", "Write(out/**)"),),
        project=str(project),
    )


def run(task: Task, place: Place, kept: Kept) -> Finish:
    """Drive an agent, as an engine does."""
    state = START
    while not isinstance(due := effect(task, state), Finish):
        if isinstance(due, CallModel):
            event: Event = Answered(_answer(due, place, kept))
        else:
            output = place.tool(due.call)
            kept.tools.append(used(due.number, due.call, output, "fixer"))
            event = ToolReturned(due.number, output.ok, output.text)
        state = fold(task, [event], state)
        kept.events.append(event)
    return due


def _answer(due: CallModel, place: Place, kept: Kept) -> Answer:
    """A model call with its tries, as a router makes them, each recorded as soon as it is over."""
    request = replace(due.request, model="fake/small")
    for tries in (1, 2, 3):
        answer = place.answer(request, due.turn, tries)
        kept.calls.append(asked(len(kept.calls) + 1, request, answer, "fixer"))
        if isinstance(answer, Reply):
            break
    return answer


def play(task: Task, replay: Replay) -> tuple[Finish, list[Event]]:
    """The same agent from a recording: there is no provider and no tool."""
    state, events = START, list[Event]()
    while not isinstance(due := effect(task, state), Finish):
        if isinstance(due, CallModel):
            request = replace(due.request, model="fake/small")
            answer = replay.answer("fixer", request)
            while isinstance(answer, CallFailed):
                answer = replay.answer("fixer", request)
            event: Event = Answered(answer)
        else:
            output = replay.tool("fixer", due.call)
            event = ToolReturned(due.number, output.ok, output.text)
        state = fold(task, [event], state)
        events.append(event)
    return due, events


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], Place]:
    """Makes a place, always the same, at the same path."""

    def made() -> Place:
        project = tmp_path / "project"
        shutil.rmtree(project, ignore_errors=True)
        (project / "src").mkdir(parents=True)
        (project / "src/a.py").write_text("x = 1  # BUG\n")
        (tmp_path / "outside").write_text("secret\n")
        return Place(project)

    return made


# ---------------------------------------------------------------- whole agents


def test_a_whole_agent_repairs_a_file(make: Callable[[], Place]) -> None:
    place, kept = make(), Kept()
    found = run(task_of(place.project), place, kept)
    assert (found.outcome, found.outputs, found.rejected) == (Outcome.COMPLETED, {"bugs": 1}, ("Fixed it, I think.",))
    assert (place.project / "src/a.py").read_text() == "x = 1\n"
    assert (place.project / "out/log.txt").read_text() == "fixed one"
    # the call that the rules forbid never reached a tool, the path outside was refused by it
    assert [json.loads(line)[0] for line in place.ran] == ["Grep", "Read", "Edit", "Read", "Write", "Grep"]
    assert "secret" not in str(kept.events)


# ---------------------------------------------------------------- replay of them


@pytest.fixture
def recorded(make: Callable[[], Place]) -> tuple[Task, Kept, Finish]:
    place, kept = make(), Kept()
    task = task_of(place.project)
    found = run(task, place, kept)
    shutil.rmtree(place.project)
    return task, kept, found


def test_a_recorded_agent_plays_again_without_provider_and_tools(recorded: tuple[Task, Kept, Finish]) -> None:
    task, kept, found = recorded
    replay = Replay(kept.recording)
    ended, events = play(task, replay)
    assert ended == found
    assert events == kept.events
    assert replay.unused() == {}


def test_one_changed_word_of_a_prompt_is_a_miss_that_shows_it(recorded: tuple[Task, Kept, Finish]) -> None:
    task, kept, _ = recorded
    changed = task_of(Path(task.project), "Fix what ${{ inputs.report }} tells.")
    with pytest.raises(ReplayMiss) as caught:
        play(changed, Replay(kept.recording))
    assert "node `fixer` asks a model something that was not recorded. The nearest is its call 1:" in str(caught.value)
    assert "- message 2 (user), character 39 of" in str(caught.value)
    assert "below] says." in str(caught.value)
    assert "below] tells." in str(caught.value)
    assert caught.value.exit_code == 6


def with_answer(kept: Kept, number: int, text: str) -> Recording:
    """The recording with another text in one answer."""
    call = kept.calls[number - 1]
    assert isinstance(call.answer, Reply)
    calls = [*kept.calls]
    calls[number - 1] = replace(call, answer=replace(call.answer, text=text))
    return Recording(tuple(calls), tuple(kept.tools))


def test_one_changed_reply_changes_what_follows(recorded: tuple[Task, Kept, Finish]) -> None:
    task, kept, found = recorded
    assert play(task, Replay(with_answer(kept, len(kept.calls), '{"bugs": 2}')))[0].outputs == {"bugs": 2}
    assert found.outputs == {"bugs": 1}
    with pytest.raises(ReplayMiss) as caught:
        play(task, Replay(with_answer(kept, 2, "I see.")))
    assert "message 3 (assistant)" in str(caught.value)
    assert '+ message 3 (assistant), character 3 of 6: "I see."' in str(caught.value)


def test_one_changed_result_changes_what_follows(recorded: tuple[Task, Kept, Finish]) -> None:
    task, kept, _ = recorded
    first, second, *rest = kept.tools
    changed = replace(second, output=ToolOutput(True, second.output.text.replace("x = 1", "x = 2")))
    with pytest.raises(ReplayMiss) as caught:
        play(task, Replay(Recording(tuple(kept.calls), (first, changed, *rest))))
    assert "x = 2" in str(caught.value)


def test_a_changed_tool_call_is_a_miss_that_shows_it(recorded: tuple[Task, Kept, Finish]) -> None:
    task, kept, _ = recorded
    call = kept.calls[1]
    assert isinstance(call.answer, Reply)
    grep, look = call.answer.tool_calls
    answer = replace(call.answer, tool_calls=(grep, replace(look, arguments={"file_path": "src/b.py"})))
    calls = (kept.calls[0], replace(call, answer=answer), *kept.calls[2:])
    with pytest.raises(ReplayMiss) as caught:
        play(task, Replay(Recording(calls, tuple(kept.tools))))
    assert "calls Read in a way that was not recorded. The nearest is its tool call 2:" in str(caught.value)
    assert '+ arguments, character 19 of 24: "{\\"file_path\\":\\"src/b.py\\"}"' in str(caught.value)


# ---------------------------------------------------------------- questions and answers

ASKED = Request(model="m", messages=(Message(role="system", content="S"), Message(role="user", content="one two")))
BUSY = CallFailed(kind="rate_limit", message="slow", status=429, retry_after_s=2.0)


def recording(*answers: Answer, request: Request = ASKED) -> Recording:
    return Recording(tuple(asked(n, request, answer) for n, answer in enumerate(answers, 1)))


def test_the_same_question_gets_the_recorded_answers_in_their_order() -> None:
    replay = Replay(recording(BUSY, Reply(text="1"), Reply(text="2")))
    assert [replay.answer("a", ASKED) for _ in range(3)] == [BUSY, Reply(text="1"), Reply(text="2")]
    with pytest.raises(ReplayMiss, match="asked only 3 times"):
        replay.answer("a", ASKED)


def test_nodes_have_answers_of_their_own() -> None:
    replay = Replay(recording(Reply(text="x")))
    with pytest.raises(ReplayMiss, match="no call of this node was recorded"):
        replay.answer("b", ASKED)
    assert replay.unused() == {"a": 1}


def test_the_nearest_is_the_one_that_shares_most() -> None:
    user = ASKED.messages[1]
    near = replace(ASKED, messages=(ASKED.messages[0], replace(user, content="one two!")))
    far = replace(ASKED, messages=(ASKED.messages[0], replace(user, content="else"), user))
    other = replace(ASKED, model="other", messages=(replace(ASKED.messages[0], content="T"), user))
    calls = tuple(asked(n, request, Reply()) for n, request in enumerate((far, other, near), 1))
    with pytest.raises(ReplayMiss) as caught:
        Replay(Recording(calls)).answer("a", ASKED)
    assert "The nearest is its call 3:" in str(caught.value)


def test_differences_are_short_lines() -> None:
    long = replace(ASKED.messages[1], content="a" * 5000 + "old" + "b" * 5000)
    new = replace(long, content=long.content.replace("old", "new"))
    read_tool, bash = catalogue(["Read", "Bash"])
    was = Request(model="m", messages=(long,), tools=(read_tool,), schema={"a": 1})
    now = Request(model="n", messages=(new, new), tools=(bash,), schema={"a": 2}, max_tokens=1, temperature=0.0)
    assert difference(was, now) == [
        "- model: m",
        "+ model: n",
        "- max_tokens: 4096",
        "+ max_tokens: 1",
        "- temperature: None",
        "+ temperature: 0.0",
        '- schema, character 7 of 8: "{\\"a\\": 1}"',
        '+ schema, character 7 of 8: "{\\"a\\": 2}"',
        "- tool Read",
        "+ tool Bash",
        f'- message 1 (user), character 5,001 of 10,003: …"{"a" * 40}old{"b" * 37}"…',
        f'+ message 1 (user), character 5,001 of 10,003: …"{"a" * 40}new{"b" * 37}"…',
        "- 1 messages",
        "+ 2 messages",
    ]
    assert difference(was, was) == []


def test_secrets_are_hidden_also_where_a_part_is_shown() -> None:
    secret = "k" + "0123456789" * 8
    was = replace(ASKED, messages=(Message(role="user", content=f"{secret} old"),))
    now = replace(ASKED, messages=(Message(role="user", content=f"{secret} new"),))
    other = replace(ASKED, messages=(Message(role="user", content="0123456789 old"),))

    def clean(text: str) -> str:
        return text.replace(secret, "***")

    def miss(request: Request) -> str:
        with pytest.raises(ReplayMiss) as caught:
            Replay(recording(Reply(), request=was), clean).answer("a", request)
        return str(caught.value)

    assert "0123" not in miss(now)
    assert '"*** new"' in miss(now)
    assert "012345678901" not in miss(other)
    hidden = replace(ASKED, messages=(Message(role="user", content="*** old"),))
    assert "~ message 1 (user) differs in what is hidden here" in miss(hidden)


def test_tools_that_are_really_run_are_compared() -> None:
    good = ToolOutput(True, "out")
    assert tool_difference(good, ToolOutput(True, "out")) == ""
    assert "worked when it was recorded and failed now" in tool_difference(good, ToolOutput(False, "out"))
    assert tool_difference(good, ToolOutput(True, "oud")).splitlines() == [
        '- result, character 3 of 3: "out"',
        '+ result, character 3 of 3: "oud"',
    ]


def test_a_tool_that_was_never_called_is_a_miss() -> None:
    tool = used(1, ToolCall(id="x", name="Read", arguments={"file_path": "a"}), ToolOutput(True, "A"))
    replay = Replay(Recording(tools=(tool,)))
    with pytest.raises(ReplayMiss, match="it used Read"):
        replay.tool("a", ToolCall(id="x", name="Bash", arguments={}))
    assert replay.tool("a", ToolCall(id="other", name="Read", arguments={"file_path": "a"})) == ToolOutput(True, "A")
    with pytest.raises(ReplayMiss, match="only once"):
        replay.tool("a", ToolCall(id="x", name="Read", arguments={"file_path": "a"}))

"""Why an agent failed, from the events alone."""

from __future__ import annotations

from dataclasses import replace

from dagrun.agent.messages import CallFailed
from dagrun.core.names import Outcome
from dagrun.view.conversation import conversations
from dagrun.view.failing import failure_lines

from .agents_story import BIG, FAST, LIMITED, PROMPT, Talking, agent, get, reply, research
from .story import Story, node


def failed(outcome: Outcome, error: str, *answers: object) -> list[str]:
    story = Talking(agent("a"))
    story.begin("a")
    for k, answer in enumerate(answers, 1):
        story.ask("a", PROMPT, model=(FAST, BIG)[k > 2], tries=k).answer("a", answer)  # type: ignore[arg-type]
    story.at(9).end("a", outcome, error=error)
    return failure_lines(story.state, 0, conversations(story.told)["a", 1], get)


def test_what_was_tried_before_it_was_given_up() -> None:
    over = CallFailed(kind="overloaded", message="busy", status=503)
    assert failed(Outcome.FAILED, "the model call failed", LIMITED, LIMITED, over) == [
        f"    tried: {FAST} rate limit 2x, {BIG} overloaded"
    ]


def test_a_cut_answer_says_how_long_it_may_be() -> None:
    assert failed(Outcome.TRUNCATED, "cut off", reply(model=FAST)) == [f"    {FAST} may answer with 256 tokens"]


def test_a_command_that_failed_has_no_more_to_say() -> None:
    story = Story([node("a")]).start("a").at(1).end("a", Outcome.FAILED, exit_code=1)
    assert failure_lines(story.state, 0, (), get) == []


def test_invalid_output_tells_each_answer_that_was_rejected() -> None:
    story = research()
    i = story.plan.index["scan"]
    steps = conversations(story.told)["scan", 1]
    last = story.state.attempts[i][-1]
    assert last.finish is not None
    last.finish = replace(last.finish, outcome=Outcome.INVALID_OUTPUT)
    told = failure_lines(story.state, i, steps, get)
    errors = ".summary: is missing; .count: must be an integer"
    assert told == [f"    the answer to call 3 did not fit its schema: {errors}", f"    tried: {FAST} rate limit"]

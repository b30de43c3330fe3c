"""The last words of a run."""

from __future__ import annotations

from dataclasses import replace

from dagrun.core.event import ReviewRequested, RunEnded, StopRequested
from dagrun.core.names import Outcome, RunStatus, Schedule
from dagrun.core.permissions import Permissions
from dagrun.core.workflow import Retry
from dagrun.view.summary import end_summary
from dagrun.view.text import ASCII, Look

from .agents_story import CENT, PROMPT, Talking, agent, broke, reply, research
from .story import Story, node, release_notes


def test_a_failed_run() -> None:
    output = b"\n".join(b"docs/%d.md  dead \x1b[31mlink\x1b[0m [x]" % k for k in range(14)) + b"\n"
    text = end_summary(release_notes().finish().state, read=lambda i: output, line_of=lambda i: 31)
    assert text == (
        "FAILED  release-notes r7k2  in 1m43s  6 ok, 1 failed, 3 not run\n"
        "✗ lint-docs  (wave 2, 3 tries: exit 2, exit 2, exit 2)   flow.yaml:31\n"
        "    | …\n"
        "    | docs/9.md  dead link [x]\n"
        "    | docs/10.md  dead link [x]\n"
        "    | docs/11.md  dead link [x]\n"
        "    | docs/12.md  dead link [x]\n"
        "    | docs/13.md  dead link [x]\n"
        "  blocks: assemble, publish, announce\n"
        "  fixed the cause? go on  dagrun resume r7k2\n"
        "  see its output          dagrun logs r7k2 lint-docs\n"
        "  see everything          dagrun trace show r7k2 --node lint-docs\n"
    )


def test_one_long_reason_of_all_tries_is_told_once() -> None:
    story = Story([node("a", retry=Retry(max_attempts=2))])
    for second in (1, 2):
        story.start("a").at(second).end("a", Outcome.FAILED, error="stdout is not JSON: line 1, column 2")
    text = end_summary(story.state)
    assert "✗ a  (wave 1, 2 tries, each time: stdout is not JSON: line 1, column 2)\n" in text


def test_what_was_cut_off_did_run() -> None:
    story = Story([node("a"), node("b", "a"), node("c", "b")]).start("a").at(1).end("a", Outcome.COMPLETED)
    story.tell(StopRequested(cause="cancel", mode="now")).start("b").at(2).end("b", Outcome.CANCELLED).finish()
    assert end_summary(story.state).startswith("CANCELLED  release-notes r7k2  in 2.0s  1 ok, 1 cancelled, 1 not run")


def test_a_run_that_went_well() -> None:
    story = Story([node("a", condition="params.x"), node("b", continue_on_error=True)], schedule=Schedule.READY)
    story.start("b").at(2).end("b", Outcome.FAILED, exit_code=1).finish()
    text = end_summary(story.state, outputs={"report": "3 tests\nand more", "items": [1, {"a": None}]})
    assert text == (
        "COMPLETED  release-notes r7k2  in 3.0s  1 ok, 1 failed\n"
        "  failed, but may (continue_on_error): b\n"
        "  report: 3 tests and more\n"
        '  items: [1, {"a": null}]\n'
    )


def test_an_interrupted_run_with_a_failure() -> None:
    lines = end_summary(release_notes().stop().state).splitlines()
    assert lines[0] == "INTERRUPTED  release-notes r7k2  in 1m38s  2 ok, 1 failed, 7 not run  (stopped by sigint)"
    assert lines[1] == "✗ lint-docs  (wave 2, 3 tries: exit 2, exit 2, exit 2)"
    assert "dagrun resume r7k2" in lines[-3]


def test_a_run_without_a_failure_that_did_not_end() -> None:
    story = Story([node("a"), node("b", "a")]).start("a").at(3).stop()
    assert end_summary(story.state) == (
        "INTERRUPTED  release-notes r7k2  in 3.0s  2 not run  (stopped by sigint)\n"
        "  go on              dagrun resume r7k2\n"
        "  see what was done  dagrun trace show r7k2\n"
    )
    assert end_summary(story.state, status=RunStatus.CRASHED).startswith("CRASHED  ")


def test_a_run_that_waits_for_a_human() -> None:
    story = Story([node("gate")])
    story.tell(ReviewRequested(node="gate", attempt=1, message="Publish \x1b[1mit?"))
    story.tell(RunEnded(status=RunStatus.NEEDS_REVIEW, exit_code=4))
    assert end_summary(story.state).splitlines()[1:3] == [
        "‖ gate  Publish it?",
        "  decide             dagrun review r7k2",
    ]


def test_many_failures_are_counted() -> None:
    story = Story([node(f"n{k}") for k in range(20)], parallel=20)
    story.start(*story.plan.ids)
    for name in story.plan.ids:
        story.end(name, Outcome.FAILED, exit_code=1)
    lines = end_summary(story.finish().state, look=Look(ASCII)).splitlines()
    assert sum(line.startswith("x ") for line in lines) == 5
    assert "  and 15 more failed: dagrun trace show r7k2 --failures" in lines
    assert all(line.isascii() for line in lines)


def test_a_long_block_list_is_counted() -> None:
    story = Story([node("a"), *[node(f"n{k}", "a") for k in range(100)]])
    story.start("a").end("a", Outcome.FAILED, exit_code=1)
    assert "  blocks: n0, n1, n2, n3, n4, n5 and 94 more\n" in end_summary(story.finish().state)


def test_lines_of_output_fit_a_terminal() -> None:
    story = release_notes().finish()
    text = end_summary(story.state, read=lambda i: b"x" * 5000, look=Look(width=80))
    assert max(len(line) for line in text.splitlines()) <= 80


def test_what_agents_spent_is_said_at_the_end() -> None:
    lines = end_summary(research().state).splitlines()
    assert lines[1] == "  5 model calls · 3,000 tokens in · 600 out · spent $0.006 of $1.00 · held $0.01"
    assert "  5 model calls - 3,000 tokens in" in end_summary(research().state, look=Look(ASCII))


def test_out_of_money_says_how_to_go_on() -> None:
    story = broke()
    story.tell(RunEnded(status=RunStatus.OVER_BUDGET, exit_code=5, reason="not enough money left for write"))
    assert end_summary(story.state) == (
        "OVER BUDGET  release-notes r7k2  in 2.0s  1 failed  (not enough money left for write)\n"
        "  1 model call · 0 tokens in · 0 out · spent $0.01 of $0.02\n"
        "✗ write  (wave 1, 1 try: node write: $0.01 are left, the call may cost $0.02)\n"
        "  raise cost_budget, go on there  dagrun execute flow.yaml --from write --outputs-of r7k2\n"
        "  see its output                  dagrun logs r7k2 write\n"
        "  see everything                  dagrun trace show r7k2 --node write\n"
    )


def test_a_node_out_of_its_own_money_gets_more_by_a_patch() -> None:
    limited = agent("write", permissions=Permissions(cost_budget=2 * CENT))
    story = Talking(limited, cap=100 * CENT)
    story.begin("write").ask("write", PROMPT).at(1).answer("write", reply(usage=None), books="keep", spent=CENT)
    story.at(2).end("write", Outcome.OVER_BUDGET, error="no money is left")
    story.state.ledger.set_cap("node:write", 2 * CENT)  # type: ignore[union-attr]
    text = end_summary(story.state, status=RunStatus.OVER_BUDGET)
    again = "dagrun replan r7k2 --set write.permissions.cost_budget=0.04 --retry write --resume"
    assert f"  more money? try again  {again}\n" in text


def test_a_run_that_plays_another_is_not_resumed() -> None:
    story = Story([node("a")])
    story.state.created = replace(story.state.created, replay_of="k9zz")
    story.start("a").at(1).end("a", Outcome.FAILED, exit_code=1)
    text = end_summary(story.state, status=RunStatus.FAILED)
    assert "dagrun execute flow.yaml --replay k9zz" in text
    assert "resume" not in text


def test_of_many_long_reasons_the_last_is_told() -> None:
    story = Story([node("a", retry=Retry(max_attempts=3, delay_s=0.0))])
    for k in range(3):
        story.at(10 * k).start("a").at(10 * k + 1).end("a", Outcome.FAILED, error=f"reason {k} " + "x" * 90)
    text = end_summary(story.state, look=Look(glyphs=ASCII), status=RunStatus.FAILED)
    assert "3 tries: ..., reason 2 x" in text
    assert "reason 0" not in text

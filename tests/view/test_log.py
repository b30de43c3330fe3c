"""The line log and the events as JSON lines."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator

import pytest

from dagrun.core.event import (
    EngineAttached,
    EscalationFailed,
    NodeAdopted,
    NodeStarted,
    PatchAdmitted,
    ReviewDecided,
    ReviewRequested,
    RevisionAdopted,
    StopRequested,
    Warned,
)
from dagrun.core.names import Json, Outcome, Schedule
from dagrun.core.workflow import OnFailure, Retry, Review
from dagrun.engine.observer import Observer
from dagrun.view.live import Live
from dagrun.view.log import JsonLines, LineLog, operations_text

from .agents_story import BIG, FAST, LIMITED, PROMPT, Talking, agent, reply
from .story import Story, node


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def logged(story: Story) -> tuple[LineLog, io.StringIO]:
    stream = io.StringIO()
    log = LineLog(stream)
    log.attached(story.state, lambda i: b"")
    story.observers.append(log)
    return log, stream


def lines_of(log: LineLog, story: Story, stream: io.StringIO) -> list[str]:
    log.closed(story.state)
    return stream.getvalue().splitlines()


def test_all_observers_are_observers() -> None:
    stream = io.StringIO()
    observers: list[Observer] = [LineLog(stream), JsonLines(stream), Live(stream)]
    assert [o.interval_s for o in observers] == [30.0, None, 0.25]


def test_a_run() -> None:
    retry = Retry(max_attempts=2, delay_s=1.0, jitter=0.0)
    story = Story(
        [node("a"), node("lint-docs", "a", retry=retry), node("c", "lint-docs"), node("d")], schedule=Schedule.READY
    )
    log, stream = logged(story)
    story.start("a", "d").at(4).end("a").start("lint-docs")
    story.at(6).end("lint-docs", Outcome.FAILED, exit_code=2).at(7).start("lint-docs")
    story.at(8).end("lint-docs", Outcome.TIMED_OUT).at(35)
    log.tick(story.state, story.now, story.now_m)
    story.at(40).end("d").finish()
    assert lines_of(log, story, stream) == [
        "22:13:20 run     release-notes r7k2  4 nodes, 3 waves, j4",
        "22:13:20 start   a",
        "22:13:20 start   d",
        "22:13:24 ok      a             4.0s",
        "22:13:24 start   lint-docs     try 1/2",
        "22:13:26 retry   lint-docs     exit 2 in 2.0s; try 2/2 in 1.0s",
        "22:13:27 start   lint-docs     try 2/2",
        "22:13:28 TIMEOUT lint-docs     timed out after 5m00s in 1.0s  dagrun logs r7k2 lint-docs",
        "22:13:55 beat    1 running: d 0:35",
        "22:14:00 ok      d             40s",
        "22:14:00 skip    c             dependency: lint-docs failed",
        "22:14:00 end     failed in 40s  2 ok, 1 failed, 1 skipped",
    ]


def test_failures_adoptions_stops_and_warnings() -> None:
    story = Story([node("a", continue_on_error=True), node("b"), node("c"), node("d")], schedule=Schedule.READY)
    log, stream = logged(story)
    story.tell(NodeAdopted(node="d", run_id="q1q1")).start("a", "b", "c")
    story.at(1).end("a", Outcome.FAILED, exit_code=1)
    story.end("b", Outcome.FAILED, signal=9)
    story.tell(Warned(node="c", text="3 processes \x1b[31moutlived it"))
    story.tell(StopRequested(cause="sigint", mode="drain")).stop()
    assert [line[9:] for line in lines_of(log, story, stream)][1:] == [
        "adopt   d             outputs of run q1q1",
        "start   a",
        "start   b",
        "start   c",
        "fail    a             exit 1 in 1.0s (continue_on_error)",
        "FAIL    b             signal 9 (SIGKILL) in 1.0s  dagrun logs r7k2 b",
        "warn    c             3 processes outlived it",
        "stop    sigint: no new starts, waiting for 1 node",
        "stop    sigint: ending 1 node",
        "cancel  c             cancelled in 1.0s",
        "end     interrupted in 1.0s  1 ok, 2 failed, 1 ready  stopped by sigint",
    ]


def test_reviews_escalations_and_patches() -> None:
    ask = OnFailure(review=Review(message="again?"))
    story = Story([node("a", on_failure=ask), node("b", "a")])
    log, stream = logged(story)
    story.start("a").at(1).end("a", Outcome.FAILED, exit_code=1)
    story.tell(ReviewRequested(node="a", attempt=1, message="again?"))
    story.tell(ReviewDecided(node="a", decision="reject", by="ann", comment="no"))
    story.tell(PatchAdmitted(revision=2, base=1, by="ann", operations=({"remove": {"id": "b"}},), removed=("b",)))
    story.tell(RevisionAdopted(revision=2))
    assert [line[9:] for line in lines_of(log, story, stream)][2:] == [
        "fail    a             exit 1 in 1.0s; trying its on_failure",
        "review  a             dagrun review r7k2 a  again?",
        "review  a             rejected by ann  no",
        "patch   revision 2 by ann: remove b",
        "adopt   revision 2",
    ]


def test_a_failure_whose_patch_comes_with_it_is_no_lost_attempt() -> None:
    story = Story([node("a", on_failure=OnFailure(replan="p.yaml"))])
    log, stream = logged(story)
    story.start("a").at(1)
    patch = PatchAdmitted(revision=2, base=1, by="on_failure:a", operations=({"retry": {"id": "a"}},), reset=("a",))
    story.end("a", Outcome.FAILED, exit_code=1, then=(patch,))
    assert [line[9:] for line in lines_of(log, story, stream)][2:] == [
        "fail    a             exit 1 in 1.0s; trying its on_failure",
        "patch   revision 2 by on_failure:a: retry a",
    ]


def test_a_review_that_nobody_answered() -> None:
    story = Story([node("a"), node("b")])
    log, stream = logged(story)
    story.tell(ReviewRequested(node="a", attempt=1, on_timeout="approve"), ReviewRequested(node="b", attempt=1))
    story.tell(ReviewDecided(node="a", decision="timed_out", by="dagrun"))
    story.tell(ReviewDecided(node="b", decision="timed_out", by="dagrun"))
    assert [line[9:] for line in lines_of(log, story, stream)][-2:] == [
        "review  a             nobody answered in time: approved",
        "review  b             nobody answered in time: rejected",
    ]


def test_a_failed_escalation() -> None:
    story = Story([node("a", on_failure=OnFailure(replan="p.yaml"))])
    log, stream = logged(story)
    story.start("a").end("a", Outcome.FAILED, exit_code=1)
    story.tell(EscalationFailed(node="a", step="replan", text="refused"))
    assert lines_of(log, story, stream)[-1][9:] == "fail    a             replan did not help: refused"


def test_a_heartbeat_names_a_few_and_counts_the_rest() -> None:
    story = Story([node(f"n{k}") for k in range(9)], parallel=9)
    log, stream = logged(story)
    story.start(*[f"n{k}" for k in range(9)]).at(72)
    log.tick(story.state, story.now, story.now_m)
    assert lines_of(log, story, stream)[-1].endswith(
        "beat    9 running: n0 1:12, n1 1:12, n2 1:12, n3 1:12, n4 1:12, 4 more"
    )


def test_nothing_beats_at_once_or_when_nothing_runs() -> None:
    story = Story([node("a")])
    log, stream = logged(story)
    log.tick(story.state, story.now, story.now_m + 60)
    story.start("a")
    log.tick(story.state, story.now, story.now_m + 61)
    assert not any(" beat " in line for line in lines_of(log, story, stream))


def test_one_write_for_a_batch() -> None:
    class Counting(io.StringIO):
        writes = 0

        def write(self, text: str, /) -> int:
            self.writes += 1
            return super().write(text)

    story = Story([node(f"n{k}") for k in range(500)], parallel=500)
    stream = Counting()
    log = LineLog(stream)
    log.recorded([NodeStarted(node=n, attempt=1) for n in story.plan.ids], story.state)
    log.closed(story.state)
    assert stream.writes == 1
    assert len(stream.getvalue().splitlines()) == 500


def test_a_resumed_run_says_so() -> None:
    story = Story([node("a"), node("b")], schedule=Schedule.READY)
    story.start("a").at(1).end("a").at(2).tell(EngineAttached(pid=2, parallel=1))
    log, stream = logged(story)
    assert lines_of(log, story, stream) == ["22:13:22 resume  release-notes r7k2  2 nodes, 1 wave, 1 done, j1"]


def test_no_line_can_be_forged() -> None:
    story = Story([node("a")])
    log, stream = logged(story)
    story.start("a").end("a", Outcome.FAILED, error="bad\n12:00:00 ok      everything\r\x1b[2K")
    assert len(lines_of(log, story, stream)) == 3


def test_operations_in_words() -> None:
    some: tuple[Json, ...] = ({"insert": {"id": "scan"}}, {"set_limits": {"parallel": 2}}, {"remove": {"id": "lint"}})
    assert operations_text(some) == "insert scan, set_limits, remove lint"
    assert operations_text(tuple({"remove": {"id": f"n{k}"}} for k in range(9))).endswith("remove n5 and 3 more")


def test_json_lines() -> None:
    story = Story([node("a")])
    stream = io.StringIO()
    log = JsonLines(stream)
    log.attached(story.state, lambda i: b"")
    story.observers.append(log)
    story.start("a").at(1.5).end("a", summary="caf\xe9").finish()
    log.closed(story.state)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [f["type"] for f in found] == [
        "run.created",
        "engine.attached",
        "node.started",
        "attempt.finished",
        "run.ended",
    ]
    assert found[3] == {
        "at": "2023-11-14T22:13:21.500Z",
        "run_id": "r7k2",
        "type": "attempt.finished",
        "node": "a",
        "attempt": 1,
        "outcome": "completed",
        "duration_ms": 1500,
        "summary": "caf\xe9",
    }
    assert list(found[3])[:3] == ["at", "run_id", "type"]


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (Outcome.DENIED, "DENIED  a             data is not granted  dagrun plan r7k2 --permissions"),
        (Outcome.OVER_LIMIT, "LIMIT   a             data is not granted in 1.0s  dagrun logs r7k2 a"),
        (Outcome.TIMED_OUT, "TIMEOUT a             data is not granted in 1.0s  dagrun logs r7k2 a"),
    ],
)
def test_how_a_node_ended_is_the_first_word(outcome: Outcome, line: str) -> None:
    story = Story([node("a")])
    log, stream = logged(story)
    story.start("a").at(1).end("a", outcome, error="data is not granted")
    assert lines_of(log, story, stream)[-1][9:] == line


def test_agents() -> None:
    story = Talking(agent("scan"), agent("write"), schedule=Schedule.READY)
    log, stream = logged(story)
    left = ([FAST, "rate_limit", "rate limited → next"],)
    story.begin("scan").ask("scan", PROMPT, reasons=([BIG, "not_permitted", "no"],))
    story.at(1).answer("scan", LIMITED).ask("scan", model=BIG, tries=2, reasons=left)
    story.at(2).answer("scan", reply(model=BIG)).ask("scan", model=BIG, turn=2, reasons=left)
    story.at(3).answer("scan", reply(model=BIG)).at(4).end("scan")
    story.begin("write").ask("write", PROMPT).at(5).answer("write", reply())
    story.at(6).tell(Warned(text="$0.80 of the $1.00 of the run are spent"))
    story.end("write", Outcome.OVER_BUDGET, error="no money is left")
    assert lines_of(log, story, stream)[1:] == [
        "22:13:20 start   scan",
        "22:13:21 call    scan          call 1: rate limit in 0.0s, it asks to wait 6.0s",
        f"22:13:21 model   scan          asks {BIG}: {FAST}: rate limited → next",
        "22:13:24 ok      scan          4.0s  2,400 tokens  $0.004",
        "22:13:24 start   write",
        "22:13:26 warn    $0.80 of the $1.00 of the run are spent",
        "22:13:26 BUDGET  write         no money is left  2.0s  1,200 tokens  $0.002  dagrun logs r7k2 write",
    ]


def test_the_words_of_a_provider_forge_no_line() -> None:
    story = Talking(agent("a"))
    log, stream = logged(story)
    story.begin("a").ask("a", PROMPT, model="m\n00:00:00 ok", reasons=(["x\x1b[2J", "overloaded", "a\nb"],))
    assert [line[:8] for line in lines_of(log, story, stream)] == ["22:13:20"] * 3
    assert "\x1b" not in stream.getvalue()

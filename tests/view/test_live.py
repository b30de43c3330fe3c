"""The live table, seen through a terminal emulator."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import pytest

from dagrun.core.event import (
    EngineAttached,
    PatchAdmitted,
    ReviewDecided,
    ReviewRequested,
    RevisionAdopted,
    StopRequested,
    Warned,
)
from dagrun.core.names import Outcome, Schedule, Status
from dagrun.core.state import RunState
from dagrun.core.workflow import Retry, node_to_json
from dagrun.view.draw import columns_for, draw, rows_for
from dagrun.view.frame import Picture, share, take
from dagrun.view.live import Live
from dagrun.view.text import ASCII, Look, Paint, cells, clean, money

from .agents_story import CENT, Talking, agent, broke, research
from .story import Story, node, release_notes
from .terminal import Terminal

OUTPUT = {
    "test-linux": b"collecting\n\x1b[32mtests/test_io.py 10%\rtests/test_io.py 61%\x1b[0m\r",
    "draft-notes": b"writing [bold]section[/bold] 2 of 4\n",
}


@pytest.fixture(params=[80])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    made = Terminal(request.param, 24)
    yield made
    made.close()


def show(story: Story, terminal: Terminal, look: Look | None = None) -> Live:
    live = terminal.watched(Live(terminal.slave, look or Look()))
    live.attached(story.state, lambda i: OUTPUT.get(story.plan.ids[i], b""))
    story.observers.append(live)
    return live


def test_80_columns(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    live.tick(story.state, story.now, story.now_m)
    assert terminal.screen(live._writer) == [
        "release-notes  r7k2  1:38  j4",
        "████████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  3/10",
        "  NODE           STATUS     WAVE  TRY     TIME  LAST",
        "✗ lint-docs      failed        2  3/3     5.0s  exit 2: 14 dead links",
        "↻ summarise-prs  retrying      2  2/3  in 0:04  exit 75: 429 from provider",
        "● test-linux     running       2  1/1     0:58  tests/test_io.py 61%",
        "● draft-notes    running       2  1/3     0:58  writing [bold]section[/bold] 2 …",
        "○ scan-deps      ready         2",
        "✓ fetch-deps     completed     1  1/1     0:40",
        "✓ collect-prs    completed     1  1/1     0:12  40 pull requests",
        "  + 3 pending",
        "2 ok, 1 failed, 1 retrying, 2 running, 1 ready, 3 pending   revision 1",
    ]


@pytest.mark.parametrize("terminal", [120], indirect=True)
def test_120_columns(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    live.tick(story.state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert lines[2] == "  NODE           STATUS     WAVE  TRY     TIME  LAST"
    assert lines[3] == "✗ lint-docs      failed        2  3/3     5.0s  exit 2: 14 dead links"


def test_frames_draw_over_each_other_and_the_last_stays(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    for second in range(98, 110):
        story.at(second)
        live.tick(story.state, story.now, story.now_m)
        terminal.screen(live._writer)
    story.finish()
    live.closed(story.state)
    lines = terminal.screen(live._writer)
    assert lines[0].startswith("release-notes  r7k2  failed  ")
    assert lines[-1].startswith("6 ok, 1 failed, 3 skipped")
    assert not any("running" in line for line in lines)
    assert terminal.scrolled() == []
    # whoever writes next begins on a fresh line, with a visible cursor that wraps
    assert terminal.emulator.cursor.x == 0
    assert terminal.emulator.cursor.y == len(lines)
    assert not terminal.emulator.cursor.hidden
    assert pyte_autowrap(terminal)


@pytest.mark.parametrize("terminal", [20, 40], indirect=True)
def test_full_lines_keep_their_last_cell_and_an_echoed_key_moves_nothing(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    for second in range(98, 104):
        story.at(second)
        live.tick(story.state, story.now, story.now_m)
        lines = terminal.screen(live._writer)
        os.write(terminal.slave.fileno(), b"^C")  # what a terminal echoes where the cursor stands
    assert [k for k, line in enumerate(lines) if line.startswith("rel")] == [0]
    # a terminal's cursor stays on the last cell of a full line: clearing from there would lose it
    assert not re.search(rb"[^\r\n\x1b]\x1b\[[KJ]", re.sub(rb"\x1b\[(\?\w+|\d*A)", b"", terminal.seen))


def pyte_autowrap(terminal: Terminal) -> bool:
    from pyte import modes

    return modes.DECAWM in terminal.emulator.mode


def test_a_table_that_gets_shorter_leaves_nothing_behind(terminal: Terminal) -> None:
    story = Story([node(f"n{k}") for k in range(8)], parallel=8, schedule=Schedule.READY)
    story.start(*[f"n{k}" for k in range(8)])
    live = show(story, terminal)
    live.tick(story.state, story.now, story.now_m)
    before = terminal.screen(live._writer)
    terminal.resize(80, 9)
    live.tick(story.at(1).state, story.now, story.now_m)
    after = terminal.screen(live._writer)
    assert len(before) == 12
    assert after[-1].startswith("8 running")
    assert "5 more running" in after[-2]


def test_resized_while_running_never_wraps(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    for k, columns in enumerate((80, 120, 40, 20, 33, 100)):
        terminal.resize(columns, 24)
        live.tick(story.at(99 + k).state, story.now, story.now_m)
        lines = terminal.screen(live._writer)
        assert all(len(line) <= columns for line in lines)
        assert sum(line.startswith("✗ lint") for line in lines) == 1


@pytest.mark.parametrize("terminal", [20], indirect=True)
def test_20_columns_and_5_lines(terminal: Terminal) -> None:
    terminal.resize(20, 5)
    story = release_notes()
    live = show(story, terminal)
    live.tick(story.state, story.now, story.now_m)
    assert terminal.screen(live._writer) == [
        "rel…  r7k2  1:38  j4",
        "✗ lint-docs",
        "↻ summarise-prs",
        "✓ 2  ✗ 1  ↻ 1  ● 2 …",
    ]


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 24, 60])
@pytest.mark.parametrize("width", [1, 5, 10, 20, 31, 47, 80, 120, 250])
def test_every_size_fits(width: int, height: int) -> None:
    story = release_notes()
    picture = look_at(story, height)
    for look in (Look(), Look(ASCII), Look(paint=Paint(True))):
        lines = draw(picture, look, width, height)
        assert len(lines) <= max(1, height - 1)
        assert all(cells(clean(line)) <= width for line in lines)


def look_at(story: Story, height: int) -> Picture:
    state = story.state
    failed = {i: None for i in state.finished if state.node_status[i] is Status.FAILED}
    return take(state, story.now_m, 98.0, rows_for(height), failed, lambda i: OUTPUT.get(story.plan.ids[i], b""))


def test_columns_go_in_a_fixed_order() -> None:
    seen: list[str] = []
    everything = ["WAVE", "STATUS", "LAST", "TOKENS", "COST", "TRY", "TIME"]
    for width in range(120, 8, -1):
        columns, _, last = columns_for(width, 14, agents=True)
        names = {c.name for c in columns} | ({"LAST"} if last else set())
        seen += [name for name in everything if name not in names and name not in seen]
    assert seen == everything


def test_what_a_node_prints_moves_no_cursor(terminal: Terminal) -> None:
    story = Story([node("evil")])
    story.start("evil")
    live = terminal.watched(Live(terminal.slave))
    live.attached(story.state, lambda i: "\x1b[2J\x1b[H\x1b]0;pwned\x07\u202etxt [red]x[/red]\x00\x9b5A".encode())
    live.tick(story.state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert lines[3].endswith("txt [red]x[/red]")
    assert terminal.emulator.title == ""
    assert lines[0].startswith("release-notes")


@pytest.mark.parametrize("terminal", [80], indirect=True)
def test_ascii(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal, Look(ASCII))
    live.tick(story.state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert all(line.isascii() for line in lines)
    assert [line[0] for line in lines[3:10]] == ["x", "r", "*", "*", ".", "+", "+"]
    terminal.seen.decode("ascii")


def test_only_what_changed_is_written(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    live.tick(story.state, story.now, story.now_m)
    terminal.screen(live._writer)
    size = len(terminal.seen)
    live.tick(story.state, story.now, story.now_m)
    terminal.screen(live._writer)
    assert len(terminal.seen) == size
    live.tick(story.at(99).state, story.now, story.now_m)
    terminal.screen(live._writer)
    assert b"dead links" not in terminal.seen[size:]


def test_warnings_stay_above_the_table(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    story.tell(Warned(text="disk \x1b[31malmost full"))
    live.tick(story.state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert lines[0] == "warning: disk almost full"
    assert lines[1].startswith("release-notes")


def test_a_stop_is_said_in_the_footer(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    story.tell(StopRequested(cause="sigint", mode="drain"))
    live.tick(story.state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert lines[-1].startswith("sigint: no new starts, finishing 2; ^C again ends them")
    assert not any(line.startswith("○") for line in lines)


def test_after_a_pause_the_table_is_drawn_below(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    live.tick(story.state, story.now, story.now_m)
    terminal.screen(live._writer)
    os.write(terminal.slave.fileno(), b"\r\n[1]+ Stopped\r\n$ fg\r\n")
    live.tick(story.at(200).state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    screen = [*terminal.scrolled(), *lines]
    assert "[1]+ Stopped" in screen
    assert sum(line.startswith("release-notes") for line in screen) == 2


def test_revived_nodes_are_no_longer_failed(terminal: Terminal) -> None:
    story = release_notes().finish()
    live = show(story, terminal)
    story.tell(EngineAttached(pid=2, parallel=4, revive=True))
    live.tick(story.state, story.now, story.now_m)
    assert not any("✗" in line for line in terminal.screen(live._writer))


def test_what_waits_for_a_human_says_how_to_decide(terminal: Terminal) -> None:
    story = Story([node("gate"), node("a")])
    live = show(story, terminal)
    story.start("a").tell(ReviewRequested(node="gate", attempt=1, message="Publish it?"))
    live.tick(story.at(58).state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert lines[3] == "‖ gate  waiting       1  1/1     0:58  dagrun review r7k2 gate  Publish it?"
    story.tell(ReviewDecided(node="gate", decision="reject", by="ann"))
    live.tick(story.at(59).state, story.now, story.now_m)
    assert terminal.screen(live._writer)[3] == "✗ gate  failed        1  1/1     0:58  rejected by ann"


def test_what_a_patch_changes_is_shown_before_it_runs(terminal: Terminal) -> None:
    story = Story([node("a"), node("b", "a"), node("c", "b")])
    live = show(story, terminal)
    scan = node_to_json(node("scan", "b"))
    story.start("a").tell(PatchAdmitted(revision=2, base=1, nodes={"scan": scan}), RevisionAdopted(revision=2))
    live.tick(story.at(58).state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert [line.split() for line in lines[4:6]] == [["scan*", "pending", "3"], ["+", "2", "pending"]]
    assert lines[-1].endswith("revision 2, * changed")


def test_a_removed_node_is_gone(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    story.tell(PatchAdmitted(revision=2, base=1, removed=("lint-docs", "assemble", "publish", "announce")))
    live.tick(story.state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert "  2/6" in lines[1]
    assert not any("lint-docs" in line for line in lines)
    assert lines[-1].endswith("revision 2")


def test_lines_are_shared_with_the_most_urgent_first() -> None:
    assert share(10, [(100, 3), (0, 1), (100, 10)]) == [3, 0, 7]
    assert share(10, [(100, 3), (0, 1), (2, 10), (5, 3)]) == [5, 0, 2, 3]
    assert share(0, [(5, 1)]) == [0]


def test_many_failures_leave_room_for_what_runs() -> None:
    story = Story([node(f"n{k:03}") for k in range(200)], parallel=10)
    story.start(*[f"n{k:03}" for k in range(100)])
    for k in range(95):
        story.end(f"n{k:03}", Outcome.FAILED, exit_code=1)
    lines = draw(look_at(story, 24), Look(), 100, 24)
    assert sum(line.startswith("●") for line in lines) == 5
    assert lines[3].startswith("✗ n094")
    assert "more failed" in lines[-2]


class Watched(list):
    """A list that counts how often it is looked into."""

    looks = 0

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        self.looks += 1
        return super().__getitem__(key)

    def __iter__(self) -> Iterator:
        self.looks += len(self)
        return super().__iter__()


def work_of_a_frame(count: int) -> tuple[int, int, list[str]]:
    """(looks into per-node lists, function calls, lines) of one frame of a run with `count` nodes."""
    story = Story([node(f"n{k}", retry=Retry(max_attempts=2, delay_s=60)) for k in range(count)], parallel=50)
    names = story.plan.ids
    story.start(*names[:300])
    for name in names[:60]:
        story.end(name)
    for name in names[60:160]:
        story.end(name, Outcome.FAILED)
    state: RunState = story.state
    lists = [Watched(getattr(state, name)) for name in ("node_status", "attempts", "finished", "waking")]
    state.node_status, state.attempts, state.finished, state.waking = lists
    calls = 0

    def count_call(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        picture = take(state, story.now_m, 1.0, rows_for(43), {}, lambda i: b"working\n")
        lines = draw(picture, Look(), 120, 43)
    finally:
        sys.setprofile(None)
    return sum(each.looks for each in lists), calls, lines


def test_a_frame_of_10_000_nodes_costs_what_its_rows_cost() -> None:
    few_looks, few_calls, _ = work_of_a_frame(400)
    looks, calls, lines = work_of_a_frame(10_000)
    assert looks <= few_looks + 5
    assert looks < 40 * 10
    assert calls < few_calls * 1.2
    assert len(lines) <= 42
    assert "9,700 more ready" in lines[-2]


def test_one_tick_takes_no_longer_than_a_picture_while_the_terminal_is_stuck(terminal: Terminal) -> None:
    story = release_notes()
    live = show(story, terminal)
    for k in range(2000):  # nobody reads: the buffer of the terminal fills up, frames are dropped
        live.recorded((), story.state)
        live.tick(story.at(98 + k).state, story.now, story.now_m)
    assert terminal.screen(live._writer)[0].startswith("release-notes  r7k2  34:")


def test_a_terminal_that_went_away_does_not_stop_the_run() -> None:
    terminal = Terminal(80, 24)
    story = release_notes()
    live = show(story, terminal)
    os.close(terminal.master)
    for k in range(20):
        live.tick(story.at(100 + k).state, story.now, story.now_m)
        live._writer.flush(1)
    assert live._writer.dead
    story.finish()
    live.closed(story.state)
    terminal.slave.close()


def test_rich_is_not_needed() -> None:
    import subprocess

    code = "import sys, dagrun.view.live, dagrun.view.tables, dagrun.view.graph; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---------------------------------------------------------------- agents


def test_agents_show_tokens_cost_and_their_last_words_in_80_columns(terminal: Terminal) -> None:
    story = research()
    live = show(story, terminal)
    said = b"The notes say three things.\nFirst \x1b[31mwe must [bold]not\x1b[0m"
    live.attached(story.state, lambda i: said if story.plan.ids[i] == "write" else b"")
    live.tick(story.state, story.now, story.now_m)
    assert terminal.screen(live._writer) == [
        "release-notes  r7k2  0:08  j4",
        "██████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  1/4",
        "  NODE   STATUS     TRY     TIME  TOKENS      COST  LAST",
        "● check  running    1/1     0:08",
        "● write  running    1/1     0:02                    First we must [bold]not",
        "✓ scan   completed  1/1     6.0s   3,600    $0.006  x",
        "  + 1 pending",
        "1 ok, 2 running, 1 pending   spent $0.006 · held $0.01 · cap $1.00   revision 1",
    ]


def test_of_what_a_model_says_the_end_is_shown(terminal: Terminal) -> None:
    story = research()
    live = show(story, terminal)
    live.attached(story.state, lambda i: b"one two three four five six seven" if story.plan.ids[i] == "write" else b"")
    live.tick(story.state, story.now, story.now_m)
    row = "● write  running    1/1     0:02                    …o three four five six seven"
    assert row in terminal.screen(live._writer)


@pytest.mark.parametrize("terminal", [120], indirect=True)
def test_an_agent_that_has_not_said_a_word_yet_says_whom_it_asks(terminal: Terminal) -> None:
    story = research()
    live = show(story, terminal)
    live.tick(story.state, story.now, story.now_m)
    lines = terminal.screen(live._writer)
    assert "● write  running       1  1/1     0:02                    asks anthropic/claude-haiku-4-5" in lines
    assert lines[-1] == "1 ok, 2 running, 1 pending   spent $0.006 · held $0.01 · cap $1.00   revision 1"


def test_long_names_leave_room_for_the_last_words_in_80_columns() -> None:
    columns, name, last = columns_for(80, 24, agents=True)
    assert [c.name for c in columns] == ["TRY", "TIME", "TOKENS", "COST"]
    assert name >= 16
    assert last >= 24
    columns, _, last = columns_for(120, 24, agents=True)
    assert [c.name for c in columns] == ["STATUS", "WAVE", "TRY", "TIME", "TOKENS", "COST"]
    assert last >= 30


def test_the_footer_keeps_the_money_longest() -> None:
    story = research()
    picture = take(story.state, story.now_m, 8, 10, {}, lambda i: b"", agents=True)
    for width in range(80, 45, -1):
        assert "spent $0.006 · held $0.01 · cap $1.00" in draw(picture, Look(), width, 24)[-1]
    assert "spent $0.006 - held $0.01 - cap $1.00" in draw(picture, Look(ASCII), 80, 24)[-1]


def test_money_without_a_cap_and_runs_without_agents() -> None:
    free = Talking(agent("a"), cap=None).begin("a")
    picture = take(free.state, free.now_m, 8, 10, {}, lambda i: b"", agents=True)
    assert draw(picture, Look(), 80, 24)[-1] == "1 running   spent $0.00   revision 1"
    spent = broke()
    picture = take(spent.state, spent.now_m, 8, 10, {0: None}, lambda i: b"", agents=True)
    lines = draw(picture, Look(), 80, 24)
    assert lines[-1] == "1 failed   spent $0.01 · held $0.00 · cap $0.02   revision 1"
    assert lines[3].startswith("✗ write  failed     1/1     2.0s             $0.01  node write: $0.01 are left,…")


def test_a_patch_that_brings_the_first_agent_brings_the_columns(terminal: Terminal) -> None:
    story = Story([node("a"), node("b")], schedule=Schedule.READY)
    live = show(story, terminal)
    story.start("a")
    live.tick(story.state, story.now, story.now_m)
    assert "COST" not in terminal.screen(live._writer)[2]
    new = node_to_json(agent("fix"))
    story.tell(PatchAdmitted(revision=2, base=1, operations=({"insert": {"id": "fix"}},), nodes={"fix": new}))
    live.tick(story.state, story.now, story.now_m)
    assert "COST" in terminal.screen(live._writer)[2]


def test_a_cost_is_never_too_wide_for_its_column() -> None:
    for nano in (1, 49_999, CENT, 99_999_999_999, 999 * 10**9):
        assert cells(money(nano)) <= {c.name: c.width for c in columns_for(120, 10, agents=True)[0]}["COST"]

"""GitHub Actions: annotations, guarded output, step summary, step outputs."""

from __future__ import annotations

import io
import re
from pathlib import Path

from dagrun.core.names import Outcome, Schedule
from dagrun.view.github import GithubLog, annotation, guarded, step_summary

from .agents_story import research
from .story import Story, node, release_notes

EVIL = b"::error::forged\n::add-mask::x\n##[set-env name=PATH]x\n\x1b[31mred\x1b[0m\n"


def run(story: Story, env: dict[str, str], read: object = None) -> tuple[GithubLog, io.StringIO]:
    stream = io.StringIO()
    log = GithubLog(stream, env=env, read=read, line_of=lambda i: i + 10)  # type: ignore[arg-type]
    log.attached(story.state, lambda i: b"")
    story.observers.append(log)
    return log, stream


def test_an_annotation_holds_anything_on_one_line() -> None:
    text = annotation("a,b:c\n", "50%\r\nline\x1b[2J two", file="f,1.yaml", line=3)
    assert text == "::error file=f%2C1.yaml,line=3,title=a%2Cb%3Ac ::50%25%0Aline two"
    assert annotation("t", "m") == "::error title=t::m"


def test_output_stands_between_random_tokens() -> None:
    one, two = guarded("::error::x"), guarded("::error::x")
    assert one != two
    found = re.fullmatch(r"::stop-commands::([0-9a-f]{32})\n::error::x\n::([0-9a-f]{32})::", one)
    assert found is not None
    assert found[1] == found[2]


def test_a_failed_node(tmp_path: Path) -> None:
    env = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "GITHUB_OUTPUT": str(tmp_path / "output")}
    (tmp_path / "output").write_text("before=1\n")
    story = Story([node("a"), node("b")], schedule=Schedule.READY)
    log, stream = run(story, env, lambda i: EVIL)
    story.start("a", "b").at(1).end("a", Outcome.FAILED, exit_code=2, summary="14 ##[error]dead links").end("b")
    story.finish()
    log.closed(story.state)
    lines = stream.getvalue().splitlines()
    assert lines[-2:] != []
    assert "::group::output of a (exit 2)" in lines
    stop = next(k for k, line in enumerate(lines) if line.startswith("::stop-commands::"))
    token = lines[stop].removeprefix("::stop-commands::")
    end = lines.index(f"::{token}::")
    assert lines[stop + 1 : end] == ["::error::forged", "::add-mask::x", "##[set-env name=PATH]x", "red"]
    outside = [line for k, line in enumerate(lines) if not stop < k < end]
    commands = [line for line in outside if line.startswith("::") and token not in line]
    assert [c.split("::")[1].split(" ")[0] for c in commands] == ["group", "endgroup", "error"]
    wanted = "::error file=flow.yaml,line=10,title=node a failed::exit 2%0A14 ##[error]dead links%0Adagrun logs r7k2 a"
    assert commands[-1] == wanted
    assert (tmp_path / "output").read_text() == "before=1\nrun-id=r7k2\nstatus=failed\n"
    assert "| a | failed | 1 | 1.0s | exit 2 |" in (tmp_path / "summary").read_text()


def test_no_log_line_holds_an_old_command() -> None:
    story = Story([node("a")])
    log, stream = run(story, {})
    story.start("a").end("a", Outcome.FAILED, error="##[add-mask]a")
    log._writer.flush(5)
    assert "##[" not in stream.getvalue().split("::error")[0]
    log.closed(story.finish().state)


def test_ten_annotations_at_most() -> None:
    for count in (9, 10, 11, 40):
        story = Story([node(f"n{k}") for k in range(count)], parallel=count)
        log, stream = run(story, {})
        story.start(*story.plan.ids)
        for name in story.plan.ids:
            story.end(name, Outcome.FAILED, exit_code=1)
        story.finish()
        log.closed(story.state)
        errors = [line for line in stream.getvalue().splitlines() if line.startswith("::error")]
        assert len(errors) == min(count, 10)
        if count == 40:
            assert errors[-1].endswith("title=and 31 more::31 more nodes failed: dagrun trace show r7k2 --failures")


def test_a_summary_that_can_not_be_written_is_left_out() -> None:
    story = Story([node("a")]).finish()
    log, _ = run(story, {"GITHUB_STEP_SUMMARY": "/no/such/folder/file"})
    log.closed(story.state)


def test_the_summary_shows_texts_as_they_are() -> None:
    story = Story([node("a")])
    story.start("a").end("a", Outcome.FAILED, error="<img src=x> | [link](http://x) `code` **bold**\nnext")
    text = step_summary(story.finish().state)
    row = next(line for line in text.splitlines() if line.startswith("| a "))
    assert row.count("|") == 6
    assert not set("<>`[]*") & set(row)


def test_a_huge_run_has_a_small_summary() -> None:
    story = Story([node(f"n{k}", title="x" * 1000) for k in range(3000)], parallel=3000).finish()
    text = step_summary(story.state)
    assert len(text) < 100_000
    assert "and 2,800 more nodes" in text
    assert "mermaid" not in text


def test_what_failed_comes_first() -> None:
    text = step_summary(release_notes().finish().state)
    assert text.splitlines()[6].startswith("| lint-docs | failed | 3 |")
    assert "```mermaid" in text


def test_agents_have_tokens_and_cost_in_the_step_summary(tmp_path: Path) -> None:
    env = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "GITHUB_OUTPUT": str(tmp_path / "output")}
    story = research()
    log, _ = run(story, env)
    log.closed(story.state)
    rows = (tmp_path / "summary").read_text().splitlines()
    assert "| node | status | tries | time | tokens | cost | why |" in rows
    assert "| scan | completed | 1 | 6.0s | 3,600 | &#36;0.006 | x |" in rows
    assert "| check | running | 1 | 6.0s |  |  |  |" in rows
    assert "spent &#36;0.006 of &#36;1.00" in "\n".join(rows)
    assert "cost=0.006000000" in (tmp_path / "output").read_text().splitlines()
    assert "tokens" not in step_summary(release_notes().state)

"""Skills: found in order, read in every dialect that exists, refused with the place where they can't be."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from dagrun.agent.skills import Skill, discover, find, load, search_path
from dagrun.errors import InputError, NotFoundError, Problem

ONE_LINE = "--- name: replanner description: Modifies graphs. allowed-tools: - Read category: DAG --- # Replanner"
SEEDS = Path(__file__).parent / "skills"
COMMAS = """---
name: runtime
description: Executes workflows with "waves". Use when: running one. NOT for planning.
allowed-tools: Read,Write,Edit,Bash,Grep,Glob
metadata:
  category: dag
---

# Runtime

Do it.
"""


def write(base: Path, name: str, text: str) -> Path:
    folder = base / name
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(text)
    return folder


def simple(name: str, more: str = "", body: str = "Do it.") -> str:
    return f"---\nname: {name}\ndescription: What {name} is for.\n{more}---\n{body}\n"


def refusal(folder: Path) -> Problem:
    with pytest.raises(InputError) as caught:
        load(str(folder))
    assert all(p.file == str(folder / "SKILL.md") for p in caught.value.problems)
    return next(p for p in caught.value.problems if p.severity == "error")


def warnings(skill: Skill) -> list[str]:
    return [p.message for p in skill.warnings]


def test_a_skill(tmp_path: Path) -> None:
    skill = load(str(write(tmp_path, "review", simple("review", "allowed-tools: Read Grep Bash(git:*)\n"))))
    assert (skill.name, skill.description, skill.body) == ("review", "What review is for.", "Do it.")
    assert skill.allowed_tools == ("Read", "Grep", "Bash(git:*)")
    assert len(skill.digest) == 64
    assert skill.warnings == ()


@pytest.mark.parametrize(
    "spelling",
    ["Read, Bash(git log:*)", "Read Bash(git log:*)", '["Read", "Bash(git log:*)"]', "\n  - Read\n  - Bash(git log:*)"],
)
def test_three_spellings_of_allowed_tools(tmp_path: Path, spelling: str) -> None:
    skill = load(str(write(tmp_path, "s", simple("s", f"allowed-tools: {spelling}\n"))))
    assert skill.allowed_tools == ("Read", "Bash(git log:*)")


def test_tools_that_dagrun_lacks_are_left_out(tmp_path: Path) -> None:
    skill = load(str(write(tmp_path, "s", simple("s", "allowed-tools: Read, TodoWrite\n"))))
    assert skill.allowed_tools == ("Read",)
    assert skill.warnings[0].line == 4
    assert "TodoWrite" in skill.warnings[0].message


def test_no_tools_is_not_nothing_said(tmp_path: Path) -> None:
    assert load(str(write(tmp_path, "a", simple("a", "allowed-tools: []\n")))).allowed_tools == ()
    assert load(str(write(tmp_path, "b", simple("b")))).allowed_tools is None


def test_an_unquoted_colon_is_read_as_it_is_meant(tmp_path: Path) -> None:
    skill = load(str(write(tmp_path, "runtime", COMMAS)))
    assert skill.description == 'Executes workflows with "waves". Use when: running one. NOT for planning.'
    assert skill.allowed_tools == ("Read", "Write", "Edit", "Bash", "Grep", "Glob")
    assert skill.body.startswith("# Runtime")
    assert skill.warnings[0].line == 3


def test_a_skill_that_lost_its_line_ends(tmp_path: Path) -> None:
    problem = refusal(write(tmp_path, "replanner", ONE_LINE))
    assert "lost its line ends" in problem.message
    assert problem.line == 1
    assert "on a line of its own" in problem.hint


def test_two_skills_of_the_wild() -> None:
    found = discover(search_path(str(SEEDS.parent), ""))
    assert [s.name for s in found.skills] == ["dag-runtime"]
    assert found.skills[0].allowed_tools == ("Read", "Write", "Edit", "Bash", "Grep", "Glob")
    assert found.skills[0].warnings == ()
    assert [(name, ps[0].line) for name, ps in found.broken] == [("dag-dynamic-replanner", 1)]


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("# no front matter\n", "does not begin with", 1),
        ("---\nname: s\n", "has no end", 1),
        ("---\nname: s\n---\n", "no `description`", 2),
        ("---\ndescription: d\n---\n", "no `name`", 2),
        ("---\nname: s\ndescription: [a]\n---\n", "`description` is no text", 3),
        ("---\n- a\n---\n", "no list of `key: value`", 2),
        ("---\nname: [s\ndescription: d\n---\n", "", 0),
        ("---\nname: s\nname: t\ndescription: d\n---\n", "name", 3),
    ],
)
def test_unreadable_skills(tmp_path: Path, text: str, words: str, line: int) -> None:
    problem = refusal(write(tmp_path, "s", text))
    assert words in problem.message
    assert line in (0, problem.line)


def test_a_skill_that_is_no_text_or_too_big(tmp_path: Path) -> None:
    folder = write(tmp_path, "s", "")
    (folder / "SKILL.md").write_bytes(b"---\nname: s\n\xff\n---\n")
    assert refusal(folder).line == 3
    (folder / "SKILL.md").write_bytes(b"x" * (2 << 20))
    assert "KiB" in refusal(folder).message


def test_a_skill_file_that_is_a_folder_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "folder" / "SKILL.md").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "SKILL.md")
    gc.collect()  # what other tests left open would be closed in between
    before = os.listdir("/proc/self/fd")
    assert "can't read the skill: Is a directory" in refusal(tmp_path / "folder").message
    assert "not a regular file" in refusal(tmp_path / "pipe").message
    assert set(os.listdir("/proc/self/fd")) <= set(before)


def test_odd_names_are_warned_about(tmp_path: Path) -> None:
    assert "no name for a skill" in warnings(load(str(write(tmp_path, "S", simple("My_Skill")))))[0]
    assert "but its folder `a`" in warnings(load(str(write(tmp_path, "a", simple("b")))))[0]
    long = load(str(write(tmp_path, "long", simple("long", body="x\n" * 600))))
    assert "are sent with every call" in warnings(long)[0]


def test_project_beats_user_and_the_first_folder_wins(tmp_path: Path) -> None:
    base, home = tmp_path / "project", tmp_path / "home"
    write(base / ".agents/skills", "a", simple("a"))
    write(base / "skills", "a", simple("a", body="first"))
    write(base / ".claude/skills", "b", simple("b"))
    write(home / ".claude/skills", "b", simple("b", body="of the user"))
    write(home / ".agents/skills", "c", simple("c"))
    write(home / ".agents/skills", "torn", "nothing")
    places = search_path(str(base), str(home))
    found = discover(places)
    assert [(s.name, s.owner) for s in found.skills] == [("a", "project"), ("b", "project"), ("c", "user")]
    assert found.skills[0].body == "first"
    assert sorted(s.owner for s in found.shadowed) == ["project", "user"]
    assert [name for name, _ in found.broken] == ["torn"]


def test_the_same_folder_is_looked_into_once(tmp_path: Path) -> None:
    write(tmp_path / "skills", "a", simple("a"))
    assert discover(search_path(str(tmp_path), str(tmp_path))).shadowed == ()


def test_find(tmp_path: Path) -> None:
    write(tmp_path / "skills", "folder", simple("review"))
    places = search_path(str(tmp_path), "")
    assert find("folder", places).name == find("review", places).name == "review"
    with pytest.raises(NotFoundError) as caught:
        find("reviw", places)
    assert "`review`" in caught.value.hint
    with pytest.raises(NotFoundError):
        find("../skills/folder", places)

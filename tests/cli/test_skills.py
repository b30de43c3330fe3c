"""skills list, show, validate."""

from __future__ import annotations

import pytest

from .space import Space

REVIEW = """
    ---
    name: code-review
    description: Reads a change and says what is wrong with it.
    allowed-tools: Read, Grep, Bash(git:*)
    ---
    # Review
    Read the change.
    """


@pytest.fixture
def taught(space: Space) -> Space:
    space.file("skills/code-review/SKILL.md", REVIEW)
    space.file(".claude/skills/torn/SKILL.md", "--- name: torn description: All in one line. ---\n")
    space.file("../home/.agents/skills/code-review/SKILL.md", REVIEW.replace("Reads", "Mine reads"))
    return space


def test_list(taught: Space) -> None:
    done = taught.run("skills", "list")
    assert done.code == 0
    assert done.out == (
        "SKILL        FROM     TOOLS                    DESCRIPTION\n"
        "code-review  project  Read, Grep, Bash(git:*)  Reads a change and says what is wrong with it.\n"
    )
    assert "/home/.agents/skills/code-review/SKILL.md is hidden by skills/code-review/SKILL.md" in done.err
    assert "the skill `torn` can't be read: dagrun skills validate torn" in done.err
    made = taught.run("skills", "list", "--json").json
    assert [s["name"] for s in made["skills"]] == ["code-review"]
    assert len(made["shadowed"]) == len(made["broken"]) == 1


def test_list_with_nothing_there(space: Space) -> None:
    done = space.run("skills", "list")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("no skills in ")


def test_show(taught: Space) -> None:
    done = taught.run("skills", "show", "code-review")
    assert done.code == 0
    assert done.out.endswith("\n# Review\nRead the change.\n")
    assert "tools        Read, Grep, Bash(git:*)\n" in done.out
    assert taught.run("skills", "show", "code-review", "--json").json["body"] == "# Review\nRead the change."
    missing = taught.run("skills", "show", "code-reviw")
    assert missing.code == 9
    assert "code-review" in missing.err
    assert taught.run("skills", "show", "torn").code == 3


def test_validate(taught: Space) -> None:
    done = taught.run("skills", "validate")
    assert done.code == 3
    assert "code-review: ok\n" in done.out
    assert ".claude/skills/torn/SKILL.md:1:1" in done.out
    assert "lost its line ends" in done.out
    assert taught.run("skills", "validate", "code-review", "skills/code-review").code == 0
    made = taught.run("skills", "validate", "torn", "--json")
    assert (made.code, made.json["valid"]) == (3, False)
    assert taught.run("skills", "validate", "nothing").code == 9


def test_hostile_text_stays_text(space: Space) -> None:
    text = "---\nname: evil\ndescription: \"[red]x[/] \\e[31m\\u202e\"\n---\n\x1b[2J[bold]body\n"
    path = space.file("skills/evil/SKILL.md")
    path.write_text(text)
    for words in (["list"], ["show", "evil"]):
        done = space.run("skills", *words)
        assert "\x1b" not in done.out + done.err
        assert "\u202e" not in done.out + done.err
        assert "[red]x[/]" in done.out


def test_beside_a_workflow(taught: Space) -> None:
    taught.file("flows/skills/other/SKILL.md", REVIEW.replace("code-review", "other"))
    assert [s["name"] for s in taught.run("skills", "list", "--flow", "flows/x.yaml", "--json").json["skills"]] == [
        "code-review",
        "other",
    ]

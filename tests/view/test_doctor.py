"""What doctor shows: the findings, the table of levels, the words for what is missing."""

from __future__ import annotations

from dagrun.view.doctor import Finding, Level, finding_lines, level_lines
from dagrun.view.text import PLAIN

NONE = Level(level="none", backend="plain", guarantees={"fds": "", "kill.tree": ""}, launch_ms=0.94)
HELD = Level(
    level="process",
    backend="bubblewrap",
    version="bubblewrap 0.8.0",
    guarantees={"fs.read": "", "fds": "", "mem": "no control group"},
    launch_ms=4.21,
)
NOT = Level(
    level="container",
    backend="docker",
    enough=False,
    guarantees={"fs.read": "no answer", "fds": "no answer"},
    hint="apt install docker.io",
    others=("podman: not installed (fs.read)",),
)


def test_a_level_is_a_column_and_a_guarantee_a_row() -> None:
    assert list(level_lines(PLAIN, [NONE, HELD, NOT])) == [
        "           none     process     container  a command can't",
        "           plain    bubblewrap  docker",
        "fs.read    –        ✓           ✗          read outside the granted paths",
        "fds        ✓        ✓           ✗          use descriptors of dagrun",
        "kill.tree  ✓        –           –          outlive the node",
        "mem        –        ✗           –          pass resources.memory",
        "launch     0.94 ms  4.21 ms     -",
        "✓ process: bubblewrap 0.8.0",
        "    mem: no control group",
        "✗ container: can't be held here",
        "    fs.read, fds: no answer",
        "    podman: not installed (fs.read)",
        "    help: apt install docker.io",
    ]


def test_what_a_program_says_of_itself_moves_no_cursor() -> None:
    held = {"fds": "\x1b]0;x\x07no"}
    evil = Level(level="process", backend="bubblewrap", version="\x1b[2Jbwrap\u202e 1", guarantees=held)
    text = "\n".join(level_lines(PLAIN, [evil]))
    assert "bwrap 1" in text
    assert text.replace("\n", "").isprintable()


def test_findings_and_only_what_is_wrong_when_quiet() -> None:
    found = [Finding("python", "ok", "3.11"), Finding("user", "warning", "root", "be another")]
    assert list(finding_lines(PLAIN, found)) == ["✓ python  3.11", "! user    root", "          help: be another"]
    assert list(finding_lines(PLAIN, found, quiet=True)) == ["! user    root", "          help: be another"]


def test_json_says_what_was_tried() -> None:
    level = Level(level="process", guarantees={"fds": "", "tty": "open"}, tried=("fds",))
    assert level.to_json()["guarantees"] == {
        "fds": {"held": True, "why": "", "tried": True},
        "tty": {"held": False, "why": "open", "tried": False},
    }

"""Help, the options of every command, commands that don't exist or don't exist yet."""

from __future__ import annotations

import os
from typing import Any

import pytest

from dagrun.cli.app import COMMANDS, program
from dagrun.cli.console import Settings
from dagrun.cli.groups import LazyGroup

from .space import Space

PATHS = [
    *((name,) for name in COMMANDS),
    ("trace", "show"),
    ("trace", "list"),
    ("trace", "follow"),
    ("trace", "export"),
    ("trace", "diff"),
    ("runs", "gc"),
    ("import", "wfformat"),
]


def help_of(*path: str) -> str:
    command: Any = program()
    context: Any = command.make_context("dagrun", [], obj=Settings(), resilient_parsing=True)
    for name in path:
        assert isinstance(command, LazyGroup)
        command = command.get_command(context, name)
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    return str(command.get_help(context))


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_has_a_help_with_an_example_in_80_columns(path: tuple[str, ...]) -> None:
    text = help_of(*path)
    assert text.startswith(f"Usage: dagrun {' '.join(path)}")
    assert "Examples:\n  " in text
    assert f"dagrun {path[0]}" in text.partition("Examples:")[2]
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "-C DIR, --json, -q, -v, --no-input, --color" in text


def test_the_program_shows_every_command() -> None:
    text = help_of()
    commands = text.partition("Commands:\n")[2]
    assert [line.split()[0] for line in commands.splitlines()] == list(COMMANDS)
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_the_help_of_the_table_is_the_help_of_the_command() -> None:
    """The table says what a command does without importing it: both must be a sentence."""
    assert all(entry.help.endswith(".") and len(entry.help) < 65 for entry in COMMANDS.values())


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("excute", "did you mean `dagrun execute`?"),
        ("run", "did you mean `dagrun execute`?"),
        ("show", "did you mean `dagrun trace show`?"),
        ("ls", "did you mean `dagrun runs`?"),
        ("lint", "did you mean `dagrun validate`?"),
        ("hello.yaml", "did you mean `dagrun execute hello.yaml`?"),
        ("zzz", "dagrun --help"),
    ],
)
def test_an_unknown_command_gets_a_suggestion(space: Space, word: str, hint: str) -> None:
    done = space.run(word)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error[usage]: there is no command `dagrun {word}`\n  help: ")
    assert hint in done.err


@pytest.mark.parametrize("words", [["--json", "version"], ["version", "--json"]])
def test_the_options_of_every_command_go_before_and_after_its_name(space: Space, words: list[str]) -> None:
    assert set(space.run(*words).json) == {"dagrun", "python", "platform"}


def test_a_folder_can_be_named_and_is_in_the_hints(space: Space) -> None:
    os.mkdir(space.folder / "a b")
    space.run("execute", "../fails.yaml", "-C", "a b", "-q")
    done = space.run("status", "-C", "a b")
    assert done.code == 0
    assert "dagrun -C 'a b' resume " in done.out
    assert (space.folder / "a b" / ".dagrun").is_dir()
    assert not (space.folder / ".dagrun").exists()


def test_a_folder_that_is_not_there(space: Space) -> None:
    done = space.run("-C", "nowhere", "status")
    assert done == (
        2,
        "",
        "error[usage]: can't work in nowhere: No such file or directory\n  help: -C DIR: a folder that is there\n",
    )


def test_a_bad_color(space: Space) -> None:
    done = space.run("version", "--color", "pink")
    assert done.code == 2
    assert "--color auto, --color always or --color never" in done.err


def test_alone_it_shows_the_help_and_the_last_run(space: Space) -> None:
    before = space.run()
    assert (before.code, before.err) == (0, "")
    assert before.out.rstrip().endswith("The version of dagrun.")
    space.run("execute", "hello.yaml", "-q")
    after = space.run().tidy()
    assert after.out.endswith("last run: hello ID completed, 0.0s ago\n  dagrun status ID\n")


def test_version(space: Space) -> None:
    from dagrun import __version__

    assert space.run("--version") == (0, f"dagrun {__version__}\n", "")
    assert space.run("version").out.startswith(f"dagrun {__version__} (Python 3.")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(space: Space, shell: str) -> None:
    done = space.run("completion", SHELL=f"/bin/{shell}")
    assert done == space.run("completion", shell)
    assert done.code == 0
    assert "_DAGRUN_COMPLETE" in done.out


def test_completion_completes(space: Space) -> None:
    def complete(line: str) -> list[str]:
        words = line.split(" ")
        env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return space.run(_DAGRUN_COMPLETE="complete_bash", **env).out.split()

    assert complete("dagrun exe") == ["execute"]
    assert complete("dagrun execute --o") == ["--only", "--outputs-of", "--otlp"]
    assert complete("dagrun trace f") == ["follow"]
    assert complete("dagrun trace d") == ["diff"]
    assert space.run("completion", "tcsh").code == 2

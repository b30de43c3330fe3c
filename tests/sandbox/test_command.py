from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.sandbox.command import command_argv, is_plain


def test_a_list_is_argv_and_never_a_shell() -> None:
    assert command_argv(("echo", "a && b; $HOME")) == ("echo", "a && b; $HOME")


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("true", ("true",)),
        ("  true \n", ("true",)),
        ("./fetch.sh out/raw.json -n 3", ("./fetch.sh", "out/raw.json", "-n", "3")),
        ("make CC=gcc all", ("make", "CC=gcc", "all")),
        ("date\t+%s", ("date", "+%s")),
    ],
)
def test_plain_words_leave_the_shell_out(text: str, argv: tuple[str, ...]) -> None:
    assert command_argv(text) == argv
    assert command_argv(text, "bash") == argv


@pytest.mark.parametrize(
    "text",
    [
        "echo hi",
        "cd x",
        "A=1 make",
        "a; b",
        "a && b",
        "a | b",
        "a > f",
        "a $B",
        "a 'b'",
        "a *",
        "a ?",
        "a [b]",
        "a ~",
        "a {b,c}",
        "a # b",
        "a\nb",
        "!a",
        "if",
        ". x",
        "[ a ]",
        "test x",
        "printf x",
        "a\\ b",
        "wait",
        "ls é",
        "",
        " ",
        "exec true",
        ": x",
        "a `b`",
        "a\rb",
        "1",
    ],
)
def test_anything_a_shell_would_read_goes_to_the_shell(text: str) -> None:
    assert command_argv(text) == ("sh", "-e", "-c", text)
    assert command_argv(text, "bash") == ("bash", "-eo", "pipefail", "-c", text)


def test_a_script_that_begins_with_a_dash_is_no_option() -> None:
    argv = command_argv("-nosuch; true")
    assert argv[-1] == " -nosuch; true"
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 127


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abZ09_./+:@,=%-", min_size=1, max_size=8), min_size=1, max_size=4))
def test_law_leaving_the_shell_out_changes_no_word(words: list[str]) -> None:
    """Whatever is taken for plain, a shell splits into the same words."""
    text = " ".join(["first", *words])
    if is_plain(text):
        show = f'first() {{ for w in "$@"; do printf "%s\\n" "$w"; done; }}; {text}'
        seen = subprocess.run(["sh", "-c", show], capture_output=True, text=True, check=True).stdout.splitlines()
        assert tuple(seen) == command_argv(text)[1:]

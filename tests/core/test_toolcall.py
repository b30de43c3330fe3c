"""Which calls of a tool its patterns name, and that nothing hostile passes for a plain command."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.core.names import Json
from dagrun.core.toolcall import allows, simple_command

GIT = ("Bash(git:*)", "Bash(make test)")


def bash(command: Json, patterns: Iterable[str] = GIT) -> bool:
    return allows(patterns, "Bash", {"command": command})


@pytest.mark.parametrize(
    "command",
    [
        "git",
        "git status",
        "  git\tlog   --oneline ",
        "git log -n 5 -- src/a.py",
        "git commit -m 'two\nlines; not `run`, $(nor) this'",
        'git commit -m "a \\"quoted\\" \\$word & more"',
        "'git' status",
        "g'i't status",
        'git commit -m ""',
        "git show HEAD^",
        "git diff a..b",
        "git add \\*.py",
        "git grep 'a|b'",
        "make test",
        "git " + "x" * 100_000,
        # policy, not containment: this runs a shell, and the pattern says git
        "git -c alias.x='!sh -c id' x",
    ],
)
def test_a_plain_command_is_told_by_its_words(command: str) -> None:
    assert bash(command)


HOSTILE = [
    "",
    " ",
    "gitx",
    "make",
    "make test x",
    "GIT status",
    "./git status",
    "/tmp/git status",
    "rm -rf x",
    "git status; rm x",
    "git status & rm x",
    "git status && rm x",
    "git status || rm x",
    "git status | sh",
    "git status |& sh",
    "git status\nrm x",
    "git status\r\nrm x",
    "git status\x0brm",
    "git\x00status",
    "git status \x1b[2J",
    "git\xa0status; x",
    "git\u2028rm",
    "git `id`",
    "git $(id)",
    "git ${IFS}x",
    "git$IFS-x",
    "git $IFS",
    "git $'\\x3b' rm",
    'git $"x"',
    'git "$(id)"',
    'git "`id`"',
    'git "${HOME}"',
    "git <(id)",
    "git >(id)",
    "git > out",
    "git >> out",
    "git 2>&1",
    "git < in",
    "git << EOF",
    "git <<< x",
    "(git status)",
    "{ git status; }",
    "! git status",
    "time git status",
    "if git; then x; fi",
    "FOO=1 git status",
    "PATH=/tmp git status",
    "LD_PRELOAD=/tmp/x.so git",
    "'FOO'=1 git",
    "git *",
    "git a?b",
    "git [ab]",
    "git {a,b}",
    "git ~/x",
    "git ~root",
    "git # rm",
    "#git",
    "git !x",
    "git 'unclosed",
    'git "unclosed',
    "git \\",
    "git \\\nx",
    'git "a\\\nb"',
    "git \\ x",
    "git 'a\x00b'",
    "git 'a\x1bb'",
    "git 'a\u202eb'",
    "eval git",
    "command git",
    "exec git",
    "\\git\n",
    "git\\",
    "gi\\\nt status",
    "'git status'",
    '"git status"',
    "git;",
    "git&",
    "coproc git",
    "function git",
    "git() x",
    "alias git=x",
    "[[ git ]]",
    "git \ud800",
]


@pytest.mark.parametrize("command", HOSTILE)
def test_nothing_else_passes_for_one(command: str) -> None:
    assert not bash(command)


@pytest.mark.parametrize("command", [None, 1, True, ["git"], {"git": 1}])
def test_a_command_is_text(command: Json) -> None:
    assert not bash(command)
    assert not allows(GIT, "Bash", {})
    assert not allows(GIT, "Bash", {"cmd": "git"})


def test_bash_without_arguments_is_anything() -> None:
    assert all(bash(command, ["Bash"]) for command in HOSTILE)


def test_exactly_these_words() -> None:
    assert bash("git  status", ["Bash(git status)"])
    assert not bash("git status -s", ["Bash(git status)"])
    assert not bash("git", ["Bash(git status)"])


@pytest.mark.parametrize("command", ["FOO=1 git", "FOO=1", "a+=1 x", "if git", "then git", "! git", "time git", "[[ a"])
def test_no_assignment_and_no_reserved_word_begins_a_command(command: str) -> None:
    assert simple_command(command) is None


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ('x "a\\b" "c\\d" "\\$e"', ("x", "a\\b", "c\\d", "$e")),
        ("x 'a\\b' c\\;d", ("x", "a\\b", "c;d")),
        ("x a'b c'd\"e f\"", ("x", "ab cde f")),
        ("x '' \"\" y", ("x", "", "", "y")),
    ],
)
def test_quotes_are_taken_off_as_a_shell_does(command: str, words: tuple[str, ...]) -> None:
    assert simple_command(command) == words


# what a shell might do something with: the words that it makes of a command are compared with ours
MARKS = st.sampled_from([*"'\"\\$`();&|<>*?[]{}~#!=%^,@:/.-\r\n", "$(", "$IFS", "\\'", '\\"', "{a,b}", "[a]"])
PLAIN = st.sampled_from([" ", " ", "a", "b", "0", "é", "\t", "'", "'", '"', '"', "a b"])
SHELLS = [path for path in map(shutil.which, ("sh", "bash")) if path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("files")
    for name in ("a", "b", "0", "ab", "aa"):  # so that a glob has something to find
        (made / name).touch()
    return str(made)


@pytest.mark.skipif(not SHELLS, reason="no shell on this machine")
@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=300)
@given(st.lists(MARKS | PLAIN | PLAIN, max_size=7).map("".join))
def test_a_shell_makes_the_same_words_of_what_passes(folder: str, shell: str, tail: str) -> None:
    words = simple_command(f"git {tail}")
    if words is None:
        return
    # `git` is a function there, which shows its words; whatever else the shell would do shows too
    script = f"git() {{ printf '<%s>' \"$@\"; }}\ngit {tail}\n"
    env = {"PATH": "/nonexistent", "HOME": "/home/of", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([shell, "-c", script], capture_output=True, cwd=folder, env=env)
    assert done.stdout.decode() == ("".join(f"<{word}>" for word in words[1:]) or "<>")
    assert done.stderr == b""


@given(st.text(max_size=20), st.text(max_size=20))
def test_quoting_keeps_any_text_that_can_be_seen_together(before: str, after: str) -> None:
    from shlex import quote

    words = simple_command(f"git {quote(before)} {quote(after)}")
    if words is not None:
        assert words == ("git", before, after)
    else:
        assert not all(c.isprintable() or c in "\n\t" for c in before + after)


# ---------------------------------------------------------------- files and other tools

READS = ("Read(src/**)", "Read(docs/*.md)", "Read(/srv/data)", "Grep(src)", "Glob(src)")


@pytest.mark.parametrize("path", ["src", "src/a.py", "./src/a", "docs/a.md", "/srv/data/x", "/p/src/a", "/p/docs/b.md"])
def test_a_path_below_a_root(path: str) -> None:
    assert allows(READS, "Read", {"file_path": path}, project="/p")


@pytest.mark.parametrize(
    "path",
    [
        ".",
        "a",
        "srcx",
        "src/../a",
        "src/a/../../b",
        "../src/a",
        "docs/a.txt",
        "docs/sub/a.md",
        "docs/.a.md",
        "/srv",
        "/srv/database",
        "/srv/data/../x",
        "/p",
        "/p/a",
        "/px/src/a",
        "/q/src/a",
        "~/src",
        "",
        "src\0",
        "src/\n",
        None,
        1,
        ["src"],
    ],
)
def test_no_other_path(path: Json) -> None:
    assert not allows(READS, "Read", {"file_path": path}, project="/p")


def test_a_search_stays_in_its_directory() -> None:
    assert allows(READS, "Grep", {"pattern": "../x|/etc", "path": "src"})
    assert allows(READS, "Grep", {"pattern": "x", "path": "src/a", "glob": "**/*.py"})
    assert not allows(READS, "Grep", {"pattern": "x"})
    assert not allows(READS, "Grep", {"pattern": "x", "path": "src", "glob": "../*"})
    assert allows(READS, "Glob", {"pattern": "**/*.py", "path": "src"})
    assert not allows(READS, "Glob", {"pattern": "src/*.py"})
    assert not allows(READS, "Glob", {"pattern": "../**", "path": "src"})
    assert not allows(READS, "Glob", {"pattern": "{..,a}/*", "path": "src"})
    assert not allows(READS, "Glob", {"pattern": "/etc/*", "path": "src"})
    assert allows(["Glob(.)"], "Glob", {"pattern": "*"})


def test_a_tool_is_not_another() -> None:
    assert not allows(READS, "Write", {"file_path": "src/a", "content": ""})
    assert not allows(["Write"], "Edit", {"file_path": "a"})
    assert not allows(["Read"], "read", {"file_path": "a"})
    assert not allows([], "Read", {"file_path": "a"})


def test_tools_of_mcp_servers() -> None:
    assert allows(["mcp__gh__list"], "mcp__gh__list", {"any": "thing"})
    assert not allows(["mcp__gh__list"], "mcp__gh__list_all", {})
    assert allows(["mcp__gh__*"], "mcp__gh__x", {})
    assert not allows(["mcp__gh__*"], "mcp__gh__", {})
    assert not allows(["mcp__gh__*"], "mcp__ghx__y", {})

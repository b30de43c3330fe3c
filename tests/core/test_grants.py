"""Which texts are roots, tools, models and hosts, and what is said of those that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.grants import call_of, host_fault, host_of, model_fault, tool_fault
from dagrun.core.roots import Root, covers, denied_of, denies, inside, matches, path_fault, root_of

# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("text", "root"),
    [
        (".", "."),
        ("./", "."),
        ("**", "."),
        ("src", "src"),
        ("./src//lib/./", "src/lib"),
        ("src/**", "src"),
        ("src/**/**", "src"),
        ("src/**/**/*.py", "src/**/*.py"),
        ("..", ".."),
        ("../../data/x", "../../data/x"),
        ("/opt/data/", "/opt/data"),
        ("//opt", "/opt"),
        ("~/data", "~/data"),
        ("./~x", "./~x"),
        ("a~b", "a~b"),
        ("...", "..."),
        ("a b'c\"d", "a b'c\"d"),
        ("ünïcode/日本", "ünïcode/日本"),
        (".env", ".env"),
    ],
)
def test_a_root_has_one_form_that_is_read_as_itself(text: str, root: str) -> None:
    assert path_fault(text) is None
    assert path_fault(text, write=True) is None
    assert str(root_of(text)) == root
    assert root_of(root) == root_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\0b",
        "a\nb",
        "a\x1b[31m",
        "a\u202eb",
        "a\u200bb",
        "\ud800",
        "a:b",
        "a,b",
        "a\\b",
        "~root",
        "~root/x",
        "$HOME/x",
        "${HOME}/x",
        "${{ params.x }}",
        "$(pwd)",
        "a/../b",
        "../a/..",
        "/..",
        "/opt/../etc",
        "~/..",
        "/",
        "//",
        "/.",
        "/**",
        "/*",
        "/*/etc",
        "/[e]tc",
        "/proc",
        "/proc/self/root",
        "/sys/fs",
        "/dev/sda",
        "//proc/1",
        "/./proc/1",
        "~",
        "~/",
        "~/*",
        "~/.*",
        ".dagrun",
        "./.dagrun/runs",
        "sub/.dagrun",
        "/home/me/p/.dagrun/x",
        "x" * 256,
        "x/" * 2048,
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_what_can_be_no_root_is_refused_in_words(text: str, write: bool) -> None:
    fault = path_fault(text, write=write)
    assert fault is not None
    assert fault[0]
    assert "\n" not in fault[0] + fault[1]


@pytest.mark.parametrize(
    "text", [".git/hooks", "sub/.git/hooks/x", ".git/config", ".git/info/attributes", "~/r/.git/hooks"]
)
def test_what_git_runs_is_read_and_never_written(text: str) -> None:
    assert path_fault(text) is None
    assert path_fault(text, write=True) is not None
    assert path_fault(".git", write=True) is None


def test_a_way_around_is_shown_straight() -> None:
    assert path_fault("a/b/../c") == ("`..` may only stand at the beginning of a relative path", "write a/c")
    assert path_fault("../a/../../c") == ("`..` may only stand at the beginning of a relative path", "write ../../c")


def test_more_may_be_denied_than_granted() -> None:
    for text in ("/", "/proc", "~", ".dagrun", "~/*"):
        assert path_fault(text, deny=True) is None
    for text in ("", "a\0", "~root", "a/../b"):
        assert path_fault(text, deny=True) is not None


@pytest.mark.parametrize(
    ("child", "parent", "expected"),
    [
        ("a/b", "a", True),
        ("a", "a/b", False),
        ("ab", "a", False),
        ("a", ".", True),
        (".", "..", True),
        ("..", ".", False),
        ("../x", ".", False),
        ("a", "../..", True),
        ("a", "../x", False),
        ("../x/y", "../x", True),
        ("/opt/a", "/opt", True),
        ("/opt", ".", False),
        ("opt", "/opt", False),
        ("~/a/b", "~/a", True),
        ("~/a", "a", False),
        ("a/*", "a", True),
        ("a/*", "a/*", True),
        ("a/*/c", "a/*", True),
        ("a/x", "a/*", False),
        ("a/**", "a", True),
    ],
)
def test_inside_is_a_question_of_text(child: str, parent: str, expected: bool) -> None:
    assert inside(root_of(child), root_of(parent)) is expected


@pytest.mark.parametrize(
    ("place", "pattern", "expected"),
    [
        ("a/x.py", "a/*.py", True),
        ("a/x.py/y", "a/*.py", True),
        ("a/.x.py", "a/*.py", False),
        ("a/.x.py", "a/.*.py", True),
        ("a/b/c/x.py", "a/**/*.py", True),
        ("a/x.py", "a/**/*.py", True),
        ("b/x.py", "a/**/*.py", False),
        ("a/x.pyc", "a/*.py", False),
        ("x", "**/x", True),
        ("a/[b]", "a/[b]", True),
        ("a/b", "a/[!b]", False),
        ("/a/x.py", "a/*.py", False),
        ("../a/x.py", "a/*.py", False),
    ],
)
def test_a_place_fits_a_glob_by_its_names(place: str, pattern: str, expected: bool) -> None:
    assert matches(root_of(place), root_of(pattern)) is expected


@pytest.mark.parametrize(
    ("pattern", "place", "expected"),
    [
        (".env*", ".env.local", True),
        (".env*", "a/b/.env/c", True),
        (".env*", "a", False),
        ("*", ".hidden", True),
        ("secrets/", "a/secrets", True),
        ("./secrets", "a/secrets", False),
        ("./secrets", "secrets/x", True),
        ("a/*.pem", "a/.x.pem", True),
        ("a/*.pem", "b/x.pem", False),
        ("**/x", "a/b/x", True),
        ("..", "a", True),
        ("/srv/*/key", "/srv/a/key", True),
        ("*.pem", "/srv/a.pem", True),
        ("a", "*/a", True),
        ("?", "*", False),
        ("a?", "a*", False),
    ],
)
def test_what_a_pattern_denies(pattern: str, place: str, expected: bool) -> None:
    assert denies(denied_of(pattern), root_of(place)) is expected


PATTERNS = ("a", "b", "*", "a*", "?", "./a", "a/*", "a/b", "*/a", "a/**/b", "**/a", "..", ".", "/a", "/*/a", "~/a")
DENIED = st.sampled_from(PATTERNS).map(denied_of)


@given(DENIED, DENIED, DENIED)
def test_what_covers_goes_on(a: Root | str, b: Root | str, c: Root | str) -> None:
    assert covers(a, a)
    if covers(a, b) and covers(b, c):
        assert covers(a, c)
    if a != b and covers(a, b):
        assert not covers(b, a)


@given(st.text(max_size=30))
def test_any_text_gets_an_answer(text: str) -> None:
    for fault in (path_fault(text), path_fault(text, write=True), tool_fault(text), model_fault(text)):
        assert fault is None or fault[0]
    if path_fault(text) is None:
        assert root_of(str(root_of(text))) == root_of(text)
        assert path_fault(str(root_of(text))) is None
    assert tool_fault(f"Bash({text})") is not None or str(call_of(f"Bash({text})")).startswith("Bash(")


# ---------------------------------------------------------------- tools


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Read", "Read"),
        ("Bash", "Bash"),
        ("Bash(git:*)", "Bash(git:*)"),
        ("Bash(git  log --oneline:*)", "Bash(git log --oneline:*)"),
        ("Bash(npm run test:unit)", "Bash(npm run test:unit)"),
        ("Read(./src/**)", "Read(src)"),
        ("Edit(src/**/*.py)", "Edit(src/**/*.py)"),
        ("Grep(../shared)", "Grep(../shared)"),
        ("mcp__github__list_issues", "mcp__github__list_issues"),
        ("mcp__my_server__*", "mcp__my_server__*"),
    ],
)
def test_a_tool_has_one_form(text: str, form: str) -> None:
    assert tool_fault(text) is None
    assert str(call_of(text)) == form
    assert call_of(form) == call_of(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("read", "write Read"),
        ("Grepp", "did you mean `Grep`?"),
        ("Bash(git:*", "write Bash(git:*)"),
        ("WebFetch", "there are Read, Write, Edit, Bash, Grep, Glob, and mcp__SERVER__TOOL"),
        ("Bash(*)", "write Bash"),
        ("Bash()", "write Bash"),
        ("Bash(:*)", "write Bash"),
        ("Bash(git *)", "write Bash(git:*)"),
        ("Bash(git; rm)", "write the words that a command begins with: Bash(git log:*)"),
        ("Bash($(x):*)", "write the words that a command begins with: Bash(git log:*)"),
        ("Bash('git':*)", "write the words that a command begins with: Bash(git log:*)"),
        ("Bash(FOO=1 git:*)", "write the name of a program"),
        ("Bash(then:*)", "write the name of a program"),
        ("mcp__github", "write mcp__SERVER__TOOL, or mcp__SERVER__* for all of them"),
        ("mcp__a__b(x)", "write mcp__SERVER__TOOL, or mcp__SERVER__* for all of them"),
        ("mcp__*", "write mcp__SERVER__TOOL, or mcp__SERVER__* for all of them"),
        ("Read(/proc/1)", "a sandbox has its own"),
    ],
)
def test_what_is_no_tool_is_refused_with_what_to_write(text: str, hint: str) -> None:
    fault = tool_fault(text)
    assert fault is not None
    assert fault[1] == hint


@pytest.mark.parametrize(
    "text", ["", "Bash(", "Bash)", "(Bash)", "Bash(a)b", "Read()", "Read(a:b)", "Write(.git/hooks)", "Ba\nsh", "Read "]
)
def test_other_texts_are_no_tools(text: str) -> None:
    assert tool_fault(text) is not None


# ---------------------------------------------------------------- models


@pytest.mark.parametrize(
    "text", ["cheap", "anthropic/claude-haiku-4-5", "v/*", "v/a-*", "*", "a.b/c:d@e+f", "ollama/x:7b"]
)
def test_models(text: str) -> None:
    assert model_fault(text) is None


@pytest.mark.parametrize("text", ["", "a b", "a*b", "*a", "che*", "a//b", "/a", "a\tb", "é", "**", "-a"])
def test_what_is_no_model(text: str) -> None:
    assert model_fault(text) is not None


# ---------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("text", "name", "port", "wild"),
    [
        ("localhost", "localhost", 0, False),
        ("example.com", "example.com", 0, False),
        ("example.com:443", "example.com", 443, False),
        ("*.example.com", "example.com", 0, True),
        ("*.example.com:8080", "example.com", 8080, True),
        ("127.0.0.1:80", "127.0.0.1", 80, False),
        ("[::1]", "[::1]", 0, False),
        ("[2001:db8::1]:443", "[2001:db8::1]", 443, False),
        ("my_service", "my_service", 0, False),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", 0, False),
    ],
)
def test_a_host(text: str, name: str, port: int, wild: bool) -> None:
    assert host_fault(text) is None
    assert host_of(text) == (name, port, wild)
    assert str(host_of(text)) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://example.com/x", "write example.com"),
        ("user@example.com", "write example.com"),
        ("Example.com", "write example.com"),
        ("example.com.", "write example.com"),
        ("*", "write any instead of the list"),
        ("*.com", "name a domain of at least two parts: *.example.com"),
        ("a.*.com", "write *.example.com"),
        ("example.com:0", "write example.com for every port, or example.com:443"),
        ("example.com:65536", "write example.com for every port, or example.com:443"),
        ("example.com:0443", "write example.com for every port, or example.com:443"),
        ("example.com:٤٤٣", "write example.com for every port, or example.com:443"),
        ("::1", "write [::1]"),
        ("[::0001]:80", "write [::1]:80"),
        ("[::ffff:127.0.0.1]", "write 127.0.0.1"),
    ],
)
def test_what_is_no_host_is_refused_with_what_to_write(text: str, hint: str) -> None:
    fault = host_fault(text)
    assert fault is not None
    assert fault[1] == hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a..b",
        "-a.b",
        "a-.b",
        "a b",
        "bücher.example",
        "x" * 64 + ".com",
        ".".join(["abcdefgh"] * 30),
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.256",
        "1.2.3.4.5",
        "*.1.2.3.4",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1]:",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "exa\u200bmple.com",
        "example.com:443:1",
        "http:",
    ],
)
def test_other_texts_are_no_hosts(text: str) -> None:
    fault = host_fault(text)
    assert fault is not None
    assert fault[0]

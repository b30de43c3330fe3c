"""YAML text to a tree: limits before construction, source text kept, traps named, places that hold."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dagrun.core.workflow import Fault
from dagrun.errors import InputError, Problem, render_problem
from dagrun.flowfile import compose
from dagrun.flowfile.purepython import PureParser
from dagrun.flowfile.source import MAX_BYTES, Plain, Tree, parse


def wrong(text: str | bytes) -> tuple[Problem, ...]:
    """The problems of a text by itself."""
    data = text if isinstance(text, bytes) else text.encode()
    try:
        return tuple(parse(data, "flow.yaml").problems)
    except InputError as error:
        return error.problems


def spot(text: str, *path: str | int, on_key: bool = False, offset: int = 0, length: int = 0) -> tuple[int, int, int]:
    """Line, column and length of a fault in a text."""
    fault = Fault(path, "x", "x", on_key=on_key, offset=offset, length=length)
    got = parse(text.encode(), "flow.yaml").problem(fault)
    return got.line, got.column, got.length


# ---------------------------------------------------------------- what is accepted

PLAIN = "name: demo\nnodes:\n  a:\n    run: echo\n"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PLAIN.encode(), id="lf"),
        pytest.param(b"\xef\xbb\xbf" + PLAIN.encode(), id="bom"),
        pytest.param(PLAIN.replace("\n", "\r\n").encode(), id="crlf"),
        pytest.param(PLAIN.rstrip("\n").encode(), id="no-last-newline"),
        pytest.param(b"---\n" + PLAIN.encode() + b"...\n", id="document-markers"),
        pytest.param(b'{"name":"demo","nodes":{"a":{"run":"echo"}}}', id="json"),
        pytest.param(b'{\n\t"name": "demo",\n\t"nodes": {"a": {"run": "echo"}}\n}', id="json-with-tabs"),
        pytest.param(b"# yaml-language-server: $schema=x.json\n" + PLAIN.encode(), id="modeline"),
    ],
)
def test_the_same_tree_from_every_spelling(data: bytes) -> None:
    tree = parse(data, "flow.yaml")
    assert tree.value == {"name": "demo", "nodes": {"a": {"run": "echo"}}}
    assert tree.problems == []


@pytest.mark.parametrize(
    "source", ["true", "3.10", "0.50", "no", "012", "1_000", "0x1F", "12:30:00", "~", "2026-01-01"]
)
def test_scalars_are_their_source_text(source: str) -> None:
    value = parse(f"a: {source}\nb: '{source}'\n".encode(), "").value
    assert isinstance(value, dict)
    assert value["a"] == source
    assert type(value["a"]) is Plain
    assert value["b"] == source
    assert type(value["b"]) is str


def test_aliases_repeat_a_value() -> None:
    assert parse(b"a: &x [1, {b: 2}]\nc: *x\n", "").value == {"a": ["1", {"b": "2"}], "c": ["1", {"b": "2"}]}


def test_json_escapes_beyond_the_basic_plane_keep_places() -> None:
    text = json.dumps({"a": "\N{GRINNING FACE}", "b": ["\\ud83d\\ude00", "x"]})
    tree = parse(text.encode(), "flow.json")
    assert tree.value == json.loads(text)
    problem = tree.problem(Fault(("b", 1), "x", "x"))
    assert problem.column == text.index('"x"') + 1
    assert problem.excerpt[-1][1] == text


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "code", "place", "hint"),
    [
        ("env: {A: ${{ params.x }}}\n", "quote-expression", (1, 10), "'${{ params.x }}'"),
        ("run: [echo, a-${{ inputs.x }}-b]\n", "quote-expression", (1, 13), "'a-${{ inputs.x }}-b'"),
        ("if: !cancelled()\n", "quote-bang", (1, 5), "'!cancelled()'"),
        ("if: !failure() && inputs.x\n", "quote-bang", (1, 5), "'!failure() && inputs.x'"),
        ("artifacts: [*.pem]\n", "quote-star", (1, 13), "'*.pem'"),
        ("artifacts:\n  - **/*.py\n", "quote-star", (2, 5), "'**/*.py'"),
        ("artifacts: [*pem]\n", "alias", (1, 13), "'*pem'"),
        ('run: echo "a #b" c\n', "quote-hash", (1, 14), "'echo \"a #b\" c'"),
        ("if: inputs.x != ' #1'\n", "quote-hash", (1, 19), "\"inputs.x != ' #1'\""),
        ("run: echo a: b\n", "quote-colon", (1, 6), "run: 'echo a: b'"),
        ("nodes:\n\ta: b\n", "tab", (2, 1), "spaces"),
        ("nodes:\n  a:\n  \tb: c\n", "tab", (3, 3), "spaces"),
        ("run: @x\n", "quote-character", (1, 6), "'@x'"),
        ("run: `date`\n", "quote-character", (1, 6), "'`date`'"),
        ("run: %x\n", "quote-character", (1, 6), "'%x'"),
        ('run: "C:\\path"\n', "escape", (1, 9), "single quotes"),
        ('{"name": "\\ud83d"}', "escape", (1, 11), "other half"),
        ('{"name": "a\\udE80b"}', "escape", (1, 12), "other half"),
        ('{"name": "\\u12"}', "escape", (1, 11), "for a backslash"),
        ('{"name": "\\xzz"}', "escape", (1, 11), "for a backslash"),
        ('{"name": "\\UFFFFFFFF"}', "escape", (1, 11), "for a backslash"),
        ('run: "x\n', "open-quote", (1, 6), '"'),
        ("run: 'a' b\n", "after-quote", (1, 10), "one pair of quotes"),
        ("a: 1\nrun:make\nb: 2\n", "no-colon", (2, 1), "run: make"),
        ("a: [b, c\nd: e\n", "flow", (1, 4), "]"),
        ("a: {{ x }}\n", "bad-key", (1, 5), '"${{ x }}"'),
        ("nodes:\n  a:\n    run: x\n   b:\n    run: y\n", "indent", (4, 4), "2 spaces"),
        ("a: 1\n  b: 2\n", "indent", (2, 3), "same indentation"),
        ("- a\nb: c\n", "indent", (2, 1), "- "),
        ("a: !!python/object/apply:os.system [id]\n", "tag", (1, 4), "remove"),
        ("a: !!str 3\n", "tag", (1, 4), "remove"),
        ("<<: {a: 1}\n", "merge-key", (1, 1), "defaults"),
        ("a: 1\nb: 2\na: 3\n", "duplicate-key", (3, 1), "remove one"),
        ("a: &x [*x]\n", "alias", (1, 8), ""),
        ("a: &x {b: *x}\n", "alias", (1, 11), ""),
        ("a: 1\n---\nb: 2\n", "documents", (2, 1), "---"),
        ("? [a]\n: b\n", "bad-key", (1, 3), ""),
        ('"": x\n', "bad-key", (1, 1), ""),
        ('a: "\\0"\n', "control-character", (1, 4), ""),
        ("a: x\0y\n", "control-character", (1, 5), "remove"),
        ("a: \x1b[31m\n", "control-character", (1, 4), "\\u001b"),
        ("", "empty", (1, 1), "nodes"),
        ("\n# only a comment\n", "empty", (1, 1), "nodes"),
    ],
)
def test_a_trap_is_named_with_the_way_out(text: str, code: str, place: tuple[int, int], hint: str) -> None:
    first = wrong(text)[0]
    assert (first.code, (first.line, first.column)) == (code, place)
    assert hint in first.hint


@pytest.mark.parametrize(
    "text",
    [
        "run: echo a # it's a comment\n",
        "d: don't # do it, it's bad\n",
        'run: echo "a" # "b"\n',
        "if: x == '#'\n",
        "a: b#c\n",
    ],
)
def test_an_honest_comment_is_no_trap(text: str) -> None:
    assert wrong(text) == ()


def test_all_problems_of_a_readable_text_are_found() -> None:
    text = "a: !x\na: 1\n<<: 2\nb: *no\nb: 3\n"
    assert [(p.code, p.line) for p in wrong(text)] == [
        ("quote-bang", 1),
        ("duplicate-key", 2),
        ("merge-key", 3),
        ("alias", 4),
        ("duplicate-key", 5),
    ]
    assert "first in line 1" in wrong(text)[1].message


@pytest.mark.parametrize(
    ("data", "message", "line", "column"),
    [
        (b"a: \xe4\n", "byte 0xe4 is not UTF-8", 1, 4),
        ("n: \u00e4\u6f22\nb: ".encode() + b"\xff", "byte 0xff is not UTF-8", 2, 4),
        (b"a: \xed\xa0\x80\n", "byte 0xed is not UTF-8", 1, 4),
        ("a: b\n".encode("utf-16"), "UTF-16", 0, 0),
    ],
)
def test_only_utf8(data: bytes, message: str, line: int, column: int) -> None:
    (problem,) = wrong(data)
    assert problem.code == "not-utf8"
    assert message in problem.message
    assert (problem.line, problem.column) == (line, column)


# ---------------------------------------------------------------- limits


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x, x, x, x]"]
    for k in range(1, levels):
        lines.append(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]")
    return "\n".join(lines)


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    text = bomb(32, 2)  # 62 aliases: within their number, 2^31 values if written out
    tracemalloc.start()
    (problem,) = wrong(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problem.code == "aliases"
    assert "far too big" in problem.message
    assert peak < 4_000_000


def test_an_alias_of_a_big_text_is_refused() -> None:
    assert wrong("a: &x " + "y" * 1_000_000 + "\n" + "b: [" + ", ".join(["*x"] * 60) + "]\n")[0].code == "aliases"


def test_too_many_aliases() -> None:
    assert wrong("a: &x 1\nb: [" + ", ".join(["*x"] * 64) + "]\n") == ()
    (problem,) = wrong("a: &x 1\nb: [" + ", ".join(["*x"] * 65) + "]\n")
    assert "more than 64 aliases" in problem.message


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_depth(opening: str, closing: str) -> None:
    assert wrong(opening * 50 + "x" + closing * 50) == ()
    for depth in (51, 10_000):
        (problem,) = wrong(opening * depth + "x" + closing * depth)
        assert problem.code == "too-deep"


def test_depth_counts_through_aliases() -> None:
    text = "a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30
    assert [p.code for p in wrong(text)] == ["too-deep"]


def test_deep_text_after_a_duplicate_key_is_refused_too() -> None:
    assert [p.code for p in wrong("a: 1\na: 2\nb: " + "[" * 3000)] == ["duplicate-key", "too-deep"]


def test_size() -> None:
    (problem,) = wrong(b"#" * (MAX_BYTES + 1))
    assert problem.code == "too-big"
    assert "32 MiB" in problem.message


def test_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "MAX_EVENTS", 100)
    assert wrong("[" + "a, " * 98 + "a]") == ()
    assert wrong("[" + "a, " * 100 + "a]")[0].code == "too-big"


def test_events_are_linear_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(nodes: int) -> int:
        made = compose.Composer("nodes:\n" + "".join(f"  n{i}: {{run: x, needs: [n0]}}\n" for i in range(nodes)))
        made.document()
        return made._count

    base = counted(0)
    assert counted(2000) - base == 2 * (counted(1000) - base)


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("text", "path", "on_key", "place"),
    [
        ("\u00e4: \u6f22\nb: {\U0001f600: x, c: y}\n", ("b", "c"), False, (2, 14, 1)),
        ("nodes:\n  a:\n    run: x\n", ("nodes", "a"), True, (2, 3, 1)),
        ("nodes:\n  a:\n    run: x\n", ("nodes", "a"), False, (2, 3, 1)),
        ("nodes:\n  a: {run: x}\n", ("nodes", "a"), False, (2, 6, 8)),
        ("nodes:\n  a: {needs: b}\n", ("nodes", "a", "needs", 0), False, (2, 14, 1)),
        ("nodes:\n  a: {needs: [b, c]}\n", ("nodes", "a", "needs", 1), False, (2, 18, 1)),
        ("nodes:\n  a: {env: {}}\n", ("nodes", "a", "env", "X"), False, (2, 7, 3)),
        ("nodes:\n  a: {run: x}\n", ("nodes", "a", "timeout"), False, (2, 3, 1)),
        ("nodes:\n  a: {inputs: {x: {from: nodes.b.c}}}\n", ("nodes", "a", "inputs", "x"), False, (2, 26, 9)),
        ("nodes:\n  a: {inputs: {x: {value: [q]}}}\n", ("nodes", "a", "inputs", "x", 0), False, (2, 28, 1)),
        ("nodes:\n  a: {inputs: {x: nodes.b}}\n", ("nodes", "a", "inputs", "x", "from"), False, (2, 19, 7)),
        ("a:\nb: 1\n", ("a",), False, (1, 1, 1)),
    ],
)
def test_a_path_leads_to_its_place(
    text: str, path: tuple[str | int, ...], on_key: bool, place: tuple[int, int, int]
) -> None:
    assert spot(text, *path, on_key=on_key) == place


@pytest.mark.parametrize(
    ("source", "line", "column"),
    [
        ("echo ${{ x }}", 1, 9),
        ("'echo ${{ x }}'", 1, 10),
        ('"\\techo ${{ x }}"', 1, 12),
        ("|\n  set -e\n  echo ${{ x }}", 3, 8),
        (">-\n  set -e\n  echo\n  ${{ x }}", 4, 3),
    ],
)
def test_an_offset_leads_into_a_scalar(source: str, line: int, column: int) -> None:
    text = f"a: {source}\n"
    value = parse(text.encode(), "").value
    assert isinstance(value, dict)
    offset = str(value["a"]).index("${{")
    assert spot(text, "a", offset=offset, length=8) == (line, column, 8)


def test_the_frame_of_a_far_place_and_of_a_long_line() -> None:
    text = "{" + ", ".join(f"k{i}: {i}" for i in range(5000)) + "}"
    tree = parse(text.encode(), "f")
    far, near = (tree.problem(Fault((key,), "x", "x")) for key in ("k4999", "k1"))
    assert far.column > 10_000
    assert len(render_problem(far)) < 200
    assert len(render_problem(near)) < 600


# ---------------------------------------------------------------- laws

_YAMLISH = st.lists(
    st.sampled_from(
        [
            "a",
            "b: ",
            "- ",
            "\n",
            "  ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            ": ",
            "'",
            '"',
            "#",
            " #",
            "*a",
            "&a ",
            "!",
            "|\n",
            "\t",
        ]
    ),
    max_size=40,
).map("".join)


def held(data: bytes) -> None:
    try:
        tree = parse(data, "f")
        problems = tuple(tree.problems)
        places(tree, ())
    except InputError as error:
        problems = error.problems
        assert problems
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for p in problems:
        assert 0 <= p.line <= len(lines)
        assert p.line == 0 or 1 <= p.column <= len(lines[p.line - 1]) + 2
        assert p.length >= 1
        assert not p.excerpt or p.line in [n for n, _ in p.excerpt]
        render_problem(p)


def places(tree: Tree, path: tuple[str | int, ...]) -> None:
    """Every value of a tree has a place, and its key is written there."""
    value = tree.value
    for step in path:
        value = value[step]  # type: ignore[index]
    problem = tree.problem(Fault(path, "x", "x"))
    assert problem.line >= 1
    steps = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for step in steps:
        places(tree, (*path, step))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf")
@example(b"\xef\xbb\xbf\x80")
@example("a\u2028b: @".encode())
@example(b"%YAML 9.9\n---\na\n")
@example(b"a: &x *x")
def test_any_bytes_give_a_tree_or_problems(data: bytes) -> None:
    held(data)


@settings(max_examples=500, deadline=None)
@given(_YAMLISH)
@example("{ ")
@example("a: |\n")
@example('{"a": "\\ud83d"}')
def test_any_yaml_like_text_gives_a_tree_or_problems(text: str) -> None:
    held(text.encode())


_JSON = st.recursive(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcXYZ_-", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1), _JSON, min_size=1), st.booleans())
def test_json_is_yaml(value: dict[str, object], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    tree = parse(text.encode(), "f.json")
    assert tree.value == value
    places(tree, ())


@settings(max_examples=300, deadline=None)
@given(_YAMLISH)
def test_without_libyaml_the_trees_are_the_same(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fast = outcome(text)
        patch.setattr(compose, "_parser", PureParser)
        slow = outcome(text)
    if isinstance(fast, str) or isinstance(slow, str):
        return  # the two differ in what they forgive, and both say where it is
    assert fast == slow


def outcome(text: str) -> object:
    try:
        tree = parse(text.encode(), "f")
    except InputError as error:
        return error.problems[-1].code
    return tree.value, [p.code for p in tree.problems]

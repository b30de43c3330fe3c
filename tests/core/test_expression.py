"""Expressions: the grammar, what operators and functions mean, and the laws that hold for any text."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dagrun.core.expression import (
    EvaluationError,
    ExpressionError,
    MissingValue,
    Reference,
    Scope,
    StatusView,
    Template,
    evaluate,
    functions_used,
    has_expression,
    parse,
    parse_path,
    parse_template,
    references,
    render,
    render_text,
    render_value,
    select,
    to_text,
    truthy,
    uses_status_function,
)
from dagrun.core.functions import FUNCTIONS, MAX_TEXT, SIGNATURES

if TYPE_CHECKING:
    from collections.abc import Callable

    from dagrun.core.names import Json

SCOPE = Scope(
    params={"topic": "Graph Schedulers", "n": 3, "on": True, "sneaky": "${{ params.n }}", "kebab-name": "k"},
    inputs={"items": [1, "two", {"name": "Three", "tags": ["x"]}], "doc": {"a": {"b": None}, "0": "zero"}, "empty": ""},
    env={"HOME": "/home/me"},
    run={"id": "r7k2", "attempt": 1},
    nodes={"fetch": {"status": "completed", "items": [1]}, "a-b": {"status": "failed"}},
)


def value(text: str, scope: Scope = SCOPE) -> Json:
    return evaluate(parse(text), scope)


# ---------------------------------------------------------------- what it means


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # literals
        ("null", None),
        ("true", True),
        ("false", False),
        ("711", 711),
        ("-9.2", -9.2),
        ("+3", 3),
        (".5", 0.5),
        ("0xff", 255),
        ("-0x10", -16),
        ("0o17", 15),
        ("-2.99e-2", -2.99e-2),
        ("1e3", 1000.0),
        ("''", ""),
        ("'it''s'", "it's"),
        ("''''", "'"),
        ("'${{ params.n }}'", "${{ params.n }}"),
        ("'say \"x\"'", 'say "x"'),
        # reading
        ("params.topic", "Graph Schedulers"),
        ("params['topic']", "Graph Schedulers"),
        ("params.kebab-name", "k"),
        ("nodes.a-b.status", "failed"),
        ("nodes.fetch.items[0]", 1),
        ("nodes['fetch']['items'][0]", 1),
        ("inputs.items[2].name", "Three"),
        ("inputs.items[params.n]", None),
        ("inputs.items[2]['tags'][0]", "x"),
        ("inputs.items['1']", "two"),
        ("inputs.items[1.9]", "two"),
        ("inputs.items[-1]", None),
        ("inputs.items[99]", None),
        ("inputs.items.name", None),
        ("inputs.doc[0]", "zero"),
        ("inputs.doc.a.b", None),
        ("inputs.doc.a.b.c.d", None),
        ("inputs.doc.nope", None),
        ("inputs.doc[inputs.items]", None),
        ("inputs.doc[null]", None),
        ("params.topic.length", None),
        ("run.id", "r7k2"),
        ("env", {"HOME": "/home/me"}),
        ("fromJSON('{\"a\": [1, 2]}').a[1]", 2),
        ("fromJSON('{\"true\": 1}').true", 1),
        # operators
        ("1 == 1.0", True),
        ("'1' == 1", True),
        ("' 0x10 ' == 16", True),
        ("'abc' == 0", False),
        ("'' == 0", True),
        ("null == 0", True),
        ("null == ''", True),
        ("null == false", True),
        ("null == null", True),
        ("true == 1", True),
        ("true == 'true'", False),
        ("'Infinity' > 1e300", True),
        ("'nan' == 'NAN'", True),
        ("'abc' == 'ABC'", True),
        ("'straße' == 'STRASSE'", False),
        ("'É' == 'é'", True),
        ("'a' != 'b'", True),
        ("'a' < 'B'", True),
        ("'_' > 'a'", True),
        ("'b' >= 'B'", True),
        ("'10' < '9'", True),
        ("10 < '9'", False),
        ("'x' < 1", False),
        ("'x' >= 1", False),
        ("null <= null", True),
        ("null < null", False),
        ("false < true", True),
        ("inputs.items == inputs.items", True),
        ("fromJSON('[1.0]') == fromJSON('[1]')", True),
        ("fromJSON('[true]') == fromJSON('[1]')", False),
        ("fromJSON('{\"a\":[1]}') == fromJSON('{\"a\":[2]}')", False),
        ("fromJSON('[1]') == 1", False),
        ("fromJSON('[]') < 1", False),
        ("1 < 2 == true", True),
        ("3 > 2 > 1", False),
        ("!true == false", True),
        ("!!'x'", True),
        ("!''", True),
        ("!'false'", False),
        ("!fromJSON('[]')", False),
        ("'a' && 'b'", "b"),
        ("0 && 'b'", 0),
        ("'' || 'b'", "b"),
        ("'' || null || 0", 0),
        ("'a' && 'b' && 'c'", "c"),
        ("true || false && false", True),
        ("(true || false) && false", False),
        ("params.on && 'yes' || 'no'", "yes"),
        ("true || params.nope", True),
        ("false && params.nope", False),
        # functions
        ("contains('Hello world', 'WORLD')", True),
        ("contains('Hello', '')", True),
        ("contains(12345, 34)", True),
        ("contains(inputs.items, 'TWO')", True),
        ("contains(inputs.items, '1')", True),
        ("contains(inputs.items, 'tw')", False),
        ("contains(inputs.doc, 'a')", False),
        ("contains('[]', fromJSON('[]'))", False),
        ("startsWith('Hello', 'he')", True),
        ("startsWith('Hello', 'lo')", False),
        ("startsWith('', fromJSON('[]'))", False),
        ("endsWith('Hello', 'LO')", True),
        ("endsWith(123, 3)", True),
        ("format('{0} {1} {0}', 'a', 2)", "a 2 a"),
        ("format('{{{0}}}', 'x')", "{x}"),
        ("format('{{0}}')", "{0}"),
        ("format('{0}', '{1}', 'x')", "{1}"),
        ("format('{0}|{1}|{2}', null, true, fromJSON('[1, {}]'))", "|true|[1,{}]"),
        ("join(inputs.items, '; ')", '1; two; {"name":"Three","tags":["x"]}'),
        ("join(fromJSON('[1,null,2.0]'))", "1,,2"),
        ("join('abc', '-')", "abc"),
        ("toJSON(inputs.items)", '[1,"two",{"name":"Three","tags":["x"]}]'),
        ("toJSON('é')", '"é"'),
        ("toJSON(null)", "null"),
        ("fromJSON('true')", True),
        ("fromJSON(' 1.5 ')", 1.5),
        ("fromJSON(params.n)", 3),
        ("TOJSON(1)", "1"),
        ("length('abc')", 3),
        ("length(inputs.items)", 3),
        ("length(inputs.doc)", 2),
        ("default(inputs.nope, 'd')", "d"),
        ("default(nodes.nope.x, 'd')", "d"),
        ("default(format('{0}', inputs.nope), 'd')", "d"),
        ("default(inputs.doc.a.b, 'd')", "d"),
        ("default(inputs.empty, 'd')", ""),
        ("default(false, 'd')", False),
        ("default(1, inputs.nope)", 1),
        ("success()", True),
        ("failure() || cancelled()", False),
        ("always()", True),
        # one ${{ }} around the whole
        ("${{ 1 == 1 }}", True),
        ("  ${{'}}'}}\n", "}}"),
        ("\n 1 ==\n\t1 ", True),
    ],
)
def test_value(text: str, expected: Json) -> None:
    got = value(text)
    assert got == expected
    assert type(got) is type(expected)


def test_status_functions_read_the_view_of_the_scope() -> None:
    scope = Scope(status=StatusView(success=False, failure=True, cancelled=True))
    assert [value(f"{name}()", scope) for name in ("success", "failure", "cancelled", "always")] == [
        False,
        True,
        True,
        True,
    ]


def test_hash_files_gets_the_patterns_as_text() -> None:
    assert value("hashFiles('*.py', 3)", Scope(hash_files=lambda patterns: "|".join(patterns))) == "*.py|3"
    with pytest.raises(EvaluationError, match="hashFiles"):
        value("hashFiles('*.py')", Scope())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("params.nope", "params.nope"),
        ("params.nope.deeper", "params.nope"),
        ("inputs['no such']", "inputs.no such"),
        ("params[0]", "params.0"),
        ("env.NOPE", "env.NOPE"),
        ("run.nope", "run.nope"),
        ("nodes.nope", "nodes.nope"),
        ("nodes.nope.out", "nodes.nope"),
        ("nodes.fetch.out", "nodes.fetch.out"),
        ("params[params.topic]", "params.Graph Schedulers"),
        ("params.__class__", "params.__class__"),
        ("params.__dict__", "params.__dict__"),
        ("nodes.fetch.__class__.__mro__", "nodes.fetch.__class__"),
        ("run['__init__']", "run.__init__"),
        ("env.keys", "env.keys"),
        ("inputs.nope && false", "inputs.nope"),
    ],
)
def test_missing_name(text: str, name: str) -> None:
    with pytest.raises(MissingValue) as caught:
        value(text)
    assert caught.value.name == name
    assert f"`{name}` has no value" in caught.value.message


def test_missing_value_names_what_there_is_but_not_the_environment() -> None:
    with pytest.raises(MissingValue, match="there is `status`, `items`"):
        value("nodes.fetch.out")
    with pytest.raises(MissingValue) as caught:
        value("env.NOPE")
    assert "HOME" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["params.topic.__class__", "inputs.items.__len__", "inputs.doc.keys", "run.attempt.real", "env.HOME.upper"]
)
def test_no_python_attribute_is_reachable(text: str) -> None:
    assert value(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format('{1}', 'a')", "{1} has no value"),
        ("format('{')", "lone {"),
        ("format('a}b')", "lone }"),
        ("format('{x}')", "lone {"),
        ("fromJSON('{a}')", "not JSON"),
        ("fromJSON('')", "not JSON"),
        ("fromJSON('NaN')", "NaN is not a JSON number"),
        ("fromJSON('[1e999]')", "too large"),
        ("fromJSON('\"\\ud800\"')", "surrogate"),
        ("fromJSON(inputs.items)", "takes text"),
        ("length(null)", "not null"),
        ("length(3)", "not number"),
    ],
)
def test_function_that_cannot_answer(text: str, message: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        value(text)
    assert message in caught.value.message


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000])
def test_deep_json_is_an_evaluation_error(deep: str) -> None:
    with pytest.raises(EvaluationError, match="fromJSON"):
        value("fromJSON(inputs.x)", Scope(inputs={"x": deep}))


def test_deep_values_never_exhaust_the_stack() -> None:
    deep: Json = []
    other: Json = []
    for _ in range(100_000):
        deep, other = [deep], [other]
    scope = Scope(inputs={"x": deep, "y": other})
    assert value("inputs.x == inputs.y", scope) is True
    with pytest.raises(EvaluationError, match="too deep"):
        value("toJSON(inputs.x)", scope)
    with pytest.raises(EvaluationError, match="deep"):
        render_value(deep, scope)


@pytest.mark.parametrize(
    "text",
    [
        "format('{0}{0}{0}{0}{0}{0}{0}{0}'," * 45 + "'xxxxxxxx'" + ")" * 45,
        "toJSON(" * 48 + "'\"\"'" + ")" * 48,
        "join(inputs.many, inputs.big)",
    ],
)
def test_text_that_grows_without_end_is_refused(text: str) -> None:
    scope = Scope(inputs={"many": [None] * 100_000, "big": "x" * 100_000})
    with pytest.raises(EvaluationError, match="more than"):
        value(text, scope)


def test_a_large_value_passes_through_untouched() -> None:
    big = "x" * (MAX_TEXT + 1)
    assert value("inputs.x", Scope(inputs={"x": big})) is big
    with pytest.raises(EvaluationError, match="more than"):
        render_text(parse_template("a ${{ inputs.x }}"), Scope(inputs={"x": big}))


def test_work_is_linear_in_the_values() -> None:
    scope = Scope(inputs={"many": ["x", 1, None] * 30_000, "big": " " * 1_000_000 + "1"})
    assert value("contains(inputs.many, inputs.big)", scope) is False
    assert value("inputs.big == 0 || inputs.big < 1", scope) is False


@pytest.mark.parametrize("falsy", [None, False, 0, 0.0, -0.0, "", math.nan])
def test_falsy(falsy: Json) -> None:
    assert not truthy(falsy)


@pytest.mark.parametrize("true", [True, 1, -1, 0.1, 10**400, "0", "false", " ", [], {}])
def test_truthy(true: Json) -> None:
    assert truthy(true)


@pytest.mark.parametrize(
    ("given_value", "text"),
    [
        (None, ""),
        (True, "true"),
        (3.0, "3"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (12345678901234567890, "12345678901234567890"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
    ],
)
def test_to_text(given_value: Json, text: str) -> None:
    assert to_text(given_value) == text


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "offset", "length", "words"),
    [
        ("", 0, 1, "empty"),
        ("   ", 0, 1, "empty"),
        ("${{  }}", 3, 2, "empty"),
        ("params.a = 1", 9, 1, "write =="),
        ("params.a & 1", 9, 1, "write &&"),
        ("params.a | 1", 9, 1, "write ||"),
        ('params.a == "x"', 12, 1, "single quotes"),
        ("params.a and 1", 9, 3, "write && for and"),
        ("not params.a", 0, 3, "write ! for not"),
        ("params.a == 'x", 12, 2, "not closed"),
        ("'x''", 0, 4, "not closed"),
        ("1 + 2", 2, 1, "no arithmetic"),
        ("1 +2", 2, 2, "no arithmetic"),
        ("params.a ? 1 : 2", 9, 1, "&& 'this' || 'that'"),
        ("params.a * 2", 9, 1, "no arithmetic"),
        ("nodes.*.x", 6, 1, "object filter"),
        ("nodes[*]", 6, 1, "object filter"),
        ("params.5", 6, 2, "a[0]"),
        ("params.", 6, 1, "a name is expected"),
        ("params[0", 7, 1, "`]` is expected"),
        ("(1", 1, 1, "`)` is expected"),
        ("(1 2)", 3, 1, "`)` is expected"),
        ("1 2", 2, 1, "an operator or the end"),
        ("1 ==", 3, 1, "a value is expected"),
        ("== 1", 0, 2, "a value is expected"),
        ("1abc", 0, 4, "not a number"),
        ("1..2", 0, 4, "not a number"),
        ("9" * 400, 0, 400, "too large"),
        ("1e999", 0, 5, "too large"),
        ("item.x", 0, 4, "not have yet"),
        ("needs.a.outputs.x", 0, 5, "nodes.<id>.<output>"),
        ("secrets.KEY", 0, 7, "`secrets:`"),
        ("param.a", 0, 5, "did you mean `params`?"),
        ("hello", 0, 5, "text is quoted: 'hello'"),
        ("success", 0, 7, "write success()"),
        ("sucess()", 0, 6, "did you mean `success`?"),
        ("1 == eval('x')", 5, 4, "no function `eval`"),
        ("__import__('os')", 0, 10, "no function"),
        ("contains('a')", 0, 13, "takes 2 arguments, not 1"),
        ("success(1)", 0, 10, "takes no arguments"),
        ("join()", 0, 6, "takes 1 or 2 arguments"),
        ("format()", 0, 8, "at least 1 argument,"),
        ("contains('a',)", 13, 1, "a value is expected"),
        ("success() && ${{ params.a }}", 13, 1, "without ${{ }}"),
        ("${{ params.a }} && 1", 15, 5, "only a part"),
        ("${{ params.a", 0, 3, "not closed"),
        ("{a: 1}", 0, 1, "fromJSON"),
        ("(" * 60 + "1" + ")" * 60, 50, 1, "nested"),
        ("1" + "==1" * 60, 30, 1, "nested"),
        ("!" * 60 + "1", 50, 11, "nested"),
        (" " + "x" * 5000, 1, 5000, "4096"),
        ("params.a\x00", 8, 1, "unexpected character"),
    ],
)
def test_refused(text: str, offset: int, length: int, words: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    error = caught.value
    assert words in f"{error.message}; {error.hint}"
    if "nested" not in words:
        assert (error.offset, error.length) == (offset, length)


def test_offsets_in_a_template_count_from_its_start() -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_template("Hello ${{ params.a }} and ${{ param.b }}")
    assert (caught.value.offset, caught.value.length) == (30, 5)


@pytest.mark.parametrize(
    ("text", "offset", "words"),
    [
        ("a ${{ params.a", 2, "`${{` is not closed"),
        ("a ${{ params.a } }", 2, "`${{` is not closed"),
        ("a ${{ 'x }} b", 6, "the quoted text is not closed"),
        ("a ${{ it's }} b ${{ 1 }}", 8, "the quoted text is not closed"),
        ('a ${{ "it\'s" }} b', 6, "single quotes"),
        ("a ${{}} b", 5, "empty"),
        ("${{ ${{ 1 }} }}", 4, "`$`"),
    ],
)
def test_refused_template(text: str, offset: int, words: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_template(text)
    assert words in caught.value.message
    assert caught.value.offset == offset


def test_an_expression_of_the_longest_length_is_read() -> None:
    text = "1" + "||1" * 1365
    assert len(text) == 4096
    assert value(text) == 1
    with pytest.raises(ExpressionError, match="4096"):
        parse(text + " ||1")


def test_fifty_levels_are_read() -> None:
    assert value("(" * 49 + "1" + ")" * 49) == 1
    assert value("!" * 48 + "1") is True
    assert value("params.x" + ".y" * 2000, Scope(params={"x": {}})) is None


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${{ params.n }}", 3),
        ("${{ inputs.items }}", [1, "two", {"name": "Three", "tags": ["x"]}]),
        ("${{ null }}", None),
        (" ${{ params.n }}", " 3"),
        ("n=${{ params.n }}, on=${{ params.on }}, null=${{ null }}.", "n=3, on=true, null=."),
        ("${{ 1 }}${{ 2 }}", "12"),
        ("x ${{ fromJSON('{\"a\":[1, 2.5]}') }}", 'x {"a":[1,2.5]}'),
        ("a ${{ '}}' }} b", "a }} b"),
        ("a ${{ 'it''s }}' }} b", "a it's }} b"),
        ("write ${{ '${{' }} x }}", "write ${{ x }}"),
        ("$ {{ 1 }} $${{ 1 }}", "$ {{ 1 }} $1"),
        ("${{ 1 }}}", "1}"),
        ("${{\n  params.n\n}}", 3),
    ],
)
def test_render(text: str, expected: Json) -> None:
    assert render(parse_template(text), SCOPE) == expected


def test_a_value_is_never_read_as_an_expression() -> None:
    assert render(parse_template("${{ params.sneaky }}"), SCOPE) == "${{ params.n }}"
    assert render(parse_template("<${{ params.sneaky }}>"), SCOPE) == "<${{ params.n }}>"
    assert value("format(params.sneaky)", Scope(params={"sneaky": "$ {{{{ 1"})) == "$ {{ 1"
    assert value("fromJSON(toJSON(params.sneaky))") == "${{ params.n }}"
    halves = Scope(params={"a": "${{ params", "b": ".n }}"})
    assert render(parse_template("${{ params.a }}${{ params.b }}"), halves) == "${{ params.n }}"


def test_render_value_renders_each_string_once_and_no_key() -> None:
    given_value: Json = {"a": ["${{ params.n }}", "n=${{ params.n }}", 1, None], "${{ 1 }}": "${{ params.sneaky }}"}
    assert render_value(given_value, SCOPE) == {"a": [3, "n=3", 1, None], "${{ 1 }}": "${{ params.n }}"}


def test_render_text_is_text() -> None:
    assert render_text(parse_template("${{ inputs.doc }}"), SCOPE) == '{"a":{"b":null},"0":"zero"}'
    assert render_text(parse_template("${{ null }}"), SCOPE) == ""


def test_a_whole_context_is_a_copy() -> None:
    got = value("params")
    assert isinstance(got, dict)
    got["n"] = 0
    assert value("params.n") == 3


def test_is_literal() -> None:
    assert parse_template("a }} b").is_literal
    assert not parse_template("a ${{ 1 }} b").is_literal
    assert has_expression("a ${{")
    assert not has_expression("a $ {{ }}")


# ---------------------------------------------------------------- what an expression reads


def test_references_with_their_places() -> None:
    text = "inputs.summary != '' && nodes['fetch'].status == params.a[0]['b c']"
    assert references(parse(text)) == (
        Reference(("inputs", "summary"), 0, 14),
        Reference(("nodes", "fetch", "status"), 24, 21),
        Reference(("params", "a", "0", "b c"), 49, 18),
    )


def test_references_stop_where_the_path_is_not_static() -> None:
    text = "format('{0}', inputs[params.k].x, fromJSON(env.A).b[run.id], params, !nodes.a)"
    assert [reference.path for reference in references(parse(text))] == [
        ("inputs",),
        ("params", "k"),
        ("env", "A"),
        ("run", "id"),
        ("params",),
        ("nodes", "a"),
    ]


def test_references_of_a_template_point_into_its_text() -> None:
    text = "Hello ${{ params.a }} and ${{ inputs.b || params.a }}"
    found = references(parse_template(text))
    assert [text[r.offset : r.offset + r.length] for r in found] == ["params.a", "inputs.b", "params.a"]
    assert references(parse_template("none")) == ()


def test_functions_used() -> None:
    assert functions_used(parse("FORMAT('{0}', tojson(1)) == ''")) == {"format", "toJSON"}
    assert functions_used(parse_template("${{ 1 }} ${{ length('') }}")) == {"length"}
    assert not uses_status_function(parse("params.success && contains('always()', 'x')"))
    for name in ("success", "failure", "always", "cancelled"):
        assert uses_status_function(parse(f"params.a || !{name}()"))


# ---------------------------------------------------------------- paths of outputs

DOCUMENT: Json = {"a": {"b": [10, {"c d": None}]}, "list": []}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", DOCUMENT),
        (".", DOCUMENT),
        (".a.b[0]", 10),
        (".a.b[1]['c d']", None),
        ('.a["b"].[0]', 10),
        ("['list']", []),
    ],
)
def test_select(path: str, expected: Json) -> None:
    assert select(DOCUMENT, path) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".x", "the document has no `x`, it has `a`, `list`"),
        (".a.x", "`.a` has no `x`, it has `b`"),
        (".a[0]", "`.a` is no array (it is object)"),
        (".a.b.c", "`.a.b` is no object (it is array)"),
        (".list[0]", "`.list` has no [0], its length is 0"),
        (".a.b[1]['c d'].x", "it is null"),
        (".__class__", "no `__class__`"),
    ],
)
def test_select_nothing(path: str, message: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        select(DOCUMENT, path)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("path", "offset"),
    [("a", 0), (".a.", 2), (".a..b", 2), (".a[x]", 2), (".a[-1]", 2), (".a b", 2), ("..", 0), (".a[0", 2), (".*", 0)],
)
def test_path_that_cannot_be_read(path: str, offset: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_path(path)
    assert caught.value.offset == offset
    assert ".name" in caught.value.hint


# ---------------------------------------------------------------- laws

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["params", "inputs", "env", "run", "nodes", "item", "null", "true", "a", "b", "0", "1.5", "'x'", "'{0}'"]
SIGNS = [
    "(",
    ")",
    "[",
    "]",
    ".",
    ",",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "&&",
    "||",
    "!",
    " ",
    "${{",
    "}}",
    "'",
    '"',
    "*",
]
WORDS = st.sampled_from([*SIGNATURES, *NAMES, *SIGNS])
ALMOST = st.lists(WORDS, max_size=30).map("".join)


@st.composite
def sound(draw: st.DrawFn, depth: int = 4) -> str:
    """Text that must parse, with names that may or may not be there."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        leaves = [
            "null",
            "true",
            "-1.5",
            "0xf",
            "'a'",
            "'{0} {1}'",
            "'[1]'",
            "params",
            "params.a",
            "inputs.b[0]",
            "nodes.n.x",
        ]
        return draw(st.sampled_from(leaves))
    shape = draw(st.sampled_from(["call", "binary", "not", "index", "group"]))
    inner = sound(depth - 1)
    if shape == "call":
        name = draw(st.sampled_from(sorted(SIGNATURES)))
        low, high = SIGNATURES[name]
        args = draw(st.lists(inner, min_size=low, max_size=min(high, 3)))
        return f"{name}({', '.join(args)})"
    if shape == "binary":
        op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "&&", "||"]))
        return f"{draw(inner)} {op} {draw(inner)}"
    if shape == "not":
        return f"!{draw(inner)}"
    if shape == "index":
        return f"params.a[{draw(inner)}].b"
    return f"({draw(inner)})"


@given(st.text() | ALMOST | ALMOST.map(lambda text: "${{" + text + "}}"))
@example("0x" + "f" * 4000)
@example("1" * 4096)
@example("'" * 4095)
@example("-" * 4000)
@example("!" * 4096)
@example("(" * 4096)
@example("params" + "[params" * 500)
@example("contains(" * 400)
@example("1==" * 1300 + "1")
@example("((1==1" + "==1" * 40 + ")==1" + "==1" * 40 + ")")
def test_any_text_parses_or_is_an_expression_error_inside_it(text: str) -> None:
    for read in (parse, parse_template):
        error = problem(read, text)
        if error is not None:
            assert 0 <= error.offset <= len(text)
            assert 1 <= error.length <= max(1, len(text) - error.offset)
            assert error.message


def problem(read: Callable[[str], object], text: str) -> ExpressionError | None:
    try:
        read(text)
    except ExpressionError as error:
        return error
    return None


@given(sound(), JSON, JSON)
def test_evaluation_gives_json_or_an_evaluation_error(text: str, a: Json, b: Json) -> None:
    scope = Scope(params={"a": a}, inputs={"b": b}, nodes={"n": {"x": b}}, hash_files="".join)
    try:
        got = value(text, scope)
        rendered = render_text(parse_template("${{ " + text + " }}"), scope)
    except EvaluationError:
        return
    json.dumps(got)
    assert isinstance(rendered, str)


@given(sound())
def test_an_expression_means_the_same_bare_grouped_and_braced(text: str) -> None:
    scope = Scope(params={"a": [1]}, inputs={"b": ["x"]}, nodes={"n": {"x": 1}}, hash_files="".join)

    def outcome(source: str) -> str:
        try:
            return repr(value(source, scope))
        except EvaluationError as error:
            return error.message

    assert outcome(text) == outcome(f"({text})") == outcome("${{" + text + "}}")


@given(st.none() | st.booleans() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False))
def test_literal_round_trip(literal: Json) -> None:
    assume(not isinstance(literal, float) or abs(literal) < 1.7e308)
    got = value(json.dumps(literal))
    assert got == literal
    assert type(got) is type(literal)


@given(st.text(max_size=200))
def test_text_literal_round_trip(text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    assert value(quoted) == text
    assert render(parse_template("<${{ " + quoted + " }}>"), SCOPE) == f"<{text}>"


@given(st.text())
def test_text_without_an_expression_is_itself(text: str) -> None:
    assume("${{" not in text)
    assert parse_template(text) == Template((text,))
    assert render(parse_template(text), SCOPE) == text


@given(st.lists(st.text().filter(lambda text: "$" not in text), min_size=2, max_size=5), JSON)
def test_a_template_is_its_text_with_the_values_put_in(pieces: list[str], held: Json) -> None:
    scope = Scope(params={"a": held})
    try:
        shown = to_text(held)
    except EvaluationError:
        assume(False)
    template = parse_template("${{ params.a }}".join(pieces))
    if any(pieces) or len(pieces) > 2:
        assert render(template, scope) == shown.join(pieces)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-20, 20)
    | st.floats(-9, 9)
    | st.sampled_from(["", " ", "0", "1", "-1.5", "1e1", "0x1", "a", "A", "b", "true", "null", "NaN"])
)


def number(scalar: Json) -> float:
    if scalar is None or (isinstance(scalar, str) and not scalar.strip()):
        return 0.0
    if scalar == "0x1":
        return 1.0
    if isinstance(scalar, str):
        return float(scalar) if scalar[-1].isdigit() else math.nan
    assert isinstance(scalar, int | float)
    return float(scalar)


@given(SCALARS, SCALARS)
def test_comparisons_agree_with_a_tiny_oracle(a: Json, b: Json) -> None:
    scope = Scope(params={"a": a, "b": b})
    if isinstance(a, str) and isinstance(b, str):
        texts = a.upper(), b.upper()
        equal, before, after = texts[0] == texts[1], texts[0] < texts[1], texts[0] > texts[1]
    else:
        numbers = number(a), number(b)
        equal, before, after = numbers[0] == numbers[1], numbers[0] < numbers[1], numbers[0] > numbers[1]
    got = {op: value(f"params.a {op} params.b", scope) for op in ("==", "!=", "<", "<=", ">", ">=")}
    assert got == {
        "==": equal,
        "!=": not equal,
        "<": before,
        "<=": before or equal,
        ">": after,
        ">=": after or equal,
    }


@given(JSON, st.lists(st.text(max_size=4).filter(lambda text: "'" not in text) | st.integers(0, 3), max_size=4))
def test_a_path_leads_to_what_was_put_there(held: Json, steps: list[str | int]) -> None:
    document = held
    for step in reversed(steps):
        document = [*[None] * step, document] if isinstance(step, int) else {step: document}
    path = "".join(f"[{step}]" if isinstance(step, int) else f"['{step}']" for step in steps)
    assert parse_path(path) == tuple(steps)
    assert select(document, path) is held


@given(st.text(max_size=20))
def test_any_path_is_read_or_an_expression_error(path: str) -> None:
    error = problem(parse_path, path)
    if error is None:
        with suppress(EvaluationError):
            select(DOCUMENT, path)
    else:
        assert 0 <= error.offset < len(path)


def test_every_function_has_a_signature() -> None:
    assert set(FUNCTIONS) <= set(SIGNATURES)

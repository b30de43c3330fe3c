"""Untrusted text, widths, signs and colours."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.names import Status
from dagrun.view.text import (
    ASCII,
    UTF8,
    cells,
    clean,
    clean_block,
    clock,
    counts_text,
    cut,
    cut_begin,
    glyph,
    glyphs_for,
    last_line,
    last_lines,
    money,
    pad,
    size,
    tokens,
    use_color,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\x", "x"),
        ("\x9b31mred", "red"),
        ("a\tb\nc", "a b c"),
        ("a\x00b\x07c\x7fd\x85e", "abcd e"),
        ("abc\u202egnp.exe", "abcgnp.exe"),
        ("pay\u200bpal\ufeff", "paypal"),
        ("[bold red]x[/]", "[bold red]x[/]"),
        ("café ✓ 日本", "café ✓ 日本"),
        ("lone \ud800", "lone �"),
        ("x\ufe0f", "x"),
        ("line\u2028two", "line two"),
        ("unfinished \x1b[", "unfinished "),
        ("unfinished \x1b", "unfinished "),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(st.text())
def test_nothing_clean_can_move_a_cursor(text: str) -> None:
    shown = clean(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    assert clean(shown) == shown
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", ""),
        (b"\n\n", ""),
        (b"one\ntwo\n", "two"),
        (b"10%\r20%\r", "20%"),
        (b"10%\r20%\r\n", "20%"),
        (b"done\r\n", "done"),
        (b"\x1b[2K\r\x1b[32mtests 61%\x1b[0m", "tests 61%"),
        (b"ok\n   \n\x1b[0m\n", "ok"),
        (b"nul \x00 and \xff", "nul  and �"),
        (b"\xa9 cut at the start", " cut at the start"),
        ("日本".encode()[1:], "本"),
        (b"\x80" * 10, "�" * 7),
    ],
)
def test_last_line(data: bytes, shown: str) -> None:
    assert last_line(data) == shown


def test_last_lines_keep_their_order_and_leave_out_the_empty() -> None:
    assert last_lines(b"a\n\nb\r\nc 1\rc 2\n", 2) == ["b", "c 2"]
    assert last_lines(b"a\n", 5) == ["a"]


def test_a_block_keeps_its_lines() -> None:
    assert clean_block("a\x1b[1m\r\n  b\n10%\r99%\n") == "a\n  b\n99%\n"


@given(st.binary(max_size=300))
def test_any_bytes_have_a_harmless_last_line(data: bytes) -> None:
    shown = last_line(data)
    assert shown == clean(shown)
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("abc", 0, ""),
        ("abc", 1, "…"),
    ],
)
def test_cut(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown


@given(st.text().map(clean), st.integers(0, 40), st.sampled_from(["…", "...", ""]))
def test_a_cut_text_fits(text: str, width: int, ellipsis: str) -> None:
    shown = cut(text, width, ellipsis)
    assert cells(shown) <= width
    if cells(text) <= width and len(text) <= 4 * width:
        assert shown == text
    assert cells(pad(shown, width)) == width


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "…cdef"),
        ("日本語", 5, "…本語"),
        ("日本語", 4, "…語"),
        ("abc", 1, "…"),
        ("a", 0, ""),
    ],
)
def test_the_end_of_a_text(text: str, width: int, shown: str) -> None:
    assert cut_begin(text, width) == shown


@given(st.text().map(clean), st.integers(0, 40), st.sampled_from(["…", "...", ""]))
def test_the_end_of_a_text_fits(text: str, width: int, ellipsis: str) -> None:
    shown = cut_begin(text, width, ellipsis)
    assert cells(shown) <= width
    if len(ellipsis) <= width:
        assert shown == text or (shown.startswith(ellipsis) and text.endswith(shown.removeprefix(ellipsis)))


def test_marks_without_a_cell_do_not_make_a_line_endless() -> None:
    assert len(cut("a" + "\u0301" * 10_000, 10)) < 60


@pytest.mark.parametrize(
    ("encoding", "glyphs"),
    [("utf-8", UTF8), ("UTF8", UTF8), ("ascii", ASCII), ("latin-1", ASCII), (None, ASCII), ("no such", ASCII)],
)
def test_signs_by_encoding(encoding: str | None, glyphs: object) -> None:
    assert glyphs_for(encoding) is glyphs


def test_every_status_has_a_sign_of_one_cell() -> None:
    for glyphs in (UTF8, ASCII):
        assert all(cells(glyph(glyphs, s)) == 1 for s in Status)


@pytest.mark.parametrize(
    ("choice", "env", "tty", "on"),
    [
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"FORCE_COLOR": "1"}, False, True),
        ("auto", {"FORCE_COLOR": "0"}, False, False),
        ("auto", {"CLICOLOR_FORCE": "1", "TERM": "dumb"}, False, True),
        ("auto", {"TERM": "dumb"}, True, False),
        ("auto", {"TERM": "xterm"}, True, True),
        ("auto", {}, False, False),
    ],
)
def test_colour(choice: str, env: dict[str, str], tty: bool, on: bool) -> None:
    assert use_color(choice, env, tty) is on  # type: ignore[arg-type]


def test_numbers_for_people() -> None:
    assert [clock(s) for s in (-3, 4.9, 72, 3723)] == ["0:00", "0:04", "1:12", "1:02:03"]
    assert [size(n) for n in (0, 999, 1000, 4_200_000, 10**12)] == ["0 B", "999 B", "1.0 KB", "4.2 MB", "1.0 TB"]
    assert counts_text({Status.COMPLETED: 1200, Status.FAILED: 0, Status.SKIPPED: 2}) == "1,200 ok, 2 skipped"
    assert [tokens(n) for n in (0, 950, 9_999, 10_000, 38_240, 99_950, 999_500, 1_250_000, 10**9)] == [
        *("0", "950", "9,999", "10.0k", "38.2k", "100k", "1.0M", "1.2M", "1.0G")
    ]


def test_money() -> None:
    assert [money(n) for n in (0, 1, 49_999, 50_000, 12_300_000, 6_000_000, 10**9, 1_500_000_000)] == [
        *("$0.00", "<$0.0001", "<$0.0001", "$0.0001", "$0.0123", "$0.006", "$1.00", "$1.50")
    ]
    assert [money(n) for n in (9_999_949_999, 9_999_950_000, 120_754_999_999, 10**13)] == [
        *("$9.9999", "$10.00", "$120.75", "$10,000.00")
    ]


@given(st.integers(1, 10**14))
def test_money_that_is_there_is_never_shown_as_none(nano: int) -> None:
    text = money(nano)
    assert text == "<$0.0001" or abs(float(text[1:].replace(",", "")) * 10**9 - nano) <= max(50_000, nano / 1000)
    assert any(c in "123456789" for c in text)


@given(st.integers(0, 10**13))
def test_tokens_fit_their_column(count: int) -> None:
    assert len(tokens(count)) <= 8
    assert count >= 10**12 or len(tokens(count)) <= 6

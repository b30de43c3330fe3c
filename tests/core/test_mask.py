"""Secrets are found in every form that tools are known to write them in."""

from __future__ import annotations

import html
import json
import re
import shlex
import textwrap
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.mask import Masker, maskable

SECRET = 'p@ss/w"örd+1 2'


def encodable(text: str) -> bool:
    """Whether a text is Unicode that can be written."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


VALUES = st.text(min_size=6, max_size=30).filter(lambda s: encodable(s) and "*" not in s)


@pytest.mark.parametrize(
    "shown",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        json.dumps(SECRET)[1:-1].replace("\\u00f6", "\\u00F6"),
        json.dumps(SECRET)[1:-1].replace("/", "\\/"),
        SECRET.replace("+", "\\u002B").replace('"', '\\"').replace("ö", "\\u00F6"),
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        quote(SECRET, safe="").lower(),
        quote(SECRET, safe="!'()*"),
        "".join(f"%{b:02x}" for b in SECRET.encode()),
        html.escape(SECRET),
        html.escape(SECRET, quote=False),
        repr(SECRET)[1:-1],
        repr(SECRET.encode())[2:-1],
        'p@ss/w\\"örd+1\\ 2'.replace("ö", "\\ö"),
    ],
)
def test_each_form_is_hidden(shown: str) -> None:
    assert Masker((SECRET,)).text(f"a {shown} b") == "a *** b"
    data = f"a {shown} b".encode()
    assert Masker((SECRET,)).same_length(data) == b"a " + b"*" * (len(data) - 4) + b" b"


@pytest.mark.parametrize("value", ["it's 1 secret", "a<b>&c 'd' \"e\"", "$HOME `x` \\n", "tab\there\x07"])
@pytest.mark.parametrize(
    "write",
    [
        shlex.quote,
        repr,
        json.dumps,
        html.escape,
        lambda v: v.replace("'", "'\\''"),
        lambda v: json.dumps(v).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        lambda v: f"{{'key': {v!r}}}",
    ],
    ids=["shell", "repr", "json", "html", "xtrace", "go", "dict"],
)
def test_values_that_are_quoted_are_hidden_as_they_are_quoted(value: str, write: Callable[[str], str]) -> None:
    masked = Masker((value,)).text(write(value))
    assert "***" in masked
    assert len(re.sub(r"[^a-zA-Z0-9]", "", masked.replace("key", ""))) == 0


@pytest.mark.parametrize("width", [16, 20, 60, 64, 76])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("before", [0, 1, 2, 50, 57])
def test_base64_and_hex_in_broken_lines_are_hidden(width: int, newline: str, before: int) -> None:
    value = "-----BEGIN-----" + "x9_Y" * 20
    data = b"b" * before + value.encode() + b"a" * 40
    for code in (b64encode(data), data.hex().encode()):
        lines = newline.join(textwrap.wrap(code.decode(), width))
        mask = Masker((value,))
        whole = len(re.sub(r"\s", "", lines))
        shown = mask.text(f"here:\n{lines}\nend")
        assert "***" in shown
        assert len(re.sub(r"[\s*]", "", shown)) < whole - 80
        kept = mask.same_length(f"here:\n{lines}\nend".encode())
        assert kept.count(b"*") > 80
        assert kept.count(b"\n") == lines.count("\n") + 2
        assert len(kept) == len(lines) + 10


@pytest.mark.parametrize("shown", ["a*b%7Ec+d%2Fe", "a%2Ab~c%20d%2Fe", "a*b~c%20d%2Fe", "a%2ab%7ec+d%2fe"])
def test_what_languages_leave_of_a_url_differs(shown: str) -> None:
    """Java leaves `*`, Python and jq leave `~`, JavaScript leaves both, PHP neither."""
    assert Masker(("a*b~c d/e",)).text(f"<{shown}>") == "<***>"


def test_what_a_value_holds_is_never_a_pattern() -> None:
    assert Masker((".*.*.*.*",)).text("anything") == "anything"
    assert Masker(("[a-z]{6}(",)).text("[a-z]{6}( abcdef") == "*** abcdef"


@pytest.mark.parametrize("value", ["\\" * 40 + "x", "a" * 40 + "b", "%" * 30 + "y", "\n" * 20 + "a-word", "&" * 40])
@pytest.mark.parametrize("text", ["\\", "a", "%", "\n", "%25", "&amp;", "aaaa\n", "/", "\\\\u005c"])
def test_no_text_makes_it_slow(value: str, text: str) -> None:
    mask, data = Masker((value,)), text * (200_000 // len(text))
    began = time.process_time()
    mask.text(data)
    mask.same_length(data.encode())
    assert time.process_time() - began < 5


@given(st.lists(st.text(min_size=6, max_size=12).filter(encodable), min_size=1, max_size=8), st.text(max_size=30))
def test_many_values_hide_what_each_of_them_hides(values: list[str], around: str) -> None:
    mask = Masker(tuple(values))
    for value in values:
        masked = mask.text(around + value + around)
        assert value not in masked.replace("***", "") or "*" in value


def test_values_can_come_later() -> None:
    mask = Masker(())
    mask.add(["hunter2x"])
    assert mask.text("hunter2x") == "***"
    mask.add(["sesame-open"])
    assert mask.text("hunter2x sesame-open") == "*** ***"
    assert mask.longest >= len(b"sesame-open".hex())


def test_whether_a_value_can_be_hidden() -> None:
    assert maskable("123456")
    assert maskable("a\nlong-line\nb")
    assert not maskable("12345")
    assert not maskable("12\n34")


@pytest.mark.parametrize("encode", [b64encode, urlsafe_b64encode])
@given(st.text(min_size=6, max_size=30).filter(encodable), st.binary(max_size=5), st.binary(max_size=5))
def test_base64_is_hidden_at_every_alignment(
    encode: Callable[[bytes], bytes], value: str, before: bytes, after: bytes
) -> None:
    assert "***" in Masker((value,)).text(encode(before + value.encode() + after).decode())


@given(VALUES, st.text(max_size=20), st.text(max_size=20))
def test_no_text_keeps_a_secret(value: str, before: str, after: str) -> None:
    masked = Masker((value,)).text(before + value + after)
    assert value not in masked


@given(VALUES, st.binary(max_size=20), st.binary(max_size=20))
def test_masked_bytes_keep_their_length_and_what_is_around(value: str, before: bytes, after: bytes) -> None:
    raw = value.encode()
    data = before + raw + after
    masked = Masker((value,)).same_length(data)
    assert len(masked) == len(data)
    assert raw not in masked
    assert all(old == new or new == ord("*") for old, new in zip(data, masked, strict=True))


def test_each_line_of_a_multi_line_secret_counts() -> None:
    key = "-----BEGIN KEY-----\nabcdefgh\n-----END KEY-----\n"
    mask = Masker((key,))
    assert mask.text("got abcdefgh here") == "got *** here"
    assert mask.text(f"[{key.strip()}]") == "[***]"


def test_longer_secrets_win_over_their_parts() -> None:
    assert Masker(("tokens", "tokens-and-more")).text("tokens-and-more tokens") == "*** ***"


def test_values_too_short_to_hide_and_no_values_change_nothing() -> None:
    mask = Masker(("abcde", ""))
    assert not mask
    assert mask.text("abcde") == "abcde"
    assert mask.same_length(b"abcde") == b"abcde"
    assert mask.value({"abcde": ["abcde"]}) == {"abcde": ["abcde"]}
    assert mask.longest == 0


def test_json_values_are_masked_in_keys_and_depth() -> None:
    mask = Masker(("sesame",))
    assert mask
    assert mask.value({"sesame": [1, None, True, {"x": "open sesame!"}]}) == {
        "***": [1, None, True, {"x": "open ***!"}]
    }


def test_a_secret_that_is_not_utf8_is_hidden_too() -> None:
    value = b"abcd\xff\xfe".decode("utf-8", "surrogateescape")
    mask = Masker((value,))
    assert mask.same_length(b"<abcd\xff\xfe>") == b"<******>"
    assert mask.text("abcd%FF%FE") == "***"


def test_longest_is_what_a_reader_in_pieces_must_overlap() -> None:
    assert Masker(("éééééé",)).longest == len(repr("éééééé".encode())[2:-1])

"""Secrets are found in every form that tools are known to write them in."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.mask import Masker

SECRET = 'p@ss/w"örd+1 2'


def encodable(text: str) -> bool:
    """Whether a text is Unicode that can be written."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


VALUES = st.text(min_size=4, max_size=30).filter(lambda s: encodable(s) and "*" not in s)


@pytest.mark.parametrize(
    "shown",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        SECRET.encode().hex(),
    ],
)
def test_each_form_is_hidden(shown: str) -> None:
    assert Masker((SECRET,)).text(f"a {shown} b") == "a *** b"


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
    assert Masker(("token", "token-with-more")).text("token-with-more token") == "*** ***"


def test_values_too_short_to_hide_and_no_values_change_nothing() -> None:
    mask = Masker(("abc", ""))
    assert not mask
    assert mask.text("abc") == "abc"
    assert mask.same_length(b"abc") == b"abc"
    assert mask.value({"abc": ["abc"]}) == {"abc": ["abc"]}
    assert mask.longest == 0


def test_json_values_are_masked_in_keys_and_depth() -> None:
    mask = Masker(("sesame",))
    assert mask
    assert mask.value({"sesame": [1, None, True, {"x": "open sesame!"}]}) == {
        "***": [1, None, True, {"x": "open ***!"}]
    }


def test_a_secret_that_is_not_utf8_is_hidden_too() -> None:
    value = b"abc\xff\xfe".decode("utf-8", "surrogateescape")
    mask = Masker((value,))
    assert mask.same_length(b"<abc\xff\xfe>") == b"<*****>"
    assert mask.text("abc%FF%FE") == "***"


def test_longest_is_what_a_reader_in_pieces_must_overlap() -> None:
    assert Masker(("éééé",)).longest == len(quote("éééé"))

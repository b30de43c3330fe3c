"""Looking quickly for secrets rules out nothing that a search of everything finds."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.core import mask as masking
from dagrun.core.mask import Masker
from dagrun.core.maskscan import Beginnings, Needles

FEW = Masker(("hunter2x", 'a"b\nc/d é<'))
KEY = "-----BEGIN KEY-----\nq9/Ab+cdefghijklmnopq\nzzzz\n-----END"
MANY = Masker((KEY, "tokens-x", "tokens-x-and-more", "s3cret-é"))
MASKS = [FEW, MANY]
FORMS = sorted({*FEW._forms, *MANY._forms})


def spoilt(form: str) -> st.SearchStrategy[str]:
    """A form in other letters, cut, or broken into lines: some of that is one still."""
    return st.one_of(
        st.sampled_from([form, form.upper(), form.lower()]),
        st.integers(0, len(form)).map(lambda k: form[:k]),
        st.integers(0, len(form)).map(lambda k: form[k:]),
        st.integers(16, 30).map(lambda k: "\n".join(form[i : i + k] for i in range(0, len(form), k))),
        st.integers(16, 30).map(lambda k: "x" * 20 + "\r\n".join(form[i : i + k] for i in range(0, len(form), k))),
    )


NOISE = st.one_of(st.text(max_size=9), st.sampled_from(["\n", "A" * 20, "-"]))
PIECES = st.one_of(st.sampled_from(FORMS).flatmap(spoilt), NOISE)
TEXTS = st.lists(PIECES, max_size=12).map("".join).map(lambda s: s.encode("utf-8", "replace").decode())


def slow(mask: Masker, text: str, shown: Callable[[str], str]) -> str:
    """The meaning: every form in one pattern, tried at every place, then again in broken lines."""
    forms = sorted(mask._forms, key=len, reverse=True)
    text = re.sub(masking._either([mask._forms[f] for f in forms]), lambda m: shown(m[0]), text)
    code = re.compile(masking._either([mask._forms[f] for f in forms if masking._is_coded(f)]))
    out, at = "", 0
    for block in re.finditer(masking._BLOCK, text):
        kept = [(k, c) for k, c in enumerate(block[0], block.start()) if c not in "\r\n"]
        for match in code.finditer("".join(c for _, c in kept)):
            start, stop = kept[match.start()][0], kept[match.end() - 1][0] + 1
            out += text[at:start] + shown(text[start:stop])
            at = stop
    return out + text[at:]


def latin(text: str) -> str:
    return masking._raw(text).decode("latin-1")


def stars(text: str) -> str:
    return re.sub(r"[^\r\n]", "*", text)


@pytest.mark.parametrize("mask", MASKS, ids=["few", "many"])
@settings(max_examples=600, deadline=None)
@given(text=TEXTS)
def test_nothing_else_comes_out_than_by_looking_everywhere(mask: Masker, text: str) -> None:
    assert mask.text(text) == slow(mask, text, lambda _: "***")
    raw = text.encode().decode("latin-1")
    known = Masker(())  # the forms as bytes have them, one character a byte
    known._forms = {latin(form): latin(pattern) for form, pattern in mask._forms.items()}
    assert mask.same_length(text.encode()).decode("latin-1") == slow(known, raw, stars)


@pytest.mark.parametrize("mask", MASKS, ids=["few", "many"])
@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_what_is_held_back_is_the_longest_beginning(mask: Masker, text: str) -> None:
    forms = [masking._raw(form).lower() for form in mask._forms]
    data = text.encode().lower()
    most = max([k for form in forms for k in range(1, len(form)) if data.endswith(form[:k])], default=0)
    assert Beginnings(forms).at_end(data) == most


@settings(max_examples=400, deadline=None)
@given(forms=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=30), data=st.data())
def test_what_is_there_is_never_said_to_be_absent(forms: list[bytes], data: st.DataObject) -> None:
    """Wherever it stands, in whatever letters and lines; and it lies whole within one window."""
    form = data.draw(st.sampled_from(forms))
    before, after = data.draw(st.binary(max_size=40)), data.draw(st.binary(max_size=40))
    break_ = data.draw(st.integers(0, len(form)))
    needles = Needles(forms)
    assert not needles.absent(before + form.swapcase() + after)
    assert not needles.absent(before + form[:break_] + b"\r\n" + form[break_:] + after)
    windows = needles.windows(before + form.upper() + after, max(map(len, forms)))
    assert any(start <= len(before) and len(before + form) <= stop for start, stop in windows)
    assert all(a[1] < b[0] for a, b in pairwise(windows))


def test_more_places_than_can_be_counted_are_the_whole() -> None:
    assert Needles([b"aa"]).windows(b"a" * 20_000, 2) == [(0, 20_000)]
    assert Needles([b"a" * 20] * 20).windows(b"a" * 200_000, 20) == [(0, 200_000)]


@pytest.mark.parametrize("count", [1, 40])
def test_what_is_not_there_is_said_to_be_absent(count: int) -> None:
    needles = Needles([b64encode(f"value-{k}-of-a-secret".encode()) for k in range(count)])
    assert needles.absent(b"2026-01-02 INFO nothing of it\n" * 1000)
    assert not needles.absent(b"2026-01-02 INFO " + b64encode(b"value-0-of-a-secret") + b"\n")


def test_a_text_without_secrets_never_meets_a_pattern() -> None:
    """What makes it quick: compiling and running the patterns is for what may hold a secret."""
    mask = Masker(("hunter2x", "sesame-open"))
    for _ in range(2):
        assert mask.same_length(b"plain words\n" * 1000) == b"plain words\n" * 1000
        assert mask.text("plain words\n") == "plain words\n"
    assert not {"bytes", "text"} & set(vars(mask._search))
    assert mask.text("hunter2x") == "***"
    assert "text" in vars(mask._search)

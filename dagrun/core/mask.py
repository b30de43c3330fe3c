"""Hiding secret values in text and bytes: raw and as tools write them (base64, hex, URL, JSON, HTML, shell).

Damage control, no wall: a value that was split, reversed, compressed or derived is not found. Each
form is one way of writing applied to a whole value, so that a search is linear whatever the value is.
"""

from __future__ import annotations

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from functools import cached_property
from json.encoder import encode_basestring, encode_basestring_ascii
from urllib.parse import quote, quote_plus

from dagrun.core.maskscan import Beginnings, Needles
from dagrun.core.names import Json

MIN_LENGTH = 6  # characters; shorter values would blot out half of every text
_SHOWN = "***"
# What base64, xxd -p and openssl break into lines of at least _WRAP. Possessive: a long run without
# a break must not be tried from each of its characters; \A: a piece may begin within a line.
_WRAP = 16
_TELLING = 4  # fewer characters of a code, with a break after them, tell nothing
_CODE_CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-"
_CODE = f"[{_CODE_CHARS}]"
_BLOCK = rf"(?:\A{_CODE}*+|(?<!{_CODE}){_CODE}{{{_WRAP},}}+)(?:\r?\n{_CODE}++)+"


class Masker:
    """Replaces every known form of some secret values. Without values it changes nothing.

    `longest` is how many bytes a form can take: a reader in pieces overlaps them by one less.
    """

    __slots__ = ("_forms", "_search", "longest")

    def __init__(self, values: tuple[str, ...]) -> None:
        self._forms: dict[str, str] = {}
        self._search: _Search | None = None  # made when it is wanted: most runs show nothing secret
        self.longest = 0
        self.add(values)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def add(self, values: Iterable[str]) -> None:
        """Hide these values too, from now on."""
        before = len(self._forms)
        for value in values:
            for part in _parts(value):
                self._forms |= _written(part)
        if len(self._forms) == before:
            return
        self._search = None
        longest = max([len(form) for form in self._forms if _is_coded(form)])
        breaks = 2 * (longest // _WRAP + 2)
        self.longest = max(longest + breaks, *[len(_raw(form)) for form in self._forms])

    def text(self, text: str) -> str:
        """`text` with every secret shown as `***`."""
        search = self._searched()
        if search is None or search.texts.absent(text.encode("utf-8", "surrogatepass")):
            return text
        text = search.text.sub(_SHOWN, text)
        return _replaced(text, search.wrapped(text), lambda _: _SHOWN)

    def value(self, value: Json) -> Json:
        """A JSON value with every string and key masked."""
        if not self._forms:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(v) for v in value]
        if isinstance(value, dict):
            return {self.text(k): self.value(v) for k, v in value.items()}
        return value

    def same_length(self, data: bytes) -> bytes:
        """`data` with every secret overwritten by as many `*`: offsets and lines stay what they were."""
        return self._overwritten(data)[0]

    def pending(self, data: bytes) -> int:
        """How many bytes at the end of `data` may be the beginning of a secret that goes on after it."""
        search = self._searched()
        if search is None:
            return 0
        end = data[1 - self.longest :].lower()  # some forms are written in either case
        most = search.begun.at_end(end)
        text = end.decode("latin-1")
        start = _open_block(text, cut=len(end) < len(data))
        if start < len(text):
            block = text[start:]
            joined = block.replace("\r", "").replace("\n", "")
            begun = search.begun_code.at_end(joined.encode("latin-1"))
            if begun >= _TELLING:
                places = [k for k, c in enumerate(block) if c not in "\r\n"]
                most = max(most, len(block) - places[-begun])
        return most

    def settled(self, data: bytes) -> tuple[bytes, int]:
        """(`same_length(data)`, how much of it stays so whatever follows `data`)."""
        end = len(data) - self.pending(data)
        clean, spans = self._overwritten(data)
        # a secret that ends in what is held back is held back as a whole
        while cut := [start for start, stop in spans if start < end < stop]:
            end = min(cut)
        return clean, end

    def _overwritten(self, data: bytes) -> tuple[bytes, list[tuple[int, int]]]:
        """`same_length(data)`, and where it was changed."""
        search = self._searched()
        if search is None or search.all.absent(data):
            return data, []
        parts = search.all.windows(data, self.longest)
        spans = [match.span() for part in parts for match in search.bytes.finditer(data, *part)]
        out, at = [], 0
        for start, stop in spans:
            out += [data[at:start], re.sub(rb"[^\r\n]", b"*", data[start:stop])]
            at = stop
        # one character a byte, so that no place moves
        text = b"".join([*out, data[at:]]).decode("latin-1")
        wrapped = search.wrapped(text)
        text = _replaced(text, wrapped, lambda piece: re.sub(r"[^\r\n]", "*", piece))
        return text.encode("latin-1"), spans + wrapped

    def _searched(self) -> _Search | None:
        if self._search is None and self._forms:
            self._search = _Search(self._forms)
        return self._search


class _Search:
    """How the forms are found: quickly that none is there, and with patterns where they are."""

    def __init__(self, forms: dict[str, str]) -> None:
        self._forms = forms
        self.longest_first = sorted(forms, key=len, reverse=True)
        self.coded = [form for form in self.longest_first if _is_coded(form)]
        self.all = Needles(map(_raw, forms))
        self.texts = Needles([form.encode("utf-8", "surrogatepass") for form in forms])
        self._codes = Needles(map(_raw, self.coded))
        self.begun = Beginnings(map(_raw, forms))
        self.begun_code = Beginnings(map(_raw, self.coded))

    @cached_property
    def _pattern(self) -> str:
        return _either([self._forms[form] for form in self.longest_first])

    @cached_property
    def text(self) -> re.Pattern[str]:
        """All forms in a text."""
        return re.compile(self._pattern)

    @cached_property
    def bytes(self) -> re.Pattern[bytes]:
        """All forms in bytes."""
        return re.compile(_raw(self._pattern))

    @cached_property
    def _code(self) -> re.Pattern[str]:
        return re.compile(_either([self._forms[form] for form in self.coded]))

    def wrapped(self, text: str) -> list[tuple[int, int]]:
        """What is found in blocks of broken lines, read without the breaks."""
        if "\n" not in text or self._codes.absent(text.encode("utf-8", "surrogatepass")):
            return []
        found = []
        for block in re.finditer(_BLOCK, text):
            joined = block[0].replace("\r", "").replace("\n", "")
            matches = list(self._code.finditer(joined))
            if matches:
                places = [k for k, c in enumerate(block[0], block.start()) if c not in "\r\n"]
                found += [(places[m.start()], places[m.end() - 1] + 1) for m in matches]
        return found


def _replaced(text: str, spans: list[tuple[int, int]], shown: Callable[[str], str]) -> str:
    out, at = [], 0
    for start, end in spans:
        out += [text[at:start], shown(text[start:end])]
        at = end
    return "".join([*out, text[at:]]) if out else text


def _open_block(text: str, *, cut: bool) -> int:
    """Where broken lines of code begin that `text` ends with; its length where it ends with none.

    `cut`: the text is the end of a longer one, so a line may have begun before it.
    """
    begin = len(text.rstrip(_CODE_CHARS))
    while begin and text[begin - 1] == "\n":
        above = begin - 1 - text.endswith("\r", 0, begin - 1)
        start = len(text[:above].rstrip(_CODE_CHARS))
        if start == above:
            break
        begin = start
    first, broken, _ = text[begin:].partition("\n")
    long_enough = len(first.rstrip("\r")) >= _WRAP or (cut and begin == 0)
    return begin if broken and long_enough else len(text)


def _either(patterns: list[str], depth: int = 3) -> str:
    """One pattern for many, parted by how they begin: else each would be tried at every place of a text."""
    heads: dict[str, list[str]] = {}
    for pattern in patterns:
        token = _TOKEN.match(pattern)
        head = token[0] if token is not None and depth else ""
        heads.setdefault(head or pattern, []).append(pattern[len(head) :] if head else "")
    parts = [
        head + (rest[0] if len(rest) == 1 else f"(?:{_either(rest, depth - 1)})") for head, rest in heads.items()
    ]
    return "|".join(parts)


_TOKEN = re.compile(r"\\.|\[[^\]]*\]|.", re.DOTALL)


# ---------------------------------------------------------------- the forms of a value


def _parts(value: str) -> list[str]:
    """What is looked for: the value, without the space around it, and each of its lines on its own."""
    return [part for part in dict.fromkeys((value, value.strip(), *value.splitlines())) if len(part) >= MIN_LENGTH]


def maskable(value: str) -> bool:
    """Whether a value is long enough to be hidden."""
    return bool(_parts(value))


def _written(part: str) -> dict[str, str]:
    """Form → the pattern that finds it, for every way in which tools write a value."""
    raw = part.encode("utf-8", "surrogateescape")
    found = {part: re.escape(part)}
    for form in (*_json(part), *_quoted(part, raw), *_html(part), *_base64(raw)):
        found.setdefault(form, _any_case(re.escape(form), r"\\\\[ux][0-9a-f]{2,4}"))
    for form in _percent(raw):
        found.setdefault(form, _any_case(re.escape(form), "%[0-9A-F]{2}"))
    found[raw.hex()] = _any_case(raw.hex(), "[0-9a-f]+")
    return found


def _any_case(pattern: str, digits: str) -> str:
    """`pattern` with the hexadecimal letters of what `digits` finds in it in either case."""

    def either(match: re.Match[str]) -> str:
        text = match[0]
        head = 3 if text.startswith("\\") else 0  # the `\\u` of an escape is in lower case always
        return text[:head] + re.sub("[A-Fa-f]", lambda m: f"[{m[0].lower()}{m[0].upper()}]", text[head:])

    return re.sub(digits, either, pattern)


def _json(part: str) -> list[str]:
    escaped = [encode_basestring_ascii(part)[1:-1], encode_basestring(part)[1:-1]]
    escaped += [form.replace("/", "\\/") for form in escaped]  # PHP
    tags = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
    for form in list(escaped):
        escaped.append(re.sub("[<>&]", lambda m: tags[m[0]], form))  # Go
        escaped.append(re.sub("[<>&'+]", lambda m: f"\\u{ord(m[0]):04x}", form))  # .NET
    return escaped


def _quoted(part: str, raw: bytes) -> list[str]:
    """As Python's repr, error messages and shells quote it."""
    python = repr("\"'" + part)[4:-1]
    shell = [part.replace("'", "'\\''"), part.replace("'", "'\"'\"'")]
    words = re.sub(r"([^\w@%+=:,./-])", r"\\\1", part, flags=re.ASCII)
    double = re.sub(r'(["$`\\])', r"\\\1", part)
    return [python, python.replace("\\'", "'"), repr(raw)[2:-1].replace("\\'", "'"), *shell, words, double]


def _html(part: str) -> list[str]:
    plain = part.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    quotes = [plain.replace('"', "&quot;")]
    return [plain, *quotes, *[quotes[0].replace("'", mark) for mark in ("&#x27;", "&#39;", "&apos;")]]


def _percent(raw: bytes) -> list[str]:
    return [
        quote(raw, safe=""),
        quote(raw),
        quote_plus(raw),
        quote_plus(raw).replace("~", "%7E"),  # PHP
        quote_plus(raw, safe="*").replace("~", "%7E"),  # Java
        quote(raw, safe="!'()*"),  # encodeURIComponent
        quote(raw, safe=";,/?:@&=+$!*'()#"),  # encodeURI
        "".join([f"%{byte:02X}" for byte in raw]),
    ]


def _base64(raw: bytes) -> list[str]:
    """At the three alignments at which it can stand inside a longer text, in both alphabets."""
    out = []
    for shift in range(3):
        start = (shift * 8 + 5) // 6
        end = (shift + len(raw)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            out.append(encode(b"\0" * shift + raw).decode("ascii")[start:end])
    return out


def _is_coded(form: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9+/=_-]+", form) is not None


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

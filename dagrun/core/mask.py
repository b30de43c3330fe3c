"""Hiding secret values in text and bytes: raw, base64, URL- and JSON-encoded forms.

Damage control, no wall: a value that was split, reversed or derived is not found.
"""

from __future__ import annotations

import re
from base64 import b64encode, urlsafe_b64encode
from json.encoder import encode_basestring, encode_basestring_ascii
from urllib.parse import quote, quote_plus

from dagrun.core.names import Json

MIN_LENGTH = 4  # shorter values would blot out half of every text
_SHOWN = "***"


class Masker:
    """Replaces every known form of some secret values. Without values it changes nothing."""

    __slots__ = ("_bytes", "_text", "longest")

    def __init__(self, values: tuple[str, ...]) -> None:
        forms = sorted({f for v in values for f in _forms(v)}, key=len, reverse=True)
        self._text = re.compile("|".join(map(re.escape, forms))) if forms else None
        raw = [f.encode("utf-8", "surrogateescape") for f in forms]
        self._bytes = re.compile(b"|".join(map(re.escape, raw))) if raw else None
        self.longest = max(map(len, raw), default=0)

    def __bool__(self) -> bool:
        return self._text is not None

    def text(self, text: str) -> str:
        """`text` with every secret shown as `***`."""
        return self._text.sub(_SHOWN, text) if self._text is not None else text

    def value(self, value: Json) -> Json:
        """A JSON value with every string and key masked."""
        if self._text is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(v) for v in value]
        if isinstance(value, dict):
            return {self.text(k): self.value(v) for k, v in value.items()}
        return value

    def same_length(self, data: bytes) -> bytes:
        """`data` with every secret overwritten by as many `*`, so that offsets stay what they were."""
        if self._bytes is None:
            return data
        return self._bytes.sub(lambda m: b"*" * len(m.group()), data)


def _forms(value: str) -> set[str]:
    """The spellings of a value that are hidden; lines of a multi-line value count on their own."""
    out: set[str] = set()
    for part in {value, value.strip(), *value.splitlines()}:
        if len(part) < MIN_LENGTH:
            continue
        raw = part.encode("utf-8", "surrogateescape")
        out |= {part, encode_basestring_ascii(part)[1:-1], encode_basestring(part)[1:-1]}
        quoted = repr("\"'" + part)[4:-1]  # as messages quote what a node wrote
        out |= {quoted, quoted.replace("\\'", "'")}
        out |= {quote(raw, safe=""), quote_plus(raw), quote(raw)}
        for shift in range(3):
            # the three alignments at which the value can stand inside a longer base64 text
            for encode in (b64encode, urlsafe_b64encode):
                coded = encode(b"\0" * shift + raw).decode("ascii")
                start = (shift * 8 + 5) // 6
                end = (shift + len(raw)) * 8 // 6
                if end - start >= MIN_LENGTH:
                    out.add(coded[start:end])
        out.add(raw.hex())
    return out

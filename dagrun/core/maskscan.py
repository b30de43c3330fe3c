"""Telling quickly where forms of secrets can't be: most of what is masked holds none of them.

Sound and not exact: what it rules out is out, what it finds is for a pattern to judge. Letters are
compared in lower case, as some forms are written in either. Knows nothing of secrets or of patterns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

_LOWER = bytes(range(256)).lower()
_BREAKS = b"\r\n"
_BLOCK = 8
_LEAST = 2 * _BLOCK - 1  # so much holds a whole block, wherever in a text it begins
_FEW = 12  # so many are looked for one by one
_MOST_PLACES = 4096
_HEAD = 8


class Needles:
    """Some byte strings, and where in a text they can be."""

    __slots__ = ("_joined", "_plain")

    def __init__(self, forms: Iterable[bytes]) -> None:
        lowered = [form.lower() for form in forms]
        self._plain = _Searched(lowered)
        self._joined = _Searched([form.translate(None, _BREAKS) for form in lowered])

    def absent(self, data: bytes) -> bool:
        """Whether none of them is in `data`, in any case, and with line ends between or without."""
        return not self._joined.is_in(data.translate(_LOWER, _BREAKS))

    def windows(self, data: bytes, reach: int) -> list[tuple[int, int]]:
        """Parts of `data`, in order and apart, that hold all there is of them: `reach` around each."""
        places = self._plain.places(data.lower())
        if places is None:
            return [(0, len(data))]
        found: list[tuple[int, int]] = []
        for place in sorted(places):
            start, stop = max(0, place - reach), min(len(data), place + reach)
            if found and start <= found[-1][1]:
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
        return found


class _Searched:
    """What is looked for: a few one by one; many by their blocks, as many as they are in one pass."""

    __slots__ = ("_blocks", "_single")

    def __init__(self, wanted: list[bytes]) -> None:
        many = len(wanted) > _FEW
        self._single = [form for form in dict.fromkeys(wanted) if not many or len(form) < _LEAST]
        self._blocks = frozenset(
            [
                int.from_bytes(form[at : at + _BLOCK], sys.byteorder)
                for form in wanted
                if many and len(form) >= _LEAST
                for at in range(_BLOCK)
            ]
        )

    def is_in(self, data: bytes) -> bool:
        """False where none of them is."""
        return any(form in data for form in self._single) or not self._blocks.isdisjoint(_cut(data))

    def places(self, data: bytes) -> list[int] | None:
        """A place in each of them that is in `data`, or more; None where there are too many."""
        found: list[int] = []
        if self._blocks:
            found += [k * _BLOCK for k, block in enumerate(_cut(data)) if block in self._blocks]
        for form in self._single:
            at = data.find(form)
            while at >= 0 and len(found) <= _MOST_PLACES:
                found.append(at)
                at = data.find(form, at + 1)
        return found if len(found) <= _MOST_PLACES else None


def _cut(data: bytes) -> memoryview:
    """The whole blocks of `data`, as numbers."""
    return memoryview(data)[: len(data) // _BLOCK * _BLOCK].cast("Q")


class Beginnings:
    """Some byte strings, and how much of one stands at the end of a text that goes on."""

    __slots__ = ("_by_head", "_most", "_short")

    def __init__(self, forms: Iterable[bytes]) -> None:
        self._short: set[bytes] = set()
        self._by_head: dict[bytes, list[bytes]] = {}
        self._most = 0
        for form in [form.lower() for form in forms]:
            self._short.update([form[:k] for k in range(1, min(_HEAD, len(form) - 1) + 1)])
            if len(form) > _HEAD:
                self._by_head.setdefault(form[:_HEAD], []).append(form)
            self._most = max(self._most, len(form) - 1)

    def at_end(self, data: bytes) -> int:
        """How many bytes at the end of `data`, which is in lower case, begin one of them, but are not all of it."""
        window = data[max(0, len(data) - self._most) :]
        for at in range(len(window) - _HEAD):
            for form in self._by_head.get(window[at : at + _HEAD], ()):
                if len(form) > len(window) - at and form.startswith(window[at:]):
                    return len(window) - at
        return next((k for k in range(min(len(window), _HEAD), 0, -1) if window[-k:] in self._short), 0)

"""YAML's events to trees: one reader builds the values and holds the limits, another the places.

PyYAML's parser (libyaml, else pure Python) gives the events; nothing else of PyYAML is used.
Recursion is bounded by MAX_DEPTH. Knows nothing of bytes or problems: what is wrong is a Spot.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple, Protocol, TypeAlias, cast

from dagrun.flowfile.frames import Lines, Spot

MAX_BYTES = 32 * 1024 * 1024
MAX_EVENTS = 5_000_000  # aliases count as what they stand for
MAX_DEPTH = 50
MAX_ALIASES = 64


class Plain(str):
    """The source text of a scalar that was written without quotes."""

    __slots__ = ()


Value: TypeAlias = "str | list[Value] | dict[str, Value]"


class Mark(NamedTuple):
    """Where a value of the tree stands: characters `start` to `end`, and its children.

    `items` maps a key (or index) to (start of the key, end of the key, mark of the value);
    `block` tells that the value begins on lines of its own.
    """

    start: int
    end: int
    items: dict[str | int, tuple[int, int, Mark]] | None = None
    block: bool = False


class _Event(Protocol):
    """The attributes that are read of PyYAML's events; not every event has every one."""

    value: str
    style: str | None
    tag: str | None
    anchor: str | None
    flow_style: bool

    @property
    def start_mark(self) -> _YamlMark: ...
    @property
    def end_mark(self) -> _YamlMark: ...


class _YamlMark(Protocol):
    index: int


class _Parser(Protocol):
    def get_event(self) -> _Event: ...


class Stop(Exception):
    """Reading can't go on after this spot."""

    def __init__(self, spot: Spot) -> None:
        self.spot = spot


def _parser(text: str) -> _Parser:
    """PyYAML's event source: libyaml's where it was built in, else the pure Python one."""
    import yaml

    if getattr(yaml, "__with_libyaml__", False):
        from yaml.cyaml import CParser  # type: ignore[attr-defined]

        return cast(_Parser, CParser(text))
    from dagrun.flowfile.purepython import PureParser

    return cast(_Parser, PureParser(text))


class _Reader:
    """The events of one text, with YAML's errors explained."""

    def __init__(self, text: str) -> None:
        from yaml import YAMLError, events

        self.text = text
        self._scalar: object = events.ScalarEvent
        self._sequence: object = events.SequenceStartEvent
        self._alias: object = events.AliasEvent
        self._ends: tuple[object, ...] = (events.MappingEndEvent, events.SequenceEndEvent)
        self._document: object = events.DocumentStartEvent
        self._yaml_error = YAMLError
        self._get = _parser(text).get_event

    def first(self) -> _Event:
        """The event that begins the content of the document."""
        self._get()
        if type(self._get()) is not self._document:
            hint = "a workflow begins like this: nodes: {hello: {run: echo hello}}"
            raise Stop(Spot(0, 0, "empty", "the file is empty", hint))
        return self._get()

    def last(self) -> None:
        """Nothing may follow the document."""
        self._get()
        event = self._get()
        if type(event) is self._document:
            at = event.start_mark.index
            message = "a second document begins here, but a file holds one workflow"
            raise Stop(Spot(at, at + 3, "documents", message, "remove the `---` or split the file"))

    def explained(self, error: Exception) -> Stop:
        from dagrun.flowfile.traps import explain

        return Stop(explain(self.text, error))


class _Anchor(NamedTuple):
    """An anchored value: how much it adds where an alias repeats it."""

    value: Value
    events: int
    chars: int
    height: int


class Composer(_Reader):
    """Builds the tree of values and holds the limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.spots: list[Spot] = []
        self.twice_written = False
        self._comments = " #" in text
        self._count = self._extra_chars = self._aliases = self._end = 0
        self._anchors: dict[str, _Anchor | None] = {}

    def document(self) -> Value:
        """The value of the one document of the text."""
        try:
            value, _ = self._node(self.first(), 1)
            self.last()
        except self._yaml_error as error:
            raise self.explained(error) from None
        return value

    def _node(self, event: _Event, depth: int) -> tuple[Value, int]:
        """A value and its height (0 for a scalar)."""
        self._count += 1
        kind = type(event)
        if self._count > MAX_EVENTS:
            raise Stop(self._spot(event, "too-big", f"the file has more than {MAX_EVENTS:,} values"))
        if kind is self._alias:
            return self._repeat(event, depth)
        if event.tag is not None:
            self._tag(event)
        if event.anchor is not None:
            return self._anchored(event, depth)
        if kind is self._scalar:
            return self._text(event), 0
        return self._collection(event, depth)

    def _text(self, event: _Event) -> str:
        value = event.value
        if "\0" in value or (value.isascii() is False and _SURROGATE.search(value)):
            message = "text can't hold a NUL" if "\0" in value else "text can't hold half a surrogate pair"
            self.spots.append(self._spot(event, "control-character", message))
        if event.style:
            return value
        if self._comments and self.text.startswith(" #", event.end_mark.index):
            self._cut(event)
        return Plain(value)

    def _collection(self, event: _Event, depth: int) -> tuple[Value, int]:
        if depth > MAX_DEPTH:
            raise Stop(self._spot(event, "too-deep", f"values are nested deeper than {MAX_DEPTH} levels"))
        get, ends, node = self._get, self._ends, self._node
        height = 0
        if type(event) is self._sequence:
            items: list[Value] = []
            while type(event := get()) not in ends:
                value, inner = node(event, depth + 1)
                items.append(value)
                height = max(height, inner)
            self._end = event.end_mark.index
            return items, height + 1
        mapping: dict[str, Value] = {}
        while type(event := get()) not in ends:
            key = self._key(event, depth)
            value, inner = node(get(), depth + 1)
            height = max(height, inner)
            if key in mapping:
                self.twice_written = True
            else:
                mapping[key] = value
        self._end = event.end_mark.index
        return mapping, height + 1

    def _key(self, event: _Event, depth: int) -> str:
        if type(event) is self._scalar and event.anchor is None and event.tag is None:
            self._count += 1
            key = event.value
            if not key or "\0" in key:
                self.spots.append(
                    self._spot(event, "bad-key", "a key is empty" if not key else "a key can't hold a NUL")
                )
            elif key == "<<" and not event.style:
                message = "merge keys (`<<`) are not supported"
                self.spots.append(self._spot(event, "merge-key", message, "write the keys out, or use `defaults:`"))
            return sys.intern(key)
        value, _ = self._node(event, depth + 1)
        if isinstance(value, str):
            return str(value)
        start = event.start_mark.index
        message, hint = "a key must be plain text, not a list or mapping", ""
        if self.text.startswith("{", max(start - 1, 0)) and self.text.startswith("{", start):
            end = self.text.find("}}", start)
            inside = self.text[start + 1 : end if end > 0 else start + 1].strip()
            message = "`{{` begins two mappings, not an expression"
            hint = f'an expression is written in quotes, with a dollar: "${{{{ {inside} }}}}"'
        raise Stop(Spot(start, event.end_mark.index, "bad-key", message, hint))

    def _anchored(self, event: _Event, depth: int) -> tuple[Value, int]:
        name = cast(str, event.anchor)
        self._anchors[name] = None
        start, count, extra = event.start_mark.index, self._count, self._extra_chars
        if type(event) is self._scalar:
            value, height, self._end = cast(Value, self._text(event)), 0, event.end_mark.index
        else:
            value, height = self._collection(event, depth)
        chars = self._end - start + (self._extra_chars - extra)
        self._anchors[name] = _Anchor(value, self._count - count + 1, chars, height)
        return value, height

    def _repeat(self, event: _Event, depth: int) -> tuple[Value, int]:
        name = cast(str, event.anchor)
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise Stop(self._spot(event, "aliases", f"the file uses more than {MAX_ALIASES} aliases (`*{name}`)"))
        if name not in self._anchors:
            hint = f"as text it needs quotes: '*{name}'"
            self.spots.append(
                self._spot(event, "alias", f"`*{name}` is read as a YAML alias, but nothing is named `&{name}`", hint)
            )
            return "", 0
        anchor = self._anchors[name]
        if anchor is None:
            raise Stop(self._spot(event, "alias", f"`*{name}` stands inside the value that it repeats"))
        self._count += anchor.events
        self._extra_chars += anchor.chars
        if self._count > MAX_EVENTS or self._extra_chars > MAX_BYTES:
            raise Stop(self._spot(event, "aliases", "with its aliases written out the file would be far too big"))
        if depth + anchor.height - 1 > MAX_DEPTH:
            raise Stop(self._spot(event, "too-deep", f"values are nested deeper than {MAX_DEPTH} levels"))
        return anchor.value, anchor.height

    def _tag(self, event: _Event) -> None:
        from dagrun.flowfile.traps import tag

        self.spots.append(tag(self.text, event.start_mark.index, event.end_mark.index))

    def _cut(self, event: _Event) -> None:
        from dagrun.flowfile.traps import cut

        spot = cut(self.text, event.start_mark.index, event.end_mark.index)
        if spot:
            self.spots.append(spot)

    def _spot(self, event: _Event, code: str, message: str, hint: str = "") -> Spot:
        return Spot(event.start_mark.index, event.end_mark.index, code, message, hint)


_SURROGATE = re.compile("[\ud800-\udfff]")


class Marker(_Reader):
    """Reads a text that a composer has read before, this time for the places."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._anchors: dict[str, Mark] = {}
        self.twice: list[tuple[str, int, int, int]] = []

    def document(self) -> Mark:
        """The mark of the whole document; a text that breaks off gives the marks before the break."""
        try:
            return self._node(self.first(), 1)
        except (self._yaml_error, Stop):
            return Mark(0, 0)

    def _node(self, event: _Event, depth: int) -> Mark:
        start, end = event.start_mark.index, event.end_mark.index
        if type(event) is self._alias:
            return self._anchors.get(cast(str, event.anchor), Mark(start, end))
        anchor, block, items = event.anchor, False, None
        if type(event) is not self._scalar:
            block = not event.flow_style
            if depth > MAX_DEPTH:
                raise Stop(Spot(start, end, "too-deep", ""))
            items, end = self._items(event, depth + 1)
            block = block or self.text.find("\n", start, end) >= 0
        mark = Mark(start, end, items, block)
        if anchor is not None:
            self._anchors[anchor] = mark
        return mark

    def _items(self, event: _Event, depth: int) -> tuple[dict[str | int, tuple[int, int, Mark]], int]:
        get, ends = self._get, self._ends
        items: dict[str | int, tuple[int, int, Mark]] = {}
        if type(event) is self._sequence:
            while type(event := get()) not in ends:
                mark = self._node(event, depth)
                items[len(items)] = (mark.start, mark.end, mark)
            return items, event.end_mark.index
        while type(event := get()) not in ends:
            start, end = event.start_mark.index, event.end_mark.index
            self._node(event, depth)
            key = event.value if type(event) is self._scalar else ""
            mark = self._node(get(), depth)
            if key in items:
                self.twice.append((key, start, end, items[key][0]))
            else:
                items[key] = (start, end, mark)
        return items, event.end_mark.index


def duplicates(text: str) -> list[Spot]:
    marker = Marker(text)
    marker.document()
    lines = Lines(text)
    return [
        Spot(
            start,
            end,
            "duplicate-key",
            f"`{key}` is written twice in the same mapping (first in line {lines.place(first)[0]})",
            "remove one, or join them: YAML would silently keep only one of them",
        )
        for key, start, end, first in marker.twice
    ]

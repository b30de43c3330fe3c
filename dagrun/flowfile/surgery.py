"""Changes of a YAML text by its places: values replaced, keys put in and taken out, all else to the letter.

Works from two documents, what the text says now and what it is to say, and touches only the lines
of what differs. Block style gets block style in the file's own indentation; flow style and JSON
get theirs. Knows nothing of workflows; whether the new text says what it should is the caller's to
check, by reading it. A round-trip library would keep comments too, but rewrites every line in its
own style and types scalars by rules that are not dagrun's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dagrun.core.names import Json
from dagrun.flowfile import emit
from dagrun.flowfile.differ import same
from dagrun.flowfile.source import Mark


class Unfit(Exception):
    """This place can't be changed by surgery: `offset` and why."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.message = message


@dataclass(slots=True)
class Surgery:
    """The changes of one text, collected and then made at once."""

    text: str
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    newline: str = field(init=False)
    as_json: bool = field(init=False)

    def __post_init__(self) -> None:
        first = self.text.find("\n")
        self.newline = "\r\n" if first > 0 and self.text[first - 1] == "\r" else "\n"
        self.as_json = self.text.lstrip()[:1] == "{"

    def result(self) -> str:
        """The text with all changes made."""
        parts: list[str] = []
        done = 0
        for start, end, new in sorted(self.edits, key=lambda e: (e[0], e[1])):
            if start < done:
                raise Unfit(start, "two changes meet in the same place")
            parts += (self.text[done:start], new)
            done = end
        return "".join([*parts, self.text[done:]])

    # ------------------------------------------------------------ what to change

    def mapping(self, mark: Mark, old: Mapping[str, Json], new: Mapping[str, Json]) -> None:
        """Make the mapping at a mark say `new` where `old` says something else; other keys stay."""
        items = self._items(mark)
        gone = [key for key in old if key not in new and key in items]
        if gone and len(gone) == len(items) and (self.is_flow(mark) or not new):
            self.renew(mark, dict(new))
            return
        added: dict[str, Json] = {}
        for key, value in new.items():
            if key in old and same(old[key], value):
                continue
            if key not in items:
                added[key] = value
            else:
                self._value(mark, key, old.get(key), value)
        self.delete(mark, gone)
        if added:
            self.append(mark, added, gone)

    def _value(self, holder: Mark, key: str, old: Json, new: Json) -> None:
        """Make the value of a key another one."""
        start, end, mark = self._items(holder)[key]
        self.own(mark, end)
        if (
            isinstance(old, dict)
            and isinstance(new, dict)
            and mark.items is not None
            and new
            and not self._is_list(mark)
        ):
            self.mapping(mark, old, new)
            return
        if self.is_flow(holder):
            if mark.start == mark.end:
                self._replace(end, max(end, mark.end), f": {self._flow(new)}")
            else:
                self._replace(mark.start, self._end(mark), self._flow(new))
            return
        if isinstance(old, list) and isinstance(new, list) and self._is_list(mark) and self._list(mark, old, new):
            return
        self._entry(holder, start, end, mark, new)

    def _entry(self, holder: Mark, start: int, end: int, mark: Mark, new: Json) -> None:
        """Write the value of a key of a block mapping anew; comments beside it stay, if need be above it."""
        value_end = max(end, self._end(mark))
        indent = self._column(start)
        lines = emit.entry("k", new, indent, self._step(holder))
        gap = self.text[end : mark.start]
        if len(lines) == 1 and mark.start > end and "\n" not in gap and (mark.items is None or self.is_flow(mark)):
            self._replace(mark.start, value_end, lines[0].lstrip().removeprefix("k: "))
            return
        rest = self.text[value_end : self._line_end(value_end)]
        comments = [part.strip() for part in gap.lstrip(": ").splitlines() if part.strip().startswith("#")]
        if rest.strip().startswith("#") and len(lines) > 1:  # it would become a part of the value's last line
            comments.append(rest.strip())
            value_end += len(rest)
        if comments:
            self._replace(start, start, "".join(c + self.newline + " " * indent for c in comments))
        body = lines[0].lstrip().removeprefix("k")
        self._replace(end, value_end, self.newline.join([body, *lines[1:]]))

    def _list(self, mark: Mark, old: list[Json], new: list[Json]) -> bool:
        """Change single items of a block list of scalars; False where only the whole can be written anew."""
        items = list((mark.items or {}).values())
        kept = [v for v in old if v in new]
        added = new[len(kept) :]
        scalars = not any(isinstance(v, dict | list) or (isinstance(v, str) and "\n" in v) for v in [*old, *new])
        if self.is_flow(mark) or not kept or kept != new[: len(kept)] or len(items) != len(old) or not scalars:
            return False
        for value, (start, _, inner) in zip(old, items):
            self.own(inner, start)
            if value not in kept:
                self._replace(self._line_start(start), self._next_line(self._end(inner)), "")
        pad = " " * self._column(mark.start)
        self.lines(self._next_line(self._end(items[-1][2])), [f"{pad}- {emit.scalar(v)}" for v in added])
        return True

    def renew(self, mark: Mark, document: dict[str, Json]) -> None:
        """Write a whole mapping in brackets anew."""
        self._replace(mark.start, self._end(mark), self._flow(document))

    def delete(self, holder: Mark, keys: list[str]) -> None:
        """Take keys out, with the comments that stand right above them."""
        items = self._items(holder)
        if self.is_flow(holder):
            self._delete_flow(list(items), {k: items[k] for k in items}, set(keys))
            return
        for key in keys:
            start, end, mark = items[key]
            self.own(mark, end)
            first = self._above(self._line_start(start), self._column(start))
            last = self._next_line(max(end, self._end(mark)))
            while first > 0 and self._blank(self._line_start(first - 1)) and self._blank(last):
                first = self._line_start(first - 1)
            self._replace(first, last, "")

    def _delete_flow(
        self, order: list[str | int], items: dict[str | int, tuple[int, int, Mark]], keys: set[str]
    ) -> None:
        kept = [k for k in order if k not in keys]
        for place, key in enumerate(order):
            if key not in keys:
                continue
            start, _, mark = items[key]
            later = [k for k in order[place + 1 :] if k in kept]
            if later:  # up to the next one, comma included
                self._replace(start, items[order[place + 1]][0], "")
            else:  # the last ones: from the end of the one before
                before = items[order[place - 1]]
                self._replace(max(before[1], self._end(before[2])), max(items[key][1], self._end(mark)), "")

    def append(self, holder: Mark, added: Mapping[str, Json], gone: list[str] | None = None) -> None:
        """Put keys at the end of a mapping."""
        items = self._items(holder)
        if self.is_flow(holder):
            left = [k for k in items if k not in (gone or [])]
            if not left:
                self.renew(holder, dict(added))
                return
            last = items[left[-1]]
            self._insert_flow(list(items.values()), max(last[1], self._end(last[2])), added)
            return
        _, end, mark = list(items.values())[-1]
        self.lines(self._next_line(max(end, self._end(mark))), self._entries(holder, added))

    def _insert_flow(self, items: list[tuple[int, int, Mark]], at: int, added: Mapping[str, Json]) -> None:
        gap = " "
        before = self.text[self._line_start(items[-1][0]) : items[-1][0]]
        if not before.strip():  # one key a line
            gap = self.newline + before
        new = "".join(f",{gap}{self._key(key)}: {self._flow(value)}" for key, value in added.items())
        self._replace(at, at, new)

    def _entries(self, holder: Mark, added: Mapping[str, Json]) -> list[str]:
        indent = self._column(next(iter(self._items(holder).values()))[0])
        step = self._step(holder)
        return [line for key, value in added.items() for line in emit.entry(key, value, indent, step)]

    def lines(self, at: int, lines: list[str]) -> None:
        """Put whole lines in at the beginning of a line, or at the end of the text."""
        if not lines:
            return
        head = "" if at == 0 or self.text[at - 1] == "\n" else self.newline
        self._replace(at, at, head + self.newline.join(lines) + self.newline)

    # ------------------------------------------------------------ nodes by name

    def after(self, holder: Mark, key: str) -> int:
        """Where lines that follow a key of a block mapping begin."""
        _, end, mark = self._items(holder)[key]
        return self._next_line(max(end, self._end(mark)))

    def before(self, holder: Mark, key: str) -> int:
        """Where lines that precede a key of a block mapping, and the comments above it, end."""
        start = self._items(holder)[key][0]
        return self._above(self._line_start(start), self._column(start))

    def follows_blank(self, line: int) -> bool:
        """Whether a blank line stands before the one that begins here."""
        return line > 0 and self._blank(self._line_start(line - 1))

    def node_lines(self, holder: Mark, name: str, document: dict[str, Json]) -> list[str]:
        """A new node of a block mapping of nodes, in the style of its neighbours."""
        indent = self._column(next(iter(self._items(holder).values()))[0])
        step = self._step(holder)
        head = f"{' ' * indent}{self._key(name)}:"
        inner = [line for key, value in document.items() for line in emit.entry(key, value, indent + step, step)]
        return [head, *inner]

    def spaced(self, holder: Mark) -> bool:
        """Whether blank lines part the keys of a block mapping."""
        starts = [self._above(self._line_start(s), self._column(s)) for s, _, _ in self._items(holder).values()]
        return len(starts) > 1 and all(self._blank(self._line_start(s - 1)) for s in starts[1:] if s)

    # ------------------------------------------------------------ places

    def _items(self, mark: Mark) -> dict[str, tuple[int, int, Mark]]:
        if mark.items is None:
            raise Unfit(mark.start, "this is no mapping")
        return mark.items  # type: ignore[return-value]

    def own(self, mark: Mark, after: int) -> None:
        """A value that stands elsewhere (an alias) or is used elsewhere (an anchor) is not changed."""
        if mark.start < after or self.text[mark.start : mark.start + 1] in ("&", "*"):
            raise Unfit(after, "this is written with a YAML anchor or alias, and may be used in several places")

    def is_flow(self, mark: Mark) -> bool:
        """Whether a collection is written with brackets."""
        return self.text[mark.start : mark.start + 1] in ("{", "[") and mark.items is not None

    def _is_list(self, mark: Mark) -> bool:
        return self.text[mark.start : mark.start + 1] in ("[", "-") and mark.items is not None and 0 in mark.items

    def _end(self, mark: Mark) -> int:
        """Where a value really ends: YAML lets a block end where the next thing begins."""
        if mark.items is not None and not self.is_flow(mark):
            # of an item of a list, start and end are those of its value
            ends = [
                max(end if start != inner.start else 0, self._end(inner)) for start, end, inner in mark.items.values()
            ]
            return max(ends, default=mark.start)
        return mark.start + len(self.text[mark.start : mark.end].rstrip())

    def _column(self, at: int) -> int:
        return at - self._line_start(at)

    def _line_start(self, at: int) -> int:
        return self.text.rfind("\n", 0, max(at, 0)) + 1

    def _line_end(self, at: int) -> int:
        found = self.text.find("\n", at)
        end = found if found >= 0 else len(self.text)
        return end - 1 if end > at and self.text[end - 1] == "\r" else end

    def _next_line(self, at: int) -> int:
        found = self.text.find("\n", at)
        return found + 1 if found >= 0 else len(self.text)

    def _blank(self, line: int) -> bool:
        return not self.text[line : self._line_end(line)].strip()

    def _above(self, line: int, column: int) -> int:
        """The first of the comment lines right above a line, at the same indentation."""
        while line > 0:
            above = self._line_start(line - 1)
            text = self.text[above : self._line_end(above)]
            if not re.match(rf" {{{column}}}#", text):
                break
            line = above
        return line

    def _step(self, holder: Mark) -> int:
        """How many spaces the file indents a level by."""
        stack = [holder]
        for mark in stack:
            for start, _, inner in (mark.items or {}).values():
                if inner.items and not self.is_flow(inner) and not self._is_list(inner):
                    step = self._column(inner.start) - self._column(start)
                    return step if 1 <= step <= 8 else 2
                stack.append(inner)
            if len(stack) > 1000:
                break
        return 2

    def _flow(self, value: Json) -> str:
        return _json(value) if self.as_json else emit.flow(value)

    def _key(self, key: str) -> str:
        return _json(key) if self.as_json else emit.key(key)

    def _replace(self, start: int, end: int, new: str) -> None:
        self.edits.append((start, end, new))


def _json(value: Json) -> str:
    """JSON on one line; characters that can't be seen as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)

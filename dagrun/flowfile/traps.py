"""YAML's traps: what its parser says, in the words of somebody who fell in, with the way out.

Pure functions from a text and a place to a Spot. Only run when something is wrong (or looks so).
"""

from __future__ import annotations

import re
from typing import Protocol

from dagrun.flowfile.frames import Spot

_HALF = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")  # of a character beyond U+FFFF, as JSON writes it


class _Mark(Protocol):
    index: int


class _Found:
    """What YAML's error says: `problem` at offset `at`, while doing `context` begun at `since`."""

    def __init__(self, text: str, error: Exception) -> None:
        mark: _Mark | None = getattr(error, "problem_mark", None)
        begun: _Mark | None = getattr(error, "context_mark", None)
        self.text = text
        self.problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
        self.context = str(getattr(error, "context", None) or "")
        self.at = min(mark.index if mark else getattr(error, "position", 0) or 0, len(text))
        self.since = begun.index if begun else self.at
        self.line_start = text.rfind("\n", 0, self.at) + 1
        end = text.find("\n", self.at)
        self.line = text[self.line_start : end if end >= 0 else len(text)].rstrip("\r")


def explain(text: str, error: Exception) -> Spot:
    """What a YAML error means and what to write instead."""
    found = _Found(text, error)
    for rule in _RULES:
        spot = rule(found)
        if spot:
            return spot
    problem = found.problem.removeprefix("did not find ").removeprefix("found ")
    return Spot(found.at, found.at + 1, "yaml", f"this is not YAML: {problem}", _while(found))


def quoted(text: str) -> str:
    """`text` as a YAML scalar in quotes."""
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text and "\\" not in text:
        return f'"{text}"'
    return "'" + text.replace("'", "''") + "'"


def _while(found: _Found) -> str:
    return f"while {found.context.removeprefix('while ')}" if found.context else ""


def _value(found: _Found, at: int) -> str:
    """The rest of the line from `at`, without a comment: what was probably meant as one value."""
    end = found.text.find("\n", at)
    rest = found.text[at : end if end >= 0 else len(found.text)].rstrip()
    return re.split(r"\s#", rest)[0].rstrip()


def _flow_item(text: str, at: int) -> tuple[int, int]:
    """The item of a flow collection around an expression whose `${{` is at `at`."""
    line = text.rfind("\n", 0, at) + 1
    start = max(text.rfind(c, line, at) for c in ("[", "{", ",", ": "))
    start = start + (2 if text.startswith(": ", start) else 1) if start >= line else at
    close = text.find("}}", at)
    if close < 0:
        return at, at + 3
    end = re.compile(r"[^,\]}\n]*").match(text, close + 2)
    item = text[start : end.end() if end else close + 2]
    return start + len(item) - len(item.lstrip()), start + len(item.rstrip())


def _tab(found: _Found) -> Spot | None:
    indent = re.match(r"[ \t]*", found.line)
    tab = found.line.find("\t", 0, indent.end() if indent else 0)
    if tab < 0 or not ("tab" in found.problem or "start any token" in found.problem or "expected" in found.problem):
        return None
    at = found.line_start + tab
    return Spot(at, at + 1, "tab", "a tab can't indent YAML", "indent with spaces")


def _expression_in_flow(found: _Found) -> Spot | None:
    at = found.text.rfind("${{", 0, found.at + 2)
    if at < found.line_start or "expected" not in found.problem or "flow" not in found.context:
        return None
    if found.at > at + 3:
        return None
    start, end = _flow_item(found.text, at)
    item = found.text[start:end]
    message = "an expression inside [ ] or { } needs quotes: YAML reads its braces as a mapping"
    return Spot(start, end, "quote-expression", message, f"write {quoted(item)}")


def _alias(found: _Found) -> Spot | None:
    if "alias" not in found.context:
        return None
    word = re.compile(r"\*[^\s,\]}]*").match(found.text, found.since)
    text = word[0] if word else "*"
    if (
        found.text[found.line_start : found.since].strip() in ("-", "")
        or ":" in found.text[found.line_start : found.since]
    ):
        rest = _value(found, found.since)
        text = text if any(c in rest for c in ",]}") else rest
    message = f"`{text}` is read as a YAML alias because of its `*`"
    return Spot(found.since, found.since + len(text), "quote-star", message, f"write {quoted(text)}")


def _anchor(found: _Found) -> Spot | None:
    if "anchor" not in found.context:
        return None
    bang = re.search(r":\s+(!)", found.line)
    if bang and found.line_start + bang.start(1) < found.since:
        return tag(found.text, found.line_start + bang.start(1), found.since)
    text = _value(found, found.since)
    message = f"`{text}` is read as a YAML anchor because of its `&`"
    return Spot(found.since, found.since + len(text), "quote-ampersand", message, f"write {quoted(text)}")


def _colon(found: _Found) -> Spot | None:
    if "mapping values are not allowed" not in found.problem:
        return None
    pair = re.match(r"(\s*(?:- +)*)([^\s:#'\"][^:]*):[ \t]+(\S.*)", found.line)
    if pair and found.line_start + pair.start(3) <= found.at:
        value = _value(found, found.line_start + pair.start(3))
        key = pair[2].strip()
        message = "a `: ` inside a plain value would begin another mapping"
        start = found.line_start + pair.start(3)
        return Spot(start, start + len(value), "quote-colon", message, f"write {key}: {quoted(value)}")
    item = re.match(r"\s*(?:- +)?", found.line)
    start = found.line_start + (item.end() if item else 0)
    message = "this line is indented below a key that already has a value"
    return Spot(start, max(start + 1, found.at), "indent", message, "give it the same indentation as its neighbours")


def _first_character(found: _Found) -> Spot | None:
    if "start any token" not in found.problem or found.at >= len(found.text):
        return None
    char = found.text[found.at]
    value = _value(found, found.at)
    message = f"a value can't begin with {'a tab' if char == chr(9) else f'`{char}`'} unless it is in quotes"
    return Spot(found.at, found.at + 1, "quote-character", message, f"write {quoted(value)}")


def _open_quote(found: _Found) -> Spot | None:
    if "quoted scalar" not in found.context:
        return None
    quote = found.text[found.since : found.since + 1]
    if "escape" in found.problem or "hexdec" in found.problem:
        slash = found.text.rfind("\\", found.since, found.at + 2)
        slash = slash if slash >= 0 else found.at
        half = _HALF.match(found.text, slash)
        if half:
            message = f"`{half[0]}` is only one half of a character"
            return Spot(slash, half.end(), "escape", message, "remove it, or write its other half beside it")
        escape = found.text[slash : slash + 2]
        digits = {"x": 2, "u": 4, "U": 8}.get(escape[1:])
        if digits:
            message = f"after `{escape}` {digits} hexadecimal digits name a character that there is"
            return Spot(slash, slash + 2, "escape", message, "write \\\\ for a backslash, or use single quotes")
        message = f"`{escape}` is no escape that YAML knows in double quotes"
        hint = "use single quotes, in which nothing is escaped, or write \\\\ for a backslash"
        return Spot(slash, slash + 2, "escape", message, hint)
    message = "the quote that opens here is never closed"
    return Spot(found.since, found.since + 1, "open-quote", message, f"add the closing {quote}")


def _no_colon(found: _Found) -> Spot | None:
    if "could not find expected ':'" not in found.problem:
        return None
    text = _value(found, found.since)
    close = re.match(r"([A-Za-z_][\w-]*):(\S.*)", text)
    if close:
        message, hint = (
            f"`{text}` is one word to YAML: a space is missing after the colon",
            f"write {close[1]}: {close[2]}",
        )
    else:
        message, hint = (
            f"`{text}` should be `key: value`, but has no colon",
            "is it a part of the line before? indent it more",
        )
    return Spot(found.since, found.since + max(1, len(text)), "no-colon", message, hint)


def _open_bracket(found: _Found) -> Spot | None:
    if "flow" not in found.context:
        return None
    if "node content" in found.problem and found.at < len(found.text):
        message = "a value is missing here, between two separators"
        return Spot(found.at, found.at + 1, "flow", message, "remove one separator, or write the value")
    since = found.since
    if since >= len(found.text) or found.text[since] not in "[{":
        since = max(found.text.rfind(c, 0, since) for c in "[{")
    if since < 0:
        return None
    found.since = since
    opening = found.text[since]
    closing = {"[": "]", "{": "}"}.get(opening, "]")
    if found.line_start <= found.since and found.at < len(found.text):
        message = f"a `,` or the closing `{closing}` is missing here"
        return Spot(found.at, found.at + 1, "flow", message, "a value with braces, brackets or commas needs quotes")
    message = f"the `{opening}` that opens here is not closed"
    return Spot(found.since, found.since + 1, "flow", message, f"add the closing `{closing}`")


def _key(found: _Found) -> Spot | None:
    if not ("expected key" in found.problem or "<block end>" in found.problem or "'-' indicator" in found.problem):
        return None
    before = found.text[found.line_start : found.at].rstrip()
    rest = _value(found, found.at)
    if before.endswith(("'", '"')):
        message = "text after the closing quote"
        return Spot(
            found.at, found.at + len(rest), "after-quote", message, "put the whole value into one pair of quotes"
        )
    if found.text[found.since : found.since + 2] == "- " or "'-' indicator" in found.problem:
        message = "a list ends here, but what follows is neither a list item nor a key of the level above"
        return Spot(found.at, found.at + max(1, len(rest)), "indent", message, "begin it with `- `, or indent it less")
    if rest.startswith("- "):
        message = "a list item stands here, where a key is wanted"
        return Spot(found.at, found.at + len(rest), "indent", message, "indent it like the other items of its list")
    column = found.at - found.line_start
    wanted = found.since - (found.text.rfind("\n", 0, found.since) + 1)
    message = f"the indentation of {column} spaces fits no level above (the nearest mapping has {wanted})"
    return Spot(
        found.at, found.at + max(1, len(rest)), "indent", message, f"indent it by {wanted} spaces like its neighbours"
    )


_RULES = (
    _tab,
    _expression_in_flow,
    _alias,
    _anchor,
    _colon,
    _first_character,
    _open_quote,
    _no_colon,
    _open_bracket,
    _key,
)


def tag(text: str, start: int, end: int) -> Spot:
    """The refusal of a tag; `!cancelled()` was meant as an expression, not as a tag."""
    line_end = text.find("\n", start)
    rest = re.split(r"\s#", text[start : line_end if line_end >= 0 else len(text)])[0].strip()
    word = rest.split()[0] if rest else "!"
    if word.startswith(("!!", "!<")):
        return Spot(
            start,
            start + len(word),
            "tag",
            f"tags like `{word}` are not supported",
            "remove it: a value's type comes from its key",
        )
    message = f"`{word}` is read as a YAML tag because of its `!`"
    return Spot(start, start + len(rest), "quote-bang", message, f"write {quoted(rest)}")


def cut(text: str, start: int, end: int) -> Spot | None:
    """A plain value that ` #` cuts in two: only where a quote or an expression is left open."""
    value = text[start:end]
    line_end = text.find("\n", end)
    comment = text[end : line_end if line_end >= 0 else len(text)].rstrip()
    expression = value.rfind("${{") > value.rfind("}}") and "}}" in comment
    double = value.count('"') % 2 == 1 and comment.count('"') % 2 == 1
    single = re.search(r"(?:^|[\s=(,])'[^']*$", value) is not None and "'" in comment
    if not (expression or double or single):
        return None
    message = "the value ends here: ` #` begins a comment"
    return Spot(end + 1, end + len(comment), "quote-hash", message, f"write {quoted(value + comment)}")

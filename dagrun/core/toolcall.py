"""Whether a call of a tool is one that permissions name: decided by its text, nothing is evaluated.

This is policy, not containment: `Bash(git:*)` also allows `git -c alias.x=!sh x`, and git, find, make
or python run anything. What a node can reach is held by its sandbox.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dagrun.core.grants import FILE_TOOLS, RESERVED, Call, call_of
from dagrun.core.names import Json
from dagrun.core.roots import Root, matches, root_of

# printable ASCII that no POSIX shell reads as more than itself, anywhere in a word
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-^")
_BLANK = " \t"
_ESCAPED_IN_QUOTES = frozenset('$`"\\')
_PATH_KEYS = {"Read": "file_path", "Write": "file_path", "Edit": "file_path", "Grep": "path", "Glob": "path"}


def allows(patterns: Iterable[str], tool: str, arguments: Mapping[str, Json], *, project: str = "") -> bool:
    """Whether some pattern names this call.

    `Bash(git:*)` and `Bash(git status)` hold only for one simple command whose words can be told
    for certain; `Read(src/**)` for a path below a root. Absolute paths below `project` count as
    relative ones. A tool without arguments in its pattern is allowed whatever it is called with.
    """
    calls = [call_of(text) for text in patterns]
    if any(_all_of(call, tool) for call in calls):
        return True
    mine = [call for call in calls if call.tool == tool]
    if tool == "Bash":
        command = arguments.get("command")
        words = simple_command(command) if mine and isinstance(command, str) else None
        return words is not None and any(_begins(words, call) for call in mine)
    if tool in FILE_TOOLS and mine:
        place = _place(tool, arguments, project)
        return place is not None and any(call.root is not None and matches(place, call.root) for call in mine)
    return False


def _all_of(call: Call, tool: str) -> bool:
    if call.tool.endswith("__*"):
        return tool.startswith(call.tool[:-1]) and len(tool) > len(call.tool) - 1
    return call == Call(tool)


def _begins(words: tuple[str, ...], call: Call) -> bool:
    return words == call.words if call.exact else words[: len(call.words)] == call.words


# ---------------------------------------------------------------- Bash


def simple_command(text: str) -> tuple[str, ...] | None:
    """The words of a command that is one simple command in every POSIX shell; None for anything else.

    Operators, redirections, substitutions, expansions, globs, comments, assignments, reserved words,
    line ends outside quotes and control characters make it something else; so does what can't be
    told for certain. There is no length after which checks stop.
    """
    words: list[str] = []
    at, size = 0, len(text)
    while at < size:
        if text[at] in _BLANK:
            at += 1
            continue
        got = _word(text, at)
        if got is None:
            return None
        word, at = got
        words.append(word)
    if not words or words[0] in RESERVED or "=" in words[0]:
        return None
    return tuple(words)


def _word(text: str, at: int) -> tuple[str, int] | None:
    """The word that begins at `at`, quotes taken off, and where it ends; None where it is more than a word."""
    parts: list[str] = []
    while at < len(text) and text[at] not in _BLANK:
        char = text[at]
        if char in _PLAIN:
            parts.append(char)
            at += 1
            continue
        if char == "\\":
            if at + 1 >= len(text) or not "!" <= text[at + 1] <= "~":
                return None  # also an escaped blank: nobody means it
            parts.append(text[at + 1])
            at += 2
            continue
        got = _single(text, at) if char == "'" else _double(text, at) if char == '"' else None
        if got is None:
            return None
        parts.append(got[0])
        at = got[1]
    return "".join(parts), at


def _single(text: str, at: int) -> tuple[str, int] | None:
    """What stands between single quotes, and the place behind them."""
    end = text.find("'", at + 1)
    inner = text[at + 1 : end]
    return (inner, end + 1) if end > 0 and _seen(inner) else None


def _double(text: str, at: int) -> tuple[str, int] | None:
    """What stands between double quotes when nothing in it is expanded, and the place behind them."""
    parts: list[str] = []
    at += 1
    while at < len(text):
        char = text[at]
        if char == '"':
            inner = "".join(parts)
            return (inner, at + 1) if _seen(inner) else None
        if char in "$`":
            return None
        if char == "\\":
            after = text[at + 1 : at + 2]
            if after in ("", "\n"):
                return None
            parts.append(after if after in _ESCAPED_IN_QUOTES else char + after)
            at += 2
            continue
        parts.append(char)
        at += 1
    return None


def _seen(text: str) -> bool:
    """Whether quoted text has only what can be seen, lines and tabs."""
    return all(c.isprintable() or c in "\n\t" for c in text)


# ---------------------------------------------------------------- files


def _place(tool: str, arguments: Mapping[str, Json], project: str) -> Root | None:
    """The place that a call of a file tool is about; None where it can't be told."""
    text = arguments.get(_PATH_KEYS[tool], "." if tool in ("Grep", "Glob") else None)
    if tool in ("Grep", "Glob") and not _stays(arguments.get("pattern" if tool == "Glob" else "glob")):
        return None
    if not isinstance(text, str) or not text or not text.isprintable():
        return None
    root = root_of(text)
    if root.anchor == "~" or ".." in root.parts:
        return None  # no tool knows `~`, and a link may stand before `..`
    below = root_of(project) if project else None
    if below is not None and root.anchor == "/" and root.parts[: len(below.parts)] == below.parts:
        return Root("", 0, root.parts[len(below.parts) :])
    return root


def _stays(pattern: Json) -> bool:
    """Whether a pattern of file names can't lead out of the directory that is searched."""
    if pattern is None:
        return True
    return isinstance(pattern, str) and not pattern.startswith(("/", "~")) and ".." not in pattern

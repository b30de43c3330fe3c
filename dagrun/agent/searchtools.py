"""Grep and Glob of an agent, over files below the roots. Part of the tool worker: standard library only.

A walk goes from directory descriptor to directory descriptor and follows no link, so what is renamed
meanwhile can't lead it out; pipes, sockets and devices are never opened for reading.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from dagrun.agent.beneath import Roots, ToolError, is_below, path_of
from dagrun.agent.filetools import text, whole

MAX_FILE_BYTES = 20 << 20
MAX_FOUND = 1000
MAX_PATTERN = 1000
HEAD = 250
LINE_CHARS = 500
SKIPPED = frozenset({".git", ".hg", ".svn"})
MODES = ("files_with_matches", "content", "count")


class Found(NamedTuple):
    """A regular file of a walk: its path as the model shall see it, and how to open it.

    `folder` is a descriptor of the directory that holds `name`; with no name it is the file itself.
    """

    path: str
    folder: int
    name: str


def walk(roots: Roots, where: str) -> Iterator[Found]:
    """The regular files at or below `where` that may be read, in order of name. Raises ToolError."""
    start = where or "."
    absolute = roots.absolute(start)
    if not roots.may_list(absolute):  # above the grants: what is granted below it
        below = sorted(r for r in roots.roots() if is_below(r, absolute))
        if below:
            for root in below:
                relative = os.path.relpath(root, roots.cwd)
                yield from walk(roots, root if relative.startswith("..") else relative)
            return
    shown = "" if absolute == roots.cwd else start.rstrip("/")
    top, found = roots.open_any(start)
    try:
        if stat.S_ISREG(found.st_mode):
            yield Found(start, top, "")
            return
        absolute = path_of(top)  # a link may have led elsewhere: what is denied there is denied
        for path, directories, names, fd in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            prefix = "" if path == "." else path[2:] + "/"
            here = f"{absolute}/{prefix}"
            directories[:] = sorted(d for d in directories if d not in SKIPPED and not roots.is_denied(here + d))
            for name in sorted(names):
                if not roots.is_denied(here + name) and _is_file(fd, name):
                    yield Found(f"{shown}/{prefix}{name}" if shown else f"{prefix}{name}", fd, name)
    finally:
        os.close(top)


def _is_file(folder: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def glob(roots: Roots, given: dict[str, Any], room: int) -> str:
    """The files that match `pattern` (`**` for any depth), the newest first."""
    pattern = text(given, "pattern")
    where = text(given, "path") if given.get("path") else ""
    if pattern.startswith("/"):
        where, pattern = _fixed_part(pattern)
    match = glob_regex(pattern)
    base = "" if not where or roots.absolute(where) == roots.cwd else where.rstrip("/") + "/"
    found: list[tuple[float, str]] = []
    for file in walk(roots, where):
        if match.fullmatch(file.path.removeprefix(base)):
            found.append((_changed(file), file.path))
    if not found:
        return "no files match"
    found.sort(key=lambda f: (-f[0], f[1]))
    lines = [_one_line(path) for _, path in found[:MAX_FOUND]]
    if len(found) > MAX_FOUND:
        lines.append(f"(and {len(found) - MAX_FOUND} more)")
    return cut(lines, room)


def _one_line(path: str) -> str:
    """A path that can't pretend to be two, or anything else: as JSON writes it, if it must."""
    return path if path.isprintable() else json.dumps(path)


def _changed(file: Found) -> float:
    try:
        if not file.name:
            return os.fstat(file.folder).st_mtime
        return os.stat(file.name, dir_fd=file.folder, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _fixed_part(pattern: str) -> tuple[str, str]:
    """(directory without wildcards, the rest) of an absolute pattern."""
    parts = pattern.split("/")
    k = next((k for k, p in enumerate(parts) if any(c in p for c in "*?[{")), len(parts) - 1)
    return "/".join(parts[:k]) or "/", "/".join(parts[k:])


def glob_regex(pattern: str) -> re.Pattern[str]:
    """`*`, `?`, `[…]`, `{a,b}` and `**` as a regular expression over a path. Raises ToolError."""
    if len(pattern) > MAX_PATTERN:
        raise ToolError("the pattern is too long")
    out, i, depth = "", 0, 0
    while i < len(pattern):
        c = pattern[i]
        if pattern.startswith("**/", i):
            out, i = out + "(?:[^/]+/)*", i + 3
            continue
        if pattern.startswith("**", i):
            out, i = out + ".*", i + 2
            continue
        end = pattern.find("]", i + 2) if c == "[" else -1
        if end > 0:
            inside = pattern[i + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            out += f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
            i = end + 1
            continue
        depth += (c == "{") - (c == "}" and depth > 0)
        special = {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
        plain = c not in special or (c == "," and not depth) or (c == "}" and not out.count("(?:"))
        out += re.escape(c) if plain else special[c]
        i += 1
    try:
        return re.compile(out)
    except re.error:
        raise ToolError(f"`{pattern}` is no file pattern") from None


# ---------------------------------------------------------------- grep


def grep(roots: Roots, given: dict[str, Any], room: int) -> str:
    """Search a regular expression in files; `output_mode` is one of MODES."""
    wanted = _pattern(given)
    mode = given.get("output_mode", MODES[0])
    if mode not in MODES:
        raise ToolError(f"`output_mode` is one of {', '.join(MODES)}")
    only = glob_regex(str(given["glob"])) if given.get("glob") else None
    where = text(given, "path") if given.get("path") else ""
    head = whole(given, "head_limit", HEAD, least=1, most=100_000)
    lines: list[str] = []
    for file in walk(roots, where):
        if only and not (only.fullmatch(file.path) or only.fullmatch(os.path.basename(file.path))):
            continue
        content = _content(file)
        if content is None:
            continue
        lines += _hits(_one_line(file.path), content, wanted, str(mode), given)
        if len(lines) > head:
            lines = [*lines[:head], "(more follow: raise head_limit, or search more narrowly)"]
            break
    return cut(lines, room) if lines else "no matches"


def _pattern(given: dict[str, Any]) -> re.Pattern[str]:
    flags = re.IGNORECASE if given.get("-i") is True else 0
    flags |= re.DOTALL | re.MULTILINE if given.get("multiline") is True else re.MULTILINE
    pattern = text(given, "pattern")
    if len(pattern) > MAX_PATTERN:
        raise ToolError("the pattern is too long")
    try:
        return re.compile(pattern, flags)
    except (re.error, RecursionError, OverflowError) as error:
        raise ToolError(f"`{pattern}` is no regular expression: {error}") from None


def _content(file: Found) -> str | None:
    """The text of a file; None when it can't be read, is binary or too large to search."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(file.name, flags, dir_fd=file.folder) if file.name else os.dup(file.folder)
    except OSError:
        return None
    with open(fd, "rb") as opened:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            return None
        data = opened.read(MAX_FILE_BYTES)
    return None if b"\0" in data[:8192] else data.decode("utf-8", "replace")


def _hits(path: str, content: str, wanted: re.Pattern[str], mode: str, given: dict[str, Any]) -> list[str]:
    if mode == "files_with_matches":
        return [path] if wanted.search(content) else []
    rows = content.split("\n")
    if rows and not rows[-1]:
        rows.pop()
    hit = _hit_rows(content, rows, wanted, multiline=given.get("multiline") is True)
    if mode == "count":
        return [f"{path}:{len(hit)}"] if hit else []
    around = whole(given, "-C", 0)
    before, after = whole(given, "-B", around), whole(given, "-A", around)
    shown: dict[int, bool] = {}
    for k in hit:
        for near in range(max(0, k - before), min(len(rows), k + after + 1)):
            shown[near] = shown.get(near, False) or near == k
    numbers = given.get("-n") is not False
    out: list[str] = []
    last = -2
    for k in sorted(shown):
        if out and k > last + 1 and (before or after):
            out.append("--")
        sign = ":" if shown[k] else "-"
        place = f"{path}{sign}{k + 1}{sign}" if numbers else f"{path}{sign}"
        line = rows[k].rstrip("\r")
        out.append(place + (line if len(line) <= LINE_CHARS else line[:LINE_CHARS] + "…"))
        last = k
    return out


def _hit_rows(content: str, rows: list[str], wanted: re.Pattern[str], *, multiline: bool) -> list[int]:
    if not multiline:
        return [k for k, row in enumerate(rows) if wanted.search(row)]
    hit: set[int] = set()
    for match in wanted.finditer(content):
        first = content.count("\n", 0, match.start())
        hit.update(range(first, first + match.group().rstrip("\n").count("\n") + 1))
    return sorted(k for k in hit if k < len(rows))


def cut(lines: list[str], room: int) -> str:
    """Lines as one text of at most `room` characters, with a word about what was left out."""
    used = 0
    for k, line in enumerate(lines):
        used += len(line) + 1
        if used > room:
            return "\n".join([*lines[:k], f"({len(lines) - k} more lines left out)"])
    return "\n".join(lines)

"""Skills: folders with a SKILL.md, found on a search path, read with care and never run.

A skill's text is put before a model; what it says it may use can only narrow what a node may. Its
form is agentskills.io's; both dialects of `allowed-tools` that exist (spaces, commas) and a YAML list
are read. Knows no node and no model.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dagrun.core.grants import tool_fault
from dagrun.core.plan import near
from dagrun.errors import InputError, NotFoundError, Problem
from dagrun.flowfile.source import Tree, Value, parse
from dagrun.store.disk import at_once

FILE = "SKILL.md"
FOLDERS = ("skills", ".agents/skills", ".claude/skills")
MAX_BYTES = 1 << 20
MAX_NAME = 64
MAX_DESCRIPTION = 1024
LONG_LINES = 500
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_LOOSE = re.compile(r"([A-Za-z0-9_-]+):[ \t]+(.*\S)[ \t]*")
_WORDS = re.compile(r"[^\s,(]+(?:\([^)]*\))?")


class Place(NamedTuple):
    """A folder that may hold skills: of the project, or of the user."""

    path: str
    owner: Literal["project", "user"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """One skill. `allowed_tools` None: it says nothing. `digest` is the sha256 of the file.

    `body` is the text without its front matter; `warnings` are what is odd but readable.
    """

    name: str
    description: str
    path: str
    owner: Literal["project", "user"]
    digest: str
    body: str
    allowed_tools: tuple[str, ...] | None = None
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All skills of a search path: by name, those that another one hides, and those that can't be read."""

    skills: tuple[Skill, ...]
    shadowed: tuple[Skill, ...] = ()
    broken: tuple[tuple[str, tuple[Problem, ...]], ...] = ()


def search_path(base: str, home: str) -> tuple[Place, ...]:
    """Where skills are looked for: beside the workflow (or in the project) first, then the user's own."""
    base = "" if base == "." else base
    mine: tuple[Place, ...] = tuple(Place(os.path.join(base, f), "project") for f in FOLDERS)
    yours: tuple[Place, ...] = tuple(Place(os.path.join(home, f), "user") for f in FOLDERS) if home else ()
    seen: dict[str, Place] = {}
    for place in (*mine, *yours):
        seen.setdefault(os.path.realpath(place.path), place)
    return tuple(seen.values())


def discover(places: Sequence[Place]) -> Found:
    """Every skill on the path, the first of each name; project beats user. Never raises for a bad one."""
    skills: dict[str, Skill] = {}
    shadowed: list[Skill] = []
    broken: list[tuple[str, tuple[Problem, ...]]] = []
    for place in places:
        for folder in _folders(place.path):
            try:
                skill = load(os.path.join(place.path, folder), place.owner)
            except InputError as error:
                broken.append((folder, error.problems))
                continue
            if skill.name in skills:
                shadowed.append(skill)
            else:
                skills[skill.name] = skill
    return Found(
        skills=tuple(sorted(skills.values(), key=lambda s: s.name)), shadowed=tuple(shadowed), broken=tuple(broken)
    )


def find(name: str, places: Sequence[Place]) -> Skill:
    """The skill of that name. Raises InputError when it can't be read, NotFoundError when there is none."""
    for place in places:
        if os.path.isfile(os.path.join(place.path, name, FILE)) and "/" not in name:
            return load(os.path.join(place.path, name), place.owner)
    found = discover(places)
    by_name = {s.name: s for s in found.skills}
    if name in by_name:
        return by_name[name]
    looked = ", ".join(dict.fromkeys(p.path for p in places))
    hint = near(name, by_name) or "see what there is: dagrun skills list"
    raise NotFoundError(f"there is no skill `{name}` in {looked}", hint=hint)


def _folders(path: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name, FILE)))
    except OSError:
        return []


# ---------------------------------------------------------------- one file


def load(folder: str, owner: Literal["project", "user"] = "project") -> Skill:
    """The skill in a folder. Raises InputError with all that makes it unreadable, each with its place."""
    from hashlib import sha256

    path = os.path.join(folder, FILE)
    data = _bytes(path)
    head, body, first = _parts(data, path)
    values, odd = _front_matter(head, path)
    problems: list[Problem] = [*odd]
    fallback = os.path.basename(os.path.normpath(os.path.abspath(folder)))
    name = _name(values, fallback, path, problems)
    description = _text(values, "description", path, problems)
    if len(description) > MAX_DESCRIPTION:
        problems.append(_odd(values, "description", path, f"`description` has {len(description)} characters", "1024"))
    tools = _tools(values, path, problems)
    lines = body.count("\n") + 1
    if lines > LONG_LINES:
        message = f"the skill has {lines} lines: all of them are sent with every call"
        hint = f"keep it below {LONG_LINES}; put the rest into files that it names"
        problems.append(_problem("long-skill", message, path, first, hint, "warning"))
    if any(p.severity == "error" for p in problems):
        raise InputError(tuple(problems))
    return Skill(
        name=name,
        description=description,
        path=path,
        owner=owner,
        digest=sha256(data).hexdigest(),
        body=body.strip("\n"),
        allowed_tools=tools,
        warnings=tuple(problems),
    )


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb", opener=at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError((_problem("no-skill", "can't read the skill: not a regular file", path),))
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError((_problem("no-skill", f"can't read the skill: {error.strerror}", path),)) from None
    if len(data) > MAX_BYTES:
        raise InputError((_problem("too-big", f"a skill has at most {MAX_BYTES >> 10} KiB", path),))
    return data


def _parts(data: bytes, path: str) -> tuple[bytes, str, int]:
    """(front matter, body, line on which the body begins). The front matter keeps its line numbers."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError((_problem("not-utf8", "the skill is not UTF-8 text", path, line),)) from None
    lines = text.replace("\r\n", "\n").split("\n")
    hint = "begin it with a line ---, then `name: …` and `description: …`, each on a line of its own, then a line ---"
    if lines[0].rstrip() != "---":
        message = "the skill does not begin with a line `---`"
        if lines[0].startswith("---"):
            message = "the front matter has lost its line ends: it begins and goes on in one line"
        raise InputError((_problem("no-front-matter", message, path, 1, hint),))
    end = next((k for k, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
    if not end:
        raise InputError((_problem("no-front-matter", "the front matter has no end: a line `---`", path, 1, hint),))
    return "\n".join(["", *lines[1:end]]).encode(), "\n".join(lines[end + 1 :]), end + 2


def _front_matter(head: bytes, path: str) -> tuple[Tree, tuple[Problem, ...]]:
    """The tree of the front matter; text that only lacks quotes is read as it is meant, with a warning."""
    try:
        tree = parse(head, path)
        if not any(p.severity == "error" for p in tree.problems):
            if not isinstance(tree.value, dict):
                raise InputError((_problem("no-mapping", "the front matter is no list of `key: value`", path, 2),))
            return tree, ()
        problems = tuple(tree.problems)
    except InputError as error:
        problems = error.problems
    quoted = _quoted(head)
    if quoted != head:
        try:
            tree = parse(quoted, path)
        except InputError:
            tree = Tree("", path)
        if isinstance(tree.value, dict) and not any(p.severity == "error" for p in tree.problems):
            first = problems[0]
            hint = "put the value in quotes"
            return tree, (_problem("unquoted", f"read as text: {first.message}", path, first.line, hint, "warning"),)
    raise InputError(problems)


def _quoted(head: bytes) -> bytes:
    """The front matter with the plain values of its top-level keys in quotes: an unquoted colon is common."""
    lines = head.decode().split("\n")
    for k, line in enumerate(lines):
        match = _LOOSE.fullmatch(line)
        if match and match[2][0] not in "\"'[{|>&*!":
            inside = match[2].replace("\\", "\\\\").replace('"', '\\"')
            lines[k] = f'{match[1]}: "{inside}"'
    return "\n".join(lines).encode()


def _name(values: Tree, fallback: str, path: str, problems: list[Problem]) -> str:
    name = _text(values, "name", path, problems)
    if not name:
        return fallback
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        hint = "lower-case letters, digits and single hyphens, at most 64"
        problems.append(_odd(values, "name", path, f"`{name[:MAX_NAME]}` is no name for a skill", hint))
    elif name != fallback:
        message = f"the skill is named `{name}`, but its folder `{fallback}`"
        problems.append(_odd(values, "name", path, message, f"rename one of them; `{name}` is what counts"))
    return name


def _text(values: Tree, key: str, path: str, problems: list[Problem]) -> str:
    """The text of a wanted key; "" after noting that there is none."""
    value = _get(values, key)
    if isinstance(value, str) and value.strip():
        return str(value).strip()
    message = f"the skill has no `{key}`" if value is None or value == "" else f"`{key}` is no text"
    problems.append(_problem("bad-skill", message, path, _line(values, key), f"write {key}: …"))
    return ""


def _tools(values: Tree, path: str, problems: list[Problem]) -> tuple[str, ...] | None:
    """The tools of `allowed-tools` in its three spellings; those that dagrun lacks are left out with a warning."""
    value = _get(values, "allowed-tools")
    if value is None:
        return None
    if isinstance(value, str):
        words = _WORDS.findall(value)
    elif isinstance(value, list) and all(isinstance(v, str) for v in value):
        words = [str(v).strip() for v in value]
    else:
        hint = "write a list, or one line: Read, Grep, Bash(git:*)"
        problems.append(_problem("bad-skill", "`allowed-tools` is no list of tools", path, 2, hint))
        return None
    kept = []
    for word in dict.fromkeys(words):
        wrong = tool_fault(word)
        if wrong is None:
            kept.append(word)
        else:
            problems.append(_odd(values, "allowed-tools", path, f"left out: {wrong[0]}", wrong[1]))
    return tuple(kept)


def _get(values: Tree, key: str) -> Value | None:
    return values.value.get(key) if isinstance(values.value, dict) else None


def _line(values: Tree, key: str) -> int:
    """The line of a top-level key, 2 where it is not written."""
    for number, line in enumerate(values.text.split("\n"), 1):
        if line.startswith(f"{key}:"):
            return number
    return 2


def _odd(values: Tree, key: str, path: str, message: str, hint: str) -> Problem:
    return _problem("odd-skill", message, path, _line(values, key), hint, "warning")


def _problem(code: str, message: str, path: str, line: int = 0, hint: str = "", severity: str = "error") -> Problem:
    return Problem(
        code=code, message=message, file=path, line=line, column=1 if line else 0, hint=hint, severity=severity
    )

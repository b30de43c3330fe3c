"""A JSON document as YAML that people like to read, and that is read back as exactly that document.

Block style; small parts that hold only scalars stand on one line. A text is quoted wherever YAML
or dagrun's own typing would read something else, and where another YAML reader would.
"""

from __future__ import annotations

import re

from dagrun.core.names import Json

WIDTH = 78  # a part on one line is no longer, so that an editor shows it whole

_FLOW = re.compile(r"[A-Za-z0-9_./](?:[A-Za-z0-9_./@%+=-]| (?=[A-Za-z0-9_./@%+=-]))*")
_NUMBER = re.compile(r"[-+]?[0-9.][0-9._]*(?:[eE][-+]?[0-9]*)?|0[xob][0-9a-fA-F_]+|[0-9:.-]+(?:[T ][0-9:.Z+-]*)?")
_WORDS = frozenset("null ~ true false yes no on off y n".split())
_FIRST = frozenset("-?:,[]{}#&*!|>'\"%@`=<")  # `=` and `<` are special only to other readers


def dump_yaml(document: Json) -> str:
    """A document as YAML text with a newline at its end."""
    if isinstance(document, dict) and document:
        lines: list[str] = []
        for name, value in document.items():
            lines += _top(name, value)
        return "\n".join(lines) + "\n"
    if isinstance(document, list) and document:
        return "\n".join(_sequence(document, 0)) + "\n"
    return flow(document) + "\n"


def _top(name: str, value: Json) -> list[str]:
    """A key of the whole document: what holds things by name has a line for each, nodes a blank one between."""
    if name not in _BY_NAME or not isinstance(value, dict) or not value:
        return entry(name, value, 0)
    lines = [f"{key(name)}:"]
    for inner, item in value.items():
        if name not in ("nodes", "templates"):
            lines += entry(inner, item, 2)
        elif isinstance(item, dict) and item:
            lines += [""] * (len(lines) > 1) + [f"  {key(inner)}:", *_mapping(item, 4)]
        else:
            lines += entry(inner, item, 2)
    return lines


_BY_NAME = frozenset({"nodes", "templates", "params", "secrets", "outputs"})


def key(name: str) -> str:
    """A key of a mapping: one line, quoted where it is no plain word."""
    return scalar(name, in_flow=True)


def scalar(value: Json, *, in_flow: bool = False) -> str:
    """A text, number, boolean or null on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    if value.lower() in _WORDS or _NUMBER.fullmatch(value):
        return f'"{value}"'
    if _FLOW.fullmatch(value) or (not in_flow and _plain(value)):
        return value
    return _quoted(value)


def _plain(value: str) -> bool:
    """Whether a text can stand without quotes in block style."""
    return (
        value.isprintable()
        and value[:1] not in _FIRST
        and value == value.strip()
        and value != ""
        and ": " not in value
        and " #" not in value
        and "${{" not in value
        and not value.endswith(":")
        and not value.startswith("...")
    )


def _quoted(value: str) -> str:
    if value.isprintable() and ('"' in value or "\\" in value):
        return "'" + value.replace("'", "''") + "'"
    return '"' + "".join(_escaped(c) for c in value) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def flow(value: Json) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    return scalar(value, in_flow=True)


def entry(name: str, value: Json, indent: int, step: int = 2) -> list[str]:
    """The lines of one key and its value, `indent` spaces in."""
    head = f"{' ' * indent}{key(name)}:"
    if isinstance(value, str) and (block := _literal(value, indent + step)):
        return [f"{head} {block[0]}", *block[1:]]
    if not isinstance(value, dict | list) or not value:
        return [f"{head} {scalar(value) if not isinstance(value, dict | list) else flow(value)}"]
    if _small(value) and len(line := f"{head} {flow(value)}") <= WIDTH:
        return [line]
    if isinstance(value, dict):
        return [head, *_mapping(value, indent + step, step)]
    return [head, *_sequence(value, indent + step, step)]


def _small(value: Json) -> bool:
    """Whether a value may stand on one line: scalars without line breaks, at most two levels."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return all("\n" not in v if isinstance(v, str) else not isinstance(v, dict | list) or _scalars(v) for v in inner)


def _scalars(value: Json) -> bool:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return not any(isinstance(v, dict | list) or (isinstance(v, str) and "\n" in v) for v in inner)


def _mapping(value: dict[str, Json], indent: int, step: int = 2) -> list[str]:
    return [line for name, item in value.items() for line in entry(name, item, indent, step)]


def _sequence(value: list[Json], indent: int, step: int = 2) -> list[str]:
    head = " " * indent + "-"
    lines: list[str] = []
    for item in value:
        if isinstance(item, str) and (block := _literal(item, indent + step)):
            lines += [f"{head} {block[0]}", *block[1:]]
        elif isinstance(item, dict) and item and not (_small(item) and len(head) + len(flow(item)) < WIDTH):
            inner = _mapping(item, indent + 2, step)
            lines += [f"{head} {inner[0][indent + 2 :]}", *inner[1:]]
        else:
            lines.append(f"{head} {flow(item) if isinstance(item, dict | list) else scalar(item)}")
    return lines


def _literal(value: str, indent: int) -> list[str]:
    """A text of several lines as a literal block; nothing where it has to be quoted."""
    if "\n" not in value or value.endswith("\n\n") or value[0] in " \t\n" or "\r" in value:
        return []
    lines = value.removesuffix("\n").split("\n")
    if not all(line.replace("\t", "").isprintable() and (line.strip() or not line) for line in lines):
        return []
    return ["|" if value.endswith("\n") else "|-", *[" " * indent + line if line else "" for line in lines]]

"""The tools that an agent may be offered, with the words and schemas that models are used to.

Data only: what a tool does is in the tool worker, who may call it in core/toolcall.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from dagrun.core.names import Json


def _object(required: list[Json], **properties: dict[str, Json]) -> dict[str, Json]:
    return {
        "type": "object",
        "properties": {name.replace("__", "-"): made for name, made in properties.items()},
        "required": required,
        "additionalProperties": False,
    }


def _text(words: str) -> dict[str, Json]:
    return {"type": "string", "description": words}


def _number(words: str) -> dict[str, Json]:
    return {"type": "integer", "minimum": 0, "description": words}


def _flag(words: str) -> dict[str, Json]:
    return {"type": "boolean", "description": words}


_FILE = _text("Path of the file, absolute or relative to the working directory.")

TOOLS: dict[str, tuple[str, dict[str, Json]]] = {
    "Read": (
        "Read a text file. Lines come with their numbers; at most 2000 at a time.",
        _object(
            ["file_path"],
            file_path=_FILE,
            offset=_number("The first line to read, from 1."),
            limit=_number("How many lines."),
        ),
    ),
    "Write": (
        "Make a file, or replace all of it.",
        _object(["file_path", "content"], file_path=_FILE, content=_text("All of the file.")),
    ),
    "Edit": (
        "Replace an exact piece of text in a file. It must occur exactly once, unless replace_all.",
        _object(
            ["file_path", "old_string", "new_string"],
            file_path=_FILE,
            old_string=_text("The text to replace, without line numbers."),
            new_string=_text("The text to put there."),
            replace_all=_flag("Replace every occurrence."),
        ),
    ),
    "Bash": (
        "Run a command in a shell. What it starts ends with it; the working directory is always the same.",
        _object(
            ["command"],
            command=_text("The command."),
            timeout=_number("Milliseconds, at most 600000 (120000)."),
            description=_text("What it does, in a few words."),
        ),
    ),
    "Grep": (
        "Search a regular expression in files.",
        _object(
            ["pattern"],
            pattern=_text("The regular expression (Python's)."),
            path=_text("File or directory to search in; the working directory without it."),
            glob=_text("Only files that match, such as *.py or src/**/*.ts."),
            output_mode={
                "type": "string",
                "enum": ["files_with_matches", "content", "count"],
                "description": "Paths only (the default), matching lines, or how many.",
            },
            multiline=_flag("Let `.` match line ends, and a match span lines."),
            head_limit=_number("At most so many lines of result (250)."),
            __i=_flag("Ignore case."),
            __n=_flag("Line numbers, with content (true)."),
            __A=_number("Lines to show after each match."),
            __B=_number("Lines to show before each match."),
            __C=_number("Lines to show around each match."),
        ),
    ),
    "Glob": (
        "Find files by name, the newest first. `**` stands for any depth.",
        _object(
            ["pattern"],
            pattern=_text("Such as **/*.py."),
            path=_text("Directory to search in; the working directory without it."),
        ),
    ),
}


def catalogue(names: Iterable[str]) -> list[Json]:
    """The definitions of some tools, as chat models take them. Raises KeyError for an unknown one."""
    return [
        {"type": "function", "function": {"name": name, "description": TOOLS[name][0], "parameters": TOOLS[name][1]}}
        for name in names
    ]

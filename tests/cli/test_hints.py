"""Every command line that a help, a hint or a status shows is one that the parser takes.

What the other tests see on stderr is checked as they see it (`Space.run`); here is the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .space import Space, accepts, commands_in
from .test_groups import PATHS, help_of


def examples() -> Iterator[str]:
    for path in [(), *PATHS]:
        for line in help_of(*path).partition("Examples:\n")[2].splitlines():
            if not line.strip() or line.startswith("Also"):
                break
            parts = [part.strip() for part in re.split(r"[|>]|\$\(|\)[\"]", line)]
            yield from (part for part in parts if part.startswith("dagrun "))


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_examples_of_the_help(line: str, tmp_path: Path) -> None:
    accepts(line, tmp_path)


def test_there_are_examples() -> None:
    assert {"dagrun execute dagrun.yaml", "dagrun logs build -f      # until it ends"} <= set(examples())


@pytest.mark.parametrize("words", [["status"], ["init", "x"], ["trace", "show", "--failures"], ["runs"], []])
def test_what_stdout_tells_to_type(space: Space, words: list[str]) -> None:
    space.run("execute", "fails.yaml", "-q")
    found = commands_in(space.run(*words).out)
    for line in found:
        accepts(line, space.folder)
    assert bool(found) == (words != ["runs"])


def test_a_line_that_the_parser_does_not_take(tmp_path: Path) -> None:
    def refused(line: str) -> Any:
        try:
            accepts(line, tmp_path)
        except Exception as error:  # noqa: BLE001  (whatever the parser raises)
            return error
        pytest.fail(f"{line} was taken")

    assert "--bogus" in str(refused("dagrun execute flow.yaml --bogus"))
    assert "no command" in str(refused("dagrun nonsense"))


def test_commands_are_found_in_messages() -> None:
    text = "error[x]: a\n  help: did you mean b? see them all: dagrun trace show r7k2\n  go on  dagrun resume r7k2\n"
    assert commands_in(text) == ["dagrun trace show r7k2", "dagrun resume r7k2"]
    assert commands_in("  help: dagrun validate a.yaml, or overwrite it: dagrun init . --force") == [
        "dagrun validate a.yaml",
        "dagrun init . --force",
    ]
    assert commands_in("  dagrun -C 'a b' resume r7k2") == ["dagrun -C 'a b' resume r7k2"]

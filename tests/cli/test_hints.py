"""Every command line that a help, a hint or a status shows is one that the parser takes.

What the other tests see on stderr is checked as they see it (`Space.run`); here is the rest.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
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


BOXED = """
permissions: {{paths: {{read: [src], write: [out]}}}}
nodes:
  a:
    run: {run}
"""


@pytest.mark.skipif(not os.environ.get("CI") and shutil.which("bwrap") is None, reason="needs bubblewrap")
def test_a_node_that_met_its_walls_is_told_of_them_and_how_to_widen_them(space: Space) -> None:
    (space.folder / "src").mkdir()
    (space.folder / "data.txt").write_text("here\n")
    (space.folder / "boxed.yaml").write_text(BOXED.format(run="cat data.txt"))
    done = space.run("execute", "boxed.yaml")
    assert "  confined: of your files it sees src and out (permissions.paths.read)\n" in done.err
    assert "  confined   of your files it sees src and out" in space.run("trace", "show", "--node", "a").out
    again = next(line for line in done.err.splitlines() if "gave it more? again" in line).split("dagrun ")[1]
    assert space.run(*again.split()).code == 1
    widened = (space.folder / "boxed.yaml").read_text().replace("[src]", "[src, data.txt]")
    (space.folder / "boxed.yaml").write_text(widened)
    assert space.run(*again.split()).code == 0


def test_a_limit_that_was_reached_is_raised_by_what_the_summary_says(space: Space) -> None:
    much = "nodes:\n  a: {resources: {file_size: 1M}, run: 'head -c 1500000 /dev/zero > big'}\n"
    (space.folder / "much.yaml").write_text(much)
    done = space.run("execute", "much.yaml")
    assert "file_size" in done.err
    more = next(line for line in done.err.splitlines() if "more room? try again" in line).split("dagrun ")[1]
    assert "resources.file_size=2Mi" in more
    assert space.run(*shlex.split(more), "--yes").code == 0

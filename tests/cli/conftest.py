"""A project for each test of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .space import Space

HELLO = """
    version: 1
    name: hello
    outputs: {user: nodes.who.user}
    nodes:
      who: {run: printf Ada, outputs: {user: {from: stdout}}}
      greet: {inputs: {user: nodes.who.user}, run: 'echo "Hello, $INPUT_USER!"'}
    """
FAILS = """
    version: 1
    name: fails
    nodes:
      ok: {run: echo fine}
      bad: {needs: ok, run: echo out; echo no luck >&2; exit 3}
      after: {needs: bad, run: "true"}
    """


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    made = Space(tmp_path)
    made.file("hello.yaml", HELLO)
    made.file("fails.yaml", FAILS)
    yield made
    made.close()

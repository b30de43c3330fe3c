"""What a command imports: start-up time is a feature, and this is where it gets lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .space import DEADLINE_S, Space

SCRIPT = """
import sys
from dagrun.cli.app import main
code = main(sys.argv[1:])
sys.stderr.write("\\nMODULES " + " ".join(sys.modules))
sys.exit(code)
"""
NEVER = {"litellm", "pydantic", "rich", "jinja2", "asyncio", "jsonschema", "tenacity", "logging", "concurrent"}


def imported(space: Space, *words: str) -> set[str]:
    """The modules that a command line imports, without the first part of a name's path cut off."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        cwd=space.folder,
        env=space.env(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


def test_help_imports_no_room_but_cli(space: Space) -> None:
    found = imported(space, "--help")
    assert not found & (NEVER | {"yaml", "json", "tempfile", "dagrun.cli.execute"})
    ours = {name for name in found if name.startswith("dagrun")}
    cli = {f"dagrun.cli.{name}" for name in ("app", "console", "groups")}
    assert ours == {"dagrun", "dagrun.cli", "dagrun.errors", *cli}


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "hello.yaml"],
        ["plan", "hello.yaml"],
        ["plan", "hello.yaml", "--permissions"],
        ["trace", "show"],
        ["trace", "diff", "last", "last"],
        ["status"],
        ["runs"],
        ["logs", "who"],
        ["outputs"],
    ],
    ids=lambda words: " ".join(words),
)
def test_readers_import_no_parser_and_no_engine_loop(space: Space, words: list[str]) -> None:
    space.run("execute", "hello.yaml", "-q")  # the second look at a file is a cache hit
    found = imported(space, *words)
    assert not found & (NEVER | {"yaml"})
    if words[0] != "plan":  # it asks the engine how much fits at a time
        assert not {name for name in found if name.startswith(("dagrun.engine.", "dagrun.sandbox"))}


@pytest.mark.parametrize("words", [["validate"], ["plan"], ["plan", "--permissions"]], ids=" ".join)
def test_a_flow_with_agents_is_checked_without_a_library_of_theirs(space: Space, words: list[str]) -> None:
    prices = "provider: {rules: r.yaml, prices: {ollama/b: {input: 1, output: 2}}}\n"
    agent = "{agent: {prompt: x, skills: [s]}, outputs: {o: {schema: {type: string}}}}"
    space.file("talk.yaml", f"{prices}models: {{m: ollama/b, live: anthropic/x}}\nnodes: {{a: {agent}}}\n")
    space.file("r.yaml", "rules: [{text: x}]\n")
    space.file("skills/s/SKILL.md", "---\nname: s\ndescription: x\n---\nx\n")
    space.run("validate", "talk.yaml")
    assert not imported(space, words[0], "talk.yaml", *words[1:]) & NEVER


def test_execute_imports_nothing_heavy(space: Space) -> None:
    script = """
import os, sys
leave = os._exit
def tell(code):
    os.write(2, ("\\nMODULES " + " ".join(sys.modules)).encode())
    leave(code)
os._exit = tell
from dagrun.cli.app import main
sys.exit(main(sys.argv[1:]))
"""
    space.run("validate", "hello.yaml")
    done = subprocess.run(
        [sys.executable, "-c", script, "execute", "hello.yaml", "--ui", "log"],
        cwd=space.folder,
        env=space.env(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = set(done.stderr.rpartition("MODULES ")[2].split())
    assert "dagrun.engine.runner" in found
    assert not found & (NEVER | {"yaml"})

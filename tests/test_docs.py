"""README and docs/ are true: links, flags, every command described, shown output really printed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dagrun.core.event import EVENT_TYPES
from dagrun.flowfile.patchschema import PatchFile
from dagrun.flowfile.schema import json_schema

ROOT = Path(__file__).parents[1]
CLI = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


def test_links_flags_and_shown_output() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_every_command_is_described() -> None:
    command = [sys.executable, "-m", "dagrun", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    listed = re.findall(r"^  ([a-z]+) {2,}\S", done.stdout.split("Commands:")[1], re.MULTILINE)
    assert len(listed) > 10
    missing = [name for name in listed if not re.search(rf"^## `dagrun {name}\b", CLI, re.MULTILINE)]
    assert missing == []


def test_every_event_is_described() -> None:
    told = re.findall(r"^\| `([a-z.]+)` \|", (ROOT / "docs/journal.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = set(EVENT_TYPES)
    assert names - set(told) == set()
    assert {name for name in told if "." in name} - names == set()


def test_every_key_is_described() -> None:
    texts = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("workflow.md", "agents.md", "replan.md")]
    told = set(re.findall(r"[A-Za-z_]+", " ".join(re.findall(r"`[^`\n]+`|```.*?```", "\n".join(texts), re.DOTALL))))
    asked = {key for schema in (json_schema(), json_schema(PatchFile, "patch")) for key in _keys(schema)}
    assert len(asked) > 100
    assert asked - told == set()


def _keys(schema: object) -> Iterator[str]:
    """The names of all properties anywhere in a JSON Schema."""
    if isinstance(schema, list):
        for part in schema:
            yield from _keys(part)
    elif isinstance(schema, dict):
        properties = schema.get("properties")
        yield from properties if isinstance(properties, dict) else ()
        for part in schema.values():
            yield from _keys(part)

"""README and docs/ are true: links, flags, every command described, shown output really printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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

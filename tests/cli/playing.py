"""A project with agents, recorded and played again: files, and when two traces are the same."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .space import Done, Space

FLOW = """
    version: 1
    name: mend
    provider: {kind: fake, rules: rules.yaml, prices: {v/dear: {input: "3", output: "15"}, v/cheap: {free: true}}}
    models: {main: [v/dear, v/cheap]}
    permissions: {cost_budget: 1}
    outputs: {bugs: nodes.fixer.bugs}
    nodes:
      facts: {run: "echo 42", outputs: {n: {from: stdout}}}
      flaky: {run: 'test "$DAGRUN_ATTEMPT" = 2', retry: {max_attempts: 2, delay: 50ms}}
      fixer:
        agent:
          prompt: "Fix what is wrong in run ${{ run.id }}, as of ${{ inputs.n }}"
          skills: [calm]
          tools: [Read, Grep, Edit]
        permissions: {paths: {read: [.], write: [src]}}
        inputs: {n: nodes.facts.n}
        output_schema: {type: object, properties: {bugs: {type: integer}}, required: [bugs]}
        outputs: {bugs: {}}
      broken:
        agent: {prompt: Fail.}
        continue_on_error: true
      report:
        needs: [broken, flaky]
        inputs: {b: nodes.fixer.bugs}
        run: 'echo "bugs: $INPUT_B" | tee -a reports'
    """
RULES = """
    rules:
      - {node: fixer, turn: 1, try: 1, error: {kind: rate_limit, retry_after: 20s}}
      - {node: fixer, turn: 1, text: I look., tools: [{Grep: {pattern: BUG, path: src}}, {Read: {file_path: gone}}]}
      - {node: fixer, turn: 2, tools: [{Edit: {file_path: src/a.py, old_string: BUG, new_string: fine}}]}
      - {node: fixer, last: "not valid against", text: '{"bugs": 1}'}
      - {node: fixer, text: "Fixed it, I think."}
      - {node: broken, error: {kind: auth, message: "no such key"}}
    """
SKILL = "---\nname: calm\ndescription: Be calm.\n---\nBe calm.\n"
# what time and the machine make of a run, and its name
WALL = {"run_id", "created_at", "ended_at", "started_at", "duration_ms", "worked_ms", "critical_path"}


def project(space: Space) -> None:
    """The files, with the bug in place."""
    space.file("flow.yaml", FLOW)
    space.file("rules.yaml", RULES)
    space.file("skills/calm/SKILL.md", SKILL)
    space.file("src/a.py", "x = 1  # BUG\n")


_kept: list[tempfile.TemporaryDirectory[str]] = []


def recorded(space: Space) -> None:
    """What `record` leaves, executed for who asks first and copied for all others: for tests of what is in a record.

    Not for those in which it matters that the project lies where it lay: a record knows where its skills were.
    """
    if not _kept:
        folder = tempfile.TemporaryDirectory(prefix="dagrun-recorded-")
        record(space)
        shutil.copytree(space.folder, folder.name, symlinks=True, dirs_exist_ok=True)
        _kept.append(folder)
    else:
        shutil.copytree(_kept[0].name, space.folder, symlinks=True, dirs_exist_ok=True)


def record(space: Space) -> str:
    """Execute the flow, keep the run in run.jsonl, and put the bug back; the run's id."""
    project(space)
    done = space.run("execute", "flow.yaml", "--ui", "quiet")
    assert done.code == 0, done.err
    assert space.run("export", "--record", "run.jsonl").code == 0
    space.file("src/a.py", "x = 1  # BUG\n")
    return last(space)


def last(space: Space) -> str:
    """The id of the newest run."""
    found = space.run("trace", "show", "--json").json["run"]["run_id"]
    assert isinstance(found, str)
    return found


def trace(space: Space, run: str = "last") -> Any:
    """The trace of a run without what differs when nothing does."""
    return timeless(space.run("trace", "show", run, "--json").json)


def timeless(value: Any) -> Any:
    """A trace without what time and the machine make of it."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in WALL}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def edit(path: Path, old: str, new: str) -> None:
    """Replace the one place of a text in a file."""
    text = path.read_text()
    assert text.count(old) >= 1, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new))


def edit_event(path: Path, kind: str, **fields: Any) -> None:
    """Change the last event of a type in a recorded run's file."""
    lines = path.read_text().splitlines()
    for k in reversed(range(len(lines))):
        data = json.loads(lines[k])
        for event in reversed(data.get("e", [])):
            if event["type"] == kind:
                event.update(fields)
                lines[k] = json.dumps(data)
                path.write_text("\n".join(lines) + "\n")
                return
    raise AssertionError(f"there is no {kind} in {path.name}")


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a type in a recorded run's file."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [event for data in found for event in data.get("e", []) if event["type"] == kind]


def said(done: Done) -> str:
    """What was said on stderr, in one line."""
    return re.sub(r"\s+", " ", done.err)

"""The audit explains every byte that was sent, and names the first that it can't."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dagrun.agent.messages import Request, request_from_json, request_to_json
from dagrun.agent.record import delta, whole
from dagrun.store.rundir import find_run

from .playing import edit_event, events, record, recorded
from .space import Space


@pytest.fixture
def played(space: Space) -> Space:
    recorded(space)
    return space


@pytest.fixture
def played_here(space: Space) -> Space:
    record(space)
    return space


def problem(space: Space, run: str = "run.jsonl") -> dict[str, Any]:
    """The one attempt that is not explained."""
    done = space.run("audit", run, "--json")
    assert done.code == 1, done.out + done.err
    assert done.json["ok"] is False
    wrong = [a for a in done.json["attempts"] if a["problem"]]
    assert len(wrong) == 1
    return dict(wrong[0])


def test_every_byte_of_a_run_is_explained(played_here: Space) -> None:
    done = played_here.run("audit", "--json")
    assert done.code == 0, done.out
    found = {a["node"]: a for a in done.json["attempts"]}
    assert found["fixer"]["calls"] == found["fixer"]["explained"] == 5
    labels = {label.split(":")[0] for label in found["fixer"]["sent_bytes"]}
    assert labels >= {"prompt", "skill", "input", "run", "schema", "turn", "tool", "reminder", "dagrun"}
    assert found["broken"]["calls"] == found["broken"]["explained"] == 1
    shown = played_here.run("audit")
    assert shown.code == 0
    assert "every byte of 6 requests is explained" in shown.out
    assert played_here.run("audit", "run.jsonl").out == shown.out


def test_a_replay_is_explained_too(played: Space) -> None:
    assert played.run("execute", "flow.yaml", "--replay", "run.jsonl").code == 0
    assert played.run("audit").code == 0


def test_a_run_without_agents_has_nothing_to_explain(space: Space) -> None:
    space.file("flow.yaml", "version: 1\nname: f\nnodes: {a: {run: echo a}}\n")
    assert space.run("execute", "flow.yaml").code == 0
    done = space.run("audit")
    assert (done.code, "asked no model" in done.out) == (0, True)


# ---------------------------------------------------------------- one altered byte


def test_a_stored_prompt_that_was_changed_with_its_digest(played: Space) -> None:
    """Who alters a request can make its digest fit: only making it again shows it."""
    path = played.folder / "run.jsonl"
    mine = [e for e in events(path, "call.reserved") if e["node"] == "fixer"]
    before: Request | None = None
    for event in mine:
        request = whole(event["request"]["v"], before)
        if event is mine[-1]:
            break
        before = request
    data: Any = request_to_json(request)
    data["messages"][-1]["content"] += "!"
    changed = request_from_json(data)
    edit_event(path, "call.reserved", request={"v": delta(changed, before)}, digest=changed.digest())
    # the last call of the file is the fixer's
    found = problem(played)
    assert (found["node"], found["attempt"], found["call"]) == ("fixer", 1, 5)
    assert "reminder:3" in found["problem"]
    assert "character" in found["problem"]
    shown = played.run("audit", "run.jsonl")
    assert shown.code == 1
    assert "fixer, attempt 1, call 5: message" in shown.out


@pytest.mark.parametrize(
    ("kind", "fields", "call", "label"),
    [
        ("tool.ended", {"text": {"v": "replaced 2 times"}}, 4, "tool:2.1"),
        ("tool.ended", {"arguments": {"v": {"file_path": "src/b.py"}}}, 0, "other arguments than the model wrote"),
        ("tool.ended", {"number": 9}, 0, "was not due"),
        ("call.reserved", {"max_tokens": 9000}, 0, "another model or length"),
        ("call.reserved", {"digest": "0" * 64}, 0, "is not the one that its digest is of"),
    ],
)
def test_what_was_altered_in_the_journal(
    played: Space, kind: str, fields: dict[str, Any], call: int, label: str
) -> None:
    edit_event(played.folder / "run.jsonl", kind, **fields)
    found = problem(played)
    assert (found["node"], found["attempt"], found["call"]) == ("fixer", 1, call)
    assert label in found["problem"]


def test_an_altered_answer(played: Space) -> None:
    path = played.folder / "run.jsonl"
    text = path.read_text()
    assert text.count('"answer":{"v":{"text":"I look."') == 1
    path.write_text(text.replace('"answer":{"v":{"text":"I look."', '"answer":{"v":{"text":"I luck."'))
    found = problem(played)
    assert (found["call"], "turn:1" in found["problem"]) == (3, True)


def test_an_altered_output_of_another_node(played: Space) -> None:
    path = played.folder / "run.jsonl"
    text = path.read_text()
    assert text.count('"outputs":{"n":{"v":"42"}}') == 1
    path.write_text(text.replace('"outputs":{"n":{"v":"42"}}', '"outputs":{"n":{"v":"43"}}'))
    found = problem(played)
    assert (found["call"], "input:n" in found["problem"]) == (1, True)


def test_an_altered_copy_of_a_skill(played_here: Space) -> None:
    path = played_here.folder / "run.jsonl"
    path.write_text(path.read_text().replace('"body":{"v":"Be calm."}', '"body":{"v":"Be evil."}'))
    assert played_here.run("audit", "run.jsonl").code == 0  # the file of that digest is there: the copy is not asked
    (played_here.folder / "skills/calm/SKILL.md").unlink()
    found = problem(played_here)
    digest = sha256(b"---\nname: calm\ndescription: Be calm.\n---\nBe calm.\n").hexdigest()
    assert (found["call"], f"skill:{digest}" in found["problem"]) == (1, True)


def test_a_skill_that_is_another_now_is_taken_from_its_copy(played_here: Space) -> None:
    played_here.file("skills/calm/SKILL.md", "---\nname: calm\ndescription: Be calm.\n---\nBe loud.\n")
    done = played_here.run("audit")
    assert done.code == 0
    assert "skill calm: its file is not as it was" in done.out


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_a_flipped_bit_of_the_journal(played: Space, part: float) -> None:
    journal = Path(find_run(str(played.folder), "last").journal)
    _flip(journal, int(len(journal.read_bytes()) * part))
    done = played.run("audit")
    assert done.code == 8
    assert "is corrupt at byte" in done.err


def test_a_flipped_bit_of_the_plan(played: Space) -> None:
    _flip(Path(find_run(str(played.folder), "last").plan), 200)
    assert played.run("audit").code == 8


def test_a_flipped_bit_of_a_large_value(space: Space) -> None:
    space.file(
        "flow.yaml",
        """
        version: 1
        name: f
        provider: {kind: fake, rules: rules.yaml}
        nodes:
          big: {run: "head -c 20000 /dev/zero | tr '\\\\0' x", outputs: {n: {from: stdout}}}
          a: {agent: {prompt: "Read ${{ inputs.n }}"}, inputs: {n: nodes.big.n}}
        """,
    )
    space.file("rules.yaml", "rules:\n  - {node: a, text: ok}\n")
    assert space.run("execute", "flow.yaml").code == 0, space.run("trace", "show", "--failures").out
    assert space.run("audit").code == 0
    values = sorted(Path(find_run(str(space.folder), "last").values).iterdir(), key=lambda p: p.stat().st_size)
    assert len(values) == 2
    _flip(values[-1], 9000)  # the request
    found = problem(space, "last")
    assert (found["node"], found["attempt"]) == ("a", 1)
    assert "call 1: its request" in found["problem"]
    assert "digest does not match" in found["problem"]
    _flip(values[-1], 9000)
    _flip(values[0], 9000)  # the output
    assert "digest does not match" in problem(space, "last")["problem"]


def test_json_of_a_file_names_the_recorded_run(played: Space) -> None:
    head = json.loads((played.folder / "run.jsonl").read_text().splitlines()[0])
    assert played.run("audit", "run.jsonl", "--json").json["run_id"] == head["record"]


def test_a_record_from_elsewhere_is_held_against_the_skills_that_are_here(played_here: Space) -> None:
    """The project of the record is gone on another machine; the same skill beside the same flow will do."""
    there = played_here.folder / "there"
    there.mkdir()
    for name in ("run.jsonl", "skills"):
        (played_here.folder / name).rename(there / name)
    done = played_here.run("-C", "there", "audit", "run.jsonl")
    assert (done.code, "note:" in done.out) == (0, False), done.out
    (skill,) = there.glob("skills/*/SKILL.md")
    skill.write_text(skill.read_text() + "\nAnd be quick.\n")
    assert "its file is not as it was" in played_here.run("-C", "there", "audit", "run.jsonl").out

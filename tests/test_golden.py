"""Journals of every format that was ever written: read for ever, and they still say the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from zlib import crc32

import pytest

from dagrun.core.event import FORMAT, decode, encode
from dagrun.core.names import Status
from dagrun.core.state import RunState
from dagrun.core.trace import trace_to_json
from dagrun.errors import JournalError
from dagrun.store.history import History, load_state
from dagrun.store.rundir import RunDir
from tests.core.strategies import check_state

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(p.name.removesuffix(".jsonl") for p in GOLDEN.glob("*.jsonl"))
# what a trace may never say differently; new fields may come beside them
OF_RUN = ("run_id", "workflow", "status", "exit_code", "reason", "schedule", "params", "outputs", "warnings")
OF_ENTRY = (
    *("node_id", "wave", "status", "retries", "output_summary", "error", "reason", "inputs_digest"),
    *("model", "skills_used", "input_tokens", "output_tokens", "cost_usd"),
)
OF_ATTEMPT = ("number", "outcome", "started_at", "duration_ms", "exit_code", "signal", "error", "limit")


def put(name: str, folder: Path) -> RunDir:
    """A golden run as a run folder."""
    shutil.copyfile(GOLDEN / f"{name}.jsonl", folder / "journal.jsonl")
    shutil.copyfile(GOLDEN / f"{name}.plan.json", folder / "plan.json")
    return RunDir(str(folder), "gold")


def lines(name: str) -> list[tuple[bytes, bytes]]:
    """(checksum, body) of each line."""
    return [(line[:8], line[9:]) for line in (GOLDEN / f"{name}.jsonl").read_bytes().splitlines()]


def told(trace: dict[str, object]) -> dict[str, object]:
    """The part of a trace that must not change."""
    run, entries = trace["run"], trace["entries"]
    assert isinstance(run, dict)
    assert isinstance(entries, list)
    return {
        "run": {key: run[key] for key in OF_RUN},
        "entries": [
            {
                **{key: entry[key] for key in OF_ENTRY},
                "agent": entry.get("agent"),
                "attempts": [{key: attempt[key] for key in OF_ATTEMPT} for attempt in entry["attempts"]],
            }
            for entry in entries
        ],
    }


def test_the_present_format_has_golden_journals() -> None:
    assert [name for name in NAMES if name.startswith(f"format{FORMAT}-")]


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_journal_tells_the_same_as_ever(name: str, tmp_path: Path) -> None:
    state = load_state(put(name, tmp_path))
    check_state(state)
    assert told(dict(trace_to_json(state))) == told(json.loads((GOLDEN / f"{name}.trace.json").read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_the_checksums_can_be_checked_without_dagrun(name: str) -> None:
    crc = 0
    for head, body in lines(name):
        crc = crc32(body, crc)
        assert int(head, 16) == crc


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(f"format{FORMAT}-")])
def test_events_of_the_present_format_are_written_as_they_were_read(name: str) -> None:
    for _, body in lines(name):
        for event in json.loads(body)["e"]:
            assert json.loads(encode(decode(event))) == event


@pytest.mark.parametrize("name", NAMES)
def test_a_journal_cut_at_any_record_is_a_run_that_can_be_read(name: str, tmp_path: Path) -> None:
    run = put(name, tmp_path)
    whole = (GOLDEN / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(1, len(whole) + 1):
        (tmp_path / "journal.jsonl").write_bytes(b"".join(whole[:count]))
        check_state(load_state(run))


@pytest.mark.parametrize("name", NAMES)
def test_no_golden_file_tells_of_the_machine_it_was_written_on(name: str) -> None:
    for _, body in lines(name):
        for event in json.loads(body)["e"]:
            assert event.get("project", "/home/ada/project") == "/home/ada/project"
            assert event.get("host", "build") == "build"
            assert event.get("pid", 4242) == 4242


def test_the_cases_that_the_golden_journals_are_there_for(tmp_path: Path) -> None:
    seen: set[str] = set()
    for name in NAMES:
        folder = tmp_path / name
        folder.mkdir()
        seen |= cases(load_state(put(name, folder)))
    assert seen >= {
        *("run completed", "run failed", "run cancelled", "resumed", "warned", "adopted"),
        *("completed", "failed", "timed_out", "lost", "cancelled"),
        *("skip condition", "skip dependency", "skip selection", "fail_fast", "injected", "waves", "ready"),
        *("run over_budget", "over_budget", "refused", "agents", "call again", "tool", "rejected answer"),
    }


def cases(state: RunState) -> set[str]:
    found = {f"run {state.status}", str(state.schedule)}
    found |= {str(a.outcome) for tried in state.attempts for a in tried}
    found |= {f"skip {reason}" for reason in state.skips.values()}
    found |= {"resumed"} if state.engines > 1 else set()
    found |= {"warned"} if state.warnings else set()
    found |= {"adopted"} if state.adopted else set()
    found |= {"injected"} if state.created.fail else set()
    tallies = [a.tally for tried in state.attempts for a in tried if a.tally is not None]
    found |= {"agents"} if tallies else set()
    found |= {"call again"} if any(t.repeats for t in tallies) else set()
    found |= {"tool"} if any(t.tools for t in tallies) else set()
    found |= {"rejected answer"} if any(t.turns > 1 + sum(t.tools.values()) for t in tallies) else set()
    if Status.CANCELLED in state.node_status and state.plan.workflow.fail_fast:
        found.add("fail_fast")
    return found


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    run = put(NAMES[0], tmp_path)
    data = bytearray((tmp_path / "journal.jsonl").read_bytes())
    data[40] ^= 1
    (tmp_path / "journal.jsonl").write_bytes(data)
    with pytest.raises(JournalError, match="corrupt at byte 0, record 1"):
        History(run)

"""What is made of the notes about a container that ended. No engine."""

from __future__ import annotations

import pytest

from dagrun.sandbox.base import Exit
from dagrun.sandbox.container_end import Notes, aftermath
from dagrun.sandbox.container_script import NO_MORE, REPLACED
from dagrun.sandbox.wall import NOTHING_MORE, Aftermath, Bounds

STARTED = "2026-01-01T00:00:00Z"
NEVER = "0001-01-01T00:00:00Z"
ALL = Bounds(memory_bytes=64 << 20, pids=10, cpu=1.0, file_size_bytes=1000)


def told(code: int | None, notes: Notes, bounds: Bounds = ALL) -> Aftermath:
    return aftermath(Exit(code, None if code is not None else 9, None, 0), notes, bounds, image="img", program="prog")


def test_success_needs_no_words() -> None:
    assert told(0, Notes(end=f"exited|0|true|{STARTED}|")) == NOTHING_MORE


def test_what_was_killed_on_purpose_needs_no_words() -> None:
    assert told(137, Notes(end=f"exited|137|true|{STARTED}|", killed=True)) == NOTHING_MORE


@pytest.mark.parametrize("code", [1, 125, 126, 127, 137, 153])
def test_a_command_s_own_code_needs_no_words(code: int) -> None:
    assert told(code, Notes(end=f"exited|{code}|false|{STARTED}|"), Bounds()) == NOTHING_MORE


def test_memory_counts_only_as_a_limit_where_one_was_written() -> None:
    notes = Notes(end=f"exited|137|true|{STARTED}|")
    assert told(137, notes).limit == "memory"
    assert told(137, notes).error == "memory: used its limit of 64 MiB (peak 64 MiB)"
    assert told(137, notes, Bounds()).limit == ""
    assert "no memory left" in told(137, notes, Bounds()).error


def test_an_engine_that_does_not_count_memory() -> None:
    killed = Notes(end=f"exited|137|false|{STARTED}|")

    def said(bounds: Bounds, counts: bool) -> str:
        end = Exit(137, None, None, 0)
        return aftermath(end, killed, bounds, image="img", program="prog", counts_memory=counts).limit

    assert [said(ALL, True), said(ALL, False), said(Bounds(), False)] == ["", "memory", ""]


def test_files_and_processes() -> None:
    assert told(153, Notes(end=f"exited|153|false|{STARTED}|")).limit == "file_size"
    python = Notes(end=f"exited|1|false|{STARTED}|", tail="OSError: [Errno 27] File too large\n")
    assert told(1, python).limit == "file_size"
    assert told(1, python, Bounds()).limit == ""
    fork = Notes(end=f"exited|2|false|{STARTED}|", tail="sh: can't fork: Resource temporarily unavailable")
    assert told(2, fork).limit == "pids"
    assert told(2, fork, Bounds()).limit == ""
    assert told(2, fork).error == "pids: reached its limit of 10 processes and threads (peak 10)"


@pytest.mark.parametrize(
    "tail",
    [
        "RuntimeError: can't start new thread\n",
        "java.lang.OutOfMemoryError: unable to create native thread: possibly out of memory\n",
        "runtime: failed to create new OS thread (have 9 already; errno=11)\n",
        f"{NO_MORE}\n",
    ],
)
def test_processes_that_could_not_be_started(tail: str) -> None:
    """In the words of several languages, and in those of the gate, which asks the kernel."""
    end = f"exited|1|false|{STARTED}|"
    assert told(1, Notes(end=end, tail=tail)).limit == "pids"
    assert told(1, Notes(end=end, tail=tail), Bounds()).limit == ""


def test_a_daemon_that_went_away() -> None:
    gone = Notes(fault="Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", made=True)
    assert told(125, gone).outcome == "lost"
    assert told(125, gone).error.startswith("the engine went away while the container ran: Cannot connect")
    assert told(125, Notes(end=f"exited|137|false|{STARTED}|")).outcome == "lost"  # and came back
    assert told(137, Notes(end=f"running|0|false|{STARTED}|")).outcome == "lost"


def test_a_daemon_that_was_gone_before_the_container_was_made() -> None:
    gone = Notes(fault="Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?")
    said = told(125, gone)
    assert said.outcome == "lost"  # it may be back for the next try
    assert said.error.startswith("the engine does not answer, so nothing was started: Cannot connect")


def test_containers_that_never_were() -> None:
    absent = Notes(fault="Error: No such container: x", refused="Error response from daemon: No such image: img")
    assert told(125, absent).outcome == "failed"
    assert "docker pull img" in told(125, absent).error
    refused = Notes(refused="Error response from daemon: invalid mount\nSee 'docker run --help'.")
    assert told(125, refused).error == "the engine refused the container: invalid mount"
    never = Notes(end=f"created|127|false|{NEVER}|OCI runtime create failed: mount /x: permission denied")
    assert told(125, never) == Aftermath(
        outcome="failed", error="the container did not start: mount /x: permission denied"
    )


def test_an_image_that_can_not_be_had() -> None:
    said = told(125, Notes(refused="dial tcp: no such host", pulling=True))
    assert (said.outcome, said.error) == (
        "failed",
        "the image img is not here and can't be pulled: dial tcp: no such host",
    )


def test_programs_that_can_not_be_run() -> None:
    tail = "[FATAL tini (7)] exec prog failed: No such file or directory\n"
    said = told(127, Notes(end=f"exited|127|false|{STARTED}|", tail=tail))
    assert said.error == "prog can't be run in the image img: no such file or directory"
    assert told(3, Notes(end=f"exited|3|false|{STARTED}|", tail=tail)).error == ""


@pytest.mark.parametrize(
    "tail",
    ["dagrun: exec: line 8: prog: not found\n", "dagrun: 8: exec: prog: not found\n", "dagrun: 8: prog: not found"],
    ids=["busybox", "dash", "bash"],
)
def test_programs_that_sh_can_not_become(tail: str) -> None:
    notes = Notes(end=f"exited|127|false|{STARTED}|", tail=tail)
    assert told(127, notes).error == "prog can't be run in the image img: not found"
    assert told(127, Notes(end=notes.end, tail="sh: other: not found\n")).error == ""


def test_a_replaced_grant_is_denied() -> None:
    assert told(125, Notes(end=f"exited|125|false|{STARTED}|", tail=REPLACED)).outcome == "denied"


@pytest.mark.parametrize("end", ["", "\n", "a|b", "exited|x|false|y|z", "|" * 9])
def test_notes_that_make_no_sense_are_no_claims(end: str) -> None:
    assert told(1, Notes(end=end)) == NOTHING_MORE


def test_what_an_engine_says_moves_no_cursor() -> None:
    assert "\x1b" not in told(125, Notes(refused="Error: \x1b[2J bad")).error

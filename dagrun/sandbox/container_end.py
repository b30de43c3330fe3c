"""How a container ended, from what the wrapper wrote down outside its reach.

Tells the command's own 125, 126 and 127 from the engine's, a daemon that died from a command that
failed, and names the ceiling that ended it. Pure: texts in, an Aftermath out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from dagrun.sandbox.base import Exit
from dagrun.sandbox.container_cli import plain_words
from dagrun.sandbox.container_script import NO_MORE, REPLACED
from dagrun.sandbox.wall import NOTHING_MORE, Aftermath, Bounds

_NEVER = "0001-01-01"  # what an engine says of a container that did not start
_SIGKILL, _SIGXFSZ = 128 + 9, 128 + 25
_INIT_FAILED = re.compile(r"(?:\[FATAL tini \(\d+\)\]|catatonit:?)\s.*?exec(?:ve)?\s?.*?: (.+)")
# What sh says of a program that it was to become (container_script.gate).
_EXEC_FAILED = re.compile(
    r"^dagrun: .*(not found|permission denied|no such file or directory|exec format error)$", re.I | re.M
)
_NO_IMAGE = re.compile("no such image|unable to find image|image not known|manifest unknown|pull access denied", re.I)
_NO_FORK = re.compile(
    "can't fork|cannot fork|fork: retry|resource temporarily unavailable|pthread_create failed|can't start new thread"
    f"|unable to create native thread|failed to create new os thread|{re.escape(NO_MORE)}",
    re.I,
)
# Some programs ignore SIGXFSZ and see an error instead, Python among them.
_TOO_LARGE = re.compile(r"file too large|\bEFBIG\b", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What the wrapper wrote: each "" when there was nothing to write."""

    end: str = ""  # STATE_FORMAT
    fault: str = ""  # why the engine could not say that
    refused: str = ""  # why it did not make the container
    pulling: bool = False  # it was getting the image then
    made: bool = False  # there was a container
    tail: str = ""  # the last words of stderr
    left: str = ""  # why the container could not be removed
    shut: str = ""  # why its list of hosts could not be held
    removed: bool = False
    killed: bool = False


@dataclass(frozen=True, slots=True)
class _State:
    status: str
    code: int
    oom: bool
    started: bool
    error: str


def aftermath(
    exit_: Exit, notes: Notes, bounds: Bounds, *, image: str, program: str, counts_memory: bool = True
) -> Aftermath:
    """What the exit code of the wrapper can't tell.

    `counts_memory`: the engine says so when memory ran out. Where it does not, a SIGKILL that nobody
    here sent is taken for that.
    """
    if exit_.code == 0 or notes.killed:
        return NOTHING_MORE
    if notes.shut:
        why = plain_words(notes.shut)
        return Aftermath(outcome="failed", error=f"can't hold the container to its permissions.network: {why}")
    state = _parsed(notes.end)
    if state is not None:
        if not counts_memory and state.code == _SIGKILL and bounds.memory_bytes is not None:
            state = replace(state, oom=True)
        return _of_state(exit_, state, notes, bounds, image, program)
    if notes.refused:
        if notes.pulling:
            error = f"the image {image} is not here and can't be pulled: {_last(notes.refused)}"
            return Aftermath(outcome="failed", error=error)
        return _not_made(notes.refused, image)
    if notes.fault and "no such" not in notes.fault.lower():
        what = "went away while the container ran" if notes.made else "does not answer, so nothing was started"
        return Aftermath(outcome="lost", error=f"the engine {what}: {_last(notes.fault)}")
    if exit_.code == 125:
        return Aftermath(outcome="failed", error="the engine could not make the container: its words are in stderr")
    return NOTHING_MORE


def _of_state(exit_: Exit, state: _State, notes: Notes, bounds: Bounds, image: str, program: str) -> Aftermath:
    if not state.started:
        return Aftermath(outcome="failed", error=_not_started(state.error, image, program))
    if state.status == "running":
        return Aftermath(outcome="lost", error="the engine's command ended while the container still ran")
    if exit_.code == 125 and state.code != 125:
        return Aftermath(outcome="lost", error="the engine went away while the container ran, and came back")
    limit = _limit(state, notes, bounds)
    if limit is not None:
        return limit
    if state.code == 125 and REPLACED in notes.tail:
        return Aftermath(outcome="denied", error=REPLACED.removeprefix("dagrun: "))
    said = _INIT_FAILED.search(notes.tail) or _EXEC_FAILED.search(notes.tail)
    if state.code in (126, 127) and said is not None:
        return Aftermath(error=f"{program} can't be run in the image {image}: {plain_words(said.group(1)).lower()}")
    if state.oom:
        return Aftermath(error="a process in the container was killed, as the machine had no memory left")
    return NOTHING_MORE


def _limit(state: _State, notes: Notes, bounds: Bounds) -> Aftermath | None:
    """The ceiling that ended it. An engine counts kills for memory; the others show in how it failed."""
    if state.oom and bounds.memory_bytes is not None:
        most = _size(bounds.memory_bytes)
        text = f"memory: used its limit of {most} (peak {most})"
        return Aftermath(limit="memory", error=text, peak_memory_bytes=bounds.memory_bytes)
    if bounds.file_size_bytes is not None and (state.code == _SIGXFSZ or _TOO_LARGE.search(notes.tail)):
        return Aftermath(
            limit="file_size", error=f"file_size: a file reached its limit of {_size(bounds.file_size_bytes)}"
        )
    if bounds.pids is not None and _NO_FORK.search(notes.tail):
        text = f"pids: reached its limit of {bounds.pids} processes and threads (peak {bounds.pids})"
        return Aftermath(limit="pids", error=text)
    return None


def _parsed(text: str) -> _State | None:
    parts = text.strip().split("|", 4)
    if len(parts) != 5 or not re.fullmatch(r"-?\d+", parts[1]):
        return None
    return _State(parts[0], int(parts[1]), parts[2] == "true", not parts[3].startswith(_NEVER), parts[4])


def _not_started(error: str, image: str, program: str) -> str:
    text = plain_words(error)
    if '"sh": executable file not found' in text and program != "sh":
        return f"the image {image} has no sh, which dagrun uses while it does not know an image: run it again"
    if "executable file not found" in text or "no such file or directory" in text:
        return f"{program} can't be run in the image {image}: {text}"
    return f"the container did not start: {text or 'the engine does not say why'}"


def _not_made(refused: str, image: str) -> Aftermath:
    if _NO_IMAGE.search(refused):
        return Aftermath(
            outcome="failed",
            error=f"there is no image {image} here: docker pull {image}, or docker: {{pull: missing}};"
            f" the engine says: {_last(refused)}",
        )
    return Aftermath(outcome="failed", error=f"the engine refused the container: {_last(refused)}")


def _last(text: str) -> str:
    """The line that says what is wrong: the last but for advice."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("See '", "Run '"))]
    return plain_words(lines[-1]) if lines else ""


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"

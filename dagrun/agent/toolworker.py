"""The tool worker: runs Read, Write, Edit, Bash, Grep and Glob of one agent inside its sandbox.

One JSON object a line on stdin is a call, one on stdout its result, in order; no key, no model, no
network of its own. What it may touch is held by the sandbox around it; the roots given at the start
are checked here once more, and are all there is at levels without walls. Standard library only: it
runs as `python -I -S`, from source that came through stdin (worker.py).

    → {"start": {"cwd", "read", "write", "deny", …}}   (beneath.Roots)   ← {"ready": 1}
    → {"id", "tool", "input", "room", "timeout_s"}  ← {"id", "ok", "content"} or {"id", "ok": false, "error"}
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from dagrun.agent.bashtool import TIMEOUT_MS, bash
from dagrun.agent.beneath import Roots, ToolError
from dagrun.agent.filetools import edit, read, write
from dagrun.agent.searchtools import glob, grep

MAX_CALL_BYTES = 16 << 20
ROOM = 30_000
TIMEOUT_S = 60.0
_PR_SET_DUMPABLE = 4

TOOLS: dict[str, Callable[[Roots, dict[str, Any], int], str]] = {
    "Read": read,
    "Write": write,
    "Edit": edit,
    "Bash": bash,
    "Grep": grep,
    "Glob": glob,
}


class _OutOfTime(BaseException):
    """The time of a call is up: no `except Exception` on the way may swallow it."""


def serve(calls: BinaryIO, results: BinaryIO) -> int:
    """Answer calls until stdin ends. A line that is no call ends the worker: its driver is not to be trusted."""
    roots: Roots | None = None
    while line := calls.readline(MAX_CALL_BYTES + 1):
        try:
            call = json.loads(line) if len(line) <= MAX_CALL_BYTES else None
        except (ValueError, RecursionError):
            call = None
        if not isinstance(call, dict):
            return 2
        if "start" in call:
            start = call["start"]
            roots = Roots(**start)
            os.chdir(roots.cwd)
            answer: dict[str, Any] = {"ready": 1}
        elif roots is None:
            return 2
        else:
            answer = {"id": call.get("id"), **_answer(roots, call)}
        results.write(json.dumps(answer).encode() + b"\n")
        results.flush()
    return 0


def _answer(roots: Roots, call: dict[str, Any]) -> dict[str, Any]:
    tool, given = TOOLS.get(str(call.get("tool"))), call.get("input")
    if tool is None:
        return {"ok": False, "error": f"there is no tool `{call.get('tool')}`"}
    if not isinstance(given, dict):
        return {"ok": False, "error": "the input of a tool is an object"}
    room, timeout_s = call.get("room", ROOM), call.get("timeout_s", TIMEOUT_S)
    if tool is bash:
        given = _in_time(given, timeout_s)
    try:
        signal.signal(signal.SIGALRM, _alarm)
        # Bash has a time limit of its own, and has to clean up after it
        signal.setitimer(signal.ITIMER_REAL, 0 if tool is bash else timeout_s)
        try:
            return {"ok": True, "content": tool(roots, given, room)}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except ToolError as error:
        return {"ok": False, "error": str(error)[: room + 1000]}
    except _OutOfTime:
        return {"ok": False, "error": "it took too long: search more narrowly"}
    except (OSError, MemoryError, RecursionError) as error:
        return {"ok": False, "error": f"it can't be done: {getattr(error, 'strerror', None) or type(error).__name__}"}


def _in_time(given: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The input of Bash with a time limit that is at most that of the call."""
    wanted, most = given.get("timeout", TIMEOUT_MS), max(1, int(timeout_s * 1000))
    return {**given, "timeout": most} if type(wanted) is int and wanted > most else given


def _alarm(number: int, frame: object) -> None:
    raise _OutOfTime


def main() -> None:
    """Serve on stdin and stdout; whatever else would be printed must not mix with the results."""
    # what a command starts has our user: it must not reach into our memory or our descriptors
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.exit(serve(sys.stdin.buffer, results))

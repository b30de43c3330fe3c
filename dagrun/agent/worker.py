"""Driving a tool worker from outside its sandbox: how it is started, what is said, what is heard.

Knows no process and no engine: bytes in, results out, so that any loop can drive it. The worker's
source travels through its stdin, so that no file of dagrun need be visible inside.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from secrets import randbits

from dagrun.core.names import Json

MODULES = ("beneath", "filetools", "searchtools", "bashtool", "toolworker")
MAX_CALL_BYTES = 16 << 20  # a longer one ends the worker
MAX_RESULT_BYTES = 32 << 20

# reads N bytes of source from stdin; what follows on stdin are calls
_BOOT = """\
import sys, json, types
if sys.version_info < (3, 10):
    print(json.dumps({'unfit': '%d.%d' % sys.version_info[:2]}), flush=True)
    sys.exit(4)
data = b''
while len(data) < int(sys.argv[1]):
    piece = sys.stdin.buffer.read(int(sys.argv[1]) - len(data))
    if not piece: sys.exit(3)
    data += piece
for name, source in json.loads(data):
    made = sys.modules[name] = types.ModuleType(name)
    made.__path__ = []
    exec(compile(source, name, 'exec'), made.__dict__)
sys.modules['dagrun.agent.toolworker'].main()
"""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave: `text` is the result, or what went wrong, for the model."""

    id: int
    ok: bool
    text: str


class WorkerLost(Exception):
    """The worker said something that is no result, or ended: start another one."""


class WorkerUnfit(WorkerLost):
    """The Python that is there can't run the worker: no other one will do better."""


def worker_argv(python: str = "") -> tuple[str, ...]:
    """The command that is to be run inside the sandbox; its stdin then takes `opening`."""
    # not the link of a virtual environment: only what it points to need be seen, and -S ignores the rest
    return (python or os.path.realpath(sys.executable), "-I", "-S", "-c", _BOOT, str(len(_source())))


def python_roots() -> tuple[str, ...]:
    """The directories that this Python needs to be seen inside a sandbox, beyond the system's."""
    return tuple(dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)))


class Conversation:
    """One worker's side of the talk. `opening` first; then calls, each answered in order.

    Calls have random numbers: a command that gets hold of the worker's output can't answer in its place.
    """

    def __init__(
        self,
        cwd: str,
        read: Sequence[str],
        write: Sequence[str],
        deny: Sequence[str],
        *,
        keys: Sequence[str] = (),
        allow: Sequence[str] = (),
        fixed: Sequence[str] = (),
    ) -> None:
        self._start: dict[str, Json] = {"cwd": cwd, "read": list(read), "write": list(write), "deny": list(deny)}
        self._start |= {"keys": list(keys), "allow": list(allow), "fixed": list(fixed)}
        self._buffer = bytearray()
        self._asked: set[int] = set()
        self.ready = False

    def opening(self) -> bytes:
        """What is written to the worker's stdin first."""
        return _source() + _line({"start": dict(self._start)})

    def call(self, tool: str, given: Mapping[str, Json], *, room: int, timeout_s: float) -> tuple[int, bytes]:
        """(number, bytes) of one call; `room` characters are the most that its result may have."""
        number = randbits(62)
        self._asked.add(number)
        return number, _line({"id": number, "tool": tool, "input": dict(given), "room": room, "timeout_s": timeout_s})

    def feed(self, data: bytes) -> list[ToolResult]:
        """The results that are complete with this piece of the worker's stdout. Raises WorkerLost."""
        self._buffer += data
        found: list[ToolResult] = []
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            result = self._result(line)
            if result is not None:
                found.append(result)
        if len(self._buffer) > MAX_RESULT_BYTES:
            raise WorkerLost("the tool worker does not end its line")
        return found

    def _result(self, line: bytes) -> ToolResult | None:
        try:
            made = json.loads(line)
        except (ValueError, RecursionError):
            made = None
        match made:
            case {"ready": 1} if not self.ready:
                self.ready = True
                return None
            case {"unfit": str(version)} if not self.ready:
                raise WorkerUnfit(f"the tools need Python 3.10 or newer, and python3 is {version[:20]} there")
            case {"id": int(number), "ok": True, "content": str(text)} if number in self._asked:
                self._asked.remove(number)
                return ToolResult(number, True, text)
            case {"id": int(number), "ok": False, "error": str(text)} if number in self._asked:
                self._asked.remove(number)
                return ToolResult(number, False, text)
            case _:
                raise WorkerLost("the tool worker said something that is no result")


def _line(message: Mapping[str, Json]) -> bytes:
    # half of a surrogate pair is for the worker to refuse, in words for the model
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


_MADE: list[bytes] = []


def _source() -> bytes:
    """The worker's modules in the order of their imports."""
    if not _MADE:
        folder = files("dagrun.agent")
        modules: list[Json] = [["dagrun", ""], ["dagrun.agent", ""]]
        modules += [[f"dagrun.agent.{name}", (folder / f"{name}.py").read_text("utf-8")] for name in MODULES]
        _MADE.append(json.dumps(modules).encode())
    return _MADE[0]

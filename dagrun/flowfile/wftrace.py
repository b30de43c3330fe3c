"""What a trace of WfCommons (WfFormat 1.5) says: its tasks, files, runtimes and their order.

JSON text in, a linked `Trace` out, or every problem with its line and column. Knows nothing of
workflows, ids or commands (`wfformat.py` writes those). Lines and columns are only looked for
when something is wrong. Invariant: the needs of a trace that was read are free of cycles.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from dagrun.core.workflow import Fault
from dagrun.errors import InputError, Problem, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dagrun.core.names import Json

__all__ = ["Task", "Trace", "read_trace", "reduced_needs"]

SECONDS_MAX = 1e9
BLOCK = 4096  # ancestors looked at together when needs are reduced: bounds memory, not time
_SPEC = ("workflow", "specification")
_MISSING = object()
_Path = tuple[str | int, ...]


def read_trace(text: bytes, source: str, time_scale: float) -> Trace:
    """The trace in `text`, linked. Raises InputError with all that is wrong with it."""
    document = _decode(text, source)
    trace, faults = Reader(_parse(document, source)).read()
    if not faults:
        faults = _link(trace, time_scale)
    if faults:
        raise InputError(Locator(document, source).problems(faults))
    return trace


# ---------------------------------------------------------------- the trace


@dataclass(slots=True)
class Task:
    """A task of the trace; `needs` maps the place of a task to why it comes first, once linked."""

    id: str
    inputs: list[str]
    outputs: list[str]
    parents: list[str]
    children: list[str]
    place: int  # in `specification.tasks`
    runtime_s: float = 0.0
    needs: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Trace:
    tasks: list[Task] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    staged: list[str] = field(default_factory=list)  # files that no earlier task makes
    version: str = ""
    description: str = ""


def _decode(text: bytes, source: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        column = error.start - (text.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"not UTF-8: byte 0x{text[error.start]:02x}"
        problem = Problem(code="encoding", message=message, file=source, line=line, column=column)
        raise InputError((problem,)) from None


def _parse(document: str, source: str) -> Json:
    try:
        return cast("Json", json.loads(document))
    except json.JSONDecodeError as error:
        message, at = f"not JSON: {error.msg}", error.pos
    except (ValueError, RecursionError) as error:
        message, at = f"not readable as JSON: {error}", -1
    raise InputError((Locator(document, source).problem(Fault((), "not-json", message), at),))


class Reader:
    """Reads the parsed JSON into a `Trace` and collects what is wrong with it."""

    def __init__(self, data: Json) -> None:
        self.data = data
        self.faults: list[Fault] = []

    def read(self) -> tuple[Trace, list[Fault]]:
        trace = Trace()
        top = self._object(self.data, (), "the trace")
        workflow = self._object(top.get("workflow", _MISSING), ("workflow",), "`workflow`") if top else {}
        if "specification" not in workflow and ("tasks" in workflow or "jobs" in workflow):
            hint = "convert it to WfFormat 1.5: `workflow.specification.tasks`"
            self._fault(("workflow",), "old-format", "this is WfFormat 1.4 or older", hint, on_key=True)
            return trace, self.faults
        spec = (
            self._object(workflow.get("specification", _MISSING), _SPEC, "`workflow.specification`") if workflow else {}
        )
        if not spec:
            return trace, self.faults
        trace.version = str(top.get("schemaVersion", ""))
        trace.description = description if isinstance(description := top.get("description"), str) else ""
        self._tasks(spec, trace)
        for place, item in self._objects(spec, "files", _SPEC):
            name, size = item.get("id"), item.get("sizeInBytes", 0)
            path = (*_SPEC, "files", place)
            if not isinstance(name, str):
                self._fault(path, "missing-key", "a file needs an `id` that is a string")
            elif self._number(size, (*path, "sizeInBytes"), "a size"):
                trace.sizes[name] = int(cast("float", size))
        self._runtimes(workflow, {task.id: task for task in trace.tasks})
        return trace, self.faults

    def _tasks(self, spec: dict[str, Json], trace: Trace) -> None:
        path = (*_SPEC, "tasks")
        if spec.get("tasks", _MISSING) in (_MISSING, []):
            self._fault(_SPEC, "missing-key", "`workflow.specification` has no `tasks`", on_key=True)
        first: dict[str, int] = {}
        for place, item in self._objects(spec, "tasks", _SPEC):
            name = item.get("id")
            if not isinstance(name, str) or not name:
                self._fault((*path, place), "missing-key", "a task needs an `id` that is a string")
                continue
            if name in first:
                self._fault((*path, place, "id"), "duplicate-id", f"a second task has the id {_short(name)}")
                continue
            first[name] = place
            files = [self._strings(item, key, (*path, place)) for key in ("inputFiles", "outputFiles")]
            tasks = [self._strings(item, key, (*path, place)) for key in ("parents", "children")]
            trace.tasks.append(Task(name, files[0], files[1], tasks[0], tasks[1], place))
        for task in trace.tasks:
            for key, names in (("parents", task.parents), ("children", task.children)):
                for at, name in enumerate(names):
                    if name not in first:
                        message = f"{_short(task.id)} has {_short(name)} in `{key}`, but no task has that id"
                        self._fault((*path, task.place, key, at), "unknown-task", message)

    def _runtimes(self, workflow: dict[str, Json], tasks: dict[str, Task]) -> None:
        """Times by task; rows of what is no task are left: they have nothing to run."""
        if "execution" not in workflow:
            return
        execution = self._object(workflow["execution"], ("workflow", "execution"), "`workflow.execution`")
        for place, item in self._objects(execution, "tasks", ("workflow", "execution")):
            runtime = item.get("runtimeInSeconds", 0)
            path = ("workflow", "execution", "tasks", place, "runtimeInSeconds")
            task = tasks.get(name) if isinstance(name := item.get("id"), str) else None
            if self._number(runtime, path, "a runtime") and task:
                task.runtime_s = float(cast("float", runtime))

    def _fault(self, path: _Path, code: str, message: str, hint: str = "", on_key: bool = False) -> None:
        self.faults.append(Fault(path, code, message, hint, on_key))

    def _object(self, value: object, path: _Path, what: str) -> dict[str, Json]:
        if isinstance(value, dict) and value:
            return value
        if value is _MISSING:
            self._fault(path[:-1], "missing-key", f"{what} is missing: not a trace in WfFormat", on_key=True)
        else:
            self._fault(path, "bad-type", f"{what} must be an object with keys")
        return {}

    def _objects(self, parent: dict[str, Json], key: str, path: _Path) -> Iterator[tuple[int, dict[str, Json]]]:
        items = parent.get(key, [])
        if not isinstance(items, list):
            self._fault((*path, key), "bad-type", f"`{key}` must be a list")
            return
        for place, item in enumerate(items):
            if isinstance(item, dict):
                yield place, item
            else:
                self._fault((*path, key, place), "bad-type", f"an entry of `{key}` must be an object")

    def _strings(self, parent: dict[str, Json], key: str, path: _Path) -> list[str]:
        """The distinct strings of a list, in its order; none where the key is missing."""
        items = parent.get(key, [])
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return list(dict.fromkeys(cast("list[str]", items)))
        self._fault((*path, key), "bad-type", f"`{key}` must be a list of strings")
        return []

    def _number(self, value: Json, path: _Path, what: str) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._fault(path, "bad-type", f"{what} must be a number")
        elif not 0 <= value < 1e18:
            self._fault(path, "bad-number", f"{what} can't be {_short(str(value))}")
        else:
            return True
        return False


# ---------------------------------------------------------------- order


def _link(trace: Trace, time_scale: float) -> list[Fault]:
    """Fill `needs` and `staged`; what is wrong with the order (cycles) or the times.

    A file with one producer orders it before its readers. With several, a task that only reads
    it follows those that it doesn't precede by parents and children; who writes it is ordered
    by those alone, since a file changed in place says nothing else.
    """
    tasks = trace.tasks
    index = {task.id: i for i, task in enumerate(tasks)}
    for i, task in enumerate(tasks):
        task.needs.update((index[name], "parents") for name in task.parents)
        for name in task.children:
            tasks[index[name]].needs.setdefault(i, "children")
    producers: dict[str, list[int]] = {}
    for i, task in enumerate(tasks):
        for name in task.outputs:
            producers.setdefault(name, []).append(i)
    declared = [tuple(task.needs) for task in tasks]
    staged: dict[str, None] = {}
    for i, task in enumerate(tasks):
        for name in task.inputs:
            makers = producers.get(name, [])
            if len(makers) > 1:
                makers = [] if i in makers else [m for m in makers if not _precedes(declared, i, m)]
            makers = [m for m in makers if m != i]
            for maker in makers:
                task.needs.setdefault(maker, f"the file {_short(name)}")
            if not makers:
                staged[name] = None
    trace.staged = list(staged)
    faults = _cycles(tasks)
    for task in tasks:
        if task.runtime_s * time_scale > SECONDS_MAX:
            message = f"{_short(task.id)} would sleep for {task.runtime_s * time_scale:.3g} s"
            faults.append(Fault((*_SPEC, "tasks", task.place), "bad-number", message, "use a smaller --time-scale"))
    return faults


def _precedes(needs: Sequence[Iterable[int]], early: int, late: int) -> bool:
    """Whether `late` needs `early`, directly or not."""
    seen, todo = {late}, [late]
    while todo:
        for need in needs[todo.pop()]:
            if need == early:
                return True
            if need not in seen:
                seen.add(need)
                todo.append(need)
    return False


def _topological(tasks: list[Task]) -> list[int]:
    """Places in an order that keeps needs; those on or behind a cycle are missing."""
    left = [len(task.needs) for task in tasks]
    users: list[list[int]] = [[] for _ in tasks]
    for i, task in enumerate(tasks):
        for need in task.needs:
            users[need].append(i)
    order = [i for i, count in enumerate(left) if not count]
    for i in order:  # grows while it is walked
        for user in users[i]:
            left[user] -= 1
            if not left[user]:
                order.append(user)
    return order


def _cycles(tasks: list[Task]) -> list[Fault]:
    """Disjoint cycles, each as one fault that says what every edge comes from."""
    stuck = sorted({*range(len(tasks))} - {*_topological(tasks)})
    bad, seen, faults = {*stuck}, set[int](), list[Fault]()
    for start in stuck:
        path: list[int] = []
        while start not in seen:
            seen.add(start)
            path.append(start)
            start = next(need for need in tasks[start].needs if need in bad)
        if start in path:
            ring = [*path[path.index(start) :], start]
            names = [_short(tasks[i].id) for i in ring]
            edges = [f"{a} needs {b} ({tasks[i].needs[j]})" for a, b, i, j in zip(names, names[1:], ring, ring[1:])]
            hint = "; ".join(edges[:8]) + ("; …" if len(edges) > 8 else "")
            shown = names if len(names) <= 9 else [*names[:5], "…", *names[-3:]]
            faults.append(
                Fault((*_SPEC, "tasks", tasks[ring[0]].place), "cycle", f"a cycle: {' → '.join(shown)}", hint)
            )
    return faults


def reduced_needs(tasks: list[Task]) -> list[list[int]]:
    """The needs of each task that no other need implies (the transitive reduction), by place."""
    order = _topological(tasks)
    rank = {i: r for r, i in enumerate(order)}
    needs = [[rank[n] for n in tasks[i].needs] for i in order]
    for low in range(0, len(order), BLOCK):
        above = [0] * len(order)  # ancestors within the block, as bits
        for r in range(low, len(order)):
            mine = own = 0
            for need in needs[r]:
                mine |= above[need]
                own |= 1 << (need - low) if low <= need < low + BLOCK else 0
            if mine & own:
                needs[r] = [n for n in needs[r] if not (low <= n < low + BLOCK and mine >> (n - low) & 1)]
            above[r] = mine | own
    return [sorted(order[n] for n in needs[rank[i]]) for i in range(len(tasks))]


# ---------------------------------------------------------------- places of problems


class Locator:
    """Turns paths into the JSON document into lines and columns; each container is scanned once."""

    def __init__(self, document: str, source: str) -> None:
        self.document = document
        self.source = source
        self.inside: dict[_Path, dict[str | int, tuple[int, int]]] = {}
        self.lines = [0]
        at = document.find("\n")
        while at >= 0:
            self.lines.append(at + 1)
            at = document.find("\n", at + 1)

    def problems(self, faults: Iterable[Fault]) -> tuple[Problem, ...]:
        """The faults with their places, in the order of the file."""
        made = [self.problem(fault, *self._find(fault.path, fault.on_key)) for fault in faults]
        return tuple(sorted(made, key=lambda problem: (problem.line, problem.column)))

    def problem(self, fault: Fault, at: int, length: int = 1) -> Problem:
        """The fault at an offset of the document; below 0 it is one of the file as a whole."""
        row = bisect_right(self.lines, at) - 1 if at >= 0 else -1
        return Problem(
            code=fault.code,
            message=fault.message,
            file=self.source,
            line=row + 1,
            column=at - self.lines[row] + 1 if at >= 0 else 0,
            length=length,
            hint=fault.hint,
            excerpt=self._excerpt(row) if at >= 0 else (),
        )

    def _excerpt(self, row: int) -> tuple[tuple[int, str], ...]:
        """The line and the one before it; nothing where the file is one endless line."""
        ends = [*self.lines[1:], len(self.document) + 1]
        rows = [r for r in (row - 1, row) if r >= 0 and ends[r] - self.lines[r] <= 200]
        if row not in rows:
            return ()
        return tuple((r + 1, self.document[self.lines[r] : ends[r] - 1].rstrip("\r")) for r in rows)

    def _find(self, path: _Path, on_key: bool) -> tuple[int, int]:
        """Offset and length of the value (or key) at `path`, or of what holds it where it is missing."""
        key_at = at = self._skip(0)
        for depth, step in enumerate(path):
            places = self._children(path[:depth], at)
            if step not in places:
                break
            key_at, at = places[step]
        start = key_at if on_key else at
        if self.document[start] in "[{":
            return start, 1
        end = json.JSONDecoder().raw_decode(self.document, start)[1]
        return start, min(end - start, 80)

    def _children(self, path: _Path, at: int) -> dict[str | int, tuple[int, int]]:
        """Where the keys (or items) and values of the container at an offset begin."""
        if path in self.inside:
            return self.inside[path]
        places: dict[str | int, tuple[int, int]] = {}
        text, decode = self.document, json.JSONDecoder().raw_decode
        end = {"{": "}", "[": "]"}.get(text[at])
        at = self._skip(at + 1) if end else at
        while end and text[at] != end:
            step: str | int = len(places)
            key_at = at
            if end == "}":
                step, at = decode(text, at)
                at = self._skip(self._skip(at) + 1)
            places[step] = (key_at, at)
            at = self._skip(decode(text, at)[1])
            at = self._skip(at + 1) if text[at] == "," else at
        self.inside[path] = places
        return places

    def _skip(self, at: int) -> int:
        while self.document[at : at + 1] in (" ", "\t", "\r", "\n"):
            at += 1
        return at


def _short(text: str) -> str:
    """A foreign name for a message: quoted, on one line, not too long."""
    text = visible(text).replace("\n", "\\n")
    return f"`{text if len(text) <= 80 else text[:77] + '…'}`"

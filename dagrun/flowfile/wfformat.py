"""A recorded trace of WfCommons (WfFormat 1.5) as a workflow that behaves like it, but cheaply.

Each task becomes a node that checks its input files, sleeps its scaled time and writes its output
files; a `stage` node makes the files that no task makes. Writes the text of a workflow file and
knows nothing of how it runs; `wftrace.py` reads the trace.

Invariants: foreign text reaches a shell only as a file name of [A-Za-z0-9._-], flat below
`data_dir`; elsewhere it is a comment or a quoted scalar without control characters and without
`${{`. The same trace always gives the same text. No script is longer than one argument may be.
"""

from __future__ import annotations

import math
import re
from hashlib import sha256
from pathlib import PurePath
from typing import TYPE_CHECKING

from dagrun.core.names import DEFAULT_TIMEOUT_S, ID_MAX
from dagrun.errors import InputError, Problem, UsageError, visible
from dagrun.flowfile.wftrace import Trace, read_trace, reduced_needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["import_wfformat"]

MODELINE = "# yaml-language-server: $schema=../schemas/workflow.schema.json"
PART_BYTES = 60_000  # of checks and of writes in one node: Linux takes 131,072 bytes an argument
FLOW_BYTES = 32 * 1024 * 1024  # what the loader of workflows takes
FILE_NAME_MAX = 200  # bytes; file systems take 255
TEXT_MAX = 200  # characters: what a title may have
WIDTH = 100
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "true", "false", "on", "off", "null"})
_SAFE_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def import_wfformat(text: bytes, *, source: str, time_scale: float, size_scale: float, data_dir: str) -> str:
    """The text of a workflow that does what the trace `text` recorded, in the same order.

    A runtime of s seconds becomes a sleep of `s * time_scale` (0 where none is recorded), a file
    of n bytes a sparse one of `n * size_scale`. All files lie flat below `data_dir`, a path in
    [A-Za-z0-9._/-]. Order comes from parents, children and files; needs that others imply are
    left out. `source` names the trace in comments and errors.

    Raises InputError with every problem of the trace, UsageError for an unusable option.
    """
    _check_options(time_scale, size_scale, data_dir)
    trace = read_trace(text, source, time_scale)
    out = _Writer(trace, source, time_scale, size_scale, data_dir.rstrip("/")).text()
    if len(out) > FLOW_BYTES:
        message = "the workflow would be larger than the 32 MiB that a workflow may have"
        raise InputError((Problem(code="too-large", message=message, file=source),))
    return out


def _check_options(time_scale: float, size_scale: float, data_dir: str) -> None:
    for name, value in (("--time-scale", time_scale), ("--size-scale", size_scale)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} must be 0 or more, not {value}", hint=f"{name} 0.001")
    parts = set(data_dir.rstrip("/").split("/"))
    if not re.fullmatch(r"[A-Za-z0-9._/][A-Za-z0-9._/-]*", data_dir) or parts <= {""} or parts & {".", "..", ".dagrun"}:
        raise UsageError(
            f"--dir can't be {data_dir!r}",
            hint="name a folder for the files of the trace alone, with letters, digits, `.`, `_`, `-`: --dir data",
        )


# ---------------------------------------------------------------- names


def _as_id(name: str) -> str:
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    return clean if re.match("[A-Za-z_]", clean) else f"_{clean}"


def _as_file(name: str) -> str:
    """A flat name: a folder less to make, and no `a` beside an `a/b`."""
    return name if _SAFE_FILE.fullmatch(name) else re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._") or "_"


class _Names:
    """Safe names for foreign ones, distinct also when case is ignored; who has a safe one keeps it."""

    def __init__(self, foreign: Iterable[str], convert: Callable[[str], str], longest: int) -> None:
        self.convert = convert
        self.longest = longest
        self.taken: set[str] = set()
        self.counts: dict[str, int] = {}
        self.of: dict[str, str] = {}
        names = dict.fromkeys(foreign)
        for name in sorted(names, key=lambda name: convert(name) != name):
            self.of[name] = self.unique(name)

    def unique(self, name: str) -> str:
        """A safe name close to `name` that nobody has yet."""
        clean = self.convert(name)
        if len(clean) > self.longest:
            digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
            clean = f"{clean[: self.longest - 9]}-{digest[:8]}"
        made = clean
        while made.lower() in self.taken:
            count = self.counts[clean] = self.counts.get(clean, 1) + 1
            made = f"{clean[: self.longest - 9]}-{count}"
        self.taken.add(made.lower())
        return made


# ---------------------------------------------------------------- text


def _one_line(text: str) -> str:
    """Foreign text for a comment or a scalar: one printable line in which nothing is evaluated."""
    text = visible(text[: TEXT_MAX + 1]).replace("\n", " ").replace("${{", "$ {{")
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def _quoted(text: str) -> str:
    return "'" + _one_line(text).replace("'", "''") + "'"


def _key(name: str) -> str:
    """An id as a YAML key or item: quoted where other readers of YAML would see a boolean."""
    return f"'{name}'" if name.lower() in _YAML_WORDS else name


def _wrapped(start: str, words: Iterable[str], end: str, glue: str) -> Iterator[str]:
    """`start` words `end`, filled to lines of WIDTH; a line that goes on ends with `glue`."""
    line = start
    empty = True
    for word in words:
        if not empty and len(line) + len(word) > WIDTH:
            yield f"{line.rstrip()}{glue}"
            line, empty = "  ", True
        line += word if empty else f" {word}"
        empty = False
    yield line + end


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


# ---------------------------------------------------------------- the workflow


class _Writer:
    """Writes the nodes of a trace in its order, after the stage node.

    A task with more files than fit in one script gets nodes beside it: `-in-2` … check before
    it, `-out-2` … write after it, and what depends on the task waits for those.
    """

    def __init__(self, trace: Trace, source: str, time_scale: float, size_scale: float, folder: str) -> None:
        self.trace = trace
        self.source = source
        self.time_scale = time_scale
        self.size_scale = size_scale
        self.folder = folder
        files = (name for task in trace.tasks for name in (*task.inputs, *task.outputs))
        self.files = _Names(files, _as_file, FILE_NAME_MAX).of
        self.sizes = {self.files[f]: round(n * size_scale) for f, n in trace.sizes.items() if f in self.files}
        # a file with a size may stand in a command of its own, twice and with its folder
        self.cost = 2 * len(folder) + FILE_NAME_MAX + 60 if size_scale else 8
        self.names = _Names((task.id for task in trace.tasks), _as_id, ID_MAX)
        self.ids = [self.names.of[task.id] for task in trace.tasks]
        self.ends = [self._ends(i, f"{i}-out", task.outputs) for i, task in zip(self.ids, trace.tasks, strict=True)]

    def text(self) -> str:
        """The whole file."""
        lines = [*self._head(), "nodes:"]
        roots: list[str] = []
        if self.files:
            stage = self.names.unique("stage")
            roots = self._ends(stage, stage, self.trace.staged)
            lines += self._stage(stage, roots)
        for i, needs in enumerate(reduced_needs(self.trace.tasks)):
            lines += self._task(i, [end for need in needs for end in self.ends[need]] or roots)
        return "\n".join(lines) + "\n"

    def _head(self) -> Iterator[str]:
        trace = self.trace
        sizes = f"their recorded size x {self.size_scale:g}" if self.size_scale else "empty"
        version = f" {_one_line(trace.version)}" if trace.version else ""
        yield MODELINE
        counts = f"{_count(len(trace.tasks), 'task')}, {_count(len(self.files), 'file')}"
        yield f"# Made by `dagrun import wfformat` from {_one_line(self.source)} (WfFormat{version}: {counts})."
        yield f"# A node checks its input files, sleeps its recorded runtime x {self.time_scale:g} and writes its"
        yield f"# output files ({sizes}), all in {self.folder}/. Remove that folder for a fresh start."
        yield "version: 1"
        yield f"name: {_key(_as_id(PurePath(self.source).stem)[:ID_MAX])}"
        if trace.description:
            yield f"description: {_quoted(trace.description)}"
        yield "schedule: ready"

    def _parts(self, files: Iterable[str]) -> list[list[str]]:
        """The safe names in as many lists as keep each script short; always one."""
        parts: list[list[str]] = [[]]
        room = PART_BYTES
        for file in (self.files[name] for name in files):
            cost = len(file) + self.cost
            if room < cost:
                parts.append([])
                room = PART_BYTES
            room -= cost
            parts[-1].append(file)
        return parts

    def _ends(self, name: str, stem: str, files: list[str]) -> list[str]:
        """The nodes after which all the files exist that the node `name` stands for."""
        count = len(self._parts(files))
        return [self.names.unique(f"{stem}-{k}") for k in range(2, count + 1)] or [name]

    def _stage(self, name: str, ends: list[str]) -> Iterator[str]:
        """Makes the folder and what is missing in it: a file that lies there is the user's."""
        staged = self.trace.staged
        title = f"makes {_count(len(staged), 'file')} that no task makes" if staged else "makes the folder of the files"
        first, *rest = self._parts(staged)
        yield from _node(name, title, [], [f"mkdir -p {self.folder}", *self._writes(first, "[ -e {} ] || ")])
        for end, part in zip(ends, rest, strict=False):
            yield from _node(end, title, [name], self._writes(part, "[ -e {} ] || "))

    def _task(self, i: int, needs: list[str]) -> Iterator[str]:
        task, name = self.trace.tasks[i], self.ids[i]
        title = "" if task.id == name else task.id
        seconds = task.runtime_s * self.time_scale
        checks, *more_checks = self._parts(task.inputs)
        writes, *more_writes = self._parts(task.outputs)
        before = [self.names.unique(f"{name}-in-{k}") for k in range(2, len(more_checks) + 2)]
        for early, part in zip(before, more_checks, strict=True):
            yield from _node(early, title or name, needs, self._each(part, ": <{}"))
        script = [*self._each(checks, ": <{}")]
        script += [f"sleep {_number(seconds)}"] if _number(seconds) != "0" else []
        script += self._writes(writes, "")
        yield from _node(name, title, before or needs, script, seconds)
        for late, part in zip(self.ends[i], more_writes, strict=False):
            yield from _node(late, title or name, [name], self._writes(part, ""))

    def _writes(self, files: list[str], unless: str) -> Iterator[str]:
        """Commands that write the files, a command for each size."""
        by_size: dict[int, list[str]] = {}
        for file in files:
            by_size.setdefault(self.sizes.get(file, 0), []).append(file)
        for size, group in sorted(by_size.items()):
            if size and not unless:
                yield from _wrapped(f"truncate -s {size} ", [f"{self.folder}/{f}" for f in group], "", " \\")
            else:
                yield from self._each(group, unless + (f"truncate -s {size} {{}}" if size else ": >{}"))

    def _each(self, files: list[str], command: str) -> Iterator[str]:
        """The command for each file, by builtins alone: a process costs more than a hundred checks.

        A failed redirection of `:` says which file it was and ends the shell.
        """
        if len(files) == 1:
            yield command.format(*[f"{self.folder}/{files[0]}"] * 2)
        elif files:
            loop = command.format(*[f'"{self.folder}/$f"'] * 2)
            *lines, last = _wrapped("for f in ", files, "", " \\")
            yield from lines
            if lines or len(last) + len(loop) > WIDTH:
                yield last
                yield f"do {loop}; done"
            else:
                yield f"{last}; do {loop}; done"


def _node(name: str, title: str, needs: list[str], script: Iterable[str], seconds: float = 0) -> Iterator[str]:
    """The lines of a node. A lone sleep stays a plain command, which needs no shell."""
    yield f"  {_key(name)}:"
    if title.strip():
        yield f"    title: {_quoted(title)}"
    if len(needs) == 1:
        yield f"    needs: {_key(needs[0])}"
    elif needs:
        words = [f"{_key(need)}," for need in needs[:-1]] + [_key(needs[-1])]
        yield from (f"    {line}" for line in _wrapped("needs: [", words, "]", ""))
    if _number(seconds) != "0":
        yield f"    estimate: {_number(seconds)}s"
    if seconds > DEFAULT_TIMEOUT_S / 2:
        yield f"    timeout: {math.ceil(seconds + DEFAULT_TIMEOUT_S)}s"
    lines = list(script) or ["'true'"]
    if len(lines) == 1 and lines[0].startswith(("sleep", "'")):
        yield f"    run: {lines[0]}"
    else:
        yield "    run: |"
        yield from (f"      {line}" for line in lines)

"""A workflow file into a checked Workflow: the way in for `validate`, `plan`, `execute`, `replan`.

Reads bytes, asks the cache, and only for a file it never saw imports YAML and pydantic. All that is
wrong (text, shape, ids, references, expressions, graph) is reported at once, in the order of the
file: what is wrong in one node does not hide, nor cause, errors in another.
"""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dagrun.core.workflow import Workflow
from dagrun.errors import InputError, Problem, UsageError
from dagrun.flowfile import cache

MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked workflow, and what is not wrong with it but worth a word."""

    workflow: Workflow
    warnings: tuple[Problem, ...] = ()


def read_workflow(path: str, *, use_cache: bool = True) -> Loaded:
    """The checked workflow in the file `path`; `-` reads stdin.

    Raises InputError with all problems of the file, UsageError when there is no such file or it
    can't be read.
    """
    data = _read(path)
    base = os.getcwd() if path == "-" else os.path.dirname(os.path.abspath(path))
    return read_workflow_text(data, "<stdin>" if path == "-" else path, base, use_cache=use_cache)


def read_workflow_text(data: bytes, file: str, base_dir: str, *, use_cache: bool = True) -> Loaded:
    """The checked workflow in `data`; `file` is its name in messages, `base_dir` where its paths begin.

    Raises InputError with all problems.
    """
    with _no_gc():
        hit = cache.find(data, file, base_dir) if use_cache else None
        if hit:
            return Loaded(*hit)
        from dagrun.flowfile.assemble import assemble

        workflow, warnings, files = assemble(data, file, base_dir)
        if use_cache:
            cache.keep(data, file, workflow, warnings, files)
        return Loaded(workflow, warnings)


@contextmanager
def _no_gc() -> Iterator[None]:
    """A big file makes a million objects and no garbage cycle: don't look for one."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _read(path: str) -> bytes:
    """All bytes of a file, but not many more than a workflow may have."""
    try:
        if path == "-":
            import sys

            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with open(path, "rb") as handle:
            if stat.S_ISREG(os.fstat(handle.fileno()).st_mode) and os.fstat(handle.fileno()).st_size > MAX_BYTES:
                message = f"the file is larger than {MAX_BYTES >> 20} MiB"
                raise InputError((Problem(code="too-big", message=message, file=path),))
            return handle.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no file {path}", hint=_neighbours(path)) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory, not a workflow file", hint=_inside(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"can't read {path}: {reason}") from None


def _yaml_files(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder or "."))[:10_000]
    except OSError:
        return []
    return [os.path.join(folder, n) for n in names if n.endswith((".yaml", ".yml", ".json"))]


def _neighbours(path: str) -> str:
    from difflib import get_close_matches

    there = _yaml_files(os.path.dirname(path))
    near = get_close_matches(path, there, n=1, cutoff=0.6)
    if not near:
        stem = os.path.splitext(path)[0]
        near = [f for f in there if os.path.splitext(f)[0] == stem]
    if near:
        return f"did you mean {near[0]}?"
    workflows = [f for f in there if not f.endswith(".json")]
    return f"here are {', '.join(workflows[:5])}" if workflows else "dagrun init writes one to start from"


def _inside(path: str) -> str:
    there = [f for f in _yaml_files(path) if not f.endswith(".json")]
    return f"did you mean {there[0]}?" if len(there) == 1 else f"it holds {', '.join(there[:5])}" if there else ""

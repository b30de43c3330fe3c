"""Checked workflows by content, in the user's cache folder: a file seen before needs no YAML, no pydantic.

An entry is one file: the sha256 of the rest in its first line, then JSON with the workflow, the
warnings and the digest of every file that the workflow names. It is trusted only if it and its
folder belong to the user and nobody else may write them. The cache never fails a run: what can't
be read is a miss, what can't be written is not kept.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import cast

from dagrun import __version__
from dagrun.core.names import Json
from dagrun.core.workflow import Workflow, workflow_from_json, workflow_to_json
from dagrun.errors import Problem

FORMAT = 6  # of the entries and of what checking means: raise it when either changes
MAX_FILES = 64
MAX_BYTES = 256 * 1024 * 1024

Found = tuple[Workflow, tuple[Problem, ...]]


def folder() -> str:
    """Where the entries are; empty when this user has no place for a cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = os.path.expanduser("~")
        base = os.path.join(home, ".cache") if os.path.isabs(home) else ""
    return os.path.join(base, "dagrun", "plans") if base else ""


def _path(data: bytes, file: str) -> str:
    digest = sha256(f"dagrun {__version__} {FORMAT} {os.path.basename(file)}\n".encode("utf-8", "surrogateescape"))
    digest.update(data)
    where = folder()
    return os.path.join(where, digest.hexdigest() + ".json") if where else ""


def find(data: bytes, file: str, base_dir: str) -> Found | None:
    """The workflow and warnings that `keep` got for the same bytes, or None. Never raises."""
    path = _path(data, file)
    try:
        entry = _trusted(path) if path else None
        if entry is None:
            return None
        for name, digest in cast("dict[str, str]", entry["files"]).items():
            if _digest(os.path.join(base_dir, name)) != digest:
                return None
        workflow = replace(workflow_from_json(cast("dict[str, Json]", entry["workflow"])), file=file)
        warnings = tuple(_problem(cast("dict[str, Json]", w), file) for w in cast("list[Json]", entry["warnings"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return workflow, warnings


def keep(
    data: bytes, file: str, workflow: Workflow, warnings: tuple[Problem, ...], files: tuple[tuple[str, str], ...]
) -> None:
    """Keep what checking `data` gave. Never raises."""
    path = _path(data, file)
    if not path:
        return
    entry = {
        "workflow": workflow_to_json(replace(workflow, file="")),
        "warnings": [_warning(w, file) for w in warnings],
        "files": dict(files),
    }
    try:
        body = json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if not _private(os.stat(os.path.dirname(path))):
            return
        _write(path, sha256(body).hexdigest().encode() + b"\n" + body)
        _prune(os.path.dirname(path))
    except (OSError, ValueError, TypeError):
        return


def _private(info: os.stat_result) -> bool:
    return info.st_uid == os.geteuid() and not info.st_mode & 0o022


def _trusted(path: str) -> dict[str, Json] | None:
    """The entry in a file that only this user can have written, whole; else None."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as opened:
        info = os.fstat(handle)
        if not (stat.S_ISREG(info.st_mode) and _private(info) and _private(os.stat(os.path.dirname(path)))):
            return None
        content = opened.read()
    body = content[65:]
    if content[:65] != sha256(body).hexdigest().encode() + b"\n":
        return None
    with suppress(OSError):
        os.utime(path)  # what was used last is dropped last
    return cast("dict[str, Json]", json.loads(body))


def _digest(path: str) -> str:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as opened:
        return sha256(opened.read()).hexdigest() if stat.S_ISREG(os.fstat(handle).st_mode) else ""


def _write(path: str, content: bytes) -> None:
    """Put a whole file in place of another; who reads sees the old or the new one."""
    partial = f"{path}.{os.getpid()}.tmp"
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(handle, "wb") as opened:
            opened.write(content)
        os.replace(partial, path)
    except OSError:
        os.unlink(partial)
        raise


def _prune(where: str) -> None:
    """Drop what was longest not used, above the limits; partial files of dead processes too."""
    with os.scandir(where) as entries:
        found = [(e.stat(follow_symlinks=False), e.path) for e in entries if e.is_file(follow_symlinks=False)]
    found.sort(key=lambda f: f[0].st_mtime, reverse=True)
    total = 0
    for k, (info, path) in enumerate(found):
        total += info.st_size
        stale = path.endswith(".tmp") and info.st_mtime < found[0][0].st_mtime - 3600
        if k >= MAX_FILES or total > MAX_BYTES or stale:
            os.unlink(path)


def _warning(problem: Problem, file: str) -> dict[str, Json]:
    """A warning as JSON; the name of the workflow file is left out, since the same text may have another."""
    made = cast("dict[str, Json]", problem.to_json())
    made["file"] = "" if problem.file == file else problem.file
    made["excerpt"] = [[n, text] for n, text in problem.excerpt]
    made["shift"] = problem.shift
    return made


def _problem(data: dict[str, Json], file: str) -> Problem:
    kw = dict(data)
    excerpt = tuple((int(cast(int, n)), str(text)) for n, text in cast("list[list[Json]]", kw.pop("excerpt")))
    kw["file"] = kw["file"] or file
    return Problem(excerpt=excerpt, **kw)  # type: ignore[arg-type]

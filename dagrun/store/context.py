"""The context store: output values and artifacts of finished attempts, and the files of an exchange.

Values are kept by reference: a small one rides in the journal (`{"v": value}`), a large one is a
file named by its digest (`{"sha": hex, "size": bytes}`), durable before anybody mentions it.
Artifacts are copied, since the node or a later one may change the original.

What nodes wrote is hostile until read here: regular files only, never through a symbolic link in
the last place, capped, UTF-8. What is wrong with it is an OutputError, which the engine turns
into the outcome `invalid_output`.
"""

from __future__ import annotations

import os
from json import JSONEncoder
from typing import TYPE_CHECKING, cast

from dagrun.errors import EnvironmentFault
from dagrun.store.disk import disk_fault, sync_folder, write_all, write_atomic
from dagrun.store.fault import ARMED, fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dagrun.core.names import Json
    from dagrun.store.artifacts import Opener
    from dagrun.store.rundir import RunDir

INLINE_BYTES = 4096

_encode = JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ALWAYS_INLINE_CHARS = 680  # a character takes at most six bytes (\u0000)


def encoded(value: Json) -> bytes:
    """A value as its file holds it: what its digest is of. Raises ValueError for what JSON can't hold (nan)."""
    return _encode(value).encode("utf-8", "backslashreplace")


class ContextStore:
    """The values and artifacts of one run."""

    __slots__ = ("_artifacts", "_values")

    def __init__(self, run: RunDir) -> None:
        self._values = run.values
        self._artifacts = run.artifacts

    def put(self, value: Json) -> dict[str, Json]:
        """Keep a value; the reference goes into the journal. Durable on return.

        Raises DiskFull or JournalError, and ValueError for what JSON can't hold (nan).
        """
        if type(value) is str and len(value) <= _ALWAYS_INLINE_CHARS:
            return {"v": value}
        data = encoded(value)
        if len(data) <= INLINE_BYTES:
            return {"v": value}
        from hashlib import sha256

        sha = sha256(data).hexdigest()
        path = f"{self._values}/{sha}.json"
        try:
            if not _has_size(path, len(data)):
                _make_folder(self._values)
                if ARMED:
                    fault("values.before_rename")
                write_atomic(path, data, mode=0o400, durable=True)
                if ARMED:
                    fault("values.after_rename")
        except OSError as error:
            raise disk_fault("can't write", path, error) from error
        return {"sha": sha, "size": len(data)}

    def get(self, ref: Mapping[str, Json]) -> Json:
        """The value of a reference. Raises EnvironmentFault when its file is gone or was changed."""
        if "v" in ref:
            return ref["v"]
        from hashlib import sha256
        from json import loads

        path = f"{self._values}/{ref['sha']}.json"
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.readall()
        except OSError as error:
            raise disk_fault("can't read the output value", path, error) from error
        if sha256(data).hexdigest() != ref["sha"]:
            raise EnvironmentFault(
                f"the output value {path} was changed after it was written: its digest does not match",
                hint="put the file back, or run the node that made it again in a new run",
            )
        return cast("Json", loads(data))

    def store_artifacts(
        self,
        patterns: Sequence[str],
        base_dir: str,
        reach: Opener | None = None,
        clean: Callable[[int], None] | None = None,
    ) -> list[dict[str, Json]]:
        """Copy what `patterns` match below `base_dir`: [{path, sha, size, mode}], sorted by path.

        A name without wildcards must be there; a pattern may match nothing. `reach` opens the files
        of a confined node: then no link is followed; `clean` may change what is in a copy. Raises
        OutputError for what may not or can't be taken, DiskFull or JournalError when the store can't
        be written.
        """
        if not patterns:
            return []
        from dagrun.store.artifacts import collect, copy_in

        found = collect(patterns, base_dir, links=reach is None)
        if not found:
            return []
        try:
            _make_folder(self._artifacts)
            stored = [copy_in(path, base_dir, self._artifacts, reach, clean) for path in found]
            sync_folder(self._artifacts)
        except OSError as error:
            raise disk_fault("can't keep artifacts in", self._artifacts, error) from error
        return stored

    def artifact_path(self, sha: str) -> str:
        """Where the content of an artifact lies."""
        return f"{self._artifacts}/{sha}"


def write_inputs(path: str, inputs: Mapping[str, Json]) -> None:
    """The file that $DAGRUN_INPUTS names: one JSON object. Raises DiskFull or JournalError."""
    data = _encode(inputs).encode("utf-8", "backslashreplace") + b"\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
    except OSError as error:
        raise disk_fault("can't write", path, error) from error


def _has_size(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except OSError:
        return False


def _make_folder(path: str) -> None:
    """Make a folder of the run, durably, unless it is there. Raises OSError."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    sync_folder(os.path.dirname(path))

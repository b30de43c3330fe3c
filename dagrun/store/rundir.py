"""Where runs live: `.dagrun/runs/<id>/` in the project, its layout, finding and removing runs.

    .dagrun/.gitignore, README         it ignores itself, and says whose it is
    .dagrun/runs/<id>/journal.jsonl    what happened; the truth
                      execute.lock     held by the engine of the run
                      meta.json        {"created": ns}: an index, can be rebuilt
                      plan.json        the plan as it was when the run began
                      nodes/           logs: <node>.<attempt>.out and .err
                      values/          large output values by sha256
                      artifacts/       artifacts by sha256
                      ballast          room for a last event when the disk is full

Ids are short, begin with a letter and never hold i, l, o or u. Nothing here reads events, but
for the time of the first record when an index is lost.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from time import time_ns
from typing import TYPE_CHECKING, cast

from dagrun.errors import EnvironmentFault, JournalError, NotFoundError, RunLockedError
from dagrun.store.disk import check_filesystem, disk_fault, sync_folder, write_atomic
from dagrun.store.fault import ARMED, fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagrun.core.names import Json
    from dagrun.store.lock import Lock

FOLDER = ".dagrun"
NO_RUN = "there is no run in this project yet"
BALLAST_BYTES = 256 * 1024

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LETTERS = _ALPHABET[10:]
_ID = re.compile(r"[a-z][0-9a-z]{3,31}")
_README = """\
This folder belongs to dagrun: what happened in the runs of this project, one folder a run.
`dagrun runs` lists them, `dagrun runs gc` removes old ones. It is safe to delete as a whole
while nothing runs; runs in it can then not be shown or resumed any more.
"""


class RunDir:
    """The folder of one run: its paths, lock and index."""

    __slots__ = ("id", "path")

    def __init__(self, path: str, id: str) -> None:  # noqa: A002  (what everybody calls it)
        self.path = path
        self.id = id

    def __repr__(self) -> str:
        return f"RunDir({self.path!r}, {self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunDir) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def journal(self) -> str:
        return f"{self.path}/journal.jsonl"

    @property
    def lock_file(self) -> str:
        return f"{self.path}/execute.lock"

    @property
    def meta(self) -> str:
        return f"{self.path}/meta.json"

    @property
    def plan(self) -> str:
        return f"{self.path}/plan.json"

    @property
    def nodes(self) -> str:
        return f"{self.path}/nodes"

    @property
    def values(self) -> str:
        return f"{self.path}/values"

    @property
    def artifacts(self) -> str:
        return f"{self.path}/artifacts"

    @property
    def ballast(self) -> str:
        return f"{self.path}/ballast"

    def log(self, node: str, attempt: int, stream: str) -> str:
        """The file of what an attempt wrote; `stream` is `out` or `err`."""
        return f"{self.path}/nodes/{node}.{attempt}.{stream}"

    def lock(self, info: Mapping[str, Json]) -> Lock:
        """The right to execute this run, until released or dead; `info` adds to who holds it.

        Waits up to 10 s for a holder that is dying. Raises RunLockedError with pid, host and since.
        """
        from dagrun.store.lock import acquire

        return acquire(self.lock_file, self.id, info)

    def lock_holder(self) -> dict[str, Json] | None:
        """Who executes this run: what it wrote into the lock (pid, host, since …); None if nobody."""
        from dagrun.store.lock import holder

        return holder(self.lock_file)

    def created_ns(self) -> int:
        """When the run was made, in ns since 1970; from the journal or the folder if the index is lost."""
        created = self.read_meta().get("created")
        return created if isinstance(created, int) else self._rebuild_created()

    def read_meta(self) -> dict[str, Json]:
        """The index of the run; empty when there is none or it is damaged."""
        from json import loads

        try:
            with open(self.meta, "rb", buffering=0) as file:
                data = loads(file.read())
        except (OSError, ValueError, RecursionError):
            return {}
        return cast("dict[str, Json]", data) if isinstance(data, dict) else {}

    def write_meta(self, meta: Mapping[str, Json]) -> None:
        """Replace the index, all or nothing. Raises JournalError."""
        from json import dumps

        try:
            write_atomic(self.meta, dumps(meta).encode() + b"\n")
        except OSError as error:
            raise disk_fault("can't write", self.meta, error) from error

    def _rebuild_created(self) -> int:
        from dagrun.store.journal import Journal

        created = 0
        with suppress(JournalError, RunLockedError):
            journal = Journal.open(self.journal, write=False)
            try:
                records = journal.read()
                created = int(records[0].t * 1e9) if records else 0
            finally:
                journal.close()
        if not created:
            with suppress(OSError):
                created = os.stat(self.path).st_mtime_ns
        with suppress(JournalError):  # only an index: on a read-only disk it is computed each time
            self.write_meta({**self.read_meta(), "created": created})
        return created

    def drop_ballast(self) -> bool:
        """Give back the 256 KiB kept for a full disk; whether there was any to give."""
        try:
            os.unlink(self.ballast)
        except OSError:
            return False
        return True

    def keep_ballast(self) -> None:
        """Have the ballast in place (again); quietly does without where there is no room."""
        if os.path.exists(self.ballast):
            return
        with suppress(OSError):
            fd = os.open(self.ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, BALLAST_BYTES)
            finally:
                os.close(fd)


# ---------------------------------------------------------------- making


def new_run(project: str) -> RunDir:
    """A new, empty run in the folder `project` (made durable with its journal). Raises EnvironmentFault."""
    base = _prepare(project)
    runs = f"{base}/runs"
    length, tries = 4, 0
    try:
        while True:
            name = _new_id(length)
            try:
                os.mkdir(f"{runs}/{name}", 0o700)
                break
            except FileExistsError:
                tries += 1
                if tries % 10 == 0:
                    length += 1
        run = RunDir(f"{runs}/{name}", name)
        if ARMED:
            fault("run.after_mkdir")
        os.mkdir(run.nodes, 0o700)
        run.write_meta({"created": time_ns()})
        run.keep_ballast()
        sync_folder(runs)
    except OSError as error:
        raise _unwritable(base, error) from error
    return run


def _new_id(length: int) -> str:
    raw = os.urandom(length)
    return _LETTERS[raw[0] % len(_LETTERS)] + "".join(_ALPHABET[b & 31] for b in raw[1:])


def _prepare(project: str) -> str:
    """The absolute `.dagrun` of a project, made if needed, on a disk that can hold a journal."""
    base = os.path.join(os.path.abspath(project), FOLDER)
    check_filesystem(base if os.path.isdir(base) else os.path.abspath(project))
    try:
        if not os.path.isdir(f"{base}/runs"):
            os.makedirs(f"{base}/runs", mode=0o700, exist_ok=True)
        for name, text in ((".gitignore", "*\n"), ("README", _README)):
            if not os.path.exists(f"{base}/{name}"):
                write_atomic(f"{base}/{name}", text.encode(), mode=0o644)
    except OSError as error:
        raise _unwritable(base, error) from error
    return base


def _unwritable(base: str, error: OSError) -> EnvironmentFault:
    import errno

    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "the disk is mounted read-only" if error.errno == errno.EROFS else "permission denied"
        return EnvironmentFault(
            f"can't write to {base}: {reason}",
            hint="runs are kept in the project's folder: use a copy of it that you can write to (dagrun -C DIR …)",
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return EnvironmentFault(
            f"{error.filename or base} is in the way: runs are kept in the folder {base}",
            hint="move or delete that file",
        )
    return disk_fault("can't make a run in", base, error)


# ---------------------------------------------------------------- finding


def list_runs(project: str, *, unstarted: bool = False) -> list[RunDir]:
    """The runs of a project, newest first; without a journal (never begun) only if `unstarted`."""
    base = os.path.join(os.path.abspath(project), FOLDER, "runs")
    found: list[tuple[int, RunDir]] = []
    for name in _names(base):
        run = RunDir(f"{base}/{name}", name)
        if unstarted or os.path.exists(run.journal):
            found.append((run.created_ns(), run))
    found.sort(key=lambda item: (item[0], item[1].id), reverse=True)
    return [run for _, run in found]


def _names(base: str) -> list[str]:
    try:
        names = os.listdir(base)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise disk_fault("can't list", base, error) from error
    return [name for name in names if _ID.fullmatch(name)]


def find_run(project: str, text: str | None) -> RunDir:
    """The run that `text` means: an id, a unique prefix of one, `last` or None for the newest.

    Raises NotFoundError, with what it might have been.
    """
    if text is None or text == "last":
        runs = list_runs(project)
        if not runs:
            raise NotFoundError(NO_RUN, hint=where_runs_are(project))
        # what was made for another run (a suggestion) is not what a person did last
        return next((run for run in runs if not run.read_meta().get("for")), runs[0])
    base = os.path.join(os.path.abspath(project), FOLDER, "runs")
    names = _names(base)
    wanted = text.lower()
    if wanted in names:
        return RunDir(f"{base}/{wanted}", wanted)
    matches = sorted(name for name in names if wanted and name.startswith(wanted))
    if len(matches) == 1:
        return RunDir(f"{base}/{matches[0]}", matches[0])
    if matches:
        shown = ", ".join(matches[:5]) + (f" and {len(matches) - 5} more" if len(matches) > 5 else "")
        raise NotFoundError(f"{text} could be {len(matches)} runs: {shown}", hint="write more of the id")
    raise NotFoundError(f"there is no run {text}", hint=_suggest(project, wanted, names))


def where_runs_are(project: str) -> str:
    """What to type in a project without runs: the nearest folder above it that has some, or how to start one."""
    folder, up = os.path.abspath(project), ".."
    while (above := os.path.dirname(folder)) != folder:
        with suppress(JournalError):
            if _names(os.path.join(above, FOLDER, "runs")):
                return f"there are runs in {up}: dagrun -C {up} runs"
        folder, up = above, f"{up}/.."
    return "start one: dagrun execute FILE"


def _suggest(project: str, wanted: str, names: list[str]) -> str:
    if not names:
        return f"{NO_RUN}; {where_runs_are(project)}"
    from difflib import get_close_matches

    close = get_close_matches(wanted, names, n=1)
    return (f"did you mean {close[0]}? " if close else "") + "see your runs: dagrun runs"


# ---------------------------------------------------------------- removing


def remove(run: RunDir) -> None:
    """Delete a run for ever. Raises RunLockedError while it is being executed, JournalError if it can't."""
    from shutil import rmtree

    lock = run.lock({})
    trash = f"{os.path.dirname(run.path)}/.trash-{run.id}"
    try:
        # Gone under one name at once: half a run is never listed.
        os.rename(run.path, trash)
        rmtree(trash)
    except OSError as error:
        raise disk_fault("can't remove", run.path, error) from error
    finally:
        lock.release()


def sweep(project: str) -> int:
    """Delete what interrupted removals left; how many of them. Quietly leaves what it can't."""
    from shutil import rmtree

    base = os.path.join(os.path.abspath(project), FOLDER, "runs")
    done = 0
    with suppress(OSError):
        for name in os.listdir(base):
            if name.startswith(".trash-"):
                rmtree(f"{base}/{name}", ignore_errors=True)
                done += not os.path.exists(f"{base}/{name}")
    return done

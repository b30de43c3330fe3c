"""The folder in which dagrun keeps what belongs to a container and must stay out of its reach.

Below the folder of the run, one for each container: the variables and secrets that the engine reads,
what the wrapper writes down, things to cover other things with. Beside them, shared: the filter of
system calls, and an empty folder of settings.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from dagrun.sandbox.container_end import Notes
from dagrun.sandbox.container_line import Line
from dagrun.sandbox.container_script import GO, UP
from dagrun.sandbox.container_seccomp import profile
from dagrun.sandbox.netproxy_later import ASK, SAID

FOLDER = "containers"  # in the folder of a run
_NOTE_BYTES = 64 * 1024


def make_folder(run_dir: str, name: str) -> str:
    """The folder of a new container, and what all containers of the run share."""
    shared = os.path.join(os.path.abspath(run_dir), FOLDER)
    folder = os.path.join(shared, name)
    os.makedirs(shared, mode=0o700, exist_ok=True)
    os.makedirs(os.path.join(shared, "config"), mode=0o700, exist_ok=True)
    os.mkdir(folder, 0o700)
    rules = os.path.join(shared, "seccomp.json")
    # A run that goes on may have the filter of an older dagrun.
    if _read(rules).encode() != profile():
        draft = os.path.join(folder, "seccomp")
        _write(draft, profile(), 0o600)
        os.replace(draft, rules)
    return folder


def make_pipes(folder: str) -> None:
    """What a container that is held to a list of hosts waits at; its user can use two of them, nobody else any."""
    for name, mode in ((UP, 0o622), (GO, 0o444), (ASK, 0o600), (SAID, 0o600)):
        path = os.path.join(folder, name)
        os.mkfifo(path, mode)
        os.chmod(path, mode)


def settings(run_dir: str) -> str:
    """An empty folder in place of the user's settings of the engine."""
    return os.path.join(os.path.abspath(run_dir), FOLDER, "config")


def write_files(line: Line, folder: str, user: tuple[int, int]) -> None:
    """What the arguments of `run` speak of. Secrets can be read by the user of the container alone."""
    for name, data in line.files.items():
        path = os.path.join(folder, name)
        if name != "secret":
            _write(path, data, 0o600)
        elif os.getuid() == 0:
            _write(path, data, 0o400)
            os.chown(path, *user)
        else:
            # For another user by mode: the folder above is closed to everybody else.
            _write(path, data, 0o400 if user[0] == os.getuid() else 0o444)


def read_notes(folder: str) -> Notes:
    """What the wrapper wrote down."""
    texts = {name: _read(os.path.join(folder, name)) for name in ("end", "fault", "refused", "tail", "left", "shut")}
    return Notes(
        **texts,
        pulling=is_pulling(folder),
        made=os.path.exists(os.path.join(folder, "made")),
        removed=os.path.exists(os.path.join(folder, "removed")),
        killed=os.path.exists(os.path.join(folder, "killed")),
    )


def mark_killed(folder: str) -> None:
    """Tell the wrapper that the end is wanted: nothing is started any more, nothing asked afterwards."""
    _write(os.path.join(folder, "killed"), b"", 0o600)


def is_pulling(folder: str) -> bool:
    """Whether the wrapper is getting the image: there is no container yet, and there may never be."""
    return os.path.exists(os.path.join(folder, "pulling"))


def folders(run_dir: str) -> list[str]:
    """The names of the containers that have a folder in the folder of a run."""
    try:
        found = os.listdir(os.path.join(os.path.abspath(run_dir), FOLDER))
    except OSError:
        return []
    return [name for name in found if name.startswith("dagrun-")]


def clear(run_dir: str, names: Iterable[str]) -> None:
    """Remove what belongs to these containers, which are dead: secrets may be in it."""
    for name in names:
        shutil.rmtree(os.path.join(os.path.abspath(run_dir), FOLDER, name), ignore_errors=True)


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_NOTE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""

"""What the engine reads for a confined attempt: nothing that the attempt itself could not have read."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dagrun.engine.reach import Reach
from dagrun.sandbox.wall import Spec
from dagrun.store.beneath import open_beneath, open_file
from dagrun.store.exchange import OutputError


def reach(project: Path, began_ns: int | None = None, **more: object) -> Reach:
    base = Spec(
        attempt_id="r/a/1",
        run_id="r",
        run_dir=f"{project}/.dagrun/runs/r",
        node="a",
        argv=("true",),
        env={},
        cwd=str(project),
        project=str(project),
        read=("src",),
        write=("out",),
        hidden=(f"{project}/.dagrun",),
    )
    spec = replace(base, **more)  # type: ignore[arg-type]
    return Reach(spec, time.time_ns() if began_ns is None else began_ns)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    found = tmp_path / "project"
    for name in ("src/a", "out/b", "out/deep/er/c", "other/d", ".dagrun/e", "src/.env", "out/[x]/.env.local"):
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text(name)
    return found


def text(found: Reach, path: str) -> str:
    fd = found.open(path, path)
    assert fd is not None
    with open(fd) as file:
        return file.read()


@pytest.mark.parametrize("name", ["src/a", "out/b", "out/deep/er/c", "./out//b", "out/deep/../b"])
def test_what_is_granted_is_read(project: Path, name: str) -> None:
    assert text(reach(project), name) == os.path.normpath(name)
    assert text(reach(project), f"{project}/{name}") == os.path.normpath(name)


@pytest.mark.parametrize("name", ["other/d", "../elsewhere", "/etc/hostname", "out/../other/d", "srca", "."])
def test_what_is_not_granted_is_refused(project: Path, name: str) -> None:
    with pytest.raises(OutputError, match="may not read"):
        reach(project).open(name, "x")


def test_what_is_hidden_is_refused_even_where_files_are_not_held(project: Path) -> None:
    for read in ((".",), None):
        with pytest.raises(OutputError, match="hidden"):
            reach(project, read=read).open(".dagrun/e", "x")
    assert text(reach(project, read=None), "other/d") == "other/d"


@pytest.mark.parametrize(
    ("deny", "name"),
    [
        (".env*", "src/.env"),
        (".env*", "out/[x]/.env.local"),
        ("out/deep", "out/deep/er/c"),
        ("out/*/er/**", "out/deep/er/c"),
        ("deep", "out/deep/er/c"),
        ("b", "out/b"),
    ],
)
def test_what_is_denied_is_refused(project: Path, deny: str, name: str) -> None:
    found = reach(project, began_ns=0)
    assert text(found, name) == name  # but for `deny` it could be read
    with pytest.raises(OutputError, match="denied"):
        reach(project, began_ns=0, deny=(deny,)).open(name, "x")


def test_a_name_above_the_grant_is_not_denied(tmp_path: Path) -> None:
    project = tmp_path / ".env-project"
    (project / "src").mkdir(parents=True)
    (project / "src/a").write_text("a")
    assert text(reach(project, deny=(".env*",)), "src/a") == "a"


def test_keys_that_were_there_are_refused_and_those_made_since_are_not(project: Path) -> None:
    (project / "out/server.key").write_text("key")
    assert text(reach(project, began_ns=0), "out/server.key") == "key"
    later = time.time_ns() + 60_000_000_000
    with pytest.raises(OutputError, match="keys"):
        reach(project, began_ns=later).open("out/server.key", "x")
    assert text(reach(project, began_ns=later, write=("out/server.key",)), "out/server.key") == "key"


def test_no_link_is_followed_wherever_it_stands(project: Path) -> None:
    (project / "out/link").symlink_to("b")
    (project / "out/folder").symlink_to("deep")
    (project / "out/far").symlink_to("/etc")
    for name in ("out/link", "out/folder/er/c", "out/far/hostname"):
        with pytest.raises(OutputError, match="symbolic link"):
            reach(project).open(name, "x")


def test_only_regular_files_and_never_a_wait(project: Path) -> None:
    os.mkfifo(project / "out/pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(project / "out")
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    for name, why in (("out/pipe", "named pipe"), ("out/socket", "socket"), ("out/deep", "folder")):
        with pytest.raises(OutputError, match=why):
            reach(project).open(name, "x")
    assert reach(project).open("out/absent", "x") is None


def test_a_hard_link_to_the_file_of_somebody_else_is_refused(project: Path) -> None:
    if os.getuid():
        pytest.skip("needs root, to make a file of somebody else")
    os.link(project / "src/a", project / "out/own")
    assert text(reach(project), "out/own") == "src/a"
    os.chown(project / "src/a", 65534, 65534)
    with pytest.raises(OutputError, match="hard link"):
        reach(project).open("out/own", "x")
    os.chown(project / "src/a", 0, 0)
    with pytest.raises(OutputError, match="hard link"):  # a container is never root: it could not read this
        reach(project, level="container").open("out/own", "x")


def test_a_folder_that_becomes_a_link_meanwhile_never_leads_outside(project: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "er").mkdir(parents=True)
    (secret / "er/c").write_text("canary")
    link, folder = project / "out/deep", project / "out/moved"
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            os.rename(link, folder)
            os.symlink(secret, link)
            os.unlink(link)
            os.rename(folder, link)

    swapper = threading.Thread(target=swap)
    swapper.start()
    read, refused = 0, 0
    try:
        while (read < 200 or refused < 20) and read + refused < 200_000:
            try:
                fd = open_file(str(project), "out/deep/er/c", "x")
            except OutputError:
                refused += 1
                continue
            if fd is not None:
                read += 1
                with open(fd) as file:
                    assert file.read() == "out/deep/er/c"
    finally:
        over.set()
        swapper.join()
    assert read
    assert refused


def test_a_path_does_not_leave_its_base(project: Path) -> None:
    for name in ("../other", "/etc/hostname", "./../out/b"):
        with pytest.raises(OSError, match="cross-device"):
            open_beneath(str(project / "src"), name)
    with pytest.raises(OSError, match="NUL"):
        open_beneath(str(project), "a\0b")

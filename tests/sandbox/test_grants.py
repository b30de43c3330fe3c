"""Grants: what is opened, what is refused with which words, and what stays shut inside."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import grants_open
from dagrun.sandbox.grants import MAX_FILES, Grants, is_key, open_grants, sockets_in
from dagrun.sandbox.grants_cover import MAX_COVERS
from dagrun.sandbox.grants_open import Budget, TooMuch, expand, link_in, open_exactly
from dagrun.sandbox.grants_protect import PROTECTED
from dagrun.sandbox.wall import Refused, Spec
from tests.sandbox.descriptors import descriptors_kept


@pytest.fixture(autouse=True)
def no_descriptor_is_lost() -> Iterator[None]:
    with descriptors_kept():
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("home/data", "project/src/deep", "project/out", "project/.dagrun", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project/src/a.py").write_text("a")
    return tmp_path / "project"


def spec(project: Path, **more: object) -> Spec:
    made = Spec(
        attempt_id="run/build/1",
        run_id="run",
        run_dir="",
        node="build",
        argv=("true",),
        env={},
        cwd=str(project),
        project=str(project),
        read=(".",),
        hidden=(str(project / ".dagrun"),),
    )
    return replace(made, **more)  # type: ignore[arg-type]


class Seen:
    """What was opened, relative to the project, with everything closed again."""

    def __init__(self, project: Path, **more: object) -> None:
        found = open_grants(spec(project, **more))
        try:
            self._look(found, project)
        finally:
            found.close()

    def _look(self, found: Grants, project: Path) -> None:
        def short(path: str) -> str:
            return os.path.relpath(path, project)

        self.read = [short(root.path) for root in found.roots if not root.write]
        self.write = [short(root.path) for root in found.roots if root.write]
        self.covers = [short(cover.path) for cover in found.covers]
        self.protected = [short(bound.path) for bound in found.protected]
        self.pins = [short(bound.path) for bound in found.pins]
        for root in found.roots:
            status = os.stat(root.path)
            assert (root.device, root.inode) == (status.st_dev, status.st_ino)
            assert os.fstat(root.fd).st_ino == status.st_ino


def refused(project: Path, **more: object) -> Refused:
    with pytest.raises(Refused) as caught:
        open_grants(spec(project, **more))
    return caught.value


# ---------------------------------------------------------------- roots


def test_parents_come_first_and_what_is_granted_already_is_left_out(project: Path) -> None:
    seen = Seen(project, read=("src/deep", ".", "src"), write=("out",))
    assert seen.read[0] == "."
    assert seen.write == ["out"]
    assert Seen(project, read=("src", "src/a.py"), write=(".",)).read == []


def test_relative_absolute_and_home(project: Path) -> None:
    seen = Seen(project, read=("src", str(project.parent / "outside"), "~/data", "../outside/../outside/."[:10]))
    assert seen.read == ["../home/data", "../outside", "src"]


def test_a_folder_and_all_below_it_is_the_folder(project: Path) -> None:
    assert Seen(project, read=("src/**",)).read == ["src"]


def test_a_project_behind_a_link_is_opened_by_its_real_name(project: Path) -> None:
    link = project.parent / "link"
    link.symlink_to(project)
    found = open_grants(spec(link, read=("src",)))
    assert [root.path for root in found.roots] == [str(project / "src")]
    found.close()


def test_files_can_be_granted(project: Path) -> None:
    found = open_grants(spec(project, read=("src/a.py",)))
    assert [(root.folder, root.write) for root in found.roots] == [(False, False)]
    found.close()


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_link_is_refused_and_what_it_leads_to_is_named(kind: str, project: Path) -> None:
    outside = project.parent / "outside"
    (project / "link").symlink_to(outside)
    error = refused(project, **{kind: ("link",)})
    assert error.message == f"permissions.paths.{kind}: link: {project}/link is a symbolic link to {outside}"
    assert error.hint == f"grant what it leads to: {outside}"
    (outside / "in").mkdir()
    assert refused(project, **{kind: ("link/in",)}).hint == f"grant what it leads to: {outside}/in"
    assert "symbolic link" in refused(project, **{kind: ("link/*",)}).message


def test_a_dangling_link_is_still_a_link(project: Path) -> None:
    (project / "link").symlink_to("nowhere")
    assert "symbolic link" in refused(project, write=("link",)).message


def test_what_is_not_there_can_not_be_read(project: Path) -> None:
    error = refused(project, read=("data",))
    assert error.message == "permissions.paths.read: data does not exist"
    assert "needs:" in error.hint


def test_folders_to_be_written_are_made_inside_the_project_only(project: Path) -> None:
    assert Seen(project, write=("build/a/b",)).write == ["build/a/b"]
    assert (project / "build/a/b").is_dir()
    outside = project.parent / "outside/new"
    assert refused(project, write=(str(outside),)).hint == f"create it first: mkdir -p {outside}"
    assert not outside.exists()


def test_nothing_is_made_through_a_link(project: Path) -> None:
    (project / "out/link").symlink_to(project.parent / "outside")
    assert "symbolic link" in refused(project, write=("out/link/new",)).message
    assert os.listdir(project.parent / "outside") == []


def test_what_looks_like_a_file_is_not_made_as_a_folder(project: Path) -> None:
    error = refused(project, write=("out/report.txt",))
    assert "looks like a file" in error.message
    assert "(out)" in error.hint
    assert not (project / "out/report.txt").exists()


def test_a_file_on_the_way_is_told(project: Path) -> None:
    for kind in ("read", "write"):
        message = refused(project, **{kind: ("src/a.py/x",)}).message
        assert message == f"permissions.paths.{kind}: src/a.py/x can't be opened: Not a directory"


@pytest.mark.parametrize("text", ["/", "/proc", "/sys/kernel", "/dev/shm", "~", ".dagrun", ".dagrun/runs", "x/../.."])
@pytest.mark.parametrize("kind", ["read", "write"])
def test_places_that_are_never_granted(kind: str, text: str, project: Path) -> None:
    refused(project, **{kind: (text,)})


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "a\x1b[2Jb", "a:b", "a,b", "~root/x", "$HOME/x", ""])
def test_texts_that_are_no_path(text: str, project: Path) -> None:
    refused(project, read=(text,))


def test_the_home_folder_by_any_name_and_what_holds_it(project: Path) -> None:
    home = project.parent / "home"
    assert "whole home" in refused(project, read=(str(home),)).message
    assert "whole home" in refused(project, read=(str(project.parent),)).message
    assert "whole home" in refused(home, read=(".",)).message


def test_what_belongs_to_dagrun_or_is_a_secret(project: Path) -> None:
    secret = project.parent / "outside"
    assert "no node sees it" in refused(project, read=("../outside",), hidden=(str(secret),)).message


@pytest.mark.parametrize("path", [".git/hooks", ".git/hooks/deep", ".git/config", ".vscode", "sub/.idea", ".envrc"])
def test_what_is_protected_can_not_be_a_write_root(path: str, project: Path) -> None:
    (project / path).mkdir(parents=True)
    refused(project, write=(path,))
    assert Seen(project, read=(path,)).read == [path]


def test_a_project_inside_a_folder_of_an_editor(project: Path) -> None:
    inner = project / ".claude/worktrees/x"
    (inner / "out").mkdir(parents=True)
    assert Seen(inner, write=("out",)).write == ["out"]


def test_sockets_in_sight(project: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    os.chdir(project)
    try:
        server.bind("src/s")
        assert "is a Unix socket" in refused(project, read=("src/s",)).message
        assert "holds a Unix socket: s;" in refused(project, read=("src",)).message
        error = refused(project, read=(".",))
        assert "holds a Unix socket: src/s;" in error.message
        assert "deny it (permissions.paths.deny: [src/s])" in error.hint
        assert Seen(project, read=(".",), deny=("src/s",)).covers == [".dagrun", "src/s"]
        assert Seen(project, read=("out",)).read == ["out"]
    finally:
        os.chdir("/")
        server.close()


def test_sockets_are_named_one_folder_down_and_no_deeper(project: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    os.chdir(project)
    try:
        server.bind("src/deep/s")
        found = open_grants(spec(project, read=(".",)))
        assert list(sockets_in(found.roots[0])) == []
        found.close()
    finally:
        os.chdir("/")
        server.close()


@pytest.mark.skipif(not os.path.exists("/run/docker.sock"), reason="there is no socket of an engine")
def test_a_folder_with_the_socket_of_an_engine(project: Path) -> None:
    assert "docker.sock" in refused(project, read=("/run",)).message


def test_pipes_and_devices(project: Path) -> None:
    os.mkfifo(project / "pipe")
    assert "no file or folder" in refused(project, read=("pipe",)).message


# ---------------------------------------------------------------- globs


def test_a_glob_means_what_exists(project: Path) -> None:
    for name in ("b.py", "c.txt", ".hidden.py", "deep/d.py"):
        (project / "src" / name).write_text("")
    (project / "src/link.py").symlink_to("a.py")
    assert Seen(project, read=("src/*.py",)).read == ["src/a.py", "src/b.py"]
    assert Seen(project, read=("src/**/*.py",)).read == ["src/a.py", "src/b.py", "src/deep/d.py"]
    assert Seen(project, read=("src/.*",)).read == ["src/.hidden.py"]
    assert Seen(project, read=("src/[ab].??",)).read == ["src/a.py", "src/b.py"]
    assert Seen(project, read=("none/*",)).read == []


def test_a_glob_through_a_link_is_not_followed(project: Path) -> None:
    (project.parent / "outside/x.py").write_text("")
    (project / "src/away").symlink_to(project.parent / "outside")
    assert Seen(project, read=("src/*/x.py",)).read == []
    assert Seen(project, read=("src/**/x.py",)).read == []


@pytest.mark.parametrize(("count", "fits"), [(MAX_FILES, True), (MAX_FILES + 1, False)])
def test_a_glob_has_a_bound(count: int, fits: bool, project: Path) -> None:
    for k in range(count):
        (project / f"out/{k}.csv").write_text("")
    if fits:
        assert len(Seen(project, read=("out/*.csv",)).read) == count
    else:
        error = refused(project, read=("out/*.csv",))
        assert "more than 256" in error.message
        assert error.hint == "grant the directory: out"


def test_looking_has_a_bound_too(tmp_path: Path) -> None:
    for k in range(20):
        (tmp_path / f"{k}").mkdir()
    with pytest.raises(TooMuch):
        list(expand(f"{tmp_path}/**/x", Budget(10), dots=False))


# ---------------------------------------------------------------- deny, hidden, keys


def test_deny_by_name_at_any_depth(project: Path) -> None:
    for name in (".env", "src/.env", "src/deep/.env.local", "out/x.pem", "src/.env.d/in"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("")
    seen = Seen(project, write=("out",), deny=(".env*",))
    # x.pem is a key, directly inside a root
    assert seen.covers == [".dagrun", ".env", "out/x.pem", "src/.env", "src/.env.d", "src/deep/.env.local"]
    assert Seen(project, write=("out",), deny=("*.pem",)).covers == [".dagrun", ".env", "out/x.pem"]


def test_deny_with_a_slash_is_anchored(project: Path) -> None:
    for name in ("src/key", "src/deep/key", "out/src/key"):
        (project / name).parent.mkdir(exist_ok=True, parents=True)
        (project / name).write_text("")
    assert Seen(project, deny=("src/key",)).covers == [".dagrun", "src/key"]
    assert Seen(project, deny=("src/**/key",)).covers == [".dagrun", "src/deep/key", "src/key"]
    assert Seen(project, deny=("src/**",)).covers == [".dagrun", "src"]
    assert Seen(project, deny=(str(project / "out"),)).covers == [".dagrun", "out"]


def test_deny_wins_over_a_grant_inside_it(project: Path) -> None:
    seen = Seen(project, read=("src", "out"), write=("src/deep",), deny=("src/**",))
    assert (seen.read, seen.write, seen.covers) == (["out"], [], [])
    assert Seen(project, read=("out", "src/deep"), deny=("deep",)).read == ["out"]
    assert Seen(project, read=(".",), write=("src/deep",), deny=("./src",)).write == []


def test_a_denied_link_denies_what_it_leads_to(project: Path) -> None:
    (project / "src/real").write_text("")
    (project / ".env").symlink_to("src/real")
    assert Seen(project, deny=(".env",)).covers == [".dagrun", "src/real"]


def test_deny_holds_in_the_folders_of_the_system_too(project: Path) -> None:
    assert os.path.relpath("/usr/share", project) in Seen(project, deny=("/usr/share",)).covers


def test_too_many_denied_files_are_refused(project: Path) -> None:
    for k in range(MAX_COVERS + 1):
        (project / f"out/{k}.key").write_text("")
    for pattern in ("out/*.key", "*.key"):
        message = refused(project, deny=(pattern,)).message
        assert "files in the grants; 256 can be covered at most" in message


def test_too_much_to_look_at_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(30):
        (project / f"out/{k}").write_text("")
    monkeypatch.setattr(Budget.__init__, "__defaults__", (20,))
    error = refused(project, deny=("x",))
    assert "too many files" in error.message
    assert "anchor the pattern" in error.hint


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *[(name, True) for name in (".env", ".env.local", ".netrc", ".npmrc", ".pypirc", "id_rsa", "id_ed25519_x")],
        *[(name, True) for name in ("server.pem", "tls.key", "a.p12", ".ssh", ".aws", ".gnupg", ".kube", "id_ecdsa")],
        *[(name, False) for name in (".env.example", ".env.sample", ".env.template", "id_rsa.pub", "id_ed25519.pub")],
        *[(name, False) for name in ("env", "key", "pem.txt", ".envrc", "keys", "monkey", "a.keys")],
    ],
)
def test_what_is_taken_for_a_key(name: str, key: bool, project: Path) -> None:
    (project / name).write_text("")
    (project / "src/deep" / name).write_text("")
    assert is_key(name) == key
    assert (name in Seen(project).covers) == key
    assert Seen(project, read=(".", name)).covers == [".dagrun"]
    assert f"src/deep/{name}" not in Seen(project).covers  # directly inside a root only


def test_what_is_hidden_and_not_in_a_grant_costs_nothing(project: Path) -> None:
    assert Seen(project, read=("src",)).covers == []


def test_hidden_inside_hidden_is_one_cover(project: Path) -> None:
    (project / ".dagrun/runs/x").mkdir(parents=True)
    hidden = (str(project / ".dagrun/runs/x"), str(project / ".dagrun"), str(project / "nowhere"))
    assert Seen(project, hidden=hidden).covers == [".dagrun"]


# ---------------------------------------------------------------- protected


def repository(project: Path) -> None:
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    (project / ".git/hooks").mkdir(exist_ok=True)


def test_what_git_runs_is_read_only_with_its_parents_kept(project: Path) -> None:
    repository(project)
    seen = Seen(project, write=(".",))
    assert seen.protected == [".git/config", ".git/hooks"]
    assert ".git" in seen.pins
    assert seen.covers == [".dagrun"]
    inner = Seen(project, write=(".git",))
    assert inner.protected == [".git/config", ".git/hooks"]


def test_a_read_grant_needs_no_protection(project: Path) -> None:
    repository(project)
    seen = Seen(project, write=("out",))
    assert (seen.protected, seen.pins) == ([], [])


def test_given_paths_are_protected_wherever_they_are(project: Path) -> None:
    (project / "out/flows").mkdir()
    flow = project / "out/flows/flow.yaml"
    flow.write_text("")
    seen = Seen(project, write=("out",), protected=(str(flow), str(project / "src/a.py")))
    assert (seen.protected, seen.pins) == (["out/flows/flow.yaml"], ["out/flows"])


def test_files_not_held_are_protected_from_the_root_down(project: Path) -> None:
    repository(project)
    seen = Seen(project, read=None)
    assert ".git/hooks" in seen.protected
    assert {".", ".git"} <= set(seen.pins)
    assert (seen.read, seen.write, seen.covers) == ([], [], [".dagrun"])


@pytest.mark.parametrize("path", [p for p in PROTECTED if p != ".dagrun"])
def test_what_was_not_there_is_moved_aside(path: str, project: Path) -> None:
    found = open_grants(spec(project, write=(".",)))
    found.let_go()
    (project / path).parent.mkdir(parents=True, exist_ok=True)
    (project / path).write_text("evil")
    after = found.aftermath("run/build/1")
    top = path.split("/")[0]
    assert after.outcome == "denied"
    assert f"{project}/{top} (now {top}.quarantine-build)" in after.error
    assert not (project / top).exists()
    assert (project / f"{top}.quarantine-build").exists()


def test_only_the_new_part_is_moved_aside(project: Path) -> None:
    repository(project)
    (project / ".git/hooks").rename(project / ".git/away")
    found = open_grants(spec(project, write=(".",)))
    found.let_go()
    (project / ".git/hooks").mkdir()
    (project / ".git/new").write_text("fine")
    after = found.aftermath("run/build/1")
    assert f"{project}/.git/hooks (now hooks.quarantine-build)" in after.error
    assert (project / ".git/new").exists()


def test_quarantine_never_overwrites(project: Path) -> None:
    for _ in range(3):
        found = open_grants(spec(project, write=(".",)))
        found.let_go()
        (project / ".envrc").write_text("evil")
        assert found.aftermath("run/build/1").outcome == "denied"
    left = sorted(name for name in os.listdir(project) if name.startswith(".envrc"))
    assert left == [".envrc.quarantine-build", ".envrc.quarantine-build-1", ".envrc.quarantine-build-2"]


def test_a_link_where_something_protected_may_be_must_stay_what_it_is(project: Path) -> None:
    (project / "real").mkdir()
    (project / ".vscode").symlink_to("real")
    found = open_grants(spec(project, write=(".",)))
    assert [os.path.relpath(b.path, project) for b in found.protected] == ["real"]
    found.let_go()
    (project / ".vscode").unlink()
    (project / ".vscode").symlink_to("src")
    assert ".vscode (now .vscode.quarantine-build)" in found.aftermath("run/build/1").error


def test_without_a_change_there_is_nothing_to_tell(project: Path) -> None:
    repository(project)
    (project / ".vscode").symlink_to("src")
    found = open_grants(spec(project, write=(".", "out")))
    found.let_go()
    (project / "src/new").write_text("")
    after = found.aftermath("run/build/1")
    assert (after.outcome, after.error) == ("", "")


def test_the_mark_of_a_quarantine_is_a_plain_name(project: Path) -> None:
    found = open_grants(spec(project, write=(".",)))
    found.let_go()
    (project / ".envrc").write_text("evil")
    found.aftermath("run/../../x y/1")
    assert all("/" not in name and " " not in name for name in os.listdir(project))
    assert len([name for name in os.listdir(project) if "quarantine" in name]) == 1


# ---------------------------------------------------------------- exchange, opening


def test_the_folder_of_the_attempt(project: Path) -> None:
    folder = project / ".dagrun/x.d"
    folder.mkdir()
    found = open_grants(spec(project, exchange=str(folder)))
    assert found.exchange is not None
    assert found.exchange.write
    assert found.holds(str(folder / "in"))
    assert not found.holds(str(project / ".dagrun/journal"))
    assert found.holds(str(project / "src"))
    assert not found.holds(str(project.parent / "outside"))
    found.close()
    with pytest.raises(EnvironmentFault):
        open_grants(spec(project, exchange=str(folder / "gone")))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_without_openat2_no_link_is_followed_either(
    number: int, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCall:
        def syscall(self, *_: object) -> int:
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(grants_open, "_libc", NoCall())
    fd = open_exactly(str(project / "src/deep"))
    assert os.fstat(fd).st_ino == (project / "src/deep").stat().st_ino
    os.close(fd)
    (project / "link").symlink_to("src")
    for path in ("link", "link/deep"):
        with pytest.raises(OSError, match="link") as caught:
            open_exactly(str(project / path))
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert link_in(str(project / "link/deep")) == (str(project / "link"), str(project / "src"))


def test_a_link_of_proc_is_no_way_around() -> None:
    with pytest.raises(OSError, match="cwd"):
        open_exactly("/proc/self/cwd/etc")

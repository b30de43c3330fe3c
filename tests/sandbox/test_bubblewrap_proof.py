"""What counts is what a bwrap proves here: a false one, a lying one and one that may not work are all found out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.sandbox import procs
from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.canary_program import TRIED
from dagrun.sandbox.wall import GUARANTEES, Guarantee
from tests.sandbox.descriptors import descriptors_kept
from tests.sandbox.test_bubblewrap import (
    AS_ROOT,
    ROOT,
    need_bwrap,
    nobodys_folder,
    other_python,
    run_as_nobody,
)

REAL = os.path.realpath(shutil.which("bwrap") or "/usr/bin/bwrap")
# Runs what comes after `--` in the right folder, without any wall.
FALSE_BWRAP = f"""#!/bin/sh
[ "$1" = --help ] && exec {REAL} --help
while [ "$1" != -- ]; do [ "$1" = --chdir ] && cd "$2"; shift; done
shift
exec "$@"
"""
only_root = pytest.mark.skipif(not AS_ROOT, reason="a bwrap must belong to root to be tried")


def nobody_swept(_: int) -> None:
    """No sweep runs here."""


def wall(path: Path | str) -> Bubblewrap:
    return Bubblewrap(nobody_swept, path=str(path))


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    need_bwrap()
    procs.become_subreaper()
    yield
    procs.kill_everything()


def program(folder: Path, text: str, mode: int = 0o755) -> Path:
    file = folder / "bwrap"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_the_real_one_holds_everything_that_it_is_for() -> None:
    lacks = {name: why for name, why in wall(REAL).proved().items() if name in TRIED and why}
    assert lacks == {}


def test_it_says_what_it_is_not_for() -> None:
    proved = wall(REAL).proved()
    assert set(proved) == set(GUARANTEES)
    assert all("no such limit" in proved[name] for name in ("mem", "cpu", "fsize"))
    assert proved["net.allowlist"] == "there is no proxy to hold a list of hosts"


def test_a_list_of_hosts_is_held_with_a_proxy() -> None:
    from dagrun.sandbox.netproxy import NetProxy

    proxy = NetProxy(nobody_swept)
    try:
        assert Bubblewrap(nobody_swept, proxy, REAL).proved()["net.allowlist"] == ""
    finally:
        proxy.close()


def test_no_descriptor_is_lost() -> None:
    with descriptors_kept():
        dict(wall(REAL).proved())


@only_root
def test_a_false_one_holds_nothing(tmp_path: Path) -> None:
    proved = wall(program(tmp_path, FALSE_BWRAP)).proved()
    assert [name for name in GUARANTEES if not proved[name]] == []


# What a lying bwrap leaves out (how many words), or puts in its place, and what must be missed then.
LIES: dict[str, tuple[str, list[Guarantee]]] = {
    "no-filter": ("[ $1 = --seccomp ] && shift 2 && continue", ["unix", "caps"]),
    "old-processes": ("[ $1 = --proc ] && { add --ro-bind /proc /proc; shift 2; continue; }", ["proc.hide"]),
    "no-pid-namespace": (
        "[ $1 = --unshare-all ] && { add --unshare-ipc --unshare-net --unshare-uts; shift; continue; }",
        ["kill.tree", "proc.hide", "proc.signal"],
    ),
    "no-network-namespace": ("[ $1 = --seccomp ] && { add --share-net; shift 2; continue; }", ["net.none", "unix"]),
    "devices": ("[ $1 = --dev ] && { add --dev-bind /dev /dev; shift 2; continue; }", ["tty"]),
    "old-shm": ("[ $1 = --chdir ] && add --bind /dev/shm /dev/shm", ["ipc"]),
    "all-readable": ("[ $1 = --remount-ro ] && [ $2 = /proc ] && add --ro-bind $BASE $BASE", ["fs.read", "fs.meta"]),
    "writable": ("[ $1 = --ro-bind-fd ] && { add --bind-fd $2 $3; shift 3; continue; }", ["fs.write", "fs.protected"]),
    "no-pins": ("[ $1 = --bind-fd ] && case $3 in */.git) shift 3; continue; esac", ["fs.protected"]),
    "no-denial": ("[ $1 = --ro-bind ] && [ $2 = /dev/null ] && shift 3 && continue", ["fs.deny", "fs.protected"]),
    "no-cover": (
        """case $1$6 in --perms*/.dagrun) shift 6; continue; esac
           case $1$2 in --remount-ro*/.dagrun) shift 2; continue; esac""",
        ["fs.protected"],
    ),
    "variables": ("[ $1 = --chdir ] && add --setenv CALLERS secret", ["env"]),
    "survivors": ("[ $1 = --die-with-parent ] && shift && continue", ["kill.tree"]),
    "writable-proc": ("[ $1 = --remount-ro ] && [ $2 = /proc ] && shift 2 && continue", ["caps"]),
    "capabilities": ("[ $1 = --cap-drop ] && { add --cap-add ALL; shift 2; continue; }", ["caps"]),
}
LIAR = """#!/bin/bash
[ "$1" = --help ] && exec {real} --help
args=()
add() {{ args+=("$@"); }}
BASE=$(dirname "$(dirname "$(printf '%s\\n' "$@" | grep -m1 'dagrun-canary-[0-9a-f]*/project/write$')")")
while [ "$1" != -- ]; do
  {lie}
  add "$1"; shift
done
exec {real} "${{args[@]}}" "$@"
"""


@only_root
@pytest.mark.parametrize("name", LIES)
def test_one_that_leaves_something_out_is_found_out(name: str, tmp_path: Path) -> None:
    lie, missed = LIES[name]
    proved = wall(program(tmp_path, LIAR.format(real=REAL, lie=lie))).proved()
    lacks = {guarantee: proved[guarantee] for guarantee in TRIED if proved[guarantee]}
    assert set(missed) <= set(lacks), lacks
    assert set(lacks) < set(TRIED)  # it was found out by that, and not since nothing worked


@only_root
def test_with_nothing_left_out_the_liar_tells_the_truth(tmp_path: Path) -> None:
    proved = wall(program(tmp_path, LIAR.format(real=REAL, lie=":"))).proved()
    assert {name: proved[name] for name in TRIED if proved[name]} == {}


@only_root
@pytest.mark.parametrize(("mode", "uid"), [(0o775, 0), (0o757, 0), (0o755, 65534)])
def test_one_that_others_can_change_is_not_even_run(mode: int, uid: int, tmp_path: Path) -> None:
    file = program(tmp_path, f'#!/bin/sh\ntouch {tmp_path}/ran\nexec {REAL} "$@"\n', mode)
    os.chown(file, uid, 0)
    proved = wall(file).proved()
    assert all("not trusted" in proved[name] for name in GUARANTEES)
    assert not (tmp_path / "ran").exists()


@only_root
def test_what_a_link_leads_to_is_what_must_be_trusted(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file = program(tmp_path / "other", "#!/bin/sh\n", 0o777)
    link = tmp_path / "bwrap"
    link.symlink_to(file)
    assert "not trusted" in wall(link).proved()["fs.read"]


@only_root
def test_an_old_one_is_told_from_its_help(tmp_path: Path) -> None:
    file = program(tmp_path, "#!/bin/sh\necho 'usage: bwrap --ro-bind SRC DEST --file FD DEST'\n")
    assert (
        wall(file)
        .proved()["fs.read"]
        .endswith("is too old: it has no --bind-fd, --ro-bind-fd, --disable-userns, --json-status-fd")
    )


@only_root
def test_one_that_may_not_make_namespaces_says_so(tmp_path: Path) -> None:
    said = "bwrap: No permissions to create new namespace, likely because the kernel does not allow it"
    text = f"#!/bin/sh\n[ $1 = --help ] && exec {REAL} --help\necho '{said}' >&2; exit 1\n"
    proved = wall(program(tmp_path, text)).proved()
    assert {proved[name] for name in TRIED} == {f"user namespaces are not allowed here ({said})"}
    assert proved["pids"]


@only_root
def test_where_no_fresh_proc_is_allowed_the_rest_still_holds(tmp_path: Path) -> None:
    text = f"""#!/bin/sh
for word; do [ "$word" = --proc ] && {{
echo "bwrap: Can't mount proc on /newroot/proc: Operation not permitted" >&2; exit 1; }}; done
exec {REAL} "$@"
"""
    proved = wall(program(tmp_path, text)).proved()
    lacks = {name: proved[name] for name in TRIED if proved[name]}
    assert "proc.hide" in lacks
    assert not {"fs.read", "fs.write", "net.none", "unix", "kill.tree"} & set(lacks), lacks


def test_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    proved = Bubblewrap(nobody_swept).proved()
    assert {proved[name] for name in GUARANTEES} == {"bwrap is not installed"}


def test_the_first_on_the_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, FALSE_BWRAP)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    proved = Bubblewrap(nobody_swept).proved()
    assert all(proved[name] for name in GUARANTEES)


PROVE = """
from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.netproxy import NetProxy
proxy = NetProxy(lambda pid: None)
proved = Bubblewrap(lambda pid: None, proxy).proved()
print(sorted((name, why) for name, why in proved.items() if why and name not in ("mem", "cpu", "fsize")))
proxy.close()
"""


@only_root
def test_an_ordinary_user_gets_all_of_it_and_a_limit_of_processes() -> None:
    with nobodys_folder():
        ran = run_as_nobody([other_python(), "-c", PROVE])
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


@only_root
def test_root_has_no_limit_of_processes_by_bwrap_alone() -> None:
    assert "root" in wall(REAL).proved()["pids"]


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    import subprocess

    code = "import sys, dagrun.sandbox.bubblewrap; print('dagrun.sandbox.canary' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"

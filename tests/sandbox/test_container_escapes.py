"""Attempts to get out of a container. Each succeeds without one (the control) and fails in it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.sandbox.container_line import Image
from dagrun.sandbox.container_probe import Probe
from dagrun.sandbox.wall import Refused
from tests.escapes import image as python_image
from tests.escapes.programs import payload_python
from tests.images import busybox

from .conftest import readable, until
from .container_rig import Rig

pytestmark = pytest.mark.docker
MARK = "HOST_MARK_OF_A_TEST"
_PROBES: dict[str, Probe] = {}  # each engine is tried once


@pytest.fixture(params=["docker", "podman"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, docker: str) -> Iterator[Rig]:
    if request.param == "podman":
        request.getfixturevalue("podman")
    made = Rig(tmp_path, request.param, docker)
    made.wall.prefer(docker)
    made.wall._probe = _PROBES.setdefault(request.param, made.wall._probe)
    # Whoever is not root can't enter the network of what Docker's daemon, which is, has made.
    gaps = {"net.allowlist"} if os.getuid() and request.param == "docker" else set()
    assert {name for name, why in made.wall.proved().items() if why} == gaps
    yield made
    made.close()


# What is tried, by name. $BB is busybox outside; $HOST has a listener at $PORT; $OUTER is a process
# of this machine; $OUTSIDE is a folder that everybody may use and no grant holds.
ATTEMPTS = {
    "read a file outside of the grants": "cat $OUTSIDE/secret",
    "see a file outside of the grants": "ls -d $OUTSIDE/secret",
    "read the passwords of this machine": "grep -q ^root: /etc/shadow",
    "write outside of the grants": "echo x >$OUTSIDE/new",
    "write into a read-only grant": "echo x >in/new",
    "remove from a read-only grant": "rm in/file && ls in && [ ! -e in/file ]",
    "change the mode of a read-only file": "chmod 777 in/file",
    "read what is denied": "grep -q secret in/denied",
    "read a key": "grep -q secret in/.env",
    "see the folder of the run": "[ -d .dagrun/runs/r1/containers ] || ls .dagrun/runs/r1 | grep -q other",
    "plant a git hook": "echo x >out/.git/hooks/post-commit",
    "move the git folder away": "mv out/.git out/gone && mkdir -p out/.git/hooks && echo x >out/.git/hooks/x",
    "connect to this machine": "$BB nc -w 3 $HOST $PORT </dev/null",
    "have a network": "[ $(grep -c : /proc/net/dev) -gt 1 ]",
    "see a process": "[ -r /proc/$OUTER/cmdline ] && grep -q sleep /proc/$OUTER/cmdline",
    "signal a process": "kill -0 $OUTER",
    "read the environment of another process": f"cat /proc/1/environ /proc/$OUTER/environ | grep -q {MARK}",
    "make a set-id file": "cp in/file out/setid && chmod 4755 out/setid && [ -u out/setid ]",
    "write the core pattern": "v=$(cat /proc/sys/kernel/core_pattern); echo \"$v\" >/proc/sys/kernel/core_pattern",
    "reach the engine": "[ -S /var/run/docker.sock ] || [ -S /run/docker.sock ]",
    "be root": "[ $(id -u) = 0 ]",
    "have a capability": "! grep -q '^CapEff:.0000000000000000$' /proc/self/status",
    "gain privileges": "! grep -q '^NoNewPrivs:.1$' /proc/self/status",
    "make a block device": "$BB mknod out/dev b 7 99",
    "mount": "$BB mount -t tmpfs none out/m",
    "make a namespace": "$BB unshare -m true",
    "make files in the file system of the image": "echo x >/new-file && rm /new-file",
}


@pytest.fixture
def world(rig: Rig, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Things on this machine to steal and to reach."""
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "secret").write_text("secret")
    for name in ("file", "denied", ".env"):
        (rig.project / "in" / name).write_text("secret\n")
    (rig.project / "in").chmod(0o777)
    (rig.run_dir / "other").mkdir()
    hooks = rig.project / "out" / ".git" / "hooks"
    hooks.mkdir(parents=True)
    (rig.project / "out" / "m").mkdir()
    for folder in (hooks.parent, hooks):
        folder.chmod(0o777)
    listener = socket.create_server(("0.0.0.0", 0))
    thread = threading.Thread(target=_accept, args=(listener,), daemon=True)
    thread.start()
    sleeper = subprocess.Popen(["sleep", "1000"], env={**os.environ, MARK: "1"})
    rig.plain.exempt(sleeper.pid)
    host = _address()
    yield {"OUTSIDE": str(outside), "HOST": host, "PORT": str(listener.getsockname()[1]), "OUTER": str(sleeper.pid)}
    listener.shutdown(socket.SHUT_RDWR)  # a close alone leaves the thread waiting for ever
    thread.join()
    listener.close()
    sleeper.kill()
    sleeper.wait()


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return


def _address() -> str:
    """An address of this machine that is not the loopback's, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_way_out_is_shut(rig: Rig, world: dict[str, str], name: str) -> None:
    text = ATTEMPTS[name]
    spec = rig.spec("sh", "-c", text, env={**world, "BB": ""}, deny=("in/denied",))
    ended, after, said = rig.run(spec)
    assert ended.code != 0, f"it got out: {said}"
    assert ended.code not in (125, 127) or not after.error, (after, said)
    if os.geteuid() != 0 and "root" in name:
        return  # no control: an ordinary user can't do it anywhere
    _control(rig, world, text)


def _control(rig: Rig, world: dict[str, str], text: str) -> None:
    """The same without a container, in mounts of its own where it mounts something."""
    sh = ["sh", "-c", text]
    private = os.geteuid() == 0 and ("mount" in text or "unshare" in text) and shutil.which("unshare") is not None
    env = {**os.environ, **world, "BB": busybox()}
    command = ["unshare", "-m", *sh] if private else sh
    done = subprocess.run(command, cwd=rig.project, env=env, capture_output=True, text=True, timeout=30, check=False)
    if os.geteuid() == 0:
        assert done.returncode == 0, f"the control does not escape: {done.stderr}"


def test_what_is_granted_works(rig: Rig, world: dict[str, str]) -> None:
    """A box in which nothing works would pass every test above."""
    text = (
        "cat in/file && echo x >out/new && mkdir out/dir && mv out/new out/dir/ && cat out/dir/new"
        " && echo t >$TMPDIR/t && cat $HOME/t && echo e >$OUT && $BB nc -l -p 4000 -e true & sleep 0.2; :"
    )
    env = {**world, "BB": "", "OUT": f"{rig.exchange}/output"}
    assert rig.sh(text, env=env) == "secret\nx\nt\n"
    assert (rig.exchange / "output").read_text() == "e\n"


def test_with_a_network_it_reaches_this_machine(rig: Rig, world: dict[str, str]) -> None:
    if rig.engine == "podman":
        pytest.skip("the plug-ins of its network are another package")
    if not Path("/sys/class/net/docker0").exists():
        pytest.skip("this daemon has no bridge")
    ended, _, said = rig.run(
        rig.spec("sh", "-c", ATTEMPTS["connect to this machine"], env={**world, "BB": ""}, network="any")
    )
    assert ended.code == 0, said


def test_a_link_is_no_grant(rig: Rig) -> None:
    (rig.project / "link").symlink_to("/etc")
    for more in ({"read": ("link",)}, {"write": ("link",)}, {"read": ("link/ssl",)}):
        with pytest.raises(Refused, match="symbolic link"):
            rig.wall.launch(rig.spec("true", **more))


# A pair of datagram sockets: no socket(), and yet it can be connected to any path.
_PAIR = """
import os, socket, sys
print("ready", flush=True)
while not os.path.exists("in/late"):
    os.sched_yield()
one, other = socket.socketpair(socket.AF_UNIX, getattr(socket, sys.argv[1]))
one.sendto(b"got out", "in/late")
"""


@pytest.mark.parametrize("kind", ["SOCK_DGRAM", "SOCK_RAW"])
@pytest.mark.parametrize("inside", [True, False], ids=["container", "control"])
def test_a_socket_that_appears_in_a_grant_can_not_be_reached_through_a_pair(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str, inside: bool
) -> None:
    argv = (payload_python(), "-I", "-c", _PAIR, kind)
    if inside:
        if rig.engine == "podman":
            pytest.skip("the image with Python is Docker's; the filter is the same")
        launch, child = rig.start(rig.spec(*argv, image=python_image.image(), cwd=str(rig.project)))
        until(lambda: "ready" in rig.said() or readable(child.pidfd, 0), "ready")
    monkeypatch.chdir(rig.project)  # paths of sockets are short
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("in/draft")
        os.chmod("in/draft", 0o777)
        os.rename("in/draft", "in/late")
        server.settimeout(1 if inside else 20)
        if not inside:
            subprocess.run(argv, check=True, timeout=20)
            assert server.recv(100) == b"got out"
            return
        ended, after = rig.end(launch, child)
        assert (ended.code, after.error) == (1, "")
        with pytest.raises(TimeoutError):
            server.recv(100)
    assert "Operation not permitted" in rig.errors()


@pytest.mark.parametrize("known", [True, False], ids=["looked at", "control"])
def test_a_grant_that_is_replaced_after_the_check_is_noticed(rig: Rig, tmp_path: Path, known: bool) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "elsewhere" / "file").write_text("stolen\n")
    if not known:
        rig.wall._probe = Probe(rig.wall._cli)
        rig.wall._probe._images[rig.image] = Image(rig.image, shell=False)  # then it can't look itself
    spec = rig.spec("cat", "in/file")
    launch = rig.wall.launch(spec)
    (rig.project / "in").rename(rig.project / "was")
    (rig.project / "in").symlink_to(tmp_path / "elsewhere")
    child = rig.plain.spawn(
        launch.argv, launch.env, out_fd=rig.out, err_fd=rig.err, attempt_id=spec.attempt_id, cwd="/"
    )
    rig.wall.started(launch, child)  # type: ignore[arg-type]
    ended, after = rig.end(launch, child)  # type: ignore[arg-type]
    if known:
        assert (ended.code, after.outcome) == (125, "denied")
        assert "stolen" not in rig.said()
    else:
        assert rig.said() == "stolen\n"


def test_what_it_plants_is_moved_aside(rig: Rig) -> None:
    _, after, _ = rig.run(rig.spec("sh", "-c", "echo x >out/.envrc"))
    assert after.outcome == "denied"
    assert ".envrc" in after.error
    assert not (rig.project / "out" / ".envrc").exists()


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\nb", "a'b"])
def test_paths_that_no_option_can_carry_are_refused(rig: Rig, name: str) -> None:
    (rig.project / name).mkdir()
    with pytest.raises(Refused):
        rig.wall.launch(rig.spec("true", read=(name,)))


@pytest.mark.parametrize("name", ["a b", "-v", "`touch x`", "a;b", "ü", "a=b", "[x]"])
def test_paths_with_other_signs_work(rig: Rig, name: str) -> None:
    (rig.project / "out" / name).mkdir()
    (rig.project / "out" / name).chmod(0o777)
    plain = name if name != "[x]" else "[[]x]"
    assert rig.sh('echo x >"out/$N/f"', env={"N": name}, write=(f"out/{plain}",)) == ""
    assert (rig.project / "out" / name / "f").exists()

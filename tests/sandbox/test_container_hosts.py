"""Containers that are held to a list of hosts: one door, made before the command starts, and no other way out."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import procs
from dagrun.sandbox.container import Container
from dagrun.sandbox.netproxy import NetProxy
from dagrun.sandbox.netproxy_later import ASK, SAID
from dagrun.sandbox.wall import GUARANTEES, Bounds, Refused
from tests.images import BARE, need_image

from .conftest import all_dead, readable, until
from .container_rig import Rig, ask

pytestmark = pytest.mark.docker
as_root = pytest.mark.skipif(os.getuid() != 0, reason="the network of Docker's containers belongs to root")
# What the proxy answers to a wish for a port of this machine, the first line of it.
WISH = r"""wish() { printf 'CONNECT %s HTTP/1.1\r\n\r\n' "$1" | nc -w 5 127.0.0.1 3128 | head -n 1; }"""


@pytest.fixture(params=["docker", "podman"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, docker: str) -> Iterator[Rig]:
    if request.param == "podman":
        request.getfixturevalue("podman")
    made = Rig(tmp_path, request.param, docker)
    yield made
    made.close()


class Server:
    """A port of this machine, at every address, that says a word to whoever comes."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("0.0.0.0", 0))
        self.port: int = self.socket.getsockname()[1]
        self.came = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Wake the thread, and wait for its end."""
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                found, _ = self.socket.accept()
                self.came += 1
                with found:
                    found.sendall(b"a word\n")


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    made = Server(), Server()
    yield made
    for server in made:
        server.close()


@as_root
def test_the_listed_host_is_reached_and_no_other(rig: Rig, servers: tuple[Server, Server]) -> None:
    listed, other = servers
    text = f"{WISH}; wish 127.0.0.1:{listed.port}; wish 127.0.0.1:{other.port}"
    spec = rig.spec("sh", "-c", text, network=(f"127.0.0.1:{listed.port}",))
    ended, after, said = rig.run(spec)
    assert ended.code == 0, (after, said)
    assert [line.split()[1] for line in said.splitlines()] == ["200", "403"]
    assert (listed.came, other.came) == (1, 0)
    assert after.notes == (f"refused: 127.0.0.1:{other.port} (not in permissions.network)",)


WAYS = {
    "by its address": "nc -w 3 $HOST $PORT </dev/null",
    "by that of the door's machine": "nc -w 3 127.0.0.1 $PORT </dev/null",
    "by a link of its own": "ip link add x type dummy && ip addr add 10.9.9.9/8 dev x",
    "by a route": "ip route add default via 127.0.0.1",
    "by a device": "[ $(grep -c : /proc/net/dev) -gt 1 ]",
    "by a namespace of process 1": "nsenter -t 1 -n true",
    "by waiting for another door": "echo up >/run/dagrun.up",
    "by its own pipe": "rm /run/dagrun.go || mv /run/dagrun.go /run/x || chmod 666 /run/dagrun.go",
    "as the proxy, to a name": "nc -l -p 3128 -e true",
}


@as_root
@pytest.mark.parametrize("way", WAYS)
def test_past_the_door_there_is_no_way(rig: Rig, servers: tuple[Server, Server], way: str) -> None:
    listed, _ = servers
    env = {"HOST": _address(), "PORT": str(listed.port)}
    spec = rig.spec("sh", "-c", f"(timeout 5 {_sh(WAYS[way])})", env=env, network=(f"127.0.0.1:{listed.port}",))
    ended, _, said = rig.run(spec)
    assert ended.code != 0, said
    assert listed.came == 0


def _sh(text: str) -> str:
    return f"sh -c '{text}'"


def _address() -> str:
    """An address of this machine that is not its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(("10.255.255.255", 1))
        return str(sock.getsockname()[0])
    return "127.0.0.2"


@pytest.mark.skipif(not Path("/sys/class/net/docker0").exists(), reason="this daemon has no bridge")
def test_without_walls_the_address_leads_there(tmp_path: Path, docker: str, servers: tuple[Server, Server]) -> None:
    """The control: with a network the first of these ways works."""
    rig = Rig(tmp_path, "docker", docker)
    env = {"HOST": _address(), "PORT": str(servers[0].port)}
    ended, _, said = rig.run(rig.spec("sh", "-c", WAYS["by its address"], env=env, network="any"))
    rig.close()
    assert (ended.code, servers[0].came) == (0, 1), said


@as_root
def test_the_door_is_there_before_the_command(rig: Rig) -> None:
    """127.0.0.1:3128 listens when the first line runs, and the variables name it."""
    text = "grep -c '0100007F:0C38 00000000:0000 0A' /proc/net/tcp; echo $HTTP_PROXY $https_proxy $NO_PROXY"
    assert rig.sh(text, network=("example.org",)) == "1\nhttp://127.0.0.1:3128 http://127.0.0.1:3128\n"


@as_root
def test_doors_close_with_their_containers(rig: Rig, servers: tuple[Server, Server]) -> None:
    """Each has its own list, at the same time; nothing of one is left in the next."""
    first, second = servers
    lists = [(f"127.0.0.1:{server.port}",) for server in servers]
    text = f"{WISH}; cat; wish 127.0.0.1:{first.port}; wish 127.0.0.1:{second.port}"
    outs = [os.pipe(), os.pipe()]  # both are held until both are up
    both = [
        rig.start(rig.spec("sh", "-c", f"echo up {n} >&2; {text}", network=lists[n], stdin=outs[n][0])) for n in (0, 1)
    ]
    until(lambda: rig.errors().count("up ") == 2 or any(readable(c.pidfd, 0) for _, c in both), "both are up")
    for source, end in outs:
        os.close(end)
        os.close(source)
    for launch, child in both:
        ended, after = rig.end(launch, child)
        assert ended.code == 0, (after, rig.errors())
    assert sorted(line.split()[1] for line in rig.said().splitlines()) == ["200", "200", "403", "403"]
    assert [server.came for server in servers] == [1, 1]
    assert rig.proxy.refused("r1/n/1") == []


@as_root
def test_a_proxy_that_dies_lets_nobody_out(rig: Rig, servers: tuple[Server, Server]) -> None:
    listed = servers[0]
    text = f"{WISH}; echo up >&2; cat; wish 127.0.0.1:{listed.port}; exit 3"
    source, end = os.pipe()
    launch, child = rig.start(rig.spec("sh", "-c", text, network=(f"127.0.0.1:{listed.port}",), stdin=source))
    os.close(source)
    until(lambda: "up" in rig.errors() or readable(child.pidfd, 0), "it is up")
    relay = [(pid, who.start_ticks) for pid, who in procs.descendants(rig.proxy._pid).items()]
    assert relay
    os.kill(rig.proxy._pid, signal.SIGKILL)
    assert all_dead(relay)  # it follows at once, and by itself
    os.close(end)
    ended, _ = rig.end(launch, child)
    assert ended.code == 3, rig.errors()
    assert (rig.said(), listed.came) == ("", 0)


@as_root
def test_a_door_that_can_not_be_made_is_told_and_nothing_runs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy answers that it can't: the command has not begun."""

    threads: list[threading.Thread] = []

    def no(folder: str, allow: tuple[str, ...], key: str) -> None:
        def answer() -> None:
            Path(folder, ASK).read_text()
            Path(folder, SAID).write_text("no \x1b[2J right\n")

        threads.append(threading.Thread(target=answer, daemon=True))
        threads[0].start()

    monkeypatch.setattr(rig.proxy, "open_later", no)
    ended, after, said = rig.run(rig.spec("sh", "-c", "echo began", network=("example.org",)))
    threads[0].join(10)
    assert ended.code != 0
    assert said == ""
    assert after.outcome == "failed"
    assert after.error.startswith("can't hold the container to its permissions.network: no ?[2J right")
    assert rig.names() == set()


@as_root
@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_container_that_waits_for_its_door_can_be_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(rig.proxy, "open_later", lambda *args: None)  # nobody will ever answer
    launch, child = rig.start(rig.spec("sh", "-c", "echo began", network=("example.org",)))
    until(rig.names, "there is a container")
    while not readable(child.pidfd, 0.2):
        getattr(rig.wall, end)(launch, child)
    rig.end(launch, child)
    assert rig.said() == ""
    assert rig.names() == set()


@as_root
def test_limits_and_secrets_go_with_a_list(rig: Rig) -> None:
    said = rig.sh(
        "echo $TOKEN; echo $0",
        network=("example.org",),
        env={"TOKEN": "canary"},
        secret_env=frozenset({"TOKEN"}),
        bounds=Bounds(pids=20),
    )
    assert said == "canary\nsh\n"


def test_without_a_proxy_a_list_is_refused(rig: Rig) -> None:
    alone = Container(rig.engine, rig.plain.exempt)
    with pytest.raises(Refused, match="list of hosts"):
        alone.launch(rig.spec("true", network=("example.org",)))
    alone.prefer(rig.image)
    assert alone.proved()["net.allowlist"] == "there is no proxy to hold a list of hosts"


def test_an_image_without_a_shell_holds_no_list(tmp_path: Path, docker: str) -> None:
    rig = Rig(tmp_path, "docker", docker)
    bare = need_image("docker", BARE)
    rig.wall.prefer(bare)
    assert "an image with a shell" in rig.wall.proved()["net.allowlist"]
    with pytest.raises(Refused, match="has no sh"):
        rig.wall.launch(rig.spec("cat", image=bare, network=("example.org",)))
    rig.close()


def test_a_proxy_without_a_way_in_proves_nothing(rig: Rig) -> None:
    """As for an ordinary user, whom Docker's daemon lets into no network."""

    def no(pid: int) -> str:
        assert pid in _pids(rig.engine)
        return "can't open the network namespace"

    rig.wall._probe._lists = no
    rig.wall.prefer(rig.image)
    proved = rig.wall.proved()
    assert proved["net.allowlist"].startswith("can't open the network namespace")
    assert {name for name in GUARANTEES if proved[name]} == {"net.allowlist"}
    assert _pids(rig.engine).isdisjoint(_pids(rig.engine, "canary"))


def _pids(engine: str, run: str = "canary") -> set[int]:
    """The processes of the containers that are tried."""
    names = ask(engine, "ps", "--quiet", f"--filter=label=dagrun.run={run}").split()
    return {int(ask(engine, "inspect", "--format={{.State.Pid}}", name)) for name in names}


def test_who_may_not_enter_is_told_what_to_do(tmp_path: Path, docker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, "docker", docker)
    rig.wall._probe._lists = lambda pid: "no"
    rig.wall.prefer(docker)
    rig.wall.proved()
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert "run dagrun as root, or take rootless Podman" in rig.wall.proved()["net.allowlist"]
    monkeypatch.undo()
    rig.close()


def test_pipes_that_are_not_there_are_a_fault(tmp_path: Path) -> None:
    proxy = NetProxy(lambda pid: None)
    try:
        with pytest.raises(EnvironmentFault, match="can't wait for the process"):
            proxy.open_later(str(tmp_path), ("example.org",), "k")
    finally:
        proxy.close()


@pytest.mark.parametrize("said", ["", "x", "-1", "0", "1", "999999999", "12 34"])
def test_what_is_no_process_gets_no_door(tmp_path: Path, said: str) -> None:
    for name in (ASK, SAID):
        os.mkfifo(tmp_path / name)
    proxy = NetProxy(lambda pid: None)
    try:
        proxy.open_later(str(tmp_path), ("example.org",), "k")
        (tmp_path / ASK).write_text(f"{said}\n")
        with (tmp_path / SAID).open() as answers:
            assert answers.readline().strip() not in ("", "ok")
    finally:
        proxy.close()

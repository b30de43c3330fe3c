"""The proxy of real sandboxes: bubblewrap with a network namespace, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import procs
from dagrun.sandbox.netproxy import URL, NetProxy, proxy_environment

from .conftest import until

ROOT = Path(__file__).parents[2]
BWRAP = shutil.which("bwrap")
NOBODY = 65534
WAIT_S = 30.0

pytestmark = pytest.mark.skipif(BWRAP is None and not os.environ.get("CI"), reason="bubblewrap is not installed")


class Box:
    """A bubblewrap sandbox with its own network, held still until `go`; `pid` is the process inside."""

    def __init__(self, program: str, *flags: str) -> None:
        info_read, info_write = os.pipe()
        block_read, self.block = os.pipe()
        self.popen = subprocess.Popen(
            [
                *("bwrap", "--unshare-all", *flags, "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
                *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
                *("--info-fd", str(info_write), "--block-fd", str(block_read)),
                *("--", sys.executable, "-I", "-S", "-c", textwrap.dedent(program)),
            ],
            pass_fds=(info_write, block_read),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], **proxy_environment()},
            text=True,
        )
        os.close(info_write)
        os.close(block_read)
        data = b""
        while more := os.read(info_read, 4096):
            data += more
        os.close(info_read)
        self.pid: int = json.loads(data)["child-pid"]

    def go(self) -> str:
        """Let it run to its end; what it printed."""
        os.write(self.block, b"x")
        os.close(self.block)
        self.block = -1
        return self.popen.communicate(timeout=WAIT_S)[0]

    def close(self) -> None:
        if self.block >= 0:
            os.close(self.block)
        self.popen.kill()
        self.popen.communicate()


ASK = """
import socket
def ask(request):
    try:
        s = socket.create_connection(("127.0.0.1", 3128), 20)
        s.sendall(request.encode() + b"\\r\\n\\r\\n")
        out = b""
        while data := s.recv(65536):
            out += data
        return out.decode().partition("\\r\\n")[0] + "|" + out.decode().rpartition("\\r\\n\\r\\n")[2].strip()
    except OSError as error:
        return f"{error.strerror}|"
def direct(host, port):
    try:
        socket.create_connection((host, port), 5).close()
        return "reached"
    except OSError as error:
        return "not reached"
"""


class Server:
    """An HTTP server outside that says who it is."""

    def __init__(self, word: str) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.reply = f"HTTP/1.1 200 OK\r\nContent-Length: {len(word)}\r\n\r\n{word}".encode()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.sock.accept()
            except OSError:
                return
            with client, suppress(OSError):  # one that goes away early ends nothing for the others
                client.recv(65536)
                client.sendall(self.reply)

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()


@pytest.fixture(scope="module")
def one() -> Iterator[Server]:
    made = Server("one")
    yield made
    made.close()


@pytest.fixture(scope="module")
def two() -> Iterator[Server]:
    made = Server("two")
    yield made
    made.close()


@pytest.fixture
def proxy() -> Iterator[NetProxy]:
    pids: list[int] = []
    made = NetProxy(pids.append)
    yield made
    made.close()
    assert all(procs.stat(pid) is None for pid in pids)


@pytest.fixture
def boxes() -> Iterator[list[Box]]:
    made: list[Box] = []
    yield made
    for box in made:
        box.close()


FLAGS = [(), ("--unshare-user", "--disable-userns")]


@pytest.mark.parametrize("flags", FLAGS, ids=["root", "userns"])
def test_a_sandbox_reaches_its_hosts_and_nothing_else(
    proxy: NetProxy, boxes: list[Box], one: Server, two: Server, flags: tuple[str, ...]
) -> None:
    box = Box(
        ASK
        + f"""
print(ask("GET http://127.0.0.1:{one.port}/ HTTP/1.1"))
print(ask("GET http://127.0.0.1:{two.port}/ HTTP/1.1"))
print(ask("CONNECT 127.0.0.1:{two.port} HTTP/1.1").split("|")[0])
print(direct("127.0.0.1", {one.port}), direct("127.0.0.1", {two.port}))
""",
        *flags,
    )
    boxes.append(box)
    proxy.open(box.pid, (f"127.0.0.1:{one.port}",), "a/1")
    lines = box.go().splitlines()
    assert lines[0] == "HTTP/1.1 200 OK|one"
    assert lines[1].startswith("HTTP/1.1 403 Forbidden|")
    assert lines[-2:] == ["HTTP/1.1 403 Forbidden", "not reached not reached"]
    assert proxy.refused("a/1") == [f"127.0.0.1:{two.port} (not in permissions.network)"]
    proxy.close_for("a/1")
    assert proxy.refused("a/1") == []


def test_the_same_program_without_a_sandbox_reaches_both(one: Server, two: Server) -> None:
    program = ASK + f'print(direct("127.0.0.1", {one.port}), direct("127.0.0.1", {two.port}))'
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert done.stdout == "reached reached\n"


def test_two_sandboxes_have_each_their_own_list(proxy: NetProxy, boxes: list[Box], one: Server, two: Server) -> None:
    text = ASK + "".join(f'print(ask("GET http://127.0.0.1:{s.port}/ HTTP/1.1").split("|")[0])\n' for s in (one, two))
    for key, server in (("a/1", one), ("b/1", two)):
        boxes.append(Box(text))
        proxy.open(boxes[-1].pid, (f"127.0.0.1:{server.port}",), key)
    yes, no = "HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"
    assert [box.go().splitlines() for box in boxes] == [[yes, no], [no, yes]]
    assert proxy.refused("a/1") == [f"127.0.0.1:{two.port} (not in permissions.network)"]
    assert proxy.refused("b/1") == [f"127.0.0.1:{one.port} (not in permissions.network)"]


def test_a_sandbox_without_a_list_has_no_door(boxes: list[Box]) -> None:
    boxes.append(Box(ASK + 'print(ask("CONNECT a.example:80 HTTP/1.1"))'))
    assert boxes[0].go() == "Connection refused|\n"


@pytest.mark.parametrize("flags", FLAGS, ids=["root", "userns"])
def test_the_canary_holds_in_a_network_of_its_own(proxy: NetProxy, boxes: list[Box], flags: tuple[str, ...]) -> None:
    boxes.append(Box("pass", *flags))
    assert proxy.canary(boxes[0].pid) == ""
    # and the sandbox can be used afterwards
    proxy.open(boxes[0].pid, ("a.example",), "a/1")


def test_the_canary_says_why_where_there_is_no_such_network(proxy: NetProxy) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        assert "no network namespace of its own" in proxy.canary(sleeper.pid)
        with pytest.raises(EnvironmentFault, match="no network namespace of its own"):
            proxy.open(sleeper.pid, ("a.example",), "a/1")
        sleeper.kill()


def test_the_canary_sees_a_server_that_is_reached_past_the_proxy(proxy: NetProxy, boxes: list[Box]) -> None:
    """A network namespace in which something forwards every port outwards is none."""
    boxes.append(Box("pass"))
    why = subprocess.run(
        [sys.executable, "-c", _FORWARDED, str(boxes[0].pid)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert why.stdout.strip() == "a server outside was reached past the proxy"


# in a process of its own: the canary's servers get neighbours inside the namespace with the same ports
_FORWARDED = """
import socket, sys
from dagrun.sandbox import netproxy_canary as canary
from dagrun.sandbox.netproxy_enter import enter, in_child

pid, made, inside = int(sys.argv[1]), canary._server, []

def server():
    sock = made()
    def same_port():
        enter(pid)
        twin = socket.create_server(sock.getsockname())
        return "", [twin.detach()]
    inside.extend(in_child(same_port)[1])
    return sock

class Joiner:
    def open(self, pid, order): return {}
    def tell(self, order): return {}

canary._server = server
print(canary.canary(Joiner(), pid))
"""


def test_a_process_that_has_ended_is_said_so(proxy: NetProxy) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(ProcessLookupError):
        proxy.open(gone.pid, ("a.example",), "a/1")


def test_a_list_that_means_nothing_is_refused(proxy: NetProxy, boxes: list[Box]) -> None:
    boxes.append(Box(ASK + 'print(ask("CONNECT a.example:80 HTTP/1.1"))'))
    with pytest.raises(EnvironmentFault, match=r"'http://a\.example'"):
        proxy.open(boxes[0].pid, ("http://a.example",), "a/1")
    with pytest.raises(EnvironmentFault, match="too long"):
        proxy.open(boxes[0].pid, tuple(f"h{k}.example" for k in range(10_000)), "a/1")
    assert boxes[0].go() == "Connection refused|\n"


def test_nothing_runs_before_it_is_used() -> None:
    pids: list[int] = []
    proxy = NetProxy(pids.append)
    assert proxy.refused("a") == []
    proxy.close_for("a")
    proxy.close()
    assert pids == []


def test_a_helper_that_was_killed_closes_every_door_and_a_new_one_serves(
    proxy: NetProxy, boxes: list[Box], one: Server
) -> None:
    text = ASK + f'print(ask("GET http://127.0.0.1:{one.port}/ HTTP/1.1").split("|")[0])'
    boxes.extend((Box(text), Box(text)))
    allow = (f"127.0.0.1:{one.port}",)
    proxy.open(boxes[0].pid, allow, "a/1")
    os.kill(proxy._pid, 9)
    assert proxy.refused("a/1") == []  # notices
    assert boxes[0].go() == "Connection refused\n"
    proxy.open(boxes[1].pid, allow, "b/1")
    assert boxes[1].go() == "HTTP/1.1 200 OK\n"


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = """
        import os, sys
        from dagrun.sandbox.netproxy import NetProxy
        proxy = NetProxy(lambda pid: print(pid, flush=True))
        print(proxy.canary(os.getpid()), flush=True)
        os.kill(os.getpid(), 9)
    """
    procs.become_subreaper()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    helper = int(done.stdout.split("\n")[0])
    assert "no network namespace of its own" in done.stdout

    def gone() -> bool:
        procs.reap_zombies()
        return procs.stat(helper) is None and procs.children(os.getpid()) == []

    until(gone, "the helper and its relay are gone")


def test_it_has_no_environment_no_descriptor_and_no_session_of_ours(
    proxy: NetProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_TOKEN", "sesame-open")
    proxy.start()
    assert "no network namespace" in proxy.canary(os.getpid())  # it has answered: it is up
    helper = proxy._pid
    (relay,) = procs.children(helper)
    for pid in (helper, relay):
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"sesame" not in environ
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert [link for link in links if not link.startswith(("/dev/null", "socket:", "pipe:"))] == []
        assert os.getsid(pid) == helper
    if os.getuid() == 0:
        status = Path(f"/proc/{relay}/status").read_text().splitlines()
        ids = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        assert ids["Uid"].split() == [str(NOBODY)] * 4
        assert int(ids["CapEff"], 16) == 0


ORDINARY = """
import json, os, sys
sys.path.insert(0, {root!r})
from dagrun.sandbox.netproxy import NetProxy
info_read, info_write = os.pipe()
block_read, block = os.pipe()
os.set_inheritable(info_write, True)
os.set_inheritable(block_read, True)
argv = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--cap-drop", "ALL",
        "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--info-fd", str(info_write),
        "--block-fd", str(block_read), "--", "/bin/true"]
bwrap = os.posix_spawnp("bwrap", argv, {{"PATH": os.environ["PATH"]}})
os.close(info_write)
data = b""
while more := os.read(info_read, 4096):
    data += more
proxy = NetProxy(lambda pid: None)
print("canary:", proxy.canary(json.loads(data)["child-pid"]))
os.write(block, b"x")
print("ended:", os.waitpid(bwrap, 0)[1])
proxy.close()
print("uid:", os.getuid())
"""


def test_an_ordinary_user_can_do_it_too() -> None:
    if os.getuid() != 0:
        pytest.skip("this is an ordinary user: every test here shows it")
    python = next((p for p in (sys.executable, "/usr/bin/python3") if _runs_as_nobody(p)), None)
    if python is None:
        assert not os.environ.get("CI"), "no Python that an ordinary user can start"
        pytest.skip("no Python 3.11 that an ordinary user can start")
    done = subprocess.run(
        [*AS_NOBODY, python, "-I", "-S", "-c", ORDINARY.format(root=str(ROOT))],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        cwd="/",
    )
    assert done.stdout == f"canary: \nended: 0\nuid: {NOBODY}\n", done.stderr


# `env`: setpriv still has root's capabilities when it starts its program
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", "env")


def _runs_as_nobody(python: str) -> bool:
    check = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import dagrun.errors; sys.exit(sys.version_info < (3, 11))"
    done = subprocess.run([*AS_NOBODY, python, "-I", "-S", "-c", check], capture_output=True, check=False, cwd="/")
    return done.returncode == 0


def test_programs_find_it_by_every_usual_variable() -> None:
    found = proxy_environment()
    assert found.pop("NO_PROXY") == found.pop("no_proxy") == ""
    assert set(found.values()) == {URL}
    assert {"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} == set(found)

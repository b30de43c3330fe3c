"""The broker as a process: what it hides, what it leaves alone, when it ends. And what importing litellm does."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dagrun.agent.broker import SETTINGS
from dagrun.agent.live import Live
from dagrun.agent.messages import CallFailed
from dagrun.agent.tools import catalogue
from dagrun.sandbox import procs
from tests.agent.openai_server import Behaviour, Server
from tests.agent.talking import PATIENCE_S, Talk, need_litellm, request

KEY = "sk-canary-0123456789abcdef"
ROOT = Path(__file__).parents[2]
SOON_S = 1.0  # far less than an import takes


@pytest.fixture(scope="module", autouse=True)
def litellm() -> None:
    need_litellm()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(hang=Behaviour(mode="hang")) as running:
        yield running


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broker") / "log"


@pytest.fixture(scope="module")
def talk(server: Server, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    """A broker that was started in a project that tries to take it over."""
    project = tmp_path_factory.mktemp("project")
    (project / ".env").write_text("OPENAI_API_KEY=sk-of-the-project\nOPENAI_API_BASE=http://127.0.0.1:1/v1\n")
    for name in ("litellm", "openai", "httpx", "dotenv"):
        (project / f"{name}.py").write_text("raise SystemExit('taken over')\n")
    here = os.getcwd()
    os.chdir(project)
    try:
        environ = {"OPENAI_API_KEY": KEY, "OPENAI_API_BASE": server.url, "PYTHONPATH": str(project)}
        live = Live(environ=environ, log_path=str(log))
        live.start()
    finally:
        os.chdir(here)
    yield Talk(live)
    live.close()
    left = sorted(path.name for path in project.iterdir())
    assert left == [".env", "dotenv.py", "httpx.py", "litellm.py", "openai.py"]


def test_nothing_of_the_project_it_was_started_in_counts(server: Server, talk: Talk) -> None:
    talk.reply(request("openai/plain"))
    assert server.seen("plain")[0].headers["authorization"] == f"Bearer {KEY}"
    if os.geteuid() == 0:  # it hides from its own user
        assert os.readlink(f"/proc/{talk.live.pid}/cwd") == "/"


def test_its_key_is_nowhere_that_another_process_could_look(talk: Talk, log: Path) -> None:
    failed = talk.failure(request("openai/plain", temperature=0.1), timeout_s=0.000001)
    pid = talk.live.pid
    assert KEY not in str(failed)
    assert KEY.encode() not in log.read_bytes()
    assert KEY not in Path(f"/proc/{pid}/cmdline").read_text()
    # what it was started with holds no key, so that not even root finds one there
    if os.geteuid() == 0:
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


PEEK = """
import ctypes, os, subprocess, sys
if "again" not in sys.argv:  # without capabilities root is an ordinary user with many files
    for capability in range(64):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, "-c", os.environ["PEEK"], *sys.argv[1:], "again"])
sys.path[:0] = [sys.argv[1]]
from dagrun.agent.live import Live
from tests.agent.talking import Talk, request
def look(pid):
    for name in ("environ", "mem", "maps"):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
            print("open", name)
        except PermissionError:
            print("closed", name)
other = subprocess.Popen(["sleep", "60"])
look(other.pid)
other.kill()
other.wait()
live = Live(environ={"DAGRUN_API_KEY": sys.argv[3]}, base_url=sys.argv[2])
Talk(live).reply(request("x/plain"))
look(live.pid)
live.close()
"""


def test_a_process_of_the_same_user_can_not_look_into_it(server: Server) -> None:
    env = {"PATH": os.environ["PATH"], "PEEK": PEEK}
    command = [sys.executable, "-c", PEEK, str(ROOT), server.url, KEY]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    names = ("environ", "mem", "maps")
    expected = [*[f"open {name}" for name in names], *[f"closed {name}" for name in names]]
    assert done.stdout.splitlines() == expected, done.stderr[-2000:]


def test_what_libraries_print_is_without_keys(talk: Talk, log: Path) -> None:
    assert talk.failure(request("nosuchvendor/model")).kind == "bad_request"
    assert KEY not in log.read_text()


def test_bodies_are_the_same_in_every_process(server: Server, talk: Talk) -> None:
    wanted = request("openai/stable", "ä", tools=tuple(catalogue(["Read", "Bash", "Edit"])), temperature=0.2)
    talk.reply(wanted)
    other = Live(environ={}, base_url=server.url)
    try:
        Talk(other).reply(wanted)
    finally:
        other.close()
    first, second = server.seen("stable")
    assert first.raw == second.raw


def test_the_terminal_s_interrupt_is_none_of_its_business(server: Server, talk: Talk) -> None:
    pid = talk.live.pid
    os.kill(pid, signal.SIGINT)
    assert talk.reply(request("openai/plain")).text
    assert talk.live.pid == pid
    assert os.getsid(pid) == pid


# ---------------------------------------------------------------- its end


def _start() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A broker as its docstring says, without Live."""
    ours, theirs = socket.socketpair()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dagrun.agent.broker", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env)
    theirs.close()
    ours.settimeout(PATIENCE_S)
    return process, ours


def _tell(ours: socket.socket, **message: object) -> None:
    ours.sendall(json.dumps(message).encode() + b"\n")


def _hear(ours: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        line += ours.recv(1)
    return dict(json.loads(line))


def test_it_ends_when_its_engine_does_in_the_middle_of_a_call(server: Server) -> None:
    process, ours = _start()
    _tell(ours, environ={}, base_url=server.url, models=True)
    _tell(ours, ask=1, request={"model": "x/hang", "messages": [], "max_tokens": 5}, timeout_s=600)
    assert _hear(ours)["ready"] == 1
    _until(lambda: bool(server.seen("hang")))
    ours.close()
    assert process.wait(SOON_S * 5) == 0


def test_it_ends_when_its_engine_does_while_litellm_is_imported(server: Server) -> None:
    process, ours = _start()
    _tell(ours, environ={}, base_url=server.url, models=True)
    _until(lambda: _cpu_ticks(process.pid) > procs.TICKS_PER_S // 2)  # of the two seconds that it takes
    began = time.monotonic()
    ours.close()
    assert process.wait(PATIENCE_S) == 0
    assert time.monotonic() - began < SOON_S


def _cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_it_can_be_cancelled_before_it_is_ready(server: Server) -> None:
    process, ours = _start()
    try:
        _tell(ours, environ={}, base_url=server.url, models=True)
        _tell(ours, ask=1, request={"model": "x/early", "messages": [], "max_tokens": 5}, timeout_s=600)
        _tell(ours, cancel=1)
        first = _hear(ours)
        assert (first["id"], first["answer"]["error"]) == (1, "overloaded")
        assert "ready" in _hear(ours)
        assert server.seen("early") == []
    finally:
        ours.close()
        process.wait(PATIENCE_S)


def test_what_is_no_order_ends_it() -> None:
    process, ours = _start()
    _tell(ours, ask=1, request={}, timeout_s=1)  # nothing before the environment
    assert process.wait(PATIENCE_S) == 64
    ours.close()


# ---------------------------------------------------------------- litellm's import

LOOK = """
import json, os, sys, threading
before = dict(os.environ)
calls = []
def hook(name, args):
    if name in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"):
        calls.append(name)
    if name == "open" and isinstance(args[0], str) and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        calls.append("write " + args[0])
sys.addaudithook(hook)
import litellm
changed = {k: v for k, v in os.environ.items() if before.get(k) != v}
print(json.dumps({"calls": calls, "changed": changed, "threads": threading.active_count()}))
"""


def test_importing_litellm_opens_no_connection_writes_no_file_and_changes_no_variable(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-of-the-project\n")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", **SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["calls"] == []
    # its own tokenizers, by a path inside the package
    assert set(seen["changed"]) <= {"TIKTOKEN_CACHE_DIR", "CUSTOM_TIKTOKEN_CACHE_DIR"}, seen["changed"]
    assert seen["threads"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; the audit hook sees the same")
def test_importing_litellm_asks_the_kernel_for_no_connection(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **SETTINGS}
    strace = ["strace", "-f", "-o", str(trace), "-e", "trace=connect,sendto"]
    command = [*strace, sys.executable, "-I", "-c", "import litellm"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert [line for line in trace.read_text().splitlines() if "connect(" in line or "sendto(" in line] == []


def test_this_process_knows_no_litellm() -> None:
    """The engine's side, and even the broker's own modules, are imported without it."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import dagrun.agent.live, dagrun.agent.keys, dagrun.agent.broker;"
        "print([m for m in ('litellm', 'openai', 'httpx', 'aiohttp', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script, str(ROOT)], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr
    script = script.replace(", dagrun.agent.broker", "").replace("'litellm'", "'asyncio', 'litellm'")
    done = subprocess.run([sys.executable, "-I", "-c", script, str(ROOT)], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


def test_no_broker_is_left(server: Server) -> None:
    live = Live(environ={}, base_url=server.url)
    live.start()
    pid = live.pid
    live.close()
    assert procs.stat(pid) is None
    assert live.fileno() == -1


def _until(true: object) -> None:
    assert callable(true)
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        select.select([], [], [], 0.005)


def test_a_call_that_can_not_be_sent_in_time_is_not_billed(server: Server, talk: Talk) -> None:
    failed = talk.failure(request("openai/never"), timeout_s=0.0)
    assert isinstance(failed, CallFailed)
    assert (failed.kind, server.seen("never")) == ("overloaded", [])

"""Plays one attempt: makes a world around a project, runs the real program there, and says how it went.

    PYTHONPATH=. python tests/escapes/stage.py '{"attempt": "reads_a_file_outside", "level": "process"}'

`level` is none, process, container or bare (the program alone, without dagrun). The answer is one
JSON document: `verdict` is escaped, held, refused (dagrun said no before it ran), absent (this machine
has nothing to try it with) or broken (the attempt itself went wrong). Runs wherever dagrun runs, as
whoever starts it; leaves nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.escapes import programs
from tests.escapes.programs import ATTEMPTS, TRIED, Attempt, checked, libc, payload_python

HERE = Path(__file__).resolve().parent
DEADLINE_S = 60.0
BLOCK = 0o060000


class Stage:
    """The world of one attempt; `token` is what nobody inside may learn."""

    def __init__(self, attempt: Attempt, level: str, *, image: str = "", accept: str = "") -> None:
        self.attempt = attempt
        self.level = level
        self.image = image
        self.accept = accept
        hint = f"tok-{secrets.token_hex(6)}"  # what an attempt may know, to find the rest
        self.token = hint + secrets.token_hex(12)
        self.base = Path(tempfile.mkdtemp(prefix="escape-", dir=os.environ.get("TMPDIR") or "/tmp"))
        self.project = self.base / "project"
        self.outside = self.base / "outside"
        self.home = self.base / "home"
        self.world: dict[str, Any] = {"hint": hint}
        self.stack = contextlib.ExitStack()
        self.connected = False
        self.absent = ""  # what this machine lacks for the attempt

    # ------------------------------------------------------------ the world

    def build(self) -> None:
        """Make everything that an attempt may reach for."""
        self.base.chmod(0o755)
        self._files()
        self._project()
        self._network()
        self._ipc()
        self._victim()
        if self.attempt.name == "reads_the_disk_through_a_device_file":
            self.world["any"] = self.token  # a block of a disk holds no token: having read it is the proof
        (self.project / "world.json").write_text(json.dumps({**self.world, "bare": self.level == "bare"}))

    def _files(self) -> None:
        (self.home / ".ssh").mkdir(parents=True)
        (self.home / ".ssh" / "id_ed25519").write_text(self.token)
        self.outside.mkdir()
        secret, victim = self.outside / "secret.txt", self.outside / "victim.txt"
        secret.write_text(self.token)
        (self.outside / "output.env").write_text(f"x={self.token}\n")
        victim.write_text("as it was")
        victim.chmod(0o644)
        self.born = victim.stat()
        self.world |= {"secret": str(secret), "outside": str(self.outside), "home": str(self.home)}
        self.world |= {"victim_file": str(victim), "plant": str(self.outside / "planted")}
        self.world["plant_tmp"] = f"/tmp/planted-{self.token[-8:]}"
        self.world["pid_file"] = str(self.project / "dagrun.pid")
        if os.geteuid() == 0:
            self.world["handle"] = self._handle(str(secret))
            self.world["disk"] = self._disk()

    def _handle(self, path: str) -> str:
        room = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
        mount = ctypes.c_int()
        if libc.name_to_handle_at(-100, path.encode(), room, ctypes.byref(mount), 0) != 0:
            if self.attempt.name == "opens_a_file_by_its_handle":
                self.absent = "files have no handles here"
            return ""
        return room.raw.hex()

    def _disk(self) -> tuple[int, int]:
        for line in Path("/proc/partitions").read_text().splitlines()[2:]:
            major, minor, _, name = line.split()
            with contextlib.suppress(OSError), open(f"/dev/{name}", "rb") as file:
                if file.read(512):
                    return int(major), int(minor)
        if self.attempt.name == "reads_the_disk_through_a_device_file":
            self.absent = "no disk can be read here"
        return 0, 0

    def _project(self) -> None:
        project = self.project
        for folder in ".git/hooks nested/repo/.git/hooks empty out/in data sub/inner a/b/c flows".split():
            (project / folder).mkdir(parents=True)
        shutil.copy(HERE / "programs.py", project)
        for name in (".env", "sub/inner/.env.local", "id_ed25519"):
            (project / name).write_text(self.token)
        for name in ("source.txt", ".envrc", ".git/config", "nested/repo/.git/config", "data/plain"):
            (project / name).write_text("as it was\n")
        (project / ".git/HEAD").write_text("ref: refs/heads/main\n")
        (project / "link").symlink_to(self.outside / "secret.txt")
        (project / "victim-link").symlink_to(self.outside / "victim.txt")
        (project / "data/link").symlink_to(self.outside / "secret.txt")
        (project / "alias").symlink_to(self.outside)

    def _network(self) -> None:
        if self.attempt.name == "asks_the_cloud_for_its_keys":
            self._cloud()
        tcp, tcp6, udp = (
            self._serve(socket.AF_INET, ("127.0.0.1", 0)),
            self._serve(socket.AF_INET6, ("::1", 0)),
            self._serve(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM),
        )
        self.allowed = self._serve(socket.AF_INET, ("127.0.0.1", 0))
        self.world |= {"tcp": tcp, "tcp6": tcp6, "udp": udp}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.world["listen"] = free.getsockname()[1]
        self.world["unix"] = str(self.outside / "sock")
        self.world["abstract"] = f"escape-{os.getpid()}"
        self._serve(socket.AF_UNIX, self.world["unix"])
        self._serve(socket.AF_UNIX, "\0" + self.world["abstract"])
        here = os.getcwd()
        os.chdir(self.project / "a/b/c")  # the path may be too long for an address
        try:
            self._serve(socket.AF_UNIX, "sock")
        finally:
            os.chdir(here)

    def _cloud(self) -> None:
        """A network namespace of our own in which 169.254.169.254 answers."""
        try:
            checked(libc.unshare(0x40000000))
        except OSError:
            self.absent = "no network of its own can be made here"
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for name, address in ((b"lo", "127.0.0.1"), (b"lo:1", "169.254.169.254")):
                inet = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(sock, 0x8916, struct.pack("16s16s", name, inet))  # SIOCSIFADDR
            fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
        self._serve(socket.AF_INET, ("169.254.169.254", 80))

    def _serve(self, family: int, address: Any, kind: int = socket.SOCK_STREAM) -> int:
        """Answer everybody who comes with the token; the port."""
        try:
            sock = self.stack.enter_context(socket.socket(family, kind))
            sock.bind(address)
        except OSError:
            if family != socket.AF_INET6:
                raise
            if "ipv6" in self.attempt.name:
                self.absent = "no IPv6 here"
            return 1

        def stream() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = sock.accept()
                    with peer, contextlib.suppress(OSError):
                        peer.sendall(self.token.encode())

        def datagrams() -> None:
            with contextlib.suppress(OSError):
                while True:
                    _, peer = sock.recvfrom(100)
                    sock.sendto(self.token.encode(), peer)

        if kind == socket.SOCK_STREAM:
            sock.listen()
        threading.Thread(target=stream if kind == socket.SOCK_STREAM else datagrams, daemon=True).start()
        return sock.getsockname()[1] if family in (socket.AF_INET, socket.AF_INET6) else 0

    def _ipc(self) -> None:
        key = secrets.randbelow(1 << 30) + 1
        self.world["shm_key"] = key
        number = libc.shmget(key, 4096, 0o1600)
        if number >= 0:
            self.stack.callback(libc.shmctl, number, 0, None)
            libc.shmat.restype = ctypes.c_void_p
            at = libc.shmat(number, None, 0)
            ctypes.memmove(at, self.token.encode(), 40)
        queue = libc.msgget(key, 0o1600)
        if queue >= 0:
            self.stack.callback(libc.msgctl, queue, 0, None)
            libc.msgsnd(queue, struct.pack("l", 1) + self.token.encode(), ctypes.c_size_t(40), 0o4000)
        shared = Path(f"/dev/shm/{self.token[-8:]}")
        shared.write_text(self.token)
        self.stack.callback(shared.unlink)
        self.world["dev_shm"] = str(shared)
        self.world["key"] = f"escape-{os.getpid()}"
        add_key = 217 if programs.ARM else 248
        name, token = self.world["key"].encode(), self.token.encode()
        added = libc.syscall(ctypes.c_long(add_key), b"user", name, token, ctypes.c_size_t(40), ctypes.c_long(-4))
        if added >= 0:
            programs.system("keyctl", 5, added, 0x3F3F0000)  # anyone of this user may read it
            self.stack.callback(programs.system, "keyctl", 3, added)

    def _victim(self) -> None:
        """A process that anyone may trace: the token in its words, its memory, an open file of it."""
        code = (
            "import ctypes, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY);"
            "room = ctypes.create_string_buffer(sys.argv[2].encode());"
            "ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0);"
            "print(fd, ctypes.addressof(room), flush=True); sys.stdin.read()"
        )
        words = [sys.executable, "-I", "-S", "-c", code, self.world["secret"], self.token]
        pipe = subprocess.PIPE
        self.victim = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        self.stack.callback(self._end_victim)
        assert self.victim.stdout is not None
        fd, address = self.victim.stdout.readline().split()
        self.world |= {"victim": self.victim.pid, "victim_fd": int(fd), "victim_address": int(address)}

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for stream in (self.victim.stdin, self.victim.stdout):
            if stream is not None:
                stream.close()

    # ------------------------------------------------------------ the flow

    def words(self, name: str) -> list[str]:
        """The command line of a program inside."""
        return [payload_python(), "-I", "-B", str(self.project / "programs.py"), name, str(self.project / "world.json")]

    def flow(self) -> dict[str, Any]:
        """The workflow in which the attempt is a node."""
        found = self.attempt
        node: dict[str, Any] = {"run": self.words(found.name), "isolation": self.level, "timeout": "20s", **found.key}
        nodes = {"attempt": node}
        if found.before:
            first = {"run": self.words(found.before), "isolation": self.level, "outputs": {"x": {}}}
            if found.before == "gives_a_token":
                first |= {"pass_env": ["GIVEN"]}
            else:
                del first["outputs"]
            node["needs"] = "first"
            nodes = {"first": first, "attempt": node}
            first["permissions"] = {"paths": self._paths(["."], ["out"], [])}
        if self.level in ("process", "container"):
            network = found.network if found.network != "ALLOWED" else [f"127.0.0.1:{self.allowed}"]
            paths = self._paths(list(found.read), list(found.write), list(found.deny))
            node |= found.limits
            node["permissions"] = {"paths": paths, "network": network}
        for one in nodes.values():
            if self.level == "container":
                one["docker"] = {"image": self.image}
            if self.level == "none":
                one.pop("permissions", None)
        return {"version": 1, "name": "escape", "nodes": nodes}

    def _paths(self, read: list[str], write: list[str], deny: list[str]) -> dict[str, list[str]]:
        home = os.path.realpath(sys.base_prefix)
        if self.level == "process" and not payload_python().startswith("/usr/"):
            read = [*read, home]
        return {key: value for key, value in (("read", read), ("write", write), ("deny", deny)) if value}

    # ------------------------------------------------------------ the run

    def play(self) -> dict[str, Any]:
        """Run it; what came of it."""
        found = self.attempt
        (self.project / "flows/escape.yaml").write_text(json.dumps(self.flow(), indent=1))
        self.flow_text = (self.project / "flows/escape.yaml").read_text()
        if found.judge == "connected":
            threading.Thread(target=self._connect, daemon=True).start()
        if self.level == "bare":
            words = self.words(found.name)
        else:
            words = [sys.executable, "-m", "dagrun", "execute", "flows/escape.yaml", "--ui", "log"]
            words += ["--accept-missing", self.accept] if self.accept else []
            words = ["/bin/sh", "-c", f'echo $$ >"{self.world["pid_file"]}"; exec "$@"', "sh", *words]
        began = time.monotonic()
        code, said = self._run(words)
        log = said if self.level == "bare" else self._log()
        return self._judge(code, said, log) | {"seconds": round(time.monotonic() - began, 2)}

    def _run(self, words: list[str]) -> tuple[int, str]:
        """Start it with a terminal, an open file and an input that it must not hand on; end it if it is to be ended."""
        secret = os.open(self.world["secret"], os.O_RDONLY)
        handed = fcntl.fcntl(secret, fcntl.F_DUPFD, 50)
        read, write = os.pipe()
        os.write(write, self.token.encode())
        os.close(write)
        leader, follower = os.openpty()
        with open(self.base / "said", "w+b") as said:
            process = subprocess.Popen(
                words, cwd=self.project, env=self._env(), stdin=read, stdout=said, stderr=said,
                pass_fds=(handed,), start_new_session=True, preexec_fn=lambda: _take_terminal(follower),
            )  # fmt: skip
            try:
                if self.attempt.ending == "killed" and self.level != "bare":
                    self._wait_for_try(process)
                    process.kill()
                code = process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            for fd in (secret, handed, read, leader, follower):
                os.close(fd)
            said.seek(0)
            return code, said.read().decode(errors="replace")

    def _wait_for_try(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + 20
        while process.poll() is None and TRIED not in self._log() and time.monotonic() < end:
            time.sleep(0.02)

    def _env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "PYTHONPATH", "DOCKER_HOST")}
        home, temp = str(self.home), str(self.base / "tmp")
        os.makedirs(temp, exist_ok=True)
        kept |= {"HOME": home, "XDG_CACHE_HOME": f"{home}/cache", "TMPDIR": temp, "CI": "true", "TERM": "dumb"}
        kept |= {"CALLER_NOTE": self.token, "GIVEN": self.token, "LD_BIND_NOW": "1", "GCONV_PATH": "/nowhere"}
        return kept

    def _log(self) -> str:
        logs = sorted(self.project.glob(".dagrun/runs/*/nodes/attempt.*"))
        logs += sorted(self.project.glob(".dagrun/runs/*/nodes/.slot-*"))  # of one that still runs
        logs += sorted(self.project.glob("out/dagrun-was/runs/*/nodes/attempt.*"))
        return "".join(path.read_text(errors="replace") for path in logs if path.is_file())

    def _connect(self) -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end and not self.connected:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.world["listen"]), 1):
                self.connected = True
            time.sleep(0.02)

    # ------------------------------------------------------------ what came of it

    def _judge(self, code: int, said: str, log: str) -> dict[str, Any]:
        escaped = f"ESCAPED {self.token}" in log if self.attempt.data else "ESCAPED " in log
        if self.attempt.judge:
            escaped = getattr(self, f"_{self.attempt.judge}")()
        journal = "".join(p.read_text() for p in self.project.glob(".dagrun/runs/*/journal.jsonl"))
        outcome = next((o for o in ("denied", "over_limit", "timed_out") if f'"outcome":"{o}"' in journal), "")
        if escaped:
            verdict = "escaped"
        elif "HELD " in log or TRIED in log or outcome in ("denied", "over_limit"):
            verdict = "held"
        elif self.attempt.ending == "normal" and self.level != "bare" and code in (3, 8):
            verdict = "refused"
        else:
            verdict = "broken"
        return {"verdict": verdict, "code": code, "outcome": outcome, "log": log[-3000:], "said": said[-3000:]}

    def _collected(self) -> bool:
        """Whether the run's store or journal has what no node may read."""
        for folder, _, files in os.walk(self.project / ".dagrun"):
            for name in files:
                path = Path(folder, name)
                if path.is_file() and self.token in path.read_bytes().decode(errors="replace"):
                    return True
        return False

    def _planted(self) -> bool:
        return os.path.exists(self.world["plant"])

    def _planted_tmp(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.world["plant_tmp"])
            return True
        return False

    def _changed(self) -> bool:
        path = Path(self.world["victim_file"])
        return not path.exists() or path.read_text() != "as it was"

    def _mode(self) -> bool:
        now = os.stat(self.world["victim_file"])
        return (now.st_mode, now.st_mtime_ns) != (self.born.st_mode, self.born.st_mtime_ns)

    def _touched(self) -> bool:
        return (self.project / "source.txt").read_text() != "as it was\n"

    def _runs_moved(self) -> bool:
        return (self.project / "out/dagrun-was/runs").is_dir()

    def _hook(self) -> bool:
        return (self.project / ".git/hooks/pre-commit").exists()

    def _nested_hook(self) -> bool:
        return (self.project / "nested/repo/.git/hooks/pre-commit").exists()

    def _new_git(self) -> bool:
        return (self.project / "empty/.git").exists()

    def _git_config(self) -> bool:
        return (self.project / ".git/config").read_text() != "as it was\n"

    def _envrc(self) -> bool:
        return (self.project / ".envrc").read_text() != "as it was\n"

    def _flow(self) -> bool:
        path = self.project / "flows/escape.yaml"
        return not path.exists() or path.read_text() != self.flow_text

    def _connected(self) -> bool:
        return self.connected

    def _victim_dead(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.victim.wait(0.3)
            return True
        return False

    def _set_id(self) -> bool:
        return any(p.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID) for p in (self.project / "out").iterdir())

    def _device(self) -> bool:
        return any(stat.S_ISCHR(p.lstat().st_mode) for p in (self.project / "out").iterdir())

    def _alive(self) -> bool:
        """Whether something of it lives; a killed dagrun's watchdog has some seconds."""
        end = time.monotonic() + (10 if self.attempt.ending == "killed" and self.level != "bare" else 0)
        while (left := list(self._survivors())) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return bool(left)

    def _survivors(self) -> Iterator[int]:
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().decode(errors="replace").split("\0")
                    if str(self.project / "programs.py") in words and "execute" not in words:
                        yield int(name)

    def close(self) -> None:
        """Leave nothing."""
        self.stack.close()
        _remove(self.base)


def _take_terminal(fd: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


def _remove(base: Path) -> None:
    def again(function: Callable[[str], object], path: str, _: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            function(path)

    shutil.rmtree(base, onerror=again)


def main() -> int:
    """Play what the first word asks for; the answer on stdout."""
    wanted = json.loads(sys.argv[1])
    stage = Stage(
        ATTEMPTS[wanted["attempt"]], wanted["level"], image=wanted.get("image", ""), accept=wanted.get("accept", "")
    )
    try:
        stage.build()
        answer = {"verdict": "absent", "log": stage.absent} if stage.absent else stage.play()
    finally:
        stage.close()
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())

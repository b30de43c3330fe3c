"""The command line of a container engine: what Docker and Podman call the same thing, and how they are asked.

Promises: every call has its own time limit, a clean environment (the user's own settings of the
engine and nothing of a workflow) and speaks to an engine on *this* machine, as the mounts of another
would be other files. Knows no Spec: that is container_line.py.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

EngineName: TypeAlias = Literal["docker", "podman"]

ASK_S = 5.0
_DOCKER_SOCKET = "/var/run/docker.sock"
_KEPT = ("PATH", "HOME", "XDG_RUNTIME_DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What is different from engine to engine."""

    name: EngineName
    title: str
    package: str
    settings: tuple[str, ...]  # variables of the user that tell where the engine is
    remove: tuple[str, ...]
    more: tuple[str, ...]  # options of `run` that the other does not have
    init: tuple[str, ...]  # where its init program may be; others than the first must be named
    tmp: str  # options of the private /tmp; {uid}, {gid}, {size}
    counts_memory: bool  # it tells when memory ran out; Podman does not where control groups are of the first kind
    plain_value: str  # what a line of --env-file carries unchanged, as a regular expression


DIALECTS: Mapping[EngineName, Dialect] = {
    "docker": Dialect(
        name="docker",
        title="Docker",
        package="docker.io",
        settings=("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"),
        remove=("rm", "-f", "-v"),
        more=(),
        init=(),
        tmp="rw,exec,nosuid,nodev,size={size},mode=0700,uid={uid},gid={gid}",
        counts_memory=True,
        plain_value=r"[^\x00\r\n]{0,30000}",
    ),
    "podman": Dialect(
        name="podman",
        title="Podman",
        package="podman",
        settings=("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF", "REGISTRY_AUTH_FILE"),
        remove=("rm", "-f", "-v", "-t", "0"),
        more=("--http-proxy=false", "--systemd=false"),
        init=(
            "/usr/libexec/podman/catatonit",
            *("/usr/bin/catatonit", "/usr/bin/tini-static", "/usr/bin/docker-init", "/usr/libexec/docker/docker-init"),
        ),
        # Without `notmpcopyup` it would start as a copy of the image's own.
        tmp="rw,exec,nosuid,nodev,size={size},mode=0700,notmpcopyup,U",
        counts_memory=False,
        # Versions differ in what quotes and comments mean.
        plain_value=r"(?:[A-Za-z0-9_@%+=:,./-](?:[A-Za-z0-9_@%+=:,./ -]{0,30000}[A-Za-z0-9_@%+=:,./-])?)?",
    ),
}


class Answer(NamedTuple):
    """What a call gave; `code` is None when it took too long."""

    code: int | None
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def why(self) -> str:
        """The last line that it said about its failure."""
        if self.code is None:
            return "no answer in time"
        lines = [line for line in self.err.splitlines() if line.strip() and not line.startswith("See '")]
        return plain_words(lines[-1] if lines else f"exit {self.code}")


class Unreachable(Exception):
    """The engine can't be used from here; the text says why and what to do."""


class Cli:
    """One engine, asked by its command. Nothing is looked up or started before the first question."""

    def __init__(self, engine: EngineName, environ: Mapping[str, str] | None = None) -> None:
        self.dialect = DIALECTS[engine]
        self._environ = dict(os.environ if environ is None else environ)
        self._program = ""
        self._endpoint: str | None = None

    @property
    def program(self) -> str:
        """The absolute path of the command. Raises Unreachable when there is none."""
        if not self._program:
            found = shutil.which(self.dialect.name, path=self._environ.get("PATH", os.defpath))
            if found is None:
                raise Unreachable(
                    f"{self.dialect.title} is not installed (no `{self.dialect.name}` on the PATH):"
                    f" apt install {self.dialect.package}"
                )
            self._program = os.path.abspath(found)
        return self._program

    def env(self, config: str = "") -> dict[str, str]:
        """The environment of every call. `config`: a folder to take for the user's settings of Docker.

        An empty one keeps proxies of the user's config.json out of containers. Raises Unreachable.
        """
        env = {name: self._environ[name] for name in (*_KEPT, *self.dialect.settings) if self._environ.get(name)}
        env.setdefault("PATH", os.defpath)
        endpoint = self.endpoint()
        if config and endpoint:
            env.pop("DOCKER_CONTEXT", None)
            env |= {"DOCKER_HOST": endpoint, "DOCKER_CONFIG": config}
        return env

    def endpoint(self) -> str:
        """The URL of the engine's socket, "" for Podman, which has none. Raises Unreachable."""
        if self._endpoint is None:
            self._endpoint = self._docker_endpoint() if self.dialect.name == "docker" else self._podman_endpoint()
        return self._endpoint

    def ask(self, *words: str, timeout_s: float = ASK_S, config: str = "") -> Answer:
        """Call the command and wait for its answer. Raises Unreachable when there is no such command."""
        try:
            done = subprocess.run(
                [self.program, *words],
                env=self.env(config),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer(None, "", "")
        except OSError as error:
            raise Unreachable(f"{self.program} can't be run: {error.strerror}") from None
        return Answer(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Call the command without waiting; it ends itself after 10 s. The caller reaps it."""
        return subprocess.Popen(
            [timeout_program(), "-s", "KILL", "10", self.program, *words],
            env=self.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    # ------------------------------------------------------------ where the engine is

    def _docker_endpoint(self) -> str:
        host = self._environ.get("DOCKER_HOST", "")
        context = self._environ.get("DOCKER_CONTEXT", "") or ("" if host else self._current_context())
        if context and context != "default":
            host = self._context_host(context)
        host = host or f"unix://{_DOCKER_SOCKET}"
        if not host.startswith("unix://"):
            raise Unreachable(
                f"Docker is on another machine ({plain_words(host)}), where the mounts would be other files:"
                " unset DOCKER_HOST and DOCKER_CONTEXT, or run dagrun there"
            )
        _knock(host.removeprefix("unix://"))
        return host

    def _podman_endpoint(self) -> str:
        for name in ("CONTAINER_HOST", "CONTAINER_CONNECTION"):
            if self._environ.get(name):
                raise Unreachable(f"Podman is asked for on another machine by {name}: unset it, or run dagrun there")
        return ""

    def _current_context(self) -> str:
        folder = self._environ.get("DOCKER_CONFIG") or os.path.join(self._environ.get("HOME", "/"), ".docker")
        try:
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
                found: object = json.load(file)
        except (OSError, ValueError):
            return ""
        context = found.get("currentContext", "") if isinstance(found, dict) else ""
        return context if isinstance(context, str) else ""

    def _context_host(self, context: str) -> str:
        env = {name: self._environ[name] for name in (*_KEPT, "DOCKER_CONFIG") if self._environ.get(name)}
        words = [self.program, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}", "--", context]
        try:
            done = subprocess.run(words, env=env, capture_output=True, timeout=ASK_S, text=True, check=False)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is None or done.returncode:
            raise Unreachable(f"the Docker context {context!r} can't be read: docker context ls shows what there is")
        return done.stdout.strip()


def _knock(path: str) -> None:
    """Raise Unreachable, with the remedy, when nobody answers at a socket."""
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(ASK_S)
        try:
            door.connect(path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise Unreachable(
                    f"this user may not use the Docker socket {path}: add it to its group (usermod -aG docker"
                    " $USER, then log in again; members can become root), or install rootless Podman"
                ) from None
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTSOCK):
                raise Unreachable(
                    f"the Docker daemon does not run (nobody answers at {path}): systemctl start docker, or dockerd"
                ) from None
            raise Unreachable(f"the Docker socket {path} can't be reached: {error.strerror or error}") from None


class Helpers:
    """Calls that nobody waits for: started here, kept out of sweeps, reaped when they have ended."""

    def __init__(self, cli: Cli, exempt: Callable[[int], None]) -> None:
        self._cli = cli
        self._exempt = exempt
        self._running: dict[tuple[str, ...], subprocess.Popen[bytes]] = {}

    def call(self, *words: str) -> bool:
        """Start this call unless the same one is still on its way. False: it could not be started."""
        self.reap()
        if words in self._running:
            return True
        try:
            helper = self._cli.start(*words)
        except (OSError, Unreachable):
            return False
        self._exempt(helper.pid)
        self._running[words] = helper
        return True

    def reap(self) -> None:
        """Collect those that have ended."""
        for words, helper in list(self._running.items()):
            if helper.poll() is not None:
                del self._running[words]

    def wait(self) -> bool:
        """Wait for all of them, as long as the engine answers at all. False: it does not, and they are ended."""
        self.reap()
        if not self._running:
            return True
        try:
            answers = self._cli.ask("version").ok
        except Unreachable:
            answers = False
        for helper in self._running.values():
            try:
                helper.wait(timeout=12 if answers else 0)
            except subprocess.TimeoutExpired:
                _end(helper)
        self._running.clear()
        return answers


def _end(helper: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a helper and what it waits for: it leads a session of its own."""
    try:
        os.killpg(helper.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    helper.wait()


def timeout_program() -> str:
    """The path of `timeout`, which every system with a shell has. Raises Unreachable without it."""
    found = shutil.which("timeout", path=f"{os.defpath}:/usr/bin:/bin")
    if found is None:
        raise Unreachable("there is no `timeout` command, which bounds calls of the engine: apt install coreutils")
    return found


def plain_words(text: str) -> str:
    """What an engine said, without its noise and on one line."""
    for noise in (
        "docker: ",
        "Error response from daemon: ",
        "Error: ",
        "failed to create task for container: ",
        "failed to create shim task: ",
        "OCI runtime create failed: ",
        "container_linux.go:",
    ):
        text = text.replace(noise, "")
    text = " ".join(text.split())
    return "".join([c if c.isprintable() else "?" for c in text])[:500].rstrip(".")

"""Where the attempts are played: as whoever runs the tests, as an ordinary user, and where only Landlock works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STAGE = Path(__file__).with_name("stage.py")
PACKAGES = Path(sysconfig.get_path("purelib"))
NOBODY = 65534
# What Landlock is known not to hold, and a user has to accept.
GAPS = ("fs.deny", "fs.meta", "fs.protected", "proc.hide", "ipc", "net.allowlist")


@dataclass(frozen=True)
class Lane:
    """How to start something there. `container` is the running one that it is in."""

    name: str
    temp: str
    python: str = sys.executable
    path: str = f"{ROOT}{os.pathsep}{PACKAGES}"
    container: str = ""
    user: int | None = None
    accept: str = ""
    env: dict[str, str] = field(default_factory=dict)

    def play(self, attempt: str, level: str, image: str = "") -> dict[str, Any]:
        """The answer of stage.py."""
        accept = self.accept if level == "process" else ""
        wanted = json.dumps({"attempt": attempt, "level": level, "image": image, "accept": accept})
        done = self.run(str(STAGE), wanted)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def run(self, *words: str, cwd: str = "/") -> subprocess.CompletedProcess[str]:
        """Run the interpreter with these words there."""
        env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TMPDIR": self.temp, "PYTHONPATH": self.path, **self.env}
        env |= {k: v for k, v in os.environ.items() if k in ("DOCKER_HOST",)}
        env |= {"PYTHONDONTWRITEBYTECODE": "1", "HOME": self.temp}
        who: dict[str, Any] = {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        command = [self.python, *words]
        if self.container:
            given = [part for name, value in env.items() for part in ("-e", f"{name}={value}")]
            command = ["docker", "exec", *given, self.container, self.python, *words]
            env = {**os.environ}
        pipe = subprocess.PIPE
        return subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, timeout=110, **who
        )

    def proved(self, level: str) -> dict[str, str]:
        """What `dagrun doctor` ticks there: guarantee → "" or why not."""
        done = self.run("-m", "dagrun", "-C", self.temp, "doctor", "--json")
        assert done.returncode in (0, 8), done.stderr
        for found in json.loads(done.stdout)["levels"]:
            if found["level"] == level:
                return {name: held["why"] for name, held in found["guarantees"].items()}
        raise AssertionError(done.stdout)


def ordinary_user(temp: Path) -> Lane:
    """An ordinary user of this machine, with an interpreter and a project that it can read. Root only."""
    temp.mkdir()
    os.chown(temp, NOBODY, NOBODY)
    root = _readable(ROOT, temp / "root", ("dagrun", "tests"))
    path = os.pathsep.join([root, _readable(PACKAGES, temp / "packages")])
    return Lane("user", str(temp), python=_interpreter(temp), path=path, user=NOBODY)


@contextmanager
def inside_a_container(image: str) -> Iterator[Lane]:
    """A container as Docker makes one, with no rights to make namespaces and no bubblewrap."""
    name = f"dagrun-test-lane-{os.getpid()}"
    words = ["docker", "run", "--detach", "--rm", "--init", "--name", name, "--network", "none"]
    for folder in (ROOT, PACKAGES):
        words += ["--mount", f"type=bind,src={folder},dst={folder},readonly"]
    python = os.path.realpath(sys.executable)
    words += [image, python, "-c", "import signal; signal.pause()"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    try:
        yield Lane("landlock", "/tmp", python=python, container=name, accept=",".join(GAPS))
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, timeout=60, check=False)


def _open_to_all(path: Path) -> bool:
    return all(p.stat().st_mode & 0o005 == 0o005 for p in (path, *path.parents) if p.is_dir())


def _readable(path: Path, copy: Path, parts: tuple[str, ...] = ()) -> str:
    """A folder that others can read: itself, or a copy of these parts."""
    if _open_to_all(path):
        return str(path)
    copy.mkdir()
    names = [path / part for part in parts] or [p for p in path.iterdir() if p.name not in ("mypy", "ruff")]
    # with the times of the files, else no compiled module fits its source and every start compiles all of them
    command = ["cp", "-r", "--preserve=timestamps", *map(str, names), str(copy)]
    subprocess.run(command, check=True, timeout=60)
    return str(copy)


def _interpreter(temp: Path) -> str:
    """This interpreter, or one like it, where others can run it."""
    real = Path(os.path.realpath(sys.executable))
    if _open_to_all(real.parent):
        return str(real)
    system = Path(f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
    if system.exists():
        return str(system)
    copy = temp / "python"
    subprocess.run(["cp", "-r", "--preserve=timestamps", sys.base_prefix, str(copy)], check=True, timeout=100)
    return str(copy / real.relative_to(sys.base_prefix))

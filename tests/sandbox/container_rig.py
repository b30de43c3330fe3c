"""Attempts in real containers, driven as the engine drives them: launch, spawn, started, … , ended, close."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from dagrun.sandbox.base import Child, Exit
from dagrun.sandbox.container import Container
from dagrun.sandbox.container_cli import EngineName
from dagrun.sandbox.netproxy import NetProxy
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Aftermath, Bounds, Launch, Spec
from tests.images import SHELL

from .conftest import readable


class Rig:
    """A project to grant parts of, and a back end. `run` gives exit, aftermath and what was printed."""

    def __init__(self, folder: Path, engine: EngineName, image: str = SHELL) -> None:
        self.engine = engine
        self.image = image
        self.project = folder / "project"
        self.run_dir = self.project / ".dagrun" / "runs" / "r1"
        self.exchange = self.run_dir / "exchange" / "n.1.d"
        self.exchange.mkdir(parents=True)
        for name in ("in", "out"):
            (self.project / name).mkdir()
        # As root the container runs as somebody else, who has to be able to write here.
        (self.project / "out").chmod(0o777)
        self.plain = Plain()
        self.proxy = NetProxy(self.plain.exempt)
        self.wall = Container(engine, self.plain.exempt, self.proxy)
        self.out = os.open(folder / "stdout", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self.err = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self.count = 0

    def spec(self, *argv: str, **more: object) -> Spec:
        """A Spec with `in` readable and `out` writable, and no network."""
        self.count += 1
        attempt = f"r1/n/{self.count}"
        plain = Spec(
            attempt_id=attempt,
            run_id="r1",
            run_dir=str(self.run_dir),
            node="n",
            argv=argv,
            env={"DAGRUN_ATTEMPT_ID": attempt},
            cwd=str(self.project),
            project=str(self.project),
            level="container",
            read=("in",),
            write=("out",),
            network="none",
            hidden=(str(self.project / ".dagrun"),),
            exchange=str(self.exchange),
            bounds=Bounds(),
            image=self.image,
        )
        return replace(plain, **more)  # type: ignore[arg-type]

    def start(self, spec: Spec) -> tuple[Launch, Child]:
        """Spawn an attempt."""
        launch = self.wall.launch(spec)
        child = self.plain.spawn(
            launch.argv,
            {**launch.env, "DAGRUN_ATTEMPT_ID": spec.attempt_id},
            out_fd=self.out,
            err_fd=self.err,
            attempt_id=spec.attempt_id,
            cwd=launch.cwd,
            script=launch.script,
            fds=launch.fds,
            stdin=spec.stdin,
        )
        assert isinstance(child, Child), child
        self.wall.started(launch, child)
        return launch, child

    def end(self, launch: Launch, child: Child) -> tuple[Exit, Aftermath]:
        """Wait for its end, and take what is known of it."""
        assert readable(child.pidfd, 60), "the attempt did not end"
        self.plain.sweep(child)
        ended = self.plain.reap(child)
        return ended, self.wall.ended(launch, ended)

    def run(self, spec: Spec) -> tuple[Exit, Aftermath, str]:
        """An attempt from start to end, and what it printed on both channels."""
        sizes = os.fstat(self.out).st_size, os.fstat(self.err).st_size
        ended, after = self.end(*self.start(spec))
        said = [os.pread(fd, 1 << 20, size).decode() for fd, size in zip((self.out, self.err), sizes, strict=True)]
        return ended, after, "".join(said)

    def sh(self, text: str, **more: object) -> str:
        """What a shell text prints; it has to end with 0."""
        ended, after, said = self.run(self.spec("sh", "-c", text, **more))
        assert ended.code == 0, (ended, after, said)
        return said

    def said(self) -> str:
        """Everything on stdout so far."""
        return os.pread(self.out, 1 << 20, 0).decode()

    def errors(self) -> str:
        """Everything on stderr so far."""
        return os.pread(self.err, 1 << 20, 0).decode()

    def names(self) -> set[str]:
        """Containers of this run that there are, running or not."""
        from dagrun.sandbox.container_line import folder_label

        wanted = f"label=dagrun.dir={folder_label(str(self.run_dir))}"
        return set(ask(self.engine, "ps", "-a", f"--filter={wanted}", "--format={{.Names}}").split())

    def close(self) -> None:
        """End what is left, and check that no container is."""
        self.plain.end_all()
        for child in list(self.plain._strays._running.values()):
            self.plain.reap(child)
        self.wall.close()
        self.proxy.close()
        left = self.names()
        if left:
            ask(self.engine, "rm", "-f", *left)
        self.plain.close()
        os.close(self.out)
        os.close(self.err)
        assert not left, f"containers were left: {left}"


def ask(engine: str, *words: str) -> str:
    """What the engine's command says."""
    done = subprocess.run([engine, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

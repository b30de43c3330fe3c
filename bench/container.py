"""What a container node costs beside a plain `docker run --rm` of the same image.

    python bench/container.py --image busybox [--engine docker] [--runs 20] [--target 1.15]

From the decision to start until the end is known and the container is gone. Rounds are interleaved and
figures are medians. A figure that is over is reported and nothing more: this never fails a build.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dagrun.sandbox.base import Child
from dagrun.sandbox.container import Container
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Spec


def spec(folder: Path, image: str, *, fails: bool, secret: bool) -> Spec:
    """A project that may be read, a folder that may be written, no network."""
    env = {"DAGRUN_ATTEMPT_ID": "bench/n/1"} | ({"TOKEN": "secret"} if secret else {})
    return Spec(
        attempt_id="bench/n/1",
        run_id="bench",
        run_dir=str(folder / ".dagrun" / "run"),
        node="n",
        argv=("false" if fails else "true",),
        env=env,
        secret_env=frozenset({"TOKEN"} if secret else ()),
        cwd=str(folder),
        project=str(folder),
        level="container",
        read=(".",),
        write=("out",),
        network="none",
        hidden=(str(folder / ".dagrun"),),
        image=image,
    )


class Machine:
    """Runs one attempt after the other, as the engine does."""

    def __init__(self, engine: str, image: str) -> None:
        self.plain = Plain()
        self.wall = Container("podman" if engine == "podman" else "docker", self.plain.exempt)
        self.null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self.image = image
        before = time.perf_counter()
        self.wall.prefer(image)
        lacks = {name: why for name, why in self.wall.proved().items() if why and name != "net.allowlist"}
        if lacks:
            sys.exit(f"not held here: {lacks}")
        self.probe_ms = (time.perf_counter() - before) * 1e3

    def once_ms(self, wanted: Spec) -> float:
        """Milliseconds of one attempt, from nothing to its end."""
        start = time.perf_counter()
        launch = self.wall.launch(wanted)
        child = self.plain.spawn(
            launch.argv, launch.env, out_fd=self.null, err_fd=self.null, attempt_id=wanted.attempt_id, cwd=launch.cwd
        )
        if not isinstance(child, Child):
            sys.exit(f"not started: {child}")
        self.wall.started(launch, child)
        select.select([child], [], [], 60)
        self.plain.sweep(child)
        done = self.plain.reap(child)
        self.wall.ended(launch, done)
        if done.code != (1 if wanted.argv == ("false",) else 0):
            sys.exit(f"the command failed: {done}")
        return (time.perf_counter() - start) * 1e3


def plain_ms(engine: str, image: str) -> float:
    """Milliseconds of `docker run --rm --network=none IMAGE true`: a network costs more than all else here."""
    start = time.perf_counter()
    words = [engine, "run", "--rm", "--network=none", "--pull=never", image, "true"]
    if engine == "podman":
        words[2:2] = ["--ulimit=nproc=16384:16384", "--ulimit=nofile=1024:4096"]
    subprocess.run(words, check=True, capture_output=True)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measure and print."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--engine", choices=("docker", "podman"), default="docker")
    ap.add_argument("--image", default="busybox", help="one that is here, with sh and true")
    ap.add_argument("--runs", type=int, default=20)
    ap.add_argument("--target", type=float, default=1.15)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory(prefix="dagrun-bench-") as name:
        folder = Path(name)
        for part in ("out", ".dagrun/run"):
            (folder / part).mkdir(parents=True)
        folder.chmod(0o755)  # as root the container runs as somebody else
        machine = Machine(a.engine, a.image)
        cases = {
            f"{a.engine} run --rm, no network": None,
            "an attempt": spec(folder, a.image, fails=False, secret=False),
            "an attempt with a secret": spec(folder, a.image, fails=False, secret=True),
            "an attempt that fails": spec(folder, a.image, fails=True, secret=False),
        }
        got: dict[str, list[float]] = {case: [] for case in cases}
        order = list(cases)
        for k in range(a.runs + 1):  # the first round warms up
            for case in order[k % len(order) :] + order[: k % len(order)]:
                wanted = cases[case]
                took = plain_ms(a.engine, a.image) if wanted is None else machine.once_ms(wanted)
                if k:
                    got[case].append(took)
        machine.wall.close()
    base = statistics.median(got[order[0]])
    print(f"the guarantees tried once: {machine.probe_ms:.0f} ms")
    for case, times in got.items():
        middle = statistics.median(times)
        over = "  over" if middle > a.target * base and case == "an attempt" else ""
        print(f"{case:<28} {middle:7.0f} ms  {middle / base:5.2f} x{over}")


if __name__ == "__main__":
    main()

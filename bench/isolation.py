"""What confinement costs a node: the same command spawned plainly and inside bubblewrap, side by side.

    python bench/isolation.py [--runs 200] [--target-ms 8]

From the decision to start until the end is known: grants opened, bwrap made, spawned, reaped, looked
after. Rounds are interleaved and figures are medians, so that a noisy machine disturbs all alike. The
typical case is a project that may be read, a folder that may be written and no network. A figure that
is over is reported and nothing more: this never fails a build.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dagrun.sandbox.bubblewrap import Bubblewrap
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Launch, Spec

TRUE = ("/bin/true",)


def project(folder: Path) -> None:
    """A small repository, as a node finds it."""
    for name in ("src", "out", "docs", ".dagrun"):
        (folder / name).mkdir()
    for k in range(50):
        (folder / "src" / f"m{k}.py").write_text("pass\n")
    if shutil.which("git"):
        subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)


def spec(folder: Path, **more: object) -> Spec:
    """The typical attempt, or another one."""
    base: dict[str, object] = {
        "attempt_id": "run/node/1",
        "run_id": "run",
        "run_dir": str(folder / ".dagrun"),
        "node": "node",
        "argv": TRUE,
        "env": {"PATH": os.environ.get("PATH", os.defpath), "DAGRUN_ATTEMPT_ID": "run/node/1"},
        "cwd": str(folder),
        "project": str(folder),
        "read": (".",),
        "write": ("out",),
        "network": "none",
        "hidden": (str(folder / ".dagrun"),),
        "protected": (str(folder / "flow.yaml"),),
    }
    return Spec(**{**base, **more})


def cases(folder: Path) -> dict[str, Spec | None]:
    """What is measured; None is a plain spawn."""
    return {
        "plain": None,
        "typical: project ro, out rw, no network": spec(folder),
        "whole project rw (git protected)": spec(folder, write=(".",)),
        "deny by name": spec(folder, deny=("*.pem",)),
        "all of the network": spec(folder, network="any"),
        "no network, files not held": spec(folder, read=None, write=()),
    }


class Machine:
    """Runs one command after the other, as the engine does."""

    def __init__(self) -> None:
        self.plain = Plain()
        self.wall = Bubblewrap(self.plain.exempt)
        self.null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def once_ms(self, wanted: Spec | None) -> float:
        """Milliseconds of one attempt, from nothing to its end."""
        start = time.perf_counter()
        if wanted is None:
            launch = Launch(argv=TRUE, env={"PATH": os.defpath, "DAGRUN_ATTEMPT_ID": "run/node/1"})
        else:
            launch = self.wall.launch(wanted)
        child = self.plain.spawn(
            launch.argv,
            launch.env,
            out_fd=self.null,
            err_fd=self.null,
            attempt_id="run/node/1",
            cwd=launch.cwd,
            fds=launch.fds,
        )
        if wanted is not None:
            self.wall.started(launch, child)
        select.select([child], [], [], 30)
        self.plain.sweep(child)
        done = self.plain.reap(child)
        if wanted is not None:
            self.wall.ended(launch, done)
        if done.code != 0:
            sys.exit(f"the command failed: {done}")
        return (time.perf_counter() - start) * 1e3


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=200)
    options.add_argument("--target-ms", type=float, default=8.0)
    given = options.parse_args()
    machine = Machine()
    proof_ms = timed(machine.wall.proved)
    lacks = {name: why for name, why in machine.wall.proved().items() if why}
    if "fs.read" in lacks:
        sys.exit(f"bubblewrap can't be used here: {lacks['fs.read']}")
    with tempfile.TemporaryDirectory(prefix="dagrun-bench-") as name:
        folder = Path(os.path.realpath(name))
        project(folder)
        table = cases(folder)
        got: dict[str, list[float]] = {case: [] for case in table}
        for case in table:
            machine.once_ms(table[case])
        for k in range(given.runs):
            names = list(table)
            for case in names[k % len(names) :] + names[: k % len(names)]:
                got[case].append(machine.once_ms(table[case]))
    base = statistics.median(got["plain"])
    print(f"{'case':42} {'median':>9} {'extra':>9}")
    for case, times in got.items():
        median = statistics.median(times)
        extra = median - base
        verdict = "" if case == "plain" else "ok" if extra <= given.target_ms else f"over {given.target_ms:g} ms"
        print(f"{case:42} {median:6.2f} ms {extra:6.2f} ms {verdict}")
    print(f"{'proving it, once for each dagrun':42} {proof_ms:6.2f} ms")


if __name__ == "__main__":
    main()

"""Real traces of WfCommons, replayed: how close dagrun comes to a schedule without overhead.

    python bench/makespan.py [TRACE.json ...] [--jobs 16] [--time-scale 0.005] [--runs 1]

For each trace: import it, `dagrun execute` it, and compare the wall time with what is allowed:
1.10 x a simulated list schedule without overhead (longest remaining path first) + the start of a
one-node workflow + 5 ms a node. Without names: all traces in $DAGRUN_CORPORA/wfinstances, or in
../shared/corpora beside the checkout.
"""

from __future__ import annotations

import argparse
import graphlib
import os
import re
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import gen
import measure
import yaml

sys.path.insert(0, str(measure.HERE.parent))

from dagrun.errors import DagrunError, render
from dagrun.flowfile.wfformat import import_wfformat

SLACK = 1.10
NODE_S = 0.005


@dataclass(frozen=True, slots=True)
class Row:
    """What a trace took; `bad` says why there is no figure."""

    name: str
    nodes: int = 0
    simulated_s: float = 0.0
    measured_s: float = 0.0
    allowed_s: float = 0.0
    bad: str = ""

    @property
    def ratio(self) -> float:
        """Measured / allowed: at most 1 is within the target."""
        return self.measured_s / self.allowed_s


def traces(names: list[str]) -> list[Path]:
    """The traces that are named, or all that are found."""
    home = Path(os.environ.get("DAGRUN_CORPORA") or measure.HERE.parents[1] / "shared" / "corpora")
    return [Path(name) for name in names] or sorted((home / "wfinstances").glob("*.json"))


def parse(flow: str) -> gen.Dag:
    """The nodes of an imported workflow with the seconds that they sleep, in a topological order."""
    nodes = yaml.load(flow, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["nodes"]
    needs = {name: node.get("needs", []) for name, node in nodes.items()}
    needs = {name: [need] if isinstance(need, str) else need for name, need in needs.items()}
    dag = []
    for name in graphlib.TopologicalSorter(needs).static_order():
        run = nodes[name]["run"]
        sleeps = re.findall(r"^sleep (\S+)$", run, re.MULTILINE)
        dag.append(gen.Node(name, run, needs[name], sum(map(float, sleeps))))
    return dag


def cold_start(jobs: int, runs: int = 3) -> float:
    """Median seconds of a one-node workflow that was seen before; raises RuntimeError when it fails."""
    dag = gen.build("wide", 1)
    results = [measure.once("dagrun", dag, jobs) for _ in range(runs + 1)][1:]
    bad = next((r.bad for r in results if r.bad), None)
    if bad:
        raise RuntimeError(f"dagrun does not run: {bad}")
    return measure.median(results)


def replay(path: Path, jobs: int, time_scale: float, runs: int, cold_s: float) -> Row:
    """Import and execute a trace and compare it with the simulation."""
    name = path.stem
    try:
        text = import_wfformat(
            path.read_bytes(), source=path.name, time_scale=time_scale, size_scale=0, data_dir="data"
        )
    except (DagrunError, OSError) as error:
        return Row(name, bad=render(error) if isinstance(error, DagrunError) else str(error))
    dag = parse(text)
    simulated = gen.greedy(dag, jobs, critical_first=True)
    allowed = SLACK * simulated + cold_s + NODE_S * len(dag)
    peer = measure.PEERS["dagrun"]
    command = [word.replace("{jobs}", str(jobs)) for word in peer.command]
    walls = []
    for _ in range(runs):
        where = measure.TMP / "work" / "makespan"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        (where / "dag.yaml").write_text(text)
        env = {**os.environ, **peer.env, "XDG_CACHE_HOME": str(measure.TMP / "cache")}
        result = measure.call(command, where, env, timeout_s=60 + 10 * allowed)
        if result.bad:
            return Row(name, len(dag), simulated, bad=result.bad)
        walls.append(result.wall_s)
    return Row(name, len(dag), simulated, statistics.median(walls), allowed)


def show(row: Row) -> str:
    """The row as a line of the table."""
    if row.bad:
        return f"{row.name:<40}{row.nodes:>6}  {row.bad}"
    verdict = "ok" if row.ratio <= 1 else "over"
    figures = f"{row.simulated_s:>10.3f}{row.measured_s:>10.3f}{row.allowed_s:>9.3f}{row.ratio:>7.2f}"
    return f"{row.name:<40}{row.nodes:>6}{figures}  {verdict}"


HEAD = f"{'trace':<40}{'nodes':>6}{'simulated':>10}{'measured':>10}{'allowed':>9}{'ratio':>7}  verdict"


def main() -> None:
    """Measure and print."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("traces", nargs="*")
    ap.add_argument("--jobs", type=int, default=16)
    ap.add_argument("--time-scale", type=float, default=0.005)
    ap.add_argument("--runs", type=int, default=1)
    a = ap.parse_args()
    measure.adopt()
    found = traces(a.traces)
    if not found:
        ap.error("no traces found: name them, or set DAGRUN_CORPORA to a folder that holds wfinstances/*.json")
    try:
        cold = cold_start(a.jobs)
    except RuntimeError as error:
        ap.error(str(error))
    print(f"{a.jobs} jobs, runtimes x {a.time_scale:g}, cold start {cold:.3f} s")
    print(HEAD)
    for path in found:
        print(show(replay(path, a.jobs, a.time_scale, a.runs, cold)), flush=True)


if __name__ == "__main__":
    main()

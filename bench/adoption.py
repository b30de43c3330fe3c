"""How soon an engine at work goes by a patch, and how long admitting one takes in a large run.

    python bench/adoption.py
    python bench/adoption.py --nodes 1000 --patches 40 --large 10000

Adoption: an engine is in the middle of a wave of many nodes; patches come from this process, each
as `dagrun replan` sends it. Measured in the journal, from the time of the patch's record to that of
`revision adopted`; target: a median of 100 ms. Admission: `admit` alone, on a run of 10,000 nodes
of which half are done; target: 50 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from select import select
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dagrun.core.event import FORMAT, EngineAttached, NodeAdopted, RunCreated  # noqa: E402
from dagrun.core.evolve import evolve  # noqa: E402
from dagrun.core.patch import Insert, Modify, Patch  # noqa: E402
from dagrun.core.plan import compile_plan  # noqa: E402
from dagrun.core.replan import admit  # noqa: E402
from dagrun.core.state import RunState, new_state  # noqa: E402
from dagrun.core.workflow import Node, Workflow  # noqa: E402
from dagrun.engine.submit import submit  # noqa: E402
from dagrun.store.history import Follower  # noqa: E402
from dagrun.store.journal import Journal  # noqa: E402
from dagrun.store.rundir import RunDir, list_runs  # noqa: E402

ADOPTION_MS, ADMISSION_MS = 100.0, 50.0


def flow(nodes: int) -> str:
    """A wave of `nodes` nodes that take a while, and one behind them that patches change."""
    names = [f"n{k}" for k in range(nodes)]
    lines = ["version: 1", "name: wide", "nodes:", *(f"  {n}: {{run: sleep 0.05}}" for n in names)]
    return "\n".join([*lines, f"  last: {{needs: [{', '.join(names)}], run: 'true'}}"]) + "\n"


def begun(folder: str) -> RunDir:
    """The run, once its engine has finished its first nodes."""
    while True:
        for run in list_runs(folder):
            if os.path.getsize(run.journal):
                follower = Follower(run)
                try:
                    while len(follower.state.finished) < 10:
                        fd = follower.fileno()
                        select([fd] if fd is not None else [], [], [], 0.1)
                        follower.poll()
                finally:
                    follower.close()
                return run


def patch_for(number: int, state: RunState) -> Patch:
    """By turns an insertion before the last node, and a change of it."""
    base = state.plan.revision
    last = state.plan.workflow.nodes["last"]
    if number % 2:
        changed = replace(last, timeout_s=300.0 + number)
        return Patch(operations=(Modify(id="last", node=changed),), base=base)
    node = Node(id=f"extra{number}", run="true")
    return Patch(operations=(Insert(id=node.id, node=node, before=("last",)),), base=base)


def adoption(nodes: int, patches: int, parallel: int) -> list[float]:
    """Milliseconds from each patch's record to the adoption of its revision."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "wide.yaml").write_text(flow(nodes))
        words = [sys.executable, "-m", "dagrun", "execute", "wide.yaml", "-q", "-j", str(parallel)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        engine = subprocess.Popen(words, cwd=folder, env=env, stderr=subprocess.DEVNULL)
        try:
            run = begun(folder)
            for number in range(patches):
                submit(run, lambda state, n=number: patch_for(n, state), by="bench", base=0, rebase=True)  # type: ignore[misc]
            return times_in(run)
        finally:
            engine.terminate()
            engine.wait()


def times_in(run: RunDir) -> list[float]:
    """What the journal says, in milliseconds; only of patches that came while nodes of the wave were left."""
    journal = Journal.open(run.journal, write=False)
    records = journal.read()
    journal.close()
    asked: dict[object, float] = {}
    found = []
    for record in records:
        for event in record.events:
            if event["type"] == "patch.admitted":
                asked[event["revision"]] = record.t
            elif event["type"] == "revision.adopted":
                found += [(record.t - asked.pop(r)) * 1000 for r in list(asked) if r <= event["revision"]]  # type: ignore[operator]
    assert not asked, "a revision was never adopted"
    return found


def admission(nodes: int, rounds: int) -> list[float]:
    """Milliseconds that `admit` takes for one insertion into a run of `nodes` nodes, half of them done."""
    width = 100
    made: dict[str, Node] = {}
    for k in range(nodes):
        needs = (f"n{k - width}", f"n{k - width + 1 if (k + 1) % width else k - width}") if k >= width else ()
        made[f"n{k}"] = Node(id=f"n{k}", run="true", needs=tuple(dict.fromkeys(needs)))
    plan = compile_plan(Workflow(name="large", nodes=made))
    state = new_state(plan, RunCreated(format=FORMAT, run_id="b000", workflow="large"), 0.0)
    evolve(state, EngineAttached(pid=1), 0.0, 0.0)
    for k in range(nodes // 2):
        evolve(state, NodeAdopted(node=f"n{k}", run_id="b001"), 0.0, 0.0)
    after, before = f"n{nodes // 2 + width}", f"n{nodes // 2 + 2 * width}"
    patch = Patch(operations=(Insert(id="x", node=Node(id="x", run="true"), after=(after,), before=(before,)),))
    times = []
    for _ in range(rounds):
        began = perf_counter()
        verdict = admit(state, patch, by="bench")
        times.append((perf_counter() - began) * 1000)
        assert verdict.event is not None, verdict.faults
    return times


def line(what: str, times: list[float], target_ms: float) -> bool:
    """Print the figures; whether the median is within the target."""
    median = statistics.median(times)
    worst = max(times)
    verdict = "ok" if median <= target_ms else "TOO SLOW"
    print(f"{what:<48} median {median:7.1f} ms  max {worst:7.1f} ms  target {target_ms:g} ms  {verdict}")
    return median <= target_ms


def main() -> int:
    """Measure and print; 1 when a target is missed."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--nodes", type=int, default=1000, help="of the wave")
    ap.add_argument("--patches", type=int, default=20)
    ap.add_argument("-j", "--parallel", type=int, default=8)
    ap.add_argument("--large", type=int, default=10_000, help="nodes of the run that a patch is admitted to")
    ap.add_argument("--rounds", type=int, default=15)
    a = ap.parse_args()
    adopted = adoption(a.nodes, a.patches, a.parallel)
    fast = line(f"adoption, amid a wave of {a.nodes:,} ({len(adopted)} patches)", adopted, ADOPTION_MS)
    admitted = admission(a.large, a.rounds)
    quick = line(f"admission, run of {a.large:,} nodes", admitted, ADMISSION_MS)
    return 0 if fast and quick else 1


if __name__ == "__main__":
    sys.exit(main())

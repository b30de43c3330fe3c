"""One DAG, every competitor's input: shapes, bounds, and one emitter for each format.

python bench/gen.py --shape layered --width 20 --layers 10 --fan-in 3 --body sleep --out build/bench/demo
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Node:
    """A node of a DAG that is measured; `cost` is the seconds that its body takes, as far as known."""

    id: str
    run: str
    needs: list[str] = field(default_factory=list)
    cost: float = 0.0


Dag = list[Node]  # always in a topological order


# ---------------------------------------------------------------- shapes: [needs, as places]


def wide(n: int) -> list[list[int]]:
    """No edges at all."""
    return [[] for _ in range(n)]


def chain(n: int) -> list[list[int]]:
    """One after another."""
    return [[i - 1] if i else [] for i in range(n)]


def diamond(n: int) -> list[list[int]]:
    """One source, n - 2 independent nodes, one sink."""
    return wide(n) if n < 3 else [[], *([0] for _ in range(n - 2)), list(range(1, n - 1))]


def layered(width: int, layers: int, k: int, seed: int = 0) -> list[list[int]]:
    """width x layers; every node needs k seeded picks of the layer before."""
    rnd, out = random.Random(seed), []
    for layer in range(layers):
        for _ in range(width):
            base = (layer - 1) * width
            out.append([base + j for j in sorted(rnd.sample(range(width), min(k, width)))] if layer else [])
    return out


def rand(n: int, p: float, seed: int = 0) -> list[list[int]]:
    """Every pair i < j is an edge with probability p (geometric skips: O(edges))."""
    rnd, out = random.Random(seed), []
    for j in range(n):
        needs, i = [], -1
        while p > 0:
            i += 1 + int(math.log(1.0 - rnd.random()) / math.log(1.0 - p)) if p < 1 else 1
            if i >= j:
                break
            needs.append(i)
        out.append(needs)
    return out


def build(
    shape: str,
    n: int = 1,
    *,
    body: str = "true",
    seed: int = 0,
    width: int = 20,
    layers: int = 10,
    fan_in: int = 3,
    p: float = 0.01,
) -> Dag:
    """A DAG. body: true | sleep | echo | log (appends its id to $BENCH_LOG: see `check`) | any command."""
    edges = {
        "wide": lambda: wide(n),
        "chain": lambda: chain(n),
        "diamond": lambda: diamond(n),
        "layered": lambda: layered(width, layers, fan_in, seed),
        "random": lambda: rand(n, p, seed),
    }[shape]()
    rnd, dag = random.Random(seed + 1), []
    for i, needs in enumerate(edges):
        s = round(rnd.uniform(0.05, 0.5), 3)
        run = {"sleep": f"sleep {s}", "echo": f"echo n{i}", "log": f"echo n{i} >> $BENCH_LOG"}.get(body, body)
        dag.append(Node(f"n{i}", run, [f"n{j}" for j in needs], s if body == "sleep" else 0.0))
    return dag


# ---------------------------------------------------------------- bounds and checks


def bound(dag: Dag, jobs: int) -> float:
    """Seconds that no schedule undercuts: max(critical path, work / jobs)."""
    end: dict[str, float] = {}
    for x in dag:
        end[x.id] = x.cost + max((end[d] for d in x.needs), default=0.0)
    return max(max(end.values()), sum(x.cost for x in dag) / jobs)


def greedy(dag: Dag, jobs: int, critical_first: bool = False) -> float:
    """Seconds of a list schedule without overhead (file order, or longest remaining path first)."""
    users: dict[str, list[str]] = {x.id: [] for x in dag}
    tail: dict[str, float] = {}
    left = {x.id: len(x.needs) for x in dag}
    cost = {x.id: x.cost for x in dag}
    for x in dag:
        for d in x.needs:
            users[d].append(x.id)
    for x in reversed(dag):
        tail[x.id] = x.cost + max((tail[u] for u in users[x.id]), default=0.0)
    rank = {x.id: -tail[x.id] if critical_first else i for i, x in enumerate(dag)}
    ready = [(rank[i], i) for i, k in left.items() if not k]
    heapq.heapify(ready)
    busy: list[tuple[float, str]] = []
    now = 0.0
    while ready or busy:
        while ready and len(busy) < jobs:
            i = heapq.heappop(ready)[1]
            heapq.heappush(busy, (now + cost[i], i))
        now, i = heapq.heappop(busy)
        for u in users[i]:
            left[u] -= 1
            if not left[u]:
                heapq.heappush(ready, (rank[u], u))
    return now


def check(dag: Dag, log: Path) -> str | None:
    """What is wrong after a run with body=log: every node ran once, and after all that it needs."""
    ran = log.read_text().split() if log.exists() else []
    at = {x: i for i, x in enumerate(ran)}
    if len(ran) != len(dag) or len(at) != len(dag):
        return f"{len(ran)} runs, {len(at)} distinct, of {len(dag)} nodes"
    bad = [x.id for x in dag if any(at[d] > at[x.id] for d in x.needs)]
    return f"{len(bad)} nodes ran before a need" if bad else None


# ---------------------------------------------------------------- emitters: {file: text}


def dagrun(dag: Dag, jobs: int) -> dict[str, str]:
    """A workflow: `dag.yaml`."""
    out = ["version: 1", "name: bench", "schedule: ready", "nodes:"]
    for x in dag:
        out += [f"  {x.id}:", f"    run: {json.dumps(x.run)}"]
        if x.needs:
            out.append(f"    needs: [{', '.join(x.needs)}]")
    return {"dag.yaml": "\n".join(out) + "\n"}


def plain(dag: Dag, jobs: int) -> dict[str, str]:
    """`dag.json`: read by the floors and by doit's file."""
    nodes = [{"id": x.id, "run": x.run, "needs": x.needs} for x in dag]
    return {"dag.json": json.dumps({"jobs": jobs, "nodes": nodes})}


def make(dag: Dag, jobs: int) -> dict[str, str]:
    """A Makefile of phony targets."""
    ids = " ".join(x.id for x in dag)
    rules = "".join(f"{x.id}: {' '.join(x.needs)}\n\t@{x.run.replace('$', '$$')}\n" for x in dag)
    return {"Makefile": f".PHONY: all {ids}\nall: {ids}\n{rules}"}


def ninja(dag: Dag, jobs: int) -> dict[str, str]:
    """A build.ninja whose outputs never appear, so that everything runs."""
    rules = "".join(f"build {x.id}: r {' '.join(x.needs)}\n  cmd = {x.run.replace('$', '$$')}\n" for x in dag)
    return {"build.ninja": f"rule r\n  command = $cmd\n{rules}"}


def lines(dag: Dag, jobs: int) -> dict[str, str]:
    """For xargs: no edges, so the wide shape only."""
    if any(x.needs for x in dag):
        raise ValueError("no dependencies here")
    return {"cmds.txt": "".join(x.run + "\n" for x in dag)}


DODO = """import json
NODES = json.load(open("dag.json"))["nodes"]
DOIT_CONFIG = {"verbosity": 0}
def task_bench():
    for x in NODES:
        yield {"basename": x["id"], "actions": [x["run"]], "task_dep": x["needs"]}
"""


def doit(dag: Dag, jobs: int) -> dict[str, str]:
    """A program for doit: it reads dag.json."""
    return {**plain(dag, jobs), "dodo.py": DODO}


EMIT: dict[str, Callable[[Dag, int], dict[str, str]]] = {
    "dagrun": dagrun,
    "plain": plain,
    "make": make,
    "ninja": ninja,
    "lines": lines,
    "doit": doit,
}


def emit(name: str, dag: Dag, jobs: int, where: Path) -> None:
    """Write the DAG in the format `name` into the folder `where`."""
    where.mkdir(parents=True, exist_ok=True)
    for file, text in EMIT[name](dag, jobs).items():
        (where / file).write_text(text)


def shape_args(ap: argparse.ArgumentParser) -> None:
    """The options that say which DAG."""
    ap.add_argument("--shape", default="wide", choices="wide chain diamond layered random".split())
    ap.add_argument("--body", default="true", help="true, sleep, echo, log, or a command")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--width", type=int, default=20, help="layered: nodes in a layer")
    ap.add_argument("--layers", type=int, default=10)
    ap.add_argument("--fan-in", type=int, default=3)
    ap.add_argument("--p", type=float, default=0.01, help="random: edge probability")
    ap.add_argument("--jobs", type=int, default=2)


def from_args(a: argparse.Namespace, n: int) -> Dag:
    """The DAG that the options ask for."""
    more = {"width": a.width, "layers": a.layers, "fan_in": a.fan_in, "p": a.p}
    return build(a.shape, n, body=a.body, seed=a.seed, **more)


def main() -> None:
    """Write one DAG for every tool."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    shape_args(ap)
    ap.add_argument("--n", type=int, default=10)
    ap.add_argument("--out", required=True, type=Path)
    ap.add_argument("--only", default=",".join(EMIT))
    a = ap.parse_args()
    dag = from_args(a, a.n)
    for name in a.only.split(","):
        try:
            emit(name, dag, a.jobs, a.out / name)
        except ValueError as error:
            print(f"{name}: {error}")
    print(
        f"{len(dag)} nodes, {sum(len(x.needs) for x in dag)} edges; at {a.jobs} jobs: bound "
        f"{bound(dag, a.jobs):.3f} s, greedy {greedy(dag, a.jobs):.3f} s, "
        f"critical-first {greedy(dag, a.jobs, True):.3f} s"
    )


if __name__ == "__main__":
    main()

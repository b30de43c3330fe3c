"""Time tools side by side on one DAG, interleaved, and print a table.

    python bench/run.py --peers make,doit-threads,floor-logs,dagrun --shape wide --n 1,1000
    python bench/run.py --peers make,floor,dagrun --shape chain --n 1,300

With several --n, ms/node = (median T(N) - median T(first N)) / (N - first N). What is measured
and how: measure.py. Compare ratios inside one table only.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys

import gen
from measure import PEERS, Result, adopt, once


def arguments() -> argparse.Namespace:
    """The command line."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    gen.shape_args(ap)
    ap.add_argument("--peers", default="make,ninja,doit-threads,floor-logs,dagrun", help=", ".join(PEERS))
    ap.add_argument("--n", default="1,100", help="sizes, comma-separated")
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--warmup", type=int, default=1, help="uncounted runs at the first size")
    ap.add_argument("--timeout", type=float, default=120, help="of one run")
    ap.add_argument("--budget", type=float, default=60, help="a (peer, size) that took so many seconds is done")
    ap.add_argument("--json", help="append the figures here, a line for each peer and size")
    a = ap.parse_args()
    unknown = [peer for peer in a.peers.split(",") if peer not in PEERS]
    if unknown:
        ap.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return a


Got = dict[tuple[str, int], list[Result]]


def measure(a: argparse.Namespace, peers: list[str], dags: dict[int, gen.Dag]) -> Got:
    """All runs, interleaved, the order of the peers rotated from round to round."""
    got: Got = {(p, n): [] for p in peers for n in dags}
    for p in peers:
        for _ in range(a.warmup):
            once(p, dags[min(dags)], a.jobs, timeout_s=a.timeout)
    for k in range(a.runs):
        for n, dag in dags.items():
            for p in peers[k % len(peers) :] + peers[: k % len(peers)]:
                runs = got[p, n]
                if not any(r.bad for r in runs) and sum(r.wall_s for r in runs) < a.budget:
                    runs.append(once(p, dag, a.jobs, timeout_s=a.timeout, verify=a.body == "log"))
    return got


def row(got: Got, p: str, n: int, peers: list[str], sizes: list[int], ideal: float) -> dict[str, object]:
    """The figures of a peer at a size."""
    runs, base, lead = got[p, n], got[p, sizes[0]], got[peers[0], n]
    wall = statistics.median(r.wall_s for r in runs)
    cpu = statistics.median(r.cpu_s for r in runs)
    out: dict[str, object] = {"runs": len(runs), "wall_s": wall, "cpu_s": cpu}
    out |= {"min_s": min(r.wall_s for r in runs), "max_s": max(r.wall_s for r in runs)}
    if n > sizes[0] and not any(r.bad for r in base):
        step = (n - sizes[0]) / 1e3
        out["ms_node"] = (wall - statistics.median(r.wall_s for r in base)) / step
        out["cpu_node"] = (cpu - statistics.median(r.cpu_s for r in base)) / step
    if not any(r.bad for r in lead):
        out["x_first"] = wall / statistics.median(r.wall_s for r in lead)
    if ideal:
        out["x_bound"] = wall / ideal
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in out.items()}


COLUMNS = ("runs", "wall_s", "min_s", "max_s", "cpu_s", "ms_node", "cpu_node", "x_first", "x_bound")


def main() -> None:
    """Measure and print."""
    a = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt()
    peers = a.peers.split(",")
    sizes = [a.width * a.layers] if a.shape == "layered" else [int(float(x)) for x in a.n.split(",")]
    dags = {n: gen.from_args(a, n) for n in sizes}
    if a.shape != "wide" and "xargs" in peers:
        print("xargs: left out, it knows no dependencies")
        peers.remove("xargs")
    for p in [p for p in peers if PEERS[p].missing]:
        print(f"{p}: left out, {PEERS[p].missing}")
        peers.remove(p)
    got = measure(a, peers, dags)
    print(f"{a.shape}, body {a.body!r}, {a.jobs} jobs, medians of <= {a.runs} interleaved runs")
    print(f"{'peer':<18}{'N':>7}" + "".join(f"{column:>9}" for column in COLUMNS))
    for n in sizes:
        for p in peers:
            bad = next((r.bad for r in got[p, n] if r.bad), None)
            found = {"bad": bad} if bad else row(got, p, n, peers, sizes, gen.bound(dags[n], a.jobs))
            cells = f"  {bad}" if bad else "".join(f"{found.get(c, ''):>9}" for c in COLUMNS)
            print(f"{p:<18}{n:>7}{cells}")
            if a.json:
                with open(a.json, "a") as f:
                    f.write(json.dumps({"peer": p, "n": n, "shape": a.shape, "jobs": a.jobs, **found}) + "\n")


if __name__ == "__main__":
    main()

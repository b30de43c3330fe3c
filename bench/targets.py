"""Every speed target of the project, measured side by side: figure, target, ok or over.

    python bench/targets.py [--runs 5] [--only wide,chain,cold,big,live,scale,makespan]

Runs are interleaved in one session and figures are ratios of medians, so that a noisy machine
disturbs both sides. A figure that is over is reported and nothing more: this never fails a build.
`scale` (up to 100,000 nodes) and `live` take minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import gen
import makespan
import measure
from measure import Result, once


class MissingFigureError(Exception):
    """A figure that can't be had here, and why."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is timed: a peer on a DAG."""

    peer: str
    shape: str
    n: int
    new: bool = False
    tty: bool = False
    rss: bool = False
    tag: str = ""


@dataclass(slots=True)
class Session:
    """Interleaved runs and their medians."""

    runs: int
    jobs: int
    got: dict[Case, list[Result]] = field(default_factory=dict)

    def measure(self, cases: list[Case], runs: int = 0) -> None:
        """Time all the cases, round by round, the order rotated; one uncounted round of the quick ones."""
        dags = {(c.shape, c.n): gen.build(c.shape, c.n) for c in cases}
        for c in cases:
            self.got[c] = []
            if c.n <= 1000:
                self._once(c, dags)
        for k in range(runs or self.runs):
            shift = k % len(cases)
            for c in cases[shift:] + cases[:shift]:
                if not any(r.bad for r in self.got[c]):
                    self.got[c].append(self._once(c, dags))

    def _once(self, c: Case, dags: dict[tuple[str, int], gen.Dag]) -> Result:
        dag = dags[c.shape, c.n]
        return once(c.peer, dag, self.jobs, timeout_s=60 + c.n / 50, new=c.new, tty=c.tty, rss=c.rss)

    def wall(self, c: Case) -> float:
        """Median seconds of a case."""
        bad = next((r.bad for r in self.got[c] if r.bad), None)
        if bad:
            raise MissingFigureError(f"{c.peer}: {bad}")
        return statistics.median(r.wall_s for r in self.got[c])

    def ms_node(self, peer: str, shape: str, n: int) -> float:
        """Milliseconds a node: what n nodes take longer than one."""
        return (self.wall(Case(peer, shape, n)) - self.wall(Case(peer, shape, 1))) / (n - 1) * 1e3


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, its limits, and what it was made from."""

    name: str
    value: Callable[[], float]
    most: float
    least: float = 0.0
    unit: str = "x"
    detail: Callable[[], str] = lambda: ""


def wide(s: Session) -> Iterator[Figure]:
    """1,000 x true, 2 at a time, journal and logs on, beside the floor, make and doit."""
    peers = ("dagrun", "floor-logs", "make", "doit-threads")
    s.measure([Case(p, "wide", n) for p in peers for n in (1, 1000)])

    def beside(peer: str) -> tuple[Callable[[], float], Callable[[], str]]:
        def both() -> tuple[float, float]:
            return s.ms_node("dagrun", "wide", 1000), s.ms_node(peer, "wide", 1000)

        return lambda: both()[0] / both()[1], lambda: f"{both()[0]:.3f} / {both()[1]:.3f} ms a node"

    for peer, most in (("floor-logs", 1.4), ("make", 2.5), ("doit-threads", 1.0)):
        value, detail = beside(peer)
        yield Figure(f"wide 1,000: a node / {peer}", value, most, detail=detail)


def big(s: Session) -> Iterator[Figure]:
    """10,000 nodes cost the same a node as 1,000."""
    s.measure([Case("dagrun", "wide", n) for n in (1, 1000, 10_000)], min(3, s.runs))

    def value() -> float:
        return s.ms_node("dagrun", "wide", 10_000) / s.ms_node("dagrun", "wide", 1000)

    def detail() -> str:
        return f"{s.ms_node('dagrun', 'wide', 10_000):.3f} / {s.ms_node('dagrun', 'wide', 1000):.3f} ms a node"

    yield Figure("wide 10,000: a node / at 1,000", value, 1.10, 0.90, detail=detail)


def chain(s: Session) -> Iterator[Figure]:
    """300 nodes, each needs the one before."""
    s.measure([Case(p, "chain", n) for p in ("dagrun", "make") for n in (1, 300)])

    def both() -> tuple[float, float]:
        return s.ms_node("dagrun", "chain", 300), s.ms_node("make", "chain", 300)

    yield Figure(
        "chain 300: a node / make",
        lambda: both()[0] / both()[1],
        1.5,
        detail=lambda: f"{both()[0]:.3f} / {both()[1]:.3f} ms a node",
    )


def live(s: Session) -> Iterator[Figure]:
    """10,000 nodes in a terminal, live view on and off."""
    on = Case("dagrun-live", "wide", 10_000, tty=True)
    off = Case("dagrun", "wide", 10_000, tty=True)
    s.measure([on, off], min(3, s.runs))
    yield Figure(
        "live view 10,000: on / off",
        lambda: s.wall(on) / s.wall(off),
        1.15,
        detail=lambda: f"{s.wall(on):.2f} / {s.wall(off):.2f} s",
    )


def cold(s: Session) -> Iterator[Figure]:
    """A one-node workflow from nothing to its end."""
    doit = Case("doit-threads", "wide", 1, tag="cold")
    seen = Case("dagrun", "wide", 1, tag="cold")
    fresh = Case("dagrun", "wide", 1, new=True, tag="cold")
    s.measure([doit, seen, fresh], 2 * s.runs)
    for name, case, most in (("a file seen before", seen, 2.0), ("a new file", fresh, 2.5)):
        yield Figure(
            f"cold start, {name}: / doit-threads",
            lambda case=case: s.wall(case) / s.wall(doit),  # type: ignore[misc]
            most,
            detail=lambda case=case: f"{s.wall(case) * 1e3:.0f} / {s.wall(doit) * 1e3:.0f} ms",  # type: ignore[misc]
        )


def scale(s: Session) -> Iterator[Figure]:
    """10,000, 50,000 and 100,000 nodes: time and peak memory grow in a straight line."""
    a, b, c = (Case("dagrun", "wide", n, rss=True, tag="scale") for n in (10_000, 50_000, 100_000))
    s.measure([a, b, c], 1)

    def slopes() -> tuple[float, float]:
        return (s.wall(c) - s.wall(b)) / 50_000 * 1e3, (s.wall(b) - s.wall(a)) / 40_000 * 1e3

    def growth(low: Case, high: Case) -> float:
        s.wall(low), s.wall(high)
        return (s.got[high][0].rss_kib - s.got[low][0].rss_kib) / (high.n - low.n)

    yield Figure(
        "100,000: a node beyond 50,000 / before",
        lambda: slopes()[0] / slopes()[1],
        1.20,
        detail=lambda: f"{slopes()[0]:.3f} / {slopes()[1]:.3f} ms a node",
    )
    yield Figure(
        "100,000: peak memory a node",
        lambda: growth(a, c),
        5.0,
        unit="KiB",
        detail=lambda: f"{growth(a, b):.1f} to 50,000, {growth(b, c):.1f} beyond; {s.got[c][0].rss_kib >> 10} MiB",
    )


def spans(s: Session) -> Iterator[Figure]:
    """Traces of real workflows, 16 at a time: see makespan.py."""
    rows: list[makespan.Row] = []

    def worst() -> makespan.Row:
        if not rows:
            found = makespan.traces([])
            if not found:
                raise MissingFigureError("no traces: set DAGRUN_CORPORA")
            try:
                start = makespan.cold_start(16)
            except RuntimeError as error:
                raise MissingFigureError(str(error)) from None
            rows.extend(makespan.replay(path, 16, 0.005, 1, start) for path in found)
        bad = next((row for row in rows if row.bad), None)
        if bad:
            raise MissingFigureError(f"{bad.name}: {bad.bad}")
        return max(rows, key=lambda row: row.ratio)

    yield Figure(
        "makespan, the worst trace: / allowed",
        lambda: worst().ratio,
        1.0,
        detail=lambda: f"{worst().name}: {worst().measured_s:.2f} / {worst().allowed_s:.2f} s, of {len(rows)} traces",
    )


GROUPS: dict[str, Callable[[Session], Iterator[Figure]]] = {
    "wide": wide,
    "chain": chain,
    "cold": cold,
    "big": big,
    "live": live,
    "scale": scale,
    "makespan": spans,
}


def show(figure: Figure) -> str:
    """The figure as a line of the table."""
    least = f"{figure.least:g} to " if figure.least else "<= "
    target = f"{least}{figure.most:g} {figure.unit}"
    try:
        value, detail = figure.value(), figure.detail()
    except MissingFigureError as error:
        return f"{figure.name:<48}{'-':>11}  {target:<15}{'none':<7}{error}"
    verdict = "ok" if figure.least <= value <= figure.most else "over" if value > figure.most else "under"
    return f"{figure.name:<48}{value:>7.2f} {figure.unit:<3}  {target:<15}{verdict:<7}{detail}"


def main() -> None:
    """Measure and print."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--jobs", type=int, default=2)
    ap.add_argument("--only", default=",".join(GROUPS), help="groups, comma-separated")
    a = ap.parse_args()
    unknown = [name for name in a.only.split(",") if name not in GROUPS]
    if unknown:
        ap.error(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    measure.adopt()
    print(f"{os.cpu_count()} processors, {a.jobs} at a time, medians of {a.runs} interleaved runs")
    print(f"{'figure':<48}{'measured':>11}  {'target':<15}{'':<7}")
    session = Session(a.runs, a.jobs)
    for name in a.only.split(","):
        for figure in GROUPS[name](session):
            print(show(figure), flush=True)


if __name__ == "__main__":
    main()

"""What an audit found, as text: a line for each attempt, and the first byte that nobody explains. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from dagrun.view.tables import Head, table
from dagrun.view.text import Look, clean, plural

# what a label begins with, and the column that it counts in
COLUMNS = ("system", "skill", "prompt", "input", "tool", "turn", "group")
_KIND = {"schema": "system", "dagrun": "system", "reminder": "turn", "param": "input", "env": "input", "run": "input"}


class Audited(Protocol):
    """What is shown of one attempt."""

    node: str
    attempt: int
    calls: int
    explained: int
    sent: dict[str, int]
    call: int
    problem: str
    notes: list[str]


def by_kind(sent: Mapping[str, int]) -> dict[str, int]:
    """Bytes by the kind of their origin, in the order of COLUMNS."""
    found = dict.fromkeys(COLUMNS, 0)
    for label, size in sent.items():
        kind = label.split("+")[0].split(":")[0]
        kind = _KIND.get(kind, kind)
        found[kind if kind in found else "input"] += size
    return found


def audit_text(run_id: str, findings: Sequence[Audited], look: Look) -> str:
    """The whole report; the bytes are those of all requests of an attempt."""
    if not findings:
        return f"run {clean(run_id)} asked no model: there is nothing to explain"
    heads = [Head("NODE"), Head("TRY", right=True), Head("CALLS", right=True), Head("")]
    shown = [name for name in COLUMNS if any(by_kind(f.sent)[name] for f in findings)]
    heads += [Head(name.upper(), right=True) for name in shown]
    rows = [_row(finding, shown) for finding in findings]
    lines = table(heads, rows, look)
    for finding in findings:
        lines += [f"note: {clean(finding.node)}, attempt {finding.attempt}: {clean(note)}" for note in finding.notes]
    lines += ["", *_verdict(run_id, findings)]
    return "\n".join(lines)


def _row(finding: Audited, shown: Iterable[str]) -> tuple[str, ...]:
    sizes = by_kind(finding.sent)
    verdict = "NOT EXPLAINED" if finding.problem else "explained"
    counts = [f"{sizes[name]:,}" for name in shown]
    return (clean(finding.node), str(finding.attempt), f"{finding.explained}/{finding.calls}", verdict, *counts)


def _verdict(run_id: str, findings: Sequence[Audited]) -> list[str]:
    wrong = [finding for finding in findings if finding.problem]
    total = sum(sum(f.sent.values()) for f in findings)
    if not wrong:
        calls = sum(f.calls for f in findings)
        return [f"run {clean(run_id)}: every byte of {plural(calls, 'request')} is explained ({total:,} bytes)"]
    return [
        f"{clean(f.node)}, attempt {f.attempt}{f', call {f.call}' if f.call else ''}: {clean(f.problem)}" for f in wrong
    ]

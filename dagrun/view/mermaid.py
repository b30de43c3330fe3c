"""A plan as a graph for other programs: Mermaid and Graphviz.

Nodes are called `n0`, `n1` … there, since words such as `end` or `graph` mean something in
those languages; ids and titles are only ever labels, escaped for their language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dagrun.core.names import Status
from dagrun.view.text import clean

if TYPE_CHECKING:
    from dagrun.core.plan import Plan

_CLASSES: Mapping[Status, str] = {
    Status.COMPLETED: "fill:#d9f2d9,stroke:#2e7d32,color:#111",
    Status.FAILED: "fill:#f9d0d0,stroke:#c62828,color:#111",
    Status.SKIPPED: "fill:#eeeeee,stroke:#9e9e9e,color:#555,stroke-dasharray:4",
    Status.CANCELLED: "fill:#fff3cd,stroke:#b28704,color:#111",
    Status.RUNNING: "fill:#d6eaf8,stroke:#1565c0,color:#111",
}


def plan_mermaid(plan: Plan, statuses: Sequence[Status] | None = None, skipped: Mapping[int, str] | None = None) -> str:
    """A Mermaid flowchart, a subgraph for each wave; coloured by status when there is one."""
    lines = ["flowchart TD"]
    for number, members in enumerate(waves(plan), start=1):
        lines.append(f'  subgraph w{number}["wave {number}"]')
        lines += [f'    n{i}["{_mermaid_label(plan, i)}"]' for i in members]
        lines.append("  end")
    lines += [f"  n{need} --> n{i}" for i, needs in enumerate(plan.needs) for need in needs]
    shown = list(statuses) if statuses is not None else [Status.PENDING] * len(plan.ids)
    for i in skipped or {}:
        shown[i] = Status.SKIPPED
    for status, style in _CLASSES.items():
        members = [i for i, s in enumerate(shown) if s is status and i not in plan.removed]
        if members:
            lines.append(f"  classDef {status} {style}")
            lines.append(f"  class {','.join(f'n{i}' for i in members)} {status}")
    return "\n".join(lines) + "\n"


def plan_dot(plan: Plan, skipped: Mapping[int, str] | None = None) -> str:
    """A Graphviz digraph, the nodes of a wave on one rank."""
    gone = skipped or {}
    lines = [
        f"digraph {_dot(clean(plan.workflow.name))} {{",
        "  rankdir=TB;",
        '  node [shape=box, style=rounded, fontname="sans-serif"];',
    ]
    for i in sorted(set(range(len(plan.ids))) - plan.removed):
        style = ', style="rounded,dashed", fontcolor=gray40' if i in gone else ""
        lines.append(f"  n{i} [label={_dot(_label(plan, i))}{style}];")
    lines += [f"  {{ rank=same; {' '.join(f'n{i};' for i in members)} }}" for members in waves(plan)]
    lines += [f"  n{need} -> n{i};" for i, needs in enumerate(plan.needs) for need in needs]
    lines.append("}")
    return "\n".join(lines) + "\n"


def waves(plan: Plan) -> list[list[int]]:
    """The numbers of the nodes of each wave, in the order of the file."""
    found: list[list[int]] = [[] for _ in range(plan.depth)]
    for i, wave in enumerate(plan.wave):
        if i not in plan.removed:
            found[wave - 1].append(i)
    return found


def _label(plan: Plan, i: int) -> str:
    title = clean(plan.nodes[i].title)
    return f"{plan.ids[i]}\n{title}" if title else plan.ids[i]


def _mermaid_label(plan: Plan, i: int) -> str:
    """Mermaid reads HTML, Markdown and `#entities;` in labels: what could mean anything is an entity."""
    return "".join(
        c if c.isalnum() or c in " -_.," else "<br/>" if c == "\n" else f"#{ord(c)};" for c in _label(plan, i)
    )


def _dot(text: str) -> str:
    """A quoted string of DOT."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

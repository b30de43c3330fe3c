"""A change of a plan before it is made (or after, from the history): what a person decides by.

`Change` is all that is shown: the plan before with the statuses of its nodes, the plan after and
the event that leads from one to the other. Text of nodes and files is cleaned here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps
from typing import TYPE_CHECKING, NamedTuple, cast

from dagrun.core.agents import has_default_level
from dagrun.core.names import Json, NodeId, Status
from dagrun.core.usage import usd
from dagrun.core.workflow import Agent, node_to_json
from dagrun.flowfile.document import duration, permissions_to_document
from dagrun.view.text import PLAIN, Look, clean, cut, money, pad, plural

if TYPE_CHECKING:
    from dagrun.core.event import PatchAdmitted
    from dagrun.core.plan import Plan
    from dagrun.core.replan import Verdict
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Limits, Node

_VALUE = 48  # characters of one value in a line
_NAME = 28
_STYLE = {"+": "green", "-": "red", "~": "yellow"}
# the keys of a workflow file, where a field has another name
_KEYS = {
    "timeout_s": "timeout",
    "grace_s": "grace",
    "estimate_s": "estimate",
    "condition": "if",
    "output_bytes": "resources.output",
    "pids": "resources.pids",
    "file_size": "resources.file_size",
    "secret_files": "secrets as files",
}
_BY_KEY = frozenset(
    {"env", "inputs", "outputs", "resources", "retry", "on_failure", "review", "permissions", "docker", "agent"}
)
_AGENT: dict[str, Json] = {"max_turns": Agent(prompt="").max_turns, "max_tokens": Agent(prompt="").max_tokens}
_DEFAULTS: dict[str, Json] = {"timeout_s": 300.0, "grace_s": 5.0, "needs": [], "isolation": "process"}


class Cost(NamedTuple):
    """What the agents of a change can cost in nano-dollars, and what a cap of the run leaves; None: nobody knows."""

    worst: int | None
    left: int | None = None

    @property
    def at_most(self) -> int | None:
        """The lesser of the two that are known."""
        known = [n for n in (self.worst, self.left) if n is not None]
        return min(known, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a plan. `statuses` are parallel to the nodes of `before`; `revived` come back."""

    before: Plan
    statuses: Sequence[Status]
    after: Plan
    event: PatchAdmitted
    revived: Sequence[NodeId] = ()
    stale: Sequence[NodeId] = ()
    warnings: Sequence[str] = ()
    cost: Cost = field(default_factory=lambda: Cost(0))

    def status(self, name: NodeId) -> Status | None:
        """The status of a node before the change; None if there was no such node."""
        i = self.before.index.get(name)
        return None if i is None or i in self.before.removed else self.statuses[i]


def change_of(state: RunState, verdict: Verdict) -> Change:
    """The change that an admitted patch stands for."""
    assert verdict.event is not None
    assert verdict.after is not None
    return Change(
        before=state.plan,
        statuses=state.node_status,
        after=verdict.after,
        event=verdict.event,
        revived=verdict.revived,
        stale=verdict.stale,
        warnings=verdict.warnings,
    )


def preview_text(change: Change, head: str, look: Look = PLAIN) -> str:
    """A change for a person, without a newline at its end; `head` names what is changed."""
    sizes = _sizes(change)
    base = f"revision {change.before.revision} -> {change.after.revision}"
    lines = [f"{head}   {base}   {sizes}", *change_lines(change, look)]
    lines.append(f"  untouched: {_untouched(change)}   {_cost(change.cost)}")
    lines += [look.paint(f"  warning: {clean(text)}", "yellow") for text in change.warnings]
    return "\n".join(lines)


def _cost(cost: Cost) -> str:
    most = cost.at_most
    if most is None:
        return "what it can cost is unknown: a model has no price"
    if cost.left is not None and most == cost.left and most != cost.worst:
        return f"can cost {money(most)} at most, all that is left"
    return f"can cost {money(most)} at most" if most else "costs $0.00 now"


def _sizes(change: Change) -> str:
    nodes = [len(p.ids) - len(p.removed) for p in (change.before, change.after)]
    waves = [change.before.depth, change.after.depth]
    return f"{_from_to(nodes, 'node')}, {_from_to(waves, 'wave')}"


def _from_to(numbers: Sequence[int], word: str) -> str:
    old, new = numbers
    return plural(new, word) if old == new else f"{old:,} -> {plural(new, word)}"


def _untouched(change: Change) -> str:
    touched = _touched(change)
    counts: dict[str, int] = {}
    for name, i in change.before.index.items():
        if name not in touched and i not in change.before.removed:
            word = _GROUPS.get(change.statuses[i], "to come")
            counts[word] = counts.get(word, 0) + 1
    words = dict.fromkeys([*_GROUPS.values(), "to come"])
    return ", ".join(f"{counts[word]:,} {word}" for word in words if word in counts) or "nothing"


_GROUPS = {
    Status.COMPLETED: "done",
    Status.RUNNING: "running",
    Status.FAILED: "failed",
    Status.AWAITING_REVIEW: "waiting for review",
    Status.SKIPPED: "skipped",
    Status.CANCELLED: "cancelled",
    Status.SUPERSEDED: "superseded",
}


def _touched(change: Change) -> set[NodeId]:
    event = change.event
    return {
        *event.nodes,
        *event.removed,
        *event.skipped,
        *event.superseded,
        *event.reset,
        *event.cancelled,
        *change.revived,
    }


# ---------------------------------------------------------------- line by line


def change_lines(change: Change, look: Look = PLAIN) -> list[str]:
    """One line and more for each node that changes: `-` goes, `~` changes, `+` comes."""
    rows = [*_gone(change), *_changed(change), *_come(change)]
    width = min(max((len(name) for _, name, _ in rows), default=0), _NAME)
    lines = []
    for sign, name, text in rows:
        line = f"{sign} {pad(name, width)}  {text}".rstrip()
        line = look.cut(line, look.width) if look.width else line
        lines.append(look.paint(line, _STYLE.get(sign, "")))
    return lines


def _gone(change: Change) -> Iterator[tuple[str, str, str]]:
    event = change.event
    for name in event.removed:
        yield "-", name, "; ".join(t for t in (_now(change, name), _bridged(change, name)) if t)
    for name, text in event.skipped.items():
        now = _now(change, name) if change.status(name) is not Status.SKIPPED else ""
        yield "-", name, f"{now} -> skipped: {clean(text)}".removeprefix(" -> ")
    for name, new in event.superseded.items():
        yield "-", name, f"{_now(change, name)}; {new} takes its place"
    for name in event.cancelled:
        if name not in event.removed and name not in event.skipped and name not in event.superseded:
            yield "-", name, "running: it is ended, and runs again"


def _now(change: Change, name: NodeId) -> str:
    """How a node stands that goes; nothing for one that had not run."""
    status = change.status(name)
    if name in change.event.cancelled:
        return "running: it is ended"
    return "" if status in (None, Status.PENDING, Status.READY) else str(status).replace("_", " ")


def _bridged(change: Change, name: NodeId) -> str:
    before = change.before
    i = before.index[name]
    left = [before.ids[d] for d in before.dependents[i] if before.ids[d] not in change.event.removed]
    instead = ", ".join(before.ids[d] for d in before.needs[i])
    if not left:
        return "nothing needed it" if not before.dependents[i] else ""
    return f"what needed it now needs {instead}" if instead else "what needed it waits for nothing now"


def _changed(change: Change) -> Iterator[tuple[str, str, str]]:
    event, before = change.event, change.before
    for name in event.nodes:
        if change.status(name) is None:
            continue
        found = list(node_changes(before.nodes[before.index[name]], change.after.nodes[change.after.index[name]]))
        when = _when(change, name)
        for k, text in enumerate(found or ["as it is"]):
            tail = f"   {when}" if when and k == 0 else ""
            yield ("~", name, text + tail) if k == 0 else (" ", "", text)
    for name in event.reset:
        if name not in event.nodes:
            yield "~", name, _again(change, name)
    if event.limits:
        for text in _limit_changes(before.workflow.limits, event.limits):
            yield "~", "limits", text


def _when(change: Change, name: NodeId) -> str:
    if name in change.event.reset:
        return _again(change, name)
    return "from its next try" if change.status(name) is Status.RETRYING else ""


def _again(change: Change, name: NodeId) -> str:
    if name in change.stale:
        return "completed, now stale: runs again"
    status = change.status(name)
    return "runs again" if status is None else f"{status}: runs again".replace("_", " ")


def _come(change: Change) -> Iterator[tuple[str, str, str]]:
    before, after, event = change.before, change.after, change.event
    for name in event.nodes:
        if change.status(name) is not None:
            continue
        i = after.index[name]
        parts = [_work(after.nodes[i]), f"wave {after.wave[i]}"]
        if after.needs[i]:
            parts.append(f"after {_names(after, after.needs[i])}")
        if after.dependents[i]:
            parts.append(f"before {_names(after, after.dependents[i])}")
        if after.nodes[i].isolation != "process" and not has_default_level(after.nodes[i]):
            parts.append(f"isolation {after.nodes[i].isolation}")
        if after.nodes[i].permissions is not None:
            parts.append("with permissions of its own")
        if name in before.index:
            parts.append("comes back")
        yield "+", name, "   ".join(parts)
    for name in change.revived:
        if name not in event.nodes:
            yield "+", name, f"{change.status(name)}: comes back"


def _names(plan: Plan, numbers: Sequence[int]) -> str:
    shown = ", ".join(plan.ids[d] for d in numbers[:5])
    return shown + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def _work(node: Node) -> str:
    if node.review is not None:
        return f"review: {_short(node.review.message)}" if node.review.message else "review"
    if node.agent is not None:
        return f"agent: {_short(node.agent.prompt)}"
    command = node.run if isinstance(node.run, str) else " ".join(node.run)
    return f"run {_short(command)}"


# ---------------------------------------------------------------- fields


def node_changes(old: Node, new: Node) -> Iterator[str]:
    """`key old -> new` for each key in which two nodes differ, in the words of a workflow file."""
    a, b = _by_field(old), _by_field(new)
    for key in dict.fromkeys([*a, *b]):
        if key == "id" or a.get(key) == b.get(key):
            continue
        was, now = a.get(key, _DEFAULTS.get(key)), b.get(key, _DEFAULTS.get(key))
        if key in _BY_KEY and isinstance(was or {}, dict) and isinstance(now or {}, dict):
            yield from _by_key(key, cast("dict[str, Json]", was or {}), cast("dict[str, Json]", now or {}))
        else:
            yield f"{_KEYS.get(key, key)} {_shown(key, was)} -> {_shown(key, now)}"


def _by_field(node: Node) -> dict[str, Json]:
    """The fields of a node that are not at their defaults; permissions as they are written, paths side by side."""
    made = node_to_json(node)
    if node.permissions is not None:
        rights = permissions_to_document(node.permissions)
        paths = cast("dict[str, Json]", rights.pop("paths", {}))
        made["permissions"] = {**rights, **{f"paths.{key}": roots for key, roots in paths.items()}}
    return made


def _by_key(key: str, was: Mapping[str, Json], now: Mapping[str, Json]) -> Iterator[str]:
    if key == "agent" and was and now:
        was, now = _AGENT | dict(was), _AGENT | dict(now)
    unsaid = "unsaid" if key == "permissions" else ""  # `none` is a network, and less than nothing said
    for name in dict.fromkeys([*was, *now]):
        if was.get(name) != now.get(name):
            path = f"{key}.{name.removesuffix('_s')}"
            before, after = (_shown(name, v.get(name)) if name in v or not unsaid else unsaid for v in (was, now))
            yield f"{path} {before} -> {after}"


def _shown(key: str, value: Json) -> str:
    if value is None:
        return "none"
    if key.endswith("_s") and isinstance(value, int | float):
        return str(duration(value))
    if isinstance(value, dict) and "expression" in value:
        default = f", default {_shown('', value.get('default'))}" if value.get("has_default") else ""
        optional = ", optional" if value.get("optional") else ""
        return clean(str(value["expression"])) + optional + default
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(map(clean, cast("list[str]", value))) or "nothing"
    if isinstance(value, str) and not (value[:1].isalnum() and value[-1:].isalnum()):
        return dumps(_short(value), ensure_ascii=False)  # blanks and signs alone are hard to see
    return _short(value)


def _short(value: Json) -> str:
    text = value if isinstance(value, str) else dumps(value, ensure_ascii=False)
    first, _, rest = text.strip().partition("\n")
    return cut(clean(first) + (" …" if rest else ""), _VALUE)


def _limit_changes(old: Limits, new: Mapping[str, Json]) -> Iterator[str]:
    for name in ("parallel", "timeout_s", "resources"):
        was = dict(old.resources) if name == "resources" else getattr(old, name)
        if new.get(name) != was:
            yield f"{name.removesuffix('_s')} {_shown(name, was or None)} -> {_shown(name, new.get(name) or None)}"


# ---------------------------------------------------------------- JSON, files


def preview_json(change: Change) -> dict[str, Json]:
    """The change for programs: ids by what becomes of them; costs in USD."""
    event, known = change.event, change.before.index
    kept = [n for n in event.nodes if n in known and known[n] not in change.before.removed]
    return {
        "base": change.before.revision,
        "revision": change.after.revision,
        "added": [n for n in event.nodes if n not in kept],
        "removed": list(event.removed),
        "changed": cast("list[Json]", kept),
        "skipped": dict(event.skipped),
        "superseded": dict(event.superseded),
        "rerun": list(event.reset),
        "stale": list(change.stale),
        "revived": list(change.revived),
        "cancelled": list(event.cancelled),
        "limits": dict(event.limits),
        "waves": {"before": change.before.depth, "after": change.after.depth},
        "cost_usd": usd(most) if (most := change.cost.at_most) is not None else None,
        "warnings": list(change.warnings),
    }


def file_diff(before: str, after: str, file: str, look: Look = PLAIN) -> str:
    """A text against its new form, as a unified diff without a newline at its end; empty for no change."""
    from difflib import unified_diff

    lines = []
    for line in unified_diff(before.splitlines(), after.splitlines(), file, f"{file} (new)", lineterm="", n=2):
        style = "bold" if line.startswith(("---", "+++")) else "cyan" if line[:1] == "@" else _STYLE.get(line[:1], "")
        shown = clean(line)
        lines.append(look.paint(look.cut(shown, look.width) if look.width else shown, style))
    return "\n".join(lines)

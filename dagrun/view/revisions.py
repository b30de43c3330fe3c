"""The history of a run's plan: a table for people, the seed's document for programs.

What is shown are `Entry`s in the order of the journal; reading it is the caller's. Admitted and
refused patches are both in it, the refused ones with their reasons.
Source of the document's shape: [dag-dynamic-replanner], Modification History.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from dagrun.core.event import PatchAdmitted, PatchProposed, PatchRefused, ProposalDecided
from dagrun.core.names import Json
from dagrun.core.trace import iso_utc
from dagrun.view.log import operations_text
from dagrun.view.tables import Head, ago, table
from dagrun.view.text import PLAIN, Look, clean

if TYPE_CHECKING:
    from dagrun.core.event import RunCreated

Happened: TypeAlias = PatchAdmitted | PatchRefused | PatchProposed | ProposalDecided


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that was done to a plan, at wall time `at`.

    `adopted_ms` is how long an engine took to go by it; None when none has (yet). `base_digest`
    is the sha256 of the plan that it was made for, as the run's folder has it.
    """

    at: float
    event: Happened
    adopted_ms: float | None = None
    base_digest: str = ""


# ---------------------------------------------------------------- the table

_HEADS = (
    Head("REVISION", right=True),
    Head("WHEN"),
    Head("BY"),
    Head("OUTCOME"),
    Head("TRIGGER", optional=True),
    Head("WHAT"),
)


def history_table(created: RunCreated, at: float, entries: Sequence[Entry], now: float, look: Look = PLAIN) -> str:
    """A line for each revision and each refused patch, oldest first; ends with a newline."""
    first = (
        "1",
        _when(at, now, look),
        "",
        "started",
        "",
        f"{clean(created.workflow)} from {clean(created.file) or '-'}",
    )
    rows = [first, *(_row(entry, now, look) for entry in entries)]
    styles = ["", *(_STYLES.get(type(entry.event), "") for entry in entries)]
    return "\n".join(table(_HEADS, rows, look, lambda k: styles[k])) + "\n"


_STYLES = {PatchRefused: "failed", PatchProposed: "awaiting_review"}


def _when(at: float, now: float, look: Look) -> str:
    return ago(now - at) if look.width is not None else iso_utc(at)


def _row(entry: Entry, now: float, look: Look) -> tuple[str, ...]:
    event, when = entry.event, _when(entry.at, now, look)
    by = clean(event.by)
    match event:
        case PatchAdmitted():
            how = f"adopted in {entry.adopted_ms:.0f} ms" if entry.adopted_ms is not None else "admitted"
            if event.undoes:
                how += f", undoes {event.undoes}"
            return str(event.revision), when, by, how, _trigger(event.trigger, look), operations_text(event.operations)
        case PatchRefused():
            why = f"{operations_text(event.operations)}: {clean('; '.join(event.reasons))}".removeprefix(": ")
            return "", when, by, f"refused on {event.head}", _trigger(event.trigger, look), why
        case PatchProposed():
            what = f"{operations_text(event.operations)} ({clean(event.why)})"
            return "", when, by, f"proposal {event.number}", _trigger(event.trigger, look), what
        case _:
            done = "approved" if event.decision == "approve" else "rejected"
            return "", when, by, done, "", f"proposal {event.number}"


def _trigger(trigger: Mapping[str, Json], look: Look) -> str:
    words = [str(trigger.get(key) or "") for key in ("type", "node")]
    text = " ".join(w for w in words if w)
    reason = str(trigger.get("reason") or "")
    if words == ["requirement", ""] and not reason:
        return ""
    whole = clean(f"{text}: {reason}" if reason else text)
    # in a narrow terminal the last column, what was done, must keep its share
    return whole if look.width is None else look.cut(whole, max(12, (look.width - 40) // 2))


# ---------------------------------------------------------------- the document


def history_document(created: RunCreated, at: float, entries: Sequence[Entry]) -> dict[str, Json]:
    """The history in the shape of the seed: `{modificationHistory: {dagId, …, modifications: […]}}`.

    A patch of k operations gives k modifications with one version. Beside it, of ours: run,
    base and its digest, actor, outcome; refused patches and proposals have lists of their own.
    """
    versions = [entry.event.revision for entry in entries if isinstance(entry.event, PatchAdmitted)]
    modifications: list[Json] = []
    refused: list[Json] = []
    proposals: list[Json] = []
    for entry in entries:
        match entry.event:
            case PatchAdmitted():
                modifications += _modifications(entry, entry.event)
            case PatchRefused():
                refused.append(_refused(entry, entry.event))
            case PatchProposed() | ProposalDecided():
                proposals.append(_proposal(entry, entry.event))
    return {
        "modificationHistory": {
            "dagId": created.workflow,
            "runId": created.run_id,
            "originalVersion": 1,
            "currentVersion": versions[-1] if versions else 1,
            "startedAt": iso_utc(at),
            "modifications": modifications,
            "refused": refused,
            "proposals": proposals,
        }
    }


def _modifications(entry: Entry, event: PatchAdmitted) -> list[Json]:
    shared: dict[str, Json] = {
        "version": event.revision,
        "timestamp": iso_utc(entry.at),
        "trigger": trigger_document(event.trigger),
    }
    after: dict[str, Json] = {
        "base": event.base,
        "baseDigest": entry.base_digest,
        "actor": event.by,
        "outcome": "admitted" if entry.adopted_ms is None else "adopted",
    }
    if entry.adopted_ms is not None:
        after["adoptedMs"] = round(entry.adopted_ms, 1)
    if event.undoes:
        after["undoes"] = event.undoes
    return [{**shared, "action": action, **after} for action in _actions(event.operations, event.superseded)]


def _refused(entry: Entry, event: PatchRefused) -> Json:
    return {
        "timestamp": iso_utc(entry.at),
        "trigger": trigger_document(event.trigger),
        "actions": _actions(event.operations),
        "base": event.base,
        "baseDigest": entry.base_digest,
        "head": event.head,
        "actor": event.by,
        "outcome": "refused",
        "reasons": list(event.reasons),
    }


def _proposal(entry: Entry, event: PatchProposed | ProposalDecided) -> Json:
    shared: dict[str, Json] = {"number": event.number, "timestamp": iso_utc(entry.at), "actor": event.by}
    if isinstance(event, ProposalDecided):
        return {**shared, "outcome": "approved" if event.decision == "approve" else "rejected"}
    return {
        **shared,
        "outcome": "proposed",
        "base": event.base,
        "trigger": trigger_document(event.trigger),
        "actions": _actions(event.operations),
        "why": event.why,
    }


def trigger_document(trigger: Mapping[str, Json]) -> dict[str, Json]:
    """A trigger as the seed writes it: `{type, nodeId, reason}`."""
    node = {"nodeId": trigger["node"]} if trigger.get("node") else {}
    return {"type": trigger.get("type", "requirement"), **node, "reason": trigger.get("reason", "")}


def _actions(operations: Sequence[Json], superseded: Mapping[str, str] | None = None) -> list[Json]:
    return [
        action_document(kind, body, superseded)
        for operation in operations
        if isinstance(operation, dict)
        for kind, body in operation.items()
        if isinstance(body, dict)
    ]


def action_document(
    kind: str, body: Mapping[str, Json], superseded: Mapping[str, str] | None = None
) -> dict[str, Json]:
    """An operation as an action of the seed; those that it does not know keep our keys.

    `superseded` tells which node stands in for which, once the patch was admitted.
    """
    rest = {key: value for key, value in body.items() if key != "id"}
    name = body.get("id")
    match kind:
        case "insert":
            node = rest.pop("node", {})
            place: dict[str, Json] = {
                "insertAfter": rest.pop("after", []),
                "insertBefore": rest.pop("before", []),
            }
            node = {"id": name, **node} if isinstance(node, dict) else node
            return {"type": kind, "node": node, "position": place, **rest}
        case "retry":
            return {"type": kind, "nodeId": name, "modifications": rest.pop("set", {}), **rest}
        case "fallback":
            node = _stand_in(name, rest.pop("with", {}), superseded or {})
            return {"type": kind, "failedNodeId": name, "fallback": node, **rest}
        case "rewire":
            wire: dict[str, Json] = {
                "nodeId": name,
                "oldDependencies": rest.pop("old", []),
                "newDependencies": rest.pop("new", []),
            }
            return {"type": kind, "rewire": wire, **rest}
        case _:
            return {"type": kind, **({"nodeId": name} if name is not None else {}), **rest}


def _stand_in(name: Json, given: Json, superseded: Mapping[str, str]) -> Json:
    """The node of a fallback as the seed writes it: with its id, and the template that it was made from."""
    new = superseded.get(name) if isinstance(name, str) else None
    if new is None:
        return given
    if isinstance(given, dict):
        return {"id": new, **given}
    return {"id": new, "template": given} if given != new else {"id": new}

"""What of a recorded run came from outside of its engine: from people, signals, and what commands wrote.

A replay lets these events happen as they were. All others follow from the workflow, from answers and from ends
of attempts, and happen again by themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from dagrun.core import expression as ex
from dagrun.core.event import (
    EngineAttached,
    Event,
    NodeAdopted,
    NodeSkipped,
    NodeStarted,
    PatchAdmitted,
    PatchProposed,
    PatchRefused,
    ProposalDecided,
    ReviewDecided,
    RunEnded,
    StopRequested,
    Warned,
)
from dagrun.core.names import Json, NodeId
from dagrun.core.plan import Plan
from dagrun.core.state import INTERRUPTS, RunState
from dagrun.engine.recording import Record, Trial, follow, read, watch
from dagrun.store.context import ContextStore


@dataclass(slots=True)
class Story:
    """A record taken apart: the attempts of each node, what came from outside with its position in the record, and
    what replanners were shown of each failed node, in the order in which they were asked."""

    trials: dict[NodeId, list[Trial]] = field(default_factory=dict)
    outside: list[tuple[int, Event]] = field(default_factory=list)
    evidence: dict[NodeId, list[dict[str, Json]]] = field(default_factory=lambda: defaultdict(list))


def tell(record: Record) -> Story:
    """Read a record from its begin to its end. Raises JournalError.

    An interrupt after which the run was taken up again left no trace but attempts that were cut short: it
    is left out, and so is what was written behind the last end.
    """
    story = Story()
    began = False
    for position, told, state in follow(record):
        event = told.event
        watch(story.trials, position, told, state)
        began = began or isinstance(event, NodeStarted)
        if isinstance(event, PatchAdmitted):
            _note_evidence(story, event)
        if _from_outside(event, state, began=began):
            story.outside.append((position, event))
    ends = [k for k, told in enumerate(record.told) if isinstance(told.event, RunEnded)]
    last = ends[-1] if ends else len(record.told)
    engine = max((k for k, told in enumerate(record.told) if isinstance(told.event, EngineAttached)), default=0)
    story.outside = [
        (position, event)
        for position, event in story.outside
        if position < last and (not _is_interrupt(event) or position > engine)
    ]
    return story


def _is_interrupt(event: Event) -> bool:
    return isinstance(event, StopRequested) and event.cause in INTERRUPTS


def _note_evidence(story: Story, event: PatchAdmitted) -> None:
    for failed, replanner in event.asks.items():
        inputs = cast("dict[str, dict[str, Json]]", cast("dict[str, Json]", event.nodes[replanner])["inputs"])
        shown = {name: ex.render_value(item.get("value"), ex.Scope()) for name, item in inputs.items()}
        story.evidence[failed].append(shown)


def _from_outside(event: Event, state: RunState, *, began: bool) -> bool:
    """Whether an event follows neither from the workflow nor from what is answered here: a person, a signal, a node."""
    match event:
        case ReviewDecided() | ProposalDecided() | StopRequested():
            return True
        case PatchAdmitted(by=by) | PatchRefused(by=by) | PatchProposed(by=by):
            kind, _, name = by.partition(":")
            if kind == "node" and name in state.plan.index:
                return state.plan.nodes[state.plan.index[name]].agent is None
            return kind != "on_failure"
        case EngineAttached():
            return event.revive
        case Warned():
            i = state.plan.index.get(event.node)
            return not began if i is None else state.plan.nodes[i].kind == "run"
        case _:
            return False


def selection(record: Record, plan: Plan, context: ContextStore) -> list[Event]:
    """What settled nodes before anything started: they were not selected, or had their outputs from another run."""
    found: list[Event] = []
    for told in record.told:
        event = told.event
        if isinstance(event, NodeStarted):
            break
        if isinstance(event, NodeSkipped) and event.reason == "selection" and event.node in plan.index:
            found.append(event)
        elif isinstance(event, NodeAdopted) and event.node in plan.index:
            where = f"{record.name}, node {event.node}, output"
            kept: dict[str, Json] = {
                name: dict(context.put(read(record, cast("Mapping[str, Json]", ref), f"{where} {name}")))
                for name, ref in event.outputs.items()
            }
            found.append(replace(event, outputs=kept))
    return found

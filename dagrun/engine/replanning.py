"""Patches that come from inside a run: what an author declared for a failure, what a node wrote, what a model says.

Each function gives the events that follow; nothing is appended here. Text of a node or a model is data: a
patch from one is parsed by the same door as a file of the user, and what would bring new
commands into the run waits for a human.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from json import loads
from time import time
from typing import cast

from dagrun.core.event import (
    EscalationFailed,
    Event,
    PatchAdmitted,
    PatchRefused,
    ReviewRequested,
    decode,
    encode,
)
from dagrun.core.mask import Masker
from dagrun.core.names import Json, NodeId, Outcome, Status
from dagrun.core.patch import Patch, Trigger
from dagrun.core.patchlimits import applied_often, chain_end
from dagrun.core.replan import Actor, admit, chain_length, fallback_patch, proposal, refusal, stale_base
from dagrun.core.state import RunState
from dagrun.core.workflow import Fault, OnFailure
from dagrun.engine.bench import Workbench, node_values
from dagrun.engine.worst import worst_of
from dagrun.errors import InputError


def escalate(bench: Workbench, state: RunState, i: int, step: str) -> list[Event]:
    """Carry out one step of the `on_failure` of node `i`, whose retries are spent."""
    wanted = state.plan.nodes[i].on_failure
    assert wanted is not None
    match step:
        case "fallback":
            return _fall_back(state, i, wanted)
        case "replan":
            return _replan(state, i, wanted)
        case "replanner":
            return _model(bench, state, i, wanted)
        case _:
            return [_ask(bench, state, i, wanted)]


def _failed(state: RunState, i: int, step: str, text: str) -> EscalationFailed:
    return EscalationFailed(node=state.plan.ids[i], step=step, text=text)


def _trigger(state: RunState, i: int) -> Trigger:
    last = state.attempts[i][-1] if state.attempts[i] else None
    timed_out = last is not None and last.outcome is Outcome.TIMED_OUT
    reason = state.reasons.get(i, "")
    return Trigger(type="timeout" if timed_out else "failure", node=state.plan.ids[i], reason=reason)


def _fall_back(state: RunState, i: int, wanted: OnFailure) -> list[Event]:
    most = state.plan.workflow.limits.fallback_chain
    if chain_length(state, i) >= most:
        return [_failed(state, i, "fallback", chain_end(most))]
    template = state.plan.workflow.templates.get(wanted.fallback) if wanted.fallback else wanted.fallback_node
    if template is None:
        return [_failed(state, i, "fallback", f"there is no template {wanted.fallback!r}")]
    trigger = _trigger(state, i)
    patch = fallback_patch(state, i, template, reason=trigger.reason, timed_out=trigger.type == "timeout")
    return _declared(state, i, "fallback", patch)


def _replan(state: RunState, i: int, wanted: OnFailure) -> list[Event]:
    from dagrun.flowfile.patchfile import patch_from_document

    most = state.plan.workflow.limits.fallback_chain
    if sum(r.by == f"on_failure:{state.plan.ids[i]}" and not r.asks for r in state.revisions) >= most:
        return [_failed(state, i, "replan", applied_often(most))]
    try:
        patch = patch_from_document(wanted.replan_patch, state.plan.workflow, wanted.replan)
    except InputError as error:
        return [_failed(state, i, "replan", "; ".join(p.message for p in error.problems))]
    return _declared(state, i, "replan", replace(patch, base=0, trigger=_trigger(state, i)))


def _declared(state: RunState, i: int, step: str, patch: Patch) -> list[Event]:
    """Admit a patch that the author declared; if it leaves the failure as it is, the next step is due."""
    name = state.plan.ids[i]
    verdict = admit(state, patch, by=f"on_failure:{name}", actor="declared")
    if verdict.event is None:
        refused = refusal(state, patch, verdict.faults, f"on_failure:{name}")
        return [refused, _failed(state, i, step, "; ".join(refused.reasons))]
    if _handles(verdict.event, name):
        return [verdict.event]
    return [verdict.event, _failed(state, i, step, "the patch leaves this node as it is")]


def _handles(event: PatchAdmitted, name: NodeId) -> bool:
    """Whether a patch changes anything for a failed node."""
    return name in event.reset or name in event.superseded or name in event.removed or name in event.skipped


# ---------------------------------------------------------------- what a model says


def _model(bench: Workbench, state: RunState, i: int, wanted: OnFailure) -> list[Event]:
    """Ask the replanner of a failed node; once it has answered, the verdict on its patch."""
    from dagrun.core.replanner import not_now, question

    assert wanted.replanner is not None
    if i in state.asking:
        return _masked(_answered(bench, state, i, state.asking[i]), bench.mask)
    why_not = not_now(state, i)
    if why_not:
        return [_failed(state, i, "replanner", why_not)]
    from dagrun.engine.evidence import evidence

    trigger = _trigger(state, i)
    return _masked([question(state, i, wanted.replanner, evidence(bench, state, i), trigger)], bench.mask)


def _answered(bench: Workbench, state: RunState, i: int, replanner: int) -> list[Event]:
    """What follows from the end of a replanner: its patch, a proposal of it, or the next step."""
    name = state.plan.ids[replanner]
    if i in state.offers:
        return [_failed(state, i, "replanner", f"proposal {state.offers[i]} of {name} did not mend it")]
    if replanner in state.removed:
        return [_failed(state, i, "replanner", f"{name} was taken out")]
    status = state.node_status[replanner]
    if status is not Status.COMPLETED:
        why = state.reasons.get(replanner, "")
        return [_failed(state, i, "replanner", f"{name} {status}" + (f": {why}" if why else ""))]
    events, why = _verdict(bench, state, i, name, node_values(bench, state, name))
    return [*events, *([_failed(state, i, "replanner", why)] if why else [])]


def _verdict(
    bench: Workbench, state: RunState, i: int, name: NodeId, answer: Mapping[str, Json]
) -> tuple[list[Event], str]:
    """(what becomes of the patch in an answer, why the failure stays as it is or "")."""
    from dagrun.core.consent import reasons_for_human
    from dagrun.core.replanner import document, reason_of
    from dagrun.flowfile.patchfile import patch_from_document

    by, head = f"node:{name}", state.plan.revision
    written = document(answer, _trigger(state, i))
    if written is None:
        return [], f"{name} knows no patch that helps: {reason_of(answer) or 'it gives no reason'}"
    try:
        patch = patch_from_document(written, state.plan.workflow, f"patch of {name}")
    except InputError as error:
        reasons = tuple(p.message + (f" ({p.hint})" if p.hint else "") for p in error.problems)
        trigger = cast("dict[str, Json]", written["trigger"])
        operations = tuple(cast("list[Json]", written["operations"]))
        refused = PatchRefused(base=head, head=head, by=by, trigger=trigger, operations=operations, reasons=reasons)
        return [refused], "; ".join(reasons)
    verdict = admit(state, patch, by=by, actor="node", cost=worst_of(bench))
    event = verdict.event
    if event is None:
        refused = refusal(state, patch, verdict.faults, by)
        return [refused], "; ".join(refused.reasons)
    why = reasons_for_human(state, patch, event)
    if why:
        return [proposal(state, patch, by, "; ".join(why))], ""
    return [event], "" if _handles(event, state.plan.ids[i]) else "the patch leaves this node as it is"


def _ask(bench: Workbench, state: RunState, i: int, wanted: OnFailure) -> Event:
    review = wanted.review
    assert review is not None
    message = review.message or f"{state.plan.ids[i]} failed: {state.reasons.get(i, '')}"
    deadline = time() + review.timeout_s if review.timeout_s is not None else 0.0
    return ReviewRequested(
        node=state.plan.ids[i],
        attempt=len(state.attempts[i]),
        message=bench.mask.text(message),
        deadline=deadline,
        on_timeout=review.on_timeout,
    )


# ---------------------------------------------------------------- what a node wrote to $DAGRUN_PATCH


def patch_from_node(bench: Workbench, state: RunState, node: NodeId, data: bytes) -> list[Event]:
    """The verdict on a patch that a node wrote: admitted, refused, or proposed to a human; nothing secret in it."""
    return _masked(_judge(bench, state, node, data), bench.mask)


def _masked(events: list[Event], mask: Masker) -> list[Event]:
    """The events with nothing secret in them.

    Their texts were masked before, but what is quoted in a quotation only shows once it was read.
    """
    return [decode(cast("dict[str, Json]", mask.value(loads(encode(e))))) for e in events] if mask else events


def _judge(bench: Workbench, state: RunState, node: NodeId, data: bytes) -> list[Event]:
    from dagrun.flowfile.patchfile import read_patch

    by = f"node:{node}"
    head = state.plan.revision
    try:
        patch = read_patch(data, f"$DAGRUN_PATCH of {node}", state.plan.workflow)
    except InputError as error:
        reasons = tuple(p.message + (f" ({p.hint})" if p.hint else "") for p in error.problems)
        return [PatchRefused(base=0, head=head, by=by, reasons=reasons)]
    if stale_base(state, patch):
        fault = Fault(("base",), "stale-base", f"the patch was made for revision {patch.base}, the head is {head}")
        return [refusal(state, patch, [fault], by)]
    trigger = patch.trigger if patch.trigger.node else replace(patch.trigger, node=node)
    patch = replace(patch, trigger=trigger)
    actor: Actor = "node"
    verdict = admit(state, patch, by=by, actor=actor, cost=worst_of(bench))
    if verdict.event is None:
        return [refusal(state, patch, verdict.faults, by)]
    from dagrun.core.consent import new_commands

    commands = new_commands(state, patch)
    if commands:
        return [proposal(state, patch, by, f"it brings new commands into the run: {', '.join(commands)}")]
    return [verdict.event]

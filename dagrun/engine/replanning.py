"""Patches that come from inside a run: what an author declared for a failure, what a node wrote.

Each function gives the events that follow; nothing is appended here. Text of a node is data: a
patch from a node is parsed by the same door as a file of the user, and what would bring new
commands into the run waits for a human.
"""

from __future__ import annotations

from dataclasses import replace
from json import loads
from time import time
from typing import cast

from dagrun.core.event import EscalationFailed, Event, PatchRefused, ReviewRequested, decode, encode
from dagrun.core.mask import Masker
from dagrun.core.names import Json, NodeId, Outcome
from dagrun.core.patch import Alternative, Fallback, Insert, Modify, Patch, Retry, Trigger
from dagrun.core.patchlimits import applied_often, chain_end
from dagrun.core.replan import Actor, admit, chain_length, fallback_patch, proposal, refusal, stale_base
from dagrun.core.state import RunState
from dagrun.core.workflow import Fault, Node, OnFailure
from dagrun.engine.bench import Workbench
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
    if sum(r.by == f"on_failure:{state.plan.ids[i]}" for r in state.revisions) >= most:
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
    event = verdict.event
    if name in event.reset or name in event.superseded or name in event.removed or name in event.skipped:
        return [event]
    return [event, _failed(state, i, step, "the patch leaves this node as it is")]


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


def patch_from_node(state: RunState, node: NodeId, data: bytes, mask: Masker) -> list[Event]:
    """The verdict on a patch that a node wrote: admitted, refused, or proposed to a human; nothing secret in it."""
    events = _judge(state, node, data)
    # the text was masked already, but what is quoted in a quotation only shows once it was read
    return [decode(cast("dict[str, Json]", mask.value(loads(encode(e))))) for e in events] if mask else events


def _judge(state: RunState, node: NodeId, data: bytes) -> list[Event]:
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
    verdict = admit(state, patch, by=by, actor=actor)
    if verdict.event is None:
        return [refusal(state, patch, verdict.faults, by)]
    commands = _new_commands(state, patch)
    if commands:
        return [proposal(state, patch, by, f"it brings new commands into the run: {', '.join(commands)}")]
    return [verdict.event]


def _new_commands(state: RunState, patch: Patch) -> list[NodeId]:
    """Nodes of a patch whose command is not the author's: neither a template's nor the node's own."""
    workflow = state.plan.workflow
    known = {run for node in (*workflow.templates.values(), *workflow.nodes.values()) for run in _commands(node)}
    found: list[NodeId] = []
    for operation in patch.operations:
        match operation:
            case Insert(id=name, node=node) | Fallback(id=name, node=node) | Modify(id=name, node=node):
                found += [name] if not known.issuperset(_commands(node)) else []
            case Retry(id=name, node=changed):
                found += [name] if changed is not None and not known.issuperset(_commands(changed)) else []
            case Alternative(nodes=nodes):
                found += [name for name, node in nodes.items() if not known.issuperset(_commands(node))]
            case _:
                pass
    return found


def _commands(node: Node) -> list[str | tuple[str, ...]]:
    """What a node runs, and what the fallbacks written into it would."""
    inline = node.on_failure.fallback_node if node.on_failure is not None else None
    return [node.run, *(_commands(inline) if inline is not None else ())]

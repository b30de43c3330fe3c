"""Changes to a run that a person makes from outside its engine: patches, undo, reviews, proposals.

Each is one guarded append by the caller's own process: take the journal's lock, fold to the head,
check, write the verdict, sync. The engine need not be alive; if it is, it adopts what was written,
and the caller waits only for that. What is refused is written too, with all its reasons.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from select import select
from time import monotonic
from typing import cast

from dagrun.core.event import Event, PatchAdmitted, ProposalDecided, ReviewDecided, encode
from dagrun.core.names import Json, NodeId
from dagrun.core.patch import Patch
from dagrun.core.replan import Verdict, admit, refusal
from dagrun.core.state import RunState
from dagrun.core.workflow import Fault, node_from_json
from dagrun.engine.bench import is_guarded
from dagrun.errors import ConflictError, InputError, NotFoundError, Problem
from dagrun.store.context import ContextStore
from dagrun.store.history import Follower, History, load_state
from dagrun.store.rundir import RunDir

ADOPTION_WAIT_S = 10.0


@dataclass(slots=True, frozen=True)
class Submitted:
    """An admitted patch: the new revision, and how long the engine took to adopt it (None: none alive)."""

    verdict: Verdict
    revision: int
    adopted_ms: float | None
    engine_alive: bool


def preview(
    run: RunDir, make: Callable[[RunState], Patch], *, by: str, undoes: int = 0, proposal: int = 0
) -> tuple[RunState, Patch, Verdict]:
    """What a patch would do to the head of a run; nothing is written. Its warnings say what can't be held here."""
    state = load_state(run)
    patch = make(state)
    verdict = _judged(state, patch, by=by, undoes=undoes, proposal=proposal)
    if verdict.event is not None:
        verdict.warnings += _unheld(state, verdict.event)
    return state, patch, verdict


def _judged(state: RunState, patch: Patch, *, by: str, undoes: int, proposal: int) -> Verdict:
    """What becomes of a patch; refused too where an agent that it brings could not be asked here."""
    verdict = admit(state, patch, by=by, undoes=undoes, maker=_maker(state, proposal))
    if verdict.event is None:
        return verdict
    written = {name: cast("dict[str, Json]", data) for name, data in verdict.event.nodes.items()}
    asking = {n: node_from_json(data) for n, data in written.items() if data.get("agent") or data.get("on_failure")}
    if not asking:
        return verdict
    from dagrun.engine.kit import patch_faults

    faults = patch_faults(state, asking, os.environ)
    return Verdict(faults=faults) if faults else verdict


def _unheld(state: RunState, event: PatchAdmitted) -> list[str]:
    """The new and changed nodes that would be denied on this machine, in words."""
    workflow = state.plan.workflow
    nodes = [node_from_json(cast("dict[str, Json]", data)) for data in event.nodes.values()]
    if not any(is_guarded(workflow.permissions, node) for node in nodes):
        return []
    from dagrun.engine.confine import unheld

    return unheld(replace(workflow, templates={}), nodes)


def _maker(state: RunState, proposal: int) -> str:
    """Who made a proposal, whoever lets it in; empty for a patch that is none."""
    return state.proposals[proposal].by if proposal in state.proposals else ""


def submit(
    run: RunDir,
    make: Callable[[RunState], Patch],
    *,
    by: str,
    base: int,
    rebase: bool = False,
    undoes: int = 0,
    proposal: int = 0,
) -> Submitted:
    """Admit a patch if the head is still `base` (or with `rebase` whatever it is), and wait for its adoption.

    `make` builds the patch for the state that it is given: it is called under the lock, on the head.
    Raises ConflictError when the plan moved, InputError with all reasons when the patch is refused.
    """
    history = History(run, write=True)
    journal = history.journal
    try:
        history.begin()
        try:
            state = history.state
            patch = make(state)
            head = state.plan.revision
            if head != base and not rebase:
                fault = Fault(("base",), "stale-base", f"made for revision {base}, the head is {head}")
                journal.write([encode(refusal(state, patch, [fault], by))])
                raise _moved(run, state, base)
            patch = replace(patch, base=head)  # rebased: what was checked is the head, and the history says so
            verdict = _judged(state, patch, by=by, undoes=undoes, proposal=proposal)
            if verdict.event is None:
                journal.write([encode(refusal(state, patch, verdict.faults, by))])
                raise refused(run, verdict)
            events: list[Event] = [verdict.event]
            if proposal:
                events.append(ProposalDecided(number=proposal, decision="approve", by=by))
            journal.write([encode(e) for e in events])
        finally:
            journal.end()
            journal.sync()
    finally:
        history.close()
    alive = run.lock_holder() is not None
    took = _wait_for_adoption(run, verdict.event) if alive else None
    return Submitted(verdict, verdict.event.revision, took, alive)


def _moved(run: RunDir, state: RunState, base: int) -> ConflictError:
    if base > state.plan.revision:
        return ConflictError(
            f"run {run.id} has no revision {base} yet: it is at {state.plan.revision}",
            hint=f"see what there is: dagrun replan history {run.id}",
        )
    since = [r for r in state.revisions if r.revision > base]
    by = ", ".join(f"revision {r.revision} by {r.by or 'somebody'}" for r in since)
    return ConflictError(
        f"run {run.id} is at revision {state.plan.revision}, you built on {base} ({by})",
        hint=f"see what changed: dagrun replan history {run.id}; to build on it: the same command with --rebase",
    )


def refused(run: RunDir, verdict: Verdict) -> InputError:
    """A refused patch as the error that names all reasons."""
    problems = tuple(Problem(code=f.code, message=f.message, hint=f.hint) for f in verdict.faults)
    return InputError(problems, hint=f"nothing was changed; the run as it is: dagrun plan {run.id}")


def _wait_for_adoption(run: RunDir, event: PatchAdmitted) -> float | None:
    """Milliseconds until the engine adopted a revision; None when it did not within ADOPTION_WAIT_S."""
    follower = Follower(run)
    began = monotonic()
    try:
        while follower.state.adopted_revision < event.revision:
            left = began + ADOPTION_WAIT_S - monotonic()
            if left <= 0 or (follower.state.ended is not None and run.lock_holder() is None):
                return None
            fd = follower.fileno()
            select([fd] if fd is not None else [], [], [], min(left, 0.05))
            follower.poll()
        return (monotonic() - began) * 1000
    finally:
        follower.close()


# ---------------------------------------------------------------- humans


def decide_review(
    run: RunDir,
    node: NodeId,
    decision: str,
    *,
    by: str,
    comment: str = "",
    outputs: Mapping[str, Json] | None = None,
) -> RunState:
    """Record what a human decided about a waiting node: approve, reject or skip. The new state.

    Raises ConflictError when the node awaits no review (any more).
    """
    assert decision in ("approve", "reject", "skip")
    store = ContextStore(run)
    refs: dict[str, Json] = {name: dict(store.put(value)) for name, value in (outputs or {}).items()}

    def event(state: RunState) -> Event:
        i = state.plan.index.get(node)
        if i is None:
            raise NotFoundError(f"run {run.id} has no node {node!r}", hint=f"what waits: dagrun review {run.id}")
        if i not in state.reviews:
            raise ConflictError(
                f"node {node!r} awaits no review: it is {state.node_status[i]}", hint=f"dagrun status {run.id}"
            )
        return ReviewDecided(node=node, decision=decision, by=by, comment=comment, outputs=refs)  # type: ignore[arg-type]

    return _append(run, event)


def reject_proposal(run: RunDir, number: int, *, by: str) -> RunState:
    """Record that a human turned down a patch that a node proposed. Raises NotFoundError."""

    def event(state: RunState) -> Event:
        if number not in state.proposals:
            raise NotFoundError(f"run {run.id} has no open proposal {number}", hint=f"dagrun review {run.id}")
        return ProposalDecided(number=number, decision="reject", by=by)

    return _append(run, event)


def _append(run: RunDir, make: Callable[[RunState], Event]) -> RunState:
    """Append one event that depends on the head; durable on return. The state with it."""
    history = History(run, write=True)
    try:
        history.begin()
        try:
            history.journal.write([encode(make(history.state))])
        finally:
            history.journal.end()
        history.journal.sync()
    finally:
        history.close()
    return load_state(run)

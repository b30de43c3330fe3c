"""What a plan would do, played through by the engine's own rules with durations that are guessed.

Nothing is simulated here but time: starts come from `decide`, everything else from `evolve`, so
waves, slots, resources and skips mean here exactly what they mean in a run. Every node that
runs is taken to complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from dagrun.core import expression as ex
from dagrun.core.decide import Append, Finish, Room, Start, decide
from dagrun.core.event import AttemptFinished, EngineAttached, NodeSkipped, NodeStarted, RunCreated
from dagrun.core.evolve import evolve
from dagrun.core.functions import truthy
from dagrun.core.names import Json, NodeId, Outcome, Schedule, Status
from dagrun.core.state import RunState, new_state
from dagrun.core.trace import node_reason
from dagrun.errors import BugError

if TYPE_CHECKING:
    from dagrun.core.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """How a run would go: seconds to its end, most nodes at a time, why nodes are skipped, who may be."""

    makespan_s: float
    widest: int
    skipped: Mapping[int, str]
    undecided: frozenset[int]


def durations(plan: Plan, estimates: Mapping[NodeId, float] | None = None) -> tuple[list[float], int]:
    """(seconds of each node, how many are known): the estimates, else the author's, else the mean of the known."""
    known = estimates or {}
    found = [known.get(name) or node.estimate_s for name, node in zip(plan.ids, plan.nodes, strict=True)]
    given = [s for s in found if s > 0]
    mean = sum(given) / len(given) if given else 1.0
    return [s if s > 0 else mean for s in found], len(given)


def rehearse(
    plan: Plan,
    *,
    parallel: int,
    schedule: Schedule,
    seconds: list[float],
    params: Mapping[str, Json] | None = None,
) -> Rehearsal:
    """Play a plan through. O((nodes + edges) log nodes).

    With `params`, an `if` that only they decide is decided; any other `if` is taken to be true.
    Raises BugError when the rules of the engine get stuck, as a run would.
    """
    created = RunCreated(format=1, run_id="plan", workflow=plan.workflow.name, schedule=schedule)
    state = new_state(plan, created, 0.0)
    evolve(state, EngineAttached(pid=0, parallel=parallel), 0.0, 0.0)
    room = Room(parallel, plan.workflow.limits.resources)
    conditions = Conditions(plan, params)
    ends: list[tuple[float, int]] = []
    now, widest = 0.0, 0
    while True:
        effects = decide(state, now, room)
        for effect in effects:
            if isinstance(effect, Append):
                evolve(state, effect.event, now, now)
            elif isinstance(effect, Finish):
                return _result(state, now, widest, conditions)
            elif isinstance(effect, Start):
                _start(state, effect.node, now, now + seconds[effect.node], conditions, ends)
            else:
                raise BugError(f"the plan got stuck: {effect}")
        widest = max(widest, len(state.running))
        if not effects:
            now, i = heappop(ends)
            done = AttemptFinished(node=plan.ids[i], attempt=1, outcome=Outcome.COMPLETED)
            evolve(state, done, now, now)


def _start(
    state: RunState, i: int, now: float, end: float, conditions: Conditions, ends: list[tuple[float, int]]
) -> None:
    skip = conditions.skip(state, i)
    if skip is not None:
        evolve(state, skip, now, now)
        return
    evolve(state, NodeStarted(node=state.plan.ids[i], attempt=1), now, now)
    heappush(ends, (end, i))


def _result(state: RunState, now: float, widest: int, conditions: Conditions) -> Rehearsal:
    skipped = {i: node_reason(state, i) for i, s in enumerate(state.node_status) if s is Status.SKIPPED}
    return Rehearsal(
        makespan_s=now, widest=widest, skipped=skipped, undecided=frozenset(conditions.undecided - skipped.keys())
    )


class Conditions:
    """Decides each `if` that can be decided before the run; remembers the others in `undecided`."""

    def __init__(self, plan: Plan, params: Mapping[str, Json] | None) -> None:
        self._plan = plan
        self._params = params
        self.undecided: set[int] = set()

    def skip(self, state: RunState, i: int) -> NodeSkipped | None:
        """The skip of a node whose `if` is false whatever happens in the run."""
        node = self._plan.nodes[i]
        if not node.condition:
            return None
        view = ex.StatusView(success=not state.broken[i], failure=bool(state.tainted[i]))
        value = self._value(i, node.condition, view)
        if value is None:
            self.undecided.add(i)
        return NodeSkipped(node=node.id, reason="condition", text=node.condition) if value is False else None

    def _value(self, i: int, condition: str, view: ex.StatusView) -> bool | None:
        """Whether the condition holds; None where only the run can tell."""
        tree = ex.parse(condition)
        if not ex.uses_status_function(tree) and not view.success:
            return False  # success() is implied
        roots = {ref.path[0] for ref in ex.references(tree)}
        if self._params is None or roots - {"params"} or "hashFiles" in ex.functions_used(tree):
            return None
        try:
            return truthy(ex.evaluate(tree, ex.Scope(params=self._params, status=view)))
        except ex.EvaluationError:
            return None

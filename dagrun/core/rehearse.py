"""Rehearsal: fail each node in turn in simulation, and say how the run would end.

The simulation is the core itself (`decide`, `evolve`, `admit`), with attempts that end at once and
outputs that are placeholders. One run in which all goes well is folded whole; of each failure only
what it can change: the nodes right below, those that have an `if` further down and what follows
from them. A node without an `if` below a failure is skipped, so of those no run is needed.
Source: [dag-dynamic-replanner], "test fallbacks".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from dagrun.core import expression as ex
from dagrun.core.event import FORMAT, AttemptFinished, NodeAdopted, NodeSkipped, RunCreated
from dagrun.core.evolve import evolve
from dagrun.core.names import Json, NodeId, Outcome, Schedule, Status
from dagrun.core.plan import Plan, all_needs, compile_plan, is_bare
from dagrun.core.pretend import Play, Replan, Step, Values, sunk_nodes, values_of
from dagrun.core.state import RunState, new_state
from dagrun.core.workflow import NO_RETRY, Node, Workflow

Ends: TypeAlias = Literal["completed", "failed", "needs_review"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What comes of `failures` failures in a row: of `node`, then of each that stands in for it.

    `lost` are other nodes that would have run and now never do (or can't start), `cannot_start` those of
    them that lack an input; `fallbacks` the templates that ran; `open_ifs` nodes whose `if` depends
    on values only a run knows, taken to hold; `notes` what a person should look at.
    """

    node: NodeId
    failures: int
    ends: Ends
    steps: tuple[Step, ...] = ()
    fallbacks: tuple[str, ...] = ()
    lost: tuple[NodeId, ...] = ()
    cannot_start: Mapping[NodeId, str] = field(default_factory=dict)
    open_ifs: tuple[NodeId, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def protected(self) -> bool:
        """Whether the author declared anything for this failure."""
        return any(step.node == self.node for step in self.steps)

    @property
    def broken(self) -> bool:
        """Whether something that was declared for this failure would be refused."""
        return any(step.result == "refused" for step in self.steps)

    @property
    def hole(self) -> bool:
        """Whether the run fails and takes other work with it, or something declared would not work."""
        return self.ends == "failed" and bool(self.lost or self.broken)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A rehearsal. `failures` are nodes that can't start although nothing failed: then there are no cases.

    `unreached` are nodes that don't run when all goes well, and why; `idle_templates` those that no
    failure can ever bring in, and why; `open_ifs` as in a case, when all goes well.
    """

    workflow: str
    file: str
    nodes: int
    depth: int
    cases: tuple[Case, ...] = ()
    failures: Mapping[NodeId, str] = field(default_factory=dict)
    unreached: Mapping[NodeId, str] = field(default_factory=dict)
    idle_templates: Mapping[str, str] = field(default_factory=dict)
    open_ifs: tuple[NodeId, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holes(self) -> tuple[Case, ...]:
        """The cases that leave a hole."""
        return tuple(case for case in self.cases if case.hole)


def rehearse(
    workflow: Workflow, *, depth: int = 1, params: Mapping[str, Json] | None = None, replan: Replan | None = None
) -> Report:
    """Fail every command and agent of a checked workflow, then its stand-ins, up to `depth` failures in a row.

    `replan` reads the document of an `on_failure: {replan: …}` for a workflow, as the engine would;
    without it such a step counts as no help and is reported as `unknown`, and so is always what a
    replanner would answer. Reviews on the way are approved. Params that are neither given nor
    defaulted stand for any value.
    """
    stage = Stage(workflow, values_of(workflow, params or {}), replan)
    base = stage.base
    cases: list[Case] = []
    if not stage.failures:
        for i, node in enumerate(stage.plan.nodes):
            if base.node_status[i] is not Status.COMPLETED or node.kind == "review":
                continue
            for failures in range(1, depth + 1):
                case = stage.case(i, failures)
                if case is None:
                    break
                cases.append(case)
    notes: tuple[str, ...] = ()
    if workflow.fail_fast and workflow.schedule is Schedule.READY:
        notes = ("fail_fast with schedule ready: a node of a later wave counts as lost; some may have run by then",)
    return Report(
        workflow=workflow.name,
        file=workflow.file,
        nodes=len(stage.plan.ids),
        depth=depth,
        cases=tuple(cases),
        failures=stage.failures,
        unreached={stage.plan.ids[i]: base.reasons[i] for i in base.skips if i < len(stage.plan.ids)},
        idle_templates=_idle_templates(workflow),
        open_ifs=tuple(stage.open_names),
        notes=notes,
    )


# ---------------------------------------------------------------- what a failure can change


class Stage:
    """What all simulated runs of a workflow share: the plan, and how the run ends when all goes well."""

    def __init__(self, workflow: Workflow, values: Values, replan: Replan | None) -> None:
        self.plan: Plan = compile_plan(workflow)
        # retries change nothing but the time until a node has failed for good
        self.real = [n if n.retry is NO_RETRY else replace(n, retry=NO_RETRY) for n in self.plan.nodes]
        self.stubs = [
            replace(n, needs=(), inputs={}, condition="", env={}, retry=NO_RETRY, on_failure=None, resources={})
            for n in self.plan.nodes
        ]
        self.workflow = replace(
            workflow, nodes=dict(zip(self.plan.ids, self.real)), schedule=Schedule.READY, fail_fast=False
        )
        self.values, self.replan = values, replan
        self.asks = [bool(n.condition) and not ex.wants_success(values.tree(n.condition)) for n in self.plan.nodes]
        self.mentions = [self._mentioned(n) for n in self.plan.nodes]
        self.below: dict[int, set[int]] = {}  # of the nodes that others read
        self.readers: dict[int, set[int]] = {}
        for i, node in enumerate(self.plan.nodes):
            for read in _read_in_if(node):
                self.readers.setdefault(self.plan.index[read], set()).add(i)
        self.results = [(name, _named(text)) for name, text in workflow.outputs.items()]
        self.created = RunCreated(format=FORMAT, run_id="rehearsal", workflow=workflow.name, schedule="ready")
        play = Play(new_state(compile_plan(self.workflow), self.created, 0.0), values, None).run()
        self.base, self.open_names = play.state, play.open_names()
        # what can't start although all goes well; a failure that neither counts nor leads to more is none of it
        self.failures = {n: w for n, w in play.errors.items() if not play.node(n).continue_on_error or play.steps}

    def _mentioned(self, node: Node) -> set[int]:
        """Nodes that the `if` of a node or of anything that may stand in for it names, and their needs."""
        names = _read_in_if(node)
        seen: set[str] = set()
        todo = [node]
        while todo:
            wanted = todo.pop().on_failure
            if wanted is None or (wanted.fallback and wanted.fallback in seen):
                continue
            seen.add(wanted.fallback)
            stand_in = self.plan.workflow.templates.get(wanted.fallback) if wanted.fallback else wanted.fallback_node
            if stand_in is not None:
                names |= set(all_needs(stand_in)) | _read_in_if(stand_in)
                todo.append(stand_in)
        return {self.plan.index[n] for n in names if n in self.plan.index}

    def case(self, i: int, failures: int) -> Case | None:
        """The case of so many failures in a row; None when there aren't so many to have."""
        node = self.plan.nodes[i]
        wanted = node.on_failure
        if wanted is None and not node.continue_on_error:
            return self._failed(i, None, failures) if failures == 1 else None
        if wanted is not None and wanted.replan and self.replan is not None:
            return self.whole_case(i, failures)
        region = {*self.plan.dependents[i], *self.readers.get(i, ())}
        if self._reads_below(i, region):
            return self.full_case(i, failures)
        play = self._play(i, region, set(), failures)
        if play.left:
            return None
        state = play.state
        astray = [k for k in region if not self._as_planned(play, k)]
        if play.tip in state.reviews and not state.failures:
            return self._judge(i, play, failures, ())
        if not astray and not state.failures:
            return self._judge(i, play, failures, ())
        if _fails_run(state, play.tip) and state.failures == 1:
            return self._failed(i, play, failures)
        return self.full_case(i, failures)

    def _reads_below(self, i: int, region: set[int]) -> bool:
        """Whether what is looked at reads nodes below `i` that are not right above the reader."""
        far = self.mentions[i].union(*[self.mentions[k].difference(self.plan.needs[k]) for k in region])
        return bool(far) and not far.isdisjoint(self.plan.downstream(i))

    def full_case(self, i: int, failures: int) -> Case | None:
        """The case with everything that follows from the node simulated."""
        region = self.plan.downstream(i) | self.readers.get(i, set())
        play = self._play(i, region, set(), failures)
        return None if play.left else self._judge(i, play, failures, region)

    def whole_case(self, i: int, failures: int) -> Case | None:
        """The case with the whole run simulated, wave by wave: a patch may touch any node."""
        workflow = replace(self.workflow, schedule=self.plan.workflow.schedule)
        created = replace(self.created, schedule=str(workflow.schedule))
        state = new_state(compile_plan(workflow), created, 0.0)
        play = Play(state, self.values, self.replan, [self.plan.ids[i]], failures).run()
        return None if play.left else self._judge(i, play, failures, range(len(self.plan.ids)))

    def _failed(self, i: int, play: Play | None, failures: int) -> Case | None:
        """The case of a node that stays failed: skipped is what needs it, unless its `if` allows for that."""
        doomed, asked = self._doomed(i)
        if asked:
            after = set(asked)
            for k in asked:
                after |= self.plan.downstream(k)
            near = {*self.plan.dependents[i], *self.readers.get(i, ())}
            region = near | (after - doomed)
            play = self._play(i, region, doomed - region, failures)
            return self._judge(i, play, failures, region, doomed)
        return self._judge(i, play, failures, (), doomed)

    def _doomed(self, i: int) -> tuple[set[int], list[int]]:
        """(nodes that a failure of `i` skips for sure, nodes whose `if` may hold all the same)."""
        doomed: set[int] = set()
        asked: set[int] = set()
        todo = [i]
        while todo:
            for d in self.plan.dependents[todo.pop()]:
                if d in doomed or d in asked:
                    continue
                if self.asks[d]:
                    asked.add(d)
                else:
                    doomed.add(d)
                    todo.append(d)
        return doomed, sorted(asked)

    def _play(self, i: int, region: set[int], doomed: set[int], failures: int) -> Play:
        """Simulate node `i` and the region below it; what is around it stands as it ends when all goes well."""
        plan, base = self.plan, self.base
        around: set[int] = set()
        read: set[int] = set()
        for k in (i, *region):
            around.update(plan.needs[k])
            read |= self.mentions[k]
        around = (around | read) - region
        around.discard(i)
        nodes: dict[NodeId, Node] = {}
        for k in sorted(region | around | {i}):
            if k in around:
                # who reads the status of a node has to stand below it, here too
                needs = [plan.ids[above] for above in read if k in self._below(above)]
                needs += [plan.ids[i]] if k in doomed and plan.ids[i] not in needs else []
                nodes[plan.ids[k]] = replace(self.stubs[k], needs=tuple(needs)) if needs else self.stubs[k]
            else:
                nodes[plan.ids[k]] = self.real[k]
        outputs = {name: self.workflow.outputs[name] for name, read in self.results if read <= nodes.keys()}
        state = new_state(compile_plan(replace(self.workflow, nodes=nodes, outputs=outputs)), self.created, 0.0)
        for k in around - doomed:
            name = plan.ids[k]
            match base.node_status[k]:
                case Status.COMPLETED:
                    evolve(state, NodeAdopted(node=name, run_id="rehearsal"), 0.0, 0.0)
                case Status.SKIPPED:
                    evolve(state, NodeSkipped(node=name, reason="condition", text=base.reasons[k]), 0.0, 0.0)
                case _:  # its failure does not count
                    evolve(state, AttemptFinished(node=name, attempt=1, outcome=Outcome.FAILED), 0.0, 0.0)
        return Play(state, self.values, self.replan, [plan.ids[i]], failures).run()

    def _below(self, k: int) -> set[int]:
        found = self.below.get(k)
        if found is None:
            found = self.below[k] = self.plan.downstream(k)
        return found

    def _as_planned(self, play: Play, k: int) -> bool:
        return play.state.node_status[play.state.plan.index[self.plan.ids[k]]] is self.base.node_status[k]

    # ------------------------------------------------------------ the verdict

    def _judge(
        self, i: int, play: Play | None, failures: int, region: Iterable[int], doomed: Iterable[int] = ()
    ) -> Case:
        """The case, from what was simulated and from the nodes that are skipped for sure."""
        ids, base = self.plan.ids, self.base.node_status
        lost = {k for k in doomed if base[k] is Status.COMPLETED}
        if play is None:
            return Case(node=ids[i], failures=failures, ends="failed", lost=self._names(self._fast(i, lost)))
        state = play.state
        sunk = sunk_nodes(state) if state.reviews else set()
        for k in region:
            now = state.plan.index[ids[k]]
            if base[k] is Status.COMPLETED and ids[k] not in play.line and (now in sunk or _is_lost(state, now)):
                lost.add(k)
        ends: Ends = "needs_review" if state.reviews else "failed" if state.failures else "completed"
        if ends == "failed":
            lost = self._fast(i, lost)
        names = self._names(lost)
        return Case(
            node=ids[i],
            failures=failures,
            ends=ends,
            steps=tuple(play.steps),
            fallbacks=tuple(s.name for s in play.steps if s.kind == "fallback" and s.result == "taken"),
            lost=names,
            cannot_start={n: play.errors[n] for n in names if n in play.errors},
            open_ifs=tuple([n for n in play.open_names() if n not in self.open_names]),
            notes=tuple(dict.fromkeys(play.notes)),
        )

    def _names(self, numbers: Iterable[int]) -> tuple[NodeId, ...]:
        return tuple([self.plan.ids[k] for k in sorted(numbers)])

    def _fast(self, i: int, lost: set[int]) -> set[int]:
        """With `fail_fast`, what has not started by then is given up too: every later wave."""
        if not self.plan.workflow.fail_fast:
            return lost
        wave = self.plan.wave
        later = {k for k, s in enumerate(self.base.node_status) if s is Status.COMPLETED and wave[k] > wave[i]}
        return lost | later


def _is_lost(state: RunState, i: int) -> bool:
    """Whether a node never ran, or could not, and nobody meant that."""
    if i in state.removed or state.skips.get(i) == "patch":
        return False
    return state.node_status[i] in (Status.SKIPPED, Status.FAILED, Status.CANCELLED)


def _fails_run(state: RunState, i: int) -> bool:
    return state.node_status[i] is Status.FAILED and not state.plan.nodes[i].continue_on_error


def _read_in_if(node: Node) -> set[NodeId]:
    """Nodes whose status the `if` of a node reads."""
    return _nodes_in(ex.parse(node.condition)) if "nodes" in node.condition else set()


def _named(text: str) -> set[NodeId]:
    return _nodes_in(ex.parse(text) if is_bare(text) else ex.parse_template(text))


def _nodes_in(parsed: ex.Expression | ex.Template) -> set[NodeId]:
    return {r.path[1] for r in ex.references(parsed) if r.path[0] == "nodes" and len(r.path) > 1}


# ---------------------------------------------------------------- templates


def _idle_templates(workflow: Workflow) -> dict[str, str]:
    """Templates that no failure can bring in, and why. A patch of a human still can, and any answer of a model."""
    if any(n.on_failure is not None and n.on_failure.replanner is not None for n in workflow.nodes.values()):
        return {}
    reached: dict[str, int] = {}  # template -> the fewest fallbacks in a row that lead to it
    todo = [(node, 1) for node in workflow.nodes.values() if node.on_failure is not None]
    for node, number in todo:  # grows as it goes: breadth first
        wanted = node.on_failure
        assert wanted is not None
        for name in sorted(_in_patch(wanted.replan_patch, workflow)):
            _reach(workflow, name, 1, reached, todo)
        if wanted.fallback in workflow.templates:
            _reach(workflow, wanted.fallback, number, reached, todo)
        elif wanted.fallback_node is not None and wanted.fallback_node.on_failure is not None:
            todo.append((wanted.fallback_node, number + 1))
    most = workflow.limits.fallback_chain
    idle: dict[str, str] = {}
    for name in workflow.templates:
        if name not in reached:
            idle[name] = "no node and no fallback names it"
        elif reached[name] > most:
            idle[name] = f"fallback number {reached[name]} in a row; limits.fallback_chain is {most}"
    return idle


def _reach(workflow: Workflow, name: str, number: int, reached: dict[str, int], todo: list[tuple[Node, int]]) -> None:
    if reached.get(name, number + 1) > number:
        reached[name] = number
        if workflow.templates[name].on_failure is not None:
            todo.append((workflow.templates[name], number + 1))


def _in_patch(document: Json, workflow: Workflow) -> set[str]:
    """Templates that a patch document names (`with: NAME`)."""
    found: set[str] = set()
    todo: list[Json] = [document]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            name = part.get("with")
            if isinstance(name, str) and name in workflow.templates:
                found.add(name)
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
    return found

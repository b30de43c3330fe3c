"""A run that nobody runs: the core plays it with attempts that end at once and placeholder outputs.

`Play` follows the engine: an effect of `decide` becomes events. What a node would meet (inputs
resolved, its `if` decided) follows the engine's rules for starting an attempt, over values that
stand for any value: what an expression says of those is not decided but *open*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias

from dagrun.core import expression as ex
from dagrun.core.agents import wish_of
from dagrun.core.decide import Append, Escalate, Finish, Room, Start, Stuck, decide
from dagrun.core.event import AttemptFinished, EscalationFailed, NodeSkipped, ReviewRequested
from dagrun.core.evolve import evolve
from dagrun.core.names import SETTLED, Json, NodeId, Outcome, Status
from dagrun.core.patch import Patch, Trigger
from dagrun.core.patchlimits import applied_often, chain_end
from dagrun.core.plan import input_sources
from dagrun.core.replan import admit, chain_length, fallback_patch
from dagrun.core.state import InvalidTransition, RunState
from dagrun.core.tree import Call, Logical, Not, functions_used
from dagrun.core.workflow import Fault, Input, Node, OnFailure, Output, Workflow

Replan: TypeAlias = Callable[[Json, Workflow], "Patch | list[Fault]"]

_ROOM = Room(1 << 30, {})
_MAX_PATCHES = 50  # in one simulated run: a patch may lead to the failure that asks for it again
_EMPTY: Mapping[str, Json] = {
    "string": "",
    "integer": 0,
    "number": 0,
    "boolean": False,
    "array": [],
    "object": {},
    "null": None,
}


class Meeting(NamedTuple):
    """What becomes of a node that is due: it runs, is skipped for a reason, or can't start.

    `open` says that its `if` depends on values that only a run knows; it was taken to hold.
    """

    skip: str = ""
    skip_text: str = ""
    error: str = ""
    open: bool = False


@dataclass(slots=True)
class Values:
    """The params of a pretended run; those that nobody gave hold a placeholder and are `unknown`."""

    params: dict[str, Json]
    unknown: frozenset[str]
    trees: dict[str, ex.Expression] = field(default_factory=dict)

    def tree(self, text: str) -> ex.Expression:
        """A parsed expression; each text is parsed once."""
        found = self.trees.get(text)
        if found is None:
            found = self.trees[text] = ex.parse(text)
        return found


def values_of(workflow: Workflow, params: Mapping[str, Json]) -> Values:
    """The params as given, by default, or as placeholders of their type."""
    found: dict[str, Json] = {}
    unknown: set[str] = set()
    for name, param in workflow.params.items():
        if name in params:
            found[name] = params[name]
        elif param.has_default:
            found[name] = param.default
        else:
            found[name] = param.enum[0] if param.enum else _EMPTY[param.type]
            unknown.add(name)
    return Values(found, frozenset(unknown))


def placeholder(schema: Json) -> Json:
    """A value of the type that a simple JSON Schema names; empty text where it names none."""
    if not isinstance(schema, dict):
        return ""
    if "const" in schema:
        return schema["const"]
    listed = schema.get("enum")
    if isinstance(listed, list) and listed:
        return listed[0]
    properties = schema.get("properties")
    if isinstance(properties, dict):
        return {name: placeholder(part) for name, part in properties.items()}
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    return _EMPTY.get(kind, "") if isinstance(kind, str) else ""


def output_schema(node: Node, name: str) -> Json:
    """What is declared of one output: its own schema, its part of `output_schema`, text for plain stdout."""
    output = node.outputs.get(name, Output())
    if output.schema is not None:
        return output.schema
    if isinstance(node.output_schema, dict):
        properties = node.output_schema.get("properties")
        if isinstance(properties, dict) and name in properties:
            return properties[name]
    return {"type": "string"} if output.source == "stdout" and not output.path else None


def meet(state: RunState, i: int, values: Values) -> Meeting:
    """What becomes of node `i`, whose needs are settled."""
    node = state.plan.nodes[i]
    if not node.inputs and not node.condition:
        return Meeting()
    if node.condition and state.broken[i] and ex.wants_success(values.tree(node.condition)):
        return Meeting(skip="dependency", skip_text="a node it needs did not succeed")
    inputs: dict[str, Json] = {}
    unknown: set[str] = set()
    held = {name: _node_values(state, name) for name in dict.fromkeys(input_sources(node))}
    scope = ex.Scope(params=values.params, nodes=held)
    for name, item in node.inputs.items():
        try:
            inputs[name], known = _input(item, scope, values)
        except ex.MissingValue as error:
            if not item.has_default and not item.optional:
                return Meeting(error=f"input `{name}` has no value: {error.message}")
            inputs[name], known = item.default if item.has_default else None, True
        if not known:
            unknown.add(name)
    return _condition(state, i, inputs, unknown, values) if node.condition else Meeting()


def _node_values(state: RunState, name: NodeId) -> dict[str, Json]:
    i = state.plan.index[name]
    node, status = state.plan.nodes[i], state.node_status[i]
    found: dict[str, Json] = {}
    if status is Status.COMPLETED:
        found = {output: placeholder(output_schema(node, output)) for output in node.outputs}
    found["status"] = status.value
    return found


def _input(item: Input, scope: ex.Scope, values: Values) -> tuple[Json, bool]:
    """The value of an input and whether it is known. Raises MissingValue."""
    if not item.expression:
        return item.value, "${{" not in repr(item.value)
    tree = values.tree(item.expression)
    known = not any(
        ref.path[2:3] != ("status",) if ref.path[0] == "nodes" else ref.path[1:2] == () or ref.path[1] in values.unknown
        for ref in ex.references(tree)
    )
    try:
        return ex.evaluate(tree, scope), known
    except ex.MissingValue:
        raise
    except ex.EvaluationError:
        return None, False  # a function that an empty placeholder does not please


def _condition(state: RunState, i: int, inputs: dict[str, Json], unknown: set[str], values: Values) -> Meeting:
    """The verdict of the node's `if`, whose implied `success() &&` holds."""
    node, plan = state.plan.nodes[i], state.plan
    tree = values.tree(node.condition)
    nodes: dict[str, dict[str, Json]] = {
        ref.path[1]: {"status": state.node_status[plan.index[ref.path[1]]].value}
        for ref in ex.references(tree)
        if ref.path[0] == "nodes" and len(ref.path) > 1
    }
    view = ex.StatusView(success=not state.broken[i], failure=bool(state.tainted[i]))
    scope = ex.Scope(params=values.params, inputs=inputs, nodes=nodes, status=view)
    try:
        holds = _truth(tree, scope, unknown, values.unknown)
    except ex.EvaluationError as error:
        return Meeting(error=error.message)
    if holds is False:
        return Meeting(skip="condition", skip_text=f"if: {node.condition}")
    return Meeting(open=holds is None)


def _truth(tree: ex.Expression, scope: ex.Scope, inputs: set[str], params: frozenset[str]) -> bool | None:
    """Whether a condition holds, None where that is open. Raises EvaluationError."""
    match tree:
        case Logical(op, operands):
            settles, is_open = op == "||", False
            for operand in operands:
                found = _truth(operand, scope, inputs, params)
                if found is settles:
                    return settles
                is_open = is_open or found is None
            return None if is_open else not settles
        case Not(operand):
            inner = _truth(operand, scope, inputs, params)
            return None if inner is None else not inner
        case Call(function="success" | "failure" | "cancelled" | "always"):
            return ex.truthy(ex.evaluate(tree, scope))
    return None if _is_open(tree, inputs, params) else ex.truthy(ex.evaluate(tree, scope))


def _is_open(tree: ex.Expression, inputs: set[str], params: frozenset[str]) -> bool:
    """Whether an expression reads something that only a run knows."""
    if "hashFiles" in functions_used(tree):
        return True
    unknown: Mapping[str, set[str] | frozenset[str]] = {"inputs": inputs, "params": params, "nodes": frozenset()}
    for ref in ex.references(tree):
        names = unknown.get(ref.path[0])
        if names is None or (len(ref.path) == 1 and names) or (len(ref.path) > 1 and ref.path[1] in names):
            return True
    return False


# ---------------------------------------------------------------- one simulated run


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an `on_failure`: `name` is the template, patch file or model, `text` why it was refused.

    `taken` was carried out, `unknown` could not be looked at (a patch file without a reader, a model).
    """

    node: NodeId
    kind: Literal["fallback", "replan", "replanner", "review"]
    name: str
    result: Literal["taken", "refused", "unknown"]
    text: str = ""


@dataclass(slots=True)
class Play:
    """A run in which the last of `line` (a node, then what stands in for it) fails `left` times; all else goes well."""

    state: RunState
    values: Values
    replan: Replan | None
    line: list[NodeId] = field(default_factory=list)
    left: int = 0
    steps: list[Step] = field(default_factory=list)
    open_ifs: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: dict[NodeId, str] = field(default_factory=dict)

    def run(self) -> Play:
        """Play to the end."""
        while True:
            for effect in decide(self.state, float("inf"), _ROOM):
                match effect:
                    case Start(i):
                        self._start(i)
                    case Append(event):
                        evolve(self.state, event, 0.0, 0.0)
                    case Escalate(i, step):
                        self._escalate(i, step)
                        break  # the plan may have changed: what else was due is decided anew
                    case Finish():
                        return self
                    case Stuck(story):
                        raise InvalidTransition(story)
                    case _:
                        pass

    def _start(self, i: int) -> None:
        node = self.state.plan.nodes[i]
        number = len(self.state.attempts[i]) + 1
        met = meet(self.state, i, self.values)
        if met.skip:
            reason: Literal["condition", "dependency"] = "condition" if met.skip == "condition" else "dependency"
            evolve(self.state, NodeSkipped(node=node.id, reason=reason, text=met.skip_text), 0.0, 0.0)
            return
        if met.open:
            self.open_ifs.append(i)
        outcome, error = Outcome.COMPLETED, ""
        if met.error:
            outcome, error = Outcome.FAILED, f"could not start: {met.error}"
            self.errors[node.id] = met.error
        elif self.left and node.id in self.line:
            outcome, error = Outcome.FAILED, "failed in rehearsal"
            self.left -= 1
        evolve(self.state, AttemptFinished(node=node.id, attempt=number, outcome=outcome, error=error), 0.0, 0.0)

    def _escalate(self, i: int, step: str) -> None:
        wanted = self.state.plan.nodes[i].on_failure
        assert wanted is not None
        match step:
            case "fallback":
                self._fall_back(i, wanted)
            case "replan":
                self._replan(i, wanted)
            case "replanner":
                assert wanted.replanner is not None
                asked = wish_of(self.state.plan.workflow, wanted.replanner)
                text = "it asks a model: what that answers, only a run can tell"
                name = self.state.plan.ids[i]
                self._no(i, Step(node=name, kind="replanner", name=asked, result="unknown", text=text))
            case _:
                name = self.state.plan.ids[i]
                self.steps.append(Step(node=name, kind="review", name="", result="taken"))
                number = len(self.state.attempts[i])
                evolve(self.state, ReviewRequested(node=name, attempt=number), 0.0, 0.0)

    def _no(self, i: int, step: Step) -> None:
        self.steps.append(step)
        evolve(self.state, EscalationFailed(node=step.node, step=step.kind, text=step.text), 0.0, 0.0)

    def _fall_back(self, i: int, wanted: OnFailure) -> None:
        state, failed = self.state, self.state.plan.nodes[i]
        template = state.plan.workflow.templates.get(wanted.fallback) if wanted.fallback else wanted.fallback_node
        step = Step(node=failed.id, kind="fallback", name=wanted.fallback or "inline", result="refused")
        most = state.plan.workflow.limits.fallback_chain
        if template is None:
            self._no(i, replace(step, text=f"there is no template `{wanted.fallback}`"))
        elif chain_length(state, i) >= most:
            self._no(i, replace(step, text=chain_end(most)))
        elif self._admit(i, step, fallback_patch(state, i, template, reason="rehearsal", timed_out=False)):
            self._compare(failed, template)

    def _replan(self, i: int, wanted: OnFailure) -> None:
        name = self.state.plan.ids[i]
        step = Step(node=name, kind="replan", name=wanted.replan, result="refused")
        if self.replan is None:
            self._no(i, replace(step, result="unknown", text="the patch file was not looked at"))
            return
        most = self.state.plan.workflow.limits.fallback_chain
        if sum(r.by == f"on_failure:{name}" and not r.asks for r in self.state.revisions) >= most:
            self._no(i, replace(step, text=applied_often(most)))
            return
        read = self.replan(wanted.replan_patch, self.state.plan.workflow)
        if isinstance(read, Patch):
            self._admit(i, step, replace(read, base=0, trigger=Trigger(type="failure", node=name)))
        else:
            self._no(i, replace(step, text=_faults_text(read)))

    def _admit(self, i: int, step: Step, patch: Patch) -> bool:
        """Apply a declared patch; whether it changes anything for the failed node."""
        if len(self.state.revisions) >= _MAX_PATCHES:
            self._no(i, replace(step, text=f"after {_MAX_PATCHES} patches the node still fails"))
            return False
        verdict = admit(self.state, patch, by=f"on_failure:{step.node}", actor="declared")
        event = verdict.event
        if event is None:
            self._no(i, replace(step, text=_faults_text(verdict.faults)))
            return False
        self.line += [new for old, new in event.superseded.items() if old in self.line]
        evolve(self.state, event, 0.0, 0.0)
        if any(step.node in names for names in (event.reset, event.superseded, event.removed, event.skipped)):
            self.steps.append(replace(step, result="taken"))
            return True
        self._no(i, replace(step, text="the patch leaves this node as it is"))
        return False

    def _compare(self, failed: Node, template: Node) -> None:
        """Note outputs that the stand-in declares with another type."""
        for name in failed.outputs.keys() & template.outputs.keys():
            was, now = _type(output_schema(failed, name)), _type(output_schema(template, name))
            if was and now and was != now:
                who = f"fallback `{template.id}`" if template.id else "the inline fallback"
                self.notes.append(f"output `{name}` of {who} is {now}, that of `{failed.id}` is {was}")

    def node(self, name: NodeId) -> Node:
        """A node of the plan as it is now."""
        return self.state.plan.nodes[self.state.plan.index[name]]

    def open_names(self) -> list[NodeId]:
        """Nodes that ran although whether their `if` holds is open, in order."""
        return [self.state.plan.ids[i] for i in self.open_ifs]

    @property
    def tip(self) -> int:
        """The node that stands at the end of the line."""
        return self.state.plan.index[self.line[-1]]


def _type(schema: Json) -> str:
    kind = schema.get("type") if isinstance(schema, dict) else None
    return kind if isinstance(kind, str) else ""


def _faults_text(faults: Iterable[Fault]) -> str:
    return "; ".join(f.message + (f" ({f.hint})" if f.hint else "") for f in faults)


def sunk_nodes(state: RunState) -> set[int]:
    """Nodes that wait for what a human decides elsewhere, and will be skipped whatever that is."""
    sunk: set[int] = set()
    for i in sorted(range(len(state.plan.ids)), key=state.plan.wave.__getitem__):
        condition = state.plan.nodes[i].condition
        if state.node_status[i] in SETTLED or (condition and not ex.wants_success(ex.parse(condition))):
            continue
        if state.broken[i] or not sunk.isdisjoint(state.plan.needs[i]):
            sunk.add(i)
    return sunk

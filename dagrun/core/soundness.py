"""Whether the graph that a patch leaves still holds together: references, contracts, orphans, cycles.

Looks only at what the patch can have broken; the rest was sound before. Knows no run.
"""

from __future__ import annotations

from collections.abc import Iterable

from dagrun.core import expression as ex
from dagrun.core.check import check_node
from dagrun.core.names import NodeId
from dagrun.core.patch import Draft, Rewire
from dagrun.core.plan import CycleFound, Plan, all_needs, is_bare, near, revise_plan
from dagrun.core.reading import node_references, reads
from dagrun.core.workflow import Fault, Node, Workflow


def check_draft(workflow: Workflow, work: Draft) -> None:
    """Add the faults of the nodes that a draft changed, of their dependents and of the outputs.

    `workflow` is the one that the draft makes. What is wrong with an operation already is not said
    a second time in other words.
    """
    named = {f.path[1] for f in work.faults if len(f.path) > 1}
    names = set(work.changed)
    for name in [*work.removed, *work.changed]:
        names.update(work.dependents(name))
    names |= _readers_of(work, work.removed)
    for name in sorted(names & work.nodes.keys()):
        found: list[Fault] = []
        check_node(workflow, work.nodes[name], found)
        at = _blame(work, name)
        for fault in found:
            if at not in named and fault.severity == "error":
                inside = fault.path[2:] if work.touched.get(name) == at else ()
                path = ("operations", at, "node", *inside) if inside else ("operations", at)
                work.faults.append(Fault(path, fault.code, fault.message, fault.hint, on_key=fault.on_key))
    used = _named_in_outputs(workflow)
    _check_outputs(workflow, work, used)
    if not work.faults:
        _check_orphans(work, used.keys())
    _check_ceilings(workflow, work)


def _check_ceilings(workflow: Workflow, work: Draft) -> None:
    """No node may reserve more than a lowered limit leaves: it could never start."""
    resources = workflow.limits.resources
    if work.limits_at < 0 or not resources:
        return
    for name, node in work.nodes.items():
        if not node.resources or name in work.changed or name in work.frozen:
            continue
        for kind, amount in node.resources.items():
            if kind in resources and amount > resources[kind]:
                message = f"`{name}` reserves {amount:g} of `{kind}`, but the limit would be {resources[kind]:g}"
                work.fault(work.limits_at, "", "over-limit", message, "it could never start: lower its reservation too")


def _readers_of(work: Draft, removed: Iterable[NodeId]) -> set[NodeId]:
    """Nodes whose `if` reads the status of a removed node, however far above them it was."""
    gone = set(removed)
    if not gone:
        return set()
    texts = [(name, node.condition) for name, node in work.nodes.items() if node.condition]
    likely = [(name, text) for name, text in texts if any(g in text for g in gone)]
    return {name for name, text in likely if any(r.path[1] in gone for r in node_references(text))}


def _blame(work: Draft, name: NodeId) -> int:
    """The operation that a fault of node `name` comes from."""
    at = work.touched.get(name)
    if at is None:  # a bystander: it reads something that was touched
        above = [*all_needs(work.nodes[name]), *(r.path[1] for r in node_references(work.nodes[name].condition))]
        at = next((work.touched[n] for n in above if n in work.touched), None)
    return at if at is not None else next(iter(work.touched.values()), 0)


def _check_orphans(work: Draft, used: Iterable[NodeId]) -> None:
    stand_ins = set(work.superseded.values())  # the fallback of a lone node is as lone as it was
    for name in work.new:
        if name in work.revived:
            continue  # it has the place that it had
        alone = not all_needs(work.nodes[name]) and not work.dependents(name)
        if alone and name not in used and name not in stand_ins:
            message = f"`{name}` would neither feed nor follow anything"
            work.fault(work.touched[name], "", "orphan", message, "give it a place: after: [...] or before: [...]")


def _named_in_outputs(workflow: Workflow) -> dict[NodeId, list[str]]:
    """Node id → outputs of it that the outputs of the workflow read."""
    names: dict[NodeId, list[str]] = {}
    for text in workflow.outputs.values():
        if "nodes" not in text:
            continue
        parsed = ex.parse(text) if is_bare(text) else ex.parse_template(text)
        for ref in ex.references(parsed):
            if ref.path[0] == "nodes" and len(ref.path) > 2:
                names.setdefault(ref.path[1], []).append(ref.path[2])
    return names


def _check_outputs(workflow: Workflow, work: Draft, used: dict[NodeId, list[str]]) -> None:
    """The outputs of the workflow itself still have a producer that gives them."""
    for name, outputs in used.items():
        if name not in workflow.nodes:
            message = f"an output of the workflow reads `{name}`"
            work.fault(work.touched.get(name, 0), "", "orphan", message, near(name, workflow.nodes))
        elif name in work.changed or name in work.superseded:
            giver = workflow.nodes.get(work.superseded.get(name, name))
            missing = [o for o in outputs if o != "status" and (giver is None or o not in giver.outputs)]
            if missing:
                message = f"an output of the workflow reads `nodes.{name}.{missing[0]}`, which would be gone"
                work.fault(work.touched[name], "", "contract", message, f"keep it: outputs: {{{missing[0]}: …}}")


# ---------------------------------------------------------------- the graph as a whole


def revised(before: Plan, workflow: Workflow, work: Draft) -> Plan | None:
    """The plan of the next revision, or None and the fault: a cycle, with its path."""
    try:
        return revise_plan(before, workflow, before.revision + 1)
    except CycleFound as error:
        at = next((work.touched[n] for n in error.path if n in work.touched), 0)
        message = "the nodes would wait for each other: " + " -> ".join(error.path)
        work.fault(at, "", "cycle", message, "remove one of these needs")
    except ValueError:
        pass  # an unknown reference: `check_draft` names it
    return None


def check_status_reads(before: Plan, plan: Plan, work: Draft) -> None:
    """`if` may read the status only of what is settled by then: of ancestors.

    Only nodes that are new, have another `if`, or follow from one that lost an ancestor are looked at.
    """
    loose = [
        plan.index[n] for n, node in work.changed.items() if n in work.before and _loosened(before, plan, work, node)
    ]
    affected = {plan.ids[i] for i in {*loose, *plan.below(loose)}}
    for name, node in work.changed.items():
        old = work.before.get(name)
        if old is None or old.condition != node.condition:
            affected.add(name)
    for name in sorted(affected - work.frozen):
        i = plan.index[name]
        if "nodes" not in plan.nodes[i].condition:
            continue
        for ref in node_references(plan.nodes[i].condition):
            read = plan.index.get(ref.path[1])
            if read is not None and not _is_above(plan, read, i):
                message = f"`{ref.path[1]}` may not be settled when the `if` of `{name}` is decided"
                hint = f"let `{name}` need it, or change its `if` in the same patch"
                work.fault(_blame(work, name), "", "not-upstream", message, hint)


def _loosened(before: Plan, plan: Plan, work: Draft, node: Node) -> bool:
    """Whether a changed node lost an ancestor that is still there."""
    i = plan.index[node.id]
    todo = list(set(before.needs[before.index[node.id]]) - set(plan.needs[i]))
    seen = set(todo)
    while todo:
        need = todo.pop()
        name = before.ids[need]
        if name in work.removed or name in work.superseded:  # what it waited for counts instead
            todo += [n for n in before.needs[need] if n not in seen]
            seen.update(before.needs[need])
        elif not _is_above(plan, need, i):
            return True
    return False


def _is_above(plan: Plan, ancestor: int, node: int) -> bool:
    """Whether one node is an ancestor of another; looks only at the waves between them."""
    lowest = plan.wave[ancestor]
    todo, seen = [node], {node}
    while todo:
        for need in plan.needs[todo.pop()]:
            if need == ancestor:
                return True
            if need not in seen and plan.wave[need] > lowest:
                seen.add(need)
                todo.append(need)
    return False


def check_rewired(work: Draft, at: int, operation: Rewire) -> None:
    """A rewire that leaves an input reading what was to be left is no rewire."""
    node = work.nodes.get(operation.id)
    if node is None:
        return
    for name in operation.old:
        if name not in operation.new and name not in node.needs and name in all_needs(node):
            reading = next(key for key, item in node.inputs.items() if reads(item, name))
            message = f"`{node.id}` would still wait for `{name}`: its input `{reading}` reads it"
            work.fault(at, "old", "still-reads", message, f"change that input too: modify {node.id}")

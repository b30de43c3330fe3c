"""What is wrong with the references, expressions and graph of a workflow: all of it at once.

Shapes and types were checked before, where the file was read; here is what only the whole can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from dagrun.core.agentcheck import agent_faults, workflow_faults
from dagrun.core.ceiling import fallback_faults, is_plain, permission_faults, unknown_secret
from dagrun.core.names import Json, NodeId
from dagrun.core.plan import all_needs, compile_plan, is_bare, near
from dagrun.core.workflow import Fault, Node, OnFailure, Param, Workflow, param_accepts


class _Place(NamedTuple):
    """What an expression at some place of the file may read."""

    contexts: frozenset[str]
    status_functions: bool = False
    secrets: bool = False
    declared: bool = False  # of variables only those that the node declares


_TEXT = _Place(frozenset({"params", "inputs", "env", "run"}))
_PROMPT = _Place(frozenset({"params", "inputs", "env", "run"}), declared=True)
_VARIABLE = _Place(frozenset({"params", "inputs", "env", "run"}), secrets=True)
_VALUE = _Place(frozenset({"params", "env", "run"}))
_BARE_INPUT = _Place(frozenset({"params", "nodes"}))
_IF = _Place(frozenset({"params", "inputs", "env", "run", "nodes"}), status_functions=True, secrets=True)
_REPAIR = _Place(frozenset({"params", "run"}))
_RESULT = _Place(frozenset({"params", "run", "nodes"}))
_STATUS_FUNCTIONS = frozenset({"success", "failure", "always", "cancelled"})
_CEILINGS = ("cpu", "memory", "pids", "file_size", "output")
_RUN_NAMES = ("id", "workflow", "dir")


def check(workflow: Workflow) -> list[Fault]:
    """Everything that is wrong with the references, expressions and graph of a workflow, at once.

    Shapes and types were checked before. Linear in the size of the workflow when it is right.
    """
    faults: list[Fault] = []
    for name, param in workflow.params.items():
        faults.extend(_check_param(name, param))
    for node in workflow.nodes.values():
        check_node(workflow, node, faults)
    for node in workflow.templates.values():
        check_template(workflow, node, faults)
    faults.extend(workflow_faults(workflow))
    for name, text in workflow.outputs.items():
        _check_text(workflow, None, text, ("outputs", name), _RESULT, faults, bare=is_bare(text))
    faults.extend(_check_cycles(workflow))
    if not any(f.severity == "error" for f in faults):
        faults.extend(_check_status_reads(workflow))
    return faults


def check_node(workflow: Workflow, node: Node, faults: list[Fault]) -> None:
    """Add what is wrong with the references, expressions and permissions of one node; cycles aside."""
    _check_needs(workflow, node, faults)
    if not is_plain(workflow, node):
        faults.extend(permission_faults(workflow, node))
    if node.inputs or node.env or node.condition or node.cwd or node.secrets or node.resources:
        _check_node(workflow, node, faults)
    if node.run:
        _check_run(workflow, node, faults)
    if node.agent is not None:
        _check_text(workflow, node, node.agent.prompt, ("nodes", node.id, "agent", "prompt"), _PROMPT, faults)
    if node.agent is not None or (node.on_failure is not None and node.on_failure.replanner is not None):
        faults.extend(agent_faults(workflow, node, ("nodes", node.id)))
    if node.review is not None:
        path = ("nodes", node.id, "review", "message")
        _check_text(workflow, node, node.review.message, path, _TEXT, faults)
    if node.on_failure is not None:
        _check_on_failure(workflow, node, node.on_failure, faults)


def check_template(workflow: Workflow, node: Node, faults: list[Fault]) -> None:
    """Add what is wrong with a template; as it stands for a node, its faults lie below `templates`."""
    found: list[Fault] = []
    check_node(workflow, node, found)
    faults.extend(f._replace(path=("templates", *f.path[1:])) for f in found)


def _check_on_failure(workflow: Workflow, node: Node, wanted: OnFailure, faults: list[Fault]) -> None:
    if wanted.replanner is not None:
        path = ("nodes", node.id, "on_failure", "replanner", "prompt")
        _check_text(workflow, node, wanted.replanner.prompt, path, _REPAIR, faults)
    if wanted.fallback and wanted.fallback not in workflow.templates:
        message = f"there is no template `{wanted.fallback}`"
        hint = near(wanted.fallback, workflow.templates)
        hint = hint or f"declare it at the top: templates: {{{wanted.fallback}: …}}"
        faults.append(Fault(("nodes", node.id, "on_failure", "fallback"), "unknown-template", message, hint))
        return
    faults.extend(fallback_faults(workflow, node))
    stand_in = workflow.templates[wanted.fallback] if wanted.fallback else wanted.fallback_node
    if stand_in is None or not (stand_in.outputs or stand_in.output_schema is not None):
        return
    used = _outputs_used(workflow, node.id)
    for name in sorted(used - stand_in.outputs.keys()):
        message = f"the fallback of `{node.id}` does not give its output `{name}`, which others read"
        hint = f"declare it there: outputs: {{{name}: …}}"
        faults.append(Fault(("nodes", node.id, "on_failure", "fallback"), "contract", message, hint))


def _outputs_used(workflow: Workflow, name: NodeId) -> set[str]:
    """The outputs of a node that inputs of other nodes read, or the outputs of the workflow."""
    from dagrun.core import expression as ex

    used: set[str] = set()
    for text in workflow.outputs.values():
        if "nodes" not in text:
            continue
        try:
            parsed = ex.parse(text) if is_bare(text) else ex.parse_template(text)
        except ex.ExpressionError:
            continue  # is reported where it stands
        used |= {r.path[2] for r in ex.references(parsed) if r.path[:2] == ("nodes", name) and len(r.path) > 2}
    for node in workflow.nodes.values():
        for item in node.inputs.values():
            if item.expression.startswith("nodes"):
                try:
                    refs = ex.references(ex.parse(item.expression))
                except ex.ExpressionError:
                    continue
                used |= {r.path[2] for r in refs if r.path[:2] == ("nodes", name) and len(r.path) > 2}
    return used - {"status"}


def _check_param(name: str, param: Param) -> Iterator[Fault]:
    if param.has_default and not param_accepts(param, param.default):
        yield Fault(
            ("params", name, "default"),
            "bad-param",
            f"the default of param `{name}` is no {param.type}" + (" of its enum" if param.enum else ""),
        )


def _check_needs(workflow: Workflow, node: Node, faults: list[Fault]) -> None:
    for k, need in enumerate(node.needs):
        if need == node.id:
            message = f"node `{node.id}` needs itself"
            faults.append(Fault(("nodes", node.id, "needs", k), "self-need", message, "remove it"))
        elif need not in workflow.nodes:
            message = f"node `{node.id}` needs `{need}`, which does not exist"
            faults.append(Fault(("nodes", node.id, "needs", k), "unknown-node", message, near(need, workflow.nodes)))


def _check_node(workflow: Workflow, node: Node, faults: list[Fault]) -> None:
    at = ("nodes", node.id)
    for name, item in node.inputs.items():
        path = (*at, "inputs", name)
        if item.expression:
            _check_text(workflow, node, item.expression, path, _BARE_INPUT, faults, bare=True)
        else:
            _check_value(workflow, node, item.value, path, faults)
    for name, text in node.env.items():
        _check_text(workflow, node, text, (*at, "env", name), _VARIABLE, faults)
    if node.cwd:
        _check_text(workflow, node, node.cwd, (*at, "cwd"), _TEXT, faults)
    if node.condition:
        _check_text(workflow, node, node.condition, (*at, "if"), _IF, faults, bare=True)
    for k, name in enumerate(node.secrets):
        if name not in workflow.secrets:
            # the place in the list is known only where no file stands between them
            place = (*at, "secrets") if node.secret_files else (*at, "secrets", k)
            faults.append(unknown_secret(workflow, node, name, place))
    _check_resources(workflow, node, faults)


def _check_resources(workflow: Workflow, node: Node, faults: list[Fault]) -> None:
    for name, amount in node.resources.items():
        limit = workflow.limits.resources.get(name)
        path = ("nodes", node.id, "resources", name)
        if limit is None and name not in ("cpu", "memory"):
            message = f"node `{node.id}` reserves `{name}`, but the workflow does not say how much there is"
            meant = near(name, _CEILINGS) if name[1:] != "pu" else ""  # a gpu is no cpu
            hint = meant or f"add limits: {{resources: {{{name}: {amount:g}}}}}"
            faults.append(Fault(path, "unknown-resource", message, hint))
        elif limit is not None and amount > limit:
            message = f"node `{node.id}` reserves {amount:g} of `{name}`, but limits.resources has only {limit:g}"
            faults.append(Fault(path, "over-limit", message, "it could never start: reserve less or raise the limit"))


def _check_run(workflow: Workflow, node: Node, faults: list[Fault]) -> None:
    path = ("nodes", node.id, "run")
    if isinstance(node.run, str):
        if "${{" in node.run:
            faults.append(_shell_fault(node, path))
        return
    for k, word in enumerate(node.run):
        if "${{" in word:
            _check_text(workflow, node, word, (*path, k), _TEXT, faults)


def _shell_fault(node: Node, path: tuple[str, ...]) -> Fault:
    """The refusal of an expression inside a shell string, with the rewrite by `env:`."""
    text = str(node.run)
    start = text.index("${{")
    end = text.find("}}", start)
    inside = text[start + 3 : end if end > 0 else None].strip()
    variable = "".join(c if c.isalnum() else "_" for c in inside.rpartition(".")[2]).strip("_").upper() or "VALUE"
    if inside.startswith("secrets."):
        way = f'name it at the node: secrets: [{variable}] and write "${variable}" in the command'
    else:
        way = (
            f'pass it by the environment: env: {{{variable}: "${{{{ {inside} }}}}"}}'
            f' and write "${variable}" in the command'
        )
    return Fault(
        path,
        "expression-in-shell",
        "an expression inside a shell string could run as code (script injection)",
        way,
        offset=start,
        length=(end + 2 - start) if end > 0 else 3,
    )


def _check_value(workflow: Workflow, node: Node, value: Json, path: tuple[str | int, ...], faults: list[Fault]) -> None:
    if isinstance(value, str):
        _check_text(workflow, node, value, path, _VALUE, faults)
    elif isinstance(value, list):
        for k, item in enumerate(value):
            _check_value(workflow, node, item, (*path, k), faults)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_value(workflow, node, item, (*path, key), faults)


def _check_text(
    workflow: Workflow,
    node: Node | None,
    text: str,
    path: tuple[str | int, ...],
    place: _Place,
    faults: list[Fault],
    *,
    bare: bool = False,
) -> None:
    """Faults of one bare expression or of the `${{ … }}` parts of one text."""
    if not bare and "${{" not in text:
        return
    from dagrun.core import expression as ex  # 7 ms to import, for files that have expressions

    try:
        parsed = ex.parse(text) if bare else ex.parse_template(text)
    except ex.ExpressionError as error:
        faults.append(
            Fault(path, "bad-expression", error.message, error.hint, offset=error.offset, length=max(1, error.length))
        )
        return
    used = ex.functions_used(parsed) & _STATUS_FUNCTIONS
    if used and not place.status_functions:
        message = f"{sorted(used)[0]}() has a meaning only in `if`"
        faults.append(Fault(path, "status-function", message))
    for ref in ex.references(parsed):
        found = _reference_fault(workflow, node, ref.path, place)
        if found:
            message, hint = found
            faults.append(Fault(path, "unknown-name", message, hint, offset=ref.offset, length=ref.length))


def _reference_fault(
    workflow: Workflow, node: Node | None, path: tuple[str, ...], place: _Place
) -> tuple[str, str] | None:
    """(message, hint) when a reference can't be resolved at its place, else None."""
    root = path[0]
    dotted = ".".join(path)
    if root not in place.contexts:
        if root == "nodes" and node is not None:
            hint = f"declare it: inputs: {{{path[-1]}: {dotted}}} and read inputs.{path[-1]}"
            return f"`{dotted}` can't be read here: a node reads other nodes only through its inputs", hint
        known = ", ".join(sorted(place.contexts))
        if place is _REPAIR:
            known += "; what failed, and why, dagrun adds by itself"
        return f"`{root}` can't be read here", f"here you can read {known}"
    if len(path) == 1:
        if root == "nodes":
            return "`nodes` can't be read without the id of a node as it is written", "write nodes.ID.status"
        return None
    name = path[1]
    if root == "params" and name not in workflow.params:
        return f"there is no param `{name}`", near(name, workflow.params) or "declare it under params:"
    if root == "inputs" and node is not None and name not in node.inputs:
        return f"node `{node.id}` has no input `{name}`", near(name, node.inputs) or "declare it under inputs:"
    if root == "run" and name not in _RUN_NAMES:
        return f"there is no run.{name}", "there are " + ", ".join(f"run.{n}" for n in _RUN_NAMES)
    if root == "env" and node is not None and name in node.secrets and not place.secrets:
        # arguments, folders and questions are seen by others
        return f"`{name}` is a secret: only `env` and `if` may read it", f'the command has it as a variable: "${name}"'
    if root == "env" and node is not None and place.declared and name not in node.env:
        hint = near(name, node.env) or f'declare it: env: {{{name}: …}}'
        return f"`{dotted}` can't be read here: a prompt reads only variables that its node declares", hint
    if root == "nodes":
        return _node_reference_fault(workflow, node, path, place)
    return None


def _node_reference_fault(
    workflow: Workflow, node: Node | None, path: tuple[str, ...], place: _Place
) -> tuple[str, str] | None:
    name = path[1]
    if name not in workflow.nodes:
        return f"there is no node `{name}`", near(name, workflow.nodes)
    if node is not None and name == node.id:
        return f"node `{name}` can't read itself", ""
    if len(path) < 3:
        return f"`nodes.{name}` is no value", f"name an output: nodes.{name}.OUTPUT, or nodes.{name}.status"
    if path[2] == "status":
        return None
    if place is _IF:
        return f"`if` reads only the status of a node, not `{'.'.join(path)}`", "declare it under inputs: and read that"
    outputs = workflow.nodes[name].outputs
    if path[2] not in outputs:
        source = "schema: {type: string}" if workflow.nodes[name].agent is not None else "from: stdout"
        hint = near(path[2], outputs) or f"declare it there: outputs: {{{path[2]}: {{{source}}}}}"
        return f"node `{name}` has no output `{path[2]}`", hint
    return None


def _check_cycles(workflow: Workflow) -> Iterator[Fault]:
    """One fault for each of up to 20 separate cycles, with its path."""
    # an edge from itself or from nowhere was reported as that
    known = workflow.nodes
    graph = {i: dict.fromkeys([n for n in all_needs(node) if n != i and n in known]) for i, node in known.items()}
    for _ in range(20):
        sorter = TopologicalSorter({i: list(needs) for i, needs in graph.items()})
        try:
            sorter.prepare()
        except CycleError as error:
            cycle: list[NodeId] = error.args[1]
            # graphlib lists a cycle along the edges "is needed by": each needs the one before it
            before, after = cycle[-2], cycle[-1]
            yield _cycle_fault(workflow.nodes[after], before, cycle)
            del graph[after][before]
        else:
            return


def _cycle_fault(node: Node, need: NodeId, cycle: list[NodeId]) -> Fault:
    message = "the nodes wait for each other: " + " -> ".join(cycle)
    hint = "remove one of these needs or inputs"
    if need in node.needs:
        return Fault(("nodes", node.id, "needs", node.needs.index(need)), "cycle", message, hint)
    for name, item in node.inputs.items():
        if item.expression.startswith(f"nodes.{need}."):
            return Fault(("nodes", node.id, "inputs", name), "cycle", message, hint)
    return Fault(("nodes", node.id), "cycle", message, hint, on_key=True)


def _check_status_reads(workflow: Workflow) -> Iterator[Fault]:
    """`if` may read the status only of nodes that are settled by then: of ancestors."""
    from dagrun.core import expression as ex  # 7 ms to import, for files that have expressions

    readers = [n for n in workflow.nodes.values() if "nodes" in n.condition]
    if not readers:
        return
    plan = compile_plan(workflow)
    for node in readers:
        above = plan.upstream(plan.index[node.id])
        for ref in ex.references(ex.parse(node.condition)):
            if ref.path[0] == "nodes" and len(ref.path) > 1 and plan.index[ref.path[1]] not in above:
                yield Fault(
                    ("nodes", node.id, "if"),
                    "not-upstream",
                    f"`{ref.path[1]}` may not be settled when `{node.id}` is decided",
                    f"add it: needs: [{', '.join([*node.needs, ref.path[1]])}]",
                    offset=ref.offset,
                    length=ref.length,
                )

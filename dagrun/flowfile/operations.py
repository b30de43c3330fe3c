"""One operation of a patch at a time: its written form to the core's types.

Each operation is judged alone, so that what is wrong with one hides nothing of the others. Imports
pydantic; only used by `patchfile.py` and `pieces.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from pydantic import BaseModel, ValidationError

from dagrun.core import operation as op
from dagrun.core.names import Json, NodeId
from dagrun.core.patch import apply
from dagrun.core.plan import near
from dagrun.core.workflow import Fault, Node, Workflow
from dagrun.flowfile import explain, fields, ids, retrychange, words
from dagrun.flowfile.convert import Converter, Defaults
from dagrun.flowfile.document import named_patches, node_to_document
from dagrun.flowfile.documents import Documents, KnownDocuments, NoDocuments
from dagrun.flowfile.merge import canonical, merged, tree_of, without
from dagrun.flowfile.patchschema import (
    OPERATIONS,
    AlternativeFile,
    EditFile,
    FallbackFile,
    InsertFile,
    ModifyFile,
    PatchHead,
    RemoveFile,
    RerunFile,
    RewireFile,
    SetLimitsFile,
)
from dagrun.flowfile.schema import NodeFile
from dagrun.flowfile.source import Value

Path = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

_STRATEGIES = (
    "`skip`: it settles without output; `bridge`: what waited for it waits for what it waited for;"
    " `cascade`: what can't live without it goes too"
)


def head(value: Value, workflow: Workflow, faults: list[Fault]) -> tuple[op.Patch, list[Value]]:
    """The patch without its operations, and those as they were written."""
    made = op.Patch(operations=())
    if not isinstance(value, dict):
        message = f"a patch is a mapping with `operations`, not {fields.describe(value)}"
        faults.append(Fault((), "bad-shape", message, "it begins like this: operations: [{remove: {id: …}}]"))
        return made, []
    try:
        read = PatchHead.model_validate(value)
    except ValidationError as error:
        faults += explain.faults(error, value, "patch")
    else:
        wanted = read.workflow
        if wanted and wanted != workflow.name:
            message = f"this patch is for the workflow `{wanted}`, not for `{workflow.name}`"
            hint = f"write workflow: {workflow.name} if it fits"
            faults.append(Fault(("workflow",), "wrong-workflow", message, hint))
        trigger = op.Trigger()
        if "trigger" in read.model_fields_set:
            trigger = op.Trigger(type=read.trigger.type, node=read.trigger.node, reason=read.trigger.reason)
        made = replace(made, base=read.base, workflow=wanted, trigger=trigger)
    items = value.get("operations")
    if items is None:
        return made, []
    if not isinstance(items, list) or not items:
        message = (
            f"`operations` is a list of what to do, not {fields.describe(items)}"
            if items != []
            else "the patch does nothing"
        )
        hint = (
            "write - before each: - remove: {id: …}"
            if isinstance(items, dict)
            else "add an operation: - rerun: {id: …}"
        )
        faults.append(Fault(("operations",), "no-operations", message, hint))
        return made, []
    return made, items


@dataclass(frozen=True, slots=True)
class EditWorkflow:
    """A change of other top-level keys of a workflow file: `set` is merged in, `unset` drops dotted keys.

    `set` is source text: what it says is typed when it meets the keys.
    """

    set: Mapping[str, Value]
    unset: tuple[str, ...] = ()


class Builder:
    """Turns written operations into the core's, one after the other; `faults` are of the last one.

    `written` is the last operation as JSON that can be read again. Paths of faults begin at the
    operation.
    """

    def __init__(
        self, workflow: Workflow, documents: Documents | NoDocuments, defaults: Defaults | None = None
    ) -> None:
        self.workflow = workflow
        self.documents = documents
        self.faults: list[Fault] = []
        self.written: Json = None
        self._plain = Defaults.of_run(workflow)
        self._defaults = defaults or self._plain
        self._draft: op.Draft | None = None
        self._done: list[op.Operation] = []
        self._unsure: set[str] = set()  # ids that an operation would bring, were it right

    def operation(self, value: Value) -> op.Operation | EditWorkflow | None:
        """The operation, or None with `faults`."""
        kind = self._kind(value)
        if not kind:
            return None
        body = cast("dict[str, Value]", value)[kind]
        model = self._model(OPERATIONS[kind], kind, body)
        found = self._convert(kind, model, body) if model is not None else None
        if any(f.severity == "error" for f in [*self.faults, *self.documents.faults]):
            if kind in ("insert", "alternative") and isinstance(body, dict):
                nodes = body.get("nodes")
                self._unsure |= set(nodes) if isinstance(nodes, dict) else {str(body.get("id"))}
            return None
        if found is not None and not isinstance(found, EditWorkflow):
            self._done.append(found)
        return found

    def _kind(self, value: Value) -> str:
        names = ", ".join(OPERATIONS)
        if not isinstance(value, dict):
            message = f"an operation is a mapping with one key, not {fields.describe(value)}"
            self.faults.append(Fault((), "bad-shape", message, f"it is one of {names}"))
            return ""
        known = [k for k in value if k in OPERATIONS]
        for key in value:
            if key not in OPERATIONS:
                hint = words.meant(key, OPERATIONS) or f"there are {names}"
                if key == "running" and len(known) == 1:
                    hint = f"write it inside: {known[0]}: {{…, running: cancel}}"
                self.faults.append(Fault((key,), "unknown-operation", f"there is no operation `{key}`", hint, True))
        if len(known) > 1:
            message = f"this is more than one operation: {', '.join(known)}"
            self.faults.append(Fault((known[1],), "two-operations", message, "begin each with `- `", True))
        elif not value:
            self.faults.append(Fault((), "bad-shape", "this operation is empty", f"it is one of {names}"))
        return known[0] if len(known) == 1 and len(value) == 1 else ""

    def _model(self, model: type[M], kind: str, body: Value) -> M | None:
        """The checked form of an operation's body; what is wrong in its nodes is found with it."""
        found: list[Fault] = []
        made: M | None = None
        try:
            made = model.model_validate(body)
        except ValidationError as error:
            name = {"workflow": "edit"}.get(kind, kind)
            found += [_explained(f, kind) for f in explain.faults(error, body, name)]
        for path, node in _nodes(kind, body):
            found += ids.check_node(node, path)
        found += _names(kind, body)
        self.faults += [f._replace(path=(kind, *f.path)) for f in found]
        return made if not any(f.severity == "error" for f in found) else None

    def _convert(self, kind: str, made: BaseModel, body: Value) -> op.Operation | EditWorkflow | None:
        cancel = getattr(made, "running", None) == "cancel"
        running: dict[str, Json] = {"running": "cancel"} if cancel else {}
        match made:
            case InsertFile():
                node = self._node((kind, "node"), made.id, made.node)
                after, before = tuple(made.after), tuple(made.before)
                self._write(kind, id=made.id, node=node_to_document(node), after=after, before=before, **running)
                return op.Insert(id=made.id, node=node, after=after, before=before, cancel_running=cancel)
            case RemoveFile():
                renames: dict[str, str] = made.input_map or {}
                dependents = made.dependents if "dependents" in made.model_fields_set else ""
                self._write(
                    kind, id=made.id, strategy=made.strategy, dependents=dependents, input_map=renames, **running
                )
                return op.Remove(
                    id=made.id,
                    strategy=made.strategy,
                    dependents=dependents,
                    input_map=renames,
                    cancel_running=cancel,
                )
            case RewireFile():
                old, new = tuple(made.old), tuple(made.new)
                self._write(kind, id=made.id, old=old, new=new, root=made.root, **running)
                return op.Rewire(id=made.id, old=old, new=new, root=made.root, cancel_running=cancel)
            case ModifyFile():
                return self._change(kind, made, cancel, running)
            case FallbackFile():
                return self._fallback(made, cancel, running)
            case AlternativeFile():
                nodes = {i: self._node((kind, "nodes", i), i, n) for i, n in made.nodes.items()}
                documents: Json = {i: node_to_document(n) for i, n in nodes.items()}
                blocked, exits = tuple(made.blocked), tuple(made.exits)
                self._write(kind, blocked=blocked, nodes=documents, exits=exits, **running)
                return op.Alternative(blocked=blocked, nodes=nodes, exits=exits, cancel_running=cancel)
            case RerunFile():
                self._write(kind, id=made.id, **running)
                return op.Rerun(id=made.id, cancel_running=cancel)
            case SetLimitsFile():
                return self._limits(made, body)
            case EditFile():
                return self._edit(made)
        raise AssertionError(kind)

    def _write(self, kind: str, **body: object) -> None:
        """Keep the operation as JSON, without what says nothing."""
        kept = {
            k: list(v) if isinstance(v, tuple) else v for k, v in body.items() if v not in ((), "", {}, False, None)
        }
        self.written = cast(Json, {kind: kept})

    def _node(self, path: Path, name: NodeId, made: NodeFile) -> Node:
        converter = Converter(self.documents)
        node = converter.node(path, name, made, self._defaults)
        self.faults += converter.faults
        return node

    def _present(self, name: NodeId) -> Node | None:
        """A node as the operations before left it."""
        if self._draft is None:
            self._draft = op.draft(self.workflow)
        if self._done:
            apply(self._draft, op.Patch(operations=tuple(self._done)))
            self._done = []
        return self._draft.nodes.get(name)

    def _change(self, kind: str, made: ModifyFile, cancel: bool, running: Mapping[str, Json]) -> op.Operation | None:
        changes = cast("dict[str, Value]", made.set or {})
        unset = tuple(made.unset or ())
        present = self._present(made.id)
        if kind == "retry" and (found := retrychange.faults(changes, unset, present)):
            self.faults += found
            return None
        if kind == "retry" and not changes and not unset:
            self._write(kind, id=made.id, **running)
            return op.Retry(id=made.id, cancel_running=cancel)
        if not changes and not unset:
            hint = "add set: {KEY: value} or unset: [KEY]"
            self.faults.append(Fault((kind,), "no-change", f"`{kind}` does not say what to change", hint, True))
            return None
        if present is None:
            if made.id in self._unsure or self._draft is None:
                return None
            hint = near(made.id, self._draft.nodes)
            self.faults.append(Fault((kind, "id"), "unknown-node", f"there is no node `{made.id}`", hint))
            return None
        wanted = retrychange.for_node(present, changes) if kind == "retry" else changes
        node = self._changed(kind, present, wanted, unset)
        if node is None:
            return None
        document = node_to_document(node)
        if kind == "retry":
            document.update(retrychange.written(node, changes))
        self._write(
            kind, id=made.id, set=canonical(changes, cast(Json, document)) if changes else None, unset=unset, **running
        )
        if kind == "retry":
            return op.Retry(id=made.id, node=node, made_on=present, cancel_running=cancel)
        return op.Modify(id=made.id, node=node, made_on=present, cancel_running=cancel)

    def _changed(self, kind: str, present: Node, changes: dict[str, Value], unset: tuple[str, ...]) -> Node | None:
        """The node with the changes merged into its long form; None with faults, which lie in the changes."""
        base = cast("dict[str, Value]", tree_of(cast(Json, node_to_document(present, long=True))))
        kept = without(base, unset, (kind, "unset"), self.faults)
        tree = merged(self._given_back(kind, base, kept, unset, changes), changes)
        found: list[Fault] = []
        made: NodeFile | None = None
        try:
            made = NodeFile.model_validate(tree)
        except ValidationError as error:
            found += explain.faults(error, tree, "node")
        found += ids.check_node(tree, ())
        if not found and made is not None:
            steps = changes.get("on_failure")
            known = named_patches(present) if not (isinstance(steps, dict) and "replan" in steps) else {}
            converter = Converter(KnownDocuments(self.documents, known))
            node = converter.node((kind, "set"), present.id, made, self._plain)
            self.faults += converter.faults
            return node
        found = retrychange.located(found) if kind == "retry" else found
        self.faults += [f._replace(path=(kind, "set", *f.path)) for f in found]
        return None

    def _given_back(
        self, kind: str, base: Value, kept: dict[str, Value], unset: tuple[str, ...], changes: dict[str, Value]
    ) -> dict[str, Value]:
        """What is dropped from a node of a file falls back to the file's `defaults`, if it was not theirs."""
        if not self._defaults.values:
            return kept
        node = Converter(self.documents).node((), "n", NodeFile.model_validate({"run": "true"}), self._defaults)
        given = tree_of(cast(Json, node_to_document(node, long=True)))
        for at, dotted in enumerate(unset):
            steps = dotted.split(".")
            if explain.has(changes, steps) or not explain.has(given, steps) or steps[0] == "run":
                continue
            value = explain.at(given, tuple(steps))
            if explain.at(base, tuple(steps)) == value:
                hint = "set another value, or change `defaults`"
                message = f"`{dotted}` comes from `defaults` of the file"
                self.faults.append(Fault((kind, "unset", at), "from-defaults", message, hint))
            for step in reversed(steps):
                value = {step: value}
            kept = merged(kept, cast("dict[str, Value]", value))
        return kept

    def _fallback(self, made: FallbackFile, cancel: bool, running: Mapping[str, Json]) -> op.Operation | None:
        wanted: object = made.with_
        if isinstance(wanted, NodeFile):
            node = self._node(("fallback", "with"), f"{made.id}-fallback", wanted)
            self._write("fallback", id=made.id, **{"with": node_to_document(node)}, **running)
            return op.Fallback(id=made.id, node=node, cancel_running=cancel)
        name = str(wanted)
        templates = self.workflow.templates
        if name not in templates:
            known = f"there {'is' if len(templates) == 1 else 'are'} {', '.join(templates)}" if templates else ""
            hint = near(name, templates) or known or "write the node in place: with: {run: …}"
            self.faults.append(Fault(("fallback", "with"), "unknown-template", f"there is no template `{name}`", hint))
            return None
        self._write("fallback", id=made.id, **{"with": name}, **running)
        return op.Fallback(id=made.id, node=templates[name], cancel_running=cancel)

    def _limits(self, made: SetLimitsFile, body: Value) -> op.Operation | None:
        if not made.model_fields_set:
            message = "`set_limits` does not say which limit to change"
            self.faults.append(Fault(("set_limits",), "no-change", message, "write {parallel: 2}", True))
            return None
        self.written = {"set_limits": fields.json(body)}
        return op.SetLimits(parallel=made.parallel, timeout_s=made.timeout, resources=made.resources or {})

    def _edit(self, made: EditFile) -> EditWorkflow | None:
        changes = cast("dict[str, Value]", made.set or {})
        unset = tuple(made.unset or ())
        places: list[tuple[Path, str, bool]] = [(("workflow", "set", key), key, True) for key in changes]
        places += [(("workflow", "unset", at), dotted.split(".")[0], False) for at, dotted in enumerate(unset)]
        if not places:
            hint = "add set: {KEY: value} or unset: [KEY]"
            self.faults.append(Fault(("workflow",), "no-change", "`workflow` does not say what to change", hint, True))
        for path, key, on_key in places:
            if key in _NOT_BY_EDIT:
                self.faults.append(
                    Fault(path, "not-by-edit", f"`{key}` can't be changed here", _NOT_BY_EDIT[key], on_key)
                )
        return EditWorkflow(changes, unset)


_NOT_BY_EDIT = {
    "nodes": "use insert, remove and modify",
    "defaults": "change it in the file: every node without a value of its own would change with it",
    "version": "a file keeps the version of its format",
}


def _nodes(kind: str, body: Value) -> list[tuple[Path, dict[str, Value]]]:
    """The nodes that stand in an operation, each with its path in it."""
    if not isinstance(body, dict):
        return []
    key = {"insert": "node", "fallback": "with"}.get(kind, "")
    found: list[tuple[Path, Value]] = [((key,), body[key])] if key in body else []
    nodes = body.get("nodes")
    if kind == "alternative" and isinstance(nodes, dict):
        found += [(("nodes", name), node) for name, node in nodes.items()]
    return [(path, node) for path, node in found if isinstance(node, dict)]


def _names(kind: str, body: Value) -> list[Fault]:
    nodes = body.get("nodes") if kind == "alternative" and isinstance(body, dict) else None
    return list(ids.names(nodes, ("nodes",), "node"))


def _explained(fault: Fault, kind: str) -> Fault:
    if kind == "remove" and fault.code == "missing-key" and "`strategy`" in fault.message:
        return fault._replace(message="`remove` does not say what becomes of what waits for the node", hint=_STRATEGIES)
    return fault

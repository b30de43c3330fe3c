"""A patch for a workflow *file*: what the file says afterwards, with its comments and its order kept.

The patch is applied to the model by the same code as for a run; then the text is changed where the
two models differ, and read again: it must say exactly what the model says. A file has no state, so
what a run would skip or supersede is taken out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, cast

from pydantic import ValidationError

from dagrun.core.check import check
from dagrun.core.names import Json, NodeId
from dagrun.core.operation import Draft, Rerun, Retry, draft
from dagrun.core.patch import apply
from dagrun.core.plan import all_needs
from dagrun.core.reading import reads, rename_result, without_producer
from dagrun.core.replan import check_draft
from dagrun.core.workflow import Fault, Node, Workflow
from dagrun.errors import BugError, InputError, Problem
from dagrun.flowfile import explain, ids
from dagrun.flowfile.assemble import assemble
from dagrun.flowfile.convert import Converter, Defaults, defaults_of
from dagrun.flowfile.differ import diff_files, same
from dagrun.flowfile.document import duration, node_to_document, workflow_to_document
from dagrun.flowfile.documents import Documents, KnownDocuments, NoDocuments
from dagrun.flowfile.merge import merged, tree_of, without
from dagrun.flowfile.patchfile import FilePatch
from dagrun.flowfile.schema import NodeFile, WorkflowFile
from dagrun.flowfile.source import Mark, Tree, Value, parse
from dagrun.flowfile.surgery import Surgery, Unfit

__all__ = ["Flow", "apply_to_file", "diff_files", "edit_file", "open_flow"]

_BOM = b"\xef\xbb\xbf"
_FIRST = frozenset(
    "version name description params limits schedule durability fail_fast permissions docker secrets".split()
)


@dataclass(frozen=True, slots=True)
class Flow:
    """A workflow file that is going to be changed. `defaults` are for the nodes that a patch brings."""

    data: bytes
    file: str
    base_dir: str
    workflow: Workflow
    defaults: Defaults
    tree: Tree


def open_flow(data: bytes, file: str, base_dir: str) -> Flow:
    """The workflow file in `data`. Raises InputError with all its problems."""
    workflow, _, _ = assemble(data, file, base_dir)
    tree = parse(data, file)
    made = WorkflowFile.model_validate(tree.value)
    return Flow(data, file, base_dir, workflow, defaults_of(made), tree)


# ---------------------------------------------------------------- the model


def apply_to_file(
    workflow: Workflow, made: FilePatch, *, base_dir: str | None = None, defaults: Value | None = None
) -> Workflow:
    """The workflow after a patch. Raises InputError with everything that is wrong with it.

    `defaults` is what the file says under that key: it holds for templates that the patch brings.
    """
    work = draft(workflow)
    for at, operation in enumerate(made.patch.operations):
        if isinstance(operation, Rerun) or (isinstance(operation, Retry) and operation.node is None):
            work.fault(at, "", "nothing-ran", "a file is no run: nothing has run that could run again")
    apply(work, made.patch)
    _refuse(made, work.faults)
    _settle(work)
    results = dict(workflow.outputs)
    for old, new in work.superseded.items():
        results = {key: rename_result(text, old, new) for key, text in results.items()}
    after = replace(workflow, nodes=work.nodes, limits=work.limits, outputs=results)
    after = _with_edits(after, made, base_dir, defaults)
    check_draft(after, work)
    # alone in a run, a new node is a mistake; in a file it is as good as any other
    _refuse(made, [f for f in work.faults if f.code != "orphan"])
    problems = [
        Problem(code=f.code, message=f"afterwards: {f.message}", file=workflow.file, hint=f.hint or _hint(f))
        for f in check(after)
        if f.severity == "error"
    ]
    if problems:
        raise InputError(tuple(problems))
    return after


def _hint(fault: Fault) -> str:
    """What to do about an output of the workflow that a patch leaves without its node."""
    if fault.path[:1] != ("outputs",) or len(fault.path) < 2:
        return ""
    name = fault.path[1]
    return f"the output `{name}` of the workflow reads it: add - workflow: {{unset: [outputs.{name}]}}"


def _refuse(made: FilePatch, faults: list[Fault]) -> None:
    if faults:
        raise InputError(tuple(dict.fromkeys(made.problem(f) for f in faults)))


def _settle(work: Draft) -> None:
    """Take out what a run would leave as skipped or superseded; what waited for it no longer does."""
    gone = [name for name in (*work.skipped, *work.superseded) if name in work.nodes]
    for name in gone:
        at = work.touched.get(name, 0)
        for user in work.dependents(name):
            node = work.nodes[user]
            inputs = {k: without_producer(i) if reads(i, name) else i for k, i in node.inputs.items()}
            work.put(replace(node, needs=tuple(n for n in node.needs if n != name), inputs=inputs), at)
        work.drop(name, "settled", at)


def _with_edits(workflow: Workflow, made: FilePatch, base_dir: str | None, defaults: Value | None) -> Workflow:
    """The workflow with the changes of its other keys."""
    for edit, source in made.edits:
        faults: list[Fault] = []
        document = workflow_to_document(replace(workflow, nodes={}), long=True)
        tree = cast("dict[str, Value]", tree_of({**document, "nodes": {"n": {"run": "true"}}}))
        tree = merged(without(tree, edit.unset, ("unset",), faults), dict(edit.set))
        if defaults is not None:
            tree["defaults"] = defaults
        documents = Documents(workflow.file, base_dir) if base_dir is not None else NoDocuments()
        known = KnownDocuments(documents, {}, {workflow.provider.rules: workflow.provider.rules_text})
        try:
            read = WorkflowFile.model_validate(tree)
        except ValidationError as error:
            faults += [f._replace(path=("set", *f.path)) for f in explain.faults(error, tree)]
        else:
            converter = Converter(known)
            new = converter.workflow(read, workflow.name, workflow.file, workflow.digest)
            found = [*ids.check(tree), *converter.faults, *documents.faults]
            faults += [f._replace(path=("set", *f.path)) for f in found]
            touched = {name.split(".")[1] for name in edit.unset if name.startswith("templates.")}
            changed = edit.set.get("templates")
            touched |= changed.keys() if isinstance(changed, dict) else set()
            kept = {k: t for k, t in workflow.templates.items() if k not in touched}
            templates = {k: kept.get(k, t) for k, t in new.templates.items()}
            workflow = replace(new, nodes=workflow.nodes, templates=templates)
        problems = [source.locate(f._replace(path=(*source.path, "workflow", *f.path))) for f in faults]
        if any(p.severity == "error" for p in [*problems, *documents.problems]):
            raise InputError((*problems, *documents.problems))
    return workflow


# ---------------------------------------------------------------- the text


def edit_file(flow: Flow, made: FilePatch) -> bytes:
    """The bytes of the file after a patch. Raises InputError with all that is wrong with the patch."""
    defaults = flow.tree.value.get("defaults") if isinstance(flow.tree.value, dict) else None
    after = apply_to_file(flow.workflow, made, base_dir=flow.base_dir, defaults=defaults)
    if after == flow.workflow:
        return flow.data
    surgery = Surgery(flow.tree.text)
    try:
        _Edit(flow, surgery, after).all()
        text = surgery.result()
    except Unfit as unfit:
        fault = Fault((), "can't-edit", f"the file can't be changed here: {unfit.message}", _INSTEAD)
        raise InputError((_at(flow, unfit.offset, fault),)) from None
    data = (_BOM if flow.data.startswith(_BOM) else b"") + text.encode()
    _prove(flow, after, data)
    return data


_INSTEAD = "change the file by hand, or write the new workflow to another file, without its comments"


def _at(flow: Flow, offset: int, fault: Fault) -> Problem:
    from dagrun.flowfile.frames import Spot

    return flow.tree.spot_problem(Spot(offset, offset + 1, fault.code, fault.message, fault.hint))


def _prove(flow: Flow, after: Workflow, data: bytes) -> None:
    """Read the new text: it says what the model says, or nothing is written."""
    try:
        got, _, _ = assemble(data, flow.file, flow.base_dir)
    except InputError as error:
        _failed(flow, "; ".join(p.message for p in error.problems))
    wanted = replace(after, digest=got.digest, file=got.file, files=got.files)
    if got == wanted:
        return
    wrong = [name for name in {**got.nodes, **wanted.nodes} if got.nodes.get(name) != wanted.nodes.get(name)]
    _failed(flow, f"differs: {', '.join(wrong) or 'the keys at the top'}", wrong)


def _failed(flow: Flow, why: str, nodes: list[NodeId] | None = None) -> NoReturn:
    value = flow.tree.value
    if isinstance(value, dict) and "defaults" in value:
        message = "the file can't say this: `defaults` gives it to every node"
        message += f" (of {', '.join(nodes)})" if nodes else ""
        raise InputError((flow.tree.problem(Fault(("defaults",), "defaults", message, _INSTEAD, on_key=True)),))
    raise BugError(f"the edited text of {flow.file} does not say what it should: {why}")


class _Edit:
    """All changes that make the text of a flow say `after`."""

    def __init__(self, flow: Flow, surgery: Surgery, after: Workflow) -> None:
        self._surgery = surgery
        self._before = flow.workflow
        self._after = after
        self._mark = flow.tree.mark()
        given = Converter(NoDocuments()).node((), "n", NodeFile.model_validate({"run": "true"}), flow.defaults)
        self._given = node_to_document(given)
        del self._given["run"]

    def all(self) -> None:
        """Collect them."""
        old, new = (_top_document(w) for w in (self._before, self._after))
        items = self._mark.items or {}
        groups = ["nodes", "templates"] if "templates" in items and self._after.templates else ["nodes"]
        for key in groups:  # what is deeper comes first: at the end of the file both have the same place
            self._group(key, getattr(self._before, key), getattr(self._after, key))
        old, new = ({k: v for k, v in top.items() if k not in groups} for top in (old, new))
        added = {k: v for k, v in new.items() if k not in items and (k not in old or not same(old[k], v))}
        if "templates" in added:
            added["templates"] = new["templates"] = {n: self._fresh(t) for n, t in self._after.templates.items()}
        first = {k: v for k, v in added.items() if k in _FIRST}
        here = ({k: v for k, v in top.items() if k in items} for top in (old, new))
        self._surgery.mapping(self._mark, *here)
        self._put_keys(first, last=False)
        self._put_keys({k: v for k, v in added.items() if k not in first}, last=True)

    def _put_keys(self, added: Mapping[str, Json], *, last: bool) -> None:
        """New keys of the whole file: at its end, or those that people look for above the nodes."""
        if not added:
            return
        if self._surgery.is_flow(self._mark):
            self._surgery.append(self._mark, added)
            return
        from dagrun.flowfile.emit import dump_yaml

        lines = dump_yaml(dict(added)).splitlines()
        if last:
            where = self._surgery.after(self._mark, str(list(self._mark.items or {})[-1]))
            self._surgery.lines(where, lines)
            return
        where = self._surgery.before(self._mark, "nodes")
        self._surgery.lines(where, [*lines, *([""] if self._surgery.follows_blank(where) else [])])

    def _group(self, key: str, before: Mapping[NodeId, Node], after: Mapping[NodeId, Node]) -> None:
        """The nodes, or the templates."""
        holder = (self._mark.items or {})[key][2]
        items = holder.items or {}
        new = [name for name in after if name not in before]
        gone = [name for name in before if name not in after]
        for name, node in after.items():
            if name in before and before[name] != node:
                mark = items[name][2]
                self._surgery.own(mark, items[name][1])
                self._surgery.mapping(mark, *self._documents(before[name], node))
        if self._surgery.is_flow(holder):
            added: dict[str, Json] = {name: self._fresh(after[name]) for name in new}
            if len(gone) == len(items):
                self._surgery.renew(holder, added)
                return
            self._surgery.delete(holder, gone)
            if added:
                self._surgery.append(holder, added, gone)
            return
        self._surgery.delete(holder, gone)
        self._put(holder, after, new)

    def _put(self, holder: Mark, after: Mapping[NodeId, Node], new: list[NodeId]) -> None:
        """New nodes, each behind the last of those that it waits for, or before the first that waits for it."""
        spaced = self._surgery.spaced(holder)
        places = [str(name) for name in holder.items or {}]
        at: dict[NodeId, int] = {}
        for name in new:
            needs = [n for n in all_needs(after[name]) if n in places or n in at]
            users = [n for n in places if n in after and name in all_needs(after[n])]
            leading = False
            if needs:
                where = max(at[n] if n in at else self._surgery.after(holder, n) for n in needs)
            elif users:
                where, leading = self._surgery.before(holder, users[0]), True
            else:
                where = self._surgery.after(holder, places[-1])
            at[name] = where
            lines = self._surgery.node_lines(holder, name, self._fresh(after[name]))
            blank = [""] if spaced else []
            self._surgery.lines(where, [*lines, *blank] if leading else [*blank, *lines])

    def _fresh(self, node: Node) -> dict[str, Json]:
        """A new node as it is written into this file: without what `defaults` gives it."""
        made = self._document(node)
        return dict(self._written(made, {}, node)) if self._given and node.review is None else made

    def _document(self, node: Node) -> dict[str, Json]:
        """A node as a document that says its level, where `defaults` would give it another."""
        made = node_to_document(node)
        if node.agent is not None and "isolation" in self._given:
            made.setdefault("isolation", node.isolation)
        return made

    def _documents(self, old: Node, new: Node) -> tuple[dict[str, Json], dict[str, Json]]:
        """What the text says of a node now, and what it is to say."""
        before, after = self._document(old), self._document(new)
        if not self._given or new.review is not None:
            return before, after
        return before, dict(self._written(after, before, new))

    def _written(
        self, document: Mapping[str, Json], before: Mapping[str, Json], node: Node
    ) -> Iterator[tuple[str, Json]]:
        """The keys of a node that are written beside `defaults`; those of the built-in ones where they differ."""
        for key, value in document.items():
            given = self._given.get(key)
            if given is None or before.get(key) == value:
                yield key, value
            elif key in _BY_KEY:
                own = _beyond(_long_form(value), _long_form(given))
                yield from [(key, cast(Json, own))] if own else []
            elif isinstance(given, list) and isinstance(value, list) and key == "pass_env":
                yield from [(key, [v for v in value if v not in given])] if value != given else []
            elif given != value:
                yield key, value
        for key in self._given:
            taken = node.agent is None or key not in ("shell", "cwd")
            if taken and key not in document and key in _BUILT_IN and (key in before or not before):
                yield key, _BUILT_IN[key]


_BY_KEY = frozenset({"env", "permissions", "docker"})  # what a node has of these is merged with what `defaults` has


def _long_form(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {"image": value}


def _beyond(value: Mapping[str, Json], given: Mapping[str, Json]) -> dict[str, Json]:
    """What a node says beyond what `defaults` gives it."""
    made: dict[str, Json] = {}
    for key, own in value.items():
        held = given.get(key)
        if key == "deny" and isinstance(own, list) and isinstance(held, list):
            own = [v for v in own if v not in held]
            made.update({key: own} if own else {})
        elif isinstance(own, dict) and isinstance(held, dict):
            inner = _beyond(own, held)
            made.update({key: inner} if inner else {})
        elif own != held:
            made[key] = own
    return made


_BUILT_IN: dict[str, Json] = {
    "shell": "sh",
    "timeout": duration(Node(id="n").timeout_s),
    "grace": duration(Node(id="n").grace_s),
    "idempotent": True,
    "continue_on_error": False,
    "isolation": "process",
}


def _top_document(workflow: Workflow) -> dict[str, Json]:
    made = workflow_to_document(replace(workflow, nodes={}))
    del made["nodes"]
    del made["version"]
    return made

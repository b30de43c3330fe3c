"""Patch files: YAML (or a document from elsewhere) into a Patch, or everything that is wrong with it.

What can be wrong without knowing the run is found here: text, shape, keys, values, and whether a
changed node is still one. Which nodes exist and may be changed is for the core to say; its faults
get their places from `FilePatch.problem`. `set` and `unset` are merged with the node as the
operations before left it, so that several changes of one node add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dagrun.core.names import Json
from dagrun.core.operation import Operation, Patch, Trigger
from dagrun.core.workflow import Fault, Workflow
from dagrun.errors import InputError, Problem
from dagrun.flowfile.convert import Defaults
from dagrun.flowfile.documents import Documents, KnownDocuments, NoDocuments
from dagrun.flowfile.merge import tree_of
from dagrun.flowfile.operations import Builder, EditWorkflow, head
from dagrun.flowfile.source import MAX_PROBLEMS, Tree, Value, parse

Path = tuple[str | int, ...]
Locate = Callable[[Fault], Problem]
_NODE_KEY = {"modify": "set", "retry": "set", "fallback": "with"}  # where an operation has the keys of its node


class Written(NamedTuple):
    """One operation as it was written, and how to find its places; `path` leads to it in the text."""

    value: Value
    path: Path
    locate: Locate


@dataclass(frozen=True, slots=True)
class FilePatch:
    """A patch as it was read. `edits` are only for files, each with its source.

    `sources` are parallel to the operations of the patch; `locate` is for the patch as a whole.
    """

    patch: Patch
    locate: Locate
    sources: tuple[Written, ...] = ()
    edits: tuple[tuple[EditWorkflow, Written], ...] = ()
    warnings: tuple[Problem, ...] = ()

    def problem(self, fault: Fault) -> Problem:
        """A fault of the core (`("operations", k, key)`, a node's under `node`) at its place in the text."""
        path = fault.path
        if len(path) > 1 and path[0] == "operations" and isinstance(path[1], int) and path[1] < len(self.sources):
            source = self.sources[path[1]]
            kind = next(iter(source.value)) if isinstance(source.value, dict) else ""
            inside = path[2:]
            if inside[:1] == ("node",):
                inside = (_NODE_KEY.get(kind, "node"), *inside[1:])
            return source.locate(fault._replace(path=(*source.path, kind, *inside)))
        return self.locate(fault)


def read_patch(data: bytes, file: str, workflow: Workflow) -> Patch:
    """The patch in a text that is for a run. Names of files in it are refused: see `read_file_patch`.

    Raises InputError with all problems.
    """
    return for_run(read_file_patch(data, file, workflow)).patch


def read_file_patch(
    data: bytes, file: str, workflow: Workflow, *, base_dir: str | None = None, defaults: Defaults | None = None
) -> FilePatch:
    """The patch in a text; files that it names are relative to `base_dir`, without one they are refused.

    `defaults` are those of the workflow file, where the patch is for a file.

    Raises InputError with all problems.
    """
    tree = parse(data, file)
    documents = Documents(file, base_dir) if base_dir is not None else None
    return patch_from_tree(tree, workflow, documents=documents, defaults=defaults)


def patch_from_tree(
    tree: Tree, workflow: Workflow, *, documents: Documents | None = None, defaults: Defaults | None = None
) -> FilePatch:
    """The patch in a text that was parsed. Raises InputError with all problems."""
    return _read(tree.value, tree.problem, Builder(workflow, documents or NoDocuments(), defaults), tree.problems)


def patch_from_document(document: Json, workflow: Workflow, file: str) -> Patch:
    """The patch, for a run, in a document that was read before; its problems have no places.

    Raises InputError with all problems.
    """
    return for_run(file_patch_from_document(document, workflow, file)).patch


def file_patch_from_document(
    document: Json, workflow: Workflow, file: str, *, patches: Mapping[str, Json] | None = None
) -> FilePatch:
    """Like `patch_from_document`, also for a workflow file.

    `patches` are the documents of patches that it names in `on_failure: {replan: …}`.
    """
    builder = Builder(workflow, KnownDocuments(NoDocuments(), patches or {}))
    return _read(tree_of(document), unplaced(file), builder, [])


def unplaced(file: str) -> Locate:
    """Problems of a thing that has a name but no lines."""

    def problem(fault: Fault) -> Problem:
        return Problem(code=fault.code, message=fault.message, file=file, hint=fault.hint, severity=fault.severity)

    return problem


def for_run(made: FilePatch) -> FilePatch:
    """The same patch if a run can take it: raises InputError where it changes other keys of the file."""
    if not made.edits:
        return made
    problems: list[Problem] = []
    for edit, source in made.edits:
        for key in dict.fromkeys([*edit.set, *[name.split(".")[0] for name in edit.unset]]):
            hint = "of these, set_limits can change parallel, timeout and resources" if key == "limits" else ""
            hint = hint or "change it in the workflow file: it holds from the next run on"
            message = f"`{key}` of a workflow can't be changed in a run"
            path: Path = (*source.path, "workflow", "set", key)
            problems.append(source.locate(Fault(path, "not-in-a-run", message, hint, on_key=True)))
    raise InputError(tuple(problems))


def to_document(made: FilePatch) -> dict[str, Json]:
    """A patch for a run in canonical form: what `patch_from_document` reads again."""
    patch = made.patch
    document: dict[str, Json] = {"workflow": patch.workflow} if patch.workflow else {}
    if patch.base:
        document["base"] = patch.base
    if patch.trigger != Trigger():
        trigger: dict[str, Json] = {"type": patch.trigger.type}
        trigger.update({"node": patch.trigger.node} if patch.trigger.node else {})
        document["trigger"] = {**trigger, **({"reason": patch.trigger.reason} if patch.trigger.reason else {})}
    return {**document, "operations": list(patch.written)}


# ---------------------------------------------------------------- reading


def _read(value: Value, locate: Locate, builder: Builder, text: Sequence[Problem]) -> FilePatch:
    shape: list[Fault] = []
    made, items = head(value, builder.workflow, shape)
    written = [Written(item, ("operations", k), locate) for k, item in enumerate(items)]
    problems = [*text, *[locate(f) for f in shape]]
    return build(builder, written, made, problems, locate)


def build(
    builder: Builder, written: Iterable[Written], start: Patch, problems: list[Problem], locate: Locate
) -> FilePatch:
    """All operations as one patch. Raises InputError with `problems` and all that is wrong with them."""
    operations: list[Operation] = []
    canonical: list[Json] = []
    edits: list[tuple[EditWorkflow, Written]] = []
    sources: list[Written] = []
    for item in written:
        builder.faults.clear()
        got = builder.operation(item.value)
        faults = list(dict.fromkeys([*builder.faults, *builder.documents.faults]))
        builder.documents.faults.clear()
        problems += [item.locate(f._replace(path=(*item.path, *f.path))) for f in faults[:MAX_PROBLEMS]]
        if isinstance(got, EditWorkflow):
            edits.append((got, item))
        elif got is not None:
            operations.append(got)
            canonical.append(builder.written)
            sources.append(item)
    problems += builder.documents.problems
    warnings = _raise(problems)
    patch = replace(start, operations=tuple(operations), written=tuple(canonical))
    return FilePatch(patch, locate, tuple(sources), tuple(edits), warnings)


def _raise(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Raise what is wrong, if anything, file by file in the order of the text; the warnings."""
    found = list(dict.fromkeys(problems))
    files = {file: k for k, file in enumerate(dict.fromkeys([p.file for p in found]))}
    found.sort(key=lambda p: (files[p.file], p.line, p.column))
    if any(p.severity == "error" for p in found):
        raise InputError(tuple(found))
    return tuple(found)


__all__ = [
    "EditWorkflow",
    "FilePatch",
    "Written",
    "build",
    "file_patch_from_document",
    "for_run",
    "patch_from_document",
    "patch_from_tree",
    "read_file_patch",
    "read_patch",
    "to_document",
]

"""The patches that a workflow names in `on_failure: {replan: FILE}`, checked when it is read.

A patch that could not be carried out would be found only after the failure that it is for. So its
shape is checked like that of the workflow, and what it would do to the workflow as it is written;
the latter gives warnings, since the plan may have changed by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dagrun.core.names import Json
from dagrun.core.patch import apply, draft
from dagrun.core.replan import check_draft
from dagrun.core.workflow import Node, Workflow
from dagrun.errors import InputError, Problem
from dagrun.flowfile.documents import Documents
from dagrun.flowfile.patchfile import FilePatch, for_run, patch_from_tree, to_document


def checked(workflow: Workflow, documents: Documents) -> Workflow:
    """The workflow with its declared patches in canonical form; what is wrong goes to `documents.problems`."""
    done: dict[str, Json] = {}
    for name in dict.fromkeys(_names(workflow)):
        tree = documents.trees.get(name)
        if tree is None:
            continue
        beside = documents.beside(name)
        try:
            made = for_run(patch_from_tree(tree, workflow, documents=beside))
        except InputError as error:
            documents.problems.extend(error.problems)
            continue
        documents.keep_digests(name, beside)
        documents.problems.extend([*made.warnings, *_outlook(made, workflow)])
        done[name] = to_document(made)
    nodes = {i: _with(node, done) for i, node in workflow.nodes.items()}
    return replace(workflow, nodes=nodes, templates={i: _with(n, done) for i, n in workflow.templates.items()})


def _outlook(made: FilePatch, workflow: Workflow) -> Iterator[Problem]:
    """What would be wrong if the patch came now."""
    work = apply(draft(workflow), made.patch)
    if not work.faults:
        check_draft(replace(workflow, nodes=work.nodes), work)
    for fault in dict.fromkeys(work.faults):
        yield made.problem(fault._replace(severity="warning", message=f"as the workflow is written: {fault.message}"))


def _names(workflow: Workflow) -> Iterator[str]:
    for group in (workflow.nodes, workflow.templates):
        for node in group.values():
            while node.on_failure is not None:
                if node.on_failure.replan:
                    yield node.on_failure.replan
                if node.on_failure.fallback_node is None:
                    break
                node = node.on_failure.fallback_node


def _with(node: Node, done: dict[str, Json]) -> Node:
    wanted = node.on_failure
    if wanted is None:
        return node
    inner = wanted.fallback_node
    if wanted.replan in done or inner is not None:
        patch = done.get(wanted.replan, wanted.replan_patch)
        wanted = replace(wanted, replan_patch=patch, fallback_node=_with(inner, done) if inner is not None else None)
    return replace(node, on_failure=wanted)

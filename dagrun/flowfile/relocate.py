"""A workflow as it is written into another folder: the files that it names, named from there.

Knows of rules and patches, which stay files; schemas are part of the workflow once it was read, and
skills are looked for by name.
"""

from __future__ import annotations

import os
from dataclasses import replace

from dagrun.core.workflow import Node, Workflow


def relocated(workflow: Workflow, base: str, folder: str) -> tuple[Workflow, tuple[str, ...]]:
    """(the workflow whose file is in `folder` and was in `base`, the new names of files that are not there)."""
    names: dict[str, str] = {}
    old, new = os.path.realpath(base), os.path.realpath(folder)

    def moved(name: str) -> str:
        if name and not os.path.isabs(name) and name not in names:
            names[name] = name if old == new else os.path.relpath(os.path.join(old, name), new)
        return names.get(name, name)

    def of_node(node: Node) -> Node:
        wanted = node.on_failure
        if wanted is None:
            return node
        inner = of_node(wanted.fallback_node) if wanted.fallback_node is not None else None
        after = replace(wanted, replan=moved(wanted.replan), fallback_node=inner)
        return node if after == wanted else replace(node, on_failure=after)

    made = replace(
        workflow,
        provider=replace(workflow.provider, rules=moved(workflow.provider.rules)),
        nodes={name: of_node(node) for name, node in workflow.nodes.items()},
        templates={name: of_node(node) for name, node in workflow.templates.items()},
    )
    lost = tuple(name for name in names.values() if not os.path.isfile(os.path.normpath(os.path.join(new, name))))
    return made, lost

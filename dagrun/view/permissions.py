"""What each node of a plan may do, and which scope says so: `dagrun plan --permissions`.

Nodes that may do the same stand together. Secrets are shown by name. Knows what is asked for; what
a machine can hold of it is `dagrun doctor`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from dagrun.core.agents import default_level, held_of, permitted_offer, wish_of
from dagrun.core.ceiling import stand_ins
from dagrun.core.lattice import explain
from dagrun.core.names import Json
from dagrun.core.permissions import Effective, Isolation
from dagrun.core.workflow import Docker, docker_of
from dagrun.view.text import PLAIN, Look, clean, folded, plural

if TYPE_CHECKING:
    from dagrun.core.plan import Plan
    from dagrun.core.workflow import Agent, Node, Workflow

_NAMES = 60  # more of one group are only counted, on a terminal
_COLUMN = 12
_OF_AGENTS = ("tools", "models", "cost_budget")


class Subject(NamedTuple):
    """A node, or one that may take its place, as it would run. `place` says when: "" for a node of the plan."""

    node: Node
    place: str = ""

    @property
    def label(self) -> str:
        """How people see it."""
        return f"{self.node.id} ({self.place})" if self.place else self.node.id


class Group(NamedTuple):
    """Nodes that may do the same: `rights` are (key, what, why)."""

    subjects: list[Subject]
    rights: tuple[tuple[str, str, str], ...]


def subjects(plan: Plan) -> Iterator[Subject]:
    """All nodes of a plan, the templates, and the fallbacks whose rights depend on what they stand in for."""
    flow = plan.workflow
    for i, node in enumerate(plan.nodes):
        if i not in plan.removed:
            yield Subject(node)
            yield from _stand_ins(flow, node)
    for node in flow.templates.values():
        yield Subject(node, "template")
        yield from _stand_ins(flow, node)


def _stand_ins(flow: Workflow, node: Node) -> Iterator[Subject]:
    """The fallbacks of a node as they would run in its place; a template that loses nothing is not repeated."""
    for own, after in stand_ins(flow, node):
        if node.on_failure is not None and node.on_failure.fallback and after == own:
            return  # the template and its own fallbacks are shown where it is declared
        yield Subject(after, f"if {node.id} fails")
        node = after


def groups(plan: Plan) -> list[Group]:
    """The subjects of a plan by what they may do, in the order in which each is met first."""
    found: dict[tuple[tuple[str, str, str], ...], Group] = {}
    for subject in subjects(plan):
        rights = tuple(_told(subject.node, _rights(plan.workflow, subject)))
        found.setdefault(rights, Group([], rights)).subjects.append(subject)
    return list(found.values())


def _rights(flow: Workflow, subject: Subject) -> tuple[tuple[str, str, str], ...]:
    node = subject.node
    if node.review is not None:
        return (("asks", "a human; nothing runs", ""),)
    held = explain(flow.permissions, node.permissions, node.isolation, agent=node.agent is not None)
    got = held_of(flow, node)
    level: tuple[str, str, str] = held[0]
    if node.agent is not None and node.isolation == got.isolation == default_level(node.agent):
        level = (held[0].key, held[0].text, "default for what it is offered")
    rest = (*_container(flow, node, got.isolation), *_ceilings(node), *_secrets(node))
    return (level, *_open(got), *held[1:], *_asks(flow, node), *rest)


def _told(node: Node, rights: tuple[tuple[str, str, str], ...]) -> Iterator[tuple[str, str, str]]:
    """The rights for a person: of a command, what only agents have is what those may have that it inserts."""
    agents = any(_agents(node))
    yield from (right for right in rights if agents or right[0] not in _OF_AGENTS)
    theirs = [] if agents else [right for right in rights if right[0] in _OF_AGENTS]
    if theirs:
        scopes = sorted({why for _, _, why in theirs}, reverse=True)
        what = "; ".join(f"{key} {text}" for key, text, _ in theirs)
        yield "inserts", f"agents with at most {what}", " and ".join(scopes)


def _asks(flow: Workflow, node: Node) -> Iterator[tuple[str, str, str]]:
    """What an agent, or the one that repairs a node, is offered of that, and the models that it may ask."""
    for agent, which in _agents(node):
        tools = permitted_offer(agent, held_of(flow, node).tools)
        default = "node" if agent.tools is not None else "default, as far as it is allowed"
        yield f"{which}offered", ", ".join(tools) or "nothing", default
        models = asked_models(flow, node, agent)
        wish = wish_of(flow, agent)
        source = f"tier {wish}" if wish in flow.models else "node" if agent.model else "default"
        yield f"{which}asks", ", ".join(models) or "nobody", source
        if agent.skills:
            yield f"{which}skills", ", ".join(agent.skills), "they can only narrow what it is offered"


def _agents(node: Node) -> Iterator[tuple[Agent, str]]:
    if node.agent is not None:
        yield node.agent, ""
    if node.on_failure is not None and node.on_failure.replanner is not None:
        yield node.on_failure.replanner, "replanner "


def asked_models(flow: Workflow, node: Node, agent: Agent) -> tuple[str, ...]:
    """The models that an agent may be routed to, in order."""
    from dagrun.agent.checks import route_of

    return route_of(flow, node, agent).models


def _open(got: Effective) -> Iterator[tuple[str, str, str]]:
    """What is not held, said as plainly as what is."""
    if got.paths is None:
        yield "paths", "not held", "no scope declares it"
    if got.network is None:
        yield "network", "not held", "no scope declares it"


def _container(flow: Workflow, node: Node, level: Isolation) -> Iterator[tuple[str, str, str]]:
    if level != "container":
        return
    docker, own = docker_of(flow, node), node.docker or Docker()
    yield "image", docker.image or "none is named", "node" if own.image else "workflow" if docker.image else ""
    yield "pull", docker.pull, "node" if node.docker else "workflow" if flow.docker else "default"
    if docker.user:
        yield "user", docker.user, "node" if own.user else "workflow"


def _ceilings(node: Node) -> Iterator[tuple[str, str, str]]:
    for name, amount in ceilings(node).items():
        yield name, f"{amount:g}" if name in ("cpu", "pids") else _size(int(amount)), "node"


def ceilings(node: Node) -> dict[str, float]:
    """The written ceilings of a node: cpu in cores, pids, the others in bytes."""
    made = {name: node.resources[name] for name in ("cpu", "memory") if name in node.resources}
    made.update({"pids": node.pids} if node.pids else {})
    made.update({"file_size": node.file_size} if node.file_size else {})
    usual = 256 << 20
    return {**made, **({"output": node.output_bytes} if node.output_bytes != usual else {})}


def _size(count: int) -> str:
    """Bytes as they are written in a workflow: `512Mi`, else the number."""
    for power, unit in ((40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if count and count % (1 << power) == 0:
            return f"{count >> power}{unit}"
    return f"{count:,} bytes"


def _secrets(node: Node) -> Iterator[tuple[str, str, str]]:
    names = [f"${name}" for name in node.secrets]
    names += [f"the file ${name}_FILE" for name in node.secret_files]
    if names:
        yield "secrets", ", ".join(names), "node"


# ---------------------------------------------------------------- text


def permissions_text(plan: Plan, *, width: int | None, look: Look = PLAIN) -> str:
    """What each node may do, for a person. With a `width` lines are folded to it and huge groups only counted."""
    made = groups(plan)
    count = len(plan.ids) - len(plan.removed)
    told = f"{plural(count, 'node')}, {plural(len(made), 'set')} of permissions"
    lines = folded("", [clean(plan.workflow.name), "", *told.split(" ")], width)
    for group in made:
        lines += ["", *_names(group, width, look)]
        for key, text, why in group.rights:
            words = clean(f"{text} ({why})" if why else text).split(" ")
            lines += folded(f"  {clean(key).ljust(_COLUMN)} ", words, width)
    return "\n".join(lines) + "\n"


def _names(group: Group, width: int | None, look: Look) -> list[str]:
    shown = group.subjects if width is None else group.subjects[:_NAMES]
    names = [clean(s.label) for s in shown]
    if len(shown) < len(group.subjects):
        names.append(f"and {len(group.subjects) - len(shown):,} more")
    words = [word for part in [*[f"{n}," for n in names[:-1]], names[-1]] for word in part.split(" ")]
    return [look.paint(line, "bold") for line in folded("", words, width)]


# ---------------------------------------------------------------- JSON


def permissions_json(plan: Plan) -> dict[str, Json]:
    """The same for programs: `{version, workflow, nodes: [{id, isolation, paths, network, …, why}]}`."""
    return {
        "version": 1,
        "workflow": plan.workflow.name,
        "file": plan.workflow.file,
        "revision": plan.revision,
        "nodes": [_node_json(plan.workflow, s) for s in subjects(plan)],
    }


def _node_json(flow: Workflow, subject: Subject) -> dict[str, Json]:
    node = subject.node
    head: dict[str, Json] = {"id": node.id, "place": subject.place or "node", "kind": node.kind}
    if node.review is not None:
        return head
    got = held_of(flow, node)
    amounts: dict[str, Json] = dict(ceilings(node))
    variables: list[Json] = list(node.secrets)
    files: list[Json] = list(node.secret_files)
    return {
        **head,
        "isolation": got.isolation,
        "confined": got.confined,
        **_effective_json(got),
        "docker": _docker_json(docker_of(flow, node)) if got.isolation == "container" else None,
        "ceilings": amounts,
        "secrets": {"variables": variables, "files": files},
        **_agent_json(flow, node),
        "why": {key: why for key, _, why in _rights(flow, subject)},
    }


def _agent_json(flow: Workflow, node: Node) -> dict[str, Json]:
    made: dict[str, Json] = {}
    for agent, which in _agents(node):
        made["replanner" if which else "agent"] = {
            "offered": list(permitted_offer(agent, held_of(flow, node).tools)),
            "models": list(asked_models(flow, node, agent)),
            "skills": list(agent.skills),
            "mcp": list(agent.mcp),
        }
    return made


def _effective_json(got: Effective) -> dict[str, Json]:
    paths: Json = None
    if got.paths is not None:
        paths = {
            "read": _list(got.paths.read),
            "write": _list(got.paths.write),
            "deny": _list(got.paths.deny),
        }
    return {
        "paths": paths,
        "network": _list(got.network) if isinstance(got.network, tuple) else got.network,
        "tools": _list(got.tools),
        "models": _list(got.models),
        "cost_budget_usd": None if got.cost_budget is None else got.cost_budget / 1e9,
    }


def _list(items: tuple[str, ...] | None) -> Json:
    return None if items is None else [*items]


def _docker_json(docker: Docker) -> Json:
    return {"image": docker.image, "pull": docker.pull, "user": docker.user}

"""What the agents of a session need, checked before anything starts: who answers, what it costs, where skills are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dagrun.agent.fake import load
from dagrun.agent.installed import litellm_folder
from dagrun.agent.keys import key_values, missing
from dagrun.agent.router import route
from dagrun.core.agents import held_of, tiers_of, wish_of
from dagrun.core.state import RunState
from dagrun.core.workflow import Fault, Node, Provider, Workflow
from dagrun.engine.agentbegin import known_prices
from dagrun.engine.providers import FakeSource, Kit, LiveSource, Source
from dagrun.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from dagrun.agent.messages import Message
    from dagrun.core.names import NodeId
    from dagrun.engine.replaying import Replayer
    from dagrun.store.rundir import RunDir


def agent_nodes(workflow: Workflow, nodes: Iterable[Node] | None = None) -> Iterator[Node]:
    """The agents among some nodes (by default all of the plan), templates, fallbacks and replanners."""
    for node in (*(workflow.nodes.values() if nodes is None else nodes), *workflow.templates.values()):
        yield from _agents_of(node)


def _agents_of(node: Node) -> Iterator[Node]:
    if node.agent is not None:
        yield node
    wanted = node.on_failure
    if wanted is None:
        return
    if wanted.replanner is not None:
        yield replace(node, id=f"{node.id}-replanner", agent=wanted.replanner, run=(), on_failure=None)
    if wanted.fallback_node is not None:
        yield from _agents_of(replace(wanted.fallback_node, id=wanted.fallback_node.id or f"{node.id}-fallback"))


def as_provided(workflow: Workflow, kind: str) -> Workflow:
    """The workflow with the provider that the command line asks for. Raises UsageError where that can't be."""
    provider: Provider = workflow.provider
    match kind:
        case "" | "live":
            return workflow if not kind else replace(workflow, provider=replace(provider, kind="live"))
        case "fake":
            if not provider.rules and any(agent_nodes(workflow)):
                raise UsageError(
                    "--provider fake: the workflow names no rules to answer by",
                    hint="add them: provider: {rules: rules.yaml}",
                )
            return replace(workflow, provider=replace(provider, kind="fake"))
        case _:
            raise UsageError(f"--provider {kind}: there is no such provider", hint="write live or fake")


def check_agents(workflow: Workflow, nodes: Iterable[Node], environ: Mapping[str, str]) -> None:
    """Refuse a run whose agents can't be asked here. Raises EnvironmentFault with all that is missing."""
    provider = workflow.provider
    mine = list(agent_nodes(workflow, nodes))
    if not mine or provider.kind == "fake":
        return
    if litellm_folder() is None:
        raise EnvironmentFault(
            "this workflow asks models, and litellm is not installed, so nothing was started",
            hint="pip install 'dagrun[llm]'",
        )
    lacking: dict[str, list[str]] = {}
    for node in mine:
        for model, variables in missing(_models(workflow, node), environ, provider.base_url):
            lacking.setdefault(" and ".join(variables), []).append(f"{node.id} ({model})")
    if lacking:
        lines = [f"{name} is not set, for {', '.join(dict.fromkeys(who))}" for name, who in lacking.items()]
        first = next(iter(lacking)).split(" and ")[0]
        raise EnvironmentFault(
            "\n  ".join(["keys of models are missing, so nothing was started", *lines]),
            hint=f"export {first}=…" + (", or try it without a key: --provider fake" if provider.rules else ""),
        )


def patch_faults(state: RunState, nodes: Mapping[str, Node], environ: Mapping[str, str]) -> list[Fault]:
    """Why agents among the nodes that a patch brings to a run, or changes, would fail at their start."""
    from dagrun.agent import checks

    base = _base(state.plan.workflow, state.created.project)
    known = known_prices(state)
    return checks.patch_faults(state.plan.workflow, nodes, base, environ.get("HOME", ""), known=known)


def _base(workflow: Workflow, project: str) -> str:
    """The folder that what a workflow names is relative to."""
    file = "" if workflow.file == "<stdin>" else workflow.file
    return os.path.dirname(os.path.normpath(os.path.join(project, file))) if file else project


def _models(workflow: Workflow, node: Node) -> tuple[str, ...]:
    assert node.agent is not None
    tiers = tiers_of(workflow, fake=False)
    return route(wish_of(workflow, node.agent, fake=False), tiers, held_of(workflow, node).models).models


def make_kit(
    state: RunState,
    run: RunDir,
    project: str,
    environ: Mapping[str, str],
    *,
    exempt: Callable[[int], None] | None,
    replay: Replayer | None = None,
) -> Kit:
    """The kit of a session; the broker of a live provider starts at its first call, with a `replay` there is none."""
    workflow = state.plan.workflow
    provider = workflow.provider
    source = _source(provider, environ, exempt) if replay is None else replay
    return Kit(
        source=source,
        prices=known_prices(state) if replay is None else replay.prices(),
        base=_base(workflow, project),
        home=environ.get("HOME", ""),
        secret=key_values(environ),
        fake=provider.kind == "fake",
        groups=_groups(state, run) if replay is None else {},
    )


def _groups(state: RunState, run: RunDir) -> dict[str, dict[NodeId, tuple[Message, ...]]]:
    """What the groups of a run said before this engine took it up."""
    if state.engines < 2 or not any(node.group for node in state.plan.nodes):
        return {}
    from dagrun.engine.auditing import groups_of
    from dagrun.engine.recording import read_run

    return groups_of(read_run(run))


def _source(provider: Provider, environ: Mapping[str, str], exempt: Callable[[int], None] | None) -> Source:
    if provider.kind == "fake":
        return FakeSource(load(provider.rules_text.encode("utf-8", "surrogateescape"), provider.rules))
    from dagrun.agent.live import Live

    return LiveSource(Live(environ=environ, base_url=provider.base_url, exempt=exempt))

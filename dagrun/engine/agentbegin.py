"""From a node with its inputs to the start of an agent's attempt: task, skills, prices, tool worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from dagrun.agent.prices import Price, own_price, price_from_json, resolve
from dagrun.agent.router import route
from dagrun.agent.skills import Skill, find, search_path
from dagrun.agent.worker import worker_argv
from dagrun.core import expression as ex
from dagrun.core.agents import held_of, tiers_of, wish_of
from dagrun.core.names import Json
from dagrun.core.state import RunState
from dagrun.core.workflow import Node, Workflow
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.briefing import begin, task_of
from dagrun.engine.outside import Hashes, kept
from dagrun.engine.providers import Kit
from dagrun.errors import EnvironmentFault, InputError, NotFoundError


def agent_command(
    bench: Workbench,
    state: RunState,
    node: Node,
    *,
    scope: ex.Scope,
    env: dict[str, str],
    own: Mapping[str, str],
    stem: str,
) -> Command:
    """The command of an agent's tool worker, with what the agent begins with.

    `own` are the variables that the node declares: the only ones that a prompt can read. Raises
    EvaluationError for a prompt or a skill that can't be read.
    """
    kit, workflow = bench.agents(), state.plan.workflow
    assert node.agent is not None
    skills = [_skill(kit, name) for name in node.agent.skills]
    hashes = Hashes(scope.hash_files)
    task = task_of(
        workflow,
        node,
        scope=replace(scope, env=own, hash_files=hashes),
        inputs=scope.inputs or {},
        skills=skills,
        earlier=kit.groups.get(node.group) if node.group else None,
        project=bench.told_dir,
        fake=kit.fake,
    )
    _price(kit, workflow, node)
    used: dict[str, Json] = {
        s.name: {"digest": s.digest, "body": bench.context.put(s.body), "tools": _tools(s)} for s in skills
    }
    start = begin(workflow, task, node, prices=kit.prices, provider=kit.source.name, skills=used, fake=kit.fake)
    outside = kept(bench, node, scope.inputs or {}, own, hashes)
    if outside:
        start = replace(start, started={**start.started, "outside": outside})
    env.pop("DAGRUN_PATCH", None)  # a model's patch is an answer that is judged as one, not a file of its tools
    level = held_of(workflow, node).isolation
    argv = worker_argv("python3" if level == "container" else "")
    cwd = ""
    if node.cwd:
        cwd = os.path.join(bench.project, ex.render_text(ex.parse_template(node.cwd), scope))
    return Command(argv, env, cwd=cwd, stem=stem, agent=start)


def _tools(skill: Skill) -> Json:
    return list(skill.allowed_tools) if skill.allowed_tools is not None else None


def _skill(kit: Kit, name: str) -> Skill:
    try:
        return find(name, search_path(kit.base, kit.home))
    except InputError as error:
        text = "; ".join(problem.message for problem in error.problems)
        raise ex.EvaluationError(f"skill `{name}`: {text}") from None
    except NotFoundError as error:
        raise ex.EvaluationError(f"{error.message} ({error.hint})") from None


def _price(kit: Kit, workflow: Workflow, node: Node) -> None:
    """Price the models of a node that the plan did not have when the run began: a patch brought it."""
    assert node.agent is not None
    wish = wish_of(workflow, node.agent, fake=kit.fake)
    wanted = route(wish, tiers_of(workflow, fake=kit.fake), held_of(workflow, node).models).models
    missing = [model for model in wanted if model not in kit.prices]
    if missing:
        kit.prices |= prices_of(workflow, missing, fake=kit.fake)


def prices_of(workflow: Workflow, models: list[str], *, fake: bool) -> dict[str, Price]:
    """The prices of some models; with the fake provider one without a price of its own costs nothing.

    Raises EvaluationError naming each that has none.
    """
    own = workflow.provider.prices
    if fake:
        said: dict[str, Mapping[str, Json]] = {model: own.get(model, {"free": True}) for model in models}
        found = {model: own_price(model, price) for model, price in said.items()}
        return {model: price for model, price in found.items() if isinstance(price, Price)}
    try:
        priced = resolve(models, own)
    except EnvironmentFault as error:
        raise ex.EvaluationError(f"{error.message} ({error.hint})") from None
    if priced.refused:
        raise ex.EvaluationError("; ".join(f"{bad.message} ({bad.hint})" for bad in priced.refused))
    return dict(priced.prices)


def known_prices(state: RunState) -> dict[str, Price]:
    """The prices that a run began with: they hold as long as it lasts."""
    found: dict[str, Price] = {}
    for attempts in state.attempts:
        for attempt in attempts:
            for data in _list(attempt.agent.get("prices")):
                if isinstance(data, dict):
                    price = price_from_json(data)
                    found.setdefault(price.model, price)
    return found


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []

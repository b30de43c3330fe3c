"""What is wrong with the agents of a workflow that its text alone does not tell: skills, prices, rules.

For `validate`, `plan` and `execute`, after the workflow itself was checked. Looks at the machine (skill
folders, litellm's price table as a file) and asks nobody; where the table is not there, that is said.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import NamedTuple

from dagrun.agent.installed import vendors
from dagrun.agent.keys import KEYS, WAYS
from dagrun.agent.prices import Price, PriceTable, Unpriced, load_table, own_price
from dagrun.agent.router import Route, route
from dagrun.agent.skills import Found, Place, Skill, discover, find, search_path
from dagrun.core.agents import agents_of, held_of, offer_of, permitted_offer, tiers_of, wish_of
from dagrun.core.lattice import meet
from dagrun.core.permissions import Permissions
from dagrun.core.plan import near
from dagrun.core.workflow import Agent, Fault, Node, Provider, Workflow
from dagrun.errors import EnvironmentFault, InputError, NotFoundError, Problem

Path = tuple[str | int, ...]
_PROVIDER_KEYS = frozenset(name for names in KEYS.values() for name in names) | frozenset(
    name for ways in WAYS.values() for way in ways for name in way
)


class Asker(NamedTuple):
    """An agent of a workflow: where it stands, and the node whose permissions it has.

    `name` is for people; `own`: it is the node's own and not the one that repairs it.
    """

    path: Path
    agent: Agent
    node: Node
    name: str
    own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The prices of all models that a workflow may ask. `unknown` says why some can't be told here."""

    prices: Mapping[str, Price] = field(default_factory=dict)
    refused: Mapping[str, Unpriced] = field(default_factory=dict)
    unknown: str = ""
    hint: str = ""


def askers(workflow: Workflow) -> Iterator[Asker]:
    """Every agent of a workflow: of nodes, templates and inline fallbacks, and those that repair them."""
    for key, group in (("nodes", workflow.nodes), ("templates", workflow.templates)):
        for name, node in group.items():
            for path, agent, holder in agents_of(node):
                own = path[-1] == "agent"
                said = name + "-fallback" * path.count("fallback")
                yield Asker((key, name, *path), agent, holder, said if own else f"{said}-replanner", own)


def route_of(workflow: Workflow, node: Node, agent: Agent, *, fake: bool | None = None) -> Route:
    """The models that an agent may be routed to, in order."""
    tiers = tiers_of(workflow, fake=fake)
    return route(wish_of(workflow, agent, fake=fake), tiers, held_of(workflow, node).models)


def is_fake(workflow: Workflow, provider: str = "") -> bool:
    """Whether rules answer: as `provider` (live, fake) says, else the workflow."""
    return (provider or workflow.provider.kind) == "fake"


def priced(workflow: Workflow, *, fake: bool, table: Callable[[], PriceTable] = load_table) -> Prices:
    """The prices of all models that a workflow may ask; with the fake provider what has no price is free.

    litellm's table is read only where a model needs it; without one nothing is refused, but `unknown`.
    """
    found: dict[str, Price] = {}
    refused: dict[str, Unpriced] = {}
    own = workflow.provider.prices
    read: PriceTable | None = None
    unknown, hint = "", ""
    wanted = [m for a in askers(workflow) for m in route_of(workflow, a.node, a.agent, fake=fake).models]
    for model in dict.fromkeys(wanted):
        got: Price | Unpriced | None = None
        if model in own or fake:
            got = own_price(model, own.get(model, {"free": True}))
        elif not unknown:
            try:
                read = read or table()
                got = read.price(model)
            except EnvironmentFault as error:
                unknown, hint = error.message, error.hint
        if isinstance(got, Price):
            found[model] = got
        elif got is not None:
            refused[model] = got
    return Prices(prices=found, refused=refused, unknown=unknown, hint=hint)


def problems(
    workflow: Workflow,
    base: str,
    home: str,
    *,
    provider: str = "",
    prices: bool = True,
    table: Callable[[], PriceTable] = load_table,
) -> list[Problem]:
    """Errors and warnings of a workflow's agents, in the order of its file.

    `base` is the folder of the workflow file, where its skills lie, `home` the user's own. `provider` is
    what was asked for instead of the workflow's (live, fake). Without `prices` no model needs one.
    """
    fake = is_fake(workflow, provider)
    found: list[Fault] = []
    others: list[Problem] = []
    mine = list(askers(workflow))
    if fake or workflow.provider.rules_text:
        others += _rules(workflow, base, needed=fake and bool(mine))
    if mine:
        found += _unrouted(workflow, mine, fake=fake)
        found += _unused_prices(workflow, mine)
        if prices and not fake:
            found += _price_faults(workflow, mine, priced(workflow, fake=False, table=table))
        found += _Skills(workflow, search_path(base, home), others).faults(mine)
        found += [fault for asker in mine for fault in _key_faults(workflow, asker)]
    return [*_placed(workflow, base, list(dict.fromkeys(found))), *dict.fromkeys(others)]


def patch_faults(
    workflow: Workflow,
    nodes: Mapping[str, Node],
    base: str,
    home: str,
    *,
    known: Collection[str] = (),
    table: Callable[[], PriceTable] = load_table,
) -> list[Fault]:
    """Why agents that a patch brings or changes would fail at their start: nobody to ask, no price, no skill.

    `known` are the models that the run has priced already: those prices hold as long as it lasts.
    """
    made = replace(workflow, nodes=dict(nodes), templates={})
    mine, fake = list(askers(made)), is_fake(workflow)
    found = list(_unrouted(made, mine, fake=fake))
    if mine and not fake:
        prices = priced(made, fake=False, table=table)
        refused = {model: why for model, why in prices.refused.items() if model not in known}
        found += _price_faults(made, mine, replace(prices, refused=refused))
    found += _Skills(made, search_path(base, home), []).faults(mine)
    # where it stands in the graph is no place in the patch: what is wrong names its node
    where = {asker.path: asker.name for asker in mine}
    return [
        fault._replace(path=(), message=f"{_name_of(fault.path, where)}{fault.message}")
        for fault in dict.fromkeys(found)
        if fault.severity == "error"
    ]


def _name_of(path: Path, where: Mapping[Path, str]) -> str:
    name = next((name for place, name in where.items() if path[: len(place)] == place), "")
    return f"agent `{name}`: " if name else ""


def _placed(workflow: Workflow, base: str, faults: list[Fault]) -> list[Problem]:
    """Faults at their places, where the file still says what was read; a checked workflow has none itself."""
    from dagrun.flowfile.source import parse

    if not faults:
        return []
    try:
        with open(os.path.join(base, os.path.basename(workflow.file)), "rb") as file:
            data = file.read()
        if sha256(data).hexdigest() == workflow.digest:
            tree = parse(data, workflow.file)
            return sorted((tree.problem(f) for f in faults), key=lambda p: (p.line, p.column))
    except (OSError, InputError):
        pass  # from stdin, or gone meanwhile: what is wrong is said without its place
    return [
        Problem(code=f.code, message=f.message, file=workflow.file, hint=f.hint, severity=f.severity) for f in faults
    ]


# ---------------------------------------------------------------- models and prices


def _unrouted(workflow: Workflow, mine: list[Asker], *, fake: bool) -> Iterator[Fault]:
    """Agents that nobody would answer: only with another provider than the one the workflow was checked for."""
    for asker in mine:
        found = route_of(workflow, asker.node, asker.agent, fake=fake)
        if not found.models and not wish_of(workflow, asker.agent, fake=fake):
            hint = "add model: VENDOR/NAME, or at the top models: {main: [anthropic/claude-sonnet-4-5]}"
            yield Fault(asker.path, "no-model", f"nothing says which model `{asker.name}` asks", hint, on_key=True)


def _price_faults(workflow: Workflow, mine: list[Asker], known: Prices) -> Iterator[Fault]:
    """Models that have no price: a cap would be a fiction. And those that nobody can call, priced or not."""
    if known.unknown:
        path: Path = ("provider",) if workflow.provider != Provider() else mine[0].path
        message = f"what models cost can't be checked here: {known.unknown}"
        yield Fault(path, "no-prices", message, known.hint, on_key=True, severity="warning")
    told: set[Path] = set()
    reachable = frozenset() if workflow.provider.base_url else vendors()
    for asker in mine:
        wish = wish_of(workflow, asker.agent, fake=False)
        for model in route_of(workflow, asker.node, asker.agent, fake=False).models:
            stranger = _stranger(model, reachable)
            bad = known.refused.get(model)
            if not stranger and bad is None:
                continue
            place = (*asker.path, "model") if asker.agent.model else asker.path
            if wish in workflow.models:
                place = ("models", wish, workflow.models[wish].index(model))
            if place not in told:
                told.add(place)
                if stranger:
                    yield Fault(place, "unknown-vendor", *stranger)
                elif bad is not None:
                    yield Fault(place, "no-price", bad.message, bad.hint)


def _unused_prices(workflow: Workflow, mine: list[Asker]) -> Iterator[Fault]:
    """Prices of models that nobody is going to ask: with a wrong name a cap is reckoned by other prices."""
    known = dict.fromkeys(model for tier in workflow.models.values() for model in tier)
    known |= dict.fromkeys(a.agent.model for a in mine if a.agent.model not in workflow.models)
    known |= dict.fromkeys(model for tier in tiers_of(workflow).values() for model in tier)
    for model in workflow.provider.prices:
        if model not in known:
            message = f"no agent and no tier asks `{model}`, which has a price here"
            hint = near(model, known) or "remove it, or write the name as it stands in `models`"
            yield Fault(("provider", "prices", model), "unused-price", message, hint, on_key=True, severity="warning")


def _stranger(model: str, reachable: frozenset[str]) -> tuple[str, str] | None:
    """(what is wrong, what to write) with a model of a vendor that nobody can call. No vendors: nobody knows."""
    from difflib import get_close_matches

    vendor = model.partition("/")[0]
    if not reachable or vendor in reachable:
        return None
    meant = get_close_matches(vendor, reachable, n=1, cutoff=0.75)
    hint = f"did you mean `{meant[0]}`?" if meant else "write one that litellm knows: anthropic, openai, ollama, …"
    hint += " Or is it a model of your own endpoint? provider: {base_url: …}"
    return f"`{model}`: there is no vendor `{vendor}`", hint


# ---------------------------------------------------------------- rules


def _rules(workflow: Workflow, base: str, *, needed: bool) -> list[Problem]:
    """What is wrong with the fake provider's answers, at its places in their file."""
    from dagrun.agent.fake import load

    provider = workflow.provider
    if not provider.rules:
        if not needed:
            return []
        hint = "add provider: {kind: fake, rules: FILE}, a list of answers by node, turn and pattern"
        return [Problem(code="no-rules", message="the fake provider has no answers", file=workflow.file, hint=hint)]
    shown = os.path.join(os.path.dirname(workflow.file), provider.rules)
    try:
        load(provider.rules_text.encode("utf-8", "surrogateescape"), shown)
    except InputError as error:
        return list(error.problems)
    return []


# ---------------------------------------------------------------- keys


def _key_faults(workflow: Workflow, asker: Asker) -> Iterator[Fault]:
    """A provider's key that an author hands to the tools of an agent: they need none, and it can be told to a model."""
    if not asker.own:
        return
    for name in (*asker.node.secrets, *asker.node.secret_files):
        declared = workflow.secrets.get(name)
        source = declared.env if declared is not None else ""
        if name in _PROVIDER_KEYS or source in _PROVIDER_KEYS:
            message = f"`{asker.name}` hands the key of a model provider to the agent's tools: `{name}`"
            hint = "remove it: model calls are made outside, and need no secret here"
            path = (*asker.path[:-1], "secrets")
            yield Fault(path, "provider-key", message, hint, on_key=True, severity="warning")


# ---------------------------------------------------------------- skills


class _Skills:
    """Finds the skills that agents name; what is wrong in a skill's own file goes to `others`."""

    def __init__(self, workflow: Workflow, places: tuple[Place, ...], others: list[Problem]) -> None:
        self._workflow = workflow
        self._places = places
        self._others = others
        self._known: dict[str, Skill | Fault] = {}
        self._found: Found | None = None

    def faults(self, mine: list[Asker]) -> Iterator[Fault]:
        """What is wrong with the skills of some agents."""
        for asker in mine:
            good: list[tuple[int, Skill]] = []
            for k, name in enumerate(asker.agent.skills):
                place = (*asker.path, "skills", k)
                first = name not in self._known
                got = self._skill(name)
                if isinstance(got, Fault):
                    yield got._replace(path=place)
                    continue
                good.append((k, got))
                if first:
                    yield from self._shadowed(got, place)
            yield from self._left(asker, good)

    def _skill(self, name: str) -> Skill | Fault:
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    def _read(self, name: str) -> Skill | Fault:
        try:
            got = find(name, self._places)
        except NotFoundError as error:
            return Fault((), "unknown-skill", error.message, error.hint)
        except InputError as error:
            first, *rest = error.problems
            self._others += error.problems if rest else ()
            where = f"{first.file}:{first.line}" if first.line else first.file
            return Fault((), "bad-skill", f"the skill `{name}` can't be read: {first.message} ({where})", first.hint)
        self._others += got.warnings
        return got

    def _shadowed(self, skill: Skill, place: Path) -> Iterator[Fault]:
        if self._found is None:
            self._found = discover(self._places)
        for other in self._found.shadowed:
            if other.name == skill.name and other.digest != skill.digest:  # copies for several clients are common
                message = f"the skill `{skill.name}` of {skill.path} hides the one of {other.path}"
                yield Fault(place, "shadowed", message, "rename one of them", severity="warning")

    def _left(self, asker: Asker, skills: list[tuple[int, Skill]]) -> Iterator[Fault]:
        """Skills only ever narrow what an agent may use: where nothing is left, that is hardly what was meant."""
        left = permitted_offer(asker.agent, held_of(self._workflow, asker.node).tools)
        for k, skill in skills:
            if skill.allowed_tools is None or not left:
                continue
            before = left
            left = meet(Permissions(tools=left), Permissions(tools=skill.allowed_tools)).tools or ()
            if not left:
                offered = asker.agent.tools is not None or asker.agent.mcp
                message = (
                    f"the skill `{skill.name}` allows only {_listed(skill.allowed_tools)}: nothing is left of "
                    f"{_listed(before)}, which `{asker.name}` is offered"
                )
                hint = f"offer what it needs: tools: [{', '.join(offer_of(asker.agent))}, …]"
                if skill.allowed_tools:
                    hint = f"offer what it needs: tools: [{', '.join(map(_quoted, skill.allowed_tools))}]"
                place = (*asker.path, "skills", k)
                yield Fault(place, "no-tools", message, hint, severity="error" if offered else "warning")


def _quoted(text: str) -> str:
    return f'"{text}"' if "(" in text or "*" in text else text


def _listed(texts: tuple[str, ...]) -> str:
    return ", ".join(f"`{text}`" for text in texts[:8]) + (" …" if len(texts) > 8 else "") if texts else "nothing"

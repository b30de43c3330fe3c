"""What is wrong with the agents of a workflow: what they are told, offered, and may ask.

Shapes were checked where the file was read; prices, skills and rules are not the core's to know.
"""

from __future__ import annotations

from collections.abc import Iterator

from dagrun.core.agents import agents_of, held_of, offer_of, permitted_offer, tiers_of
from dagrun.core.grants import Host, call_of, common_calls, common_hosts, common_models, host_of
from dagrun.core.names import NodeId
from dagrun.core.permissions import Effective, Permissions
from dagrun.core.plan import near
from dagrun.core.workflow import Agent, Fault, Node, Workflow

Place = tuple[str | int, ...]
_SHOWN = 8


def agent_faults(workflow: Workflow, node: Node, at: Place) -> Iterator[Fault]:
    """Everything that the agent of a node, and the one that repairs it, has against its workflow.

    Agents in fallbacks that stand in the node are not looked at: those are nodes of their own.
    """
    for path, agent, holder in agents_of(node):
        if holder is not node:
            return
        place = (*at, *path)
        yield from _system_faults(agent, place)
        yield from _model_faults(workflow, node, agent, place)
        yield from _tool_faults(workflow, node, agent, place)
        yield from _server_faults(workflow, node, agent, place)
    if node.permissions is not None:
        yield from _no_tiers(workflow, node.permissions, (*at, "permissions"))
    if node.group:
        yield from _group_faults(workflow, node, at)


def workflow_faults(workflow: Workflow) -> Iterator[Fault]:
    """What is wrong with the servers and models that a workflow declares, whether an agent uses them or not."""
    if workflow.permissions is not None:
        yield from _no_tiers(workflow, workflow.permissions, ("permissions",))
    for name, server in workflow.mcp_servers.items():
        at: Place = ("mcp_servers", name)
        places: list[tuple[Place, str]] = [((*at, "secrets", k), secret) for k, secret in enumerate(server.secrets)]
        places += [((*at, "headers", header), secret) for header, secret in server.headers.items()]
        for place, secret in places:
            if secret not in workflow.secrets:
                message = f"the server `{name}` names secret `{secret}`, which the workflow does not declare"
                hint = near(secret, workflow.secrets)
                hint = hint or f"declare it at the top: secrets: {{{secret}: {{env: {secret}}}}}"
                yield Fault(place, "unknown-secret", message, hint)


def _system_faults(agent: Agent, at: Place) -> Iterator[Fault]:
    found = agent.system.find("${{")
    if found >= 0:
        message = "an expression can't stand in `system`: data never enters what a model is told before all else"
        hint = "write it in `prompt`: data is shown below it, marked as such"
        yield Fault((*at, "system"), "expression-in-system", message, hint, offset=found, length=3)


# ---------------------------------------------------------------- models


def _model_faults(workflow: Workflow, node: Node, agent: Agent, at: Place) -> Iterator[Fault]:
    tiers, wish = tiers_of(workflow), agent.model
    place: Place = (*at, "model")
    if not wish:
        if tiers:
            wish = next(iter(tiers))
        else:
            hint = "add model: VENDOR/NAME, or at the top models: {main: [anthropic/claude-sonnet-4-5]}"
            yield Fault(at, "no-model", f"nothing says which model `{node.id}` asks", hint, on_key=True)
            return
        place = at
    if wish not in tiers and "/" not in wish:
        hint = near(wish, tiers) or f"declare it at the top: models: {{{wish}: [vendor/model]}}"
        yield Fault(place, "unknown-tier", f"there is no tier `{wish}`", hint)
        return
    if wish in tiers and wish not in workflow.models and workflow.models:
        return  # a name that a broken part may have declared
    allowed = held_of(workflow, node).models
    if allowed is None:
        return
    wanted = tiers.get(wish, ()) if wish in tiers else (wish,)
    left = [m for m in wanted if _permitted(m, wish, tiers, allowed)]
    if wanted and not left:
        said = f"`{wish}`" if wish not in tiers or wish in allowed else f"the tier `{wish}`"
        message = f"`{node.id}` asks for {said}, but its permissions allow only {_listed(allowed)}"
        hint = "write one of those, or widen permissions.models" if allowed else "widen permissions.models"
        yield Fault(place, "beyond-permissions", message, hint, on_key=place == at)


def _no_tiers(workflow: Workflow, declared: Permissions, at: Place) -> Iterator[Fault]:
    """Models that are permitted by a name that nothing has: one without a vendor is a tier."""
    for k, name in enumerate(declared.models or ()):
        if workflow.models and "/" not in name and name != "*" and name not in workflow.models:
            hint = near(name, workflow.models) or f"there are {', '.join(workflow.models)}, VENDOR/MODEL and VENDOR/*"
            yield Fault((*at, "models", k), "unknown-tier", f"there is no tier `{name}`", hint, severity="warning")


def _permitted(model: str, wish: str, tiers: object, allowed: tuple[str, ...]) -> bool:
    known = tiers if isinstance(tiers, dict) else {}
    return any(model in known.get(p, ()) or common_models(p, model) == model or p == wish for p in allowed)


def _listed(texts: tuple[str, ...]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(f"`{text}`" for text in texts[:_SHOWN]) + more if texts else "none"


# ---------------------------------------------------------------- tools


def _tool_faults(workflow: Workflow, node: Node, agent: Agent, at: Place) -> Iterator[Fault]:
    ceiling = held_of(workflow, node).tools
    beyond = False
    for k, text in enumerate(agent.tools or ()):
        place: Place = (*at, "tools", k)
        if ceiling is not None and not any(_holds(wide, text) for wide in ceiling):
            beyond = True
            message = f"`{node.id}` offers `{text}`, but its permissions allow only {_listed(ceiling)}"
            hint = "offer less, or widen permissions.tools" + (" at the top" if _from_run(workflow, node) else "")
            yield Fault(place, "beyond-permissions", message, hint)
        tool = call_of(text).tool
        server = tool.split("__")[1] if tool.startswith("mcp__") else ""
        if server and server not in agent.mcp:
            yield _unnamed_server(workflow, agent, text, server, place)
    if agent.tools and not beyond and not permitted_offer(agent, ceiling):
        message = f"none of the tools that `{node.id}` is offered is permitted"
        yield Fault((*at, "tools"), "no-tools", message, "widen permissions.tools, or write tools: []", on_key=True)
    if not beyond:
        yield from _writes_nowhere(workflow, node, agent, at)


def _unnamed_server(workflow: Workflow, agent: Agent, text: str, server: str, place: Place) -> Fault:
    message = f"`{text}` is a tool of the server `{server}`, which this agent does not name"
    hint = near(server, agent.mcp) if agent.mcp else ""
    named = ", ".join([*agent.mcp, server])
    return Fault(place, "unknown-server", message, hint or f"add it to the agent: mcp: [{named}]")


def _from_run(workflow: Workflow, node: Node) -> bool:
    return node.permissions is None or node.permissions.tools is None


def _holds(wide: str, narrow: str) -> bool:
    call = call_of(narrow)
    return common_calls(call_of(wide), call) == call


def _writes_nowhere(workflow: Workflow, node: Node, agent: Agent, at: Place) -> Iterator[Fault]:
    """A tool that writes, where nothing may be written."""
    held = held_of(workflow, node)
    for k, text in enumerate(agent.tools or ()):
        if call_of(text).tool in ("Write", "Edit") and held.paths is not None and not held.paths.write:
            message = f"`{node.id}` is offered `{text}`, but may write nothing"
            hint = "add to it permissions: {paths: {write: [out]}}"
            if workflow.permissions is not None and workflow.permissions.paths is not None:
                hint += ", as far as permissions.paths at the top allow"
            yield Fault((*at, "tools", k), "writes-nowhere", message, hint, severity="warning")
            return


# ---------------------------------------------------------------- MCP servers


def _server_faults(workflow: Workflow, node: Node, agent: Agent, at: Place) -> Iterator[Fault]:
    held = held_of(workflow, node)
    offered = [call_of(text).tool for text in offer_of(agent)]
    for k, name in enumerate(agent.mcp):
        place: Place = (*at, "mcp", k)
        if name not in workflow.mcp_servers:
            hint = near(name, workflow.mcp_servers)
            hint = hint or f"declare it at the top: mcp_servers: {{{name}: {{command: […]}}}}"
            yield Fault(place, "unknown-server", f"there is no MCP server `{name}`", hint)
            continue
        if not any(tool.startswith(f"mcp__{name}__") for tool in offered):
            message = f"`{node.id}` is offered no tool of the server `{name}`"
            hint = f"add mcp__{name}__* to `tools`, or the tools that it needs"
            yield Fault(place, "no-tools", message, hint, severity="warning")
        server = workflow.mcp_servers.get(name)
        if server is not None and server.url and held.network is not None:
            yield from _host_faults(node.id, name, server.url, held, place)


def _host_faults(node: NodeId, name: str, url: str, held: Effective, place: Place) -> Iterator[Fault]:
    """A server that is called over the network needs its host there."""
    host = _host_in(url)
    allowed = () if isinstance(held.network, str) else held.network or ()
    if host is None or held.network == "any" or any(common_hosts(host_of(h), host) == host for h in allowed):
        return
    message = f"`{node}` calls the server `{name}` at {host}, but its network is {_listed(tuple(allowed))}"
    yield Fault(place, "beyond-permissions", message, f'add permissions: {{network: ["{host}"]}} to it')


def _host_in(url: str) -> Host | None:
    scheme, _, rest = url.partition("://")
    where = rest.partition("/")[0].partition("?")[0].lower()
    try:
        found = host_of(where)
    except ValueError:
        return None
    return found if found.port else Host(found.name, 443 if scheme == "https" else 80, found.wild)


# ---------------------------------------------------------------- groups


def _group_faults(workflow: Workflow, node: Node, at: Place) -> Iterator[Fault]:
    """A conversation is shared only where nothing is to be kept apart."""
    level = held_of(workflow, node).isolation
    if node.agent is not None and level != "none":
        message = f"`{node.id}` shares the conversation `{node.group}`, but runs at isolation `{level}`"
        hint = "write isolation: none, or remove the group: elsewhere each agent has a conversation of its own"
        yield Fault((*at, "group"), "not-shared", message, hint, on_key=True)

"""From the core's types back to what people write: a node or workflow as a document of its keys.

The inverse of `convert.py`: a document that is read again gives an equal node. Only what differs
from the default is written; `defaults:` were folded into the nodes long ago. Files that a workflow
named stand in the document themselves, but for patches of `on_failure`, which keep their name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import cast

from dagrun.core.agents import TEXT_OUTPUT, default_level
from dagrun.core.names import DEFAULT_GRACE_S, DEFAULT_TIMEOUT_S, Json, Schedule, parse_duration
from dagrun.core.permissions import Paths, Permissions
from dagrun.core.workflow import (
    NO_RETRY,
    Agent,
    Docker,
    Input,
    Limits,
    McpServer,
    Node,
    OnFailure,
    Output,
    Param,
    Provider,
    Retry,
    Review,
    Secret,
    Workflow,
)
from dagrun.flowfile.emit import dump_yaml

__all__ = ["dump_yaml", "named_patches", "node_to_document", "workflow_to_document"]

_PLAIN = Node(id="_")
# as JSON, since lists are written
_PLAIN_AGENT: dict[str, Json] = {
    f.name: [] if f.default == () else cast(Json, f.default) for f in fields(Agent)
}
_PLAIN_RETRY = Retry()
_PLAIN_LIMITS = Limits()


def node_to_document(node: Node, *, long: bool = False) -> dict[str, Json]:
    """A node as it is written in a file, without its id; `long` avoids all short forms, for merging."""
    made: dict[str, Json] = {}
    _put(made, "title", node.title, "")
    if node.review is not None:
        made["review"] = _review(node.review, long)
    elif node.agent is not None:
        made["agent"] = agent_to_document(node.agent, long=long)
    elif node.run:
        made["run"] = node.run if isinstance(node.run, str) else list(node.run)
    _put(made, "shell", node.shell, "sh")
    _put(made, "cwd", node.cwd, "")
    _put(made, "needs", list(node.needs), [])
    _put(made, "inputs", {name: _input(item, long) for name, item in node.inputs.items()}, {})
    _put(made, "env", dict(node.env), {})
    _put(made, "pass_env", list(node.pass_env), [])
    _put(made, "secrets", [*node.secrets, *({name: "file"} for name in node.secret_files)], [])
    _put(made, "if", node.condition, "")
    _put(made, "outputs", _outputs(node), {})
    _put(made, "output_schema", node.output_schema, None)
    _put(made, "artifacts", list(node.artifacts), [])
    if node.retry != NO_RETRY:
        made["retry"] = _retry(node.retry)
    _put(made, "timeout", duration(node.timeout_s), duration(DEFAULT_TIMEOUT_S))
    _put(made, "grace", duration(node.grace_s), duration(DEFAULT_GRACE_S))
    _put(made, "idempotent", node.idempotent, True)
    _put(made, "continue_on_error", node.continue_on_error, False)
    _put(made, "isolation", node.isolation, _usual_level(node))
    _put(made, "group", node.group, "")
    if node.permissions is not None:
        made["permissions"] = permissions_to_document(node.permissions)
    if node.docker is not None:
        made["docker"] = _docker(node.docker, long)
    _put(made, "resources", _resources(node), {})
    _put(made, "estimate", duration(node.estimate_s), duration(0.0))
    if node.on_failure is not None:
        made["on_failure"] = _on_failure(node.on_failure, long)
    return made


def workflow_to_document(workflow: Workflow, *, long: bool = False) -> dict[str, Json]:
    """A workflow as its file could be written."""
    made: dict[str, Json] = {"version": 1, "name": workflow.name}
    _put(made, "description", workflow.description, "")
    _put(made, "params", {name: _param(p) for name, p in workflow.params.items()}, {})
    _put(made, "limits", _limits(workflow.limits, long), {})
    _put(made, "schedule", str(workflow.schedule), str(Schedule.WAVES))
    _put(made, "durability", workflow.durability, "default")
    _put(made, "fail_fast", workflow.fail_fast, False)
    if workflow.permissions is not None:
        made["permissions"] = permissions_to_document(workflow.permissions)
    if workflow.docker is not None:
        made["docker"] = _docker(workflow.docker, long)
    _put(made, "secrets", {name: _secret(s) for name, s in workflow.secrets.items()}, {})
    _put(made, "models", {name: list(found) for name, found in workflow.models.items()}, {})
    _put(made, "provider", provider_to_document(workflow.provider), {})
    _put(made, "mcp_servers", {name: _server(s) for name, s in workflow.mcp_servers.items()}, {})
    made["nodes"] = {name: node_to_document(node, long=long) for name, node in workflow.nodes.items()}
    _put(made, "templates", {name: node_to_document(n, long=long) for name, n in workflow.templates.items()}, {})
    _put(made, "outputs", dict(workflow.outputs), {})
    return made


def named_patches(node: Node) -> dict[str, Json]:
    """The patches that a node names in `on_failure`, also in its inline fallbacks: name -> document."""
    found: dict[str, Json] = {}
    while node.on_failure is not None:
        if node.on_failure.replan:
            found[node.on_failure.replan] = node.on_failure.replan_patch
        if node.on_failure.fallback_node is None:
            break
        node = node.on_failure.fallback_node
    return found


def _put(made: dict[str, Json], key: str, value: object, default: object) -> None:
    if value != default:
        made[key] = cast(Json, value)


# ---------------------------------------------------------------- parts


def agent_to_document(agent: Agent, *, long: bool = False) -> Json:
    """An agent as it is written in a file."""
    made: dict[str, Json] = {}
    for key, default in _PLAIN_AGENT.items():
        value = getattr(agent, key)
        _put(made, key, list(value) if isinstance(value, tuple) else value, default)
    return agent.prompt if made.keys() == {"prompt"} and not long else made


def _usual_level(node: Node) -> str:
    """The level that a node has when nothing is said."""
    if node.agent is None:
        return _PLAIN.isolation
    return default_level(node.agent)


def provider_to_document(provider: Provider) -> dict[str, Json]:
    """A provider as it is written in a file; what its rules file holds is left out."""
    made: dict[str, Json] = {}
    _put(made, "kind", provider.kind, "live")
    _put(made, "rules", provider.rules, "")
    _put(made, "base_url", provider.base_url, "")
    _put(made, "prices", {model: _price(said) for model, said in provider.prices.items()}, {})
    _put(made, "budget", provider.budget, "strict")
    _put(made, "classes", _price(provider.classes), {})
    return made


def _price(said: Mapping[str, Json]) -> Json:
    """A price with plain numbers wherever one is read as exactly its text."""
    made: dict[str, Json] = {}
    for key, text in said.items():
        made[key] = text
        for kind in (int, float) if isinstance(text, str) else ():
            with suppress(ValueError):
                if repr(number := kind(str(text))) == text:
                    made[key] = number
                    break
    return made


def _server(server: McpServer) -> Json:
    made: dict[str, Json] = {}
    _put(made, "command", list(server.command), [])
    _put(made, "url", server.url, "")
    _put(made, "env", dict(server.env), {})
    _put(made, "secrets", list(server.secrets), [])
    _put(made, "headers", dict(server.headers), {})
    _put(made, "digest", server.digest, "")
    return made


def _review(review: Review, long: bool) -> Json:
    made: dict[str, Json] = {}
    _put(made, "message", review.message, "")
    if review.timeout_s is not None:
        made["timeout"] = duration(review.timeout_s)
    _put(made, "on_timeout", review.on_timeout, "reject")
    return review.message if made.keys() == {"message"} and not long else made


def _on_failure(wanted: OnFailure, long: bool) -> Json:
    made: dict[str, Json] = {}
    _put(made, "fallback", wanted.fallback, "")
    if wanted.fallback_node is not None:
        made["fallback"] = node_to_document(wanted.fallback_node, long=long)
    _put(made, "replan", wanted.replan, "")
    if wanted.replanner is not None:
        made["replanner"] = agent_to_document(wanted.replanner, long=long)
    if wanted.review is not None:
        made["review"] = _review(wanted.review, long)
    return "review" if made == {"review": {}} and not long else made


def _input(item: Input, long: bool) -> Json:
    made: dict[str, Json] = {}
    if item.expression:
        made["from"] = item.expression
    else:
        made["value"] = item.value
    _put(made, "optional", item.optional, False)
    if item.has_default:
        made["default"] = item.default
    if long or len(made) > 1:
        return made
    if item.expression:
        return item.expression
    value = item.value
    # a mapping would be read as the long form, and this text as an expression
    short = not (value is None or isinstance(value, dict))
    return value if short and not (isinstance(value, str) and value.startswith(("nodes.", "params."))) else made


def _outputs(node: Node) -> dict[str, Json]:
    """The declared outputs, without those that only repeat a property of `output_schema`."""
    schema = node.output_schema
    if node.agent is not None and schema is None and node.outputs == TEXT_OUTPUT:
        return {}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    given = properties.keys() if isinstance(properties, dict) else set()
    plain = Output()
    return {name: _output(out) for name, out in node.outputs.items() if out != plain or name not in given}


def _output(output: Output) -> Json:
    made: dict[str, Json] = {}
    _put(made, "from", output.source, "output")
    _put(made, "file", output.file, "")
    _put(made, "path", output.path, "")
    _put(made, "schema", output.schema, None)
    return made


def permissions_to_document(permissions: Permissions) -> dict[str, Json]:
    """The permissions of a scope as they are written in a file."""
    made: dict[str, Json] = {}
    for key in ("tools", "models"):
        _put(made, key, _list(getattr(permissions, key)), None)
    if permissions.paths is not None:
        made["paths"] = _paths(permissions.paths)
    network = permissions.network
    _put(made, "network", list(network) if isinstance(network, tuple) else network, None)
    if permissions.cost_budget is not None:
        made["cost_budget"] = dollars(permissions.cost_budget)
    _put(made, "isolation", permissions.isolation, None)
    return made


def _paths(paths: Paths) -> Json:
    made: dict[str, Json] = {}
    _put(made, "read", _list(paths.read), None)
    _put(made, "write", _list(paths.write), None)
    _put(made, "deny", list(paths.deny), [])
    return made


def _list(items: tuple[str, ...] | None) -> list[str] | None:
    return None if items is None else list(items)


def _docker(docker: Docker, long: bool) -> Json:
    made: dict[str, Json] = {}
    _put(made, "image", docker.image, "")
    _put(made, "pull", docker.pull, "never")
    _put(made, "user", docker.user, "")
    return docker.image if made.keys() == {"image"} and not long else made


def _retry(retry: Retry) -> Json:
    plain = _PLAIN_RETRY
    made: dict[str, Json] = {}
    made["max_attempts"] = retry.max_attempts  # always: `retry: {}` says too little
    _put(made, "delay", duration(retry.delay_s), duration(plain.delay_s))
    _put(made, "backoff", retry.backoff, plain.backoff)
    _put(made, "max_delay", duration(retry.max_delay_s), duration(plain.max_delay_s))
    _put(made, "jitter", retry.jitter, plain.jitter)
    if retry.outcomes != plain.outcomes:
        made["outcomes"] = cast("list[Json]", sorted(str(o) for o in retry.outcomes))
    return made


def _resources(node: Node) -> dict[str, Json]:
    made = amounts(node.resources)
    _put(made, "pids", node.pids, 0)
    _put(made, "file_size", size(node.file_size), size(0))
    _put(made, "output", size(node.output_bytes), size(_PLAIN.output_bytes))
    return made


def _limits(limits: Limits, long: bool) -> dict[str, Json]:
    plain = _PLAIN_LIMITS
    made: dict[str, Json] = {}
    _put(made, "parallel", limits.parallel, None)
    if limits.timeout_s is not None:
        made["timeout"] = duration(limits.timeout_s)
    _put(made, "resources", amounts(limits.resources), {})
    _put(made, "revisions", limits.revisions, plain.revisions)
    _put(made, "fallback_chain", limits.fallback_chain, plain.fallback_chain)
    percent = f"{limits.growth}%"
    if limits.growth_nodes != plain.growth_nodes:
        made["growth"] = {"percent": percent, "nodes": limits.growth_nodes}
    elif limits.growth != plain.growth:
        made["growth"] = {"percent": percent} if long else percent
    return made


def _param(param: Param) -> Json:
    made: dict[str, Json] = {}
    _put(made, "type", param.type, "string")
    if param.has_default:
        made["default"] = param.default
    _put(made, "enum", list(param.enum), [])
    _put(made, "description", param.description, "")
    return made


def _secret(secret: Secret) -> Json:
    made: dict[str, Json] = {}
    _put(made, "env", secret.env, "")
    _put(made, "file", secret.file, "")
    _put(made, "command", list(secret.command), [])
    return made


# ---------------------------------------------------------------- units


def amounts(resources: Mapping[str, float]) -> dict[str, Json]:
    """Resources by name; memory as `512Mi`."""
    return {name: size(int(amount)) if name == "memory" else _number(amount) for name, amount in resources.items()}


def size(count: int) -> Json:
    """Bytes as `512Mi`, or as a number where no unit fits."""
    for power, unit in ((40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if count and count % (1 << power) == 0:
            return f"{count >> power}{unit}"
    return count


def _number(amount: float) -> Json:
    return int(amount) if amount == int(amount) and abs(amount) < 1e15 else amount


def dollars(nano: int) -> Json:
    """Nano-dollars as the number of dollars that is read as exactly this amount; else as that text."""
    whole, rest = divmod(nano, 10**9)
    if not rest:
        return whole
    text = f"{whole}.{rest:09d}".rstrip("0")
    return float(text) if repr(float(text)) == text else text


def duration(seconds: float) -> Json:
    """Seconds as `10m`, `1h30m`, `500ms`: the shortest text that is read as exactly this time."""
    for text in _durations(seconds):
        if parse_duration(text) == seconds:
            return text
    return seconds


def _durations(seconds: float) -> Iterator[str]:
    whole, millis = int(seconds), round((seconds - int(seconds)) * 1000)
    parts = [(whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "m"), (whole % 60, "s")]
    text = "".join(f"{n}{unit}" for n, unit in parts if n)
    if whole == seconds:
        yield text or "0s"
    elif whole == 0:
        yield f"{millis}ms"
    yield f"{seconds:.12f}".rstrip("0") + "s"
    yield f"{text}{millis}ms"
    parts[3] = (0, "")
    text = "".join(f"{n}{unit}" for n, unit in parts if n)
    yield text + f"{whole % 60 + (seconds - whole):.12f}".rstrip("0") + "s"

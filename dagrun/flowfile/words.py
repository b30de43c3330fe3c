"""Which word was meant: keys of other tools, typing errors, keys that come later.

Only imported when something is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_FOREIGN = {
    "needs": "depends_on dependsOn depends-on depends deps dependencies requires require after need upstream",
    "run": "command cmd script exec shell_command bash sh commands",
    "env": "environment envs env_vars variables vars",
    "if": "when condition only_if cond run_if",
    "timeout": "timeout_minutes timeout-minutes timeout_s timeout_seconds time_limit max_time",
    "retry": "retries max_retries attempts retry_policy",
    "nodes": "steps jobs tasks node stages services",
    "cwd": "working_directory working-directory workdir work_dir working_dir dir chdir",
    "inputs": "input with args arguments",
    "outputs": "output results returns",
    "artifacts": "artifact files",
    "title": "label display_name",
    "params": "parameters param arguments variables inputs",
    "max_attempts": "attempts max max_retries retries limit count times",
    "delay": "wait interval sleep",
    "outcomes": "on only_on retry_on when",
    "parallel": "max_parallel max-parallel concurrency workers jobs parallelism",
    "continue_on_error": "continue-on-error allow_failure ignore_errors",
    "fail_fast": "fail-fast failfast",
    "pass_env": "passenv pass-env env_passthrough",
    "output_schema": "schema result_schema",
    "description": "desc doc about help summary",
    "from": "source type",
    "default": "value",
    "max_delay": "max_wait max_interval",
    "backoff": "factor multiplier exponential",
    "type": "kind",
    "review": "approve approval manual gate human confirm",
    "message": "question text prompt body",
    "agent": "llm ai chat ask assistant gpt claude completion subagent model_call",
    "prompt": "instruction instructions task message messages user user_prompt query goal input text question ask",
    "system": "system_prompt system-prompt systemprompt systemmessage system_message role persona preamble",
    "skills": "skill",
    "model": "model_name model_id llm engine tier deployment",
    "max_turns": "max_iterations max_steps max_loops turns iterations steps max_turn max_iter recursion_limit",
    "max_tokens": "max_output_tokens max_completion_tokens maxtokens token_limit num_predict",
    "temperature": "temp",
    "mcp": "mcps mcp_server mcpservers servers",
    "mcp_servers": "mcp mcpservers mcp-servers servers tool_servers",
    "provider": "providers llm_provider backend",
    "base_url": "api_base base url endpoint baseurl api_url host",
    "prices": "price pricing costs cost rates",
    "rules": "replies answers script responses mock fixtures",
    "cached": "cache_read cached_input input_cached cache",
    "cache_write": "cache_creation cached_write cache_create",
    "replanner": "replan_agent repair planner",
    "url": "uri endpoint address",
    "headers": "header http_headers",
    "digest": "sha256 hash checksum pin",
    "group": "conversation session thread",
    "on_failure": "on-failure onfailure on_error on-error catch rescue",
    "fallback": "fall_back alternative default otherwise",
    "templates": "template spare",
    "operations": "ops changes actions modifications steps",
    "insert": "add create",
    "remove": "delete drop",
    "modify": "update change edit set",
    "rewire": "move depends relink",
    "rerun": "redo restart",
    "permissions": "permission perms permit rights acl allow access capabilities grants policy security",
    "isolation": "sandbox sandboxed isolate isolated isolation_level isolation-level",
    "docker": "container containers podman oci",
    "tools": "tool allow allowed allowed_tools allowed-tools allow_tools toolset",
    "paths": "path fs files filesystem mounts mount volumes volume binds dirs",
    "network": "net networks hosts host egress internet allowed_hosts domains allowed_domains",
    "cost_budget": "budget cost max_cost money spend budget_usd cost_limit",
    "models": "model allowed_models tiers router routes llms model_list",
    "read": "ro readonly read_only read-only reads allow inputs",
    "write": "rw writable writeable read_write writes output outputs",
    "deny": "exclude excluded ignore forbid forbidden denied block hide hidden not",
    "image": "img container_image name tag",
    "pull": "pull_policy pull-policy imagepullpolicy image_pull_policy",
    "user": "uid run_as runas run_as_user",
    "file_size": "filesize fsize max_file_size",
    "enum": "choices options values one_of",
}

NOT_YET = {
    "workflow": frozenset("finally concurrency on_event on cache matrix".split()),
    "node": frozenset("workflow foreach matrix finally trigger_rule concurrency cache on_event".split()),
    "defaults": frozenset({"on_failure", "resources"}),
}

_IN_AGENT = {
    "prompt": "prompt instructions user_prompt",
    "system": "system system_prompt",
    "skills": "skills skill",
    "model": "model",
    "max_turns": "max_turns max_iterations max_steps",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "mcp": "mcp mcp_servers",
}

_INSIDE = {
    "permissions: {network: …}": "network networks net hosts egress internet allowed_hosts domains allowed_domains",
    "permissions: {paths: {read: […], write: […]}}": "paths mounts mount volumes volume binds fs filesystem",
    "permissions: {paths: {read: […]}}": "read readonly read_only",
    "permissions: {paths: {write: […]}}": "write writable",
    "permissions: {paths: {deny: […]}}": "deny",
    "permissions: {tools: […]}": "tools allowed_tools allowed-tools allow_tools",
    "permissions: {cost_budget: …}": "cost_budget budget max_cost budget_usd cost_limit",
    "docker: {image: …}": "image container_image docker_image",
    "docker: {pull: missing}": "pull pull_policy",
    "docker: {user: …}": "user run_as uid",
    "resources: {memory: …}": "memory mem max_memory memory_limit",
    "resources: {cpu: …}": "cpu cpus",
    "resources: {pids: …}": "pids max_pids nproc",
    "resources: {file_size: …}": "file_size fsize",
}


_BESIDE_AGENT = {
    **{key: key for key in "inputs outputs output_schema timeout retry isolation permissions secrets env".split()},
    "group": "group",
    "schema": "output_schema",
    "response_format": "output_schema",
    "output_type": "output_schema",
    "budget": "permissions: {cost_budget: …}",
    "cost_budget": "permissions: {cost_budget: …}",
    "paths": "permissions: {paths: …}",
    "network": "permissions: {network: …}",
    "retries": "retry",
    "needs": "needs",
    "depends_on": "needs",
    "fallback": "on_failure: {fallback: …}",
}


def of_agent(word: str) -> str:
    """The key of an agent that a word of a node is, or an empty text."""
    low = word.lower()
    return next((key for key, words in _IN_AGENT.items() if low in words.split()), "")


def inside(word: str, kind: str) -> str:
    """Where in a node, `defaults` or a workflow a word belongs that is a key of one of its parts; else empty."""
    low = word.lower()
    if kind == "node" and (key := of_agent(word)):
        return f"write agent: {{{key}: …}}"
    if kind == "agent" and low in _BESIDE_AGENT:
        return f"`{_BESIDE_AGENT[low]}` stands beside `agent`, not in it"
    found = next((place for place, words in _INSIDE.items() if low in words.split()), "")
    if kind not in ("node", "defaults", "workflow") or (found.startswith("resources") and kind != "node"):
        return ""
    return found and f"write {found}"


def meant(word: str, known: Iterable[str]) -> str:
    """`did you mean …?` for a word that is not among `known`, or an empty text."""
    known = list(known)
    low = word.lower().replace("-", "_")
    for name in known:
        if low == name.lower() or word in _FOREIGN.get(name, "").split() or low in _FOREIGN.get(name, "").split():
            return f"did you mean `{name}`?"
    found = get_close_matches(low, known, n=1, cutoff=0.6)
    return f"did you mean `{found[0]}`?" if found else ""


def stands_for(word: str, name: str) -> bool:
    """Whether `word` is what other tools call `name`, or a typing error of it."""
    return meant(word, [name]) != ""

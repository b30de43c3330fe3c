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
    "artifacts": "artifact files paths",
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
    "on_failure": "on-failure onfailure on_error on-error catch rescue",
    "fallback": "fall_back alternative default otherwise",
    "templates": "template spare",
    "operations": "ops changes actions modifications steps",
    "insert": "add create",
    "remove": "delete drop",
    "modify": "update change edit set",
    "rewire": "move depends relink",
    "rerun": "redo restart",
    "enum": "choices options values one_of",
}

NOT_YET = {
    "workflow": frozenset(
        "permissions models mcp_servers provider docker finally concurrency on_event on cache matrix".split()
    ),
    "node": frozenset(
        "agent workflow foreach matrix finally trigger_rule concurrency cache on_event permissions"
        " docker group model mcp_servers".split()
    ),
    "on_failure": frozenset({"replanner"}),
    "defaults": frozenset({"permissions", "docker", "on_failure", "resources"}),
}


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

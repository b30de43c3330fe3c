"""Files that a command line names: read whole, written all or nothing; workflows with all that can be checked."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from dagrun.errors import EnvironmentFault, InputError, UsageError

if TYPE_CHECKING:
    from dagrun.core.workflow import Workflow
    from dagrun.errors import Problem
    from dagrun.flowfile.load import Loaded


def load_flow(path: str, *, provider: str = "", prices: bool = True) -> Loaded:
    """The checked workflow in a file, its agents included; `provider` (live, fake) in place of the file's own.

    Without `prices` no model needs one: a replay has those of its run. Raises InputError with all problems,
    UsageError when there is no such file.
    """
    from dagrun.flowfile.load import Loaded, read_workflow

    loaded = read_workflow(path)
    found = agent_problems(loaded.workflow, provider=provider, prices=prices)
    if not found:
        return loaded
    if any(p.severity == "error" for p in found):
        raise InputError((*loaded.warnings, *found))
    return Loaded(loaded.workflow, (*loaded.warnings, *found))


def agent_problems(workflow: Workflow, *, provider: str = "", prices: bool = True) -> tuple[Problem, ...]:
    """What is wrong with the agents of a workflow on this machine: skills, prices, rules. None without agents."""
    from dagrun.core.agents import has_agents

    if not has_agents(workflow) and not workflow.provider.rules:
        return ()
    from dagrun.agent.checks import is_fake, problems

    home = os.environ.get("HOME", "")
    found = problems(workflow, base_of(workflow), home, provider=provider, prices=prices)
    if workflow.provider.rules_text and is_fake(workflow, provider) and not any(p.severity == "error" for p in found):
        found += _idle_rules(workflow)
    return tuple(found)


def _idle_rules(workflow: Workflow) -> list[Problem]:
    """Warnings of the rules that never answer; the rules themselves are right."""
    from dagrun.agent.checks import askers
    from dagrun.agent.fake import load
    from dagrun.agent.idlerules import idle_rules

    given = workflow.provider
    file = os.path.join(os.path.dirname(workflow.file), given.rules)
    rules = load(given.rules_text.encode("utf-8", "surrogateescape"), file)
    return list(idle_rules(rules, {asker.name for asker in askers(workflow)}))


def base_of(workflow: Workflow) -> str:
    """The folder that what a workflow names is relative to."""
    return os.getcwd() if workflow.file == "<stdin>" else os.path.dirname(os.path.abspath(workflow.file))


def read_file(path: str, what: str) -> bytes:
    """The bytes of a file; `-` is stdin. Raises UsageError."""
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}", hint=f"name {what}") from None


def write_text(path: str, text: str | bytes) -> None:
    """Replace a file, all or nothing, keeping its mode. Raises EnvironmentFault."""
    from stat import S_IMODE

    from dagrun.store.disk import write_atomic

    data = text.encode() if isinstance(text, str) else text
    where = os.path.realpath(path)
    try:
        mode = S_IMODE(os.stat(where).st_mode) if os.path.exists(where) else 0o666 & ~_umask()
        write_atomic(where, data, mode=mode)
    except OSError as error:
        raise EnvironmentFault(f"can't write {path}: {error.strerror}", hint="name a file that you can write") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

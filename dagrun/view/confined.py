"""Whether a node may have failed because of its own walls or ceilings, and what to type to widen them.

Told from the end of an attempt and the last lines that it wrote, so it only ever says what the node
may do, never that this was the reason. Knows texts of the C library and of usual programs, no back end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from dagrun.core.names import Outcome
from dagrun.view.text import PLAIN, Look, clean, folded, last_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagrun.core.event import AttemptFinished
    from dagrun.core.permissions import Effective, Network
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Agent, Node

_LINES = 3  # the reason of a failure is nearly always in its last lines
_BYTES = 4096
_SHOWN = 3
_WARNINGS = 3

_NETWORK = re.compile(
    r"network is unreachable|network unreachable|ENETUNREACH|name resolution|EAI_AGAIN|ENOTFOUND|getaddrinfo"
    r"|could ?n[o']t resolve|unable to resolve|failed to resolve|name or service not known|bad address"
    r"|no such host|connection refused|ECONNREFUSED|no route to host|cannot assign requested address",
    re.IGNORECASE,
)
_READ_ONLY = re.compile(r"read-only file ?system|EROFS", re.IGNORECASE)
_ABSENT = re.compile(
    r"no such file|nonexistent|does not exist|doesn't exist|ENOENT|FileNotFound|not found|cannot find|can't find"
    r"|not a git repository|filesystem boundary",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(r"permission denied|EACCES|PermissionError", re.IGNORECASE)
_CALL = re.compile(r"operation not permitted|EPERM|function not implemented|ENOSYS|bad system call", re.IGNORECASE)
_TOO_LARGE = re.compile(r"file too large|EFBIG|file size limit", re.IGNORECASE)
_NO_MEMORY = re.compile(r"cannot allocate memory|MemoryError|out of memory|ENOMEM|bad_alloc", re.IGNORECASE)
_NO_FORK = re.compile(
    r"resource temporarily unavailable|EAGAIN|cannot fork|can't fork|can't start new thread", re.IGNORECASE
)
_MAKES = re.compile(r"(cannot|can't|could not|failed to) (create|touch|make|mkdir|open .* for writing)", re.IGNORECASE)


class Held(NamedTuple):
    """What a node is held to: `by` is `confined` (its permissions) or `limited` (its ceilings)."""

    by: str
    text: str


def held_to(state: RunState, i: int, output: bytes) -> Held | None:
    """What node `i` may do of what it seems to have failed at; None where nothing speaks for that.

    `output` is the end of what its last attempt wrote.
    """
    tried = state.attempts[i]
    last = tried[-1] if tried else None
    if last is None or last.finish is None or last.outcome is not Outcome.FAILED:
        return None
    node = state.plan.nodes[i]
    said = "\n".join([*last_lines(output[-_BYTES:], _LINES), last.finish.summary])
    ceiling = _of_ceilings(node, said)
    if ceiling:
        return Held("limited", clean(ceiling))
    wall = _of_walls(state, node, last.finish.exit_code, said) if last.sandbox else ""
    return Held("confined", clean(wall)) if wall else None


def notes(state: RunState, i: int, output: bytes, look: Look = PLAIN) -> list[str]:
    """The lines below a failed node: what it is held to, and what the engine warned of."""
    held = held_to(state, i, output)
    lines = folded(f"  {held.by}: ", held.text.split(" "), look.width) if held else []
    for text in warnings_of(state, i):
        lines += folded("  warning: ", clean(text).split(" "), look.width)
    return [look.paint(line, "yellow") for line in lines]


def warnings_of(state: RunState, i: int) -> list[str]:
    """What the engine warned of about node `i`, each once."""
    name = state.plan.ids[i]
    return list(dict.fromkeys(w.text for w in state.warnings if w.node == name))[:_WARNINGS]


def ways_on(state: RunState, i: int) -> list[tuple[str, str]]:
    """(what it is for, command) for a node that met its walls or ceilings; [] for another one."""
    tried = state.attempts[i]
    finish = tried[-1].finish if tried else None
    if finish is None:
        return []
    run, name = state.created.run_id, state.plan.ids[i]
    agent = state.plan.nodes[i].agent
    larger = _larger(agent, finish) if agent is not None else ""
    if larger:
        return [("more of it? try again", f"dagrun replan {run} --retry {name}:{larger} --resume")]
    if finish.outcome is Outcome.OVER_LIMIT:
        more = _doubled(state.plan.nodes[i], finish.limit)
        command = f"dagrun replan {run} --retry '{name}:resources.{finish.limit}={more}' --resume"
        return [("more room? try again", command)] if more else []
    if not tried[-1].sandbox and finish.outcome is not Outcome.DENIED:
        return []
    ways = [("see what it may do", f"dagrun plan {run} --permissions")]
    file, written = state.created.file, i
    while written in state.stands_in:
        written = state.stands_in[written]
    name = state.plan.ids[written]
    if file and file != "-" and not re.search(r"[^\w./+-]", file) and name in state.workflows[0].nodes:
        again = f"dagrun execute {file} --from {name} --outputs-of {run}"
        ways.append(("gave it more? again", again))
    return ways


def _larger(agent: Agent, finish: AttemptFinished) -> str:
    """Twice the limit of its own that an agent has met, as `replan --retry` takes it; "" for another end."""
    if finish.outcome is Outcome.OVER_LIMIT and finish.limit == "turns":
        return f"max_turns={agent.max_turns * 2}"
    return f"max_tokens={agent.max_tokens * 2}" if finish.outcome is Outcome.TRUNCATED else ""


# ---------------------------------------------------------------- ceilings


def _of_ceilings(node: Node, said: str) -> str:
    """Programs that take the signal of a ceiling for an error of their own say so, and fail by themselves."""
    if node.file_size and _TOO_LARGE.search(said):
        return f"each file that it writes may have {_amount(node.file_size)} (resources.file_size)"
    memory = node.resources.get("memory")
    if memory and _NO_MEMORY.search(said):
        return f"it may use {_amount(int(memory))} of memory (resources.memory)"
    if node.pids and _NO_FORK.search(said):
        return f"it may have {node.pids} processes and threads (resources.pids)"
    return ""


def _doubled(node: Node, limit: str) -> str:
    """Twice a ceiling, as it is written in a workflow; "" for a limit that is none of these."""
    from dagrun.view.permissions import ceilings

    now = {**ceilings(node), "output": float(node.output_bytes)}.get(limit)
    if not now or limit == "cpu":
        return ""
    return str(int(now) * 2) if limit == "pids" else _amount(int(now) * 2)


def _amount(count: int) -> str:
    """Bytes as a workflow has them, in the largest unit that loses nothing."""
    for power, unit in ((30, "Gi"), (20, "Mi"), (10, "Ki")):
        if count % (1 << power) == 0:
            return f"{count >> power}{unit}"
    return str(count)


# ---------------------------------------------------------------- walls


def _of_walls(state: RunState, node: Node, code: int | None, said: str) -> str:
    from dagrun.core.lattice import effective

    got = effective(state.plan.workflow.permissions, node.permissions, node.isolation)
    if code in (126, 127):
        return _programs(state, node, got)
    if got.network not in (None, "any") and _NETWORK.search(said):
        return _hosts(got.network)
    if _READ_ONLY.search(said) or (_MAKES.search(said) and _ABSENT.search(said)):
        return _writes(got)
    if _FORBIDDEN.search(said):
        return f"{_reads(got)}; {_writes(got)}" if got.paths is not None else _writes(got)
    if _ABSENT.search(said):
        return _reads(got)
    if _CALL.search(said):
        closed = "" if got.network == "any" else "network sockets, "
        return f"closed at isolation {got.isolation}: {closed}namespaces, mounts, devices, other users"
    return ""


def _programs(state: RunState, node: Node, got: Effective) -> str:
    if got.isolation == "container":
        from dagrun.core.workflow import docker_of

        image = docker_of(state.plan.workflow, node).image
        return f"its programs are those of the image {image} and of {_seen(got)}"
    if got.paths is None:
        return ""
    return f"its programs are those of the system (/usr, /bin) and of {_seen(got)} (permissions.paths.read)"


def _hosts(network: Network | None) -> str:
    if network is None or isinstance(network, str):
        return "it has no network (permissions.network)"
    return f"it reaches only {_few(network)}, and only by the proxy of $HTTPS_PROXY (permissions.network)"


def _writes(got: Effective) -> str:
    if got.paths is None:
        return "git hooks, settings of shells and editors, and the workflow file are read-only for it"
    return f"it may write {_few(got.paths.write or ())} (permissions.paths.write)"


def _reads(got: Effective) -> str:
    return f"of your files it sees {_seen(got)} (permissions.paths.read)" if got.paths is not None else ""


def _seen(got: Effective) -> str:
    if got.paths is None:
        return "nothing"
    text = _few(tuple(dict.fromkeys([*(got.paths.read or ()), *(got.paths.write or ())])))
    return f"{text}, without {_few(got.paths.deny)}" if got.paths.deny else text


def _few(names: Sequence[str]) -> str:
    """Some names, the rest counted."""
    shown = ["the project" if name == "." else name for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} more")
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part) or "nothing"

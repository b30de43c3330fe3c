"""Which tools an agent is shown, and which of its calls are let through: the same patterns, asked twice.

Policy, decided by text; what a tool can reach is held by its sandbox. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from dagrun.agent.messages import ToolCall
from dagrun.agent.prompt import sound
from dagrun.core.grants import Call, call_of
from dagrun.core.names import Json
from dagrun.core.toolcall import allows

MAX_SHOWN = 200  # characters of a name or pattern list that a model is told back


def listed(tools: Iterable[Json], rules: Iterable[Iterable[str]]) -> tuple[Json, ...]:
    """The definitions of those tools of which every list of patterns names some call."""
    lists = [[call_of(pattern) for pattern in patterns] for patterns in rules]
    return tuple(tool for tool in tools if all(any(_names(c, name_of(tool)) for c in calls) for calls in lists))


def refusal(call: ToolCall, tools: Sequence[Json], rules: Sequence[tuple[str, ...]], project: str = "") -> str:
    """Why a call is not let through, in words for the model; empty when it is."""
    names = [name_of(tool) for tool in listed(tools, rules)]
    if call.name not in names:
        there = f"there {'is' if len(names) == 1 else 'are'} {', '.join(names)}" if names else "there are none"
        return f"there is no tool {_shown(call.name)}: {there}"
    if call.arguments is None:
        return f"the arguments are no JSON object: {_shown(call.text)}"
    for patterns in rules:
        if not allows(patterns, call.name, call.arguments, project=project):
            mine = [pattern for pattern in patterns if _names(call_of(pattern), call.name)]
            simple = ", and only as one simple command" if call.name == "Bash" else ""
            return f"this call is not permitted: {call.name} may be called as {_shown(' or '.join(mine))}{simple}"
    return ""


def name_of(tool: Json) -> str:
    """The name in a tool's definition."""
    return cast(str, cast("dict[str, dict[str, Json]]", tool)["function"]["name"])


def with_ids(calls: Iterable[ToolCall], turn: int) -> tuple[ToolCall, ...]:
    """The calls of one reply as they are kept: each with an id of its own, and its text only where it is needed.

    There are providers that send no id, or one twice, and halves of characters in ids and names.
    """
    made: list[ToolCall] = []
    for k, call in enumerate(calls, 1):
        taken = {other.id for other in made}
        given = sound(call.id)
        name = given if given and given not in taken else _free(f"call_{turn}_{k}", taken)
        text = sound(call.text) if call.arguments is None else ""
        made.append(replace(call, id=name, name=sound(call.name), text=text))
    return tuple(made)


def arguments_text(call: ToolCall) -> str:
    """The arguments of a call as text."""
    return call.text if call.arguments is None else json.dumps(dict(call.arguments), sort_keys=True)


def _free(wanted: str, taken: set[str]) -> str:
    while wanted in taken:
        wanted += "_"
    return wanted


def _names(call: Call, tool: str) -> bool:
    return tool.startswith(call.tool[:-1]) if call.tool.endswith("__*") else call.tool == tool


def _shown(text: str) -> str:
    """A text of a model in one short line."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")

"""A model call as it is kept: only what is new in it against the call before it of the same attempt.

A conversation grows at its end, so n calls keep each message once, not n times. Two values are the same
where their canonical texts are: `1`, `1.0` and `true` are three. Knows no journal.

    {"keep": 4, "messages": […], "model": "…", "max_tokens": 4096}      + tools, temperature, schema
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import takewhile
from typing import cast

from dagrun.agent.messages import Request, request_from_json, request_to_json
from dagrun.core.names import Json

_RARE: Mapping[str, Json] = {"tools": [], "temperature": None, "schema": None}  # what a request without them has


def delta(request: Request, before: Request | None) -> dict[str, Json]:
    """What is new in a request: how many leading messages of `before` it keeps, and the rest of it."""
    new, old = request_to_json(request), request_to_json(before) if before is not None else {}
    said, known = _messages(new), _messages(old)
    keep = sum(1 for _ in takewhile(lambda pair: _same(*pair), zip(said, known, strict=False)))
    made: dict[str, Json] = {"keep": keep, "messages": said[keep:]}
    made["model"], made["max_tokens"] = new["model"], new["max_tokens"]
    for name, default in _RARE.items():
        value = new.get(name, default)
        if not _same(value, old.get(name, default)):
            made[name] = value
    return made


def whole(data: Mapping[str, Json], before: Request | None) -> Request:
    """The request that `delta` made `data` from. Raises ValueError for data that it can't have made."""
    old = request_to_json(before) if before is not None else {}
    keep, said, known = data.get("keep"), data.get("messages"), _messages(old)
    if not isinstance(keep, int) or not 0 <= keep <= len(known) or not isinstance(said, list):
        raise ValueError("this is no model call as it is kept")
    made: dict[str, Json] = {"messages": [*known[:keep], *said]}
    try:
        made["model"], made["max_tokens"] = data["model"], data["max_tokens"]
        for name, default in _RARE.items():
            made[name] = data.get(name, old.get(name, default))
        return request_from_json(made)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("this is no model call as it is kept") from error


def _messages(data: Mapping[str, Json]) -> list[Json]:
    return cast("list[Json]", data.get("messages", []))


def _same(a: Json, b: Json) -> bool:
    return a == b and json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)

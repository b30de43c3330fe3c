"""A recorded run as one file, to be kept, sent and shipped: what its folder holds, without the machine it ran on.

JSON lines: the workflow first, then the values that the journal only refers to, then its records. Processes
and hosts are left out; values are held to their digests when they are read.

    {"v": 1, "record": "r7k2", "workflow": {…}}
    {"sha": "…", "value": …}
    {"t": 1760000000.0, "m": 12.5, "e": [{"type": "run.created", …}]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import cast

from dagrun.core.event import EngineAttached, Event, NodeSpawned, RunCreated, decode, encode
from dagrun.core.names import Json
from dagrun.core.workflow import workflow_from_json, workflow_to_json
from dagrun.engine.recording import Record, Told, read, read_run
from dagrun.errors import EnvironmentFault, InputError, Problem
from dagrun.store.context import encoded
from dagrun.store.rundir import find_run

FORMAT = 1


def open_record(text: str, project: str) -> Record:
    """The record that a person means: a file, else a run of this project.

    Raises InputError for a file that is none, NotFoundError for an unknown run, JournalError.
    """
    if os.path.isfile(text) or text.endswith(".jsonl"):
        return read_file(text)
    return read_run(find_run(project, text))


def lines(record: Record) -> Iterator[str]:
    """The lines of the file, without their ends. Raises JournalError for what can't be read."""
    yield _line({"v": FORMAT, "record": record.created.run_id, "workflow": workflow_to_json(record.workflow)})
    seen: set[str] = set()
    for told in record.told:
        for ref in _references(json.loads(encode(told.event))):
            sha = str(ref["sha"])
            if sha not in seen:
                seen.add(sha)
                yield _line({"sha": sha, "value": read(record, ref, f"{record.name}, value {sha[:12]}")})
    group: list[Told] = []
    for told in record.told:
        if group and told.seq != group[0].seq:
            yield _record(group)
            group = []
        group.append(told)
    yield _record(group)


def _record(group: list[Told]) -> str:
    events = [_anonymous(told.event) for told in group if not isinstance(told.event, NodeSpawned)]
    return _line({"t": group[0].t, "m": group[0].m, "e": [json.loads(encode(event)) for event in events]})


def _anonymous(event: Event) -> Event:
    return replace(event, pid=0, boot_id="", host="") if isinstance(event, EngineAttached) else event


def _references(value: Json) -> Iterator[Mapping[str, Json]]:
    """The references to values in the JSON of an event; artifacts have a path and are none."""
    match value:
        case dict():
            if value.keys() == {"sha", "size"}:
                yield value
            else:
                for part in value.values():
                    yield from _references(part)
        case list():
            for part in value:
                yield from _references(part)
        case _:
            pass


def _line(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"))


# ---------------------------------------------------------------- reading


def read_file(path: str) -> Record:
    """The record in a file. Raises InputError with the line that is none, EnvironmentFault when it can't be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse(file, path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise EnvironmentFault(f"can't read the recorded run {path}: {why}") from error


def parse(text: Iterable[str], path: str = "") -> Record:
    """The record in some lines. Raises InputError."""
    number, head, told, values = 0, None, list[Told](), dict[str, Json]()
    for number, line in enumerate(text, 1):
        try:
            data = json.loads(line)
            if head is None:
                head = _head(data)
            elif "sha" in data:
                values[data["sha"]] = _value(data)
            else:
                told += [Told(data["t"], data["m"], number, decode(event)) for event in data["e"]]
                if told and not isinstance(told[0].event, RunCreated):
                    raise _BadLine("the first event of a recorded run is not that it began")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = str(error) if isinstance(error, _BadLine) else "this line is none of a recorded run"
            raise _bad(why, path, number) from error
    if head is None or not told:
        raise _bad("the recorded run has no end: it is cut off", path, number)

    def value(ref: Mapping[str, Json]) -> Json:
        return ref["v"] if "v" in ref else values[cast(str, ref["sha"])]

    return Record(name=path, workflow=workflow_from_json(head), told=tuple(told), value=value)


class _BadLine(ValueError):
    """A line that says of itself what is wrong."""


def _head(data: Mapping[str, Json]) -> Mapping[str, Json]:
    if data.get("v") != FORMAT or not isinstance(data.get("workflow"), dict):
        raise _BadLine("this is no recorded run that dagrun knows")
    return cast("Mapping[str, Json]", data["workflow"])


def _value(data: Mapping[str, Json]) -> Json:
    if sha256(encoded(data["value"])).hexdigest() != data["sha"]:
        raise _BadLine("this value was changed after it was recorded: its digest does not match")
    return data["value"]


def _bad(why: str, path: str, line: int) -> InputError:
    hint = "record it again: dagrun export RUN --record FILE"
    return InputError((Problem(code="bad-record", message=why, file=path, line=line, column=1, hint=hint),))

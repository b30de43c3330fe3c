"""OTLP/JSON: spans and attributes as the JSON of the OpenTelemetry protocol. Knows no run.

Source: opentelemetry-proto, docs/specification.md, "JSON Protobuf Encoding": ids in hex, enums as
integers, 64-bit integers as text, names in lowerCamelCase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from dagrun.core.names import Json

Value: TypeAlias = "str | bool | int | float | Sequence[str]"

INTERNAL, CLIENT = 1, 3  # SpanKind
ERROR = 2  # Status.StatusCode


def export_request(spans: list[Json], version: str) -> dict[str, Json]:
    """An ExportTraceServiceRequest with the spans of this version of dagrun."""
    resource: dict[str, Json] = {"attributes": attributes_of({"service.name": "dagrun", "service.version": version})}
    scope: dict[str, Json] = {"name": "dagrun", "version": version}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]}



def span_json(
    ids: tuple[str, str, str],
    name: str,
    kind: int,
    times: tuple[float, float],
    attributes: Mapping[str, Value | None],
    *,
    error: str = "",
    message: str = "",
) -> Json:
    """A span; `ids` are those of the trace, itself and its parent ("": none)."""
    trace, span, parent = ids
    began, ended = (round(at * 10**9) for at in times)
    given = {**attributes, "error.type": error or None}
    made: dict[str, Json] = {
        "traceId": trace,
        "spanId": span,
        "name": sound(name),
        "kind": kind,
        "startTimeUnixNano": str(began),
        "endTimeUnixNano": str(max(began, ended)),
        "attributes": attributes_of(given),
        "status": {"code": ERROR, "message": sound(message)} if error else {},
    }
    if parent:
        made["parentSpanId"] = parent
    return made


def attributes_of(values: Mapping[str, Value | None]) -> list[Json]:
    """KeyValues in order; what is None is left out."""
    return [{"key": key, "value": _any(value)} for key, value in values.items() if value is not None]


def _any(value: Value) -> Json:
    """An AnyValue: booleans before integers, which they are too in Python."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, str):
        return {"stringValue": sound(value)}
    return {"arrayValue": {"values": [{"stringValue": sound(item)} for item in value]}}


def sound(text: str) -> str:
    """Text without halves of surrogate pairs, which no protobuf string can hold."""
    return text.encode("utf-8", "replace").decode()

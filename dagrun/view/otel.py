"""A run as OpenTelemetry spans, made of the state and of what its agents did.

One trace for a run: `invoke_workflow` with a span for each attempt below it (`invoke_agent`, `run`,
`review`), and below an agent `chat` for each model call and `execute_tool` for each tool call. Names and
attributes are the GenAI semantic conventions (status: development); what they have no word for is
`dagrun.*`, the cost too. Ids are hashes of what they name, so that sending a run twice gives the same
spans. What was said stays out unless `content` is asked for. Pure: no clock, no network.

Source: open-telemetry/semantic-conventions-genai, the spans of clients, of agents and of tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from json import dumps
from typing import TYPE_CHECKING

from dagrun.agent.messages import Message, Request, ToolCall
from dagrun.agent.record import whole
from dagrun.core.names import Json, Outcome, RunStatus
from dagrun.core.trace import TraceAttempt, TraceEntry, trace_entries
from dagrun.core.usage import Usage, money_of, usage_of_run, usd
from dagrun.view.conversation import Call, Conversations, Get, Step, ToolUse, mapping
from dagrun.view.otlp import CLIENT, INTERNAL, Value, export_request, span_json

if TYPE_CHECKING:
    from dagrun.core.state import Attempt, RunState

_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
_FINISHES = {"tool_calls": "tool_call", "refused": "content_filter"}
_QUOTES = frozenset({Outcome.FAILED, Outcome.INVALID_OUTPUT})  # their errors may quote a model or its provider
_OPERATIONS = {"agent": "invoke_agent", "run": "run", "review": "review"}


def otlp(
    state: RunState,
    said: Conversations,
    get: Get,
    *,
    content: bool = False,
    status: RunStatus | None = None,
) -> dict[str, Json]:
    """The run as an ExportTraceServiceRequest in OTLP/JSON.

    `said` are the conversations of its agents, whose references `get` reads; `content` puts messages and
    tool results in. `status` is given where the caller knows better than the journal (a crashed run).
    """
    trace = _trace_id(state)
    root = _span_id(trace, "run")
    spans: list[Json] = [_root(state, trace, root, status or state.status)]
    for entry in trace_entries(state):
        i = state.plan.index[entry.node_id]
        for attempt, shown in zip(state.attempts[i], entry.attempts, strict=True):
            spans += _attempt(state, entry, attempt, shown, (trace, root), said, get, content=content)
    return export_request(spans, state.created.version)


# ---------------------------------------------------------------- spans


def _root(state: RunState, trace: str, span: str, status: RunStatus) -> Json:
    used, money = usage_of_run(state), money_of(state)
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": state.created.workflow,
        "dagrun.run_id": state.created.run_id,
        "dagrun.status": str(status),
        "dagrun.revision": state.plan.revision,
        "dagrun.nodes": len(state.plan.ids) - len(state.removed),
        "dagrun.model_calls": used.calls,
        "dagrun.cost_usd": usd(money.spent),
        "dagrun.reserved_usd": usd(money.held),
        "dagrun.cost_budget_usd": None if money.cap is None else usd(money.cap),
        "dagrun.unfinished": None if state.ended is not None else True,
    }
    error = "" if status in (RunStatus.COMPLETED, RunStatus.RUNNING, RunStatus.NEEDS_REVIEW) else str(status)
    return span_json(
        (trace, span, ""),
        f"invoke_workflow {state.created.workflow}",
        INTERNAL,
        (state.created_at, state.ended_at if state.ended else state.now),
        attributes,
        error=error,
        message=state.ended.reason if state.ended else "",
    )


def _attempt(
    state: RunState,
    entry: TraceEntry,
    attempt: Attempt,
    shown: TraceAttempt,
    above: tuple[str, str],
    said: Conversations,
    get: Get,
    *,
    content: bool,
) -> Iterator[Json]:
    """The span of an attempt, then those of its calls."""
    trace, root = above
    span = _span_id(trace, f"attempt/{entry.node_id}/{attempt.number}")
    began = attempt.started_at
    ended = began + attempt.finish.duration_ms / 1000 if attempt.finish else max(began, state.now)
    steps = said.get((entry.node_id, attempt.number), ())
    if steps:
        ended = max(ended, *(step.ended for step in steps))
    attributes: dict[str, Value | None] = {
        "dagrun.run_id": entry.run_id,
        "dagrun.node": entry.node_id,
        "dagrun.wave": entry.wave,
        "dagrun.attempt": attempt.number,
        "dagrun.revision": attempt.revision,
        "dagrun.isolation": entry.isolation,
        "dagrun.sandbox": attempt.sandbox or None,
        "dagrun.outcome": shown.outcome.value if shown.outcome else None,
        "dagrun.limit": shown.limit or None,
        "dagrun.unfinished": None if shown.outcome else True,
        "process.exit.code": shown.exit_code,
    }
    if shown.agent is not None:
        attributes |= _of_agent(state, entry, attempt, shown.agent, steps)
    outcome = shown.outcome
    yield span_json(
        (trace, span, root),
        f"{_OPERATIONS[entry.kind]} {entry.node_id}",
        INTERNAL,
        (began, ended),
        attributes,
        error="" if outcome in (None, Outcome.COMPLETED) else str(outcome),
        message="" if shown.agent is not None and outcome in _QUOTES and not content else shown.error,
    )
    before: Request | None = None
    for step in steps:
        if isinstance(step, Call):
            request = _request(step, before, get) if content else None
            before = request or before
            yield _chat(step, (trace, span), ended, get, request, content=content)
        else:
            yield _tool(step, (trace, span), began, get, content=content)


def _of_agent(
    state: RunState, entry: TraceEntry, attempt: Attempt, used: Usage, steps: Sequence[Step]
) -> dict[str, Value | None]:
    node = state.plan.nodes[state.plan.index[entry.node_id]]
    asked = [s.reserved.model for s in steps if isinstance(s, Call)]
    provider, model = _named(asked[-1]) if asked else (used.provider, used.asked)
    shares = bool(node.group) and entry.isolation == "none"
    place = f"group/{node.group}" if shares else f"{entry.node_id}/{attempt.number}"
    return {
        "gen_ai.operation.name": _OPERATIONS["agent"] if entry.kind == "agent" else None,
        "gen_ai.provider.name": provider,
        "gen_ai.agent.name": entry.node_id,
        "gen_ai.agent.id": f"{entry.run_id}/{entry.node_id}",
        "gen_ai.agent.description": entry.title or None,
        "gen_ai.conversation.id": f"{entry.run_id}/{place}",
        "gen_ai.request.model": model or None,
        "gen_ai.output.type": "json" if node.output_schema is not None or node.outputs else "text",
        "gen_ai.usage.input_tokens": used.input,
        "gen_ai.usage.output_tokens": used.output,
        "gen_ai.usage.cache_read.input_tokens": used.cached or None,
        "gen_ai.usage.reasoning.output_tokens": used.reasoning or None,
        "dagrun.model_asked": used.asked or None,
        "dagrun.provider": used.provider or None,
        "dagrun.turns": used.turns,
        "dagrun.model_calls": used.calls,
        "dagrun.cost_usd": usd(used.spent),
        "dagrun.reserved_usd": usd(used.held),
        "dagrun.skills": [f"{name}@{digest}" for name, digest in used.skills.items()] or None,
    }


def _chat(
    call: Call, above: tuple[str, str], latest: float, get: Get, request: Request | None, *, content: bool
) -> Json:
    trace, parent = above
    asked, answer = call.reserved, call.answer
    provider, model = _named(asked.model)
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": asked.max_tokens,
        "gen_ai.agent.name": asked.node,
        "dagrun.node": asked.node,
        "dagrun.attempt": asked.attempt,
        "dagrun.call": asked.call,
        "dagrun.turn": asked.turn,
        "dagrun.try": asked.tries,
        "dagrun.reserved_usd": usd(asked.amount),
        "dagrun.request_sha256": asked.digest,
    }
    error, message, ended = "", "", latest
    if answer is None:
        attributes["dagrun.unfinished"] = True
    else:
        reply, ended, error = mapping(get, answer.answer), call.ended, answer.error
        message = str(reply.get("message", "")) if error and content else ""  # it may quote what was asked
        attributes |= {
            "gen_ai.response.model": answer.model or None,
            "gen_ai.response.finish_reasons": _finish(reply),
            "gen_ai.request.stream": True if answer.first_token_ms is not None else None,
            "gen_ai.response.time_to_first_chunk": _seconds(answer.first_token_ms),
            **_usage(answer.usage),
            "dagrun.cost_usd": usd(answer.spent),
            "dagrun.reused": answer.reused or None,
            "http.response.status_code": _whole(reply.get("status")),
        }
        if content and not error:
            attributes["gen_ai.output.messages"] = _json([_said(reply)])
    if request is not None:
        attributes |= _of_request(request)
    span = _span_id(trace, f"call/{asked.node}/{asked.attempt}/{asked.call}")
    times = (call.began, max(call.began, ended))
    return span_json((trace, span, parent), f"chat {model}", CLIENT, times, attributes, error=error, message=message)


def _tool(use: ToolUse, above: tuple[str, str], earliest: float, get: Get, *, content: bool) -> Json:
    trace, parent = above
    event = use.event
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": event.name,
        "gen_ai.tool.type": "function",
        "gen_ai.agent.name": event.node,
        "dagrun.node": event.node,
        "dagrun.attempt": event.attempt,
        "dagrun.turn": event.turn,
        "dagrun.tool_call": event.number,
        "dagrun.reused": event.reused or None,
    }
    if content:
        attributes["gen_ai.tool.call.arguments"] = _json(dict(mapping(get, event.arguments)))
        attributes["gen_ai.tool.call.result"] = _text(get(event.text)) if event.text else None
    return span_json(
        (trace, _span_id(trace, f"tool/{event.node}/{event.attempt}/{event.number}"), parent),
        f"execute_tool {event.name}",
        INTERNAL,
        (max(earliest, use.began), max(earliest, use.ended)),
        attributes,
        error="" if event.ok else "tool_error",
    )


# ---------------------------------------------------------------- attributes


def _named(model: str) -> tuple[str, str]:
    """(provider as the conventions call it, model) of `vendor/name`."""
    vendor, slash, name = model.partition("/")
    return (_PROVIDERS.get(vendor, vendor), name) if slash else ("dagrun", model)


def _usage(counts: Sequence[int]) -> dict[str, Value | None]:
    """Tokens of a call; nothing where nobody knows."""
    if not counts:
        return {}
    given, answered, cached, written, reasoning = counts
    return {
        "gen_ai.usage.input_tokens": given,
        "gen_ai.usage.output_tokens": answered,
        "gen_ai.usage.cache_read.input_tokens": cached or None,
        # renamed in the conventions of 2026; who charts it may know either name
        "gen_ai.usage.cache_creation.input_tokens": written or None,
        "gen_ai.usage.cache_write.input_tokens": written or None,
        "gen_ai.usage.reasoning.output_tokens": reasoning or None,
    }


def _finish(reply: Mapping[str, Json]) -> Sequence[str] | None:
    said = reply.get("finish")
    return [_FINISHES.get(said, said)] if isinstance(said, str) else None


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _whole(value: Json) -> int | None:
    return value if isinstance(value, int) else None


# ---------------------------------------------------------------- content, where it is asked for


def _request(call: Call, before: Request | None, get: Get) -> Request | None:
    """The whole request of a call; None where a part of it is gone."""
    try:
        return whole(mapping(get, call.reserved.request), before)
    except ValueError:
        return None


def _of_request(request: Request) -> dict[str, Value | None]:
    system: list[Json] = [{"type": "text", "content": m.content} for m in request.messages if m.role == "system"]
    rest: list[Json] = [_message(m) for m in request.messages if m.role != "system"]
    return {
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.system_instructions": _json(system) if system else None,
        "gen_ai.input.messages": _json(rest),
        "gen_ai.tool.definitions": _json(list(request.tools)) if request.tools else None,
    }


def _message(message: Message) -> Json:
    if message.role == "tool":
        part: Json = {"type": "tool_call_response", "id": message.tool_call_id, "response": message.content}
        return {"role": "tool", "parts": [part]}
    parts: list[Json] = [{"type": "text", "content": message.content}] if message.content else []
    parts += [
        {"type": "tool_call", "id": c.id, "name": c.name, "arguments": _given(c)} for c in message.tool_calls
    ]
    return {"role": message.role, "parts": parts}


def _given(call: ToolCall) -> Json:
    """The arguments of a tool call, as they were written where they are no object."""
    return dict(call.arguments) if call.arguments is not None else call.text


def _said(reply: Mapping[str, Json]) -> Json:
    """What a model answered, as a message of the conventions."""
    text, called = reply.get("text"), reply.get("tool_calls")
    parts: list[Json] = [{"type": "text", "content": text}] if text else []
    for call in called if isinstance(called, list) else []:
        if isinstance(call, dict):
            arguments = call.get("arguments", call.get("text"))
            parts.append({"type": "tool_call", "id": call.get("id"), "name": call.get("name"), "arguments": arguments})
    reasons = _finish(reply)
    return {"role": "assistant", "parts": parts, "finish_reason": reasons[0] if reasons else "stop"}


def _json(value: Json) -> str:
    return dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(value: Json) -> str:
    return value if isinstance(value, str) else _json(value)


# ---------------------------------------------------------------- ids


def _trace_id(state: RunState) -> str:
    """32 hex digits that are the same for the same run, and for no other: run ids are short."""
    created = state.created
    named = (created.run_id, f"{state.created_at!r}", created.project, created.plan_digest)
    return sha256("\0".join(("dagrun", *named)).encode("utf-8", "replace")).hexdigest()[:32]


def _span_id(trace: str, place: str) -> str:
    """16 hex digits of a place in a run."""
    return sha256(f"{trace}\0{place}".encode("utf-8", "replace")).hexdigest()[:16]

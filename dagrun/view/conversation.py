"""What an agent said and did in an attempt, as tables and as JSON.

Made of the calls and tools that the journal holds, in their order. Texts of models and tools are shown
only on request; all of them are hostile and go through view/text.py. Knows no file: `get` reads a
reference of the journal and gives None for what is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from typing import TYPE_CHECKING, TypeAlias

from dagrun.core.event import CallEnded, CallReserved, ToolEnded
from dagrun.core.names import Json, NodeId, format_duration
from dagrun.core.usage import usd
from dagrun.view.tables import Head, table
from dagrun.view.text import PLAIN, Look, clean, clean_block, folded, money, size, tokens

if TYPE_CHECKING:
    from dagrun.core.event import Event

Get: TypeAlias = Callable[[Mapping[str, Json]], Json]
Conversations: TypeAlias = "Mapping[tuple[NodeId, int], Sequence[Step]]"  # by node and attempt

_MESSAGE = 300  # characters of an error's text
_ERROR = "error: "  # how a model is told that a tool call went wrong
_QUIET = frozenset({"not_permitted"})  # a reason that nobody has to act on


@dataclass(slots=True)
class Call:
    """A model call; `began` and `ended` are wall times in seconds. Without an end it is under way, or was cut."""

    reserved: CallReserved
    began: float
    answer: CallEnded | None = None
    ended: float = 0.0


@dataclass(slots=True)
class ToolUse:
    """A tool call that is over."""

    event: ToolEnded
    ended: float

    @property
    def began(self) -> float:
        """When it was let go, in seconds of wall time."""
        return self.ended - (0 if self.event.reused else self.event.duration_ms / 1000)


Step: TypeAlias = Call | ToolUse


def conversations(told: Iterable[tuple[float, Event]]) -> dict[tuple[NodeId, int], list[Step]]:
    """The steps of each attempt of an agent, in their order; `told` are events with their wall time."""
    found: dict[tuple[NodeId, int], list[Step]] = {}
    calls: dict[tuple[NodeId, int, int], Call] = {}
    for at, event in told:
        match event:
            case CallReserved():
                call = calls[event.node, event.attempt, event.call] = Call(event, at)
                found.setdefault((event.node, event.attempt), []).append(call)
            case CallEnded():
                asked = calls.get((event.node, event.attempt, event.call))
                if asked is not None:
                    asked.answer, asked.ended = event, at
            case ToolEnded():
                found.setdefault((event.node, event.attempt), []).append(ToolUse(event, at))
            case _:
                pass
    return found


def mapping(get: Get, ref: Mapping[str, Json]) -> Mapping[str, Json]:
    """The object that a reference stands for; empty where there is none."""
    value = get(ref) if ref else None
    return value if isinstance(value, dict) else {}


def rejections(steps: Sequence[Step], get: Get) -> dict[int, tuple[str, ...]]:
    """The calls whose answer did not fit the schema, by number, with what the agent was told was wrong."""
    found: dict[int, tuple[str, ...]] = {}
    before: Call | None = None
    for step in steps:
        if isinstance(step, ToolUse):
            before = None
            continue
        if before is not None and step.reserved.turn > before.reserved.turn:
            said = _list(mapping(get, step.reserved.request).get("messages"))
            last = said[-1] if said else None
            if isinstance(last, dict) and last.get("role") == "user":
                lines = str(last.get("content", "")).split("\n")
                found[before.reserved.call] = tuple(line[2:] for line in lines if line.startswith("- "))
        before = step if step.answer is not None and not step.answer.error else None
    return found


def refusals(steps: Sequence[Step], get: Get) -> dict[int, tuple[tuple[str, str], ...]]:
    """The tool calls that were never let through, by the number of the call that wanted them: (tool, why)."""
    found: dict[int, tuple[tuple[str, str], ...]] = {}
    before: Call | None = None
    ran: list[str] = []
    for step in steps:
        if isinstance(step, ToolUse):
            ran.append(str(get(step.event.text) or ""))
            continue
        if before is not None and step.reserved.turn > before.reserved.turn:
            refused = tuple(_refused(before, step, ran, get))
            if refused:
                found[before.reserved.call] = refused
            ran = []
        before = step if step.answer is not None and not step.answer.error else before
    return found


def _refused(before: Call, after: Call, ran: Sequence[str], get: Get) -> Iterator[tuple[str, str]]:
    """What the next request says went wrong with a tool call that no tool has answered."""
    assert before.answer is not None
    asked = [c for c in _list(mapping(get, before.answer.answer).get("tool_calls")) if isinstance(c, dict)]
    names = {str(c.get("id", "")): str(c.get("name", "")) for c in asked}
    told = [m for m in _list(mapping(get, after.reserved.request).get("messages")) if isinstance(m, dict)]
    told = [m for m in told if m.get("role") == "tool"]
    if len(told) <= len(ran):
        return
    for message in told:
        text = str(message.get("content", ""))
        why = text.removeprefix(_ERROR)
        if why != text and text not in ran and why not in ran:
            yield names.get(str(message.get("tool_call_id", "")), ""), why


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


# ---------------------------------------------------------------- as text

_HEADS = (
    Head("CALL"),
    Head("TURN", right=True),
    Head("TRY", right=True, optional=True),
    Head("IN", right=True),
    Head("OUT", right=True),
    Head("CACHED", right=True, optional=True),
    Head("THOUGHT", right=True, optional=True),
    Head("COST", right=True, optional=True),
    Head("FIRST", right=True, optional=True),
    Head("TIME", right=True),
)


def conversation_lines(steps: Sequence[Step], get: Get, look: Look = PLAIN, *, full: bool = False) -> list[str]:
    """A line for each call of a model or a tool, below it what is worth a word; with `full` all that was said."""
    if not steps:
        return []
    rejected, refused = rejections(steps, get), refusals(steps, get)
    rows = [_call_row(s) if isinstance(s, Call) else _tool_row(s) for s in steps]
    head, *lines = table(_HEADS, rows, look)
    made = [head]
    known = ""  # how the model that was asked last is called by its provider
    shown: set[str] = set()
    for step, line in zip(steps, lines, strict=True):
        made.append(line)
        if isinstance(step, Call):
            notes = _call_notes(step, get, rejected, known)
            notes += [f"refused {tool}: {why[:_MESSAGE]}" for tool, why in refused.get(step.reserved.call, ())]
            known = step.answer.model or known if step.answer is not None else known
        else:
            notes = _tool_notes(step, get, look)
        for note in notes:
            made += [look.paint(text, "dim") for text in folded("    ", clean(note).split(" "), look.width)]
        if full:
            made += _texts(step, get, look, shown)
    return made


def _call_row(call: Call) -> tuple[str, ...]:
    asked, answer = call.reserved, call.answer
    what = (clean(asked.model), str(asked.turn), str(asked.tries) if asked.tries > 1 else "")
    if answer is None:
        return (*what, "", "", "", "", "", "", "")
    used = answer.usage
    first = answer.first_token_ms
    return (
        *what,
        tokens(used[0]) if used else "",
        tokens(used[1]) if used else "",
        tokens(used[2]) if used and used[2] else "",
        tokens(used[4]) if used and used[4] else "",
        money(answer.spent) if answer.spent else "",
        format_duration(first / 1000) if first is not None else "",
        format_duration(_took_ms(call) / 1000),
    )


def _took_ms(call: Call) -> int:
    """How long a call took: as it was measured, else between its records."""
    assert call.answer is not None
    return call.answer.duration_ms or max(0, round((call.ended - call.began) * 1000))


def _tool_row(use: ToolUse) -> tuple[str, ...]:
    event = use.event
    took = format_duration(event.duration_ms / 1000)
    return (f"  {clean(event.name)}", str(event.turn), "", "", "", "", "", "", "", took)


def _call_notes(call: Call, get: Get, rejected: Mapping[int, tuple[str, ...]], known: str) -> list[str]:
    asked, answer = call.reserved, call.answer
    notes = [text for reason in asked.reasons if (text := reason_text(reason))]
    if answer is None:
        return [*notes, "no answer"]
    said = mapping(get, answer.answer)
    if answer.reused:
        notes.append(f"reused: call {answer.reused} had bought it")
    if answer.error:
        return [*notes, _error_text(answer, said)]
    if answer.model and answer.model not in (known, asked.model, asked.model.partition("/")[2]):
        notes.append(f"answered by {answer.model}")
    if not answer.usage and answer.spent:
        notes.append("it did not say what it used: all that was reserved counts as spent")
    if said.get("finish") == "length":
        notes.append(f"cut off at {asked.max_tokens:,} tokens")
    if said.get("finish") == "refused":
        notes.append("refused")
    wanted = [str(c.get("name", "")) for c in _list(said.get("tool_calls")) if isinstance(c, dict)]
    if wanted:
        notes.append(f"asks for {', '.join(wanted)}")
    if asked.call in rejected:
        notes.append(f"does not fit its schema: {'; '.join(rejected[asked.call])}")
    return notes


def _error_text(answer: CallEnded, said: Mapping[str, Json]) -> str:
    status = f" {said['status']}" if said.get("status") else ""
    wait = said.get("retry_after_s")
    again = f", it asks to wait {format_duration(wait)}" if isinstance(wait, int | float) and wait else ""
    text = str(said.get("message", ""))[:_MESSAGE]
    return f"{answer.error.replace('_', ' ')}{status}{again}{f': {text}' if text else ''}"


def reason_text(reason: Json) -> str:
    """Why a model was left or passed over: `[model, code, text]` of an event; empty where nobody has to know."""
    parts = [str(part) for part in reason] if isinstance(reason, list) else []
    model, code, text = (*parts, "", "", "")[:3]
    return "" if code in _QUIET else f"{model}: {text or code.replace('_', ' ')}".removeprefix(": ")


def _tool_notes(use: ToolUse, get: Get, look: Look) -> list[str]:
    event = use.event
    again = f", reused from {event.reused}" if event.reused else ""
    given = mapping(get, event.arguments)
    arguments = dumps(given, ensure_ascii=False) if given else ""
    note = f"{'ok' if event.ok else 'failed'}, {size(_ref_bytes(event.text))}{again}  {arguments}".rstrip()
    return [look.cut(clean(note), look.width - 4) if look.width else note]


def _ref_bytes(ref: Mapping[str, Json]) -> int:
    """The size of the text that a reference stands for."""
    if "v" in ref:
        return len(str(ref["v"]).encode("utf-8", "replace"))
    found = ref.get("size")
    return found if isinstance(found, int) else 0


def _texts(step: Step, get: Get, look: Look, shown: set[str]) -> list[str]:
    """All that was said in a step: what was new in the request, and the answer; what is in `shown` only once."""
    if isinstance(step, ToolUse):
        result = str(get(step.event.text) or "")
        shown.add(result)
        return _block("result", result, look)
    lines: list[str] = []
    for message in _list(mapping(get, step.reserved.request).get("messages")):
        text = str(message.get("content") or "") if isinstance(message, dict) else ""
        said_before = text in shown or text.removeprefix(_ERROR) in shown
        if isinstance(message, dict) and not (message.get("role") in ("assistant", "tool") and said_before):
            lines += _block(str(message.get("role", "")), text, look)
    if step.answer is not None:
        said = mapping(get, step.answer.answer)
        text = str(said.get("text") or said.get("partial") or "")
        shown.add(text)
        lines += _block("answer", text, look)
    return lines


def _block(title: str, text: str, look: Look) -> list[str]:
    if not text:
        return []
    width = look.width - 6 if look.width else None
    shown = clean_block(text).rstrip("\n").split("\n")
    cut = [look.cut(line, width) if width else line for line in shown]
    return [look.paint(f"    {clean(title)}", "dim"), *(f"    | {line}" for line in cut)]


# ---------------------------------------------------------------- as JSON


def conversation_json(steps: Sequence[Step], get: Get, *, full: bool = False) -> list[Json]:
    """The steps of an attempt for programs; texts and arguments only with `full`."""
    rejected, refused = rejections(steps, get), refusals(steps, get)
    made: list[Json] = []
    for step in steps:
        if isinstance(step, ToolUse):
            made.append(_tool_json(step, get, full))
            continue
        call = _call_json(step, get, rejected, full)
        gone: list[Json] = [{"tool": tool, "why": why} for tool, why in refused.get(step.reserved.call, ())]
        made.append(call | ({"refused_tools": gone} if gone else {}))
    return made


def _call_json(call: Call, get: Get, rejected: Mapping[int, tuple[str, ...]], full: bool) -> dict[str, Json]:
    asked, answer = call.reserved, call.answer
    made: dict[str, Json] = {
        "call": asked.call,
        "turn": asked.turn,
        "try": asked.tries,
        "model_asked": asked.model,
        "max_tokens": asked.max_tokens,
        "reserved_usd": usd(asked.amount),
        "request_sha256": asked.digest,
        "reasons": list(asked.reasons),
        "answered": answer is not None,
    }
    if answer is not None:
        names = ("input_tokens", "output_tokens", "cached_tokens", "cache_written_tokens", "reasoning_tokens")
        made |= {
            "model": answer.model or None,
            **{name: answer.usage[k] if answer.usage else None for k, name in enumerate(names)},
            "cost_usd": usd(answer.spent),
            "first_token_ms": answer.first_token_ms,
            "duration_ms": _took_ms(call),
            "error": answer.error,
            "reused": answer.reused,
            "finish": mapping(get, answer.answer).get("finish"),
        }
    if asked.call in rejected:
        made["rejected"] = list(rejected[asked.call])
    if full:
        made["request"] = dict(mapping(get, asked.request))
        made["answer"] = dict(mapping(get, answer.answer)) if answer is not None else None
    return made


def _tool_json(use: ToolUse, get: Get, full: bool) -> dict[str, Json]:
    event = use.event
    made: dict[str, Json] = {
        "tool": event.name,
        "number": event.number,
        "turn": event.turn,
        "ok": event.ok,
        "result_bytes": _ref_bytes(event.text),
        "duration_ms": event.duration_ms,
        "reused": event.reused,
    }
    if full:
        made["arguments"] = dict(mapping(get, event.arguments))
        made["result"] = get(event.text) if event.text else None
    return made

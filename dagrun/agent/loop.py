"""One attempt of an agent as a pure state machine: answers and results in, the next thing to do out.

    step(task, state, event) → state          effect(task, state) → CallModel | CallTool | Finish

Exactly one effect is due at any time; tool calls of one reply are carried out in their order. The
state is a fold of the events, so that whoever kept them stands where they end, asks nothing again
and goes on: resume and replay are this same code. Which model answers, what it may cost, how a call is
tried again and where a tool runs is for the caller; here is only what an agent may do next.

Knows no clock, process, network or budget. Hitting any cap is never `completed`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from dagrun.agent.gate import arguments_text, listed, refusal, with_ids
from dagrun.agent.messages import TRANSIENT, CallFailed, Reply, Request, ToolCall
from dagrun.agent.prompt import ToolOutput, Turn, build, clip, sound
from dagrun.agent.steps import (
    MIN_TOKENS,
    Answered,
    CallModel,
    CallTool,
    Caps,
    Effect,
    Event,
    Finish,
    MoneyShort,
    Task,
    Ticked,
    ToolReturned,
)
from dagrun.agent.structured import MAX_REMINDERS, Wrong, judge, reminder
from dagrun.core.names import Outcome
from dagrun.errors import BugError

__all__ = [
    "START",
    "Answered",
    "CallModel",
    "CallTool",
    "Caps",
    "Effect",
    "Event",
    "Finish",
    "MoneyShort",
    "State",
    "Task",
    "Ticked",
    "ToolReturned",
    "effect",
    "fold",
    "step",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where an attempt stands: its turns, the last one open while tools are due, and what is used up.

    `counted` are the turns that count against the cap: answers to a reminder or a raise don't, and
    `again` says that such a one is due. `cut` is the answer that a raise is to replace.
    """

    turns: tuple[Turn, ...] = ()
    counted: int = 0
    calls: int = 0
    tokens: int = 0
    transcript_bytes: int = 0
    again: Literal["", "reminder", "raise"] = ""
    raised: bool = False
    cut: str = ""
    rejected: tuple[str, ...] = ()
    ended: Finish | None = None


START = State()


def fold(task: Task, events: Iterable[Event], state: State = START) -> State:
    """The state after some events. Raises BugError for events that can't follow one another."""
    for event in events:
        state = step(task, state, event)
    return state


def step(task: Task, state: State, event: Event) -> State:
    """The state after one event. Raises BugError when it does not answer the effect that is due."""
    if state.ended is not None:
        raise BugError(f"{type(event).__name__} after the end of an agent's attempt")
    due = _open_call(state)
    match event:
        case Ticked():
            pass
        case ToolReturned() if due is not None and event.number == _number(state):
            state = _passed(task, _returned(task, state, ToolOutput(event.ok, event.text)))
        case Answered() if due is None:
            state = _answered(task, state, event)
        case MoneyShort() if due is None:
            state = replace(state, ended=_unaffordable(state, event.reason))
        case _:
            raise BugError(f"{type(event).__name__} answers nothing that an agent waits for")
    if state.ended is None or state.ended.outcome is Outcome.COMPLETED:
        ended = _over_cap(task, state, event.at_s)
        return replace(state, ended=ended) if ended is not None else state
    return state


def effect(task: Task, state: State) -> Effect:
    """What is due. The same state gives the same effect, byte for byte."""
    if state.ended is not None:
        return state.ended
    call = _open_call(state)
    if call is not None:
        return CallTool(_number(state), len(state.turns), call)
    tools = listed(task.tools, task.rules)
    prompt = build(replace(task.briefing, tools=bool(tools)), state.turns)
    request = Request(
        model="",
        messages=prompt.messages,
        tools=tools,
        max_tokens=_room(task, state),
        temperature=task.temperature,
        schema=task.briefing.schema,
    )
    least = task.max_tokens + 1 if state.again == "raise" else MIN_TOKENS
    return CallModel(len(state.turns) + 1, request, prompt, task.model, min(least, request.max_tokens))


def _wanted(task: Task, state: State) -> int:
    return task.max_tokens_once if state.raised and task.max_tokens_once is not None else task.max_tokens


def _room(task: Task, state: State) -> int:
    """The most tokens that the next answer may have."""
    wanted = _wanted(task, state)
    return wanted if task.caps.tokens is None else max(1, min(wanted, task.caps.tokens - state.tokens))


# ---------------------------------------------------------------- answers


def _answered(task: Task, state: State, event: Answered) -> State:
    """A reply becomes a turn or the end; an error is the end."""
    answer = event.answer
    if isinstance(answer, CallFailed):
        return replace(state, ended=_failed(state, answer))
    before = state.tokens
    state = replace(
        state,
        tokens=before + _spent(task, state, event, answer),
        transcript_bytes=state.transcript_bytes + _said_bytes(answer),
        counted=state.counted + (not state.again),
    )
    if answer.finish == "refused":
        return replace(state, ended=Finish(outcome=Outcome.REFUSED, text=answer.text, error="the model refused"))
    if answer.finish == "length":
        return _cut_off(task, state, answer, before)
    turn = Turn(reply=replace(answer, tool_calls=with_ids(answer.tool_calls, len(state.turns) + 1)))
    state = replace(state, turns=(*state.turns, turn), calls=state.calls + len(answer.tool_calls), again="", cut="")
    if not answer.tool_calls:
        return _judged(task, state, answer.text)
    # more than may be called: nothing of it is done, nor refused one by one
    return state if state.calls > task.caps.tool_calls else _passed(task, state)


def _judged(task: Task, state: State, text: str) -> State:
    """The last word: held to the schema where there is one, with a reminder while some are left."""
    if task.briefing.schema is None:
        return replace(state, ended=Finish(outcome=Outcome.COMPLETED, text=text))
    verdict = judge(text, task.briefing.schema)
    if not isinstance(verdict, Wrong):
        done = Finish(outcome=Outcome.COMPLETED, text=text, outputs=verdict.value, rejected=state.rejected)
        return replace(state, ended=done)
    left = MAX_REMINDERS - len(state.rejected)
    rejected = (*state.rejected, text)
    if left == 0:
        error = "the answer does not fit its schema: " + "; ".join(verdict.errors)
        ended = Finish(outcome=Outcome.INVALID_OUTPUT, text=text, error=error, rejected=rejected)
        return replace(state, rejected=rejected, ended=ended)
    told = replace(state.turns[-1], reminder=reminder(verdict.errors, left - 1))
    return replace(state, turns=(*state.turns[:-1], told), rejected=rejected, again="reminder")


def _cut_off(task: Task, state: State, reply: Reply, before: int) -> State:
    """An answer that ran out of tokens: asked for once more with a higher limit, else the end.

    It is no turn: the next answer takes its place. `before` is what had been used when it was asked for.
    """
    cap = task.caps.tokens
    may_raise = not state.raised and task.max_tokens_once is not None and task.max_tokens_once > task.max_tokens
    if cap is not None and (
        cap - before <= _wanted(task, state) or (may_raise and cap - state.tokens <= task.max_tokens)
    ):
        error = f"the answer was cut off at the limit of {cap:,} tokens"
        return replace(state, ended=Finish(outcome=Outcome.OVER_LIMIT, limit="tokens", text=reply.text, error=error))
    if not may_raise:
        return replace(state, ended=_truncated(reply.text, "the answer was cut off at `max_tokens`"))
    return replace(state, raised=True, again="raise", cut=reply.text)


def _truncated(text: str, error: str) -> Finish:
    return Finish(outcome=Outcome.TRUNCATED, text=text, error=error)


def _unaffordable(state: State, reason: str) -> Finish:
    """No money for the call that is due; what was said so far is kept."""
    if state.again == "raise":
        return _truncated(state.cut, f"the answer was cut off, and there is no money for a longer one: {reason}")
    return Finish(outcome=Outcome.OVER_BUDGET, text=_said(state), error=reason, rejected=state.rejected)


def _failed(state: State, answer: CallFailed) -> Finish:
    outcome = Outcome.OVER_BUDGET if answer.kind == "unbounded" else Outcome.FAILED
    return Finish(
        outcome=outcome,
        text=answer.partial or _said(state),
        error=f"the model call failed ({answer.kind.replace('_', ' ')}): {answer.message}",
        kind=answer.kind,
        transient=answer.kind in TRANSIENT,
    )


def _over_cap(task: Task, state: State, at_s: float) -> Finish | None:
    """The end that a cap asks for, before anything more is done."""
    caps, said = task.caps, _said(state)
    if caps.time_s is not None and at_s >= caps.time_s:
        return Finish(outcome=Outcome.TIMED_OUT, text=said, error=f"the agent took more than {caps.time_s:g} s")
    goes_on = state.ended is None
    limit = ""
    if state.transcript_bytes > caps.transcript_bytes:
        limit, error = "output", f"the conversation has more than {caps.transcript_bytes:,} bytes"
    elif caps.tokens is not None and state.tokens + goes_on > caps.tokens:
        limit, error = "tokens", f"the agent used its {caps.tokens:,} tokens"
    elif state.calls > caps.tool_calls:
        limit, error = "tool_calls", f"the agent asked for more than {caps.tool_calls:,} tool calls"
    elif goes_on and not state.again and state.counted >= caps.turns:
        limit, error = "turns", f"the agent was not done after {caps.turns:,} turns"
    if not limit:
        return None
    return Finish(outcome=Outcome.OVER_LIMIT, limit=limit, text=said, error=error, rejected=state.rejected)


def _said(state: State) -> str:
    return state.cut or next((turn.reply.text for turn in reversed(state.turns) if turn.reply.text), "")


def _spent(task: Task, state: State, event: Answered, reply: Reply) -> int:
    """The tokens of a call; where the provider does not say, the most that they can be."""
    if reply.usage is not None:
        return reply.usage.input + reply.usage.output
    if task.caps.tokens is None:
        return 0
    asked = effect(task, state)
    assert isinstance(asked, CallModel)
    most = event.max_tokens if event.max_tokens is not None else asked.request.max_tokens
    return len(asked.request.canonical().encode("utf-8", "surrogatepass")) + most


def _said_bytes(reply: Reply) -> int:
    return sum(len(sound(text).encode()) for text in (reply.text, *map(arguments_text, reply.tool_calls)))


# ---------------------------------------------------------------- tools


def _open_call(state: State) -> ToolCall | None:
    """The tool call that has no result yet."""
    if not state.turns:
        return None
    last = state.turns[-1]
    calls, done = last.reply.tool_calls, len(last.results)
    return calls[done] if done < len(calls) else None


def _number(state: State) -> int:
    """The number of the open call in the attempt, from 1."""
    last = state.turns[-1]
    return state.calls - len(last.reply.tool_calls) + len(last.results) + 1


def _passed(task: Task, state: State) -> State:
    """Up to the next call that is let through: those before it get their refusals as results."""
    while (call := _open_call(state)) is not None:
        why = refusal(call, task.tools, task.rules, task.project)
        if not why:
            break
        state = _returned(task, state, ToolOutput(False, why))
    return state


def _returned(task: Task, state: State, output: ToolOutput) -> State:
    """The open call has its result, cut to size."""
    head, tail, dropped = clip(output.text, task.caps.result_bytes)
    text = f"{head}\n[… {dropped:,} bytes are left out here …]\n{tail}" if dropped else head
    last = state.turns[-1]
    turn = replace(last, results=(*last.results, ToolOutput(output.ok, text)))
    size = state.transcript_bytes + len(text.encode())
    return replace(state, turns=(*state.turns[:-1], turn), transcript_bytes=size)

"""What happened, for readers: the state of a run as trace entries, totals and its real critical path.

An entry begins with the eleven fields of the seed [dag-runtime], in their order and by their
names; ours follow. Everything here is derived: nothing is kept that the journal doesn't hold.
Durations are monotonic (`duration_ms`); wall time only says when something began.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from json import JSONEncoder
from typing import TYPE_CHECKING, cast

from dagrun.core.names import Json, NodeId, Outcome, RunId, RunStatus, Status, format_duration
from dagrun.core.state import wave_of
from dagrun.core.tracepath import run_critical_path
from dagrun.core.usage import Usage, money_of, usage_of, usage_of_run, usage_to_json, usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagrun.core.event import AttemptFinished
    from dagrun.core.permissions import Isolation
    from dagrun.core.state import Attempt, RunState
    from dagrun.core.workflow import Node

TRACE_VERSION = 1

_canonical = JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False).encode
_SIGNALS = {1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE"} | {
    9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM", 24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS"
}  # fmt: skip


@dataclass(slots=True, frozen=True, kw_only=True)
class TraceAttempt:
    """One try of a node. `outcome` is None while it runs; `started_at` is ISO 8601 in UTC."""

    number: int
    outcome: Outcome | None
    started_at: str
    duration_ms: int
    exit_code: int | None = None
    signal: int | None = None
    error: str = ""
    limit: str = ""
    max_rss_bytes: int | None = None
    cpu_ms: int | None = None
    agent: Usage | None = None


@dataclass(slots=True, frozen=True, kw_only=True)
class TraceEntry:
    """All that is known of one node of a run.

    `duration_ms` is the time worked: the sum of its attempts, without the delays between them.
    `retries` are attempts after the first, and the model calls that asked for the same once more. `model`
    is the one that answered, `agent` what an agent used (None: there was none). `error` says why the last
    attempt of a node that did not complete ended so, `reason` why a node was skipped, cancelled or
    adopted. `isolation` is the level it runs at, `sandbox` the back end that held its last attempt ("":
    none). Digests are sha256, empty when there is nothing. Texts are as the node wrote them: not safe for
    a screen.
    """

    node_id: NodeId
    wave: int
    status: Status
    model: str | None = None
    skills_used: tuple[str, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    duration_ms: int = 0
    retries: int = 0
    output_summary: str = ""
    run_id: RunId = ""
    revision: int = 1
    kind: str = "run"
    isolation: str = "process"
    attempts: tuple[TraceAttempt, ...] = ()
    reserved_usd: float = 0.0
    error: str = ""
    reason: str = ""
    inputs_digest: str = ""
    outputs_digest: str = ""
    removed_in: int | None = None
    title: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    sandbox: str = ""
    agent: Usage | None = None


_ENTRY_FIELDS = tuple(f.name for f in fields(TraceEntry) if f.name != "agent")
_ATTEMPT_FIELDS = tuple(f.name for f in fields(TraceAttempt) if f.name != "agent")


def trace_entries(state: RunState, wall_now: float | None = None) -> list[TraceEntry]:
    """One entry for each node, by wave and within it in the order of the file. O(nodes + attempts).

    `wall_now` is what a running attempt is measured to; without it, to the last record.
    """
    order = sorted(range(len(state.plan.ids)), key=lambda i: wave_of(state, i))
    return [trace_entry(state, i, wall_now) for i in order]


def trace_entry(state: RunState, i: int, wall_now: float | None = None) -> TraceEntry:
    """The entry of node number `i`."""
    node = state.plan.nodes[i]
    status = state.node_status[i]
    tried = state.attempts[i]
    attempts = tuple([_attempt(a, state, node, wall_now) for a in tried])
    last = tried[-1].finish if tried else None
    outputs = state.outputs.get(i)
    used = usage_of(node, tried)
    return TraceEntry(
        node_id=node.id,
        wave=wave_of(state, i),
        status=status,
        model=used.model if used else None,
        skills_used=tuple(used.skills) if used else (),
        input_tokens=used.input if used else 0,
        output_tokens=used.output if used else 0,
        cost_usd=usd(used.spent) if used else 0.0,
        duration_ms=sum([a.duration_ms for a in attempts]),
        retries=max(0, len(attempts) - 1) + (used.repeats if used else 0),
        output_summary=last.summary if last else "",
        run_id=state.created.run_id,
        revision=tried[-1].revision if tried else state.plan.revision,
        kind=node.kind,
        isolation=_level(state, node),
        attempts=attempts,
        reserved_usd=usd(used.held) if used else 0.0,
        error=attempts[-1].error if attempts and status is not Status.COMPLETED else "",
        reason=node_reason(state, i),
        inputs_digest=tried[-1].inputs_digest if tried else "",
        outputs_digest=_digest(outputs) if outputs else "",
        removed_in=state.removed.get(i),
        title=node.title,
        stdout_bytes=last.stdout_bytes if last else 0,
        stderr_bytes=last.stderr_bytes if last else 0,
        sandbox=tried[-1].sandbox if tried else "",
        agent=used,
    )


def _level(state: RunState, node: Node) -> Isolation:
    """The level that a node runs at: its own, or the floor of a scope above it."""
    ceiling = state.plan.workflow.permissions
    if ceiling is None and node.permissions is None:
        return node.isolation
    from dagrun.core.lattice import effective  # 2 ms that a plain flow has no use for

    return effective(ceiling, node.permissions, node.isolation).isolation


def _digest(outputs: Mapping[str, Json]) -> str:
    """sha256 of the outputs as the journal holds them."""
    from hashlib import sha256  # 3 ms that a live table has no use for

    return sha256(_canonical(dict(outputs)).encode()).hexdigest()


def node_reason(state: RunState, i: int) -> str:
    """Why a node was skipped, cancelled, adopted, removed or replaced, or what it waits for; or an empty text."""
    status = state.node_status[i]
    if i in state.removed:
        return f"removed in revision {state.removed[i]}"
    if status is Status.SUPERSEDED and i in state.stand_ins:
        return f"{state.plan.ids[state.stand_ins[i]]} stands in"
    if i in state.reviews:
        return f"waits for review: {state.reviews[i].message}" if state.reviews[i].message else "waits for review"
    if i in state.adopted:
        return f"adopted from run {state.adopted[i]}"
    text = state.reasons.get(i, "")
    if status is Status.SKIPPED:
        kind = state.skips.get(i, "")
        return f"{kind}: {text}" if kind and text else kind or text
    if status is Status.CANCELLED:
        return text or "the run was cancelled"
    return ""


def _attempt(attempt: Attempt, state: RunState, node: Node, wall_now: float | None) -> TraceAttempt:
    finish = attempt.finish
    if finish is None:
        ran_s = state.now_m - attempt.started_m if wall_now is None else wall_now - attempt.started_at
        return TraceAttempt(
            number=attempt.number,
            outcome=None,
            started_at=iso_utc(attempt.started_at),
            duration_ms=max(0, round(ran_s * 1000)),
            agent=usage_of(node, (attempt,)),
        )
    return TraceAttempt(
        number=attempt.number,
        outcome=finish.outcome,
        started_at=iso_utc(attempt.started_at),
        duration_ms=finish.duration_ms,
        exit_code=finish.exit_code,
        signal=finish.signal,
        error="" if finish.outcome is Outcome.COMPLETED else cause(finish, node),
        limit=finish.limit,
        max_rss_bytes=finish.max_rss_bytes,
        cpu_ms=finish.cpu_ms,
        agent=usage_of(node, (attempt,)),
    )


def cause(finish: AttemptFinished, node: Node) -> str:
    """Why an attempt did not complete, in a few words; never empty."""
    if finish.error:
        return finish.error
    outcome = finish.outcome
    if outcome in (Outcome.REJECTED, Outcome.REVIEW_TIMED_OUT):
        return outcome.value.replace("_", " ")
    if outcome is Outcome.TIMED_OUT:
        return f"timed out after {format_duration(node.timeout_s)}"
    if outcome is Outcome.OVER_LIMIT:
        return f"over its {finish.limit or 'resource'} limit"
    if outcome is Outcome.LOST:
        return "lost when dagrun was killed"
    if finish.signal:
        name = _SIGNALS.get(finish.signal)
        return f"signal {finish.signal}" + (f" ({name})" if name else "")
    if finish.exit_code:
        return f"exit {finish.exit_code}"
    return outcome.value.replace("_", " ")


def entry_to_json(entry: TraceEntry) -> dict[str, Json]:
    """The JSON form of an entry: the seed's eleven fields first; `agent` only where there was one."""
    data = {name: getattr(entry, name) for name in _ENTRY_FIELDS}
    data["skills_used"] = list(entry.skills_used)
    data["attempts"] = [_attempt_to_json(a) for a in entry.attempts]
    if entry.agent is not None:
        data["agent"] = usage_to_json(entry.agent)
    return cast("dict[str, Json]", data)


def _attempt_to_json(attempt: TraceAttempt) -> dict[str, Json]:
    data = {name: getattr(attempt, name) for name in _ATTEMPT_FIELDS}
    if attempt.agent is not None:
        data["agent"] = usage_to_json(attempt.agent)
    return cast("dict[str, Json]", data)


def _shown(ref: Json) -> Json:
    """An output value as the trace shows it: itself if it is small, else its digest and size."""
    return ref["v"] if isinstance(ref, dict) and "v" in ref else ref


def trace_to_json(state: RunState, wall_now: float | None = None, status: RunStatus | None = None) -> dict[str, Json]:
    """The whole trace: `{version, run, entries}`.

    `status` is given where the caller knows better than the journal (a crashed run).
    """
    created, ended = state.created, state.ended
    run: dict[str, Json] = {
        "run_id": created.run_id,
        "workflow": created.workflow,
        "file": created.file,
        "status": status or state.status,
        "exit_code": ended.exit_code if ended else None,
        "reason": ended.reason if ended else "",
        "revision": state.plan.revision,
        "schedule": created.schedule,
        "params": dict(created.params),
        "created_at": iso_utc(state.created_at),
        "ended_at": iso_utc(state.ended_at) if ended else None,
        "duration_ms": run_duration_ms(state, wall_now),
        "outputs": {name: _shown(ref) for name, ref in ended.outputs.items()} if ended else {},
        "totals": totals(state),
        "critical_path": [step.node_id for step in run_critical_path(state)],
        "warnings": [w.text for w in state.warnings],
        "version": created.version,
    }
    entries: list[Json] = [entry_to_json(e) for e in trace_entries(state, wall_now)]
    return {"version": TRACE_VERSION, "run": run, "entries": entries}


def run_duration_ms(state: RunState, wall_now: float | None = None) -> int:
    """How long the run has gone on: monotonic for a run of one engine, else wall time since it was created.

    What is written behind the end of a run, such as a refused patch, does not make it longer.
    """
    at, at_m = (state.now, state.now_m) if state.ended is None else (state.ended_at, state.ended_m)
    if state.ended is None and wall_now is not None:
        seconds = wall_now - state.created_at
    elif state.engines <= 1:
        seconds = at_m - state.attached_m if state.engines else 0.0
    else:
        seconds = at - state.created_at
    return max(0, round(seconds * 1000))


def totals(state: RunState) -> dict[str, Json]:
    """Sums over the run, as JSON. O(nodes).

    `duration_ms` is the run's, `worked_ms` the sum over all attempts; statuses without a node are
    left out of `by_status`. `reserved_usd` is held for calls under way.
    """
    attempts = [a for tried in state.attempts for a in tried]
    started = sum(bool(tried) for tried in state.attempts)
    by_status: dict[str, Json] = {s.value: n for s, n in state.counts.items() if n}
    used, money = usage_of_run(state), money_of(state)
    return {
        "nodes": len(state.plan.ids) - len(state.removed),
        "waves": state.plan.depth,
        "by_status": by_status,
        "duration_ms": run_duration_ms(state),
        "worked_ms": sum(a.finish.duration_ms for a in attempts if a.finish),
        "attempts": len(attempts),
        "retries": len(attempts) - started + used.repeats,
        "model_calls": used.calls,
        "input_tokens": used.input,
        "output_tokens": used.output,
        "cached_tokens": used.cached,
        "reasoning_tokens": used.reasoning,
        "cost_usd": usd(money.spent),
        "reserved_usd": usd(money.held),
        "cost_budget_usd": None if money.cap is None else usd(money.cap),
    }


# ---------------------------------------------------------------- wall time as text


def iso_utc(at: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC with milliseconds, by arithmetic: the core knows no clock."""
    ms = max(0, round(at * 1000))
    days, ms = divmod(ms, 86_400_000)
    year, month, day = _civil(days)
    hours, ms = divmod(ms, 3_600_000)
    minutes, ms = divmod(ms, 60_000)
    seconds, ms = divmod(ms, 1000)
    return f"{year:04d}-{month:02d}-{day:02d}T{hours:02d}:{minutes:02d}:{seconds:02d}.{ms:03d}Z"


def _civil(days: int) -> tuple[int, int, int]:
    """(year, month, day) of a day since 1970-01-01 in the Gregorian calendar.

    Source: H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
    """
    days += 719_468
    era, doe = divmod(days, 146_097)
    yoe = (doe - doe // 1460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    month = mp + 3 if mp < 10 else mp - 9
    return yoe + era * 400 + (month <= 2), month, doy - (153 * mp + 2) // 5 + 1

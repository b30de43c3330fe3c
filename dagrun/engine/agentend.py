"""From the end of an agent's attempt to its outcome: outputs, artifacts, the words for what went wrong."""

from __future__ import annotations

from time import monotonic
from typing import cast

from dagrun.agent.steps import Finish
from dagrun.core.event import AttemptFinished
from dagrun.core.names import Json, Outcome
from dagrun.core.workflow import Node
from dagrun.engine.attempt import SUMMARY_CHARS, Running, collect_declared, keep_artifacts, last_text_line
from dagrun.engine.bench import Workbench
from dagrun.engine.exchange import remove_exchange
from dagrun.engine.talk import Talk, log
from dagrun.sandbox.logpool import LogPool
from dagrun.store.exchange import OutputError


def finished(bench: Workbench, logs: LogPool, node: Node, talk: Talk) -> AttemptFinished:
    """The outcome of an attempt whose processes are all dead; gives its log slot and its folder back.

    Raises EnvironmentFault when the store fails.
    """
    replay = bench.replay
    made = node if replay is None else replay.without_files(node)
    finish = talk.finish if talk.ending is None or talk.finish is not None else None
    outcome, error, limit = _outcome(node, talk, finish)
    seat = talk.seat
    if finish is not None and seat is not None and seat.over is not None and seat.over.outcome == "denied":
        outcome, error, limit = Outcome.DENIED, seat.over.error, ""
    killed = next((one.over for one in talk.seats if one.over is not None and one.over.limit == "memory"), None)
    if outcome is Outcome.COMPLETED and killed is not None:  # only known now, as in a container
        outcome, error, limit = Outcome.OVER_LIMIT, killed.error, killed.limit
    outputs: dict[str, Json] = {}
    artifacts: tuple[Json, ...] = ()
    if outcome is Outcome.COMPLETED and finish is not None:
        try:
            outputs = _outputs(bench, made, talk, finish)
            running = Running(talk.node, talk.number, talk.command, talk.slot, talk.started_m)
            artifacts = keep_artifacts(bench, made, running)
        except OutputError as bad:
            outcome, error, outputs = Outcome.INVALID_OUTPUT, bad.message, {}
    if outcome is not Outcome.COMPLETED:
        log(talk, f"--- {outcome}: {error}\n")
    summary = last_text_line((finish.text if finish is not None else error).encode("utf-8", "replace"))
    if bench.mask:
        from dagrun.engine.masking import mask_file

        mask_file(bench.mask, talk.slot.err_fd)
    logs.take_back(talk.slot, node.output_bytes)
    retire = any(one.retire for one in talk.seats)
    out_bytes, err_bytes = logs.release(talk.slot, node.id, talk.number, retire=retire)
    if talk.command.folder:
        remove_exchange(talk.command.folder)
    event = AttemptFinished(
        node=node.id,
        attempt=talk.number,
        outcome=outcome,
        duration_ms=round((monotonic() - talk.started_m) * 1000),
        error=bench.mask.text(error),
        limit=limit,
        summary=bench.mask.text(summary)[:SUMMARY_CHARS],
        outputs=outputs,
        artifacts=artifacts,
        max_rss_bytes=seat.max_rss_bytes if seat is not None else None,
        cpu_ms=seat.cpu_ms if seat is not None else None,
        stdout_bytes=out_bytes,
        stderr_bytes=err_bytes,
        permanent=finish is not None and finish.kind != "" and not finish.transient,
    )
    return event if replay is None else replay.ended(bench, node, event)


def _outcome(node: Node, talk: Talk, finish: Finish | None) -> tuple[Outcome, str, str]:
    """(outcome, error, limit): what the engine ended, it ended."""
    if finish is not None:
        return finish.outcome, finish.error, finish.limit
    ending = talk.ending
    assert ending is not None
    ignored = f"; a tool ignored SIGTERM and was killed after {node.grace_s:g} s" if ending.escalated else ""
    return ending.outcome, ending.error + ignored, ending.limit


def _outputs(bench: Workbench, node: Node, talk: Talk, finish: Finish) -> dict[str, Json]:
    """References to what an agent gives: the parts of its structured answer, or its last words as `text`."""
    answered: dict[str, Json] = dict(finish.outputs) if finish.outputs is not None else {"text": finish.text}
    if node.outputs:
        running = Running(talk.node, talk.number, talk.command, talk.slot, talk.started_m)
        declared = collect_declared(bench, node, running, {"text": finish.text, **answered})
        answered = {**answered, **declared}
    return {name: cast(Json, dict(bench.context.put(bench.mask.value(value)))) for name, value in answered.items()}

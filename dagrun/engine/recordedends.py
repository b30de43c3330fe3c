"""What an attempt came to when it was recorded, taken over into a replay, and held to what is here now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from shutil import copyfile
from typing import cast

from dagrun.agent.replay import ReplayMiss
from dagrun.core.event import AttemptFinished, CallEnded, CallReserved, ToolEnded
from dagrun.core.names import Json
from dagrun.core.workflow import Node, node_to_json
from dagrun.engine.bench import Command
from dagrun.engine.recording import Record, Trial, read
from dagrun.store.context import ContextStore

HINT = "the workflow has changed since it was recorded: run it, or undo the change"
_UNSEEN = frozenset({"title", "estimate_s"})  # what a node may change without doing anything else
_WAITS = frozenset({"limited", "waits_too_long"})


class Present:
    """The present attempt of an agent: what of it happened, of what was answered when it was recorded."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.done = 0
        self.over = False
        deeds = [event for _, _, event in trial.deeds]
        self.reserved = [event for event in deeds if isinstance(event, CallReserved)]
        self.answered = sum(isinstance(e, ToolEnded) or (isinstance(e, CallEnded) and bool(e.answer)) for e in deeds)
        self.ends_asking = bool(deeds) and isinstance(deeds[-1], CallEnded)
        self.last = trial.deeds[-1][0] if deeds else trial.begun

    def left_alone(self, call: int) -> list[str]:
        """The models that were passed over for a call because they would have to wait."""
        if call > len(self.reserved):
            return []
        asked = self.reserved[call - 1]
        told = [cast("list[str]", reason) for reason in asked.reasons]
        return [model for model, code, _ in told if code in _WAITS and model != asked.model]


def end_of(
    record: Record, context: ContextStore, node: Node, number: int, made: Command, trial: Trial
) -> AttemptFinished:
    """What a command came to. Raises ReplayMiss where it is not the recorded one."""
    where = f"node `{node.id}`, attempt {number}"
    was, now = node_to_json(trial.node), node_to_json(node)
    apart = [key for key in {**was, **now} if was.get(key) != now.get(key) and key not in _UNSEEN]
    if apart:
        names = ", ".join(f"`{key}`" for key in sorted(apart)[:5])
        raise ReplayMiss(f"{where} was recorded with another {names}", hint=HINT)
    finished = trial.finished
    if trial.started is not None and trial.started.inputs_digest != made.inputs_digest:
        raise ReplayMiss(f"{where} was recorded with other values of its inputs", hint=HINT)
    if finished is None:
        raise ReplayMiss(f"{where} had not ended when the record did", hint="take up that run: dagrun resume")
    copy_artifacts(record, context, finished)
    return replace(finished, attempt=number, outputs=outputs_of(record, context, finished))


def outputs_of(record: Record, context: ContextStore, finished: AttemptFinished) -> dict[str, Json]:
    """The outputs of a recorded attempt, kept in another run."""
    where = f"{record.name}, node {finished.node}, attempt {finished.attempt}, output"
    return {
        name: dict(context.put(read(record, cast("Mapping[str, Json]", ref), f"{where} {name}")))
        for name, ref in finished.outputs.items()
    }


def copy_artifacts(record: Record, context: ContextStore, finished: AttemptFinished) -> None:
    """What a recorded attempt made is in another run too, where the record still has it: a file has none."""
    if record.run is None:
        return
    theirs = ContextStore(record.run)
    for artifact in finished.artifacts:
        sha = str(cast("Mapping[str, Json]", artifact)["sha"])
        source, target = theirs.artifact_path(sha), context.artifact_path(sha)
        if os.path.exists(source) and not os.path.exists(target):
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            copyfile(source, target)


def apart(record: Record, context: ContextStore, was: AttemptFinished, now: AttemptFinished) -> str:
    """How the end of a command that really ran differs from the recorded one; empty when it does not."""
    if was.outcome is not now.outcome:
        return f"it was {was.outcome} when it was recorded and is {now.outcome} now: {now.error or now.summary}"
    kept = outputs_of(record, context, was)
    name = next((n for n in {**kept, **now.outputs} if kept.get(n) != now.outputs.get(n)), None)
    return "" if name is None else f"its output {name} is another than when it was recorded"

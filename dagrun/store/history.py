"""A run read back from its folder: plan, state, and the events that follow. Never writes."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

from dagrun.core.event import Event, RunCreated, decode
from dagrun.core.evolve import evolve
from dagrun.core.names import RunStatus
from dagrun.core.plan import compile_plan
from dagrun.core.state import InvalidTransition, RunState, new_state
from dagrun.core.workflow import Workflow, workflow_from_json
from dagrun.errors import JournalError, NotFoundError
from dagrun.store.journal import Journal, Record
from dagrun.store.sync import Notice

if TYPE_CHECKING:
    from dagrun.store.rundir import RunDir


def load_workflow(run: RunDir, digest: str = "") -> Workflow:
    """The workflow that a run was started with. Raises JournalError when it is gone or was changed."""
    from json import loads

    try:
        with open(run.plan, "rb", buffering=0) as file:
            data = file.readall()
    except OSError as error:
        raise JournalError(f"can't read the plan {run.plan}: {error.strerror}") from error
    if digest:
        from hashlib import sha256

        if sha256(data).hexdigest() != digest:
            raise JournalError(f"the plan {run.plan} was changed after the run began: its digest does not match")
    return workflow_from_json(loads(data)["workflow"])


class History:
    """A run's journal being read: `state` is the fold of all that was read so far."""

    __slots__ = ("journal", "run", "state")

    def __init__(self, run: RunDir, *, write: bool = False) -> None:
        """Open and fold. Raises NotFoundError for a run without a first record, JournalError."""
        self.run = run
        self.journal = Journal.open(run.journal, write=write)
        try:
            records = self.journal.read()
            if not records:
                raise NotFoundError(f"run {run.id} never began: its journal is empty", hint="dagrun runs gc")
            self.state = _first_state(run, records[0])
            _fold(run, self.state, records)
        except BaseException:
            self.journal.close()
            raise

    def poll(self) -> list[Event]:
        """What was appended since the last look, folded."""
        return _fold(self.run, self.state, self.journal.read())

    def begin(self) -> None:
        """Take the journal's lock and fold what is new: until `journal.end` the state is the head."""
        news = self.journal.begin()
        try:
            _fold(self.run, self.state, news)
        except BaseException:
            self.journal.end()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self.journal.close()


class Follower(History):
    """A History with the kernel's notice, for who watches a run from another process."""

    __slots__ = ("notice",)

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        gc.enable()  # whoever follows lives long
        self.notice = Notice.watch(run.journal)

    def fileno(self) -> int | None:
        """Readable when the journal grew, where the kernel can tell."""
        return self.notice.fileno() if self.notice is not None else None

    def poll(self) -> list[Event]:
        if self.notice is not None:
            self.notice.drain()
        return super().poll()

    def close(self) -> None:
        if self.notice is not None:
            self.notice.close()
        super().close()


def _first_state(run: RunDir, record: Record) -> RunState:
    created = decode(record.events[0])
    if not isinstance(created, RunCreated):
        raise JournalError(f"{run.journal} does not begin with run.created")
    plan = compile_plan(load_workflow(run, created.plan_digest))
    return new_state(plan, created, record.t)


def _fold(run: RunDir, state: RunState, records: list[Record]) -> list[Event]:
    events: list[Event] = []
    for record in records:
        for data in record.events:
            try:
                event = decode(data)
                if not isinstance(event, RunCreated):
                    evolve(state, event, record.t, record.m)
            except (ValueError, KeyError, InvalidTransition) as error:
                raise JournalError(
                    f"{run.journal}, record {record.seq} at byte {record.offset}: {error}",
                    hint="a newer dagrun may have written it: pip install --upgrade dagrun",
                ) from error
            events.append(event)
    return events


def load_state(run: RunDir) -> RunState:
    """The state of a run as its journal tells it now."""
    history = History(run)
    history.close()
    return history.state


def run_status(run: RunDir, state: RunState) -> RunStatus:
    """The status of a run for people: a run without an end whose lock is free has crashed."""
    if state.status is RunStatus.RUNNING and run.lock_holder() is None:
        # it may have ended between our reading and our look at the lock
        if load_state(run).status is not RunStatus.RUNNING:
            return load_state(run).status
        return RunStatus.CRASHED
    return state.status


def exists(run: RunDir) -> bool:
    """Whether a run has begun: its journal is there and not empty."""
    try:
        return os.stat(run.journal).st_size > 0
    except OSError:
        return False

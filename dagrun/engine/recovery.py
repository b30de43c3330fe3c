"""A run whose engine is gone: what it left alive, what it left open, and the request to cancel it.

Knows no loop and spawns nothing. Whoever calls holds the lock of the run, except for `request_cancel`,
which takes it. Order: reap first, then name the logs, then journal that the open attempts are lost, so
a crash in between finds the same attempts open and does it again; every step may be done twice.
"""

from __future__ import annotations

import os

from dagrun.core.decide import EXIT_CODES
from dagrun.core.event import AttemptFinished, Event, RunEnded, StopRequested, decode, encode
from dagrun.core.evolve import evolve
from dagrun.core.mask import Masker
from dagrun.core.names import Outcome, RunStatus
from dagrun.core.state import RunState
from dagrun.engine.bench import is_guarded
from dagrun.engine.exchange import exchange_path, remove_exchange
from dagrun.engine.secrets import at_hand
from dagrun.errors import RunLockedError
from dagrun.sandbox.deadrun import reap_dead_run
from dagrun.sandbox.logpool import recover
from dagrun.store.disk import disk_fault
from dagrun.store.history import History
from dagrun.store.journal import Journal
from dagrun.store.rundir import RunDir

_OVER = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.OVER_BUDGET, RunStatus.CANCELLED)

# ---------------------------------------------------------------- what a dead engine left


def reap(run: RunDir, state: RunState) -> list[str]:
    """Kill what is alive of a dead run, whose lock we hold; the names of what was killed.

    Containers and control groups of its go too.
    """
    boot = state.engine.boot_id if state.engine is not None else ""
    recorded = [(a.pid, a.ticks, boot) for a in state.running.values() if a.pid]
    killed = reap_dead_run(run.id, recorded, run_dir=os.path.abspath(run.path))
    return [*killed, *_sweep(run, state)]


def _sweep(run: RunDir, state: RunState) -> list[str]:
    """Remove what the back ends of a dead run left; the names of its containers."""
    used = {attempt.sandbox for tried in state.attempts for attempt in tried if attempt.sandbox}
    limited = any(is_guarded(None, node) for node in state.plan.nodes)
    if not used and not limited:
        return []
    from dagrun.sandbox.leftovers import LIMITS, sweep

    return sweep(os.path.abspath(run.path), {*used, LIMITS})


def name_logs(run: RunDir, state: RunState, mask: Masker) -> None:
    """Give the logs of the attempts that died with their engine their names, and mask what nobody masked."""
    from dagrun.engine.masking import mask_file
    from dagrun.store.shown import withdraw

    slots = [(a.slot, state.plan.ids[i], a.number) for i, a in state.running.items() if a.slot >= 0]
    try:
        for name in recover(run.nodes, slots):
            if mask:
                fd = os.open(f"{run.nodes}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    mask_file(mask, fd)
                finally:
                    os.close(fd)
        for slot, _, _ in slots:
            withdraw(run.nodes, slot)
    except OSError as error:
        raise disk_fault("can't name the logs in", run.nodes, error) from error


def mark_lost(state: RunState) -> list[Event]:
    """The end of every attempt that was open when its engine died."""
    return [
        AttemptFinished(
            node=state.plan.ids[i],
            attempt=attempt.number,
            outcome=Outcome.LOST,
            error="dagrun died while it ran"
            + ("" if state.plan.nodes[i].idempotent else "; its effect is unknown and it is not idempotent"),
        )
        for i, attempt in state.running.items()
    ]


def catch_up(journal: Journal, state: RunState) -> None:
    """Take the journal's lock and fold what others appended since it was read; `journal.end` lets go."""
    for record in journal.begin():
        for event in map(decode, record.events):
            evolve(state, event, record.t, record.m)


# ---------------------------------------------------------------- the request to cancel


def request_cancel(run: RunDir, by: str) -> RunStatus:
    """Ask the engine of a run to cancel it; without an engine the run is cancelled at once.

    The status the run has now: `running` means that its engine was asked. Durable on return.
    """
    while True:
        try:
            lock = run.lock({})
        except RunLockedError:
            lock = None  # its engine is at work: ask it
        try:
            status = _cancel(run, by, alone=lock is not None)
            if status is not None:
                return status
        finally:
            if lock is not None:
                lock.release()


def _cancel(run: RunDir, by: str, *, alone: bool) -> RunStatus | None:
    """The status after the request; None if the engine that was to be asked let go meanwhile."""
    history = History(run, write=True)
    state, journal = history.state, history.journal
    try:
        if alone:
            reap(run, state)
        catch_up(journal, state)
        try:
            if state.ended is not None and state.status in _OVER:
                return state.status
            if state.ended is not None and not alone:
                return None
            events: list[Event] = [StopRequested(cause="cancel", mode="now", by=by)]
            if alone:
                name_logs(run, state, _masker_at_hand(state))
                status, reason = RunStatus.CANCELLED, f"cancelled by {by}"
                events += [*mark_lost(state), RunEnded(status=status, exit_code=EXIT_CODES[status], reason=reason)]
            journal.write([encode(e) for e in events])
        finally:
            journal.end()
        journal.sync()
        if not alone:
            return RunStatus.RUNNING
        remove_exchange(exchange_path(run))
        return RunStatus.CANCELLED
    finally:
        history.close()


def _masker_at_hand(state: RunState) -> Masker:
    """What hides the secrets of a run; nothing where they can't be had: that must not keep a run alive."""
    return at_hand(state.plan.workflow, state.created.project, os.environ).mask

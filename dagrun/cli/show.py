"""How a run is shown while it goes on and once it is over; used by execute, resume and trace."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, cast

from dagrun.cli.console import Settings, look_for, say
from dagrun.core.names import RunStatus
from dagrun.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dagrun.core.event import Event
    from dagrun.core.names import Json
    from dagrun.core.state import Attempt, RunState
    from dagrun.core.workflow import Node
    from dagrun.engine.observer import Observer
    from dagrun.store.rundir import RunDir
    from dagrun.view.choose import Ui

UIS = ("auto", "live", "log", "json", "quiet")
TAIL_BYTES = 64 * 1024
_OF_AGENTS = frozenset({"call.reserved", "call.ended", "tool.ended"})


def check_ui(ui: str) -> None:
    """Raises UsageError for a word that is no --ui."""
    if ui not in UIS:
        raise UsageError(f"--ui can't be {ui}", hint=f"one of {', '.join(UIS)}")


class Show:
    """What shows a run: its observer, and the reader of logs that it needs once the run is known."""

    def __init__(self, settings: Settings, ui: str) -> None:
        from dagrun.engine.observer import Silent

        self.settings = settings
        self.ui = "quiet" if ui == "auto" and settings.quiet else ui
        self._read: Callable[[int], bytes] = lambda i: b""
        self.observer: Observer = Silent()
        if self.ui == "quiet":
            return
        from dagrun.view.choose import observer_for

        # with --json stdout holds one document and nothing else
        self.observer = (
            observer_for(
                cast("Ui", self.ui),
                stderr=sys.stderr,
                stdout=sys.stderr if settings.json else sys.stdout,
                env=os.environ,
                color=settings.color,  # type: ignore[arg-type]
                read=lambda i: self._read(i),
            )
            or Silent()
        )

    def knows(self, run: RunDir, state: RunState) -> None:
        """From here on the logs of this run can be shown."""
        self._read = lambda i: last_bytes(run, state, i)

    def summarize(self, run: RunDir, state: RunState, status: RunStatus | None = None) -> None:
        """How the run ended, on stderr; of a run that went well nothing when it is to be quiet."""
        ended = status or state.status
        if self.ui == "json" or (ended is RunStatus.COMPLETED and self.ui == "quiet"):
            return
        from dagrun.view.summary import end_summary

        look = look_for(self.settings, sys.stderr)
        text = end_summary(state, read=lambda i: last_bytes(run, state, i), look=look, outputs={}, status=status)
        if self.settings.verbose:
            from dagrun.view.tables import trace_table

            text = f"{trace_table(state, look, status=status)}\n{text}"
        lines = text.rstrip("\n").split("\n")
        say("\n".join(line if line.startswith("    | ") else self.settings.hint(line) for line in lines))


def log_path(run: RunDir, node: str, attempt: Attempt, stream: str) -> str:
    """Where a stream of an attempt is now: in its slot while it runs, then under its own name."""
    if attempt.outcome is None and attempt.slot >= 0:
        slot = f"{run.nodes}/.slot-{attempt.slot}.{stream}"
        if os.path.exists(slot):
            return slot
    return run.log(node, attempt.number, stream)


def shown_size(run: RunDir, node: Node, attempt: Attempt, stream: str, fd: int) -> int:
    """How many bytes of the open log of an attempt may be shown: all but what is not masked yet.

    Ask after reading what is to be shown.
    """
    size = os.fstat(fd).st_size
    if attempt.outcome is not None:
        return size
    from dagrun.store.shown import shown_bytes

    masked = shown_bytes(run.nodes, attempt.slot, f"{node.id}.{attempt.number}", stream, fd)
    if masked is None:
        masked = 0 if node.secrets or node.secret_files else size
    return min(size, masked)


def last_bytes(run: RunDir, state: RunState, i: int) -> bytes:
    """The last bytes that a node wrote in its last attempt: of stderr if there are any, else of stdout."""
    node, tried = state.plan.nodes[i], state.attempts[i]
    for stream in ("err", "out") if tried else ():
        try:
            with open(log_path(run, node.id, tried[-1], stream), "rb", buffering=0) as file:
                start = max(0, shown_size(run, node, tried[-1], stream, file.fileno()) - TAIL_BYTES)
                data = os.pread(file.fileno(), TAIL_BYTES, start)
                data = data[: max(0, shown_size(run, node, tried[-1], stream, file.fileno()) - start)]
        except OSError:
            continue
        if data:
            return data
    return b""


def told_by_agents(run: RunDir) -> list[tuple[float, Event]]:
    """The events of model and tool calls of a run, with their wall time. Raises JournalError."""
    from dagrun.core.event import decode
    from dagrun.store.journal import Journal

    journal = Journal.open(run.journal, write=False)
    try:
        records = journal.read()
    finally:
        journal.close()
    return [(r.t, decode(data)) for r in records for data in r.events if data.get("type") in _OF_AGENTS]


def reader_of(run: RunDir) -> Callable[[Mapping[str, Json]], Json]:
    """What reads a reference of a run's journal; None for what is gone or was changed."""
    from dagrun.store.context import ContextStore

    store = ContextStore(run)

    def get(ref: Mapping[str, Json]) -> Json:
        try:
            return store.get(ref)
        except (EnvironmentFault, KeyError):
            return None

    return get


def write_junit(run: RunDir, state: RunState, path: str) -> None:
    """Write the run as a JUnit report. Raises OSError."""
    from dagrun.view.report import junit_xml

    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(junit_xml(state, read=lambda i: last_bytes(run, state, i)))

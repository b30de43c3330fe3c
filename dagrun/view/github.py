"""The line log inside GitHub Actions: annotations, folded output, step summary, step outputs.

The runner of Actions reads commands from what a step prints: `::name::` at the start of a line,
and the old `##[name]` anywhere in one. So nothing that a node wrote goes there bare: it is
printed between a random stop-commands token, escaped in annotations, and as entities in the
summary. Sources: docs.github.com "Workflow commands for GitHub Actions" and actions/runner,
ActionCommand.cs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from dagrun.core.event import AttemptFinished
from dagrun.core.names import Status, format_duration
from dagrun.core.trace import TraceEntry, cause, node_reason, run_duration_ms, trace_entry
from dagrun.core.usage import has_agents, money_of, usd
from dagrun.view.log import LineLog
from dagrun.view.mermaid import plan_mermaid
from dagrun.view.tables import spending_lines
from dagrun.view.text import PLAIN, Look, clean, clean_block, counts_text, decode, money, tokens

if TYPE_CHECKING:
    from dagrun.core.event import Event
    from dagrun.core.state import RunState
    from dagrun.view.writer import Stream

MAX_ANNOTATIONS = 10  # of one kind that GitHub shows for a step
_SUMMARY_ROWS = 200
_SUMMARY_GRAPH = 100
_OUTPUT_BYTES = 16 * 1024
_ENTITIES = {ord(c): f"&#{ord(c)};" for c in "&<>|`*_[]\\~@#$:/"}


def escape_data(text: str) -> str:
    """The message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """The value of a property of a workflow command."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def annotation(title: str, message: str, *, file: str = "", line: int = 0, level: str = "error") -> str:
    """An annotation command on one line, whatever the texts hold."""
    where = {"file": file, "line": str(line) if file and line else "", "title": clean(title)}
    properties = ",".join(f"{k}={escape_property(v)}" for k, v in where.items() if v)
    return f"::{level} {properties}::{escape_data(clean_block(message))}"


def guarded(text: str) -> str:
    """Lines that the runner must not read as commands, between the lines that make it so."""
    token = os.urandom(16).hex()
    return f"::stop-commands::{token}\n{text}\n::{token}::"


class GithubLog(LineLog):
    """A line log with what GitHub Actions can show besides.

    `read(i)` gives the last bytes that node `i` wrote; `line_of(i)` its line in the file or 0.
    """

    def __init__(
        self,
        stream: Stream,
        look: Look = PLAIN,
        *,
        env: Mapping[str, str],
        read: Callable[[int], bytes] | None = None,
        line_of: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__(stream, look)
        self._env = env
        self._read = read
        self._line_of = line_of or (lambda i: 0)
        self._failed: list[int] = []

    def recorded(self, events: Sequence[Event], state: RunState) -> None:
        """The lines of the log, then what failed with its output and an annotation."""
        super().recorded(events, state)
        for event in events:
            if type(event) is AttemptFinished:
                i = state.plan.index[event.node]
                if state.node_status[i] is Status.FAILED and not state.plan.nodes[i].continue_on_error:
                    self._failed.append(i)
                    self._write_failure(event, i, state)

    def closed(self, state: RunState) -> None:
        """The summary of the step and its outputs, then as any log."""
        more = len(self._failed) - (MAX_ANNOTATIONS - 1)
        if more > 0:
            last = self._failed[-1]
            if more == 1:
                self._writer.put(self._annotate(last, state) + "\n")
            else:
                text = f"{more} more nodes failed: dagrun trace show {state.created.run_id} --failures"
                self._writer.put(annotation(f"and {more} more", text, file=state.created.file) + "\n")
        _append(self._env.get("GITHUB_STEP_SUMMARY", ""), step_summary(state))
        said = f"run-id={state.created.run_id}\nstatus={state.status.value}\n"
        if has_agents(state):
            said += f"cost={usd(money_of(state).spent):.9f}\n"
        _append(self._env.get("GITHUB_OUTPUT", ""), said)
        super().closed(state)

    def _emit(self, lines: Sequence[str]) -> None:
        super()._emit([line.replace("##[", "## [") for line in lines])

    def _write_failure(self, event: AttemptFinished, i: int, state: RunState) -> None:
        parts = []
        output = clean_block(decode(self._read(i)[-_OUTPUT_BYTES:])).strip("\n") if self._read else ""
        if output:
            title = f"output of {event.node} ({cause(event, state.plan.nodes[i])})"
            parts += [f"::group::{escape_data(clean(title))}", guarded(output), "::endgroup::"]
        if len(self._failed) < MAX_ANNOTATIONS:
            parts.append(self._annotate(i, state))
        if parts:
            self._writer.put("\n".join(parts) + "\n")

    def _annotate(self, i: int, state: RunState) -> str:
        entry = trace_entry(state, i)
        again = f"dagrun logs {entry.run_id} {entry.node_id}"
        text = f"{entry.error}\n{entry.output_summary}\n{again}" if entry.output_summary else f"{entry.error}\n{again}"
        title = f"node {entry.node_id} failed"
        return annotation(title, text, file=state.created.file, line=self._line_of(i))


def _append(path: str, text: str) -> None:
    """Add to a file of the runner. It is only a show: what can't be written is left out."""
    if path:
        with suppress(OSError), open(path, "a", encoding="utf-8", errors="replace") as file:
            file.write(text)


def step_summary(state: RunState) -> str:
    """The run as Markdown for a step summary, well under its limit of 1 MiB."""
    took = format_duration(run_duration_ms(state) / 1000)
    status = state.status.value.replace("_", " ")
    agents = has_agents(state)
    lines = [
        f"### dagrun: {_entities(state.created.workflow)} {state.created.run_id} {status}",
        "",
        f"{counts_text(state.counts)} in {took}",
        *(f"<br>{_entities(line.strip())}" for line in spending_lines(state)),
        "",
        f"| node | status | tries | time |{' tokens | cost |' if agents else ''} why |",
        f"|---|---|---:|---:|{'---:|---:|' if agents else ''}---|",
    ]
    # what a reader looks for first: what did not go well
    there = [i for i in range(len(state.plan.ids)) if i not in state.removed]
    order = sorted(there, key=lambda i: (_interest(state, i), state.plan.wave[i]))
    for i in order[:_SUMMARY_ROWS]:
        entry = trace_entry(state, i)
        why = entry.error or node_reason(state, i) or entry.output_summary
        cells = [
            _entities(entry.node_id),
            entry.status.value.replace("_", " "),
            str(len(entry.attempts) or ""),
            format_duration(entry.duration_ms / 1000) if entry.attempts else "",
            *(_used(entry) if agents else ()),
            _entities(why[:300]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if len(order) > _SUMMARY_ROWS:
        lines += ["", f"and {len(order) - _SUMMARY_ROWS:,} more nodes"]
    if len(order) <= _SUMMARY_GRAPH:
        lines += ["", "```mermaid", plan_mermaid(state.plan, state.node_status).rstrip(), "```"]
    return "\n".join(lines) + "\n\n"


def _used(entry: TraceEntry) -> tuple[str, str]:
    """The tokens and the cost of a node."""
    used = entry.agent
    if used is None or not used.calls:
        return "", ""
    return tokens(used.tokens), _entities(money(used.spent))


def _interest(state: RunState, i: int) -> int:
    ranks = {Status.FAILED: 0, Status.CANCELLED: 1, Status.SKIPPED: 3, Status.COMPLETED: 4}
    return ranks.get(state.node_status[i], 2)


def _entities(text: str) -> str:
    """Text for a cell of a Markdown table that is shown as it is."""
    return clean(text).translate(_ENTITIES)

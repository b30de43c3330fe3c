"""A run for other programs' reports: JUnit XML, as CI servers read it.

Node = testcase. Attempts before the last are `flakyFailure` (the node completed in the end) or
`rerunFailure`, as Maven Surefire writes them. The XML is valid whatever bytes a node printed:
characters that XML 1.0 can't hold are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from dagrun.core.names import Outcome, Status
from dagrun.core.trace import TraceAttempt, TraceEntry, iso_utc, run_duration_ms, trace_entries
from dagrun.core.usage import has_agents, money_of, usage_of_run, usd
from dagrun.view.text import clean_block, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagrun.core.state import RunState

_TAIL = 64 * 1024
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# what is no fault of the command itself
_ERRORS = frozenset({Outcome.LOST, Outcome.DENIED, Outcome.OVER_BUDGET})


def junit_xml(state: RunState, *, read: Callable[[int], bytes] | None = None, wall_now: float | None = None) -> str:
    """The run as JUnit XML. `read(i)` gives the last bytes that node `i` wrote, of which 64 KB are kept."""
    entries = [e for e in trace_entries(state, wall_now) if e.removed_in is None]
    name = state.created.workflow
    bad = [e for e in entries if _is_bad(state, e)]
    errors = sum(map(_is_error, bad))
    failures = len(bad) - errors
    skipped = sum(e.status is not Status.COMPLETED for e in entries) - len(bad)
    seconds = run_duration_ms(state, wall_now) / 1000
    numbers = f'tests="{len(entries)}" failures="{failures}" errors="{errors}" skipped="{skipped}" time="{seconds:.3f}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites {_attribute('name', 'dagrun')} {numbers}>",
        f"<testsuite {_attribute('name', name)} {numbers} {_attribute('timestamp', iso_utc(state.created_at))}>",
        "<properties>",
        f'<property name="run_id" {_attribute("value", state.created.run_id)}/>',
        f'<property name="status" {_attribute("value", state.status.value)}/>',
        f'<property name="revision" value="{state.plan.revision}"/>',
        *_spending(state),
        "</properties>",
    ]
    for entry in entries:
        lines += _case(state, entry, read)
    return "\n".join([*lines, "</testsuite>", "</testsuites>"]) + "\n"


def _spending(state: RunState) -> Iterator[str]:
    """What agents used, as properties of the suite: numbers for whoever charts them."""
    if has_agents(state):
        used = usage_of_run(state)
        yield f'<property name="input_tokens" value="{used.input}"/>'
        yield f'<property name="output_tokens" value="{used.output}"/>'
        yield f'<property name="cost_usd" value="{usd(money_of(state).spent):.9f}"/>'


def _is_bad(state: RunState, entry: TraceEntry) -> bool:
    node = state.plan.nodes[state.plan.index[entry.node_id]]
    return entry.status is Status.FAILED and not node.continue_on_error


def _is_error(entry: TraceEntry) -> bool:
    return bool(entry.attempts) and entry.attempts[-1].outcome in _ERRORS


def _case(state: RunState, entry: TraceEntry, read: Callable[[int], bytes] | None) -> Iterator[str]:
    where = f"{_attribute('classname', state.created.workflow)} {_attribute('name', entry.node_id)}"
    file = f" {_attribute('file', state.created.file)}" if state.created.file else ""
    yield f'<testcase {where}{file} time="{entry.duration_ms / 1000:.3f}">'
    tried = entry.attempts
    if entry.status is Status.COMPLETED:
        yield from (_attempt("flakyFailure", a) for a in tried[:-1])
    elif _is_bad(state, entry):
        yield (
            _attempt("error" if _is_error(entry) else "failure", tried[-1])
            if tried
            else _text("failure", entry.error, 'type="failed"')
        )
        yield from (_attempt("rerunFailure", a) for a in tried[:-1])
    else:
        yield f"<skipped {_attribute('message', _why_not(entry))}/>"
    data = read(state.plan.index[entry.node_id])[-_TAIL:] if read and tried else b""
    if data:
        yield _text("system-out", clean_block(decode(data)))
    yield "</testcase>"


def _why_not(entry: TraceEntry) -> str:
    if entry.status is Status.FAILED:
        return f"{entry.error} (continue_on_error)"
    return entry.reason or f"{entry.status.value}{f': {entry.error}' if entry.error else ''}"


def _attempt(tag: str, attempt: TraceAttempt) -> str:
    outcome = attempt.outcome.value if attempt.outcome else "running"
    message = attempt.error or outcome
    text = f"attempt {attempt.number}: {message}"
    return _text(tag, text, f"{_attribute('message', message)} {_attribute('type', outcome)}")


def _text(tag: str, text: str, attributes: str = "") -> str:
    return f"<{tag}{' ' if attributes else ''}{attributes}>{escape(text)}</{tag}>"


def _attribute(name: str, value: str) -> str:
    safe = escape(value).replace('"', "&quot;").replace("\n", "&#10;").replace("\t", "&#9;")
    return f'{name}="{safe}"'


def escape(text: str) -> str:
    """Text as it may stand in XML 1.0."""
    safe = _NOT_XML.sub("\ufffd", text).replace("\r", "\n")
    return safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

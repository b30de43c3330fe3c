"""How a person changes a run: preview, question, admission, and what is said about it.

Shared by replan, undo and review. What is asked is asked in a terminal only; without one a command
does nothing unless `--yes` says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from dagrun.cli.console import Settings, emit, emit_json, is_terminal, look_for, say
from dagrun.errors import ConflictError, InputError, Problem, UsageError

if TYPE_CHECKING:
    from dagrun.core.names import Json
    from dagrun.core.patch import Patch
    from dagrun.core.replan import Verdict
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Fault
    from dagrun.engine.submit import Submitted
    from dagrun.store.rundir import RunDir
    from dagrun.view.preview import Change


@dataclass(slots=True, kw_only=True)
class Wish:
    """A change that somebody wants: how to build it for a state, and how to carry it out.

    `problem` gives the place (file or flag) of what is wrong with it; `again` is the command line
    that would do the same, for hints. `base` 0 stands for the revision that is previewed.
    """

    make: Callable[[RunState], Patch]
    problem: Callable[[Fault], Problem]
    again: str
    base: int = 0
    rebase: bool = False
    yes: bool = False
    dry_run: bool = False
    undoes: int = 0
    proposal: int = 0
    notes: tuple[str, ...] = ()


def who() -> str:
    """Who is at the keyboard, for the history."""
    return os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"


def can_ask(settings: Settings) -> bool:
    """Whether there is a person to ask."""
    return not settings.no_input and is_terminal(sys.stdin) and is_terminal(sys.stderr)


def ask(question: str) -> str:
    """What a person answers; nothing at the end of the input."""
    sys.stderr.write(question)
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer:
        say("")
    return answer.strip()


def change_run(settings: Settings, run: RunDir, wish: Wish) -> Submitted | None:
    """Preview a change of a run, ask, and submit it; None when nothing was to be done after all.

    Raises UsageError when there is nobody to ask, ConflictError when the plan moved, InputError
    with all reasons when the patch is refused (it is in the history then, but not of a dry run).
    """
    from dagrun.engine import submit as door

    state, patch, verdict = door.preview(run, wish.make, by=who(), undoes=wish.undoes, proposal=wish.proposal)
    head = state.plan.revision
    base = wish.base or patch.base or head
    if base != head and not wish.rebase:
        if wish.dry_run:
            raise ConflictError(
                f"run {run.id} is at revision {head}, this is made for {base}", hint=f"{wish.again} --dry-run --rebase"
            )
        return _submit(run, wish, base, verdict)  # is refused there, and written down
    if verdict.event is None:
        if not wish.dry_run:  # to be refused there too, and written down; on this head only
            _submit(run, replace(wish, rebase=False), head, verdict)
        raise InputError(tuple(map(wish.problem, verdict.faults)), hint=f"the run as it is: dagrun plan {run.id}")
    _show(settings, run, state, verdict, wish)
    if wish.dry_run:
        if not settings.json and not settings.quiet:
            say("dry run: nothing was changed")
        return None
    if not wish.yes:
        _consent(settings, run, wish)
    return _submit(run, wish, base, verdict)


def _submit(run: RunDir, wish: Wish, base: int, verdict: Verdict) -> Submitted:
    from dagrun.engine import submit as door

    try:
        return door.submit(
            run, wish.make, by=who(), base=base, rebase=wish.rebase, undoes=wish.undoes, proposal=wish.proposal
        )
    except InputError as error:
        # what was refused under the lock is in nearly all cases what the preview has seen, with its place
        places = {(f.code, f.message): wish.problem(f) for f in verdict.faults}
        found = tuple(places.get((p.code, p.message), p) for p in error.problems)
        raise InputError(found, hint=error.hint) from None


def _show(settings: Settings, run: RunDir, state: RunState, verdict: Verdict, wish: Wish) -> None:
    from dagrun.store.history import run_status
    from dagrun.view.preview import change_of, preview_json, preview_text
    from dagrun.view.text import clean

    change = _priced(state, change_of(state, verdict))
    if settings.json:
        if wish.dry_run:
            emit_json({"run_id": run.id, **preview_json(change), "notes": list(wish.notes)})
        return
    if settings.quiet and wish.yes:
        return
    holder = run.lock_holder()
    pid = f", pid {holder.get('pid')}" if holder else ""
    status = str(run_status(run, state)).replace("_", " ")
    head = f"run {run.id} ({clean(state.created.workflow)}, {status}{pid})"
    stream = sys.stdout if wish.dry_run else sys.stderr
    text = preview_text(change, head, look_for(settings, stream))
    text = "\n".join([text, *(f"  {clean(note)}" for note in wish.notes)])
    (emit if wish.dry_run else say)(text)


def _priced(state: RunState, change: Change) -> Change:
    """The change, with what the agents that come or run again can cost."""
    event = change.event
    nodes = change.after.workflow.nodes
    begins = {n for n in (*event.nodes, *event.reset) if n in nodes and nodes[n].agent is not None}
    if not begins:
        return change
    from dagrun.cli.plan import worst_costs_of
    from dagrun.core.spending import RUN
    from dagrun.view.preview import Cost

    total = worst_costs_of(change.after.workflow)
    costs = [worst.at_most for worst in total.agents if worst.of in begins] if total else []
    worst = None if None in costs else sum(cost for cost in costs if cost is not None)
    left = total.cap if total else None
    if state.ledger is not None and left is not None:
        left = max(0, left - state.ledger.spent(RUN) - state.ledger.held(RUN))
    return replace(change, cost=Cost(worst, left))


def _consent(settings: Settings, run: RunDir, wish: Wish) -> None:
    if not can_ask(settings):
        raise UsageError(
            "nobody can be asked here: there is no terminal",
            hint=f"to apply it: {wish.again} --yes; only to look: {wish.again} --dry-run",
        )
    running = "the running" if run.lock_holder() else "this"
    if ask(f"Apply to {running} workflow? [y/N] ").lower() not in ("y", "yes"):
        say("nothing was changed")
        raise typer.Exit(130)


def tell(settings: Settings, run: RunDir, done: Submitted, *, goes_on: bool = False) -> None:
    """Say what became of an admitted patch: on stdout, as text or JSON."""
    if settings.json:
        emit_json(outcome_json(run, done))
        return
    if settings.quiet:
        return
    text = f"admitted as revision {done.revision}"
    if done.adopted_ms is not None:
        text += f"; taken up by the engine {f'after {done.adopted_ms:.0f} ms' if done.adopted_ms >= 1 else 'at once'}"
    elif done.engine_alive:
        text += f"; the engine has not taken it up yet: dagrun status {run.id}"
    elif not goes_on:
        text += f"; no engine is alive: dagrun resume {run.id}"
    emit(settings.hint(text))


def outcome_json(run: RunDir, done: Submitted) -> Mapping[str, Json]:
    """An admitted patch for programs."""
    took = round(done.adopted_ms, 1) if done.adopted_ms is not None else None
    event = done.verdict.event
    return {
        "run_id": run.id,
        "revision": done.revision,
        "base": event.base if event else done.revision - 1,
        "adopted_ms": took,
        "engine_alive": done.engine_alive,
        "warnings": list(done.verdict.warnings),
    }


def at_flag(flags: list[str]) -> Callable[[Fault], Problem]:
    """Gives faults of operations their place on the command line: `flags[k]` made operation k."""

    def problem(fault: Fault) -> Problem:
        at = fault.path[1] if fault.path[:1] == ("operations",) and len(fault.path) > 1 else None
        flag = flags[at] if isinstance(at, int) and at < len(flags) else ""
        message = f"{flag}: {fault.message}" if flag else fault.message
        return Problem(code=fault.code, message=message, hint=fault.hint)

    return problem

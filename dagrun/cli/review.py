"""review: what waits for a human in a run, and deciding it.

Three things wait: a review node, a failure that was escalated to a human, and a patch that a node
proposed. A decision is recorded at once; then the run goes on in the foreground, unless an engine
is at work already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from time import time
from typing import TYPE_CHECKING

import typer

from dagrun.cli.change import ask, can_ask, who
from dagrun.cli.console import Settings, emit, emit_json, look_for, say
from dagrun.cli.decisions import Decision, Waiting, carry_out, go_on_with, proposed_patch, things_waiting
from dagrun.cli.groups import command, node_number, run_and_node
from dagrun.core.names import Json, format_duration
from dagrun.errors import ConflictError, InputError, NotFoundError, UsageError

if TYPE_CHECKING:
    from dagrun.core.event import PatchProposed
    from dagrun.core.state import RunState
    from dagrun.store.rundir import RunDir

OUTPUT_LINES = 10
_WORDS = typer.Argument(None, metavar="[RUN] [NODE]", show_default=False, help="What is decided; a number: a proposal.")
_MODIFY = typer.Option([], "--modify", metavar="K=V", show_default=False, help="Change the node and try it again.")
_FORM = "one of --approve, --reject, --modify, --patch and --skip"


@command(
    "review",
    "dagrun review                             # what waits, and ask\n"
    'dagrun review approve --approve -m "looks good"\n'
    "dagrun review r7k2 build --modify timeout=10m\n"
    "dagrun review r7k2 build --skip --outputs result.json\n"
    "dagrun review r7k2 1 --reject             # the first proposal",
)
def review(
    ctx: typer.Context,
    words: list[str] = _WORDS,
    approve: bool = typer.Option(False, "--approve", help="Yes; a failed node counts as completed."),
    reject: bool = typer.Option(False, "--reject", help="No: the node fails."),
    modify: list[str] = _MODIFY,
    patch: str = typer.Option("", "--patch", metavar="FILE", show_default=False, help="Change the plan instead."),
    skip: bool = typer.Option(False, "--skip", help="Go on without this node."),
    outputs: str = typer.Option("", "--outputs", metavar="FILE", show_default=False, help="Its outputs, as JSON."),
    message: str = typer.Option("", "-m", "--message", metavar="TEXT", show_default=False, help="Why."),
    resume: bool = typer.Option(True, "--resume/--no-resume", help="Go on with the run (or only record)."),
) -> None:
    """Decide what waits for a human in a run, then go on with it.

    Without a choice it shows why a node waits, its last output, and asks.
    """
    settings: Settings = ctx.obj
    given = {"approve": approve, "reject": reject, "modify": bool(modify), "patch": bool(patch), "skip": skip}
    chosen = [name for name, is_on in given.items() if is_on]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(f'--{name}' for name in chosen)}: choose one", hint=_FORM)
    if outputs and chosen not in (["approve"], ["skip"]):
        raise UsageError("--outputs goes with --approve or --skip", hint="dagrun review NODE --approve --outputs FILE")
    choice = chosen[0] if chosen else ""
    run, wanted = _addressed(words or [])
    _review(
        settings,
        run,
        wanted,
        Decision(choice=choice, changes=modify, patch=patch, outputs=outputs, comment=message),
        resume=resume,
    )


def _addressed(words: Sequence[str]) -> tuple[RunDir, str | None]:
    """The run, and the node or number of a proposal that was named."""
    from dagrun.store.rundir import find_run

    if len(words) == 1 and words[0].isdigit():
        return find_run(".", None), words[0]
    if len(words) == 2 and words[1].isdigit():
        return find_run(".", words[0]), words[1]
    run_text, node = run_and_node(words, node_needed=False)
    return find_run(".", run_text), node


def _review(settings: Settings, run: RunDir, wanted: str | None, decision: Decision, *, resume: bool) -> None:
    from dagrun.store.history import load_state

    state = load_state(run)
    waiting = _chosen(run, state, wanted)
    if not waiting:
        _nothing_waits(settings, run, state)
        return
    if not decision.choice and (settings.json or not can_ask(settings)):
        _list(settings, run, state, waiting)
        return
    if decision.choice and len(waiting) > 1:
        lines = "; ".join(f"dagrun review {run.id} {w.word} --{decision.choice}" for w in waiting[:5])
        raise UsageError(f"{len(waiting)} things wait in run {run.id}: say which", hint=lines)
    decided = False
    for item in waiting:
        made = decision if decision.choice else _dialogue(settings, run, state, item)
        if made.choice:
            made.silent = resume and run.lock_holder() is None
            carry_out(settings, run, item, made)
            decided = True
    if decided:
        go_on_with(settings, run, resume)


def _chosen(run: RunDir, state: RunState, wanted: str | None) -> list[Waiting]:
    """What waits of what was named. Raises NotFoundError, and ConflictError for what waits no more."""
    waiting = things_waiting(state)
    if wanted is None:
        return waiting
    if wanted.isdigit():
        found = [w for w in waiting if w.number == int(wanted)]
        if not found:
            raise NotFoundError(f"run {run.id} has no open proposal {wanted}", hint=f"dagrun review {run.id}")
        return found
    i = node_number(state.plan.index, wanted, run.id)
    found = [w for w in waiting if w.node == wanted]
    if not found:
        status = str(state.node_status[i]).replace("_", " ")
        raise ConflictError(f"{wanted} awaits no review: it is {status}", hint=f"what waits: dagrun review {run.id}")
    return found


def _nothing_waits(settings: Settings, run: RunDir, state: RunState) -> None:
    if settings.json:
        emit_json({"run_id": run.id, "waiting": []})
    else:
        say(f"nothing waits for a human in run {run.id} ({state.status})")
        say(settings.hint(f"  help: dagrun status {run.id}"))


# ---------------------------------------------------------------- what waits


def _list(settings: Settings, run: RunDir, state: RunState, waiting: Sequence[Waiting]) -> None:
    """Everything that waits, with the exact commands; exit 2, since nothing was decided."""
    if settings.json:
        emit_json({"run_id": run.id, "waiting": [_waiting_json(state, w) for w in waiting]})
        raise typer.Exit(2)
    lines = []
    for item in waiting:
        lines += [*_story(settings, run, state, item), *(f"  {settings.hint(c)}" for c in _commands(run, item)), ""]
    emit("\n".join(lines).rstrip("\n"))
    say("error[usage]: nothing was decided: there is no terminal to ask in")
    raise typer.Exit(2)


def _commands(run: RunDir, item: Waiting) -> list[str]:
    base = f"dagrun review {run.id} {item.word}"
    if item.kind == "failure":
        return [
            f"{base} --modify timeout=10m",
            f"{base} --approve",
            f"{base} --skip",
            f"{base} --reject",
            f"{base} --patch FILE",
        ]
    return [f"{base} --approve", f"{base} --reject"]


def _waiting_json(state: RunState, item: Waiting) -> dict[str, Json]:
    if item.kind == "proposal":
        proposal = state.proposals[item.number]
        return {
            "kind": item.kind,
            "number": item.number,
            "by": proposal.by,
            "mends": state.plan.ids[failed] if (failed := _failed_for(state, proposal)) is not None else None,
            "why": proposal.why,
            "operations": list(proposal.operations),
            "trigger": dict(proposal.trigger),
        }
    i = state.plan.index[item.node]
    asked = state.reviews[i]
    return {
        "kind": item.kind,
        "node_id": item.node,
        "message": asked.message,
        "attempts": len(state.attempts[i]),
        "deadline": asked.deadline or None,
        "on_timeout": asked.on_timeout,
    }


def _story(settings: Settings, run: RunDir, state: RunState, item: Waiting) -> list[str]:
    """What a person has to know to decide: the question, why, the last output, the deadline."""
    from dagrun.view.text import clean

    look = look_for(settings, sys.stderr if can_ask(settings) else sys.stdout)
    if item.kind == "proposal":
        return _proposal_story(settings, run, state, state.proposals[item.number])
    i = state.plan.index[item.node]
    asked = state.reviews[i]
    mark = look.paint(look.glyphs.waiting, "yellow")
    lines = [f"{mark} {look.paint(item.node, 'bold')}  {clean(asked.message)}"]
    if item.kind == "failure":
        lines += _failure_story(run, state, i)
    if asked.deadline:
        left = asked.deadline - time()
        answer = "approved" if asked.on_timeout == "approve" else "rejected"
        lines.append(f"  without an answer {answer} in {format_duration(left)}" if left > 0 else f"  overdue: {answer}")
    return lines


def _failure_story(run: RunDir, state: RunState, i: int) -> list[str]:
    from dagrun.cli.show import last_bytes
    from dagrun.core.trace import cause
    from dagrun.view.text import clean, cut, last_lines

    node = state.plan.nodes[i]
    tried = [cause(a.finish, node) if a.finish else "" for a in state.attempts[i]]
    lines = [f"  {len(tried)} {'try' if len(tried) == 1 else 'tries'}: {clean(', '.join(tried[-4:]))}"]
    lines += [f"    | {cut(line, 160)}" for line in last_lines(last_bytes(run, state, i), OUTPUT_LINES)]
    below = [state.plan.ids[d] for d in state.plan.dependents[i]]
    more = f" and {len(below) - 6} more" if len(below) > 6 else ""
    return [*lines, f"  waiting for it: {', '.join(below[:6])}{more}"] if below else lines


def _proposal_story(settings: Settings, run: RunDir, state: RunState, proposal: PatchProposed) -> list[str]:
    from dagrun.view.text import clean

    look = look_for(settings, sys.stderr if can_ask(settings) else sys.stdout)
    mark = look.paint(look.glyphs.waiting, "yellow")
    name = look.paint(f"proposal {proposal.number}", "bold")
    lines = [f"{mark} {name} by {clean(proposal.by)}  {clean(proposal.why)}"]
    reason = str(proposal.trigger.get("reason") or "")
    if reason:
        lines.append(f"  {clean(str(proposal.trigger.get('type')))}: {clean(reason)}")
    return [*lines, *_asked_story(run, state, proposal), *_proposed_change(run, state, proposal, settings)]


def _failed_for(state: RunState, proposal: PatchProposed) -> int | None:
    """The failed node whose replanner made a proposal; None for one that a command wrote."""
    return state.replanners.get(state.plan.index.get(proposal.by.removeprefix("node:"), -1))


def _asked_story(run: RunDir, state: RunState, proposal: PatchProposed) -> list[str]:
    """What a model was shown before it proposed this."""
    from dagrun.view.text import clean

    failed = _failed_for(state, proposal)
    if failed is None:
        return []
    name, why = state.plan.ids[failed], state.reasons.get(failed, "")
    tally = state.attempts[state.plan.index[proposal.by.removeprefix("node:")]][-1].tally
    model = next(iter(tally.models), "") if tally is not None else ""
    asked = f"a model ({clean(model)})" if model else "a model"
    held = " and is held until this is decided" if failed in state.offers else ""
    line = f"  {asked} was asked to mend {name}, which failed{held}: {clean(why)}"
    return [line, *_failure_story(run, state, failed)]


def _proposed_change(run: RunDir, state: RunState, proposal: PatchProposed, settings: Settings) -> list[str]:
    """What a proposal would do now; its operations as they are where it can't be done any more."""
    from dagrun.core.replan import admit
    from dagrun.view.preview import change_lines, change_of
    from dagrun.view.text import clean

    look = look_for(settings, sys.stderr if can_ask(settings) else sys.stdout)
    try:
        verdict = admit(state, proposed_patch(state, proposal), by=who(), maker=proposal.by)
    except InputError as error:
        return [f"  can't be applied any more: {clean(p.message)}" for p in error.problems]
    if verdict.event is None:
        return [f"  can't be applied any more: {clean(f.message)}" for f in verdict.faults]
    return [f"  {line}" for line in change_lines(change_of(state, verdict), look)]


# ---------------------------------------------------------------- the dialogue


_CHOICES = {
    "review": (("a", "approve"), ("r", "reject")),
    "proposal": (("a", "approve"), ("r", "reject")),
    "failure": (("m", "modify"), ("a", "approve"), ("s", "skip"), ("r", "reject"), ("p", "patch")),
}
_MEANING = {
    "modify": "modify it and try again",
    "approve": "approve",
    "skip": "skip it",
    "reject": "reject: it fails",
    "patch": "patch the plan",
}


def _dialogue(settings: Settings, run: RunDir, state: RunState, item: Waiting) -> Decision:
    """Ask a person about one thing; an empty choice leaves it waiting."""
    say("\n".join(_story(settings, run, state, item)))
    choices = _CHOICES[item.kind]
    menu = ", ".join(f"[{key}] {_MEANING[word]}" for key, word in choices)
    while True:
        answer = ask(f"{menu}, [enter] later: ").lower()
        if not answer:
            say("it goes on waiting")
            return Decision()
        word = next((w for key, w in choices if answer in (key, w)), "")
        if word:
            break
        say(f"not one of {', '.join(key for key, _ in choices)}")
    made = Decision(choice=word)
    if word == "modify":
        made.changes = ask("what to change (timeout=10m env.DEBUG=1; nothing: only try again): ").split()
    elif word == "patch":
        made.patch = ask("patch file: ")
        if not made.patch:
            return Decision()
    else:
        made.comment = ask("why (may be empty): ")
    return made

"""replan --suggest: a model is asked for a patch of a run, on request.

The question is a run of its own, of one node: it has a journal, a trace and a budget, which is what the other run
has left, and nothing of that one changes until a person lets the answer in. That is then a patch as any other.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from dagrun.cli.app import door
from dagrun.cli.change import can_ask, who
from dagrun.cli.console import Settings, say
from dagrun.cli.groups import node_number
from dagrun.errors import BudgetError, InputError, Problem, UsageError

if TYPE_CHECKING:
    from dagrun.cli.change import Wish
    from dagrun.cli.wanted import Operations
    from dagrun.core.names import Json, NodeId
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Agent, Node, Workflow
    from dagrun.engine.observer import Observer
    from dagrun.sandbox.watchdog import EngineSide
    from dagrun.store.rundir import RunDir

NAME = "patch.yaml"  # in the folder of the suggestion


@dataclass(slots=True, frozen=True, kw_only=True)
class Question:
    """What was asked for on the command line. `wish` is what the person wants, in words."""

    node: str = ""
    model: str = ""
    wish: str = ""


def suggest(settings: Settings, run: RunDir, question: Question, wanted: Operations) -> str:
    """Ask, and make the answer what is wanted; the command line that would do the same without asking again.

    Leaves with exit code 1 when the model knows no patch, and as the question's own run when that did not
    complete. Raises UsageError, BudgetError and InputError when nothing can be asked.
    """
    from dagrun.store.history import load_state

    state = load_state(run)
    i = _about(run, state, question)
    workflow = question_about(run, state, i, question)
    name = next(iter(workflow.nodes))
    if not settings.quiet and not settings.json:
        say(f"asking {_model_of(workflow, name)} for a patch")
    mine, code = _asked(settings, workflow, run)
    if mine is None:
        raise typer.Exit(code or 1)
    answer = _answer(settings, mine, name, code)
    document = _document(state, i, answer, f"suggested in run {mine.id}")
    if document is None:
        say(f"no patch was suggested: {_reason(answer) or 'no reason was given'}")
        say(settings.hint(f"  help: dagrun trace show {mine.id}"))
        raise typer.Exit(1)
    path = _keep(mine, document)
    wanted.document, wanted.document_name = document, f"the suggestion {mine.id}"
    if not settings.quiet and not settings.json:
        from dagrun.view.text import clean

        say(f"suggested in run {mine.id}: {clean(_reason(answer))}")
    return f"dagrun replan {run.id} --patch {shlex.quote(path)}"


def consented(settings: Settings, run: RunDir, wish: Wish) -> Wish:
    """The same wish; what a model made up and no author wrote is not let in by a `--yes` that came before it.

    Raises UsageError when nobody can be asked.
    """
    from dagrun.core.consent import reasons_for_human
    from dagrun.engine.submit import preview

    if not wish.yes or wish.dry_run:
        return wish
    state, patch, verdict = preview(run, wish.make, by=who())
    why = reasons_for_human(state, patch, verdict.event) if verdict.event is not None else []
    if not why:
        return wish
    if not can_ask(settings):
        raise UsageError(
            f"a person has to look at this suggestion, whatever --yes says: {'; '.join(why)}",
            hint=f"look: {wish.again} --dry-run; then: {wish.again} --yes",
        )
    say("--yes was said before this could be seen, so it is asked all the same")
    return replace(wish, yes=False)


# ---------------------------------------------------------------- the question


def _about(run: RunDir, state: RunState, question: Question) -> int | None:
    """The node that it is about: the one that was named, else the first failure; None: the plan as a whole."""
    from dagrun.core.names import Status

    if question.node:
        return node_number(state.plan.index, question.node, run.id)
    waiting = [*state.escalating, *(i for i in state.reviews if state.plan.nodes[i].review is None)]
    failed = [i for i, status in enumerate(state.node_status) if status is Status.FAILED]
    for i in (*waiting, *failed):
        if i not in state.removed and i not in state.replanners:
            return i
    if not question.wish:
        raise UsageError(
            f"nothing has failed in run {run.id}: say what is wanted",
            hint=f'dagrun replan {run.id} --suggest -m "scan the image before it is deployed"',
        )
    return None


def question_about(run: RunDir, state: RunState, i: int | None, question: Question) -> Workflow:
    """The workflow of one node that asks. Raises BudgetError and InputError when it can't be asked."""
    from dagrun.core.check import check
    from dagrun.core.patch import id_beside
    from dagrun.core.permissions import NO_PERMISSIONS
    from dagrun.core.replanner import GUIDE, WISH_GUIDE, replanner
    from dagrun.core.workflow import Limits, Node, Workflow
    from dagrun.engine.evidence import gather

    plan = state.plan.workflow
    about = state.plan.nodes[i] if i is not None else Node(id="plan")
    name = id_beside(about.id, "replanner", ())
    guide = WISH_GUIDE if question.wish or i is None else GUIDE
    made = replanner(plan, about, _agent(about, question), name, gather(run, state, i), guide)
    left = _left(run, state)
    permissions = plan.permissions
    if left is not None:
        permissions = replace(permissions or NO_PERMISSIONS, cost_budget=left)
    workflow = Workflow(
        name=f"suggest-{run.id}",
        nodes={name: replace(made, needs=(), condition="", continue_on_error=False)},
        limits=Limits(revisions=0),
        secrets=plan.secrets,
        permissions=permissions,
        docker=plan.docker,
        models=plan.models,
        provider=plan.provider,
        mcp_servers=plan.mcp_servers,
        file=plan.file,
    )
    faults = [fault for fault in check(workflow) if fault.severity == "error"]
    if faults:
        raise InputError(tuple(Problem(code=f.code, message=f.message, hint=f.hint) for f in faults))
    return workflow


def _agent(about: Node, question: Question) -> Agent:
    """The replanner that the author declared for a node, or a plain one; with the person's words and model."""
    from dagrun.core.reading import literal
    from dagrun.core.workflow import Agent

    declared = about.on_failure.replanner if about.on_failure is not None else None
    agent = declared or Agent()
    prompt = f"{agent.prompt.rstrip()}\n\nWhat is wanted: {literal(question.wish)}".lstrip() if question.wish else ""
    return replace(agent, prompt=prompt or agent.prompt, model=question.model or agent.model)


def _left(run: RunDir, state: RunState) -> int | None:
    """What the run may still spend, in nano-dollars; None without a cap."""
    permissions = state.plan.workflow.permissions
    cap = permissions.cost_budget if permissions is not None else None
    if cap is None or state.ledger is None:
        return cap
    left = max(0, cap - state.ledger.spent("run") - state.ledger.held("run"))
    if not left:
        raise BudgetError(f"run {run.id} has nothing left of its budget to ask with", hint=f"dagrun status {run.id}")
    return left


def _model_of(workflow: Workflow, name: NodeId) -> str:
    from dagrun.core.agents import wish_of

    agent = workflow.nodes[name].agent
    assert agent is not None
    wish = wish_of(workflow, agent)
    return wish if wish in workflow.models or "/" in wish else "a model"


# ---------------------------------------------------------------- its run


def _asked(settings: Settings, workflow: Workflow, about: RunDir) -> tuple[RunDir | None, int]:
    """Execute the question, watched as any run; its folder (None: it never began) and its exit code."""
    from dagrun.store.rundir import find_run

    def work(side: EngineSide, told: int) -> int:
        from dagrun.engine import session

        options = session.Options(project=os.getcwd())
        return session.execute(workflow, options, _marker(about, told), side).exit_code

    told, code = _apart(settings, work)
    return (find_run(".", told) if told else None), code


def _apart(settings: Settings, work: Callable[[EngineSide, int], int]) -> tuple[str, int]:
    """What `work` tells by a descriptor, and its exit code; this process keeps its terminal, and goes on after it."""
    from dagrun.sandbox.procs import end_with_parent
    from dagrun.sandbox.watchdog import run_under_watchdog

    reads, writes = os.pipe()
    words, me = sys.argv[1:], os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        end_with_parent(me, signal.SIGTERM)
        os._exit(run_under_watchdog(lambda side: door(settings, lambda: work(side, writes), words)) & 0xFF)
    os.close(writes)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine is told by its watchdog, and ends in order
    try:
        with open(reads, "rb") as pipe:
            told = pipe.read().decode("ascii")
        _, status = os.waitpid(pid, 0)
    finally:
        signal.signal(signal.SIGINT, before)
    return told, os.waitstatus_to_exitcode(status)


def _marker(about: RunDir, told: int) -> Observer:
    """Tells the id of the new run, and marks it as made for another one, so that it is never `last`."""
    from dagrun.engine.observer import Silent
    from dagrun.store.rundir import find_run

    class Marker(Silent):
        def attached(self, state: RunState, tail: Callable[[int], bytes]) -> None:
            """The run is there."""
            mine = find_run(".", state.created.run_id)
            mine.write_meta({**mine.read_meta(), "for": about.id})
            os.write(told, mine.id.encode("ascii"))
            os.close(told)

    return Marker()


# ---------------------------------------------------------------- the answer


def _answer(settings: Settings, mine: RunDir, name: NodeId, code: int) -> dict[str, Json]:
    """What the model answered. Leaves with the exit code of the question when there is no answer."""
    from dagrun.core.names import Status
    from dagrun.store.context import ContextStore
    from dagrun.store.history import load_state
    from dagrun.view.text import clean

    state = load_state(mine)
    i = state.plan.index[name]
    if state.node_status[i] is not Status.COMPLETED:
        why = state.reasons.get(i, "") or (state.ended.reason if state.ended is not None else "")
        say(f"no patch was suggested: {clean(why) or state.node_status[i]}")
        say(settings.hint(f"  help: see what was said: dagrun logs {mine.id} {name}"))
        raise typer.Exit(code or 1)
    store = ContextStore(mine)
    return {key: store.get(ref) for key, ref in state.outputs.get(i, {}).items() if isinstance(ref, dict)}


def _reason(answer: dict[str, Json]) -> str:
    from dagrun.core.replanner import reason_of

    return reason_of(answer)


def _document(state: RunState, i: int | None, answer: dict[str, Json], origin: str) -> dict[str, Json] | None:
    """The patch document of an answer, whose reason says where it comes from."""
    from dagrun.core.names import Outcome
    from dagrun.core.operation import Trigger
    from dagrun.core.replanner import document

    trigger = Trigger()
    if i is not None and state.attempts[i]:
        timed_out = state.attempts[i][-1].outcome is Outcome.TIMED_OUT
        trigger = Trigger(type="timeout" if timed_out else "failure", node=state.plan.ids[i])
    reason = f"{_reason(answer)} ({origin})".lstrip()
    return document({**answer, "reason": reason}, trigger)


def _keep(mine: RunDir, document: dict[str, Json]) -> str:
    """Write the patch beside its journal, for whoever wants to look at it or change it; its path."""
    from dagrun.flowfile.document import dump_yaml
    from dagrun.store.disk import disk_fault, write_atomic

    path = f"{mine.path}/{NAME}"
    try:
        write_atomic(path, dump_yaml(document).encode("utf-8", "replace"))
    except OSError as error:
        raise disk_fault("can't write", path, error) from error
    return os.path.relpath(path)

"""What a human decides about a run, carried out: answers, changes, proposals, outputs by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dagrun.cli.change import Wish, change_run, outcome_json, who
from dagrun.cli.console import Settings, emit, emit_json, say
from dagrun.cli.groups import node_number
from dagrun.core.names import Json, NodeId
from dagrun.core.workflow import Fault
from dagrun.errors import ConflictError, InputError, Problem, UsageError

if TYPE_CHECKING:
    from dagrun.core.event import PatchProposed
    from dagrun.core.patch import Patch
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Node
    from dagrun.engine.submit import Submitted
    from dagrun.store.rundir import RunDir


class Waiting(NamedTuple):
    """One thing that waits for a human: of a node, or a proposal by its number."""

    node: NodeId
    number: int
    kind: str  # review | failure | proposal

    @property
    def word(self) -> str:
        """What a person types for it."""
        return self.node or str(self.number)


@dataclass(slots=True, kw_only=True)
class Decision:
    """What was chosen on the command line or in the dialogue; `choice` is empty when nothing was."""

    choice: str = ""
    changes: list[str] = field(default_factory=list)
    patch: str = ""
    outputs: str = ""
    comment: str = ""
    silent: bool = False  # stdout belongs to the run that goes on


def things_waiting(state: RunState) -> list[Waiting]:
    """What waits for a human in a run, in the order in which it came up."""
    found = []
    for i in state.reviews:
        kind = "review" if state.plan.nodes[i].review is not None else "failure"
        found.append(Waiting(state.plan.ids[i], 0, kind))
    return [*found, *(Waiting("", number, "proposal") for number in state.proposals)]


def carry_out(settings: Settings, run: RunDir, item: Waiting, made: Decision) -> None:
    from dagrun.engine.submit import decide_review

    again = f"dagrun review {run.id} {item.word} --{made.choice}"
    if item.kind == "proposal":
        _decide_proposal(settings, run, item, made, again)
        return
    if item.kind == "review" and made.choice == "modify":
        hint = f"dagrun review {run.id} {item.word} --approve, or --reject"
        raise UsageError(f"{item.node} is a question, not a command: there is nothing to modify", hint=hint)
    if made.choice in ("modify", "patch"):
        _change(settings, run, item, made, again)
        return
    values = _outputs(run, item.node, made)
    decide_review(run, item.node, made.choice, by=who(), comment=made.comment, outputs=values)
    _said(settings, run, item, made)


_WORDS = {"approve": "approved", "reject": "rejected", "skip": "skipped", "modify": "modified", "patch": "patched"}


def _said(settings: Settings, run: RunDir, item: Waiting, made: Decision, done: Submitted | None = None) -> None:
    """Say what was recorded: on stdout, unless that belongs to the run that goes on."""
    what = item.node or f"proposal {item.number}"
    if settings.json and not made.silent:
        document: dict[str, Json] = {**outcome_json(run, done)} if done else {"run_id": run.id}
        about: dict[str, Json] = {"node_id": item.node or None, "proposal": item.number or None}
        emit_json({**document, **about, "decision": made.choice})
    elif not settings.quiet and not settings.json:
        revision = f": revision {done.revision}" if done else ""
        (say if made.silent else emit)(f"{_WORDS[made.choice]} {what}{revision}")


def _decide_proposal(settings: Settings, run: RunDir, item: Waiting, made: Decision, again: str) -> None:
    from dagrun.engine import submit as door

    if made.choice == "reject":
        door.reject_proposal(run, item.number, by=who())
        _said(settings, run, item, made)
        return
    if made.choice != "approve":
        hint = f"dagrun review {run.id} {item.number} --approve, or --reject"
        raise UsageError(f"a proposal is approved or rejected, not told to {made.choice}", hint=hint)

    def make(state: RunState) -> Patch:
        proposal = state.proposals.get(item.number)
        if proposal is None:
            raise ConflictError(f"proposal {item.number} is decided already", hint=f"dagrun replan history {run.id}")
        return proposed_patch(state, proposal)

    wish = Wish(make=make, problem=_plain_problem, again=again, yes=True, rebase=True, proposal=item.number)
    done = change_run(settings, run, wish)
    _said(settings, run, item, made, done)


def _plain_problem(fault: Fault) -> Problem:
    return Problem(code=fault.code, message=fault.message, hint=fault.hint)


def proposed_patch(state: RunState, proposal: PatchProposed) -> Patch:
    """The patch of a proposal for the head of the run: its recorded operations, built anew."""
    from dagrun.flowfile.patchfile import patch_from_document

    document: dict[str, Json] = {"trigger": dict(proposal.trigger), "operations": list(proposal.operations)}
    return patch_from_document(document, state.plan.workflow, f"proposal {proposal.number}")


def _change(settings: Settings, run: RunDir, item: Waiting, made: Decision, again: str) -> None:
    """Change the plan instead of answering: the node with new settings, or a patch from a file."""
    from dagrun.cli.wanted import Operations

    wanted = Operations(message=made.comment)
    if made.choice == "patch":
        wanted.patch = made.patch
        again = f"{again} {made.patch}"
    else:
        wanted.retry = [f"{item.node}:{','.join(made.changes)}" if made.changes else item.node]
        again = f"{again} {' '.join(made.changes)}"
    wish = wanted.wish(again=again, yes=True)
    done = change_run(settings, run, wish)
    _said(settings, run, item, made, done)


# ---------------------------------------------------------------- outputs by hand


def _outputs(run: RunDir, name: NodeId, made: Decision) -> dict[str, Json]:
    """The outputs that a person gives for a node. Raises InputError when they break its contract."""
    from dagrun.store.history import load_state

    state = load_state(run)
    i = node_number(state.plan.index, name, run.id)
    node = state.plan.nodes[i]
    given = _read_outputs(made.outputs) if made.outputs else {}
    problems = list(_contract(node, given, made.outputs))
    if (made.choice == "approve" and node.review is None) or made.choice == "skip":
        problems += _wanted_by_others(state, i, given, made)
    if problems:
        raise InputError(tuple(problems), hint=f"nothing was decided; what waits: dagrun review {run.id}")
    return given


def _read_outputs(path: str) -> dict[str, Json]:
    from json import loads

    from dagrun.cli.files import read_file

    try:
        found = loads(read_file(path, "a JSON file with one object: output -> value"))
    except (ValueError, RecursionError) as error:
        raise InputError((Problem(code="bad-json", message=f"this is no JSON: {error}", file=path),)) from None
    if not isinstance(found, dict):
        hint = '{"output": "value"}'
        raise InputError((Problem(code="bad-outputs", message="outputs are one JSON object", file=path, hint=hint),))
    return found


def _contract(node: Node, given: Mapping[str, Json], file: str) -> list[Problem]:
    """What is wrong with given outputs: names that were not declared, values that break a schema."""
    from dagrun.core.plan import near

    problems = []
    for name, value in given.items():
        output = node.outputs.get(name)
        if output is None:
            hint = near(name, node.outputs) or f"it declares {', '.join(node.outputs) or 'none'}"
            message = f"`{node.id}` declares no output `{name}`"
            problems.append(Problem(code="unknown-output", message=message, file=file, hint=hint))
        elif output.schema is not None:
            problems += _violations(f"output `{name}`", value, output.schema, file)
    if given and node.output_schema is not None and not problems:
        problems += _violations("the outputs", dict(given), node.output_schema, file)
    return problems


def _violations(what: str, value: Json, schema: Json, file: str) -> list[Problem]:
    from dagrun.engine.contract import violations

    return [Problem(code="invalid-output", message=f"{what}: {text}", file=file) for text in violations(value, schema)]


def _wanted_by_others(state: RunState, i: int, given: Mapping[str, Json], made: Decision) -> list[Problem]:
    """Outputs that nodes to come can't do without, and nobody would give."""
    from dagrun.core.names import SETTLED
    from dagrun.core.reading import outputs_read, requires

    name = state.plan.ids[i]
    problems = []
    for d in state.plan.dependents[i]:
        if state.node_status[d] in SETTLED:
            continue
        user = state.plan.nodes[d]
        for key, item in user.inputs.items():
            missing = [o for o in outputs_read(item, name) if o not in given] if requires(item, name) else []
            if missing:
                message = f"`{user.id}` needs the output `{missing[0]}` of `{name}` for its input `{key}`"
                hint = f'give it: --{made.choice} --outputs FILE, with {{"{missing[0]}": …}}'
                problems.append(Problem(code="needs-output", message=message, hint=hint))
    return problems


# ---------------------------------------------------------------- afterwards


def go_on_with(settings: Settings, run: RunDir, resume: bool) -> None:
    """Take the run up in the foreground, unless that was not wanted, or others do, or something still waits."""
    if run.lock_holder() is not None:
        if not settings.quiet and not settings.json:
            say("the engine of the run goes on with it")
        return
    if not resume:
        if not settings.quiet and not settings.json:
            say(settings.hint(f"  help: go on with it: dagrun resume {run.id}"))
        return
    from dagrun.cli.execute import go_on

    go_on(settings, run.id)

"""replan: change a workflow file, or the plan of a run while it runs.

`replan` is a command whose first word may also name one of its own: history, undo.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

import typer

from dagrun.cli.change import change_run, tell
from dagrun.cli.compare import flow_of
from dagrun.cli.console import Settings, emit, emit_json, is_terminal, look_for, say
from dagrun.cli.editor import Editor
from dagrun.cli.files import read_file, write_text
from dagrun.cli.groups import Command, Entry, command, is_flow
from dagrun.cli.wanted import Operations
from dagrun.errors import UsageError

if TYPE_CHECKING:
    from dagrun.core.names import Json
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Workflow
    from dagrun.engine.submit import Submitted
    from dagrun.store.rundir import RunDir

OWN: Mapping[str, Entry] = {
    "history": Entry("dagrun.cli.history", "history", "What was done to the plan of a run."),
    "undo": Entry("dagrun.cli.history", "undo", "Take back a revision of a run."),
}
_ALONE = frozenset({"--json", "-q", "--quiet", "-v", "--verbose", "--no-input"})
_VALUED = frozenset({"-C", "--color"})
_NOTHING = """\
insert a node       --insert node.yaml --after test --before deploy
take one out        --remove lint:bridge      (or :skip, :cascade)
change its order    --rewire report=db,cache
change its keys     --set publish.timeout=10m, --unset publish.env
try it again        --retry train:timeout=1h
replace it          --fallback analyze=simple.yaml
run it again        --rerun build
all of it at once   --patch patch.yaml, --edit, --to new.yaml
ask a model         --suggest"""


class Replan(Command):
    """The command, which hands over to `history` and `undo` where the first word says so."""

    own: ClassVar[Mapping[str, Entry]] = OWN

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of this command, or of the one that the first word names."""
        at = _first_word(args)
        if at is not None and args[at] in OWN:
            entry = OWN[args[at]]
            inner = getattr(import_module(entry.module), entry.attribute)
            rest = [*args[:at], *args[at + 1 :]]
            return inner.make_context(f"{info_name} {args[at]}", rest, parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options, then the commands of its own."""
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in OWN.items()])


def _first_word(args: list[str]) -> int | None:
    """The place of the first word that is no option of every command, nor its value."""
    skip = False
    for at, word in enumerate(args):
        if skip:
            skip = False
        elif word in _VALUED:
            skip = True
        elif word not in _ALONE:
            return at
    return None


def _many(flag: str, form: str, text: str) -> Any:
    return typer.Option([], flag, metavar=form, show_default=False, help=text)


def _one(flag: str, form: str, text: str) -> Any:
    return typer.Option("", flag, metavar=form, show_default=False, help=text)


_RUN_OR_FLOW = typer.Argument("last", metavar="[RUN|FLOW]", show_default=False, help="A run, or a workflow file.")
_MESSAGE = typer.Option("", "-m", "--message", metavar="TEXT", show_default=False, help="Why, for the history.")
_BASE = typer.Option(None, "--base", metavar="N", min=1, show_default=False, help="The revision it is made for.")
_OUTPUT = typer.Option("", "-o", "--output", metavar="FILE", show_default=False, help="FLOW: write the new file there.")
_INSERT = _many("--insert", "FILE", "A new node; - is stdin.")
_AFTER = _many("--after", "NODE", "The new node waits for this one.")
_BEFORE = _many("--before", "NODE", "This one waits for the new node.")
_REMOVE = _many("--remove", "NODE:HOW", "Take it out: skip, bridge or cascade.")
_REWIRE = _many("--rewire", "NODE=A,B", "It waits for exactly these.")
_SET = _many("--set", "NODE.KEY=V", "Change a key of a node.")
_UNSET = _many("--unset", "NODE.KEY", "Drop a key of a node.")
_RETRY = _many("--retry", "NODE[:K=V,…]", "Try it again, changed.")
_FALLBACK = _many("--fallback", "NODE=F", "A file or template in its place.")
_RERUN = _many("--rerun", "NODE", "Run it again, and what follows it.")
_LIMIT = _many("--limit", "KEY=V", "parallel=2, resources.gpu=1")


def _replan(
    ctx: typer.Context,
    what: str = _RUN_OR_FLOW,
    insert: list[str] = _INSERT,
    after: list[str] = _AFTER,
    before: list[str] = _BEFORE,
    remove: list[str] = _REMOVE,
    rewire: list[str] = _REWIRE,
    set_: list[str] = _SET,
    unset: list[str] = _UNSET,
    retry: list[str] = _RETRY,
    fallback: list[str] = _FALLBACK,
    rerun: list[str] = _RERUN,
    limit: list[str] = _LIMIT,
    patch: str = _one("--patch", "FILE", "The operations of a patch file; - is stdin."),
    edit: bool = typer.Option(False, "--edit", help="Open the plan in $EDITOR; the difference is the patch."),
    to: str = _one("--to", "FILE", "Make it as this file says."),
    suggest: bool = typer.Option(False, "--suggest", help="RUN: ask a model for a patch; -m says what is wanted."),
    node: str = _one("--node", "NODE", "With --suggest: what it is about (the first failure)."),
    model: str = _one("--model", "MODEL", "With --suggest: a tier, or vendor/name."),
    message: str = _MESSAGE,
    yes: bool = typer.Option(False, "-y", "--yes", help="Don't ask."),
    dry_run: bool = typer.Option(False, "-n", "--dry-run", help="Only show what would change."),
    base: int | None = _BASE,
    rebase: bool = typer.Option(False, "--rebase", help="RUN: build on the head, whatever it is."),
    cancel_running: bool = typer.Option(False, "--cancel-running", help="RUN: end what runs, if need be."),
    resume: bool = typer.Option(False, "--resume", help="RUN: go on with it afterwards."),
    accept_missing: str = _one("--accept-missing", "LIST", "With --resume: guarantees to go without."),
    write: bool = typer.Option(False, "--write", help="FLOW: rewrite the file; comments stay."),
    output: str = _OUTPUT,
) -> None:
    """Change the plan of a run, running or not, or a workflow file. All operations are one change.

    It shows what would change, asks, and applies all of it or nothing. On a FLOW it prints the new file.
    """
    settings: Settings = ctx.obj
    wanted = Operations(
        insert=insert,
        after=after,
        before=before,
        remove=remove,
        rewire=rewire,
        set=set_,
        unset=unset,
        retry=retry,
        fallback=fallback,
        rerun=rerun,
        limit=limit,
        patch=patch,
        cancel_running=cancel_running,
        message=message,
    )
    wanted.check(what)
    _check_ways(wanted, what, edit=edit, to=to, suggest=suggest)
    if (node or model) and not suggest:
        raise UsageError("--node and --model go with --suggest", hint=f"dagrun replan {what} --suggest --node NODE")
    if is_flow(what):
        if suggest:
            raise UsageError(f"{what} is a file: --suggest is for a run", hint="dagrun replan RUN --suggest -m TEXT")
        if resume or rebase or base or cancel_running:
            raise UsageError(f"{what} is a file: --resume, --rebase, --base and --cancel-running are for a run")
        if write and output:
            raise UsageError("--write and -o: choose one", hint=f"--write rewrites {what}, -o leaves it as it is")
        with Editor(what) as editor:
            by_hand = editor if edit else None
            _replan_file(settings, what, wanted, by_hand, to, write=write, output=output, dry_run=dry_run)
        return
    if write or output:
        raise UsageError(f"{what} is a run: --write and -o are for a file", hint=f"its plan: dagrun export {what}")
    from dagrun.store.rundir import find_run

    run = find_run(".", what)
    with Editor(run.id) as editor:
        again = _again(run)
        if suggest:
            from dagrun.cli.suggest import Question, consented
            from dagrun.cli.suggest import suggest as ask_model

            again = ask_model(settings, run, Question(node=node, model=model, wish=message), wanted)
            wanted.message = ""  # that was for the model; the reason is its own
        revision = _document(run, wanted, editor if edit else None, to, base or 0)
        wish = wanted.wish(again=again, base=revision, rebase=rebase, yes=yes, dry_run=dry_run)
        done = change_run(settings, run, consented(settings, run, wish) if suggest else wish)
    if done is not None:
        _admitted(settings, run, done, resume, accept_missing)


def _again(run: RunDir) -> str:
    """The command line that was typed, with the run that it meant: `last` may be another one soon."""
    words = sys.argv[1:]
    at = words.index("replan") if "replan" in words else -1
    rest = [w for w in words[at + 1 :] if w not in ("-y", "--yes", "-n", "--dry-run")]
    while "-C" in rest:  # every hint gets it anyway, where it belongs
        del rest[rest.index("-C") : rest.index("-C") + 2]
    if rest and (rest[0] == "last" or run.id.startswith(rest[0].lower())):
        rest = rest[1:]
    return shlex.join(["dagrun", "replan", run.id, *rest])


replan = command(
    "replan",
    "dagrun replan r7k2 --remove lint:bridge\n"
    "dagrun replan r7k2 --retry train:timeout=1h --resume\n"
    "dagrun replan --patch patch.yaml --dry-run\n"
    "dagrun replan r7k2 --suggest                  # ask a model, look, then decide\n"
    "dagrun replan flow.yaml --insert scan.yaml --after test --write\n"
    "dagrun replan history r7k2\n"
    "dagrun replan undo r7k2",
    cls=Replan,
)(_replan)


def _check_ways(wanted: Operations, what: str, *, edit: bool, to: str, suggest: bool) -> None:
    """Raises UsageError unless the command says in one way what to do."""
    given = (("--patch", wanted.patch), ("--edit", edit), ("--to", to), ("--suggest", suggest))
    ways = [name for name, on in given if on]
    if wanted.any_flag():
        ways.insert(0, "operations")
    if not ways:
        raise UsageError(f"nothing to do: say what is to change in {what}", hint=f"one or more of\n  {_indented()}")
    if len(ways) > 1:
        raise UsageError(f"{' and '.join(ways)} don't mix", hint="one patch is written in one way")


def _indented() -> str:
    return _NOTHING.replace("\n", "\n  ")


# ---------------------------------------------------------------- a run


def _admitted(settings: Settings, run: RunDir, done: Submitted, resume: bool, accept_missing: str) -> None:
    goes_on = resume and not done.engine_alive
    if goes_on and settings.json:
        pass  # stdout holds one document: that of the run
    else:
        tell(settings, run, done, goes_on=goes_on)
    if goes_on:
        from dagrun.cli.execute import go_on

        go_on(settings, run.id, accept_missing)


def _document(run: RunDir, wanted: Operations, editor: Editor | None, to: str, base: int) -> int:
    """The patch of --edit and --to: what leads from a revision to the edited plan. The revision that it is for."""
    if editor is None and not to:
        return base
    from dagrun.cli.history import revision_of
    from dagrun.store.history import load_state

    state = load_state(run)
    plan = revision_of(run, base) if base else state.plan
    before = _without_replanners(state, plan.workflow)
    after = _edited_plan(before, editor, f"{run.id}.yaml") if editor else flow_of(to)
    document = _difference(wanted, before, after, to or "the edited plan")
    document["operations"] = _with_retries(state, document["operations"])
    return plan.revision


def _without_replanners(state: RunState, workflow: Workflow) -> Workflow:
    """A plan as somebody would write it: who was asked to mend a failure is nothing that he would change."""
    asked = {state.plan.ids[i] for i in state.replanners}
    return replace(workflow, nodes={n: node for n, node in workflow.nodes.items() if n not in asked})


def _with_retries(state: RunState, operations: Json) -> list[Json]:
    """A failed node that somebody edits is tried again: nothing else can come of the edit."""
    from dagrun.core.names import Status

    made = cast("list[dict[str, dict[str, Json]]]", operations)
    edited = dict.fromkeys(str(body["id"]) for op in made for kind, body in op.items() if kind == "modify")
    again = [n for n in edited if state.node_status[state.plan.index[n]] in (Status.FAILED, Status.AWAITING_REVIEW)]
    retries: list[Json] = [{"retry": {"id": name}} for name in again]
    return [*cast("list[Json]", made), *retries]


def _edited_plan(workflow: Workflow, editor: Editor, name: str) -> Workflow:
    from dagrun.flowfile.document import dump_yaml, workflow_to_document
    from dagrun.flowfile.load import read_workflow_text

    text = editor.edit(dump_yaml(workflow_to_document(workflow)).encode(), name)
    base = os.path.dirname(os.path.abspath(workflow.file))
    return read_workflow_text(text, "the edited plan", base, use_cache=False).workflow


def _difference(wanted: Operations, before: Workflow, after: Workflow, name: str) -> dict[str, Json]:
    """Make what leads from one workflow to the other what is wanted. Raises UsageError when that is nothing."""
    from dagrun.flowfile.differ import diff_files
    from dagrun.flowfile.document import named_patches

    document = diff_files(before, after)
    if not document.get("operations"):
        raise UsageError(f"{name} changes nothing", hint="edit it, then try again")
    wanted.document, wanted.document_name = document, name
    for node in (*after.nodes.values(), *after.templates.values()):
        wanted.document_patches.update(named_patches(node))
    return document


# ---------------------------------------------------------------- a file


def _replan_file(
    settings: Settings,
    flow: str,
    wanted: Operations,
    editor: Editor | None,
    to: str,
    *,
    write: bool,
    output: str,
    dry_run: bool,
) -> None:
    from dagrun.flowfile.edit import edit_file, open_flow

    flow_of(flow)  # says best what is wrong with it
    before = read_file(flow, "a workflow file")
    if editor:
        after = editor.edit(before, flow)
        _checked(after, flow)
    else:
        opened = open_flow(before, flow, os.path.dirname(os.path.abspath(flow)))
        if to:
            _difference(wanted, opened.workflow, flow_of(to), to)
        after = edit_file(opened, wanted.build(opened.workflow, opened.defaults))
    _show_file(settings, flow, before, after, write=write, output=output, dry_run=dry_run)


def _checked(data: bytes, flow: str) -> None:
    """Raises InputError for what came out of an editor and is no workflow."""
    from dagrun.flowfile.load import read_workflow_text

    read_workflow_text(data, f"{flow} (edited)", os.path.dirname(os.path.abspath(flow)), use_cache=False)


def _show_file(
    settings: Settings, flow: str, before: bytes, after: bytes, *, write: bool, output: str, dry_run: bool
) -> None:
    from dagrun.view.preview import file_diff

    target = output or (flow if write else "")
    changed = before != after
    if target and not dry_run:
        write_text(target, after)
    if settings.json:
        emit_json({"file": flow, "changed": changed, "written": target if not dry_run else "", "text": after.decode()})
        return
    if not target and not dry_run:
        emit(after.decode().removesuffix("\n"))
    if settings.quiet or not (target or dry_run or (is_terminal(sys.stdout) and is_terminal(sys.stderr))):
        return
    stream = sys.stdout if dry_run else sys.stderr
    text = file_diff(before.decode(), after.decode(), flow, look_for(settings, stream)) or f"{flow} stays as it is"
    (emit if dry_run else say)(text)
    if target and not dry_run:
        say(settings.hint(f"wrote {target}\n  help: dagrun validate {target}"))
    elif not dry_run:
        say("  help: to keep it: the same command with --write, or with -o FILE")

"""What a person wants changed, as the command line says it: flags, a patch file, an edited plan.

All ways end in a `FilePatch`, built for the workflow that it is to change, and in problems that
name the flag, or the file with line and column.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dagrun.cli.change import Wish
from dagrun.cli.files import read_file
from dagrun.errors import Problem, UsageError

if TYPE_CHECKING:
    from dagrun.core.names import Json
    from dagrun.core.patch import Patch, Trigger
    from dagrun.core.state import RunState
    from dagrun.core.workflow import Fault, Workflow
    from dagrun.flowfile.convert import Defaults
    from dagrun.flowfile.patchfile import FilePatch

BELONG = "--after and --before go with one --insert"


@dataclass(slots=True, kw_only=True)
class Operations:
    """The operations of one command.

    `document` is a patch that was made from an edited plan, `document_patches` are what its nodes
    name in `on_failure`.
    """

    insert: Sequence[str] = ()
    after: Sequence[str] = ()
    before: Sequence[str] = ()
    remove: Sequence[str] = ()
    rewire: Sequence[str] = ()
    set: Sequence[str] = ()
    unset: Sequence[str] = ()
    retry: Sequence[str] = ()
    fallback: Sequence[str] = ()
    rerun: Sequence[str] = ()
    limit: Sequence[str] = ()
    patch: str = ""
    document: Json = None
    document_name: str = ""
    document_patches: dict[str, Json] = field(default_factory=dict)
    cancel_running: bool = False
    message: str = ""
    _files: dict[str, bytes] = field(default_factory=dict)
    _made: FilePatch | None = None

    def any_flag(self) -> bool:
        """Whether any operation stands on the command line itself."""
        return any((self.insert, self.remove, self.rewire, self.set, self.unset, self.retry, self.fallback)) or any(
            (self.rerun, self.limit)
        )

    def check(self, what: str) -> None:
        """Raises UsageError for flags that don't go together, before anything is read."""
        if (self.after or self.before) and len(self.insert) != 1:
            raise UsageError(BELONG, hint=f"dagrun replan {what} --insert node.yaml --after test --before deploy")
        if self.patch and self.any_flag():
            raise UsageError("--patch and single operations don't mix", hint="write them into the patch file")

    def build(self, workflow: Workflow, defaults: Defaults | None = None) -> FilePatch:
        """The patch for a workflow; `defaults` of its file hold for new nodes.

        Raises InputError with all that is wrong, UsageError.
        """
        if self.document is not None:
            made = self._from_document(workflow)
        elif self.patch:
            made = self._from_file(workflow, defaults)
        else:
            made = self._from_flags(workflow, defaults)
        if self.message:
            trigger = replace(made.patch.trigger, reason=self.message)
            made = replace(made, patch=replace(made.patch, trigger=trigger))
        self._made = made
        return made

    def problem(self, fault: Fault) -> Problem:
        """A fault of the patch that was built last, at its flag or its place in the file."""
        made = self._made
        if made is None:
            return Problem(code=fault.code, message=fault.message, hint=fault.hint)
        return made.problem(fault)

    def wish(
        self, *, again: str, base: int = 0, rebase: bool = False, yes: bool = False, dry_run: bool = False
    ) -> Wish:
        """This, wanted of a run."""
        from dagrun.flowfile.patchfile import for_run

        def make(state: RunState) -> Patch:
            patch = for_run(self.build(state.plan.workflow)).patch
            return replace(patch, base=base or patch.base, trigger=trigger_for(state, patch))

        return Wish(make=make, problem=self.problem, again=again, base=base, rebase=rebase, yes=yes, dry_run=dry_run)

    # ------------------------------------------------------------ the ways

    def _from_document(self, workflow: Workflow) -> FilePatch:
        from dagrun.flowfile.patchfile import file_patch_from_document

        return file_patch_from_document(self.document, workflow, self.document_name, patches=self.document_patches)

    def _from_file(self, workflow: Workflow, defaults: Defaults | None) -> FilePatch:
        from dagrun.flowfile.patchfile import read_file_patch

        folder = os.getcwd() if self.patch == "-" else os.path.dirname(os.path.abspath(self.patch))
        name = "<stdin>" if self.patch == "-" else self.patch
        return read_file_patch(self._read(self.patch), name, workflow, base_dir=folder, defaults=defaults)

    def _from_flags(self, workflow: Workflow, defaults: Defaults | None) -> FilePatch:
        from dagrun.flowfile import pieces as p

        found = [p.insert(self._read(f), _name(f), after=self.after, before=self.before) for f in self.insert]
        found += [p.remove(text) for text in self.remove]
        found += [p.rewire(text, workflow) for text in self.rewire]
        found += [p.drop(text) for text in self.unset]
        found += [p.change(text) for text in self.set]
        found += [p.retry(text) for text in self.retry]
        found += [p.fallback(text, workflow, self._read) for text in self.fallback]
        found += [p.rerun(text) for text in self.rerun]
        found += [p.limits(text) for text in self.limit]
        if self.cancel_running:
            found = [p.cancelling(piece) for piece in found]
        return p.patch_from_pieces(found, workflow, base_dir=os.getcwd(), defaults=defaults)

    def _read(self, path: str) -> bytes:
        """A file's bytes, read once: a patch is built again under the lock."""
        if path not in self._files:
            self._files[path] = read_file(path, "a YAML file")
        return self._files[path]


def trigger_for(state: RunState, patch: Patch) -> Trigger:
    """What caused a patch: what it says, else the failure of the first node that it tries again or replaces."""
    from dagrun.core.names import Outcome, Status
    from dagrun.core.patch import Fallback, Retry
    from dagrun.core.trace import cause

    given = patch.trigger
    if given.node or given.type != "requirement":
        return given
    for operation in patch.operations:
        i = state.plan.index.get(operation.id) if isinstance(operation, Retry | Fallback) else None
        if i is None or state.node_status[i] not in (Status.FAILED, Status.RETRYING, Status.AWAITING_REVIEW):
            continue
        finish = state.attempts[i][-1].finish if state.attempts[i] else None
        timed_out = finish is not None and finish.outcome is Outcome.TIMED_OUT
        reason = given.reason or (cause(finish, state.plan.nodes[i]) if finish else "")
        return replace(given, type="timeout" if timed_out else "failure", node=state.plan.ids[i], reason=reason)
    return given


def _name(path: str) -> str:
    return "<stdin>" if path == "-" else path

"""A text in a person's editor. What they wrote is not lost when it can't be used."""

from __future__ import annotations

import os
from types import TracebackType

from dagrun.cli.files import read_file
from dagrun.errors import DagrunError, UsageError


class Editor:
    """$VISUAL or $EDITOR, for one text. As a context: an error that leaves it says where the text is kept.

    `target` is what is edited, a run or a file, for the commands in hints.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._path = self._folder = ""

    def __enter__(self) -> Editor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._folder:
            return
        if self._path and isinstance(error, DagrunError):
            kept = f"your text is kept: dagrun replan {self._target} --to {self._path}"
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
            return
        from shutil import rmtree

        rmtree(self._folder, ignore_errors=True)

    def edit(self, before: bytes, name: str) -> bytes:
        """What a person makes of a text. Raises UsageError without an editor, or when it fails."""
        import shlex
        import subprocess
        from tempfile import mkdtemp

        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
        if not editor:
            raise UsageError("--edit: no editor is set", hint=f"EDITOR=vi dagrun replan {self._target} --edit")
        self._folder = mkdtemp(prefix="dagrun-edit-")
        path = os.path.join(self._folder, os.path.basename(name))
        with open(path, "wb") as file:
            file.write(before)
        try:
            done = subprocess.run([*shlex.split(editor), path], check=False)
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or str(error)
            raise UsageError(f"--edit: can't start {editor}: {why}", hint="set EDITOR to one that is there") from None
        after = read_file(path, "the edited plan")
        self._path = path if after != before else ""
        if done.returncode:
            hint = f"dagrun replan {self._target} --edit"
            raise UsageError(f"{editor} exited {done.returncode}: nothing was changed", hint=hint)
        return after

"""The files that a workflow names (JSON Schemas, patches), relative to the workflow file; each is read once.

What is wrong with their text is a problem in that file; that one can't be read is a fault at the
place that names it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from hashlib import sha256

from dagrun.core.names import Json
from dagrun.core.workflow import Fault
from dagrun.errors import InputError, Problem
from dagrun.flowfile import fields
from dagrun.flowfile.source import MAX_BYTES, Tree, parse

Path = tuple[str | int, ...]


class Documents:
    """Reads named files; collects `faults`, `problems` and the sha256 of each file by name."""

    def __init__(self, file: str, base_dir: str) -> None:
        self._shown = os.path.dirname(file)
        self._base = base_dir
        self._read: dict[str, Json] = {}
        self.faults: list[Fault] = []
        self.problems: list[Problem] = []
        self.digests: dict[str, str] = {}
        self.trees: dict[str, Tree | None] = {}

    def read(self, name: str, path: Path) -> Json:
        """The JSON mapping in a file, or None after noting what is wrong with it."""
        if name not in self._read:
            self._read[name] = self._load(name, path)
        return self._read[name]

    def patch(self, name: str, path: Path) -> Json:
        """The patch in a file as it is written; `trees` has it with its places, for the check that follows."""
        if name not in self.trees:
            tree = self._tree(name, path)
            self.trees[name] = tree
        found = self.trees[name]
        try:
            return fields.json(found.value) if found is not None else None
        except fields.Wrong:  # said again, with its place, when the patch is checked
            return None

    def text(self, name: str, path: Path) -> str:
        """The text of a file as it is, or "" after noting what is wrong with it."""
        data = self._bytes(name, path)
        if data is None:
            return ""
        try:
            found = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.faults.append(Fault(path, "unreadable-file", f"can't read `{name}`: it is not UTF-8 text"))
            return ""
        self.digests[name] = sha256(data).hexdigest()
        return found

    def _bytes(self, name: str, path: Path) -> bytes | None:
        try:
            return read_regular(os.path.join(self._base, name))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            if isinstance(error, FileNotFoundError):
                reason = "there is no such file (it is looked for beside the file that names it)"
            self.faults.append(Fault(path, "unreadable-file", f"can't read `{name}`: {reason}", self._near(name)))
            return None

    def _tree(self, name: str, path: Path) -> Tree | None:
        """The text of a file as a tree, or None after noting what is wrong with it."""
        data = self._bytes(name, path)
        if data is None:
            return None
        try:
            tree = parse(data, os.path.join(self._shown, name))
        except InputError as error:
            self.problems.extend(error.problems)
            return None
        self.problems.extend(tree.problems)
        self.digests[name] = sha256(data).hexdigest()
        return tree

    def _load(self, name: str, path: Path) -> Json:
        tree = self._tree(name, path)
        if tree is None:
            return None
        try:
            got = fields.json(tree.value)
        except fields.Wrong as error:
            self.problems.extend(tree.problem(Fault(d.at, d.code, d.message, d.hint)) for d in error.defects)
            return None
        if not isinstance(got, dict):
            message = f"a JSON Schema is a mapping, not {fields.describe(tree.value)}"
            self.problems.append(
                tree.problem(Fault((), "bad-schema", message, "write {type: object, properties: {…}}"))
            )
            return None
        return got

    def beside(self, name: str) -> Documents:
        """For the files that the file `name` names."""
        return Documents(os.path.join(self._shown, name), os.path.join(self._base, os.path.dirname(name)))

    def keep_digests(self, name: str, others: Documents) -> None:
        """Remember which files the file `name` named."""
        folder = os.path.dirname(name)
        self.digests.update({os.path.join(folder, inner): digest for inner, digest in others.digests.items()})

    def _near(self, name: str) -> str:
        from difflib import get_close_matches

        try:
            folder = os.path.join(self._base, os.path.dirname(name))
            there = [os.path.join(os.path.dirname(name), n) for n in sorted(os.listdir(folder))[:10_000]]
        except (OSError, ValueError):
            return ""
        found = get_close_matches(name, there, n=1, cutoff=0.7)
        return f"did you mean `{found[0]}`?" if found else ""


class NoDocuments:
    """For text that comes from a node or a journal: files that it names are never opened."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.problems: list[Problem] = []

    def read(self, name: str, path: Path) -> Json:
        """Note that this file can't be named here."""
        hint = "write the schema in place"
        self.faults.append(Fault(path, "no-files", f"the file `{name}` can't be named here", hint))
        return None

    def patch(self, name: str, path: Path) -> Json:
        """Note that this file can't be named here."""
        self.faults.append(Fault(path, "no-files", f"the file `{name}` can't be named here"))
        return None

    def text(self, name: str, path: Path) -> str:
        """Note that this file can't be named here."""
        self.faults.append(Fault(path, "no-files", f"the file `{name}` can't be named here"))
        return ""


class KnownDocuments(NoDocuments):
    """Other documents, but for patches and texts that are known already."""

    def __init__(
        self, others: Documents | NoDocuments, known: Mapping[str, Json], texts: Mapping[str, str] | None = None
    ) -> None:
        self._others = others
        self._patches = known
        self._texts = texts or {}
        self.faults = others.faults
        self.problems = others.problems

    def read(self, name: str, path: Path) -> Json:
        """The JSON document in a file."""
        return self._others.read(name, path)

    def patch(self, name: str, path: Path) -> Json:
        """The known patch of that name, else the one in a file."""
        return self._patches[name] if name in self._patches else self._others.patch(name, path)

    def text(self, name: str, path: Path) -> str:
        """The known text of that name, else that of a file."""
        return self._texts[name] if name in self._texts else self._others.text(name, path)


def read_regular(path: str) -> bytes:
    """The bytes of a regular file, at most what a workflow file may have. Raises OSError, ValueError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as opened:
        info = os.fstat(handle)
        if stat.S_ISDIR(info.st_mode):
            raise ValueError("it is a directory")
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("it is not a regular file")
        if info.st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        return opened.read(MAX_BYTES + 1)

"""What of a confined attempt's files the engine reads for it: only what the attempt could have read itself.

The engine has more rights than the command, and a command decides what lies at the end of a path.
So a path must be inside a grant and neither denied nor hidden by its text, and is then opened
without following any link: what the text says is what is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dagrun.core.roots import Root, denied_of, is_key, matches, root_of
from dagrun.sandbox.wall import Spec
from dagrun.store.beneath import open_file
from dagrun.store.exchange import OutputError

_CLOCK_NS = 100_000_000  # the clock of file systems ticks more coarsely than ours


@dataclass(slots=True)
class Reach:
    """The files that one attempt may read; `spec.read` None is all but the hidden ones.

    `began_ns` is wall time from before its start: what changed since is its own work.
    """

    spec: Spec
    began_ns: int

    def open(self, path: str, what: str) -> int | None:
        """A descriptor of a regular file (absolute, or relative to the project); None when there is none.

        Raises OutputError for what the attempt may not reach, for a link, a pipe, a device.
        """
        project = os.path.normpath(self.spec.project)
        full = os.path.normpath(os.path.join(project, path))
        why = self._refusal(full)
        if why:
            raise OutputError(f"{what} can't be read: {why}")
        inside = full.startswith(project + "/")
        base = project if inside else "/"
        fd = open_file(base, full[len(project) + 1 :] if inside else full.lstrip("/"), what)
        if fd is None:
            return None
        if self._is_borrowed(fd):
            os.close(fd)
            raise OutputError(f"{what} can't be read: it is a hard link to a file of another user")
        if self._is_key(full) and os.fstat(fd).st_ctime_ns < self.began_ns - _CLOCK_NS:
            os.close(fd)
            raise OutputError(f"{what} can't be read: it is taken for a file with keys, which the node did not see")
        return fd

    def _is_key(self, full: str) -> bool:
        """Whether a path is directly inside of a grant and named like keys, which are covered there."""
        if self.spec.read is None:
            return False
        place = _absolute(self.spec, full)
        roots = [_absolute(self.spec, text) for text in (*self.spec.read, *self.spec.write)]
        if any(root.parts == place.parts for root in roots):
            return False
        depths = [len(root.parts) for root in roots if matches(place, root)]
        return any(is_key(place.parts[depth]) for depth in depths if depth < len(place.parts))

    def _refusal(self, full: str) -> str:
        """Why the attempt itself could not read a path; "" when it could."""
        spec = self.spec
        if any(full == path or full.startswith(f"{path}/") for path in spec.hidden):
            return "it is hidden from the node"
        if spec.read is None:
            return ""
        place = _absolute(spec, full)
        roots = [_absolute(spec, text) for text in (*spec.read, *spec.write)]
        found = [root for root in roots if matches(place, root)]
        if not found:
            return "the node may not read it (permissions.paths)"
        outer = max(0, min(len(root.parts) for root in found) - 1)
        if any(_denied(spec, place, pattern, outer) for pattern in spec.deny):
            return "it is denied (permissions.paths.deny)"
        return ""

    def _is_borrowed(self, fd: int) -> bool:
        """Whether a file has a second name that may be one which the command could link but not read."""
        found = os.fstat(fd)
        if found.st_nlink <= 1:
            return False
        return found.st_uid != os.geteuid() or (self.spec.level == "container" and found.st_uid == 0)


def _absolute(spec: Spec, text: str) -> Root:
    """A root as a place from `/` on."""
    root = root_of(text)
    above = os.path.expanduser("~") if root.anchor == "~" else "/" if root.anchor else spec.project
    return root_of(os.path.normpath(os.path.join(above, *[".."] * root.up, *root.parts)))


def _denied(spec: Spec, place: Root, pattern: str, outer: int) -> bool:
    """Whether a pattern of `deny` means a path; one that is a name means the parts from number `outer` on."""
    denied = denied_of(pattern)
    if isinstance(denied, str):
        return any(fnmatchcase(part, denied) for part in place.parts[outer:])
    return matches(place, _absolute(spec, pattern))

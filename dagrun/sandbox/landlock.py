"""Confinement without namespaces: Landlock for files, TCP, signals; seccomp for the rest; one throw-away thread.

A thread gives up its capabilities, takes on the rules and the filters, and spawns: the command
inherits them all, dagrun keeps its rights. Works where bubblewrap can't, as in a default container.
Holds less than namespaces do, and says so in `proved`: names, sizes and modes of files can be seen and
changed, and processes seen. What it can't hold in one attempt (a write grant with something protected
in it) is Refused. Invariant: nothing is ever started from a thread that took on less than all of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import landlock_kernel as kernel
from dagrun.sandbox import landlock_mark as marks
from dagrun.sandbox import seccomp
from dagrun.sandbox.base import Child, Exit, SpawnBusy
from dagrun.sandbox.grants import Grants, open_grants
from dagrun.sandbox.grants_open import below
from dagrun.sandbox.landlock_rules import Holes, Rules, system_roots, terminals_and_memory
from dagrun.sandbox.wall import Aftermath, Guarantee, Launch, Refused, Spec

T = TypeVar("T")
_SHORT = frozenset({11, 12, 23, 24})  # EAGAIN, ENOMEM, ENFILE, EMFILE
_FOLDERS = (("HOME", ".home"), ("TMPDIR", ".tmp"))


@dataclass(slots=True)
class _Held:
    """What one attempt has: its rules until it is spawned, its grants and private folder until it has ended."""

    grants: Grants
    attempt_id: str
    network: bool
    mark: int = field(default_factory=marks.new_mark)
    ruleset: kernel.Ruleset | None = None
    folder: str = ""  # where its HOME and TMPDIR are
    borrowed: bool = False  # `folder` is the system's, not its exchange folder
    listed: tuple[str, ...] = ()

    def close(self) -> None:
        """Give everything back. The exchange folder goes with what is in it, by who made it."""
        self.spawned()
        self.grants.close()
        if self.borrowed:
            import shutil

            shutil.rmtree(self.folder, ignore_errors=True)

    def spawned(self) -> None:
        """It has its rules: they are of no more use here."""
        if self.ruleset is not None:
            self.ruleset.close()
            self.ruleset = None
        self.grants.let_go()


class Landlock:
    """A Wall (wall.py). `exempt` is there for its likes: it starts no helpers."""

    name = "landlock"

    def __init__(self, exempt: Callable[[int], None] = lambda _: None) -> None:
        del exempt
        self._proved: Mapping[Guarantee, str] | None = None
        self._cores = os.sched_getaffinity(0)

    def proved(self) -> Mapping[Guarantee, str]:
        """Each guarantee → "" when it was tried here and held, else why not."""
        if self._proved is None:
            from dagrun.sandbox.landlock_canary import try_all

            self._proved = try_all(self)
        return self._proved

    # ------------------------------------------------------------ start

    def launch(self, spec: Spec) -> Launch:
        """How to start it. Raises Refused, SpawnBusy, EnvironmentFault."""
        if isinstance(spec.network, tuple) and spec.network:
            raise Refused(
                "Landlock can't hold a list of hosts: it knows ports, not hosts",
                "install bubblewrap, or grant `network: any` or `network: none`",
            )
        held = _Held(open_grants(spec), attempt_id=spec.attempt_id, network=spec.network not in ("none", ()))
        try:
            _refuse_holes(held.grants)
            argv = _reachable(spec, held.grants)
            env = {**spec.env, **_private_folders(spec, held)}
            held.ruleset = kernel.Ruleset(tcp=held.network)
            held.listed = _fill(held.ruleset, held, spec)
        except OSError as error:
            held.close()
            raise _fault(error) from error
        except BaseException:
            held.close()
            raise
        return Launch(
            argv=argv,
            env=env,
            cwd=spec.cwd,
            script=spec.script,
            around=lambda spawn: self.run_restricted(held, spawn),
            backend=self.name,
            token=held,
        )

    def run_restricted(self, held: _Held, action: Callable[[], T]) -> T:
        """The result of `action`, run by a thread that gave up what `held` says; what it starts is marked."""
        assert held.ruleset is not None
        # The command may not take back the processors that a ceiling took from it a moment ago.
        affinity = os.sched_getaffinity(0) == self._cores
        filters = (seccomp.filter_bytes(held.network, ipc=False, affinity=affinity), marks.others_filter())
        with marks.marked(held.mark):
            return _in_thread(held.ruleset, filters, action)

    def started(self, launch: Launch, child: Child) -> None:
        """It was spawned: its rules are its own now."""
        _held(launch).spawned()

    def discard(self, launch: Launch) -> None:
        """It was not spawned: give everything back."""
        _held(launch).close()

    # ------------------------------------------------------------ end

    def terminate(self, launch: Launch, child: Child) -> int:
        """-1: as for a plain command."""
        return -1

    def kill(self, launch: Launch, child: Child) -> int:
        """-1: as for a plain command; what shook that off is found by its mark when the attempt ends."""
        return -1

    def ended(self, launch: Launch, exit_: Exit) -> Aftermath:
        """End what is left by its mark, and move aside what it must not have made."""
        held = _held(launch)
        everything = held.grants.everything
        left = marks.end_marked(held.mark)
        after = held.grants.aftermath(held.attempt_id)
        held.close()
        notes = list(after.notes)
        if left:
            notes.append(f"landlock: killed {left} of its processes that had shaken off the rest")
        if everything and held.listed and (exit_.code or exit_.signal):
            folders = ", ".join(held.listed)
            notes.append(f"landlock: nothing new can be made directly in {folders}: something in it is shut")
        return Aftermath(outcome=after.outcome, error=after.error, notes=tuple(notes))

    def close(self) -> None:
        """Nothing is kept between attempts."""


def _held(launch: Launch) -> _Held:
    assert isinstance(launch.token, _Held)
    return launch.token


# ---------------------------------------------------------------- the thread


def _in_thread(ruleset: kernel.Ruleset, filters: tuple[bytes, ...], action: Callable[[], T]) -> T:
    """Run `action` in a thread that gives up everything first, and wait until the kernel has forgotten the thread.

    Only then are its children those of the main thread, where strays are looked for.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    tids: list[int] = []

    def run() -> None:
        tids.append(threading.get_native_id())
        try:
            kernel.give_up_privileges()
            kernel.give_up_capabilities()
            kernel.restrict_this_thread(ruleset)
            for program in filters:
                seccomp.install_on_this_thread(program)
        except (OSError, EnvironmentFault) as error:
            errors.append(error if isinstance(error, EnvironmentFault) else _fault(error))
            return
        try:
            results.append(action())
        except BaseException as error:  # noqa: BLE001 — raised again where it belongs
            errors.append(error)

    thread = threading.Thread(target=run, name="landlock")
    try:
        thread.start()
    except RuntimeError as error:
        raise SpawnBusy(11, f"can't start a thread: {error}") from None
    thread.join()
    while os.path.exists(f"/proc/self/task/{tids[0]}"):
        os.sched_yield()
    if errors:
        raise errors[0]
    return results[0]


def _fault(error: OSError) -> SpawnBusy | EnvironmentFault:
    what = error.strerror or str(error)
    if error.errno in _SHORT:
        return SpawnBusy(error.errno or 0, what)
    return EnvironmentFault(f"Landlock can't be used: {what}", hint="see what holds here: dagrun doctor")


# ---------------------------------------------------------------- rules


def _refuse_holes(grants: Grants) -> None:
    """A write grant is one rule: nothing in it can be taken out again."""
    for root in grants.roots:
        if not root.write:
            continue
        holes = [cover.path for cover in grants.covers] + [bound.path for bound in grants.protected]
        inside = next((path for path in holes if below(path, root.path)), "")
        if inside:
            raise Refused(
                f"permissions.paths.write: {root.path} holds {inside}, which Landlock can't keep out of a write grant",
                "grant the directories beside it, or install bubblewrap",
            )


def _fill(ruleset: kernel.Ruleset, held: _Held, spec: Spec) -> tuple[str, ...]:
    """Add the rules of an attempt; the folders that had to be taken apart. Raises Refused, OSError."""
    grants = held.grants
    closed = frozenset(cover.path for cover in grants.covers)
    fixed = frozenset(bound.path for bound in grants.protected)
    if grants.everything:
        rules = Rules(ruleset, Holes(closed | terminals_and_memory(), fixed | {"/proc", "/sys"}))
        rules.add_path("/", kernel.EVERYTHING)
    else:
        rules = Rules(ruleset, Holes(closed, fixed))
        rules.add_system(network=held.network)
        for root in grants.roots:
            rules.add(root.path, root.fd, kernel.WRITE if root.write else kernel.READ)
    rules.add_folder(held.folder)
    for fd in spec.outputs:
        rules.add_file(fd)
    return tuple(rules.listed)


def _private_folders(spec: Spec, held: _Held) -> dict[str, str]:
    """HOME and TMPDIR of one attempt: in its exchange folder, else in a new folder of the system's."""
    held.folder = spec.exchange
    if not held.folder:
        import tempfile

        held.folder, held.borrowed = tempfile.mkdtemp(prefix="dagrun-"), True
    folders = {variable: f"{held.folder}/{name}" for variable, name in _FOLDERS}
    for folder in folders.values():
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass  # the second try of one that the machine had no room for
    return folders


# ---------------------------------------------------------------- programs


def _reachable(spec: Spec, grants: Grants) -> tuple[str, ...]:
    """The argv, its program spelt out where the first of that name in PATH can't be run in here. Raises Refused."""
    outside = ""
    for path in _candidates(spec):
        missing = _missing(path, spec, grants)
        if not missing:
            return (path, *spec.argv[1:]) if outside else spec.argv
        outside = outside or missing
    if outside:
        raise Refused(
            f"{spec.argv[0]} is at {outside}, which is not granted",
            f"add {os.path.dirname(outside)} to permissions.paths.read",
        )
    return spec.argv  # nowhere at all: plain.py says so


def _candidates(spec: Spec) -> Iterator[str]:
    """Every file that the program's name may mean, in the order of PATH."""
    name = spec.argv[0] if spec.argv else ""
    if not name or "\0" in name:
        return
    folders = [""] if "/" in name else spec.env.get("PATH", os.defpath).split(":")
    for folder in folders:
        path = os.path.join(spec.cwd, folder, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            yield path


def _missing(path: str, spec: Spec, grants: Grants) -> str:
    """What of a program, its `#!` interpreter included, is not granted; "" if nothing."""
    for _ in range(4):  # as deep as the kernel follows interpreters
        real = os.path.realpath(path)
        if not _granted(real, spec, grants):
            return real
        try:
            with open(real, "rb") as file:
                head = file.readline(256)
        except OSError:
            return ""
        words = head[2:].split() if head.startswith(b"#!") else []
        if not words:
            return ""
        path = os.fsdecode(words[0])
    return ""


def _granted(real: str, spec: Spec, grants: Grants) -> bool:
    own = bool(spec.exchange) and below(real, os.path.realpath(spec.exchange))
    system = any(below(real, root) for root in system_roots()) and not grants.covered(real)
    return own or system or grants.holds(real)

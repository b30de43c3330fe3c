"""What holds the nodes of one run: from permissions and written limits to what a back end is asked for.

Imported only when some node is confined, has limits, secret files or a level of its own: a plain
flow never pays for it. What this machine can't hold is refused before anything starts; a node that
a patch brought and that can't be held is `denied` when its turn comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from time import time_ns
from typing import TypeAlias

from dagrun.core.ceiling import stand_ins
from dagrun.core.event import AttemptFinished, NodeSkipped, ReviewRequested
from dagrun.core.lattice import effective, for_agent
from dagrun.core.names import NodeId, Outcome
from dagrun.core.workflow import Docker, Node, Workflow, docker_of
from dagrun.engine.bench import Command, Workbench
from dagrun.engine.exchange import remove_exchange
from dagrun.engine.secrets import as_file
from dagrun.errors import EnvironmentFault, UsageError
from dagrun.sandbox.environment import allow_list_environment, base_environment, is_loader
from dagrun.sandbox.leftovers import SECRETS, SECRETS_FOLDER
from dagrun.sandbox.needs import Need, hint_of, is_guarantee, need_of, told
from dagrun.sandbox.wall import GUARANTEES, Bounds, Guarantee, Refused, Spec
from dagrun.sandbox.walls import Walls
from dagrun.store.disk import disk_fault, write_all

Prepared: TypeAlias = Command | AttemptFinished | NodeSkipped | ReviewRequested

_NOWHERE = Spec(attempt_id="", run_id="", run_dir="", node="", argv=(), env={}, cwd="", project="")


# ---------------------------------------------------------------- what the plan requires


def bounds_of(node: Node) -> Bounds:
    """The written ceilings of a node that a back end holds."""
    memory = node.resources.get("memory")
    return Bounds(
        memory_bytes=int(memory) if memory is not None else None,
        pids=node.pids or None,
        cpu=node.resources.get("cpu"),
        file_size_bytes=node.file_size or None,
    )


def ask(workflow: Workflow, node: Node) -> Spec:
    """What a node asks of a back end, without what only an attempt has."""
    held = effective(workflow.permissions, node.permissions, node.isolation)
    if node.agent is not None:
        held = for_agent(held)
    docker = docker_of(workflow, node) if held.isolation == "container" else Docker()
    confined = held.confined
    paths = held.paths if confined else None
    return replace(
        _NOWHERE,
        node=node.id,
        level=held.isolation,
        read=paths.read or () if paths is not None else None,
        write=paths.write or () if paths is not None else (),
        deny=paths.deny if paths is not None else (),
        network=held.network if confined else None,
        bounds=bounds_of(node),
        image=docker.image,
        pull=docker.pull,
        user=docker.user,
    )


def needs_of(workflow: Workflow, nodes: Iterable[Node] | None = None) -> list[Need]:
    """What `nodes` (by default all of the workflow), every template and every fallback require."""
    found: list[Need] = []
    for node in _all(workflow, workflow.nodes.values() if nodes is None else nodes):
        if node.review is None:
            need = need_of(ask(workflow, node))
            if need.required:
                found.append(need)
    return found


def _all(workflow: Workflow, nodes: Iterable[Node]) -> Iterator[Node]:
    """These nodes, the templates, and the fallbacks of both as they would run in their place."""
    for node in (*nodes, *workflow.templates.values()):
        yield node
        for own, after in stand_ins(workflow, node):
            if after != own or own.id not in workflow.templates:
                yield replace(after, id=f"{node.id}-fallback")
            node = after


def guarantees(text: str, where: str) -> frozenset[Guarantee]:
    """The guarantees that a comma-separated list names. Raises UsageError for a name that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if not is_guarantee(name)]
    if wrong:
        raise UsageError(f"{where}: there is no guarantee {wrong[0]!r}", hint=f"one of {', '.join(GUARANTEES)}")
    return frozenset(name for name in GUARANTEES if name in names)


def check_held(walls: Walls, needs: list[Need]) -> list[str]:
    """Refuse what this machine can't hold; what is gone without since the user accepted it, in words.

    Raises EnvironmentFault with all that is missing.
    """
    missing = walls.check(needs)
    if missing:
        text = "this machine can't hold what the plan requires, so nothing was started"
        raise EnvironmentFault("\n  ".join([text, *map(told, missing)]), hint=hint_of(missing))
    waived = walls.waived(needs)
    return [f"not held here, as --accept-missing says: {name} ({why})" for name, why in waived.items()]


def unheld(workflow: Workflow, nodes: list[Node]) -> list[str]:
    """What of these nodes this machine can't hold, in words; nothing where all can be."""
    from dagrun.engine.holding import ACCEPT_VARIABLE

    walls = Walls(guarantees(os.environ.get(ACCEPT_VARIABLE, ""), ACCEPT_VARIABLE))
    try:
        missing = walls.check(needs_of(workflow, nodes))
        return [" ".join(told(lack).split()) + ": it would be denied" for lack in missing]
    finally:
        walls.close()


# ---------------------------------------------------------------- an attempt


@dataclass(slots=True)
class Place:
    """Where an attempt works: its own exchange folder, and the environment that it starts from."""

    ask: Spec
    folder: str
    env: dict[str, str]
    began_ns: int


def guard_of(bench: Workbench, workflow: Workflow) -> Guard:
    """The guard of a run; made at the first node that needs it."""
    if bench.guard is None:
        bench.guard = Guard(bench, workflow, bench.back_ends())
    return bench.guard


class Guard:
    """Makes places and specs for the attempts of one run."""

    def __init__(self, bench: Workbench, workflow: Workflow, walls: Walls) -> None:
        self._bench = bench
        self._workflow = workflow
        self._walls = walls
        self._asks: dict[int, tuple[Node, Spec]] = {}  # by identity of the node, which is kept alive by it
        self._told = False  # the watchdog, of secret files that a kill of the engine would leave
        self._hidden = tuple(dict.fromkeys(hidden_of(bench, workflow)))
        self._protected = tuple(dict.fromkeys(protected_of(bench, workflow)))

    def place(self, node: Node, number: int) -> Place:
        """Make the folder of an attempt, with its secret files in it. Raises EnvironmentFault."""
        found = self._asks.get(id(node))
        if found is None:
            found = self._asks[id(node)] = (node, ask(self._workflow, node))
        wanted = found[1]
        folder = f"{self._bench.exchange}/{node.id}.{number}.d"
        try:
            remove_exchange(folder)
            os.mkdir(folder, 0o700)
            env = self._environment(node, wanted)
            if wanted.level == "context":
                _private_folders(folder, env)
            if node.secret_files and not self._told:
                self._told = True
                self._bench.used(SECRETS, self._bench.exchange)
            for name in node.secret_files:
                env[f"{name}_FILE"] = _write_secret(folder, name, as_file(self._bench.secrets, name))
        except OSError as error:
            raise disk_fault("can't write", folder, error) from error
        return Place(wanted, folder, env, time_ns())

    def _environment(self, node: Node, wanted: Spec) -> dict[str, str]:
        bench = self._bench
        named = {*node.secrets, *node.secret_files}
        hidden = [var for name, var in bench.secret_env.items() if name not in named]
        if wanted.level == "context" or _is_confined(wanted) or node.agent is not None:
            system = wanted.level != "container"
            env = allow_list_environment(bench.environ, pass_env=node.pass_env, secrets_named=hidden, system=system)
        else:
            env = base_environment(bench.environ, pass_env=node.pass_env, secrets_named=hidden)
        env["DAGRUN_RUN_ID"] = bench.run_id
        if wanted.level != "container":  # it means nothing there
            env["DAGRUN_RUN_DIR"] = bench.run_path
        for name in node.secrets:
            env[name] = bench.secrets[name]
        return env

    def finish(self, node: Node, number: int, place: Place, command: Prepared) -> Prepared:
        """The command with what holds it; the `denied` end of an attempt that can't be held."""
        if not isinstance(command, Command):  # it does not run
            remove_exchange(place.folder)
            return command
        command.folder = place.folder
        wanted = place.ask
        confined = _is_confined(wanted)
        if not confined and not wanted.bounds:
            return command
        try:
            if confined:
                _refuse_loader(node, command)
            if node.agent is not None and wanted.level != "container":
                from dagrun.agent.worker import python_roots

                wanted = replace(wanted, read=(*(wanted.read or ()), *python_roots()))
            spec = replace(
                wanted,
                attempt_id=command.env["DAGRUN_ATTEMPT_ID"],
                run_id=self._bench.run_id,
                run_dir=self._bench.run_path,
                argv=command.argv,
                env=command.env,
                secret_env=frozenset(node.secrets),
                cwd=command.cwd or (self._bench.project if confined else ""),
                project=self._bench.project,
                script=command.script,
                hidden=self._hidden,
                protected=self._protected,
                exchange=place.folder,
            )
            command.sandbox = self._walls.name(need_of(spec))
        except Refused as refused:
            remove_exchange(place.folder)
            return denied(self._bench, node.id, number, refused)
        command.spec = spec
        command.began_ns = place.began_ns
        return command


def denied(bench: Workbench, node: NodeId, number: int, why: Refused) -> AttemptFinished:
    """The end of an attempt that can't be held as it asks."""
    text = why.message + (f" ({why.hint})" if why.hint else "")
    return AttemptFinished(node=node, attempt=number, outcome=Outcome.DENIED, error=bench.mask.text(text))


def _is_confined(spec: Spec) -> bool:
    return spec.level == "container" or spec.read is not None or spec.network is not None


def _refuse_loader(node: Node, command: Command) -> None:
    bad = [name for name in node.env if is_loader(name)]
    if bad:
        raise Refused(f"`env` sets {', '.join(bad)}, which makes programs load other code: not in a sandbox")


def _private_folders(folder: str, env: dict[str, str]) -> None:
    for variable, name in (("HOME", "home"), ("TMPDIR", "tmp")):
        env[variable] = f"{folder}/{name}"
        os.mkdir(env[variable], 0o700)


def _write_secret(folder: str, name: str, value: bytes) -> str:
    """Write a secret as a file that only its reader may read; its path."""
    parent = f"{folder}/{SECRETS_FOLDER}"
    os.makedirs(parent, mode=0o700, exist_ok=True)
    path = f"{parent}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    try:
        write_all(fd, value)
    finally:
        os.close(fd)
    return path


def hidden_of(bench: Workbench, workflow: Workflow) -> Iterator[str]:
    """What no sandbox shows: dagrun's own folders, other attempts, the sources of secrets."""
    from dagrun.flowfile.cache import folder as cache_folder

    yield os.path.join(bench.project, ".dagrun")
    yield bench.run_path
    yield os.path.dirname(bench.exchange)
    if cache := cache_folder():
        yield os.path.dirname(cache)
    for secret in workflow.secrets.values():
        if secret.file:
            yield os.path.normpath(os.path.join(bench.project, os.path.expanduser(secret.file)))


def protected_of(bench: Workbench, workflow: Workflow) -> Iterator[str]:
    """The workflow file and the files that it names: read again tomorrow, so never for a node to write."""
    typed = workflow.file == "<stdin>"  # what it names is beside the project
    file = os.path.normpath(os.path.join(bench.project, "" if typed else workflow.file))
    if workflow.file and not typed:
        yield file
    folder = bench.project if typed else os.path.dirname(file)
    for name in (*workflow.files, *_patches(workflow)):
        yield os.path.normpath(os.path.join(folder, name))
    if any(node.agent is not None for node in (*workflow.nodes.values(), *workflow.templates.values())):
        for name in ("skills", ".agents/skills", ".claude/skills"):
            yield os.path.normpath(os.path.join(folder, name))


def _patches(workflow: Workflow) -> Iterator[str]:
    """The patches that a plan names, also one from before `Workflow.files`, or one that a patch brought."""
    for node in (*workflow.nodes.values(), *workflow.templates.values()):
        wanted = node.on_failure
        while wanted is not None:
            if wanted.replan:
                yield wanted.replan
            wanted = wanted.fallback_node.on_failure if wanted.fallback_node is not None else None

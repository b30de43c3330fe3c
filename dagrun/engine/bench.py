"""The workbench of a run: what all its attempts share, and what one is spawned with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dagrun.core.mask import Masker
from dagrun.core.names import Json, NodeId, Status
from dagrun.core.state import RunState
from dagrun.core.workflow import Node
from dagrun.engine.secrets import masker
from dagrun.sandbox.environment import base_environment
from dagrun.sandbox.procs import hide_memory
from dagrun.store.context import ContextStore

if TYPE_CHECKING:
    from dagrun.core.permissions import Permissions
    from dagrun.engine.briefing import Begin
    from dagrun.engine.confine import Guard
    from dagrun.engine.providers import Kit
    from dagrun.engine.replaying import Replayer
    from dagrun.sandbox.wall import Guarantee, Spec
    from dagrun.sandbox.walls import Walls


@dataclass(slots=True)
class Command:
    """What is to be spawned for one attempt.

    `stem` begins the paths of its files in the exchange. `spec` is what it asks of a back end (None:
    a plain command), `sandbox` the name of that back end, `folder` what is removed when it is over.
    `began_ns` is wall time. `agent` makes it the tool worker of an agent that begins so.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str = ""
    script: str = ""
    inputs_digest: str = ""
    stem: str = ""
    spec: Spec | None = None
    sandbox: str = ""
    folder: str = ""
    began_ns: int = 0
    agent: Begin | None = None

    @property
    def output_path(self) -> str:
        """What $DAGRUN_OUTPUT names."""
        return f"{self.stem}out"

    @property
    def patch_path(self) -> str:
        """What $DAGRUN_PATCH names."""
        return f"{self.stem}patch"


def _unused(_kind: str, _run_dir: str) -> None:
    """Nobody cleans up after a kill."""


@dataclass(slots=True)
class Workbench:
    """What all attempts of a run share: secrets, environment, the folder for exchange, the store.

    `exchange` is a folder outside `.dagrun/`, private to this user. `ceiling` is what the workflow
    permits all its nodes, `accepted` what its user does without. `kit` is what its agents share (`agents`
    makes it). `exempt` keeps helpers out of sweeps, `used` hears what a kill of this process would leave
    (EngineSide.tell_sweep).
    """

    run_id: str
    run_path: str
    key: str  # distinguishes this run from all others on this machine
    project: str
    params: Mapping[str, Json]
    workflow: str
    secrets: Mapping[str, str]
    secret_env: Mapping[str, str]  # secret name -> variable it comes from, where it is one
    context: ContextStore
    exchange: str
    environ: Mapping[str, str]
    ceiling: Permissions | None = None
    accepted: frozenset[Guarantee] = frozenset()
    walls: Walls | None = None
    exempt: Callable[[int], None] | None = None
    used: Callable[[str, str], None] = _unused
    guard: Guard | None = None
    kit: Kit | None = None
    make_kit: Callable[[], Kit] | None = None
    replay: Replayer | None = None
    mask: Masker = field(init=False)
    _bases: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.mask = masker(self.secrets)
        self._bases = {}

    def base(self, node: Node) -> dict[str, str]:
        """The environment that a node starts from, before its own `env`."""
        key = (node.pass_env, node.secrets)
        found = self._bases.get(key)
        if found is None:
            hidden = [var for name, var in self.secret_env.items() if name not in node.secrets]
            found = base_environment(self.environ, pass_env=node.pass_env, secrets_named=hidden)
            found["DAGRUN_RUN_ID"] = self.run_id
            found["DAGRUN_RUN_DIR"] = self.run_path
            for name in node.secrets:
                found[name] = self.secrets[name]
            self._bases[key] = found
        return found

    def agents(self) -> Kit:
        """What the agents share; made at the first one. Raises EnvironmentFault and InputError."""
        if self.kit is None:
            assert self.make_kit is not None
            self.kit = self.make_kit()
            self.mask.add(self.kit.secret)
        return self.kit

    @property
    def told_id(self) -> str:
        """The run as nodes are told: in a replay the recorded one."""
        return self.run_id if self.replay is None else self.replay.run_id

    @property
    def told_dir(self) -> str:
        """The project as nodes are told: in a replay that runs nothing the recorded one."""
        return self.project if self.replay is None or self.replay.run_tools else self.replay.project

    def _used(self, kind: str) -> None:
        self.used(kind, self.run_path)

    def back_ends(self) -> Walls:
        """The back ends of this engine; made at the first need."""
        if self.walls is None:
            from dagrun.sandbox.walls import Walls

            self.walls = Walls(self.accepted)
            hide_memory()
        self.walls.run_id = self.run_id
        if self.exempt is not None:
            self.walls.exempt_by(self.exempt)
        self.walls.used = self._used
        return self.walls


_CEILINGS = frozenset({"memory", "cpu"})


def is_guarded(ceiling: Permissions | None, node: Node) -> bool:
    """Whether an attempt of `node` is anything but a plain command; cheap, as all are asked.

    `ceiling` are the permissions of the workflow.
    """
    return (
        ceiling is not None
        or node.agent is not None
        or node.permissions is not None
        or node.isolation != "process"
        or node.secret_files != ()
        or node.pids != 0
        or node.file_size != 0
        or (bool(node.resources) and not node.resources.keys().isdisjoint(_CEILINGS))
    )


def run_context(bench: Workbench) -> dict[str, Json]:
    """What expressions read as `run`."""
    return {"id": bench.told_id, "workflow": bench.workflow, "dir": bench.told_dir}


_GIVING = frozenset({Status.COMPLETED, Status.SKIPPED})  # a human who skips a node may give its outputs


def node_values(bench: Workbench, state: RunState, name: NodeId) -> dict[str, Json]:
    """What a node gives to those that declared it: its outputs by name, and `status`."""
    i = state.plan.index[name]
    refs = state.outputs.get(i, {}) if state.node_status[i] in _GIVING else {}
    values: dict[str, Json] = {}
    for key, ref in refs.items():
        assert isinstance(ref, dict)
        values[key] = bench.context.get(ref)
    values["status"] = state.node_status[i].value
    return values

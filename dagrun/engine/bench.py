"""The workbench of a run: what all its attempts share, and what one is spawned with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dagrun.core.mask import Masker
from dagrun.core.names import Json, NodeId, Status
from dagrun.core.state import RunState
from dagrun.core.workflow import Node
from dagrun.engine.secrets import masker
from dagrun.sandbox.environment import base_environment
from dagrun.store.context import ContextStore


@dataclass(slots=True)
class Command:
    """What is to be spawned for one attempt."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str = ""
    script: str = ""
    inputs_digest: str = ""
    output_path: str = ""


@dataclass(slots=True)
class Workbench:
    """What all attempts of a run share: secrets, environment, the folder for exchange, the store.

    `exchange` is a folder outside `.dagrun/`, private to this user.
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


def run_context(bench: Workbench) -> dict[str, Json]:
    """What expressions read as `run`."""
    return {"id": bench.run_id, "workflow": bench.workflow, "dir": bench.project}


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

"""What the agents of a run can cost at most, for the limits on patches that no human made.

The same bound as that of `dagrun plan`. Only called where a patch touches an agent: what it imports and reads
is nothing that a plain flow has a use for.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from dagrun.core.agents import has_agents
from dagrun.core.patchlimits import Cost
from dagrun.core.workflow import Workflow
from dagrun.engine.bench import Workbench
from dagrun.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from dagrun.agent.prices import PriceTable


def worst_of(bench: Workbench) -> Cost:
    """The most that the agents of a workflow of this run can cost, in nano-dollars; None: nobody knows.

    A model that was asked already has the price that the run began with.
    """

    def cost(workflow: Workflow) -> int | None:
        if not has_agents(workflow):
            return 0
        from dagrun.agent.checks import Prices, is_fake, priced
        from dagrun.agent.estimate import worst_costs

        fake = is_fake(workflow)
        found = priced(workflow, fake=fake, table=table)  # read once for all that are compared
        frozen = bench.kit.prices if bench.kit is not None else {}
        known = Prices(prices={**found.prices, **frozen})
        return worst_costs(workflow, known, fake=fake, skill_bytes=lambda name: _size(bench, name)).at_most

    table = cache(_table)
    return cost


def _table() -> PriceTable:
    from dagrun.agent.prices import load_table

    return load_table()


def _size(bench: Workbench, name: str) -> int:
    """How much text a skill is; one that can't be read costs nothing, since its agent never starts."""
    from dagrun.agent.skills import find, search_path

    if bench.kit is None:
        return 0
    try:
        return len(find(name, search_path(bench.kit.base, bench.kit.home)).body.encode())
    except (InputError, NotFoundError):
        return 0

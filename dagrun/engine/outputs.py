"""The outputs of a whole run: what `outputs:` of the workflow names, once everything is settled."""

from __future__ import annotations

from dagrun.core import expression as ex
from dagrun.core.names import Json
from dagrun.core.plan import is_bare
from dagrun.core.state import RunState, standing_for
from dagrun.engine.bench import Workbench, node_values, run_context


def workflow_outputs(bench: Workbench, state: RunState) -> dict[str, Json]:
    """Name → reference of every workflow output; null for one whose node gave nothing.

    A node that a fallback has replaced gives what its stand-in gave.
    """
    wanted = state.plan.workflow.outputs
    if not wanted:
        return {}
    found: dict[str, Json] = {}
    for name, text in wanted.items():
        parsed = ex.parse(text) if is_bare(text) else ex.parse_template(text)
        nodes = {
            ref.path[1]: node_values(bench, state, standing_for(state, ref.path[1]))
            for ref in ex.references(parsed)
            if ref.path[0] == "nodes" and len(ref.path) > 1
        }
        scope = ex.Scope(params=bench.params, run=run_context(bench), nodes=nodes)
        try:
            value = ex.render(parsed, scope) if isinstance(parsed, ex.Template) else ex.evaluate(parsed, scope)
        except ex.EvaluationError:
            value = None
        found[name] = dict(bench.context.put(bench.mask.value(value)))
    return found

"""What the agents of a plan can cost at most, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagrun.core.names import Json
from dagrun.core.usage import usd
from dagrun.view.text import clean, folded, money, plural

if TYPE_CHECKING:
    from dagrun.agent.estimate import Total, Worst

_SHOWN = 20  # more agents are only counted, on a terminal
_HEAD = "cost    "
ASSUMES = "every attempt takes all its turns, with prompts and answers as large as they may get"


def cost_text(total: Total, *, width: int | None) -> str:
    """The lines that follow a plan: the run, then its agents, the dearest first; empty without agents."""
    if not total.agents:
        return ""
    lines = folded(_HEAD, _whole(total).split(" "), width)
    dear = sorted(total.agents, key=lambda w: (w.cost is not None, -(w.cost or 0)))
    shown = dear if width is None else dear[:_SHOWN]
    for worst in shown:
        lines += folded(f"{' ' * len(_HEAD)}{clean(worst.node)}  ", _part(worst, total).split(" "), width)
    if len(shown) < len(dear):
        lines.append(f"{' ' * len(_HEAD)}and {len(dear) - len(shown):,} more")
    return "\n".join(lines) + "\n"


def _whole(total: Total) -> str:
    if total.fake and not total.cost:
        return f"{money(0)} (fake)"
    fake = " (fake)" if total.fake else ""
    if total.cost is None:
        said = f"unknown: {total.unknown}" if total.unknown else "unknown: a model has no price"
        if total.hint:
            said += f" ({total.hint})"
        return f"at most {money(total.cap)} (cap), worst case {said}" if total.cap is not None else said
    if total.cap is not None and total.cap < total.cost:
        return f"at most {money(total.cap)} (cap), worst case {money(total.cost)}{fake}"
    if total.at_most is not None and total.at_most < total.cost:
        return f"at most {money(total.at_most)} (caps of nodes), worst case {money(total.cost)}{fake}"
    if total.cap is None:
        return f"worst case {money(total.cost)}{fake}; nothing caps it: add permissions: {{cost_budget: 1.00}}"
    return f"worst case {money(total.cost)}{fake}, within the cap of {money(total.cap)}"


def _part(worst: Worst, total: Total) -> str:
    said = "unknown" if worst.cost is None else money(worst.cost)
    own = worst.cap is not None and worst.cap != total.cap
    if own and worst.cap is not None and (worst.cost is None or worst.cap < worst.cost):
        said = f"at most {money(worst.cap)} (cap), worst case {said}"
    models = ", ".join(clean(model) for model in worst.models) or "no model"
    return f"{said}: {plural(worst.calls, 'call')} of {models}"


def cost_json(total: Total) -> dict[str, Json]:
    """`{worst_usd, cap_usd, at_most_usd, fake, unknown, assumes, agents: […]}`; null where it can't be told."""
    agents: list[Json] = [
        {
            "node": worst.node,
            "of": worst.of,
            "models": list(worst.models),
            "calls": worst.calls,
            "prompt_tokens": worst.prompt_tokens,
            "worst_usd": _usd(worst.cost),
            "cap_usd": _usd(worst.cap),
            "at_most_usd": _usd(worst.at_most),
        }
        for worst in total.agents
    ]
    return {
        "worst_usd": _usd(total.cost),
        "cap_usd": _usd(total.cap),
        "at_most_usd": _usd(total.at_most),
        "fake": total.fake,
        "unknown": total.unknown,
        "assumes": ASSUMES,
        "agents": agents,
    }


def _usd(nano: int | None) -> float | None:
    return None if nano is None else usd(nano)

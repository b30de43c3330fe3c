"""Workflows with agents on the command line: what is checked before anything starts, and what it could cost."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from .space import Space

FLOW = """
    version: 1
    name: talk
    permissions: {tools: [Read, Grep], models: [cheap], cost_budget: 0.50}
    models: {cheap: [openai/one], strong: [openai/two]}
    provider:
      rules: rules.yaml
      prices: {openai/one: {input: 1, output: 5}, openai/two: {input: 3, output: 15}}
    nodes:
      fetch: {run: "true", outputs: {items: {from: stdout}}}
      analyze:
        agent: {prompt: "Look at ${{ inputs.i }}", skills: [review], tools: [Read]}
        inputs: {i: nodes.fetch.items}
        permissions: {cost_budget: 0.20}
        on_failure: {replanner: {prompt: Repair it., tools: []}}
      short: {agent: "Say it shorter: ${{ inputs.t }}", inputs: {t: nodes.analyze.text}}
    """
SKILL = "---\nname: review\ndescription: How to review.\nallowed-tools: Read\n---\nLook twice.\n"


@pytest.fixture
def talk(space: Space) -> Space:
    space.file("talk.yaml", FLOW)
    space.file("rules.yaml", "rules: [{text: fine}]\n")
    space.file("skills/review/SKILL.md", SKILL)
    return space


def edited(talk: Space, old: str, new: str) -> None:
    """The flow with a text in place of another."""
    assert old in FLOW
    talk.file("talk.yaml", FLOW.replace(old, new))


def test_a_flow_that_is_right(talk: Space) -> None:
    done = talk.run("validate", "talk.yaml")
    assert (done.code, done.out, done.err) == (0, "talk.yaml: ok, 3 nodes, 3 waves\n", "")


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("skills: [review]", "skills: [revue]", "11:57", "did you mean `review`?"),
        ("tools: [Read]}\n", "tools: [Write]}\n", "11:74", "allow only `Grep`, `Read`"),
        ("{cheap: [openai/one]", "{cheap: [openai/one, b/none]", "4:30", "b/none"),
    ],
)
def test_what_is_wrong_is_found_before_anything_starts(talk: Space, old: str, new: str, place: str, said: str) -> None:
    if "b/none" in new and find_spec("litellm") is None:
        assert not os.environ.get("CI"), "litellm is not installed"
        pytest.skip("litellm is not installed: its prices can't be looked up")
    edited(talk, old, new)
    for words in (["validate"], ["plan"], ["execute"]):
        done = talk.run(*words, "talk.yaml")
        assert done.code == 3, words
        text = done.out + done.err
        assert f"talk.yaml:{place}" in text
        assert said in text
    assert not (talk.folder / ".dagrun" / "runs").exists() or not list((talk.folder / ".dagrun" / "runs").iterdir())


def test_a_skill_that_breaks_later_is_seen_although_the_flow_is_known(talk: Space) -> None:
    assert talk.run("validate", "talk.yaml").code == 0
    talk.file("skills/review/SKILL.md", "--- name: review ---")
    done = talk.run("validate", "talk.yaml", "--json")
    (problem,) = done.json["files"][0]["problems"]
    assert (done.code, problem["code"], problem["line"]) == (3, "bad-skill", 11)


def test_rules_that_break_later_are_seen_at_their_place(talk: Space) -> None:
    assert talk.run("validate", "talk.yaml").code == 0
    talk.file("rules.yaml", "rules:\n  - {txt: x, text: y}\n")
    done = talk.run("validate", "talk.yaml", "--json")
    (problem,) = done.json["files"][0]["problems"]
    assert (done.code, problem["file"], problem["line"], problem["column"]) == (3, "rules.yaml", 2, 6)


def test_warnings_are_printed_and_strict_takes_them_for_errors(talk: Space) -> None:
    talk.file(".claude/skills/review/SKILL.md", SKILL + "More.\n")
    done = talk.run("validate", "talk.yaml")
    assert (done.code, "warning[shadowed]" in done.out) == (0, True)
    assert talk.run("validate", "talk.yaml", "--strict").code == 3


# ---------------------------------------------------------------- plan


def test_the_worst_case_is_told_before_anything_is_spent(talk: Space) -> None:
    out = talk.run("plan", "talk.yaml").out
    lines = out[out.index("cost ") :].splitlines()
    assert lines[0].startswith("cost    at most $0.50 (cap), worst case $")
    shown = dict(line.strip().split("  ", 1) for line in lines[1:])
    assert set(shown) == {"analyze", "analyze-replanner", "short"}
    assert shown["analyze"].startswith("at most $0.20 (cap), worst case $")
    assert shown["short"].endswith("calls of openai/one")
    # the dearest first
    assert list(shown) == sorted(shown, key=lambda n: -float(shown[n].rpartition("$")[2].partition(":")[0]))


def test_the_worst_case_for_programs(talk: Space) -> None:
    cost = talk.run("plan", "talk.yaml", "--json").json["cost"]
    agents = {a["node"]: a for a in cost["agents"]}
    assert (cost["cap_usd"], cost["at_most_usd"], cost["fake"], cost["unknown"]) == (0.5, 0.5, False, "")
    assert cost["worst_usd"] == pytest.approx(sum(a["worst_usd"] for a in agents.values()))
    assert agents["analyze"]["at_most_usd"] == 0.2
    assert agents["analyze-replanner"]["of"] == "analyze"
    assert talk.run("plan", "hello.yaml", "--json").json["cost"] is None


def test_a_longer_skill_costs_more(talk: Space) -> None:
    def worst() -> float:
        agents = talk.run("plan", "talk.yaml", "--json").json["cost"]["agents"]
        return next(a["worst_usd"] for a in agents if a["node"] == "analyze")

    before = worst()
    talk.file("skills/review/SKILL.md", SKILL + "word " * 10_000)
    assert worst() > before


def test_nothing_caps_it(talk: Space) -> None:
    edited(talk, ", cost_budget: 0.50", "")
    assert "(caps of nodes), worst case $" in talk.run("plan", "talk.yaml").out
    talk.file("talk.yaml", FLOW.replace(", cost_budget: 0.50", "").replace("{cost_budget: 0.20}", "{}"))
    assert "; nothing caps it: add permissions: {cost_budget: 1.00}\n" in talk.run("plan", "talk.yaml").out


def test_the_fake_provider_is_free(talk: Space) -> None:
    prices = "      prices: {openai/one: {input: 1, output: 5}, openai/two: {input: 3, output: 15}}\n"
    talk.file("talk.yaml", FLOW.replace(prices, "").replace("rules: rules.yaml", "rules: rules.yaml\n      kind: fake"))
    assert "cost    $0.00 (fake)\n" in talk.run("plan", "talk.yaml").out


def test_what_agents_are_offered_and_may_ask(talk: Space) -> None:
    out = talk.run("plan", "talk.yaml", "--permissions").out
    assert "  offered      Read (node)\n" in out
    assert "  offered      Grep, Read (default, as far as it is allowed)\n" in out
    assert "  asks         openai/one (tier cheap)\n" in out
    assert "replanner asks" in out
    nodes = {n["id"]: n for n in talk.run("plan", "talk.yaml", "--permissions", "--json").json["nodes"]}
    assert nodes["analyze"]["agent"] == {"offered": ["Read"], "models": ["openai/one"], "skills": ["review"], "mcp": []}
    assert nodes["analyze"]["replanner"]["offered"] == []
    assert "agent" not in nodes["fetch"]


# ---------------------------------------------------------------- replan FLOW


def test_a_flow_with_agents_is_edited(talk: Space) -> None:
    words = ["--set", "short.agent.prompt=Shorter: ${{ inputs.t }}!", "--set", "analyze.agent.max_turns=20"]
    done = talk.run("replan", "talk.yaml", *words)
    assert done.code == 0, done.err
    assert 'agent: "Shorter: ${{ inputs.t }}!"' in done.out
    assert "max_turns: 20" in done.out
    assert "skills: [review]" in done.out

"""What only the machine can tell of a workflow's agents: skills, prices, rules, keys, each at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagrun.agent.checks import askers, priced, problems, route_of
from dagrun.agent.prices import PriceTable
from dagrun.core.workflow import Workflow
from dagrun.errors import EnvironmentFault, Problem
from dagrun.flowfile.load import read_workflow
from tests.agent.talking import need_litellm

TABLE = PriceTable(
    b"""{
 "claude-sonnet-4-5": {"litellm_provider": "anthropic", "mode": "chat", "input_cost_per_token": 3e-06,
   "output_cost_per_token": 1.5e-05, "max_input_tokens": 200000, "max_output_tokens": 64000},
 "claude-haiku-4-5": {"litellm_provider": "anthropic", "mode": "chat", "input_cost_per_token": 1e-06,
   "output_cost_per_token": 5e-06}}"""
)


def no_table() -> PriceTable:
    """A machine without litellm."""
    raise EnvironmentFault("there is no price table: litellm is not installed", hint="pip install 'dagrun[llm]'")


class Folder:
    """A workflow beside its skills and rules."""

    def __init__(self, path: Path) -> None:
        self.path = path / "project"
        self.home = path / "home"
        self.path.mkdir()
        self.home.mkdir()

    def file(self, name: str, text: str) -> None:
        """Write a file beside the workflow."""
        where = self.path / name
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)

    def skill(self, name: str, allowed: str = "", folder: str = "skills") -> None:
        """Write a skill, one that says which folder it is in."""
        tools = f"allowed-tools: {allowed}\n" if allowed else ""
        self.file(f"{folder}/{name}/SKILL.md", f"---\nname: {name}\ndescription: x\n{tools}---\n{folder}\n")

    def flow(self, text: str) -> Workflow:
        """Write and read the workflow."""
        self.file("flow.yaml", text)
        return read_workflow(str(self.path / "flow.yaml"), use_cache=False).workflow

    def check(self, text: str, provider: str = "", *, table: PriceTable | None = TABLE) -> list[Problem]:
        """What is wrong with a workflow here."""
        get = (lambda: table) if table is not None else no_table
        return problems(self.flow(text), str(self.path), str(self.home), provider=provider, table=get)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def told(found: list[Problem]) -> list[tuple[str, str, int, int]]:
    """Code, severity and place of problems."""
    return [(p.code, p.severity, p.line, p.column) for p in found]


# ---------------------------------------------------------------- prices

SONNET = "models: {m: [anthropic/claude-sonnet-4-5]}\nnodes: {a: {agent: x}}\n"


def test_a_model_with_a_price(folder: Folder) -> None:
    assert folder.check(SONNET) == []


def test_a_model_without_one_and_what_was_meant(folder: Folder) -> None:
    text = "models:\n  m: [anthropic/claude-haiku-4-5, anthropic/claude-sonnet-4.5]\n"
    (problem,) = folder.check(text + "nodes: {a: {agent: x}, b: {agent: y}}\n")
    assert told([problem]) == [("no-price", "error", 2, 35)]
    assert "did you mean anthropic/claude-sonnet-4-5?" in problem.hint
    assert problem.file.endswith("flow.yaml")
    assert problem.excerpt


def test_only_models_that_may_be_asked_need_a_price(folder: Folder) -> None:
    text = "models: {m: [anthropic/claude-haiku-4-5, ollama/where], spare: [ollama/such]}\n"
    (problem,) = folder.check(text + "nodes: {a: {agent: x}}\n")
    assert "ollama/where" in problem.message
    assert folder.check(text + "permissions: {models: ['anthropic/*']}\nnodes: {a: {agent: x}}\n") == []


def test_the_model_of_a_node_is_named_where_it_stands(folder: Folder) -> None:
    found = folder.check(
        "models: {m: anthropic/claude-haiku-4-5}\n"
        "nodes:\n"
        "  a: {agent: {prompt: x, model: ollama/where}}\n"
        "  b: {run: x, on_failure: {replanner: {model: ollama/repair}}}\n"
        "  c: {run: x, on_failure: {fallback: {agent: {prompt: x, model: ollama/fallback}}}}\n"
        "templates: {t: {agent: {prompt: x, model: ollama/template}}}\n"
    )
    assert told(found) == [
        ("no-price", "error", 3, 33),
        ("no-price", "error", 4, 47),
        ("no-price", "error", 5, 65),
        ("no-price", "error", 6, 43),
    ]


@pytest.mark.parametrize("price", ["free", "{free: true}", "{input: 1, output: 2.50}"])
def test_a_price_of_ones_own(folder: Folder, price: str) -> None:
    text = f"provider: {{prices: {{ollama/where: {price}}}}}\nmodels: {{m: ollama/where}}\nnodes: {{a: {{agent: x}}}}\n"
    assert folder.check(text, table=None) == []  # the table is not even looked for


def test_a_price_of_a_model_that_nobody_asks(folder: Folder) -> None:
    prices = "provider: {prices: {anthropic/claude-sonnet-45: {input: 1, output: 2}}}\n"
    (problem,) = folder.check(SONNET + prices)
    assert told([problem]) == [("unused-price", "warning", 3, 21)]
    assert problem.hint == "did you mean `anthropic/claude-sonnet-4-5`?"
    assert folder.check(SONNET + prices.replace("sonnet-45", "sonnet-4-5")) == []
    text = "provider: {prices: {a/b: {input: 1, output: 2}}}\nnodes: {a: {agent: {prompt: x, model: a/b}}}\n"
    assert [p.code for p in folder.check(text)] == ["unknown-vendor"], "a node may ask for a model without a tier"


def test_a_vendor_that_nobody_can_call(folder: Folder) -> None:
    need_litellm()
    models = "models: {m: [opnai/gpt-5, fake/model, ollama/qwen]}\nnodes: {a: {agent: x}}\n"
    prices = "prices: {opnai/gpt-5: free, fake/model: free, ollama/qwen: free}"
    found = folder.check(f"provider: {{{prices}}}\n{models}")
    assert told(found) == [("unknown-vendor", "error", 2, 14), ("unknown-vendor", "error", 2, 27)]
    assert found[1].message == "`fake/model`: there is no vendor `fake`"
    assert "did you mean `openai`?" in found[0].hint
    endpoint = "base_url: 'http://127.0.0.1:8000/v1'"  # it calls its models as it likes
    assert folder.check(f"provider: {{{endpoint}, {prices}}}\n{models}") == []


def test_without_litellm_a_price_can_t_be_checked(folder: Folder) -> None:
    (problem,) = folder.check(SONNET, table=None)
    assert told([problem]) == [("no-prices", "warning", 2, 13)]
    assert "litellm is not installed" in problem.message
    assert "pip install" in problem.hint


def test_what_the_fake_provider_answers_costs_nothing(folder: Folder) -> None:
    folder.file("r.yaml", "rules: [{text: x}]\n")
    text = "provider: {kind: fake, rules: r.yaml}\nmodels: {m: ollama/where}\nnodes: {a: {agent: x}}\n"
    assert folder.check(text, table=None) == []
    (problem,) = folder.check(text, "live")
    assert (problem.code, problem.line) == ("no-price", 2)
    known = priced(folder.flow(text), fake=True, table=no_table)
    assert (known.prices["ollama/where"].source, known.unknown) == ("free", "")


def test_another_provider_than_the_file_was_checked_for(folder: Folder) -> None:
    folder.file("r.yaml", "rules: [{text: x}]\n")
    text = "provider: {kind: fake, rules: r.yaml}\nnodes: {a: {agent: x}}\n"
    assert folder.check(text) == []
    (problem,) = folder.check(text, "live")
    assert told([problem]) == [("no-model", "error", 2, 13)]
    (problem,) = folder.check(SONNET, "fake")
    assert (problem.code, "rules: FILE" in problem.hint) == ("no-rules", True)


def test_a_plain_workflow_is_not_looked_at(folder: Folder) -> None:
    assert folder.check("nodes: {a: {run: x}}\n", table=None) == []
    assert list(askers(folder.flow("nodes: {a: {run: x, on_failure: review}}\n"))) == []


# ---------------------------------------------------------------- rules


def test_rules_have_their_own_places(folder: Folder) -> None:
    folder.file("sub/r.yaml", "rules:\n  - {node: a, txt: x}\n  - {text: fine}\n")
    (first, second) = folder.check("provider: {kind: fake, rules: sub/r.yaml}\nnodes: {a: {agent: x}}\n")
    assert {first.code, second.code} == {"bad-value", "unknown-key"}
    assert (second.line, second.hint) == (2, "did you mean `text`?")
    assert second.file == str(folder.path / "sub/r.yaml")


def test_rules_are_a_file_of_the_workflow(folder: Folder) -> None:
    folder.file("r.yaml", "rules: []\n")
    assert folder.flow("provider: {rules: r.yaml}\nnodes: {a: {run: x}}\n").files == ("r.yaml",)


# ---------------------------------------------------------------- skills


def skilled(names: str, more: str = "") -> str:
    """A workflow with an agent that names skills."""
    agent = f"{{prompt: x, skills: [{names}]{more}}}"
    return f"models: {{m: anthropic/claude-haiku-4-5}}\nnodes:\n  a: {{agent: {agent}}}\n"


def test_a_skill_that_is_there(folder: Folder) -> None:
    folder.skill("review", folder=".claude/skills")
    (folder.home / "skills/own").mkdir(parents=True)
    (folder.home / "skills/own/SKILL.md").write_text("---\nname: own\ndescription: x\n---\nx\n")
    assert folder.check(skilled("review, own")) == []


def test_an_unknown_skill(folder: Folder) -> None:
    folder.skill("review")
    (problem,) = folder.check(skilled("reviw"))
    assert told([problem]) == [("unknown-skill", "error", 3, 35)]
    assert problem.hint == "did you mean `review`?"


def test_an_unreadable_skill(folder: Folder) -> None:
    folder.file("skills/torn/SKILL.md", "--- name: torn description: lost its line ends ---\n")
    (problem,) = folder.check(skilled("torn, torn"))[:1]
    assert told([problem]) == [("bad-skill", "error", 3, 35)]
    assert "lost its line ends" in problem.message
    assert "skills/torn/SKILL.md:1" in problem.message


def test_a_skill_that_hides_another(folder: Folder) -> None:
    folder.skill("review")
    folder.skill("review", folder=".claude/skills")
    (problem,) = folder.check(skilled("review"))
    assert told([problem]) == [("shadowed", "warning", 3, 35)]
    copy = (folder.path / "skills/review/SKILL.md").read_text()
    folder.file(".claude/skills/review/SKILL.md", copy)  # the same for another client
    assert folder.check(skilled("review")) == []


@pytest.mark.parametrize(
    ("allowed", "tools", "severity"),
    [
        ("Read", ", tools: [Bash]", "error"),
        ("Bash(git:*)", ', tools: ["Bash(npm:*)"]', "error"),
        ("Bash", "", "warning"),  # nothing was offered by name
        ("Read, Grep", ", tools: [Read, Bash]", ""),
        ("Read", ", tools: []", ""),
        ("", ", tools: [Bash]", ""),
    ],
)
def test_skills_only_narrow(folder: Folder, allowed: str, tools: str, severity: str) -> None:
    folder.skill("review", allowed)
    found = folder.check(skilled("review", tools))
    assert told(found) == ([("no-tools", severity, 3, 35)] if severity else [])


def test_two_skills_that_leave_nothing(folder: Folder) -> None:
    folder.skill("one", "Read")
    folder.skill("two", "Grep")
    (problem,) = folder.check(skilled("one, two", ", tools: [Read, Grep]"))
    assert told([problem]) == [("no-tools", "error", 3, 40)]
    assert "`two` allows only `Grep`: nothing is left of `Read`" in problem.message


# ---------------------------------------------------------------- keys, places


def test_a_provider_s_key_is_nothing_for_tools(folder: Folder) -> None:
    text = (
        "models: {m: anthropic/claude-haiku-4-5}\n"
        "secrets: {K: {env: ANTHROPIC_API_KEY}, OPENAI_API_KEY: {file: k}, FINE: {env: GITHUB_TOKEN}}\n"
        "nodes: {a: {agent: x, secrets: [K, FINE, {OPENAI_API_KEY: file}]}, b: {run: x, secrets: [K]}}\n"
    )
    found = folder.check(text)
    assert told(found) == [("provider-key", "warning", 3, 23)] * 2
    assert ["`K`" in found[0].message, "`OPENAI_API_KEY`" in found[1].message] == [True, True]


def test_a_file_that_changed_meanwhile_has_no_places(folder: Folder) -> None:
    workflow = folder.flow(skilled("nope"))
    (folder.path / "flow.yaml").write_text("nodes: {}\n")
    (problem,) = problems(workflow, str(folder.path), str(folder.home), table=lambda: TABLE)
    assert (problem.code, problem.line, problem.file) == ("unknown-skill", 0, workflow.file)


def test_where_a_call_may_go(folder: Folder) -> None:
    workflow = folder.flow(
        "permissions: {models: [anthropic/claude-haiku-4-5]}\n"
        "models: {m: [anthropic/claude-sonnet-4-5, anthropic/claude-haiku-4-5]}\n"
        "nodes: {a: {agent: x}}\n"
    )
    (asker,) = askers(workflow)
    assert (asker.name, asker.path, asker.own) == ("a", ("nodes", "a", "agent"), True)
    assert route_of(workflow, asker.node, asker.agent).models == ("anthropic/claude-haiku-4-5",)

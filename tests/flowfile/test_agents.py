"""What a file may say of agents, models, providers and MCP servers, and what is wrong with the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given

from dagrun.core.agents import TEXT_OUTPUT, answer_schema, has_agents, held_of
from dagrun.core.operation import Modify, Retry
from dagrun.core.workflow import Agent, McpServer, Output, Provider, Workflow, workflow_from_json, workflow_to_json
from dagrun.errors import InputError, Problem
from dagrun.flowfile.document import dump_yaml, node_to_document, workflow_to_document
from dagrun.flowfile.load import Loaded, read_workflow_text
from dagrun.flowfile.patchfile import patch_from_document, read_patch
from dagrun.flowfile.schema import json_schema

from . import making


def load(text: str, base: str = ".") -> Loaded:
    """A text, checked."""
    return read_workflow_text(text.encode(), "flow.yaml", base, use_cache=False)


def errors(text: str) -> list[Problem]:
    """What is wrong with a text."""
    with pytest.raises(InputError) as caught:
        load(text)
    return list(caught.value.problems)


def one(text: str) -> Problem:
    """The only thing that is wrong with a text."""
    (problem,) = errors(text)
    return problem


HEAD = "models: {cheap: anthropic/claude-haiku-4-5, strong: [anthropic/claude-sonnet-4-5, openai/gpt-5]}\n"


def flow(nodes: str, top: str = "") -> str:
    """A workflow with models, of these nodes."""
    return f"{HEAD}{top}nodes:\n" + "".join(f"  {line}\n" for line in nodes.splitlines())


EVERYTHING = """\
params: {topic: {default: graphs}}
permissions: {tools: [Read, Write, "Bash(git:*)", mcp__files__list], models: [cheap, strong], cost_budget: 1.00}
models:
  cheap: anthropic/claude-haiku-4-5
  strong: [anthropic/claude-sonnet-4-5, anthropic/claude-sonnet-4-5, openai/gpt-5]
provider:
  rules: rules.yaml
  base_url: http://127.0.0.1:8080/v1
  prices: {openai/gpt-5: {input: 3.10, output: "15"}, local/x: free, local/y: {free: true}}
  budget: estimate
  classes: {cheap: 2.50, expensive: "30"}
secrets: {TOKEN: {env: T}}
mcp_servers:
  files:
    command: [files-server, --stdio]
    env: {A: 012}
    secrets: [TOKEN]
    digest: sha256:0AF0000000000000000000000000000000000000000000000000000000000000
  web: {url: "https://mcp.example.com/x", headers: {Authorization: TOKEN}}
nodes:
  analyze:
    agent:
      prompt: "Look at ${{ inputs.items }} for ${{ params.topic }}"
      system: You are careful.
      skills: [code-review]
      model: strong
      tools: [Read, "Bash(git log:*)", mcp__files__list]
      max_turns: 7
      max_tokens: 8192
      temperature: 0.5
      mcp: [files]
    inputs: {items: {value: [1, 2]}}
    output_schema: {type: object, properties: {summary: {type: string}}}
    permissions: {cost_budget: 0.30}
    retry: {max_attempts: 2}
    on_failure: {replanner: {model: cheap, prompt: "in ${{ params.topic }}"}}
  short:
    agent: "Shorter: ${{ inputs.s }}"
    inputs: {s: nodes.analyze.summary}
    isolation: none
    group: talk
  parts:
    agent: {prompt: x, tools: []}
    outputs: {title: {schema: {type: string}}, rest: {}}
  last: {run: ["true"], inputs: {a: nodes.short.text, b: nodes.parts.title, c: nodes.parts.rest}}
"""


@pytest.fixture
def everything(tmp_path: Path) -> Workflow:
    (tmp_path / "rules.yaml").write_text("rules: []\n")
    return load(EVERYTHING, str(tmp_path)).workflow


def test_all_keys_are_read(everything: Workflow) -> None:
    node = everything.nodes["analyze"]
    assert node.agent == Agent(
        prompt="Look at ${{ inputs.items }} for ${{ params.topic }}",
        system="You are careful.",
        skills=("code-review",),
        model="strong",
        tools=("Read", "Bash(git log:*)", "mcp__files__list"),
        max_turns=7,
        max_tokens=8192,
        temperature=0.5,
        mcp=("files",),
    )
    assert (node.kind, node.timeout_s, node.isolation) == ("agent", 300.0, "process")
    assert node.on_failure is not None
    assert node.on_failure.replanner == Agent(model="cheap", prompt="in ${{ params.topic }}")
    assert node.on_failure.steps == ("replanner",)
    assert everything.models == {
        "cheap": ("anthropic/claude-haiku-4-5",),
        "strong": ("anthropic/claude-sonnet-4-5", "openai/gpt-5"),
    }
    assert everything.provider == Provider(
        kind="live",
        rules="rules.yaml",
        rules_text="rules: []\n",
        base_url="http://127.0.0.1:8080/v1",
        # money is never a float: the text is kept as it is written
        prices={
            "openai/gpt-5": {"input": "3.10", "output": "15"},
            "local/x": {"free": True},
            "local/y": {"free": True},
        },
        budget="estimate",
        classes={"cheap": "2.50", "expensive": "30"},
    )
    assert everything.mcp_servers == {
        "files": McpServer(
            command=("files-server", "--stdio"), env={"A": "012"}, secrets=("TOKEN",), digest="0af" + 61 * "0"
        ),
        "web": McpServer(url="https://mcp.example.com/x", headers={"Authorization": "TOKEN"}),
    }
    assert everything.files == ("rules.yaml",)
    assert (everything.nodes["short"].isolation, everything.nodes["short"].group) == ("none", "talk")


def test_what_was_read_can_be_written_and_is_read_again(everything: Workflow, tmp_path: Path) -> None:
    for long in (False, True):
        text = dump_yaml(workflow_to_document(everything, long=long))
        assert replace(load(text, str(tmp_path)).workflow, digest=everything.digest) == everything
    assert "agent: \"Shorter: ${{ inputs.s }}\"" in dump_yaml(workflow_to_document(everything))


@given(making.workflows())
def test_the_json_form_of_any_workflow_is_read_again(workflow: Workflow) -> None:
    assert workflow_from_json(json.loads(json.dumps(workflow_to_json(workflow)))) == workflow


def test_the_json_form_has_all_of_everything(everything: Workflow) -> None:
    assert workflow_from_json(json.loads(json.dumps(workflow_to_json(everything)))) == everything


# ---------------------------------------------------------------- outputs


def test_an_agent_without_a_schema_has_its_last_words() -> None:
    got = load(flow("a: {agent: x}\nb: {run: [u], inputs: {t: nodes.a.text}}")).workflow.nodes["a"]
    assert got.outputs == TEXT_OUTPUT
    assert answer_schema(got) is None
    assert "outputs" not in node_to_document(got)


def test_declared_outputs_make_the_schema_of_the_answer(everything: Workflow) -> None:
    node = everything.nodes["parts"]
    assert node.outputs == {"title": Output(schema={"type": "string"}), "rest": Output()}
    assert answer_schema(node) == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "rest": {}},
        "required": ["title", "rest"],
    }


def test_declared_outputs_are_added_to_a_schema() -> None:
    text = flow(
        "a: {agent: x, outputs: {n: {schema: {type: integer}}, s: {}},\n"
        "    output_schema: {type: object, properties: {s: {type: string}}, additionalProperties: false}}"
    )
    node = load(text).workflow.nodes["a"]
    assert answer_schema(node) == {
        "type": "object",
        "properties": {"s": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }


def test_one_output_named_text_with_a_schema_is_no_plain_text() -> None:
    node = load(flow("a: {agent: x, outputs: {text: {schema: {type: string}}}}")).workflow.nodes["a"]
    assert answer_schema(node) == {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.mark.parametrize(
    ("outputs", "code", "said"),
    [
        ("{o: {from: stdout}}", "not-for-agent", "{schema: {type: string}}"),
        ("{o: {from: json, schema: {}}}", "not-for-agent", "properties of its answer"),
        ("{o: {from: file, file: x}}", "not-for-agent", "artifacts"),
        ("{o: {path: .a}}", "not-for-agent", "`path`"),
        ("{o: {schema: {type: strin}}}", "bad-schema", "strin"),
        ("{status: {}}", "reserved", "status"),
    ],
)
def test_outputs_that_no_agent_has(outputs: str, code: str, said: str) -> None:
    problem = errors(flow(f"a: {{agent: x, outputs: {outputs}}}"))[0]
    assert problem.code == code
    assert said in f"{problem.message} {problem.hint}"


def test_an_output_has_one_schema() -> None:
    text = flow("a: {agent: x, outputs: {o: {schema: {}}}, output_schema: {properties: {o: {}}}}")
    assert (one(text).code, one(text).line) == ("two-schemas", 3)


def test_an_unknown_output_of_an_agent() -> None:
    problem = one(flow("a: {agent: x}\nb: {run: [u], inputs: {t: nodes.a.txt}}"))
    assert (problem.code, problem.hint) == ("unknown-name", "did you mean `text`?")
    problem = one(flow("a: {agent: x}\nb: {run: [u], inputs: {t: nodes.a.summary}}"))
    assert "outputs: {summary: {schema:" in problem.hint


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize(
    ("node", "top", "level"),
    [
        ("{agent: x}", "", "context"),
        ("{agent: {prompt: x, tools: []}}", "", "context"),
        ("{agent: {prompt: x, tools: [Read, Grep]}}", "", "context"),
        ("{agent: {prompt: x, tools: [Edit]}}", "", "process"),
        ('{agent: {prompt: x, tools: ["Bash(git:*)"]}}', "", "process"),
        ("{agent: {prompt: x, mcp: [s]}}", "", "process"),
        ("{agent: x}", "permissions: {network: none}\n", "process"),
        ("{agent: x}", "defaults: {permissions: {paths: {read: [.]}}}\n", "process"),
        ("{agent: x, permissions: {paths: {read: [.]}}}", "", "process"),
        ("{agent: x, permissions: {isolation: process}}", "", "process"),
        ("{agent: x, isolation: none}", "", "none"),
        ("{agent: {prompt: x, tools: [Write]}, isolation: context}", "", "context"),
        ("{agent: x}", "defaults: {isolation: container, docker: alpine}\n", "container"),
        ("{agent: x}", "permissions: {isolation: container}\ndocker: alpine\n", "container"),
    ],
)
def test_where_an_agent_runs(node: str, top: str, level: str) -> None:
    text = flow(f"a: {node}", f"{top}mcp_servers: {{s: {{command: [s]}}}}\n")
    got = load(text).workflow
    assert held_of(got, got.nodes["a"]).isolation == level
    again = load(dump_yaml(workflow_to_document(got))).workflow
    assert again.nodes == got.nodes


def test_defaults_of_commands_are_none_of_agents() -> None:
    top = "defaults: {shell: bash, cwd: sub, timeout: 9s, env: {A: b}}\n"
    node = load(flow("a: {agent: x}", top)).workflow.nodes["a"]
    assert (node.shell, node.cwd, node.timeout_s, node.env) == ("sh", "", 9.0, {"A": "b"})


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("node", "code", "place", "said"),
    [
        ("{agent: {}}", "no-prompt", (3, 7), "prompt: …"),
        ("{agent: {prompt: ' '}}", "bad-value", (3, 23), "empty"),
        ("{agent: }", "bad-value", (3, 7), "{prompt: …}"),
        ("{agent: [x]}", "bad-shape", (3, 14), "{prompt: …"),
        ("{agent: {instructions: x}}", "unknown-key", (3, 15), "`prompt`"),
        ("{agent: {prompt: x, max_iterations: 3}}", "unknown-key", (3, 26), "`max_turns`"),
        ("{agent: {prompt: x, system_prompt: x}}", "unknown-key", (3, 26), "`system`"),
        ("{agent: {prompt: x, budget: 1}}", "unknown-key", (3, 26), "cost_budget"),
        ("{agent: {prompt: x, schema: {}}}", "unknown-key", (3, 26), "output_schema"),
        ("{llm: x}", "unknown-key", (3, 7), "`agent`"),
        ("{prompt: x}", "unknown-key", (3, 7), "agent: {prompt: …}"),
        ("{agent: x, run: y}", "two-kinds", (3, 7), "agent"),
        ("{agent: x, review: y}", "two-kinds", (3, 17), "review"),
        ("{agent: x, shell: bash}", "not-for-agent", (3, 17), "sh"),
        ("{agent: x, cwd: y}", "not-for-agent", (3, 17), "project directory"),
        ("{run: x, group: g}", "not-for-command", (3, 15), "conversation"),
        ("{review: x, group: g}", "not-for-review", (3, 18), "remove it"),
        ("{agent: x, isolation: context, permissions: {network: none}}", "not-held", (3, 28), "leave it out"),
        ("{agent: x, isolation: context, permissions: {isolation: process}}", "below-floor", (3, 28), "write process"),
        ("{agent: x, isolation: none, permissions: {network: none}}", "not-held", (3, 48), "isolation: process"),
        ("{agent: x, group: g}", "not-shared", (3, 17), "isolation: none"),
        ("{agent: {prompt: x, max_turns: 0}}", "bad-value", (3, 37), "at least 1"),
        ("{agent: {prompt: x, max_turns: many}}", "bad-value", (3, 37), "a whole number is wanted here"),
        ("{agent: {prompt: x, max_tokens: 1e9}}", "bad-value", (3, 38), "at most 1,000,000"),
        ("{agent: {prompt: x, temperature: 2.1}}", "bad-value", (3, 39), "at most 2"),
        ("{agent: {prompt: x, skills: [../x]}}", "bad-value", (3, 35), "write x"),
        ("{agent: {prompt: x, tools: [read]}}", "bad-value", (3, 34), "write Read"),
        ("{agent: {prompt: x, tools: [WebFetch]}}", "bad-value", (3, 34), "mcp__SERVER__TOOL"),
        ("{agent: {prompt: x, model: strog}}", "unknown-tier", (3, 33), "`strong`"),
        ("{agent: {prompt: x, model: gpt}}", "unknown-tier", (3, 33), "models: {gpt:"),
        ("{agent: {prompt: x, model: 'openai/*'}}", "bad-value", (3, 33), "one model"),
        ("{agent: {prompt: x, model: /x}}", "bad-value", (3, 33), "vendor"),
        ("{agent: {prompt: x, mcp: [s]}}", "unknown-server", (3, 32), "mcp_servers: {s:"),
        ("{agent: {prompt: x, tools: [mcp__s__t]}}", "unknown-server", (3, 34), "mcp: [s]"),
        ("{agent: {prompt: '${{ inputs.x }}'}}", "unknown-name", (3, 28), "no input"),
        ("{agent: {prompt: '${{ nodes.b.o }}'}}", "unknown-name", (3, 28), "inputs"),
        ("{agent: {prompt: '${{ env.HOME }}'}}", "unknown-name", (3, 28), "env: {HOME: …}"),
        ("{agent: {prompt: '${{ env.HOM }}'}, env: {HOME: /}}", "unknown-name", (3, 28), "`HOME`"),
        ("{agent: {prompt: x, system: '${{ params.p }}'}}", "expression-in-system", (3, 35), "prompt"),
        ("{agent: x, on_failure: {replanner: {prompt: '${{ inputs.i }}'}}}", "unknown-name", (3, 55), "dagrun adds"),
        ("{agent: x, on_failure: {replanner: {model: x}}}", "unknown-tier", (3, 49), "`x`"),
        ("{agent: x, on_failure: {replanner: {system: '${{ run.id }}'}}}", "expression-in-system", (3, 51), "system"),
    ],
)
def test_a_wrong_agent(node: str, code: str, place: tuple[int, int], said: str) -> None:
    problem = one(flow(f"a: {node}"))
    assert (problem.code, (problem.line, problem.column)) == (code, place)
    assert said in f"{problem.message} {problem.hint}"


def test_a_tier_that_is_permitted_and_nowhere_declared() -> None:
    top = "permissions: {models: ['*', strng]}\n"
    found = load(flow("a: {agent: x, permissions: {models: ['openai/*', strong, cheap]}}", top))
    (problem,) = [p for p in found.warnings if p.code == "unknown-tier"]
    assert (problem.severity, problem.line, problem.column) == ("warning", 2, 29)
    assert problem.hint == "did you mean `strong`?"


@pytest.mark.parametrize(
    ("top", "code", "said"),
    [
        ("models: {}", "bad-value", "main:"),
        ("models: {t: []}", "bad-value", "no models"),
        ("models: {t: gpt-5}", "bad-value", "VENDOR/gpt-5"),
        ("models: {t: ['openai/*']}", "bad-value", "VENDOR/MODEL"),
        ("models: {t.x: a/b}", "bad-id", "tier"),
        ("models: {t: {a: b}}", "bad-value", "a list of models"),
        ("modles: {t: a/b}", "unknown-key", "`models`"),
        ("provider: {kind: fake}", "no-rules", "rules: FILE"),
        ("provider: {kind: openai}", "bad-value", "`live` or `fake`"),
        ("provider: {rules: nope.yaml}", "unreadable-file", "no such file"),
        ("provider: {api_base: 'http://x'}", "unknown-key", "`base_url`"),
        ("provider: {base_url: localhost:8080}", "bad-value", "https://localhost:8080"),
        ("provider: {base_url: ftp://x}", "bad-value", "https://"),
        ("provider: {base_url: 'https://me:pw@x.com/v1'}", "bad-value", "never written in files"),
        ("provider: {base_url: 'https://x.com/v1?api_key=abc'}", "bad-value", "never written in files"),
        ("provider: {base_url: 'https://x.com/${{ params.p }}'}", "bad-value", "expression"),
        ("provider: {prices: {gpt-5: free}}", "bad-value", "VENDOR/gpt-5"),
        ("provider: {prices: {a/b: {input: 3}}}", "bad-value", "`output`"),
        ("provider: {prices: {a/b: {input: 3, output: 0}}}", "bad-value", "{free: true}"),
        ("provider: {prices: {a/b: {input: $3, output: 1}}}", "bad-value", "write 3"),
        ("provider: {prices: {a/b: {input: 3e-06, output: 1}}}", "bad-value", "per million"),
        ("provider: {prices: {a/b: {input: 3, output: 1, cache: 1}}}", "unknown-key", "`cached`"),
        ("provider: {prices: {a/b: {free: true, input: 1}}}", "bad-value", "no other price"),
        ("provider: {prices: {a/b: {free: false}}}", "bad-value", "no price"),
        ("provider: {classes: {dear: 3}}", "unknown-key", "`cheap` and `expensive`"),
        ("provider: {classes: {cheap: $3}}", "bad-value", "write 3"),
        ("provider: {classes: {cheap: 15}}", "bad-classes", "less than"),
        ("provider: {classes: {expensive: 5}}", "bad-classes", "less than"),
        ("provider: {budget: soft}", "bad-value", "`strict` or `estimate`"),
        ("mcp_servers: {s: {}}", "bad-server", "`command` and `url`"),
        ("mcp_servers: {s: {command: [a], url: 'https://x'}}", "bad-server", "keep one"),
        ("mcp_servers: {s: {command: a b}}", "bad-value", "[a, b]"),
        ("mcp_servers: {S__x: {command: [a]}}", "bad-id", "write s_x"),
        ("mcp_servers: {s: [x]}", "bad-shape", "command: [program"),
        ("mcp_servers: {s: {command: [a], secrets: [NOPE]}}", "unknown-secret", "secrets: {NOPE:"),
        ("mcp_servers: {s: {command: [a, sk-abcdefghijkl]}}", "bad-value", "looks like a key"),
        ("mcp_servers: {s: {command: [a], headers: {A: T}}}", "no-meaning", "`headers`"),
        ("mcp_servers: {s: {url: 'https://x', env: {A: b}}}", "no-meaning", "`env`"),
        ("mcp_servers: {s: {url: 'https://x', headers: {A: Bearer x}}}", "bad-value", "name of a secret"),
        ("mcp_servers: {s: {url: 'https://x', headers: {A: T}}}", "unknown-secret", "`T`"),
        ("mcp_servers: {s: {command: [a], digest: abc}}", "bad-value", "64"),
    ],
)
def test_wrong_models_providers_and_servers(top: str, code: str, said: str) -> None:
    problem = one(f"{top}\nnodes: {{a: {{run: x}}}}\n")
    assert (problem.code, problem.line) == (code, 1)
    assert said in f"{problem.message} {problem.hint}"
    assert "pw" not in problem.message + problem.hint  # what may be a password is not repeated


@pytest.mark.parametrize("host", ["http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]:8/v1", "https://x.org"])
def test_an_address_that_is_safe(host: str) -> None:
    assert load(f"provider: {{base_url: '{host}'}}\nnodes: {{a: {{run: x}}}}").warnings == ()


@pytest.mark.parametrize("top", ["provider: {base_url: 'http://x.org/v1'}", "mcp_servers: {s: {url: 'http://x.org'}}"])
def test_an_address_that_others_can_read(top: str) -> None:
    (warning,) = load(f"{top}\nnodes: {{a: {{run: x}}}}").warnings
    assert (warning.code, warning.severity, warning.hint) == ("open-address", "warning", "write https://")


def test_no_model_at_all() -> None:
    problem = one("nodes: {a: {agent: x}}")
    assert (problem.code, problem.line, problem.column) == ("no-model", 1, 13)
    assert "models: {main:" in problem.hint


def test_a_fake_provider_answers_without_models(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("rules: []\n")
    text = "provider: {kind: fake, rules: r.yaml}\nnodes: {a: {agent: x}}\n"
    assert load(text, str(tmp_path)).warnings == ()


def test_everything_wrong_is_said_at_once() -> None:
    text = flow(
        "a: {agent: {prompt: '${{ inputs.x }}', tools: [Read, Nope], model: strog, max_turn: 3}, shell: bash}\n"
        "b: {agent: {system: '${{ params.x }}'}, group: g, inputs: {t: nodes.a.text}}\n"
        "c: {agent: x}\n"
        "d: {run: x, inputs: {t: nodes.b.text, u: nodes.c.nope}}",
        "provider: {prices: {x: free}}\n",
    )
    assert [(p.code, p.line) for p in errors(text)] == [
        ("bad-value", 2),
        ("unknown-name", 4),
        ("bad-value", 4),
        ("unknown-tier", 4),
        ("unknown-key", 4),
        ("not-for-agent", 4),
        ("no-prompt", 5),
        ("expression-in-system", 5),
        ("not-shared", 5),
        ("unknown-name", 7),
    ]


@pytest.mark.parametrize(
    "broken",
    [
        "a: {agent: [x]}",
        "a: {agent: {prompt: x}, outputs: [o]}",
        "a: {agent: {promt: x}, output_schema: 3}",
        "a: {agent: x, outputs: {o: {schema: {type: nope}}}}",
    ],
)
def test_a_broken_agent_causes_no_errors_elsewhere(broken: str) -> None:
    found = errors(flow(f"{broken}\nb: {{run: x, inputs: {{i: nodes.a.o}}}}"))
    assert {p.line for p in found} == {3}


def test_broken_models_cause_no_errors_elsewhere() -> None:
    text = "models: {good: a/b, bad: c}\nnodes:\n  a: {agent: {prompt: x, model: bad}}\n"
    text += "  b: {agent: {prompt: x, model: other}}\n"
    assert [(p.line, p.code) for p in errors(text)] == [(1, "bad-value")]


# ---------------------------------------------------------------- permissions


@pytest.mark.parametrize(
    ("top", "node", "code", "said"),
    [
        ("{tools: [Read]}", "{agent: {prompt: x, tools: [Write]}}", "beyond-permissions", "at the top"),
        ("{tools: [Read]}", "{agent: {prompt: x, tools: [Read, Bash]}}", "beyond-permissions", "only `Read`"),
        ('{tools: ["Bash(git:*)"]}', "{agent: {prompt: x, tools: [Bash]}}", "beyond-permissions", "Bash(git:*)"),
        ("{}", "{agent: {prompt: x, tools: [Grep]}, permissions: {tools: [Read]}}", "beyond-permissions", "`Read`"),
        ("{tools: []}", "{agent: {prompt: x, tools: [Read]}}", "beyond-permissions", "none"),
        ("{models: [cheap]}", "{agent: {prompt: x, model: strong}}", "beyond-permissions", "only `cheap`"),
        ("{models: [strong]}", "{agent: x}", "beyond-permissions", "tier `cheap`"),
        ("{models: []}", "{agent: x}", "beyond-permissions", "none"),
        ("{models: ['openai/*']}", "{agent: {prompt: x, model: anthropic/y}}", "beyond-permissions", "openai/*"),
        ("{models: [cheap]}", "{run: x, on_failure: {replanner: {model: strong}}}", "beyond-permissions", "cheap"),
        ("{tools: [Read]}", "{run: x, on_failure: {replanner: {tools: [Write]}}}", "beyond-permissions", "Write"),
    ],
)
def test_more_than_is_permitted(top: str, node: str, code: str, said: str) -> None:
    problem = one(flow(f"a: {node}", f"permissions: {top}\n"))
    assert problem.code == code
    assert said in f"{problem.message} {problem.hint}"


@pytest.mark.parametrize(
    ("top", "node"),
    [
        ('{tools: ["Bash(git:*)", Read]}', '{agent: {prompt: x, tools: ["Bash(git log:*)"]}}'),
        ("{tools: [Write]}", "{agent: x}"),  # what is not offered by name is only what is left
        ("{models: ['openai/*']}", "{agent: {prompt: x, model: strong}}"),  # one of its models will do
        ("{models: [anthropic/claude-haiku-4-5]}", "{agent: x}"),
        ("{models: [strong]}", "{agent: {prompt: x, model: openai/gpt-5}}"),
        ("{tools: []}", "{agent: {prompt: x, tools: []}}"),
    ],
)
def test_what_is_permitted(top: str, node: str) -> None:
    assert load(flow(f"a: {node}", f"permissions: {top}\n")).warnings == ()


def test_a_server_needs_its_host_and_a_writer_a_place() -> None:
    servers = "mcp_servers: {s: {url: 'https://mcp.x.org/a'}, t: {command: [t]}}\n"
    problem = one(flow("a: {agent: {prompt: x, mcp: [s]}}", servers))
    assert (problem.code, 'network: ["mcp.x.org:443"]' in problem.hint) == ("beyond-permissions", True)
    right = "a: {agent: {prompt: x, mcp: [s]}, permissions: {network: ['*.x.org']}}"
    assert load(flow(right, servers)).warnings == ()
    (warning,) = load(flow("a: {agent: {prompt: x, tools: [Write]}}")).warnings
    assert (warning.code, warning.line) == ("writes-nowhere", 3)
    assert load(flow("a: {agent: {prompt: x, tools: [Write]}, permissions: {paths: {write: [out]}}}")).warnings == ()
    (warning,) = load(flow("a: {agent: {prompt: x, mcp: [t], tools: [Read]}}", servers)).warnings
    assert (warning.code, warning.hint) == ("no-tools", "add mcp__t__* to `tools`, or the tools that it needs")


# ---------------------------------------------------------------- patches


def patched(text: str, patch: str) -> Modify | Retry:
    """The one operation of a patch for a workflow, that changes a node."""
    workflow = load(text).workflow
    made = read_patch(patch.encode(), "patch.yaml", workflow)
    (found,) = made.operations
    # what is kept of it in the history says the same
    document = {"operations": list(made.written)}
    assert patch_from_document(json.loads(json.dumps(document)), workflow, "again").operations == made.operations
    assert isinstance(found, Modify | Retry)
    return found


AGENT = flow("a: {agent: {prompt: do it, model: cheap, max_turns: 5}}\nc: {run: x}")


def test_retry_changes_an_agent() -> None:
    text = "operations: [{retry: {id: a, set: {model: strong, max_tokens: 8192, prompt: 'Mind: yes', timeout: 10m}}}]"
    node = patched(AGENT, text).node
    assert node is not None
    assert node.agent == Agent(prompt="do it\n\nMind: yes", model="strong", max_turns=5, max_tokens=8192)
    assert node.timeout_s == 600


def test_modify_changes_one_key_of_an_agent() -> None:
    node = patched(AGENT, "operations: [{modify: {id: a, set: {agent: {max_turns: 20}}}}]").node
    assert node is not None
    assert node.agent == Agent(prompt="do it", model="cheap", max_turns=20)
    node = patched(AGENT, "operations: [{modify: {id: a, set: {agent: {tools: [Write]}}}}]").node
    assert node is not None
    assert node.isolation == "process"  # as if it had been written so


@pytest.mark.parametrize(
    ("change", "code", "column"),
    [
        ("retry: {id: c, set: {model: strong}}", "not-an-agent", 36),
        ("retry: {id: a, set: {model: '*'}}", "bad-value", 43),
        ("retry: {id: a, set: {max_turns: no}}", "bad-value", 47),
        ("retry: {id: a, set: {agent: {model: x}}}", "not-for-retry", 36),
        ("retry: {id: a, unset: [model]}", "not-for-retry", 38),
        ("modify: {id: a, set: {agent: {max_turns: 0}}}", "bad-value", 56),
        ("modify: {id: a, set: {agent: {turns: 1}}}", "unknown-key", 45),
        ("modify: {id: a, unset: [agent.prompt]}", "no-prompt", 15),
    ],
)
def test_a_change_that_no_agent_takes(change: str, code: str, column: int) -> None:
    with pytest.raises(InputError) as caught:
        read_patch(f"operations: [{{{change}}}]".encode(), "patch.yaml", load(AGENT).workflow)
    (problem,) = caught.value.problems
    assert (problem.code, problem.column) == (code, column)


def test_a_retry_merges_permissions() -> None:
    workflow = load(AGENT).workflow
    text = b"operations: [{retry: {id: a, set: {permissions: {cost_budget: 0.25}, model: strong}}}]"
    made = read_patch(text, "patch.yaml", workflow)
    (retry,) = made.operations
    assert isinstance(retry, Retry)
    assert retry.node is not None
    assert retry.node.permissions is not None
    assert retry.node.permissions.cost_budget == 250_000_000
    assert made.written == ({"retry": {"id": "a", "set": {"permissions": {"cost_budget": 0.25}, "model": "strong"}}},)


def test_a_patch_inserts_an_agent() -> None:
    workflow = load(AGENT).workflow
    text = b"operations: [{insert: {id: n, after: [a], node: {agent: {prompt: 'x ${{ inputs.t }}', model: strong},"
    text += b" inputs: {t: nodes.a.text}}}}]"
    made = read_patch(text, "patch.yaml", workflow)
    document = {"operations": list(made.written)}
    assert patch_from_document(json.loads(json.dumps(document)), workflow, "again").operations == made.operations


# ---------------------------------------------------------------- for editors


def test_the_schema_of_editors_knows_agents() -> None:
    from jsonschema import Draft7Validator

    validator = Draft7Validator(json_schema())
    good = yaml.safe_load(EVERYTHING.replace("012", "'012'"))
    assert list(validator.iter_errors(good)) == []
    for wrong in (
        "nodes: {a: {agent: {system: x}}}",
        "nodes: {a: {agent: {prompt: x, max_iterations: 1}}}",
        "nodes: {a: {agent: x, run: y}}",
        "models: {t: gpt}\nnodes: {a: {run: x}}",
        "provider: {prices: {a/b: {input: 1}}}\nnodes: {a: {run: x}}",
        "mcp_servers: {s: {cmd: [x]}}\nnodes: {a: {run: x}}",
    ):
        assert list(validator.iter_errors(yaml.safe_load(wrong))) != [], wrong


def test_who_has_agents() -> None:
    assert not has_agents(load("nodes: {a: {run: x, on_failure: review}}").workflow)
    assert has_agents(load(flow("a: {agent: x}")).workflow)
    assert has_agents(load(flow("a: {run: x, on_failure: {replanner: {}}}")).workflow)
    assert has_agents(load(flow("a: {run: x, on_failure: {fallback: {agent: x}}}")).workflow)
    assert has_agents(load(flow("a: {run: x}", "templates: {t: {agent: x}}\n")).workflow)

"""What a file may say of permissions, containers and a node's secrets, and what is wrong with the rest."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.permissions import Paths, Permissions
from dagrun.core.workflow import Docker, Node, workflow_from_json, workflow_to_json
from dagrun.errors import InputError, Problem, render
from dagrun.flowfile import fields
from dagrun.flowfile.document import dollars, dump_yaml, node_to_document
from dagrun.flowfile.load import Loaded, read_workflow_text
from dagrun.flowfile.permissionfields import money
from dagrun.flowfile.source import Plain, Value


def load(text: str) -> Loaded:
    """A text, checked."""
    return read_workflow_text(text.encode(), "flow.yaml", ".", use_cache=False)


def errors(text: str) -> list[Problem]:
    """What is wrong with a text."""
    with pytest.raises(InputError) as caught:
        load(text)
    return list(caught.value.problems)


def one(text: str) -> Problem:
    """The only thing that is wrong with a text."""
    (problem,) = errors(text)
    return problem


EVERYTHING = """\
permissions:
  tools: [Read, Grep, Glob, "Bash(git:*)", mcp__files__list]
  paths: {read: [., ~/data], write: [out], deny: [".env*", src/keys]}
  models: [cheap, anthropic/*]
  network: [Example.COM, "api.example.com:443", example.com]
  cost_budget: 1.00
  isolation: context
docker: python:3.12-slim
secrets: {TOKEN: {env: T}, KEY: {file: key}}
defaults:
  permissions: {network: none, paths: {deny: [tmp]}}
  docker: {pull: missing}
nodes:
  plain: {run: x}
  own:
    run: x
    isolation: container
    permissions: {network: [example.com], cost_budget: 0.30, paths: {read: [src], write: [], deny: ["*.pem"]}}
    docker: {image: "ghcr.io/org/tool:1.0", user: 1000:100}
    secrets: [TOKEN, {KEY: file}]
    resources: {cpu: 2, memory: 512M, pids: 64, file_size: 1G, output: 1M}
"""


def test_every_key() -> None:
    made = load(EVERYTHING).workflow
    assert made.permissions == Permissions(
        tools=("Read", "Grep", "Glob", "Bash(git:*)", "mcp__files__list"),
        paths=Paths(read=(".", "~/data"), write=("out",), deny=(".env*", "src/keys")),
        models=("cheap", "anthropic/*"),
        network=("example.com", "api.example.com:443"),
        cost_budget=10**9,
        isolation="context",
    )
    assert made.docker == Docker(image="python:3.12-slim")
    own = made.nodes["own"]
    assert own.permissions == Permissions(
        network=("example.com",), cost_budget=300_000_000, paths=Paths(read=("src",), write=(), deny=("tmp", "*.pem"))
    )
    assert own.docker == Docker(image="ghcr.io/org/tool:1.0", pull="missing", user="1000:100")
    assert (own.isolation, own.secrets, own.secret_files) == ("container", ("TOKEN",), ("KEY",))
    assert own.resources == {"cpu": 2, "memory": 512 << 20}
    assert (own.pids, own.file_size, own.output_bytes) == (64, 1 << 30, 1 << 20)


def test_defaults_are_what_a_node_has_unless_it_says_otherwise() -> None:
    made = load(EVERYTHING).workflow.nodes["plain"]
    assert made.permissions == Permissions(network="none", paths=Paths(deny=("tmp",)))
    assert made.docker == Docker(pull="missing")


def test_everything_survives_its_json_form() -> None:
    made = load(EVERYTHING).workflow
    assert workflow_from_json(json.loads(json.dumps(workflow_to_json(made)))) == made


def test_it_looks_as_one_would_write_it() -> None:
    node = load(EVERYTHING).workflow.nodes["own"]
    assert (
        dump_yaml(node_to_document(node))
        == """\
run: x
secrets: [TOKEN, {KEY: file}]
isolation: container
permissions:
  paths: {read: [src], write: [], deny: [tmp, "*.pem"]}
  network: [example.com]
  cost_budget: 0.3
docker: {image: "ghcr.io/org/tool:1.0", pull: missing, user: "1000:100"}
resources: {cpu: 2, memory: 512Mi, pids: 64, file_size: 1Gi, output: 1Mi}
"""
    )


def test_empty_scopes_say_nothing_but_empty_paths_do() -> None:
    made = load("permissions: {}\ndocker: {}\nnodes: {a: {run: x, permissions: {paths: {}}}}").workflow
    assert (made.permissions, made.docker) == (None, None)
    assert made.nodes["a"].permissions == Permissions(paths=Paths())


@pytest.mark.parametrize(
    ("written", "variables", "files"),
    [
        ("[A]", ("A",), ()),
        ("[{B: file}, A]", ("A",), ("B",)),
        ("[{A: variable, B: file}]", ("A",), ("B",)),
        ("{A: variable, B: file}", ("A",), ("B",)),
        ("[]", (), ()),
    ],
)
def test_secrets_in_all_their_forms(written: str, variables: tuple[str, ...], files: tuple[str, ...]) -> None:
    top = "secrets: {A: {env: A}, B: {env: B}}\n"
    node = load(f"{top}nodes: {{a: {{run: x, secrets: {written}}}}}").workflow.nodes["a"]
    assert (node.secrets, node.secret_files) == (variables, files)


def test_isolation_of_defaults_gives_way_to_a_floor() -> None:
    text = """\
permissions: {isolation: context}
defaults: {isolation: none}
nodes:
  a: {run: x}
  b: {run: x, permissions: {isolation: container}, docker: alpine}
  c: {review: sure?}
templates: {t: {run: x}}
"""
    made = load(text).workflow
    assert [n.isolation for n in made.nodes.values()] == ["context", "container", "process"]
    assert made.templates["t"].isolation == "context"


# ---------------------------------------------------------------- money


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0), ("1", 10**9), ("1.00", 10**9), ("0.30", 300_000_000), ("0.1", 100_000_000), ("0.000000001", 1),
        ("1e-9", 1), ("2.5E1", 25 * 10**9), ("123456789.123456789", 123_456_789_123_456_789), ("0.10000000000", 10**8),
        ("9223372036.854775807", 2**63 - 1),
    ],
)  # fmt: skip
def test_money_is_kept_to_the_last_digit(text: str, nano: int) -> None:
    assert money(Plain(text)) == money(text) == nano


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("$1.50", "write 1.50"), ("1,50", "write 1.50"), ("3 USD", "write 3"), ("-1", "zero or more"),
        (".nan", "like 1.50"), (".inf", "like 1.50"), ("-.inf", "zero or more"), ("inf", "like"), ("NaN", "like"),
        ("Infinity", "like"), ("true", "like"), ("1_000", "like"), ("0x10", "like"), ("1 000", "like"), (".5", "like"),
        ("٣", "like"), ("${{ params.x }}", "expression"), ("'", "like"), ("1" * 101, ""), ("9e999", ""),
        ("9223372036.854775808", ""), ("0.0000000001", "9 decimals"), ("1e-999", "9 decimals"),
        ("1." + "0" * 60 + "1", "9 decimals"),
    ],
)  # fmt: skip
def test_what_is_no_money(text: str, hint: str) -> None:
    for value in (Plain(text), text):
        with pytest.raises(fields.Wrong) as caught:
            money(value)
        assert hint in caught.value.defects[0].hint


@pytest.mark.parametrize("value", [[], {}, Plain(""), Plain("null"), Plain("~"), ""])
def test_nothing_is_no_money(value: Value) -> None:
    with pytest.raises(fields.Wrong):
        money(value)


@given(st.integers(0, 2**63 - 1))
def test_money_is_written_exactly(nano: int) -> None:
    written = dollars(nano)
    text = written if isinstance(written, str) else repr(written)
    assert Decimal(text).scaleb(9) == nano
    assert money(Plain(text)) == nano


# ---------------------------------------------------------------- what is wrong


def node(body: str) -> str:
    """A file with one node of these keys; the first of them is in column 22 of line 1."""
    return f"nodes: {{a: {{run: x, {body}}}}}\n"


def top(body: str) -> str:
    """A file with these lines above its nodes."""
    return f"{body}\nnodes: {{a: {{run: x}}}}\n"


@pytest.mark.parametrize(
    ("text", "code", "place", "said"),
    [
        # isolation
        (node("isolation: docker"), "bad-value", (1, 32), "`container`"),
        (node("isolation: sandbox"), "bad-value", (1, 32), "`process`"),
        (node("isolation: contaner"), "bad-value", (1, 32), "`container`"),
        (node("isolation: Process"), "bad-value", (1, 32), "`process`"),
        (node("isolation: off"), "bad-value", (1, 32), "`none`"),
        (node("isolation: "), "bad-value", (1, 21), "`none`"),
        (node("isolation: [process]"), "bad-value", (1, 32), "not a list"),
        (node("isolatoin: process"), "unknown-key", (1, 21), "`isolation`"),
        (node("sandbox: process"), "unknown-key", (1, 21), "`isolation`"),
        (top("permissions: {isolation: 3}"), "bad-value", (1, 26), "`container`"),
        # keys
        (top("permission: {network: none}"), "unknown-key", (1, 1), "`permissions`"),
        (top("permissions: [Read]"), "bad-shape", (1, 14), "paths: {read"),
        (top("permissions: none"), "bad-shape", (1, 14), "network: none"),
        (top("permissions: {allow: [Read]}"), "unknown-key", (1, 15), "`tools`"),
        (top("permissions: {allowed_tools: [Read]}"), "unknown-key", (1, 15), "`tools`"),
        (top("permissions: {tool: [Read]}"), "unknown-key", (1, 15), "`tools`"),
        (top("permissions: {budget: 1}"), "unknown-key", (1, 15), "`cost_budget`"),
        (top("permissions: {mounts: [a]}"), "unknown-key", (1, 15), "`paths`"),
        (top("permissions: {paths: {rw: [a]}}"), "unknown-key", (1, 23), "`write`"),
        (top("permissions: {paths: {exclude: [a]}}"), "unknown-key", (1, 23), "`deny`"),
        (top("permissions: {paths: [a]}"), "bad-shape", (1, 22), "{read: [.], write: [out]}"),
        (top("permissions: {paths: out}"), "bad-shape", (1, 22), "{read: [.], write: [out]}"),
        (top("permissions: {timeout: 3}"), "unknown-key", (1, 15), "a key of `limits`"),
        (top("network: none"), "unknown-key", (1, 1), "write permissions: {network: …}"),
        (top("image: alpine"), "unknown-key", (1, 1), "write docker: {image: …}"),
        (node("permission: {}"), "unknown-key", (1, 21), "`permissions`"),
        (node("image: alpine"), "unknown-key", (1, 21), "write docker: {image: …}"),
        (node("container: alpine"), "unknown-key", (1, 21), "`docker`"),
        (node("network: [a.com]"), "unknown-key", (1, 21), "write permissions: {network: …}"),
        (node("mounts: [a]"), "unknown-key", (1, 21), "write permissions: {paths: {read: […], write: […]}}"),
        (node("volumes: [a]"), "unknown-key", (1, 21), "write permissions: {paths: {read: […], write: […]}}"),
        (node("paths: {read: [.]}"), "unknown-key", (1, 21), "write permissions: {paths:"),
        (node("tools: [Read]"), "unknown-key", (1, 21), "write permissions: {tools: […]}"),
        (node("allowed_tools: [Read]"), "unknown-key", (1, 21), "write permissions: {tools: […]}"),
        (node("cost_budget: 1"), "unknown-key", (1, 21), "write permissions: {cost_budget: …}"),
        (node("memory: 1G"), "unknown-key", (1, 21), "write resources: {memory: …}"),
        (node("pids: 3"), "unknown-key", (1, 21), "write resources: {pids: …}"),
        (top("defaults: {image: alpine}"), "unknown-key", (1, 12), "write docker: {image: …}"),
        (top("defaults: {resources: {cpu: 1}}"), "not-yet", (1, 12), "`resources`"),
        # lists
        (top("permissions: {tools: Read}"), "bad-value", (1, 22), "write [Read]"),
        (top("permissions: {tools: [Reed]}"), "bad-value", (1, 23), "Read"),
        (top("permissions: {tools: [Read, 'Bash(rm; ls)']}"), "bad-value", (1, 29), "plain words"),
        (top("permissions: {tools: {Read: true}}"), "bad-value", (1, 22), "not a mapping"),
        (top("permissions: {models: cheap}"), "bad-value", (1, 23), "write [cheap]"),
        (top("permissions: {models: ['*-x']}"), "bad-value", (1, 24), "vendor/*"),
        (top("permissions: {paths: {read: .}}"), "bad-value", (1, 29), "write [.]"),
        (top("permissions: {paths: {read: [/]}}"), "bad-value", (1, 30), "whole machine"),
        (top("permissions: {paths: {read: [/proc/1]}}"), "bad-value", (1, 30), "/proc"),
        (top("permissions: {paths: {write: [.dagrun/runs]}}"), "bad-value", (1, 31), "never visible"),
        (top("permissions: {paths: {write: [.git/hooks]}}"), "bad-value", (1, 31), ".git/hooks"),
        (top("permissions: {paths: {read: ['a:b']}}"), "bad-value", (1, 30), "`:`"),
        (top("permissions: {paths: {read: ['a,b']}}"), "bad-value", (1, 30), "`,`"),
        (top("permissions: {paths: {read: [~]}}"), "empty-value", (1, 30), "nothing here"),
        (top("permissions: {paths: {read: ['~']}}"), "bad-value", (1, 30), "home"),
        (top("permissions: {paths: {read: ['']}}"), "bad-value", (1, 30), "empty"),
        (top("permissions: {paths: {read: [a/../../b]}}"), "bad-value", (1, 30), "`..`"),
        (top('permissions: {paths: {read: ["${{ params.x }}"]}}'), "bad-value", (1, 30), "expression"),
        (top('permissions: {paths: {read: ["a\\nb"]}}'), "bad-value", (1, 30), "newline"),
        (top('permissions: {paths: {deny: ["a\\e[31m"]}}'), "bad-value", (1, 30), "U+001B"),
        (top('permissions: {paths: {deny: ["a\\0"]}}'), "control-character", (1, 30), "NUL"),
        # network
        (top("permissions: {network: example.com}"), "bad-value", (1, 24), "write [example.com]"),
        (top("permissions: {network: Example.COM:443}"), "bad-value", (1, 24), "write [example.com:443]"),
        (top("permissions: {network: false}"), "bad-value", (1, 24), "write none"),
        (top("permissions: {network: true}"), "bad-value", (1, 24), "write any"),
        (top("permissions: {network: host}"), "bad-value", (1, 24), "write any"),
        (top("permissions: {network: None}"), "bad-value", (1, 24), "write none"),
        (top("permissions: {network: }"), "bad-value", (1, 15), "write none, any"),
        (top("permissions: {network: null}"), "bad-value", (1, 24), "write none, any"),
        (top("permissions: {network: {allow: [a]}}"), "bad-value", (1, 24), "write none, any"),
        (top("permissions: {network: [any]}"), "bad-value", (1, 25), "write network: any"),
        (top("permissions: {network: [none, a.com]}"), "bad-value", (1, 25), "write network: none"),
        (top("permissions: {network: ['*']}"), "bad-value", (1, 25), "any"),
        (top("permissions: {network: ['https://a.com/x']}"), "bad-value", (1, 25), "write a.com"),
        (top("permissions: {network: ['a.com:99999']}"), "bad-value", (1, 25), "port"),
        (top("permissions: {network: ['a b']}"), "bad-value", (1, 25), "no host"),
        (top("permissions: {network: ['-a.com']}"), "bad-value", (1, 25), "no host"),
        # money
        (top("permissions: {cost_budget: $1}"), "bad-value", (1, 28), "write 1"),
        (top("permissions: {cost_budget: -0.5}"), "bad-value", (1, 28), "zero or more"),
        (top("permissions: {cost_budget: .nan}"), "bad-value", (1, 28), "USD"),
        (top("permissions: {cost_budget: .inf}"), "bad-value", (1, 28), "USD"),
        (top("permissions: {cost_budget: }"), "empty-value", (1, 15), "nothing here"),
        (top("permissions: {cost_budget: 1e30}"), "huge-number", (1, 28), "too large"),
        # docker
        (node("isolation: container, docker: "), "bad-value", (1, 43), "{image:"),
        (node("isolation: container, docker: [alpine]"), "bad-shape", (1, 51), "{image:"),
        (node("isolation: container, docker: Alpine"), "bad-value", (1, 51), "small letters: alpine"),
        (node("isolation: container, docker: --privileged"), "bad-value", (1, 51), "no image"),
        (node("isolation: container, docker: '-v/:/x'"), "bad-value", (1, 51), "no image"),
        (node("isolation: container, docker: 'a b'"), "bad-value", (1, 51), "no image"),
        (node("isolation: container, docker: '${{ params.i }}'"), "bad-value", (1, 51), "expression"),
        (node('isolation: container, docker: "a\\e[31m"'), "bad-value", (1, 51), "no image"),
        (node("isolation: container, docker: {image: a, pull: always}"), "bad-value", (1, 68), "write missing"),
        (node("isolation: container, docker: {image: a, pull: nevr}"), "bad-value", (1, 68), "`never`"),
        (node("isolation: container, docker: {image: a, user: root}"), "bad-value", (1, 68), "1000:1000"),
        (node("isolation: container, docker: {image: a, user: 0}"), "bad-value", (1, 68), "never runs as root"),
        (node("isolation: container, docker: {image: a, user: '00:5'}"), "bad-value", (1, 68), "never runs as root"),
        (node("isolation: container, docker: {image: a, user: '5:00'}"), "bad-value", (1, 68), "group of root"),
        (node("isolation: container, docker: {image: a, user: -1}"), "bad-value", (1, 68), "no user"),
        (node("isolation: container, docker: {image: a, user: 4294967295}"), "bad-value", (1, 68), "highest"),
        (node("isolation: container, docker: {image: a, privileged: true}"), "unknown-key", (1, 62), "image, pull"),
        (node("isolation: container, docker: {image: a, pull_policy: never}"), "unknown-key", (1, 62), "`pull`"),
        (node("isolation: container, docker: {image: a, network: host}"), "unknown-key", (1, 62), "`permissions`"),
        # ceilings
        (node("resources: {pids: 0}"), "bad-value", (1, 39), "at least 1"),
        (node("resources: {pids: 1.5}"), "bad-value", (1, 39), "whole number"),
        (node("resources: {pids: 99999999}"), "bad-value", (1, 39), "too large"),
        (node("resources: {file_size: lots}"), "bad-value", (1, 44), "512M"),
        (node("resources: {cpu: 0}"), "bad-value", (1, 38), "0.5"),
        (node("resources: {memory: 0}"), "bad-value", (1, 41), "too small"),
        (node("resources: {memory: 512}"), "bad-value", (1, 41), "write 512M"),
        (node("resources: {memory: 900K}"), "bad-value", (1, 41), "so little"),
        (node("resources: {mem: 2}"), "unknown-resource", (1, 38), "did you mean `memory`?"),
        (node("resources: {gpu: 2}"), "unknown-resource", (1, 38), "limits: {resources: {gpu: 2}}"),
        (top("permissions: {network: nnone}"), "bad-value", (1, 24), "did you mean `none`?"),
        (top("permissions: {paths: {read: [~]}}"), "empty-value", (1, 30), "~/data"),
        (top("secrets: {A: {command: pass show}}"), "bad-value", (1, 24), "a list"),
        (top("secrets: {A: {comand: [a]}}"), "unknown-key", (1, 15), "`command`"),
        (top("limits: {resources: {pids: 5}}"), "bad-value", (1, 22), "at the node"),
        (top("limits: {resources: {file_size: 5}}"), "bad-value", (1, 22), "at the node"),
        # secrets
        (node("secrets: A"), "bad-value", (1, 30), "write [A]"),
        (node("secrets: [A, B b]"), "bad-value", (1, 34), "environment variable"),
        (node("secrets: [{A: env}]"), "bad-value", (1, 35), "{A: file}"),
        (node("secrets: {A: }"), "bad-value", (1, 31), "{A: file}"),
        (node("secrets: {A-b: file}"), "bad-value", (1, 31), "environment variable"),
        (node("secrets: [A, A]"), "named-twice", (1, 34), "named twice"),
        (node("secrets: [A, {A: file}]"), "named-twice", (1, 34), "variable or as a file"),
        (node("secrets: [[A]]"), "bad-value", (1, 31), "not a list"),
        ("nodes: {a: {review: hm, permissions: {network: none}}}\n", "not-for-review", (1, 25), "`permissions`"),
        ("nodes: {a: {review: hm, docker: alpine}}\n", "not-for-review", (1, 25), "`docker`"),
    ],
)  # fmt: skip
def test_one_mistake_gives_one_problem_at_its_place(text: str, code: str, place: tuple[int, int], said: str) -> None:
    problem = one(text)
    assert (problem.code, (problem.line, problem.column)) == (code, place)
    assert said in problem.message + problem.hint


PATHS = "paths: {read: [src], write: [out], deny: [keys]}"
RUN = f"permissions: {{{PATHS}, network: [a.com], cost_budget: 1, tools: [Read]}}\n"


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        (RUN + node("permissions: {paths: {write: [out/x, tmp]}}"), "beyond-permissions", (2, 58)),
        (RUN + node("permissions: {paths: {read: [doc]}}"), "beyond-permissions", (2, 50)),
        (RUN + node("permissions: {network: any}"), "beyond-permissions", (2, 44)),
        (RUN + node("permissions: {network: [b.com]}"), "beyond-permissions", (2, 45)),
        (RUN + node("permissions: {cost_budget: 1.000000001}"), "beyond-permissions", (2, 48)),
        (RUN + node("permissions: {tools: [Read, Bash]}"), "beyond-permissions", (2, 49)),
        ("permissions: {network: none}\n" + node("isolation: none"), "not-held", (2, 32)),
        (RUN + "defaults: {permissions: {network: any}}\n" + node("title: t"), "beyond-permissions", (2, 35)),
        (
            RUN + "defaults: {permissions: {network: any}}\nnodes: {a: {run: x}, b: {run: x}}",
            "beyond-permissions", (2, 35),
        ),
        (
            RUN + "defaults: {permissions: {paths: {write: [tmp]}}}\n" + node("permissions: {paths: {read: [src/a]}}"),
            "beyond-permissions", (2, 42),
        ),
        (RUN + top("templates: {t: {run: x, permissions: {network: any}}}"), "beyond-permissions", (2, 48)),
        (RUN + node("on_failure: {fallback: {run: z, permissions: {network: any}}}"), "beyond-permissions", (2, 76)),
        (node("isolation: context, permissions: {paths: {read: [.]}}"), "not-held", (1, 55)),
        (node("isolation: container"), "no-image", (1, 32)),
        (node("permissions: {isolation: container}"), "no-image", (1, 9)),
        (top("permissions: {isolation: container}"), "no-image", (2, 9)),
        ("permissions: {isolation: process}\n" + node("isolation: context"), "beyond-permissions", (2, 32)),
        (node("secrets: [A]"), "unknown-secret", (1, 31)),
        (node("secrets: [{A: file}]"), "unknown-secret", (1, 32)),
        (node("secrets: {A: file}"), "unknown-secret", (1, 31)),
        ("secrets: {T: {env: T}}\n" + node("secrets: [{T: file}, A]"), "unknown-secret", (2, 42)),
    ],
)  # fmt: skip
def test_what_only_the_whole_can_tell_has_its_place(text: str, code: str, place: tuple[int, int]) -> None:
    problem = one(text)
    assert (problem.code, (problem.line, problem.column)) == (code, place)


def test_hosts_are_no_reason_for_a_warning_at_any_level_with_walls() -> None:
    for level in ("isolation: process", "isolation: container, docker: a"):
        assert load(node(f"{level}, permissions: {{network: [a.com]}}")).warnings == ()
        assert load("permissions: {network: [a.com]}\n" + node(level)).warnings == ()


def test_an_image_that_means_nothing_is_a_warning_unless_it_is_there_for_others() -> None:
    (warning,) = load(node("docker: alpine")).warnings
    assert (warning.code, warning.severity, warning.line, warning.column) == ("no-meaning", "warning", 1, 21)
    assert load(f"defaults: {{docker: alpine}}\n{node('title: t')}").warnings == ()
    assert load(f"docker: alpine\n{node('title: t')}").warnings == ()


def test_a_list_has_an_end() -> None:
    many = ", ".join(f"d{k}" for k in range(1001))
    assert "1,000 items" in one(top(f"permissions: {{paths: {{read: [{many}]}}}}")).message
    assert load(top(f"permissions: {{paths: {{read: [{many.rpartition(', ')[0]}]}}}}")).workflow.permissions is not None


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = """\
permissions:
  tools: [Read, Reed]
  paths: {read: [/, src], deny: ["a:b"]}
  network: maybe!
  cost_budget: -1
docker: {image: -x, pull: often}
nodes:
  a: {run: x, isolation: containers, permissions: {netwrk: none, paths: {write: /}}, docker: {imag: y}}
  b: {run: x, needs: [q], secrets: [A, {B: fiel}]}
"""
    assert [(p.code, p.line, p.column) for p in errors(text)] == [
        ("bad-value", 2, 17),
        ("bad-value", 3, 18),
        ("bad-value", 3, 34),
        ("bad-value", 4, 12),
        ("bad-value", 5, 16),
        ("bad-value", 6, 17),
        ("bad-value", 6, 27),
        ("bad-value", 8, 26),
        ("unknown-key", 8, 52),
        ("bad-value", 8, 81),
        ("unknown-key", 8, 95),
        ("unknown-node", 9, 23),
        ("bad-value", 9, 44),
    ]


def test_an_isolation_that_is_written_does_not_undercut_a_floor() -> None:
    text = """\
permissions: {isolation: container}
docker: alpine
nodes:
  a: {run: x, isolation: process}
  b: {run: x}
  c: {run: x, on_failure: {fallback: {run: z, isolation: process}}}
"""
    found = errors(text)
    assert [(p.code, p.line, p.column) for p in found] == [("below-floor", 4, 26), ("below-floor", 6, 58)]
    assert "write container" in found[0].hint
    assert all(n.isolation == "process" for n in load(text.replace(", isolation: process", "")).workflow.nodes.values())


def test_the_file_of_a_secret_has_a_variable_of_its_own() -> None:
    secrets = "secrets: {A: {env: A}, A_FILE: {env: B}}\n"
    problem = one(f"{secrets}nodes: {{a: {{run: x, env: {{A_FILE: y}}, secrets: [{{A: file}}]}}}}")
    assert (problem.code, problem.line, problem.column) == ("variable-clash", 2, 48)
    assert one(f"{secrets}nodes: {{a: {{run: x, secrets: [A_FILE, {{A: file}}]}}}}").code == "variable-clash"


STRANGE = ("[bold red]", "{x}", "'; rm -rf /", "`id`")
HOSTILE = ("\x1b[31m", "\u202e", "\u200b", "\0", "\x07", "\r", "$(id)", "x" * 5000, *STRANGE)


@pytest.mark.parametrize("bad", HOSTILE, ids=ascii)
@pytest.mark.parametrize(
    "where",
    [
        "permissions: {tools: [%s]}", "permissions: {models: [%s]}", "permissions: {network: [%s]}",
        "permissions: {network: %s}", "permissions: {cost_budget: %s}", "permissions: {isolation: %s}",
        "permissions: {paths: {read: [%s]}}", "permissions: {%s: x}", "docker: %s", "docker: {user: %s}",
        "docker: {pull: %s}", "docker: {%s: x}", "permissions: {paths: {%s: []}}",
    ],
)  # fmt: skip
def test_hostile_texts_are_refused_and_shown_safely(where: str, bad: str) -> None:
    text = top(where % json.dumps(bad))
    if "paths: {read" in where and bad in STRANGE:
        return  # names of files that are merely strange
    with pytest.raises(InputError) as caught:
        load(text)
    shown = render(caught.value)
    assert all(c == "\n" or c.isprintable() for c in shown)
    assert all(len(p.message) < 6000 for p in caught.value.problems)


def test_a_wrong_scope_causes_no_errors_elsewhere() -> None:
    text = "permissions: {paths: {read: [/]}, isolation: sandboxd}\n"
    text += "nodes: {a: {run: x, permissions: {paths: {read: [src]}}}}\n"
    assert [p.line for p in errors(text)] == [1, 1]
    text = "docker: {image: A}\nnodes: {a: {run: x, isolation: container}}\n"
    assert [p.line for p in errors(text)] == [1]
    text = "nodes:\n  a: {run: x, isolation: container, docker: {image: A}}\n  b: {run: x, needs: [a]}\n"
    assert [p.line for p in errors(text)] == [2]


def test_a_plain_node_says_nothing() -> None:
    made = load("nodes: {a: {run: x}}").workflow.nodes["a"]
    assert made == Node(id="a", run="x")

"""init: the first workflow of a project."""

from __future__ import annotations

import os

import typer

from dagrun.cli.console import Settings, emit, emit_json
from dagrun.cli.groups import command
from dagrun.errors import EnvironmentFault, UsageError

NAME = "dagrun.yaml"
RULES = "rules.yaml"
SCHEMA = "workflow.schema.json"
FLOW = """\
# yaml-language-server: $schema=.dagrun/workflow.schema.json
version: 1
name: {name}
params:
  greeting: {{type: string, default: Hello}}
nodes:
  # `run` is a command. What it prints can be an output that other nodes read.
  who:
    run: id -un
    outputs:
      user: {{from: stdout}}

  # An input makes an edge: `greet` waits for `who`, and $INPUT_USER is what it printed.
  greet:
    inputs: {{user: nodes.who.user}}
    env: {{GREETING: "${{{{ params.greeting }}}}"}}
    run: echo "$GREETING, $INPUT_USER!"

  # `needs` is order without data; a node with `retry` is tried again when it fails.
  count:
    needs: greet
    run: ls | wc -l
    retry: {{max_attempts: 3, delay: 1s}}
"""
AGENT_FLOW = """\
# yaml-language-server: $schema=.dagrun/workflow.schema.json
version: 1
name: {name}
# `fake` takes the answers of models from a file, so that no key is needed. With a real model:
#   ANTHROPIC_API_KEY=... dagrun execute {NAME} --provider live
provider: {{kind: fake, rules: {RULES}}}
models:
  main: [anthropic/claude-haiku-4-5]
permissions: {{cost_budget: 0.20}} # USD, the most that the run can cost
nodes:
  files:
    run: ls
    outputs:
      names: {{from: stdout}}

  # An agent sees its prompt and its inputs. It may read the project, and nothing else.
  describe:
    inputs: {{names: nodes.files.names}}
    agent:
      prompt: What is this project about? Read what you need to know.
      tools: [Read, Grep, Glob]
    outputs:
      summary: {{schema: {{type: string}}}}

outputs:
  summary: nodes.describe.summary
"""
AGENT_RULES = """\
# What the fake provider answers: the first rule that fits.
rules:
  - {{node: describe, turn: 1, tools: [{{Glob: {{pattern: "*"}}}}]}}
  - {{node: describe, json: {{summary: "Said by {RULES}, not by a model."}}}}
"""


@command("init", "dagrun init\ndagrun init --agent\ndagrun init ../other --force")
def init(
    ctx: typer.Context,
    folder: str = typer.Argument(".", metavar="[DIR]", show_default=False, help="Where to write it (here)."),
    agent: bool = typer.Option(False, "--agent", help="With an agent, and rules that answer for a model."),
    force: bool = typer.Option(False, "--force", help="Overwrite a dagrun.yaml that is there."),
) -> None:
    """Write a dagrun.yaml that runs, and say what to type next."""
    settings: Settings = ctx.obj
    texts = {NAME: AGENT_FLOW, RULES: AGENT_RULES} if agent else {NAME: FLOW}
    paths = {name: os.path.normpath(os.path.join(folder, name)) for name in texts}
    path = paths[NAME]
    there = [p for p in paths.values() if os.path.lexists(p)]
    if there and not force:
        again = f"dagrun init {_quote(folder)}{' --agent' if agent else ''} --force"
        hint = f"{_check(path)}, or overwrite it: {again}" if path in there else f"overwrite it: {again}"
        raise UsageError(f"{there[0]} is there already", hint=hint)
    schema = os.path.normpath(os.path.join(folder, ".dagrun", SCHEMA))
    _write(os.path.join(os.path.dirname(schema), ".gitignore"), "*\n")
    known = {"name": _flow_name(folder), "NAME": NAME, "RULES": RULES}
    written = [_write(paths[name], text.format(**known)) for name, text in texts.items()]
    written.append(_write(schema, _schema()))
    following = [_check(path), f"dagrun execute {_quote(path)}"]
    if settings.json:
        emit_json({"files": written, "next": following})
    elif settings.quiet:
        emit(path)
    else:
        emit(f"wrote {' and '.join(paths.values())}\nnext:")
        for line in following:
            emit(f"  {settings.hint(line)}")


def _check(path: str) -> str:
    return f"dagrun validate {_quote(path)}"


def _quote(path: str) -> str:
    from shlex import quote

    return quote(path)


def _flow_name(folder: str) -> str:
    """The folder's name as an id."""
    import re

    name = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(os.path.abspath(folder))).strip("-")
    return (name if re.match("[A-Za-z_]", name) else f"flow-{name}".rstrip("-"))[:128]


def _schema() -> str:
    from dagrun.flowfile.schema import schema_text

    return schema_text()


def _write(path: str, text: str) -> str:
    """Write a file, all or nothing, with its folder; its path. Raises EnvironmentFault."""
    from dagrun.store.disk import write_atomic

    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_atomic(os.path.abspath(path), text.encode(), mode=0o644)
    except OSError as error:
        hint = "name a folder that you can write to: dagrun init DIR"
        raise EnvironmentFault(f"can't write {path}: {error.strerror}", hint=hint) from None
    return path

"""validate and schema."""

from __future__ import annotations

import json

import pytest

from .space import Space

BAD = """
    version: 1
    name: bad
    nodes:
      a: {rn: x}
      b: {needs: c, run: "true"}
    """
TEXT = """\
error[unknown-key]: a node has no key `rn`
  --> bad.yaml:4:7
 3 | nodes:
 4 |   a: {rn: x}
   |       ^^
   = help: did you mean `run`?
error[unknown-node]: node `b` needs `c`, which does not exist
  --> bad.yaml:5:14
 4 |   a: {rn: x}
 5 |   b: {needs: c, run: "true"}
   |              ^
2 errors
  help: fix that, then: dagrun validate bad.yaml
"""


def test_valid_files_are_one_line_each(space: Space) -> None:
    done = space.run("validate", "hello.yaml", "fails.yaml")
    assert done == (0, "hello.yaml: ok, 2 nodes, 2 waves\nfails.yaml: ok, 3 nodes, 3 waves\n", "")
    assert space.run("validate", "hello.yaml", "-q") == (0, "", "")


def test_all_that_is_wrong_with_its_place(space: Space) -> None:
    space.file("bad.yaml", BAD)
    assert space.run("validate", "bad.yaml") == (3, TEXT, "")


def test_a_bad_file_does_not_hide_the_others(space: Space) -> None:
    space.file("bad.yaml", BAD)
    done = space.run("validate", "bad.yaml", "hello.yaml")
    assert done == (3, TEXT + "hello.yaml: ok, 2 nodes, 2 waves\n", "1 of 2 files are invalid\n")


def test_stdin(space: Space) -> None:
    text = (space.folder / "hello.yaml").read_text()
    assert space.run("validate", "-", stdin=text) == (0, "<stdin>: ok, 2 nodes, 2 waves\n", "")
    done = space.run("validate", "-", stdin="nodes: [")
    assert done.code == 3
    assert "--> <stdin>:1:" in done.out


@pytest.mark.parametrize("words", [["--json"], ["--format", "json"]])
def test_json(space: Space, words: list[str]) -> None:
    space.file("bad.yaml", BAD)
    done = space.run("validate", "bad.yaml", "hello.yaml", *words)
    assert done.code == 3
    bad, good = done.json["files"]
    assert (bad["valid"], good["valid"], good["nodes"], good["waves"]) == (False, True, 2, 2)
    found = [(p["code"], p["line"], p["column"]) for p in bad["problems"]]
    assert found == [("unknown-key", 4, 7), ("unknown-node", 5, 14)]


def test_github_annotations(space: Space) -> None:
    space.file("bad.yaml", BAD)
    text = (
        "::error file=bad.yaml,line=4,col=7,title=unknown-key::a node has no key `rn`%0Adid you mean `run`?\n"
        "::error file=bad.yaml,line=5,col=14,title=unknown-node::node `b` needs `c`, which does not exist\n"
    )
    assert space.run("validate", "bad.yaml", "--format", "github") == (3, text, "")


def test_no_file_is_usage(space: Space) -> None:
    assert space.run("validate") == (
        2,
        "",
        "error[usage]: `dagrun validate` needs FILE...\n  help: dagrun validate fails.yaml\n",
    )
    done = space.run("validate", "helo.yaml")
    assert (done.code, done.out) == (2, "")
    assert "there is no file helo.yaml" in done.err
    assert "hello.yaml" in done.err
    assert space.run("validate", "hello.yaml", "--format", "xml").code == 2


def test_the_schema_is_json(space: Space) -> None:
    done = space.run("schema")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["$schema"].startswith("http://json-schema.org/draft-07")


def test_a_rule_that_never_answers_is_a_warning(space: Space) -> None:
    space.file(
        "talk.yaml",
        """
        version: 1
        name: talk
        provider: {kind: fake, rules: rules.yaml}
        nodes: {greet: {agent: Hello}}
        """,
    )
    space.file("rules.yaml", "rules:\n- {text: Hello}\n- {node: gret, text: Bye}\n")
    done = space.run("validate", "talk.yaml")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "warning[idle-rule]: no agent is called `gret`\n"
        "  --> rules.yaml:3:1\n"
        "   = help: did you mean `greet`?\n"
        "warning[idle-rule]: this rule never answers: whatever fits it fits the rule at line 2 before\n"
        "  --> rules.yaml:3:1\n"
        "   = help: put it before that one, or remove it\n"
        "talk.yaml: ok, 1 node, 1 wave\n"
    )
    assert space.run("validate", "talk.yaml", "--strict").code == 3

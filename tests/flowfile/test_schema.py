"""The JSON Schema is what the models say, and says something about every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dagrun.flowfile import schema
from dagrun.flowfile.source import parse

FOLDER = Path(__file__).parents[2] / "schemas"


def test_the_files_are_what_the_models_say() -> None:
    for name, text in (("workflow", schema.schema_text()), ("patch", schema.patch_schema_text())):
        assert (FOLDER / f"{name}.schema.json").read_text(encoding="utf-8") == text, "python -m dagrun.flowfile.schema"


def schemas() -> list[dict[str, Any]]:
    """Those of workflows and of patches."""
    return [json.loads(schema.schema_text()), json.loads(schema.patch_schema_text())]


def test_check_finds_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "made" / "x.json"
    assert schema.main(["--check", str(path)]) == 1
    assert schema.main([str(path)]) == 0
    assert schema.main(["--check", str(path)]) == 0
    path.write_text(path.read_text().replace("cores", "Cores").replace("nodes", "nodez"))
    assert schema.main(["--check", str(path)]) == 1
    assert "run python -m" in capsys.readouterr().out


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON document."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(inner)


def test_every_key_has_hover_text() -> None:
    for part in mappings(schemas()):
        for key, value in part.get("properties", {}).items():
            assert len(value.get("description", "")) > 5, key


def test_it_is_draft_07_and_every_reference_resolves() -> None:
    for made in schemas():
        assert made["$schema"] == "http://json-schema.org/draft-07/schema#"
        assert "$defs" not in json.dumps(made)
        for part in mappings(made):
            if "$ref" in part:
                assert part["$ref"].removeprefix("#/definitions/") in made["definitions"]
                assert len(part) == 1, "old validators ignore what stands beside a $ref"


def test_it_refuses_unknown_keys_everywhere() -> None:
    for part in mappings(schemas()):
        if "properties" in part or "patternProperties" in part:
            assert "additionalProperties" in part


def test_examples_satisfy_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = jsonschema.Draft7Validator(schema.json_schema())
    jsonschema.Draft7Validator.check_schema(schema.json_schema())
    good = {"nodes": {"a": {"run": "x", "needs": "b", "timeout": 3, "inputs": {"i": "nodes.b.o", "j": {"value": 1}}}}}
    assert list(made.iter_errors(good)) == []
    wrong: tuple[dict[str, Any], ...] = ({"a/b": {"run": "x"}}, {"a": {"run": "x", "depends": []}}, {"a": {}})
    for nodes in wrong:
        assert list(made.iter_errors({"nodes": nodes})) != []
    assert list(made.iter_errors({})) != []


def test_a_node_has_one_kind_for_an_editor_too() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = jsonschema.Draft7Validator(schema.json_schema())
    good = {
        "nodes": {
            "a": {"review": "Sure?", "on_failure": "review"},
            "b": {"run": "x", "on_failure": {"fallback": {"run": "z", "on_failure": {"fallback": "t"}}, "review": {}}},
        },
        "templates": {"t": {"run": "x"}},
        "limits": {"growth": "150%", "revisions": 0, "fallback_chain": 1},
    }
    assert list(made.iter_errors(good)) == []
    for node in ({"run": "x", "review": "z"}, {"needs": "b"}, {"run": "x", "on_failure": {"fallback": {}}}):
        assert list(made.iter_errors({"nodes": {"a": node}})) != []


def test_permissions_for_an_editor() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = jsonschema.Draft7Validator(schema.json_schema())
    good: list[dict[str, Any]] = [
        {"permissions": {"network": "none", "cost_budget": 1.5, "paths": {"read": ["."], "deny": [".env*"]}}},
        {"isolation": "container", "docker": "alpine", "secrets": ["A", {"B": "file"}]},
        {"isolation": "context", "docker": {"image": "a", "pull": "missing", "user": 1000}, "secrets": {"A": "file"}},
        {"permissions": {"network": ["a.com"], "tools": ["Read"], "isolation": "process", "cost_budget": "0.30"}},
        {"resources": {"pids": 5, "file_size": "1G", "output": 5, "memory": "1Gi"}},
    ]
    bad: list[dict[str, Any]] = [
        {"permissions": {"network": "example.com"}},
        {"permissions": {"paths": ["."]}},
        {"permissions": {"paths": {"rw": ["."]}}},
        {"permissions": {"cost_budget": -1}},
        {"permissions": ["Read"]},
        {"isolation": "docker"},
        {"docker": {"image": "a", "pull": "always"}},
        {"docker": {"privileged": True}},
        {"secrets": {"A": "env"}},
        {"resources": {"pids": 0}},
    ]
    for keys, right in [*[(k, True) for k in good], *[(k, False) for k in bad]]:
        found = list(made.iter_errors({"nodes": {"a": {"run": "x", **keys}}}))
        assert (found == []) is right, keys


def test_patches_satisfy_their_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = jsonschema.Draft7Validator(schemas()[1])
    jsonschema.Draft7Validator.check_schema(schemas()[1])
    good: list[dict[str, Any]] = [
        {"insert": {"id": "scan", "node": {"run": "./scan.sh"}, "after": ["test"], "before": "deploy"}},
        {"remove": {"id": "lint", "strategy": "bridge"}},
        {"modify": {"id": "publish", "set": {"timeout": "10m"}, "unset": ["env"]}},
        {"fallback": {"id": "a", "with": "t"}},
        {"fallback": {"id": "a", "with": {"run": "x"}}},
        {"alternative": {"blocked": ["x"], "nodes": {"p": {"run": "x"}}, "exits": ["p"]}},
        {"set_limits": {"parallel": 2}},
    ]
    assert list(made.iter_errors({"base": 2, "operations": good})) == []
    incomplete: list[dict[str, Any]] = [{"insert": {"id": "x"}}, {"remove": {"id": "x"}}, {"removee": {}}]
    for bad in [{}, {**good[0], **good[1]}, *incomplete]:
        assert list(made.iter_errors({"operations": [bad]})) != []


def test_the_modeline_is_a_comment() -> None:
    assert parse(b"# yaml-language-server: $schema=../schemas/workflow.schema.json\na: b\n", "f").value == {"a": "b"}

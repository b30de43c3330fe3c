"""The JSON Schema is what the models say, and says something about every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dagrun.flowfile import schema
from dagrun.flowfile.source import parse

FILE = Path(__file__).parents[2] / "schemas" / "workflow.schema.json"


def test_the_file_is_what_the_models_say() -> None:
    assert FILE.read_text(encoding="utf-8") == schema.schema_text(), "python -m dagrun.flowfile.schema"


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
    for part in mappings(schema.json_schema()):
        for key, value in part.get("properties", {}).items():
            assert len(value.get("description", "")) > 5, key


def test_it_is_draft_07_and_every_reference_resolves() -> None:
    made = schema.json_schema()
    assert made["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "$defs" not in json.dumps(made)
    for part in mappings(made):
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/definitions/") in made["definitions"]
            assert len(part) == 1, "old validators ignore what stands beside a $ref"


def test_it_refuses_unknown_keys_everywhere() -> None:
    for part in mappings(schema.json_schema()):
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


def test_the_modeline_is_a_comment() -> None:
    assert parse(b"# yaml-language-server: $schema=../schemas/workflow.schema.json\na: b\n", "f").value == {"a": "b"}

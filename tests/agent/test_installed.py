"""Where litellm is and whom it can call, looked for as files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dagrun.agent.installed import litellm_folder, vendors
from tests.agent.talking import need_litellm

ASK = """
import json
from importlib.metadata import version  # so that what follows is found as in a program
import litellm
from litellm.llms.openai_like.json_loader import JSONProviderRegistry
found = {str(getattr(one, "value", one)) for one in litellm.provider_list}
print(json.dumps([litellm.__file__, sorted(found | set(JSONProviderRegistry.list_providers()))]))
"""


def test_the_vendors_are_those_that_litellm_calls() -> None:
    need_litellm()
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    done = subprocess.run([sys.executable, "-I", "-c", ASK], env=environ, capture_output=True, check=True)
    file, known = json.loads(done.stdout)
    assert str(Path(file).parent) == litellm_folder()
    assert vendors() == set(known)


def test_a_folder_of_the_project_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = litellm_folder()
    (tmp_path / "litellm").mkdir()
    (tmp_path / "litellm" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    for path in ("", str(tmp_path)):
        monkeypatch.setattr(sys, "path", [path, *sys.path])
        assert litellm_folder() == before


def test_nobody_is_known_where_it_can_t_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "litellm"
    (package / "types").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "types" / "utils.py").write_text("class Renamed(str):\n    A = 'a'\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert (litellm_folder(), vendors()) == (str(package), frozenset())
    monkeypatch.setattr(sys, "path", [])
    assert (litellm_folder(), vendors()) == (None, frozenset())

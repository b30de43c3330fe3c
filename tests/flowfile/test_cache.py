"""The plan cache: the same workflow without YAML and pydantic, trusted only from the user's own hand."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from dagrun.errors import InputError
from dagrun.flowfile import cache
from dagrun.flowfile.load import Loaded, read_workflow, read_workflow_text

TEXT = b"""\
nodes:
  a: {run: x, outputs: {o: {from: json, schema: {type: array}}}, resources: {cpu: 1}, retry: {max_attempts: 2}}
  b: {run: [y, z], needs: a, inputs: {i: nodes.a.o, j: a.o}, output_schema: s.json}
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "s.json").write_text('{"type": "object", "properties": {"n": {}}}')
    old = os.umask(0o022)
    yield
    os.umask(old)


def read(base: Path, data: bytes = TEXT, file: str = "flow.yaml") -> Loaded:
    return read_workflow_text(data, file, str(base))


def hit(base: Path, file: str = "flow.yaml") -> bool:
    return cache.find(TEXT, file, str(base)) is not None


def entry(base: Path) -> Path:
    (path,) = (base / "cache" / "dagrun" / "plans").iterdir()
    return path


def test_a_hit_is_equal_to_a_first_read(tmp_path: Path) -> None:
    assert not hit(tmp_path)
    first = read(tmp_path)
    assert hit(tmp_path)
    assert read(tmp_path) == first
    assert first.warnings, "warnings are kept as well"
    assert first.workflow.files == ("s.json",)


def test_a_hit_speaks_of_the_file_as_it_is_named_now(tmp_path: Path) -> None:
    read(tmp_path)
    found = cache.find(TEXT, "other/flow.yaml", str(tmp_path))
    assert found
    workflow, warnings = found
    assert workflow.file == "other/flow.yaml"
    assert {w.file for w in warnings} == {"other/flow.yaml"}


def test_other_content_is_a_miss(tmp_path: Path) -> None:
    read(tmp_path)
    assert cache.find(TEXT + b"#", "flow.yaml", str(tmp_path)) is None
    (tmp_path / "s.json").write_text('{"type": "object", "properties": {"m": {}}}')
    assert not hit(tmp_path)
    assert list(read(tmp_path).workflow.nodes["b"].outputs) == ["m"]
    (tmp_path / "s.json").unlink()
    assert not hit(tmp_path)
    with pytest.raises(InputError):
        read(tmp_path)


def test_a_wrong_file_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read(tmp_path, b"nodes: {}")
    assert not (tmp_path / "cache").exists()


def test_only_the_user_can_read_an_entry(tmp_path: Path) -> None:
    read(tmp_path)
    assert stat.S_IMODE(entry(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(entry(tmp_path).parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_an_entry_that_others_may_write_is_not_trusted(tmp_path: Path, mode: int) -> None:
    read(tmp_path)
    entry(tmp_path).chmod(mode)
    assert not hit(tmp_path)


def test_a_folder_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    read(tmp_path)
    entry(tmp_path).parent.chmod(0o777)
    assert not hit(tmp_path)


def test_an_entry_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not hit(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    read(tmp_path)
    path = entry(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not hit(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 64 + b"\n{}", b"\xff" * 100])
def test_a_corrupt_entry_is_ignored_and_replaced(tmp_path: Path, content: bytes) -> None:
    first = read(tmp_path)
    entry(tmp_path).write_bytes(content)
    assert not hit(tmp_path)
    assert read(tmp_path) == first
    assert hit(tmp_path)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    read(tmp_path)
    good = entry(tmp_path).read_bytes()
    for k in range(0, len(good), 7):
        entry(tmp_path).write_bytes(good[:k] + bytes([good[k] ^ 1]) + good[k + 1 :])
        assert not hit(tmp_path)


def test_an_entry_with_a_right_sum_and_a_wrong_shape_is_ignored(tmp_path: Path) -> None:
    read(tmp_path)
    for body in (
        b"[]",
        b"1",
        b'{"files": {}}',
        b'{"files": {}, "warnings": [], "workflow": {"nodes": {"a": {"zzz": 1}}}}',
    ):
        entry(tmp_path).write_bytes(sha256(body).hexdigest().encode() + b"\n" + body)
        assert not hit(tmp_path)


def test_no_place_for_a_cache_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for value in (str(tmp_path / "file"), "/proc/nowhere"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert read(tmp_path).workflow.nodes
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == str(tmp_path / "home" / ".cache" / "dagrun" / "plans")


def test_the_oldest_entries_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_FILES", 3)
    for k in range(6):
        read(tmp_path, TEXT + b"#" * k)
        for path in (tmp_path / "cache" / "dagrun" / "plans").iterdir():
            info = path.stat()
            os.utime(path, (info.st_atime - 10, info.st_mtime - 10))
    left = [k for k in range(6) if cache.find(TEXT + b"#" * k, "flow.yaml", str(tmp_path))]
    assert left == [3, 4, 5]


def test_a_hit_imports_neither_yaml_nor_pydantic(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_bytes(TEXT)
    code = (
        "import sys; from dagrun.flowfile.load import read_workflow; read_workflow(sys.argv[1]);"
        "heavy = ('yaml', 'pydantic', 'difflib', 'asyncio', 'logging', 'typing_extensions');"
        "print(*[m for m in heavy if m in sys.modules])"
    )
    root = str(Path(__file__).parents[2])
    seen = [
        subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=root
        ).stdout.split()
        for _ in range(2)
    ]
    assert {"yaml", "pydantic"} <= set(seen[0])
    assert seen[1] == []


def test_without_the_cache_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_bytes(TEXT)
    read_workflow(str(path), use_cache=False)
    assert not (tmp_path / "cache").exists()


def test_a_changed_patch_file_is_read_again(tmp_path: Path) -> None:
    data = b"nodes: {a: {run: x, on_failure: {replan: p.yaml}}}"
    (tmp_path / "p.yaml").write_text("operations: [{insert: {id: b, node: {run: x, output_schema: s.json}, after: a}}]")
    first = read(tmp_path, data)
    assert cache.find(data, "flow.yaml", str(tmp_path)) is not None
    assert read(tmp_path, data) == first
    (tmp_path / "s.json").write_text("{}")
    assert cache.find(data, "flow.yaml", str(tmp_path)) is None, "a file that the patch names"
    read(tmp_path, data)
    (tmp_path / "p.yaml").write_text("operations: [{rerun: {id: a}}]")
    assert cache.find(data, "flow.yaml", str(tmp_path)) is None
    assert read(tmp_path, data).workflow != first.workflow

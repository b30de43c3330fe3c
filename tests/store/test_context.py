"""The context store: values by reference, artifacts by digest."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.names import Json
from dagrun.errors import EnvironmentFault
from dagrun.store import artifacts
from dagrun.store.context import INLINE_BYTES, ContextStore, write_inputs
from dagrun.store.exchange import OutputError
from dagrun.store.rundir import RunDir, new_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return new_run(str(tmp_path))


@pytest.fixture
def store(run: RunDir) -> ContextStore:
    return ContextStore(run)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ContextStore:
    return ContextStore(new_run(str(tmp_path_factory.mktemp("shared"))))


@given(value=json_values, factor=st.sampled_from([1, 1, 5000]))
def test_what_is_put_is_got_also_after_the_reference_went_through_the_journal(
    shared: ContextStore, value: Json, factor: int
) -> None:
    value = value if factor == 1 else [value, "x" * factor]
    ref = shared.put(value)
    again = json.loads(json.dumps(ref))
    assert len(json.dumps(ref, ensure_ascii=False, separators=(",", ":")).encode()) <= INLINE_BYTES + 8
    assert shared.get(again) == value


def test_small_values_stay_inline_and_large_ones_become_files(store: ContextStore, run: RunDir) -> None:
    fits, over = "x" * (INLINE_BYTES - 2), "x" * (INLINE_BYTES - 1)
    assert store.put(fits) == {"v": fits}
    assert not os.path.exists(run.values)
    ref = store.put(over)
    data = f'"{over}"'.encode()
    assert ref == {"sha": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert Path(run.values, f"{ref['sha']}.json").read_bytes() == data
    assert store.put(over) == ref
    assert os.listdir(run.values) == [f"{ref['sha']}.json"]


@pytest.mark.parametrize("text", ["\0" * 680, "\0" * 681, "\0" * 690, "😀" * 1022, "😀" * 1024, "é" * 4096])
def test_the_limit_counts_the_bytes_of_the_json(store: ContextStore, text: str) -> None:
    size = len(json.dumps(text, ensure_ascii=False).encode())
    assert ("v" in store.put(text)) == (size <= INLINE_BYTES)


def test_nan_is_refused(store: ContextStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.put([float("nan")])


def test_a_changed_or_lost_value_is_noticed(store: ContextStore, run: RunDir) -> None:
    ref = store.put("x" * 5000)
    path = Path(run.values, f"{ref['sha']}.json")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"x", b"y", 1))
    with pytest.raises(EnvironmentFault, match="digest does not match"):
        store.get(ref)
    path.unlink()
    with pytest.raises(EnvironmentFault, match="No such file"):
        store.get(ref)


def test_a_half_written_value_is_written_again(store: ContextStore, run: RunDir) -> None:
    ref = store.put("x" * 5000)
    path = Path(run.values, f"{ref['sha']}.json")
    path.unlink()
    path.write_bytes(b"short")
    assert store.put("x" * 5000) == ref
    assert store.get(ref) == "x" * 5000


def test_inputs_are_one_private_json_file(tmp_path: Path) -> None:
    path = str(tmp_path / "inputs.json")
    write_inputs(path, {"a": ["é", None], "b": "a\udc80"})
    assert json.loads(Path(path).read_bytes()) == {"a": ["é", None], "b": "a\udc80"}
    assert os.stat(path).st_mode & 0o777 == 0o600
    write_inputs(path, {})
    assert Path(path).read_text() == "{}\n"
    os.symlink(path, str(tmp_path / "link"))
    with pytest.raises(EnvironmentFault, match="can't write"):
        write_inputs(str(tmp_path / "link"), {})


# ---------------------------------------------------------------- artifacts


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("out/a.txt", "out/b.json", "out/sub/deep/c.txt", "out/.hidden", "x[1].txt", ".git/config", "top.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def paths(project: Path, *patterns: str) -> list[str]:
    return artifacts.collect(patterns, str(project))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("out/a.txt", ["out/a.txt"]),
        ("./out//a.txt", ["out/a.txt"]),
        ("out/*", ["out/a.txt", "out/b.json"]),
        ("out/.*", ["out/.hidden"]),
        ("out/.hidden", ["out/.hidden"]),
        ("out/**", ["out/a.txt", "out/b.json", "out/sub/deep/c.txt"]),
        ("out/**/*.txt", ["out/a.txt", "out/sub/deep/c.txt"]),
        ("**/**/c.txt", ["out/sub/deep/c.txt"]),
        ("*/a.tx?", ["out/a.txt"]),
        ("out/[ab].*", ["out/a.txt", "out/b.json"]),
        ("x[[]1].txt", ["x[1].txt"]),
        ("*.none", []),
        ("none/*", []),
        (".dagrun/**", []),
        ("*/runs/**", []),
    ],
)
def test_what_a_pattern_means(project: Path, pattern: str, found: list[str]) -> None:
    new_run(str(project))
    if pattern == ".dagrun/**":
        with pytest.raises(OutputError, match="dagrun's own folder"):
            ContextStore(new_run(str(project))).store_artifacts([pattern], str(project))
        return
    assert paths(project, pattern) == found


def test_an_absolute_pattern_may_lead_into_the_project(project: Path) -> None:
    assert paths(project, f"{project}/out/a.*") == ["out/a.txt"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("../x", "may not hold '..'"),
        ("out/../../x", "may not hold '..'"),
        ("/etc/passwd", "outside of the project"),
        ("", "names no file"),
        ("/", "outside of the project"),
        ("out/none.txt", "is missing"),
        ("a\0b", "names no file"),
    ],
)
def test_a_pattern_that_is_refused(project: Path, pattern: str, says: str) -> None:
    with pytest.raises(OutputError, match=says):
        paths(project, pattern)


def test_artifacts_are_copied_by_digest_once_and_keep_their_mode(project: Path) -> None:
    (project / "out/b.json").write_text("out/a.txt")
    (project / "out/b.json").chmod(0o755)
    run = new_run(str(project))
    store = ContextStore(run)
    stored = store.store_artifacts(["out/**", "out/a.txt"], str(project))
    sha = hashlib.sha256(b"out/a.txt").hexdigest()
    assert [a["path"] for a in stored] == ["out/a.txt", "out/b.json", "out/sub/deep/c.txt"]
    assert stored[0] == {
        "path": "out/a.txt",
        "sha": sha,
        "size": 9,
        "mode": (project / "out/a.txt").stat().st_mode & 0o777,
    }
    assert (stored[1]["sha"], stored[1]["mode"]) == (sha, 0o755)
    assert len(os.listdir(run.artifacts)) == 2, "one file for each content and nothing left over"
    (project / "out/a.txt").write_text("changed")
    assert Path(store.artifact_path(sha)).read_text() == "out/a.txt"


def test_no_patterns_make_no_folder(project: Path) -> None:
    run = new_run(str(project))
    assert ContextStore(run).store_artifacts([], str(project)) == []
    assert ContextStore(run).store_artifacts(["*.none"], str(project)) == []
    assert not os.path.exists(run.artifacts)


def test_a_large_and_an_empty_file_are_copied_whole(project: Path) -> None:
    data = os.urandom(3_000_001)
    (project / "big").write_bytes(data)
    (project / "empty").touch()
    store = ContextStore(new_run(str(project)))
    big, empty = store.store_artifacts(["big", "empty"], str(project))
    assert Path(store.artifact_path(str(big["sha"]))).read_bytes() == data
    assert (big["size"], empty["size"]) == (3_000_001, 0)


def test_links_out_of_the_project_are_never_followed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("s")
    os.symlink(outside / "secret", project / "out/leak")
    os.symlink(outside, project / "out/far")
    os.symlink("a.txt", project / "out/near")
    os.symlink(project / "out", project / "here")
    store = ContextStore(new_run(str(project)))
    for pattern in ("out/leak", "out/far/secret", "out/far/*", "here/far/secret"):
        with pytest.raises(OutputError, match="outside of the project through a symbolic link"):
            store.store_artifacts([pattern], str(project))
    assert [a["path"] for a in store.store_artifacts(["out/**", "out/*"], str(project))] == [
        "out/a.txt",
        "out/b.json",
        "out/sub/deep/c.txt",
    ]
    assert [a["size"] for a in store.store_artifacts(["out/near", "here/a.txt"], str(project))] == [9, 9]


def test_only_regular_files_are_taken(project: Path) -> None:
    os.mkfifo(project / "pipe")
    store = ContextStore(new_run(str(project)))
    with pytest.raises(OutputError, match="'pipe' is a named pipe"):
        store.store_artifacts(["pipe"], str(project))
    with pytest.raises(OutputError, match=r"'out' is a folder; write out/\*\*"):
        store.store_artifacts(["out"], str(project))
    assert store.store_artifacts(["p*"], str(project)) == []


def test_too_many_files_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_FILES", 2)
    assert len(paths(project, "out/*")) == 2
    with pytest.raises(OutputError, match="more than 2 files"):
        paths(project, "out/**")

"""What nodes write: the output file in all its forms, and everything it must not be."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.names import Json
from dagrun.store.exchange import OutputError, parse_json, read_json, read_outputs_file, read_stdout, read_text


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def parse(path: str, data: bytes | str) -> dict[str, Json]:
    Path(path).write_bytes(data.encode() if isinstance(data, str) else data)
    return read_outputs_file(path)


def refused(path: str, data: bytes | str) -> str:
    with pytest.raises(OutputError) as caught:
        parse(path, data)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        ("", {}),
        ("\n\n", {}),
        ("a=1\n", {"a": "1"}),
        ("a=1", {"a": "1"}),
        ("a=\n", {"a": ""}),
        ("a==b=c \n", {"a": "=b=c "}),
        ("a=x<<y\n", {"a": "x<<y"}),
        ("a=1\nb-2=zwei\n", {"a": "1", "b-2": "zwei"}),
        ("a=1\na=2\n", {"a": "2"}),
        ("a=1\r\nb=2\r\n", {"a": "1", "b": "2"}),
        ("a<<EOF\nEOF\n", {"a": ""}),
        ("a<<EOF\n\nEOF", {"a": ""}),
        ("a<<EOF\nx=1\n EOF\n\nEOF\nb=2", {"a": "x=1\n EOF\n", "b": "2"}),
        ("a<<END=\n1\nEND=\n", {"a": "1"}),
        ('{"a": [1, null], "b": {"c": 1.5}}', {"a": [1, None], "b": {"c": 1.5}}),
        ('\ufeff\n {"a":"\\u0000"}\n', {"a": "\0"}),
        ("\ufeffa=1", {"a": "1"}),
        ("a=é😀\u2028x", {"a": "é😀\u2028x"}),
    ],
)
def test_the_forms_of_the_output_file(path: str, text: str, outputs: dict[str, Json]) -> None:
    assert parse(path, text) == outputs


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("a=1\nhello\n", "$DAGRUN_OUTPUT line 2: 'hello' is neither name=value nor name<<END"),
        ("a =1\n", "line 1: 'a ' is not a name: letters, digits, _ and -, first a letter or _ (no blanks around"),
        ("a.b=1\n", "line 1: 'a.b' is not a name"),
        ("=1\n", "line 1: '' is not a name"),
        ("n" * 129 + "=1\n", "line 1: the name '" + "n" * 39 + "…' is longer than 128 characters"),
        ("\x1b[2J=1", r"line 1: '\x1b[2J' is not a name"),
        ("\n\na<<EOF\n1\n", "line 3: the block a<<'EOF' is never closed by a line 'EOF'"),
        ("a<<\n1\n", "line 1: the block a<< has no end word"),
        ("a=1\nb=\0\n", "line 2: it holds a NUL character"),
        (b"a=1\nb=\xff\n", "$DAGRUN_OUTPUT is not UTF-8: byte 0xff at offset 6, line 2"),
        ('{"a": 1,\n "b" 2}', "line 2, column 6: Expecting ':' delimiter"),
        ('{"a": 1} x', "line 1, column 10: Extra data"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"a.b": 1}', "'a.b' is not a name"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not usable JSON"),
    ],
)
def test_a_bad_output_file_says_where_and_why(path: str, data: bytes | str, says: str) -> None:
    assert says in refused(path, data)


def test_absent_is_empty(path: str) -> None:
    assert read_outputs_file(path) == {}
    assert read_stdout(path) == ""
    assert read_text(path) is None


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
line_values = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]))
block_values = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]))


@given(outputs=st.dictionaries(names, st.tuples(st.booleans(), block_values)))
def test_what_is_written_as_lines_and_blocks_is_read(
    tmp_path_factory: pytest.TempPathFactory, outputs: dict[str, tuple[bool, str]]
) -> None:
    path = str(tmp_path_factory.mktemp("x") / "out")
    text = ""
    for name, (block, value) in outputs.items():
        if block or "\n" in value:
            end = "EOF"
            while end in value.split("\n"):
                end += "_"
            text += f"{name}<<{end}\n{value}\n{end}\n"
        else:
            text += f"{name}={value}\n"
    assert parse(path, text) == {name: value for name, (_, value) in outputs.items()}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(outputs=st.dictionaries(names, json_values))
def test_what_is_written_as_json_is_read(tmp_path_factory: pytest.TempPathFactory, outputs: dict[str, Json]) -> None:
    assert parse(str(tmp_path_factory.mktemp("x") / "out"), json.dumps(outputs)) == outputs


@given(data=st.binary())
def test_any_bytes_are_outputs_or_an_output_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = str(tmp_path_factory.mktemp("x") / "out")
    said = ""
    try:
        parse(path, data)
    except OutputError as error:
        said = error.message
    assert said == "" or said.isprintable()


# ---------------------------------------------------------------- what it must not be


def test_a_link_a_pipe_a_socket_a_folder_are_refused_at_once(path: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a=1")
    os.symlink(tmp_path / "secret", path)
    with pytest.raises(OutputError, match="it is a symbolic link"):
        read_outputs_file(path)
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(OutputError, match="it is a named pipe, not a regular file"):
        read_outputs_file(path)
    os.unlink(path)
    os.mkdir(path)
    with pytest.raises(OutputError, match="it is a folder"):
        read_outputs_file(path)
    os.rmdir(path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        with pytest.raises(OutputError, match="can't be read"):
            read_outputs_file(path)
    with pytest.raises(OutputError, match="it is a device"):
        read_outputs_file("/dev/zero")


def test_a_file_over_the_limit_is_refused_and_one_at_the_limit_is_not(path: str) -> None:
    Path(path).write_bytes(b"a=" + b"x" * 98)
    assert len(str(read_outputs_file(path, max_bytes=100)["a"])) == 98
    with pytest.raises(OutputError, match="100 bytes, at most 99 are allowed"):
        read_outputs_file(path, max_bytes=99)


def test_a_huge_sparse_file_is_refused_without_reading_it(path: str) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OutputError, match=f"{1 << 40} bytes"):
        read_outputs_file(path)


# ---------------------------------------------------------------- stdout


@pytest.mark.parametrize(
    ("data", "text"), [(b"", ""), (b"a", "a"), (b"a\n", "a"), (b"a\n\n", "a\n"), (b"\n", ""), (b" a \n", " a ")]
)
def test_stdout_loses_one_newline(path: str, data: bytes, text: str) -> None:
    Path(path).write_bytes(data)
    assert read_stdout(path) == text
    with open(path, "rb") as file:
        assert read_stdout(file.fileno()) == text


def test_stdout_that_is_not_text_is_refused(path: str) -> None:
    Path(path).write_bytes(b"ok\n\x80")
    with pytest.raises(OutputError, match="stdout is not UTF-8: byte 0x80 at offset 3, line 2"):
        read_stdout(path)


def test_json_on_stdout(path: str) -> None:
    Path(path).write_text(' {"a": [1]}\n')
    assert read_json(path) == {"a": [1]}
    Path(path).write_text("{'a': 1}")
    with pytest.raises(OutputError, match="stdout is not JSON: line 1, column 2: Expecting property name"):
        read_json(path)
    Path(path).write_text(" \n")
    with pytest.raises(OutputError, match="stdout is not JSON: it is empty"):
        read_json(path)


def test_a_json_scalar_is_a_document() -> None:
    assert parse_json("3") == 3
    assert parse_json('"x"') == "x"

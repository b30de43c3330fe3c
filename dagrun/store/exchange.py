"""Reading what a node wrote: its $DAGRUN_OUTPUT file, its stdout, any file it names.

All of it is untrusted: regular files only, opened without following a link and without waiting,
capped in size, UTF-8. Absent means empty: a node that had nothing to say wrote nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NoReturn, cast

from dagrun.core.names import ID_MAX, is_id

if TYPE_CHECKING:
    from dagrun.core.names import Json

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 100  # what every reader and writer of JSON on the way can take, whatever its own stack holds
_BOM = b"\xef\xbb\xbf"


class OutputError(Exception):
    """What a node wrote can't be taken as its output; the text says where and why.

    Not a DagrunError: it ends an attempt (`invalid_output`), never the run.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def read_bytes(path: str | int, max_bytes: int = MAX_BYTES, *, what: str = "") -> bytes | None:
    """The bytes of a file (or open descriptor, which stays open); None when there is none.

    `what` names it in messages. Raises OutputError if it isn't a regular file or is too large.
    """
    what = what or (os.path.basename(path) if isinstance(path, str) else "output")
    if isinstance(path, int):
        return _read_fd(path, max_bytes, what)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise OutputError(f"{what} can't be read: {reason}") from error
    try:
        return _read_fd(fd, max_bytes, what)
    finally:
        os.close(fd)


def _read_fd(fd: int, max_bytes: int, what: str) -> bytes:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{what} can't be read: it is {kind_of(found.st_mode)}, not a regular file")
    chunks: list[bytes] = []
    size = 0
    while size <= max_bytes and (chunk := os.pread(fd, min(1 << 20, max_bytes + 1 - size), size)):
        chunks.append(chunk)
        size += len(chunk)
    if size > max_bytes:
        raise OutputError(f"{what} is too large: {max(size, found.st_size)} bytes, at most {max_bytes} are allowed")
    return b"".join(chunks)


def kind_of(mode: int) -> str:
    """What a file that isn't regular is, with its article."""
    for test, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISLNK, "a symbolic link"),
    ):
        if test(mode):
            return name
    return "a device"


def read_text(path: str | int, max_bytes: int = MAX_BYTES, *, what: str = "") -> str | None:
    """The text of a file as it is, None when there is none. Raises OutputError, also if it isn't UTF-8."""
    data = read_bytes(path, max_bytes, what=what)
    if data is None:
        return None
    return _decode(data, what or (os.path.basename(path) if isinstance(path, str) else "output"))


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OutputError(
            f"{what} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}, line {line}"
        ) from error


def read_stdout(path: str | int, max_bytes: int = MAX_BYTES) -> str:
    """What a node wrote to stdout, without one trailing newline; empty when it wrote nothing."""
    text = read_text(path, max_bytes, what="stdout") or ""
    return text[:-1] if text.endswith("\n") else text


def read_json(path: str | int, max_bytes: int = MAX_BYTES, *, what: str = "stdout") -> Json:
    """The JSON document in a file. Raises OutputError with line and column, also if there is nothing."""
    text = read_text(path, max_bytes, what=what)
    if not text or not text.strip():
        raise OutputError(f"{what} is not JSON: it is empty")
    return parse_json(text, what)


def parse_json(text: str, what: str = "text") -> Json:
    """The value of a JSON text. Raises OutputError for bad JSON, nan, a key twice, too deep nesting."""
    from json import JSONDecodeError, loads

    text = text.removeprefix("\ufeff")
    try:
        value = loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
    except JSONDecodeError as error:
        raise OutputError(f"{what} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise OutputError(f"{what} is not usable JSON: it is nested too deeply") from error
    except ValueError as error:
        raise OutputError(f"{what} is not usable JSON: {error}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise OutputError(f"{what} is not usable JSON: it is nested too deeply (more than {MAX_DEPTH} levels)")
    return cast("Json", value)


def _is_deeper(value: object, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` deep; level by level, so without recursion."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ] if level else level
        if not level:
            return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} is there twice in one object")
            seen.add(key)
    return made


def read_outputs_file(path: str, max_bytes: int = MAX_BYTES) -> dict[str, Json]:
    """The outputs that a node wrote to $DAGRUN_OUTPUT; none when there is no file.

    Lines `name=value`, blocks `name<<END` … `END`, or one JSON object. Of a name written twice
    the last counts. Raises OutputError naming line and reason.
    """
    what = "$DAGRUN_OUTPUT"
    data = read_bytes(path, max_bytes, what=what)
    if not data:
        return {}
    text = _decode(data.removeprefix(_BOM), what)
    if text.lstrip()[:1] == "{":
        outputs = parse_json(text, what)
        if not isinstance(outputs, dict):
            raise OutputError(f"{what} must hold one JSON object")
        for name in outputs:
            _check_name(name, f"{what}: ")
        return outputs
    return _parse_lines(text, what)


def _parse_lines(text: str, what: str) -> dict[str, Json]:
    if (nul := text.find("\0")) >= 0:
        raise OutputError(f"{what} line {text.count(chr(10), 0, nul) + 1}: it holds a NUL character")
    outputs: dict[str, Json] = {}
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    number = 0
    while number < len(lines):
        line = lines[number].removesuffix("\r")
        number += 1
        where = f"{what} line {number}: "
        if not line.strip():
            continue
        equals, block = line.find("="), line.find("<<")
        if block >= 0 and (equals < 0 or block < equals):
            name, end = line[:block], line[block + 2 :]
            _check_name(name, where)
            value, number = _read_block(lines, number, end, where, name)
            outputs[name] = value
        elif equals >= 0:
            _check_name(line[:equals], where)
            outputs[line[:equals]] = line[equals + 1 :]
        else:
            raise OutputError(f"{where}{_shown(line)} is neither name=value nor name<<END")
    return outputs


def _read_block(lines: list[str], number: int, end: str, where: str, name: str) -> tuple[str, int]:
    """The text up to the line `end`, and the index of the line after that."""
    if not end.strip():
        raise OutputError(f"{where}the block {name}<< has no end word; write {name}<<END")
    # A file with CRLF ends has it here too; a block of Unix lines may hold \r of its own.
    for at in range(number, len(lines)):
        if lines[at].removesuffix("\r") == end:
            return "\n".join(lines[number:at]), at + 1
    raise OutputError(f"{where}the block {name}<<{_shown(end)} is never closed by a line {_shown(end)}")


def _check_name(name: str, where: str) -> None:
    if is_id(name):
        return
    if len(name) > ID_MAX:
        raise OutputError(f"{where}the name {_shown(name)} is longer than {ID_MAX} characters")
    hint = " (no blanks around = or <<)" if is_id(name.strip()) else ""
    raise OutputError(f"{where}{_shown(name)} is not a name: letters, digits, _ and -, first a letter or _{hint}")


def _shown(text: str) -> str:
    """A piece of what a node wrote, short and quoted, fit for a message."""
    return repr(text if len(text) <= 40 else text[:39] + "…")

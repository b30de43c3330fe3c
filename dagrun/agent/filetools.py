"""Read, Write and Edit of an agent, on files below the roots. Part of the tool worker: standard library only.

Sizes are bounded before anything is read; a file is replaced whole, by a rename, so that nobody ever
sees half of it and no link, pipe or device is ever written to.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from dagrun.agent.beneath import Roots, ToolError, kind, reason

MAX_READ_BYTES = 100 << 20
MAX_WRITE_BYTES = 10 << 20
LINES = 2000
LINE_CHARS = 2000


def read(roots: Roots, given: dict[str, Any], room: int) -> str:
    """Lines `offset` (from 1) to `offset + limit` of a text file, numbered; at most `room` characters."""
    path = text(given, "file_path")
    first, limit = whole(given, "offset", 1, least=1), whole(given, "limit", LINES, least=1)
    fd, found = roots.open_file(path)
    if found.st_size > MAX_READ_BYTES:
        os.close(fd)
        raise ToolError(f"{path} has {found.st_size:,} bytes, more than can be read ({MAX_READ_BYTES:,}): use Grep")
    out: list[str] = []
    used, number, more = 0, 0, False
    with open(fd, "rb") as file:
        if b"\0" in file.read(8192):
            raise ToolError(f"{path} is a binary file")
        file.seek(0)
        for number, raw in enumerate(_lines(file), 1):
            if number < first:
                continue
            line = f"{number:6}\t{_shown(raw)}"
            if number >= first + limit or used + len(line) + 1 > room:
                more = True
                break
            out.append(line)
            used += len(line) + 1
    if not out:
        if number == 0:
            return f"({path} is empty)"
        raise ToolError(f"{path} has only {number} lines")
    if more:
        out.append(f"(more lines follow: read on with offset {number})")
    return "\n".join(out)


def _lines(file: Any) -> Any:
    """Lines of a file, one of any length in bounded pieces: only its beginning is kept."""
    most = LINE_CHARS * 4 + 1
    while piece := file.readline(most):
        kept = piece
        while not piece.endswith(b"\n") and (piece := file.readline(1 << 16)):
            kept = kept[:most] + b"\0"  # marks that something was left out
        yield kept


def _shown(raw: bytes) -> str:
    cut = raw.endswith(b"\0")
    line = raw.rstrip(b"\r\n\0").decode("utf-8", "replace")
    return line[:LINE_CHARS] + "…" if cut or len(line) > LINE_CHARS else line


def write(roots: Roots, given: dict[str, Any], room: int) -> str:
    """Make or replace a file with `content`, directories included."""
    path, content = text(given, "file_path"), text(given, "content", empty=True)
    data = _encoded(content)
    folder, name = roots.open_parent(path, make=True)
    try:
        existed = _replace(folder, name, data, path)
    finally:
        os.close(folder)
    lines = content.count("\n") + (not content.endswith("\n") and bool(content))
    return f"{'replaced' if existed else 'made'} {path} ({lines} line{'' if lines == 1 else 's'})"


def edit(roots: Roots, given: dict[str, Any], room: int) -> str:
    """Replace `old_string`, which must occur exactly once unless `replace_all`, by `new_string`."""
    path = text(given, "file_path")
    old, new = text(given, "old_string", empty=True), text(given, "new_string", empty=True)
    everywhere = given.get("replace_all", False)
    if not isinstance(everywhere, bool):
        raise ToolError("`replace_all` is true or false")
    if old == new:
        raise ToolError("`old_string` and `new_string` are the same")
    if not old:
        raise ToolError("`old_string` is empty: use Write to make a file")
    folder, name = roots.open_parent(path, make=False)
    try:
        before = _whole_text(roots, path)
        count = before.count(old)
        if count == 0:
            raise ToolError(f"`old_string` does not occur in {path}")
        if count > 1 and not everywhere:
            raise ToolError(f"`old_string` occurs {count} times in {path}: give more of its surroundings")
        _replace(folder, name, _encoded(before.replace(old, new)), path)
    finally:
        os.close(folder)
    return f"edited {path} ({count} replacement{'s' if count > 1 else ''})"


def _whole_text(roots: Roots, path: str) -> str:
    fd, found = roots.open_file(path)
    with open(fd, "rb") as file:
        if found.st_size > MAX_WRITE_BYTES:
            raise ToolError(f"{path} has {found.st_size:,} bytes, more than can be edited ({MAX_WRITE_BYTES:,})")
        data = file.read(MAX_WRITE_BYTES + 1)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ToolError(f"{path} is not UTF-8 text") from None


def _encoded(content: str) -> bytes:
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError:
        raise ToolError("the text holds half of a surrogate pair, which no file can hold") from None
    if len(data) > MAX_WRITE_BYTES:
        raise ToolError(f"{len(data):,} bytes are more than can be written at once ({MAX_WRITE_BYTES:,})")
    return data


def _replace(folder: int, name: str, data: bytes, path: str) -> bool:
    """Put `data` in place of `name` by a rename; whether it was there. Raises ToolError."""
    mode = 0o666 & ~_umask()
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise ToolError(reason(path, error)) from None
    if found is not None:
        if not stat.S_ISREG(found.st_mode):
            raise ToolError(f"{path} is {kind(found.st_mode)}, not a file")
        mode = stat.S_IMODE(found.st_mode) & 0o777
    fresh = f".{os.urandom(9).hex()}.new"  # not made of the name, which may be as long as a name can be
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        raise ToolError(reason(path, error)) from None
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
        os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        try:
            os.unlink(fresh, dir_fd=folder)
        except OSError:
            pass
        raise ToolError(reason(path, error)) from None
    return found is not None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def text(given: dict[str, Any], key: str, *, empty: bool = False) -> str:
    """A text argument. Raises ToolError when it is missing or something else."""
    value = given.get(key)
    if not isinstance(value, str):
        raise ToolError(f"`{key}` is wanted, a text")
    if not value and not empty:
        raise ToolError(f"`{key}` is empty")
    return value


def whole(given: dict[str, Any], key: str, default: int, *, least: int = 0, most: int = 10**9) -> int:
    """A whole number argument, `default` when it is not given. Raises ToolError."""
    value = given.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ToolError(f"`{key}` is a whole number from {least}")
    return value

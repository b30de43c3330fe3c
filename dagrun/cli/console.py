"""What a command was told everywhere (`-C --json -q …`), and its two ways to speak.

stdout is for results, stderr for people. A reader that goes away (`| head`) is no error: `emit`
then says False and the rest goes nowhere, so that a run goes on and its exit code is kept.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from dagrun.errors import EnvironmentFault, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagrun.view.text import Look

_HINTED = re.compile(
    r"\bdagrun (?=(?:init|validate|plan|execute|resume|cancel|replan|review|status|runs|logs|outputs|trace|diff"
    r"|rehearse|export|import|doctor)\b|-C )"
)


@dataclass(slots=True)
class Settings:
    """The options that every command takes. `folder` is what `-C` named; the process is in it already."""

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    no_input: bool = False
    color: str = "auto"
    folder: str = ""

    def hint(self, text: str) -> str:
        """A hint whose commands work from where the user stands."""
        if not self.folder or "dagrun " not in text:
            return text
        from shlex import quote

        return _HINTED.sub(f"dagrun -C {quote(self.folder)} ".replace("\\", "\\\\"), text)


def emit(text: str, *, flush: bool = False) -> bool:
    """A result and a newline on stdout; False once nobody reads it. Raises EnvironmentFault if it can't be written."""
    stream = sys.stdout
    try:
        stream.write(f"{text}\n")
        if flush:
            stream.flush()
    except OSError as error:
        return _lost(stream, error)
    return True


def emit_bytes(data: bytes) -> bool:
    """Bytes as they are on stdout, at once; False once nobody reads it. Raises EnvironmentFault."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        return _lost(sys.stdout, error)
    return True


def emit_json(document: Mapping[str, object]) -> None:
    """The one JSON document of a `--json` command."""
    from json import dumps

    # backslashreplace makes \xe9 of what an encoding lacks, which is no JSON
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    emit(dumps(document, indent=2, ensure_ascii=ascii_only))


def say(text: str) -> None:
    """A line for people, on stderr; quietly lost when nobody listens."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        _to_nowhere(sys.stderr)


def warn(text: str) -> None:
    """A warning for people, on stderr."""
    say(f"warning: {visible(text)}")


def flush_stdout() -> None:
    """Write out what `emit` has kept. Raises EnvironmentFault if it can't be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _lost(sys.stdout, error)


def look_for(settings: Settings, stream: TextIO) -> Look:
    """How to write for a stream: the signs and colours it can show, and its width if it is a terminal."""
    from dagrun.view.choose import look_for as choose

    return choose(stream, os.environ, settings.color)  # type: ignore[arg-type]


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at this stream."""
    try:
        return stream.isatty()
    except (OSError, ValueError):
        return False


def _lost(stream: TextIO, error: OSError) -> bool:
    _to_nowhere(stream)
    if error.errno == errno.EPIPE:
        return False
    raise EnvironmentFault(f"can't write to stdout: {error.strerror}") from None


def _to_nowhere(stream: TextIO) -> None:
    """What the stream still holds, and all that comes, goes to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)


def prepare_streams() -> None:
    """Make stdout and stderr take any text: a character that the encoding lacks is shown as its escape."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when the process began
            # Never closed: it lives as long as the process.
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

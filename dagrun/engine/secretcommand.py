"""The command that prints a secret: run once, in a session of its own, bounded in time and in size.

What it prints never reaches a message: when it fails its last words are shown masked, and what it had
printed on stdout is masked in them too.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Mapping
from time import monotonic

from dagrun.core.mask import Masker

_WORDS_BYTES = 4096
_WORDS_CHARS = 200
_PIECE = 1 << 16


def output_of(
    argv: tuple[str, ...], project: str, env: Mapping[str, str], mask: Masker, timeout_s: float, max_bytes: int
) -> bytes:
    """What the command prints on stdout, up to `max_bytes` + 1 bytes. It has no terminal and an empty stdin.

    Raises OSError when it can't be started, ValueError when it fails, prints more or takes longer.
    """
    command = subprocess.Popen(
        argv,
        cwd=project,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err, in_time = _read(command, monotonic() + timeout_s, max_bytes)
    finally:
        code = _end(command)
    if not in_time:
        raise ValueError(f"`{argv[0]}` took more than {timeout_s:g} s")
    if code and len(out) <= max_bytes:
        ended = f"ended with code {code}" if code > 0 else f"was killed by signal {-code}"
        words = _last_words(err, out, mask)
        raise ValueError(f"`{argv[0]}` {ended}" + (f": {words}" if words else ""))
    return out


def _read(command: subprocess.Popen[bytes], end: float, max_bytes: int) -> tuple[bytes, bytes, bool]:
    """(stdout, the end of stderr, whether it ended in time or printed too much).

    The end of the command counts, not that of its pipes: a child that it leaves may hold them.
    """
    assert command.stdout is not None
    assert command.stderr is not None
    data = {command.stdout.fileno(): b"", command.stderr.fileno(): b""}
    out, err = data
    pidfd = os.pidfd_open(command.pid)
    poll = select.poll()
    for fd in (*data, pidfd):
        poll.register(fd, select.POLLIN)
        os.set_blocking(fd, False)
    try:
        while len(data[out]) <= max_bytes:
            ready = {fd for fd, _ in poll.poll(max(0.0, end - monotonic()) * 1000)}
            for fd in ready - {pidfd}:
                if not _take(fd, data):
                    poll.unregister(fd)
            if pidfd in ready and not ready - {pidfd}:
                break
            if monotonic() > end:
                return data[out], data[err][-_WORDS_BYTES:], False
        return data[out], data[err][-_WORDS_BYTES:], True
    finally:
        os.close(pidfd)


def _take(fd: int, data: dict[int, bytes]) -> bool:
    try:
        got = os.read(fd, _PIECE)
    except BlockingIOError:
        return True
    data[fd] = (data[fd] + got)[-(1 << 20) :]
    return bool(got)


def _last_words(err: bytes, out: bytes, mask: Masker) -> str:
    """The last line of stderr as it may be shown: one line, no control characters, nothing secret."""
    mine = Masker((out.decode("utf-8", "surrogateescape"),))
    text = mine.text(mask.text(err.decode("utf-8", "surrogateescape")))
    lines = ["".join([c if c.isprintable() else " " for c in line]).strip() for line in text.splitlines()]
    words = next((line for line in reversed(lines) if line), "")
    return words if len(words) <= _WORDS_CHARS else f"{words[:_WORDS_CHARS]}…"


def _end(command: subprocess.Popen[bytes]) -> int:
    """Kill what is left of its group, then reap it, so that the group's id is still its own; its code."""
    try:
        os.killpg(command.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    code = command.wait()
    for stream in (command.stdout, command.stderr):
        if stream is not None:
            stream.close()
    return code

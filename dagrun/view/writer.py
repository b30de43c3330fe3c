"""Writes to a stream that may be slow, full or gone, without ever holding up the engine.

A helper thread does the writing. Lines are kept in order and never dropped; of frames only the
newest waits (a slow terminal misses some). After the first error of the stream the writer is
`dead` and swallows everything: the show goes quiet, the run goes on. Bytes go straight to the
descriptor where there is one, since what a Python stream holds back would fail again at exit.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread
from typing import Protocol, TypeAlias

Frame: TypeAlias = Callable[[], str]


class Stream(Protocol):
    """What is needed of a text stream such as `sys.stderr`."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


def descriptor(stream: Stream) -> int | None:
    """The file descriptor under a stream, or None for one in memory."""
    try:
        fd = stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
    return fd if isinstance(fd, int) else None


class Writer:
    """Ordered lines and replaceable frames to one stream, from a thread that starts with the first.

    `wait_at_exit` makes the process wait, when it ends, for a reader that is slow to take what
    is left, as any program does that prints: right for lines, wrong for frames.
    """

    def __init__(self, stream: Stream, encoding: str = "utf-8", *, wait_at_exit: bool = False) -> None:
        self.stream = stream
        self.fd = descriptor(stream)
        self.encoding = encoding
        self.dead = False
        self._wait_at_exit = wait_at_exit
        self._lines: list[str] = []
        self._frame: Frame | None = None
        self._busy = False
        self._closed = False
        self._changed = Condition()
        self._thread: Thread | None = None

    def put(self, text: str) -> None:
        """Write `text` after all that was put before. Never blocks, never raises."""
        if text and not self.dead:
            with self._changed:
                self._lines.append(text)
                self._wake()

    def show(self, frame: Frame) -> None:
        """Draw `frame` next, instead of any that still waits. It is called in the thread."""
        if not self.dead:
            with self._changed:
                self._frame = frame
                self._wake()

    def close(self, timeout_s: float | None = 2.0) -> None:
        """Wait until all is written, but no longer than `timeout_s`."""
        done = self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if done and self._wait_at_exit:
            atexit.unregister(self._last)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing waits to be written; whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.dead or not self._pending(), timeout_s)

    def _last(self) -> None:
        with suppress(KeyboardInterrupt):
            self.close(None)

    def _pending(self) -> bool:
        return bool(self._lines) or self._frame is not None or self._busy

    def _wake(self) -> None:
        if self._thread is None:
            thread = Thread(target=self._run, name="dagrun-view", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads on this machine: better slow than silent
                self._step()
                return
            self._thread = thread
            if self._wait_at_exit:
                atexit.register(self._last)
        self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            try:
                while not self.dead and not (self._closed and not self._pending()):
                    if self._pending():
                        self._step()
                    else:
                        self._changed.wait()
                    self._changed.notify_all()
            finally:
                self.dead = True
                self._changed.notify_all()

    def _step(self) -> None:
        """Write what waits, with the lock let go meanwhile."""
        lines, self._lines = self._lines, []
        frame, self._frame = self._frame, None
        self._busy = True
        self._changed.release()
        try:
            text = "".join(lines)
            if frame is not None:
                text += frame()
            ok = not text or self._write(text)
        finally:
            self._changed.acquire()
            self._busy = False
        if not ok:
            self.dead = True
            self._lines.clear()
            self._frame = None

    def _write(self, text: str) -> bool:
        try:
            if self.fd is None:
                self.stream.write(text)
                self.stream.flush()
                return True
            data = memoryview(text.encode(self.encoding, "replace"))
            while data:
                try:
                    data = data[os.write(self.fd, data) :]
                except BlockingIOError:  # somebody made a shared terminal non-blocking
                    _wait_writable(self.fd)
        except (OSError, ValueError):  # the reader went away, the disk is full, the stream is closed
            return False
        return True


def _wait_writable(fd: int) -> None:
    from select import POLLOUT, poll

    waiting = poll()
    waiting.register(fd, POLLOUT)
    waiting.poll(1000)

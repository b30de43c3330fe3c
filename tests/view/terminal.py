"""A pseudo-terminal that is looked at as a person does: through an emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from select import select

import pyte

from dagrun.view.live import Live
from dagrun.view.writer import Writer


class Terminal:
    def __init__(self, columns: int, lines: int, encoding: str = "utf-8") -> None:
        self.master, slave = pty.openpty()
        self.slave = os.fdopen(slave, "w", encoding=encoding)
        self.emulator = pyte.HistoryScreen(columns, lines, history=5000)
        self._feed = pyte.ByteStream(self.emulator)
        self.seen = b""
        self._lives: list[Live] = []
        self.resize(columns, lines)

    def watched(self, live: Live) -> Live:
        """The same table; its thread ends when this terminal is closed."""
        self._lives.append(live)
        return live

    def close(self) -> None:
        """Go away: what still writes gets an error, and its thread ends."""
        os.close(self.master)
        for live in self._lives:
            live._writer.close()
        self.slave.close()

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.slave.fileno(), termios.TIOCSWINSZ, size)
        self.emulator.resize(lines, columns)

    def drain(self) -> None:
        while select([self.master], [], [], 0)[0]:
            data = os.read(self.master, 65536)
            self.seen += data
            self._feed.feed(data)

    def screen(self, writer: Writer) -> list[str]:
        """The lines on the screen once `writer` has written all it had, without empty ones below."""
        for _ in range(1000):
            done = writer.flush(0.01)
            self.drain()
            if done:
                break
        lines = [line.rstrip() for line in self.emulator.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def scrolled(self) -> list[str]:
        """The lines that left the screen at its top."""
        width = self.emulator.columns
        return ["".join(line[x].data for x in range(width)).rstrip() for line in self.emulator.history.top]

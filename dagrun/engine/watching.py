"""Hearing of one descriptor that comes and goes: that of a broker, which may be started again."""

from __future__ import annotations

import select
from contextlib import suppress


class Watch:
    """What is heard of in a poll now: `fd`, -1 for nothing."""

    __slots__ = ("_poll", "fd")

    def __init__(self, poll: select.epoll) -> None:
        self.fd = -1
        self._poll = poll

    def follow(self, fd: int, *, writing: bool) -> None:
        """Hear of `fd` from now on, and of room to write; a new one may have the number of one that is closed."""
        if fd != self.fd and self.fd >= 0:
            with suppress(OSError):
                self._poll.unregister(self.fd)
        self.fd = fd
        if fd < 0:
            return
        wanted = select.EPOLLIN | (select.EPOLLOUT if writing else 0)
        try:
            self._poll.modify(fd, wanted)
        except FileNotFoundError:
            self._poll.register(fd, wanted)

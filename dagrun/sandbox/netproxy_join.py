"""The helper process of NetProxy: makes a listening socket inside a sandbox's network namespace.

Run as `python -I -S -c …` by netproxy.py with its control socket as descriptor 3. It stays one
thread, so that a forked child of it may enter the namespaces of a sandbox (setns refuses threads), and
hands the sockets on to the relay (netproxy_relay.py), its only lasting child. Nothing of it ever runs
a program. Both end when the engine's end of the control socket is closed, however that happens.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from json import dumps, loads
from typing import cast

from dagrun.core.names import Json
from dagrun.sandbox.netproxy_canary import canary
from dagrun.sandbox.netproxy_enter import MESSAGE_BYTES, JoinError, enter, in_child, listen
from dagrun.sandbox.netproxy_later import Later
from dagrun.sandbox.netproxy_relay import run_relay

CONTROL_FD = 3


class Joiner:
    """Takes the engine's orders, makes sockets, hands them to the relay."""

    def __init__(self, control: socket.socket, relay: socket.socket) -> None:
        self._control = control
        self._relay = relay
        self._later = Later(self.open)

    def run(self) -> None:
        """Serve until the engine or the relay is gone."""
        while True:
            waiting = self._later.fds()
            poll = select.poll()
            for fd in (self._control.fileno(), self._relay.fileno(), *waiting):
                poll.register(fd, select.POLLIN)
            ready = dict(poll.poll())
            if self._relay.fileno() in ready:
                return  # it speaks only when it is spoken to: this is its end
            for fd in ready.keys() & waiting.keys():
                self._later.serve(waiting[fd])
            if self._control.fileno() not in ready:
                continue
            data = self._control.recv(MESSAGE_BYTES)
            if not data:
                return
            order = cast("dict[str, Json]", loads(data))
            try:
                reply = self._obey(order)
            except JoinError as error:
                reply = {"error": error.why, "gone": error.gone}
            self._control.send(dumps({**reply, "number": order["number"]}).encode())

    def _obey(self, order: dict[str, Json]) -> dict[str, Json]:
        if order["do"] == "open":
            return self.open(int(str(order["pid"])), order)
        if order["do"] == "canary":
            return {"why": canary(self, int(str(order["pid"])))}
        if order["do"] == "later":
            return self._later.add(order)
        if order["do"] == "close":
            self._later.forget(str(order["key"]))
        return self.tell(order)

    def open(self, pid: int, order: dict[str, Json]) -> dict[str, Json]:
        """Listen in the namespace of a process for the key of an order. Raises JoinError."""

        def work() -> tuple[str, list[int]]:
            enter(pid)
            return "", [listen().detach()]

        _, fds = in_child(work)
        try:
            return self.tell(order, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def tell(self, order: dict[str, Json], fds: list[int] | None = None) -> dict[str, Json]:
        """Hand an order on to the relay; its answer. Raises JoinError when it is gone."""
        try:
            socket.send_fds(self._relay, [dumps(order).encode()], fds or [])
            data = self._relay.recv(MESSAGE_BYTES)
        except OSError as error:
            raise JoinError(f"the relay is gone: {error.strerror}") from None
        if not data:
            raise JoinError("the relay is gone")
        return cast("dict[str, Json]", loads(data))


def main() -> None:
    """Be the helper: fork the relay, serve the engine, wait for the relay's end."""
    control = socket.socket(fileno=CONTROL_FD)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    relay = os.fork()
    if relay == 0:
        control.close()
        ours.close()
        try:
            run_relay(theirs)
        finally:
            os._exit(0)
    theirs.close()
    with suppress(OSError):  # the engine is gone in the middle of an answer
        Joiner(control, ours).run()
    ours.close()
    os.waitpid(relay, 0)
    os._exit(0)

"""Host lists: a proxy outside every sandbox, with a door at 127.0.0.1:3128 inside each.

A sandbox that is held to a list has a network namespace with nothing in it but its own loopback;
the door is a listening socket that was made inside that namespace (netproxy_join.py), and whoever
comes through it is let go on to the hosts of the list and nowhere else (netproxy_relay.py, rules in
netproxy_hosts.py). Commands find it by HTTP_PROXY and its relatives. HTTP and CONNECT only: what
speaks neither has no network. Knows no engine and no back end; nothing is started before it is used.

An entry is `host` (any port), `host:port`, `*.domain` (all below it, not itself), an address. A name
that leads to an address that is not public (this machine, a private network, a cloud's metadata) is
refused unless the list names that address too. Not seen: what goes through a tunnel, so a listed host
that serves strangers' content (a CDN, a code forge) is a way out for whoever may use that host.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from json import dumps, loads
from typing import cast

from dagrun.core.names import Json
from dagrun.errors import EnvironmentFault
from dagrun.sandbox.netproxy_hosts import PORT

URL = f"http://127.0.0.1:{PORT}"
ANSWER_S = 10.0  # a machine that is very busy; then the helper counts as dead
MAX_ORDER_BYTES = 1 << 16
_CONTROL_FD = 3
_MESSAGE_BYTES = 1 << 18
_SCRIPT = "import sys; sys.path.append(sys.argv[1]); from dagrun.sandbox.netproxy_join import main; main()"


def proxy_environment() -> dict[str, str]:
    """The variables by which programs find the proxy, in both spellings; nothing is excepted from it."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    found = {spelt: URL for name in names for spelt in (name, name.lower())}
    return {**found, "NO_PROXY": "", "no_proxy": ""}


class NetProxy:
    """The engine's end. One helper process for all sandboxes, from the first `open` to `close`.

    `exempt` is told its pid, so that it isn't taken for a stray of a node.
    """

    def __init__(self, exempt: Callable[[int], None]) -> None:
        self._exempt = exempt
        self._control: socket.socket | None = None
        self._pid = 0
        self._number = 0

    def open(self, pid: int, allow: tuple[str, ...], key: str) -> None:
        """Make the door inside the network namespace of process `pid`; `allow` is what lies behind it.

        The process must be held still by its sandbox until this returns (some ms). Raises
        ProcessLookupError when it has ended, EnvironmentFault when the door can't be made.
        """
        self.start()
        reply = self._ask("open", key, pid=pid, allow=list(allow))
        if reply.get("gone"):
            raise ProcessLookupError(str(reply["error"]))
        if reply.get("error"):
            raise EnvironmentFault(
                f"can't hold a sandbox to its permissions.network: {reply['error']}",
                hint="see what this machine can hold: dagrun doctor",
            )

    def open_later(self, folder: str, allow: tuple[str, ...], key: str) -> None:
        """Make the door when somebody asks for it: who writes a pid into the pipe ASK reads the answer from SAID.

        Both are named pipes in `folder`, which no sandbox reaches; their names are those of
        netproxy_later.py. Raises EnvironmentFault.
        """
        self.start()
        reply = self._ask("later", key, folder=folder, allow=list(allow))
        if reply.get("error"):
            raise EnvironmentFault(
                f"can't hold a container to its permissions.network: {reply['error']}",
                hint="see what this machine can hold: dagrun doctor",
            )

    def refused(self, key: str) -> list[str]:
        """What this sandbox was refused, in order, each once: `example.org:443 (not in permissions.network)`."""
        if self._control is None:
            return []
        reply = self._ask("refused", key)
        return [str(text) for text in cast("list[Json]", reply.get("refused", []))]

    def close_for(self, key: str) -> None:
        """Close the door of a sandbox and every connection that came through it."""
        if self._control is not None:
            self._ask("close", key)

    def canary(self, pid: int) -> str:
        """Why a list can't be held in the network namespace of process `pid`; "" when it was tried there and held."""
        try:
            self.start()
            reply = self._ask("canary", "", pid=pid)
        except EnvironmentFault as fault:
            return fault.message
        return str(reply.get("error") or reply.get("why", ""))

    def start(self) -> None:
        """Start the helper if there is none, without waiting for it. Raises EnvironmentFault."""
        if self._control is not None:
            return
        if not sys.executable:
            raise EnvironmentFault("the proxy for permissions.network can't be started: Python's own path is unknown")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                (sys.executable, "-I", "-S", "-c", _SCRIPT, root),
                {"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD),
                file_actions=_files(theirs.fileno()),
            )
        except OSError as error:
            ours.close()
            raise EnvironmentFault(f"the proxy for permissions.network can't be started: {error.strerror}") from None
        finally:
            theirs.close()
        self._exempt(self._pid)
        ours.settimeout(ANSWER_S)
        self._control = ours

    def close(self) -> None:
        """End the helper and all that it holds open; it is gone when this returns."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._pid:
            _wait(self._pid)
            self._pid = 0

    def _ask(self, what: str, key: str, **more: Json) -> dict[str, Json]:
        """Give an order and wait for its answer; an empty one if the helper died and nothing was to be opened."""
        assert self._control is not None
        self._number += 1
        order: dict[str, Json] = {"do": what, "key": key, "number": self._number, **more}
        data, why = dumps(order).encode(), "it ended"
        if len(data) > MAX_ORDER_BYTES:
            raise EnvironmentFault("permissions.network is too long: it may have 64 KiB in all")
        try:
            self._control.send(data)
            while data := self._control.recv(_MESSAGE_BYTES):
                reply = cast("dict[str, Json]", loads(data))
                if reply.get("number") == self._number:
                    return reply
        except OSError as error:
            why = error.strerror or f"it did not answer within {ANSWER_S:g} s"
        self.close()  # with it goes every door: nobody gets out
        if what in ("refused", "close"):
            return {}
        raise EnvironmentFault(f"the proxy for permissions.network is gone: {why}", hint="go on with: dagrun resume")


def _files(control: int) -> list[tuple[int, ...] | tuple[int, int, str, int, int]]:
    """stdin, stdout and stderr empty, the control socket as descriptor 3, in an order that overwrites nothing."""
    return [
        (os.POSIX_SPAWN_DUP2, control, _CONTROL_FD),
        *[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)],
    ]


def _wait(pid: int) -> None:
    """Reap the helper, which leaves by itself; kill it after a second if it doesn't."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(1000):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
    finally:
        os.close(pidfd)

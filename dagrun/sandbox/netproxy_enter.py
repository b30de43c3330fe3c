"""Entering the network namespace of a sandbox and making a socket there; done by a child of one thread.

Knows no proxy and no list. Works as root and as an ordinary user that owns the sandbox.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable

from dagrun.sandbox.netproxy_hosts import PORT

MESSAGE_BYTES = 1 << 18
BACKLOG = 128
JOIN_S = 3.0
# Whoever made the namespace may just be about to do this: bwrap fails when it finds it done.
MAKER_S = 0.5
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_NS_GET_USERNS = 0xB701
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_libc = ctypes.CDLL(None, use_errno=True)


class JoinError(Exception):
    """The namespace could not be entered: why. `gone`: because its process has ended."""

    def __init__(self, why: str, *, gone: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.gone = gone


def enter(pid: int) -> None:
    """Move this process, which must be one thread, into the network namespace of another.

    The user namespace that owns it is entered first: in it the owner has the right to do this,
    also an ordinary user. Raises JoinError.
    """
    try:
        net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError | ProcessLookupError)
        raise JoinError(f"can't open the network namespace of process {pid}: {error.strerror}", gone=gone) from None
    try:
        if _same(net, "net"):
            raise JoinError(f"process {pid} has no network namespace of its own")
        owner = fcntl.ioctl(net, _NS_GET_USERNS)
        try:
            if not _same(owner, "user"):
                _setns(owner, _CLONE_NEWUSER)
        finally:
            os.close(owner)
        _setns(net, _CLONE_NEWNET)
    except OSError as error:
        raise JoinError(f"can't enter the network namespace of process {pid}: {error.strerror}") from None
    finally:
        os.close(net)


def _same(fd: int, kind: str) -> bool:
    theirs, ours = os.fstat(fd), os.stat(f"/proc/self/ns/{kind}")
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _setns(fd: int, kind: int) -> None:
    if _libc.setns(fd, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def listen() -> socket.socket:
    """A listening socket at 127.0.0.1:PORT of this network namespace, whose loopback is up afterwards."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    flags = _flags_of_loopback(sock)
    until = time.monotonic() + MAKER_S
    while not flags & _IFF_UP and time.monotonic() < until:
        time.sleep(0.0005)
        flags = _flags_of_loopback(sock)
    if not flags & _IFF_UP:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", PORT))
    sock.listen(BACKLOG)
    return sock


def _flags_of_loopback(sock: socket.socket) -> int:
    name = struct.pack("16sh14x", b"lo", 0)
    return int(struct.unpack("16sh14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, name))[1])


def in_child(work: Callable[[], tuple[str, list[int]]]) -> tuple[str, list[int]]:
    """What `work` gives (text, descriptors), done by a child of this process. Raises JoinError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be_child(theirs, work)
    theirs.close()
    try:
        ours.settimeout(JOIN_S)
        data, fds, _, _ = socket.recv_fds(ours, MESSAGE_BYTES, 1)
    except TimeoutError:
        os.kill(pid, 9)
        raise JoinError(f"it took more than {JOIN_S:g} s") from None
    finally:
        ours.close()
        os.waitpid(pid, 0)
    kind, _, text = data.decode("utf-8", "replace").partition(" ")
    if kind != "ok":
        raise JoinError(text or "the helper ended without a word", gone=kind == "gone")
    return text, list(fds)


def _be_child(reply: socket.socket, work: Callable[[], tuple[str, list[int]]]) -> None:
    """Never returns."""
    try:
        try:
            text, fds = work()
            socket.send_fds(reply, [f"ok {text}".encode()], fds)
        except JoinError as error:
            reply.send(f"{'gone' if error.gone else 'failed'} {error.why}".encode())
        except OSError as error:
            reply.send(f"failed {error.strerror or error}".encode())
    finally:
        os._exit(0)

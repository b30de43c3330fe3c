"""What hostile code tries: one function per attempt, in a table by name.

This file is also what runs inside: `python programs.py NAME WORLD` in a node's sandbox, with
nothing but the standard library. A function that got through returns what it got; one that was
stopped raises OSError or Held. WORLD says where the things are that must not be reached (stage.py
made them); what they hold is not in it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

World = dict[str, Any]
ATTEMPTS: dict[str, Attempt] = {}
TRIED = "TRIED"  # whether it got through is seen from outside only


class Held(Exception):
    """Nothing raised an error, and yet it did not get through."""


@dataclass(frozen=True)
class Attempt:
    """One way out. `data`: it counts only with the token that it must not see. `judge`: who looks from outside.

    `control` is where it gets through: a node at level none, or the bare program where dagrun never
    lets it. `key` is the node's own YAML, `permissions` what replaces the usual grants. `ending` is how
    the run ends. `denied`: to be refused, before or after, is an answer too. `gap`: why it still gets
    through at level process; docs/isolation.md says so.
    """

    name: str
    guarantee: str
    program: Callable[[World], str]
    data: bool = False
    judge: str = ""
    control: str = "none"
    root: bool = False
    maybe: bool = False
    levels: tuple[str, ...] = ("process", "container")
    read: tuple[str, ...] = (".",)
    write: tuple[str, ...] = ("out",)
    deny: tuple[str, ...] = ()
    network: object = "none"
    key: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)  # written at the level only
    before: str = ""
    ending: str = "normal"
    denied: bool = False
    gap: str = ""


def attempt(guarantee: str, **how: Any) -> Callable[[Callable[[World], str]], Callable[[World], str]]:
    """Put a function into the table under its own name."""

    def enter(function: Callable[[World], str]) -> Callable[[World], str]:
        name = function.__name__
        ATTEMPTS[name] = Attempt(name, guarantee, function, **how)
        return function

    return enter


def _output(file: str) -> dict[str, Any]:
    return {"outputs": {"x": {"from": "file", "file": file}}}


# ---------------------------------------------------------------- means

libc = ctypes.CDLL(None, use_errno=True)
ARM = os.uname().machine == "aarch64"
NUMBERS = {
    "keyctl": (250, 219),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}


def checked(value: int) -> int:
    """The result of a C call. Raises OSError if it failed."""
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return value


def system(name: str, *values: Any) -> int:
    """A system call by name."""
    numbers = [ctypes.c_long(v) if isinstance(v, int) else v for v in values]
    return checked(libc.syscall(ctypes.c_long(NUMBERS[name][ARM]), *numbers))


def payload_python() -> str:
    """The interpreter that the attempts run with: the system's where it will do."""
    system = "/usr/bin/python3"
    return os.path.realpath(system if os.path.exists(system) else sys.executable)


def text(path: str) -> str:
    """What is in a file, or as much as it gives."""
    with open(path, "rb") as file:
        return file.read(1 << 20).decode(errors="replace")


def pids() -> Iterator[int]:
    """Every process that can be seen but this one."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            yield int(name)


def first(tries: Iterator[Callable[[], str]]) -> str:
    """The first that gives something. Raises Held when none does."""
    said = "nothing to try"
    for one in tries:
        try:
            if found := one():
                return found
        except OSError as error:
            said = str(error)
    raise Held(said)


def answer(sock: socket.socket) -> str:
    """What a server says."""
    sock.settimeout(3)
    return sock.recv(1000).decode()


def dagrun(world: World) -> int:
    """The pid of the program that runs this."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            return int(text(world["pid_file"]) or "x")
        except (OSError, ValueError):
            time.sleep(0.01)
    raise Held("nobody says which process it is")


# ---------------------------------------------------------------- fs.read


@attempt("fs.read", data=True)
def reads_a_file_outside(world: World) -> str:
    return text(world["secret"])


@attempt("fs.read", data=True)
def reads_a_key_at_home(world: World) -> str:
    return text(world["home"] + "/.ssh/id_ed25519")


@attempt("fs.read", data=True)
def reads_through_a_link_in_the_project(world: World) -> str:
    return text("link")


@attempt("fs.read", data=True)
def reads_through_a_link_that_it_makes(world: World) -> str:
    os.symlink(world["secret"], "out/mine")
    return text("out/mine")


@attempt("fs.read", data=True)
def reads_through_the_parent_of_the_project(world: World) -> str:
    return text("../outside/secret.txt")


@attempt("fs.read", data=True)
def reads_through_the_root_of_another_process(world: World) -> str:
    return first(lambda pid=pid: text(f"/proc/{pid}/root{world['secret']}") for pid in pids())  # type: ignore[misc]


@attempt("fs.read", data=True)
def reads_through_the_cwd_of_another_process(world: World) -> str:
    return first(lambda pid=pid: text(f"/proc/{pid}/cwd/../outside/secret.txt") for pid in pids())  # type: ignore[misc]


@attempt("fs.read", data=True)
def hard_links_a_file_outside(world: World) -> str:
    os.link(world["secret"], "out/hard")
    return text("out/hard")


@attempt("fs.read", data=True, root=True, maybe=True)
def opens_a_file_by_its_handle(world: World) -> str:
    handle = bytes.fromhex(world["handle"])
    place = os.open(".", os.O_RDONLY)
    return os.read(checked(libc.open_by_handle_at(place, handle, os.O_RDONLY)), 1000).decode()


@attempt("fs.read", data=True, read=("programs.py", "world.json", "alias"), denied=True)
def is_granted_a_link_out(world: World) -> str:
    return text("alias/secret.txt")


@attempt("fs.read", data=True, read=("programs.py", "world.json", "data/*"), denied=True)
def is_granted_a_pattern_with_a_link_out(world: World) -> str:
    return text("data/link")


def swaps_a_folder(world: World) -> str:
    """A node before it, with the parent writable: the folder of the next grant becomes a link."""
    os.rename("out/in", "out/was")
    os.symlink(world["outside"], "out/in")
    return TRIED


@attempt(
    "fs.read", data=True, before="swaps_a_folder", read=("programs.py", "world.json", "out/in"), write=(), denied=True
)
def is_granted_what_became_a_link(world: World) -> str:
    return text("out/in/secret.txt")


@attempt("fs.read", data=True, root=True, maybe=True)
def reads_the_disk_through_a_device_file(world: World) -> str:
    os.mknod("out/disk", 0o600 | 0o060000, os.makedev(*world["disk"]))
    fd = os.open("out/disk", os.O_RDONLY)
    return world["any"] if len(os.read(fd, 512)) == 512 else ""


@attempt("fs.deny", data=True, judge="collected", deny=(".env",), denied=True, key={"artifacts": ["out/report.txt"]})
def gives_a_link_as_artifact(world: World) -> str:
    os.symlink("../.env", "out/report.txt")
    return TRIED


@attempt("fs.deny", data=True, judge="collected", deny=(".env",), denied=True, key={"artifacts": ["out/way/.env"]})
def gives_an_artifact_behind_a_link(world: World) -> str:
    os.symlink("..", "out/way")
    return TRIED


@attempt("fs.read", data=True, judge="collected", control="", denied=True, key={"artifacts": ["out/report.txt"]})
def gives_a_link_out_as_artifact(world: World) -> str:
    os.symlink(world["secret"], "out/report.txt")
    return TRIED


@attempt("fs.read", data=True, judge="collected", denied=True, key=_output("out/way/secret.txt"))
def gives_an_output_behind_a_link(world: World) -> str:
    os.symlink(world["outside"], "out/way")
    return TRIED


@attempt("fs.read", data=True, judge="collected", denied=True, control="", key=_output("out/x.txt"))
def gives_a_link_as_output(world: World) -> str:
    os.symlink(world["secret"], "out/x.txt")
    return TRIED


def _instead_of_its_output() -> str:
    path = os.environ["DAGRUN_OUTPUT"]
    with open(path, "w"):
        pass
    os.unlink(path)
    return path


@attempt("fs.read", data=True, judge="collected", denied=True, control="", key={"outputs": {"x": {}}})
def makes_a_link_of_its_output_file(world: World) -> str:
    os.symlink(world["outside"] + "/output.env", _instead_of_its_output())
    return TRIED


@attempt("fs.read", data=True, judge="collected", denied=True, control="", key={"outputs": {"x": {}}})
def makes_a_pipe_of_its_output_file(world: World) -> str:
    os.mkfifo(_instead_of_its_output())
    return TRIED


# ---------------------------------------------------------------- fs.write


@attempt("fs.write", judge="planted")
def writes_a_file_outside(world: World) -> str:
    with open(world["plant"], "w") as file:
        file.write("planted")
    return TRIED


@attempt("fs.write", judge="changed")
def appends_to_a_file_outside(world: World) -> str:
    with open(world["victim_file"], "a") as file:
        file.write("more")
    return TRIED


@attempt("fs.write", judge="changed")
def truncates_a_file_outside(world: World) -> str:
    os.truncate(world["victim_file"], 0)
    return TRIED


@attempt("fs.write", judge="changed")
def removes_a_file_outside(world: World) -> str:
    os.unlink(world["victim_file"])
    return TRIED


@attempt("fs.write", judge="changed")
def renames_a_file_outside(world: World) -> str:
    os.rename(world["victim_file"], world["victim_file"] + ".old")
    return TRIED


@attempt("fs.write", judge="changed")
def writes_through_a_link_out(world: World) -> str:
    with open("victim-link", "a") as file:
        file.write("more")
    return TRIED


@attempt("fs.write", judge="changed")
def writes_through_the_root_of_another_process(world: World) -> str:
    def one(pid: int) -> str:
        with open(f"/proc/{pid}/root{world['victim_file']}", "a") as file:
            file.write("more")
        return TRIED

    return first(lambda pid=pid: one(pid) for pid in pids())  # type: ignore[misc]


@attempt("fs.write", judge="touched")
def writes_where_it_may_only_read(world: World) -> str:
    with open("source.txt", "a") as file:
        file.write("more")
    return TRIED


@attempt("fs.write", judge="touched")
def makes_what_it_may_only_read_writable(world: World) -> str:
    os.chmod("source.txt", 0o666)
    libc.mount(None, b".", None, ctypes.c_ulong(0x1020), None)  # MS_REMOUNT | MS_BIND, without MS_RDONLY
    with open("source.txt", "a") as file:
        file.write("more")
    return TRIED


@attempt("fs.write", judge="touched")
def writes_through_the_descriptor_of_its_own_program(world: World) -> str:
    fd = os.open("source.txt", os.O_RDONLY)
    with open(f"/proc/self/fd/{fd}", "a") as file:
        file.write("more")
    return TRIED


@attempt("fs.write", judge="planted_tmp")
def leaves_a_file_in_tmp(world: World) -> str:
    with open(world["plant_tmp"], "w") as file:
        file.write("planted")
    return TRIED


@attempt("fs.write", root=True)
def sets_the_core_pattern(world: World) -> str:
    with open("/proc/sys/kernel/core_pattern") as file:
        value = file.read()
    with open("/proc/sys/kernel/core_pattern", "w") as file:
        file.write(value)  # its own: what counts is that it was taken
    return "it could be set"


@attempt("fs.write", root=True, maybe=True)
def leaves_its_control_group(world: World) -> str:
    def one(folder: str) -> str:
        with open(f"{folder}/cgroup.procs", "w") as file:
            file.write("0")
        return f"moved itself to {folder}"

    folders = ["/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in ("pids", "memory", "unified"))]
    return first(lambda folder=folder: one(folder) for folder in folders)  # type: ignore[misc]


# ---------------------------------------------------------------- fs.deny


@attempt("fs.deny", data=True, deny=(".env*",))
def reads_what_is_denied(world: World) -> str:
    return text(".env")


@attempt("fs.deny", data=True, deny=(".env*",))
def reads_what_is_denied_deeper(world: World) -> str:
    return text("sub/inner/.env.local")


@attempt("fs.deny", data=True, deny=("sub/inner/.env.local",))
def reads_a_denied_path(world: World) -> str:
    return text("sub/inner/.env.local")


@attempt("fs.deny", data=True, write=("out", "sub"), deny=("sub/inner/.env.local",), denied=True)
def renames_the_parent_of_what_is_denied(world: World) -> str:
    os.rename("sub/inner", "sub/other")
    return text("sub/other/.env.local")


@attempt("fs.deny", data=True, write=("out", "sub"), deny=("sub/inner/.env.local",), denied=True)
def hard_links_what_is_denied(world: World) -> str:
    os.link("sub/inner/.env.local", "sub/hard")
    return text("sub/hard")


@attempt("fs.deny", data=True)
def reads_a_key_in_the_project(world: World) -> str:
    return text("id_ed25519")


# ---------------------------------------------------------------- fs.meta


@attempt("fs.meta")
def sees_the_size_of_a_file_outside(world: World) -> str:
    return f"{os.stat(world['secret']).st_size} bytes"


@attempt("fs.meta")
def lists_a_folder_outside(world: World) -> str:
    return " ".join(os.listdir(world["outside"]))


@attempt("fs.meta", judge="mode")
def changes_the_mode_of_a_file_outside(world: World) -> str:
    os.chmod(world["victim_file"], 0o777)
    return TRIED


@attempt("fs.meta", judge="mode")
def changes_the_time_of_a_file_outside(world: World) -> str:
    os.utime(world["victim_file"], (1, 1))
    return TRIED


@attempt("fs.meta")
def watches_a_folder_outside(world: World) -> str:
    fd = checked(libc.inotify_init())
    checked(libc.inotify_add_watch(fd, world["outside"].encode(), 0xFFF))
    return "watches"


# ---------------------------------------------------------------- fs.protected


@attempt("fs.protected", write=(".",))
def sees_the_runs(world: World) -> str:
    return " ".join(os.listdir(".dagrun/runs"))


@attempt("fs.protected", write=(".",))
def writes_its_own_journal(world: World) -> str:
    run = os.listdir(".dagrun/runs")[0]
    with open(f".dagrun/runs/{run}/journal.jsonl", "a"):
        return "opened for writing"


@attempt("fs.protected", write=(".",), judge="runs_moved")
def moves_the_runs_away(world: World) -> str:
    os.rename(".dagrun", "out/dagrun-was")
    return TRIED


@attempt("fs.protected", data=True, before="gives_a_token", write=(".",))
def reads_what_another_node_gave(world: World) -> str:
    own = os.path.dirname(os.environ["DAGRUN_OUTPUT"])
    places = [own, os.path.dirname(own)]

    def found() -> Iterator[Callable[[], str]]:
        for place in [*places, ".dagrun"]:
            for folder, _, files in os.walk(place):
                yield from (lambda path=f"{folder}/{name}": _token_in(world, text(path)) for name in files)

    return first(found())


def gives_a_token(world: World) -> str:
    """A node before it that gives the token as its output, and says it."""
    with open(os.environ["DAGRUN_OUTPUT"], "a") as file:
        file.write(f"x={os.environ['GIVEN']}\n")
    return TRIED


def _token_in(world: World, found: str) -> str:
    at = found.find(world["hint"])
    return found[at : at + 40] if at >= 0 else ""


@attempt("fs.protected", write=(".",), judge="hook", denied=True)
def plants_a_git_hook(world: World) -> str:
    with open(".git/hooks/pre-commit", "w") as file:
        file.write("#!/bin/sh\n")
    return TRIED


@attempt("fs.protected", write=(".",), judge="hook", denied=True)
def plants_a_git_hook_below_a_new_parent(world: World) -> str:
    os.rename(".git", ".git-was")
    os.makedirs(".git/hooks")
    with open(".git/hooks/pre-commit", "w") as file:
        file.write("#!/bin/sh\n")
    return TRIED


@attempt(
    "fs.protected",
    write=("nested",),
    judge="nested_hook",
    denied=True,
)
def plants_a_git_hook_below_a_new_grandparent(world: World) -> str:
    os.rename("nested/repo", "nested/was")
    os.makedirs("nested/repo/.git/hooks")
    with open("nested/repo/.git/hooks/pre-commit", "w") as file:
        file.write("#!/bin/sh\n")
    return TRIED


@attempt("fs.protected", write=(".",), judge="git_config", denied=True)
def makes_git_run_a_program(world: World) -> str:
    with open(".git/config", "a") as file:
        file.write("[core]\n\tfsmonitor = ./evil\n")
    return TRIED


@attempt("fs.protected", write=("empty",), judge="new_git", denied=True)
def plants_a_repository_where_there_was_none(world: World) -> str:
    os.makedirs("empty/.git/hooks")
    with open("empty/.git/hooks/pre-commit", "w") as file:
        file.write("#!/bin/sh\n")
    return TRIED


@attempt("fs.protected", write=(".",), judge="flow", denied=True)
def overwrites_the_workflow(world: World) -> str:
    with open("flows/escape.yaml", "a") as file:
        file.write("\n# evil\n")
    return TRIED


@attempt("fs.protected", write=(".",), judge="flow", denied=True)
def replaces_the_workflow(world: World) -> str:
    with open("flows/new", "w") as file:
        file.write("# evil")
    os.replace("flows/new", "flows/escape.yaml")
    return TRIED


@attempt("fs.protected", write=(".",), judge="flow", denied=True)
def replaces_the_folder_of_the_workflow(world: World) -> str:
    os.rename("flows", "flows-was")
    os.mkdir("flows")
    with open("flows/escape.yaml", "w") as file:
        file.write("# evil")
    return TRIED


@attempt("fs.protected", write=(".",), judge="envrc", denied=True)
def writes_what_a_shell_reads(world: World) -> str:
    with open(".envrc", "a") as file:
        file.write("evil\n")
    return TRIED


# ---------------------------------------------------------------- net.none, net.allowlist


@attempt("net.none", data=True)
def connects_to_this_machine(world: World) -> str:
    return answer(socket.create_connection(("127.0.0.1", world["tcp"]), 3))


@attempt("net.none", data=True)
def connects_to_this_machine_by_ipv6(world: World) -> str:
    return answer(socket.create_connection(("::1", world["tcp6"]), 3))


@attempt("net.none", data=True)
def asks_by_udp(world: World) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"?", ("127.0.0.1", world["udp"]))
        return answer(sock)


@attempt("net.none", data=True, maybe=True)
def connects_by_mptcp(world: World) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as sock:
        sock.connect(("127.0.0.1", world["tcp"]))
        return answer(sock)


@attempt("net.none", data=True, maybe=True)
def connects_while_opening(world: World) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.sendto(b"?", 0x20000000, ("127.0.0.1", world["tcp"]))  # MSG_FASTOPEN
        return answer(sock)


@attempt("net.none", judge="connected")
def lets_others_connect(world: World) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", world["listen"]))
        sock.listen()
        sock.settimeout(2)
        try:
            sock.accept()
        except TimeoutError:
            raise Held("nobody came") from None
    return TRIED


@attempt("net.none", data=True, root=True)
def asks_the_cloud_for_its_keys(world: World) -> str:
    return answer(socket.create_connection(("169.254.169.254", 80), 3))


@attempt("net.none", root=True)
def listens_to_the_wire(world: World) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind(("lo", 0))
        sock.settimeout(2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ping:
            ping.sendto(b"?", ("127.0.0.1", world["udp"]))
        return f"{len(sock.recv(2000))} bytes"


@attempt("caps", root=True)
def opens_a_raw_socket(world: World) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        return f"descriptor {sock.fileno()}"


@attempt("net.allowlist", data=True, network="ALLOWED")
def connects_past_the_list(world: World) -> str:
    return answer(socket.create_connection(("127.0.0.1", world["tcp"]), 3))


def _asks_the_proxy(target: str) -> str:
    name = os.environ.get("HTTP_PROXY") or os.environ.get("http_proxy") or ""
    host, port = name.removeprefix("http://").rstrip("/").rsplit(":", 1)
    with socket.create_connection((host, int(port)), 3) as sock:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        sock.settimeout(3)
        said = sock.recv(1000).decode()
        if not said.startswith("HTTP/1.1 200") and not said.startswith("HTTP/1.0 200"):
            raise Held(said.splitlines()[0] if said else "no answer")
        return said.partition("\r\n\r\n")[2] or answer(sock)


@attempt("net.allowlist", data=True, network="ALLOWED")
def asks_the_proxy_for_a_port_that_is_not_listed(world: World) -> str:
    if "HTTP_PROXY" not in os.environ:  # the control: no proxy, nothing in the way
        return connects_past_the_list(world)
    return _asks_the_proxy(f"127.0.0.1:{world['tcp']}")


@attempt("net.allowlist", data=True, network="ALLOWED")
def asks_the_proxy_in_another_spelling(world: World) -> str:
    if "HTTP_PROXY" not in os.environ:
        return connects_past_the_list(world)
    spellings = "2130706433 0x7f000001 127.1 0177.0.0.1 localhost LOCALHOST. [::ffff:127.0.0.1] 0.0.0.0".split()
    return first(lambda name=name: _asks_the_proxy(f"{name}:{world['tcp']}") for name in spellings)  # type: ignore[misc]


# ---------------------------------------------------------------- unix, ipc


def _unix(address: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(address)
        return answer(sock)


@attempt("unix", data=True)
def connects_to_a_socket_outside(world: World) -> str:
    return _unix(world["unix"])


@attempt("unix", data=True, denied=True)
def connects_to_a_socket_in_a_folder_that_it_may_read(world: World) -> str:
    os.chdir("a/b/c")
    return _unix("sock")


@attempt("unix", data=True, network="any", denied=True)
def connects_to_that_socket_with_a_network(world: World) -> str:
    os.chdir("a/b/c")
    return _unix("sock")


@attempt("unix", data=True)
def connects_to_an_abstract_socket(world: World) -> str:
    return _unix("\0" + world["abstract"])


@attempt("unix", data=True, network="any")
def connects_to_an_abstract_socket_with_a_network(world: World) -> str:
    return _unix("\0" + world["abstract"])


@attempt("ipc", data=True)
def reads_shared_memory(world: World) -> str:
    number = checked(libc.shmget(world["shm_key"], 0, 0))
    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(number, None, 0o10000)
    if at in (None, ctypes.c_void_p(-1).value):
        checked(-1)
    return ctypes.string_at(at, 40).decode()


@attempt("ipc", data=True)
def reads_a_message_queue(world: World) -> str:
    number = checked(libc.msgget(world["shm_key"], 0))
    room = ctypes.create_string_buffer(8 + 200)
    size = checked(libc.msgrcv(number, room, 200, ctypes.c_long(0), 0o4000))
    return room.raw[8 : 8 + size].decode()


@attempt("ipc", data=True)
def reads_a_file_in_shared_memory(world: World) -> str:
    return text(world["dev_shm"])


@attempt("ipc", data=True, maybe=True)
def reads_the_keyring(world: World) -> str:
    number = system("keyctl", 10, -4, ctypes.c_char_p(b"user"), ctypes.c_char_p(world["key"].encode()), 0)
    room = ctypes.create_string_buffer(200)
    size = system("keyctl", 11, number, room, 200)
    return room.raw[:size].decode()


# ---------------------------------------------------------------- proc.hide, proc.signal


@attempt("proc.hide", data=True)
def sees_the_words_of_another_process(world: World) -> str:
    return first(lambda pid=pid: _token_in(world, text(f"/proc/{pid}/cmdline")) for pid in pids())  # type: ignore[misc]


@attempt("proc.hide")
def sees_dagrun(world: World) -> str:
    os.stat(f"/proc/{dagrun(world)}/status")
    if "dagrun" not in (said := text(f"/proc/{dagrun(world)}/cmdline")):
        raise Held("it is another process in here")
    return said.replace("\0", " ")


@attempt("proc.hide")
def sees_the_files_of_another_process(world: World) -> str:
    return first(
        lambda path=f"/proc/{pid}/fd/{name}": os.readlink(path) if "outside" in os.readlink(path) else ""  # type: ignore[misc]
        for pid in pids()
        for name in _listed(f"/proc/{pid}/fd")
    )


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


@attempt("proc.hide")
def slows_another_process_down(world: World) -> str:
    os.setpriority(os.PRIO_PROCESS, world["victim"], 5)
    return "nice 5"


@attempt("proc.signal", judge="victim_dead")
def kills_another_process(world: World) -> str:
    os.kill(world["victim"], signal.SIGKILL)
    return TRIED


@attempt("proc.signal")
def could_kill_dagrun(world: World) -> str:
    pid = dagrun(world)
    os.kill(pid, 0)
    if "dagrun" not in text(f"/proc/{pid}/cmdline"):
        raise Held("it is another process in here")
    return "it may"


@attempt("proc.signal", judge="victim_dead")
def kills_by_descriptor(world: World) -> str:
    signal.pidfd_send_signal(os.pidfd_open(world["victim"]), signal.SIGKILL)
    return TRIED


@attempt("proc.signal", maybe=True)
def traces_another_process(world: World) -> str:
    system("ptrace", 16, world["victim"], 0, 0)  # PTRACE_ATTACH
    os.waitpid(world["victim"], 0x40000000)  # __WALL
    system("ptrace", 17, world["victim"], 0, 0)
    return "attached"


@attempt("proc.signal", data=True, maybe=True)
def reads_the_memory_of_another_process(world: World) -> str:
    with open(f"/proc/{world['victim']}/mem", "rb") as file:
        file.seek(world["victim_address"])
        return file.read(40).decode()


@attempt("proc.signal", data=True, maybe=True)
def copies_the_memory_of_another_process(world: World) -> str:
    room = ctypes.create_string_buffer(40)
    ours = struct.pack("PN", ctypes.addressof(room), 40)
    theirs = struct.pack("PN", world["victim_address"], 40)
    system("process_vm_readv", world["victim"], ctypes.c_char_p(ours), 1, ctypes.c_char_p(theirs), 1, 0)
    return room.raw.decode()


@attempt("proc.signal", data=True, maybe=True)
def takes_a_descriptor_of_another_process(world: World) -> str:
    fd = system("pidfd_getfd", os.pidfd_open(world["victim"]), world["victim_fd"], 0)
    return os.pread(fd, 1000, 0).decode()


@attempt("proc.signal", data=True, maybe=True)
def opens_a_file_of_another_process(world: World) -> str:
    return text(f"/proc/{world['victim']}/fd/{world['victim_fd']}")


# ---------------------------------------------------------------- env, fds, tty


@attempt("env", data=True)
def sees_the_environment_of_the_caller(world: World) -> str:
    return os.environ["CALLER_NOTE"] if "CALLER_NOTE" in os.environ else first(iter(()))


@attempt("env", data=True)
def sees_the_environment_of_any_process(world: World) -> str:
    return first(lambda pid=pid: _token_in(world, text(f"/proc/{pid}/environ")) for pid in pids())  # type: ignore[misc]


@attempt("env", data=True)
def sees_the_first_environment_of_its_parents(world: World) -> str:
    return first(lambda pid=pid: _token_in(world, text(f"/proc/{pid}/environ")) for pid in (1, os.getppid()))  # type: ignore[misc]


@attempt("env")
def is_given_a_loader_variable(world: World) -> str:
    names = [name for name in os.environ if name.startswith("LD_") or name == "GCONV_PATH"]
    return " ".join(names) or first(iter(()))


@attempt("fds", data=True, control="bare")
def reads_an_inherited_descriptor(world: World) -> str:
    return first(lambda fd=fd: _token_in(world, os.pread(fd, 1000, 0).decode()) for fd in range(3, 64))  # type: ignore[misc]


@attempt("fds", data=True, control="bare")
def reads_the_input_of_dagrun(world: World) -> str:
    return _token_in(world, os.read(0, 1000).decode()) or first(iter(()))


@attempt("tty", control="bare", maybe=True)
def types_into_the_terminal(world: World) -> str:
    fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    try:
        for letter in b"x\n":
            fcntl.ioctl(fd, 0x5412, bytes([letter]))  # TIOCSTI
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPERM):
            raise
    return "it has the terminal"


# ---------------------------------------------------------------- caps


@attempt("caps", root=True)
def mounts(world: World) -> str:
    checked(libc.mount(b"none", b"out", b"tmpfs", 0, None))
    checked(libc.umount2(b"out", 2))
    return "mounted"


@attempt("caps", maybe=True)
def makes_a_user_namespace(world: World) -> str:
    checked(libc.unshare(0x10000000))
    return "made"


@attempt("caps", maybe=True)
def gets_a_user_namespace_by_clone(world: World) -> str:
    pid = checked(libc.syscall(ctypes.c_long(220 if ARM else 56), ctypes.c_long(0x10000000 | 17), 0, 0, 0, 0))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "made"


@attempt("caps", root=True)
def gives_a_file_away(world: World) -> str:
    with open("out/mine", "w"):
        pass
    os.chown("out/mine", 12345, 12345)
    return "given"


@attempt("caps", root=True)
def names_the_machine(world: World) -> str:
    name = os.uname().nodename.encode()
    checked(libc.sethostname(name, len(name)))
    return "its own name, taken"


@attempt("caps")
def may_gain_rights_by_exec(world: World) -> str:
    if libc.prctl(39, 0, 0, 0, 0) == 1:  # PR_GET_NO_NEW_PRIVS
        raise Held("no new privileges")
    return "set-id programs work"


@attempt("caps", judge="set_id")
def leaves_a_set_id_program(world: World) -> str:
    with open("out/program", "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod("out/program", 0o4755)
    return TRIED


@attempt("caps", judge="set_id")
def leaves_a_set_id_program_from_its_birth(world: World) -> str:
    os.close(os.open("out/program", os.O_CREAT | os.O_WRONLY, 0o4755))
    return TRIED


@attempt("caps", judge="device", root=True)
def leaves_a_device_file(world: World) -> str:
    os.mknod("out/device", 0o666 | 0o020000, os.makedev(1, 3))
    return TRIED


@attempt("caps", maybe=True)
def watches_page_faults(world: World) -> str:
    return f"descriptor {system('userfaultfd', 1)}"  # UFFD_USER_MODE_ONLY


@attempt("caps", maybe=True)
def queues_work_in_the_kernel(world: World) -> str:
    return f"descriptor {system('io_uring_setup', 4, ctypes.create_string_buffer(120))}"


@attempt("caps", root=True, maybe=True)
def measures_the_machine(world: World) -> str:
    how = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0) + bytes(96))
    return f"descriptor {system('perf_event_open', how, -1, 0, -1, 0)}"


@attempt("caps", root=True, maybe=True)
def loads_a_program_into_the_kernel(world: World) -> str:
    how = ctypes.create_string_buffer(struct.pack("IIII", 1, 4, 8, 1) + bytes(112))
    return f"descriptor {system('bpf', 0, how, 120)}"  # a map


# ---------------------------------------------------------------- kill.tree


def _leave_a_daemon() -> None:
    """A child that nobody waits for: twice forked, a session of its own, deaf to TERM and HUP."""
    if os.fork() == 0:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            time.sleep(60)
        os._exit(0)


@attempt("kill.tree", judge="alive", control="bare")
def leaves_a_daemon(world: World) -> str:
    _leave_a_daemon()
    return TRIED


# on a busy machine a container takes seconds to start, and they count
@attempt("kill.tree", judge="alive", control="bare", key={"timeout": "5s", "grace": "200ms"})
def leaves_a_daemon_at_its_timeout(world: World) -> str:
    _leave_a_daemon()
    if not world.get("bare"):
        print(TRIED, flush=True)
        time.sleep(30)
    return TRIED


@attempt("kill.tree", judge="alive", control="bare", ending="killed")
def leaves_a_daemon_when_dagrun_is_killed(world: World) -> str:
    _leave_a_daemon()
    print(TRIED, flush=True)
    if not world.get("bare"):
        time.sleep(30)
    return TRIED


# ---------------------------------------------------------------- mem, pids, cpu, fsize

SLICE = 48 << 20


@attempt("mem", limits={"resources": {"memory": "64 MiB"}}, denied=True)
def uses_memory_in_four_processes(world: World) -> str:
    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            kept = mmap.mmap(-1, SLICE)
            for at in range(0, SLICE, 4096):
                kept[at] = 1
            time.sleep(0.5)
            os._exit(0)
        children.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    if any(codes):
        raise Held(f"ended: {codes}")
    return "192 MiB"


@attempt("pids", limits={"resources": {"pids": 24}}, denied=True)
def makes_a_hundred_processes(world: World) -> str:
    made = []
    try:
        for _ in range(100):
            if (pid := os.fork()) == 0:
                time.sleep(5)
                os._exit(0)
            made.append(pid)
    finally:
        for pid in made:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return f"{len(made)} processes"


@attempt("fsize", limits={"resources": {"file_size": "1 MiB"}}, denied=True)
def writes_a_large_file(world: World) -> str:
    with open("out/large", "wb", buffering=0) as file:
        for _ in range(8):
            file.write(bytes(1 << 20))
    return f"{os.path.getsize('out/large')} bytes"


def _busy(until: float) -> None:
    while time.monotonic() < until:
        pass
    os._exit(0)


@attempt("cpu", limits={"resources": {"cpu": 1}}, denied=True, maybe=True)
def uses_two_processors(world: World) -> str:
    """Two processes that never wait, for up to ten seconds: a busy machine may have no more to give."""
    if (os.cpu_count() or 1) < 2:
        raise Held("there is only one")
    for _ in range(20):
        began, before = time.monotonic(), os.times()
        pids = []
        for _ in range(2):
            if (pid := os.fork()) == 0:
                _busy(began + 0.5)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        used = os.times().children_user - before.children_user
        if used > 1.3 * (time.monotonic() - began):
            return f"{used:.2f} s of work in {time.monotonic() - began:.2f} s"
    raise Held("never more than one")


# ---------------------------------------------------------------- inside


@contextmanager
def _said() -> Iterator[None]:
    """Turn how it went into a line: ESCAPED, TRIED or HELD. Anything else is a mistake of the attempt."""
    try:
        yield
    except (OSError, Held) as error:
        print(f"HELD {type(error).__name__}: {error}", flush=True)


def main() -> int:
    """Carry out one attempt; exit 0 however it went."""
    with open(sys.argv[2]) as file:
        world = json.load(file)
    name = sys.argv[1]
    program = ATTEMPTS[name].program if name in ATTEMPTS else globals()[name]
    with _said():
        got = program(world)
        print(got if got == TRIED else f"ESCAPED {got}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

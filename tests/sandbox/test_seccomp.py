"""The system call filter: run on an emulator for both machines, and for real in threads of their own."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import ClassVar

import pytest

from dagrun.errors import EnvironmentFault
from dagrun.sandbox import seccomp
from dagrun.sandbox.seccomp import filter_bytes, filter_fd

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSED, ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = tuple(ARCH)
VARIANTS = list(product(MACHINES, (False, True), (False, True), (False, True)))


def verdict(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would do: classic BPF over struct seccomp_data."""
    words = [a & (1 << 64) - 1 for a in (*arguments, *[0] * (6 - len(arguments)))]
    data = struct.pack("<iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *words)
    at, accumulator = 0, 0
    for _ in range(len(program) // 8):
        code, yes, no, k = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            assert k % 4 == 0
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x54:
            accumulator &= k
        elif code == 0x06:
            return int(k)
        else:
            test = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += yes if test else no
    raise AssertionError("it ran off its end")


class Machine:
    """The filter of one machine, asked by the names of calls."""

    NUMBERS: ClassVar[dict[str, tuple[int, int]]] = {
        **seccomp._REFUSED,
        **seccomp._ABSENT,
        **seccomp._IPC,
        **seccomp._AFFINITY,
        **{name: row[:2] for t in (seccomp._CHMODS, seccomp._MKNODS, seccomp._OPENS) for name, row in t.items()},
        "creat": seccomp._CREAT[:2],
        "clone": seccomp._CLONE,
        "ioctl": seccomp._IOCTL,
        "socket": seccomp._SOCKET,
        "socketpair": seccomp._SOCKETPAIR,
        # harmless ones
        "read": (0, 63),
        "write": (1, 64),
        "execve": (59, 221),
        "mmap": (9, 222),
        "connect": (42, 203),
        "kill": (62, 129),
        "prctl": (157, 167),
        "futex": (202, 98),
    }

    def __init__(self, machine: str, network: bool = False, ipc: bool = True, affinity: bool = True) -> None:
        self.machine = machine
        self.program = filter_bytes(network, ipc=ipc, affinity=affinity, machine=machine)

    def has(self, call: str) -> bool:
        return self.NUMBERS[call][MACHINES.index(self.machine)] >= 0

    def says(self, call: str, *arguments: int) -> int:
        return verdict(self.program, ARCH[self.machine], self.NUMBERS[call][MACHINES.index(self.machine)], *arguments)


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(request.param)


# ---------------------------------------------------------------- by the emulator


@pytest.mark.parametrize(("name", "network", "ipc", "affinity"), VARIANTS)
def test_every_variant_is_one_that_the_kernel_takes(name: str, network: bool, ipc: bool, affinity: bool) -> None:
    program = Machine(name, network, ipc, affinity).program
    count = len(program) // 8
    assert len(program) % 8 == 0
    assert 50 < count < 255
    for at in range(count):
        code, yes, no, _ = struct.unpack_from("=HBBI", program, at * 8)
        assert code in (0x20, 0x54, 0x06, 0x15, 0x35, 0x45)
        assert at + max(yes, no) < count


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("arch", [0, 0x40000003, 0xC000003F, 0x40000028])
def test_a_call_of_another_architecture_kills(name: str, arch: int) -> None:
    other = ARCH["aarch64" if name == "x86_64" else "x86_64"]
    program = Machine(name).program
    assert {verdict(program, wrong, number) for wrong in (arch, other) for number in (0, 1, 41, 200)} == {KILL}


@pytest.mark.parametrize("number", [0x40000000, 0x40000000 + 41, 0x40000000 + 512, 0xFFFFFFFF, 0x7FFFFFFF])
def test_x32_kills(number: int) -> None:
    assert verdict(Machine("x86_64").program, ARCH["x86_64"], number) == KILL


def test_what_is_refused_is_refused_with_any_arguments(machine: Machine) -> None:
    for call in seccomp._REFUSED:
        if machine.has(call):
            for arguments in ((), (1, 2, 3, 4, 5, 6), [(1 << 64) - 1] * 6):
                assert machine.says(call, *arguments) == REFUSED, call
    for call in seccomp._ABSENT:
        assert machine.says(call) == ABSENT, call


def test_ordinary_work_is_allowed(machine: Machine) -> None:
    for call in ("read", "write", "execve", "mmap", "connect", "kill", "prctl", "futex"):
        assert machine.says(call, 1, 2, 3) == ALLOW, call
    assert machine.says("clone", 0x01200011) == ALLOW  # fork
    assert machine.says("clone", 0x003D0F00) == ALLOW  # a thread
    assert machine.says("ioctl", 1, 0x5401) == ALLOW  # TCGETS
    assert machine.says("openat", 0, 0, os.O_RDONLY | os.O_CREAT, 0o644) == ALLOW


@pytest.mark.parametrize("bit", [17, 25, 26, 27, 28, 29, 30])
def test_no_namespace_is_made_by_clone(bit: int, machine: Machine) -> None:
    assert machine.says("clone", 1 << bit) == REFUSED
    assert machine.says("clone", 0x01200011 | 1 << bit | 0xFFFF << 32) == REFUSED


@pytest.mark.parametrize("command", [0x5412, 0x541C])
def test_nothing_is_typed_into_a_terminal(command: int, machine: Machine) -> None:
    assert machine.says("ioctl", 0, command) == REFUSED
    # the kernel looks at the low half only
    assert machine.says("ioctl", 0, command | 1 << 32 | 1 << 63) == REFUSED


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777, 0o4000, 0o2000, 0o107755 | 1 << 40])
def test_set_id_bits_are_refused_wherever_a_mode_is_given(mode: int, machine: Machine) -> None:
    for call, row in {**seccomp._CHMODS, **seccomp._MKNODS, "creat": seccomp._CREAT}.items():
        if machine.has(call):
            assert machine.says(call, *[0] * row[2], mode) == REFUSED, call
            assert machine.says(call, *[0] * row[2], 0o1777) == ALLOW, call
    for call, row in seccomp._OPENS.items():
        if machine.has(call):
            before = [0] * row[2]
            assert machine.says(call, *before, os.O_CREAT | os.O_WRONLY, mode) == REFUSED
            assert machine.says(call, *before, os.O_TMPFILE | os.O_RDWR, mode) == REFUSED
            # what is no mode may be anything
            assert machine.says(call, *before, os.O_RDONLY, mode) == ALLOW
            assert machine.says(call, *before, os.O_DIRECTORY, mode) == ALLOW


@pytest.mark.parametrize("kind", [0o020000, 0o060000])
def test_no_device_is_made(kind: int, machine: Machine) -> None:
    for call, row in seccomp._MKNODS.items():
        if machine.has(call):
            assert machine.says(call, *[0] * row[2], kind | 0o666) == REFUSED
            for harmless in (0, 0o100000, 0o010000, 0o140000):
                assert machine.says(call, *[0] * row[2], harmless | 0o666) == ALLOW


FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("network", [False, True])
def test_sockets(name: str, network: bool) -> None:
    machine = Machine(name, network)
    internet = ALLOW if network else REFUSED
    for family, kind, protocol in product(range(50), range(16), (0, 1, 4, 6, 12, 17, 58, 132, 136, 255, 256, 262)):
        wanted = REFUSED
        if family in (2, 10) and ((kind == 1 and protocol in (0, 6)) or (kind == 2 and protocol in (0, 1, 17, 58))):
            wanted = internet
        if family == 16 and protocol == 0:
            wanted = ALLOW
        for flags in (0, FLAGS):
            said = machine.says("socket", family, kind | flags, protocol)
            assert said == wanted, (family, kind, protocol, flags)
        assert machine.says("socket", family | 1 << 32, kind, protocol) == wanted  # an int: the low half counts


def test_a_pair_of_sockets_can_not_be_aimed_elsewhere(machine: Machine) -> None:
    for family, kind in product(range(50), range(16)):
        wanted = ALLOW if family == 1 and kind in (1, 5) else REFUSED
        assert machine.says("socketpair", family, kind | FLAGS, 0) == wanted, (family, kind)


@pytest.mark.parametrize("name", MACHINES)
def test_ipc_and_affinity_when_asked(name: str) -> None:
    free, held = Machine(name), Machine(name, ipc=False, affinity=False)
    for call in (*seccomp._IPC, *seccomp._AFFINITY):
        assert (free.says(call, 1, 2, 3), held.says(call, 1, 2, 3)) == (ALLOW, REFUSED), call


@pytest.mark.parametrize("name", MACHINES)
def test_everything_else_is_allowed(name: str) -> None:
    """No call is refused that is in no table: a wrong number would show here or in the next test."""
    machine = Machine(name, True)
    known = {numbers[MACHINES.index(name)] for numbers in Machine.NUMBERS.values()}
    others = [number for number in range(600) if number not in known]
    assert {verdict(machine.program, ARCH[name], number, 1, 2, 3) for number in others} == {ALLOW}


HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(name: str) -> None:
    header = next((Path(path) for path in HEADERS[name] if Path(path).exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed: apt install linux-libc-dev")
    found = {
        call: int(number)
        for call, number in re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    }
    checked = 0
    for call, numbers in Machine.NUMBERS.items():
        if call in found:
            assert numbers[MACHINES.index(name)] == found[call], call
            checked += 1
    assert checked > 60


def test_another_machine_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match="riscv64"):
        filter_bytes(False, machine="riscv64")


# ---------------------------------------------------------------- for real


def test_a_descriptor_reads_as_the_filter() -> None:
    program = filter_bytes(True)
    first, second = filter_fd(program), filter_fd(program)
    try:
        assert os.read(first, 1 << 16) == program
        assert os.read(second, 1 << 16) == program
        assert not os.get_inheritable(first)
    finally:
        os.close(first)
        os.close(second)


def in_thread(work: Callable[[], object], program: bytes | None) -> object:
    """What `work` gives, or the number of its OSError, in a thread bound to a filter."""
    found: list[object] = []

    def run() -> None:
        if program is not None:
            seccomp.install_on_this_thread(program)
        try:
            result = work()
            found.append("done")
            if isinstance(result, socket.socket):
                result.close()
        except OSError as error:
            found.append(error.errno)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    return found[0]


def chmod(folder: Path) -> None:
    (folder / "f").write_text("")
    os.chmod(folder / "f", 0o4755)


REAL: dict[str, Callable[[Path], object]] = {
    "unix socket": lambda _: socket.socket(socket.AF_UNIX),
    "pair of datagrams": lambda _: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].close(),
    "internet": lambda _: socket.socket(socket.AF_INET),
    "chmod": chmod,
    "create": lambda folder: os.close(os.open(folder / "g", os.O_CREAT | os.O_WRONLY, 0o2755)),
}


@pytest.mark.parametrize("name", REAL)
def test_the_kernel_holds_it(name: str, tmp_path: Path) -> None:
    assert in_thread(lambda: REAL[name](tmp_path), None) == "done"
    assert in_thread(lambda: REAL[name](tmp_path), filter_bytes(False)) == errno.EPERM


def test_other_threads_stay_free() -> None:
    in_thread(lambda: None, filter_bytes(False))
    socket.socket(socket.AF_UNIX).close()


def test_what_it_starts_is_bound_too() -> None:
    code = "import socket\ntry: socket.socket(socket.AF_UNIX)\nexcept PermissionError: print('held')"
    said: list[str] = []

    def spawn() -> None:
        said.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert in_thread(spawn, None) == "done"
    assert in_thread(spawn, filter_bytes(False)) == "done"
    assert said == ["", "held\n"]


def test_processes_and_threads_still_start() -> None:
    code = (
        "import threading as t, subprocess as s; p = t.Thread(target=print, args='x'); p.start(); p.join(); s.run('id')"
    )
    said: list[str] = []

    def spawn() -> None:
        ran = subprocess.run([sys.executable, "-uc", code], capture_output=True, text=True, check=True)
        said.append(ran.stdout)

    assert in_thread(spawn, filter_bytes(False)) == "done"
    assert said[0].startswith("x\nuid=")


def test_the_kernel_takes_every_variant() -> None:
    for network, ipc, affinity in product((False, True), repeat=3):
        assert in_thread(lambda: None, filter_bytes(network, ipc=ipc, affinity=affinity)) == "done"


def test_a_filter_that_is_none_is_refused_by_the_kernel() -> None:
    def install() -> None:
        with pytest.raises(EnvironmentFault, match="takes no system call filter"):
            seccomp.install_on_this_thread(b"\xff" * 8)

    assert in_thread(install, None) == "done"  # in a thread: no_new_privs stays for good

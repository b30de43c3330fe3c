"""The program that a canary runs inside: goes for every bait and says, guarantee by guarantee, what it got.

Runs as `python -I -S -c`: only the standard library, and little of it. Each line of its output is
`guarantee TAB why-not`, with an empty text for what held.
"""

from __future__ import annotations

from dagrun.sandbox.wall import Guarantee

TRIED: tuple[Guarantee, ...] = (
    *("fs.read", "fs.write", "fs.deny", "fs.meta", "fs.protected", "net.none", "unix", "ipc", "proc.hide"),
    *("proc.signal", "env", "fds", "tty", "caps", "kill.tree"),
)

PROGRAM = r"""
import os, sys, ctypes, _socket as S
A = dict(a.split("=", 1) for a in sys.argv[1:])
base, word, me = A["base"], A["word"], int(A["pid"])
read, write, out = base + "/project/read", base + "/project/write", base + "/outside"
libc = ctypes.CDLL(None, use_errno=True)
said = []

def can(function, *args):
    try:
        got = function(*args)
        return True if got is None else got
    except OSError:
        return False

def text(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)

def make(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))

def opened(path, flags):
    os.close(os.open(path, flags | os.O_NOCTTY | os.O_NONBLOCK))

def say(guarantee, *faults):
    said.append(guarantee + "\t" + "; ".join(why for bad, why in faults if bad))

def connect(family, kind, address):
    s = S.socket(family, kind)
    s.settimeout(1.0)
    s.connect(address)

def send(family, address):
    S.socket(family, S.SOCK_DGRAM).sendto(b"x", address)

def aim(address):
    a, b = S.socketpair(S.AF_UNIX, S.SOCK_DGRAM)
    a.sendto(b"x", address)

def stat_of(pid):
    data = can(text, "/proc/%s/stat" % pid)
    return data.rpartition(b")")[2].split()[19].decode() if data else ""

pids = [name for name in can(os.listdir, "/proc") or () if name.isdigit()]

say("fs.read",
    (can(text, out + "/secret"), "a file outside the grants was read"),
    (can(text, read + "/given") != word.encode(), "a granted file could not be read"))
say("fs.write",
    (can(make, out + "/planted"), "a file was made outside the grants"),
    (can(make, read + "/planted"), "a file was made in a folder that may only be read"),
    (can(opened, read + "/given", os.O_WRONLY), "a file that may only be read was opened for writing"),
    (not can(make, write + "/mine"), "a granted folder could not be written"))
say("fs.deny", (can(text, read + "/denied"), "a denied file was read"))
say("fs.meta",
    (can(os.stat, out + "/secret"), "size and mode of a file outside the grants were seen"),
    (can(os.listdir, out) not in (False, []), "names outside the grants were seen"),
    (can(os.utime, out + "/secret"), "a file outside the grants was given another time"))
say("fs.protected",
    (can(text, write + "/.dagrun/journal") or "journal" in (can(os.listdir, write + "/.dagrun") or ()),
     ".dagrun was seen"),
    (can(make, write + "/.git/hooks/planted"), "a git hook was made"),
    (can(os.rename, write + "/.git", write + "/moved"), "the folder above git's hooks was renamed"),
    (can(opened, write + "/flow.yaml", os.O_WRONLY), "the workflow file was opened for writing"),
    (can(make, write + "/flow.new") and can(os.rename, write + "/flow.new", write + "/flow.yaml"),
     "the workflow file was replaced"),
    (can(text, write + "/.env"), "a file with keys was read"))
say("net.none",
    (can(connect, S.AF_INET, S.SOCK_STREAM, ("127.0.0.1", int(A["port"]))), "a server of this machine was reached"),
    (can(send, S.AF_INET, ("127.0.0.1", int(A["udp"]))) and 0, ""))
say("unix",
    (can(connect, S.AF_UNIX, S.SOCK_STREAM, read + "/a/b/s"), "a socket file was reached"),
    (can(connect, S.AF_UNIX, S.SOCK_STREAM, "\0dagrun-" + word), "an abstract socket was reached"),
    (can(aim, read + "/a/b/d"), "a socket file was reached with one end of a pair"))
libc.shmat.restype = ctypes.c_ssize_t
say("ipc",
    (int(A["shm"]) >= 0 and libc.shmat(int(A["shm"]), None, 0o10000) != -1, "shared memory of others was attached"),
    (A["shm_file"] and can(text, A["shm_file"]), "/dev/shm of others was read"),
    (libc.syscall(ctypes.c_long(int(A["keyctl"])), 0, -3, 0, 0, 0) > 0, "a keyring was reached"))
say("proc.hide", (any(stat_of(p) == A["ticks"] for p in pids), "processes outside are seen"))
own = {p for p in pids if stat_of(p) not in ("", A["ticks"])}
class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
mine = ctypes.create_string_buffer(16)
local, remote = Span(ctypes.addressof(mine), 16), Span(int(A["address"]), 16)
traced = libc.process_vm_readv(me, ctypes.byref(local), ctypes.c_ulong(1), ctypes.byref(remote), ctypes.c_ulong(1),
                               ctypes.c_ulong(0))
say("proc.signal",
    (can(os.kill, me, 0) and str(me) not in own, "a process outside can be signalled"),
    (traced == 16 and mine.raw == word.encode(), "memory of a process outside was read"))
given = {b"PATH", b"LC_ALL", b"HOME", b"TMPDIR", b"PWD", b"OLDPWD", b"SHLVL", b"_"}
seen = [e for p in pids for e in (can(text, "/proc/%s/environ" % p) or b"").split(b"\0") if e]
strange = {e.partition(b"=")[0] for e in seen} - given
say("env", (any(not e.startswith(b"DAGRUN_") for e in strange), "variables of others are seen"))
say("fds", (any(can(os.fstat, fd) for fd in range(3, 1024)), "descriptors of dagrun are open"))
say("tty",
    (A["tty"] and can(opened, A["tty"], os.O_RDWR), "a terminal was opened"),
    (can(opened, "/dev/tty", os.O_RDWR), "there is a controlling terminal"))
status = dict(line.split(":", 1) for line in (can(text, "/proc/self/status") or b"").decode().splitlines())
libc.prctl.argtypes = [ctypes.c_int] + 4 * [ctypes.c_ulong]
can(os.chmod, write + "/mine", 0o6755)
say("caps",
    (int(status.get("CapEff", "0"), 16) or int(status.get("CapPrm", "0"), 16), "it has capabilities"),
    (libc.prctl(39, 0, 0, 0, 0) != 1, "new privileges can be got"),
    (libc.prctl(21, 0, 0, 0, 0) != 2, "system calls are not filtered"),
    (os.stat(write + "/mine").st_mode & 0o6000 if can(os.stat, write + "/mine") else 0, "a set-id bit was set"),
    (can(opened, "/proc/sys/kernel/hostname", os.O_WRONLY), "the settings of the kernel can be written"),
    (can(os.mknod, write + "/device", 0o020600, 0x103), "a device was made"),
    (libc.unshare(0x10000000) == 0, "a namespace was made"))
say("kill.tree")
os.write(1, ("\n".join(said) + "\n").encode())
if A["daemon"] and os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.close(2)
        import select
        select.select([], [], [], 4)
    os._exit(0)
os._exit(0)
"""

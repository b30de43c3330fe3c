"""What a container tries against its own walls, and what its answers mean.

The text runs in a real container with the mounts and options of an attempt; each line it prints is
`ok GUARANTEE` or `no GUARANTEE why`. A guarantee of which it says nothing is not proved. Pure: who
starts it is container_probe.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dagrun.sandbox.wall import GUARANTEES, Guarantee

# What the canary tries: `file_size` is the smallest that still lets it write its answers.
MEMORY_BYTES = 96 * 1024 * 1024
PIDS = 64
CPU = 0.5
FILE_SIZE_BYTES = 64 * 1024
VARIABLE = "DAGRUN_CANARY"

# $1 folder with project, outside, run; $2 a pid of this machine; $3 inodes of the namespaces outside
# (ipc net pid mnt uts cgroup); needs sh, stat, cat, chmod, mv, head.
CANARY = f"""\
base=$1 outer=$2 spaces=$3
ok() {{ echo "ok $1"; }}
no() {{ echo "no $*"; }}
try() {{ name=$1 why=$2; shift 2; if "$@"; then no "$name" "$why"; else ok "$name"; fi; }}
writes() {{ (: >"$1") 2>/dev/null; }}
sees() {{ [ -e "$base/outside" ] || [ -e "$base/run" ] || [ -e "$base/project/.dagrun/mark" ]; }}
reads() {{ read -r line <"$1" && [ -n "$line" ]; }} 2>/dev/null
try fs.read "a file outside of the grants can be read" reads "$base/outside/mark"
try fs.meta "files outside of the grants can be seen" sees
try fs.deny "a denied file can be read" reads "$base/project/denied"
if writes "$base/project/new" || writes /dagrun-canary; then no fs.write "a read-only folder can be written"
elif ! writes "$base/project/out/new"; then no fs.write "a granted folder can't be written by the container's user"
else ok fs.write; fi
out=$base/project/out
plants() {{ writes "$out/repo/hooks/mark" || mv "$out/repo" "$out/old"; }} 2>/dev/null
try fs.protected "a protected file can be written or moved away" plants
shared() {{
    for kind in "$@"; do
        here=$(stat -L -c %i "/proc/self/ns/$kind" 2>/dev/null) || return 0
        case " $spaces " in *" $here "*) return 0 ;; esac
    done
    return 1
}}
links() {{
    while IFS=: read -r link rest; do
        case $link in *lo | *"|"*) ;; *) return 0 ;; esac
    done </proc/net/dev
    return 1
}}
reaches() {{ shared net || links; }}
try net.none "it has a network" reaches
signals() {{ shared pid || kill -0 "$outer"; }} 2>/dev/null
try ipc "it shares System V IPC" shared ipc
try proc.hide "it sees other processes" shared pid
try proc.signal "it can signal other processes" signals
try kill.tree "it has no process tree of its own" shared pid
terminal() {{ (: </dev/tty) 2>/dev/null; }}
try tty "it has a terminal" terminal
inherits() {{ for fd in /proc/self/fd/*; do case ${{fd##*/}} in [0-3]) ;; *) return 0 ;; esac; done; return 1; }}
try fds "it inherited descriptors" inherits
caps= bound= privileges= filter=
while read -r key value rest; do
    case $key in
        CapEff:) caps=$value ;; CapBnd:) bound=$value ;; NoNewPrivs:) privileges=$value ;; Seccomp:) filter=$value ;;
    esac
done </proc/self/status
: >/tmp/mark
setid() {{ chmod 4755 /tmp/mark; }} 2>/dev/null
strong() {{ [ "$caps$bound$privileges" != 000000000000000000000000000000001 ] || [ "$(id -u)" = 0 ] || setid; }}
try caps "it has capabilities, is root, or may make set-id files" strong
# The same filter that refuses set-id bits refuses Unix sockets.
filtered() {{ [ "$filter" != 2 ] || setid || shared net; }}
try unix "its system calls are not filtered" filtered
value() {{ for file in "$@"; do [ ! -r "/sys/fs/cgroup/$file" ] || {{ cat "/sys/fs/cgroup/$file"; return; }}; done; }}
unlimited() {{ [ "$(value "$2" "$3")" != "$1" ]; }}
try mem "no memory limit was set" unlimited {MEMORY_BYTES} memory.max memory/memory.limit_in_bytes
try pids "no limit of processes was set" unlimited {PIDS + 2} pids.max pids/pids.max
case $(value cpu.max cpu/cpu.cfs_quota_us) in
    {int(CPU * 100000)}*) ok cpu ;; *) no cpu "no limit of cpu was set" ;;
esac
(head -c {FILE_SIZE_BYTES * 2} /dev/zero >"$out/big") 2>/dev/null
big() {{ [ "$(stat -c %s "$out/big")" != {FILE_SIZE_BYTES} ]; }} 2>/dev/null
try fsize "a file can grow beyond its limit" big
cat /proc/1/environ /proc/self/environ | tr '\\0' '\\n' | while IFS= read -r line; do echo "env $line"; done
echo end
"""
_LISTS = "a list of hosts is held only in an image with a shell, which waits there until it is"
# What the engine, sh and the image put there.
_USUAL = frozenset("PATH HOME TMPDIR HOSTNAME TERM PWD OLDPWD SHLVL _ container TINI_KILL_PROCESS_GROUP".split())


def judged(answers: str, known_variables: Iterable[str]) -> dict[Guarantee, str]:
    """Each guarantee → "" or why not, from what the canary printed."""
    lines = answers.splitlines()
    if "end" not in lines:
        return dict.fromkeys(GUARANTEES, "the test container did not get to its end")
    said: dict[str, str] = {}
    for line in lines:
        verdict, _, rest = line.partition(" ")
        name, _, why = rest.partition(" ")
        if verdict in ("ok", "no"):
            said[name] = "" if verdict == "ok" else why
    said["env"] = _strangers(lines, {*known_variables, *_USUAL, VARIABLE})
    said["net.allowlist"] = _LISTS
    return {name: said.get(name, "not tried") for name in GUARANTEES}


def _strangers(lines: list[str], known: set[str]) -> str:
    found = {line[4:].partition("=")[0] for line in lines if line.startswith("env ") and "=" in line}
    if VARIABLE not in found:
        return "the given environment does not arrive"
    strange = sorted(found - known)
    return f"it has variables that nobody gave it: {', '.join(strange[:5])}" if strange else ""


def claimed(config: Mapping[str, object]) -> dict[Guarantee, str]:
    """The same from what the engine says it applied (HostConfig), for images without a shell."""

    def says(key: str, *values: object) -> bool:
        return config.get(key) in values

    options = config.get("SecurityOpt") or []
    listed = options if isinstance(options, list) else []
    seccomp = any(str(option).startswith("seccomp=") and "SCMP_ACT_ERRNO" in str(option) for option in listed)
    privileges = any(str(option).startswith("no-new-privileges") for option in listed)
    own = says("PidMode", "", "private") and says("Privileged", False)
    files = says("ReadonlyRootfs", True) and not config.get("Binds") and not config.get("VolumesFrom")
    caps = says("CapDrop", ["ALL"], ["CAP_ALL"]) and not config.get("CapAdd") and says("Privileged", False)
    held: dict[Guarantee, bool] = {
        "fs.read": files and own,
        "fs.write": files,
        "fs.deny": files,
        "fs.meta": files,
        "fs.protected": files,
        "net.none": says("NetworkMode", "none"),
        "unix": seccomp and says("NetworkMode", "none"),
        "ipc": says("IpcMode", "private"),
        "proc.hide": own,
        "proc.signal": own,
        "env": files,
        "fds": own,
        "tty": own,
        "caps": caps and privileges and seccomp,
        "kill.tree": own,
        "mem": says("Memory", MEMORY_BYTES) and says("MemorySwap", MEMORY_BYTES),
        "pids": says("PidsLimit", PIDS + 1, PIDS + 2),
        "cpu": says("NanoCpus", int(CPU * 1e9)),
        "fsize": any(isinstance(u, dict) and u.get("Name") == "fsize" for u in _list(config.get("Ulimits"))),
    }
    found: dict[Guarantee, str] = {name: "" if held.get(name) else "the engine does not say so" for name in GUARANTEES}
    found["net.allowlist"] = _LISTS
    return found


def _list(found: object) -> list[object]:
    return found if isinstance(found, list) else []

"""The shell texts around a container: what starts it outside, what looks before the command inside.

Pure text; who fills in the parameters is container_line.py, who reads what they wrote is
container_end.py. POSIX sh with `timeout` outside; inside, sh and `stat` of the image.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dagrun.sandbox.netproxy_later import ASK, SAID

# Says of a container how it ended; `|` parts, the error comes last since it may hold anything.
STATE_FORMAT = "{{.State.Status}}|{{.State.ExitCode}}|{{.State.OOMKilled}}|{{.State.StartedAt}}|{{.State.Error}}"
NO_MORE = "dagrun: its limit of processes and threads was reached"
REPLACED = "dagrun: a granted path was replaced while the container started"
SECRET_FILE = "/run/dagrun.env"
# Named pipes in the folder of a container that is held to a list of hosts: it says that it is up, and
# is told to go on. Inside they lie beside SECRET_FILE.
UP, GO = "up", "go"
INSIDE = {UP: "/run/dagrun.up", GO: "/run/dagrun.go"}

# $1 command of the engine, $2 folder of this container (out of its reach), $3 its name,
# $4 `timeout`, $5 image to get first or "", $6 how to remove, $7 settings folder for all but the
# pull; the rest are the arguments of `run`. Its exit code is that of `run`.
WRAPPER = f"""\
cli=$1 folder=$2 name=$3 limit=$4 pull=$5 remove=$6 config=$7
shift 7
ask() {{ "$limit" -s KILL 10 "$cli" "$@"; }}
if [ -n "$pull" ] && ! ask image inspect "$pull" >/dev/null 2>&1; then
    : >"$folder/pulling"
    "$cli" pull "$pull" >/dev/null 2>"$folder/refused" </dev/null || exit 125
    rm -f "$folder/pulling"
fi
pid_of() {{ ask container inspect --format '{{{{.State.Pid}}}}' "$name" 2>/dev/null; }}
# Only once a container is up is it known which process a door to the network is for; its command waits.
door() {{
    read -r up <"$folder/{UP}" || return
    pid=$(pid_of)
    "$limit" -s KILL 10 sh -c 'echo "$1" >"$2"' sh "$pid" "$folder/{ASK}"
    said=$("$limit" -s KILL 10 head -n 1 "$folder/{SAID}")
    # Still the same process: so its network it was, all the time.
    [ "$said" != ok ] || [ "$(pid_of)" = "$pid" ] || said="the container is gone"
    if [ "$said" = ok ]; then echo go >"$folder/{GO}"; return; fi
    echo "${{said:-no answer}}" >"$folder/shut"
    ask $remove "$name" >/dev/null 2>&1 </dev/null
}}
if [ -n "$config" ]; then unset DOCKER_CONTEXT; export DOCKER_HOST="${{config%%|*}}" DOCKER_CONFIG="${{config#*|}}"; fi
[ ! -e "$folder/killed" ] || exit 137
door=
[ ! -p "$folder/{UP}" ] || {{ door & door=$!; }}
"$cli" run "$@"
code=$?
[ -z "$door" ] || kill "$door" 2>/dev/null
if [ "$code" -ne 0 ] && [ ! -e "$folder/killed" ]; then
    [ ! -f "/proc/$$/fd/2" ] || tail -c 500 "/proc/$$/fd/2" >"$folder/tail"
    tries=0
    until ask container inspect --format '{STATE_FORMAT}' "$name" >"$folder/end" 2>"$folder/fault"; do
        case $(cat "$folder/fault") in *[Nn]"o such"*) break ;; esac
        tries=$((tries + 1))
        [ "$tries" -lt 5 ] || break
        sleep 1
    done
    # It was never made: the engine says why once more, apart from the output of the command.
    case $code/$tries/$(cat "$folder/end") in
        125/0/*"|"*) ;;
        125/0/*) ask create "$@" >/dev/null 2>"$folder/refused" </dev/null ;;
    esac
fi
tries=0
until ask $remove "$name" >/dev/null 2>"$folder/left" </dev/null; do
    case $(cat "$folder/left") in
        *[Nn]"o such"*) break ;;
        *"in progress"*) sleep 0.1 ;; # somebody else removes it: wait until it is gone
        *) exit "$code" ;;
    esac
    tries=$((tries + 1))
    [ "$tries" -lt 50 ] || exit "$code"
done
: >"$folder/removed"
exit "$code"
"""


# What the user of the container can't look at says nothing here, and gives nothing away later.
_SAME = """\
stat -c %d:%i:%n -- {paths} 2>/dev/null | while IFS= read -r found; do
    case {wanted} in *"
$found
"*) ;; *) exit 1 ;; esac
done || {{ echo "{replaced}" >&2; exit 125; }}"""


# A name that begins with a dash would be an option; not every sh knows `--` here.
_BECOME = 'case $1 in -*) exec -- "$@" ;; *) exec "$@" ;; esac'
# The kernel counts what could not be started, and forgets it when the container is gone: so somebody
# inside has to look, who outlives the command. Its traps are not the command's.
_COUNTED = f"""\
trap : TERM INT HUP
( {_BECOME} )
code=$?
[ "$code" -ne 0 ] || exit 0
for file in /sys/fs/cgroup/pids.events /sys/fs/cgroup/pids/pids.events; do
    [ ! -r "$file" ] || while read -r key count; do
        case $key/$count in max/0) ;; max/*) echo "{NO_MORE}" >&2 ;; esac
    done <"$file"
done
exit $code"""


def gate(
    identities: Sequence[tuple[str, tuple[int, int]]],
    *,
    secrets: bool,
    counted: bool = False,
    waits: bool = False,
    hush: Sequence[str] = (),
) -> str:
    """What runs inside before the command, in its place: are the mounts those that were checked?

    `identities` are paths with the device and inode they must have; `secrets` reads the variables
    in SECRET_FILE; `waits` for its door to the network; `counted`: it stays, and says NO_MORE when a
    command failed that could not start as many processes as it wanted; `hush` are variables that the
    command need not see.
    """
    lines = []
    if identities:
        paths = " ".join(shlex.quote(path) for path, _ in identities)
        wanted = shlex.quote("\n".join(["", *[f"{dev}:{inode}:{path}" for path, (dev, inode) in identities], ""]))
        lines.append(_SAME.format(paths=paths, wanted=wanted, replaced=REPLACED))
    if waits:
        lines.append(f'echo up >{INSIDE[UP]} && read -r said <{INSIDE[GO]} && [ "$said" = go ] || exit 125')
    if secrets:
        lines.append(f". {SECRET_FILE} || exit 125")
    lines += [f"unset {name}" for name in hush]
    lines.append(_COUNTED if counted else _BECOME)
    return "\n".join(lines)


def exports(values: Sequence[tuple[str, str]]) -> str:
    """Variables as a text that sh reads, whatever their values hold."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values)

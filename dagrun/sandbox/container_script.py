"""The shell texts around a container: what starts it outside, what looks before the command inside.

Pure text; who fills in the parameters is container_line.py, who reads what they wrote is
container_end.py. POSIX sh with `timeout` outside; inside, sh and `stat` of the image.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

# Says of a container how it ended; `|` parts, the error comes last since it may hold anything.
STATE_FORMAT = "{{.State.Status}}|{{.State.ExitCode}}|{{.State.OOMKilled}}|{{.State.StartedAt}}|{{.State.Error}}"
REPLACED = "dagrun: a granted path was replaced while the container started"
SECRET_FILE = "/run/dagrun.env"

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
if [ -n "$config" ]; then unset DOCKER_CONTEXT; export DOCKER_HOST="${{config%%|*}}" DOCKER_CONFIG="${{config#*|}}"; fi
[ ! -e "$folder/killed" ] || exit 137
"$cli" run "$@"
code=$?
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


def gate(identities: Sequence[tuple[str, tuple[int, int]]], *, secrets: bool, hush: Sequence[str] = ()) -> str:
    """What runs inside before the command, in its place: are the mounts those that were checked?

    `identities` are paths with the device and inode they must have; `secrets` reads the variables
    in SECRET_FILE; `hush` are variables that the command need not see.
    """
    lines = []
    if identities:
        paths = " ".join(shlex.quote(path) for path, _ in identities)
        wanted = shlex.quote("\n".join(["", *[f"{dev}:{inode}:{path}" for path, (dev, inode) in identities], ""]))
        lines.append(_SAME.format(paths=paths, wanted=wanted, replaced=REPLACED))
    if secrets:
        lines.append(f". {SECRET_FILE} || exit 125")
    lines += [f"unset {name}" for name in hush]
    # A name that begins with a dash would be an option; not every sh knows `--` here.
    lines.append('case $1 in -*) exec -- "$@" ;; *) exec "$@" ;; esac')
    return "\n".join(lines)


def exports(values: Sequence[tuple[str, str]]) -> str:
    """Variables as a text that sh reads, whatever their values hold."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values)

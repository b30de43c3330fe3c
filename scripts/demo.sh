#!/bin/sh
# Runs workflows/demo.yaml in build/demo, held as well as this machine can, and says which of these it was:
# as the workflow asks; by Landlock, which holds less, and without bubblewrap; or played from its recording.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
rm -rf "$root/build/demo"
mkdir -p "$root/build/demo"
cd "$root/build/demo"

flow=../../workflows/demo.yaml
landlock=fs.meta,fs.protected,proc.hide
dagrun() { "$root/scripts/python.sh" -m dagrun "$@"; }
held() { # exit code 8: this machine can't; any other trouble is shown
    said=$(dagrun execute "$flow" --dry-run -q "$@" 2>&1 >/dev/null) && return
    code=$?
    if [ "$code" != 8 ]; then
        printf '%s\n' "$said" >&2
        exit "$code"
    fi
    return 1
}

if held; then
    set --
elif held --accept-missing "$landlock"; then
    set -- --accept-missing "$landlock"
    echo "note: bubblewrap is not here (apt install bubblewrap): the agents that write are held by Landlock, which" >&2
    echo "      holds less" >&2
else
    set -- --replay ../../workflows/records/demo.jsonl
    echo "note: nothing here can hold an agent that writes (apt install bubblewrap): this is a recorded run, played" >&2
    echo "      again; no command runs, and no file is changed" >&2
fi

echo "\$ dagrun execute workflows/demo.yaml${*:+ $*}" >&2
code=0
dagrun execute "$flow" "$@" || code=$?
if [ "$code" != 0 ]; then exit "$code"; fi

bin=.venv/bin
if [ ! -x "$root/$bin/dagrun" ]; then bin=.deps/bin; fi
cat >&2 <<TEXT

What the models said came from workflows/rules/demo.yaml. Where to look next:
  cd build/demo; PATH=$root/$bin:\$PATH
  dagrun trace show                 what each node did, and what it cost
  dagrun trace show --node repair   why it failed: its calls, its tools
  dagrun replan history             how the plan was changed, and by whom
  dagrun audit                      where each byte shown to a model came from
  dagrun execute $flow --replay last   without any model
TEXT

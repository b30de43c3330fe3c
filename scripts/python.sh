#!/bin/sh
# The Python that scripts/install.sh set up, with dagrun and its tools importable.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
if [ -x "$root/.venv/bin/python" ]; then
    exec "$root/.venv/bin/python" "$@"
fi
if [ ! -f "$root/.deps/.python" ]; then
    echo "error: nothing is installed yet" >&2
    echo "  help: make install" >&2
    exit 1
fi
PYTHONPATH="$root:$root/.deps${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec "$(cat "$root/.deps/.python")" "$@"

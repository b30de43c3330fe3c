#!/bin/sh
# Adds what live agents need (litellm, 300 MB) to what scripts/install.sh has set up; only the tests need it.
# Does nothing when that was done for this lock and this installation.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

folder=.venv
if [ ! -x .venv/bin/python ]; then folder=.deps; fi
key="$(cksum <requirements-llm.lock) $(cksum <"$folder/.stamp")"
if [ -f "$folder/.stamp-llm" ] && [ "$(cat "$folder/.stamp-llm")" = "$key" ]; then exit 0; fi

log=build/install.log
mkdir -p build
echo "installing litellm into $folder for the tests (once, about 30 s)" >&2
if [ "$folder" = .venv ]; then
    set -- .venv/bin/python -m pip install -q -r requirements-llm.lock
else
    set -- "$(cat .deps/.python)" -m pip install -q --target .deps -r requirements-llm.lock
fi
if ! "$@" >>"$log" 2>&1; then
    echo "error: pip install failed; the last lines of $log:" >&2
    tail -n 15 "$log" >&2
    exit 1
fi
printf '%s\n' "$key" >"$folder/.stamp-llm"

#!/bin/sh
# Puts dagrun and its tools into .venv, or into .deps where this machine cannot make one.
# Does nothing when that was done for this lock, this interpreter and this folder.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

# A folder that was moved or copied has scripts that point to the old place: the place is part of the key.
key="$(cksum <requirements.lock) $(cksum <pyproject.toml) $root"

installed() {
    [ -f "$1/.stamp" ] && [ -x "$1/bin/dagrun" ] || return 1
    { IFS= read -r stamped && IFS= read -r by; } <"$1/.stamp" || return 1
    [ "$stamped" = "$key" ] && [ "${PYTHON:-$by}" = "$by" ]
}
if installed .venv && [ -x .venv/bin/python ]; then exit 0; fi
if installed .deps; then exit 0; fi

# A name on PATH proves nothing (pyenv puts one there for every version it has heard of): each is asked.
find_python() {
    for name in ${PYTHON:+"$PYTHON"} python3.14 python3.13 python3.12 python3.11 python3 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return
        fi
        if [ "$name" = "${PYTHON:-}" ]; then return; fi
    done
}

python=$(find_python)
if [ -z "$python" ]; then
    if [ -n "${PYTHON:-}" ]; then
        echo "error: PYTHON=$PYTHON is not Python 3.11 or newer" >&2
    else
        echo "error: no Python 3.11 or newer on PATH" >&2
    fi
    case "$(uname -s)" in
        Darwin) echo "  help: brew install python3" >&2 ;;
        *) echo "  help: sudo apt-get install -y python3 python3-venv    (or: make PYTHON=/path/to/python3.12)" >&2 ;;
    esac
    exit 1
fi

log=build/install.log
mkdir -p build
explain() {
    echo "error: $1 failed; the last lines of $log:" >&2
    tail -n 15 "$log" >&2
    exit 1
}

version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
rm -rf .venv .deps
if "$python" -c 'import ensurepip, venv' 2>/dev/null && "$python" -m venv .venv >"$log" 2>&1; then
    echo "installing into .venv with Python $version (once, about 20 s)" >&2
    .venv/bin/python -m pip install -q -r requirements.lock >>"$log" 2>&1 || explain "pip install"
    # The build tools are in the lock, so this downloads nothing.
    .venv/bin/python -m pip install -q --no-deps --no-build-isolation -e . >>"$log" 2>&1 || explain "pip install -e ."
    printf '%s\n' "$key" "$python" >.venv/.stamp
elif "$python" -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    echo "installing into .deps with Python $version (it has no venv; once, about 20 s)" >&2
    "$python" -m pip install -q --target .deps -r requirements.lock >"$log" 2>&1 || explain "pip install --target .deps"
    mkdir -p .deps/bin
    "$python" -c 'import sys; print(sys.executable)' >.deps/.python
    printf '#!/bin/sh\nexec "$(dirname -- "$0")/../../scripts/python.sh" -m dagrun "$@"\n' >.deps/bin/dagrun
    chmod +x .deps/bin/dagrun
    printf '%s\n' "$key" "$python" >.deps/.stamp
else
    rm -rf .venv
    echo "error: $python has neither venv nor pip" >&2
    echo "  help: sudo apt-get install -y python3-venv" >&2
    exit 1
fi

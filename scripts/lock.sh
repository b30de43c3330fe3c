#!/bin/sh
# Renews requirements.lock: what `pip install '.[dev]'` brings into an empty environment today.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check '.[dev]'
{
    echo "# Everything that \`make\` installs, pinned. Renewed by \`make lock\`; litellm (the extra \`llm\`) is left out."
    "$folder/venv/bin/python" -m pip freeze --exclude dagrun
} >"$folder/lock"
cp "$folder/lock" requirements.lock
git --no-pager diff --stat -- requirements.lock 2>/dev/null || true

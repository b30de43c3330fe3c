#!/bin/sh
# Renews requirements.lock, what `pip install '.[dev]'` brings into an empty environment today, and
# requirements-llm.lock, what the extra `llm` adds to that.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check '.[dev]'
{
    echo "# Everything that \`make\` installs, pinned. Renewed by \`make lock\`; see requirements-llm.lock for litellm."
    "$folder/venv/bin/python" -m pip freeze --exclude dagrun
} >"$folder/lock"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check '.[dev,llm]' -c "$folder/lock"
{
    echo "# What live agents add (the extra \`llm\`), pinned: 300 MB that only the tests need. Renewed by \`make lock\`."
    "$folder/venv/bin/python" -m pip freeze --exclude dagrun | grep -v -x -F -f "$folder/lock"
} >"$folder/lock-llm"
cp "$folder/lock" requirements.lock
cp "$folder/lock-llm" requirements-llm.lock
git --no-pager diff --stat -- requirements.lock requirements-llm.lock 2>/dev/null || true

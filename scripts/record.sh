#!/bin/sh
# Makes the recorded runs of workflows/records/ anew, which is due when prompts, tools or their words change.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -R "$root/workflows" "$folder/"
cd "$folder"
for record in workflows/records/*.jsonl; do
    name=$(basename "$record" .jsonl)
    "$root/scripts/python.sh" -m dagrun execute "workflows/$name.yaml" --ui quiet
    "$root/scripts/python.sh" -m dagrun export --record "$root/workflows/records/$name.jsonl"
done

#!/bin/sh
# Prints the folder of every Go module of the repository, the root first.
set -eu
cd "$(dirname "$0")/.."
git ls-files --cached --others --exclude-standard -- 'go.mod' '**/go.mod' | sed -e 's|/*go\.mod$||' -e 's|^$|.|' | sort -u

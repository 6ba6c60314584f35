#!/bin/sh
# Checks formatting and runs go vet over every module.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}

unformatted=$(git ls-files --cached --others --exclude-standard -- '*.go' | while read -r f; do [ ! -e "$f" ] || gofmt -l "$f"; done)
if [ -n "$unformatted" ]; then
	echo "vet: not formatted with gofmt:" >&2
	echo "$unformatted" >&2
	exit 1
fi
for module in $(scripts/modules.sh); do
	echo "vet: $module"
	(cd "$module" && "$go" vet -trimpath -tags "${TAGS:-}" ./...)
done

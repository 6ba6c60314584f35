#!/bin/sh
# Runs the unit tests of every module; then, under the race detector, those of the packages that are
# concurrent and light. Under it the packages that link Kubernetes would take ten minutes to compile.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
light="./store/... ./agent/dns/... ./logging/... ./datadir/..."

for module in $(scripts/modules.sh); do
	echo "unit: $module"
	(cd "$module" && "$go" test -trimpath -tags "${TAGS:-}" ./...)
done
echo "unit: under the race detector: $light"
# shellcheck disable=SC2086
"$go" test -race -tags "${TAGS:-}" $light

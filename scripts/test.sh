#!/bin/sh
# Everything that must hold before a change lands, cheapest first. Prints how long each step took.
set -eu
cd "$(dirname "$0")/.."

step() {
	echo "=== $1"
	begin=$(date +%s)
	shift
	"$@"
	echo "=== done in $(($(date +%s) - begin)) s"
}

# The bundle first: the packages that embed it do not compile without it.
step "bundle" make --no-print-directory bundle
step "build" make --no-print-directory build
step "vet" make --no-print-directory vet
step "unit tests" make --no-print-directory unit
if [ "$(id -u)" = 0 ]; then
	step "end-to-end tests" make --no-print-directory e2e
else
	echo "=== end-to-end tests left out: they need root" >&2
fi

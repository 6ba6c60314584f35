#!/bin/sh
# Runs the end-to-end tests against bin/mote. RUN picks some by regular expression, as in RUN=TestCluster/Parallel/DNS.
# Needs root; everything happens in namespaces of its own, see test/e2e/sandbox.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
tools=$(pwd)/build/tools
mkdir -p "$tools" bin/reports/e2e

if [ "$(id -u)" != 0 ]; then
	echo "e2e: must be root to make namespaces" >&2
	exit 1
fi
echo "e2e: building helm and the tests"
(
	cd test/e2e
	CGO_ENABLED=0 "$go" build -trimpath -tags "${TAGS:-osusergo,netgo}" -ldflags "-s -w" -o "$tools/helm" helm.sh/helm/v3/cmd/helm
	"$go" test -trimpath -tags "${TAGS:-osusergo,netgo}" -c -o "$tools/e2e.test" .
	"$go" test -trimpath -c -o "$tools/sandbox.test" ./sandbox
)
cd test/e2e/sandbox
"$tools/sandbox.test" -root
cd ..
exec "$tools/e2e.test" -test.v -test.timeout 30m -test.parallel "${PARALLEL:-6}" -test.run "${RUN:-.}" \
	-mote ../../bin/mote -helm "$tools/helm" -images ../../bin/images -artifacts ../../bin/reports/e2e

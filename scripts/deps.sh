#!/bin/sh
# Installs what a build and the tests need from the distribution, where that is Debian's.
# Elsewhere it only says what is missing: guessing at other package managers would be worse.
set -eu

packages="gcc libc6-dev make git pkg-config libseccomp-dev nftables iptables iproute2 conntrack busybox-static curl ca-certificates jq"

if ! command -v apt-get >/dev/null 2>&1; then
	echo "deps: no apt-get here; install by hand what is missing of: $packages" >&2
	exit 0
fi

missing=""
for p in $packages; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
if [ -z "$missing" ]; then
	exit 0
fi
if [ "$(id -u)" != 0 ]; then
	echo "deps: not root; run: apt-get install$missing" >&2
	exit 1
fi
echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# Word splitting is meant: one argument a package.
# shellcheck disable=SC2086
apt-get install -q -y --no-install-recommends $missing

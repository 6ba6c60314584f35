#!/bin/sh
# Removes what was built, and what a killed test run left: its folders and its cgroups, once no process is in them.
set -eu
cd "$(dirname "$0")/.."
rm -rf bin build
for dir in /tmp/mote-e2e-*; do
	pid=${dir##*-}
	if [ -d "$dir" ] && [ ! -d "/proc/$pid" ]; then
		rm -rf --one-file-system "$dir"
	fi
done
find /sys/fs/cgroup -depth -type d -path '*/mote-e2e-*' 2>/dev/null | while read -r dir; do
	rmdir "$dir" 2>/dev/null || true
done

#!/bin/sh
# Installs a built mote as a service (systemd or OpenRC), or removes it again.
#
#   scripts/install.sh [BINARY]     install BINARY (default bin/mote) and start the service
#   scripts/install.sh --agent [BINARY]
#                                   the same for a machine that joins a server; server and token are
#                                   read from /etc/mote/config.yaml
#   scripts/install.sh --remove     stop the service, remove its unit file and the executable
#
# The cluster's data is not removed: that is `mote uninstall --yes`, before --remove.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=/usr/local/bin/mote
systemd_unit=/etc/systemd/system/mote.service
openrc_unit=/etc/init.d/mote

fail() {
	echo "install: $*" >&2
	exit 1
}

# What runs services here: systemd, openrc or none.
init_system() {
	if [ -d /run/systemd/system ]; then
		echo systemd
	elif command -v rc-service >/dev/null 2>&1; then
		echo openrc
	else
		echo none
	fi
}

install_mote() {
	role=$1
	binary=$2
	unit=mote
	if [ "$role" = agent ]; then
		unit=mote-agent
		[ -d /var/lib/mote/agent/pki ] || grep -qs '^server:' /etc/mote/config.yaml /etc/mote/config.yaml.d/*.yaml ||
			fail "/etc/mote/config.yaml names no server: write server: https://HOST:6443 and token: into it"
	fi
	[ -f "$binary" ] || fail "$binary is not there: run make build"
	check=check
	[ "$role" = server ] || check="check --agent"
	# shellcheck disable=SC2086 # two words
	"$binary" $check >/dev/null || fail "this host cannot run mote yet: run $binary $check"
	# Beside and renamed: a running executable cannot be written to.
	install -D -m 0755 "$binary" "$target.new"
	mv -f "$target.new" "$target"
	case $(init_system) in
	systemd)
		# One unit under one name: a machine is either.
		install -D -m 0644 "$here/service/$unit.service" "$systemd_unit"
		systemctl daemon-reload
		systemctl enable mote.service
		# Pods run on through a restart.
		systemctl restart mote.service
		echo "install: mote runs as a service: systemctl status mote, journalctl -u mote"
		;;
	openrc)
		install -D -m 0755 "$here/service/$unit.openrc" "$openrc_unit"
		rc-update add mote default
		rc-service mote restart
		echo "install: mote runs as a service: rc-service mote status, /var/log/mote.log"
		;;
	none)
		echo "install: neither systemd nor OpenRC runs here: start it with $target $role"
		;;
	esac
}

remove_mote() {
	case $(init_system) in
	systemd)
		if [ -f "$systemd_unit" ]; then
			systemctl disable --now mote.service
			rm -f "$systemd_unit"
			systemctl daemon-reload
		fi
		;;
	openrc)
		if [ -f "$openrc_unit" ]; then
			rc-service --ifstarted mote stop
			rc-update del mote default
			rm -f "$openrc_unit" /var/log/mote.log
		fi
		;;
	none) ;;
	esac
	rm -f "$target"
	if [ -d /var/lib/mote ]; then
		echo "install: the cluster's data is still in /var/lib/mote"
	fi
}

[ "$(id -u)" = 0 ] || fail "not running as root: use sudo"
case ${1:-} in
--remove) remove_mote ;;
--agent) install_mote agent "${2:-$here/../bin/mote}" ;;
-*) fail "unknown flag $1: the flags are --agent and --remove" ;;
*) install_mote server "${1:-$here/../bin/mote}" ;;
esac

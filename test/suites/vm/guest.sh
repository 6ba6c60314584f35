#!/bin/bash
# What scripts/e2e-vm runs in the machine, a step by name: mote as a service of systemd, with cgroups of version 2, as on most hosts.
set -euo pipefail
cd /opt/mote
DRIVER=${2:-} # of cgroups, if it is not mote's own choice

fail() {
	echo "e2e-vm: $*" >&2
	journalctl -u mote -b -o cat --no-pager 2>/dev/null | tail -n 40 >&2
	exit 1
}

# eventually SECONDS WHAT COMMAND...: the command must succeed in that time.
eventually() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/tmp/said 2>&1; do
		((SECONDS < end)) || fail "$what: not in time: $(cat /tmp/said)"
		sleep 1
	done
	echo "  $what"
}

# has COMMAND... -- TEXT: what the command prints has the text.
has() {
	local command=()
	while [ "$1" != -- ]; do
		command+=("$1")
		shift
	done
	"${command[@]}" | grep -- "$2" >/dev/null # not -q: the command would be told that nobody reads on
}

kubectl() { mote kubectl "$@"; }
node_ready() { has kubectl get nodes -- ' Ready '; }
pods_up() {
	has kubectl get pod limited -- ' 1/1 .* Running' &&
		[ "$(kubectl -n shop get deployment web -o 'jsonpath={.status.readyReplicas}')" = 2 ] &&
		[ "$(kubectl -n shop get statefulset ledger -o 'jsonpath={.status.readyReplicas}')" = 2 ]
}
limited() { [ "$(kubectl exec limited -- cat /sys/fs/cgroup/memory.max)" = 67108864 ]; }
shop_answers() { has curl -s --max-time 20 http://10.0.2.15:30080 -- 'Welcome to the shop'; }

install_mote() {
	bin/mote check || fail "a check of the host fails"
	if [ -n "$DRIVER" ]; then
		install -D -m 0600 /dev/stdin /etc/mote/config.yaml <<<"kubelet-arg: [cgroup-driver=$DRIVER]"
	fi
	sh scripts/install.sh
	eventually 300 "node ready" node_ready
	[ "$(systemctl is-active mote)" = active ] || fail "the service is $(systemctl is-active mote)"
}

pods() {
	mote image import images/shop-1.0.tar images/shop-2.0.tar images/busybox.tar
	kubectl apply -k examples/shop/deploy
	kubectl apply -f - <<-'Y'
		apiVersion: v1
		kind: Pod
		metadata: {name: limited}
		spec:
		  containers:
		  - name: c
		    image: busybox:1.36
		    imagePullPolicy: IfNotPresent
		    command: [sleep, "100000"]
		    resources: {limits: {memory: 64Mi, cpu: 300m}}
		---
		apiVersion: v1
		kind: Pod
		metadata: {name: hungry}
		spec:
		  restartPolicy: Never
		  containers:
		  - name: c
		    image: busybox:1.36
		    imagePullPolicy: IfNotPresent
		    command: [dd, if=/dev/zero, of=/dev/null, bs=200M, count=1]
		    resources: {limits: {memory: 20Mi}}
	Y
	eventually 300 "pods ready" pods_up
	eventually 300 "the shop answers" shop_answers
	limited || fail "the limit of memory is not set"
	[ "$(kubectl exec limited -- cat /sys/fs/cgroup/cpu.max)" = "30000 100000" ] || fail "the limit of CPU is not set"
	if [ -z "$DRIVER" ]; then # with systemd that may not be known, see docs/runtime.md
		eventually 120 "killed for its memory" has kubectl get pod hungry -- OOMKilled
	fi
	if [ -n "$DRIVER" ] && [ ! -d /sys/fs/cgroup/kubepods.slice ]; then
		fail "systemd does not make the pods' cgroups"
	fi
	has kubectl get --raw /api/v1/nodes/kitchen/proxy/metrics/cadvisor -- 'container_memory_working_set_bytes.*shop' || fail "no metrics of containers"
}

# Pods outlive the service, and systemd's reading its files anew.
restart() {
	local before
	before=$(pgrep -f '^sleep 100000')
	systemctl daemon-reload
	systemctl restart mote
	eventually 300 "node ready again" node_ready
	eventually 120 "pods ready" pods_up
	[ "$(pgrep -f '^sleep 100000')" = "$before" ] || fail "the pod was replaced"
	# A kubelet needs a moment to know its pods again.
	eventually 60 "the limit of memory is kept" limited
}

# The next step comes after a power cut.
last_word() { kubectl create configmap last-word --from-literal=said=yes; }

back() {
	eventually 300 "node ready again" node_ready
	eventually 300 "pods ready" pods_up
	eventually 300 "the shop answers" shop_answers
	kubectl get configmap last-word
}

uninstall() {
	systemctl stop mote
	[ "$(pgrep -c containerd-shim)" -gt 0 ] || fail "the pods ended with the service"
	# While the service runs: systemd must not start a new cluster in the middle, or later.
	systemctl start mote
	mote uninstall --yes
	! systemctl is-enabled mote || fail "the service is still enabled"
	sleep 10
	! systemctl is-active mote || fail "the service runs again"
	sh scripts/install.sh --remove
	if [ -n "$DRIVER" ]; then # what one wrote oneself is kept
		rm -r /etc/mote
	fi
	local left
	left=$(
		ls -d /sys/fs/cgroup/kubepods* /var/log/pods /var/log/containers /var/lib/cni /var/lib/kubelet /var/lib/mote /run/mote /etc/mote 2>/dev/null
		pgrep -a 'mote|containerd' || true
		nft list ruleset
		ip -br link | grep -v '^lo \|^enp' || true
		systemctl list-units --all --no-legend --plain '*kubepods*' 'cri-*' 'mote*'
		grep -w mote /proc/mounts || true
	) || true
	[ -z "$left" ] || fail "left behind: $left"
}

echo "e2e-vm: $1"
"$1"

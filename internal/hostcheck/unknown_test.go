package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An error that does not say no is reported as unknown. It is no failure, and neither missing nor
// there.
func TestRun_UnknownError_IsNotMissing(t *testing.T) {
	const v1 = "/proc/self/mountinfo"
	read := func(path string) func(*fakeHost) {
		return func(h *fakeHost) { h.readErrs = map[string]error{path: unix.EIO} }
	}
	link := func(kind string) func(*fakeHost) {
		return func(h *fakeHost) { h.linkErrs = map[string]error{kind: unix.ENOBUFS} }
	}
	const bridgeFilter, conntrack = "/proc/sys/net/bridge/bridge-nf-call-iptables",
		"/proc/sys/net/netfilter/nf_conntrack_max"
	for _, row := range []struct {
		check, name string
		change      func(*fakeHost)
	}{
		{"cgroups", "controllers", read("/sys/fs/cgroup/cgroup.controllers")},
		{"cgroups", "mounts", func(h *fakeHost) {
			delete(h.files, "/sys/fs/cgroup/cgroup.controllers")
			read(v1)(h)
		}},
		{"bridge", "trial", link("bridge")},
		{"veth", "trial", link("veth")},
		{"vxlan", "trial", link("vxlan")},
		{"packet filter", "nft was killed", func(h *fakeHost) { h.nftErr = errors.New("signal: killed") }},
		{"packet filter", "iptables timed out",
			func(h *fakeHost) { h.nftErr, h.iptErr = unix.EOPNOTSUPP, context.DeadlineExceeded }},
		{"br_netfilter", "stat", read(bridgeFilter)},
		{"br_netfilter", "modprobe", func(h *fakeHost) {
			delete(h.files, bridgeFilter)
			h.moduleErr = unix.ENOMEM
		}},
		{"ip_forward", "read", read("/proc/sys/net/ipv4/ip_forward")},
		{"ip_forward", "write", func(h *fakeHost) {
			h.files["/proc/sys/net/ipv4/ip_forward"], h.writeErr = "0\n", unix.EMFILE
		}},
		{"ipv6", "read", read("/proc/sys/net/ipv6/conf/all/disable_ipv6")},
		{"ipv6", "forwarding", read("/proc/sys/net/ipv6/conf/all/forwarding")},
		{"ipv6", "write", func(h *fakeHost) {
			h.files["/proc/sys/net/ipv6/conf/all/forwarding"], h.writeErr = "0\n", unix.EMFILE
		}},
		{"conntrack", "stat", read(conntrack)},
		{"conntrack", "modprobe", func(h *fakeHost) {
			delete(h.files, conntrack)
			h.moduleErr = unix.ENOMEM
		}},
		{"/dev/kmsg", "stat", read("/dev/kmsg")},
		{"seccomp", "stat", read("/proc/sys/kernel/seccomp/actions_avail")},
		{"mounts", "read", read(v1)},
		{"inotify", "instances", read("/proc/sys/fs/inotify/max_user_instances")},
		{"inotify", "watches", read("/proc/sys/fs/inotify/max_user_watches")},
		{"inotify", "in use", func(h *fakeHost) { h.countErr = unix.EMFILE }},
		{"swap", "read", read("/proc/swaps")},
		{"memory", "read", read("/proc/meminfo")},
		{"entropy", "read", read("/proc/sys/kernel/random/entropy_avail")},
		{"port 6443", "no descriptors",
			func(h *fakeHost) { h.listenErr = map[string]error{":6443": os.NewSyscallError("socket", unix.EMFILE)} }},
	} {
		t.Run(row.check+"/"+row.name, func(t *testing.T) {
			h := goodHost()
			row.change(h)
			results := Run(h, options)
			r := find(t, results, row.check)
			if r.Level != Warn || !strings.HasPrefix(r.Found, "unknown: ") || r.Remedy == "" {
				t.Errorf("%+v, want a warning that it is unknown", r)
			}
			if err := Faults(results); err != nil {
				t.Errorf("faults are %v, want none", err)
			}
		})
	}
}

// A tool that ran to its end and failed says no; one that was not there, too.
func TestTryTool_SaysNo(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{"no": "echo cannot; exit 1", "silent": "exit 2",
		"killed": "kill -9 $$"} {
		tool := fmt.Appendf(nil, "#!/bin/sh\n%s\n", script)
		if err := os.WriteFile(filepath.Join(dir, name), tool, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for name, want := range map[string]bool{"no": true, "silent": true, "killed": false, "not-installed": true} {
		if err := tryTool("", name); err == nil || lacks(err) != want {
			t.Errorf("%s: %v says no: %v, want %v", name, err, lacks(err), want)
		}
	}
}

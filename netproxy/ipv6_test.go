package netproxy

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/zap/zaptest"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/netnstest"
)

// ipv6Host skips where there is no IPv6 to take away.
func ipv6Host(t *testing.T) bool {
	t.Helper()
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip("needs IPv6")
	}
	return netnstest.Enter(t)
}

// dualConfig is of a cluster with both families.
func dualConfig(t *testing.T, mode string) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{
		Client:     fake.NewClientset(),
		NodeName:   "n1",
		NodeIPs:    []net.IP{net.ParseIP("192.0.2.5")},
		Mode:       mode,
		Cluster:    cluster("10.42.0.0/16,fd42::/56", "10.43.0.0/16,fd43::/112"),
		CNIConfDir: filepath.Join(dir, "net.d"),
		StateDir:   filepath.Join(dir, "cni"),
		Logger:     zaptest.NewLogger(t),
	}
}

func TestCheckHost_IPv6SwitchedOff_Refused(t *testing.T) {
	if !ipv6Host(t) {
		return
	}
	dual, four := dualConfig(t, ModeAuto).Cluster, cluster("10.42.0.0/16", "10.43.0.0/16")
	off := func(which, value string) {
		t.Helper()
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	off("all", "0")
	off("default", "0")
	if err := CheckHost(dual); err != nil {
		t.Errorf("with IPv6: %v", err)
	}
	// Writing to "all" sets the other, too.
	for _, which := range []string{"default", "all"} {
		off(which, "1")
		if err := CheckHost(dual); !errors.Is(err, ErrNoIPv6) {
			t.Errorf("%s is switched off: %v, want %v", which, err, ErrNoIPv6)
		}
		if err := CheckHost(four); err != nil {
			t.Errorf("%s is switched off and pods have IPv4 alone: %v", which, err)
		}
	}
}

func TestProxy_Run_IP6TablesMissing_Refused(t *testing.T) {
	if !ipv6Host(t) {
		return
	}
	tools := t.TempDir()
	for _, tool := range []string{"iptables", "iptables-save", "iptables-restore"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Skipf("needs %s", tool)
		}
		if err := os.Symlink(path, filepath.Join(tools, tool)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", tools)
	p, err := New(dualConfig(t, ModeIPTables))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); !errors.Is(err, ErrNoIP6Tables) {
		t.Errorf("%v, want %v", err, ErrNoIP6Tables)
	}
}

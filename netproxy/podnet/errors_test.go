package podnet

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/netnstest"
)

// fakeTool puts a shell script in the place of a tool.
func fakeTool(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestIPTablesFirewall_ToolFails_IsNeitherMissingNorIntact(t *testing.T) {
	for _, tool := range []string{"iptables", "ip6tables"} {
		fakeTool(t, tool, `
[ "$1" = --version ] && { echo "iptables v1.8.9 (nf_tables)"; exit 0; }
echo "Another app is currently holding the xtables lock." >&2
exit 4`)
	}
	fakeTool(t, "nft", "echo table ip filter")
	ctx := t.Context()
	if err := (&iptablesFirewall{masquerade: true}).Remove(ctx); err == nil {
		t.Error("chains that cannot be listed count as removed")
	}
	f := &iptablesFirewall{masquerade: true, listed: map[string][]string{"4 " + chainForward: {"-N " + chainForward}}}
	if ok, err := f.Intact(ctx); ok || err == nil {
		t.Errorf("chains that cannot be listed are intact: %v, %v", ok, err)
	}
	guard := &iptablesFirewall{onlyIfDropping: true}
	if err := guard.Apply(ctx, ruleCases[0].rules); err == nil {
		t.Error("a host whose rules cannot be listed counts as one that drops nothing")
	}
	if err := removePortmapChains(ctx); err == nil {
		t.Error("the portmap plugin's chains count as removed")
	}
	if err := removeKubeletChains(ctx); err == nil {
		t.Error("the kubelet's chains count as removed")
	}
}

func TestRemovePortmapTables_ToolFails_IsNoSuccess(t *testing.T) {
	fakeTool(t, "nft", "echo 'netlink: Error: cache initialization failed: Device or resource busy' >&2; exit 1")
	if err := removePortmapTables(t.Context()); err == nil {
		t.Error("tables that cannot be listed count as removed")
	}
}

func TestDropStaleLeases_BootUnknown_KeepsThem(t *testing.T) {
	dir := t.TempDir()
	lease := filepath.Join(dir, "networks", NetworkName, "10.42.0.5")
	if err := os.MkdirAll(filepath.Dir(lease), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lease, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A folder cannot be read, as a file on a bad disk.
	if err := os.Mkdir(filepath.Join(dir, "boot-id"), 0o755); err != nil {
		t.Fatal(err)
	}
	if n, err := dropStaleLeases(dir); err == nil || n != 0 {
		t.Errorf("dropped %d leases, error %v", n, err)
	}
	if _, err := os.Stat(lease); err != nil {
		t.Errorf("a lease that may be in use: %v", err)
	}
}

func TestNetwork_EnsurePeers_LeavesAnotherInterfaceOfTheOverlaysName(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	name := overlayName(DefaultBridge)
	run(t, "ip", "link", "add", name, "type", "bridge")
	c := testConfig(t)
	c.Cluster.NetworkBackend = clusterconfig.BackendNone
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.ensurePeers(t.Context(), Node{Name: "n1", PodCIDRs: prefixes("10.42.0.0/24")}, nil, 1500); err != nil {
		t.Error(err)
	}
	if err := Cleanup(t.Context(), c); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName(name); err != nil {
		t.Errorf("somebody else's interface: %v", err)
	}
}

func TestDump_ListThatChanged_IsReadAgain(t *testing.T) {
	for _, row := range []struct {
		name        string
		interrupted int
		reads       int
		ok          bool
	}{
		{"never", 0, 1, true},
		{"twice", 2, 3, true},
		{"always", 100, dumpTries, false},
	} {
		reads := 0
		list, err := dump(func() ([]int, error) {
			if reads++; reads <= row.interrupted {
				return []int{1}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, nil
		})
		if reads != row.reads || (err == nil) != row.ok || row.ok && len(list) != 2 {
			t.Errorf("changed %s: %d reads, %v, %v", row.name, reads, list, err)
		}
	}
}

func TestWriteFile_FailsAgain_SaysTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "list")
	// A folder that is not empty cannot be replaced.
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, first := replaceFile(path, []byte("text"))
	_, second := replaceFile(path, []byte("text"))
	if first == nil || second == nil || first.Error() != second.Error() {
		t.Errorf("two attempts say %q and %q", first, second)
	}
}

package podnet

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

func TestRenderConflist(t *testing.T) {
	for _, c := range []struct {
		name string
		spec conflistSpec
	}{
		{"ipv4", conflistSpec{
			bridge:   "mote0",
			podCIDRs: prefixes("10.42.0.0/24"),
			mtu:      1450,
			leaseDir: "/var/lib/mote/agent/cni/networks",
			firewall: FirewallNFTables,
		}},
		{"dual", conflistSpec{
			bridge:    "mote0",
			podCIDRs:  prefixes("10.42.0.0/24", "fd00:42::/64"),
			mtu:       1430,
			leaseDir:  "/d",
			firewall:  FirewallIPTables,
			bandwidth: true,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := renderConflist(c.spec)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "conflist-"+c.name+".json", string(got))
		})
	}
	if _, err := renderConflist(conflistSpec{bridge: "mote0"}); err == nil {
		t.Error("no error without a pod CIDR")
	}
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", ConflistName)
	for i, step := range []struct {
		text    string
		changed bool
	}{{"one", true}, {"one", false}, {"two", true}} {
		changed, err := writeFile(path, []byte(step.text))
		if err != nil || changed != step.changed {
			t.Fatalf("step %d: changed %v, error %v", i, changed, err)
		}
		if got, _ := os.ReadFile(path); string(got) != step.text {
			t.Fatalf("step %d: file holds %q", i, got)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("folder holds %v (%v), want the file alone", entries, err)
	}
}

// TestWriteFile_RuntimeNotices watches the folder as containerd does: creation and attributes do
// not count, and whenever something else happens the list has to be complete.
func TestWriteFile_RuntimeNotices(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.Add(dir); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", "second"} {
		if _, err := writeFile(filepath.Join(dir, ConflistName), []byte(text)); err != nil {
			t.Fatal(err)
		}
		noticed := false
		for !noticed {
			select {
			case e := <-watcher.Events:
				if e.Has(fsnotify.Create) || e.Has(fsnotify.Chmod) {
					continue
				}
				noticed = true
				if got, _ := os.ReadFile(filepath.Join(dir, ConflistName)); string(got) != text {
					t.Errorf("at %s the list was %q", e, got)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("the runtime would not notice the list")
			}
		}
	}
}

func TestWriteFile_TargetIsFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sub")
	path := filepath.Join(dir, "list")
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := writeFile(path, []byte("text")); err == nil {
		t.Fatal("no error")
	}
	for _, each := range []string{dir, filepath.Dir(dir)} {
		if entries, _ := os.ReadDir(each); len(entries) != 1 {
			t.Errorf("temporary file was left: %v", entries)
		}
	}
}

func TestPodMTU(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		name                 string
		explicit, link, want int
		backend              clusterconfig.Backend
		ip                   netip.Addr
	}{
		{"vxlan over ethernet", 0, 1500, 1450, clusterconfig.BackendVXLAN, v4},
		{"vxlan over ipv6", 0, 1500, 1430, clusterconfig.BackendVXLAN, v6},
		{"host-gw", 0, 1500, 1500, clusterconfig.BackendHostGW, v4},
		{"cloud link", 0, 1400, 1350, clusterconfig.BackendVXLAN, v4},
		{"no link", 0, 0, 1450, clusterconfig.BackendVXLAN, netip.Addr{}},
		{"loopback", 0, 65536, 1450, clusterconfig.BackendVXLAN, v4},
		{"jumbo", 0, 9000, 8950, clusterconfig.BackendVXLAN, v4},
		{"tiny link", 0, 1280, 1280, clusterconfig.BackendVXLAN, v4},
		{"explicit", 1400, 1500, 1400, clusterconfig.BackendVXLAN, v4},
	} {
		if got := podMTU(c.explicit, c.link, c.backend, c.ip); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestConfig_Validate(t *testing.T) {
	good := Config{
		NodeName: "n",
		Cluster:  clusterconfig.Config{ClusterCIDRs: prefixes("10.42.0.0/16")},
		ConfDir:  "/a",
		StateDir: "/b",
	}
	if err := good.Validate(); err != nil {
		t.Errorf("good config: %v", err)
	}
	err := Config{
		Bridge:   "a-name-that-is-too-long",
		Cluster:  clusterconfig.Config{NetworkBackend: "pigeon"},
		Firewall: "ipfw",
		MTU:      5,
	}.Validate()
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 8 {
		t.Errorf("bad config: %v", err)
	}
}

func TestDropStaleLeases(t *testing.T) {
	dir := t.TempDir()
	leases := filepath.Join(dir, "networks", NetworkName)
	fill := func() {
		t.Helper()
		if err := os.MkdirAll(leases, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"10.42.0.5", "fd00_42__5", "lock", "last_reserved_ip.0"} {
			if err := os.WriteFile(filepath.Join(leases, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	if n, err := dropStaleLeases(dir); err != nil || n != 2 {
		t.Fatalf("first start of a boot: dropped %d, error %v", n, err)
	}
	if entries, _ := os.ReadDir(leases); len(entries) != 2 {
		t.Errorf("left %v, want the plugin's own two files", entries)
	}
	fill()
	if n, err := dropStaleLeases(dir); err != nil || n != 0 {
		t.Fatalf("second start of a boot: dropped %d leases in use, error %v", n, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "boot-id"), []byte("another boot\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := dropStaleLeases(dir); err != nil || n != 2 {
		t.Fatalf("after a boot: dropped %d, error %v", n, err)
	}
}

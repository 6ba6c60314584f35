package recovery

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestForgetCNI(t *testing.T) {
	const dataDir = "/var/lib/mote/agent"
	// As the library writes it: the configuration is base64.
	cached := func(leases string) []byte {
		data, err := json.Marshal(map[string]any{"kind": "cniCacheV1",
			"config": []byte(`{"ipam":{"dataDir":"` + leases + `"}}`)})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, test := range []struct {
		name  string
		files map[string][]byte
		want  []string
	}{
		{"there was none", nil, nil},
		{"ours alone", map[string][]byte{"results/mote-sandbox1-eth0": nil, "results/other": []byte("sandbox1")}, nil},
		{"of a pod that nothing tells of but its network",
			map[string][]byte{"results/mote-gone-eth0": cached(dataDir + "/cni/leases")}, nil},
		{"another runtime's too", map[string][]byte{"results/mote-sandbox1-eth0": nil,
			"results/podman-x-eth0": cached("/var/lib/cni/networks")},
			[]string{"results", "results/podman-x-eth0"}},
		{"another mote's", map[string][]byte{"results/mote-x-eth0": cached(dataDir + "2/cni/leases")},
			[]string{"results", "results/mote-x-eth0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cache := filepath.Join(t.TempDir(), "cni")
			for path, data := range test.files {
				path = filepath.Join(cache, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // once more, as after an interruption
				if err := forgetCNI(cache, []string{"sandbox1"}, dataDir); err != nil {
					t.Fatal(err)
				}
			}
			var left []string
			_ = filepath.WalkDir(cache, func(path string, _ os.DirEntry, err error) error {
				if rel, _ := filepath.Rel(cache, path); err == nil && rel != "." {
					left = append(left, rel)
				}
				return nil
			})
			if !slices.Equal(left, test.want) {
				t.Errorf("left %v, want %v", left, test.want)
			}
			if _, err := os.Stat(cache); (err == nil) != (len(test.want) > 0) {
				t.Errorf("the folder itself: %v", err)
			}
		})
	}
}

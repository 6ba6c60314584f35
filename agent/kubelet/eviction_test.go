package kubelet

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
)

// The thresholds suit small cards and large disks, and leave the store its reserve wherever there
// is room for one.
func TestThreshold_BySize(t *testing.T) {
	for _, row := range []struct {
		name string
		size int64
		want string
	}{
		{"a test's disk", 64 << 20, "5Mi"},
		{"1 GiB", 1 << 30, "81Mi"},
		{"a 4 GB card", 4e9, "305Mi"},
		{"an 8 GB card", 8e9, "446Mi"},
		{"a 16 GB card", 16e9, "637Mi"},
		{"a 32 GB card", 32e9, "1018Mi"},
		{"a 2 TB disk", 2e12, "1024Mi"},
		{"unknown", 0, "5%"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := threshold("/none/of/these", func(dir string, s *unix.Statfs_t) error {
				if dir != "/" {
					return unix.ENOENT
				}
				s.Bsize, s.Blocks = 1000, uint64(row.size/1000)
				return nil
			})
			if got != row.want {
				t.Errorf("threshold is %s, want %s", got, row.want)
			}
			// Package image's reservePart and maxReserve.
			if left := min(row.size/10, 2<<30); row.size > 0 && left <= evictBelow(row.size) {
				t.Errorf("an import leaves %d bytes, and pods are evicted", left)
			}
			if below := evictBelow(row.size); row.size >= 4e9 && below < storeReserve {
				t.Errorf("pods are evicted at %d bytes: the store's reserve is gone by then", below)
			}
		})
	}
}

func TestThreshold_UnknownError_IsAShare(t *testing.T) {
	if got := threshold("/x", func(string, *unix.Statfs_t) error { return unix.EIO }); got != fallbackThreshold {
		t.Errorf("threshold is %s", got)
	}
}

// Each disk has the threshold of its size, and nothing is reclaimed beyond it: the kubelet would
// evict pods that wrote nothing for the rest.
func TestConfig_Server_Eviction(t *testing.T) {
	dir := t.TempDir()
	s, err := Config{
		RootDir:       filepath.Join(dir, "kubelet"),
		ImageDir:      filepath.Join(dir, "containerd"),
		StaticPodsDir: filepath.Join(dir, "static"),
		PodLogsDir:    filepath.Join(dir, "logs"),
	}.server()
	if err != nil {
		t.Fatal(err)
	}
	want := threshold(dir, unix.Statfs)
	for _, signal := range []string{"nodefs.available", "imagefs.available"} {
		if got := s.EvictionHard[signal]; got != want {
			t.Errorf("%s is %s, want %s", signal, got, want)
		}
	}
	if len(s.EvictionMinimumReclaim) > 0 {
		t.Errorf("beyond the thresholds is reclaimed %v", s.EvictionMinimumReclaim)
	}
	if _, err := eviction.ParseThresholdConfig(nil, s.EvictionHard, nil, nil, s.EvictionMinimumReclaim); err != nil {
		t.Errorf("upstream does not take them: %v", err)
	}
}

// Pods and images may be on disks of their own.
func TestSetEviction_TwoDisks(t *testing.T) {
	var k config.KubeletConfiguration
	setEviction(&k, "/pods", "/images", func(dir string, s *unix.Statfs_t) error {
		s.Bsize, s.Blocks = 1000, map[string]uint64{"/pods": 8e6, "/images": 16e6}[dir]
		return nil
	})
	if k.EvictionHard["nodefs.available"] != "446Mi" || k.EvictionHard["imagefs.available"] != "637Mi" {
		t.Errorf("thresholds are %v", k.EvictionHard)
	}
}

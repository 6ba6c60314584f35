package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mote-dev/mote/runtime/registry"
)

func TestConfig_Validate(t *testing.T) {
	for _, row := range []struct {
		name string
		c    Config
		want []string
	}{
		{"good", Config{DataDir: "/d"}, nil},
		{"nothing", Config{}, []string{"absolute path"}},
		{"relative", Config{DataDir: "d"}, []string{"absolute path"}},
		{"everything", Config{Snapshotter: "zfs", CgroupDriver: "upstart", MaxConcurrentDownloads: -1},
			[]string{"absolute path", "zfs", "upstart", "-1"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := row.c.Validate()
			if (err == nil) != (len(row.want) == 0) {
				t.Fatalf("error is %v", err)
			}
			for _, w := range row.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %v does not say %q", err, w)
				}
			}
		})
	}
}

// TestReadRegistries_OnlyTheDefault_MayBeMissing: a file that somebody named is misspelled or gone.
func TestReadRegistries_OnlyTheDefault_MayBeMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := ReadRegistries(file); !errors.Is(err, registry.ErrMissing) || !strings.Contains(err.Error(), file) {
		t.Errorf("a missing file gave %v", err)
	}
	if _, err := os.Stat(DefaultRegistriesFile); !errors.Is(err, os.ErrNotExist) {
		t.Skip("this machine has a registries file")
	}
	if _, err := ReadRegistries(DefaultRegistriesFile); err != nil {
		t.Errorf("without the default file: %v", err)
	}
}

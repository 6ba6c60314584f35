package runtime

import (
	"strings"
	"testing"
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

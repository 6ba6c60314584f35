package store

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	// The tests that run below need these in the module.
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/stretchr/testify/require"

	_ "github.com/mote-dev/mote/test/suites/store/apiserver"
	_ "k8s.io/apiserver/pkg/storage/etcd3"
)

// buildTags are those of the repository's Makefile, so that what it compiled is used again.
const buildTags = "kustomize_disable_go_plugin_support,osusergo,netgo,sqlite_omit_load_extension," +
	"no_btrfs,no_devmapper,no_zfs"

const upstream = "k8s.io/apiserver/pkg/storage/etcd3"

// buildUpstream compiles the package of the API server's etcd3 storage with its own tests,
// unchanged but for the import of the package that starts their etcd, which becomes ours. The copy
// exists for the compiler only, in an overlay.
func buildUpstream(t *testing.T) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", upstream).Output()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of %s: %v", upstream, err)
	}
	tmp, replace := t.TempDir(), map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.ReplaceAll(b, []byte(`"`+upstream+`/testserver"`),
			[]byte(`"github.com/mote-dev/mote/test/suites/store/apiserver"`))
		name := filepath.Base(f)
		if err := os.WriteFile(filepath.Join(tmp, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(here, "etcd3", name)] = filepath.Join(tmp, name)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(tmp, "etcd3.test")
	build := exec.Command("go", "test", "-c", "-vet=off", "-trimpath", "-tags", buildTags, "-overlay",
		filepath.Join(tmp, "overlay.json"), "-o", bin, "./etcd3")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests: %v\n%s", err, out)
	}
	return bin
}

// TestAPIServerStorage runs all tests of the API server's etcd3 storage against the store. They
// call every RunTest function that applies to etcd3.
func TestAPIServerStorage(t *testing.T) {
	bin := buildUpstream(t)
	for mode, skip := range map[string]string{"grpc": "", "local": "",
		// These three count the calls of client.KV, which the store's own client goes past.
		"direct": "^(TestGetListStreamFallsBackToPaginated|TestListPaginationRareObject|" +
			"TestListContinuationWithFilter)$"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), bin, "-test.v", "-test.timeout=5m", "-test.skip="+skip)
			cmd.Env = append(os.Environ(), "MOTE_TEST_CLIENT="+mode)
			out, err := cmd.CombinedOutput()
			passed := 0
			for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
				switch line := strings.TrimSpace(sc.Text()); {
				case strings.HasPrefix(line, "--- PASS"):
					passed++
				case strings.HasPrefix(line, "--- FAIL"), strings.HasPrefix(line, "--- SKIP"):
					t.Error(line)
				}
			}
			if err != nil {
				t.Logf("%s", tail(out, 8000))
				t.Errorf("tests: %v", err)
			}
			t.Logf("%d tests and subtests passed", passed)
			if passed < 500 {
				t.Errorf("only %d passed: were they all run?", passed)
			}
		})
	}
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

package netproxy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
)

// fakeTools puts shell scripts, by name, in the place of all tools.
func fakeTools(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

// Choosing iptables deletes the rules of nftables, so only a known answer may lead there.
func TestChooseMode_ProbeFails(t *testing.T) {
	const (
		version  = `[ "$1" = --version ] && { echo "nftables v1.0.6 (Lester Gooch #5)"; exit 0; }` + "\n"
		noMemory = `echo "/dev/stdin:9:1-5: Error: Could not process rule: Cannot allocate memory" >&2; exit 1`
		noFib    = `echo "/dev/stdin:9:1-5: Error: Could not process rule: No such file or directory" >&2; exit 1`
		locked   = `echo "Another app is currently holding the xtables lock." >&2; exit 4`
		noTable  = `echo "iptables v1.8.9 (legacy): can't initialize iptables table: Table does not exist" >&2; exit 3`
	)
	twice := func(script string) string {
		count := filepath.Join(t.TempDir(), "count")
		return `n=$(($(/bin/cat ` + count + ` 2>/dev/null || echo 0)+1)); echo $n >` + count +
			`; [ $n -gt 2 ] && exit 0` + "\n" + script
	}
	for _, row := range []struct {
		name, nft, iptables, forced string
		want, message               string
		noBackend                   bool
	}{
		{
			name:     "memory is short twice",
			nft:      version + twice(noMemory),
			iptables: "exit 0",
			want:     ModeNFTables,
		},
		{
			name:     "memory stays short",
			nft:      version + noMemory,
			iptables: "exit 0",
			message:  "Cannot allocate memory",
		},
		{
			name:     "nft is killed",
			nft:      version + "kill -9 $$",
			iptables: "exit 0",
			message:  "killed",
		},
		{
			name:     "an expression is missing",
			nft:      version + noFib,
			iptables: "exit 0",
			want:     ModeIPTables,
		},
		{
			name:     "nft is too old",
			nft:      `echo "nftables v1.0.0 (Fearless Fosdick #2)"`,
			iptables: "exit 0",
			want:     ModeIPTables,
		},
		{
			name:     "iptables is locked twice",
			nft:      version + noFib,
			iptables: twice(locked),
			want:     ModeIPTables,
		},
		{
			name:     "iptables stays locked",
			nft:      version + noFib,
			iptables: locked,
			message:  "holding the xtables lock",
		},
		{
			name:      "neither",
			nft:       version + noFib,
			iptables:  noTable,
			noBackend: true,
			message:   "Table does not exist",
		},
		{
			name:   "forced, memory is short twice",
			nft:    version + twice(noMemory),
			forced: ModeNFTables,
			want:   ModeNFTables,
		},
		{
			name:    "forced, an expression is missing",
			nft:     version + noFib,
			forced:  ModeNFTables,
			message: "use nftables",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			tools := map[string]string{"nft": row.nft}
			if row.iptables != "" {
				tools["iptables"] = row.iptables
			}
			fakeTools(t, tools)
			synctest.Test(t, func(t *testing.T) {
				got, err := chooseMode(t.Context(), row.forced, zap.NewNop())
				if got != row.want || (err == nil) != (row.want != "") ||
					errors.Is(err, ErrNoBackend) != row.noBackend {
					t.Errorf("mode %q, want %q: %v", got, row.want, err)
				}
				if row.message != "" && (err == nil || !strings.Contains(err.Error(), row.message)) {
					t.Errorf("error %v lacks %q", err, row.message)
				}
			})
		})
	}
}

package nfttool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// fakeTool puts a shell script in the place of nft.
func fakeTool(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nft"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestError_Is(t *testing.T) {
	for _, row := range []struct {
		name, message, then   string
		notFound, unsupported bool
	}{
		{name: "table listed", message: "Error: No such file or directory\nlist table inet a", notFound: true},
		{name: "table deleted",
			message: "Error: Could not process rule: No such file or directory\ndelete table inet a", notFound: true},
		{name: "table listed, with a hint",
			message:  "Error: No such file or directory; did you mean table \u2018b\u2019 in family inet?",
			notFound: true},
		{name: "module missing",
			message:     "/dev/stdin:3:1-20: Error: Could not process rule: No such file or directory\nadd rule",
			unsupported: true},
		{name: "expression missing",
			message: "/dev/stdin:3:1-20: Error: Could not process rule: Operation not supported", unsupported: true},
		{name: "syntax of a newer tool", message: "/dev/stdin:3:17-19: Error: syntax error, unexpected string",
			unsupported: true},
		{
			name:        "kernel without nftables",
			message:     "Unable to initialize Netlink socket: Protocol not supported",
			then:        "exit 3",
			unsupported: true,
		},
		{name: "memory", message: "/dev/stdin:3:1-20: Error: Could not process rule: Cannot allocate memory"},
		{name: "permission", message: "Operation not permitted (you must be root)"},
		{name: "cache", message: "netlink: Error: cache initialization failed: Device or resource busy"},
		{name: "library missing",
			message: "nft: error while loading shared libraries: libnftables.so.1: cannot open shared object file: No such file or directory", then: "exit 127"},
		{name: "killed", message: "Error: No such file or directory", then: "kill -9 $$"},
		{name: "killed before it said anything", then: "kill -9 $$"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.then == "" {
				row.then = "exit 1"
			}
			fakeTool(t, "cat >&2 <<'END'\n"+row.message+"\nEND\n"+row.then)
			_, err := Run(t.Context(), "", "list", "tables")
			if err == nil || errors.Is(err, ErrNotFound) != row.notFound ||
				errors.Is(err, ErrUnsupported) != row.unsupported {
				t.Errorf("not found %v, unsupported %v: %v", errors.Is(err, ErrNotFound),
					errors.Is(err, ErrUnsupported), err)
			}
		})
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Run(t.Context(), "", "list", "tables"); !errors.Is(err, ErrUnsupported) ||
		errors.Is(err, ErrNotFound) {
		t.Errorf("nft is not installed: %v", err)
	}
}

func TestTable_Remove_ToolBroken_IsNoSuccess(t *testing.T) {
	fakeTool(t, "echo 'nft: libnftables.so.1: No such file or directory' >&2; exit 127")
	if err := (&Table{Name: "own"}).Remove(t.Context()); err == nil {
		t.Error("a table counts as removed although nft could not be run")
	}
}

func TestRun_ContextEnded_IsTheCause(t *testing.T) {
	fakeTool(t, "exec sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, "", "list", "tables"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnsupported) {
		t.Errorf("cancelled: %v", err)
	}
}

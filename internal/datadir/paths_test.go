package datadir

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// ownFolders are the names of the map that a file uses in another folder.
var ownFolders = map[string][]string{
	"agent/kubelet/config.go":   {"pki"},                     // the kubelet's root folder
	"netproxy/podnet/sysctl.go": {"conf"},                    // /proc/sys
	"runtime/layout/paths.go":   {"mote", "containerd.sock"}, // /run
	"store/storetest/open.go":   {"state.db"},                // a test's folder
}

// joined returns the literal arguments of every call of filepath.Join in a file, split into names.
func joined(t *testing.T, file string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if f, ok := call.Fun.(*ast.SelectorExpr); !ok || f.Sel.Name != "Join" {
			return true
		} else if pkg, ok := f.X.(*ast.Ident); !ok || pkg.Name != "filepath" && pkg.Name != "path" {
			return true
		}
		for _, arg := range call.Args {
			if l, ok := arg.(*ast.BasicLit); ok && l.Kind == token.STRING {
				text, err := strconv.Unquote(l.Value)
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, strings.Split(strings.Trim(text, "/"), "/")...)
			}
		}
		return true
	})
	return names
}

// TestPaths_SpelledOnce holds all other packages to the map: what they join by hand must not have a
// name of it. Tests may, as they check what is on the disk.
func TestPaths_SpelledOnce(t *testing.T) {
	taken := joined(t, "paths.go")
	if len(taken) < 20 {
		t.Fatalf("the map has only %v", taken)
	}
	root := filepath.Join("..", "..")
	for _, folder := range []string{"agent", "cmd", "internal", "netproxy", "runtime", "server", "store"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil || rel == "internal/datadir/paths.go" {
				return err
			}
			for _, name := range joined(t, path) {
				if slices.Contains(taken, name) && !slices.Contains(ownFolders[rel], name) {
					t.Errorf("%s joins %q by hand: take the path from internal/datadir", rel, name)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestPaths_OnDisk pins the names: data folders of earlier versions have them.
func TestPaths_OnDisk(t *testing.T) {
	p := At("/d")
	for got, want := range map[string]string{
		p.StoreFile():                "/d/server/db/state.db",
		p.Snapshots():                "/d/server/db/snapshots",
		p.TLS():                      "/d/server/tls",
		p.TokenFile():                "/d/server/token",
		p.ServerID():                 "/d/server/id",
		p.CurrentBin():               "/d/bin/current",
		p.Agent().Identity():         "/d/agent/pki",
		p.Agent().Offline():          "/d/agent/offline",
		p.Agent().DNSCheckpoint():    "/d/agent/dns.checkpoint",
		p.Agent().ResolvConf():       "/d/agent/resolv.conf",
		p.Agent().Pods():             "/d/agent/kubelet/pods",
		p.Agent().StaticPods():       "/d/agent/pod-manifests",
		p.Agent().PodLogs():          "/d/agent/pod-logs",
		p.Agent().CNIConf():          "/d/agent/cni/conf",
		p.Agent().ContainerdSocket(): "/d/agent/containerd/containerd.sock",
		p.Agent().Images():           "/d/agent/images",
		p.Agent().Registries():       "/d/agent/registries",
		p.Agent().Runtime():          "/d/agent/runtime",
		p.Agent().Paths().Root:       "/d",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

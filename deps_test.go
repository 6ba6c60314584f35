package main

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/mote-dev/mote/"

// rules say which imports are refused where, and why. A path ends before a slash or at its end.
var rules = []struct {
	from    string
	refused []string
	reason  string
}{
	{"store", []string{module + "server", module + "agent", module + "runtime", module + "netproxy", module + "cmd"},
		"the store stands alone: it is also run as one, for any etcd client"},
	{"store", []string{"k8s.io", "sigs.k8s.io"},
		"the store knows bytes and revisions; what they mean is the API server's business"},
	{"runtime", []string{module + "server", module + "agent", module + "netproxy", module + "store", module + "cmd"},
		"the runtime must work before, without and after a server"},
	{"netproxy", []string{module + "server", module + "agent", module + "runtime", module + "store", module + "cmd"},
		"the network takes its wanted state from the API and meets the runtime in CNI's folder only"},
	{"server", []string{module + "agent", module + "runtime", module + "netproxy", module + "cmd"},
		"a server runs without a node; they meet over the API"},
	{"agent", []string{module + "server", module + "store", module + "cmd"},
		"an agent runs without a server; they meet over the API"},
	{"cmd/mote-helper", []string{module + "server", module + "agent", module + "store", module + "netproxy", module + "runtime", module + "cmd/settings"},
		"the helper is another executable, kept apart so that mote's own code stays small"},
}

// TestDeps_Imports_PointOneWay asks the Go tool what each package imports, tests included, and holds it to the rules.
func TestDeps_Imports_PointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-e", "-f", "{{.ImportPath}}|{{join .Imports \" \"}} {{join .TestImports \" \"}} {{join .XTestImports \" \"}}", "./...").Output()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		seen++
		pkg, imports, ok := strings.Cut(strings.TrimSpace(line), "|")
		if !ok {
			continue
		}
		for _, imported := range strings.Fields(imports) {
			for _, rule := range rules {
				if !within(pkg, module+rule.from) {
					continue
				}
				for _, r := range rule.refused {
					if within(imported, r) {
						t.Errorf("%s imports %s: %s", pkg, imported, rule.reason)
					}
				}
			}
		}
	}
	if seen < len(rules) {
		t.Errorf("only %d packages were looked at", seen)
	}
}

func within(path, parent string) bool {
	return path == parent || strings.HasPrefix(path, parent+"/")
}

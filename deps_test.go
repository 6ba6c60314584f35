package main_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/mote-dev/mote"

// floors says which folders of this repository each folder may import, from the top of the house to
// the bottom. The longest folder that contains a package decides. A package may always import what
// shares its row's folder.
var floors = []struct {
	folder string
	may    []string
	reason string
}{
	{".", []string{"cmd"}, "main.go only calls the command line"},
	{
		"cmd", []string{"agent", "server", "netproxy", "runtime", "store", "internal"},
		"the command line is the top floor",
	},
	{"cmd/mote-helper", nil, "the helper is another executable, kept apart so that mote's own code stays small"},
	{"cmd/habits", nil, "habits are words with answers, for the command line to print"},
	{"cmd/stopsignal", nil, "it is initialised before everything that takes time to be"},
	{"cmd/settings", nil, "settings know where a value comes from, not what it means"},
	{
		"agent", []string{"netproxy", "runtime", "internal"},
		"an agent runs without a server; they meet over the API and share internal/joinapi",
	},
	{
		"server", []string{"store", "internal"},
		"a server runs without a node; they meet over the API and share internal/joinapi",
	},
	{
		"server/tunnel/tunneltest", []string{"server/tunnel", "agent/tunnel", "internal/joinapi"},
		"it tests both ends of the tunnel together and nothing more",
	},
	{"netproxy", []string{"internal"},
		"the network takes its state from the API and meets the runtime in CNI's folder only"},
	{"runtime", []string{"internal"}, "the runtime works before, without and after a server"},
	{"store", []string{"internal"}, "the store also runs alone, for any etcd client"},
	{"internal", nil, "leaves lie below every other floor"},
	{
		"internal/tools", []string{"internal", "server/openapi", "runtime"},
		"build tools use the packages whose data they make, not the roles",
	},
	{"test", nil, "black-box tests drive the built executable and import nothing of it"},
	{"test/bench/hollow", []string{"agent", "netproxy"}, "hollow nodes are the agent's own code without a kubelet"},
	{"test/suites/store", []string{"store"}, "the store's suite tests it as a library"},
	{"examples", nil, "examples are their users' code"},
}

// siblings lists every import between the packages inside a role. They never import the role's own
// package, which composes them.
var siblings = map[string][]string{
	"agent/join": {"agent/balancer"},
	"server/apiserver": {"server/apiserver/eventwindow", "server/apiserver/warnings", "server/loopback",
		"server/nodeclaims", "server/openapi", "server/pki"},
	"server/controllers": {"server/controllers/podcidr", "server/loopback", "server/pki"},
	"server/join":        {"server/revocation"},
	"server/scheduler":   {"server/loopback"},
}

// foreign names modules that a folder must not import, its tests included.
var foreign = []struct {
	folder  string
	refused []string
	reason  string
}{
	{
		"store", []string{"k8s.io", "sigs.k8s.io"},
		"the store knows bytes and revisions; what they mean is the API server's business",
	},
}

// composed are the folders that siblings describes.
var composed = []string{"agent", "server"}

// source is a package of this repository as its files declare it, with any build tags.
type source struct {
	name, doc string
	// ours maps each imported folder of this repository to a file that imports it, others each
	// import path of another module.
	ours, others map[string]string
}

// sources reads every package, over the borders of modules.
func sources(t *testing.T) map[string]*source {
	t.Helper()
	all := map[string]*source{}
	ours(t, func(dir string, files []string) {
		s := &source{ours: map[string]string{}, others: map[string]string{}}
		all[filepath.ToSlash(dir)] = s
		for _, f := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.ImportsOnly|parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if parsed.Doc != nil && filepath.Base(f) == "doc.go" {
				s.name, s.doc = parsed.Name.Name, strings.Join(strings.Fields(parsed.Doc.Text()), " ")
			}
			for _, spec := range parsed.Imports {
				imported, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Errorf("%s: %v", f, err)
					continue
				}
				into := s.others
				if within(imported, module) {
					into, imported = s.ours, path.Clean(strings.TrimPrefix(imported[len(module):], "/"))
				}
				// An import of the program matters more than the same one of a test.
				if old, ok := into[imported]; !ok || strings.HasSuffix(old, "_test.go") {
					into[imported] = f
				}
			}
		}
		delete(s.ours, filepath.ToSlash(dir)) // an external test imports its package
	})
	return all
}

// supportsTests reports whether a package exists for tests, which may then use it from any floor.
func supportsTests(pkg string) bool { return strings.HasSuffix(path.Base(pkg), "test") }

// exempt reports whether an import is of a package for tests and stands in a test.
func exempt(pkg, imported, file string) bool {
	return supportsTests(imported) && (strings.HasSuffix(file, "_test.go") || supportsTests(pkg))
}

// TestDeps_Floors_PointDown holds the imports between folders, tests included, to floors.
func TestDeps_Floors_PointDown(t *testing.T) {
	all := sources(t)
	if len(all) < len(floors) {
		t.Errorf("only %d packages were found", len(all))
	}
	for pkg, s := range all {
		row := -1
		for i, f := range floors {
			if within(pkg, f.folder) && (row < 0 || len(f.folder) >= len(floors[row].folder)) {
				row = i
			}
		}
		if row < 0 {
			t.Errorf("%s: on no floor: add its folder to floors in deps_test.go", pkg)
			continue
		}
		f := floors[row]
		for imported, file := range s.ours {
			if within(imported, f.folder) || exempt(pkg, imported, file) {
				continue
			}
			if !slices.ContainsFunc(f.may, func(may string) bool { return within(imported, may) }) {
				t.Errorf("%s imports %s: %s", file, imported, f.reason)
			}
		}
	}
}

// TestDeps_Foreign_StaysOut holds the imports of other modules to foreign.
func TestDeps_Foreign_StaysOut(t *testing.T) {
	for pkg, s := range sources(t) {
		for _, f := range foreign {
			for imported, file := range s.others {
				if within(pkg, f.folder) &&
					slices.ContainsFunc(f.refused, func(r string) bool { return within(imported, r) }) {
					t.Errorf("%s imports %s: %s", file, imported, f.reason)
				}
			}
		}
	}
}

// TestDeps_Siblings_AreNamed holds the packages inside a role to the imports that siblings lists.
func TestDeps_Siblings_AreNamed(t *testing.T) {
	all := sources(t)
	for pkg, s := range all {
		for _, role := range composed {
			if pkg == role || !within(pkg, role) || supportsTests(pkg) {
				continue
			}
			for imported, file := range s.ours {
				switch {
				case imported == role:
					t.Errorf("%s imports %s, which composes it: pass what it needs as an argument", file, role)
				case within(imported, role) && !exempt(pkg, imported, file) &&
					!slices.Contains(siblings[pkg], imported):
					t.Errorf("%s imports %s: let the role pass it, or name the pair in siblings in deps_test.go", file,
						imported)
				}
			}
		}
	}
	for pkg, named := range siblings {
		for _, imported := range named {
			if s := all[pkg]; s == nil || s.ours[imported] == "" {
				t.Errorf("siblings lets %s import %s, which it does not: remove the pair", pkg, imported)
			}
		}
	}
}

// TestDeps_TestSupport_StaysInTests keeps what exists for tests out of the executable.
func TestDeps_TestSupport_StaysInTests(t *testing.T) {
	all := sources(t)
	for pkg, s := range all {
		for imported, file := range s.ours {
			if supportsTests(imported) && !exempt(pkg, imported, file) {
				t.Errorf("%s imports %s, which is for tests only", file, imported)
			}
		}
	}
}

// TestDeps_PackageComment_TellsTheTruth holds each package to the last sentence of its comment. It
// has one of three forms, with paths relative to the repository or full ones of other modules:
//
//	It must not import anything else of this repository.
//	It must not import anything else of this repository but a, b and c.
//	It must not import a, b or c.
//
// A path stands for all below it. Tests may import packages for tests all the same.
func TestDeps_PackageComment_TellsTheTruth(t *testing.T) {
	all := sources(t)
	requirements := goMods(t)
	for pkg, s := range all {
		if pkg == "." {
			continue // main.go is the whole package
		}
		p, err := parsePromise(s.doc)
		if err != nil {
			t.Errorf("%s/doc.go: %v", pkg, err)
			continue
		}
		for _, named := range p.paths {
			if !known(named, all, requirements) {
				t.Errorf("%s/doc.go names %s, which is no folder here and in no go.mod", pkg, named)
			}
		}
		used := map[string]bool{}
		for imported, file := range s.ours {
			i := slices.IndexFunc(p.paths, func(named string) bool { return within(imported, named) })
			switch {
			case exempt(pkg, imported, file):
			case p.onlyThese && i >= 0:
				used[p.paths[i]] = true
			case p.onlyThese, i >= 0 && !within(pkg, p.paths[i]):
				t.Errorf("%s imports %s, which %s/doc.go rules out", file, imported, pkg)
			}
		}
		for imported, file := range s.others {
			if slices.ContainsFunc(p.paths, func(named string) bool {
				return strings.Contains(named, ".") && within(imported, named)
			}) {
				t.Errorf("%s imports %s, which %s/doc.go rules out", file, imported, pkg)
			}
		}
		for _, named := range p.paths {
			if p.onlyThese && !used[named] {
				t.Errorf("%s/doc.go allows %s, which is not imported", pkg, named)
			}
		}
	}
}

// promise is the last sentence of a package comment.
type promise struct {
	// onlyThese turns the meaning of paths around: of this repository, nothing else is imported.
	onlyThese bool
	paths     []string
}

const (
	promiseBegin = "It must not import "
	nothingElse  = "anything else of this repository"
)

var importPath = regexp.MustCompile(`^[a-z0-9]([a-zA-Z0-9._/-]*[a-zA-Z0-9])?$`)

func parsePromise(doc string) (promise, error) {
	var p promise
	begin := strings.LastIndex(doc, promiseBegin)
	list, ended := strings.CutSuffix(doc[max(0, begin):], ".")
	if begin < 0 || !ended {
		return p, fmt.Errorf("the package comment does not end with %q and a list: %q", promiseBegin+"…", doc)
	}
	list = strings.TrimPrefix(list, promiseBegin)
	last := " or "
	if rest, ok := strings.CutPrefix(list, nothingElse); ok {
		p.onlyThese = true
		if rest == "" {
			return p, nil
		}
		if list, ok = strings.CutPrefix(rest, " but "); !ok {
			return p, fmt.Errorf("%q: want \"but\" and a list after %q", rest, nothingElse)
		}
		last = " and "
	}
	if i := strings.LastIndex(list, last); i >= 0 {
		list = list[:i] + ", " + list[i+len(last):]
	}
	p.paths = strings.Split(list, ", ")
	for _, named := range p.paths {
		if !importPath.MatchString(named) {
			return p, fmt.Errorf("%q in the sentence on imports is no import path: want %q", named, "a, b"+last+"c")
		}
	}
	return p, nil
}

func TestParsePromise_Forms(t *testing.T) {
	for _, row := range []struct {
		doc  string
		want promise
		bad  bool
	}{
		{doc: "It must not import anything else of this repository.", want: promise{onlyThese: true}},
		{
			doc:  "Package x owns y. It must not import anything else of this repository but internal/a, b and c.",
			want: promise{onlyThese: true, paths: []string{"internal/a", "b", "c"}},
		},
		{
			doc:  "Package x owns y. It must not import server, agent/dns or k8s.io/client-go.",
			want: promise{paths: []string{"server", "agent/dns", "k8s.io/client-go"}},
		},
		{doc: "It must not import server.", want: promise{paths: []string{"server"}}},
		{doc: "Package x owns y.", bad: true},
		{doc: "It must not import server", bad: true},
		{doc: "It must not import the server.", bad: true},
		{doc: "It must not import server. Nobody must.", bad: true},
		{doc: "It must not import anything else of this repository except server.", bad: true},
	} {
		got, err := parsePromise(row.doc)
		if (err != nil) != row.bad {
			t.Errorf("%q: error %v, want one: %v", row.doc, err, row.bad)
		}
		if !row.bad && (got.onlyThese != row.want.onlyThese || !slices.Equal(got.paths, row.want.paths)) {
			t.Errorf("%q is read as %+v, want %+v", row.doc, got, row.want)
		}
	}
}

// goMods is the text of every go.mod, in which the modules that packages come from are named.
func goMods(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	ours(t, func(dir string, _ []string) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil {
			text.Write(data)
		}
	})
	return text.String()
}

func known(named string, all map[string]*source, requirements string) bool {
	for pkg := range all {
		if within(pkg, named) {
			return true
		}
	}
	// A package lies below its module, and a family like k8s.io is above several.
	for p := named; p != "." && strings.Contains(p, "."); p = path.Dir(p) {
		if strings.Contains(requirements, "\t"+p) {
			return true
		}
	}
	return false
}

func within(pkg, parent string) bool {
	return pkg == parent || strings.HasPrefix(pkg, parent+"/")
}

package main_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// ours walks the repository's own folders, over the borders of its modules, and calls visit with
// each that holds Go files.
func ours(t *testing.T, visit func(dir string, files []string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() {
			return nil
		}
		name := d.Name()
		if path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || path == "bin" || path == "build") {
			return filepath.SkipDir
		}
		files, err := filepath.Glob(filepath.Join(path, "*.go"))
		if err != nil {
			return err
		}
		if len(files) > 0 {
			visit(path, files)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLayout_EveryFolder_SaysWhatItOwns holds each folder to one doc.go with the only package
// comment. TestDeps_PackageComment_TellsTheTruth reads its last sentence.
func TestLayout_EveryFolder_SaysWhatItOwns(t *testing.T) {
	ours(t, func(dir string, files []string) {
		if dir == "." {
			return // main.go is the whole package
		}
		var documented []string
		for _, f := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if parsed.Doc == nil || strings.HasSuffix(f, "_test.go") {
				continue
			}
			documented = append(documented, filepath.Base(f))
			text := strings.Join(strings.Fields(parsed.Doc.Text()), " ")
			if !strings.HasPrefix(text, "Package ") && !strings.HasPrefix(text, "Command ") {
				t.Errorf("%s: the package comment begins %q, want Package or Command and the name", f, text)
			}
		}
		if len(documented) != 1 || documented[0] != "doc.go" {
			t.Errorf("%s: package comment in %v, want it in doc.go and nowhere else", dir, documented)
		}
	})
}

// TestLayout_Names_SayAConcept refuses drawers.
func TestLayout_Names_SayAConcept(t *testing.T) {
	drawer := regexp.MustCompile(`^(utils?|common|helpers|types|base|misc)$`)
	ours(t, func(dir string, files []string) {
		for _, f := range append(files, dir) {
			if name := strings.TrimSuffix(filepath.Base(f), ".go"); drawer.MatchString(name) {
				t.Errorf("%s: name the concept, or write the ten lines twice", f)
			}
		}
	})
}

// TestLayout_FrontDoor_ShowsTheHouse holds the root to the folders of docs/architecture.md: what
// only another package needs goes to internal/, what only tests need to test/.
func TestLayout_FrontDoor_ShowsTheHouse(t *testing.T) {
	want := []string{
		".ci", "agent", "cmd", "docs", "examples", "internal", "netproxy", "runtime", "scripts", "server", "store",
		"test",
	}
	// What a checkout, a build or an editor adds.
	added := []string{".git", ".idea", ".vscode", "bin", "build"}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if e.IsDir() && !slices.Contains(added, e.Name()) {
			got = append(got, e.Name())
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the root has the folders %v, want %v", got, want)
	}
}

// TestLayout_Packages_StaySmall keeps a package to what a reader can survey. The store is one
// algorithm over shared state, and cmd has a file for each command.
func TestLayout_Packages_StaySmall(t *testing.T) {
	const most = 20
	ours(t, func(dir string, files []string) {
		n := len(slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") }))
		if n > most && dir != "store" && dir != "cmd" {
			t.Errorf("%s has %d files without its tests, want %d at most: split it by concept", dir, n, most)
		}
	})
}

// TestLayout_Files_StayReadable lets no file pass 800 lines; they should be split near 500.
func TestLayout_Files_StayReadable(t *testing.T) {
	ours(t, func(_ string, files []string) {
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Error(err)
				continue
			}
			if n := strings.Count(string(data), "\n"); n > 800 {
				t.Errorf("%s has %d lines; split it by concept or verb", f, n)
			}
		}
	})
}
